"""Training objectives: a task, a teacher's predictions, a teacher's hidden states.

`distil` composes the losses of `losses` into the objective that `loop.train` minimises. A model enters as a
`Forward`: a callable from a batch to something with `prediction` and `hidden` (every `Transformer` subject's
`forward` is one), so the objective never asks what kind of model it trains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from secateur._utils.batches import Batch
from secateur._utils.outputs import of_labels
from secateur.errors import DataError, InputError, UnsupportedError
from secateur.recover.distillation import losses, maps
from secateur.recover.training import compose, dense
from secateur.recover.training.compose import Parts

__all__ = [
    "Forward",
    "Objective",
    "Prediction",
    "answer_loss",
    "count",
    "count_answers",
    "count_labels",
    "distance",
    "distil",
    "held_out",
    "keeping_loss",
    "logits",
    "mask_of",
    "match_states",
    "prediction_loss",
    "rows_of",
    "targets_of",
    "task_loss",
]

Objective = Callable[[Batch, Mapping[str, int]], tuple[Tensor, Parts]]


class Prediction(Protocol):
    """What a forward pass gives: `prediction` [B, S, V], [B, C], [B, h, w, C] of pixels, [B, d] or [B, S, d]; `hidden`
    of [B, S, d] each.

    `causal`: the prediction is logits [B, S, V] of the token after each position. Where `head` is there, the prediction
    is what goes into it, [B, S, d], and logits are `head` of that, capped by `softcap`.
    """

    prediction: Tensor
    hidden: tuple[Tensor, ...]
    causal: bool


class Forward(Protocol):
    """A model as the objective sees it."""

    def __call__(self, batch: Batch, *, hidden: bool = False) -> Prediction:
        """Run the model on `batch`; `hidden` asks for the embedding output and every block's output.

        Asked with `head=False` by objectives that are `fused`, a causal model stops before its head.
        """
        ...


def count(batch: Batch) -> dict[str, int]:
    """What a batch holds, for the divisors of the losses: tokens that are no padding, sequences with any, targets.

    A target is a token that follows another one, as `losses.next_tokens` has it. Where a batch says which positions are
    `counted` [B, S], those that predict a token to be learned, tokens and targets are these.
    """
    ids = batch["input_ids"]
    mask = batch.get("attention_mask")
    if "counted" in batch:
        some, rows = int(batch["counted"].sum()), rows_of(batch)
        return {"tokens": some, "sequences": len(ids) if rows is None else int(rows.sum()), "targets": some}
    if mask is None:
        return {"tokens": ids.numel(), "sequences": len(ids), "targets": ids.numel() - len(ids)}
    real = mask.bool()
    targets, sequences = int((real[:, 1:] & real[:, :-1]).sum()), int(real.any(1).sum())
    return {"tokens": int(mask.sum()), "sequences": sequences, "targets": targets}


def mask_of(batch: Batch) -> Tensor:
    """Which tokens [B, S] are no padding; where a batch says which positions are `counted`, these."""
    ids = batch["input_ids"]
    mask = batch.get("counted", batch.get("attention_mask"))
    return mask.bool() if mask is not None else torch.ones_like(ids, dtype=torch.bool)


def targets_of(batch: Batch) -> Tensor:
    """[B, S]: the token that each position predicts; -100 where none follows, or it is not `counted`."""
    targets = losses.next_tokens(batch["input_ids"], batch.get("attention_mask"))
    return targets.masked_fill(~batch["counted"], losses.IGNORED) if "counted" in batch else targets


def rows_of(batch: Batch) -> Tensor | None:
    """Which sequences [B] have tokens; None where all do, since picking all rows would copy them."""
    mask = batch.get("attention_mask")
    rows = None if mask is None else mask.bool().any(1)
    return None if rows is None or bool(rows.all()) else rows


def prediction_loss(
    student: Tensor,
    teacher: Tensor,
    batch: Batch,
    totals: Mapping[str, int],
    *,
    temperature: float = 1.0,
    direction: str = "forward",
    skew: float = 0.0,
    buckets: Sequence[int] = (),
) -> Tensor:
    """How far the student's logits are from the teacher's; a mean over the whole step.

    Per real token of [B, S, V], per sequence of [B, C], per pixel of [B, h, w, C] that counts in the batch's masks
    (`dense.align`); divergences times temperature squared (`losses` says why). `direction`: "forward" or "reverse" KL,
    either with a `skew` (`losses.kl`), "js" (Jensen-Shannon), "mse" or "cosine"; of one number (C = 1) "mse" alone
    tells anything. "binary" is of labels that do not exclude one another: forward KL of the yes and no of each
    (``sigmoid(z / temperature)``), summed over the C of them, which is that of all together. Of pixels
    also "channel-wise", per image (`maps.channel_wise`). With `buckets` = (k, n), forward KL
    is of k tokens one by one and of the others in n buckets (`losses.bucketed_kl`). Raises `InputError` for another
    direction there, and for other numbers of classes; vocabularies may differ by padding (`losses.kl`).
    """
    mask: Tensor | None
    divide: float
    if student.dim() == 3:
        divide, mask = totals["tokens"], mask_of(batch)
    elif student.dim() == 4:
        _check_widths(student, teacher)
        student, mask, divide = dense.align(student, teacher, batch, totals)
        if direction == "channel-wise":
            pair = student.movedim(-1, 1), teacher.movedim(-1, 1)
            return maps.channel_wise(*pair, temperature=temperature) / totals["sequences"]
    else:
        divide, mask = totals["sequences"], rows_of(batch)
        _check_widths(student, teacher)
    if student.shape[-1] == 1 and direction != "mse":
        raise InputError(f"direction {direction!r} compares classes, and the models tell one number each: use mse")
    if buckets and (direction != "forward" or skew):
        raise InputError(f"buckets are of forward KL without skew, not of {direction!r}, skew={skew:g}: leave them out")
    if buckets:
        k, count = buckets
        near = losses.bucketed_kl(student, teacher, mask, k=k, buckets=count, temperature=temperature)
        return temperature**2 * near / divide
    if direction in ("forward", "reverse"):
        near = losses.kl(student, teacher, mask, temperature=temperature, direction=direction, skew=skew)
        return temperature**2 * near / divide
    if direction == "binary":
        each = None if mask is None else mask[..., None].expand(student.shape)
        near = losses.kl(of_labels(student), of_labels(teacher), each, temperature=temperature)
        return temperature**2 * near / divide
    if direction == "js":
        return temperature**2 * losses.jensen_shannon(student, teacher, mask, temperature=temperature) / divide
    if direction == "mse":
        return losses.mse(student, teacher, mask, shared=True) / divide
    if direction == "cosine":
        return losses.cosine(student, teacher, mask, shared=True) / divide
    if direction == "channel-wise":
        raise UnsupportedError("direction channel-wise is of classes of pixels, and the models tell none")
    raise UnsupportedError(f"direction {direction!r} is not one of forward, reverse, js, binary, mse, cosine")


def _check_widths(student: Tensor, teacher: Tensor) -> None:
    if student.shape[-1] != teacher.shape[-1]:
        raise InputError(
            f"the student gives {student.shape[-1]} classes and the teacher {teacher.shape[-1]}: use models of the "
            "same classes"
        )


def distance(
    student: Tensor,
    teacher: Tensor,
    batch: Batch,
    *,
    output: str,
    totals: Mapping[str, int] | None = None,
    temperature: float = 1.0,
    direction: str = "forward",
    skew: float = 0.0,
    buckets: Sequence[int] = (),
    projection: nn.Module | None = None,
    relational: bool = False,
) -> Tensor:
    """How far the student's prediction is from the teacher's, whatever `output` it holds; a mean over `totals`.

    - "logits": `prediction_loss`, per real token of [B, S, V] or per sequence of [B, C];
    - "embedding" [B, d]: one minus cosine per sequence;
    - "states" [B, S, d]: one minus cosine per real token.

    Embeddings and states of another width than the teacher's are compared through `projection`, a map [student width]
    -> [teacher width]; or, with `relational`, by the similarities between the sequences of the batch (B >= 3; states
    enter as their mean over real tokens), which needs no common width. Sequences of padding only count nowhere.
    Raises `UnsupportedError` where widths differ and neither is given.
    """
    totals = count(batch) if totals is None else totals
    if output in ("embedding", "states"):
        mask = mask_of(batch).to(student.device) if output == "states" else rows_of(batch)
        if relational:
            ours, theirs = (_sequences(one, batch) for one in (student, teacher))
            return losses.relational(ours, theirs) / totals["sequences"]
        if student.shape[-1] != teacher.shape[-1]:
            if projection is None:
                raise UnsupportedError(
                    f"{output} of {student.shape[-1]} channels can't be compared with the teacher's of "
                    f"{teacher.shape[-1]}: give a projection, or leave channels uncut"
                )
            student = losses.lift(projection, student)
        return losses.cosine(student, teacher, mask) / totals["tokens" if output == "states" else "sequences"]
    return prediction_loss(
        student, teacher, batch, totals, temperature=temperature, direction=direction, skew=skew, buckets=buckets
    )


def _sequences(found: Tensor, batch: Batch) -> Tensor:
    """[n, d] of the n sequences that have tokens: embeddings [B, d] as they are, states [B, S, d] as their mean."""
    rows = rows_of(batch)
    kept = slice(None) if rows is None else rows.to(found.device)
    if found.dim() == 2:
        return found[kept]
    states, mask = found[kept], mask_of(batch).to(found.device)[kept]
    return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def logits(output: object) -> Tensor:
    """The logits of a network's output: itself, its `logits` (or a segmenter's "out"), or the first of a tuple."""
    if isinstance(output, Tensor):
        return output
    found = getattr(output, "logits", None)
    if isinstance(output, Mapping):
        found = output.get("logits", output.get("out"))
    if found is None and isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        found = output[0]
    if not isinstance(found, Tensor):
        raise UnsupportedError(
            f"the network returns a {type(output).__name__}: expected logits, or an output with them"
        )
    return found


def task_loss(logits: Tensor, batch: Batch, totals: Mapping[str, int], *, causal: bool) -> Tensor:
    """Cross-entropy: of the next token where logits [B, S, V] are `causal`, of the batch's `labels` of any others.

    Labels are [B] for [B, C], [B, S] for [B, S, V], with -100 where a token has none, and [B, H, W] for [B, h, w, C] of
    pixels; the mean is over sequences, over all real tokens, or over pixels with a class. Raises `InputError` where
    labels are needed and not there, or are none of the classes, `DataError` for a step without a next token.
    """
    if causal:
        return losses.cross_entropy(logits, targets_of(batch)) / _targets(totals)
    if "labels" not in batch:
        raise InputError(
            "a task loss needs labels, and these batches have none: give data with labels, or set task=0 and learn "
            "from the teacher alone"
        )
    if logits.shape[-1] == 1:
        raise InputError("a task loss is of classes, and the model tells one number: set task=0")
    labels = batch["labels"]
    if logits.dim() == 4:
        return dense.cross_entropy(logits, labels) / max(1, totals["pixels"])
    losses.check_classes(labels, logits.shape[-1])
    rows = rows_of(batch) if logits.dim() == 2 and labels.dim() == 1 else None
    if rows is not None:
        labels = labels.masked_fill(~rows.to(labels.device), losses.IGNORED)
    return losses.cross_entropy(logits, labels) / totals["tokens" if logits.dim() == 3 else "sequences"]


def _targets(totals: Mapping[str, int]) -> int:
    if not totals["targets"]:
        raise DataError("no token of a whole step follows another one: give texts of at least two tokens")
    return totals["targets"]


def count_answers(batch: Batch) -> dict[str, int]:
    """What `answer_loss` divides by: the tokens that have a label."""
    return {"tokens": int((batch["labels"] != -100).sum())}


def answer_loss(model: Any, batch: Batch, totals: Mapping[str, int]) -> tuple[Tensor, Parts]:
    """Cross-entropy of the tokens of an answer, those of what was asked left out; a mean over the whole step.

    batch: `input_ids` [B, S] without padding, and `labels` [B, S]: at each place the token that follows, or -100.
    Logits are computed from the first place with a label on.
    """
    labels = batch["labels"]
    first = int((labels != -100).any(0).nonzero()[0])
    out = model(input_ids=batch["input_ids"], use_cache=False, logits_to_keep=labels.shape[1] - first)
    return losses.cross_entropy(out.logits, labels[:, first:]) / totals["tokens"], {}


def keeping_loss(model: Any, weight: float, batch: Batch, totals: Mapping[str, int]) -> tuple[Tensor, Parts]:
    """Mean over tokens of -t log P(keep) - (1 - t) log P(drop), plus ``weight * mean_n (s_n - z_n)^2`` over pairs.

    Means are those of the whole step. With t of 0 and 1 it is -log P(label).

    batch: what the model takes, and `targets` t [n, L], 1 for a token that is to stay, 0 for one that is to go, or what
    lies between, `labels` [n, L], -100 for a token that is not looked at, and `scores` s [n]. model: gives scores z [n]
    and logits [n, L, 2].

    Source: Provence (arXiv 2501.16214), eq. 1, with the minus sign of the log-likelihood that its print lacks.
    """
    scores, logits = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")})
    likely, targets = logits.float().log_softmax(-1), batch["targets"]
    each = -targets * likely[..., 1] - (1 - targets) * likely[..., 0]
    keeping = each.masked_fill(batch["labels"] == losses.IGNORED, 0.0).sum() / totals["tokens"]
    ranking = (scores.float() - batch["scores"]).square().sum() / totals["examples"]
    return keeping + weight * ranking, {"keeping": keeping.detach(), "ranking": ranking.detach()}


def count_labels(batch: Batch) -> dict[str, int]:
    """Tokens with a label, and pairs."""
    return {"tokens": int((batch["labels"] != -100).sum()), "examples": len(batch["labels"])}


@torch.no_grad()
def held_out(
    student: Forward, *, teacher: Forward, output: str, batches: Sequence[Batch], relational: bool = False
) -> float:
    """Loss on held-out batches: cross-entropy of a causal model, distance to the teacher of any other (`distance`)."""
    total = 0.0
    for batch in batches:
        ours = student(batch)
        batch = {name: tensor.to(ours.prediction.device) for name, tensor in batch.items()}
        if ours.causal:
            total += float(task_loss(ours.prediction, batch, count(batch), causal=True))
        else:
            theirs = teacher(batch).prediction
            total += float(distance(ours.prediction, theirs, batch, output=output, relational=relational))
    return total / len(batches)


def match_states(student: int, teacher: int) -> list[tuple[int, int]]:
    """Pairs of hidden states for L_is: the embedding output, and the output of the block two before the last.

    student, teacher: how many blocks each has. State k is the output of block k, counted from 1: of 32 and 16 blocks,
    30 and 14. Source: Minitron (arXiv 2407.14679), section 3 (its 29 : 13, counted from 0).
    """
    return [(0, 0), (max(1, student - 2), max(1, teacher - 2))]


def distil(
    student: Forward,
    teacher: Forward | None,
    *,
    output: str,
    task: float = 0.0,
    logit: float = 1.0,
    token: float = 0.0,
    temperature: float = 1.0,
    direction: str = "forward",
    skew: float = 0.0,
    buckets: Sequence[int] = (),
    warmup: Mapping[str, float] | None = None,
    blocks: Sequence[tuple[int, int]] = (),
    hidden: Sequence[tuple[int, int]] = (),
    measure: Literal["cosine", "relative"] = "cosine",
    projection: nn.Module | None = None,
    alpha: float | Literal["dynamic"] = "dynamic",
    fused: bool = False,
) -> Objective:
    """`task` x cross-entropy + `logit` x prediction loss + `token` x L_token + alpha x L_hidden.

    Args:
        student: the model in training.
        teacher: the original; None where only the task counts, or where each batch brings the teacher's likeliest
            tokens along (`teachers.Joined` with `teachers.cache_topk`).
        output: what `prediction` holds: "logits", "embedding" or "states".
        task: weight of cross-entropy (`task_loss`); only for an output of logits.
        logit: weight of the prediction loss (`distance`).
        token: weight of ZipLM's L_token: mean over tokens of the L2 distance of the hidden states, averaged over
            `blocks`.
        temperature: T of both predictions in a divergence, which is multiplied by T^2, so that its share beside the
            other losses is the same at every T (Hinton et al. 2015). "mse" and "cosine" of logits have none.
        direction: of the KL, see `prediction_loss`.
        skew: of the KL, see `losses.kl`; a cache of likeliest tokens takes none.
        buckets: of forward KL, see `prediction_loss`; the whole logits are held then, fused or not.
        warmup: shares of training over which "task", "hidden" and others grow from 0 to their weight; batches then need
            "done" (`data.batches.Numbered`).
        blocks: (student, teacher) indices into `hidden` for L_token; same width, no projection.
        hidden: (student, teacher) indices for the loss between hidden states (Minitron's L_is), summed over pairs.
        measure: of that loss: "cosine", through the projection, or "relative" (`losses.relative`), of equal widths.
        projection: one learned map student width -> teacher width, shared by all pairs of `hidden`, and by the
            prediction where that is embeddings or states of another width.
        alpha: weight of L_is; "dynamic" is L_logits / L_is, detached (Minitron, section 3.2), and 1 where there is no
            prediction loss to be as large as. The ratio is taken in each micro-batch: under gradient accumulation, and
            over several processes, the losses add up to those of one big batch, but a micro-batch's L_is weighs by its
            own ratio, not by that of their sums, so the gradient differs a little.
        fused: let causal models stop before their heads, and take cross-entropy, KL and "js" through the heads in
            pieces, so that no matrix of logits [tokens, V] is ever held; where a loss has no such form, this changes
            nothing.

    Returns a mean over the step's totals and its parts as floats. Raises `UnsupportedError` for a task loss on
    embeddings or states; the objective raises `InputError` where that needs labels which a batch has not, and
    `DataError` for a step of padding only, or with nothing to predict.
    """
    if task and output != "logits":
        raise UnsupportedError(
            f"task={task:g} is cross-entropy, which needs logits, and this model gives {output}: set task=0, or open "
            "the model with its task's head"
        )
    wants_hidden = bool((token and blocks) or hidden)
    fused = fused and output == "logits" and direction in ("forward", "reverse", "js") and not buckets
    ramps = warmup or {}

    def objective(batch: Batch, totals: Mapping[str, int]) -> tuple[Tensor, Parts]:
        if not totals.get("tokens", 1):
            raise DataError("a whole step of padding: give texts with tokens, and an attention_mask of 1 at them")
        how: dict[str, bool] = {"hidden": wants_hidden}
        if fused:
            how["head"] = False
        ours: Any = student(batch, **how)
        through = getattr(ours, "head", None)
        theirs: Any = None
        if teacher is not None:
            if "head" in how:
                how["head"] = through is None  # a student that is sharded keeps its head; so does the teacher then
            with torch.no_grad():
                theirs = teacher(batch, **how)
        total = ours.prediction.new_zeros((), dtype=torch.float32)
        parts: dict[str, Tensor] = {}

        def add(name: str, weight: float | Tensor, value: Tensor) -> None:
            nonlocal total
            total = total + weight * compose.ramp(batch, name, ramps.get(name, 0.0)) * value
            parts[name] = value.detach()

        if task and through is not None:
            value = losses.cross_entropy_from_hidden(ours.prediction, through, targets_of(batch), softcap=ours.softcap)
            add("task", task, value / _targets(totals))
        elif task:
            add("task", task, task_loss(ours.prediction, batch, totals, causal=ours.causal))
        near = None
        if logit and "teacher_indices" in batch:
            known = (batch["teacher_log_probabilities"], batch["teacher_indices"], batch["teacher_remaining"])
            if through is None:
                near = losses.topk_kl(ours.prediction, *known, mask_of(batch), temperature=temperature)
            else:
                near = losses.topk_kl_from_hidden(
                    ours.prediction, through, *known, mask_of(batch), temperature=temperature, softcap=ours.softcap
                )
            near = temperature**2 * near / totals["tokens"]
            add("logit", logit, near)
        elif theirs is not None and logit and through is not None:
            head = losses.find_head(theirs, ours.softcap)
            sides = ours.prediction, through, theirs.prediction, head, mask_of(batch)
            about: dict[str, Any] = {"temperature": temperature, "softcap": ours.softcap}
            if direction == "js":
                near = losses.jensen_shannon_from_hidden(*sides, **about)
            else:
                near = losses.kl_from_hidden(*sides, direction=direction, skew=skew, **about)
            near = temperature**2 * near / totals["tokens"]
            add("logit", logit, near)
        elif theirs is not None and logit:
            near = distance(
                ours.prediction,
                theirs.prediction,
                batch,
                output=output,
                totals=totals,
                temperature=temperature,
                direction=direction,
                skew=skew,
                buckets=buckets,
                projection=projection,
            )
            add("logit", logit, near)
        if theirs is not None and token and blocks:
            mask = mask_of(batch)
            far = sum((losses.token(ours.hidden[i], theirs.hidden[j], mask) for i, j in blocks), total.new_zeros(()))
            add("token", token, far / (len(blocks) * totals["tokens"]))
        if theirs is not None and hidden:
            mask = mask_of(batch)
            apart = total.new_zeros(())
            for i, j in hidden:
                if measure == "relative":
                    apart = apart + losses.relative(ours.hidden[i], theirs.hidden[j], mask) / totals["tokens"]
                    continue
                mapped = losses.lift(projection, ours.hidden[i]) if projection is not None else ours.hidden[i]
                apart = apart + losses.cosine(mapped, theirs.hidden[j], mask) / totals["tokens"]
            if alpha != "dynamic":
                add("hidden", alpha, apart)
            else:
                add("hidden", 1.0 if near is None else compose.balance(near, apart), apart)
        return total, parts

    return objective
