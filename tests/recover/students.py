"""Tiny real models and batches, shared by the tests of this folder and by the processes they start."""

from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from secateur.recover.distillation import losses

VOCABULARY = 64


def llama(seed=0, vocabulary=VOCABULARY, dropout=0.0, width=32):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attention_dropout=dropout,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def bert(seed=0, dropout=0.1):
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertModel(config, add_pooling_layer=False).eval()


class Batches:
    """batches[i] for any i >= 0: sequences of different lengths, padded."""

    def __init__(self, batch=2, length=12, seed=0):
        self.batch, self.length, self.seed = batch, length, seed

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(1000 * self.seed + index)
        ids = torch.randint(1, VOCABULARY, (self.batch, self.length), generator=generator)
        lengths = torch.randint(3, self.length + 1, (self.batch,), generator=generator)
        mask = (torch.arange(self.length)[None] < lengths[:, None]).long()
        return {"input_ids": ids * mask, "attention_mask": mask}


def forward(model, softcap=None):
    """A tiny Llama as the objective sees it; its head may be left out."""

    def ask(batch, *, hidden=False, head=True):
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        if not head:
            states = model.model(**inputs).last_hidden_state
            return SimpleNamespace(prediction=states, hidden=(), causal=True, head=model.lm_head, softcap=softcap)
        out = model(**inputs, output_hidden_states=hidden)
        logits = out.logits if softcap is None else torch.tanh(out.logits / softcap) * softcap
        return SimpleNamespace(prediction=logits, hidden=out.hidden_states or (), causal=True, head=None)

    return ask


def logit_objective(student, teacher):
    def objective(batch, totals):
        with torch.no_grad():
            target = teacher(**batch).logits
        loss = losses.kl(student(**batch).logits, target, batch["attention_mask"]) / totals["tokens"]
        return loss, {"kl": float(loss.detach())}

    return objective


def token_objective(student, teacher):
    def objective(batch, totals):
        with torch.no_grad():
            target = teacher(**batch).last_hidden_state
        ours = student(**batch).last_hidden_state
        return losses.token(ours, target, batch["attention_mask"]) / totals["tokens"], {}

    return objective


class Largest(TorchDispatchMode):
    """Notes the most elements of any float32 tensor made meanwhile, views left out, backward passes included."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        found = function(*arguments, **(options or {}))
        given, made = (
            [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)] for tree in (arguments, found)
        )
        there = {leaf.untyped_storage().data_ptr() for leaf in given}
        new = [leaf for leaf in made if leaf.dtype == torch.float32 and leaf.untyped_storage().data_ptr() not in there]
        self.elements = max([self.elements, *(tensor.numel() for tensor in new)])
        return found
