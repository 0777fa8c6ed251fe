"""Path likelihood: probability of each of many paths under a causal language model, token by token."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur._utils.modes import evaluating
from secateur.errors import InputError, NumericalError

__all__ = ["PathScores", "likelihood"]

FLOOR = 1e-9
"""The least a factor counts: one token that the model rules out does not hide what the others say."""


@dataclass(frozen=True, slots=True, eq=False)
class PathScores:
    """Log-likelihood of each path, float64 [paths]; and how often the model was called, on how many tokens."""

    values: Tensor
    calls: int
    tokens: int


@torch.no_grad()
def likelihood(model: Any, prompt: Sequence[int], paths: Sequence[Sequence[int]], *, cache: bool = True) -> PathScores:
    """Sum over the tokens t of a path of log P(t | prompt, the tokens before), with P over what some path goes on with.

        P(t_j | prefix) = exp(z_{t_j}) / sum over the children k of the prefix in the tree of all paths of exp(z_k)

    Where all paths with a prefix go on alike P is 1, and the model is not asked: it is called once for each place where
    paths part. Its keys and values of the prompt and of shared prefixes are computed once. A path that ends where
    others go on has the likelihood of getting there.

    Args:
        model: a causal language model of transformers.
        prompt: what comes before, at least one token.
        paths: tokens of each path.
        cache: reuse keys and values; without it each call reads prompt and prefix anew.

    Source: HtmlRAG (arXiv 2411.02959), section 3.4: token tree, dynamic skipping, prefix cache.
    """
    if not len(prompt):
        raise InputError("the prompt is empty: give at least one token before the paths")
    children, places = _tree(paths)
    with evaluating(*[model] if isinstance(model, nn.Module) else []):
        return _walk_tree(children, places, _Reader(model, prompt, cache))


def _walk_tree(children: Sequence[Mapping[int, int]], places: Sequence[int], reader: _Reader) -> PathScores:
    """The tree from the top, each node after the one above it."""
    logs = torch.zeros(len(children), dtype=torch.float64)  # of the way from the top to each node
    stack: list[tuple[int, tuple[int, ...]]] = [(0, ())]
    while stack:
        node, prefix = stack.pop()
        below = children[node]
        if len(below) > 1:
            logits = reader.after(prefix)[list(below)].double()
            if not bool(torch.isfinite(logits).all()):
                raise NumericalError("the model's logits are not finite: its paths can't be told apart")
            shares = logits.log_softmax(-1).clamp(min=math.log(FLOOR))
        else:
            shares = torch.zeros(len(below), dtype=torch.float64)
        for share, (token, child) in zip(shares, below.items(), strict=True):
            logs[child] = logs[node] + share
            stack.append((child, (*prefix, token)))
    return PathScores(logs[places], reader.calls, reader.tokens)


def _tree(paths: Sequence[Sequence[int]]) -> tuple[list[dict[int, int]], list[int]]:
    """Node -> token -> child, node 0 first; and the node at which each path ends."""
    children, ends = [dict[int, int]()], list[int]()
    for path in paths:
        node = 0
        for token in path:
            if token not in children[node]:
                children[node][token] = len(children)
                children.append({})
            node = children[node][token]
        ends.append(node)
    return children, ends


class _Reader:
    """Logits after the prompt and a prefix; prefixes come in the order of a walk, each after those it goes on from."""

    def __init__(self, model: Any, prompt: Sequence[int], cache: bool) -> None:
        self.model, self.prompt, self.keep = model, tuple(prompt), cache
        self.cache: Any = None  # keys and values, of the tokens in `read`
        self.read: list[int] = []
        self.first: tuple[list[int], Any] | None = None  # the first call's, where a cache can't go back
        self.calls = self.tokens = 0

    def after(self, prefix: Sequence[int]) -> Tensor:
        """[vocabulary] logits of the next token."""
        wanted, shared = [*self.prompt, *prefix], 0
        while self.keep and shared < min(len(self.read), len(wanted) - 1) and self.read[shared] == wanted[shared]:
            shared += 1
        if self.cache is not None and shared < len(self.read):
            shared = self._go_back(shared)
        new, at = wanted[shared:], self.model.device
        out = self.model(
            torch.tensor([new], device=at), position_ids=torch.arange(shared, len(wanted), device=at)[None],
            past_key_values=self.cache, use_cache=self.keep, logits_to_keep=1,
        )  # fmt: skip
        if self.keep:
            self.cache, self.read = out.past_key_values, wanted
            if not self.calls and not _is_croppable(self.cache):
                self.first = list(wanted), copy.deepcopy(self.cache)
        self.calls += 1
        self.tokens += len(new)
        found: Tensor = out.logits[0, -1].cpu()
        return found

    def _go_back(self, shared: int) -> int:
        """Forget what was read behind the first `shared` tokens, or all since the first call; how many are left."""
        if self.first is None:
            self.cache.crop(shared - len(self.read))
            return shared
        read, cache = self.first  # all prefixes go on from the first one, where paths part for the first time
        self.cache = copy.deepcopy(cache)
        return len(read)


def _is_croppable(cache: Any) -> bool:
    """Whether a cache can go back by some tokens: not with a sliding window, or a state in place of keys."""
    return not any(getattr(cache, "is_sliding", ())) and bool(getattr(cache, "is_croppable", True))
