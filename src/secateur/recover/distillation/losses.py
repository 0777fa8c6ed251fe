"""Distillation losses. Every loss here is a sum over what it counts; the caller divides by totals.

A sum is what stays right under padding, gradient accumulation and several processes: the training loop hands the
objective the totals of the whole step, and the pieces add up to the mean of one big batch.

A teacher may lie on another device: what it said comes to the student's as it is needed, a chunk at a time.

The losses over a vocabulary never hold two full float32 [tokens, vocabulary] matrices, `mse` and `cosine` no more than
the divergences. They walk over the tokens in chunks and keep only the logits they were given; the backward pass walks
once more and writes the student's gradient chunk by chunk into the one matrix that has to exist. The `_from_hidden`
forms go through the language-model heads inside the walk, so that not even the logits exist as a whole. Teachers get no
gradient.

No loss here multiplies by temperature squared; what joins it with others does (`objectives.distil`, and recipes that
join losses themselves). A softened divergence has gradients ``(p_s - p_t) / T``, and at a large T these are about
``(z_s - z_t) / (V T^2)`` for V classes: times T^2, as Hinton et al. 2015 (arXiv 1503.02531, section 2) have it, they
stay as large beside a cross-entropy whatever T is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur._utils import devices
from secateur.errors import InputError

__all__ = [
    "IGNORED",
    "Answer",
    "Capped",
    "Head",
    "Passed",
    "bucketed_kl",
    "check_classes",
    "cosine",
    "cross_entropy",
    "cross_entropy_from_hidden",
    "dkd",
    "find_head",
    "jensen_shannon",
    "jensen_shannon_from_hidden",
    "kl",
    "kl_at",
    "kl_from_hidden",
    "lift",
    "mse",
    "next_tokens",
    "pair",
    "relational",
    "relative",
    "token",
    "topk_kl",
    "topk_kl_from_hidden",
]


class Head(Protocol):
    """Something that makes logits [n, out_features] of states [n, d], such as the heads of several teachers."""

    out_features: int

    def __call__(self, states: Tensor) -> Tensor:
        """The logits."""
        ...


class Answer(Protocol):
    """What a model says of a batch; where it stopped before its head, with `head` and `softcap`."""

    @property
    def prediction(self) -> Tensor:
        """Logits, or what goes into the head."""
        ...


class Passed:
    """The head of a teacher that has gone through its own: what comes as its states are logits [n, out_features]."""

    def __init__(self, out_features: int) -> None:
        self.out_features = out_features

    def __call__(self, states: Tensor) -> Tensor:
        """The same, in float32."""
        return states.to(_wide(states))


class Capped:
    """The head of a teacher with a soft cap c of its own, as logits [n, out_features]: ``c tanh(head(states) / c)``."""

    def __init__(self, head: nn.Linear | Tensor, softcap: float | None) -> None:
        weight, bias = _weight_and_bias(head)
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        self.softcap, self.out_features = softcap, len(weight)

    def __call__(self, states: Tensor) -> Tensor:
        """The logits of a few rows, in float32, without a gradient to the head."""
        return _through_head(states, self.weight, self.bias, self.softcap)


def find_head(answer: Answer, softcap: float | None) -> nn.Linear | Head:
    """What makes the logits of a teacher's answer that may have stopped before its head, for a student with `softcap`.

    Its head, with the cap of its own model where that is another than the student's; a teacher that is split or sharded
    has gone through its head itself.
    """
    head: nn.Linear | Head | None = getattr(answer, "head", None)
    if head is None:
        return Passed(answer.prediction.shape[-1])
    cap = getattr(answer, "softcap", None)
    return Capped(head, cap) if isinstance(head, nn.Linear) and cap != softcap else head


# A formula takes a float32 chunk of student logits [n, V] and the targets' rows for it. It returns the loss of each
# row [n], and a function that computes the gradient of those rows with respect to the chunk [n, V].
Formula = Callable[..., tuple[Tensor, Callable[[], Tensor]]]

IGNORED = -100
"""Label of a position without a target (PyTorch's own convention)."""


# ------------------------------------------------------------------------------------------------ the two walks


class _Walk(torch.autograd.Function):
    """Sum of `formula` over the rows of a logit matrix, chunk by chunk; the gradient is recomputed, never stored."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        formula: Formula,
        rows: Tensor | None,
        chunk: int,
        columns: int | Tensor,
        places: Sequence[Tensor | None],
        *targets: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(logits, *([] if rows is None else [rows]), *targets)
        ctx.formula, ctx.chunk, ctx.columns, ctx.places, ctx.picked = formula, chunk, columns, places, rows is not None
        total = torch.zeros((), dtype=torch.float64, device=_accumulator(logits))
        for piece, parts in _chunks(logits, rows, chunk, columns, places, targets):
            total += formula(piece, *parts)[0].sum().to(total)
        return total.to(device=logits.device, dtype=_wide(logits))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        logits, *targets = ctx.saved_tensors
        rows, columns = targets.pop(0) if ctx.picked else None, ctx.columns
        # Without rows to leave out every entry is written below, but for columns past the shared vocabulary.
        gradient = torch.empty_like(logits) if rows is None else torch.zeros_like(logits)
        if rows is None:
            gradient[:, columns:] = 0
        for start, (piece, parts) in enumerate(_chunks(logits, rows, ctx.chunk, columns, ctx.places, targets)):
            part = ctx.formula(piece, *parts)[1]().mul_(scale)
            span = slice(start * ctx.chunk, start * ctx.chunk + len(part))
            if rows is None:
                gradient[span, :columns] = part
            elif isinstance(columns, Tensor):  # rows that are named may come again, and add up
                wide = gradient.new_zeros(len(part), gradient.shape[1]).index_add_(1, columns, part.to(gradient.dtype))
                gradient.index_add_(0, rows[span], wide)
            else:
                gradient[rows[span], :columns] = part.to(gradient.dtype)
        return gradient, *(None for _ in range(5 + len(targets)))


class _HeadWalk(torch.autograd.Function):
    """Sum of `formula` over rows of hidden states, through the head, chunk by chunk.

    The gradients of the hidden states and of the head are small beside the logits, so they are computed on the
    way and only scaled in the backward pass: the large matrix products run once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        formula: Formula,
        softcap: float | None,
        chunk: int,
        wanted: tuple[bool, bool, bool],
        targets: Callable[[slice], Sequence[Tensor]],
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=_accumulator(hidden))
        d_hidden = torch.zeros_like(hidden) if wanted[0] else None
        d_weight = torch.zeros_like(weight) if wanted[1] else None
        d_bias = torch.zeros_like(bias) if wanted[2] and bias is not None else None
        for start in range(0, len(hidden), chunk):
            span = slice(start, start + chunk)
            states = hidden[span]
            logits = _through_head(states, weight, bias, softcap)
            parts = targets(span)
            value, gradient = formula(logits, *parts)
            total += value.sum().to(total)
            if not any(wanted):
                continue
            part = gradient()
            if softcap is not None:
                part.mul_(1 - (logits / softcap) ** 2)
            if d_bias is not None:
                d_bias += part.sum(0).to(d_bias.dtype)
            part = part.to(weight.dtype)
            if d_hidden is not None:
                d_hidden[span] = (part @ weight).to(hidden.dtype)
            if d_weight is not None:
                # In blocks of the vocabulary: one product would need a second matrix of the head's size.
                for first in range(0, len(weight), _HEAD_BLOCK):
                    block = slice(first, first + _HEAD_BLOCK)
                    d_weight[block] += (part[:, block].T @ states.to(weight.dtype)).to(d_weight.dtype)
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        return total.to(device=hidden.device, dtype=_wide(hidden))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (None if saved is None else saved * scale.to(saved.dtype) for saved in ctx.saved_tensors)
        return *gradients, None, None, None, None, None


_HEAD_BLOCK = 16_384
_HEAD_ROWS = 128


def _through_head(states: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    """Logits of a few rows in float32: `states @ weight.T + bias`, soft-capped as Gemma 2 does."""
    if not torch.is_autocast_enabled(states.device.type):
        states = states.to(weight.dtype)
    logits = functional.linear(states, weight, bias)
    logits = logits.to(_wide(logits))
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def _chunks(
    logits: Tensor,
    rows: Tensor | None,
    chunk: int,
    columns: int | Tensor,
    places: Sequence[Tensor | None],
    targets: Sequence[Tensor],
) -> Any:  # Iterator[tuple[Tensor, list[Tensor]]]
    """Pieces of student logits in float32, each with the targets' rows that belong to it.

    rows: those of `logits` that count, all if None; columns: how many, from the first on, or which (then with rows).
    places: for each target which of its rows go with those that count; None where it has just these, in order.
    """
    count = len(logits) if rows is None else len(rows)
    for start in range(0, count, chunk):
        span = slice(start, start + chunk)
        piece = logits[span if rows is None else rows[span]]
        piece = piece[:, :columns] if isinstance(columns, int) else piece.index_select(1, columns)
        yield (
            piece.to(_wide(piece)),
            [
                devices.move(target[span if at is None else devices.move(at[span], target)], piece)
                for target, at in zip(targets, places, strict=True)
            ],
        )


def _wide(tensor: Tensor) -> torch.dtype:
    """float32, or float64 where the input already is."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _accumulator(tensor: Tensor) -> torch.device:
    """Where a float64 sum may live: Apple's GPU has no float64."""
    return torch.device("cpu") if tensor.device.type == "mps" else tensor.device


def _rows_per_chunk(chunk: int | None, vocabulary: int, device: torch.device, *, head: bool = False) -> int:
    """Rows per chunk: small enough for the cache on a CPU, large enough to fill a GPU or a matrix product."""
    if chunk is None:
        chunk = max(1, (2**20 if device.type == "cpu" else 2**25) // vocabulary)
        if head and device.type == "cpu":
            # Every chunk adds to the head's whole gradient: too few rows, and that takes longer than the product.
            chunk = max(chunk, _HEAD_ROWS)
    if chunk < 1:
        raise InputError(f"chunk={chunk}: give at least 1 token per chunk")
    return chunk


def _flat(states: Tensor) -> Tensor:
    return states.reshape(-1, states.shape[-1])


def _token_indices(mask: Tensor | None, tokens: int) -> Tensor | None:
    """Indices of the tokens that count, or None when all do."""
    if mask is None:
        return None
    if mask.numel() != tokens:
        raise InputError(f"mask has {mask.numel()} entries for {tokens} tokens: give one entry per token")
    return mask.reshape(-1).bool().nonzero().squeeze(1)


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature={temperature}: give a number above 0")


# ----------------------------------------------------------------------------------------------------- formulas


def _expectation(probability: Tensor, difference: Tensor) -> Tensor:
    """Row sums of `probability * difference`, with 0 * inf = 0: a forbidden token (logit -inf) costs nothing."""
    return difference.mul_(probability).masked_fill_(probability == 0, 0).sum(-1)


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    return functional.log_softmax(logits if temperature == 1 else logits / temperature, -1)


def _forward_kl(temperature: float, width: int) -> Formula:
    """KL(t || s) = sum p_t (log p_t - log p_s); gradient (p_s - p_t) / temperature."""

    def formula(student: Tensor, teacher: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        log_s = _log_softmax(student, temperature)
        log_t = _log_softmax(teacher[:, :width].to(student.dtype), temperature)
        p_t = log_t.exp()

        def gradient() -> Tensor:
            return log_s.exp_().sub_(p_t).div_(temperature)

        return _expectation(p_t, log_t.sub_(log_s)), gradient

    return formula


def _reverse_kl(temperature: float, width: int) -> Formula:
    """KL(s || t) = sum p_s (log p_s - log p_t); gradient p_s (log p_s - log p_t - KL) / temperature."""

    def formula(student: Tensor, teacher: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        log_s = _log_softmax(student, temperature)
        difference = log_s - _log_softmax(teacher[:, :width].to(student.dtype), temperature)
        p_s = log_s.exp_()
        value = _expectation(p_s, difference.clone())

        def gradient() -> Tensor:
            part = difference.sub_(value[:, None]).mul_(p_s)
            return part.masked_fill_(p_s == 0, 0).div_(temperature)

        return value, gradient

    return formula


def _skewed_kl(temperature: float, width: int, skew: float) -> Formula:
    """KL(t || m), m = skew p_t + (1 - skew) p_s; gradient p_s (S - u) / temperature, u = (1 - skew) p_t / m, S = p_s u.

    As p_s -> 0 the ratio p_t / m stays below 1 / skew, where plain forward KL has p_t / p_s without bound.
    """

    def formula(student: Tensor, teacher: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        log_s = _log_softmax(student, temperature)
        log_t = _log_softmax(teacher[:, :width].to(student.dtype), temperature)
        log_m = torch.logaddexp(log_t + math.log(skew), log_s + math.log1p(-skew))
        p_t = log_t.exp()
        difference = log_t.sub_(log_m)

        def gradient() -> Tensor:
            # u p_s; a token that is impossible for both has m = 0, and no share in anything.
            share = (difference + log_s).exp_().mul_(1 - skew).masked_fill_(p_t == 0, 0)
            return log_s.exp_().mul_(share.sum(-1, keepdim=True)).sub_(share).div_(temperature)

        return _expectation(p_t, difference.clone()), gradient

    return formula


def _skewed_reverse_kl(temperature: float, width: int, skew: float) -> Formula:
    """KL(s || m), m = (1 - skew) p_t + skew p_s; gradient p_s (g - sum p_s g) / T, g = log(p_s / m) - skew p_s / m."""

    def formula(student: Tensor, teacher: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        log_s = _log_softmax(student, temperature)
        log_t = _log_softmax(teacher[:, :width].to(student.dtype), temperature)
        log_m = torch.logaddexp(log_t + math.log1p(-skew), log_s + math.log(skew))
        difference = log_s - log_m
        p_s = log_s.exp_()

        def gradient() -> Tensor:
            slope = difference.sub_(difference.exp().mul_(skew)).masked_fill_(p_s == 0, 0)
            return slope.sub_((p_s * slope).sum(-1, keepdim=True)).mul_(p_s).div_(temperature)

        return _expectation(p_s, difference.clone()), gradient

    return formula


def _divergence(direction: str, skew: float, temperature: float, width: int) -> Formula:
    """The formula of a direction, skewed or not."""
    if direction not in ("forward", "reverse"):
        raise InputError(f"direction={direction!r}: give 'forward' or 'reverse'")
    if not 0 <= skew < 1:
        raise InputError(f"skew={skew}: give a number from 0, which is the plain divergence, to below 1")
    _check_temperature(temperature)
    if not skew:
        return (_forward_kl if direction == "forward" else _reverse_kl)(temperature, width)
    return (_skewed_kl if direction == "forward" else _skewed_reverse_kl)(temperature, width, skew)


def _jensen_shannon(weight: float, temperature: float, width: int) -> Formula:
    """w KL(t || m) + (1 - w) KL(s || m), m = w p_t + (1 - w) p_s.

    The terms through m cancel in the gradient: (1 - w) p_s (log p_s - log m - KL(s || m)) / temperature.
    """
    if not 0 < weight < 1:
        raise InputError(f"weight={weight}: give a number between 0 and 1 (for the limits use kl)")
    _check_temperature(temperature)

    def formula(student: Tensor, teacher: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        log_s = _log_softmax(student, temperature)
        log_t = _log_softmax(teacher[:, :width].to(student.dtype), temperature)
        log_m = torch.logaddexp(log_t + math.log(weight), log_s + math.log1p(-weight))
        p_s = log_s.exp()
        difference = log_s.sub_(log_m)
        to_student = _expectation(p_s, difference.clone())
        to_teacher = _expectation(log_t.exp(), log_t - log_m)

        def gradient() -> Tensor:
            part = difference.sub_(to_student[:, None]).mul_(p_s)
            return part.masked_fill_(p_s == 0, 0).mul_((1 - weight) / temperature)

        return weight * to_teacher + (1 - weight) * to_student, gradient

    return formula


def _topk_kl(temperature: float) -> Formula:
    """Forward KL over k + 1 events: the k tokens of a cache, and all others taken together.

    sum_k p_k (log p_k - log q_k) + p_r (log p_r - log q_r), q_r the student's mass outside the k tokens. Gradient with
    respect to the logits: q_k - p_k inside, q_j (1 - p_r / q_r) outside, all over temperature.
    """

    def formula(
        student: Tensor, log_p: Tensor, indices: Tensor, log_rest: Tensor
    ) -> tuple[Tensor, Callable[[], Tensor]]:
        log_q = _log_softmax(student, temperature)
        indices, log_p, log_rest = indices.long(), log_p.to(log_q.dtype), log_rest.to(log_q.dtype)
        inside, p = log_q.gather(-1, indices), log_p.exp()
        value = _expectation(p, log_p - inside)
        # Nothing is outside, as where the k tokens are drawn: q - p is all. A GPU would have to be waited for.
        if log_rest.device.type == "cpu" and bool((log_rest == -math.inf).all()):

            def difference() -> Tensor:
                return log_q.exp_().scatter_add_(-1, indices, -p).div_(temperature)

            return value, difference
        # Summing what is outside, rather than 1 minus what is inside: the latter cancels when q_r is tiny.
        outside = log_q.scatter_(-1, indices, -math.inf)
        log_q_rest, p_rest = outside.logsumexp(-1), log_rest.exp()
        value = value + _expectation(p_rest[:, None], (log_rest - log_q_rest)[:, None])

        def gradient() -> Tensor:
            # q_j (1 - p_r / q_r) as (q_j / q_r) (q_r - p_r): p_r / q_r may be too large for a number.
            part = outside.sub_(_or_zero(log_q_rest)[:, None]).exp_().mul_((log_q_rest.exp() - p_rest)[:, None])
            # Two writes, so that a token which stands there again with p = 0 is told q - p and not q.
            return part.scatter_(-1, indices, inside.exp()).scatter_add_(-1, indices, -p).div_(temperature)

        return value, gradient

    return formula


def _bucketed_kl(temperature: float, width: int, k: int, buckets: int, ratio: float) -> Formula:
    """Forward KL over k + `buckets` events; gradient q_j - q_j p_e / q_e, e the event of token j, over temperature."""

    def formula(student: Tensor, teacher: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        log_q = _log_softmax(student, temperature)
        log_p = _log_softmax(teacher[:, :width].to(student.dtype), temperature)
        top, indices = log_p.topk(k)
        decade = (top[:, -1:] - log_p).div_(math.log(ratio)).clamp_(0, buckets - 1)
        # Not a number where neither has any probability.
        events = decade.nan_to_num_(buckets - 1).to(torch.int64).add_(k)
        events.scatter_(-1, indices, torch.arange(k, device=indices.device).expand_as(indices))
        log_pe, log_qe = (_together(log, events, k + buckets) for log in (log_p, log_q))
        p = log_pe.exp()

        def gradient() -> Tensor:
            # As (q_j / q_e) (q_e - p_e): p_e / q_e may be too large for a number.
            part = log_q.sub_(_or_zero(log_qe).gather(-1, events)).exp_()
            return part.mul_((log_qe.exp() - p).gather(-1, events)).div_(temperature)

        return _expectation(p, log_pe - log_qe), gradient

    return formula


def _or_zero(logs: Tensor) -> Tensor:
    """`logs` with 0 in place of -inf, to be taken off what is -inf as well."""
    return logs.masked_fill(logs == -math.inf, 0)


def _together(logs: Tensor, events: Tensor, count: int) -> Tensor:
    """Log of the sum of exp(logs) [n, V] in each of `count` events [n, V]; -inf where an event is empty."""
    most = logs.new_full((len(logs), count), -math.inf).scatter_reduce_(-1, events, logs, "amax")
    most = _or_zero(most)
    sums = torch.zeros_like(most).scatter_add_(-1, events, (logs - most.gather(-1, events)).exp_())
    return sums.log_().add_(most)


def _dkd(temperature: float, width: int, target: float, other: float) -> Formula:
    """``target KL(b_t || b_s) + other KL(p^_t || p^_s)``; p^ is p without the label, renormalised, b = (p_y, 1 - p_y).

    With l = log(b / (1 - b)) the first term has d/dl = b_s - b_t, dl/dz_y = 1 and dl/dz_j = -p^_s(j); the second has
    d/dz_j = p^_s(j) - p^_t(j), and 0 for the label. All over temperature.
    """

    def formula(student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        labels = labels.long()[:, None]
        odds, rest = _split_off(student / temperature, labels)
        odds_t, rest_t = _split_off(teacher[:, :width].to(student.dtype) / temperature, labels)
        b_t, p_t = odds_t.sigmoid(), rest_t.exp()
        # KL of two coins by their log-odds: log b = logsigmoid(l), log(1 - b) = logsigmoid(-l).
        coin = b_t * (functional.logsigmoid(odds_t) - functional.logsigmoid(odds))
        coin = coin + (1 - b_t) * (functional.logsigmoid(-odds_t) - functional.logsigmoid(-odds))
        value = target * coin + other * _expectation(p_t, rest_t - rest)

        def gradient() -> Tensor:
            p_s = rest.exp()
            pull = (target * (odds.sigmoid() - b_t))[:, None]
            part = other * (p_s - p_t) - pull * p_s
            return part.scatter_(-1, labels, pull).div_(temperature)

        return value, gradient

    return formula


def _split_off(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-odds [n] of the label [n, 1] against all others, and log-softmax [n, V] of the others (-inf at the label)."""
    others = logits.scatter(-1, labels, -math.inf)
    mass = others.logsumexp(-1, keepdim=True)
    return (logits.gather(-1, labels) - mass).squeeze(-1), others.sub_(mass)


def _cross_entropy(student: Tensor, labels: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
    """-log p_s[label]; gradient p_s - onehot(label)."""
    log_s = _log_softmax(student, 1.0)
    labels = labels.long()[:, None]

    def gradient() -> Tensor:
        part = log_s.exp_()
        return part.scatter_add_(-1, labels, part.new_full(labels.shape, -1.0))

    return -log_s.gather(-1, labels).squeeze(-1), gradient


def _mse(width: int) -> Formula:
    """mean_v (s - t)^2; gradient 2 (s - t) / width."""

    def formula(student: Tensor, teacher: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        difference = student - teacher[:, :width].to(student.dtype)
        return difference.square().mean(-1), lambda: difference.mul_(2 / width)

    return formula


def _cosine(width: int) -> Formula:
    """1 - cos, cos = <u, v> of s and t over their lengths; gradient (cos u - v) / |s|. No length is below 1e-8."""

    def formula(student: Tensor, teacher: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        length = student.norm(dim=-1, keepdim=True).clamp_min_(1e-8)
        v = functional.normalize(teacher[:, :width].to(student.dtype), dim=-1, eps=1e-8)
        u = student / length
        cosine = (u * v).sum(-1, keepdim=True)
        return 1 - cosine.squeeze(-1), lambda: u.mul_(cosine).sub_(v).div_(length)

    return formula


# ------------------------------------------------------------------------------------------ losses on the logits


def kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 1.0,
    direction: str = "forward",
    skew: float = 0.0,
    chunk: int | None = None,
) -> Tensor:
    """Kullback-Leibler divergence between teacher and student predictions, summed over counted tokens, in nats.

    forward: ``sum_tokens sum_v p_t log(p_t / p_s)``; reverse: ``sum_tokens sum_v p_s log(p_s / p_t)``, with
    ``p = softmax(logits / temperature)``. Source: Hinton et al. 2015 (arXiv 1503.02531); Minitron (2407.14679) eq. of
    L_logits; reverse: MiniLLM (2306.08543).

    `skew` a mixes some of the first distribution into the second: forward ``KL(p_t || a p_t + (1 - a) p_s)``, reverse
    ``KL(p_s || (1 - a) p_t + a p_s)``, which bounds their gradients; 0 is the plain divergence, 0.1 the paper's value.
    Source: DistiLLM (arXiv 2402.03898), skew and skew reverse KL.

    Shapes: student_logits [..., V_s], teacher_logits [..., V_t] with equal leading dimensions, mask [...] (nonzero =
    counts). Where V_s and V_t differ by padding rows only (see `teachers.check_vocabularies`), both softmaxes run
    over the first min(V_s, V_t) columns: each is renormalised over the tokens both models have, because the mass a
    model puts on padding rows means nothing; the student's columns past them get gradient 0.

    `chunk`: tokens at a time; the default suits the device. Pass whole logits and mask out positions: a sliced
    ``logits[:, :-1]`` is copied. Raises `InputError` for shapes that do not match or an unknown direction.
    """
    width = _shared_width(student_logits, teacher_logits)
    formula = _divergence(direction, skew, temperature, width)
    return _on_logits(formula, student_logits, width, mask, chunk, teacher_logits)


def kl_at(
    student_logits: Tensor,
    teacher_logits: Tensor,
    pairs: Tensor,
    columns: tuple[Tensor, Tensor],
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> Tensor:
    """Forward `kl` of rows and columns that are named, such as tokens of two tokenizers; summed over pairs, in nats.

    ``sum_i KL(softmax(t[pairs_i1, columns_1] / T) || softmax(s[pairs_i0, columns_0] / T))``, both renormalised over
    the columns. They are picked chunk by chunk: neither [pairs, k] matrix exists as a whole. Shapes: student_logits
    [..., V_s] and teacher_logits [..., V_t], whose leading dimensions need not agree; pairs [n, 2] of their flattened
    rows; columns [k] and [k].
    """
    _check_temperature(temperature)
    mine, yours = (one.to(student_logits.device) for one in columns)
    formula = _forward_kl(temperature, len(mine))

    def pick_columns(student: Tensor, teacher: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        return formula(student, teacher.index_select(1, yours))

    flat, teacher = _flat(student_logits), _flat(teacher_logits).detach()
    ours, theirs = pairs.to(flat.device).unbind(1)
    size = _rows_per_chunk(chunk, max(flat.shape[1], teacher.shape[1]), flat.device)
    loss: Tensor = _Walk.apply(flat, pick_columns, ours, size, mine, [theirs], teacher)
    return loss


def jensen_shannon(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 1.0,
    weight: float = 0.5,
    chunk: int | None = None,
) -> Tensor:
    """Generalised Jensen-Shannon divergence, summed over counted tokens, in nats.

    ``w KL(p_t || m) + (1 - w) KL(p_s || m)``, ``m = w p_t + (1 - w) p_s``. Source: GKD (arXiv 2306.13649), eq. 1 with
    its beta as `weight`. Shapes, mask, vocabularies and errors as `kl`. Symmetric at weight 0.5.
    """
    width = _shared_width(student_logits, teacher_logits)
    formula = _jensen_shannon(weight, temperature, width)
    return _on_logits(formula, student_logits, width, mask, chunk, teacher_logits)


def topk_kl(
    student_logits: Tensor,
    log_probabilities: Tensor,
    indices: Tensor,
    remaining: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 1.0,
    vocabulary: int | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Forward KL from a teacher known by its k likeliest tokens and the mass of all others, summed, in nats.

    ``sum_k p_k log(p_k / q_k) + p_r log(p_r / q_r)``: the divergence after all tokens outside the k are merged into one
    event, hence a lower bound of the full forward KL, equal to it at k = V or where the rest has the same shape.
    `temperature` must be the one the cache was made with: a remaining mass can't be re-tempered.

    Shapes: student_logits [..., V], log_probabilities and indices [N, k], remaining [N] (log mass outside the k tokens;
    -inf for none), where N counts the tokens with a nonzero mask, in order (all tokens if mask is None). Leading
    dimensions may also be those of the student: then the mask picks from them. `vocabulary`: the student's columns to
    use, as the cache was made. See `teachers.cache_topk`.
    """
    _check_temperature(temperature)
    width = _cached_width(student_logits.shape[-1], vocabulary, indices)
    targets = (_flat(log_probabilities), _flat(indices), remaining.reshape(-1))
    return _on_logits(_topk_kl(temperature), student_logits, width, mask, chunk, *targets)


def bucketed_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor | None = None,
    *,
    k: int = 64,
    buckets: int = 8,
    ratio: float = 10.0,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> Tensor:
    """Forward KL with the teacher's k likeliest tokens one by one and all others in buckets, summed, in nats.

    ``sum_e p_e log(p_e / q_e)`` over k tokens and `buckets` events. Bucket b holds the tokens whose teacher probability
    lies between ``ratio^-b`` and ``ratio^-(b + 1)`` times that of the k-th, the last one all below. Where `topk_kl`
    compares one number of the tail, this compares its decades, and no more: which of two equally unlikely tokens the
    student prefers costs nothing. Between `topk_kl` (buckets=1) and `kl` (k = V), both exactly. Teachers here are live:
    a cache would have to hold the bucket of every token. Not of a paper: this project's.

    Shapes, mask, vocabularies and errors as `kl`.
    """
    width = _shared_width(student_logits, teacher_logits)
    if k < 1 or buckets < 1 or not 1 < ratio < math.inf:
        raise InputError(f"k={k}, buckets={buckets}, ratio={ratio}: give at least 1, at least 1, and more than 1")
    _check_temperature(temperature)
    formula = _bucketed_kl(temperature, width, min(k, width), buckets, ratio)
    return _on_logits(formula, student_logits, width, mask, chunk, teacher_logits)


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    target: float = 1.0,
    other: float = 8.0,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> Tensor:
    """Decoupled distillation: the label's share, and how the rest is shared out, each with a weight; summed, in nats.

    ``target KL(b_t || b_s) + other KL(p^_t || p^_s)`` over labels other than -100, with ``b = (p_y, 1 - p_y)`` and p^
    the distribution over all classes but y. Plain KL is the case target=1, other = 1 - p_t(y), which silences the
    second term where the teacher is sure. Source: DKD (Zhao et al., CVPR 2022, arXiv 2203.08679), alpha and beta
    as `target` and `other`. The caller multiplies by temperature squared.

    Shapes: student_logits and teacher_logits [..., V], labels [...]; at least two classes. Vocabularies as `kl`. Raises
    `InputError` for labels outside the shared classes.
    """
    width = _shared_width(student_logits, teacher_logits)
    _check_temperature(temperature)
    counted = labels != IGNORED
    if bool(((labels < 0) | (labels >= width))[counted].any()) or width < 2:
        raise InputError(f"labels of {width} shared classes: give 0 to {width - 1}, or -100 for what does not count")
    formula = _dkd(temperature, width, target, other)
    return _on_logits(formula, student_logits, width, counted, chunk, teacher_logits, labels.reshape(-1))


def cross_entropy(logits: Tensor, labels: Tensor, *, chunk: int | None = None) -> Tensor:
    """``sum_tokens -log softmax(logits)[label]`` over labels other than -100, in nats.

    Shapes: logits [..., V], labels [...]; ``labels[i]`` belongs to ``logits[i]``. For next-token prediction make them
    with `next_tokens` instead of slicing the logits, which would copy them. Raises `InputError` for another number of
    labels than rows and, on a CPU, for one that is none of the classes; a GPU would have to be waited for.
    """
    _check_labels(labels, logits.shape[:-1], logits.shape[-1])
    return _on_logits(_cross_entropy, logits, logits.shape[-1], labels != IGNORED, chunk, labels.reshape(-1))


def check_classes(labels: Tensor, classes: int) -> None:
    """Raise `InputError` for a label that is none of `classes`, nor -100."""
    wrong = ((labels < 0) | (labels >= classes)) & (labels != IGNORED)
    if bool(wrong.any()):
        first = labels[wrong][0].item()
        raise InputError(
            f"label {first} is none of {classes} classes, 0 to {classes - 1}: mend it, or write {IGNORED} "
            "where there is none"
        )


def _check_labels(labels: Tensor, rows: torch.Size, classes: int) -> None:
    if labels.numel() != rows.numel():
        raise InputError(
            f"labels {list(labels.shape)} for logits {[*rows, classes]}: give labels {list(rows)}, {IGNORED} where one "
            "does not count"
        )
    if labels.device.type == "cpu":
        check_classes(labels, classes)


def next_tokens(input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Labels for next-token prediction, aligned with the logits: [B, S] -> [B, S], -100 where no token follows."""
    labels = torch.full_like(input_ids, IGNORED, dtype=torch.long)
    labels[:, :-1] = input_ids[:, 1:]
    if attention_mask is not None:
        labels[:, :-1].masked_fill_((attention_mask[:, 1:] * attention_mask[:, :-1]) == 0, IGNORED)
    return labels


def _cached_width(student: int, vocabulary: int | None, indices: Tensor) -> int:
    width = min(student, vocabulary or student)
    if indices.device.type == "cpu" and indices.numel() and int(indices.max()) >= width:  # others are not waited for
        raise InputError(
            f"the cache names token {int(indices.max())}, the student has {width}: make it with vocabulary={width}"
        )
    return width


def _shared_width(student_logits: Tensor, teacher_logits: Tensor) -> int:
    if student_logits.shape[:-1] != teacher_logits.shape[:-1]:
        raise InputError(
            f"student logits {list(student_logits.shape)} and teacher logits {list(teacher_logits.shape)} are not of "
            "the same tokens: give both models the same batch"
        )
    return min(student_logits.shape[-1], teacher_logits.shape[-1])


def _on_logits(
    formula: Formula, logits: Tensor, width: int, mask: Tensor | None, chunk: int | None, *targets: Tensor
) -> Tensor:
    flat = _flat(logits)
    rows = _token_indices(mask, len(flat))
    counted = len(flat) if rows is None else len(rows)
    parts = [_flat(target).detach() if target.dim() > 1 else target for target in targets]
    for part in parts:
        if len(part) not in (counted, len(flat)):
            raise InputError(f"targets have {len(part)} rows for {counted} counted tokens: give one row per token")
    size = _rows_per_chunk(chunk, width, logits.device)
    places = [rows if len(part) == len(flat) else None for part in parts]
    loss: Tensor = _Walk.apply(flat, formula, rows, size, width, places, *parts)
    return loss


# -------------------------------------------------------------------------------------- losses through the head


def kl_from_hidden(
    student_hidden: Tensor,
    student_head: nn.Linear | Tensor,
    teacher_hidden: Tensor,
    teacher_head: nn.Linear | Tensor | Head,
    mask: Tensor | None = None,
    *,
    temperature: float = 1.0,
    direction: str = "forward",
    skew: float = 0.0,
    softcap: float | None = None,
    chunk: int | None = None,
) -> Tensor:
    """`kl` of ``hidden @ head.T``, fused with both language-model heads: no logit matrix ever exists as a whole.

    Shapes: hidden [..., d] (after the final norm; widths may differ), head an `nn.Linear` or its weight [V, d]. Extra
    memory is the gradients of the student's hidden states and head, and a few [chunk, V] pieces. `softcap`:
    ``c tanh(logits / c)`` on both sides, as Gemma 2 does. A teacher's head of another kind gives its logits itself, and
    is capped no further; `find_head` makes one where the teacher's cap is another. Mask, vocabularies and errors as
    `kl`.
    """
    formula = partial(_divergence, direction, skew, temperature)
    sides = student_hidden, student_head, teacher_hidden, teacher_head
    return _between_heads(formula, *sides, mask, softcap, chunk)


def jensen_shannon_from_hidden(
    student_hidden: Tensor,
    student_head: nn.Linear | Tensor,
    teacher_hidden: Tensor,
    teacher_head: nn.Linear | Tensor | Head,
    mask: Tensor | None = None,
    *,
    temperature: float = 1.0,
    weight: float = 0.5,
    softcap: float | None = None,
    chunk: int | None = None,
) -> Tensor:
    """`jensen_shannon` of ``hidden @ head.T``, fused with both heads. Shapes and heads as `kl_from_hidden`."""
    formula = partial(_jensen_shannon, weight, temperature)
    sides = student_hidden, student_head, teacher_hidden, teacher_head
    return _between_heads(formula, *sides, mask, softcap, chunk)


def _between_heads(
    formula: Callable[[int], Formula],
    student_hidden: Tensor,
    student_head: nn.Linear | Tensor,
    teacher_hidden: Tensor,
    teacher_head: nn.Linear | Tensor | Head,
    mask: Tensor | None,
    softcap: float | None,
    chunk: int | None,
) -> Tensor:
    """The formula of the shared width, between what two heads make of hidden states of the same tokens."""
    _check_tokens(student_hidden, teacher_hidden)
    weight, bias = _weight_and_bias(student_head)
    head, size = _teaching(teacher_head, softcap)
    width = min(len(weight), size)
    weight, bias = weight[:width], None if bias is None else bias[:width]
    rows = _token_indices(mask, _flat(student_hidden).shape[0])
    teacher = _flat(teacher_hidden).detach()

    def targets(span: slice) -> Sequence[Tensor]:
        logits = head(teacher[span if rows is None else devices.move(rows[span], teacher)])
        return (devices.move(logits, student_hidden),)

    return _through_walk(formula(width), student_hidden, weight, bias, rows, softcap, chunk, targets)


def topk_kl_from_hidden(
    hidden: Tensor,
    head: nn.Linear | Tensor,
    log_probabilities: Tensor,
    indices: Tensor,
    remaining: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 1.0,
    vocabulary: int | None = None,
    softcap: float | None = None,
    chunk: int | None = None,
) -> Tensor:
    """`topk_kl` of ``hidden @ head.T``, fused with the head. Shapes: hidden [..., d], all others as of `topk_kl`."""
    _check_temperature(temperature)
    weight, bias = _weight_and_bias(head)
    width = _cached_width(len(weight), vocabulary, indices)
    weight, bias = weight[:width], None if bias is None else bias[:width]
    states = _flat(hidden)
    rows = _token_indices(mask, len(states))
    counted = len(states) if rows is None else len(rows)
    parts = (_flat(log_probabilities), _flat(indices), remaining.reshape(-1))
    for part in parts:
        if len(part) not in (counted, len(states)):
            raise InputError(f"targets have {len(part)} rows for {counted} counted tokens: give one row per token")
    if rows is not None:
        parts = tuple(part[rows] if len(part) == len(states) else part for part in parts)  # type: ignore[assignment]
    formula = _topk_kl(temperature)
    return _through_walk(formula, hidden, weight, bias, rows, softcap, chunk, lambda span: [p[span] for p in parts])


def cross_entropy_from_hidden(
    hidden: Tensor,
    head: nn.Linear | Tensor,
    labels: Tensor,
    *,
    softcap: float | None = None,
    chunk: int | None = None,
) -> Tensor:
    """`cross_entropy` of ``hidden @ head.T``, fused with the head. Shapes: hidden [..., d], labels [...]."""
    weight, bias = _weight_and_bias(head)
    _check_labels(labels, hidden.shape[:-1], len(weight))
    rows = _token_indices(labels != IGNORED, _flat(hidden).shape[0])
    flat = labels.reshape(-1)[rows]
    return _through_walk(_cross_entropy, hidden, weight, bias, rows, softcap, chunk, lambda span: (flat[span],))


def _teaching(head: nn.Linear | Tensor | Head, softcap: float | None) -> tuple[Callable[[Tensor], Tensor], int]:
    """States of a few rows -> the teacher's logits, without a gradient; and how many tokens these are of."""
    made: Head = Capped(head, softcap) if isinstance(head, nn.Module | Tensor) else head
    return torch.no_grad()(made), made.out_features


def _weight_and_bias(head: nn.Linear | Tensor) -> tuple[Tensor, Tensor | None]:
    return (head, None) if isinstance(head, Tensor) else (head.weight, head.bias)


def _through_walk(
    formula: Formula,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor | None,
    softcap: float | None,
    chunk: int | None,
    targets: Callable[[slice], Sequence[Tensor]],
) -> Tensor:
    states = _flat(hidden)
    states = states if rows is None else states[rows]
    on = torch.is_grad_enabled()
    wanted = tuple(on and part is not None and part.requires_grad for part in (states, weight, bias))
    size = _rows_per_chunk(chunk, len(weight), hidden.device, head=True)
    loss: Tensor = _HeadWalk.apply(states, weight, bias, formula, softcap, size, wanted, targets)
    return loss


# ------------------------------------------------------------------------------------- losses on hidden states


def pair(
    student: Tensor, teacher: Tensor, mask: Tensor | None, project: Callable[[Tensor], Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Counted rows of both, [n, d] each and in float32, the student's projected, the teacher's without a gradient.

    Rows are picked rather than multiplied by 0: whatever stands in the padding, NaN even, stays out of the sum.
    """
    _check_tokens(student, teacher)
    student, teacher = _flat(student), devices.move(_flat(teacher).detach(), student)
    rows = _token_indices(mask, len(student))
    if rows is not None:
        student, teacher = student[rows], teacher[rows]
    if project is not None:
        student = lift(project, student)
    _check_widths(student, teacher)
    return student.to(_wide(student)), teacher.to(_wide(student))


def lift(project: Callable[[Tensor], Tensor], student: Tensor) -> Tensor:
    """``project(student)``, the student's features in the number type of the weights of `project`, if it has any.

    Projections are float32, and a student that is tried, evaluated or has adapters may answer in half precision.
    """
    weight = next(project.parameters(), None) if isinstance(project, nn.Module) else None
    return project(student if weight is None else student.to(weight.dtype))


def _check_tokens(student: Tensor, teacher: Tensor) -> None:
    if student.shape[:-1] != teacher.shape[:-1]:
        raise InputError(
            f"student states {list(student.shape)} and teacher states {list(teacher.shape)} are not of "
            "the same tokens: give both models the same batch"
        )


def _check_widths(student: Tensor, teacher: Tensor) -> None:
    if student.shape[-1] != teacher.shape[-1]:
        raise InputError(
            f"student width {student.shape[-1]} differs from teacher width {teacher.shape[-1]}: give project=nn.Linear("
            f"{student.shape[-1]}, {teacher.shape[-1]})"
        )


def _compare_rows(
    formula: Callable[[int], Formula],
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    project: Callable[[Tensor], Tensor] | None,
    shared: bool,
    chunk: int | None,
) -> Tensor:
    """The formula of a width over the rows that count, in chunks; rows are picked first, as in `pair`."""
    _check_tokens(student, teacher)
    student, teacher = _flat(student), _flat(teacher)
    if project is not None:
        rows = _token_indices(mask, len(student))
        if rows is not None:
            student, teacher, mask = student[rows], teacher[devices.move(rows, teacher)], None
        student = lift(project, student)
    if not shared:
        _check_widths(student, teacher)
    width = min(student.shape[-1], teacher.shape[-1])
    return _on_logits(formula(width), student, width, mask, chunk, teacher)


def cosine(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    project: Callable[[Tensor], Tensor] | None = None,
    shared: bool = False,
    chunk: int | None = None,
) -> Tensor:
    """``sum_rows 1 - cos(project(h_s), h_t)``, of hidden states [B, S, d], embeddings [B, d] or logits [..., V].

    mask [B, S] or [B]: nonzero rows count. `project` lifts the student's width to the teacher's (Minitron, arXiv
    2407.14679: one linear shared by all pairs). A row of zeros has cosine 0: it costs 1, and its gradient is finite.
    `shared`: of logits of other widths, compare the columns that both have, as `kl` does; else widths that differ are
    refused. `chunk`: rows at a time; the default suits the device.
    """
    return _compare_rows(_cosine, student, teacher, mask, project, shared, chunk)


def mse(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    project: Callable[[Tensor], Tensor] | None = None,
    shared: bool = False,
    chunk: int | None = None,
) -> Tensor:
    """``sum_rows (1 / d) ||project(h_s) - h_t||^2``: mean over features, sum over rows. All else as of `cosine`."""
    return _compare_rows(_mse, student, teacher, mask, project, shared, chunk)


def relative(student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, eps: float = 2.0**-7) -> Tensor:
    """``sum_rows (1 / d) ||h_s - h_t||^2 / (mean(h_t^2) + eps)``: the error as a share of the teacher's own size.

    The mean is over all counted rows and features of this batch. Shapes as `cosine`. Source: SquareHead (arXiv
    2310.06927), with the eps of AST's code (arXiv 2407.20584).
    """
    student, teacher = pair(student, teacher, mask, None)
    if not len(student):
        return student.sum()  # of nothing there is no mean
    return (student - teacher).square().mean(-1).sum() / (teacher.square().mean() + eps)


def token(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """``sum_tokens ||h_s - h_t||_2``, the norm NOT squared: L_token of one block of ZipLM (arXiv 2302.04089).

    Shapes: [B, S, d] both, mask [B, S]. The caller divides by non-padding tokens and averages over blocks. Where both
    states are equal the norm has no gradient; 0 is used, so a student that starts as the teacher trains on.
    """
    student, teacher = pair(student, teacher, mask, None)
    squared = (student - teacher).square().sum(-1)
    moved = squared > 0
    return torch.where(moved, torch.where(moved, squared, 1).sqrt(), 0).sum()


def relational(student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, temperature: float = 0.05) -> Tensor:
    """KL between the rows of in-batch cosine similarities of teacher and student, summed over the rows, in nats.

    ``sum_i KL(softmax_j(cos(t_i, t_j) / T) || softmax_j(cos(s_i, s_j) / T))`` over j != i: which neighbours each
    sentence has, whatever the two spaces look like, so widths may differ. Shapes: student [B, d_s], teacher
    [B, d_t], mask [B]: nonzero rows count, and no others are anyone's neighbours. At least 3 count (with two there is
    one neighbour and nothing to compare), or none at all, which is 0.
    """
    _check_temperature(temperature)
    if student.shape[0] != teacher.shape[0] or student.dim() != 2 or teacher.dim() != 2:
        raise InputError(
            f"embeddings {list(student.shape)} and {list(teacher.shape)}: give [batch, width] of one batch"
        )
    teacher, rows = devices.move(teacher, student), _token_indices(mask, len(student))
    if rows is not None:
        student, teacher = student[rows], teacher[rows]
    count = len(student)
    if not count:
        return student.to(_wide(student)).sum()
    if count < 3:
        raise InputError(f"a batch of {count} has no relations to compare: give at least 3 sequences")
    others = ~torch.eye(count, dtype=torch.bool, device=student.device)

    def similarities(embeddings: Tensor) -> Tensor:
        unit = functional.normalize(embeddings.to(_wide(embeddings)), dim=-1)
        return functional.log_softmax((unit @ unit.T)[others].view(count, count - 1) / temperature, -1)

    target = similarities(teacher.detach())
    return functional.kl_div(similarities(student), target, log_target=True, reduction="sum")
