"""The tokenizer protocol asks for nothing that transformers' tokenizers lack."""

from __future__ import annotations

import inspect

from transformers import PreTrainedTokenizerFast

from secateur._utils.tokenizers import Tokenizer


def test_tokenizers_of_transformers_give_all_that_is_asked() -> None:
    methods = {name for name, value in vars(Tokenizer).items() if inspect.isfunction(value) and name != "__init__"}
    methods -= {"__subclasshook__", "_no_init_or_replace_init"}
    assert {"__call__", "get_vocab", "decode"} <= methods
    assert not [name for name in methods if not callable(getattr(PreTrainedTokenizerFast, name, None))]
    # transformers makes attributes of special tokens as they are asked for.
    named = {name for name in Tokenizer.__annotations__ if not name.endswith("_token_id")}
    assert not [name for name in named if not hasattr(PreTrainedTokenizerFast, name)]
