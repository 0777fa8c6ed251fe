"""From a study's name to its answer, `secateur study`: open, plan, answer, write.

out/run.yaml       what repeats the study
out/study.json     its figures, seed by seed, with settings and seeds
out/study.html     the same as tables and a chart
out/work/          the runs of its recipe
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import yaml

from secateur import recipes, studies
from secateur._utils.disk import atomic_write
from secateur._utils.rundir import Run
from secateur.errors import DataError, InputError
from secateur.measure.environment import describe as describe_machine
from secateur.reports import sheet
from secateur.reports.sheet import Sheet, Table
from secateur.runs import configs, keywords, splits
from secateur.runs.backends import Data, Source, of_source, resolve
from secateur.runs.executor import hash_files, open_run

__all__ = ["configured", "study"]

T = TypeVar("T")

NETWORKS = "secateur.runs.backends.network:Network"
"""Backend of the subjects of studies over a recipe."""

_ALWAYS = ("model_sha256", "data_sha256")
"""Hashes that all records have."""

_WRITES = ("export", "write")
"""Options of studies that name folders to write into."""

ANY = "any"
"""What a card says whose study takes models of several backends."""


def study(
    study: str,
    model: Source | None = None,
    data: Data | None = None,
    out: str | Path = "",
    *,
    device: str | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    **options: object,
) -> Sheet:
    """Answer a study, and leave study.json and study.html in `out`; what was trained for it is not trained again.

    Args:
        study: its name: `studies.cards` has them.
        model: for a study over a recipe, what that recipe takes: a module, or "file.py:function"; for a study of a
            language model its folder or Hub id.
        data: examples, as `examples.read` takes them, or what the study says that it reads.
        out: the folder. The same call again resumes, and a larger grid in the same folder trains what is new.
        device: device to run the model of the study on, such as cuda or cpu; where the model is if None.
        dry_run: say how many trainings it will be; nothing is trained or written.
        overwrite: start anew where `out` holds another study.
        options: the study's own, those of its recipe that it does not set itself, and how it reads its examples or
            texts: `text`, `label`, `transform`, `size` and `workers`, as `secateur.run` has them.

    Raises:
        InputError: an unknown or wrong option, a network or data that can't be used.
        InfeasibleError: a share that can't be met.
        RunError: `out` is in use, holds another run, or the disk is full.
    """
    studies.options(study)  # an unknown study is refused before its module is looked for
    card, module = studies.cards()[study], importlib.import_module(f"secateur.studies.{study}")
    function = getattr(module, study)
    reading: dict[str, Any] = {one.name: options.pop(one.name) for one in studies.reading(card) if one.name in options}
    own, rest = _split_options(study, function, card, options)
    keywords.check_seed(*own.get("seeds", ()))
    read = partial(splits.read, **reading)
    subject, examples, judged, hashes = _open(study, card, module, model, (data, own.get("judged")), device, read)
    asked = own if judged is None else {**own, "judged": judged}
    planned = module.plan(subject, examples, **asked, **rest)
    if dry_run:
        rows = [["What", "How many"], *([name, str(count)] for name, count in planned.items())]
        summary = ", ".join(f"{count} {name}" for name, count in planned.items())
        return Sheet(study, f"dry run: {summary}", [Table(f"study {study}: what it takes", rows)], planned)
    varied = card["grid"].split()
    hashes |= _hash_options(function, card, own, rest, out)
    settings = {
        "command": "study", "study": study,
        **{k: v for k, v in keywords.flat(function, own).items() if k not in varied},
        **{k: v for k, v in rest.items() if k in options}, **_name_reading(examples, **reading), **hashes,
    }  # fmt: skip
    grid = json.loads(json.dumps({name: own[name] for name in varied}))  # lists, as YAML has them
    beside = {} if reading.get("workers") is None else {"workers": reading["workers"]}
    named = {**_source_names(subject, model, data, examples), **beside}
    # What records of an older version do not have.
    older = {**keywords.defaults(function), **{k: v for k, v in hashes.items() if k not in _ALWAYS}}
    with open_run(out, settings, {**grid, **named}, overwrite=overwrite, defaults=older) as run:
        progress = iter if examples is None else partial(_announce, run)
        answer: Sheet = function(subject, examples, run.folder("runs"), progress, **asked, **rest).sheet()
        record = run.root / "run.yaml"
        before = yaml.safe_load(record.read_text("utf-8"))
        if {name: before.get(name) for name in grid} != grid:  # the grid has grown since the folder was made
            atomic_write(record, yaml.safe_dump({**before, **grid}, sort_keys=False))
        sheet.write(run.root, answer, {**settings, **grid, **named}, environment=describe_machine(),
                    run_yaml=record.read_text("utf-8"))  # fmt: skip
    return answer


def configured(path: str | Path, given: Mapping[str, object] | None = None) -> dict[str, Any]:
    """What to call `study` with: the settings in a YAML file, such as a run.yaml, where `given` says nothing else.

    Raises `InputError` where the file, or a key in it, can't be used.
    """
    return configs.read(
        path, "study", study, given, more=lambda name: [one.name for one in studies.options(name)], key="study"
    )


def _split_options(
    name: str, function: Callable[..., object], card: Mapping[str, str], options: Mapping[str, object]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the study's own options, those of its recipe), checked; those of the recipe that were given."""
    mine = keywords.defaults(function)
    theirs = {key: value for key, value in options.items() if key not in mine}
    own = keywords.check_options(function, {key: value for key, value in options.items() if key in mine})
    for key in theirs:
        if key in card["sets"].split():
            raise InputError(f"study {name} sets {key} itself: leave it out")
    if not card["recipe"]:
        if theirs:
            raise InputError(f"study {name} has no option {next(iter(theirs))!r}: it has {', '.join(mine)}")
        return own, {}
    recipe = recipes.find(card["recipe"])
    shared = {key: value for key, value in keywords.flat(function, own).items() if key in keywords.defaults(recipe)}
    checked = keywords.flat(recipe, keywords.check_options(recipe, {**theirs, **shared}))
    return own, {key: checked[key] for key in theirs}


def _open(
    study: str,
    card: Mapping[str, str],
    module: ModuleType,
    model: Source,
    sources: tuple[Data, Data],
    device: str | None,
    read: partial[tuple[splits.Dataset | None, splits.Dataset | None]],
) -> tuple[Source, Data, Data, dict[str, str]]:
    """(what the study is about, what it reads, what it judges on, their hashes); None for what it does without.

    A study over a recipe takes networks and examples; one whose card names a `backend` what that opens, and reads what
    its module's `read` does, or else the backend. Raises as `study`.
    """
    name, reads = card.get("backend", NETWORKS if card["recipe"] else ""), card.get("reads", "")
    data, judged = sources
    if not name:
        if device is not None:
            raise InputError(f"study {study} runs no model: leave device out")
        if not reads and (model is not None or data is not None):
            raise InputError(f"study {study} takes no MODEL and no --data: everything is drawn")
        if reads and (model is not None or data is None):
            raise InputError(f"study {study} takes no MODEL and reads {reads}: give it as --data")
        if not reads:
            return None, None, None, {}
        examples = module.read(data)
        return None, examples, None, {"data_sha256": examples.digest}
    backend = of_source(model) if name == ANY else resolve(name)
    if model is None or data is None:
        raise InputError(
            f"study {study} needs a model ({backend.example}) and reads {reads}: give MODEL and --data"
            if reads else f"study {study} needs a network and examples: give MODEL and --data"
        )  # fmt: skip
    apart = None
    if reads:
        examples = module.read(data)
        subject = backend.open(model, device, None)
    else:
        examples, apart = read(backend, data, judged or None)
        subject = backend.open(model, device, examples)
        examples = backend.fit_data(examples, subject)
        if getattr(examples, "targets", None):
            raise DataError(f"{examples.name} holds boxes: study {study} counts right classes; give labels")
    hashes = {"model_sha256": backend.digest(subject), "data_sha256": examples.digest}
    return subject, examples, apart, hashes if apart is None else {**hashes, "judged_sha256": apart.digest}


def _name_reading(
    examples: Data,
    text: str = "text",
    label: str = "label",
    transform: object = None,
    size: object = None,
    workers: object = None,
) -> Mapping[str, object]:
    """What settings say of how examples were read; by how many `workers` says nothing."""
    return splits.columns(text, label, data=examples, transform=transform, size=size)


def _hash_options(
    function: Callable[..., object],
    card: Mapping[str, str],
    own: Mapping[str, object],
    rest: Mapping[str, object],
    out: str | Path,
) -> dict[str, str]:
    """Hashes of the files that options name. Those of the grid may change: what is made is kept by what they hold."""
    left = {*card["grid"].split(), *_WRITES, "judged"}
    mine = {name: value for name, value in keywords.flat(function, own).items() if name not in left}
    found = hash_files(function, mine, out)
    return found | hash_files(recipes.find(card["recipe"]), rest, out) if rest else found


def _source_names(subject: Source, model: Source, data: Data, examples: Data) -> dict[str, str]:
    """The model, if there is one, and the data as they were given, to be found again."""
    if examples is None:
        return {}
    named = {"data": str(data) if isinstance(data, str | Path) else examples.name}
    if subject is None:
        return named
    return {"model": str(model) if isinstance(model, str | Path) else type(subject.model).__name__, **named}


def _announce(run: Run, trials: Sequence[T]) -> Iterator[T]:
    """The trials, each announced in a line on the standard error; what is done stays, be it that one is refused."""
    for number, one in enumerate(trials, 1):
        print(f"{number} of {len(trials)}: {one}", file=sys.stderr, flush=True)
        yield one
        run.keep()
