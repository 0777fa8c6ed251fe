"""One server over HTTP; its retries, bounds and secrets are tested with what asks it (test_llms.py)."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from secateur._utils import http
from secateur.errors import InputError, ServerError


def client(url="http://127.0.0.1:1/x", **more):
    return http.Client(url, example="http://localhost:8000/v1", key="THE_KEY", **more)


def test_an_address_may_have_a_query_where_that_is_allowed():
    with pytest.raises(InputError, match="THE_KEY"):
        client("http://127.0.0.1:1/x?graph=a")
    assert client("http://127.0.0.1:1/x?graph=a", query=True).url.endswith("?graph=a")


def test_each_further_attempt_is_told():
    told = []
    with pytest.raises(ServerError, match="3 attempts: ConnectError"):
        client(retries=2, backoff=0.001).post("", bytes, again=lambda: told.append(1))
    assert len(told) == 2


def test_an_answer_that_drips_is_none():
    """Each byte in time, all of them not."""

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        try:
            for _ in range(100):
                connection.sendall(b"x")
                time.sleep(0.05)
        except OSError:  # who asked has left
            pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,), daemon=True)
        thread.start()
        began = time.monotonic()
        with pytest.raises(ServerError, match="no whole answer in time"):
            client(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=0.3, retries=0).post("", bytes)
        assert time.monotonic() - began < 2
        thread.join()
