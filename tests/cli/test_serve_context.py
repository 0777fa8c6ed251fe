"""secateur serve-context: from flags to a server that answers."""

from __future__ import annotations

import socket

import pytest
import uvicorn
from fastapi.testclient import TestClient

from secateur import cli


def test_flags_of_the_service_and_of_the_recipe_reach_the_server(monkeypatch):
    served = {}
    monkeypatch.setattr(uvicorn, "run", lambda app, **how: served.update(app=app, **how))
    given = ["serve-context", "--recipe", "htmlrag", "--budget", "words=3", "--no-headed", "--port", "0"]
    assert cli.main([*given, "--host", "localhost", "--largest", "400"]) == 0
    assert (served["host"], served["port"]) == ("localhost", 0)
    client = TestClient(served["app"])
    page = "<p>Apple trees.</p><p>Cherry trees.</p>"
    assert client.post("/prune", json={"question": "cherry", "html": page}).json()["text"] == "<p>Cherry trees."
    assert client.post("/prune", json={"question": "cherry", "html": page * 20}).status_code == 413


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "serve-context needs"),
        (["--recipe", "ziplm", "--budget", "words=3"], "does not prune what a model reads"),
        (["--recipe", "htmlrag", "--budget", "params=50%"], "params"),
        (["--recipe", "htmlrag", "--budget", "words=3", "--workers", "0"], "workers"),
    ],
)
def test_what_can_not_be_served_is_one_line(capsys, given, words):
    assert cli.main(["serve-context", *given]) == 2
    assert words in capsys.readouterr().err


def test_an_address_that_is_taken_is_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        given = ["serve-context", "--recipe", "htmlrag", "--budget", "words=3", "--port", str(port)]
        assert cli.main(given) == 2
    assert f"127.0.0.1, port {port}: Address already in use" in capsys.readouterr().err
