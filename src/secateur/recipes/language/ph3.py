"""PH3: pruning heads via path patching, so that a model answers from its context, or from its memory.

Jin et al., "Cutting Off the Head Ends the Conflict: A Mechanism for Interpreting and Mitigating Knowledge Conflicts in
Language Models", Findings of ACL 2024 (arXiv 2402.18154).
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from secateur._utils import distributed
from secateur._utils.rundir import Run
from secateur.data import texts as corpora
from secateur.data.conflicts import Conflicts
from secateur.errors import BudgetError, InfeasibleError, InputError
from secateur.methods import conflicts
from secateur.methods.budgets import refuse_patterns
from secateur.methods.conflicts import Item
from secateur.score import magnitude, random
from secateur.subjects import Transformer
from secateur.subjects.transformer import heads as switching
from secateur.subjects.transformer.heads import Head
from secateur.vocabulary import Budget, Result, parse_list

CARD = {
    "title": "PH3: Cutting Off the Head Ends the Conflict (Pruning Heads via Path Patching)",
    "paper": "https://arxiv.org/abs/2402.18154",
    "cuts": "attention heads that pull answers towards the memory, or towards the context",
    "recovers": "nothing: no weight is trained",
    "extra": "",
    "family": "language",
}

Trust = Literal["context", "memory"]
Score = Literal["patching", "logit", "ablation", "gradient", "magnitude", "random"]
Corruption = Literal["swap", "noise"]
Match = Literal["first", "full"]
Rank = Callable[[Sequence[Item]], Mapping[str, Tensor]]
_FEW = 5.0
"""Percent of answers from one source, below which a note says that the model is hardly undecided."""


def ph3(
    subject: Transformer,
    data: Conflicts,
    budgets: Sequence[Budget],
    run: Run,
    *,
    batch: int = 1,
    length: int = 128,
    seed: int = 0,
    trust: Trust = "context",
    score: Score = "patching",
    corruption: Corruption = "swap",
    samples: Annotated[int, Ge(1)] = 200,
    ratios: str | Sequence[str] = "",
    relation: str = "",
    kind: str = "",
    match: Match = "first",
    texts: str = "",
    window: Annotated[int, Ge(0)] = 0,
    form: Literal["cut", "mask"] = "cut",
    dry_run: bool = False,
) -> Iterator[Result]:
    """Find the heads that carry the memory, or the context, into the answer, and remove a few percent of one kind.

    1. A clean run on each conflict prompt x and one on its corrupted x', of another subject and attribute, give the
       outputs z and z' of all heads (steps 4 and 5).
    2. Path patching: each head in turn has its z' at the last position, while all other heads are held to their clean
       z; MLPs and norms are computed anew (step 6). dM and dC are the relative changes of the answers' probabilities,
       S = mean(dC - dM) (step 7): S > 0 is a memory head, S < 0 a context head.
    3. All heads are ranked together; to trust the context, the memory heads of the largest S go, and to trust the
       memory, the context heads of the smallest (step 8).
    4. They are removed at all positions, without compensation and training (step 9).

    The heads of both kinds go to heads.json in the run directory, of several budgets in the folder of each, as
    "trust-context" and "trust-memory", for `secateur.heads`, which switches them at inference in the model as it was,
    and for `secateur study grounding`, which asks questions with retrieved passages with and without them (step 13).

    Args:
        subject: a decoder; it stays as it is.
        data: conflict prompts, or a fact table that they are made of; only facts that the model knows count.
        budgets: heads=95% keeps that share of all heads of the model that are not masked already; or params, bytes and
            others of whole cuts.
        run: where scores, knock-outs and lists of heads go.
        batch: sequences of the environment that is timed, and for which costs are.
        length: tokens per sequence of that environment.
        seed: of the prompts that are scored and of the split.
        trust: what the result is to answer from: the context, so that memory heads go; or its memory.
        score: patching; logit, the same with logarithms of probabilities; and for comparison ablation (each head
            silenced, all others free), gradient (|sum z dL/dz|), magnitude (least output weights first) and random.
        corruption: swap, x' of the data; or noise on the embeddings of x, where the data has none.
        samples: prompts that are scored.
        ratios: candidates for the share of heads that goes, such as 1%,3%,5%,7%,9%,15%, of which round(k L H), at least
            one, go; those that meet the budget are tried on a fifth of the subjects, and the one of the most answers
            from the trusted source stays, or, among equals, of its largest probability. As few as the budget asks for,
            if none.
        relation: of the prompts that are scored; all if empty. Each relation held out is measured beside the result.
        kind: of conflict, likewise.
        match: an answer is the memory's or the context's by its first token, or in full.
        texts: a file of texts on which the perplexity is measured, too.
        window: consecutive layers of the knock-outs of attention edges and of sub-blocks, which tell where attributes
            come to the last position (steps 1 and 2); none if 0.
        form: cut: heads are cut out, where query heads share keys and values only whole groups, and others of them are
            masked; mask: all are masked, and every tensor keeps its shape.
        dry_run: measure and write nothing.

    Departures: the paper was read at second hand, so that which tokens are corrupted, the form of S, and the names of
    the rates are unchecked; sizes of the windows are free. Positions: with all other heads frozen, patching all
    positions gives the same logits at the last one as patching that alone. A budget is never exceeded, so that
    heads=95% of 48 heads removes 3 of them, where ratios=5% rounds to 2. Coherent conflicts are told by templates, not
    written by a model. Scores are kept as the paper has them in the run directory; the ranking keeps what is high, so
    that S changes its sign for trust=context. Scaling heads in place of removing them is of later papers, and not here.
    """
    refuse_patterns("ph3", budgets, "heads")
    if any("latency" in budget for budget in budgets):
        raise BudgetError("ph3 removes a few heads, which brings no time to promise: give heads=95%, or params")
    shares = [parse_share(part) for part in parse_list(ratios)]
    silent = switching.find_silent(subject)
    chosen = data.choose(relation=relation, kind=kind)
    judged = {"texts": corpora.read(texts)} if texts else {}
    scored, tested = chosen.split(seed=seed + 1) if shares else (chosen, chosen)
    if len(scored) > samples:
        drawn = torch.randperm(len(scored), generator=torch.Generator().manual_seed(seed))[:samples]
        scored = scored.take(sorted(drawn.tolist()))
    items, others = (conflicts.encode(part, subject.tokenizer) for part in (scored, tested))
    if window:
        run.json(f"knockouts-{window}", partial(conflicts.knock_out, subject, scored, window))
    rank = partial(rank_heads, subject, score=score, corruption=corruption, seed=seed)
    table = run.tensors("scores", partial(rank, items))
    order = {side: [head for head in sort_heads(table, side) if head not in silent] for side in ("context", "memory")}
    flips = run.json("flips", partial(describe_flips, rank, scored, subject, order["context"]))
    balance = run.json("balance", partial(describe_balance, subject, items))
    price = partial(price_heads, subject, order[trust], form=form, batch=batch, length=length)
    plan = {budget: list_counts(price, budget, shares, len(order[trust])) for budget in budgets}
    for budget, counts in plan.items():
        pick = partial(choose_count, subject, others, order[trust], counts, trust, match)
        count = int(run.json(f"ratios-{budget}", pick)["best"]) if len(counts) > 1 else counts[0]
        lists = {f"trust-{side}": some[:count] for side, some in order.items()}
        file = run.root / ("heads.json" if len(budgets) == 1 else f"heads-{budget}.json")
        if not dry_run:
            distributed.by_first(partial(switching.write_lists, file, subject, lists))
        gone = lists[f"trust-{trust}"]
        student, cut = switching.cut_heads(subject, gone, mask=form == "mask")
        went = f"heads that went, as (layer, head): {', '.join(map(str, gone))}"
        notes = [*data.notes, *balance, *flips, *describe_silent(silent), went]
        if len(counts) > 1:
            tried = ", ".join(map(str, counts))
            notes.append(f"of {tried} heads, {count} gave the best {trust}_rate on {len(others)} prompts set aside")
        yield Result(str(budget), student, cut, price(count), None, tuple(notes), judged=judged)
        del student  # or it would be held beside the next one
        if not dry_run and (run.root / str(budget)).is_dir():  # one of several: its list goes along with it
            distributed.by_first(partial(switching.write_lists, run.root / str(budget) / "heads.json", subject, lists))


# ------------------------------------------------------------------------------------------------------------- scores


def rank_heads(
    subject: Transformer, items: Sequence[Item], *, score: Score, corruption: Corruption, seed: int
) -> dict[str, Tensor]:
    """layers.i.heads -> S [H], above 0 for memory heads; of scores without a sign, "memory." and "context." before it.

    Of those, higher is more of that kind.
    """
    places = {f"layers.{layer}.heads": consumer for layer, (consumer, _) in switching.find_outputs(subject).items()}
    if score in ("patching", "logit"):
        by: Literal["probability", "logit"] = "probability" if score == "patching" else "logit"
        return conflicts.score(subject, items, by=by, corruption=corruption, seed=seed)
    if score == "ablation":
        return conflicts.ablate(subject, items)
    if score == "gradient":
        both: tuple[Literal["memory", "context"], ...] = ("memory", "context")
        return {
            f"{side}.{name}": value
            for side in both
            for name, value in conflicts.gradients(subject, items, side).items()
        }
    if score == "magnitude":
        worth = {name: -value.double() for name, value in magnitude.groups(subject.model, places).items()}
    else:
        worth = {name: value.double() for name, value in random.scores(subject.units(), seed).items()}
    return {f"{side}.{name}": worth[name].cpu() for side in ("memory", "context") for name in places}


def sort_heads(table: Mapping[str, Tensor], trust: str) -> list[Head]:
    """All heads, those first that go where `trust` is to be trusted; among equals the earlier layer first."""
    signed, worth = any(name.startswith("layers.") for name in table), dict[Head, float]()
    prefix = "" if signed else "memory." if trust == "context" else "context."
    for name, column in table.items():
        kind, _, place = name.rpartition("layers.")
        if kind == prefix:
            for head, value in enumerate(column.tolist()):
                worth[int(place.partition(".")[0]), head] = -value if signed and trust == "memory" else value
    return sorted(worth, key=lambda head: (-worth[head], head))


def describe_balance(subject: Transformer, items: Sequence[Item]) -> list[str]:
    """Where the answers to the scored prompts come from before the cut: scores want a model that is undecided."""
    found = conflicts.rates(subject, items)
    memory, context = (100 * found[f"{side}_rate"].value for side in ("memory", "context"))
    text = f"before the cut, of {len(items)} scored prompts {memory:.0f} % of the answers are the memory's and "
    few = ": it is hardly undecided, and the heads of the weaker side are told by few prompts"
    return [f"{text}{context:.0f} % the context's{few if min(memory, context) < _FEW else ''}"]


def describe_silent(silent: Sequence[Head]) -> list[str]:
    """A note on heads that do nothing as they are: they can't go, and are not among those of which a share does."""
    named = ", ".join(map(str, silent))
    return [f"heads that were masked already and don't count, as (layer, head): {named}"] if silent else []


def describe_flips(rank: Rank, scored: Conflicts, subject: Transformer, order: Sequence[Head]) -> list[str]:
    """How many of the ten heads at either end change sides from one kind of conflict in the data to another."""
    kinds = list(dict.fromkeys(one.kind for one in scored.items))
    if len(kinds) < 2:
        return []
    few = min(10, len(order) // 2)
    ends = [*order[:few], *order[-few:]]
    tables = [rank(conflicts.encode(scored.choose(kind=one), subject.tokenizer)) for one in kinds]
    if f"layers.{ends[0][0]}.heads" not in tables[0]:
        return []  # a score without a sign
    signs = [[bool(table[f"layers.{layer}.heads"][head] > 0) for layer, head in ends] for table in tables]
    flips = sum(len(set(sides)) > 1 for sides in zip(*signs, strict=True))
    return [f"{flips} of the {len(ends)} strongest heads change sides between {' and '.join(kinds)} conflicts"]


# ------------------------------------------------------------------------------------------------------------- counts


def parse_share(text: str) -> float:
    """A share of the heads, from 5% or 0.05. Raises `InputError` for what is none, or not below all of them."""
    try:
        share = float(text.removesuffix("%")) / (100.0 if text.endswith("%") else 1.0)
    except ValueError:
        share = 0.0
    if not 0.0 < share < 1.0:
        raise InputError(f"ratios: {text!r} is no share of the heads: give some between 0% and 100%, such as 1%,3%,5%")
    return share


def count_share(share: float, total: int) -> int:
    """round(k L H), at least 1."""
    return max(1, round(share * total))


def price_heads(
    subject: Transformer, order: Sequence[Head], count: int, *, form: str, batch: int, length: int
) -> dict[str, float]:
    """What is left costs, in every measure, when the first `count` heads go."""
    keep, _ = switching.plan_cut(subject, order[:count], mask=form == "mask")
    return {**subject.units(batch=batch, length=length).cost(keep), "heads": float(len(order) - count)}


def list_counts(
    price: Callable[[int], Mapping[str, float]], budget: Budget, shares: Sequence[float], total: int
) -> list[int]:
    """How many heads may go: the rounded shares that meet the budget, or the fewest heads, where there are no shares.

    Raises `InfeasibleError` where nothing meets the budget and leaves a head, `InputError` where all of the shares are
    rounded to all heads, and `BudgetError` for a budget that lets all of them stay, where there are no shares.
    """
    limits = budget.absolute(price(0))

    def fits(count: int) -> bool:
        spent = price(count)
        return all(spent[measure] <= limit for measure, limit in limits.items())

    if not shares and fits(0):
        raise BudgetError(
            f"budget {budget.brief()} lets all heads stay, so nothing would change: ask for less, or give ratios"
        )
    if shares and min(count_share(share, total) for share in shares) == total:
        raise InputError(f"ratios: rounded they are all {total} heads, and one is to stay: give smaller ones")
    if shares:
        counts = sorted({count_share(share, total) for share in shares})
        counts = [count for count in counts if count < total]
        found = [count for count in counts if fits(count)]
    else:
        counts = [1 + bisect.bisect_left(range(1, total), True, key=fits)]
        found = [count for count in counts if count < total]
    if not found:
        most = min(max(counts), total - 1)
        least = price(most)
        reached = ", ".join(f"{measure} {least[measure]:.6g}" for measure in limits)
        raise InfeasibleError(
            f"budget {budget.brief()} can't be met: without {most} of {total} heads the model has {reached}; "
            f"{'give larger ratios, or ' if shares else ''}give a larger budget",
            least[next(iter(limits))],
        )
    return found


def choose_count(
    subject: Transformer,
    items: Sequence[Item],
    order: Sequence[Head],
    counts: Sequence[int],
    trust: Trust,
    match: Match,
) -> dict[str, object]:
    """{"best": how many heads, "tried": of each number the rate of the trusted source and its mean probability}."""
    side, tried = ("memory", "context").index(trust), dict[str, list[float]]()
    for count in counts:
        rate = conflicts.rates(subject, items, match=match, silenced=order[:count])[f"{trust}_rate"].value
        likely = conflicts.log_answers(subject, items, order[:count])[:, side].exp().mean()
        tried[str(count)] = [rate, float(likely)]
    return {"best": max(counts, key=lambda count: (tried[str(count)], -count)), "tried": tried}
