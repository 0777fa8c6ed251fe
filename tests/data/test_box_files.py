"""Files of annotations: COCO's layouts, YOLO's and Pascal VOC's, and what is wrong with some."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from secateur.data import box_files
from secateur.errors import DataError


def picture(path, size=(60, 40), **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 20, 0)).save(path, **how)
    return path


def coco(images=((1, "one.jpg", 60, 40), (2, "two.jpg", 30, 50)), boxes=((1, 17, [5, 5, 20, 10]),), names=None):
    return {
        "images": [{"id": i, "file_name": name, "width": w, "height": h} for i, name, w, h in images],
        "annotations": [
            {"id": number, "image_id": image, "category_id": kind, "bbox": box, "iscrowd": 0}
            for number, (image, kind, box) in enumerate(boxes)
        ],
        "categories": [{"id": one, "name": name} for one, name in (names or {90: "toothbrush", 17: "cat"}).items()],
    }


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def pair(folder):
    picture(folder / "one.jpg")
    picture(folder / "two.jpg", (30, 50))


def boxes(data):
    return [target["boxes"].tolist() for target in data.targets]


def test_coco_keeps_its_ids_and_images_of_unequal_sizes(tmp_path):
    pair(tmp_path / "set")
    write(tmp_path / "set" / "labels.json", coco())
    data = box_files.read(tmp_path / "set")
    assert (data.classes, data.ids) == (("cat", "toothbrush"), (17, 90))
    assert data.sizes == ((60, 40), (30, 50))
    assert boxes(data) == [[[5, 5, 25, 15]], []]
    assert data.name == "set"
    assert not data.notes
    assert box_files.find_held_out(tmp_path / "set") is None


def test_cocos_official_layout_is_read_beside_captions_and_tells_its_held_out_part(tmp_path):
    root = tmp_path / "coco"
    pair(root / "train2017")
    pair(root / "val2017")
    captions = {"images": coco()["images"], "annotations": [{"id": 1, "image_id": 1, "caption": "a cat"}]}
    for part in ("train2017", "val2017"):
        write(root / "annotations" / f"captions_{part}.json", captions)
        write(root / "annotations" / f"person_keypoints_{part}.json", coco())
        write(root / "annotations" / f"instances_{part}.json", coco())
    data = box_files.read(root)
    assert data.files[0] == root / "train2017" / "one.jpg"
    assert data.name == "coco"
    held = box_files.find_held_out(root)
    assert held == root / "annotations" / "instances_val2017.json"
    assert box_files.read(held).files[0] == root / "val2017" / "one.jpg"
    assert box_files.read(root.with_name("coco:val")).files == box_files.read(held).files


def test_exports_with_a_file_for_each_part_are_read(tmp_path):
    for part in ("train", "valid", "test"):
        pair(tmp_path / part)
        write(tmp_path / part / "_annotations.coco.json", coco())
    assert box_files.read(tmp_path).files[0] == tmp_path / "train" / "one.jpg"
    assert box_files.find_held_out(tmp_path) == tmp_path / "valid" / "_annotations.coco.json"


@pytest.mark.parametrize(
    ("above", "used", "classes"),
    [
        ("pets", (1, 2), ("cat", "dog")),
        ("pets", (0, 2), ("pets", "cat", "dog")),
        ("none", (1, 2), ("pets", "cat", "dog")),
    ],
)
def test_the_head_of_all_categories_is_a_class_where_a_box_has_it(tmp_path, above, used, classes):
    pair(tmp_path)
    said = coco(boxes=[(1, kind, [5, 5, 20, 10]) for kind in used], names={0: "pets", 1: "cat", 2: "dog"})
    for one in said["categories"]:
        one["supercategory"] = above if one["id"] else "none"
    data = box_files.read(write(tmp_path / "_annotations.coco.json", said))
    assert data.classes == classes
    assert [data.ids[label] for label in data.targets[0]["labels"]] == list(used)
    assert any("pets, is no class" in note for note in data.notes) == ("pets" not in classes)


def test_captions_alone_are_no_boxes_and_two_files_that_nothing_tells_apart_are_refused(tmp_path):
    pair(tmp_path)
    write(tmp_path / "captions.json", {"images": [], "annotations": [{"image_id": 1, "caption": "a cat"}]})
    assert box_files.read(tmp_path) is None
    write(tmp_path / "a.json", coco())
    write(tmp_path / "b.json", coco())
    with pytest.raises(DataError, match=r"several files of annotations \(a\.json, b\.json\): name one"):
        box_files.read(tmp_path)
    assert box_files.read(tmp_path / "b.json").classes == ("cat", "toothbrush")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"boxes": ((1, 18, [5, 5, 20, 10]),)}, "an annotation (id 0) of the category_id 18, which it does not list"),
        ({"boxes": ((9, 17, [5, 5, 20, 10]),)}, "an annotation (id 0) of the image_id 9, which it does not list"),
        ({"names": {17: "cat", 90: "cat"}}, "two classes called 'cat'"),
        ({"images": ((1, "one.jpg", 60, 40), (1, "two.jpg", 30, 50))}, "2 images and 1 ids of images"),
        ({"images": ((1, "lost.jpg", 60, 40),)}, "names 1 of 1 images that are not there, such as"),
        (
            {"images": ((1, "one.jpg", 600, 400),)},
            "one.jpg is 600x400, and it is 60x40: its boxes are of another image",
        ),
        ({"images": ((1, "../../one.jpg", 60, 40),)}, "names the image '../../one.jpg', which is outside of"),
        ({"boxes": ((1, 17, [5, 5, "wide", 10]),)}, "is not in COCO's form (ValueError"),
        ({"boxes": ((1, 17, [5, 5, 20]),)}, "is not in COCO's form (ValueError"),
        ({"boxes": ((1, 17, [5, 5, float("nan"), 10]),)}, "a box of one.jpg that is no four finite numbers"),
        ({"boxes": ()}, "has no box that can be learned from"),
        ({"boxes": ((1, 17, [25, 5, 55, 10]), (1, 17, [30, 9, 55, 30]))}, "has 2 of 2 boxes that reach beyond their"),
    ],
)
def test_what_is_wrong_in_coco_is_refused_in_a_line_that_names_the_file(tmp_path, changed, words):
    pair(tmp_path)
    file = write(tmp_path / "labels.json", coco(**changed))
    with pytest.raises(DataError, match=re.escape(words)) as refused:
        box_files.read(tmp_path)
    assert str(file) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_can_not_be_learned_from_is_left_out_and_told(tmp_path):
    pair(tmp_path)
    fine = [(1, 17, [5, 5, 20, 10])] * 25
    odd = [(1, 17, [5, 5, 0, 10]), (2, 17, [40, 10, 5, 5]), (2, 90, [20, 10, 20, 20]), (2, 90, [1, 1, 9, 9])]
    data = coco(boxes=(*fine, *odd))
    data["annotations"][-1]["iscrowd"] = 1
    write(tmp_path / "labels.json", data)
    found = box_files.read(tmp_path)
    assert [len(target["boxes"]) for target in found.targets] == [25, 1]
    assert boxes(found)[1] == [[20, 10, 30, 30]]
    assert found.targets[1]["crowds"].tolist() == [[1, 1, 10, 10]]
    assert found.targets[1]["crowd_labels"].tolist() == [1]
    assert found.notes == (
        "labels.json: 1 of 29 boxes without an area, left out (first on one.jpg)",
        "labels.json: 1 of 29 boxes outside of their images, left out (first on two.jpg)",
        "labels.json: 1 of 29 boxes clipped to their images (first on two.jpg)",
        "labels.json: 1 of 29 boxes of crowds or objects too hard to judge, not learned from (first on two.jpg)",
    )


def test_boxes_are_of_the_image_as_it_is_shown_or_as_it_is_stored_by_the_size_that_is_said(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(tmp_path / "one.jpg", exif=turned)
    for width, height, upright in ((40, 60, True), (60, 40, False)):
        write(tmp_path / "labels.json", coco(images=((1, "one.jpg", width, height),)))
        data = box_files.read(tmp_path)
        assert data.sizes == ((width, height),)
        assert data.upright == (upright,)
        assert data.images.shape[2:] == (height, width)


# ------------------------------------------------------------------------------------------------------------- YOLO


def yolo(root, settings="train: images/train\nval: images/val\nnames: [cat, dog]\n", name="data.yaml"):
    for part in ("train", "val"):
        pair(root / "images" / part)
        write(root / "labels" / part / "one.txt", "1 0.5 0.5 0.5 0.25\n\n0 0.1 0.1 0.3 0.1 0.3 0.2 0.1 0.2\n")
    return write(root / name, settings)


def test_yolo_reads_the_texts_beside_the_images_and_tells_its_held_out_part(tmp_path):
    file = yolo(tmp_path / "set")
    for source in (file, tmp_path / "set"):
        data = box_files.read(source)
        assert data.classes == ("cat", "dog")
        assert boxes(data)[0] == [[15, 15, 45, 25], pytest.approx([6, 4, 18, 8])]
        assert data.targets[0]["labels"].tolist() == [1, 0]
        assert boxes(data)[1] == []
        held = box_files.find_held_out(source)
        assert held == tmp_path / "set" / "data.yaml:val"
        assert box_files.read(held).files[0] == tmp_path / "set" / "images" / "val" / "one.jpg"
        assert box_files.find_held_out(held) is None


@pytest.mark.parametrize("source", ["data.yaml", "."])
def test_yolo_is_read_from_inside_its_folder(tmp_path, monkeypatch, source):
    yolo(tmp_path / "set")
    monkeypatch.chdir(tmp_path / "set")
    data = box_files.read(Path(source))
    assert data.name == "set:train"
    assert data.targets[0]["labels"].tolist() == [1, 0]
    assert box_files.read(box_files.find_held_out(Path(source))).name == "set:val"


@pytest.mark.parametrize(
    "settings",
    [
        "path: set\ntrain: images/train\nnames: {1: dog, 0: cat}\n",
        "path: /nowhere\ntrain: ../images/train\nnames: [cat, dog]\nnc: 2\n",
        "train: [images/train, images/val]\nnames: [cat, dog]\n",
        "train: list.txt\nnames: [cat, dog]\n",
    ],
)
def test_yolo_in_the_ways_its_files_are_written(tmp_path, settings):
    yolo(tmp_path / "set", settings)
    write(tmp_path / "set" / "list.txt", "./images/train/one.jpg\nimages/train/two.jpg\n")
    data = box_files.read(tmp_path / "set")
    assert data.classes == ("cat", "dog")
    assert len(boxes(data)[0]) == 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("2 0.5 0.5 0.5 0.5", "one.txt, line 1: class 2, and"),
        ("0 0.5 0.5 0.5", "one.txt, line 1: '0 0.5 0.5 0.5' is no box"),
        ("cat 0.5 0.5 0.5 0.5", "is no box; give class, x, y, width, height"),
        ("0 30 20 30 10", "reach beyond their images"),
    ],
)
def test_what_is_wrong_in_yolos_texts_is_refused_in_a_line(tmp_path, line, words):
    yolo(tmp_path)
    write(tmp_path / "labels" / "train" / "one.txt", f"{line}\n{line}\n")
    with pytest.raises(DataError, match=re.escape(words)):
        box_files.read(tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("names: [a]\ntrain: nowhere\n", "says train: nowhere, and there is nothing at"),
        ("train: images/train\n", "has no names of classes"),
        ("names: [cat, dog]\n", "has no train: give a folder of images"),
        ("names: [cat, dog]\nnc: 3\ntrain: images/train\n", "says nc: 3, and names 2 classes"),
        ("names: [cat, dog]\ntrain: labels\n", "says train: labels, where no images are"),
        ("names: [cat, cat]\ntrain: images/train\n", "two classes called 'cat'"),
        ("names: [", "is no YAML that can be read"),
        ("- 1", "is no data.yaml of YOLO"),
    ],
)
def test_what_is_wrong_in_data_yaml_is_refused_in_a_line(tmp_path, settings, words):
    yolo(tmp_path, settings)
    with pytest.raises(DataError, match=re.escape(words)) as refused:
        box_files.read(tmp_path)
    assert "data.yaml" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_key_points_behind_boxes_are_passed_over(tmp_path):
    yolo(tmp_path, "train: images/train\nnames: [cat, dog]\nkpt_shape: [1, 2]\n")
    write(tmp_path / "labels" / "train" / "one.txt", "0 0.5 0.5 0.5 0.5 0.9 0.9\n")
    assert boxes(box_files.read(tmp_path))[0] == [[15, 10, 45, 30]]


# -------------------------------------------------------------------------------------------------------------- VOC


def thing(name="dog", box=(1, 1, 20, 30), difficult=0):
    sides = "".join(
        f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{sides}</bndbox></object>"


def xml(*things, size=(60, 40), name="one.jpg"):
    said = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    return f"<annotation><filename>{name}</filename>{said}{''.join(things)}</annotation>"


def test_vocs_layout_with_its_parts(tmp_path):
    root = tmp_path / "voc"
    picture(root / "JPEGImages" / "a.jpg")
    picture(root / "JPEGImages" / "b.jpg")
    write(root / "Annotations" / "a.xml", xml(thing("dog"), thing("cat", (11, 11, 20, 20), 1), name="a.jpg"))
    write(root / "Annotations" / "b.xml", xml(thing("cat"), name="b.jpg"))
    data = box_files.read(root)
    assert data.classes == ("cat", "dog")
    assert boxes(data) == [[[0, 0, 20, 30]], [[0, 0, 20, 30]]]
    assert data.targets[0]["crowds"].tolist() == [[10, 10, 20, 20]]
    assert box_files.find_held_out(root) is None
    for part, name in (("train", "a"), ("val", "b")):
        write(root / "ImageSets" / "Main" / f"{part}.txt", f"{name}  1\n")
    assert box_files.read(root).files == (root / "JPEGImages" / "a.jpg",)
    held = box_files.find_held_out(root)
    assert box_files.read(held).files == (root / "JPEGImages" / "b.jpg",)
    write(root / "ImageSets" / "Main" / "train.txt", "c\n")
    with pytest.raises(DataError, match=r"train\.txt names c, and there is no c\.xml"):
        box_files.read(root)


def voc(root, **classes):
    for name, (kind, part) in classes.items():
        picture(root / "JPEGImages" / f"{name}.jpg")
        write(root / "Annotations" / f"{name}.xml", xml(thing(kind), name=f"{name}.jpg"))
        with write_list(root, part).open("a") as names:
            names.write(f"{name}\n")
    return root


def write_list(root, part):
    file = root / "ImageSets" / "Main" / f"{part}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def test_vocs_parts_number_the_classes_of_both(tmp_path):
    root = voc(tmp_path / "voc", a=("dog", "train"), b=("cat", "train"), c=("dog", "val"), d=("emu", "val"))
    write(root / "Annotations" / "e.xml", xml(thing("ox"), name="e.jpg"))  # of no part
    train, held = box_files.read(root), box_files.read(box_files.find_held_out(root))
    assert train.classes == held.classes == ("cat", "dog", "emu")
    assert [target["labels"].tolist() for target in held.targets] == [[1], [2]]


def test_voc_is_read_from_inside_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(voc(tmp_path / "voc", a=("dog", "train"), b=("cat", "val")))
    assert box_files.find_held_out(Path()) == tmp_path / "voc:val"


def test_xml_beside_images_as_tools_write_it(tmp_path):
    picture(tmp_path / "one.png")
    write(tmp_path / "one.xml", xml(thing(), size=(0, 0), name="C:\\\\shots\\\\other.jpg"))
    assert box_files.read(tmp_path).files == (tmp_path / "one.png",)


BOMB = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;">]><annotation><filename>&y;</filename></annotation>'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (BOMB, "declares a document type, which annotations do without: not read"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "declares a document type"),
        ("<annotation><object>", "is no XML that can be read"),
        ("", "is no XML that can be read"),
        ("<annotation>&x;</annotation>", "is no XML that can be read"),
        (xml("<object><name>dog</name></object>"), "is not in Pascal VOC's form (an object without bndbox)"),
        (xml(thing(box=(1, 2, "", 4))), "is not in Pascal VOC's form (<bndbox> without <xmax>)"),
        (xml(thing(""), size=None), "is not in Pascal VOC's form (<object> without <name>)"),
        (xml(thing(), size=(61, 40)), "one.jpg is 61x40, and it is 60x40"),
        (xml(size=None), "has no box that can be learned from"),
    ],
)
def test_what_is_wrong_in_xml_is_refused_in_a_line_that_names_it(tmp_path, content, words):
    picture(tmp_path / "one.jpg")
    write(tmp_path / "one.xml", content)
    with pytest.raises(DataError, match=re.escape(words)) as refused:
        box_files.read(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_folder_of_classes_is_no_set_of_boxes(tmp_path):
    picture(tmp_path / "cat" / "one.jpg")
    assert box_files.read(tmp_path) is None
    assert box_files.read(tmp_path / "nowhere") is None
    assert box_files.find_held_out(tmp_path) is None
