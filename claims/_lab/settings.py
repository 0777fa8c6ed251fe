"""Pilot or judged run, and where trained originals and finished seeds are kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from claims import ROOT

__all__ = ["CACHE", "PILOT", "ROWS", "scaled"]

T = TypeVar("T")

PILOT = os.environ.get("PILOT", "") not in ("", "0")
"""A pilot run: few steps, little data, and never the judged split. Its figures are printed and not stored."""

CACHE = Path(os.environ.get("SECATEUR_CLAIMS_CACHE", ROOT / ".cache" / "claims"))
ROWS = ROOT / "docs" / "evidence"


def scaled(judged: T, pilot: T) -> T:
    """The value of a judged run, or the small one of a pilot."""
    return pilot if PILOT else judged
