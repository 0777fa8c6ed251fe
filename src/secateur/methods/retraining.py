"""Many cuts of one classifier, trained by one recipe and judged alike: in a stack, one by one, or in processes.

What the oracle-pruning check asks of hundreds of candidates (arXiv 2412.00143), and what picks one of a few by a short
retraining.
"""

from __future__ import annotations

import copy
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from secateur._utils import devices, workers
from secateur._utils.modes import evaluating, move_to_device
from secateur._utils.tokenizers import Tokenizer
from secateur.data import examples, texts
from secateur.data.batches import Feed, count_steps
from secateur.data.examples import Augment, Examples
from secateur.data.texts import Corpus
from secateur.errors import InputError, NumericalError
from secateur.recover.distillation import losses
from secateur.recover.training import loop, norms, objectives, stacked
from secateur.recover.training.compose import Parts
from secateur.recover.training.stacked import Stacked
from secateur.score import curvature
from secateur.score.slices import Slices
from secateur.subjects.network.opening import is_saved, open_saved
from secateur.subjects.network.recording import Example
from secateur.subjects.network.shrinking import history
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Cut, Selection, Training, Units

__all__ = [
    "Classifier",
    "Classifying",
    "Figures",
    "ImageTask",
    "Outcome",
    "TextTask",
    "compare_shortly",
    "complete",
    "count_fitting",
    "describe_choice",
    "mean_loss",
    "measure",
    "measure_proxies",
    "retrain",
    "retrain_apart",
    "why_alone",
]

Batch: TypeAlias = Mapping[str, Any]
Figures: TypeAlias = dict[str, float]
"""loss, accuracy and whatever else was measured."""


class Classifier(Protocol):
    """A subject that classifies and can be cut: a network or a transformers model."""

    @property
    def model(self) -> nn.Module:
        """What is trained."""
        ...

    def units(self, *axes: str, multiple: int = 1) -> Units:
        """What could go."""
        ...

    def slices(self) -> Slices:
        """Site -> the weights that go with each unit."""
        ...

    def cut(self, selection: Selection) -> tuple[Classifier, Cut]:
        """A smaller copy, and the receipt."""
        ...

    def save(self, folder: str | Path) -> None:
        """Write it into a folder."""
        ...


class Classifying(Protocol):
    """What candidates learn and are judged on; each can be sent to another process."""

    def ask(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits [B, C]."""
        ...

    def feed(self, batch: int, seed: int) -> Feed:
        """Endless batches of the training part with "labels" [B], the same for each candidate."""
        ...

    def train_batches(self) -> Iterable[Batch]:
        """The whole training part once."""
        ...

    def judged_batches(self) -> Iterable[Batch]:
        """All that is judged on."""
        ...


@dataclass(frozen=True, eq=False)
class ImageTask:
    """Examples with classes, of any network; `augment` changes what is learned from, see `examples.batches`."""

    train: Examples
    judged: Examples
    augment: Augment | None = None

    def ask(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits [B, C]."""
        return objectives.logits(model(batch["inputs"]))

    def feed(self, batch: int, seed: int) -> Feed:
        """Endless batches of the training part."""
        return examples.batches(self.train, batch=batch, seed=seed, augment=self.augment)

    def train_batches(self) -> Iterable[Batch]:
        """The whole training part once."""
        return self.train.in_order(_ROWS)

    def judged_batches(self) -> Iterable[Batch]:
        """All that is judged on."""
        return self.judged.in_order(_ROWS)


@dataclass(frozen=True, eq=False)
class TextTask:
    """Texts with classes, of a transformers model.

    length: tokens of a text, of which the rest is cut. rows: texts that are judged together.
    """

    train: Corpus
    judged: Corpus
    tokenizer: Tokenizer
    length: int
    rows: int = 32

    def ask(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits [B, C]."""
        return objectives.logits(model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]))

    def feed(self, batch: int, seed: int) -> Feed:
        """Endless batches of the training part."""
        batch = min(batch, len(self.train))
        return texts.batches(self.train, self.tokenizer, packed=False, batch=batch, length=self.length, seed=seed)

    def train_batches(self) -> Iterable[Batch]:
        """The whole training part once, texts of like length together."""
        return self._batches(self.train)

    def judged_batches(self) -> Iterable[Batch]:
        """All that is judged on, texts of like length together."""
        return self._batches(self.judged)

    def _batches(self, corpus: Corpus) -> Iterator[Batch]:
        assert corpus.labels is not None
        order = sorted(range(len(corpus)), key=lambda place: len(corpus.texts[place]))
        for start in range(0, len(order), self.rows):
            places = order[start : start + self.rows]
            read = self.tokenizer(
                [corpus.texts[place] for place in places],
                truncation=True,
                max_length=self.length,
                padding=True,
                return_tensors="pt",
            )
            labels = torch.tensor([corpus.labels[place] for place in places])
            yield {"input_ids": read["input_ids"], "attention_mask": read["attention_mask"], "labels": labels}


_ROWS = 256
"""Examples that are judged together, unless passes over them are limited."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A candidate after training: means and deviations over the last epochs, its best epoch, and its training part.

    The mean over the last epochs is what candidates are compared by: the best epoch is picked on what it is judged on.
    """

    loss: float
    accuracy: float
    loss_deviation: float
    accuracy_deviation: float
    best_loss: float
    best_accuracy: float
    best_epoch: int
    train_loss: float
    train_accuracy: float


# ------------------------------------------------------------------------------------------------------------ judging


def measure(
    models: Sequence[nn.Module],
    task: Classifying,
    batches: Iterable[Batch],
    *,
    teacher: nn.Module | None = None,
    together: bool = False,
) -> list[Figures]:
    """Mean cross-entropy and accuracy of each model over all of `batches`, in evaluation mode.

    teacher: the model that was cut, for "kl", the mean of KL(teacher || model). together: in one stack, where
    `why_alone` says nothing.
    """
    student = Stacked(models, task.ask) if together else nn.ModuleList(models)
    known = [] if teacher is None else [teacher]
    with evaluating(student, *known), torch.inference_mode():
        return _measure(_answers(student, task), task, batches, teacher)


def _answers(student: nn.Module, task: Classifying) -> Callable[[Batch], Tensor]:
    """Batch -> [K, B, C]: of a stack, of a list of models, or of one model."""
    if isinstance(student, Stacked):
        return student
    models = list(student) if isinstance(student, nn.ModuleList) else [student]
    return lambda batch: torch.stack([task.ask(model, devices.move(batch, model)) for model in models])


def _measure(
    answers: Callable[[Batch], Tensor], task: Classifying, batches: Iterable[Batch], teacher: nn.Module | None = None
) -> list[Figures]:
    sums: dict[str, Tensor] = {}
    count = 0
    for batch in batches:
        told = answers(batch).float()
        labels = devices.move(batch["labels"], told)
        logs = told.log_softmax(-1)
        rows = {
            "loss": -logs.gather(-1, labels.expand(len(told), -1).unsqueeze(-1)).squeeze(-1),
            "accuracy": (told.argmax(-1) == labels).float(),
        }
        if teacher is not None:
            theirs = task.ask(teacher, devices.move(batch, teacher)).float().log_softmax(-1)
            rows["kl"] = (theirs.exp() * (theirs - logs)).sum(-1)
        for name, row in rows.items():
            sums[name] = sums.get(name, torch.zeros(len(told), dtype=torch.float64)) + row.double().sum(1).cpu()
        count += len(labels)
    numbers = {name: (total / count).tolist() for name, total in sums.items()}
    return [dict(zip(numbers, row, strict=True)) for row in zip(*numbers.values(), strict=True)]


def measure_proxies(
    models: Sequence[nn.Module],
    task: Classifying,
    proxies: Sequence[str],
    *,
    dense: nn.Module,
    together: bool = False,
    calibration: Sequence[Batch] = (),
) -> list[Figures]:
    """What is known of each cut before any training, over the whole training part; lower is to mean better.

    loss, accuracy: of the cut as it is. kl: from the uncut model. norms: the loss once batch norms have statistics of
    the cut network, of `calibration`. trace: of the Hessian of the loss on `calibration`, see `curvature.trace`.
    """
    teacher = dense if "kl" in proxies else None
    found = measure(models, task, task.train_batches(), teacher=teacher, together=together)
    for model, figures in zip(models, found, strict=True):
        if "trace" in proxies:
            loss = partial(mean_loss, task, model)
            figures["trace"] = curvature.trace(loss, model, calibration, list(model.parameters()))
        if "norms" in proxies:
            state = {name: tensor.clone() for name, tensor in model.named_buffers()}
            ask = partial(_ask, task, model)
            figures["norms"] = figures["loss"]
            if norms.reestimate(model, ask, calibration):
                figures["norms"] = measure([model], task, task.train_batches())[0]["loss"]
                for name, tensor in model.named_buffers():
                    tensor.copy_(state[name])
    return found


def _ask(task: Classifying, model: nn.Module, batch: Batch) -> Tensor:
    return task.ask(model, devices.move(batch, model))


def mean_loss(task: Classifying, model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of a batch, as scores of gradients take it."""
    batch = devices.move(batch, model)
    return losses.cross_entropy(task.ask(model, batch), batch["labels"]) / len(batch["labels"])


# ----------------------------------------------------------------------------------------------------------- training


def complete(training: Training, *, texts: bool = False) -> Training:
    """The fields that candidates' training needs and nobody set: AdamW for texts, SGD in milestones for networks.

    Raises `InputError` for settings under which candidates would not be trained alike.
    """
    for name in ("patience", "validation", "keep"):
        if getattr(training, name) is not None:
            raise InputError(
                f"{name}={getattr(training, name)}: every candidate trains for the epochs it is compared at; leave it "
                "out"
            )
    if training.number("epochs") <= 0:
        raise InputError(f"epochs={training.epochs}: give more than 0, for what was not retrained tells nothing")
    kind = {"optimizer": "adamw", "schedule": "linear"} if texts else {"optimizer": "sgd", "schedule": "milestones"}
    return training.default(**kind, warmup=0.0, clip=math.inf, weight_decay=1e-4)


def why_alone(models: Sequence[nn.Module], task: Classifying, training: Training) -> str:
    """Why candidates can't be trained in one stack; "" where they can."""
    if reason := stacked.why_not(training):
        return f"{reason} is set"
    if not stacked.stackable(models, task.ask, next(iter(task.judged_batches()))):
        return "vmap does not run them"
    return ""


def count_fitting(model: nn.Module, task: Classifying, batches: Iterable[Batch]) -> int | None:
    """How many candidates like `model` half of the free memory holds as one stack, 0 for none; None if it is unknown.

    batches: of training, of which the largest counts.
    """
    free = devices.free_memory(devices.find_device(model))
    if free is None:
        return None
    largest = max(batches, key=lambda batch: max(one.numel() for one in batch.values() if isinstance(one, Tensor)))
    return free // 2 // stacked.count_bytes(model, task.ask, largest)


def retrain(
    models: Sequence[nn.Module],
    task: Classifying,
    training: Training,
    *,
    seed: int,
    last: int = 5,
    together: bool = False,
    judge: bool = True,
) -> list[Outcome]:
    """Train candidates in place, or their stack, each on the same batches in the same order, and judge them.

    Args:
        models: of one shape where they are trained together; a stack leaves them as they are.
        task: what they learn, and are judged on after every epoch.
        training: see `complete`.
        seed: of the order of batches and all else that is random: candidates share it, so that it does not set them
            apart.
        last: epochs at the end that figures are means over.
        together: in one stack, where `why_alone` says nothing.
        judge: whether they are judged at all; without it the figures of judged examples are those of the training part.

    A candidate whose loss is not finite ends all with `NumericalError`.
    """
    if together:
        return _train(Stacked(models, task.ask), task, training, seed, last, judge)
    return [_train(model, task, training, seed, last, judge)[0] for model in models]


def _train(
    student: nn.Module, task: Classifying, training: Training, seed: int, last: int, judge: bool
) -> list[Outcome]:
    feed = task.feed(training.whole("batch"), seed)
    accumulate = training.accumulate or 1
    steps, epoch = count_steps(feed, training.number("epochs"), accumulate), count_steps(feed, 1, accumulate)
    answers, history = _answers(student, task), list[list[Figures]]()

    def objective(batch: Batch, totals: Mapping[str, int]) -> tuple[Tensor, Parts]:
        told = answers(batch)
        return losses.cross_entropy(told.flatten(0, 1), batch["labels"].repeat(len(told))) / totals["examples"], {}

    def evaluate() -> float:
        history.append(_measure(answers, task, task.judged_batches()))
        return float(np.mean([one["loss"] for one in history[-1]]))

    optimizer = None
    if isinstance(student, Stacked):
        momentum = loop.DEFAULTS["momentum"] if training.momentum is None else training.momentum
        betas = training.betas or loop.DEFAULTS["betas"]
        optimizer = stacked.adjust_optimizer(training, momentum=momentum, betas=betas)
    loop.train(
        student,
        feed,
        objective,
        training.default(evaluate_every=epoch),
        steps=steps,
        seed=seed,
        count=_count,
        optimizer=optimizer,
        evaluate=evaluate if judge else None,
        progress=False,
    )
    with evaluating(student), torch.inference_mode():
        whole = _measure(answers, task, task.train_batches())
    return [_summarise([epoch[place] for epoch in history or [whole]], one, last) for place, one in enumerate(whole)]


def _count(batch: Batch) -> dict[str, int]:
    return {"examples": len(batch["labels"])}


def _summarise(history: Sequence[Figures], whole: Figures, last: int) -> Outcome:
    """Means over the last epochs, and the best one."""
    losses_, hits = (np.array([one[name] for one in history]) for name in ("loss", "accuracy"))
    best = int(hits.argmax())
    return Outcome(
        float(losses_[-last:].mean()),
        float(hits[-last:].mean()),
        float(losses_[-last:].std()),
        float(hits[-last:].std()),
        float(losses_.min()),
        float(hits[best]),
        best + 1,
        whole["loss"],
        whole["accuracy"],
    )


# ---------------------------------------------------------------------------------------------------------- processes


def retrain_apart(
    candidates: Sequence[Classifier], task: Classifying, training: Training, *, seed: int, last: int = 5, many: int = 2
) -> Iterator[Outcome | str]:
    """As `retrain`, each candidate in one of `many` processes and given as it ends: for what can't be stacked.

    Candidates go there as folders, and are trained on the device where they lie here. For one whose loss is not finite
    comes what `NumericalError` says. Raises `InputError` for a network that was given in Python, which another process
    can't build: name its function.
    """
    for one in candidates[:1]:
        if isinstance(one, Traced) and not history(one.model).built_by:
            raise InputError(
                f"processes={many}: another process can't build a network that was given in Python; name the function "
                "that does (file.py:function), or leave processes out"
            )
    threads = max(1, (os.cpu_count() or 1) // many)
    start = workers.prepare_process, (threads, dict(os.environ))
    with tempfile.TemporaryDirectory() as place:
        folders = []
        for number, one in enumerate(candidates):
            folder = Path(place, str(number))
            folder.mkdir()
            one.save(folder)
            folders.append(str(folder))
        places = [str(devices.find_device(one.model)) for one in candidates]
        work = partial(_retrain_saved, task, training, seed, last)
        inputs = [_move_inputs(one) if isinstance(one, Traced) else None for one in candidates]
        with ProcessPoolExecutor(many, workers.process_context(), *start) as pool:
            for row in pool.map(work, folders, inputs, places):
                yield row if isinstance(row, str) else Outcome(**row)


def _move_inputs(subject: Traced) -> Example:
    """Example inputs in main memory, where another process can have them."""
    return Example(*devices.move((subject.inputs.args, subject.inputs.kwargs), torch.device("cpu")))


def _retrain_saved(
    task: Classifying, training: Training, seed: int, last: int, folder: str, inputs: object, place: str
) -> dict[str, Any] | str:
    if is_saved(folder):
        model = open_saved(folder, inputs=inputs).model
    else:
        from secateur.subjects.transformer import loading  # which loads transformers

        model = loading.open_subject(folder).model
    move_to_device(model, place)
    try:
        return asdict(retrain([model], task, training, seed=seed, last=last)[0])
    except NumericalError as error:
        return str(error)


# -------------------------------------------------------------------------------------------------- short retraining


def compare_shortly(
    candidates: Sequence[nn.Module], task: Classifying, training: Training, *, seed: int = 0
) -> list[float]:
    """The training loss of each candidate after a short retraining, by which one may be chosen.

    Nothing of what is judged on is looked at. Candidates stay as they are. They train in stacks as large as half of the
    free memory holds, where they can be stacked. Source: arXiv 2412.00143 correlates such results with those of the
    whole retraining, where the loss right after the cut says little.
    """
    training, reached = complete(training), list[float]()
    size = _count_stacked(candidates, task, training, seed)
    for start in range(0, len(candidates), size):
        some = candidates[start : start + size]
        together = len(some) > 1
        copies = some if together else [copy.deepcopy(model) for model in some]
        outcomes = retrain(copies, task, training, seed=seed, judge=False, together=together)
        reached += [one.train_loss for one in outcomes]
    return reached


def _count_stacked(candidates: Sequence[nn.Module], task: Classifying, training: Training, seed: int) -> int:
    """How many of the candidates train as one: 1 where they can't, or where memory holds no more."""
    kinds = [[(name, one.shape, one.requires_grad) for name, one in model.named_parameters()] for model in candidates]
    if any(kind != kinds[0] for kind in kinds) or why_alone(candidates[:2], task, training):
        return 1
    with loop.place_for_training(candidates[0]):
        fit = count_fitting(candidates[0], task, [task.feed(training.whole("batch"), seed)[0]])
    return len(candidates) if fit is None else max(1, min(len(candidates), fit))


def describe_choice(chosen: int, reached: Sequence[float]) -> str:
    """A note on a choice by short retraining; the first candidate is the criterion's own."""
    which = "the criterion's own choice" if chosen == 0 else f"candidate {chosen + 1}, not the criterion's own choice,"
    return (
        f"of {len(reached)} cuts at this budget {which} has the lowest training loss after a short retraining: "
        f"{reached[chosen]:.4g}; the criterion's {reached[0]:.4g}, their median {np.median(reached):.4g}"
    )
