"""The shape of the house, held by tests so that nobody has to remember it.

import-linter holds who may import whom (pyproject.toml); here stands the rest of DESIGN's rules.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

import wide
from secateur import recipes
from secateur.runs import keywords

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "secateur"
SOURCES = sorted(PACKAGE.rglob("*.py"))
RECIPES = sorted(file for file in PACKAGE.glob("recipes/*/*.py") if file.stem != "__init__")
# Written into the folder of a result, where no other code of ours may be.
TRAVELLING = [
    *(PACKAGE / "formats" / name for name in ("reload.py", "reshaped.py")),
    *(PACKAGE / "formats" / "decilm").glob("*.py"),
]
CARD_KEYS = {"title", "paper", "cuts", "recovers", "extra", "family"}
TWO_SCREENS = 120
BINARY = {".png", ".ico", ".safetensors", ".gz", ".tgz", ".parquet", ".npz", ".onnx"}
FRAGMENT = re.compile(r"\d+\.(core|recipe|fix|house)(\.\d+)?\.md")


def name_of(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"), str(file))


def tracked() -> list[Path]:
    """The files under version control and those about to be; without git (a source archive) none."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    names = [name for name in listed.decode().split("\0") if name]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def literal(file: Path, variable: str) -> object:
    """The value of a literal assigned at the top of a module, read without importing it."""
    for node in tree_of(file).body:
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == [variable]:
            return ast.literal_eval(node.value)
    return None


def public_definitions(body: list[ast.stmt], prefix: str = "") -> list[tuple[str, ast.AST]]:
    found: list[tuple[str, ast.AST]] = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            overload = any("overload" in ast.unparse(decorator) for decorator in node.decorator_list)
            if not overload:
                found.append((prefix + node.name, node))
            if isinstance(node, ast.ClassDef):
                found += public_definitions(node.body, f"{prefix}{node.name}.")
    return found


# ---------------------------------------------------------------------------------------------------------- weight


def test_import_is_light() -> None:
    code = "import sys, secateur; print([m for m in ('torch', 'numpy', 'transformers', 'scipy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert out.strip() == "[]", f"import secateur loads {out}"


def test_what_prunes_pages_and_networks_does_without_transformers() -> None:
    names = ("secateur.runs.context", "secateur.runs.backends.network", "secateur.recipes.vision.otov3")
    code = f"import sys, {', '.join(names)}; print([m for m in ('transformers', 'torchao') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert out.strip() == "[]", f"{', '.join(names)} load {out}"


def test_imports_of_the_vocabulary_are_the_standard_library_only() -> None:
    for file in (PACKAGE / "vocabulary.py", PACKAGE / "errors.py"):
        for node in ast.walk(tree_of(file)):
            roots = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            roots += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for root in roots:
                top = root.partition(".")[0]
                assert top in sys.stdlib_module_names or root == "secateur.errors", f"{file.name} imports {root}"


# ------------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_is_file_function_command_test_and_page(file: Path) -> None:
    name, family = file.stem, file.parent.name
    functions = {node.name for node in tree_of(file).body if isinstance(node, ast.FunctionDef)}
    assert name in functions, f"{name_of(file)} has no function {name}"
    for place in (f"tests/recipes/{family}/test_{name}.py", f"docs/recipes/{name}.md"):
        assert (ROOT / place).is_file(), f"recipe {name} lacks {place}"
    assert name in json.dumps(listed()), f"secateur list does not name {name}"


@functools.cache
def listed() -> object:
    out = subprocess.run(
        [sys.executable, "-m", "secateur", "list", "--json"], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout
    return json.loads(out)


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_opens_with_its_card(file: Path) -> None:
    card = literal(file, "CARD")
    assert isinstance(card, dict), f"{name_of(file)} has no literal CARD"
    assert set(card) - {"parts", "offloaded", "needs", "selects"} == CARD_KEYS
    assert all(isinstance(value, str) for value in card.values())
    assert all(card[key] for key in CARD_KEYS - {"extra"})
    assert card["family"] == file.parent.name
    extras = set(re.findall(r"^(\w+) = \[", section("project.optional-dependencies"), re.MULTILINE))
    assert not card["extra"] or card["extra"] in extras
    parts = card.get("parts", "no").removeprefix("experts: ")
    needed = dict(pair.split("=") for pair in parts.split(", ") if pair != "no")
    arguments = next(node.args for node in tree_of(file).body if getattr(node, "name", "") == file.stem)
    assert set(needed) <= {argument.arg for argument in arguments.kwonlyargs}, "options by which it cuts a part"
    told = card.get("offloaded", "no")
    flags = {} if told == "no" else keywords.defaults(recipes.find(file.stem))
    pairs = re.split(", | or ", told) if flags else []
    assert {pair.split("=")[0] for pair in pairs} <= set(flags), "options for the offloaded"


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_is_two_screens_at_most(file: Path) -> None:
    """Lines that hold code of the recipe's function, without docstrings: two screens of 60 lines."""
    tree = tree_of(file)
    recipe = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == file.stem)
    documentation = {
        line
        for node in ast.walk(recipe)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    with tokenize.open(file) as source:
        skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
        code = {token.start[0] for token in tokenize.generate_tokens(source.readline) if token.type not in skip}
    lines = {line for line in code if recipe.lineno <= line <= (recipe.end_lineno or 0)} - documentation
    assert len(lines) <= TWO_SCREENS, f"{name_of(file)}: {len(lines)} lines of code, {TWO_SCREENS} are two screens"
    assert "paper" in (ast.get_docstring(recipe) or "").lower() or "arxiv" in (ast.get_docstring(tree) or "").lower()
    assert "departure" in (ast.get_docstring(recipe) or "").lower(), f"{file.stem}'s docstring names no departures"


def test_names_of_recipes_are_unique() -> None:
    names = [file.stem for file in RECIPES]
    assert len(set(names)) == len(names)


# ------------------------------------------------------------------------------------------------- documentation


def test_everything_public_has_a_docstring() -> None:
    for file in SOURCES:
        tree = tree_of(file)
        assert ast.get_docstring(tree), f"{name_of(file)} has no docstring"
        bare = [name for name, node in public_definitions(tree.body) if not ast.get_docstring(node)]  # type: ignore[arg-type]
        assert not bare, f"{name_of(file)}: no docstring for {', '.join(bare)}"


def test_all_is_exact() -> None:
    """`__all__` names only what the module defines, each name once, and all of it is public."""
    for file in SOURCES:
        tree = tree_of(file)
        if file in RECIPES or file in TRAVELLING:
            continue
        if file.name in ("__init__.py", "__main__.py") and not any(isinstance(n, ast.FunctionDef) for n in tree.body):
            continue  # a folder's purpose, or the way in
        where, listed = name_of(file), literal(file, "__all__")
        assert isinstance(listed, list), f"{where} has no __all__"
        module = importlib.import_module(module_of(file))
        assert len(set(listed)) == len(listed), f"{where}: __all__ names something twice"
        private = [name for name in listed if name.startswith("_") and name != "__version__"]
        assert not private, f"{where}: __all__ names {private}"
        missing = [name for name in listed if not hasattr(module, name)]
        assert not missing, f"{where}: __all__ names {missing}, which are not there"
        ours = [name for name in listed if getattr(getattr(module, name), "__module__", "").startswith("secateur")]
        if file.name != "__init__.py":
            foreign = [name for name in ours if getattr(module, name).__module__ != module.__name__]
            assert not foreign, f"{where}: __all__ names {foreign}, which are defined elsewhere"


def test_modules_take_from_one_another_only_what_is_public() -> None:
    """A name that another module uses stands in its module's `__all__`."""
    modules = {module_of(other): other for other in SOURCES}
    public = {module: literal(file, "__all__") for module, file in modules.items()}
    for file in SOURCES:
        aliases: dict[str, str] = {}
        taken: list[tuple[str, str]] = []
        nodes = list(ast.walk(tree_of(file)))
        for node in nodes:
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("secateur"):
                continue
            for alias in node.names:
                if f"{node.module}.{alias.name}" in modules:
                    aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                else:
                    taken.append((node.module or "", alias.name))
        taken += [
            (aliases[node.value.id], node.attr)
            for node in nodes
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases
        ]
        for module, name in taken:
            listed = public.get(module)
            private = isinstance(listed, list) and name not in listed and not name.startswith("__")
            assert not private, f"{name_of(file)} uses {module}.{name}, which is not in its __all__"


def test_public_names_of_the_package_exist_and_are_documented() -> None:
    import secateur

    assert secateur.__all__ == sorted(secateur.__all__)
    for name in secateur.__all__:
        value = getattr(secateur, name)
        assert name.startswith("__") or inspect.getdoc(value), f"secateur.{name} has no docstring"


def test_fragments_are_well_formed() -> None:
    fragments = [file for file in (ROOT / "changes").iterdir() if file.name != ".gitkeep"]
    for file in fragments:
        assert FRAGMENT.fullmatch(file.name), f"changes/{file.name}: the form is ISSUE.(core|recipe|fix|house).md"
        text = file.read_text("utf-8").strip()
        assert text.endswith("."), f"changes/{file.name} is not a sentence"
        assert "\n#" not in f"\n{text}", f"changes/{file.name} has a heading of its own"


def test_every_folder_has_a_purpose() -> None:
    """A folder of the package says in its docstring what it is for; a folder of the top stands in README's map."""
    files = tracked()
    readme = (ROOT / "README.md").read_text("utf-8")
    for folder in {file.parent for file in files if file.is_relative_to(PACKAGE) and file.suffix == ".py"}:
        assert (folder / "__init__.py").is_file(), f"{folder} is no package"
        assert len(list(folder.iterdir())) > 1, f"{folder} is empty"
    for top in {file.relative_to(ROOT).parts[0] for file in files if file.parent != ROOT}:
        assert top.startswith(".") or f"`{top}/`" in readme, f"README's map does not say what {top}/ is for"
    for floor in {file.relative_to(PACKAGE).parts[0] for file in SOURCES if file.parent != PACKAGE}:
        assert f"`{floor}`" in readme, f"README's map does not say what src/secateur/{floor}/ is for"


def test_tests_mirror_the_source() -> None:
    for file in SOURCES:
        if file.name == "__init__.py" or file.parent == PACKAGE:
            continue
        place = ROOT / "tests" / file.relative_to(PACKAGE).parent / f"test_{file.stem}.py"
        assert place.is_file(), f"{name_of(file)} has no {place.relative_to(ROOT)}"


# ------------------------------------------------------------------------------------------------------- safety


def test_nothing_is_unpickled_or_evaluated() -> None:
    for file in SOURCES:
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
                banned = names & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
                assert not banned, f"{name_of(file)}:{node.lineno} imports {banned}"
            if not isinstance(node, ast.Call):
                continue
            called, where = ast.unparse(node.func), f"{name_of(file)}:{node.lineno}"
            unsafe = called in {"eval", "exec", "yaml.load", "yaml.unsafe_load", "os.system"}
            assert not unsafe, f"{where} calls {called}"
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert keywords.get("trust_remote_code") != "True", f"{where} runs a model's code unasked"
            assert keywords.get("shell") != "True", f"{where} hands a line to a shell"
            assert keywords.get("allow_pickle") != "True", f"{where} unpickles"
            if called.endswith(".from_pretrained") and {"use_safetensors", "output_loading_info"} & keywords.keys():
                assert keywords.get("use_kernels") == "False", f"{where} fetches compiled code from a hub unasked"
            if called == "torch.load":
                assert keywords.get("weights_only") == "True", f"{where} unpickles: torch.load needs weights_only=True"


def test_no_machine_and_no_host_is_named() -> None:
    """No path of one machine and no registry host: the clients know where their registries are."""
    machine = re.compile(r"(?<![\w.$~}/-])/(home|root|Users|work|mnt|opt|scratch)/(?!someone)[\w.-]+")
    # Put together here, so that this file does not name what it forbids.
    hosts = re.compile(
        "|".join(["pypi" + r"\.org", "pythonhosted" + r"\.org", "registry" + r"\.npmjs", "pypi" + r"\.python"])
    )
    for file in tracked():
        if file.suffix in {".png", ".ico", ".safetensors", ".gz", ".tgz", ".parquet", ".npz", ".onnx"} or file == Path(
            __file__
        ):
            continue
        text = file.read_text("utf-8", errors="replace")
        for pattern in (machine, hosts):
            hit = pattern.search(text)
            assert hit is None, f"{file.relative_to(ROOT)} names {hit[0]!r}"


def test_files_are_small() -> None:
    large = {
        str(file.relative_to(ROOT)): os.path.getsize(file) for file in tracked() if os.path.getsize(file) > 512 * 1024
    }
    assert not large, f"large files do not belong here: {large}"


# -------------------------------------------------------------------------------------------------------- packaging


def section(name: str) -> str:
    """The text of one table of pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    return text.split(f"[{name}]\n", 1)[1].split("\n[", 1)[0]


def test_extras_for_users_stand_on_the_page_on_installing() -> None:
    extras = set(re.findall(r"^(\w+) = \[", section("project.optional-dependencies"), re.MULTILINE))
    page = (ROOT / "docs" / "guide" / "install.md").read_text("utf-8")
    assert extras - {"test", "bench", "fuzz", "docs"} <= set(re.findall(r"`(\w+)`", page))


def test_extras_named_in_errors_exist() -> None:
    extras = set(re.findall(r"^(\w+) = \[", section("project.optional-dependencies"), re.MULTILINE))
    for file in SOURCES:
        for name in re.findall(r"secateur\[(\w+)\]", file.read_text("utf-8")):
            assert name in extras, f"{name_of(file)} names the extra {name}, which pyproject.toml does not have"


def test_imports_are_declared() -> None:
    """What a module imports is the standard library or declared in pyproject.toml."""
    declared = section("project") + section("project.optional-dependencies")
    names = {
        name.lower().replace("-", "_") for name in re.findall(r'"([A-Za-z0-9_-]+)(?:\[[a-z]+\])?[><=~]?', declared)
    }
    aliases = {
        "yaml": "pyyaml",
        "Stemmer": "pystemmer",
        "huggingface_hub": "transformers",
        "tokenizers": "transformers",
        "click": "typer",
        "markupsafe": "jinja2",
        "PIL": "pillow",
        "haystack": "haystack_ai",
        "markdown_it": "markdown_it_py",
        "llama_index": "llama_index_core",
    }
    for file in SOURCES:
        for node in ast.walk(tree_of(file)):
            roots = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            roots += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for root in (root.partition(".")[0] for root in roots):
                if root in sys.stdlib_module_names or root == "secateur":
                    continue
                assert aliases.get(root, root).lower() in names, (
                    f"{name_of(file)} imports {root}, which is not declared"
                )


def test_what_runs_apart_is_there() -> None:
    """A test that was renamed would run in `make test` again, unnoticed."""
    tests = ROOT / "tests"
    for name in wide.WIDE:
        file, _, function = name.partition("::")
        assert re.search(rf"^def {function}\(", (tests / file).read_text("utf-8"), re.MULTILINE), name
    assert all((tests / file).is_file() for file in wide.FILES)
