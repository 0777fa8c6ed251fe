"""Decoders: GPT-2 and the Llama-type models, with their key/value cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from transformers import DynamicCache

from secateur.subjects.transformer import costs, families
from secateur.subjects.transformer.layout import Layout
from secateur.subjects.transformer.logits import find_scale
from secateur.subjects.transformer.subject import Output, Transformer
from secateur.vocabulary import Term

__all__ = ["Decoder"]


class Decoder(Transformer):
    """A causal transformer; generation caches keys and values."""

    kind = "decoder"

    def forward(self, batch: Mapping[str, Tensor], *, hidden: bool = False, head: bool = True) -> Output:
        """See `Transformer.forward`; without the head, states are scaled as the model scales its logits.

        Where something else than a factor stands between head and logits, it runs as a whole. Families that are written
        by hand have nothing there.
        """
        how = {"hidden": True} if hidden else {}
        if head or not self.causal:
            return super().forward(batch, **how)
        if families.find(self.family.model_type):
            return super().forward(batch, **how, head=False)
        looked: tuple[int, float | None] | None = vars(self).get("_looked")
        known = looked is not None and looked[0] == id(self.model)
        if known and looked == (id(self.model), None):
            return super().forward(batch, **how)
        output = super().forward(batch, **how, head=False)
        if output.head is None or isinstance(output.prediction, FakeTensor) or output.prediction.is_meta:
            return output
        if looked is None or not known:
            looked = self._looked = id(self.model), find_scale(self.model)
        scale = looked[1]
        if scale is None:
            return super().forward(batch, **how)
        if scale != 1.0:
            output.prediction = output.prediction * scale
        return output

    def _cache(self, layout: Layout, batch: int, length: int) -> Iterator[Term]:
        """Bytes of keys and values after `length` tokens: 2 B T head_dim per KV head, T at most window - 1.

        Where all heads share one latent, its numbers are cached instead. A layer that has lost its attention keeps a
        mark of 2 B T numbers, by which the cache knows its length. The states of mixers, which do not grow with the
        tokens, are a measure of their own, state_cache (`costs.state_terms`).
        """
        yield from costs.state_terms(layout, batch, layout.model.dtype.itemsize)
        layers = DynamicCache(config=self.model.config).layers
        for index, (width, layer) in enumerate(zip(layout.widths, layers, strict=True)):
            if "attention" not in layout.blocks(index):
                yield Term("kv_cache", 0.0, units=(("layers", index),))
                continue
            window = getattr(layer, "sliding_window", None)
            tokens = min(length, window - 1) if window else length
            mark = 2.0 * batch * tokens * self.model.dtype.itemsize
            with_layer = (("layers", index),)
            yield Term("kv_cache", mark, units=with_layer)
            if width.heads:
                heads = f"layers.{index}.heads"
                site = f"layers.{index}.kv_groups" if width.has_groups else heads
                yield Term("kv_cache", -mark, present=(heads,), units=with_layer)
                if layout.latent:
                    yield Term("kv_cache", mark / 2 * layout.latent, (), (heads,), with_layer)
                elif layout.cached:
                    yield Term("kv_cache", mark * layout.find_head_dim(index) * layout.cached, (), (heads,), with_layer)
                else:
                    yield Term("kv_cache", mark * layout.find_head_dim(index), (site,), (heads,), with_layer)
