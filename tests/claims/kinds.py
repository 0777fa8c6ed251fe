"""What the claims about pre-training share: a source and a target of images, and one of texts.

Thirty classes of images, and digits of other hands; passages of Brown's fifteen genres, and mails, as MiniLM sees them.
"""

from __future__ import annotations

import email
import email.policy
import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_images
from torch.nn import functional

from assets import packages
from claims import vision
from claims.lab import CACHE
from secateur._utils.disk import writing
from secateur.data.examples import Examples
from secateur.retrieval.encoders import encoder

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
    pool, test = vision.digits(897)
    pool, other = pool.take(range(497)), pool.take(range(497, 897))
    chosen = np.random.default_rng([seed, 497]).permutation(len(pool))[:shots]
    return _enlarged(pool.take(chosen)), _enlarged(test if judged else other)


def _enlarged(data: Examples) -> Examples:
    """Framed as MNIST's digits are, which fill 20 of 28 pixels."""
    larger = functional.interpolate(data.inputs, SIZE - 4, mode="bilinear", align_corners=False)
    return replace(data, inputs=functional.pad(larger, (2, 2, 2, 2)))


# ------------------------------------------------------------------------------------------------------------ texts

PASSAGE = 50
"""Words of a passage, and of a mail that are read."""


@functools.cache
def genres(each: int = 60) -> Examples:
    """[15 `each`, 384]: MiniLM's embeddings of passages of 50 words, by genre; as many of each, from its documents."""
    names = sorted({genre for genre, _ in packages.brown_documents()})
    passages: dict[str, list[str]] = {name: [] for name in names}
    for genre, sentences in packages.brown_documents():
        words = " ".join(sentences).split()
        passages[genre] += [" ".join(words[at : at + PASSAGE]) for at in range(0, len(words) - PASSAGE, PASSAGE)]
    draw = np.random.default_rng(15)
    chosen = [passages[name][index] for name in names for index in draw.permutation(len(passages[name]))[:each]]
    labels = torch.arange(len(names)).repeat_interleave(each)
    return Examples(_embedded(f"genres-{each}", chosen), labels, classes=tuple(names), name="genres")


@functools.cache
def mails(shots: int, seed: int, *, judged: bool = True) -> tuple[Examples, Examples]:
    """(`shots` mails, 500 to judge on), [N, 384]: half of them spam. Settings are explored on 200 others."""
    draw = np.random.default_rng(6046)
    known = [(group.startswith("spam"), _written(text)) for group, text in packages.spam_assassin()]
    known = list({text: (spam, text) for spam, text in known if len(text.split()) > 20}.values())
    sides = ([n for n, (spam, _) in enumerate(known) if spam == side] for side in (False, True))
    halves = [draw.permutation(side)[:500] for side in sides]
    chosen = [known[index] for pair in zip(*halves, strict=True) for index in pair]
    labels = torch.tensor([int(spam) for spam, _ in chosen])
    data = Examples(_embedded("mails", [text for _, text in chosen]), labels, classes=("ham", "spam"), name="mails")
    places = 2 * np.random.default_rng([seed, 150]).permutation(150)[: shots // 2]  # pairs: one of each
    return data.take(np.sort([*places, *(places + 1)])), data.take(range(500, 1000) if judged else range(300, 500))


def _written(mail: str) -> str:
    """Subject and text of a mail, its first words, without tags."""
    parsed = email.message_from_string(mail, policy=email.policy.compat32)
    parts = [part for part in parsed.walk() if part.get_content_maintype() == "text"]
    body = str(parts[0].get_payload()) if parts else ""
    words = f"{parsed.get('subject', '')} {re.sub('<[^>]*>', ' ', body)}".split()
    return " ".join(words[:PASSAGE])


def _embedded(name: str, texts: Sequence[str]) -> torch.Tensor:
    """[N, 384], remembered in the cache of the claims by the texts."""
    digest = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    file = CACHE / f"minilm-{name}-{digest}.npy"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with writing(file) as temporary, temporary.open("wb") as out:
            np.save(out, encoder(str(packages.minilm()))(texts))
    return torch.from_numpy(np.load(file))
