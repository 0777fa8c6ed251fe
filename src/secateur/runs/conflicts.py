"""Make conflict prompts of a fact table, as a model's tokenizer needs them, and keep those on facts that it knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from secateur.data import conflicts as data
from secateur.data.conflicts import Conflicts, Facts
from secateur.errors import InputError, RunError
from secateur.methods import conflicts
from secateur.runs import keywords
from secateur.runs.backends.language import Language, Model

__all__ = ["make_conflicts"]


def make_conflicts(
    table: str | Path | Iterable[Mapping[str, object]] | Facts,
    model: Model,
    out: str | Path | None = None,
    *,
    kind: Literal["substitution", "coherent"] = "substitution",
    relation: str = "",
    match: Literal["first", "full"] = "first",
    count: int | None = None,
    prefix: str = "",
    seed: int = 0,
    device: str | None = None,
    overwrite: bool = False,
) -> Conflicts:
    """Conflict prompts on the facts that the model knows: "The capital of France is Rome. The capital of France is".

    Args:
        table: a JSON-lines file of facts, {"subject", "relation", "object"}, and of templates, {"relation",
            "template"}, such as "The capital of {subject} is"; or its rows.
        model: a language model with its tokenizer: a folder, a Hub id, or one in memory.
        out: the JSON-lines file to write, which `secateur run ph3` takes as data; none if None.
        kind: of the conflict: substitution states the false attribute once, coherent by every template of the relation.
        relation: of the facts; all if empty.
        match: the model knows a fact if its answer begins with the first token, or if it is the full one.
        count: at most so many prompts, drawn by the seed; all if None.
        prefix: what stands before each context, such as "Answer from the text."; the question alone is asked without.
        seed: of what stands for what.
        device: where the model is asked, such as cuda; where it is if None.
        overwrite: write `out` anew; never over the table.

    Raises `RunError` for an `out` that is there already, a folder, or the table, and `DataError` for a table that can't
    be read or gives no prompt, and where the model knows none of the facts; then nothing is written.
    """
    keywords.check_counts(count=count)
    keywords.check_seed(seed)
    if out is not None:
        _check_out(Path(out), table, overwrite)
    found = data.read(table)
    if not isinstance(found, Facts):
        raise InputError(f"{found.name} holds conflict prompts already: give a table of facts and templates")
    subject = Language().open(model, device)
    subject.check_texts()
    if not subject.causal:
        raise InputError(f"{type(subject.model).__name__} writes no text: give a language model")
    made = conflicts.build(found, subject.tokenizer, kind=kind, relation=relation, seed=seed, prefix=prefix)
    known = conflicts.keep_known(subject, made, match)
    if count is not None and count < len(known):
        import numpy as np

        drawn = sorted(np.random.default_rng([seed, len(known)]).permutation(len(known))[:count].tolist())
        known = replace(known.take(drawn), notes=(*known.notes, f"{count} of {len(known)} prompts drawn"))
    if out is not None:
        data.write(known, out)
    return known


def _check_out(out: Path, table: object, overwrite: bool) -> None:
    """Raise `RunError` where nothing may be written: over the table, a folder, or what is there already."""
    if isinstance(table, str | Path) and out.resolve() == Path(table).resolve():
        raise RunError(f"{out} is the table of facts itself: give another name for the prompts")
    if out.is_dir():
        raise RunError(f"{out} is a folder: give the name of a file in it, such as {out / 'prompts.jsonl'}")
    if out.exists() and not overwrite:
        raise RunError(f"{out} is there already: give another name, or overwrite it (--overwrite)")
