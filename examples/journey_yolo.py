"""A YOLO of Ultralytics, built from its YAML and trained on a few scenes: cut, fine-tuned, its AP before and after.

    python examples/journey_yolo.py [FOLDER]

Ultralytics is under the AGPL-3.0, and secateur is not: it stands in an environment of its own (`make yolo` makes it),
and what you build with it is under its licence. Where it is not installed this journey says so and ends.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SIZE, SCENES = 96, 48
COLOURS = {0: (230, 40, 40), 1: (40, 220, 60)}
NET = """
from pathlib import Path

from safetensors.torch import load_file
from ultralytics.nn.tasks import DetectionModel


def build():
    model = DetectionModel("yolov8n.yaml", nc=2, verbose=False)
    model.names = {0: "disc", 1: "square"}
    weights = Path(__file__).with_name("trained.safetensors")
    if weights.is_file():
        model.load_state_dict(load_file(weights))
    return model
"""


def write_scenes(root: Path) -> None:
    """Discs and squares in noise, annotated as YOLO does: images/, labels/ and data.yaml."""
    from PIL import Image, ImageDraw

    draw = np.random.default_rng(0)
    for part, count in (("train", SCENES * 3 // 4), ("val", SCENES // 4)):
        for kind in ("images", "labels"):
            (root / kind / part).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            scene = Image.fromarray(draw.integers(0, 90, (SIZE, SIZE, 3)).astype(np.uint8))
            lines = []
            for half in range(2):  # side by side: none hides another
                kind, side = int(draw.integers(2)), int(draw.integers(24, 40))
                left = int(draw.integers(half * SIZE // 2, (half + 1) * SIZE // 2 - side + 1))
                top = int(draw.integers(SIZE - side))
                shape = ImageDraw.Draw(scene)
                (shape.rectangle if kind else shape.ellipse)((left, top, left + side, top + side), fill=COLOURS[kind])
                middle = (left + side / 2) / SIZE, (top + side / 2) / SIZE
                lines.append(f"{kind} {middle[0]:.5f} {middle[1]:.5f} {side / SIZE:.5f} {side / SIZE:.5f}")
            scene.save(root / "images" / part / f"{number:03}.png")
            (root / "labels" / part / f"{number:03}.txt").write_text("\n".join(lines) + "\n")
    names = {"path": str(root.resolve()), "train": "images/train", "val": "images/val", "names": ["disc", "square"]}
    (root / "data.yaml").write_text(json.dumps(names))


def train(folder: Path, steps: int = 120) -> None:
    """The detector from scratch, by its own loss."""
    import torch
    from safetensors.torch import save_file

    from secateur._utils import plugins
    from secateur.data import examples
    from secateur.recover.training import detecting, loop
    from secateur.subjects.network import detectors

    torch.manual_seed(0)
    network, _ = plugins.network(str(folder / "net.py:build"))
    detector = detectors.adapt(network)
    data = examples.with_transform(examples.read(folder / "scenes"), None, SIZE, workers=0)
    feed = examples.batches(data, batch=12)
    loop.train(detector, feed, detecting.press(detector.loss), steps=steps, lr=4e-3, count=examples.count)
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()},
              folder / "trained.safetensors")  # fmt: skip


def main() -> int:
    """All steps; returns the exit code."""
    if importlib.util.find_spec("ultralytics") is None:
        print(
            "ultralytics (AGPL-3.0) is not installed here: `make yolo` runs this journey in an environment of its own"
        )
        return 0
    began = time.perf_counter()
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "journey-yolo").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "net.py").write_text(NET, "utf-8")
    if not (folder / "scenes").is_dir():
        write_scenes(folder / "scenes")
    if not (folder / "trained.safetensors").is_file():
        train(folder)
    command = [
        "run", "yolov8_cwd", "net.py:build", "--data", "scenes", "--size", str(SIZE), "--budget", "params=60%",
        "--out", "cut", "--sparse-epochs", "1", "--finetune-epochs", "12", "--distil-epochs", "4",
        "--training", "batch=12,lr=2e-3",
    ]  # fmt: skip
    print("$ secateur", *command, flush=True)
    code = subprocess.run([sys.executable, "-m", "secateur", *command], cwd=folder, check=False).returncode
    if code:
        return code
    (row,) = json.loads((folder / "cut" / "evidence.json").read_text())["results"]
    before, after = (row[side]["AP50"]["value"] for side in ("before", "after"))
    took = time.perf_counter() - began
    print(f"AP50 before {before:.3f}, after {after:.3f}; {took:.0f} s; the report: {folder / 'cut' / 'report.html'}")
    return 0 if after > 0.5 * before > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
