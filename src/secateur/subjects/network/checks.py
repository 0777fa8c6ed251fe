"""Checks before a cut: models that cannot be analysed, and inputs that leave a part of the network unused."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.errors import InputError, ModelError, UnsupportedError
from secateur.subjects.network.recording import Example, Run, tensors_of

__all__ = ["check_branches", "check_model"]


def check_model(model: nn.Module, example: Example) -> None:
    """Raise `UnsupportedError` or `ModelError` for a model that can't be analysed, `InputError` for empty inputs."""
    if not isinstance(model, nn.Module):
        raise InputError(f"{type(model).__name__} is no torch.nn.Module: give the network itself")
    for path, module in model.named_modules():
        name = f"{path} ({type(module).__name__})" if path else type(module).__name__
        if isinstance(module, torch.jit.ScriptModule) or type(module).__name__ == "OptimizedModule":
            raise UnsupportedError(f"{name} is compiled: prune the model first, then compile the result")
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = f"{path}.module" if path else "model.module"
            raise UnsupportedError(f"{name} spreads a network over devices: give the network inside, {inner}")
        if ".quantized" in type(module).__module__ or type(module).__module__.startswith("bitsandbytes"):
            raise UnsupportedError(f"{name} is quantised: prune first, then quantise the result")
    tensors = tensors_of(model)
    if not tensors:
        raise UnsupportedError(f"{type(model).__name__} has no parameters: nothing of it can be cut")
    for name, tensor in tensors.items():
        _check_tensor(name, tensor)
    given = [value for value in tree_leaves((example.args, dict(example.kwargs))) if isinstance(value, Tensor)]
    if given and not any(value.numel() for value in given):
        raise InputError(f"the example inputs are empty ({tuple(given[0].shape)}): give at least one example")


def _check_tensor(name: str, tensor: Tensor) -> None:
    if nn.parameter.is_lazy(tensor):
        raise ModelError(f"{name} has no shape yet: run the model once, so that its lazy modules are made")
    if tensor.is_meta:
        raise ModelError(f"{name} has no values (it is on the meta device): load the weights first")
    if type(tensor.data) is not Tensor or tensor.is_quantized:
        raise UnsupportedError(f"{name} is a {type(tensor.data).__name__}: prune first, then quantise the result")
    if tensor.is_floating_point() and tensor.element_size() == 1:
        raise UnsupportedError(f"{name} is in {tensor.dtype}: prune in a wider type first, then quantise the result")
    # A sum is the fastest look at all numbers. Infinity is at home in buffers, as a mask.
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor.detach().sum())):
        return
    wrong = ~torch.isfinite(tensor).all() if isinstance(tensor, nn.Parameter) else torch.isnan(tensor).any()
    if bool(wrong):
        raise ModelError(f"{name} holds NaN or infinity: load the weights again, or train with a lower rate")


def check_branches(model: nn.Module, run: Run) -> None:
    """Raise `UnsupportedError` for a network that chooses by its data what to run, and leaves a part out here."""
    whole = type(model).__name__
    idle = [name for name in dict(model.named_parameters()) if name not in run.used]
    if run.reads and idle:
        raise UnsupportedError(
            f"{idle[0]} takes no part in the forward pass, which depends on values computed in "
            f"{run.reads[0] or whole}: other inputs may run it; give example inputs that run all of the network"
        )
    # Code looks at its inputs for many reasons, such as masks without effect: where it then leaves out a module of its
    # own it has chosen.
    for name in idle:
        place = name.rpartition(".")[0]
        while place:
            place = place.rpartition(".")[0]
            if place in run.looks:
                raise UnsupportedError(
                    f"{name} takes no part in the forward pass, and {place or whole} looks at values of its inputs: "
                    "others may run it; give example inputs that run all of the network"
                )
