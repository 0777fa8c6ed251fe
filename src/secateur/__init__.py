"""Make trained things smaller by pruning, win back what was lost by distilling, and prove it with measurements.

    import secateur

    secateur.run("ziplm", "path/to/model", budget="speedup=2x", data="texts.txt", out="small")
    model = secateur.load("small")

    found = secateur.prune_context("htmlrag", "<html>...", "What is asked?", "tokens=2048", tokenizer="path/to/reader")
    small, cut = secateur.prune(model, example_inputs, budget="channels=50%")  # any PyTorch network, without data

Names are loaded on first use, so that importing secateur costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secateur._utils.lazy import load_name

__version__ = "0.2.0.dev0"

if TYPE_CHECKING:
    from secateur import recipes as recipes
    from secateur.errors import SecateurError as SecateurError
    from secateur.methods.graphs import open_graph as open_graph
    from secateur.methods.pruning import prune as prune
    from secateur.runs.context import prune_context as prune_context
    from secateur.runs.context_files import prune_file as prune_file
    from secateur.runs.data import prune_data as prune_data
    from secateur.runs.distilling import distill as distill
    from secateur.runs.executor import inspect as inspect
    from secateur.runs.executor import report as report
    from secateur.runs.executor import run as run
    from secateur.runs.exporting import export as export
    from secateur.runs.extracting import extract as extract
    from secateur.runs.measuring import measure as measure
    from secateur.runs.pruner_training import train_pruner as train_pruner
    from secateur.runs.sources import open_index as open_index
    from secateur.subjects.network.rules import rule as rule
    from secateur.subjects.opening import load as load
    from secateur.subjects.opening import open_subject as open_subject
    from secateur.subjects.transformer.adapters import translate_adapter as translate_adapter
    from secateur.subjects.transformer.heads import heads as heads
    from secateur.vocabulary import Budget as Budget
    from secateur.vocabulary import Cut as Cut
    from secateur.vocabulary import Evidence as Evidence
    from secateur.vocabulary import Figure as Figure
    from secateur.vocabulary import Recovery as Recovery
    from secateur.vocabulary import Result as Result
    from secateur.vocabulary import Selection as Selection
    from secateur.vocabulary import Site as Site
    from secateur.vocabulary import Subject as Subject
    from secateur.vocabulary import Units as Units

_PLACES = {
    "Budget": "vocabulary",
    "Cut": "vocabulary",
    "Evidence": "vocabulary",
    "Figure": "vocabulary",
    "Recovery": "vocabulary",
    "Result": "vocabulary",
    "SecateurError": "errors",
    "Selection": "vocabulary",
    "Site": "vocabulary",
    "Subject": "vocabulary",
    "Units": "vocabulary",
    "distill": "runs.distilling",
    "export": "runs.exporting",
    "extract": "runs.extracting",
    "heads": "subjects.transformer.heads",
    "inspect": "runs.executor",
    "load": "subjects.opening",
    "measure": "",
    "open_graph": "methods.graphs",
    "open_index": "runs.sources",
    "open_subject": "subjects.opening",
    "prune": "methods.pruning",
    "prune_context": "runs.context",
    "prune_data": "runs.data",
    "prune_file": "runs.context_files",
    "recipes": "",
    "report": "runs.executor",
    "rule": "subjects.network.rules",
    "run": "runs.executor",
    "train_pruner": "runs.pruner_training",
    "translate_adapter": "subjects.transformer.adapters",
}

__all__ = [
    "Budget",
    "Cut",
    "Evidence",
    "Figure",
    "Recovery",
    "Result",
    "SecateurError",
    "Selection",
    "Site",
    "Subject",
    "Units",
    "__version__",
    "distill",
    "export",
    "extract",
    "heads",
    "inspect",
    "load",
    "measure",
    "open_graph",
    "open_index",
    "open_subject",
    "prune",
    "prune_context",
    "prune_data",
    "prune_file",
    "recipes",
    "report",
    "rule",
    "run",
    "train_pruner",
    "translate_adapter",
]


def __getattr__(name: str) -> Any:
    return load_name(__name__, _PLACES, name)


def __dir__() -> list[str]:
    return sorted(__all__)
