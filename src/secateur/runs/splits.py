"""Split data into what a run learns from and what it is measured on."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol, Self, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur._utils.rundir import read_record
from secateur.data import boxes, chats, examples, labels, masks, texts, transforms
from secateur.data.examples import Examples
from secateur.data.images import Images
from secateur.data.texts import Corpus, Packing
from secateur.errors import DataError, DataWarning, InputError
from secateur.measure import detection
from secateur.runs.backends import AnyBackend, Data
from secateur.runs.backends.network import Network
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Figure

__all__ = [
    "Dataset", "Parts", "Stratified", "box_size_notes", "columns", "copies_note", "find_held_out", "follow_record",
    "missing_classes_note", "names_of", "range_note", "read", "read_judged", "reading_notes", "split",
    "with_classes_of",
]  # fmt: skip

_SHOWN = 3
_FEW = 4
_USUAL = 20.0
"""Normalised images stay far below it."""
_HELD_TEXTS = 0.05
"""The share of texts that is held out."""
_SPLIT = "split"
"""The setting that says how parts are drawn; 0.1.0 had none."""
_BY_CLASS = "by class"
_BY_PROMPT = "by prompt"
_ALL_BY_CLASS = "by class, what validates too"
"""Of images: before, what validates training was drawn without regard to classes."""


class Dataset(Protocol):
    """Examples or texts, as a backend has read them."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def digest(self) -> str:
        """A hash of all it holds."""
        ...

    def __len__(self) -> int: ...

    def keys(self) -> NDArray[np.void]:
        """[N]: equal numbers for equal examples."""
        ...

    def split(self, *, seed: int) -> tuple[Self, Self]:
        """(most of it, the rest), drawn by the seed."""
        ...


@dataclass(frozen=True)
class Stratified(Corpus):
    """Texts with classes, of each of which a share is held out for a model that tells classes."""


@dataclass(frozen=True)
class Prompted(Corpus):
    """Chats of which several may answer one prompt: all of these are learned from, or all held out."""


@dataclass(frozen=True)
class Parts:
    """Of data that fits a model: `train` is learned from, and quality is measured on `held`.

    digests: of what was given, by the names under which settings have them, and whether texts were drawn by class;
    notes: of what was left out or renumbered
    when the data was read, of examples that are in both, and of numbers that no network was trained on.
    """

    train: Dataset | None = None
    held: Dataset | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read(
    backend: AnyBackend,
    data: Data,
    held_out: Data = None,
    *,
    text: str = "text",
    label: str = "label",
    sizes: str | Sequence[float | str] | None = None,
    transform: object = None,
    size: object = None,
    workers: int | None = None,
    completion_only: bool = False,
    packing: Packing = "blocks",
) -> tuple[Dataset | None, Dataset | None]:
    """`data` and `held_out`, read by the same columns; None for either that was not given.

    sizes: by which boxes are small, medium or large in the place of the data's own; see `examples.sides`.
    transform, size, workers: how images become inputs; see `examples.with_transform`.
    completion_only, packing: how a model learns from texts; see `texts.Corpus`.

    Raises `InputError` or `DataError` for what makes no sense without data, and `DataError` for what can't be read.
    """
    if data is None and held_out is not None:
        raise InputError("held_out is what quality is measured on beside the data: give data, too")
    if data is None:
        labels.unnamed("no data is given", text=text, label=label)
        if sizes is not None:
            raise InputError("sizes are of the boxes in data, and no data is given: leave sizes out")
        if completion_only or packing != "blocks":
            raise InputError("completion_only and packing are of texts in data, and no data is given: leave them out")
    if backend.noun == "texts":
        for source in (data, held_out):
            texts.check_part(source, text, label)
        data, held_out = texts.take_rows(data), texts.take_rows(held_out)
    corpus, apart = (None if source is None else backend.read(source, text, label) for source in (data, held_out))
    if transform is not None or size is not None or workers is not None:
        pictured = any(isinstance(part, Examples) and isinstance(part.inputs, Images) for part in (corpus, apart))
        corpus, apart = (None if part is None else _as_declared(part, transform, size, workers, pictured)
                         for part in (corpus, apart))  # fmt: skip
    if sizes is not None:
        corpus, apart = (None if part is None else _with_sizes(part, examples.sides(sizes)) for part in (corpus, apart))
    if completion_only or packing != "blocks":
        how: dict[str, Any] = {"completion_only": completion_only, "packing": packing}
        corpus, apart = (None if part is None else _with_packing(part, **how) for part in (corpus, apart))
    return corpus, apart


def find_held_out(backend: AnyBackend, data: Data, held_out: Data = None) -> Data:
    """`held_out`, or if that is None what stands beside the data to measure on; None where nothing does.

    That is a folder `val/` beside `train/`, that split of a table, or such a part of a folder of texts.
    """
    if held_out is not None:
        return held_out
    if isinstance(backend, Network):
        return examples.find_held_out(data)
    return texts.find_held_out(data) if backend.noun == "texts" else None


def _as_declared(data: Dataset, transform: object, size: object, workers: int | None, pictured: bool) -> Dataset:
    """The images as inputs; arrays stay as they are where the other part of the data is images (`pictured`)."""
    if not isinstance(data, Examples):
        raise InputError(f"{data.name} holds no images: leave transform, size and workers out")
    if pictured and not isinstance(data.inputs, Images):
        return data
    return examples.with_transform(data, transform, size, workers)


def follow_record(data: Dataset | None, out: str | Path, overwrite: bool, *, prompted: bool = False) -> Dataset | None:
    """The data as a new run has it, whose parts are drawn class by class; as it was where the run `out` has begun.

    What validates training by images was not drawn so at first. 0.1.0 drew held-out examples and texts without regard
    to classes, and had images of one size in memory, by whose numbers it knows them again.

    prompted: several texts may answer one prompt, and are to stay together.
    """
    if data is None or (getattr(data, "labels", None) is None and not prompted):
        return data
    record = Path(out) / "run.yaml"
    drawn = _ALL_BY_CLASS if overwrite or not record.is_file() else read_record(record).get(_SPLIT)
    if isinstance(data, Corpus):
        kind = Prompted if prompted else Stratified
        return kind(**{part.name: getattr(data, part.name) for part in fields(Corpus)}) if drawn else data
    if not isinstance(data, Examples) or data.labels is None or data.labels.dim() != 1:
        return data
    if drawn is None:
        return replace(data, inputs=data.inputs[:])
    data = replace(data, stratified=True)
    return data if drawn == _ALL_BY_CLASS else examples.validate_plainly(data)


def _with_packing(data: Dataset, *, completion_only: bool, packing: Packing) -> Dataset:
    if packing not in get_args(Packing):
        raise InputError(f"packing={packing!r}: give {' or '.join(get_args(Packing))}")
    if not isinstance(data, Corpus):
        raise InputError(f"completion_only and packing are of texts, and {data.name} holds none: leave them out")
    if completion_only and data.form != "chat":
        raise InputError(
            f"completion_only is of chats, and {data.name} holds texts: give rows with messages, or with a prompt and "
            "its completion"
        )
    return replace(data, completion_only=completion_only, packing=packing)


def _with_sizes(data: Dataset, sizes: tuple[float, float]) -> Dataset:
    if not isinstance(data, Examples) or not data.targets:
        raise InputError(f"sizes are of boxes, and {data.name} has none: leave sizes out")
    return replace(data, sizes=sizes)


def box_size_notes(held_out: object, figures: Collection[str]) -> list[str]:
    """What is to be said of how these `figures` were measured: which boxes were small, and which large."""
    if not isinstance(held_out, Examples) or not any(name.startswith("mAP_") for name in figures):
        return []
    return [detection.describe_sizes(held_out.sizes, held_out.inputs.shape)]


def missing_classes_note(held_out: object, before: Mapping[str, Figure], names: Sequence[str] = ()) -> list[str]:
    """What is to be said of accuracies: which classes nobody measured. names: of the model's classes, for texts."""
    if not isinstance(held_out, Examples | Corpus) or held_out.labels is None or "accuracy" not in before:
        return []
    names = held_out.classes if isinstance(held_out, Examples) else names
    counts = torch.bincount(torch.as_tensor(held_out.labels))
    missing = [name for number, name in enumerate(names) if number >= len(counts) or not counts[number]]
    if not missing:
        return []
    shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
    noun = "example" if isinstance(held_out, Examples) else "text"
    return [f"{len(missing)} of {len(names)} classes have no held-out {noun}: {shown}"]


def range_note(data: Dataset, sample: int = 64) -> str:
    """A line on images whose numbers no network was trained on, such as 0 to 255; "" where they are usual.

    Of those that are read one by one, a few are looked at, and only where nothing normalises them.
    """
    if not isinstance(data, Examples) or not data.inputs.is_floating_point():
        return ""
    if isinstance(data.inputs, Images):
        if data.inputs.normalisation != ((), ()):
            return ""
        sample = _FEW
    some = data.inputs[:sample]
    if some.dim() != 4 or some.shape[1] not in (1, 3) or float(some.abs().max()) <= _USUAL:
        return ""
    return (
        f"inputs of {data.name} go from {float(some.min()):g} to {float(some.max()):g}: networks of images are trained "
        "on 0 to 1, or on what is normalised from that; bytes and 16 bits (uint8, uint16) are scaled by themselves"
    )


def columns(
    text: str,
    label: str,
    sizes: str | Sequence[float | str] | None = None,
    *,
    data: Dataset | None = None,
    transform: object = None,
    size: object = None,
    completion_only: bool = False,
    packing: Packing = "blocks",
) -> dict[str, Any]:
    """What settings say of how the data is read: columns, packing, sizes, transforms; nothing of the usual ones."""
    found: dict[str, Any] = {name: column for name, column in (("text", text), ("label", label)) if column != name}
    if sizes is not None:
        found["sizes"] = list(examples.sides(sizes))
    found |= {"completion_only": True} if completion_only else {}
    found |= {"packing": packing} if packing != "blocks" else {}
    if transform is not None and isinstance(data, Examples) and data.targets:
        found["transform"] = str(transform)
    elif transform is not None:
        declared = transforms.read(transform)
        found["transform"] = declared.name if declared else ""
    if size is not None:
        found["size"] = size if isinstance(size, int) else str(size)
    if isinstance(data, Examples) and data.stratified:
        plainly = isinstance(data, examples.Limited) and data.plainly
        found[_SPLIT] = _BY_CLASS if plainly else _ALL_BY_CLASS
    return found


def split(backend: AnyBackend, data: Dataset, held_out: Dataset | None, subject: object, *, seed: int) -> Parts:
    """All of `data` and `held_out`, or if that is None two parts of `data`, drawn by the seed; both have been read.

    Raises `DataError` for what the subject can't take, held-out data by which it can't be judged, and too little data.
    """
    if held_out is not None:
        held_out = with_classes_of(data, held_out)
        _check_alike(data, held_out)
    new = isinstance(data, Stratified)
    prompts = _find_prompts(data)
    data = backend.fit_data(data, subject)
    by_class = new and getattr(data, "labels", None) is not None and bool(backend.class_names(subject))
    if held_out is None:
        if len(data) < 3:
            few = f"{data.name} holds {len(data)} {backend.noun}"
            raise DataError(f"{few}: at least 3 are needed, one of them to measure on")
        digest = data.digest  # before the parts are drawn, which then know what lies there, and read no image for it
        train, held = _draw_parts(data, by_class, prompts, seed)
        copies = copies_note(train, held, backend.noun)
        drawn = {_SPLIT: _BY_PROMPT} if prompts else {_SPLIT: _BY_CLASS} if by_class else {}
        return Parts(train, held, {"data_sha256": digest, **drawn}, (*reading_notes(data), *filter(None, [copies])))
    held_out = backend.fit_data(held_out, subject)
    digests = {"data_sha256": data.digest, "held_out_sha256": held_out.digest}
    told = (copies_note(data, held_out, backend.noun, apart=True), forms := _forms_note(data, held_out))
    if forms:  # before anything is learned from numbers in two ranges
        warnings.warn(forms, DataWarning, stacklevel=2)
    return Parts(data, held_out, digests, (*reading_notes(data, held_out), *filter(None, told)))


def _find_prompts(data: object) -> list[str]:
    """What each text answers, where several may answer one prompt."""
    if not isinstance(data, Prompted) or data.form != "chat":
        return []
    return [chats.find_prompt(text) for text in data.texts]


def _draw_parts(data: Dataset, by_class: bool, prompts: Sequence[str], seed: int) -> tuple[Dataset, Dataset]:
    """(train, held out), drawn by prompts, by classes, or alike."""
    if isinstance(data, Corpus) and prompts:
        return _split_by_prompt(data, prompts, seed)
    if isinstance(data, Corpus) and by_class:
        return _split_by_class(data, seed)
    return data.split(seed=seed)


def _split_by_class(data: Corpus, seed: int) -> tuple[Corpus, Corpus]:
    """(train, held out) of texts, as `Corpus.split`, the share of each class and at least one of each that has two."""
    kinds = Examples(torch.zeros(len(data), 1), torch.as_tensor(data.labels), name=data.name)
    rest, held = kinds.parts(_HELD_TEXTS, seed=seed, stratified=True)
    return data.take(rest), data.take(held, f"the held-out part of {data.name}")


def _split_by_prompt(data: Corpus, prompts: Sequence[str], seed: int) -> tuple[Corpus, Corpus]:
    """(train, held out) of texts, as `Corpus.split`, a share of the prompts with all that answers them."""
    different = [*dict.fromkeys(prompts)]
    if len(different) < 2:
        raise DataError(f"{data.name} answers one prompt, too few to hold any out: give more prompts, or held-out data")
    count = min(max(1, round(_HELD_TEXTS * len(different))), len(different) - 1)
    order = np.random.default_rng([seed, len(different)]).permutation(len(different))
    chosen = {different[place] for place in order[:count]}
    held = np.array([prompt in chosen for prompt in prompts])
    return data.take(np.flatnonzero(~held)), data.take(np.flatnonzero(held), f"the held-out part of {data.name}")


def reading_notes(*parts: Dataset | None) -> tuple[str, ...]:
    """What is to be said of examples as they were read, each once.

    That is what was left out of them, or renumbered; masks in which 255 may stand for a class; and numbers that no
    network was trained on, see `range_note`, of which is warned as well, before anything is trained on them.
    """
    notes = list[str]()
    for part in parts:
        if isinstance(part, Examples):
            wide = range_note(part)
            if wide:
                warnings.warn(wide, DataWarning, stacklevel=2)
            notes += [*part.notes, masks.void_note(part.labels, part.name), wide]
    return tuple(dict.fromkeys(filter(None, notes)))


def copies_note(train: Dataset, held: Dataset, noun: str, *, apart: bool = False) -> str:
    """A line on held-out examples that are in the training part as well; "" where there are none.

    apart: they were given, and are no part of the same data.
    """
    alike = np.isin(held.keys(), train.keys())
    if alike.any() and isinstance(train, Examples) and isinstance(held, Examples):  # keys may be of beginnings of files
        there = np.isin(train.keys(), held.keys())
        ours, theirs = (part.take(np.flatnonzero(mask)).whole_keys() for part, mask in ((held, alike), (train, there)))
        alike[alike] = np.isin(ours, theirs)
    copies = int(alike.sum())
    if not copies:
        return ""
    where, advice = "training part", "`secateur prune-data DATA --deduplicate` leaves copies out"
    if apart:
        where, advice = "data", "leave them out of one of the two"
    return (
        f"{copies} of {len(held)} held-out {noun} are in the {where}, too, and figures of quality are better for it: "
        f"{advice}"
    )


def _forms_note(data: Dataset, held_out: Dataset) -> str:
    """A line where one of the two holds images and the other an array of them; "" where both are of one form."""
    both = [part for part in (data, held_out) if isinstance(part, Examples)]
    images = [isinstance(part.inputs, Images) for part in both]
    if len(both) < 2 or images[0] == images[1]:
        return ""
    array, pictures = (both[images.index(kind)].name for kind in (False, True))
    return (
        f"{array} is an array, which is taken as it is, where {pictures} holds images: one may be normalised where the "
        "other is not, and what is in both is not told; give both in one form"
    )


def names_of(**given: tuple[Data, Dataset | None]) -> dict[str, Any]:
    """Where each of what was given, and read, was found, or else what it calls itself; without what was not given.

    Beside them "class_names", where examples have any.
    """
    names: dict[str, Any] = {
        name: str(source) if isinstance(source, str | Path) else str(found.name)
        for name, (source, found) in given.items()
        if found is not None
    }
    classes = next((found.classes for _, found in given.values() if isinstance(found, Examples)), ())
    return {**names, "class_names": list(classes)} if classes else names


def with_classes_of(data: Dataset, judged: Dataset) -> Dataset:
    """Held-out examples with the classes numbered as in `data`, if it names all of theirs; masks are read as there."""
    if not isinstance(data, Examples) or not isinstance(judged, Examples):
        return judged
    if data.masks is not None and judged.masks is not None:
        notes = tuple(note for note in judged.notes if masks.BINARY not in note or data.masks.binary)
        return replace(judged, masks=judged.masks.follow(data.masks), notes=notes)
    return _boxes_numbered_as(data, judged) if judged.targets else _labels_numbered_as(data, judged)


def read_judged(judged: Data, data: Examples, subject: Traced) -> Examples | None:
    """The examples that a study judges on; None where `judged` is "" or None.

    Their classes are numbered, and images become inputs, as those of `data`, which is of the subject. Raises
    `DataError` for what can't be read, for classes of other names, and for what the subject can't take.
    """
    if judged is None or judged == "":
        return None
    apart = Network().read(judged).numbered_as(data)
    if isinstance(apart.inputs, Images) and isinstance(data.inputs, Images) and apart.inputs.transform is None:
        apart = replace(apart, inputs=apart.inputs.with_transform(data.inputs.transform, data.inputs.workers))
    apart.check_names(data)
    return Network().fit_data(apart, subject)


def _labels_numbered_as(data: Examples, judged: Examples) -> Examples:
    """As `Examples.numbered_as`, but labels of pixels that count nowhere stay, and any other below 0 is refused."""
    given = judged.labels
    if given is None or not judged.classes or judged.classes == data.classes:
        return judged.numbered_as(data)
    void = torch.zeros_like(given, dtype=torch.bool)
    if judged.per_pixel:  # 255 is a class where so many are named
        void = (given == masks.IGNORED) | ((given == masks.VOID) & (len(judged.classes) <= masks.VOID))
    counted = given.masked_fill(void, 0)
    if int(counted.min()) < 0:
        raise DataError(
            f"{judged.name} has the label {int(counted.min())}: it has {len(judged.classes)} classes, 0 to "
            f"{len(judged.classes) - 1}"
        )
    numbered = replace(judged, labels=counted).numbered_as(data)
    return replace(numbered, labels=torch.where(void, given, cast(Tensor, numbered.labels)))


def _boxes_numbered_as(data: Examples, judged: Examples) -> Examples:
    """Boxes with the labels that `data` has for their classes; as they are where that does not name all of theirs.

    Where one of the two has no names, a class is one of the same number. Raises `DataError` for boxes of a number that
    `data` does not have.
    """
    ours, theirs = data.classes, judged.classes
    named = any(ours) and any(theirs)
    if not named and not (data.ids and judged.ids):  # of arrays, whose labels are the classes
        return judged
    if not named:
        ours, theirs = tuple(map(str, data.ids)), tuple(map(str, judged.ids))
        used = {judged.ids[int(label)] for target in judged.targets for label in target["labels"].unique()}
        if lost := sorted(used - set(data.ids)):
            raise DataError(
                f"{'the held-out data' if judged.name == data.name else judged.name} has boxes of the class {lost[0]}, "
                f"and {data.name} has those of {', '.join(ours)}: give both the names of their classes"
            )
    elif theirs == ours or not set(theirs) <= set(ours):
        return judged
    numbers = torch.tensor([ours.index(one) if one in ours else -1 for one in theirs])
    return replace(judged, targets=boxes.renumber(judged.targets, numbers), classes=data.classes, ids=data.ids)


def _check_alike(data: Dataset, judged: Dataset) -> None:
    """Refuse held-out examples by which a network that takes `data` can't be judged."""
    if not isinstance(data, Examples) or not isinstance(judged, Examples):
        return
    if bool(data.targets) != bool(judged.targets):
        has, lacks = (data, judged) if data.targets else (judged, data)
        raise DataError(f"{has.name} has boxes and {lacks.name} none: give data and held-out data of one kind")
    if data.has_classes and not judged.has_classes:
        raise DataError(f"{judged.name} has no classes to measure quality by: give held-out examples with labels")
    judged.check_names(data)
