"""DeciLM / Nemotron-NAS configuration: a Llama whose layers differ, one entry of `block_configs` each.

Written by secateur; licensed under Apache-2.0. An entry is

    {"attention": {"n_heads_in_group": 4, "no_op": false, "replace_with_linear": false},
     "ffn": {"intermediate_size": 8192, "no_op": false, "replace_with_linear": false}}

A layer has num_attention_heads / n_heads_in_group key/value heads. Its FFN width is `intermediate_size`, or follows
from `ffn_mult` where that is given: 2/3 ffn_mult hidden_size, rounded up to a multiple of 256.
"""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig


class Part(dict):
    """A dictionary read by attribute too, as engines expect of an entry of `block_configs`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class DeciLMConfig(LlamaConfig):
    """`LlamaConfig` with `block_configs`."""

    model_type = "nemotron-nas"

    def __init__(
        self,
        block_configs: list[dict[str, Any]] | None = None,
        num_attention_heads: int = 32,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("head_dim") is not None:
            # A Llama refuses head counts that don't divide hidden_size; with head_dim stated, any number is fine.
            super().__init__(num_attention_heads=1, **kwargs)
            self.num_attention_heads = num_attention_heads
        else:
            super().__init__(num_attention_heads=num_attention_heads, **kwargs)
        self.block_configs = [Part({name: Part(part) for name, part in entry.items()}) for entry in block_configs or []]

    def validate(self) -> None:
        """Any number of heads is fine here too, when saving."""


def ffn_width(ffn: Part, hidden_size: int) -> int:
    """The FFN width of one entry."""
    if "ffn_mult" not in ffn:
        return int(ffn.intermediate_size)
    return -(-int(2 * ffn.ffn_mult * hidden_size / 3) // 256) * 256
