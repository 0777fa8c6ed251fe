"""Encoders and cross-encoders behind a real server on loopback, and servers that are slow, refuse or lie."""

from __future__ import annotations

import numpy as np
import pytest

import tiny
from chat_server import say, served
from secateur.clients import embeddings
from secateur.clients.embeddings import Embedder, Ranker
from secateur.errors import InputError, ServerError
from secateur.retrieval import encoders, rerankers

pytest.importorskip("httpx2")

QUICK = {"retries": 1, "backoff": 0.001, "timeout": 5}
TEXTS = tiny.sentences(40)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The tests' small encoder."""
    return encoders.encoder(str(tiny.folder("bert", tmp_path_factory.mktemp("encoder") / "bert", sentence=True)))


def serving(embed, asked):
    """What a server of both protocols replies that has this encoder."""

    def answer(body, headers):
        path = body.pop("path")
        asked.append((path, body, headers))
        if path == "/v1/embeddings":
            rows = [{"index": i, "embedding": row.tolist()} for i, row in enumerate(embed(body["input"]))]
            return say({"data": rows[::-1], "model": body["model"]})
        vectors = embed(body.get("inputs") or [body["query"], *body["texts"]])
        if path == "/v1/embed":  # `served` gives an address with a version; the test of this one takes another
            return say({}, 404)
        if path == "/embed":
            return say(vectors.tolist())
        scores = vectors[1:] @ vectors[0]
        order = np.argsort(-scores)
        return say([{"index": int(i), "score": float(scores[i])} for i in order])

    return answer


def test_both_protocols_give_the_vectors_of_the_encoder_itself(local, monkeypatch):
    monkeypatch.setenv("SECATEUR_EMBED_KEY", "sk-mine")
    asked = []
    with served(serving(local, asked)) as url:
        for address in (f"{url}#small", url.removesuffix("/v1")):
            embed = encoders.encoder(address)
            assert encoders.encoder(address) is embed  # opened once
            np.testing.assert_allclose(embed(TEXTS), local(TEXTS), atol=1e-5)
            assert embed([]).shape[0] == 0
            assert embed(["", "x" * 100_000]).dtype == np.float32
            remembered = encoders.open_remembering(address)
            assert np.array_equal(remembered(TEXTS[:3]), remembered(TEXTS[:3]))
    openai = [(body["model"], len(body["input"])) for path, body, _ in asked if path == "/v1/embeddings"]
    assert openai[:2] == [("small", 32), ("small", 8)]
    assert all(body["truncate"] for path, body, _ in asked if path == "/embed")
    assert {headers["Authorization"] for _, _, headers in asked} == {"Bearer sk-mine"}
    assert max(len(text) for _, body, _ in asked for text in body.get("input") or body["inputs"]) == embeddings.LONGEST


def test_a_cross_encoder_elsewhere_scores_passages(local):
    asked = []
    with served(serving(local, asked)) as url:
        found = rerankers.open_ranker(url.removesuffix("/v1"))
        pairs = [(TEXTS[0], [one, one]) for one in TEXTS[1:36]] + [(TEXTS[36], [TEXTS[37]])]
        told = found.judge(pairs)
    vectors = local([TEXTS[0], *(f"{one} {one}" for one in TEXTS[1:36])])
    np.testing.assert_allclose([one.score for one in told[:-1]], vectors[1:] @ vectors[0], atol=1e-5)
    assert [(path, body["raw_scores"]) for path, body, _ in asked] == [("/rerank", True)] * 3
    assert told[0].keep.tolist() == [1, 1]
    assert told[0].owner.tolist() == [0, 1]


def test_a_page_is_cut_by_an_encoder_elsewhere(local):
    import secateur

    page = "".join(f"<p>{text}</p>" for text in TEXTS)
    with served(serving(local, [])) as url:
        there = secateur.prune_context("htmlrag", page, TEXTS[5], "words=30", embedder=url.removesuffix("/v1"))
    assert there.text == secateur.prune_context("htmlrag", page, TEXTS[5], "words=30", embedder=local).text


def test_a_key_goes_to_whom_it_is_for(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    monkeypatch.delenv("SECATEUR_EMBED_KEY", raising=False)
    asked = []
    with served(serving(lambda texts: np.ones((len(texts), 2)), asked)) as url:
        Embedder(f"{url}#a")(["x"])
    assert "Authorization" not in asked[0][2]
    assert Embedder("https://api.openai.com/v1#a").key == "OPENAI_API_KEY"
    for other in ("https://api.openai.com.example.org/v1#a", "http://api.openai.com/v1#a"):
        assert Embedder(other).key == "SECATEUR_EMBED_KEY"
    with pytest.raises(InputError, match="not the key") as error:
        Embedder("https://example.org/v1#a", key="sk-secret")
    assert "sk-secret" not in str(error.value)


@pytest.mark.parametrize(
    "bad",
    [
        b"no json", {}, [], [[1.0]], [[1.0], [float("nan")]], [[1.0], [1.0, 2.0]], [["a"], ["b"]], [1.0, 2.0], [[], []],
        {"data": [{"index": 0, "embedding": [1.0]}] * 2}, {"data": None}, [{"index": 5, "score": 1}] * 2,
        [{"index": 0, "score": 1}, {"index": 1, "score": None}],
    ],
    ids=range(13),
)  # fmt: skip
def test_what_is_no_answer_is_asked_again_and_then_told(bad):
    asked = []

    def answer(body, _):
        asked.append(body)
        return say(bad)

    with served(answer) as url:
        root = url.removesuffix("/v1")
        asks = (lambda: Embedder(f"{url}#a", **QUICK)(["x", "y"]), lambda: Embedder(root, **QUICK)(["x", "y"]),
                lambda: Ranker(root, **QUICK)("q", ["x", "y"]))  # fmt: skip
        for ask in asks:
            with pytest.raises(ServerError, match="2 attempts: what came"):
                ask()
    assert len(asked) == 6


def test_refusals_and_addresses_that_are_none():
    with served(lambda *_: say({"error": "too large"}, 413)) as url, pytest.raises(ServerError, match="HTTP 413"):
        Embedder(f"{url}#a", **QUICK)(["x"])
    with pytest.raises(ServerError, match="2 attempts"):
        Embedder("http://127.0.0.1:9", **QUICK)(["x"])
    for address, message in (
        ("http://localhost/v1", "http://.../v1#NAME"), ("http://a:b@localhost", "SECATEUR_EMBED_KEY"),
        ("http://", "is none"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            encoders.encoder(address)
    with pytest.raises(InputError, match="no cross-encoders"):
        rerankers.open_ranker("http://localhost/v1")
