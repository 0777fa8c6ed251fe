"""Distilling the Knowledge in Data Pruning: a share of the training set, and a teacher that saw all of it.

Ben-Baruch, Botach, Kviatkovsky, Aggarwal and Medioni, ICML 2025 (arXiv 2403.07854).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from torch import Tensor, nn
from torch.nn import functional

from secateur._utils import plugins, rundir
from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.data.examples import Batches, Examples
from secateur.errors import BudgetError, DataError, InputError, RunError
from secateur.recover.distillation import losses
from secateur.recover.distillation.teachers import Joined
from secateur.recover.training import initialise, loop, objectives, rehearsal
from secateur.recover.training.objectives import Objective
from secateur.score import difficulty, random
from secateur.select import balance, ranking
from secateur.subjects.dataset.examples import INDEX, ExampleSet
from secateur.subjects.network.recording import Example
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget, Limit, Recovery, Result, Selection

CARD = {
    "title": "Distilling the knowledge in data pruning",
    "paper": "https://arxiv.org/abs/2403.07854",
    "cuts": "examples of the training set, by chance or by difficulty",
    "recovers": "a new network on what is left, with the outputs of one that was trained on all",
    "extra": "",
    "family": "data",
}

Ask = Callable[[nn.Module, Mapping[str, Any]], Tensor]
"""(network, batch) -> logits [B, C]."""

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""The alphas that are tried."""

SCORING = ("recipe", "data_sha256", "held_out_sha256", "model_sha256", "seed", "batch", "score", "runs", "score_epochs",
           "optimizer", "lr", "weight_decay")  # fmt: skip
"""Settings of a run by which its scores are what they are."""

APART = "a part of it is held out by the seed, unless held_out names other data"
"""Why data may not be those that an index was made of."""


def kd_data_pruning(
    subject: Traced,
    data: Examples,
    budgets: Sequence[Budget],
    run: Run,
    *,
    score: Literal["random", "el2n", "forgetting", "grand", "moderate", "herding", "memorisation"] = "random",
    balanced: bool = True,
    scored: str = "",
    alpha: float | Literal["auto"] = "auto",
    temperature: float = 4.0,
    student: str = "",
    soft: str = "",
    pack: bool = False,
    equal: Literal["iterations", "epochs"] = "iterations",
    epochs: float = 30.0,
    optimizer: Literal["sgd", "adamw"] = "sgd",
    lr: float = 0.1,
    weight_decay: float = 5e-4,
    batch: int = 64,
    runs: int = 3,
    score_epochs: float = 10.0,
    tried: Sequence[float] = (0.05, 0.3, 1.0),
    trials: int = 2,
    held: float = 0.2,
    labels_alone: bool = False,
    training: str | Sequence[str] = "",
    seed: int = 0,
    dry_run: bool = False,
) -> Iterator[Result]:
    """Keep a share f of the training set, and train a new network on it with labels and the teacher's soft outputs.

    1. The teacher q_t is the network that is given, trained on all of the data.
    2. Scores of all examples, averaged over short trainings from new weights; a share f of each class stays, the best.
    3. The teacher is asked once about each example that stays: the rest of the data, and it, are not needed any more.
    4. A network with new weights learns, for the iterations that all of the data would have taken, from
       ``1/N sum (1 - alpha) CE(y, q) + alpha tau^2 KL(q_t || q)`` with ``q = softmax(z / tau)`` in the second term.
    5. The less is left, the more the teacher is to be trusted: alpha "auto" is looked for at two or three f on a
       held-out part, and interpolated so that it never rises with f.

    `work/` of the run holds for each budget the index (`kept-BUDGET`), the teacher's outputs for what is kept, float16
    (`soft-BUDGET`), and what was found out about alpha. From the first two, further students learn without a teacher;
    and with `pack`, which writes `kept-BUDGET/examples.npz`, without the rest of the data.

    Args:
        subject: the teacher: a trained classifier. It stays as it is.
        data: what it was trained on, with classes.
        budgets: one network for each: examples=30%, or examples=2000.
        run: where scores, indices, soft outputs and checkpoints go.
        score: which examples stay: random, which is as good as any with a teacher; the hardest (el2n, forgetting,
            grand), those that no other tells about (memorisation), those between (moderate), or the most typical
            (herding).
        balanced: keep the same share of every class.
        scored: folder of an earlier run of the same data, teacher, seed and settings of the scoring runs, whose scores
            are taken, whatever its budgets, student and alpha were; or an index of the same data with such scores,
            which are taken as they are. Nothing is trained for scores.
        alpha: weight of the teacher, 0 to 1; auto looks for it.
        temperature: tau.
        student: file.py:function that builds another network; by default one like the teacher.
        soft: folder of an earlier run, of the same data, seed and budgets, for another student: what that kept, and
            what its teacher said. Nothing is scored and nobody asked: `subject` may be any network. With one budget,
            `data` may be what that run packed.
        pack: write the examples that stay beside their index: with them a student needs none of the other data.
        equal: iterations takes as many steps for every f; epochs takes fewer the less is left.
        epochs: of all of the data.
        optimizer: sgd with momentum, as in the paper, or adamw, which wants an lr of about 1e-3.
        lr: peak learning rate, with a cosine.
        weight_decay: of matrices.
        batch: examples per step, and of the timed environment.
        runs: trainings that a score is averaged over; the papers take ten.
        score_epochs: of each of them.
        tried: shares f at which alpha is looked for.
        trials: trainings for each of them and each alpha.
        held: share of the data on which alpha is judged.
        labels_alone: train another student beside it, from the same weights on the same examples, without the teacher.
        training: more settings of the training loop, such as accumulate=4,precision=bf16.
        seed: of everything random.
        dry_run: stop after the selection; nothing is trained but what scores take.

    Departures: tau, rates and epochs of the paper are not known to this project; these are its own. Shares of classes
    are rounded so that the budget is met exactly (`select.balance`). Forgetting is looked for at the end of each epoch,
    in evaluation mode. Inputs are not augmented, so that the teacher need not be asked again. The rule for alpha is
    this project's form of the paper's finding; the teacher has seen the part on which it is judged. Other distillation
    losses of the paper are left out, and wrong labels are not injected: data come as noisy as they are.
    """
    check(data, budgets, alpha=alpha, tried=tried, held=held, trials=trials, runs=runs)
    check_runs(score, runs, score_epochs, epochs)
    if scored and score == "random":
        why = f"soft={soft} tells what stays" if soft else "score=random takes none: name theirs, such as el2n, or"
        raise InputError(f"scored={scored} holds scores, and {why}{':' if soft else ''} leave scored out")
    if pack:
        data.storable()
    further = loop.options(training)
    ask: Ask = partial(answer, subject.inputs)
    earlier = {budget: before(soft, data, budget, alpha=alpha, score=score) for budget in budgets} if soft else {}
    if student or soft:
        wide = earlier[budgets[0]][1]["logits"].shape[1] if soft else classes(subject.model, ask, data)
        check_student(fresh(subject.model, student, seed=seed), student or "the network", wide, ask, data)
    how: dict[str, Any] = {"optimizer": optimizer, "lr": lr, "weight_decay": weight_decay}
    # Of packed examples the set that they are of, whose other examples are out of sight.
    whole = ExampleSet(earlier[budgets[0]][0].source if soft else data).plain()
    epoch = max(1, len(whole) // batch) / further.get("accumulate", 1)
    fit = partial(
        taught, ask=ask, build=partial(fresh, subject.model, student), batch=batch, temperature=temperature,
        train=partial(loop.train, count=examples.count, **how, **further),
        steps=lambda part: max(1, round(epochs * epoch * (1.0 if equal == "iterations" else len(part) / len(whole)))),
    )  # fmt: skip
    if score == "random":
        column = random.scores(whole.units("examples"), seed)["examples"]
    else:
        rate = partial(rehearsed, subject.model, data, ask, score, epochs=score_epochs, batch=batch, seed=seed, **how)
        parts = {f"{score}-{seed + one}": partial(rate, number=one) for one in range(runs)}
        if scored:
            parts = {f"{score}-taken": partial(taken, scored, data, score, run, list(parts))}
        column = difficulty.averaged([run.tensors(name, part)["score"] for name, part in parts.items()])
    whole = whole.scored(score, column.numpy())
    keep = partial(select, score=score, balanced=balanced)
    say = partial(outputs, subject.model, ask, batch=batch)
    for budget in budgets:
        left, weight = earlier[budget][0] if soft else keep(whole, budget=budget), alpha
        mask = np.isin(whole.kept, left.kept)
        cut, predicted = whole.cut(Selection({"examples": mask}))[1], whole.units().cost({"examples": mask})
        net, took, beside = fresh(subject.model, student, seed=seed), None, dict[str, Traced]()
        if not dry_run:
            if weight == "auto":
                judge = partial(tried_out, whole, run=run, keep=keep, soft=say, fit=fit, ask=ask, batch=batch)
                table = judge(shares=tried, held=held, trials=trials, seed=seed)
                weight = trusted(table, len(left) / len(whole))
            left.save(run.folder(f"kept-{budget}"), packed=pack)
            heard = partial(dict, earlier[budget][1]) if soft else partial(say, left)
            said = run.tensors(f"soft-{budget}", heard)["logits"]
            net, took = fit(left.data, said, weight, seed=seed, checkpoint=run.folder(trained(budget, weight)))
            if labels_alone:
                alone, _ = fit(left.data, said, 0.0, seed=seed, checkpoint=run.folder(trained(budget, 0.0)))
                beside["labels alone"] = Traced(alone, subject.inputs)
        told = "alpha is looked for when trained" if weight == "auto" else f"alpha {weight:.3g}"
        notes = (f"{f'examples and outputs of {soft}' if soft else f'{score} examples'}, {told}",)
        yield Result(str(budget), Traced(net, subject.inputs), cut, predicted, took, notes, beside)


def check(
    data: Examples, budgets: Sequence[Budget], *, alpha: float | str, tried: Sequence[float], held: float, trials: int,
    runs: int,
) -> None:  # fmt: skip
    """Refuse a budget in anything but examples, and options that contradict the data or themselves."""
    other = next((one for one in budgets if [limit.measure for limit in one.limits] != ["examples"]), None)
    if other is not None:
        raise BudgetError(f"kd_data_pruning can't meet {other}: it prunes examples, such as examples=30%")
    if data.labels is None:
        raise InputError(f"{data.name} has no classes: give examples with labels, as the teacher was trained on")
    if alpha != "auto" and not (isinstance(alpha, int | float) and 0 <= alpha <= 1):
        raise InputError(f"alpha={alpha}: give a weight from 0 to 1, or auto")
    if not tried or any(not 0 < share <= 1 for share in tried):
        raise InputError(f"tried={list(tried)}: give shares of the data above 0 and up to 1")
    if not 0 < held < 1:
        raise InputError(f"held={held}: give a share between 0 and 1")
    if trials < 1 or runs < 1:
        raise InputError(f"trials={trials}, runs={runs}: give at least one of each")


def check_student(net: nn.Module, name: str, told: int, ask: Ask, data: Examples) -> None:
    """Refuse a student that can't take the data, or tells another number of classes than its teacher's, `told`."""
    try:
        own = classes(net, ask, data)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    except (RuntimeError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{name} can't take {data.name}: {first}; build it for its inputs") from error
    if own != told:
        raise InputError(f"{name} tells {own} classes, its teacher {told}: build it with {told} outputs")


def classes(net: nn.Module, ask: Ask, data: Examples) -> int:
    """How many classes a network tells, by two examples."""
    return rehearsal.glance(net, partial(ask, net), data.take(range(min(2, len(data)))).in_order(2))["logits"].shape[1]


# ------------------------------------------------------------------------------------------------- what is kept


def check_runs(score: str, runs: int, epochs: float, student: float = 1.0) -> None:
    """Refuse runs from which `score` can't be read: memorisation compares pairs of trainings on halves of the data.

    epochs: of each run. student: those of the network that learns from what is kept, where one does.
    """
    if not 0 < student < math.inf:
        raise InputError(f"epochs={student:g}: give a number above 0")
    if not 0 <= epochs < math.inf:
        raise InputError(f"score_epochs={epochs:g}: give 0 or more; without any, the teacher is looked at as it is")
    if score == "memorisation" and (runs % 2 or not epochs):
        told = f"memorisation of runs={runs}, epochs={epochs:g}"
        raise InputError(f"{told}: runs come in pairs, and each is a training: give 4 runs of 10 epochs, say")


def rehearsed(
    model: nn.Module, data: Examples, ask: Ask, score: str, *, epochs: float, batch: int, seed: int, number: int = 0,
    **how: Any,
) -> dict[str, Tensor]:  # fmt: skip
    """Step 2: {"score": [N]} of one short training, the `number`-th, of a network like `model`, from new weights.

    Without any epoch, `model` is looked at as it is. how: further arguments of `loop.train`, such as lr.
    """
    own = seed + number
    net = initialise.fresh(model, seed=own, linear=None)[0] if epochs else model
    needs = difficulty.NEEDS[score]
    inside = rehearsal.half(len(data), seed=seed, number=number) if "inside" in needs else None
    seen = data if inside is None else data.take(inside.nonzero().flatten())
    record = rehearsal.rehearse(
        net, partial(ask, net), examples.batches(seen, batch=batch, seed=own), lambda: data.in_order(batch),
        epochs=epochs, seed=own, **how, needs=needs, progress=False,
    )  # fmt: skip
    return {"score": difficulty.by_name(score, [record if inside is None else record | {"inside": inside}])}


def taken(scored: str, data: Examples, score: str, run: Run, names: Sequence[str]) -> dict[str, Tensor]:
    """Step 2: {"score": [N], "known"} of the run, or the index, at `scored`. Refuses what isn't there or of other data.

    names: of what a run keeps of each of its trainings for scores. known: whether it is known how they came about, so
    that another run may take them from this one.
    """
    folder, work = Path(scored), Path(scored, "work")
    if folder.is_file() or (folder / INDEX).is_file():
        try:
            found = ExampleSet.load(data, folder)
        except DataError as error:
            raise InputError(f"scored={scored}: {error}; {APART}") from error
        except RunError as error:
            raise InputError(f"scored={scored}: {error}") from error
        if found.source is not data:
            raise InputError(f"scored={scored} has scores of {len(found.source)} examples, of which {data.name} holds "
                             f"the {len(data)} that it keeps: give all of them")  # fmt: skip
        if score not in found.scores:
            has = f"it has those of {', '.join(found.scores)}" if found.scores else "it has none"
            raise InputError(f"scored={scored} is an index without scores of {score}: {has}")
        return {"score": torch.from_numpy(found.scores[score]), "known": torch.tensor(False)}
    if not (folder / "run.yaml").is_file() or not any(work.glob(f"{score}-*.safetensors")):
        raise InputError(f"scored={scored} holds no scores of {score}: give the folder of a run of kd_data_pruning, or "
                         "an index, that has them")  # fmt: skip
    was = rundir.agreeing(scored, run, SCORING)
    whole = work / f"{score}-taken.safetensors"
    files = [whole] if whole.is_file() else [work / f"{name}.safetensors" for name in names]
    if lost := [one.stem for one in files if not one.is_file()]:
        raise InputError(f"scored={scored} lacks {lost[0]}, a training for scores: let that run finish first")
    try:
        parts = [rundir.stored(one) for one in files]
    except RunError as error:
        raise InputError(f"scored={scored}: {error}") from error
    if not all(one.get("known", True) for one in parts):
        raise InputError(f"scored={scored} has its scores from an index, which does not tell how they came about: "
                         f"give that, {was.get('scored')}")  # fmt: skip
    column = difficulty.averaged([one["score"] for one in parts])
    if len(column) != len(data):
        told = f"{len(column)} examples, not {len(data)}"
        raise InputError(f"scored={scored} has scores of {told}: its data have changed, so leave scored out")
    return {"score": column, "known": torch.tensor(True)}


def select(whole: ExampleSet, budget: Budget | str, *, score: str, balanced: bool) -> ExampleSet:
    """Step 2: the best of the examples that are left in `whole`, the same share of each class if `balanced`."""
    units, column = whole.units("examples"), whole.scores[score][whole.kept]
    if balanced:
        chosen = balance.by_budget(units, "examples", column, budget, whole.labels, whole.source.classes)
    else:
        chosen = ranking.by_budget(units, {"examples": column}, budget)
    return whole.cut(chosen)[0]


# ---------------------------------------------------------------------------------------------- what is learned


def fresh(model: nn.Module, student: str, *, seed: int) -> nn.Module:
    """A network with new weights: like `model`, or what the user's function `student` builds."""
    built = plugins.network(student)[0] if student else model
    return initialise.fresh(built, seed=seed, linear=None)[0]


def answer(inputs: Example, network: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The logits [B, C] of a batch."""
    return objectives.logits(inputs.ask(network, batch["inputs"]))


def outputs(teacher: nn.Module, ask: Ask, left: ExampleSet, *, batch: int) -> dict[str, Tensor]:
    """Step 3: {"logits": [K, C] float16 of the teacher in evaluation mode, "examples": [K] their places in the source}.

    Logits are less each row's largest, which changes no softmax: the best class keeps its 0 whatever the scale, and
    what lies more than 65,504 below it, float16's range, has a probability of 0 all the same.
    """
    logits = rehearsal.glance(teacher, partial(ask, teacher), left.data.in_order(batch))["logits"]
    below = logits - logits.amax(-1, keepdim=True)
    half = below.clamp(min=torch.finfo(torch.float16).min).half()
    return {"logits": half, "examples": torch.from_numpy(left.kept)}


def before(
    soft: str, data: Examples, budget: Budget, *, alpha: float | str, score: str
) -> tuple[ExampleSet, dict[str, Tensor]]:
    """Of the run at `soft`: what stayed under a budget, and the `outputs` of its teacher. Refuses what is not there."""
    if alpha == "auto" or score != "random":
        wrong = "alpha=auto asks the teacher for more: give a weight" if alpha == "auto" else f"leave out score={score}"
        raise InputError(f"soft={soft} tells what stays, and what a teacher said of that alone: {wrong}")
    work = Path(soft, "work")
    if not (work / f"soft-{budget}.safetensors").is_file():
        known = [path.stem.removeprefix("soft-") for path in sorted(work.glob("soft-*.safetensors"))]
        has = f"it has those of {', '.join(known)}" if known else "give the folder of a run of kd_data_pruning"
        raise InputError(f"soft={soft} holds no outputs of a teacher for {budget}: {has}")
    try:
        left, said = ExampleSet.load(data, work / f"kept-{budget}"), rundir.stored(work / f"soft-{budget}.safetensors")
    except DataError as error:
        raise InputError(f"soft={soft}: {error}; {APART}") from error
    except RunError as error:
        raise InputError(f"soft={soft}: {error}") from error
    if said["examples"].tolist() != left.kept.tolist():
        raise InputError(f"soft={soft} has an index and outputs of other examples for {budget}: make that run anew")
    return left, said


@dataclass(frozen=True)
class Soft:
    """The teacher's logits [K, C] as a cache for `teachers.Joined`: those of the examples in each batch, float32."""

    feed: Batches
    logits: Tensor

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"logits": self.logits[torch.from_numpy(self.feed.places(index))].float()}


def mixture(ask: Callable[[Mapping[str, Any]], Tensor], alpha: float, temperature: float) -> Objective:
    """Step 4: ``1/N sum (1 - alpha) CE(y, q) + alpha tau^2 KL(q_t || q)``; a term of weight 0 is not looked at."""

    def objective(batch: Mapping[str, Any], totals: Mapping[str, int]) -> tuple[Tensor, dict[str, float]]:
        logits, terms = ask(batch), dict[str, Tensor]()
        if alpha < 1:
            hard = functional.cross_entropy(logits, batch["labels"], reduction="sum")
            terms["labels"] = (1 - alpha) * hard / totals["examples"]
        if alpha > 0:
            far = losses.kl(logits, batch["teacher_logits"], temperature=temperature)
            terms["teacher"] = alpha * temperature**2 * far / totals["examples"]
        return torch.stack(list(terms.values())).sum(), {name: float(term.detach()) for name, term in terms.items()}

    return objective


def trained(budget: Budget, alpha: float) -> str:
    """The name, in a run, of the checkpoints of the student of a budget and a weight of the teacher."""
    return f"train-{budget}-alpha-{alpha:g}"


def taught(
    data: Examples,
    said: Tensor,
    alpha: float,
    *,
    ask: Ask,
    build: Callable[..., nn.Module],
    train: Callable[..., Recovery],
    steps: Callable[[Examples], int],
    batch: int,
    temperature: float,
    seed: int,
    **how: Any,
) -> tuple[nn.Module, Recovery]:
    """Step 4: a new network that learned `data` and what the teacher said of each of them, and what that took."""
    net, feed = build(seed=seed), examples.batches(data, batch=batch, seed=seed)
    objective = mixture(partial(ask, net), alpha, temperature)
    return net, train(net, Joined(feed, Soft(feed, said)), objective, steps=steps(data), seed=seed, **how)


# -------------------------------------------------------------------------------------------- whom to trust


def tried_out(
    whole: ExampleSet,
    *,
    run: Run,
    keep: Callable[..., ExampleSet],
    soft: Callable[[ExampleSet], dict[str, Tensor]],
    fit: Callable[..., tuple[nn.Module, Recovery]],
    ask: Ask,
    shares: Sequence[float],
    held: float,
    trials: int,
    batch: int,
    seed: int,
) -> dict[float, list[float]]:
    """Step 5: share -> accuracy on held-out examples for each of `WEIGHTS`, the mean over trials; kept in the run."""
    order = np.random.default_rng([seed, len(whole), 5]).permutation(len(whole))
    count = max(1, round(held * len(whole)))
    judged, seen = whole.source.take(np.sort(order[:count])), ExampleSet(whole.source, np.sort(order[count:]))

    def accuracy(part: ExampleSet, alpha: float, trial: int) -> float:
        net = fit(part.data, soft(part)["logits"], alpha, seed=seed + trial, progress=False)[0]
        found = rehearsal.glance(net, partial(ask, net), judged.in_order(batch))
        return float((found["logits"].argmax(-1) == found["labels"]).float().mean())

    table = {}
    for share in shares:
        part = keep(ExampleSet(seen.source, seen.kept, whole.scores), budget=Budget((Limit("examples", share, True),)))
        table[share] = [
            float(np.mean([run.json(f"alpha-{share}-{alpha}-{trial}", partial(accuracy, part, alpha, trial))
                           for trial in range(trials)]))
            for alpha in WEIGHTS
        ]  # fmt: skip
    return table


def trusted(table: Mapping[float, Sequence[float]], share: float) -> float:
    """Step 5: alpha for a share f: the best of each share that was tried, never rising with f, between them by log f.

    Of equals the smallest alpha counts. Beyond the shares that were tried it is that of the nearest.
    """
    shares = np.array(sorted(table))
    best = [WEIGHTS[int(np.argmax(table[one]))] for one in shares]
    falling = isotonic_regression(best, increasing=False).x
    return float(np.interp(np.log(share), np.log(shares), falling))
