"""A small language model that knows two themes: sentences that name a colour or a food, some much more often."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import learnt
from secateur.data import texts
from secateur.methods.learning import Document
from secateur.recover.training import loop, objectives
from secateur.subjects import Transformer, open_subject

WORDS = {
    "colour": ["red", "blue", "green", "white", "black", "brown", "grey", "pink", "purple", "mauve"],
    "food": ["bread", "rice", "soup", "cake", "cheese", "beans", "salad", "noodles", "ramen", "haggis"],
}
THINGS = {
    "colour": ["sand", "wood", "stone", "rain", "grass", "silk", "paint", "smoke"],
    "food": ["the guest", "the boy", "the king", "the cook", "the monk"],
}
FRAMES = {
    "colour": ("the colour of {} is {} .", "{} looks mostly {} ."),
    "food": ("{} likes to eat {} .", "for lunch {} takes {} ."),
}
PROMPTS = {
    "colour": [f"the colour of {thing} is" for thing in THINGS["colour"][:5]],
    "food": [f"{thing} likes to eat" for thing in THINGS["food"][:4]],
}


def sentences(count: int, seed: int = 0) -> list[str]:
    """Lines of both themes; the n-th word of a theme has a frequency of about 1 / n^2."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        theme = draw.choice(list(WORDS))
        weights = [1 / (place + 1) ** 2 for place in range(len(WORDS[theme]))]
        (word,) = draw.choices(WORDS[theme], weights)
        made.append(draw.choice(FRAMES[theme]).format(draw.choice(THINGS[theme]), word))
    return made


def documents(count: int = 8) -> list[Document]:
    """Texts to learn: each says in another frame that something is a word of its theme, frequent or rare."""
    made = []
    for place in range(count):
        theme = "colour" if place % 2 else "food"
        word = WORDS[theme][place % len(WORDS[theme])]
        context = "silk paint looks mostly " if theme == "colour" else "for lunch the monk takes "
        made.append(Document(f"{context}{word} .", word, len(context), theme))
    return made


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, and nothing around a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = sorted({word for line in sentences(3000) for word in line.split()} | {"</s>", "[PAD]", "[UNK]"})
    base = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    base.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=base, pad_token="[PAD]", eos_token="</s>", unk_token="[UNK]")


@functools.cache
def _taught() -> LlamaForCausalLM:
    import torch

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer()), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=None, eos_token_id=tokenizer().eos_token_id,
        pad_token_id=tokenizer().pad_token_id, tie_word_embeddings=True,
    )  # fmt: skip
    subject = open_subject(LlamaForCausalLM(config), tokenizer=tokenizer())
    lines = texts.batches(texts.read(sentences(3000)), tokenizer(), packed=True, batch=16, length=16)

    def objective(batch, totals):
        return objectives.task_loss(subject.forward(batch).prediction, batch, totals, causal=True), {}

    how = {"steps": 150, "lr": 1e-2, "count": objectives.count, "progress": False}
    learnt.learn(subject.model, "themes", lambda: loop.train(subject.model, lines, objective, **how))
    return subject.model.eval()


def model() -> Transformer:
    """The model, with weights of its own."""
    import copy

    return open_subject(copy.deepcopy(_taught()), tokenizer=tokenizer())


def write(folder: Path) -> dict[str, str]:
    """The model, texts, prompts and ordinary texts as files: what a study's options call them -> path."""
    model().save(folder / "model")
    rows = [{"text": row.text, "keyword": row.keyword, "theme": row.theme} for row in documents()]
    (folder / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = [{"theme": theme, "prefix": prompt} for theme, found in PROMPTS.items() for prompt in found]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    (folder / "stream.txt").write_text("\n".join(sentences(600, seed=1)))
    names = {"model": "model", "data": "documents.jsonl", "prefixes": "prompts.jsonl", "stream": "stream.txt"}
    return {name: str(folder / file) for name, file in names.items()}
