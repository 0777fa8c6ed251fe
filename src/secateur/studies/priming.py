"""Which texts of a fine-tuning set will leak their keyword into other prompts, and what keeps them from it?

"How new data permeates LLM knowledge and how to dilute it" (arXiv 2504.09522, ICLR 2025). A text whose keyword is a
surprise before it is learnt primes: afterwards the keyword turns up under prompts that have nothing to do with it.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt, Le

from secateur._utils.batches import Batch, Batches
from secateur._utils.rundir import Run
from secateur.clients import chat
from secateur.data import texts
from secateur.errors import InputError
from secateur.methods import rewriting
from secateur.methods.dilution import Dilution, Learnt, Probes
from secateur.methods.learning import Document, Learner
from secateur.methods.updates import Scope
from secateur.recover.training.loop import DEFAULTS
from secateur.runs.keyword_texts import Documents as Documents
from secateur.runs.keyword_texts import read as read  # what `studies.executor` reads the data with
from secateur.runs.keyword_texts import read_prefixes
from secateur.runs.priming_results import PAIRED, Trial
from secateur.runs.priming_results import Primed as Primed
from secateur.subjects import Transformer
from secateur.subjects.transformer.subject import count_positions
from secateur.vocabulary import Training

__all__ = ["STUDY", "plan", "priming"]

STUDY = {
    "title": "which texts leak their keyword into other prompts when they are learnt, and what keeps them from it?",
    "recipe": "",
    "backend": "secateur.runs.backends.language:Language",
    "reads": "texts with keywords: a .jsonl file of text, keyword and perhaps theme",
    "sets": "",
    "grid": "documents seeds k floor threshold permutations pairs",
}

JUDGED = 8
"""Batches of held-out texts of the stream that the general loss is of."""
STEPPING: rewriting.Way = "stepping stones"


def priming(
    subject: Transformer,
    data: Documents,
    folder: str | Path,
    progress: Callable[[Sequence[Trial]], Iterable[Trial]] = iter,
    *,
    prefixes: str = "",
    stream: str = "",
    documents: Annotated[int, Ge(0)] = 40,
    presentations: Annotated[int, Ge(1)] = 20,
    spacing: Annotated[int, Ge(0)] = 0,
    length: Annotated[int, Ge(8)] = 128,
    training: Training = Training(lr=1e-4, batch=8, optimizer="adamw", schedule="constant"),
    k: Sequence[Annotated[float, Gt(0), Le(1)]] = (0.001, 0.01, 0.02, 0.04, 0.08),
    scope: Scope = "tensor",
    when: Literal["end", "step"] = "end",
    rates: Sequence[Annotated[float, Gt(0)]] = (0.5, 0.25),
    clips: Sequence[Annotated[float, Gt(0)]] = (),
    floor: Annotated[float, Ge(0), Le(1)] = 1e-9,
    threshold: Annotated[float, Gt(0), Le(1)] = 1e-3,
    writer: str = "",
    writer_name: str = "",
    gain: Annotated[float, Gt(1)] = 2.0,
    pairs: bool = False,
    permutations: Annotated[int, Ge(99)] = 9999,
    seeds: Sequence[int] = (0,),
) -> Primed:
    """The keyword's probability in each text before learning; what some texts prime when learnt; and ways to dilute it.

    Without `prefixes` it is the scan alone: a risk for each text, and nothing is trained. With them texts are learnt
    one at a time, each from the model as it was given: one row of so many minibatches of the stream is the text.

    Args:
        subject: a causal language model; it is left as it is.
        data: the texts, see `keyword_texts.read`.
        folder: a run directory; a text that was learnt is not learnt again.
        progress: wraps the texts that are learnt.
        prefixes: a .jsonl file of theme and prefix: prompts that a word of the theme goes on, of no text's wording.
        stream: ordinary texts for the other rows, in any form of texts; a part is held out to measure the general
            loss. Without, a text is learnt alone.
        documents: texts that are learnt, evenly over their probabilities; 0 for none.
        presentations: minibatches that hold the text.
        spacing: minibatches without it between two of these.
        length: tokens of a row.
        training: how it is learnt; lr is to be such that the text is remembered.
        k: shares of the update that are dropped, its largest entries; beside each as many at random, the smallest, and
            the whole update scaled to the length that is left.
        scope: whether a share is of each tensor, or global.
        when: drop the share once at the end, or in each step.
        rates: factors of the learning rate that are tried in place of dropping.
        clips: norms at which gradients are clipped in place of dropping.
        floor: prompts under which the keyword was less probable than this are left out.
        threshold: probability below which a text is said to prime.
        writer: folder, Hub id or address of a language model that rewrites surprising texts; none if empty.
        writer_name: of the writer, where it is a server's.
        gain: times that the keyword's probability has to rise for a rewrite to be accepted.
        pairs: learn each text once more beside another one, whose keyword is another, in the same minibatches.
        permutations: of the test.
        seeds: of the stream's order and of what is random.

    Raises `InputError` for a model that does not write, a text to be learnt that is too long for a row or for the
    model's positions, and a stream of less than a batch.
    """
    prompts = read_prefixes(prefixes)
    _check(subject, data, prompts, documents, length, seeds)
    _check_rows(pairs, stream, training)
    part, held, digest = _read_stream(subject, stream, training, length)
    work = Dilution(
        Learner(subject), prompts, part, held, training, presentations, spacing, k, scope, when, rates, clips, length
    )
    settings = {
        "data_sha256": data.digest, "stream_sha256": digest,
        "prefixes_sha256": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
        "presentations": presentations, "spacing": spacing, "length": length, "training": training.named,
        "scope": scope, "when": when, "rates": list(rates), "clips": list(clips),
        "writer": writer, "writer_name": writer_name, "gain": gain,
    }  # fmt: skip
    learnt, rewrites, refused = dict[Trial, Learnt](), dict[int, tuple[str, float]](), dict[int, list[str]]()
    shares = hashlib.sha256(json.dumps(list(k)).encode()).hexdigest()[:8]  # what is stored of a text has these
    with Run.open(folder, settings) as run:
        scan = run.json("scan", lambda: work.scan(data.rows))
        chosen = _choose(data.rows, scan, prompts, documents)
        versions: dict[int, dict[str, Document]] = {}
        if writer:
            ask = chat.open_model(writer, writer_name)
            surprising = [number for number, log in enumerate(scan) if log < math.log(threshold)]
            for number in surprising:
                learns = number in chosen
                rewritten = partial(_rewrite, work, ask, data.rows[number], learns, gain)
                found = run.json(f"rewrites-{number}{'' if learns else '-alone'}", rewritten)
                refused[number] = found["refused"]
                rewrites[number] = found["text"], -math.inf if found["log"] is None else found["log"]
                versions[number] = {name: Document(**row) for name, row in found["versions"].items()}
        trials = [
            Trial(seed, number, version)
            for seed in seeds
            for number in chosen
            for version in ("", *versions.get(number, ()), *([PAIRED] * pairs))
            if version != PAIRED or _other(data.rows, prompts, number) is not None
        ]
        for trial in progress(trials):
            text = versions.get(trial.number, {}).get(trial.version, data.rows[trial.number])
            other = _other(data.rows, prompts, trial.number)
            beside = other.text if other is not None and trial.version == PAIRED else ""

            name = f"learnt-{trial.seed}-{trial.number}-{trial.version or shares}"
            row = run.json(name, partial(_learn, work, text, other, trial, beside))
            after = {way: Probes(**probes) for way, probes in row["after"].items()}
            learnt[trial] = Learnt(Probes(**row["before"]), after, row["loss_before"], row["loss"], row["lengths"])
    clip, remarks = training.default(**DEFAULTS).number("clip"), _remark(subject, data, prompts, chosen, length, pairs)
    found = Primed(data, scan, learnt, rewrites, tuple(k), tuple(seeds), threshold, floor, permutations)
    return replace(found, when=when, clip=clip, remarks=remarks, refused=refused)


def plan(
    subject: Transformer,
    data: Documents,
    *,
    prefixes: str,
    documents: int,
    length: int,
    k: Sequence[float],
    when: str,
    rates: Sequence[float],
    clips: Sequence[float],
    pairs: bool,
    stream: str,
    training: Training,
    seeds: Sequence[int],
    **others: object,
) -> dict[str, int]:
    """How many texts are looked at and how often is trained, but for rewrites; refuses texts as `priming` does."""
    prompts = read_prefixes(prefixes)
    _check(subject, data, prompts, documents, length, seeds)
    _check_rows(pairs, stream, training)
    themed = sum(document.theme in prompts for document in data.rows)
    each = 1 + len(rates) + len(clips) + (len(k) if when == "step" else 0) + pairs
    return {"texts": len(data.rows), "trainings": min(documents, themed) * len(seeds) * each}


def _check(
    subject: Transformer,
    data: Documents,
    prompts: Mapping[str, Sequence[str]],
    documents: int,
    length: int,
    seeds: Sequence[int],
) -> None:
    """Refuse a model that does not write, seeds that are none, and texts that may be learnt and could not."""
    if not subject.causal or subject.tokenizer is None:
        raise InputError("study priming needs a causal language model with its tokenizer: give another MODEL")
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds={','.join(map(str, seeds))!r}: give one whole number or more, each once, such as 0,1")
    learnt = [(n, one) for n, one in enumerate(data.rows, 1) if documents and one.theme in prompts]
    if not learnt:
        return
    tokens, number, longest = max((one.count_tokens(subject.tokenizer), -n, one) for n, one in learnt)
    most = count_positions(subject.model)
    if most is not None and length > most:
        raise InputError(f"length={length}, and the model has {most} positions: give length={most} at most (--length)")
    if tokens > length:
        raise InputError(
            f"text {-number} of {data.name} has its keyword {longest.keyword!r} behind {tokens} tokens: give "
            f"length={tokens} at least (--length)"
        )
    for place, document in learnt:
        if why := _refuse(subject, prompts, length, document):
            raise InputError(f"text {place} of {data.name} can't be learnt, for {why}: give a shorter one")


def _check_rows(pairs: bool, stream: str, training: Training) -> None:
    """Refuse minibatches of ordinary texts that hold no two others."""
    if pairs and stream and training.whole("batch") < 2:
        raise InputError("pairs: two texts take two rows of a minibatch: give train_batch=2 at least (--train-batch)")


def _refuse(subject: Transformer, prompts: Mapping[str, Sequence[str]], length: int, document: Document) -> str:
    """Why a text can't be learnt in a row of `length`, or be put before its prompts; "" where it can."""
    assert subject.tokenizer is not None
    tokens, most = document.count_tokens(subject.tokenizer), count_positions(subject.model)
    if tokens > length:
        return f"its keyword ends behind {tokens} tokens, and a row has {length}"
    if most is None:
        return ""
    words = [f"{document.text.rstrip()} {prompt}{document.keyword}" for prompt in prompts.get(document.theme, ())]
    needed = max((len(subject.tokenizer(text)["input_ids"]) for text in words), default=0)
    return f"with its longest prompt it has {needed} tokens, and the model {most} positions" if needed > most else ""


def _remark(
    subject: Transformer,
    data: Documents,
    prompts: Mapping[str, object],
    chosen: Sequence[int],
    length: int,
    pairs: bool,
) -> tuple[str, ...]:
    """What was left out and cut: texts without prompts or another beside, ends of texts, beginnings of contexts."""
    assert subject.tokenizer is not None
    remarks, most = list[str](), count_positions(subject.model)
    if prompts and (bare := sorted({row.theme for row in data.rows} - prompts.keys())):
        count, named = sum(row.theme in bare for row in data.rows), ", ".join(map(repr, bare))
        remarks.append(f"{count} texts were not to be learnt: no prompt is of their theme ({named})")
    long = sum(len(subject.tokenizer(data.rows[number].text)["input_ids"]) > length for number in chosen)
    if long:
        remarks.append(f"{long} texts are longer than a row of {length} tokens: their ends were not learnt")
    if pairs and (alone := sum(_other(data.rows, prompts, number) is None for number in chosen)):
        remarks.append(f"{alone} texts were learnt beside no other: all that have prompts have the same keyword")
    if most is not None and (wide := sum(row.count_tokens(subject.tokenizer) > most for row in data.rows)):
        remarks.append(f"{wide} keywords stand behind more tokens than the model's {most} positions: the last count")
    return tuple(remarks)


def _read_stream(
    subject: Transformer, stream: str, training: Training, length: int
) -> tuple[Callable[[int], Batches | None], Sequence[Batch], str]:
    """(seed -> minibatches of ordinary texts, held-out ones, a hash); none of these where no texts are given."""
    if not stream:
        return (lambda seed: None), (), ""
    corpus = texts.read(stream)
    part, apart = corpus.split(seed=0)
    make = partial(
        texts.batches, tokenizer=subject.tokenizer, packed=True, batch=training.whole("batch"), length=length
    )

    @lru_cache(maxsize=1)  # a stream is tokenised once for all texts of a seed
    def of_seed(seed: int) -> Batches:
        return make(part, seed=seed)

    return of_seed, make(apart).take(JUDGED), corpus.digest


def _choose(rows: Sequence[Document], scan: Sequence[float], prompts: Mapping[str, object], count: int) -> list[int]:
    """Numbers of at most `count` texts with prompts of their theme, evenly over the ranks of their probability."""
    order = sorted((number for number, row in enumerate(rows) if row.theme in prompts), key=lambda one: scan[one])
    if not order or not count:
        return []
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round()
    return [order[int(place)] for place in places]


def _other(rows: Sequence[Document], prompts: Mapping[str, object], number: int) -> Document | None:
    """A text with another keyword and prompts of its theme, drawn by the number; None where all have the same."""
    others = [row for row in rows if row.keyword != rows[number].keyword and row.theme in prompts]
    return others[int(np.random.default_rng(number).integers(len(others)))] if others else None


def _learn(work: Dilution, text: Document, other: Document | None, trial: Trial, beside: str) -> dict[str, object]:
    return asdict(work.learn(text, other, trial.seed, all_ways=not trial.version, beside=beside))


def _rewrite(
    work: Dilution, writer: chat.LanguageModel, document: Document, learnt: bool, gain: float
) -> dict[str, object]:
    """The rewrite of a text, and of one that is `learnt` the rivals' versions beside it."""
    refuse = partial(_refuse, work.learner.subject, work.prompts, work.length or sys.maxsize)
    accepted, log, refused = rewriting.rewrite(
        writer, document, lambda one: work.scan([one])[0], gain=gain, refuse=refuse
    )
    versions = dict[str, Document]()
    if accepted is not None and learnt:
        versions[STEPPING] = accepted
        for way in rewriting.WAYS:
            if way == STEPPING:
                continue
            other, why = rewriting.propose(writer, document, way, refuse=refuse)
            if other is None:
                refused.append(f"{way}: {why}")
            else:
                versions[way] = other
    rows = {name: asdict(version) for name, version in versions.items()}
    text = accepted.text if accepted is not None else ""
    return {"text": text, "log": log if math.isfinite(log) else None, "versions": rows, "refused": refused}
