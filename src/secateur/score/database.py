"""A pruning database: every linear that consumes units, compensated at every level (ZipLM, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeAlias

from safetensors.torch import save_file
from torch import Tensor, nn

from secateur._utils import distributed
from secateur._utils.disk import writing
from secateur.score import hessian
from secateur.score.hooks import Batch, module_at
from secateur.score.magnitude import Columns, consumer_weight

__all__ = ["AT_ONCE", "Sweeps", "build", "running", "site_file", "stitch"]

AT_ONCE = 2.0**30
"""Bytes of Hessians collected in one pass; one is always."""

Sweeps: TypeAlias = Mapping[str, hessian.Sweep]
"""Site -> its linear at every level."""


def _weight(model: nn.Module, consumer: Columns) -> Tensor:
    """The weight as [d_out, d_in], a view: GPT-2's Conv1D stores it the other way round."""
    weight = consumer_weight(model, consumer).data
    return weight.T if consumer.conv1d else weight


def build(
    forward: Callable[[Batch], object],
    model: nn.Module,
    batches: Sequence[Batch],
    consumers: Mapping[str, Columns],
    levels: Mapping[str, Sequence[int]],
    folder: Path | None = None,
    *,
    at_once: float = AT_ONCE,
    damp: float = 0.01,
    compensate: bool = True,
    one_at_a_time: bool = True,
) -> dict[str, hessian.Sweep]:
    """Site -> its sweep: the order in which units go, and weight and error when `levels[site]` of them are removed.

    Passes of `batches` through the dense model collect the Hessians, those of as many neighbouring sites in one pass
    as take `at_once` bytes; one `hessian.sweep` per site makes all its levels. damp, compensate and one_at_a_time are
    its own.

    With `folder`, each sweep is written there when it is made, to SITE.safetensors, and its weights are mapped from
    that file when they are asked for, so that memory does not grow with the number of layers; sites that have their
    file already are not swept again.
    """
    found = dict[str, hessian.Sweep]()
    if folder is not None:
        stored = distributed.by_first(lambda: [site for site in levels if site_file(folder, site).exists()])
        found = {site: hessian.Sweep.open(site_file(folder, site)) for site in stored}
    run_sweep = partial(hessian.sweep, damp=damp, compensate=compensate, one_at_a_time=one_at_a_time)
    groups: list[list[str]] = [[]]
    held = 0.0
    for site in levels:
        if site in found:
            continue
        size = 4.0 * _weight(model, consumers[site]).shape[1] ** 2
        if groups[-1] and held + size > at_once:
            groups.append([])
            held = 0.0
        groups[-1].append(site)
        held += size
    for group in groups:
        if not group:
            continue
        modules = [consumers[site].module for site in group]
        moments = hessian.collect(forward, model, batches, modules, stop=len(groups) > 1)
        for site in group:
            consumer = consumers[site]
            moment = moments.pop(consumer.module)
            sweep = run_sweep(_weight(model, consumer), moment, consumer.block, levels[site])
            found[site] = sweep if folder is None else _store(sweep, site_file(folder, site))
    return {site: found[site] for site in levels}


def site_file(folder: Path, site: str) -> Path:
    """Where `build` keeps the sweep of a site."""
    return folder / f"{site}.safetensors"


def _store(sweep: hessian.Sweep, path: Path) -> hessian.Sweep:
    def write() -> None:
        tensors = {name: tensor.cpu().contiguous() for name, tensor in sweep.to_tensors().items()}
        with writing(path) as temporary:
            save_file(tensors, str(temporary))

    distributed.by_first(write)
    return hessian.Sweep.open(path)


@contextmanager
def running(
    model: nn.Module, consumers: Mapping[str, Columns], base: Sweeps, levels: Mapping[str, int]
) -> Iterator[None]:
    """Within the block, each consumer of `levels` (site -> level) runs with its weight at that level.

    Its weight takes the level's place only while it runs: one of them is in memory at a time. See also `stitch`.
    """
    with ExitStack() as stack:
        for site, level in levels.items():
            module, parameter = module_at(model, consumers[site].module), consumer_weight(model, consumers[site])
            swap = _Swap(parameter, base[site].weights, level, consumers[site].conv1d)
            stack.callback(module.register_forward_pre_hook(swap.enter).remove)
            stack.callback(module.register_forward_hook(swap.leave, always_call=True).remove)
        yield


class _Swap:
    """Hooks that put a weight at a level in the place of a parameter's own, and back."""

    def __init__(self, parameter: Tensor, weights: Mapping[int, Tensor], level: int, conv1d: bool) -> None:
        self.parameter, self.weights, self.level, self.conv1d = parameter, weights, level, conv1d
        self.own = parameter.data

    def enter(self, *_: object) -> None:
        self.parameter.data = _like(self.weights[self.level], self.own, self.conv1d)

    def leave(self, *_: object) -> None:
        self.parameter.data = self.own


def _like(weight: Tensor, own: Tensor, conv1d: bool) -> Tensor:
    """`weight` [d_out, d_in] as `own` is stored, where that is."""
    return (weight.T.contiguous() if conv1d else weight).to(own.device)


@contextmanager
def stitch(model: nn.Module, consumers: Mapping[str, Columns], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block, the consumers of `weights` (site -> [d_out, d_in]) hold those weights; after it, their own."""
    own: dict[str, Tensor] = {}
    try:
        for site, weight in weights.items():
            parameter = consumer_weight(model, consumers[site])
            own[site] = parameter.data
            parameter.data = _like(weight, parameter.data, consumers[site].conv1d)
        yield
    finally:
        for site, data in own.items():
            consumer_weight(model, consumers[site]).data = data
