"""Join the records of several trainings into one."""

from __future__ import annotations

from secateur.vocabulary import Recovery

__all__ = ["together"]


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
