"""Functions that a system's figures come from: what is noted, and what changes their digest."""

import sys
import threading

import pytest

from claims._lab import ran, sources

TOP = '''"""Doc."""
from secateur.low import RATE, Base, other

SCALE = 2


class Top(Base):
    """Words."""

    size: int = 3
    """More words."""

    def run(self, x):
        def inner(y):
            return y * SCALE
        return inner(x) + RATE

    def rest(self):
        return other()
'''
FAR = "SCALE = 7\n"
LOW = """import math

RATE = 1
UNUSED = 5

class Base:
    kind = 'a'

def other():
    return UNUSED

def rarely():
    from secateur import far
    return far
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `secateur` in which `top` imports `low`; gives the digest of what a call of `Top.run` ran."""
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    monkeypatch.setattr(ran, "ROOT", tmp_path)
    monkeypatch.setattr(sources, "PLACES", {"secateur": tmp_path / "src"})
    (tmp_path / "src" / "secateur").mkdir(parents=True)

    def write(top=TOP, low=LOW, far=FAR):
        for name, text in {"__init__": "", "top": top, "low": low, "far": far}.items():
            (tmp_path / "src" / "secateur" / f"{name}.py").write_text(text)
        sources.forget()

    def digest(**texts):
        write(**texts)
        return sources.of_functions("secateur.top", ["src/secateur/top.py:Top.run"])

    yield digest
    sources.forget()


def test_what_ran_counts_with_the_constants_and_classes_that_it_names(package):
    first = package()
    for changed in ({"top": TOP.replace("SCALE = 2", "SCALE = 3")}, {"top": TOP.replace("y * SCALE", "y + SCALE")},
                    {"low": LOW.replace("RATE = 1", "RATE = 2")}, {"low": LOW.replace("'a'", "'b'")},
                    {"top": TOP.replace("int = 3", "int = 4")}, {"top": f"{TOP}\nRATE = other()\n"},
                    {"top": f"{TOP}\nif other():\n    SCALE += 1\n"},
                    {"top": f"from secateur.far import SCALE\n{TOP}".replace("SCALE = 2", "")}):  # fmt: skip
        assert package(**changed) != first, changed
    for same in ({"top": TOP.replace("ords", "ording")}, {"top": TOP.replace("return other()", "return None")},
                 {"low": LOW.replace("UNUSED = 5", "UNUSED = 6")}, {"top": TOP.replace("inner(x)", "inner( x )")},
                 {"top": f"NEW = 1\n\n{TOP}\ndef new():\n    return NEW\n"},
                 {"low": f"from math import SCALE\n{LOW}"},
                 {"far": FAR.replace("7", "8")}):  # fmt: skip
        assert package(**same) == first, same
    assert package(top=TOP.replace("def run", "def walk")) != first
    assert (
        package(top=TOP.replace("low import RATE, Base, other", "low import Base, other\nfrom math import pi as RATE"))
        != first
    )


def test_functions_are_noted_by_file_and_name_in_all_threads(package, tmp_path):
    package()
    code = compile((tmp_path / "src/secateur/low.py").read_text(), str(tmp_path / "src/secateur/low.py"), "exec")
    # Jinja compiles a page to functions that say they stand in the page, which nothing here can read.
    page = compile("def root(): pass\nroot()", str(tmp_path / "src/secateur/report.html.j2"), "exec")
    space, seen, tracer = {}, set(), sys.gettrace()
    try:
        ran.follow(seen)
        exec(code, space)
        exec(page, {})
        thread = threading.Thread(target=space["other"])
        thread.start()
        thread.join()
    finally:
        sys.settrace(tracer)
        threading.settrace(tracer)
    assert list(ran.names(seen)) == ["src/secateur/low.py:other"]


def test_rows_of_systems_without_a_list_are_stale(package):
    assert ran.digest("nothing", "headline") is None


def test_lists_have_a_line_for_each_file(tmp_path):
    functions = ["a.py:One.run", "a.py:two", "b/c.py:three"]
    ran.write(tmp_path / "list.txt", functions)
    assert (tmp_path / "list.txt").read_text() == "a.py: One.run two\nb/c.py: three\n"
    assert ran.read(tmp_path / "list.txt") == functions
