"""45 candidates of LeNet5-Mini retrained in one stack: beside one grouped network of the same FLOPs, and one by one.

    python benchmarks/stacking.py                          # some minutes
    python benchmarks/stacking.py --rounds 1 --images 256  # a quick look

Target: a stack takes at most 1.3 times the grouped network's time. Random images: what is computed does not depend on
them. The arms take turns; seconds of the processor stand beside those of the clock.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from secateur.data import examples
from secateur.data.examples import Examples
from secateur.methods import retraining
from secateur.methods.retraining import ImageTask
from secateur.recover.training import loop
from secateur.select import subsets
from secateur.subjects import open_traced
from secateur.vocabulary import Selection, Training

CLASSES, WIDTH, GONE = 10, 10, 2


def lenet() -> nn.Module:
    """Three 5 x 5 convolutions of 10 filters on 32 x 32 images, and two linears."""
    return nn.Sequential(
        nn.Conv2d(1, WIDTH, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(WIDTH, WIDTH, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(WIDTH, WIDTH, 5), nn.ReLU(), nn.Flatten(), nn.Linear(WIDTH, WIDTH), nn.ReLU(),
        nn.Linear(WIDTH, CLASSES),
    )  # fmt: skip


class Grouped(nn.Module):
    """As many candidates side by side, each a group of every convolution; linears are convolutions of 1 x 1."""

    def __init__(self, count: int) -> None:
        super().__init__()
        first, rest = count * (WIDTH - GONE), count * WIDTH
        self.count = count
        self.layers = nn.Sequential(
            nn.Conv2d(count, first, 5, groups=count), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(first, rest, 5, groups=count), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(rest, rest, 5, groups=count), nn.ReLU(),
            nn.Conv2d(rest, rest, 1, groups=count), nn.ReLU(), nn.Conv2d(rest, count * CLASSES, 1, groups=count),
        )  # fmt: skip

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, count * classes]."""
        return self.layers(inputs.expand(-1, self.count, -1, -1)).flatten(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1024)
    given = parser.parse_args()
    torch.manual_seed(0)
    data = Examples(torch.rand(given.images, 1, 32, 32), torch.randint(0, CLASSES, (given.images,)))
    task = ImageTask(data, data.take(range(64)))
    training = retraining.complete(Training(epochs=1, batch=64, lr=1e-3))
    subject = open_traced(lenet(), data.inputs[:2])
    site = next(iter(subject.units()))
    keeps = subsets.draw({site: (WIDTH, GONE)}, 45)
    cuts = [subject.cut(Selection(keep))[0].model for keep in keeps]
    grouped = Grouped(len(cuts))

    def objective(batch: dict[str, Tensor], totals: dict[str, int]) -> tuple[Tensor, dict[str, float]]:
        logits = grouped(batch["inputs"]).view(-1, len(cuts), CLASSES).transpose(0, 1).flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, batch["labels"].repeat(len(cuts)), reduction="sum")
        return loss / totals["examples"], {}

    def train_grouped() -> None:
        feed = examples.batches(data, batch=64, seed=0)
        how = training.default(steps=len(feed))
        loop.train(grouped, feed, objective, how, count=examples.count, progress=False)
        with torch.inference_mode():  # as candidates are judged at the end
            for batch in task.train_batches():
                grouped(batch["inputs"])

    arms: dict[str, Callable[[], object]] = {
        "in one stack": lambda: retraining.retrain(cuts, task, training, seed=0, judge=False, together=True),
        "one grouped network": train_grouped,
        "one by one": lambda: retraining.retrain(cuts, task, training, seed=0, judge=False),
    }
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for _ in range(given.rounds):
        for name, run in arms.items():
            clock, processor = time.perf_counter(), time.process_time()
            run()
            rows[name].append((time.perf_counter() - clock, time.process_time() - processor))
    times = {name: [statistics.median(column) for column in zip(*row, strict=True)] for name, row in rows.items()}
    for name, (clock, processor) in times.items():
        print(f"{len(cuts)} candidates, {name}: {clock:.1f} s, {processor:.1f} s of the processor")
    ratios = [one / other for one, other in zip(times["in one stack"], times["one grouped network"], strict=True)]
    verdict = "met" if ratios[1] <= 1.3 else "not met"
    print(
        f"a stack takes {ratios[0]:.2f} times the grouped network's time ({ratios[1]:.2f} of the processor): {verdict}"
    )


if __name__ == "__main__":
    main()
