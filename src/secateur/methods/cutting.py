"""Cutting a network to a budget where a cut may fail its proof: keep whole what can't be cut, and choose anew."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch

from secateur.subjects.network.traced import CutError, Traced
from secateur.vocabulary import Cut, Selection

__all__ = ["cut_with_retries"]


def cut_with_retries(
    subject: Traced, select: Callable[[], Selection], *, offsets: bool = False, seed: int | None = None
) -> tuple[Selection, Traced, Cut]:
    """What stays of `subject`, the smaller network, and the receipt.

    A cut whose outputs differ from those of the silenced original (`CutError`) is no cut: the site at fault is noted in
    `subject` (`Traced.without`), which keeps it whole or couples it with others from then on, and `select` is called
    again. So `select` has to look at the subject anew each time, as its units change:

        def select() -> Selection:
            units = subject.units(multiple=8)
            return ranking.by_budget(units, magnitude.coupled(subject.slices()), budget)

        selection, small, cut = cut_with_retries(subject, select)

    Args:
        subject: the network; nothing of it changes but what it knows may go. Give a copy where that is not wanted.
        select: gives what stays, within the budget.
        offsets: fold the constants that channels leave behind into what reads them; see `Traced.cut`.
        seed: of the noise by which these constants are found; the caller's generator unless given.

    Raises what `select` raises, such as `InfeasibleError` once too much has to stay, and `ModelError` where no site
    explains the fault.
    """
    while True:
        selection = select()
        with contextlib.ExitStack() as stack:
            if seed is not None:
                stack.enter_context(torch.random.fork_rng(devices=[]))
                torch.manual_seed(seed)
            try:
                small, cut = subject.cut(selection, offsets=offsets)
            except CutError as error:
                subject.without(error.fault, selection)
                continue
        return selection, small, cut
