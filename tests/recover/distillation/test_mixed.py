"""Mixed distillation: three terms, what they compare, and the weights that pruning's residuals give."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from secateur.errors import InputError, UnsupportedError
from secateur.recover.distillation import mixed

X, Y = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1])
BATCH, TOTALS = {"inputs": X, "labels": Y}, {"examples": 5}


def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 3))


def ask(model, inputs):
    return model(inputs)


def loss(student, teacher, taps=("1", "3"), batch=BATCH, **how):
    return mixed.objective(student, teacher, ask, taps, **how)(batch, TOTALS)


def test_the_loss_is_the_sum_of_its_three_formulas():
    student, teacher = net(0), net(1)
    value, parts = loss(student, teacher, factors=(1.0, 10.0, 5.0), temperature=2.0, weights=[0.5, 1.5])
    ours, theirs = student(X), teacher(X).detach()
    hard = functional.cross_entropy(ours, Y)
    soft = 4 * functional.kl_div((ours / 2).log_softmax(-1), (theirs / 2).log_softmax(-1), log_target=True,
                                 reduction="batchmean")  # fmt: skip
    features = [(student[:n](X) - teacher[:n](X)).square().mean() for n in (2, 4)]
    assert torch.isclose(value, hard + 10 * soft + 5 * (0.5 * features[0] + 1.5 * features[1]), atol=1e-5)
    value.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())
    assert parts == pytest.approx(
        {"hard": float(hard), "soft": float(soft), "features": float(0.5 * features[0] + 1.5 * features[1])}, rel=1e-4
    )


def test_labels_are_the_data_s_the_teacher_s_or_none():
    student, teacher = net(0), net(1)
    plain = {"factors": (1.0, 0.0, 0.0)}
    assert torch.isclose(
        loss(student, teacher, labels="teacher", **plain)[0],
        functional.cross_entropy(student(X), teacher(X).argmax(-1)),
    )
    assert loss(student, teacher, labels="none", **plain)[0] == 0
    with pytest.raises(InputError, match="no labels"):
        loss(student, teacher, batch={"inputs": X}, **plain)
    _, parts = loss(student, teacher, batch={"inputs": X}, labels="none")
    assert set(parts) == {"soft", "features"}


def test_images_on_which_both_disagree_count_less():
    student, teacher = net(0), net(1)
    alike = student(X).argmax(-1) == teacher(X).argmax(-1)
    assert 0 < alike.sum() < 5
    each = (student[:2](X) - teacher[:2](X)).square().mean(1) + (student[:4](X) - teacher[:4](X)).square().mean(1)
    plain = {"factors": (0.0, 0.0, 1.0)}
    assert torch.isclose(loss(student, teacher, disagreeing=0.0, **plain)[0], each[alike].sum() / 5, atol=1e-6)
    assert torch.isclose(loss(student, teacher, disagreeing=1.0, **plain)[0], each.sum() / 5, atol=1e-6)


def test_two_halves_of_a_step_add_up_to_the_whole():
    student, teacher = net(0), net(1)
    compute = mixed.objective(student, teacher, ask, ["1"])
    parts = [compute({"inputs": X[a:b], "labels": Y[a:b]}, TOTALS)[0] for a, b in ((0, 2), (2, 5))]
    assert torch.isclose(sum(parts), compute(BATCH, TOTALS)[0], atol=1e-5)


def test_features_of_other_shapes_are_refused_by_name():
    other = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 8), nn.GELU(), nn.Linear(8, 3))
    with pytest.raises(InputError, match="1 gives"):
        loss(other, net(0))


class Answers(nn.Module):
    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0 if kind == "a" else 1)
        self.linear = nn.Linear(6, 12)

    def forward(self, x):
        found = self.linear(x).unflatten(1, (3, 2, 2))
        return {"logits": found, "pred_boxes": found.flatten(1), "hidden_states": (found,)}


def test_maps_of_classes_are_averaged_over_places_and_boxes_compared_by_squares():
    student, teacher = Answers("a"), Answers("b")
    value, _ = mixed.objective(student, teacher, ask, [], labels="none", factors=(1.0, 1.0, 0.0), temperature=1.0)(
        BATCH, TOTALS
    )
    ours, theirs = student(X), teacher(X)
    places = functional.kl_div(ours["logits"].log_softmax(1), theirs["logits"].log_softmax(1), log_target=True,
                               reduction="sum") / (5 * 4)  # fmt: skip
    boxes = (ours["pred_boxes"] - theirs["pred_boxes"]).square().mean()
    assert torch.isclose(value, places + boxes, atol=1e-5)


def test_answers_without_names_are_no_logits():
    logits, others = mixed.answers((torch.zeros(2, 3, 4, 4), [torch.zeros(2, 5)]))
    assert logits == []
    assert [tuple(one.shape) for one in others] == [(2, 3, 4, 4), (2, 5)]
    with pytest.raises(UnsupportedError, match="needs logits"):
        mixed.hard([], [], BATCH, "true")
    with pytest.raises(UnsupportedError, match="returns a str"):
        mixed.answers("logits")
    with pytest.raises(UnsupportedError, match="one class for each"):
        mixed.hard([torch.zeros(5, 4, 3)], [], BATCH, "true")


def test_residuals_are_means_over_all_images_of_any_batches():
    student, teacher = net(0), net(1)
    whole = mixed.residuals(student, teacher, ask, ["1", "3"], [BATCH])
    assert list(whole) == ["1", "3"]
    split = mixed.residuals(student, teacher, ask, ["1", "3"], [{"inputs": X[:2]}, {"inputs": X[2:]}])
    assert split == pytest.approx(whole)
    assert whole["1"] == pytest.approx(float((student[:2](X) - teacher[:2](X)).square().mean()), rel=1e-5)


def test_weights_are_positive_with_mean_one_and_follow_the_residuals():
    found = mixed.importance([0.1, 0.3, 0.0])
    assert sum(found) / 3 == pytest.approx(1.0)
    assert found[1] > found[0] > found[2] > 0
    assert mixed.importance([0.2, 0.6]) == pytest.approx([0.5, 1.5])
    assert mixed.importance([0.0, 0.0]) == [1.0, 1.0]
