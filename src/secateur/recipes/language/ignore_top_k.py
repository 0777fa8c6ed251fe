"""Ignore-top-k: drop the entries that training changed most, and keep the rest of what was learnt.

"How new data permeates LLM knowledge and how to dilute it" (arXiv 2504.09522, ICLR 2025).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

from secateur._utils.rundir import Run
from secateur.data.texts import Corpus
from secateur.errors import BudgetError, InfeasibleError, InputError, NumericalError
from secateur.methods import updates
from secateur.methods.updates import Action, Order, Rule, Scope, Sign
from secateur.subjects.delta.delta import Delta
from secateur.vocabulary import Budget, Result

CARD = {
    "title": "How new data permeates LLM knowledge and how to dilute it",
    "paper": "https://arxiv.org/abs/2504.09522",
    "cuts": "entries of the update between two checkpoints of one model",
    "recovers": "nothing is trained",
    "extra": "",
    "family": "language",
}

_DENSE = 0.9
"""Share of the entries that training changed, above which the budget's share is about that of the changes, too."""


def ignore_top_k(
    subject: Delta,
    data: Corpus | None,
    budgets: Sequence[Budget],
    run: Run,
    *,
    action: Action = "drop",
    order: Order = "largest",
    scope: Scope = "tensor",
    sign: Sign = "both",
    seed: int = 0,
) -> Iterator[Result]:
    """Undo the largest entries of a fine-tuning's update, tensor by tensor.

    With d = after - before, and T the floor(k n) largest |d| of the n entries of a tensor,
    ``result = before where T, else after``: the model as it was trained but for these entries.

    Args:
        subject: the update: a model before training and, given by --with, after it; both stay as they are.
        data: not looked at; quality is measured on it, and without it is not.
        budgets: update=92%: the share of the entries that stays; the paper's k is 8 %.
        run: not used: nothing takes long enough to be kept.
        action: drop the first floor(k n) entries in the order, k being what does not stay; or keep the first
            floor(s n), s being the share that stays.
        order: largest, smallest or random. Keeping the largest 15 % is how task vectors are usually trimmed.
        scope: what is compared: tensor, or global, over all tensors.
        sign: of what counts as large: both, or changes upwards (positive) or downwards (negative) alone.
        seed: of random entries.

    Departures: the paper does not say whether tau is of each matrix or of the model, nor whether the mask is applied
    once or in each step: `scope` has both, and `recover.sparsity.updates.filter_steps` masks steps (`secateur study
    priming --when step`). Tensors that training left alone have no entries. To drop is exact as the paper has it:
    floor(k n) of each tensor, so that up to one entry a tensor stays more than the budget says.
    """
    shares = {budget: _read_share(budget, subject) for budget in budgets}
    length, changed = updates.measure_changes(subject)
    for budget, share in shares.items():
        rule = Rule(share if action == "keep" else 1 - share, action, order, scope, sign, seed)
        try:
            selection = updates.select(subject, rule)
        except NumericalError as error:  # what was given is wrong, and nothing is to be left of the run
            raise InputError(str(error)) from error
        _check_reach(budget, subject, rule, selection.spent["update"])
        small, cut = subject.cut(selection)
        left, stays = updates.measure_changes(small)
        _refuse_idle(budget, subject, changed, stays)
        notes = [f"the update's length falls from {length:.4g} to {left:.4g}, {100 * left / length:.3g}% of it"]
        notes += _describe_sparse(subject, changed, stays)
        yield Result(str(budget), small, cut, dict(selection.spent), notes=(*notes, *subject.notes))
        del small  # or it would be held beside the next one


def _read_share(budget: Budget, subject: Delta) -> Fraction:
    """The share that may stay, as it was written. Raises `BudgetError` for a budget of anything else."""
    if [limit.measure for limit in budget.limits] != ["update"] or budget.pattern is not None:
        raise BudgetError(f"ignore_top_k can't meet {budget.brief()}: it cuts an update, for such as update=92%")
    limit, whole = budget.limits[0], sum(subject.sites.values())
    share = Fraction(str(limit.value)) / (1 if limit.relative else whole)
    if share >= 1:
        raise BudgetError(f"budget {budget.brief()} lets all of the update stay, so nothing would change: ask for less")
    return share


def _check_reach(budget: Budget, subject: Delta, rule: Rule, kept: float) -> None:
    """Refuse a share that whole entries of small tensors miss by more than a verdict allows, or that leaves nothing."""
    limit = budget["update"].absolute(float(sum(subject.sites.values())))
    if 0 < kept <= 1.005 * limit:
        return
    sizes = list(subject.sites.values())
    whole, local = sum(sizes), rule.scope == "tensor"
    if rule.action == "keep":  # one entry of the largest group
        least = 1 / max(sizes) if local else 1 / whole
    else:  # an entry of each group, within half a percent
        least = min(1.0, 200 * (len(sizes) if local else 1) / whole)
    other = ", or --scope global" if local else ""
    raise InfeasibleError(
        f"{budget.brief()} can't be met by whole entries, of which {kept:.0f} of {whole} would stay: give "
        f"update={100 * least:.3g}% or more{other}",
        least,
    )


def _refuse_idle(budget: Budget, subject: Delta, changed: Mapping[str, int], stays: Mapping[str, int]) -> None:
    """Refuse what takes back all that a training changed, or nothing of it: few entries may have changed at all."""
    whole, left, entries = sum(changed.values()), sum(stays.values()), sum(subject.sites.values())
    if 0 < left < whole:
        return
    what, advice = ("nothing", "a larger share, such as update=99.9%") if not left else ("all", "a smaller share")
    raise InfeasibleError(
        f"{budget.brief()} leaves {what} of what training changed, {100 * whole / entries:.3g}% of the entries; all "
        f"others are as before, and count: give {advice}"
    )


def _describe_sparse(subject: Delta, changed: Mapping[str, int], stays: Mapping[str, int]) -> list[str]:
    """How much of the changes is left, where so few entries changed that it is another share than the budget's."""
    whole, left, entries = sum(changed.values()), sum(stays.values()), sum(subject.sites.values())
    if whole > _DENSE * entries:
        return []
    bare = sum(count > 0 and not stays[name] for name, count in changed.items())
    text = (
        f"training changed {100 * whole / entries:.3g}% of the entries, and shares are of all of them: of those that "
        f"it changed {100 * left / whole:.3g}% stay"
    )
    return [f"{text}, in {bare} of {len(changed)} tensors none" if bare else text]
