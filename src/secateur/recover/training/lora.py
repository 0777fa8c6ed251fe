"""LoRA and DoRA by peft: adapters put into a model in place, trained alone, and merged into its weights.

A linear with weight W [out, in] computes ``x W^T + s x A^T B^T`` with A [rank, in] and B [out, rank], B = 0 at first,
so that a model with fresh adapters is the model it was; s = alpha / rank, 2 unless given. DoRA learns the length of
each row beside it: ``m (W + s B A) / |W + s B A|`` by rows, m = |W| at first. Sources: LoRA (arXiv 2106.09685), DoRA
(arXiv 2402.09353).

`join` puts adapters in, `merge` adds them to the weights and takes them out, and `adapt` is both around a training.
Weights may be cut, in half precision, or in integers (torchao): adapters are float32, the sum is made in float32. With
`bits`, weights beside adapters are held in integers while these learn, as in QLoRA (arXiv 2305.14314), but by torchao's
symmetric ones in place of NF4; what is merged is the sum of those integers, in floating point, and what was learned.

peft's adapters stand beside linears that are called. Attention of torch (`nn.MultiheadAttention`) and of torchvision's
Swin calls none: it reads their weights, and there the weight itself is W + s B A as long as there are adapters.
"""

from __future__ import annotations

import inspect
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from secateur.errors import InputError, MissingExtraError, UnsupportedError
from secateur.recover.quantization import quantise
from secateur.vocabulary import Training

__all__ = ["adapt", "check", "count", "join", "merge", "round_weights"]

_SCALE = 2
"""alpha / rank, where no alpha is given."""
_TINY = 1e-12
_NAME = "secateur"
"""Of the adapters in peft's books, so that a model with others of its own is told apart."""
_PACKED = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")
"""Parameters [experts, .., ..] of transformers' mixtures, in which all experts of a layer stand."""
_OF_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
"""Matrices that `nn.MultiheadAttention` itself has: one for all three, or one for each."""


class _LowRank(nn.Module):
    """W -> ``W + s B A``, or by rows ``m (W + s B A) / |W + s B A|``, in the number type of W [out, in].

    As in DoRA (section 4.3) the length that is divided by has no gradient.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float, *, dora: bool) -> None:
        super().__init__()
        self.scale = scale
        self.A = nn.Parameter(weight.new_empty(rank, weight.shape[1], dtype=torch.float32))
        self.B = nn.Parameter(weight.new_zeros(len(weight), rank, dtype=torch.float32))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.m = nn.Parameter(weight.detach().float().norm(dim=1, keepdim=True)) if dora else None

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            value = weight.float() + self.scale * self.B @ self.A
            if self.m is not None:  # a row of zeros stays one
                value = self.m / value.detach().norm(dim=1, keepdim=True).clamp_min(_TINY) * value
        return value.to(weight.dtype)


@contextmanager
def adapt(
    model: nn.Module,
    rank: int,
    *,
    dora: bool = False,
    alpha: float | None = None,
    dropout: float = 0.0,
    bits: int = 0,
    seed: int = 0,
) -> Iterator[None]:
    """Within the block `model` has adapters, and nothing else of it is trained; after it they are merged.

    See `join` and `merge`. What was trained before is again afterwards. bits: 8 or 4 to hold the weights beside the
    adapters in integers meanwhile; 0 leaves them as they are. Raises as `join`, and as `round_weights` with bits.
    """  # fmt: skip
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    lean = list[nn.Linear]()
    if bits:
        _find_adapted(model, dora, dropout)  # refuses while the weights are as they were
        for module in map(model.get_submodule, round_weights(model, bits)):
            if isinstance(module, nn.Linear) and "forward" not in vars(module):  # Accelerate's moves weights about
                module.forward = partial(_multiply, module)  # type: ignore[method-assign]
                lean.append(module)
    join(model, rank, dora=dora, alpha=alpha, dropout=dropout, seed=seed)
    try:
        yield
    finally:
        for module in lean:
            del module.forward
        merge(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad or name in trained)


def _multiply(linear: nn.Linear, x: Tensor) -> Tensor:
    """What a linear with integers says, see `quantise.multiply`."""
    return quantise.multiply(x, partial(quantise.dense, linear.weight), linear.bias)


def check(training: Training, model: nn.Module | None = None) -> None:
    """Refuse adapters, and integers beside them, for which a library is missing, or that `model` has no linear for.

    Before anything is done: how wide linears are may change in a cut, so that `round_weights` judges it.
    Raises `MissingExtraError`, and `InputError` where adapters are not asked for, or no linear can be rounded.
    """
    bits = training.adapter_bits
    if training.lora or training.dora:
        _library()
    if bits:
        quantise.torchao()
        if model is not None:
            _find_rounded(model, 8, f"{bits} bits")


def round_weights(model: nn.Module, bits: int) -> list[str]:
    """Hold the weights of the linears that `join` adapts in integers of 8 or 4 bits, in place; returns their names.

    As `quantise.weight_only` does; those that are integers already stay as they are. Raises `InputError` where no
    linear can have them, `MissingExtraError` without torchao.
    """
    names = _find_rounded(model, bits, f"{bits} bits")
    quantise.torchao().quantization.quantize_(model, quantise.config(bits), filter_fn=lambda _, name: name in names)
    return sorted(names)


def _find_rounded(model: nn.Module, bits: int, told: str) -> set[str]:
    """Names of the linears of `round_weights`; refused is a model that has none and no integers, in `told` bits."""
    read, names, why = _find_read(model), set[str](), ""
    for name in _find_linears(model):
        module = model.get_submodule(name)
        if isinstance(module, nn.Linear) and f"{name}.weight" not in read and type(module.weight) is nn.Parameter:
            reason = quantise.unfit(module.in_features, bits)
            why = reason or why
            if not reason:
                names.add(name)
    if not names and not any(type(one) is not nn.Parameter for one in model.parameters()):
        why = why or "it has none of torch's own, which are what torchao takes"
        raise InputError(f"no linear of {type(model).__name__} can be held in {told} ({why}): leave lora_bits out")
    return names


def join(
    model: nn.Module, rank: int, *, dora: bool = False, alpha: float | None = None, dropout: float = 0.0, seed: int = 0
) -> list[str]:
    """Put adapters of `rank` into every linear of `model`, in place; returns the names of what they stand beside.

    Those are linears, or weights where no linear is called. All that is no adapter stops to require gradients. Left
    without one are the head that predicts tokens, embeddings and norms. In mixtures each expert gets its own, of all
    experts of a layer at once. alpha: what adapters add is multiplied by alpha / rank; 2 rank unless given. dropout:
    of what goes into A, in training mode; adapters of weights that are read, not called, have none. seed: of A.

    Raises `MissingExtraError` without peft, `UnsupportedError` for a model of convolutions, with weights that are held
    at zero or computed from others, which a merged adapter would overwrite, or with experts under `dora` or `dropout`;
    `InputError` for a model that has adapters already.
    """
    peft, scale = _library(), _SCALE if alpha is None else alpha / rank
    linears, packed, read = _find_adapted(model, dora, dropout)
    turned = any(not isinstance(model.get_submodule(name), nn.Linear) for name in linears)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a mixture of Conv1D and Linear; names that end alike
        torch.manual_seed(seed)
        if linears or packed:
            config = peft.LoraConfig(
                r=rank, lora_alpha=scale * rank, target_modules=linears, target_parameters=packed or None,
                use_dora=dora, fan_in_fan_out=turned, lora_dropout=dropout,
            )  # fmt: skip
            peft.inject_adapter_in_model(config, model, _NAME)
        for name in read:
            path, _, leaf = name.rpartition(".")
            module = model.get_submodule(path)
            parametrize.register_parametrization(module, leaf, _LowRank(getattr(module, leaf), rank, scale, dora=dora))
    own = {id(p) for module in model.modules() if isinstance(module, _LowRank) for p in module.parameters()}
    for name, parameter in model.named_parameters():
        adapter = f".{_NAME}." in name or name.endswith(f".{_NAME}") or id(parameter) in own
        parameter.requires_grad_(adapter)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return [*linears, *packed, *read]


def _find_adapted(model: nn.Module, dora: bool, dropout: float) -> tuple[list[str], list[str], list[str]]:
    """(linears, parameters of packed experts, weights that are read) beside which `join` puts adapters; see there."""
    layers = _library().tuners.tuners_utils.BaseTunerLayer
    if any(isinstance(module, layers | _LowRank) for module in model.modules()):
        raise InputError("the model has adapters already: merge them first")
    read = _find_read(model)
    linears, packed = [name for name in _find_linears(model) if f"{name}.weight" not in read], _find_packed(model)
    if not linears and not packed and not read:
        raise UnsupportedError(f"{type(model).__name__} has no linears, which are what LoRA adapts: leave lora out")
    if dora and packed:
        raise UnsupportedError(f"DoRA knows no experts such as {packed[0]}, which stand in one tensor: use lora")
    if dropout and packed:
        raise UnsupportedError(f"adapters of experts such as {packed[0]}, in one tensor, have no dropout: leave it 0")
    if _is_convolutional(model, [*(f"{name}.weight" for name in linears), *read]):
        raise UnsupportedError(
            f"{type(model).__name__} is made mostly of convolutions, which LoRA leaves as they are: leave lora out"
        )
    return linears, packed, read


def count(model: nn.Module) -> int:
    """Parameters of the adapters of rank 1 that `join` puts in, without DoRA's lengths."""
    _library()
    read = _find_read(model)
    called = [name for name in (f"{one}.weight" for one in _find_linears(model)) if name not in read]
    shapes = [model.get_parameter(name).shape for name in (*called, *read, *_find_packed(model))]
    return sum(math.prod(shape[:-2]) * sum(shape[-2:]) for shape in shapes)


@torch.no_grad()
def merge(model: nn.Module) -> list[str]:
    """Add the adapters of `join` to the weights, in float32, and take them out, in place; returns the names.

    The model is plain then, with weights of the type they had; those in integers (torchao) become floating point in
    the type in which they compute, since rounding again would lose what was learned.
    """
    layers = _library().tuners.lora.LoraLayer
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, layers)}
    # Wrappers of several parameters of one module stand in one another.
    outer = {name: module for name, module in adapted.items() if name.rpartition(".")[0] not in adapted}
    for name, module in outer.items():
        place, base = module, module.get_base_layer()
        while isinstance(place, layers):
            _merge_into(place, base)
            place = place.base_layer
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, base)
    if hasattr(model, "peft_config"):
        del model.peft_config
    read = [name for name, module in model.named_modules() if isinstance(module, _LowRank)]
    merged = [_take_out(model, name) for name in read]
    return [*outer, *merged]


def _take_out(model: nn.Module, name: str) -> str:
    """Merge the `_LowRank` of that name into its weight; returns the name of the weight."""
    path, _, leaf = name.removesuffix(".0").rpartition(".")
    path = path.removesuffix("parametrizations").removesuffix(".")
    parametrize.remove_parametrizations(model.get_submodule(path), leaf)
    return f"{path}.{leaf}".removeprefix(".")


def _library() -> Any:
    """peft. Raises `MissingExtraError` where it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("lora and dora need peft: pip install 'secateur[lora]'") from error
    return peft


def _find_linears(model: nn.Module) -> list[str]:
    """Names of the linears to adapt, each once."""
    from transformers.pytorch_utils import Conv1D  # peft loads it, too; training a network does without

    head = cast(Any, model).get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    found = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | Conv1D) or module is head or not name:
            continue
        if type(module) not in (nn.Linear, Conv1D, nn.modules.linear.NonDynamicallyQuantizableLinear):
            raise UnsupportedError(
                f"{name} is a {type(module).__name__}, which computes its weight: adapters can't be merged into it, "
                "leave lora out"
            )
        _check_free(module, "weight", name)
        found.append(name)
    return found


def _find_read(model: nn.Module) -> list[str]:
    """Names of the weights of linears, and of attention, that a module reads itself, calling no linear."""
    found = []
    for name, module in model.named_modules():
        attends = isinstance(module, nn.MultiheadAttention)
        for leaf in _OF_ATTENTION if attends else ():
            if getattr(module, leaf) is not None:
                _check_free(module, leaf, name)
                found.append(f"{name}.{leaf}".removeprefix("."))
        for leaf, child in module.named_children():
            if isinstance(child, nn.Linear) and (attends or _reads_weight(model, module, leaf)):
                found.append(f"{name}.{leaf}.weight".removeprefix("."))
    return found


def _reads_weight(model: nn.Module, module: nn.Module, leaf: str) -> bool:
    """Whether the forward pass of a network's module names the linear `leaf`, and a `weight`, as torchvision's Swin.

    Models of transformers name weights, too, but for their number types: their linears are all called.
    """
    library = sys.modules.get("transformers")
    if library is not None and isinstance(model, library.PreTrainedModel):
        return False
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and {leaf, "weight"} <= set(code.co_names)


def _check_free(module: nn.Module, leaf: str, name: str) -> None:
    """Refuse a weight that is computed from others, or whose gradients a training holds at zero."""
    if parametrize.is_parametrized(module) or getattr(module, leaf)._backward_hooks:
        raise UnsupportedError(f"weights of {name} are held by this training: a merged adapter would fill them")


def _is_convolutional(model: nn.Module, weights: Sequence[str]) -> bool:
    """Whether convolutions have more weights than these: adapters would leave most of the model alone."""
    beside = sum(model.get_parameter(name).numel() for name in weights)
    convolutions = (module for module in model.modules() if isinstance(module, nn.modules.conv._ConvNd))
    return sum(module.weight.numel() for module in convolutions) > beside


def _find_packed(model: nn.Module) -> list[str]:
    """Names of parameters that hold all experts of a layer."""
    named = model.named_parameters()
    return [name for name, one in named if one.dim() == 3 and name.rpartition(".")[2] in _PACKED]


def _merge_into(layer: Any, base: nn.Module) -> None:
    """Add what one adapter learned to the weight of `base` in float32, whatever type that has."""
    leaf = getattr(layer, "parameter_name", "weight")
    weight = getattr(base, leaf)
    dtype = weight.dtype
    if hasattr(weight, "dequantize") and type(weight) not in (nn.Parameter, torch.Tensor):
        weight = nn.Parameter(weight.dequantize(), requires_grad=False)
        setattr(base, leaf, weight)
    weight.data = weight.data.float()
    merging = type(layer).merge
    if type(layer).__name__ == "TorchaoLoraLinear":  # its own rounds again
        merging = _library().tuners.lora.layer.Linear.merge
    merging(layer, adapter_names=[_NAME])
    weight.data = weight.data.to(dtype)
