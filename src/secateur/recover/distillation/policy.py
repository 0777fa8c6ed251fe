"""On-policy distillation of language models: a student generates texts, and its teacher scores them.

Generalised knowledge distillation, Agarwal et al. 2023 (arXiv 2306.13649): what a student does at its own mistakes is
never seen in texts of others, so a share of the batches is written by the student as it is at that step.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from secateur._utils import devices
from secateur._utils.batches import Batch, Batches
from secateur._utils.modes import evaluating
from secateur.errors import DataError, InputError, UnsupportedError
from secateur.recover.distillation import losses
from secateur.recover.training.compose import Parts
from secateur.recover.training.objectives import Forward, Objective

__all__ = ["Rollouts", "count", "divergence", "following", "objective"]


def following(lengths: Tensor, starts: Tensor, longest: int) -> Tensor:
    """[B, longest], True at the positions that predict a token behind the prompt.

    lengths [B]: tokens of each row that are no padding; starts [B]: tokens of its prompt, at least 1. Position t says
    what token t + 1 is, so that these are starts - 1 to lengths - 2: the end of text counts, what follows it does not.
    """
    places = torch.arange(longest, device=lengths.device)[None]
    return (places >= starts[:, None] - 1) & (places < lengths[:, None] - 1)


def divergence(
    student: Tensor, teacher: Tensor, mask: Tensor, *, beta: float = 0.5, temperature: float = 1.0
) -> Tensor:
    """GKD's divergence of teacher and student, summed over the tokens of `mask`, in nats.

    ``D = beta KL(p_t || m) + (1 - beta) KL(p_s || m)``, ``m = beta p_t + (1 - beta) p_s`` (eq. 1 of the paper); its
    limits are forward KL at beta 0 and reverse KL at beta 1, each scaled to be no 0. Shapes as `losses.kl`.
    """
    if beta in (0, 1):
        direction = "reverse" if beta else "forward"
        return losses.kl(student, teacher, mask, temperature=temperature, direction=direction)
    return losses.jensen_shannon(student, teacher, mask, temperature=temperature, weight=beta)


def count(batch: Batch) -> dict[str, int]:
    """What a batch of `Rollouts` holds, for the divisors of the losses: the tokens that count, and sequences."""
    return {"tokens": int(batch["counted"].sum()), "sequences": len(batch["input_ids"])}


def _through_heads(ours: Any, theirs: Any, mask: Tensor, beta: float, temperature: float) -> Tensor:
    """`divergence` of two answers that stopped before their heads; no logits [tokens, V] exist as a whole."""
    sides = ours.prediction, ours.head, theirs.prediction, losses.find_head(theirs, ours.softcap), mask
    how: dict[str, Any] = {"temperature": temperature, "softcap": ours.softcap}
    if beta in (0, 1):
        return losses.kl_from_hidden(*sides, direction="reverse" if beta else "forward", **how)
    return losses.jensen_shannon_from_hidden(*sides, weight=beta, **how)


def objective(
    student: Forward, teacher: Forward, *, beta: float = 0.5, temperature: float = 1.0, fused: bool = False
) -> Objective:
    """The mean `divergence` over the tokens that count, for batches of `Rollouts` and with its `count`.

    The student's writing is data: no gradient goes through what it chose to write (section 3 of the paper).
    fused: both stop before their heads, as in `objectives.distil`, and no matrix of logits is ever held.
    Raises `InputError` for a beta outside 0 to 1.
    """
    if not 0 <= beta <= 1:
        raise InputError(f"beta={beta:g}: give a number from 0, forward KL, to 1, reverse KL")

    def step(batch: Batch, totals: Mapping[str, int]) -> tuple[Tensor, Parts]:
        how: dict[str, bool] = {"head": False} if fused else {}
        ours: Any = student(batch, **how)
        through = getattr(ours, "head", None)
        if fused:
            how["head"] = through is None  # a student that is sharded keeps its head; so does the teacher then
        with torch.no_grad():
            theirs: Any = teacher(batch, **how)
        mask = batch["counted"]
        if through is not None:
            apart = _through_heads(ours, theirs, mask, beta, temperature)
        else:
            apart = divergence(ours.prediction, theirs.prediction, mask, beta=beta, temperature=temperature)
        loss = apart / totals["tokens"]
        return loss, {"divergence": loss.detach()}

    return step


class Rollouts:
    """Batches of which a share is written by the student: `rollouts[i]` for `loop.train`, with `objective` and `count`.

    Whether batch i is the student's, and what chance does in it, follow from the seed and i alone; what it says follows
    from its weights at that step too. The loop fetches the batches of a step before it changes a weight, and a
    checkpoint holds the weights between two steps: a run that resumes meets the very same batches.

    Args:
        student: the model in training, of transformers; it writes in eval mode, and the caller's generators stay as
            they are.
        batches: texts, `batches[i]` with `input_ids` and `attention_mask` [B, S], padded on the right.
        share: of the batches that the student writes (the paper's lambda): 0 for none, 1 for all.
        prompt: tokens at the start of each text that are given; of a shorter text all but the last.
        new: tokens that the student writes, at most; it stops at `end`.
        temperature: of its choice; 0 takes the likeliest.
        end: id of the token that ends a text; None where there is none.
        pad: id that fills up rows; `end` or 0 if None.
        seed: of what it writes, and of which batches.

    A batch has `input_ids` and `attention_mask` [B, S], padded on the right, and `counted` [B, S]: which positions
    predict a token that counts, those behind the prompt, whoever wrote them. Raises `InputError` for numbers that make
    no sense or more positions than the model has, `UnsupportedError` for a student that is sharded, `DataError` for a
    batch without a token behind its prompt.
    """

    def __init__(
        self,
        student: nn.Module,
        batches: Batches,
        *,
        share: float = 0.5,
        prompt: int = 16,
        new: int = 32,
        temperature: float = 1.0,
        end: int | None = None,
        pad: int | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 <= share <= 1 or not 0 <= temperature < math.inf:
            raise InputError(f"share={share:g}, temperature={temperature:g}: give 0 to 1, and at least 0")
        if prompt < 1 or new < 1:
            raise InputError(f"prompt={prompt}, new={new}: give at least 1 token each")
        if any(isinstance(parameter, DTensor) for parameter in student.parameters()):
            raise UnsupportedError("a student that is sharded writes no texts of its own: leave on-policy out, or FSDP")
        most = getattr(getattr(student, "config", None), "max_position_embeddings", None) or math.inf
        if share and prompt + new > most:
            raise InputError(f"prompt={prompt} and new={new} are more than the model's {most} positions: give less")
        self.student, self.batches, self.share, self.seed = student, batches, share, seed
        self.prompt, self.new, self.temperature, self.end = prompt, new, temperature, end
        self.pad = pad if pad is not None else end if end is not None else 0

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        batch = self.batches[index]
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        lengths = torch.full((len(ids),), ids.shape[1]) if mask is None else mask.sum(-1)
        starts = (lengths - 1).clamp(max=self.prompt)
        if not bool((starts > 0).any()):
            raise DataError(f"batch {index} has no token behind a prompt: give texts of at least two tokens")
        ids, lengths, starts = (part[starts > 0] for part in (ids, lengths, starts))
        chance = np.random.default_rng([self.seed, index])
        if chance.random() < self.share:
            ids, lengths = self._generate(ids, starts, int(chance.integers(2**63)))
        places = torch.arange(ids.shape[1])[None]
        return {
            "input_ids": ids,
            "attention_mask": (places < lengths[:, None]).long(),
            "counted": following(lengths, starts, ids.shape[1]),
        }

    def _generate(self, ids: Tensor, starts: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Prompts and what the student writes after them, padded on the right, [B, S]; and their lengths [B]."""
        device = devices.find_device(self.student)
        room = int(starts.max())
        # Generation goes on from the last column: prompts stand at the right, and move back to the left afterwards.
        places = torch.arange(room)[None] - (room - starts[:, None])
        given = torch.where(places >= 0, ids.gather(1, places.clamp(min=0)), self.pad)
        how: dict[str, Any] = {"do_sample": False}
        if self.temperature:
            how = {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}
        generators = [device] if device.type == "cuda" else []
        with evaluating(self.student), _plainly(self.student), torch.no_grad(), torch.random.fork_rng(generators):
            torch.manual_seed(seed)
            out = self.student.generate(  # type: ignore[operator]
                given.to(device), attention_mask=(places >= 0).long().to(device), max_new_tokens=self.new,
                pad_token_id=self.pad, eos_token_id=self.end, **how,
            ).cpu()  # fmt: skip
        said = out[:, room:]
        ended = said == self.end if self.end is not None else torch.zeros_like(said, dtype=torch.bool)
        before = ended.long().cumsum(-1) - ended.long() == 0  # up to and with the first end
        lengths = starts + before.sum(-1)
        source = torch.arange(int(lengths.max()))[None] + (room - starts[:, None])
        moved = out.gather(1, source.clamp(max=out.shape[1] - 1))
        return torch.where(torch.arange(moved.shape[1])[None] < lengths[:, None], moved, self.pad), lengths


@contextlib.contextmanager
def _plainly(student: nn.Module) -> Iterator[None]:
    """Within the block the model writes by its probabilities alone, whatever its generation_config adds to them."""
    own = student.generation_config
    student.generation_config = type(own)()
    try:
        yield
    finally:
        student.generation_config = own
