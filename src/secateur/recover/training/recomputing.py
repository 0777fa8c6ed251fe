"""Gradient checkpointing: a block keeps its input alone, and runs again when its gradient is asked for.

transformers has the same for its own layers, but only in training mode, and most recipes train without dropout in
evaluation mode. Here it is switched on for the repeated blocks of any network. Source: Chen et al., Training Deep Nets
with Sublinear Memory Cost (arXiv 1604.06174).
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial, wraps

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from secateur.errors import TrainingWarning

__all__ = ["find_blocks", "recomputing", "replace_forward"]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_LEAST = 4
"""Modules of a sequence that is worth parting."""


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """The outermost modules with parts of their own whose class occurs more than once, such as transformer layers.

    Of stages, which hold a row of blocks of one class (Swin, ConvNeXt, the stacks of T5), not these but their blocks.
    """
    inner = [
        module
        for module in model.modules()
        if module is not model and type(module) not in _CONTAINERS and any(True for _ in module.children())
    ]
    counts = Counter(type(module) for module in inner)
    blocks, covered = list[nn.Module](), set[nn.Module]()
    for module in inner:  # outer ones come first
        if counts[type(module)] > 1 and module not in covered and not _is_stage(module):
            blocks.append(module)
            covered.update(module.modules())
    return blocks


def _is_stage(module: nn.Module) -> bool:
    """Whether a list or sequence right inside it, or it as one, holds several blocks of one class.

    Two parts of one class that it has by names of their own make no stage (a decoder layer attends twice), nor do short
    sequences such as a convolution with its norm.
    """
    rows = [module] if isinstance(module, _CONTAINERS) else [one for one in module.children() if _is_plain(one)]
    return any(count > 1 for row in rows for count in Counter(type(block) for block in _members(row)).values())


def _is_plain(module: nn.Module) -> bool:
    return type(module) in _CONTAINERS


def _members(row: nn.Module) -> Iterator[nn.Module]:
    """The modules with parts of their own in a container, and in containers in it."""
    for member in row.children():
        if _is_plain(member):
            yield from _members(member)
        elif not isinstance(member, nn.Sequential) and any(True for _ in member.children()):
            yield member


@contextlib.contextmanager
def recomputing(model: nn.Module) -> Iterator[None]:
    """Within the block, activations inside the repeated blocks of `model` are not kept, but computed again.

    Gradients are the same, batch norms and other trackers count each batch once, and dropout draws the same. A network
    without repeated blocks has its longest `nn.Sequential` of n modules parted into about sqrt(n) pieces. Where there
    is neither, all is kept, and a `TrainingWarning` says so unless the model is a single layer.
    """
    blocks = find_blocks(model)
    with contextlib.ExitStack() as stack:
        if blocks:
            for block in blocks:
                stack.enter_context(replace_forward(block, _recompute(block.forward, [block])))
        else:
            sequence = _find_sequence(model)
            if len(sequence) >= _LEAST:
                stack.enter_context(replace_forward(sequence, partial(_run_in_pieces, sequence)))
            elif any(True for _ in model.children()):
                warnings.warn(
                    f"checkpointing: {type(model).__name__} has no repeated blocks and no nn.Sequential of at least "
                    f"{_LEAST} modules: all its activations are kept",
                    TrainingWarning,
                    stacklevel=3,
                )
        yield


@contextlib.contextmanager
def replace_forward(module: nn.Module, forward: Callable[..., object]) -> Iterator[None]:
    """Within the block, `module` runs `forward`, inside of its own hooks."""
    own = vars(module).get("forward")  # Accelerate sets one of the instance
    setattr(module, "forward", forward)  # noqa: B010
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            setattr(module, "forward", own)  # noqa: B010


def _find_sequence(model: nn.Module) -> nn.Sequential:
    sequences = [
        m for m in model.modules() if isinstance(m, nn.Sequential) and type(m).forward is nn.Sequential.forward
    ]
    return max(sequences, key=len, default=nn.Sequential())


def _run_in_pieces(sequence: nn.Sequential, x: object) -> object:
    modules = list(sequence)
    size = math.ceil(len(modules) / math.ceil(math.sqrt(len(modules))))
    for start in range(0, len(modules), size):
        piece = modules[start : start + size]
        x = _recompute(partial(_run, piece), piece)(x)
    return x


def _run(modules: Sequence[nn.Module], x: object) -> object:
    for module in modules:
        x = module(x)
    return x


def _recompute(forward: Callable[..., object], modules: Sequence[nn.Module]) -> Callable[..., object]:
    """`forward`, whose activations are not kept where gradients are wanted."""

    @wraps(forward)
    def run(*args: object, **kwargs: object) -> object:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        contexts = partial(_contexts, modules)
        return checkpoint(partial(forward, **kwargs), *args, use_reentrant=False, context_fn=contexts)

    return run


def _contexts(
    modules: Sequence[nn.Module],
) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """Contexts of the first run, and of the second, which begins with the trackers as they were before the first."""
    trackers = [buffer for module in modules for buffer in module.buffers() if buffer.dim() <= 1]
    cached = parametrize._cache_enabled > 0
    return contextlib.nullcontext(), _run_again(trackers, [tracker.clone() for tracker in trackers], cached)


@contextlib.contextmanager
def _run_again(trackers: Sequence[Tensor], before: Sequence[Tensor], cached: bool) -> Iterator[None]:
    now = [tracker.clone() for tracker in trackers]
    with torch.no_grad():
        for tracker, value in zip(trackers, before, strict=True):
            tracker.copy_(value)
    try:
        with parametrize.cached() if cached else contextlib.nullcontext():
            yield
    finally:
        with torch.no_grad():
            for tracker, value in zip(trackers, now, strict=True):
                tracker.copy_(value)
