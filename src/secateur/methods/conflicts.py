"""Conflict prompts: made of facts, tokenised, filtered to what a model knows, and the heads and sources behind answers.

The scores and measures are `score.patching`, `measure.usage` and `measure.likelihood`; here they meet a model.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from secateur._utils import devices
from secateur._utils.modes import evaluating
from secateur._utils.tokenizers import Tokenizer
from secateur.data import texts
from secateur.data.conflicts import KINDS, Conflict, Conflicts, Facts
from secateur.errors import DataError, InputError, UnsupportedError
from secateur.measure import likelihood, usage
from secateur.score import patching
from secateur.subjects import Transformer
from secateur.subjects.transformer import knockouts
from secateur.subjects.transformer.heads import Frozen, Head, Replay, find_outputs, silence_heads
from secateur.subjects.transformer.subject import count_positions
from secateur.vocabulary import Figure

__all__ = [
    "INSTRUCTIONS", "Corruption", "Item", "Match", "ablate", "build", "encode", "gradients", "instruct", "keep_known",
    "knock_out", "log_answers", "rates", "score",
]  # fmt: skip

INSTRUCTIONS = {
    "context": "Answer by what the text says, even if you know otherwise.",
    "memory": "Answer by what you know, even if the text says otherwise.",
}
"""What to trust -> the instruction that stands before a prompt: the baseline by prompting. Departure: the paper's words
could not be read."""

Match: TypeAlias = Literal["first", "full"]
Corruption: TypeAlias = Literal["swap", "noise"]
Table = dict[str, Tensor]
"""layers.i.heads -> [H], one number for each head."""

_ROWS = 256
"""Rows of a replay: heads times prompts."""
_PROMPTS, _TOKENS = 32, 4096
"""Prompts of a pass at most, and tokens that they may have together: long ones go one by one."""
_WORDS = 4096
"""Words of the vocabulary by which the spread of the embeddings is told."""
_TRIES = 64
"""Pairs of another subject and another attribute among which a corrupted prompt of equal length is looked for."""
_NO_BLANK_BEHIND = re.compile(r"""[(\[{<"'`/$#@_=*~-]|[\u00ab\u2018\u201c\u201e\u2013\u2014]""")
"""Opening brackets and quotes, signs and dashes."""
_NO_BLANKS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u303f\u3040-\ua4cf\uf900-\ufaff\uff00-\uffef]")
"""Scripts without blanks between words: Thai, Lao, Burmese, Khmer, Chinese and Japanese, and their punctuation."""
_NOISE = 3.0
"""Of embedding noise, in standard deviations of the embeddings: Meng et al. 2022 (arXiv 2202.05262), section 2.1."""


@dataclass(frozen=True, slots=True)
class Item:
    """A conflict prompt as token ids; `corrupted` is as long as `prompt`, or empty, `plain` may be empty, too."""

    prompt: tuple[int, ...]
    memory: tuple[int, ...]
    context: tuple[int, ...]
    corrupted: tuple[int, ...]
    plain: tuple[int, ...]


# ------------------------------------------------------------------------------------------------------------ prompts


def build(
    facts: Facts,
    tokenizer: Tokenizer,
    *,
    kind: str = "substitution",
    relation: str = "",
    seed: int = 0,
    prefix: str = "",
) -> Conflicts:
    """One conflict prompt for each fact and template of its relation.

    The false attribute is another object of the relation, which is true of the subject in no row. Another subject and a
    third object corrupt the prompt; the two have as many tokens, in their places, as those they stand for. Facts for
    which the table has no such words are left out, and counted in the notes.

    kind: of the conflict; see `data.conflicts.KINDS`. A coherent one states the falsehood by every template. prefix:
    what stands before the context, such as an instruction to answer from it; the question alone is asked without.

    Raises `DataError` where no fact is left, `InputError` for an unknown kind or relation, or a coherent conflict where
    a relation has one template.
    """
    if kind not in KINDS:
        raise InputError(f"kind={kind!r}: give {' or '.join(KINDS)}")
    if relation and relation not in facts.templates:
        raise InputError(f"relation={relation!r}: {facts.name} has {', '.join(facts.templates)}")
    chosen = [relation] if relation else list(facts.templates)
    short = [one for one in chosen if kind == "coherent" and len(facts.templates[one]) < 2]
    if short:
        raise InputError(f"a coherent conflict is told in two ways, and {short[0]} has one template: add another")
    items, left = list[Conflict](), 0
    for one in chosen:
        for place in range(len(facts.templates[one])):
            made = list(_make(facts, tokenizer, one, place, kind, seed, prefix.strip()))
            items += [item for item in made if item is not None]
            left += made.count(None)
    notes = (f"{left} prompts left out: no other words of as many tokens, with other first tokens",) if left else ()
    if not items:
        raise DataError(
            f"no conflict prompt can be made of {facts.name}: {left} have no other object and subject of as many "
            "tokens whose first token differs; give more facts of each relation"
        )
    return Conflicts(items, facts.name, notes)


def _make(
    facts: Facts, tokenizer: Tokenizer, relation: str, place: int, kind: str, seed: int, prefix: str
) -> Iterator[Conflict | None]:
    """The prompts on a relation by one of its templates; None for a fact that has none."""
    templates = [one.strip() for one in facts.templates[relation]]  # a blank at the end would stand there twice
    template = templates[place]
    triples = [(subject, value) for subject, name, value in facts.triples if name == relation]
    true = dict[str, set[str]]()
    for subject, value in triples:
        true.setdefault(subject, set()).add(value)
    values, subjects = list(dict.fromkeys(value for _, value in triples)), list(true)
    stated = [template] if kind == "substitution" else templates

    def ask(subject: str) -> str:
        return template.replace("{subject}", subject)

    def say(subject: str, value: str) -> str:
        return " ".join(
            [
                *([prefix] if prefix else []),
                *(f"{one.replace('{subject}', subject)} {value}." for one in stated),
                ask(subject),
            ]
        )

    @functools.cache
    def find_first(value: str) -> int:
        """The answer's first token; behind the first subject, for it hangs on what stands before it hardly ever."""
        return likelihood.encode(tokenizer, ask(subjects[0]), [f" {value}"])[0].continuation[0]

    @functools.cache
    def count(text: str) -> int:
        return len(likelihood.encode(tokenizer, text, [" ."])[0].prompt)

    for number, (subject, value) in enumerate(triples):
        draw = np.random.default_rng([seed, place, number, len(triples)])
        wrong = [one for one in values if one not in true[subject] and find_first(one) != find_first(value)]
        if not wrong:
            yield None
            continue
        context = wrong[int(draw.integers(len(wrong)))]
        prompt, corrupted = say(subject, context), ""
        barred = {find_first(value), find_first(context)}
        thirds = [one for one in wrong if one != context and find_first(one) not in barred]
        for _ in range(_TRIES if thirds and len(subjects) > 1 else 0):
            other, third = (some[int(draw.integers(len(some)))] for some in (subjects, thirds))
            tried = say(other, third)
            alike = count(ask(other)) == count(ask(subject)) and count(tried) == count(prompt)
            if alike and other != subject and not true[other] & {value, context}:
                corrupted = tried
                break
        if not corrupted:
            yield None
            continue
        yield Conflict(prompt, f" {value}", f" {context}", corrupted, ask(subject), subject, relation, kind, place)


def encode(data: Conflicts, tokenizer: Tokenizer | None) -> list[Item]:
    """The prompts as tokens; a blank is put between a prompt and its answers where a word would run into another.

    Raises `DataError` naming the prompt whose answers begin with one token, or whose corrupted one has another length.
    """
    texts.need_tokenizer(tokenizer)
    assert tokenizer is not None
    found = []
    for number, one in enumerate(data.items, 1):
        answers = [_set_apart(one.prompt, answer) for answer in (one.memory, one.context)]
        memory, context = likelihood.encode(tokenizer, one.prompt, answers)
        where = f"prompt {number} of {data.name} ({one.prompt[-60:]!r})"
        if memory.continuation[0] == context.continuation[0]:
            raise DataError(
                f"{where}: the answers {one.memory!r} and {one.context!r} begin with the same token, so that their "
                "first tokens tell nothing: give answers that differ there"
            )
        corrupted, plain = (
            likelihood.encode(tokenizer, text, [one.memory])[0].prompt if text else ()
            for text in (one.corrupted, one.plain)
        )
        if corrupted and len(corrupted) != len(memory.prompt):
            raise DataError(
                f"{where} has {len(memory.prompt)} tokens, and its corrupted one {len(corrupted)}: give two of "
                "equal length"
            )
        found.append(Item(memory.prompt, memory.continuation, context.continuation, corrupted, plain))
    return found


def _set_apart(prompt: str, answer: str) -> str:
    """The answer as it follows the prompt: behind a blank, where neither has one and their writing wants it.

    Tokenizers of byte pairs have another token for a word behind a blank than for the same letters at a word's end.
    """
    last, first = prompt[-1:], answer[:1]
    if last == " ":
        return answer.lstrip(" ")
    if not last or last.isspace() or _NO_BLANK_BEHIND.match(last) or not first.isalnum():
        return answer
    return answer if _NO_BLANKS.match(last) or _NO_BLANKS.match(first) else f" {answer}"


def keep_known(subject: Transformer, data: Conflicts, match: Match = "first") -> Conflicts:
    """The prompts whose memory answer the model gives without the context; those without a plain question stay.

    Raises `DataError` where it knows none, and for a prompt that is longer than the model's table of positions.
    """
    if data.known:
        return data
    items = encode(data, subject.tokenizer)
    _check_positions(subject, data, items)
    asked = [at for at, item in enumerate(items) if item.plain]
    answers = _answer(subject, [items[at].plain for at in asked], [items[at].memory for at in asked], match)
    known = {at for at, answer in zip(asked, answers, strict=True) if answer == items[at].memory[: len(answer)]}
    stay = [at for at in range(len(items)) if at in known or not items[at].plain]
    if not stay:
        raise DataError(
            f"the model knows none of the {len(items)} facts of {data.name}: asked without the context, it gives other "
            "answers; use facts that it knows"
        )
    lost = len(items) - len(stay)
    notes = (f"{lost} of {len(items)} prompts left out: the model does not know the fact",) if lost else ()
    return replace(data.take(stay), known=True, notes=(*data.notes, *notes))


def _check_positions(subject: Transformer, data: Conflicts, items: Sequence[Item]) -> None:
    most = count_positions(subject.model)
    for number, item in enumerate(items, 1):
        count = len(item.prompt) + max(len(item.memory), len(item.context)) - 1
        if most is not None and count > most:
            raise DataError(
                f"prompt {number} of {data.name} ({data.items[number - 1].prompt[-60:]!r}) has {count} tokens with its "
                f"answer, and the model {most} positions: give shorter ones"
            )


def instruct(data: Conflicts, trust: str) -> Conflicts:
    """The prompts behind an instruction to trust one of `INSTRUCTIONS`; questions alone stay as they are."""
    return replace(
        data, items=[replace(one, prompt=f"{INSTRUCTIONS[trust]} {one.prompt}", corrupted="") for one in data.items]
    )


# ----------------------------------------------------------------------------------------------------------- measures


def _answer(
    subject: Transformer, prompts: Sequence[tuple[int, ...]], like: Sequence[tuple[int, ...]], match: Match
) -> list[tuple[int, ...]]:
    steps = [1 if match == "first" else len(answer) for answer in like]
    with evaluating(subject.model):
        return usage.greedy(subject.forward, prompts, steps, pad=_pad(subject))


def _pad(subject: Transformer) -> int:
    return int(getattr(subject.tokenizer, "pad_token_id", None) or 0)


def rates(
    subject: Transformer, items: Sequence[Item], *, match: Match = "first", silenced: Iterable[Head] = ()
) -> dict[str, Figure]:
    """RM, RC and the rate of other answers to the prompts, with these heads silenced; and of the questions alone.

    no_conflict_rate: the share of plain questions that get the memory's answer, where there are some.
    """
    longest = [max((item.memory, item.context), key=len) for item in items]
    with silence_heads(subject, silenced):
        answers = _answer(subject, [item.prompt for item in items], longest, match)
        asked = [item for item in items if item.plain]
        plain = _answer(subject, [item.plain for item in asked], [item.memory for item in asked], match)
    cut = 1 if match == "first" else None
    memory, context = ([answer[:cut] for answer in some] for some in _answers(items))
    found = usage.usage_rates(answers, memory, context)
    if asked:
        right = usage.usage_rates(plain, [item.memory[:cut] for item in asked], [item.context[:cut] for item in asked])
        found["no_conflict_rate"] = right["memory_rate"]
    return found


def _answers(items: Sequence[Item]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    return [item.memory for item in items], [item.context for item in items]


def log_answers(subject: Transformer, items: Sequence[Item], silenced: Iterable[Head] = ()) -> Tensor:
    """ln P of the first tokens of memory and context behind the prompt, float64 [N, 2], with these heads silenced."""
    found = torch.empty(len(items), 2, dtype=torch.float64)
    with torch.no_grad(), evaluating(subject.model), silence_heads(subject, silenced):
        for places, tokens, targets in _batches(items):
            batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
            found[places] = _read(subject.forward(batch).prediction[:, -1], targets)
    return found


def _read(logits: Tensor, targets: Tensor) -> Tensor:
    """ln P [..., N, 2] of the targets [N, 2] under logits [..., N, V], on the CPU."""
    logs = logits.float().log_softmax(-1)
    return logs.gather(-1, targets.to(logs.device).expand(*logs.shape[:-1], 2)).double().cpu()


def _batches(items: Sequence[Item]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """(places, prompts [N, S], first tokens of memory and context [N, 2]) of prompts of equal length."""
    by_length = dict[int, list[int]]()
    for at, item in enumerate(items):
        by_length.setdefault(len(item.prompt), []).append(at)
    for length, some in by_length.items():
        size = min(_PROMPTS, max(1, _TOKENS // length))
        for begin in range(0, len(some), size):
            places = some[begin : begin + size]
            targets = torch.tensor([[items[at].memory[0], items[at].context[0]] for at in places])
            yield places, torch.tensor([items[at].prompt for at in places]), targets


# ------------------------------------------------------------------------------------------------------------- scores


def score(
    subject: Transformer,
    items: Sequence[Item],
    *,
    by: Literal["probability", "logit"] = "probability",
    corruption: Corruption = "swap",
    seed: int = 0,
) -> Table:
    """S of every head by path patching, and beside it "dM." and "dC." of each: see `score.patching`.

    A clean and a corrupted run of each batch give all heads' outputs; then each head in turn has its corrupted output,
    all others their clean ones, and MLPs and norms are computed anew from the head's layer on, for all heads of a layer
    at once, at the last position (`Replay`).

    corruption: swap, the prompt on another subject and attribute; or noise on the embeddings.

    Raises `DataError` for prompts without a corrupted one where it is asked for, `UnsupportedError` for a model that
    can't be replayed.
    """
    bare = next((at for at, item in enumerate(items, 1) if not item.corrupted), None)
    if corruption == "swap" and bare is not None:
        raise DataError(f"prompt {bare} has no corrupted one: give it (secateur conflicts does), or corruption=noise")
    replay, draw = Replay(subject), torch.Generator().manual_seed(seed)
    clean = torch.empty(len(items), 2, dtype=torch.float64)
    patched = {layer: torch.empty(count, len(items), 2, dtype=torch.float64) for layer, (_, count) in _heads(replay)}
    for number, (places, tokens, targets) in enumerate(_batches(items)):
        ours = replay.read(tokens)
        if not number:
            replay.check(ours)
        theirs = _corrupt(replay, tokens, [items[at] for at in places], corruption, draw)
        clean[places] = _read(ours.logits, targets)
        for layer, _ in _heads(replay):
            patched[layer][:, places] = _patch(replay, layer, ours, theirs, targets)
    table = Table()
    for layer, logs in patched.items():
        name = f"layers.{layer}.heads"
        table[f"dM.{name}"], table[f"dC.{name}"] = (
            patching.relative_change(logs[..., side], clean[:, side]).mean(1) for side in (0, 1)
        )
        if by == "logit":
            table[name] = patching.logit_preference(logs, clean)
        else:
            changes = (patching.relative_change(logs[..., side], clean[:, side]) for side in (0, 1))
            table[name] = patching.preference(*changes)
    return table


def _heads(replay: Replay) -> list[tuple[int, tuple[object, int]]]:
    return [(layer, (consumer, count)) for layer, (consumer, count) in replay.places.items()]


def _corrupt(replay: Replay, tokens: Tensor, items: Sequence[Item], how: Corruption, draw: torch.Generator) -> Frozen:
    if how == "swap":
        return replay.read(torch.tensor([item.corrupted for item in items]))
    # Not the table's own weights: some models scale them on the way out.
    embeddings = replay.subject.model.get_input_embeddings()
    words = torch.arange(embeddings.get_parameter("weight").shape[0])
    some = words[:: max(1, len(words) // _WORDS)]
    with torch.no_grad():
        vectors = embeddings(devices.move(some, embeddings)).float()
    noise = torch.randn(*tokens.shape, vectors.shape[-1], generator=draw)
    return replay.read(tokens, _NOISE * float(vectors.std()) * noise)


def _patch(replay: Replay, layer: int, clean: Frozen, corrupted: Frozen, targets: Tensor) -> Tensor:
    """ln P of the targets [H, N, 2], each head of the layer patched alone."""
    consumer, count = replay.places[layer]
    rows = patching.patch_each(clean.outputs[layer], corrupted.outputs[layer], consumer.block)
    width, found = max(1, _ROWS // len(targets)), []
    for begin in range(0, count, width):
        some = rows[begin : begin + width]
        held = {at: z.repeat(len(some), 1) for at, z in clean.outputs.items() if at > layer}
        logits = replay.run(clean.states[layer].repeat(len(some), 1), {layer: some.flatten(0, 1), **held}, layer)
        found.append(_read(logits.reshape(len(some), len(targets), -1), targets))
    return torch.cat(found)


def ablate(subject: Transformer, items: Sequence[Item]) -> Table:
    """S of every head where it is silenced and all behind it is computed anew: the confounded, plain ablation."""
    clean, table = log_answers(subject, items), Table()
    for layer, (_, count) in find_outputs(subject).items():
        logs = torch.stack([log_answers(subject, items, [(layer, head)]) for head in range(count)])
        changes = (patching.relative_change(logs[..., side], clean[:, side]) for side in (0, 1))
        table[f"layers.{layer}.heads"] = patching.preference(*changes)
    return table


def gradients(subject: Transformer, items: Sequence[Item], side: Literal["memory", "context"]) -> Table:
    """Mean over prompts of |sum z dL/dz| of every head, of L = -ln P of the memory's or the context's first token."""
    at = 0 if side == "memory" else 1

    def lose(part: Sequence[Tensor]) -> Tensor:
        tokens, targets = part
        batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        logs = subject.forward(batch).prediction[:, -1].float().log_softmax(-1)
        return -logs.gather(-1, targets[:, at, None].to(logs.device))[:, 0]

    places = {f"layers.{layer}.heads": consumer for layer, (consumer, _) in find_outputs(subject).items()}
    return patching.gradient_importance(lose, subject.model, [part for _, *part in _batches(items)], places)


# --------------------------------------------------------------------------------------------------------- knock-outs


def knock_out(subject: Transformer, data: Conflicts, window: int) -> list[dict[str, object]]:
    """How P of both answers changes where a window of consecutive layers loses edges of attention, or sub-blocks.

    Rows {"what", "first", "last", "prompts", "memory", "context"}: what is an edge to the last position from the
    "subject", the "relation" or the "attribute" in the context, or the sub-blocks "attention" or "ffn" at the last
    position; memory and context are the mean relative changes of the probabilities, over the `prompts` that have such
    tokens.
    """
    items = encode(data, subject.tokenizer)
    clean, spans = log_answers(subject, items), [_find_spans(one, subject.tokenizer) for one in data.items]
    layers, every = len(subject.layers()), range(len(items))
    places_of = {name: [at for at in every if spans[at][name]] for name in spans[0]}
    places_of |= {name: list(every) for name in ("attention", "ffn")}
    if not 1 <= window <= layers:
        raise InputError(f"window={window}: the model has {layers} layers; give 1 to {layers}")
    rows = list[dict[str, object]]()
    for first in range(layers - window + 1):
        some = range(first, first + window)
        for what, those in places_of.items():
            if not those:  # such as the subject of prompts that do not name it
                continue
            logs = torch.empty(len(those), 2, dtype=torch.float64)
            for places, tokens, targets in _batches([items[at] for at in those]):
                if what in spans[0]:
                    sources = torch.zeros_like(tokens, dtype=torch.bool)
                    for row, at in enumerate(places):
                        sources[row, spans[those[at]][what]] = True
                    knocked = knockouts.block_edges(subject, some, sources)
                else:
                    knocked = knockouts.silence_blocks(subject, some, what)
                with torch.no_grad(), evaluating(subject.model), knocked:
                    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
                    logs[places] = _read(subject.forward(batch).prediction[:, -1], targets)
            memory, context = patching.relative_change(logs, clean[those]).mean(0).tolist()
            where = {"what": what, "first": first, "last": first + window - 1, "prompts": len(those)}
            rows.append({**where, "memory": memory, "context": context})
    return rows


def _find_spans(one: Conflict, tokenizer: Tokenizer) -> dict[str, list[int]]:
    """Positions in the prompt's tokens of the subject, the attribute in the context, and of the rest but the last."""
    if not getattr(tokenizer, "is_fast", False):
        raise UnsupportedError("knock-outs of edges need a tokenizer that tells where tokens stand: use a fast one")
    offsets = tokenizer(one.prompt.rstrip(), return_offsets_mapping=True)["offset_mapping"]
    marked = dict[str, list[tuple[int, int]]]()
    marked["subject"] = [(at, at + len(one.subject)) for at in _occurrences(one.prompt, one.subject)]
    marked["attribute"] = [(at, at + len(one.context.strip())) for at in _occurrences(one.prompt, one.context.strip())]
    found = {
        name: [at for at, (begin, end) in enumerate(offsets) if any(begin < high and end > low for low, high in some)]
        for name, some in marked.items()
    }
    away = {at for some in found.values() for at in some} | {len(offsets) - 1}
    away |= {at for at, (begin, end) in enumerate(offsets) if begin == end}  # tokens that begin or end a text
    found["relation"] = [at for at in range(len(offsets)) if at not in away]
    return {name: [at for at in some if at < len(offsets) - 1] for name, some in found.items()}


def _occurrences(text: str, part: str) -> list[int]:
    """Where `part` stands in a text as words of their own: Niger is not in Nigeria."""
    places, at = list[int](), text.find(part) if part else -1
    while at >= 0:
        if not _joins(text[:at], part) and not _joins(part, text[at + len(part) :]):
            places.append(at)
        at = text.find(part, at + 1)
    return places


def _joins(left: str, right: str) -> bool:
    """Whether two texts meet within a word, in a script that has blanks between words."""
    edges = left[-1:], right[:1]
    return all(edge.isalnum() and not _NO_BLANKS.match(edge) for edge in edges)
