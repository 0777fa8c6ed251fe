"""A pruning database: every linear that consumes units, compensated at every level (ZipLM, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from secateur.score import hessian
from secateur.score.hooks import Batch
from secateur.score.magnitude import Columns, consumer_weight

__all__ = ["build", "stitch"]


def _weight(model: nn.Module, consumer: Columns) -> Tensor:
    """The weight as [d_out, d_in], a view: GPT-2's Conv1D stores it the other way round."""
    weight = consumer_weight(model, consumer).data
    return weight.T if consumer.conv1d else weight


def build(
    forward: Callable[[Batch], object],
    model: nn.Module,
    batches: Iterable[Batch],
    consumers: Mapping[str, Columns],
    levels: Mapping[str, Sequence[int]],
    **options: Any,
) -> dict[str, hessian.Sweep]:
    """Site -> its sweep: the order in which units go, and weight and error when `levels[site]` of them are removed.

    One pass of `batches` through the dense model collects all Hessians; one `hessian.sweep` per site makes all
    its levels. `options` go to `hessian.sweep` (damp, compensate, one_at_a_time).
    """
    modules = [consumers[site].module for site in levels]
    moments = hessian.collect(forward, model, batches, modules)
    return {
        site: hessian.sweep(
            _weight(model, consumers[site]),
            moments.pop(consumers[site].module),
            consumers[site].block,
            counts,
            **options,
        )
        for site, counts in levels.items()
    }


@contextmanager
def stitch(model: nn.Module, consumers: Mapping[str, Columns], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block, the consumers of `weights` (site -> [d_out, d_in]) hold those weights; after it, their own."""
    own: dict[str, Tensor] = {}
    try:
        for site, weight in weights.items():
            parameter = consumer_weight(model, consumers[site])
            own[site] = parameter.data
            parameter.data = (weight.T.contiguous() if consumers[site].conv1d else weight).to(parameter.device)
        yield
    finally:
        for site, data in own.items():
            consumer_weight(model, consumers[site]).data = data
