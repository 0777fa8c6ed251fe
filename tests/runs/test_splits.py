"""What a run learns from and what it is measured on: two parts of the data, or two sets of data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tiny
import vision_models
from pictures import class_folder, mask_folder
from secateur.data import examples, image_items, masks, texts, transforms
from secateur.data.examples import Examples
from secateur.data.texts import Corpus
from secateur.errors import DataError, DataWarning, InputError
from secateur.runs import splits
from secateur.runs.backends.language import Language
from secateur.runs.backends.network import Network
from secateur.subjects import Transformer, open_subject
from secateur.subjects.network.recording import Example
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Figure

DATA = Examples(torch.arange(40.0).reshape(20, 2), torch.arange(20) % 3, classes=("a", "b", "c"), name="data")
LABELS = ["a"] * 90 + ["b"] * 5 + ["c"] * 5
JUDGED = Examples(torch.arange(40.0, 48.0).reshape(4, 2), torch.arange(4) % 3, name="judged")


def parted(data: Examples, held_out: Examples | None = None, seed: int = 0) -> splits.Parts:
    return splits.split(Network(), data, held_out, Traced(nn.Linear(2, 3), Example.of(data.inputs[:1])), seed=seed)


def test_a_part_of_the_data_is_drawn_by_the_seed():
    found, again, other = parted(DATA), parted(DATA), parted(DATA, seed=1)
    assert sorted([*found.train.inputs[:, 0].tolist(), *found.held.inputs[:, 0].tolist()]) == DATA.inputs[:, 0].tolist()
    assert torch.equal(found.held.inputs, again.held.inputs)
    assert not torch.equal(found.held.inputs, other.held.inputs)
    assert found.digests == {"data_sha256": DATA.digest}
    assert found.notes == ()


def test_images_are_read_once_to_tell_them_apart(monkeypatch):
    stamped, stamp = [], image_items.Items.stamp
    monkeypatch.setattr(image_items.Items, "stamp", lambda self, place: stamped.append(place) or stamp(self, place))
    data = examples.read([(torch.full((3, 4, 4), place / 20), place % 2) for place in range(20)])
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    found = splits.split(Network(), data, None, Traced(net, Example.of(torch.zeros(1, 3, 4, 4))), seed=0)
    assert len(found.train) + len(found.held) == 20
    assert sorted(stamped) == [*range(20)]


def test_data_of_its_own_leaves_all_to_learn_from():
    found = parted(DATA, JUDGED)
    assert (found.train, found.held) == (DATA, JUDGED)
    assert found.digests == {"data_sha256": DATA.digest, "held_out_sha256": JUDGED.digest}
    assert parted(DATA.take([0]), JUDGED).train.inputs.tolist() == [[0.0, 1.0]], "nothing has to be held out of it"


def test_images_that_only_begin_alike_are_no_copies(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (120, 120, 3), np.uint8)
    other = pixels.copy()
    other[0, 0] ^= 1  # at the end of a BMP file
    for folder, image in (("train", pixels), ("held", other), ("same", pixels)):
        (tmp_path / folder / "a").mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / folder / "a" / "0.bmp")
    train, held, same = (examples.read(tmp_path / folder) for folder in ("train", "held", "same"))
    assert (train.keys() == held.keys()).all()
    assert splits.copies_note(train, held, "examples") == ""
    assert splits.copies_note(train, same, "examples").startswith("1 of 1 held-out examples are in the training part")


@pytest.fixture(scope="module")
def teller() -> Transformer:
    return open_subject(tiny.classifier("abc"), tokenizer=tiny.tokenizer())


def test_texts_are_held_out_by_class_for_a_model_that_tells_classes(teller, tmp_path):
    rare = texts.read([{"text": line, "label": kind} for line, kind in zip(tiny.sentences(100), LABELS, strict=True)])
    new = splits.follow_record(rare, tmp_path, overwrite=False)
    found = splits.split(Language(), new, None, teller, seed=0)
    assert sorted(found.held.labels) == [0] * 4 + [1, 2]
    assert found.digests["split"] == "by class"
    (tmp_path / "run.yaml").write_text("recipe: magnitude\n")
    old = splits.split(Language(), splits.follow_record(rare, tmp_path, overwrite=False), None, teller, seed=0)
    assert list(old.held.texts) == list(rare.split(seed=0)[1].texts)
    assert "split" not in old.digests


def test_texts_of_a_model_without_classes_are_drawn_without_regard_to_labels(tmp_path):
    plain = texts.read(tiny.sentences(100))
    assert splits.follow_record(plain, tmp_path, overwrite=False) is plain
    rows = texts.read([{"text": line, "label": kind} for line, kind in zip(plain.texts, LABELS, strict=True)])
    llama = open_subject(tiny.model("llama"), tokenizer=tiny.tokenizer())
    for data in (plain, splits.follow_record(rows, tmp_path, overwrite=False)):
        found = splits.split(Language(), data, None, llama, seed=0)
        assert list(found.held.texts) == list(plain.split(seed=0)[1].texts)
        assert found.digests == {"data_sha256": data.digest}


def test_classes_without_a_held_out_text_are_told_of(teller):
    names, held = Language().class_names(teller), Corpus(["one", "two"], [0, 2])
    assert names == ("a", "b", "c")
    told = splits.missing_classes_note(held, {"accuracy": Figure(0.5)}, names)
    assert told == ["1 of 3 classes have no held-out text: b"]
    assert splits.missing_classes_note(replace(held, labels=[0, 1]), {"perplexity": Figure(2.0)}, names) == []
    assert splits.missing_classes_note(replace(held, labels=None), {"accuracy": Figure(0.5)}, names) == []


def test_a_split_by_class_is_asked_for():
    data = Examples(torch.rand(12, 2), torch.tensor([*[0] * 6, *[1] * 5, 2]))
    train, held = data.split(seed=3, stratified=True)
    drawn = replace(data, stratified=True).split(seed=3)
    assert [part.digest for part in (train, held)] == [part.digest for part in drawn]
    assert set(held.labels.tolist()) == {0, 1}
    assert train.digest != data.split(seed=3)[0].digest


def test_copies_are_told_of():
    both = replace(JUDGED, inputs=torch.cat([DATA.inputs[5:6], JUDGED.inputs[1:]]))
    assert "1 of 4 held-out examples are in the data, too" in parted(DATA, both).notes[0]
    twice = DATA.take([*range(20), *range(20)])
    assert "in the training part, too" in parted(twice, seed=3).notes[0]


@pytest.mark.parametrize(
    ("data", "held_out", "words"),
    [
        (DATA.take([0, 1]), None, "data holds 2 examples: at least 3 are needed, one of them to measure on"),
        (replace(DATA, inputs=torch.zeros(20, 3)), None, r"data holds inputs of shape \(3,\), the model was built for"),
        (DATA, replace(JUDGED, labels=torch.full((4,), 3)), "judged has the label 3: the model has 3 classes"),
        (DATA, replace(JUDGED, labels=None), "judged has no classes to measure quality by"),
        (
            DATA,
            replace(JUDGED, classes=("a", "x")),
            "judged numbers the classes a, x, data a, b, c: give both the same",
        ),
    ],
)
def test_what_can_not_be_judged_is_refused(data, held_out, words):
    with pytest.raises(DataError, match=words):
        splits.split(Network(), data, held_out, Traced(nn.Linear(2, 3), Example.of(DATA.inputs[:1])), seed=0)


def test_names_are_paths_or_what_data_calls_itself():
    assert splits.names_of(data=("a.npz", DATA), held_out=(JUDGED, JUDGED), other=(None, None)) == {
        "data": "a.npz", "held_out": "judged", "class_names": ["a", "b", "c"],
    }  # fmt: skip


def test_held_out_classes_are_numbered_as_those_of_the_data():
    judged = replace(JUDGED, labels=torch.tensor([0, 1, 0, 1]), classes=("a", "c"))
    found = parted(DATA, judged)
    assert found.held.labels.tolist() == [0, 2, 0, 2]
    assert found.held.classes == ("a", "b", "c")


@pytest.mark.parametrize("names", [("a", "b", "c"), ("c", "b", "a")])
def test_held_out_labels_that_are_hidden_are_refused_however_classes_are_numbered(names):
    """As -1 of the test parts on the Hub, which counts from the end of a tensor."""
    with pytest.raises(DataError, match=r"judged has the label -1: .* 3 classes, 0 to 2"):
        parted(DATA, replace(JUDGED, labels=torch.full((4,), -1), classes=names))


def test_held_out_pixels_that_count_nowhere_stay_so_where_classes_are_numbered_anew():
    drawn = torch.tensor([[[0, -100], [2, 255]], [[1, 1], [0, 0]]])
    data = Examples(torch.rand(2, 3, 2, 2), drawn.clamp(0, 2), classes=("a", "b", "c"), name="data")
    judged = replace(data, labels=drawn, classes=("c", "b", "a"))
    found = splits.with_classes_of(data, judged)
    assert found.labels.tolist() == [[[2, -100], [0, 255]], [[1, 1], [2, 2]]]
    assert found.classes == data.classes
    with pytest.raises(DataError, match="data has the label -1: it has 3 classes, 0 to 2"):
        splits.with_classes_of(data, replace(judged, labels=drawn.clamp(-1)))


def test_held_out_boxes_of_fewer_classes_are_numbered_as_those_of_the_data():
    def scenes(names, *labels):
        target = {"boxes": torch.tensor([[0.0, 0, 4, 4]] * len(labels)), "labels": torch.tensor(labels)}
        return Examples(torch.rand(1, 3, 8, 8), None, (target,), names, "scenes", ids=tuple(range(1, len(names) + 1)))

    data = scenes(("cat", "cow", "dog"), 0, 1, 2)
    judged = splits.with_classes_of(data, scenes(("cow", "dog"), 1, 0))
    assert judged.targets[0]["labels"].tolist() == [2, 1]
    assert (judged.classes, judged.ids) == (data.classes, data.ids)
    strange = scenes(("cat", "emu"), 1)
    assert splits.with_classes_of(data, strange) is strange


def test_parts_of_a_new_run_hold_every_class_and_those_of_an_old_one_are_as_they_were(tmp_path):
    rare = Examples(torch.arange(80.0).reshape(40, 2), torch.tensor([*[0] * 30, *[1] * 8, 2, 2]))
    new = splits.follow_record(rare, tmp_path, overwrite=False)
    held = parted(new).held
    assert sorted(set(held.labels.tolist())) == [0, 1, 2]
    assert splits.columns("text", "label", data=new) == {"split": "by class, what validates too"}
    (tmp_path / "run.yaml").write_text("recipe: prune\n")
    old = splits.follow_record(rare, tmp_path, overwrite=False)
    assert torch.equal(parted(old).held.inputs, parted(rare).held.inputs)
    assert splits.columns("text", "label", data=old) == {}
    assert splits.follow_record(rare, tmp_path, overwrite=True).stratified
    (tmp_path / "run.yaml").write_text("split: by class, what validates too\n")
    again = splits.follow_record(rare, tmp_path, overwrite=False)
    for made, follows in ((new, again), (old, rare)):
        part, same = (examples.batches(data, batch=4).hold_out(0.1)[1].data for data in (made, follows))
        assert torch.equal(part.inputs, same.inputs)


def test_a_run_begun_before_what_validates_was_drawn_by_class_keeps_that_part(tmp_path):
    rare = Examples(torch.arange(80.0).reshape(40, 2), torch.tensor([*[0] * 30, *[1] * 8, 2, 2]))
    (tmp_path / "run.yaml").write_text("split: by class\n")
    found = splits.follow_record(rare, tmp_path, overwrite=False)
    assert splits.columns("text", "label", data=found) == {"split": "by class"}
    assert sorted(set(parted(found).held.labels.tolist())) == [0, 1, 2]
    for data in (found, examples.limit(found, 8)):
        before, now = (examples.batches(one, batch=4, seed=2).hold_out(0.1)[1] for one in (rare, data))
        assert torch.equal(before.data.inputs, now.data.inputs)


def test_a_class_of_one_example_is_learned_from_and_told_of():
    data = Examples(torch.rand(12, 2), torch.tensor([*[0] * 6, *[1] * 5, 2]), classes=("a", "b", "c"), stratified=True)
    train, held = data.split()
    assert sorted(held.labels.tolist()) == [0, 1]
    assert 2 in train.labels
    notes = splits.missing_classes_note(held, {"accuracy": Figure(0.9)})
    assert notes == ["1 of 3 classes have no held-out example: c"]


@pytest.mark.parametrize(("scale", "told"), [(1.0, False), (255.0, True)])
def test_images_beyond_the_usual_range_are_told_of(scale, told):
    data = Examples(torch.rand(5, 3, 4, 4) * scale, name="photos")
    assert ("inputs of photos go from" in splits.range_note(data)) == told
    pairs = replace(examples.read([(image, 0) for image in data.inputs]), name="photos")
    assert ("inputs of photos go from" in splits.range_note(pairs)) == told
    normalised = pairs.inputs.with_transform(transforms.PRESETS["imagenet"])
    assert not splits.range_note(replace(pairs, inputs=normalised))


def test_held_out_images_beyond_the_usual_range_are_told_of_as_well():
    usual = Examples(torch.rand(20, 3, 4, 4), torch.arange(20) % 3, name="usual")
    wide = Examples(torch.rand(4, 3, 4, 4) * 255, torch.arange(4) % 3, name="wide")
    subject = Traced(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), Example.of(usual.inputs[:1]))
    for data, held_out in ((usual, wide), (wide, usual), (wide, None)):
        with pytest.warns(DataWarning, match="inputs of wide go from"):
            (note,) = splits.split(Network(), data, held_out, subject, seed=0).notes
        assert "inputs of wide go from" in note


def test_masks_of_0_and_255_in_arrays_are_told_of_wherever_they_come_from(tmp_path):
    pictures = torch.rand(6, 3, 4, 4)
    drawn = (pictures[:, 0] > 0.5).long() * 255
    np.savez(tmp_path / "masks.npz", inputs=pictures.numpy(), labels=drawn.numpy())
    subject = Traced(nn.Conv2d(3, 2, 1), Example.of(pictures[:1]))
    for given in ((pictures, drawn), Examples(pictures, drawn), tmp_path / "masks.npz"):
        (note,) = splits.split(Network(), examples.read(given), None, subject, seed=0).notes
        assert "hold 0 and 255 alone: 255 counts nowhere in arrays, write 1" in note


def test_val_beside_train_is_what_is_measured_on(tmp_path):
    class_folder(tmp_path / "train", 6)
    class_folder(tmp_path / "val", 4)
    data, held = splits.read(Network(), tmp_path, splits.find_held_out(Network(), tmp_path), size=16, workers=0)
    assert (len(data), len(held)) == (6, 4)
    assert held.inputs.shape == (4, 3, 16, 16)
    assert held.inputs.workers == 0
    given = splits.find_held_out(Network(), tmp_path, tmp_path / "train")
    own, other = splits.read(Network(), tmp_path, given, size=16)
    assert (len(own), len(other)) == (6, 6)


def test_a_transform_of_arrays_is_refused():
    with pytest.raises(InputError, match="data holds arrays, which are taken as they are: leave transform and size"):
        splits.read(Network(), DATA, size=16)


def test_a_size_is_of_the_images_beside_arrays(tmp_path):
    class_folder(tmp_path / "photos", 4)
    np.savez(tmp_path / "packed.npz", inputs=np.zeros((6, 3, 16, 16), np.float32), labels=[0, 1] * 3)
    for given in (["packed.npz", "photos"], ["photos", "packed.npz"]):
        parts = splits.read(Network(), *(str(tmp_path / name) for name in given), size=16)
        assert {part.inputs[:].shape[1:] for part in parts} == {(3, 16, 16)}
    with pytest.raises(InputError, match="holds arrays, which are taken as they are"):
        splits.read(Network(), *[str(tmp_path / "packed.npz")] * 2, size=16)


def test_names_of_classes_are_recorded():
    found = splits.names_of(data=("photos", DATA), held_out=(None, None))
    assert found == {"data": "photos", "class_names": ["a", "b", "c"]}
    assert splits.names_of(data=(JUDGED, JUDGED)) == {"data": "judged"}


def grey_white(folder, white):
    """Masks in a folder without class 2, and with 255 in place of class 1 where `white`."""
    for file in folder.iterdir():
        drawn = np.asarray(Image.open(file))
        Image.fromarray(np.where((drawn == 1) | (drawn == 2), 255 if white else 1, 0).astype(np.uint8)).save(file)


@pytest.mark.parametrize("white", ["train", "val", "both"])
def test_what_255_is_in_masks_is_decided_once_by_what_is_learned_from(tmp_path, white):
    mask_folder(tmp_path, 4, held=2)
    for part in ("train", "val"):
        grey_white(tmp_path / part / "masks", white in (part, "both"))
    beside = splits.find_held_out(Network(), tmp_path)
    data, apart = splits.read(Network(), tmp_path, beside, transform="none", size=24, workers=0)
    subject = Network().open(vision_models.fcn(4, classes=2), None, data)
    if white == "train":
        with pytest.raises(DataError, match=r"holds the value 1, and masks .* hold 0 and 255 alone"):
            splits.split(Network(), data, apart, subject, seed=0)
        return
    parts = splits.split(Network(), data, apart, subject, seed=0)
    assert parts.train.batch()["labels"].unique().tolist() == [0, 1]
    assert parts.held.batch()["labels"].unique().tolist() == ([0, 1] if white == "both" else [-100, 0])
    assert any("read as class 1" in note for note in parts.notes) == (white == "both")


def test_a_rare_class_that_the_network_lacks_is_refused_where_its_mask_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(masks, "_SAMPLE", 2)
    mask_folder(tmp_path, 4)
    for file in (tmp_path / "masks").iterdir():
        drawn = np.array(Image.open(file))
        drawn[8, 8] = 7 if file.stem == "001" else 0
        Image.fromarray(drawn).save(file)
    data, _ = splits.read(Network(), tmp_path, transform="none", size="24x32", workers=0)
    subject = Network().open(vision_models.fcn(4), None, data)
    parts = splits.split(Network(), data, None, subject, seed=0)
    with pytest.raises(DataError, match=r"001.png holds the label 7: the model has 3 classes"):
        (parts.train.batch(), parts.held.batch())


def test_an_array_held_out_beside_images_is_told_of_and_lists_are_images_alike():
    drawn = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), np.uint8)
    kinds, pairs = [0, 1, 2] * 3, [*zip(drawn, [0, 1, 2] * 3, strict=True)]
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))

    def notes(train, held):
        data, apart = splits.read(Network(), train, held, transform="imagenet", size=4)
        found = splits.split(Network(), data, apart, Traced(net, Example.of(torch.zeros(1, 3, 4, 4))), seed=0)
        return found.notes

    for train, held in ((pairs, (list(drawn), kinds)), ((list(drawn), kinds), pairs)):
        (copies,) = notes(train, held)
        assert copies.startswith("9 of 9 held-out examples are in the data, too")
    with pytest.warns(DataWarning, match="the data is an array, which is taken as it is, where the data holds images"):
        (told,) = notes(pairs, (drawn.transpose(0, 3, 1, 2), kinds))
    assert told.startswith("the data is an array, which is taken as it is, where the data holds images: one may be")
