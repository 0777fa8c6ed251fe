import inspect
import math
import sys

import pytest

from secateur._utils import plugins
from secateur.errors import DataError, InputError


def test_a_function_of_a_file_and_of_a_module(tmp_path):
    (tmp_path / "mine.py").write_text("def score(subject, batches):\n    return {'a': 1}\n")
    assert plugins.function(f"{tmp_path}/mine.py:score")(None, None) == {"a": 1}
    assert plugins.function("math:sqrt")(9) == 3
    assert inspect.signature(plugins.function("math:sqrt")) == inspect.signature(math.sqrt)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("score", "write file.py:function"),
        (":score", "write file.py:function"),
        ("nowhere.py:score", r"no file nowhere\.py"),
        ("no_such_module:score", "No module named"),
        ("math:score", "math has no function score"),
        ("math:pi", "math has no function pi"),
    ],
)
def test_what_is_not_there_is_named(name, message):
    with pytest.raises(InputError, match=message):
        plugins.function(name)


def test_a_file_that_fails_is_refused_with_its_error(tmp_path):
    (tmp_path / "broken.py").write_text("def build(:\n")
    with pytest.raises(InputError, match=r"broken.py can't be run: SyntaxError"):
        plugins.function(f"{tmp_path}/broken.py:build")


@pytest.mark.parametrize("fails", [False, True])
def test_a_file_imports_what_stands_beside_it_and_the_path_is_left_as_it_was(tmp_path, monkeypatch, fails):
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "beside_secateur_test.py").write_text("def width():\n    return 7\n")
    (folder / "mine.py").write_text(
        "from beside_secateur_test import width\ndef build():\n    return width()\n" + "1 / 0\n" * fails
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    if fails:
        with pytest.raises(InputError, match="ZeroDivisionError"):
            plugins.function("own/mine.py:build")
    else:
        assert plugins.function("own/mine.py:build")() == 7
    assert sys.path == before
    sys.modules.pop("beside_secateur_test")


def test_a_file_that_changes_the_path_keeps_its_change(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine.py").write_text("import sys\nsys.path.append('/elsewhere')\ndef build():\n    pass\n")
    before = list(sys.path)
    plugins.function(f"{tmp_path}/mine.py:build")
    assert sys.path == [*before, "/elsewhere"]


def test_what_goes_wrong_in_a_function_is_one_line_that_names_it(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from secateur.errors import DataError\n"
        "def score(subject, batches):\n    raise ValueError('my own mistake\\nand a page about it')\n"
        "def bare():\n    assert False\n"
        "def ours():\n    raise DataError('no such column')\n"
        "def stopped():\n    raise KeyboardInterrupt\n"
    )
    score = plugins.function(f"{path}:score")
    assert (score.__name__, list(inspect.signature(score).parameters)) == ("score", ["subject", "batches"])
    with pytest.raises(InputError) as caught:
        score(None, None)
    assert str(caught.value) == f"{path}:score failed: ValueError: my own mistake and a page about it"
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(InputError, match=r"mine.py:score failed: TypeError: score\(\) missing 2 required"):
        score()
    with pytest.raises(InputError, match=r"mine.py:bare failed: AssertionError$"):
        plugins.function(f"{path}:bare")()
    with pytest.raises(DataError, match=r"^no such column$"):
        plugins.function(f"{path}:ours")()
    with pytest.raises(KeyboardInterrupt):
        plugins.function(f"{path}:stopped")()


@pytest.mark.parametrize(("said", "shown"), [(200, "y" * 200), (201, "y" * 200 + "...")])
def test_what_goes_wrong_is_told_in_a_line_of_up_to_200_characters(tmp_path, said, shown):
    path = tmp_path / "mine.py"
    path.write_text(
        f"def long():\n    raise ValueError('y' * {said})\ndef lines():\n    raise ValueError('a b\\n' * 51)\n"
    )
    with pytest.raises(InputError) as caught:
        plugins.function(f"{path}:long")()
    assert str(caught.value) == f"{path}:long failed: ValueError: {shown}"
    with pytest.raises(InputError) as caught:
        plugins.function(f"{path}:lines")()
    assert str(caught.value) == f"{path}:lines failed: ValueError: {'a b ' * 50}..."


def test_a_network_is_built_with_its_inputs_or_without(tmp_path):
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "def bare():\n    return nn.Linear(2, 1)\n"
        "def both():\n    return nn.Linear(2, 1), 'inputs'\n"
        "def none():\n    return 3\n"
        "def fails():\n    raise ValueError('no weights')\n"
    )
    module, inputs = plugins.network(f"{tmp_path}/nets.py:bare")
    assert (module.in_features, inputs) == (2, None)
    assert plugins.network(f"{tmp_path}/nets.py:both")[1] == "inputs"
    with pytest.raises(InputError, match="returned int: expected a torch"):
        plugins.network(f"{tmp_path}/nets.py:none")
    with pytest.raises(InputError, match="failed to build a model: ValueError: no weights"):
        plugins.network(f"{tmp_path}/nets.py:fails")
