"""Settings are checked when they are made, and can be written down."""

from __future__ import annotations

import warnings
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from secateur.errors import InputError
from secateur.integrations.pruner_settings import PrunerSettings, priors_of


def test_settings_are_checked_when_they_are_made():
    assert PrunerSettings(budget="words=7").model_dump()["recipe"] == "htmlrag"
    with pytest.raises(InputError, match="does not prune what a model reads"):
        PrunerSettings(recipe="wanda", budget="words=7")


@pytest.mark.parametrize(
    "half",
    [0.5, Fraction(1, 2), Decimal("0.5"), np.float16(0.5), np.float32(0.5), np.array(0.5), torch.tensor(0.5)],
    ids=lambda half: type(half).__name__,
)
def test_scores_of_a_retriever_are_numbers_of_any_kind(half):
    assert priors_of([{"s": half}, {"s": np.int64(2)}, {}, None], "s", strict=True) == [0.5, 2.0, None, None]


@pytest.mark.parametrize(
    ("rows", "hint"),
    [
        ([{"score": 1.0, "page": 2}], "did you mean 'score'"),
        ([{"page": 2}, None], "they have page"),
        ([None], "they have no metadata"),
        ([{"scroe": "0.5", "score": 1}, {"scroe": np.ones(2)}], "it holds str, and scores are numbers"),
    ],
)
def test_a_field_without_any_number_is_told_of(rows, hint):
    with pytest.warns(UserWarning, match=f"prior='scroe': no document has a number there: {hint}"):
        assert priors_of(rows, "scroe") == [None] * len(rows)
    with pytest.raises(InputError, match=hint):
        priors_of(rows, "scroe", strict=True)


def test_no_documents_and_a_retriever_without_scores_are_no_mistake():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert priors_of([], "s") == []
        assert priors_of([{"s": None}, {}], "s") == [None, None]
        assert priors_of([{}], "") is None
