"""A chat server on loopback: what is to be replied, a model's own words, and what the server was asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

import loopback
from loopback import Reply, Request
from secateur.clients.chat import Answer, Local, Meter, Server
from secateur.errors import InputError

__all__ = ["GOOD", "Reply", "Scripted", "say", "scoring", "served", "speaking", "telling"]

GOOD = {
    "choices": [{"message": {"content": " 42 "}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 2},
}


def say(found, status=200, **headers) -> Reply:
    content = found if isinstance(found, bytes) else json.dumps(found).encode()
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, content


@contextmanager
def served(answer: Callable[[dict, dict[str, str]], Reply]) -> Iterator[str]:
    """A real server on loopback: (body, headers) -> reply."""

    def reply(request: Request) -> Reply:
        return answer({**json.loads(request.body), "path": request.path}, request.headers)

    with loopback.serve(reply) as url:
        yield f"{url}/v1"


@contextmanager
def telling(*replies: Reply) -> Iterator[tuple[Server, list]]:
    """A server that gives these replies in turn, and what it was asked."""
    asked, left = [], list(replies)

    def answer(body, headers):
        asked.append((body, headers))
        return left.pop(0) if len(left) > 1 else left[0]

    with served(answer) as url:
        yield Server(url, "small", retries=2, backoff=0.001, timeout=2), asked


def scoring(model: Local, body: dict, names: Callable[[list[int]], list[str]]) -> Reply:
    """A completion of one token, with what was likeliest at each place before it."""
    ids = body["prompt"]
    if isinstance(ids, str):
        ids = model.tokenizer(ids)["input_ids"]
    with torch.no_grad():
        log_p = model.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    ids, top = [*ids, int(log_p[-1].argmax())], [None]
    for row in log_p:
        values, indices = row.topk(body["logprobs"])
        top.append(dict(zip(names(indices.tolist()), values.tolist(), strict=True)))
    told = {"tokens": names(ids), "top_logprobs": top, "token_logprobs": [], "text_offset": []}
    usage = {"prompt_tokens": len(ids) - 1, "completion_tokens": 1}
    return say({"choices": [{"text": "", "logprobs": told if body["echo"] else None}], "usage": usage})


def speaking(
    model: Local, names: Callable[[list[int]], list[str]] = lambda ids: [f"token_id:{number}" for number in ids]
) -> Callable[[dict, dict[str, str]], Reply]:
    """What a server replies that has this model; what is longer than the model reads is refused."""

    def answer(body: dict, headers: dict[str, str]) -> Reply:
        if body["path"].endswith("/v1/completions"):
            return scoring(model, body, names)
        try:
            found = model.ask(
                body["messages"], most=body["max_tokens"], temperature=body["temperature"], seed=body["seed"]
            )
        except InputError as error:
            return say({"error": str(error)}, 400)
        usage = {"prompt_tokens": found.prompt_tokens, "completion_tokens": found.answer_tokens}
        reason = "stop" if found.finished else "length"
        return say({"choices": [{"message": {"content": found.text}, "finish_reason": reason}], "usage": usage})

    return answer


class Scripted:
    """A language model that says what it is told to: these replies in turn (the last again), or what a function says.

    asked: (question, most, temperature, seed) of each call.
    """

    def __init__(self, *replies, **meter):
        self.replies, self.meter, self.asked = list(replies), Meter(**meter), []

    def ask(self, question, *, most=256, temperature=0.0, seed=0):
        self.meter.begin()
        self.asked.append((question, most, temperature, seed))
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        reply = reply(question) if callable(reply) else reply
        if isinstance(reply, Exception):
            raise reply
        found = Answer(reply, len(str(question).split()), len(reply.split()))
        self.meter.end(found, 0.0)
        return found
