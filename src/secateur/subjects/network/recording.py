"""One forward pass, recorded at the dispatcher: which atoms meet, which stay and why, and where sizes are used.

The network really runs, on the example inputs, so data-dependent Python is no obstacle; only what happens to tensors
is looked at. With `kept`, the same pass also silences: results are zero wherever atoms go, and whatever is averaged
over channels is averaged over those that are kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.modules import module as module_hooks
from torch.utils._pytree import tree_leaves, tree_map_only

from secateur._utils import devices
from secateur._utils.outputs import leaves
from secateur.subjects.network import flops, labelling, silencing
from secateur.subjects.network.labels import CONSUMED, LEFT_OUT, Atoms, Flow, Labels
from secateur.subjects.network.operators import Arguments, EagerMode, Keywords, name_of
from secateur.subjects.network.rules import RECURRENT

__all__ = ["WIDENED", "Example", "Run", "evaluate", "record", "resting", "running", "tensors_of", "training"]


_LIVE = "_secateur_live"
"""Marks tensors that an operator made, by what they were computed from: bits of `_PARAMETERS` and `_INPUTS`."""
_PARAMETERS, _INPUTS = 1, 2


@dataclass(frozen=True, eq=False)
class Example:
    """What a network is called with."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, inputs: object) -> Example:
        """A tensor (one positional input), a tuple (positional), a mapping (keywords), or an `Example`."""
        if isinstance(inputs, Example):
            return inputs
        if isinstance(inputs, tuple):
            return cls(inputs)
        if isinstance(inputs, Mapping) and all(isinstance(key, str) for key in inputs):
            return cls((), dict(inputs))
        return cls((inputs,))

    def fresh(self, model: nn.Module | None = None) -> tuple[tuple[object, ...], dict[str, object]]:
        """Copies, for a forward pass may write into them: on the CPU, in float32 where they were in half precision.

        With `model`, copies for that one: where it is, as they are.
        """
        copies = copy.deepcopy((self.args, dict(self.kwargs)))
        return tree_map_only(Tensor, _plain, copies) if model is None else devices.move(copies, model)

    def cast(self, dtype: torch.dtype) -> Example:
        """The same with numbers of another precision."""
        args, kwargs = tree_map_only(
            Tensor, lambda one: one.to(dtype) if one.is_floating_point() else one, (self.args, dict(self.kwargs))
        )
        return Example(args, kwargs)

    def ask(self, network: Callable[..., object], inputs: object) -> Any:
        """What `network` gives for other `inputs`, which take the place of the first of these, by the same name.

        In the mode in which it is and with gradients, where a network that is a module is: for training loops.
        """
        one = self.with_inputs(devices.move(inputs, network) if isinstance(network, nn.Module) else inputs)
        return network(*one.args, **one.kwargs)

    def with_inputs(self, inputs: object) -> Example:
        """Other `inputs` alone, in the place of the first of these, by the same name."""
        return Example((inputs,)) if self.args else Example((), {next(iter(self.kwargs)): inputs})


def _plain(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


@dataclass(eq=False)
class Run:
    """What a recorded pass gave."""

    output: Any
    flow: Flow
    used: set[str]
    """Names of the parameters and buffers that took part."""
    made: list[Tensor]
    """Labels of the parameters in products with what flows, along which these make channels."""
    read: list[Tensor]
    """The same, along which they read channels."""
    products: list[flops.Product]
    """What each operator costs."""
    reads: list[str] = field(default_factory=list)
    """Modules in which Python read a value that was computed from parameters: code may have chosen by it."""
    looks: list[str] = field(default_factory=list)
    """The same of values of the inputs alone."""
    late: bool = False
    """Whether parts of the network run in training only; what they ask for was recorded too."""

    @cached_property
    def reached(self) -> NDArray[np.bool_]:
        """Booleans [atoms]: what an operator uses, and does not only move."""
        return self.flow.list_reached()


WIDENED = "_secateur_widened"
"""The attribute of a copy to look at, in float32, of a network in half precision."""


class _Widen(EagerMode):
    """What code casts to half precision becomes float32, as the weights of the network that is looked at are."""

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: Arguments = (), kwargs: Keywords | None = None
    ) -> object:
        kwargs = kwargs or {}
        if kwargs.get("dtype") in (torch.float16, torch.bfloat16):
            kwargs = {**kwargs, "dtype": torch.float32}
        return func(*args, **kwargs)


def evaluate(model: nn.Module, example: Example) -> object:
    """What `model` gives on copies of the inputs, without gradients and with fixed random numbers."""
    with running(model, lambda _: None):
        args, kwargs = example.fresh()
        return model(*args, **kwargs)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, shared ones once."""
    found: tuple[dict[str, Tensor], dict[str, Tensor]] = {}, {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        for mine, given in zip(found, (module._parameters, module._buffers), strict=True):
            for name, tensor in given.items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    mine[f"{path}.{name}" if path else name] = tensor
    return {**found[0], **found[1]}


def record(
    model: nn.Module,
    example: Example,
    kept: Callable[[Atoms], Tensor] | None = None,
    entered: list[str] | None = None,
    whole: Set[str] = frozenset(),
) -> Run:
    """Run `model`, which is in evaluation mode and may be written to, and record; silence what `kept` says goes.

    kept: from the atoms, which are the same in every pass, to one boolean per atom. entered: its first element
    follows the module that runs. whole: see `Flow.whole`.
    """
    atoms = Atoms()
    atoms.frozen = kept is not None
    flow = Flow(atoms)
    flow.whole = frozenset(whole)
    found = tensors_of(model)
    kernels = {
        id(module._parameters.get("weight"))
        for module in model.modules()
        if isinstance(module, nn.modules.conv._ConvNd)
    }
    # All but what comes in: gates, and the state that a step hands to the next.
    states = {
        id(parameter): (type(module).__name__, leaf)
        for module in model.modules()
        if isinstance(module, nn.RNNBase)
        for leaf, parameter in module._parameters.items()
        if parameter is not None
    }
    # Queries, keys and values: code may take some of them by itself, and all stay equally many.
    fused = {
        id(one)
        for module in model.modules() if isinstance(module, nn.MultiheadAttention)
        for one in (module.in_proj_weight, module.in_proj_bias) if one is not None
    }  # fmt: skip
    names = {}
    constants = _constants(model)
    for name, tensor in found.items():
        if not tensor.is_floating_point() or id(tensor) in constants:
            continue
        shown = tensor.detach()
        labels = atoms.add(name, shown.flatten(2)[:, :, 0] if id(tensor) in kernels else shown)
        if id(tensor) in kernels:
            labels = tuple(label.view(*label.shape, *([1] * (tensor.dim() - 2))) for label in labels)
        if id(tensor) in states:
            kind, leaf = states[id(tensor)]
            atoms.keep(
                (one for one in labels if not (leaf.startswith("weight_ih_l0") and one.shape[1] > 1)),
                f"{RECURRENT} ({kind} in {name.rpartition('.')[0]})",
            )
        flow.mark(tensor, labels)
        if id(tensor) in fused:
            parts = labels[0].reshape(3, -1)
            atoms.join(parts[:1], parts, "is one of three equal parts")
            flow.parts.append(parts)
        if kept is not None:
            silencing.leave_raw(tensor)
        names[id(tensor)] = name
    mode = _Recorder(flow, names, kept(atoms) if kept else None)

    def follow(path: str) -> None:
        flow.where = path
        flow.entered.add(path)
        if entered is not None:
            entered[0] = path

    def one() -> Any:
        args, kwargs = example.fresh()
        mode.given = {id(one) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        mode.known = {id(one) for one in found.values()} | mode.given | _loose(model)
        with running(model, follow), mode:
            output = model(*args, **kwargs)
        mode.settle(output)
        flow.where, flow.operator = "", "output"
        for value in leaves(output)[0]:
            flow.lose(flow.labels(value), (), CONSUMED)
            atoms.keep(flow.labels(value), "reaches the output of the network")
        return output

    late = False
    try:
        output = one()
        if kept is None and (idle := dict(model.named_parameters()).keys() - mode.used) and _late(model, example, idle):
            # What that pass costs and does is not part of the network's own.
            products, late = list(mode.products), True
            with training(model):
                one()
            mode.products = products
    finally:
        for tensor in found.values():
            for mark in ("labels", "blank", "base", "raw", "sources"):
                tensor.__dict__.pop(f"_secateur_{mark}", None)
    return Run(output, flow, mode.used, mode.made, mode.read, mode.products, mode.reads, mode.looks, late)


def _late(model: nn.Module, example: Example, idle: Set[str]) -> bool:
    """Whether a module with one of these parameters runs in training, such as an auxiliary classifier.

    False where it can't train on the example inputs alone, as a detector that wants boxes.
    """
    owners, ran = {name.rpartition(".")[0] for name in idle}, set[str]()
    with suppress(Exception), training(model), running(model, ran.add):
        args, kwargs = example.fresh()
        model(*args, **kwargs)
        return not owners.isdisjoint(ran)
    return False


@contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """In training, as the network's own code sees it: layers of torch's, with their noise and statistics, are not."""
    before = {module: module.training for module in model.modules()}
    for module in before:
        module.training = not type(module).__module__.startswith("torch.nn")
    try:
        yield
    finally:
        for module, was in before.items():
            module.training = was


def _loose(model: nn.Module) -> set[int]:
    """Ids of tensors that modules hold as plain attributes."""
    found = set()
    for module in model.modules():
        for name, value in vars(module).items():
            if type(value) in _NO_TENSOR or name in _OWN:
                continue
            if isinstance(value, Tensor):
                found.add(id(value))
            elif value and isinstance(value, dict | list | tuple | set):
                found |= {id(one) for one in tree_leaves(value) if isinstance(one, Tensor)}
    return found


_OWN = frozenset(["_parameters", "_buffers", "_modules"])
_NO_TENSOR = frozenset([int, float, bool, str, type(None)])


def _constants(model: nn.Module) -> set[int]:
    """Buffers that are no statistics or weights of channels: masks, frequencies, grids."""
    return {
        id(buffer)
        for module in model.modules()
        for buffer in module.buffers(recurse=False)
        if buffer.dim() != 1
        or (not module._parameters and "running_mean" not in module._buffers and "weight" not in module._buffers)
    }


_FACTORS = {
    **dict.fromkeys(("convolution", "mm", "bmm", "mv", "_grouped_mm"), (0, 1)),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), (1, 2)),
}
"""Operator -> the places of the two factors of its product."""
_MOVING = frozenset(("squeeze_", "unsqueeze_", "t_", "transpose_", "swapaxes_", "swapdims_"))
"""Operators that give a tensor other dimensions in place."""


def _show(func: OpOverload, args: Arguments) -> tuple[OpOverload, Arguments]:
    """An operator and its arguments as rules know them: of one that moves dimensions in place, as they were before."""
    name = name_of(func)
    if name not in _MOVING:
        return func, args
    before = torch.ops.aten.alias.default(args[0])
    before.__dict__.update(args[0].__dict__)  # its labels
    overloads = getattr(torch.ops.aten, name[:-1])
    kind = "int" if "transpose" in name else func._overloadname  # there is no other of that name
    shown: OpOverload = getattr(overloads, kind)
    return shown, (before, *args[1:])


class _Recorder(EagerMode):
    """Labels every tensor that an operator returns."""

    resting = False

    def __init__(self, flow: Flow, names: dict[int, str], kept: Tensor | None) -> None:
        super().__init__()
        self.flow, self.names, self.kept = flow, names, kept
        self.used: set[str] = set()
        self.made: list[Tensor] = []
        self.read: list[Tensor] = []
        self.products: list[flops.Product] = []
        self.own: set[int] = set()
        self.reads: list[str] = []
        self.looks: list[str] = []
        self.known: set[int] = set()
        """Ids of tensors that were there before the pass."""
        self.given: set[int] = set()
        """Those of the inputs among them."""
        self.foreign = False
        """Whether numbers came in that no operator made."""
        self._unused: dict[int, tuple[Labels, str]] = {}
        self._lost: list[tuple[Labels, str]] = []

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: Arguments = (), kwargs: Keywords | None = None
    ) -> object:
        kwargs = kwargs or {}
        if _Recorder.resting:
            return func(*args, **kwargs)
        live = 0
        for value in args:
            for one in value if isinstance(value, list | tuple) else (value,):
                if id(one) in self.names:
                    self.used.add(self.names[id(one)])
                    live |= _PARAMETERS
                elif id(one) in self.given:
                    live |= _INPUTS
                live |= getattr(one, _LIVE, 0)
        if self.kept is None:
            self._note_use(func, args)
        if func.overloadpacket.__name__.endswith("_") and args and id(args[0]) in self.names.keys() - self.own:
            # The pass writes into a parameter, which is shared with the model that must stay as it is.
            self.own.add(id(args[0]))
            args[0].data = args[0].data.clone()
        shown, given = _show(func, args)
        if self.kept is None:
            self._take((*args, *kwargs.values()))
            out = func(*args, **kwargs)
            self.products += flops.products(self.flow, func, args, kwargs, out)
            if live and func.overloadpacket.__name__ in ("_local_scalar_dense", "is_nonzero", "equal"):
                (self.reads if live & _PARAMETERS else self.looks).append(self.flow.where)
            labelling.apply(self.flow, shown, given, kwargs, out)
            self._give(out, live)
            return out
        moves = shown is not func  # in place: zeros move along, and a parameter is no other tensor
        out = func(*args, **kwargs) if moves else silencing.call(self.flow, self.kept, func, args, kwargs)
        labelling.apply(self.flow, shown, given, kwargs, out)
        if not moves:
            silencing.silence(self.flow, self.kept, func, args, out)
        return out

    def _note_use(self, func: OpOverload, args: Arguments) -> None:
        """Note which dimensions of parameters make channels of what flows in a product, and which read them."""
        places = _FACTORS.get(name_of(func))
        if places is None:
            return
        live = [self._find_live(args[place]) for place in places]
        for mine, other in ((0, 1), (1, 0)):
            weight = args[places[mine]]
            if live[mine] != _PARAMETERS or not live[other] & _INPUTS or weight.dim() == 1:
                continue
            made, read = weight.dim() - 2 + mine, weight.dim() - 1 - mine
            if name_of(func) == "convolution":
                made, read = (1, 0) if args[6] else (0, 1)
            for label in self.flow.labels(weight):
                self.made += [label] if label.shape[made] > 1 else []
                self.read += [label] if label.shape[read] > 1 else []

    def _find_live(self, value: object) -> int:
        """Whether a tensor comes of parameters, of inputs, or of both."""
        if id(value) in self.names:
            return _PARAMETERS
        return _INPUTS if id(value) in self.given else getattr(value, _LIVE, 0)

    def _take(self, values: Sequence[object]) -> None:
        for value in values:
            for one in value if isinstance(value, list | tuple) else (value,):
                if isinstance(one, Tensor):
                    left, made = self._unused.pop(id(one), None), hasattr(one, _LIVE)
                    if left is not None and not made:  # that of a tensor which is gone
                        self._lost.append(left)
                    self.foreign = self.foreign or not (made or id(one) in self.known or one.numel() < 2)

    def _give(self, out: object, live: int) -> None:
        for one in out if isinstance(out, list | tuple) else (out,):
            if isinstance(one, Tensor):
                setattr(one, _LIVE, live | getattr(one, _LIVE, 0))
                if id(one) in self._unused:  # that of a tensor which is gone
                    self._lost.append(self._unused.pop(id(one)))
                # Indices that come along, as those of a pooling, are seldom asked for.
                aside = isinstance(out, list | tuple) and not one.is_floating_point()
                if (labels := self.flow.labels(one)) and not aside:
                    self._unused[id(one)] = (labels, self.flow.reason("leaves what is recorded"))

    def settle(self, output: object) -> None:
        """Results that no operator took are left out, such as parts of a tensor that are for other tasks.

        Where numbers came in from outside, they may be those of such results: keep them. What NumPy or another library
        does in between, nobody sees.
        """
        for one in (*leaves(output)[0], *leaves(output)[1]):
            self._unused.pop(id(one), None)
        for labels, reason in (*self._lost, *self._unused.values()):
            self.flow.lose(labels, (), LEFT_OUT)
            if self.foreign:
                self.flow.atoms.keep(labels, reason)


@contextmanager
def resting() -> Iterator[None]:
    """Nothing that is computed here is part of a pass."""
    _Recorder.resting = True
    try:
        yield
    finally:
        _Recorder.resting = False


@contextmanager
def running(
    model: nn.Module, entered: Callable[[str], None], left: Callable[[str, object], None] | None = None
) -> Iterator[None]:
    """Without gradients, with fixed random numbers, and with `entered` told the path of the module that runs.

    `left` is told the path of each module that is done, and its output.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    stack = [""]

    def before(module: nn.Module, _: object) -> None:
        stack.append(paths.get(id(module), stack[-1]))
        entered(stack[-1])

    def after(module: nn.Module, _: object, output: object) -> None:
        path = stack.pop() if len(stack) > 1 else ""
        if left is not None:
            left(path, output)
        entered(stack[-1])

    fast = torch.backends.mha.get_fastpath_enabled()
    # Weights in half precision are looked at in float32, and so is what the network's own code casts to half.
    widened = any(vars(module).get(WIDENED) for module in (model, *model.children()))
    wide = _Widen() if widened else nullcontext()
    handles = [
        module_hooks.register_module_forward_pre_hook(before),
        module_hooks.register_module_forward_hook(after),
    ]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), wide:
            devices.seed(0)
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()
