"""Answers: held by a text, and alike to those that are right."""

from __future__ import annotations

import pytest

from secateur.measure import answers


def test_a_text_holds_an_answer_whatever_its_blanks_and_letters():
    assert answers.holds("Cherry trees are\n  pruned in Summer.", ["in winter", "pruned in summer"])
    assert not answers.holds("Cherry trees are pruned.", ["pruned in summer"])
    for text, answer in [("in 1907", "7"), ("--size", "-s"), ("know", "no"), ("others", "the rs"), ("x-y", "y")]:
        assert not answers.holds(text, [answer]), answer
    for text, answer in [
        ("up to 7.", "7"),
        ("say -s or", "-s"),
        ("say no!", "no"),
        ("f( x )", "f(x)"),
        ("a\nb", "a b"),
    ]:
        assert answers.holds(text, [answer]), answer
    assert not answers.holds("anything", ["  "]), "an answer of blanks is none"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("中国的首都是北京。", "北京"), ("富士山は3776メートルです。", "3776メートル"), ("高さは3776メートル", "3776"),
        ("กรุงเทพมหานครเป็นเมืองหลวง", "เมือง"), ("수도는 서울이다", "서울"), ("I don’t know", "don't"),
        ("Cafe\u0301s", "Cafés"), ("IDs 100–999 are", "100-999"), ("２０２４年", "2024"), ("of 1914–1918", "1918"),
        ("in 1914-1918", "1914"),
        ("Paris—the capital", "Paris"), ("a 30-day limit", "30"), ("born 12.05.2024", "2024"), ("f(1,2,3)", "2"),
        ("am 12.5.2024", "2024"), ("10² m", "10²"),
        ("It was 1907.", "1907"), ("1907, 300 men", "1907"), ("1.5.", "1.5"),
    ],
)  # fmt: skip
def test_an_answer_is_held_whatever_its_script_and_its_quotes_and_dashes(text, answer):
    assert answers.holds(text, [answer])


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("version 1.5", "5"), ("version 1.5", "1"), ("It costs 1,300 euros", "300"), ("It costs 1,300 euros", "1"),
        ("0.30", "30"), ("x-terminal-emulator", "x"), ("x-terminal", "terminal"), ("covid-19", "19"), ("−5 or -5", "5"),
        ("1.5.2", "1.5"), ("10² m", "102"), ("x₁", "x1"), ("知っているnow", "no"), ("13776メートル", "3776メートル"),
    ],
)  # fmt: skip
def test_no_answer_is_held_within_a_word_or_a_number(text, answer):
    assert not answers.holds(text, [answer])


@pytest.mark.parametrize(
    ("given", "right", "exact", "f1"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], 1.0, 1.0),
        ("in the summer", ["summer"], 0.0, 2 * 1 / 3),
        ("a b b", ["b b c", "x"], 0.0, 1.0 * 2 * 2 / 5),
        ("", ["summer"], 0.0, 0.0),
        ("the", ["a"], 1.0, 1.0),
    ],
)
def test_exact_match_and_f1_are_those_of_squad(given, right, exact, f1):
    assert answers.exact_match(given, right) == exact
    assert answers.token_f1(given, right) == pytest.approx(f1)
    assert answers.exact_match(given, right) <= answers.token_f1(given, right)


@pytest.mark.parametrize(
    ("given", "right", "score"),
    [
        ("A", "A", 1),
        ("a", "A", 1),
        ("", "A", 0),
        ("the", "A", 0),
        ("", "summer", 0),
        ("The Summer!", "summer", 1),
        ("-5", "5", 0),
        ("5", "\N{MINUS SIGN}5", 0),
        ("- 5", "-5", 1),
        ("3.5", "35", 0),
        ("73", "073", 1),
        ("1,000", "1000", 1),
        (r"\text{B}", "B", 1),
        ("1/2", "12", 0),
        (r"\frac{1}{2}", "0.5", 1),
        ("$42$.", "42", 1),
        ("1/0", "1/0", 1),
        ("July 4, 1776", "july 4 1776", 1),
    ],
)
def test_numbers_are_the_same_by_value_and_no_answer_is_never_right(given, right, score):
    assert answers.same_answer(given, [right]) == score


def test_no_letter_is_not_the_letter_a():
    assert answers.letter_match("", ["A"]) == 0.0, "which is an article to the other matches"
    assert answers.letter_match("A", ["A"]) == 1.0
    assert answers.letter_match("B", ["A"]) == 0.0


# ------------------------------------------------------------------------------------------- what a model was asked for


def test_an_alias_counts_anywhere_and_an_empty_answer_nowhere():
    assert answers.alias_match("It is New  York, I think", ["newyork", "NYC"]) == 1
    assert answers.alias_match("Boston", ["New York"]) == 0
    assert answers.alias_match("", ["x"]) == answers.alias_match("x", [""]) == 0
    assert answers.lenient_match("the Paris of today", ["Paris"]) == 1
    assert answers.lenient_match("Lisa", ["the Mona Lisa"]) == 1
    assert answers.lenient_match("", ["Paris"]) == answers.lenient_match("The", ["Paris"]) == 0


@pytest.mark.parametrize(
    ("text", "letter"),
    [("B", "B"), (" (C) Paris", "C"), ("The answer is b.", "B"), ("Answer: **D**", "D"), ("a bit of A", "A"),
     ("I can't say", ""), ("Because", ""), ("c", "C"), ("", ""), ("A or B? The answer is B", "B")],
)  # fmt: skip
def test_a_letter_is_read_where_it_stands_alone(text, letter):
    assert answers.read_letter(text, "ABCD") == letter


def test_the_last_box_is_read_with_its_braces():
    assert answers.read_boxed(r"so \boxed{1} no, \boxed{\frac{1}{2}} it is") == r"\frac{1}{2}"
    assert answers.read_boxed(r"cut \boxed{12") == answers.read_boxed("12") == ""


def test_rouge_is_of_the_longest_common_subsequence():
    assert answers.rouge_l("police killed the gunman", ["police kill the gunman"]) == pytest.approx(2 * 2 / 6)
    assert answers.rouge_l("x", ["y", "x"]) == 1
    assert answers.rouge_l("", ["y"]) == answers.rouge_l("y", []) == 0


def test_repetition_shows_in_distinct_words():
    assert answers.distinct(["a b a b", "A"]) == pytest.approx(2 / 5)
    assert answers.distinct(["a b a b"], 2) == pytest.approx(2 / 3)
    assert answers.distinct(["a"], 2) == answers.distinct([]) == 0
