"""Settings of all tests."""

from __future__ import annotations

import functools
import gc
import math
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from execnet import XSpec
from torch import nn

import forked
import learnt
from secateur.reports import charts
from secateur.runs import measuring
from secateur.runs.backends.language import Language
from secateur.runs.backends.network import Network
from secateur.runs.distilling import trial
from secateur.subjects.network import files
from wide import is_wide

collect_ignore = [] if "SECATEUR_GPU" in os.environ else ["gpu"]
"""What needs a real card is for `make gpu`."""

DRAWING = ("reports", "conformance", "test_demo.py")
"""Tests with these in their paths draw the charts of their reports; a chart takes a tenth of a second."""
PLANNING = ("conformance", "distilling", "test_demo.py", "test_memory_plan.py")
"""Tests with these in their paths plan the memory of a run."""


frozen = [0]
"""Modules that were there when last what was there was set aside."""


def pytest_configure(config: pytest.Config) -> None:
    """No test asks what the clock says, and each result is timed: the fewest pairs, whatever their spread."""
    # A shell lets what it starts in the background ignore Ctrl-C; tests of it need it everywhere.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.fsync = lambda file: None  # type: ignore[assignment]  # no test takes the power away, and disks are slow
    measuring.CLOCK.update(lasting=0.0, pairs=6, warmup=1, resolution=math.inf)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[XSpec]) -> None:
    """Workers are forks of one process that has collected."""
    start = forked.command(config.invocation_params.args)
    if start is not None:
        specs[:] = [XSpec(f"popen//id={s.id}//python={start}") if s.popen else s for s in specs]


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """`secateur.runs.preload` gives up Ctrl-C where it is imported, as a test of all modules does."""
    yield
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def shared(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What one worker has trained, the others read."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        learnt.share(tmp_path_factory.getbasetemp().parent / "learnt")


@pytest.fixture
def charted() -> None:
    """Pages have their charts: for tests that look at one."""


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports of runs, and pages of studies, whose tests look at something else have no charts in them."""
    if not set(DRAWING) & set(request.path.parts) and "charted" not in request.fixturenames:
        for kind in ("quality", "losses", "curves", "scatter", "heat"):
            monkeypatch.setattr(charts, kind, lambda *given, **how: "")


class _Echo(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs


@pytest.fixture
def programs() -> None:
    """Saved networks have their torch.export programs beside them: for tests that look at one."""


@pytest.fixture(autouse=True)
def unexported(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no test looks at the program of a network, one that gives back its inputs takes its place.

    The folder opens as it does with its own, whose export takes up to two seconds.
    """
    if "programs" not in request.fixturenames:
        write = files.write_program
        monkeypatch.setattr(files, "write_program", lambda folder, model, example: write(folder, _Echo(), example))


@pytest.fixture
def planned() -> None:
    """Dry runs say what memory a run would take: for tests that look at it."""


@pytest.fixture(autouse=True)
def unplanned(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no test looks at the memory that a dry run tells of, it tells of none: to plan it takes seconds."""
    if not set(PLANNING) & set(request.path.parts) and "planned" not in request.fixturenames:
        for place in (Language, Network, trial):
            monkeypatch.setattr(place, "describe_memory", lambda *given: "")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs apart gets its mark, before marks are asked for."""
    for item in items:
        if is_wide(item.nodeid):
            item.add_marker(pytest.mark.wide)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported stays to the end: a collection, of which every timing makes one, need not walk through it."""
    _freeze()
    gc.set_threshold(50_000, 20, 50)  # the default walks through thousands of modules again and again


@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish(nodeid: str, location: tuple[str, int | None, str]) -> None:
    """Modules that were first imported by a test stay, too; so does torch's table of ONNX operators (0.7 s a file)."""
    if len(sys.modules) > frozen[0] + 100:
        _freeze()
    registration = sys.modules.get("torch.onnx._internal.exporter._registration")
    if registration is not None and not hasattr(registration.ONNXRegistry.from_torchlib, "cache_info"):
        make = functools.cache(registration.ONNXRegistry.from_torchlib)
        registration.ONNXRegistry.from_torchlib = staticmethod(make)


def _freeze() -> None:
    gc.collect()
    gc.freeze()
    frozen[0] = len(sys.modules)
