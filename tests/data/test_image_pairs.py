"""Data sets, loaders and iterables of images with classes."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torchvision
from accelerate.data_loader import BatchSamplerShard
from PIL import Image
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)  # fmt: skip

from image_data import Pairs, check
from pictures import class_folder
from secateur.data import examples, image_items, image_pairs
from secateur.errors import DataError, DataWarning


class Stream(IterableDataset):
    def __iter__(self):
        return (Pairs()[place] for place in range(6))


class SizedStream(Stream):
    def __len__(self):
        return 6


class Rows(Pairs):
    def __getitem__(self, place):
        image, label = super().__getitem__(place)
        return {"pixel_values": torch.from_numpy(np.array(image.resize((20, 20)))).permute(2, 0, 1), "labels": label}


def shard(sampler):
    return BatchSamplerShard(BatchSampler(sampler, 1, drop_last=False), 2)


def arrays():
    return torch.rand(6, 3, 20, 20), torch.arange(6) % 2


@pytest.mark.parametrize(
    ("source", "classes"),
    [
        (Pairs(), ("a", "b")),
        (DataLoader(Pairs(), batch_size=2), ("a", "b")),
        (DataLoader(TensorDataset(*arrays()), batch_size=4, shuffle=True), ()),
        (DataLoader(TensorDataset(*arrays()), batch_size=4, collate_fn=torch.utils.data.default_convert), None),
        (Stream(), ()),
        (SizedStream(), ()),
        (DataLoader(SizedStream(), batch_size=None), ()),
        (DataLoader(TensorDataset(*arrays()), batch_size=None), ()),
        (Rows(), ("a", "b")),
        (DataLoader(Rows(), batch_size=4), ("a", "b")),
        (DataLoader(Rows(), batch_size=4, collate_fn=lambda rows: torch.utils.data.default_collate(rows)), ()),
        (zip(*(part.split(4) for part in arrays()), strict=True), ()),
        (list(zip(*(part.split(4) for part in arrays()), strict=True)), ()),
        (DataLoader(SizedStream(), 2, collate_fn=lambda pairs: tuple(zip(*pairs, strict=True))), ()),
        ([(np.full((20, 20 + n, 3), 40 * n, np.uint8), "ab"[n % 2]) for n in range(6)], ("a", "b")),
        ((pair for pair in [Pairs()[n] for n in range(6)]), ()),
        (iter([(np.full((3, 20, 20), n / 6, np.float32), n % 2) for n in range(6)]), ()),
    ],
)
def test_pairs_of_python(source, classes):
    if classes is None:
        with pytest.raises(DataError, match=r"gives batches of list: expected \(images"):
            examples.read(source)
        return
    check(examples.read(source), classes=classes)


@pytest.mark.parametrize("form", [list, iter, lambda batches: DataLoader(batches, batch_size=None)])
def test_batches_of_grey_images_and_lists_of_images_are_batches(form):
    grey, kinds = torch.rand(8, 20, 30), torch.arange(8) % 2
    data = examples.read(form(list(zip(grey.split(5), kinds.split(5), strict=True))))
    assert torch.equal(data.inputs[:], grey[:, None])
    assert data.labels.tolist() == kinds.tolist()
    pairs = [Pairs()[place] for place in range(6)]
    batches = [tuple(map(list, zip(*pairs[start : start + 3], strict=True))) for start in (0, 3)]
    assert examples.read(form(batches)).labels.tolist() == [0, 1] * 3
    with pytest.raises(DataError):
        examples.read(form([(torch.rand(3, 20, 30), torch.tensor([0, 1, 0]))]))


def test_tensors_are_inputs_as_they_are():
    inputs, kinds = arrays()
    data = examples.read(TensorDataset(inputs, kinds))
    assert torch.equal(data.inputs[:], inputs)
    plain = examples.read((inputs.numpy(), kinds.tolist()))
    assert torch.equal(plain.inputs, inputs)
    assert plain.labels.tolist() == kinds.tolist()


@pytest.mark.parametrize(
    ("how", "places"),
    [
        ({"sampler": SubsetRandomSampler([5, 1, 3])}, [1, 3, 5]),
        ({"sampler": SubsetRandomSampler(range(6)), "batch_size": 2}, [0, 1, 2, 3, 4, 5]),
        ({"batch_sampler": BatchSampler(SubsetRandomSampler([4, 0]), 2, drop_last=False)}, [0, 4]),
        ({"batch_sampler": [[0, 2], [5]]}, [0, 2, 5]),
        ({"sampler": SequentialSampler(range(2)), "batch_size": None}, [0, 1]),
        ({"shuffle": True}, [0, 1, 2, 3, 4, 5]),
        ({"sampler": DistributedSampler(range(6), num_replicas=2, rank=0)}, [0, 1, 2, 3, 4, 5]),
        ({"batch_sampler": shard(SequentialSampler(range(6)))}, [0, 1, 2, 3, 4, 5]),
        ({"batch_sampler": shard(SubsetRandomSampler([4, 0, 2, 5]))}, [0, 2, 4, 5]),
    ],
)
def test_a_loader_gives_what_its_sampler_is_restricted_to(how, places):
    inputs, kinds = arrays()
    state = torch.random.get_rng_state()
    data = examples.read(DataLoader(TensorDataset(inputs, kinds), **how))
    assert torch.equal(data.inputs[:], inputs[places])
    assert torch.equal(data.labels, kinds[places])
    assert torch.equal(torch.random.get_rng_state(), state)
    note = f"of the 6 examples of the data {len(places)} are read, those that its loader's sampler draws"
    assert data.notes == (() if len(places) == 6 else (note,))


class Shuffled(BatchSampler):
    """One of a user's own."""


def test_a_remainder_that_a_batch_sampler_drops_is_read_and_told():
    inputs, kinds = arrays()
    whole = Shuffled(RandomSampler(range(6)), 4, drop_last=True)
    data = examples.read(DataLoader(TensorDataset(inputs, kinds), batch_sampler=whole))
    assert torch.equal(data.inputs[:], inputs)
    assert data.notes == ("all 6 examples of the data are read, with those that its loader drops of a last batch",)
    part = Shuffled(SubsetRandomSampler([0, 1, 4, 5]), 4, drop_last=True)
    data = examples.read(DataLoader(TensorDataset(inputs, kinds), batch_sampler=part))
    assert torch.equal(data.inputs[:], inputs[[0, 1, 4, 5]])


def test_a_loader_that_draws_examples_again_is_refused():
    loader = DataLoader(TensorDataset(*arrays()), sampler=WeightedRandomSampler([1.0] * 5 + [50.0], 20))
    with pytest.raises(DataError, match=r"draws examples more than once \(WeightedRandomSampler\).*give its data set"):
        examples.read(loader)


class Targets(torchvision.datasets.CIFAR10):
    """As of torchvision, without a download."""

    def __init__(self, **transforms):
        torchvision.datasets.VisionDataset.__init__(self, "", **transforms)
        self.data, self.targets = np.random.default_rng(0).integers(0, 255, (6, 8, 8, 3), np.uint8), [5, 6] * 3
        self.classes = list("abcdefgh")


class Changed(Targets):
    def __getitem__(self, place):
        image, label = super().__getitem__(place)
        return image, label - 5


def test_labels_are_what_a_data_set_gives(monkeypatch):
    for changed in (Targets(target_transform=lambda label: label - 5), Changed()):
        data = examples.read(changed)
        assert data.labels.tolist() == [0, 1] * 3
        assert data.classes == (), "names are of the labels before"
    columns = Targets()
    columns.targets = torch.tensor(columns.targets)[:, None]
    assert examples.read(columns).labels.tolist() == [5, 6] * 3, "an array of one element is that element"
    part = examples.read(Subset(Targets(), [1, 2, 3]))
    assert part.labels.tolist() == [6, 5, 6]
    assert part.classes == tuple("abcdefgh")
    many, asked, item = Targets(), [], image_items.Items.item
    many.data, many.targets = np.concatenate([many.data] * 50), [5, 6] * 150
    monkeypatch.setattr(image_items.Items, "item", lambda self, place: asked.append(place) or item(self, place))
    kinds, _ = image_pairs._read_labels(image_items.Items(many, "the data"))
    assert kinds.end("", "").classes.tolist() == [5, 6] * 150
    assert len(asked) == 8, "no image is read for its label but to see that it is what the data set gives"


def test_a_folder_of_torchvision_has_the_classes_of_its_samples(tmp_path):
    class_folder(tmp_path, 12)
    data = torchvision.datasets.ImageFolder(str(tmp_path))
    data.samples = [*data.samples[6:], *data.samples[:6]]
    assert examples.read(data).labels.tolist() == [label for _, label in data] == [1] * 6 + [0] * 6
    data.targets = [7] * 12
    assert examples.read(Subset(data, [0, 11])).labels.tolist() == [1, 0]


def test_what_a_data_set_calls_targets_is_asked_for_only_where_it_is_that():
    wrong = Targets()
    wrong.targets = [f"{place}.xml" for place in range(6)]
    wrong.__class__ = type("Other", (Targets,), {"__getitem__": lambda self, place: (self.data[place], place % 2)})
    wrong.__class__.__getitem__.__module__ = "torchvision.datasets.other"
    assert examples.read(wrong).labels.tolist() == [0, 1] * 3
    for given in (5, torch.tensor(3), Targets):
        whole = Changed()
        whole.targets, whole.found = given, [5, 6] * 3
        whole.__class__ = type(
            "Own", (Targets,), {"__getitem__": lambda self, place: (self.data[place], self.found[place])}
        )
        assert examples.read(whole).labels.tolist() == [5, 6] * 3


class Named(Dataset):
    """Images whose labels are names."""

    classes = ("zebra", "ant", "cat")

    def __len__(self):
        return 30

    def __getitem__(self, place):
        return torch.rand(3, 8, 8), ("zebra", "ant", "cat")[place % 3]


def test_labels_that_are_names_of_classes_have_their_numbers():
    whole = examples.read(Named())
    part = examples.read(Subset(Named(), [0, 2, 3, 5]))
    for data in (whole, part):
        assert data.classes == ("zebra", "ant", "cat")
    assert whole.labels.tolist() == [0, 1, 2] * 10
    assert part.labels.tolist() == [0, 2, 0, 2]
    others = Named()
    others.classes = ("dog", "ant", "cat")
    found = examples.read(others)
    assert (found.classes, found.labels.tolist()[:3]) == (("ant", "cat", "zebra"), [2, 0, 1]), "no name of another"


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (np.unique([0, 1]), ("0", "1")),
        (torch.tensor([4, 5]), ("4", "5")),
        (3, ()),
        (len, ()),
        ({"b": 1, "a": 0}, ("a", "b")),
        ({"a": 1}, ()),
        (np.array(3), ()),
        ("ab", ()),
    ],
)
def test_names_of_classes_stand_in_whatever_lists_them(classes, names):
    data = TensorDataset(torch.rand(6, 3, 8, 8), torch.tensor([0, 1] * 3))
    data.classes = classes
    assert examples.read(data).classes == names


def test_one_label_in_a_list_is_found_wherever_it_stands_and_few_in_a_data_set_are_missed_with_a_note():
    some = [(torch.rand(3, 8, 8), 1 if place == 5 else None) for place in range(100)]
    with pytest.raises(DataError, match=r"no label in .*, as 99 of 100 have none: label them or drop them"):
        examples.read(some)
    with pytest.warns(DataWarning, match="no label was found beside 8 of the 100 items of the data, which are read wi"):
        assert examples.read(Subset(some, range(100))).labels is None


def test_a_loader_that_shuffles_and_makes_batches_of_its_own_is_the_same_each_time():
    rows = [(image, place % 2) for place, image in enumerate(torch.rand(12, 3, 8, 8))]
    loader = DataLoader(rows, batch_size=5, shuffle=True, collate_fn=lambda batch: tuple(zip(*batch, strict=True)))
    assert examples.read(loader).digest == examples.read(loader).digest


def test_a_batch_may_be_images_alone():
    images = torch.rand(12, 3, 8, 8)
    for label in ("label", ""):
        data = examples.read(DataLoader(images, batch_size=5, collate_fn=torch.stack), label=label)
        assert (data.inputs.shape, data.labels) == ((12, 3, 8, 8), None)


def test_labels_that_are_not_asked_for_may_be_anything_in_batches_of_ones_own():
    images = torch.rand(12, 3, 8, 8)

    def stack(batch):
        return torch.stack([image for image, _ in batch]), [label for _, label in batch]

    for labels in (
        range(100, 112),
        ["a cat"] * 12,
        [[0, 1]] * 12,
        [torch.rand(4)] * 12,
        [{"boxes": 1, "labels": 2}] * 12,
    ):
        rows = list(zip(images, labels, strict=True))
        data = examples.read(DataLoader(rows, batch_size=4, collate_fn=stack), label="")
        assert (len(data), data.labels, data.targets, data.classes) == (12, None, (), ())


def test_a_batch_of_two_may_hold_images_of_several_modes():
    for images in (
        [Image.new(mode, (8, 8)) for mode in ("RGB", "L", "RGBA")],
        [np.zeros(shape, np.uint8) for shape in ((8, 8, 3), (8, 8), (8, 8, 4))],
    ):
        rows = [(image, place % 2) for place, image in enumerate(images * 4)]
        loader = DataLoader(rows, batch_size=2, collate_fn=lambda batch: tuple(zip(*batch, strict=True)))
        assert examples.read(loader).labels.tolist() == [0, 1] * 6
        assert len(examples.read(loader, label="")) == 12


def test_a_batch_of_one_may_be_its_example():
    for image in (torch.rand(3, 8, 9), Image.new("RGB", (9, 8)), np.zeros((8, 9, 3), np.uint8)):
        rows = [(image, place % 2) for place in range(6)]
        for label in ("label", ""):
            data = examples.read(DataLoader(rows, batch_size=1, collate_fn=lambda batch: batch[0]), label=label)
            assert data.inputs.shape == (6, 3, 8, 9)
            assert (data.labels is None) == (label == "")
    for alone in (torch.rand(3, 8, 9), np.zeros((8, 9, 3), np.uint8)):
        with pytest.raises(DataError, match="gives batches of"):
            examples.read(DataLoader([alone] * 6, batch_size=1, collate_fn=lambda batch: batch[0]), label="")


def test_batches_of_two_are_images_and_labels_whatever_their_channels():
    several = [torch.rand(4 if place == 2 else 3, 8, 9) for place in range(6)]
    loader = DataLoader(
        [*zip(several, [0, 1] * 3, strict=True)], batch_size=2, collate_fn=lambda batch: [*zip(*batch, strict=True)]
    )
    assert examples.read(loader).labels.tolist() == [0, 1] * 3
    grey = [(image, [place]) for place, image in enumerate(np.random.default_rng(0).random((8, 9, 9)))]

    def stack(batch):
        return np.stack([image for image, _ in batch]), np.array([label for _, label in batch])

    data = examples.read(DataLoader(grey, batch_size=2, collate_fn=stack))
    assert (data.labels.tolist(), len(data)) == ([*range(8)], 8)
    for rows in ([torch.rand(3, 8, 9)] * 4, [np.zeros((8, 9, 3))] * 4, [Image.new("L", (9, 8))] * 4):
        for label in ("label", ""):
            with pytest.raises(DataError, match="two examples in a list as a batch"):
                examples.read(DataLoader(rows, batch_size=2, collate_fn=list), label=label)


def test_targets_may_be_of_pandas_whose_rows_have_names():
    pandas = pytest.importorskip("pandas")
    for given in (
        pandas.Series([5, 6] * 3, index=range(100, 106)),
        pandas.DataFrame({"a": [5, 6] * 3}),
        dict.fromkeys(range(6)),
    ):
        data = Targets()
        data.targets, data.found = given, [5, 6] * 3
        data.__class__ = type(
            "Own", (Targets,), {"__getitem__": lambda self, place: (self.data[place], self.found[place])}
        )
        assert examples.read(data).labels.tolist() == [5, 6] * 3


def test_names_of_classes_number_the_labels_of_loaders_and_streams_too():
    class Stream(IterableDataset):
        classes = Named.classes

        def __iter__(self):
            return iter([Named()[place] for place in range(6)])

    loader = DataLoader(Named(), batch_size=3, collate_fn=lambda batch: tuple(zip(*batch, strict=True)))
    for source in (loader, Stream()):
        data = examples.read(source)
        assert (data.classes, data.labels.tolist()[:3]) == (("zebra", "ant", "cat"), [0, 1, 2])
    numbered = TensorDataset(torch.rand(6, 3, 8, 8), torch.tensor([0, 1] * 3))
    numbered.classes = ("a", "b")
    assert (
        examples.read(DataLoader(numbered, collate_fn=lambda batch: (batch[0][0][None], [1 - batch[0][1]]))).classes
        == ()
    )


def test_what_names_are_dropped_and_what_labels_are_not_found_is_said():
    others = Named()
    others.classes = ("dog", "ant", "cat")
    with pytest.warns(DataWarning, match="has the label 'zebra', which is none of its classes: they are numbered"):
        examples.read(others)
    with pytest.warns(DataWarning, match="beside 5 of the 5 items"):
        examples.read(Subset([(torch.rand(3, 8, 8), None)] * 5, range(5)))
    for quiet in (TensorDataset(torch.rand(5, 3, 8, 8)), [(torch.rand(3, 8, 8), None)] * 5):
        with warnings.catch_warnings():
            warnings.simplefilter("error", DataWarning)
            examples.read(quiet)


class Unsized(Dataset):
    def __getitem__(self, place):
        return Pairs()[place]


class Broken(Pairs):
    def __getitem__(self, place):
        raise OSError("gone")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (7, "data is of int: give a path, Examples"),
        (Unsized(), "data is of Unsized, which has no __len__: give it one"),
        (Broken(), "item 0 of the data can't be read: OSError: gone"),
        (["no pair"] and iter(["no pair"]), r"item 0 of the data is str: expected a pair \(image, label\)"),
        ([(np.zeros((3, 4, 4)), 1, 7)], r"item 0 of the data is tuple of 3: expected a pair \(image, label\)"),
        (DataLoader(["a", "b"]), r"is str: expected a pair .*; texts, in a list, are for recipes on language models"),
        ([{"x": 1, "y": 2}], "item 0 of the data has x, y and no image: call it `image`, its class `label`"),
        ([(torch.zeros(2, 3, 4, 4), 1)], "item 0 of the data is a batch of 2 images: give a label for each"),
        (iter([]), "the data holds no example"),
        ([("a", 1)], "item 0 of the data is str: give PIL images"),
        ([(np.zeros((3, 4, 4)), 0.5), (np.zeros((3, 4, 4)), 1)], "has the label 0.5"),
    ],
)
def test_what_gives_no_images_is_refused_in_a_line(source, words):
    with pytest.raises(DataError, match=words):
        examples.read(source)


def test_a_first_example_without_a_class_is_named_as_any_other() -> None:
    images = torch.rand(20, 3, 8, 8)
    for place in (0, 7):
        pairs = [(image, None if number == place else 1) for number, image in enumerate(images)]
        with pytest.raises(DataError, match=f"image {place + 1} of the data has no label in .*, as 1 of 20 have none"):
            examples.read(pairs)
    assert examples.read([(image, None) for image in images]).labels is None


def test_what_of_a_dict_is_passed_over_is_said() -> None:
    images, mask = torch.rand(4, 3, 8, 8), torch.zeros(8, 8)
    with pytest.warns(DataWarning, match="and is read without classes; it has segmentation_mask: call"):
        examples.read([{"image": image, "segmentation_mask": mask} for image in images])
    with pytest.warns(DataWarning, match="has label and mask beside each image: .* leave label out"):
        found = examples.read([{"image": image, "label": 1, "mask": mask} for image in images])
    assert found.labels is not None
    with pytest.warns(DataWarning, match="it has objects"):
        examples.read({"image": image, "objects": [1]} for image in images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        examples.read([{"image": image, "label": 1, "id": 3} for image in images])


def test_names_that_are_too_few_for_the_labels_are_left_out_with_a_note():
    data = TensorDataset(torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 5] * 2))
    data.classes = ("a", "b", "c")
    with pytest.warns(DataWarning, match="names 3 classes and has the label 5: the names are left out"):
        found = examples.read(data)
    assert (found.labels.tolist(), found.classes) == ([0, 1, 5] * 2, ())


@pytest.mark.parametrize("form", [list, iter, lambda rows: DataLoader(rows, batch_size=4)])
def test_labels_of_digits_are_taken_as_names_and_told(form):
    rows = [(image, str(place)) for place, image in enumerate(torch.rand(12, 3, 8, 8))]
    with pytest.warns(DataWarning, match=r"strings of digits, '0', '1', '10': they are taken as names in alphabetical"):
        assert examples.read(form(rows)).classes[2] == "10"
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        assert examples.read(form(rows[:10])).labels.tolist() == [*range(10)], "either way"
        examples.read(form([(image, f"{label}a") for image, label in rows]))


def stack(batch):
    return torch.stack([image for image, _ in batch]), torch.tensor([label for _, label in batch])


@pytest.mark.parametrize("how", [{"sampler": WeightedRandomSampler([1.0] * 12, 24)}, {"batch_sampler": [[0, 1], [1]]}])
def test_a_loader_with_batches_of_its_own_that_draws_examples_again_is_refused(how):
    rows = [(image, place % 3) for place, image in enumerate(torch.rand(12, 3, 8, 8))]
    with pytest.raises(DataError, match="draws examples more than once"):
        examples.read(DataLoader(rows, collate_fn=stack, **how))


@pytest.mark.parametrize("how", [{}, {"shuffle": True}])
def test_what_a_loader_with_batches_of_its_own_drops_is_told(how):
    rows = [(image, place % 3) for place, image in enumerate(torch.rand(12, 3, 8, 8))]
    data = examples.read(DataLoader(rows, batch_size=5, drop_last=True, collate_fn=stack, **how))
    assert len(data) == 10
    assert data.notes == ("of the 12 examples of the data 10 are read, those that its loader gives",)
    assert examples.read(DataLoader(rows, batch_size=5, collate_fn=stack, **how)).notes == ()


@pytest.mark.parametrize("labels", [torch.tensor([1, 0, 1]), torch.rand(5), [1, 0, 1]])
def test_a_batch_of_one_may_have_several_labels_and_is_one_image(labels):
    rows = [(image, labels) for image in torch.rand(6, 3, 8, 9)]
    loader = DataLoader(rows, batch_size=1, collate_fn=lambda batch: batch[0])
    assert examples.read(loader, label="").inputs.shape == (6, 3, 8, 9)
    with pytest.raises(DataError, match="more than one value"):
        examples.read(loader)
    grey = DataLoader([(image[0], 1) for image, _ in rows], collate_fn=lambda rows: (rows[0][0][None], [rows[0][1]]))
    assert examples.read(grey).labels.tolist() == [1] * 6, "a batch of one grey image"


def test_a_batch_of_one_with_a_label_that_is_no_batch_is_refused():
    loader = DataLoader(
        [(image, 1) for image in torch.rand(6, 3, 8, 9)], collate_fn=lambda rows: (rows[0][0][None], rows[0][1])
    )
    with pytest.raises(DataError, match="is a batch of 1 images: give a label for each"):
        examples.read(loader)


def test_grey_batches_without_labels_say_what_to_give():
    for join in (torch.stack, lambda batch: np.stack(list(map(np.asarray, batch)))):
        loader = DataLoader(torch.rand(6, 20, 30), batch_size=6, collate_fn=join)
        with pytest.raises(DataError, match=r"batches of \w+ \[6, 20, 30\]: .*; images alone are \[B, C, H, W\]"):
            examples.read(loader)


class Streamed(IterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


@pytest.mark.parametrize(
    "label", [torch.zeros(1, 8, 8, dtype=torch.int64), torch.zeros(1, 8, 8, dtype=torch.bool), torch.rand(8, 8)]
)
def test_what_is_no_image_beside_another_makes_a_list_of_two_examples(label):
    rows = [(image, label) for image in torch.rand(4, 3, 8, 8)]
    with pytest.raises(DataError, match="two examples in a list as a batch"):
        examples.read(DataLoader(Streamed(rows), batch_size=2, collate_fn=list))


@pytest.mark.parametrize("kind", [torch.int64, torch.bool])
def test_batches_of_grey_images_and_masks_are_no_two_examples(kind):
    batch = torch.rand(2, 9, 9), torch.zeros(2, 9, 9, dtype=kind)
    with pytest.raises(DataError, match="has a mask, which the data gives in batches"):
        examples.read(DataLoader(Streamed([0] * 4), batch_size=2, collate_fn=lambda _: batch))


def test_what_batches_have_beside_their_images_is_said_once():
    loader = DataLoader(
        torch.rand(6, 3, 8, 8), batch_size=2, collate_fn=lambda batch: {"image": torch.stack(batch), "kind": [1, 2]}
    )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        examples.read(loader)
    assert [str(one.message).partition(";")[0] for one in told if one.category is DataWarning] == [
        "the data has no label, labels, fine_label, cls, class, target, and is read without classes"
    ]


def test_labels_that_a_joint_transform_changes_are_those_that_it_gives():
    data = Targets(transforms=lambda image, label: (image, 7 if np.asarray(image).max() else label))
    data.data, data.targets = np.zeros((300, 8, 8, 3), np.uint8), [5, 6] * 150
    data.data[1] = 255  # which is none of those that are looked at
    wrapped = torchvision.datasets.wrap_dataset_for_transforms_v2(data)
    assert examples.read(wrapped).labels.tolist() == [5, 7, *[5, 6] * 149]


class Failing(Pairs):
    def __getitem__(self, place):
        if place == 3:
            raise IndexError("none there")
        return super().__getitem__(place)


def test_what_a_loader_or_an_iterable_fails_with_is_one_line():
    def broken():
        yield Pairs()[0]
        raise ValueError("it broke")

    def refused():
        yield Pairs()[0]
        raise DataError("my own line")

    with pytest.raises(DataError, match=r"^my own line$"):
        examples.read(refused())
    for source, line in (
        (DataLoader(Stream(), batch_size=2), "item 0 of the data can't be read: TypeError: default_collate"),
        (DataLoader(Failing(), batch_size=1, collate_fn=lambda batch: batch[0]), "item 3 .* IndexError: none there"),
        (broken(), "item 1 of the data can't be read: ValueError: it broke"),
    ):
        with pytest.raises(DataError, match=line):
            examples.read(source)


@pytest.mark.parametrize("how", ["sampler", "batch_sampler"])
def test_a_sampler_that_can_be_passed_over_once_is_not_used_up(how):
    def collate(batch):
        return [torch.from_numpy(np.array(image.resize((4, 4)))).permute(2, 0, 1) for image, _ in batch], [
            label for _, label in batch
        ]

    drawn = {"sampler": iter(range(6)), "batch_size": 2} if how == "sampler" else {"batch_sampler": iter([[0, 1], [2]])}
    data = examples.read(DataLoader(Pairs(), collate_fn=collate, **drawn))
    assert len(data) == (6 if how == "sampler" else 3)


def test_what_a_loader_of_a_stream_that_knows_its_length_leaves_out_is_told():
    def collate(batch):
        return torch.stack([torch.zeros(3, 4, 4) for _ in batch]), [label for _, label in batch]

    data = examples.read(DataLoader(SizedStream(), batch_size=4, drop_last=True, collate_fn=collate))
    assert data.notes == ("of the 6 examples of the data 4 are read, those that its loader gives",)


def test_a_batch_sampler_that_does_not_say_its_size_gives_batches():
    pairs = [(torch.zeros(1, 4, 4), 0), (torch.zeros(1, 4, 4), 1)]
    loader = DataLoader(pairs, batch_sampler=[[0, 1]], collate_fn=lambda batch: batch)
    with pytest.raises(DataError, match="gives two examples in a list as a batch"):
        examples.read(loader)


def test_classes_of_a_table_and_of_sets_that_are_joined_keep_their_names():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [Image.new("RGB", (4, 4), (place, 0, 0)) for place in range(4)], "label": [0, 1, 0, 1]}
    table = datasets.Dataset.from_dict(rows, features=features)
    for source in (Subset(table, [3, 1]), ConcatDataset([Subset(table, [0, 1]), Subset(table, [2])])):
        assert examples.read(source).classes == ("cat", "dog")
    other = table.cast_column("label", datasets.ClassLabel(names=["dog", "cat"]))
    assert examples.read(ConcatDataset([Subset(table, [0]), Subset(other, [0])])).classes == ()


def test_images_that_hold_no_numbers_are_refused():
    for wrong in (torch.full((3, 4, 4), torch.nan), np.full((3, 4, 4), np.inf, np.float32)):
        with pytest.raises(DataError, match="item 1 of the data holds NaN or infinity: give numbers for every pixel"):
            _ = examples.read([(torch.zeros(3, 4, 4), 0), (wrong, 1)]).digest


def test_strings_of_numbers_are_names_and_told():
    pairs = [(Image.new("L", (4, 4)), label) for label in ("-1", "2.5", "10")]
    with pytest.warns(DataWarning, match=r"strings of digits, '-1', '10', '2.5': they are taken as names"):
        assert examples.read(pairs).classes == ("-1", "10", "2.5")
