"""Published rules that choose filters, branches or weights to remove, and the sparse training before some of them.

The rules are those that Liu et al., "Rethinking the Value of Network Pruning", ICLR 2019 (arXiv 1810.05270), put beside
training from scratch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from secateur._utils.rundir import Run
from secateur.errors import InfeasibleError, InputError, UnsupportedError
from secateur.recover.sparsity import compensate, masks, slimming
from secateur.recover.sparsity.masks import Masks
from secateur.score import magnitude, random, reconstruction
from secateur.select import ranking
from secateur.subjects.network.residual import Branches
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget, Cut, Selection, Site, Units, parse_list

__all__ = [
    "FINDS_WIDTHS", "Pruned", "Rule", "Scaled", "cuttable", "duplicate", "parse_widths", "penalise_scales", "prune",
    "refuse_larger", "sites", "soften", "train_large", "train_scales", "train_soft",
]  # fmt: skip

Rule = Literal["l1", "slimming", "soft", "thinet", "regression", "blocks", "unstructured"]

FINDS_WIDTHS = ("slimming", "blocks", "unstructured")
"""Rules whose cut finds an architecture of its own; the others take the same share in every layer."""

Fit = Callable[..., Any]
"""(model, folder=, penalty=, epoch_end=, step_end=, extra=): `arms.fit` with its data and settings."""


@dataclass(frozen=True, eq=False)
class Pruned:
    """A cut with all that its control experiment needs."""

    dense: Traced
    """What was cut: the student inherits its weights."""
    student: Traced
    cut: Cut
    selection: Selection
    units: Units
    """What `selection` chose from."""
    masks: Masks = field(default_factory=dict)
    """Of single weights; nothing where the cut is structured."""
    branches: Branches | None = None
    """Of `dense`, where it is they that were cut."""
    notes: tuple[str, ...] = ()

    def cut_at_random(self, seed: int) -> tuple[Traced, Masks]:
        """As many units of each site as `student` has, at random, with the weights of `dense`; and their masks."""
        if self.masks:
            chosen = masks.shuffle(self.masks, seed=seed)
            return _close_weights(self.dense, chosen), chosen
        counts = {name: self.selection.count_kept(name, self.units[name].count) for name in self.selection.keep}
        source = self.dense if self.branches is None else self.branches
        return source.cut(ranking.by_counts(self.units, random.scores(self.units, seed), counts))[0], {}


def prune(
    dense: Traced,
    budget: Budget,
    rule: Rule,
    *,
    widths: str | Sequence[str] = "",
    inner: bool = True,
    batches: Sequence[Mapping[str, Tensor]] = (),
) -> Pruned:
    """Cut a network to a budget by a published rule; `dense` stays as it is.

    Predefined, the same share in every layer: "l1" (smallest sum |W| of a filter), "soft" (smallest L2), "thinet"
    (greedy) and "regression" (LASSO) by what the next layer loses, which is then refitted by least squares. Automatic:
    "slimming" (smallest |gamma| of all batch norms), "blocks" (smallest scale of a residual branch), "unstructured"
    (smallest |w| of all convolutions, masked).

    Args:
        dense: the network; of `train_scales` for "blocks".
        budget: channels=, params=, bytes= or flops=; branches= for "blocks"; weights= for "unstructured".
        rule: by which units go.
        widths: units to keep at each site, see `parse_widths`; only for predefined rules.
        inner: see `sites`.
        batches: on which "thinet" and "regression" reconstruct.
    """
    if rule == "unstructured":
        return _prune_weights(dense, budget)
    if rule == "blocks":
        return _prune_branches(dense, budget)
    units, source = cuttable(dense, rule, inner), dense
    hessians: dict[str, Tensor] = {}
    if rule == "slimming":
        scores = magnitude.batch_norm(dense.model, dense.slices())
    elif rule in ("thinet", "regression"):
        scores, hessians = _reconstruct(dense, units, rule, batches)
    else:
        scores = _filter_norms(dense, p=2.0 if rule == "soft" else 1.0)
    if widths:
        selection = ranking.by_counts(units, scores, parse_widths(units, widths))
        refuse_larger(budget, selection, dense.units().cost())
    else:
        scope: ranking.Scope = "global" if rule == "slimming" else "local"
        selection = ranking.by_budget(units, scores, budget, scope=scope)
    selection = replace(selection, budget=budget)
    if hessians:
        source = _refit(dense, selection, hessians)
    return Pruned(dense, *source.cut(selection), selection, units)


def duplicate(subject: Traced) -> Traced:
    """The same network in memory of its own, not analysed: for what is trained and not cut again."""
    return Traced(copy.deepcopy(subject.model), subject.inputs, subject.plans)


# ------------------------------------------------------------------------------------------------ what may go


def cuttable(dense: Traced, rule: Rule, inner: bool = True) -> Units:
    """What may go by a rule, and what its budgets are shares of. inner: see `sites`."""
    if rule == "unstructured":
        counts = {name: weight.numel() for name, weight in _convolutions(dense).items()}
        return Units({name: Site(name, n, {"weights": np.ones(n)}, minimum=1) for name, n in counts.items()})
    if rule == "blocks":
        return Branches(dense).units()
    units = sites(dense, inner)
    if rule == "slimming":
        with_norm = magnitude.batch_norm(dense.model, dense.slices())
        units = _freeze(units, [name for name in units if name not in with_norm])
        if not units.free():
            raise UnsupportedError("slimming ranks channels by batch norms, and none that may go has one: choose l1")
    return units


def sites(dense: Traced, inner: bool = True) -> Units:
    """What may go: all sites, or with `inner` those whose channels one layer writes (all, where there is none)."""
    units = dense.units()
    if not inner:
        return units
    convolutions = [one for one in dense.model.modules() if isinstance(one, nn.modules.conv._ConvNd)]
    # A depth-wise convolution writes what its input has: the layer before it is the one that counts.
    depth_wise = {id(one.weight) for one in convolutions if one.groups == one.in_channels > 1}
    shared = []
    for name, parts in dense.slices().items():
        makers = {id(weight) for weight, dim, _ in parts if dim == 0 and weight.dim() > 1} - depth_wise
        if len(makers) > 1:
            shared.append(name)
    return units if len(shared) == len(units) else _freeze(units, shared)


def _freeze(units: Units, names: Sequence[str]) -> Units:
    return replace(units, sites={n: replace(s, frozen=s.frozen or n in names) for n, s in units.sites.items()})


def parse_widths(units: Units, widths: str | Sequence[str]) -> dict[str, int]:
    """Site -> units to keep, from "32,64,128" or a list: one for each site that may shrink, in the network's order."""
    free = units.free()
    try:
        counts = [int(part) for part in parse_list(widths)]
    except ValueError as error:
        raise InputError(f"widths={widths!r}: give whole numbers, separated by commas") from error
    if len(counts) != len(free):
        wanted = ", ".join(f"{site.name} ({site.count})" for site in free)
        raise InputError(f"widths name {len(counts)} sites of {len(free)}: give one number for each of {wanted}")
    return {site.name: count for site, count in zip(free, counts, strict=True)}


def refuse_larger(budget: Budget, selection: Selection, whole: Mapping[str, float]) -> None:
    """Raise `InfeasibleError` where widths cost more than the budget allows."""
    for measure, limit in budget.absolute(whole).items():
        spent = selection.spent[measure]
        if spent > limit:
            raise InfeasibleError(
                f"these widths cost {measure}={spent:.6g}, budget {budget.brief()} allows {limit:.6g}: "
                "give smaller ones",
                spent,
            )


# ------------------------------------------------------------------------------------------ filters and reconstruction


def _filter_norms(dense: Traced, p: float) -> dict[str, Tensor]:
    """Site -> [count]: the norm of the filters that make each channel; nothing else that goes with it counts."""
    filters = {}
    for name, parts in dense.slices().items():
        makers = [part for part in parts if part[1] == 0 and part[0].dim() > 1]
        filters[name] = makers or parts
    return magnitude.coupled_norm(filters, p=p, normalise=False)


def _readers(dense: Traced, units: Units) -> dict[str, dict[str, Tensor]]:
    """Path of a layer -> site -> unit of each column of its flattened weight, or -1."""
    layers = {
        id(module.weight): (path, module)
        for path, module in dense.model.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    }
    readers: dict[str, dict[str, Tensor]] = {}
    slices = dense.slices()
    for site in units.free():
        for weight, dim, unit in slices[site.name]:
            if dim == 1 and id(weight) in layers:
                path, module = layers[id(weight)]
                readers.setdefault(path, {})[site.name] = unit.repeat_interleave(module.weight[0, 0].numel())
    return readers


def _reconstruct(
    dense: Traced, units: Units, rule: str, batches: Sequence[Mapping[str, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Scores by what the next layers lose, and those layers' second moments; L1 where no layer can be refitted."""
    readers = _readers(dense, units)
    hessians = reconstruction.moments(lambda batch: dense.model(batch["inputs"]), dense.model, batches, list(readers))
    products: dict[str, Tensor] = {}
    for path, columns in readers.items():
        weight = dense.model.get_parameter(f"{path}.weight")
        for site, unit in columns.items():
            product = reconstruction.gram(weight, hessians[path], unit)
            products[site] = products[site] + product if site in products else product
    rank = reconstruction.greedy if rule == "thinet" else reconstruction.lasso
    return {**_filter_norms(dense, 1.0), **{site: rank(product) for site, product in products.items()}}, hessians


def _refit(dense: Traced, selection: Selection, hessians: Mapping[str, Tensor]) -> Traced:
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


# ------------------------------------------------------------------------------------------- branches and weights


class Scaled(Traced):
    """A network with what sparse training has made of the scales of its residual branches; they are folded in."""

    scales: Mapping[str, float]


def _prune_branches(dense: Traced, budget: Budget) -> Pruned:
    """The branches of the smallest scale go; without sparse training all scales are 1, and the first ones stay."""
    branches = Branches(dense)
    units = branches.units()
    (site,) = units
    scales = dense.scales if isinstance(dense, Scaled) else {}
    scores = {site: np.array([scales.get(branch.name, 1.0) for branch in branches])}
    selection = replace(ranking.by_budget(units, scores, budget, scope="global"), budget=budget)
    return Pruned(dense, *branches.cut(selection), selection, units, branches=branches)


def _prune_weights(dense: Traced, budget: Budget) -> Pruned:
    weights = _convolutions(dense)
    units = cuttable(dense, "unstructured")
    scores = {name: weight.detach().abs().flatten().float() for name, weight in weights.items()}
    selection = ranking.by_budget(units, scores, budget, scope="global")
    closed = {name: torch.as_tensor(keep).view(weights[name].shape) for name, keep in selection.keep.items()}
    parameters = list(dense.model.parameters())
    before = {
        "params": float(sum(p.numel() for p in parameters)),
        "bytes": float(sum(p.numel() * p.element_size() for p in parameters)),
        **units.cost(),
    }
    removed = {name: (int((~mask).sum()), mask.numel()) for name, mask in closed.items()}
    cut = Cut(removed, before, {**before, "weights": selection.spent["weights"]})
    note = "zeros in dense tensors: neither smaller nor faster anywhere without sparse kernels"
    return Pruned(dense, _close_weights(dense, closed), cut, selection, units, closed, notes=(note,))


def _convolutions(dense: Traced) -> dict[str, Tensor]:
    weights = masks.convolutions(dense.model)
    if not weights:
        raise UnsupportedError("unstructured pruning is over convolutions, and there is none: choose another method")
    return weights


def _close_weights(dense: Traced, closed: Masks) -> Traced:
    student = duplicate(dense)
    masks.apply(student.model, closed)
    return student


# ------------------------------------------------------------------------------------------ training before the cut


def train_large(subject: Traced, run: Run, fit: Fit, *, rule: Rule, untrained: bool, sparsity: float) -> Traced:
    """The large network: trained first where it is `untrained`, then with the sparsity of slimming or of blocks."""
    large = subject
    if untrained:
        large = subject.copy()
        fit(large.model, folder=run.folder("train-large"))
    if rule == "blocks":
        large = train_scales(large, sparsity, partial(fit, folder=run.folder("train-blocks")))
    if rule == "slimming":
        large = large.copy()
        penalty = partial(penalise_scales, large.model, sparsity)
        fit(large.model, penalty=penalty, folder=run.folder("train-slimming"))
    return large


def train_soft(large: Traced, budget: Budget, run: Run, fit: Fit, *, inner: bool) -> Traced:
    """A copy trained on, whose smallest filters are zeroed after every epoch; see `soften`."""
    start = large.copy()
    zero = partial(soften, start, budget, inner)
    fit(start.model, epoch_end=zero, folder=run.folder(f"train-soft-{budget}"))
    return start


def soften(dense: Traced, budget: Budget, inner: bool = True) -> None:
    """Zero, in place, the filters of smallest L2 norm that a cut to `budget` would take; they go on learning."""
    selection = ranking.by_budget(sites(dense, inner), _filter_norms(dense, p=2.0), budget, scope="local")
    with torch.no_grad():
        for name, keep in selection.keep.items():
            for weight, dim, unit in dense.slices()[name]:
                if dim == 0 and weight.dim() > 1:
                    stays = torch.as_tensor(keep)[unit.clamp(min=0)] | (unit < 0)
                    weight.mul_(stays.to(weight).view(-1, *([1] * (weight.dim() - 1))))


def penalise_scales(model: nn.Module, strength: float) -> Tensor:
    """``s sum |gamma|`` over all batch norms: network slimming's penalty, of subgradient s sign(gamma)."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    scales = [norm.weight for norm in norms if norm.weight is not None]
    if not scales:
        raise UnsupportedError(f"{type(model).__name__} has no batch norm with a scale: slimming needs one; choose l1")
    return slimming.penalty(scales, strength)


def train_scales(dense: Traced, strength: float, fit: Fit) -> Scaled:
    """A copy trained with a factor on the output of each residual branch, x + lambda F(x), and lambda folded into F.

    After each step lambda is brought towards 0 by `strength` times the learning rate, and stops there: the proximal
    step of sparse structure selection (arXiv 1707.01213).
    """
    copied = duplicate(dense)
    branches = list(Branches(dense))
    last_layers = [copied.model.get_submodule(branch.modules[-1]) for branch in branches]
    factors = nn.Module()
    factors.register_parameter("lambda_", nn.Parameter(torch.ones(len(branches))))
    scale = factors.get_parameter("lambda_")

    def shrink(optimizer: torch.optim.Optimizer) -> None:
        with torch.no_grad():
            scale.copy_(scale.sign() * (scale.abs() - strength * optimizer.param_groups[0]["lr"]).clamp(min=0.0))

    def multiply_by(place: int) -> Callable[[nn.Module, object, Tensor], Tensor]:
        return lambda module, args, output: output * scale[place].to(output.device)

    handles = [layer.register_forward_hook(multiply_by(place)) for place, layer in enumerate(last_layers)]
    try:
        fit(copied.model, extra=[factors], step_end=shrink)
    finally:
        for handle in handles:
            handle.remove()
    for branch, layer, value in zip(branches, last_layers, scale.tolist(), strict=True):
        own = dict(layer.named_parameters(recurse=False))
        if not own or set(own) - {"weight", "bias"} or any(True for _ in layer.children()):
            raise UnsupportedError(
                f"a scale can't be folded into {branch.modules[-1]}: its branch must end in one layer"
            )
        with torch.no_grad():
            for parameter in own.values():
                parameter.mul_(value)
    result = Scaled(copied.model, copied.inputs, copied.plans)
    result.scales = {branch.name: abs(value) for branch, value in zip(branches, scale.tolist(), strict=True)}
    return result
