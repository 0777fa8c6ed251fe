"""The probability of a continuation equals the product of next-token probabilities, however rows are batched."""

import math
from functools import partial

import pytest
import torch

from secateur.errors import DataError, MeasurementError
from secateur.measure import likelihood
from secateur.measure.likelihood import Span
from subjects import tiny

SPANS = [Span((5, 6, 7), (8,)), Span((1,), (2, 3, 4, 9)), Span((5, 6), (7, 8, 10)), Span((3, 3, 3, 3, 3, 3), (1, 2))]


def naive(subject, span):
    """One forward pass for each token of the continuation."""
    ids, total = list(span.prompt), 0.0
    for token in span.continuation:
        batch = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        with torch.no_grad():
            total += float(subject.forward(batch).prediction[0, -1].double().log_softmax(-1)[token])
        ids.append(token)
    return total


@pytest.mark.parametrize("batch", [1, 3, 32])
@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_span_is_the_product_of_its_tokens(name, head, batch):
    subject = tiny.make(name)
    found = likelihood.span_log_probabilities(partial(subject.forward, head=head), SPANS, batch=batch)
    assert found.tolist() == pytest.approx([naive(subject, span) for span in SPANS], abs=1e-4)


def test_each_token_has_its_own():
    subject = tiny.make("llama")
    each = likelihood.log_probabilities(subject.forward, SPANS)
    assert [len(logs) for logs in each] == [1, 4, 3, 2]
    whole = likelihood.span_log_probabilities(subject.forward, SPANS)
    assert [float(logs.sum()) for logs in each] == pytest.approx(whole.tolist())
    assert likelihood.span_log_probabilities(subject.forward, []).shape == (0,)


class Words:
    """A tokenizer that joins "a" and a following "b" into one token, and may close each text."""

    eos_token_id, bos_token_id = 0, None

    def __init__(self, ends=False):
        self.ends = ends

    def __call__(self, text, **options):
        joined = text.replace("ab", "J").replace(" ", "_")
        return {
            "input_ids": [ord(letter) for letter in joined] + [0] * (self.ends and "add_special_tokens" not in options)
        }


def text(ids):
    return "".join(map(chr, ids))


@pytest.mark.parametrize("ends", [False, True])
def test_prompts_and_continuations_meet_at_a_token(ends):
    (plain,) = likelihood.encode(Words(ends), "x y ", ["zw"])
    assert (text(plain.prompt), text(plain.continuation)) == ("x_y", "_zw"), "the blank goes with what follows"
    joined, free = likelihood.encode(Words(ends), "xa", ["bc", "c"])
    assert joined.prompt == free.prompt, "a token over the border must not change the prompt of one of the two"
    assert text(joined.continuation) == "bc"
    (empty,) = likelihood.encode(Words(ends), "", ["q"])
    assert (empty.prompt, text(empty.continuation)) == ((0,), "q")


def test_what_can_not_be_asked_is_said():
    with pytest.raises(DataError, match="holds no token"):
        likelihood.encode(Words(), "x", [""])
    nameless = Words()
    nameless.eos_token_id = None
    with pytest.raises(DataError, match="no token to begin with"):
        likelihood.encode(nameless, "", ["x"])
    with pytest.raises(MeasurementError, match="NaN"):
        likelihood.log_probabilities(lambda batch: torch.full((*batch["input_ids"].shape, 12), math.nan), SPANS)
