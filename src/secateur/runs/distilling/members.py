"""Who is in the chain of teaching: how each is opened, what it tells, and which of them can't be held together."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from secateur.errors import InputError, ModelError, UnsupportedError
from secateur.recover.distillation import teachers
from secateur.recover.quantization import quantise
from secateur.runs import backends
from secateur.runs.backends import Trade, language
from secateur.runs.distilling.lessons import Lesson
from secateur.subjects import Traced, Transformer, matrices
from secateur.subjects.network import traced
from secateur.subjects.transformer import low_rank, quantised

__all__ = [
    "Model",
    "check_chain",
    "check_classes",
    "check_kind",
    "check_output",
    "learner",
    "masked",
    "of_tokens",
    "of_whole_texts",
    "opened",
    "weighted",
]

Model: TypeAlias = str | Path | nn.Module | Transformer | Traced


def opened(trade: Trade, model: Model, device: str | None, data: Any, like: Any = None) -> Any:
    """A teacher as a subject; networks take the inputs of the student they are `like`."""
    backends.match(trade, model, "distill")
    return trade.opened(model, device, data) if trade is language else trade.again(model, like, device)


def learner(trade: Trade, model: Model, device: str | None, data: Any, like: Any = None) -> Any:
    """A subject to be trained, with weights of its own: what was given stays as it is."""
    if like is None:
        backends.match(trade, model, "distill")
        if trade is not language and device not in (None, "cpu"):
            words = "networks are taught on a GPU that is there, and judged on the CPU: leave the device out"
            raise UnsupportedError(f"device {device!r}: {words}")
        found = trade.opened(model, device, data)
        return found if trade is language and isinstance(model, str | Path) else found.copy()
    given = model if isinstance(model, str | Path) else copy.deepcopy(getattr(model, "model", model))
    found = opened(trade, given if trade is not language else model, device, data, like)
    return found.copy() if trade is language and not isinstance(model, str | Path) else found


def weighted(subject: Any, weights: str | Path) -> Any:
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


def of_whole_texts(trade: Trade, subject: Any) -> bool:
    """Whether it tells one row for each text, which teachers of any tokenizer can be held against."""
    return trade is language and (subject.output == "embedding" or language.classifies(subject))


def masked(subject: Transformer) -> bool:
    """Whether it tells tokens that are hidden from it."""
    return type(subject.model).__name__.endswith("ForMaskedLM")


def of_tokens(subject: Transformer) -> bool:
    """Whether it tells tokens, next or masked."""
    return subject.causal or masked(subject)


def check_kind(trade: Trade, lesson: Lesson, pupil: Any, several: bool, data: Any = None) -> None:
    """Refuse options that this kind of student can't follow, on this data."""
    texts_ = trade is language
    causal = texts_ and pupil.causal
    tokens = texts_ and of_tokens(pupil)
    wrong = {
        "server and on-policy are about the next token: they serve language models": not causal
        and bool(lesson.server or lesson.on_policy),
        f"cache={lesson.cache} keeps the likeliest tokens, and this student tells none: say cache=all, which keeps all "
        "that its teacher says": not tokens and bool(lesson.tokens),
        "hidden states of networks are not compared here: leave hidden out": not texts_ and lesson.hidden,
        "buckets are of classes and tokens, and this student tells none: leave them out": texts_
        and pupil.output != "logits"
        and bool(lesson.buckets),
        "embeddings and states of several teachers have no mean: name one teacher": texts_
        and pupil.output != "logits"
        and several,
        "a network that was cut to masks would fill them in training: use the recipe that made it": not texts_
        and bool(pupil.masks),
        "align compares next or masked tokens, and classes, numbers and embeddings of texts, and this student gives "
        "none of them: leave align out": lesson.align and not (tokens or of_whole_texts(trade, pupil)),
        "task of a token classifier needs labels of words, in `ner_tags` or `labels` beside the words in `tokens`, and "
        "the data has none: leave task out": texts_
        and bool(lesson.task)
        and language.classifies_tokens(pupil)
        and getattr(data, "tagged", None) is None,
    }
    for words, holds in wrong.items():
        if holds:
            raise UnsupportedError(words)
    if lesson.align and tokens and lesson.direction != "forward":
        raise InputError("align serves forward KL of tokens: leave direction out")
    if lesson.bits:
        _check_bits(pupil, lesson.bits)


def _check_bits(pupil: Any, bits: int) -> None:
    """Refuse a student whose matrices are not all linears that torchao can round as they train."""
    if not isinstance(pupil, Transformer):
        raise UnsupportedError("bits are of models that learn from texts: of networks, use the recipe gpusq_vit")
    found = matrices.matrices(pupil.model, pupil.layers())
    other = next((name for name, one in found.items() if one.turned or one.expert is not None), None)
    if other is not None:
        raise UnsupportedError(f"{other} is in no linear, which are what is rounded in training: quantise by `export`")
    if low_rank.find_branches(pupil.model):
        raise UnsupportedError("a student with branches beside its linears is quantised by `export`: leave bits out")
    quantise.check(pupil.model)
    quantise.linears(pupil.model, bits, pupil.layers())
    quantise.torchao()
    if bits < 8:
        quantised.require_library()


def check_chain(trade: Trade, pupil: Any, between: Sequence[Any], masters: Sequence[Any], align: bool) -> None:
    """Refuse a teacher and a learner that can't be compared; with `align`, whatever their tokenizers are."""
    named = [("student", pupil), *(("assistant", one) for one in between), *(("teacher", one) for one in masters)]
    for name, one in named:
        _check_place(name, one.model)
    for name, one in named[1:]:
        ours, theirs = (next(model.parameters()).device for model in (pupil.model, one.model))
        if ours != theirs:
            raise InputError(
                f"the student is on {ours} and its {name} on {theirs}: say device={ours}, or bring them there"
            )
        if trade is language:
            _check_pair(pupil, one, name, align)


def _check_place(name: str, model: nn.Module) -> None:
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters() if not p.is_floating_point()})
    if "meta" in devices:
        raise InputError(f"the {name} has parameters without values (device meta): load its weights")
    if len(devices) > 1:
        raise InputError(f"the {name} lies on {' and '.join(devices)}: bring it to one device")
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
            able = of_tokens(student) or of_whole_texts(language, student)
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
    if student.output != "logits" or of_tokens(student):
        return
    ours, theirs = (one.model.config for one in (student, teacher))
    if ours.num_labels != theirs.num_labels:
        raise InputError(
            f"{us} has {ours.num_labels} classes and {them} {theirs.num_labels}: use models of the same ones"
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
