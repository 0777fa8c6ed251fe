"""Language models whose data are conflict prompts: which recipes get this backend, and what it measures."""

from __future__ import annotations

from dataclasses import replace

import pytest

import tiny
from assets import facts
from secateur.data import texts
from secateur.errors import DataError, InputError
from secateur.methods import conflicts
from secateur.recipes.language import minitron, ph3
from secateur.runs import backends
from secateur.runs.backends.conflicts import ConflictPrompts
from secateur.runs.backends.language import Language
from secateur.subjects import open_subject
from secateur.subjects.transformer import heads

WORLD = facts.World()


def test_the_data_of_a_recipe_may_name_its_backend():
    assert type(backends.of_recipe(ph3.ph3)) is ConflictPrompts
    assert type(backends.of_recipe(minitron.minitron)) is Language


def test_a_table_becomes_prompts_that_the_model_knows_and_is_judged_by_them(monkeypatch):
    backend, subject = ConflictPrompts(), open_subject(tiny.knowing(WORLD))
    data = backend.fit_data(backend.read(facts.rows(WORLD)), subject)
    assert data.known
    assert backend.fit_data(data, subject) is data
    place = backend.environment(subject, 2, 16, 1)
    student, _ = heads.cut_heads(subject, [(1, 1), (2, 0)])
    before, after, both = backend.compare(subject, student, data, place)
    names = {"memory_rate", "context_rate", "other_rate", "no_conflict_rate"}
    each = {f"{relation}/{name}" for relation in ("capital", "language") for name in names}
    told = {"instructed/context_rate", "instructed/memory_rate"}
    assert before.keys() == after.keys() == names | each | told  # all are of one kind
    counts = [sum(one.relation == relation for one in data.items) for relation in ("capital", "language")]
    shares = [after[f"{relation}/context_rate"].value for relation in ("capital", "language")]
    whole = sum(count * share for count, share in zip(counts, shares, strict=True)) / len(data)
    assert whole == pytest.approx(after["context_rate"].value)
    part = backend.compare(subject, student, data.choose(relation="capital"), place)[1]
    assert part.keys() == names | told
    assert part["context_rate"].value == after["capital/context_rate"].value
    monkeypatch.setitem(conflicts.INSTRUCTIONS, "context", "people")
    monkeypatch.setitem(conflicts.INSTRUCTIONS, "memory", "people " * 60)  # longer than the model reads
    again = backend.compare(subject, student, data.choose(relation="capital"), place)[1]
    assert again.keys() == names | {"instructed/context_rate"}
    behind = [
        replace(one, prompt=f"people {one.prompt}", corrupted="") for one in data.choose(relation="capital").items
    ]
    items = conflicts.encode(replace(data, items=behind), subject.tokenizer)
    assert again["instructed/context_rate"] == conflicts.rates(student, items)["context_rate"]
    assert both == {}
    assert backend.chance(subject, data) == {}
    sizes = [backend.sizes(one, one.example(1, 8))["heads"].value for one in (subject, student)]
    assert sizes == [12, 10]
    words = backend.fit_data(texts.read([one.prompt for one in data.items]), subject)
    assert backend.compare(subject, student, words, place)[0].keys() == {"perplexity"}


def test_answers_of_several_tokens_are_measured_in_full_too():
    subject = open_subject(tiny.uneven(tiny.model("gpt2")), tokenizer=tiny.tokenizer())
    backend = ConflictPrompts()
    rows = [{"prompt": "the tree is", "memory": " old leaf", "context": " young bud"}]
    data = backend.fit_data(backend.read(rows), subject)
    before, _, _ = backend.compare(subject, subject, data, backend.environment(subject, 2, 16, 1))
    assert {"memory_rate", "full/memory_rate"} <= before.keys()


def test_what_is_no_conflict_data_or_no_decoder_is_refused():
    backend = ConflictPrompts()
    rows = [{"prompt": "the tree is", "memory": " old", "context": " young"}]
    with pytest.raises(DataError, match="text='words' says nothing"):
        backend.read(rows, text="words")
    for kind in ("bert", "masked"):
        with pytest.raises(InputError, match="does not go on from a text"):
            backend.fit_data(backend.read(rows), open_subject(tiny.model(kind), tokenizer=tiny.tokenizer()))
