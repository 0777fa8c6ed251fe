"""Directions of behaviours, and gradients along them, against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

import tiny
from secateur.errors import DataError, InputError
from secateur.score import steering
from secateur.score.steering import Marked
from secateur.subjects import open_subject

MODULES = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]


@pytest.fixture(scope="module")
def subject():
    return open_subject(tiny.model("llama"), tokenizer=tiny.tokenizer())


@pytest.fixture(scope="module")
def texts():
    draw = torch.Generator().manual_seed(0)
    tokens = [torch.randint(7, 60, (20,), generator=draw) for _ in range(3)]
    spans = [{"a": [(8, 12)], "b": [(15, 18)]}, {"a": [(2, 4), (10, 20)]}, {}]
    return [Marked(one, own) for one, own in zip(tokens, spans, strict=True)]


def outputs(subject, module, text):
    rows = []
    handle = subject.model.get_submodule(module).register_forward_hook(lambda *given: rows.append(given[2][0].detach()))
    subject.forward({"input_ids": text.tokens[None], "attention_mask": torch.ones(1, len(text.tokens))})
    handle.remove()
    return rows[0]


def test_a_direction_is_a_difference_of_means_as_long_as_the_mean_output(subject, texts):
    found = steering.steering_vectors(subject.forward, subject.model, MODULES, texts)
    assert set(found) == {"a", "b"}
    for module in MODULES:
        rows = [outputs(subject, module, text) for text in texts]
        mean = torch.cat(rows).mean(0)
        of_a = torch.stack([rows[0][3:12].mean(0), rows[1][[*range(4), *range(5, 20)]].mean(0)]).mean(0)
        u = of_a - torch.stack([one.mean(0) for one in rows]).mean(0)
        torch.testing.assert_close(found["a"][module], u * mean.norm() / u.norm(), rtol=1e-3, atol=1e-5)
        for own in found.values():
            assert float(own[module].norm()) == pytest.approx(float(mean.norm()), rel=1e-4)
        assert not torch.equal(found["a"][module], found["b"][module]), "each behaviour has a buffer of its own"
    drawn = steering.random_vectors(found)
    assert float(drawn["a"][MODULES[0]].norm()) == pytest.approx(float(found["a"][MODULES[0]].norm()), rel=1e-4)
    assert torch.equal(steering.random_vectors(found)["a"][MODULES[0]], drawn["a"][MODULES[0]])


def test_gradients_are_those_of_the_span_alone_and_leave_the_model_as_it_was(subject, texts):
    text = texts[0]
    batch = {"input_ids": text.tokens[None], "attention_mask": torch.ones(1, len(text.tokens))}
    before = subject.forward(batch).prediction.detach()
    asking = [parameter.requires_grad for parameter in subject.model.parameters()]
    found = dict(steering.span_gradients(subject.forward, subject.model, MODULES, text))
    assert torch.equal(subject.forward(batch).prediction, before)
    assert [parameter.requires_grad for parameter in subject.model.parameters()] == asking
    assert all(parameter.grad is None for parameter in subject.model.parameters())
    assert not any(module._forward_hooks for module in subject.model.modules())
    step = 1e-2
    direction = found["a"][MODULES[1]] / found["a"][MODULES[1]].norm()

    def loss(amount):
        def add(_module, _given, output):
            output = output.clone()
            output[0, 8:12] += amount * direction / 4
            return output

        handle = subject.model.get_submodule(MODULES[1]).register_forward_hook(add)
        logits = subject.forward({"input_ids": text.tokens[None, :12], "attention_mask": torch.ones(1, 12)}).prediction
        handle.remove()
        return float(functional.cross_entropy(logits[0, 7:11], text.tokens[8:12]))

    with torch.no_grad():
        slope = (loss(step) - loss(-step)) / (2 * step)
    assert slope == pytest.approx(float(found["a"][MODULES[1]].norm()), rel=0.02)


def test_a_span_of_one_token_has_the_gradient_at_the_token_that_foretells_it(subject, texts):
    tokens = texts[0].tokens
    one, two = (steering.Marked(tokens, {"a": [(8, end)]}) for end in (9, 10))
    (_, single), (_, double) = (
        next(steering.span_gradients(subject.forward, subject.model, MODULES, text)) for text in (one, two)
    )
    assert all(float(gradient.norm()) > 0 for gradient in (*single.values(), *double.values()))


def test_shares_sum_to_one():
    assert steering.relative({"a": 1.0, "b": 3.0}) == {"a": 0.25, "b": 0.75}
    assert steering.relative({"a": 0.0, "b": 0.0}) == {"a": 0.5, "b": 0.5}


def test_texts_without_behaviours_and_modules_that_are_none_are_said(subject, texts):
    with pytest.raises(DataError, match="no text shows any of the behaviours"):
        steering.steering_vectors(subject.forward, subject.model, MODULES, [texts[2]])
    with pytest.raises(InputError, match=r"no module 'model\.nothing'"):
        steering.steering_vectors(subject.forward, subject.model, ["model.nothing"], texts)
