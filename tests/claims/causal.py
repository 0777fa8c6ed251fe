"""A reader that is a causal language model, trained from fresh weights to answer from facts that stand before it.

Things of UMLS that are held out stand in no fact that it is trained on. Where it is trained with facts before it, their
things have names that are drawn anew each time, of the graph's words: it has to read. Relations are one word each, as
UMLS writes them, and what is asked for is the object of a fact: so small a model learns in minutes to go on as a fact
before it does, and no more.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from claims import graphs, lab
from claims.graphs import Asked, Triple, World
from secateur.recover.training import loop, objectives
from secateur.subjects import Transformer

SHAPE: dict[str, Any] = {
    **lab.SHAPE,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
HELD = 45
"""Of UMLS' 135 things."""
STEPS, BATCH, LR = 2400, 32, 3e-3
WINDOW = 64
"""Tokens of MiniLM that its context has: about as many facts as in what it is trained on."""
FEW = 5
"""Answers to choose from, and facts beside the one that answers, at most."""


def held_out(world: World, seed: int) -> frozenset[str]:
    """Things that training does not see."""
    return frozenset(random.Random(seed).sample(sorted(world.near), HELD))


def spelt(world: World, fact: Triple) -> str:
    """A fact with its relation in one word."""
    return f"{world.words[fact[0]]} {fact[1]} {world.words[fact[2]]}"


def asking(world: World, thing: str, relation: str) -> str:
    """What the relation leads to from a thing."""
    return f"{world.words[thing]} {relation} what?"


# ------------------------------------------------------------------------------------------------------------ training


def prompt(question: str, facts: Sequence[str]) -> str:
    """What stands before an answer."""
    asked = f"Question: {question} Answer:"
    return f"Context: {' . '.join(facts)} . {asked}" if facts else asked


def strings(world: World, held: frozenset[str], seed: int, context: bool, count: int) -> list[tuple[str, str]]:
    """Prompts and answers: of facts of things that are not held out; after some about the same thing, if `context`."""
    draw, found = random.Random(f"{seed} {context}"), list[tuple[str, str]]()
    known = [fact for fact in world.triples if not held & {fact[0], fact[2]}]
    near = {thing: [fact for fact in facts if not held & {fact[0], fact[2]}] for thing, facts in world.near.items()}
    spoken = sorted({word for thing in world.near for word in world.words[thing].split()})
    for _ in range(count):
        fact, said, before = draw.choice(known), world, list[Triple]()
        if context:
            before = sorted({fact, *draw.sample(near[fact[0]], min(FEW, len(near[fact[0]])))})
            draw.shuffle(before)
            things = sorted({end for s, _, o in before for end in (s, o)})
            names = {one: " ".join(draw.sample(spoken, draw.randint(1, 3))) for one in things}
            said = replace(world, words={**world.words, **names})
        told = [spelt(said, one) for one in before]
        found.append((prompt(asking(said, *fact[:2]), told), spelt(said, fact)))
    return found


def words(world: World, sentences: Sequence[str]) -> Any:
    """A tokenizer whose tokens are the words of the graph and of the strings."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    base = Tokenizer(models.WordLevel(unk_token="<|unknown|>"))
    base.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["<|end|>", "<|unknown|>"], show_progress=False)
    base.train_from_iterator([*sentences, *world.words.values(), *(fact[1] for fact in world.triples)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=base, eos_token="<|end|>", pad_token="<|end|>")


def batched(tokenizer: Any, rows: Sequence[tuple[str, str]]) -> dict[str, torch.Tensor]:
    """input_ids [rows, longest], filled up behind, and labels of their answers alone, as `answer_loss` wants them."""
    begun, ends = (tokenizer(list(texts))["input_ids"] for texts in zip(*rows, strict=True))
    ids = [[*one, *other, tokenizer.eos_token_id] for one, other in zip(begun, ends, strict=True)]
    longest = max(map(len, ids))
    labels = [
        [*[-100] * (len(one) - 1), *row[len(one) :], *[-100] * (longest - len(row) + 1)]
        for one, row in zip(begun, ids, strict=True)
    ]
    filled = [[*row, *[tokenizer.pad_token_id] * (longest - len(row))] for row in ids]
    return {"input_ids": torch.tensor(filled), "labels": torch.tensor(labels)}


def reader(world: World, held: frozenset[str], seed: int) -> Transformer:
    """A small Llama that has learned to answer, with facts before it and without, in turn."""
    parts = [strings(world, held, seed, context, STEPS // 2 * BATCH) for context in (True, False)]
    rows = [part[start : start + BATCH] for start in range(0, len(parts[0]), BATCH) for part in parts]
    tokenizer = words(world, [text for part in parts for row in part for text in row])
    subject = lab.untaught("Llama", SHAPE, tokenizer, seed)
    objective, batches = partial(objectives.answer_loss, subject.model), [batched(tokenizer, some) for some in rows]
    loop.train(
        subject.model,
        batches,
        objective,
        steps=STEPS,
        lr=LR,
        seed=seed,
        count=objectives.count_answers,
        progress=False,
    )
    return subject


# ------------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Choice:
    """A question of `graphs.single`, and facts to choose from: the first is right, four are true of other things."""

    asked: Asked
    facts: tuple[Triple, ...]


def choices(world: World, held: frozenset[str], seed: int) -> list[Choice]:
    """Questions on what a relation leads to from one thing that is held out."""
    draw, found = random.Random(3000 + seed), list[Choice]()
    for asked in graphs.single(graphs.umls, seed, 1000):
        (thing,), facts = asked.names, sorted(asked.gold)
        relation = facts[0][1]
        if thing not in held or any(fact[0] != thing for fact in facts):
            continue
        known = {o for s, p, o in world.triples if (s, p) == (thing, relation)}
        wrong = sorted({o for _, p, o in world.triples if p == relation} - known - {thing})
        if len(wrong) >= FEW - 1:
            others = [(thing, relation, other) for other in draw.sample(wrong, FEW - 1)]
            found.append(Choice(asked, (draw.choice(facts), *others)))
    return found


@torch.no_grad()
def right(subject: Transformer, world: World, choice: Choice, facts: Sequence[str]) -> bool:
    """Whether the right fact is the likeliest after the question and these facts (sentences of the graph)."""
    known = {world.said(fact): fact for fact in world.triples}
    told = [spelt(world, known[fact]) for fact in facts]
    begun = subject.tokenizer(prompt(asking(world, *choice.facts[0][:2]), told))["input_ids"]
    ends = [subject.tokenizer(spelt(world, fact))["input_ids"] for fact in choice.facts]
    longest = max(map(len, ends))
    ids = torch.tensor([[*begun, *end, *[subject.tokenizer.pad_token_id] * (longest - len(end))] for end in ends])
    logits = subject.forward({"input_ids": ids, "attention_mask": torch.ones_like(ids)}).prediction
    spoken = torch.log_softmax(logits[:, len(begun) - 1 : -1].float(), -1).gather(-1, ids[:, len(begun) :, None])
    sums = [float(row[: len(end), 0].sum()) for row, end in zip(spoken, ends, strict=True)]
    return max(range(len(sums)), key=sums.__getitem__) == 0
