"""A student taught by its teachers, without a recipe: opened, checked, trained, measured, saved. `secateur distill`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import torch
from accelerate.utils import send_to_device
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur.errors import DataError, InputError, MeasurementError, ModelError, UnsupportedError
from secateur.files import examples, masking, texts
from secateur.files.examples import Examples
from secateur.files.rundir import Run, guard, locked
from secateur.llms import Server
from secateur.measure import environment, evidence, latency, loyalty, quality, size, statistics
from secateur.modes import evaluating
from secateur.recover import (
    alignment,
    assistants,
    ensembles,
    loop,
    losses,
    matching,
    objectives,
    policy,
    slimming,
    taps,
    teachers,
)
from secateur.running import configs, language, publish_evidence, trades
from secateur.running.trades import Trade
from secateur.served import cache_served
from secateur.subjects import Traced, Transformer, traced
from secateur.vocabulary import Evidence, Figure, Recovery

__all__ = ["configured", "distill"]

Model: TypeAlias = str | Path | nn.Module | Transformer | Traced
Data: TypeAlias = str | Path | Sequence[str] | texts.Corpus | Examples
Row = dict[str, Figure]

_BETA = {"forward": 0.0, "js": 0.5, "reverse": 1.0}
"""Directions of on-policy distillation, as the beta of its divergence."""
_NEARER = (
    "shared_kl", "shared_probability_loyalty", "shared_label_loyalty", "served_label_loyalty", "probability_loyalty",
    "label_loyalty", "rmse", "spearman", "cosine", "accuracy", "perplexity",
)  # fmt: skip
"""What says whether a student came nearer to its teachers, the first that was measured."""
_LESS = ("perplexity", "shared_kl", "rmse")
"""Of these, less is nearer."""
_BATCHES = 24
"""Held-out batches on which aligned teachers are compared."""
_ASKED_AT_ONCE = 4
"""Batches of training that a teacher reads at a time where nothing is trained meanwhile."""
_HEARD = 64
"""Held-out sequences of which a server is asked what it would say."""
_SERVED = 20
"""Likeliest tokens that a server is asked for, unless told otherwise."""


@dataclass(frozen=True)
class _Lesson:
    """How each link of the chain is taught; see `distill`."""

    steps: int
    lr: float
    batch: int
    length: int
    temperature: float
    direction: str
    task: float
    hidden: bool
    shares: tuple[float, ...]
    choice: Literal["", "label", "confidence"]
    cache: int | Literal["all"]
    on_policy: float
    prompt: int
    server: str
    align: bool
    match: tuple[str, ...]
    match_index: tuple[int, ...]
    match_loss: str
    match_weight: tuple[float, ...]
    match_balance: bool
    skew: float
    buckets: tuple[int, ...]
    warm_up: Mapping[str, float]
    training: Mapping[str, Any]
    seed: int

    @property
    def tokens(self) -> int:
        """How many tokens at each place a cache keeps; 0 where there is none, or it keeps all."""
        return 0 if self.cache == "all" else self.cache


def distill(
    student: Model,
    teachers: Model | Sequence[Model],
    data: Data,
    out: str | Path,
    *,
    shares: Sequence[float] | None = None,
    choice: Literal["", "label", "confidence"] = "",
    assistants: Sequence[Model] = (),
    weights: str | Path = "",
    server: str = "",
    align: bool = False,
    steps: int = 1000,
    lr: float = 1e-4,
    batch: int = 16,
    length: int = 128,
    temperature: float = 1.0,
    direction: str = "forward",
    task: float = 0.0,
    skew: float = 0.0,
    buckets: Sequence[int] = (),
    hidden: bool = False,
    match: str | Sequence[str] = (),
    match_index: Sequence[int] = (),
    match_loss: str = "mse",
    match_weight: float | Sequence[float] = (),
    match_balance: bool = False,
    warm_up: str | Mapping[str, float] = "",
    cache: int | Literal["all"] = 0,
    cache_at: str | Path = "",
    on_policy: float = 0.0,
    prompt: int = 16,
    training: str | Mapping[str, Any] = "",
    seed: int = 0,
    device: str | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
) -> Evidence:
    """Train `student` to answer as its teachers do; the model, evidence and a report stand in `out`.

    The same call again resumes. Language models, encoders and classifiers of transformers learn from texts; other
    networks, given as "file.py:function" or modules, learn from examples, by one row of classes per example.

    Args:
        student: a folder, a Hub id, or what `open_subject` gives; for networks a module, or the name of a function that
            builds one. It stays as it is; a copy learns.
        teachers: the original, or several. They have to read the student's tokens, unless they are aligned, and give
            the same classes.
        data: texts, or for networks examples; a part of them is held out to measure on.
        out: the run directory.
        shares: of several teachers in the mean of their predictions; equal ones unless given.
        choice: in place of the mean, the teacher that knows a sample's label best ("label"), or that is surest of its
            own ("confidence"), answers for it.
        assistants: models of sizes between, from the largest down: each is taught by the one before, and the last
            teaches the student. They stay as they are.
        weights: of a network that its function builds: a .safetensors file, or the folder of one that was cut from it.
        server: address of an OpenAI-compatible server that has the teacher, which is then its model's name there.
        align: the teachers read texts with tokenizers of their own. Of language models, what they say after the same
            characters is compared, over the tokens that both have; of classifiers and encoders, their rows for a text.
        steps: of training, for each assistant, too.
        lr: peak learning rate.
        batch: sequences or examples per step.
        length: tokens per sequence.
        temperature: of both predictions.
        direction: forward or reverse KL, js, mse or cosine on the logits.
        task: weight of cross-entropy beside it: of the next token, of labels, or of masked tokens.
        skew: of KL: share of one prediction in the mix that the other is compared with (DistiLLM); 0 is plain KL.
        buckets: (K, N): forward KL of the teacher's K likeliest classes or tokens one by one, and of all others in N
            buckets, by the powers of ten of their probability.
        match: modules whose features are brought near as well, from the same passes: a pattern of the student's, such
            as "layer3" or "encoder.layer.{i}.output", with "=PATTERN" of the teacher's where that differs.
        match_index: for {i}, the number in the teacher of each of the student's: 1,3 for two layers that are its
            second and fourth.
        match_loss: mse, cosine, unit or unit-l1 (vectors), normalised (by the teacher's norms), for maps attention or
            channel-wise, for rows of examples relational or contrastive.
        match_weight: of that loss: one, or one for each module.
        match_balance: each module's loss is first made as large as that of the predictions, in every batch.
        warm_up: what of task, hidden and match grows from 0 to its weight, over a share of the steps or, from 1 on, so
            many: "match=0.1,task=200".
        hidden: also bring the hidden states near, as Minitron does; where widths differ, through a projection.
        cache: ask the teachers once, and keep what they say on disk. A number: so many tokens at each place, the
            likeliest, and some that are drawn from the others and stand for them. "all": all that they say, in half
            precision: classes, embeddings, numbers once for each example; states and predictions of tokens once for
            each batch. It can't keep hidden states and modules' features, nor what is said of the student's own texts.
        cache_at: folder of that cache, or of what a server said, for several students: who comes later, with the same
            teachers, data, batch, length and seed, asks for nothing that is there. By default in the run directory.
        on_policy: share of the batches that the student writes itself (a language model), scored by its teacher.
        prompt: tokens of each text that it then writes on from.
        training: more settings of the training loop, such as accumulate=4,precision=bf16.
        seed: of everything random.
        device: where the models are held and measured; training takes a GPU that is there.
        dry_run: say what would be trained, and how long that takes by one step; nothing is written.
        overwrite: start anew where `out` holds another run.

    Raises:
        InputError: options, models or data that can't be used together: other tokenizers, other classes, other devices.
        ServerError: the server stopped; what it said is kept, and the same call goes on.
        RunError: `out` is in use, holds another run, or the disk is full.
    """
    above = list(teachers) if isinstance(teachers, list | tuple) else [cast(Model, teachers)]
    lesson = _Lesson(
        steps, lr, batch, length, temperature, direction, task, hidden, tuple(shares or ()), choice, cache, on_policy,
        prompt, server, align, (match,) if isinstance(match, str) and match else tuple(match),
        tuple(map(int, match_index)), match_loss,
        (match_weight,) if isinstance(match_weight, int | float) else tuple(map(float, match_weight)), match_balance,
        skew, tuple(map(int, buckets)), _warming(warm_up), loop.options(training), seed,
    )  # fmt: skip
    _check(lesson, above, assistants)
    _check_cache(lesson, cache_at, out)
    trade = trades.of_model(student)
    corpus = trade.read(data)
    pupil = _learner(trade, student, device, corpus)
    pupil = _weighted(pupil, weights) if weights else pupil
    between = [_learner(trade, one, device, corpus, pupil) for one in assistants]
    masters = [] if server else [_opened(trade, one, device, corpus, pupil) for one in above]
    corpus = trade.fitted(corpus, pupil)
    _check_kind(trade, lesson, pupil, len(above) > 1)
    _check_chain(trade, pupil, between, masters, lesson.align)
    trade.check(pupil, {"length": length} if trade is language else {})
    train, held = corpus.split(seed=seed)
    stream = _stream(trade, lesson, pupil, train, masters)
    _check_number(trade, lesson, pupil, stream, len(above) > 1)
    where = trade.where(pupil, batch, length if trade is language else None, None)
    course = _Course(trade, lesson, tuple(map(str, above)), masters, train, held, stream, where, str(cache_at))
    notes = [told] if (told := trades.copies(train, held, trade.NOUN)) else []
    course.tried(pupil, between)
    if dry_run:
        row = course.planned(pupil)
        return replace(row, settings={**row.settings, "notes": notes})
    settings = {
        "recipe": "distill",
        **{name: value for name, value in asdict(lesson).items() if value not in ("", (), {})},
        "student_sha256": trade.digest(pupil),
        "teachers_sha256": [trade.digest(one) for one in masters] or course.names,
        "assistants_sha256": [trade.digest(one) for one in between],
        "data_sha256": corpus.digest,
    }
    places = {"weights": weights, "device": device, "cache_at": cache_at}
    about = {
        "student": _name(student),
        "teachers": [_name(one) for one in above],
        "data": str(data) if isinstance(data, str | Path) else corpus.name,
        **({"assistants": [_name(one) for one in assistants]} if assistants else {}),
        **{name: str(value) for name, value in places.items() if value},
    }
    with (
        guard(Path(out)),
        Run.open(out, settings, about={**about, "versions": environment.describe()}, overwrite=overwrite) as run,
    ):
        record = run.path("evidence.json")
        if not record.exists():
            row = course.taught(pupil, between, run, {"model": about["student"], **about, **settings, "notes": notes})
            name = str(Path(run.root.resolve().name))
            run.publish(partial(_save, trade, pupil, row, name))
            evidence.write(record, row)
        (row,) = evidence.read(record)
        publish_evidence(run.root, [row])
    return row


def configured(path: str | Path, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What to call `distill` with: the settings in a YAML file, such as a run.yaml, where `given` says nothing else.

    Raises `InputError` where the file, a key in it or a value can't be used.
    """
    return configs.options(distill, configs.read(path, "distill", distill, given))


# -------------------------------------------------------------------------------------------------------- what fits


def _check(lesson: _Lesson, above: Sequence[Model], between: Sequence[Model]) -> None:
    """Refuse numbers that make no sense, and options that do not go together."""
    for name, least in (("steps", 1), ("batch", 1), ("length", 2), ("cache", 0), ("prompt", 1)):
        value = getattr(lesson, name)
        if not (isinstance(value, int) and value >= least) and not (name == "cache" and value == "all"):
            other = ', nor "all"' if name == "cache" else ""
            raise InputError(f"{name}={value!r} is not a whole number of at least {least}{other}")
    if not above:
        raise InputError("no teacher was given: name at least one")
    if not 0 <= lesson.on_policy <= 1 or not 0 < lesson.temperature < float("inf"):
        raise InputError(
            f"on_policy={lesson.on_policy:g}, temperature={lesson.temperature:g}: give 0 to 1, and above 0"
        )
    if lesson.direction not in ("forward", "reverse", "js", "mse", "cosine"):
        raise InputError(f"direction {lesson.direction!r} is not one of forward, reverse, js, mse, cosine")
    if lesson.match_loss not in matching.KINDS:
        raise InputError(f"match-loss {lesson.match_loss!r} is not one of {', '.join(matching.KINDS)}")
    if not 0 <= lesson.skew < 1:
        raise InputError(f"skew={lesson.skew:g}: give 0 to below 1")
    if lesson.buckets and (len(lesson.buckets) != 2 or min(lesson.buckets) < 1):
        given = ",".join(map(str, lesson.buckets))
        raise InputError(f"buckets {given}: give two numbers of at least 1, as 64,8: tokens one by one, and buckets")
    for name, over in lesson.warm_up.items():
        if over > lesson.steps:
            raise InputError(f"warm-up of {name} takes {over:g} steps, and training {lesson.steps}: give fewer")
        if not getattr(lesson, name):
            raise InputError(f"warm-up of {name}, which is no part of the loss: name {name}, or leave it out")
    if lesson.choice not in ("", "label", "confidence"):
        raise InputError(f"choice {lesson.choice!r} is not one of label, confidence")
    if lesson.shares:
        ensembles.shares(lesson.shares, len(above))
    kept = "server" if lesson.server else "cache" if lesson.cache else ""
    some = kept if lesson.server or lesson.tokens else ""
    all_ = ", cache=all any" if some == "cache" else ""
    beside = {"server": lesson.server, "cache": lesson.cache, "on-policy": lesson.on_policy, "hidden": lesson.hidden,
              "choice": lesson.choice, "assistant": between}  # fmt: skip
    extra = next((name for name, given in beside.items() if given), "")
    wrong = {
        f"align compares what teachers say of the same characters: leave {extra} out": lesson.align and extra,
        f"{some} keeps some of the tokens: it serves forward KL{all_}": some and lesson.direction != "forward",
        f"{kept} keeps predictions only: leave hidden out": kept and lesson.hidden,
        f"{kept} keeps what is said of given texts: leave on-policy out": kept and lesson.on_policy,
        f"{some} and choice do not go together: name shares, or leave {some} out": some and lesson.choice,
        "a server tells its likeliest tokens and not all: give cache their number": lesson.server
            and lesson.cache == "all",
        "a server tells probabilities at temperature 1: leave temperature out":
            lesson.server and lesson.temperature != 1,
        "a server has one teacher: name one": lesson.server and len(above) > 1,
        "a server is no teacher of assistants: leave them out": lesson.server and between,
        "choice takes the place of shares: name one of them": lesson.choice and lesson.shares,
        "on-policy has no labels to choose a teacher by: choose by confidence":
            lesson.on_policy and lesson.choice == "label",
        "hidden states of several teachers have no mean: name one teacher, or leave hidden out":
            lesson.hidden and len(above) > 1,
        "match compares modules of one teacher as it runs: name one, and leave align, server, cache, choice and "
        "on-policy out": lesson.match and (
            len(above) > 1 or lesson.align or lesson.server or lesson.cache or lesson.choice or lesson.on_policy
        ),
        "match-index, -loss, -weight and -balance say how modules match: name some by match": not lesson.match and (
            lesson.match_index or lesson.match_loss != "mse" or lesson.match_weight or lesson.match_balance
        ),
        "align has no warm-up: leave one of them out": lesson.align and lesson.warm_up,
        "buckets are of forward KL of a teacher that answers whole, live or from cache=all: leave them out":
            lesson.buckets and (some or lesson.align or lesson.on_policy or lesson.direction != "forward"),
        "buckets and skew are two ways to compare: name one of them": lesson.buckets and lesson.skew,
        "skew is of KL of a teacher that answers whole, forward or reverse: leave it out": lesson.skew and (
            some or lesson.align or lesson.on_policy or lesson.direction not in ("forward", "reverse")
        ),
        "on-policy scores what the student writes: leave task and hidden out":
            lesson.on_policy and (lesson.task or lesson.hidden),
        f"on-policy has the directions {', '.join(_BETA)}": lesson.on_policy and lesson.direction not in _BETA,
        "prompt is to be shorter than length: give less": lesson.on_policy and lesson.prompt >= lesson.length,
    }  # fmt: skip
    for words, holds in wrong.items():
        if holds:
            raise InputError(words)


def _check_cache(lesson: _Lesson, cache_at: str | Path, out: str | Path) -> None:
    """Refuse a folder for a cache where there is none, or that can't be one."""
    if not cache_at:
        return
    if not (lesson.cache or lesson.server):
        raise InputError("cache-at is the folder of a cache: say what it keeps by cache, or leave it out")
    if Path(cache_at).exists() and not Path(cache_at).is_dir():
        raise InputError(f"cache-at {cache_at} is a file: give a folder")
    if Path(cache_at).resolve().is_relative_to(Path(out or "?").resolve()):
        raise InputError(f"cache-at {cache_at} is in the run directory, where a cache is anyway: give another folder")


def _warming(given: str | Mapping[str, float]) -> dict[str, float]:
    """What grows from 0, and over how much of training, from "match=0.1,task=200"."""
    parts = [part.partition("=")[::2] for part in given.split(",") if part.strip()] if isinstance(given, str) else []
    found = dict[str, float]()
    for name, over in dict(given).items() if isinstance(given, Mapping) else parts:
        try:
            found[name.strip()] = float(over)
        except (TypeError, ValueError):
            found[name.strip()] = -1.0
    for name, number in found.items():
        if name not in ("task", "hidden", "match") or not 0 < number < float("inf"):
            raise InputError(
                f"warm-up {given!r}: give task, hidden or match, and the share of training or the steps over which it "
                "grows, such as match=0.1,task=200"
            )
    return found


def _opened(trade: Trade, model: Model, device: str | None, data: Any, like: Any = None) -> Any:
    """A teacher as a subject; networks take the inputs of the student they are `like`."""
    trades.match(trade, model, "distill")
    return trade.opened(model, device, data) if trade is language else trade.again(model, like, device)


def _learner(trade: Trade, model: Model, device: str | None, data: Any, like: Any = None) -> Any:
    """A subject to be trained, with weights of its own: what was given stays as it is."""
    if like is None:
        trades.match(trade, model, "distill")
        found = trade.opened(model, device, data)
        return found if trade is language and isinstance(model, str | Path) else found.copy()
    given = model if isinstance(model, str | Path) else copy.deepcopy(getattr(model, "model", model))
    found = _opened(trade, given if trade is not language else model, device, data, like)
    return found.copy() if trade is language and not isinstance(model, str | Path) else found


def _weighted(subject: Any, weights: str | Path) -> Any:
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


def _check_kind(trade: Trade, lesson: _Lesson, pupil: Any, several: bool) -> None:
    """Refuse options that this kind of student can't follow."""
    texts_ = trade is language
    causal = texts_ and pupil.causal
    tokens = texts_ and (causal or _masked(pupil))
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
        "none of them: leave align out": lesson.align and not (tokens or _of_whole_texts(trade, pupil)),
        "task of a token classifier needs labels [B, S], -100 where a token has none, and texts have one each: leave "
        "task out": texts_ and bool(lesson.task) and type(pupil.model).__name__.endswith("ForTokenClassification"),
    }
    for words, holds in wrong.items():
        if holds:
            raise UnsupportedError(words)
    if lesson.align and tokens and lesson.direction != "forward":
        raise InputError("align serves forward KL of tokens: leave direction out")


def _of_whole_texts(trade: Trade, subject: Any) -> bool:
    """Whether it tells one row for each text, which teachers of any tokenizer can be held against."""
    kind = type(subject.model).__name__
    return trade is language and (subject.output == "embedding" or kind.endswith("ForSequenceClassification"))


def _check_number(trade: Trade, lesson: _Lesson, pupil: Any, stream: Any, several: bool) -> None:
    """Refuse options about classes where the student tells one number."""
    if trade is language:
        one = language.tells_number(pupil)
    else:
        one = teachers.live(pupil.model, partial(_classes, pupil))(stream[0]).prediction.shape[-1] == 1
    wrong = {
        f"direction {lesson.direction} compares classes, and the student tells one number: use --direction mse":
            lesson.direction != "mse",
        "task is cross-entropy of classes, and the student tells one number: leave task out": lesson.task,
        "teachers are averaged or chosen by their classes, and these tell one number each: name one teacher": several,
    }  # fmt: skip
    for words, holds in wrong.items():
        if one and holds:
            raise InputError(words)


def _check_chain(trade: Trade, pupil: Any, between: Sequence[Any], masters: Sequence[Any], align: bool) -> None:
    """Refuse a teacher and a learner that can't be compared; with `align`, whatever their tokenizers are."""
    named = [("student", pupil), *(("assistant", one) for one in between), *(("teacher", one) for one in masters)]
    for name, one in named:
        _check_place(name, one.model)
    for name, one in named[1:]:
        ours, theirs = (next(model.parameters()).device for model in (pupil.model, one.model))
        if ours != theirs:
            raise InputError(
                f"the student is on {ours} and a {name} on {theirs}: say device={ours}, or bring them there"
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
    if (student.output, student.causal) != (teacher.output, teacher.causal):
        ours, theirs = (f"next tokens ({type(one.model).__name__})" if one.causal else f"{one.output} "
                        f"({type(one.model).__name__})" for one in (student, teacher))  # fmt: skip
        raise InputError(f"the student gives {ours} and a {name} {theirs}: open both with the same head")
    if align and teacher.tokenizer is None:
        raise InputError(f"a {name} comes without a tokenizer, and its texts are to be aligned: give one that has one")
    if teacher.tokenizer is not None and not align:
        try:
            _shared(student, teacher)
        except InputError as error:
            able = student.causal or _masked(student) or _of_whole_texts(language, student)
            raise InputError(f"{error}{', or let each read for itself (align)' if able else ''}") from error
    if student.output != "logits" or student.causal or _masked(student):
        return
    ours, theirs = (one.model.config for one in (student, teacher))
    if ours.num_labels != theirs.num_labels:
        raise InputError(
            f"the student has {ours.num_labels} classes and a {name} {theirs.num_labels}: use models of the same ones"
        )
    given = [{number: str(label) for number, label in one.id2label.items()} for one in (ours, theirs)]
    if any(label.startswith("LABEL_") for labels in given for label in labels.values()):
        return  # numbers only
    number = next((number for number in given[0] if given[0][number] != given[1].get(number)), None)
    if number is not None:
        raise InputError(
            f"class {number} is {given[0][number]!r} for the student and {given[1].get(number)!r} for a {name}: use "
            "models of the same classes"
        )


def _shared(student: Transformer, teacher: Transformer) -> int:
    sizes = (one.model.config.vocab_size for one in (student, teacher))
    return teachers.check_vocabularies(student.tokenizer, teacher.tokenizer or student.tokenizer, *sizes)


def _stream(trade: Trade, lesson: _Lesson, pupil: Any, train: Any, masters: Sequence[Any] = ()) -> Any:
    """What all in the chain learn from, since they read the same, or side by side: `batches[i]` for any i."""
    how: dict[str, Any] = {"batch": lesson.batch, "seed": lesson.seed + 1}
    if trade is not language:
        return examples.batches(train, **how)
    packed = pupil.causal and not lesson.align
    plain = texts.batches(train, pupil.tokenizer, packed=packed, length=lesson.length, **how)
    found = masking.Masked(plain, pupil.tokenizer, seed=lesson.seed) if _masked(pupil) else plain
    if not lesson.align:
        return found
    others = {_aside(number): one.tokenizer for number, one in enumerate(masters)}
    return alignment.Parallel(found, plain.rows, train.texts, pupil.tokenizer, others, length=lesson.length)


def _aside(number: int) -> str:
    """What a teacher's own reading is called in the batches."""
    return f"teacher{number}"


def _masked(subject: Transformer) -> bool:
    return type(subject.model).__name__.endswith("ForMaskedLM")


# --------------------------------------------------------------------------------------------------------- lessons


@dataclass(frozen=True)
class _Course:
    """Those who teach, what is learned from, and how."""

    trade: Trade
    lesson: _Lesson
    names: tuple[str, ...]
    masters: Sequence[Any]
    train: Any
    held: Any
    stream: Any
    where: latency.Environment
    cache_at: str = ""

    @property
    def of_texts(self) -> bool:
        """Whether transformers learn from texts."""
        return self.trade is language

    def taught(self, pupil: Any, between: Sequence[Any], run: Run, settings: Mapping[str, Any]) -> Evidence:
        """Teach the chain, and measure its last before and after."""
        before, known, why = run.json("before", lambda: _plain(*self.measured(pupil, run)))
        records = assistants.chain(
            tuple(self.masters), [*between, pupil], lambda learner, above, number: self.teach(
                learner, above if isinstance(above, tuple) else (above,), run, f"link-{number}"
            )
        )  # fmt: skip
        after = self.measured(pupil, run)[0]
        row = Evidence(
            recipe="distill",
            target=f"{self.lesson.steps} steps",
            before=_figures(before),
            after=after,
            baselines={"teacher": _figures(known)} if known else {},
            recovery=records[-1],
            environment={**environment.describe(), "measured_at": str(self.where)},
            settings={
                **settings,
                **({"not_measured": why} if why else {}),
                "notes": [*settings["notes"], *([] if why else self.to_each(pupil))],
                **({"assistants": [asdict(record) for record in records[:-1]]} if between else {}),
            },
        )
        return replace(row, verdict=_verdict(row))

    def teach(self, student: Any, above: Sequence[Any], run: Run | None, name: str, steps: int = 0) -> Recovery:
        """Train `student` in place. Without a run, which a cache and a checkpoint need, by live teachers."""
        lesson, steps = self.lesson, steps or self.lesson.steps
        torch.manual_seed(lesson.seed)
        batches, count = self.stream, objectives.count if self.of_texts else _count
        if lesson.align and not _of_whole_texts(self.trade, student):
            return self.aligned(student, above, run, name, steps)
        asked: Any = None
        # An assistant is asked live: it has just learned, and is no large model behind a server.
        kept = run is not None and (lesson.server or lesson.cache) and all(one in self.masters for one in above)
        if run is not None and kept and lesson.cache == "all":
            batches = self.recalled(student, above, batches, run)
            names, causal = map(_said, range(len(above))), getattr(student, "causal", False)
            asked = self.voices(student, above, lesson.temperature, [partial(_recalled, n, causal) for n in names])
        elif run is not None and kept:
            batches = self.remembered(student, above, batches, run)
        elif above:
            asked = self.voices(student, above, lesson.temperature)
        if lesson.on_policy:
            tokenizer, extra = student.tokenizer, list[nn.Module]()
            batches = policy.Rollouts(
                student.model, batches, share=lesson.on_policy, prompt=lesson.prompt,
                new=lesson.length - lesson.prompt, end=tokenizer.eos_token_id, pad=tokenizer.pad_token_id,
                seed=lesson.seed,
            )  # fmt: skip
            count = policy.count
            objective = policy.objective(
                student.forward, asked, beta=_BETA[lesson.direction], temperature=lesson.temperature,
                fused=not lesson.choice,
            )  # fmt: skip
        else:
            objective, extra = self.objective(student, above, asked, live=not kept)
        if lesson.warm_up:
            batches = slimming.Numbered(batches, self.count)
        return loop.train(
            student.model, batches, objective, steps=steps, lr=lesson.lr, seed=lesson.seed, dropout=False, count=count,
            extra=extra, frozen=[one.model for one in above] if asked and not kept else [],
            checkpoint=None if run is None else run.folder(name), title=name,
            flops_per_token=self.flops(student, above), **lesson.training,
        )  # fmt: skip

    def objective(
        self, student: Any, above: Sequence[Any], asked: Any, *, live: bool = True
    ) -> tuple[Any, list[nn.Module]]:
        """What `student` is trained towards, `asked` being its teachers as one, and what is trained along."""
        lesson = self.lesson
        pairs = objectives.matched(len(student.layers()), len(above[0].layers())) if lesson.hidden and above else []
        projection = self.projection(student, above, pairs)
        objective = objectives.distil(
            self.forward(student), asked, output=self.output(student), task=lesson.task,
            temperature=lesson.temperature, direction=lesson.direction, hidden=pairs, projection=projection,
            fused=self.of_texts and not lesson.choice and (live or asked is None), skew=lesson.skew,
            buckets=lesson.buckets, warmup=self.ramps,
        )  # fmt: skip
        extra = [] if projection is None else [projection]
        if lesson.match and above:
            objective, adapters = self.beside(objective, student, above[0])
            extra.append(adapters)
        return objective, extra

    def tried(self, pupil: Any, between: Sequence[Any]) -> None:
        """Ask for the loss of the first batch once, in each link of the chain, so that what can't be compared is
        refused before anything is measured or written.

        Of what a student would write itself there is no batch yet. Raises `InputError` and `DataError`.
        """
        lesson, above = self.lesson, tuple(self.masters)
        if lesson.on_policy:
            return
        by_tokens = lesson.align and not _of_whole_texts(self.trade, pupil)
        step = [self.stream[index] for index in range(max(1, int(lesson.training.get("accumulate", 1))))]
        first = {**step[0], **({"done": 0.0} if lesson.warm_up else {})}
        count: Any = objectives.count if self.of_texts else _count
        for learner in (*between, pupil):
            device, extra = next(learner.model.parameters()).device, list[nn.Module]()
            if by_tokens:
                objective, count = self.by_characters(learner)
            else:
                asked = self.voices(learner, above, lesson.temperature) if above else None
                objective, extra = self.objective(learner, above, asked)
            each = [count(batch) for batch in step]
            totals = {name: sum(one[name] for one in each) for name in each[0]}
            for module in extra:
                module.to(device)
            with torch.no_grad(), evaluating(learner.model):
                objective(send_to_device(first, device), totals)
            above = (learner,)
        for number, name in enumerate(self.names if by_tokens else ()):
            if not totals[f"{_aside(number)}.pairs"]:
                raise InputError(
                    f"the teacher {name} reads no characters of the first batch as one token where the student does, "
                    "and has nothing to say to it: use another teacher, or other texts"
                )

    def aligned(self, student: Any, above: Sequence[Any], run: Run | None, name: str, steps: int) -> Recovery:
        """As `teach`, by teachers that read with tokenizers of their own."""
        lesson, (objective, count) = self.lesson, self.by_characters(student)
        return loop.train(
            student.model, self.stream, objective,
            steps=steps, lr=lesson.lr, seed=lesson.seed, dropout=False, count=count,
            frozen=[one.model for one in above], checkpoint=None if run is None else run.folder(name), title=name,
            flops_per_token=self.flops(student, above), **lesson.training,
        )  # fmt: skip

    def by_characters(self, student: Any) -> tuple[Any, Any]:
        """What `student` is trained towards where teachers are aligned, and what counts its batches."""
        others = self.foreign(student)
        how = {"task": self.lesson.task, "temperature": self.lesson.temperature}
        return alignment.objective(student.forward, others, **how), alignment.counted(list(others))

    def foreign(self, student: Any) -> dict[str, alignment.Foreign]:
        """The teachers, each by what the batches call its reading."""
        weights = ensembles.shares(self.lesson.shares or None, len(self.masters))
        return {
            _aside(number): alignment.Foreign(
                teachers.live(one.model, one.forward), alignment.shared_vocabulary(student.tokenizer, one.tokenizer), w
            )
            for number, (one, w) in enumerate(zip(self.masters, weights, strict=True))
        }

    def forward(self, subject: Any) -> Any:
        """The subject as an objective sees it; an aligned teacher of whole texts reads them for itself."""
        if not self.of_texts:
            return partial(_classes, subject)
        number = next((number for number, one in enumerate(self.masters) if one is subject), None)
        alone = number is None or not self.lesson.align
        return subject.forward if alone else partial(_as_it_reads, subject.forward, _aside(number or 0))

    def output(self, subject: Any) -> str:
        """What a prediction holds."""
        return str(subject.output) if self.of_texts else "logits"

    def voices(self, student: Any, above: Sequence[Any], temperature: float, each: Sequence[Any] = ()) -> Any:
        """The teachers as one; `each` of them as it is asked, live unless given."""
        asked = each or [teachers.live(one.model, self.forward(one)) for one in above]
        if self.lesson.choice and len(asked) > 1:
            return ensembles.Chosen(asked, self.lesson.choice)
        if len(asked) == 1:
            return asked[0]
        causal = self.of_texts and student.causal
        width = min(_shared(student, one) for one in above) if causal else None
        return ensembles.Averaged(asked, self.lesson.shares or None, temperature=temperature, vocabulary=width)

    def remembered(self, student: Any, above: Sequence[Any], batches: Any, run: Run) -> teachers.Joined:
        """The batches with the likeliest tokens of their teachers, which are asked once."""
        lesson, tokenizer = self.lesson, student.tokenizer
        count, key = self.count, self.key
        if lesson.server:
            server = Server(lesson.server, self.names[0])
            k = lesson.tokens or _SERVED
            with self.kept_in(run, "predictions") as folder:
                found = cache_served(folder, server, tokenizer, batches, count, key=key, k=k)
            return teachers.Joined(batches, found)
        kept = []
        for number, one in enumerate(above):
            ask = teachers.live(one.model, one.forward)
            own = {"teacher": teachers.fingerprint(one.model), "tokenizer": teachers.fingerprint(tokenizer)}
            with self.kept_in(run, f"predictions-{number}") as folder:
                kept.append(teachers.cache_topk(
                    folder, partial(_predicted, ask), batches, count, key={**key, **own}, k=lesson.tokens,
                    drawn=lesson.tokens - 1, temperature=lesson.temperature, vocabulary=_shared(student, one),
                ))  # fmt: skip
        return teachers.Joined(batches, ensembles.Blended(kept, lesson.shares or None))

    @property
    def ramps(self) -> dict[str, float]:
        """What warms up, and over which share of training."""
        steps = self.lesson.steps
        return {name: over if over < 1 else over / steps for name, over in self.lesson.warm_up.items()}

    @property
    def count(self) -> int:
        """Batches that training takes in all."""
        return self.lesson.steps * int(self.lesson.training.get("accumulate", 1))

    @property
    def key(self) -> dict[str, Any]:
        """What a cache depends on beside its teacher: data and batches."""
        lesson = self.lesson
        return {"data": self.train.digest, "batches": f"{lesson.batch} x {lesson.length}, seed {lesson.seed + 1}"}

    @contextmanager
    def kept_in(self, run: Run, name: str) -> Iterator[Path]:
        """Where what a teacher says is kept: for this run, or in a folder for several, which one at a time may fill.

        A cache of something else there is an `InputError`: it is no part of the run, which may begin with another.
        """
        if not self.cache_at:
            yield run.folder(name)
            return
        folder = Path(self.cache_at) / name
        with locked(folder):
            try:
                yield folder
            except DataError as error:
                raise InputError(str(error)) from error

    def recalled(self, student: Any, above: Sequence[Any], batches: Any, run: Run) -> Any:
        """The batches with all that each of their teachers says, which is asked once: see `_recalled`."""
        key = self.key | ({"tokenizer": teachers.fingerprint(student.tokenizer)} if self.of_texts else {})
        ordered = _Ordered(self.train, _ASKED_AT_ONCE * self.lesson.batch, self.whole(student))
        for number, one in enumerate(above):
            ask = partial(_predicted, teachers.live(one.model, self.forward(one)))
            name, own = _said(number), {**key, "teacher": teachers.fingerprint(one.model)}
            with self.kept_in(run, f"predictions-{number}") as folder:
                if self.by_example(ask):
                    own |= {"batches": f"in order, {ordered.size} x {self.lesson.length if self.of_texts else 1}"}
                    rows = self.stream.rows if self.of_texts else self.stream.places
                    batches = teachers.Told(batches, rows, {name: teachers.cache_rows(folder, ask, ordered, key=own)})
                    continue
                known = teachers.Outputs(partial(_named, name, ask), self.stream, folder=folder, half=True, key=own)
                known.fill(self.count)
                batches = teachers.Joined(batches, known, prefix="")
        return batches

    def by_example(self, ask: Callable[[Any], Tensor]) -> bool:
        """Whether a teacher says one row for each example, whatever stands beside it in its batch."""
        return ask(self.stream[0]).dim() == 2

    def whole(self, student: Any) -> Callable[[Any], Mapping[str, Any]]:
        """How a part of the data becomes one batch."""
        if not self.of_texts:
            return Examples.batch
        return lambda part: next(texts.in_order(part, student.tokenizer, batch=len(part), length=self.lesson.length))

    def beside(self, objective: Any, student: Any, teacher: Any) -> tuple[Any, nn.Module]:
        """The objective with the features of the modules that are to match."""
        lesson = self.lesson
        first = {name: part[:4] for name, part in self.stream[0].items() if isinstance(part, Tensor)}
        pairs = []
        for pattern in lesson.match:
            ours, _, theirs = pattern.partition("=")
            found = taps.pairs(student.model, teacher.model, ours, other=theirs, index=lesson.match_index or None)
            pairs += [(student.model, teacher.model, *one) for one in found]
        return matching.beside(
            objective, pairs, lambda: [self.forward(one)(first) for one in (student, teacher)],
            kind=lesson.match_loss, weights=lesson.match_weight, warmup=self.ramps.get("match", 0.0),
            balanced=lesson.match_balance,
        )  # fmt: skip

    def projection(self, student: Any, above: Sequence[Any], pairs: Sequence[tuple[int, int]]) -> nn.Module | None:
        """One map from the student's width to its teacher's, where widths differ and are compared."""
        if not above or not (pairs or self.output(student) != "logits"):
            return None
        first = {name: tensor[:1] for name, tensor in self.stream[0].items()}
        with torch.no_grad():
            ours, theirs = (
                ask(first, hidden=True).hidden[-1] if pairs else ask(first).prediction
                for ask in (student.forward, self.forward(above[0]))
            )
        widths = ours.shape[-1], theirs.shape[-1]
        return None if widths[0] == widths[1] else nn.Linear(*widths, bias=False)

    def flops(self, student: Any, above: Sequence[Any]) -> float:
        """Of training, per token, where that is known."""
        if not self.of_texts:
            return 0.0
        live = 0.0 if self.lesson.cache else sum(one.flops_per_token(self.lesson.length) for one in above)
        return size.training_flops(student.flops_per_token(self.lesson.length), live)

    # --------------------------------------------------------------------------------------------- measured

    def measured(self, student: Any, run: Run) -> tuple[Row, Row, str]:
        """Sizes, quality and loyalty of the student, and of its teachers; and why quality could not be measured."""
        row = dict(self.trade.sizes(student, self.trade.example(student, self.where)))
        known: Row = {}
        if self.lesson.align:
            try:
                first, _, _ = self.trade.compared(student, student, self.held, self.where)
                return {**row, **first, **self.apart(student)[0]}, known, ""
            except (DataError, MeasurementError) as error:
                return row, known, str(error)
        for one in self.masters:
            for name, figure in self.trade.sizes(one, self.trade.example(one, self.where)).items():
                known[name] = Figure(known[name].value + figure.value, unit=figure.unit) if name in known else figure
        if len(self.masters) > 1:
            known.pop("zeros", None)  # shares do not add up
        try:
            first, second, both = self.trade.compared(self.together(student), student, self.held, self.where)
        except (DataError, MeasurementError, UnsupportedError) as error:
            return row, known, str(error)
        if not self.masters:  # the student was held against itself
            return {**row, **second, "served_label_loyalty": self.agreed(student, run)}, {}, ""
        return {**row, **second, **both}, {**known, **first}, ""

    def to_each(self, student: Any) -> list[str]:
        """A line on the student's loyalty to each of several teachers, beside that to all of them together."""
        if len(self.masters) < 2:
            return []
        if self.lesson.align:
            each = self.apart(student)[1]
        else:
            each = [self.trade.compared(one, student, self.held, self.where)[2] for one in self.masters]
        lines = []
        for name, both in zip(self.names, each, strict=True):
            figures = ", ".join(f"{key.replace('_', ' ')} {both[key]}" for key in _NEARER if key in both)
            lines.append(f"to the teacher {name} alone: {figures}")
        return lines

    @torch.no_grad()
    def apart(self, student: Any) -> tuple[Row, list[Row]]:
        """What aligned teachers and the student say of held-out texts: their mean by shares, and each of them alone.

        After equal characters, over the tokens that both have: KL in nats for a pair of tokens, which training brings
        down, and label and probability loyalty. A mean of several has an interval for the KL alone.
        """
        lesson = replace(self.lesson, batch=min(self.lesson.batch, len(self.held)))
        items = _stream(self.trade, lesson, student, self.held, self.masters)
        if _of_whole_texts(self.trade, student):
            voices = [self.voices(student, some, 1.0) for some in (self.masters, *([one] for one in self.masters))]
            found = _rows_apart(student, voices, items[: min(len(items), _BATCHES)])
            return found[0], found[1:]
        others = self.foreign(student)
        values = {name: list[float]() for name in others}
        tallies = {name: loyalty.Tally() for name in others}
        for batch in items[: min(len(items), _BATCHES)]:
            ours = student.forward(batch).prediction
            for name, one in others.items():
                mine, yours = one.beside(ours, batch, name)
                values[name].append(float(losses.kl(mine, yours)) / max(1, len(mine)))
                rows = (batch[f"{name}.pairs"][:, 0] // ours.shape[1]).to(mine.device)
                for row in rows.unique():  # a text is the sample of the interval
                    tallies[name].add((yours[rows == row][None], mine[rows == row][None]), {})
        each = [{"shared_kl": _mean(values[name]), **_loyal(tallies[name])} for name in others]
        weights = [one.weight for one in others.values()]
        mean = {
            key: Figure(sum(w * row[key].value for w, row in zip(weights, each, strict=True)))
            for key in each[0]
            if all(key in row for row in each)
        }
        together = [
            sum(w * v for w, v in zip(weights, step, strict=True)) for step in zip(*values.values(), strict=True)
        ]
        return (each[0] if len(each) == 1 else {**mean, "shared_kl": _mean(together)}), each

    def agreed(self, student: Any, run: Run) -> Figure:
        """Share of tokens of held-out texts at which the student finds likeliest what its server names first."""
        batches, say = self.heard(student), teachers.live(student.model, student.forward)
        key = {"data": self.held.digest, "batches": f"{len(batches)}, {self.lesson.length} tokens"}
        server, k = Server(self.lesson.server, self.names[0]), self.lesson.tokens or _SERVED
        with self.kept_in(run, "predictions-held") as folder:
            told = cache_served(folder, server, student.tokenizer, batches, len(batches), key=key, k=k)
        same, counts = list[float](), list[int]()
        for number, batch in enumerate(batches):
            real = batch["attention_mask"].bool()
            first = torch.full_like(batch["input_ids"], -1)
            first[real] = told[number]["indices"][:, 0]
            same += ((say(batch).prediction.argmax(-1).cpu() == first) & real).sum(1).tolist()
            counts += real.sum(1).tolist()
        return statistics.per_item(same, counts)

    def heard(self, student: Any) -> list[dict[str, Tensor]]:
        """Batches of held-out texts of which a server is asked."""
        found = language.held_batches(self.held, student.tokenizer, packed=True, length=self.lesson.length)
        return found[: max(1, _HEARD // len(found[0]["input_ids"]))]

    def together(self, student: Any) -> Any:
        """The teachers as one subject to be measured."""
        one = self.masters[0] if self.masters else student
        if len(self.masters) < 2:
            return one
        joint, voices = copy.copy(one), self.voices(student, self.masters, 1.0)
        if self.of_texts:
            joint.forward = voices
        else:
            from secateur.running import network  # texts do without

            joint.model = network.Joint(partial(_predicted, voices))
        return joint

    def planned(self, student: Any) -> Evidence:
        """What would be trained, and how long that takes, by one step of a copy."""
        lesson, learner = self.lesson, student.copy()
        above = tuple(self.masters)
        if not above:  # a server is not asked: the student's own time
            one = replace(self, lesson=replace(lesson, task=1.0, server="", cache=0)).teach(learner, (), None, "", 1)
        else:
            one = self.teach(learner, above, None, "", 1)
        trained = sum(p.numel() for p in student.model.parameters() if p.requires_grad)
        return Evidence(
            recipe="distill",
            target=f"{lesson.steps} steps",
            predicted={
                "params": float(sum(p.numel() for p in student.model.parameters())),
                "trained parameters": float(trained),
                "teacher parameters": float(sum(p.numel() for m in above for p in m.model.parameters())),
                ("tokens" if self.of_texts else "examples"): float(one.tokens * lesson.steps),
                "seconds per step": one.seconds,
                "seconds": one.seconds * lesson.steps,
                **self.kept(student, one.tokens * lesson.steps),
            },
            settings={"model": type(student.model).__name__, "teachers": list(self.names)},
            verdict="dry run",
        )

    def kept(self, student: Any, tokens: int) -> dict[str, float]:
        """Bytes that a cache would take, of so many tokens in all, and how often a server would be asked."""
        lesson = self.lesson
        if lesson.server:
            there = [teachers.filled(Path(self.cache_at) / f"predictions{of}") for of in ("", "-held") if self.cache_at]
            train, held = there or (0, 0)
            left = [
                lesson.batch * max(0, self.count - train),
                sum(len(batch["input_ids"]) for batch in self.heard(student)[held:]),
            ]
            calls = sum(1 + some for some in left if some)  # 1: what is asked to tell the tokenizer
            return {"server calls": float(calls), "cache bytes": float(tokens * (6 * (lesson.tokens or _SERVED) + 4))}
        if lesson.tokens:
            return {"cache bytes": float(tokens * len(self.masters) * (6 * lesson.tokens + 4))}
        if not lesson.cache:
            return {}
        said = [teachers.live(one.model, self.forward(one))(self.stream[0]).prediction for one in self.masters]
        each = (len(self.train) * one.shape[-1] if one.dim() == 2 else self.count * one.numel() for one in said)
        return {"cache bytes": 2.0 * sum(each)}


def _as_it_reads(forward: Any, name: str, batch: Mapping[str, Tensor], **options: Any) -> Any:
    """What a teacher says of the texts of a batch of `alignment.Parallel`, in its own reading."""
    return forward({key: batch[f"{name}.{key}"] for key in ("input_ids", "attention_mask")}, **options)


def _rows_apart(student: Any, voices: Sequence[Any], batches: Sequence[Mapping[str, Tensor]]) -> list[Row]:
    """How near the student is to each of `voices`, by the rows that all tell of whole texts, of those with tokens."""
    read = torch.cat([batch["attention_mask"].any(1) for batch in batches])
    ours, found = torch.cat([student.forward(batch).prediction.cpu() for batch in batches])[read], list[Row]()
    for ask in voices:
        theirs = torch.cat([ask(batch).prediction.cpu() for batch in batches])[read]
        if student.output == "embedding":
            found.append(quality.fidelity(theirs, ours))
        elif ours.shape[-1] == 1:
            found.append(loyalty.numbers(*(one.float().flatten().tolist() for one in (ours, theirs))))
        else:
            tally = loyalty.Tally()
            tally.add((theirs, ours), {})
            found.append(tally.figures())
    return found


def _predicted(ask: Any, batch: Mapping[str, Tensor]) -> Tensor:
    logits: Tensor = ask(batch).prediction
    return logits


def _named(name: str, ask: Callable[[Any], Tensor], batch: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: ask(batch)}


@dataclass
class _Said:
    """A network's classes, [B, C], as an objective sees them."""

    prediction: Tensor
    hidden: tuple[Tensor, ...] = ()
    causal: bool = False


@dataclass(frozen=True)
class _Ordered:
    """All examples once, in their order, `size` at a time: `ordered[i]` is a batch."""

    data: Any
    size: int
    read: Callable[[Any], Mapping[str, Any]]

    def __len__(self) -> int:
        return -(-len(self.data) // self.size)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.read(self.data.take(range(index * self.size, min((index + 1) * self.size, len(self.data)))))


def _said(number: int) -> str:
    """What is called in the batches what a teacher has said."""
    return f"said{number}"


def _recalled(name: str, causal: bool, batch: Mapping[str, Any], *, hidden: bool = False) -> _Said:
    """A teacher whose answer the batch brings along, under `name`."""
    return _Said(batch[name], causal=causal)


def _classes(subject: Traced, batch: Mapping[str, Any], *, hidden: bool = False) -> _Said:
    from secateur.running import network  # texts do without

    if hidden:
        raise UnsupportedError("hidden states of networks are not compared here: leave hidden out")
    logits = objectives.logits(network.called(subject, batch))
    if logits.dim() != 2:
        raise UnsupportedError(
            f"the network gives {list(logits.shape)}, no row of classes per example: distil it by a recipe on networks"
        )
    return _Said(logits)


def _count(batch: Mapping[str, Any]) -> dict[str, int]:
    return {**examples.count(batch), "sequences": len(batch["inputs"])}


# --------------------------------------------------------------------------------------------------------- results


def _mean(values: Sequence[float]) -> Figure:
    return statistics.mean_interval(values) if len(values) > 1 else Figure(values[0])


def _loyal(tally: loyalty.Tally) -> Row:
    """Loyalty over shared tokens; nothing where no token of the one stands for the characters of another's."""
    try:
        return {f"shared_{name}": figure for name, figure in tally.figures().items()}
    except MeasurementError:
        return {}


def _plain(row: Row, known: Row, why: str) -> list[Any]:
    return [*({name: asdict(figure) for name, figure in one.items()} for one in (row, known)), why]


def _figures(row: Mapping[str, Any]) -> Row:
    return {name: Figure(**figure) for name, figure in row.items()}


def _name(model: Any) -> str:
    return str(model) if isinstance(model, str | Path) else type(getattr(model, "model", model)).__name__


def _verdict(row: Evidence) -> str:
    """Whether the student came nearer to its teachers, by the first measure that tells."""
    name = next((name for name in _NEARER if name in row.before and name in row.after), None)
    if name is None:
        return ""
    before, after = row.before[name].value, row.after[name].value
    words = f"{name.replace('_', ' ')} {before:.4g} -> {after:.4g}"
    better = after < before if name in _LESS else after > before
    return f"met: {words}" if better else f"failed: the student is no nearer to its teachers, {words}"


def _save(trade: Trade, subject: Any, row: Evidence, name: str, folder: Path) -> None:
    trade.save(subject, folder)
    (folder / "README.md").write_text(_card(row, trade.loading(folder, name)), encoding="utf-8")


def _card(row: Evidence, load: str) -> str:
    """The model card: who was taught by whom, what came of it, and how to load it."""
    student = Path(str(row.settings["model"])).name
    above = " and ".join(Path(str(one)).name for one in row.settings["teachers"])
    steps = row.recovery.steps if row.recovery else 0
    return "\n\n".join([
        f"---\nlibrary_name: {load.split()[1].replace('_', '-')}\ntags: [secateur, distilled]\n---",
        f"# {student} taught by {above}",
        f"Distilled from {above} by secateur, in {steps} steps. Verdict: {row.verdict}.",
        "## Evidence",
        evidence.markdown(evidence.table(row)),
        f"Measured at {row.environment.get('measured_at')}.",
        "## How to load it",
        f"```python\n{load}\n```",
    ]) + "\n"  # fmt: skip
