"""Masked batches: how many, which, and always the same ones; on a real tokenizer and real batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tiny
from secateur.data import masking, texts
from secateur.errors import DataError, InputError

TOKENIZER = tiny.tokenizer()
BATCHES = texts.batches(texts.read(tiny.sentences(200)), TOKENIZER, packed=False, batch=8, length=16, seed=3)


def masked(**options) -> masking.Masked:
    return masking.Masked(BATCHES, TOKENIZER, **options)


def chosen(batch):
    return batch["labels"] != masking.IGNORED


def test_a_share_of_the_words_is_chosen_and_padding_and_special_tokens_never():
    seen = set()
    for index in range(2 * len(BATCHES)):
        plain, batch = BATCHES[index], masked()[index]
        words = (plain["attention_mask"] > 0) & (plain["input_ids"] > 6)
        assert int(chosen(batch).sum()) == np.ceil(0.15 * int(words.sum()))
        assert not (chosen(batch) & ~words).any()
        assert torch.equal(batch["labels"][chosen(batch)], plain["input_ids"][chosen(batch)])
        assert torch.equal(batch["input_ids"][~chosen(batch)], plain["input_ids"][~chosen(batch)])
        assert torch.equal(batch["attention_mask"], plain["attention_mask"])
        seen |= set(batch["input_ids"][chosen(batch)].tolist())
    assert seen - {TOKENIZER.mask_token_id} <= set(range(7, len(TOKENIZER)))


def test_of_ten_chosen_eight_are_hidden_one_is_another_and_one_stays():
    hidden = other = count = 0
    for index in range(200):
        batch = masked(share=0.5)[index]
        now, true = batch["input_ids"][chosen(batch)], batch["labels"][chosen(batch)]
        hidden += int((now == TOKENIZER.mask_token_id).sum())
        other += int(((now != TOKENIZER.mask_token_id) & (now != true)).sum())
        count += len(now)
    assert hidden / count == pytest.approx(0.8, abs=0.02)
    assert other / count == pytest.approx(0.1 * (1 - 1 / len(tiny.WORDS)), abs=0.015)


def test_a_batch_is_a_function_of_seed_and_number_and_masks_each_epoch_anew():
    one, again = masked(seed=5), masked(seed=5)
    _ = [one[index] for index in (9, 2)]
    assert all(torch.equal(one[4][name], again[4][name]) for name in one[4])
    assert not torch.equal(one[4]["labels"], masked(seed=6)[4]["labels"])
    rows = [masking.Masked([BATCHES[0]] * 2, TOKENIZER)[index]["labels"] for index in (0, 1)]
    assert not torch.equal(*rows)
    assert len(one) == len(BATCHES) == len(list(one))
    assert torch.equal(one.take(3)[2]["labels"], one[2]["labels"])


def test_what_is_held_out_is_masked_alike_whenever_it_is_looked_at():
    rest, held = masked().hold_out(0.2)
    assert len(rest) < len(masked())
    assert not {*rest.rows(0)} & {*held.rows(0)}
    assert all(torch.equal(one["labels"], again["labels"]) for one, again in zip(held, held, strict=True))


def test_smoothing_chooses_rare_tokens_more_often():
    ids = torch.tensor([[7] * 90 + [8] * 10])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    weights = masking.rare_first(ids.numpy().ravel(), len(TOKENIZER))
    assert weights[7] == pytest.approx(90**-0.7)
    assert weights[9] == 1.0
    rare = {
        name: np.mean(
            [(found["labels"] == 8).sum().item() for found in masking.Masked([batch] * 300, TOKENIZER, **how)]
        )
        for name, how in {"plain": {}, "smoothed": {"weights": weights}}.items()
    }
    assert rare["plain"] == pytest.approx(1.5, abs=0.2)
    assert rare["smoothed"] > 2 * rare["plain"]


def test_one_token_is_chosen_of_the_shortest_batch():
    short = {"input_ids": torch.tensor([[2, 9, 3, 0]]), "attention_mask": torch.tensor([[1, 1, 1, 0]])}
    assert masking.Masked([short], TOKENIZER)[0]["labels"].tolist() == [[-100, 9, -100, -100]]


def test_what_can_not_be_masked_is_refused_in_a_line():
    empty = {"input_ids": torch.tensor([[2, 3, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    with pytest.raises(DataError, match="batch 0 has no token that could be masked"):
        masking.Masked([empty], TOKENIZER)[0]
    with pytest.raises(InputError, match="no mask token"):
        masking.Masked([empty], tiny.letters())
    for wrong in ({"share": 0.0}, {"hidden": 0.9, "random": 0.2}, {"random": -0.1}):
        with pytest.raises(InputError, match="give shares from 0 to 1"):
            masked(**wrong)
    with pytest.raises(InputError, match="a number above 0 for each of"):
        masked(weights=np.zeros(len(TOKENIZER)))
    with pytest.raises(InputError, match="at least 0"):
        masking.rare_first(np.array([1]), 3, power=-1.0)
