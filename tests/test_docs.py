"""Every code block of the documentation runs, the site builds without a warning, and generated tables are current.

`python` blocks of a page run in one namespace, `bash` blocks through the command line, both in a folder that holds
tiny stand-ins for the models and texts the pages speak of. A block with a title is a file. What can't run is `text`.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml
from transformers import BertForMaskedLM

import secateur
import tiny
from claims._lab import sources
from secateur import cli, recipes, studies
from secateur.runs import executor, keywords
from secateur.vocabulary import Budget

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
ENTRY_POINTS = {"secateur.recipes", "secateur.backends"}
LANGUAGES = {"python", "bash", "yaml", "json", "toml", "text"}

# A tiny model's time is noise, so budgets in time become budgets in size; detectors and ResNets have a few layers; and
# toys are trained for a few steps. Ray takes seconds to start; tests/data/test_ray_data.py runs that command with it.
STAND_INS = {
    " --ray ": " ",
    "speedup=2x": "params=75%",
    "from torchvision.models import detection": "import vision_models as detection",
    "torchvision.models:resnet18 --input 1x3x64x64": "vision_models:resnet18 --input 1x3x32x32",
    "--steps 40 ": "--steps 8 ",
    "--steps 60 ": "--steps 12 ",
    ",task=10 ": ",task=2 ",
    "steps=40,": "steps=12,",
    "--epochs 4 ": "--epochs 1 ",
    "epochs=4,": "epochs=1,",
}
QUICK: dict[str, dict[str, Any]] = {
    "ziplm": dict(steps=2, calibration=32, trials=2, judged=16, batch=4, length=16, train_batch=4, train_length=16),
    "slimmoe": dict(steps=2, calibration=16, length=16, train_batch=4),
    "ast": dict(steps=12, refresh=2, calibration=8, length=16, train_batch=4),
    "stun": dict(seen=16, samples=8, length=16),
    "minitron": dict(
        steps=2, short_steps=1, candidates=2, calibration=32, batch=1, length=16, train_batch=4, train_length=16
    ),
    "nemotron_elastic": dict(
        steps=2, samples=16, depth_samples=4, batch=1, length=16, train_batch=4, train_length=16, router_hidden=16
    ),
    "dp4tl": dict(batch=32, surrogate_epochs=1, epochs=0.2, probe_epochs=1, tune_epochs=0.2),
    "romanian_distilberts": dict(steps=2, length=16, train_batch=4),
    "gpusq_vit": dict(batch=32, epochs=0.2, quantise_epochs=0.2),
    "nd_loss": dict(batch=32, epochs=0.5),
    "owl": dict(samples=16, length=16, batch=1),
    "sparsegpt": dict(samples=16, length=16, batch=1),
    "wanda": dict(samples=16, length=16, batch=1),
    "shortgpt": dict(samples=16, length=16, train_length=16),
    "llm_pruner": dict(samples=2, length=16, steps=2, train_batch=4, train_length=16),
    "slicegpt": dict(samples=16, length=16, train_length=16),
    "pat": dict(steps=2, length=16, train_batch=4),
    "d_pruner": dict(general_samples=8, samples=8, train_batch=4, train_length=16),
    "yolov8_cwd": dict(batch=2, sparse_epochs=0.2, finetune_epochs=0.2, distil_epochs=0.2),
    "yolov4_group_sad": dict(batch=2, sparse_epochs=0.2, finetune_epochs=0.2, distil_epochs=0.2),
}


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    found, start, opened = [], 0, None
    lines = page.read_text("utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.lstrip().startswith("```"):
            continue
        if opened is None:
            opened, start = line.strip()[3:], number
        else:
            language, _, rest = opened.partition(" ")
            title = re.search(r'title="([^"]+)"', rest)
            text = "\n".join(lines[start : number - 1]) + "\n"
            found.append(Block(page, start, language, title[1] if title else "", text))
            opened = None
    assert opened is None, f"{page.name}:{start}: a block without an end"
    return found


def quick(recipe: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The options that a toy run of `recipe` adds: those it has and was not given."""
    name = recipe if isinstance(recipe, str) else recipe.__name__
    if name not in QUICK:
        return {}
    known = executor.options(name)
    return {key: value for key, value in QUICK[name].items() if key in known and key not in options}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stand-ins")
    tiny.folder("bert", folder / "sentence-transformers" / "all-MiniLM-L6-v2", sentence=True)
    tiny.folder("llama", folder / "llama")
    tiny.folder("mixtral", folder / "mixtral")
    for name, seed in (("teacher", 3), ("second", 4), ("learnt", 5)):
        tiny.taught(tiny.model("llama", seed), 40, seed).save_pretrained(folder / name)
        tiny.tokenizer().save_pretrained(folder / name)
    for name in ("masked-bert", "second-teacher"):
        BertForMaskedLM(tiny.model("bert").config).save_pretrained(folder / name)
        tiny.tokenizer().save_pretrained(folder / name)
    (folder / "texts.txt").write_text("\n".join(tiny.sentences(400)) + "\n", "utf-8")
    (folder / "general.txt").write_text("\n".join(tiny.chains(400)) + "\n", "utf-8")
    paragraphs = "".join(f"<h2>Of {i}</h2><p>{text}</p>" for i, text in enumerate(tiny.sentences(40)))
    page = f"<html><body>{paragraphs}<p>What is pruned grows back.</p></body></html>"
    (folder / "page.html").write_text(page, "utf-8")
    (folder / "pages").mkdir()
    (folder / "pages" / "one.html").write_text(page, "utf-8")
    row = {"question": "What is pruned?", "html": page, "answers": tiny.sentences(1)}
    (folder / "questions.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    graph = "subject,predicate,object\nsalbutamol,treats,asthma\nasthma,affects,lung\nasthma,causes,cough\n"
    (folder / "graph.csv").write_text(graph, "utf-8")
    (folder / "asked.jsonl").write_text('{"question": "What treats asthma?"}\n', "utf-8")
    task = {"task": "facts", "prompt": "Q: {question}\nA:", "tokens": 4}
    rows = [task, *({"question": text, "answer": text.split()[0]} for text in tiny.sentences(4))]
    (folder / "quiz.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")
    first, second, third = tiny.sentences(3)
    (folder / "passage.txt").write_text(f"{first}. {second}. What is pruned grows back. {third}.", "utf-8")
    rows = [{"question": first, "passages": [[second, first], [third]], "kept": [[1], []]}] * 4
    (folder / "passages.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows), "utf-8")
    short = {"question": "a", "html": f"<p>{tiny.sentences(1)[0]}</p><p>b</p>", "answers": tiny.sentences(1)}
    (folder / "answers.jsonl").write_text(json.dumps(short) + "\n", "utf-8")
    return folder


@pytest.fixture
def forget_modules(tmp_path: Path) -> Iterator[None]:
    """What a page imports of its own files is not what the next page finds under the same name."""
    yield
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.usefixtures("forget_modules", "programs")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_blocks_run(
    page: Path, stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = blocks(page)
    for thing in stand_ins.iterdir() if found else ():
        (shutil.copytree if thing.is_dir() else shutil.copy)(thing, tmp_path / thing.name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    real = executor.run

    def run(recipe: Any, *args: Any, **options: Any) -> Any:
        return real(recipe, *args, **options, **quick(recipe, options))

    monkeypatch.setattr(secateur, "run", run, raising=False)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in found:
        text = block.text
        for written, stand_in in STAND_INS.items():
            text = text.replace(written, stand_in)
        where = f"{block.page.name}:{block.line}"
        assert block.language in LANGUAGES, f"{where}: a block in {block.language!r}; what can't run is `text`"
        if block.title:
            if block.language == "yaml" and "recipe" in (settings := yaml.safe_load(text)):
                text = yaml.safe_dump(settings | quick(settings["recipe"], settings))
            (tmp_path / block.title).write_text(text, "utf-8")
        if block.language == "python" and not block.title:
            exec(compile(text, where, "exec"), namespace)
        elif block.language == "bash":
            for line in text.replace("\\\n", " ").splitlines():
                command(line, where, capsys)
        elif block.language == "json":
            json.loads(text)
        elif block.language == "yaml":
            yaml.safe_load(text)


def command(line: str, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line, comments=True)
    if not words:
        return
    assert words[0] == "secateur", f"{where}: {words[0]} can't be run here; what can't run is `text`"
    arguments = words[1:]
    if arguments[0] == "run" and not arguments[1].startswith("--"):
        recipe = arguments[1]
        given = {word[2:].replace("-", "_"): "" for word in arguments if word.startswith("--")}
        for key, value in quick(recipe, given).items():
            arguments += [f"--{key.replace('_', '-')}", str(value)]
    capsys.readouterr()
    code = cli.main(arguments)
    printed = capsys.readouterr()
    # Tiny models on a busy machine: that the clock can't tell them apart is a right answer too.
    unclear = arguments[0] == "measure" and "too noisy" in printed.err
    assert code == 0 or unclear, f"{where}: `{line}` ended with {code}: {printed.err or printed.out}"
    assert printed.out.strip() or "--out" in arguments or unclear, f"{where}: `{line}` printed nothing"


def test_what_the_quick_start_shows_is_what_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = blocks(ROOT / "docs" / "guide" / "rag.md")
    sample, asked, shown = found[1], found[2], found[3]
    monkeypatch.chdir(tmp_path)
    exec(compile(sample.text, "rag.md", "exec"), {})
    assert cli.main(shlex.split(asked.text.replace("\\\n", " ").splitlines()[0])[1:]) == 0
    printed = capsys.readouterr()
    assert (shown.language, printed.out) == ("text", shown.text)
    note, costs = printed.err.splitlines()
    assert note.startswith("note: 8 words that the page hides")
    assert f"`{costs}`" in (ROOT / "docs" / "guide" / "rag.md").read_text("utf-8")


def test_the_walk_through_of_contributing_is_whole() -> None:
    """CONTRIBUTING's own blocks are what the test above runs: a score by --score, and a recipe in three files."""
    found = blocks(ROOT / "CONTRIBUTING.md")
    assert {block.title for block in found} >= {"my_score.py", "thinner.py"}
    assert any("--score my_score.py:weight_times_activation" in block.text for block in found)
    assert any("check_recipe" in block.text for block in found)


def flags(words: list[str]) -> set[str]:
    """Every flag of the command, recipe or study that a command line begins with, such as ["run", "wanda"]."""
    app: Any = typer.main.get_command(cli._app(words))
    parameters = app.commands[words[0]].params
    return {"--help", "--debug"}.union(*([*one.opts, *one.secondary_opts] for one in parameters))


def test_flags_in_text_exist() -> None:
    """Blocks of `bash` are run; this looks at the other flags: of the command in a `text` block, of any in prose."""
    starts = [[command] for command in cli.COMMANDS]
    for name, card in recipes.cards().items():
        starts += [["prune-context", "--recipe", name] if card["family"] == "context" else ["run", name]]
        starts += [["train-pruner", name]] if name in ("htmlrag", "provence") else []
    starts += [["study", name] for name in studies.cards()]
    known = set[str]().union(*map(flags, starts), {"--version", "--nproc-per-node", "--max-logprobs"})
    wrong = []
    for page in PAGES:
        if page.parent.name in ("log", "evidence", "benchmarks"):
            continue
        text = page.read_text("utf-8")
        wrong += [f"{page.name}: {flag}" for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text) if flag not in known]
        for block in blocks(page):
            for line in block.text.replace("\\\n", " ").splitlines() if block.language == "text" else ():
                words = shlex.split(line, comments=True) if line.startswith("secateur ") else []
                if len(words) > 1 and words[1] in cli.COMMANDS:
                    mine = {word for word in words[1:] if word.startswith("--")}
                    wrong += [f"{page.name}:{block.line}: {flag}" for flag in mine - flags(words[1:])]
    assert not wrong


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "recipes").glob("*.md")), ids=lambda page: page.stem)
def test_runs_in_the_pages_of_recipes_have_options_that_can_be(page: Path) -> None:
    """Not all of these pages run in `make test`: what is given to a recipe is looked at, and nothing is run."""
    for block in blocks(page):
        if block.language == "bash":
            lines = block.text.replace("\\\n", " ").splitlines()
            for words in (shlex.split(line, comments=True)[1:] for line in lines):
                if words[:1] == ["run"] and not words[1].startswith("--"):
                    app: Any = typer.main.get_command(cli._app(words))
                    parsed = app.commands["run"].make_context("run", words[1:]).params
                    own = {
                        name: parsed[name] for name in executor.options(words[1]) if parsed.get(name) not in (None, ())
                    }
                    check_run(words[1], parsed["budget"], own)
        elif block.language == "python" and not block.title:
            for call in ast.walk(ast.parse(block.text)):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "secateur.run":
                    given = {one.arg: ast.literal_eval(one.value) for one in call.keywords if one.arg}
                    others = inspect.signature(executor.run).parameters
                    own = {name: value for name, value in given.items() if name not in others}
                    check_run(ast.literal_eval(call.args[0]), given["budget"], own)


def check_run(recipe: str, budgets: str | list[str], own: dict[str, Any]) -> None:
    assert all(Budget.parse(one) for one in ([budgets] if isinstance(budgets, str) else budgets))
    keywords.check_options(recipes.find(recipe), own)


def test_pages_import_nothing_that_only_tests_have() -> None:
    ours = {place.stem for place in (ROOT / "tests").iterdir() if place.is_dir() or place.suffix == ".py"}
    wrong = []
    for page in PAGES:
        own = {block.title.removesuffix(".py") for block in blocks(page)}
        for block in blocks(page):
            for node in ast.walk(ast.parse(block.text)) if block.language == "python" else ():
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                tops = {name.partition(".")[0] for name in names}
                wrong += [f"{page.name}:{block.line}: {name}" for name in sorted(tops & ours - own)]
    assert not wrong


def test_dotted_names_in_text_exist() -> None:
    wrong = []
    for page in PAGES:
        if page.parent.name in ("log", "evidence", "benchmarks") or page.name == "glossary.md":
            continue
        names = set(re.findall(r"(?<![\w./-])secateur(?:\.[A-Za-z_]\w*)+", page.read_text("utf-8")))
        wrong += [f"{page.name}: {name}" for name in sorted(names - ENTRY_POINTS) if not exists(name)]
    assert not wrong


def exists(name: str) -> bool:
    module, rest = name, list[str]()
    while importlib.util.find_spec(module.partition(".")[0]):
        try:
            found: Any = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            rest.insert(0, last)
    for attribute in rest:
        found = getattr(found, attribute, None)
    return found is not None


def test_examples_in_docstrings_are_true() -> None:
    sources = sorted((ROOT / "src" / "secateur").rglob("*.py"))
    modules = [file for file in sources if re.search(r"^ *>>> ", file.read_text("utf-8"), re.MULTILINE)]
    assert modules
    for file in modules:
        name = ".".join(file.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
        result = doctest.testmod(importlib.import_module(name))
        assert result.attempted, f"{name} has examples that doctest does not find"
        assert not result.failed, f"{name}: an example in a docstring is not true"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_tables_are_current() -> None:
    stale = script("tables").stale()
    sources.forget()  # the trees of all our code
    assert not stale, f"{[str(file.relative_to(ROOT)) for file in stale]}: run make docs"


def test_links_of_pages_lead_somewhere_in_the_repository_and_on_the_site() -> None:
    links = dict[tuple[Path, str], Path]()
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)
        links |= {(page, link): page.parent / link for link in re.findall(r"\]\(((?!https?:|#)[^)#\s]+)", text)}
    assert [(page.name, link) for (page, link), target in links.items() if not target.exists()] == []
    assert any(link.startswith("docs/guide/") for page, link in links if page.name == "README.md"), "those of studies"
    pytest.importorskip("mkdocs")
    site = script("site")
    assert site.follow_site("[a](../../CONTRIBUTING.md), [b](../CONTRIBUTING.md#c), [d](recipes/)") == (
        "[a](../guide/extending.md), [b](guide/extending.md#c), [d](recipes/index.md)"
    )


def test_a_stale_table_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = script("tables")
    rows = tmp_path / "docs" / "evidence"
    rows.mkdir(parents=True)
    (tmp_path / "README.md").write_text(f"before\n{tables.START}\nold\n{tables.END}\nafter\n", "utf-8")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "EVIDENCE", rows)
    assert tables.stale() == [tmp_path / "README.md", rows / "README.md"]
    monkeypatch.setattr(sys, "argv", ["tables.py"])
    assert tables.main() == 0
    assert tables.stale() == []
    assert (tmp_path / "README.md").read_text("utf-8").startswith("before\n")


@pytest.mark.wide
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "SIGNATURE_LENGTH": "10000", "SITE_SEARCH": "false"},
        capture_output=True,
        text=True,
    )
    assert build.returncode == 0, build.stderr[-3000:]
    for page in ("index", "guide/extending/index", "recipes/ziplm/index", "reference/select/index"):
        assert (tmp_path / "site" / f"{page}.html").is_file(), f"no page {page}"
    page = (tmp_path / "site" / "reference" / "select" / "index.html").read_text("utf-8")
    assert "by_budget" in page, "the reference is empty"
    page = (tmp_path / "site" / "recipes" / "kg_rag" / "index.html").read_text("utf-8")
    for name in ("percentile", "llm_timeout"):
        assert f"<td><code>{name}</code></td>" in page, "a recipe's page has no table of its options"
    page = (tmp_path / "site" / "reference" / "integrations" / "index.html").read_text("utf-8")
    assert "SecateurCompressor.titles" in page, "fields of a class are missing"
    assert page.count('class="highlight"') >= 3, "examples are no code"


@pytest.mark.wide
def test_the_table_of_a_recipes_options_has_each_with_an_explanation() -> None:
    site = script("site")
    for name in recipes.cards():
        lines = [line for line in site.options(name).splitlines() if line.startswith("| `")]
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        assert {len(row) for row in rows} == {4}, name
        own = [f"`{option.name}`" for option in recipes.signature(name)]
        assert [row[0] for row in rows][: len(own)] == own
        assert [row[0] for row in rows if not row[3]] == [], name


def test_recipes_stand_in_the_navigation_without_being_listed() -> None:
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert not [name for name in recipes.cards() if re.search(rf"\b{name}\b", text)]


@pytest.mark.parametrize("language", ["sh", "console", ""])
def test_a_block_that_is_neither_run_nor_text_is_refused(language: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"```{language}\nls\n```\n", "utf-8")
    assert blocks(page)[0].language not in LANGUAGES
