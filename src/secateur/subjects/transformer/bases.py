"""The base of a result by what the map beside it says: its class and its config, without its weights."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from secateur.errors import ModelError
from secateur.subjects.transformer import saving
from secateur.subjects.transformer.cutting import Kept
from secateur.subjects.transformer.deriving import find_family
from secateur.subjects.transformer.layout import Layout
from secateur.subjects.transformer.origin import Origin

__all__ = ["check_name", "outline"]

_MOST_LAYERS = 10_000
"""A config that says more is no model's, and would be built for hours."""


def check_name(name: str, file: Path) -> None:
    """Refuse what no system takes for the name of a file: a Hub id and a folder are both looked for as one."""
    if "\0" in name or len(name) > 4000 or any(len(part.encode()) > 255 for part in name.split("/")):
        raise ModelError(f"{file} is damaged: it names the base {name[:40]!r}..., which can be no folder and no Hub id")


def outline(origin: Origin, where: Path) -> Layout:
    """The base of the result in `where`, whose map is `origin`, on device meta.

    Raises `ModelError` where the map does not fit it.
    """
    assert origin.kept is not None, "a map says what stays"
    kind = saving.original_class(origin.architecture)
    check_name(origin.name, where / saving.MAP)
    try:
        if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
            raise ValueError(f"{origin.architecture} is no model of transformers")
        said = {name: _read_floats(value) for name, value in origin.config.items()}
        config = CONFIG_MAPPING[origin.config["model_type"]].from_dict(said)
        if config.num_hidden_layers > _MOST_LAYERS:
            raise ValueError(f"it says that its base has {config.num_hidden_layers} layers")
        family = find_family(kind, config)
        with torch.device("meta"):
            layout = Layout(saving.architecture(kind, config, family)(config), family)
        _check_map(layout, origin.kept, origin.norm_ratio)
    except Exception as error:  # a config that is damaged raises whatever its class does
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
        raise ModelError(f"{where / saving.MAP} is damaged ({line}): cut the model again") from error
    return layout


def _read_floats(value: object) -> object:
    """A value of a config with its infinities and NaN, which transformers writes as {"__float__": "Infinity"}."""
    if isinstance(value, dict):
        tag = value.get("__float__")
        if len(value) == 1 and tag in ("Infinity", "-Infinity", "NaN"):
            return float(tag)
        return {name: _read_floats(inner) for name, inner in value.items()}
    return [_read_floats(inner) for inner in value] if isinstance(value, list) else value


def _check_map(layout: Layout, kept: Kept, ratio: float) -> None:
    """Raise `ValueError` for a map that no cut of the base `layout` leaves."""
    if not kept.layers or kept.layers != sorted(set(kept.layers)) or kept.layers[0] < 0:
        raise ValueError(f"its layers {kept.layers[:5]} are no ascending numbers")
    limits = [(torch.tensor(kept.layers), len(layout.widths))]
    limits += [] if kept.channels is None else [(kept.channels, layout.hidden_size)]
    for layer, parts in kept.parts.items():
        limits += [(index, getattr(layout.widths[layer], part)) for part, index in parts.items()]
    if any(index.numel() and int(index.max()) >= count for index, count in limits):
        raise ValueError("it names units that its base has not")
    for layer, parts in kept.parts.items():
        if any(index.dim() != (2 if part == "expert_neurons" else 1) for part, index in parts.items()):
            raise ValueError(f"layer {layer} has lists of units where one was to be")
        if len(parts.get("experts", ())) != len(parts.get("expert_neurons", ())):
            raise ValueError(f"layer {layer} has neurons of other experts than it keeps")
        width = layout.widths[layer]
        inside = width.heads // width.kv if width.kv else 1
        groups, counts = (parts["heads"] // inside).unique_consecutive(return_counts=True)
        if not torch.equal(groups, parts["kv"]) or len(counts.unique()) > 1:
            raise ValueError(f"the heads and kv of layer {layer} do not fit each other")
    channels = layout.hidden_size if kept.channels is None else len(kept.channels)
    if not 1 <= ratio <= (layout.hidden_size / channels) * (1 + 1e-6):
        raise ValueError(f"its norm_ratio is {ratio:g}")
