"""Stand-ins for erased modules: tensors of zeros that are never computed.

A network with parts erased still runs its own Python. A module that went is an `Absent`, which returns `Nothing`; what
is computed from it alone is again `Nothing`, at no cost, and a sum with it is the other summand. So an erased branch
takes neither weights nor multiplications, whoever wrote the network's code; in an exported program nothing is left.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from secateur.subjects.network.operators import Arguments, Keywords, names

__all__ = ["Absent", "Nothing", "form"]

_SUM = names("add add_ __add__ __radd__ __iadd__ iadd")
_DIFFERENCE = names("sub sub_ subtract __sub__ __isub__ isub rsub __rsub__")
_PRODUCT = names("mul mul_ multiply __mul__ __rmul__ __imul__ matmul __matmul__ bmm mm einsum")
_AFFINE = {
    "linear": (1, 2), "conv1d": (1, 2), "conv2d": (1, 2), "conv3d": (1, 2), "conv_transpose1d": (1, 2),
    "conv_transpose2d": (1, 2), "conv_transpose3d": (1, 2), "batch_norm": (3, 4), "instance_norm": (3, 4),
    "layer_norm": (2, 3), "group_norm": (2, 3), "rms_norm": (2, 99),
}  # fmt: skip
"""Function -> places of weight and bias: zero where the input or the weight is, if there is no bias."""
_UNARY = names(
    "relu relu_ relu6 leaky_relu leaky_relu_ prelu gelu silu tanh elu selu celu mish hardswish softsign tanhshrink "
    "sin abs neg __neg__ square sqrt dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout max_pool1d "
    "max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d interpolate upsample view view_as reshape flatten "
    "unflatten permute transpose swapaxes movedim t squeeze unsqueeze mean sum contiguous clone detach to float half "
    "bfloat16 double type_as expand expand_as repeat roll flip narrow select index_select __getitem__ unfold fold "
    "pixel_shuffle pixel_unshuffle channel_shuffle normalize"
)
"""Functions of one tensor that give zeros for zeros."""
_TOGETHER = names("cat concat concatenate stack")
_PARTS = names("chunk split unbind tensor_split split_with_sizes")


class Nothing:
    """A tensor of zeros that is never computed; its shape is worked out only when somebody asks for it.

    like: gives a meta tensor of its shape. device: where the zeros would lie. fresh: a sum with it is a copy, since
    what follows writes into the sum.
    """

    def __init__(self, like: Callable[[], Tensor], device: torch.device | None = None, fresh: bool = False) -> None:
        self._like, self._device, self._fresh = like, device, fresh
        self._meta: Tensor | None = None

    @classmethod
    def like(cls, tensor: Tensor, fresh: bool = False) -> Nothing:
        """Of the shape, number type and place of `tensor`."""
        return cls(partial(_same, torch.empty_like(tensor, device="meta")), tensor.device, fresh)

    @property
    def meta(self) -> Tensor:
        """A meta tensor of its shape and number type."""
        if self._meta is None:
            with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
                self._meta = self._like()
        return self._meta

    @property
    def device(self) -> torch.device:
        """Where the zeros would lie."""
        return self._device or torch.device("cpu")

    def zeros(self) -> Tensor:
        """The zeros themselves."""
        return torch.zeros(tuple(self.meta.shape), dtype=self.meta.dtype, device=self.device)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Arguments = (), kwargs: Keywords | None = None
    ) -> object:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Nothing | Tensor)]
        device = next((one.device for one in given if isinstance(one, Tensor)), given[0].device)
        fresh = any(one._fresh for one in given if isinstance(one, Nothing))
        if name in _SUM or name in _DIFFERENCE:
            done, value = _sum(name, args, kwargs, fresh)
            if done:
                return value
        zero = name in _PRODUCT or (name in _UNARY and isinstance(args[0], Nothing) and len(given) == 1)
        if name == "scaled_dot_product_attention":  # sums of the values, whatever the weights
            zero = isinstance(_argument(args, kwargs, 2, "value"), Nothing)
        zero = zero or (name in _TOGETHER and not any(isinstance(one, Tensor) for one in given))
        if name in _AFFINE:
            weight, bias = (_argument(args, kwargs, place, key) for place, key in zip(_AFFINE[name], _WB, strict=True))
            zero = (isinstance(args[0], Nothing) or isinstance(weight, Nothing)) and not isinstance(bias, Tensor)
        if name in _PARTS and isinstance(args[0], Nothing):
            with _disable_current_modes(), torch._C.DisableTorchFunction():
                parts = func(*_metas(args), **_metas(kwargs))
            return tuple(Nothing(partial(_same, part), device, fresh) for part in parts)
        if zero or (name in _SUM | _DIFFERENCE):
            return Nothing(lambda: func(*_metas(args), **_metas(kwargs)), device, fresh)
        args, kwargs = tree_map(_zeros, (args, kwargs))
        return func(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not hasattr(Tensor, name):
            raise AttributeError(f"{name!r}: this tensor was erased")
        method = getattr(Tensor, name)
        if callable(method):
            if name in ("size", "dim", "numel", "stride", "element_size", "is_floating_point", "is_contiguous"):
                return getattr(self.meta, name)
            return lambda *args, **kwargs: Nothing.__torch_function__(method, (Nothing,), (self, *args), kwargs)
        return getattr(self.meta, name)

    def __deepcopy__(self, memo: dict[int, object]) -> Nothing:
        return self

    def __len__(self) -> int:
        return len(self.meta)

    def __iter__(self) -> Iterator[Nothing]:
        return iter(self.unbind(0))

    def __repr__(self) -> str:
        return "Nothing()"


_WB = ("weight", "bias")


def _dunder(name: str) -> Callable[..., object]:
    def method(self: Nothing, *args: object) -> object:
        return Nothing.__torch_function__(getattr(Tensor, name), (Nothing,), (self, *args))

    return method


for _name in names("add radd iadd sub rsub isub mul rmul imul matmul truediv rtruediv pow neg getitem lt gt le ge"):
    setattr(Nothing, f"__{_name}__", _dunder(f"__{_name}__"))


def _argument(args: Arguments, kwargs: Keywords, place: int, name: str) -> Any:
    return args[place] if len(args) > place else kwargs.get(name)


def _sum(name: str, args: Arguments, kwargs: Keywords, fresh: bool) -> tuple[bool, Tensor | None]:
    """(whether it is settled, the sum or difference)."""
    first, second, factor = args[0], _argument(args, kwargs, 1, "other"), kwargs.get("alpha", 1)
    if isinstance(first, Nothing) and isinstance(second, Nothing):
        return False, None
    if name in ("rsub", "__rsub__"):
        first, second = second, first
    if isinstance(second, Nothing):
        other, sign = first, 1
    else:
        other, sign = second, -factor if name in _DIFFERENCE else factor
    if not isinstance(other, Tensor):
        if other == 0:
            return False, None
        other = torch.full((), other, dtype=(first if isinstance(first, Nothing) else second).meta.dtype)
    if other.dim() == 0:  # a number added to zeros: they are no longer nothing
        zeros = (first if isinstance(first, Nothing) else second).zeros()
        return True, zeros + other.to(zeros.device) * sign
    if sign != 1:
        return True, other * sign
    written = other is first and (name.startswith(("__i", "i")) or name.endswith("_"))
    return True, other if written or not fresh else other.clone()


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _zeros(value: object) -> object:
    return value.zeros() if isinstance(value, Nothing) else value


def _metas(value: object) -> Any:
    def meta(one: object) -> object:
        if isinstance(one, Nothing):
            return one.meta
        return torch.empty_like(one, device="meta") if isinstance(one, Tensor) else one

    return tree_map(meta, value)


class Absent(nn.Module):
    """Stands where a module was, without its weights: returns `Nothing` wherever that returned a tensor.

    was: the module. returns: the form of what it returned, see `form`. fresh: see `Nothing`.
    """

    def __init__(self, was: nn.Module, returns: object = "*", fresh: bool = False) -> None:
        super().__init__()
        self.returns, self.fresh, self.was = returns, fresh, type(was).__name__
        shape = copy.deepcopy(was).to("meta").eval()
        for module in shape.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
                module.register_forward_pre_hook(_fit)
        # Beside the registry of modules, so that it has no parameters; its tensors have no memory.
        self.__dict__["_shape"] = [shape]

    def __getattr__(self, name: str) -> Any:
        """Sizes and settings that the network's code asks of the module that went."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_shape" not in self.__dict__ or name.startswith("__"):
                raise
            return getattr(self.__dict__["_shape"][0], name)

    def forward(self, *args: object, **kwargs: object) -> Any:
        """Nothing, in the form that the module gave."""
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Nothing | Tensor)]
        device = given[0].device if given else None
        cache: list[Any] = []

        def like(path: tuple[object, ...]) -> Tensor:
            if not cache:
                cache.append(self.__dict__["_shape"][0](*_metas(args), **_metas(kwargs)))
            value = cache[0]
            for step in path:
                value = value[step]
            result: Tensor = value
            return result

        def make_output(returned: object, path: tuple[object, ...]) -> object:
            if returned == "*":
                return Nothing(lambda: like(path), device, self.fresh)
            if isinstance(returned, dict) and "items" in returned:
                parts = [make_output(one, (*path, place)) for place, one in enumerate(returned["items"])]
                return parts if returned["list"] else tuple(parts)
            if isinstance(returned, dict) and "keys" in returned:
                return {key: make_output(one, (*path, key)) for key, one in returned["keys"].items()}
            return None

        return make_output(self.returns, ())

    def extra_repr(self) -> str:
        """The name of the class that went."""
        return self.was


def _fit(module: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d, args: tuple[object, ...]) -> None:
    """Take as many channels as come in: those before it may have been cut since it was erased."""
    weight, dim = module.weight, -1 if isinstance(module, nn.Linear) else 1
    size = args[0].shape[dim] if args and isinstance(args[0], Tensor) else weight.shape[1]
    if getattr(module, "groups", 1) == 1 and size != weight.shape[1]:
        module.weight = nn.Parameter(torch.empty(weight.shape[0], size, *weight.shape[2:], device="meta"))


def form(output: object) -> str | dict[str, object] | None:
    """What a module returned, as plain data: "*" for a tensor, tuples, lists and dicts of such, null for None.

    Anything else can't be imitated: "?".
    """
    if isinstance(output, Tensor):
        return "*"
    if output is None:
        return None
    if type(output) is tuple or type(output) is list:
        parts = [form(one) for one in output]
        return "?" if "?" in parts else {"items": parts, "list": type(output) is list}
    if type(output) is dict and all(isinstance(key, str) for key in output):
        named = {key: form(one) for key, one in output.items()}
        return "?" if "?" in named.values() else {"keys": named}
    return "?"
