"""The laws that every subject, selection and recipe obeys, as functions that anyone can call on their own.

    check_subject(make)      identity, predicted = counted, original untouched, cut = silenced, superset, round trip
    check_selection(select)  within the budget, superset, whole at 100 %, NumPy = torch, refuses what can't be met
    check_recipe(name, ...)  complete card, a run that keeps its budget, beats chance, repeats exactly, refuses

A broken law raises `AssertionError` with what was expected and what was found. Each function returns the names of
the laws it has checked: a law that needs a part which a subject lacks (say, `silence`) is not in the list, so assert
the ones that matter to you.
"""

from __future__ import annotations

import importlib
import inspect
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from secateur.errors import InfeasibleError, SecateurError
from secateur.vocabulary import Budget, Limit, Result, Selection, Site, Subject, Units

__all__ = ["check_recipe", "check_selection", "check_subject"]

Output = Callable[[Any], Any]
"""Subject -> an array that a deterministic use of it gives."""

_CARD = ("title", "paper", "cuts", "recovers", "extra", "family")


# -------------------------------------------------------------------------------------------------------- subjects


def check_subject(
    make: Callable[[], Any],
    *,
    output: Output | None = None,
    counted: Callable[[Any], Mapping[str, float]] | None = None,
    silence: Callable[[Any, Selection], Any] | None = None,
    reload: Callable[[Any, Path], Any] | None = None,
    axes: Sequence[str] = (),
    measure: str = "params",
    tolerance: float = 1e-4,
    ignore: Collection[str] = (),
    seed: int = 0,
) -> list[str]:
    """Check the laws of a subject on whole, one-axis and mixed selections of random units.

    Args:
        make: gives a fresh subject, the same each time.
        output: subject -> array; without it, `forward(example)` of subjects that have both.
        counted: subject -> costs counted on the thing itself, to compare with the prediction of `Units.cost`;
            without it, the parameters and FLOPs of subjects that have a torch `model`.
        silence: (subject, selection) -> subject of the old shape whose units that go do nothing; without it, the
            subject's own `silence`.
        reload: (subject, empty folder) -> the subject saved there and opened again; without it, `save` and
            `secateur.subjects.open_subject`.
        axes: which axes to check; all if none is named.
        measure: the cost in which budgets are set for the superset law.
        tolerance: largest difference of outputs, relative to the largest absolute output.
        ignore: costs that are not compared, such as the FLOPs of a network that chooses by its data what to run.
        seed: of the random scores.

    Returns the names of the laws checked, a subset of `identity`, `original untouched`, `predicted = receipt`,
    `predicted = counted`, `superset`, `cut = silenced`, `round trip`.
    """
    same_costs = partial(_equal_costs, ignore=ignore)
    subject = make()
    assert isinstance(subject, Subject), f"{type(subject).__name__} lacks units() or cut()"
    output = output or _own_output(subject)
    counted = counted or (_counted_on_model if hasattr(subject, "model") else None)
    silence = silence or (type(subject).silence if hasattr(subject, "silence") else None)
    reload = reload or (_saved_and_opened if hasattr(subject, "save") else None)
    laws: dict[str, None] = {}

    units = subject.units(*axes)
    assert units.free(), "units() has no site that may be selected from"
    before, spent = output(subject) if output else None, units.cost()

    whole = Selection({site.name: _ones(site.count) for site in units.free()})
    same, receipt = subject.cut(whole)
    assert receipt.is_noop, f"a selection that keeps all removed {dict(receipt.removed)}"
    same_costs(same.units(*axes).cost(), spent, "the whole selection's cost")
    if output:
        _equal_outputs(output(same), before, 0.0, "the whole selection's output")
        _equal_outputs(output(subject), before, 0.0, "the original's output after a whole selection")
    laws["identity"] = None

    for what, selection in _selections(subject, axes, seed).items():
        smaller, receipt = subject.cut(selection)
        assert not receipt.is_noop, f"{what}: the receipt says that nothing was removed"
        predicted = units.cost(selection.keep)
        same_costs(receipt.after, predicted, f"{what}: receipt against prediction")
        same_costs(smaller.units().cost(), predicted, f"{what}: cost of the result against prediction")
        laws["predicted = receipt"] = None
        if counted:
            same_costs(counted(smaller), predicted, f"{what}: counted against predicted")
            laws["predicted = counted"] = None
        if output and silence:
            expected = _kept_columns(output(silence(subject, selection)), output(smaller), units, selection)
            _equal_outputs(output(smaller), expected, tolerance, f"{what}: cut against silenced")
            laws["cut = silenced"] = None
        if output and reload:
            with tempfile.TemporaryDirectory() as folder:
                again = reload(smaller, Path(folder) / "saved")
                _equal_outputs(output(again), output(smaller), 0.0, f"{what}: reloaded against saved")
                same_costs(again.units().cost(), predicted, f"{what}: cost of what was reloaded")
            laws["round trip"] = None
        same_costs(subject.units(*axes).cost(), spent, f"{what}: the original's cost afterwards")
        if output:
            _equal_outputs(output(subject), before, 0.0, f"{what}: the original's output afterwards")
        laws["original untouched"] = None

    by_budget = importlib.import_module("secateur.select.ranking").by_budget
    if measure in spent:
        _check_superset(by_budget, units, _scores(units, seed), measure)
        laws["superset"] = None
    return list(laws)


def _own_output(subject: Any) -> Output | None:
    if not (hasattr(subject, "forward") and hasattr(subject, "example")):
        return None
    torch = importlib.import_module("torch")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        example = subject.example(2, 12)

    def output(one: Any) -> Any:
        one.model.eval()
        with torch.no_grad():
            return one.forward(example).prediction

    return output


def _counted_on_model(subject: Any) -> dict[str, float]:
    """Parameters, each shared tensor once, and FLOPs of the forward pass that `Units.cost` speaks of by default."""
    size = importlib.import_module("secateur.measure.size")
    parts = [subject.model, *getattr(subject, "head", [])]
    unique = {id(tensor): tensor.numel() for part in parts for tensor in part.parameters()}
    found = {"params": float(sum(unique.values()))}
    if hasattr(subject, "example"):
        # The defaults of `units`: one sequence of 128 tokens.
        found["flops"] = size.flops(lambda **batch: subject.forward(batch), subject.example(1, 128))
    return found


def _saved_and_opened(subject: Any, folder: Path) -> Any:
    folder.mkdir()
    subject.save(folder)
    return importlib.import_module("secateur.subjects").open_subject(folder)


def _selections(subject: Any, axes: Sequence[str], seed: int) -> dict[str, Selection]:
    """One selection per axis, each keeping at least half of every site's units, and one of all axes together."""
    threshold = importlib.import_module("secateur.select.ranking").threshold
    kinds = list(dict.fromkeys(site.kind for site in subject.units(*axes).free()))
    found = {}
    for kind in kinds:
        units = subject.units(kind) if len(kinds) > 1 else subject.units(*axes)
        selection = threshold(units, _scores(units, seed), 0.5)
        if not all(bool(keep.all()) for keep in selection.keep.values()):
            found[kind] = selection
    if len(found) > 1:
        # Gentler, for layers, heads and neurons multiply; and units of one site may own those of another.
        units = subject.units(*axes)
        found["all axes"] = threshold(units, _scores(units, seed + 1), 0.3)
    assert found, "no axis could lose half of its units"
    return found


# ------------------------------------------------------------------------------------------------------- selections


def check_selection(
    select: Callable[[Units, Mapping[str, Any], Budget], Selection], *, superset: bool = True
) -> list[str]:
    """Check the laws of a function (units, scores, budget) -> selection on sites of four unlike kinds.

    Args:
        select: the function, say `lambda u, s, b: my_rule(u, s, b, alpha=0.5)`.
        superset: whether a larger budget must keep all that a smaller one keeps (rankings do, exact solvers need not).

    Returns the names of the laws checked: `within budget`, `spent = cost`, `fixed stays`, `repeats`, `whole`,
    `refuses`, `NumPy = torch` (where torch is installed) and `superset`.
    """
    laws: dict[str, None] = {}
    for name, units in _sample_units().items():
        measures = list(units.cost())
        scores = _scores(units, 1)
        for share in (0.9, 0.7, 0.5):
            budget = Budget.parse(",".join(f"{measure}={share:%}" for measure in measures))
            chosen, again = select(units, scores, budget), select(units, scores, budget)
            cost, limits = units.cost(chosen.keep), budget.absolute(units.cost())
            for measure in measures:
                assert cost[measure] <= limits[measure], (
                    f"{name}: {measure} is {cost[measure]:g}, over the budget of {limits[measure]:g}"
                )
            laws["within budget"] = None
            _equal_costs(chosen.spent, cost, f"{name}: what the selection says it spends")
            laws["spent = cost"] = None
            for site in units.free():
                keep = _list(chosen.keep.get(site.name, _ones(site.count)))
                if site.fixed is not None:
                    assert all(stays for stays, fixed in zip(keep, _list(site.fixed), strict=True) if fixed), (
                        f"{name}: a fixed unit of {site.name} went"
                    )
                    laws["fixed stays"] = None
                rules = f"multiples of {site.multiple}, at least {site.minimum}"
                obeys = sum(keep) % site.multiple == 0 and sum(keep) >= site.minimum
                assert obeys, f"{name}: {site.name} keeps {sum(keep)} units; {rules}"
            _equal_selections(chosen, again, f"{name}: the same question twice")
            laws["repeats"] = None
            _check_torch(select, units, scores, budget, chosen, name, laws)
        full = select(units, scores, Budget.parse(f"{measures[0]}=100%"))
        assert all(all(_list(keep)) for keep in full.keep.values()), f"{name}: something went at a budget of 100 %"
        laws["whole"] = None
        refusal = _refusal(lambda: select(units, scores, Budget.parse(f"{measures[0]}=0.0001%")), name)  # noqa: B023
        reachable = getattr(refusal, "reachable", None)
        assert reachable is not None, f"{name}: the refusal does not say what is reachable: {refusal}"
        laws["refuses"] = None
        if superset:
            _check_superset(select, units, scores, measures[0])
            laws["superset"] = None
    return list(laws)


def _sample_units() -> dict[str, Units]:
    """Neurons of a network, examples of a training set, blocks of a page, and heads in groups."""
    np = importlib.import_module("numpy")
    draw = np.random.default_rng(0)
    neurons = {
        f"layers.{i}.neurons": Site(f"layers.{i}.neurons", 16, {"params": np.full(16, 5.0)}, multiple=4)
        for i in range(3)
    }
    tokens = draw.integers(1, 40, 30).astype(float)
    fixed = np.arange(30) == 7
    heads = Site("layers.0.heads", 8, {"params": np.full(8, 12.0)}, group=np.repeat([0, 1], 4), minimum=2)
    return {
        "neurons": Units(neurons, base={"params": 10.0}),
        "examples": Units({"train": Site("train", 40, {"examples": np.ones(40)}, minimum=1)}, base={"examples": 0.0}),
        "blocks of a page": Units({"page": Site("page", 30, {"tokens": tokens}, fixed=fixed)}),
        "grouped heads": Units({"layers.0.heads": heads}),
    }


def _check_torch(
    select: Callable[[Units, Mapping[str, Any], Budget], Selection],
    units: Units,
    scores: Mapping[str, Any],
    budget: Budget,
    chosen: Selection,
    name: str,
    laws: dict[str, None],
) -> None:
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return
    other = select(units, {site: torch.from_numpy(column) for site, column in scores.items()}, budget)
    _equal_selections(other, chosen, f"{name}: torch scores against NumPy scores")
    laws["NumPy = torch"] = None


def _check_superset(select: Callable[..., Selection], units: Units, scores: Mapping[str, Any], measure: str) -> None:
    whole = units.cost()[measure]
    try:
        select(units, scores, Budget.parse(f"{measure}=0.0001%"))
        least = 0.0
    except InfeasibleError as error:
        least = (error.reachable or 0.0) / whole
    smaller: dict[str, list[bool]] = {}
    for step in (0.1, 0.3, 0.5, 0.7, 0.9):
        share = least + step * (1.0 - least)
        keep = {
            name: _list(mask) for name, mask in select(units, scores, Budget.parse(f"{measure}={share:%}")).keep.items()
        }
        for name, mask in smaller.items():
            lost = [
                index
                for index, (small, large) in enumerate(zip(mask, keep.get(name, mask), strict=True))
                if small > large
            ]
            assert not lost, f"{measure}={share:.1%} drops units {lost[:5]} of {name}, which a smaller budget kept"
        smaller = keep


# ---------------------------------------------------------------------------------------------------------- recipes


def check_recipe(
    name: str,
    subject: Any,
    data: Any,
    budget: Budget | str,
    *,
    options: Mapping[str, Any] | None = None,
    quality: Callable[[Any], float] | None = None,
    output: Output | None = None,
    recipe: Callable[..., Iterator[Result]] | None = None,
    card: Mapping[str, str] | None = None,
    chances: int = 3,
) -> list[str]:
    """Check the laws of a recipe on a toy: give a subject and data so small that a run takes seconds.

    Args:
        name: the recipe's name.
        subject: what it prunes; its units should differ in worth, or nothing can beat chance.
        data: a `secateur.data.texts.Corpus`.
        budget: what may stay.
        options: the recipe's keywords, say fewer steps.
        quality: subject -> number, higher is better; without it, minus the mean squared difference of outputs from
            those of `subject`.
        output: subject -> array, as in `check_subject`.
        recipe: the function; without it, the one that secateur has under `name`.
        card: its card; without it, the one that secateur reads.
        chances: random selections at the same budget, of the kinds of units it cut, whose mean quality it must beat.

    Returns the names of the laws checked: `card`, `within budget`, `original untouched`, `repeats`, `resumes`,
    `beats chance`, `refuses`.
    """
    places = ("recipes", "_utils.rundir", "runs.keywords")
    recipes, rundir, keywords = (importlib.import_module(f"secateur.{place}") for place in places)
    card = card if card is not None else recipes.cards()[name]
    missing = [key for key in _CARD if key not in card or (key != "extra" and not card[key])]
    assert not missing, f"the card of {name} lacks {', '.join(missing)}"
    function = recipe or recipes.find(name)
    assert function.__name__ == name, f"recipe {name} is a function called {function.__name__}"

    budget, options = Budget.parse(budget), dict(options or {})
    open_ended = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())
    chosen = options if open_ended else keywords.checked(function, options)
    output = output or _own_output(subject)
    assert output, "give output=: this subject has no forward and example"
    before = output(subject)

    def run(folder: Path, wanted: Budget = budget) -> Result:
        with rundir.Run.open(folder, {"budget": str(wanted), **options}) as opened:
            results = list(function(subject, data, [wanted], opened, **chosen))
        assert len(results) == 1, f"{name} gave {len(results)} results for one budget"
        first: Result = results[0]
        return first

    def fidelity(one: Any) -> float:
        return -_difference(output(one), before)

    with tempfile.TemporaryDirectory() as place:
        result = run(Path(place) / "first")
        assert result.name == str(budget), f"the result is called {result.name}, the budget {budget}"
        assert not result.cut.is_noop, f"{name} removed nothing at {budget}"
        whole = dict(result.cut.before) if _sparse(budget) else {**result.cut.before, **subject.units().cost()}
        limits = budget.absolute(whole) if "latency" not in budget else {}
        counted = _nonzero(result, budget) if _sparse(budget) else result.subject.units().cost()
        for measure, limit in limits.items():
            for what, cost in (("predicted", result.predicted), ("counted", counted)):
                assert cost[measure] <= limit * (1 + 1e-9), f"{what} {measure} is {cost[measure]:g}, over {limit:g}"
        _equal_outputs(output(subject), before, 0.0, "the original's output afterwards")
        answer = output(result.subject)
        _equal_outputs(output(run(Path(place) / "second").subject), answer, 0.0, "the same run twice")
        _equal_outputs(output(run(Path(place) / "first").subject), answer, 0.0, "the run resumed")
        _beats_chance(subject, result, budget, quality or fidelity, chances)
        measure = budget.limits[0].measure if budget.limits else "pattern"
        least = f"{measure}=0.0001%" if budget.limits else "pattern=4:4"  # a pattern that takes nothing
        refusal = _refusal(lambda: run(Path(place) / "third", Budget.parse(least)), name)
        assert measure in str(refusal), f"the refusal does not name the measure: {refusal}"
    return ["card", "within budget", "original untouched", "repeats", "resumes", "beats chance", "refuses"]


def _beats_chance(subject: Any, result: Result, budget: Budget, quality: Callable[[Any], float], chances: int) -> None:
    if _sparse(budget):
        random = [_zeroed(subject, result, budget, seed) for seed in range(chances)]
    else:
        by_budget = importlib.import_module("secateur.select.ranking").by_budget
        units = subject.units(*_chosen_kinds(subject.units(), result))
        if any(limit.measure not in units.cost() for limit in budget.limits):
            # A time, say: what the recipe kept is then the budget of chance.
            budget = Budget((Limit("params", result.subject.units().cost()["params"]),))
        random = [
            subject.cut(by_budget(units, _scores(units, seed), budget, scope="local"))[0] for seed in range(chances)
        ]
    ours, theirs = quality(result.subject), sum(quality(one) for one in random) / chances
    assert ours > theirs, f"quality is {ours:g}, that of random selections at the same budget {theirs:g}"


def _sparse(budget: Budget) -> bool:
    """Whether single weights go: the result has zeros in place of smaller tensors."""
    return budget.pattern is not None or "weights" in budget


def _matrices(subject: Any) -> dict[str, Any]:
    within = subject.layers() if hasattr(subject, "layers") else None
    found: dict[str, Any] = importlib.import_module("secateur.subjects.matrices").matrices(subject.model, within)
    return found


def _masked(subject: Any, name: str) -> bool:
    """Whether a matrix was pruned, as far as a subject that keeps masks says so: others may hold zeros by rounding."""
    masks = getattr(subject, "masks", {})
    return not masks or name in masks


def _nonzero(result: Result, budget: Budget) -> dict[str, float]:
    """Weights that are not zero, counted on the result; its pattern is checked on the way."""
    count = 0
    for name, matrix in _matrices(result.subject).items():
        stays = _array(matrix.weight) != 0
        count += int(stays.sum())
        if budget.pattern is not None and not stays.all() and _masked(result.subject, name):
            m = budget.pattern.m
            runs = stays[:, : stays.shape[1] // m * m].reshape(-1, m)
            assert runs.sum(1).max(initial=0) <= budget.pattern.n, f"{name} does not keep to {budget.pattern}"
    return {"weights": float(count)}


def _zeroed(subject: Any, result: Result, budget: Budget, seed: int) -> Any:
    """A copy with as many zeros as the result in each of its matrices, and as few units (experts), at random places."""
    draw = importlib.import_module("numpy").random.default_rng(seed)
    weights, pattern = (importlib.import_module(f"secateur.select.{name}") for name in ("weights", "pattern"))
    units, keep = subject.units(), {}
    for site in units.only(*_chosen_kinds(units, result)).free():
        if site.name in result.cut.removed:
            keep[site.name] = _ones(site.count)
            keep[site.name][draw.permutation(site.count)[: result.cut.removed[site.name][0]]] = False
    chance, found = subject.cut(Selection(keep))[0] if keep else subject.copy(), _matrices(result.subject)
    for name, matrix in _matrices(chance).items():
        stays = _array(found[name].weight) != 0
        if stays.all() or not _masked(result.subject, name):
            continue
        scores = draw.random(stays.shape)
        runs = (budget.pattern.n, budget.pattern.m) if budget.pattern is not None else None
        mask = pattern.n_of_m(scores, *runs) if runs else weights.best(scores, stays.mean(), "matrix")
        matrix.weight.mul_(matrix.weight.new_tensor(mask))
    return chance


def _chosen_kinds(units: Units, result: Result) -> list[str]:
    """The kinds of units that the recipe chose itself: not those that went because their owner did."""

    def share(name: str) -> float:
        gone, count = result.cut.removed.get(name, (0, 1))
        return gone / count

    def chosen(site: Site) -> bool:
        return share(site.name) > (share(site.owner[0]) if site.owner else 0.0)

    return list(dict.fromkeys(site.kind for site in units.sites.values() if chosen(site)))


# ------------------------------------------------------------------------------------------------------ comparisons


def _refusal(call: Callable[[], object], what: str) -> SecateurError:
    """The error with which `call` refuses a budget of next to nothing."""
    try:
        call()
    except SecateurError as error:
        return error
    raise AssertionError(f"{what}: a budget of 0.0001 % was not refused")


def _array(value: Any) -> Any:
    return importlib.import_module("secateur.select.arrays").as_numpy(value)


def _list(mask: Any) -> list[bool]:
    return [bool(value) for value in mask]


def _ones(count: int) -> Any:
    return importlib.import_module("numpy").ones(count, dtype=bool)


def _scores(units: Units, seed: int) -> dict[str, Any]:
    draw = importlib.import_module("numpy").random.default_rng(seed)
    return {site.name: draw.random(site.count) for site in units.free()}


def _difference(found: Any, expected: Any) -> float:
    a, b = _array(found), _array(expected)
    return float(((a - b) ** 2).mean())


def _kept_columns(expected: Any, found: Any, units: Units, selection: Selection) -> Any:
    """Where the last axis itself was cut (a network's channels), the silenced columns are left out."""
    a, b = _array(expected), _array(found)
    if a.shape == b.shape:
        return a
    for name, mask in units.effective(dict(selection.keep)).items():
        if units[name].count == a.shape[-1] and int(mask.sum()) == b.shape[-1]:
            return a[..., _array(mask).astype(bool)]
    return a


def _equal_costs(
    found: Mapping[str, float], expected: Mapping[str, float], what: str, ignore: Collection[str] = ()
) -> None:
    for measure in (found.keys() & expected.keys()) - set(ignore):
        a, b = found[measure], expected[measure]
        assert abs(a - b) <= 1e-9 * max(abs(a), abs(b), 1.0), f"{what}: {measure} is {a:.12g}, expected {b:.12g}"


def _equal_outputs(found: Any, expected: Any, tolerance: float, what: str) -> None:
    a, b = _array(found), _array(expected)
    assert a.shape == b.shape, f"{what}: shape {a.shape}, expected {b.shape}"
    worst, scale = float(abs(a - b).max(initial=0.0)), float(abs(b).max(initial=1e-30))
    assert worst <= tolerance * scale, f"{what}: differs by {worst:.3g} where the largest value is {scale:.3g}"


def _equal_selections(found: Selection, expected: Selection, what: str) -> None:
    assert found.keep.keys() == expected.keep.keys(), f"{what}: other sites"
    for name in found.keep:
        assert _list(found.keep[name]) == _list(expected.keep[name]), f"{what}: other units of {name}"
