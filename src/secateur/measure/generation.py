"""Tasks of the Language Model Evaluation Harness, run through its own Hugging Face model class."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from secateur._utils.tokenizers import Tokenizer
from secateur.errors import InputError, MissingExtraError
from secateur.vocabulary import Figure

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedModel

__all__ = ["evaluate", "lm_eval"]


def evaluate(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    tasks: str | Sequence[str],
    *,
    include_path: str | Path | None = None,
    limit: int | None = None,
    fewshot: int | None = None,
    batch_size: int = 8,
    max_length: int | None = None,
    seed: int = 0,
) -> dict[str, Figure]:
    """Evaluate a causal language model on lm-eval tasks: "task/metric" -> figure.

    `tasks` are names the harness knows, or names of tasks in `include_path`, a folder of YAML task files beside their
    data; such tasks need no network. The model is passed as it is to `lm_eval.models.huggingface.HFLM`: no export, no
    second copy. The interval is +-1.96 standard errors as the harness gives them, where it gives them. `limit` takes
    the first so many documents of each task.

    Raises `MissingExtraError` where lm-eval is not installed, `InputError` for a task it does not know.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingExtraError("lm-eval tasks need the extra `eval`: pip install 'secateur[eval]'") from error

    wanted = [tasks] if isinstance(tasks, str) else list(tasks)
    manager = _manager(TaskManager, wanted, include_path)
    training = model.training
    model.eval()
    try:
        harness = HFLM(
            pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size, max_length=max_length
        )
        results = simple_evaluate(
            model=harness,
            tasks=wanted,
            num_fewshot=fewshot,
            limit=limit,
            task_manager=manager,
            bootstrap_iters=1000,  # 0 would switch off the standard errors that need no bootstrap too
            log_samples=False,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    finally:
        model.train(training)
    samples = {name: int(count["effective"]) for name, count in results.get("n-samples", {}).items()}
    return {
        f"{task}/{metric}": figure
        for task, row in results["results"].items()
        for metric, figure in _figures(row, samples.get(task, 1)).items()
    }


lm_eval = evaluate


def _manager(factory: type[TaskManager], wanted: Sequence[str], include_path: str | Path | None) -> TaskManager:
    """Only the caller's own folder where that has all tasks: reading the harness's thousands takes seconds."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of what we do on purpose
    if include_path is not None and not Path(include_path).is_dir():
        raise InputError(f"no task folder at {include_path}: give a folder of lm-eval YAML files")
    path = None if include_path is None else str(include_path)
    if path is not None:
        local: TaskManager = factory(include_path=path, include_defaults=False)
        if set(wanted) <= set(local.all_tasks):
            return local
    manager: TaskManager = factory(include_path=path)
    unknown = sorted(set(wanted) - set(manager.all_tasks))
    if unknown:
        where = f" or in {path}" if path else ""
        raise InputError(f"task {unknown[0]!r} is not one of lm-eval's{where}: see `lm-eval ls tasks`")
    return manager


def _figures(row: Mapping[str, str | float], samples: int) -> dict[str, Figure]:
    """The harness's flat "metric,filter" row as figures; the filter is named only where it is not the plain one."""
    figures: dict[str, Figure] = {}
    for key, value in row.items():
        metric, comma, chosen = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = row.get(f"{metric}_stderr,{chosen}")
        known = isinstance(error, int | float) and math.isfinite(error)
        half = 1.96 * float(error) if known and error is not None else None
        name = metric if chosen == "none" else f"{metric},{chosen}"
        low, high = (None, None) if half is None else (float(value) - half, float(value) + half)
        figures[name] = Figure(float(value), low, high, "", samples)
    return figures
