"""The laws that every subject, selection and recipe obeys, as functions that anyone can call on their own.

    check_subject(make)      identity, predicted = counted, original untouched, cut = silenced, superset, round trip
    check_selection(select)  within the budget, superset, whole at 100 %, NumPy = torch, refuses what can't be met
    check_recipe(name, ...)  complete card, a run that keeps its budget, beats chance, repeats exactly, refuses

A broken law raises `AssertionError` with what was expected and what was found. Each function returns the names of
the laws it has checked: a law that needs a part which a subject lacks (say, `silence`) is not in the list, so assert
the ones that matter to you.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secateur._utils.lazy import load_name

if TYPE_CHECKING:
    from secateur.conformance.recipes import check_recipe as check_recipe
    from secateur.conformance.selections import check_selection as check_selection
    from secateur.conformance.subjects import check_subject as check_subject

_PLACES = {"check_recipe": "recipes", "check_selection": "selections", "check_subject": "subjects"}

__all__ = ["check_recipe", "check_selection", "check_subject"]


def __getattr__(name: str) -> Any:
    return load_name(__name__, _PLACES, name)
