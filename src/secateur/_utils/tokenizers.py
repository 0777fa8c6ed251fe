"""What is asked of a tokenizer: those of transformers give it, and so may one of your own. OpenAI's, by their names."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from secateur.errors import InputError, MissingExtraError

__all__ = ["Encoding", "Tokenizer", "continue_text", "count_encoded", "open_tiktoken"]


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


class Encoding(Protocol):
    """What is asked of an encoding of tiktoken."""

    def encode_ordinary_batch(self, text: list[str]) -> list[list[int]]:
        """The tokens of each text; those that look special are text, too."""
        ...


_OPENAI = re.compile(r"[a-z0-9]+k_(base|edit|harmony)|gpt-\d[\w.-]*|o\d(-[\w.-]+)?|text-embedding-3-\w+")
"""How names look that tiktoken knows, for who has not installed it."""
_PIECE = 100_000
"""Characters that tiktoken is given at once: of a million spaces it overflows its stack."""


@functools.lru_cache(maxsize=4)
def open_tiktoken(name: str) -> Encoding | None:
    """The encoding of tiktoken that is called so, "o200k_base", or that OpenAI's model of this name uses, "gpt-4o".

    None for all other names: a folder that is here, what has an owner, as ids of the Hub have, and "gpt2", which is on
    the Hub, too. Raises `MissingExtraError` without tiktoken, and `InputError` where its vocabulary can't be had.
    """
    if "/" in name or name == "gpt2" or Path(name).exists():
        return None
    try:
        import tiktoken
    except ImportError as error:
        if not _OPENAI.fullmatch(name):
            return None
        line = f"tokenizer {name!r} is OpenAI's, and needs tiktoken: pip install 'secateur[tiktoken]'"
        raise MissingExtraError(line) from error
    try:
        encoding = name if name in tiktoken.list_encoding_names() else tiktoken.encoding_name_for_model(name)
    except KeyError:
        return None
    try:
        found: Encoding = tiktoken.get_encoding(encoding)
    except Exception as error:  # of its HTTP client, the disk, or a digest that does not match
        raise InputError(
            f"tokenizer {name!r}: tiktoken downloads the vocabulary {encoding} once, and could not: be online, or put "
            "it where TIKTOKEN_CACHE_DIR says"
        ) from error
    return found


def count_encoded(encoding: Encoding, texts: Sequence[str]) -> list[int]:
    """How many tokens each text has; one of more than 100,000 characters is counted in pieces of as many."""
    pieces = [[text[at : at + _PIECE] for at in range(0, len(text), _PIECE)] for text in texts]
    found = iter(encoding.encode_ordinary_batch([piece for each in pieces for piece in each]))
    return [sum(len(next(found)) for _ in each) for each in pieces]


def continue_text(tokenizer: Tokenizer, prompt: str, text: str) -> str:
    """`text` as it goes on behind `prompt`, with a blank in front where the tokens of the prompt would change without.

    Tokenizers of whole words, and some others, leave out the first blank of what they decode.
    """
    before = list(tokenizer(prompt)["input_ids"])
    while before and before[-1] in tokenizer.all_special_ids:  # some tokenizers close every text
        before.pop()
    for blank in ("", " "):
        if list(tokenizer(prompt + blank + text)["input_ids"])[: len(before)] == before:
            return blank + text
    return text
