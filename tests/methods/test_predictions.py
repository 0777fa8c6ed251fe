"""What a model of texts tells, by its class and its config."""

from __future__ import annotations

import tiny
from secateur.methods import predictions
from secateur.subjects import open_subject


def test_numbers_labels_and_hidden_tokens_are_told_apart():
    models = {
        "causal": tiny.model("llama"), "masked": tiny.model("masked"), "classes": tiny.classifier(),
        "number": tiny.classifier("a"), "numbers": tiny.classifier("ab", problem="regression"),
        "labels": tiny.classifier("ab", problem="multi_label_classification"),
    }  # fmt: skip
    told = {}
    for name, model in models.items():
        subject = open_subject(model, tokenizer=tiny.tokenizer())
        told[name] = [kind for kind in predictions.__all__ if getattr(predictions, kind)(subject)]
    assert told == {
        "causal": [], "masked": ["tells_masked"], "classes": [], "number": ["tells_numbers"],
        "numbers": ["tells_numbers"], "labels": ["tells_labels"],
    }  # fmt: skip
