"""Training that drives chosen groups of weights exactly to zero, so that they can be cut without fine-tuning.

`GroupSparse` stands in the place of SGD, Adam or AdamW. A group is all that makes one unit (rows, bias, scale and shift
of a channel; every weight of an operator), given as slices; with nothing to remove it is the plain optimiser exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from secateur.errors import InputError
from secateur.vocabulary import Selection

__all__ = ["Choose", "GroupSparse", "Groups", "Saliency", "Slices", "interval"]

Slices = Mapping[str, Sequence[tuple[Tensor, int, Tensor]]]
"""Site -> (parameter, dimension, unit of each index of it or -1), for every parameter that a unit takes a part of."""

Saliency = Callable[[Slices, Mapping[Tensor, Tensor]], Mapping[str, Tensor]]
"""(slices, parameter -> direction of descent) -> site -> [count]; higher means keep."""

Choose = Callable[[Mapping[str, Tensor], float], Mapping[str, Tensor]]
"""(scores, how much more than the target) -> site -> [count] booleans: the groups that may go."""

_VARIANTS = ("sgd", "adam", "adamw")
_ASKED = 16
"""On a device, steps between two looks whether the target is reached."""
_PENALTY = {"sgd": (1e-3, 2.0, 10.0), "adam": (1e-2, 20.0, 1e3), "adamw": (1e-2, 20.0, 1e3)}
"""Variant -> lambda, amplification and coefficient of the interval."""


class Groups:
    """Sums over groups: all sites in one row, [groups] long. A parameter's index belongs to at most one group."""

    def __init__(self, slices: Slices) -> None:
        self.slices = slices
        self.parts: list[tuple[Tensor, int, Tensor]] = []
        self.span: dict[str, tuple[int, int]] = {}
        start = 0
        for site, given in slices.items():
            count = 1 + max((int(unit.max()) for _, _, unit in given), default=-1)
            self.span[site] = (start, start + count)
            for parameter, dim, unit in given:
                length = parameter.shape[dim] if parameter.dim() else 1
                if unit.shape != (length,):
                    raise InputError(
                        f"{site}: dimension {dim} of shape {tuple(parameter.shape)} needs {length} units, "
                        f"not {tuple(unit.shape)}"
                    )
                self.parts.append((parameter, dim, torch.where(unit >= 0, unit + start, -1)))
            start += count
        self.count = start
        self._indices: dict[tuple[int, torch.device], tuple[Tensor, Tensor, Tensor]] = {}
        self.parameters = list(dict.fromkeys(parameter for parameter, _, _ in self.parts))

    def _look_up(self, place: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Of a slice, on a device, copied once: (group of each index or -1, indices in a group, their groups)."""
        if (place, device) not in self._indices:
            unit = self.parts[place][2]
            inside = (unit >= 0).nonzero().flatten()
            self._indices[place, device] = (unit.to(device), inside.to(device), unit[inside].to(device))
        return self._indices[place, device]

    @property
    def device(self) -> torch.device:
        """Where rows of all groups are: with the first parameter."""
        return self.parameters[0].device if self.parameters else torch.device("cpu")

    def total(self, values: Callable[[Tensor], Tensor]) -> Tensor:
        """Float64 [groups]: `values` of each parameter, summed over the weights of each group."""
        result = torch.zeros(self.count, dtype=torch.float64, device=self.device)
        done: dict[Tensor, Tensor] = {}
        for place, (parameter, dim, _) in enumerate(self.parts):
            if parameter not in done:
                done[parameter] = values(parameter)
            value = done[parameter].reshape(parameter.shape or (1,))
            rest = [other for other in range(value.dim()) if other != dim]
            _, inside, groups = self._look_up(place, result.device)
            row = (value.sum(rest) if rest else value).double().to(result.device)
            result.index_add_(0, groups, row.index_select(0, inside))
        return result

    def spread(self, parameter: Tensor, row: Tensor, outside: float) -> Iterable[Tensor]:
        """For each slice of a parameter, the entry of `row` for every index, in a shape that broadcasts with it."""
        for place, (one, dim, _) in enumerate(self.parts):
            if one is parameter:
                unit = self._look_up(place, parameter.device)[0]
                entry = torch.where(unit >= 0, row.to(parameter.device)[unit.clamp(min=0)], outside)
                shape = [1] * max(1, parameter.dim())
                shape[dim] = -1
                yield entry.reshape(shape if parameter.dim() else ())

    def sites(self, row: Tensor) -> dict[str, Tensor]:
        """A row [groups] as site -> [count]."""
        return {site: row[start:end] for site, (start, end) in self.span.items()}

    def row(self, sites: Mapping[str, Tensor]) -> Tensor:
        """The inverse of `sites`."""
        rows = [torch.as_tensor(sites[site]).to(self.device) for site in self.span]
        return torch.cat(rows) if rows else torch.zeros(0)


def interval(
    dot: Tensor, size: Tensor, slope: Tensor, penalty: float, amplify: float, coefficient: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(lambda, lambda_min, lambda_max) for each group, [groups].

        lambda_min = -<x, d> / |x|        above it the group shrinks        (where <x, d> < 0)
        lambda_max = -|d|^2 |x| / <x, d>  below it the step still descends

    dot: <x, d>, d the direction of descent; size: |x|; slope: |d|. Where <x, d> >= 0, lambda is `penalty` and the
    interval is [0, inf). Elsewhere it is clip(amplify lambda_min, penalty, penalty coefficient), or the middle of the
    interval where that is lambda_max or more; a clip whose upper end lies under lambda_min does not clip.
    """
    low = torch.where(dot < 0, -dot / size.clamp(min=1e-30), 0.0)
    high = torch.where(dot < 0, -slope.square() * size / dot.clamp(max=-1e-300), math.inf)
    chosen = (amplify * low).clamp(penalty, penalty * coefficient)
    middle = torch.where(high.isinf(), chosen, (low + high) / 2)
    chosen = torch.where(chosen <= low, amplify * low, chosen)
    chosen = torch.where(chosen >= high, middle, chosen)
    return torch.where(dot < 0, chosen, torch.full_like(dot, penalty)), low, high


class GroupSparse(torch.optim.Optimizer):
    """SGD, Adam or AdamW that ends with a given share of groups exactly at zero.

    Args:
        params: parameters or parameter groups, as for torch's own optimisers.
        slices: the groups, site -> (parameter, dimension, unit of each index or -1); see `Slices`. They are to be
            those that make a unit: where all of them are zero, the unit's values are zero.
        lr: learning rate; a schedule may change it in `param_groups`.
        variant: "sgd", "adam" or "adamw": what it is without groups.
        method: "dhspg" (penalty and half-space projection) or "hesso" (linear shrinking by a schedule).
        target: share of all groups that is to be zero.
        start: steps of plain training before groups are chosen (warm-up).
        span: steps over which groups are driven to zero. "hesso" is done after them; "dhspg" goes on until the target
            is reached, or forces what is missing (see `finish`).
        periods: "hesso": how many times groups are chosen, each time an equal share.
        penalty: lambda; None for what brings a group of mean norm to zero in about a quarter of `span`. The paper's
            constants, 1e-3 for SGD and 1e-2 for Adam, suit hundreds of epochs.
        epsilon: of the half-space projection, in [0, 1); larger is more aggressive.
        tolerance: "dhspg": how much more than the target may go at first, as a share of all groups, so that a group
            which does not move is no hindrance.
        project: False leaves the half-space projection out, for ablation.
        finish: "dhspg": share of `span` at whose end groups that are still missing are shrunk linearly, as "hesso"
            does; 0 leaves the target missed where it is.
        proximal: True regularises all groups alike by a proximal step instead of the chosen ones by `dhspg`'s rules;
            for comparison.
        saliency: (slices, directions) -> how much each group is worth keeping; the mean magnitude unless given. The
            methods' own are `score.gradient.dhspg` and `hesso`, with which `recipes.vision.otov3.optimiser` makes this.
        choose: (scores, extra) -> which groups may go; the lowest scores, all sites together, at least one of each
            site staying, unless given.
        momentum, nesterov, weight_decay, betas, eps: of the variant.

    Zero groups stay zero: after each step their weights and the optimiser's state of them are zeros again. All state
    lies in `state`, tensors per parameter, so that `state_dict` and checkpoints of tensors hold it.

    Source: DHSPG of OTOv2 (arXiv 2303.06862) and OTOv3 (arXiv 2312.09411), HESSO of its released code. Departures:
    lambda lies in its interval also where the clip's upper end would put it under that; of groups that cross the
    half-space in one step no more become zero than the target asks for.
    """

    def __init__(
        self,
        params: ParamsT,
        slices: Slices,
        *,
        lr: float,
        variant: str = "sgd",
        method: str = "dhspg",
        target: float = 0.5,
        start: int = 0,
        span: int = 1,
        periods: int = 10,
        penalty: float | None = None,
        epsilon: float = 0.95,
        tolerance: float = 0.05,
        project: bool = True,
        finish: float = 0.0,
        proximal: bool = False,
        saliency: Saliency | None = None,
        choose: Choose | None = None,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if variant not in _VARIANTS:
            raise InputError(f"variant={variant!r}: give one of {', '.join(_VARIANTS)}")
        if method not in ("dhspg", "hesso"):
            raise InputError(f"method={method!r}: give 'dhspg' or 'hesso'")
        if not 0.0 <= target < 1.0 or not 0.0 <= epsilon < 1.0 or not 0.0 <= finish <= 1.0:
            raise InputError(f"target={target}, epsilon={epsilon}, finish={finish}: all are shares below 1")
        if start < 0 or span < 1 or periods < 1:
            raise InputError(f"start={start}, span={span}, periods={periods}: give whole numbers, span and periods > 0")
        if variant == "sgd":
            self.plain: torch.optim.Optimizer = torch.optim.SGD(
                params, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
            )
        else:
            kind = torch.optim.Adam if variant == "adam" else torch.optim.AdamW
            self.plain = kind(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        super().__init__(self.plain.param_groups, self.plain.defaults)
        self.state = self.plain.state
        self.groups = Groups(slices)
        trained = {id(p) for group in self.param_groups for p in group["params"]}
        if any(id(parameter) not in trained for parameter in self.groups.parameters):
            raise InputError("the slices name a parameter that is not among those trained: give params all of them")
        self.variant, self.method, self.target, self.start, self.span = variant, method, target, start, span
        self.periods, self.penalty, self.epsilon, self.tolerance = min(periods, span), penalty, epsilon, tolerance
        self.project, self.finish, self.proximal = project, finish, proximal
        self._over = False
        self.saliency, self.choose = saliency or _mean_magnitude, choose or self._lowest

    # ---------------------------------------------------------------------------------------------------- state

    @property
    def _home(self) -> dict[str, Any]:
        """Where the state of all groups is kept: with the first parameter of the slices."""
        found: dict[str, Any] = self.state[self.groups.parameters[0]]
        return found

    def _get(self, name: str) -> Tensor:
        """Float [groups]: "zero" (is zero for good), "chosen" (is driven there), "goal" (counts to the target)."""
        found: Tensor | None = self._home.get(f"groups.{name}")
        if found is None:
            return torch.zeros(self.groups.count, device=self.groups.device)
        return found.to(self.groups.device)

    def _number(self, name: str) -> float:
        """A number that is kept on the CPU, so that no step waits for it."""
        found: Tensor | None = self._home.get(f"groups.{name}")
        if found is not None and found.device.type != "cpu":  # a state dict was loaded
            found = self._home[f"groups.{name}"] = found.cpu()
        return 0.0 if found is None else float(found)

    def _set(self, name: str, value: Tensor) -> None:
        home = self._home
        if self.variant != "sgd" and "step" not in home:  # Adam makes its state where there is none at all
            first = self.groups.parameters[0]
            home.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(first), exp_avg_sq=torch.zeros_like(first))
        home[f"groups.{name}"] = value.float()

    @property
    def steps(self) -> int:
        """Steps done."""
        return int(self._number("steps")) if self.groups.count else 0

    @property
    def zero(self) -> dict[str, Tensor]:
        """Site -> [count] booleans: the groups that are zero for good."""
        return {site: row.bool() for site, row in self.groups.sites(self._get("zero").cpu()).items()}

    @property
    def selection(self) -> Selection:
        """What is not zero, to be cut down to. Raises `InputError` while no group is zero."""
        zero = self.zero
        if not any(bool(row.any()) for row in zero.values()):
            when = f"they are chosen after step {self.start} and driven to zero over {self.span} more"
            raise InputError(f"no group is zero after {self.steps} steps: {when}; train on, then cut")
        return Selection({site: ~row for site, row in zero.items()})

    @property
    def chosen(self) -> dict[str, Tensor]:
        """Site -> [count] booleans: the groups that are, or were, driven to zero."""
        return {site: row.bool() for site, row in self.groups.sites(self._get("chosen").cpu()).items()}

    @property
    def sparsity(self) -> float:
        """Share of groups that are zero for good."""
        return float(self._get("zero").mean()) if self.groups.count else 0.0

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's own."""
        super().load_state_dict(state_dict)
        self.plain.state, self.plain.param_groups = self.state, self.param_groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's own."""
        super().add_param_group(param_group)
        if self.plain.param_groups is not self.param_groups:
            self.plain.param_groups = self.param_groups

    # ----------------------------------------------------------------------------------------------------- steps

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step of the variant, then of the method."""
        if not self.groups.count or self.target == 0.0:
            return self.plain.step(closure)
        now = self.steps
        active = now >= self.start and not self._is_over(now)
        old = {p: p.detach().clone() for p in self.groups.parameters} if active else {}
        loss = self.plain.step(closure)
        if active:
            self._pursue(now - self.start, old)
        if now >= self.start:
            self._hold(self._get("zero"))
        self._set("steps", torch.tensor(now + 1))
        return loss

    @property
    def is_done(self) -> bool:
        """Whether the target is reached."""
        zero, goal = self._get("zero"), self._get("goal")
        return bool(goal.any()) and float(zero.sum()) >= float(goal.sum())

    def _is_over(self, now: int) -> bool:
        """Whether nothing is left to do: asked now and then only, since a device has to be waited for."""
        if self.proximal:
            return False
        if not self._over and (self.groups.device.type == "cpu" or now % _ASKED == 0):
            self._over = self.is_done
        return self._over

    def _pursue(self, step: int, old: Mapping[Tensor, Tensor]) -> None:
        if self.proximal:
            self._shrink_all(step, old)
        elif self.method == "hesso":
            self._shrink_by_schedule(step, old)
        else:
            if step == 0:
                self._partition(old)
            self._penalise(step, old)

    def _rates(self) -> dict[Tensor, float]:
        return {p: float(group["lr"]) for group in self.param_groups for p in group["params"]}

    def _directions(self, old: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """Parameter -> what the variant steps against: its gradient with momentum, scale and decay."""
        rates = self._rates()
        return {p: (value - p) / max(rates[p], 1e-30) for p, value in old.items()}

    def _scores(self, old: Mapping[Tensor, Tensor]) -> dict[str, Tensor]:
        directions = self._directions(old)
        new = {p: p.detach().clone() for p in old}
        for parameter, value in old.items():
            parameter.copy_(value)
        found = self.saliency(self.groups.slices, directions)
        scores = {site: torch.as_tensor(row).detach().cpu() for site, row in found.items()}
        for parameter, value in new.items():
            parameter.copy_(value)
        return scores

    def _lowest(self, scores: Mapping[str, Tensor], extra: float) -> dict[str, Tensor]:
        """The groups with the lowest scores, all sites together; one of each site stays."""
        row = torch.cat([scores[site].double() for site in self.groups.span])
        for site, (start, end) in self.groups.span.items():
            if end > start:
                row[start + int(scores[site].argmax())] = math.inf
        count = min(int(self.groups.count * min(self.target + extra, 0.999)), int(row.isfinite().sum()))
        gone = torch.zeros(self.groups.count, dtype=torch.bool)
        gone[row.argsort(stable=True)[:count]] = True
        return self.groups.sites(gone)

    def _partition(self, old: Mapping[Tensor, Tensor]) -> None:
        scores = self._scores(old)
        goal, chosen = (self.groups.row(self.choose(scores, extra)).bool() for extra in (0.0, self.tolerance))
        self._set("goal", goal)
        self._set("chosen", chosen | goal)
        norms = self.groups.total(lambda p: old[p].square()).sqrt()
        if self.penalty is None:
            mean = float(norms[chosen | goal].mean()) if bool((chosen | goal).any()) else 0.0
            rate = max(self._rates()[p] for p in self.groups.parameters)
            self._set("penalty", torch.tensor(4.0 * mean / (max(rate, 1e-30) * self.span)))
        else:
            self._set("penalty", torch.tensor(self.penalty))

    def _penalise(self, step: int, old: Mapping[Tensor, Tensor]) -> None:
        """Steps 16 and 17 of the method: shrink the chosen groups and project those that turn away."""
        groups, zero = self.groups, self._get("zero").bool()
        chosen = self._get("chosen").bool() & ~zero & (self._room() > 0)
        directions = self._directions(old)
        dot = groups.total(lambda p: old[p] * directions[p])
        size = groups.total(lambda p: old[p].square()).sqrt()
        slope = groups.total(lambda p: directions[p].square()).sqrt()
        _, amplify, coefficient = _PENALTY[self.variant]
        chance, _, _ = interval(dot, size, slope, self._number("penalty"), amplify, coefficient)
        factor = torch.where(chosen & (size > 0), chance / size.clamp(min=1e-30), 0.0)
        rates = self._rates()
        for parameter in groups.parameters:
            for entry in groups.spread(parameter, factor, 0.0):
                parameter.sub_((rates[parameter] * entry).to(parameter.dtype) * old[parameter])
        chosen = self._force(step, chosen)
        if self.project:
            zero = self._get("zero").bool()
            turned = groups.total(lambda p: p * old[p])
            ratio = turned / size.square().clamp(min=1e-30)
            crossed = chosen & ~zero & ((ratio < self.epsilon) | (size == 0))
            self._set("zero", zero | _lowest_of(crossed, ratio, self._room()))

    def _room(self) -> Tensor:
        """How many groups are still to become zero, a tensor: no step waits for its value."""
        return self._get("goal").sum() - self._get("zero").sum()

    def _force(self, step: int, chosen: Tensor) -> Tensor:
        """Shrink linearly what is still missing when `span` nears its end; those of `chosen` that may still go."""
        first = self.span - max(1, round(self.finish * self.span))
        if not self.finish or not first <= step < self.span:
            return chosen
        if step == first:
            missing = int(self._room())
            late = torch.zeros_like(chosen)
            rank = torch.where(chosen, self.groups.total(torch.square), math.inf)
            late[rank.argsort(stable=True)[: max(0, missing)]] = True
            self._set("late", late)
        late = self._get("late").bool() & chosen
        left = self.span - step
        self._scale(late, (left - 1) / left)
        if left == 1:
            self._set("zero", self._get("zero").bool() | late)
        return late

    def _shrink_by_schedule(self, step: int, old: Mapping[Tensor, Tensor]) -> None:
        """HESSO: in each period its share of the groups with the lowest scores is shrunk linearly to zero."""
        if step >= self.span:
            return
        bounds = [self.span * number // self.periods for number in range(self.periods + 1)]
        period = max(number for number in range(self.periods) if bounds[number] <= step)
        zero = self._get("zero").bool()
        if step == bounds[period]:
            scores = self._scores(old)
            row = self.groups.row(scores).double()
            row[zero] = float(row.min()) - 1.0 - torch.arange(int(zero.sum()), device=row.device).double()
            goal = self.groups.row(self.choose(self.groups.sites(row.cpu()), 0.0)).bool() | zero
            count = int(goal.sum()) * (period + 1) // self.periods
            chosen = zero.clone()
            chosen[torch.where(goal, row, math.inf).argsort(stable=True)[:count]] = True
            self._set("goal", goal)
            self._set("chosen", chosen)
        chosen = self._get("chosen").bool() & ~zero
        left = bounds[period + 1] - step
        self._scale(chosen, (left - 1) / left)
        if left == 1:
            self._set("zero", zero | chosen)

    def _shrink_all(self, step: int, old: Mapping[Tensor, Tensor]) -> None:
        """The proximal step of the group lasso on every group; those that it makes zero stay so up to the target."""
        if step == 0:
            self._partition(old)
            self._set("goal", self.groups.row(self.choose(self.groups.sites(torch.zeros(self.groups.count)), 0.0)))
        zero = self._get("zero").bool()
        if int(self._room()) <= 0:
            return
        size = self.groups.total(torch.square).sqrt()
        rate = max(self._rates()[p] for p in self.groups.parameters)
        keep = (1 - rate * self._number("penalty") / size.clamp(min=1e-30)).clamp(min=0)
        gone = _lowest_of((keep == 0) & ~zero, size, self._room())
        self._scale_by(torch.where(zero, 0.0, keep.clamp(min=1e-12)))
        self._set("zero", zero | gone)

    def _scale(self, which: Tensor, factor: float) -> None:
        self._scale_by(torch.where(which, factor, 1.0).double())

    def _scale_by(self, row: Tensor) -> None:
        for parameter in self.groups.parameters:
            for entry in self.groups.spread(parameter, row, 1.0):
                parameter.mul_(entry.to(parameter.dtype))

    def _hold(self, zero: Tensor) -> None:
        """Zero groups, and what the optimiser remembers of them, are zeros."""
        for parameter in self.groups.parameters:
            moments = [
                value
                for name, value in self.state[parameter].items()
                if isinstance(value, Tensor) and value.shape == parameter.shape and not name.startswith("groups.")
                and name != "step"
            ]  # fmt: skip
            for entry in self.groups.spread(parameter, zero.bool(), False):
                for tensor in (parameter, *moments):
                    tensor.masked_fill_(entry, 0.0)


def _lowest_of(groups: Tensor, values: Tensor, most: Tensor) -> Tensor:
    """Of the groups [n] those with the lowest values, `most` of them at the utmost; nothing is waited for."""
    order = torch.where(groups, values, math.inf).argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    return groups & (rank < most)


def _mean_magnitude(slices: Slices, directions: Mapping[Tensor, Tensor]) -> dict[str, Tensor]:
    """|x_g| / n_g: what the optimiser goes by where nobody gives it a saliency."""
    groups = Groups(slices)
    size = groups.total(lambda p: p.detach().square()).sqrt()
    return groups.sites((size / groups.total(torch.ones_like)).cpu())
