"""The laws of a subject."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from secateur.conformance.comparisons import (
    Output,
    assert_equal_costs,
    assert_equal_outputs,
    assert_superset,
    kept_columns,
    output_of,
    random_scores,
)
from secateur.measure import size
from secateur.select import ranking
from secateur.subjects import open_subject
from secateur.vocabulary import Selection, Subject

__all__ = ["check_subject"]


def check_subject(
    make: Callable[[], Subject],
    *,
    output: Output | None = None,
    counted: Callable[[Any], Mapping[str, float]] | None = None,
    silence: Callable[[Any, Selection], object] | None = None,
    reload: Callable[[Any, Path], Subject] | None = None,
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
    same_costs = partial(assert_equal_costs, ignore=ignore)
    subject = make()
    assert isinstance(subject, Subject), f"{type(subject).__name__} lacks units() or cut()"
    output = output or output_of(subject)
    counted = counted or (_counted_on_model if hasattr(subject, "model") else None)
    silence = silence or (type(subject).silence if hasattr(subject, "silence") else None)
    reload = reload or (_saved_and_opened if hasattr(subject, "save") else None)
    laws: dict[str, None] = {}

    units = subject.units(*axes)
    assert units.free(), "units() has no site that may be selected from"
    before, spent = output(subject) if output else None, units.cost()

    whole = Selection({site.name: np.ones(site.count, bool) for site in units.free()})
    same, receipt = subject.cut(whole)
    assert receipt.is_noop, f"a selection that keeps all removed {dict(receipt.removed)}"
    same_costs(same.units(*axes).cost(), spent, "the whole selection's cost")
    if output:
        assert_equal_outputs(output(same), before, 0.0, "the whole selection's output")
        assert_equal_outputs(output(subject), before, 0.0, "the original's output after a whole selection")
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
            expected = kept_columns(output(silence(subject, selection)), output(smaller), units, selection)
            assert_equal_outputs(output(smaller), expected, tolerance, f"{what}: cut against silenced")
            laws["cut = silenced"] = None
        if output and reload:
            with tempfile.TemporaryDirectory() as folder:
                again = reload(smaller, Path(folder) / "saved")
                assert_equal_outputs(output(again), output(smaller), 0.0, f"{what}: reloaded against saved")
                same_costs(again.units().cost(), predicted, f"{what}: cost of what was reloaded")
            laws["round trip"] = None
        same_costs(subject.units(*axes).cost(), spent, f"{what}: the original's cost afterwards")
        if output:
            assert_equal_outputs(output(subject), before, 0.0, f"{what}: the original's output afterwards")
        laws["original untouched"] = None

    if measure in spent:
        assert_superset(ranking.by_budget, units, random_scores(units, seed), measure)
        laws["superset"] = None
    return list(laws)


def _counted_on_model(subject: Any) -> dict[str, float]:
    """Parameters, each shared tensor once, and FLOPs of the forward pass that `Units.cost` speaks of by default."""
    parts = [subject.model, *getattr(subject, "head", [])]
    unique = {id(tensor): tensor.numel() for part in parts for tensor in part.parameters()}
    found = {"params": float(sum(unique.values()))}
    if hasattr(subject, "example"):
        # The defaults of `units`: one sequence of 128 tokens.
        found["flops"] = size.flops(lambda **batch: subject.forward(batch), subject.example(1, 128))
    return found


def _saved_and_opened(subject: Any, folder: Path) -> Subject:
    folder.mkdir()
    subject.save(folder)
    return open_subject(folder)


def _selections(subject: Subject, axes: Sequence[str], seed: int) -> dict[str, Selection]:
    """One selection per axis, each keeping at least half of every site's units, and one of all axes together."""
    kinds = list(dict.fromkeys(site.kind for site in subject.units(*axes).free()))
    found = {}
    for kind in kinds:
        units = subject.units(kind) if len(kinds) > 1 else subject.units(*axes)
        selection = ranking.threshold(units, random_scores(units, seed), 0.5)
        if not all(bool(keep.all()) for keep in selection.keep.values()):
            found[kind] = selection
    if len(found) > 1:
        # Gentler, for layers, heads and neurons multiply; and units of one site may own those of another.
        units = subject.units(*axes)
        found["all axes"] = ranking.threshold(units, random_scores(units, seed + 1), 0.3)
    assert found, "no axis could lose half of its units"
    return found
