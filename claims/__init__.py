"""Experiments: what each published system claims, asked of real data. One file per system; `make claims` runs them.

A claim is a function from a seed to figures, under a card that says what is asked, of what, against what, and by how
much (`claims._lab.claim`). Its row in docs/evidence holds the figures and the verdict.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Real data and small models are fetched and built by helpers that the tests use as well.
if str(ROOT / "tests") not in sys.path:
    sys.path.insert(0, str(ROOT / "tests"))
