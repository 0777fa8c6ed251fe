"""Transforms: every form in which they are declared, and what each gives."""

from __future__ import annotations

import dataclasses
import json
import random
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from secateur.data import images, transforms
from secateur.errors import InputError

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("declared", "shape"),
    [
        ({"transform": "imagenet"}, (3, 224, 224)),
        ({"transform": "cifar"}, (3, 32, 32)),
        ({"transform": "none"}, (3, 60, 90)),
        ({"transform": "shift"}, (3, 60, 90)),
        ({"size": 20}, (3, 20, 20)),
        ({"size": "20x28"}, (3, 20, 28)),
        ({"size": [20, 28]}, (3, 20, 28)),
        ({"transform": "imagenet", "size": "1x28x28"}, (1, 28, 28)),
        ({"transform": "ResNet18_Weights.DEFAULT"}, (3, 224, 224)),
        ({"transform": "timm:resnet18.a1_in1k", "size": 64}, (3, 64, 64)),
        ({"transform": lambda picture: torch.zeros(2, 3, 4)}, (2, 3, 4)),
    ],
)
def test_forms_of_a_declaration(declared, shape):
    found = transforms.read(**declared)
    assert found(PICTURE).shape == shape
    with transforms.seed_generators([1]):
        assert found(PICTURE, training=True).shape == shape


def test_nothing_declared_is_none():
    assert transforms.read() is None


def test_imagenet_is_what_torchvision_evaluates_with():
    from torchvision.models import ResNet18_Weights

    expected = ResNet18_Weights.DEFAULT.transforms()(PICTURE)
    assert torch.allclose(transforms.read("imagenet")(PICTURE), expected, atol=0.02)
    assert torch.allclose(transforms.read("ResNet18_Weights.DEFAULT")(PICTURE), expected, atol=0.02)


def test_timm_is_what_timm_evaluates_with():
    import timm

    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    model = timm.create_model(name, pretrained=False)
    expected = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)(PICTURE)
    assert torch.allclose(transforms.of_model(nn.Sequential(model))(PICTURE), expected, atol=0.02)
    assert torch.allclose(transforms.read(f"timm:{name}")(PICTURE), expected, atol=0.02)


PROCESSORS = {
    "vit": ({"size": {"height": 24, "width": 24}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, (24, 24), True),
    "resnet": ({"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}, "do_center_crop": True,
                "image_mean": [0.5] * 3, "image_std": [0.2] * 3, "resample": 3}, (28, 28), False),
    "convnext": ({"size": {"shortest_edge": 224}, "crop_pct": 0.875, "image_mean": [0.4] * 3, "image_std": [0.2] * 3},
                 (224, 224), False),
}  # fmt: skip


@pytest.mark.parametrize("kind", PROCESSORS)
def test_a_preprocessor_of_transformers(tmp_path, kind):
    config, size, squash = PROCESSORS[kind]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    found = transforms.read(str(tmp_path))
    assert (found.size, found.squash, found.mean) == (size, squash, tuple(config["image_mean"]))
    assert found(PICTURE).shape == (3, *size)
    model = nn.Identity()
    model.config = type("Config", (), {"_name_or_path": str(tmp_path)})()
    assert transforms.of_model(model) == found


COLOURS = Image.fromarray(np.linspace(0, 255, 36, dtype=np.uint8).reshape(3, 4, 3)).resize(
    (90, 60), Image.Resampling.BICUBIC
)
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CROPPED = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True}
SQUARE = {"size": {"height": 24, "width": 24}}
OF_TRANSFORMERS = {
    "blue first": ("MobileViT", CROPPED | {"resample": 2}),
    "a mean of channels from blue to red": ("MobileViT", CROPPED | IMAGENET | {"do_flip_channel_order": False}),
    "divided twice": ("EfficientNet", SQUARE | IMAGENET | {"resample": 2}),
    "divided once": ("EfficientNet", SQUARE | IMAGENET | {"include_top": False, "resample": 0}),
    "from -1 to 1": ("EfficientNet", SQUARE | {"rescale_factor": 1 / 127.5, "rescale_offset": True,
                                               "do_normalize": False, "include_top": False}),
    "resized to more than it says": ("Levit", CROPPED | IMAGENET | {"size": {"shortest_edge": 32}}),
    "cropped below 384": ("ConvNext", IMAGENET | {"size": {"shortest_edge": 32}, "crop_pct": 0.8}),
    "by the class's own crop": ("ConvNext", IMAGENET | {"size": 32}),
    "squashed from 384 on": ("ConvNext", IMAGENET | {"size": {"shortest_edge": 384}, "crop_pct": 0.8}),
    "a crop of what was squashed": ("DeiT", IMAGENET | {"size": 36, "crop_size": 32}),
    "PoolFormer's crop": ("PoolFormer", CROPPED | IMAGENET | {"size": {"shortest_edge": 32}, "crop_pct": 0.8}),
    "from 0 to 255": ("ViT", SQUARE | {"do_rescale": False, "do_normalize": False}),
    "normalised from 0 to 255": ("ViT", SQUARE | {"do_rescale": False, "image_mean": [127] * 3, "image_std": [50] * 3}),
    "by another factor": ("ViT", SQUARE | IMAGENET | {"rescale_factor": 1 / 127.5}),
    "as large as they are": ("ViT", IMAGENET | {"do_resize": False}),
    "nothing said": ("CLIP", {}),
    "segmentation": ("Segformer", SQUARE | IMAGENET | {"do_reduce_labels": True}),
    "DINOv3": ("DINOv3ViT", SQUARE),
    "squashed to a multiple": ("DPT", SQUARE | IMAGENET | {"keep_aspect_ratio": False, "ensure_multiple_of": 8}),
}  # fmt: skip


@pytest.mark.parametrize("case", OF_TRANSFORMERS)
def test_a_preprocessor_gives_what_the_processor_of_transformers_gives(tmp_path, case):
    import transformers

    kind, config = OF_TRANSFORMERS[case]
    processor = getattr(transformers, f"{kind}ImageProcessor")(**config)
    expected = processor(COLOURS, return_tensors="pt")["pixel_values"][0].float()
    for said in (config, processor.to_dict()):
        said = said | {"image_processor_type": f"{kind}ImageProcessorFast"}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
        found = transforms.read(str(tmp_path))(COLOURS)
        assert found.shape == expected.shape
        assert (found - expected).abs().mean() < 0.004 * (expected.max() - expected.min())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"image_processor_type": "PerceiverImageProcessor"}, "PerceiverImageProcessor has steps of its own"),
        (SQUARE | {"do_pad": True}, "do_pad is a step that is not known here"),
        (
            {"size": {"shortest_edge": 800, "longest_edge": 1333}},
            "size is {'shortest_edge': 800, 'longest_edge': 1333}",
        ),
        ({"size": {"shortest_edge": 32}}, "give no fixed part of every image"),
        (CROPPED | {"size": {"shortest_edge": 24}}, "give no fixed part of every image"),
        (CROPPED | {"do_resize": False}, "it crops images that it does not resize"),
        ({"image_processor_type": "DPTImageProcessor", "keep_aspect_ratio": True}, "sides follow those of each image"),
        (SQUARE | {"ensure_multiple_of": 7}, "sides follow those of each image"),
        ({}, "it has no size"),
    ],
)
def test_a_preprocessor_that_no_transform_follows_is_refused_in_a_line(tmp_path, config, words):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=re.escape(words)) as refused:
        transforms.read(str(tmp_path))
    assert "say how images become inputs, such as --transform imagenet" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_a_user_declared_stands_beside_a_preprocessor_that_is_not_followed(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text('{"do_pad": true}')
    COLOURS.save(tmp_path / "one.png")
    model = nn.Identity()
    model.config = type("Config", (), {"_name_or_path": str(tmp_path)})()
    said = images.Images(images.Files([tmp_path / "one.png"]), transform=transforms.PRESETS["cifar"])
    assert images.declare(said, model) is said


@pytest.mark.parametrize("kind", ["Perceiver", "Vilt"])
def test_a_size_is_enough_for_a_preprocessor_that_is_not_followed(tmp_path, kind):
    config = {"image_processor_type": f"{kind}ImageProcessor", "image_mean": [0.4] * 3, "image_std": [0.2] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    COLOURS.save(tmp_path / "one.png")
    model = nn.Identity()
    model.config = type("Config", (), {"_name_or_path": str(tmp_path)})()
    read = images.Images(images.Files([tmp_path / "one.png"]))
    with pytest.raises(InputError, match="steps of its own"):
        images.declare(read, model)
    found = images.declare(read.with_transform(transforms.Transform("", (20, 24))), model).transform
    assert (found.size, found.mean, found.std) == ((20, 24), (0.4,) * 3, (0.2,) * 3)


def test_blue_first_changes_no_mask_and_no_key_of_another_transform():
    plain = transforms.PRESETS["cifar"]
    swapped = dataclasses.replace(plain, bgr=True)
    assert json.loads(swapped.key) == [*json.loads(plain.key), "bgr"]
    assert not dataclasses.replace(transforms.PRESETS["none"], bgr=True).identity
    mask = torch.arange(32 * 32).reshape(32, 32) % 5
    assert torch.equal(swapped.move_mask(mask, 255), plain.move_mask(mask, 255))


OWN = """
from torchvision.transforms import v2
import torch

def both():
    end = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    return v2.Compose([v2.RandomCrop(16), *end]), v2.Compose([v2.CenterCrop(16), *end])

def one(picture):
    return v2.functional.to_image(picture.resize((8, 8)))

def preset():
    return "cifar"
"""


def test_a_users_own_functions(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    both = transforms.read(f"{tmp_path}/mine.py:both")
    assert both.random
    assert torch.equal(both(PICTURE), both(PICTURE))
    with transforms.seed_generators([1]):
        first = both(PICTURE, training=True)
    with transforms.seed_generators([1]):
        assert torch.equal(both(PICTURE, training=True), first)
    one = transforms.read(f"{tmp_path}/mine.py:one")
    assert one(PICTURE).shape == (3, 8, 8)
    assert one(PICTURE).max() <= 1
    assert not one.random
    assert transforms.read(f"{tmp_path}/mine.py:preset").size == (32, 32)
    key = both.key
    (tmp_path / "mine.py").write_text(OWN + "# changed\n")
    assert transforms.read(f"{tmp_path}/mine.py:both").key != key
    with pytest.raises(InputError, match="is a function, which sets the size itself: leave size=8 out"):
        transforms.read(f"{tmp_path}/mine.py:both", 8)


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"transform": "imagnet"}, "transform=imagnet is none: give one of none, shift, imagenet"),
        ({"transform": "nowhere.py:function"}, "there is no file nowhere.py"),
        ({"transform": "ResNet19_Weights.DEFAULT"}, "torchvision knows no weight ResNet19_Weights.DEFAULT"),
        ({"transform": "timm:resnet19"}, "timm knows no model 'resnet19'"),
        ({"size": "big"}, "size=big is none of images: give 224, 224x160"),
        ({"size": "2x28x28"}, "size=2x28x28 is none"),
        ({"size": 0}, "size=0 is none"),
    ],
)
def test_what_is_no_transform_is_refused(declared, words):
    with pytest.raises(InputError, match=words):
        transforms.read(**declared)


def test_seeding_leaves_the_generators_as_they_were():
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]  # noqa: NPY002
    with transforms.seed_generators([1, 2]):
        first = torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002
    with transforms.seed_generators([1, 2]):
        assert (torch.rand(1), random.random(), np.random.rand()) == first  # noqa: NPY002
