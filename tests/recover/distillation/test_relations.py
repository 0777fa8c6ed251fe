"""Correlations, contrasts and rankings against NumPy and loops, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from secateur.errors import InputError
from secateur.recover.distillation import relations


@pytest.fixture
def both():
    torch.manual_seed(0)
    return torch.randn(6, 5, requires_grad=True), torch.randn(6, 5)


def softmax(x, temperature):
    e = np.exp(x.detach().double().numpy() / temperature)
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize(("inter", "intra"), [(1.0, 1.0), (2.0, 0.0), (0.0, 3.0)])
def test_correlation_is_one_minus_pearson_of_rows_and_columns(both, inter, intra):
    student, teacher = both
    s, t = (softmax(one, 4.0) for one in both)
    rows = sum(1 - np.corrcoef(a, b)[0, 1] for a, b in zip(s, t, strict=True))
    columns = sum(1 - np.corrcoef(a, b)[0, 1] for a, b in zip(s.T, t.T, strict=True))
    ours = relations.correlation(student, teacher, temperature=4.0, inter=inter, intra=intra)
    assert ours.item() == pytest.approx(inter * rows + intra * 6 / 5 * columns, rel=1e-4)


def test_correlation_of_the_teacher_with_itself_is_nothing(both):
    assert relations.correlation(both[1], both[1]).item() == pytest.approx(0, abs=1e-5)
    flat = torch.zeros(3, 4, requires_grad=True)
    loss = relations.correlation(flat, torch.randn(3, 4))
    assert loss.item() == pytest.approx(6, rel=1e-5), "nothing that has no spread is correlated"
    assert torch.isfinite(torch.autograd.grad(loss, flat)[0]).all()


@pytest.mark.parametrize("anchor", ["student", "teacher"])
def test_contrast_equals_the_loop(both, anchor):
    student, teacher = both
    ours = relations.contrastive(student, teacher, temperature=0.5, anchor=anchor)
    total = 0.0
    for i in range(6):
        if anchor == "student":
            row = [F.cosine_similarity(student[i], teacher[j], dim=0).item() / 0.5 for j in range(6)]
        else:
            row = [F.cosine_similarity(student[j], teacher[i], dim=0).item() / 0.5 for j in range(6)]
        total -= math.log(math.exp(row[i]) / sum(map(math.exp, row)))
    assert ours.item() == pytest.approx(total, rel=1e-5)


def test_contrast_knows_what_is_the_same_twice(both):
    student, teacher = (torch.cat([one, one[:2]]) for one in both)
    keys = torch.tensor([0, 1, 2, 3, 4, 5, 0, 1])
    ours = relations.contrastive(student, teacher, keys=keys)
    assert ours < relations.contrastive(student, teacher)
    once = relations.contrastive(*both).item()
    both_twice = relations.contrastive(student, teacher, keys=torch.arange(8)).item()
    assert both_twice == pytest.approx(relations.contrastive(student, teacher).item())
    assert ours.item() > once, "eight rows, of which two come again"


def test_contrast_falls_as_embeddings_find_their_own(both):
    student, teacher = both
    assert relations.contrastive(teacher, teacher) < relations.contrastive(student, teacher)
    assert relations.contrastive(teacher, teacher) < relations.contrastive(teacher.roll(1, 0), teacher)
    project = nn.Linear(3, 5)
    relations.contrastive(torch.randn(6, 3), teacher, project=project).backward()
    assert project.weight.grad.abs().sum() > 0


def test_pairwise_and_margins_are_their_formulas():
    student, teacher = torch.tensor([0.3, -1.0, 2.0], requires_grad=True), torch.tensor([1.0, 0.0, -0.5])
    p, q = torch.sigmoid(teacher / 0.7), torch.sigmoid(student / 0.7)
    wanted = -(p * q.log() + (1 - p) * (1 - q).log()).sum()
    assert relations.pairwise(student, teacher, temperature=0.7).item() == pytest.approx(wanted.item(), rel=1e-5)
    assert relations.margins(student, teacher).item() == pytest.approx(0.49 + 1.0 + 6.25, rel=1e-5)
    (gradient,) = torch.autograd.grad(relations.pairwise(student, teacher), student)
    assert (torch.sign(gradient) == torch.sign(student.detach() - teacher)).all()


def test_lists_are_compared_over_their_candidates(both):
    student, teacher = both
    mask = torch.ones(6, 5, dtype=torch.bool)
    mask[0, 3:] = mask[4, 0] = False
    ours = relations.listwise(student, teacher, mask, temperature=2.0)
    total = torch.zeros(())
    for s, t, m in zip(student, teacher, mask, strict=True):
        p, q = F.softmax(t[m] / 2, -1), F.softmax(s[m] / 2, -1)
        total = total + (p * (p / q).log()).sum()
    assert ours.item() == pytest.approx(total.item(), rel=1e-5)
    torch.testing.assert_close(*(torch.autograd.grad(one, student)[0] for one in (ours, total)))
    shifted = relations.listwise(student + 5, teacher, mask, temperature=2.0)
    assert shifted.item() == pytest.approx(ours.item(), rel=1e-4), "only differences rank"


@pytest.mark.parametrize(
    "loss",
    [
        lambda s, t, *mask: relations.correlation(s, t, *mask, temperature=2.0),
        lambda s, t, *mask: relations.contrastive(s, t, *mask),
        lambda s, t, *mask: relations.contrastive(s, t, *mask, anchor="teacher", keys=torch.arange(len(s)) % 3),
        lambda s, t, *mask: relations.pairwise(s[:, 0], t[:, 0], *mask),
        lambda s, t, *mask: relations.margins(s[:, 0], t[:, 0], *mask),
    ],
)
def test_rows_that_the_mask_leaves_out_are_not_there(both, loss):
    student, teacher = both
    mask = torch.tensor([1, 1, 1, 1, 0, 0])
    wanted = loss(student[:4], teacher[:4])
    (slope,) = torch.autograd.grad(wanted, student)
    padded = student.detach().clone()
    padded[4:] = math.nan
    found = loss(padded.requires_grad_(), teacher, mask)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.autograd.grad(found, padded)[0], slope)
    nothing = loss(padded, teacher, torch.zeros(6))
    assert nothing == 0
    assert not torch.autograd.grad(nothing, padded)[0].any()


@pytest.mark.parametrize(
    "loss",
    [
        lambda s, t: relations.correlation(s, t, temperature=2.0, inter=1.0, intra=2.0),
        lambda s, t: relations.contrastive(s, t),
        lambda s, t: relations.contrastive(s, t, anchor="teacher", keys=torch.tensor([0, 1, 0])),
        lambda s, t: relations.pairwise(s[:, 0], t[:, 0], temperature=0.5),
        lambda s, t: relations.margins(s[:, 0] - s[:, 1], t[:, 0] - t[:, 1]),
        lambda s, t: relations.listwise(s, t, torch.tensor([[1, 1, 0, 1]] * 3)),
    ],
)
def test_gradcheck_and_no_gradient_for_teachers(loss):
    torch.manual_seed(1)
    student, teacher = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher.detach()), (student,))
    loss(student, teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: relations.correlation(x[:1], x[:1]), "both at least 2"),
        (lambda x: relations.correlation(x, x, temperature=0), "temperature=0"),
        (lambda x: relations.contrastive(x[:1], x[:1]), "at least 2"),
        (lambda x: relations.correlation(x, x, torch.tensor([0, 1, 0])), "1 rows count: .* both at least 2"),
        (lambda x: relations.contrastive(x, x, torch.tensor([0, 1, 0])), "1 count: .* at least 2"),
        (lambda x: relations.correlation(x[:, :1], x[:, :1]), "both at least 2"),
        (lambda x: relations.contrastive(x, x, anchor="pupil"), "anchor='pupil'"),
        (lambda x: relations.contrastive(x, x, temperature=-1), "temperature=-1"),
        (lambda x: relations.pairwise(x[0], x[0], temperature=0), "temperature=0"),
        (lambda x: relations.margins(x[0], x[0, :2]), "same pairs"),
        (lambda x: relations.listwise(x, x[:, :2]), "same candidates"),
        (lambda x: relations.listwise(x, x, torch.zeros_like(x)), "without candidates"),
    ],
)
def test_what_makes_no_sense_is_refused(call, said):
    with pytest.raises(InputError, match=said):
        call(torch.randn(3, 4))
