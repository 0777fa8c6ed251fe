"""A base and what was made of it, of which one has more tokens than the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import updates_toy as toy
from secateur.subjects.delta.delta import SITE, open_delta
from secateur.vocabulary import Selection


@pytest.mark.parametrize("turned", [False, True], ids=["longer", "shorter"])
def test_tokens_that_only_one_of_the_two_has_are_no_part_of_the_update(tmp_path, turned):
    """A base without the tokens of a chat, and what was trained with them; or a vocabulary cut to its tokenizer's."""
    before, after = toy.folders(tmp_path)
    head, table = "lm_head.weight", toy.FROZEN
    wanted = open_delta(before, after).update(head)
    model = AutoModelForCausalLM.from_pretrained(before if turned else after)
    model.resize_token_embeddings(67)
    with torch.no_grad():
        model.lm_head.weight[64:] = 7.0
    model.save_pretrained(before if turned else after)
    delta = open_delta(before, after)
    assert torch.equal(delta.update(head)[: len(wanted)], wanted)
    assert not delta.update(head)[len(wanted) :].any()
    assert table not in delta.sites
    said = "3 tokens fewer than" if turned else "3 tokens more than"
    assert said in delta.notes[0]
    none, _ = delta.cut(Selection({f"{name}.{SITE}": np.zeros(count, bool) for name, count in delta.sites.items()}))
    none.save(tmp_path / "out")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert torch.equal(found[head][:64], toy.states()[0][head])
    assert found[head].shape[0] == (64 if turned else 67)
    if not turned:
        assert bool((found[head][64:] == 7.0).all())
