"""Optimisers of the training loop: groups, AdamW in 32 and in 8 bits, SGD, and what a checkpoint holds of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from secateur._utils.distributed import shard_like
from secateur.errors import InputError, MissingExtraError, UnsupportedError

__all__ = [
    "PREFIX",
    "MakeOptimizer",
    "groups_of",
    "make_optimizer",
    "name_of",
    "parameters_of",
    "restore_state",
    "set_rate",
    "state_of",
]

MakeOptimizer: TypeAlias = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
"""From parameter groups to an optimiser of theirs."""

PREFIX = "optimizer."
"""What names of an optimiser's tensors begin with in a checkpoint."""

_EIGHT_BITS = ("codes", "scale")
"""Tensors of which a moment in eight bits is made."""


def groups_of(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups: matrices decay, norms and biases do not."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decays = [parameter for parameter in trained if parameter.dim() > 1]
    spared = [parameter for parameter in trained if parameter.dim() <= 1]
    groups = [{"params": decays, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(
    wanted: str | MakeOptimizer,
    groups: list[dict[str, Any]],
    device: torch.device,
    *,
    lr: float,
    betas: tuple[float, float],
    momentum: float,
) -> torch.optim.Optimizer:
    """The optimiser of `groups` that `wanted` names or makes: adamw, adamw8bit or sgd.

    Raises `MissingExtraError` for adamw8bit without torchao.
    """
    if callable(wanted):
        return wanted(groups)
    # On a CPU the plain AdamW takes six times as long, a tenth of a step with a large vocabulary.
    fused = device.type == "cpu" or None
    if wanted == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)
    if wanted == "adamw8bit":
        return _make_adamw8bit(groups, device, lr=lr, betas=betas)
    if wanted == "sgd":
        sgd = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=fused)
        if fused and momentum:
            sgd.register_step_pre_hook(lambda optimizer, args, kwargs: _start_momenta(optimizer))
        return sgd
    raise InputError(f"optimizer={wanted!r}: give 'adamw', 'adamw8bit', 'sgd' or a function that makes one")


def _make_adamw8bit(
    groups: list[dict[str, Any]], device: torch.device, *, lr: float, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    """torchao's AdamW, whose two moments take a byte each where a parameter has 4096 numbers or more.

    Source: 8-bit Optimizers via Block-wise Quantization (arXiv 2110.02861). On a CPU it runs without torch.compile,
    which needs a compiler and a minute there.
    """
    try:
        from torchao.optim import AdamW8bit
        from torchao.optim.adam import single_param_adam
    except ImportError as error:
        raise MissingExtraError("optimizer=adamw8bit needs torchao: pip install 'secateur[quantise]'") from error
    if any(isinstance(parameter, DTensor) for group in groups for parameter in group["params"]):
        raise UnsupportedError("optimizer=adamw8bit does not train a sharded student: use adamw under FSDP2")
    optimizer: torch.optim.Optimizer = AdamW8bit(groups, lr=lr, betas=betas)
    if device.type == "cpu":
        setattr(optimizer, "step", partial(_step_eagerly, optimizer, single_param_adam))  # noqa: B010
    return optimizer


@torch.no_grad()
def _step_eagerly(optimizer: Any, update: Callable[..., None]) -> None:
    """torchao's step without the compilation."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = optimizer.state[parameter]
            if not state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"] = optimizer._new_buffer(parameter, True)
                state["exp_avg_sq"] = optimizer._new_buffer(parameter, False)
            state["step"] += 1
            moments = (state["step"], state["exp_avg"], state["exp_avg_sq"], None)
            how = (group["lr"], *group["betas"], group["weight_decay"], group["eps"], True, False)
            update(parameter, parameter.grad, *moments, *how)


def _start_momenta(optimizer: torch.optim.Optimizer) -> None:
    """A momentum of zeros for each parameter that has a gradient for the first time; its step is the same with it.

    The fused SGD takes a momentum of every parameter or of none, and fails where a part of the student gets its first
    gradient later than the rest.
    """
    for parameter in parameters_of(optimizer):
        if parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def name_of(optimizer: object) -> str:
    """The name of an optimiser, or of the function that makes it."""
    return str(optimizer if isinstance(optimizer, str) else getattr(optimizer, "__name__", type(optimizer).__name__))


def parameters_of(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """All parameters, in the order of their groups."""
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all groups, times a group's "times" where it has one."""
    for group in optimizer.param_groups:
        own = rate * group.get("times", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(own)
        else:
            group["lr"] = own


def state_of(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Name -> tensor of what the optimiser knows of each parameter; shards whole, eight bits as two tensors."""
    tensors = dict[str, Tensor]()
    for index, parameter in enumerate(parameters_of(optimizer)):
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is None:  # a momentum that is not there yet
                continue
            if hasattr(value, "codes"):
                for part in _EIGHT_BITS:
                    tensors[f"{PREFIX}{index}.{key}.{part}"] = getattr(value, part)
                continue
            tensor = torch.as_tensor(value)
            tensors[f"{PREFIX}{index}.{key}"] = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return tensors


def restore_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give the optimiser what `state_of` has read; other names are passed over."""
    for index, parameter in enumerate(parameters_of(optimizer)):
        prefix, state = f"{PREFIX}{index}.", optimizer.state[parameter]
        for name, tensor in tensors.items():
            if not name.startswith(prefix):
                continue
            key, _, part = name.removeprefix(prefix).rpartition(".")
            if key and part in _EIGHT_BITS:
                if key not in state:
                    state[key] = optimizer._new_buffer(parameter, key == "exp_avg")  # type: ignore[attr-defined]
                getattr(state[key], part).copy_(tensor)
            else:
                # AdamW keeps its step counts on the CPU.
                state[name.removeprefix(prefix)] = tensor if tensor.dim() == 0 else shard_like(tensor, parameter)
