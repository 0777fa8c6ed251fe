"""AST: pruning large language models with semi-structural adaptive sparse training.

Huang, Hu, Jian, Zhu and Chen, AAAI 2025 (arXiv 2407.20584).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn.utils import parametrize

from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.data.texts import Corpus
from secateur.errors import BudgetError, InputError, UnsupportedError
from secateur.measure import size
from secateur.recover.distillation import teachers
from secateur.recover.sparsity import adaptive
from secateur.recover.training import loop, objectives
from secateur.score import hessian, hooks, wanda
from secateur.select import pattern
from secateur.subjects import Transformer, open_subject
from secateur.subjects.matrices import Matrix, matrices, receipt
from secateur.subjects.transformer import low_rank
from secateur.vocabulary import Budget, Pattern, Result, Training

CARD = {
    "title": "Pruning Large Language Models with Semi-Structural Adaptive Sparse Training",
    "paper": "https://arxiv.org/abs/2407.20584",
    "cuts": "single weights, n of every m to zeros, by masks that move during training",
    "recovers": "KL to the original's logits and cross-entropy, a growing decay of masked weights; side branches",
    "extra": "",
    "family": "sparse",
}


@dataclass(frozen=True, slots=True)
class Pull:
    """What draws closed weights to zero."""

    decay: Annotated[float, Ge(0)] = 1e-4
    """lambda at its highest; watch the flip rates: flat from the start is too strong, never settling too weak. It is
    added to gradients, which are larger in small models: 1e-2 suits a million weights."""
    ramp: Annotated[float, Ge(0), Le(1)] = 0.25
    """Share of the steps in which lambda grows; 0 for a static decay (for comparison)."""
    moment: adaptive.Moment = "both"
    """What the steps of closed weights are scaled by: the second moment of gradient and decay together, both; of the
    gradient alone; or of the update, the first moment and the decay, as published."""


def ast(
    subject: Transformer,
    data: Corpus,
    budgets: Sequence[Budget],
    run: Run,
    *,
    length: Annotated[int, Ge(2)] = 128,
    seed: int = 0,
    score: Literal["magnitude", "wanda"] = "magnitude",
    calibration: Annotated[int, Ge(1)] = 128,
    refresh: Annotated[int, Ge(0)] = 10,
    pull: Pull = Pull(decay=1e-4, ramp=0.25, moment="both"),
    slorb: Annotated[int, Ge(0)] = 0,
    slorb_init: Literal["mean", "sum", "xavier"] = "mean",
    projection: bool = True,
    kd: Annotated[float, Ge(0), Le(1)] = 0.67,
    teacher: str = "",
    temperature: Annotated[float, Gt(0)] = 2.0,
    hidden: Annotated[float, Ge(0)] = 0.0,
    training: Training = Training(steps=1000, batch=16, lr=2e-4, min_lr=2e-5, warmup=0.05, weight_decay=0.1),
    dry_run: bool = False,
) -> Iterator[Result]:
    """Retrain all weights under n:m masks that are chosen anew as the weights move, taught by the dense original.

    Per budget, for every matrix of the blocks, in groups of m consecutive inputs of each output:

    1. the mask m(W) keeps the n largest |W| (or |W| times the norm of what it multiplies);
    2. with `slorb`, a branch W~ + S X starts from the mean of what the mask took of each k inputs;
    3. the forward pass uses W~ = m(W) W, and the gradient of W~ passes to all of W;
    4. AdamW, where closed weights are pulled to zero by lambda(t), which stays out of the first moment
       (`adaptive.DecoupledAdamW`); lambda(t) grows linearly and then stays;
    5. every `refresh` steps m(W) is chosen anew from the weights as they are;
    6. the loss is kd T^2 KL(teacher || student) + (1 - kd) CE per token, both softmaxes at temperature T;
    7. at the end, zeros where the last mask is closed.

    Args:
        subject: a trained language model; it stays as it is and teaches.
        data: texts like those it was trained on; labels are not needed.
        budgets: pattern=2:4, or any other n:m; one student for each.
        run: where norms and checkpoints go.
        length: tokens per sequence.
        seed: of sampling and training.
        score: what a mask is chosen by: magnitude, or wanda, |W| times input norms that are measured once.
        calibration: sequences on which wanda's norms are measured.
        refresh: steps between choices of the mask; 0 keeps the first one (for comparison).
        pull: see `Pull`.
        slorb: k of SLoRB: side branches of rank d/k, 16 in AST-Boosted; 0 for none, AST-Naive.
        slorb_init: how a branch starts: mean, sum (S without 1/k) or xavier (X at random, S zero).
        projection: train X too, not S alone.
        kd: weight of the KL; the rest is cross-entropy. 0 trains without a teacher, 1 by it alone.
        teacher: a larger model of the same tokenizer, as a folder or Hub id, that teaches in place of `subject`.
        temperature: T of the KL.
        hidden: weight of the relative error of all hidden states; the paper finds that it hurts.
        steps: of training; none if 0: the first mask, in one shot.
        train_batch: sequences per step.
        lr: peak learning rate; small models want more, 1e-3 or so.
        min_lr: at the end of the cosine, 95 % of the way; from there it goes to 0.
        warmup: share of steps in warm-up.
        weight_decay: on all matrices, as AdamW has it; 0 in the paper's LLaMA runs.
        dry_run: stop after the first mask; nothing is trained.

    Departures: steps are scaled as AdamW scales them, closed weights' by the moment of (g + lambda W)^2, where the
    paper has that of u^2, u = m + lambda W (`moment`), and the released code scales open weights of masked matrices by
    it, too: steps about four times as long at the same rate, to be compared at a quarter of it. The mask is not chosen
    after the very last step, whose weights no step would have seen; the official LLaMA code lets the decay into the
    gradient, the decoupled form of the paper is used for all; quantisation after training is `secateur export`. The
    default number of steps suits small models; the paper's runs take 40,000 and 15,000.
    """
    if not subject.causal:
        raise UnsupportedError(f"ast trains language models, and this one gives {subject.output}: use a causal decoder")
    if training.optimizer not in (None, "adamw") or training.momentum is not None:
        raise InputError("ast trains by an AdamW of its own (step 4): leave training optimizer and momentum out")
    paths, teaching = subject.layers(), kd > 0 or hidden > 0
    master = open_teacher(subject, teacher, kd=kd, hidden=hidden) if teacher else subject
    train, held = data.split(seed=seed)
    make = partial(texts.batches, tokenizer=subject.tokenizer, packed=True, length=length)
    stream, steps = make(train, batch=training.whole("batch"), seed=seed + 1), training.whole("steps")
    dense = matrices(subject.model, paths)
    with hooks.sound(subject.model, paths):  # a loss that is NaN would not say where from
        subject.forward(stream[0], head=False)
    norms, few = dict[str, Tensor](), tuple[str, ...]()
    if score == "wanda":
        samples, few = texts.windows(train, subject.tokenizer, calibration, length, seed=seed)
        modules = [matrix.module for matrix in check_modules(dense, "score=wanda").values()]
        measure = partial(hessian.diagonal, subject.forward, subject.model, samples, modules)
        norms = run.tensors("norms", measure)
    plain, theirs = subject.flops_per_token(length), master.flops_per_token(length)

    for budget in budgets:
        wanted = follow_pattern(budget, dense, slorb)
        student = subject.copy()
        pruned = matrices(student.model, paths)
        choose = mask_choosers(pruned, wanted, norms)
        ours = plain
        if slorb:
            beside = make_branches(pruned, choose, slorb, slorb_init, seed)
            low_rank.attach(student.model, beside)
            for branch in low_rank.find_branches(student.model).values():
                branch.X.requires_grad_(projection)
            ours += sum(2.0 * (X.numel() + S.numel()) for X, S in beside.values())

        def forward(batch: Mapping[str, Tensor], student: Transformer = student, **how: bool) -> Any:
            with parametrize.cached():  # one masked copy, also where experts are read one by one
                return student.forward(batch, **how)

        recovery, record, reached = None, list[tuple[int, float, float]](), 0
        with adaptive.moving(student.model, choose, steps=steps, refresh=refresh) as masks:
            if steps and not dry_run:
                recovery = loop.train(
                    student.model, stream,
                    objectives.distil(
                        forward, master.forward if teaching else None, output="logits", fused=True,
                        task=1 - kd, logit=kd, temperature=temperature,
                        alpha=hidden, measure="relative",
                        hidden=[(layer, layer) for layer in range(len(paths) + 1)] if hidden else [],
                    ),
                    training.default(schedule="cosine-zero"),
                    optimizer=masks.adamw(
                        decay=pull.decay, ramp=round(pull.ramp * steps), moment=pull.moment,
                        betas=training.betas or (0.9, 0.95),
                    ),
                    extra=[masks], frozen=[master.model] if teaching else [], seed=seed, dropout=False,
                    checkpoint=run.folder(f"train-{budget}"),
                    evaluate=partial(
                        objectives.held_out, forward, teacher=forward, output="logits",
                        batches=make(held, batch=1, seed=seed).take(64),
                    ) if training.validates else None,
                    flops_per_token=size.training_flops(ours, theirs if teaching else 0.0),
                )  # fmt: skip
                reached = recovery.settings.get("kept_step", recovery.steps)  # training may stop early
                record = [point for point in masks.record() if point[0] <= reached]
        cut = receipt(dense, matrices(student.model, paths), few, paths)
        if recovery is not None:
            recovery = replace(recovery, settings={**recovery.settings, "kd": kd, "flips": record})
        notes = (*describe_flips(reached, record), *describe_branches(student, pruned, slorb))
        yield Result(str(budget), student, cut, {"weights": cut.after["weights"]}, recovery, notes)
        del student, forward, masks  # or it would be held beside the next one


def open_teacher(subject: Transformer, source: str, *, kd: float, hidden: float) -> Transformer:
    """The teacher at `source`; raises where it has no say, and for one whose tokens or states can't be compared."""
    if not kd:
        raise InputError(f"teacher={source} with kd=0 teaches nothing: give kd more, or no teacher")
    if hidden:
        raise InputError(f"hidden={hidden:g} compares states with the original's, and {source} has others: leave it 0")
    other = open_subject(source)
    if not other.causal:
        raise UnsupportedError(f"teacher={source} gives {other.output}: use a causal decoder")
    teachers.check_tokens(subject, other)
    return other


def follow_pattern(budget: Budget, matrices_of: Mapping[str, Matrix], k: int) -> Pattern:
    """The pattern of a budget; raises for any other budget, and for matrices that the pattern or SLoRB does not fit."""
    wanted = budget.pattern
    if budget.limits or wanted is None:
        what = budget.limits[0].measure if budget.limits else "nothing"
        raise BudgetError(f"ast can't follow budget {budget}, which limits {what}: give a pattern such as pattern=2:4")
    if wanted.n == wanted.m:
        raise BudgetError(f"budget {budget} lets every weight stay, so that nothing would change: ask for less")
    for matrix in (matrices_of if not k else check_modules(matrices_of, "slorb")).values():
        width = matrix.weight.shape[1]
        if width % wanted.m:
            raise UnsupportedError(
                f"{matrix.name} has {width} inputs, no multiple of {wanted.m}: {wanted} can't be kept"
            )
        if k and width % k:
            raise InputError(f"slorb={k} does not divide the {width} inputs of {matrix.name}: give a divisor, or 0")
    return wanted


def check_modules(matrices_of: Mapping[str, Matrix], what: str) -> Mapping[str, Matrix]:
    """The same; raises `UnsupportedError` where there are packed experts, which no module of their own runs."""
    packed = next((matrix.name for matrix in matrices_of.values() if matrix.expert is not None), None)
    if packed is not None:
        raise UnsupportedError(
            f"{what} needs a module per matrix, and {packed} is packed with other experts: leave it out"
        )
    return matrices_of


def mask_choosers(
    matrices_of: Mapping[str, Matrix], wanted: Pattern, norms: Mapping[str, Tensor]
) -> dict[str, adaptive.Choose]:
    """Parameter -> what picks its mask: n of m along the inputs of each matrix in it."""
    parts: dict[str, list[Matrix]] = {}
    for matrix in matrices_of.values():
        parts.setdefault(matrix.leaf, []).append(matrix)

    def choose(weight: Tensor, held: Sequence[Matrix]) -> Tensor:
        keep = torch.empty(weight.shape, dtype=torch.bool, device=weight.device)
        for matrix in held:
            seen, squares = matrix.view(weight), norms.get(matrix.module)
            scores = seen.abs() if squares is None else wanda.scores(seen, squares)
            matrix.view(keep).copy_(pattern.n_of_m(scores, wanted.n, wanted.m))
        return keep

    return {leaf: partial(choose, held=held) for leaf, held in parts.items()}


def make_branches(
    matrices_of: Mapping[str, Matrix], choose: Mapping[str, adaptive.Choose], k: int, how: str, seed: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Module -> (X, S) of its branch, from what its first mask closes."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for matrix in matrices_of.values():
        keep = matrix.view(choose[matrix.leaf](matrix.parameter.detach()))
        made[matrix.module] = adaptive.branch(matrix.weight, keep, k, how, generator=generator)
    return made


def describe_flips(steps: int, record: Sequence[tuple[int, float, float]]) -> list[str]:
    """How the mask moved in `steps`: mean flip rates of their first and last quarter, and what differs in the end."""
    if not record:
        return []
    first, last = (
        [previous for step, previous, _ in record if part * steps < step <= (part + 0.25) * steps]
        for part in (0.0, 0.75)
    )
    rates = [f"{100 * sum(part) / len(part):.2g} %" if part else "none" for part in (first, last)]
    return [
        f"of the masked weights, {rates[0]} changed sides per refresh in the first quarter of training, {rates[1]} in "
        f"the last; in the end {100 * record[-1][2]:.2g} % differ from the first mask"
    ]


def describe_branches(student: Transformer, matrices_of: Mapping[str, Matrix], k: int) -> list[str]:
    """What SLoRB adds: the sum of d_out d_in / k + d_in^2 / k."""
    if not k:
        return []
    added = sum(p.numel() for branch in low_rank.find_branches(student.model).values() for p in branch.parameters())
    whole = sum(matrix.weight.numel() for matrix in matrices_of.values())
    return [
        f"branches of SLoRB (k={k}) add {added} parameters, {100 * added / whole:.3g} % of the masked matrices; they "
        f"lie in {low_rank.FOLDER}/ as a LoRA for peft"
    ]
