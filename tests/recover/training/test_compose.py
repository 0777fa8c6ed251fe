"""A sum of terms: weights, warm-ups, balance, and that a silent term leaves no trace."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from secateur.data.batches import Numbered
from secateur.errors import InputError
from secateur.recover.distillation import losses
from secateur.recover.training.compose import Term, balance, compose, sum_layers
from secateur.recover.training.loop import train

TOTALS = {"examples": 4, "tokens": 8}


def looks(batch):
    looks.count += 1
    return batch["x"]


def objective(*terms, **how):
    looks.count = 0
    return compose([Term(**{"loss": lambda x, _: x.sum(), **term}) for term in terms], looks, **how)


def batch(done=None):
    x = torch.arange(4.0, requires_grad=True)
    return {"x": x, **({} if done is None else {"done": done})}


def test_terms_are_weighed_divided_and_reported_by_name():
    one = {"name": "one", "weight": 2.0}
    two = {"name": "two", "weight": 0.5, "per": "tokens", "loss": lambda x, _: x.square().sum()}
    total, parts = objective(one, two)(batch(), TOTALS)
    assert parts == {"one": 6 / 4, "two": 14 / 8}
    assert total.item() == pytest.approx(2 * 6 / 4 + 0.5 * 14 / 8)
    assert looks.count == 1, "one look for all terms"


@pytest.mark.parametrize(("warmup", "steps"), [(0.25, 0), (25, 100)])
@pytest.mark.parametrize(("done", "share"), [(0.0, 0.0), (0.05, 0.2), (0.2, 0.8), (0.25, 1.0), (0.9, 1.0)])
def test_a_warmup_is_a_share_or_steps_and_only_of_its_term(warmup, steps, done, share):
    found = objective({"name": "nd"}, {"name": "kd", "weight": 3.0, "warmup": warmup}, steps=steps)
    total, parts = found(batch(done), TOTALS)
    assert total.item() == pytest.approx(6 / 4 * (1 + 3 * share))
    assert ("kd" in parts) == (share > 0)


def test_stairs_are_epochs_counted_from_zero():
    found = objective({"name": "nd"}, {"name": "kd", "warmup": 0.4}, stairs=10)
    steps = 70
    weights = [found(batch(i / steps), TOTALS)[0].item() / 1.5 - 1 for i in range(steps)]
    wanted = [min(1.0, epoch / 4) for epoch in range(10) for _ in range(7)]
    assert weights == pytest.approx(wanted, abs=1e-6), "the first epoch has none of it, and each has one weight"


def test_a_term_in_balance_is_as_large_as_the_other_and_moves_with_its_own_gradient():
    given = batch()
    like = {"name": "like", "weight": 0.5, "like": "one", "loss": lambda x, _: 100 * x.square().sum()}
    total, parts = objective({"name": "one"}, like)(given, TOTALS)
    assert total.item() == pytest.approx(1.5 * parts["one"])
    (gradient,) = torch.autograd.grad(total, given["x"])
    alpha = parts["one"] / parts["like"]
    torch.testing.assert_close(gradient, 0.25 + 0.5 * alpha * 100 * 2 * given["x"].detach() / 4)


def test_what_a_silent_term_is_like_leaves_its_own_weight():
    like = {"name": "like", "like": "late", "loss": lambda x, _: 10 * x.sum()}
    late = {"name": "late", "warmup": 0.5}
    total, _ = objective({"name": "one"}, late, like)(batch(0.0), TOTALS)
    assert total.item() == pytest.approx(1.5 + 15)


def test_layers_have_weights_of_their_own():
    ours, theirs = [torch.randn(3, 2) for _ in range(3)], [torch.randn(3, 2) for _ in range(3)]
    each = [losses.mse(a, b).item() for a, b in zip(ours, theirs, strict=True)]
    assert sum_layers(losses.mse)(ours, theirs).item() == pytest.approx(sum(each), rel=1e-5)
    weighted = sum_layers(losses.mse, [1.0, 0.5, 0.0])(ours, theirs).item()
    assert weighted == pytest.approx(each[0] + 0.5 * each[1], rel=1e-5)
    for wrong in ((ours[:2], theirs), ([], [])):
        with pytest.raises(InputError, match="equally many"):
            sum_layers(losses.mse)(*wrong)
    with pytest.raises(InputError, match="2 weights"):
        sum_layers(losses.mse, [1.0, 2.0])(ours, theirs)


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ([{"name": "a"}, {"name": "a"}], "two terms are called 'a'"),
        ([{"name": "a", "like": "b"}, {"name": "b"}], "'b', which does not stand before it"),
        ([{"name": "a", "weight": -1.0}], "weight=-1"),
        ([{"name": "a", "weight": float("nan")}], "weight=nan"),
        ([{"name": "a"}, {"name": "b", "warmup": 20}], "give compose the steps"),
        ([{"name": "a", "weight": 0.0}], "no term is active"),
        ([{"name": "a", "warmup": 0.5}], "no term is active"),
    ],
)
def test_terms_that_make_no_sense_are_refused(terms, said):
    with pytest.raises(InputError, match=said):
        objective(*terms)


def test_a_warmup_needs_numbered_batches():
    with pytest.raises(InputError, match=r"batches\.Numbered"):
        objective({"name": "a"}, {"name": "b", "warmup": 0.5})(batch(), TOTALS)


def test_a_term_of_weight_zero_changes_no_bit_of_a_training():
    def trained(*more):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        data = [{"inputs": torch.rand(8, 4), "labels": torch.randint(0, 3, (8,))} for _ in range(3)]
        first = Term("labels", lambda logits, part: losses.cross_entropy(logits, part["labels"]))
        noise = Term("noise", lambda logits, _: (torch.rand_like(logits) * logits).sum(), weight=0.0)
        found = compose([*([noise] if more else []), first], lambda part: net(part["inputs"]))
        count = {"count": lambda part: {"examples": len(part["inputs"])}}
        train(net, data, found, steps=5, lr=0.1, progress=False, **count)
        return net.state_dict()

    for name, tensor in trained().items():
        assert torch.equal(tensor, trained("noise")[name])


def test_a_training_in_two_micro_batches_is_one_of_both():
    def trained(accumulate):
        torch.manual_seed(0)
        net, x = nn.Linear(4, 1), torch.rand(16, 4, generator=torch.Generator().manual_seed(1))
        size = 8 // accumulate
        parts = Numbered([{"inputs": one} for one in x.split(size)] * 2, 4 * accumulate)
        terms = [
            Term("size", lambda y, _: y.square().sum()),
            Term("mean", lambda y, _: y.sum(), weight=2.0, warmup=0.9),
        ]
        look = partial(lambda net, part: net(part["inputs"]), net)
        count = {"count": lambda part: {"examples": len(part["inputs"])}}
        stairs = {"stairs": 4}
        train(
            net, parts, compose(terms, look, **stairs), steps=4, lr=0.1, accumulate=accumulate, progress=False, **count
        )
        return net.weight.detach()

    torch.testing.assert_close(trained(1), trained(2))


def test_a_balance_makes_both_losses_equal_and_carries_no_gradient():
    logit, hidden = torch.tensor(6.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    alpha = balance(logit, hidden)
    assert alpha == 3
    (logit + alpha * hidden).backward()
    assert (logit.grad, hidden.grad) == (1, 3)
    assert balance(torch.tensor(1.0), torch.tensor(0.0)) == 0
    assert balance(torch.tensor(torch.nan), torch.tensor(1.0)).isnan()
    assert balance(torch.tensor(1.0), torch.tensor(torch.nan)).isnan()
