"""Chats: which rows are conversations, how a template writes them out, and where their answers stand."""

from __future__ import annotations

import json

import pytest

import tiny
from secateur.data import chats
from secateur.errors import DataError, InputError

ASKED = [{"role": "user", "content": "the tree"}, {"role": "assistant", "content": "grows slowly"}]
GENERATING = tiny.TEMPLATE.replace(
    "<|{{ message['role'] }}|> {{ message['content'] | trim }}{% if message['role'] == 'assistant' %}</s>{% endif %}",
    "<|{{ message['role'] }}|> {% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}</s>"
    "{% endgeneration %}{% else %}{{ message['content'] }}{% endif %}",
)
THINKING = tiny.TEMPLATE.replace(
    "{{ message['content'] | trim }}",
    "{% if loop.last and message['role'] == 'assistant' %}[think] {% endif %}{{ message['content'] | trim }}",
)


def shown(rows, tokenizer, spans=True):
    """The texts, and what their spans hold."""
    found = [chats.find_chat(row, "text", "row") for row in rows]
    texts, places, _ = chats.render(found, tokenizer, "rows", spans=spans)
    return texts, [[text[a:b] for a, b in some] for text, some in zip(texts, places, strict=False)]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": ASKED},
        {"conversations": [{"from": "human", "value": "the tree"}, {"from": "gpt", "value": "grows slowly"}]},
        {"prompt": "the tree", "completion": "grows slowly"},
        {"prompt": ASKED[:1], "completion": ASKED[1:]},
    ],
)
def test_the_forms_of_a_chat_are_written_alike(row):
    texts, answers = shown([row], tiny.chat_tokenizer())
    assert texts == ["<|user|> the tree<|assistant|> grows slowly</s>"]
    assert answers == [["grows slowly</s>"]]


def test_a_column_that_was_named_is_the_only_one_that_is_looked_at():
    named = {"dialog": ASKED, "messages": [{"role": "user", "content": "other"}]}
    assert json.loads(chats.find_chat(named, "dialog", "row"))["messages"] == ASKED
    assert chats.find_chat({"messages": ASKED}, "dialog", "row") is None
    assert chats.find_chat({"text": "the tree", "prompt": "a", "completion": "b"}, "text", "row") is None
    assert chats.find_chat({"tokens": ["a"]}, "text", "row") is None


def test_keys_that_arrow_fills_up_are_no_content():
    row = {"messages": [{**message, "tool_calls": None, "name": None} for message in ASKED]}
    assert json.loads(chats.find_chat(row, "text", "row"))["messages"] == ASKED


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"role": "user"}]}, "row has a message without role or text, number 1 in 'messages'"),
        ({"messages": [*ASKED, {"content": "a"}]}, "number 3 in 'messages': give each a role and a content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "a content that is a text"),
        ({"messages": [*ASKED, "a"]}, "row has no object as message 3 in 'messages'"),
        ({"prompt": "a", "completion": 3}, "row has no messages in 'completion'"),
    ],
)
def test_messages_that_say_nothing_are_refused(row, message):
    with pytest.raises(DataError, match=message):
        chats.find_chat(row, "text", "row")


@pytest.mark.parametrize("template", [tiny.TEMPLATE, GENERATING, THINKING])
def test_every_answer_is_found_by_the_template_s_own_mark_or_by_what_stands_before_it(template):
    tokenizer = tiny.chat_tokenizer(template=template)
    rows = tiny.chats(3, turns=3)
    _, answers = shown(rows, tokenizer)
    for row, some in zip(rows, answers, strict=True):
        said = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
        assert [part.removesuffix("</s>").removeprefix("[think] ") for part in some] == said
        assert all(part.endswith("</s>") for part in some), "the end is learned, too"


def test_of_a_prompt_with_answers_the_completion_alone_counts():
    row = {"prompt": [*ASKED, ASKED[0]], "completion": "is old"}
    for template in (tiny.TEMPLATE, GENERATING):
        assert shown([row], tiny.chat_tokenizer(template=template))[1] == [["is old</s>"]]


def test_a_word_of_the_question_is_not_taken_for_the_answer():
    row = {"messages": [{"role": "user", "content": "old old"}, {"role": "assistant", "content": "old"}]}
    texts, _ = shown([row], tiny.chat_tokenizer())
    found = chats.render([chats.find_chat(row, "text", "row")], tiny.chat_tokenizer(), "rows", spans=True)[1]
    assert found == [((texts[0].index("<|assistant|> ") + len("<|assistant|> "), len(texts[0])),)]


def test_without_a_template_prompts_run_on_and_chats_are_refused():
    texts, answers = shown([{"prompt": "the tree ", "completion": "grows"}], tiny.tokenizer())
    assert (texts, answers) == (["the tree grows"], [["grows"]])
    with pytest.raises(InputError, match="rows holds chats, and the tokenizer has no chat template: take that of an"):
        shown([{"messages": ASKED}], tiny.tokenizer())


def test_what_the_template_refuses_and_chats_without_answers_are_told_by_number():
    strict = tiny.chat_tokenizer(template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(DataError, match="the chat template refuses chat 1 of rows: roles must alternate"):
        shown([{"messages": ASKED}], strict)
    asking = [{"messages": ASKED}, {"messages": ASKED[:1]}]
    with pytest.raises(DataError, match="no answer is found in chat 2 of rows: give one with a message of the assist"):
        shown(asking, tiny.chat_tokenizer())
    assert shown(asking, tiny.chat_tokenizer(), spans=False)[0][1] == "<|user|> the tree"


def test_messages_are_one_text_for_those_that_know_no_roles():
    assert chats.join(chats.find_chat({"messages": ASKED}, "text", "row")) == "the tree\ngrows slowly"
