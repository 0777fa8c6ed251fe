"""secateur prune-context: cut pages, passages or a graph to what answers a question."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from secateur import recipes
from secateur.cli import words as line
from secateur.cli.command import Command
from secateur.cli.flags import Flag, extra, of_options
from secateur.cli.printing import print_estimate
from secateur.errors import InputError
from secateur.vocabulary import Budget

__all__ = ["check_budget", "execute", "recipe_flags"]

_OWN = ("files", "recipe", "question", "budget", "in", "out", "trace", "strict", "overwrite", "processes", "page",
        "dry_run")  # fmt: skip
"""What the command takes itself; the rest are options of the recipe and of servers."""


def execute(given: dict[str, Any]) -> None:
    """Cut pages, passages or a graph to what answers a question, within a budget of tokens.

    For example: secateur prune-context page.html --recipe htmlrag --budget words=200 --question "What is pruned?"
    """
    config = given.pop("config", None)
    if "source" in given:
        given["in"] = given.pop("source")
    own = {name: given[name] for name in _OWN if given.get(name)}
    options = {name: value for name, value in given.items() if name not in _OWN}
    if config is not None:
        from secateur.runs import records

        own, options = records.settings(config, {**own, **options})
    own = {**dict.fromkeys(_OWN), **own}
    _check(own)
    from secateur.runs.backends.documents import of_document_recipe

    reading, files = of_document_recipe(own["recipe"]), list(own["files"] or ())
    if not reading.brings_documents and len(files) != 1:
        raise InputError(
            f"{own['recipe']} reads one {reading.noun}: name its file, folder or address, and nothing else"
        )
    if reading.brings_documents and own["in"] and files:
        raise InputError("--in takes no files beside it: each of its lines holds what is to be read")
    if own["in"]:
        _prune_lines(own, {"graph": "" if reading.brings_documents else files[0], **options})
        return
    given_documents = files[0]
    if reading.brings_documents:
        given_documents = [sys.stdin.buffer.read() if name == "-" else Path(name) for name in files]
    _prune_one(own, given_documents, files, options)


def _check(own: Mapping[str, Any]) -> None:
    """Refuse what is missing, and what does not go together."""
    missing = [f"--{name}" for name in ("recipe", "budget") if not own[name]]
    if not own["in"]:
        missing += [] if own["files"] else ["a FILE or --in"]
        missing += [] if own["question"] else ["--question"]
    if missing:
        example = 'secateur prune-context page.html --recipe htmlrag --budget tokens=2048 --question "..."'
        raise InputError(f"prune-context needs {', '.join(missing)}: say for example {example}")
    check_budget(own["budget"])
    if own["in"] and own["page"]:
        raise InputError("--in takes no --page: it works line by line and writes --out")
    if own["in"] and not own["out"] and not own["dry_run"]:
        raise InputError(
            "--in needs --out, a .jsonl file or - for the standard output: each line of one gives a line of the other"
        )


def check_budget(text: str) -> Budget:
    """A budget of what is read; `BudgetError` in its words."""
    from secateur.runs.context import parse_budget

    return parse_budget(text)


def _prune_lines(own: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Each line of a file, or page of a folder."""
    from secateur.clients.chat import SpentWarning
    from secateur.runs import context_files

    recipe, source, budget, question = (own[name] for name in ("recipe", "in", "budget", "question"))
    if own["dry_run"]:
        print_estimate(context_files.estimate_file(recipe, source, budget, question=question or "", **options))
        return
    with _noting(SpentWarning):
        lines, failed = context_files.prune_file(
            recipe, source, own["out"], budget, question=question or "", trace=bool(own["trace"]),
            strict=bool(own["strict"]), overwrite=bool(own["overwrite"]), processes=own["processes"], **options,
        )  # fmt: skip
    place = "" if own["out"] == "-" else f": {Path(own['out'])}"
    print(f"{lines} lines, {failed} of them with an error{place}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


def _prune_one(own: Mapping[str, Any], documents: object, files: Sequence[str], options: Mapping[str, Any]) -> None:
    """One question on the files, or the graph."""
    from secateur.runs import context

    out = Path(own["out"]) if own["out"] and own["out"] != "-" else None
    if out and out.exists() and not own["overwrite"] and not own["dry_run"]:
        raise InputError(f"{out} is there already: give another name, or --overwrite")
    cut = (own["recipe"], documents, own["question"], own["budget"])
    if own["dry_run"]:
        print_estimate(context.estimate_context(*cut, **options))
        return
    pruned = context.prune_context(*cut, **options)
    if own["page"]:
        pruned.save(own["page"])
    if own["trace"]:
        trace = {"told": dict(pruned.told), "trace": pruned.trace} if pruned.told else pruned.trace
        print(json.dumps(trace, ensure_ascii=False, indent=1), file=sys.stderr)
    if out:
        pruned.write(out)
        context.record(out, *cut, pruned, files=files, **options)
    else:
        print(pruned.text)
    for note in pruned.told.get("notes", ()):
        print(f"note: {note}", file=sys.stderr)
    if pruned.told.get("answer"):
        print(f"answer: {pruned.told['answer']}", file=sys.stderr)
    costs = (f"{name} {pruned.before[name]:.0f} -> {pruned.after[name]:.0f}" for name in pruned.after)
    print(", ".join(costs), file=sys.stderr)


@contextmanager
def _noting(kind: type[Warning]) -> Iterator[None]:
    """Print warnings of this kind as notes, one line each, once all is done."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", kind)
        yield
    for warning in caught:
        if issubclass(warning.category, kind):
            print(f"note: {warning.message}", file=sys.stderr)
        else:
            warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)


def recipe_flags(words: Sequence[str]) -> tuple[list[Flag], str]:
    """The flags of the recipe that the command line names, and of the servers that it asks."""
    config = line.flag_value(words, "--config")
    recipe = line.flag_value(words, "--recipe") or (line.named_in_file(config) if config else None)
    if recipe is None or recipes.cards().get(recipe, {}).get("family") != "context":
        return [], ""
    options = recipes.signature(recipe)
    asked = ["llm", "run"] if any(option.name == "llm" for option in options) else []
    asked += ["graph"] if recipes.subject(recipe) == "KnowledgeGraph" else []
    servers = recipes.parameters("secateur.runs.servers.servers")
    servers = [option for option in servers if option.name.partition("_")[0] in asked]
    return [*of_options(options, f"Options of {recipe}"), *of_options(servers, "Servers")], ""


_FILES = (
    "HTML or text files, read in this order; - is the standard input. For recipes on a graph: its file, folder or the "
    "address of a SPARQL endpoint."
)
COMMAND = Command(
    execute,
    ["secateur.prune_file"],
    words={"source": "--in"},
    help={
        "recipe": "which recipe, such as htmlrag for pages and texts: `secateur list` shows those of the family "
        "context, and this help its options once it is named.",
        "question": "the question that the documents should answer.",
        "budget": "how much may stay: tokens=2048, words=1000, tokens=20%.",
        "source": "a .jsonl file with question and html, text or passages in each line, or the question alone where a "
        "FILE is the graph; or a folder of pages; - is the standard input.",
        "out": "where the result goes: text for files, .jsonl for --in; - is the standard output, as "
        "without it for files. Beside a file OUT.run.yaml records the run.",
        "trace": "print each block's score and whether it stays: in --in's lines, or as JSON on the standard error.",
        "strict": "stop at the first line of --in that can't be pruned.",
        "overwrite": "write --out anew.",
        "processes": "number of processes for --in; one for each core if not given.",
    },
    without=("graph",),
    more=[
        extra("files", "list[str]", _FILES, "", "[FILE]..."),
        extra("page", "str", "a page to write that shows what was cut, and each block's score.", metavar="FILE"),
        extra("dry_run", "bool", "print what would be cut at what cost, by the first 8 lines; write nothing."),
        extra("config", "str", "a file with the same keys, such as OUT.run.yaml; flags win over it.", metavar="FILE"),
    ],
    recipe_flags=recipe_flags,
    config="",
    check_budget=check_budget,
)
