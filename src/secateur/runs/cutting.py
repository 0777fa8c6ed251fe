"""Any network cut to a budget by a score, without training: what `secateur.prune` does, as a run with evidence.

`secateur.run(cutting.prune, model, data, budget, out)`, and `secateur prune` on the command line; data may be None.
"""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, combinations, islice
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from torch import Tensor, nn

from secateur._utils import devices, plugins
from secateur._utils.batches import Batch
from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.data.examples import Examples
from secateur.errors import InputError, SecateurError
from secateur.methods import pruning
from secateur.recover.training import dense, objectives
from secateur.runs import configs, executor, keywords
from secateur.subjects.network import parts, pretrained, segments
from secateur.subjects.network.configs import behind, holders
from secateur.subjects.network.detectors import Detector
from secateur.subjects.network.shrinking import history
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget, Cut, Result, Selection

__all__ = ["configured", "prune"]


def _check_names(
    subject: Traced,
    data: Examples | None,
    *,
    score: str = "magnitude",
    scope: str | dict[str, str] = "local",
    multiple: int | None = None,
    protect: Sequence[str] = (),
    shares: str | dict[str, float] = "",
    **others: object,
) -> None:
    """Raise `InputError` for names that are none, of scores, of sites and of modules; see `prune` for the options."""
    pruning.scope_of(scope)
    if pruning.data_needed(score) and data is None:
        raise InputError(f"score {score!r} is measured on data: give some with --data, or another score")
    if ":" in score:
        plugins.function(score)
    own = pruning.shares_of(shares)
    if protect or own:
        whole = subject.copy()
        whole.protect(protect)
        pruning.share_out(whole.units(multiple=multiple), own)


@executor.checked_by(_check_names)
def prune(
    subject: Traced,
    data: Examples | None,
    budgets: Sequence[Budget],
    run: Run,
    *,
    score: str = "magnitude",
    scope: str | dict[str, str] = "local",
    normalise: Literal["", "l2", "max", "mean", "zscore", "rank"] = "",
    multiple: int | None = None,
    protect: Sequence[str] = (),
    shares: str | dict[str, float] = "",
    offsets: bool = False,
    even: bool | None = None,
    looks: int = 512,
    batch: int = 32,
    seed: int = 0,
) -> Iterator[Result]:
    """Each budget from the network as it is given; nothing is trained.

    Args:
        subject: the network; it stays as it is.
        data: what scores look at, and what quality is measured on; None for scores of weights alone.
        budgets: channels=, params=, bytes= or flops=.
        run: nothing is kept in it but the results.
        score: a name of `secateur.prune`, or "file.py:function". Gradients are those of cross-entropy, or of a
            detector's own loss.
        scope: which sites share one ranking: local, kind, global, isomorphic, or pools of sites, as a mapping or as
            "SITE=POOL,SITE=POOL"; sites not named stand alone.
        normalise: what makes scores of different sites comparable first.
        multiple: kept channels are multiples of this; if None, of 8 in sites of 64 channels or more, where that meets
            the budget.
        protect: names of modules, parameters or sites that stay whole.
        shares: what single sites keep, as a mapping or as "layer4.*=25%,stem=1"; the others share what is left.
        offsets: fold the constants that channels leave behind into what reads them.
        even: sites of one kind and size keep equally many units, so that a config can say how many; if None, in folders
            of transformers, with scope local and no shares, so that the result is such a folder again.
        looks: examples that a score looks at.
        batch: of them at a time, and of the timed environment.
        seed: of random scores, and of which examples are looked at.
    """
    for budget in budgets:
        segments.refuse(budget)
    pools, own = pruning.scope_of(scope), pruning.shares_of(shares)
    if data is not None and (data.has_classes or data.targets) and history(subject.model).whole is not None:
        raise InputError(f"a part of a model tells no classes or boxes, and {data.name} has some: say label=''")
    if looks < 1:
        raise InputError(f"looks={looks}: give at least one example for the score to look at")
    rate = _make_score(subject, data, score, looks=looks, batch=batch, seed=seed)
    whole = subject.copy()  # what turns out to stay is noted there
    whole.protect(protect)
    plain = pretrained.is_pretrained(history(subject.model).built_by) and pools == "local" and not own
    plain = plain and bool(holders(subject.model))  # a projector has no config to describe it
    alike = plain if even is None else even
    choose = partial(
        pruning.prune_subject, rate=rate, multiple=multiple, shares=own, scope=pools, normalise=normalise or None,
        offsets=offsets, even=alike,
    )  # fmt: skip
    for budget in budgets:
        cutting = partial(_cut_described, choose) if plain and alike else choose
        selection, small, cut = cutting(whole, budget)
        notes: tuple[str, ...] = () if data is not None else (_UNMEASURED,)
        result = parts.assemble(small, share=True)
        if why := pretrained.explain_lack(result, history(result.model).built_by):
            notes += (f"{_UNMAPPED}: {why}",)
        if not plain and result is not small and not pretrained.describes(result.model):
            notes += (_WITH_CODE if pretrained.is_rebuilt(result, history(result.model).built_by) else _WITHOUT_CONFIG,)
        stale = set(behind(whole.model)).intersection(cut.notes)
        if stale and pretrained.is_rebuilt(result, history(result.model).built_by):  # so there is a way to load it
            cut = replace(cut, notes=tuple(note for note in cut.notes if note not in stale))
            notes += () if {_REBUILT, _WITH_CODE} & {*cut.notes, *notes} else (_BY_CODE,)
            notes += (_CLOSED,) if pretrained.closes_recipes(result, history(result.model).built_by) else ()
        yield Result(str(budget), small, cut, dict(selection.spent), notes=notes)


def configured(path: str | Path, given: Mapping[str, object] | None = None) -> dict[str, Any]:
    """What to call `secateur.run` with after `prune`: the settings in a YAML file, where `given` says nothing else.

    Raises `InputError` where the file, a key in it or a value can't be used.
    """
    named = {"recipe": prune.__name__, **(given or {})}
    found = configs.read(path, prune.__name__, executor.run, named, more=lambda _: keywords.of(prune))
    return {name: value for name, value in found.items() if name != "recipe"}


_TRIES = 8
"""Cuts that are looked at for one that a config describes."""
_LOPSIDED = 0.5
"""Of the share that the plain cut keeps of a site, how much a described one has to keep: a network that is sound goes
before a config that says what it is."""
_PATIENCE = 2.0
"""Seconds after which the search says what it does."""
_UNDESCRIBED = (
    "its config can't say what is left, though sites of one kind and size keep equally many units: the result is no "
    "plain folder, and secateur.load opens it; --no-even (even=False) lets each site keep its own number"
)
_REBUILT = (
    "its config alone can't say what is left, though sites of one kind and size keep equally many units: a modelling "
    "file travels with the result, and from_pretrained loads it with trust_remote_code=True; --no-even (even=False) "
    "lets each site keep its own number"
)
_BY_CODE = (
    "its config alone can't say what is left: a modelling file travels with the result, and from_pretrained loads it "
    "with trust_remote_code=True"
)
_CLOSED = (
    "recipes on language models take no result that is cut in no whole units, as this one is: to run one as well, run "
    "it first"
)
_WITH_CODE = (
    "the config of the whole can't say what is left of its part: a modelling file travels with the result, and "
    "from_pretrained loads it with trust_remote_code=True"
)
_WITHOUT_CONFIG = (
    "the config of the whole can't say what is left of its part: the result is no plain folder, and secateur.load "
    "opens it"
)
_REASON = "stays whole, so that the config says what is left"


class _Choose(Protocol):
    """`pruning.prune_subject` with all but the subject, the budget and the proof."""

    def __call__(self, subject: Traced, budget: Budget, *, prove: bool = True) -> tuple[Selection, Traced, Cut]: ...


def _cut_described(choose: _Choose, whole: Traced, budget: Budget) -> tuple[Selection, Traced, Cut]:
    """The cut, with as few kinds of sites left whole as let a config say what is left; none whole if none says it.

    Classes compute sizes from one another, such as a head's from the hidden size. Variants are looked at before they
    are proved, and left where a site keeps less than `_LOPSIDED` allows. Raises what the first try raises where the
    budget can't be met.
    """
    started = time.monotonic()
    plain = choose(whole, budget)
    if _describes(plain[1]):
        return plain
    free: dict[tuple[str, int], list[str]] = {}
    for site in whole.units().free():
        free.setdefault((site.kind, site.count), []).append(site.name)
    rarest = sorted(free, key=lambda group: group[1] * len(free[group]))  # what costs the fewest units to leave
    several = chain.from_iterable(combinations(rarest, many) for many in range(1, min(3, len(free))))
    for number, left in enumerate(islice(several, _TRIES - 1), 2):
        if time.monotonic() - started > _PATIENCE:
            print(f"prune: looks for a cut that a config describes: try {number}", file=sys.stderr, flush=True)
        trial = whole.copy()
        trial.protect([name for group in left for name in free[group]], _REASON)
        try:
            selection, small, _ = choose(trial, budget, prove=False)
            if not (_is_balanced(selection, plain[0]) and _describes(small)):
                continue
            selection, small, cut = choose(trial, budget)
        except SecateurError:  # out of the budget's reach, or no cut
            continue
        if _is_balanced(selection, plain[0]) and _describes(small):
            said = ", ".join(f"{kind} of {count}" for kind, count in left)
            note = f"{said} stay whole, so that the config says what is left: --no-even (even=False) cuts them as well"
            return selection, small, replace(cut, notes=(*cut.notes, note))
    selection, small, cut = plain
    rebuilt = pretrained.is_rebuilt(parts.assemble(small, share=True), history(small.model).built_by)
    return selection, small, replace(cut, notes=(*cut.notes, _REBUILT if rebuilt else _UNDESCRIBED))


def _describes(subject: Traced) -> bool:
    """Whether a config says what is left: of a part, that of the whole."""
    return pretrained.describes(parts.assemble(subject, share=True).model)


def _is_balanced(selection: Selection, plain: Selection) -> bool:
    """Whether each site keeps at least `_LOPSIDED` of the share that the plain cut keeps of it."""
    return all(
        float(mask.sum()) >= _LOPSIDED * float(plain.keep[name].sum())
        for name, mask in selection.keep.items()
        if name in plain.keep
    )


_UNMEASURED = "quality was not measured: no data was given"
_UNMAPPED = "the result has no cut_map.json, so adapters of the original can't be translated to it"


def _make_score(
    subject: Traced, data: Examples | None, score: str, *, looks: int, batch: int, seed: int
) -> pruning.Scorer:
    """The score, with batches of the data where there are any and it looks at them."""
    wants = pruning.data_needed(score)
    if wants and data is None:
        raise InputError(f"score {score!r} is measured on data: give some with --data, or another score")
    if data is None or not (wants or ":" in score):
        return pruning.make_scorer(score, seed=seed)
    if ":" in score and len(inspect.signature(own := plugins.function(score)).parameters) < 2:
        return pruning.make_scorer(own)
    judged = data.has_classes or bool(data.targets)
    if wants == "loss" and not judged:
        raise InputError(f"score {score!r} needs a loss, and {data.name} has neither classes nor boxes: give another")
    batches = examples.batches(data, batch=batch, seed=seed).take(max(1, looks // batch))
    if not judged:
        return pruning.make_scorer(score, [subject.inputs.with_inputs(one["inputs"]) for one in batches], seed=seed)
    return pruning.make_scorer(score, batches, partial(_box_loss if data.targets else _class_loss, subject), seed)


def _class_loss(subject: Traced, model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of the classes, of images or of their pixels."""
    logits = objectives.logits(subject.inputs.ask(model, batch["inputs"]))
    return dense.class_loss(logits, devices.move(batch["labels"], logits)) / len(batch["inputs"])


def _box_loss(subject: Traced, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """A detector's own loss."""
    return cast(Detector, model).loss(batch)
