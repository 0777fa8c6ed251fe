"""One server over HTTP; its retries, bounds and secrets are tested with what asks it (test_llms.py)."""

from __future__ import annotations

import pytest

from secateur import web
from secateur.errors import InputError, ServerError


def client(url="http://127.0.0.1:1/x", **more):
    return web.Client(url, example="http://localhost:8000/v1", key="THE_KEY", **more)


def test_an_address_may_have_a_query_where_that_is_allowed():
    with pytest.raises(InputError, match="THE_KEY"):
        client("http://127.0.0.1:1/x?graph=a")
    assert client("http://127.0.0.1:1/x?graph=a", query=True).url.endswith("?graph=a")


def test_each_further_attempt_is_told():
    told = []
    with pytest.raises(ServerError, match="3 attempts: ConnectError"):
        client(retries=2, backoff=0.001).post("", bytes, again=lambda: told.append(1))
    assert len(told) == 2
