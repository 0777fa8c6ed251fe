"""Citations: which sentences a language model cites in its answer."""

from __future__ import annotations

import re

__all__ = ["read_citations"]

_CITED = re.compile(r"\[([\d, ]+)\]")
_NOTHING = re.compile(r"\bno answer\b", re.IGNORECASE)


def read_citations(answer: str, count: int, *, titled: bool = False) -> set[int] | None:
    """The numbers of the sentences that an answer cites as [3] or [0, 2], of `count` that there are.

    titled: sentence 0 is a title, which answers nothing by itself; without one it is a sentence as any other.

    None for an answer that gives no label and is to be dropped: it cites nothing, and does not say "No answer" either
    (the model forgot to cite); or it cites a title alone. Where it says "No answer" too, a title alone is nothing.
    Numbers that are no sentence's are left out.

    Source: Provence (arXiv 2501.16214), section 3.1, and the filter of its trainer.
    """
    nothing = bool(_NOTHING.search(answer))
    written = [part for group in _CITED.findall(answer) for part in group.replace(",", " ").split()]
    # A number of a thousand digits is no sentence's, and would take long to read.
    found = {int(part) for part in written if len(part) < 10}
    found = {number for number in found if number < count}
    if not found or (titled and found == {0}):
        return set() if nothing else None
    return found
