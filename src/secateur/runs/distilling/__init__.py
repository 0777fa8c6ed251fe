"""Distillation without a recipe: open, check, train, measure and save a student. `secateur distill`.

`settings` holds the options and what is refused of them, `models` opens who teaches and learns, and `setup` ties them
to what is learned from. `trial` asks for a loss before anything is written, `training` trains each link of the chain on
what teachers answer, which `caches` keep, and `measuring` measures the student.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

from secateur._utils import devices, distributed
from secateur._utils.modes import keep_modes
from secateur._utils.noting import keep_notes, keep_notes_in, list_notes
from secateur._utils.rundir import Run
from secateur.measure.environment import describe as describe_machine
from secateur.recover.distillation.assistants import chain
from secateur.reports import evidence
from secateur.runs import backends, configs, exporting, splits
from secateur.runs.backends import Data
from secateur.runs.cards import write_card
from secateur.runs.distilling import measuring, models, training, trial
from secateur.runs.distilling.answers import answer_tasks
from secateur.runs.distilling.models import Learner, Model, as_transformer
from secateur.runs.distilling.settings import (
    Settings,
    check,
    check_adapters,
    check_cache,
    check_teachers,
    parse_warm_up,
    read_training,
)
from secateur.runs.distilling.setup import Setup, make_batches
from secateur.runs.executor import find_home, keep_details, note_complete, open_run, publish_evidence
from secateur.runs.measuring import Reference
from secateur.subjects import Transformer, open_subject
from secateur.vocabulary import Evidence, Figure, Recovery

__all__ = ["configured", "distill"]


@keep_notes()
@keep_modes("student", "teachers", "assistants")
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
    answers: int = 0,
    lora: int = 0,
    patience: int = 0,
    validation: float = 0.0,
    training: str | Mapping[str, Any] = "",
    seed: int = 0,
    device: str | None = None,
    teacher_device: str = "",
    teacher_bits: int = 0,
    held_out: Data | None = None,
    text: str = "text",
    label: str = "label",
    transform: object = None,
    size: int | str | None = None,
    workers: int | None = None,
    completion_only: bool = False,
    packing: Literal["blocks", "documents"] = "blocks",
    dry_run: bool = False,
    overwrite: bool = False,
) -> Evidence:
    """Train `student` to answer as its teachers do; the model, evidence and a report stand in `out`.

    The same call again resumes. Language models, encoders and classifiers of transformers learn from texts; other
    networks, given as "file.py:function" or modules, learn from examples, by the classes of each or of its pixels.

    Args:
        student: a folder, a Hub id, or what `open_subject` gives; for networks a module, or the name of a function that
            builds one. It stays as it is; a copy learns.
        teachers: the original, or several. They have to read the student's tokens, unless they are aligned, and give
            the same classes.
        data: texts, or for networks examples; a part of them is held out to measure on.
        out: the run directory.
        shares: of several teachers in the mean of their predictions; equal ones unless given.
        choice: in place of the mean, use for each sample the teacher that finds the label most probable ("label"), or
            that is most confident ("confidence").
        assistants: models of sizes in between, from the largest down: each learns from the one before, and the student
            from the last. They stay as they are.
        weights: weights for a network that its function builds: a .safetensors file, or the folder of a cut network.
        server: address of an OpenAI-compatible server; the teacher is then the name of a model there.
        align: teachers have tokenizers of their own. Language models are compared by their predictions after the same
            characters, over shared tokens; classifiers and encoders by their outputs for a text.
        steps: training steps, of each assistant, too.
        lr: peak learning rate.
        batch: sequences or examples per step.
        length: tokens per sequence.
        temperature: T of both predictions' softmax; their divergence is multiplied by T^2 (Hinton et al. 2015), but
            on-policy.
        direction: forward or reverse KL, js, mse or cosine on the logits; binary, KL of each label, where several may
            hold; of classes of pixels also channel-wise, KL over the places of each class; none for `task` alone.
        task: weight of an added cross-entropy on the next token, on labels, or on masked tokens.
        skew: skewed KL (DistiLLM): share of one prediction in the mixture that the other is compared with; 0: plain KL.
        buckets: (K, N): forward KL over the teacher's K likeliest classes or tokens one by one, and over the others in
            N buckets by powers of ten of their probability.
        match: modules whose features are matched as well: a pattern of the student's names, such as "layer3" or
            "encoder.layer.{i}.output", with "=PATTERN" of the teacher's where that differs.
        match_index: for {i}, the teacher's layer number for each of the student's layers: 1,3 matches two layers to its
            second and fourth.
        match_loss: mse, cosine, unit or unit-l1 (vectors), normalised (by the teacher's norms), for maps attention or
            channel-wise, for rows of examples relational or contrastive.
        match_weight: weight of that loss: one, or one for each module.
        match_balance: scale each module's loss to that of the predictions first, in every batch.
        warm_up: let the weights of task, hidden or match grow from 0, over a share of the steps or, from 1 on, a number
            of steps: "match=0.1,task=200".
        hidden: also match the hidden states, as Minitron does; through a projection where widths differ.
        cache: run the teachers once and keep their outputs on disk. A number: that many tokens at each position, the
            likeliest and a sample of the others. "all": full outputs in half precision: classes, embeddings and numbers
            once for each example; states and predictions of tokens once for each batch. Not for hidden states, features
            of modules, and texts that the student generates.
        cache_at: folder of that cache, or of a server's answers, to share among students with the same teachers, data,
            batch, length and seed. By default in the run directory.
        on_policy: share of the batches that the student (a language model) generates itself, scored by its teacher.
        prompt: tokens of each text that it then continues.
        bits: 8 or 4: quantisation-aware training of the weights of the student's blocks, zeros held; the model of
            integers is measured and saved. 0 leaves them in floating point.
        answers: the data is a task file, see the guide on reasoning: the teacher answers each prompt so many times, and
            its right answers are learned (sequence-level distillation). With task=1,direction=none by cross-entropy
            alone; otherwise by its predictions of the same tokens, too. They are kept in OUT-answers, or `cache_at`.
        lora: rank of adapters that are trained in place of the weights of linears, and merged into them at the end;
            `training` takes dora=RANK for the other kind. 0 trains all weights.
        patience: stop after so many evaluations without a new best, and keep the weights of the best; 0 trains on.
        validation: share of the training data to judge by meanwhile and not to learn from; 0.1 with patience, else 0.
        training: more settings of the training loop, such as accumulate=4,precision=bf16.
        seed: seed of the random generators.
        device: device of the models, or "auto" to split a transformer's folder over all there are; training uses a GPU
            if there is one.
        teacher_device: device of the teachers, where that is another, such as cuda:1; "auto" splits them over all
            devices, and over the memory of the host. What they say is brought to the student's device.
        teacher_bits: 8 or 4: round the weights of the teachers' linears to so many, so that they take less room. 0
            leaves them as they are.
        held_out: data to measure on, in the forms of `data`, which is then all for training; a part of `data` if None.
        text, label: columns of tables, and of an .npz file the array of classes, in both of them; label="" for no
            classes.
        transform, size, workers: how images become inputs; see `run`.
        completion_only: of chats, learn and measure the assistant's answers alone, and not what they answer.
        packing: how texts fill the sequences that a language model learns from: "blocks", one after another, or
            "documents", whole ones of which none sees another.
        dry_run: print what would be trained, the memory that takes, and an estimate of its time from one step; nothing
            is written.
        overwrite: start anew where `out` holds another run.

    Raises:
        InputError: options, models or data that can't be used together: other tokenizers, other classes, other devices.
        ServerError: the server stopped; what it said is kept, and the same call goes on.
        RunError: `out` is in use, holds another run, or the disk is full.
    """
    sources = list(teachers) if isinstance(teachers, list | tuple) else [cast(Model, teachers)]
    chosen = Settings(
        steps, lr, batch, length, temperature, direction, task, hidden, tuple(shares or ()), choice, cache, on_policy,
        prompt, server, align, (match,) if isinstance(match, str) and match else tuple(match),
        tuple(map(int, match_index)), match_loss,
        (match_weight,) if isinstance(match_weight, int | float) else tuple(map(float, match_weight)), match_balance,
        skew, tuple(map(int, buckets)), parse_warm_up(warm_up),
        read_training(training, lora=lora, patience=patience, validation=validation), seed, bits, answers,
    )  # fmt: skip
    check(chosen, sources, assistants)
    check_teachers(chosen, teacher_device, teacher_bits)
    check_cache(chosen, cache_at, out)
    check_adapters(chosen)
    backend, asked, notes = backends.of_source(student), data, list[str]()
    if answers:
        folder = Path(cache_at) if cache_at else Path(out).with_name(f"{Path(out).name}-answers")
        data, notes = answer_tasks(backend, sources, data, folder, chosen, teacher_device or device, dry_run=dry_run)
        completion_only = True
    held_out = splits.find_held_out(backend, data, held_out)
    corpus, apart = splits.read(
        backend, data, held_out, text=text, label=label, transform=transform, size=size, workers=workers,
        completion_only=completion_only, packing=packing,
    )  # fmt: skip
    corpus, apart = (splits.follow_record(part, out, overwrite, prompted=answers > 1) for part in (corpus, apart))
    learner = models.open_student(backend, student, device, corpus)
    learner = models.load_weights(learner, weights) if weights else learner
    check_adapters(chosen, learner.model)
    between = [models.open_student(backend, source, device, corpus, learner) for source in assistants]
    place = teacher_device or device
    above = [
        models.open_teacher(backend, source, place, corpus, learner, teacher_bits)
        for source in ([] if server else sources)
    ]
    assert corpus is not None
    parts = splits.split(backend, corpus, apart, learner, seed=seed)
    models.check_kind(chosen, learner, len(sources) > 1, parts.train)
    models.check_packing(chosen, corpus, above, between)
    models.check_chain(learner, between, above, align, bool(teacher_device))
    of_texts = isinstance(learner, Transformer)
    notes += models.check_lengths(backend, learner, between, above, length)
    batches = make_batches(chosen, learner, parts.train, above)
    environment = backend.environment(learner, batch, length if of_texts else None, None, None if of_texts else device)
    names = tuple(map(str, sources))
    setup = Setup(
        backend,
        chosen,
        names,
        above,
        parts.train,
        parts.held,
        batches,
        environment,
        str(cache_at),
        apart=bool(teacher_device) or any(devices.is_offloaded(teacher.model) for teacher in above),
    )
    trial.check_number(setup, learner)
    notes += parts.notes
    trial.try_losses(setup, learner, between)
    notes += measuring.warn_of_guessing(setup)
    notes += [f"trained by {distributed.count()} processes"] if distributed.count() > 1 else []
    if dry_run:
        measuring.measure_before(setup, learner, None)
        need = distributed.by_first(partial(trial.describe_memory, setup, learner, between))
        notes += [need] if need else []
        row = distributed.by_first(partial(trial.plan, setup, learner))
        return replace(row, settings={**row.settings, "notes": [*notes, *list_notes()]})
    settings = {
        "recipe": "distill",
        **{
            name: value
            for name, value in asdict(chosen).items()
            if value not in ("", (), {}) and (value or name not in ("bits", "answers"))
        },
        "student_sha256": backend.digest(learner),
        "teachers_sha256": [backend.digest(teacher) for teacher in above] or names,
        **({"teacher_bits": teacher_bits} if teacher_bits else {}),
        "assistants_sha256": [backend.digest(assistant) for assistant in between],
        **splits.columns(
            text, label, data=corpus, transform=transform, size=size, completion_only=completion_only, packing=packing
        ),
        **parts.digests,
    }
    places = {"weights": weights, "device": device, "teacher_device": teacher_device, "cache_at": cache_at}
    about = {
        "student": backends.name_source(student),
        "teachers": [backends.name_source(source) for source in sources],
        **splits.names_of(data=(asked, corpus), held_out=(held_out, apart)),
        **({"assistants": [backends.name_source(source) for source in assistants]} if assistants else {}),
        **({} if workers is None else {"workers": workers}),
        **{name: str(value) for name, value in places.items() if value},
    }
    with open_run(out, settings, about, overwrite=overwrite, shared=True) as run:
        keep_notes_in(run.path("notes.json"))
        record = run.path("evidence.json")
        note_complete(run, record)

        def finish(before: Sequence[Any], records: Sequence[Recovery]) -> None:
            known = {"model": about["student"], **about, **settings, "notes": notes}
            row = _judge(setup, learner, run, known, before, records)
            run.publish(partial(_save, setup, learner, row, run))
            keep_details(run.root, row.target, measuring.describe(setup, learner))
            evidence.write(record, row)

        def publish() -> Evidence:
            (row,) = evidence.read(record)
            publish_evidence(run.root, [row], backend)
            return row

        if not distributed.by_first(record.exists):
            before = run.json("before", partial(_measure_before, setup, learner, run), alone=True)
            records = _train(setup, learner, between, run)
            distributed.by_first(partial(finish, before, records))
        return distributed.by_first(publish)


def configured(path: str | Path, given: Mapping[str, object] | None = None) -> dict[str, Any]:
    """What to call `distill` with: the settings in a YAML file, such as a run.yaml, where `given` says nothing else.

    Raises `InputError` where the file, a key in it or a value can't be used.
    """
    return configs.options(distill, configs.read(path, "distill", distill, given))


def _measure_before(setup: Setup, student: Learner, run: Run) -> list[object]:
    before, teachers, why = measuring.measure_before(setup, student, run)
    return [*({name: asdict(figure) for name, figure in row.items()} for row in (before, teachers)), why]


def _train(setup: Setup, student: Learner, between: Sequence[Learner], run: Run) -> list[Recovery]:
    """Train the chain: what each link took."""

    def train(learner: Any, above: Any, number: int) -> Any:
        above = above if isinstance(above, tuple) else (above,)
        bits = setup.settings.bits if learner is student else 0
        title = "student" if learner is student else f"assistant {number + 1}"
        return training.train_student(setup, learner, above, run, f"link-{number}", bits=bits, title=title)

    return chain(tuple(setup.teachers), [*between, student], train)


def _judge(
    setup: Setup,
    student: Learner,
    run: Run,
    settings: Mapping[str, Any],
    measured: Sequence[Any],
    records: Sequence[Recovery],
) -> Evidence:
    """The evidence of a trained student, `measured` before, which is measured again."""
    before, teachers, why = measured
    chosen, trained, notes = setup.settings, student, list(settings["notes"])
    if chosen.bits:
        trained, more = _integers(as_transformer(student), run.folder("integers"), chosen.bits)
        notes += more
    after = measuring.measure_student(setup, trained, run)[0]
    chance = Reference(setup.backend, trained, setup.environment, setup.held).chance(after)
    row = Evidence(
        recipe="distill",
        target=f"{chosen.steps} steps",
        before=_figures(before),
        after=after,
        baselines={"teacher": _figures(teachers)} if teachers else {},
        recovery=records[-1],
        environment={**describe_machine(), "measured_at": str(setup.environment)},
        settings={
            **settings,
            **({"not_measured": why} if why else {}),
            **({"chance": chance} if chance else {}),
            "notes": [*notes, *list_notes(), *([] if why else measuring.loyalty_notes(setup, trained))],
            **({"assistants": [asdict(record) for record in records[:-1]]} if records[1:] else {}),
        },
    )
    return replace(row, verdict=measuring.verdict(row))


def _figures(row: Mapping[str, Mapping[str, Any]]) -> dict[str, Figure]:
    """A row of figures as JSON gives it back."""
    return {name: Figure(**figure) for name, figure in row.items()}


def _integers(student: Transformer, folder: Path, bits: int) -> tuple[Transformer, tuple[str, ...]]:
    """(a student that was trained in so many bits, written to `folder` as such and read again; notes)."""
    shutil.rmtree(folder, ignore_errors=True)
    notes = exporting.write(student, folder, f"int{bits}", bound=math.inf)  # its floats were asked by nobody
    reopened = open_subject(folder, quantised=True)
    for module in (reopened.model, *reopened.head):
        module.to(student.model.device)
    return reopened, notes


def _save(setup: Setup, student: Learner, row: Evidence, run: Run, folder: Path) -> None:
    """Write the student, or the integers that were made of it, and its card into `folder`."""
    if setup.settings.bits:
        shutil.copytree(run.folder("integers"), folder, dirs_exist_ok=True)
    else:
        setup.backend.save(student, folder)
    source, name = Path(str(row.settings["model"])).name, run.root.resolve().name
    above = " and ".join(Path(str(teacher)).name for teacher in row.settings["teachers"])
    steps = row.recovery.steps if row.recovery else 0
    write_card(
        folder, row, setup.backend.load_line(folder, name), name=name, tag="distilled",
        title=f"{source} taught by {above}", origin=f"Distilled from {above} by secateur, in {steps} steps.",
        base=find_home(student),
    )  # fmt: skip
