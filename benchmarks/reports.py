"""What a report costs: processor time and bytes, for a language model of which every matrix lost weights.

python benchmarks/reports.py
"""

from __future__ import annotations

import argparse
import statistics
import time

from secateur.reports import report
from secateur.vocabulary import Cut, Evidence, Figure, Recovery

MATRICES = ("self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj", "self_attn_o_proj",
            "mlp_gate_proj", "mlp_up_proj", "mlp_down_proj")  # fmt: skip


def evidence(layers: int) -> Evidence:
    removed = {f"layers.{layer}.{name}": (2000 + 100 * layer, 16384) for layer in range(layers) for name in MATRICES}
    loss, whole, half = Figure(4.0, 3.9, 4.1), {"weights": Figure(2.0)}, {"weights": Figure(1.0)}
    return Evidence(
        recipe="wanda",
        target="weights=50%",
        before={"loss": loss, **whole},
        after={"loss": loss, **half},
        baselines={"magnitude": {"loss": Figure(4.2), **half}},
        cut=Cut(removed, {"weights": 2.0}, {"weights": 1.0}),
        recovery=Recovery(100, losses=tuple((step, 5.0 - step / 100) for step in range(100))),
        verdict="met",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    row = evidence(options.layers)
    page, seconds = report.render(row), []  # the first one loads fonts
    for _ in range(options.rounds):
        began = time.process_time()
        report.render(row)
        seconds.append(time.process_time() - began)
    print(
        f"{options.layers} layers: {statistics.median(seconds):.2f} s of processor time, {len(page.encode()):,} bytes"
    )


if __name__ == "__main__":
    main()
