"""Losses that win back what a cut lost. Every loss here is a SUM over what it counts; the caller divides by totals.

A sum is what stays right under padding, gradient accumulation and several processes: the training loop hands the
objective the totals of the whole step, and the pieces add up to the mean of one big batch.

The losses over a vocabulary never hold two full float32 [tokens, vocabulary] matrices. They walk over the tokens in
chunks and keep only the logits they were given; the backward pass walks once more and writes the student's gradient
chunk by chunk into the one matrix that has to exist. The `_from_hidden` forms go through the language-model heads
inside the walk, so that not even the logits exist as a whole. Teachers get no gradient.

No loss multiplies by temperature squared: where a paper does (Hinton et al. 2015), its recipe does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.errors import InputError

__all__ = [
    "IGNORED",
    "Head",
    "cosine",
    "cross_entropy",
    "cross_entropy_from_hidden",
    "jensen_shannon",
    "kl",
    "kl_from_hidden",
    "mse",
    "next_tokens",
    "relational",
    "relative",
    "token",
    "topk_kl",
]


class Head(Protocol):
    """Something that makes logits [n, out_features] of states [n, d], such as the heads of several teachers."""

    out_features: int

    def __call__(self, states: Tensor) -> Tensor:
        """The logits."""
        ...


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
        ctx: Any, logits: Tensor, formula: Formula, rows: Tensor | None, chunk: int, width: int, *targets: Tensor
    ) -> Tensor:
        ctx.save_for_backward(logits, *([] if rows is None else [rows]), *targets)
        ctx.formula, ctx.chunk, ctx.width, ctx.picked = formula, chunk, width, rows is not None
        total = torch.zeros((), dtype=torch.float64, device=_accumulator(logits))
        for piece, parts in _chunks(logits, rows, chunk, width, targets):
            total += formula(piece, *parts)[0].sum().to(total)
        return total.to(device=logits.device, dtype=_wide(logits))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        logits, *targets = ctx.saved_tensors
        rows = targets.pop(0) if ctx.picked else None
        # Without rows to leave out every entry is written below, but for columns past the shared vocabulary.
        gradient = torch.empty_like(logits) if rows is None else torch.zeros_like(logits)
        if rows is None:
            gradient[:, ctx.width :] = 0
        for start, (piece, parts) in enumerate(_chunks(logits, rows, ctx.chunk, ctx.width, targets)):
            part = ctx.formula(piece, *parts)[1]().mul_(scale)
            span = slice(start * ctx.chunk, start * ctx.chunk + len(part))
            if rows is None:
                gradient[span, : ctx.width] = part
            else:
                gradient[rows[span], : ctx.width] = part.to(gradient.dtype)
        return gradient, None, None, None, None, *(None for _ in targets)


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


def _through_head(states: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    """Logits of a few rows in float32: `states @ weight.T + bias`, soft-capped as Gemma 2 does."""
    if not torch.is_autocast_enabled(states.device.type):
        states = states.to(weight.dtype)
    logits = functional.linear(states, weight, bias)
    logits = logits.to(_wide(logits))
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def _chunks(
    logits: Tensor, rows: Tensor | None, chunk: int, width: int, targets: Sequence[Tensor]
) -> Any:  # Iterator[tuple[Tensor, list[Tensor]]]
    """Pieces of [chunk, width] student logits in float32, each with the targets' rows that belong to it.

    Targets have one row per counted token, or one per token of `logits`; the latter are picked like the logits.
    """
    count = len(logits) if rows is None else len(rows)
    for start in range(0, count, chunk):
        span = slice(start, start + chunk)
        pick: Any = span if rows is None else rows[span]
        piece = logits[pick][:, :width]
        parts = [target[pick] if len(target) == len(logits) else target[span] for target in targets]
        yield piece.to(_wide(piece)), parts


def _wide(tensor: Tensor) -> torch.dtype:
    """float32, or float64 where the input already is."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _accumulator(tensor: Tensor) -> torch.device:
    """Where a float64 sum may live: Apple's GPU has no float64."""
    return torch.device("cpu") if tensor.device.type == "mps" else tensor.device


def _rows_per_chunk(chunk: int | None, vocabulary: int, device: torch.device, *, head: bool = False) -> int:
    """Rows per chunk: small enough for the cache on a CPU, large enough to fill a GPU or a matrix product."""
    if chunk is None:
        elements = 2**25 if device.type != "cpu" else 2**24 if head else 2**20
        chunk = max(1, elements // vocabulary)
    if chunk < 1:
        raise InputError(f"chunk={chunk}: give at least 1 token per chunk")
    return chunk


def _flat(states: Tensor) -> Tensor:
    return states.reshape(-1, states.shape[-1])


def _counted(mask: Tensor | None, tokens: int) -> Tensor | None:
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


def _jensen_shannon(temperature: float, width: int, weight: float) -> Formula:
    """w KL(t || m) + (1 - w) KL(s || m), m = w p_t + (1 - w) p_s.

    The terms through m cancel in the gradient: (1 - w) p_s (log p_s - log m - KL(s || m)) / temperature.
    """

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
        inside = log_q.gather(-1, indices)
        # Summing what is outside, rather than 1 minus what is inside: the latter cancels when q_r is tiny.
        outside = log_q.scatter(-1, indices, -math.inf)
        log_q_rest = outside.logsumexp(-1)
        p, p_rest = log_p.exp(), log_rest.exp()
        value = _expectation(p, log_p - inside) + _expectation(p_rest[:, None], (log_rest - log_q_rest)[:, None])

        def gradient() -> Tensor:
            share = torch.where(p_rest == 0, 0, (log_rest - log_q_rest).exp())
            part = outside.exp_().mul_(1 - share[:, None])
            # Two writes, so that a token which stands there again with p = 0 is told q - p and not q.
            return part.scatter_(-1, indices, inside.exp()).scatter_add_(-1, indices, -p).div_(temperature)

        return value, gradient

    return formula


def _cross_entropy(student: Tensor, labels: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
    """-log p_s[label]; gradient p_s - onehot(label)."""
    log_s = _log_softmax(student, 1.0)
    labels = labels.long()[:, None]

    def gradient() -> Tensor:
        part = log_s.exp_()
        return part.scatter_add_(-1, labels, part.new_full(labels.shape, -1.0))

    return -log_s.gather(-1, labels).squeeze(-1), gradient


# ------------------------------------------------------------------------------------------ losses on the logits


def kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 1.0,
    direction: str = "forward",
    chunk: int | None = None,
) -> Tensor:
    """Kullback-Leibler divergence between teacher and student predictions, summed over counted tokens, in nats.

    forward: ``sum_tokens sum_v p_t log(p_t / p_s)``; reverse: ``sum_tokens sum_v p_s log(p_s / p_t)``, with
    ``p = softmax(logits / temperature)``. Source: Hinton et al. 2015 (arXiv 1503.02531); Minitron (2407.14679) eq. of
    L_logits; reverse: MiniLLM (2306.08543).

    Shapes: student_logits [..., V_s], teacher_logits [..., V_t] with equal leading dimensions, mask [...] (nonzero =
    counts). Where V_s and V_t differ by padding rows only (see `teachers.check_vocabularies`), both softmaxes run
    over the first min(V_s, V_t) columns: each is renormalised over the tokens both models have, because the mass a
    model puts on padding rows means nothing; the student's columns past them get gradient 0.

    `chunk`: tokens at a time; the default suits the device. Pass whole logits and mask out positions: a sliced
    ``logits[:, :-1]`` is copied. Raises `InputError` for shapes that do not match or an unknown direction.
    """
    formulas = {"forward": _forward_kl, "reverse": _reverse_kl}
    if direction not in formulas:
        raise InputError(f"direction={direction!r}: give 'forward' or 'reverse'")
    _check_temperature(temperature)
    width = _shared_width(student_logits, teacher_logits)
    return _on_logits(formulas[direction](temperature, width), student_logits, width, mask, chunk, teacher_logits)


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
    if not 0 < weight < 1:
        raise InputError(f"weight={weight}: give a number between 0 and 1 (for the limits use kl)")
    _check_temperature(temperature)
    width = _shared_width(student_logits, teacher_logits)
    formula = _jensen_shannon(temperature, width, weight)
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
    width = min(student_logits.shape[-1], vocabulary or student_logits.shape[-1])
    if indices.numel() and int(indices.max()) >= width:
        raise InputError(
            f"the cache names token {int(indices.max())}, the student has {width}: make it with vocabulary={width}"
        )
    targets = (_flat(log_probabilities), _flat(indices), remaining.reshape(-1))
    return _on_logits(_topk_kl(temperature), student_logits, width, mask, chunk, *targets)


def cross_entropy(logits: Tensor, labels: Tensor, *, chunk: int | None = None) -> Tensor:
    """``sum_tokens -log softmax(logits)[label]`` over labels other than -100, in nats.

    Shapes: logits [..., V], labels [...]; ``labels[i]`` belongs to ``logits[i]``. For next-token prediction make them
    with `next_tokens` instead of slicing the logits, which would copy them.
    """
    return _on_logits(_cross_entropy, logits, logits.shape[-1], labels != IGNORED, chunk, labels.reshape(-1))


def next_tokens(input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Labels for next-token prediction, aligned with the logits: [B, S] -> [B, S], -100 where no token follows."""
    labels = torch.full_like(input_ids, IGNORED, dtype=torch.long)
    labels[:, :-1] = input_ids[:, 1:]
    if attention_mask is not None:
        labels[:, :-1].masked_fill_((attention_mask[:, 1:] * attention_mask[:, :-1]) == 0, IGNORED)
    return labels


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
    rows = _counted(mask, len(flat))
    counted = len(flat) if rows is None else len(rows)
    parts = [_flat(target).detach() if target.dim() > 1 else target for target in targets]
    for part in parts:
        if len(part) not in (counted, len(flat)):
            raise InputError(f"targets have {len(part)} rows for {counted} counted tokens: give one row per token")
    size = _rows_per_chunk(chunk, width, logits.device)
    loss: Tensor = _Walk.apply(flat, formula, rows, size, width, *parts)
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
    softcap: float | None = None,
    chunk: int | None = None,
) -> Tensor:
    """`kl` of ``hidden @ head.T``, fused with both language-model heads: no logit matrix ever exists as a whole.

    Shapes: hidden [..., d] (after the final norm; widths may differ), head an `nn.Linear` or its weight [V, d]. Extra
    memory is the gradients of the student's hidden states and head, and a few [chunk, V] pieces. `softcap`:
    ``c tanh(logits / c)`` on both sides, as Gemma 2 does. A teacher's head of another kind gives its logits itself, and
    is capped no further. Mask, vocabularies and errors as `kl`.
    """
    formulas = {"forward": _forward_kl, "reverse": _reverse_kl}
    if direction not in formulas:
        raise InputError(f"direction={direction!r}: give 'forward' or 'reverse'")
    _check_temperature(temperature)
    if student_hidden.shape[:-1] != teacher_hidden.shape[:-1]:
        raise InputError(
            f"student states {list(student_hidden.shape)} and teacher states {list(teacher_hidden.shape)} are not of "
            "the same tokens: give both models the same batch"
        )
    weight, bias = _weight_and_bias(student_head)
    head, size = _teaching(teacher_head, softcap)
    width = min(len(weight), size)
    weight, bias = weight[:width], None if bias is None else bias[:width]
    rows = _counted(mask, _flat(student_hidden).shape[0])
    teacher = _flat(teacher_hidden).detach()

    def targets(span: slice) -> Sequence[Tensor]:
        return (head(teacher[span] if rows is None else teacher[rows[span]]),)

    formula = formulas[direction](temperature, width)
    return _through_walk(formula, student_hidden, weight, bias, rows, softcap, chunk, targets)


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
    rows = _counted(labels != IGNORED, _flat(hidden).shape[0])
    flat = labels.reshape(-1)[rows]
    return _through_walk(_cross_entropy, hidden, weight, bias, rows, softcap, chunk, lambda span: (flat[span],))


def _teaching(head: nn.Linear | Tensor | Head, softcap: float | None) -> tuple[Callable[[Tensor], Tensor], int]:
    """States of a few rows -> the teacher's logits, without a gradient; and how many tokens these are of."""
    if not isinstance(head, nn.Module | Tensor):
        return torch.no_grad()(head), head.out_features
    weight, bias = _weight_and_bias(head)
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    return lambda states: _through_head(states, weight, bias, softcap), len(weight)


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


def _pair(
    student: Tensor, teacher: Tensor, mask: Tensor | None, project: Callable[[Tensor], Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Counted rows of both, [n, d] each, the student's projected, the teacher's cut off from the gradient.

    Rows are picked rather than multiplied by 0: whatever stands in the padding, NaN even, stays out of the sum.
    """
    if student.shape[:-1] != teacher.shape[:-1]:
        raise InputError(
            f"student states {list(student.shape)} and teacher states {list(teacher.shape)} are not of "
            "the same tokens: give both models the same batch"
        )
    student, teacher = _flat(student), _flat(teacher).detach()
    rows = _counted(mask, len(student))
    if rows is not None:
        student, teacher = student[rows], teacher[rows]
    if project is not None:
        student = project(student)
    if student.shape[-1] != teacher.shape[-1]:
        raise InputError(
            f"student width {student.shape[-1]} differs from teacher width {teacher.shape[-1]}: give project=nn.Linear("
            f"{student.shape[-1]}, {teacher.shape[-1]})"
        )
    return student.to(_wide(student)), teacher.to(_wide(student))


def cosine(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    project: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """``sum_rows 1 - cos(project(h_s), h_t)``, of hidden states [B, S, d] or of embeddings [B, d].

    mask [B, S] or [B]: nonzero rows count. `project` lifts the student's width to the teacher's (Minitron, arXiv
    2407.14679: one linear shared by all pairs). A row of zeros has cosine 0: it costs 1, and its gradient is finite.
    """
    student, teacher = _pair(student, teacher, mask, project)
    return (1 - functional.cosine_similarity(student, teacher, dim=-1, eps=1e-8)).sum()


def mse(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    project: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """``sum_rows (1 / d) ||project(h_s) - h_t||^2``: mean over features, sum over rows. Shapes as `cosine`."""
    student, teacher = _pair(student, teacher, mask, project)
    return (student - teacher).square().mean(-1).sum()


def relative(student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, eps: float = 2.0**-7) -> Tensor:
    """``sum_rows (1 / d) ||h_s - h_t||^2 / (mean(h_t^2) + eps)``: the error as a share of the teacher's own size.

    The mean is over all counted rows and features of this batch. Shapes as `cosine`. Source: SquareHead (arXiv
    2310.06927), with the eps of AST's code (arXiv 2407.20584).
    """
    student, teacher = _pair(student, teacher, mask, None)
    return (student - teacher).square().mean(-1).sum() / (teacher.square().mean() + eps)


def token(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """``sum_tokens ||h_s - h_t||_2``, the norm NOT squared: L_token of one block of ZipLM (arXiv 2302.04089).

    Shapes: [B, S, d] both, mask [B, S]. The caller divides by non-padding tokens and averages over blocks. Where both
    states are equal the norm has no gradient; 0 is used, so a student that starts as the teacher trains on.
    """
    student, teacher = _pair(student, teacher, mask, None)
    squared = (student - teacher).square().sum(-1)
    moved = squared > 0
    return torch.where(moved, torch.where(moved, squared, 1).sqrt(), 0).sum()


def relational(student: Tensor, teacher: Tensor, *, temperature: float = 0.05) -> Tensor:
    """KL between the rows of in-batch cosine similarities of teacher and student, summed over the B rows, in nats.

    ``sum_i KL(softmax_j(cos(t_i, t_j) / T) || softmax_j(cos(s_i, s_j) / T))`` over j != i: which neighbours each
    sentence has, whatever the two spaces look like, so widths may differ. Shapes: student [B, d_s], teacher
    [B, d_t], B >= 3 (with two there is one neighbour and nothing to compare).
    """
    _check_temperature(temperature)
    if student.shape[0] != teacher.shape[0] or student.dim() != 2 or teacher.dim() != 2:
        raise InputError(
            f"embeddings {list(student.shape)} and {list(teacher.shape)}: give [batch, width] of one batch"
        )
    count = len(student)
    if count < 3:
        raise InputError(f"a batch of {count} has no relations to compare: give at least 3 sequences")
    others = ~torch.eye(count, dtype=torch.bool, device=student.device)

    def similarities(embeddings: Tensor) -> Tensor:
        unit = functional.normalize(embeddings.to(_wide(embeddings)), dim=-1)
        return functional.log_softmax((unit @ unit.T)[others].view(count, count - 1) / temperature, -1)

    target = similarities(teacher.detach())
    return functional.kl_div(similarities(student), target, log_target=True, reduction="sum")
