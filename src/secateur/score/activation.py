"""Activation importance: magnitude of activations on calibration data (forward passes only)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from secateur._utils.modes import evaluating
from secateur.errors import DataError, InputError
from secateur.score.hooks import Batch, Side, finite, observe, real_tokens, stream
from secateur.score.magnitude import Columns
from secateur.score.slices import Slices

__all__ = ["Reducer", "Tap", "channels", "collect", "inputs", "reduce_sequence", "state_scores", "sum_scores"]

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
    forward: Callable[[Batch], object],
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


def channels(
    forward: Callable[[Batch], object],
    model: nn.Module,
    batches: Iterable[Batch],
    slices: Slices,
    *,
    what: Literal["mean", "nonzero"] = "mean",
) -> dict[str, Tensor]:
    """Site -> float32 [count]: mean |a| over samples, positions and channels a of a unit, or the share of a != 0.

    Channels are read where convolutions and linears take them in (after norm and activation), averaged over all that
    do; where none does, as they come out of the module that makes them. Sites without either are left out: there is
    nothing to read. Padding (0 in batch["attention_mask"]) is left out of what linears take in.

    what: "nonzero" is 1 - APoZ, the average percentage of zeros

    Source: Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR 2017
    (mean activation); Hu et al., "Network Trimming" (arXiv 1607.03250), equation 1 (APoZ).
    """
    if what not in ("mean", "nonzero"):
        raise InputError(f"what {what!r} is neither 'mean' nor 'nonzero'")
    readers = _readers(model, slices)
    sums: dict[tuple[str, Side], Tensor] = {}
    seen: dict[tuple[str, Side], int] = {}
    mask: Tensor | None = None

    def looker(place: tuple[str, Side]) -> Callable[[Tensor], None]:
        module = model.get_submodule(place[0])
        spatial = len(module.kernel_size) if isinstance(module, nn.modules.conv._ConvNd) else 0

        def look(x: Tensor) -> None:
            if mask is not None and not spatial and x.dim() > 2 and x.shape[:2] == mask.shape:
                x = x[mask.to(x.device)]
            x = x.movedim(x.dim() - 1 - spatial, 0).flatten(1)
            row = (x.float().abs() if what == "mean" else (x != 0).float()).sum(1).cpu().double()
            sums[place] = sums[place] + row if place in sums else row
            seen[place] = seen.get(place, 0) + x.shape[1]

        return look

    places = dict.fromkeys((path, side) for found in readers.values() for path, side, _ in found)
    ran = 0
    with evaluating(model), torch.no_grad(), observe(model, {place: looker(place) for place in places}):
        for batch in batches:
            mask = real_tokens(batch)
            forward(batch)
            ran += 1
    if not ran:
        raise DataError("there are no batches to score with: give at least one")
    scores = {}
    for site, found in readers.items():
        for side in ("input", "output"):
            parts = [
                (sums[path, at] / seen[path, at], u) for path, at, u in found if at == side and seen.get((path, at))
            ]
            if parts:
                unit = torch.cat([u for _, u in parts])
                row, unit = torch.cat([row for row, _ in parts])[unit >= 0], unit[unit >= 0]
                count = torch.bincount(unit)
                total = torch.zeros(len(count), dtype=torch.float64).index_add_(0, unit, row)
                scores[site] = finite(site, (total / count).float())
                break
    return scores


def _readers(model: nn.Module, slices: Slices) -> dict[str, list[tuple[str, Side, Tensor]]]:
    """Site -> (module, side, unit of each of its channels there or -1): where units enter and leave linears."""
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) or type(module).__name__ == "Conv1D":
            owners.setdefault(id(module.weight), []).append((path, module))
    result: dict[str, list[tuple[str, Side, Tensor]]] = {}
    for site, parts in slices.items():
        for weight, dim, unit in parts:
            for path, module in owners.get(id(weight), ()):
                turned = getattr(module, "transposed", type(module).__name__ == "Conv1D")
                enters, grouped = dim == (0 if turned else 1), getattr(module, "groups", 1) > 1
                if dim > 1 or (grouped and (enters or turned)):
                    continue  # inside a group, an index is no channel
                result.setdefault(site, []).append((path, "input" if enters else "output", unit))
    return result


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


def sum_scores(scores: Mapping[str, Tensor]) -> Tensor:
    """[count]: scores of the same units seen at several places, added up (residual channels over all norms).

    Source: Minitron (arXiv 2407.14679), section 2.2: layer scores are summed for network-wide axes.
    """
    columns = list(scores.values())
    if not columns or any(column.shape != columns[0].shape for column in columns):
        raise InputError(f"scores to sum must have one shape, got {[tuple(column.shape) for column in columns]}")
    return torch.stack([column.to(columns[0].device) for column in columns]).sum(0)


def state_scores(magnitudes: Tensor, heads: int, top: int | None = None) -> tuple[Tensor, Tensor]:
    """([heads], [channels]): what heads of a Mamba-2 mixer, and the channels that all of them have, are worth.

    magnitudes: [heads x channels], s: of each channel of x, the part of the input linear's output that goes into the
    state. A channel is worth s_d = ||s_{:,d}||_2 over heads, a head f_h = ||s_{h,D}||_2 over the `top` channels by that
    (all if None). Heads are to be ranked inside the groups that share B and C.

    Source: Nemotron Elastic (arXiv 2511.16664), section 3.1.
    """
    each = magnitudes.reshape(heads, -1)
    channels: Tensor = torch.linalg.vector_norm(each, dim=0)
    best = channels.argsort(descending=True, stable=True)[:top]
    return torch.linalg.vector_norm(each[:, best], dim=1), channels


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
