"""QuantizeLinear and DequantizeLinear in ONNX graphs of networks with integer layers.

`integers.quantise` is exported as Div, Round, two bounds and Mul. Runtimes compute with integers only where they find
the two operators of ONNX that say so; weights become integers in the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import nn
from torch.export import ExportedProgram

from secateur.formats import integers

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["mark", "rounds"]

_THROUGH = ("Unsqueeze", "Reshape", "Cast", "CastLike", "Identity")


def rounds(module: nn.Module | ExportedProgram) -> bool:
    """Whether a module has quantised layers, or a program rounds."""
    inner = module if isinstance(module, ExportedProgram) else getattr(module, "model", module)
    nodes = getattr(getattr(inner, "graph", None), "nodes", ())  # of a program, or of a program's module
    if any(str(node.target).startswith("aten.round") for node in nodes):
        return True
    return isinstance(inner, nn.Module) and bool(integers.quantised_layers(inner))


def mark(model: ir.Model) -> int:
    """Change an onnx_ir model in place, before it is optimised; returns how many roundings were found."""
    import onnx_ir as ir

    graph, count = model.graph, 0
    zero = ir.Value(name="quantised_zero", const_value=ir.tensor(np.int8(0), name="quantised_zero"))
    for node in list(graph):
        found = _rounding(node)
        if found is None:
            continue
        values, scale, low, high = found
        scale = _source(scale)
        per_output = scale.const_value is not None and scale.const_value.numpy().ndim == 1
        axis = {"axis": 0} if per_output else {}
        if values.is_initializer() and values.const_value is not None:
            made = [ir.node("DequantizeLinear", [_integers(graph, values, scale, low, high), scale], axis)]
        else:
            if zero.name not in graph.initializers:
                graph.register_initializer(zero)
            made = [ir.node("QuantizeLinear", [values, scale, zero], axis)]
            if (low, high) != (-128, 127):
                ends = ((f"low_{-low}", low), (f"high_{high}", high))
                bounds = [_constant(graph, f"quantised_{side}", np.int8(end)) for side, end in ends]
                made.append(ir.node("Clip", [made[-1].outputs[0], *bounds]))
            made.append(ir.node("DequantizeLinear", [made[-1].outputs[0], scale, zero], axis))
        graph.insert_before(node, made)
        old, new = node.outputs[0], made[-1].outputs[0]
        new.shape, new.type = old.shape, old.type
        ir.convenience.replace_all_uses_with(old, new)
        count += 1
    return count


def _rounding(node: ir.Node) -> tuple[ir.Value, ir.Value, int, int] | None:
    """(values, scale, lowest, highest integer) where `node` is the last of a rounding's operators."""
    if node.op_type != "Mul":
        return None
    inner, scale = node.inputs
    bounds: list[int | None] = [None, None]
    while True:
        above = inner.producer()
        if above is None:
            return None
        kind = above.op_type
        if kind in ("Max", "Min") and len(above.inputs) == 2:
            bounds[kind == "Min"] = _number(above.inputs[1])
        elif kind == "Clip":
            bounds = [_number(one) for one in above.inputs[1:3]]
        else:
            break
        inner = above.inputs[0]
    if kind != "Round" or None in bounds:
        return None
    division = above.inputs[0].producer()
    if division is None or division.op_type != "Div" or division.inputs[1] is not scale:
        return None
    return division.inputs[0], scale, int(bounds[0] or 0), int(bounds[1] or 0)


def _source(value: ir.Value) -> ir.Value:
    """What a value was cast or reshaped from."""
    while (above := value.producer()) is not None and above.op_type in _THROUGH:
        value = above.inputs[0]
    return value


def _number(value: ir.Value) -> int | None:
    value = _source(value)
    above = value.producer()
    if above is not None and above.op_type == "Constant":
        return int(above.attributes["value"].value.numpy())
    return None if value.const_value is None else int(value.const_value.numpy())


def _integers(graph: ir.Graph, values: ir.Value, scale: ir.Value, low: int, high: int) -> ir.Value:
    numbers, steps = values.const_value.numpy(), scale.const_value.numpy()
    steps = steps.reshape(-1, *[1] * (numbers.ndim - 1)) if steps.ndim else steps
    return _constant(graph, f"{values.name}_integers", np.clip(np.rint(numbers / steps), low, high).astype(np.int8))


def _constant(graph: ir.Graph, name: str, array: np.ndarray | np.generic) -> ir.Value:
    import onnx_ir as ir

    if name not in graph.initializers:
        graph.register_initializer(ir.Value(name=name, const_value=ir.tensor(array, name=name)))
    return graph.initializers[name]
