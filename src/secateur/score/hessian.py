"""Second-order importance: the layer-wise problem min ||W' X - W X||^2 and its structured solver.

The Hessian of that loss in a row of W is H = 2 X X^T / N, the same for every row; X [d_in, N] are the inputs of the
linear over N real tokens. Dividing by N rather than by samples makes it independent of sequence length; no score,
order or weight below depends on its scale. What compares matrices that read different numbers of tokens, such as
experts, takes `Moments.squares`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from secateur._utils import distributed
from secateur._utils.finite import all_finite
from secateur.errors import InputError, NumericalError, RunError
from secateur.score.hooks import Batch, finite, stream

__all__ = [
    "Moments",
    "Snapshots",
    "StoredColumns",
    "Sweep",
    "collect",
    "dampened_factor",
    "dampened_factor_",
    "describe_starved",
    "diagonal",
    "pool_starved",
    "strips",
    "sweep",
]

LAZY = 32
"""Columns of pending inverse updates before they are applied as one matrix product."""


# -------------------------------------------------------------------------------------------------- collecting


class Moments:
    """A running H = 2 X X^T / N of rows X^T [N, d_in] that come in parts, or its diagonal alone; float32.

    A running mean, not a sum: a long calibration set must not run out of float32's digits. How the rows are split
    into parts does not matter beyond rounding.
    """

    def __init__(self, *, diagonal: bool = False) -> None:
        self.diagonal, self.rows = diagonal, 0
        self._sum: Tensor | None = None  # below the diagonal blocks only as of the last look at `sum`

    @property
    def sum(self) -> Tensor | None:
        """H, or its diagonal; None before the first row."""
        if self._sum is not None and not self.diagonal:
            for here in strips(len(self._sum)):
                self._sum[here.stop :, here] = self._sum[here, here.stop :].T
        return self._sum

    @sum.setter
    def sum(self, value: Tensor | None) -> None:
        """Take the whole of H, or its diagonal, as it is."""
        self._sum = value

    def add(self, rows: Tensor) -> None:
        """Count rows [N, d_in] in."""
        if not len(rows):
            return
        rows, seen = rows.detach().float(), self.rows
        self.rows = seen + len(rows)
        kept, share = seen / self.rows, 2.0 / self.rows
        width = rows.shape[1]
        if self._sum is None:
            self._sum = rows.new_zeros(width) if self.diagonal else rows.new_zeros(width, width)
        if self.diagonal:
            self._sum.mul_(kept).add_(rows.square().sum(0), alpha=share)
            return
        for here in strips(width):
            self._sum[here, here.start :].addmm_(rows[:, here].T, rows[:, here.start :], beta=kept, alpha=share)

    def merge(self, *others: Moments) -> Moments:
        """The moments of all rows of these and of `others`."""
        result = Moments(diagonal=self.diagonal)
        parts = [part for part in (self, *others) if part.rows and part.sum is not None]
        result.rows = sum(part.rows for part in parts)
        for part in parts:
            assert part.sum is not None
            scaled = part.sum * (part.rows / result.rows)
            result.sum = scaled if result.sum is None else result.sum.add_(scaled)
        return result

    def share(self, width: int) -> None:
        """Under several processes: become the moments of the rows of all of them; `width` is d_in."""
        if distributed.count() == 1:
            return
        shape = (width,) if self.diagonal else (width, width)
        whole = distributed.total(torch.zeros(shape) if self.sum is None else self.sum * self.rows)
        self.rows = int(distributed.total(torch.tensor([self.rows])))
        self.sum = whole / self.rows if self.rows else None

    def value(self, name: str) -> Tensor:
        """H [d_in, d_in], or its diagonal [d_in].

        Raises `NumericalError` naming `name` for NaN or infinity, `InputError` where there was no row.
        """
        if self.sum is None:
            raise InputError(
                f"{name} saw no token: every token was padding (check the attention mask), or none came by"
            )
        return finite(name, self.sum)

    def squares(self, name: str) -> Tensor:
        """||X_j||^2 [d_in] over all rows, of the diagonal alone; raises as `value`."""
        return self.value(name) * (self.rows / 2)


def strips(width: int) -> Iterator[slice]:
    """The rows of a square matrix in strips, for what is symmetric or triangular: half of it is never computed.

    Strips thinner than 192 rows cost a matrix product more of its speed than they save.
    """
    step = max(192, -(-width // 8))
    return (slice(start, min(start + step, width)) for start in range(0, width, step))


def pool_starved(
    found: Mapping[str, Moments], pools: Mapping[str, str], floor: int = 1
) -> tuple[dict[str, Moments], list[str]]:
    """`found`, where those with fewer than `floor` rows get the moments of all in their pool; and who those are.

    An expert that no token was sent to has no statistics of its own; those of its layer stand in, as of an expert that
    got its share of the tokens. pools: name -> pool.
    """
    members: dict[str, list[Moments]] = {}
    for name, moments in found.items():
        members.setdefault(pools[name], []).append(moments)
    starved = [name for name, moments in found.items() if moments.rows < floor and len(members[pools[name]]) > 1]
    result = dict(found)
    whole: dict[str, Moments] = {}
    for name in starved:
        pool = pools[name]
        if pool not in whole:
            first, *others = members[pool]
            whole[pool] = first.merge(*others)
            whole[pool].rows = -(-whole[pool].rows // len(members[pool]))
        result[name] = whole[pool]
    return result, starved


def describe_starved(starved: int, floor: int, by: str = "judged by their layer's norms") -> tuple[str, ...]:
    """What a receipt says of `starved` matrices that `pool_starved` gave the moments of others; nothing for none."""
    return (f"{starved} matrices of experts had under {floor} tokens: {by}",) if starved else ()


class _EnoughError(Exception):
    """Ends a forward pass: all that is asked for has been seen."""


def collect(
    forward: Callable[[Batch], object],
    model: nn.Module,
    batches: Iterable[Batch],
    modules: Sequence[str],
    *,
    stop: bool = False,
) -> dict[str, Tensor]:
    """Module -> H = 2 X X^T / N, float32 [d_in, d_in], over the real tokens of all batches; one pass.

    stop: end each pass after the last of the modules, once a first batch has shown that each of them runs once.

    Raises `NumericalError` naming the module whose inputs hold NaN or infinity.
    Source: ZipLM (arXiv 2302.04089), section 3.1; SparseGPT (arXiv 2301.00774).
    """
    return _collect(forward, model, batches, {name: Moments() for name in modules}, stop=stop)


def diagonal(
    forward: Callable[[Batch], object], model: nn.Module, batches: Iterable[Batch], modules: Sequence[str]
) -> dict[str, Tensor]:
    """Module -> diag(H) = 2 sum x^2 / N, float32 [d_in]: Wanda's squared column norms, without the matrix.

    Source: Wanda (arXiv 2306.11695), ||X_j||_2, up to a constant factor.
    """
    return _collect(forward, model, batches, {name: Moments(diagonal=True) for name in modules})


def _collect(
    forward: Callable[[Batch], object],
    model: nn.Module,
    batches: Iterable[Batch],
    found: Mapping[str, Moments],
    *,
    stop: bool = False,
) -> dict[str, Tensor]:
    ran: list[str] = []  # by the batch that is on its way
    enough = 0  # modules after which a pass may end; 0 while that is not known

    def reader(name: str, moments: Moments) -> Callable[[Tensor, Tensor | None], None]:
        def look(x: Tensor, mask: Tensor | None) -> None:
            moments.add(x.flatten(0, 1) if mask is None else x[mask])
            ran.append(name)
            if len(ran) == enough:
                raise _EnoughError

        return look

    def run(batch: Batch) -> None:
        nonlocal enough
        ran.clear()
        with suppress(_EnoughError):
            forward(batch)
        if stop and len(ran) == len(set(ran)) == len(found):
            enough = len(found)

    places: dict[tuple[str, Literal["input", "output"]], Callable[[Tensor, Tensor | None], None]]
    places = {(name, "input"): reader(name, moments) for name, moments in found.items()}
    stream(run, model, batches, places)
    return {name: moments.value(name) for name, moments in found.items()}


# ---------------------------------------------------------------------------------------------------- sweeping


class Snapshots(Mapping[int, Tensor]):
    """Level -> weight [d_out, d_in] with zeros where structures went.

    Only the surviving columns are stored (`columns[level]`, [d_out, kept * block], in their old order): a geometric
    grid of levels then takes about ten matrices in place of forty.
    """

    def __init__(self, columns: Mapping[int, Tensor], order: Sequence[int], block: int, count: int) -> None:
        self.columns, self._order, self._block, self._count = columns, tuple(order), block, count

    def __getitem__(self, level: int) -> Tensor:
        columns = self.columns[level]
        whole = columns.new_zeros(columns.shape[0], self._count * self._block)
        whole[:, self.keep(level).repeat_interleave(self._block).to(columns.device)] = columns
        return whole

    def keep(self, level: int) -> Tensor:
        """[count] booleans: the structures that stay at this level."""
        mask = torch.ones(self._count, dtype=torch.bool)
        mask[list(self._order[:level])] = False
        return mask

    def __iter__(self) -> Iterator[int]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)


class StoredColumns(Mapping[int, Tensor]):
    """Level -> surviving columns, as `Sweep.to_tensors` wrote them; each is mapped from its file when asked for."""

    def __init__(self, path: Path, prefix: str, levels: Sequence[int]) -> None:
        self._path, self._prefix, self._levels = path, prefix, tuple(levels)

    def __getitem__(self, level: int) -> Tensor:
        if level not in self._levels:
            raise KeyError(level)
        with safe_open(str(self._path), framework="pt") as file:
            columns: Tensor = file.get_tensor(f"{self._prefix}columns.{level}")
        return columns

    def __iter__(self) -> Iterator[int]:
        return iter(self._levels)

    def __len__(self) -> int:
        return len(self._levels)


@dataclass(frozen=True, slots=True, eq=False)
class Sweep:
    """Everything one pass over a linear gives. A level is a number of structures REMOVED: count minus kept.

    order:   structures, first to go first (as many as the highest level needs)
    levels:  the levels that were asked for, ascending
    weights: level -> compensated weight [d_out, d_in], zeros where structures went
    errors:  level -> p = ||W' X - W X||^2 / ||W X||^2: 0 for the uncut linear, 1 for none of it
    """

    order: tuple[int, ...]
    levels: tuple[int, ...]
    weights: Snapshots
    errors: Mapping[int, float]

    def keep(self, level: int) -> Tensor:
        """[count] booleans: the structures that stay at this level."""
        return self.weights.keep(level)

    def to_tensors(self) -> dict[str, Tensor]:
        """Flat tensors for a safetensors file."""
        plain = {
            "order": torch.tensor(self.order, dtype=torch.int64),
            "shape": torch.tensor([self.weights._block, self.weights._count]),
            "levels": torch.tensor(self.levels, dtype=torch.int64),
            "errors": torch.tensor([self.errors[level] for level in self.levels], dtype=torch.float64),
        }
        return plain | {f"columns.{level}": columns for level, columns in self.weights.columns.items()}

    @classmethod
    def open(cls, path: Path, prefix: str = "") -> Sweep:
        """The sweep whose `to_tensors` lie in a safetensors file under `prefix`; weights stay there until asked for.

        Raises `RunError` for a file that is damaged.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                order, levels, shape, errors = (
                    file.get_tensor(f"{prefix}{name}").tolist() for name in ("order", "levels", "shape", "errors")
                )
        except SafetensorError as error:
            raise RunError(f"{path} is damaged: delete it and run the same command again") from error
        weights = Snapshots(StoredColumns(path, prefix, levels), order, *shape)
        return cls(tuple(order), tuple(levels), weights, dict(zip(levels, errors, strict=True)))


def sweep(
    weight: Tensor,
    H: Tensor,
    block: int = 1,
    levels: Sequence[int] | None = None,
    *,
    damp: float = 0.01,
    compensate: bool = True,
    one_at_a_time: bool = True,
    removed: Sequence[int] = (),
) -> Sweep:
    """Remove structures of a linear one by one, cheapest first, and emit every level on the way.

    A structure M is `block` neighbouring input columns (1 for a neuron, d_head for a head, all query heads of a KV
    group for grouped attention). With C = (H + damp * mean(diag H) I)^-1 each step

        scores      rho_M = sum_i W_iM (C_MM)^-1 W_iM^T                 and takes the least (ties: the later goes),
        compensates W <- W - W_:M (C_MM)^-1 C_M:,
        updates     C <- C - C_:M (C_MM)^-1 C_M:,

    so that the survivors R always equal the least-squares solution W H_:R (H_RR)^-1. Scores are fresh at each step:
    of two equal columns only one is free to go. Inputs that are always zero lose their weights with
    the first step.

    Args:
        weight: [d_out, d_in]; computed in float32, or float64 if given so. Not changed.
        H: [d_in, d_in], from `collect`.
        block: columns per structure.
        levels: numbers of structures removed; all of 0..count unless given.
        damp: dampening as a share of the mean diagonal of the live inputs.
        compensate: False keeps the order but zeroes columns without correcting the others (for comparison).
        one_at_a_time: False orders by the scores of the first step (for comparison).
        removed: structures that are gone already (a gradual run's second database); their columns of `weight` are
            taken as zero, levels count them, and errors refer to what is left.

    Cost: O(d_in^3) for all levels together; pending updates of C are applied LAZY columns at a time, and C shrinks
    as columns leave.

    Source: ZipLM (arXiv 2302.04089), section 3.1, equations 2 to 4, and the loss prior p of section 3.2. Departures:
    dead inputs do not enter the mean of the dampening; p of a compensated sweep never falls from one level to the
    next (dampening can make it, by a hair).
    """
    W, second, count = _prepare(weight, H, block)
    removed = tuple(dict.fromkeys(removed))
    levels = range(len(removed), count + 1) if levels is None else levels
    wanted = tuple(sorted(set(levels)))
    if not wanted or wanted[0] < len(removed) or wanted[-1] > count:
        raise InputError(f"levels must lie between {len(removed)} (already removed) and {count}, got {wanted}")
    order = list(removed)
    width = torch.arange(block, device=W.device)

    def columns_of(structures: Tensor) -> Tensor:
        return (structures.unsqueeze(1) * block + width).flatten()

    alive = torch.ones(count, dtype=torch.bool, device=W.device)
    alive[order] = False
    live = alive.nonzero().flatten()  # structures still held in C and W, in their old order
    held = columns_of(live)
    original = W * alive.repeat_interleave(block)
    W = original[:, held].masked_fill(second.diagonal()[held] == 0.0, 0.0)
    C = _damped_inverse(second, damp, held)
    blocks = _diagonal_blocks(C, block)
    rho = _scores(W, blocks)
    gone = torch.zeros_like(live, dtype=torch.bool)
    pending: list[tuple[Tensor, Tensor]] = []  # C really is C - sum of left @ right^T
    columns: dict[int, Tensor] = {}

    for level in range(len(order), wanted[-1] + 1):
        if level in wanted:
            stay = (~gone).nonzero().flatten()
            untouched = level == len(removed) or not compensate
            columns[level] = original[:, columns_of(live[stay])] if untouched else W[:, columns_of(stay)]
        if level == wanted[-1]:
            break

        if one_at_a_time:
            rho = _scores(W, blocks)
        rho = rho.masked_fill(gone, torch.inf)
        place = int((rho == rho.min()).nonzero()[-1])
        M = slice(place * block, (place + 1) * block)
        column = C[:, M].clone()  # C_:M
        if pending:
            left, right = (torch.cat(parts, 1) for parts in zip(*pending, strict=True))
            column -= left @ right[M].T
        scaled = column @ _inverse(blocks[place])  # C_:M (C_MM)^-1
        W -= W[:, M] @ scaled.T
        W[:, M] = 0.0  # the residue of rounding
        blocks -= _block_products(scaled, column, block)
        blocks[place] = torch.eye(block, dtype=W.dtype, device=W.device)
        gone[place] = True
        order.append(int(live[place]))
        pending.append((scaled, column))

        if len(pending) * block >= LAZY:
            left, right = (torch.cat(parts, 1) for parts in zip(*pending, strict=True))
            pending = []
            stay = (~gone).nonzero().flatten()
            held = columns_of(stay)
            C = torch.addmm(C[held][:, held], left[held], right[held].T, alpha=-1.0)
            W, rho, blocks, live, gone = W[:, held], rho[stay], blocks[stay], live[stay], gone[stay]

    weights = Snapshots(columns, order, block, count)
    errors = _relative_errors(weights, original, second, monotone=compensate and one_at_a_time)
    stored = {level: part.to(weight.dtype) for level, part in columns.items()}
    return Sweep(tuple(order), wanted, Snapshots(stored, order, block, count), errors)


def _prepare(weight: Tensor, H: Tensor, block: int) -> tuple[Tensor, Tensor, int]:
    """W and H in W's precision, float32 at least, and the number of structures."""
    d_in = weight.shape[-1]
    if weight.dim() != 2 or H.shape != (d_in, d_in) or d_in % block:
        raise InputError(
            f"weight {tuple(weight.shape)}, H {tuple(H.shape)}, block {block}: expected [d_out, d_in], "
            "[d_in, d_in] and a block that divides d_in"
        )
    dtype = torch.promote_types(weight.dtype, torch.float32)
    W, second = weight.detach().to(dtype, copy=True), H.detach().to(weight.device, dtype)
    for name, matrix in (("weight", W), ("Hessian", second)):
        if not all_finite(matrix):
            raise NumericalError(f"{name} {tuple(matrix.shape)} holds NaN or infinity: check weights and data")
    return W, second, d_in // block


def _damped_inverse(H: Tensor, damp: float, held: Tensor) -> Tensor:
    """((H + damp * mean(diag H) I)[held, held])^-1; see `dampened_factor`."""
    return torch.cholesky_inverse(dampened_factor(H, damp, held))


def dampened_factor(H: Tensor, damp: float, held: Tensor | None = None) -> Tensor:
    """L with L L^T = (H + damp mean(diag H) I)[held, held], lower triangular, and 1 on the diagonal of dead inputs.

    Dead inputs do not enter the mean. The dampening is at least the rank tolerance of H's precision, and ten times more
    while Cholesky still fails; `NumericalError` where it never succeeds. `H` is not changed.

    Raises `InputError` for a `damp` that is negative or not finite.
    """
    return dampened_factor_(H.clone(), damp, held)


def dampened_factor_(H: Tensor, damp: float, held: Tensor | None = None) -> Tensor:
    """`dampened_factor`, in the memory of H, whose contents are lost."""
    if not 0.0 <= damp < torch.inf:  # NaN would be raised tenfold for ever
        raise InputError(f"damp={damp}: give a share of the mean of the Hessian's diagonal, such as 0.01")
    diagonal = H.diagonal()  # a view
    dead = diagonal == 0.0
    mean = float(diagonal[~dead].mean()) if not bool(dead.all()) else 0.0
    diagonal[dead] = 1.0
    if held is not None:
        H = H[held][:, held]
    share, added = max(damp, len(diagonal) * torch.finfo(H.dtype).eps), 0.0
    while True:
        H.diagonal().add_(share * mean - added)
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(H)
        if not bool(failed):
            return H.mT.copy_(factor)  # column by column, as LAPACK has it: it is read again without a copy
        if share > 1e3:
            raise NumericalError("the Hessian is not positive, whatever the dampening: collect it from real inputs")
        added, share = share * mean, share * 10.0


def _inverse(matrix: Tensor) -> Tensor:
    """Inverse of symmetric positive matrices [..., b, b] by Cholesky; pseudo-inverse where that fails."""
    if matrix.shape[-1] == 1:
        return torch.where(matrix > 0.0, 1.0 / matrix, torch.zeros_like(matrix))
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed.any()):
        inverse: Tensor = torch.linalg.pinv(matrix, hermitian=True)
        return inverse
    return torch.cholesky_inverse(factor)


def _diagonal_blocks(C: Tensor, block: int) -> Tensor:
    """[count * b, count * b] -> [count, b, b], a copy."""
    count = C.shape[0] // block
    return C.view(count, block, count, block).diagonal(dim1=0, dim2=2).movedim(-1, 0).clone()


def _block_products(left: Tensor, right: Tensor, block: int) -> Tensor:
    """The diagonal blocks [count, b, b] of left @ right^T, for left and right [count * b, b]."""
    if block == 1:
        return (left * right).unsqueeze(-1)
    return left.reshape(-1, block, block) @ right.reshape(-1, block, block).mT


def _scores(W: Tensor, blocks: Tensor) -> Tensor:
    """[count]: rho_M = sum_i W_iM (C_MM)^-1 W_iM^T."""
    inverse, block = _inverse(blocks), blocks.shape[-1]
    if block == 1:
        return W.square().sum(0) * inverse.flatten()
    parts = W.reshape(W.shape[0], -1, block).transpose(0, 1)  # [count, d_out, b]
    return ((parts @ inverse) * parts).sum((1, 2))


def _relative_errors(weights: Snapshots, start: Tensor, H: Tensor, *, monotone: bool) -> dict[int, float]:
    """Level -> tr(D H D^T) / tr(W H W^T), D = W' - W: measured on the snapshots, with the undampened H."""

    def energy(change: Tensor) -> float:
        return float(((change @ H) * change).sum(dtype=torch.float64))

    whole = energy(start)
    errors: dict[int, float] = {}
    floor = 0.0
    for level in sorted(weights):
        error = max(energy(weights[level] - start), 0.0) / whole if whole > 0.0 else 0.0
        floor = max(floor, error) if monotone else error
        errors[level] = floor
    return errors
