"""Settings are checked when they are made, and can be written down."""

from __future__ import annotations

import pytest

from secateur.errors import InputError
from secateur.integrations.pruner_settings import PrunerSettings


def test_settings_are_checked_when_they_are_made():
    assert PrunerSettings(budget="words=7").model_dump()["recipe"] == "htmlrag"
    with pytest.raises(InputError, match="does not prune what a model reads"):
        PrunerSettings(recipe="wanda", budget="words=7")
