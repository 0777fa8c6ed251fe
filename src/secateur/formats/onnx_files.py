"""Export a module to ONNX, and compare its output with that of PyTorch before the file is handed over."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.fx.node import Argument, map_aggregate
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from secateur._utils.outputs import leaves
from secateur.errors import MissingExtraError, ModelError, NumericalError, UnsupportedError
from secateur.formats import qdq

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = [
    "TOLERANCE", "check", "check_installed", "load_program", "open_session", "program", "write", "write_module",
    "write_program", "write_widened",
]  # fmt: skip

TOLERANCE = 1e-4
"""Largest difference to PyTorch, relative to the largest output or 1."""

_EDGES = 0.01
"""Largest mean difference for networks that round to integers: what lies between two may fall to either side."""

_FLOATS = "session.disable_quant_qdq"
"""The option of onnxruntime by which layers between roundings compute in floats, as PyTorch does."""

_HALF = (torch.float16, torch.bfloat16)

_WIDENED = (
    "the ONNX file computes in float32 what the network casts to half precision, which onnxruntime can't: its outputs "
    "differ from the network's by that rounding"
)

_ONE_SHAPE = "the ONNX file takes inputs of the shapes of the example only: {}"


def check_installed() -> None:
    """Raise `MissingExtraError` where a library of the `onnx` extra is not installed."""
    for library in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(library) is None:
            raise MissingExtraError(f"ONNX export needs {library}: pip install 'secateur[onnx]'")


def write(
    module: nn.Module | ExportedProgram,
    path: Path,
    args: tuple[object, ...] = (),
    kwargs: Mapping[str, object] | None = None,
    name_axes: bool = False,
    **options: Any,
) -> None:
    """Export to `path`; `options` are those of torch.onnx.export.

    name_axes: call free dimensions batch, height and width.
    """
    with warnings.catch_warnings(), torch.no_grad(), _Pooling():
        warnings.simplefilter("ignore")
        whole = not qdq.rounds(module)
        if not whole:
            options["optimize"] = False
        program = torch.onnx.export(module, args, kwargs=dict(kwargs or {}), dynamo=True, verbose=False, **options)
        assert program is not None
        if not whole and qdq.mark(program.model):
            program.optimize()
    for graph in (program.model.graph, *program.model.functions.values()):
        for node in graph.all_nodes():
            node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)  # names folders of this machine
    if name_axes:
        _name_axes(program.model)
    program.save(str(path))


class _Pooling(TorchFunctionMode):
    """The maximum along a series is that along an image of one row: torch exports the former for one length alone."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        named = dict(kwargs or {})
        pools = func in (torch.max_pool1d, nn.functional.max_pool1d)
        if pools and len(args) < 7 and not named.get("return_indices"):
            named.pop("return_indices", None)
            func = _pool
        return func(*args, **named)


def _first(size: int | Sequence[int]) -> int:
    return size[0] if isinstance(size, Sequence) else size


def _pool(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
) -> Tensor:
    size, step, edge, gaps = map(_first, (kernel_size, stride or kernel_size, padding, dilation))
    whole: object = size  # a torch.SymInt where it was said as the length
    if isinstance(whole, torch.SymInt) and whole == input.shape[-1] and (edge, gaps) == (0, 1):
        return input.amax(-1, keepdim=True)  # of the whole series, however long
    rows = nn.functional.max_pool2d(input[..., None, :], (1, size), (1, step), (0, edge), (1, gaps), ceil_mode)
    return rows[..., 0, :]


def open_session(path: Path, *, threads: int = 0, floats: bool = False) -> InferenceSession:
    """The file in onnxruntime on the CPU, with this many threads per operation, or its own number for 0.

    floats: compute between roundings in floats, as PyTorch does.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised
    options.intra_op_num_threads = threads
    if floats:
        options.add_session_config_entry(_FLOATS, "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def check(
    path: Path,
    batches: Sequence[tuple[Mapping[str, Tensor], Sequence[tuple[Tensor, Any]]]],
    *,
    rounds: bool = False,
) -> tuple[str, ...]:
    """Run the file on batches of (inputs by name, expected outputs each with the index of what of it counts).

    Raises `NumericalError` where an output is off by more than `TOLERANCE`; of a network that `rounds` to integers,
    where it is off by more than `_EDGES` on average, computed in floats between the roundings. The integer kernels of
    onnxruntime add products of eight bits in sixteen on processors without VNNI, and clip sums that are larger: a note
    tells of outputs that are off by that on this one.
    """
    if not rounds:
        _compare(path, batches, TOLERANCE)
        return ()
    _compare(path, batches, _EDGES, mean=True, floats=True)
    try:
        _compare(path, batches, _EDGES, mean=True)
    except NumericalError as error:
        return (
            f"{str(error).partition(':')[0]} by onnxruntime's integer kernels, which clip sums on this processor: "
            f"run it here with the session option {_FLOATS}=1",
        )
    return ()


def _compare(
    path: Path,
    batches: Sequence[tuple[Mapping[str, Tensor], Sequence[tuple[Tensor, Any]]]],
    tolerance: float,
    *,
    mean: bool = False,
    floats: bool = False,
) -> None:
    """Raise `NumericalError` where the largest (or mean) difference, relative to the largest output or 1, is larger."""
    session = open_session(path, floats=floats)
    names = [one.name for one in session.get_outputs()]
    taken = {one.name for one in session.get_inputs()}
    for inputs, expected in batches:
        given = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items() if name in taken})
        for name, (wanted, counts), found in zip(names, expected, given, strict=True):
            a, b = torch.from_numpy(found)[counts].double(), wanted[counts].double()
            apart = (a - b).abs() if a.shape == b.shape and a.numel() else a.new_tensor(a.numel() != b.numel())
            error = float(apart.mean() if mean else apart.max())
            if not error <= tolerance * max(1.0, float(b.abs().max()) if b.numel() else 0.0):
                raise NumericalError(f"the ONNX export differs from PyTorch by {error:.2g} in {name}: it is not usable")


# ------------------------------------------------------------------------------------------------------ any module


class _Flat(nn.Module):
    """A module from tensors to tensors: what goes in beside them is as in the example."""

    def __init__(self, model: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        super().__init__()
        self.model = model
        self.parts, self.form = tree_flatten((args, dict(kwargs)))

    @property
    def tensors(self) -> list[Tensor]:
        """The example's tensors, in order."""
        return [one for one in self.parts if isinstance(one, Tensor)]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors that the model's output is about, without states and caches beside them."""
        rest = iter(tensors)
        args, kwargs = tree_unflatten([next(rest) if isinstance(one, Tensor) else one for one in self.parts], self.form)
        return tuple(leaves(self.model(*args, **kwargs))[0])


def write_module(
    model: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object], path: Path
) -> tuple[str, ...]:
    """Export a module on the CPU in evaluation mode, and check it; returns notes.

    Inputs are named as the arguments of `forward`, outputs output, output_1, ... Where the module runs and exports so,
    the first dimension of all inputs is a "batch" of any size, images [B, C, H, W] have any "height" and "width", and
    integers [B, T], such as tokens, any "sequence" (where lengths differ, the second is "sequence_1"); where not, a
    note says so.
    """
    check_installed()
    return _write_flat(_Flat(model, args, kwargs).eval(), _names(model, args, kwargs), path)


def _write_flat(flat: _Flat, names: list[str], path: Path) -> tuple[str, ...]:
    model, one = flat.model, flat.tensors
    with torch.no_grad():
        outputs = flat(*one)
    options: dict[str, Any] = {"input_names": names, "output_names": _outputs(len(outputs))}
    wider = _wider_inputs(flat, outputs)
    for place, tensors in enumerate(wider):
        shapes = tuple(dict.fromkeys(dims, torch.export.Dim.DYNAMIC) for dims in _free_dims(one, tensors))
        try:
            write(flat, path, tuple(tensors), dynamic_shapes={"tensors": shapes}, name_axes=True, **options)
            told = _check_module(path, flat, names, [one, *wider[place:]])
            return (*_describe_fixed(one, tensors, names, wider[0]), *told)
        except Exception:
            path.unlink(missing_ok=True)  # it holds for fewer sizes only: try that
    try:
        write(flat, path, tuple(one), **options)
    except Exception as error:
        line = next(iter(str(error).strip().splitlines()), "")[:200]
        raise UnsupportedError(
            f"{type(model).__name__} can't be exported to ONNX ({type(error).__name__}: {line}): change what it names"
        ) from error
    return (_describe_shapes(one, names), *_check_module(path, flat, names, [one]))


def write_widened(make: Callable[[], ExportedProgram], path: Path, error: Exception) -> tuple[str, ...]:
    """Export the program that `make` gives in float32, where it computes in half precision; returns notes.

    error: that of exporting it as it is, which is raised where nothing in it is of half precision. The file is checked
    against the program in float32.
    """
    model = None
    with contextlib.suppress(Exception):
        program = make()
        model = _widen(program)
    if model is None:
        raise error
    check_installed()
    path.unlink(missing_ok=True)
    args, kwargs = tree_map_only(Tensor, _as_float, program.example_inputs)
    return (_WIDENED, *_write_flat(_Flat(model, args, kwargs), _names(model, args, kwargs), path))


def _widen(program: ExportedProgram) -> nn.Module | None:
    """The program's module with float32 in place of half precision; None where there is none."""
    model, halves = program.module(), 0

    def widen(argument: Argument) -> Argument:
        nonlocal halves
        halves += argument in _HALF if isinstance(argument, torch.dtype) else 0
        return torch.float32 if isinstance(argument, torch.dtype) and argument in _HALF else argument

    for module in model.modules():  # of autocast, too, which has graphs of its own
        if isinstance(module, GraphModule):
            for node in module.graph.nodes:
                node.args, node.kwargs = map_aggregate(node.args, widen), map_aggregate(node.kwargs, widen)
            module.recompile()
    for tensor in (*model.parameters(), *model.buffers()):
        halves += tensor.dtype in _HALF
        tensor.data = _as_float(tensor.data)
    return model if halves else None


def _as_float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _HALF else tensor


def program(model: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> ExportedProgram:
    """A torch.export program of a module in evaluation mode, for any batch, height and width where the module lets it.

    Where each operator was called from is left out: it would name folders of this machine to whoever gets the file.
    """
    flat = _Flat(model, args, kwargs).eval()
    one = flat.tensors
    with torch.no_grad():
        wider = _wider_inputs(flat, flat(*one))
    # The shapes of the example are what is left where something holds for one size only.
    for tensors in wider:
        rest, dims = iter(tensors), iter(_free_dims(one, tensors))
        larger = [next(rest) if isinstance(part, Tensor) else part for part in flat.parts]
        wide, named = tree_unflatten(larger, flat.form)
        with contextlib.suppress(Exception):
            given = inspect.signature(model.forward).bind(*wide, **named).arguments
            free = tree_map_only(Tensor, lambda _: dict.fromkeys(next(dims), torch.export.Dim.DYNAMIC), dict(given))  # noqa: B023
            with _Pooling():
                found = torch.export.export(model, wide, named, dynamic_shapes=free, strict=False)
            with torch.no_grad():
                for inputs in ((args, kwargs), (wide, named)):
                    _require_equal(found.module()(*inputs[0], **inputs[1]), model(*inputs[0], **inputs[1]))
            found.example_inputs = (args, dict(kwargs))  # in place of the wider ones
            return _without_paths(found)
    return _without_paths(torch.export.export(model, args, dict(kwargs), strict=False))


def _without_paths(program: ExportedProgram) -> ExportedProgram:
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def write_program(program: ExportedProgram, path: Path) -> tuple[str, ...]:
    """Export a torch.export program, with the inputs it was made with, and check it; returns notes.

    What it computes in half precision is in float32 in the file where onnxruntime can't run it otherwise.
    """
    check_installed()
    try:
        return _write_program(program, path)
    except Exception as error:
        return write_widened(lambda: program, path, error)


def _write_program(program: ExportedProgram, path: Path) -> tuple[str, ...]:
    args, kwargs = program.example_inputs
    flat = _Flat(program.module(), args, kwargs)
    names = _names(flat.model, args, kwargs)
    with torch.no_grad():
        outputs = flat(*flat.tensors)
        every = tree_leaves(flat.model(*args, **kwargs))
    if len(outputs) < len(every):  # states and caches beside what it is about, which the file would give, too
        return _write_flat(flat, names, path)
    options: dict[str, Any] = {"input_names": names, "output_names": _outputs(len(outputs)), "name_axes": True}
    if not program.range_constraints:
        write(program, path, **options)
        return (_describe_shapes(flat.tensors, names), *_check_module(path, flat, names, [flat.tensors]))
    wider = [tensors for tensors in _wider_inputs(flat, outputs) if _takes(flat, tensors)]
    sized = any(one.shape[1:] != two.shape[1:] for row in wider for one, two in zip(row, flat.tensors, strict=True))
    try:
        write(program, path, **options)
        told = _check_module(path, flat, names, [flat.tensors, *wider])
    except Exception:
        if not sized:
            raise
        path.unlink(missing_ok=True)  # ONNX holds it for fewer sizes than the program does
        return _write_flat(flat, names, path)
    most = wider[0] if wider else flat.tensors
    return (*_describe_fixed(flat.tensors, most, names, most), *told)


def load_program(folder: str | Path) -> ExportedProgram:
    """The program that `Traced.save(folder, program=True)` wrote. Raises `ModelError` where there is none."""
    file = Path(folder) / "model.pt2"
    if not file.is_file():
        raise ModelError(f"{folder} holds a network without its program: save it with program=True")
    try:
        return torch.export.load(file)
    except Exception as error:
        raise ModelError(f"{file} is damaged ({type(error).__name__}): save the network again") from error


def _check_module(path: Path, flat: nn.Module, names: list[str], calls: Sequence[list[Tensor]]) -> tuple[str, ...]:
    batches = []
    for tensors in calls:
        with torch.no_grad():
            batches.append((dict(zip(names, tensors, strict=True)), [(one, ...) for one in flat(*tensors)]))
    return check(path, batches, rounds=qdq.rounds(flat))


def _outputs(count: int) -> list[str]:
    return ["output", *(f"output_{index}" for index in range(1, count))]


def _names(model: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> list[str]:
    """One name per tensor that goes in, after the arguments of `forward`."""
    try:
        bound: Mapping[str, Any] = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        bound = {}
    places = [*bound][: len(args)] if len(bound) >= len(args) else []
    places = [*places, *(f"input_{index}" for index in range(len(places), len(args)))]
    names: list[str] = []
    for place, value in [*zip(places, args, strict=True), *kwargs.items()]:
        count = sum(isinstance(one, Tensor) for one in tree_leaves(value))
        names += [place if count == 1 else f"{place}_{index}" for index in range(count)]
    return names


_LARGER = (64, 32)
"""By how many pixels height and width of an image are enlarged, to see whether a network takes other sizes."""


_LONGER = 5
"""By how many tokens texts are lengthened, to see whether a network takes other lengths."""


def _wider_inputs(flat: _Flat, outputs: Sequence[Tensor]) -> list[list[Tensor]]:
    """Inputs of other sizes that the module takes, or none: in batch, size and length, in fewer, in the batch alone."""
    several = _several(flat, flat.tensors, outputs)
    if several is None:
        return []
    images = any(map(_is_image, several)) and not hasattr(flat.model, "detect")
    larger = [_enlarge(one) if images and _is_image(one) else one for one in several]
    fits = images and _takes(flat, larger)
    wider = list[list[Tensor]]()
    for start in [larger, several] if fits else [several]:
        longer = _of_other_length(flat, start)
        wider += [one for one in (longer, start) if one is not None and one is not several]
    return [*wider, several]


def _of_other_length(flat: _Flat, tensors: list[Tensor]) -> list[Tensor] | None:
    """The inputs with tokens of another length, where the module takes that: longer, or shorter as near its limit.

    All at once, or else those of one length alone, as tokens and their mask beside columns of categories. Without
    tokens, sounds and other series [B, T], [B, T, F] or [B, C, T] in place of them.
    """
    lengths = sorted({one.shape[1] for one in tensors if _is_tokens(one)})
    for chosen in [lengths, *([length] for length in lengths if len(lengths) > 1)]:
        for change in (_lengthen, _shorten):
            other = [change(one) if _is_tokens(one) and one.shape[1] in chosen else one for one in tensors]
            if chosen and all(one.shape[1] for one in other if _is_tokens(one)) and _takes(flat, other):
                return other
    for dim in () if lengths else (2, 1):
        series = [one.is_floating_point() and dim < one.dim() <= 3 for one in tensors]
        lengths = sorted({one.shape[dim] for one, is_long in zip(tensors, series, strict=True) if is_long})
        for chosen in [lengths, *([length] for length in lengths if len(lengths) > 1)]:
            other = [
                _stretch(one, dim) if is_long and one.shape[dim] in chosen else one
                for one, is_long in zip(tensors, series, strict=True)
            ]
            if chosen and _takes(flat, other):
                return other
    return None


def _stretch(series: Tensor, dim: int) -> Tensor:
    """A sound, or another series, with a quarter of it, or more, once more."""
    more = max(_LONGER, series.shape[dim] // 4)
    return torch.cat([series, *[series.narrow(dim, 0, 1)] * more], dim)


def _is_image(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_floating_point()


def _is_tokens(tensor: Tensor) -> bool:
    """Whether it has integers [B, T], which may be tokens, or booleans such as their mask."""
    return tensor.dim() == 2 and tensor.shape[1] > 0 and not (tensor.is_floating_point() or tensor.is_complex())


def _lengthen(tokens: Tensor) -> Tensor:
    """Tokens [B, T] with the last of each row some times more."""
    return torch.cat([tokens, tokens[:, -1:].expand(-1, _LONGER)], 1)


def _shorten(tokens: Tensor) -> Tensor:
    """Tokens [B, T] without the last of each row, half of them."""
    return tokens[:, : tokens.shape[1] // 2]


def _enlarge(image: Tensor) -> Tensor:
    height, width = (size + more for size, more in zip(image.shape[2:], _LARGER, strict=True))
    return nn.functional.interpolate(image, (height, width + (height == width)), mode="nearest")


def _takes(flat: nn.Module, tensors: Sequence[Tensor]) -> bool:
    try:
        with torch.no_grad():
            flat(*tensors)
    except Exception:
        return False
    return True


def _free_dims(one: Sequence[Tensor], wider: Sequence[Tensor]) -> list[list[int]]:
    """For each input the dimensions that are of another size in `wider`."""
    return [
        [dim for dim, (size, more) in enumerate(zip(small.shape, large.shape, strict=True)) if size != more]
        for small, large in zip(one, wider, strict=True)
    ]


def _describe_fixed(
    one: Sequence[Tensor], wider: Sequence[Tensor], names: Sequence[str], most: Sequence[Tensor]
) -> tuple[str, ...]:
    """Notes on inputs of which size or length are the same in `wider`, of the file; most: what the network takes."""
    notes = []
    for name, small, large, largest in zip(names, one, wider, most, strict=True):
        if _is_image(small) and small.shape[2:] == large.shape[2:]:
            height, width = small.shape[2:]
            notes.append(
                f"the ONNX file takes images of {height} x {width} only: the network is not free of their size"
            )
        if _is_tokens(small) and small.shape[1] == large.shape[1]:
            notes.append(
                f"the ONNX file takes {name} of length {small.shape[1]} only: the network is not free of their length"
            )
        fixed = small.is_floating_point() and small.shape[1:] == large.shape[1:]
        if fixed and (small.dim() == 3 or (small.dim() == 2 and small.shape[1:] != largest.shape[1:])):
            sizes = " x ".join(map(str, small.shape[1:]))
            notes.append(f"the ONNX file takes {name} of {sizes} only: their length is fixed in it")
    return tuple(dict.fromkeys(notes))


def _describe_shapes(tensors: Sequence[Tensor], names: Sequence[str]) -> str:
    return _ONE_SHAPE.format(", ".join(f"{name} {list(one.shape)}" for name, one in zip(names, tensors, strict=True)))


def _require_equal(found: object, wanted: object) -> None:
    for a, b in zip(leaves(found)[0], leaves(wanted)[0], strict=True):
        torch.testing.assert_close(a, b, rtol=TOLERANCE, atol=TOLERANCE)


def _name_axes(model: object) -> None:
    """Call free dimensions of inputs batch, height, width, sequence and length, wherever they stand, not s77."""
    import onnx_ir

    graph: Any = model.graph  # type: ignore[attr-defined]

    names: dict[str, str] = {}
    for value in graph.inputs:
        usual = {2: {1: "sequence"}, 3: {1: "length", 2: "length"}, 4: {2: "height", 3: "width"}}.get(
            len(value.shape), {}
        ) | {0: "batch"}
        for dim, size in enumerate(value.shape):
            old = getattr(size, "value", None)
            if not isinstance(old, str) or dim not in usual or old in names:
                continue
            number = sum(name.partition("_")[0] == usual[dim] for name in names.values())
            if not number:
                names[old] = usual[dim]
            elif usual[dim] in ("sequence", "length"):
                names[old] = f"{usual[dim]}_{number}"
    for value in [*graph.inputs, *(output for node in graph for output in node.outputs)]:
        if value.shape is None or not names:
            continue
        sizes = [getattr(size, "value", size) for size in value.shape]
        value.shape = onnx_ir.Shape(
            re.sub(r"\w+", lambda word: names.get(word[0], word[0]), size) if isinstance(size, str) else size
            for size in sizes
        )


def _several(flat: nn.Module, tensors: list[Tensor], outputs: Sequence[Tensor]) -> list[Tensor] | None:
    """The inputs three times over in their first dimension, if that is a batch."""
    if len({one.shape[0] if one.dim() else 0 for one in tensors}) != 1 or not tensors[0].dim():
        return None
    many = [torch.cat([one] * 3) for one in tensors]
    try:
        with torch.no_grad():
            found = flat(*many)
    except Exception:
        return None
    size = tensors[0].shape[0]
    whole = all(a.dim() and b.shape[0] == size and a.shape[0] == 3 * size for a, b in zip(found, outputs, strict=True))
    return many if whole else None
