"""Visit a language model block by block: inputs of its matrices, and the output passed on once they have changed.

Only one block need be in memory. The states between blocks lie on the disk, one file per batch, so that a killed run
goes on at the block where it stopped and ends with the same bytes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, get_args, get_origin, get_type_hints, runtime_checkable

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from secateur._utils import allocator, bars, devices, distributed
from secateur._utils.disk import atomic_write
from secateur._utils.finite import require_finite
from secateur._utils.modes import evaluating
from secateur.errors import InputError, ModelError, UnsupportedError
from secateur.formats import expert_tensors
from secateur.subjects.matrices import Matrix, matrices
from secateur.subjects.matrices import receipt as of_matrices
from secateur.vocabulary import Cut

__all__ = [
    "Block",
    "Blocks",
    "Call",
    "Reader",
    "Recording",
    "count",
    "count_starved",
    "receipt",
    "record_calls",
    "run_ends",
    "states",
    "visit",
    "walk",
]


class Reader(Protocol):
    """Something that counts rows of inputs in, such as `hessian.Moments`."""

    rows: int

    def add(self, rows: Tensor) -> None:
        """Rows [N, d_in]."""
        ...

    def share(self, width: int) -> None:
        """Take in what the readers of the other processes have counted; `width` is d_in."""
        ...


class Blocks(Protocol):
    """What `visit` asks of a subject: `Transformer` holds all blocks, `Streamed` one at a time."""

    model: Any

    def layers(self) -> list[str]:
        """Paths of the blocks."""
        ...

    def resident(self, *paths: str) -> AbstractContextManager[None]:
        """A context within which the modules at `paths` have their weights; none: all outside the blocks."""
        ...

    def store(self, path: str, file: Path) -> None:
        """Keep what the resident block at `path` has become, also in `file`."""
        ...

    def recall(self, path: str, file: Path) -> None:
        """Take the block at `path` from a `file` that `store` wrote."""
        ...


@runtime_checkable
class Recording(Protocol):
    """A subject of several lists of blocks, each of which reads what an earlier one gives."""

    starts: Sequence[int]
    """The first block of each list."""

    def record(self, batch: Mapping[str, Tensor], begin: int) -> tuple[Tensor, list[Call]]:
        """As `record_calls`, of the list of blocks that begins at `begin`."""
        ...


R = TypeVar("R", bound=Reader)
Call = tuple[tuple[Any, ...], dict[str, Any]]

_ALIKE = 4
"""Tensors of one shape among which those that blocks are called with are looked for."""


@dataclass(eq=False)
class Block:
    """One block, resident while it is looked at; its matrices may be changed in place.

    index, path: its place; module: with weights; matrices: name -> matrix, see `matrices.matrices`.
    """

    index: int
    path: str
    module: nn.Module
    matrices: Mapping[str, Matrix]
    _states: _States
    _calls: Sequence[Call]
    _masks: Sequence[Tensor | None]
    starved: int = 0
    """Matrices of experts that read too few tokens, as whoever reads them finds; kept with the block."""
    _following: _States | None = None
    """Where what leaves the block is to be written by the first `read`; None: nobody asks for it."""

    def read(self, make: Callable[[], R], only: Collection[str] | None = None, *, routed: bool = False) -> dict[str, R]:
        """Name -> a reader that has counted in what the matrix reads, over all batches; one pass through the block.

        The pass ends with the last matrix that is asked for, unless what leaves the block is wanted too.

        Matrices that read the same tensor share one reader. A packed expert counts the tokens that were sent to it:
        its first matrix reads the states, its second one what the neurons give; `routed`: both times the share with
        which each token was sent there. Padding is left out. `only` names the matrices that are asked for. Under
        several processes each runs its share of the batches, and all get the same result.

        Raises `InputError` for a matrix that was never run.
        """
        wanted = [self.matrices[name] for name in (self.matrices if only is None else only)]
        found: dict[str, R] = {m.name: make() for m in wanted if m.expert is not None}
        modules: dict[str, str] = {m.module: m.name for m in wanted if m.expert is None}
        leaders: dict[str, list[str]] = {}
        seen: list[tuple[Tensor, str]] = []
        mask: Tensor | None = None
        ran: list[str] = []  # by the batch that is on its way
        asked: set[str] = set()  # by whom a pass may end, once they all ran; nobody while that is not known

        def note_run(name: str) -> None:
            ran.append(name)
            if asked and asked <= set(ran):
                raise _EnoughError

        def linear(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def look(_: nn.Module, args: tuple[Tensor, ...]) -> None:
                x = args[0]
                same = next((other for tensor, other in seen if tensor is x), None)
                if same is not None:  # only the first batch finds these; afterwards followers have no hook
                    leaders[same].append(name)
                    found[name] = found[same]
                    return
                seen.append((x, name))
                if name not in found:
                    found[name], leaders[name] = make(), [name]
                found[name].add(_rows(x, mask))
                note_run(name)

            return look

        def experts(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            prefix = f"{self.path}.{path}" if path else self.path

            def look(module: Any, args: Any) -> None:
                leaves = (expert_tensors.find_first(module), "down_proj")
                for expert, (states, sent, share) in enumerate(expert_tensors.told_apart(module, args)):
                    if mask is not None and mask.numel() == len(states):
                        sent = sent & mask.flatten().to(sent.device)
                    if not bool(sent.any()):
                        continue
                    rows, share = states[sent], share[sent] if routed and share is not None else None
                    first, second = (f"{prefix}.{leaf}[{expert}]" for leaf in leaves)
                    if first in found:
                        found[first].add(rows if share is None else rows * share)
                    if second in found:
                        inner = expert_tensors.run_first(module, expert, rows)
                        found[second].add(inner if share is None else inner * share)
                note_run(path)

            return look

        packed = {m.module for m in wanted if m.expert is not None}
        with torch.no_grad(), evaluating(self.module), ExitStack() as stack:
            hooks: dict[str, Any] = {}
            for path, name in modules.items():
                hooks[name] = self._inside(path).register_forward_pre_hook(linear(name))
                stack.callback(hooks[name].remove)
            for path in packed:
                relative = path.removeprefix(self.path).lstrip(".")
                stack.callback(self._inside(path).register_forward_pre_hook(experts(relative)).remove)

            def outputs() -> Iterator[Tensor]:
                nonlocal mask
                for number, (states, call) in enumerate(self.inputs()):
                    mask = self._masks[number]
                    with suppress(_EnoughError):
                        yield self._forward(states, call)
                    if number == 0:
                        for followers in leaders.values():
                            for follower in followers[1:]:
                                hooks[follower].remove()
                        # All must have run, and once: an expert that no token came to may run later on.
                        known = set(modules.values()) <= set(found) and len(ran) == len(leaders) + len(packed)
                        if following is None and known:
                            asked.update(ran)
                    ran.clear()
                    seen.clear()

            following, self._following = self._following, None
            if following is None:
                for _ in outputs():
                    pass
            else:
                following.write(_finite(self.path, outputs()))
        _require_run(name for name in modules.values() if name not in found)
        if distributed.count() > 1:
            for name, reader in {id(reader): (name, reader) for name, reader in found.items()}.values():
                reader.share(self.matrices[name].weight.shape[1])
        return found

    def order(self) -> list[list[str]]:
        """Names of matrices in the order in which they run, those that read the very same tensor together.

        Queries, keys and values; output projection; gate and up; down. All first matrices of packed experts stand
        together, then all second ones. Raises `InputError` for a matrix that was never run.
        """
        groups: list[tuple[Any, list[str]]] = []

        def noting(found: Sequence[Matrix]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
                if found[0].expert is not None:
                    leaves = dict.fromkeys(matrix.leaf for matrix in found)
                    groups.extend((None, [m.name for m in found if m.leaf == leaf]) for leaf in leaves)
                    return
                same = next((names for tensor, names in groups if tensor is args[0]), None)
                if same is None:
                    groups.append((args[0], [found[0].name]))
                else:
                    same.append(found[0].name)

            return note

        by_module: dict[str, list[Matrix]] = {}
        for matrix in self.matrices.values():
            by_module.setdefault(matrix.module, []).append(matrix)
        with ExitStack() as stack:
            for path, found in by_module.items():
                stack.callback(self._inside(path).register_forward_pre_hook(noting(found)).remove)
            self.run(*next(self.inputs()))
        ran = {name for _, names in groups for name in names}
        _require_run(name for name in self.matrices if name not in ran)
        return [names for _, names in groups]

    def inputs(self) -> Iterator[tuple[Tensor, Call]]:
        """What `run` takes, batch by batch."""
        return zip(self._states, self._calls, strict=True)

    def _inside(self, path: str) -> nn.Module:
        return self.module.get_submodule(path.removeprefix(self.path).lstrip("."))

    def run(self, states: Tensor, call: Call) -> Tensor:
        """The block's output [B, S, d] for input states [B, S, d], with all else as the model itself calls it."""
        with torch.no_grad(), evaluating(self.module):
            return self._forward(states, call)

    def _forward(self, states: Tensor, call: Call) -> Tensor:
        args, kwargs = call
        out = self.module(devices.move(states, self.module), *args, **kwargs)
        result: Tensor = out[0] if isinstance(out, tuple | list) else out
        return result


def visit(
    subject: Blocks,
    batches: Sequence[Mapping[str, Tensor]],
    folder: Path,
    *,
    title: str = "blocks",
    store: bool = True,
    sequential: bool = True,
) -> Iterator[Block]:
    """Yield each block of `subject` in turn; once the caller is done with it, run it as it then is for the next one.

    What a block reads comes from blocks that are changed already, as in SparseGPT and Wanda. Without `sequential` it
    comes from blocks as they were: each runs once in place of twice, and must be read before it is changed.

    With `store`, each is kept in `folder` when it is done; a second call with the same folder takes the finished ones
    from there and goes on behind them. Without it nothing is kept, and what the caller changes stays in memory only
    where `subject` holds it.

    Under several processes (torchrun, accelerate launch) each runs every P-th batch, and `folder` is one that all of
    them see. What the first has made of a block is what all have: it is kept once.

    Raises `NumericalError` naming the block whose output is not finite, `InputError` for no batch, or for a batch with
    tokens outside the vocabulary.
    """
    number, many = distributed.index(), distributed.count()
    mine = list(batches)[number::many]
    if len(batches) < many or not mine:
        raise InputError(f"{len(batches)} batches for {many} processes: give at least one to each")
    paths = subject.layers()
    own = folder / f"process-{number}-of-{many}" if many > 1 else folder
    folder.mkdir(parents=True, exist_ok=True)
    start = distributed.by_first(lambda: _count_finished(folder, len(paths))) if store else 0
    for index in range(start):
        subject.recall(paths[index], _file(folder, index))
    if start == len(paths):
        return
    current = _States(own, start)
    begins: Sequence[int] = subject.starts if isinstance(subject, Recording) else [0]
    again = start in begins  # nothing of earlier blocks enters it
    written = not again and current.complete(len(mine))
    if not again and not written:
        raise ModelError(
            f"{folder} lacks the states of block {start} for {many} process{'es' if many > 1 else ''}: go on with as "
            "many as before, or delete it and run the same command again"
        )
    inside: list[list[Call]] = []
    with subject.resident():
        entering = _entering(subject, mine, inside, max(begin for begin in begins if begin <= start))
        if written:
            for _ in entering:
                pass
        else:
            current.write(entering)
    masks = [batch.get("attention_mask") for batch in mine]
    masks = [None if mask is None or bool(mask.all()) else mask.bool() for mask in masks]
    indices = range(start, len(paths))
    for index in bars.show_bar(indices, title) if number == 0 else indices:
        path = paths[index]
        if index in begins and index > start:
            inside.clear()
            current.write(_entering(subject, mine, inside, index))
        with subject.resident(path):
            module = subject.model.get_submodule(path)
            block = Block(
                index,
                path,
                module,
                matrices(subject.model, [path]),
                current,
                [each[index - max(begin for begin in begins if begin <= index)] for each in inside],
                masks,
            )
            following = _States(own, index + 1)
            wanted = index + 1 < len(paths) or not store
            if wanted and not sequential:
                block._following = following
            yield block
            if block._following is not None:
                raise RuntimeError(f"{path} was changed without having been read")
            if wanted and sequential:
                following.write(_finite(path, (block.run(*each) for each in block.inputs())))
            if store:
                if block.starved:
                    distributed.by_first(partial(atomic_write, _starved_file(folder, index), str(block.starved)))
                _keep(subject, path, _file(folder, index))
        current.remove()
        current = following
        allocator.release_memory()
    if store:
        current.remove()
        if many > 1:
            shutil.rmtree(own, ignore_errors=True)


def _keep(subject: Blocks, path: str, file: Path) -> None:
    """Store the resident block at `path`; of several processes the first does, once all have come here."""
    distributed.wait()
    distributed.by_first(lambda: subject.store(path, file))
    if distributed.index():
        subject.recall(path, file)


def _entering(
    subject: Blocks, batches: Sequence[Mapping[str, Tensor]], inside: list[list[Call]], begin: int = 0
) -> Iterator[Tensor]:
    """What enters block `begin`, batch by batch; the calls of it and all behind it are put into `inside`.

    States are not held: they are as many as all texts together. What calls hand over, such as rotary tables and causal
    masks, mostly is the same for every batch, and is held once.
    """
    pool: dict[Any, list[Tensor]] = {}
    for batch in batches:
        states, noted = subject.record(batch, begin) if isinstance(subject, Recording) else record_calls(subject, batch)
        known: dict[int, Tensor] = {}
        inside.append([_pooled_call(call, pool, known) for call in noted])
        del noted, known
        yield states
        del states


def _pooled_call(nest: Any, pool: dict[object, list[Tensor]], known: dict[int, Tensor]) -> Any:
    """The same nest of tuples, lists and dicts, with tensors of the pool in place of their equals.

    known: by identity, of the batch at hand: all blocks get the same tensors. A few of each shape are compared, so that
    masks which differ from batch to batch cost no more than a moment.
    """
    if isinstance(nest, Tensor):
        if id(nest) not in known:
            same = pool.setdefault((nest.shape, nest.dtype, nest.device), [])
            twin = next((one for one in same if torch.equal(one, nest)), None)
            if twin is None and len(same) < _ALIKE:
                same.append(nest)
            known[id(nest)] = nest if twin is None else twin
        return known[id(nest)]
    if type(nest) in (tuple, list):
        return type(nest)(_pooled_call(one, pool, known) for one in nest)
    if type(nest) is dict:
        return {name: _pooled_call(one, pool, known) for name, one in nest.items()}
    return nest


class _EnoughError(Exception):
    """All that is asked for has been read: the rest of the block need not run."""


def _finite(path: str, outputs: Iterable[Tensor]) -> Iterator[Tensor]:
    for out in outputs:
        yield require_finite(path, out)


def record_calls(subject: Blocks, batch: Mapping[str, Tensor]) -> tuple[Tensor, list[Call]]:
    """What enters the first block [B, S, d], and with what other arguments the model calls each of its blocks.

    The model's own forward pass is run with blocks that only note how they are called: masks, positions, rotary
    embeddings and whatever else a family hands to its blocks are the model's own.
    """
    model = subject.model
    vocabulary = model.config.vocab_size
    tokens = batch["input_ids"]
    if int(tokens.max()) >= vocabulary or int(tokens.min()) < 0:
        raise InputError(
            f"a token is {int(tokens.max())}, the vocabulary has {vocabulary}: use the model's own tokenizer"
        )
    noted: list[Call] = []
    entering: list[Tensor] = []

    def noting(hidden: Tensor, *args: object, **kwargs: object) -> Tensor:
        if any(one is _MORE for one in (*args, *kwargs.values())):
            raise UnsupportedError(_HANDED)
        if not entering:
            entering.append(hidden)
        elif not _is_same(hidden, entering[0]):
            raise UnsupportedError("this model changes states between its blocks: they can't be run one by one")
        noted.append((args, kwargs))
        return hidden

    with _replace_blocks(subject, noting), torch.no_grad(), evaluating(model):
        places = devices.move({name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}, model)
        model.base_model(**places, use_cache=False)
    return entering[0], noted


def _is_same(states: Tensor, first: Tensor) -> bool:
    """Whether a model handed states on as a block gave them, on another device or not."""
    return states.data_ptr() == first.data_ptr() or torch.equal(states.to(first.device), first)


_HANDED = "blocks of this model hand over more than their states: they can't be run one by one"
_MORE = object()
"""In place of what a block gives beside its states, by its class; a model may pass it on to no other block."""


class _Either(Tensor):
    """The states that a block gives, for models that take them as such and for those that take the first of a tuple.

    Which of the two a block's own forward pass gives can't be told without its weights, which may not be there.
    """

    more = 0
    """How many more its class says that it gives."""

    # What is computed from it is a plain tensor.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __getitem__(self, place: object) -> Tensor:
        plain: Tensor = self.as_subclass(Tensor)
        return plain if isinstance(place, int) and place == 0 else plain[place]  # type: ignore[index]

    def __iter__(self) -> Iterator[object]:
        if not self.more:  # it is not known for how many places it is unpacked
            raise UnsupportedError(_HANDED)
        return iter([self.as_subclass(Tensor), *[_MORE] * self.more])


@contextmanager
def _replace_blocks(subject: Blocks, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Within the block, every block of the model runs `forward` in place of its own."""
    modules = [subject.model.get_submodule(path) for path in subject.layers()]
    # Accelerate sets a forward of the instance, which brings inputs to the block's device: it has to come back.
    replaced = [vars(module).get("forward") for module in modules]

    def take(more: int, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        found = forward(hidden_states, *args, **kwargs).as_subclass(_Either)
        found.more = more
        return found

    for module in modules:
        module.forward = partial(take, _count_more(type(module).forward))
    try:
        yield
    finally:
        for module, own in zip(modules, replaced, strict=True):
            del module.forward
            if own is not None:
                module.forward = own


def _count_more(forward: Callable[..., object]) -> int:
    """What a block gives beside its states, by its annotation: of DeBERTa's, the weights of its attention."""
    with suppress(NameError, TypeError):  # as names that are there for type checkers alone
        given = get_type_hints(forward).get("return")
        places = get_args(given) if get_origin(given) is tuple else ()
        return 0 if Ellipsis in places else max(0, len(places) - 1)
    return 0


def run_ends(subject: Blocks, batch: Mapping[str, Tensor], hidden: Tensor) -> Any:
    """The model's output for `batch` when its blocks give `hidden` [B, S, d]: final norm and head are its own."""
    states = devices.move(hidden, subject.model)
    with _replace_blocks(subject, lambda *_, **__: states), torch.no_grad(), evaluating(subject.model):
        given = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
        places = devices.move(given, subject.model)
        return subject.model(**places, use_cache=False)


def _require_run(missed: Iterable[str]) -> None:
    """Raise `InputError` for the first matrix that no pass through its block ran."""
    first = next(iter(missed), None)
    if first is not None:
        raise InputError(
            f"{first} was never run by its block: it can't be pruned from what it reads. Let it stay, by protect where "
            "the recipe has that, or take magnitude"
        )


def _rows(x: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None or mask.shape != x.shape[:-1]:
        return x.flatten(0, -2)
    return x[mask.to(x.device)]


def walk(subject: Blocks, folder: Path) -> Iterator[dict[str, Matrix]]:
    """Yield the matrices of each block in turn, to be changed in place; nothing is run. Resumed as in `visit`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = subject.layers()
    start = distributed.by_first(lambda: _count_finished(folder, len(paths)))
    for index, path in enumerate(paths):
        if index < start:
            subject.recall(path, _file(folder, index))
            continue
        with subject.resident(path):
            yield matrices(subject.model, [path])
            _keep(subject, path, _file(folder, index))


def receipt(subject: Blocks, student: Blocks, notes: Sequence[str] = ()) -> Cut:
    """What became zero in `student`, see `matrices.receipt`; one block of each is resident at a time."""
    removed: dict[str, tuple[int, int]] = {}
    before, after = 0.0, 0.0
    paths = subject.layers()
    for path in paths:
        with subject.resident(path), student.resident(path):
            part = of_matrices(matrices(subject.model, [path]), matrices(student.model, [path]), blocks=paths)
        removed |= part.removed
        before, after = before + part.before["weights"], after + part.after["weights"]
    return Cut(removed, {"weights": before}, {"weights": after}, tuple(notes))


def count(subject: Blocks) -> int:
    """How many weights the matrices of all blocks have.

    Raises `InputError` where two blocks share weights: what is pruned in one would change the other, and no file of
    ours can say that they are one; `UnsupportedError` where experts or attention are stored in a way that is not known,
    so that a third of the weights or more would stay whole without a word.
    """
    owners: dict[int, str] = {}
    found = matrices(subject.model, subject.layers()).values()
    whole, known, others = sum(m.weight.numel() for m in found), {id(m.parameter) for m in found}, dict[str, int]()
    for path in subject.layers():
        for name, parameter in subject.model.get_submodule(path).named_parameters():
            key = id(parameter) if parameter.is_meta else parameter.data_ptr()
            first = owners.setdefault(key, f"{path}.{name}") if parameter.numel() else ""
            if first and not first.startswith(f"{path}."):
                raise InputError(f"{first} and {path}.{name} share their weights: give each block its own, as a copy")
            if parameter.ndim > 1 and id(parameter) not in known:
                others[f"{path}.{name}"] = parameter.numel()
    if sum(others.values()) > whole / 2:  # routers and small tables of mixers stay, too
        raise UnsupportedError(
            f"{max(others, key=others.__getitem__)} is in no form in which single weights are pruned: "
            f"{100 * sum(others.values()) / (whole + sum(others.values())):.0f} % of the weights of all blocks would "
            "stay whole; secateur prune cuts any network"
        )
    return whole


# ------------------------------------------------------------------------------------------------------ on the disk


def states(folder: Path, index: int) -> Iterator[Tensor]:
    """What enters block `index`, batch by batch, after a `visit` without `store` [B, S, d]."""
    yield from _States(folder, index)


class _States:
    """The states that enter a block, one file per batch; written aside and renamed: all are there, or none."""

    def __init__(self, folder: Path, index: int) -> None:
        self.folder = folder / f"states-{index}"

    def write(self, tensors: Iterator[Tensor]) -> None:
        aside = self.folder.with_name(f".tmp-{self.folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for number, tensor in enumerate(tensors):
            save_file({"states": tensor.detach().cpu().contiguous()}, aside / f"{number}.safetensors")
        shutil.rmtree(self.folder, ignore_errors=True)
        os.replace(aside, self.folder)

    def complete(self, count: int) -> bool:
        return self.folder.is_dir() and len(list(self.folder.glob("*.safetensors"))) == count

    def __iter__(self) -> Iterator[Tensor]:
        for number in range(len(list(self.folder.glob("*.safetensors")))):
            yield load_file(self.folder / f"{number}.safetensors")["states"]

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _file(folder: Path, index: int) -> Path:
    return folder / f"block-{index}.safetensors"


def _starved_file(folder: Path, index: int) -> Path:
    return folder / f"block-{index}.starved"


def count_starved(folder: Path) -> int:
    """The sum of `Block.starved` over the blocks that `visit` has kept in a folder, in this run or one before it."""
    return sum(int(file.read_text(encoding="utf-8")) for file in folder.glob("block-*.starved"))


def _count_finished(folder: Path, count: int) -> int:
    """How many blocks are done: those in the folder, one behind the other."""
    return next((index for index in range(count) if not _file(folder, index).is_file()), count)
