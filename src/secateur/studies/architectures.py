"""Pruning as a search for architectures: are the widths it finds better than uniform ones of the same size?

Liu et al., "Rethinking the Value of Network Pruning" (arXiv 1810.05270), section 5. Three designs within one budget, to
be trained from scratch: what a pruner left, the same share everywhere (`uniform`), and the average pattern of pruned
networks on another network (`cut_by_pattern`).

Departure: the paper also guides designs by the positions within 3 x 3 kernels at which an unstructured pruner leaves
weights. `cut_by_pattern` follows widths of channels only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from torch import nn

from secateur.errors import InputError
from secateur.methods.published_rules import sites
from secateur.select import ranking
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget, Cut, Selection

__all__ = ["Pattern", "average", "cut_by_pattern", "shares", "stages", "uniform"]

Pattern = Mapping[int, float]
"""Stage -> share of the channels that stays, 0 to 1."""


def stages(subject: Traced, inner: bool = True) -> dict[str, int]:
    """Site -> number of its stage: sites whose channels are made on maps of one size; the largest maps are stage 0."""
    owners = {id(module.weight): path for path, module in subject.model.named_modules() if _writes(module)}
    sizes: dict[str, int] = {}

    def looker(path: str) -> Callable[..., None]:
        def look(module: nn.Module, args: object, output: Any) -> None:
            spatial = isinstance(module, nn.modules.conv._ConvNd)
            sizes[path] = output[0, 0].numel() if spatial else 0

        return look

    modules = dict(subject.model.named_modules())
    with ExitStack() as stack:
        for path in owners.values():
            stack.callback(modules[path].register_forward_hook(looker(path)).remove)
        subject.forward()
    slices, found = subject.slices(), dict[str, int]()
    for site in sites(subject, inner).free():
        made = [owners[id(w)] for w, dim, _ in slices[site.name] if dim == 0 and id(w) in owners]
        made = [path for path in made if path in sizes]
        found[site.name] = max((sizes[path] for path in made), default=0)
    order = sorted(set(found.values()), reverse=True)
    return {site: order.index(size) for site, size in found.items()}


def _writes(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.modules.conv._ConvNd)


def shares(subject: Traced, cut: Cut, inner: bool = True) -> dict[int, float]:
    """The pattern of one cut of `subject`: stage -> mean kept share of its sites."""
    found: dict[int, list[float]] = {}
    for site, stage in stages(subject, inner).items():
        gone, count = cut.removed.get(site, (0, 1))
        found.setdefault(stage, []).append(1.0 - gone / count)
    return {stage: float(np.mean(kept)) for stage, kept in sorted(found.items())}


def average(patterns: Sequence[Pattern]) -> dict[int, float]:
    """The mean pattern, stage by stage. Raises `InputError` for patterns of different stages."""
    if not patterns or any(set(pattern) != set(patterns[0]) for pattern in patterns):
        raise InputError(
            "patterns of the same stages are averaged: give at least one, all of networks of as many stages"
        )
    return {stage: float(np.mean([pattern[stage] for pattern in patterns])) for stage in patterns[0]}


def uniform(subject: Traced, budget: Budget | str, inner: bool = True) -> tuple[Traced, Cut]:
    """`subject` with every width times one multiplier, the largest that keeps to the budget.

    Which units stay means nothing: the result is to be trained from scratch.
    """
    units = sites(subject, inner)
    scores = {site.name: -np.arange(site.count, dtype=float) for site in units.free()}
    return subject.cut(ranking.by_budget(units, scores, budget, scope="local"))


def cut_by_pattern(subject: Traced, pattern: Pattern, budget: Budget | str, inner: bool = True) -> tuple[Traced, Cut]:
    """`subject`, of any depth, with widths in the proportions of `pattern`, the largest that keep to the budget.

    Site s of stage t keeps f pattern[t] of its units, with one f for all, as far as it has them. Raises `InputError`
    where the pattern lacks a stage.
    """
    units, found = sites(subject, inner), stages(subject, inner)
    scores = {}
    for site in units.free():
        stage = found[site.name]
        if stage not in pattern:
            raise InputError(f"{site.name} is of stage {stage}, which the pattern lacks: it has {sorted(pattern)}")
        # Unit i goes once f falls below (i + 1/2) / (share x count): one ranking over all sites keeps proportions.
        scores[site.name] = -(np.arange(site.count) + 0.5) / max(pattern[stage] * site.count, 1e-9)
    selection: Selection = ranking.by_budget(units, scores, budget, scope="global")
    return subject.cut(selection)
