"""Digests of sources: what a figure depends on, and what it does not."""

import pytest

from claims._lab import sources


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `secateur` of three modules, of which `top` imports `low`, and the package names `VALUE` of it."""
    monkeypatch.setattr(sources, "PLACES", {"secateur": tmp_path})
    names = "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from secateur.low import VALUE as VALUE\n"
    files = {
        "__init__": f'"""Lazy."""\n{names}    from secateur.other import VALUE as OTHER\n',
        "top": '"""Doc."""\n\ndef run():\n    from secateur import low\n\n    return low.VALUE\n',
        "low": "import math\n\nVALUE = 1\n",
        "other": "VALUE = 2\n",
    }
    (tmp_path / "secateur").mkdir()
    for name, text in files.items():
        (tmp_path / "secateur" / f"{name}.py").write_text(text)

    def digest(**changed: str) -> str:
        for name, text in changed.items():
            (tmp_path / "secateur" / f"{name}.py").write_text(text)
        sources.forget()
        return sources.digest("secateur.top")

    yield digest
    sources.forget()


def test_imports_inside_functions_count_and_other_modules_do_not(package):
    first = package()
    assert set(sources.files("secateur.top")) == {"secateur.top", "secateur.low"}
    assert package(other="VALUE = 3\n") == first
    assert package(low="import math\n\nVALUE = 2\n") != first


def test_of_a_package_only_the_names_that_are_asked_for_count(package):
    first = package(top="def run():\n    from secateur import VALUE\n\n    return VALUE\n")
    assert set(sources.files("secateur.top")) == {"secateur.top", "secateur.low"}
    assert package(other="VALUE = 3\n") == first
    assert package(low="VALUE = 2\n") != first


def test_imports_for_type_checkers_do_not_count(package):
    block = "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from secateur import other\n"
    first = package(top=block)
    assert set(sources.files("secateur.top")) == {"secateur.top"}
    assert package(other="VALUE = 3\n") == first


def test_words_do_not_count(package):
    first = package()
    spoken = (
        '"""Another doc,\nlonger."""\n\n# Why.\ndef run():\n    """Runs."""\n    from secateur import low\n\n'
        "    return low.VALUE\n"
    )
    assert package(top=spoken) == first
    assert package(top=spoken.replace("low.VALUE", "-low.VALUE")) != first


def test_a_claims_file_depends_on_the_recipes_that_it_names_and_not_on_the_command_line():
    found = set(sources.files("claims.wanda"))
    assert {"secateur.recipes.sparse.wanda", "secateur.recipes.sparse.magnitude", "secateur.score.wanda"} <= found
    assert {"claims._lab.language", "secateur.recover.training.loop", "assets.packages"} <= found
    assert not found & {"secateur.cli", "claims._lab.rows", "secateur.recipes.sparse.stun", "secateur.data.examples"}
