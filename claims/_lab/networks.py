"""Small networks on digits and MNIST: data for judged and pilot runs, and networks that are trained once and kept."""

from __future__ import annotations

import hashlib
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

import small_vision
from claims._lab import settings, sources
from claims._lab.settings import scaled
from secateur.data.examples import Examples

__all__ = ["accuracy", "digits", "mnist", "trained"]


def digits(train: int = 1000, seed: int = 0) -> tuple[Examples, Examples]:
    """scikit-learn's digits: (`train` of them, the others to judge on)."""
    return apart(*small_vision.digits(train, seed))


def mnist(train: int = 2000, test: int = 2000, **how: Any) -> tuple[Examples, Examples]:
    """MNIST: (examples to train on, others to judge on)."""
    return apart(*small_vision.mnist(train, test, **how))


def apart(train: Examples, judged: Examples) -> tuple[Examples, Examples]:
    """The two parts as they are; of a pilot, both are taken from the first, 192 and 64 at most."""
    if not settings.PILOT:
        return train, judged
    few = min(256, len(train))
    return train.take(range(few * 3 // 4)), train.take(range(few * 3 // 4, few))


def accuracy(network: nn.Module, data: Examples) -> float:
    """In percent."""
    return 100 * small_vision.accuracy(network, data)


def trained(name: str, network: nn.Module, data: Examples, *, epochs: float, seed: int = 0, **how: Any) -> nn.Module:
    """`network` after a plain training; its weights are kept by all that made them, the code included."""
    epochs = scaled(epochs, 0.2)
    made = repr((name, str(network), data.digest, epochs, seed, sorted(how.items()), sources.digest(__name__)))
    file = settings.CACHE / "models" / f"{name}-{hashlib.sha256(made.encode()).hexdigest()[:12]}.safetensors"
    if file.exists():
        network.load_state_dict(load_file(file))
        return network.eval()
    small_vision.fit(network, data, epochs=epochs, seed=seed, **how)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, file)
    return network.eval()
