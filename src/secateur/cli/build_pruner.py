"""secateur build-pruner: train the pruner of passages that `--recipe provence` takes where no --model is given."""

from __future__ import annotations

import sys
from typing import Any

from secateur.cli.command import Command

__all__ = ["execute"]


def execute(given: dict[str, Any]) -> None:
    """Train the pruner of `prune-context --recipe provence` from packages; it needs pip, npm and some minutes."""
    from secateur.retrieval import rerankers
    from secateur.runs import default_pruner

    measured = default_pruner.build_pruner(**given)
    print(given.get("out") or rerankers.default_folder())
    print(
        f"threshold {measured['threshold']:.3g}: {measured['recall']:.1%} of the sentences that answer stay, and "
        f"{measured['kept']:.1%} of the tokens of a request, on documents that it has not learnt from",
        file=sys.stderr,
    )


def read_config(config: str, typed: dict[str, Any]) -> dict[str, Any]:
    """The settings in a YAML file, where those that were typed do not say otherwise."""
    from secateur.runs import configs, default_pruner

    function = default_pruner.build_pruner
    return configs.options(function, configs.read(config, "build-pruner", function, typed))


COMMAND = Command(
    execute,
    ["secateur.runs.default_pruner.build_pruner"],
    help={"device": "where it is trained and judged, such as cuda."},
    example="secateur build-pruner",
    config="a YAML file with the same keys; flags win over it.",
    configured="secateur.cli.build_pruner.read_config",
)
