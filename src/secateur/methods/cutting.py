"""Cut a network to a budget, where a cut may fail its proof: keep such units whole and choose again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch

from secateur._utils import plugins
from secateur.errors import InfeasibleError
from secateur.subjects.network import detectors
from secateur.subjects.network.traced import CutError, Traced, open_traced
from secateur.vocabulary import Budget, Cut, Selection, write_enough

__all__ = ["advise", "cut_with_retries", "open_student"]


def cut_with_retries(
    subject: Traced,
    select: Callable[[], Selection],
    *,
    offsets: bool = False,
    seed: int | None = None,
    prove: bool = True,
) -> tuple[Selection, Traced, Cut]:
    """What stays of `subject`, the smaller network, and the receipt.

    A cut whose outputs differ from those of the silenced original (`CutError`) is no cut: the site at fault is noted in
    `subject` (`Traced.without`), which keeps it whole or couples it with others from then on, and `select` is called
    again. So `select` has to look at the subject anew each time, as its units change:

        def select() -> Selection:
            units = subject.units(multiple=8)
            return ranking.by_budget(units, magnitude.coupled_norm(subject.slices()), budget)

        selection, small, cut = cut_with_retries(subject, select)

    Args:
        subject: the network; nothing of it changes but what it knows may go. Give a copy where that is not wanted.
        select: gives what stays, within the budget.
        offsets: fold the constants that channels leave behind into what reads them; see `Traced.cut`.
        seed: of the noise by which these constants are found; the caller's generator unless given.
        prove: compare the outputs; without it a cut fails only where the smaller network can't be built.

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
                small, cut = subject.cut(selection, offsets=offsets, prove=prove)
            except CutError as error:
                subject.without(error.fault, selection)
                continue
        return selection, small, cut


@contextlib.contextmanager
def advise(line: str) -> Iterator[None]:
    """Add `line`, such as an option by which more may go, to a budget that can't be met within the block."""
    try:
        yield
    except InfeasibleError as error:
        if not line:
            raise
        raise InfeasibleError(f"{error}; {line}", error.reachable) from error


def open_student(subject: Traced, student: str, budget: Budget) -> tuple[Traced, Cut, Mapping[str, float]]:
    """A student of the user's own in place of a cut: the network, a receipt, and what it costs.

    student: "file.py:function". Raises `InfeasibleError` where it is larger than the budget.
    """
    own = plugins.network(student)[0]
    if isinstance(subject.model, detectors.Detector):
        own = detectors.adapt(own)
    small = open_traced(own, subject.inputs, prove=False)
    before, after = subject.units().cost(), small.units().cost()
    for measure, limit in budget.absolute(before).items():
        if after[measure] > limit:
            raise InfeasibleError(
                f"{student} has {measure}={after[measure]:g}, more than {budget} allows ({limit:g}): ask for "
                f"{measure}={write_enough(100 * after[measure] / before[measure])}% or more", after[measure],
            )  # fmt: skip
    gone = {"channels": (int(before["channels"] - after["channels"]), int(before["channels"]))}
    return small, Cut(gone, before, after, (f"{student} is a network of its own, trained beside its teacher",)), after
