"""Settings from files: read, checked, and won over by what is given."""

from __future__ import annotations

import pytest

from secateur.errors import InputError
from secateur.runs import configs, distilling, executor


def test_a_config_with_an_unknown_key_is_refused(tmp_path):
    path = tmp_path / "run.yaml"
    for text, message in (
        ("recipe: ziplm\nstps: 3\n", "unknown key 'stps': did you mean 'steps'"),
        ("recipe: ziplm\non_result: print\n", "unknown key 'on_result'"),
        ("recipe: ziplm\non_data: print\n", "unknown key 'on_data'"),
        ("- 1\n", "holds no settings"),
        ("a: [", "is not YAML"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            executor.configured(path)
    with pytest.raises(InputError, match="can't be read"):
        executor.configured(tmp_path / "none.yaml")
    path.write_text("recipe: ziplm\nsteps: 3\nseed: 4\n")
    assert executor.configured(path, {"seed": 5}) == {"recipe": "ziplm", "steps": 3, "seed": 5}


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
        executor.configured(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system ['true']\n", "is not YAML"),
        ("a: &a [1, 1]\nb: &b [*a, *a]\n" + "".join(f"k{i}: &k{i} [*{'b' if not i else f'k{i - 1}'}, *b, "
         f"*{'b' if not i else f'k{i - 1}'}]\n" for i in range(30)), "by its aliases"),
        ("recipe: &a [*a]\n", "by its aliases"),
        ("a: " + "[" * 5000 + "\n", "is not YAML"),
        ("a: " + "x" * 2**20, "more than 1 MiB"),
        ("a: \xff\n", "is not YAML"),
    ],
    ids=range(6),
)  # fmt: skip
def test_a_hostile_config_is_refused_at_once(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        executor.configured(path)
