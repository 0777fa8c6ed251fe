"""Join the records of several trainings into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from secateur.vocabulary import Recovery

__all__ = ["add_up", "spent", "together"]


def together(*parts: Recovery | None) -> Recovery | None:
    """One record of trainings that followed one another; None if there was none."""
    done = [part for part in parts if part is not None]
    if not done:
        return None
    losses, before = [], 0
    for part in done:
        losses += [(before + step, value) for step, value in part.losses]
        before += part.steps
    settings = {
        f"{number}. {name}": value for number, part in enumerate(done, 1) for name, value in part.settings.items()
    }
    return Recovery(
        steps=before,
        tokens=sum(part.tokens for part in done),
        seconds=sum(part.seconds for part in done),
        flops=sum(part.flops for part in done),
        losses=tuple(losses),
        settings=settings if len(done) > 1 else dict(done[0].settings),
    )


def spent(recovery: Recovery) -> dict[str, float]:
    """What a training took, without its curve."""
    return {"tokens": recovery.tokens, "seconds": recovery.seconds, "flops": recovery.flops}


def add_up(stages: Sequence[Recovery], beside: Sequence[Mapping[str, float]]) -> Recovery:
    """The stages as one record; what was trained `beside` them (candidates, a teacher) counts in what it all took.

    Settings are those of the last stage.
    """
    whole = together(*stages)
    assert whole is not None
    parts = [*map(spent, stages), *beside]
    tokens, seconds, flops = (sum(part[key] for part in parts) for key in ("tokens", "seconds", "flops"))
    return replace(whole, settings=stages[-1].settings, tokens=int(tokens), seconds=seconds, flops=flops)
