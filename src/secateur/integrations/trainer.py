"""Ignore-top-k where transformers' Trainer trains: the largest changes of each tensor are taken back when it ends.

    trainer = Trainer(model, arguments, train_dataset=..., callbacks=[IgnoreTopK(model)])
    trainer.train()
    trainer.save_model("cleaned")

"How new data permeates LLM knowledge and how to dilute it" (arXiv 2504.09522); of two checkpoints the same is
`secateur run ignore_top_k`.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from secateur.errors import InputError, UnsupportedError
from secateur.methods import updates
from secateur.methods.updates import Rule
from secateur.subjects.delta.delta import Delta
from secateur.subjects.delta.tensors import InMemory

__all__ = ["IgnoreTopK"]


class IgnoreTopK(TrainerCallback):
    """Keeps a copy of the weights as they are now, on the CPU, and leaves at the end of training what a rule leaves.

    model: what the Trainer trains, before it does; a run that goes on from a checkpoint needs the original here, too.
    rule: what goes; the largest 8 % of each tensor by default. The best checkpoint, where it is loaded at the end, is
    what is cleaned; checkpoints that are written meanwhile hold the whole update.

    Raises `UnsupportedError` for LoRA's factors, of which the update is a product (merge them and use `secateur run
    ignore_top_k`), and before the first step for weights that are not whole in this process, or of another number type
    than they had.
    """

    def __init__(self, model: nn.Module, rule: Rule | None = None) -> None:
        self.rule = rule or Rule(0.08)
        learnt = {name: one for name, one in model.named_parameters() if one.requires_grad}
        if not learnt:
            raise InputError("no weight of the model is trained: give the model that the Trainer trains")
        factor = next((name for name in learnt if "lora_" in name), None)
        if factor is not None:
            raise UnsupportedError(
                f"{factor} is a factor of an update, and not one: train without this callback, and run `secateur run "
                "ignore_top_k BASE --with ADAPTER`, which merges it first"
            )
        self.before = {name: one.detach().to("cpu", copy=True) for name, one in learnt.items()}

    def on_train_begin(self, args: object, state: object, control: object, model: nn.Module, **others: object) -> None:
        """Refuse, before anything is learnt, what can't be compared when it ends."""
        self._find_trained(model)

    @torch.no_grad()
    def on_train_end(self, args: object, state: object, control: object, model: nn.Module, **others: object) -> None:
        """Take back what the rule drops; bit for bit all else stays as it was trained."""
        after = self._find_trained(model)
        update = Delta(InMemory(self.before), InMemory(after))
        small, _ = update.cut(updates.select(update, self.rule))
        for name, weight in after.items():
            weight.copy_(small.tensor(name))

    def _find_trained(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The weights that are trained, each whole and in the number type that it had."""
        found = {name: one for name, one in model.named_parameters() if name in self.before}
        advice = "train without this callback, save the model and run `secateur run ignore_top_k BEFORE --with AFTER`"
        for name, before in self.before.items():
            now = found.get(name)
            # DeepSpeed leaves empty tensors where its shards are, from the start
            if now is None or now.shape != before.shape or not now.numel() or isinstance(now, DTensor):
                raise UnsupportedError(f"{name} is not whole here in training, as where weights are sharded: {advice}")
            if now.dtype != before.dtype:
                kinds = [str(one.dtype).removeprefix("torch.") for one in (now, before)]
                raise UnsupportedError(f"{name} is {kinds[0]} in training, and was {kinds[1]}: {advice}")
        return found
