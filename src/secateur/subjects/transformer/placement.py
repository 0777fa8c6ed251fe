"""Lay a smaller model over devices as the model that it was cut from lies over them (Accelerate's `device_map`)."""

from __future__ import annotations

from collections.abc import Sequence

from accelerate import dispatch_model
from transformers import PreTrainedModel

from secateur._utils import devices
from secateur.subjects.transformer.layout import Layout

__all__ = ["place_like"]


def place_like(model: PreTrainedModel, layout: Layout, layers: Sequence[int] | None = None) -> None:
    """Bring `model` to where the model of `layout` is: on its device, or split as that one, a layer where it was.

    layers: of that model, those that stay, in their order; all if None.
    """
    old = layout.model
    if not devices.is_fixed(old):
        model.to(old.device)
        return
    paths = layout.new_paths(range(len(layout.layers())) if layers is None else layers)
    new = {before: paths.get(layer, "") for layer, before in enumerate(layout.layers())}
    there = {name for name, _ in (*model.named_modules(), *model.named_parameters(), *model.named_buffers()) if name}
    places = dict[str, object]()
    for name, place in old.hf_device_map.items():
        layer = next((path for path in new if name == path or name.startswith(f"{path}.")), None)
        target = name if layer is None else f"{new[layer]}{name.removeprefix(layer)}" if new[layer] else ""
        if target in there:
            places[target] = place
    main, skip = str(devices.find_device(old)), getattr(model, "_skip_keys_device_placement", None)
    dispatch_model(model, places, main_device=main, skip_keys=skip, force_hooks=True)
