"""Nested masks: one set of weights holds models of many sizes, each the first k units of every axis.

Every site has a list of choices, how many of its units stay, and a weight for each choice: one weight is 1 where a size
is chosen, and they are probabilities while a router learns. Units outside of the choice come out as zero, so a masked
model gives what the sliced one gives; where norms divide by the number of units, they are corrected. Nothing here knows
what is masked: hooks do it, and outside of `on(model)` the model is as it was, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from secateur._utils import devices
from secateur.errors import InputError, UnsupportedError

__all__ = ["Bar", "Columns", "Gate", "Mask", "Nested", "Norm", "Place", "Prefix"]


@dataclass(frozen=True, eq=False)
class Prefix:
    """The choices of one site: of each, which units stay."""

    rank: Tensor
    """[units]: a unit stays where its rank is below the choice's count, so that smaller choices are inside larger."""
    counts: tuple[int, ...]
    """Of each choice, falling; the first one is the whole."""

    def __post_init__(self) -> None:
        if list(self.counts) != sorted(set(self.counts), reverse=True) or self.counts[-1] < 0:
            raise InputError(f"choices {list(self.counts)}: give falling counts, the whole first")

    def stays(self) -> Tensor:
        """[choices, units] booleans."""
        return self.rank[None, :] < torch.tensor(self.counts, device=self.rank.device)[:, None]

    @property
    def parts(self) -> Tensor:
        """[choices]: the share of the units that stays."""
        kept = self.stays()
        return kept.double().mean(1)


@dataclass(frozen=True, eq=False)
class Mask:
    """Multiplies what goes into a module, or comes out of it, by the shares of a site's units."""

    module: str
    side: Literal["input", "output"]
    site: str
    unit: Tensor
    """[channels]: the unit of each of its last dimension."""
    factors: Tensor | None = None
    """[choices]: what the whole is multiplied by beside, such as the scale of an embedding by its size."""


@dataclass(frozen=True)
class Norm:
    """A root-mean-square norm over the units of sites, their counts multiplied, that is to see the kept ones alone.

    A norm over D numbers of which D - k are zero divides by sqrt(S / D + eps), S the sum of squares; the sliced model's
    divides by sqrt(S / k + eps). So what goes in is multiplied by 1 / sqrt(E) and what comes out by R, which equals an
    epsilon of eps k/D in the norm and sqrt(k/D) on its output. With weights pi of the choices,
    E = prod_sites sum_i pi_i k_i / D and R = prod_sites sum_i pi_i sqrt(k_i / D).
    """

    module: str
    sites: tuple[str, ...]


@dataclass(frozen=True)
class Gate:
    """y = x + g (f(x) - x) in place of f(x): a layer's share g in the residual stream, a plain skip where g = 0."""

    module: str
    site: str
    unit: int


@dataclass(frozen=True)
class Bar:
    """Adds log g to the product of a router with its weight, a column for each expert: no token where g = 0.

    tensor: in place of that, the parameter or buffer of the module, a number for each expert, which is added to the
    scores that experts are chosen by (DeepSeek-V3); log g is added to whatever is made of it.
    """

    module: str
    site: str
    tensor: str = ""


@dataclass(frozen=True, eq=False)
class Columns:
    """Multiplies the columns of a module's parameter [.., units] by the shares of a site's units while the module runs.

    For what no module stands in front of, such as the neurons inside packed experts, down_proj [experts, d, neurons].
    """

    module: str
    parameter: str
    site: str
    unit: Tensor
    """[.., units], as the parameter broadcasts: the unit of each column."""


Place = Mask | Norm | Gate | Bar | Columns


class Nested:
    """The prefixes of a model's sites, and the places where they act; see `choose` and `on`."""

    def __init__(self, prefixes: Mapping[str, Prefix], places: Sequence[Place], *, correct: bool = True) -> None:
        self.prefixes, self.places, self.correct = dict(prefixes), list(places), correct
        self.shares: dict[str, Tensor] = {}
        """Site -> share of each unit, [units]; a site that is not there is whole."""
        self._moments: dict[str, tuple[Tensor, Tensor]] = {}
        self._weights: dict[str, Tensor] = {}
        self._tables: dict[tuple[str, torch.device, torch.dtype], tuple[Tensor, ...]] = {}

    def choose(self, weights: Mapping[str, Tensor | int]) -> None:
        """Site -> weight of each choice [choices], with gradient or without, or the number of one; the rest is whole.

        Raises `InputError` for a site that has no choices, or another number of them.
        """
        self.shares, self._moments, self._weights = {}, {}, {}
        for site, given in weights.items():
            prefix = self.prefixes.get(site)
            count = 0 if prefix is None else len(prefix.counts)
            fits = -count <= given < count if isinstance(given, int) else given.shape == (count,)
            if prefix is None or not fits:
                raise InputError(f"{site} has {count} choices: give one of their numbers, or a weight for each")
            if isinstance(given, int):
                if given == 0:
                    continue
                given = nn.functional.one_hot(torch.tensor(given % count), count).float()
            key = site, given.device, given.dtype
            if key not in self._tables:  # once: a step of training copies nothing
                self._tables[key] = tuple(table.to(given) for table in (prefix.stays(), prefix.parts))
            stays, parts = self._tables[key]
            self.shares[site], self._weights[site] = given @ stays, given
            self._moments[site] = (given * parts).sum(), (given * parts.sqrt()).sum()

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within the block nothing is masked, though `on`; then what was chosen is so again."""
        before = self.shares, self._moments, self._weights
        self.choose({})
        try:
            yield
        finally:
            self.shares, self._moments, self._weights = before

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Within the block, each forward pass of `model` is that of what was chosen last.

        Raises `InputError` for a module it does not have.
        """
        modules = dict(model.named_modules())
        with ExitStack() as stack:
            for place in self.places:
                if place.module not in modules:
                    raise InputError(f"the model has no module {place.module!r}: give a path of named_modules()")
                for handle in self._attach(modules[place.module], place):
                    stack.callback(handle.remove)
            yield

    def _attach(self, module: nn.Module, place: Place) -> Iterator[RemovableHandle]:
        if isinstance(place, Mask):
            action = self._masker(place)
            yield _before(module, action) if place.side == "input" else _after(module, lambda _, y: action(y))
        elif isinstance(place, Norm):
            if self.correct:
                yield _before(module, lambda x: self._scale(x, place.sites, 0))
                yield _after(module, lambda _, y: self._scale(y, place.sites, 1))
        elif isinstance(place, Gate):
            yield _after(module, self._skipper(place))
        elif isinstance(place, Columns):
            # What stands in __dict__ is found before the parameter of that name, which stays where it is.
            yield module.register_forward_pre_hook(lambda one, _: self._shade(one, place))
            yield module.register_forward_hook(lambda one, *_: _uncover(one, place.parameter), always_call=True)
        else:
            modes, added = list[_Adding](), None
            if place.tensor:
                owner, _, leaf = place.tensor.rpartition(".")
                added = getattr(module.get_submodule(owner), leaf)
            yield module.register_forward_pre_hook(lambda *_: modes.append(self._enter(place, added)))
            yield module.register_forward_hook(lambda *_: modes.pop().__exit__(None, None, None), always_call=True)

    def _masker(self, place: Mask) -> Callable[[Tensor], Tensor]:
        unit, factors = place.unit, place.factors

        def mask(x: Tensor) -> Tensor:
            nonlocal unit, factors
            share = self.shares.get(place.site)
            if share is None:
                return x
            share = devices.move(share, x)
            unit = devices.move(unit, x)  # once: a pass copies nothing
            row = share[unit]
            if factors is not None:
                factors = devices.move(factors, x)
                row = row * (devices.move(self._weights[place.site], x) * factors).sum()
            return x * row.to(x.dtype)

        return mask

    def _scale(self, x: Tensor, sites: Sequence[str], side: int) -> Tensor:
        found = [self._moments[site] for site in sites if site in self._moments]
        if not found:
            return x
        factor = torch.ones((), device=found[0][0].device, dtype=found[0][0].dtype)
        for mean, root in found:
            factor = factor * (root if side else mean.rsqrt())
        return x * devices.move(factor, x).to(x.dtype)

    def _skipper(self, place: Gate) -> Callable[[Tensor, Tensor], Tensor]:
        def skip(x: Tensor, y: Tensor) -> Tensor:
            share = self.shares.get(place.site)
            if share is None:
                return y
            gate = devices.move(share[place.unit], y).to(y.dtype)
            # Exact at 0 and 1; what went in may lie on another device than what came out, where a model is split.
            return gate * y + (1 - gate) * devices.move(x, y)

        return skip

    def _shade(self, module: nn.Module, place: Columns) -> None:
        share = self.shares.get(place.site)
        if share is not None:
            weight = module.get_parameter(place.parameter)
            row = devices.move(share, weight)[devices.move(place.unit, weight)]
            vars(module)[place.parameter] = weight * row.to(weight.dtype)

    def _enter(self, place: Bar, added: Tensor | None) -> _Adding:
        share = self.shares.get(place.site)
        mode = _Adding(None if share is None else _log(share), added)
        mode.__enter__()
        return mode


class _Adding(TorchFunctionMode):
    """Adds a row to what `linear` gives; or, with a tensor, to what any function makes of that."""

    def __init__(self, row: Tensor | None, tensor: Tensor | None = None) -> None:
        super().__init__()
        self.row, self.tensor = row, tensor

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        out = func(*args, **(kwargs or {}))
        takes = func is nn.functional.linear if self.tensor is None else any(one is self.tensor for one in args)
        if self.row is None or not takes or not isinstance(out, Tensor) or out.shape[-1:] != self.row.shape:
            return out
        return out + devices.move(self.row, out).to(out.dtype)


def _uncover(module: nn.Module, name: str) -> None:
    vars(module).pop(name, None)


def _log(share: Tensor) -> Tensor:
    """log share, minus infinity at 0, where there is no gradient."""
    return torch.where(share > 0, share.clamp(min=1e-30).log(), -torch.inf)


def _find_first(args: tuple[object, ...], kwargs: Mapping[str, object]) -> Tensor:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    raise InputError("a masked module was called without a tensor: mask another one")


def _before(module: nn.Module, change: Callable[[Tensor], Tensor]) -> RemovableHandle:
    """Let `change` have the first tensor that goes in."""

    def hook(
        _: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        x = _find_first(args, kwargs)
        new = change(x)
        swapped = tuple(new if one is x else one for one in args)
        return swapped, {name: new if one is x else one for name, one in kwargs.items()}

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _after(module: nn.Module, change: Callable[[Tensor, Tensor], Tensor]) -> RemovableHandle:
    """Let `change` have what goes in, and what comes out or is the first of a tuple that does."""

    def hook(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], out: object) -> object:
        x = _find_first(args, kwargs)
        if isinstance(out, tuple):
            return (change(x, out[0]), *out[1:])
        if not isinstance(out, Tensor):
            raise UnsupportedError(f"a masked module returns a {type(out).__name__}: mask one that returns tensors")
        return change(x, out)

    return module.register_forward_hook(hook, with_kwargs=True)
