"""Files of a cut network: weights, the plan of the cut, masks of single weights, and a torch.export program."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from secateur._utils.disk import atomic_write, writing
from secateur._utils.finite import all_finite
from secateur.errors import ModelError, SecateurError
from secateur.formats import integers, onnx_files
from secateur.subjects.network.recording import Example, tensors_of
from secateur.subjects.network.shrinking import History, history, remember, shrink, twin

__all__ = [
    "PLAN", "Stored", "find_replaced", "note_form", "read", "read_history", "read_kind", "write", "write_program",
]  # fmt: skip

PLAN = "cut.json"
"""The file that says what was cut."""

_FORM = "_secateur_form"
"""Where a network knows its form: how many cuts there were, tensor -> shape, module -> class, what was replaced."""
_DROPPING = ("DropPath", "StochasticDepth")
"""Classes of timm and torchvision that pass on what they get in evaluation mode."""

_WEIGHTS, _MASKS = "model.safetensors", "masks.safetensors"


@dataclass(frozen=True, eq=False)
class Stored:
    """A network with what was done to the original, as it stands in a folder."""

    model: nn.Module
    history: History = field(default_factory=History)
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    forms: Mapping[str, integers.Form] = field(default_factory=dict)


def write(folder: Path, stored: Stored) -> None:
    """Write weights and the plan; masks that are not packed with their weights go into a file of their own.

    Raises `ModelError` for a network that `read` would not give back: one that was changed by hand since it was cut.
    """
    _check_tensors(stored)
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
        **stored.history.to_dict(),
    }
    if passing := _find_passing(stored.model):
        data["passing"] = sorted(passing)
    if stored.forms:
        data["forms"] = {name: [form.n, form.m, form.unit] for name, form in stored.forms.items()}
    atomic_write(folder / PLAN, json.dumps(data))


def _check_tensors(stored: Stored) -> None:
    """Raise `ModelError` for a tensor of another size than the last cut gave it, NaN, or weights grown anew."""
    sizes = {
        (name, dim): len(stays)
        for plan in stored.history.plans
        for name, dims in plan.tensors.items()
        for dim, stays in dims.items()
    }
    _check_form(stored.model)
    tensors, kind = tensors_of(stored.model), type(stored.model).__name__
    for (name, dim), size in sizes.items():
        if name in tensors and tensors[name].dim() > dim and tensors[name].shape[dim] != size:
            raise ModelError(
                f"{name} of this {kind} is {tuple(tensors[name].shape)}, and the cut left {size} in dimension {dim}: "
                "it was replaced since, and the folder would not load; put back what was there, or save its state_dict"
            )
    for name, parameter in stored.model.named_parameters():
        if not all_finite(parameter):
            raise ModelError(f"{name} of this {kind} holds NaN or infinity: nothing was saved")
        mask = stored.masks.get(name)
        if mask is not None and bool(parameter.detach()[~mask.to(parameter.device)].any()):
            raise ModelError(
                f"weights of {name} that were pruned one by one are no longer zero: multiply it by the subject's "
                f"masks[{name!r}] after each step of your training, or clear the masks to save it dense"
            )


def note_form(model: nn.Module, replaced: str = "") -> None:
    """Have a network know its modules and the shapes of its tensors, as the last cut left them: see `find_replaced`.

    replaced: what `find_replaced` said of it before that cut.
    """
    shapes = _lasting_shapes(model)
    kinds = {name: _name_kind(module) for name, module in model.named_modules()}
    model.__dict__[_FORM] = (len(history(model).plans), shapes, kinds, replaced)


def find_replaced(model: nn.Module) -> str:
    """Which of a network's modules was replaced since `note_form`, if nothing was cut since then; "" where none was.

    A dropout may go, or come, and batch norms may become those of several processes.
    """
    cuts, shapes, kinds, before = model.__dict__.get(_FORM, (-1, {}, {}, ""))
    if cuts != len(history(model).plans) or before:
        return str(before)
    found = _lasting_shapes(model)
    wrong = next((name for name in sorted({*shapes, *found}) if shapes.get(name) != found.get(name)), None)
    if wrong is not None:
        was, now = ("absent" if one is None else str(one) for one in (shapes.get(wrong), found.get(wrong)))
        return f"{wrong} of this {type(model).__name__} is {now}, and was {was} after the cut"
    modules = dict(model.named_modules())
    there = {name: _name_kind(modules[name]) for name in kinds if name in modules}
    other = next((name for name, kind in there.items() if kind != kinds[name]), None)
    return "" if other is None else f"{other} of this {type(model).__name__} is {there[other]}, and was {kinds[other]}"


def _lasting_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of parameters and of the buffers that a state_dict has: the others may be tables that grow with the inputs."""
    passing = _find_passing(model)
    return {name: tuple(tensor.shape) for name, tensor in tensors_of(model).items() if name not in passing}


def _find_passing(model: nn.Module) -> set[str]:
    """Names of the buffers that no state_dict has."""
    return {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    }


def _check_form(model: nn.Module) -> None:
    """Raise `ModelError` for a network whose modules were replaced after a cut.

    The original with the cuts on record is not that network any more: its weights would not fit, or do something else.
    """
    if what := find_replaced(model):
        raise ModelError(
            f"{what}: it was replaced since, and what the folder says of the original would be wrong; put back what "
            "was there, replace it in the original before it is cut, or save the state_dict"
        )


def _name_kind(module: nn.Module) -> str:
    """The class of a module; of one that passes on what it gets, at least in evaluation mode, a common name."""
    if isinstance(module, nn.Identity | nn.modules.dropout._DropoutNd) or type(module).__name__ in _DROPPING:
        return "Identity"
    norm = isinstance(module, nn.modules.batchnorm._BatchNorm)  # SyncBatchNorm takes the place of any of them
    return "BatchNorm" if norm else type(module).__name__


def write_program(folder: Path, model: nn.Module, example: Example) -> None:
    """Write the network as a torch.export program."""
    args, kwargs = example.fresh()
    try:
        exported = onnx_files.program(twin(model, share=True).eval(), args, kwargs)
    except Exception:
        if not any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in model.parameters()):
            raise
        exported = onnx_files.program(twin(model).eval(), args, kwargs)  # its own code casts to half precision
    with writing(folder / "model.pt2") as place:
        torch.export.save(exported, place)


def read(folder: Path, model: nn.Module) -> Stored:
    """What `write` wrote, on a copy of the original architecture `model`, or of what the original was first cut to.

    Raises `ModelError` where it is damaged.
    """
    with _explain_absence(folder):
        data = json.loads((folder / PLAN).read_text("utf-8"))
        state = load_file(folder / _WEIGHTS)
    # What the file says is followed step by step: whatever does not fit shows as an error of some kind.
    with _explain_damage(folder):
        forms = {str(name): integers.Form(*map(int, form)) for name, form in data.get("forms", {}).items()}
        passing = set(map(str, data.get("passing", ())))
        said = History.from_dict(data)
        small = twin(model)
        for plan in said.since(history(model)):
            small = shrink(small, plan)
    masks: dict[str, Tensor] = {}
    if (folder / _MASKS).is_file():
        from secateur.subjects.transformer import packing  # which loads transformers

        masks = packing.load_masks(folder / _MASKS)
    state, packed = integers.unpack_state(small, state, forms)
    tensors = tensors_of(small)
    shapes, saved = ({name: one.shape for name, one in group.items()} for group in (tensors, state))
    different = {name for name in shapes.keys() | saved.keys() if shapes.get(name) != saved.get(name)}
    if wrong := sorted(different - passing - _find_passing(small)):
        raise ModelError(f"{folder} is of another architecture than {type(model).__name__}: {wrong[0]} differs")
    with torch.no_grad():
        for name in tensors.keys() - different:  # a table that grew since begins anew
            tensors[name].copy_(state[name])
    remember(small, said)
    note_form(small)
    return Stored(small, said, {**masks, **packed}, forms)


def read_history(folder: Path) -> History:
    """Where the network in `folder` comes from. Raises `ModelError` where the file that says so is damaged."""
    with _explain_absence(folder):
        data = json.loads((folder / PLAN).read_text("utf-8"))
    with _explain_damage(folder):
        return History.from_dict(data)


def read_kind(folder: Path) -> str:
    """The class of the network in `folder`."""
    with _explain_absence(folder):
        data = json.loads((folder / PLAN).read_text("utf-8"))
    return str(data.get("model", "")) if isinstance(data, dict) else ""


@contextmanager
def _explain_absence(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise ModelError(f"{folder} holds no saved network ({error}): give the folder that save() wrote") from error


@contextmanager
def _explain_damage(folder: Path) -> Iterator[None]:
    try:
        yield
    except SecateurError:
        raise
    except Exception as error:
        line = str(error).partition("\n")[0][:200]
        raise ModelError(
            f"{folder / PLAN} is damaged ({type(error).__name__}: {line}): give a folder as save() wrote it"
        ) from error
