"""Teachers: live or cached on disk, with a check that teacher and student share their vocabulary.

What a cache holds is tied to the teacher, the tokenizer and the data by the caller's key (see `fingerprint`): another
key is refused, and a damaged file or one cut short is never used: who fills the cache asks for it again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur._utils import devices, distributed, storage
from secateur._utils.batches import Batch, Batches, FiniteBatches
from secateur._utils.modes import evaluating
from secateur._utils.tokenizers import Tokenizer
from secateur.errors import DataError, InputError, MendedWarning, RunError

__all__ = [
    "PROBE",
    "Joined",
    "Likeliest",
    "Outputs",
    "Told",
    "TopK",
    "cache_answers",
    "cache_rows",
    "cache_topk",
    "check_tokens",
    "check_vocabularies",
    "count_cached",
    "fill_outputs",
    "fingerprint",
    "join_topk",
    "live",
]

Likeliest: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Log-probabilities and indices [n, k] of the likeliest tokens, log of the mass of all others [n]."""

PROBE = "Two CAFÉS, 3 naïve  crows;\n\tx=42 #fin?  日本 🙂"
"""A text with what tokenizers treat differently: case, accents, spaces, numbers, signs, other scripts."""

_LOOKED_AT = 32
"""Of so many batches of `Outputs`, one is looked at when a folder is opened."""


# --------------------------------------------------------------------------------------------------- vocabularies


def check_vocabularies(student: Tokenizer, teacher: Tokenizer, student_size: int, teacher_size: int) -> int:
    """The shared vocabulary size of two tokenizers and their models' logits; refuses what can't be compared.

    Logits may differ in width by padding rows (151,936 and 152,064 for one tokenizer): the losses then use the first
    min(student_size, teacher_size) columns, which is what is returned. Everything else must agree: each token's id, and
    how a probe text is split (two tokenizers may share a vocabulary and still differ in case or merges).

    Raises `InputError` naming what differs.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    remedy = "use models of one tokenizer"
    for name, one, other in (("teacher", theirs, ours), ("student", ours, theirs)):
        alone = sorted(one.keys() - other.keys(), key=one.__getitem__)
        if alone:
            raise InputError(
                f"different tokenizers: {len(alone)} tokens are only in the {name}'s, {alone[0]!r} the first: {remedy}"
            )
    moved = next((token for token in sorted(ours, key=ours.__getitem__) if ours[token] != theirs[token]), None)
    if moved is not None:
        raise InputError(
            f"different tokenizers: {moved!r} is {ours[moved]} for the student and {theirs[moved]} for the teacher: "
            f"{remedy}"
        )
    split, their_split = (tokenizer(PROBE, add_special_tokens=True)["input_ids"] for tokenizer in (student, teacher))
    if split != their_split:
        raise InputError(f"different tokenizers: equal vocabularies split a probe text differently: {remedy}")
    needed = max(ours.values(), default=-1) + 1
    for name, size in (("student", student_size), ("teacher", teacher_size)):
        if size < needed:
            raise InputError(f"the {name} has logits for {size} tokens, its tokenizer has {needed}: {remedy}")
    return min(student_size, teacher_size)


def check_tokens(student: Any, teacher: Any) -> int:
    """`check_vocabularies` of two subjects: of their tokenizers, and of the sizes that their models' configs tell.

    A teacher without a tokenizer reads with the student's. Raises `InputError` naming what differs.
    """
    sizes = (one.model.config.vocab_size for one in (student, teacher))
    return check_vocabularies(student.tokenizer, teacher.tokenizer or student.tokenizer, *sizes)


def fingerprint(thing: Any) -> str:
    """A short hash that tells tokenizers, modules or plain data apart, for the key of a cache.

    Tokenizer: its vocabulary, special tokens and its split of a probe text. Module: name, shape, type and up to 1,024
    evenly spaced values of each tensor, so that a large teacher takes a moment only. Else: the value as JSON.
    """
    found = hashlib.sha256()
    if isinstance(thing, nn.Module):
        for name, tensor in sorted((thing.state_dict() | devices.find_offloaded(thing)).items()):
            flat = tensor.detach().flatten()
            found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            found.update(storage.bits(flat[:: max(1, len(flat) // 1024)]))
    elif hasattr(thing, "get_vocab"):
        about = [sorted(thing.get_vocab().items()), thing(PROBE)["input_ids"], str(thing.special_tokens_map)]
        found.update(json.dumps(about).encode())
    else:
        found.update(json.dumps(thing, sort_keys=True, default=str).encode())
    return found.hexdigest()[:16]


# ----------------------------------------------------------------------------------------------------------- live


def live(model: nn.Module, forward: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """The teacher as a function of a batch: in eval mode, without gradients.

    `forward` is what to call (a subject's `forward`, which brings the batch to the model); by default
    ``model(**batch)`` with the batch on the model's device. The model stays where it is. Its mode is set at each call,
    since a teacher may share modules with what is being trained.
    """

    def ask(batch: Batch, **options: object) -> Any:
        with evaluating(model), torch.no_grad():
            if forward is not None:
                return forward(batch, **options)
            return model(**devices.move(batch, model), **options)

    return ask


# --------------------------------------------------------------------------------------------------------- shelf


_Entry: TypeAlias = dict[str, Any]
"""What the index says of a file."""


@dataclass
class _Shelf:
    """Numbered safetensors files in a folder, and an index of their checksums; complete files only, one key only."""

    folder: Path
    files: list[_Entry]
    key: _Entry

    @classmethod
    def open(cls, folder: Path, key: Mapping[str, object]) -> _Shelf:
        """The shelf at `folder`, new or as far as it got. `DataError` when it is of another key, or its index damaged.

        Files may be missing or cut short: see `find_damaged`.
        """
        index = folder / "index.json"
        wanted = {name: value if isinstance(value, int | float) else str(value) for name, value in key.items()}
        if not index.exists():
            return cls(folder, [], wanted)
        try:
            known = json.loads(index.read_text(encoding="utf-8"))
            files = [{**file, "bytes": int(file["bytes"])} for file in known["files"]]
            stored = dict(known["key"])
            # What is damaged is written anew: nowhere but here, whatever an index says.
            if wrong := [file["name"] for file in files if Path(file["name"]).name != file["name"]]:
                raise ValueError(f"{wrong[0]!r} is no file of this folder")
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise DataError(f"{index} is damaged ({problem}): remove the folder and run again") from problem
        for name in sorted(wanted.keys() | stored.keys()):
            if wanted.get(name) != stored.get(name):
                raise DataError(
                    f"the cache in {folder} is of another {name} ({stored.get(name)}, now {wanted.get(name)}): "
                    "use another folder or remove this one"
                )
        return cls(folder, files, wanted)

    def find_damaged(self) -> list[int]:
        """Numbers of the files that are missing, cut short, or not what was written, with a warning. Reads all."""
        found = []
        for number, file in enumerate(self.files):
            path = self.folder / file["name"]
            same = path.is_file() and path.stat().st_size == file["bytes"] and storage.digest(path) == file["sha256"]
            found += [] if same else [number]
        if found:
            warnings.warn(
                f"{len(found)} of {len(self.files)} files in {self.folder} are missing, damaged or cut short, "
                f"{self.files[found[0]]['name']} the first: what they held is asked for again",
                MendedWarning,
                stacklevel=3,
            )
        return found

    def write(self, name: str, tensors: Mapping[str, Tensor], about: Mapping[str, object]) -> _Entry:
        """Write a file; gives its entry for the index, which does not know of it yet."""
        path = self.folder / name
        storage.write(path, tensors)
        return {"name": name, "bytes": path.stat().st_size, "sha256": storage.digest(path), **about}

    def note(self, files: list[_Entry]) -> None:
        """Write the index."""
        storage.write_text(self.folder / "index.json", json.dumps({"key": self.key, "files": files}, indent=1))
        self.files = files

    def put(self, number: int, tensors: Mapping[str, Tensor], about: Mapping[str, object]) -> None:
        """Write one more file, or one in place of a damaged one, then the index: a kill between loses that alone."""
        name = self.files[number]["name"] if number < len(self.files) else next(self.free_names())
        entry = self.write(name, tensors, about)
        self.note([*self.files[:number], entry, *self.files[number + 1 :]])

    def free_names(self, taken: Sequence[_Part] = ()) -> Iterator[str]:
        """Names that no file has, and none of the parts that are `taken`."""
        known = {file["name"] for file in self.files} | {part.name for part in taken}
        names = (f"{number:06d}.safetensors" for number in itertools.count(len(self.files)))
        return (name for name in names if name not in known)

    def read(self, number: int) -> dict[str, Tensor]:
        """The tensors of one file, after its checksum."""
        file = self.files[number]
        path = self.folder / file["name"]
        if storage.digest(path) != file["sha256"]:
            raise DataError(f"{path} is damaged, its checksum differs: remove the folder and run again")
        return storage.read(path)[0]


# ----------------------------------------------------------------------------------------------------------- top k


class TopK:
    """A teacher's likeliest tokens, read back by batch: `cache[i]` for i below `len(cache)`.

    Each entry is {"log_probabilities" [n, k] float32, "indices" [n, k], "remaining" [n] float32} over the n counted
    tokens of batch i, in order: what `losses.topk_kl` takes beside that batch's mask. The rows are renormalised, since
    half precision moves their sum away from 1 by up to 1e-3.
    """

    def __init__(self, shelf: _Shelf) -> None:
        self._shelf = shelf
        self._number, self._held = -1, dict[str, Tensor]()
        self._ends = [int(file["end"]) for file in shelf.files]
        self._orders = [one for file in shelf.files for one in file.get("order", ())]

    @property
    def temperature(self) -> float:
        """Of the teacher's softmax; the loss must use the same."""
        return float(self._shelf.key["temperature"])

    def order(self, index: int) -> str:
        """A hash of batch `index` as the teacher read it."""
        return str(self._orders[index])

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise DataError(f"the cache in {self._shelf.folder} holds batches 0 to {len(self) - 1}, not {index}")
        number = next(number for number, end in enumerate(self._ends) if index < end)
        if number != self._number:
            self._held, self._number = self._shelf.read(number), number
        values = self._held[f"{index}.values"].float()
        rest = self._held[f"{index}.remaining"]
        whole = torch.logaddexp(values.logsumexp(-1), rest)
        return {
            "log_probabilities": values - whole[:, None],
            "indices": self._held[f"{index}.indices"].long(),
            "remaining": rest - whole,
        }


def cache_topk(
    folder: str | Path,
    logits: Callable[[Batch], Tensor],
    batches: Batches,
    count: int,
    *,
    key: Mapping[str, object],
    k: int = 64,
    drawn: int = 0,
    temperature: float = 1.0,
    vocabulary: int | None = None,
    shard: int = 32,
) -> TopK:
    """Ask the teacher once for batches 0 to `count` - 1, and keep the k likeliest tokens of each position on disk.

    Args:
        folder: where the cache stands or will stand; one begun before is continued, by one process.
        logits: batch -> teacher logits [B, S, V] (see `live`).
        batches: `batches[i]` as for `loop.train`; its "counted" or else its
            "attention_mask" says which tokens are kept.
        count: batches to have in all.
        key: what the cache depends on, such as {"teacher": fingerprint(model), "tokenizer": ..., "data": ...}.
        k: tokens kept per position: about 6 k + 4 bytes each.
        drawn: so many of the k stand for all but the k - drawn likeliest, with their mass between them: those above
            a threshold with their own probability, the rest drawn with equal shares, none twice. The k likeliest
            alone say nothing of how the others compare; in the mean over draws, the gradient is that of the whole
            distribution. Sources: sparse logit sampling (arXiv 2503.16870), which draws all k with replacement;
            systematic sampling with probabilities proportional to size (Madow 1949), which varies less.
        temperature: of the teacher's softmax; the loss must use the same.
        vocabulary: columns of the logits to use, where `check_vocabularies` found fewer than the teacher has.
        shard: batches per file; a kill loses at most that many, an error or Ctrl-C none.

    Log-probabilities are stored in half precision, the log of the remaining mass in float32. Files that are missing,
    damaged or cut short are asked for again, with a `MendedWarning`. Raises `DataError` for a cache of another key, of
    other batches or in another order, or whose index is damaged, `RunError` when the disk is full.
    """
    if k < 1 or not 0 < temperature < math.inf:
        raise InputError(f"k={k}, temperature={temperature}: give numbers above 0")
    if not 0 <= drawn < k:
        raise InputError(f"drawn={drawn} of k={k} tokens: give at least 0, and fewer than k")

    def ask(batch: Batch) -> Likeliest:
        found = logits(batch)
        mask = batch.get("counted", batch.get("attention_mask"))
        rows = found.reshape(-1, found.shape[-1])[:, :vocabulary]
        picked = torch.arange(len(rows)) if mask is None else mask.reshape(-1).bool().nonzero().squeeze(1)
        return _likeliest(rows, picked.to(rows.device), k, temperature, drawn)

    key = {**key, "k": k, "temperature": temperature, "vocabulary": vocabulary or 0}
    key |= {"drawn": drawn} if drawn else {}
    return cache_answers(folder, ask, batches, count, key=key, shard=shard)


def cache_answers(
    folder: str | Path,
    ask: Callable[[Batch], Likeliest],
    batches: Batches,
    count: int,
    *,
    key: Mapping[str, object],
    shard: int = 32,
    ahead: int = 1,
) -> TopK:
    """As `cache_topk`, of a teacher that gives its likeliest tokens itself.

    ask: batch -> log-probabilities and indices [n, k] of the likeliest tokens, and the log of the remaining mass [n],
    over the n tokens of the batch that count, in order. key: holds "k" and "temperature", too. ahead: batches that are
    asked for at the same time, each in a thread. What was asked before an error or Ctrl-C is kept.

    Of several processes each fills its share of the files, and all read them: no batch is asked for twice.
    """
    if count < 1 or shard < 1:
        raise InputError(f"count={count}, shard={shard}: give numbers above 0")

    def plan() -> list[_Part]:
        """What is still to be asked for, and the files that will hold it."""
        shelf = _Shelf.open(Path(folder), key)
        starts = [0, *(int(file["end"]) for file in shelf.files)]
        _check_order(
            shelf, batches,
            [(at, file.get("order", [""])[0]) for at, file in zip(starts, shelf.files, strict=False) if file["bytes"]],
        )  # fmt: skip
        parts = [
            _Part(shelf.files[number]["name"], starts[number], starts[number + 1]) for number in shelf.find_damaged()
        ]
        names = shelf.free_names()
        new = range(starts[-1], count, shard)
        return parts + [_Part(next(names), first, min(first + shard, count)) for first in new]

    parts = distributed.by_first(plan)
    for start in range(0, len(parts), distributed.count()):
        together = parts[start : start + distributed.count()]
        written, problem = list[_Entry](), None
        if distributed.index() < len(together):
            shelf = _Shelf.open(Path(folder), key)
            written, problem = _fill(shelf, together[distributed.index()], ask, batches, ahead)
        found = distributed.gather((written, "" if problem is None else f"{problem}" or type(problem).__name__))
        distributed.by_first(partial(_note, Path(folder), key, together, [files for files, _ in found]))
        if problem is not None:
            raise problem
        if others := [words for _, words in found if words]:
            raise RunError(f"another process could not ask for its share: {others[0]}")
    return TopK(_Shelf.open(Path(folder), key))


def count_cached(folder: str | Path) -> int:
    """How many batches a cache of likeliest tokens in `folder` holds, of whatever teacher; 0 where there is none."""
    try:
        files = json.loads((Path(folder) / "index.json").read_text(encoding="utf-8"))["files"]
        return int(files[-1]["end"])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return 0


@dataclass(frozen=True)
class _Part:
    """Batches `first` to `end` - 1, which are to stand in one file."""

    name: str
    first: int
    end: int


def _fill(
    shelf: _Shelf, part: _Part, ask: Callable[[Batch], Likeliest], batches: Batches, ahead: int
) -> tuple[list[_Entry], BaseException | None]:
    """Ask for the batches of a part and write its file: (entries for the index, the error or Ctrl-C that ended it).

    What was asked for before that is written all the same.
    """
    tensors, order = dict[str, Tensor](), list[str]()
    problem: BaseException | None = None
    numbers = iter(range(part.first, part.end))
    waiting = deque[tuple[Batch, Callable[[], Likeliest]]]()
    with ThreadPoolExecutor(ahead) as pool:
        try:
            for number in range(part.first, part.end):
                for index in itertools.islice(numbers, ahead - len(waiting)):
                    batch = batches[index]
                    waiting.append((batch, pool.submit(ask, batch).result if ahead > 1 else partial(ask, batch)))
                batch, answer = waiting.popleft()
                values, indices, remaining = answer()
                order.append(_tokens(batch))
                tensors[f"{number}.values"] = values.half()
                tensors[f"{number}.indices"] = indices.int()
                tensors[f"{number}.remaining"] = remaining.float()
        except BaseException as error:  # Ctrl-C, too
            problem = error
            pool.shutdown(wait=False, cancel_futures=True)
    entries = [shelf.write(part.name, tensors, {"end": part.first + len(order), "order": order})] if order else []
    return entries, problem


def _note(folder: Path, key: Mapping[str, object], parts: Sequence[_Part], written: Sequence[list[_Entry]]) -> None:
    """Enter files in the index, each process's part of them: what a part lacks stands there as a file that is missing,
    so that it is asked for next time, unless nothing follows it.
    """
    shelf = _Shelf.open(folder, key)
    places = {file["name"]: number for number, file in enumerate(shelf.files)}
    files, names = list(shelf.files), shelf.free_names(parts)
    for part, entries in sorted(zip(parts, written, strict=False), key=lambda pair: -pair[0].first):
        known = places.get(part.name)
        got = entries[0]["end"] if entries else part.first
        behind = files[known + 1 :] if known is not None else [file for file in files if file["end"] > part.end]
        if got < part.end and (behind or known is not None):
            name = next(names) if entries else part.name
            entries = [*entries, {"name": name, "bytes": 0, "sha256": "", "end": part.end}]
        if known is not None:
            files[known : known + 1] = entries
        else:
            at = len(files) - len(behind)
            files[at:at] = entries
    if files != shelf.files:
        shelf.note(files)


def _check_order(shelf: _Shelf, batches: Batches, known: Sequence[tuple[int, str]]) -> None:
    """Refuse a shelf that was filled from other batches, or in another order: those `known` by number have to be equal.

    The caller's key says how data and batches were made; this looks at what came of it.
    """
    for number, tokens in known:
        if tokens != _tokens(batches[number]):
            raise DataError(
                f"the cache in {shelf.folder} is of other data, or in another order (batch {number} differs): use "
                "another folder or remove this one"
            )


def _tokens(batch: Batch) -> str:
    """A short hash of what a batch holds."""
    found = hashlib.sha256()
    for name, tensor in sorted(batch.items()):
        if isinstance(tensor, Tensor):
            found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            found.update(storage.bits(tensor))
    return found.hexdigest()[:16]


def _likeliest(rows: Tensor, picked: Tensor, k: int, temperature: float, drawn: int = 0) -> Likeliest:
    """Log-probabilities and indices [n, k] of the k likeliest tokens, and the log mass of the others [n], in chunks.

    With `drawn`, the last of the k stand for the others (see `_systematic`), and have all their mass between them.
    Draws are seeded by what is drawn from: the same rows give the same.
    """
    k, chunk = min(k, rows.shape[-1]), max(1, 2**22 // rows.shape[-1])
    drawn = drawn if k < rows.shape[-1] else 0
    parts = []
    for some in picked.split(chunk):
        log_p = functional.log_softmax(rows[some].float() / temperature, -1)
        values, indices = log_p.topk(k - drawn)
        others = log_p.scatter_(-1, indices, -math.inf)
        rest = others.logsumexp(-1)
        if drawn:
            lot = torch.Generator(rows.device).manual_seed(int(indices.sum()) % 2**31)
            # Where a teacher rules all others out, nothing is drawn from: any will do, with no mass to share.
            chances = others.sub_(rest[:, None]).exp_().nan_to_num_(nan=1.0)
            found, shares = _systematic(chances, drawn, lot)
            values, indices = torch.cat([values, shares.log() + rest[:, None]], -1), torch.cat([indices, found], -1)
            rest = torch.full_like(rest, -math.inf)
        parts.append((values, indices, rest))
    values, indices, remaining = (torch.cat(part) for part in zip(*parts, strict=True))
    return values, indices, remaining


def _systematic(chances: Tensor, count: int, lot: torch.Generator) -> tuple[Tensor, Tensor]:
    """(indices [n, count], shares [n, count]) that stand for all of `chances` [n, V] in the mean, none of them twice.

    With the threshold t for which ``sum_i min(1, p_i / t) = count``, entry i is among them with that chance and then
    has the share ``max(p_i, t)``: large ones always and as they are. One random start per row and steps of 1 along the
    chances' running sum. Entries that are 0 are never taken; a row with fewer others has shares of 0.
    """
    largest = chances.topk(min(count + 1, chances.shape[-1])).values.double()
    # After the j largest, those below have this much between them, for count - j places.
    below = chances.sum(-1, dtype=torch.float64)[:, None] - functional.pad(largest.cumsum(-1), (1, 0))
    levels = below[:, :count].clamp_min(0) / torch.arange(count, 0, -1, device=chances.device)
    fits = largest[:, :count] <= levels
    place = torch.where(fits.any(-1), fits.int().argmax(-1), count - 1)[:, None]
    threshold = levels.gather(-1, place).clamp_min(torch.finfo(torch.float32).tiny)
    running = (chances.double() / threshold).clamp_max_(1).cumsum_(-1)
    start = torch.rand(len(chances), 1, generator=lot, dtype=torch.float64, device=chances.device)
    points = start + torch.arange(count, device=chances.device)
    found = torch.searchsorted(running, points, right=True)
    there = found < chances.shape[-1]
    found = found.clamp_max(chances.shape[-1] - 1)
    shares = torch.where(there, chances.gather(-1, found).double().maximum(threshold), 0)
    return found, (shares / shares.sum(-1, keepdim=True).clamp_min(1e-300)).float()


# ------------------------------------------------------------------------------------------------------- encoders


class Outputs:
    """What a teacher said about each batch, asked once: for several students that learn from the same batches.

    `outputs[i]` is what `forward(batches[i])` gave: a mapping of tensors (hidden states, embeddings), detached, on the
    CPU. Kept in memory, or in files under `folder`, which a later run with the same key goes on with.

    Args:
        forward: batch -> mapping of names to tensors.
        batches: as for `loop.train`.
        folder: where to keep the outputs; None for memory.
        half: keep floating-point tensors in float16, but for those with numbers too large for it; they come back in
            float32.
        key: see `cache_topk`; needed with a folder.

    What files held that are missing, damaged or cut short is asked for again, with a `MendedWarning`. Raises
    `DataError` for a folder of another key, of other batches or in another order, or whose index is damaged.
    """

    def __init__(
        self,
        forward: Callable[[Batch], Mapping[str, Tensor]],
        batches: Batches,
        *,
        folder: str | Path | None = None,
        half: bool = False,
        key: Mapping[str, object] | None = None,
    ) -> None:
        if folder is not None and not key:
            raise InputError("a cache on disk needs key={...}: the fingerprints of teacher, tokenizer and data")
        self._forward, self._batches, self._half = forward, batches, half
        self._memory: dict[int, Mapping[str, Tensor]] = {}
        self._shelf = None if folder is None else _Shelf.open(Path(folder), {**(key or {}), "half": half})
        self._where = {int(file["batch"]): n for n, file in enumerate(self._shelf.files)} if self._shelf else {}
        self._broken = set[int]()
        if self._shelf is not None:
            # One file a batch: some tell as much as a look at all, and batches take time to make. Older ones say none.
            some = [file for file in self._shelf.files if "order" in file][::_LOOKED_AT]
            _check_order(self._shelf, batches, [(int(file["batch"]), file["order"][0]) for file in some])
            self._broken.update(self._shelf.find_damaged())

    def __contains__(self, index: int) -> bool:
        """Whether batch `index` was asked for."""
        return index in self._memory or (index in self._where and self._where[index] not in self._broken)

    def fill(self, count: int) -> None:
        """Ask for those of the first `count` batches that are not there."""
        for index in range(count):
            if index not in self:
                self._ask(index)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index not in self:
            stored = self._ask(index)
        else:
            stored = self._memory[index] if self._shelf is None else self._shelf.read(self._where[index])
        wide = self._half
        return {
            name: value.float() if wide and value.dtype == torch.float16 else value for name, value in stored.items()
        }

    def _ask(self, index: int) -> Mapping[str, Tensor]:
        batch = self._batches[index]
        with torch.no_grad():
            found = self._forward(batch)
        narrow = _narrow if self._half else lambda tensor: tensor
        stored = {name: narrow(tensor.detach().cpu()) for name, tensor in found.items()}
        if self._shelf is None:
            self._memory[index] = stored
        else:
            number = self._where.setdefault(index, len(self._shelf.files))
            self._shelf.put(number, stored, {"batch": index, "order": [_tokens(batch)]})
            self._broken.discard(number)
        return stored


def _narrow(tensor: Tensor) -> Tensor:
    """`tensor` in float16, unless it is of whole numbers, or has finite ones that would become infinite."""
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    return half if torch.equal(half.isfinite(), tensor.isfinite()) else tensor


class Joined:
    """Batches with a cache's answers beside them: `Joined(batches, cache)[i]` is batch i plus `teacher_<name>` of it.

    The training loop hands the objective a batch, not its number; this is how a cached answer reaches the objective.
    """

    def __init__(self, batches: Batches, cache: Batches, prefix: str = "teacher_") -> None:
        self._batches, self._cache, self._prefix = batches, cache, prefix

    def __len__(self) -> int:
        return len(cast(Sized, self._batches))

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        answers = {f"{self._prefix}{name}": tensor for name, tensor in self._cache[index].items()}
        return {**self._batches[index], **answers}


class Told:
    """Batches with what was said of each of their examples: `Told(batches, rows, answers)[i]` is batch i and more.

    rows: i -> which examples stand in batch i, in its order. answers: name -> [N, ...], a row for each example.
    """

    def __init__(self, batches: Batches, rows: Callable[[int], Any], answers: Mapping[str, Tensor]) -> None:
        self._batches, self._rows, self._answers = batches, rows, answers

    def __len__(self) -> int:
        return len(cast(Sized, self._batches))

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rows = torch.as_tensor(self._rows(index))
        return {**self._batches[index], **{name: answer[rows].float() for name, answer in self._answers.items()}}

    def hold_out(self, share: float) -> tuple[Told, Told]:
        """As the batches' own, which are of examples, each with what was said of it."""
        batches = cast(Any, self._batches)
        rest, held = (
            Told(part, part.places, {name: answer[places] for name, answer in self._answers.items()})
            for part, places in zip(batches.hold_out(share), batches.places_apart(share), strict=True)
        )
        return rest, held


def cache_rows(
    folder: str | Path, ask: Callable[[Batch], Tensor], batches: FiniteBatches, *, key: Mapping[str, object]
) -> Tensor:
    """What a teacher says of each of N examples, [N, C] in float16 (see `Outputs`), asked once and kept on disk.

    ask: batch -> [B, C]. batches: all examples once, in their order, as a sequence; their order in training, and how
    often they come, is then free: see `Told`. key: see `cache_topk`. All of it is held in memory.
    """
    known = fill_outputs(lambda batch: {"said": ask(batch)}, batches, len(batches), folder=folder, half=True, key=key)
    return _narrow(torch.cat([known[index]["said"] for index in range(len(batches))]))


def fill_outputs(forward: Callable[[Batch], Mapping[str, Tensor]], batches: Batches, count: int, **how: Any) -> Outputs:
    """`Outputs` in a folder, of the first `count` batches; of several processes the first asks."""
    filled = list[Outputs]()

    def fill() -> None:
        filled.append(Outputs(forward, batches, **how))
        filled[0].fill(count)

    distributed.by_first(fill)
    return filled[0] if filled else Outputs(forward, batches, **how)


def join_topk(
    folder: str | Path,
    model: nn.Module,
    forward: Callable[..., object],
    tokenizer: Tokenizer,
    batches: Batches,
    count: int,
    *,
    k: int,
    temperature: float,
    key: Mapping[str, object],
    drawn: int = 0,
) -> Joined:
    """The first `count` batches, each with the `k` tokens that the teacher finds likeliest at every position, on disk.

    forward: batch -> something with the teacher's logits as `prediction`. key: of data and batches; the teacher's and
    the tokenizer's fingerprints are added. See `cache_topk`.
    """
    key = {**key, "teacher": fingerprint(model), "tokenizer": fingerprint(tokenizer)}
    ask = live(model, forward)
    answers = cache_topk(
        folder, lambda item: ask(item).prediction, batches, count, key=key, k=k, temperature=temperature, drawn=drawn
    )
    return Joined(batches, answers)
