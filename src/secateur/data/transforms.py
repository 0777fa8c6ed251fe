"""Transforms of images: declared once, by name, by size or as functions, with torchvision's v2 transforms.

Each has a deterministic part, for whatever is measured, and a part for training that is drawn anew for every epoch.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import random
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from secateur._utils import plugins
from secateur.errors import DataError, InputError, MissingExtraError

__all__ = ["PRESETS", "Picture", "Transform", "of_model", "parse_size", "read", "seed_generators", "to_tensor"]

Picture: TypeAlias = Image.Image | Tensor
"""A decoded image: in mode RGB, or a float32 tensor [C, H, W] between 0 and 1 where 8 bits are not enough."""
Step: TypeAlias = Callable[[Any], Any]
Config: TypeAlias = Mapping[str, Any]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_UPSCALE = 256 / 224
"""Shorter side after resizing, over the side of the centre crop: torchvision's and most of timm's evaluation."""


@dataclass(frozen=True)
class Transform:
    """How an image becomes an input, float32 [C, H, W].

    name: as it was declared, for records. size: (H, W) of the inputs; None leaves images as large as they are.
    channels: 3, or 1 for greyscale. upscale: sides of the resized image over those of the centre crop, at least 1.
    squash: resize without regard to the proportions. bgr: blue comes first and red last. mean, std: of the channels
    between 0 and 1, in their order; none for no normalisation. interpolation: bilinear, bicubic, ... augment: in
    training "crop" takes a random part of the image and flips it, "shift" moves it by an eighth and flips it, "" does
    as in evaluation. steps: a user's own, (training, evaluation), in place of all that. source: a digest of the file
    that these come from.
    """

    name: str = "none"
    size: tuple[int, int] | None = None
    channels: int = 3
    upscale: float = _UPSCALE
    squash: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    interpolation: str = "bilinear"
    augment: str = ""
    bgr: bool = False
    steps: tuple[Step, Step] | None = field(default=None, compare=False)
    source: str = ""

    @property
    def random(self) -> bool:
        """Whether training sees other inputs than evaluation."""
        return bool(self.augment) or (self.steps is not None and self.steps[0] is not self.steps[1])

    @property
    def identity(self) -> bool:
        """Whether images stay as large as they are, with values between 0 and 1."""
        plain = not self.mean and not self.bgr and self.channels == 3
        return plain and self.size is None and self.steps is None

    @property
    def key(self) -> str:
        """What tells the inputs that are measured from those of another transform."""
        shown = [] if self.steps is None else [_show_function(self.steps[1])]
        fixed = (self.size, self.channels, self.upscale, self.squash, self.mean, self.std, self.interpolation)
        order = ["bgr"] if self.bgr else []
        return json.dumps([self.source, *shown] if self.steps else [*fixed, *order])

    def as_measured(self) -> Transform:
        """The same that in training does as in evaluation."""
        return replace(self, augment="", steps=None if self.steps is None else (self.steps[1], self.steps[1]))

    def with_size(self, size: tuple[int, int] | None, channels: int = 3) -> Transform:
        """The same with inputs of another size; of one channel the normalisation is that of the first colour."""
        mean, std = (self.mean, self.std) if channels == 3 else (self.mean[:1], self.std[:1])
        return replace(self, size=size, channels=channels, mean=mean, std=std, bgr=self.bgr and channels == 3)

    def __call__(self, picture: Picture, *, training: bool = False) -> Tensor:
        """One input; in training it is drawn from the global generators, see `seed_generators`."""
        if self.identity and not (training and self.augment):
            return to_tensor(picture)
        chain = _compose(self, training) if self.steps is None else self.steps[0 if training else 1]
        return to_tensor(chain(picture))

    def move_mask(self, mask: Tensor, fill: int, *, training: bool = False) -> Tensor:
        """A mask [H, W] of whole numbers where the image goes by the same draws; `fill` where nothing of it is.

        Pixels are picked, none is mixed. Raises `InputError` for a function of one's own, which moves images alone.
        """
        if self.steps is not None:
            raise InputError(f"transform={self.name} is a function, which moves no masks: give a preset, and --size")
        if self.identity and not (training and self.augment):
            return mask
        try:
            from torchvision.tv_tensors import Mask
        except ImportError as error:
            raise MissingExtraError("masks are resized with torchvision: pip install 'secateur[images]'") from error
        moved: Tensor = _compose(self, training)(Mask(mask[None] - fill))  # what comes in at the borders is 0
        return moved.as_subclass(Tensor)[0] + fill


def to_tensor(picture: object) -> Tensor:
    """float32 [C, H, W] of an image, of bytes between 0 and 1; a tensor of floats as it is."""
    if isinstance(picture, Tensor):
        values = picture.as_subclass(Tensor)
        return values.float() / 255.0 if values.dtype == torch.uint8 else values.float()
    if isinstance(picture, Image.Image):
        pixels = torch.from_numpy(np.array(picture))
        return (pixels if pixels.dim() == 3 else pixels[..., None]).permute(2, 0, 1).contiguous().float() / 255.0
    raise DataError(f"a transform gave {type(picture).__name__}: expected a tensor [C, H, W] or an image")


@functools.lru_cache(maxsize=64)
def _compose(transform: Transform, training: bool) -> Step:
    """The chain of torchvision's transforms."""
    v2 = _torchvision()
    how = {"interpolation": v2.InterpolationMode(transform.interpolation), "antialias": True}
    steps: list[Step] = [] if transform.channels == 3 else [v2.Grayscale(1)]
    size = None if transform.size is None else list(transform.size)
    if training and transform.augment == "crop" and size:
        steps += [v2.RandomResizedCrop(size, **how), v2.RandomHorizontalFlip()]
    else:
        if size and transform.squash:
            steps += [v2.Resize([int(side * transform.upscale + 1e-6) for side in size], **how), v2.CenterCrop(size)]
        elif size:
            steps += [_Cover(size, transform.upscale, how, v2), v2.CenterCrop(size)]
        if training and transform.augment:
            steps += [_Shift(v2), v2.RandomHorizontalFlip()]
    steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    if transform.bgr:
        from torchvision import tv_tensors

        steps.append(v2.Lambda(lambda picture: v2.functional.permute_channels(picture, [2, 1, 0]), tv_tensors.Image))
    if transform.mean:
        steps.append(v2.Normalize(list(transform.mean), list(transform.std)))
    return cast(Step, v2.Compose(steps))


class _Cover:
    """Resize in proportion, so that the image covers `size` times `upscale`; for squares by the shorter side."""

    def __init__(self, size: Sequence[int], upscale: float, how: Config, v2: Any) -> None:
        self.size, self.upscale, self.how, self.v2 = size, upscale, how, v2

    def __call__(self, picture: Picture) -> Picture:
        height, width = self.v2.functional.get_size(picture)
        if self.size[0] == self.size[1]:
            return cast(
                Picture, self.v2.functional.resize(picture, [int(self.size[0] * self.upscale + 1e-6)], **self.how)
            )
        scale = max(self.size[0] / height, self.size[1] / width) * self.upscale
        sides = [max(round(height * scale), self.size[0]), max(round(width * scale), self.size[1])]
        return cast(Picture, self.v2.functional.resize(picture, sides, **self.how))


class _Shift:
    """Move by up to an eighth of each side; what comes in is black: the augmentation of CIFAR and its like."""

    def __init__(self, v2: Any) -> None:
        self.v2 = v2

    def __call__(self, picture: Picture) -> Picture:
        height, width = self.v2.functional.get_size(picture)
        padded = self.v2.functional.pad(picture, [width // 8, height // 8])
        return cast(Picture, self.v2.RandomCrop([height, width])(padded))


def _torchvision() -> Any:
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise MissingExtraError("images are resized with torchvision: pip install 'secateur[images]'") from error
    return v2


# --------------------------------------------------------------------------------------------------------- declaring


PRESETS: Mapping[str, Transform] = {
    "none": Transform("none"),
    "shift": Transform("shift", augment="shift"),
    "imagenet": Transform("imagenet", (224, 224), mean=_IMAGENET[0], std=_IMAGENET[1], augment="crop"),
    "inception": Transform("inception", (299, 299), mean=(0.5,) * 3, std=(0.5,) * 3, augment="crop"),
    "cifar": Transform(
        "cifar", (32, 32), upscale=1.0, mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616), augment="shift"
    ),
}
"""What `--transform` takes by name."""


def read(transform: object = None, size: object = None) -> Transform | None:
    """The transform that was declared, or None where nothing was.

    transform: a name of `PRESETS`; "file.py:function"; the name of a torchvision weight, "ResNet18_Weights.DEFAULT";
    "timm:NAME" for what timm records of a model; a folder with a preprocessor_config.json; in Python also a
    `Transform`, a function of an image, or two, (training, evaluation).
    A function without arguments gives the function of an image, or the two.
    size: 224, "224x160" (height x width) or "1x28x28" with one channel, in place of the transform's own.

    Raises `InputError` for what is none of these.
    """
    if transform is None and size is None:
        return None
    found = Transform("") if transform is None else _make_transform(transform)
    if size is None:
        return found
    channels, sides = parse_size(size)
    if found.steps is not None:
        raise InputError(f"transform={found.name} is a function, which sets the size itself: leave size={size} out")
    return found.with_size(sides, channels)


def parse_size(size: object) -> tuple[int, tuple[int, int]]:
    """(channels, (H, W)) of 224, "224x160" or "1x28x28". Raises `InputError`."""
    parts = [str(part) for part in size] if isinstance(size, list | tuple) else str(size).lower().split("x")
    numbers = [int(part) for part in parts if part.isdigit() and int(part)]
    if len(numbers) != len(parts) or not 1 <= len(numbers) <= 3 or (len(numbers) == 3 and numbers[0] not in (1, 3)):
        raise InputError(f"size={size} is none of images: give 224, 224x160 (height x width) or 1x28x28 (greyscale)")
    if len(numbers) == 1:
        numbers *= 2
    return (numbers[0] if len(numbers) == 3 else 3), (numbers[-2], numbers[-1])


def _make_transform(transform: object) -> Transform:
    if isinstance(transform, Transform):
        return transform
    if isinstance(transform, tuple | list) and len(transform) == 2 and all(map(callable, transform)):
        return Transform(_show_function(transform[0]), steps=(transform[0], transform[1]))
    if callable(transform):
        return Transform(_show_function(transform), steps=(transform, transform))
    name = str(transform)
    if name in PRESETS:
        return PRESETS[name]
    if name.startswith("timm:"):
        return _of_timm_name(name)
    if plugins.names_function(name):
        return _of_function(name)
    if re.fullmatch(r"\w+_Weights\.\w+", name):
        return _of_weights(name)
    path = Path(name) / "preprocessor_config.json"
    if path.is_file():
        return _of_processor(path, name)
    raise InputError(
        f"transform={name} is none: give one of {', '.join(PRESETS)}, file.py:function, a weight of torchvision such "
        "as ResNet18_Weights.DEFAULT, timm:NAME, or a folder with a preprocessor_config.json"
    )


def _of_function(name: str) -> Transform:
    """A user's function: of an image, or of nothing, which gives one of an image, or two."""
    own = plugins.function(name)
    try:
        needed = [p for p in inspect.signature(own).parameters.values() if p.default is p.empty]
    except (TypeError, ValueError):
        needed = []
    made = own if needed else own()
    found = _make_transform(made)
    where = Path(name.rpartition(":")[0])
    source = hashlib.sha256(where.read_bytes()).hexdigest() if where.is_file() else name
    return replace(found, name=name, source=f"{source}:{name.rpartition(':')[2]}")


def _of_weights(name: str) -> Transform:
    _torchvision()
    from torchvision.models import get_weight

    try:
        preset = get_weight(name).transforms()
    except (ValueError, AttributeError, KeyError) as error:
        raise InputError(f"torchvision knows no weight {name}: {plugins.line(error)}") from error
    if not hasattr(preset, "crop_size"):
        raise InputError(f"{name} is of no classifier of images: give --size and a preset")
    crop, resize = preset.crop_size[0], preset.resize_size[0]
    return Transform(
        name, (crop, crop), upscale=resize / crop, mean=tuple(preset.mean), std=tuple(preset.std),
        interpolation=preset.interpolation.value, augment="crop",
    )  # fmt: skip


def _of_timm_name(name: str) -> Transform:
    try:
        from timm.models import get_pretrained_cfg
    except ImportError as error:
        raise MissingExtraError(f"transform={name} needs timm: pip install timm") from error
    config = get_pretrained_cfg(name.removeprefix("timm:"))
    if config is None:
        raise InputError(f"timm knows no model {name.removeprefix('timm:')!r}: see timm.list_models()")
    return replace(_of_timm(config.to_dict()), name=name)


def _of_timm(config: Config) -> Transform:
    channels, *sides = config.get("input_size") or (3, 224, 224)
    return Transform(
        "timm", (int(sides[0]), int(sides[1])), int(channels), upscale=1 / float(config.get("crop_pct") or 0.875),
        squash=config.get("crop_mode") == "squash", mean=tuple(config["mean"]), std=tuple(config["std"]),
        interpolation=config.get("interpolation") or "bilinear", augment="crop",
    )  # fmt: skip


_PILLOW = {0: "nearest-exact", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}

_PROCESSORS = {
    "Beit", "Bit", "Blip", "CLIP", "ChineseCLIP", "ConvNext", "DINOv3ViT", "DPT", "DeiT", "EfficientNet", "Levit",
    "MobileNetV1", "MobileNetV2", "MobileViT", "PoolFormer", "Pvt", "Segformer", "Siglip", "ViT",
}  # fmt: skip
"""Kinds of transformers' image processors whose inputs a `Transform` gives."""

_OF_PROCESSORS: Config = {
    "size": None, "crop_size": None, "crop_pct": None, "resample": 2, "rescale_factor": 1 / 255,
    "rescale_offset": False, "include_top": False, "image_mean": None, "image_std": None, "default_to_square": True,
    "do_resize": True, "do_center_crop": False, "do_rescale": True, "do_normalize": True,
    "do_flip_channel_order": False, "keep_aspect_ratio": False, "ensure_multiple_of": 1,
}  # fmt: skip
"""What of a preprocessor_config.json changes an input, and what holds where neither the file nor its class says it."""

_NO_STEPS = {"do_convert_rgb", "do_reduce_labels", "do_resize_and_center_crop"}
"""What changes no input here; the last is PoolFormer's word of old."""


def _of_processor(path: Path, name: str, *, sized: bool = False) -> Transform:
    """What a preprocessor_config.json of transformers says, or its class where the file leaves something out.

    sized: the user says the size; of a processor that does more than a `Transform`, the colours alone are followed.

    Raises `InputError` for a processor that does what no `Transform` does.
    """
    _torchvision()
    try:
        said = json.loads(path.read_text("utf-8"))
        config, kind = _complete(said)
        try:
            _check_steps(said, kind)
            size, upscale, squash = _sides_of(config, kind)
        except ValueError:
            if not sized:
                raise
            size, upscale, squash = None, _UPSCALE, False
        mean, std = _colours_of(config)
        return Transform(
            name, size, upscale=upscale, squash=squash, mean=mean, std=std, bgr=bool(config["do_flip_channel_order"]),
            interpolation=_PILLOW[int(config["resample"])], augment="crop",
        )  # fmt: skip
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(
            f"{path} can't be followed ({plugins.line(error)}): say how images become inputs, such as --transform "
            "imagenet, or --transform file.py:function"
        ) from error


def _complete(config: Config) -> tuple[Config, str]:
    """(The settings of `_OF_PROCESSORS`, kind of the processor)."""
    import transformers

    said = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    kind = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", said)
    known = getattr(transformers, f"{kind}ImageProcessor", None) if kind else None
    settings = {}
    for name, usual in _OF_PROCESSORS.items():
        value = config.get(name)
        settings[name] = getattr(known, name, usual) if value is None else value
    return settings, kind


def _check_steps(config: Config, kind: str) -> None:
    """Raise `ValueError` for steps that no `Transform` has."""
    import transformers

    if kind and kind not in _PROCESSORS and hasattr(transformers, f"{kind}ImageProcessor"):
        raise ValueError(f"{kind}ImageProcessor has steps of its own")
    strange = sorted(
        name for name, value in config.items()
        if value and name.startswith("do_") and name not in _OF_PROCESSORS and name not in _NO_STEPS
    )  # fmt: skip
    if strange:
        raise ValueError(f"{strange[0]} is a step that is not known here")


def _sides_of(config: Config, kind: str) -> tuple[tuple[int, int] | None, float, bool]:
    """(size, upscale, squash) of a `Transform` with a processor's sides. Raises `ValueError` for sides of another form.

    Three kinds resize in ways of their own: LeViT to more than it says, ConvNeXt and PoolFormer by `crop_pct`.
    """
    crop = _sides(config["crop_size"]) if config["do_center_crop"] else None
    if not config["do_resize"]:
        if crop:
            raise ValueError("it crops images that it does not resize")
        return None, 1.0, False
    size, percent = config["size"], config["crop_pct"]
    if isinstance(size, Mapping) and size.keys() - {"height", "width"} not in (set(), {"shortest_edge"}):
        raise ValueError(f"size is {size}")
    sides = _sides(size)
    if sides is None:
        raise ValueError("it has no size")
    if config["keep_aspect_ratio"] or any(side % config["ensure_multiple_of"] for side in sides):  # DPT's
        raise ValueError("its sides follow those of each image")
    in_proportion = "shortest_edge" in size if isinstance(size, Mapping) else not config["default_to_square"]
    if kind == "Levit" and in_proportion:
        sides = (int(_UPSCALE * sides[0]),) * 2
    elif percent and kind != "PoolFormer" and sides[0] >= 384:  # ConvNeXt's crop
        in_proportion = False
    elif percent:
        crop = crop or sides
        sides, in_proportion = (int(sides[0] / percent), int(sides[1] / percent)), True
    if crop is None and not in_proportion:
        return sides, 1.0, True
    if crop is None or crop[0] > sides[0] or crop[0] * sides[1] != crop[1] * sides[0]:
        raise ValueError(f"size {size} and crop_size {config['crop_size']} give no fixed part of every image")
    return crop, sides[0] / crop[0], not in_proportion


def _colours_of(config: Config) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of channels between 0 and 1 that do what a processor does with values from 0 to 255."""
    scale = 255.0 * (float(config["rescale_factor"]) if config["do_rescale"] else 1.0)
    offset = 1.0 if config["do_rescale"] and config["rescale_offset"] else 0.0
    mean, std = np.zeros(3), np.ones(3)
    if config["do_normalize"] and config["image_mean"] is not None:
        mean, std = mean + config["image_mean"], std * config["image_std"]
    if config["include_top"]:  # EfficientNet's divides once more
        std = std * config["image_std"]
    mean, std = (mean + offset) / scale, std / scale
    if np.allclose(mean, 0) and np.allclose(std, 1):
        return (), ()
    return tuple(mean.tolist()), tuple(std.tolist())


def _sides(value: object) -> tuple[int, int] | None:
    """(H, W) of transformers' forms of a size."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        side = value.get("shortest_edge")
        return (int(side), int(side)) if side else (int(value["height"]), int(value["width"]))
    return (int(str(value)), int(str(value)))


def of_model(module: object, *, sized: bool = False) -> Transform | None:
    """What a model records of its own preprocessing: timm's `pretrained_cfg`, or the folder of a transformers model.

    sized: the user says the size, so that of a processor which no `Transform` follows the colours are enough. Raises
    `InputError` for one that can't be followed.
    """
    for part in module.modules() if isinstance(module, nn.Module) else ():
        config = getattr(part, "pretrained_cfg", None)
        if isinstance(config, Mapping) and config.get("mean") and config.get("std"):
            return _of_timm(config)
        folder = getattr(getattr(part, "config", None), "_name_or_path", "")
        path = Path(str(folder)) / "preprocessor_config.json"
        if folder and path.is_file():
            return _of_processor(path, str(folder), sized=sized)
    return None


def _show_function(step: object) -> str:
    """A function for records, without the addresses that change with each process."""
    name = getattr(step, "__qualname__", None) or repr(step)
    return " ".join(re.sub(r" at 0x[0-9a-f]+", "", str(name)).split())


# ------------------------------------------------------------------------------------------------------------ drawing


_SEEDING = threading.RLock()


@contextmanager
def seed_generators(words: Sequence[int]) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python for a block, and put them back as they were.

    words: whole numbers, the same for the same draw. Transforms draw from the global generators, of which there is one
    for all threads: one block runs at a time.
    """
    with _SEEDING:
        before = torch.random.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
        state = np.random.SeedSequence([int(word) % 2**64 for word in words]).generate_state(3)
        torch.default_generator.manual_seed(int(state[0]))
        np.random.seed(int(state[1]))  # noqa: NPY002
        random.seed(int(state[2]))
        try:
            yield
        finally:
            torch.random.set_rng_state(before[0])
            np.random.set_state(before[1])  # noqa: NPY002
            random.setstate(before[2])
