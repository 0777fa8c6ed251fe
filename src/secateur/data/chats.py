"""Chats: conversations in rows of data, written out by a tokenizer's chat template, and where their answers stand."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jinja2

from secateur.errors import DataError, InputError, UnsupportedError

__all__ = [
    "COLUMNS",
    "PAIR",
    "UNNAMED",
    "Chat",
    "Message",
    "Spans",
    "Tokenizer",
    "find_chat",
    "find_prompt",
    "join",
    "render",
]

COLUMNS = ("messages", "conversations")
"""Columns of messages, where none is named."""
PAIR = ("prompt", "completion")
"""Columns of what is asked and of what is to be answered: texts, or messages."""
UNNAMED = "text"
"""The column of texts where nobody has named one: only then are chats looked for in others."""

Spans: TypeAlias = tuple[tuple[int, int], ...]
"""(start, end) of the characters of a text that are to be learned."""

Tokenizer: TypeAlias = Any
"""A tokenizer of transformers, which is not typed."""
Message: TypeAlias = dict[str, Any]
"""A role, a content, and whatever else a template may ask for."""

_SHARED_GPT = {"human": "user", "gpt": "assistant"}
"""Roles of rows with "from" and "value", where they have other names."""
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Chat(str):
    """A conversation as JSON: {"messages": [...], "first": the first message that may be an answer, "plain": bool}.

    plain: it is a prompt and a completion, both texts, which make sense without a template too.
    """

    __slots__ = ()


def find_chat(row: Mapping[str, object], column: str, where: str) -> Chat | None:
    """The conversation of a row: in `column`, `messages` or `conversations`, or a `prompt` and its `completion`.

    None for a row without one. Raises `DataError` for messages without a role or content; `where` names the row.
    """
    for name in (column, *COLUMNS) if column == UNNAMED else (column,):
        given = row.get(name)
        if isinstance(given, list | tuple) and given and isinstance(given[0], Mapping):
            return _pack_chat(_read_messages(given, name, where), 0)
    if column != UNNAMED or column in row or any(row.get(name) is None for name in PAIR):
        return None
    prompt, completion = (row[name] for name in PAIR)
    plain = isinstance(prompt, str) and isinstance(completion, str)
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _read_messages(prompt, PAIR[0], where)
    answer = (
        [{"role": "assistant", "content": completion}]
        if isinstance(completion, str)
        else _read_messages(completion, PAIR[1], where)
    )
    return _pack_chat([*asked, *answer], len(asked), plain=plain)


def _pack_chat(messages: Sequence[Message], first: int, *, plain: bool = False) -> Chat:
    return Chat(json.dumps({"messages": messages, "first": first, "plain": plain}, ensure_ascii=False))


def _read_messages(given: object, column: str, where: str) -> list[Message]:
    """Messages with `role` and `content`; those of ShareGPT, with `from` and `value`, are renamed."""
    if not isinstance(given, list | tuple):
        raise DataError(f"{where} has no messages in {column!r}: give a list of objects with role and content")
    messages = []
    for number, message in enumerate(given, 1):
        if not isinstance(message, Mapping):
            raise DataError(f"{where} has no object as message {number} in {column!r}: give role and content")
        if "role" not in message and "from" in message:
            role = str(message["from"])
            message = {"role": _SHARED_GPT.get(role, role), "content": message.get("value")}
        content = message.get("content")
        if not isinstance(message.get("role"), str) or not (
            isinstance(content, str) or (content is None and message.get("tool_calls"))
        ):
            raise DataError(
                f"{where} has a message without role or text, number {number} in {column!r}: give each a role and a "
                "content that is a text"
            )
        # Arrow gives every message all keys of its column, None where it has none of them.
        messages.append({key: value for key, value in message.items() if value is not None})
    return messages


def join(chat: str) -> str:
    """The contents of a conversation, one after another, for a model that knows no roles."""
    return "\n".join(message.get("content", "") for message in json.loads(chat)["messages"]).strip()


def find_prompt(chat: str) -> str:
    """What a conversation asks, all but its last message, as JSON: equal for several answers to one prompt."""
    return json.dumps(json.loads(chat)["messages"][:-1])


def render(
    chats: Sequence[str], tokenizer: Tokenizer, name: str, *, spans: bool
) -> tuple[list[str], list[Spans], bool]:
    """(texts, spans of their answers, whether a template wrote them): conversations as the model is to read them.

    A tokenizer's chat template writes them. Prompts and completions that are texts run on as they are where there is
    no template.

    spans: find the answers, those of the role "assistant"; else there are none. Where the template says which
    characters it generates ("{% generation %}"), by that; else an answer begins where the template, given the messages
    before it, asks for one, and ends with the content and the special token behind it.

    name: of the data, in errors. Raises `InputError` for a tokenizer without a template, `DataError` for a conversation
    that the template refuses, or of which no answer can be found.
    """
    if not getattr(tokenizer, "chat_template", None):
        return _run_on(chats, name)
    generates = bool(_GENERATION.search(tokenizer.get_chat_template()))
    ends = re.compile(r"\s*(?:" + "|".join(map(re.escape, tokenizer.all_special_tokens)) + ")")
    texts, found = list[str](), list[Spans]()
    for number, chat in enumerate(chats, 1):
        given = json.loads(chat)
        messages, first = given["messages"], given["first"]
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False)
            if spans and generates and not first:
                found.append(_find_generated(tokenizer, messages))
            elif spans:
                found.append(_find_answers(tokenizer, messages, first, text, ends))
        except jinja2.TemplateError as error:
            raise DataError(f"the chat template refuses chat {number} of {name}: {error}") from error
        if spans and not found[-1]:
            raise DataError(
                f"no answer is found in chat {number} of {name}: give one with a message of the assistant, or a chat "
                "template that marks answers by {% generation %}"
            )
        texts.append(text)
    return texts, found, True


def _run_on(chats: Sequence[str], name: str) -> tuple[list[str], list[Spans], bool]:
    """Prompts with their completions, one text each, without a template."""
    texts, spans = list[str](), list[Spans]()
    for chat in chats:
        given = json.loads(chat)
        if not given["plain"]:
            raise InputError(
                f"{name} holds chats, and the tokenizer has no chat template: take that of an instruct model, or set "
                "chat_template in its folder"
            )
        prompt, completion = (message["content"] for message in given["messages"])
        texts.append(prompt + completion)
        spans.append(((len(prompt), len(prompt + completion)),))
    return texts, spans, False


def _find_generated(tokenizer: Tokenizer, messages: Sequence[Message]) -> Spans:
    """Where the template says that it generates."""
    try:
        read = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_offsets_mapping": True},
        )  # fmt: skip
    except NotImplementedError as error:
        raise UnsupportedError("answers are found by a fast tokenizer, which tells where its tokens stand") from error
    spans, before = list[tuple[int, int]](), 0
    for (start, end), generated in zip(read["offset_mapping"], read["assistant_masks"], strict=True):
        if generated and before:
            spans[-1] = (spans[-1][0], end)
        elif generated:
            spans.append((start, end))
        before = generated
    return tuple(spans)


def _find_answers(
    tokenizer: Tokenizer, messages: Sequence[Message], first: int, text: str, ends: re.Pattern[str]
) -> Spans:
    """Where the assistant's messages stand in `text`, by what the template writes before them.

    Those that a template writes otherwise once more messages follow, so that they are not found, are left out.
    """
    spans = list[tuple[int, int]]()
    for place, message in enumerate(messages):
        if place < first or message["role"] != "assistant":
            continue
        start = _find_start(tokenizer, messages[:place], text)
        content = message.get("content", "").strip()
        at = text.find(content, max(start, 0))
        if start < 0 or at < 0:
            continue
        end = at + len(content)
        closing = (ends.search if message.get("tool_calls") else ends.match)(text, end)
        spans.append((start, closing.end() if closing else end))
    return tuple(spans)


def _find_start(tokenizer: Tokenizer, before: Sequence[Message], text: str) -> int:
    """Where an answer to the messages `before` begins in `text`; -1 where the template writes those otherwise there."""
    if not before:
        return 0
    for asking in (True, False):
        head = tokenizer.apply_chat_template(before, tokenize=False, add_generation_prompt=asking)
        if text.startswith(head):
            return len(head)
    return -1
