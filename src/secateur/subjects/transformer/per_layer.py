"""What a config says of single layers: lists with an entry for each, and lists of the layers of one kind."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise

from transformers import CONFIG_MAPPING, PretrainedConfig

__all__ = ["CHOSEN", "get_setting", "list_own", "take_layers"]

CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_top_k", "moe_k")
"""What configs call the number of experts that a token passes."""

_TOKENS = re.compile(r"token_ids?$")
_KINDS = re.compile(r"layer|block|types$|pattern")
_NUMBERS = re.compile(r"layer|idx|indices|indexes")


def get_setting(config: PretrainedConfig, name: str) -> int | None:
    """A number of the config, or of its first layer where layers have numbers of their own; None where it has none."""
    try:
        value: int | None = getattr(config, name, None)
    except RuntimeError:  # it asks which layer is meant
        value = getattr(config.per_layer_config[0], name, None)
    return value


def list_own(config: PretrainedConfig) -> tuple[str, ...]:
    """The settings that a class itself gives single layers, such as the size of a head (Gemma 4)."""
    spec = vars(config).get("_heterogeneity_spec")
    return tuple(sorted(spec.per_layer_attributes)) if spec is not None else ()


def take_layers(data: Mapping[str, object], layers: Sequence[int], count: int) -> dict[str, object]:
    """The lists of a config of `count` layers as they are for `layers` of them, in this order; only those that change.

    A list as long as there are layers has an entry for each (layer_types, no_rope_layers); a list of rising numbers
    whose name speaks of layers has the numbers of those of a kind (attn_layer_indices, mlp_only_layers); a shorter list
    of names of types is a pattern that repeats itself (block_types). Lists that happen to be as long, of convolutions
    that read a sound, say (conv_dim), stay: those of the class's own defaults are not as long as there are layers. Of
    two layers, [0, 1] may be an entry for each or the numbers of both, which the class's own defaults tell as well.
    """
    changed, (apart, numbers) = dict[str, object](), _read_defaults(str(data.get("model_type", "")))
    for name, value in data.items():
        if not isinstance(value, list) or _TOKENS.search(name):
            continue
        if _lists_layers(name, value, count) and (len(value) != count or count > 2 or name in numbers):
            changed[name] = [new for new, old in enumerate(layers) if old in value]
        elif name in apart:
            continue
        elif (len(value) == count and _may_go_by_layer(name, value)) or _is_pattern(name, value, count):
            changed[name] = [value[layer % len(value)] for layer in layers]
    return changed


@cache
def _read_defaults(model_type: str) -> tuple[frozenset[str], frozenset[str]]:
    """Of the lists that a class sets by default, those of another length than any number of layers that it sets.

    And those that hold numbers of layers.
    """
    try:
        config = CONFIG_MAPPING[model_type]()
    except Exception:  # there is no such class, or it has no defaults
        return frozenset(), frozenset()
    data = config.to_dict()
    said = [value for name, value in data.items() if name.endswith(("encoder_layers", "decoder_layers"))]
    said.append(get_setting(config, "num_hidden_layers"))
    counts = {count for count in said if isinstance(count, int)}  # LXMERT's are a dict
    lists = {name: value for name, value in data.items() if isinstance(value, list | tuple) and value}
    apart = frozenset(name for name in lists if len(lists[name]) not in counts and not name.endswith("types"))
    return apart, frozenset(name for name in lists if any(_lists_layers(name, lists[name], n) for n in counts if n))


def _may_go_by_layer(name: str, value: Sequence[object]) -> bool:
    """Two numbers may as well be the ends of a range, identifiers those of tokens, and names what each layer has."""
    if isinstance(value[0], str):  # DeBERTa's `pos_att_type` names two ways in which every layer looks at places
        return bool(_KINDS.search(name))
    may_be_range = isinstance(value[0], float) and len(value) == 2
    return not name.endswith(("_id", "_ids")) and ("layer" in name or not may_be_range)


def _is_pattern(name: str, value: Sequence[object], count: int) -> bool:
    return name.endswith("types") and 0 < len(value) < count and all(isinstance(entry, str) for entry in value)


def _lists_layers(name: str, value: Sequence[object], count: int) -> bool:
    numbers = [number for number in value if isinstance(number, int) and not isinstance(number, bool)]
    rising = len(numbers) == len(value) and all(0 <= number < count for number in numbers)
    rising = rising and all(first < second for first, second in pairwise(numbers))
    return rising and bool(_NUMBERS.search(name))
