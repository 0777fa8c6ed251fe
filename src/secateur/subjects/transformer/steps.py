"""What is timed of a transformer: a pass over whole sequences, or one more token behind a cache of keys and values.

Modules from tensors to tensors for compilers and exporters, and a step of decoding for PyTorch as it is.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from secateur.errors import UnsupportedError
from secateur.formats.reload import Removed
from secateur.subjects.transformer import saving
from secateur.subjects.transformer.subject import Transformer, count_positions

__all__ = [
    "CachedPass",
    "CachedStep",
    "ForwardPass",
    "TextNetwork",
    "check_decodes",
    "decode",
    "flatten_step",
    "name_class",
]


class TextNetwork:
    """A model of transformers that reads texts and fits no table of a family: what passes ask of a subject, alone.

    Raises `UnsupportedError` for one that takes no mask, or gives something else than logits or last states of tokens.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.head: list[nn.Module] = []
        accepted = inspect.signature(model.forward).parameters
        self.kind = "decoder" if "use_cache" in accepted else "encoder"
        example = self.example(2, 8)
        if "attention_mask" not in accepted or model.config.is_encoder_decoder:
            raise UnsupportedError(f"a {type(model).__name__} does not read tokens and their mask alone")
        with torch.no_grad():
            given = model(**example, **({"use_cache": False} if self.kind == "decoder" else {}))
        outputs = {"logits": "logits", "last_hidden_state": "states"}
        main = [name for name in outputs if isinstance(getattr(given, name, None), Tensor)]
        if not main:
            raise UnsupportedError(f"a {type(model).__name__} gives neither logits nor last hidden states")
        self.output = outputs[main[0]]

    @property
    def causal(self) -> bool:
        """Whether it is a language model of the next token."""
        return self.output == "logits" and self.model.can_generate()

    def example(self, batch: int, length: int) -> dict[str, Tensor]:
        """Random tokens [B, S] and their mask, without padding."""
        tokens = torch.randint(3, self.model.config.get_text_config().vocab_size, (batch, length))
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


class ForwardPass(nn.Module):
    """A subject's forward pass over two tensors, with named outputs."""

    def __init__(self, subject: Transformer | TextNetwork) -> None:
        super().__init__()
        self.model = subject.model
        self.head = nn.ModuleList(subject.head)
        self.output = subject.output
        self.options = {"use_cache": False} if subject.kind == "decoder" else {}

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """[B, S] twice -> the named outputs."""
        result = self.model(input_ids=input_ids, attention_mask=attention_mask, **self.options)
        if self.output == "logits":
            return (result.logits,)
        states = result.last_hidden_state
        if self.output == "states":
            return (states,)
        features: dict[str, Any] = {"token_embeddings": states, "attention_mask": attention_mask}
        for module in self.head:
            features = module(features)
        return states, features["sentence_embedding"]


class CachedStep(nn.Module):
    """One more token of each sequence, with the cache as plain tensors on both sides, as exporters need it.

    forward(input_ids [B, 1], position_ids [B, 1], key of layer 0, value of layer 0, key of layer 1, ...) gives the
    prediction [B, 1, ...] and as many tensors of the cache, which now hold the new token.
    """

    def __init__(self, subject: Transformer) -> None:
        super().__init__()
        self.model = subject.model
        self.call = _cached_call(subject.model)

    def forward(self, input_ids: Tensor, position_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """The prediction, and the cache behind the new token."""
        cache = DynamicCache(config=self.model.config)
        for index, (key, value) in enumerate(zip(past[::2], past[1::2], strict=True)):
            cache.update(key, value, index)
        states = self.call(input_ids, position_ids, cache)
        return (states, *(tensor for layer in cache.layers for tensor in (layer.keys, layer.values)))


class CachedPass(nn.Module):
    """Tokens behind a cache of any length, none too, with padding: what exporters write of a decoder that generates.

    forward(input_ids [B, S], attention_mask [B, P + S], position_ids [B, S], key [B, KV, P, D] and value of each layer
    that has them) gives the logits [B, S, V] and keys and values of all P + S tokens. A layer that has lost its
    attention has none: the marks by which it counts tokens are made as long as the others' keys. Nothing falls out of a
    sliding window's cache: the model's own mask hides it.

    Raises `UnsupportedError` where the model keeps other states than keys and values.
    """

    def __init__(self, subject: Transformer | TextNetwork) -> None:
        super().__init__()
        self.model = subject.model
        self.call = _cached_call(subject.model)
        ids, _ = _last_token(subject, 1, 1)
        cache = DynamicCache(config=subject.model.config)
        with torch.no_grad():
            self.call(ids, torch.arange(2)[None], cache)
        plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
        filled = [(index, layer) for index, layer in enumerate(cache.layers) if plain and layer.is_initialized]
        if not filled:
            raise UnsupportedError(f"a {name_class(subject.model)} keeps other states than keys and values")
        lost = {module.layer for module in subject.model.modules() if isinstance(module, Removed)}
        self.marks = [index for index, _ in filled if index in lost]
        if len(self.marks) == len(filled):
            self.marks = []  # nothing else would tell how many tokens there were
        filled = [(index, layer) for index, layer in filled if index not in self.marks]
        self.layers = [index for index, _ in filled]
        self.sizes = [
            (tensor.shape[1], tensor.shape[3]) for _, layer in filled for tensor in (layer.keys, layer.values)
        ]
        """Heads and width of each tensor of the cache."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """The logits, and the cache behind the tokens."""
        cache = DynamicCache()
        held = dict(zip(self.layers, zip(past[::2], past[1::2], strict=True), strict=True))
        mark = past[0].new_zeros(past[0].shape[0], 1, past[0].shape[2], 1)
        for index in sorted([*self.layers, *self.marks]):
            cache.update(*held.get(index, (mark, mark)), index)
        logits = self.call(input_ids, position_ids, cache, attention_mask)
        layers = [cache.layers[index] for index in self.layers]
        return (logits, *(tensor for layer in layers for tensor in (layer.keys, layer.values)))

    def make_inputs(self, subject: Transformer | TextNetwork, batch: int, past: int, length: int) -> tuple[Tensor, ...]:
        """What `forward` takes, of random tokens; the last sequence is shorter and padded on the left."""
        ids = subject.example(batch, past + length)["input_ids"]
        mask = torch.ones_like(ids)
        mask[-1, : (past + length) // 3 if batch > 1 else 0] = 0
        places = (mask.cumsum(1) - 1).clamp(min=0)
        cache = tuple(torch.zeros(batch, heads, 0, width) for heads, width in self.sizes)
        if past:
            with torch.no_grad():
                cache = self(ids[:, :past], mask[:, :past], places[:, :past], *cache)[1:]
        return ids[:, past:], mask, places[:, past:], *cache


def name_class(model: nn.Module) -> str:
    """The name of a model's class as transformers has it, or else its own."""
    try:
        return saving.plain_class(type(model)).__name__
    except UnsupportedError:
        return type(model).__name__


def check_decodes(subject: Transformer, length: int) -> None:
    """Raise `UnsupportedError` for a model without a cache of keys and values, or of `length` positions only."""
    if not subject.decodes:
        raise UnsupportedError(
            f"a {type(subject.model).__name__} reads whole texts and has no cache: time it with environment=prefill"
        )
    most = count_positions(subject.model)
    if most is not None and length >= most:
        raise UnsupportedError(
            f"this {type(subject.model).__name__} has {most} positions, and the next token behind a cache of {length} "
            f"has none: give a length of at most {most - 1}"
        )


def decode(subject: Transformer, batch: int, length: int, *, static: bool = False) -> Callable[[], Tensor]:
    """A step of decoding: `batch` sequences of one token each, behind a cache of `length` tokens; [batch, 1, ...].

    Every call is the same step again. static: with a cache of a fixed size that is written in place, as
    torch.compile wants it; otherwise the cache grows by the token, as in `generate`, and the call before is forgotten.
    A static window that is full moves on with each call, at the same cost.
    """
    check_decodes(subject, length)
    config, call = subject.model.config, _cached_call(subject.model)
    ids, places = _last_token(subject, batch, length)
    last = ids[:, length:]
    if static:
        fixed = _fill(subject, StaticCache(config=config, max_cache_len=length + 1), ids)

        def write_step() -> Tensor:
            prediction = call(last, places, fixed)
            for layer in fixed.layers:  # the next call writes to the same place
                layer.cumulative_length.sub_(1)
                if hasattr(layer, "cumulative_length_int"):
                    layer.cumulative_length_int -= 1
            return prediction

        return write_step
    filled = _fill(subject, DynamicCache(config=config), ids)

    def grow_step() -> Tensor:
        cache = copy.copy(filled)
        cache.layers = [copy.copy(layer) for layer in filled.layers]
        return call(last, places, cache)

    return grow_step


def flatten_step(subject: Transformer, batch: int, length: int) -> tuple[CachedStep, tuple[Tensor, ...]]:
    """The step of `decode` as a module from tensors to tensors, and the tensors that it takes."""
    check_decodes(subject, length)
    ids, places = _last_token(subject, batch, length)
    layers = _fill(subject, DynamicCache(config=subject.model.config), ids).layers
    past = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
    return CachedStep(subject).eval(), (ids[:, length:].contiguous(), places, *past)


def _last_token(subject: Transformer | TextNetwork, batch: int, length: int) -> tuple[Tensor, Tensor]:
    """(token ids [batch, length + 1], the position [batch, 1] of the last of them)."""
    ids = subject.example(batch, length + 1)["input_ids"]
    return ids, torch.full((batch, 1), length, device=ids.device)


@torch.no_grad()
def _fill(subject: Transformer, cache: Cache, ids: Tensor) -> Cache:
    """`cache` with keys and values of all tokens but the last."""
    before = ids[:, :-1]
    places = torch.arange(before.shape[1], device=ids.device).expand_as(before)
    _cached_call(subject.model.base_model)(before, places, cache)
    return cache


def _cached_call(model: nn.Module) -> Callable[..., Tensor]:
    """(ids [B, S], their positions [B, S], a cache, which takes them in, a mask of all tokens) -> the prediction."""
    accepted = inspect.signature(model.forward).parameters
    name = "cache" if "cache" in accepted else "past_key_values"  # what older releases call it

    def call(ids: Tensor, places: Tensor, cache: Cache, mask: Tensor | None = None) -> Tensor:
        result = model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=True, **{name: cache})
        states: Tensor = result.logits if hasattr(result, "logits") else result.last_hidden_state
        return states

    return call
