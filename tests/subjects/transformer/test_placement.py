"""Where the layers of a cut lie whose original is split over devices; recipes are in tests/test_second_device.py."""

from __future__ import annotations

import numpy as np
import torch
from accelerate import dispatch_model

import second_device
import tiny
from secateur.subjects import open_subject
from secateur.vocabulary import Selection

CARD = second_device.DEVICE


def test_layers_that_stay_stay_where_they_were() -> None:
    with second_device.present():
        whole = tiny.model("llama")
        plain = open_subject(whole)
        rest = {"model.embed_tokens": CARD, "model.rotary_emb": CARD, "model.norm": "cpu", "lm_head": "cpu"}
        places = {f"model.layers.{number}": place for number, place in enumerate((CARD, "cpu", CARD, "cpu"))}
        split = dispatch_model(tiny.model("llama"), rest | places, main_device="cpu", force_hooks=True)
        keep = Selection({"layers": np.array([False, True, True, True])})
        small, expected = (subject.cut(keep)[0] for subject in (open_subject(split), plain))
        there = [next(layer.parameters()).device.type for layer in small.model.model.layers]
        assert there == ["cpu", second_device.NAME, "cpu"]
        assert small.model.hf_device_map["model.layers.1"] == CARD
        assert small.model.model.embed_tokens.weight.device.type == second_device.NAME
        batch = expected.example(2, 6)
        torch.testing.assert_close(small.forward(batch).prediction, expected.forward(batch).prediction)
        states = small.forward(batch, hidden=True).hidden
        assert {state.device.type for state in states} == {"cpu"}, "brought together, to be compared"
        lower = plain.cut(Selection({"layers": np.array([True, False, False, False])}))[0]
        alone = open_subject(split).cut(Selection({"layers": np.array([True, False, False, False])}))[0]
        torch.testing.assert_close(alone.forward(batch).prediction, lower.forward(batch).prediction)
