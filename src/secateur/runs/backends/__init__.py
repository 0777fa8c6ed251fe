"""Backend protocol: open, feed, place, time, evaluate and save one family of subjects; one class per file.

A subject class names its backend, `backend = "package.module:Class"`, and a recipe works on the class that annotates
its first parameter. Other packages register a backend under the entry point group `secateur.backends`, so that
`inspect` and `measure` find it by what it takes.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import re
import types
import typing
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, cast

import numpy as np

from secateur._utils import entry_points
from secateur.errors import InputError, MeasurementError, UnsupportedError
from secateur.runs import places
from secateur.vocabulary import Budget, Figure, Subject, Units

if TYPE_CHECKING:  # torch takes seconds, and pages are cut without it
    from torch import Tensor, nn
    from transformers import PretrainedConfig

    from secateur.measure.latency import Environment

__all__ = [
    "AnyBackend", "Backend", "Data", "Row", "Source", "axes_of", "check_source", "commonest_share",
    "describe_config", "hash_model", "is_network", "name_source", "note_rows", "of_folder", "of_part", "of_recipe",
    "of_source", "of_subject", "resolve",
    "works_by_blocks",
]  # fmt: skip

Row: TypeAlias = dict[str, Figure]
Source: TypeAlias = Any
"""What a user gives for a subject: a path, a name, the subject itself, or an object of the library it is of."""
Data: TypeAlias = Any
"""What a user gives for data: a path, a name, or what is in memory already."""

S = TypeVar("S")
D = TypeVar("D")
B = TypeVar("B")

_GROUP = "secateur.backends"
_LANGUAGE = "secateur.runs.backends.language:Language"
_NETWORK = "secateur.runs.backends.network:Network"
_BUILT_IN = ("secateur.runs.backends.dataset:Datasets", _NETWORK, _LANGUAGE)
"""Asked in this order what they take, after those of other packages: any other name is a model's folder or Hub id."""


class Backend(Protocol[S, D, B]):
    """One family of subjects S, which reads data D and is timed on a batch B.

    A class of one's own derives from this and need not say what it does as all do: by default nothing is timed and no
    quality is measured, and sizes are the costs that the subject counts itself.

    family: in messages, such as "networks". example: what to give for a subject, in messages. noun: what data holds.
    batch, length: of the timed environment, for recipes without options of that name. command: what runs its recipes.
    on_disk: whether subjects stay on the disk and are read block by block. dense_allowed: whether a recipe may leave
    matrices without the n:m pattern of its budget. has_inputs: whether subjects are opened with example inputs.
    """

    family: str
    example: str = "its folder"
    noun: str = "examples"
    batch: int = 32
    length: int | None = None
    command: str = "run"
    on_disk: bool = False
    dense_allowed: bool = False
    has_inputs: bool = False

    def takes(self, source: Source) -> bool:
        """Whether `open` can make a subject of `source`, by its name or its kind; what it holds is not read."""
        return False

    def accepts(self, source: Source) -> bool:
        """Whether `open` can where a recipe of this family asks for it, though another backend is asked first."""
        return self.takes(source)

    def check_config(self, source: Source, recipe: str) -> None:
        """Refuse, before weights are read, what its configuration says that a recipe can't work with."""
        return None

    def read(self, data: Data, text: str = "text", label: str = "label") -> D:
        """Read the data, from wherever the caller has it; texts and classes are in the columns named.

        Raises `DataError` for data that is not there or has no such column.
        """
        ...

    def open(self, source: Source, device: str | None = None, data: D | None = None, inputs: object = None) -> S:
        """Open the source as a subject, on the device; `inputs` are example inputs of networks."""
        ...

    def open_whole(self, source: Source, device: str | None = None, data: D | None = None, inputs: object = None) -> S:
        """As `open`, to be measured or trained: nothing is looked for that can be cut, nor has to be there."""
        return self.open(source, device, data, inputs)

    def make_floats(self, subject: S) -> S:
        """The subject, or where its weights are integers one in floating point, with a warning: only that can be cut.

        Raises `UnsupportedError` where it can't be made.
        """
        return subject

    def open_part(self, source: Source, part: str) -> S:
        """Open a part of a model of several as a subject."""
        raise InputError(f"part={part} is of a part of a model, which {self.family} don't have: leave it out")

    def open_pair(self, source: Source, after: Source) -> S:
        """Open a model and the one that a training made of it as one subject."""
        raise InputError(f"after (--with) is of recipes on what a training changed, not of {self.family}: leave it out")

    def reopen(self, source: Source, original: S, device: str | None = None) -> S:
        """Open another subject, to be compared with `original`."""
        return self.open(source, device)

    def load_any(self, source: Source, device: str | None = None) -> Source:
        """What `open` takes in place of a name whose subject can be measured and not pruned, and goes to the device."""
        return source

    def fit_data(self, data: D, subject: S) -> D:
        """The data as the subject takes it. Raises `InputError` or `DataError` where it can't."""
        return data

    def environment(
        self, subject: S, batch: int | None, length: int | None, threads: int | None, device: str | None = None
    ) -> Environment:
        """Where the subject is measured: `device` if given, else where its kind is usually measured."""
        import torch

        from secateur.measure.latency import Environment

        return Environment(batch or self.batch, length, threads or torch.get_num_threads(), device or "cpu")

    def check_clock(self, subject: S, environment: Environment) -> None:
        """Refuse what the subject can't be timed at or by: decoding and other runtimes are of language models."""
        if (environment.phase, environment.timer) != ("prefill", "eager"):
            raise InputError(
                f"environment and timer are of language models in memory, not of {self.family}: leave them out"
            )

    def check(self, subject: S, options: Mapping[str, object]) -> None:
        """Refuse options that the subject can't follow."""
        return None

    def note_lengths(self, subject: S, options: Mapping[str, object]) -> list[str]:
        """A note for each option that asks for longer sequences than the subject was made for; none here."""
        return []

    def check_place(self, subject: S, recipe: str, *, by_blocks: bool, lacking: str | None = None) -> None:
        """Refuse a subject that is not where the recipe can work on it.

        by_blocks: it takes a part at a time. lacking: what options it needs for a subject that is not in memory as a
        whole; "" where it needs no others, None where it can't work on such a one.
        """
        return None

    def describe_memory(
        self, subject: S, budgets: Sequence[Budget], options: Mapping[str, object], environment: Environment
    ) -> str:
        """A line for dry runs on what such a recipe takes at its highest point; "" where that is not known."""
        return ""

    def digest(self, subject: S) -> str:
        """A hash that tells this subject from any other."""
        ...

    def make_example(self, subject: S, environment: Environment) -> B:
        """A batch of the size that is timed."""
        ...

    def place(self, subject: S, environment: Environment) -> S:
        """The subject where it is measured."""
        return subject

    def forward(self, subject: S, batch: B) -> Any:
        """What is timed. Raises `MeasurementError` where there is nothing to time."""
        raise MeasurementError(f"{self.family} are not run")

    def make_run(self, subject: S, environment: Environment) -> Callable[[], object]:
        """One call of the subject as it is timed in the environment, ready to run."""
        return functools.partial(self.forward, subject, self.make_example(subject, environment))

    def matrices(self, subject: S) -> Mapping[str, Tensor]:
        """Name -> weights [d_out, d_in] that may be pruned one by one."""
        return {}

    def sizes(self, subject: S, batch: B) -> Row:
        """What can be counted on the subject."""
        costs = cast(Subject, subject).units().cost()
        return {name: Figure(cost, unit="B" if name == "bytes" else "") for name, cost in costs.items()}

    def find_unmeasured(self, subject: S) -> Mapping[str, str]:
        """Measure -> why `sizes` can't tell it of this subject, of those that it tells of others of its kind."""
        return {}

    def find_protected(self, subject: S, options: Mapping[str, object]) -> Collection[str]:
        """The matrices that a recipe's options leave as they are, so that no pattern is asked of them."""
        return ()

    def costs(self, subject: S, environment: Environment) -> Mapping[str, float]:
        """What the subject itself says that it costs in the environment, of measures that depend on it."""
        return {}

    def compare(self, original: S, student: S, held_out: D, environment: Environment) -> tuple[Row, Row, Row]:
        """(before, after, both): quality of each, and of the two together."""
        return {}, {}, {}

    def chance(self, subject: S, held_out: D) -> dict[str, float]:
        """Measure of `compare` -> what always giving the commonest answer reaches, where that is known."""
        return {}

    def class_names(self, subject: S) -> tuple[str, ...]:
        """Names of the classes that the subject tells texts by, in order of their numbers; none for other subjects."""
        return ()

    def run_tasks(
        self, subject: S, tasks: Sequence[str], folder: str | Path | None = None, limit: int | None = None
    ) -> Row:
        """Figures of lm-eval tasks, of its own or of YAML files in `folder`, on `limit` documents of each."""
        return {}

    def check_tasks(self, subject: S) -> None:
        """Raise `InputError` for what can't run lm-eval tasks: they are of language models."""
        raise InputError("lm-eval tasks need a language model with its tokenizer")

    def inspect(self, source: Source, *, batch: int, length: int, **options: object) -> dict[str, Any]:
        """What could go in a subject, and what that would save; see `secateur.inspect`."""
        subject = self.open(source)
        units = cast(Subject, subject).units()
        return {"model": type(subject).__name__, "kind": self.noun, "cost": units.cost(), "axes": axes_of(units)}

    def save(self, subject: S, folder: Path) -> None:
        """Write the subject into a folder that is there."""
        ...

    def saved_in(self, folder: Path) -> bool:
        """Whether `save` has written a subject of this family into `folder`."""
        return False

    def load_line(self, folder: Path, name: str) -> str:
        """The lines of Python that load what stands in `folder`, which the reader knows as `name`."""
        ...


AnyBackend: TypeAlias = Backend[Any, Any, Any]


def axes_of(units: Units) -> list[dict[str, Any]]:
    """For each kind of unit: sites, units, and the share of each measure that goes when all units of that kind go."""
    whole, rows = units.cost(), []
    for kind in dict.fromkeys(site.kind for site in units.sites.values()):
        sites = [site for site in units.sites.values() if site.kind == kind]
        without = units.cost({site.name: np.zeros(site.count, bool) for site in sites})
        share = {measure: 1.0 - without.get(measure, 0.0) / total for measure, total in whole.items() if total}
        rows.append({"kind": kind, "sites": len(sites), "units": sum(site.count for site in sites), "share": share})
    return rows


# ---------------------------------------------------------------------------------------------------------- finding


@functools.lru_cache
def resolve(name: str) -> AnyBackend:
    """The backend that "package.module:Class" names. Raises `InputError` where there is none."""
    module, _, kind = name.partition(":")
    try:
        backend: AnyBackend = getattr(importlib.import_module(module), kind)()
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"there is no backend {name!r}: {error}") from error
    return backend


def of_recipe(function: Callable[..., object], *, stream: bool = False) -> AnyBackend:
    """The backend of the subject that a recipe takes first; language models where it does not say.

    Where the recipe's `data` is annotated with classes that name a backend themselves, data of another form than that
    of the subject's family, it is theirs.

    Raises `UnsupportedError` where subjects are to be read from the disk, and the recipe needs them in memory.
    """
    found = _backends(function)
    backend = next((one for one in found if one.on_disk == stream), None)
    if backend is None and stream:
        raise UnsupportedError(f"{function.__name__} needs the whole model in memory: leave stream out")
    return backend or (found or [resolve(_LANGUAGE)])[0]


def works_by_blocks(function: Callable[..., object]) -> bool:
    """Whether a recipe needs no more than a block of a model at a time, so that it can stream."""
    return any(backend.on_disk for backend in _backends(function))


def _backends(function: Callable[..., object]) -> list[AnyBackend]:
    """Those of all classes in the annotation of `data`, or else of the first parameter."""
    hints = typing.get_type_hints(function)
    for name in ("data", next(iter(inspect.signature(function).parameters), "")):
        annotation = hints.get(name)
        several = typing.get_origin(annotation) in (typing.Union, types.UnionType)
        kinds = typing.get_args(annotation) if several else (annotation,)
        if found := [resolve(kind.backend) for kind in kinds if hasattr(kind, "backend")]:
            return found
    return []


def of_source(source: Source) -> AnyBackend:
    """The backend of what a user gave: of a subject its own, else the first that takes it, else language models."""
    own = getattr(type(source), "backend", None)
    if isinstance(own, str):
        return resolve(own)
    for backend in _registered_backends():
        if backend.takes(source):
            return backend
    return resolve(_LANGUAGE)


def is_network(source: Source) -> bool:
    """Whether what a user gave is opened as a network, by its modules and not by a table of layers."""
    return type(of_source(source)) is type(resolve(_NETWORK))


def of_subject(subject: object, backend: AnyBackend) -> AnyBackend:
    """The `backend` that opened a subject, or the narrower one of that family which the subject itself names."""
    own = of_source(subject)
    return own if isinstance(own, type(backend)) else backend


def of_part(source: Source, part: str) -> AnyBackend:
    """The backend that opens a part of what a user gave: of one that reads no tokens, that of networks.

    Of a model of transformers the part decides alone: its whole may read images first.
    """
    backend, ours = of_source(source), [resolve(_LANGUAGE), resolve(_NETWORK)]
    from secateur.subjects.network.pretrained import is_pretrained  # which loads torch

    if backend is not ours[0] and not (backend is ours[1] and is_pretrained(source)):
        return backend
    from secateur.subjects.transformer import parts  # which loads transformers

    return ours[0] if parts.reads_tokens(source, part) else ours[1]


def of_folder(folder: Path) -> AnyBackend | None:
    """The backend of a subject that was saved in `folder`; None where there is none."""
    return next((backend for backend in _registered_backends() if backend.saved_in(folder)), None)


def _registered_backends() -> Iterator[AnyBackend]:
    """The backends of other packages, then those of this one."""
    yield from map(resolve, (*entry_points.values(_GROUP), *_BUILT_IN))


def check_source(backend: AnyBackend, source: Source, recipe: str, part: str | None = None) -> None:
    """Raise `InputError` for a name of a subject that is not of the recipe's family, or that is an adapter's.

    And what `check_config` raises; where a part of it is asked for, that is for those who open it to say.
    """
    if isinstance(source, str | Path):
        from secateur.subjects.transformer import low_rank

        low_rank.refuse_adapter(Path(source))
    if isinstance(source, str | Path) and not backend.accepts(source):
        places.refuse_other(source, networks=True)
        from secateur._utils import plugins  # which loads torch

        if not (plugins.names_function(source) or Path(source).exists()):
            raise InputError(
                f"{recipe} works on {backend.family}, and there is no {str(source)!r}: give {backend.example}"
            )
        raise InputError(
            f"{recipe} works on {backend.family}, and {str(source)!r} names none: give {backend.example}, or use a "
            f"recipe on {of_source(source).family} (secateur list)"
        )
    if part is None:
        backend.check_config(source, recipe)


def name_source(source: Source) -> str:
    """What records call a source: its folder or its name, or the class of a module or a subject's model."""
    return str(source) if isinstance(source, str | Path) else type(getattr(source, "model", source)).__name__


def commonest_share(labels: Sequence[object]) -> dict[str, float]:
    """The accuracy of an answer that is always the commonest of `labels`."""
    return {"accuracy": max(Counter(labels).values()) / len(labels)} if len(labels) else {}


def note_rows(backend: AnyBackend, asked: int | None, environment: Environment) -> list[str]:
    """A note where `Backend.environment` has another batch than was asked for, or than is its default."""
    asked, rows = asked or backend.batch, environment.batch
    return [] if rows == asked else [f"measured on {rows} rows, as the example inputs have, for {asked} don't fit them"]


def describe_config(config: PretrainedConfig) -> str:
    """A configuration as JSON for `hash_model`, the same whichever version of transformers writes it.

    Each writes its own number beside what it knows of the model. The number that secateur 0.1.0 found stands for all:
    what that began goes on.
    """
    return re.sub(r'(?<="transformers_version": )"[^"]*"', '"5.24.0"', config.to_json_string(use_diff=True))


def hash_model(text: str, model: nn.Module) -> str:
    """sha256 of a text that tells the structure, and of every tensor: the same model wherever it lies."""
    import torch

    from secateur._utils import devices

    digest, away = hashlib.sha256(text.encode()), devices.find_offloaded(model)
    for name, tensor in sorted({**model.state_dict(), **away}.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
