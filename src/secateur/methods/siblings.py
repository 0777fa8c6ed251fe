"""Siblings: networks retrained from one pruned start. Masks of the start, the path between two, and how alike they are.

Source: Zhou et al., "A Three-regime Model of Network Pruning" (arXiv 2305.18383), section 3 and its code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur._utils import devices
from secateur._utils.modes import evaluating
from secateur.data import examples
from secateur.data.batches import Feed
from secateur.data.examples import Augment, Examples
from secateur.errors import InputError, UnsupportedError
from secateur.measure.connectivity import blend, connectivity
from secateur.methods.arms import fit, mark_correct
from secateur.methods.sibling_texts import TextPart
from secateur.recover.sparsity import masks
from secateur.recover.sparsity.masks import Masks
from secateur.recover.training import norms, objectives
from secateur.score.similarity import cka
from secateur.select import ranking
from secateur.subjects.transformer import files
from secateur.vocabulary import Budget, Recovery, Site, Training, Units

__all__ = [
    "Allocation",
    "Layers",
    "Learned",
    "Pair",
    "State",
    "close_smallest",
    "compare",
    "count_kept",
    "feed",
    "learn",
    "load_state",
    "path_errors",
    "prunable",
    "share_wrong",
]

State: TypeAlias = Mapping[str, Tensor]
"""What `nn.Module.state_dict` gives."""
Learned: TypeAlias = Examples | TextPart
"""What siblings learn from, or are judged on."""
Allocation: TypeAlias = Literal["uniform", "global"]
Layers: TypeAlias = Literal["convolutions", "matrices"]


# -------------------------------------------------------------------------------------------------------- masks


def prunable(model: nn.Module, layers: Layers = "convolutions") -> dict[str, Tensor]:
    """Name -> weight that is pruned: of all convolutions; with "matrices" of linears too, but for the last declared."""
    if layers == "convolutions":
        weights = masks.convolutions(model)
    else:
        kinds = (nn.modules.conv._ConvNd, nn.Linear)
        weights = {
            f"{path}.weight": one.weight
            for path, one in model.named_modules()
            if isinstance(one, kinds) or type(one).__name__ == "Conv1D"  # GPT-2's linears
        }
        if weights:
            weights.popitem()
    if not weights:
        wanted = "choose layers=matrices" if layers == "convolutions" else "two layers are needed"
        raise UnsupportedError(f"{type(model).__name__} has no {layers} that could be pruned: {wanted}")
    return weights


def count_kept(sizes: Mapping[str, int], density: float, allocation: Allocation = "uniform") -> dict[str, int]:
    """Name -> n - round((1 - density) n) weights that stay, of each layer; for "global" of all, under "".

    Raises `InputError` for a density that leaves a layer empty.
    """
    if not 0 < density < 1:
        raise InputError(f"density {density:g} is no share between 0 and 1: give the share of weights that stays")
    if allocation == "global":
        whole = sum(sizes.values())
        kept = whole - round((1 - density) * whole)
        if kept < len(sizes):
            least = len(sizes) / whole
            raise InputError(f"density {density:g} leaves one of {len(sizes)} layers empty: give {least:.2g} or more")
        return {"": kept}
    counts = {name: size - round((1 - density) * size) for name, size in sizes.items()}
    for name, kept in counts.items():
        if not kept:
            raise InputError(
                f"density {density:g} leaves {name} empty, which has {sizes[name]} weights: give "
                f"{0.51 / sizes[name]:.2g} or more, or allocation=global"
            )
    return counts


def close_smallest(
    weights: Mapping[str, Tensor], density: float, allocation: Allocation = "uniform"
) -> dict[str, Tensor]:
    """Masks of one-shot magnitude pruning: True where |w| is among the largest of its layer, or of all layers.

    As many as `count_kept` says, exactly. "global" leaves each layer its largest weight, whatever the threshold.
    """
    counts = count_kept({name: weight.numel() for name, weight in weights.items()}, density, allocation)
    scores = {name: weight.detach().abs().flatten().float().cpu() for name, weight in weights.items()}
    sites = {name: Site(name, len(one), {"weights": np.ones(len(one))}, minimum=1) for name, one in scores.items()}
    if allocation == "global":
        selection = ranking.by_budget(Units(sites), scores, Budget.of({"weights": counts[""]}), scope="global")
    else:
        selection = ranking.by_counts(Units(sites), scores, counts)
    return {
        name: torch.as_tensor(selection.keep[name]).view(weight.shape).to(weight.device)
        for name, weight in weights.items()
    }


# ------------------------------------------------------------------------------------------------------- states


def load_state(path: Path, like: State) -> State:
    """The state dict in a safetensors file, or in those of an index, where it fits the network whose state is `like`.

    What the network has twice under two names may be there once. Raises `InputError` for a file that can't be read, or
    is of another architecture.
    """
    try:
        parts = files.find_tensors(path.parent) if path.name == files.INDEX else None
        found = load_file(str(path)) if parts is None else dict(files.read_tensors(parts))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} can't be read as safetensors ({error}): write it again with save_file") from error
    places = {tensor.data_ptr(): found[name] for name, tensor in like.items() if name in found}
    state = {name: found.get(name, places.get(tensor.data_ptr())) for name, tensor in like.items()}
    for name in [*like, *found]:
        ours, theirs = like.get(name), found.get(name) if name in found else state.get(name)
        if ours is None or theirs is None or ours.shape != theirs.shape:
            mine, other = (None if one is None else tuple(one.shape) for one in (ours, theirs))
            raise InputError(
                f"{path} is of another architecture: it has {name} of shape {other}, the network {mine}; all "
                "checkpoints are state dicts of the network that is given"
            )
    return {name: tensor for name, tensor in state.items() if tensor is not None}


# --------------------------------------------------------------------------------------------------------- pairs


@dataclass(frozen=True, slots=True)
class Pair:
    """Two siblings: training errors along the path between them, as shares, and the CKA of their outputs."""

    errors: tuple[float, ...]
    similarity: float

    @property
    def connectivity(self) -> float:
        """mc, see `measure.connectivity.connectivity`."""
        return connectivity(self.errors)


def compare(
    shell: nn.Module,
    first: State,
    second: State,
    data: Learned,
    *,
    points: int = 11,
    batch: int = 128,
    batches: int = 100,
) -> Pair:
    """Two siblings on examples with classes that are not augmented, in their order, or on texts.

    The CKA is of outputs, and of a model of texts of its states behind the last block, mean over tokens.

    Args:
        shell: a network of their architecture; it ends with other weights.
        first, second: their states, with masks applied.
        data: what they learned from, or a part of it, mixed: batches, and the first of them, stand for all classes.
        points: of the path.
        batch: examples at a time.
        batches: of 64 examples, on whose outputs the CKA is.
    """
    few = data.take(range(min(len(data), 64 * batches)))
    outputs = []
    for state in (first, second):
        shell.load_state_dict(state)
        outputs.append(few.outputs(shell, batch) if isinstance(few, TextPart) else _outputs(shell, few, batch))
    alike = float(cka(*outputs))
    return Pair(tuple(path_errors(shell, first, second, data, points=points, batch=batch)), alike)


def path_errors(
    shell: nn.Module, first: State, second: State, data: Learned, *, points: int = 11, batch: int = 128
) -> list[float]:
    """[points] shares of `data` that theta(s) gets wrong, s from 0 to 1; batch norms are estimated anew at each point.

    They are estimated on batches of equal size, since each counts alike, of `batch` examples at most; an example that
    would be left alone is left out. A network without batch norms, such as a transformer, has nothing to be estimated.
    """
    errors = list[float]()
    if isinstance(data, TextPart):
        for step in range(points):
            shell.load_state_dict(blend(first, second, step, points - 1))
            errors.append(data.wrong(shell, batch))
        return errors
    size = math.ceil(len(data) / math.ceil(len(data) / batch))
    # A batch norm learns nothing from one value per channel.
    whole = data.take(range(len(data) - 1)) if len(data) > 1 and len(data) % size == 1 else data
    for step in range(points):
        shell.load_state_dict(blend(first, second, step, points - 1))
        norms.reestimate(shell, lambda part: shell(devices.move(part["inputs"], shell)), whole.in_order(size))
        errors.append(1.0 - float(mark_correct(shell, data, batch).mean()))
    return errors


def _outputs(model: nn.Module, data: Examples, batch: int) -> Tensor:
    found: Sequence[Tensor]
    with evaluating(model), torch.inference_mode():
        found = [
            objectives.logits(model(devices.move(part["inputs"], model))).flatten(1).cpu()
            for part in data.in_order(batch)
        ]
    return torch.cat(list(found))


def learn(
    model: nn.Module,
    part: Learned,
    training: Training,
    *,
    seed: int,
    folder: Path,
    augment: Augment | None = None,
    judged: Learned | None = None,
    closed: Masks | None = None,
    step_end: Callable[[torch.optim.Optimizer], None] | None = None,
) -> Recovery | None:
    """Train a model in place on either kind of data; see `arms.fit`."""
    if isinstance(part, TextPart):
        held = cast("TextPart | None", judged)
        return part.fit(model, training, seed=seed, folder=folder, judged=held, closed=closed, step_end=step_end)
    apart = cast("Examples | None", judged)
    return fit(
        model, part, training, seed=seed, augment=augment, folder=folder, judged=apart, closed=closed, step_end=step_end
    )


def share_wrong(model: nn.Module, part: Learned, batch: int) -> float:
    """Share that a model gets wrong, of `batch` at a time."""
    if isinstance(part, TextPart):
        return part.wrong(model, batch)
    return 1.0 - float(mark_correct(model, part, batch).mean())


def feed(part: Learned, batch: int, seed: int) -> Feed:
    """Endless batches to learn from."""
    return part.feed(batch, seed) if isinstance(part, TextPart) else examples.batches(part, batch=batch, seed=seed)
