"""A language model on disk: blocks are read from safetensors one at a time, to the CPU or to a GPU."""

from __future__ import annotations

import copy
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model, revert_weight_conversion
from transformers.modeling_utils import LoadStateDictConfig

from secateur._utils.finite import all_finite
from secateur._utils.tokenizers import Tokenizer
from secateur.errors import InputError, ModelError, UnsupportedError
from secateur.subjects import matrices
from secateur.subjects.transformer import blocks, files, saving
from secateur.subjects.transformer.blank import make_blank
from secateur.subjects.transformer.families import Family
from secateur.subjects.transformer.layout import Layout
from secateur.subjects.transformer.moe import Mixture, Moe
from secateur.subjects.transformer.origin import Origin
from secateur.vocabulary import Cut, Selection, Site, Term, Units

__all__ = ["Streamed"]

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_LEFT = ("*.safetensors", files.INDEX, "README.md", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.py")
"""What is not copied beside a result: weights, which are written anew, the old card, pickles and code."""


class Streamed:
    """A causal language model in a folder. `model` is its skeleton: modules without weights, except while `resident`.

    Use `open_streamed(folder)` to make one. Weights that have been changed stand in files of their own (`store`), and
    take the place of the original's. On another `device` than the CPU a block is there while it is resident, and
    meanwhile the next one is read from the disk: see `put_on`.
    """

    backend = "secateur.runs.backends.streamed:OnDisk"

    kind: Literal["decoder"] = "decoder"
    output: Literal["logits"] = "logits"
    causal = True

    def __init__(
        self,
        folder: Path,
        model: type[PreTrainedModel],
        config: PretrainedConfig,
        family: Family,
        tokenizer: Tokenizer | None,
    ) -> None:
        self.folder, self.family = folder, family
        self.tokenizer: Any = tokenizer
        self.device = torch.device("cpu")
        """Where blocks are while they are resident."""
        self._ahead = _Ahead()
        self._places = files.find_tensors(folder)
        self.dtype = self._kind()
        self.model = _skeleton(model, config, self.dtype)
        self.origin = Origin.of_model(self.model, str(folder), folder)
        """What this was cut from, see `Transformer.origin`."""
        self.changed: dict[str, Path] = {}
        self.masks: dict[str, Tensor] = {}
        self.whole: Streamed | None = None
        """What this was cut from, which its blocks are taken from until they are stored."""
        self.experts: dict[str, Tensor] = {}
        """Block -> the experts that stay of those in `whole`."""
        self._mapping = get_model_conversion_mapping(self.model)

    # ------------------------------------------------------------------------------------------------- weights

    def layers(self) -> list[str]:
        """Paths of the blocks."""
        prefix = self.model.base_model_prefix
        base = f"{prefix}." if prefix and self.model.base_model is not self.model else ""
        count = len(self.model.base_model.get_submodule(self.family.layers))
        return [f"{base}{self.family.layers}.{index}" for index in range(count)]

    def copy(self) -> Streamed:
        """Another view of the same files, with changes of its own."""
        result = copy.copy(self)
        result.changed, result.masks = dict(self.changed), dict(self.masks)
        result._ahead = _Ahead()
        result._set_skeleton(type(self.model), self.model.config)
        return result

    def put_on(self, device: torch.device | str) -> Streamed:
        """Another view of the same files whose blocks are on `device` while they are resident."""
        result = copy.copy(self)
        result.device = torch.device(device)
        return result.copy()

    def _set_skeleton(self, model: type[PreTrainedModel], config: PretrainedConfig) -> None:
        """Take modules without weights; their buffers, which no file holds, are where the blocks will be."""
        self.model = _skeleton(model, config, self.dtype)
        for module in self.model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and not buffer.is_meta:
                    module._buffers[name] = buffer.to(self.device)

    @property
    def layout(self) -> Layout:
        """Where everything stands, by names and shapes alone."""
        return Layout(self.model, self.family)

    def mixtures(self) -> dict[int, Mixture]:
        """Layer -> its experts, which have weights while their block is resident."""
        return self._outline().mixtures()

    def _outline(self) -> Moe:
        """The mixture of experts without weights: what could go, and what it costs."""
        outline = Moe(self.model, self.family, tokenizer=self.tokenizer, folder=self.folder)
        outline.origin = self.origin
        return outline

    def units(self, *axes: str, batch: int = 1, length: int = 128) -> Units:
        """Single weights: one site for each parameter with matrices, such as "layers.0.self_attn_q_proj".

        Measure: weights, those that are not zero (of a model without zeros). With the axis "experts" those of a
        mixture, and the measures of `Transformer.units`. Raises `UnsupportedError` for any other axis.
        """
        if axes == ("experts",) and self.family.experts:
            return self._outline().units(*axes, batch=batch, length=length)
        if axes:
            raise UnsupportedError(
                f"axis {axes[0]!r}: only single weights, and experts, can go in a model that is streamed"
            )
        sites = {name: Site(name, parameter.numel()) for name, (_, parameter) in self._sites().items()}
        return Units(sites, tuple(Term("weights", 1.0, (name,)) for name in sites))

    def cut(self, selection: Selection) -> tuple[Streamed, Cut]:
        """A copy in which weights that go are zero, and experts that go left out, whenever their block is read.

        And the receipt. Raises `InputError` for a site that is not there or a mask of another size, and for experts and
        single weights at once.
        """
        named = {name for name in selection.keep if name.endswith(".experts")}
        if named and len(named) < len(selection.keep):
            raise InputError("selection names experts and single weights: cut the experts first, then the weights")
        if named:
            return self._without(selection)
        sites, result = self._sites(), self.copy()
        for name, keep in selection.keep.items():
            if name not in sites or len(keep) != sites[name][1].numel():
                raise InputError(f"selection names {name!r} with {len(keep)} units: use the sites of units()")
            leaf, parameter = sites[name]
            result.masks[leaf] = torch.as_tensor(keep, dtype=torch.bool).view(parameter.shape)
        return result, blocks.receipt(self, result)

    def _without(self, selection: Selection) -> tuple[Streamed, Cut]:
        """A copy without the experts that go, whose blocks are sliced as they are read, and the receipt."""
        with init_empty_weights():
            small, cut = self._outline().cut(selection)
        result, paths = self.copy(), self.layers()
        if cut.is_noop:
            return result, cut
        result._set_skeleton(type(small.model), small.model.config)
        result.origin = small.origin
        result.whole, result.changed, result.masks = self, {}, {}
        result.experts = {
            paths[int(name.split(".")[1])]: torch.from_numpy(np.flatnonzero(keep))
            for name, keep in selection.keep.items()
        }
        return result, cut

    def _sites(self) -> dict[str, tuple[str, nn.Parameter]]:
        found = matrices.matrices(self.model, self.layers()).values()
        return {matrices.site(matrix): (matrix.leaf, matrix.parameter) for matrix in found}

    @contextmanager
    def resident(self, *paths: str) -> Iterator[None]:
        """Within the block, the modules at `paths` have their weights; without a path, all outside the blocks.

        Raises `ModelError` for weights that are not there, not finite or not floating point.
        """
        names, found = self._names(*paths), dict(self.model.named_parameters())
        if names and not any(found[name].is_meta for name in names):
            yield  # whoever asked first lets them go
            return
        if self.whole is not None and paths and not set(paths) <= self.changed.keys():
            self._take(names, paths)
        else:
            self._load(names, paths)
        try:
            yield
        finally:
            for name in names:
                set_module_tensor_to_device(self.model, name, "meta")
            self.model.tie_weights()

    def _names(self, *paths: str) -> list[str]:
        """The parameters of some modules; without a path, of all outside the blocks. Tied ones stand once."""
        inside = tuple(f"{path}." for path in self.layers())
        wanted = tuple(f"{path}." for path in paths)
        return [
            name for name, _ in self.model.named_parameters()
            if (name.startswith(wanted) if wanted else not name.startswith(inside))
        ]  # fmt: skip

    def _load(self, names: Sequence[str], paths: Sequence[str]) -> None:
        state = self._ahead.take(self._find(paths))
        if self.device.type != "cpu":
            self._read_next(paths)
        # Older checkpoints of GPT-2 hold its causal masks as booleans, which the model itself makes anew.
        ignored = list(self.model._keys_to_ignore_on_load_unexpected or ())
        for key in [key for key, tensor in state.items() if tensor.dtype not in _FLOATS]:
            if any(re.search(pattern, key) for pattern in ignored):
                del state[key]
        packed = next((key for key, tensor in state.items() if tensor.dtype not in _FLOATS), None)
        if packed is not None:
            kind = str(state[packed].dtype).removeprefix("torch.")
            raise ModelError(
                f"{packed} is stored as {kind}: weights that are packed or quantised already can't be pruned"
            )
        if self.device.type != "cpu":
            state = {key: tensor.to(self.device) for key, tensor in state.items()}
        with saving.quiet_progress(0):
            convert_and_load_state_dict_in_model(
                self.model,
                state,
                LoadStateDictConfig(weight_mapping=list(self._mapping), dtype=self.dtype, device_map={"": self.device}),
            )
        self.model.tie_weights()
        found = dict(self.model.named_parameters())
        for name in names:
            if found[name].device.type == "meta":
                raise ModelError(f"{self.folder} lacks {name}: fetch the model again")
            if not all_finite(found[name]):
                raise ModelError(f"{name} holds NaN or infinity: this checkpoint is broken, use an intact one")
        self._mask(names)

    def _find(self, paths: Sequence[str]) -> dict[str, Path]:
        """Name of each tensor of the blocks at `paths`, or of what is outside of blocks -> the file that holds it."""
        if len(paths) == 1 and paths[0] in self.changed:
            return files.list_tensors(self.changed[paths[0]])
        return {key: file for key, file in self._places.items() if self._belongs(key, paths)}

    def _read_next(self, paths: Sequence[str]) -> None:
        """Begin to read the block behind that at `paths`, which is worked on next as a rule."""
        layers = self.layers()
        behind = layers.index(paths[0]) + 1 if len(paths) == 1 and paths[0] in layers else len(layers)
        if behind < len(layers):
            self._ahead.begin(self._find([layers[behind]]))

    def _take(self, names: Sequence[str], paths: Sequence[str]) -> None:
        """Take blocks from what this was cut from, without the experts that went."""
        assert self.whole is not None
        layout = self.whole.layout
        with self.whole.resident(*paths):
            for path in paths:
                for leaf, tensor in self.whole.model.get_submodule(path).state_dict().items():
                    name, stay = f"{path}.{leaf}", self.experts.get(path)
                    value = tensor.clone()
                    if stay is not None and (layout.place(name).axes or ("",))[0] == "experts":
                        value = tensor.index_select(0, stay.to(tensor.device))
                    set_module_tensor_to_device(self.model, name, self.device, value=value)
        self._mask(names)

    def _mask(self, names: Sequence[str]) -> None:
        """Zero what the masks of a cut close in parameters that have just been read."""
        found = dict(self.model.named_parameters())
        for name in names:
            if name in self.masks:
                found[name].data.mul_(self.masks[name].to(found[name].device))

    def _belongs(self, key: str, paths: Sequence[str]) -> bool:
        """Whether a tensor of the files belongs to one of the blocks at `paths`, or to none where there is no path."""
        number = self._number(key)
        return number is None if not paths else number in {int(path.rpartition(".")[2]) for path in paths}

    def _number(self, key: str) -> int | None:
        match = re.search(rf"(?:^|\.){re.escape(self.family.layers)}\.(\d+)\.", key)
        return int(match[1]) if match else None

    def store(self, path: str, file: Path) -> None:
        """Write the resident block at `path`, named as in a checkpoint, to `file`; from then on it is read there."""
        state = {f"{path}.{name}": tensor for name, tensor in self.model.get_submodule(path).state_dict().items()}
        written = revert_weight_conversion(self.model, state)
        files.replace_file(file, {name: tensor.cpu().contiguous().clone() for name, tensor in written.items()})
        self._ahead.drop(file)
        self.recall(path, file)

    def recall(self, path: str, file: Path) -> None:
        """Read the block at `path` from a `file` that `store` wrote."""
        self.changed[path] = file

    def files(self) -> dict[str, Path]:
        """Name of each tensor of the checkpoint, with all changes -> the file that holds it."""
        numbers = {int(path.rpartition(".")[2]) for path in self.changed}
        kept = {key: file for key, file in self._places.items() if self._number(key) not in numbers}
        for file in self.changed.values():
            kept |= files.list_tensors(file)
        return kept

    def _kind(self) -> torch.dtype:
        """The number type of the first floating tensor of the files; masks that are stored as such say nothing."""
        for name, file in self._places.items():
            with safe_open(file, "pt") as opened:
                kind: torch.dtype = opened.get_tensor(name).dtype
            if kind in _FLOATS:
                return kind
        return torch.float32

    def ends(self) -> dict[str, Path]:
        """Name of each tensor outside the blocks, such as embeddings and head -> the file that holds it."""
        return {key: file for key, file in self.files().items() if self._number(key) is None}

    # --------------------------------------------------------------------------------------------------- running

    def example(self, batch: int, length: int) -> dict[str, Tensor]:
        """A valid random input of `batch` sequences of `length` tokens, without padding."""
        tokens = torch.randint(0, self.model.config.vocab_size, (batch, length))
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}

    def save(self, folder: str | Path) -> None:
        """Write the checkpoint with all changes to `folder`: a file for each block, one for the rest, and an index."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        sliced = self.whole is not None and any(path not in self.changed for path in self.layers())
        if self.masks or sliced:
            with tempfile.TemporaryDirectory(dir=folder) as place:
                whole = self.copy()
                for number, block in enumerate(self.layers()):
                    with whole.resident(block):
                        whole.store(block, Path(place) / f"{number}.safetensors")
                whole.masks = {}
                whole.save(folder)
            return
        for path in self.folder.iterdir():
            if path.is_file() and not any(path.match(pattern) for pattern in _LEFT):
                shutil.copyfile(path, folder / path.name)
        if self.whole is not None:
            config = self.model.config
            config.architectures, config.dtype = [type(self.model).__name__], self.dtype
            config.save_pretrained(folder)
            saving.write_module(config, self.family, folder)
        (folder / saving.MAP).write_text(self.origin.describe(self.layout), encoding="utf-8")
        groups: dict[int, dict[str, Path]] = {}
        for key, file in self.files().items():
            place_of = self._number(key)
            groups.setdefault(-1 if place_of is None else place_of, {})[key] = file
        index: dict[str, str] = {}
        total = 0
        for shard, (_, keys) in enumerate(sorted(groups.items()), start=1):
            name = f"model-{shard:05}-of-{len(groups):05}.safetensors"
            state = dict(files.read_tensors(keys))
            total += sum(tensor.numel() * tensor.element_size() for tensor in state.values())
            save_file(state, folder / name, {"format": "pt"})
            index |= dict.fromkeys(keys, name)
        files.write_index(folder, index, total)


class _Ahead:
    """Tensors of files, read in another thread before they are asked for."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._begun: tuple[Mapping[str, Path], Future[dict[str, Tensor]]] | None = None

    def begin(self, places: Mapping[str, Path]) -> None:
        """Read these from now on."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "blocks")
        self._begun = places, self._thread.submit(_read, places)

    def take(self, places: Mapping[str, Path]) -> dict[str, Tensor]:
        """Name -> tensor of these, which may have been read by now."""
        begun, self._begun = self._begun, None
        return begun[1].result() if begun is not None and begun[0] == places else _read(places)

    def drop(self, file: Path) -> None:
        """Forget what has been read of a file that was written anew; what is of other files stays."""
        if self._begun is not None and file in self._begun[0].values():
            self._begun = None


def _read(places: Mapping[str, Path]) -> dict[str, Tensor]:
    """Read, not mapped: what is mapped stays in memory as long as any view of it does."""
    return {key: tensor.clone() for key, tensor in files.read_tensors(places)}


def _skeleton(model: type[PreTrainedModel], config: PretrainedConfig, dtype: torch.dtype) -> Any:
    """The modules without weights, with buffers such as rotary frequencies, which are in single precision."""
    with init_empty_weights(include_buffers=False):
        result = make_blank(model, config, dtype).eval()
    for tensor in result.state_dict(keep_vars=True).values():
        tensor.data = tensor.data.to(dtype if tensor.is_floating_point() else tensor.dtype)
    result.tie_weights()
    return result
