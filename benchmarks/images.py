"""How long a training step waits for images, and how memory grows with their number.

    python benchmarks/images.py                 # writes docs/evidence/benchmarks/images.*
    python benchmarks/images.py --steps 10      # a quick look, writes nothing

ResNet-18 at 160 pixels learns from JPEGs of 500 x 375 pixels with two workers beside it; waiting is the time until a
batch is there. Memory is that of the process and its workers after a pass over 100 and over 10,000 images.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from torch.nn import functional

from secateur.data import examples
from secateur.measure.environment import describe

SIZE, BATCH, WORKERS = 160, 16, 2
MEMORY = 1 << 20
LOOK = 5
"""Batches from one look at the memory to the next: 100 images in order are 7, whose workers count, too."""


def make_images(folder: Path, count: int, side: tuple[int, int] = (500, 375)) -> Path:
    """So many JPEGs in two classes: those after the first hundred are links to them."""
    rng = np.random.default_rng(0)
    for number in range(count):
        file = folder / "ab"[number % 2] / f"{number:05}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        if number < 100:
            coarse = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize(side, Image.Resampling.BICUBIC).save(file, quality=90)
        else:
            os.link(folder / "ab"[number % 2] / f"{number % 100:05}.jpg", file)
    return folder


def read(folder: Path, workers: int = WORKERS) -> examples.Examples:
    """The images as a run has them."""
    return examples.with_transform(examples.read(folder), "imagenet", SIZE, workers=workers)


def wait(folder: Path, steps: int, workers: int) -> tuple[float, float]:
    """(seconds of a step, share of them that waits for the batch), medians after a few steps to warm up."""
    from torchvision.models import resnet18

    network = resnet18(num_classes=2)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01)
    feed = examples.batches(read(folder, workers), batch=BATCH)
    whole, waited = [], []
    for step in range(steps + 4):
        began = time.perf_counter()
        batch = feed[step]
        there = time.perf_counter()
        functional.cross_entropy(network(batch["inputs"]), batch["labels"]).backward()
        optimiser.step()
        optimiser.zero_grad()
        whole.append(time.perf_counter() - began)
        waited.append(there - began)
    return statistics.median(whole[4:]), sum(waited[4:]) / sum(whole[4:])


def memory(folder: Path) -> float:
    """MiB of this process and its workers, most during a pass of 60 batches in training and 60 in order."""
    own, most = psutil.Process(), 0

    def look() -> int:
        return sum(process.memory_full_info().pss for process in (own, *own.children(recursive=True)))

    data = read(folder)
    feed = examples.batches(data, batch=BATCH)
    for step in range(60):
        feed[step]
        if step % LOOK == LOOK - 1:
            most = max(most, look())
    for step, _ in zip(range(60), data.in_order(BATCH), strict=False):
        if step % LOOK == LOOK - 1:
            most = max(most, look())
    return most / MEMORY


def main() -> None:
    """Measure, print, and write unless it is a quick look."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--memory", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory:
        print(memory(given.memory))
        return
    with tempfile.TemporaryDirectory() as name:
        few, many = make_images(Path(name) / "few", 100), make_images(Path(name) / "many", 10_000)
        step, share = wait(few, given.steps, WORKERS)
        alone, without = wait(few, max(5, given.steps // 4), 0)
        used = []
        for folder in (few, many):
            command = [sys.executable, __file__, "--memory", str(folder)]
            used.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    machine = describe()
    text = "\n".join([
        "# Waiting for images", "",
        f"ResNet-18 learns from JPEGs of 500 x 375 pixels, {BATCH} a step, as {SIZE} x {SIZE}; "
        f"{torch.get_num_threads()} threads. The goal: a step waits for at most 10 % of its time, and memory does not "
        "grow with the number of images.",
        "", "| | a step | of which it waits |", "| --- | ---: | ---: |",
        f"| {WORKERS} workers | {step * 1e3:.0f} ms | {share:.1%} |",
        f"| without workers | {alone * 1e3:.0f} ms | {without:.1%} |",
        "", "| images | memory with workers |", "| ---: | ---: |",
        f"| 100 | {used[0]:.0f} MiB |", f"| 10,000 | {used[1]:.0f} MiB |", "",
        f"`python benchmarks/images.py`; {machine.get('cpu')}, commit {machine.get('commit')}.",
    ])  # fmt: skip
    print(text)
    if given.steps == parser.get_default("steps"):
        found = {"step_ms": step * 1e3, "waits": share, "step_without_workers_ms": alone * 1e3,
                 "waits_without_workers": without, "memory_mib": {"100": used[0], "10000": used[1]},
                 "environment": machine}  # fmt: skip
        out = Path(__file__).parents[1] / "docs" / "evidence" / "benchmarks"
        (out / "images.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        (out / "images.md").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
