"""Backend of language models whose data are conflict prompts, or a table of facts that these are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from secateur._utils.batches import Batch
from secateur.data import conflicts as reading
from secateur.data import labels
from secateur.data.conflicts import Conflicts, Facts
from secateur.data.texts import Corpus
from secateur.errors import InputError
from secateur.measure.latency import Environment
from secateur.methods import conflicts
from secateur.methods.conflicts import Item
from secateur.runs.backends import Row
from secateur.runs.backends.language import Language
from secateur.subjects import Transformer
from secateur.subjects.transformer.heads import count_heads
from secateur.subjects.transformer.subject import count_positions
from secateur.vocabulary import Figure

__all__ = ["ConflictPrompts"]

Given: TypeAlias = str | Path | Iterable[Mapping[str, object]] | Facts | Conflicts
Held: TypeAlias = Facts | Conflicts | Corpus

_GROUPS = 12
"""Relations, or kinds, that are measured one by one: more would bury the other figures."""


class ConflictPrompts(Language):
    """Language models as elsewhere, judged by where their answers come from: memory, context, or neither.

    It reads conflict prompts and tables of facts, and judges by texts, too, which a recipe may add.
    """

    noun = "conflict prompts"

    def read(self, data: Given, text: str = "text", label: str = labels.DEFAULT) -> Facts | Conflicts:  # type: ignore[override]
        """The prompts or the facts; see `data.conflicts.read`."""
        found = reading.read(data)
        labels.unnamed(f"{found.name} holds conflict prompts or facts, whose fields are fixed", text=text, label=label)
        return found

    def fit_data(self, data: Held, subject: Transformer) -> Conflicts | Corpus:  # type: ignore[override]
        """Prompts whose facts the model knows; of a table, prompts by each template, where the false statement is one.

        Raises `DataError` for prompts that can't be told apart or of unequal length, and where none is left.
        """
        if isinstance(data, Corpus):
            return super().fit_data(data, subject)
        subject.check_texts()
        if not subject.causal or subject.kind != "decoder":
            raise InputError(
                f"{type(subject.model).__name__} does not go on from a text, and conflict prompts ask for that: give a "
                "decoder with its language-model head"
            )
        if isinstance(data, Facts):
            data = conflicts.build(data, subject.tokenizer)
        return conflicts.keep_known(subject, data)

    def chance(self, subject: Transformer, held_out: Conflicts | Corpus) -> dict[str, float]:
        """Nothing: no source is the right one."""
        return {}

    def sizes(self, subject: Transformer, batch: Batch) -> Row:
        """As of any language model, and the heads that add something to the residual stream."""
        return {**super().sizes(subject, batch), "heads": Figure(float(count_heads(subject)))}

    def compare(
        self, original: Transformer, student: Transformer, held_out: Conflicts | Corpus, environment: Environment
    ) -> tuple[Row, Row, Row]:
        """(before, after, {}): the rates at which both use memory, context, and neither, by the answers' first tokens.

        "full/" before a name: by all tokens, where answers have several. A relation, or a kind, before it: of the
        prompts of that one, where there are several and not too many. "instructed/" before it: of prompts behind an
        instruction to trust that source, which is prompting of the original, and both together of the student; left out
        where they would be longer than the model's table of positions. Of texts as elsewhere.
        """
        if isinstance(held_out, Corpus):
            return super().compare(original, student, held_out, environment)
        items = conflicts.encode(held_out, original.tokenizer)
        before, after = (conflicts.rates(subject, items) for subject in (original, student))
        if any(len(answer) > 1 for item in items for answer in (item.memory, item.context)):
            for row, subject in ((before, original), (after, student)):
                row |= {f"full/{name}": rate for name, rate in conflicts.rates(subject, items, match="full").items()}
        for side in conflicts.INSTRUCTIONS:
            told = conflicts.encode(conflicts.instruct(held_out, side), original.tokenizer)
            longest = max(len(item.prompt) + max(len(item.memory), len(item.context)) for item in told)
            for row, subject in ((before, original), (after, student)):
                if longest <= (count_positions(original.model) or longest):
                    row[f"instructed/{side}_rate"] = conflicts.rates(subject, told)[f"{side}_rate"]
        for name, some in _group(held_out, items).items():
            for row, subject in ((before, original), (after, student)):
                row |= {f"{name}/{measure}": rate for measure, rate in conflicts.rates(subject, some).items()}
        return before, after, {}


def _group(data: Conflicts, items: Sequence[Item]) -> dict[str, list[Item]]:
    """The items of each relation and of each kind, by its name, where the prompts are of several."""
    found = dict[str, list[Item]]()
    for field in ("relation", "kind"):
        groups = dict[str, list[Item]]()
        for one, item in zip(data.items, items, strict=True):
            groups.setdefault(str(getattr(one, field)), []).append(item)
        if 1 < len(groups) <= _GROUPS:
            found |= {name: some for name, some in groups.items() if name}
    return found
