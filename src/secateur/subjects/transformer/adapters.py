"""Adapters of a dense model made to fit what was cut from it: LoRA and DoRA in peft's files, sliced by its map.

A linear with weight W [out, in] and factors A [r, in], B [out, r] has the merged weight V = W + s B A. A cut keeps rows
and columns of V, and so rows of B and columns of A: nothing is lost, and nothing is approximated. DoRA's merged weight
is m V / |V| with the norms of the rows of V, which change where columns go: there m grows by |V'| / |V|, for which the
weights themselves are needed. Packed experts [E, out, in] have factors A_e, B_e each, in one tensor [E r, in] and one
[out, r E], which are taken apart, sliced expert by expert, and put together again.

Sources: LoRA (arXiv 2106.09685), DoRA (arXiv 2402.09353); the files are those of peft.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData
from pydantic import BaseModel, ConfigDict, FiniteFloat, PositiveInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from secateur._utils import checkpoints, hub
from secateur._utils.disk import writing
from secateur.errors import InputError, ModelError, SecateurError, UnsupportedError
from secateur.subjects.transformer import cutting, files, loading, low_rank, quantised, saving
from secateur.subjects.transformer.bases import check_name, outline
from secateur.subjects.transformer.cutting import Kept
from secateur.subjects.transformer.layout import Layout, Place
from secateur.subjects.transformer.origin import Origin, hash_folder
from secateur.subjects.transformer.subject import Transformer
from secateur.subjects.transformer.traced_cuts import Rest, read_rest

__all__ = ["Settings", "read_factors", "translate_adapter"]

_FACTOR = re.compile(r"(.+)\.(lora_(?:embedding_)?[AB]|lora_magnitude_vector)(?:\.(weight|bias))?")
_EXPERT = re.compile(r"\.experts\.\d+\.")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INITIAL = (True, False, None, "gaussian", "eva", "orthogonal")
"""Ways to begin with an adapter that leave the base's weights as they are."""
_HARMLESS = {
    "alora_invocation_tokens",
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_bias",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "target_parameters",
    "task_type",
    "use_dora",
    "use_rslora",
}
"""Keys of adapter_config.json that are followed here, or change nothing of what the factors mean."""


def translate_adapter(
    adapter: str | Path, to: str | Path, out: str | Path | None = None, *, base: str | Path | None = None
) -> tuple[Path, tuple[str, ...]]:
    """Make an adapter of the dense model fit a result that was cut from it; returns its folder, and notes.

    LoRA's and DoRA's factors are sliced by the map that the result carries: the same as merging the adapter into the
    dense model and cutting that. What the adapter had on layers and sub-blocks that went goes as well. The new folder
    is loaded by peft: `PeftModel.from_pretrained(model, out)`. No adapter of another base is taken: the weights of the
    folder that it names, or else the name, must be those of the result's base, or of what `secateur export` made of it
    in integers.

    Args:
        adapter: the folder that peft saved: adapter_config.json and adapter_model.safetensors.
        to: the folder of the result.
        out: where to; the adapter's folder with the result's name behind it if None.
        base: the dense model, as a folder or a Hub id; where it still is if None. DoRA needs its weights where the
            inputs of a linear were cut; with them it is also checked whether training has changed the result.

    Raises:
        InputError: an adapter that is damaged or of another base, all whose modules were cut away, or of which the
            base's weights are lacking; no result with a map; `out` is there already.
        UnsupportedError: a kind of adapter that can't be sliced, or a result whose channels were rotated.
    """
    source, small = Path(adapter).expanduser(), loading.locate(to)
    target = Path(out) if out is not None else source.with_name(f"{source.resolve().name}-{Path(to).resolve().name}")
    if target.exists():
        raise InputError(f"{target} is there already: choose another folder, or remove it")
    translation = _Translation(source, Settings.read(source), small, str(to), base)
    tensors = read_factors(source / low_rank.WEIGHTS)
    translation.check_base()
    translated, config, notes = translation.translate(tensors)
    with writing(target) as temporary:
        temporary.mkdir()
        save_file(translated, temporary / low_rank.WEIGHTS, {"format": "pt"})
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (temporary / low_rank.CONFIG).write_text(text, encoding="utf-8")
        (temporary / "README.md").write_text(_write_card(target.name, str(to), notes), encoding="utf-8")
    return target, notes


# --------------------------------------------------------------------------------------------------- what is read


class Settings(BaseModel):
    """What adapter_config.json says of how factors are scaled; all of it stands in `data`."""

    model_config = ConfigDict(extra="ignore", strict=True)
    peft_type: str
    base_model_name_or_path: str | None = None
    r: PositiveInt = 8
    lora_alpha: FiniteFloat = 8
    rank_pattern: dict[str, PositiveInt] | None = None
    alpha_pattern: dict[str, FiniteFloat] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str | None = True
    modules_to_save: list[str] | None = None
    target_parameters: list[str] | None = None
    data: dict[str, object] = {}

    @classmethod
    def read(cls, folder: Path) -> Settings:
        """Of an adapter's folder. Raises `InputError` for what is none, `UnsupportedError` for another kind."""
        place = folder / low_rank.CONFIG
        if not place.is_file():
            inside = next((file.parent for file in sorted(folder.glob(f"*/{low_rank.CONFIG}"))), None)
            what = f"{inside}, which does" if inside else "the folder of an adapter that peft saved"
            raise ModelError(f"{folder} holds no {low_rank.CONFIG}: give {what}")
        data = checkpoints.read_json(place)
        if not isinstance(data, dict):
            raise ModelError(f"{place} is damaged: it holds no settings")
        try:
            settings = cls.model_validate({**data, "data": data})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ModelError(f"{place} is damaged: {where}: {first['msg']}") from error
        check_name(settings.base_model_name_or_path or "", place)
        if settings.peft_type != "LORA":
            raise UnsupportedError(f"{folder} is an adapter of type {settings.peft_type}: LORA, with DoRA, is sliced")
        if settings.init_lora_weights not in _INITIAL:
            raise UnsupportedError(
                f"{folder} was begun by {settings.init_lora_weights}, which changed the base's weights: save it as a "
                "plain LoRA first (save_pretrained of peft, path_initial_model_for_weight_conversion)"
            )
        other = next((key for key, value in data.items() if value and key not in _HARMLESS), None)
        if other is not None:
            raise UnsupportedError(f"{folder} sets {other}, with which factors can't be sliced: LoRA and DoRA are")
        return settings

    def pattern(self, name: str, module: str, default: float) -> float:
        """The value of a module by `rank_pattern` or `alpha_pattern`: its keys end the module's path, as peft does."""
        patterns: Mapping[str, float] = getattr(self, name) or {}
        for key, value in patterns.items():
            try:
                if re.match(rf"(.*\.)?({key})$", module):
                    return value
            except re.error as error:
                raise ModelError(f"{name} of the adapter has {key!r}, which is no pattern ({error})") from error
        return default


def read_factors(file: Path) -> dict[str, Tensor]:
    """Name -> tensor of an adapter, on the CPU. Raises `ModelError` for a file that is none, or that is not finite."""
    if not file.is_file():
        raise ModelError(f"{file.parent} has no {file.name} (pickles are never opened): save the adapter again")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is damaged or truncated ({str(error)[:120]}): save the adapter again") from error
    if not tensors:
        raise ModelError(f"{file} holds no tensors: save the adapter again")
    for name, tensor in tensors.items():
        if not name.startswith(low_rank.PREFIX):
            raise ModelError(f"{file} holds {name}, which is no name of an adapter's: save it again by peft")
        trained = tensor.is_floating_point() or _FACTOR.fullmatch(name) is not None
        if trained and tensor.dtype not in _FLOATS:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ModelError(f"{file} holds {name} as {kind}: factors are floats of 16 bits or more, save it again so")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"{file} holds NaN or infinity in {name.removeprefix(low_rank.PREFIX)}: use an intact adapter"
            )
    return {name.removeprefix(low_rank.PREFIX): tensor for name, tensor in tensors.items()}


# ------------------------------------------------------------------------------------------------------ translation

_Axis = tuple[int, str]
"""(dimension of a tensor of the base, kind of units along it)."""
_RANK = (-1, "")
"""The dimension of a factor that is none of the base's."""


@dataclass
class _Module:
    """A module that an adapter is on: its path, where it stands, its path in the result, its factors by peft's names.

    leaf: the weight's name in it. depth: how many wrappers of the same module peft puts around this one's.
    axes: of the weight [out, in]; `turned`: it is stored [in, out]. experts: of a packed weight, [E, out, in].
    target: it is named as a parameter, and not as a module.
    """

    path: str
    place: Place
    new: str
    leaf: str = "weight"
    depth: int = 0
    target: bool = False
    factors: dict[str, Tensor] = field(default_factory=dict)
    axes: tuple[str, str] = ("", "")
    turned: bool = False
    experts: int = 0
    rank: int = 0
    alpha: float = 0.0
    scale: float = 0.0

    @property
    def stored(self) -> tuple[_Axis, _Axis]:
        """Outputs and inputs of the weight as it is stored."""
        rows, columns = (1, 0) if self.turned else (0, 1)
        first = 1 if self.experts else 0
        return (first + rows, self.axes[0]), (first + columns, self.axes[1])

    @property
    def weight(self) -> str:
        """The name of its weight in the adapter's model."""
        return f"{self.path}.{self.leaf}"

    @property
    def called(self) -> str:
        """What patterns and notes call it in the adapter's model."""
        return self.weight if self.target else self.path

    @property
    def new_weight(self) -> str:
        """The name of its weight in the result."""
        return f"{self.new}.{self.leaf}"

    @property
    def name(self) -> str:
        """What patterns and settings call it in the result."""
        return self.new_weight if self.target else self.new

    @property
    def key(self) -> str:
        """What its factors are named by in the file of the translated adapter."""
        return self.new + ".base_layer" * self.depth


@dataclass
class _Translation:
    """One adapter, the result that it is to fit, and the base of both."""

    folder: Path
    settings: Settings
    small: Path
    name: str
    base: str | Path | None

    @cached_property
    def origin(self) -> Origin:
        found = Origin.read(self.small)
        if found is None:
            raise InputError(
                f"{self.name} carries no {saving.MAP}, so nothing tells what was cut: cut the base by a recipe of the "
                "family language (secateur list), whose results have one, or adapt the result itself"
            )
        if found.part:
            raise UnsupportedError(
                f"of {self.name} a part was cut ({found.part}), and adapters are translated for whole models: adapt "
                "the result itself"
            )
        if saving.is_sliced(checkpoints.read_json(self.small / "config.json")):
            raise UnsupportedError(
                f"the channels of {self.name} were rotated, so none of the base's is one of them: adapt the result "
                "itself, or cut by another recipe"
            )
        return found

    @cached_property
    def kept(self) -> Kept:
        assert self.origin.kept is not None
        return self.origin.kept

    @cached_property
    def layout(self) -> Layout:
        return outline(self.origin, self.small)

    @cached_property
    def rest(self) -> Rest:
        return read_rest(self.small) or {}

    @cached_property
    def weights(self) -> Path | None:
        """The folder of the base, if its weights are at hand: those that were cut, or integers that stand for them."""
        return next(iter(self._bases.values()), None)

    @cached_property
    def _bases(self) -> dict[str, Path]:
        """The folders with the base's weights, by what named them; that which the adapter names comes first.

        Raises `InputError` where the folder that the user names holds others, or that which the adapter names.
        """
        said, found = self.settings.base_model_name_or_path, dict[str, Path]()
        for source in (said, self.base, self.origin.name):
            if not source or (source is not self.base and not (Path(source) / "config.json").is_file()):
                continue
            try:
                folder = loading.locate(source)
            except SecateurError:  # a config alone, or a pickle: weights that can't be looked at are not at hand
                if source is self.base:
                    raise
                continue
            wanted = self.origin.sha256
            if wanted is None or wanted in (quantised.read_source(folder), hash_folder(folder)):
                found[str(source)] = folder
            elif source is self.base:
                raise InputError(
                    f"the weights of {source} are not those that {self.name} was cut from ({self._cut_from}): give "
                    f"--base that model{self._tell_type(folder)}"
                )
            elif source == said:
                raise InputError(
                    f"{self.folder} is an adapter of {said}, whose weights are not those that {self.name} was cut from "
                    f"({self._cut_from}): translate an adapter of that model{self._tell_type(folder)}"
                )
        return found

    def _tell_type(self, folder: Path) -> str:
        """In which number type the base was cut, where the weights in `folder` have another; else empty."""
        configs = (self.origin.config, checkpoints.read_json(folder / "config.json"))
        cut, own = (str(one.get("dtype") or one.get("torch_dtype") or "float32") for one in configs)
        return "" if cut == own else f" in {cut}, for weights are told apart by number type too, and these are {own}"

    @property
    def _cut_from(self) -> str:
        return self.origin.name or f"a {self.origin.architecture} in memory"

    def check_base(self) -> None:
        """Refuse an adapter of another base: by the weights of the folder it names, else by its name."""
        said = self.settings.base_model_name_or_path
        if not said or said in self._bases:
            return
        names = [self.origin.name, *([] if self.base is None else [str(self.base)])]
        of_hub = all(map(hub.is_id, (said, self.origin.name)))
        renamed = self.base is not None and not of_hub
        if not renamed and not any(_are_alike(said, name) for name in names):
            same = "give --base its folder if it was renamed"
            if of_hub:
                same = f"if that is the same under another name, let {low_rank.CONFIG} name {self.origin.name}"
            raise InputError(
                f"{self.folder} is an adapter of {said}, and {self.name} was cut from {self._cut_from}: translate an "
                f"adapter of that model, or {same}"
            )

    def translate(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, object], tuple[str, ...]]:
        """(tensors under their new names, settings, notes)."""
        modules, whole = self._sort(tensors)
        stays = {path: module for path, module in modules.items() if module.new}
        names = {name: new for name in whole if (new := self._rename(name))}
        count = len(modules) + len(whole)
        if not stays and not names:
            raise InputError(
                f"all {count} modules that {self.folder} is on were cut away from {self.name}: nothing is left to "
                "translate"
            )
        values, gains = self._correct_whole({name: whole[name] for name in names}), self._correct_factors(stays)
        found = dict[str, Tensor]()
        for path, module in stays.items():
            factors = self._slice(module, gains[path])
            self._check_fit(module, factors)
            for name, tensor in factors.items():
                found[f"{low_rank.PREFIX}{module.key}.{name}"] = tensor.to(module.factors[name].dtype).contiguous()
        inside = {module.new for module in stays.values()}
        for name, new in names.items():
            path, _, leaf = new.rpartition(".")
            key = f"{path}.base_layer.{leaf}" if path in inside else new
            found[f"{low_rank.PREFIX}{key}"] = values[name].to(whole[name].dtype).contiguous()
        gone = sorted({*(one.called for one in modules.values() if not one.new), *(whole.keys() - names.keys())})
        return found, self._describe(list(stays.values()), names), self._notes(count, gone, {*modules, *whole})

    # ------------------------------------------------------------------------------------------------ names and shapes

    def _inner(self, path: str) -> str:
        """A path in the adapter's model as the base's layout has it: one may have a head, and the other not."""
        own, layers = f"{self.layout.model.base_model_prefix}.", f"{self.layout.family.layers}."
        if path.startswith((own, layers)):
            return f"{self.layout.prefix}{path.removeprefix(own)}"
        other = self._find_prefix(path)
        return f"{self.layout.prefix}{path.removeprefix(f'{other}.')}" if other else path

    def _find_prefix(self, path: str) -> str:
        """What a class beside the base's calls the model, where a path begins so and goes on inside; else empty."""
        first, _, bare = path.partition(".")
        known = first in self._prefixes and first != self.layout.model.base_model_prefix
        inside = bare.startswith(f"{self.layout.family.layers}.") or f"{self.layout.prefix}{bare}" in self._names
        return first if known and inside else ""

    @cached_property
    def _prefixes(self) -> set[str]:
        """What the classes beside the base's call the model below their heads: Llama's for answers `transformer`."""
        module = sys.modules[saving.plain_class(type(self.layout.model)).__module__]
        return {getattr(kind, "base_model_prefix", "") for kind in vars(module).values()}

    def _rename(self, name: str) -> str | None:
        """What a tensor of the adapter's model is called in the result's; None where it was cut away."""
        inner, prefix = self._inner(name), self.layout.prefix
        place = self.layout.place(inner)
        new = cutting.new_name(self.layout, inner, place, self.kept)
        if new is None or place.layer is None:
            return None if new is None else name
        return name.removesuffix(inner.removeprefix(prefix)) + new.removeprefix(prefix)

    def _sort(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, _Module], dict[str, Tensor]]:
        """(path -> module with its factors, name -> tensor that was saved whole); refuses what fits no base."""
        modules, whole = dict[str, _Module](), dict[str, Tensor]()
        for name, tensor in tensors.items():
            match = _FACTOR.fullmatch(name)
            if match is None:
                path = name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
                self._check_whole(path, tensor)
                whole[path] = tensor
                continue
            path = match[1]
            if path not in modules:
                modules[path] = self._open_module(path)
            modules[path].factors[name.removeprefix(f"{path}.")] = tensor
        for module in modules.values():
            self._check_factors(module)
        return modules, whole

    def _open_module(self, key: str) -> _Module:
        """The module whose factors stand at `key`.

        Factors of parameters, such as packed experts, stand where peft wraps the module that holds them: once for each
        of its parameters that is named, the first of them innermost.
        """
        path, depth = key, 0
        while path.endswith(".base_layer"):
            path, depth = path.removesuffix(".base_layer"), depth + 1
        leaf, named = "weight", self._list_parameters(path)
        if named:
            if depth >= len(named):
                raise self._refuse_base(f"it has {key}, and of its target_parameters the base's {path} has {named}")
            leaf = named[-1 - depth]
        elif depth:
            raise self._refuse_base(f"it has {key}, and none of its target_parameters is in the base's {path}")
        place = self._place(f"{path}.{leaf}", factors=True, packed=bool(named))
        new = (self._rename(f"{path}.{leaf}") or "").removesuffix(f".{leaf}")
        return _Module(path, place, new, leaf, depth, bool(named))

    def _list_parameters(self, path: str) -> list[str]:
        """The parameters of a module that the settings name, in the order in which peft wraps them."""
        wanted, own = self.settings.target_parameters or (), self._modules.get(self._inner(path))
        names = [] if own is None else [name for name, _ in own.named_parameters(recurse=False)]
        return [name for name in names if any(f".{path}.{name}".endswith(f".{target}") for target in wanted)]

    @cached_property
    def _modules(self) -> dict[str, nn.Module]:
        return dict(self.layout.model.named_modules())

    def _place(self, name: str, *, factors: bool, packed: bool = False) -> Place:
        """Where a tensor stands in the base; refuses layers and modules that it has not.

        factors: it has some; packed: of experts in one tensor, perhaps.
        """
        place, depth = self.layout.place(self._inner(name)), len(self.layout.widths)
        if place.layer is not None and place.layer not in range(depth):
            raise self._refuse_base(f"it has {name}, and the base has {depth} layers")
        if place.axes is None and (factors or place.layer is not None):
            single = ": load it by peft on the base, which packs experts, and save it" if _EXPERT.search(name) else ""
            raise self._refuse_base(f"it has {name}, which is none of the base's weights that can be cut{single}")
        axes = place.axes or ()
        biases = len(axes) == 2 and axes[1].startswith("expert_neurons")
        if factors and (len(axes) not in ((2, 3) if packed else (2,)) or biases):
            raise UnsupportedError(f"{self.folder} has factors of {name}, which is no matrix: they can't be sliced")
        return place

    def _sizes(self, name: str, axes: Sequence[str]) -> list[int | None]:
        """The base's length of each axis of a tensor; None where only the adapter's model has it, such as a head."""
        shape = self._shapes.get(self._inner(name))
        if shape is not None and len(shape) == len(axes):
            return list(shape)
        return [self.layout.hidden_size if axis == "channels" else None for axis in axes]

    @cached_property
    def _names(self) -> set[str]:
        return set(self.layout.model.state_dict())

    @cached_property
    def _shapes(self) -> dict[str, torch.Size]:
        return {name: parameter.shape for name, parameter in self.layout.model.named_parameters(remove_duplicate=False)}

    def _check_whole(self, name: str, tensor: Tensor) -> None:
        """Refuse a tensor that was saved whole where an axis that can be cut is not as long as the base's."""
        place = self._place(name, factors=False)
        axes, parts = place.axes or (), name.split(".")[:-1]
        own = any(f".{saved}." in f".{'.'.join(parts)}." for saved in self.settings.modules_to_save or () if saved)
        if place.axes is None and self._inner(name) not in self._names and not own:
            raise self._refuse_base(f"it has {name!r}, which is none of the base's weights, nor in modules_to_save")
        wanted = self._sizes(name, axes)
        if axes and (
            len(axes) != tensor.dim()
            or any(axis and size not in (None, n) for axis, size, n in zip(axes, wanted, tensor.shape, strict=True))
        ):
            raise self._refuse_base(f"its {name} is {list(tensor.shape)}, and the base's {wanted}")

    def _check_factors(self, module: _Module) -> None:
        """Find axes and scale of a module; refuse factors that are not all there, or whose shapes or rank don't fit."""
        path, factors = module.path, module.factors
        A, B = (_pick_factors(factors).get(kind) for kind in "AB")
        dora = any(name.startswith("lora_magnitude_vector") for name in factors)
        if not module.new and "lora_B.bias" in factors and self._rename(f"{path}.bias"):
            raise UnsupportedError(
                f"{self.folder} adds a bias by lora_bias to {path}, which went but for its own bias: merge the adapter "
                "into the dense model and cut that"
            )
        if A is None or B is None or dora != self.settings.use_dora:
            held = ", ".join(sorted(factors))
            raise ModelError(f"{self.folder} is damaged: it has {held} of {path}, and its settings say otherwise")
        axes, sizes = module.place.axes or ("", ""), self._sizes(module.weight, module.place.axes or ())
        if len(axes) == 3 and module.target:
            module.experts, axes, sizes = sizes[0] or 0, axes[1:], sizes[1:]
        if self._is_stored_by_input(module, "lora_embedding_A" in factors):
            module.turned, axes, sizes = True, axes[::-1], sizes[::-1]
        module.axes = (axes[0], axes[1])
        rank = self.settings.pattern("rank_pattern", module.called, self.settings.r)
        width = rank * (module.experts or 1)
        wanted = [sizes[0], width, width, sizes[1]]
        shape = [*B.shape, *A.shape]
        if len(shape) != 4 or any(size not in (None, n) for size, n in zip(wanted, shape, strict=True)):
            raise self._refuse_base(
                f"its factors of {path} are {list(B.shape)} x {list(A.shape)}, and the base's weight and the rank "
                f"pattern ask for {wanted[:2]} x {wanted[2:]}"
            )
        alpha = self.settings.pattern("alpha_pattern", module.called, self.settings.lora_alpha)
        module.rank, module.alpha = int(rank), alpha
        module.scale = alpha / (math.sqrt(rank) if self.settings.use_rslora else rank)

    def _is_stored_by_input(self, module: _Module, embedding: bool) -> bool:
        """Whether the weight of a module is stored [in, out]: embeddings, GPT-2's linears, experts of some classes."""
        own = self._modules.get(self._inner(module.path))
        if module.experts:
            return bool(getattr(own, "is_transposed", False))
        return embedding or type(own).__name__ == "Conv1D"

    def _refuse_base(self, why: str) -> InputError:
        return InputError(f"{self.folder} does not fit {self._cut_from}, which {self.name} was cut from: {why}")

    # ------------------------------------------------------------------------------------------------------- slicing

    def _correct_whole(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What stays of tensors that were saved whole: sliced, and changed by what the cut did beside that."""
        values = dict[str, Tensor]()
        for name, tensor in whole.items():
            place = self.layout.place(self._inner(name))
            axes = place.axes or (("", "channels") if self._is_head(name, tensor) else ("",) * tensor.dim())
            values[name] = self._cut(tensor, place, self._rename(name) or "", enumerate(axes)).float().clone()
        return self._correct({name: self._inner(name) for name in whole}, values)

    def _is_head(self, name: str, tensor: Tensor) -> bool:
        """Whether a tensor that was saved whole is a head [labels, channels] that the base has not."""
        width = self.layout.hidden_size
        return self._inner(name) not in self._names and tensor.dim() == 2 and tensor.shape[1] == width != len(tensor)

    def _correct_factors(self, modules: Mapping[str, _Module]) -> dict[str, Tensor]:
        """By what the cut multiplied each output of a module with factors, beside slicing it: [out] for each."""
        values = {
            path: torch.ones(1, len(_pick_factors(self._cut_factors(module))["B"])) for path, module in modules.items()
        }
        gains = self._correct({path: self._inner(module.weight) for path, module in modules.items()}, values)
        return {path: gain.flatten() for path, gain in gains.items()}

    def _correct(self, names: Mapping[str, str], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`values` after what a cut does to weights beside slicing them; `names`: of the same keys, in the base.

        An embedding with factors may have been saved whole beside them, as peft does: the two are corrected apart.
        """
        layout, kept = self.layout, self.kept
        new = {key: cutting.new_name(layout, name, layout.place(name), kept) or "" for key, name in names.items()}
        state = {new[key]: value for key, value in values.items()}
        cutting.correct(layout, state, kept, self.origin.norm_ratio, kept.layers)
        return {key: state[name] for key, name in new.items()}

    def _cut_factors(self, module: _Module) -> dict[str, Tensor]:
        """The factors of a module, and its magnitudes, without the rows and columns that went."""
        rows, columns = module.stored
        if module.experts:
            return self._cut_packed(module)
        kinds: dict[str, tuple[_Axis, ...]] = {"lora_A.weight": (_RANK, columns), "lora_embedding_A": (_RANK, columns)}
        kinds |= {"lora_B.weight": (rows, _RANK), "lora_embedding_B": (rows, _RANK)}
        return {
            name: self._cut(factor, module.place, module.new_weight, kinds.get(name, (rows,)))
            for name, factor in module.factors.items()
        }

    def _cut_packed(self, module: _Module) -> dict[str, Tensor]:
        """`_cut_factors` of packed experts: rows of A go by expert and rank, columns of B by rank and expert."""
        (rows, columns), experts = module.stored, (0, (module.place.axes or ("",))[0])
        A, B = _pick_factors(module.factors).values()
        A, B = A.unflatten(0, (module.experts, -1)), B.unflatten(1, (-1, module.experts)).movedim(2, 0)
        A = self._cut(A, module.place, module.new_weight, (experts, _RANK, columns))
        B = self._cut(B, module.place, module.new_weight, (experts, rows, _RANK))
        return {"lora_A.weight": A.flatten(0, 1), "lora_B.weight": B.movedim(0, 2).flatten(1)}

    def _cut(self, tensor: Tensor, place: Place, new: str, axes: Iterable[_Axis]) -> Tensor:
        """What stays of `tensor`, whose dimensions are these of the base's tensor at `place`, in the result `new`."""
        for dim, (stored, axis) in enumerate(axes):
            index = self.rest.get(new, {}).get(stored)
            if index is None:
                tensor = cutting.slice_tensor(self.layout, tensor, ("",) * dim + (axis,), place.layer, self.kept)
            elif index.numel() and int(index.max()) >= tensor.shape[dim]:
                raise ModelError(
                    f"{self.small / saving.MAP} is damaged (it names index {int(index.max())} of the "
                    f"{tensor.shape[dim]} of {new}): cut the model again"
                )
            else:
                tensor = tensor.index_select(dim, index.to(tensor.device))
        return tensor

    def _slice(self, module: _Module, gain: Tensor) -> dict[str, Tensor]:
        """The factors of a module as the result's, `gain` [out]: what its outputs were multiplied by."""
        found = self._cut_factors(module)
        for name, factor in found.items():
            if "_B" in name:
                found[name] = factor.float() * (gain[:, None] if factor.dim() == 2 else gain)
        for name in [name for name in found if name.startswith("lora_magnitude_vector")]:
            before, after = (_pick_factors(factors)["A"] for factors in (module.factors, found))
            growth = gain if before.shape == after.shape else self._growth(module, found)
            found[name] = found[name].float() * growth
        return found

    def _check_fit(self, module: _Module, factors: Mapping[str, Tensor]) -> None:
        """Refuse factors that are not as large as the result's weight, where its file has that by its name."""
        A, B = _pick_factors(factors).values()
        wanted, bare = [len(B), A.shape[1]], self._inner(module.new_weight).removeprefix(self.layout.prefix)
        stored = self._result_shapes.get(f"{self.layout.prefix}{bare}", self._result_shapes.get(bare))
        wanted = wanted[::-1] if module.turned else wanted
        wanted = [len(A) // module.rank, *wanted] if module.experts else wanted
        if stored and stored != wanted:
            raise ModelError(
                f"{self.name} has {module.name} of {stored}, and its {saving.MAP} says {wanted}: a recipe notes whole "
                "units alone, where secateur prune had cut others before; adapt the result itself"
            )

    @cached_property
    def _result_shapes(self) -> dict[str, list[int]]:
        return files.read_shapes(files.find_tensors(self.small))

    def _growth(self, module: _Module, found: Mapping[str, Tensor]) -> Tensor:
        """[out]: |V'| / |V| by rows, of the merged weights after and before columns went."""
        if self.weights is None:
            raise InputError(
                f"{self.folder} is a DoRA, whose magnitudes need the base's weights where inputs of {module.path} were "
                f"cut: give --base the folder of {self._cut_from}"
            )
        norms = list[Tensor]()
        dense = self._dense.model
        for model, name, factors in ((dense, module.weight, module.factors), (self._result, module.new_weight, found)):
            A, B = (factor.double() for factor in _pick_factors(factors).values())
            weight = self._weight(model, name).double()
            norms.append(((weight.T if module.turned else weight) + module.scale * B @ A).norm(dim=1))
        before = self._cut(norms[0], module.place, module.new_weight, module.stored[:1])
        growth: Tensor = norms[1] / before.clamp_min(torch.finfo(torch.float32).tiny)
        return growth.float()

    def _weight(self, model: PreTrainedModel, name: str) -> Tensor:
        """A weight by its name in the adapter's model."""
        state: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        bare = self._inner(name).removeprefix(self.layout.prefix)
        found = state.get(f"{model.base_model_prefix}.{bare}", state.get(bare))
        if found is None:
            raise InputError(f"{self.folder} has a DoRA on {name}, which is not in the base: translate it without")
        return found.detach()

    @cached_property
    def _dense(self) -> Transformer:
        assert self.weights is not None
        return loading.open_subject(self.weights)

    @cached_property
    def _result(self) -> PreTrainedModel:
        if saving.is_reshaped(checkpoints.read_json(self.small / "config.json")):
            return loading.read_any(self.small)
        return loading.open_subject(self.small, quantised=True).model

    # ------------------------------------------------------------------------------------------------------- telling

    def _describe(self, modules: Sequence[_Module], names: Mapping[str, str]) -> dict[str, object]:
        """adapter_config.json of what stays: modules by their full paths, which no pattern has to match."""
        data, settings = dict(self.settings.data), self.settings
        data["base_model_name_or_path"] = self.name
        data["target_modules"] = sorted(module.name for module in modules if not module.target)
        if settings.target_parameters:
            data["target_parameters"] = sorted(module.name for module in modules if module.target)
        data["rank_pattern"] = {one.name: one.rank for one in modules if one.rank != settings.r}
        data["alpha_pattern"] = {one.name: one.alpha for one in modules if one.alpha != settings.lora_alpha}
        for key in ("layers_to_transform", "layers_pattern", "exclude_modules", "revision"):
            data.pop(key, None)
        if settings.modules_to_save:
            saved = {new.rpartition(".")[0] for new in names.values()} - {module.new for module in modules}
            if any(self.layout.place(self._inner(f"{path}.weight")).layer is not None for path in saved):
                data["modules_to_save"] = sorted(saved)
        return data

    def _notes(self, count: int, gone: Sequence[str], paths: Iterable[str]) -> tuple[str, ...]:
        """What the reader has to know of the result; `paths`: all that the adapter is on."""
        notes = []
        other = max(map(self._find_prefix, paths))
        if other and self.layout.prefix:
            notes.append(
                f"the adapter's class calls the model {other}, and {self.name} calls it {self.layout.prefix[:-1]}: see "
                "that the class loads its weights, for transformers' from_pretrained draws new ones there"
            )
        if gone:
            shown = ", ".join(gone[:3]) + (", ..." if len(gone) > 3 else "")
            notes.append(f"{len(gone)} of {count} modules of the adapter went with what was cut away: {shown}")
        if not self.settings.base_model_name_or_path:
            notes.append("the adapter does not say of which base it is: its names and shapes fit")
        if self.weights is None:
            notes.append(
                "the base's weights are not at hand (--base): if the result was trained after the cut, the adapter is "
                "a start and not exact"
            )
        elif self._differs():
            notes.append(
                f"the result's own weights are others than a cut of {self.weights} has, by training, by the recipe or "
                "by rounding to integers: the adapter is a start and not exact"
            )
        return tuple(notes)

    def _differs(self) -> bool:
        """Whether the weights of the result are others than those that the cut took from the base."""
        dense, result = self._dense.layout, self._result.state_dict()
        state = cutting.slice_state(dense, self.kept)
        for name, tensor in dense.model.state_dict().items():
            if (new := cutting.new_name(dense, name, dense.place(name), self.kept)) in self.rest:
                axes = enumerate(dense.place(name).axes or ("",) * tensor.dim())
                state[new] = self._cut(tensor, dense.place(name), new, axes)
        cutting.correct(dense, state, self.kept, self.origin.norm_ratio, self.kept.layers)
        if state.keys() != result.keys():
            return True
        for name, tensor in state.items():
            bound = 4 * torch.finfo(tensor.dtype).eps * float(tensor.abs().max()) if tensor.is_floating_point() else 0
            if tensor.shape != result[name].shape or bool(((tensor - result[name]).abs() > bound).any()):
                return True
        return False


def _write_card(name: str, small: str, notes: Sequence[str]) -> str:
    """The card of an adapter that was made to fit the model `small`."""
    base: dict[str, Any] = {"base_model": small, "base_model_relation": "adapter"} if hub.is_id(small) else {}
    data = ModelCardData(library_name="peft", tags=["secateur", "lora"], **base)
    shown = Path(small).name
    lines = [f"---\n{data.to_yaml()}\n---", f"# An adapter of {shown}", "Sliced by `secateur translate-adapter`."]
    lines += [f"- {note}" for note in notes]
    load = f'from peft import PeftModel\n\nmodel = PeftModel.from_pretrained(model, "{name}")  # a model of {shown}'
    return "\n\n".join([*lines, f"```python\n{load}\n```"]) + "\n"


def _pick_factors(factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The factors "A" and "B" of a module, of a linear or of an embedding, as far as they are there."""
    names = [(kind, name) for kind in "AB" for name in (f"lora_{kind}.weight", f"lora_embedding_{kind}")]
    return {kind: factors[name] for kind, name in names if name in factors}


def _are_alike(one: str, other: str) -> bool:
    """Whether two names are of one model: the same Hub id, or folders of one name wherever they are."""
    return one == other or (
        bool(other) and Path(one).name == Path(other).name and not all(map(hub.is_id, (one, other)))
    )
