"""Which things a text speaks of: word by word, and by vectors that are kept and never mixed up."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import DataError, InputError
from secateur.retrieval import names as module
from secateur.retrieval.names import Match, Mention, Names, phrases

THINGS = [
    ("urn:1", "heart"),
    ("urn:2", "heart attack"),
    ("urn:3", "attack of the clones"),
    ("urn:4", "Attack"),
    ("urn:5", "attack"),
    ("urn:6", "The"),
    ("urn:7", "AT&T"),
    ("urn:8", "Müller"),
    ("urn:9", "東京"),
    ("urn:1", "cor"),
]


class Letters:
    """An encoder that counts letters, and its calls; `turn` makes it another one."""

    def __init__(self, turn: int = 0, width: int = 26) -> None:
        self.turn, self.width, self.texts = turn, width, list[str]()

    def __call__(self, texts):
        self.texts += texts
        vectors = np.zeros((len(texts), self.width), dtype=np.float64)
        for row, text in zip(vectors, texts, strict=True):
            for letter in text.lower():
                row[(ord(letter) + self.turn * (ord(letter) % 3)) % self.width] += 1
        return vectors


def spoken_of(text: str, **options) -> list[str]:
    return [mention.name for mention in Names(THINGS).mentions(text, **options)]


def test_mentions_are_whole_words_the_longest_first():
    assert spoken_of("A HEART_attack, of hearts and a heart!") == ["heart attack", "heart"]
    assert spoken_of("heart attack of the clones") == ["heart", "attack of the clones"]
    assert spoken_of("hearth cor-e at&t, at t; MÜLLER Mu\u0308ller's") == ["cor", "AT&T", "AT&T", "Müller", "Müller"]
    assert spoken_of("in 東京都") == ["東京"]
    assert spoken_of("the and") == []
    assert spoken_of("the and", common=()) == ["The"]
    assert spoken_of("") == spoken_of("?!") == Names([]).mentions("heart") == []


def test_what_a_thing_is_called_is_all_of_a_name():
    index = Names(THINGS)
    assert index.find_named(" Heart  ATTACK? ") == ["urn:2"]
    assert index.find_named("attack") == ["urn:4", "urn:5"]
    assert index.find_named("the") == ["urn:6"]
    assert (
        index.find_named("heart of attack")
        == index.find_named("the heart")
        == index.find_named("?")
        == index.find_named("")
        == []
    )


def test_a_mention_tells_where_it_stands_and_all_that_is_called_so():
    text = "An Attack."
    assert Names(THINGS).mentions(text) == [Mention("Attack", ("urn:4", "urn:5"), 3, 9)]
    assert text[3:9] == "Attack"


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_text_can_be_looked_through(text):
    found = Names([*THINGS, ("urn:x", text)]).mentions(text, common=())
    assert all(0 <= one.start < one.end <= len(text) for one in found)
    assert all(one.end <= other.start for one, other in itertools.pairwise(found))


def test_many_names_and_a_long_text_take_bounded_time():
    many = Names((f"urn:{number}", f"thing {number} of {number % 97} kinds") for number in range(100_000))
    many.mentions("")
    began = time.monotonic()
    assert len(many.mentions("thing 5 of 5 kinds " * 2_000)) == 2_000
    assert time.monotonic() - began < 5


def test_the_nearest_names_are_those_of_all_comparisons(monkeypatch):
    monkeypatch.setattr(module, "_ROWS", 7)
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("abcdef"), 4)) for _ in range(200)]
    things = [(f"urn:{index % 90:03}", word) for index, word in enumerate(words)]
    embed, names = Letters(), Names(things)
    asked = ["abba", "fed"]
    for k in (1, 5, 500):
        for text, found in zip(asked, names.nearest(asked, embed, k), strict=True):
            a, b = embed([text])[0], embed(words)
            cosines = b @ a / np.linalg.norm(a) / np.linalg.norm(b, axis=1)
            best: dict[str, float] = {}
            for (node, _), cosine in zip(things, cosines, strict=True):
                best[node] = max(best.get(node, -2), round(float(cosine), 5))
            wanted = sorted(best.items(), key=lambda item: (-item[1], item[0]))[:k]
            assert [(match.node, round(match.score, 5)) for match in found] == wanted


def test_below_the_least_nothing_is_named():
    names, embed = Names(THINGS), Letters()
    assert names.nearest(["heart"], embed) == [[Match("urn:1", "heart", 1.0)]]
    assert names.nearest(["zzz", "attack"], embed, 5, least=0.99) == [
        [],
        [Match("urn:4", "Attack", 1.0), Match("urn:5", "attack", 1.0)],
    ]
    assert names.nearest([], embed) == []
    assert Names([]).nearest(["x"], embed) == [[]]
    with pytest.raises(InputError, match="k=0"):
        names.nearest(["x"], embed, 0)


def test_an_index_is_made_once(tmp_path):
    first, second = Letters(), Letters()
    made = Names.build(THINGS, first, folder=tmp_path)
    assert set(first.texts) > {name for _, name in THINGS}
    again = Names.build(reversed(THINGS), second, folder=tmp_path)
    assert again.nearest(["heart"], second, 3) == made.nearest(["heart"], first, 3)
    assert not set(second.texts) & {"Attack", "Müller"}
    (place,) = tmp_path.iterdir()
    assert np.load(place / "vectors.npy").dtype == np.float32
    opened = Names.open(place)
    assert opened.nodes == made.nodes
    assert opened.nearest(["cor"], second) == made.nearest(["cor"], first)
    assert len(list(tmp_path.iterdir())) == 1


def test_another_encoder_or_graph_never_reads_it(tmp_path):
    Names.build(THINGS, Letters(), folder=tmp_path)
    for things, embed in (
        (THINGS, Letters(turn=1)),
        (THINGS, Letters(width=30)),
        ([*THINGS, ("urn:10", "new")], Letters()),
        ([("urn:99", "heart"), *THINGS[1:]], Letters()),
    ):
        count = len(list(tmp_path.iterdir()))
        found = Names.build(things, embed, folder=tmp_path)
        assert len(list(tmp_path.iterdir())) == count + 1
        assert set(embed.texts) >= {name for _, name in things}
        assert found.nearest(["Müller"], embed) == Names(things).nearest(["Müller"], embed)
    # One object serves two encoders, each by vectors of its own.
    both, other = Names.build(THINGS, Letters(), folder=tmp_path), Letters(width=30)
    assert both.nearest(["heart"], other)[0][0].node == both.nearest(["heart"], Letters())[0][0].node == "urn:1"


def test_the_last_digits_of_an_encoder_do_not_matter(tmp_path):
    Names.build(THINGS, Letters(), folder=tmp_path)
    Names.build(THINGS, lambda texts: Letters()(texts) * (1 + 1e-5) + 1e-6, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_damaged_index_is_made_anew_or_refused(tmp_path):
    Names.build(THINGS, Letters(), folder=tmp_path)
    (place,) = tmp_path.iterdir()
    whole = (place / "vectors.npy").read_bytes()
    (place / "vectors.npy").write_bytes(whole[:200])
    assert Names.build(THINGS, Letters(), folder=tmp_path).nearest(["heart"], Letters())[0][0].node == "urn:1"
    assert (place / "vectors.npy").read_bytes() == whole
    lines = (place / "names.jsonl").read_text().splitlines()
    (place / "names.jsonl").write_text("\n".join(lines[1:]))
    with pytest.raises(DataError, match="holds other names"):
        Names.open(place)
    (place / "names.jsonl").write_text("{")
    with pytest.raises(DataError, match="holds no names"):
        Names.open(place)
    with pytest.raises(DataError, match="holds no names"):
        Names.open(tmp_path)


def test_two_that_build_at_once_share_one(tmp_path):
    second = Letters()

    def slow(texts):
        if "Müller" in texts and not list(tmp_path.glob("[!.]*")):
            Names.build(THINGS, second, folder=tmp_path / "aside")  # as another process would
            (made,) = (tmp_path / "aside").iterdir()
            made.rename(tmp_path / made.name)
        return Letters()(texts)

    assert Names.build(THINGS, slow, folder=tmp_path).nearest(["heart"], second)[0][0].node == "urn:1"
    assert {path.name for path in tmp_path.iterdir()} - {"aside"} == {
        path.name for path in tmp_path.glob("[0-9a-f]*-*")
    }


def test_a_failure_leaves_nothing(tmp_path):
    def failing(texts):
        if "Müller" in texts:
            raise RuntimeError("gone")
        return Letters()(texts)

    with pytest.raises(RuntimeError, match="gone"):
        Names.build(THINGS, failing, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_that_gives_no_vectors_is_refused(tmp_path):
    for bad in (
        lambda texts: np.full((len(texts), 4), np.nan),
        lambda texts: np.zeros(len(texts)),
        lambda texts: np.zeros((len(texts) + 1, 4)),
        lambda texts: np.zeros((len(texts), 4 + ("heart" in texts))),
    ):
        with pytest.raises(InputError, match="the encoder"):
            Names.build(THINGS, bad, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_parts_of_a_text_that_may_be_names():
    assert phrases("Is a heart attack bad?") == [
        "heart", "attack", "bad", "Is a", "a heart", "heart attack", "attack bad", "Is a heart", "a heart attack",
        "heart attack bad", "Is a heart attack", "a heart attack bad", "Is a heart attack bad",
    ]  # fmt: skip
    assert phrases("St. John's wort, wort", longest=1) == ["St", "John", "s", "wort"]
    assert "St. John's wort" in phrases("Does St. John's wort help?")
    long = phrases("".join(f"w{number} " for number in range(100_000)))
    assert len(long) == 512
    assert max(part.count(" ") for part in long) >= 3
    assert phrases("the?!") == phrases("") == []
    assert phrases("the", common=()) == ["the"]


@pytest.mark.parametrize(
    ("asked", "known"),
    [
        ("hepatitis C", "hepatitis B"),
        ("hyperthyroidism", "hypothyroidism"),
        ("type 1 diabetes", "type 2 diabetes"),
        ("vitamin C", "vitamin D"),
        ("1984 Summer Olympics", "1988 Summer Olympics"),
        ("World War II", "World War I"),
        ("Voyager 1 2", "Voyager 12"),
        ("in action", "inaction"),
    ],
)
def test_another_thing_is_no_misspelt_one(asked, known):
    assert Names([("urn:e:one", known)]).spelt_alike([asked]) == [[]]


@pytest.mark.parametrize(("asked", "known"), [
    ("Hayabusa 2", "Hayabusa2"), ("Voyager2", "Voyager 2"), ("RTX4090", "RTX 4090"), ("Ariane5", "Ariane 5"),
])  # fmt: skip
def test_a_number_may_stand_apart_from_its_word_or_not(asked, known):
    assert [match.name for match in Names([("urn:e:one", known)]).spelt_alike([asked])[0]] == [known]


def test_a_letter_of_a_long_word_may_be_wrong():
    names = Names([("urn:e:one", "hepatitis B")])
    assert [match.node for match in names.spelt_alike(["hepatytis B"])[0]] == ["urn:e:one"]
