"""OTOv3: train once, and what is redundant becomes zero and is cut: channels, heads, or whole operators.

Chen, Ding, Chen, Liang, Zharkov et al., 2023 (arXiv 2312.09411); the optimisers are those of OTOv2 (arXiv 2303.06862)
and of the released code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal, get_args

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor
from torch.optim.optimizer import ParamsT

from secateur._utils import devices
from secateur._utils.batches import Batch
from secateur._utils.outputs import leaves
from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.data.batches import count_steps
from secateur.data.examples import Examples
from secateur.errors import DataError, InputError, ModelError
from secateur.methods.group_budget import GroupBudget
from secateur.recover.sparsity.sparsify import GroupSparse, Saliency
from secateur.recover.training import dense, loop, records
from secateur.recover.training.compose import Objective, Parts
from secateur.score import gradient, magnitude
from secateur.select import limits
from secateur.subjects.network.segments import SITE, flops_without
from secateur.subjects.network.shrinking import twin
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget, Cut, Recovery, Result, Selection, Training, parse_list

CARD = {
    "title": "OTOv3: Automatic Architecture-Agnostic Neural Network Training and Compression",
    "paper": "https://arxiv.org/abs/2312.09411",
    "cuts": "channels and heads of any network, or whole operators and blocks",
    "recovers": "nothing is fine-tuned: one training makes the network and its zeros",
    "extra": "",
    "family": "vision",
}

Variant = Literal["sgd", "adam", "adamw"]

TOLERANCE = 1e-4
"""Largest difference between the outputs of the trained and of the cut network, relative to the largest output."""

SALIENCIES: Mapping[str, Saliency] = {"dhspg": gradient.dhspg, "hesso": gradient.hesso}
"""Of each method, as it was released."""


@dataclass(frozen=True, slots=True)
class HalfSpace:
    """How dhspg drives groups to zero."""

    epsilon: float = 0.95
    """of the half-space projection, in [0, 1); larger is more aggressive."""
    tolerance: float = 0.05
    """of dhspg, for channels=: how much more than the target may be chosen."""
    finish: Annotated[float, Ge(0), Le(1)] = 0.3
    """of dhspg: the last share of `span`, in which missing groups are shrunk linearly; 0 may miss the budget."""


def otov3(
    subject: Traced,
    data: Examples,
    budgets: Sequence[Budget],
    run: Run,
    *,
    seed: int = 0,
    variant: Variant = "sgd",
    method: Literal["dhspg", "hesso"] = "dhspg",
    saliency: Literal["dhspg", "hesso"] | None = None,
    scope: Literal["global", "kind", "local"] = "local",
    warm: Annotated[float, Ge(0), Lt(1)] = 0.1,
    span: Annotated[float, Gt(0)] = 0.4,
    periods: int = 10,
    penalty: float | None = None,
    half_space: HalfSpace = HalfSpace(epsilon=0.95, tolerance=0.05, finish=0.3),
    multiple: int = 1,
    protect: str | Sequence[str] = "",
    hierarchical: bool = True,
    training: Training = Training(epochs=40, batch=64, lr=0.05, momentum=0.9, weight_decay=5e-4, schedule="cosine"),
    dry_run: bool = False,
) -> Iterator[Result]:
    """Train once with an optimiser that drives the redundant groups to zero; then cut the zeros, and nothing more.

    Per budget, each from the subject's weights:

    1. the groups. Pruning mode, for any measure of channels: all that makes a channel or head, where zeros make its
       values zero (sections on zero-invariant groups). Erasing mode, for `segments=`: the weights of an operator or
       chain of operators that feeds a sum which has another summand;
    2. plain training for the share `warm` of all steps;
    3. every group gets a saliency from its weights and the direction of descent; the lowest may go. In erasing mode a
       search walks the segments from the most redundant on and passes over those without which no way would lead from
       input to output (H2SPG);
    4. training goes on. DHSPG shrinks the chosen groups with a penalty whose lambda lies in an interval in which they
       shrink and the loss descends, and projects to zero what turns away; HESSO shrinks them linearly by a schedule.
       Zero groups stay zero, the others are trained plainly to the end;
    5. the zero groups are cut, together with what only they fed. The smaller network's outputs are compared with the
       trained one's, and must agree to 1e-4.

    With both `segments=` and another measure, half of the steps erase, and the other half prune the erased network.

    Args:
        subject: a network, trained or not; it stays as it is.
        data: examples with classes; without, the outputs of `subject` are learnt.
        budgets: channels=, params=, bytes= or flops= of channels; or segments=; or both.
        run: where checkpoints go.
        batch: examples per step.
        seed: of sampling and training.
        epochs: of the one training.
        lr: peak learning rate.
        variant: the optimiser that the method goes on: sgd, adam or adamw.
        momentum: of sgd.
        weight_decay: of matrices and kernels.
        schedule: of the learning rate.
        method: "dhspg", or "hesso", which the released packages have.
        saliency: "dhspg" or "hesso"; that of the method unless given. Their readings of the angle between weights and
            gradient are opposite, both as released.
        scope: which channels are ranked together: all ("global"), those of one kind, or each site for itself.
        warm: share of the steps before groups are chosen.
        span: share of the steps in which they become zero.
        periods: of hesso: how many times groups are chosen.
        penalty: lambda; a scale that suits norms, learning rate and span unless given. The paper's 1e-3 (sgd) and 1e-2
            (adam) need hundreds of epochs.
        half_space: see this class.
        multiple: kept channels are multiples of this.
        protect: modules, parameters or sites that stay whole.
        hierarchical: False erases without step 3's search, for comparison: the network may break, which is refused.
        dry_run: say what would be cut by the weights as they are; nothing is trained.

    Departures: the paper's body was not to be had: segments and their search follow its abstract, its predecessors and
    the released pictures. Channels are ranked site by site; the paper ranks all together, which empties the site with
    the smallest weights in small networks (`scope`). lambda is scaled to the run (`penalty`), and what DHSPG leaves
    missing is shrunk by HESSO's schedule at the end (`finish`), so that the budget is met. Cut networks are traced by
    their recorded forward pass, not as an operator graph that the user's code leaves behind.
    """
    if data.targets and data.labels is None:
        raise DataError(f"{data.name} has boxes: otov3 trains on classes, or on the outputs of the original")
    epochs, lr = training.number("epochs"), training.number("lr")
    if epochs < 1:
        raise InputError(f"epochs={epochs:g}: give at least 1, for nothing becomes zero without training")
    if training.optimizer:
        raise InputError(f"optimizer={training.optimizer}: give variant={' or '.join(get_args(Variant))}")
    if training.ema:
        raise InputError(f"ema={training.ema:g}: groups that end at zero are not zero on average; leave it out")
    if training.patience is not None or (training.keep or ("best" if training.validates else "last")) == "best":
        raise InputError("patience and keep=best, which validation brings along, would end with weights from before all"
                         " groups are zero: leave them out, or give validation with keep=last")  # fmt: skip
    if span > 1 - warm + 1e-9:
        raise InputError(f"span={span:g}: give a share of the training above 0, at most the {1 - warm:g} after warm")
    start = subject
    if protect:
        start = subject.copy()
        start.protect(parse_list(protect))
    choice: dict[str, Any] = {"multiple": multiple, "scope": scope, "hierarchical": hierarchical}
    for budget in budgets:  # what would train for nothing is said before anything is trained
        costs = [start.units(*([SITE] if SITE in part else [])).cost() for part in split(budget)]
        limits.limits_of_cut(budget, {measure: cost for row in reversed(costs) for measure, cost in row.items()})
        first = GroupBudget.of(start, split(budget)[0], **choice)
        first.lowest(magnitude.coupled_norm(first.slices))
    feed = examples.batches(data, batch=training.whole("batch"), seed=seed)
    training = training.default(warmup=0.0, clip=math.inf, betas=loop.DEFAULTS["betas"], accumulate=1)
    for budget in budgets:
        stages = split(budget)
        steps = max(1, count_steps(feed, epochs, training.whole("accumulate")) // len(stages))
        first_step = min(round(warm * steps), steps - 1)
        how: dict[str, Any] = {
            "lr": lr, "variant": variant, "start": first_step, "momentum": training.number("momentum"),
            # Both are rounded: what is to be zero has to be so by the last step.
            "span": min(max(1, round(span * steps)), steps - first_step), "periods": periods, "penalty": penalty,
            "betas": training.betas, **asdict(half_space),
        }  # fmt: skip
        current, predicted = start, dict[str, float]()
        cuts, recoveries, notes = list[Cut](), list[Recovery](), list[str]()
        for number, part in enumerate(stages):
            work = current.copy()
            task = GroupBudget.of(work, part, **choice)
            gone = task.lowest(magnitude.coupled_norm(task.slices))
            if not dry_run:
                made: list[GroupSparse] = []

                def sparse(
                    weights: list[dict[str, Any]],
                    task: GroupBudget = task,
                    how: dict[str, Any] = how,
                    made: list[GroupSparse] = made,
                ) -> GroupSparse:
                    made.append(group_sparse(weights, task, method, saliency, **how))
                    return made[0]

                recovery = loop.train(
                    work.model, feed, objective(work, subject, data), training, steps=steps, seed=seed + number,
                    optimizer=sparse, count=examples.count, frozen=[] if data.has_classes else [subject.model],
                    checkpoint=run.folder(f"train-{budget}-{number}"),
                )  # fmt: skip
                recoveries.append(recovery)
                gone = made[0].zero
            selection = Selection({site: ~row.bool() for site, row in gone.items()}, {}, part)
            current, cut = work.cut(selection)
            cuts.append(cut)
            predicted |= task.units.cost(selection.keep)
            if SITE in part:  # prices of segments do not tell FLOPs, those of channels do
                predicted["flops"] = flops_without(work, selection)
            notes += task.notes if dry_run else [*task.notes, compare_outputs(work, current, data)]
        yield Result(str(budget), current, join_cuts(cuts), predicted, records.together(*recoveries), tuple(notes))


def optimiser(
    params: ParamsT,
    subject: Traced,
    budget: str | Budget,
    *,
    method: Literal["dhspg", "hesso"] = "dhspg",
    saliency: Literal["dhspg", "hesso"] | None = None,
    scope: Literal["global", "kind", "local"] = "local",
    multiple: int = 1,
    hierarchical: bool = True,
    **settings: Any,
) -> GroupSparse:
    """SGD, Adam or AdamW for a training loop of one's own, at whose end as many groups are zero as the budget lets go.

        optimizer = otov3.optimiser(subject.model.parameters(), subject, "segments=50%", lr=0.05, start=100, span=200)
        ...
        small, cut = subject.cut(optimizer.selection)

    Args:
        params: parameters or parameter groups, as for torch's own optimisers; all that the groups are made of.
        subject: the network that is trained, as `open_traced` gives it.
        budget: channels=, params=, bytes= or flops= of channels; or segments=, one after the other for both.
        method, saliency, scope, multiple, hierarchical: as of `otov3`.
        settings: `lr`, `variant`, `start`, `span` and the other settings of `GroupSparse`.

    Raises `InfeasibleError` for a budget that can't be met, or that would change nothing.
    """
    stages = split(Budget.parse(budget))
    if len(stages) > 1:
        raise InputError(f"an optimiser has one budget, not {budget}: erase by segments= first, then prune the rest")
    limits.limits_of_cut(stages[0], subject.units(*([SITE] if SITE in stages[0] else [])).cost())
    task = GroupBudget.of(subject, stages[0], multiple=multiple, scope=scope, hierarchical=hierarchical)
    task.lowest(magnitude.coupled_norm(task.slices))  # what can't be met is said now, not in the midst of a training
    return group_sparse(params, task, method, saliency, **settings)


def group_sparse(params: ParamsT, task: GroupBudget, method: str, saliency: str | None, **settings: Any) -> GroupSparse:
    """What drives the groups of `task` to zero, with the saliency of its method unless another is named."""
    name = saliency or method
    if name not in SALIENCIES:
        raise InputError(f"{'saliency' if saliency else 'method'}={name!r}: give one of {', '.join(SALIENCIES)}")
    return GroupSparse(params, task.slices, choose=task.lowest, method=method, saliency=SALIENCIES[name], **settings)


def split(budget: Budget) -> list[Budget]:
    """What erases, then what prunes: the budget of segments and that of the rest, those of them that there are."""
    erased = tuple(limit for limit in budget.limits if limit.measure == SITE)
    rest = tuple(limit for limit in budget.limits if limit.measure != SITE)
    if budget.pattern:
        raise InputError(f"otov3 can't meet {budget}: give channels=, params=, bytes=, flops= or segments=")
    return [replace(budget, limits=limits) for limits in (erased, rest) if limits]


def objective(work: Traced, original: Traced, data: Examples) -> Objective:
    """Cross-entropy with the classes, of examples or pixels.

    Without classes, half the squared distance to the original's outputs [B, C, ...], a mean over the places behind C.
    """

    def loss(batch: Batch, totals: Mapping[str, int]) -> tuple[Tensor, Parts]:
        outputs = answer(work, batch["inputs"])
        if data.has_classes:
            value = dense.class_loss(outputs, batch["labels"])
        else:
            with torch.no_grad():
                wanted = answer(original, batch["inputs"])
            places = outputs.shape[2:].numel()  # as many pixels, say, are no larger a loss than one
            value = 0.5 * (outputs - wanted).square().sum() / places
        return value / totals["examples"], {}

    return loss


def answer(subject: Traced, inputs: Tensor) -> Tensor:
    """The network's first output tensor, in the mode in which it is."""
    first = leaves(subject.inputs.ask(subject.model, inputs))[0][0]
    if first.dim() < 2:
        raise DataError(f"the network gives outputs of shape {tuple(first.shape)}: expected [examples, classes]")
    return first


@torch.no_grad()
def compare_outputs(trained: Traced, small: Traced, data: Examples, count: int = 256) -> str:
    """A note with the largest difference between the outputs of two networks. Raises `ModelError` for a real one.

    Where they differ on the device that trains, the CPU decides: GPUs multiply in fewer digits than float32 has (TF32).
    """
    few = data.take(range(min(count, len(data))))
    with loop.place_for_training(trained.model, small.model) as device:
        gap = find_gap(trained, small, few, count, device)
    if not gap <= TOLERANCE:
        whole, cut = (Traced(twin(one.model).cpu(), one.inputs) for one in (trained, small))
        gap = find_gap(whole, cut, few, count, torch.device("cpu"))
    if not gap <= TOLERANCE:
        raise ModelError(f"the cut network's outputs differ from the trained one's by {gap:.2g}: report this")
    return f"outputs of the trained and the cut network differ by {gap:.2g} of the largest, on {len(few)} examples"


def find_gap(trained: Traced, small: Traced, data: Examples, batch: int, device: torch.device) -> float:
    """The largest difference between the outputs of two networks on a device, as a share of the largest output."""
    largest = list[Tensor]()
    for one in (trained, small):
        one.model.eval()
    for part in data.in_order(batch):
        large, cut = (answer(one, devices.move(part["inputs"], device)) for one in (trained, small))
        largest.append(torch.stack([(large - cut).abs().max(), large.abs().max()]))
    apart, size = torch.stack(largest).amax(0)
    return float(apart / size.clamp(min=1e-12))


def join_cuts(cuts: Sequence[Cut]) -> Cut:
    """One receipt of cuts that followed one another."""
    removed = {site: counts for cut in cuts for site, counts in cut.removed.items()}
    before = {measure: value for cut in reversed(cuts) for measure, value in cut.before.items()}
    after = {measure: value for cut in cuts for measure, value in cut.after.items()}
    return Cut(removed, before, after, tuple(note for cut in cuts for note in cut.notes))
