"""GPUSQ-ViT: vision transformers in 2:4 sparsity, then quantised, with mixed distillation at both stages.

Yu et al., CVPR 2023 (arXiv 2305.10727).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from secateur._utils import distributed
from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.data.batches import Numbered, count_steps
from secateur.data.examples import Examples
from secateur.errors import BudgetError, DataError, InfeasibleError, InputError
from secateur.formats import integers
from secateur.formats.integers import Form
from secateur.recover.distillation import mixed
from secateur.recover.quantization import qat
from secateur.recover.quantization.quantise import torchao
from secateur.recover.sparsity import masks
from secateur.recover.training import loop, records
from secateur.recover.training.compose import Objective, Parts
from secateur.select.pattern import n_of_m
from secateur.subjects.matrices import Matrix, matrices, nonzero, receipt
from secateur.subjects.network.shrinking import Plan
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget, Pattern, Recovery, Result, Training

CARD = {
    "title": "GPUSQ-ViT: GPU-friendly sparsity and quantisation of vision transformers",
    "paper": "https://arxiv.org/abs/2305.10727",
    "cuts": "weights of all matrices to 2:4, then their bits and those of their inputs",
    "recovers": "distillation of labels, logits and features: from the dense network, then from the sparse one",
    "extra": "quantise",
    "family": "vision",
}


@dataclass(frozen=True, slots=True)
class Ranges:
    """How the ranges of the inputs of quantised layers are found."""

    calibration: Literal["max", "percentile", "entropy"] = "max"
    """of the inputs' ranges: their largest, a quantile, or the range whose integers tell most."""
    calibrated: Annotated[int, Ge(1)] = 8
    """batches for it."""


def gpusq_vit(
    subject: Traced,
    data: Examples,
    budgets: Sequence[Budget],
    run: Run,
    *,
    seed: int = 0,
    bits: int = 8,
    labels: Literal["true", "teacher", "none"] = "true",
    factors: Sequence[float] = (1.0, 10.0, 5.0),
    temperature: Annotated[float, Gt(0)] = 2.0,
    critical: Sequence[str] = (),
    disagreeing: Annotated[float, Ge(0)] = 0.5,
    quantise_epochs: Annotated[float, Ge(0)] = 10.0,
    quantise_lr: Annotated[float, Ge(0)] = 2e-5,
    least: Annotated[int, Ge(0)] = 16,
    pairs: bool = True,
    ranges: Ranges = Ranges(calibration="max", calibrated=8),
    settled: Annotated[float, Ge(0), Le(1)] = 0.3,
    uniform: bool = False,
    training: Training = Training(epochs=30.0, batch=64, lr=1e-4, weight_decay=0.01),
    dry_run: bool = False,
) -> Iterator[Result]:
    """Mask every matrix n:m by magnitude and retrain; then quantise what is left, with the sparse network as teacher.

    1. Of every m consecutive inputs of each output, the n largest |w| stay; the mask is chosen once, and kept.
    2. Retraining with that mask, from the dense network T to the sparse S:
       ``alpha CE(S, y) + beta tau^2 KL(T || S) + gamma sum_i MSE(F_T^i, F_S^i)`` over the outputs F^i of critical
       layers, the later blocks or stages. Images for which both tell one class count fully in the last term.
    3. What is left of each feature loss, ``l_i``, over the training data, gives ``w_i = n l_i / sum_j l_j``.
    4. Every matrix and its inputs are rounded to integers of b bits, symmetric: one scale for each output of a matrix,
       one for all inputs, from calibration. Zero stays zero, so that the mask survives.
    5. Quantisation-aware training with the sparse float network as teacher: the loss of 2 with w_i before each feature;
       scales are held for the last part. The mask is kept to the end.

    `work/` of the run holds the masks, the l_i, and the sparse network before it was quantised (`sparse-BUDGET`).

    Args:
        subject: a trained network of any kind; its linear layers and convolutions count. It stays as it is.
        data: inputs like those it was trained on; classes for labels=true.
        budgets: one network for each: pattern=2:4, or another n:m.
        run: where masks, residuals and checkpoints go.
        batch: images per step, and of the timed environment.
        seed: of batches and training.
        bits: 8 or 4 of weights and inputs; 32 leaves the sparse network as it is.
        labels: true takes the data's classes; teacher takes the teacher's, none drops the term: both need images only.
        factors: alpha, beta, gamma.
        temperature: tau.
        critical: modules whose outputs are the features; by default the last third of blocks, or half of stages.
        disagreeing: how much an image's features count where teacher and student tell different classes.
        epochs: of step 2.
        quantise_epochs: of step 5; 0 quantises after training.
        lr: peak learning rate of step 2, with a cosine.
        quantise_lr: the same of step 5.
        weight_decay: of AdamW.
        least: matrices with fewer inputs or outputs stay dense, such as small heads.
        pairs: in 4 bits, weights stay or go two by two, which kernels for them want.
        ranges: see this class.
        settled: share of step 5 at its end in which scales are held.
        uniform: all w_i are 1, for comparison.
        dry_run: stop after the mask; nothing is trained or quantised.

    Departures: alpha, beta, gamma, the normalisation of w_i and the choice by magnitude are from second-hand reports
    of the paper; tau, the calibration, rates and epochs are this project's. Inputs are not permuted before the mask is
    chosen, as NVIDIA's tool can. Products of two activations (queries with keys, shares with values) stay in floats,
    as do norms, softmax and GELU. Pairs are chosen inside runs of m, so that a mask for four bits is n:m too. The
    inputs of a convolution are channels x kernel in that order, as of the matrix that a patch embedding is; kernels
    for larger convolutions want the pattern along channels. Integers and half precision are simulated in float32 on
    the CPU: no speed is claimed there. Networks without logits learn other answers by their squared error.
    """
    check(data, bits, labels, factors)
    if bits != 32 and not dry_run:
        torchao()
    training = training.default(precision="fp32", accumulate=1)
    feed = examples.batches(data, batch=training.whole("batch"), seed=seed)
    taps = list(dict.fromkeys(critical)) or blocks(subject.model)
    ask = subject.inputs.ask
    lesson = partial(
        mixed.objective, ask=ask, taps=taps, labels=labels, factors=factors, temperature=temperature,
        disagreeing=disagreeing,
    )  # fmt: skip
    whole = matrices(subject.model)
    forms = [read_pattern(budget, 2 if pairs and bits == 4 else 1) for budget in budgets]
    takers = [eligible(whole, form, least) for form in forms]  # before anything is trained
    for budget, form, (chosen, spared) in zip(budgets, forms, takers, strict=True):
        mask = run.tensors(f"masks-{budget}", partial(magnitude_masks, chosen, form))
        sparse = subject.copy()
        sparse.masks, sparse.forms = mask, dict.fromkeys(mask, form)
        dense = spared | others(subject.model, whole)
        notes = [f"stays dense: {name}: {reason}" for name, reason in dense.items()]
        pruned = tuned = None
        masks.apply(sparse.model, mask)
        if not dry_run:
            with masks.hold(sparse.model, mask):
                pruned = train(
                    sparse.model, lesson(sparse.model, subject.model), subject.model, feed, training, seed,
                    checkpoint=run.folder(f"prune-{budget}"), title="retraining",
                )  # fmt: skip
            folder = run.folder(f"sparse-{budget}")
            distributed.by_first(partial(sparse.save, folder))
        result = sparse
        if not dry_run and bits != 32:
            with loop.place_for_training(sparse.model, subject.model):
                residual = run.json(
                    f"residuals-{budget}", partial(mixed.residuals, sparse.model, subject.model, ask, taps, feed)
                )
            weights = [1.0] * len(taps) if uniform else mixed.importance(list(residual.values()))
            shorter = replace(training, epochs=quantise_epochs, lr=quantise_lr)
            result, tuned, more = quantise(
                sparse, partial(lesson, weights=weights), feed, shorter, seed, bits=bits, settled=settled,
                ranges=ranges, checkpoint=run.folder(f"quantise-{budget}"),
            )  # fmt: skip
            notes += [*more, "integers are simulated: an engine for them is needed to be faster"]
        cut = receipt(originals(subject, result), matrices(result.model), tuple(notes))
        promised = nonzero(whole) - sum(nonzero({name: one}) for name, one in chosen.items())
        predicted = {"weights": float(promised + sum(int(one.sum()) for one in mask.values()))}
        yield Result(str(budget), result, cut, predicted, records.together(pruned, tuned))
        del sparse, result  # or they would be held beside the next ones


def check(data: Examples, bits: int, labels: str, factors: Sequence[float]) -> None:
    """Refuse options that contradict the data or themselves."""
    if bits not in (4, 8, 32):
        raise InputError(f"bits={bits}: give 8 or 4, or 32 to leave the sparse network as it is")
    if data.per_pixel:
        raise DataError(f"{data.name} has a class for each pixel: this recipe learns classes of whole examples")
    if labels == "true" and data.labels is None:
        raise InputError(f"{data.name} has no classes: take labels=none or labels=teacher, which need images only")
    if len(factors) != 3 or any(not 0 <= one < math.inf for one in factors) or not any(factors):
        raise InputError(f"factors={list(factors)}: give three numbers of at least 0, one of them above: labels, "
                         "logits, features")  # fmt: skip
    if labels == "none" and not any(factors[1:]):
        raise InputError(f"labels=none with factors={list(factors)} leaves no loss: give logits or features a factor")


def read_pattern(budget: Budget, unit: int = 1) -> Form:
    """The pattern of a budget, over single weights or pairs. Raises `BudgetError` for a budget in anything else."""
    if budget.pattern is None or budget.limits:
        raise BudgetError(f"gpusq_vit can't meet {budget}: it prunes to a pattern, such as pattern=2:4")
    pattern: Pattern = budget.pattern
    if pattern.n == pattern.m:
        raise BudgetError(f"{budget} takes nothing away: give n below m, such as pattern=2:4")
    if pattern.n % unit or pattern.m % unit:
        raise BudgetError(f"{budget} in pairs: n and m have to be even, such as pattern=2:4; or take no pairs")
    return Form(pattern.n, pattern.m, unit)


def eligible(found: Mapping[str, Matrix], form: Form, least: int) -> tuple[dict[str, Matrix], dict[str, str]]:
    """(matrices that take the pattern, name -> why another stays dense). Raises `InfeasibleError` where none does."""
    run, chosen, reasons = form.m * form.unit, dict[str, Matrix](), dict[str, str]()
    for name, matrix in found.items():
        rows, columns = matrix.weight.shape
        if matrix.expert is not None or matrix.turned:
            reasons[name] = "is not stored as one matrix [outputs, inputs]"
        elif columns % run:
            reasons[name] = f"has {columns} inputs, no multiple of {run}"
        elif min(rows, columns) < least:
            reasons[name] = f"is {rows} x {columns}, less than {least}"
        else:
            chosen[name] = matrix
    if not chosen:
        raise InfeasibleError(
            f"pattern={form.n}:{form.m}: no matrix of the network takes it"
            + "".join(f"; {name} {reason}" for name, reason in list(reasons.items())[:1])
        )
    return chosen, reasons


def others(model: nn.Module, found: Mapping[str, Matrix]) -> dict[str, str]:
    """Name of a weight that is no matrix of `found`, of a layer that multiplies by it -> why it stays dense."""
    seen = {id(matrix.parameter) for matrix in found.values()}
    return {
        f"{path}.{leaf}": f"is of a {type(module).__name__} that is not one matrix [outputs, inputs] to prune"
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd | nn.MultiheadAttention)
        for leaf, weight in module.named_parameters(recurse=False)
        if leaf.endswith("weight") and id(weight) not in seen
    }


def magnitude_masks(chosen: Mapping[str, Matrix], form: Form) -> dict[str, Tensor]:
    """Step 1: name of a parameter -> booleans of its shape. Pairs stay by the sum of their squares."""
    result = {}
    for matrix in chosen.values():
        scores = matrix.weight.float().square().unflatten(1, (-1, form.unit)).sum(2)
        kept = n_of_m(scores, form.n // form.unit, form.m // form.unit).repeat_interleave(form.unit, 1)
        result[matrix.leaf] = kept.view(matrix.parameter.shape)
    return result


def blocks(model: nn.Module) -> list[str]:
    """Step 2: the critical layers: the last third of the blocks; of stages, which hold blocks, the last half.

    Blocks are the outermost modules of a class that occurs twice or more, with two matrices or more inside. Where none
    are, the last third of the layers with matrices, without the very last.
    """
    owners = [matrix.module for matrix in matrices(model).values()]

    def inside(path: str) -> int:
        return sum(owner.startswith(f"{path}.") for owner in owners)

    bare = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
    large = {path: one for path, one in model.named_modules() if path and not isinstance(one, bare)}
    large = {path: one for path, one in large.items() if inside(path) > 1}
    kinds = [type(one) for one in large.values()]
    again = [path for path, one in large.items() if kinds.count(type(one)) > 1]
    found = [path for path in again if not any(path.startswith(f"{other}.") for other in again)]
    if not found:
        rest = list(dict.fromkeys(owners))[:-1] or owners
        return rest[-max(1, math.ceil(len(rest) / 3)) :]
    staged = any(
        isinstance(one, bare) and sum(inside(f"{path}.{name}") > 1 for name, _ in one.named_children()) > 1
        for path, one in model.named_modules()
        if any(path.startswith(f"{block}.") for block in found)
    )
    return found[-math.ceil(len(found) / (2 if staged else 3)) :]


def train(
    student: nn.Module, objective: Objective, teacher: nn.Module, feed: examples.Batches, training: Training, seed: int,
    **names: Any,
) -> Recovery | None:  # fmt: skip
    """Steps 2 and 5: train `student` in place beside its teacher, without dropout; None for 0 epochs."""
    accumulate = training.whole("accumulate")
    steps = count_steps(feed, training.number("epochs"), accumulate)
    if not steps:
        return None
    return loop.train(
        student, Numbered(feed, steps, accumulate), objective, training, steps=steps, seed=seed, dropout=False,
        frozen=[teacher], count=examples.count, **names,
    )  # fmt: skip


def quantise(
    sparse: Traced,
    lesson: Callable[..., Objective],
    feed: examples.Batches,
    training: Training,
    seed: int,
    *,
    bits: int,
    settled: float,
    ranges: Ranges,
    checkpoint: Path,
) -> tuple[Traced, Recovery | None, list[str]]:
    """Steps 4 and 5: (the network of integers, its training, notes); `sparse` stays as it is, and teaches.

    lesson: (student, teacher) -> objective.
    """
    student = sparse.copy().model
    unfolded = integers.unfold(student)
    student.eval()
    ask = partial(sparse.inputs.ask, student)
    with torch.no_grad():
        layers, reasons = integers.find_layers(student, lambda: ask(feed[0]["inputs"]))
    qat.prepare(student, layers, bits=bits, share=0.9999 if ranges.calibration == "percentile" else 1.0)
    qat.calibrate(student, lambda part: ask(part["inputs"]), feed.take(ranges.calibrated), by=ranges.calibration)
    objective = lesson(student, sparse.model)

    def rounding(part: Mapping[str, Any], totals: Mapping[str, int]) -> tuple[Tensor, Parts]:
        still = part["done"] >= 1.0 - settled
        qat.frozen(student, inputs=still or ranges.calibration == "entropy", weights=still)
        return objective(part, totals)

    def rename(given: Mapping[str, Any]) -> dict[str, Any]:
        return {split(name) if unfolded else name: one for name, one in given.items()}

    with masks.hold(student, rename(sparse.masks)):
        recovery = train(
            student, rounding, sparse.model, feed, training, seed, checkpoint=checkpoint, title="quantisation"
        )
    qat.frozen(student, inputs=True, weights=bool(recovery and settled))
    scales = qat.convert(student)
    student.eval()
    integers.install(student, {path: integers.Scales(bits, *scales[path]) for path in layers})
    plan = Plan(unfolded=unfolded, bits=tuple((path, bits) for path in layers))
    result = Traced(student, sparse.inputs, (*sparse.plans, plan))
    result.masks, result.forms = rename(sparse.masks), rename(sparse.forms)
    return result, recovery, [f"stays in floats: {path} {reason}" for path, reason in reasons.items()]


def split(name: str) -> str:
    """The name of a parameter after `integers.unfold`."""
    return f"{name.removesuffix('_weight')}.weight" if name.endswith("in_proj_weight") else name


def originals(subject: Traced, result: Traced) -> dict[str, Matrix]:
    """The subject's matrices under the names that they have in the result."""
    names = matrices(result.model)
    return {split(name) if name not in names else name: matrix for name, matrix in matrices(subject.model).items()}
