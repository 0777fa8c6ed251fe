"""A training set: what it costs, what is left of it, and its index on the disk."""

from __future__ import annotations

import shutil
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from pictures import class_folder
from secateur import conformance
from secateur.data import examples, tables, texts
from secateur.data.examples import Examples
from secateur.data.texts import Corpus
from secateur.errors import DataError, InputError, RunError
from secateur.select import ranking
from secateur.subjects import ExampleSet
from secateur.vocabulary import Selection

CORPUS = Corpus(["one", "two two", "ONE!", "three", "one", "four"], [0, 2, 2, 1, 0, 2], "six", "d1")


def images(count: int = 40, classes: int = 4) -> Examples:
    draw = np.random.default_rng(0)
    inputs = torch.from_numpy(draw.random((count, 1, 2, 2), np.float32))
    return Examples(inputs, torch.from_numpy(draw.integers(0, classes, count)), name="images")


def inputs(subject: ExampleSet) -> np.ndarray:
    """What is left, as numbers: of one width whatever it is."""
    if isinstance(subject.data, Examples):
        return subject.data.inputs.flatten(1).numpy()
    return np.array([[float(len(text)), float(sum(map(ord, text)))] for text in subject.data.texts])


def counted(subject: ExampleSet) -> dict[str, float]:
    """Costs counted on what is left, without the subject's help."""
    if isinstance(subject.data, Examples):
        return {"examples": float(len(subject.data.inputs)), "bytes": float(subject.data.inputs.nbytes)}
    found = {"examples": float(len(subject.data.texts))}
    if isinstance(subject.data, Corpus):
        found["bytes"] = float(sum(len(text.encode()) for text in subject.data.texts))
    return found | {"words": float(sum(len(text.split()) for text in subject.data.texts))}


def test_an_index_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    ExampleSet(images(), [1, 2]).save(tmp_path)
    before = (tmp_path / "index.npz").read_bytes()

    def half(file, **arrays):
        file.write(b"PK")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", half)
    with pytest.raises(RunError, match=r"disk full while writing .*index\.npz"):
        ExampleSet(images(), [1, 2, 3]).save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["index.npz"]
    assert (tmp_path / "index.npz").read_bytes() == before


@pytest.mark.parametrize("kind", ["images", "no classes", "corpus", "table"])
def test_the_laws_of_every_subject(kind):
    words = [" ".join(["word"] * (1 + i % 5)) + str(i) for i in range(30)]
    rows = datasets.Dataset.from_dict({"text": words, "label": [i % 3 for i in range(30)]})
    data = {
        "images": images(),
        "no classes": Examples(images().inputs),
        "corpus": Corpus(words, [i % 3 for i in range(30)], "words", "d"),
        "table": tables.read(rows),
    }[kind]

    def reload(subject, folder):
        subject.save(folder)
        return ExampleSet.load(data, folder)

    laws = conformance.check_subject(
        lambda: ExampleSet(data), output=inputs, counted=counted, reload=reload, measure="examples"
    )
    assert set(laws) == {
        "identity", "original untouched", "predicted = receipt", "predicted = counted", "superset", "round trip",
    }  # fmt: skip


def test_a_class_takes_its_examples_along():
    subject = ExampleSet(CORPUS)
    units = subject.units("classes")
    assert [site.name for site in units.free()] == ["classes"]
    assert subject.class_numbers.tolist() == [0, 1, 2]
    smaller, cut = subject.cut(Selection({"classes": np.array([True, False, True])}))
    assert list(smaller.data.texts) == ["one", "two two", "ONE!", "one", "four"]
    assert cut.removed == {"examples": (1, 6), "classes": (1, 3)}
    assert smaller.class_numbers.tolist() == [0, 2]  # never renumbered
    assert smaller.labels.tolist() == [0, 2, 2, 0, 2]
    again, cut = smaller.cut(Selection({"classes": np.array([False, True])}))
    assert again.kept.tolist() == [1, 2, 5]
    assert cut.before["examples"] == 5
    chosen = ranking.by_budget(units, {"classes": np.array([1.0, 3.0, 2.0])}, "examples=70%")
    assert chosen.spent["examples"] == 4
    assert subject.cut(chosen)[0].class_numbers.tolist() == [1, 2]


def test_a_class_that_loses_all_its_examples_is_gone():
    smaller, cut = ExampleSet(CORPUS).cut(Selection({"examples": np.array([1, 1, 1, 0, 1, 1], bool)}))
    assert cut.removed == {"examples": (1, 6), "classes": (1, 3)}
    assert smaller.class_numbers.tolist() == [0, 2]


def test_texts_are_counted_a_part_at_a_time():
    asked = []

    def letters(some):
        asked.append(len(some))
        return [len(text) for text in some]

    corpus = Corpus([f"text {i}" for i in range(2100)])
    assert ExampleSet(corpus).with_costs(letters=letters).units().cost()["letters"] == sum(map(len, corpus.texts))
    assert max(asked) <= 1024


def test_what_is_counted_is_a_cost():
    subject = ExampleSet(CORPUS).with_costs(tokens=lambda some: [len(text) for text in some])
    assert subject.units().cost() == {"examples": 6, "bytes": 26, "words": 7, "tokens": 26}
    smaller, cut = subject.cut(Selection({"examples": np.arange(6) < 2}))
    assert cut.after == smaller.units().cost() == {"examples": 2, "bytes": 10, "words": 3, "tokens": 10}
    with pytest.raises(InputError, match="holds no texts whose tokens"):
        ExampleSet(images()).with_costs(tokens=len)


def test_images_repeat_where_whole_files_are_equal(tmp_path):
    """Photographs of one camera may be of one size and begin alike, for longer than what tells files apart."""
    draw, files = np.random.default_rng(0), []
    pixels = draw.integers(0, 256, (120, 120, 3), np.uint8)
    other = pixels.copy()
    other[0, 0] ^= 1  # at the end of a BMP file
    for number, image in enumerate((pixels, other, pixels)):
        files.append(tmp_path / "a" / f"{number}.bmp")
        files[-1].parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(files[-1])
    data = examples.read(tmp_path)
    assert len(np.unique(data.keys())) == 1, "the difference is behind what is read of a file"
    assert ExampleSet(data).repeats().tolist() == [False, False, True]
    assert ExampleSet(data, [1, 2]).repeats().tolist() == [False, False]


def test_repeats_are_told():
    subject = ExampleSet(CORPUS)
    assert subject.repeats().tolist() == [False, False, False, False, True, False]
    assert subject.repeats(normalised=True).tolist() == [False, False, True, False, True, False]
    later = ExampleSet(CORPUS, [2, 4, 5])
    assert later.repeats().tolist() == [False, False, False]
    twice = images().take([0, 1, 0, 2])
    assert ExampleSet(twice).repeats().tolist() == [False, False, True, False]
    with pytest.raises(DataError, match="only repeat exactly"):
        ExampleSet(twice).repeats(normalised=True)


def test_an_index_keeps_scores_and_refuses_other_data(tmp_path):
    subject = ExampleSet(texts.read(CORPUS)).with_scores("length", [3, 7, 4, 5, 3, 4])
    smaller, _ = subject.cut(Selection({"examples": np.array([0, 1, 0, 1, 0, 1], bool)}))
    smaller.save(tmp_path / "a")
    smaller.save(tmp_path / "b")
    assert (tmp_path / "a" / "index.npz").read_bytes() == (tmp_path / "b" / "index.npz").read_bytes()
    again = ExampleSet.load(CORPUS, tmp_path / "a" / "index.npz")
    assert again.kept.tolist() == [1, 3, 5]
    assert again.scores["length"].tolist() == [3, 7, 4, 5, 3, 4]  # of all, so that a larger budget can be met
    assert not again.whole
    with pytest.raises(DataError, match=r"is an index of six, 6 examples of digest d1; images has 40 of digest \w{8}:"):
        ExampleSet.load(images(), tmp_path / "a")
    with pytest.raises(RunError, match="there is no index at"):
        ExampleSet.load(CORPUS, tmp_path / "c")
    (tmp_path / "a" / "index.npz").write_bytes((tmp_path / "a" / "index.npz").read_bytes()[:-40])
    with pytest.raises(RunError, match="is damaged or no index"):
        ExampleSet.load(CORPUS, tmp_path / "a")


def packed(folder, count: int = 40) -> tuple[ExampleSet, Examples]:
    """What is left of images in `folder`, and the same as it was packed there."""
    named = Examples(images(count).inputs, images(count).labels, (), ("a", "b", "c", "d"), "images")
    left = ExampleSet(named, [3, 5, 17, 39]).with_scores("length", np.arange(count))
    left.save(folder, packed=True)
    return left, examples.read(folder / "examples.npz")


def test_packed_examples_stand_for_the_data(tmp_path):
    left, there = packed(tmp_path / "a")
    assert there.digest == left.data.digest
    assert there.classes == ("a", "b", "c", "d")
    again = ExampleSet.load(there, tmp_path / "a")
    assert again.data.digest == left.data.digest
    assert again.kept.tolist() == left.kept.tolist()
    assert (len(again.source), again.source.digest) == (40, left.source.digest)
    assert again.scores["length"].tolist() == left.scores["length"].tolist()
    again.save(tmp_path / "b", packed=True)
    for name in ("index.npz", "examples.npz"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    whole = ExampleSet(again.source)
    smaller, cut = whole.cut(Selection({"examples": np.isin(whole.kept, again.kept)}))
    assert cut.removed == {"examples": (36, 40)}, "of the whole set, though four examples are all there is"
    assert torch.equal(smaller.data.inputs, there.inputs)
    assert torch.equal(again.source.take(np.array([39, 3])).inputs, there.inputs[[3, 0]])
    for beyond in ([3, 4], [0], [40]):
        with pytest.raises(DataError, match=rf"example {beyond[-1]} of images is not among the 4 of 40 at hand"):
            again.source.take(np.array(beyond))
    with pytest.raises(DataError, match=r"images is at hand in part, .* give all of it"):
        whole.repeats()


def test_packed_images_stand_for_the_files(tmp_path):
    """Nothing but the folder of the index is left of photographs that were packed as the inputs that they became."""
    data = examples.with_transform(examples.read(class_folder(tmp_path / "photos", 9)), size=16)
    left = ExampleSet(data, [1, 4, 8])
    pixels, labels = left.data.inputs[:], left.data.labels
    left.save(tmp_path / "index", packed=True)
    place = tmp_path / "index" / "examples.npz"
    with np.load(place) as file:
        np.savez(place, **{name: file[name] for name in file.files if name != "of_images"})
    left.save(tmp_path / "index", packed=True)  # anew, for by what is there it can't be told
    shutil.rmtree(tmp_path / "photos")
    there = examples.read(tmp_path / "index" / "examples.npz")
    again = ExampleSet.load(there, tmp_path / "index")
    assert torch.equal(again.data.inputs, pixels)
    assert torch.equal(again.data.labels, labels)
    assert (again.kept.tolist(), len(again.source)) == ([1, 4, 8], 9)
    with pytest.raises(DataError, match="or all of the examples that it keeps"):
        ExampleSet.load(replace(there, labels=1 - there.labels), tmp_path / "index")


def test_what_is_packed_is_written_once_and_follows_its_index(tmp_path):
    left, there = packed(tmp_path)
    file = tmp_path / "examples.npz"
    stamp = file.stat().st_mtime_ns
    left.save(tmp_path, packed=True)
    assert file.stat().st_mtime_ns == stamp
    other = ExampleSet(left.source, [0, 1])
    other.save(tmp_path, packed=True)
    assert examples.read(file).digest == other.data.digest
    file.unlink()
    other.save(tmp_path, packed=True)
    assert ExampleSet.load(examples.read(file), tmp_path).kept.tolist() == [0, 1]
    (tmp_path / "index.npz").write_bytes(b"PK")
    left.save(tmp_path, packed=True)
    assert examples.read(file).digest == there.digest


def test_packed_examples_that_do_not_fit_are_refused(tmp_path):
    left, there = packed(tmp_path)
    with pytest.raises(DataError, match="give the data that it was made of, or all of the examples that it keeps"):
        ExampleSet.load(there.take([0, 1, 2]), tmp_path)
    arrays = dict(np.load(tmp_path / "index.npz"))
    np.savez(tmp_path / "index.npz", **{name: one for name, one in arrays.items() if name != "kept_digest"})
    assert ExampleSet.load(left.source, tmp_path).kept.tolist() == [3, 5, 17, 39]  # an older one, and its data
    with pytest.raises(DataError, match=r"give the data .*; it is older than packed examples") as caught:
        ExampleSet.load(there, tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(InputError, match="six holds no arrays: only those can be packed"):
        ExampleSet(CORPUS).save(tmp_path / "texts", packed=True)
    assert not (tmp_path / "texts").exists()


def test_only_what_can_be_packed_is_told_of(tmp_path):
    ExampleSet(CORPUS, [0, 2]).save(tmp_path)
    with np.load(tmp_path / "index.npz") as file:
        assert set(file.files) == {"kept", "count", "digest", "name"}


def test_what_can_not_be_used_is_refused_in_a_line():
    with pytest.raises(DataError, match="has the label -1: classes are counted from 0"):
        ExampleSet(Corpus(["a", "b"], [0, -1], "signed"))
    with pytest.raises(DataError, match="has the label 2: it names 2 classes, 0 to 1"):
        ExampleSet(Corpus(["a", "b"], [0, 2], "many", classes=("x", "y")))
    with pytest.raises(InputError, match="rising"):
        ExampleSet(CORPUS, [3, 1])
    with pytest.raises(InputError, match="from 0 to 5"):
        ExampleSet(CORPUS, [3, 6])
    with pytest.raises(InputError, match="keeps no example"):
        ExampleSet(CORPUS, [])
    with pytest.raises(InputError, match="give one for each"):
        ExampleSet(CORPUS).with_scores("el2n", [1.0])
    with pytest.raises(InputError, match="has no classes"):
        ExampleSet(Corpus(["a"])).units("classes")
    with pytest.raises(InputError, match="it has examples, classes"):
        ExampleSet(CORPUS).units("rows")
    with pytest.raises(InputError, match="keeps 2 examples and there are 3 classes, 6 examples"):
        ExampleSet(CORPUS).cut(Selection({"examples": np.ones(2, bool)}))
    with pytest.raises(InputError, match="keeps no example"):
        ExampleSet(CORPUS).cut(Selection({"classes": np.zeros(3, bool)}))
