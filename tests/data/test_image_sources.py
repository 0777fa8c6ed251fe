"""Every form in which people have images with classes."""

from __future__ import annotations

import io
import json
import tarfile
import warnings

import datasets
import numpy as np
import pytest
import torch
import torchvision
from accelerate.data_loader import BatchSamplerShard
from PIL import Image
from torch.utils.data import (
    BatchSampler,
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

from pictures import class_folder, draw
from secateur.data import examples, image_sources
from secateur.data.images import Images
from secateur.errors import DataError, DataWarning


def table(folder, named=True):
    class_folder(folder, 6)
    files = sorted(folder.rglob("*.jpg"))
    kinds = [file.parent.name for file in files]
    label = datasets.ClassLabel(names=["a", "b"]) if named else datasets.Value("string")
    features = datasets.Features({"image": datasets.Image(), "label": label})
    return datasets.Dataset.from_dict({"image": list(map(str, files)), "label": kinds}, features=features)


def shards(folder, json_labels=False):
    folder.mkdir(exist_ok=True)
    for number in range(2):
        with tarfile.open(folder / f"data-{number:03}.tar", "w") as tar:
            for place in range(3):
                file = draw(folder / "x.jpg", (30 + place, 20), 3 * number + place)
                tar.add(file, f"{number}{place}.jpg")
                content = json.dumps({"label": "ab"[place % 2]}) if json_labels else str(place % 2)
                info = tarfile.TarInfo(f"{number}{place}.{'json' if json_labels else 'cls'}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content.encode()))
    return folder


def sized(data):
    return examples.with_transform(data, size=16)


def check(data, count=6, classes=()):
    assert isinstance(data.inputs, Images)
    assert len(data) == count
    assert data.classes == classes
    assert sized(data).inputs[:].shape == (count, 3, 16, 16)
    assert sorted(set(data.labels.tolist())) == [0, 1]
    assert len(np.unique(data.keys())) == count
    assert data.digest == data.digest


def test_folders_of_train_and_val(tmp_path):
    class_folder(tmp_path / "all" / "train", 6)
    class_folder(tmp_path / "all" / "val", 2)
    check(examples.read(tmp_path / "all"), classes=("a", "b"))
    assert image_sources.find_held_out(tmp_path / "all") == tmp_path / "all" / "val"
    class_folder(tmp_path / "vehicles" / "train" / "..", 4)
    assert image_sources.find_held_out(tmp_path / "vehicles") is None, "classes may be called so"


def test_images_lie_deeper_in_the_folder_of_their_class(tmp_path):
    draw(tmp_path / "a" / "x" / "1.png")
    draw(tmp_path / "b" / "2.png")
    draw(tmp_path / ".hidden" / "3.png")
    data = examples.read(tmp_path)
    assert data.labels.tolist() == [0, 1]
    assert data.classes == ("a", "b")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("training", "testing"), "holds testing, training, parts of a data set and no classes: say --data .*training "
                                  "--held-out .*testing"),
        (("train",), "holds train, parts of a data set and no classes: say --data .*train"),
        (("flowers",), "holds the one folder flowers, with folders of images: say --data .*flowers"),
    ],
)  # fmt: skip
def test_parts_of_a_data_set_are_not_read_as_classes(tmp_path, names, said):
    for name in names:
        class_folder(tmp_path / name, 4)
    with pytest.raises(DataError, match=said):
        examples.read(tmp_path)
    assert examples.read(tmp_path / names[0]).classes == ("a", "b")


def test_classes_may_be_called_as_parts(tmp_path):
    draw(tmp_path / "train" / "1.png")
    draw(tmp_path / "test" / "2.png")
    assert examples.read(tmp_path).classes == ("test", "train")


def test_images_whose_form_is_not_read_are_told(tmp_path):
    class_folder(tmp_path, 4)
    assert not examples.read(tmp_path).notes
    (tmp_path / "a" / "phone.HEIC").write_bytes(b"x")
    (note,) = examples.read(tmp_path).notes
    assert note == f"1 images of {tmp_path.name} are left out, for their form is not read: phone.HEIC"


def test_a_class_without_images_is_told(tmp_path):
    class_folder(tmp_path, 4)
    (tmp_path / "c").mkdir()
    data = examples.read(tmp_path)
    assert data.classes == ("a", "b", "c")
    assert data.notes == (f"1 of 3 folders of {tmp_path.name} hold no image: c",)


def test_images_of_one_folder_are_said_to_be_of_one_class(tmp_path):
    draw(tmp_path / "photos" / "1.png")
    (note,) = examples.read(tmp_path).notes
    assert note == f"all images of {tmp_path.name} are of one class, for classes are its folders: photos"


def test_images_without_folders_are_refused(tmp_path):
    draw(tmp_path / "1.png")
    with pytest.raises(DataError, match="holds no images in folders named by class"):
        examples.read(tmp_path)


def test_a_table_of_datasets(tmp_path):
    rows = table(tmp_path / "x")
    check(examples.read(rows), classes=("a", "b"))
    rows.save_to_disk(tmp_path / "saved")
    check(examples.read(tmp_path / "saved"), classes=("a", "b"))
    rows.to_parquet(tmp_path / "p.parquet")
    check(examples.read(tmp_path / "p.parquet"), classes=("a", "b"))
    both = datasets.DatasetDict({"train": rows, "validation": rows})
    assert image_sources.find_held_out(both) is rows
    both.save_to_disk(tmp_path / "both")
    assert image_sources.find_held_out(tmp_path / "both") == tmp_path / "both" / "validation"
    check(examples.read(tmp_path / "both"), classes=("a", "b"))
    check(examples.read(table(tmp_path / "y", named=False)), classes=("a", "b"))
    assert examples.read(rows, label="").labels is None
    with pytest.raises(DataError, match="the table has no column 'colour': it has label, image"):
        examples.read(rows, label="colour")
    with pytest.raises(DataError, match=r"no column of images: it has n; name one of type datasets\.Image"):
        examples.read(datasets.Dataset.from_dict({"n": [1]}))


def test_a_streamed_table_is_kept_as_it_is_encoded(tmp_path):
    check(examples.read(table(tmp_path).to_iterable_dataset()), classes=("a", "b"))


@pytest.mark.parametrize("json_labels", [False, True])
def test_shards(tmp_path, json_labels):
    shards(tmp_path, json_labels)
    classes = ("a", "b") if json_labels else ()
    for source in (tmp_path, f"{tmp_path}/data-*.tar", f"{tmp_path}/data-{{000..001}}.tar"):
        check(examples.read(source), classes=classes)
    assert len(examples.read(tmp_path / "data-000.tar")) == 3
    with pytest.raises(DataError, match=r"there is no shard .*data-002\.tar"):
        examples.read(f"{tmp_path}/data-{{000..002}}.tar")
    (tmp_path / "data-000.tar").write_bytes(b"no tar")
    with pytest.raises(DataError, match=r"data-000\.tar can't be read as \.tar"):
        examples.read(tmp_path)


@pytest.mark.parametrize("ending", ["parquet", "tar"])
def test_parts_that_files_are_named_for_are_never_merged(tmp_path, ending):
    folder = tmp_path / "data"
    shards(folder)
    if ending == "parquet":
        rows = table(tmp_path / "x")
        for name, file in (("train-00000-of-00001", "data-000.tar"), ("test-00000-of-00001", "data-001.tar")):
            rows.select(range(3)).to_parquet(folder / f"{name}.parquet")
            (folder / file).unlink()
    else:
        (folder / "data-000.tar").rename(folder / "train-000.tar")
        (folder / "data-001.tar").rename(folder / "test-000.tar")
    held = image_sources.find_held_out(folder)
    assert str(held) == f"{folder}:test"
    for source, part in ((folder, "train"), (held, "test"), (f"{folder}:test", "test")):
        data = examples.read(source)
        assert len(data) == 3
        assert data.notes == (f"data holds files of several parts by their names, train (1), test (1): {part} is read",)
    assert image_sources.find_held_out(held) is None
    with pytest.raises(DataError, match="no files of a part validation"):
        examples.read(f"{folder}:val")
    (alone,) = folder.glob(f"test*.{ending}")
    assert len(examples.read(alone)) == 3, "a file that was named is read"


class Pairs(Dataset):
    classes = ("a", "b")

    def __len__(self):
        return 6

    def __getitem__(self, place):
        if not 0 <= place < 6:
            raise IndexError(place)
        rng = np.random.default_rng(place)
        return Image.fromarray(rng.integers(0, 255, (20 + place, 30, 3), dtype=np.uint8)), place % 2


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
    many, asked, item = Targets(), [], image_sources.Items.item
    many.data, many.targets = np.concatenate([many.data] * 50), [5, 6] * 150
    monkeypatch.setattr(image_sources.Items, "item", lambda self, place: asked.append(place) or item(self, place))
    kinds, _ = image_sources._read_labels(image_sources.Items(many, "the data"))
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


def test_a_table_with_a_transform_of_ones_own_is_what_that_makes_of_it(tmp_path):
    def shrink(rows):
        rows["pixel_values"] = [torch.from_numpy(np.array(one.resize((8, 8)))).permute(2, 0, 1) / 255.0 - 0.5
                                for one in rows.pop("image")]  # fmt: skip
        return rows

    data = examples.read(table(tmp_path).with_transform(shrink))
    assert data.inputs.shape == (6, 3, 8, 8)
    assert float(data.inputs[0].min()) < 0
    assert (data.labels.tolist(), data.classes) == ([0] * 3 + [1] * 3, ("a", "b"))
    plain = examples.read(table(tmp_path).with_transform(shrink), label="")
    assert (len(plain), plain.labels, plain.classes) == (6, None, ())


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("key", ["label", "labels"])
def test_a_transform_of_a_table_may_rename_its_labels_and_keep_its_images(tmp_path, key, adds):
    def change(rows):
        found = {"pixel_values": [torch.full((3, 4, 4), 0.25) for _ in rows["image"]], key: rows["label"]}
        return {"image": rows["image"], **found} if adds else found

    rows = table(tmp_path).with_transform(change)
    for given in (rows, datasets.DatasetDict(train=rows)):
        data = examples.read(given)
        assert (data.labels.tolist(), data.classes) == ([0] * 3 + [1] * 3, ("a", "b"))
        assert torch.equal(examples.with_transform(data, "none").inputs[:], torch.full((6, 3, 4, 4), 0.25))
    more = (
        table(tmp_path).remove_columns("label").with_transform(lambda rows: {**rows, "kind": [5] * len(rows["image"])})
    )
    assert examples.read(more, label="kind").labels.tolist() == [5] * 6


def test_columns_of_lists_are_arrays_or_refused_in_a_line():
    picture = Image.new("RGB", (8, 8))
    for kind, value in (("image", [picture]), ("string", ["a"]), ("binary", [b"a"])):
        inner = datasets.Image() if kind == "image" else datasets.Value(kind)
        rows = datasets.Dataset.from_dict({"image": [value]}, datasets.Features({"image": datasets.Sequence(inner)}))
        for given in (rows, rows.to_iterable_dataset()):
            with pytest.raises(DataError, match="is list: give PIL images, or arrays"):
                examples.read(given, label="")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    encoded = datasets.Dataset.from_dict({"image": [buffer.getvalue()] * 2, "label": [0, 1]})
    assert examples.read(encoded).inputs.shape == (2, 3, 8, 8)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("form", ["Array3D", "Sequence"])
def test_arrays_of_a_table_are_the_numbers_that_it_says(form, streamed):
    numbers = np.random.default_rng(0).integers(0, 256, (4, 8, 9, 3), dtype=np.uint8)
    kind = datasets.Array3D((8, 9, 3), "uint8")
    if form == "Sequence":
        kind = datasets.Sequence(datasets.Sequence(datasets.Sequence(datasets.Value("uint8"))))
    features = datasets.Features({"image": kind, "label": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict({"image": list(numbers), "label": [0, 1, 0, 1]}, features=features)
    data = examples.read(rows.to_iterable_dataset() if streamed else rows)
    expected = torch.from_numpy(numbers).permute(0, 3, 1, 2) / 255.0
    assert torch.equal(examples.with_transform(data, "none").inputs[:], expected)
    assert data.labels.tolist() == [0, 1, 0, 1]


def test_the_column_of_images_is_the_one_that_is_called_so():
    features = datasets.Features({name: datasets.Image() for name in ("annotation", "image")})
    pictures = [Image.new("RGB", (8, 8), color) for color in ("black", "white")]
    data = examples.read(
        datasets.Dataset.from_dict({"annotation": pictures[:1], "image": pictures[1:]}, features), label=""
    )
    assert float(examples.with_transform(data, "none").inputs[0].min()) == 1.0


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
    with pytest.raises(DataError, match="is a batch of 3 images: give a label for each"):
        examples.read(DataLoader([(torch.rand(3, 8, 9), [1, 2])] * 6, collate_fn=lambda batch: batch[0]), label="")


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


def test_floats_with_their_colours_last_are_turned_where_nothing_else_can_stand_there():
    numbers = np.random.default_rng(0).random((4, 8, 9, 3))
    data = examples.read([(image, 0) for image in numbers])
    assert torch.equal(
        examples.with_transform(data, "none").inputs[:], torch.from_numpy(numbers).permute(0, 3, 1, 2).float()
    )
    for shape in ((3, 8, 3), (16, 8, 1), (16, 9, 4)):
        assert examples.read([(np.zeros(shape), 0)]).inputs.shape == (1, *shape)


def test_opened_images_are_read_as_their_files_are(tmp_path):
    numbers = np.random.default_rng(0).integers(0, 256, (6, 7, 4), dtype=np.uint8)
    deep = np.random.default_rng(0).integers(0, 65536, (6, 7), dtype=np.uint16)
    coloured = Image.fromarray(numbers)
    opened = [coloured.convert(mode) for mode in ("RGB", "RGBA", "LA", "P", "1", "L")]
    opened += [Image.fromarray(deep), Image.fromarray(deep.astype(np.int32)), Image.fromarray(deep / np.float32(65535))]
    opened[3].info["transparency"] = 0
    for place, image in enumerate(opened):
        file = tmp_path / f"{place}.{'png' if place < 6 else 'tif'}"
        image.save(file)
        read = [examples.with_transform(examples.read([one]), "none").inputs[0] for one in (image, Image.open(file))]
        assert torch.equal(*read), image.mode
        assert (
            torch.equal(
                read[0], examples.with_transform(examples.read([np.array(image.convert("RGB"))]), "none").inputs[0]
            )
            or place > 5
        )
    assert np.allclose(read[0], deep / 65535.0)


def test_a_pass_over_images_tells_their_sizes_and_parts_know_what_the_whole_knows():
    opened = []

    class Counted(Dataset):
        def __len__(self):
            return 300

        def __getitem__(self, place):
            opened.append(place)
            return Image.new("RGB", (8, 8), (place % 256, place // 256, 0)), place % 3

    data = examples.read(Counted())
    before = len(opened)
    assert {data.inputs.source.size(place) for place in range(300)} == {(8, 8)}
    assert len(opened) == before <= 330
    assert data.digest
    train, held = data.split()
    assert len(np.intersect1d(train.keys(), held.keys())) == 0
    assert len(opened) <= 2 * 330


def test_arrays_of_16_bits_are_shares_of_their_largest(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (6, 3, 20, 20), dtype=np.uint16)
    kinds, shares = [0, 1] * 3, torch.from_numpy(deep.astype(np.float32)) / 65535
    last = np.ascontiguousarray(deep.transpose(0, 2, 3, 1))
    for images in (deep, last, torch.from_numpy(deep)):
        assert torch.equal(examples.read((images, kinds)).inputs, shares)
    for images in (deep, last):
        assert torch.equal(examples.read(list(zip(images, kinds, strict=True))).inputs[:], shares)
        assert torch.equal(examples.read(zip(images, kinds, strict=True)).inputs[:], shares)
    grey = examples.read(list(zip(deep[:, 0], kinds, strict=True)))
    assert torch.equal(grey.inputs[:], shares[:, :1])
    tokens = examples.read((deep[:, 0, 0], kinds))
    assert tokens.inputs.dtype == torch.int64, "rows of 16 bits may be tokens"
    np.savez(tmp_path / "deep.npz", inputs=last, labels=kinds)
    assert torch.equal(examples.read(tmp_path / "deep.npz").inputs, shares)
    small = (last >> 8).astype(np.uint8)
    with pytest.warns(
        DataWarning, match=r"of shape \[6, 20, 20, 3\] are read as \[N, H, W, C\] and become \[6, 3, 20, 20\]"
    ):
        assert examples.read((small, kinds)).inputs.shape == (6, 3, 20, 20)
    clips = examples.read((deep[:, :, None], kinds))
    assert torch.equal(clips.inputs, shares[:, :, None]), "of any shape, as bytes are"


class Drawn(Pairs):
    def __getitem__(self, place):
        return torch.rand(3, 8, 8), place % 2


def test_a_data_set_that_augments_is_the_same_each_time():
    first, second = examples.read(Drawn()), examples.read(Drawn())
    assert first.digest == second.digest
    assert torch.equal(first.inputs[2:3], second.inputs[2:3])


class Broken(Pairs):
    def __getitem__(self, place):
        raise OSError("gone")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (7, "data is of int: give a path, Examples"),
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


def test_a_name_of_the_hub(tmp_path, monkeypatch):
    asked = []

    def load(name, configuration, split):
        asked.append((name, configuration, split))
        if name == "nobody/nothing":
            raise ConnectionError("offline")
        return table(tmp_path / str(len(asked)))

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    check(examples.read("owner/flowers"), classes=("a", "b"))
    check(examples.read("hub:owner/flowers:plain:test"), classes=("a", "b"))
    assert asked == [("owner/flowers", None, "train"), ("owner/flowers", "plain", "test")]
    with pytest.raises(DataError, match="there is no data at nobody/nothing, nor could it be loaded from the Hub"):
        examples.read("nobody/nothing")


def test_a_table_whose_classes_have_another_name_says_so(tmp_path):
    columns = {"img": [Image.new("RGB", (4, 4))] * 3, "kind": ["a", "b", "a"], "objects": [[1], [2], [3]]}
    table = datasets.Dataset.from_dict(columns).cast_column("img", datasets.Image())
    with pytest.warns(DataWarning, match=r"has no column label, .* without classes; it has kind, objects: name that"):
        assert image_sources.read_table(table).labels is None
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        assert image_sources.read_table(table, "").labels is None
        assert image_sources.read_table(table, "kind").classes == ("a", "b")
        assert image_sources.read_table(table.select_columns("img")).labels is None


def test_the_folder_above_annotations_of_voc_is_named(tmp_path):
    voc = tmp_path / "voc" / "VOCdevkit" / "VOC2007"
    for name in ("Annotations", "JPEGImages"):
        (voc / name).mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(voc / "JPEGImages" / "1.png")
    for place in (tmp_path / "voc", tmp_path / "voc" / "VOCdevkit"):
        with pytest.raises(
            DataError, match=r"holds annotations of Pascal VOC in .*VOC2007, and no classes: say --data"
        ):
            image_sources.read_folder(place)


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
