"""Outputs of named modules, in a student and in its teacher, and the maps between their widths.

A tap is the dotted name of a module, and stands for what it gives; with "@input" behind it, for what it is given:
"classifier@input" is the feature that a classifier reads. Patterns name several: `*`, `?` and `[...]` fit within one
part of a name, as in fnmatch, and `**` any number of parts. "blocks.{i}" names numbered modules, and a map from a
student's numbers to the teacher's tells which are pairs where layers are missing.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur._utils import devices
from secateur._utils.modes import evaluating
from secateur.errors import InputError
from secateur.recover.distillation import losses

__all__ = [
    "Adapters",
    "Kind",
    "adapter",
    "before_dropout",
    "each",
    "first",
    "list_names",
    "look_at",
    "match",
    "one",
    "pairs",
    "pool",
    "tap",
]

Find = Callable[[Any], list[Tensor]]
"""What a module gave -> what of it is kept. The hook holds nothing else: where this pools, the map itself goes."""

Kind = Literal["linear", "norm", "convolution"]

INPUT = "@input"


# ------------------------------------------------------------------------------------------------------- names


def match(model: nn.Module, pattern: str) -> list[str]:
    """The taps of `model` that fit `pattern`, in the order of its modules.

    Raises `InputError` with the nearest names where none fits.
    """
    path, end = _split(pattern)
    wanted = path.split(".")
    found = [name for name, _ in model.named_modules() if name and _fits(name.split("."), wanted)]
    if not found:
        raise _no_such_module(model, path)
    return [name + end for name in found]


def one(model: nn.Module, pattern: str) -> str:
    """The one tap of `model` that fits `pattern`. Raises `InputError` where none fits, or several, which it names."""
    found = match(model, pattern)
    if len(found) > 1:
        raise InputError(f"{pattern!r} names {len(found)} modules, {list_names(found)}: name one of them")
    return found[0]


def list_names(names: Sequence[str]) -> str:
    """The first few of the names, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def pairs(
    student: nn.Module,
    teacher: nn.Module,
    pattern: str,
    *,
    other: str = "",
    index: Mapping[int, int] | Sequence[int] | None = None,
) -> list[tuple[str, str]]:
    """(tap of the student, tap of the teacher), in the student's order.

    pattern: of the student's; other: of the teacher's, `pattern` unless given. With "{i}" in both, module i of the
    student goes with module index[i] of the teacher, i where no index is given: [0, 2, 4] for a student that has lost
    every second of five layers. Without, both patterns have to fit equally many.

    Raises `InputError` for a pattern that fits nothing, for numbers that `index` or the teacher lacks, for an `index`
    without "{i}" or of numbers that the student lacks, and for two patterns that fit other numbers of modules.
    """
    other = other or pattern
    if ("{i}" in pattern) != ("{i}" in other):
        raise InputError(f"{pattern!r} and {other!r}: write {{i}} in both, or in neither")
    if "{i}" not in pattern:
        if index is not None:
            raise InputError(f"index says which numbers {{i}} stands for, and {pattern!r} has none: write {{i}} in it")
        ours, theirs = match(student, pattern), match(teacher, other)
        if len(ours) != len(theirs):
            raise InputError(
                f"{pattern!r} fits {len(ours)} modules of the student ({list_names(ours)}) and {other!r} "
                f"{len(theirs)} of the teacher ({list_names(theirs)}): write {{i}} for their number and give index, "
                "or name as many"
            )
        return list(zip(ours, theirs, strict=True))
    found, numbers = [], _numbers(student, pattern)
    surplus = () if index is None else index if isinstance(index, Mapping) else range(numbers[-1] + 1, len(index))
    if lacking := [pattern.replace("{i}", str(number)) for number in surplus if number not in numbers]:
        raise InputError(f"index gives numbers for {list_names(lacking)}, which the student lacks: leave them out")
    for number in numbers:
        if index is not None and number not in (index if isinstance(index, Mapping) else range(len(index))):
            raise InputError(f"index says nothing of {pattern.replace('{i}', str(number))}: give the teacher's number")
        place = number if index is None else index[number]
        found.append((pattern.replace("{i}", str(number)), one(teacher, other.replace("{i}", str(place)))))
    return found


def _numbers(model: nn.Module, pattern: str) -> list[int]:
    """The numbers i for which the model has a module "pattern", in order."""
    path, _ = _split(pattern)
    before, _, after = path.partition("{i}")
    if "{i}" in after or any(sign in path for sign in "*?["):
        raise InputError(f"{pattern!r}: {{i}} stands once, and without other wildcards")
    middles = [
        name[len(before) : len(name) - len(after)]
        for name, _ in model.named_modules()
        if name.startswith(before) and name.endswith(after)
    ]
    found = sorted({int(middle) for middle in middles if middle.isdecimal()})
    if not found:
        raise _no_such_module(model, path)
    return found


def _split(tap: str) -> tuple[str, str]:
    """(name of the module, "@input" or nothing)."""
    return (tap.removesuffix(INPUT), INPUT) if tap.endswith(INPUT) else (tap, "")


def _fits(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    if not wanted:
        return not parts
    if wanted[0] == "**":
        return any(_fits(parts[start:], wanted[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], wanted[0]) and _fits(parts[1:], wanted[1:])


def _no_such_module(model: nn.Module, path: str) -> InputError:
    known = [name for name, _ in model.named_modules() if name]
    near = difflib.get_close_matches(path, known, n=3, cutoff=0.4) or known[:3]
    return InputError(f"{path!r} is no module of {type(model).__name__}: near are {', '.join(near) or 'none'}")


# -------------------------------------------------------------------------------------------------------- taps


def first(output: object) -> list[Tensor]:
    """The first tensor of floats in what a module gave, itself or in mappings and sequences."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ()
    return next((found for part in parts if (found := first(part))), [])


def pool(output: object) -> list[Tensor]:
    """[B, D] in what a module gave: rows as they are, maps [B, D, H, W] as their mean over places."""
    return [one.mean((2, 3)) if one.dim() == 4 else one for one in first(output) if one.dim() in (2, 4)]


@contextlib.contextmanager
def tap(model: nn.Module, names: Sequence[str], find: Find = first) -> Iterator[list[Tensor]]:
    """A list that holds, after a forward pass inside, what the taps `names` gave, in the order of names.

    A module that gives several (a pyramid) adds all that `find` finds; of a module that runs several times, the first
    pass counts. Nothing else of the pass is kept, and no hook stays behind. Raises `InputError` for a name that is no
    module, with the nearest.
    """
    modules = dict(model.named_modules())
    for name in names:
        if _split(name)[0] not in modules:
            raise _no_such_module(model, _split(name)[0])
    found: dict[str, list[Tensor]] = {}
    taken: list[Tensor] = []

    def note(name: str, given: object) -> None:
        if name not in found:
            found[name] = find(given)
            if len(found) == len(set(names)):
                taken[:] = [one for tap in names for one in found[tap]]

    def before(module: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object], name: str) -> None:
        note(name, [*args, *kwargs.values()])

    def after(module: nn.Module, args: object, output: object, name: str) -> None:
        note(name, output)

    handles = [
        modules[path].register_forward_pre_hook(_bind_name(before, name), with_kwargs=True)
        if end
        else modules[path].register_forward_hook(_bind_name(after, name))
        for name in dict.fromkeys(names)
        for path, end in [_split(name)]
    ]
    try:
        yield taken
    finally:
        for handle in handles:
            handle.remove()


def _bind_name(hook: Callable[..., None], name: str) -> Callable[..., None]:
    return lambda module, args, given: hook(module, args, given, name)


@contextlib.contextmanager
def each(model: nn.Module, names: Sequence[str], find: Find = first) -> Iterator[list[list[Tensor]]]:
    """As `tap`, with a list for each tap: empty where it did not run, or gave nothing that `find` finds."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(tap(model, [name], find)) for name in names]


@torch.no_grad()
def look_at(
    model: nn.Module,
    names: Sequence[str],
    inputs: Tensor,
    find: Find = first,
    *,
    ask: Callable[[nn.Module, Tensor], object] | None = None,
) -> list[Tensor]:
    """What the taps `names` give on `inputs`, in evaluation mode; `InputError` that names those which give nothing.

    ask: runs the model on the inputs; ``model(inputs)`` if None.
    """
    inputs = devices.move(inputs, model)
    with evaluating(model), each(model, names, find) as found:
        model(inputs) if ask is None else ask(model, inputs)
    if silent := [name for name, given in zip(names, found, strict=True) if not given]:
        raise InputError(f"{list_names(silent)} gives nothing to compare: name modules that run, and give features")
    return [feature for given in found for feature in given]


@torch.no_grad()
def before_dropout(model: nn.Module, names: Sequence[str], run: Callable[[nn.Module], object]) -> list[str]:
    """Taps of what the modules `names` read, as it is before a dropout: "NAME@input", or that of the dropout.

    run: a forward pass of the model, in which they all run. A dropout that is no module is not found.
    """
    drops = [path for path, module in model.named_modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
    with evaluating(model), each(model, [name + INPUT for name in names]) as read, each(model, drops) as given:
        run(model)
    found = []
    for name, (wanted, *_) in zip(names, read, strict=True):
        same = (path for path, made in zip(drops, given, strict=True) if made and torch.equal(made[0], wanted))
        found.append(next(same, name) + INPUT)
    return found


# ------------------------------------------------------------------------------------------------------ widths


def adapter(ours: int, theirs: int, kind: Kind = "linear", *, dropout: float = 0.5) -> nn.Module:
    """A map from the student's width to the teacher's, to be trained along; nothing where the widths are equal.

    - linear: ``Linear(ours, theirs)``;
    - norm: ``Linear(ours, theirs)(Dropout(dropout)(BatchNorm1d(x)))``, its biases 0 at the start, of rows [N, ours]
      (the projector of arXiv 2305.17007);
    - convolution: 1 x 1, of maps [N, ours, H, W].

    Hand it to `loop.train` as `extra`: it is in the optimiser, and the student never holds it, so that it is absent
    from what is saved.
    """
    if kind not in ("linear", "norm", "convolution"):
        raise InputError(f"adapter {kind!r}: give 'linear', 'norm' or 'convolution'")
    if ours == theirs:
        return nn.Identity()
    if kind == "convolution":
        return nn.Conv2d(ours, theirs, 1)
    linear = nn.Linear(ours, theirs)
    if kind == "linear":
        return linear
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.BatchNorm1d(ours), nn.Dropout(dropout), linear)


class Adapters(nn.Module):
    """An `adapter` for each pair of features, nothing where their widths are equal."""

    def __init__(self, student: Sequence[int], teacher: Sequence[int], *, kind: Kind = "convolution") -> None:
        super().__init__()
        if len(student) != len(teacher):
            raise InputError(
                f"{len(student)} features of the student and {len(teacher)} of the teacher: tap equally many"
            )
        self.each = nn.ModuleList(adapter(ours, theirs, kind) for ours, theirs in zip(student, teacher, strict=True))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The student's features in the teacher's widths."""
        return [losses.lift(one, feature) for one, feature in zip(self.each, features, strict=True)]
