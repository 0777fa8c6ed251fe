"""Each loss against its plain formula, gradients included, and what padding, forbidden tokens and bf16 do to it."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from recover.students import Largest
from secateur.errors import InputError
from secateur.recover.distillation import losses

TOKENS, VOCABULARY = 23, 57


def plain_kl(student, teacher, mask=None, temperature=1.0, direction="forward"):
    log_s = F.log_softmax(student.float() / temperature, -1)
    log_t = F.log_softmax(teacher.float() / temperature, -1)
    if direction == "reverse":
        log_s, log_t = log_t, log_s
    rows = (log_t.exp() * (log_t - log_s)).sum(-1)
    return rows.sum() if mask is None else (rows * mask).sum()


def plain_jensen_shannon(student, teacher, weight=0.5, temperature=1.0):
    p_s, p_t = (F.softmax(x / temperature, -1) for x in (student, teacher))
    m = weight * p_t + (1 - weight) * p_s
    return (weight * p_t * (p_t / m).log() + (1 - weight) * p_s * (p_s / m).log()).sum()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def logits():
    return torch.randn(TOKENS, VOCABULARY, requires_grad=True), 2 * torch.randn(TOKENS, VOCABULARY)


def gradient(loss, *inputs):
    return torch.autograd.grad(loss, inputs)


def same(ours, plain, *inputs, tolerance=1e-5):
    torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance)
    for mine, theirs in zip(gradient(ours, *inputs), gradient(plain, *inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("chunk", [None, 1, 4])
def test_kl_equals_the_plain_formula(logits, direction, temperature, chunk):
    student, teacher = logits
    mask = (torch.arange(TOKENS) % 3 != 0).long()
    for m in (None, mask):
        ours = losses.kl(student, teacher, m, temperature=temperature, direction=direction, chunk=chunk)
        same(3 * ours, 3 * plain_kl(student, teacher, m, temperature, direction), student)


@pytest.mark.parametrize("weight", [0.5, 0.1])
def test_jensen_shannon_equals_the_plain_formula(logits, weight):
    student, teacher = logits
    ours = losses.jensen_shannon(student, teacher, weight=weight, temperature=1.5, chunk=4)
    same(ours, plain_jensen_shannon(student, teacher, weight, 1.5), student)


def plain_skewed(student, teacher, skew, direction, temperature=1.0):
    p_s, p_t = (F.softmax(x / temperature, -1) for x in (student, teacher))
    one, other = (p_t, p_s) if direction == "forward" else (p_s, p_t)
    return (one * (one / (skew * one + (1 - skew) * other)).log()).sum()


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("skew", [0.1, 0.7])
def test_a_skewed_kl_equals_the_plain_formula(logits, direction, skew):
    student, teacher = logits
    ours = losses.kl(student, teacher, temperature=1.5, direction=direction, skew=skew, chunk=4)
    same(2 * ours, 2 * plain_skewed(student, teacher, skew, direction, 1.5), student)


def test_a_little_skew_is_nearly_the_kl_and_none_is_exactly_it(logits):
    student, teacher = logits
    for direction in ("forward", "reverse"):
        plain = losses.kl(student, teacher, direction=direction)
        assert losses.kl(student, teacher, direction=direction, skew=0.0) == plain
        assert losses.kl(student, teacher, direction=direction, skew=1e-6).item() == pytest.approx(plain.item(), 1e-3)


def test_skew_bounds_what_an_impossible_token_costs():
    student, teacher = torch.tensor([[0.0, -200.0]], requires_grad=True), torch.tensor([[0.0, 0.0]])
    assert losses.kl(student, teacher) > 90
    ours = losses.kl(student, teacher, skew=0.1)
    assert ours < math.log(10), "KL(p || a p + ...) is at most log(1 / a)"
    forbidden = torch.tensor([[0.0, 1.0, -math.inf]], requires_grad=True)
    for direction in ("forward", "reverse"):
        for other in (torch.tensor([[0.0, 0.5, -math.inf]]), torch.tensor([[0.0, 0.5, 1.0]])):
            loss = losses.kl(forbidden, other, direction=direction, skew=0.2)
            assert torch.isfinite(loss)
            assert torch.isfinite(gradient(loss, forbidden)[0]).all()


@pytest.mark.parametrize("skew", [0.0, 0.2])
def test_skew_goes_through_the_head_too(skew):
    head, hidden = nn.Linear(6, VOCABULARY), torch.randn(TOKENS, 6, requires_grad=True)
    teacher_head, teacher = nn.Linear(5, VOCABULARY), torch.randn(TOKENS, 5)
    fused = losses.kl_from_hidden(hidden, head, teacher, teacher_head, skew=skew, chunk=7)
    same(fused, losses.kl(head(hidden), teacher_head(teacher), skew=skew), hidden, head.weight)


def plain_bucketed(student, teacher, k, buckets, ratio):
    """Token by token, bucket by bucket."""
    total = torch.zeros(())
    for s, t in zip(F.softmax(student, -1), F.softmax(teacher, -1), strict=True):
        order = t.argsort(descending=True).tolist()
        events = [[token] for token in order[:k]] + [[] for _ in range(buckets)]
        for token in order[k:]:
            step = math.floor(math.log(t[order[k - 1]] / t[token]) / math.log(ratio))
            events[k + min(buckets - 1, step)].append(token)
        for event in filter(None, events):
            total = total + t[event].sum() * (t[event].sum() / s[event].sum()).log()
    return total


def test_buckets_equal_the_plain_formula(logits):
    student, teacher = logits
    ours = losses.bucketed_kl(student, teacher, k=5, buckets=4, ratio=3.0, chunk=4)
    same(ours, plain_bucketed(student, teacher, 5, 4, 3.0), student, tolerance=1e-4)


def test_buckets_lie_between_the_top_k_and_the_whole(logits):
    student, teacher = logits
    coarse, whole = losses.topk_kl(student, *topk(teacher, 5)), losses.kl(student, teacher)
    same(losses.bucketed_kl(student, teacher, k=5, buckets=1), coarse, student)
    same(losses.bucketed_kl(student, teacher, k=VOCABULARY + 9), losses.kl(student, teacher), student)
    some = losses.bucketed_kl(student, teacher, k=5, buckets=6, ratio=2.0)
    assert coarse < some < whole


def test_buckets_take_forbidden_and_hopeless_tokens():
    student = torch.tensor([[0.0, -500.0, -600.0, -math.inf]], requires_grad=True)
    for teacher in ([0.0, -1.0, -2.0, -math.inf], [0.0, -math.inf, -math.inf, -math.inf]):
        loss = losses.bucketed_kl(student, torch.tensor([teacher]), k=2, buckets=2)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient(loss, student)[0]).all()


def test_a_student_that_rules_out_the_whole_rest_gets_a_gradient():
    student = torch.tensor([[0.0, -500.0, -501.0, -math.inf]], dtype=torch.float32, requires_grad=True)
    kept = [torch.tensor([[math.log(0.5)]]), torch.tensor([[0]]), torch.tensor([math.log(0.5)])]
    rest = -0.5 * torch.tensor([[-500.0, -501.0]]).softmax(-1)
    for loss in (
        losses.topk_kl(student, *kept),
        losses.bucketed_kl(student, torch.tensor([[1.0, 0.3, 0.3, -math.inf]]), k=1, buckets=1),
    ):
        part = gradient(loss, student)[0]
        assert torch.isfinite(part).all()
        assert part[0, 3] == 0
        assert part[0, 1] / part[0, 2] == pytest.approx(math.e, rel=1e-4)
        assert part.sum().item() == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(gradient(losses.topk_kl(student, *kept), student)[0][:, 1:3], rest)


def plain_decoupled(student, teacher, labels, target, other, temperature):
    total = torch.zeros(())
    for s, t, y in zip(student / temperature, teacher / temperature, labels.tolist(), strict=True):
        rest = [j for j in range(len(s)) if j != y]
        p_s, p_t = F.softmax(s, -1), F.softmax(t, -1)
        b_s, b_t = (torch.stack([p[y], p[rest].sum()]) for p in (p_s, p_t))
        h_s, h_t = F.softmax(s[rest], -1), F.softmax(t[rest], -1)
        total = total + target * (b_t * (b_t / b_s).log()).sum() + other * (h_t * (h_t / h_s).log()).sum()
    return total


def test_decoupled_equals_the_plain_formula(logits):
    student, teacher = logits
    labels = torch.randint(0, VOCABULARY, (TOKENS,))
    for target, other in ((1.0, 8.0), (2.0, 0.0), (0.0, 1.0)):
        ours = losses.dkd(student, teacher, labels, target=target, other=other, temperature=4.0, chunk=4)
        same(ours, plain_decoupled(student, teacher, labels, target, other, 4.0), student)


def test_kl_is_the_decoupled_loss_whose_second_weight_is_the_teachers_doubt(logits):
    student, teacher = (x[:1] for x in logits)
    label = torch.tensor([3])
    doubt = 1 - F.softmax(teacher, -1)[0, 3].item()
    assert losses.dkd(student, teacher, label, other=doubt).item() == pytest.approx(
        losses.kl(student, teacher).item(), rel=1e-5
    )


def test_what_skewed_bucketed_and_decoupled_losses_refuse(logits):
    student, teacher = logits
    with pytest.raises(InputError, match="skew=1"):
        losses.kl(student, teacher, skew=1.0)
    with pytest.raises(InputError, match="k=0"):
        losses.bucketed_kl(student, teacher, k=0)
    with pytest.raises(InputError, match="ratio=1"):
        losses.bucketed_kl(student, teacher, ratio=1.0)
    with pytest.raises(InputError, match=f"give 0 to {VOCABULARY - 1}"):
        losses.dkd(student, teacher, torch.full((TOKENS,), VOCABULARY))


def test_jensen_shannon_is_symmetric_and_at_most_log_2():
    one, other = 50 * torch.eye(4)[:2], 50 * torch.eye(4)[2:]
    assert losses.jensen_shannon(one, other) == pytest.approx(2 * math.log(2), rel=1e-6)
    assert losses.jensen_shannon(one, other) == losses.jensen_shannon(other, one)


@pytest.mark.parametrize(
    "loss",
    [
        lambda s, t: losses.kl(s, t, chunk=2),
        lambda s, t: losses.kl(s, t, torch.tensor([1, 0, 1, 1, 0]), temperature=2, chunk=2),
        lambda s, t: losses.kl(s, t, direction="reverse", chunk=2),
        lambda s, t: losses.jensen_shannon(s, t, weight=0.3, chunk=2),
        lambda s, t: losses.cross_entropy(s, torch.tensor([0, 5, -100, 2, 2]), chunk=2),
        lambda s, t: losses.topk_kl(s, *topk(t, 3), chunk=2),
        lambda s, t: losses.kl(s, t[:, :5]),
        lambda s, t: losses.kl(s, t, skew=0.1, temperature=2, chunk=2),
        lambda s, t: losses.kl(s, t, torch.tensor([1, 0, 1, 1, 0]), direction="reverse", skew=0.3, chunk=2),
        lambda s, t: losses.bucketed_kl(s, t, k=2, buckets=3, ratio=2.0, chunk=2),
        lambda s, t: losses.dkd(s, t, torch.tensor([0, 6, -100, 2, 2]), temperature=2, chunk=2),
        lambda s, t: losses.mse(s, t, chunk=2),
        lambda s, t: losses.mse(s, t[:, :5], torch.tensor([1, 0, 1, 1, 0]), shared=True, chunk=2),
        lambda s, t: losses.cosine(s, t, chunk=2),
        lambda s, t: losses.cosine(s, t[:, :5], torch.tensor([1, 0, 1, 1, 0]), shared=True, chunk=2),
        lambda s, t: losses.kl_at(s, t[:, :5], *named(5, 5), temperature=2, chunk=2),
    ],
)
def test_gradcheck(loss):
    student = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, 7, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), (student,))


def named(rows, columns):
    """Pairs of rows, the student's last one first and once more at the end, and columns of both in another order."""
    places = torch.arange(rows)
    pairs = torch.stack([places.flip(0), places], 1)
    return torch.cat([pairs, pairs[:1]]), (torch.arange(columns).roll(1), torch.arange(columns).flip(0))


@pytest.mark.parametrize("chunk", [None, 1, 4])
@pytest.mark.parametrize("rows", [TOKENS, 7])
def test_kl_of_named_rows_and_columns_is_that_of_the_picked_ones(logits, rows, chunk):
    student, teacher = (x.detach().double() for x in logits)
    student.requires_grad_()
    pairs, (mine, yours) = named(rows, 20)
    ours = losses.kl_at(student, teacher[:, :30], pairs, (mine, yours), temperature=2.0, chunk=chunk)
    picked = student[pairs[:, 0]][:, mine], teacher[pairs[:, 1]][:, yours]
    log_s, log_t = (F.log_softmax(x / 2.0, -1) for x in picked)
    same(3 * ours, 3 * (log_t.exp() * (log_t - log_s)).sum(), student, tolerance=1e-12)
    shaped = losses.kl_at(student.view(1, *student.shape), teacher.view(1, *teacher.shape), pairs, (mine, yours))
    assert shaped == losses.kl_at(student, teacher, pairs, (mine, yours))
    nothing = losses.kl_at(student, teacher, pairs[:0], (mine, yours))
    assert nothing == 0
    assert not gradient(nothing, student)[0].any()


@pytest.mark.parametrize("chunk", [None, 1, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_cosine_and_mse_in_chunks_are_the_plain_formulas(logits, masked, chunk):
    student, teacher = (x.detach().double() for x in logits)
    student.requires_grad_()
    mask = torch.arange(TOKENS) % 3 != 0 if masked else None
    kept = slice(None) if mask is None else mask
    s, t = student[kept], teacher[kept]
    same(losses.mse(student, teacher, mask, chunk=chunk), (s - t).square().mean(-1).sum(), student, tolerance=1e-12)
    plain = (1 - F.cosine_similarity(student[kept], t, dim=-1, eps=1e-8)).sum()
    same(3 * losses.cosine(student, teacher, mask, chunk=chunk), 3 * plain, student, tolerance=1e-12)


def test_a_second_backward_pass_gives_the_same_gradient(logits):
    student, teacher = logits
    loss = losses.kl(student, teacher)
    first = torch.autograd.grad(loss, student, retain_graph=True)[0].clone()
    assert torch.equal(first, gradient(loss, student)[0])


def test_the_teacher_gets_no_gradient(logits):
    student, teacher = logits
    teacher = teacher.requires_grad_()
    losses.kl(student, teacher).backward()
    assert teacher.grad is None


def test_bf16_logits_give_a_bf16_gradient_of_the_float32_formula(logits):
    student, teacher = (x.detach().bfloat16() for x in logits)
    student.requires_grad_()
    ours = losses.kl(student, teacher)
    assert ours.dtype == torch.float32
    wide = student.detach().float().requires_grad_()
    plain = plain_kl(wide, teacher)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-5)
    assert gradient(ours, student)[0].dtype == torch.bfloat16
    torch.testing.assert_close(
        gradient(losses.kl(student, teacher), student)[0].float(), gradient(plain, wide)[0], rtol=1e-2, atol=1e-5
    )


@pytest.mark.parametrize("wider", ["student", "teacher"])
def test_padding_of_the_vocabulary_is_cut_off_and_the_rest_renormalised(logits, wider):
    student, teacher = (x.detach() for x in logits)
    garbage = torch.full((TOKENS, 6), 30.0)
    padded = torch.cat([student if wider == "student" else teacher, garbage], -1)
    pair = (padded, teacher) if wider == "student" else (student, padded)
    leaf = pair[0].clone().requires_grad_()
    ours = losses.kl(leaf, pair[1], chunk=4)
    assert ours.item() == pytest.approx(plain_kl(student, teacher).item(), rel=1e-5)
    part = gradient(ours, leaf)[0]
    assert part[:, VOCABULARY:].abs().sum() == 0
    assert part[:, :VOCABULARY].abs().sum() > 0


def test_padded_positions_may_hold_nan(logits):
    student, teacher = (x.detach().clone() for x in logits)
    mask = torch.ones(TOKENS, dtype=torch.bool)
    mask[5:9] = False
    want = losses.kl(student[mask], teacher[mask])
    student[5:9], teacher[5:9] = math.nan, math.inf
    student.requires_grad_()
    ours = losses.kl(student, teacher, mask)
    assert ours.item() == pytest.approx(want.item(), rel=1e-6)
    assert gradient(ours, student)[0].isfinite().all()


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_token_forbidden_to_both_costs_nothing(logits, direction):
    student, teacher = (x.detach().clone() for x in logits)
    want = losses.kl(student[:, :-1], teacher[:, :-1], direction=direction)
    student[:, -1] = teacher[:, -1] = -math.inf
    student.requires_grad_()
    ours = losses.kl(student, teacher, direction=direction)
    assert ours.item() == pytest.approx(want.item(), rel=1e-6)
    assert gradient(ours, student)[0].isfinite().all()


def test_nan_in_a_counted_token_is_not_hidden(logits):
    student, teacher = (x.detach().clone() for x in logits)
    student[3, 4] = math.nan
    for direction in ("forward", "reverse"):
        assert losses.kl(student, teacher, direction=direction).isnan()


def test_all_masked_is_zero(logits):
    student, teacher = logits
    loss = losses.kl(student, teacher, torch.zeros(TOKENS))
    assert loss == 0
    assert gradient(loss, student)[0].abs().sum() == 0


def test_shapes_with_leading_dimensions(logits):
    student, teacher = (x.detach()[:20].view(4, 5, -1) for x in logits)
    mask = torch.rand(4, 5) > 0.4
    want = plain_kl(student, teacher, mask)
    assert losses.kl(student, teacher, mask).item() == pytest.approx(want.item(), rel=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        lambda s, t, labels: losses.kl(s, t),
        lambda s, t, labels: losses.kl(s, t, labels > 9, direction="reverse"),
        lambda s, t, labels: losses.jensen_shannon(s, t),
        lambda s, t, labels: losses.cross_entropy(s, labels),
        lambda s, t, labels: losses.mse(s, t),
        lambda s, t, labels: losses.mse(s, t, labels > 9, shared=True),
        lambda s, t, labels: losses.cosine(s, t, labels > 9),
        lambda s, t, labels: losses.kl_at(s, t[:-1], *named(len(s) - 1, 2**13)),
        lambda s, t, labels: losses.topk_kl(s, torch.zeros(len(s), 1), labels[:, None], torch.full((len(s),), -9.0)),
    ],
    ids=["forward", "reverse", "js", "cross-entropy", "mse", "mse-masked", "cosine", "named", "top-k"],
)
def test_no_whole_float32_matrix_of_the_vocabulary_is_made(loss):
    tokens, vocabulary = 256, 2**14
    student = torch.randn(tokens, vocabulary).bfloat16().requires_grad_()
    teacher, labels = torch.randn(tokens, vocabulary).bfloat16(), torch.randint(vocabulary, (tokens,))
    with Largest() as largest:
        loss(student, teacher, labels).backward()
    assert 0 < largest.elements <= 2**20 < tokens * vocabulary


@pytest.mark.parametrize("loss", [losses.kl_from_hidden, losses.jensen_shannon_from_hidden])
def test_through_heads_not_even_the_logits_are_whole(loss):
    tokens, vocabulary = 160, 2**17
    head, hidden = nn.Linear(2, vocabulary, bias=False), torch.randn(tokens, 2, requires_grad=True)
    with Largest() as largest:
        loss(hidden, head, torch.randn(tokens, 2), head.weight.detach().clone()).backward()
    assert 0 < largest.elements <= 2**24 < tokens * vocabulary


# --------------------------------------------------------------------------------------------------- top k


def topk(teacher, k, temperature=1.0):
    log_t = F.log_softmax(teacher / temperature, -1)
    values, indices = log_t.topk(k)
    return values, indices, log_t.scatter(-1, indices, -math.inf).logsumexp(-1)


def plain_topk(student, values, indices, remaining, temperature=1.0):
    q = F.softmax(student / temperature, -1)
    inside = q.gather(-1, indices)
    p, rest = values.exp(), remaining.exp()
    return (p * (values - inside.log())).sum() + (rest * (remaining - (1 - inside.sum(-1)).log())).sum()


def test_topk_equals_the_plain_formula(logits):
    student, teacher = logits
    for temperature in (1.0, 2.0):
        parts = topk(teacher, 5, temperature)
        ours = losses.topk_kl(student, *parts, temperature=temperature, chunk=4)
        same(ours, plain_topk(student, *parts, temperature), student)


def test_topk_of_everything_is_the_full_kl_and_less_is_a_lower_bound(logits):
    student, teacher = logits
    same(losses.topk_kl(student, *topk(teacher, VOCABULARY)), losses.kl(student, teacher), student)
    values = [losses.topk_kl(student, *topk(teacher, k)).item() for k in (1, 5, 20, VOCABULARY)]
    assert values == sorted(values)
    assert values[0] < values[-1]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_topk_with_nothing_outside_is_the_same_by_its_shorter_way(logits, temperature):
    """Rows of which all is inside, alone and beside rows of which something is not; one token stands there twice."""
    student, teacher = logits
    values, indices, remaining = topk(teacher, 5, temperature)
    values = values.log_softmax(-1)
    values[0, 4], indices[0, 4] = -math.inf, indices[0, 1]
    values[0] = values[0].log_softmax(-1)
    nothing = torch.full_like(remaining, -math.inf)
    log_q = F.log_softmax(student / temperature, -1).gather(-1, indices)
    plain = torch.where(values == -math.inf, 0.0, values.exp() * (values - log_q)).nan_to_num(0.0).sum()

    def ours(remaining):
        return losses.topk_kl(student, values, indices, remaining, temperature=temperature, chunk=4)

    same(ours(nothing), plain, student)
    tiny = torch.full_like(remaining, -90.0)  # e^-90 is nothing to a sum, and takes the longer way
    same(ours(nothing), ours(tiny), student)


def test_topk_targets_of_counted_tokens_or_of_all(logits):
    student, teacher = logits
    mask = torch.arange(TOKENS) % 2 == 0
    all_rows = topk(teacher, 5)
    counted = [part[mask] for part in all_rows]
    want = losses.topk_kl(student[mask], *counted)
    same(losses.topk_kl(student, *counted, mask, chunk=3), want, student)
    same(losses.topk_kl(student, *all_rows, mask, chunk=3), losses.topk_kl(student[mask], *counted), student)


# ----------------------------------------------------------------------------------------------- through heads


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_kl_from_hidden_equals_kl_of_the_logits(direction, softcap):
    head_s, head_t = nn.Linear(6, VOCABULARY + 4), nn.Linear(9, VOCABULARY, bias=False)
    hidden_s, hidden_t = torch.randn(TOKENS, 6, requires_grad=True), torch.randn(TOKENS, 9)
    mask = torch.rand(TOKENS) > 0.3

    def cap(x):
        return x if softcap is None else softcap * torch.tanh(x / softcap)

    ours = losses.kl_from_hidden(
        hidden_s, head_s, hidden_t, head_t, mask, temperature=2, direction=direction, softcap=softcap, chunk=4
    )
    plain = plain_kl(cap(head_s(hidden_s))[:, :VOCABULARY], cap(head_t(hidden_t)).detach(), mask, 2, direction)
    same(0.5 * ours, 0.5 * plain, hidden_s, head_s.weight, head_s.bias)


@pytest.mark.parametrize("weight", [0.5, 0.2])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_jensen_shannon_from_hidden_equals_that_of_the_logits(weight, softcap):
    head_s, head_t = nn.Linear(6, VOCABULARY + 4).double(), nn.Linear(9, VOCABULARY, bias=False).double()
    hidden_s, hidden_t = torch.randn(TOKENS, 6).double().requires_grad_(), torch.randn(TOKENS, 9).double()
    mask = torch.rand(TOKENS) > 0.3

    def cap(x):
        return x if softcap is None else softcap * torch.tanh(x / softcap)

    ours = losses.jensen_shannon_from_hidden(
        hidden_s, head_s, hidden_t, head_t, mask, temperature=2, weight=weight, softcap=softcap, chunk=4
    )
    picked = cap(head_s(hidden_s))[mask, :VOCABULARY], cap(head_t(hidden_t)).detach()[mask]
    plain = plain_jensen_shannon(*picked, weight, 2)
    same(0.5 * ours, 0.5 * plain, hidden_s, head_s.weight, head_s.bias, tolerance=1e-12)
    with pytest.raises(InputError, match="between 0 and 1"):
        losses.jensen_shannon_from_hidden(hidden_s, head_s, hidden_t, head_t, weight=0)


def test_kl_from_hidden_gradcheck():
    hidden = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    hidden_t, weight_t = torch.randn(4, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    for softcap in (None, 2.0):
        assert torch.autograd.gradcheck(
            lambda h, w, c=softcap: losses.kl_from_hidden(h, w, hidden_t, weight_t, chunk=3, softcap=c),
            (hidden, weight),
        )


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("masked", [False, True])
def test_topk_from_hidden_equals_topk_of_the_logits(softcap, masked):
    head, hidden = nn.Linear(6, VOCABULARY + 4), torch.randn(TOKENS, 6, requires_grad=True)
    mask = torch.rand(TOKENS) > 0.3 if masked else None
    parts = topk(torch.randn(TOKENS, VOCABULARY), 5, 2.0)
    about = {"temperature": 2.0, "vocabulary": VOCABULARY, "chunk": 4}
    for known in (parts, [part if mask is None else part[mask] for part in parts]):
        logits = head(hidden) if softcap is None else softcap * torch.tanh(head(hidden) / softcap)
        ours = losses.topk_kl_from_hidden(hidden, head, *known, mask, softcap=softcap, **about)
        same(0.5 * ours, 0.5 * losses.topk_kl(logits, *known, mask, **about), hidden, head.weight, head.bias)


def test_topk_from_hidden_never_has_whole_logits_and_refuses_what_does_not_fit():
    tokens, vocabulary = 160, 2**17
    head, hidden = nn.Linear(2, vocabulary, bias=False), torch.randn(tokens, 2, requires_grad=True)
    known = torch.full((tokens, 1), -1.0), torch.zeros(tokens, 1, dtype=torch.long), torch.full((tokens,), -0.46)
    with Largest() as largest:
        losses.topk_kl_from_hidden(hidden, head, *known).backward()
    assert 0 < largest.elements <= 2**24 < tokens * vocabulary
    with pytest.raises(InputError, match="one row per token"):
        losses.topk_kl_from_hidden(hidden[:50], head, *known)
    with pytest.raises(InputError, match="names token 7, the student has 5"):
        losses.topk_kl_from_hidden(hidden, head.weight[:5], known[0], known[1] + 7, known[2])


def test_head_walk_blocks_of_the_vocabulary(monkeypatch):
    monkeypatch.setattr(losses, "_HEAD_BLOCK", 10)
    head = nn.Linear(6, VOCABULARY)
    hidden = torch.randn(TOKENS, 6)
    labels = torch.randint(VOCABULARY, (TOKENS,))
    same(
        losses.cross_entropy_from_hidden(hidden, head, labels, chunk=4),
        F.cross_entropy(head(hidden), labels, reduction="sum"),
        head.weight,
        head.bias,
    )


def test_frozen_head_and_no_grad_compute_no_gradient():
    head, hidden = nn.Linear(6, VOCABULARY).requires_grad_(False), torch.randn(TOKENS, 6, requires_grad=True)
    loss = losses.kl_from_hidden(hidden, head, torch.randn(TOKENS, 6), head)
    loss.backward()
    assert hidden.grad is not None
    assert head.weight.grad is None
    with torch.no_grad():
        quiet = losses.kl_from_hidden(hidden, head, torch.randn(TOKENS, 6), head)
    assert not quiet.requires_grad


def test_from_hidden_under_bf16_autocast():
    head, hidden = nn.Linear(6, VOCABULARY), torch.randn(TOKENS, 6, requires_grad=True)
    labels = torch.randint(VOCABULARY, (TOKENS,))
    plain = F.cross_entropy(head(hidden), labels, reduction="sum")
    want = gradient(plain, hidden, head.weight)
    with torch.autocast("cpu", torch.bfloat16):
        ours = losses.cross_entropy_from_hidden(hidden, head, labels)
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(plain.item(), rel=1e-2)
    for mine, theirs in zip(gradient(ours, hidden, head.weight), want, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=5e-2, atol=5e-2)


# ----------------------------------------------------------------------------------------------- cross-entropy


def test_cross_entropy_equals_torch(logits):
    student, _ = logits
    labels = torch.randint(VOCABULARY, (TOKENS,))
    labels[::4] = -100
    same(
        losses.cross_entropy(student, labels, chunk=5),
        F.cross_entropy(student, labels, ignore_index=-100, reduction="sum"),
        student,
    )


@pytest.mark.parametrize("label", [4, -1, 10**6])
def test_a_label_that_is_no_class_is_refused(label):
    states, head, labels = torch.randn(2, 3), torch.randn(4, 3), torch.tensor([1, label])
    for loss in (
        lambda: losses.cross_entropy(states @ head.T, labels),
        lambda: losses.cross_entropy_from_hidden(states, head, labels),
    ):
        with pytest.raises(InputError, match=f"label {label} is none of 4 classes, 0 to 3") as caught:
            loss()
        assert "\n" not in str(caught.value)
    assert losses.cross_entropy(states @ head.T, torch.tensor([-100, -100])) == 0


def test_labels_of_sequences_are_none_of_their_tokens():
    for loss in (
        lambda: losses.cross_entropy(torch.zeros(8, 14, 5), torch.zeros(8, dtype=torch.long)),
        lambda: losses.cross_entropy_from_hidden(
            torch.zeros(8, 14, 3), torch.zeros(5, 3), torch.zeros(8, dtype=torch.long)
        ),
    ):
        with pytest.raises(InputError, match=r"labels \[8\] for logits \[8, 14, 5\]: give labels \[8, 14\], -100"):
            loss()


def test_next_tokens_shift_and_skip_padding():
    ids = torch.tensor([[5, 6, 7, 0], [0, 8, 9, 3]])
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    assert losses.next_tokens(ids, mask).tolist() == [[6, 7, -100, -100], [-100, 9, 3, -100]]
    assert losses.next_tokens(ids).tolist() == [[6, 7, 0, -100], [8, 9, 3, -100]]


# ----------------------------------------------------------------------------------------------- hidden states


def test_token_is_the_unsquared_norm_over_non_padding():
    student, teacher = torch.randn(2, 4, 3, requires_grad=True), torch.randn(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
    plain = ((student - teacher).norm(dim=-1) * mask).sum()
    same(losses.token(student, teacher, mask), plain, student)


def test_token_is_safe_at_zero_and_its_gradient_has_length_one_elsewhere():
    teacher = torch.randn(5, 3)
    student = teacher.clone()
    student[0] += 2.0
    student.requires_grad_()
    part = gradient(losses.token(student, teacher), student)[0]
    assert part[1:].abs().sum() == 0
    assert part[0].norm().item() == pytest.approx(1.0)


def test_cosine_and_mse_with_projection():
    project = nn.Linear(3, 5, bias=False)
    student, teacher = torch.randn(2, 4, 3, requires_grad=True), torch.randn(2, 4, 5)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    lifted = project(student)[mask]
    target = teacher[mask]
    same(
        losses.cosine(student, teacher, mask, project=project),
        (1 - (lifted * target).sum(-1) / lifted.norm(dim=-1) / target.norm(dim=-1)).sum(),
        student,
        project.weight,
    )
    same(
        losses.mse(student, teacher, mask, project=project),
        ((project(student)[mask] - target) ** 2).sum() / 5,
        student,
        project.weight,
    )


def test_relative_is_a_share_of_the_teachers_size():
    student, teacher = torch.randn(2, 5, 8, requires_grad=True), 3 * torch.randn(2, 5, 8)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    s, t = student[mask.bool()], teacher[mask.bool()]
    plain = 7 * F.mse_loss(s, t) / (t.square().mean() + 2**-7)
    same(losses.relative(student, teacher, mask), plain, student)
    # Scaling both changes nothing but for eps.
    same(losses.relative(10 * student, 10 * teacher, eps=0.0), losses.relative(student, teacher, eps=0.0), student)


def test_hidden_losses_ignore_nan_in_padding():
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    student[3] = math.nan
    student.requires_grad_()
    mask = torch.tensor([1, 1, 1, 0])
    for loss in (losses.token, losses.cosine, losses.mse, losses.relative, losses.relational):
        value = loss(student, teacher, mask)
        same(value, loss(student[:3], teacher[:3]), student)
        assert gradient(loss(student, teacher, mask), student)[0].isfinite().all()
        nothing = loss(student, teacher, torch.zeros(4))
        assert nothing == 0
        assert gradient(nothing, student)[0].abs().sum() == 0


def test_cosine_of_a_zero_row_is_finite():
    student = torch.zeros(1, 4, requires_grad=True)
    value = losses.cosine(student, torch.ones(1, 4))
    assert value == 1
    assert gradient(value, student)[0].isfinite().all()


def test_relational_is_zero_for_a_rotation_and_equals_the_plain_formula():
    student, teacher = torch.randn(6, 4, requires_grad=True), torch.randn(6, 8)
    rotation = torch.linalg.qr(torch.randn(8, 8))[0]
    assert losses.relational(3 * teacher @ rotation, teacher).item() == pytest.approx(0, abs=1e-4)

    def rows(x):
        unit = x / x.norm(dim=-1, keepdim=True)
        logits = (unit @ unit.T / 0.1).masked_fill(torch.eye(6, dtype=torch.bool), -1e9)
        return F.softmax(logits, -1)

    p, q = rows(teacher), rows(student)
    plain = torch.where(p > 0, p * (p / q).log(), 0).nan_to_num().sum()
    ours = losses.relational(student, teacher, temperature=0.1)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-4)
    assert gradient(ours, student)[0].isfinite().all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s, t: losses.kl(s, t[:-1]), "not of the same tokens"),
        (lambda s, t: losses.kl(s, t, torch.ones(3)), "mask has 3 entries"),
        (lambda s, t: losses.kl(s, t, temperature=0), "temperature=0"),
        (lambda s, t: losses.kl(s, t, direction="sideways"), "'forward' or 'reverse'"),
        (lambda s, t: losses.kl(s, t, chunk=0), "at least 1 token"),
        (lambda s, t: losses.jensen_shannon(s, t, weight=1.0), "between 0 and 1"),
        (lambda s, t: losses.topk_kl(s, *(x[:4] for x in topk(t, 3))), "one row per token"),
        (lambda s, t: losses.cosine(s, t[:, :9]), "project=nn.Linear"),
        (lambda s, t: losses.relational(s[:2], t[:2]), "at least 3"),
        (lambda s, t: losses.relational(s[:4], t[:4], torch.tensor([1, 0, 1, 0])), "a batch of 2 .* at least 3"),
    ],
)
def test_bad_input_is_named(logits, call, words):
    with pytest.raises(InputError, match=words):
        call(*logits)
