"""A folder of photographs: ResNet-18 trained on it, cut to half its weights, fine-tuned on the original, as ONNX.

    python examples/journey_images.py [FOLDER]

200 JPEGs of unequal sizes, some turned by their EXIF, are made from scikit-learn's two photographs: crops of their
upper and lower halves in four classes. All the rest is what a user types.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SIZE, COUNT = 96, 200
PHOTO = ["--transform", "imagenet", "--size", str(SIZE)]
NET = """
from pathlib import Path

from safetensors.torch import load_model
from torchvision.models import resnet18


def build():
    model = resnet18(num_classes=4)
    weights = Path(__file__).with_name("trained.safetensors")
    if weights.is_file():
        load_model(model, weights)
    return model
"""


def make_photos(folder: Path) -> None:
    """COUNT JPEGs between 100 and 260 pixels a side, in train/ and val/ by class."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    photos = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for number in range(COUNT):
        photo, lower = photos[number % 2], number // 2 % 2
        width, height = (int(side) for side in rng.integers(100, 200, 2))
        left = int(rng.integers(0, photo.width - width))
        top = int(rng.integers(0, photo.height // 2 - height)) + lower * photo.height // 2
        crop = photo.crop((left, top, left + width, top + height)).rotate(int(rng.integers(-8, 9)))
        exif = Image.Exif()
        if number % 5 == 0:  # as a camera that was held upright writes it
            exif[274] = 6
            crop = crop.rotate(90, expand=True)
        kind = f"{('temple', 'flower')[number % 2]}-{('above', 'below')[lower]}"
        part = folder / ("val" if number % 10 in (3, 6) else "train") / kind
        part.mkdir(parents=True, exist_ok=True)
        crop.save(part / f"{number:03}.jpg", exif=exif, quality=92)


def train(folder: Path, epochs: int = 8) -> None:
    """ResNet-18 from scratch on the folder, with secateur's batches and training loop."""
    import torch
    from safetensors.torch import save_model

    from secateur._utils import plugins
    from secateur.data import examples
    from secateur.recover.training import loop, rehearsal

    torch.manual_seed(0)
    network, _ = plugins.network(str(folder / "net.py:build"))
    data = examples.with_transform(examples.read(folder / "photos"), "imagenet", SIZE, workers=2)
    feed = examples.batches(data, batch=16)
    objective = rehearsal.classes(lambda batch: network(batch["inputs"]))
    loop.train(network, feed, objective, steps=epochs * len(feed), lr=2e-3, count=examples.count)
    save_model(network, str(folder / "trained.safetensors"))


def secateur(folder: Path, *words: str) -> None:
    """Run a command in the folder, and show it."""
    print("$ secateur", *words, flush=True)
    subprocess.run([sys.executable, "-m", "secateur", *words], cwd=folder, check=True)


def main() -> int:
    """All steps; returns the exit code."""
    began = time.perf_counter()
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "journey-images")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "net.py").write_text(NET, "utf-8")
    if not (folder / "photos").is_dir():
        make_photos(folder / "photos")
    if not (folder / "trained.safetensors").is_file():
        train(folder)
    net = "net.py:build"
    secateur(folder, "prune", net, "--data", "photos", *PHOTO, "--budget", "params=50%", "--out", "half")
    secateur(
        folder, "distill", net, "--weights", "half", "--from", net, "--data", "photos", *PHOTO, "--steps", "60",
        "--batch", "16", "--lr", "5e-4", "--task", "0.5", "--out", "tuned",
    )  # fmt: skip
    secateur(folder, "export", "tuned", "--to", "onnx")
    secateur(folder, "measure", "tuned", "--against", net, "--data", "photos/val", *PHOTO)
    print(f"{time.perf_counter() - began:.0f} s; see {folder / 'tuned' / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
