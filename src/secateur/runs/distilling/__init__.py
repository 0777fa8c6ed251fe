"""A student taught by its teachers, without a recipe: opened, checked, trained, measured, saved. `secateur distill`.

`lessons` holds what is asked and `members` who is in the chain; `course` ties them to what is learned from. A course is
tried (`trying`), its links are trained (`training`) on what teachers say, which `caches` keep, and its last is measured
(`measuring`) and saved (`results`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

from secateur._utils.disk import guard
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.data.examples import Examples
from secateur.measure import environment
from secateur.recover.distillation.assistants import chain
from secateur.recover.training import loop
from secateur.reports import evidence
from secateur.runs import backends, configs, splits
from secateur.runs.backends import language
from secateur.runs.distilling import measuring, members, results, training, trying
from secateur.runs.distilling.course import Course, stream
from secateur.runs.distilling.lessons import Lesson, check, check_cache, warming
from secateur.runs.distilling.members import Model
from secateur.runs.executor import publish_evidence
from secateur.vocabulary import Evidence

__all__ = ["configured", "distill"]

Data: TypeAlias = str | Path | Sequence[str] | texts.Corpus | Examples


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
    bits: int = 0,
    training: str | Mapping[str, Any] = "",
    seed: int = 0,
    device: str | None = None,
    held_out: Data | None = None,
    text: str = "text",
    label: str = "label",
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
        bits: 8 or 4 rounds the weights of the student's blocks while it trains, and holds those that are zero; what is
            measured and saved is the model of integers. 0 leaves them in floating point.
        training: more settings of the training loop, such as accumulate=4,precision=bf16.
        seed: of everything random.
        device: where the models are held and measured; training takes a GPU that is there.
        held_out: what is measured on, read as `data` is, all of which is then learned from; a part of `data` if None.
        text, label: columns of tables, and of an .npz file the array of classes, in both of them; label="" for no
            classes.
        dry_run: say what would be trained, and how long that takes by one step; nothing is written.
        overwrite: start anew where `out` holds another run.

    Raises:
        InputError: options, models or data that can't be used together: other tokenizers, other classes, other devices.
        ServerError: the server stopped; what it said is kept, and the same call goes on.
        RunError: `out` is in use, holds another run, or the disk is full.
    """
    above = list(teachers) if isinstance(teachers, list | tuple) else [cast(Model, teachers)]
    lesson = Lesson(
        steps, lr, batch, length, temperature, direction, task, hidden, tuple(shares or ()), choice, cache, on_policy,
        prompt, server, align, (match,) if isinstance(match, str) and match else tuple(match),
        tuple(map(int, match_index)), match_loss,
        (match_weight,) if isinstance(match_weight, int | float) else tuple(map(float, match_weight)), match_balance,
        skew, tuple(map(int, buckets)), warming(warm_up), loop.options(training), seed, bits,
    )  # fmt: skip
    check(lesson, above, assistants)
    check_cache(lesson, cache_at, out)
    trade = backends.of_model(student)
    corpus, apart = splits.read(trade, data, held_out, text=text, label=label)
    pupil = members.learner(trade, student, device, corpus)
    pupil = members.weighted(pupil, weights) if weights else pupil
    between = [members.learner(trade, one, device, corpus, pupil) for one in assistants]
    masters = [] if server else [members.opened(trade, one, device, corpus, pupil) for one in above]
    part = splits.parted(trade, corpus, apart, pupil, seed=seed)
    members.check_kind(trade, lesson, pupil, len(above) > 1, part.train)
    members.check_chain(trade, pupil, between, masters, lesson.align)
    trade.check(pupil, {"length": length} if trade is language else {})
    items = stream(trade, lesson, pupil, part.train, masters)
    where = trade.where(pupil, batch, length if trade is language else None, None)
    course = Course(trade, lesson, tuple(map(str, above)), masters, part.train, part.held, items, where, str(cache_at))
    trying.check_number(course, pupil)
    notes = [part.warning] if part.warning else []
    trying.tried(course, pupil, between)
    if dry_run:
        measuring.beforehand(course, pupil, None)
        row = trying.planned(course, pupil)
        return replace(row, settings={**row.settings, "notes": notes})
    settings = {
        "recipe": "distill",
        **{
            name: value
            for name, value in asdict(lesson).items()
            if value not in ("", (), {}) and (bits or name != "bits")
        },
        "student_sha256": trade.digest(pupil),
        "teachers_sha256": [trade.digest(one) for one in masters] or course.names,
        "assistants_sha256": [trade.digest(one) for one in between],
        **splits.columns(text, label),
        **part.digests,
    }
    places = {"weights": weights, "device": device, "cache_at": cache_at}
    about = {
        "student": backends.called(student),
        "teachers": [backends.called(one) for one in above],
        **splits.named(data=(data, corpus), held_out=(held_out, apart)),
        **({"assistants": [backends.called(one) for one in assistants]} if assistants else {}),
        **{name: str(value) for name, value in places.items() if value},
    }
    with (
        guard(Path(out)),
        Run.open(out, settings, about={**about, "versions": environment.describe()}, overwrite=overwrite) as run,
    ):
        record = run.path("evidence.json")
        if not record.exists():
            row = _taught(course, pupil, between, run, {"model": about["student"], **about, **settings, "notes": notes})
            name = str(Path(run.root.resolve().name))
            written = run.folder("integers") if bits else None
            run.publish(partial(results.save, trade, pupil, row, name, written=written))
            evidence.write(record, row)
        (row,) = evidence.read(record)
        publish_evidence(run.root, [row])
    return row


def configured(path: str | Path, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What to call `distill` with: the settings in a YAML file, such as a run.yaml, where `given` says nothing else.

    Raises `InputError` where the file, a key in it or a value can't be used.
    """
    return configs.options(distill, configs.read(path, "distill", distill, given))


def _taught(course: Course, pupil: Any, between: Sequence[Any], run: Run, settings: Mapping[str, Any]) -> Evidence:
    """Teach the chain, and measure its last before and after."""
    before, known, why = run.json("before", lambda: results.plain(*measuring.beforehand(course, pupil, run)))
    records = chain(
        tuple(course.masters), [*between, pupil], lambda learner, above, number: training.teach(
            course, learner, above if isinstance(above, tuple) else (above,), run, f"link-{number}",
            bits=course.lesson.bits if learner is pupil else 0,
        )
    )  # fmt: skip
    taught, notes = pupil, list(settings["notes"])
    if course.lesson.bits:
        taught, told = results.integers(pupil, run.folder("integers"), course.lesson.bits)
        notes += told
    after = measuring.measured(course, taught, run)[0]
    row = Evidence(
        recipe="distill",
        target=f"{course.lesson.steps} steps",
        before=results.figures(before),
        after=after,
        baselines={"teacher": results.figures(known)} if known else {},
        recovery=records[-1],
        environment={**environment.describe(), "measured_at": str(course.where)},
        settings={
            **settings,
            **({"not_measured": why} if why else {}),
            "notes": [*notes, *([] if why else measuring.to_each(course, taught))],
            **({"assistants": [asdict(record) for record in records[:-1]]} if between else {}),
        },
    )
    return replace(row, verdict=measuring.verdict(row))
