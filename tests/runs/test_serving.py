"""The service: answers as prune_context gives them, many at once, and one line for what can't be answered."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient

import secateur
import tiny
from chat_server import Scripted
from secateur.errors import DataError, InputError
from secateur.runs import serving

PAGE = "<p>Apple trees are pruned in winter.</p><p>Cherry trees are pruned in summer.</p>"
ROW = {"question": "When are cherry trees pruned?", "html": PAGE}


@pytest.fixture(scope="module")
def client():
    return TestClient(serving.open_app(serving.Service("htmlrag", "words=6"), workers=2, largest=2000))


def test_it_answers_as_python_does_and_a_request_may_bring_its_budget(client):
    found = client.post("/prune", json=ROW).json()
    alone = secateur.prune_context("htmlrag", PAGE, ROW["question"], "words=6")
    assert found["text"] == alone.text == "<p>Cherry trees are pruned in summer."
    assert (found["before"], found["after"]) == (dict(alone.before), dict(alone.after))
    assert found["documents"] == list(alone.documents)
    assert client.post("/prune", json={**ROW, "budget": "words=2"}).json()["after"] == {"words": 2}


def test_many_at_once_get_their_own_answers(client):
    def ask(number):
        page = f"<p>About town{number}.</p><p>{'More and more words of nothing at all'}.</p>"
        return client.post("/prune", json={"question": f"town{number}", "html": page}).json()["text"]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(24))) == [f"<p>About town{number}." for number in range(24)]
    health = client.get("/health").json()
    assert (health["status"], health["recipe"], health["in_work"]) == ("ok", "htmlrag", 0)
    assert health["answered"] >= 24


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("no json", 400, "this line is no JSON"),
        ("[1]", 400, "this line is a list"),
        (json.dumps({"question": "why?"}), 400, "no html, text, passages"),
        (json.dumps({"html": PAGE}), 400, "there is no question"),
        (json.dumps({"question": "why?", "file": "/etc/passwd"}), 400, "no html, text, passages"),
        (json.dumps({**ROW, "budget": "words=no"}), 400, "words=no"),
        (json.dumps({**ROW, "budget": "512"}), 400, "say tokens=512, words=400 or a share"),
        (json.dumps({**ROW, "budget": "\ud800=5"}), 400, "?=5"),
        (json.dumps({**ROW, "prior": [10**400]}), 400, "a prior with a number above 1e308"),
        (json.dumps({**ROW, "prior": [1, 2]}), 400, "prior has 2 scores"),
        (json.dumps({**ROW, "budget": 5}), 400, "budget 5 is no text"),
        (json.dumps({**ROW, "html": "x" * 3000}), 413, "at most 2000 bytes"),
        (b"\xff\xfe", 400, "this line is no JSON"),
        ("[" * 1500, 400, "this line is no JSON"),
    ],
)
def test_what_can_not_be_answered_gets_one_line(client, body, status, words):
    answer = client.post("/prune", content=body)
    assert answer.status_code == status
    assert words in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


def test_an_embedder_by_name_serves_and_reads_questions_with_their_prompt(tmp_path, monkeypatch):
    """What threads share had the attribute by which models are told, and hid the prompt for questions."""
    from sentence_transformers import SentenceTransformer

    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    folder = str(tiny.folder("bert", tmp_path / "bert", sentence=True))
    model = SentenceTransformer(folder, device="cpu", prompts={"query": "ask ", "document": "read "})
    model.save(folder)
    read = []
    encode = SentenceTransformer.encode

    def listen(self, sentences, prompt="", **options):
        read.extend(prompt + text for text in sentences)
        return encode(self, sentences, prompt=prompt, **options)

    monkeypatch.setattr(SentenceTransformer, "encode", listen)
    service = serving.Service("htmlrag", "words=3", embedder=folder)
    questions = ["one two", "three four"]
    row = {"html": "<p>one two</p><p>three four</p>"}
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(service.answer, [{**row, "question": question} for question in questions]))
    heard = set(read)
    expected = [secateur.prune_context("htmlrag", row["html"], q, "words=3", embedder=folder).text for q in questions]
    assert [answer["text"] for answer in found] == expected
    assert {f"{prompt} {text}" for prompt in ("ask", "read") for text in questions} <= heard


def test_who_breaks_off_while_sending_is_no_error_of_the_service():
    """Dozens of lines of traceback stood in the log."""
    app = serving.open_app(serving.Service("htmlrag", "words=6"))
    sent, told = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]), []

    async def receive():
        return next(sent)

    async def send(message):
        told.append(message)

    scope = {"type": "http", "method": "POST", "path": "/prune", "query_string": b"", "headers": []}
    asyncio.run(app(scope, receive, send))
    assert told[0]["status"] == 400
    assert TestClient(app).get("/health").json()["failed"] == 1


def test_a_document_that_a_retriever_gave_no_score_ranks_last(client):
    row = {"question": "When are trees pruned?", "html": ["<p>Trees are pruned early.", "<p>Trees are pruned late."]}
    for prior, left in (([None, -9], "<p>Trees are pruned late."), ([-9, None], "<p>Trees are pruned early.")):
        assert client.post("/prune", json={**row, "prior": prior, "budget": "words=4"}).json()["text"] == left


def test_who_comes_when_all_are_busy_is_turned_away():
    client = TestClient(serving.open_app(serving.Service("htmlrag", "words=6"), workers=0 + 1, waiting=-1))
    answer = client.post("/prune", json=ROW)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert client.get("/health").json()["turned_away"] == 1


def test_a_recipe_or_option_that_is_none_is_refused_before_anything_is_served():
    for given, words in [(("ziplm", "params=50%"), "does not prune what a model reads"), (("htmlrag", "x"), "budget"),
                         (("kg_rag", "words=5"), "give the graph")]:  # fmt: skip
        with pytest.raises(InputError, match=words):
            serving.Service(*given)
    with pytest.raises(InputError, match="wide"):
        serving.Service("htmlrag", "words=6", wide=0.5)


def test_a_graph_that_can_not_be_opened_is_refused_before_anything_is_served(tmp_path):
    """Each request had the error in its place."""
    (tmp_path / "bad.csv").write_text("subject,predicate,object\nsalbutamol,treats\n")
    for name, words in (("none.csv", "is not there"), ("bad.csv", "line 2 has 2 columns")):
        with pytest.raises(DataError, match=words):
            serving.Service("kg_rag", "words=5", graph=str(tmp_path / name))


def test_limits_of_the_run_are_of_all_requests_together(graph):
    """Each request had them anew."""
    model = Scripted('{"entities": ["asthma"]}')
    service = serving.Service("kg_rag", "words=9", graph=str(graph), llm=model, run_calls=2)
    told = [service.answer({"question": "What treats asthma?"})["told"] for _ in range(4)]
    assert [one["llm_calls"] for one in told] == [1, 1, 0, 0]
    assert ["as often as allowed" in " ".join(one["notes"]) for one in told] == [False, False, True, True]
