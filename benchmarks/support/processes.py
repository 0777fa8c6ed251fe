"""A task in a forked process of its own, which is killed when it takes too long: its libraries are imported already."""

from __future__ import annotations

import json
import os
import select
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Tell", "describe", "run_apart"]

Tell = Callable[[Mapping[str, Any]], None]


def describe(error: BaseException) -> str:
    """An error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def run_apart(task: Callable[[Tell], Mapping[str, Any]], limit: float, *, show: bool = False) -> dict[str, Any]:
    """What `task` gave, and what it told before; `limit` seconds may pass between two things that it tells.

    A row's status is "timeout", "died" or "not built" where the process was killed, ended or raised.
    """
    out, into = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.close(out)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            if not show:
                os.dup2(1, 2)
            warnings.simplefilter("ignore")

            def tell(row: Mapping[str, Any]) -> None:
                os.write(into, json.dumps(row).encode() + b"\n")

            try:
                tell(task(tell))
            except Exception as error:
                traceback.print_exc()
                tell({"status": "not built", "why": describe(error)})
            code = 0
        finally:
            os._exit(code)
    os.close(into)
    last, text = time.monotonic(), b""
    late = False
    while True:
        if not select.select([out], [], [], max(0.0, last + limit - time.monotonic()))[0]:
            late = True
            os.kill(child, signal.SIGKILL)
            break
        part = os.read(out, 1 << 16)
        if not part:
            break
        last, text = time.monotonic(), text + part
    os.close(out)
    code = os.waitpid(child, 0)[1]
    row: dict[str, Any] = {}
    for line in text.splitlines():
        row |= json.loads(line)
    if late:
        return row | {"status": "timeout", "why": f"over {limit:g} s"}
    return row | ({"status": "died", "why": f"the process ended with {code}"} if code else {})
