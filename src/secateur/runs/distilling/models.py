"""Open students and teachers, find what each outputs, and refuse pairs that cannot be compared."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from secateur._utils import devices, distributed, modes
from secateur._utils.finite import all_finite
from secateur.data.texts import Corpus
from secateur.errors import InputError, ModelError, UnsupportedError
from secateur.methods.distillation import OWN_DIRECTIONS, own_direction
from secateur.methods.predictions import tells_masked
from secateur.recover.distillation import teachers
from secateur.recover.quantization import packed, quantise
from secateur.runs import backends
from secateur.runs.backends import AnyBackend, Data
from secateur.runs.backends.language import check_documents, classifies, classifies_tokens
from secateur.runs.backends.network import Network
from secateur.runs.distilling.settings import Settings
from secateur.subjects import Traced, Transformer, matrices, open_subject
from secateur.subjects.network import traced
from secateur.subjects.transformer import low_rank, quantised

__all__ = [
    "Learner", "Model", "as_transformer", "check_chain", "check_classes", "check_kind", "check_lengths", "check_output",
    "check_packing", "gives_rows", "gives_tokens", "load_weights", "open_student", "open_teacher",
]  # fmt: skip

Model: TypeAlias = str | Path | nn.Module | Transformer | Traced
Learner: TypeAlias = Transformer | Traced


def open_teacher(
    backend: AnyBackend, model: Model, device: str | None, data: Data, like: Learner, bits: int = 0
) -> Learner:
    """A teacher as a subject, on a device or, for "auto", split over all there are and the memory of the host.

    Networks take the inputs of the student they are `like`. bits: of its linears, which are packed before it is moved;
    0 leaves them as they are. Raises `UnsupportedError` for networks that are to be split or packed.
    """
    backends.check_source(backend, model, "distill")
    if not isinstance(like, Transformer):
        if bits or device == "auto":
            raise UnsupportedError("teachers of networks stay whole and as they are: leave teacher-bits and auto out")
        found = cast(Traced, backend.reopen(model, like, device))
        _check_finite(found.model, backends.name_source(model))
        return found if device is None or _lies_on(found.model, device) else _move(found.copy(), device)
    if device == "auto":
        if not isinstance(model, str | Path) or bits:
            raise InputError("a teacher is split as it is read from its folder, and not packed: leave one of them out")
        return open_subject(model, device_map=device, quantised=True)
    source = model
    if isinstance(model, str | Path):
        source = open_subject(model, quantised=True)
        packed.adopt(source.model)
    stays = _is_offloaded(model)
    if stays and bits:
        raise UnsupportedError(
            "the teacher is offloaded, and only weights in memory are packed: leave teacher-bits out, or open it "
            "without device_map"
        )
    teacher = cast(Transformer, backend.open(source, None if bits or stays else device, data))
    if bits:
        teacher = teacher if isinstance(model, str | Path) else teacher.copy()
        packed.pack(teacher.model, bits, within=teacher.layers())
        teacher = cast(Transformer, backend.open(teacher, device, data))
    return teacher


def open_student(
    backend: AnyBackend, model: Model, device: str | None, data: Data, like: Learner | None = None
) -> Learner:
    """A subject to be trained, with weights of its own: what was given stays as it is.

    like: the student, where this is an assistant on the way to it.
    """
    if like is not None and not isinstance(like, Transformer):
        source = model if isinstance(model, str | Path) else copy.deepcopy(getattr(model, "model", model))
        return open_teacher(backend, source, device, data, like)
    backends.check_source(backend, model, "distill")
    if isinstance(backend, Network) and device == "auto":
        raise UnsupportedError("device 'auto' splits folders of transformers: name one for networks, such as cuda")
    subject = backend.open_whole(model, device, data)
    if not isinstance(subject, Transformer | Traced):
        raise UnsupportedError(f"distill teaches language models and networks, and no {backend.family}")
    if isinstance(subject, Transformer) and isinstance(model, str | Path):
        return subject
    return _move(subject.copy(), device)


def _lies_on(model: nn.Module, device: str) -> bool:
    wanted = torch.device(device)
    held = () if devices.is_fixed(model) else itertools.chain(model.parameters(), model.buffers())
    places = {tensor.device for tensor in held if not tensor.is_meta} | {devices.find_device(model)}
    return all(there.type == wanted.type and wanted.index in (None, there.index) for there in places)


def _move(subject: Learner, device: str | None) -> Learner:
    """A network of our own on a device; a transformer was opened there."""
    if isinstance(subject, Traced) and device is not None:
        modes.move_to_device(subject.model, device)
    return subject


def _check_finite(model: nn.Module, teacher: str) -> None:
    """Raise `ModelError` for NaN or infinity in a weight of a teacher: what it predicts would not say where from."""
    for name, parameter in model.named_parameters():
        if not parameter.is_meta and not all_finite(parameter):
            raise ModelError(f"{name} of the teacher {teacher} holds NaN or infinity: use an intact one")


def load_weights(subject: Learner, weights: str | Path) -> Learner:
    """The network with the weights in a file, or as it was cut in the folder `weights`."""
    if not isinstance(subject, Traced):
        raise InputError("weights are of networks that a function builds: name the folder of this model instead")
    if Path(weights).is_dir():
        return traced.reload_traced(weights, subject.model, subject.inputs)
    _load(subject.model, Path(weights))
    return subject


def _load(model: nn.Module, file: Path) -> None:
    try:
        model.load_state_dict(load_file(file))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"weights {file} can't be read as safetensors ({error}): give such a file") from error
    except RuntimeError as error:
        line = str(error).splitlines()[-1].strip()
        raise ModelError(f"weights {file} are of another network: {line}") from error


def as_transformer(subject: Learner) -> Transformer:
    """A subject that reads texts. Raises `UnsupportedError` for a network, which reads none."""
    if isinstance(subject, Transformer):
        return subject
    raise UnsupportedError(f"{type(subject.model).__name__} reads no texts")


def gives_rows(subject: Learner) -> bool:
    """Whether it gives one row for each text, which teachers of any tokenizer can be held against."""
    return isinstance(subject, Transformer) and (subject.output == "embedding" or classifies(subject))


def gives_tokens(subject: Learner) -> bool:
    """Whether it predicts tokens, next or masked."""
    return isinstance(subject, Transformer) and (subject.causal or tells_masked(subject))


def check_kind(settings: Settings, student: Learner, several: bool, data: Data = None) -> None:
    """Refuse options that this kind of student can't follow, on this data."""
    tokens = gives_tokens(student)
    if isinstance(student, Transformer):
        lacks_words = classifies_tokens(student) and getattr(data, "tagged", None) is None
        _refuse({
            "server and on-policy are about the next token: they serve language models":
                not student.causal and (settings.server or settings.on_policy),
            f"cache={settings.cache} keeps the likeliest tokens, and this student tells none: say cache=all, which "
            "keeps all that its teacher says": not tokens and settings.tokens,
            "buckets are of classes and tokens, and this student tells none: leave them out":
                student.output != "logits" and settings.buckets,
            "embeddings and states of several teachers have no mean: name one teacher":
                student.output != "logits" and several,
            "align compares next or masked tokens, and classes, numbers and embeddings of texts, and this student "
            "gives none of them: leave align out": settings.align and not (tokens or gives_rows(student)),
            "task of a token classifier needs labels of words, in `ner_tags` or `labels` beside the words in `tokens`, "
            "and the data has none: leave task out": settings.task and lacks_words,
        })  # fmt: skip
    else:
        _refuse({
            "server and on-policy are about the next token: they serve language models":
                settings.server or settings.on_policy,
            f"cache={settings.cache} keeps the likeliest tokens, and this student tells none: say cache=all, which "
            "keeps all that its teacher says": settings.tokens,
            "hidden states of networks are not compared here: leave hidden out": settings.hidden,
            "a network that was cut to masks would fill them in training: use the recipe that made it": student.masks,
            "align compares next or masked tokens, and classes, numbers and embeddings of texts, and this student "
            "gives none of them: leave align out": settings.align,
        })  # fmt: skip
    if settings.align and tokens and settings.direction != "forward":
        raise InputError("align serves forward KL of tokens: leave direction out")
    if settings.bits:
        _check_bits(student, settings.bits)


def check_packing(settings: Settings, data: Data, *others: Sequence[Learner]) -> None:
    """Refuse chats, their answers and packed documents where texts are read in another way than they are learned in.

    data: before it was fitted to the student. others: whoever reads the same batches as the student does.
    """
    if not isinstance(data, Corpus):
        return
    _refuse({
        "align lets each teacher read the texts for itself, and a chat is written out for one tokenizer: leave align "
        "out, or give texts": settings.align and data.form == "chat",
        "on-policy picks its own prompts from the start of each sequence: leave completion-only out":
            settings.on_policy and data.completion_only,
        "packing=documents is of texts that are read as they are packed: leave align, on-policy and server out":
            data.packing == "documents" and (settings.align or settings.on_policy or settings.server),
    })  # fmt: skip
    if data.packing == "documents":
        for model in itertools.chain(*others):
            check_documents(as_transformer(model))


def _refuse(reasons: Mapping[str, object]) -> None:
    """Raise `UnsupportedError` with the first of the reasons that holds."""
    for reason, holds in reasons.items():
        if holds:
            raise UnsupportedError(reason)


def _check_bits(student: Learner, bits: int) -> None:
    """Refuse a student whose matrices are not all linears that torchao can round as they train."""
    if not isinstance(student, Transformer):
        raise UnsupportedError("bits are of models that learn from texts: of networks, use the recipe gpusq_vit")
    found = matrices.matrices(student.model, student.layers())
    other = next((name for name, matrix in found.items() if matrix.turned or matrix.expert is not None), None)
    if other is not None:
        raise UnsupportedError(f"{other} is in no linear, which are what is rounded in training: quantise by `export`")
    if low_rank.find_branches(student.model):
        raise UnsupportedError("a student with branches beside its linears is quantised by `export`: leave bits out")
    quantise.check(student.model)
    quantise.linears(student.model, bits, student.layers())
    quantise.torchao()
    if bits < 8:
        quantised.require_library()


def check_chain(
    student: Learner, between: Sequence[Learner], above: Sequence[Learner], align: bool, apart: bool = False
) -> None:
    """Refuse a teacher and a learner that can't be compared; with `align`, whatever their tokenizers are.

    apart: teachers may lie on another device, or on several.
    """
    named = [("student", student), *(("assistant", one) for one in between), *(("teacher", one) for one in above)]
    for name, one in named:
        _check_place(name, one.model)
    fixed = devices.is_fixed(student.model)
    for name, one in named[1:]:
        ours, theirs = (devices.find_device(model) for model in (student.model, one.model))
        if ours != theirs and not (name == "teacher" and (apart or _lies_apart(one.model))):
            able = [] if fixed else [f"device={ours}"]
            able += [f"teacher-device={ours if fixed else theirs}"] if name == "teacher" else []
            words = f"say {' or '.join(able)}" if able else "bring it there"
            raise InputError(f"the student is on {ours} and its {name} on {theirs}: {words}")
        if isinstance(student, Transformer) and isinstance(one, Transformer):
            _check_pair(student, one, name, align)


def check_lengths(
    backend: AnyBackend, student: Learner, between: Sequence[Learner], above: Sequence[Learner], length: int
) -> list[str]:
    """Refuse sequences beyond the table of positions of whoever reads them; notes on those beyond rotary ones' own.

    Raises `InputError`.
    """
    named = [("student", student), *(("assistant", one) for one in between), *(("teacher", one) for one in above)]
    notes = list[str]()
    for name, one in named:
        asked = {"length": length} if isinstance(one, Transformer) else {}
        try:
            backend.check(one, asked)
        except InputError as error:
            raise InputError(f"the {name}: {error}") from error
        notes += [f"the {name}: {note}" for note in backend.note_lengths(one, asked)]
    return list(dict.fromkeys(notes))


def _lies_apart(model: nn.Module) -> bool:
    """Whether a teacher stays where it lies: Accelerate brings along what is elsewhere, weights too."""
    return devices.is_fixed(model) or devices.is_offloaded(model)


def _is_offloaded(model: Model) -> bool:
    module = model.model if isinstance(model, Transformer | Traced) else model
    return isinstance(module, nn.Module) and devices.is_offloaded(module)


def _check_place(name: str, model: nn.Module) -> None:
    if name == "teacher" and _lies_apart(model):
        return
    places = sorted({str(parameter.device) for parameter in model.parameters()})
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters() if not p.is_floating_point()})
    if devices.find_offloaded(model):
        raise UnsupportedError(
            f"the {name} is offloaded, and what is trained is in memory: open it without device_map; only a teacher "
            "may be"
        )
    if "meta" in places:
        raise InputError(f"the {name} has parameters without values (device meta): load its weights")
    if len(places) > 1:
        where = f"the {name} lies on {' and '.join(places)}"
        if not devices.is_fixed(model):
            raise InputError(f"{where}, and nothing brings its states along: open it with device_map")
        if distributed.count() > 1:
            raise UnsupportedError(f"{where}, and one process trains it: start a single one")
    if kinds:
        raise InputError(f"the {name} has weights of type {kinds[0]}: give it in floating point")


def _check_pair(student: Transformer, teacher: Transformer, name: str, align: bool) -> None:
    check_output(student, teacher, "the student", f"its {name}")
    if align and teacher.tokenizer is None:
        raise InputError(
            f"the {name} comes without a tokenizer, and its texts are to be aligned: give one that has one"
        )
    if teacher.tokenizer is not None and not align:
        try:
            teachers.check_tokens(student, teacher)
        except InputError as error:
            able = gives_tokens(student) or gives_rows(student)
            raise InputError(f"{error}{', or let each read for itself (align)' if able else ''}") from error
    check_classes(student, teacher, "the student", f"its {name}")


def check_output(student: Transformer, teacher: Transformer, us: str, them: str) -> None:
    """Refuse two of which one tells next tokens, classes or embeddings, and the other another of them."""
    if (student.output, student.causal) != (teacher.output, teacher.causal):
        ours, theirs = (f"next tokens ({type(one.model).__name__})" if one.causal else f"{one.output} "
                        f"({type(one.model).__name__})" for one in (student, teacher))  # fmt: skip
        raise InputError(f"{us} gives {ours} and {them} {theirs}: open both with the same head")


def check_classes(student: Transformer, teacher: Transformer, us: str, them: str) -> None:
    """Refuse two of other classes, by number or by name; nothing of what tells no classes."""
    if student.output != "logits" or gives_tokens(student):
        return
    ours, theirs = (one.model.config for one in (student, teacher))
    if ours.num_labels != theirs.num_labels:
        raise InputError(
            f"{us} has {ours.num_labels} classes and {them} {theirs.num_labels}: use models of the same ones"
        )
    kinds = [own_direction(one) for one in (student, teacher)]
    if kinds[0] != kinds[1]:
        first, second = (OWN_DIRECTIONS.get(kind, "classes of which one holds") for kind in kinds)
        raise InputError(
            f"{us} tells {first}, and {them} {second} (problem_type in config.json): use models of the same kind"
        )
    given = [{number: str(label) for number, label in one.id2label.items()} for one in (ours, theirs)]
    if any(label.startswith("LABEL_") for labels in given for label in labels.values()):
        return  # numbers only
    number = next((number for number in given[0] if given[0][number] != given[1].get(number)), None)
    if number is not None:
        raise InputError(
            f"class {number} is {given[0][number]!r} for {us} and {given[1].get(number)!r} for {them}: use models of "
            "the same classes"
        )
