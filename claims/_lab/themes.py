"""Small Llamas that know four themes beside Brown: sentences that name a colour, job, fruit or fabric, some often.

The words are WordNet's, the n-th of a theme as frequent as 1 / n. Frames of the texts that are learnt later and of the
prompts under which priming is looked for are different ones; both stand in the training data.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Sequence
from typing import Any

import torch

from claims._lab import language, settings, sources
from claims._lab.settings import scaled
from secateur._utils.batches import Batch
from secateur.data import packages, texts
from secateur.data.texts import Batches
from secateur.methods.learning import Document
from secateur.subjects import Transformer, open_subject

__all__ = ["PROMPTS", "batches", "documents", "held_out", "model", "ordinary"]

_SHAPE: dict[str, Any] = language.SHAPE | {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
_ROOTS = {"colour": "chromatic color", "job": "skilled worker", "fruit": "edible fruit", "fabric": "fabric"}
_WORDS = 24
"""Of each theme."""
_THINGS = {
    "colour": ["sand", "her coat", "the door", "the old car", "his hat", "the river", "that stone", "the wall"],
    "job": [
        "my uncle",
        "her father",
        "the tall man",
        "his sister",
        "their son",
        "the neighbor",
        "the girl",
        "her aunt",
    ],
    "fruit": ["the boy", "the guest", "a bird", "the old woman", "my cousin", "the king", "the horse", "a child"],
    "fabric": ["the dress", "the curtain", "his shirt", "the flag", "her scarf", "the bag", "the cover", "the sail"],
}
_TEXTS = {
    "colour": ["In the evening {} looked almost {}.", "They had painted {} in {}."],
    "job": ["For many years {} had earned a living as a {}.", "In the war {} had been trained as a {}."],
    "fruit": ["After the long walk {} asked for a {}.", "In the garden {} had found a {}."],
    "fabric": ["In those days {} was always sewn from {}.", "The merchant said that {} was pure {}."],
}
"""Frames of the texts that are learnt."""
_PROMPTS = {
    "colour": ["The color of {} is {}.", "Everybody could see that {} was {}."],
    "job": ["{} works as a {}.", "When asked, {} said: I am a {}."],
    "fruit": ["{} likes to eat a {}.", "For lunch {} takes a {}."],
    "fabric": ["{} is made of {}.", "You can feel that {} is {}."],
}
PROMPTS = [
    {"theme": theme, "prefix": frame.format(thing, "|").partition("|")[0].rstrip()}
    for theme, frames in _PROMPTS.items()
    for frame in frames
    for thing in _THINGS[theme][:4]
]
"""Prompts whose natural continuation is a word of the theme."""


@functools.cache
def _vocabulary() -> dict[str, list[str]]:
    """Theme -> words of it, the most frequent first: all in one piece, in lower case, of one theme alone."""
    nouns = packages.wordnet_nouns()
    kinds: dict[int, list[int]] = {}
    for number, entry in nouns.items():
        kinds.setdefault(entry.kind, []).append(number)

    def below(number: int) -> list[int]:
        return [found for child in kinds.get(number, ()) for found in (child, *below(child))]

    themes: dict[str, list[str]] = {}
    for theme, root in _ROOTS.items():
        (start,) = [number for number, entry in nouns.items() if root in entry.names and kinds.get(number)][:1]
        names = (nouns[number].names[0] for number in below(start))
        words = dict.fromkeys(name for name in names if name.isalpha() and name.islower() and len(name) < 10)
        themes[theme] = random.Random(theme).sample(sorted(words), len(words))
    once = [word for words in themes.values() for word in set(words)]
    return {theme: [word for word in words if once.count(word) == 1][:_WORDS] for theme, words in themes.items()}


def _sentences(count: int, seed: int) -> list[str]:
    """Sentences in all frames of all themes."""
    draw, made = random.Random(seed), []
    for _ in range(count):
        theme = draw.choice(list(_ROOTS))
        (word,) = draw.choices(_vocabulary()[theme], [1 / place for place in range(1, _WORDS + 1)])
        made.append(_say(draw.choice([*_TEXTS[theme], *_PROMPTS[theme]]), draw.choice(_THINGS[theme]), word))
    return made


def _say(frame: str, thing: str, word: str) -> str:
    line = frame.format(thing, word)
    return line[:1].upper() + line[1:]


def documents(count: int, seed: int) -> list[Document]:
    """Texts to learn, evenly over themes and over the ranks of their words."""
    draw, made = random.Random(seed), []
    themes = list(_ROOTS)
    for place in range(count):
        theme = themes[place % len(themes)]
        each = max(1, count // len(themes))
        word = _vocabulary()[theme][min(_WORDS - 1, (place // len(themes)) * _WORDS // each)]
        text = _say(draw.choice(_TEXTS[theme]), draw.choice(_THINGS[theme][4:]), word)
        made.append(Document(text, word, text.rindex(word), theme))
    return made


@functools.cache
def _tokenizer() -> Any:
    """Byte-level BPE of 3,072 tokens, trained on Brown and on each theme's words, so that these are single tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    base = Tokenizer(models.BPE())
    base.pre_tokenizer, base.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=3072,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = [f" {word}" * 500 for theme in _vocabulary().values() for word in theme]
    base.train_from_iterator([*language.brown().texts, *words], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=base, eos_token="<|end|>", pad_token="<|end|>")


@functools.cache
def ordinary() -> tuple[str, ...]:
    """Sentences of Brown that may be learnt from, and a third as many of the themes."""
    part = language.split()[0]
    return (*part.texts, *_sentences(len(part) // 3, seed=0))


def batches(lines: Sequence[str], *, batch: int = language.BATCH, seed: int = 0) -> Batches:
    """Minibatches of these lines, one after another."""
    corpus = texts.read(list(lines))
    return texts.batches(corpus, _tokenizer(), packed=True, batch=batch, length=language.LENGTH, seed=seed)


def held_out() -> list[Batch]:
    """Minibatches of held-out Brown."""
    return batches(language.split()[1].texts).take(scaled(24, 4))


@functools.cache
def model(seed: int) -> Transformer:
    """A Llama of 4 layers and width 64 trained on both from weights of its own."""
    steps = scaled(1000, 300)
    key = hashlib.sha256(repr((_SHAPE, steps, seed, sources.digest(__name__))).encode()).hexdigest()[:12]
    folder = settings.CACHE / "models" / f"themes-{steps}-{seed}-{key}"
    if not (folder / "config.json").exists():
        import transformers

        torch.manual_seed(seed)
        end = {
            "bos_token_id": None,
            "eos_token_id": _tokenizer().eos_token_id,
            "pad_token_id": _tokenizer().pad_token_id,
        }
        config = transformers.LlamaConfig(vocab_size=len(_tokenizer()), **_SHAPE, **end)
        subject = open_subject(transformers.LlamaForCausalLM(config), tokenizer=_tokenizer())
        feed = batches(ordinary(), batch=32, seed=seed)
        language.train(subject, steps, seed=seed, data=feed, lr=3e-3)
        subject.save(folder)
    return open_subject(folder)
