"""Questions made of headings, definitions and single sentences, whose answers are known."""

from __future__ import annotations

import random

from secateur.data.packages import Entry, Section
from secateur.methods import made_questions
from secateur.methods.made_questions import Document

SECTIONS = [
    Section("copyfile", "Copy data from one path to another. It follows links. Metadata is not copied by this."),
    Section("", "Nothing stands above these words."),
    Section(
        "9.2. Must I restart the machine?", "No restart of the machine is needed here. A new kernel is one reason."
    ),
    Section("empty", ""),
]
NOUNS = {
    1: Entry(("tree",), "a tall plant", -1),
    2: Entry(("oak", "oak tree"), 'a tree that bears acorns; "the oak fell"', 1),
    3: Entry(("ash",), "a tree with winged seeds", 1),
    4: Entry(("elm",), "a tree with jagged leaves", 1),
    5: Entry(("fir",), "an evergreen tree", 1),
}


def test_headings_ask_and_the_first_sentence_below_answers():
    draw = random.Random(0)
    plain = made_questions.from_sections("files", SECTIONS, draw, headed=0.0)
    assert [plain.sentences[place] for _, place in plain.asked] == [
        "Copy data from one path to another.",
        "No restart of the machine is needed here.",
    ]
    assert "copyfile" in plain.asked[0][0]
    assert plain.asked[1][0] == "Must I restart the machine?"
    assert not plain.headings
    headed = made_questions.from_sections("files", SECTIONS, draw, headed=1.0)
    assert [headed.sentences[place] for place in sorted(headed.headings)] == ["copyfile", SECTIONS[2].heading]
    assert [headed.sentences[place] for _, place in headed.asked] == [
        plain.sentences[place] for _, place in plain.asked
    ]


def test_definitions_are_of_the_kinds_of_one_thing():
    (document,) = made_questions.from_words(NOUNS, random.Random(0))
    assert document.title == "tree"
    assert len(document.sentences) == 4
    for question, place in document.asked:
        (entry,) = (one for one in NOUNS.values() if one.kind == 1 and any(name in question for name in one.names))
        assert entry.meaning.partition(";")[0] in document.sentences[place]
        assert '"' not in document.sentences[place]
    assert made_questions.synonyms_of(NOUNS) == {"oak": ("oak tree",)}


def test_rows_hold_their_answers_within_bounds():
    words = [
        "garden",
        "winter",
        "summer",
        "leaves",
        "branches",
        "gardener",
        "prunes",
        "grows",
        "large",
        "small",
        "water",
    ]
    draw = random.Random(1)
    documents = [
        Document(f"t{n}", tuple(f"The {' '.join(draw.sample(words, 7))} of {n} in part {i}." for i in range(12)))
        for n in range(6)
    ]
    documents.append(made_questions.from_sections("files", SECTIONS, draw, headed=1.0))
    how = {"synonyms": {"garden": ("orchard",)}, "words": 40, "others": 0.5}
    rows = made_questions.make_rows(documents, 60, 3, **how)
    assert len(rows) == 60
    assert rows == made_questions.make_rows(documents, 60, 3, **how)
    assert rows != made_questions.make_rows(documents, 60, 4, **how)
    assert {row["kind"] for row in rows} == {"own", "cloze", "words", "name"}
    assert any("orchard" in row["question"].lower() for row in rows)
    kinds = set()
    for row in rows:
        passage, kept = row["documents"][0], row["kept"]
        assert row["answer"] in kept[0]
        assert 0 <= max(kept[0]) < len(passage) <= 10
        assert sum(len(text.split()) for text in passage) <= 40
        assert len(row["documents"]) == len(kept) <= 2
        assert kept[1:] in ([], [[]])
        kinds.add(len(kept))
        place = passage[row["answer"]]
        assert place not in ("copyfile", SECTIONS[2].heading)  # a heading answers nothing, and stays above its answer
        if place.startswith("Copy data") and "copyfile" in passage:
            assert passage.index("copyfile") in kept[0]
            assert row["answer"] + 1 in kept[0] or "It follows links." not in passage
    assert kinds == {1, 2}


def test_texts_that_ask_nothing_give_no_rows():
    assert made_questions.make_rows([Document("a", ("Yes it is.",)), Document("b", ())], 5, 0) == []
