"""The weight matrices of a network, one view [d_out, d_in] for each, however they are stored."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.errors import InputError
from secateur.formats import expert_tensors
from secateur.vocabulary import Cut

__all__ = ["Matrix", "masks_of", "matrices", "nonzero", "receipt", "site"]

_BLOCK = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks)\.(\d+)\.(.+)$")
_WHOLE = ("gate", "router", "shared_expert_gate", "dt_proj")
"""Last names of modules that are never pruned weight by weight: what sends tokens to experts, and what makes the step
sizes of Mamba, whose weights are multiplied without its being called, so that nobody sees what they read. All small."""


@dataclass(frozen=True, eq=False)
class Matrix:
    """One weight matrix of a network; units are its single weights.

    name: of the parameter, and of a packed expert with its number: "layers.0.mlp.experts.gate_up_proj[3]"
    module: path of the module that holds it
    parameter: where it is stored
    expert: its place along the first dimension of a packed parameter [E, d_out, d_in]
    turned: stored [d_in, d_out] (GPT-2's Conv1D, experts of gpt-oss and Aria)
    """

    name: str
    module: str
    parameter: nn.Parameter
    expert: int | None = None
    turned: bool = False

    @property
    def weight(self) -> Tensor:
        """The weights, a view [d_out, d_in] without gradient; a convolution's inputs are channels x kernel."""
        return self.view(self.parameter.detach())

    def view(self, stored: Tensor) -> Tensor:
        """A tensor of the parameter's shape (its gradient, a mask) seen as this matrix [d_out, d_in]."""
        mine = stored if self.expert is None else stored[self.expert]
        return mine.T if self.turned else mine.flatten(1)

    @property
    def leaf(self) -> str:
        """The name of the parameter in the model, without an expert's number."""
        return self.name.partition("[")[0]


def matrices(model: nn.Module, within: Iterable[str] | None = None) -> dict[str, Matrix]:
    """Name -> matrix, in the model's order: linears, GPT-2's Conv1D, convolutions without groups, packed experts.

    The joined input projections of an `nn.MultiheadAttention` are one matrix.

    Those inside the modules `within`, such as the blocks of a transformer; of the whole model but its output embedding
    (and what is tied to it) if None. Routers, step sizes of Mamba, embeddings and norms are left out; a matrix that
    several modules share stands under its first name.
    """
    outputs = getattr(model, "get_output_embeddings", lambda: None)()
    skipped = set() if outputs is None else {id(p) for p in outputs.parameters()}
    prefixes = None if within is None else tuple(f"{path}." for path in within)
    found: dict[str, Matrix] = {}
    for path, module in model.named_modules():
        if prefixes is not None and not f"{path}.".startswith(prefixes):
            continue
        if path.rpartition(".")[2] in _WHOLE:
            continue
        for matrix in _of(path, module):
            if id(matrix.parameter) not in skipped:
                found[matrix.name] = matrix
        skipped |= {id(parameter) for parameter in module.parameters(recurse=False)}
    return found


def _of(path: str, module: nn.Module) -> list[Matrix]:
    prefix = f"{path}." if path else ""
    stored = dict(module.named_parameters(recurse=False))
    first = expert_tensors.find_first(module)
    if first in stored and "down_proj" in stored and expert_tensors.is_packed(module):
        turned = expert_tensors.is_turned(module)
        return [
            Matrix(f"{prefix}{leaf}[{expert}]", path, stored[leaf], expert, turned)
            for leaf in (first, "down_proj")
            for expert in range(len(stored[leaf]))
        ]
    if isinstance(module, nn.MultiheadAttention):
        return [Matrix(f"{prefix}in_proj_weight", path, stored["in_proj_weight"])] if "in_proj_weight" in stored else []
    conv1d = type(module).__name__ == "Conv1D"
    plain = isinstance(module, nn.modules.conv._ConvNd) and module.groups == 1 and not module.transposed
    if not (isinstance(module, nn.Linear) or conv1d or plain):
        return []
    return [Matrix(f"{prefix}weight", path, stored["weight"], turned=conv1d)] if "weight" in stored else []


def masks_of(found: Mapping[str, Matrix]) -> dict[str, Tensor]:
    """Name of a parameter -> booleans of its shape: what is not zero of the matrices."""
    return {matrix.leaf: matrix.parameter.detach() != 0 for matrix in found.values()}


def nonzero(found: Mapping[str, Matrix]) -> int:
    """How many weights of the matrices are not zero."""
    return sum(int(torch.count_nonzero(matrix.weight)) for matrix in found.values())


def receipt(
    before: Mapping[str, Matrix],
    after: Mapping[str, Matrix],
    notes: tuple[str, ...] = (),
    blocks: Sequence[str] = (),
) -> Cut:
    """What went: matrix -> (weights that became zero, weights), and the cost `weights`, those that are not zero.

    Experts of a layer are counted together. blocks: see `site`. Raises `InputError` for matrices that are not the same.
    """
    if set(before) != set(after):
        missing = sorted(set(before) ^ set(after))[0]
        raise InputError(f"{missing} is in one of the two models only: give a model and its pruned copy")
    removed: dict[str, tuple[int, int]] = {}
    for name, matrix in before.items():
        lost = int(torch.count_nonzero(matrix.weight)) - int(torch.count_nonzero(after[name].weight))
        place = site(matrix, blocks)
        gone, whole = removed.get(place, (0, 0))
        removed[place] = (gone + max(lost, 0), whole + matrix.weight.numel())
    gone_only = {name: pair for name, pair in removed.items() if pair[0]}
    return Cut(gone_only, {"weights": float(nonzero(before))}, {"weights": float(nonzero(after))}, notes)


def site(matrix: Matrix, blocks: Sequence[str] = ()) -> str:
    """The site of a matrix's weights: "layers.3.self_attn_q_proj" whatever the model calls its blocks.

    blocks: paths of all blocks, an encoder's before its decoder's; a layer's number is its place among them. Where none
    holds the matrix, it is the number in the name: of T5 and BART two layers have the same one.
    """
    name = matrix.leaf.removesuffix(".weight")
    for number, path in enumerate(blocks):
        if name.startswith(f"{path}."):
            return f"layers.{number}.{name[len(path) + 1 :].replace('.', '_')}"
    block = _BLOCK.search(name)
    return name if block is None else f"layers.{block[1]}.{block[2].replace('.', '_')}"
