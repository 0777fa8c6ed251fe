"""A grid of compressed models for studies: methods that train nothing, at several amounts, and folders of other tools.

A `Config` names one: "wanda 50%" (half of the weights of the blocks are zero), "sparsegpt 2:4", "gptq 4bit", a folder.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from secateur import recipes
from secateur._utils import http
from secateur._utils.disk import atomic_write
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.data.texts import Corpus
from secateur.errors import InputError
from secateur.measure import sparsity
from secateur.methods import blockwise
from secateur.methods.protection import WHOLE, Protection, find_matrices, write_protection
from secateur.runs.backends.language import stored_bytes
from secateur.score import obs, spectral
from secateur.select import allocate, weights
from secateur.subjects import Transformer, open_subject
from secateur.subjects.matrices import matrices
from secateur.subjects.transformer import blocks
from secateur.vocabulary import Budget

__all__ = [
    "CALIBRATED",
    "DENSE",
    "METHODS",
    "QUANTISERS",
    "Config",
    "check_grid",
    "compress",
    "count_bytes",
    "find_beside",
    "make_grid",
    "mean_bits",
]

LAYERED = ("magnitude-block", "magnitude-profile", "alphapruning")
"""Methods by which matrices or blocks lose shares of their own, and so no pattern."""
PRUNERS = ("random", "magnitude", "wanda", "sparsegpt", *LAYERED)
QUANTISERS = ("rtn", "gptq")
METHODS = (*PRUNERS, *QUANTISERS)
CALIBRATED = ("wanda", "sparsegpt", "alphapruning", "gptq")
"""Methods that read texts."""
SPREAD = 0.3
"""Of AlphaPruning: by how much of the mean a block's share of zeros may differ. Source: arXiv 2410.10912."""
PROFILE = 0.3
"""Of magnitude-profile: how much more goes in the middle than beside the ends, as a share of what goes on average."""
MOST = 0.99
"""Of magnitude-profile: the largest share of a block's weights that may go."""
GROUP = 128
"""Columns that share their levels where a matrix has as many; else all of a row, rounded up to 16s."""


@dataclass(frozen=True, slots=True)
class Config:
    """One compressed model. amount: "50%" (share of zeros), "2:4" or "4bit"; of a folder nothing.

    by_module: (module or matrix, bits) of those that are rounded to bits of their own, or stay, at 16. variant: what is
    said of it: "protected", "dynamic"; "traces" where it is calibrated on traces in place of the general texts. texts:
    sha256 of these. label: what it is called, where that is not its method and amount.
    """

    method: str
    amount: str = ""
    seed: int = 0
    samples: int = 128
    by_module: tuple[tuple[str, int], ...] = ()
    variant: str = ""
    texts: str = ""
    label: str = field(default="", compare=False)

    def __str__(self) -> str:
        if self.label:
            return self.label
        name = self.method if self.method in METHODS else Path(self.method).name
        return " ".join(filter(None, [name, self.amount, self.variant, f"seed {self.seed}" if self.seed else ""]))

    @property
    def calibrated(self) -> bool:
        """Whether it reads texts."""
        return self.method in CALIBRATED

    @property
    def digest(self) -> str:
        """What tells it from others in names of files."""
        files = sorted(Path(self.method).glob("*.safetensors")) if self.method not in METHODS else []
        stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        samples = self.samples if self.calibrated else 0
        what: tuple[object, ...] = (self.method, self.amount, self.seed, samples, stamps)
        if self.by_module or self.variant:
            what += (self.by_module, self.variant)
        if self.texts:
            what += (self.texts,)
        return hashlib.sha256(repr(what).encode()).hexdigest()[:12]

    @property
    def bits(self) -> int:
        """Bits of a weight; 0 where weights are not rounded."""
        return int(self.amount.removesuffix("bit")) if self.amount.endswith("bit") else 0

    @property
    def sparsity(self) -> float:
        """Share of zeros in the matrices of the blocks."""
        if ":" in self.amount:
            n, m = map(int, self.amount.split(":"))
            return 1 - n / m
        return float(self.amount.removesuffix("%")) / 100 if self.amount.endswith("%") else 0.0


DENSE = Config("original")
"""The model itself."""


def make_grid(
    methods: Sequence[str],
    shares: Sequence[str] = (),
    patterns: Sequence[str] = (),
    bits: Sequence[int] = (),
    *,
    seeds: Sequence[int] = (0,),
    samples: int = 128,
) -> list[Config]:
    """Pruners at each share of zeros ("50%" or 0.5) and pattern, quantisers at each number of bits, and folders.

    Raises `InputError` for a method that is none, or an amount that can't be.
    """
    found = list[Config]()
    amounts = [_read_share(one) for one in shares]
    for pattern in patterns:
        n, _, m = str(pattern).partition(":")
        if not (n.isdigit() and m.isdigit() and 0 < int(n) < int(m)):
            raise InputError(f"pattern {pattern!r}: write n:m, n of each m weights stay, such as 2:4")
    for number in bits:
        if not 2 <= number <= 8:
            raise InputError(f"bits={number}: give 2 to 8")
    for method in methods:
        if method in PRUNERS:
            these = [*amounts, *(map(str, patterns) if method not in LAYERED else ())]
        elif method in QUANTISERS:
            these = [f"{number}bit" for number in bits]
        elif Path(method).is_dir():
            found += find_beside([method])
            continue
        else:
            raise InputError(f"method {method!r} is none of {', '.join(METHODS)}, and no folder of a model")
        own = seeds if method in ("random", *CALIBRATED) else seeds[:1]
        found += [Config(method, amount, seed, samples) for amount in these for seed in own]
    if not found:
        raise InputError(
            "the grid is empty: give shares of zeros or patterns for pruners, bits for quantisers, or a folder"
        )
    return found


def find_beside(sources: Sequence[str]) -> list[Config]:
    """Models that are there, each once: folders, and servers ("http://host/v1#NAME"), each by a name of its own.

    A folder is told by its whole path: one called "gptq" or "original" is neither the method nor the model itself. Of
    two with the same last part more is said.
    """
    places = list(dict.fromkeys(one if http.is_address(one) else str(Path(one).resolve()) for one in sources))
    found = list[Config]()
    for place in places:
        taken = {str(DENSE), *(name for one in places if one != place for name in _list_names(one))}
        found.append(Config(place, label=next((name for name in _list_names(place) if name not in taken), place)))
    return found


def _list_names(place: str) -> list[str]:
    """What a place may be called, the shortest first: the ends of a path; a server's model, and its address."""
    if http.is_address(place):
        return [place.partition("#")[2] or place, place]
    parts = Path(place).parts
    return [str(Path(*parts[-size:])) for size in range(1, len(parts) + 1)]


def _read_share(given: str | float) -> str:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", str(given))
    share = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    if not 0 <= share < 1:
        raise InputError(f"sparsity {given!r}: give a share of zeros below 1, such as 50% or 0.5")
    return f"{100 * share:g}%"


def compress(
    subject: Transformer,
    config: Config,
    corpus: Corpus,
    folder: Path,
    *,
    length: int = 128,
    protect: Collection[str] = (),
) -> Transformer:
    """The compressed model, in floating point; `subject` stays as it is.

    corpus: texts to calibrate on. folder: where a run that goes on finds finished blocks. length: tokens of a window.
    protect: names of matrices, or of modules with some, that stay as they are; the others lose the config's share.

    Embeddings, norms and the head stay. At no zeros, or 16 bits, nothing changes.
    """
    if config.method not in METHODS and config != DENSE:
        return open_subject(config.method, quantised=True)  # by its stored bytes, where it is quantised
    if not config.bits and not config.sparsity:
        return subject.copy()
    protection = find_matrices(subject, dict(config.by_module) | dict.fromkeys(protect, WHOLE))
    if config.method == "random":
        return _change(subject, _zero_randomly(config), protection)
    if config.method == "rtn":
        return _change(subject, _round(config, _find_group(subject), protection), protection)
    if config.method == "alphapruning":
        return _prune_by_spectrum(subject, config, corpus, folder, length, protection)
    if config.method in LAYERED:
        return _prune_by_thresholds(subject, _share_out(subject, config, protection.stays))
    share = 1 - config.sparsity * (1 - _share_of(protection.stays, subject))
    budget = Budget.parse(f"pattern={config.amount}" if ":" in config.amount else f"weights={100 * share:.6g}%")
    how: dict[str, object] = {}
    if config.calibrated:
        how = {"samples": config.samples, "length": length, "seed": config.seed}
    if config.bits:
        how |= {"bits": config.bits, "group": _find_group(subject)}
    if protection.stays or protection.bits:
        file = folder.with_name(f"{folder.name}-protect.json")
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, write_protection({**dict.fromkeys(protection.stays, WHOLE), **protection.bits}))
        how["protect"] = str(file)
    recipe = recipes.find("sparsegpt" if config.method == "gptq" else config.method)
    with Run.open(folder, {"config": config.digest}) as run:
        (result,) = recipe(subject, corpus, [budget], run, **how)
    return cast(Transformer, result.subject)


@torch.no_grad()
def _prune_by_spectrum(
    subject: Transformer, config: Config, corpus: Corpus, folder: Path, length: int, protection: Protection
) -> Transformer:
    """SparseGPT with a share of zeros for each block: the smaller its tail exponent, the more stays; the same mean.

    Source: AlphaPruning (arXiv 2410.10912), linear between its bounds; its exponents are of single matrices, averaged
    over a block.
    """
    windows, _ = texts.windows(corpus, subject.tokenizer, config.samples, length, seed=config.seed, together=True)
    worth, sizes = list[float](), list[float]()
    for path in subject.layers():
        found = [one.weight for one in matrices(subject.model, [path]).values()]
        worth.append(-sum(map(spectral.tail_exponent, found)) / len(found))
        sizes.append(float(sum(weight.numel() for weight in found)))
    if not all(map(math.isfinite, worth)):
        raise InputError("alphapruning needs matrices of which half has full rank: this model has others")
    shares = allocate.spread(worth, 1 - config.sparsity, SPREAD * config.sparsity, sizes=sizes)
    student = subject.copy()
    for block in blocks.visit(student, windows, folder):
        choose = weights.chooser(shares[block.index], None, "matrix")
        blockwise.prune_by_hessian(block, choose, 1, protection=protection)
    return student


def check_grid(subject: Transformer, grid: Sequence[Config]) -> None:
    """Raise `InputError`, before anything is compressed, for what the model's blocks can't lose."""
    for config in grid:
        if config.method == "magnitude-profile" and config.sparsity:
            _share_out(subject, config, find_matrices(subject, dict(config.by_module)).stays)


def _share_out(subject: Transformer, config: Config, stays: Collection[str]) -> list[tuple[list[str], int]]:
    """(matrices under one threshold, how many of their weights stay), for all but what stays: int(n share) of n in all.

    magnitude-block: the matrices of a block are ranked together, and each block loses the same share.
    magnitude-profile: a threshold for each matrix; the first and the last block lose nothing, and the others more
    towards the middle, on a line by `PROFILE`, so that the mean over all blocks is what was asked for.

    Source: LLM-KICK (arXiv 2310.01382), whose code has both by hand, the second with up to 30 % more in the middle; a
    mean that is kept is ours.
    """
    found = matrices(subject.model, subject.layers())
    groups = [[name for name in found if name.startswith(f"{path}.")] for path in subject.layers()]
    groups = [[name for name in names if name not in stays] for names in groups]
    sizes = {name: matrix.weight.numel() for name, matrix in found.items()}
    blocks_sizes = [sum(sizes[name] for name in names) for names in groups]
    whole = sum(blocks_sizes)
    kept = int((1 - config.sparsity) * whole + 1e-9)
    if config.method == "magnitude-block":
        return list(zip(groups, allocate.proportional(blocks_sizes, kept), strict=True))
    inner = blocks_sizes[1:-1]
    middle = sum(inner)
    share = (whole - kept) / middle if middle else math.inf
    if config.sparsity * whole > MOST * middle + 1e-6:
        limit = math.floor(1000 * MOST * middle / whole + 1e-6) / 10
        most = f"ask for {limit:g}% at most" if middle else "it needs three blocks"
        raise InputError(
            f"magnitude-profile leaves the first and the last block whole, so {config.amount} of all weights can't go "
            f"from the {len(inner)} between: {most}"
        )
    worth = [abs(index - (len(inner) - 1) / 2) for index in range(len(inner))]
    densities = allocate.spread(worth, 1 - share, share * PROFILE / 2, sizes=inner, least=1 - MOST)
    total, before = 0.0, 0
    counts = [blocks_sizes[0]]
    for size, density in zip(inner, densities, strict=True):  # rounded so that no weight is lost in the sum
        total += size * density
        counts.append(min(size, round(total) - before))
        before += counts[-1]
    counts[-1] += kept - sum(counts) - blocks_sizes[-1]
    counts.append(blocks_sizes[-1])
    result = list[tuple[list[str], int]]()
    for names, count in zip(groups, counts, strict=True):
        parts = allocate.proportional([sizes[name] for name in names], count)
        result += [([name], part) for name, part in zip(names, parts, strict=True)]
    return result


@torch.no_grad()
def _prune_by_thresholds(subject: Transformer, shares: Sequence[tuple[list[str], int]]) -> Transformer:
    """The weights of largest magnitude stay: as many of each group of matrices as is said."""
    student = subject.copy()
    found = matrices(student.model, student.layers())
    for names, count in shares:
        scores = {name: found[name].weight.float().abs() for name in names}
        edge, ties = weights.threshold(scores.items, count) if count else (math.inf, 0)
        for name in names:
            mask, ties = weights.above(scores[name], edge, ties)
            found[name].weight.mul_(mask)
    return student


def _share_of(stays: Collection[str], subject: Transformer) -> float:
    """Share of the weights of the blocks that some matrices hold."""
    sizes = {name: one.weight.numel() for name, one in matrices(subject.model, subject.layers()).items()}
    return sum(size for name, size in sizes.items() if name in stays) / sum(sizes.values())


def mean_bits(subject: Transformer, config: Config, protect: Collection[str] = ()) -> float:
    """Bits of a weight on average over all weights of the blocks' matrices, those that stay, at 16, among them."""
    protection = find_matrices(subject, dict(config.by_module) | dict.fromkeys(protect, WHOLE))
    sizes = {name: one.weight.numel() for name, one in matrices(subject.model, subject.layers()).items()}
    own = {name: protection.bits.get(name, config.bits or WHOLE) for name in sizes}
    own |= dict.fromkeys(protection.stays, WHOLE)
    return sum(own[name] * size for name, size in sizes.items()) / sum(sizes.values())


def count_bytes(student: Transformer, config: Config, protect: Collection[str] = ()) -> float:
    """Bytes of the weights as they would be stored: zeros left out where that is smaller, rounded ones in their bits.

    Of each group of rounded weights a scale and a zero point take 4 bytes. A folder counts as it is stored, be it that
    its weights were rounded by another tool and are floats now.
    """
    stored = stored_bytes(student)
    if student.stored is not None:
        return stored
    found = {name: one.weight for name, one in matrices(student.model, student.layers()).items()}
    if config.method not in METHODS and config != DENSE:
        files = sum(file.stat().st_size for file in Path(config.method).glob("*.safetensors"))
        packed = sparsity.figures(found, stored)["packed_bytes"].value
        return min(float(files) or packed, packed)
    if not config.bits:
        return sparsity.figures(found, stored)["packed_bytes"].value
    group = _find_group(student)
    protection = find_matrices(student, dict(config.by_module) | dict.fromkeys(protect, WHOLE))
    for name, weight in found.items():
        if name not in protection.stays:
            groups = len(weight) * math.ceil(weight.shape[1] / group)
            bits = protection.bits.get(name, config.bits)
            stored -= weight.numel() * (weight.element_size() - bits / 8) - 4 * groups
    return stored


def _find_group(subject: Transformer) -> int:
    narrowest = min(matrix.weight.shape[1] for matrix in matrices(subject.model, subject.layers()).values())
    return GROUP if narrowest >= GROUP else max(16, narrowest // 16 * 16)


def _round(config: Config, group: int, protection: Protection) -> Callable[[str, Tensor], Tensor]:
    return lambda name, weight: obs.round_to_nearest(weight, protection.bits.get(name, config.bits), group)


def _zero_randomly(config: Config) -> Callable[[str, Tensor], Tensor]:
    draw = torch.Generator().manual_seed(config.seed)
    budget = Budget.parse(f"pattern={config.amount}") if ":" in config.amount else None
    choose = weights.chooser(1 - config.sparsity, budget.pattern if budget else None, "matrix")

    def zero(name: str, weight: Tensor) -> Tensor:
        mask: Tensor = choose(torch.rand(weight.shape, generator=draw))
        return weight * mask.to(weight.device)

    return zero


@torch.no_grad()
def _change(subject: Transformer, change: Callable[[str, Tensor], Tensor], protection: Protection) -> Transformer:
    student = subject.copy()
    for name, matrix in matrices(student.model, student.layers()).items():
        if name not in protection.stays:
            matrix.weight.copy_(change(name, matrix.weight))
    return student
