"""Settings from files: read, checked, and won over by what is given."""

from __future__ import annotations

import pytest

from secateur import running
from secateur.errors import InputError
from secateur.running import configs, distilling


def test_a_config_with_an_unknown_key_is_refused(tmp_path):
    path = tmp_path / "run.yaml"
    for text, message in (
        ("recipe: ziplm\nstps: 3\n", "unknown key 'stps': did you mean 'steps'"),
        ("- 1\n", "holds no settings"),
        ("a: [", "is not YAML"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            running.configured(path)
    with pytest.raises(InputError, match="can't be read"):
        running.configured(tmp_path / "none.yaml")
    path.write_text("recipe: ziplm\nsteps: 3\nseed: 4\n")
    assert running.configured(path, {"seed": 5}) == {"recipe": "ziplm", "steps": 3, "seed": 5}


def test_values_are_checked_as_the_function_annotates_them_and_hashes_are_no_settings(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("recipe: distill\nstudent: a\nlr: 1e-3\nteachers: [b]\ndata_sha256: xyz\nversions: {torch: 2}\n")
    found = distilling.configured(path, {"out": "o"})
    assert found == {"student": "a", "lr": 1e-3, "teachers": ["b"], "out": "o"}
    path.write_text("steps: [1]\n")
    assert configs.read(path, "distill", distilling.distill, {"steps": 3}) == {"steps": 3}  # what wins needs no repair
    with pytest.raises(InputError, match="option steps="):
        distilling.configured(path)
    path.write_text("recipe: distill\n")
    with pytest.raises(InputError, match="say secateur distill --config"):
        running.configured(path)
