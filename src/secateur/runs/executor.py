"""One executor of runs: from a recipe's name to evidence, a report and the result in a run directory.

`run` opens the source, holds a part of the data out, calls the recipe, measures each budget's result and publishes it.
What `distill`, `prune_data`, `train_pruner` and studies share with it stands here: run directories (`open_run`), the
model card, and the evidence of a directory with its report.
"""

from __future__ import annotations

import gc
import hashlib
import random
import re
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import nn

from secateur import recipes
from secateur._utils import distributed, modes, plugins
from secateur._utils.disk import guard
from secateur._utils.noting import keep_notes, keep_notes_in
from secateur._utils.rundir import Run, read_record
from secateur.data import examples
from secateur.errors import InfeasibleError, InputError, ModelError, RunError, UnsupportedError
from secateur.measure.environment import describe as describe_machine
from secateur.measure.latency import Phase, Timer
from secateur.methods.arms import refuse_selection
from secateur.recover.training import lora, schedule
from secateur.reports import details, evidence
from secateur.reports.details import Details
from secateur.runs import backends, configs, keywords, records, splits
from secateur.runs.backends import AnyBackend, Data, Source
from secateur.runs.cards import write_card, write_whole_card
from secateur.runs.measuring import Reference, with_threads
from secateur.subjects.network import pretrained
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget, Evidence, Result, Subject, Training

__all__ = [
    "Recipe", "checked_by", "configured", "find_home", "hash_files", "inspect", "keep_details", "note_complete",
    "open_run", "options", "parse_budgets", "publish_evidence", "report", "run",
]  # fmt: skip

Recipe: TypeAlias = Callable[..., Iterator[Result]]


_DETAILS = Path("work", "report-details.json")


# ----------------------------------------------------------------------------------------------------- running


@keep_notes()
def run(
    recipe: str | Recipe,
    model: Source,
    data: Data | None,
    budget: str | Budget | Sequence[str | Budget],
    out: str | Path,
    *,
    inputs: object = None,
    held_out: Data | None = None,
    text: str = "text",
    label: str = "label",
    completion_only: bool = False,
    packing: Literal["blocks", "documents"] = "blocks",
    sizes: str | Sequence[float | str] | None = None,
    transform: object = None,
    size: int | str | None = None,
    workers: int | None = None,
    dry_run: bool = False,
    quick: bool = False,
    overwrite: bool = False,
    seed: int = 0,
    threads: int | None = None,
    device: str | None = None,
    batch: int | None = None,
    length: int | None = None,
    environment: Phase | None = None,
    timer: Timer | None = None,
    stream: bool = False,
    part: str | None = None,
    after: Source | None = None,
    on_result: Callable[[Evidence], object] | None = None,
    on_data: Callable[[Mapping[str, str]], object] | None = None,
    **options: object,
) -> list[Evidence]:
    """Run a recipe, and leave the smaller model, its evidence and a report in `out`.

    The same call again resumes; finished budgets are not done twice. Under several processes (torchrun, accelerate
    launch) all make the same call: they share training and blocks out, and the first one writes.

    Args:
        recipe: a recipe's name, or a function like one.
        model: a folder, a Hub id, or what `open_subject` gives; for recipes on networks a module, or the name of a
            function that builds one, as "file.py:build". It stays as it is.
        data: a text file, a folder of them, a Hub data set, or the texts; for networks what `examples.read` takes.
            None where the recipe does without, as `secateur.runs.cutting.prune` does: quality is not measured then.
        budget: one budget such as "speedup=2x", or several, each giving a model of its own.
        out: the run directory. The model stands there for one budget, in a folder per budget for several.
        inputs: what a network runs on, or a shape such as "1x3x224x224"; what its function gives, or the first of the
            data, if None.
        held_out: data to measure quality on, in the forms of `data`, all of which then goes to the recipe; if None, a
            part of `data` is held out.
        text, label: columns of tables, and of an .npz file the array of classes, in both of them; label="" for no
            classes.
        completion_only: of chats, learn and measure the assistant's answers alone, and not what they answer.
        packing: how texts fill the sequences that a language model learns from: "blocks", one after another, or
            "documents", whole ones of which none sees another.
        sizes: limits between small, medium and large boxes of a detector's data: sides of squares, such as "8,24" in
            pixels or "5%,15%" of the images' longer side; the data's own, or COCO's 32 and 96, if None.
        transform: how images become inputs, evaluated with its deterministic part and trained with its random one:
            imagenet, cifar, shift, none, "file.py:function", ResNet18_Weights.DEFAULT, timm:NAME, or a folder with a
            preprocessor_config.json; what the model records of its own if None.
        size: of the inputs that images become: 224, "224x160" (height x width) or "1x28x28" (greyscale).
        workers: processes that read images ahead; by the machine's cores if None.
        dry_run: print what would be cut and what that saves; nothing is trained or written. To a budget in time it also
            calibrates, searches and times less, as its notes say, so that the forecast is rougher.
        quick: a first look within minutes, not what the recipe can do: it calibrates, searches, times and trains less
            where nothing else is said. The result loses more quality, and may miss its time by more.
        overwrite: start anew where `out` holds another run.
        seed: seed of the random generators.
        threads: number of torch threads, also while measuring; torch's default if None.
        device: device to prune and time the model on, such as cuda or cpu; where the model is if None. "auto" splits a
            transformer's folder over all devices. Networks are pruned where they are, and copies of them are timed and
            evaluated on the device. Training uses a GPU if there is one.
        batch: sequences per batch of the measured environment; the recipe's default if None.
        length: tokens per sequence of the measured environment; the recipe's default if None. Networks have none.
        environment: what language models are timed at: prefill, one pass over `batch` sequences of `length` tokens, or
            decode, one more token of each behind a cache of `length` tokens; prefill if None.
        timer: what runs them meanwhile: eager (PyTorch as it is), compile (torch.compile) or onnx (onnxruntime on the
            CPU); eager if None.
        stream: leave a language model on the disk and read it block by block, for models larger than memory; time is
            not measured then. Only some recipes can.
        part: of a model of several, such as one that reads images, too, the one that is cut: language_model, say, or
            by `secateur.runs.cutting.prune` vision_tower and projector. The result is the whole model with that part in
            its place; budgets and figures are of the part.
        after: for recipes on what a training changed, what it made of the model: a folder, a Hub id, or the folder of a
            LoRA adapter on it.
        on_result: called with each budget's evidence as soon as its model is in place.
        on_data: called with the hashes of the data as it was read, before anything is made; it may raise.
        options: the recipe's own.

    Raises:
        InputError: an unknown or wrong option, a model, data or a budget that can't be used.
        InfeasibleError: a budget that can't be met.
        RunError: `out` is in use, holds another run, or the disk is full.
    """
    function = recipes.find(recipe) if isinstance(recipe, str) else recipe
    budgets, options = parse_budgets(budget), keywords.rename(function, options)
    timed = {"batch": batch, "length": length, "environment": environment, "timer": timer}
    given = {name: value for name, value in timed.items() if value is not None}
    timed_cut = any("latency" in budget for budget in budgets)
    wanted = ([keywords.QUICK] if quick else []) + ([keywords.DRY] if dry_run and timed_cut else [])
    less = keywords.quicken(function, {*options, *given}, *wanted)
    options = {**less, **options}
    chosen = keywords.check_options(
        function, keywords.fitting(function, {**options, **given}, timed, seed=seed, dry_run=dry_run)
    )
    keywords.check_seed(seed)
    keywords.check_counts(threads=threads, batch=batch, length=length)
    chosen = _follow_rounding(chosen, out, overwrite)
    flags = keywords.flat(function, chosen)
    how = next((value for value in chosen.values() if isinstance(value, Training)), Training())
    if isinstance(chosen.get("training"), str | list):  # of a recipe that takes it as text
        how = Training().merge(chosen["training"])
    how = _check_adapters(function.__name__, how, flags)
    _check_training(chosen)
    if recipes.cards().get(function.__name__, {}).get("selects") == "no":
        refuse_selection(how)
    if str(out) and Path(out).is_file():
        raise InputError(f"{out} is a file: choose a folder for what the run writes")
    backend, processes = backends.of_recipe(function), distributed.count()
    if backend.command != "run":
        raise UnsupportedError(
            f"{function.__name__} works on {backend.family}, no model: use `secateur {backend.command} --recipe "
            f"{function.__name__}`"
        )
    backends.check_source(backend, model, function.__name__, part)
    if part is not None:
        _check_part(function, part, flags, model)
        if inputs is not None:
            raise InputError(f"inputs are of a whole network, and {part} gets what the whole gives it: leave them out")
        if device == "auto":
            raise InputError(f"device=auto splits a model that is cut whole, not its {part}: name one device, or none")
    backend = backends.of_recipe(function, stream=stream)
    if data is None and not keywords.spares(function, "data"):
        raise InputError(f"{function.__name__} needs data: give some")
    if inputs is not None and not backend.has_inputs:
        raise InputError(f"inputs are of networks, and this recipe works on {backend.family}: leave them out")
    held_out = splits.find_held_out(backend, data, held_out)
    corpus, apart = splits.read(
        backend, data, held_out, text=text, label=label, sizes=sizes, transform=transform, size=size, workers=workers,
        completion_only=completion_only, packing=packing,
    )  # fmt: skip
    corpus, apart = (splits.follow_record(part, out, overwrite) for part in (corpus, apart))
    source = model if part is None else backend.open_part(model, part)
    source = source if after is None else backend.open_pair(source, after)
    subject = backend.make_floats(backend.open(source, device, corpus, inputs))
    lora.check(how, getattr(subject, "model", None))
    backend = backends.of_subject(subject, backend)
    by_blocks, card = backends.works_by_blocks(function), recipes.cards().get(function.__name__, {})
    lacking = _describe_options(card.get("offloaded", "" if by_blocks else None), flags)
    backend.check_place(subject, function.__name__, by_blocks=by_blocks, lacking=lacking)
    _check_units(subject, function.__name__, card.get("needs", ""), flags)
    # Once, and before the recipe: what quality is measured on, it never sees.
    parts = splits.Parts() if corpus is None else splits.split(backend, corpus, apart, subject, seed=seed)
    if on_data is not None:
        on_data(parts.digests)
    if isinstance(parts.train, examples.Examples):  # what fits into memory at a step need not at a larger pass
        parts = replace(parts, train=examples.limit(parts.train, keywords.another_batch(flags, function)))
    notes = list(parts.notes)
    look = "a quick look" if quick else "a dry run"
    notes += [f"{look}, with {', '.join(f'{key}={value}' for key, value in less.items())}"] if less else []
    notes += [f"worked out by {processes} processes"] if processes > 1 else []
    place = backend.environment(subject, flags.get("batch", batch), flags.get("length", length), threads, device)
    notes += backends.note_rows(backend, flags.get("batch", batch), place)
    place = replace(place, phase=flags.get("environment") or environment or place.phase)
    place = replace(place, timer=flags.get("timer") or timer or place.timer)
    backend.check_clock(subject, place)
    _check_measured(backend.find_unmeasured(subject), budgets)
    # Baselines, which are functions, cut as the recipe beside them did, whatever its clock was.
    elsewhere = {name for name in ("environment", "timer") if timed[name] not in (None, "prefill", "eager")}
    elsewhere -= flags.keys()
    if elsewhere and isinstance(recipe, str) and timed_cut:
        raise InputError(
            f"{function.__name__} meets a latency of a forward pass by PyTorch as it is: leave "
            f"{' and '.join(sorted(elsewhere))} out, or take ziplm"
        )
    lengths = {"length": place.length, **flags}
    backend.check(subject, lengths)
    notes += backend.note_lengths(subject, lengths)
    hashes = hash_files(function, flags, out)
    settings = {
        "recipe": function.__name__,
        "budget": [str(budget) for budget in budgets],
        "seed": seed,
        "threads": place.threads,
        "device": place.device,
        "batch": place.batch,
        **({} if place.length is None else {"length": place.length}),
        **{name: value for name, value in (("environment", environment), ("timer", timer)) if value is not None},
        **({"stream": True} if stream else {}),
        **({} if part is None else {"part": part}),
        **splits.columns(
            text,
            label,
            sizes,
            data=corpus,
            transform=transform,
            size=size,
            completion_only=completion_only,
            packing=packing,
        ),
        **{name: value for name, value in flags.items() if name != "dry_run"},
        "model_sha256": backend.digest(subject),
        **parts.digests,
        **hashes,
    }
    about = {
        "model": backends.name_source(model if isinstance(model, str | Path) else subject),
        **splits.names_of(data=(data, corpus), held_out=(held_out, apart)),
        **({"inputs": inputs} if isinstance(inputs, str) else {}),
        **({} if after is None else {"after": backends.name_source(after)}),
        **({} if workers is None else {"workers": workers}),
    }
    notes += filter(None, [pretrained.describe_stored(model)])
    check_first: Callable[..., None] | None = getattr(function, "check_first", None)
    if check_first is not None:
        check_first(subject, parts.train, **chosen)
    if dry_run and (need := backend.describe_memory(subject, budgets, flags, place)):
        notes.append(need)
    first = quick or dry_run
    pairs = keywords.QUICK_PAIRS if first else None
    within = keywords.DRY_SECONDS / len(budgets) if dry_run and not timed_cut else None
    reference = Reference(backend, subject, place, None if dry_run else parts.held, pairs, coarse=first, within=within)
    job = _Job(function, chosen, seed, budgets, reference, parts.train, tuple(notes), settings)
    if dry_run:
        previews = job.preview() if processes == 1 else distributed.by_first(lambda: list(job.preview()))
        return _collect(previews, on_result)
    notes += reference.warn_of_guessing()
    job = replace(job, notes=tuple(notes))
    older = {**keywords.defaults(function), **hashes}
    record = open_run(out, settings, about, overwrite=overwrite, shared=True, defaults=older)
    with ExitStack() as stack:
        try:
            directory = stack.enter_context(record)
        except RunError as error:
            if "model_sha256" in str(error) and _differs_by_call(backend, model, device, corpus, inputs):
                raise RunError(
                    f"{model} builds another network at each call, so that no call can resume what one before it began "
                    f"in {out}: seed what it draws, or let it load weights from a file; then use --overwrite"
                ) from error
            raise
        stack.enter_context(with_threads(place))
        keep_notes_in(directory.path("notes.json"))
        if on_result is not None:
            note_complete(directory, *(_record(directory, str(budget)) for budget in budgets))
        return _collect(job.execute(directory, about), on_result)


def find_home(subject: object) -> Path | None:
    """The folder that a subject was opened from, or the model that it is a part of; None of one in memory.

    Of a network what it was first cut from, where that is a model of transformers.
    """
    if isinstance(subject, Traced):
        return pretrained.find_home(subject)
    home: Path | None = getattr(getattr(subject, "whole", None), "folder", None) or getattr(subject, "folder", None)
    return home


def hash_files(function: Callable[..., object], options: Mapping[str, object], out: str | Path) -> dict[str, str]:
    """sha256 of the files and folders that each option names: with other contents a run does not go on.

    A folder that `out` stands in changes by the run itself, and does not count. What is gone counts as it was on
    record: a recipe that has taken from it what it needs goes on.
    """
    own, record = Path(out).resolve(), Path(out, "run.yaml")
    was = read_record(record) if record.is_file() else {}
    found = {key: was[key] for name in options if (key := f"{name}_sha256") in was and key != "held_out_sha256"}
    for name, places in keywords.find_paths(function, options).items():
        hashes = [records.digest(place) for place in places if not own.is_relative_to(place.resolve())]
        if hashes:
            joined = hashlib.sha256("".join(hashes).encode()).hexdigest()
            found[f"{name}_sha256"] = hashes[0] if len(hashes) == 1 else joined
    return found


def _check_part(function: Callable[..., object], part: str, flags: Mapping[str, object], model: Source) -> None:
    """Refuse, before weights are read, a recipe that cuts no part of another model, or not by these options.

    A card says so under "parts": no, or the options that it takes, such as "scope=local, first=0"; behind "experts: "
    stands what counts where the model has experts.
    """
    name, card = function.__name__, recipes.cards().get(function.__name__)
    network = backends.of_recipe(function).has_inputs
    with suppress(ModelError):  # whoever opens it is told
        network = network or backends.of_part(model, part).has_inputs
    if card is not None and network:
        raise UnsupportedError(
            f"{name} can't cut {part} by itself: `secateur prune MODEL --part {part} --budget params=70%` cuts it as "
            "a network, without training"
        )
    told = (card or {}).get("parts", "")
    if told.startswith("experts: "):
        told = told.removeprefix("experts: ") if pretrained.has_experts(model) else ""
    if _describe_options(told, flags) != "":
        advice = "" if told == "no" else f"say {told}, or "
        raise UnsupportedError(
            f"{name} gives layers shapes of their own, which can't be saved within the model that {part} is a part of: "
            f"{advice}take a recipe that keeps them alike, such as minitron, shortgpt, wanda or sparsegpt"
        )


def _check_units(subject: Subject, recipe: str, told: str, flags: Mapping[str, object]) -> None:
    """Refuse a model that has none of the units that the recipe goes by.

    A card says under "needs" which they are, such as "heads, neurons", with "free " ahead where they have to be such as
    can be cut. Behind " or " stands the option that does without them, such as "shape=layers=2".
    """
    kinds, _, other = told.partition(" or ")
    if not kinds or (other and flags.get(other.partition("=")[0])):
        return
    units = subject.units()
    sites = units.free() if kinds.startswith("free ") else units.sites.values()
    wanted = kinds.removeprefix("free ")
    if {site.kind for site in sites}.isdisjoint(wanted.split(", ")):
        model = type(getattr(subject, "model", subject)).__name__
        advice = f": give the option {other}, or one like it" if other else ""
        raise UnsupportedError(f"this {model} has none of {wanted} to cut, by which {recipe} goes{advice}")


def _describe_options(told: str | None, flags: Mapping[str, object]) -> str | None:
    """What a card tells of options, such as "first=0, score=weight|random", where some are others; "" where none is.

    Behind " or " stands another choice of options that will do. None where it says no.
    """
    if told is None or told == "no":
        return None
    for choice in told.split(" or "):
        pairs = [pair.partition("=") for pair in choice.split(", ") if "=" in pair]
        if all(str(flags.get(key)) in values.split("|") for key, _, values in pairs):
            return ""
    return told


def _check_measured(unmeasured: Mapping[str, str], budgets: Sequence[Budget]) -> None:
    """Refuse budgets of measures, each with the reason, that no result could be held to."""
    for budget in budgets:
        for limit in budget.limits:
            if limit.measure in unmeasured:
                raise UnsupportedError(
                    f"{limit} can't be measured: {unmeasured[limit.measure]}; give a budget of params, bytes or flops"
                )


def _collect(rows: Iterable[Evidence], on_result: Callable[[Evidence], object] | None) -> list[Evidence]:
    """All rows, after each of which `on_result` is called; where that raises, what makes them is over, too."""
    collected = []
    with closing(rows) if isinstance(rows, Generator) else nullcontext():
        for row in rows:
            collected.append(row)
            if on_result is not None:
                on_result(row)
    return collected


def _differs_by_call(
    backend: AnyBackend, model: Source, device: str | None, corpus: Data | None, inputs: object
) -> bool:
    """Whether the function that builds a network builds another one each time."""
    if not plugins.names_function(model):
        return False
    first, second = (backend.digest(backend.open(model, device, corpus, inputs)) for _ in range(2))
    return first != second


def _follow_rounding(options: Mapping[str, Any], out: str | Path, overwrite: bool) -> dict[str, Any]:
    """The options; without rounding where a run goes on that was begun before `multiple` rounded by itself."""
    record = Path(out) / "run.yaml"
    if overwrite or "multiple" not in options or options["multiple"] is not None or not record.is_file():
        return dict(options)
    return {**options, "multiple": 1} if read_record(record).get("multiple") == 1 else dict(options)


def _check_adapters(recipe: str, training: Training, flags: Mapping[str, object]) -> Training:
    """The training with its adapters, which are refused where a library for them is missing.

    Refused are also integers that stand beside no adapters.
    """
    if training.lora_bits and "lora_bits" in flags:
        raise InputError(
            f"{recipe} has adapters of its own: write --lora-bits {training.lora_bits} (lora_bits={training.lora_bits} "
            f"in Python) in place of training's lora_bits={training.lora_bits}"
        )
    training = keywords.add_adapters(training, flags)
    lora.check(training)
    return training


def checked_by(check: Callable[..., None]) -> Callable[[Recipe], Recipe]:
    """Let `run` call `check`, with a recipe's subject, data and options, before the original is measured.

    It raises for options what the recipe would raise later.
    """

    def mark(function: Recipe) -> Recipe:
        vars(function)["check_first"] = check
        return function

    return mark


def _check_training(options: Mapping[str, object]) -> None:
    """Refuse trackers that are not installed, devices that are not there, and learning rates that can not be."""
    for value in options.values():
        if isinstance(value, Training):
            schedule.check_course(value)
        if isinstance(value, Training) and value.teacher_device not in (None, "auto"):
            modes.check_device(str(value.teacher_device))
        if isinstance(value, Training) and value.trackers:
            from secateur.recover.training import loop  # loads accelerate

            loop.check_trackers(value.trackers)


@dataclass(frozen=True)
class _Job:
    """A recipe with all that it is called with, and the notes on each of its results."""

    function: Recipe
    options: Mapping[str, object]
    seed: int
    budgets: Sequence[Budget]
    reference: Reference
    train: Any
    notes: tuple[str, ...]
    settings: Mapping[str, object]

    def preview(self) -> Iterator[Evidence]:
        """What a dry run says of each budget; nothing is written."""
        with (
            tempfile.TemporaryDirectory() as folder,
            Run.open(folder, self.settings) as directory,
            with_threads(self.reference.environment),
        ):
            for result in self._results(directory):
                yield replace(self.reference.evidence(result, self.settings, self.budgets), verdict="dry run")

    def execute(self, directory: Run, about: Mapping[str, object]) -> Iterator[Evidence]:
        """The evidence of each budget, of those first that an earlier run has finished; the results are published."""
        names = [str(budget) for budget in self.budgets]
        finished, published = distributed.by_first(partial(_finished_rows, directory, names))
        yield from finished.values()

        def publish(result: Result) -> Evidence:
            row = self.reference.evidence(result, {**about, **self.settings}, self.budgets)
            if not result.cut.is_noop:
                place = result.name if len(names) > 1 else ""
                name = str(Path(directory.root.resolve().name, place))
                directory.publish(partial(self._save, result, row, name), place)
            self._write_others(directory, row.settings)
            finished[result.name] = row
            keep_details(directory.root, result.name, self.reference.describe(result.subject))
            # The record comes after the model it speaks of: what is recorded is in place.
            evidence.write(_record(directory, result.name), row)
            published[:] = [finished[name] for name in names if name in finished]
            publish_evidence(directory.root, published, self.reference.backend)
            return row

        if len(finished) < len(names):
            for result in self._results(directory):
                name = result.name
                if name not in finished:
                    finished[name] = distributed.by_first(partial(publish, result))
                    yield finished[name]
                del result  # the recipe makes the next one now
                gc.collect()
        rows = [finished[name] for name in names if name in finished]

        def publish_all() -> None:
            self._write_others(directory, {**about, **self.settings})  # after a kill
            if rows != published or not (directory.root / "report.html").is_file():
                publish_evidence(directory.root, rows, self.reference.backend)

        distributed.by_first(publish_all)

    def _save(self, result: Result, row: Evidence, name: str, folder: Path) -> None:
        """Write the model and its card into `folder`, which readers know as `name`."""
        backend, base = self.reference.backend, Path(str(row.settings["model"])).name
        backend.save(result.subject, folder)
        training = f", then trained for {row.recovery.steps} steps against the original" if row.recovery else ""
        write_card(
            folder, row, backend.load_line(folder, name), name=name, tag="pruned", title=f"{base} cut to {row.target}",
            origin=f"Cut from {base} by secateur's recipe `{row.recipe}`{training}.",
            base=find_home(self.reference.original),
        )  # fmt: skip

    def _write_others(self, directory: Run, settings: Mapping[str, object]) -> None:
        """Write the cards of models that the recipe itself has published beside its results."""
        for folder in (config.parent for config in directory.root.glob("*/config.json")):
            if not (folder / "README.md").exists():
                name = str(Path(directory.root.resolve().name, folder.name))
                write_whole_card(
                    folder, str(settings["model"]), self.function.__name__,
                    self.reference.backend.load_line(folder, name), name=name, base=find_home(self.reference.original),
                )  # fmt: skip

    def _results(self, directory: Run) -> Iterator[Result]:
        """The recipe's results, with every source of chance seeded."""
        random.seed(self.seed)
        np.random.seed(self.seed % 2**32)  # noqa: NPY002 - for libraries that draw from the global generator
        torch.manual_seed(self.seed)
        subject = self.reference.original
        model = getattr(subject, "model", None)
        at_rest = modes.evaluating(model) if isinstance(model, nn.Module) else nullcontext()
        try:
            with at_rest:  # one in memory may come from training, and what it says is what others learn
                for result in self.function(subject, self.train, self.budgets, directory, **self.options):
                    noted = replace(result, notes=(*result.notes, *self.notes), predicted=self._predict(result))
                    del result
                    yield noted
                    del noted
        except InfeasibleError as error:
            if (told := _drop_idle_advice(str(error))) != str(error):
                raise InfeasibleError(told, error.reachable) from error
            raise

    def _predict(self, result: Result) -> Mapping[str, float]:
        """What the recipe predicts; of measures per batch at that of the measurement, where it has no batch itself."""
        if "batch" in self.options:
            return result.predicted
        costs = self.reference.backend.costs(result.subject, self.reference.environment)
        return {name: costs.get(name, value) for name, value in result.predicted.items()}


def _drop_idle_advice(told: str) -> str:
    """What is told of a budget out of reach; without advice to ask for a speedup of 1 or less, which is none.

    It would be refused itself.
    """
    advice = re.search(r"ask for at most speedup=([\d.]+)x", told)
    if advice is None or float(advice[1]) > 1:
        return told
    nothing = "no speedup is within reach on this machine: give a budget in another measure, such as params=75%"
    return told.replace(advice[0], nothing)


def _finished_rows(directory: Run, names: Sequence[str]) -> tuple[dict[str, Evidence], list[Evidence]]:
    """(name -> what a run that was here before has recorded of that budget, what it has published)."""
    try:
        published = evidence.read(directory.root)
    except RunError:
        published = []
    baselines = {row.target: row.baselines for row in published}  # which studies have added
    finished = dict[str, Evidence]()
    for name in names:
        if _record(directory, name).exists():
            row = evidence.read(_record(directory, name))[0]
            finished[name] = replace(row, baselines=baselines.get(name, row.baselines))
    return finished, published


def _record(directory: Run, name: str) -> Path:
    return directory.path(f"evidence-{name}.json")


# ------------------------------------------------------------------------------- what the other commands share with it


def parse_budgets(budget: str | Budget | Sequence[str | Budget], example: str = "speedup=2x") -> list[Budget]:
    """One budget or several, each once. Raises `InputError` for none, and `BudgetError`."""
    several = list(budget) if isinstance(budget, Iterable) and not isinstance(budget, str | Budget) else [budget]
    parsed = {str(each): each for each in map(Budget.parse, several)}
    if not parsed:
        raise InputError(f"no budget was given: say for example budget='{example}'")
    return list(parsed.values())


@contextmanager
def open_run(
    out: str | Path,
    settings: Mapping[str, object],
    about: Mapping[str, object],
    *,
    overwrite: bool = False,
    shared: bool = False,
    defaults: Mapping[str, object] | None = None,
) -> Iterator[Run]:
    """The run directory `out`, held by one run at a time, with run.yaml and the versions of what it runs on.

    settings: what a run that goes on must have been begun with. about: what run.yaml says beside them. shared: whether
    several processes open it together. defaults: settings that a record of an older version may lack.
    """
    if not shared and distributed.count() > 1:
        raise InputError("this command runs in one process: start it without torchrun or accelerate launch")
    about = {**about, "versions": describe_machine()}
    with (
        guard(Path(out)),
        Run.open(out, settings, about=about, overwrite=overwrite, shared=shared, defaults=defaults) as directory,
    ):
        yield directory


def note_complete(run: Run, *records: Path) -> None:
    """Say, where all these files are there already, that what follows is what an earlier run has measured."""
    if distributed.index() or not all(record.exists() for record in records):
        return
    last = datetime.fromtimestamp(max(record.stat().st_mtime for record in records)).astimezone()
    when = f"{last:%Y-%m-%d %H:%M}"
    print(f"note: {run.root} is complete since {when}: --overwrite (overwrite=True) starts anew", file=sys.stderr)


def publish_evidence(root: Path, rows: Sequence[Evidence], backend: AnyBackend | None = None) -> None:
    """Write evidence.json and report.html of the run directory `root`; `backend`: that of its results."""
    from secateur.reports import report as pages  # draws with matplotlib, slow to import

    load = dict[str, str]()
    for row in rows:
        place = root / row.target if (root / row.target).is_dir() else root
        family = backend or backends.of_folder(place)
        if family is not None and family.saved_in(place):
            load[row.target] = family.load_line(place, str(place.relative_to(root.parent)))
    evidence.write(root / "evidence.json", rows)
    pages.write(root / "report.html", rows, load=load, shown=details.read(root / _DETAILS))


def keep_details(root: Path, target: str, described: Details | None) -> None:
    """Keep what the report of the run directory `root` shows of a result beside its figures."""
    if described is not None:
        details.write(root / _DETAILS, {**details.read(root / _DETAILS), target: described})


# ------------------------------------------------------------------------------------------------- the other commands


def options(recipe: str | Recipe) -> dict[str, Any]:
    """A recipe's options and their default values."""
    return keywords.defaults(recipes.find(recipe) if isinstance(recipe, str) else recipe)


def configured(path: str | Path, given: Mapping[str, object] | None = None) -> dict[str, Any]:
    """What to call `run` with: the settings in the YAML file `path`, where `given` does not say otherwise.

    The `run.yaml` of every run directory is such a file: `run(**configured("small/run.yaml"), out="again")`.

    Raises:
        InputError: no such file, not YAML, or a key that neither `run` nor the recipe knows.
    """
    more = [*keywords.SAME]
    return configs.read(path, "run", run, given, more=lambda recipe: more + keywords.names(recipes.find(recipe)))


def inspect(
    model: Source, *, batch: int = 1, length: int = 128, part: str | None = None, **options: object
) -> dict[str, Any]:
    """What could go in a model, and what that would save. Networks: see `secateur.runs.inspection.inspect`.

    part: of a model of several, such as one that reads images, too, the one that is looked at; as `run` has it.

    Returns {"model": architecture, "kind": ..., "cost": measure -> total, "axes": [{"kind", "sites", "units", "share":
    measure -> share of the whole that goes when every unit of that kind goes}], "stays": of language models [{"axes",
    "reason"}], the kinds and the layers that can't go}.
    """
    keywords.check_counts(batch=batch, length=length)
    backend = backends.of_source(model) if part is None else backends.of_part(model, part)
    source = model if part is None else backend.open_part(model, part)
    return backend.inspect(source, batch=batch, length=length, **options)


def report(run_dir: str | Path) -> Path:
    """Write the report of a run directory anew from its evidence; returns the page."""
    root = Path(run_dir)
    publish_evidence(root, evidence.read(root))
    return root / "report.html"
