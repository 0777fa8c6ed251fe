"""Settings of all tests but the claims."""

from __future__ import annotations

import gc
import math

import pytest

from secateur import running


def pytest_configure(config: pytest.Config) -> None:
    """No test asks what the clock says, and each result is timed: the fewest pairs, whatever their spread."""
    if config.getoption("-m") != "claim":
        running.CLOCK.update(lasting=0.0, pairs=6, resolution=math.inf)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported stays to the end: a collection, of which every timing makes one, need not walk through it."""
    gc.collect()
    gc.freeze()
