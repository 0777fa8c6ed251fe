"""Matrices that stay as they are, or get more bits than others: protect.json, which pruners and quantisers take.

The file is a list of names, or an object: {"protect": [names], "bits": {name: number}}. A name is that of a matrix
("model.layers.3.mlp.down_proj.weight") or of a module that holds some ("model.layers.3.mlp").
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from secateur.errors import DataError, InputError
from secateur.subjects import Streamed, Transformer
from secateur.subjects.matrices import matrices

__all__ = [
    "WHOLE",
    "Protection",
    "find_matrices",
    "is_under",
    "move_bits",
    "read_order",
    "read_protection",
    "write_protection",
]

WHOLE = 16
"""Bits from which on a weight is not rounded."""


@dataclass(frozen=True, slots=True)
class Protection:
    """Names of matrices that stay as they are, and matrix -> bits of those that have a number of their own."""

    stays: frozenset[str] = frozenset()
    bits: Mapping[str, int] = field(default_factory=dict)


def is_under(name: str, modules: Iterable[str]) -> bool:
    """Whether a matrix is one of `modules`, or inside one of them."""
    return any(name == one or name.startswith((f"{one}.", f"{one}[")) for one in modules)


def read_protection(file: str | Path, subject: Transformer | Streamed) -> Protection:
    """What protect.json says of the matrices of a model's blocks; nothing where no file is named.

    Raises `DataError` for a file that can't be read, `InputError` for a name without a matrix, or no number of bits.
    """
    if not file:
        return Protection()
    try:
        told = json.loads(Path(file).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} can't be read as JSON: give a list of modules, or a protect.json") from error
    names, bits = (told.get("protect", []), told.get("bits", {})) if isinstance(told, dict) else (told, {})
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names) or not isinstance(bits, dict):
        raise DataError(f'{file} is no list of modules, and no object with "protect" and "bits"')
    for name, number in bits.items():
        if number != WHOLE and not (isinstance(number, int) and 2 <= number <= 8):
            raise InputError(f"{file}: {number!r} bits for {name}: give 2 to 8, or {WHOLE} for a module that stays")
    return find_matrices(subject, {**bits, **dict.fromkeys(names, WHOLE)})


def find_matrices(subject: Transformer | Streamed, bits: Mapping[str, int]) -> Protection:
    """The matrices that modules hold, by their bits; 16 for one that stays. The longest name counts.

    Raises `InputError` for a name without a matrix in a block.
    """
    known = list(matrices(subject.model, subject.layers()))
    for one in bits:
        if not any(is_under(name, [one]) for name in known):
            raise InputError(
                f"{one!r} to protect is no matrix of a block, and no module with some: give for example "
                f"{known[0].removesuffix('.weight')}"
            )
    found = {}
    for name in known:
        if own := [one for one in bits if is_under(name, [one])]:
            found[name] = bits[max(own, key=len)]
    return Protection(
        frozenset(name for name, number in found.items() if number >= WHOLE),
        {name: number for name, number in found.items() if number < WHOLE},
    )


def write_protection(bits: Mapping[str, int]) -> str:
    """The text of a protect.json: module -> bits, 16 for one that stays."""
    stays = [name for name, number in bits.items() if number >= WHOLE]
    return json.dumps({"protect": stays, "bits": {name: n for name, n in bits.items() if n < WHOLE}}, indent=1)


def read_order(source: str, subject: Transformer | Streamed) -> list[str]:
    """The matrices of a model's blocks, those first that need more bits.

    source: "ends" for the last block, the first one, and then the others from both ends; or a protect.json with the
    "importance" of modules, as a diagnosis writes it. Raises `DataError` for a file without it, `InputError` for names
    that the model has not.
    """
    known = list(matrices(subject.model, subject.layers()))
    if source == "ends":
        paths = subject.layers()
        depth = {path: min(2 * (len(paths) - 1 - at), 2 * at + 1) for at, path in enumerate(paths)}
        owners = {name: next(path for path in paths if is_under(name, [path])) for name in known}
        return sorted(known, key=lambda name: depth[owners[name]])
    try:
        told = json.loads(Path(source).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f'{source} can\'t be read as JSON: give "ends", or a protect.json with importance') from error
    scores = told.get("importance") if isinstance(told, dict) else None
    if not isinstance(scores, dict) or not all(isinstance(one, int | float) for one in scores.values()):
        raise DataError(f"{source} tells no importance: let --diagnose write it, or give dynamic=ends")
    find_matrices(subject, dict.fromkeys(scores, WHOLE))
    found = {
        name: max(scores[one] for one in scores if is_under(name, [one])) for name in known if is_under(name, scores)
    }
    return sorted(found, key=lambda name: -found[name])


def move_bits(
    sizes: Mapping[str, int], order: Sequence[str], bits: int, *, share: float = 0.25, most: int = 8, least: int = 2
) -> dict[str, int]:
    """Matrix -> bits: one more for those that come first, one less for those that come last, `bits` on average at most.

    sizes: weights of each matrix. order: names, the ones that matter most first. share: of all weights that are raised
    at most; they are paid for from the end, so that the mean over weights does not rise.

    Source: dynamic quantisation as in arXiv 2504.02010, where sensitive modules get more bits. Departure: there by
    hand, here by any order.
    """
    whole, found = sum(sizes.values()), dict.fromkeys(sizes, bits)
    if not least < bits < most:
        return found
    raised, room, behind = 0, 0, list(order)
    while behind:
        name, lower, gained = behind.pop(0), list[str](), room
        while gained < sizes[name] and behind:
            lower.append(behind.pop())
            gained += sizes[lower[-1]]
        if gained < sizes[name] or raised + sizes[name] > share * whole:
            break
        found |= {name: bits + 1, **dict.fromkeys(lower, bits - 1)}
        raised, room = raised + sizes[name], gained - sizes[name]
    return found
