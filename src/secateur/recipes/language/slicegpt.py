"""SliceGPT: compress large language models by deleting rows and columns.

Ashkboos, Croci, do Nascimento, Hoefler and Hensman, ICLR 2024 (arXiv 2401.15024).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.data.texts import Corpus
from secateur.errors import InputError, UnsupportedError
from secateur.measure import latency
from secateur.methods import distillation, timing
from secateur.methods.budgets import refuse_patterns
from secateur.methods.distillation import BlockLosses
from secateur.score import principal
from secateur.select import levels
from secateur.select.limits import refuse_unreachable
from secateur.subjects import Transformer
from secateur.subjects.transformer.blocks import Call, record_calls
from secateur.subjects.transformer.rotated import Rotated, fold_norms
from secateur.vocabulary import Budget, Cut, Result, Training

CARD = {
    "title": "SliceGPT: Compress Large Language Models by Deleting Rows and Columns",
    "paper": "https://arxiv.org/abs/2401.15024",
    "cuts": "channels of the residual stream, after it was rotated to its principal components",
    "recovers": "nothing by default; on request, training against the original",
    "extra": "",
    "family": "language",
    "parts": "no",
}

Rotation = Literal["pca", "none", "random"]
Widths = list[int]


def slicegpt(
    subject: Transformer,
    data: Corpus,
    budgets: Sequence[Budget],
    run: Run,
    *,
    batch: int = 1,
    length: int = 128,
    seed: int = 0,
    widths: Literal["constant", "variance"] = "constant",
    multiple: Annotated[int, Ge(1)] = 8,
    rotation: Rotation = "pca",
    samples: Annotated[int, Ge(1)] = 128,
    train_length: Annotated[int, Ge(1)] = 128,
    losses: BlockLosses = BlockLosses(task=None, logit=1.0, token=0.0, temperature=1.0),
    training: Training = Training(steps=0, batch=16, lr=3e-4),
    dry_run: bool = False,
) -> Iterator[Result]:
    """Rotate the residual stream to its principal components, and delete the least of them.

    1. Norms become RMSNorm without gain (section 3.2): gains and shifts go into the linears that read them, the mean
       that a LayerNorm subtracts out of those that write. No output changes.
    2. Point by point, after the embeddings and after every sub-block (section 3.3): the states X there of `samples`
       windows, which have passed the rotated and sliced layers before, give C = sum X^T X, and its eigenvectors, in
       float64 and largest first, the rotation Q.
    3. What writes the point is turned by Q, what reads it by Q^T, and the residual connection gets Q_{l-1}^T Q_l.
       No output changes.
    4. Slicing (section 3.4): the last columns of Q go, and with them rows and columns of every matrix there.
    5. With `steps`, the sliced model is trained against the original (section 4.2 does it with LoRA).

    Args:
        subject: a decoder with norms before its sub-blocks and a head; it stays as it is and teaches.
        data: text like that the model will meet.
        budgets: one student for each; a budget of latency is met on the clock.
        run: where sliced weights and checkpoints go.
        batch: sequences of the environment that is timed, and for which costs are.
        length: tokens per sequence of that environment.
        seed: of sampling, of random rotations and of training.
        widths: constant: one width for all points; variance: each point keeps the same share of its variance.
        multiple: widths are multiples of this.
        rotation: pca, or for comparison none (the channels of most energy stay) and random (any orthogonal matrix).
        samples: calibration windows; the paper takes 1,024.
        train_length: tokens per window, and at most per sequence in training.
        losses: of training, see `BlockLosses`; states lie in other bases than the original's, so token stays 0.
        training: of what is left; none without steps.
        dry_run: stop after the cut.

    The result has linears on its residual connections, so that a modelling file travels with it. They cost parameters:
    a small cut may make a model larger, and embeddings that were tied to the head no longer are.

    Departures: a budget says how much goes, where the paper gives a share of the channels. States enter C as they
    stand in the residual stream, as in the released code, where the paper's text speaks of the output of norms. States
    of all windows are held in memory. The sliced final norm keeps dividing by the original width, as the released code
    has it. The head reads a sliced point, too, which that code leaves whole unless it is asked otherwise.
    """
    refuse_patterns("slicegpt", budgets, "channels")
    distillation.check_recovery(subject, data, losses, training)
    if losses.token != 0:
        raise InputError("token compares states in one basis, and slicing turns them: set token=0")
    timed = any("latency" in budget for budget in budgets)
    if timed and widths == "variance":
        raise UnsupportedError("a latency is predicted for one width at all points: set widths=constant")
    folded = fold_norms(subject)
    price = partial(folded.price, batch=batch, length=length)
    original = subject.units(batch=batch, length=length).cost()
    refuse_unreachable(budgets, original, price(grow(folded.stream, multiple, None)[0]), "a smaller multiple")
    train, _ = data.split(seed=seed)
    windows, notes = texts.windows(train, subject.tokenizer, samples, train_length, seed=seed, together=True)
    turn = partial(rotate, folded, windows, rotation=rotation, seed=seed)
    shares: Tensor | None = None
    if widths == "variance":
        shares = run.tensors("variance", lambda: {"shares": turn(folded.stream)[1]})["shares"]
    table = None
    if timed:
        table = run.json("latency", partial(time_widths, subject, folded, multiple, batch, length), alone=True)
    dense = original | ({"latency": table["whole"]["0"]} if table else {})
    ladder = grow(folded.stream, multiple, shares)

    def measure(kept: Widths, lasting: float) -> float:
        share = timing.time_share(subject, folded.make_random(kept), batch, length, lasting=lasting)
        return share * float(dense["latency"])

    chosen = {}
    for budget in budgets:
        decide = partial(choose_widths, ladder, price, table, budget, dense, measure)
        chosen[budget] = run.json(f"widths-{budget}", decide, alone=True)
    for budget, found in chosen.items():
        predicted = price(found["widths"])
        if "latency" in found:
            predicted |= {"latency": found["latency"], "speedup": dense["latency"] / found["latency"]}

        def make(kept: Widths = found["widths"]) -> Mapping[str, Tensor]:
            return dict(turn(kept)[0].model.state_dict())

        student = folded.restore(found["widths"], run.tensors(f"sliced-{budget}", make))
        whole, mean = subject.hidden_size, round(float(np.mean(student.stream)))
        cut = Cut({"channels": (whole - mean, whole)}, subject.units().cost(), student.units().cost())
        recovery = None if dry_run else distillation.distil(
            subject, student, data, run.folder(f"train-{budget}"), blocks=(), seed=seed, train_length=train_length,
            losses=losses, training=training,
        )  # fmt: skip
        noisy = (timing.NOISY,) if found.get("noisy") else ()
        yield Result(str(budget), student, cut, predicted, recovery, (*notes, *noisy))
        del student  # or it would be held beside the next one


# ----------------------------------------------------------------------------------------------------------- rotation


def rotate(
    folded: Rotated, windows: Sequence[Mapping[str, Tensor]], widths: Widths, *, rotation: Rotation, seed: int
) -> tuple[Rotated, Tensor]:
    """A copy with its residual stream turned and cut to `widths`, point by point; and the shares of variance.

    The shares [points, D], float64: of the states at each point, what the first k directions hold.
    """
    student = folded.copy()
    assert isinstance(student, Rotated)
    draw = torch.Generator().manual_seed(seed)
    states, calls = list[Tensor](), list[list[Call]]()
    for window in windows:
        entering, inside = record_calls(student, window)
        states.append(entering)
        calls.append(inside)
    shares = []
    for point, width in enumerate(widths):
        moment = principal.second_moment(states)
        variance, basis = components(moment, rotation, draw)
        shares.append((variance.cumsum(0) / variance.sum()).cpu())
        kept = basis[:, :width].contiguous()
        student.turn(point, kept)
        if point < len(widths) - 1:
            for number, (one, inside) in enumerate(zip(states, calls, strict=True)):
                turned = (one.double() @ kept.to(one.device)).to(one.dtype)
                states[number] = student.run_half(point, turned, inside[point // 2])
    return student, torch.stack(shares)


def components(moment: Tensor, rotation: Rotation, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """([D], [D, D]): the states' variance along the columns of an orthogonal matrix, and that matrix."""
    if rotation == "pca":
        return principal.components(moment)
    size = len(moment)
    if rotation == "random":
        basis = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=draw))[0].to(moment.device)
    else:
        basis = torch.eye(size, dtype=torch.float64, device=moment.device)[
            :, moment.diagonal().argsort(descending=True)
        ]
    return ((basis.T @ moment) * basis.T).sum(1), basis


# ------------------------------------------------------------------------------------------------------------- widths


def grow(full: Widths, multiple: int, shares: Tensor | None) -> list[Widths]:
    """Widths to choose from, each at least as wide as the one before at every point.

    One width for all points; or, with the shares of variance [points, D] that the first directions hold, at each point
    the fewest that hold as large a share. The first and the last point are equally wide, as GPT-2's class wants it.
    """
    whole = full[0]
    sizes = sorted({*range(multiple, whole + 1, multiple), whole})
    if shares is None:
        return [[size] * len(full) for size in sizes]
    held = shares[:, torch.tensor(sizes) - 1]
    ladder = list[Widths]()
    for share in held.flatten().unique().tolist():
        rung = [sizes[min(int((row < share).sum()), len(sizes) - 1)] for row in held]
        rung[0] = rung[-1] = max(rung[0], rung[-1])
        if not ladder or rung != ladder[-1]:
            ladder.append(rung)
    return ladder


def time_widths(subject: Transformer, folded: Rotated, multiple: int, batch: int, length: int) -> levels.Table:
    """Seconds of the whole model, and of models of fresh weights with a quarter, half and all of its channels.

    Each is timed in turns with the whole model, by whose median their shares are counted: they need not all be held.
    """
    whole, example = folded.stream[0], subject.example(batch, length)
    sizes = sorted({max(1, whole * part // 4 // multiple) * multiple for part in (1, 2, 3)} | {whole})
    device, wholes, shares = str(subject.model.device), list[float](), dict[int, float]()
    for size in sizes:
        sliced = folded.make_random([size] * len(folded.stream))
        probes = {"whole": partial(subject.forward, example), "sliced": partial(sliced.forward, example)}
        times = latency.time_interleaved(probes, rounds=20, progress=True, device=device)
        wholes.append(times["whole"].value)
        shares[size] = times["sliced"].value / wholes[-1]
        del sliced, probes  # before the next is made
    seconds = float(np.median(wholes))
    smooth = latency.monotone({size: share * seconds for size, share in shares.items()})
    return {"whole": {"0": seconds}, "sliced": {str(size): value for size, value in smooth.items()}}


def choose_widths(
    ladder: Sequence[Widths],
    price: Callable[[Widths], Mapping[str, float]],
    table: levels.Table | None,
    budget: Budget,
    dense: Mapping[str, float],
    measure: Callable[[Widths, float], float],
) -> dict[str, object]:
    """The widest of `ladder` within the budget, with what it takes where a latency is limited.

    price: what widths cost; table: what they take, see `time_widths`; dense: what the original costs and takes;
    measure: seconds of widths by the clock. Raises `InfeasibleError`, with what is reachable, where the narrowest costs
    more.
    """
    limits = budget.absolute(dense)

    def cost(widths: Widths, fixed: float) -> dict[str, float]:
        found = dict(price(widths))
        if table is not None:
            sizes, seconds = zip(*sorted((int(k), value) for k, value in table["sliced"].items()), strict=True)
            found["latency"] = fixed + float(np.interp(widths[0], sizes, seconds))
        return found

    def solve(fixed: float) -> Widths:
        refuse_unreachable([budget], dense, cost(ladder[0], fixed), "a smaller multiple")
        low, high = 0, len(ladder) - 1
        while low < high:
            middle = (low + high + 1) // 2
            found = cost(ladder[middle], fixed)
            fits = all(found[name] <= limit for name, limit in limits.items())
            low, high = (middle, high) if fits else (low, middle - 1)
        return ladder[low]

    widths, fixed, noisy = timing.meet_target(
        solve, lambda widths, fixed: cost(widths, fixed)["latency"], measure, limits.get("latency"), 0.0,
        tolerance=0.02, corrections=4,
    )  # fmt: skip
    if table is None:
        return {"widths": widths}
    return {"widths": widths, "latency": cost(widths, fixed)["latency"], "noisy": noisy}
