"""Romanian DistilBERTs: masked language models of half the layers, taught by one teacher or by several.

Avram et al., "Distilling the Knowledge of Romanian BERTs Using Multiple Teachers", LREC 2022 (arXiv 2112.12650);
the triple loss and the copied layers are those of DistilBERT, Sanh et al. 2019 (arXiv 1910.01108).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from numpy.typing import NDArray
from torch import Tensor, nn

from secateur._utils import devices
from secateur._utils.batches import Batch
from secateur._utils.rundir import Run
from secateur.data import masking, texts
from secateur.data.texts import Corpus
from secateur.errors import InputError
from secateur.measure import latency, loyalty, quality, size
from secateur.methods.predictions import tells_masked
from secateur.recover.distillation import alignment, ensembles, losses, teachers
from secateur.recover.training import loop, objectives
from secateur.recover.training.compose import Parts
from secateur.select import limits
from secateur.subjects import Transformer, open_subject
from secateur.subjects.transformer.subject import Output, count_positions
from secateur.vocabulary import Budget, Result, Selection, Training, parse_list

CARD = {
    "title": "Romanian DistilBERTs: Distilling the Knowledge of Romanian BERTs Using Multiple Teachers",
    "paper": "https://arxiv.org/abs/2112.12650",
    "cuts": "layers of a masked language model; those that stay keep their weights",
    "recovers": "soft targets, masked tokens and hidden states together, from one teacher or several, of any tokenizer",
    "extra": "",
    "family": "language",
}

Foreign = Literal["words", "tokens", "sentences"]


def romanian_distilberts(
    subject: Transformer,
    data: Corpus,
    budgets: Sequence[Budget],
    run: Run,
    *,
    batch: int = 1,
    length: int = 128,
    seed: int = 0,
    keep: str | Sequence[str] = "spread",
    teachers: Sequence[str] = (),
    weights: Sequence[float] = (),
    foreign: Foreign = "words",
    factors: Sequence[float] = (5.0, 2.0, 1.0),
    temperature: Annotated[float, Gt(0)] = 2.0,
    restrict: bool = False,
    share: Annotated[float, Gt(0), Le(1)] = 0.15,
    smoothing: Annotated[float, Ge(0)] = 0.7,
    training: Training = Training(steps=1000, batch=32, lr=5e-4, warmup=0.05, clip=5.0),
    dry_run: bool = False,
) -> Iterator[Result]:
    """Keep every second layer with its weights, and teach the rest of the way by three losses at once.

    1. The most layers that the budget leaves stay, with embeddings and masked-LM head, bit for bit as they were.
    2. Of each batch `share` of the tokens are chosen, rare ones more often (``count^-smoothing``): 80 % hidden, 10 %
       another token, 10 % as they are.
    3. ``L = a_ce T^2 KL(p_t || p_s) + a_mlm CE + a_cos sum_k w_k (1 - cos(P_k h_s, h_k))``: p at temperature T over the
       real tokens, CE on the chosen ones, h the last hidden states, behind any final norm. The first teacher is the
       original itself, P_1 = 1.
    4. Several teachers: of those with the original's vocabulary the soft targets are averaged,
       ``p_t = sum_k w_k softmax(z_k / T)``. Another vocabulary allows no such mean: there, `foreign` says what is
       compared. words: the means of hidden states over the tokens of each whitespace word, through a learned P_k;
       tokens: also the predictions, over the tokens that both have, where both stand for the same characters;
       sentences: which texts of the batch are how similar. The P_k are left behind. With tokens each KL has its
       teachers' share, all of them 1 together; else a foreign teacher has no soft targets, and the KL to the others'
       mean stays whole.
    5. The student is an ordinary masked language model, to be fine-tuned as its teachers are. How loyal it is to each
       of several teachers, and to the average of those of its vocabulary, is told on texts that were held out: to one
       of another vocabulary over the tokens that both have, where both stand for the same characters.

    Args:
        subject: a trained masked language model, the home teacher; it stays as it is.
        data: texts without labels, in the teacher's language.
        budgets: one student for each: layers=50%, or params, bytes, flops, speedup.
        run: where checkpoints and loyalty go.
        batch: sequences per batch of the timed environment.
        length: tokens per sequence, in costs and in training.
        seed: of batches, masks, projections and training.
        keep: spread (first and last stay, DistilBERT's 0, 2, 4, 7, 9, 11 of 12), alternate (0, 2, 4, ...), or the
            numbers, such as 0,2,5.
        teachers: folders or Hub ids of further teachers, of any tokenizer.
        weights: w, of the original first and then of `teachers`; equal ones by default.
        foreign: what is compared with a teacher of another vocabulary.
        factors: a_ce, a_mlm, a_cos.
        temperature: T.
        restrict: soft targets on the chosen tokens only.
        share: of the tokens that are to be told.
        smoothing: how much more often rare tokens are chosen; 0 for all alike.
        train_batch: texts per step.
        lr: peak learning rate; linear warm-up, then linear decay.
        dry_run: stop after the cut.

    Departures: the article does not say how its teachers are combined, nor gives its factors; these are DistilBERT's.
    Predictions of another vocabulary enter no average that loyalty could be told to, and a teacher without a masked-LM
    head makes none.
    The student keeps the original's architecture, token types included (two rows of the embedding table), so that it
    loads as the original does. A teacher without a masked-LM head counts as foreign, whatever its vocabulary. Teachers
    of the same vocabulary and another width are compared through a P_k, too. Texts stand one to a row, and are not
    joined to sequences of 512. Dropout is off.
    """
    check(subject, factors, foreign if teachers else "words", training.whole("batch"))
    everyone = gather_teachers(subject, teachers, weights, foreign, length)
    plans, fit = {}, partial(most_layers, subject)
    for budget in budgets:  # before the first of them is trained; times differ, and a resumed run keeps its layers
        count, predicted = run.json(f"layers-{budget}", partial(fit, budget, batch, length), alone=True)
        plans[budget] = choose_layers(len(subject.layers()), count, keep), predicted
    train, held = data.split(seed=seed)
    batches = masked_batches(
        subject, everyone, train, training.whole("batch"), length, seed=seed, share=share, smoothing=smoothing
    )
    others = [teacher.subject for teacher in everyone]
    for budget, (stays, predicted) in plans.items():
        student, cut = subject.cut(Selection({"layers": stays}))
        before, after = {**cut.before, "layers": float(len(stays))}, {**cut.after, "layers": float(stays.sum())}
        cut = replace(cut, before=before, after=after)
        if dry_run or not training.steps:
            yield Result(str(budget), student, cut, predicted)
            del student
            continue
        reset_projections(everyone, seed)
        objective = triple_loss(
            student, everyone, factors=factors, temperature=temperature, restrict=restrict, foreign=foreign
        )
        recovery = loop.train(
            student.model, batches, objective, training.default(schedule="linear"), seed=seed, dropout=False,
            count=partial(count_units, teachers=everyone), frozen=[other.model for other in others],
            extra=[teacher.project for teacher in everyone if teacher.project is not None],
            checkpoint=run.folder(f"train-{budget}"),
            flops_per_token=size.training_flops(
                student.flops_per_token(length), sum(other.flops_per_token(length) for other in others)
            ),
        )  # fmt: skip
        measure = partial(describe_loyalty, student, everyone, held, training.whole("batch"), length)
        notes = tuple(f"loyal to {name}: {text}" for name, text in run.json(f"loyalty-{budget}", measure).items())
        yield Result(str(budget), student, cut, predicted, recovery, notes)
        del student, objective, measure  # or it would be held beside the next one


# ------------------------------------------------------------------------------------------------------------ teachers


@dataclass(frozen=True)
class Teacher:
    """One teacher: its share in the whole, whether its tokenizer is another, and what lifts the student's states to it.

    shared: ids in both vocabularies of the tokens that both have, where predictions of a foreign one are compared.
    """

    name: str
    subject: Transformer
    weight: float
    foreign: bool = False
    project: nn.Linear | None = None
    shared: tuple[Tensor, Tensor] | None = None

    def forward(self, batch: Batch) -> Output:
        """Prediction and last hidden states, of its own reading of the texts."""
        return read_last(self.subject, alignment.teacher_inputs(batch, self.name) if self.foreign else batch)


def read_last(subject: Transformer, batch: Batch) -> Output:
    """Prediction and, as the only `hidden`, the last hidden states: behind the final norm of a model that has one.

    A T5 with its head has no base model apart: its states are those that its last layer leaves.
    """
    given = list[Any]()
    with subject.model.base_model.register_forward_hook(lambda module, args, out: given.append(out)):
        answer = subject.forward(batch, hidden=True)
    last = getattr(given[-1], "last_hidden_state", answer.hidden[-1])
    return replace(answer, hidden=(devices.move(last, subject.model),))


def check(subject: Transformer, factors: Sequence[float], foreign: Foreign, batch: int) -> None:
    """Refuse what is no masked language model, factors that leave nothing to learn, and too few texts to compare."""
    if not tells_masked(subject):
        raise InputError(
            f"{type(subject.model).__name__} is no masked language model: give one, such as a BertForMaskedLM"
        )
    if len(factors) != 3 or any(not 0 <= factor < math.inf for factor in factors) or not any(factors):
        raise InputError(f"factors={list(factors)}: give three numbers of at least 0, one above (soft, masked, hidden)")
    if foreign == "sentences" and factors[2] and batch < 3:  # of two texts each is the other's only neighbour
        raise InputError(f"train_batch={batch}: foreign=sentences compares the texts of a batch: give at least 3")


def gather_teachers(
    subject: Transformer, sources: Sequence[str], weights: Sequence[float], foreign: Foreign, length: int
) -> list[Teacher]:
    """The original and the other teachers, each with its share; one of share 0 is not asked, so it is left out."""
    original, *shares = ensembles.shares(list(weights) or None, 1 + len(sources))
    everyone = [Teacher("original", subject, original)]
    for number, (source, share) in enumerate(zip(sources, shares, strict=True), 1):
        if share:
            everyone.append(add_teacher(subject, f"teacher{number}", open_subject(source), share, foreign, length))
    return [teacher for teacher in everyone if teacher.weight]


def reset_projections(everyone: Sequence[Teacher], seed: int) -> None:
    """Draw the maps P_k: each budget begins with the same ones."""
    torch.manual_seed(seed)
    for project in filter(None, (teacher.project for teacher in everyone)):
        project.reset_parameters()


def add_teacher(
    subject: Transformer, name: str, other: Transformer, weight: float, foreign: Foreign, length: int
) -> Teacher:
    """A further teacher, where the original lies; of its vocabulary if it tells masked tokens by the same tokenizer."""
    other.model.to(subject.model.device)
    if other.tokenizer is None:
        raise InputError(f"{name} has no tokenizer: give a folder with its tokenizer.json")
    most = count_positions(other.model)
    if most is not None and length > most:
        raise InputError(f"length={length} is beyond the {most} positions of {name}: give at most length={most}")
    widths = subject.hidden_size, other.hidden_size
    same = False
    with suppress(InputError):
        teachers.check_tokens(subject, other)
        same = tells_masked(other)
    project = None if foreign == "sentences" and not same else nn.Linear(*widths, bias=False)
    if same:
        return Teacher(name, other, weight, project=None if widths[0] == widths[1] else project)
    shared = None
    if foreign == "tokens":
        if not tells_masked(other):
            raise InputError(f"{name} tells no masked tokens, so its predictions can't be compared: use foreign=words")
        shared = alignment.shared_vocabulary(subject.tokenizer, other.tokenizer)
    return Teacher(name, other, weight, True, project, shared)


# -------------------------------------------------------------------------------------------------------- the student


def choose_layers(total: int, count: int, keep: str | Sequence[str]) -> NDArray[np.bool_]:
    """[total] booleans: which `count` layers stay."""
    numbers = parse_list(keep)
    if numbers == ["spread"]:
        places = np.floor(np.linspace(0, total - 1, count) + 0.5).astype(int)
    elif numbers == ["alternate"]:
        places = np.arange(count) * total // count
    else:
        if not all(part.isdigit() and int(part) < total for part in numbers) or len(set(numbers)) != count:
            raise InputError(
                f"keep={keep!r}: give spread, alternate, or the numbers of {count} layers from 0 to {total - 1}, which "
                "is what the budget leaves"
            )
        places = np.asarray([int(part) for part in numbers])
    result = np.zeros(total, bool)
    result[places] = True
    return result


def most_layers(subject: Transformer, budget: Budget, batch: int, length: int) -> tuple[int, dict[str, float]]:
    """(the most layers under the budget, what they cost). A forward pass takes a time that is linear in its layers.

    Raises as `limits_of_cut`: for a budget that lets every layer stay, and for one that not even one layer meets.
    """
    total, units = len(subject.layers()), subject.units(batch=batch, length=length)
    costs = [units.cost({"layers": np.arange(total) < n}) | {"layers": float(n)} for n in range(1, total + 1)]
    if "latency" in budget:
        single, whole = (time_layers(subject, n, batch, length) for n in (1, total))
        for n, cost in enumerate(costs):
            cost["latency"] = single + (whole - single) * n / max(1, total - 1)
    within = limits.limits_of_cut(budget, costs[-1], costs[0])
    fitting = max(n for n, cost in enumerate(costs, 1) if all(cost[name] <= within[name] for name in within))
    return fitting, costs[fitting - 1]


def time_layers(subject: Transformer, count: int, batch: int, length: int) -> float:
    """Seconds of a forward pass with the first `count` layers."""
    student, _ = subject.cut(Selection({"layers": np.arange(len(subject.layers())) < count}))
    example = student.example(batch, length)
    return latency.median_time(
        torch.no_grad()(partial(student.forward, example)), device=str(student.model.device)
    ).value


# ------------------------------------------------------------------------------------------------- batches and loss


def masked_batches(
    subject: Transformer, everyone: Sequence[Teacher], corpus: Corpus, batch: int, length: int,
    *, seed: int, share: float, smoothing: float,
) -> masking.Masked | alignment.Parallel:  # fmt: skip
    """Masked batches, with the readings of foreign teachers beside them."""
    plain = texts.batches(corpus, subject.tokenizer, packed=False, batch=batch, length=length, seed=seed)
    rare = masking.rare_first(plain.tokens[:], len(subject.tokenizer), smoothing)
    items = masking.Masked(plain, subject.tokenizer, share=share, weights=rare, seed=seed)
    others = {teacher.name: teacher.subject.tokenizer for teacher in everyone if teacher.foreign}
    if not others:
        return items
    parallel = alignment.Parallel(items, plain.rows, corpus.texts, subject.tokenizer, others, length=length)
    for name, counts in alignment.count(parallel[0], list(others)).items():
        if not counts:
            teacher, what = name.split(".")
            raise InputError(f"{teacher} reads no {what} of the first batch as the original does: leave it out")
    return parallel


def count_units(batch: Batch, *, teachers: Sequence[Teacher]) -> dict[str, int]:
    """What the losses are means over: real tokens, chosen tokens, and what foreign teachers have in common with us."""
    names = [teacher.name for teacher in teachers if teacher.foreign]
    chosen = {f"{name}.told": len(alignment.chosen_pairs(batch, name)) for name in names}
    chosen["masked"] = int((batch["labels"] != masking.IGNORED).sum())
    return objectives.count(batch) | alignment.count(batch, names) | chosen


def triple_loss(
    student: Transformer,
    everyone: Sequence[Teacher],
    *,
    factors: Sequence[float],
    temperature: float,
    restrict: bool = False,
    foreign: Foreign = "words",
) -> objectives.Objective:
    """The loss of steps 3 and 4. Totals are those of `count_units`; a factor of 0 leaves its loss out."""
    soft, hard, near = factors
    same = [teacher for teacher in everyone if not teacher.foreign]
    by_tokens = [teacher for teacher in everyone if teacher.shared is not None]
    # Where foreign teachers tell tokens, too, the mean of the others has their share; else it is all that is told.
    home = sum(teacher.weight for teacher in same) if by_tokens else 1.0
    if not (hard or near or same or by_tokens):
        raise InputError(f"factors={list(factors)}: no teacher gives soft targets: take foreign=tokens, or others")

    def objective(batch: Batch, totals: Mapping[str, int]) -> tuple[Tensor, Parts]:
        ours = read_last(student, batch)
        with torch.no_grad():
            theirs = {teacher.name: teacher.forward(batch) for teacher in everyone}
        logits, states, real = ours.prediction, ours.hidden[-1], objectives.mask_of(batch)
        parts: dict[str, Tensor] = {}
        if soft and same:
            target = average_predictions(same, theirs, temperature)
            asked_of = batch["labels"] != masking.IGNORED if restrict else real
            apart = losses.kl(logits, target, asked_of, temperature=temperature)
            parts["soft"] = soft * home * temperature**2 * apart / totals["masked" if restrict else "tokens"]
        for teacher in by_tokens if soft else []:
            assert teacher.shared is not None
            name, logits_of = teacher.name, theirs[teacher.name].prediction
            at = {f"{name}.pairs": alignment.chosen_pairs(batch, name)} if restrict else batch
            apart = alignment.shared_kl(logits, logits_of, at, name, teacher.shared, temperature=temperature)
            pairs = max(1, totals[f"{name}.told" if restrict else f"{name}.pairs"])
            parts[f"soft {name}"] = soft * teacher.weight * temperature**2 * apart / pairs
        if hard:
            parts["masked"] = hard * losses.cross_entropy(logits, batch["labels"]) / totals["masked"]
        for teacher in everyone if near else []:
            name, theirs_at = teacher.name, theirs[teacher.name].hidden[-1]
            if not teacher.foreign:
                apart, unit = losses.cosine(states, theirs_at, real, project=teacher.project), "tokens"
            elif foreign == "sentences":
                apart, unit = alignment.text_relational(states, theirs_at, batch, name), "sequences"
            else:
                apart = alignment.word_cosine(states, theirs_at, batch, name, project=teacher.project)
                unit = f"{name}.words"
            parts[f"near {name}"] = near * teacher.weight * apart / max(1, totals[unit])
        return sum(parts.values(), logits.new_zeros(())), {name: part.detach() for name, part in parts.items()}

    return objective


def average_predictions(same: Sequence[Teacher], answers: Mapping[str, Output], temperature: float) -> Tensor:
    """Logits whose softmax at `temperature` is the weighted mean of what the teachers of one vocabulary predict."""
    logits = [answers[teacher.name].prediction for teacher in same]
    return ensembles.average_logits(logits, [teacher.weight for teacher in same], temperature=temperature)


# --------------------------------------------------------------------------------------------------------- how loyal


def describe_loyalty(
    student: Transformer, everyone: Sequence[Teacher], held: Corpus, batch: int, length: int
) -> dict[str, str]:
    """Loyalty on masked tokens of held-out texts: to each teacher, and to the mean of several of one vocabulary.

    To one of another vocabulary, over the tokens that both have, where a masked token stands for the same characters in
    both readings. Left out are teachers without such tokens, or without a masked-LM head; and the original where it
    teaches alone, since loyalty to it stands in the evidence anyway.
    """
    if [teacher.name for teacher in everyone] == ["original"]:
        return {}
    same, shared = [teacher for teacher in everyone if not teacher.foreign], shared_tokens(student, everyone)
    compared = [teacher for teacher in everyone if teacher.name in shared]
    tallies = {teacher.name: loyalty.Tally() for teacher in everyone if not teacher.foreign or teacher.name in shared}
    if len(same) > 1:
        tallies["ensemble"] = loyalty.Tally()
    plain = texts.batches(held, student.tokenizer, packed=False, batch=min(batch, len(held)), length=length)
    items: Any = masking.Masked(plain, student.tokenizer)
    if compared:
        others = {teacher.name: teacher.subject.tokenizer for teacher in compared}
        items = alignment.Parallel(items, plain.rows, held.texts, student.tokenizer, others, length=length)

    def watch(logits: Sequence[Tensor], item: Batch) -> None:
        *theirs, ours = logits
        answers = {teacher.name: Output(prediction) for teacher, prediction in zip(same, theirs, strict=True)}
        for name, answer in answers.items():
            tallies[name].add([answer.prediction, ours], item)
        if "ensemble" in tallies:
            tallies["ensemble"].add([average_predictions(same, answers, 1.0), ours], item)
        for teacher in compared:
            name, there = teacher.name, {f"{teacher.name}.pairs": alignment.chosen_pairs(item, teacher.name)}
            mine, yours = alignment.at_pairs(ours, teacher.forward(item).prediction, there, name, shared[name])
            tallies[name].add_pairs([yours, mine], there[f"{name}.pairs"][:, 0] // ours.shape[1])

    forwards = [*(teacher.subject.forward for teacher in same), student.forward]
    quality.accuracies(forwards, items[: min(64, len(items))], watch=watch)
    return {
        name: ", ".join(f"{kind.replace('_', ' ')} {figure}" for kind, figure in tally.figures().items())
        for name, tally in tallies.items()
        if tally.seen
    }


def shared_tokens(student: Transformer, everyone: Sequence[Teacher]) -> dict[str, tuple[Tensor, Tensor]]:
    """Of each foreign teacher that tells masked tokens: ids of the tokens in both vocabularies, if there are some."""
    shared = {}
    for teacher in everyone:
        if teacher.foreign and tells_masked(teacher.subject):
            with suppress(InputError):  # too few: they were compared by hidden states
                shared[teacher.name] = alignment.shared_vocabulary(student.tokenizer, teacher.subject.tokenizer)
    return shared
