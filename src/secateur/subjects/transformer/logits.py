"""What stands between the states that a language model ends with and its logits, beside the head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from secateur._utils.modes import evaluating

__all__ = ["find_scale"]

_NEAR, _NEAR_HALF = 1e-4, 2e-2
"""How far apart logits may be by rounding, in parts of the largest; in half precision."""


@torch.no_grad()
def find_scale(model: PreTrainedModel) -> float | None:
    """The factor c with which logits are ``head(c x)``, x the states that the base model gives; None where none does.

    Granite divides its logits by a number, Cohere and Falcon-H1 multiply them; others have one more layer in between.
    Looked at is what the model makes of states drawn at random, or, where it asks for parts of its base, of a pass.
    """
    head = model.get_output_embeddings()
    draw = torch.randn(1, 1, head.weight.shape[-1], generator=torch.Generator().manual_seed(0))
    states = draw.to(head.weight.device, head.weight.dtype if head.weight.is_floating_point() else model.dtype)
    with evaluating(model):
        try:
            with _giving(model, states):
                said = type(model).forward(model, input_ids=torch.zeros(1, 1, dtype=torch.long, device=states.device))
            found = _compare(model, states, said.logits)
        except Exception:  # whatever a model's own code raises where it is given less than its base gives
            found = None
        if found is None:
            tokens = torch.tensor([[0, 1]], device=states.device)
            states = model.base_model(input_ids=tokens).last_hidden_state
            found = _compare(model, states, model(input_ids=tokens).logits)
    return found


def _compare(model: PreTrainedModel, states: Tensor, logits: Tensor) -> float | None:
    """The factor between `logits` and what the head alone makes of the states; None where there is none."""
    head, cap = model.get_output_embeddings(), getattr(model.config, "final_logit_softcapping", None)
    bare, whole = head(states).float().flatten(), logits.float().flatten()
    if bare.shape != whole.shape:
        return None
    bare = bare if cap is None else cap * torch.tanh(bare / cap)
    near = (_NEAR if model.dtype == torch.float32 else _NEAR_HALF) * whole.abs().max()
    if (whole - bare).abs().max() <= near:
        return 1.0
    scale = float((whole @ bare) / (bare @ bare))
    linear = cap is None and getattr(head, "bias", None) is None
    return scale if linear and (whole - scale * bare).abs().max() <= near else None


@contextmanager
def _giving(model: PreTrainedModel, states: Tensor) -> Iterator[None]:
    """Within the block the model's base gives these states, whatever it is asked."""
    name = model.base_model_prefix
    # What stands in __dict__ is found before the module of that name, which stays where it is.
    vars(model)[name] = _Base(getattr(model, name), states)
    try:
        yield
    finally:
        del vars(model)[name]


class _Base:
    """A base model without its layers; all else of it is as it is."""

    def __init__(self, base: object, states: Tensor) -> None:
        self._base, self._states = base, states

    def __call__(self, *_: object, **__: object) -> _Given:
        return _Given(self._states)

    def __getattr__(self, name: str) -> object:
        return getattr(self._base, name)


class _Given:
    """An output that has states and nothing else."""

    def __init__(self, states: Tensor) -> None:
        self.last_hidden_state = states

    def __getitem__(self, place: object) -> object:
        return self.last_hidden_state if place == 0 else ()

    def __getattr__(self, name: str) -> None:
        return None
