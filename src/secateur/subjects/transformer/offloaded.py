"""Transformers of which Accelerate keeps weights on the disk or in main memory: they are read a module at a time.

Such a model, loaded with `device_map`, has parameters without values (on the device meta), and hooks that bring them
while a module runs. What is cut from it is offloaded, too: its weights are read from the original's and sliced, or
taken from files of finished blocks, whenever a module runs or is saved.
"""

from __future__ import annotations

import copy
import functools
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate import dispatch_model, init_empty_weights
from accelerate.hooks import AlignDevicesHook
from accelerate.utils import set_module_tensor_to_device
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.integrations.accelerate import load_offloaded_parameter

from secateur._utils import devices
from secateur.errors import UnsupportedError
from secateur.subjects.transformer import costs, cutting, files
from secateur.subjects.transformer.blank import make_blank
from secateur.subjects.transformer.cutting import Kept
from secateur.subjects.transformer.layout import Layout
from secateur.subjects.transformer.origin import Origin, hash_tensors
from secateur.subjects.transformer.subject import Output, Transformer
from secateur.vocabulary import Cut, Selection, Units

__all__ = ["Offloaded", "Weights", "form_of"]


class Weights(Mapping[str, Tensor]):
    """Name -> tensor of a model, made whenever it is asked for and not held: whoever gets it may change it."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._makers = dict(makers)

    def replace(self, name: str, make: Callable[[], Tensor]) -> None:
        """Make the tensor `name` in another way from now on."""
        self._makers[name] = make

    def __getitem__(self, name: str) -> Tensor:
        return self._makers[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


class Offloaded(Transformer):
    """A transformer of which not all weights are in memory; `form_of` mixes it into the class of its kind."""

    backend = "secateur.runs.backends.offloaded:OffloadedLanguage"
    plain: type[Transformer]
    """The class of its kind, for what is in memory."""
    changed: Weights | None = None
    """Where the weights of what was cut come from; None of a model that was given, which stays as it is."""

    def weights(self) -> Weights:
        """All tensors of the model by name, of which none is held."""
        return Weights({name: partial(self._read, name) for name in self.model.state_dict()})

    def _read(self, name: str) -> Tensor:
        tensor = _find(self.model, name)
        return (load_offloaded_parameter(self.model, name) if tensor.is_meta else tensor.detach()).clone()

    @property
    def origin(self) -> Origin:
        """See `Transformer.origin`; of a model that was given, weights are read and hashed a block at a time."""
        if self._origin is None and self.whole is None:
            known = Origin.of_model(self.model)
            self._origin = replace(known, sha256=hash_tensors(self._list_written())) if known.sha256 is None else known
        return super().origin

    @origin.setter
    def origin(self, origin: Origin) -> None:
        """As of `Transformer`."""
        self._origin = origin

    def _list_written(self) -> Iterator[Tensor]:
        """All tensors in the form in which they would be saved, of a block at a time, then of what is outside."""
        weights, paths = self.weights(), self.layers()
        groups = [[name for name in weights if _is_within(name, path)] for path in paths]
        groups += [[name] for name in weights if not any(_is_within(name, path) for path in paths)]
        for names in groups:
            yield from revert_weight_conversion(self.model, {name: weights[name] for name in names}).values()

    def tie(self) -> None:
        """Let tied parameters without values be one again, so that they count once: each pass replaces them apart."""
        for name, other in (getattr(self.model, "all_tied_weights_keys", None) or {}).items():
            if _find(self.model, name).is_meta and _find(self.model, other).is_meta:
                owner, _, leaf = name.rpartition(".")
                setattr(self.model.get_submodule(owner), leaf, _find(self.model, other))

    def units(self, *axes: str, multiple: int = 8, batch: int = 1, length: int = 128) -> Units:
        """See `Transformer.units`."""
        self.tie()
        return super().units(*axes, multiple=multiple, batch=batch, length=length)

    def _count(self) -> dict[str, float]:
        self.tie()
        return super()._count()

    def copy(self) -> Transformer:
        """The same subject with weights of its own, which are read from this one's until their block is stored."""
        model = self._outline()
        return self._assemble(self, model, {name: name for name in model.state_dict()}, self.weights())

    def cut(
        self, selection: Selection, *, norm_correction: bool = True, centred: bool = False
    ) -> tuple[Transformer, Cut]:
        """A smaller offloaded model, whose weights are sliced as they are read, and the receipt; see `Transformer.cut`.

        Raises `UnsupportedError` for channels, and where else weights change that do not go.
        """
        outline = copy.copy(self)
        outline.origin = self.origin  # before its weights are gone
        outline.__class__ = self.plain  # type: ignore[assignment]
        outline.model = self._outline()
        layout = outline.layout
        kept = cutting.find_kept(layout, cutting.resolve(selection, costs.sites(layout)), corrected=norm_correction)
        self._check_exact(layout, kept)
        with init_empty_weights():
            small, cut = outline.cut(selection, norm_correction=norm_correction, centred=centred)
        if cut.is_noop:
            return self.copy(), cut
        small.model.tie_weights()  # Accelerate's context has parted what is tied
        cut = replace(cut, after=small._count())
        before, weights = dict[str, str](), self.weights()
        makers = dict[str, Callable[[], Tensor]]()
        for name in layout.model.state_dict():
            place = layout.place(name)
            target = cutting.new_name(layout, name, place, kept)
            if target is not None:
                before[target] = name
                makers[target] = partial(_slice, layout, weights, name, kept)
        return self._assemble(small, small.model, before, Weights(makers)), cut

    def _check_exact(self, layout: Layout, kept: Kept) -> None:
        """Refuse what changes weights that stay: there is nowhere to keep them."""
        by_number = getattr(self.model.config, "scale_attn_by_inverse_layer_idx", False)
        if kept.channels is None and not (by_number and len(kept.layers) < len(layout.widths)):
            return
        what = "layers that are scaled by their number" if kept.channels is None else "channels"
        raise UnsupportedError(
            f"{what} can't be cut in a model that is offloaded, for weights that stay would change, too: open it "
            "without device_map, or cut other units"
        )

    def _outline(self) -> PreTrainedModel:
        """The same model without values, but for buffers that no file holds."""
        old = self.model
        model = _make_empty(type(old), copy.deepcopy(old.config), old.dtype)
        if getattr(old, "pooler", model) is None:  # opened or made without one
            model.pooler = None
        cutting.fill(model, {name: torch.empty_like(one, device="meta") for name, one in old.state_dict().items()})
        if old.can_generate():
            model.generation_config = copy.deepcopy(old.generation_config)
        return model.train(old.training)

    def _assemble(
        self, like: Transformer, model: PreTrainedModel, before: Mapping[str, str], weights: Weights
    ) -> Offloaded:
        """`like` with `model`, whose tensors are those of `weights`, each where that of the name `before` lies here."""
        main, places = devices.find_device(self.model), dict[str, str]()
        for name, buffer in _make_empty(type(model), model.config, model.dtype).named_buffers():
            if name not in before:  # without values only what stands for a norm that went, of no elements
                value = torch.zeros_like(buffer, device=main) if buffer.is_meta else buffer
                set_module_tensor_to_device(model, name, main, value=value)
        for name, _ in model.named_parameters(remove_duplicate=False):
            there = _find(self.model, before[name])
            places[name] = "disk" if there.is_meta else str(there.device)
        modules = _join_places(model, places)
        for name in before:
            place = next((modules[path] for path in modules if _is_within(name, path)), str(main))
            if place != "disk" or name not in places:
                set_module_tensor_to_device(model, name, main if place == "disk" else place, value=weights[name])
        tied = getattr(model, "all_tied_weights_keys", None) or {}
        if not any(_find(model, name).is_meta for pair in tied.items() for name in pair):
            model.tie_weights()
        skip = getattr(model, "_skip_keys_device_placement", None)
        with _without_warnings():
            dispatch_model(
                model, modules, main_device=main, state_dict=weights, offload_index={}, skip_keys=skip, force_hooks=True
            )
        model.requires_grad_(True)
        result = like._copy(model, like.layer_index)
        result.__class__ = type(self)
        assert isinstance(result, Offloaded)
        result.changed = weights
        return result

    def forward(self, batch: Mapping[str, Tensor], *, hidden: bool = False, head: bool = True) -> Output:
        """See `Transformer.forward`; it runs as a whole, for a head that is called later has let its weights go."""
        return super().forward(batch, hidden=hidden, head=True)

    def __repr__(self) -> str:
        self.tie()
        return super().__repr__()

    # ------------------------------------------------------------------------------------------------- block by block

    @contextmanager
    def resident(self, *paths: str) -> Iterator[None]:
        """Within the block, the modules at `paths` have their weights; without a path, all outside the blocks."""
        with ExitStack() as stack:
            for module, hook in self._find_hooks(paths):
                hook.pre_forward(module)
                hook.offload = False  # or the first pass through the module would let them go
                stack.callback(_release, module, hook)
            yield

    def _find_hooks(self, paths: Sequence[str]) -> list[tuple[nn.Module, AlignDevicesHook]]:
        """(module, hook that brings its weights) of those that are not there."""
        found, layers = list[tuple[nn.Module, AlignDevicesHook]](), self.layers()
        for path, module in self.model.named_modules():
            inside = any(_is_within(path, one) for one in paths or layers)
            if inside == bool(paths):
                found += [(module, hook) for hook in devices.find_hooks(module) if hook.offload]
        return found

    def store(self, path: str, file: Path) -> None:
        """Write the resident block at `path` to `file`; from then on it is read there."""
        super().store(path, file)
        self.recall(path, file)

    def recall(self, path: str, file: Path) -> None:
        """Read the block at `path` from a `file` that `store` wrote."""
        assert self.changed is not None, "a model that was given stays as it is: change a copy"
        for leaf in files.list_tensors(file):
            name = f"{path}.{leaf}"
            self.changed.replace(name, partial(_read_file, file, leaf))
            owner = self.model.get_submodule(name.rpartition(".")[0])
            if not devices.find_hooks(owner):  # it lies on a device for good
                set_module_tensor_to_device(self.model, name, _find(self.model, name).device, value=self.changed[name])

    def save(self, folder: str | Path, *, card: str | None = None) -> None:
        """See `Transformer.save`; each file holds about as much as the largest block or table, all that is read."""
        sizes = [sum(p.numel() * p.element_size() for p in self.model.get_submodule(path).parameters())
                 for path in self.layers()]  # fmt: skip
        sizes += [p.numel() * p.element_size() for p in self.model.parameters()]
        self.tie()  # or what is tied would be written twice
        self.model.save_pretrained = partial(self.model.save_pretrained, max_shard_size=max(sizes))
        try:
            with _without_warnings():
                super().save(folder, card=card)
        finally:
            del self.model.save_pretrained


@functools.cache
def form_of(kind: type[Transformer]) -> type[Offloaded]:
    """The class of an offloaded model of that kind."""
    if issubclass(kind, Offloaded):
        return kind
    body = {"plain": kind, "__module__": __name__, "__doc__": f"{kind.__name__} that is offloaded."}
    return type(f"Offloaded{kind.__name__}", (Offloaded, kind), body)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Nobody is told that weights are offloaded, which is meant, and that files are large, which these are not."""
    logger = logging.getLogger("accelerate.big_modeling")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Attempting to save a model with offloaded modules")
            yield
    finally:
        logger.disabled = before


def _make_empty(kind: type[PreTrainedModel], config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    with init_empty_weights(include_buffers=False):
        return make_blank(kind, config, dtype)


def _find(model: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of that name."""
    owner, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(owner), leaf)
    return tensor


def _slice(layout: Layout, weights: Weights, name: str, kept: Kept) -> Tensor:
    """What stays of a tensor of the original."""
    place = layout.place(name)
    return cutting.slice_tensor(layout, weights[name], place.axes or (), place.layer, kept)


def _read_file(file: Path, name: str) -> Tensor:
    """A tensor of a file, read and not mapped."""
    ((_, tensor),) = files.read_tensors({name: file})
    return tensor.clone()


def _release(module: nn.Module, hook: AlignDevicesHook) -> None:
    hook.offload = True
    hook.post_forward(module, None)


def _is_within(name: str, path: str) -> bool:
    return not path or name == path or name.startswith(f"{path}.")


def _join_places(model: nn.Module, places: Mapping[str, str]) -> dict[str, str]:
    """Path of a module -> where all of its parameters are, by where each is; of the outermost modules of one place."""
    found = dict[str, str]()

    def visit(path: str, module: nn.Module) -> None:
        inside = {place for name, place in places.items() if _is_within(name, path)}
        if len(inside) == 1:
            found[path] = inside.pop()
            return
        for name, child in module.named_children():
            visit(f"{path}.{name}" if path else name, child)

    visit("", model)
    return found
