"""From a recipe's name to evidence: open, run, measure, save, report. The command line and `secateur.run` meet here.

A recipe is a generator that yields one `Result` per budget; this module does what is the same for all of them.
"""

from __future__ import annotations

import random
import tempfile
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from secateur import recipes
from secateur._utils import distributed
from secateur._utils.disk import guard, writing
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.data.examples import Examples
from secateur.errors import DataError, InputError, MeasurementError, RunError, UnsupportedError
from secateur.measure import environment, generation, latency, memory, sparsity
from secateur.reports import display, evidence
from secateur.runs import backends, configs, keywords, splits
from secateur.runs.backends import Trade
from secateur.vocabulary import Budget, Evidence, Figure, Pattern, Result, Training

if TYPE_CHECKING:  # what is special to one trade is loaded by those who ply it: transformers alone takes seconds
    from secateur.subjects import Traced, Transformer

__all__ = [
    "CLOCK",
    "TOLERANCE",
    "Model",
    "configured",
    "export",
    "inspect",
    "measure",
    "options",
    "publish_evidence",
    "report",
    "results",
    "run",
    "same_judges",
]

TOLERANCE = 0.07
"""How far below the asked-for speedup a measured one may lie and still count as met."""

CLOCK: dict[str, Any] = {"lasting": 5.0, "enough": 200}
"""How long results are timed beside the original, as `latency.compare` takes it."""

Recipe = Callable[..., Iterator[Result]]
Model: TypeAlias = "str | Path | nn.Module | Transformer | Traced"
Data: TypeAlias = str | Path | Sequence[str] | texts.Corpus | Examples


# ----------------------------------------------------------------------------------------------------- running


def run(
    recipe: str | Recipe,
    model: Model,
    data: Data | None,
    budget: str | Budget | Sequence[str | Budget],
    out: str | Path,
    *,
    inputs: Any = None,
    held_out: Data | None = None,
    text: str = "text",
    label: str = "label",
    sizes: str | Sequence[float | str] | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    seed: int = 0,
    threads: int | None = None,
    device: str | None = None,
    batch: int | None = None,
    length: int | None = None,
    stream: bool = False,
    **options: Any,
) -> list[Evidence]:
    """Run a recipe, and leave the smaller model, its evidence and a report in `out`.

    The same call again resumes; finished budgets are not done twice. Under several processes (torchrun, accelerate
    launch) all make the same call, and recipes that go block by block are shared out.

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
        held_out: what quality is measured on, read as `data` is, all of which then goes to the recipe; a part of `data`
            that no recipe sees if None.
        text, label: columns of tables, and of an .npz file the array of classes, in both of them; label="" for no
            classes.
        sizes: of a detector's data, sides of the squares that part small from medium from large boxes, such as "8,24"
            in pixels or "5%,15%" of the images' longer side; the data's own, or COCO's 32 and 96, if None.
        dry_run: say what would be cut and what that saves; nothing is trained or written.
        overwrite: start anew where `out` holds another run.
        seed: of everything random.
        threads: of torch, also while measuring; its own number if None.
        device: where the model is pruned and timed, such as cuda; where it is if None. Networks are pruned where they
            are, and copies of them timed and judged on the device. Training takes a GPU that is there.
        batch: sequences per batch of the measured environment; the recipe's default if None.
        length: tokens per sequence of the measured environment; the recipe's default if None. Networks have none.
        stream: leave a language model on the disk and read it block by block, for models larger than memory; time is
            not measured then. Only some recipes can.
        options: the recipe's own.

    Raises:
        InputError: an unknown or wrong option, a model, data or a budget that can't be used.
        InfeasibleError: a budget that can't be met.
        RunError: `out` is in use, holds another run, or the disk is full.
    """
    return list(
        results(
            recipe, model, data, budget, out, inputs=inputs, held_out=held_out, text=text, label=label,
            sizes=sizes, dry_run=dry_run, overwrite=overwrite, seed=seed, threads=threads, device=device, batch=batch,
            length=length, stream=stream, **options,
        )
    )  # fmt: skip


def results(
    recipe: str | Recipe,
    model: Model,
    data: Data | None,
    budget: str | Budget | Sequence[str | Budget],
    out: str | Path,
    *,
    inputs: Any = None,
    held_out: Data | None = None,
    text: str = "text",
    label: str = "label",
    sizes: str | Sequence[float | str] | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    seed: int = 0,
    threads: int | None = None,
    device: str | None = None,
    batch: int | None = None,
    length: int | None = None,
    stream: bool = False,
    **options: Any,
) -> Iterator[Evidence]:
    """As `run`, yielding each budget's evidence as soon as its model is in place."""
    function = recipes.find(recipe) if isinstance(recipe, str) else recipe
    budgets = _budgets(budget)
    given = {name: value for name, value in (("batch", batch), ("length", length)) if value is not None}
    chosen = keywords.checked(
        function, keywords.fitting(function, {**options, **given}, ("batch", "length"), seed=seed, dry_run=dry_run)
    )
    keywords.check_seed(seed)
    _check(threads=(threads, 1), batch=(batch, 1), length=(length, 1))
    flags = keywords.flat(function, chosen)
    if isinstance(chosen.get("training"), str | list):  # of a recipe that takes it as text
        Training().merge(chosen["training"])
    trade = backends.of_recipe(function)
    backends.match(trade, model, function.__name__)
    many = distributed.count()
    backends.sharing(function, many)
    trade = backends.streaming(function) if stream else trade
    if data is None and not keywords.spares(function, "data"):
        raise InputError(f"{function.__name__} needs data: give some")
    corpus, apart = splits.read(trade, data, held_out, text=text, label=label, sizes=sizes)
    if inputs is None:
        subject = trade.opened(model, device, corpus)
    elif backends.name(trade) == "network":
        subject = typing.cast(Any, trade).opened(model, device, corpus, inputs)
    else:
        raise InputError("inputs are of networks, and this recipe works on language models: leave them out")
    # Once, and before the recipe: what quality is measured on, it never sees.
    part = None if corpus is None else splits.parted(trade, corpus, apart, subject, seed=seed)
    train, judged = (None, None) if part is None else (part.train, part.held)
    warned = [part.warning] if part is not None and part.warning else []
    warned += [f"worked out by {many} processes"] if many > 1 else []
    where = _at(trade, trade.where(subject, flags.get("batch"), flags.get("length"), threads), device)
    trade.check(subject, {"length": where.length, **flags})
    settings = {
        "recipe": function.__name__,
        "budget": [str(budget) for budget in budgets],
        "seed": seed,
        "threads": where.threads,
        "device": where.device,
        "batch": where.batch,
        **({} if where.length is None else {"length": where.length}),
        **({"stream": True} if stream else {}),
        **splits.columns(text, label, sizes),
        **{name: value for name, value in flags.items() if name != "dry_run"},
        "model_sha256": trade.digest(subject),
        **({} if part is None else part.digests),
    }
    about = {
        "model": str(model) if isinstance(model, (str, Path)) else type(subject.model).__name__,
        **splits.named(data=(data, corpus), held_out=(held_out, apart)),
        **({"inputs": inputs} if isinstance(inputs, str) else {}),
    }

    def tried() -> Iterator[Evidence]:
        with tempfile.TemporaryDirectory() as folder, Run.open(folder, settings) as directory, _threads(where):
            for result in _recipe(function, subject, train, budgets, directory, chosen, seed):
                result = replace(result, notes=(*result.notes, *warned))
                yield replace(_evidence(trade, result, subject, None, where, settings, budgets), verdict="dry run")

    if dry_run:
        yield from tried() if many == 1 else distributed.by_first(lambda: list(tried()))
        return
    recorded = {**about, "versions": environment.describe()}
    with (
        guard(Path(out)),
        Run.open(out, settings, about=recorded, overwrite=overwrite, shared=True) as directory,
        _threads(where),
    ):
        names = [str(budget) for budget in budgets]
        finished, published = distributed.by_first(partial(_finished, directory, names))
        yield from finished.values()

        def kept(result: Result) -> Evidence:
            row = _evidence(trade, result, subject, judged, where, {**about, **settings}, budgets)
            if not result.cut.is_noop:
                place = result.name if len(names) > 1 else ""
                base, name = Path(about["model"]).name, str(Path(directory.root.resolve().name, place))
                directory.publish(partial(_save, trade, result.subject, row, base, name), place)
            finished[result.name] = row
            # The record comes after the model it speaks of: what is recorded is in place.
            evidence.write(_record(directory, result.name), row)
            published[:] = [finished[name] for name in names if name in finished]
            publish_evidence(directory.root, published)
            return row

        if len(finished) < len(names):
            for result in _recipe(function, subject, train, budgets, directory, chosen, seed):
                if result.name in finished:
                    continue
                result = replace(result, notes=(*result.notes, *warned))
                finished[result.name] = distributed.by_first(partial(kept, result))
                yield finished[result.name]
        rows = [finished[name] for name in names if name in finished]

        def last() -> None:
            if rows != published or not (directory.root / "report.html").is_file():
                publish_evidence(directory.root, rows)

        distributed.by_first(last)


def _finished(directory: Run, names: Sequence[str]) -> tuple[dict[str, Evidence], list[Evidence]]:
    """(name -> what a run that was here before has recorded of that budget, what it has published)."""
    published = _published(directory.root)
    added = {row.target: row.baselines for row in published}
    finished = dict[str, Evidence]()
    for name in names:
        if _record(directory, name).exists():
            row = evidence.read(_record(directory, name))[0]
            finished[name] = replace(row, baselines=added.get(name, row.baselines))
    return finished, published


def same_judges(row: Evidence, held_out: Any, arm: Evidence | None = None) -> None:
    """Refuse held-out data, before an `arm` is made or of one that was, on which the run's result was not measured."""
    digest = row.settings.get("held_out_sha256")
    if (digest is None) == (held_out is None) and (arm is None or arm.settings.get("held_out_sha256") == digest):
        return
    part, named = "a part of the data: leave held_out out", f"{row.settings.get('held_out')}: give that as held_out"
    raise InputError(f"the result {row.target} was measured on {part if digest is None else named}")


def _recipe(
    function: Recipe,
    subject: Any,
    corpus: Any,
    budgets: Sequence[Budget],
    directory: Run,
    chosen: Mapping[str, Any],
    seed: int,
) -> Iterator[Result]:
    """The recipe's results, with every source of chance seeded."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - for libraries that draw from the global generator
    torch.manual_seed(seed)
    yield from function(subject, corpus, budgets, directory, **chosen)


def _budgets(given: str | Budget | Sequence[str | Budget]) -> list[Budget]:
    many = [given] if isinstance(given, (str, Budget)) else list(given)
    found = list({str(budget): budget for budget in map(Budget.parse, many)}.values())
    if not found:
        raise InputError("no budget was given: say for example budget='speedup=2x'")
    return found


def _check(**numbers: tuple[int | None, int]) -> None:
    for name, (value, least) in numbers.items():
        if value is not None and not (isinstance(value, int) and value >= least):
            raise InputError(f"{name}={value!r} is not a whole number of at least {least}")


@contextmanager
def _threads(where: latency.Environment) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(where.threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _record(directory: Run, name: str) -> Path:
    return directory.path(f"evidence-{name}.json")


def _published(root: Path) -> list[Evidence]:
    """What evidence.json holds, with the baselines that studies added; nothing where there is none to be read."""
    try:
        return evidence.read(root)
    except RunError:
        return []


def _save(trade: Trade, subject: Any, row: Evidence, base: str, name: str, folder: Path) -> None:
    trade.save(subject, folder)
    (folder / "README.md").write_text(_card(row, base, trade.loading(folder, name)), encoding="utf-8")


def publish_evidence(root: Path, rows: Sequence[Evidence]) -> None:
    """Write evidence.json and report.html of the run directory `root`."""
    from secateur.reports import report as pages  # draws with matplotlib, slow to import

    places = {row.target: root / row.target if (root / row.target).is_dir() else root for row in rows}
    load = {}
    for target, place in places.items():
        trade = backends.of_folder(place)
        if trade is not None:
            load[target] = trade.loading(place, str(place.relative_to(root.parent)))
    evidence.write(root / "evidence.json", rows)
    pages.write(root / "report.html", rows, load=load)


def _card(row: Evidence, base: str, load: str) -> str:
    """The model card: what was cut, what it costs and keeps beside the original, and how to load it."""
    removed = sorted(
        (site, gone, count) for site, (gone, count) in (row.cut.removed if row.cut else {}).items() if gone
    )
    training = f", then trained for {row.recovery.steps} steps against the original" if row.recovery else ""
    lines = [
        f"---\nlibrary_name: {load.split()[1].replace('_', '-')}\ntags: [secateur, pruned]\n---",
        f"# {base} cut to {row.target}",
        f"Cut from {base} by secateur's recipe `{row.recipe}`{training}. Verdict: {row.verdict}.",
        "## Evidence",
        evidence.markdown(evidence.table(row)),
        f"Measured at {row.environment.get('measured_at')}.",
        "## What was cut",
        evidence.markdown(
            [("Site", "Removed", "Of"), *((site, str(gone), str(count)) for site, gone, count in removed)]
        ),
        *(f"- {note}" for note in (row.cut.notes if row.cut else ())),
        "## How to load it",
        f"```python\n{load}\n```",
    ]
    if "trust_remote_code" in load:
        lines.append("Its layers differ in width, so a modelling file travels along. To load it without running that: "
                     "`secateur.load(...)`.")  # fmt: skip
    return "\n\n".join(lines) + "\n"


# ----------------------------------------------------------------------------------------------------- options


def options(recipe: str | Recipe) -> dict[str, Any]:
    """A recipe's options and their default values."""
    function = recipes.find(recipe) if isinstance(recipe, str) else recipe
    return keywords.flat(function, {name: parameter.default for name, parameter in keywords.of(function).items()})


def configured(path: str | Path, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What to call `run` with: the settings in the YAML file `path`, where `given` does not say otherwise.

    The `run.yaml` of every run directory is such a file: `run(**configured("small/run.yaml"), out="again")`.

    Raises:
        InputError: no such file, not YAML, or a key that neither `run` nor the recipe knows.
    """
    return configs.read(path, "run", run, given, more=options)


# --------------------------------------------------------------------------------------------------- measuring


def _evidence(
    trade: Trade,
    result: Result,
    original: Any,
    held_out: Any,
    where: latency.Environment,
    settings: Mapping[str, Any],
    budgets: Sequence[Budget],
) -> Evidence:
    """Measure `result` beside the `original`: sizes, time in alternating pairs, and quality on `held_out` texts."""
    before, after, measured, notes = compare(original, result.subject, held_out, where, trade)
    notes += _elsewhere(before, after, original, result, held_out, where, trade)
    budget = next((budget for budget in budgets if str(budget) == result.name), budgets[0])
    if budget.pattern is not None:
        measured["off_pattern"], found = _pattern(
            trade.matrices(result.subject),
            budget.pattern,
            every=backends.name(trade) != "network",
            masked=getattr(result.subject, "masks", {}),
            each=result.patterns,
        )
        notes += found
    notes += _worth(before, after, measured)
    stages, found = _others(result.stages, original, held_out, where, trade)
    notes += found
    rivals, found = _others(result.beside, original, held_out, where, trade)
    notes += found + list(filter(None, (_gap(name, {**after, **measured}, row) for name, row in rivals.items())))
    predicted = dict(result.predicted)
    if "latency" in predicted and "latency" in before:
        predicted.setdefault("speedup", before["latency"].value / predicted["latency"])
    row = Evidence(
        recipe=str(settings["recipe"]),
        target=str(budget),
        predicted=predicted,
        measured=measured,
        before=before,
        after=after,
        baselines=rivals,
        stages=stages,
        cut=replace(result.cut, notes=(*result.cut.notes, *result.notes, *notes)),
        recovery=result.recovery,
        environment={**environment.describe(), "measured_at": str(where)},
        settings=settings,
    )
    return replace(
        row, verdict=evidence.judge(row, tolerance=TOLERANCE) or "missed: could not be measured, see the notes"
    )


def compare(
    original: Any, student: Any, held_out: Any, where: latency.Environment, trade: Trade
) -> tuple[dict[str, Figure], dict[str, Figure], dict[str, Figure], list[str]]:
    """(before, after, what the two give together, notes): both models measured in the environment `where`."""
    notes: list[str] = []
    example = trade.example(original, where)
    before, after = trade.sizes(original, example), trade.sizes(student, example)
    measured: dict[str, Figure] = {}
    original, student = _placed(trade, where, original, student)
    with where.active():
        try:
            pair = latency.compare(
                lambda: trade.forward(original, example), lambda: trade.forward(student, example),
                device=where.device, **CLOCK,
            )  # fmt: skip
            before["latency"], after["latency"], measured["speedup"] = pair.before, pair.after, pair.speedup
        except MeasurementError as error:
            notes.append(f"time: {error}")
        with suppress(MeasurementError):
            for row, subject in ((before, original), (after, student)):
                row["peak_memory"] = _peak(trade, subject, example, where)
    if held_out is not None:
        try:
            first, second, both = trade.compared(original, student, held_out, where)
            before, after, measured = {**before, **first}, {**after, **second}, {**measured, **both}
            notes += splits.remarks(held_out, first)
        except (DataError, MeasurementError) as error:
            notes.append(f"quality: {error}")
    return before, after, measured, notes


def _elsewhere(
    before: dict[str, Figure],
    after: dict[str, Figure],
    original: Any,
    result: Result,
    held_out: Any,
    where: latency.Environment,
    trade: Trade,
) -> list[str]:
    """Add the quality of both models on what else the recipe wants them judged by; notes on what can't be measured."""
    notes: list[str] = []
    for name, corpus in result.judged.items() if held_out is not None else ():
        try:
            dense, student = _placed(trade, where, original, result.subject)
            with where.active():
                first, second, _ = trade.compared(dense, student, trade.fitted(corpus, original), where)
        except (DataError, MeasurementError) as error:
            notes.append(f"quality on {name} data: {error}")
            continue
        for row, figures in ((before, first), (after, second)):
            row.update({f"{name}/{measure}": figure for measure, figure in figures.items()})
    return notes


def _at(trade: Trade, where: latency.Environment, device: str | None) -> latency.Environment:
    """Networks are measured on the device that is asked for, wherever they are."""
    return replace(where, device=device) if device is not None and backends.name(trade) == "network" else where


def _placed(trade: Trade, where: latency.Environment, *subjects: Any) -> tuple[Any, ...]:
    """The subjects where they are measured; language models are there."""
    if backends.name(trade) != "network":
        return subjects
    return tuple(typing.cast(Any, trade).placed(one, where) for one in subjects)


def _others(
    made: Mapping[str, Any], original: Any, held_out: Any, where: latency.Environment, trade: Trade
) -> tuple[dict[str, dict[str, Figure]], list[str]]:
    """(name -> figures, notes) of what a recipe made beside its result, or on the way to it: all but time."""
    rows, notes = dict[str, dict[str, Figure]](), list[str]()
    for name, rival in made.items():
        rows[name] = trade.sizes(rival, trade.example(original, where))
        if held_out is None:
            continue
        try:
            dense, small = _placed(trade, where, original, rival)
            with where.active():
                _, after, both = trade.compared(dense, small, held_out, where)
            rows[name] |= {**after, **both}
        except (DataError, MeasurementError) as error:
            notes.append(f"quality of {name}: {error}")
    return rows, notes


def _gap(name: str, ours: Mapping[str, Figure], theirs: Mapping[str, Figure]) -> str:
    """A rival's quality beside the result's, in the first measure that both have; nothing where there is none."""
    both = (one for one in display.order(theirs) if display.measure(one).role == "quality" and one in ours)
    measure = next(both, None)
    if measure is None:
        return ""
    label = display.measure(measure).label
    return f"{name}: {label} {display.text(measure, theirs[measure])} beside {display.text(measure, ours[measure])}"


def _pattern(
    matrices: Mapping[str, Tensor],
    pattern: Pattern,
    every: bool,
    masked: Collection[str] = (),
    each: Mapping[str, Pattern] | None = None,
) -> tuple[Figure, list[str]]:
    """How many runs of weights of the result break the pattern, and the first matrix that does.

    A matrix may be left dense where its inputs are no multiple of m, and in a network of any kind, where `every` is
    False, if the recipe chose to (first convolutions, small heads); which ones is said. Where a result names those
    that are `masked`, all others were left dense, whatever zeros rounding has put there. A result that gave `each`
    matrix a pattern of its own is held to these, as long as their mean is no more than what was asked for.
    """
    off, short, kept, whole = dict[str, int](), list[str](), 0, 0
    for name, matrix in matrices.items():  # once each: they may be read from the disk
        one = (each or {}).get(name, pattern)
        off |= sparsity.broken({name: matrix}, one.n, one.m)
        kept, whole = kept + one.n * matrix.numel(), whole + one.m * matrix.numel()
        short += [name] if matrix.shape[1] % pattern.m else []
    if each and (kept * pattern.m > pattern.n * whole or any(one.m != pattern.m for one in each.values())):
        return _pattern(matrices, pattern, every, masked)
    spared = [
        name
        for name in off
        if (masked and name not in masked)
        or (
            (not every or matrices[name].shape[1] % pattern.m)
            and torch.count_nonzero(matrices[name]) == matrices[name].numel()
        )
    ]
    if len(spared) == len(matrices):
        spared = []
    wrong = {name: count for name, count in off.items() if name not in spared}
    notes = [f"left dense by {pattern}: {_listed(spared)}"] if spared else []
    short = [name for name in short if name not in spared]
    if short:
        notes.append(f"{pattern} leaves the last inputs dense, which fill no group of {pattern.m}, in {_listed(short)}")
    if wrong:
        first, count = next(iter(wrong.items()))
        most = (each or {}).get(first, pattern).n
        notes.append(
            f"{pattern} does not hold in {_listed(list(wrong))}: {display.thousands(count)} runs of {pattern.m} "
            f"weights of the first have more than {most} that are not zero"
        )
    return Figure(float(sum(wrong.values()))), notes


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _worth(before: Mapping[str, Figure], after: Mapping[str, Figure], measured: Mapping[str, Figure]) -> list[str]:
    """What zeros brought where they brought nothing: weights that are zero are stored and multiplied like others."""
    zeros, speedup = after.get("zeros"), measured.get("speedup")
    if zeros is None or zeros.value <= sparsity.WORTH or after["bytes"].value < before["bytes"].value:
        return []
    if speedup is not None and (speedup.value if speedup.low is None else speedup.low) > 1.0:
        return []
    time = "" if speedup is None else f" and it is not measurably faster ({display.text('speedup', speedup)})"
    return [
        f"{display.number('zeros', zeros.value)} of the weights in its matrices are zero, stored and multiplied like "
        f"the others: the file is no smaller{time}; packed it would take "
        f"{display.number('bytes', after['packed_bytes'].value)} in place of "
        f"{display.number('bytes', after['bytes'].value)}"
    ]


def _peak(trade: Trade, subject: Any, example: Any, where: latency.Environment) -> Figure:
    return memory.allocated(torch.no_grad()(partial(trade.forward, subject, example)), device=where.device)


# ------------------------------------------------------------------------------------------- the other commands


def inspect(model: Model, *, batch: int = 1, length: int = 128, **options: Any) -> dict[str, Any]:
    """What could go in a model, and what that would save. Networks: see `secateur.runs.inspection.inspect`.

    Returns {"model": architecture, "kind": ..., "cost": measure -> total, "axes": [{"kind", "sites", "units", "share":
    measure -> share of the whole that goes when every unit of that kind goes}]}.
    """
    _check(batch=(batch, 1), length=(length, 1))
    trade = backends.of_model(model)
    if backends.name(trade) != "language":
        from secateur.runs import inspection  # draws

        return inspection.inspect(typing.cast(Any, model), **options)
    if any(value is not None for value in options.values()):
        raise UnsupportedError(f"{', '.join(options)}: only for networks, given as file.py:function or as a module")
    subject = trade.opened(model)
    units = subject.units(batch=batch, length=length)
    whole = units.cost()
    rows = []
    for kind in dict.fromkeys(site.kind for site in units.sites.values()):
        sites = [site for site in units.sites.values() if site.kind == kind]
        without = units.cost({site.name: np.zeros(site.count, bool) for site in sites})
        shares = {measure: 1.0 - without.get(measure, 0.0) / total for measure, total in whole.items() if total}
        rows.append({"kind": kind, "sites": len(sites), "units": sum(site.count for site in sites), "share": shares})
    return {"model": type(subject.model).__name__, "kind": subject.kind, "cost": whole, "axes": rows}


def measure(
    model: Model,
    against: Model | Sequence[Model] | None = None,
    data: Data | None = None,
    *,
    text: str = "text",
    label: str = "label",
    sizes: str | Sequence[float | str] | None = None,
    tasks: Sequence[str] = (),
    task_folder: str | Path | None = None,
    limit: int | None = None,
    batch: int | None = None,
    length: int | None = None,
    threads: int | None = None,
    device: str | None = None,
) -> dict[str, dict[str, Figure]]:
    """Measure a model, or a model `against` another: {"model": ..., "against": ..., "both": speedup and fidelity}.

    Against several, such as its teachers, both parts are there of each: "against NAME" and "both NAME"; and of their
    averaged ensemble how good it is, "ensemble", and the model's loyalty to it, "both ensemble", where `data` is given
    and they tell classes, tokens or numbers, whose mean can be taken.

    Quality is measured where `data` is given, on all of it, with texts and classes from its columns `text` and `label`
    (of an .npz file the classes from that array; "" for none), with boxes small, medium or large by `sizes` (see
    `run`), and on the lm-eval `tasks` named, of its own or of YAML files in `task_folder`, on the first `limit`
    documents of each. A network that was cut stands in the folder of its run; its original, `against`, says what it was
    made of.
    """
    _check(threads=(threads, 1), batch=(batch, 1), length=(length, 1), limit=(limit, 1))
    others: list[Any] = list(against) if isinstance(against, list | tuple) else [] if against is None else [against]
    for one in (model, *others):
        if isinstance(one, str | Path) and Path(one).suffix == ".onnx":
            raise UnsupportedError(
                f"{one} is an ONNX file, without the code by which models are measured: measure what it was exported "
                "from, whose outputs it gives, or a detector's boxes by secateur.subjects.network.exported.Exported"
            )
    if several := len(others) > 1:
        from secateur.runs.distilling import together  # one model does without

        names = together.named(others)
    trade = backends.of_model(next(iter(others), model))
    if backends.name(trade) == "language":  # quantised models can be measured, though not pruned
        model, others = _any_weights(model), [_any_weights(one) for one in others]
    corpus, _ = splits.read(trade, data, text=text, label=label, sizes=sizes)
    others = [trade.opened(one, device, corpus) for one in others[:1]] + others[1:]
    others[1:] = [trade.again(one, others[0], device) for one in others[1:]]
    subject = trade.again(model, others[0], device) if others else trade.opened(model, device, corpus)
    corpus = None if corpus is None else trade.fitted(corpus, subject)
    here = trade.where(subject, batch, length, threads)
    where = _at(trade, here, device)
    trade.check(subject, {"length": where.length})
    if tasks and (getattr(subject, "kind", "") != "decoder" or subject.tokenizer is None):
        raise InputError("lm-eval tasks need a language model with its tokenizer")
    if several:
        together.check(trade, subject, dict(zip(names, others, strict=True)), here)

    def ask(one: Any) -> dict[str, Figure]:
        if not tasks:
            return {}
        return generation.evaluate(one.model, one.tokenizer, tasks, include_path=task_folder, limit=limit)

    found: dict[str, dict[str, Figure]] = {"model": {}}
    for number, other in enumerate(others):
        with _threads(where):
            before, after, both, notes = compare(other, subject, corpus, where, trade)
        if "speedup" not in both:
            raise MeasurementError(notes[0])
        end = f" {names[number]}" if several else ""
        found |= {"model": after | found["model"], f"against{end}": before | ask(other), f"both{end}": both}
    if several and corpus is not None:
        found |= together.ensemble(trade, subject, others, corpus, here)
    if others:
        return found | {"model": found["model"] | ask(subject)}
    example = trade.example(subject, where)
    row = trade.sizes(subject, example)
    (subject,) = _placed(trade, where, subject)
    with where.active():
        row["latency"] = latency.median_time(lambda: trade.forward(subject, example), device=where.device)
        row["peak_memory"] = _peak(trade, subject, example, where)
    if corpus is not None:
        row |= trade.compared(subject, subject, corpus, where)[0]
    return {"model": row | ask(subject)}


def _any_weights(model: Model) -> Model:
    from secateur.subjects import open_subject

    return open_subject(model, quantised=True) if isinstance(model, str | Path) else model


def report(run_dir: str | Path) -> Path:
    """Write the report of a run directory anew from its evidence; returns the page."""
    root = Path(run_dir)
    publish_evidence(root, evidence.read(root))
    return root / "report.html"


FORMS = ("onnx", "decilm", "packed", "packed-int8", "masks", "int8", "int4")
"""What `export` writes."""


def export(
    folder: str | Path, to: str, out: str | Path | None = None, *, data: Data | None = None, stream: bool = False
) -> tuple[Path, tuple[str, ...]]:
    """Write the model or network in `folder` in another form, checked against its own output.

    - onnx: any model or network; decilm: Llama-shaped models, for inference engines
    - packed: without the zeros of its matrices, equal bit for bit; masks: what is not zero, one bit for each weight
    - int8, int4: weights of the blocks' matrices quantised, zeros kept; `exporting.QUANTISED` says how near outputs
      have to be, and with `data` quality is measured before and after
    - packed-int8: both, integers of 8 bits without their zeros

    With `stream` a language model stays on the disk and is packed or quantised a block at a time.

    Returns the new folder (`out`, or `folder`/`to`) and notes on what the form could not hold as it was.

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
    target = Path(out) if out is not None else Path(folder) / to
    if target.exists():
        raise InputError(f"{target} is there already: choose another folder, or remove it")
    from secateur.runs import exporting  # imports more than the other commands need

    subject = exporting.opened(folder, to, stream=stream)
    with writing(target) as temporary:
        notes = exporting.write(subject, temporary, to, data)
    return target, notes
