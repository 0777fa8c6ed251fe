"""Images with classes in Python: data sets and loaders of torch, lists, and whatever else gives (image, label)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import length_hint

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils import data as loading

from secateur._utils.noting import note
from secateur._utils.plugins import line
from secateur.data import transforms
from secateur.data.image_items import (
    CHANNEL_COUNTS,
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    LABEL_KEYS,
    MASK_COLUMNS,
    Classified,
    Given,
    Items,
    is_held,
    label_of,
    name_classes,
    pair_of,
    spool,
)
from secateur.data.images import Images
from secateur.data.labels import Labels
from secateur.errors import DataError, SecateurError

__all__ = ["has_places", "is_batch", "names_of_parts", "read_pairs", "restrict", "whole_of"]


def read_pairs(source: Given, name: str, *, labelled: bool = True) -> Classified:
    """A data set or a loader of torch, or any iterable, of (image, label): arrays, tensors or PIL images.

    Dicts of both count as well, as {"pixel_values", "labels"}, and batches of either. A data set with a length is read
    where it is; of a `DataLoader` over one, the examples that its sampler is restricted to, in an order and batches of
    our own; a note says where these are not all. What can only be passed over is kept in the temporary folder.
    labelled: whether classes are asked for, or may be missing in part.

    Raises `DataError` for what gives no such pairs, and for a loader that draws examples more than once.
    """
    if type(source).__module__.partition(".")[0] in ("pandas", "polars"):
        raise DataError(f"data is a {type(source).__name__}: give pairs, such as zip(data['image'], data['label'])")
    if isinstance(source, Mapping):
        raise DataError(
            f"data is a dict of {', '.join(map(str, source)) or 'nothing'}: parts are called train and "
            "validation or test, and columns are given as pairs, such as zip(data['image'], data['label'])"
        )
    if isinstance(source, loading.DataLoader):
        plain = source.collate_fn is loading.default_collate or (
            source.batch_sampler is None and source.collate_fn is loading.default_convert
        )
        if not (plain and has_places(source.dataset)):
            return _read_batches(source, name, labelled=labelled)
        source, notes = restrict(source, name)
        return replace(_read_places(source, name, labelled=labelled), notes=notes)
    if has_places(source):
        return _read_places(source, name, labelled=labelled)
    if not isinstance(source, Iterable) or isinstance(source, str | bytes):
        if hasattr(source, "__getitem__") and not hasattr(source, "__len__"):
            raise DataError(f"data is of {type(source).__name__}, which has no __len__: give it one, or an __iter__")
        raise DataError(
            f"data is of {type(source).__name__}: give a path, Examples, (inputs, labels), or a data set or an "
            "iterable of (image, label)"
        )
    return spool(_unbatch(source, name, labelled=labelled), name, called=_names_of(source))


def _read_batches(loader: Given, name: str, *, labelled: bool) -> Classified:
    """What a loader gives that makes batches of its own, or whose data set can only be passed over."""
    count = len(loader.dataset) if hasattr(loader.dataset, "__len__") else 0
    drawn = next((one for one in (loader.batch_sampler, loader.sampler) if one is not None), ())
    once = isinstance(drawn, Iterator) or isinstance(getattr(drawn, "sampler", None), Iterator)
    if has_places(loader.dataset) and count and not once:
        restrict(loader, name)  # which refuses one that draws examples more than once
    with transforms.seed_generators([0]):  # by which it may draw an order
        pairs = _unbatch(loader, name, size=_batch_size(loader), labelled=labelled)
        found = spool(pairs, name, called=_names_of(loader.dataset))
    given = len(found.images)
    fewer = f"of the {count} examples of {name} {given} are read, those that its loader gives"
    return replace(found, notes=(fewer,)) if given < count else found


def _batch_size(loader: Given) -> int:
    """How many examples a batch of a loader has at most; 0 where it gives single examples, 2 where it does not say."""
    if loader.batch_sampler is None:
        return 0
    size: int = loader.batch_size or getattr(loader.batch_sampler, "batch_size", 2)
    return size


def _read_places(source: Given, name: str, *, labelled: bool) -> Classified:
    """A data set each of whose items can be had by its place."""
    if not len(source):
        raise DataError(f"{name} holds no example: give at least one")
    items = Items(source, name)
    image, label = items.pair(0)
    if is_batch(image, label):
        return spool(_unbatch((source[place] for place in range(len(source))), name, labelled=labelled), name)
    items.open(0)
    if labelled:
        _note_others(items.item(0), name)
        labelled = any(items.pair(place)[1] is not None for place in items.ask())
        paired = isinstance(items.item(0), tuple | list) and len(items.item(0)) == 2
        if not labelled and paired and not is_held(source):
            looks = len(items.look())
            note(f"no label was found beside {looks} of the {len(items)} items of {name}, which are read without any")
    kinds, classes = _read_labels(items) if labelled else (Labels(), whole_of(source)[0])
    return name_classes(Images(items), kinds, name, "the second of each pair", classes)


def _note_others(item: object, name: str) -> None:
    """Say what of a dict that holds an image is passed over, where that may be what it should give."""
    if not isinstance(item, Mapping):
        return
    image, label, mask = (
        next((one for one in names if one in item), None) for names in (IMAGE_COLUMNS, LABEL_KEYS, MASK_COLUMNS)
    )
    if label and mask:
        note(
            f"{name} has {label} and {mask} beside each image: classes are those of {label}, and masks are passed "
            f"over; leave {label} out of a data set with a length to learn from masks"
        )
    elif not (label or mask) and (others := [str(one) for one in item if one != image]):
        note(
            f"{name} has no {', '.join(LABEL_COLUMNS)}, and is read without classes; it has {', '.join(others)}: call "
            "a class `label`, a mask `mask`, boxes `boxes` and `labels`"
        )


def has_places(source: Given) -> bool:
    """Whether each of its items can be had by its place."""
    passed_over = isinstance(source, loading.IterableDataset | Mapping)
    return not passed_over and hasattr(source, "__getitem__") and hasattr(source, "__len__")


def restrict(loader: Given, name: str) -> tuple[Given, tuple[str, ...]]:
    """(the data set of a loader, or those of its examples that its sampler draws from, in their order; notes).

    What a batch sampler with `drop_last` leaves of its last batch is among them.
    """
    data, batches = loader.dataset, loader.batch_sampler
    while type(batches).__name__ == "BatchSamplerShard":  # of Accelerate: a process's share, as DistributedSampler's
        batches = batches.batch_sampler
    own = batches is not None and type(batches) is not loading.BatchSampler
    sampler = batches if own else getattr(batches, "sampler", loader.sampler)
    if isinstance(sampler, loading.DistributedSampler):  # each process gets its share of the batches from us
        return data, ()
    if isinstance(sampler, loading.RandomSampler) and not sampler.replacement and sampler.num_samples >= len(data):
        return data, ()
    drawn, largest = set[int](), 0
    with transforms.seed_generators([0]):
        for draw in sampler:
            places = [int(place) for place in (draw if own else (draw,))]
            largest = max(largest, len(places))
            for place in places:
                if place in drawn:
                    raise DataError(
                        f"the loader of {name} draws examples more than once ({type(sampler).__name__}), and here each "
                        "counts once: give its data set, or a torch.utils.data.Subset of it"
                    )
                drawn.add(place)
    missing = len(data) - len(drawn)
    if not missing:
        return data, ()
    whole = length_hint(getattr(sampler, "sampler", data)) == len(data)
    if own and getattr(sampler, "drop_last", False) and whole and missing < largest:
        return data, (f"all {len(data)} examples of {name} are read, with those that its loader drops of a last batch",)
    fewer = f"of the {len(data)} examples of {name} {len(drawn)} are read, those that its loader's sampler draws"
    return loading.Subset(data, sorted(drawn)), (fewer,)


def _read_labels(items: Items) -> tuple[Labels, tuple[str, ...]]:
    """(the label of each, the names of the classes).

    Given sets of torchvision that change no label have them in `targets`, so that no image is read. Names are those of
    the `targets`, and none are known where what the items give is something else.
    """
    names, whole, places = whole_of(items.items)
    known = _targets_of(whole)
    if known is None:
        return Labels(label_of(items.pair(place)[1]) for place in range(len(items))), names
    kept = [label_of(known[int(place)]) for place in places]
    if _gives_targets(items.items) and all(label_of(items.pair(place)[1]) == kept[place] for place in items.look()):
        return Labels(kept), names
    found = [label_of(items.pair(place)[1]) for place in range(len(items))]
    return Labels(found), names if found == kept else ()


def whole_of(data: Given) -> tuple[tuple[str, ...], Given, Sequence[int]]:
    """(names of its classes, the data set that `data` is a `Subset` of, or is, and the places of its items there)."""
    places: Sequence[int] = range(len(data))
    while isinstance(data, loading.Subset):
        places = [data.indices[place] for place in places]
        data = data.dataset
    return _names_of(data), data, places


def names_of_parts(data: Given) -> tuple[str, ...]:
    """What a data set calls the classes of its boxes or masks: nothing where it has classes of whole images as well.

    It is these that are named then, as breeds are by torchvision's OxfordIIITPet.
    """
    known = _targets_of(data)
    whole = known is not None and len(known) > 0 and isinstance(label_of(known[0]), int)
    return () if whole else _names_of(data)


def _names_of(data: Given) -> tuple[str, ...]:
    """What a data set calls its classes, if it lists them, or numbers them from 0.

    Of one that joins others, what all of these call them; of a part the whole; of a table of `datasets` its column.
    """
    if isinstance(data, loading.ConcatDataset):
        each = {_names_of(part) for part in data.datasets}
        return each.pop() if len(each) == 1 else ()
    if isinstance(data, loading.Subset):
        return _names_of(data.dataset)
    names: Given = getattr(data, "classes", None)
    if names is None and type(data).__module__.partition(".")[0] == "datasets":
        column = next((one for one in LABEL_COLUMNS if one in (data.features or {})), None)
        names = getattr(data.features[column], "names", None) if column else None
    if isinstance(names, Mapping):
        by_number = {number: name for name, number in names.items()}
        names = [by_number.get(number) for number in range(len(names))]
        names = () if None in names else names
    if not isinstance(names, Iterable) or isinstance(names, str | bytes) or getattr(names, "shape", None) == ():
        return ()
    return tuple(map(str, names.tolist() if hasattr(names, "tolist") else names))


def _targets_of(data: Given) -> Sequence[Given] | None:
    """The label of each item, if the data set has them at hand: torchvision's folders give those of their `samples`."""
    samples = getattr(data, "samples", None)
    read = getattr(type(data), "__getitem__", None)
    if getattr(read, "__qualname__", "") == "DatasetFolder.__getitem__" and samples is not None:
        return [label for _, label in samples]
    hidden = getattr(data, "_labels", None) if type(data).__module__.startswith("torchvision.") else None
    found: Given = getattr(data, "targets", hidden)
    listed = hasattr(found, "__len__") and not isinstance(found, type | Mapping) and getattr(found, "shape", None) != ()
    if not listed or len(found) != len(data):
        return None
    values: Sequence[Given] = found.to_numpy() if hasattr(found, "to_numpy") else found  # pandas names its rows
    return values


def _gives_targets(data: Given) -> bool:
    """Whether the label of each item is the one in `targets`, whatever code of a user's own might change."""
    if type(data) is loading.Subset:
        return _gives_targets(data.dataset)
    joint = getattr(data, "transforms", None)
    changes = (getattr(data, "target_transform", None), getattr(joint, "target_transform", joint))
    return type(data).__getitem__.__module__.startswith("torchvision.") and changes == (None, None)


def _unbatch(
    source: Iterable[object], name: str, *, size: int = 0, labelled: bool = True
) -> Iterator[tuple[object, object]]:
    """(image, label) of each item, and of each example of items that are batches.

    size: how many examples are in each, where all are batches. labelled: whether labels are asked for; else they are
    None, whatever stands there.
    """
    batched = size > 0
    for number, item in enumerate(_pass_over(source, name)):
        alone = batched and isinstance(item, Tensor | np.ndarray) and is_batch(item, item)
        if batched and not (alone or isinstance(item, Mapping) or (isinstance(item, tuple | list) and len(item) == 2)):
            shape = f" {list(item.shape)}" if isinstance(item, Tensor | np.ndarray) else ""
            raise DataError(
                f"{name} gives batches of {type(item).__name__}{shape}: expected (images [B, ...], labels [B]); images "
                "alone are [B, C, H, W]"
            )
        image, label = pair_of(item, f"item {number} of {name}")
        if batched and _are_examples(image, label):
            raise DataError(f"{name} gives two examples in a list as a batch: expected (images [B, ...], labels [B])")
        if batched and _is_one(image, label, size):
            yield image, label if labelled else None
            continue
        if labelled and not number:
            _note_others(item, name)
        batched = batched or is_batch(image, label)  # after a batch, one of three grey images is one as well
        if not batched:
            yield image, label if labelled else None
            continue
        labels = [None] * len(image) if label is None or (not labelled and is_batch(image, image)) else label
        if (not isinstance(labels, list | tuple) and not getattr(labels, "ndim", 0)) or len(image) != len(labels):
            raise DataError(f"item {number} of {name} is a batch of {len(image)} images: give a label for each")
        yield from zip(image, labels if labelled else [None] * len(image), strict=True)


def _pass_over(source: Iterable[object], name: str) -> Iterator[object]:
    """What a user's loader or iterable gives. Raises `DataError` for whatever error it ends with."""
    number = 0
    try:
        for item in source:
            yield item
            number += 1
    except SecateurError:
        raise
    except Exception as error:  # a user's own code
        raise DataError(f"item {number} of {name} can't be read: {line(error)}") from error


def _are_examples(one: Given, other: Given) -> bool:
    """Whether these are two images, or (image, label) and (image, label), and no images and their labels."""
    if isinstance(one, tuple | list):
        return len(one) == 2 and _may_be_image(one[0]) and not _may_be_image(one[1], one[0])
    return getattr(one, "ndim", 0) == getattr(other, "ndim", 0) and _may_be_image(one) and _may_be_image(other)


def _may_be_image(value: Given, other: Given = None) -> bool:
    """Whether it is a single image, of the dimensions of the `other`, which is a tensor as well."""
    alike = not isinstance(other, Tensor) or getattr(value, "ndim", 0) == other.ndim
    whole = isinstance(value, Tensor) and value.dtype in (torch.int64, torch.bool)  # as masks are
    return isinstance(value, Image.Image) or (getattr(value, "ndim", 0) in (2, 3) and alike and not whole)


def _is_one(image: Given, label: Given, size: int) -> bool:
    """Whether a batch is one example: an opened image, or an array with channels and one label.

    Of a loader that takes one example for each batch, the label may be several numbers.
    """
    if isinstance(image, Image.Image):
        return True
    if getattr(image, "ndim", 0) != 3 or not {image.shape[0], image.shape[-1]} & set(CHANNEL_COUNTS):
        return False
    single = not isinstance(label, list | tuple) and label is not None and not getattr(label, "ndim", 0)
    return single or (size == 1 and image.shape[0] != 1)


def is_batch(image: Given, label: Given) -> bool:
    """Whether it is several images: [B, C, H, W], a list of images, or [B, H, W] with B labels.

    What may be one image with channels is one, though it has as many labels: these may tell of each class whether it
    is there.
    """
    if isinstance(image, list | tuple) or getattr(image, "ndim", 0) == 4:
        return True
    several = isinstance(label, list | tuple) or getattr(label, "ndim", 0) == 1
    grey = getattr(image, "ndim", 0) == 3 and not {image.shape[0], image.shape[-1]} & set(CHANNEL_COUNTS)
    return grey and several and len(label) == len(image)
