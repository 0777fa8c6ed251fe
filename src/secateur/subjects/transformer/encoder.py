"""Encoders: BERT, RoBERTa, DistilBERT, and sentence-transformers folders built on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secateur.subjects.transformer.subject import Transformer
from secateur.subjects.transformer.turned import passes_tokens_first, refuse_tokens_first

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from secateur.subjects.transformer.subject import Consumer, Output

__all__ = ["Encoder"]


class Encoder(Transformer):
    """A bidirectional transformer; nothing is cached."""

    kind = "encoder"

    def forward(self, batch: Mapping[str, Tensor], *, hidden: bool = False, head: bool = True) -> Output:
        """See `Transformer.forward`; states are [B, S, d], also of layers that pass them on as [S, B, d]."""
        turned = hidden and passes_tokens_first(self)
        output = super().forward(batch, hidden=hidden, head=head)
        if turned:
            output.hidden = tuple(states.transpose(0, 1) for states in output.hidden)
        return output

    def consumers(self, *, read: bool = True) -> dict[str, Consumer]:
        """See `Transformer.consumers`. Raises `UnsupportedError` where layers pass on what is `read` as [S, B, d]."""
        if read:
            refuse_tokens_first(self)
        return super().consumers(read=read)
