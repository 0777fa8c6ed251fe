"""What is asked of a tokenizer: those of transformers give it, and so may one of your own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Tokenizer"]


class Tokenizer(Protocol):
    """From texts to token ids and back, as transformers' tokenizers do it; no use asks for all of this."""

    pad_token_id: int | None
    eos_token_id: int | None
    sep_token_id: int | None
    mask_token_id: int | None
    all_special_tokens: Sequence[str]
    all_special_ids: Sequence[int]
    model_input_names: Sequence[str]

    def __call__(self, text: str | Sequence[str], /, **options: object) -> Mapping[str, Any]:
        """The key "input_ids" and what the options ask for: a list for one text, lists for several, or tensors."""
        ...

    def __len__(self) -> int:
        """Tokens, those included that were added."""
        ...

    def get_vocab(self) -> Mapping[str, int]:
        """Token -> id."""
        ...

    def decode(self, ids: Sequence[int], /, **options: object) -> str:
        """The text of some tokens."""
        ...

    def batch_decode(self, ids: Sequence[Sequence[int]], /, **options: object) -> Sequence[str]:
        """The texts of several."""
        ...

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]], /, **options: object) -> list[int]:
        """The tokens of a conversation."""
        ...

    def save_pretrained(self, folder: str | Path, /) -> object:
        """Write its files into a folder."""
        ...
