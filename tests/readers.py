"""Real tokenizers trained on real sentences: WordPiece with and without capitals, byte-level BPE, Unigram."""

from __future__ import annotations

import functools

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from assets import packages
from secateur.errors import DataError

__all__ = ["bpe", "sentences", "unigram", "wordpiece"]

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NAMES = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}


@functools.cache
def sentences(count: int = 3000) -> tuple[str, ...]:
    """Of the Brown corpus or, where that can't be fetched, of Python's manual."""
    try:
        return tuple(text for _, text in packages.brown()[:count])
    except DataError:
        return tuple(packages.standard_library_text()[:count])


@functools.cache
def wordpiece(
    size: int = 1500, *, capitals: bool = True, lowers: bool = False, texts: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """As BERT's, of `texts` or `sentences`. Without `capitals` it is trained on lower case; with `lowers` it turns what
    it reads to lower case.

    The trainer numbers pieces such as ##a in an order that chance gives, and equally frequent pairs by these numbers:
    here they are numbered before, so that every training gives the same vocabulary.
    """
    base = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    if lowers:
        base.normalizer = normalizers.BertNormalizer(lowercase=True)
    base.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    read = [text if capitals else text.lower() for text in texts or sentences()]
    letters = sorted({letter for text in read for letter in text if not letter.isspace()})
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=[*SPECIAL, *(f"##{letter}" for letter in letters)], show_progress=False
    )
    base.train_from_iterator(read, trainer)
    plain = Tokenizer(models.WordPiece(base.get_vocab(), unk_token="[UNK]"))
    plain.normalizer, plain.pre_tokenizer = base.normalizer, base.pre_tokenizer
    return _wrapped(plain)


@functools.cache
def bpe(size: int = 1200) -> PreTrainedTokenizerFast:
    """As RoBERTa's: bytes, and the space before a word in its first token."""
    base = Tokenizer(models.BPE())
    base.pre_tokenizer, base.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    base.train_from_iterator(sentences(), trainer)
    return _wrapped(base)


@functools.cache
def unigram(size: int = 1500) -> PreTrainedTokenizerFast:
    """As XLM-RoBERTa's: pieces with "▁" where a word begins."""
    base = Tokenizer(models.Unigram())
    base.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False)
    base.train_from_iterator(sentences(), trainer)
    return _wrapped(base)


def _wrapped(base: Tokenizer) -> PreTrainedTokenizerFast:
    ends = [("[CLS]", base.token_to_id("[CLS]")), ("[SEP]", base.token_to_id("[SEP]"))]
    base.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=base, **NAMES)
