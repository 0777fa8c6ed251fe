"""What the tests of context pruning read: pages, passages, a graph, and lines of questions about them."""

from __future__ import annotations

import json

import keeper
from secateur.clients import chat

PAGE = "<html><body><nav>home about</nav>" + "".join(
    f"<section><h2>Town {i}</h2><p>The mayor of town{i} is person{i}.</p><p>{'Nothing more. ' * 6}</p></section>"
    for i in range(8)
) + "</body></html>"  # fmt: skip


ASKED = keeper.sentence(3)


PARTS = [keeper.sentence(20, 21, 22, 23), keeper.sentence(3, 30, 31, 32), keeper.sentence(24, 25, 26, 27)]


def characters(texts):
    return [len(text) for text in texts]


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def written(path, count=12, **more):
    rows = [{"id": i, "question": f"Who is the mayor of town{i % 8}?", "html": PAGE, **more} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Halved:
    """A language model that says half an emoji."""

    def __init__(self):
        self.meter = chat.Meter()

    def ask(self, question, *, most=256, temperature=0.0, seed=0):
        return chat.Answer("salbutamol \ud83d")
