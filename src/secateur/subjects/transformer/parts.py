"""A part of a model of several, such as the language model of one that reads images: cut alone, saved in its place."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from secateur._utils import devices
from secateur._utils.modes import evaluating
from secateur.errors import UnsupportedError
from secateur.subjects.network.parts import find_path, find_shared
from secateur.subjects.network.pretrained import copy_beside
from secateur.subjects.transformer import cutting, dequantising, loading, low_rank, reshaped, saving
from secateur.subjects.transformer.blank import make_blank
from secateur.subjects.transformer.deriving import find_family
from secateur.subjects.transformer.families import Family
from secateur.subjects.transformer.layout import Layout, Widths
from secateur.subjects.transformer.making import make_subject
from secateur.subjects.transformer.origin import Origin
from secateur.subjects.transformer.small_copy import list_parts

if TYPE_CHECKING:
    from secateur.subjects.transformer.subject import Transformer

__all__ = ["Whole", "count_features", "open_part", "outline_part", "reads_tokens"]

_HEAD = "lm_head.weight"
_ADVICE = "`secateur prune MODEL --part {} --budget params=70%` cuts it as a network, without training"


@dataclass(frozen=True, eq=False)
class Whole:
    """The model that a part was taken from, which stays as it is.

    setting: the config's name for the part's; names: tensor of the part by itself -> its name in the whole.
    """

    model: PreTrainedModel
    folder: Path | None
    setting: str
    names: Mapping[str, str]
    path: str
    inner: str
    """What the names of a tensor of the part by itself begin with, where those of the whole begin with `path`."""
    name: str = ""
    """Folder or Hub id as it was given."""

    def refuse(self, *, alike: bool = False) -> NoReturn:
        """Raise `UnsupportedError` for a cut whose config is no part of the whole's.

        alike: all layers are of the same widths all the same.
        """
        name = type(self.model).__name__
        if alike:
            raise UnsupportedError(
                f"the config of a {name} can't say these widths: keep its {self.setting}'s heads whole"
            )
        raise UnsupportedError(
            f"layers of unequal widths can't be saved within a {name}: take a recipe that keeps them alike, such as "
            "minitron, shortgpt, wanda or sparsegpt"
        )

    def find_origin(self, layout: Layout) -> Origin:
        """What the part, of that layout, was cut from: by the map in the folder, else the whole as it is."""
        if self.folder is None:
            return Origin.of_model(self.model, part=self.setting)
        return Origin.find(self.model, layout, self.folder, self.name, self.setting)

    def assemble(self, part: Transformer) -> PreTrainedModel:
        """The whole with the part as it is now; tensors are shared."""
        config, small = copy.deepcopy(self.model.config), part.model.config
        if saving.needs_module(small):
            self.refuse(alike=len(set(part.widths())) == 1)
        before = getattr(config, self.setting)
        data = {name: value for name, value in small.to_dict().items() if name not in ("architectures", "auto_map")}
        data["architectures"] = before.architectures
        tied = getattr(before, "tie_word_embeddings", None)  # some classes have it in the whole's config alone
        if _HEAD in self.names and not small.tie_word_embeddings:  # it may have been untied since
            config.tie_word_embeddings, tied = False, None if tied is None else False
        data = {name: value for name, value in data.items() if name != "tie_word_embeddings"}
        data |= {} if tied is None else {"tie_word_embeddings": tied}
        setattr(config, self.setting, type(before).from_dict(data))
        for name in config.sub_configs:  # each is built in what its own config says, the type that it was stored in
            if isinstance(one := getattr(config, name, None), PretrainedConfig):
                one.dtype = self.model.dtype
        own = set(self.names.values())
        state = {name: tensor for name, tensor in self.model.state_dict().items() if name not in own}
        for name, tensor in part.model.state_dict().items():
            state[self.names.get(name) or f"{self.path}.{name.removeprefix(self.inner)}"] = tensor
        model = make_blank(type(self.model), config, self.model.dtype)
        model.tie_weights()  # a head has the shape of the table that it is tied to, whatever its class makes of it
        cutting.fill(model, state)
        if self.model.can_generate():
            model.generation_config = copy.deepcopy(self.model.generation_config)
        return model.eval()

    def save(self, part: Transformer, folder: Path) -> None:
        """Write the whole with the part as it is now; its map, and what reads its inputs, go along."""
        model = self.assemble(part)
        dequantising.refuse_unwritable(model)
        origin = part.origin.describe(part.layout)  # before the files that it speaks of are overwritten
        folder.mkdir(parents=True, exist_ok=True)
        with saving.quiet_progress(sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())):
            if saving.is_reshaped(model.config):
                reshaped.save(model, folder)
            else:
                model.save_pretrained(folder)
        (folder / saving.MAP).write_text(origin, encoding="utf-8")
        if self.folder is not None:
            copy_beside(self.folder, folder)


def open_part(source: str | Path | PreTrainedModel, name: str) -> Transformer:
    """The part `name` of the model at `source` as something to prune; a cut of it is saved within the whole.

    name: of its module, or what the config calls its configuration. A language model is opened with the head of the
    whole. Raises `InputError` for a part that is not there, and `UnsupportedError` for one that shares weights with
    another, or that fits no table, and for a whole that is offloaded.
    """
    if not isinstance(source, PreTrainedModel):
        low_rank.refuse_branches(source, loading.locate(source))
    model = source if isinstance(source, PreTrainedModel) else loading.read_any(source)
    path, setting = _find_part(model, name)
    if devices.is_offloaded(model):
        raise UnsupportedError(
            f"weights of this {type(model).__name__} are offloaded, and {name} takes its own with it: load it whole, "
            "without device_map, or with one that names devices only"
        )
    folder = None if isinstance(source, PreTrainedModel) else loading.locate(source)
    base = model.get_submodule(path)
    assert isinstance(base, PreTrainedModel)
    inside = {f"{path}.{inner}": inner for inner in base.state_dict()}
    alone, names = _add_head(model, base, path)
    for first, second in find_shared(model, set(inside) | set(names.values())):
        if second == _name_head(model):
            continue  # of embeddings, of which nothing is cut, and which the head follows
        raise UnsupportedError(
            f"{first} and {second} share their weights, so {name} can't be cut alone: save them apart"
        )
    try:
        family = find_family(saving.plain_class(type(alone)), alone.config)
    except UnsupportedError as error:
        raise UnsupportedError(f"{error}: {_ADVICE.format(name)}") from error
    width = "what other parts give it is as wide as its channels"
    family = replace(family, whole={**_find_outside(model, path, setting, family), **family.whole, "channels": width})
    features = count_features(model.config)
    if features:
        why = f"features of images are added behind the first {features}, by their numbers"
        family = replace(family, first_stays=why, first_layers=features)
    subject = make_subject(alone, family, None if folder is None else loading.read_tokenizer(folder))
    subject.family = replace(family, whole={**_find_unsaid(subject), **family.whole})
    # By itself, only a part that got a head here has names of its own: one may have come with its own head.
    prefix = "" if alone is base else f"{alone.base_model_prefix}."
    known = {f"{prefix}{inner}": full for full, inner in inside.items()} | names
    subject.whole = Whole(model, folder, setting, known, path, prefix, "" if folder is None else str(source))
    return subject


def reads_tokens(source: str | Path | PreTrainedModel, name: str) -> bool:
    """Whether the part `name` of a model is one that `open_part` opens. Raises `InputError` where it is not there."""
    model = source if isinstance(source, PreTrainedModel) else loading.outline_any(source)
    return _match_part(model, name) is not None


def _match_part(model: PreTrainedModel, name: str) -> tuple[str, str] | None:
    """(path, the config's name) of a part that reads tokens; None of another. Raises as `find_path` does."""
    parts = list_parts(model)
    setting = next((found for found in parts.values() if found[1] == name), None)
    if setting is not None or name in parts:
        return setting or parts[name]
    path = find_path(model, name)
    return next((found for found in parts.values() if found[0] == path), None)


def _find_part(model: PreTrainedModel, name: str) -> tuple[str, str]:
    """(path, the config's name) of a part. Raises `InputError` where it is not there, and where it reads no tokens."""
    found = _match_part(model, name)
    if found is None:
        raise UnsupportedError(
            f"{name} of {type(model).__name__} reads no tokens by itself, as recipes on language models need: "
            f"{_ADVICE.format(name)}"
        )
    return found


def outline_part(source: str | Path, name: str) -> tuple[Callable[[], Transformer], float]:
    """(what makes the part `name` with weights that were never filled, bytes of the model's other weights).

    By the configuration alone, see `loading.open_outline`; what is made is as `open_part` opens it. Raises as both do.
    """
    model = loading.outline_any(source)
    path, _ = _find_part(model, name)
    base = model.get_submodule(path)
    assert isinstance(base, PreTrainedModel)
    kind, config = _find_class(model, base, path) or type(base), copy.deepcopy(base.config)
    config.tie_word_embeddings = model.get_output_embeddings() is not None and _is_tied(model, base)
    config.dtype = config.dtype or model.config.dtype
    family = find_family(kind, config)
    with torch.device("meta"):
        alone = loading.make_empty(kind, config)
    beside = sum(sign * p.nbytes for sign, one in ((1, model), (-1, alone)) for p in one.parameters())
    return lambda: make_subject(loading.make_empty(kind, config), family), float(beside)


def _find_unsaid(subject: Transformer) -> dict[str, str]:
    """Axis -> why it stays whole: the part's config can't say half of it, and files of code have no place there."""
    layout, found = subject.layout, dict[str, str]()
    every = [*range(len(layout.widths))]
    for axis in ("heads", "neurons", "expert_neurons", "shared_neurons"):
        widths = [_halve(width, axis) for width in layout.widths]
        try:
            config = cutting.new_config(layout, widths, layout.hidden_size, every, every)
            unsaid = saving.needs_module(config)
        except Exception:  # whatever a class has against it
            unsaid = True
        if unsaid:
            found[axis] = "its config can't say what would be left of them"
    fewer = every[:-1] or every
    shallow = cutting.new_config(layout, [layout.widths[layer] for layer in fewer], layout.hidden_size, fewer, fewer)
    if saving.needs_module(shallow):
        found["layers"] = "its config can't say what its layers are, by itself"
    return found


def _halve(width: Widths, axis: str) -> Widths:
    """A layer with half as many units; of heads in groups, with half as many groups."""
    half = {name: max(getattr(width, name) // 2, min(getattr(width, name), 1)) for name in (axis, "kv")}
    return replace(width, **half) if axis == "heads" else replace(width, **{axis: half[axis]})


def _find_outside(model: PreTrainedModel, path: str, setting: str, family: Family) -> dict[str, str]:
    """Axis -> why it stays whole: other parts take their sizes from its settings (Idefics2's connector)."""
    found = dict[str, str]()
    plain = _list_outside(model, model.config, path)
    for axis, name in (("neurons", family.neurons), ("heads", "num_attention_heads"), ("layers", "num_hidden_layers")):
        config = copy.deepcopy(model.config)
        part = getattr(config, setting)
        value = getattr(part, name, None)
        if isinstance(value, int):
            setattr(part, name, value // 2)
            changed = _list_outside(model, config, path)
            if changed and changed != plain:
                found[axis] = "other parts take their sizes from it"
    return found


def _list_outside(model: PreTrainedModel, config: PretrainedConfig, path: str) -> dict[str, torch.Size]:
    """Name -> shape of what stands outside the part at `path` under another config; none where the class refuses it."""
    try:
        with torch.device("meta"):
            state = type(model)(config).state_dict()
    except Exception:
        return {}
    return {name: tensor.shape for name, tensor in state.items() if not name.startswith(f"{path}.")}


def count_features(config: PretrainedConfig) -> int:
    """How many of the first layers of text have features of images added behind them or later, by their numbers."""
    every = [config, *(value for value in vars(config).values() if isinstance(value, PretrainedConfig))]
    found = [0]
    for one in every:
        found.append(len(getattr(one, "deepstack_visual_indexes", None) or ()))
        found += [layer for _, layer in getattr(one, "deepstack_layer_map", None) or ()]  # before which they are added
        found += getattr(one, "spatial_target_layers", None) or ()
    return max(found)


def _add_head(model: PreTrainedModel, base: PreTrainedModel, path: str) -> tuple[PreTrainedModel, dict[str, str]]:
    """The part with the whole's language-model head, and where that stands there; itself where it can't have one."""
    kind = _find_class(model, base, path)
    if kind is None:
        return base, {}
    weight = model.get_output_embeddings().get_parameter("weight")
    config = copy.deepcopy(base.config)
    config.tie_word_embeddings = _is_tied(model, base)
    alone = make_blank(kind, config, model.dtype)
    state = {f"{alone.base_model_prefix}.{name}": tensor for name, tensor in base.state_dict().items()}
    state[_HEAD] = weight
    if type(alone.base_model) is not type(base) or alone.state_dict().keys() != state.keys():  # GPT-J's has a bias
        return base, {}
    cutting.fill(alone, state)
    alone.to(model.device).eval()
    return (alone, {_HEAD: _name_head(model)}) if _gives_same(model, alone) else (base, {})


def _find_class(model: PreTrainedModel, base: PreTrainedModel, path: str) -> type[PreTrainedModel] | None:
    """The class of the part with the whole's head, one of ours where transformers has none; None for other parts."""
    head, table = model.get_output_embeddings(), base.get_input_embeddings()
    kind: type[PreTrainedModel] | None = AutoModelForCausalLM._model_mapping.get(type(base.config), None)
    if head is None or _name_head(model).startswith(f"{path}.") or getattr(head, "bias", None) is not None:
        return None
    if any(type(one).__module__.startswith("peft.") for one in base.modules()):
        return None  # an adapter, which is refused by name
    reads = isinstance(table, nn.Embedding) and head.weight.shape == table.weight.shape
    return kind or (_with_head(type(base)) if reads else None)  # type: ignore[arg-type]


@cache
def _with_head(kind: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """A decoder with a head of tokens, for which transformers has a class in a larger model only (Qwen-VL's)."""

    parent: Any = next(one for one in kind.__mro__[1:] if issubclass(one, PreTrainedModel))

    class Headed(parent, GenerationMixin):
        config_class = kind.config_class
        base_model_prefix = "model"

        def __init__(self, config: PretrainedConfig) -> None:
            super().__init__(config)
            self.model = kind(config)
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
            self.post_init()

        def forward(
            self, *args: object, return_dict: bool | None = None, **given: object
        ) -> CausalLMOutputWithPast | tuple[object, ...]:
            out = self.model(*args, return_dict=True, **given)
            made = CausalLMOutputWithPast(logits=self.lm_head(out.last_hidden_state), **dict(list(out.items())[1:]))
            named = self.config.return_dict if return_dict is None else return_dict
            return made if named else made.to_tuple()

        def __reduce__(self) -> tuple[object, ...]:
            return _make_blank, (kind,), self.__dict__  # a process that reads it has not made this class yet

        forward.__signature__ = inspect.signature(kind.forward)  # type: ignore[attr-defined]  # it tells what is taken

    Headed._tied_weights_keys = {_HEAD: "model.embed_tokens.weight"}
    Headed.__module__ = kind.__module__  # whose forward pass it has
    Headed.__name__ = Headed.__qualname__ = f"{kind.__name__}ForCausalLM"
    setattr(sys.modules[kind.__module__], Headed.__name__, Headed)  # where pickling by name looks for it
    return Headed


def _make_blank(kind: type[PreTrainedModel]) -> PreTrainedModel:
    """What a pickle of `_with_head` of this kind fills."""
    blank: PreTrainedModel = object.__new__(_with_head(kind))  # type: ignore[arg-type]  # as above
    return blank


def _is_tied(model: PreTrainedModel, base: PreTrainedModel) -> bool:
    """Whether the whole's head is the table of embeddings of its part."""
    head, table = (one.get_parameter("weight") for one in (model.get_output_embeddings(), base.get_input_embeddings()))
    return head is table or (not head.is_meta and head.data_ptr() == table.data_ptr())


def _name_head(model: PreTrainedModel) -> str:
    """The name of the weight of a model's head of tokens; "" where it has none."""
    head = model.get_output_embeddings()
    return next((f"{name}.weight" for name, module in model.named_modules() if module is head and name), "")


def _gives_same(model: PreTrainedModel, alone: PreTrainedModel) -> bool:
    """Whether a part with the head gives the logits of the whole, which may scale them otherwise, for tokens alone."""
    tokens = torch.arange(1, 5, device=model.device)[None]
    with torch.no_grad(), evaluating(model):
        try:
            theirs = model(input_ids=tokens, use_cache=False).logits
        except Exception:  # it wants an image beside them: then nothing can be told
            return True
        ours = alone(input_ids=tokens, use_cache=False).logits
    return bool((ours - theirs).abs().max() <= 0.05 * theirs.abs().max())
