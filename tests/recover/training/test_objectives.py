"""Objectives: means over the whole step, whatever the model predicts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from secateur.errors import DataError, InputError, UnsupportedError
from secateur.recover.distillation import losses
from secateur.recover.training import objectives

BATCH = {
    "input_ids": torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
}


def model(prediction, hidden=(), causal=False):
    answer = SimpleNamespace(prediction=prediction, hidden=tuple(hidden), causal=causal)

    def forward(batch, *, hidden=False):
        return answer

    return forward


def test_count_leaves_padding_out():
    assert objectives.count(BATCH) == {"tokens": 6, "sequences": 2, "targets": 4}


@pytest.mark.parametrize(
    "mask",
    [
        [[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]],
        [[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]],
        [[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]],
        [[1, 1, 0, 1, 1, 1], [0, 0, 1, 1, 0, 1]],
    ],
)
def test_targets_are_counted_as_the_loss_has_them(mask):
    mask = torch.tensor(mask)
    ids = torch.randint(1, 9, mask.shape)
    totals = objectives.count({"input_ids": ids, "attention_mask": mask})
    targets = losses.next_tokens(ids, mask)
    assert totals["targets"] == int((targets != losses.IGNORED).sum())
    assert totals["sequences"] == int((mask.sum(1) > 0).sum())
    assert objectives.count({"input_ids": ids}) == {"tokens": 12, "sequences": 2, "targets": 10}


def padded(batch, tensors):
    """The batch and tensors of its sequences, with one more sequence of padding only."""
    more = {name: torch.cat([value, torch.zeros_like(value[:1])]) for name, value in batch.items()}
    return more, [torch.cat([tensor, torch.randn_like(tensor[:1])]) for tensor in tensors]


@pytest.mark.parametrize(
    ("shape", "output", "how"),
    [
        ((4, 3), "logits", {}),
        ((4, 3), "logits", {"direction": "mse"}),
        ((4, 5, 3), "logits", {}),
        ((4, 3), "embedding", {}),
        ((4, 3), "embedding", {"relational": True}),
        ((4, 5, 3), "states", {}),
        ((4, 5, 3), "states", {"relational": True}),
    ],
)
def test_a_sequence_of_padding_only_changes_nothing(shape, output, how):
    torch.manual_seed(0)
    batch = {"input_ids": torch.ones(4, 5, dtype=torch.long), "attention_mask": torch.ones(4, 5, dtype=torch.long)}
    batch["attention_mask"][1, 3:] = 0
    ours, theirs = torch.randn(shape), torch.randn(shape)
    wanted = objectives.distance(ours, theirs, batch, output=output, **how)
    more, (ours, theirs) = padded(batch, [ours, theirs])
    found = objectives.distance(ours.requires_grad_(), theirs, more, output=output, **how)
    torch.testing.assert_close(found, wanted)
    found.backward()
    assert ours.grad.isfinite().all()
    assert not ours.grad[4].any()


def test_a_label_of_a_sequence_of_padding_only_is_none():
    batch, (logits,) = padded({**BATCH, "labels": torch.tensor([2, 1])}, [torch.randn(2, 3)])
    found = objectives.task_loss(logits, batch, objectives.count(batch), causal=False)
    torch.testing.assert_close(found, functional.cross_entropy(logits[:2], torch.tensor([2, 1])))


def test_a_step_without_a_next_token_is_refused():
    batch = {**BATCH, "attention_mask": torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0]])}
    objective = objectives.distil(model(torch.zeros(2, 4, 9), causal=True), None, output="logits", task=1.0)
    with pytest.raises(DataError, match="no token of a whole step follows another"):
        objective(batch, objectives.count(batch))


def test_task_loss_is_the_mean_over_real_targets():
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 9)
    rows = torch.cat([logits[0, :3], logits[1, :1]])
    expected = functional.cross_entropy(rows, torch.tensor([2, 3, 4, 6]))
    torch.testing.assert_close(objectives.task_loss(logits, BATCH, objectives.count(BATCH), causal=True), expected)


def test_task_loss_of_other_models_is_that_of_their_labels():
    torch.manual_seed(0)
    totals = objectives.count(BATCH)
    logits, labels = torch.randn(2, 3), torch.tensor([2, 0])
    found = objectives.task_loss(logits, {**BATCH, "labels": labels}, totals, causal=False)
    torch.testing.assert_close(found, functional.cross_entropy(logits, labels))
    masked, tokens = torch.randn(2, 4, 9), torch.tensor([[-100, 7, -100, 1], [3, -100, -100, -100]])
    found = objectives.task_loss(masked, {**BATCH, "labels": tokens}, totals, causal=False)
    expected = functional.cross_entropy(masked.flatten(0, 1), tokens.flatten(), reduction="sum") / 6
    torch.testing.assert_close(found, expected)
    for prediction in (logits, masked):
        objective = objectives.distil(model(prediction), None, output="logits", task=1.0)
        with pytest.raises(InputError, match="needs labels"):
            objective(BATCH, totals)


@pytest.mark.parametrize("output", ["states", "embedding"])
def test_a_task_loss_without_logits_is_refused(output):
    with pytest.raises(UnsupportedError, match=f"this model gives {output}: set task=0"):
        objectives.distil(model(torch.zeros(2, 4, 6)), None, output=output, task=1.0)


def test_held_out_judges_causal_models_by_the_next_token_and_others_by_their_teacher():
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 4, 9), torch.randn(2, 4, 9)

    def judge(output, **what):
        return objectives.held_out(model(ours, **what), teacher=model(theirs), output=output, batches=[BATCH])

    next_token = objectives.task_loss(ours, BATCH, objectives.count(BATCH), causal=True)
    assert judge("logits", causal=True) == pytest.approx(float(next_token))
    assert judge("logits") == pytest.approx(float(objectives.distance(ours, theirs, BATCH, output="logits")))
    assert judge("states") == pytest.approx(float(objectives.distance(ours, theirs, BATCH, output="states")))


def test_hidden_states_are_matched_two_blocks_before_the_last():
    assert objectives.match_states(16, 32) == [(0, 0), (14, 30)]
    assert objectives.match_states(1, 2) == [(0, 0), (1, 1)]


def test_a_step_of_padding_only_and_a_label_that_is_no_class_are_refused():
    logits, empty = torch.zeros(2, 4, 9), {**BATCH, "attention_mask": torch.zeros(2, 4, dtype=torch.long)}
    with pytest.raises(DataError, match="whole step of padding"):
        objectives.distil(model(logits), model(logits), output="logits")(empty, objectives.count(empty))
    totals = objectives.count(BATCH)
    for label in (3, -1):
        with pytest.raises(InputError, match=f"label {label} is none of 3 classes"):
            objectives.task_loss(torch.zeros(2, 3), {**BATCH, "labels": torch.tensor([0, label])}, totals, causal=False)


def test_logit_loss_is_the_mean_kl_over_real_tokens():
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 4, 9), torch.randn(2, 4, 9)
    loss, parts = objectives.distil(model(ours), model(theirs), output="logits")(BATCH, objectives.count(BATCH))
    mask = BATCH["attention_mask"].bool()
    expected = (
        functional.kl_div(ours.log_softmax(-1)[mask], theirs.log_softmax(-1)[mask], log_target=True, reduction="none")
        .sum(-1)
        .mean()
    )
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert parts["logit"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_skew_reaches_the_kl(direction):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 9), torch.randn(2, 4, 9)
    how = {"direction": direction, "skew": 0.3}
    distil = objectives.distil(model(student), model(teacher), output="logits", **how)
    _, parts = distil(BATCH, objectives.count(BATCH))
    wanted = losses.kl(student, teacher, BATCH["attention_mask"], **how) / 6
    assert parts["logit"] == pytest.approx(wanted.item(), rel=1e-6)
    assert parts["logit"] < losses.kl(student, teacher, BATCH["attention_mask"], direction=direction) / 6


def test_buckets_reach_the_kl_and_are_of_no_other_direction():
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 2, 4, 7)
    found = objectives.prediction_loss(ours, theirs, BATCH, {"tokens": 12}, buckets=(2, 3))
    want = losses.bucketed_kl(ours, theirs, BATCH["attention_mask"].bool(), k=2, buckets=3) / 12
    torch.testing.assert_close(found, want)
    for how in ({"direction": "reverse"}, {"skew": 0.1}):
        with pytest.raises(InputError, match="buckets are of forward KL"):
            objectives.prediction_loss(ours, theirs, BATCH, {"tokens": 12}, buckets=(2, 3), **how)


def test_parts_warm_up_over_their_share_of_training():
    torch.manual_seed(0)
    states = torch.randn(2, 1, 2, 4, 8)
    student, teacher = (model(torch.randn(2, 4, 7), list(one), causal=True) for one in states)
    how = {"output": "logits", "task": 2.0, "hidden": [(0, 0)], "alpha": 3.0}
    objective = objectives.distil(student, teacher, **how, warmup={"task": 0.5, "hidden": 0.25})
    for done, task, hidden in ((0.0, 0.0, 0.0), (0.125, 0.25, 0.5), (0.25, 0.5, 1.0), (1.0, 1.0, 1.0)):
        total, parts = objective({**BATCH, "done": done}, objectives.count(BATCH))
        want = float(parts["logit"] + 2.0 * task * parts["task"] + 3.0 * hidden * parts["hidden"])
        assert total.item() == pytest.approx(want, rel=1e-5)


def test_hidden_loss_is_weighted_to_the_logit_loss():
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 4, 9), torch.randn(2, 4, 9)
    near, far = torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    objective = objectives.distil(model(ours, [near]), model(theirs, [far]), output="logits", hidden=[(0, 0)])
    loss, parts = objective(BATCH, objectives.count(BATCH))
    assert float(loss) == pytest.approx(2 * float(parts["logit"]), rel=1e-5)


def test_hidden_loss_alone_weighs_one():
    torch.manual_seed(0)
    near, far = torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    logits = torch.zeros(2, 4, 9)
    objective = objectives.distil(
        model(logits, [near]), model(logits, [far]), output="logits", logit=0, hidden=[(0, 0)]
    )
    loss, parts = objective(BATCH, objectives.count(BATCH))
    assert float(loss) == pytest.approx(parts["hidden"])


def test_dynamic_alpha_of_micro_batches_adds_up_to_the_big_batch_but_weighs_each_by_its_own_ratio():
    torch.manual_seed(0)
    ours, theirs, far = torch.randn(2, 4, 9), torch.randn(2, 4, 9), torch.randn(2, 4, 6)
    totals = objectives.count(BATCH)

    def loss_and_gradient(rows):
        near = start.clone().requires_grad_()
        loss = torch.zeros(())
        for row in rows:
            student, teacher = model(ours[row], [near[row]]), model(theirs[row], [far[row]])
            batch = {name: tensor[row] for name, tensor in BATCH.items()}
            loss = loss + objectives.distil(student, teacher, output="logits", hidden=[(0, 0)])(batch, totals)[0]
        return loss.detach(), torch.autograd.grad(loss, near)[0]

    start = torch.randn(2, 4, 6)
    (small, gradient), (big, whole) = loss_and_gradient([slice(0, 1), slice(1, 2)]), loss_and_gradient([slice(0, 2)])
    torch.testing.assert_close(small, big)
    ratios = [gradient[row].norm() / whole[row].norm() for row in (0, 1)]
    assert abs(ratios[0] - ratios[1]) > 0.01
    torch.testing.assert_close(gradient[0] / gradient[0].norm(), whole[0] / whole[0].norm())


def test_token_loss_averages_over_blocks():
    near, far = [torch.zeros(2, 4, 6)] * 3, [torch.ones(2, 4, 6)] * 3
    objective = objectives.distil(
        model(torch.zeros(2, 4, 9), near), model(torch.zeros(2, 4, 9), far), output="logits", logit=0.0, token=1.0,
        blocks=[(1, 1), (2, 2)],
    )  # fmt: skip
    loss, _ = objective(BATCH, objectives.count(BATCH))
    assert float(loss) == pytest.approx(6**0.5)


@pytest.mark.parametrize("direction", ["forward", "reverse", "js", "mse", "cosine"])
def test_every_direction_is_zero_at_the_teacher(direction):
    logits = torch.randn(2, 4, 9)
    loss = objectives.distance(logits, logits.clone(), BATCH, output="logits", direction=direction)
    assert float(loss) == pytest.approx(0.0, abs=1e-5)


def test_embeddings_count_direction():
    torch.manual_seed(0)
    theirs = torch.randn(4, 8)
    assert float(objectives.distance(theirs, theirs, BATCH, output="embedding")) == pytest.approx(0.0, abs=1e-5)
    assert float(objectives.distance(-theirs, theirs, BATCH, output="embedding")) > 1.0


def test_what_the_batch_brings_of_the_teacher_counts_as_its_logits():
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 4, 9), torch.randn(2, 4, 9)
    real = BATCH["attention_mask"].bool()
    log_p, indices = torch.log_softmax(theirs[real], -1).topk(9)
    cached = {
        "teacher_log_probabilities": log_p,
        "teacher_indices": indices,
        "teacher_remaining": torch.full((6,), -torch.inf),
    }
    totals = objectives.count(BATCH)
    found, parts = objectives.distil(model(ours), None, output="logits", logit=0.5)({**BATCH, **cached}, totals)
    live, _ = objectives.distil(model(ours), model(theirs), output="logits", logit=0.5)(BATCH, totals)
    torch.testing.assert_close(found, live)
    assert parts["logit"] == pytest.approx(2 * float(live))


def test_one_number_is_compared_by_its_square_only():
    ours, theirs, totals = torch.randn(2, 1), torch.randn(2, 1), objectives.count(BATCH)
    found = objectives.distance(ours, theirs, BATCH, output="logits", direction="mse")
    torch.testing.assert_close(found, functional.mse_loss(ours, theirs))
    for direction in ("forward", "reverse", "js", "cosine"):
        with pytest.raises(InputError, match=f"'{direction}' compares classes, and the models tell one number each"):
            objectives.distance(ours, theirs, BATCH, output="logits", direction=direction)
    with pytest.raises(InputError, match="task loss is of classes, and the model tells one number"):
        objectives.task_loss(ours, {**BATCH, "labels": torch.tensor([0.5, 2.0])}, totals, causal=False)


@pytest.mark.parametrize(("output", "shape"), [("states", (2, 4)), ("embedding", (2,))])
def test_states_and_embeddings_of_another_width_need_a_projection(output, shape):
    ours, theirs = torch.randn(*shape, 6), torch.randn(*shape, 8)
    with pytest.raises(UnsupportedError, match="give a projection"):
        objectives.distance(ours, theirs, BATCH, output=output)
    lift = torch.nn.Linear(6, 8, bias=False)
    lifted = objectives.distance(ours, theirs, BATCH, output=output, projection=lift)
    torch.testing.assert_close(lifted, objectives.distance(lift(ours), theirs, BATCH, output=output))


def test_relations_compare_any_widths_and_leave_padding_out():
    batch = {"input_ids": torch.ones(4, 3, dtype=torch.long), "attention_mask": torch.ones(4, 3, dtype=torch.long)}
    batch["attention_mask"][1, 2] = 0
    theirs = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(0))
    ours = torch.cat([theirs, torch.zeros(4, 3, 2)], -1)  # the same angles in a wider space
    same = objectives.distance(ours, theirs, batch, output="states", relational=True)
    assert float(same) == pytest.approx(0.0, abs=1e-6)
    ours[1, 2] = 100.0  # padding
    padded = objectives.distance(ours, theirs, batch, output="states", relational=True)
    assert float(padded) == pytest.approx(0.0, abs=1e-6)
    ours[1, 0] = 100.0
    assert objectives.distance(ours, theirs, batch, output="states", relational=True) > 0.01


@pytest.mark.parametrize("direction", ["mse", "cosine", "js"])
def test_vocabularies_may_differ_by_padding_in_every_direction(direction):
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 4, 6, requires_grad=True), torch.randn(2, 4, 6)
    padded = torch.cat([theirs, torch.full((2, 4, 3), 30.0)], -1)
    totals = objectives.count(BATCH)
    wanted = objectives.prediction_loss(ours, theirs, BATCH, totals, direction=direction)
    torch.testing.assert_close(objectives.prediction_loss(ours, padded, BATCH, totals, direction=direction), wanted)
    wide = torch.cat([ours, torch.full((2, 4, 3), 30.0)], -1)
    torch.testing.assert_close(objectives.prediction_loss(wide, theirs, BATCH, totals, direction=direction), wanted)
    with pytest.raises(InputError, match="width 9 differs from teacher width 6"):
        losses.mse(wide, theirs)


def test_labels_of_which_several_hold_are_compared_each_by_itself():
    torch.manual_seed(0)
    batch, (ours, theirs) = padded(BATCH, [torch.randn(2, 3), torch.randn(2, 3)])
    p, q = torch.distributions.Bernoulli(logits=theirs[:2] / 2), torch.distributions.Bernoulli(logits=ours[:2] / 2)
    wanted = 4 * torch.distributions.kl_divergence(p, q).sum() / 2
    for sent, (mine, yours) in ((batch, (ours, theirs)), (BATCH, (ours[:2], theirs[:2]))):
        found = objectives.distance(mine, yours, sent, output="logits", direction="binary", temperature=2.0)
        torch.testing.assert_close(found, wanted)
    moved = objectives.distance(theirs + 7, theirs, batch, output="logits", direction="binary")
    assert moved > 1, "all labels moved as one: softmax sees nothing of it"


def test_unknown_direction_is_refused():
    with pytest.raises(UnsupportedError, match="sideways"):
        objectives.distance(torch.zeros(2, 4, 6), torch.zeros(2, 4, 6), BATCH, output="logits", direction="sideways")


class Fused:
    """A toy causal model that can stop before its head; the largest tensor it ever gave is remembered."""

    def __init__(self, seed, vocabulary=9, softcap=None):
        torch.manual_seed(seed)
        self.body, self.head = torch.nn.Embedding(9, 5), torch.nn.Linear(5, vocabulary, bias=False)
        self.softcap, self.widths = softcap, set()

    def __call__(self, batch, *, hidden=False, head=True):
        states = self.body(batch["input_ids"])
        found = self.head(states) if head else states
        if head and self.softcap:
            found = self.softcap * torch.tanh(found / self.softcap)
        self.widths.add(found.shape[-1])
        return SimpleNamespace(
            prediction=found, hidden=(states,), causal=True, head=None if head else self.head, softcap=self.softcap
        )


@pytest.mark.parametrize("direction", ["forward", "reverse", "js"])
@pytest.mark.parametrize("caps", [(None, None), (2.0, 2.0), (2.0, None), (None, 2.0), (2.0, 1.0)])
def test_fused_with_the_heads_it_is_the_same_objective_without_logits(direction, caps):
    """A teacher of another family has its own soft cap, or none: the student's was put on it."""
    student, teacher = Fused(0, 9, caps[0]), Fused(1, 12, caps[1])  # vocabularies differ by padding
    totals, found = objectives.count(BATCH), []
    for fused in (False, True):
        student.widths.clear()
        teacher.widths.clear()
        objective = objectives.distil(
            student, teacher, output="logits", task=0.5, temperature=2.0, direction=direction, fused=fused
        )
        loss, parts = objective(BATCH, totals)
        parameters = [student.body.weight, student.head.weight]
        found.append((loss, *torch.autograd.grad(loss, parameters), *parts.values()))
        assert student.widths == ({5} if fused else {9})
        assert teacher.widths == ({5} if fused else {12})
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_fused_with_the_head_a_cache_gives_the_same_objective_without_logits(softcap):
    student, totals, found = Fused(0, 9, softcap), objectives.count(BATCH), []
    log_p, indices = torch.log_softmax(torch.randn(6, 9), -1).topk(4)
    rest = torch.log1p(-log_p.exp().sum(-1))
    cached = {"teacher_log_probabilities": log_p, "teacher_indices": indices, "teacher_remaining": rest}
    for fused in (False, True):
        student.widths.clear()
        objective = objectives.distil(student, None, output="logits", temperature=2.0, fused=fused)
        loss, parts = objective({**BATCH, **cached}, totals)
        parameters = [student.body.weight, student.head.weight]
        found.append((loss, *torch.autograd.grad(loss, parameters), *parts.values()))
        assert student.widths == ({5} if fused else {9})
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-5)


def test_what_has_no_fused_form_keeps_its_logits():
    student, teacher = Fused(0), Fused(1)
    objectives.distil(student, teacher, output="logits", direction="mse", fused=True)(BATCH, objectives.count(BATCH))
    assert student.widths == teacher.widths == {9}
    sharded = model(torch.randn(2, 4, 9), causal=True)  # gives logits whatever it is asked
    kept = lambda batch, *, hidden=False, head=True: sharded(batch)  # noqa: E731
    loss, _ = objectives.distil(kept, teacher, output="logits", fused=True)(BATCH, objectives.count(BATCH))
    assert torch.isfinite(loss)


def test_logits_of_outputs():
    x = torch.zeros(2, 3)
    assert all(objectives.logits(one) is x for one in (x, SimpleNamespace(logits=x), (x, None)))
    with pytest.raises(UnsupportedError, match="returns a dict"):
        objectives.logits({})


COUNTED = {**BATCH, "counted": torch.tensor([[False, True, False, False], [True, False, False, False]])}


def test_only_the_positions_that_count_enter_counts_and_targets():
    assert objectives.count(COUNTED) == {"tokens": 2, "sequences": 2, "targets": 2}
    assert objectives.targets_of(COUNTED).tolist() == [[-100, 3, -100, -100], [6, -100, -100, -100]]
    assert torch.equal(objectives.mask_of(COUNTED), COUNTED["counted"])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "how",
    [
        {"task": 1.0, "logit": 0.0},
        {"task": 0.0, "logit": 1.0},
        {"logit": 1.0, "direction": "reverse"},
        {"logit": 1.0, "direction": "js"},
        {"logit": 0.0, "token": 1.0, "blocks": [(0, 0)]},
        {"logit": 0.0, "hidden": [(0, 0)], "alpha": 1.0},
    ],
)
def test_what_does_not_count_changes_no_loss(how, fused):
    torch.manual_seed(0)
    head = torch.nn.Linear(5, 9)
    states, theirs = torch.randn(2, 4, 5), torch.randn(2, 4, 5)

    def answer(states):
        def forward(batch, *, hidden=False, head_=head, **kind):
            whole = kind.get("head", True)
            return SimpleNamespace(
                prediction=head_(states) if whole else states, hidden=(states,), causal=True, softcap=None,
                **({} if whole else {"head": head_}),
            )  # fmt: skip

        return forward

    def loss(states, theirs):
        made = objectives.distil(answer(states), answer(theirs), output="logits", fused=fused, **how)
        return made(COUNTED, objectives.count(COUNTED))[0]

    other, others = states.clone(), theirs.clone()
    other[~COUNTED["counted"]], others[~COUNTED["counted"]] = 7.0, -3.0
    first = loss(states, theirs)
    assert first > 0
    torch.testing.assert_close(loss(other, others), first)
    changed = states.clone()
    changed[0, 1] += 1.0
    assert not torch.isclose(loss(changed, theirs), first)


@pytest.mark.parametrize(
    "how", [{}, {"direction": "reverse"}, {"direction": "js"}, {"skew": 0.1}, {"buckets": (3, 2)}, {"kept": 9}],
    ids=["forward", "reverse", "js", "skew", "buckets", "cached"],
)  # fmt: skip
@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_as_large_at_every_high_temperature(how, fused):
    """T^2 KL -> |z_s - z_t|^2 / 2 V of centred logits (Hinton et al. 2015); without T^2 it would vanish."""
    torch.manual_seed(0)
    states, head, told = torch.randn(2, 4, 6, dtype=torch.float64), torch.randn(9, 6, dtype=torch.float64), []
    theirs = torch.randn(2, 4, 9, dtype=torch.float64)
    direction = {name: value for name, value in how.items() if name != "kept"}
    for temperature in (100.0, 1000.0):
        ours, batch = states.clone().requires_grad_(), dict(BATCH)
        if "kept" in how:  # all tokens, as a cache of the likeliest has them
            rows = theirs[objectives.mask_of(BATCH)]
            batch["teacher_log_probabilities"] = (rows / temperature).log_softmax(-1)
            batch["teacher_indices"] = torch.arange(9).expand(len(rows), 9)
            batch["teacher_remaining"] = torch.full((len(rows),), -torch.inf, dtype=torch.float64)

        def student(batch, *, hidden=False, head_=head, ours=ours, **asked):
            if asked.get("head", True):
                return SimpleNamespace(prediction=ours @ head_.T, hidden=(), causal=True)
            return SimpleNamespace(prediction=ours, hidden=(), causal=True, head=head_, softcap=None)

        def teacher(batch, **asked):
            return SimpleNamespace(prediction=theirs, hidden=(), causal=True)

        objective = objectives.distil(
            student, None if "kept" in how else teacher, output="logits", temperature=temperature, fused=fused,
            **direction,
        )  # fmt: skip
        objective(batch, objectives.count(batch))[0].backward()
        told.append(ours.grad)
    assert told[0].norm() > 1e-3
    assert float(told[0].norm() / told[1].norm()) == pytest.approx(1.0, rel=0.05)


def test_tokens_to_keep_and_old_scores_count_by_the_totals_of_a_step():
    """By hand: one of two batches of a step, with a token that is not looked at, and a target in between."""
    logits, scores = torch.randn(2, 3, 2), torch.tensor([1.0, -0.5])
    names = ("input_ids", "attention_mask", "token_type_ids")
    batch = {name: torch.ones(2, 3, dtype=torch.long) for name in names} | {
        "labels": torch.tensor([[1, 0, -100], [0, 1, 1]]),
        "targets": torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.25, 1.0]]),
        "scores": torch.tensor([0.0, 0.5]),
    }
    loss, parts = objectives.keeping_loss(lambda **given: (scores, logits), 0.25, batch, {"tokens": 10, "examples": 4})
    keep, drop = logits.log_softmax(-1)[..., 1], logits.log_softmax(-1)[..., 0]
    said = keep[0, 0] + drop[0, 1] + drop[1, 0] + 0.25 * keep[1, 1] + 0.75 * drop[1, 1] + keep[1, 2]
    assert float(parts["keeping"]) == pytest.approx(float(-said) / 10)
    assert float(parts["ranking"]) == pytest.approx((1.0 + 1.0) / 4)
    assert float(loss) == pytest.approx(float(parts["keeping"]) + 0.25 * float(parts["ranking"]))
