"""Masks that change while the weights under them train: masked weights count as zero, are still trained and may return.

The forward pass uses W~ = m(W) W, the gradient of W~ passes unchanged to all of W, a decay that grows pulls closed
weights towards zero, and the masks are chosen anew every few steps: SR-STE (arXiv 2102.04010) as annealed and decoupled
from AdamW's moments by AST (arXiv 2407.20584).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import parametrize
from torch.optim.optimizer import ParamsT

from secateur._utils.distributed import shard_like
from secateur.errors import InputError
from secateur.recover.training.schedule import ramp_up

__all__ = ["Adaptive", "Choose", "DecoupledAdamW", "Moment", "branch", "moving", "pack_bits", "unpack_bits"]

Choose = Callable[[Tensor], Tensor]
"""A weight as stored -> booleans of its shape, True where it stays."""

Moment = Literal["both", "gradient", "update"]
"""Of what the scale of a closed weight's step is the second moment: g + lambda W, g alone, or m + lambda W (AST)."""

_POINTS = 100
"""Flip rates kept in a record."""


class _Through(torch.autograd.Function):
    """W -> W where `keep`, else 0; the gradient of the result is that of all of W (the straight-through estimator)."""

    @staticmethod
    def forward(ctx: object, weight: Tensor, keep: Tensor) -> Tensor:
        return torch.where(keep, weight, 0)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def pack_bits(mask: Tensor) -> Tensor:
    """Booleans of any shape -> uint8 [ceil(numel / 8)], the first of each eight in the lowest bit."""
    flat = nn.functional.pad(mask.flatten().to(torch.uint8), (0, -mask.numel() % 8)).unflatten(0, (-1, 8))
    bits: Tensor = (flat << _shifts(mask)).sum(1, dtype=torch.uint8)
    return bits


def unpack_bits(bits: Tensor, shape: torch.Size) -> Tensor:
    """The booleans of `shape` that `pack_bits` made `bits` of."""
    flat = (bits[:, None] >> _shifts(bits)).bitwise_and_(1).flatten()
    mask: Tensor = flat[: shape.numel()].view(torch.bool).view(shape)
    return mask


def _shifts(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device)


class _Mask(nn.Module):
    """A parametrisation: what the model sees of one weight. Its booleans take a bit each."""

    bits: Tensor
    first_bits: Tensor

    def __init__(self, keep: Tensor, through: bool) -> None:
        super().__init__()
        self.through, self.shape = through, keep.shape
        self.register_buffer("bits", pack_bits(keep))
        # A resumed run starts from the same weights, so it finds its first mask by itself.
        self.register_buffer("first_bits", self.bits.clone(), persistent=False)

    @property
    def keep(self) -> Tensor:
        """Booleans of the weight's shape, True where it stays; made anew each time."""
        return unpack_bits(self.bits, self.shape)

    @property
    def first(self) -> Tensor:
        """The mask that training started with."""
        return unpack_bits(self.first_bits, self.shape)

    def forward(self, weight: Tensor) -> Tensor:
        """[stored shape] -> the same with zeros where the mask is closed."""
        if self.through:
            masked: Tensor = _Through.apply(weight, self.keep)
            return masked
        return torch.where(self.keep, weight, 0)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        self.upgrade_state(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def upgrade_state(self, tensors: dict[str, Tensor], prefix: str) -> None:
        """Pack the mask in a checkpoint of 0.1.0, which has a byte for each boolean; `loop.train` calls this too."""
        whole = tensors.pop(f"{prefix}keep", None)
        if whole is not None:
            tensors[f"{prefix}bits"] = pack_bits(whole)


class _Closed(Mapping[Tensor, Tensor]):
    """Parameter -> booleans, True where its mask is closed: unpacked when asked for, or sharded as the parameter is."""

    def __init__(self, masks: Mapping[Tensor, _Mask]) -> None:
        self._masks = dict(masks)
        # To shard a mask takes all processes, so that these are made once; each has its part of the whole.
        self._sharded: dict[Tensor, Tensor] = {
            weight: shard_like(~mask.keep, weight)
            for weight, mask in self._masks.items()
            if isinstance(weight, DTensor)
        }

    def __getitem__(self, weight: Tensor) -> Tensor:
        if weight in self._sharded:
            return self._sharded[weight]
        return shard_like(~self._masks[weight].keep, weight)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)


class Adaptive(nn.Module):
    """The masks of a model in training; use `moving`. Hand it to `loop.train` as `extra`: its record is checkpointed.

    flips: [refreshes, 2], the share of all masked weights that changed sides at each refresh, against the mask before
    and against the first one.
    """

    flips: Tensor

    def __init__(self, model: nn.Module, choose: Mapping[str, Choose], *, steps: int, refresh: int) -> None:
        super().__init__()
        if refresh < 0:
            raise InputError(f"refresh={refresh}: give steps between choices of the mask, or 0 for a mask that stays")
        self.refresh, self.choose = refresh, dict(choose)
        self.register_buffer("flips", torch.zeros(max(0, steps - 1) // refresh if refresh else 0, 2))
        parameters = dict(model.named_parameters())
        # Module, leaf and the leaves in their order, of every module that holds the parameter: shared ones stay shared.
        self._places: dict[str, list[tuple[nn.Module, str, list[str]]]] = {}
        self._masks: dict[str, _Mask] = {}
        self._closed: Mapping[Tensor, Tensor] = {}
        for name, chosen in self.choose.items():
            if name not in parameters:
                raise InputError(f"the model has no parameter {name!r} to mask: give a name of named_parameters()")
            weight = parameters[name]
            self._masks[name] = _Mask(chosen(weight.detach()), through=refresh > 0)
            self._places[name] = [
                (module, leaf, [key for key, _ in module.named_parameters(recurse=False)])
                for module in model.modules()
                for leaf, own in module.named_parameters(recurse=False)
                if own is weight
            ]
        for name, mask in self._masks.items():
            for module, leaf, _ in self._places[name]:
                parametrize.register_parametrization(module, leaf, mask)

    def _weight(self, name: str) -> Tensor:
        module: Any
        module, leaf, _ = self._places[name][0]
        weight: Tensor = module.parametrizations[leaf].original
        return weight

    def closed_weights(self) -> Mapping[Tensor, Tensor]:
        """Parameter -> booleans of its shape, True where the mask is closed; sharded as the parameter is."""
        now = {name: self._weight(name) for name in self._masks}
        if any(weight not in self._closed for weight in now.values()):
            self._closed = _Closed({weight: self._masks[name] for name, weight in now.items()})
        return self._closed

    @torch.no_grad()
    def after(self, steps: int) -> None:
        """After `steps` optimiser steps: choose the masks anew if it is time, from the weights as they are now.

        Not after the last one: what is handed back has been trained with the mask that it has.
        """
        place = steps // self.refresh - 1 if self.refresh and steps % self.refresh == 0 else -1
        if not 0 <= place < len(self.flips):
            return
        counts = torch.zeros(2, dtype=torch.float64)
        whole = 0
        for name, mask in self._masks.items():
            weight = self._weight(name)
            keep = self.choose[name](weight.full_tensor() if isinstance(weight, DTensor) else weight.detach())
            counts += torch.stack([(keep != mask.keep).sum(), (keep != mask.first).sum()]).cpu()
            whole += keep.numel()
            mask.bits.copy_(pack_bits(keep))
        self.flips[place] = (counts / whole).to(self.flips)
        self._closed = {}

    def adamw(
        self,
        *,
        decay: float,
        ramp: int,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        moment: Moment = "both",
    ) -> Callable[[list[dict[str, Any]]], DecoupledAdamW]:
        """For `loop.train(optimizer=...)`: `DecoupledAdamW` on these masks, with lambda(t) = `schedule.ramp_up`."""

        def make(groups: list[dict[str, Any]]) -> DecoupledAdamW:
            return DecoupledAdamW(
                groups,
                self.closed_weights,
                decay=lambda step: ramp_up(step, top=decay, steps=ramp),
                betas=betas,
                eps=eps,
                after=self.after,
                moment=moment,
            )

        # The loop records an optimiser's name: a checkpoint of other settings is then refused.
        settings = f"decay={decay:g}, ramp={ramp}, betas={betas}, refresh={self.refresh}"
        make.__name__ = f"decoupled_adamw({settings}{'' if moment == 'both' else f', moment={moment}'})"
        return make

    def record(self) -> list[tuple[int, float, float]]:
        """(step, share that flipped against the mask before, against the first): at most a hundred, evenly spread."""
        count = len(self.flips)
        kept = sorted({round(index * (count - 1) / (_POINTS - 1)) for index in range(_POINTS)}) if count else []
        return [((place + 1) * self.refresh, *map(float, self.flips[place])) for place in kept[:count]]  # type: ignore[misc]

    def close(self) -> None:
        """Make the model an ordinary one: weights with zeros where the masks are closed, in their old order."""
        for name, mask in self._masks.items():
            weight = self._weight(name)
            closed = shard_like(~mask.keep.to(weight.device), weight)
            with torch.no_grad():
                weight.masked_fill_(closed, 0)
            for module, leaf, _ in self._places[name]:
                parametrize.remove_parametrizations(module, leaf, leave_parametrized=False)
        for module, _, order in (place for places in self._places.values() for place in places):
            for leaf in order:
                parameter = getattr(module, leaf)
                delattr(module, leaf)
                module.register_parameter(leaf, parameter)
        self._masks, self._closed = {}, {}


@contextmanager
def moving(model: nn.Module, choose: Mapping[str, Choose], *, steps: int, refresh: int = 10) -> Iterator[Adaptive]:
    """Within the block, the named parameters of `model` are masked; after it they hold zeros, and nothing else is left.

    choose: name of a parameter -> what picks its mask, asked at once and then after every `refresh` of `steps`
    optimiser steps. With refresh=0 the masks stay as they are, and closed weights get no gradient. Raises `InputError`
    for a name that is not there.
    """
    masks = Adaptive(model, choose, steps=steps, refresh=refresh)
    try:
        yield masks
    finally:
        masks.close()


class DecoupledAdamW(torch.optim.Optimizer):
    """AdamW whose pull on closed weights enters the step and its scale, but never the first moment.

        m <- b1 m + (1 - b1) g                    the gradient of the loss alone
        u  = m + lambda(t) W   where closed,      m elsewhere
        v <- b2 v + (1 - b2) (g + lambda(t) W)^2   where closed,  g^2 elsewhere
        W <- W (1 - lr wd) - lr / (1 - b1^t) u / (sqrt(v / (1 - b2^t)) + eps)

    so that open weights, and parameters without a mask, get ordinary AdamW; and so do closed ones with lambda = 0.
    With moment="gradient" v is the moment of g^2 everywhere, and the decay is in u alone; with "update" v is that of
    u^2 where closed, the paper's.

    Args:
        params: parameters or groups, as for torch's own optimisers; a group's "weight_decay" is wd.
        closed: gives parameter -> booleans of its shape, True where its mask is closed; asked at every step.
        decay: step, from 0 -> lambda.
        lr, betas, eps, weight_decay: as of AdamW.
        after: called after every step with the number of steps done.
        moment: "both" for v as above, "gradient" or "update".

    Its state is tensors per parameter ("step", "exp_avg", "exp_avg_sq"), so that `state_dict` and checkpoints hold it.

    Source: AST (arXiv 2407.20584). Departure: there v is the moment of u^2, and in the released code also that of open
    weights of masked matrices. Noise in m is sqrt((1 - b1) / (1 + b1)) of that in g, less than a quarter, so a weight
    that is scaled by it walks four times as fast. With all of them scaled alike, that is a matter of the learning rate;
    with closed weights alone it would let their noise open masks. Here both are scaled by g.
    """

    def __init__(
        self,
        params: ParamsT,
        closed: Callable[[], Mapping[Tensor, Tensor]],
        *,
        decay: Callable[[int], float],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        after: Callable[[int], None] | None = None,
        moment: Moment = "both",
    ) -> None:
        if not all(0.0 <= beta < 1.0 for beta in betas) or eps <= 0.0:
            raise InputError(f"betas={betas}, eps={eps}: give betas from 0 to below 1 and a positive eps")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.closed, self.decay, self.after, self.moment = closed, decay, after, moment

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step; returns what `closure` gives."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Parameters that are not always used (experts) count their own steps; time is that of the busiest.
        done = max((int(state["step"]) for state in self.state.values()), default=0)
        pull, closed = self.decay(done), self.closed()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group, closed.get(parameter), pull)
        if self.after is not None:
            self.after(done + 1)
        return loss

    def _update(self, weight: Tensor, group: Mapping[str, Any], closed: Tensor | None, pull: float) -> None:
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] += 1
        number, (first, second) = int(state["step"]), group["betas"]
        mean = state["exp_avg"].lerp_(gradient, 1 - first)
        if closed is None:
            update, scale = mean, gradient
        else:
            update = torch.where(closed, mean + pull * weight, mean)
            scales = {"both": gradient + pull * weight, "gradient": gradient, "update": update}
            scale = torch.where(closed, scales[self.moment], gradient)
        square = state["exp_avg_sq"].mul_(second).addcmul_(scale, scale, value=1 - second)
        size = (square / (1 - second**number)).sqrt_().add_(group["eps"])
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.addcdiv_(update, size, value=-group["lr"] / (1 - first**number))


def branch(
    weight: Tensor, keep: Tensor, k: int, how: str = "mean", *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """(X [d_in / k, d_in], S [d_out, d_in / k]) of a branch W~ + S X that starts as what the mask took (SLoRB).

        X_ij = 1 where i k <= j < (i + 1) k        S_ij = 1/k sum over the k columns p of group j of W_ip (1 - m_ip)

    weight, keep: [d_out, d_in]. how: "mean"; "sum", S without 1/k; or "xavier", X drawn at random and S zero, as LoRA
    begins. With "mean", every row's sum over each group is that of W again, and |W - W~ - S X|_F^2 is
    k |S|_F^2 less than |W - W~|_F^2: no constant over the group can take off more.

    Source: AST (arXiv 2407.20584), section on SLoRB. Raises `InputError` where k does not divide d_in.
    """
    rows, columns = weight.shape
    if k < 1 or columns % k:
        raise InputError(f"k={k} does not divide the {columns} inputs: give a divisor")
    if how not in ("mean", "sum", "xavier"):
        raise InputError(f"how={how!r}: give 'mean', 'sum' or 'xavier'")
    groups = columns // k
    if how == "xavier":
        X = weight.new_empty(groups, columns, device="cpu")
        nn.init.xavier_uniform_(X, generator=generator)
        return X.to(weight.device), weight.new_zeros(rows, groups)
    X = torch.eye(groups, dtype=weight.dtype, device=weight.device).repeat_interleave(k, 1)
    pruned = torch.where(keep, 0, weight.detach()).unflatten(1, (groups, k)).sum(2)
    return X, pruned / k if how == "mean" else pruned
