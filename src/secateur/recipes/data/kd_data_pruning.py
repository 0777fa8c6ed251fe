"""Distilling the Knowledge in Data Pruning: a share of the training set, and a teacher that saw all of it.

Ben-Baruch, Botach, Kviatkovsky, Aggarwal and Medioni, ICML 2025 (arXiv 2403.07854).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Len, Lt
from scipy.optimize import isotonic_regression
from torch import Tensor, nn
from torch.nn import functional

from secateur._utils import distributed, plugins, rundir
from secateur._utils.batches import Batch
from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.data.examples import Examples
from secateur.errors import BudgetError, DataError, InfeasibleError, InputError, RunError
from secateur.methods import example_scores
from secateur.methods.example_scores import Ask, ask_teacher, count_classes, score_by_training, select_examples
from secateur.recover.distillation import losses
from secateur.recover.distillation.teachers import Told
from secateur.recover.training import initialise, loop, rehearsal
from secateur.recover.training.compose import Parts
from secateur.recover.training.objectives import Objective
from secateur.score import difficulty, random
from secateur.subjects.dataset.examples import INDEX, ExampleSet
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget, Limit, Recovery, Result, Selection, Training

CARD = {
    "title": "Distilling the knowledge in data pruning",
    "paper": "https://arxiv.org/abs/2403.07854",
    "cuts": "examples of the training set, by chance or by difficulty",
    "recovers": "a new network on what is left, with the outputs of one that was trained on all",
    "extra": "",
    "family": "data",
}

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""The alphas that are tried."""

SCORING = ("recipe", "data_sha256", "held_out_sha256", "model_sha256", "seed", "batch", "score", "runs", "score_epochs",
           "optimizer", "lr", "weight_decay")  # fmt: skip
"""Settings of a run by which its scores are what they are."""


@dataclass(frozen=True, slots=True)
class Search:
    """How alpha is looked for where it is "auto"."""

    tried: Annotated[Sequence[Annotated[float, Gt(0), Le(1)]], Len(1)] = (0.05, 0.3, 1.0)
    """Shares f at which it is looked for."""
    trials: Annotated[int, Ge(1)] = 2
    """Trainings for each of them and each alpha."""
    held: Annotated[float, Gt(0), Lt(1)] = 0.2
    """Share of the data on which alpha is judged."""


def kd_data_pruning(
    subject: Traced,
    data: Examples,
    budgets: Sequence[Budget],
    run: Run,
    *,
    score: Literal["random", "el2n", "forgetting", "grand", "moderate", "herding", "memorisation"] = "random",
    balanced: bool = True,
    scored: str = "",
    alpha: Annotated[float, Ge(0), Le(1)] | Literal["auto"] = "auto",
    temperature: Annotated[float, Gt(0)] = 4.0,
    student: str = "",
    soft: str = "",
    pack: bool = False,
    equal: Literal["iterations", "epochs"] = "iterations",
    runs: Annotated[int, Ge(1)] = 3,
    score_epochs: float = 10.0,
    search: Search = Search(tried=(0.05, 0.3, 1.0), trials=2, held=0.2),
    labels_alone: bool = False,
    training: Training = Training(epochs=30.0, batch=64, lr=0.1, weight_decay=5e-4, optimizer="sgd"),
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
        score: which examples stay: random, with a teacher as good as any, the paper finds; the hardest (el2n,
            forgetting, grand), those that no other tells about (memorisation), those between (moderate), or the most
            typical (herding).
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
        labels_alone: train another student beside it, from the same weights on the same examples, without the teacher.
        seed: of everything random.
        dry_run: stop after the selection; nothing is trained but what scores take.

    Departures: tau, rates and epochs of the paper are not known to this project; these are its own. Shares of classes
    are rounded so that the budget is met exactly (`select.balance`). Forgetting is looked for at the end of each epoch,
    in evaluation mode. Inputs are not augmented, so that the teacher need not be asked again. The rule for alpha is
    this project's form of the paper's finding; the teacher has seen the part on which it is judged. Other distillation
    losses of the paper are left out, and wrong labels are not injected: data come as noisy as they are.
    """
    check(data, budgets, training.number("epochs"))
    example_scores.check_scoring(score, runs, score_epochs)
    if scored and score == "random":
        why = f"soft={soft} tells what stays" if soft else "score=random takes none: name theirs, such as el2n, or"
        raise InputError(f"scored={scored} holds scores, and {why}{':' if soft else ''} leave scored out")
    if pack:
        data.storable()
    ask = partial(example_scores.ask_logits, subject.inputs)
    earlier = {budget: load_outputs(soft, data, budget, alpha=alpha, score=score) for budget in budgets if soft}
    if student or soft:
        wide = earlier[budgets[0]][1]["logits"].shape[1] if soft else count_classes(subject.model, ask, data)
        check_student(draw_network(subject.model, student, seed=seed)[0], student or "the network", wide, ask, data)
    # Of packed examples the set that they are of, whose other examples are out of sight.
    whole = ExampleSet(earlier[budgets[0]][0].source if soft else data).plain()
    if alpha == "auto":
        check_search(whole, search, balanced=balanced, seed=seed)
    batch, epochs, unruled = training.whole("batch"), training.number("epochs"), tuple[str, ...]()
    if score == "random":
        column = random.scores(whole.units("examples"), seed)["examples"]
    else:
        same = ("batch", "lr", "weight_decay", "optimizer", "precision", "checkpointing", "compile")
        short = Training(**{name: getattr(training, name) for name in same})
        rate = partial(score_by_training, subject.model, data, ask, score, short, epochs=score_epochs, seed=seed)
        parts = {f"{score}-{seed + number}": partial(rate, number=number) for number in range(runs)}
        if score_epochs and not scored:
            unruled = draw_network(subject.model, "", seed=seed)[1]
        if scored:
            parts = {f"{score}-taken": partial(load_scores, scored, data, score, run, list(parts))}
        column = difficulty.average([run.tensors(name, part)["score"] for name, part in parts.items()])
    whole = whole.with_scores(score, column.numpy())
    per_epoch = max(1, len(whole) // batch) / ((training.accumulate or 1) * distributed.count())
    learn = partial(
        train_student, training=training, ask=ask, build=partial(draw_network, subject.model, student),
        steps=lambda part: epochs * per_epoch * (1.0 if equal == "iterations" else len(part) / len(whole)),
        temperature=temperature,
    )  # fmt: skip
    for budget in budgets:
        outputs: Callable[[], dict[str, Tensor]]
        if soft:
            left, outputs = earlier[budget][0], partial(dict, earlier[budget][1])
        else:
            left = whole.cut(select_examples(whole, score, budget, balanced=balanced))[0]
            outputs = partial(ask_teacher, subject.model, ask, left, batch=batch)
        mask = np.isin(whole.kept, left.kept)
        cut, predicted = whole.cut(Selection({"examples": mask}))[1], whole.units().cost({"examples": mask})
        (network, drawn), recovery = draw_network(subject.model, student, seed=seed), None
        weight, beside = alpha, dict[str, Traced]()
        if not dry_run:
            if weight == "auto":
                table = try_alphas(
                    whole, run, score, learn, partial(ask_teacher, subject.model, ask, batch=batch), ask,
                    search, balanced=balanced, batch=batch, seed=seed,
                )  # fmt: skip
                weight = choose_alpha(table, len(left) / len(whole))
            left.save(run.folder(f"kept-{budget}"), packed=pack)
            logits = run.tensors(f"soft-{budget}", outputs)["logits"]
            fit = partial(learn, left.data, logits, seed=seed)
            network, recovery = fit(weight, checkpoint=run.folder(f"train-{budget}-alpha-{weight:g}"))
            if labels_alone:
                alone, _ = fit(0.0, checkpoint=run.folder(f"train-{budget}-alpha-0"))
                beside["labels alone"] = Traced(alone, subject.inputs)
        trust = "alpha is looked for when trained" if weight == "auto" else f"alpha {weight:.3g}"
        note = f"{f'examples and outputs of {soft}' if soft else f'{score} examples'}, {trust}"
        notes = tuple(dict.fromkeys((note, *unruled, *drawn)))
        yield Result(str(budget), Traced(network, subject.inputs), cut, predicted, recovery, notes, beside)


def check(data: Examples, budgets: Sequence[Budget], epochs: float) -> None:
    """Refuse a budget in anything but examples, data without classes, and a student that would not be trained."""
    other = next((budget for budget in budgets if [limit.measure for limit in budget.limits] != ["examples"]), None)
    if other is not None:
        raise BudgetError(f"kd_data_pruning can't meet {other}: it prunes examples, such as examples=30%")
    if data.labels is None:
        raise InputError(f"{data.name} has no classes: give examples with labels, as the teacher was trained on")
    if not epochs:
        raise InputError(f"epochs={epochs:g}: give a number above 0")


def check_student(network: nn.Module, name: str, wanted: int, ask: Ask, data: Examples) -> None:
    """Refuse a student that can't take the data, or tells another number of classes than its teacher."""
    try:
        own = count_classes(network, ask, data)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    except (RuntimeError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{name} can't take {data.name}: {first}; build it for its inputs") from error
    if own != wanted:
        raise InputError(f"{name} tells {own} classes, its teacher {wanted}: build it with {wanted} outputs")


# ------------------------------------------------------------------------------------------- of an earlier run


def load_scores(scored: str, data: Examples, score: str, run: Run, names: Sequence[str]) -> dict[str, Tensor]:
    """Step 2: {"score": [N], "known"} of the run, or the index, at `scored`. Refuses what isn't there or of other data.

    names: of what a run keeps of each of its trainings for scores. known: whether it is known how they came about, so
    that another run may take them from this one.
    """
    folder, work = Path(scored), Path(scored, "work")
    if folder.is_file() or (folder / INDEX).is_file():
        index = load_index(data, folder, f"scored={scored}")
        if index.source is not data:
            raise InputError(f"scored={scored} has scores of {len(index.source)} examples, of which {data.name} holds "
                             f"the {len(data)} that it keeps: give all of them")  # fmt: skip
        if score not in index.scores:
            has = f"it has those of {', '.join(index.scores)}" if index.scores else "it has none"
            raise InputError(f"scored={scored} is an index without scores of {score}: {has}")
        return {"score": torch.from_numpy(index.scores[score]), "known": torch.tensor(False)}
    if not (folder / "run.yaml").is_file() or not any(work.glob(f"{score}-*.safetensors")):
        raise InputError(f"scored={scored} holds no scores of {score}: give the folder of a run of kd_data_pruning, or "
                         "an index, that has them")  # fmt: skip
    recorded = rundir.read_matching_record(scored, run, SCORING)
    was, now = (Training().merge(one.get("training") or "").precision for one in (recorded, run.settings))
    if was != now:
        told = f"training precision={was}, not precision={now}"
        raise InputError(f"scored={scored} was scored with {told}: give the same, or leave scored out")
    taken = work / f"{score}-taken.safetensors"
    files = [taken] if taken.is_file() else [work / f"{name}.safetensors" for name in names]
    if lost := [file.stem for file in files if not file.is_file()]:
        raise InputError(f"scored={scored} lacks {lost[0]}, a training for scores: let that run finish first")
    try:
        parts = [rundir.read_tensors(file) for file in files]
    except RunError as error:
        raise InputError(f"scored={scored}: {error}") from error
    if not all(part.get("known", True) for part in parts):
        raise InputError(f"scored={scored} has its scores from an index, which does not tell how they came about: "
                         f"give that, {recorded.get('scored')}")  # fmt: skip
    column = difficulty.average([part["score"] for part in parts])
    if len(column) != len(data):
        counts = f"{len(column)} examples, not {len(data)}"
        raise InputError(f"scored={scored} has scores of {counts}: its data have changed, so leave scored out")
    return {"score": column, "known": torch.tensor(True)}


def load_outputs(
    soft: str, data: Examples, budget: Budget, *, alpha: float | str, score: str
) -> tuple[ExampleSet, dict[str, Tensor]]:
    """Of the run at `soft`: what stayed under a budget, and what `ask_teacher` gave. Refuses what is not there."""
    if alpha == "auto" or score != "random":
        wrong = "alpha=auto asks the teacher for more: give a weight" if alpha == "auto" else f"leave out score={score}"
        raise InputError(f"soft={soft} tells what stays, and what a teacher said of that alone: {wrong}")
    work = Path(soft, "work")
    file = work / f"soft-{budget}.safetensors"
    if not file.is_file():
        known = [path.stem.removeprefix("soft-") for path in sorted(work.glob("soft-*.safetensors"))]
        has = f"it has those of {', '.join(known)}" if known else "give the folder of a run of kd_data_pruning"
        raise InputError(f"soft={soft} holds no outputs of a teacher for {budget}: {has}")
    left = load_index(data, work / f"kept-{budget}", f"soft={soft}")
    try:
        outputs = rundir.read_tensors(file)
    except RunError as error:
        raise InputError(f"soft={soft}: {error}") from error
    if outputs["examples"].tolist() != left.kept.tolist():
        raise InputError(f"soft={soft} has an index and outputs of other examples for {budget}: make that run anew")
    return left, outputs


def load_index(data: Examples, place: Path, option: str) -> ExampleSet:
    """An index of the data, or of the set that packed examples are of. Refuses one of other data."""
    try:
        return ExampleSet.load(data, place)
    except DataError as error:
        raise InputError(
            f"{option}: {error}; a part of it is held out by the seed, unless held_out names other data"
        ) from error
    except RunError as error:
        raise InputError(f"{option}: {error}") from error


# ---------------------------------------------------------------------------------------------- what is learned


def draw_network(model: nn.Module, student: str, *, seed: int) -> tuple[nn.Module, tuple[str, ...]]:
    """A network with new weights, like `model` or what the user's function `student` builds, and notes on these."""
    built = plugins.network(student)[0] if student else model
    return initialise.fresh(built, seed=seed, linear=None)


def mixture(ask: Callable[[Batch], Tensor], alpha: float, temperature: float) -> Objective:
    """Step 4: ``1/N sum (1 - alpha) CE(y, q) + alpha tau^2 KL(q_t || q)``; a term of weight 0 is not looked at."""

    def objective(batch: Batch, totals: Mapping[str, int]) -> tuple[Tensor, Parts]:
        logits, terms = ask(batch), dict[str, Tensor]()
        if alpha < 1:
            hard = functional.cross_entropy(logits, batch["labels"], reduction="sum")
            terms["labels"] = (1 - alpha) * hard / totals["examples"]
        if alpha > 0:
            far = losses.kl(logits, batch["teacher_logits"], temperature=temperature)
            terms["teacher"] = alpha * temperature**2 * far / totals["examples"]
        return torch.stack(list(terms.values())).sum(), {name: term.detach() for name, term in terms.items()}

    return objective


def train_student(
    data: Examples,
    logits: Tensor,
    alpha: float,
    *,
    training: Training,
    ask: Ask,
    build: Callable[..., tuple[nn.Module, tuple[str, ...]]],
    steps: Callable[[Examples], float],
    temperature: float,
    seed: int,
    **progress: Any,
) -> tuple[nn.Module, Recovery]:
    """Step 4: a new network that learned `data` and what the teacher said of each of them, and what that took."""
    # The teacher was asked about the images as they are measured, and is not asked again.
    network, feed = build(seed=seed)[0], examples.batches(data.as_measured(), batch=training.whole("batch"), seed=seed)
    with_teacher = Told(feed, feed.places, {"teacher_logits": logits})
    objective = mixture(partial(ask, network), alpha, temperature)
    recovery = loop.train(
        network, with_teacher, objective, training, steps=max(1, round(steps(data))), seed=seed, count=examples.count,
        **progress,
    )  # fmt: skip
    return network, recovery


# -------------------------------------------------------------------------------------------- whom to trust


def part_for_search(whole: ExampleSet, search: Search, seed: int) -> tuple[ExampleSet, Examples]:
    """Step 5: (what is learned while alpha is looked for, what it is judged on)."""
    order = np.random.default_rng([seed, len(whole), 5]).permutation(len(whole))
    count = max(1, round(search.held * len(whole)))
    seen = ExampleSet(whole.source, np.sort(order[count:]), whole.scores)
    return seen, whole.source.take(np.sort(order[:count]))


def check_search(whole: ExampleSet, search: Search, *, balanced: bool, seed: int) -> None:
    """Refuse, before anything is trained, shares of `search` that would leave nothing, or nothing of a class."""
    seen = part_for_search(whole, search, seed)[0].with_scores("any", np.zeros(len(whole), np.float32))
    for share in search.tried:
        try:
            select_examples(seen, "any", Budget((Limit("examples", share, True),)), balanced=balanced)
        except InfeasibleError as error:
            raise InputError(
                f"alpha=auto looks for the weight at tried={share:g} of {len(seen)} examples, which are too few "
                f"({error}): give larger shares, such as tried=0.3,1, or a weight, such as alpha=0.75"
            ) from error


def try_alphas(
    whole: ExampleSet,
    run: Run,
    score: str,
    learn: Callable[..., tuple[nn.Module, Recovery]],
    outputs: Callable[[ExampleSet], dict[str, Tensor]],
    ask: Ask,
    search: Search,
    *,
    balanced: bool,
    batch: int,
    seed: int,
) -> dict[float, list[float]]:
    """Step 5: share -> accuracy on held-out examples for each of `WEIGHTS`, the mean over trials; kept in the run."""
    seen, judged = part_for_search(whole, search, seed)

    def accuracy(part: ExampleSet, alpha: float, trial: int) -> float:
        network = learn(part.data, outputs(part)["logits"], alpha, seed=seed + trial, progress=False)[0]
        look = rehearsal.glance(network, partial(ask, network), judged.in_order(batch))
        return float((look["logits"].argmax(-1) == look["labels"]).float().mean())

    table: dict[float, list[float]] = {}
    for share in search.tried:
        budget = Budget((Limit("examples", share, True),))
        part = seen.cut(select_examples(seen, score, budget, balanced=balanced))[0]
        for alpha in WEIGHTS:
            reached = [
                run.json(f"alpha-{share}-{alpha}-{trial}", partial(accuracy, part, alpha, trial))
                for trial in range(search.trials)
            ]
            table.setdefault(share, []).append(float(np.mean(reached)))
    return table


def choose_alpha(table: Mapping[float, Sequence[float]], share: float) -> float:
    """Step 5: alpha for a share f: the best of each share that was tried, never rising with f, between them by log f.

    Of equals the smallest alpha counts. Beyond the shares that were tried it is that of the nearest.
    """
    shares = np.array(sorted(table))
    best = [WEIGHTS[int(np.argmax(table[tried]))] for tried in shares]
    falling = isotonic_regression(best, increasing=False).x
    return float(np.interp(np.log(share), np.log(shares), falling))
