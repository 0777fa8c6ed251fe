"""Size of a model: parameters, FLOPs of a real batch, bytes of a real KV cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from secateur._utils.modes import evaluating
from secateur.errors import MeasurementError, UnsupportedError

__all__ = ["cache_numbers", "every_flop", "flops", "kv_cache_bytes", "parameters", "training_flops"]


def parameters(model: nn.Module) -> dict[str, int]:
    """Parameters of `model`, tied ones counted once: {"params": all, "embedding_params": of tables and LM head}.

    Embedding parameters are the weights of every `nn.Embedding` (words, positions, types) and of the output
    embedding (LM head) where the model has one: params - embedding_params is the "non-embedding" size of papers.
    """
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    outputs = getattr(model, "get_output_embeddings", lambda: None)()
    embedding = {
        id(p): p.numel()
        for m in [*tables, *([outputs] if isinstance(outputs, nn.Module) else [])]
        for p in m.parameters()
    }
    return {"params": sum(p.numel() for p in model.parameters()), "embedding_params": sum(embedding.values())}


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: object, **__: object) -> int:
    """FLOPs of scaled dot-product attention: 2 B H S_q S_k (d_qk + d_v); a causal mask saves none of them."""
    batch, heads, length, width = query
    return 2 * batch * heads * length * key[-2] * (width + value[-1])


def _grouped_matmul_flops(rows: Sequence[int], weights: Sequence[int], *_: object, **__: object) -> int:
    """FLOPs of a grouped matrix product, [S, in] with [E, in, out]: each of the S rows meets one of the E."""
    return 2 * rows[0] * rows[1] * weights[-1]


def _missing_flops() -> dict[object, Callable[..., int]]:
    """Operator -> FLOPs of those that torch leaves out silently: attention on a CPU, the products of experts."""
    found: dict[object, Callable[..., int]] = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    for library, name in ((torch.ops.aten, "_grouped_mm"), (torch.ops.transformers, "grouped_mm_fallback")):
        if hasattr(library, name):
            found[getattr(library, name)] = _grouped_matmul_flops
    return found


def flops(model: Callable[..., object], batch: Mapping[str, object]) -> float:
    """FLOPs of one forward pass `model(**batch)`, multiply and add counted as two, by `torch.utils.flop_counter`.

    Matrix products, convolutions and attention count; norms, activations and look-ups don't (well below 1 %).
    The mode (train or eval) of a module is restored.
    """

    def count(gradients: bool) -> float:
        counter = FlopCounterMode(display=False, custom_mapping=_missing_flops())
        with _evaluation(model), torch.set_grad_enabled(gradients), counter:
            model(**batch)
        return float(counter.get_total_flops())

    try:
        total = count(gradients=False)
    except (
        AssertionError
    ):  # its tracker can't do with parameters that modules are given, as DeBERTa gives its positions
        total = count(gradients=True)
    if total == 0:
        raise MeasurementError("the forward pass did no matrix product or convolution: pass the model and a real batch")
    return total


def every_flop(call: Callable[[], object], *, sparse: bool = False) -> float:
    """FLOPs of `call()` with what `flops` leaves out: what networks of different widths are compared by.

    Multiply and add count as two in convolutions and matrix products, their biases as one per output; batch norm two
    per element, other norms and activations one, pooling one per element of each window. `sparse` leaves out the
    multiplications of convolutions with weights that are exactly 0, as if each unstructured zero saved its time.

    Source of the rules: the counter of arXiv 1810.05270. The caller sees to evaluation mode.
    """
    aten = torch.ops.aten

    def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: object, out_val: Tensor, **_: object) -> int:
        # Each weight is used once for each position: of the output, or of the input of a transposed convolution.
        places = (x if rest[3] else out_val).shape
        used = int(torch.count_nonzero(weight)) if sparse else weight.numel()
        return 2 * used * places[0] * math.prod(places[2:]) + (0 if bias is None else out_val.numel())

    def addmm(bias: Tensor, first: Tensor, second: Tensor, *_: object, out_val: Tensor, **__: object) -> int:
        return 2 * first.shape[0] * first.shape[1] * second.shape[1] + out_val.numel()

    def windows(
        x: Tensor, kernel: int | Sequence[int], *_: object, out_val: Tensor | tuple[Tensor, ...], **__: object
    ) -> int:
        out = out_val[0] if isinstance(out_val, tuple) else out_val
        sides = [kernel] if isinstance(kernel, int) else list(kernel)
        size = sides * (x.dim() - 2) if len(sides) == 1 else sides
        return int(out.numel()) * math.prod(size)

    def per_element(times: int) -> Callable[..., int]:
        def count(x: Tensor, *_: object, **__: object) -> int:
            return times * x.numel()

        return count

    formulas: dict[Callable[..., int], tuple[str, ...]] = {
        convolution: ("convolution",),
        addmm: ("addmm",),
        windows: ("max_pool2d_with_indices", "avg_pool2d", "max_pool3d_with_indices", "avg_pool3d", "avg_pool1d"),
        per_element(2): ("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit",
                         "cudnn_batch_norm", "_batch_norm_with_update", "_batch_norm_no_update"),
        per_element(1): ("relu", "relu_", "hardtanh", "hardtanh_", "silu", "silu_", "gelu", "sigmoid", "tanh",
                         "hardswish", "hardswish_", "leaky_relu", "leaky_relu_", "mean", "_adaptive_avg_pool2d",
                         "native_layer_norm", "native_group_norm"),
    }  # fmt: skip
    mapping = _missing_flops()
    for formula, names in formulas.items():
        formula._get_raw = True  # type: ignore[attr-defined]  # asks for tensors in place of shapes
        mapping |= {getattr(aten, name): formula for name in names if hasattr(aten, name)}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        call()
    return float(counter.get_total_flops())


def training_flops(student: float, teacher: float = 0.0, *, steps: int = 1) -> float:
    """FLOPs of distilling for `steps`: steps (3 F_student + F_teacher).

    A forward pass costs F, its backward pass 2 F, and the teacher runs forward only. `student` and `teacher` are the
    forward FLOPs of one step's batch, as `flops` counts them; a cached teacher costs 0.
    """
    return steps * (3.0 * student + teacher)


def kv_cache_bytes(model: nn.Module, batch: Mapping[str, Tensor]) -> float:
    """Bytes of keys and values that stand in the cache after `model(**batch, use_cache=True)`.

    Measured, not computed: sliding windows, shared and missing layers count for what they really hold.
    """
    with _evaluation(model), torch.no_grad():
        try:
            outputs = model(**batch, use_cache=True)
        except TypeError as error:
            raise UnsupportedError(
                f"{type(model).__name__} takes no use_cache: only decoders keep a KV cache"
            ) from error
    # transformers 5.20 renamed `past_key_values`; ask for the new name first, as the old one warns.
    cache = getattr(outputs, "cache", None)
    cache = getattr(outputs, "past_key_values", None) if cache is None else cache
    held = {(t.data_ptr(), tuple(t.shape)): t.numel() * t.element_size() for t in _tensors(cache)}
    if not held:
        raise UnsupportedError(
            f"{type(model).__name__} returns no KV cache: only decoders keep one, and some within their modules"
        )
    return float(sum(held.values()))


def cache_numbers(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[int, int]:
    """(numbers of keys and values, those of states) that stand in the cache after `model(**batch, use_cache=True)`."""
    with _evaluation(model), torch.no_grad():
        outputs = model(**batch, use_cache=True)
    cache = getattr(outputs, "cache", None)
    cache = getattr(outputs, "past_key_values", None) if cache is None else cache
    counts = {"keys": 0, "values": 0, "conv_states": 0, "recurrent_states": 0}
    for layer in getattr(cache, "layers", ()):
        for name in counts:
            counts[name] += sum(tensor.numel() for tensor in _tensors(getattr(layer, name, None)))
    return counts["keys"] + counts["values"], counts["conv_states"] + counts["recurrent_states"]


def _tensors(cache: object) -> Iterator[Tensor]:
    """Every stored key, value or state in a cache object (book-keeping counters have fewer than two dimensions)."""
    if isinstance(cache, Tensor):
        if cache.dim() >= 2 and cache.numel():
            yield cache
    elif isinstance(cache, Mapping):
        for part in cache.values():
            yield from _tensors(part)
    elif isinstance(cache, list | tuple):
        for part in cache:
            yield from _tensors(part)
    elif cache is not None and type(cache).__module__.startswith("transformers."):
        yield from _tensors(vars(cache))


@contextmanager
def _evaluation(model: object) -> Iterator[None]:
    """A module in eval mode, each submodule back in its own mode at the end; plain callables pass through."""
    with evaluating(model) if isinstance(model, nn.Module) else nullcontext():
        yield
