"""Activation importance: how strongly a unit answers to real data (forward passes only)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur.errors import InputError
from secateur.score.hooks import Batch, Side, finite, stream
from secateur.score.magnitude import Columns

__all__ = ["Reducer", "Tap", "collect", "inputs", "reduce_sequence", "summed"]

Reducer = Literal["mean", "l2", "var"]


@dataclass(frozen=True, slots=True)
class Tap:
    """Where to listen: a module's input or output, `block` neighbouring channels forming one unit (a head)."""

    module: str
    side: Side = "input"
    block: int = 1


def inputs(consumers: Mapping[str, Columns]) -> dict[str, Tap]:
    """A tap on the input of each consumer: site -> the linear whose input columns are the site's units."""
    return {site: Tap(consumer.module, "input", consumer.block) for site, consumer in consumers.items()}


def collect(
    forward: Callable[[Batch], Any],
    model: nn.Module,
    batches: Iterable[Batch],
    taps: Mapping[str, Tap],
    *,
    batch: Reducer = "l2",
    sequence: Reducer = "mean",
    norm: Literal["token", "channel"] = "token",
) -> dict[str, Tensor]:
    """Site -> float32 [count]: importance of each unit, aggregated over sequence, then over samples.

        F_u = Agg_batch( Agg_sequence( a_u ) ),   mean = (1/n) sum |a|,   l2 = sqrt(sum a^2),   var = variance of a

    a_u is the activation of the unit's channel; of a block of channels (a head) it is their L2 norm,
    `||Attn(X W_Q,i, X W_K,i, X W_V,i)||_2`. Padding (0 in batch["attention_mask"]) and samples of nothing else are
    left out. Activations [B, S, C] are reduced as they come, in float32; none is stored.

    batch, sequence: the two reducers; (l2, mean) ranks best in the paper
    norm:            "token" takes a block's norm at every token, as the paper's equation does; "channel" aggregates
                     each channel first and takes the norm of the results, as the official library does

    Raises `NumericalError` naming the site that gave NaN or infinity, `InputError` for a module never reached.

    Source: Minitron (arXiv 2407.14679), section 2.2, equations 1 and 2. Departure: neurons and heads are read
    where their consumer reads them (after the gate), as the official library does.
    """
    states: dict[str, _OverSamples] = {site: _OverSamples(batch) for site in taps}
    sites_at: dict[tuple[str, Side], list[str]] = {}
    for site, tap in taps.items():
        sites_at.setdefault((tap.module, tap.side), []).append(site)

    def reader(sites: Sequence[str]) -> Callable[[Tensor, Tensor | None], None]:
        def read(x: Tensor, mask: Tensor | None) -> None:
            for site in sites:
                units = x.float()
                if norm == "token":
                    units = _block_norm(units, taps[site].block, site)
                states[site].add(reduce_sequence(units, mask, sequence))

        return read

    stream(forward, model, batches, {place: reader(sites) for place, sites in sites_at.items()})
    scores: dict[str, Tensor] = {}
    for site, state in states.items():
        score = state.result()
        if norm == "channel":
            score = _block_norm(score, taps[site].block, site)
        scores[site] = finite(site, score)
    return scores


def reduce_sequence(x: Tensor, mask: Tensor | None, how: Reducer) -> Tensor:
    """[B, S, C] and mask [B, S] -> [samples with a real token, C], reduced over the real tokens."""
    if mask is None:
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    alive = mask.any(1)
    x, real = x[alive], mask[alive].unsqueeze(-1)
    count = real.sum(1)
    x = x.masked_fill(~real, 0.0)  # not a product: padding may hold NaN
    if how == "mean":
        return x.abs().sum(1) / count
    if how == "l2":
        return x.square().sum(1).sqrt()
    if how == "var":
        centre = (x.sum(1) / count).unsqueeze(1)
        return (x - centre).masked_fill(~real, 0.0).square().sum(1) / count
    raise InputError(f"reducer {how!r} is not one of mean, l2, var")


def summed(scores: Mapping[str, Tensor]) -> Tensor:
    """[count]: scores of the same units seen at several places, added up (residual channels over all norms).

    Source: Minitron (arXiv 2407.14679), section 2.2: layer scores are summed for network-wide axes.
    """
    columns = list(scores.values())
    if not columns or any(column.shape != columns[0].shape for column in columns):
        raise InputError(f"scores to sum must have one shape, got {[tuple(column.shape) for column in columns]}")
    return torch.stack(columns).sum(0)


class _OverSamples:
    """Running mean |s|, l2 or variance over samples, so that nothing needs to be stored."""

    def __init__(self, how: Reducer) -> None:
        if how not in ("mean", "l2", "var"):
            raise InputError(f"reducer {how!r} is not one of mean, l2, var")
        self.how, self.count = how, 0
        self.centre: Tensor | float = 0.0
        self.total: Tensor | float = 0.0

    def add(self, samples: Tensor) -> None:
        new = samples.shape[0]
        if not new:
            return
        if self.how == "var":  # Chan's parallel update: sums of squares would cancel in float32
            centre = samples.mean(0)
            shift = centre - self.centre
            spread = (samples - centre).square().sum(0)
            self.total = self.total + spread + shift.square() * (self.count * new / (self.count + new))
            self.centre = self.centre + shift * (new / (self.count + new))
        else:
            self.total = self.total + (samples.abs() if self.how == "mean" else samples.square()).sum(0)
        self.count += new

    def result(self) -> Tensor:
        if not isinstance(self.total, Tensor):
            raise InputError("every token was padding: check the attention mask")
        return self.total.sqrt() if self.how == "l2" else self.total / self.count


def _block_norm(x: Tensor, block: int, site: str) -> Tensor:
    """[..., count * block] -> [..., count]: L2 norm over each run of `block` channels (absolute value for one)."""
    if block == 1:
        return x
    if x.shape[-1] % block:
        raise InputError(f"{site}: {x.shape[-1]} channels do not divide into blocks of {block}")
    norms: Tensor = torch.linalg.vector_norm(x.reshape(*x.shape[:-1], -1, block), dim=-1)
    return norms
