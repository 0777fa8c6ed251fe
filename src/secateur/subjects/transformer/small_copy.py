"""A small copy of a model: the same class and structure with a few thousand weights, to be analysed in its place."""

from __future__ import annotations

import contextlib
import copy
import inspect
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import ModelOutput

from secateur.errors import UnsupportedError
from secateur.subjects.network.pretrained import draw_input
from secateur.subjects.transformer.per_layer import CHOSEN, get_setting, take_layers

__all__ = [
    "DENSE",
    "EXPERTS",
    "HEADS",
    "HEAD_DIM",
    "TOKENS",
    "VOCABULARY",
    "copy_small",
    "describe_error",
    "draw_apart",
    "draw_model",
    "find_stacks",
    "has_encoder",
    "is_causal",
    "leave_numbers_open",
    "list_kinds",
    "list_parts",
    "make_source",
    "make_tokens",
    "plain_config",
    "reads_texts",
    "run_model",
    "shrink_config",
]

HEADS = 4
HEAD_DIM = 8
EXPERTS = 4
VOCABULARY = 61
TOKENS = 7
_SEEN = 4
"""Tokens of a window of attention: fewer than `TOKENS`, or it would cut nothing off."""

DENSE: tuple[Literal["mlp_only_layers", "first_k_dense_replace"], ...] = ("mlp_only_layers", "first_k_dense_replace")
"""Where a config says which layers have a plain FFN and no experts."""

_OURS = {
    "allow_global_per_layer_attribute_access",
    "architectures",
    "auto_map",
    "dtype",
    "per_layer_config",
    "quantization_config",
    "secateur",
    "torch_dtype",
}
_MOST = 12
"""Layers of a copy in which every kind of layer is looked for."""
_SIZE = re.compile(r"size|dim|width|inner|hidden|rank|embd|d_ff|ffn|d_model|state|ssm|d_head")
_WINDOW = re.compile(r"window(_size)?$|^attention_chunk_size$|^local_attention$")
_COUNT = re.compile(r"(^|_)(n|num)_(.*_)?heads$")
_PER_HEAD = re.compile(r"head_?(dim|size)$|d_head$")
_WORDS = {"n", "num", "heads", "head", "d", "dim", "size", "headdim"}
_LENGTH = re.compile(r"position|length|window|context|seq|vocab")
_LAYERS = re.compile(r"^(num_)?(hidden_|encoder_|decoder_)?layers$|^(encoder|decoder)_num_(hidden_)?layers$")
_SHARED = re.compile(r"_shared_layers$")
_SIDE = re.compile(r"^(num_)?(encoder|decoder)_(attention_)?heads$")


def plain_config(config: PretrainedConfig) -> PretrainedConfig:
    """The same configuration for layers that are all alike, of weights that are not quantised."""
    return type(config).from_dict(_list_plainly(config))


def _list_plainly(config: PretrainedConfig) -> dict[str, object]:
    data = config.to_dict()
    return {name: value for name, value in data.items() if name not in _OURS}


def find_stacks(model: PreTrainedModel) -> list[str]:
    """Paths of the lists of layers, relative to the base model: an encoder's before its decoder's, or one alone.

    Raises `UnsupportedError` where there are more or fewer.
    """
    try:
        count, base = _read_sizes(model.config)[0], model.base_model
    except UnsupportedError as error:
        parts = " or ".join(f"--part {name}" for name in list_parts(model))
        raise UnsupportedError(f"{error}: cut a part of it, {parts}" if parts else str(error)) from error
    lists = {path: len(module) for path, module in base.named_modules() if _holds_layers(module)}

    def find(sizes: Sequence[object]) -> list[str]:
        """The outermost lists of these sizes."""
        paths: list[str] = [path for path, size in lists.items() if size in sizes]
        return [path for path in paths if not any(path.startswith(f"{other}.") for other in paths)]

    wanted = 2 if has_encoder(model.config) else 1
    found = find([count])
    if wanted == 2 or not found:  # numbers of their own say how many an encoder's and a decoder's are
        found = find([value for name, value in model.config.to_dict().items() if _LAYERS.search(name)])
    if len(found) > wanted:  # other models inside, such as one that reads images, have layers of their own
        inner = [
            path
            for path, module in base.named_modules()
            if isinstance(module, PreTrainedModel) and type(module.config) is not type(model.config)
        ]
        found = [path for path in found if not any(path.startswith(f"{other}.") for other in inner)]
    if len(found) != wanted:
        there = ", ".join(found) or "none with linears of PyTorch's, as where layers share their weights"
        raise UnsupportedError(
            f"{type(model).__name__} has {len(found)} lists of {count} layers ({there}): secateur prune cuts it as any "
            "network"
        )
    return found


def list_parts(model: PreTrainedModel) -> dict[str, tuple[str, str]]:
    """Name -> (path, the config's name) of the parts that read tokens and have a config, the outermost ones.

    Without the decoder of an encoder: by itself it lacks what it attends to.
    """
    found: dict[str, tuple[str, str]] = {}
    settings = [name for name, value in vars(model.config).items() if isinstance(value, PretrainedConfig)]
    for path, module in model.named_modules():
        if (
            not path
            or not isinstance(module, PreTrainedModel)
            or any(path.startswith(f"{p}.") for p, _ in found.values())
        ):
            continue
        alike = [name for name in settings if type(getattr(model.config, name)) is type(module.config)]
        alike.sort(key=lambda name: getattr(model.config, name) is not module.config)  # two parts may share a class
        setting = next(iter(alike), "")
        if setting:
            found[path.rpartition(".")[2]] = (path, setting)
    modules = {name: model.get_submodule(path) for name, (path, _) in found.items()}
    # Not by `main_input_name`, which is "input_ids" of classes that say nothing.
    needing = {
        name for name in found if has_encoder(model.config) and getattr(modules[name].config, "is_decoder", False)
    }
    return {
        name: found[name]
        for name in found
        if name not in needing and "input_ids" in inspect.signature(modules[name].forward).parameters
    }


def _holds_layers(module: nn.Module) -> bool:
    """Whether it is a list of modules with linears: what reads a sound may be a list of as many convolutions."""
    linears = (isinstance(one, nn.Linear | Conv1D) for one in module.modules())
    return isinstance(module, nn.ModuleList) and any(linears)


def has_encoder(config: PretrainedConfig) -> bool:
    """Whether it is of an encoder and its decoder."""
    return bool(getattr(config, "is_encoder_decoder", False))


def _read_sizes(config: PretrainedConfig) -> tuple[int, int]:
    """Layers and channels; `UnsupportedError` where a config does not say them."""
    try:
        return int(config.num_hidden_layers), int(config.hidden_size)
    except (AttributeError, TypeError) as error:
        raise UnsupportedError(f"{type(config).__name__} does not say sizes and layers") from error


def list_kinds(model: PreTrainedModel) -> list[tuple[str, ...]]:
    """The kind of every layer: the names and dimensions of its tensors."""
    return [
        tuple(sorted(f"{name} {tensor.dim()}" for name, tensor in layer.named_parameters()))
        for path in find_stacks(model)
        for layer in model.base_model.get_submodule(path).children()
    ]


def shrink_config(config: PretrainedConfig, layers: Sequence[int] = (0, 1)) -> PretrainedConfig:
    """The same configuration with some of its layers, and small sizes: what it says of structure stays.

    Sizes that were equal stay equal, as far as their names say that they are sizes, and so do products of heads and
    their sizes. Raises `UnsupportedError` where the class refuses them.
    """
    data = _list_plainly(config)
    native = type(config).attribute_map
    names = {
        common: native.get(common, common) for common in ("hidden_size", "num_attention_heads", "num_hidden_layers")
    }
    count, hidden = _read_sizes(config)
    heads = get_setting(config, "num_attention_heads")
    kv = data.get(native.get("num_key_value_heads", "num_key_value_heads"))
    small_kv = HEADS if kv in (None, heads) else 2
    small = HEADS * HEAD_DIM
    head_dim = native.get("head_dim", "head_dim")
    stated = data.get(head_dim)
    sizes = {hidden // heads: HEAD_DIM} if heads else {}
    sizes |= {stated if isinstance(stated, int) else 0: HEAD_DIM, hidden: small}
    fresh = iter(range(40, 10**6, 16))
    inner = _shrink_heads(
        data, hidden, set(names.values()) | {native.get("num_key_value_heads", "num_key_value_heads")}
    )
    data |= take_layers(data, [min(layer, count - 1) for layer in layers], count)
    derived = _list_derived(config) - set(names.values())
    vocabulary = data.get("vocab_size")
    groups = data.get("n_group")
    several = 2 * EXPERTS if isinstance(groups, int) and groups > 1 else EXPERTS  # half of them do for every group
    for name, value in data.items():
        if isinstance(value, bool) or name in names.values() or name in inner.keys() | derived or "kernel" in name:
            continue
        if isinstance(value, int) and (_LAYERS.search(name) or _SIDE.search(name)):
            data[name] = len(layers) if _LAYERS.search(name) else HEADS
            continue
        if isinstance(value, int) and _WINDOW.search(name):
            data[name] = min(value, _SEEN)
        elif isinstance(value, int) and _SHARED.search(name):  # the last ones, which read keys and values of others
            data[name] = sum(layer >= count - value for layer in layers)
        elif isinstance(value, int) and _LENGTH.search(name):
            same = name.endswith("vocab_size") and value == vocabulary  # a decoder may have one of its own
            data[name] = VOCABULARY if same else min(value, 64)
        elif isinstance(value, int) and name in CHOSEN:
            data[name] = min(value, 2)
        elif isinstance(value, int) and "expert" in name and not _SIZE.search(name):
            data[name] = min(value, 2 if "tok" in name or "shared" in name or "top" in name else several)
        elif isinstance(value, int) and "group" in name:
            data[name] = min(value, 1 if "top" in name else 2)
        elif name == DENSE[1] and isinstance(value, int):
            data[name] = min(value, 1)
        elif isinstance(value, int) and "rotary" in name:
            data[name] = min(value, HEAD_DIM // 2)
        elif isinstance(value, int) and value > 8 and _SIZE.search(name):
            if value not in sizes:
                sizes[value] = next(fresh)
            data[name] = sizes[value]
        elif isinstance(value, list) and _SIZE.search(name) and all(type(size) is int for size in value):
            for size in {size for size in value if size > 8} - sizes.keys():
                sizes[size] = next(fresh)
            data[name] = [sizes.get(size, size) for size in value]
    data = {name: value for name, value in data.items() if name not in derived} | inner
    wide = stated if isinstance(stated, int) else hidden // heads if heads else 0
    data |= {"rope_parameters": _shrink_ropes(data["rope_parameters"], wide)} if data.get("rope_parameters") else {}
    data |= {names["hidden_size"]: small, "vocab_size": VOCABULARY}
    if names["num_hidden_layers"] in data:  # of ProphetNet, which has a number for each stack, it can't be set
        data[names["num_hidden_layers"]] = len(layers)
    if heads:
        data[names["num_attention_heads"]] = HEADS
    if isinstance(stated, int) and head_dim not in derived:  # it may be as large as other sizes
        data[head_dim] = HEAD_DIM
    if kv is not None:
        data[native.get("num_key_value_heads", "num_key_value_heads")] = small_kv
    for name, value in data.items():
        if name.endswith("_token_id") and isinstance(value, int):
            data[name] = min(value, len(name) % 3)
    try:
        result = type(config).from_dict(data)
    except Exception as error:
        raise UnsupportedError(f"{type(config).__name__} refuses small sizes ({describe_error(error)})") from error
    result._attn_implementation = "eager"
    return result


def _list_derived(config: PretrainedConfig) -> set[str]:
    """The sizes that are no parameters of a class: it works them out from others, as twice the hidden size."""
    data, taken = _list_plainly(config), inspect.signature(type(config)).parameters
    sizes = {name for name, value in data.items() if type(value) is int and _SIZE.search(name)} - taken.keys()
    if not sizes:
        return sizes
    without = type(config).from_dict({name: value for name, value in data.items() if name not in sizes}).to_dict()
    return {name for name in sizes if without.get(name) == data[name]}


def _say_sections(model: PreTrainedModel) -> PretrainedConfig:
    """The model's config, with the sections of a head that its class takes where the config says none."""
    found = next((section for module in model.modules() if (section := getattr(module, "mrope_section", None))), None)
    ropes = getattr(model.config, "rope_parameters", None)
    if found is None or not isinstance(ropes, dict) or "mrope_section" in ropes:
        return model.config
    config = copy.deepcopy(model.config)
    config.rope_parameters = {**ropes, "mrope_section": list(found)}
    return config


def _shrink_ropes(ropes: object, head_dim: int) -> object:
    """Settings of rotary positions with the sections of a head that turn by time, height and width (`mrope_section`).

    They add up to as large a part of a small head as they did of one of `head_dim`.
    """
    if not isinstance(ropes, Mapping):
        return ropes
    small = {name: _shrink_ropes(value, head_dim) for name, value in ropes.items()}
    sections = small.get("mrope_section")
    if isinstance(sections, list) and head_dim:
        first = sum(sections) * HEAD_DIM // head_dim - (len(sections) - 1)
        small["mrope_section"] = [max(first, 0), *[1] * (len(sections) - 1)]
    return small


def _shrink_heads(data: Mapping[str, object], hidden: int, main: Collection[str]) -> dict[str, int]:
    """Small counts and sizes of heads beside those of the attention (`main`), such as those of a mixer's states.

    A count and a size belong together where their names share all other words. Their product stays as many times the
    hidden size, or equal to the other size that it was equal to.
    """
    numbers = {name: value for name, value in data.items() if isinstance(value, int) and not isinstance(value, bool)}
    found: dict[str, int] = {}
    for name, count in numbers.items():
        if not _COUNT.search(name) or name in main or count < 1:
            continue
        partner = next((other for other in numbers if _PER_HEAD.search(other) and _words(other) == _words(name)), "")
        if not partner:
            found[name] = min(count, HEADS)
            continue
        product, whole = count * numbers[partner], HEADS * HEAD_DIM
        wide, rest = divmod(product * whole, hidden * HEAD_DIM)
        found |= {name: wide if wide and not rest else HEADS, partner: HEAD_DIM}
        same = [
            other for other, value in numbers.items()
            if value == product != hidden and _SIZE.search(other) and _words(name) & _words(other)
        ]  # fmt: skip
        found |= dict.fromkeys(same, found[name] * HEAD_DIM)
    return found


def _words(name: str) -> set[str]:
    return set(name.split("_")) - _WORDS


def copy_small(model: PreTrainedModel, layers: Sequence[int] = ()) -> PreTrainedModel:
    """A model of the same class with the shrunk configuration and random weights, none of them 0 or 1.

    Of the layers it has those that are given; if none are, enough to show each kind. Raises `UnsupportedError` where
    its modules are not those of the original.
    """
    chosen = layers or _choose_layers(model)
    config = shrink_config(_say_sections(model), chosen)
    try:
        small_model = draw_model(type(model), config)
    except Exception as error:
        raise UnsupportedError(
            f"{type(model).__name__} can't be built with small sizes ({describe_error(error)})"
        ) from error
    if getattr(model, "pooler", small_model) is None:
        small_model.pooler = None
    lacks = set() if layers else _outline(model) ^ _outline(small_model)
    if lacks:
        raise UnsupportedError(f"a small copy of {type(model).__name__} has other tensors: {min(lacks)} is not in both")
    return small_model


def draw_model(architecture: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """A model with random weights, none of them 0 or 1: norms of one and biases of zero hide what they do."""
    with draw_apart():
        model: PreTrainedModel = architecture(config).float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@contextlib.contextmanager
def draw_apart() -> Iterator[None]:
    """Random numbers from a seed of their own: those of the user go on afterwards as if none had been drawn."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        yield


@torch.no_grad()
def is_causal(model: PreTrainedModel) -> bool:
    """Whether no state of a small copy depends on a later token: it is a decoder, with whatever head or none."""
    if not reads_texts(model):
        return False
    tokens = make_tokens()
    other = tokens.clone()
    other[:, 1:] += 1
    before, after = (run_model(model.base_model, one)[0][:, :1] for one in (tokens, other))
    return torch.allclose(before, after, atol=1e-5)


def _choose_layers(model: PreTrainedModel) -> Sequence[int]:
    """Layers among which each kind is: the first of each, at least two, or all up to the last first one.

    The second where a copy of the first has others: what a config says may go by the numbers of layers.
    """
    kinds = list_kinds(model)
    if has_encoder(model.config):
        return (0, 1)
    first = sorted({kind: number for number, kind in reversed(list(enumerate(kinds)))}.values())
    for chosen in (first if len(first) > 1 else [0, 1], range(min(max(first) + 1, _MOST))):
        try:
            with torch.device("meta"):
                built = type(model)(shrink_config(model.config, chosen))
            if _open_lists(list_kinds(built)) == _open_lists(kinds):
                return chosen
        except Exception:  # a class may want a whole pattern
            continue
    return (0, 1)


def _open_lists(kinds: Collection[tuple[str, ...]]) -> set[frozenset[str]]:
    """Kinds of layers, whatever the lengths of lists in them, which may have an entry for each layer of a kind."""
    return {frozenset(leave_numbers_open(name) for name in kind) for kind in kinds}


def _outline(model: nn.Module) -> set[str]:
    """Names of parameters, layers' numbers left out."""
    return {leave_numbers_open(name) for name, _ in model.named_parameters()}


def leave_numbers_open(name: str) -> str:
    """The name of a tensor, or what begins with one, with a star for the place of a module in a list."""
    return re.sub(r"\.\d+(?=[. ]|$)", ".*", name)


def make_tokens() -> Tensor:
    """Two sequences that a small copy reads [2, TOKENS]."""
    return torch.arange(2 * TOKENS).reshape(2, TOKENS) % (VOCABULARY - 4) + 3


def run_model(model: PreTrainedModel, tokens: Tensor) -> ModelOutput:
    """What the model gives for tokens [B, S], without a cache, whose length some classes ask of its layers.

    An encoder and its decoder take the same tokens, or the encoder what else it reads.
    """
    accepted = inspect.signature(model.forward).parameters
    inputs: dict[str, Tensor | bool] = {"input_ids": tokens}
    if not reads_texts(model):
        inputs = dict(make_source(model, tokens))
    if has_encoder(model.config):
        inputs = {"decoder_input_ids": tokens, **make_source(model, tokens)}
    if "use_cache" in accepted or has_encoder(model.config):
        inputs["use_cache"] = False
    return model(**inputs)


def reads_texts(model: PreTrainedModel | type[PreTrainedModel]) -> bool:
    """Whether it, or its encoder, takes tokens, and not an image or a sound.

    What hands on whatever it is given is the wrapper of a decoder; its name of an input is that of the whole model.
    """
    accepted = inspect.signature(model.forward).parameters
    hands_on = {"args", "kwargs"} == accepted.keys() - {"self"}
    return model.main_input_name == "input_ids" or "input_ids" in accepted or hands_on


def make_source(model: PreTrainedModel, tokens: Tensor) -> dict[str, Tensor]:
    """What the encoder of a model reads: tokens [B, S], or as many images or sounds, always the same."""
    main = model.main_input_name
    draw = torch.Generator().manual_seed(0)
    return {main: tokens if main == "input_ids" else draw_input(model, main, draw, len(tokens)).to(tokens.device)}


def describe_error(error: BaseException) -> str:
    """The first line of an error that is not ours, and the next where it ends in a colon."""
    first, _, rest = str(error).strip().partition("\n")
    if first.endswith(":") and rest:
        first += f" {rest.strip().partition(chr(10))[0]}"
    return first or type(error).__name__
