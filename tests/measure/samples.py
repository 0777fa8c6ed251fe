"""Evidence to draw, as a run would make it."""

import math

from secateur.vocabulary import Cut, Evidence, Figure, Recovery


def cut(layers=6):
    """Heads and neurons thinned in each layer; layer 2 lost its attention, layer 4 its FFN, the last both."""
    removed = {"layers": (1, layers), "attention": (2, layers), "ffn": (2, layers)}
    for layer in range(layers):
        last = layer == layers - 1
        removed[f"layers.{layer}.heads"] = (12 if last or layer == 2 else layer, 12)
        removed[f"layers.{layer}.neurons"] = (1536 if last or layer == 4 else 128 * layer, 1536)
    return Cut(removed, {"params": 22e6}, {"params": 12e6}, ("Widths are multiples of 8.",))


def result(target="speedup=2x", speedup=2.03, quality=0.912, **changes):
    before = {"latency": Figure(0.184, 0.182, 0.187, "s", 20), "params": Figure(22713216), "bytes": Figure(90864192)}
    after = {
        "params": Figure(12.1e6),
        "bytes": Figure(48.4e6),
        "spearman": Figure(quality, quality - 0.01, quality + 0.01, "", 1000),
        "cosine": Figure(0.93),
    }
    measured = {
        "speedup": Figure(speedup, speedup * 0.985, speedup * 1.015, "x", 20),
        "latency": Figure(0.184 / speedup, unit="s", samples=20),
    }
    baselines = {
        "every second layer": {"speedup": Figure(1.97), "spearman": Figure(0.861), "params": Figure(17e6)},
        "magnitude": {"speedup": Figure(2.01), "spearman": Figure(0.88, 0.87, 0.89), "params": Figure(12.4e6)},
    }
    values = {
        "recipe": "ziplm",
        "target": target,
        "predicted": {"speedup": 2.02, "latency": 0.0911, "params": 12.1e6},
        "measured": measured,
        "before": before,
        "after": after,
        "baselines": baselines,
        "cut": cut(),
        "recovery": Recovery(
            1200, 1_574_400, 412.6, 3.1e15, tuple((i, 0.9 * math.exp(-i / 80) + 0.1) for i in range(0, 1200, 6)),
            {"lr": 5e-5, "losses": {"hidden": 1.0}},
        ),
        "environment": {"cpu": "A processor", "threads": 2, "latency": {"batch": 32, "length": 64}},
        "settings": {"model": "/home/someone/models/all-MiniLM-L6-v2", "seed": 0},
        "verdict": "met",
    }  # fmt: skip
    return Evidence(**{**values, **changes})
