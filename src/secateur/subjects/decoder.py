"""Decoders: GPT-2 and the Llama-type models, with their key/value cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers import DynamicCache

from secateur.subjects.transformer import Transformer, Widths

__all__ = ["Decoder"]


class Decoder(Transformer):
    """A causal transformer; generation caches keys and values."""

    kind = "decoder"

    def _cache(
        self, widths: list[Widths], batch: int, length: int
    ) -> Iterator[tuple[str, float, list[str], dict[str, Any]]]:
        """Bytes of keys and values after `length` tokens: 2 B T head_dim per KV head, T at most window - 1.

        A layer without attention keeps a mark of 2 B T numbers, by which the cache knows its length.
        """
        layers = DynamicCache(config=self.model.config).layers
        size = self.model.dtype.itemsize
        for index, (width, layer) in enumerate(zip(widths, layers, strict=True)):
            window = getattr(layer, "sliding_window", None)
            tokens = min(length, window - 1) if window else length
            mark = 2.0 * batch * tokens * size
            with_layer = {"units": (("layers", index),)}
            yield "kv_cache", mark, [], with_layer
            if width.heads:
                heads = f"layers.{index}.heads"
                site = f"layers.{index}.kv_groups" if width.kv < width.heads else heads
                present = with_layer | {"present": (heads,)}
                yield "kv_cache", -mark, [], present
                yield "kv_cache", mark * self.head_dim, [site], present
