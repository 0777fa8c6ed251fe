"""HTTP client of one server, with limits of time, size and rate; temporary failures are retried.

A server that is slow, down or gives no valid answer ends in one `ServerError`. Secrets come from the environment alone
and stand in no message, log or file.
"""

from __future__ import annotations

import email.utils
import math
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack
from urllib.parse import urlsplit

from secateur.errors import InputError, MissingExtraError, ServerError

if TYPE_CHECKING:
    import tenacity

__all__ = [
    "LARGEST",
    "Client",
    "LargeError",
    "PassingError",
    "RefusedError",
    "RequestOptions",
    "check_key",
    "is_address",
]

T = TypeVar("T")

LARGEST = 16 * 2**20
"""Bytes of an answer; what is longer is no answer."""
_UNFIT = {400, 413, 422}
"""What a server says of a request that it can't read, or that is too long for it."""
_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}


def is_address(source: object) -> bool:
    """Whether something is named by the address of a server."""
    return isinstance(source, str) and source.startswith(("http://", "https://"))


def check_key(name: str) -> str:
    """The environment variable that a user says holds a key.

    Raises `InputError` where it holds none, without telling its name: that may be the key itself.
    """
    if not os.environ.get(name):
        raise InputError("the variable that is named for a key is not set: give its name, such as MY_KEY, not the key")
    return name


class PassingError(Exception):
    """A failure that may pass; `wait`: seconds that the server asks for."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class LargeError(ServerError):
    """An answer longer than is read. It would be so again: ask for less."""


class RefusedError(ServerError):
    """A refusal of what was asked, not of who asks: something else may be answered."""


class RequestOptions(TypedDict, total=False):
    """How a server is asked."""

    timeout: float
    """Seconds to wait for an answer to begin, and then for all of it; 60 if not given."""
    retries: int
    """Further attempts after a failure that may pass: no connection, no answer in time, an answer that can't be read,
    too many requests (`Retry-After` is kept to), or a fault of the server's own; 5 if not given."""
    backoff: float
    """Seconds before the first of them, about; each waits twice as long as the one before, at most a minute; 0.5 if not
    given."""
    per_minute: int
    """Requests started in any minute at most; no limit if 0, or not given."""


class Client:
    """One server, by its address.

    Args:
        url: where it is; refused without being told where it holds a secret.
        example: an address as it should be, for the refusal.
        key: the environment variable that holds the secret, if it is set.
        query: whether the address may have a part behind a question mark.
        requests: see `RequestOptions`.
    """

    def __init__(
        self,
        url: str,
        *,
        example: str,
        key: str,
        query: bool = False,
        **requests: Unpack[RequestOptions],
    ) -> None:
        try:
            import httpx2
            import tenacity
        except ImportError as error:
            raise MissingExtraError(
                "asking a server needs httpx2 and tenacity: pip install 'secateur[context]'"
            ) from error
        timeout, retries = requests.get("timeout", 60.0), requests.get("retries", 5)
        backoff, per_minute = requests.get("backoff", 0.5), requests.get("per_minute", 0)
        for name, value in (("retries", retries), ("backoff", backoff), ("per_minute", per_minute)):
            if not value >= 0:
                raise InputError(f"{name}={value}: give a number of at least 0")
        if not 0 < timeout < math.inf:
            raise InputError(f"timeout={timeout}: give seconds above 0")
        try:
            parts = urlsplit(url)
            known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # half an IPv6 address, a port that is no number or too large
            known = False
        if not known:  # what was given is not told, since it may hold a secret
            raise InputError(f"the address of the server is none: give such as {example}")
        if parts.username or parts.password or (parts.query and not query):
            raise InputError(f"the address of {parts.hostname} holds a secret: put the key in the variable {key}")
        self.url, self.key = url.rstrip("/"), key
        self.timeout, self.retries, self.backoff, self.per_minute = timeout, retries, backoff, per_minute
        self._started, self._lock = list[float](), threading.Lock()
        self._jitter = random.Random()  # of its own: a caller's draws repeat under their seed
        # A redirect would take the key to whoever it names.
        self._client = httpx2.Client(
            timeout=httpx2.Timeout(timeout, connect=min(10.0, timeout)), follow_redirects=False
        )
        self._http, self._tenacity = httpx2, tenacity

    def close(self) -> None:
        """Close its connections, for good."""
        self._client.close()

    def post(
        self,
        path: str,
        read: Callable[[bytes], T],
        *,
        again: Callable[[], None] = lambda: None,
        headers: Mapping[str, str] | None = None,
        **request: object,
    ) -> T:
        """What `read` makes of the answer to a POST, which carries the secret as a bearer token where there is one.

        Args:
            path: what follows the address.
            read: raises `PassingError` for what is no answer.
            again: called between two attempts.
            headers: beside that of the token.
            request: httpx's own: json, data.

        Raises `ServerError`: no answer after all attempts, or a refusal, which is not asked again.
        """
        secret = os.environ.get(self.key, "")
        token = {"Authorization": f"Bearer {secret}"} if secret else {}
        request["headers"] = {**(headers or {}), **token}
        retrying = self._tenacity.Retrying(
            retry=self._tenacity.retry_if_exception_type(PassingError),
            stop=self._tenacity.stop_after_attempt(self.retries + 1),
            wait=self._pause,
            before_sleep=lambda _: again(),
            reraise=True,
        )
        try:
            answer: T = retrying(self._attempt, path, read, secret, request)
        except PassingError as error:
            raise ServerError(f"{self.url} gave no answer in {self.retries + 1} attempts: {error}") from error
        return answer

    def _attempt(self, path: str, read: Callable[[bytes], T], secret: str, request: Mapping[str, object]) -> T:
        self._take_turn()
        return read(self._once(self.url + path, secret, request))

    def _pause(self, state: tenacity.RetryCallState) -> float:
        """Seconds before the next attempt: what the server asks for, or twice as long as before; at most a minute."""
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, PassingError) and error.wait is not None:
            return min(error.wait, 60.0)
        doubled = self.backoff * 2.0 ** min(state.attempt_number - 1, 60)
        return min(doubled, 60.0) * self._jitter.uniform(0.5, 1.0)

    def _take_turn(self) -> None:
        """Wait until a request may start."""
        while self.per_minute:
            with self._lock:
                now = time.monotonic()
                self._started = [start for start in self._started if now - start < 60.0]
                if len(self._started) < self.per_minute:
                    self._started.append(now)
                    return
                pause = 60.0 - (now - self._started[0])
            time.sleep(pause)

    def _once(self, url: str, secret: str, request: Mapping[str, Any]) -> bytes:
        try:
            with self._client.stream("POST", url, **request) as reply:
                raw, began = bytearray(), time.monotonic()
                for part in reply.iter_bytes():
                    raw += part
                    if len(raw) > LARGEST:
                        raise LargeError(f"{self.url} gave an answer of more than {LARGEST >> 20} MiB: ask for less")
                    if time.monotonic() - began > self.timeout:  # drop by drop
                        raise PassingError("no whole answer in time")
                status, asked = reply.status_code, reply.headers.get("Retry-After", "")
        except self._http.TimeoutException as error:
            raise PassingError("no answer in time") from error
        except (self._http.HTTPError, self._http.InvalidURL, OSError) as error:
            raise PassingError(type(error).__name__) from error
        if status in _AGAIN:
            raise PassingError(f"HTTP {status}", _seconds(asked))
        if status != 200:
            hint = f": is the key in {self.key} right?" if status in (401, 403) else f": {_excerpt(raw, secret)}"
            refusal = RefusedError if status in _UNFIT else ServerError
            raise refusal(f"{self.url} refused with HTTP {status}{hint}")
        return bytes(raw)


def _seconds(asked: str) -> float | None:
    """`Retry-After`: seconds or a date; None for anything else."""
    try:
        return max(0.0, float(asked))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(asked).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _excerpt(raw: bytes | bytearray, secret: str) -> str:
    """What a refusal says, in one line, without the key should it be told back."""
    text = raw[:4096].decode("utf-8", "replace")
    text = text.replace(secret, "***") if secret else text
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:200] or "nothing"
