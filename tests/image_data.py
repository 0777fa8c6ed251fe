"""Images with classes in the forms in which people have them: a table, shards, a data set of torch."""

from __future__ import annotations

import io
import json
import tarfile

import datasets
import numpy as np
from PIL import Image
from torch.utils.data import (
    Dataset,
)  # fmt: skip

from pictures import class_folder, draw
from secateur.data import examples
from secateur.data.images import Images

__all__ = ["Pairs", "check", "shards", "sized", "table"]


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


class Pairs(Dataset):
    classes = ("a", "b")

    def __len__(self):
        return 6

    def __getitem__(self, place):
        if not 0 <= place < 6:
            raise IndexError(place)
        rng = np.random.default_rng(place)
        return Image.fromarray(rng.integers(0, 255, (20 + place, 30, 3), dtype=np.uint8)), place % 2
