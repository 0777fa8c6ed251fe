"""Knock-outs as a model runs: edges of attention to the last position, and whole sub-blocks there.

Geva et al. 2023, "Dissecting Recall of Factual Associations" (arXiv 2304.14767), as Jin et al. 2024 (arXiv 2402.18154)
use them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from secateur._utils import devices
from secateur.errors import InputError, UnsupportedError
from secateur.subjects.transformer.subject import Transformer, find_states

__all__ = ["block_edges", "silence_blocks"]


@contextmanager
def block_edges(subject: Transformer, layers: Iterable[int], sources: Tensor) -> Iterator[None]:
    """Within the block, attention of these layers from the last position to `sources` has logits of minus infinity.

    sources: bool [N, S], of the batch that is run, without padding; the last position sees itself in any case.

    Raises `UnsupportedError` for an attention without a mask of one number for each edge, `InputError` for a batch of
    another size.
    """
    count, length = sources.shape
    with ExitStack() as stack:
        for layer in layers:
            block = subject.layout.blocks(layer).get("attention")
            if block is None:
                continue
            module = subject.model.get_submodule(f"{subject.layers()[layer]}.{block.module}")

            def bar(
                module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
            ) -> tuple[tuple[object, ...], dict[str, object]]:
                states = find_states(args, kwargs)
                if states.shape[:2] != sources.shape:
                    raise InputError(
                        f"sources are of {count} x {length} tokens, and the batch has {states.shape[0]} x "
                        f"{states.shape[1]}: give one for each token"
                    )
                if "attention_mask" not in kwargs:
                    raise UnsupportedError(f"{type(module).__name__} takes no mask by name: edges can't be blocked")
                mask = kwargs["attention_mask"]
                if mask is None:
                    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
                if not isinstance(mask, Tensor) or mask.dim() != 4 or mask.shape[-2:] != (length, length):
                    raise UnsupportedError(
                        f"{type(module).__name__} has no mask of {length} x {length} edges: open the model with "
                        "attn_implementation sdpa or eager"
                    )
                edges = torch.zeros(count, 1, length, length, dtype=torch.bool)
                edges[:, 0, -1, :-1] = sources[:, :-1]
                mask = devices.move(mask, module).expand(count, -1, -1, -1)
                edges = devices.move(edges, module)
                if mask.dtype == torch.bool:
                    mask = mask & ~edges
                else:
                    mask = mask.masked_fill(edges, torch.finfo(mask.dtype).min)
                return args, {**kwargs, "attention_mask": mask}

            stack.callback(module.register_forward_pre_hook(bar, with_kwargs=True).remove)
        yield


@contextmanager
def silence_blocks(subject: Transformer, layers: Iterable[int], kind: str) -> Iterator[None]:
    """Within the block, the sub-blocks `kind` (attention or ffn) of these layers add nothing at the last position.

    A norm behind the sub-block, as in some models, runs over the zeros.
    """
    with ExitStack() as stack:
        for layer in layers:
            blocks = subject.layout.blocks(layer)
            if kind not in ("attention", "ffn"):
                raise InputError(f"sub-blocks {kind!r}: give attention or ffn")
            if kind not in blocks:
                continue
            path = subject.layers()[layer]
            inside = dict(subject.model.get_submodule(path).named_modules())
            module = inside[blocks[kind].out if blocks[kind].out in inside else blocks[kind].module]

            def silence(_: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> object:
                states = output[0] if isinstance(output, tuple) else output
                states = states.clone()
                states[..., -1, :] = 0.0
                return (states, *output[1:]) if isinstance(output, tuple) else states

            stack.callback(module.register_forward_hook(silence).remove)
        yield
