"""Transfer between tasks: pre-training of a classifier, new heads, and adversarial inputs."""

from __future__ import annotations

import copy
import difflib
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from secateur.errors import InputError, UnsupportedError
from secateur.recover.distillation import losses
from secateur.recover.training import objectives, rehearsal
from secateur.recover.training.compose import Objective, Parts

__all__ = ["Pixels", "attack", "classify", "fgsm", "head", "loss", "with_head"]

_LEAP = 1.25
"""The step of one-step adversarial training, in radii (arXiv 2001.03994, section 4.1)."""


@dataclass(frozen=True)
class Pixels:
    """How inputs [B, C, ...] come from pixels of 0 to 1: ``(pixel - mean) / std`` of each channel, or as they are."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def scale(self, inputs: Tensor) -> Tensor | float:
        """[C, 1, ...], how far an input moves with its pixel; 1.0 where it is one."""
        return 1.0 / _of_channels(self.std, inputs.dim(), inputs.device) if self.std else 1.0

    def clip(self, inputs: Tensor) -> Tensor:
        """The inputs of pixels that are brought between 0 and 1."""
        if not self.std:
            return inputs.clamp(0.0, 1.0)
        mean, scale = _of_channels(self.mean, inputs.dim(), inputs.device), self.scale(inputs)
        return inputs.maximum(-mean * scale).minimum((1.0 - mean) * scale)


@functools.lru_cache(maxsize=32)
def _of_channels(values: tuple[float, ...], dims: int, device: torch.device) -> Tensor:
    """[C, 1, ...] beside inputs of `dims` dimensions; kept, so that no step of training copies them to the device."""
    return torch.tensor(values, device=device).reshape(-1, *[1] * (dims - 2))


def classify(model: nn.Module, *, radius: float = 0.0, pixels: Pixels = Pixels()) -> Objective:
    """Cross-entropy of the classes, the mean over the examples of a step; batches of "inputs" and "labels" [B].

    radius: how far each pixel is moved against the model before it learns from it, by one step from a random start:
    adversarial training as in Wong, Rice and Kolter (arXiv 2001.03994). pixels: how inputs come from these.
    """

    plain = rehearsal.classes(lambda batch: objectives.logits(model(batch["inputs"])))

    def objective(batch: Mapping[str, Tensor], totals: Mapping[str, int]) -> tuple[Tensor, Parts]:
        inputs = batch["inputs"]
        start = radius * (2 * torch.rand_like(inputs) - 1)
        against = partial(loss, model, batch["labels"])
        moved = attack(against, inputs, radius, start=start, step=_LEAP * radius, pixels=pixels)
        return plain({**batch, "inputs": moved}, totals)

    return objective if radius else plain


def loss(model: nn.Module, labels: Tensor, inputs: Tensor) -> Tensor:
    """Cross-entropy of the classes `labels` [B], summed over the inputs [B, ...]."""
    return losses.cross_entropy(objectives.logits(model(inputs)), labels)


def attack(
    against: Callable[[Tensor], Tensor],
    inputs: Tensor,
    radius: float,
    *,
    start: Tensor | None = None,
    step: float | None = None,
    pixels: Pixels = Pixels(),
) -> Tensor:
    """Inputs x [B, ...] moved by one step of the sign of a loss's gradient: ``x + clip(d + step sign(grad L(x + d)))``.

    The move stays within `radius` of x in each pixel, and the result between 0 and 1. against: L, a sum over the
    inputs; start: d, nothing unless given; step: the radius unless given; pixels: how inputs come from these, in which
    radius, d and step are measured. With neither start nor step this is FGSM (Goodfellow et al., arXiv 1412.6572).
    """
    scale = pixels.scale(inputs)
    moved = torch.zeros_like(inputs) if start is None else start
    with torch.enable_grad():
        probe = (inputs + scale * moved).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(against(probe), probe)
    moved = (moved + (radius if step is None else step) * gradient.sign()).clamp(-radius, radius)
    return pixels.clip(inputs + scale * moved).detach()


def fgsm(model: nn.Module, radius: float, pixels: Pixels = Pixels()) -> Callable[[Tensor, Tensor], Tensor]:
    """The attack (inputs, classes) -> inputs that moves each pixel once by `radius` against the model; see `attack`."""
    return lambda inputs, labels: attack(partial(loss, model, labels), inputs, radius, pixels=pixels)


def head(model: nn.Module, path: str = "") -> str:
    """The path of the linear layer that makes the logits: the last one of the model unless `path` names another.

    Raises `InputError` for a path that is no linear layer, naming the nearest, `UnsupportedError` where there is none.
    """
    found = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not found:
        raise UnsupportedError(
            f"{type(model).__name__} has no linear layer to put a head for other classes in place of"
        )
    if path and path not in found:
        near = difflib.get_close_matches(path, found, n=1, cutoff=0.0)[0]
        raise InputError(f"head={path!r} is no linear layer of the network: did you mean {near!r}?")
    return path or found[-1]


def with_head(model: nn.Module, path: str, classes: int, *, seed: int = 0) -> nn.Module:
    """A copy of `model` whose linear layer at `path` is a new one for `classes`, drawn by PyTorch's own rule."""
    old = model.get_submodule(path)
    assert isinstance(old, nn.Linear)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new = nn.Linear(old.in_features, classes, device=old.weight.device, dtype=old.weight.dtype)
    if not path:
        return new
    copied = copy.deepcopy(model)
    copied.set_submodule(path, new)
    return copied
