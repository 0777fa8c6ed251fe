"""`secateur.prune`: any PyTorch network made smaller in one call, without training, and without data if need be."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal, cast

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur._utils import devices, modes, plugins
from secateur.errors import InfeasibleError, InputError, SecateurError, UnsupportedError
from secateur.methods.cutting import cut_with_retries
from secateur.score import activation, gradient, magnitude, random, similarity
from secateur.select import ranking
from secateur.select.arrays import as_numpy
from secateur.subjects.network import files, parts, segments
from secateur.subjects.network.opening import NetworkSource, open_network
from secateur.subjects.network.recording import Example
from secateur.subjects.network.traced import Traced, open_traced
from secateur.vocabulary import Budget, Cut, Selection, Units, parse_list

__all__ = [
    "Pruned",
    "Scope",
    "Scorer",
    "data_needed",
    "make_scorer",
    "prune",
    "prune_subject",
    "scope_of",
    "share_out",
    "shares_of",
]

Score = Callable[..., Mapping[str, Tensor]]
Loss = Callable[[nn.Module, Any], Tensor]
Scope = Literal["local", "kind", "global", "isomorphic"] | Mapping[str, str]

_OF_WEIGHTS: dict[str, Callable[[Traced], Mapping[str, Tensor]]] = {
    "magnitude": lambda subject: magnitude.coupled_norm(subject.slices()),
    "l1": lambda subject: magnitude.coupled_norm(subject.slices(), p=1, normalise=False),
    "l2": lambda subject: magnitude.coupled_norm(subject.slices(), normalise=False),
    "batch_norm": lambda subject: magnitude.batch_norm(subject.model, subject.slices()),
    "geometric_median": lambda subject: similarity.geometric_median(subject.slices()),
}
_OF_ACTIVATIONS: dict[str, Callable[..., Mapping[str, Tensor]]] = {
    "activation": activation.channels,
    "nonzero": partial(activation.channels, what="nonzero"),
}
_OF_GRADIENTS: dict[str, Callable[..., Mapping[str, Tensor]]] = {
    "taylor": gradient.taylor,
    "taylor2": partial(gradient.taylor, order=2),
    "fisher": gradient.fisher,
    "cosine": lambda *given: gradient.cosine(given[-1], gradient.mean(*given)),
    "dhspg": lambda *given: gradient.dhspg(given[-1], gradient.mean(*given)),
    "hesso": lambda *given: gradient.hesso(given[-1], gradient.mean(*given)),
}


class Pruned(tuple[nn.Module, Cut]):
    """What `prune` gives: the pair (model, cut), and as `subject` the smaller network to save, export or prune again.

    small, cut = secateur.prune(network, image)
    result = secateur.prune(network, image)
    result.subject.save("small")
    again = secateur.prune(result.subject, budget="channels=50%")
    """

    subject: Traced

    def __new__(cls, subject: Traced, cut: Cut) -> Pruned:
        """The pair of the subject's network and the receipt."""
        result = super().__new__(cls, (subject.model, cut))
        result.subject = subject
        return result

    def __repr__(self) -> str:
        return f"Pruned({self.subject!r}, {self.cut!r})"

    def _repr_html_(self) -> str:
        return self.subject._repr_html_() + self.cut._repr_html_()

    @property
    def model(self) -> nn.Module:
        """The smaller network, which may be trained in place; `subject` speaks of the same one."""
        return self[0]

    @property
    def cut(self) -> Cut:
        """The receipt."""
        return self[1]


def prune(
    model: NetworkSource,
    example_inputs: object = None,
    budget: Budget | str = "channels=50%",
    score: str | Score = "magnitude",
    *,
    batches: Iterable[Any] | None = None,
    loss: Loss | None = None,
    multiple: int | None = None,
    protect: Iterable[str] = (),
    shares: Mapping[str, float] | None = None,
    scope: Scope = "local",
    normalise: ranking.Normalise | None = None,
    seed: int = 0,
    offsets: bool = False,
    part: str | None = None,
) -> Pruned:
    """A smaller copy of `model`, and the receipt of what went; `model` stays as it is.

    Args:
        model: any network that runs on the inputs, the `subject` of an earlier result, "file.py:function" that builds
            one, or the folder of a saved cut.
        example_inputs: a tensor (one positional input), a tuple (positional), or a dict (keywords); of all but a
            network those that come along, if None.
        budget: how much may stay, in channels, params, bytes or flops.
        score: how much a unit is worth keeping. From weights alone: "magnitude" (the norm of all weights that go with
            a unit, as a share of its site's mean), "l1", "l2" (norms as they are), "batch_norm", "geometric_median",
            "random". From `batches`: "activation", "nonzero". From `batches` and `loss`: "taylor", "taylor2",
            "fisher", "cosine", "dhspg", "hesso". Or a function, also as "file.py:function", from the opened subject
            (and `batches`, if they are given) to one score per unit of each site; higher means keep.
        batches: what to measure scores on; anything that `loss` takes. Without `loss`, a batch is called as the
            example inputs are.
        loss: (model, batch) -> mean loss of the batch.
        multiple: kept channels are multiples of this. None: of 8, which run fast, in sites of 64 channels or more; of 1
            elsewhere, and where no such cut meets the budget.
        protect: modules, parameters or sites that stay whole, by name or pattern ("layer4.*").
        shares: which share of its units a site keeps, by names or patterns of sites and modules, as
            {"layer4.*": 0.25}; the last that fits counts, and what the budget leaves is for all others.
        scope: which sites share one ranking. "local": every site loses the same share, and where one can only go in
            large steps, the others keep what that leaves of the budget; "kind", "global": the weakest of a kind, or
            of all, go; "isomorphic": the weakest among sites of equal structure go; or a mapping from
            sites to names of pools, sites not named standing alone.
        normalise: make scores of different sites comparable first, by the site's norm ("l2"), "max", "mean",
            "zscore" or "rank".
        seed: of random scores.
        offsets: fold the constants that channels leave behind, at a batch norm's scale of 0, into what reads them.
        part: cut this part of the model alone, such as the vision_tower or the projector of one that reads images and
            texts: the budget is of the part, what it takes and gives stays as wide as it is, and the result is the
            whole model with the smaller part in its place. `batches` are what the part gets.

    The cut is proved on the example inputs: its outputs equal those of the original with the same units silenced. What
    can't be cut, or has no score of this kind, stays, and the receipt's notes say why. Raises `ModelError` for a model
    that can't run on the inputs, `UnsupportedError` where nothing can go, `InfeasibleError` for a budget below the
    floor or a cut that would change nothing, `InputError` for a score that lacks what it needs.
    """
    budget = Budget.parse(budget)
    segments.refuse(budget)
    rate = make_scorer(score, batches, loss, seed)
    # What costs passes over data is not to be done again and again for cuts that fail: try them first.
    if part is not None:
        subject = parts.open_part(model, part, example_inputs)
        subject.protect(protect)
    else:
        subject = open_traced(open_network(model, example_inputs), protect=protect, prove=batches is not None)
    _, small, cut = prune_subject(
        subject, budget, rate, multiple=multiple, shares=shares, scope=scope, normalise=normalise, offsets=offsets
    )
    return Pruned(parts.assemble(small), cut)


def prune_subject(
    subject: Traced,
    budget: Budget,
    rate: Scorer,
    *,
    multiple: int | None = None,
    shares: Mapping[str, float] | None = None,
    scope: Scope = "local",
    normalise: ranking.Normalise | None = None,
    offsets: bool = False,
    even: bool = False,
    prove: bool = True,
) -> tuple[Selection, Traced, Cut]:
    """What is kept of a subject within the budget, the smaller one, and the receipt: `prune` of what is open already.

    even: sites of one kind and size keep equally many units. rate: of `make_scorer`. prove: whether outputs are
    compared with those of the silenced original; leave it out for a look at widths alone. What can't be cut after all,
    is noted in `subject`. Raises as `prune` does.
    """
    if isinstance(scope, Mapping):
        unknown = sorted(set(scope) - set(subject.coupling.sites))
        if unknown:
            raise InputError(f"scope names {unknown[0]!r}, which is no site: {', '.join(subject.coupling.sites)} are")
    replaced = files.find_replaced(subject.model)
    notes, evened, below = tuple[str, ...](), tuple[str, ...](), tuple[str, ...]()

    def select() -> Selection:
        scores = rate(subject)
        modes.forget_passes(subject.model)
        try:
            return choose(scores, multiple)
        except InfeasibleError:
            if multiple is not None:
                raise
            return choose(scores, 1)

    def choose(scores: Mapping[str, Tensor], step: int | None) -> Selection:
        nonlocal notes, evened, below
        units = subject.units(multiple=step)
        if rate.name:
            units, notes = _freeze_unscored(units, scores, rate.name)
        chosen = ranking.by_shares(units, scores, share_out(units, shares or {}))
        selection = ranking.by_budget(
            units, scores, budget, scope=_pools(subject, scope), normalise=normalise, given=chosen
        )
        if all(bool(mask.all()) for mask in selection.keep.values()):
            raise InfeasibleError(f"budget {budget.brief()} would change nothing: every unit fits in it; ask for less")
        if not even:
            room = _room(selection, units, budget)
            if scope == "local" and room > _ROOM:
                selection = ranking.fill_up(units, scores, selection.keep, budget, chosen)
                room = _room(selection, units, budget)
            below = _below_notes(selection, units, budget, room, chosen)
            return selection
        alike = ranking.even_out(units, scores, selection.keep, budget, chosen)
        evened = _evened_notes(selection, alike)
        return alike

    selection, small, cut = cut_with_retries(subject, select, offsets=offsets, prove=prove)
    if scope == "local" and not shares:
        cut = replace(cut, notes=(*_thinned_notes(selection), *cut.notes))
    files.note_form(small.model, replaced)
    return selection, small, replace(cut, notes=(*cut.notes, *notes, *evened, *below))


def _evened_notes(selection: Selection, alike: Selection) -> tuple[str, ...]:
    """A note on sites that keep another number of units than they would if each kept its own."""
    counts = {name: tuple(int(one.keep[name].sum()) for one in (selection, alike)) for name in selection.keep}
    moved = {name: pair for name, pair in counts.items() if pair[0] != pair[1]}
    if not moved:
        return ()
    name, (own, now) = max(moved.items(), key=lambda item: abs(item[1][0] - item[1][1]))
    return (
        f"sites of one kind and size keep equally many units, for a config to say: by scores alone {len(moved)} of "
        f"{len(counts)} would keep other numbers, {name} {own} and not {now}; --no-even (even=False) lets them",
    )


_ROOM = 0.05
"""How much of a budget may be left before more is kept, or a note says that it is left."""


def _room(selection: Selection, units: Units, budget: Budget) -> float:
    """The share of the budget that a selection leaves, in the measure of which it leaves least."""
    limits = budget.absolute(units.cost())
    return min((1 - selection.spent[name] / limit for name, limit in limits.items() if limit), default=0.0)


def _below_notes(
    selection: Selection, units: Units, budget: Budget, room: float, held: Collection[str]
) -> tuple[str, ...]:
    """A note on a selection that leaves much of the budget, and on the site of the largest steps that is not `held`."""
    partly = [name for name, mask in selection.keep.items() if not bool(mask.all()) and name not in held]
    if room <= _ROOM or not partly:
        return ()
    name = max(partly, key=lambda one: units[one].multiple / units[one].count)
    kept, count = int(selection.keep[name].sum()), units[name].count
    return (
        f"the cut stays {room:.0%} below the budget {budget.brief()}, for sites go in steps: the largest are those of "
        f"{name}, {units[name].multiple} of {count}, of which it keeps {kept}",
    )


_THINNED = 0.08
"""How much less of a site than of all sites may stay before a note says so."""


def _thinned_notes(selection: Selection) -> tuple[str, ...]:
    """A note on sites of which much more goes than of all, though all were to lose the same share."""
    counts = {name: (int(mask.sum()), len(mask)) for name, mask in selection.keep.items()}
    stay, all_units = (sum(pair[place] for pair in counts.values()) for place in (0, 1))
    share = stay / max(all_units, 1)
    return tuple(
        f"{name} keeps {kept} of {units} ({kept / units:.0%}), all sites together {share:.0%}: others go in larger "
        f"steps or stay; shares={{{name!r}: {share:.2f}}} or protect=[{name!r}] spares it"
        for name, (kept, units) in counts.items() if units >= 8 and kept / units < share - _THINNED
    )  # fmt: skip


def shares_of(text: str | Mapping[str, float]) -> dict[str, float]:
    """Shares as the command line says them, "layer4.*=25%,head=0.5"; a mapping stays itself."""
    pairs = text.items() if isinstance(text, Mapping) else [tuple(part.split("=")) for part in parse_list(text)]
    shares = dict[str, float]()
    for pair in pairs:
        try:
            name, value = pair
            said = str(value).strip()
            shares[str(name).strip()] = float(said.removesuffix("%")) / (100 if said.endswith("%") else 1)
        except ValueError as error:
            raise InputError(f"shares={text!r}: give SITE=SHARE,SITE=SHARE, such as layer4.*=25%") from error
    return shares


def share_out(units: Units, shares: Mapping[str, float]) -> dict[str, float]:
    """Site -> share, of the free sites that a pattern names by themselves or by a module that they stand in."""
    chosen = dict[str, float]()
    free = [site.name for site in units.free()]
    for pattern, share in shares.items():
        if not 0 < share <= 1:
            raise InputError(f"shares give {pattern!r} {share}: give a share above 0 and at most 1")
        fitting = [name for name in free if any(fnmatchcase(name, end) for end in (pattern, f"{pattern}.*"))]
        if not fitting:
            near = difflib.get_close_matches(pattern.replace("*", ""), free, n=3, cutoff=0.3)
            raise InputError(
                f"shares name {pattern!r}, which is no site that can be cut, and no pattern or module of such sites; "
                f"there are {', '.join(near or free)}"
            )
        chosen |= dict.fromkeys(fitting, share)
    return chosen


def data_needed(score: str) -> Literal["", "batches", "loss"]:
    """What a score looks at beside weights: nothing, batches, or batches and a loss; of a function that is not known.

    Raises `InputError` for a name that is no score's.
    """
    if score in _OF_GRADIENTS:
        return "loss"
    if score in _OF_ACTIVATIONS:
        return "batches"
    if score not in _OF_WEIGHTS and score != "random" and ":" not in score:
        names = ", ".join([*_OF_WEIGHTS, "random", *_OF_ACTIVATIONS, *_OF_GRADIENTS])
        raise InputError(f"score {score!r} is not one of {names}: name one, or give a function")
    return ""


@dataclass(frozen=True)
class Scorer:
    """From a subject to one score per unit of each site, with all that the score needs at hand."""

    name: str
    """Of a score that may have nothing to say of a site, which stays whole then; "" for a function of the user's."""
    of: Callable[[Traced], Mapping[str, Tensor]]

    def __call__(self, subject: Traced) -> Mapping[str, Tensor]:
        """Site -> scores [count]; higher means keep."""
        return self.of(subject)


def make_scorer(
    score: str | Score, batches: Iterable[Any] | None = None, loss: Loss | None = None, seed: int = 0
) -> Scorer:
    """A score of `prune` by its name, or a function, and what it looks at. Raises `InputError` where that is missing.

    The arguments are those of `prune`.
    """
    given = list(batches) if batches is not None and not isinstance(batches, Sequence) else batches
    if isinstance(score, str) and ":" in score:
        score = plugins.function(score)
    if callable(score):
        return Scorer("", partial(_call_score, score, given))
    return Scorer(score, _resolve_score(score, given, loss, seed))


def _resolve_score(
    score: str, given: Sequence[object] | None, loss: Loss | None, seed: int
) -> Callable[[Traced], Mapping[str, Tensor]]:
    if score == "random":
        return lambda subject: random.scores(subject.units(), seed)
    if score in _OF_WEIGHTS:
        return _OF_WEIGHTS[score]
    wants = data_needed(score)
    if given is None:
        raise InputError(f"score {score!r} is measured on data: give batches=[...]")
    if wants == "batches":
        return lambda subject: _OF_ACTIVATIONS[score](
            partial(_ask_batch, given, partial(loss or _call_model, subject.model)),
            subject.model,
            given,
            subject.slices(),
        )
    if loss is None:
        raise InputError(f"score {score!r} needs gradients: give loss=, a function (model, batch) -> mean loss")
    return lambda subject: _OF_GRADIENTS[score](
        partial(_ask_batch, given, partial(loss, subject.model)), subject.model, given, subject.slices()
    )


def _call_score(score: Score, given: Sequence[object] | None, subject: Traced) -> Mapping[str, Tensor]:
    """What a function of the user's gives, if it is a mapping to numbers; how many, the selection looks at."""
    found = score(subject, *(() if given is None else (given,)))
    name = getattr(score, "__name__", type(score).__name__)
    wanted = "give a mapping from each site to one score per unit, as {site.name: scores for site in units().free()}"
    if not isinstance(found, Mapping):
        raise InputError(f"the score function {name} returned {type(found).__name__}: {wanted}")
    for site, values in found.items():
        try:
            as_numpy(values)
        except (TypeError, ValueError) as error:
            kind = type(values).__name__
            raise InputError(
                f"the score function {name} gave {site} a {kind} that holds no numbers: {wanted}"
            ) from error
    return found


def _ask_batch(batches: Sequence[Any], ask: Callable[[Any], object], batch: Any) -> object:
    """`ask(batch)`, and which batch it is that fails."""
    try:
        return ask(batch)
    except SecateurError:
        raise
    except Exception as error:
        number = next((str(place) for place, one in enumerate(batches) if one is batch), "?")
        shapes = ", ".join(str(tuple(one.shape)) for one in tree_leaves(batch) if isinstance(one, Tensor))
        line = (str(error).strip().splitlines() or [""])[0][:200]
        raise InputError(
            f"batch {number}{f' of shape {shapes}' if shapes else ''} can't be scored: {type(error).__name__}: {line}; "
            "give batches that the network (or loss=) takes"
        ) from error


def _call_model(model: nn.Module, batch: Any) -> object:
    example = Example.of(batch)
    args, kwargs = devices.move((example.args, dict(example.kwargs)), model)
    return model(*args, **kwargs)


def _freeze_unscored(units: Units, scores: Mapping[str, Tensor], score: str) -> tuple[Units, tuple[str, ...]]:
    """Sites of which a score has nothing to say stay whole, and the notes tell."""
    absent = [site.name for site in units.free() if site.name not in scores]
    if len(absent) == len(units.free()):
        raise UnsupportedError(f"score {score!r} has nothing to say of any site of this network: use another")
    sites = {name: replace(site, frozen=site.frozen or name in absent) for name, site in units.sites.items()}
    return replace(units, sites=sites), tuple(f"stays: {name}: has no score {score!r}" for name in absent)


def scope_of(text: str | Mapping[str, str]) -> Scope:
    """A scope as the command line says it: its name, or "SITE=POOL,SITE=POOL"; a mapping stays itself."""
    if isinstance(text, Mapping):
        return text
    if text in ("local", "kind", "global", "isomorphic"):
        return cast(Scope, text)
    pairs = [part.split("=") for part in parse_list(text)]
    if not pairs or any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise InputError(f"scope={text!r}: give local, kind, global or isomorphic, or SITE=POOL,SITE=POOL")
    return {site.strip(): pool.strip() for site, pool in pairs}


def _pools(subject: Traced, scope: Scope) -> ranking.Scope:
    if isinstance(scope, Mapping):
        return {name: pool for name, pool in scope.items() if name in subject.coupling.sites}
    if scope == "isomorphic":
        return subject.topology()
    return scope
