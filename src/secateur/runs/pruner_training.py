"""Train the model with which a recipe prunes what another model reads. `secateur train-pruner`."""

from __future__ import annotations

import hashlib
import importlib
import json
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

from secateur import recipes
from secateur._utils import distributed
from secateur._utils.modes import move_to_device
from secateur.clients import chat
from secateur.errors import DataError, InputError
from secateur.retrieval import rerankers
from secateur.retrieval.rerankers import Reranker
from secateur.runs import configs, keywords, servers
from secateur.runs.backends.documents import FIELDS, AnyReader, of_document_recipe, read_row
from secateur.runs.context_files import Line, parse_line, read_lines
from secateur.runs.executor import open_run
from secateur.vocabulary import Recovery

__all__ = ["configured", "train_pruner"]

_OPENERS: dict[Any, Callable[[str], Any]] = {chat.Local: chat.open_local, Reranker: rerankers.open_reranker}
"""What a recipe's `train` takes -> how it is opened."""


def train_pruner(
    recipe: str,
    model: str | Path,
    data: str | Path | Sequence[Mapping[str, object]],
    out: str | Path,
    *,
    device: str = "",
    overwrite: bool = False,
    **options: object,
) -> Recovery:
    """Train the model with which a recipe prunes; it stands in `out`, to be given to `prune_context`.

    The same call again goes on from its last checkpoint.

    Args:
        recipe: "htmlrag", whose `path_model` this makes, or "provence", whose `model`.
        model: folder or Hub id of what is trained: a causal language model for the one, a reranker or encoder for the
            other. It stays as it is.
        data: a .jsonl file, or rows, with `question`, `html`, `text` or `passages`, and `answers`: text or a list of
            texts that the documents say. Rows for provence may hold more, or `sentences` and `labels` instead, see its
            `train`.
        out: the run directory.
        device: where the model is held outside of training, "cuda": there pages and passages are read that it learns
            from, old scores are found and it is judged; and an embedder and a language model in a folder are held. The
            processor if empty. Training uses a GPU if there is one.
        overwrite: start anew where `out` holds another run.
        options: of the recipe's `train`; and llm_timeout, llm_retries, llm_per_minute and llm_key (the environment
            variable that holds the key of a language model's server), of `runs.servers.servers`.

    Raises:
        InputError: an unknown option, a model that can't be opened, a recipe without training.
        DataError: no row, or one without the fields.
        RunError: `out` is in use, or holds another run.
    """
    module = importlib.import_module(recipes.find(recipe).__module__)
    if not hasattr(module, "train"):
        raise InputError(f"{recipe} trains no model")
    asked, own = servers.split_options(module.train, options)
    chosen = keywords.flat(module.train, keywords.check_options(module.train, own))
    rows = list(_training_rows(data, of_document_recipe(recipe)))
    if not rows:
        raise DataError("there is no row to learn from: give question, documents and answers in each")
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    kind = typing.get_type_hints(module.train)["model"]
    learner = _OPENERS[kind](str(model)).copy()
    move_to_device(learner if isinstance(learner, Reranker) else learner.model, device or "cpu")
    bound = {name: value for name, value in chosen.items() if name not in chat.SPENDING}
    if not bound.get("training"):
        bound.pop("training", None)
    settings = {"recipe": recipe, "model": str(model), "data_sha256": digest, **bound}
    about = {
        "command": "train-pruner",
        **({"device": device} if device else {}),
        "data": str(data) if isinstance(data, str | Path) else "rows",
        **{name: value for name, value in {**chosen, **options}.items() if name not in bound},
    }
    with open_run(out, settings, about, overwrite=overwrite, shared=True) as run:
        if distributed.by_first((Path(out) / "training.json").is_file):
            record = json.loads((Path(out) / "training.json").read_text(encoding="utf-8"))
            return Recovery.from_dict(record["recovery"])
        packed = keywords.pack(module.train, asked.with_llm(chosen, asked.meter(), device))
        recovery, notes = module.train(learner, rows, run, **packed)
        text = json.dumps({"recovery": asdict(recovery), "notes": notes}, indent=1)

        def save(folder: Path) -> None:
            learner.save(folder)
            (folder / "training.json").write_text(text, encoding="utf-8")

        distributed.by_first(partial(run.publish, save))
        rerankers.forget_checkpoints()  # what stood there before may be known here by the same name
        chat.forget_checkpoints()
    return cast(Recovery, recovery)


def configured(path: str | Path, given: Mapping[str, object] | None = None) -> dict[str, Any]:
    """What to call `train_pruner` with: the settings in a YAML file, a run.yaml say, where `given` says nothing else.

    Raises `InputError` where the file, or a key in it, can't be used.
    """

    def own_options(recipe: str) -> list[str]:
        module = importlib.import_module(recipes.find(recipe).__module__)
        options = keywords.names(module.train) if hasattr(module, "train") else ()
        return [*options, *keywords.names(servers.servers)]

    return configs.read(path, "train-pruner", train_pruner, given, more=own_options)


def _training_rows(data: str | Path | Sequence[Mapping[str, object]], reader: AnyReader) -> Iterator[dict[str, Any]]:
    """Rows with a `question`, `documents` where they have some, and `answers` as a list where there are any."""
    lines: Iterable[Line]
    if isinstance(data, str | Path):
        lines = read_lines(Path(data), "")
    else:
        lines = ((f"row {number}", json.dumps(dict(row))) for number, row in enumerate(data, start=1))
    for where, text in lines:
        try:
            row = parse_line(text)
            documents, titles = read_row(row, None) if any(name in row for name in FIELDS) else ([], None)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        answers = row.get("answers")
        answers = [answers] if isinstance(answers, str) else answers
        texts = answers is None or (isinstance(answers, list) and all(isinstance(text, str) for text in answers))
        if not isinstance(row.get("question"), str) or not texts:
            raise DataError(f"{where} lacks question or answers: give text, and text or a list of texts")
        documents = [reader.read_document(document) for document in documents]
        yield {**row, "documents": documents, "titles": titles, "answers": answers}
