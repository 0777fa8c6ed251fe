"""Open a network by what a user has of it: a module, the function that builds it, or the folder of a saved cut."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

import torch
from torch import Tensor, nn

from secateur._utils import devices, modes, plugins, rundir
from secateur.errors import InputError, ModelError, SecateurError, UnsupportedError
from secateur.formats import onnx_files
from secateur.subjects.network import detectors, files, pretrained
from secateur.subjects.network.recording import Example
from secateur.subjects.network.shrinking import history, remember
from secateur.subjects.network.traced import Traced, reload_traced

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["NetworkSource", "Original", "build_network", "is_saved", "load_saved", "open_network", "open_saved"]

First: TypeAlias = Callable[[nn.Module], object]
"""Inputs where none come along, such as the first of the data, which may depend on how the module takes them."""
NetworkSource: TypeAlias = str | Path | nn.Module | Traced
"""A module, a subject, "file.py:function" or "package.module:function", or the folder of a saved cut."""
Original: TypeAlias = nn.Module | str | Callable[[], object]
"""The architecture that was cut: a module, or what builds it, itself or by its name."""


def is_saved(source: object) -> bool:
    """Whether `source` is a folder into which a cut network was saved."""
    if not isinstance(source, str | Path):
        return False
    return (Path(source) / files.PLAN).is_file() and not (Path(source) / "config.json").is_file()


def open_network(source: NetworkSource, inputs: object = None, first: First | None = None) -> Traced:
    """The network of `source` with its example inputs, not analysed yet: see `open_traced` for what can be pruned.

    inputs, first: see `build_network`, which raises, too. Raises `ModelError` for a damaged folder.
    """
    if is_saved(source):
        return open_saved(str(source), inputs=inputs)
    if isinstance(source, Traced):
        found = source
    else:
        module, example = build_network(source, inputs, first)
        found = Traced(module, Example.of(example))
    modes.forget_passes(found.model)
    return found


def build_network(
    model: str | Path | nn.Module, inputs: object = None, first: First | None = None
) -> tuple[nn.Module, object]:
    """(module, example inputs) of a module, or of the name of a function that builds one.

    inputs: what it runs on, or a shape such as "1x3x224x224"; if None what the function gives, or `first` of the
    module, and of a model of transformers short ones of its kind (`pretrained.make_inputs`). Raises `UnsupportedError`
    for one that is offloaded, and `InputError` where inputs are lacking.
    """
    module, example = _build(model) if isinstance(model, str | Path) else (model, None)
    if devices.is_offloaded(module):  # first, for no inputs would help
        raise UnsupportedError(
            f"{type(module).__name__} is offloaded, and a network is analysed and proved as a whole: open it "
            "without device_map, or cut it as a language model by secateur.run, with shortgpt or wanda"
        )
    if inputs is not None:
        example = _random_inputs(inputs, module) if isinstance(inputs, str) else inputs
    if example is None and first is not None:
        example = first(module)
    if example is None and (pretrained.is_pretrained(model) or pretrained.is_model(model)):
        example = _make_inputs(cast("PreTrainedModel", module))
    if example is None and isinstance(model, nn.Module):
        raise InputError(
            f"{type(model).__name__} comes without example inputs: give them, or their shape, such as '1x3x224x224', "
            "as example_inputs of secateur.prune and inputs of other functions"
        )
    if example is None:
        raise InputError(
            f"{model} comes without example inputs: give their shape, such as --input 1x3x224x224, "
            "or let its function return (model, inputs)"
        )
    return module, example


def load_saved(folder: str | Path, original: Original | None = None) -> nn.Module:
    """The cut network that was saved in `folder`, with its weights.

    original: a module of the architecture that was cut, with any weights, or the function that builds it; if None, the
    function on record. Raises `ModelError` where the folder is damaged, `InputError` where there is no original.
    """
    return files.read(Path(folder), _build_original(Path(folder), original)[0]).model


def open_saved(folder: str | Path, original: Original | None = None, inputs: object = None) -> Traced:
    """As `load_saved`, as a subject; inputs: example inputs, or their shape, those on record if None."""
    folder = Path(folder)
    module, example = _build_original(folder, original)
    inputs = inputs if inputs is not None else _read_record(folder).get("inputs")
    if inputs is not None:
        example = _random_inputs(inputs, module) if isinstance(inputs, str) else inputs
    return reload_traced(folder, module, _inputs_of_program(folder) if example is None else example)


def _build_original(folder: Path, original: Original | None) -> tuple[nn.Module, object]:
    """The architecture that was cut, and the inputs that its function gives, or None."""
    example: object = None
    if isinstance(original, nn.Module):
        module = original
    elif callable(original):
        module, example = _call(original)
    else:
        name = str(original or "") or files.read_history(folder).built_by or _first_original(_read_record(folder))
        if ":" not in name and not pretrained.is_pretrained(name):
            raise InputError(
                f"{folder} was cut from {name or 'a network'} that was given in Python, and the record names no "
                f"function that builds it: give the original, secateur.load({str(folder)!r}, original=network) or "
                "original='file.py:function'"
            )
        module, example = _build_beside(name, folder)
    if type(module).__name__ != files.read_kind(folder):
        with suppress(SecateurError):  # another architecture, as will be said
            module = detectors.adapt(module)
    return module, example


def _call(build: Callable[[], object]) -> tuple[nn.Module, object]:
    """What a function gives: a module, or one and its inputs. Raises `InputError` for anything else."""
    found = build()
    module, example = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    if not isinstance(module, nn.Module):
        raise InputError(f"original gave {type(found).__name__}: expected a torch.nn.Module, or (module, inputs)")
    return module, example


def _build(source: str | Path) -> tuple[nn.Module, object]:
    if pretrained.is_pretrained(source):
        module, example = pretrained.open_pretrained(source), None
    else:
        module, example = plugins.network(str(source))
    remember(module, replace(history(module), built_by=str(source)))
    return module, example


def _build_beside(name: str, folder: Path) -> tuple[nn.Module, object]:
    """The network by a name on record: a relative path is taken from here, or else from the folder or one above it."""
    file, _, function = name.rpartition(":")
    if not file.endswith(".py") or Path(file).exists():
        return _build(name)
    above = [folder.resolve(), *folder.resolve().parents][:4]
    beside = next((place / file for place in above if (place / file).is_file()), None)
    if beside is None:
        raise InputError(
            f"{folder} was cut from {name}, and there is no file {file} here or beside it: put it there, or give the "
            f"original, secateur.load({str(folder)!r}, original=network)"
        )
    return _build(f"{beside}:{function}")


def _read_record(folder: Path) -> dict[str, object]:
    """The settings of the run that wrote `folder`, or one of its budgets; nothing where there are none."""
    for place in (folder, folder.resolve().parent):
        if (place / "run.yaml").is_file():
            return rundir.read_record(place / "run.yaml")
    return {}


def _first_original(record: dict[str, object]) -> str:
    """What the run cut, and where that was itself a saved cut, what that was cut from."""
    seen = set[str]()
    name = str(record.get("model", ""))
    while is_saved(name) and name not in seen:
        seen.add(name)
        name = files.read_history(Path(name)).built_by or str(_read_record(Path(name)).get("model", ""))
    return name


def _inputs_of_program(folder: Path) -> Example:
    """The inputs that the program beside the weights was recorded with."""
    try:
        args, kwargs = onnx_files.load_program(folder).example_inputs or ((), {})
    except ModelError as error:
        raise InputError(
            f"{folder} does not say what its network runs on: give inputs, such as --input 1x3x224x224"
        ) from error
    return Example(args, kwargs)


def _make_inputs(model: PreTrainedModel) -> dict[str, Tensor | bool]:
    """Short inputs of a model of transformers, where it lies."""
    made, place = pretrained.make_inputs(model), model.device
    return {name: one.to(place) if isinstance(one, Tensor) else one for name, one in made.items()}


def _random_inputs(shape: str, module: nn.Module) -> object:
    """Random numbers of a shape such as 1x3x224x224; tokens for a model of transformers that reads these."""
    sizes = shape.lower().split("x")
    if not all(number.isdigit() and int(number) for number in sizes):
        raise InputError(f"input {shape!r} is no shape: say for example 1x3x224x224")
    wanted = [int(number) for number in sizes]
    if pretrained.takes_tokens(module):
        return pretrained.make_inputs(cast("PreTrainedModel", module), wanted)
    return torch.rand(wanted, generator=torch.Generator().manual_seed(0))
