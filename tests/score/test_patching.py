"""Formulas of path patching, and gradients of heads."""

from __future__ import annotations

import pytest
import torch

import tiny
from secateur.errors import InputError
from secateur.score import patching
from secateur.subjects import open_subject
from secateur.subjects.transformer.heads import find_outputs, silence_heads


def test_each_head_is_patched_alone():
    clean, corrupted = torch.zeros(2, 6), torch.arange(12.0).reshape(2, 6) + 1
    found = patching.patch_each(clean, corrupted, 2)
    assert found.shape == (3, 2, 6)
    for head in range(3):
        own = slice(2 * head, 2 * head + 2)
        assert torch.equal(found[head][:, own], corrupted[:, own])
        assert found[head].count_nonzero() == 4
    assert torch.equal(patching.patch_each(clean, clean, 2), clean.expand(3, 2, 6))
    for other, block in ((corrupted[:1], 2), (corrupted, 4)):
        with pytest.raises(InputError, match="a whole number of heads wide"):
            patching.patch_each(clean, other, block)


def test_changes_and_preferences_by_hand():
    """P(memory) halves and P(context) doubles: dM = -0.5, dC = 1, S = 1.5; in logarithms 2 ln 2."""
    clean = torch.tensor([[0.4, 0.2], [0.4, 0.2]]).log()
    patched = torch.tensor([[[0.2, 0.4], [0.2, 0.4]], [[0.4, 0.2], [0.4, 0.2]]]).log()
    memory, context = (patching.relative_change(patched[..., side], clean[:, side]) for side in (0, 1))
    torch.testing.assert_close(memory[0], torch.tensor([-0.5, -0.5], dtype=torch.float64))
    torch.testing.assert_close(patching.preference(memory, context), torch.tensor([1.5, 0.0], dtype=torch.float64))
    both = patching.logit_preference(patched, clean)
    torch.testing.assert_close(both, torch.tensor([2 * 0.6931471805599453, 0.0], dtype=torch.float64))
    turned = patching.logit_preference(patched.flip(-1), clean.flip(-1))
    torch.testing.assert_close(turned, -both)
    torch.testing.assert_close(patching.preference(context, memory), torch.tensor([-1.5, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_gradient_is_what_a_little_less_of_a_head_changes(kind):
    """sum z dL/dz = -dL/dt of z (1 - t): compared with a finite difference, prompt by prompt; signs do not cancel."""
    subject = open_subject(tiny.uneven(tiny.model(kind)), tokenizer=tiny.tokenizer())
    tokens = torch.randint(8, 60, (2, 6), generator=torch.Generator().manual_seed(0))
    places = find_outputs(subject)
    consumers = {f"layers.{layer}.heads": consumer for layer, (consumer, _) in places.items()}

    def lose(batch):
        return -subject.model(input_ids=batch).logits[:, -1].log_softmax(-1)[:, 9]

    subject.model.requires_grad_(False)  # as a frozen model has it
    found = patching.gradient_importance(lose, subject.model, [tokens, tokens], consumers)
    assert {name: len(row) for name, row in found.items()} == {f"layers.{at}.heads": n for at, (_, n) in places.items()}
    consumer = places[1][0]
    module, small = subject.model.get_submodule(consumer.module), 1e-2
    part = slice(2 * consumer.block, 3 * consumer.block)

    def scaled(factor):
        def scale(_, args):
            z = args[0].clone()
            z[..., part] *= factor
            return (z,)

        handle = module.register_forward_pre_hook(scale)
        with torch.no_grad():
            value = lose(tokens).double()
        handle.remove()
        return value

    slope = (scaled(1 + small) - scaled(1 - small)) / (2 * small)
    assert float(found["layers.1.heads"][2]) == pytest.approx(float(slope.abs().mean()), rel=0.05)

    def lose_apart(batch):
        return lose(batch) * torch.tensor([1.0, -1.0])  # the same two prompts with opposite slopes

    for loss in (lose, lose_apart):
        opposite = patching.gradient_importance(loss, subject.model, [tokens], consumers)
        torch.testing.assert_close(opposite["layers.1.heads"], found["layers.1.heads"])
    single = torch.stack([
        patching.gradient_importance(lose, subject.model, [row[None]], consumers)["layers.1.heads"] for row in tokens
    ])  # fmt: skip
    torch.testing.assert_close(single.mean(0), found["layers.1.heads"])
    with silence_heads(subject, [(1, 2)]):
        assert patching.gradient_importance(lose, subject.model, [tokens], consumers)["layers.0.heads"].isfinite().all()
