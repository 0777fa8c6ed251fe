"""Other forms of a model: which function writes which, and what has to be checked of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from secateur.errors import NumericalError, UnsupportedError
from secateur.measure import display, sparsity
from secateur.recover import quantise
from secateur.running import language
from secateur.subjects import Transformer, matrices, onnxing, open_subject, packing, quantised
from secateur.subjects import export as forms

__all__ = ["QUANTISED", "opened", "write"]

QUANTISED = {"int8": 0.05, "int4": 0.5}
"""How far outputs of quantised weights may be from the original's: norm of the difference by norm of the outputs."""


def opened(folder: str | Path, to: str) -> Any:
    """What is in `folder`: a subject, or the program of a network, which can be written as ONNX only."""
    if not (Path(folder) / "cut.json").is_file():
        return open_subject(folder)
    if to != "onnx":
        raise UnsupportedError(f"{folder} holds a network, which {to} can't hold: choose onnx")
    return onnxing.saved(folder)


def write(subject: Transformer | Any, folder: Path, to: str, data: Any = None) -> tuple[str, ...]:
    """Write `subject` into `folder`, in the form `to`; returns notes. See `secateur.running.export`."""
    folder.mkdir(exist_ok=True)
    if not isinstance(subject, Transformer):
        return onnxing.write_program(subject, folder / "model.onnx")
    if to == "onnx":
        forms.to_onnx(subject, folder)
        return ()
    if to == "decilm":
        return forms.to_decilm(subject, folder)
    if to == "packed":
        return packing.save_packed(subject, folder)
    if to == "masks":
        return _masks(subject, folder)
    return _quantised(subject, folder, to, data)


def _masks(subject: Transformer, folder: Path) -> tuple[str, ...]:
    found = matrices.matrices(subject.model, subject.layers())
    packing.save_masks(matrices.masks_of(found), folder / "masks.safetensors")
    share = sparsity.zeros({name: matrix.weight for name, matrix in found.items()})
    return (f"{len(found)} matrices, {display.number('zeros', share)} of their weights zero",)


def _quantised(subject: Transformer, folder: Path, to: str, data: Any) -> tuple[str, ...]:
    """Quantise a copy, write it, read it again, and compare all three."""
    bits = int(to.removeprefix("int"))
    packed = next(iter(matrices.expert_layers(subject.model)), None)
    if bits == 4 and packed is not None:  # transformers would look for quantised experts where none are
        raise UnsupportedError(f"{packed} holds packed experts, beside which int4 can't be read again: choose int8")
    model = copy.deepcopy(subject.model)
    names, left = quantise.weight_only(model, bits, within=subject.layers())
    student = quantised.with_model(subject, model)
    kept = _zeros_kept(subject, student, names)
    if bits == 8:
        quantised.save_int8(student, folder, quantise.config(bits), list(left))
    else:
        quantised.save_int4(student, folder, names, list(left), quantise.GROUP)
    again = open_subject(folder, quantised=True)
    example = subject.example(4, 16)
    with torch.inference_mode():
        wanted, quick, read = (one.forward(example).prediction.float() for one in (subject, student, again))
    lost, error = (((a - b).norm() / b.norm()).item() for a, b in ((read, quick), (quick, wanted)))
    if not lost <= onnxing.TOLERANCE:
        raise NumericalError(f"the {to} export reads back with outputs off by {lost:.2g}: it is not usable")
    if not error <= QUANTISED[to]:
        raise NumericalError(
            f"in {to} the outputs are off by {error:.2g} of their norm, more than {QUANTISED[to]}: keep more bits, or "
            "train with quantise.prepare first"
        )
    found = matrices.matrices(subject.model, subject.layers()).values()
    experts = sum(matrix.expert is not None for matrix in found)
    others = sum(matrix.expert is None and matrix.module not in {*names, *left} for matrix in found)
    told = f", of them {experts} matrices of packed experts" if experts else ""
    notes = [
        f"{len(names)} linears in {bits} bits, {len(left) + others + experts} left as they are{told}: "
        f"{display.number('bytes', _bytes(folder))} in place of {display.number('bytes', language.stored(subject))}",
        f"outputs are off by {error:.2g} of their norm (at most {QUANTISED[to]})",
    ]
    if kept:
        notes.append(f"all {display.thousands(kept)} weights that were zero still are")
    if data is not None:
        notes.append(_quality(subject, again, data))
    return tuple(notes)


def _zeros_kept(subject: Transformer, student: Transformer, names: list[str]) -> int:
    """How many weights were zero; raises where one of them no longer is."""
    count = 0
    for name in names:
        before = subject.model.get_submodule(name).weight.detach()
        after = quantise.dense(student.model.get_submodule(name).weight.detach())
        if bool(after[before == 0].any()):
            raise NumericalError(f"{name} has weights that were zero and no longer are: its pattern is lost")
        count += int((before == 0).sum())
    return count


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _quality(original: Transformer, student: Transformer, data: Any) -> str:
    """What is measured of both on `data`, in one line."""
    place = language.where(original, None, None, None)
    corpus = language.fitted(language.read(data), original)
    before, after, both = language.compared(original, student, corpus, place)
    said = [
        f"{display.measure(name).label} {display.text(name, before[name])} -> {display.text(name, figure)}"
        for name, figure in after.items()
    ] + [f"{display.measure(name).label} {display.text(name, figure)}" for name, figure in both.items()]
    return "quality: " + ", ".join(said)
