"""Settings of all tests but the claims."""

from __future__ import annotations

import math

import pytest

from secateur import running


def pytest_configure(config: pytest.Config) -> None:
    """No test asks what the clock says, and each result is timed: the fewest pairs, whatever their spread."""
    if config.getoption("-m") != "claim":
        running.CLOCK.update(lasting=0.0, pairs=6, resolution=math.inf)
