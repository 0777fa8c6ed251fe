"""MkDocs hooks: the pages that are generated from the package itself, so that they can't fall behind it.

reference/<floor>.md   every module of the floor, from its docstrings
reference/index.md     the modules above and below the floors
recipes/index.md       the recipes, from their cards
guide/extending.md     CONTRIBUTING.md
recipes/<name>.md      the written page, and behind it a table of every option, from the signature
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from secateur import recipes
from secateur.cli import prune_context, values

PACKAGE = Path(__file__).parents[1] / "src" / "secateur"
FLOORS = (
    "subjects",
    "score",
    "select",
    "recover",
    "measure",
    "data",
    "formats",
    "clients",
    "retrieval",
    "methods",
    "integrations",
)
TOP = ("vocabulary", "errors", "runs.executor", "runs.context", "runs.pruners", "recipes", "conformance")


def on_config(config: Any) -> Any:
    """Add the recipes' own pages, and the reference, to the navigation."""
    pages = [f"recipes/{name}.md" for name in recipes.cards()]
    config.nav.insert(2, {"Recipes": ["recipes/index.md", *pages]})
    config.nav.append({"Reference": ["reference/index.md", *(f"reference/{floor}.md" for floor in FLOORS)]})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages before the navigation is built."""
    for uri, text in generated().items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **context: Any) -> str:
    """Lead links to the site's own pages, and put the table of options behind the written page of a recipe."""
    markdown = follow_site(markdown)
    folder, _, name = page.file.src_uri.removesuffix(".md").partition("/")
    return markdown + options(name) if folder == "recipes" and name in recipes.cards() else markdown


def follow_site(markdown: str) -> str:
    """A page's text with the links of the repository, which lacks the generated pages, as those of the site."""
    markdown = re.sub(r"\]\(((?:\.\./)*)\.\./CONTRIBUTING\.md", r"](\1guide/extending.md", markdown)
    return markdown.replace("](recipes/)", "](recipes/index.md)")


def options(recipe: str) -> str:
    """The table of a recipe's options, by its signature, and of those of the servers that it asks."""
    rows = [row(option) for option in recipes.signature(recipe)]
    parts = [
        "",
        "## Every option",
        "",
        "On the command line `--name-of-it`, in Python `name_of_it=`.",
        "",
        *HEAD,
        *rows,
    ]
    flags, _ = prune_context.recipe_flags(["--recipe", recipe])
    servers = [row(flag.option) for flag in flags if flag.panel == "Servers"]
    parts += ["", "How servers are asked:", "", *HEAD, *servers] if servers else []
    return "\n".join(parts) + "\n"


HEAD = ("| Option | Value | Default | What it does |", "| --- | --- | --- | --- |")


def row(option: recipes.Option) -> str:
    """An option as a line of a table."""
    default = "" if option.default in ("", (), None) else f"`{option.default}`"
    default = "required" if option.default is inspect.Parameter.empty else default
    kind = f"{values.describe_kind(option.annotation)}{', ' * bool(option.bounds)}{option.bounds}"
    cells = (f"`{option.name}`", kind, default, f"{option.help[:1].upper()}{option.help[1:]}")
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def generated() -> dict[str, str]:
    """Page -> its Markdown."""
    pages = {"recipes/index.md": catalogue()}
    contributing = (PACKAGE.parents[1] / "CONTRIBUTING.md").read_text("utf-8")
    pages["guide/extending.md"] = contributing.replace("](docs/", "](../")
    pages["reference/index.md"] = reference("secateur", "The package", ["secateur", *(f"secateur.{n}" for n in TOP)])
    for floor in FLOORS:
        modules = [f"secateur.{floor}", *(f"secateur.{floor}.{name}" for name in modules_of(floor))]
        pages[f"reference/{floor}.md"] = reference(floor, floor, modules)
    return pages


def modules_of(floor: str) -> list[str]:
    """The public modules of a floor, in alphabetical order."""
    files = [file.relative_to(PACKAGE / floor) for file in (PACKAGE / floor).rglob("*.py") if file.stem != "__init__"]
    return sorted(".".join(file.with_suffix("").parts) for file in files)


def reference(name: str, title: str, modules: list[str]) -> str:
    """A page that mkdocstrings fills."""
    # Fields of pipelines' classes stand in a class that they share.
    more = "    options:\n      inherited_members: true\n" if name == "integrations" else ""
    parts = [f"# {title}\n", *(f"::: {module}\n{more}" for module in modules)]
    return "\n".join(parts)


def catalogue() -> str:
    """The table of recipes."""
    rows = ["| Recipe | Paper | Cuts | Recovers |", "| --- | --- | --- | --- |"]
    for name, card in recipes.cards().items():
        rows.append(
            f"| [`{name}`]({name}.md) | [{card['title']}]({card['paper']}) | {card['cuts']} | {card['recovers']} |"
        )
    return "# Recipes\n\nOne published method each. `secateur list` prints this table.\n\n" + "\n".join(rows) + "\n"
