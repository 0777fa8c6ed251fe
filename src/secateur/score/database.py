"""A pruning database: every linear that consumes units, compensated at every level (ZipLM, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

from secateur.score import hessian

__all__ = ["Consumer", "build", "stitched"]


class Consumer(Protocol):
    """A linear whose input columns are units: unit u owns columns [u * block, (u + 1) * block)."""

    @property
    def module(self) -> str:
        """Path of the linear in the model."""
        ...

    @property
    def block(self) -> int:
        """Columns per unit."""
        ...

    @property
    def conv1d(self) -> bool:
        """Whether the weight is stored [d_in, d_out]."""
        ...


def _weight(model: nn.Module, consumer: Consumer) -> Tensor:
    """The weight as [d_out, d_in], a view: GPT-2's Conv1D stores it the other way round."""
    weight = model.get_submodule(consumer.module).weight
    assert isinstance(weight, Tensor)
    return weight.data.T if consumer.conv1d else weight.data


def build(
    forward: Callable[[Any], Any],
    model: nn.Module,
    batches: Iterable[Any],
    consumers: Mapping[str, Consumer],
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
def stitched(model: nn.Module, consumers: Mapping[str, Consumer], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block, the consumers of `weights` (site -> [d_out, d_in]) hold those weights; after it, their own."""
    own: dict[str, Tensor] = {}
    try:
        for site, weight in weights.items():
            parameter = model.get_submodule(consumers[site].module).weight
            assert isinstance(parameter, Tensor)
            own[site] = parameter.data
            parameter.data = weight.T.contiguous() if consumers[site].conv1d else weight
        yield
    finally:
        for site, weight in own.items():
            model.get_submodule(consumers[site].module).weight.data = weight
