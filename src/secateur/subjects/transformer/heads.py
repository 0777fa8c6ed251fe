"""Attention heads of a model as it runs: silenced for a while, and replayed with the outputs of others frozen.

A head's output z [S, head_dim] is what the output linear of its attention reads in the head's columns; all is done by
forward pre-hooks there, so that keys, values and a KV cache stay as they are. The linear's bias belongs to no head.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from secateur._utils import devices
from secateur._utils.disk import atomic_write
from secateur._utils.modes import evaluating
from secateur.errors import InputError, UnsupportedError
from secateur.subjects.transformer.blocks import Call, record_calls, run_ends
from secateur.subjects.transformer.loading import open_subject
from secateur.subjects.transformer.subject import Consumer, Transformer, find_states
from secateur.vocabulary import Cut, Selection

__all__ = [
    "Frozen", "Head", "Replay", "count_heads", "cut_heads", "find_list", "find_outputs", "find_silent", "heads",
    "plan_cut", "read_lists", "silence_heads", "write_lists",
]  # fmt: skip

Head: TypeAlias = tuple[int, int]
"""(layer, head), both from 0."""
Places: TypeAlias = Mapping[int, tuple[Consumer, int]]
"""Layer -> (the linear that reads the outputs of its heads, how many these are)."""

PreHook: TypeAlias = Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...] | None]

_KNOWN: WeakKeyDictionary[PreTrainedModel, Places] = WeakKeyDictionary()

_FILE = "heads.json"
_SAME = 1e-3
"""How far a replay may be from the model itself, relative to its largest logit, where numbers are exact."""
_STEPS = 2.0
"""And where they are rounded: in steps of the number type, times the square root of the number of layers."""
_ALIKE = 0.05
"""How far a head's weights may be from those of the scored model, relative to their norm: as rounding may bring."""


# ------------------------------------------------------------------------------------------------------------- where


def find_outputs(subject: Transformer) -> dict[int, tuple[Consumer, int]]:
    """Layer -> (the linear that reads the outputs of its heads, how many heads these are); none where it has none.

    Raises `InputError` where the linear's width is not that of a whole number of heads.
    """
    consumers, found = subject.consumers(), dict[int, tuple[Consumer, int]]()
    for layer, width in enumerate(subject.widths()):
        if not width.heads:
            continue
        consumer = consumers[f"layers.{layer}.heads"]
        weight = _weight(subject.model, consumer)
        columns = weight.shape[0 if consumer.conv1d else 1]
        if columns != width.heads * consumer.block:
            raise InputError(
                f"{consumer.module} reads {columns} numbers, and no {width.heads} heads of {consumer.block} do: "
                "give a model whose heads are all as wide as its config says"
            )
        found[layer] = consumer, width.heads
    return found


def _weight(model: nn.Module, consumer: Consumer) -> Tensor:
    weight: Tensor = model.get_submodule(consumer.module).get_parameter("weight")
    return weight


def _by_layer(places: Places, chosen: Iterable[Head]) -> dict[int, list[int]]:
    """Layer -> its chosen heads. Raises `InputError` for one that is not there."""
    found = dict[int, list[int]]()
    for layer, head in chosen:
        count = places[layer][1] if layer in places else 0
        if not 0 <= head < count:
            raise InputError(f"layer {layer} has {count} heads, and no head {head}: both count from 0")
        found.setdefault(layer, []).append(head)
    return found


# ------------------------------------------------------------------------------------------------------ silencing


@contextmanager
def silence_heads(subject: Transformer, chosen: Iterable[Head]) -> Iterator[None]:
    """Within the block the outputs z of these heads are zero, at all positions and in `generate`; then as before.

    The same as taking z W_O of the head from the attention's output. Blocks may stand inside one another.
    """
    with _silence(subject.model, find_outputs(subject), chosen):
        yield


@contextmanager
def _silence(model: nn.Module, places: Places, chosen: Iterable[Head]) -> Iterator[None]:
    with ExitStack() as stack:
        for layer, some in _by_layer(places, chosen).items():
            consumer, count = places[layer]
            gone = torch.zeros(count, dtype=torch.bool)
            gone[some] = True
            module = model.get_submodule(consumer.module)
            mask = devices.move(gone.repeat_interleave(consumer.block), module)

            def silence(_: nn.Module, args: tuple[Tensor, ...], mask: Tensor = mask) -> tuple[Tensor, ...]:
                return (args[0].masked_fill(mask, 0.0), *args[1:])

            stack.callback(module.register_forward_pre_hook(silence).remove)
        yield


@contextmanager
def heads(
    model: PreTrainedModel | Transformer, which: str | Path | Iterable[Head], lists: str | Path | None = None
) -> Iterator[None]:
    """Switch attention heads off within a `with` block, for one request; afterwards the model is bit for bit as before.

        with secateur.heads(model, "trust-context"):
            model.generate(**inputs)

    which: (layer, head) pairs, or the name of a list. lists: the heads.json that holds it, as `secateur run ph3` writes
    it, or the folder of one; by default that in the model's own folder.

    The switch is the model's: while it is on, all requests to this model pass it, whatever thread they come from.

    Raises `InputError` for no such list, or one that was made for a model of another shape or other weights: a list is
    of the model that was scored, not of what was cut from it.
    """
    inner = model.model if isinstance(model, Transformer) else model
    if isinstance(which, str | Path):
        chosen = find_list(model, str(which), lists)
    else:
        chosen = [_read_head(head) for head in which]
    with _silence(inner, _find_once(model), chosen):
        yield


def find_list(model: PreTrainedModel | Transformer, which: str, lists: str | Path | None = None) -> list[Head]:
    """The heads of the list that is called so, those first that go first; arguments and errors as those of `heads`."""
    inner = model.model if isinstance(model, Transformer) else model
    source = Path(lists) if lists is not None else Path(getattr(inner, "name_or_path", "") or ".")
    places = _find_once(model)
    found = read_lists(source, inner, places)
    if which not in found:
        raise InputError(f"{source} has no list {which!r}: it has {', '.join(found)}")
    _by_layer(places, found[which])  # which refuses heads that are not there
    return found[which]


def _find_once(model: PreTrainedModel | Transformer) -> Places:
    """As `find_outputs`, which looks at all weights of a model when it meets it first."""
    if isinstance(model, Transformer):
        return find_outputs(model)
    if model not in _KNOWN:
        _KNOWN[model] = find_outputs(open_subject(model))
    return _KNOWN[model]


def write_lists(file: Path, subject: Transformer, lists: Mapping[str, Sequence[Head]]) -> None:
    """The lists as JSON, with the shape of the model they are of, and numbers that tell its heads' weights."""
    places = find_outputs(subject)
    marks = _mark_heads(subject.model, places)
    data = {
        "heads": _shape(places),
        "weights": [[float(f"{value:.6g}") for value in mark] for mark in (() if marks is None else marks.tolist())],
        "lists": {name: [list(head) for head in some] for name, some in lists.items()},
    }
    atomic_write(file, json.dumps(data) + "\n")


def read_lists(
    source: Path, model: PreTrainedModel | None = None, places: Places | None = None
) -> dict[str, list[Head]]:
    """Name -> the heads of each list in a file that `write_lists` wrote, or in the heads.json of a folder.

    Raises `InputError` for a file that is missing or of another form, or of another model: with heads in other
    `places`, or with other weights there.
    """
    file = source / _FILE if source.is_dir() else source
    if not file.is_file():
        inside = sorted(one.parent.name for one in source.glob(f"*/{_FILE}")) if source.is_dir() else []
        several = f", or one of its folders {', '.join(inside)}" if inside else ""
        raise InputError(f"{file} is not there: give lists, the {_FILE} that `secateur run ph3` wrote{several}")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        shape = [operator.index(count) for count in data["heads"]]
        found = {str(name): [_read_head(head) for head in some] for name, some in data["lists"].items()}
        marks = torch.tensor(data.get("weights", []), dtype=torch.float64).reshape(-1, 2)
    except (InputError, ValueError, KeyError, TypeError, AttributeError, RecursionError, RuntimeError) as error:
        raise InputError(f'{file} holds no lists of heads: give {{"heads": [...], "lists": {{...}}}}') from error
    if places is not None and shape != _shape(places):
        raise InputError(
            f"{file} is of a model with {sum(shape)} heads in {len(shape)} layers, and this one has "
            f"{sum(_shape(places))} in {len(places)}: use the model that was scored"
        )
    now = None if model is None or places is None or not len(marks) else _mark_heads(model, places)
    if now is not None and (marks.shape != now.shape or bool(((now - marks).abs() > _ALIKE * marks[:, :1]).any())):
        raise InputError(
            f"{file} is of a model with other weights in its heads, as one has before it is cut or trained on: use the "
            "model that was scored"
        )
    return found


def _read_head(head: object) -> Head:
    """(layer, head) of a pair of whole numbers. Raises `InputError` for anything else."""
    pair = tuple(head) if isinstance(head, Iterable) and not isinstance(head, str) else ()
    if len(pair) != 2 or any(isinstance(one, bool) or not hasattr(one, "__index__") for one in pair):
        raise InputError(f"{str(head)[:60]!r} is no head: give pairs of whole numbers (layer, head), such as [(3, 5)]")
    return operator.index(pair[0]), operator.index(pair[1])


@torch.no_grad()
def _mark_heads(model: PreTrainedModel, places: Places) -> Tensor | None:
    """[heads of all layers, 2]: the norm of each head's output weights, and their sum with signs drawn at random.

    Numbers that hardly change with the number type, unlike a hash. None of weights that are not here, or packed.
    """
    found = list[Tensor]()
    for consumer, count in places.values():
        weight = _weight(model, consumer)
        if weight.is_meta or not weight.is_floating_point():
            return None
        columns = (weight.T if consumer.conv1d else weight).detach().float()
        draw = torch.Generator().manual_seed(0)
        rows, inside = (
            devices.move(torch.randint(0, 2, (size,), generator=draw) * 2.0 - 1.0, columns)
            for size in (len(columns), consumer.block)
        )
        norms = torch.linalg.vector_norm(columns.reshape(len(columns), count, consumer.block), dim=(0, 2))
        found.append(torch.stack([norms, (rows @ columns).reshape(count, -1) @ inside], 1).double().cpu())
    return torch.cat(found) if found else None


def _shape(places: Places) -> list[int]:
    """How many heads the layers that have some have."""
    return [count for _, count in places.values()]


# ---------------------------------------------------------------------------------------------------------- cutting


def find_silent(subject: Transformer) -> list[Head]:
    """Heads that add nothing to the residual stream, as those that were masked: all their output weights are zero.

    None of weights that are not here.
    """
    return [
        (layer, head)
        for layer, (consumer, count) in find_outputs(subject).items()
        for head in np.flatnonzero(_are_silent(subject.model, consumer, count)).tolist()
    ]


def _are_silent(model: nn.Module, consumer: Consumer, count: int) -> NDArray[np.bool_]:
    """[heads] booleans: whose output weights are all zero."""
    weight = _weight(model, consumer).detach()
    if weight.is_meta:
        return np.zeros(count, dtype=bool)
    columns = weight.T if consumer.conv1d else weight
    silent: NDArray[np.bool_] = ~(columns.reshape(len(columns), count, consumer.block) != 0).any(2).any(0).cpu().numpy()
    return silent


def count_heads(subject: Transformer) -> int:
    """Heads that add something to the residual stream: the output linear has a weight for them that is not zero."""
    return sum(count for _, count in find_outputs(subject).values()) - len(find_silent(subject))


def plan_cut(
    subject: Transformer, chosen: Iterable[Head], *, mask: bool = False
) -> tuple[dict[str, NDArray[np.bool_]], dict[int, list[int]]]:
    """(site -> which units stay where these heads are cut out, layer -> heads among those that stay to be masked).

    Heads of a group that are silent already (`find_silent`) don't hold it back.
    """
    places, keep, masked = find_outputs(subject), dict[str, NDArray[np.bool_]](), dict[int, list[int]]()
    for layer, some in _by_layer(places, chosen).items():
        count, width = places[layer][1], subject.widths()[layer]
        stays: NDArray[np.bool_] = ~np.isin(np.arange(count), some)
        if mask or "heads" in subject.layout.whole:
            masked[layer] = some
        elif not width.has_groups:
            keep[f"layers.{layer}.heads"] = stays
        else:
            each, live = count // width.kv, stays & ~_are_silent(subject.model, places[layer][0], count)
            groups = np.asarray(live.reshape(-1, each).any(1) | stays.reshape(-1, each).all(1))
            if not groups.all():
                keep[f"layers.{layer}.kv_groups"] = groups
            masked[layer] = np.flatnonzero(~stays[np.repeat(groups, each)]).tolist()
    return keep, {layer: some for layer, some in masked.items() if some}


@torch.no_grad()
def cut_heads(subject: Transformer, chosen: Sequence[Head], *, mask: bool = False) -> tuple[Transformer, Cut]:
    """A copy without these heads, and the receipt: exactly equal to silencing them; the output bias stays.

    A head with keys and values of its own is cut out, and so is a group of query heads that share keys and values where
    all of it goes. Other heads of groups are masked: their columns of the output linear are zero. With `mask` all are,
    and every tensor keeps its shape.
    """
    keep, masked = plan_cut(subject, chosen, mask=mask)
    student, cut = subject.cut(Selection(keep))
    for layer, some in masked.items():
        consumer = find_outputs(student)[layer][0]
        weight = _weight(student.model, consumer)
        columns = weight.T if consumer.conv1d else weight
        gone = torch.tensor(some)[:, None] * consumer.block + torch.arange(consumer.block)
        columns[:, devices.move(gone.flatten(), student.model)] = 0.0
    removed, places = dict(cut.removed), find_outputs(subject)
    for layer, some in _by_layer(places, chosen).items():
        removed[f"layers.{layer}.heads"] = (len(some), places[layer][1])
    hidden = sum(map(len, masked.values()))
    notes = [f"{hidden} heads are masked, their output weights zero: they keep their size"] if hidden else []
    return student, Cut(removed, cut.before, cut.after, (*cut.notes, *notes))


# ---------------------------------------------------------------------------------------------------------- replaying


@dataclass(frozen=True)
class Frozen:
    """One run's last position, of N sequences of equal length: what a replay starts from and holds fast.

    outputs: layer -> [N, heads * head_dim], what its output linear reads. states: the residual stream before each layer
    [N, d]. logits: [N, V].
    """

    outputs: Mapping[int, Tensor]
    states: Sequence[Tensor]
    logits: Tensor


@dataclass
class Replay:
    """A decoder whose heads are all held to outputs that are given, while MLPs and norms are computed anew.

    With every head held fast, nothing passes from one position to another: the logits of the last position depend on
    the residual stream and the heads' outputs there alone, whichever positions were patched. So a replay runs the last
    position only, from the first patched layer on.
    """

    subject: Transformer
    places: Places = field(init=False)
    _calls: dict[int, list[Call]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        subject = self.subject
        if subject.kind != "decoder" or not subject.causal:
            raise UnsupportedError(
                f"heads are replayed in decoders with a language-model head, and {type(subject.model).__name__} is none"
            )
        self.places = find_outputs(subject)
        if not self.places:
            raise UnsupportedError(f"{type(subject.model).__name__} has no attention heads to replay")

    def read(self, tokens: Tensor, noise: Tensor | None = None) -> Frozen:
        """Run the model on tokens [N, S], with `noise` [N, S, d] added to their embeddings if given."""
        outputs, states, subject = dict[int, Tensor](), list[Tensor](), self.subject

        def keep(layer: int) -> PreHook:
            def look(_: nn.Module, args: tuple[Tensor, ...]) -> None:
                outputs[layer] = args[0].reshape(*tokens.shape, -1)[:, -1].clone()  # a view would keep all positions

            return look

        def note(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            states.append(find_states(args, kwargs)[:, -1].clone())

        def disturb(_: nn.Module, args: object, output: Tensor) -> Tensor:
            return output if noise is None else output + noise.to(output)

        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(evaluating(subject.model))
            for layer, (consumer, _) in self.places.items():
                module = subject.model.get_submodule(consumer.module)
                stack.callback(module.register_forward_pre_hook(keep(layer)).remove)
            for path in subject.layers():
                layer = subject.model.get_submodule(path)
                stack.callback(layer.register_forward_pre_hook(note, with_kwargs=True).remove)
            if noise is not None:
                stack.callback(subject.model.get_input_embeddings().register_forward_hook(disturb).remove)
            output = subject.forward({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
        return Frozen(outputs, states, output.prediction[:, -1].clone())

    def run(self, states: Tensor, outputs: Mapping[int, Tensor], start: int = 0) -> Tensor:
        """Logits [R, V] where the states before layer `start` are [R, d] and its heads and all later give `outputs`.

        outputs: layer -> [R, heads * head_dim], of layer `start` and each one behind it.
        """
        rows, subject = len(states), self.subject
        batch = {"input_ids": torch.zeros(rows, 1, dtype=torch.long)}
        if rows not in self._calls:  # what blocks are called with hangs on the shape alone
            self._calls = {rows: record_calls(subject, batch)[1]}

        def give(layer: int) -> PreHook:
            def put(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                return (outputs[layer].reshape(args[0].shape), *args[1:])

            return put

        hidden, paths = states[:, None], subject.layers()
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(evaluating(subject.model))
            for layer in range(start, len(paths)):
                if layer in self.places:
                    module = subject.model.get_submodule(self.places[layer][0].module)
                    stack.callback(module.register_forward_pre_hook(give(layer)).remove)
            for layer in range(start, len(paths)):
                args, kwargs = self._calls[rows][layer]
                block = subject.model.get_submodule(paths[layer])
                out = block(devices.move(hidden, block), *args, **kwargs)
                hidden = out[0] if isinstance(out, tuple) else out
        logits: Tensor = run_ends(subject, batch, hidden).logits[:, -1]
        return logits

    def check(self, frozen: Frozen) -> None:
        """Raise `UnsupportedError` unless a replay of the heads' own outputs gives the model's own logits."""
        name = type(self.subject.model).__name__
        try:
            again = self.run(frozen.states[0], frozen.outputs)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:  # of a class whose layers hand over more
            raise UnsupportedError(
                f"layers of {name} can't be run one by one, and its heads not be replayed: rank them by silencing each "
                "(score=ablation)"
            ) from error
        apart = float((again - frozen.logits).abs().max() / frozen.logits.abs().max().clamp(min=1e-9))
        kind = frozen.states[0].dtype
        most = max(_SAME, _STEPS * torch.finfo(kind).eps * len(frozen.states) ** 0.5)
        if not apart < most:
            rounded = "" if kind == torch.float32 else f", or {kind} rounds too much: open the model in float32"
            raise UnsupportedError(
                f"a replay of {name} with its own heads' outputs is {apart:.2g} from the model, and {most:.2g} may be: "
                f"its layers pass something between positions that no head's output holds{rounded}"
            )
