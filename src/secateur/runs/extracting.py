"""`secateur extract`: one size out of an elastic model, which holds many, without training."""

from __future__ import annotations

from pathlib import Path

from secateur._utils.disk import writing
from secateur.errors import InputError
from secateur.methods import elastic as elastics
from secateur.runs.backends.language import Language
from secateur.runs.cards import write_size_card
from secateur.vocabulary import Budget

__all__ = ["extract"]


def extract(elastic: str | Path, budget: str | Budget, out: str | Path) -> tuple[Path, tuple[str, ...]]:
    """Cut the model for `budget` out of an elastic one: an ordinary model, which loads as any other.

    Args:
        elastic: the folder that holds all sizes, such as "elastic" of a run of nemotron_elastic.
        budget: in the measure that its router was trained for, such as params=60%, between its smallest size and the
            whole model.
        out: the new folder.

    Returns the folder, and notes on what it holds.

    Raises:
        InputError: `elastic` is no elastic model, or `out` is there already or inside of it.
        BudgetError: a budget outside of what the router was trained for, or in another measure.
        InfeasibleError: no size is as small as that.
        UnsupportedError: the cut would not give what the elastic model gives at this size.
    """
    wanted, target = Budget.parse(budget), Path(out)
    if target.exists():
        raise InputError(f"{target} is there already: choose another folder, or remove it")
    inside = Path(elastic) / "elastic"
    if (inside / elastics.FILE).is_file() and not (Path(elastic) / elastics.FILE).is_file():
        raise InputError(f"{elastic} is the folder of a run: give its elastic model, {inside}")
    model = elastics.read(elastic)
    if target.resolve().is_relative_to(Path(elastic).resolve()):
        raise InputError(f"{target} is inside the elastic model {elastic}: choose a folder beside it")
    share = elastics.share_of(wanted, model.measure, model.whole)
    chosen = model.choose(share)
    model.check(chosen)
    student, cut = model.cut(chosen)
    costs = model.cost(chosen)
    sizes = ", ".join(f"{axis} {size}" for axis, size in model.describe(chosen).items())
    part = costs[model.measure] / model.whole[model.measure]
    notes = (f"{part:.1%} of the {model.measure} of the whole model: {sizes}", *cut.notes)
    with writing(target) as temporary:
        student.save(temporary)
        load = Language().load_line(temporary, target.name)
        write_size_card(temporary, str(elastic), Path(elastic), wanted.brief(), notes, load)
    return target, notes
