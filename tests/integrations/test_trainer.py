"""A callback of transformers' Trainer: at the end the largest changes of each tensor are as before."""

from __future__ import annotations

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from transformers import Trainer, TrainingArguments

import tiny
import updates_toy
from secateur.errors import InputError, UnsupportedError
from secateur.integrations.trainer import IgnoreTopK
from secateur.methods import updates
from secateur.methods.updates import Rule
from secateur.recover.training import lora


@pytest.mark.parametrize("rule", [Rule(0.08), Rule(0.5, scope="global")])
def test_what_is_left_is_what_the_command_leaves_of_two_checkpoints(rule):
    before, after = updates_toy.states()
    model = tiny.model("llama")
    model.load_state_dict(before)
    callback = IgnoreTopK(model, rule)
    model.load_state_dict(after)
    callback.on_train_end(None, None, None, model=model)
    whole = updates_toy.delta()
    small, _ = whole.cut(updates.select(whole, rule))
    for name, one in model.named_parameters():
        assert torch.equal(one, small.tensor(name)), name


def test_a_trainer_ends_with_the_cleaned_model(tmp_path):
    torch.manual_seed(0)
    model = tiny.model("llama")
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    rows = [{"input_ids": torch.arange(4) + row, "labels": torch.arange(4) + row} for row in (0, 1)]
    how = TrainingArguments(str(tmp_path), max_steps=1, learning_rate=1e-2, report_to=[], disable_tqdm=True,
                            use_cpu=True, save_strategy="no")  # fmt: skip
    Trainer(model, how, train_dataset=rows, callbacks=[IgnoreTopK(model)]).train()
    for name, one in model.named_parameters():
        same = int((one == before[name]).sum())
        assert same >= int(0.08 * one.numel()), name
        # Of the embedding, of which a few rows are learnt, all of it is among the largest.
        assert (same < one.numel()) == ("embed" not in name), name


def test_weights_that_can_not_be_compared_are_refused_before_anything_is_learnt(tmp_path):
    model = tiny.model("llama")
    callback = IgnoreTopK(model)
    callback.on_train_begin(None, None, None, model=model)
    steps = []
    model.register_forward_pre_hook(lambda *_: steps.append(1))
    how = TrainingArguments(str(tmp_path), max_steps=1, report_to=[], disable_tqdm=True, use_cpu=True)
    rows = [{"input_ids": torch.arange(4), "labels": torch.arange(4)}] * 2
    trainer = Trainer(model.to(torch.bfloat16), how, train_dataset=rows, callbacks=[callback])
    with pytest.raises(
        UnsupportedError, match=r"is bfloat16 in training, and was float32: .* `secateur run ignore_top"
    ):
        trainer.train()
    assert steps == []


def test_shards_are_no_whole_weights(tmp_path):
    """As FSDP2 has them: of one process, all that a shard lacks is that it is no plain tensor."""
    model = tiny.model("llama")
    callback = IgnoreTopK(model)
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        fully_shard(model)
        with pytest.raises(UnsupportedError, match="is not whole here in training, as where weights are sharded"):
            callback.on_train_begin(None, None, None, model=model)
    finally:
        torch.distributed.destroy_process_group()


def test_factors_and_parts_of_weights_are_refused():
    model = tiny.model("llama")
    callback = IgnoreTopK(model)
    for event in (callback.on_train_begin, callback.on_train_end):
        with pytest.raises(UnsupportedError, match="is not whole here in training"):
            event(None, None, None, model=torch.nn.Linear(2, 2))
    lora.join(model, 2)
    with pytest.raises(UnsupportedError, match=r"is a factor of an update, and not one: .*--with ADAPTER"):
        IgnoreTopK(model)
    with pytest.raises(InputError, match="no weight of the model is trained"):
        IgnoreTopK(model.requires_grad_(False))
