"""SliceGPT on models of a few thousand parameters."""

from __future__ import annotations

import itertools
import weakref
from types import SimpleNamespace

import pytest
import torch

import tiny
import toys
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.errors import BudgetError, InfeasibleError, InputError, UnsupportedError
from secateur.measure import size
from secateur.measure.quality import perplexity
from secateur.recipes.language import slicegpt
from secateur.runs import keywords
from secateur.subjects import Transformer, open_subject
from secateur.subjects.transformer.rotated import Rotated, fold_norms
from secateur.vocabulary import Budget, Result

QUICK = {"samples": 24, "train_length": 16, "length": 16}
DATA = texts.read(tiny.chains(400))


def toy(folder):
    return toys.language("llama", "params=90%", **QUICK)


def subject(kind: str = "llama") -> Transformer:
    return open_subject(tiny.model(kind), tokenizer=tiny.tokenizer())


def results(root, *budgets, model=None, kind="llama", **options) -> list[Result]:
    how = keywords.check_options(slicegpt.slicegpt, {**QUICK, **options})
    with Run.open(root, {}) as run:
        wanted = [Budget.parse(budget) for budget in budgets]
        return list(slicegpt.slicegpt(model or subject(kind), DATA, wanted, run, **how))


@pytest.mark.parametrize("rotation", ["pca", "none", "random"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_without_slicing_no_logit_changes(kind, rotation):
    start = subject(kind)
    folded = fold_norms(start)
    windows, _ = texts.windows(DATA, start.tokenizer, 8, 16)
    student, shares = slicegpt.rotate(folded, windows, folded.stream, rotation=rotation, seed=0)
    batch = start.example(3, 12)
    with torch.no_grad():
        wanted = start.forward(batch).prediction
        torch.testing.assert_close(student.forward(batch).prediction, wanted, atol=1e-4, rtol=1e-4)
    tables = [one.model.get_input_embeddings().weight for one in (student, folded)]
    assert not torch.equal(*tables)
    assert torch.allclose(shares[:, -1], torch.ones(len(shares), dtype=torch.float64))


def test_directions_without_variance_are_free():
    """States of 40 of 64 dimensions, however they lie in the channels: 40 directions give the same logits."""
    start = subject()
    basis = torch.linalg.qr(torch.randn(64, 40, dtype=torch.float64))[0]
    inside = (basis @ basis.T).float()
    with torch.no_grad():
        base = start.model.model
        base.embed_tokens.weight.copy_(base.embed_tokens.weight @ inside)
        for layer in base.layers:
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                linear.weight.copy_(inside @ linear.weight)
    windows, _ = texts.windows(DATA, start.tokenizer, 24, 16)
    folded = fold_norms(start)
    student, _ = slicegpt.rotate(folded, windows, [40] * len(folded.stream), rotation="pca", seed=0)
    axes, _ = slicegpt.rotate(folded, windows, [40] * len(folded.stream), rotation="none", seed=0)
    batch = start.example(3, 12)
    with torch.no_grad():
        wanted = start.forward(batch).prediction
        torch.testing.assert_close(student.forward(batch).prediction, wanted, atol=1e-3, rtol=1e-3)
        assert (axes.forward(batch).prediction - wanted).abs().max() > 0.1


def test_a_random_rotation_is_that_of_its_seed():
    start = subject()
    folded = fold_norms(start)
    windows, _ = texts.windows(DATA, start.tokenizer, 8, 16)
    tables = [
        slicegpt.rotate(folded, windows, folded.stream, rotation="random", seed=seed)[0].model.get_input_embeddings()
        for seed in (3, 3, 4)
    ]
    first, again, other = (table.weight for table in tables)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)


def test_without_a_rotation_the_channels_of_most_energy_come_first():
    moment = torch.tensor([[1.0, 0.5, 0.0], [0.5, 9.0, 0.0], [0.0, 0.0, 4.0]], dtype=torch.float64)
    variance, basis = slicegpt.components(moment, "none", torch.Generator())
    assert variance.tolist() == [9.0, 4.0, 1.0]
    assert basis.tolist() == [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]


def test_costs_are_those_of_the_batch_that_is_asked_for(tmp_path):
    (found,) = results(tmp_path, "params=90%", batch=4)
    assert found.predicted == found.subject.units(batch=4, length=16).cost()
    assert found.predicted != found.subject.units(batch=1, length=16).cost()


def test_the_states_are_those_of_texts_that_are_not_held_out(tmp_path, monkeypatch):
    seen, real = [], slicegpt.texts.windows
    monkeypatch.setattr(
        slicegpt.texts, "windows", lambda corpus, *rest, **how: seen.append(corpus) or real(corpus, *rest, **how)
    )
    results(tmp_path, "params=90%", seed=2)
    train, held = DATA.split(seed=2)
    assert [corpus.texts for corpus in seen] == [train.texts]
    assert held.texts


def test_slicing_principal_components_loses_less_than_channels_or_random_directions(tmp_path):
    start = toys.language("llama")["subject"]
    held_out = texts.batches(texts.read(tiny.chains(200, 1)), start.tokenizer, packed=True, batch=8, length=16).take(10)
    found = {
        rotation: perplexity(
            results(tmp_path / rotation, "params=90%", model=start, rotation=rotation)[0].subject.forward, held_out
        ).value
        for rotation in ("pca", "none", "random")
    }
    assert found["pca"] < found["none"]
    assert found["pca"] < found["random"]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("widths", ["constant", "variance"])
def test_the_budget_is_met_as_predicted_and_counted(tmp_path, kind, widths):
    start = subject(kind)
    whole = start.units(length=16).cost()
    (found,) = results(tmp_path, "flops=90%", model=start, widths=widths)
    left = found.subject
    assert isinstance(left, Rotated)
    assert found.predicted == left.units(length=16).cost()
    assert found.predicted["params"] == sum(p.numel() for p in left.model.parameters())
    assert found.predicted["flops"] == size.flops(left.model, left.example(1, 16))
    assert found.predicted["flops"] <= 0.9 * whole["flops"]
    assert all(width % 8 == 0 for width in left.stream)
    assert len(set(left.stream)) == 1 or widths == "variance"
    gone, channels = found.cut.removed["channels"]
    assert 0 < gone < channels == start.hidden_size


def test_widths_to_choose_from_grow_at_every_point():
    assert slicegpt.grow([20, 20, 20], 8, None) == [[8] * 3, [16] * 3, [20] * 3]
    held = torch.tensor([[0.5, 0.9, 0.95, 1.0], [0.1, 0.2, 0.3, 1.0], [0.6, 0.8, 0.9, 1.0]])
    ladder = slicegpt.grow([4, 4, 4], 1, held)
    assert ladder[0] == [1, 1, 1]
    assert ladder[-1] == [4, 4, 4]
    assert [2, 4, 2] in ladder, "of which each holds at least 0.8"
    for narrow, wide in itertools.pairwise(ladder):
        assert all(one <= other for one, other in zip(narrow, wide, strict=True))


def test_a_run_resumes_with_the_same_weights_and_the_original_is_untouched(tmp_path, monkeypatch):
    start = subject()
    before = {name: tensor.clone() for name, tensor in start.model.state_dict().items()}
    (first,) = results(tmp_path, "params=90%", model=start)
    monkeypatch.setattr(slicegpt, "rotate", lambda *_, **__: pytest.fail("rotated again"))
    (again,) = results(tmp_path, "params=90%", model=start)
    for name, tensor in first.subject.model.state_dict().items():
        assert torch.equal(tensor, again.subject.model.state_dict()[name])
    assert all(torch.equal(before[name], tensor) for name, tensor in start.model.state_dict().items())


def test_what_is_left_can_be_trained_against_the_original(tmp_path):
    (found,) = results(tmp_path / "a", "params=90%", steps=2, train_batch=4)
    assert found.recovery is not None
    assert found.recovery.steps == 2
    (cut,) = results(tmp_path / "b", "params=90%", steps=2, dry_run=True)
    assert cut.recovery is None
    names = "model.layers.0.attention_shortcut.weight"
    assert not torch.equal(cut.subject.model.state_dict()[names], found.subject.model.state_dict()[names])


def test_training_is_as_it_is_asked_for(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(slicegpt.distillation, "distil", lambda *given, **how: asked.append(how))
    losses = {"task": 0.25, "logit": 0.5, "temperature": 3.0}
    rates = {"lr": 2e-3, "min_lr": 1e-5, "warmup": 0.2, "weight_decay": 0.1}
    loop = {"steps": 7, "train_batch": 4, "train_length": 12, "lr": 2e-3}
    results(tmp_path, "params=90%", seed=3, **losses, **loop, training="min_lr=1e-5,warmup=0.2,weight_decay=0.1")
    (how,) = asked
    assert (how["seed"], how["train_length"]) == (3, 12)
    assert {name: getattr(how["losses"], name) for name in losses} == losses
    assert (how["training"].steps, how["training"].batch) == (7, 4)
    assert {name: getattr(how["training"], name) for name in rates} == rates


def test_a_latency_is_met_on_the_clock(tmp_path, monkeypatch):
    """Here a channel takes 1 ms, beside 10 ms that the table does not know."""

    def interleaved(probes, **_):
        models = {name: probe.func.__self__ for name, probe in probes.items()}
        return {name: SimpleNamespace(value=getattr(model, "stream", [74])[0] * 1e-3) for name, model in models.items()}

    def share(whole, student, *_, **__):
        return (student.stream[0] + 10) / 74

    def make_random(self, widths):
        assert all(model() is None for model in made), "one model of fresh weights is held at a time"
        model = real(self, widths)
        made.append(weakref.ref(model.model))
        return model

    made, real = [], Rotated.make_random
    monkeypatch.setattr(Rotated, "make_random", make_random)
    monkeypatch.setattr(slicegpt.latency, "time_interleaved", interleaved)
    monkeypatch.setattr(slicegpt.timing, "time_share", share)
    (found,) = results(tmp_path / "a", "speedup=1.5x")
    assert len(made) > 4
    assert found.subject.stream == [32] * 9  # of 74 ms, 49 may stay: 39 channels
    assert found.predicted["latency"] == pytest.approx(0.042)
    assert found.predicted["speedup"] == pytest.approx(74 / 42)
    with pytest.raises(UnsupportedError, match="a latency is predicted for one width at all points"):
        results(tmp_path / "b", "speedup=1.5x", widths="variance")


def test_what_cannot_be_is_refused_by_name(tmp_path):
    with pytest.raises(UnsupportedError, match="bert is an encoder: give a dense decoder"):
        results(tmp_path / "a", "params=90%", kind="masked")
    with pytest.raises(
        InfeasibleError, match=r"params=1% can't be met: .*; ask for params=[\d.]+% or more, or a smaller"
    ):
        results(tmp_path / "b", "params=1%", widths="variance")
    assert not (tmp_path / "b" / "work" / "variance.safetensors").exists()
    with pytest.raises(InfeasibleError, match="kv_cache"):
        results(tmp_path / "c", "kv_cache=50%")
    with pytest.raises(InputError, match="token compares states in one basis"):
        results(tmp_path / "d", "params=90%", token=1.0)
    with pytest.raises(BudgetError, match="slicegpt can't meet pattern=2:4: it cuts channels"):
        results(tmp_path / "e", "pattern=2:4")
