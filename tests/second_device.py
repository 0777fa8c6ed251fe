"""A second device, `card`, where there is none: tensors of their own that refuse to meet those of the CPU.

`card` takes torch's place for devices of others (PrivateUse1), so that torch's own dispatcher, autograd and `.to`
treat it as they treat a GPU. Its storages lie in the memory of the host: each operator runs on the CPU, on views of
them. What a GPU refuses is refused with the same message: a tensor of the host with dimensions, or a generator of the
host, among those of the card; `numpy()` of what lies there. Copies from the host, and values that the host waits for,
are counted.

    with second_device.present(), second_device.watch() as traffic:
        model.to(second_device.NAME)(batch.to(second_device.NAME))
    assert traffic.copies == 1

Only inside `present` do torch and Accelerate say that there is a card. Backward passes over it run in the thread that
asks: autograd has no thread of the card, since a process that has such threads can't fork and train.
"""

from __future__ import annotations

import contextlib
import copy
import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor
from torch.utils import backend_registration

NAME = "card"
DEVICE = "card:0"

_WAITS = frozenset({
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero",
    "aten::bincount", "aten::_unique2", "aten::unique_dim",
    "aten::unique_consecutive", "aten::repeat_interleave.Tensor",
})  # fmt: skip
"""Operators whose output the host has to wait for, for its value or for its shape."""
_NUMBERS = {int: torch.int64, float: torch.float64, bool: torch.bool}
_TAKE_HOST_INDICES = frozenset({"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"})
_BELOW = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


@dataclass
class Traffic:
    """What went between host and card: (operator, bytes, line of secateur that asked for it) of each."""

    uploads: list[tuple[str, int, str]] = field(default_factory=list)
    waits: list[tuple[str, int, str]] = field(default_factory=list)

    @property
    def copies(self) -> int:
        """Copies from the host to the card."""
        return len(self.uploads)

    @property
    def synchronisations(self) -> int:
        """Times that the host waited for the card."""
        return len(self.waits)

    def places(self) -> str:
        """How often each line asked, for a message."""
        counts = Counter(
            f"{what} {operator} at {where}"
            for what, moves in (("copy", self.uploads), ("wait", self.waits))
            for operator, _, where in moves
        )
        return "\n".join(f"{count:5d} {name}" for name, count in counts.most_common())


@dataclass
class _State:
    present: bool = False
    watched: list[Traffic] = field(default_factory=list)


_STATE = _State()


@contextlib.contextmanager
def present() -> Iterator[str]:
    """Have a card within the block; gives its name."""
    before = _STATE.present
    swaps, generator = torch.__future__.get_swap_module_params_on_conversion(), torch.Generator
    swap, empty_cache = torch.utils.swap_tensors, torch.accelerator.empty_cache
    default = PartialState.default_device
    _STATE.present = True
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState.default_device = property(lambda state: torch.device(DEVICE))
    torch.__future__.set_swap_module_params_on_conversion(True)  # as on a GPU, tied weights stay tied in `module.to`
    torch.Generator = _Generator  # type: ignore[misc]
    torch.utils.swap_tensors = partial(_swap, swap)
    torch.accelerator.empty_cache = lambda: None  # torch's asks for an allocator; Accelerate calls it from 1.16 on
    try:
        with torch.autograd.set_multithreading_enabled(False):
            yield DEVICE
    finally:
        _STATE.present = before
        PartialState.default_device = default
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.__future__.set_swap_module_params_on_conversion(swaps)
        torch.Generator = generator  # type: ignore[misc]
        torch.utils.swap_tensors = swap
        torch.accelerator.empty_cache = empty_cache


def _swap(swap: Callable[[Tensor, Tensor], None], parameter: Tensor, moved: Tensor) -> None:
    """torch.utils.swap_tensors that leaves a parameter its hooks, as a GPU does."""
    swap(parameter, moved)
    if parameter._backward_hooks:
        parameter._backward_hooks = parameter._backward_hooks  # of the tensor that it was


@contextlib.contextmanager
def watch() -> Iterator[Traffic]:
    """Count what goes between host and card within the block."""
    traffic = Traffic()
    _STATE.watched.append(traffic)
    try:
        yield traffic
    finally:
        _STATE.watched.remove(traffic)


def _note(kind: str, operator: str, size: int) -> None:
    if not _STATE.watched:
        return
    frames = [frame for frame in traceback.extract_stack() if "/secateur/" in frame.filename]
    where = f"{frames[-1].filename.rpartition('/secateur/')[2]}:{frames[-1].lineno}" if frames else "elsewhere"
    for traffic in _STATE.watched:
        getattr(traffic, kind).append((operator, size, where))


# ------------------------------------------------------------------------------------------------------- generators


class _Generator(torch._C.Generator):
    """torch.Generator, of the card too: there it is one of the host that the card takes."""

    of_card: ClassVar = weakref.WeakValueDictionary[int, "_Generator"]()

    def __new__(cls, device: Any = "cpu") -> _Generator:
        on_card = torch.device(device).type == NAME
        made: _Generator = super().__new__(cls, "cpu" if on_card else device)
        if on_card:
            cls.of_card[made._cdata] = made
        return made


# ---------------------------------------------------------------------------------------------------------- storages


def _on_card(value: object) -> bool:
    return isinstance(value, Tensor) and value.device.type == NAME


def _host(tensor: Tensor) -> Tensor:
    """The CPU's view of a tensor of the card: the same memory."""
    storage: Any = tensor.untyped_storage()
    host = getattr(storage, "host", None)
    if host is None:  # made by torch without us: empty
        host = storage.host = torch.UntypedStorage(storage.nbytes())
    view = torch.empty(0, dtype=tensor.dtype)
    return view.set_(host, tensor.storage_offset(), tensor.shape, tensor.stride())


def _storage(host: torch.UntypedStorage) -> torch.UntypedStorage:
    """A storage of the card that lies in one of the CPU."""
    storage: Any = torch._C._construct_storage_from_data_pointer(host.data_ptr(), torch.device(DEVICE), host.nbytes())
    storage.host = host
    return storage


def _set(tensor: Tensor, storage: Any, offset: int, size: Sequence[int], stride: Sequence[int]) -> Tensor:
    torch.ops.aten.set_.source_Storage_storage_offset.redispatch(_BELOW, tensor, storage, offset, size, stride)
    return tensor


def _card(tensor: Tensor) -> Tensor:
    """A tensor of the card in the memory of one of the CPU."""
    made = torch._C._acc.create_empty_tensor((0,), tensor.dtype)
    return _set(made, _storage(tensor.untyped_storage()), tensor.storage_offset(), tensor.shape, tensor.stride())


# --------------------------------------------------------------------------------------------------------- operators


_PLAIN = frozenset({int, float, bool, str, type(None), torch.dtype, torch.layout, torch.memory_format})
"""Types of arguments that are the same on every device; most are of these."""


def _map(value: Any, change: Callable[[Any], Any]) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is list or kind is tuple:
        return kind([_map(part, change) for part in value])
    return value if isinstance(value, list | tuple) else change(value)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)
    elif type(value) not in _PLAIN:
        yield value


def _run(operator: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operator of the card: on the CPU's views of its tensors."""
    name, base = operator.name(), operator._schema.name
    leaves = list(_leaves((args, tuple(kwargs.values()))))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    cards = [tensor for tensor in tensors if tensor.device.type == NAME]
    strangers = [tensor for tensor in tensors if tensor.device.type == "cpu" and tensor.dim()]
    if base in _TAKE_HOST_INDICES and _on_card(args[0]):  # as on a GPU, these may come from the host; it waits for them
        indices = [index for index in args[1] if index is not None]
        for index in indices:
            if base != "aten::index" and index.dtype in (torch.bool, torch.uint8):  # that one calls nonzero
                _note("waits", name, index.nbytes)
        strangers = [tensor for tensor in strangers if not any(tensor is index for index in indices)]
    if cards and strangers:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE} and cpu! ({name} "
            f"of {[(tuple(tensor.shape), str(tensor.device)) for tensor in tensors]})"
        )
    for leaf in leaves:
        if isinstance(leaf, torch._C.Generator) and leaf._cdata not in _Generator.of_card:
            raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")
    if name in _WAITS or base in _WAITS:
        _note("waits", name, 0)
    hosts: dict[int, tuple[Tensor, Tensor]] = {}

    def lend(value: Any) -> Any:
        if _on_card(value):
            if id(value) not in hosts:
                hosts[id(value)] = (value, _host(value))
            return hosts[id(value)][1]
        if isinstance(value, torch.device) and value.type == NAME:
            return torch.device("cpu")
        return value

    for place, value in enumerate(args):
        if type(value) in _NUMBERS and operator._schema.arguments[place].type.kind() == "TensorType":
            args = (*args[:place], torch.scalar_tensor(value, dtype=_NUMBERS[type(value)]), *args[place + 1 :])
    lent = _map(args, lend), {key: _map(value, lend) for key, value in kwargs.items()}
    may_resize = operator._schema.is_mutable
    before = {key: _shape_of(view) for key, (_, view) in hosts.items()} if may_resize else {}
    with torch._C._AutoDispatchBelowAutograd():
        if base == "aten::histc" and not lent[0][0].is_floating_point():  # as a GPU counts whole numbers
            result = operator(lent[0][0].float(), *lent[0][1:], **lent[1]).to(lent[0][0].dtype)
        else:
            result = operator(*lent[0], **lent[1])
    for key, shape in before.items():
        tensor, view = hosts[key]
        storage = view.untyped_storage()
        if shape != _shape_of(view):  # resized
            _set(tensor, _storage(storage), view.storage_offset(), view.shape, view.stride())

    def give_back(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        for tensor, view in hosts.values():
            if view is value:
                return tensor
        same = value.untyped_storage()._cdata
        for tensor, view in hosts.values():
            if view.untyped_storage()._cdata == same and value.dtype == tensor.dtype:
                shape = (value.shape, value.stride(), value.storage_offset())
                return torch.ops.aten.as_strided.default.redispatch(_BELOW, tensor, *shape)
        return _card(value)

    return _map(result, give_back)


def _shape_of(view: Tensor) -> tuple[Any, ...]:
    storage = view.untyped_storage()
    return storage._cdata, storage.data_ptr(), view.shape, view.stride()


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """aten::copy_, between any two devices."""
    if not _on_card(source):
        _note("uploads", "aten::copy_", source.nbytes)
    elif not _on_card(target):
        _note("waits", "aten::copy_", source.nbytes)
    there, here = (_host(tensor) if _on_card(tensor) else tensor for tensor in (target, source))
    with torch._C._AutoDispatchBelowAutograd():
        there.copy_(here)
    return target


def _set_storage(target: Tensor, source: Any, offset: int, size: Sequence[int], stride: Sequence[int] = ()) -> Tensor:
    if not stride:
        stride = torch.empty(size, device="meta").stride()
    return _set(target, source, offset, size, stride)


def _set_tensor(target: Tensor, source: Tensor) -> Tensor:
    return _set(target, source.untyped_storage(), source.storage_offset(), source.shape, source.stride())


# ------------------------------------------------------------------------------------------------------ registration


class _Module(backend_registration._DummyBackendModule):
    """torch.card."""

    def is_available(self) -> bool:
        return _STATE.present

    def device_count(self) -> int:
        return int(_STATE.present)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: Any = DEVICE) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = DEVICE) -> None:
        torch.set_rng_state(state)

    def synchronize(self, device: Any = None) -> None:
        _note("waits", "synchronize", 0)

    def empty_cache(self) -> None:
        pass


class _Hooks(backend_registration._DummyPrivateUse1Hook):
    def is_available(self) -> bool:
        return _STATE.present

    def is_built(self) -> bool:
        return _STATE.present


def _copy_storage(storage: Any, memo: dict[Any, Any]) -> Any:
    if storage.device.type != NAME:
        return _PLAIN_COPY(storage, memo)
    if storage._cdata not in (copies := memo.setdefault("torch", {})):
        copies[storage._cdata] = _storage(copy.copy(storage.host).clone())
    return copies[storage._cdata]


_PLAIN_COPY = torch.storage._StorageBase.__deepcopy__


def _register() -> list[torch.library.Library]:
    torch.ones(1, requires_grad=True).sum().backward()  # autograd starts the threads of the devices that it knows now
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module(), _Hooks())
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(_run, "PrivateUse1")
    own = torch.library.Library("aten", "IMPL")
    own.impl("copy_", _copy, "PrivateUse1")
    for name in ("empty.memory_format", "empty_strided"):  # torch.tensor calls them past all dispatch modes
        packet, overload = name.split(".") if "." in name else (name, "default")
        own.impl(name, partial(_run, getattr(getattr(torch.ops.aten, packet), overload)), "PrivateUse1")
    own.impl("convolution_overrideable", partial(_run, torch.ops.aten.convolution.default), "PrivateUse1")
    backward = torch.ops.aten.convolution_backward.default

    def convolve_back(gradient: Tensor, x: Tensor, weight: Tensor, *how: Any) -> Any:
        return _run(backward, gradient, x, weight, [weight.shape[0]], *how)

    own.impl("convolution_backward_overrideable", convolve_back, "PrivateUse1")
    own.impl("set_.source_Storage_storage_offset", _set_storage, "PrivateUse1")
    own.impl("set_.source_Tensor", _set_tensor, "PrivateUse1")
    torch.storage._StorageBase.__deepcopy__ = _copy_storage
    return [everything, own]


_LIBRARIES = _register()
