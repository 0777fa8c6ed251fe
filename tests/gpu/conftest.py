"""`make gpu`: what only a real card shows. Without one nothing runs, and one line says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

FIGURES: dict[str, str] = {}
"""What was checked -> what was seen; docs/evidence/gpu.md has them."""
PAGE = Path(__file__).parents[2] / "docs" / "evidence" / "gpu.md"


def pytest_sessionstart(session: pytest.Session) -> None:
    """Leave at once where there is no card."""
    if not torch.cuda.is_available():
        pytest.exit("make gpu: torch sees no CUDA card here, so nothing was checked", returncode=0)


@pytest.fixture
def note() -> Callable[[str, str], None]:
    """Write down a figure for the page."""
    return FIGURES.__setitem__


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the page, if all went well."""
    if exitstatus or not FIGURES:
        return
    card = torch.cuda.get_device_properties(0)
    rows = "\n".join(f"| {name} | {value} |" for name, value in FIGURES.items())
    PAGE.write_text(
        "# On a GPU\n\n"
        f"`make gpu` on one {card.name} ({card.total_memory / 2**30:.0f} GiB), torch {torch.__version__}.\n\n"
        f"| check | seen |\n|---|---|\n{rows}\n"
    )
