"""How a question is read for the paths that are to answer it."""

from __future__ import annotations

from secateur.methods.path_questions import (
    find_phrases,
    find_position,
    is_common_noun,
    order_topics,
    read_question,
    split_indicator,
    suits_kind,
)  # fmt: skip


def test_another_order_of_topics_has_its_own_names_parts_and_phrases():
    question = read_question("What likes asthma and hates tremor?", ["n1", "n2"], ["asthma", "tremor"], "")
    turned = order_topics(question, ["n2", "n1"])
    assert (turned.topics, turned.names) == (("n2", "n1"), ("tremor", "asthma"))
    assert turned.parts == question.parts[::-1]
    assert turned.phrases == question.phrases[::-1] == ("hates", "likes")
    assert turned.steps == question.steps


def test_phrases_are_those_nearest_to_the_topic_first():
    assert find_phrases("What is the nationality of the director of Toy Story?", "Toy Story", ["Toy Story"]) == [
        "director", "nationality"
    ]  # fmt: skip
    assert find_phrases("Which drug treats asthma", "asthma", ["asthma"]) == ["treats"]
    assert find_phrases("that affects something that virus causes", "virus", ["virus"]) == ["causes", "affects"]
    assert find_phrases("", "x", ["x"]) == []


def test_what_is_asked_for_and_what_is_described_are_phrases_where_nothing_else_is():
    for text, wanted in (
        ("What part of the body does gout affect?", ["affect"]), ("Which colour has gout?", ["colour"]),
        ("What side effect does gout have?", ["side effect"]), ("Where is the maker of gout born?", ["maker", "born"]),
        ("In which city is the seat of the firm that makes gout?", ["makes", "seat"]), ("What is gout?", []),
    ):  # fmt: skip
        assert find_phrases(text, "gout", ["gout"]) == wanted


def test_what_is_asked_for_is_kept_beside_the_phrases():
    for text, phrases, kinds in (
        ("Which currency is used in Chad?", ("used",), ("currency",)), ("Which currency has Chad?", ("currency",), ()),
        ("What is the firm that sells Chad?", ("sells",), ("firm",)), ("Who used Chad?", ("used",), ()),
    ):  # fmt: skip
        question = read_question(text, ["c"], ["Chad"], "")
        assert (question.phrases, question.kinds) == (phrases, kinds)


def test_a_common_noun_is_no_name():
    for text, common in (
        ("Which moon did Huygens land on?", True), ("What is the moon of Neptune?", True), ("Who saw moon?", False),
        ("What is the Moon of Neptune?", False), ("Who landed on the moon?", False),
    ):  # fmt: skip
        start = text.lower().index("moon")
        assert is_common_noun(text, start, start + 4, "Moon") == common
        assert not is_common_noun(text, start, start + 4, "moon")


def test_a_time_is_a_number_alone_or_with_what_times_are_told_by():
    when = read_question("When was Rosetta 2 built?", ["r"], ["Rosetta 2"], "")
    who = read_question("Who built Rosetta 2?", ["r"], ["Rosetta 2"], "")
    for name in ("2004", "2 March 2004", "2004-03-02T07:17:00Z", "c. 300 BC", "the 19th century", "1990s", "Q3 2004"):
        assert suits_kind(when, f"Rosetta 2 -[built]-> {name}")
        assert not suits_kind(who, f"Rosetta 2 -[built]-> {name}")
    for name in ("Ariane 5", "433 Eros", "67P/Churyumov-Gerasimenko", "H-IIA", "Ruth"):
        assert not suits_kind(when, f"{name} <-[built in 2004]- Rosetta 2")
        assert suits_kind(who, f"{name} <-[built in 2004]- Rosetta 2")
    assert suits_kind(when, "Rosetta 2 -[built]-> {Ruth, 2004}")


def test_an_indicator_is_entities_and_relations_in_turn():
    assert split_indicator('"A b" - treats - x -> causes - "C"') == ["A b", "treats", "x", "causes", "C"]
    assert split_indicator("heart-attack") == ["heart-attack"]


def test_names_are_placed_by_their_letters():
    assert find_position("Toy Story", "who made toy story?") == 9
    assert find_position("Toy Storie", "who made toy story?") == 9
    assert find_position("zzz", "who?") == 4
