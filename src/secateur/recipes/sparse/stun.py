"""STUN: structured-then-unstructured pruning of mixtures of experts.

Lee et al., ACL 2025 (arXiv 2409.06211).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, cast

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from secateur._utils import distributed
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.data.texts import Corpus
from secateur.errors import InfeasibleError, InputError, UnsupportedError
from secateur.measure import distribution
from secateur.methods import blockwise
from secateur.recover.sparsity import merging
from secateur.score import hessian, hooks, random, routing, wanda
from secateur.select import allocate, clusters, ranking, weights
from secateur.subjects import Moe, Streamed, Transformer
from secateur.subjects.matrices import matrices
from secateur.subjects.transformer import blocks
from secateur.vocabulary import Budget, Cut, Result, Selection

CARD = {
    "title": "STUN: Structured-Then-Unstructured Pruning for Scalable MoE Pruning",
    "paper": "https://arxiv.org/abs/2409.06211",
    "cuts": "experts that behave like others (without experts: neurons), then single weights of what stays, to zeros",
    "recovers": "nothing is trained; experts may become the mean of those that they stand for",
    "extra": "", "family": "sparse",
    "parts": "experts: uniform=True",
    "offloaded": "no",
}  # fmt: skip

Distance = Literal["router", "together", "mixed"]
Rule = Literal["clusters", "usage", "soft", "saliency", "random"]
Model = Transformer | Streamed
Mixed = Moe | Streamed
Items = Sequence[Mapping[str, Tensor]]
Clusters = dict[int, list[list[int]]]
"""Layer -> the experts of each of its clusters."""
Chosen = dict[int, list[int]]
"""Layer -> the expert that stays of each cluster, ascending."""


@dataclass(frozen=True, slots=True)
class Distances:
    """What tells the experts of a layer apart."""

    distance: Distance = "router"
    """router (rows alone), together (counts alone), or mixed."""
    mix: Annotated[float, Ge(0)] = 1.0
    """Weight of the counts in the mixed distance; 1 in the official code."""
    normalise: bool = True
    """Divide the router's rows by its norm, so that one threshold fits all layers; the published mixed distance does
    not."""


@dataclass(frozen=True, slots=True)
class Outliers:
    """How OWL shares the weights that go out among the blocks."""

    spread: Annotated[float, Ge(0)] = 0.08
    """OWL's lambda: densities of blocks differ by at most twice as much."""
    times: Annotated[float, Gt(0)] = 5.0
    """OWL's M, what makes an outlier; the official code's default is 3."""


@dataclass(frozen=True, slots=True)
class Judging:
    """What the weights of the second stage are judged by."""

    routed: bool = False
    """Judge the weights of experts by |W_ij| ||X_j g||, where g is the share with which each token was sent to the
    expert (MoE-Pruner), in place of |W_ij| ||X_j||."""
    floor: Annotated[int, Ge(0)] = 1
    """Experts with fewer tokens are judged by the norms of all experts of their layer."""


def stun(
    subject: Transformer | Streamed,
    data: Corpus,
    budgets: Sequence[Budget],
    run: Run,
    *,
    structured: Annotated[float, Ge(0), Lt(1)] = 0.2,
    neurons: Annotated[float, Ge(0), Lt(1)] = 0.05,
    experts: Annotated[int, Ge(0)] = 0,
    uniform: bool = False,
    distances: Distances = Distances(distance="router", mix=1.0, normalise=True),
    kappa: Annotated[int, Ge(0)] = 3,
    choose: Rule = "clusters",
    seen: Annotated[int, Ge(1)] = 1000,
    method: Literal["owl", "wanda"] = "owl",
    outliers: Outliers = Outliers(spread=0.08, times=5.0),
    samples: Annotated[int, Ge(1)] = 128,
    length: Annotated[int, Ge(1)] = 128,
    judging: Judging = Judging(routed=False, floor=1),
    seed: int = 0,
    dry_run: bool = False,
) -> Iterator[Result]:
    """Merge experts that behave alike away, then zero single weights of those that stay.

    Per budget:

    1. distances between the experts of a layer, b_ij = -l1 ||W_i - W_j|| + l2 a_ij with its sign turned: W_i is a row
       of the router, a_ij counts the tokens that went to both. Rows take no forward pass, counts one, whatever E is;
    2. greedy clustering in each layer with a check of complete linkage, under one threshold for all layers that leaves
       the number of experts asked for, found by bisection; at least the router's top k stay in every layer;
    3. of each cluster the expert nearest to the mean of its weights stays, with its row of the router; in layers of at
       most `kappa` clusters it becomes the mean of the cluster, and so does its row;
    4. Wanda, with OWL's shares for each block, zeroes s2 = (S - s1) / (1 - s1) of the weights that are left, where S is
       the share of all weights that go and s1 what went with the experts.

    A model without experts loses a small share of its neurons in place of steps 1 to 3: those of
    the least ||W_j|| ||X_j||, where W_j is a column of the second FFN linear, as many in every layer.

    Args:
        subject: a mixture of experts, in memory or streamed from the disk, or a model without experts, in memory; it
            stays as it is. Streamed, experts are told apart by the router's rows alone.
        data: general text.
        budgets: weights=60%, of the matrices of all blocks; those of experts that are gone count as gone. Or
            pattern=2:4 for what is left by the first stage.
        run: where clusters, finished blocks and the states between blocks go.
        structured: share of all experts that go in the first stage; fewer where the budget does not ask for as much.
        neurons: share of the neurons of every layer that goes in the first stage of a model without experts, rounded
            down to multiples of 8; the paper has 5 % of its weights, by another pruner.
        experts: exactly as many stay over all layers, in place of `structured`; refused where no threshold gives them.
        uniform: as many experts in every layer, with a threshold for each, as engines that serve them expect.
        distances, outliers, judging: see these classes.
        kappa: clusters of a layer up to which they are averaged; the published command has 2.
        choose: what stays. For comparison, as many of each layer as by clusters: those with the highest usage, soft
            counts (the router's probabilities of all tokens summed up, SEER-MoE) or saliency (REAP), or random ones.
            Of neurons those by their product of norms, or random ones.
        seen: windows in which co-activation is counted, where it is asked for.
        method: owl, or wanda with one share for all blocks.
        samples: calibration windows of the second stage.
        length: tokens per window; 2048 in the paper.
        seed: of the choice of windows.
        dry_run: as a run; nothing is kept.

    Departures: the threshold goes through the distances themselves, with no start and no step; closed pairs are
    closed both ways; top k experts stay in every layer, which the official code does not see to. Where no threshold
    gives `structured` exactly, the next larger count stays. Both experts of a pair are equally near to their mean:
    the one with larger weights stays. Experts without tokens are pruned by their layer's norms, where the official
    code skips them, so that the budget is met. Weights are counted over the matrices of blocks, without embeddings
    and routers. The paper cuts models without experts by LLM Surgeon, which needs curvatures; here neurons go by
    Wanda's rule.
    """
    passes = int(distances.distance != "router" or choose in ("usage", "soft", "saliency"))
    check(subject, uniform, passes, experts=experts, choose=choose)
    windows, notes = blockwise.read_windows(subject, data, samples, length, seed=seed, together=False)
    whole = blocks.count(subject)
    held = blockwise.count_nonzero(subject)
    wanted = [weights.read_budget(budget, whole, "stun", held=held) for budget in budgets]
    mixed, dense = cast(Mixed, subject) if subject.family.experts else None, cast(Transformer, subject)
    if mixed is not None:
        count = partial(count_routes, mixed, data, choose, seen=seen, length=length, seed=seed)
        routes = run.tensors("routing", count) if passes else {}
        together = {index: routes.get(f"together.{index}") for index in mixed.mixtures()}
        tables = expert_distances(mixed, together, distances)
        worths = random.scores(mixed.units("experts"), seed=seed) if choose == "random" else routes
        passed = f"one pass over {int(routes['tokens'])} tokens" if passes else "no pass"
    else:
        worths = run.tensors("neurons", partial(neuron_worths, dense, windows, choose, seed=seed))

    for budget, (share, pattern) in zip(budgets, wanted, strict=True):
        most = whole if pattern else (1.0 - share) * whole
        slim: Model
        if mixed is not None:
            target = experts or count_kept(mixed, structured, most)
            decide = partial(
                choose_experts, mixed, tables, target, uniform=uniform, exact=bool(experts), worths=worths, rule=choose
            )
            first = run.json(f"experts-{target}", decide)
            clusters, chosen = ({int(i): rows for i, rows in first[key].items()} for key in ("clusters", "chosen"))
            slim, gone = keep_experts(mixed, clusters, chosen, kappa, run.folder(f"means-{target}"))
            what, told = "experts", [describe_experts(mixed, clusters), f"experts judged in {passed}"]
        else:
            slim, gone, target = drop_neurons(dense, worths, neurons, most)
            what, told = "neurons", [f"{target} neurons of all layers stay"]

        left = blocks.count(slim)
        # So many experts are the same for every budget: a later one that they can't meet is told now.
        for other, (goal, form) in zip(budgets, wanted, strict=True) if experts else ():
            weights.second_share(1.0 if form else 1.0 - goal, 1.0 - left / whole, other)
        rest = 1.0 - (0.0 if pattern else weights.second_share(1.0 - share, 1.0 - left / whole, budget))
        shares = [rest] * len(subject.layers())
        if method == "owl" and pattern is None and rest < 1.0:
            percents, sizes = run.json(f"outliers-{target}", partial(
                blockwise.measure_outliers, slim, windows, run.folder("outliers"), times=outliers.times,
                floor=judging.floor, routed=judging.routed,
            ))  # fmt: skip
            run.drop("outliers")
            shares = allocate.spread(percents, rest, outliers.spread, sizes=sizes)
        choosers = [weights.chooser(own, pattern) for own in shares]
        student, folder = slim.copy(), run.folder(f"blocks-{budget}")
        for block in blocks.visit(student, windows, folder):
            blockwise.prune_by_wanda(block, choosers[block.index], judging.floor, routed=judging.routed)

        zeros = blocks.receipt(slim, student)
        after = {**gone.after, "weights": zeros.after["weights"]}
        stages = run.json(f"kurtosis-{budget}", partial(kurtosis, before=subject, weights=student, **{what: slim}))
        means = ", ".join(f"{stage} {np.mean(list(layers.values())):.3f}" for stage, layers in stages.items())
        all_notes = (
            *notes,
            *gone.notes,
            *told,
            f"total sparsity {1 - after['weights'] / whole:.4f}, of it {1 - left / whole:.4f} by {what}",
            f"kurtosis of {'experts' if subject.family.experts else 'blocks'}: {means}",
            *hessian.describe_starved(blocks.count_starved(folder), judging.floor),
        )
        cut = Cut({**gone.removed, **zeros.removed}, {**gone.before, "weights": float(held)}, after, all_notes)
        yield Result(str(budget), student, cut, {**slim.units(what).cost(), "weights": after["weights"]}, None, ())
        del slim, student  # or it would be held beside the next one


def check(subject: Model, uniform: bool, passes: int, *, experts: int = 0, choose: Rule = "clusters") -> None:
    """Raise a one-line error for a model or options that stun can't work with."""
    if not subject.family.experts:
        if why := subject.layout.whole.get("experts"):
            raise UnsupportedError(f"stun cuts experts, and those of {subject.family.model_type} stay: {why}; use owl")
        if isinstance(subject, Streamed):
            raise UnsupportedError("without experts, stun cuts neurons, in memory: leave stream out, or use owl")
        if experts or uniform or passes:
            raise InputError(f"experts, uniform, distance and choose={choose} are of experts, and this model has none")
    if passes and isinstance(subject, Streamed):
        raise InputError("where tokens go is counted in memory: with stream, leave distance at router, take clusters")
    if subject.layout.expert_groups > 1 and not uniform:
        raise UnsupportedError("this router chooses groups of experts first, which must stay equal: give uniform=True")
    if subject.family.experts and isinstance(subject, Transformer) and subject.whole and not uniform:
        raise UnsupportedError("layers of a part of another model must keep as many experts each: give uniform=True")


# ------------------------------------------------------------------------------------------------ without experts


def neuron_worths(subject: Transformer, windows: Items, choose: Rule, *, seed: int) -> dict[str, Tensor]:
    """Site -> [count]: Wanda's worth of whole neurons, or chance where that is the rule."""
    if choose == "random":
        return random.scores(subject.units("neurons"), seed=seed)
    readers = {site: reader for site, reader in subject.consumers().items() if site.endswith(".neurons")}
    with hooks.sound(subject.model, subject.layers()):
        return wanda.units(subject.forward, subject.model, windows, readers)


def drop_neurons(
    subject: Transformer, worths: Mapping[str, Tensor], share: float, most: float
) -> tuple[Model, Cut, int]:
    """(a copy without `share` of the neurons of every layer, the receipt, how many neurons stay in all).

    Widths are multiples of 8, rounded up, and at most `most` weights go.
    """
    units = subject.units("neurons")
    none = units.cost({site.name: np.zeros(site.count, dtype=bool) for site in units.free()})
    share = min(share, most / (units.cost()["params"] - none["params"]))
    counts = {site.name: min(site.count, 8 * -(-int((1 - share) * site.count) // 8)) for site in units.free()}
    return *subject.cut(ranking.by_counts(units, worths, counts)), sum(counts.values())


# ------------------------------------------------------------------------------------------------- which experts stay


def count_routes(subject: Mixed, data: Corpus, choose: Rule, *, seen: int, length: int, seed: int) -> dict[str, Tensor]:
    """Where tokens go, in one pass: "together.LAYER" [E, E] counts, the "tokens", and what the rule `choose` needs."""
    assert isinstance(subject, Moe)
    items, _ = texts.windows(data, subject.tokenizer, seen, length, seed=seed)
    mixtures = subject.mixtures()
    layers = {f"layers.{index}.experts": mixture.experts for index, mixture in mixtures.items()}
    with hooks.sound(subject.model, subject.layers()):
        routers = dict(zip(layers, subject.routers(), strict=True))
        routes = routing.collect_for(choose, subject.forward, subject.model, items, layers, routers)
    tables = {f"together.{index}": route.together for index, route in zip(mixtures, routes.values(), strict=True)}
    tables["tokens"] = torch.tensor([max(route.tokens for route in routes.values())])
    return tables | {site: worth for site, route in routes.items() if (worth := route.worth(choose)) is not None}


def expert_distances(
    subject: Mixed,
    together: Mapping[int, Tensor | None],
    how: Distances = Distances(),
) -> dict[int, Tensor]:
    """Layer -> [E, E], the distances between its experts; step 1."""
    distances = {}
    for index, mixture in subject.mixtures().items():
        with subject.resident(subject.layers()[index]):
            rows, counts = mixture.router.weight, together.get(index)
        assert isinstance(rows, Tensor)
        if how.distance == "router":
            distances[index] = routing.row_distance(rows, normalised=how.normalise)
        elif how.distance not in ("together", "mixed") or counts is None:
            raise InputError(f"distance={how.distance!r}: give router, together or mixed")
        elif how.distance == "together":
            distances[index] = routing.meeting_distance(counts)
        else:
            distances[index] = routing.mixed_distance(rows, counts, how.mix, normalised=how.normalise)
    return distances


def choose_experts(
    subject: Mixed,
    distances: Mapping[int, Tensor],
    target: int,
    *,
    uniform: bool = False,
    exact: bool = True,
    worths: Mapping[str, Tensor] | None = None,
    rule: Rule = "clusters",
) -> dict[str, object]:
    """The clusters of each layer, and the expert that stays of each (steps 2 and 3), as plain data.

    With another `rule`, the experts of highest worth stay, as many as there are clusters, and nothing is merged.
    """
    units = subject.units("experts")
    least = max(units[f"layers.{index}.experts"].minimum for index in distances)
    threshold: float | None = None
    if uniform:
        groups = equal_clusters(subject, distances, target, least, exact=exact)
    else:
        threshold, found = clusters.shared_threshold(list(distances.values()), target, least=least, exact=exact)
        groups = {i: [m.tolist() for m in layer.members()] for i, layer in zip(distances, found, strict=True)}
    if rule == "clusters":
        chosen, mixtures = dict[int, list[int]](), subject.mixtures()
        for index, members in groups.items():
            with subject.resident(subject.layers()[index]):
                chosen[index] = merging.representatives(list(mixtures[index].experts.parameters()), members)
    else:
        counts = {f"layers.{index}.experts": len(members) for index, members in groups.items()}
        best = ranking.by_counts(units, {site: torch.as_tensor((worths or {})[site]) for site in counts}, counts).keep
        chosen = {index: np.flatnonzero(best[f"layers.{index}.experts"]).tolist() for index in groups}
        groups = {index: [[expert] for expert in stay] for index, stay in chosen.items()}
    # In the order in which a cut leaves the experts that stay.
    order = {index: np.argsort(stay) for index, stay in chosen.items()}
    groups = {index: [members[place] for place in order[index]] for index, members in groups.items()}
    chosen = {index: [stay[place] for place in order[index]] for index, stay in chosen.items()}
    return {"threshold": threshold, "clusters": groups, "chosen": chosen}


def equal_clusters(
    subject: Mixed, distances: Mapping[int, Tensor], target: int, least: int, *, exact: bool
) -> Clusters:
    """As many clusters in every layer, `target` in all: rounded up, or refused where that is not `exact`."""
    parts, layers = subject.layout.expert_groups, len(distances)
    each, odd = divmod(target, layers)
    if odd and exact:
        raise InfeasibleError(
            f"experts={target} can't be the same in {layers} layers: ask for a multiple of {layers}",
            float(each * layers),
        )
    each = max(least, -(-(each + bool(odd)) // parts) * parts)
    fewest = min(len(table) for table in distances.values())
    if exact and (each * layers != target or each > fewest):
        nearest = min(each, fewest) * layers
        raise InfeasibleError(
            f"experts={target} can't be the same in {layers} layers, which hold {fewest} each and keep at "
            f"least {least}, in {parts} equal groups: ask for such as {nearest}",
            float(nearest),
        )
    return {index: clusters.cluster_layer(table, each, parts) for index, table in distances.items()}


def keep_experts(
    subject: Mixed, groups: Clusters, chosen: Chosen, kappa: int, folder: Path | None = None
) -> tuple[Mixed, Cut]:
    """A copy with the chosen experts alone; where at most `kappa` stay in a layer, with the means of their clusters.

    Blocks with means of a streamed model go to `folder`.
    """
    keep = {}
    for index, mixture in subject.mixtures().items():
        mask = np.zeros(mixture.count, dtype=bool)
        mask[chosen[index]] = True
        keep[f"layers.{index}.experts"] = mask
    small, cut = subject.cut(Selection(keep))
    student = cast(Mixed, small)
    mixtures = student.mixtures()
    for index, old in subject.mixtures().items():
        path = subject.layers()[index]
        if len(groups[index]) > kappa:
            continue  # the cut has left every chosen expert and its row as they were
        with subject.resident(path), student.resident(path):
            for theirs, ours in ((old.experts, mixtures[index].experts), (old.router, mixtures[index].router)):
                merging.fill(theirs, ours, groups[index], chosen[index], kappa=kappa)
            if isinstance(student, Streamed) and folder is not None:
                file = folder / f"{index}.safetensors"
                distributed.by_first(partial(student.store, path, file))
                student.recall(path, file)
    return student, cut


# ----------------------------------------------------------------------------------------------------------- counts


def count_kept(subject: Mixed, structured: float, most: float) -> int:
    """Experts that stay in all where `structured` of them are to go, and with them `most` weights at most."""
    mixtures = subject.mixtures().values()
    total = sum(mixture.count for mixture in mixtures)
    largest = max(sum(p[0].numel() for p in mixture.experts.parameters()) for mixture in mixtures)
    return total - min(round(structured * total), total, int(most / largest + 1e-9))


def describe_experts(subject: Mixed, groups: Clusters) -> str:
    """How many experts stay, in all and by layer."""
    total = sum(mixture.count for mixture in subject.mixtures().values())
    by_layer = ", ".join(str(len(clusters_of)) for clusters_of in groups.values())
    return f"{sum(map(len, groups.values()))} of {total} experts stay, by layer: {by_layer}"


def kurtosis(**stages: Model) -> dict[str, dict[str, float]]:
    """Stage -> layer -> kurtosis of the weights that are not zero: how well they bear to lose more.

    Of all experts of the layer, or of all its matrices where no layer has experts. It is the paper's reason for the
    order of the stages.
    """
    table: dict[str, dict[str, float]] = {}
    for stage, subject in stages.items():
        table[stage] = {}
        mixtures = cast(Mixed, subject).mixtures() if subject.family.experts else {}
        for index, path in enumerate(subject.layers()):
            if mixtures and index not in mixtures:
                continue
            with subject.resident(path):
                held = [matrix.weight for matrix in matrices(subject.model, [path]).values()]
                own = list(mixtures[index].experts.parameters()) if mixtures else held
                table[stage][str(index)] = distribution.kurtosis(own)
    return table
