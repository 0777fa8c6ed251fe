"""Files of annotations: COCO's JSON, YOLO's texts with data.yaml, Pascal VOC's XML; in the layouts they come in."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

import yaml

from secateur.data import images
from secateur.data.boxes import Annotated, Annotation, collect
from secateur.errors import DataError

__all__ = ["find_held_out", "holds_boxes", "read"]

_PARTS = {"train": ("train",), "val": ("val", "valid", "validation")}
"""What the parts of a data set are called, in names of files and folders and in data.yaml."""


def read(source: Path) -> Annotated | None:
    """Images with boxes in `source`; None where it holds none of these forms.

    - a .json in COCO's form, or a folder with one beside its images, in `annotations/`, or in `train/`; of COCO's
      official layout the training images;
    - a `data.yaml` of YOLO, or a folder with one: the images under `train`, or of those named `FILE:val` under `val`;
    - a folder with Pascal VOC's XML files in `Annotations/`, or beside the images.

    Of images only headers are read. Raises `DataError` for what is damaged, missing or can't be told apart; see
    `boxes.collect`.
    """
    whole, part = _part_of(source)
    if file := _yaml_of(whole):
        return _read_yolo(file, part or "train")
    if whole.suffix == ".json" and whole.is_file():
        return _read_coco(whole)
    if files := _coco_files(whole):
        return _read_coco(_choose(whole, files, part))
    if _voc_files(whole):
        return _read_voc(whole, part)
    return None


def holds_boxes(source: Path) -> bool:
    """Whether `read` knows the form of `source`."""
    whole, _ = _part_of(source)
    json_file = whole.suffix == ".json" and whole.is_file()
    return json_file or bool(_yaml_of(whole) or _coco_files(whole) or _voc_files(whole))


def find_held_out(source: Path) -> Path | None:
    """What names the part of `source` to measure quality on, where its files keep one apart; see `read`."""
    whole, part = _part_of(source)
    if part:
        return None
    if file := _yaml_of(whole):
        return file.with_name(f"{file.name}:val") if _settings(file).get("val") else None
    if files := _coco_files(whole):
        held = [one for one in files if _part_named(whole, one) == "val"]
        trained = [one for one in files if _part_named(whole, one) == "train"]
        return held[0] if len(held) == 1 and len(trained) == 1 else None
    if _voc_files(whole) and all((whole / "ImageSets" / "Main" / f"{one}.txt").is_file() for one in _PARTS):
        named = whole if whole.name not in ("", "..") else whole.resolve()
        return named.with_name(f"{named.name}:val")
    return None


def _part_of(source: Path) -> tuple[Path, str]:
    """(`source` without a part after a colon, that part or "")."""
    name, colon, part = source.name.rpartition(":")
    if colon and part in ("train", "val") and not source.exists():
        return source.with_name(name), part
    return source, ""


# ------------------------------------------------------------------------------------------------------------- COCO


def _coco_files(folder: Path) -> list[Path]:
    """Files of annotations with boxes: COCO's `instances_*` alone where there are some."""
    places = ("*.json", "annotations/*.json", "train/*.json", "valid/*.json", "val/*.json")
    files = [file for place in places for file in sorted(folder.glob(place))]
    named = [file for file in files if file.name.startswith("instances_")]
    return named or [file for file in files if _holds_boxes(file)]


def _holds_boxes(file: Path) -> bool:
    status = file.stat()
    return _parses_as_boxes(file, status.st_size, status.st_mtime_ns)


@functools.lru_cache
def _parses_as_boxes(file: Path, size: int, changed: int) -> bool:
    """Of a file of that size, changed then: files of annotations are large, and asked about several times."""
    text = file.read_bytes()
    if b'"images"' not in text and b'"annotations"' not in text:
        return False
    found = _load_json(file)
    if not isinstance(found, dict) or found.keys().isdisjoint(("images", "annotations")):
        return False
    rows = found.get("annotations")
    # Captions have the same form, and no boxes.
    captions = isinstance(rows, list) and rows and isinstance(rows[0], dict) and "caption" in rows[0]
    return not captions


def _part_named(folder: Path, file: Path) -> str:
    """Which part of a data set a file is of, by its own name or its folder's; "" where that is not said."""
    words = (file.stem.lower(), file.parent.name.lower() if file.parent != folder else "")
    for word in words:
        for part, names in _PARTS.items():
            if any(name in word for name in names):
                return part
    return ""


def _choose(folder: Path, files: Sequence[Path], part: str) -> Path:
    wanted = [file for file in files if _part_named(folder, file) == (part or "train")] if len(files) > 1 else files
    if len(wanted) != 1:
        named = ", ".join(str(file.relative_to(folder)) for file in files[:4])
        raise DataError(f"{folder} has several files of annotations ({named}): name one, such as --data {files[0]}")
    return wanted[0]


def _load_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} is no JSON that can be read ({error}): mend or remove it") from error


def _read_coco(file: Path) -> Annotated:
    """Images, annotations with bbox (x, y, width, height) and categories; ids in gaps and in any order."""
    data, notes = _load_json(file), list[str]()
    try:
        kinds = {int(one["id"]): str(one["name"]) for one in data["categories"]}
        pictures = [(int(one["id"]), str(one["file_name"]), _size_of(one)) for one in data["images"]]
        annotations = data["annotations"]
        if _heads_the_others(data["categories"]) and all(int(one["category_id"]) for one in annotations):
            notes.append(
                f"the category 0 of {file}, {kinds.pop(0)}, is no class: no box has it, and all others are kinds of "
                "it; a detector that counts it as a class says so in its attribute `categories`, a list with the "
                "background"
            )
        ids = sorted(kinds)
        number = {kind: index for index, kind in enumerate(ids)}
        find = _Finder(file)
        rows = {one: Annotation(find(name), size, said_in=file) for one, name, size in pictures}
        if len(rows) < len(pictures):
            raise DataError(f"{file} has {len(pictures)} images and {len(rows)} ids of images: give each its own")
        for one in annotations:
            row, kind = rows.get(int(one["image_id"])), int(one["category_id"])
            if row is None or kind not in number:
                what = f"image_id {one['image_id']}" if row is None else f"category_id {kind}"
                raise DataError(
                    f"{file} has an annotation (id {one.get('id', '?')}) of the {what}, which it does not list"
                )
            x, y, width, height = map(float, one["bbox"])
            row.boxes.append([x, y, x + width, y + height])
            row.labels.append(number[kind])
            row.crowds.append(bool(one.get("iscrowd")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file} is not in COCO's form ({type(error).__name__}: {error}): it needs images, annotations with bbox, "
            "and categories"
        ) from error
    name = file.parent.parent.name if file.parent.name == "annotations" else file.parent.name
    found = collect(list(rows.values()), [kinds[one] for one in ids], file, ids=ids, name=name)
    return replace(found, notes=(*found.notes, *notes))


def _heads_the_others(categories: Sequence[Mapping[str, object]]) -> bool:
    """Whether the category 0 is what all others are kinds of, as in Roboflow's exports: where no box has it, no class.

    torchvision's detectors have a background as their class 0, and are built for the others.
    """
    first = [one["name"] for one in categories if one["id"] == 0]
    above = [one.get("supercategory") for one in categories if one["id"] != 0]
    return bool(above) and len(first) == 1 and set(above) == set(first)


def _size_of(image: Mapping[str, int | None]) -> tuple[int, int] | None:
    width, height = image.get("width"), image.get("height")
    return (int(width), int(height)) if width and height else None


class _Finder:
    """Where the images of a file of COCO lie: beside it, or above `annotations/`, in a folder named by the part."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.root = file.parent.parent if file.parent.name == "annotations" else file.parent
        part = file.stem.removeprefix("instances_")
        self.folders = [self.root, self.root / "images", self.root / part, self.root / "images" / part]
        self.resolved = self.root.resolve()

    def __call__(self, name: str) -> Path:
        place = next((place for folder in self.folders if (place := folder / name).is_file()), self.folders[0] / name)
        if self.resolved not in place.resolve().parents:
            raise DataError(f"{self.file} names the image {name!r}, which is outside of {self.root}: not read")
        return place


# ------------------------------------------------------------------------------------------------------------- YOLO


def _yaml_of(folder: Path) -> Path | None:
    """A YAML itself; of a folder data.yaml, or another YAML with `names` and `train` if there is but one."""
    if folder.suffix in (".yaml", ".yml") and folder.is_file():
        return folder
    if (file := folder / "data.yaml").is_file():
        return file
    files = [file for file in sorted(folder.glob("*.y*ml")) if {"names", "train"} <= _settings(file, quiet=True).keys()]
    return files[0] if len(files) == 1 else None


def _settings(file: Path, *, quiet: bool = False) -> dict[str, object]:
    try:
        found = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        if quiet:
            return {}
        raise DataError(f"{file} is no YAML that can be read ({' '.join(str(error).split())}): mend it") from error
    if not isinstance(found, dict):
        if quiet:
            return {}
        raise DataError(f"{file} is no data.yaml of YOLO: give names, train and val")
    return found


def _read_yolo(file: Path, part: str) -> Annotated:
    """Images of a part that data.yaml names, and their .txt files: a line a box, class and shares of the image.

    Images without a .txt have no boxes. Lines of polygons become the boxes around them. Nothing is downloaded.
    """
    settings = _settings(file)
    names = settings.get("names")
    numbered = dict(enumerate(names)) if isinstance(names, list) else names
    if not numbered or not isinstance(numbered, dict) or not all(isinstance(n, int) and n >= 0 for n in numbered):
        raise DataError(f"{file} has no names of classes: give names, a list or numbers from 0 with a name each")
    classes = [str(numbered.get(label, f"class {label}")) for label in range(max(numbered) + 1)]
    if "nc" in settings and settings["nc"] != len(classes):
        raise DataError(f"{file} says nc: {settings['nc']}, and names {len(classes)} classes: mend one of them")
    points = "kpt_shape" in settings
    rows = [_yolo_row(image, len(classes), file, points) for image in _yolo_images(file, settings, part)]
    return collect(rows, classes, file, ids=range(len(classes)), name=f"{file.absolute().parent.name}:{part}")


def _yolo_images(file: Path, settings: Mapping[str, object], part: str) -> list[Path]:
    given = settings.get(part)
    sources = given if isinstance(given, list) else [given]
    if not given or not all(isinstance(one, str) for one in sources):
        raise DataError(f"{file} has no {part}: give a folder of images, or a text file with a path a line")
    root = file.parent / str(settings.get("path") or "")
    if not root.is_dir():
        root = file.parent
    found: list[Path] = []
    for one in map(str, sources):
        # Exports of annotation tools say ../train where they mean train, beside data.yaml.
        places = [root / one, file.parent / one, file.parent / one.removeprefix("../")]
        place = next((place for place in places if place.exists()), None)
        if place is None:
            raise DataError(f"{file} says {part}: {one}, and there is nothing at {places[0]}")
        if place.is_file():
            lines = [line.strip() for line in place.read_text("utf-8").splitlines()]
            found += [place.parent / line if line.startswith("./") else root / line for line in lines if line]
        else:
            found += sorted(one for one in place.rglob("*") if images.is_image(one))
    if not found:
        raise DataError(f"{file} says {part}: {given}, where no images are")
    return found


def _yolo_row(image: Path, classes: int, file: Path, points: bool) -> Annotation:
    """points: whether key points stand behind each box."""
    folders = list(image.parts[:-1])
    if "images" in folders:
        folders[len(folders) - 1 - folders[::-1].index("images")] = "labels"
    text = Path(*folders, image.name).with_suffix(".txt")
    row = Annotation(image, relative=True, said_in=text)
    lines = text.read_text("utf-8", "replace").splitlines() if text.is_file() else []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            label, *values = line.split()
            kind, numbers = int(float(label)), [float(value) for value in values[: 4 if points else None]]
        except ValueError:
            kind, numbers = -1, []
        polygon = len(numbers) >= 6 and len(numbers) % 2 == 0
        if len(numbers) != 4 and not polygon:
            raise DataError(f"{text}, line {number}: {line[:60]!r} is no box; give class, x, y, width, height")
        if not 0 <= kind < classes:
            raise DataError(f"{text}, line {number}: class {label}, and {file} names {classes}, 0 to {classes - 1}")
        if polygon:
            row.boxes.append([min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])])
        else:
            x, y, width, height = numbers
            row.boxes.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
        row.labels.append(kind)
        row.crowds.append(False)
    return row


# -------------------------------------------------------------------------------------------------------------- VOC


def _voc_files(folder: Path) -> list[Path]:
    for place in (folder / "Annotations", folder):
        files = sorted(place.glob("*.xml"))
        if files:
            return files
    return []


def _read_voc(folder: Path, part: str) -> Annotated:
    """An XML for each image; of `ImageSets/Main` the part that is asked for, else train, or trainval, or all.

    Pixels count from 1 to the last that is inside. Objects that are marked as difficult are kept apart, like crowds.
    Classes are numbered in the order of the alphabet, with those of the other part: one may lack some.
    """
    files, others = _voc_files(folder), list[Path]()
    lists = [folder / "ImageSets" / "Main" / f"{one}.txt" for one in ([part] if part else ["train", "trainval"])]
    chosen = next((one for one in lists if one.is_file()), None)
    if part and chosen is None:
        raise DataError(f"{folder} has no {lists[0].relative_to(folder)}, which would say what is in {part}")
    if chosen is not None:
        by_stem, names = {file.stem: file for file in files}, _voc_names(chosen)
        lost = [name for name in names if name not in by_stem]
        if lost:
            raise DataError(f"{chosen} names {lost[0]}, and there is no {lost[0]}.xml in {files[0].parent}")
        files = [by_stem[name] for name in names]
        parts = [file for one in _PARTS if (file := chosen.with_name(f"{one}.txt")).is_file() and file != chosen]
        others = [by_stem[name] for one in parts for name in _voc_names(one) if name in by_stem]
    read = [_voc_row(file, folder) for file in files]
    classes = sorted({name for _, names in (*read, *(_voc_row(file, folder) for file in others)) for name in names})
    for row, names in read:
        row.labels = [classes.index(name) for name in names]
    return collect([row for row, _ in read], classes, folder, name=folder.name + (f":{part}" if part else ""))


def _voc_names(file: Path) -> list[str]:
    """The images that a list of `ImageSets/Main` names."""
    return [line.split()[0] for line in file.read_text("utf-8").splitlines() if line.split()]


def _voc_row(file: Path, folder: Path) -> tuple[Annotation, list[str]]:
    """(one image with its boxes, their classes)."""
    root = _parse_xml(file)
    try:
        size = root.find("size")
        said = None if size is None else (int(_text(size, "width")), int(_text(size, "height")))
        row = Annotation(_voc_image(file, folder, root.findtext("filename") or ""), said or None, said_in=file)
        if said is not None and 0 in said:  # what some tools write for unknown
            row.size = None
        names = []
        for thing in root.iter("object"):
            box = thing.find("bndbox")
            if box is None:
                raise ValueError("an object without bndbox")
            left, top, right, bottom = (float(_text(box, side)) for side in ("xmin", "ymin", "xmax", "ymax"))
            row.boxes.append([max(left - 1, 0.0), max(top - 1, 0.0), right, bottom])
            row.crowds.append((thing.findtext("difficult") or "0").strip() == "1")
            names.append(_text(thing, "name"))
    except ValueError as error:
        raise DataError(f"{file} is not in Pascal VOC's form ({error}): mend or remove it") from error
    return row, names


def _text(element: ElementTree.Element, name: str) -> str:
    found = (element.findtext(name) or "").strip()
    if not found:
        raise ValueError(f"<{element.tag}> without <{name}>")
    return found


def _voc_image(file: Path, folder: Path, name: str) -> Path:
    """The image by the name that its XML says, or called as the XML is."""
    places = [folder / "JPEGImages", folder / "images", file.parent]
    stem = Path(name.replace("\\", "/")).name or f"{file.stem}.jpg"
    for place in places:
        for one in (place / stem, *_same_stem(place, file.stem)):
            if one.is_file():
                return one
    return places[0] / stem if places[0].is_dir() else file.parent / stem


def _same_stem(folder: Path, stem: str) -> Iterator[Path]:
    return (folder / f"{stem}{suffix}" for suffix in sorted(images.SUFFIXES))


def _parse_xml(file: Path) -> ElementTree.Element:
    """The root of an XML file without a document type, so that it can declare no entities and name no other files."""
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*declared: object) -> None:
        raise DataError(f"{file} declares a document type, which annotations do without: not read")

    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(file.read_bytes(), True)
        return builder.close()
    except (OSError, expat.ExpatError, AssertionError) as error:
        raise DataError(f"{file} is no XML that can be read ({error}): mend or remove it") from error
