"""ZipLM's clock: the time that its table predicts of cut models beside the time that they take, in each environment.

    python benchmarks/clock.py                                   # prefill and decode by PyTorch: minutes on quiet cores
    python benchmarks/clock.py --environments decode --timers compile,onnx

Target: within 7 % (`runs.measuring.TOLERANCE`) before any correction, which the recipe makes where the clock disagrees.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from secateur.errors import MeasurementError
from secateur.measure import latency
from secateur.methods import timing
from secateur.methods.timing import Clock
from secateur.select import allocate, levels
from secateur.subjects import Transformer, open_subject
from secateur.vocabulary import Selection

SHARES = (0.75, 0.5, 0.25)
PLACES = {"prefill": (4, 64), "decode": (1, 256)}
"""Batch and length of each environment: sequences that are read, and caches behind which one token is said."""


def build(layers: int, width: int) -> Transformer:
    """A Llama with random weights: times do not depend on them."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=1024,
    )  # fmt: skip
    return open_subject(LlamaForCausalLM(config).eval())


def cut_at_random(subject: Transformer, share: float, seed: int) -> Selection:
    """About `share` of the units of each layer, in counts that differ from layer to layer; some sub-blocks go whole."""
    draw, keep = np.random.default_rng(seed), {}
    for site in subject.units("kv_groups", "neurons").free():
        step = 8 if site.kind == "neurons" else 1
        count = step * round(site.count / step * min(1.0, 2 * share * draw.random()))
        keep[site.name] = np.arange(site.count) < count
    return Selection(keep)


def compare(subject: Transformer, clock: Clock) -> None:
    """Print predicted and measured speedups of a few cuts."""
    batch, length = PLACES[clock.environment]
    neurons = max(width.neurons for width in subject.widths())
    table = timing.time_blocks(subject, ("kv_groups", "neurons"), allocate.grid(neurons), batch, length, clock)
    units = levels.with_latency(subject.units("kv_groups", "neurons"), table, table["rest"]["0"])
    place = clock.place(subject, batch, length)
    dense, whole = timing.make_run(subject, place), units.cost()["latency"]
    for number, share in enumerate(SHARES):
        selection = cut_at_random(subject, share, number)
        student = timing.make_run(subject.cut(selection)[0], place)
        predicted = whole / units.cost(selection.keep)["latency"]
        try:
            times = latency.compare(dense, student, lasting=10.0, most=2000, device=place.device)
        except MeasurementError as error:
            print(f"{place}: predicted {predicted:.2f}x; {error}")
            continue
        off = times.speedup.value / predicted - 1
        print(f"{place}: predicted {predicted:.2f}x, measured {times.speedup} ({off:+.1%})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", default="prefill,decode")
    parser.add_argument("--timers", default="eager")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    given = parser.parse_args()
    subject = build(given.layers, given.width)
    for environment in given.environments.split(","):
        for timer in given.timers.split(","):
            compare(subject, Clock(environment=environment, timer=timer))


if __name__ == "__main__":
    main()
