"""Gates that switch parts of a network on and off by the input, and losses that make them agree for all inputs.

A gate is trained with the network it sits on and is gone afterwards: it multiplies what a part gives by 0 or 1, so a
part that is off is exactly zero, which is what a cut of it gives. Nothing here knows what is gated: a `Place` names
modules, and hooks do the rest, so that the network's own code stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur._utils import devices, distributed
from secateur.errors import InputError, UnsupportedError
from secateur.vocabulary import Units

__all__ = [
    "FORMS",
    "Gate",
    "Gates",
    "Place",
    "activation",
    "batch_mean",
    "binarise",
    "cost",
    "largest",
    "once",
    "polarization",
    "pool",
]


class _Step(torch.autograd.Function):
    """1[ReLU1(a) > 1/2] forward; the slope of ReLU1 backward, `leak` outside of (0, 1)."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, leak: float) -> Tensor:
        ctx.save_for_backward(pre)
        ctx.leak = leak
        return (pre.clamp(0.0, 1.0) > 0.5).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (pre,) = ctx.saved_tensors
        return torch.where((pre > 0) & (pre < 1), gradient, gradient * ctx.leak), None


def binarise(pre: Tensor, leak: float = 0.0) -> Tensor:
    """g = 1[ReLU1(a) > 1/2], ReLU1(a) = min(max(a, 0), 1), with dg/da := 1 for 0 < a < 1 and `leak` elsewhere.

    A bounded activation with a straight-through gradient: deterministic, without noise or temperature. With leak = 0
    a gate that has left the interval never learns again. Any shape.
    """
    result: Tensor = _Step.apply(pre, leak)
    return result


def pool(x: Tensor, dim: int = 1, mask: Tensor | None = None) -> Tensor:
    """The mean over everything but the examples (dimension 0) and the channels (`dim`): [B, ...] -> [B, C].

    mask: [B, S] for tokens [B, S, C], 0 where padding, which does not count.
    """
    x = x.movedim(dim, -1)
    if mask is not None and mask.shape == x.shape[:2] and x.dim() == 3:
        weight = mask.to(x.dtype).unsqueeze(-1)
        return (x * weight).sum(1) / weight.sum(1).clamp(min=1.0)
    return x.flatten(1, -2).mean(1) if x.dim() > 2 else x


class Gate(nn.Module):
    """x [B, ...] -> decisions [B, units] in {0, 1}: pool -> Linear -> ReLU -> Linear -> ReLU1 -> > 1/2.

    channels: of x, which lie along `dim`. bias: of the last linear; 1 lets every gate start open, since whole stages
    would be dead at the first step otherwise. leak: see `binarise`.
    """

    def __init__(
        self, channels: int, units: int, *, hidden: int = 16, bias: float = 1.0, leak: float = 0.01, dim: int = 1
    ) -> None:
        super().__init__()
        self.look, self.decide = nn.Linear(channels, hidden), nn.Linear(hidden, units)
        self.leak, self.dim = leak, dim
        self.pre = torch.zeros(0)
        """Of the last batch, [B, units]: what was binarised."""
        nn.init.constant_(self.decide.bias, bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The decisions, with the straight-through gradient."""
        if x.dim() < 2 or x.shape[self.dim] != self.look.in_features:
            raise InputError(
                f"a gate looks at shape {tuple(x.shape)}, expected {self.look.in_features} channels along {self.dim}"
            )
        pooled = pool(x, self.dim, mask).to(self.look.weight.dtype)
        self.pre = self.decide(self.look(pooled).relu()).float()
        return binarise(self.pre, self.leak)

    def flops(self) -> float:
        """FLOPs of the two linears for one example, multiply and add counted as two."""
        return 2.0 * (self.look.weight.numel() + self.decide.weight.numel())


@dataclass(frozen=True, eq=False)
class Place:
    """Where a gate looks and where it acts. Modules by their paths."""

    source: str
    """The module whose input the gate pools."""
    channels: int
    """Of that input."""
    units: int
    """Decisions for each example."""
    acts: Mapping[str, Tensor | None]
    """Module -> unit of each channel of its input, -1 where none; None: unit 0 multiplies its whole output."""
    dim: int = 1
    """Where the channels of the source's input lie."""
    act_dim: int | Mapping[str, int] = 1
    """Where the channels of the inputs that are multiplied lie, for all modules or for each."""


class Gates(nn.Module):
    """A gate at every place. Within `on(model)` they act in each forward pass of `model`, and `values` has the last.

    `fixed` is None while the gates decide. A mapping, place -> mask [units], forces them; places it does not name are
    open, so {} opens all.
    """

    def __init__(self, places: Mapping[str, Place], *, hidden: int = 16, bias: float = 1.0, leak: float = 0.01) -> None:
        super().__init__()
        if not places:
            raise InputError("there is no place for a gate: name other units")
        self.places = dict(places)
        self.each = nn.ModuleList(
            Gate(place.channels, place.units, hidden=hidden, bias=bias, leak=leak, dim=place.dim)
            for place in self.places.values()
        )
        self.values: dict[str, Tensor] = {}
        self.fixed: Mapping[str, Tensor] | None = None
        self.mask: Tensor | None = None
        """[B, S]: 0 for the tokens that are padding in the batch to come."""

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Within the block, the gates act on `model`, and are where it is.

        Raises `InputError` for a module it does not have.
        """
        modules = dict(model.named_modules())
        self.to(devices.find_device(model))
        with ExitStack() as stack:
            for (name, place), gate in zip(self.places.items(), self.each, strict=True):
                for path in (place.source, *place.acts):
                    if path not in modules:
                        raise InputError(f"the model has no module {path!r}: give a path of named_modules()")
                hook = self._looker(name, gate)
                stack.callback(modules[place.source].register_forward_pre_hook(hook, with_kwargs=True).remove)
                for path, units in place.acts.items():
                    dim = place.act_dim if isinstance(place.act_dim, int) else place.act_dim[path]
                    module = modules[path]
                    handle = (
                        module.register_forward_hook(self._closer(name))
                        if units is None
                        else module.register_forward_pre_hook(self._chooser(name, units, dim), with_kwargs=True)
                    )
                    stack.callback(handle.remove)
            try:
                yield
            finally:
                self.values.clear()

    def _looker(self, name: str, gate: nn.Module) -> Callable[..., None]:
        def look(_: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
            x = _first(args if any(isinstance(one, Tensor) for one in args) else tuple(kwargs.values()))
            if self.fixed is None:
                self.values[name] = gate(x, self.mask)
                return
            mask = self.fixed.get(name)
            units = self.places[name].units
            row = torch.ones(units, device=x.device) if mask is None else torch.as_tensor(mask).to(x.device).float()
            self.values[name] = row.expand(len(x), units)

        return look

    def _closer(self, name: str) -> Callable[..., object]:
        def close(_: nn.Module, args: object, output: object) -> object:
            gate = self.values[name][:, 0]

            def times(y: Tensor) -> Tensor:
                return y * gate.to(y.dtype).view(-1, *([1] * (y.dim() - 1)))

            if isinstance(output, Tensor):
                return times(output)
            if isinstance(output, tuple | list):
                first = next(place for place, one in enumerate(output) if isinstance(one, Tensor))
                return type(output)([times(one) if place == first else one for place, one in enumerate(output)])
            raise UnsupportedError(f"a gated module returns a {type(output).__name__}: gate one that returns tensors")

        return close

    def _chooser(self, name: str, units: Tensor, dim: int) -> Callable[..., object]:
        def choose(_: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
            nonlocal units
            gate = self.values[name]
            index = units = devices.move(units, gate)  # once: a pass copies nothing
            row = torch.where(index >= 0, gate[:, index.clamp(min=0)], 1.0)
            x = _first(args if args else tuple(kwargs.values()))
            shape = [len(x), *([1] * (x.dim() - 1))]
            shape[dim] = x.shape[dim]
            gated = x * row.to(x.dtype).view(shape)
            swap = [gated if one is x else one for one in args]
            return tuple(swap), {key: gated if one is x else one for key, one in kwargs.items()}

        return choose

    def means(self) -> dict[str, Tensor]:
        """Place -> share of the last batch for which each unit was on, [units], with gradient; over all processes."""
        return {name: batch_mean(value) for name, value in self.values.items()}

    def sure(self) -> dict[str, Tensor]:
        """Place -> what was binarised for the last batch, [B, units], without gradient: the larger, the surer."""
        each = zip(self.places, self.each, strict=True)
        return {name: gate.pre.detach() for name, gate in each if isinstance(gate, Gate) and len(gate.pre)}

    def flops(self) -> float:
        """FLOPs of all gates for one example."""
        return sum(gate.flops() for gate in self.each if isinstance(gate, Gate))


def _first(values: Iterable[object]) -> Tensor:
    for value in values:
        if isinstance(value, Tensor):
            return value
    raise InputError("a gated module was called without a tensor: gate another one")


# ------------------------------------------------------------------------------------------------------- losses


def batch_mean(decisions: Tensor) -> Tensor:
    """gbar = (1/B) sum_b g(x_b): [B, n] -> [n], over the batches of all processes.

    The gradient goes to this process's own decisions: added up over processes it is that of one big batch.
    """
    total = decisions.sum(0)
    count = torch.full((1,), float(len(decisions)), device=total.device)
    if distributed.count() > 1:
        whole = distributed.total(torch.cat([total.detach().float(), count]))
        total, count = total + (whole[:-1] - total.detach()).to(total.dtype), whole[-1:]
    return total / count.to(total.dtype)


def once(loss: Tensor) -> Tensor:
    """A loss that every process computes from the same means: its value counts once in the sum over processes.

    Its gradient stays whole, since each process differentiates only its own decisions.
    """
    return loss - loss.detach() * (1.0 - 1.0 / distributed.count())


def polarization(means: Iterable[Tensor]) -> Tensor:
    """R = (1/|G|) sum over gates of gbar (1 - gbar), between 0 (unanimous) and 1/4 (half of the batch each way).

    means: gbar [n] of each place. Zhi et al., arXiv 2302.10798. No norm of batch-norm scales is meant by this name.
    """
    every = torch.cat([mean.reshape(-1) for mean in means])
    return (every * (1.0 - every)).mean()


def cost(units: Units, means: Mapping[str, Tensor], measure: str) -> Tensor:
    """`Units.cost` in one measure with shares in place of masks: differentiable, and equal to it where they are 0 or 1.

    means: site -> share [count] of each unit that stays where its owners do; a site not named stays whole.

    Shares are probabilities of independent choices: a term counts with the expected number of units at each of its
    sites, times the probability that the units which own all of a site, or which the term asks for, stay (each once,
    however many sites they own). That a site keeps anything has the probability of its surest unit, as where each unit
    stays only if those before it do. Raises `UnsupportedError` where a cost is a table of counts, `InputError` for a
    measure without cost.
    """
    device = next((mean.device for mean in means.values()), torch.device("cpu"))
    stays = _Stays(units, {name: mean.double() for name, mean in means.items()}, device)
    total = torch.full((), float(units.base.get(measure, 0.0)), device=device, dtype=torch.float64)
    known = measure in units.base
    for name, site in units.sites.items():
        if measure in site.table:
            raise UnsupportedError(f"{measure} of {name} is a table of counts: give a budget in a measure that adds up")
        if measure in site.cost:
            column = torch.as_tensor(site.cost[measure], device=device, dtype=torch.float64)
            inside, owners = stays.find(name)
            part = column.sum() if inside is None else (column * inside).sum()
            total, known = total + part * stays.chance(owners), True
    for term in units.terms:
        if term.measure != measure:
            continue
        known, owners = True, frozenset[_Unit]()
        value = torch.full((), float(term.coefficient), device=device, dtype=torch.float64)
        for name in term.sites:
            value = value * stays.count(name)
            owners |= stays.find(name)[1]
        for name in term.per:
            count = stays.count(name)
            value = value * torch.where(count > 0, 1.0 / count.clamp(min=1e-12), torch.zeros_like(count))
            owners |= stays.find(name)[1]
        for name in term.present:
            inside, above = stays.find(name)
            value = value if inside is None else value * inside.max()
            owners |= above
        for unit in term.units:
            owners |= stays.line(*unit)
        total = total + value * stays.chance(owners)
    if not known:
        raise InputError(f"these units have no cost in {measure}: give a budget in another measure")
    return total


_Unit = tuple[str, int]
"""A site's name, and the index of one of its units."""


class _Stays:
    """What stays of `units` by the shares `means`, float64: inside a site, and of the units that own all of it."""

    def __init__(self, units: Units, means: Mapping[str, Tensor], device: torch.device) -> None:
        self.units, self.means, self.device = units, means, device
        self._found: dict[str, tuple[Tensor | None, frozenset[_Unit]]] = {}
        self._counts: dict[str, Tensor] = {}

    def find(self, name: str) -> tuple[Tensor | None, frozenset[_Unit]]:
        """(share [count] of each unit, given that the units which own all of the site stay; these, theirs too)."""
        if name in self._found:
            return self._found[name]
        site, inside, owners = self.units.sites[name], self.means.get(name), frozenset[_Unit]()
        if site.owner is not None and site.count:
            above, index = site.owner
            indices = {int(one) for one in index}
            if len(indices) == 1:
                owners = self.line(above, indices.pop())
            else:
                theirs, owners = self.find(above)
                if theirs is not None:
                    each = theirs[torch.as_tensor(index, device=self.device, dtype=torch.long)]
                    inside = each if inside is None else inside * each
        self._found[name] = inside, owners
        return inside, owners

    def line(self, name: str, index: int) -> frozenset[_Unit]:
        """A unit, the unit that owns it, and so on."""
        owner = self.units.sites[name].owner
        above = frozenset[_Unit]() if owner is None else self.line(owner[0], int(owner[1][index]))
        return above | {(name, index)}

    def count(self, name: str) -> Tensor:
        """Expected number of units that stay inside a site."""
        if name not in self._counts:
            inside = self.find(name)[0]
            whole = torch.full((), float(self.units.sites[name].count), device=self.device, dtype=torch.float64)
            self._counts[name] = whole if inside is None else inside.sum()
        return self._counts[name]

    def chance(self, owners: Iterable[_Unit]) -> Tensor:
        """The probability that all of these units stay, each by its own choice."""
        value = torch.ones((), device=self.device, dtype=torch.float64)
        for name, index in sorted(owners):
            if name in self.means:
                value = value * self.means[name][index]
        return value


def largest(units: Units, measure: str) -> float:
    """The share of the gated cost that the dearest unit takes where all others stay; frozen sites have no gates."""
    open_ = {site.name: torch.ones(site.count, dtype=torch.float64, requires_grad=True) for site in units.free()}
    whole = cost(units, open_, measure)
    empty = cost(units, {name: torch.zeros_like(one) for name, one in open_.items()}, measure)
    each = torch.autograd.grad(whole, list(open_.values()))
    return max(float(one.max()) for one in each) / float((whole - empty).detach())


FORMS = ("band", "hinge", "absolute")
"""Of the target, see `activation`."""


def activation(share: Tensor, target: Tensor | float = 0.0, form: str = "hinge", slack: float = 0.0) -> Tensor:
    """R_act of the share of the gated cost that is on, 0 to 1, in each measure: what is above the target, or far off.

    share: [] or [measures], and so is target. form: "hinge", max(0, share - target); "band", what is below the target
    by more than `slack`, too, in the measure that is nearest to it; "absolute", max(0, |share - target| - slack). A
    band as wide as the largest unit, or a slack of half of it, keeps a target that whole units can't meet from holding
    a gate half-on. With a hinge and a target of 0 it is the share itself.
    """
    above = share - target
    if form == "hinge":
        return above.clamp(min=0.0).sum()
    if form == "band":
        return above.clamp(min=0.0).sum() + (-slack - above).min().clamp(min=0.0)
    if form == "absolute":
        return (above.abs() - slack).clamp(min=0.0).sum()
    raise InputError(f"form {form!r} of the target is not one of {', '.join(FORMS)}")
