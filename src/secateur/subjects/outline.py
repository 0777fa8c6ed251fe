"""What runs in a network and in which order: modules and the places where their outputs meet, for a picture.

Read from one forward pass. Activations and dropout belong to what they follow, and so does a norm that alone follows
it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from secateur.subjects.recording import leaves, running
from secateur.subjects.shrinking import twin
from secateur.subjects.traced import Traced

__all__ = ["Node", "outline"]

_MARK = "_secateur_source"
_PARAMETER = "_secateur_parameter"
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear", "convolution", "embedding", "mv", "addmv", "matmul")
_WORDS = {
    "add": "+",
    "sub": "-",
    "mul": "x",
    "cat": "concat",
    "stack": "stack",
    "bmm": "matmul",
    "mm": "matmul",
    "baddbmm": "matmul",
}
_QUIET = (nn.Identity, nn.Dropout, nn.Flatten, nn.Unflatten)


@dataclass(eq=False)
class Node:
    """One box: a module that ran, a place where outputs meet ("join"), or an end of the network."""

    kind: str
    """module, plain (a module without channels of its own), join, input or output"""
    name: str
    details: list[str] = field(default_factory=list)
    weight: str = ""
    """The tensor whose rows are its outputs."""
    dim: int = 0
    shape: tuple[int, ...] = ()
    before: list[int] = field(default_factory=list)
    """Numbers of the nodes that its inputs come from."""

    def parts(self, subject: Traced) -> list[tuple[str, np.ndarray]]:
        """(site or "", unit of each output or -1), for the sites that its outputs belong to, in order."""
        coupling = subject.coupling
        axis = next((one for one in coupling.axes if (one.tensor, one.dim) == (self.weight, self.dim)), None)
        if axis is None:
            return []
        of = coupling.classes.of[axis.start : axis.start + axis.size]
        owner = {
            int(one): (name, unit) for name, site in coupling.sites.items() for unit, one in enumerate(site.classes)
        }
        found: dict[str, list[int]] = {}
        for one in of.tolist():
            name, unit = owner.get(one, ("", -1))
            found.setdefault(name, []).append(unit)
        return [(name, np.array(units)) for name, units in found.items()]


def outline(subject: Traced) -> list[Node]:
    """The boxes of the subject's network, each after those it reads from."""
    model = twin(subject.model, share=True).eval()
    tracer = _Tracer(model)
    args, kwargs = subject.inputs.fresh()
    for tensor in tree_leaves((args, kwargs)):
        if isinstance(tensor, Tensor):
            setattr(tensor, _MARK, tracer.add(Node("input", "input", shape=tuple(tensor.shape))))
    with running(model, lambda _: None), tracer.following(), tracer:
        output = model(*args, **kwargs)
    ends = {getattr(one, _MARK, None) for one in leaves(output)[0]} - {None}
    shape = next((tuple(one.shape) for one in leaves(output)[0]), ())
    tracer.add(Node("output", "output", shape=shape, before=sorted(one for one in ends if one is not None)))
    return _merged(tracer.nodes)


class _Tracer(TorchDispatchMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.nodes: list[Node] = []
        self.paths = {id(module): path for path, module in model.named_modules()}
        self.parameters = {id(parameter): name for name, parameter in model.named_parameters()}
        self.inside: list[int] = []
        """Nodes of the modules that run, the innermost last; none within containers."""

    def add(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def following(self) -> _Hooks:
        return _Hooks(self)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        sources = list(dict.fromkeys(one for t in tensors if (one := getattr(t, _MARK, None)) is not None))
        own = [one for t in tensors if (one := self.parameters.get(id(t)) or getattr(t, _PARAMETER, None))]
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__.rstrip("_")
        results = [one for one in tree_leaves(out) if isinstance(one, Tensor)]
        shape = tuple(results[0].shape) if results else ()
        place: int | None = None
        if self.inside:
            place = self.inside[-1]
            node = self.nodes[place]
            node.before += [one for one in sources if one != place and one not in node.before]
        elif name in _PRODUCTS and own and sources:
            weight = max(own, key=lambda one: self.model.get_parameter(one).dim())
            word = "Linear" if "mm" in name or "mv" in name else name.capitalize()
            place = self.add(
                Node("module", weight.removesuffix(".weight"), [word], weight, shape=shape, before=sources)
            )
        elif len(sources) > 1:
            word = "attention" if "attention" in name else _WORDS.get(name, name)
            place = self.add(Node("join", word, shape=shape, before=sources))
        elif sources:
            place = sources[0]
        for one in results:
            if place is not None:
                setattr(one, _MARK, place)
            elif own:
                setattr(one, _PARAMETER, own[0])
        return out


class _Hooks:
    """Tells the tracer which module runs."""

    def __init__(self, tracer: _Tracer) -> None:
        self.tracer = tracer
        self.handles: list[Any] = []

    def __enter__(self) -> _Hooks:
        for module in self.tracer.model.modules():
            if any(True for _ in module.children()):
                continue
            merged = type(module).__module__ == "torch.nn.modules.activation" and not module._parameters
            if merged or isinstance(module, _QUIET):
                self.handles.append(module.register_forward_hook(self._passed))
            else:
                self.handles.append(module.register_forward_pre_hook(self._entered))
                self.handles.append(module.register_forward_hook(self._left))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _entered(self, module: nn.Module, args: Any) -> None:
        tracer = self.tracer
        path = tracer.paths[id(module)]
        weight, dim = _main(module)
        kind = "module" if weight else "plain"
        name = f"{path}.{weight}" if path else weight
        tracer.inside.append(tracer.add(Node(kind, path, [_described(module)], name if weight else "", dim)))

    def _left(self, module: nn.Module, args: Any, output: Any) -> None:
        place = self.tracer.inside.pop()
        for one in tree_leaves(output):
            if isinstance(one, Tensor):
                self.tracer.nodes[place].shape = self.tracer.nodes[place].shape or tuple(one.shape)
                # A module that returned what it was given, or a view: it is its output all the same.
                setattr(one, _MARK, place)

    def _passed(self, module: nn.Module, args: Any, output: Any) -> None:
        source = getattr(output, _MARK, None)
        if source is not None and not isinstance(module, _QUIET):
            self.tracer.nodes[source].details.append(type(module).__name__)


def _main(module: nn.Module) -> tuple[str, int]:
    """The parameter of a module that makes its channels, and the dimension along which."""
    own = {name: p for name, p in module._parameters.items() if p is not None}
    if not own:
        return "", 0
    name = "weight" if "weight" in own else max(own, key=lambda one: own[one].dim())
    sideways = isinstance(module, nn.Embedding) or getattr(module, "transposed", False)
    return name, 1 if sideways or type(module).__name__ == "Conv1D" else 0


def _described(module: nn.Module) -> str:
    name = type(module).__name__
    if not isinstance(module, nn.modules.conv._ConvNd):
        return name
    kernel = "x".join(map(str, module.kernel_size))
    stride = f" /{module.stride[0]}" if module.stride[0] > 1 else ""
    groups = f" groups {module.groups}" if module.groups > 1 else ""
    return f"{name} {kernel}{stride}{groups}"


def _merged(nodes: list[Node]) -> list[Node]:
    """Norms put into what they alone follow; constants, meetings of one thing, and what leads nowhere left out."""
    into: dict[int, int | None] = {}

    def before(number: int) -> list[int]:
        found = (into.get(one, one) for one in nodes[number].before)
        return list(dict.fromkeys(one for one in found if one is not None and one != number))

    after: dict[int, set[int]] = {}
    for number, node in enumerate(nodes):
        node.before = before(number)
        if node.kind == "plain" and not node.before:
            into[number] = None
        elif node.kind == "join" and len(node.before) < 2:
            into[number] = node.before[0] if node.before else None
        else:
            for one in node.before:
                after.setdefault(one, set()).add(number)
    for number, node in enumerate(nodes):
        if number not in into and node.kind == "module" and "Norm" in node.details[0] and len(node.before) == 1:
            (one,) = node.before
            root = into.get(one, one)
            if root is not None and nodes[root].kind == "module" and after[one] == {number}:
                nodes[root].details += node.details
                into[number] = root
    live, stack = set(), [number for number, node in enumerate(nodes) if node.kind == "output"]
    while stack:
        number = stack.pop()
        if number not in live:
            live.add(number)
            stack += before(number)
    kept = [number for number in range(len(nodes)) if number in live and number not in into]
    places = {number: place for place, number in enumerate(kept)}
    for number in kept:
        nodes[number].before = [places[one] for one in before(number)]
    return [nodes[number] for number in kept]
