from __future__ import annotations

from pathlib import Path

from secateur._utils import entry_points


def test_files_of_entry_points_are_found_without_an_import(tmp_path, monkeypatch):
    (tmp_path / "one.py").touch()
    (tmp_path / "two" / "three").mkdir(parents=True)
    (tmp_path / "two" / "__init__.py").write_text("1 / 0")
    (tmp_path / "two" / "three" / "__init__.py").touch()
    (tmp_path / "two-1.dist-info").mkdir()
    points = {"a": "one:f", "b": "two.three:g", "c": "two:h", "d": "two.four:i", "e": "nowhere.at.all:j"}
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (tmp_path / "two-1.dist-info" / "entry_points.txt").write_text(f"[some.group]\n{lines}")
    assert entry_points.locate("some.group") == {}
    monkeypatch.syspath_prepend(str(tmp_path))
    assert entry_points.locate("some.group") == {
        "a": (tmp_path / "one.py", "one", "f"),
        "b": (Path(tmp_path, "two", "three", "__init__.py"), "two.three", "g"),
        "c": (tmp_path / "two" / "__init__.py", "two", "h"),
    }
