"""NumPy and torch alike: the array library is found through the array the caller already has."""

from __future__ import annotations

import importlib

import numpy as np
import numpy.typing as npt

from secateur.vocabulary import Array

__all__ = ["as_numpy", "mask_like", "small_integers"]


def as_numpy(array: Array, dtype: npt.DTypeLike | None = np.float64) -> np.ndarray:
    """`array` (NumPy array, torch tensor on any device, or a sequence) as a NumPy array of `dtype`."""
    if hasattr(array, "detach"):  # a torch tensor: it may need gradients, live on a device, or be bfloat16
        array = array.detach().cpu()
        array = (array.double() if array.is_floating_point() else array).numpy()
    return np.asarray(array, dtype=dtype)


def mask_like(mask: np.ndarray, array: Array) -> Array:
    """The boolean `mask` in the library, and on the device, of `array`."""
    if not hasattr(array, "detach"):
        return mask
    torch = importlib.import_module(type(array).__module__.partition(".")[0])
    return torch.as_tensor(mask, dtype=torch.bool, device=array.device)


def small_integers(mask: Array, most: int) -> Array:
    """Booleans as 0 and 1, in their own library and on their device, of a type that counts to `most` and no further."""
    if most > 255:
        return mask * 1
    return mask.byte() if hasattr(mask, "detach") else mask.astype(np.uint8)
