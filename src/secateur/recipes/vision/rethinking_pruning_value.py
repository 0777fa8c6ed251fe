"""Rethinking the value of network pruning: is the pruned network better than the same shape trained from scratch?

Liu, Sun, Zhou, Huang and Darrell, ICLR 2019 (arXiv 1810.05270).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secateur._utils.modes import evaluating
from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.data.examples import Examples
from secateur.errors import BudgetError, DataError, InfeasibleError, InputError, UnsupportedError
from secateur.measure import size, statistics
from secateur.recover.distillation import losses
from secateur.recover.sparsity import compensate, masks, slimming
from secateur.recover.sparsity.masks import Masks
from secateur.recover.training import detecting, initialise, loop, objectives
from secateur.score import magnitude, random, reconstruction
from secateur.select import limits, ranking
from secateur.subjects.network.detectors import Detector
from secateur.subjects.network.residual import Branches
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget, Cut, Figure, Recovery, Result, Selection, Site, Units, listed

CARD = {
    "title": "Rethinking the Value of Network Pruning",
    "paper": "https://arxiv.org/abs/1810.05270",
    "cuts": "channels or residual branches of any network by six published rules, or single weights of convolutions",
    "recovers": "fine-tuning, beside fresh networks of the same shape trained for as long and for as many FLOPs",
    "extra": "",
    "family": "vision",
}

METHODS = ("l1", "slimming", "soft", "thinet", "regression", "blocks", "unstructured")

Augment = Callable[[Tensor, np.random.Generator], Tensor]
"""(inputs [B, ...], generator) -> inputs: drawn anew for each batch and epoch."""


def rethinking_pruning_value(
    subject: Traced,
    data: Examples,
    budgets: Sequence[Budget],
    run: Run,
    *,
    batch: int = 64,
    seed: int = 0,
    method: str = "l1",
    widths: str | Sequence[str] = "",
    inner: bool = True,
    epochs: int = 160,
    lr: float = 0.1,
    weight_decay: float = 1e-4,
    untrained: bool = False,
    sparsity: float = 1e-4,
    calibration: int = 512,
    finetune: str = "classic",
    finetune_epochs: int | None = None,
    scratch: str = "both",
    cap: float | None = None,
    norm: float = 1.0,
    training: str | Sequence[str] = "",
    dry_run: bool = False,
) -> Iterator[Result]:
    """Prune by a published rule, fine-tune, and train fresh networks of the cut shape beside it (section 3).

    Per budget, each from the original:

    1. the large network; slimming, soft filters and blocks train it on, with their sparsity, for `epochs`;
    2. what goes. Predefined, the same share in every layer: "l1" (smallest sum |W| of a filter), "soft" (smallest L2,
       zeroed after every epoch and still learning), "thinet" (greedy) and "regression" (LASSO) by what the next layer
       loses, which is then refitted by least squares. Automatic, the network's own shape: "slimming" (smallest
       |gamma| of all batch norms), "blocks" (smallest scale of a residual branch: sparse structure selection),
       "unstructured" (smallest |w| of all convolutions, held at 0);
    3. the inherited weights are fine-tuned;
    4. Scratch-E: new weights in the same shape, trained for `epochs`, decays at 50 % and 75 %;
    5. Scratch-B: the same for int(epochs F(dense) / F(cut)) epochs, so that it costs what the large network cost.

    All arms see the same batches in the same order, and are judged by their last weights on examples held out of the
    training data; the notes of the result tell epochs, FLOPs, accuracies and a verdict. The result is the fine-tuned
    network.

    Args:
        subject: the large network; it stays as it is.
        data: examples with classes.
        budgets: channels=, params=, bytes= or flops=; branches= for "blocks"; weights= (of convolutions) for
            "unstructured".
        run: where checkpoints go.
        batch: examples per step.
        seed: of sampling, initialisation and training.
        method: l1, slimming, soft, thinet, regression, blocks or unstructured.
        widths: units to keep at each site that may shrink, in the network's order, such as 32,64,128; the share of
            the budget in every layer unless given. Only for predefined methods.
        inner: let channels that several layers write (those of residual sums) stay, as the paper does.
        epochs: E, what the large network was trained for.
        lr: the large network's first learning rate, of SGD.
        weight_decay: of matrices and kernels.
        untrained: the subject comes with its first weights: train it for `epochs` before anything else.
        sparsity: s of slimming's s |gamma|, and of the scales of blocks.
        calibration: examples on which thinet and regression reconstruct.
        finetune: "classic", constant lr / 100; or "rewind", the whole schedule again from `lr`.
        finetune_epochs: a quarter of `epochs` for classic and all of them for rewind, unless given.
        scratch: "E", "B", "both" or "none".
        cap: Scratch-B trains for at most this many times `epochs`; the paper's 2 for ImageNet.
        norm: first weights of batch norms in fresh networks; 0.5 in the VGG of the slimming code.
        training: more settings of the training loop, such as accumulate=4,precision=bf16,trackers=wandb.
        dry_run: stop after the cut; nothing is trained.

    Departures: weight decay spares norms and biases; SGD's momentum is Nesterov's; soft filters, slimming and blocks
    train on from the subject's weights unless it comes `untrained`; scales of blocks take plain proximal steps where
    sparse structure selection accelerates them; ThiNet and regression go over all layers at once, with moments of the
    original network; slimming leaves channels of residual sums whole where the paper puts a channel selection before
    them, unless `inner` is off, which cuts what all their readers share; the schedules of ImageNet in thirds, and
    other tasks than classification, are not here. The rewinding recipe is later work.
    """
    _check(method, finetune, scratch, budgets, widths, data)
    units = cuttable(subject, method, inner)
    for budget in budgets:  # what can't be met is said before anything is trained
        if widths:  # which say on their own what goes
            flat = {site.name: np.zeros(site.count) for site in units.free()}
            _within(budget, ranking.by_counts(units, flat, _widths(units, widths)), units.cost())
        else:
            limits.limits_of_cut(budget, units.cost(), ranking.fewest(units).spent)
    train, judged = data.split(seed=seed)
    longest = 0 if dry_run else epochs
    fitting = partial(
        fit, data=train, batch=batch, seed=seed, lr=lr, weight_decay=weight_decay, training=training,
    )  # fmt: skip
    large = grown(subject, run, fitting, method=method, untrained=untrained, sparsity=sparsity, epochs=longest)
    calibrating = examples.batches(train, batch=batch, seed=seed).take(max(1, calibration // batch))

    for budget in budgets:
        start = softened(large, budget, run, fitting, inner=inner, epochs=longest) if method == "soft" else large
        pruned = prune(start, budget, method, widths=widths, inner=inner, batches=calibrating)
        # For the unstructured case, zeros count as if they saved their time.
        arms = trial(
            pruned, train, judged, mode="none" if dry_run else scratch, epochs=longest, lr=lr, batch=batch, seed=seed,
            weight_decay=weight_decay, finetune=finetune, finetune_epochs=0 if dry_run else finetune_epochs, cap=cap,
            norm=norm, training=training, folder=run.folder(f"arms-{budget}"),
        )  # fmt: skip
        tuned = arms["fine-tuned"]
        notes = () if dry_run else (describe(arms, finetune),)
        student = Traced(tuned.model, pruned.student.inputs, pruned.student.plans)
        yield Result(str(budget), student, pruned.cut, pruned.predicted, tuned.recovery, (*pruned.notes, *notes))


def _check(
    method: str, finetune: str, scratch: str, budgets: Sequence[Budget], widths: str | Sequence[str], data: Examples
) -> None:
    choices = (("method", method, METHODS), ("finetune", finetune, ("classic", "rewind")),
               ("scratch", scratch, ("E", "B", "both", "none")))  # fmt: skip
    for name, value, known in choices:
        if value not in known:
            raise InputError(f"{name}={value!r} is not one of {', '.join(known)}")
    if widths and method in ("slimming", "blocks", "unstructured"):
        raise InputError(f"widths are predefined, and {method} finds its own: leave one of the two out")
    if data.labels is None:
        raise DataError(f"{data.name} has no classes: give labels, for all arms are judged by accuracy")
    for budget in budgets:
        if ("weights" in budget) != (method == "unstructured"):
            example = "weights=10%" if method == "unstructured" else "channels=50%"
            raise BudgetError(f"budget {budget} is not one of method {method}: say for example {example}")


# ---------------------------------------------------------------------------------------------------- pruning


def grown(
    subject: Traced,
    run: Run,
    fitting: Callable[..., Any],
    *,
    method: str,
    untrained: bool = False,
    sparsity: float = 1e-4,
    epochs: int = 160,
) -> Traced:
    """Step 1 of `rethinking_pruning_value` but for soft filters: the large network. fitting: `fit` with its options."""
    large = subject
    if untrained:
        large = subject.copy()
        fitting(large.model, epochs=epochs, folder=run.folder("train-large"))
    if method == "blocks":
        large = scaled(large, sparsity, partial(fitting, epochs=epochs, folder=run.folder("train-blocks")))
    if method == "slimming":
        large = large.copy()
        penalty = partial(scales_l1, large.model, sparsity)
        fitting(large.model, epochs=epochs, penalty=penalty, folder=run.folder("train-slimming"))
    return large


def softened(
    large: Traced, budget: Budget, run: Run, fitting: Callable[..., Any], *, inner: bool = True, epochs: int = 160
) -> Traced:
    """Step 1 for soft filters: a copy trained on, whose smallest filters are zeroed after every epoch."""
    start = large.copy()
    zero = partial(soften, start, budget, inner)
    fitting(start.model, epochs=epochs, epoch_end=zero, folder=run.folder(f"train-soft-{budget}"))
    return start


@dataclass(frozen=True, eq=False)
class Pruned:
    """A cut with all that its control experiment needs."""

    dense: Traced
    """What was cut: the student inherits its weights."""
    student: Traced
    cut: Cut
    predicted: Mapping[str, float] = field(default_factory=dict)
    masks: Masks = field(default_factory=dict)
    selection: Selection | None = None
    """What stays of the sites of `dense`; None for single weights."""
    chance: Callable[[int], tuple[Traced, Masks]] | None = None
    """Seed -> as many units of each site, at random, with their weights of `dense`."""
    notes: tuple[str, ...] = ()


def prune(
    dense: Traced,
    budget: Budget,
    method: str,
    *,
    widths: str | Sequence[str] = "",
    inner: bool = True,
    batches: Sequence[Mapping[str, Tensor]] = (),
) -> Pruned:
    """Step 2 of `rethinking_pruning_value`: cut `dense`, which stays as it is. batches: for thinet and regression."""
    if method == "unstructured":
        return _prune_weights(dense, budget)
    if method == "blocks":
        return _prune_branches(dense, budget)
    units, source = cuttable(dense, method, inner), dense
    if method == "slimming":
        scores = magnitude.batch_norm(dense.model, dense.slices())
    elif method in ("thinet", "regression"):
        scores, hessians = _reconstructed(dense, units, method, batches)
    else:
        scores = filters(dense, p=2.0 if method == "soft" else 1.0)
    if widths:
        selection = ranking.by_counts(units, scores, _widths(units, widths))
        _within(budget, selection, dense.units().cost())
    else:
        scope: ranking.Scope = "global" if method == "slimming" else "local"
        selection = ranking.by_budget(units, scores, budget, scope=scope)
    selection = replace(selection, budget=budget)
    if method in ("thinet", "regression"):
        source = _refitted(dense, selection, hessians)
    student, cut = source.cut(selection)
    kept = {name: selection.kept(name, units[name].count) for name in selection.keep}

    def chance(seed: int) -> tuple[Traced, Masks]:
        return dense.cut(ranking.by_counts(units, random.scores(units, seed), kept))[0], {}

    return Pruned(dense, student, cut, dict(selection.spent), {}, selection, chance)


def cuttable(dense: Traced, method: str, inner: bool = True) -> Units:
    """What may go by a method, and what its budgets are shares of. inner: see `sites`."""
    if method == "unstructured":
        counts = {name: weight.numel() for name, weight in _convolutions(dense).items()}
        return Units({name: Site(name, n, {"weights": np.ones(n)}, minimum=1) for name, n in counts.items()})
    if method == "blocks":
        return Branches(dense).units()
    units = sites(dense, inner)
    if method == "slimming":
        known = magnitude.batch_norm(dense.model, dense.slices())
        units = _frozen(units, [name for name in units if name not in known])
        if not units.free():
            raise UnsupportedError("slimming ranks channels by batch norms, and none that may go has one: choose l1")
    return units


def sites(dense: Traced, inner: bool = True) -> Units:
    """What may go: all sites, or with `inner` those whose channels one layer writes (all, where there is none)."""
    units = dense.units()
    if not inner:
        return units
    shared = []
    for name, parts in dense.slices().items():
        # A depth-wise convolution writes what its input has: the layer before it is the one that counts.
        makers = {id(weight) for weight, dim, _ in parts if dim == 0 and weight.dim() > 1 and weight.shape[1] > 1}
        if len(makers) > 1:
            shared.append(name)
    return units if len(shared) == len(units) else _frozen(units, shared)


def _frozen(units: Units, names: Sequence[str]) -> Units:
    gone = set(names)
    return replace(units, sites={n: replace(s, frozen=s.frozen or n in gone) for n, s in units.sites.items()})


def filters(dense: Traced, p: float = 1.0) -> dict[str, Tensor]:
    """Site -> [count]: the norm of the filters that make each channel; nothing else that goes with it counts."""
    chosen = {}
    for name, parts in dense.slices().items():
        makers = [part for part in parts if part[1] == 0 and part[0].dim() > 1]
        chosen[name] = makers or parts
    return magnitude.coupled(chosen, p=p, normalise=False)


def _batch_norms(model: nn.Module) -> list[nn.Parameter]:
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return [norm.weight for norm in norms if norm.weight is not None]


def scales_l1(model: nn.Module, strength: float) -> Tensor:
    """``s sum |gamma|`` over all batch norms: network slimming's penalty, of subgradient s sign(gamma)."""
    scales = _batch_norms(model)
    if not scales:
        raise UnsupportedError(f"{type(model).__name__} has no batch norm with a scale: slimming needs one; choose l1")
    return slimming.penalty(scales, strength)


def soften(dense: Traced, budget: Budget, inner: bool = True) -> None:
    """Zero, in place, the filters of smallest L2 norm that a cut to `budget` would take; they go on learning."""
    selection = ranking.by_budget(sites(dense, inner), filters(dense, p=2.0), budget, scope="local")
    with torch.no_grad():
        for name, keep in selection.keep.items():
            for weight, dim, unit in dense.slices()[name]:
                if dim == 0 and weight.dim() > 1:
                    stays = torch.as_tensor(keep)[unit.clamp(min=0)] | (unit < 0)
                    weight.mul_(stays.to(weight).view(-1, *([1] * (weight.dim() - 1))))


class Scaled(Traced):
    """A network with what sparse training has made of the scales of its residual branches; they are folded in."""

    scales: Mapping[str, float]


def scaled(dense: Traced, strength: float, fitting: Callable[..., Any]) -> Scaled:
    """A copy trained with a factor on the output of each residual branch, x + lambda F(x), and lambda folded into F.

    After each step lambda is brought towards 0 by `strength` times the learning rate, and stops there: the proximal
    step of sparse structure selection (arXiv 1707.01213). fitting: trains a model with `fit`'s options.
    """
    copied = duplicate(dense)
    factors = nn.Module()
    found = list(Branches(dense))
    factors.register_parameter("lambda_", nn.Parameter(torch.ones(len(found))))
    scale = factors.get_parameter("lambda_")

    def shrink(optimizer: torch.optim.Optimizer) -> None:
        with torch.no_grad():
            scale.copy_(scale.sign() * (scale.abs() - strength * optimizer.param_groups[0]["lr"]).clamp(min=0.0))

    def times(place: int) -> Callable[[nn.Module, Any, Any], Any]:
        return lambda module, args, output: output * scale[place].to(output.device)

    handles = [
        copied.model.get_submodule(branch.modules[-1]).register_forward_hook(times(place))
        for place, branch in enumerate(found)
    ]
    try:
        fitting(copied.model, extra=[factors], step_end=shrink)
    finally:
        for handle in handles:
            handle.remove()
    for branch, value in zip(found, scale.tolist(), strict=True):
        last = copied.model.get_submodule(branch.modules[-1])
        own = dict(last.named_parameters(recurse=False))
        if not own or set(own) - {"weight", "bias"} or any(True for _ in last.children()):
            raise UnsupportedError(
                f"a scale can't be folded into {branch.modules[-1]}: its branch must end in one layer"
            )
        with torch.no_grad():
            for parameter in own.values():
                parameter.mul_(value)
    result = Scaled(copied.model, copied.inputs, copied.plans)
    result.scales = {branch.name: abs(value) for branch, value in zip(found, scale.tolist(), strict=True)}
    return result


def _prune_branches(dense: Traced, budget: Budget) -> Pruned:
    """The branches of the smallest scale go; without sparse training all scales are 1, and the first ones stay."""
    found = Branches(dense)
    units = found.units()
    (site,) = units
    known = dense.scales if isinstance(dense, Scaled) else {}
    scores = {site: np.array([known.get(branch.name, 1.0) for branch in found])}
    selection = replace(ranking.by_budget(units, scores, budget, scope="global"), budget=budget)
    student, cut = found.cut(selection)
    kept = {site: selection.kept(site, units[site].count)}

    def chance(seed: int) -> tuple[Traced, Masks]:
        return found.cut(ranking.by_counts(units, random.scores(units, seed), kept))[0], {}

    return Pruned(dense, student, cut, dict(selection.spent), {}, None, chance)


def _widths(units: Units, given: str | Sequence[str]) -> dict[str, int]:
    free = units.free()
    try:
        counts = [int(part) for part in listed(given)]
    except ValueError as error:
        raise InputError(f"widths={given!r}: give whole numbers, separated by commas") from error
    if len(counts) != len(free):
        wanted = ", ".join(f"{site.name} ({site.count})" for site in free)
        raise InputError(f"widths name {len(counts)} sites of {len(free)}: give one number for each of {wanted}")
    return {site.name: count for site, count in zip(free, counts, strict=True)}


def _within(budget: Budget, selection: Selection, whole: Mapping[str, float]) -> None:
    for measure, limit in budget.absolute(whole).items():
        if selection.spent[measure] > limit:
            raise InfeasibleError(
                f"these widths cost {measure}={selection.spent[measure]:.6g}, budget {budget} allows {limit:.6g}: "
                "give smaller ones", selection.spent[measure],
            )  # fmt: skip


def _convolutions(dense: Traced) -> dict[str, Tensor]:
    found = masks.convolutions(dense.model)
    if not found:
        raise UnsupportedError("unstructured pruning is over convolutions, and there is none: choose another method")
    return dict(found)


def _prune_weights(dense: Traced, budget: Budget) -> Pruned:
    found = _convolutions(dense)
    units = cuttable(dense, "unstructured")
    scores = {name: weight.detach().abs().flatten().float() for name, weight in found.items()}
    selection = ranking.by_budget(units, scores, budget, scope="global")
    closed = {name: torch.as_tensor(keep).view(found[name].shape) for name, keep in selection.keep.items()}

    def masked(chosen: Masks) -> Traced:
        student = duplicate(dense)
        masks.apply(student.model, chosen)
        return student

    def chance(seed: int) -> tuple[Traced, Masks]:
        chosen = masks.shuffled(closed, seed=seed)
        return masked(chosen), chosen

    removed = {name: (int((~mask).sum()), mask.numel()) for name, mask in closed.items()}
    before = {**_counted(dense.model), "weights": units.cost()["weights"]}
    after = {**before, "weights": selection.spent["weights"]}
    notes = ("zeros in dense tensors: neither smaller nor faster anywhere without sparse kernels",)
    cut = Cut(removed, before, after)
    return Pruned(dense, masked(closed), cut, dict(selection.spent), closed, None, chance, notes)


def _counted(model: nn.Module) -> dict[str, float]:
    return {
        "params": float(sum(p.numel() for p in model.parameters())),
        "bytes": float(sum(p.numel() * p.element_size() for p in model.parameters())),
    }


Readers = dict[str, dict[str, Tensor]]
"""Path of a layer -> site -> unit of each column of its flattened weight, or -1."""


def _readers(dense: Traced, units: Units) -> Readers:
    paths = {
        id(module.weight): (path, module)
        for path, module in dense.model.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    }
    found: Readers = {}
    slices = dense.slices()
    for site in units.free():
        for weight, dim, unit in slices[site.name]:
            if dim == 1 and id(weight) in paths:
                path, module = paths[id(weight)]
                patch = module.weight[0, 0].numel()
                found.setdefault(path, {})[site.name] = unit.repeat_interleave(patch)
    return found


def _reconstructed(
    dense: Traced, units: Units, method: str, batches: Sequence[Mapping[str, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Scores by what the next layers lose, and those layers' second moments; L1 where no layer can be refitted."""
    readers = _readers(dense, units)
    hessians = reconstruction.moments(partial(predict, dense.model), dense.model, batches, list(readers))
    products: dict[str, Tensor] = {}
    for path, columns in readers.items():
        weight = dense.model.get_parameter(f"{path}.weight")
        for site, unit in columns.items():
            product = reconstruction.gram(weight, hessians[path], unit)
            products[site] = products[site] + product if site in products else product
    rank = reconstruction.greedy if method == "thinet" else reconstruction.lasso
    return {**filters(dense), **{site: rank(product) for site, product in products.items()}}, hessians


def _refitted(dense: Traced, selection: Selection, hessians: Mapping[str, Tensor]) -> Traced:
    """A copy whose layers behind the cut give, on the units that stay, what they gave: W H[:, R] H[R, R]^-1."""
    source = dense.copy()
    for path, columns in _readers(dense, dense.units()).items():
        stays = torch.ones(len(next(iter(columns.values()))), dtype=torch.bool)
        for site, unit in columns.items():
            if site in selection.keep:
                keep = torch.as_tensor(selection.keep[site])
                stays &= torch.where(unit >= 0, keep[unit.clamp(min=0)], torch.tensor(True))
        if path in hessians and not bool(stays.all()):
            weight = source.model.get_parameter(f"{path}.weight")
            flat = weight.detach().flatten(1).clone()
            flat[:, stays] = compensate.least_squares(flat, hessians[path], stays, damp=1e-3)
            with torch.no_grad():
                weight.copy_(flat.view_as(weight))
    return source


# --------------------------------------------------------------------------------------------------- training


def duplicate(subject: Traced) -> Traced:
    """The same network in memory of its own, not analysed: for what is trained and not cut again."""
    return Traced(copy.deepcopy(subject.model), subject.inputs, subject.plans)


def predict(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Logits [B, C] of a batch of examples."""
    return objectives.logits(model(batch["inputs"]))


class _Periodic(torch.optim.SGD):
    """SGD with momentum 0.9 that calls `then` with itself after every `every` steps; the count is part of its state."""

    def __init__(self, groups: Any, then: Callable[[torch.optim.Optimizer], None], every: int) -> None:
        super().__init__(groups, lr=0.1, momentum=0.9, nesterov=True)
        self.then, self.every = then, every

    def step(self, closure: Any = None) -> Any:
        """One step."""
        value = super().step(closure)
        state = self.state[self.param_groups[0]["params"][0]]
        done = int(state.get("done", 0)) + 1
        state["done"] = torch.tensor(float(done))
        if done % self.every == 0:
            self.then(self)
        return value


def fit(
    model: nn.Module,
    data: Examples,
    *,
    epochs: float,
    lr: float,
    batch: int = 64,
    seed: int = 0,
    schedule: str = "milestones",
    weight_decay: float = 1e-4,
    penalty: Callable[[], Tensor] | None = None,
    closed: Masks | None = None,
    epoch_end: Callable[[], None] | None = None,
    step_end: Callable[[torch.optim.Optimizer], None] | None = None,
    extra: Sequence[nn.Module] = (),
    judged: Examples | None = None,
    augment: Augment | None = None,
    folder: Path | None = None,
    flops: float = 0.0,
    training: str | Sequence[str] = "",
    optimizer: str = "sgd",
) -> Recovery | None:
    """Train `model` in place on the classes of `data`, by SGD with momentum 0.9 or by "adamw"; None for no epochs.

    On boxes it trains a detector by its own loss. schedule: "milestones", decays at 50 % and 75 % whatever the epochs;
    or "constant". penalty: is added to the mean loss. closed: masks, held at 0. epoch_end: called after each epoch.
    step_end: called with the optimizer after each step. extra: trained along. judged: examples whose error is noted
    after each epoch, for the best beside the last. folder: of checkpoints. flops: of one forward pass of one example.
    """
    if data.labels is None and not data.targets:
        raise DataError(f"{data.name} has no classes: give labels, for networks are trained on them here")
    feed, further = examples.batches(data, batch=batch, seed=seed, augment=augment), loop.options(training)
    epoch = len(feed) / further.get("accumulate", 1)  # in steps
    steps, once = round(epochs * epoch), max(1, round(epoch))
    if not steps:
        masks.apply(model, closed or {})
        return None

    def objective(part: Mapping[str, Any], totals: Mapping[str, int]) -> tuple[Tensor, dict[str, float]]:
        if data.targets:
            loss, _ = detecting.press(cast(Detector, model).loss)(part, totals)
        else:
            loss = losses.cross_entropy(predict(model, part), part["labels"]) / totals["examples"]
        if penalty is not None:
            loss = loss + penalty() * (len(part["inputs"]) / totals["examples"])
        return loss, {}

    stepper: Any = optimizer
    if epoch_end is not None:
        stepper = partial(_Periodic, then=lambda _: epoch_end(), every=once)
    if step_end is not None:
        stepper = partial(_Periodic, then=step_end, every=1)
    evaluate = None if judged is None else (lambda: 1.0 - float(right(model, judged).mean()))
    with masks.held(model, closed or {}):
        return loop.train(
            model, feed, objective, steps=steps, lr=lr, schedule=schedule, warmup=0, optimizer=stepper,
            weight_decay=weight_decay, seed=seed, count=examples.count, checkpoint=folder, evaluate=evaluate,
            extra=extra, flops_per_token=3.0 * flops,
            **{"clip": None, "evaluate_every": once, "every": max(100, once), **further},
        )  # fmt: skip


def right(model: nn.Module, data: Examples, batch: int = 256) -> NDArray[np.bool_]:
    """[N]: whether the largest logit is that of the class."""
    found = []
    device = next(model.parameters()).device
    with evaluating(model), torch.inference_mode():
        for part in data.in_order(batch):
            logits = predict(model, {"inputs": part["inputs"].to(device)})
            found.append((logits.argmax(-1).cpu() == part["labels"]).numpy())
    return np.concatenate(found)


# ------------------------------------------------------------------------------------------------------- arms


@dataclass(frozen=True, eq=False)
class Arm:
    """One way to weights in the cut shape."""

    epochs: int
    flops: float
    """Of its training: three forward passes for each example seen."""
    right: NDArray[np.bool_]
    """[held-out examples]: whether the last weights get each right."""
    model: nn.Module
    recovery: Recovery | None = None
    notes: tuple[str, ...] = ()

    @property
    def accuracy(self) -> float:
        """Of the last weights, on the held-out examples."""
        return float(self.right.mean())


Epochs = TypeVar("Epochs", int, float)


def tuning_epochs(epochs: Epochs, finetune: str, given: Epochs | None = None) -> Epochs:
    """Epochs of fine-tuning: those `given`, or a quarter of the large network's for classic, all of them for rewind."""
    if given is not None:
        return given
    return max(type(epochs)(1), epochs // 4) if finetune == "classic" else epochs


def epochs_for(epochs: Epochs, dense: float, cut: float, cap: float | None = None) -> Epochs:
    """E F(dense) / F(cut), at most `cap` times E, whole where E is: what Scratch-B may train for. Source: section 3."""
    kind, most = type(epochs), math.inf if cap is None else cap
    return kind(min(epochs * dense / cut + 1e-9, most * epochs))


def forward_flops(subject: Traced, sparse: bool = False) -> float:
    """FLOPs of a forward pass on the subject's example inputs, everything counted; see `size.every_flop`."""
    return size.every_flop(subject.forward, sparse=sparse)


def trial(
    pruned: Pruned,
    data: Examples,
    judged: Examples,
    *,
    mode: str = "both",
    epochs: int = 160,
    lr: float = 0.1,
    batch: int = 64,
    seed: int = 0,
    weight_decay: float = 1e-4,
    finetune: str = "classic",
    finetune_epochs: int | None = None,
    cap: float | None = None,
    norm: float = 1.0,
    chance: bool = False,
    build: Callable[[], nn.Module] | None = None,
    augment: Augment | None = None,
    watch: bool = True,
    folder: Path | None = None,
    training: str | Sequence[str] = "",
) -> dict[str, Arm]:
    """Steps 3 to 5 of `rethinking_pruning_value`, for one seed: name of the arm -> what came out.

    mode: "E", "B", "both" or "none" of the fresh networks. chance: also as many units of each site at random, with
    their inherited weights, fine-tuned alike. build: gives a network of the cut shape; a copy of the student
    otherwise. Its weights are drawn anew either way. The arms share nothing but the order of the batches. `pruned`
    stays as it is. watch: note the error after each epoch, too, for the best beside the last.
    """
    sparse, count = bool(pruned.masks), len(_leading(pruned.dense))
    dense, cut = (forward_flops(one, sparse) / count for one in (pruned.dense, pruned.student))
    common = {"batch": batch, "seed": seed, "weight_decay": weight_decay, "augment": augment, "training": training,
              "judged": judged if watch else None, "flops": cut}  # fmt: skip
    gentle = {"lr": lr / 100, "schedule": "constant"} if finetune == "classic" else {"lr": lr}
    short = tuning_epochs(epochs, finetune, finetune_epochs)

    def run(name: str, model: nn.Module, closed: Masks, length: int, how: Mapping[str, Any], notes: Any = ()) -> Arm:
        place = None if folder is None else folder / name
        found = fit(model, data, epochs=length, closed=closed, folder=place, **{**common, **how})
        return Arm(length, 3.0 * cut * len(data) * length, right(model, judged), model, found, tuple(notes))

    arms = {"fine-tuned": run("fine-tuned", duplicate(pruned.student).model, pruned.masks, short, gentle)}
    lengths = {"scratch-E": epochs, "scratch-B": epochs_for(epochs, dense, cut, cap)}
    for name, length in lengths.items():
        if mode in (name[-1], "both"):
            model, notes = initialise.fresh(
                _built(build, pruned.student.model), seed=seed, norm=norm, masks=pruned.masks
            )
            arms[name] = run(name, model, pruned.masks, length, {"lr": lr}, notes)
    if chance and pruned.chance is not None:
        student, closed = pruned.chance(seed)
        arms["random units"] = run("random units", duplicate(student).model, closed, short, gentle)
    return arms


def _leading(subject: Traced) -> Tensor:
    """The first example input, whose first dimension counts examples."""
    return next(value for value in (*subject.inputs.args, *subject.inputs.kwargs.values()) if isinstance(value, Tensor))


def _built(build: Callable[[], nn.Module] | None, student: nn.Module) -> nn.Module:
    if build is None:
        return student
    made = build()
    ours, theirs = ({n: tuple(t.shape) for n, t in model.state_dict().items()} for model in (made, student))
    wrong = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if wrong:
        raise InputError(
            f"the network that was built has {wrong[0]} of shape {ours.get(wrong[0])}, the pruned one "
            f"{theirs.get(wrong[0])}: build the cut shape"
        )
    return made


def judge(difference: Figure) -> str:
    """The verdict on inherited minus fresh accuracy: by its interval, or none where there is no interval."""
    if difference.low is None or difference.high is None:
        return "no verdict: one training of each says nothing"
    if difference.low > 0:
        return "the inherited weights are better"
    if difference.high < 0:
        return "training from scratch is better"
    return "a tie: the interval holds 0"


def describe(arms: Mapping[str, Arm], finetune: str) -> str:
    """One sentence with every arm's epochs, FLOPs and accuracy, and the verdict against the best fresh network."""
    tuned = arms["fine-tuned"]
    shown = [
        f"{name}{f' ({finetune})' if name == 'fine-tuned' else ''} {100 * arm.accuracy:.1f}% "
        f"({arm.epochs} epochs, {arm.flops:.3g} FLOPs)"
        for name, arm in arms.items()
    ]
    text = f"accuracy on {len(tuned.right)} examples held out of the training data: {', '.join(shown)}"
    fresh = [name for name in arms if name.startswith("scratch")]
    if not fresh:
        return text
    best = max(fresh, key=lambda name: arms[name].accuracy)
    difference = statistics.paired_difference(tuned.right.astype(float), arms[best].right.astype(float))
    points = in_points(difference)
    return f"{text}; fine-tuned minus {best} {points} points, over examples of one training each: {judge(difference)}"


def in_points(difference: Figure) -> Figure:
    """A difference of accuracies in percentage points."""
    low, high = (None if one is None else 100 * one for one in (difference.low, difference.high))
    return Figure(100 * difference.value, low, high, "", difference.samples)
