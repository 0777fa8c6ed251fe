"""Select by rank: the units with the highest scores stay.

Every function here walks one chain of ever smaller selections, so a larger budget keeps a superset of a smaller
one. Within a site the chain visits the kept counts that the site allows (`multiple`, `minimum`, `fixed`, equally
many per `group`, `coupled` units together); ties keep the lower index.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal

import numpy as np

from secateur.errors import BudgetError, InfeasibleError, InputError, NumericalError
from secateur.select.arrays import as_numpy, mask_like
from secateur.vocabulary import Array, Budget, Scores, Selection, Site, Units, write_enough

__all__ = [
    "Normalise",
    "Scope",
    "by_budget",
    "by_counts",
    "by_shares",
    "even_out",
    "fewest",
    "fill_up",
    "fix_best",
    "threshold",
]

Normalise = Literal["l2", "max", "mean", "zscore", "rank"]
Scope = Literal["global", "kind", "local"] | Mapping[str, str]


def by_counts(units: Units, scores: Scores, counts: Mapping[str, int]) -> Selection:
    """Keep exactly `counts` units: site name, or kind of site (for every free site of that kind) -> how many.

    A site's own name goes before its kind. Sites not named stay whole.

    Raises `InfeasibleError`, with the nearest count that can be kept, where the site's rules forbid the count;
    `InputError` for a name that is no free site or kind; `NumericalError` for scores that are not finite.
    """
    free = {site.name: site for site in units.free()}
    unknown = set(counts) - set(free) - {site.kind for site in free.values()}
    if unknown:
        raise InputError(f"counts name {sorted(unknown)[0]!r}, which is no free site or kind: use {_listing(free)}")
    keep: dict[str, Array] = {}
    for name, site in free.items():
        wanted = counts.get(name, counts.get(site.kind))
        if wanted is None:
            continue
        chain = _chain(site, _scores_of(site, scores))
        states = np.flatnonzero(chain.kept == wanted)
        if not states.size:
            nearest = int(chain.kept[np.argmin(np.abs(chain.kept - wanted))])
            raise InfeasibleError(
                f"{name} can't keep {wanted} of {site.count} units ({_rules(site)}): the nearest is {nearest}", nearest
            )
        keep[name] = mask_like(chain.step >= states[0], scores[name])
    return Selection(keep, _in_numpy(units).cost({name: as_numpy(mask, bool) for name, mask in keep.items()}))


def fix_best(units: Units, scores: Scores, name: str, needed: Collection[Sequence[int]]) -> Units:
    """`units` where the best of each `needed` set of units of the site `name` is fixed: one of each set must stay.

    By rank it is the last of its set to leave in any case, so that no other selection is lost.
    """
    if not needed:
        return units
    site = units[name]
    column = _scores_of(site, scores)
    fixed = np.zeros(site.count, bool) if site.fixed is None else as_numpy(site.fixed, bool).copy()
    for members in map(list, needed):
        if not fixed[members].any():
            fixed[members[int(np.argmax(column[members]))]] = True
    return replace(units, sites={**units.sites, name: replace(site, fixed=fixed)})


def by_shares(units: Units, scores: Scores, shares: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Site -> [count] booleans of the best units, at most this share of them, or the fewest that the site allows."""
    keep = dict[str, np.ndarray]()
    for name, share in shares.items():
        site = units[name]
        chain = _chain(site, _scores_of(site, scores))
        allowed = chain.kept[chain.kept <= share * site.count + 1e-9]
        wanted = allowed.max() if allowed.size else chain.kept.min()
        keep[name] = chain.step >= np.flatnonzero(chain.kept == wanted)[0]
    return keep


def even_out(
    units: Units, scores: Scores, keep: Mapping[str, Array], budget: Budget | str, held: Collection[str] = ()
) -> Selection:
    """The same with sites of one kind and size keeping equally many units, as many as the budget lets all of them keep.

    Each group of such sites starts from the one that keeps least. Then all groups rise to the largest share of their
    units that fits in common; a group whose next step does not fit stays, and the others rise on. In the end one more
    step of any group would not fit.

    keep: site -> [count] booleans, within the budget. held: sites whose groups don't rise. Sites whose rules have no
    such count in common stay as they are.
    """
    masks = {name: as_numpy(mask, bool) for name, mask in keep.items()}
    alike: dict[tuple[str, int], dict[str, _Chain]] = {}
    for site in units.free():
        if site.name in keep:
            alike.setdefault((site.kind, site.count), {})[site.name] = _chain(site, _scores_of(site, scores))
    groups = list[_Group]()
    for (_, count), chains in alike.items():
        kept = np.unique(reduce(np.intersect1d, (chain.kept for chain in chains.values())))  # ascending
        within = np.flatnonzero(kept <= min(masks[name].sum() for name in chains))
        if within.size:
            groups.append(_Group(chains, kept, kept / count, int(within[-1])))
    return _rise(units, keep, groups, budget, held)


def fill_up(
    units: Units, scores: Scores, keep: Mapping[str, Array], budget: Budget | str, held: Collection[str] = ()
) -> Selection:
    """The same with more units, where the budget has room left: one site whose units go in large steps leaves some.

    All sites rise to the largest share of their units that fits in common; one whose next step does not fit stays, and
    the others rise on. In the end one more step of any site would not fit.

    keep: site -> [count] booleans, within the budget, of the best units of each. held: sites that don't rise.
    """
    groups = list[_Group]()
    for site in units.free():
        if site.name in keep:
            chain = _chain(site, _scores_of(site, scores))
            kept = np.unique(chain.kept)
            start = int(np.searchsorted(kept, as_numpy(keep[site.name], bool).sum()))
            groups.append(_Group({site.name: chain}, kept, kept / site.count, start))
    return _rise(units, keep, groups, budget, held)


def _rise(
    units: Units, keep: Mapping[str, Array], groups: Sequence[_Group], budget: Budget | str, held: Collection[str]
) -> Selection:
    """`keep` with the groups raised in common, see `_raise_in_common`."""
    plain = _in_numpy(units)
    limits = Budget.parse(budget).absolute(plain.cost())
    masks = {name: as_numpy(mask, bool) for name, mask in keep.items()}

    def fits(places: Sequence[int]) -> bool:
        chosen = dict(masks)
        for group, place in zip(groups, places, strict=True):
            chosen |= group.masks(place)
        cost = plain.cost(chosen)
        return all(cost[measure] <= limit for measure, limit in limits.items())

    places = _raise_in_common(groups, {n for n, group in enumerate(groups) if not set(held) & set(group.chains)}, fits)
    for group, place in zip(groups, places, strict=True):
        masks |= group.masks(place)
    return Selection({name: mask_like(mask, keep[name]) for name, mask in masks.items()}, plain.cost(masks))


def by_budget(
    units: Units,
    scores: Scores,
    budget: Budget | str,
    *,
    scope: Scope = "global",
    normalise: Normalise | None = None,
    measure: Callable[[Mapping[str, Array]], Mapping[str, float]] | None = None,
    given: Mapping[str, Array] | None = None,
) -> Selection:
    """The largest selection, in order of score, whose cost is within the budget in every measure.

    Units leave lowest score first until `Units.cost` fits. The chain does not depend on the budget, so a larger
    budget keeps a superset. A unit that would still fit is not taken once a better one did not: use
    `knapsack` for the exact optimum.

    scope:     which sites share one ranking, a pool; all pools lose the same share of their units. "global": all free
               sites; "kind": those of one kind; "local": each site alone; or a mapping, site -> name of its pool
               (sites that it does not name are alone)
    normalise: make scores of different sites comparable, by the site's l2 norm, largest or mean absolute score,
               to mean 0 and deviation 1 ("zscore"), or to ranks from 0 to 1
    measure:   site -> [count] booleans to what really stays, for costs that do not add up (tokens of a page, whose
               tags vanish with what they hold). Units go on leaving, one step at a time, until that fits too, or come
               back while it does
    given:     site -> [count] booleans of sites that are chosen already, whose cost counts

    Raises `InfeasibleError` (`reachable` in the measure's own unit) when even the smallest selection costs more.
    """
    budget = Budget.parse(budget)
    if not budget.limits:
        raise BudgetError(f"budget {budget.brief()} limits no cost: n:m patterns are made by pattern.n_of_m")
    plain = _in_numpy(units)
    limits = budget.absolute(plain.cost())
    asked = replace(plain, terms=tuple(term for term in plain.terms if term.measure in limits))
    fixed = {name: as_numpy(mask, bool) for name, mask in (given or {}).items()}
    sites = [site for site in units.free() if site.name not in fixed]
    chains = [_chain(site, _normalise(_scores_of(site, scores), normalise)) for site in sites]
    if isinstance(scope, Mapping):
        _check_names(units, scope, "scope")
    order = _removal_order(sites, chains, scope)

    def masks(removals: int) -> dict[str, np.ndarray]:
        states = np.bincount(order[:removals], minlength=len(sites))
        return fixed | {s.name: chain.step >= state for s, chain, state in zip(sites, chains, states, strict=True)}

    def excess(removals: int) -> list[tuple[str, float]]:
        cost = asked.cost(masks(removals))
        return [(measure, cost[measure]) for measure, limit in limits.items() if cost[measure] > limit]

    low, high = 0, len(order)  # fewest and most steps that may be needed
    for name, least in excess(high):
        raise InfeasibleError(
            f"budget {budget.brief()} can't be met: {name} can go down to {write_enough(least)}, the limit is "
            f"{limits[name]:.6g}",
            least,
        )
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if excess(middle) else (low, middle)
    keep = masks(high)
    spent = plain.cost(keep)
    if measure is not None:

        def measure_cut(removals: int) -> tuple[dict[str, np.ndarray], dict[str, float], list[str]]:
            keep = masks(removals)
            spent = {**plain.cost(keep), **measure(keep)}
            return keep, spent, [name for name, limit in limits.items() if spent[name] > limit]

        keep, spent, over = measure_cut(high)
        while not over and high:
            more = measure_cut(high - 1)
            if more[2]:
                break
            keep, spent, over = more
            high -= 1
        while over and high < len(order):
            high += 1
            keep, spent, over = measure_cut(high)
        if over:
            raise InfeasibleError(
                f"budget {budget.brief()} can't be met: {over[0]} was measured at "
                f"{write_enough(spent[over[0]])} with the fewest units, the limit is {limits[over[0]]:.6g}",
                spent[over[0]],
            )
    return Selection({name: mask_like(keep[name], scores[name]) for name in keep}, spent, budget)


def threshold(units: Units, scores: Scores, value: float | Mapping[str, float]) -> Selection:
    """Keep every unit that scores at least `value`, and as few others as the sites' rules demand.

    value: one for all, or site -> its own (a threshold per group of layers); sites not named stay whole.
    """
    if isinstance(value, Mapping):
        _check_names(units, value, "value")
    keep: dict[str, Array] = {}
    for site in units.free():
        least = value.get(site.name, -np.inf) if isinstance(value, Mapping) else value
        column = _scores_of(site, scores)
        chain = _chain(site, column)
        state = min(chain.step[column >= least].min(initial=len(chain.value)), len(chain.value))
        keep[site.name] = mask_like(chain.step >= state, scores[site.name])
    return Selection(keep, _in_numpy(units).cost({name: as_numpy(mask, bool) for name, mask in keep.items()}))


def fewest(units: Units, floors: Mapping[str, int] | None = None) -> Selection:
    """As few units of every free site as its rules allow, and `floors` (site -> count), whichever: what none undercuts.

    The first ones stay; it is the count that matters, as what a budget can't go below whatever the scores.
    """
    keep = {}
    for site in units.free():
        floor = max(site.minimum, min(site.count, (floors or {}).get(site.name, 0)))
        chain = _chain(replace(site, minimum=floor), np.zeros(site.count))
        keep[site.name] = chain.step >= len(chain.value)
    return Selection(keep, _in_numpy(units).cost(keep))


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Sites that keep equally many units: the counts that they have in common, and the one they start from."""

    chains: Mapping[str, _Chain]
    kept: np.ndarray  # [levels], ascending
    shares: np.ndarray  # [levels]: of the units of a site
    start: int

    def masks(self, place: int) -> dict[str, np.ndarray]:
        """Site -> [count] booleans of the units that stay at a level."""
        count = self.kept[place]
        return {name: one.step >= np.flatnonzero(one.kept == count)[0] for name, one in self.chains.items()}


def _raise_in_common(
    groups: Sequence[_Group], rising: Collection[int], fits: Callable[[Sequence[int]], bool]
) -> list[int]:
    """The level of each group, of which those that are `rising` have risen together as long as it fits."""
    places = [group.start for group in groups]
    active = set(rising)
    while active:
        shares = np.unique(np.concatenate([groups[n].shares for n in active]))
        low, high = 0, len(shares)  # below all levels it fits
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if fits(_reach(groups, places, active, shares[middle])) else (low, middle)
        places = _reach(groups, places, active, shares[low - 1]) if low else places
        for n in sorted(active):
            if places[n] + 1 == len(groups[n].kept) or not fits([*places[:n], places[n] + 1, *places[n + 1 :]]):
                active.remove(n)
        if active:  # several can take a step, though not all at once
            lowest = min(active, key=lambda n: groups[n].shares[places[n] + 1])
            places[lowest] += 1
    return places


def _reach(groups: Sequence[_Group], places: Sequence[int], active: Collection[int], share: float) -> list[int]:
    """The levels where the `active` groups keep at most this share, or what they have already."""
    tops = {n: int(np.searchsorted(groups[n].shares, share, side="right")) - 1 for n in active}
    return [max(place, tops.get(n, place)) for n, place in enumerate(places)]


@dataclass(frozen=True, slots=True, eq=False)
class _Chain:
    """The ever smaller selections of one site: state 0 is whole, step i leads from state i to state i + 1."""

    step: np.ndarray  # [count]: the step at which a unit goes; the number of steps if it never does
    kept: np.ndarray  # [steps + 1]: units kept in each state
    value: np.ndarray  # [steps]: mean score of what goes at each step, never falling


def _chain(site: Site, scores: np.ndarray) -> _Chain:
    """Order a site's units by score and find the kept counts its rules allow."""
    count = site.count
    together = np.arange(count) if site.coupled is None else as_numpy(site.coupled, None)
    first, cluster, size = np.unique(together, return_index=True, return_inverse=True, return_counts=True)[1:]
    group = (
        np.zeros(count, int) if site.group is None else np.unique(as_numpy(site.group, None), return_inverse=True)[1]
    )
    groups = int(group.max(initial=0)) + 1
    if (group != group[first][cluster]).any():
        raise InputError(f"{site.name}: coupled units lie in different groups; couple units inside a group only")
    fixed = np.zeros(count, bool) if site.fixed is None else as_numpy(site.fixed, bool)
    held = np.bincount(cluster, fixed, len(size)) > 0
    worth = np.bincount(cluster, scores, len(size)) / size

    # Best first inside each group: what is fixed, then by score, then by index.
    order = np.lexsort((first, -worth, ~held, group[first]))
    filled = np.cumsum(size[order])
    starts = np.concatenate([[0], np.cumsum(np.bincount(group, minlength=groups))])
    place = np.empty(len(size), int)  # how full its group is once a cluster is in
    place[order] = filled - starts[group[first]][order]
    reachable = (np.append(0, place[group[first] == g]) for g in range(groups))
    per_group = reduce(np.intersect1d, reachable, np.arange(count + 1))
    must = max((int(size[held & (group[first] == g)].sum()) for g in range(groups)), default=0)
    totals = per_group * groups
    allowed = (per_group >= must) & (totals % site.multiple == 0) & (totals >= site.minimum) & (totals < count)
    levels = per_group[allowed][::-1]

    step = len(levels) - np.searchsorted(levels[::-1], place[cluster])
    gone = np.bincount(step, minlength=len(levels) + 1)[: len(levels)]
    sums = np.bincount(step, scores, len(levels) + 1)[: len(levels)]
    value = np.maximum.accumulate(sums / np.maximum(gone, 1)) if len(levels) else sums
    return _Chain(step, np.append(count, levels * groups), value)


def _removal_order(sites: Sequence[Site], chains: Sequence[_Chain], scope: Scope) -> np.ndarray:
    """The site that takes its next step, for all steps of all sites. [steps] indices of sites."""
    owner = np.repeat(np.arange(len(sites)), [len(chain.value) for chain in chains])
    if not len(owner):
        return owner
    value = np.concatenate([chain.value for chain in chains])
    leaving = np.concatenate([-np.diff(chain.kept) for chain in chains])
    pools = {"global": lambda site: "", "kind": lambda site: site.kind, "local": lambda site: site.name}
    if isinstance(scope, Mapping):
        names = [f"pool {scope[site.name]}" if site.name in scope else f"site {site.name}" for site in sites]
    elif scope in pools:
        names = [pools[scope](site) for site in sites]
    else:
        raise InputError(f"scope {scope!r} is not one of {', '.join(pools)}, nor a mapping from sites to pools")
    pool = np.unique(names, return_inverse=True)[1][owner]
    # Later sites go first among equals, so that the lower index stays; a stable sort keeps each site's own order.
    rank = np.lexsort((-owner, value, pool))
    share = np.empty(len(owner))
    for p in np.unique(pool):
        members = rank[pool[rank] == p]
        # Of all units of the pool, not of those that may go: where rules keep half of a site, a half is all it loses.
        share[members] = np.cumsum(leaving[members]) / sum(sites[index].count for index in np.unique(owner[members]))
    return owner[rank[np.argsort(share[rank], kind="stable")]]


def _check_names(units: Units, named: Mapping[str, object], what: str) -> None:
    unknown = sorted(set(named) - set(units.sites))
    if unknown:
        raise InputError(f"{what} names {unknown[0]!r}, which is no site: use the names of units()")


def _scores_of(site: Site, scores: Scores) -> np.ndarray:
    if site.name not in scores:
        raise InputError(f"{site.name} has no scores: score it, or freeze it with Units.only")
    column = as_numpy(scores[site.name])
    if column.shape != (site.count,):
        raise InputError(f"{site.name} has {site.count} units, but scores of shape {column.shape}: give one per unit")
    if not np.isfinite(column).all():
        bad = int(np.flatnonzero(~np.isfinite(column))[0])
        raise NumericalError(f"the score of unit {bad} of {site.name} is {column[bad]}: scores must be finite")
    return column


def _normalise(scores: np.ndarray, how: Normalise | None) -> np.ndarray:
    if how is None or not scores.size:
        return scores
    if how == "rank":
        return np.argsort(np.lexsort((-np.arange(scores.size), scores))) / max(scores.size - 1, 1)
    if how == "zscore":
        return np.asarray((scores - scores.mean()) / (scores.std() or 1.0))
    sizes = {"l2": np.linalg.norm(scores), "max": np.abs(scores).max(), "mean": np.abs(scores).mean()}
    if how not in sizes:
        raise InputError(f"normalise {how!r} is not one of l2, max, mean, zscore, rank")
    return np.asarray(scores / (float(sizes[how]) or 1.0))


def _in_numpy(units: Units) -> Units:
    """The same units with NumPy columns, so that costs add up in double precision and masks of one library fit."""
    sites = {
        name: replace(
            site,
            cost={measure: as_numpy(column) for measure, column in site.cost.items()},
            table={measure: as_numpy(table) for measure, table in site.table.items()},
            owner=(site.owner[0], as_numpy(site.owner[1], np.int64)) if site.owner else None,
        )
        for name, site in units.sites.items()
    }
    return replace(units, sites=sites)


def _rules(site: Site) -> str:
    rules = [f"at least {site.minimum}"]
    if site.multiple > 1:
        rules.append(f"multiples of {site.multiple}")
    if site.group is not None:
        rules.append(f"equally many in each of {len(np.unique(as_numpy(site.group, None)))} groups")
    if site.coupled is not None:
        rules.append("coupled units together")
    if site.fixed is not None:
        rules.append(f"{int(as_numpy(site.fixed, bool).sum())} fixed")
    return ", ".join(rules)


def _listing(names: Mapping[str, Site]) -> str:
    kinds = sorted({site.kind for site in names.values()})
    return ", ".join(kinds) or "none: every site is frozen"
