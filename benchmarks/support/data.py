"""Real data and models by package name: the fetchers of the tests, which are no part of the package."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tests"))

from assets import packages

__all__ = ["packages"]
