"""What an encoder reads that is no text: how many states and rows a sound or an image makes, found by a run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from secateur._utils.modes import evaluating
from secateur.subjects.transformer.costs import Source
from secateur.subjects.transformer.small_copy import has_encoder, run_model

__all__ = ["measure_source"]


def measure_source(model: PreTrainedModel, first: str) -> Source:
    """Of a model whose first layer is `first`: by a run of a copy without numbers, or of itself where it wants some."""
    try:
        with FakeTensorMode():
            return _record(type(model)(model.config).eval(), first)
    except Exception:  # whatever a class asks of a tensor without numbers
        with evaluating(model):
            return _record(model, first)


def _record(model: PreTrainedModel, first: str) -> Source:
    """States that enter the first layer, rows of linears and FLOPs of convolutions, in one run."""
    states, rows, flops = list[int](), dict[str, int](), list[float]()

    def note(path: str, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        if isinstance(module, nn.Linear):
            rows[path] = out[0].numel() // out.shape[-1]
        elif isinstance(module, nn.Conv1d | nn.Conv2d):
            flops.append(2.0 * out[0].numel() * module.weight[0].numel())

    def enter(module: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
        states.append((args[0] if args else kwargs["hidden_states"]).shape[1])

    with ExitStack() as stack, torch.no_grad():
        layer = model.get_submodule(first)
        stack.callback(layer.register_forward_pre_hook(enter, with_kwargs=True).remove)
        for path, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
                stack.callback(module.register_forward_hook(partial(note, path)).remove)
        run_model(model, torch.ones(1, 1, dtype=torch.long, device=model.device))
    least = 2 if has_encoder(model.config) else 1  # one row is of the one token that a decoder wrote
    return Source(states[0], {path: count for path, count in rows.items() if count >= least}, sum(flops))
