"""Rewrites by a model that answers over HTTP, accepted by what another model measures."""

from __future__ import annotations

import math

import pytest

from chat_server import say, served
from secateur.clients import chat
from secateur.methods import rewriting
from secateur.methods.learning import Document

TEXT = Document("The sand is mauve here.", "mauve", 12, "colour")


def answering(content):
    """A server whose model says `content`, or what that gives for a question."""

    def answer(body, headers):
        text = content(body) if callable(content) else content
        return say({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})

    return served(answer)


def test_a_keyword_stands_as_a_word():
    assert rewriting.find_keyword("ramens and ramen, too", "ramen") == 11
    assert rewriting.find_keyword("Ramen", "ramen") is None
    assert rewriting.find_keyword("anything", "") is None
    assert rewriting.find_keyword("a C++ book", "C++") == 2


def test_what_the_model_writes_takes_the_place_of_the_text_or_stands_behind_it():
    with answering('"Between violet and pink, the sand is mauve here."') as url:
        writer = chat.open_model(url, "small")
        made = rewriting.propose(writer, TEXT, "stepping stones")
        assert made == Document("Between violet and pink, the sand is mauve here.", "mauve", 37, "colour")
        behind = rewriting.propose(writer, TEXT, "consequences")
        assert behind.text == f"{TEXT.text} Between violet and pink, the sand is mauve here."
        assert (behind.start, behind.context) == (TEXT.start, TEXT.context)
    for answer in ("", "The sand is of that colour."):
        with answering(answer) as url:
            assert rewriting.propose(chat.open_model(url, "small"), TEXT, "paraphrase") is None


@pytest.mark.parametrize(("gain", "accepted"), [(4.0, "third mauve"), (20.0, None)])
def test_a_rewrite_is_accepted_by_its_measured_probability(gain, accepted):
    asked, logs = [], {TEXT.text: -6.0, "first mauve": -7.0, "third mauve": -6.0 + math.log(5)}

    def answer(body):
        asked.append((body["temperature"], body["seed"], body["messages"][0]["content"]))
        return ["first mauve", "no keyword", "third mauve"][len(asked) - 1]

    with answering(answer) as url:
        made, best = rewriting.rewrite(
            chat.open_model(url, "small"), TEXT, lambda document: logs[document.text], gain=gain
        )
    assert (made.text if made else None) == accepted
    assert best == logs["third mauve"]
    assert [seed for _, seed, _ in asked] == [0, 1, 2]
    assert "'mauve'" in asked[0][2]
    assert TEXT.text in asked[0][2]
