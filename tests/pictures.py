"""Folders of images as people have them: of unequal sizes, formats and depths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["class_folder", "draw", "mask_folder", "mixed_folder"]


def draw(path: Path, size: tuple[int, int] = (40, 30), seed: int = 0, mode: str = "RGB", colour: int = 0) -> Path:
    """A picture of smooth random colours, about as bright in channel `colour` as in the others together."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 120, (4, 5, 3)).astype(np.uint8)
    pixels[..., colour] += 120
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode).save(path)
    return path


def class_folder(root: Path, count: int = 12, classes: int = 2, sizes: tuple[int, ...] = (40, 30, 50)) -> Path:
    """`count` JPEGs of unequal sizes in folders a, b, ..., one colour each."""
    for number in range(count):
        kind = number % classes
        width, height = sizes[number % len(sizes)], sizes[(number + 1) % len(sizes)]
        draw(root / "abcdef"[kind] / f"{number:03}.jpg", (width, height), number, colour=kind)
    return root


def mixed_folder(root: Path) -> Path:
    """One image of each kind: a JPEG that EXIF turns, grey, palette, transparent, 16 bits."""
    turned = Image.Exif()
    turned[274] = 6
    (root / "a").mkdir(parents=True)
    Image.new("RGB", (60, 20), (255, 0, 0)).save(root / "a" / "1.jpg", exif=turned)
    draw(root / "a" / "2.png", mode="L")
    draw(root / "a" / "3.png", mode="P")
    draw(root / "a" / "4.png", mode="RGBA")
    deep = np.linspace(0, 65535, 20 * 30).reshape(20, 30).astype(np.uint16)
    Image.fromarray(deep).save(root / "a" / "5.png")
    return root


def mask_folder(root: Path, count: int = 12, held: int = 0) -> Path:
    """`images/` of noise with a square of one of two colours, and `masks/`: 0 around, 1 or 2 in it, 255 in a row.

    With `held` images in `val/` beside the others in `train/`.
    """
    rng = np.random.default_rng(0)
    for part, amount in (("train", count), ("val", held)) if held else (("", count),):
        for number in range(amount):
            height, width = int(rng.integers(30, 40)), int(rng.integers(34, 44))
            pixels = rng.integers(0, 60, (height, width, 3)).astype(np.uint8)
            mask = np.zeros((height, width), np.uint8)
            top, left, kind = int(rng.integers(2, 12)), int(rng.integers(0, 14)), number % 2
            pixels[top : top + 16, left : left + 16, kind] = 230
            mask[top : top + 16, left : left + 16] = kind + 1
            mask[0] = 255
            for folder, values in (("images", pixels), ("masks", mask)):
                file = root / part / folder / f"{number:03}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(file)
    (root / "classes.txt").write_text("ground\nred\ngreen\n", "utf-8")
    return root
