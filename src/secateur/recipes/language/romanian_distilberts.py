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
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secateur._utils.rundir import Run
from secateur.data import masking, texts
from secateur.data.texts import Corpus
from secateur.errors import BudgetError, InfeasibleError, InputError
from secateur.measure import latency, loyalty, quality, size
from secateur.recover.distillation import alignment, ensembles, losses, teachers
from secateur.recover.training import loop, objectives
from secateur.subjects import Transformer, open_subject
from secateur.subjects.transformer.subject import Output, positions
from secateur.vocabulary import Budget, Figure, Result, Selection, listed

CARD = {
    "title": "Romanian DistilBERTs: Distilling the Knowledge of Romanian BERTs Using Multiple Teachers",
    "paper": "https://arxiv.org/abs/2112.12650",
    "cuts": "layers of a masked language model; those that stay keep their weights",
    "recovers": "soft targets, masked tokens and hidden states together, from one teacher or several, of any tokenizer",
    "extra": "",
    "family": "language",
}

Batch = Mapping[str, Tensor]
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
    temperature: float = 2.0,
    restrict: bool = False,
    share: float = 0.15,
    smoothing: float = 0.7,
    steps: int = 1000,
    train_batch: int = 32,
    lr: float = 5e-4,
    warmup: float = 0.05,
    clip: float = 5.0,
    training: str | Sequence[str] = "",
    dry_run: bool = False,
) -> Iterator[Result]:
    """Keep every second layer with its weights, and teach the rest of the way by three losses at once.

    1. The most layers that the budget leaves stay, with embeddings and masked-LM head, bit for bit as they were.
    2. Of each batch `share` of the tokens are chosen, rare ones more often (``count^-smoothing``): 80 % hidden, 10 %
       another token, 10 % as they are.
    3. ``L = a_ce T^2 KL(p_t || p_s) + a_mlm CE + a_cos sum_k w_k (1 - cos(P_k h_s, h_k))``: p at temperature T over the
       real tokens, CE on the chosen ones, h the last hidden states. The first teacher is the original itself, P_1 = 1.
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
        steps: of training.
        train_batch: texts per step.
        lr: peak learning rate; linear warm-up, then linear decay.
        warmup: share of steps in warm-up.
        clip: largest norm of the gradient.
        training: more settings of the training loop, such as accumulate=4,precision=bf16.
        dry_run: stop after the cut.

    Departures: the article does not say how its teachers are combined, nor gives its factors; these are DistilBERT's.
    Predictions of another vocabulary enter no average that loyalty could be told to, and a teacher without a masked-LM
    head makes none.
    The student keeps the original's architecture, token types included (two rows of the embedding table), so that it
    loads as the original does. A teacher without a masked-LM head counts as foreign, whatever its vocabulary. Teachers
    of the same vocabulary and another width are compared through a P_k, too. Texts stand one to a row, and are not
    joined to sequences of 512. Dropout is off.
    """
    check(subject, factors=factors, temperature=temperature)
    further = loop.options(training)
    found = company(subject, teachers, weights, foreign, length)
    train, held = data.split(seed=seed)
    stream = batches(subject, found, train, train_batch, length, seed=seed, share=share, smoothing=smoothing)
    lesson = partial(
        triple, found=found, factors=factors, temperature=temperature, restrict=restrict, foreign=foreign,
    )  # fmt: skip
    others = [one.subject for one in found]
    for budget in budgets:
        count, predicted = depth(subject, budget, batch, length)
        stays = layers(len(subject.layers()), count, keep)
        student, cut = subject.cut(Selection({"layers": stays}))
        before, after = {**cut.before, "layers": float(len(stays))}, {**cut.after, "layers": float(count)}
        cut = replace(cut, before=before, after=after)
        if dry_run or not steps:
            yield Result(str(budget), student, cut, predicted)
            continue
        anew(found, seed)
        recovery = loop.train(
            student.model, stream, lesson(student), steps=steps, lr=lr, warmup=warmup, schedule="linear", seed=seed,
            dropout=False, count=partial(counted, found=found), frozen=[one.model for one in others],
            extra=[one.project for one in found if one.project is not None], checkpoint=run.folder(f"train-{budget}"),
            flops_per_token=size.training_flops(
                student.flops_per_token(length), sum(one.flops_per_token(length) for one in others)
            ),
            **({"clip": clip} | further),
        )  # fmt: skip
        judged = partial(loyal, student, found, held, train_batch, length)
        notes = tuple(f"loyal to {name}: {text}" for name, text in run.json(f"loyalty-{budget}", judged).items())
        yield Result(str(budget), student, cut, predicted, recovery, notes)


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

    def forward(self, batch: Batch) -> Any:
        """Hidden states and prediction, of its own reading of the texts."""
        keys = ("input_ids", "attention_mask")
        view = {key: batch[f"{self.name}.{key}"] for key in keys} if self.foreign else batch
        return self.subject.forward(view, hidden=True)


def check(subject: Transformer, *, factors: Sequence[float], temperature: float) -> None:
    """Refuse what is no masked language model, and options that leave nothing to learn."""
    if not masked(subject):
        raise InputError(
            f"{type(subject.model).__name__} is no masked language model: give one, such as a BertForMaskedLM"
        )
    if len(factors) != 3 or any(not 0 <= one < math.inf for one in factors) or not any(factors):
        raise InputError(f"factors={list(factors)}: give three numbers of at least 0, one of them above: soft targets, "
                         "masked tokens, hidden states")  # fmt: skip
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature={temperature}: give a number above 0")


def masked(subject: Transformer) -> bool:
    """Whether it tells masked tokens."""
    return type(subject.model).__name__.endswith("ForMaskedLM")


def company(
    subject: Transformer, sources: Sequence[str], weights: Sequence[float], foreign: Foreign, length: int
) -> list[Teacher]:
    """The original and the other teachers, each with its share; one of share 0 is not asked, so it is left out."""
    parts = ensembles.shares(list(weights) or None, 1 + len(sources))
    result = [Teacher("original", subject, parts[0])]
    for number, (source, part) in enumerate(zip(sources, parts[1:], strict=True), 1):
        if part:
            result.append(joined(subject, f"teacher{number}", open_subject(source), part, foreign, length))
    return [one for one in result if one.weight]


def anew(found: Sequence[Teacher], seed: int) -> None:
    """Draw the maps P_k: each budget begins with the same ones."""
    torch.manual_seed(seed)
    for one in found:
        if one.project is not None:
            one.project.reset_parameters()


def joined(
    subject: Transformer, name: str, other: Transformer, weight: float, foreign: Foreign, length: int
) -> Teacher:
    """A further teacher: of the same vocabulary if it tells masked tokens and its tokenizer is the original's."""
    if other.tokenizer is None:
        raise InputError(f"{name} has no tokenizer: give a folder with its tokenizer.json")
    most = positions(other.model)
    if most is not None and length > most:
        raise InputError(f"length={length} is beyond the {most} positions of {name}: give at most length={most}")
    widths = subject.hidden_size, other.hidden_size
    try:
        teachers.check_tokens(subject, other)
        same = masked(other)
    except InputError:
        same = False
    project = None if foreign == "sentences" and not same else nn.Linear(*widths, bias=False)
    if same:
        return Teacher(name, other, weight, project=None if widths[0] == widths[1] else project)
    shared = None
    if foreign == "tokens":
        if not masked(other):
            raise InputError(f"{name} tells no masked tokens, so its predictions can't be compared: use foreign=words")
        shared = alignment.shared_vocabulary(subject.tokenizer, other.tokenizer)
    return Teacher(name, other, weight, True, project, shared)


# -------------------------------------------------------------------------------------------------------- the student


def layers(total: int, count: int, keep: str | Sequence[str]) -> NDArray[np.bool_]:
    """[total] booleans: which `count` layers stay."""
    numbers = listed(keep)
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


def depth(subject: Transformer, budget: Budget, batch: int, length: int) -> tuple[int, dict[str, float]]:
    """(the most layers under the budget, what they cost). A forward pass takes a time that is linear in its layers."""
    if budget.pattern is not None or not budget.limits:
        raise BudgetError(
            f"romanian_distilberts can't meet {budget}: it takes layers, such as layers=50% or speedup=2x"
        )
    total, units = len(subject.layers()), subject.units(batch=batch, length=length)
    costs = [units.cost({"layers": np.arange(total) < n}) | {"layers": float(n)} for n in range(1, total + 1)]
    if "latency" in budget:
        one, whole = (clocked(subject, n, batch, length) for n in (1, total))
        for n, cost in enumerate(costs):
            cost["latency"] = one + (whole - one) * n / max(1, total - 1)
    limits = budget.absolute(costs[-1])
    over = next((name for name in limits if costs[0][name] > limits[name]), None)
    if over:
        raise InfeasibleError(
            f"{over} of {limits[over]:.4g} can't be met: with one layer the model has {costs[0][over]:.4g} of "
            f"{costs[-1][over]:.4g}; ask for more",
            costs[0][over],
        )
    fitting = max(n for n, cost in enumerate(costs, 1) if all(cost[name] <= limits[name] for name in limits))
    return fitting, costs[fitting - 1]


def clocked(subject: Transformer, count: int, batch: int, length: int) -> float:
    """Seconds of a forward pass with the first `count` layers."""
    student, _ = subject.cut(Selection({"layers": np.arange(len(subject.layers())) < count}))
    example = student.example(batch, length)
    return latency.median_time(
        torch.no_grad()(partial(student.forward, example)), device=str(student.model.device)
    ).value


# ---------------------------------------------------------------------------------------------------------- the lesson


def batches(
    subject: Transformer,
    found: Sequence[Teacher],
    corpus: Corpus,
    batch: int,
    length: int,
    *,
    seed: int,
    share: float = 0.15,
    smoothing: float = 0.7,
) -> Any:
    """Masked batches, with the readings of foreign teachers beside them."""
    plain = texts.batches(corpus, subject.tokenizer, packed=False, batch=batch, length=length, seed=seed)
    rare = masking.rare_first(plain.tokens[:], len(subject.tokenizer), smoothing)
    items = masking.Masked(plain, subject.tokenizer, share=share, weights=rare, seed=seed)
    others = {one.name: one.subject.tokenizer for one in found if one.foreign}
    if not others:
        return items
    result = alignment.Parallel(items, plain.rows, corpus.texts, subject.tokenizer, others, length=length)
    for name, counts in alignment.count(result[0], list(others)).items():
        if not counts:
            teacher, what = name.split(".")
            raise InputError(f"{teacher} reads no {what} of the first batch as the original does: leave it out")
    return result


def counted(batch: Batch, *, found: Sequence[Teacher]) -> dict[str, int]:
    """What the losses are means over: real tokens, chosen tokens, and what foreign teachers have in common with us."""
    chosen = int((batch["labels"] != masking.IGNORED).sum())
    own = {**objectives.count(batch), "masked": chosen}
    return own | alignment.count(batch, [one.name for one in found if one.foreign])


def triple(
    student: Transformer,
    *,
    found: Sequence[Teacher],
    factors: Sequence[float],
    temperature: float,
    restrict: bool = False,
    foreign: Foreign = "words",
) -> objectives.Objective:
    """The loss of steps 3 and 4. Totals are those of `counted`; a factor of 0 leaves its loss out."""
    soft, hard, near = factors
    same, strange = [one for one in found if not one.foreign], [one for one in found if one.foreign]
    # Where foreign teachers tell tokens, too, the mean of the others has their share; else it is all that is told.
    home = sum(one.weight for one in same) if any(one.shared is not None for one in strange) else 1.0

    def objective(batch: Batch, totals: Mapping[str, int]) -> tuple[Tensor, dict[str, float]]:
        ours = student.forward(batch, hidden=True)
        with torch.no_grad():
            theirs = {one.name: one.forward(batch) for one in found}
        logits, states = ours.prediction, ours.hidden[-1]
        chosen = batch["labels"] != masking.IGNORED
        real = objectives.mask_of(batch)
        parts: dict[str, Tensor] = {}
        if soft and same:
            target = together(same, theirs, temperature)
            apart = losses.kl(logits, target, chosen if restrict else real, temperature=temperature)
            parts["soft"] = soft * home * temperature**2 * apart / totals["masked" if restrict else "tokens"]
        for one in strange:
            if soft and one.shared is not None:
                said_of = theirs[one.name].prediction
                apart = alignment.shared_kl(logits, said_of, batch, one.name, one.shared, temperature=temperature)
                pairs = max(1, totals[f"{one.name}.pairs"])
                parts[f"soft {one.name}"] = soft * one.weight * temperature**2 * apart / pairs
        if hard:
            parts["masked"] = hard * losses.cross_entropy(logits, batch["labels"]) / totals["masked"]
        if near:
            for one in found:
                apart = distance(one, states, theirs[one.name].hidden[-1], batch, real, foreign)
                unit = "tokens" if not one.foreign else "sequences" if foreign == "sentences" else f"{one.name}.words"
                parts[f"near {one.name}"] = near * one.weight * apart / max(1, totals[unit])
        return sum(parts.values(), logits.new_zeros(())), {name: float(part.detach()) for name, part in parts.items()}

    return objective


def together(same: Sequence[Teacher], answers: Mapping[str, Any], temperature: float) -> Tensor:
    """Logits whose softmax at `temperature` is the weighted mean of what the teachers of one vocabulary predict."""
    ready = [partial(said, answers[one.name]) for one in same]
    width = min(answers[one.name].prediction.shape[-1] for one in same)
    mean = ensembles.Averaged(ready, [one.weight for one in same], temperature=temperature, vocabulary=width)
    mixed: Tensor = mean({}).prediction
    return mixed


def said(answer: Any, batch: Batch, **options: Any) -> Any:
    """A teacher that has answered already."""
    return answer


def distance(one: Teacher, ours: Tensor, theirs: Tensor, batch: Batch, real: Tensor, foreign: Foreign) -> Tensor:
    """Between last hidden states, summed: over tokens, or over words or texts of a foreign teacher."""
    if not one.foreign:
        return losses.cosine(ours, theirs, real, project=one.project)
    if foreign == "sentences":
        mask = batch[f"{one.name}.attention_mask"].bool()
        read = real.any(1) & mask.any(1)  # a text of padding only has no mean
        return losses.relational(averaged(ours[read], real[read]), averaged(theirs[read], mask[read]))
    return alignment.word_cosine(ours, theirs, batch, one.name, project=one.project)


def averaged(states: Tensor, real: Tensor) -> Tensor:
    """[B, d]: the mean of states [B, S, d] over real tokens."""
    weight = real[..., None].to(states)
    return (states * weight).sum(1) / weight.sum(1)


# --------------------------------------------------------------------------------------------------------- how loyal


def loyal(student: Transformer, found: Sequence[Teacher], held: Corpus, batch: int, length: int) -> dict[str, str]:
    """Loyalty on masked tokens of held-out texts: to each teacher, and to the mean of several of one vocabulary.

    To one of another vocabulary, over the tokens that both have, where a masked token stands for the same characters in
    both readings. Left out are teachers without such tokens, or without a masked-LM head; and the original where it
    teaches alone, since loyalty to it stands in the evidence anyway.
    """
    if [one.name for one in found] == ["original"]:
        return {}
    same, shared = [one for one in found if not one.foreign], common(student, found)
    strange = [one for one in found if one.name in shared]
    tallies = {one.name: loyalty.Tally() for one in found if not one.foreign or one.name in shared}
    if len(same) > 1:
        tallies["ensemble"] = loyalty.Tally()
    plain = texts.batches(held, student.tokenizer, packed=False, batch=min(batch, len(held)), length=length)
    items: Any = masking.Masked(plain, student.tokenizer)
    if strange:
        others = {one.name: one.subject.tokenizer for one in strange}
        items = alignment.Parallel(items, plain.rows, held.texts, student.tokenizer, others, length=length)

    def watch(logits: Sequence[Tensor], item: Batch) -> None:
        *theirs, ours = logits
        answers = {one.name: Output(told) for one, told in zip(same, theirs, strict=True)}
        for name, answer in answers.items():
            tallies[name].add([answer.prediction, ours], item)
        if "ensemble" in tallies:
            tallies["ensemble"].add([together(same, answers, 1.0), ours], item)
        for one in strange:
            pairs = item[f"{one.name}.pairs"]
            pairs = pairs[item["labels"].flatten()[pairs[:, 0]] != masking.IGNORED]
            there = {f"{one.name}.pairs": pairs}
            mine, yours = alignment.at_pairs(ours, one.forward(item).prediction, there, one.name, shared[one.name])
            tallies[one.name].add_pairs([yours, mine], pairs[:, 0] // ours.shape[1])

    forwards = [*(one.subject.forward for one in same), student.forward]
    quality.accuracies(forwards, items[: min(64, len(items))], watch=watch)
    return {name: shown(tally.figures()) for name, tally in tallies.items() if tally.seen}


def common(student: Transformer, found: Sequence[Teacher]) -> dict[str, tuple[Tensor, Tensor]]:
    """Of each foreign teacher that tells masked tokens: ids of the tokens in both vocabularies, if there are some."""
    result = {}
    for one in found:
        if one.foreign and masked(one.subject):
            with suppress(InputError):  # too few: they were compared by hidden states
                result[one.name] = alignment.shared_vocabulary(student.tokenizer, one.subject.tokenizer)
    return result


def shown(figures: Mapping[str, Figure]) -> str:
    """Both loyalties in words."""
    return ", ".join(f"{name.replace('_', ' ')} {figure}" for name, figure in figures.items())
