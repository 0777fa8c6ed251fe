"""Files of a cut network: weights, the plan of the cut, masks of single weights, and a torch.export program."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from secateur._utils.disk import atomic_write, writing
from secateur.errors import ModelError, SecateurError
from secateur.formats import integers, onnx_files
from secateur.subjects.network.recording import Example, tensors_of
from secateur.subjects.network.shrinking import Plan, shrink, twin

__all__ = ["Stored", "read", "write", "write_program"]

_WEIGHTS, _PLAN, _MASKS = "model.safetensors", "cut.json", "masks.safetensors"


@dataclass(frozen=True, eq=False)
class Stored:
    """A network with what was done to the original, as it stands in a folder."""

    model: nn.Module
    plans: tuple[Plan, ...] = ()
    channels: float | None = None
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    forms: Mapping[str, integers.Form] = field(default_factory=dict)


def write(folder: Path, stored: Stored) -> None:
    """Write weights and the plan; masks that are not packed with their weights go into a file of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().contiguous() for name, tensor in tensors_of(stored.model).items()}
    state = integers.pack_state(stored.model, state, stored.masks, stored.forms)
    with writing(folder / _WEIGHTS) as place:
        save_file(state, place)
    if loose := {name: mask for name, mask in stored.masks.items() if f"{name}.places" not in state}:
        from secateur.subjects.transformer import packing  # which loads transformers

        packing.save_masks(loose, folder / _MASKS)
    data: dict[str, object] = {
        "model": type(stored.model).__name__,
        "plans": [plan.to_dict() for plan in stored.plans],
        "channels": stored.channels,
    }
    if stored.forms:
        data["forms"] = {name: [form.n, form.m, form.unit] for name, form in stored.forms.items()}
    atomic_write(folder / _PLAN, json.dumps(data))


def write_program(folder: Path, model: nn.Module, example: Example) -> None:
    """Write the network as a torch.export program."""
    args, kwargs = example.fresh()
    exported = onnx_files.program(twin(model, share=True).eval(), args, kwargs)
    with writing(folder / "model.pt2") as place:
        torch.export.save(exported, place)


def read(folder: Path, model: nn.Module) -> Stored:
    """What `write` wrote, on a copy of the original architecture `model`. Raises `ModelError` where it is damaged."""
    try:
        data = json.loads((folder / _PLAN).read_text("utf-8"))
        state = load_file(folder / _WEIGHTS)
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise ModelError(f"{folder} holds no saved network ({error}): give the folder that save() wrote") from error
    # What the file says is followed step by step: whatever does not fit shows as an error of some kind.
    try:
        forms = {str(name): integers.Form(*map(int, form)) for name, form in data.get("forms", {}).items()}
        channels = float(data["channels"]) if data.get("channels") else None
        plans = tuple(Plan.from_dict(plan) for plan in data.get("plans", ()))
        small = twin(model)
        for plan in plans:
            small = shrink(small, plan)
    except SecateurError:
        raise
    except Exception as error:
        line = str(error).partition("\n")[0][:200]
        raise ModelError(
            f"{folder / _PLAN} is damaged ({type(error).__name__}: {line}): give a folder as save() wrote it"
        ) from error
    masks: dict[str, Tensor] = {}
    if (folder / _MASKS).is_file():
        from secateur.subjects.transformer import packing  # which loads transformers

        masks = packing.load_masks(folder / _MASKS)
    state, packed = integers.unpack_state(small, state, forms)
    tensors = tensors_of(small)
    shapes, saved = ({name: one.shape for name, one in group.items()} for group in (tensors, state))
    wrong = sorted(name for name in shapes.keys() | saved.keys() if shapes.get(name) != saved.get(name))
    if wrong:
        raise ModelError(f"{folder} is of another architecture than {type(model).__name__}: {wrong[0]} differs")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(state[name])
    return Stored(small, plans, channels, {**masks, **packed}, forms)
