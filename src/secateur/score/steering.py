"""Which linears write a behaviour: difference-of-means directions of their outputs, and the loss's gradient along them.

Source: "When Reasoning Meets Compression" (arXiv 2504.02010), steering vectors and attribution patching. Its released
code lets all behaviours share one buffer; here each has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur._utils.modes import evaluating
from secateur.errors import InputError, NothingFoundError
from secateur.score.hooks import Side, observe

__all__ = ["Marked", "Vectors", "random_vectors", "relative", "span_gradients", "steering_vectors"]

Forward = Callable[[Mapping[str, Tensor]], object]
"""Batch of "input_ids" and "attention_mask" [1, S] -> logits [1, S, V], as `prediction`."""
Vectors = Mapping[str, Mapping[str, Tensor]]
"""Behaviour -> module -> direction [d_out], float32 on the CPU."""

BEFORE = 5
"""Tokens before a span that count as its beginning. Source: arXiv 2504.02010."""


@dataclass(frozen=True)
class Marked:
    """A text as tokens [S], and behaviour -> spans of tokens (first, behind the last)."""

    tokens: Tensor
    spans: Mapping[str, Sequence[tuple[int, int]]]


def steering_vectors(forward: Forward, model: nn.Module, modules: Sequence[str], texts: Sequence[Marked]) -> Vectors:
    """Behaviour -> module -> the direction of its outputs in which a behaviour lies, as long as the mean output is.

        u = mean over texts with the behaviour of a_c(s) - mean over all texts of a(s),   u_hat = u ||a_all|| / ||u||

    a_c(s): mean output over a text's tokens of the behaviour and the 5 tokens before each span; a(s): over all its
    tokens; a_all: over all tokens of all texts. A direction that is zero stays zero.
    """
    means: dict[str, Tensor] = {}
    totals: dict[str, Tensor] = {}
    of_behaviour: dict[str, dict[str, Tensor]] = {}
    counts: dict[str, int] = {}
    tokens = 0
    for text in texts:
        outputs = _outputs(forward, model, modules, text.tokens)
        tokens += len(text.tokens)
        for behaviour, spans in text.spans.items():
            if not spans:
                continue
            places = sorted({at for begin, end in spans for at in range(max(0, begin - BEFORE), end)})
            counts[behaviour] = counts.get(behaviour, 0) + 1
            own = of_behaviour.setdefault(behaviour, {})
            for module, rows in outputs.items():
                _add(own, module, rows[places].mean(0))
        for module, rows in outputs.items():
            _add(means, module, rows.mean(0))
            _add(totals, module, rows.sum(0))
    if not counts:
        raise NothingFoundError("no text shows any of the behaviours: give texts with thoughts, or other rules")
    found: dict[str, dict[str, Tensor]] = {}
    for behaviour, own in of_behaviour.items():
        found[behaviour] = {}
        for module, total in own.items():
            u = total / counts[behaviour] - means[module] / len(texts)
            length = u.norm()
            scale = (totals[module] / tokens).norm() / length if float(length) > 0 else 0.0
            found[behaviour][module] = (u * scale).float()
    return found


def random_vectors(vectors: Vectors, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """Directions at random, each as long as the one in whose place it stands: a baseline."""
    draw = torch.Generator().manual_seed(seed)
    found: dict[str, dict[str, Tensor]] = {}
    for behaviour, own in vectors.items():
        found[behaviour] = {}
        for module, vector in own.items():
            drawn = torch.randn(vector.shape, generator=draw)
            found[behaviour][module] = drawn * (vector.norm() / drawn.norm())
    return found


def span_gradients(
    forward: Forward, model: nn.Module, modules: Sequence[str], text: Marked
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """For each span of a text: its behaviour, and module -> gradient [d_out] of the loss of the span's tokens alone.

    The text up to the span's end runs once; the loss is the mean cross-entropy of the span's tokens; the gradient is
    that of each module's output, averaged over the span's tokens; of a span of one token it is that at the token before
    it, which foretells it: at the token itself, which nothing of the loss depends on, it is 0. What modules compute is
    not changed, and no parameter gets a gradient. Source: attribution patching, as in arXiv 2504.02010.
    """
    for behaviour, spans in text.spans.items():
        for begin, end in spans:
            begin = max(1, begin)  # nothing comes before the first token to tell it by
            if begin >= end:
                continue
            yield behaviour, _gradients(forward, model, modules, text.tokens[:end], begin)


def _gradients(
    forward: Forward, model: nn.Module, modules: Sequence[str], tokens: Tensor, begin: int
) -> dict[str, Tensor]:
    held: dict[str, Tensor] = {}
    with _frozen(model), evaluating(model), torch.enable_grad(), observe(model, _keepers(modules, held)):
        logits = _read_logits(forward(_batch(tokens)))
        targets = tokens[begin:].to(logits.device)
        loss = functional.cross_entropy(logits[0, begin - 1 : -1].float(), targets)
        names = [name for name in modules if name in held]
        grads = torch.autograd.grad(loss, [held[name] for name in names], allow_unused=True)
    found, places = {}, slice(begin, None) if len(tokens) - begin > 1 else slice(begin - 1, begin)
    for name, grad in zip(names, grads, strict=True):
        rows = torch.zeros_like(held[name]) if grad is None else grad
        found[name] = rows.reshape(-1, rows.shape[-1])[places].float().mean(0).cpu()
    return found


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Within the block no parameter asks for gradients, and what the embeddings give does."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    embeddings: nn.Module = model.get_input_embeddings()  # type: ignore[operator]

    def ask(_: nn.Module, args: object, output: Tensor) -> Tensor:
        return output.detach().requires_grad_()

    handle = embeddings.register_forward_hook(ask)
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        handle.remove()
        for parameter in asking:
            parameter.requires_grad_(True)


def _keepers(modules: Sequence[str], held: dict[str, Tensor]) -> dict[tuple[str, Side], Callable[[Tensor], object]]:
    def keeper(name: str) -> Callable[[Tensor], object]:
        def keep(output: Tensor) -> None:
            held[name] = output

        return keep

    return {(name, "output"): keeper(name) for name in modules}


def _outputs(forward: Forward, model: nn.Module, modules: Sequence[str], tokens: Tensor) -> dict[str, Tensor]:
    """Module -> its outputs [S, d_out] for a text, float32 on the CPU."""
    held: dict[str, Tensor] = {}
    with evaluating(model), torch.no_grad(), observe(model, _keepers(modules, held)):
        forward(_batch(tokens))
    if missing := [name for name in modules if name not in held]:
        raise InputError(f"module {missing[0]!r} was not run: its outputs can't be looked at")
    return {name: out.reshape(-1, out.shape[-1]).float().cpu() for name, out in held.items()}


def _batch(tokens: Tensor) -> dict[str, Tensor]:
    return {"input_ids": tokens[None], "attention_mask": torch.ones_like(tokens)[None]}


def _read_logits(output: object) -> Tensor:
    logits = getattr(output, "prediction", output)
    if not isinstance(logits, Tensor):
        raise InputError(f"the forward pass gives {type(logits).__name__}: give one of logits")
    return logits


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value.double() if name in sums else value.double()


def relative(importance: Mapping[str, float]) -> dict[str, float]:
    """Module -> its share of the sum over all modules; equal shares where all are zero."""
    total = sum(importance.values())
    if total <= 0:
        return {name: 1 / len(importance) for name in importance}
    return {name: value / total for name, value in importance.items()}
