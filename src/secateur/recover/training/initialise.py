"""Reinitialise a network: the same shapes with new weights, drawn as the published control experiment draws them.

The rules are those of Liu et al., "Rethinking the Value of Network Pruning" (arXiv 1810.05270), and of the code whose
networks it retrains.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import InputError, ModelError

__all__ = ["conv_", "fresh", "shared_tensors"]

_STD = 0.02
"""Of parameters that no rule knows (class tokens, tables of positions): what transformers draws its own with."""

_RULED = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.Linear)
"""Modules whose weight and bias have a rule here, whatever their class draws these from."""


def conv_(weight: Tensor, *, outputs: int | None = None, mask: Tensor | None = None) -> Tensor:
    """Fill a kernel in place from N(0, sqrt(2 / n)), n = k * k * out_channels, and return it.

    weight: [out, in, k, ...], or [in, out, k, ...] of a transposed convolution with `outputs` given. With a `mask` of
    the same shape, n is nonzeros / in_channels, so that the variance fits the connections that are left, and what the
    mask closes is exactly 0: the variance over the nonzeros is 2 / n. A mask of ones changes nothing.

    Source: He et al., ICCV 2015 (fan-out); arXiv 1810.05270 for the sparse fan.
    """
    outputs = weight.shape[0] if outputs is None else outputs
    full = math.prod(weight.shape[2:]) * outputs
    if mask is None:
        return nn.init.normal_(weight, 0.0, math.sqrt(2.0 / full))
    if mask.shape != weight.shape:
        raise InputError(f"a mask of shape {tuple(mask.shape)} for a weight of {tuple(weight.shape)}: give one shape")
    n = full * int(mask.sum()) / weight.numel()
    with torch.no_grad():
        nn.init.normal_(weight, 0.0, math.sqrt(2.0 / n) if n else 0.0).mul_(mask.to(weight))
    return weight


def fresh(
    model: nn.Module,
    *,
    seed: int = 0,
    norm: float = 1.0,
    linear: float | None = 0.01,
    masks: Mapping[str, Tensor] | None = None,
) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy of `model` with the same shapes and new weights, and notes on what no rule knew; `model` stays as it is.

    - convolutions: `conv_`, biases 0;
    - batch norms: weight `norm` (1; 0.5 in the VGG of the network slimming code), bias 0, statistics as new;
    - linears: N(0, `linear`), biases 0; None for PyTorch's own rule;
    - modules with a `reset_parameters` of their own: that, also for what subclasses of these three have beside weight
      and bias, such as a gain;
    - models of transformers: their own `_init_weights`, from their config, for everything;
    - other parameters: N(0, 0.02), told in the notes.

    masks: name of a convolution's weight -> booleans of its shape; where False, the weight is 0, see `conv_`.

    The same seed gives the same weights on every device; the caller's generator is left as found. Raises `InputError`
    for a mask that fits no convolution.
    """
    copied, masks = copy.deepcopy(model), dict(masks or {})
    home = {name: tensor.device for name, tensor in copied.named_parameters()}
    copied.to("cpu")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        notes = _from_config(copied, masks) if _is_pretrained(copied) else _by_rules(copied, norm, linear, masks)
    if masks:
        raise InputError(f"the mask {next(iter(masks))!r} is of no convolution's weight: name one of those")
    copied.to(next(iter(home.values()), "cpu"))
    both = shared_tensors(copied, model)
    if both:
        raise ModelError(f"{both[0]} of the fresh network is still a tensor of the old one: its copy shares memory")
    return copied, notes


def shared_tensors(first: nn.Module, second: nn.Module) -> list[str]:
    """Names of the tensors of `first` that lie in memory of `second`'s: none for a control experiment."""

    def places(model: nn.Module) -> dict[int, str]:
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        return {tensor.untyped_storage().data_ptr(): name for name, tensor in tensors.items() if tensor.numel()}

    theirs = places(second)
    return [name for place, name in places(first).items() if place in theirs]


def _is_pretrained(model: nn.Module) -> bool:
    return hasattr(model, "_init_weights") and hasattr(model, "initialize_weights") and hasattr(model, "config")


def _from_config(model: Any, masks: dict[str, Tensor]) -> tuple[str, ...]:
    for module in model.modules():
        own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        for holder in (module, *own):  # what was loaded is marked, and marks keep it from being drawn
            if hasattr(holder, "_is_hf_initialized"):
                del holder._is_hf_initialized
    model.initialize_weights()
    for name, parameter in model.named_parameters():
        if name in masks:
            parameter.mul_(masks.pop(name).to(parameter))
    return ()


def _by_rules(model: nn.Module, norm: float, linear: float | None, masks: dict[str, Tensor]) -> tuple[str, ...]:
    unknown: list[str] = []
    done: set[int] = set()
    for path, module in model.named_modules():
        own = {name: p for name, p in module.named_parameters(recurse=False) if id(p) not in done}
        done.update(map(id, own.values()))
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        left = {name: p for name, p in own.items() if name not in ("weight", "bias")}
        if left and isinstance(module, _RULED) and not type(module).reset_parameters.__module__.startswith("torch.nn."):
            module.reset_parameters()
            left = {}
        if not own:
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.reset_running_stats()
        elif isinstance(module, nn.modules.conv._ConvNd):
            mask = masks.pop(f"{path}.weight" if path else "weight", None)
            if "weight" in own:
                conv_(module.weight, outputs=module.out_channels, mask=mask)
            _zero(module.bias)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.weight.fill_(norm)
            _zero(module.bias)
        elif isinstance(module, nn.Linear) and linear is not None:
            if "weight" in own:
                nn.init.normal_(module.weight, 0.0, linear)
            _zero(module.bias)
        elif callable(reset):
            reset()
            left = left if isinstance(module, _RULED) else {}
        else:
            left = own
        for name, parameter in left.items():
            nn.init.normal_(parameter, 0.0, _STD)
            unknown.append(f"{path}.{name}" if path else name)
    if not unknown:
        return ()
    more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
    return (f"drawn from N(0, {_STD}) for want of a rule: {unknown[0]}{more}",)


def _zero(bias: Tensor | None) -> None:
    if bias is not None:
        bias.zero_()
