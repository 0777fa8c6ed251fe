"""A source of thirty classes of images (digits, letters, textures), and a target: digits of other hands."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_images
from torch.nn import functional

import small_vision
from assets import packages
from secateur.data.examples import Examples

SIZE = 16
LETTERS = "AEGHKMNRTW"
"""None that could be taken for a digit."""
FONTS = tuple(
    f"{family}.ttf"
    for family in (
        "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Oblique",
        "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic",
        "cmr10", "cmss10", "cmtt10", "cmti10", "cmb10",
    )
)  # fmt: skip


@functools.cache
def source(each: int = 200, seed: int = 0) -> Examples:
    """[30 `each`, 1, 16, 16] between 0 and 1: classes 0 to 9 are MNIST's digits, 10 to 19 printed letters, 20 to 29
    crops of ten regions of two photographs."""
    draw = np.random.default_rng([seed, 30])
    parts = [_digits(each, draw), _letters(each, draw), _textures(each, draw)]
    names = (*map(str, range(10)), *LETTERS, *(f"texture {number}" for number in range(10)))
    labels = torch.arange(30).repeat_interleave(each)
    return Examples(torch.cat(parts), labels, classes=names, name="digits, letters, textures")


def _digits(each: int, draw: np.random.Generator) -> torch.Tensor:
    images, classes = packages.mnist()
    chosen = np.concatenate([draw.permutation(np.flatnonzero(classes == digit))[:each] for digit in range(10)])
    return functional.adaptive_avg_pool2d(torch.from_numpy(images[chosen]).float()[:, None] / 255.0, SIZE)


def _letters(each: int, draw: np.random.Generator) -> torch.Tensor:
    """White on black, turned and moved a little, of sixteen fonts."""
    folder, found = Path(matplotlib.get_data_path(), "fonts", "ttf"), []
    for letter in LETTERS:
        for _ in range(each):
            font = ImageFont.truetype(folder / FONTS[draw.integers(len(FONTS))], int(draw.integers(18, 26)))
            image = Image.new("L", (32, 32))
            place = tuple(float(16 + shift) for shift in draw.uniform(-2, 2, 2))
            ImageDraw.Draw(image).text(place, letter, fill=255, font=font, anchor="mm")
            turned = image.rotate(float(draw.uniform(-15, 15)), Image.Resampling.BILINEAR)
            found.append(np.asarray(turned, np.float32) / 255.0)
    return functional.adaptive_avg_pool2d(torch.from_numpy(np.stack(found))[:, None], SIZE)


def _textures(each: int, draw: np.random.Generator) -> torch.Tensor:
    """Crops of 32 x 32 pixels: five regions side by side of each photograph."""
    found = []
    for photograph in load_sample_images().images:
        grey = photograph.mean(2).astype(np.float32) / 255.0
        for region in np.array_split(grey, 5, axis=1):
            rows, columns = (draw.integers(0, extent - 32, each) for extent in region.shape)
            found += [region[row : row + 32, column : column + 32] for row, column in zip(rows, columns, strict=True)]
    return functional.adaptive_avg_pool2d(torch.from_numpy(np.stack(found))[:, None], SIZE)


@functools.cache
def target(shots: int, seed: int, *, judged: bool = True) -> tuple[Examples, Examples]:
    """(`shots` of scikit-learn's digits, 900 to judge on), [N, 1, 16, 16]: other hands, scanned otherwise.

    Settings are explored on 400 other digits, judged=False. The digits to learn from are of neither.
    """
    pool, test = small_vision.digits(897)
    pool, other = pool.take(range(497)), pool.take(range(497, 897))
    chosen = np.random.default_rng([seed, 497]).permutation(len(pool))[:shots]
    return _enlarged(pool.take(chosen)), _enlarged(test if judged else other)


def _enlarged(data: Examples) -> Examples:
    """Framed as MNIST's digits are, which fill 20 of 28 pixels."""
    larger = functional.interpolate(data.inputs, SIZE - 4, mode="bilinear", align_corners=False)
    return replace(data, inputs=functional.pad(larger, (2, 2, 2, 2)))
