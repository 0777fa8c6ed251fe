"""`secateur export`: other forms of a model, which function writes which, and what has to be checked of it."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur._utils.disk import writing
from secateur.data import texts
from secateur.errors import InputError, NumericalError, UnsupportedError
from secateur.formats import onnx_files
from secateur.measure import sparsity
from secateur.recover.quantization import quantise
from secateur.reports import display
from secateur.runs import places
from secateur.runs.backends import Data
from secateur.runs.backends.language import Language, stored_bytes
from secateur.runs.cards import write_export_card
from secateur.subjects import Traced, Transformer, matrices, open_streamed, open_subject
from secateur.subjects.network import pretrained
from secateur.subjects.network.opening import open_network
from secateur.subjects.transformer import blocks, dequantising, gguf_export, packing, quantised
from secateur.subjects.transformer import export as forms
from secateur.subjects.transformer.encoder_decoder import EncoderDecoder
from secateur.subjects.transformer.loading import count_bytes, locate
from secateur.subjects.transformer.origin import hash_folder
from secateur.subjects.transformer.streamed import Streamed

__all__ = ["FORMS", "QUANTISED", "export", "write"]

QUANTISED = {"int8": 0.05, "int4": 0.5}
"""How far outputs of quantised weights may be from the original's: norm of the difference by norm of the outputs."""


FORMS = ("onnx", "gguf", "decilm", "packed", "packed-int8", "masks", "int8", "int4")
"""What `export` writes."""


def export(
    folder: str | Path, to: str, out: str | Path | None = None, *, data: Data | None = None, stream: bool = False
) -> tuple[Path, tuple[str, ...]]:
    """Write the model or network in `folder` in another form, checked against its own output.

    - onnx: any model or network; gguf: language models of architectures that llama.cpp has, for it
    - decilm: Llama-shaped models, for inference engines
    - packed: without the zeros of its matrices, equal bit for bit; masks: what is not zero, one bit for each weight
    - int8, int4: weights of the blocks' matrices quantised, zeros kept; `QUANTISED` says how near outputs
      have to be, and with `data` quality is measured before and after
    - packed-int8: both, integers of 8 bits without their zeros

    With `stream` a language model stays on the disk and is packed or quantised a block at a time.

    Returns the new folder and notes on what the form could not hold as it was. Without `out` it is `folder`/`to`; of a
    GGUF file or a Hub id NAME-`to`, beside the file or here.

    Raises:
        InputError: no such form, `out` is there already, or nothing would get smaller.
        UnsupportedError: a form that can't hold this model.
        MissingExtraError: a library that writes this form is not installed.
        NumericalError: the export's output differs.
    """
    if to not in FORMS:
        raise InputError(f"{to!r} is no form to export to: choose {', '.join(FORMS[:-1])} or {FORMS[-1]}")
    if data is not None and "int" not in to:
        raise InputError(f"--data goes with int8, int4 and packed-int8: {to} changes no quality")
    if stream and (data is not None or not to.startswith(("int", "packed"))):
        what = f"in {to}" if data is None else "with --data, on which models are run whole"
        raise InputError(f"--stream goes with packed, packed-int8, int8 and int4, and not {what}")
    target = Path(out) if out is not None else _choose_target(Path(folder), to)
    if target.exists():
        raise InputError(f"{target} is there already: choose another folder, or remove it")
    places.refuse_other(folder, networks=True)
    subject = _open(folder, to, stream=stream)
    with writing(target) as temporary:
        notes = write(subject, temporary, to, data)
        if "int" in to and not Path(folder).is_file():  # a GGUF file is no base that adapters name
            quantised.record_source(temporary, hash_folder(locate(folder)))
        source = getattr(subject, "folder", None) or Path(folder)
        write_export_card(temporary, str(folder), source, to, notes, _load_line(temporary, to, target.name))
    return target, notes


def _choose_target(place: Path, to: str) -> Path:
    """Where the form `to` of the model at `place` goes: in its folder, or beside a file, or here for a Hub id.

    A folder called as a Hub id is would be taken for the model from then on.
    """
    if place.is_dir():
        return place / to
    return place.with_name(f"{place.stem}-{to}") if place.is_file() else Path(f"{place.name}-{to}")


def _load_line(folder: Path, to: str, name: str) -> str:
    """The lines of Python that load the form `to` in `folder`, which the reader knows as `name`."""
    if to == "onnx":
        return f'import onnxruntime\n\nsession = onnxruntime.InferenceSession("{name}/model.onnx")'
    if to == "gguf":
        return f'from llama_cpp import Llama\n\nmodel = Llama("{name}/model.gguf")'
    if to == "masks":
        return f'from safetensors.torch import load_file\n\nmasks = load_file("{name}/masks.safetensors")'
    return Language().load_line(folder, name)


def _open(folder: str | Path, to: str, *, stream: bool = False) -> object:
    """What is in `folder`: a subject, or the program of a network, which can be written as ONNX only."""
    if stream:
        return open_streamed(folder)
    if not (Path(folder) / "cut.json").is_file():
        if "int" in to and pretrained.is_pretrained(folder) and pretrained.find_gguf(folder) is None:
            dequantising.refuse_twice(locate(folder))
        return _open_model(folder, to)
    if to != "onnx":
        raise UnsupportedError(_ONNX_ALONE.format(folder=folder, to=to))
    return onnx_files.load_program(folder)


_ONNX_ALONE = "{folder} holds a network, which {to} can't hold: choose onnx"


def _open_model(folder: str | Path, to: str) -> Transformer | Traced:
    """A language model, or as a network what reads no texts, and for ONNX what no family of theirs fits."""
    if pretrained.reads_texts(folder):
        try:
            subject = open_subject(folder)
        except UnsupportedError:
            if to != "onnx" or not pretrained.is_pretrained(folder):
                raise
        else:
            if to != "onnx" or not isinstance(subject, EncoderDecoder):  # which are written as one pass of both
                return subject
    elif to != "onnx":
        raise UnsupportedError(_ONNX_ALONE.format(folder=folder, to=to))
    return open_network(str(folder))


def write(
    subject: Transformer | Any, folder: Path, to: str, data: Data = None, bound: float | None = None
) -> tuple[str, ...]:
    """Write `subject` into `folder`, in the form `to`; returns notes. See `export`.

    bound: how far outputs of quantised weights may be from the subject's; by `QUANTISED` if None.
    """
    folder.mkdir(exist_ok=True)
    if isinstance(subject, Streamed):
        return _write_streamed(subject, folder, to)
    if isinstance(subject, Traced):
        return _write_network(subject, folder)
    if not isinstance(subject, Transformer):
        return onnx_files.write_program(subject, folder / "model.onnx")
    if to == "onnx":
        return forms.to_onnx(subject, folder)
    if to == "gguf":
        return gguf_export.to_gguf(subject, folder)
    if to == "decilm":
        return forms.to_decilm(subject, folder)
    if to == "packed":
        return packing.save_packed(subject, folder)
    if to == "masks":
        return _write_masks(subject, folder)
    return _write_quantised(subject, folder, to, data, QUANTISED[f"int{_bits(to)}"] if bound is None else bound)


def _write_network(subject: Traced, folder: Path) -> tuple[str, ...]:
    """As ONNX in float32, as example inputs are given; a model of transformers with its config and processors."""
    if not pretrained.is_model(subject.model):
        return onnx_files.write_module(subject.model.float(), *subject.inputs.fresh(), folder / "model.onnx")
    notes = forms.network_to_onnx(subject, folder)
    home = pretrained.find_home(subject)
    if home is not None:
        pretrained.copy_beside(home, folder)
    return notes


def _write_masks(subject: Transformer, folder: Path) -> tuple[str, ...]:
    weights = matrices.matrices(subject.model, subject.layers())
    packing.save_masks(matrices.masks_of(weights), folder / "masks.safetensors")
    share = sparsity.zeros({name: matrix.weight for name, matrix in weights.items()})
    return (f"{len(weights)} matrices, {display.number('zeros', share)} of their weights zero",)


def _write_quantised(subject: Transformer, folder: Path, to: str, data: Data, bound: float) -> tuple[str, ...]:
    """Quantise a copy, write it, read it reopened, and compare all three."""
    bits = _bits(to)
    kinds, left = _choose_matrices(subject, bits)
    if to == "int8" and set(kinds.values()) == {_LINEARS}:
        model = copy.deepcopy(subject.model)
        _, left = quantise.weight_only(model, bits, within=subject.layers())
        student, notes = quantised.with_model(subject, model), tuple[str, ...]()
        quantised.save_int8(student, folder, quantise.config(bits), list(left))
    else:
        student = subject.copy()
        _round_weights(matrices.matrices(student.model, student.layers()), kinds, bits)
        notes = _write_integers(subject, folder, to, kinds, left)
    whole = matrices.matrices(subject.model, subject.layers())
    rounded = matrices.matrices(student.model, student.layers())
    kept = sum(_count_zeros(name, whole[name].weight, one.view(quantise.dense(one.parameter).detach()))
               for name, one in rounded.items() if name in kinds)  # fmt: skip
    reopened = open_subject(folder, quantised=True)
    example = subject.example(4, 16)
    with torch.inference_mode():
        wanted, quick, read = (one.forward(example).prediction.float() for one in (subject, student, reopened))
    lost = ((read - quick).norm() / quick.norm()).item()
    if not lost <= onnx_files.TOLERANCE:
        raise NumericalError(f"the {to} export reads back with outputs off by {lost:.2g}: it is not usable")
    lines = (
        *_describe_integers(subject, folder, to, kinds, left),
        *notes,
        *_check_outputs(to, wanted, quick, kept, bound),
    )
    return lines if data is None else (*lines, _describe_quality(subject, reopened, data))


def _write_streamed(subject: Streamed, folder: Path, to: str) -> tuple[str, ...]:
    """Write a model that stays on the disk; one block at a time is run as it was and as it then is."""
    if to == "packed":
        return packing.save_packed(subject, folder)
    bits = _bits(to)
    kinds, left = _choose_matrices(subject, bits)
    notes = _write_integers(subject, folder, to, kinds, left)
    example, count = subject.example(4, 16), len(subject.layers())
    outputs, kept = list[Tensor](), 0
    for rounding in (False, True):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            for block in blocks.visit(subject, [example], Path(place), store=False):
                if rounding:
                    before = {name: one.weight.clone() for name, one in block.matrices.items() if name in kinds}
                    _round_weights(block.matrices, kinds, bits)
                    kept += sum(_count_zeros(name, one, block.matrices[name].weight) for name, one in before.items())
            (states,) = blocks.states(Path(place), count)
        with subject.resident():
            outputs.append(blocks.run_ends(subject, example, states).logits.float())
    return (
        *_describe_integers(subject, folder, to, kinds, left),
        *notes,
        *_check_outputs(to, outputs[0], outputs[1], kept, QUANTISED[f"int{bits}"]),
    )


def _bits(to: str) -> int:
    return 4 if to == "int4" else 8


_LINEARS, _CONV1D, _EXPERTS = "linears", "Conv1D", "matrices of packed experts"


def _choose_matrices(subject: Transformer | Streamed, bits: int) -> tuple[dict[str, str], dict[str, str]]:
    """(matrix of the blocks that can have `bits` -> what it is, linear that stays as it is -> why)."""
    quantise.check(subject.model)
    chosen, left = dict[str, str](), dict[str, str]()
    for name, matrix in matrices.matrices(subject.model, subject.layers()).items():
        if matrix.expert is not None and matrix.turned:
            left[matrix.module] = "its tensors have inputs before outputs"
            continue
        reason = quantise.unfit(matrix.parameter.shape[-1], bits)
        if reason and matrix.expert is not None:  # transformers reads those of a layer all packed, or all plain
            raise UnsupportedError(f"{matrix.leaf}: {reason}, and experts can't stay as they are: choose int8")
        if reason:
            left[matrix.module] = reason
        else:
            chosen[name] = _EXPERTS if matrix.expert is not None else _CONV1D if matrix.turned else _LINEARS
    if not chosen:
        why = next((f" ({name}: {reason})" for name, reason in left.items()), "")
        raise InputError(f"the model has no matrix to quantise in {bits} bits{why}")
    for name, module in subject.model.named_modules():
        if isinstance(module, nn.Linear) and f"{name}.weight" not in chosen:
            left.setdefault(name, "no matrix of the blocks")
    return chosen, left


def _round_weights(chosen: Mapping[str, matrices.Matrix], kinds: Collection[str], bits: int) -> None:
    """Let matrices be what their integers stand for, in place, each by its rows as it is stored."""
    for name, matrix in chosen.items():
        if name in kinds:
            stored = matrix.parameter.detach()
            stored = stored if matrix.expert is None else stored[matrix.expert]
            stored.copy_(quantise.dense(quantise.integers(stored, bits)))


def _write_integers(
    subject: Transformer | Streamed, folder: Path, to: str, kinds: Mapping[str, str], left: Collection[str]
) -> tuple[str, ...]:
    """Save the model, and make integers of its matrices in the files; returns notes."""
    subject.save(folder)
    leaves = dict.fromkeys(name.partition("[")[0] for name in kinds)
    names = quantised.find_weights(subject.model, leaves, folder)
    integers = partial(quantise.integers, bits=_bits(to))
    if to == "packed-int8":
        return packing.pack(folder, subject.model.config, names, integers)
    dense = set(kinds.values()) != {_LINEARS}
    quantised.pack(folder, names, list(left), _bits(to), integers, dense=dense)
    return ("transformers makes floats of them as it loads: disk and transfer are saved, no memory",) if dense else ()


def _describe_integers(
    subject: Transformer | Streamed, folder: Path, to: str, kinds: Mapping[str, str], left: Collection[str]
) -> tuple[str, ...]:
    """What has become integers, and what that saves."""
    counts = [(list(kinds.values()).count(kind), kind) for kind in (_LINEARS, _CONV1D, _EXPERTS)]
    named = " and ".join(f"{count} {kind}" for count, kind in counts if count)
    before = (
        stored_bytes(subject) if isinstance(subject, Transformer)
        else float(sum(parameter.nbytes for parameter in subject.model.parameters()))
    )  # fmt: skip
    sizes = f"{display.number('bytes', count_bytes(folder))} in place of {display.number('bytes', before)}"
    return (f"{named} in {_bits(to)} bits, {len(left)} left as they are: {sizes}",)


def _count_zeros(name: str, before: Tensor, after: Tensor) -> int:
    """How many weights were zero; raises where one of them no longer is."""
    if bool(after[before == 0].any()):
        raise NumericalError(f"{name} has weights that were zero and no longer are: its pattern is lost")
    return int((before == 0).sum())


def _check_outputs(to: str, wanted: Tensor, quick: Tensor, kept: int, bound: float) -> tuple[str, ...]:
    """How far outputs are off, and how many zeros there are; raises where they are off too far."""
    error = ((quick - wanted).norm() / wanted.norm()).item()
    if not error <= bound:
        raise NumericalError(
            f"in {to} the outputs are off by {error:.2g} of their norm, more than {bound}: keep more bits, or "
            "train in integers: secateur distill --bits"
        )
    zeros = (f"all {display.thousands(kept)} weights that were zero still are",) if kept else ()
    limit = f" (at most {bound})" if math.isfinite(bound) else ""
    return (f"outputs are off by {error:.2g} of their norm{limit}", *zeros)


def _describe_quality(original: Transformer, student: Transformer, data: Data) -> str:
    """What is measured of both on `data`, in one line."""
    backend = Language()
    corpus = backend.fit_data(backend.read(texts.take_rows(data)), original)
    environment = backend.environment(original, None, None, None)
    before, after, both = backend.compare(original, student, corpus, environment)
    figures = [
        f"{display.measure(name).label} {display.text(name, before[name])} -> {display.text(name, figure)}"
        for name, figure in after.items()
    ] + [f"{display.measure(name).label} {display.text(name, figure)}" for name, figure in both.items()]
    return "quality: " + ", ".join(figures)
