"""The backend of updates: two checkpoints in, a checkpoint out, judged as language models are."""

from __future__ import annotations

import pytest

import tiny
import updates_toy as toy
from secateur.errors import InputError
from secateur.runs import backends
from secateur.runs.backends.delta import Deltas
from secateur.subjects.delta.delta import open_delta


def test_figures_are_counted_on_the_update_and_quality_is_that_of_the_models(tmp_path):
    backend, (before, after) = Deltas(), toy.folders(tmp_path)
    delta = backend.open(backend.open_pair(before, after))
    assert backends.of_source(delta).family == "updates of models"
    place = backend.environment(delta, 2, 16, None)
    assert backend.sizes(delta, None)["update"].value == sum(delta.sites.values())
    corpus = backend.fit_data(backend.read(tiny.chains(30)), delta)
    ours, theirs, both = backend.compare(delta, delta, corpus, place)
    assert ours["perplexity"].value == theirs["perplexity"].value > 1
    assert both["label_loyalty"].value == 1
    again = open_delta(before, after)
    assert backend.digest(delta) == backend.digest(again)
    assert backend.digest(delta) != backend.digest(open_delta(after, before))


def test_one_model_alone_is_no_update(tmp_path):
    with pytest.raises(
        InputError, match=r"before is one model, and an update is of two: give the trained one by --with"
    ):
        Deltas().open(tmp_path / "before")
    with pytest.raises(InputError, match="a Delta is no model before or after training"):
        Deltas().open_pair(toy.delta(), tmp_path)
