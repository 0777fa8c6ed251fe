"""PAT: pruning-aware tuning for large language models.

Liu, Li, Chen, Chen, Wang, Zhang and Ding, AAAI 2025 (arXiv 2408.14721).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from torch import Tensor, nn

from secateur._utils import distributed
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.data.batches import Numbered
from secateur.data.texts import Corpus
from secateur.errors import BudgetError, InfeasibleError, InputError, UnsupportedError
from secateur.methods import distillation
from secateur.methods.budgets import refuse_patterns
from secateur.recover.sparsity.hybrid import Distance, Hybrid, Variant
from secateur.recover.sparsity.unified_mask import UnifiedMask
from secateur.recover.training import lora, objectives
from secateur.recover.training.compose import Parts
from secateur.score import magnitude
from secateur.select.ranking import by_counts
from secateur.subjects import Transformer
from secateur.subjects.transformer import cutting, shapes, small_copy
from secateur.subjects.transformer.making import make_subject
from secateur.vocabulary import Budget, Recovery, Result, Selection, Training

CARD = {
    "title": "PAT: Pruning-Aware Tuning for Large Language Models",
    "paper": "https://arxiv.org/abs/2408.14721",
    "cuts": "channels of the residual stream, by one mask that is learned while the model is tuned",
    "recovers": "instruction tuning by LoRA or DoRA, with operators that mix channels and are folded into the weights",
    "extra": "lora",
    "family": "language",
}

Order = Literal["joint", "prune-first", "tune-first"]
Choice = Literal["trained", "norm", "first", "last"]
_WIDE = 0.05
"""Rank of an operator by default, in parts of the channels (the paper's 200 of 4,096)."""
_NEAR = 1e-3
"""Largest difference between a small copy that is cut and one that is masked, in parts of the largest logit."""


@dataclass(frozen=True, slots=True)
class Operators:
    """The hybrid identity operators D = L1 diag(v) L0 + I (section 3.2)."""

    rank: Annotated[int, Ge(0)] = 0
    """r of L0 [r, d] and L1 [d, r]; 0 for 5 % of the channels."""
    variant: Variant = "paper"
    """paper: a scale v [r] inside; code: one of the channels [d] behind the mask."""


@dataclass(frozen=True, slots=True)
class Adapters:
    """LoRA on all linears but the head."""

    lora_rank: Annotated[int, Ge(1)] = 20
    """Rank of the adapters; alpha stays, so that they count less the higher it is."""
    alpha: Annotated[float, Gt(0)] = 4.0
    """What adapters add is multiplied by alpha / lora_rank."""
    lora_dropout: Annotated[float, Ge(0), Lt(1)] = 0.05
    """Dropout of what goes into an adapter."""
    dora: bool = False
    """Learn the lengths of rows, too (DoRA)."""
    lora_bits: Annotated[int, Ge(0), Le(8), MultipleOf(4)] = 0
    """4 or 8 to hold weights beside adapters in integers of so many bits meanwhile (as QLoRA; needs torchao)."""

    def widen(self, rank: int) -> Adapters:
        """The same of another rank, counting as much."""
        return replace(self, lora_rank=rank, alpha=self.alpha * rank / self.lora_rank)


@dataclass(frozen=True, slots=True)
class Weights:
    """Of the losses beside cross-entropy (sections 3.3 and 3.4)."""

    count: Annotated[float, Ge(0)] = 10.0
    """Of |open - N| / N, straight through."""
    wells: Annotated[float, Ge(0)] = 10.0
    """Of the pull of proxies to 1/2 and -1/2 while N are open; the official code has 1, at any number."""
    identity: Annotated[float, Ge(0)] = 1.0
    """Of |L0 L0^T - I|, summed over all operators."""
    distance: Distance = "square"
    """Of what: the square of Frobenius' norm; the norm, as in the paper; or the mean square (the official code)."""


def pat(
    subject: Transformer,
    data: Corpus,
    budgets: Sequence[Budget],
    run: Run,
    *,
    batch: int = 1,
    length: Annotated[int, Ge(2)] = 128,
    seed: int = 0,
    channels: Annotated[int, Ge(0)] = 0,
    multiple: Annotated[int, Ge(1)] = 8,
    operators: Operators = Operators(rank=0, variant="paper"),
    adapters: Adapters = Adapters(lora_rank=20, alpha=4.0, lora_dropout=0.05, dora=False, lora_bits=0),
    mask: Choice = "trained",
    settled: Annotated[float, Gt(0), Le(1)] = 0.333,
    weights: Weights = Weights(count=10.0, wells=10.0, identity=1.0, distance="square"),
    order: Order = "joint",
    training: Training = Training(steps=1000, batch=16, lr=1e-3, warmup=0.05, weight_decay=0.0, clip=0.3),
    dry_run: bool = False,
) -> Iterator[Result]:
    """Prune the residual channels of a language model while it is tuned on a task, for about the cost of LoRA.

    Per budget, which becomes a number N of channels of d:

    1. the head gets a table of its own where it shared that of the embeddings; LayerNorms do what RMSNorms do, since
       what is written loses its mean (RMSNorm keeps zero channels zero);
    2. behind the embeddings and every sub-block's last linear stands Z = (M * D) y, D = L1 diag(v) L0 + I (eq. 4);
    3. M(s) = sigmoid(tau(s) w) + beta(s), one proxy w [d] for all of them; M = 1 and D = I at step 0 (eq. 5 to 7);
    4. adapters, operators and proxies are trained together, s0 a share `settled` of the steps, by
       L = CE of what is to be answered + count |sum 1[w >= 0] - N| / N + wells (two wells) + identity |L0 L0^T - I|^2;
    5. from step 0.8 s0 on w is detached and the N largest stay; from s0 on M is 0 or 1;
    6. adapters are merged, (M * D) is folded into what writes, and the channels at zero are cut; gains of norms grow
       by sqrt(d / N) and their epsilon by d / N, so that the cut model says what the masked one did.

    Args:
        subject: a language model, without experts; it stays as it is.
        data: what it is tuned on: chats or prompts with completions, of which the answers are learned with
            completion_only, or texts.
        budgets: one model for each, such as params=75%.
        run: where checkpoints go.
        batch: sequences per batch, for the cost of FLOPs and KV cache.
        length: tokens per sequence, in costs and in training.
        seed: of sampling, operators and adapters.
        channels: N itself; 0 for the most that the budget allows.
        multiple: N is a multiple of this.
        operators: see `Operators`.
        adapters: see `Adapters`.
        mask: trained; or the N channels of largest norm, the first or the last stay, and the others fade by
            exp(-2.77 s / s0). Try norm, too: see below.
        settled: s0 as a share of the steps. w moves by about the learning rate a step, and should come to 0.1 or so.
        weights: of the losses, see `Weights`.
        order: joint; for comparison at equal trained parameters, prune-first, which cuts (by norm, where `mask` fixes
            no others) and then tunes by LoRA of a higher rank, and tune-first, which cuts last.
        steps: of tuning.
        train_batch: sequences per step.
        lr: peak learning rate; the paper's 5e-5 goes with an s0 of 10,000 steps.
        warmup: share of steps in warm-up.
        weight_decay: none in the paper.
        clip: largest norm of the gradient.
        dry_run: stop after the cut, of the channels of least norm; which go is else learned.

    Departures: the L1^T L1 of the identity loss is left out, since L1 starts at zero (the official code does so, too).
    All operators are in that loss; the official code counts the last layer's alone. The scale is merged, which the
    official script forgets. Where w does not come to N by itself, rank decides, and the notes say so; the mask is 0 or
    1 from s0 on, as the paper has it, where the official code keeps the temperature of 0.8 s0 to the end. The identity
    loss is the square of Frobenius' norm, not the norm, whose gradient never fades: with a mask fixed by norm, 4.458
    nats against 4.476 (4.453 without that loss). The wells weigh 10, not 1: in some hundred steps AdamW still scales
    what moves the proxies by the first gradients of the count, beside which a pull of 1 vanishes, and gates are soft
    when they are held. They pull while N channels are open only: at any number, few closed channels would be pulled
    down more than the count pulls them up, and too few stay open for ever. Faded channels are 0 from s0 on. The
    positions of GPT-2 are a table with an operator of its own. Warm-up is a share of the steps, where the paper has
    100, and AdamW's state is not paged to the host; `optimizer=adamw8bit` makes it smaller.

    Measured: the task hardly takes part in the choice, since at step 0 the gradient of the count is some 65 times its
    own. On one small Llama (450 steps, loss in nats, recipe's seeds 0 to 2) prune-first had 4.478, 4.478, 4.479, the
    mask fixed by norm 4.469, 4.465, 4.475, a random one 4.541 (seed 0), and the learned one, with wells at any number,
    4.455, 4.492, 4.496, locked at a wrong count; with wells as they are now it comes to N, at 4.553 (seed 0). The mask
    is learned by default since that is the paper's method; for a model to use, give mask=norm.
    """
    check(subject, budgets, training)
    train, held = data.split(seed=seed)
    steps, size, device = training.whole("steps"), subject.hidden_size, subject.model.device
    make = partial(texts.batches, tokenizer=subject.tokenizer, packed=subject.joins_texts, length=length)
    stream = Numbered(make(train, batch=training.whole("batch"), seed=seed + 1), steps, training.accumulate or 1)
    rank = operators.rank or max(1, round(_WIDE * size))
    if rank > size:
        raise InputError(f"rank={rank} is more than the {size} channels: give fewer, or 0 for 5 % of them")
    prove(subject)
    untied = subject.untie()
    price = partial(shapes.cost, untied.units(batch=batch, length=length))
    whole = subject.units(batch=batch, length=length).cost()
    widths = {budget: choose_width(subject, price, budget, whole, channels, multiple) for budget in budgets}
    norms = {"channels": magnitude.coupled_norm({"channels": untied.slices()["channels"]})["channels"]}
    cost = count_adapters(untied)
    scales = rank if operators.variant == "paper" else size
    trained = cost * adapters.lora_rank + len(untied.writers()) * (2 * size * rank + scales) + size
    del untied

    for budget, kept in widths.items():
        student = subject.untie()
        heavy = by_counts(student.units("channels", multiple=1), norms, {"channels": kept})
        joint, free = order == "joint", mask == "trained" and steps > 0 and not dry_run
        fixed = torch.as_tensor(heavy.keep["channels"])  # unless trained or asked for otherwise
        if mask in ("first", "last"):
            fixed = torch.arange(size) < kept if mask == "first" else torch.arange(size) >= size - kept
        chosen = Selection({"channels": fixed.numpy()})
        s0 = max(1, round(settled * steps))
        unified = UnifiedMask(size, kept, settled=s0, steps=steps, fixed=None if free else fixed)
        hybrid = None
        if joint:
            hybrid = Hybrid(
                student.writers(), unified, rank=rank, variant=operators.variant, seed=seed,
                norms=cutting.find_shifts(student.layout), centred=is_centred(student),
            ).to(device)  # fmt: skip
        if order == "prune-first":
            student = student.cut(chosen)[0]
        tuned = adapters if joint else adapters.widen(max(1, trained // count_adapters(student)))
        recovery = None
        if steps and not dry_run:
            recovery = tune(
                student, hybrid, stream, training, tuned, weights, run, budget,
                held=make(held, batch=1, seed=seed) if training.validates else None, length=length, seed=seed,
            )  # fmt: skip
        if hybrid is not None:
            hybrid.fold(student.model)
            keep = unified.keep().cpu().numpy()
            student = student.cut(Selection({"channels": keep}), centred=hybrid.centred)[0]
        elif order == "tune-first":
            student = student.cut(chosen)[0]
        predicted = price({"channels": kept})
        notes = describe(subject, student, unified, recovery, joint and mask == "trained")
        if data.form == "rendered" and not data.completion_only:
            notes += ("chats were learned as a whole: completion_only learns the answers alone, as the paper does",)
        if recovery is not None and hybrid is not None:
            far = float(hybrid.orthogonality("norm").detach()) / len(hybrid.operators)
            more = {"mask": unified.describe(), "orthogonality": far}
            recovery = replace(recovery, settings={**recovery.settings, **more})
        yield Result(str(budget), student, shapes.receipt(subject, student), predicted, recovery, notes)
        del student, hybrid, unified  # or they would be held beside the next ones


def tune(
    student: Transformer,
    hybrid: Hybrid | None,
    stream: Numbered,
    training: Training,
    adapters: Adapters,
    weights: Weights,
    run: Run,
    budget: Budget,
    *,
    held: texts.Batches | None,
    length: int,
    seed: int,
) -> Recovery:
    """Train adapters of `student`, in place, and the operators and mask of `hybrid` with them; the adapters are merged.

    The losses of the hybrid are no sums over tokens: each micro-batch of a step has its share of them.
    held: what an evaluation is of; needed where `training` asks for one.
    """
    task = objectives.distil(student.forward, None, output="logits", task=1.0, fused=True)
    steps, share = training.whole("steps"), 1.0 / ((training.accumulate or 1) * distributed.count())

    def objective(batch: Mapping[str, Tensor], totals: Mapping[str, int]) -> tuple[Tensor, Parts]:
        if hybrid is None:
            return task(batch, totals)
        step = round(float(batch["done"]) * steps)
        hybrid.set_step(step)
        loss, parts = task(batch, totals)
        terms: dict[str, Tensor] = {}
        pulls = hybrid.mask.pulls(step)
        if pulls is not None:
            terms = {"count": weights.count * pulls[0], "wells": weights.wells * pulls[1]}
        if weights.identity:
            terms["identity"] = weights.identity * hybrid.orthogonality(weights.distance)
        for term in terms.values():
            loss = loss + share * term
        return loss, {**parts, **{name: share * term.detach() for name, term in terms.items()}}

    judged = held.take(64) if held is not None and training.validates else []

    def judge() -> float:
        if hybrid is not None:
            hybrid.harden()
        return objectives.held_out(student.forward, teacher=student.forward, output="logits", batches=judged)

    with ExitStack() as stack:
        stack.enter_context(
            lora.adapt(
                student.model, adapters.lora_rank, dora=adapters.dora, alpha=adapters.alpha,
                dropout=adapters.lora_dropout, bits=adapters.lora_bits, seed=seed,
            )
        )  # fmt: skip
        extra = list[nn.Module]()
        if hybrid is not None:
            stack.enter_context(hybrid.on(student.model))
            extra = [hybrid]
        every = [p for module in (student.model, *extra) for p in module.parameters() if p.requires_grad]
        recovery = distillation.train_student(
            student, None, stream, objective, training, length=length, seed=seed, dropout=True, extra=extra,
            checkpoint=run.folder(f"train-{budget}"), evaluate=judge,
        )  # fmt: skip
    numbers = {"lora_rank": adapters.lora_rank, "trained_parameters": sum(p.numel() for p in every)}
    numbers |= {"lora_bits": adapters.lora_bits} if adapters.lora_bits else {}
    return replace(recovery, settings={**recovery.settings, **numbers})


def is_centred(subject: Transformer) -> bool:
    """Whether norms subtract a mean, so that the residual stream has to be written without one."""
    return bool(cutting.layer_norms(subject.layout))


def count_adapters(subject: Transformer) -> int:
    """Parameters of LoRA of rank 1."""
    return lora.count(subject.model)


# ------------------------------------------------------------------------------------------------------------ checks


def check(subject: Transformer, budgets: Sequence[Budget], training: Training) -> None:
    """Raise an error for budgets that no width meets, and for models and settings that PAT has no form for."""
    refuse_patterns("pat", budgets, "channels")
    if not subject.causal or subject.kind != "decoder":
        kind = type(subject.model).__name__
        raise UnsupportedError(f"pat tunes causal language models, and this is a {kind}: give one of those")
    subject.writers()
    packed = next((n for n, one in subject.model.named_parameters() if type(one) is not nn.Parameter), None)
    if packed is not None:
        raise UnsupportedError(
            f"{packed} is quantised, and folding needs floating point: give floats, and lora_bits=4 or 8"
        )
    if training.lora or training.dora:
        raise InputError("pat has adapters of its own: give lora_rank, dora and lora_bits in place of training's")


@torch.no_grad()
def prove(subject: Transformer) -> None:
    """Raise `UnsupportedError` unless a small copy says the same masked and cut, with operators that mix channels.

    A copy of a model whose layers differ can't be made small; such a one is tried itself.
    """
    try:
        small = make_subject(small_copy.copy_small(subject.model), subject.family).untie()
    except UnsupportedError:
        small = subject.untie()
        small.model.float()
    size = small.hidden_size
    with small_copy.draw_apart():
        batch = small.example(2, small_copy.TOKENS)
        fixed = torch.rand(size).argsort() < size * 3 // 4
        mask = UnifiedMask(size, int(fixed.sum()), settled=1, steps=1, fixed=fixed)
        shifts = cutting.find_shifts(small.layout)
        hybrid = Hybrid(small.writers(), mask, rank=2, norms=shifts, centred=is_centred(small)).to(small.model.device)
        for name, parameter in hybrid.operators.named_parameters():
            if name.endswith("L1"):
                parameter.normal_(std=0.3)
    with hybrid.on(small.model):
        hybrid.harden()
        wanted = small.forward(batch).prediction
    hybrid.fold(small.model)
    found = small.cut(Selection({"channels": fixed.numpy()}), centred=hybrid.centred)[0].forward(batch).prediction
    if float((found - wanted).abs().max() / wanted.abs().max()) > _NEAR:
        raise UnsupportedError(
            f"{type(subject.model).__name__} writes more into its residual stream than linears and embeddings do, or "
            "has norms that no factor makes exact: its channels can't be masked and cut alike"
        )


def choose_width(
    subject: Transformer,
    price: partial[dict[str, float]],
    budget: Budget,
    whole: Mapping[str, float],
    channels: int,
    multiple: int,
) -> int:
    """The most channels within the budget, which `channels` has to be where it is given.

    Of the widths that transformers' own class can have, where it can have others than its own at all.
    """
    limits, size = budget.absolute(whole), subject.hidden_size
    every = [channels] if channels else [*range(multiple, size, multiple)]
    if channels >= size or not every:
        given = f"channels={channels}" if channels else f"multiple={multiple}"
        raise InputError(f"{given}: give less than the {size} channels that the model has")
    fits = partial(shapes.fits_class, subject)
    if channels and not fits(channels):
        near = [next(filter(fits, widths), None) for widths in (range(channels, 0, -1), range(channels, size))]
        if any(near):
            raise InputError(
                f"channels={channels}: {type(subject.model.config).__name__} can't say it beside its heads of "
                f"{subject.head_dim}; the nearest that it can: {' and '.join(str(one) for one in near if one)}"
            )
    if not channels:
        every = [*filter(fits, every)] or every
    costs = {width: price({"channels": width}) for width in every}
    if all(price({"channels": size})[name] <= limit for name, limit in limits.items()):
        raise BudgetError(
            f"budget {budget.brief()} lets every channel stay, so that nothing would change: ask for less"
        )
    within = [width for width, cost in costs.items() if all(cost[name] <= limit for name, limit in limits.items())]
    if not within:
        name = next(name for name, limit in limits.items() if costs[every[0]][name] > limit)
        least = costs[every[0]][name]
        raise InfeasibleError(
            f"budget {budget.brief()} can't be met: with {every[0]} channels {name} is {least:.6g}, the limit is "
            f"{limits[name]:.6g}", least,
        )  # fmt: skip
    return max(within)


def describe(
    subject: Transformer, student: Transformer, mask: UnifiedMask, recovery: Recovery | None, learned: bool
) -> tuple[str, ...]:
    """What is to be told: a mask that did not converge, a head that was untied, a modelling file that travels along."""
    notes = list[str]()
    if learned and recovery is None:
        notes.append("which channels go is learned; here those of least norm went")
    elif learned and recovery is not None:
        kept = recovery.settings.get("kept_step", recovery.steps)  # the weights and the mask are of that step
        if not mask.converged:
            count = int((mask.proxy >= 0).sum())
            notes.append(
                f"at step {min(mask.frozen_at, kept)} {count} channels were open and {mask.kept} were to be: the mask "
                "was finished by rank of its proxies; give more steps or settled, a higher lr, or count and wells as "
                "they are by default"
            )
        if recovery.steps < mask.settled:
            notes.append(f"training stopped at step {recovery.steps}, before the mask was settled at {mask.settled}")
        elif kept < mask.settled:
            notes.append(f"the best weights (step {kept}) precede the mask, settled at {mask.settled}: try keep=last")
    if subject.model.get_output_embeddings().weight is subject.model.get_input_embeddings().weight:
        more = student.model.get_output_embeddings().weight.numel()
        notes.append(f"the head has a table of its own now: {more:,} parameters, which the prediction counts")
    if not shapes.fits_class(subject, mask.kept):
        notes.append("its class can't say these widths beside its heads, so a modelling file travels with the result")
    return tuple(notes)
