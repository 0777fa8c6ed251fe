"""What does compression cost a reasoning model? Collapse points, knowledge against reasoning, tokens and time.

Zhang et al., "When Reasoning Meets Compression", ICLR 2026 (arXiv 2504.02010). Compressed versions answer tasks of
graded difficulty; how long they think is measured beside how often they are right; and a diagnosis says which linears
carry what the model does while it thinks, so that they can be protected (`runs.diagnosing`).

Departures: a collapse is the first amount below half of the original's score *above chance*. Tasks are made, or the
user's: AIME, FOLIO, Temporal Sequences and MuSiQue are task files. Weights that went are zeros, so that wall time shows
how long a model thinks, and no kernel. One pass is taken where no task samples. Deduction is looked at beside the
article's four behaviours, and all versions read the original's answers. AWQ, GPTAQ and ANY4 come as folders (`beside`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

from secateur.data.texts import Corpus
from secateur.errors import InputError, NothingFoundError
from secateur.methods import puzzles
from secateur.methods import tasks as asking
from secateur.methods.behaviours import check_tokenizer, read_rules
from secateur.methods.protection import WHOLE, move_bits, read_order, read_protection
from secateur.methods.tasks import Task
from secateur.methods.traces import answer_prompts
from secateur.runs import diagnosing
from secateur.runs.compression import CALIBRATED, DENSE, QUANTISERS, Config, check_grid, find_beside, make_grid
from secateur.runs.diagnosing import Manner
from secateur.runs.reasoning_results import Results
from secateur.runs.scoring import (
    Held,
    Model,
    check_models,
    check_texts,
    is_served,
    open_judge,
    score_model,
    score_served,
)
from secateur.subjects import Transformer
from secateur.subjects.matrices import matrices

__all__ = ["STUDY", "plan", "reasoning"]

STUDY = {
    "title": "what does compression cost a reasoning model? collapse points, knowledge, tokens, and what to protect",
    "recipe": "",
    "backend": "secateur.runs.backends.language:Language",
    "sets": "",
    "grid": "tasks methods sparsity bits beside seeds traces protect dynamic diagnose verify write",
}


# -------------------------------------------------------------------------------------------------------------- asking


def reasoning(
    subject: Transformer,
    data: Corpus,
    folder: Path,
    progress: Callable[[Sequence[Config]], Iterable[Config]] = iter,
    *,
    tasks: Sequence[str] = ("chains", "schedules"),
    methods: Sequence[str] = ("magnitude", "sparsegpt", "rtn", "gptq"),
    sparsity: Sequence[str] = ("10%", "20%", "30%", "40%", "50%", "60%", "70%", "80%"),
    bits: Sequence[int] = (8, 4, 3, 2),
    beside: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    samples: Annotated[int, Ge(1)] = 128,
    traces: str = "",
    protect: str = "",
    dynamic: str = "",
    diagnose: bool = False,
    verify: Annotated[int, Ge(0)] = 0,
    behaviours: str = "",
    annotator: str = "",
    annotator_name: str = "",
    spans: Annotated[int, Ge(1)] = 60,
    share: Annotated[float, Gt(0), Lt(1)] = 0.02,
    passes: Annotated[int, Ge(1)] = 3,
    items: Annotated[int, Ge(1)] = 40,
    tokens: Annotated[int, Ge(1)] = 200,
    temperature: Annotated[float, Ge(0), Le(2)] = 0.6,
    chat: bool = False,
    task_seed: int = 0,
    judge: str = "",
    judge_name: str = "",
    length: Annotated[int, Ge(2)] = 128,
    batch: Annotated[int, Ge(1)] = 32,
    write: str = "",
    export: str = "",
) -> Results:
    """Compress a reasoning model in many ways, let each version answer graded tasks, and see what breaks first.

    1. The original and each version answer every item `passes` times: text, tokens, whether it ended, right or wrong.
    2. Collapse point of each method and task, with a bootstrap over items; damage, of knowledge against reasoning.
    3. Tokens of right and wrong answers, score by quartile of length; score against bytes, bytes × tokens, wall time.
    4. With `diagnose`: behaviours in the original's answers, a direction for each in every linear's outputs, and how
       steeply the loss falls along it; the shift of that in each version; protect.json for `protect` and `dynamic`.

    Args:
        subject: a causal language model.
        data: general text: to calibrate and measure perplexity on.
        folder: where models' answers go.
        progress: announces the models.
        tasks: JSONL files (with a role: knowledge or reasoning), or tasks that are made here: chains, sums, schedules,
            facts.
        methods: random, magnitude, magnitude-block (one threshold for all linears of a block), magnitude-profile (first
            and last block whole, most from the middle), wanda, sparsegpt, alphapruning (weights to zeros), rtn, gptq
            (fewer bits).
        sparsity: shares of zeros of the pruners.
        bits: of the quantisers.
        beside: folders of other versions, such as quantised, distilled or fine-tuned ones, or servers
            (http://host/v1#NAME).
        seeds: of calibration: figures are means over them.
        samples: calibration windows.
        traces: a task file: calibrated methods are also calibrated on what the original answers to its prompts.
        protect: a protect.json: each method is also tried with its modules left as they are.
        dynamic: quantisers are also tried with bits moved between modules at the same mean: "ends" for more in the
            first and last blocks, or a protect.json for more in important modules.
        diagnose: say which linears matter for what the model does while it thinks.
        verify: so many linears, from all ranks, are rounded to 3 bits one at a time, to see whether that is true.
        behaviours: JSON file {behaviour: [words]} in place of the rules for English.
        annotator: a language model (folder, Hub id or address) that marks behaviours in place of rules.
        annotator_name: of the annotator, where it is a server's.
        spans: of behaviours that are looked at, in all.
        share: of the weights that protect.json may protect.
        passes: times that each item is asked, where a task samples.
        items: of each level of the tasks made here.
        tokens: an answer of these may take.
        temperature: of these; 0 for the likeliest token each time.
        chat: ask these through the chat template.
        task_seed: of these.
        judge: of tasks whose scorer it is: likelihood (of the original), or a model's folder, Hub id or address.
        judge_name: of the judge, where it is a server's.
        length: tokens of a window, in calibration and perplexity.
        batch: prompts at once.
        write: folder into which the tasks made here are written, with train.jsonl to train a model on.
        export: folder into which the tasks are written for lm-eval.

    Raises `DataError` for a file that is no task, and where no version was asked for and there is nothing to diagnose
    (beside versions that is a note); `InputError` for a method or a module that is none, or no task.
    """
    made = _Made(items, task_seed, puzzles.Asking(tokens, temperature, chat))
    asked = _read_all(tasks, made, judge)
    if write:
        puzzles.write_puzzles(
            Path(write), [one for one in tasks if one in puzzles.KINDS], items, task_seed, how=made.how
        )
    if export:
        for task in asked:
            asking.export_task(task, Path(export))
    grid = _make_grid(subject, methods, sparsity, bits, seeds, samples, traces, protect, dynamic)
    held = Held.of(data, length)
    if traces:
        own = answer_prompts(subject, traces, folder / "traces", samples * length, batch=batch)
        held = replace(held, traces=own)
        grid = [replace(one, texts=own.digest) if one.variant == "traces" else one for one in grid]
    judging, times = open_judge(judge, judge_name, subject), _passes(asked, passes)
    models = list[tuple[Config, Model]]()
    for config in progress([DENSE, *grid, *find_beside(beside)]):
        if is_served(config.method):
            model = score_served(config.method, asked, folder, passes=times, judge=judging, label=str(config))
        else:
            model = score_model(subject, config, asked, held, folder, passes=times, batch=batch, judge=judging)
        models.append((config, model))
    diagnosis, notes = None, list[str]()
    if diagnose:
        manner = Manner(behaviours, annotator, annotator_name, spans, share, verify)
        local = [(config, model) for config, model in models[1:] if not is_served(config.method)]
        try:
            diagnosis = diagnosing.diagnose(subject, asked, models[0][1], local, held, folder, manner)
        except NothingFoundError as error:  # the original's answers show no behaviour
            if len(models) == 1:
                raise
            notes.append(f"no diagnosis, and no protect.json: {error}")
    return Results(asked, models, diagnosis, tuple(notes))


@dataclass(frozen=True, slots=True)
class _Made:
    """Tasks that are made here."""

    items: int
    seed: int
    how: puzzles.Asking

    def read(self, kind: str) -> list[Task]:
        """The task of a kind."""
        with tempfile.TemporaryDirectory() as place:
            (file,) = puzzles.write_puzzles(Path(place), [kind], self.items, self.seed, how=self.how)
            return asking.read_tasks(file)


def plan(
    subject: Transformer,
    data: Corpus,
    *,
    tasks: Sequence[str],
    methods: Sequence[str],
    sparsity: Sequence[str],
    bits: Sequence[int],
    beside: Sequence[str],
    seeds: Sequence[int],
    samples: int,
    traces: str,
    protect: str,
    dynamic: str,
    diagnose: bool,
    verify: int,
    behaviours: str,
    annotator: str,
    spans: int,
    passes: int,
    items: int,
    tokens: int,
    temperature: float,
    chat: bool,
    task_seed: int,
    judge: str,
    write: str,
    length: int,
    **others: object,
) -> dict[str, int]:
    """How many models, answers and gradients `reasoning` will take; what it would refuse is refused here."""
    if not subject.causal:
        raise InputError(f"{type(subject.model).__name__} writes no text: study reasoning asks causal language models")
    asked = _read_all(tasks, _Made(items, task_seed, puzzles.Asking(tokens, temperature, chat)), judge)
    grid = _make_grid(subject, methods, sparsity, bits, seeds, samples, traces, protect, dynamic)
    check_models(subject, asked, beside)
    check_grid(subject, grid)
    check_texts(subject, Held.of(data, length), grid)
    if traces:
        known = {item.prompt for task in asked for item in task.items}
        if any(item.prompt in known for task in asking.read_tasks(traces) for item in task.items):
            raise InputError(f"{traces} holds prompts of the tasks that are asked: calibrate on others")
    extra = [
        name for name, given in (("verify", verify), ("behaviours", behaviours), ("annotator", annotator)) if given
    ]
    if write and not any(one in puzzles.KINDS for one in tasks):
        raise InputError(
            f"write is of tasks that are made here, and none is asked: name some of {', '.join(puzzles.KINDS)}"
        )
    if extra and not diagnose:
        raise InputError(f"{extra[0]} is of a diagnosis: say diagnose too")
    read_rules(behaviours)
    if diagnose:
        check_tokenizer(subject.tokenizer)
    models = 1 + len(grid) + len(find_beside(beside))
    told = {"models": models, "answers": models * _passes(asked, passes) * sum(len(task.items) for task in asked)}
    return {**told, "gradients": models * spans} if diagnose else told


def _passes(tasks: Sequence[Task], passes: int) -> int:
    """One, where no task samples: the same would be written again."""
    return passes if any(task.writing.temperature for task in tasks) else 1


def _read_all(names: Sequence[str], made: _Made, judge: str) -> list[Task]:
    if not names:
        raise InputError(f"study reasoning asks tasks: give JSONL files, or some of {', '.join(puzzles.KINDS)}")
    found = [task for one in names for task in (made.read(one) if one in puzzles.KINDS else asking.read_tasks(one))]
    asking.check_tasks(found, judge)
    return found


def _make_grid(
    subject: Transformer,
    methods: Sequence[str],
    sparsity: Sequence[str],
    bits: Sequence[int],
    seeds: Sequence[int],
    samples: int,
    traces: str,
    protect: str,
    dynamic: str,
) -> list[Config]:
    """All versions to make: of each method and amount the plain one, then its variants."""
    if not methods:
        return []
    prune, quantise = ([one for one in methods if (one in QUANTISERS) == which] for which in (False, True))
    plain = make_grid(methods, sparsity if prune else (), (), bits if quantise else (), seeds=seeds, samples=samples)
    protection = read_protection(protect, subject)
    found = list(plain)
    if traces:
        found += [replace(one, variant="traces") for one in plain if one.method in CALIBRATED]
    if protect:
        whole = dict.fromkeys(sorted(protection.stays), WHOLE)
        both = {**whole, **dict(sorted(protection.bits.items()))}
        own = [(one, both if one.method in QUANTISERS else whole) for one in plain]
        if not any(names for _, names in own):
            told = "gives modules bits, and no quantiser is asked" if both else "names no module"
            raise InputError(f"{protect} {told}: give a protect.json of these methods, or leave it out")
        found += [replace(one, by_module=tuple(names.items()), variant="protected") for one, names in own if names]
    if dynamic:
        sizes = {name: one.weight.numel() for name, one in matrices(subject.model, subject.layers()).items()}
        order = read_order(dynamic, subject)
        for one in (one for one in plain if one.method in QUANTISERS and 2 < one.bits < 8):
            moved = tuple(sorted(move_bits(sizes, order, one.bits).items()))
            found.append(replace(one, by_module=moved, variant="dynamic"))
    return found
