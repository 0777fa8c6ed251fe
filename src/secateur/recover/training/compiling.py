"""torch.compile of a student in training: of its repeated blocks, each inside of its own hooks, else of the whole.

Blocks compile in a fraction of the time of a whole model, and are what runs whichever way the model is asked: as a
whole, without its head, or with its hidden states.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from functools import wraps

import torch
from torch import nn

from secateur.errors import TrainingWarning
from secateur.recover.training.recomputing import find_blocks, replace_forward

__all__ = ["compiling"]

_VARIANTS = 256
"""Compiled forms of one block: of each width, as a cut leaves them, and of training and evaluation."""


@contextlib.contextmanager
def compiling(student: nn.Module, *, recomputed: bool = False) -> Iterator[None]:
    """Within the block, the repeated blocks of `student` run compiled; the whole student, where there are none.

    Where they can't be compiled, or something looks inside of them (hooks on their parts), they run as ever, and one
    `TrainingWarning` says so. recomputed: activations are not kept, and a student without blocks runs in pieces.
    """
    state, blocks = _Compilation(), find_blocks(student)
    if recomputed and not blocks:
        state.give_up("with checkpointing only repeated blocks can be compiled, and it has none")
    with (
        contextlib.ExitStack() as stack,
        torch._dynamo.config.patch(recompile_limit=_VARIANTS, accumulated_recompile_limit=16 * _VARIANTS),
    ):
        for module in blocks or [student]:
            stack.enter_context(replace_forward(module, state.compile(module)))
        yield


class _Compilation:
    """What is compiled of a student, until something can't be."""

    def __init__(self) -> None:
        self.failed = False

    def compile(self, module: nn.Module) -> Callable[..., object]:
        """The forward pass of `module`, compiled as long as that works."""
        from torch._dynamo.exc import TorchDynamoException  # takes seconds to load

        forward = module.forward
        compiled = torch.compile(forward)

        @wraps(forward)
        def run(*args: object, **kwargs: object) -> object:
            if self.failed:
                return forward(*args, **kwargs)
            if _is_watched(module):
                self.give_up("hooks look at what its parts read or give")
                return forward(*args, **kwargs)
            try:
                return compiled(*args, **kwargs)
            except TorchDynamoException as error:
                self.give_up(" ".join(str(error).split("\n")[:2]))
                return forward(*args, **kwargs)

        return run

    def give_up(self, why: str) -> None:
        """Compile nothing from now on, and say why."""
        self.failed = True
        warnings.warn(f"compile: the student trains without torch.compile: {why}", TrainingWarning, stacklevel=3)


def _is_watched(module: nn.Module) -> bool:
    """Whether parts of `module` have hooks, which compiled code might pass over."""
    return any(
        part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
        for part in module.modules()
        if part is not module
    )
