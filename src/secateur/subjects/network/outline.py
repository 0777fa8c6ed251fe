"""Order of modules in a forward pass and where their outputs meet, for a picture.

Read from one forward pass. Activations and dropout belong to what they follow, and so does a norm that alone follows
it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import nn

from secateur.subjects.network.traced import Traced

__all__ = ["Node", "outline"]

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
    graph, modules = subject.graph, dict(subject.model.named_modules())
    parameters = dict(subject.model.named_parameters())
    nodes: list[Node] = []
    of: list[int] = []
    """Vertex -> its box."""
    boxes = {number: -1 for number, call in enumerate(graph.calls) if _is_box(modules[call.path])}
    bare: dict[str, int] = {}
    """Parameter -> the box of a module that gives it without being given anything."""

    def add(node: Node) -> int:
        nodes.append(node)
        return len(nodes) - 1

    def box(number: int, before: list[int]) -> int:
        if boxes[number] < 0:
            path = graph.calls[number].path
            boxes[number] = add(_make_node(path, modules[path]))
        node = nodes[boxes[number]]
        node.before += [one for one in before if one != boxes[number] and one not in node.before]
        return boxes[number]

    for number in boxes:
        call = graph.calls[number]
        if call.start == call.end and modules[call.path]._parameters:
            bare |= dict.fromkeys((f"{call.path}.{name}" for name in modules[call.path]._parameters), number)
    for vertex in graph.vertices:
        shape, name = next(iter(vertex.sizes), ()), vertex.operator.rstrip("_")
        sources = list(dict.fromkeys([of[one] for one in vertex.inputs]))
        sources += dict.fromkeys(box(bare[one], []) for one in sorted(vertex.parameters) if one in bare)
        own = sorted(one for one in vertex.parameters if one in parameters)
        inside = next((one for one in reversed(vertex.calls) if one in boxes), None)
        if not vertex.inputs:
            of.append(add(Node("input", "input", shape=shape)))
        elif inside is not None:
            of.append(box(inside, sources))
        elif name in _PRODUCTS and own:
            weight = max(own, key=lambda one: parameters[one].dim())
            word = "Linear" if "mm" in name or "mv" in name else name.capitalize()
            node = Node("module", weight.removesuffix(".weight"), [word], weight, shape=shape, before=sources)
            of.append(add(node))
        elif len(sources) > 1:
            word = "attention" if "attention" in name else _WORDS.get(name, name)
            of.append(add(Node("join", word, shape=shape, before=sources)))
        else:
            of.append(sources[0])
    for call in sorted(graph.calls, key=lambda one: one.end):
        if call.made and call.made[0] >= 0:
            node, module = nodes[of[call.made[0]]], modules[call.path]
            if _is_activation(module):
                node.details.append(type(module).__name__)
            elif _is_box(module) and call.start < call.end:
                node.shape = node.shape or graph.vertices[call.made[0]].sizes[0]
    made = [one for one in graph.of[""][0].made if one >= 0]
    ends = sorted({of[one] for one in made})
    shape = graph.vertices[made[0]].sizes[0] if made else ()
    add(Node("output", "output", shape=shape, before=ends))
    return _merge_nodes(nodes)


def _is_activation(module: nn.Module) -> bool:
    return (
        type(module).__module__ == "torch.nn.modules.activation"
        and not module._parameters
        and not any(True for _ in module.children())
    )


def _is_box(module: nn.Module) -> bool:
    """Whether it has a box of its own: containers have none, and what belongs to what it follows."""
    return not (any(True for _ in module.children()) or isinstance(module, _QUIET) or _is_activation(module))


def _make_node(path: str, module: nn.Module) -> Node:
    weight, dim = _main(module)
    name = f"{path}.{weight}" if path else weight
    return Node("module" if weight else "plain", path, [_describe_module(module)], name if weight else "", dim)


def _main(module: nn.Module) -> tuple[str, int]:
    """The parameter of a module that makes its channels, and the dimension along which."""
    own = {name: p for name, p in module._parameters.items() if p is not None}
    if not own:
        return "", 0
    name = "weight" if "weight" in own else max(own, key=lambda one: own[one].dim())
    sideways = isinstance(module, nn.Embedding) or getattr(module, "transposed", False)
    return name, 1 if sideways or type(module).__name__ == "Conv1D" else 0


def _describe_module(module: nn.Module) -> str:
    name = type(module).__name__
    if not isinstance(module, nn.modules.conv._ConvNd):
        return name
    kernel = "x".join(map(str, module.kernel_size))
    stride = f" /{module.stride[0]}" if module.stride[0] > 1 else ""
    groups = f" groups {module.groups}" if module.groups > 1 else ""
    return f"{name} {kernel}{stride}{groups}"


def _merge_nodes(nodes: list[Node]) -> list[Node]:
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
