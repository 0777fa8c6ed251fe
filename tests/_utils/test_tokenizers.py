"""The tokenizer protocol asks for nothing that transformers' tokenizers lack."""

from __future__ import annotations

import inspect

from transformers import PreTrainedTokenizerFast

import tiny
from secateur._utils.tokenizers import Tokenizer, continue_text


def test_tokenizers_of_transformers_give_all_that_is_asked() -> None:
    methods = {name for name, value in vars(Tokenizer).items() if inspect.isfunction(value) and name != "__init__"}
    methods -= {"__subclasshook__", "_no_init_or_replace_init"}
    assert {"__call__", "get_vocab", "decode"} <= methods
    assert not [name for name in methods if not callable(getattr(PreTrainedTokenizerFast, name, None))]
    # transformers makes attributes of special tokens as they are asked for.
    named = {name for name in Tokenizer.__annotations__ if not name.endswith("_token_id")}
    assert not [name for name in named if not hasattr(PreTrainedTokenizerFast, name)]


def test_what_a_tokenizer_decodes_goes_on_behind_its_prompt_as_words_of_its_own() -> None:
    words = tiny.tokenizer()
    assert continue_text(words, "the old tree", "grows") == " grows"
    assert continue_text(words, "the old tree\n", "grows") == "grows"
    assert continue_text(tiny.letters(), "the old tree", "grows") == "grows", "its letters are its own"
