"""Reconstruction: which input channels the next layer needs to give what it gave.

Everything follows from two matrices of a layer Y = W X: its weight W [d_out, d_in], and the second moments
H = X X^T [d_in, d_in] of its inputs (of unfolded patches, for a convolution). Y is the sum of what each channel c
contributes, z_c = W[:, c] X[c], and G[c, e] = <z_c, z_e> over all samples and outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur._utils import devices
from secateur._utils.modes import evaluating
from secateur.errors import DataError, InputError
from secateur.score.hooks import Batch, finite, module_at, observe

__all__ = ["gram", "greedy", "lasso", "moments"]


def moments(
    forward: Callable[[Batch], Any], model: nn.Module, batches: Iterable[Batch], modules: Sequence[str]
) -> dict[str, Tensor]:
    """Module -> H = X X^T / N, float64 [d_in, d_in]: of linears, and of convolutions over unfolded patches.

    N counts positions of the output. Patches are laid out as `weight.flatten(1)` is: channel by channel. The model
    is in evaluation mode meanwhile, and comes back in its own. Raises `InputError` for a module that is no linear and
    no two-dimensional convolution of one group with zero padding, `DataError` without batches.
    """
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(modules, 0)

    def reader(path: str) -> Callable[[Tensor], None]:
        unfold = _unfold(path, module_at(model, path))

        def look(x: Tensor) -> None:
            rows = unfold(x.detach()).double()
            counts[path] += len(rows)
            product = rows.T @ rows
            sums[path] = sums[path] + product if path in sums else product

        return look

    with evaluating(model), torch.no_grad(), observe(model, {(path, "input"): reader(path) for path in modules}):
        for batch in batches:
            forward(devices.move(batch, model))
    missed = [path for path in modules if path not in sums]
    if missed:
        raise DataError(f"nothing reached {missed[0]}: give at least one batch that runs through it")
    return {path: finite(path, sums[path] / counts[path]) for path in modules}


def _unfold(path: str, module: nn.Module) -> Callable[[Tensor], Tensor]:
    if isinstance(module, nn.Linear):
        return lambda x: x.flatten(0, -2) if x.dim() > 1 else x[None]
    if isinstance(module, nn.Conv2d) and module.groups == 1 and not isinstance(module.padding, str):
        how: Mapping[str, Any] = {name: getattr(module, name) for name in ("dilation", "padding", "stride")}
        return lambda x: functional.unfold(x, module.kernel_size, **how).transpose(1, 2).flatten(0, 1)
    raise InputError(f"{path} is a {type(module).__name__}, which can't be refitted: name a linear or a plain Conv2d")


def gram(weight: Tensor, hessian: Tensor, unit: Tensor) -> Tensor:
    """G [count, count]: inner products of what the units contribute, float64.

    weight: [d_out, d_in], hessian: [d_in, d_in], unit: [d_in], the unit of each column, or -1 for those of none.
    G[c, e] is the sum of (W^T W) o H over the columns of c and the rows of e.
    """
    weight = weight.detach().flatten(1).double()
    if hessian.shape != (weight.shape[1],) * 2 or unit.shape != (weight.shape[1],):
        raise InputError(
            f"weight {list(weight.shape)}, moments {list(hessian.shape)}, units {list(unit.shape)}: "
            "give [d_out, d_in], [d_in, d_in], [d_in]"
        )
    unit = unit.to(weight.device)
    inside = unit >= 0
    product = ((weight.T @ weight) * hessian.double())[inside][:, inside]
    place, count = unit[inside], int(unit.max()) + 1
    rows = product.new_zeros(count, len(place)).index_add_(0, place, product)
    return product.new_zeros(count, count).index_add_(1, place, rows).cpu()


def greedy(products: Tensor) -> Tensor:
    """Float32 [count]: rank of each unit, the later it goes the higher; 0 goes first.

    The next to go is the one that makes |sum over all that are gone of z_c|^2 grow least: the greedy algorithm of
    ThiNet (arXiv 1707.06342), equation 6, for all sizes at once. products: G of `gram`.
    """
    count = len(products)
    scores = torch.zeros(count)
    beside = torch.zeros(count, dtype=torch.float64)  # sum over gone units e of G[c, e]
    left = torch.ones(count, dtype=torch.bool)
    for rank in range(count):
        growth = (products.diagonal() + 2 * beside).masked_fill(~left, torch.inf)
        chosen = int(growth.argmin())
        scores[chosen], left[chosen] = rank, False
        beside = beside + products[:, chosen]
    return scores


def lasso(products: Tensor, *, levels: int = 50, sweeps: int = 20) -> Tensor:
    """Float32 [count]: the share of the strongest penalty up to which each unit still has a coefficient.

    min over b of 1/2 |Y - sum_c b_c z_c|^2 + penalty |b|_1, by coordinate descent, from the penalty that zeroes
    everything down a geometric grid of `levels` to a thousandth of it; at most `sweeps` over the coordinates at each.
    Units that enter at the same level are told apart by |b_c| at the last.

    Source: He, Zhang and Sun, "Channel Pruning for Accelerating Very Deep Neural Networks" (arXiv 1707.06168),
    equation 3. products: G of `gram`.
    """
    g = products.double().numpy()
    target, diagonal = g.sum(1), np.maximum(np.diag(g), 1e-12 * max(float(np.diag(g).max()), 1e-300))
    strongest = float(np.abs(target).max())
    b, entered, fitted = np.zeros(len(g)), np.zeros(len(g)), np.zeros(len(g))  # fitted: G b
    for share in np.geomspace(1.0, 1e-3, levels) if strongest > 0 else ():
        for _ in range(sweeps):
            moved = 0.0
            for c in range(len(g)):
                rest = target[c] - fitted[c] + g[c, c] * b[c]
                new = np.sign(rest) * max(abs(rest) - share * strongest, 0.0) / diagonal[c]
                if new != b[c]:
                    fitted += g[:, c] * (new - b[c])
                    moved, b[c] = max(moved, abs(new - b[c])), new
            if moved < 1e-6:
                break
        entered = np.where((b != 0) & (entered == 0), share, entered)
    tie = np.abs(b) / max(float(np.abs(b).max()), 1e-300)
    return torch.from_numpy(entered + 1e-6 * tie).float()
