"""Checkpoints whose weights are integers, or floats of eight bits or fewer, as floating point: only that can be cut."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from secateur._utils import checkpoints
from secateur._utils.tokenizers import Tokenizer
from secateur.errors import DataWarning, MissingExtraError, ModelError, UnsupportedError
from secateur.subjects.transformer import files

__all__ = [
    "ask_for_floats",
    "count_bytes",
    "find_obstacle",
    "find_query_size",
    "finish",
    "has_floats",
    "has_integers",
    "make_floats",
    "name_method",
    "read_gguf",
    "read_gguf_config",
    "read_gguf_outline",
    "read_gguf_tokenizer",
    "refuse",
    "refuse_twice",
    "refuse_unwritable",
]

_FLOATS = ("F64", "F32", "F16", "BF16")


def name_method(said: object) -> str:
    """How weights are quantised, by what a config says of it: plain data, or transformers' own class for it."""
    found = said.get("quant_method") if isinstance(said, dict) else getattr(said, "quant_method", "")
    return str(getattr(found, "value", found))


def refuse(place: Path, config: PretrainedConfig) -> None:
    """Raise `ModelError` for weights that are no floating point."""
    _refuse_method(place, getattr(config, "quantization_config", None))
    # Integers without a word in the configuration would be taken for weights as they stand, without their scales.
    for key, path in files.find_tensors(place).items():
        with safe_open(path, framework="pt") as opened:
            kind = opened.get_slice(key).get_dtype() if key.endswith(".weight") else "F32"
        if kind not in _FLOATS:
            raise ModelError(f"{key} is stored as {kind}: give the model as it was before it was quantised")


def refuse_twice(place: Path) -> None:
    """Raise `ModelError` for a folder whose config.json says that its weights are quantised."""
    said = checkpoints.read_json(place / "config.json")
    _refuse_method(place, said.get("quantization_config") if isinstance(said, dict) else None)


def _refuse_method(place: Path, said: object) -> None:
    if said is not None:
        raise ModelError(
            f"the weights of {place} are already quantised ({name_method(said)}): give the model as it was before, "
            "with weights in floating point"
        )


def ask_for_floats(place: Path, config: PretrainedConfig) -> str:
    """Let transformers make floats of the weights at `place` as it reads them; how they are quantised, or "".

    Raises `ModelError` where it can't for this way of quantising, or where the config says nothing of it.
    """
    said = getattr(config, "quantization_config", None)
    name = name_method(said)
    kind = AUTO_QUANTIZATION_CONFIG_MAPPING.get(name)
    if kind is not None and "dequantize" in inspect.signature(kind).parameters:
        plain = said if isinstance(said, Mapping) else said.to_dict()  # type: ignore[union-attr]
        config.quantization_config = {**plain, "dequantize": True}
    elif name != "torchao":  # whose tensors make floats of themselves
        refuse(place, config)
    return name if said is not None else ""


def finish(model: PreTrainedModel, place: Path, name: str) -> None:
    """Leave plain floating point in a model that was quantised by `name`, and nothing that says otherwise; warn."""
    _make_plain(model)
    _warn_of_floats(place, name, model.dtype)


def make_floats(model: PreTrainedModel) -> PreTrainedModel:
    """A model in memory itself; where torchao quantised it, a copy in floating point, with a warning.

    What was floating point is shared with the copy. Raises `UnsupportedError` for weights that only the library which
    packed them can read, such as those of compressed-tensors and bitsandbytes.
    """
    if has_integers(model):
        plain = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
        finish(plain, Path(model.config.name_or_path or type(model).__name__), "torchao")
        return plain
    said = getattr(model.config, "quantization_config", None)
    if said is not None:
        raise UnsupportedError(
            f"{type(model).__name__} has weights quantised by {name_method(said)}, which can't be cut in memory: give "
            "its folder, which is read as floats, or the model as it was before"
        )
    return model


def has_integers(model: nn.Module) -> bool:
    """Whether torchao quantised some of its weights in memory."""
    return any(_is_integer(parameter) for parameter in model.parameters())


def refuse_unwritable(model: PreTrainedModel) -> None:
    """Raise `UnsupportedError` for weights of torchao's that no quantiser of transformers knows how to write."""
    kinds = sorted({type(parameter).__name__ for parameter in model.parameters() if _is_integer(parameter)})
    if kinds and getattr(model, "hf_quantizer", None) is None:
        raise UnsupportedError(
            f"{type(model).__name__} has weights that torchao quantised in memory ({', '.join(kinds)}), which can't be "
            "written: save it as it was before and quantise the folder (secateur export FOLDER --to int8), or load it "
            "with transformers' TorchAoConfig, which says how"
        )


def count_bytes(model: nn.Module) -> tuple[int, float]:
    """(bits of each weight that torchao quantised, bytes of all weights with their scales), as they lie in memory."""
    bits, total = 0, 0.0
    for parameter in model.parameters():
        tensor: Any = parameter
        names = tensor.__tensor_flatten__()[0] if _is_integer(parameter) else []
        inner = [getattr(tensor, name) for name in names] or [tensor]
        sizes = [float(one.numel() * one.element_size()) for one in inner]
        total += sum(sizes)
        if _is_integer(parameter):
            bits = max(bits, round(8 * max(sizes) / parameter.numel()))
    return bits, total


def _is_integer(parameter: nn.Parameter) -> bool:
    return type(parameter).__module__.startswith("torchao")


def _make_plain(model: PreTrainedModel) -> None:
    for module in model.modules():
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            if _is_integer(parameter):
                floats = parameter.dequantize().to(parameter.dtype)  # what it computes in; configs may say another
                module.register_parameter(leaf, nn.Parameter(floats, requires_grad=True))
    for holder, leaf in (
        (model.config, "quantization_config"),
        (model, "hf_quantizer"),
        (model, "quantization_method"),
        (model, "_weight_conversions"),  # of integers as they were read, which can't be undone: as transformers does
        (model, "is_quantized"),  # which others lack; told apart by it, no config would describe a cut
    ):
        vars(holder).pop(leaf, None)


def _warn_of_floats(place: Path, name: str, dtype: torch.dtype) -> None:
    kind = str(dtype).removeprefix("torch.")
    warnings.warn(
        f"the weights of {place} were quantised ({name}) and are {kind} from here on: export the result "
        "again to have them small",
        DataWarning,
        stacklevel=1,
    )


def read_gguf(
    file: Path, dtype: torch.dtype | str | None = None, *, quantised: bool = False
) -> tuple[PreTrainedModel, Tokenizer | None, int | None]:
    """The language model and tokenizer in a GGUF file as transformers makes floats of it, and bits of its weights.

    For the tokenizer see `read_gguf_tokenizer`: weights are of use without one.

    None for bits where the file holds floats, whose number type stays unless `dtype` says another. Other weights become
    float32, as a warning says unless they are to be measured as they are stored (`quantised`).

    Raises `ModelError` for a file that it can't read, `MissingExtraError` without the gguf library.
    """
    with _reading(file):
        stored, bits = _read_types(file)
        dtype = stored if dtype is None else dtype
        more = {} if dtype is None else {"dtype": dtype}
        config = _read_config(file)
        model, report = AutoModelForCausalLM.from_pretrained(
            file.parent, config=config, gguf_file=file.name, use_kernels=False, output_loading_info=True, **more
        )
        if missing := sorted(report["missing_keys"]):  # which transformers draws at random
            raise ValueError(f"{len(missing)} weights of {type(model).__name__} are not in it, such as {missing[0]}")
    tokenizer = read_gguf_tokenizer(file)
    _make_plain(model)
    if bits is not None and not quantised:
        _warn_of_floats(file, "GGUF", model.dtype)
    return model.eval(), tokenizer, bits


def has_floats(file: Path) -> bool:
    """Whether the matrices of a GGUF file are floating point. Raises as `read_gguf` does."""
    with _reading(file):
        return _read_types(file)[1] is None


def read_gguf_config(file: Path) -> PretrainedConfig:
    """The configuration of what `read_gguf` makes of a file, with its number type. Raises as that does."""
    with _reading(file):
        config = _read_config(file)
        config.dtype = _read_types(file)[0] or torch.float32
    return config


def read_gguf_outline(file: Path) -> tuple[PretrainedConfig, type[PreTrainedModel]]:
    """`read_gguf_config` of a file, and transformers' class for the language model. Raises as that does."""
    config = read_gguf_config(file)
    with _reading(file):
        kind = AutoModelForCausalLM._model_mapping.get(type(config), None)
        if kind is None:
            raise ValueError(f"transformers has no causal language model of {config.model_type}")
    return config, kind


def read_gguf_tokenizer(file: Path) -> Tokenizer | None:
    """The tokenizer in a GGUF file; None where it says "none", or with a warning where transformers can't read it.

    Raises as `read_gguf` does where the file itself can't be read.
    """
    with _reading(file):
        kind = _read_field(file, "tokenizer.ggml.model")
    if kind in (None, "none"):
        return None
    try:
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:
        warnings.warn(
            f"the tokenizer in {file} can't be read ({type(error).__name__}: {_first_line(error)}): it is opened "
            "without one, so give its folder of safetensors for what reads texts",
            DataWarning,
            stacklevel=1,
        )
        return None
    return tokenizer


def find_obstacle(file: Path) -> str:
    """Why a GGUF file can't be opened again here, though llama.cpp may read it; "" where it can. No weights are read.

    Raises `MissingExtraError` without the gguf library.
    """
    try:
        read_gguf_outline(file)
    except ModelError as error:
        return _first_line(error.__cause__ or error)
    return ""


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError(f"{file} needs gguf: pip install 'secateur[gguf]'")
    try:
        yield
    except Exception as error:
        raise ModelError(
            f"{file} can't be read as a GGUF language model ({_first_line(error)}): give its folder of safetensors"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0][:200].rstrip(".")


_Settings = dict[str, Any]
_UNREAD = {
    "expert_feed_forward_length": "moe_intermediate_size",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
"""What GGUF says behind the architecture's name and transformers does not read -> the config's field."""
_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""What configs of mixtures call the number of their experts."""
_BY_STATES = (("gemma2", 46), ("gemma3_text", 62))
"""(model type, layers) of the models of 27B, of which llama.cpp takes hidden size / heads for the size of a head."""


def find_query_size(config: PretrainedConfig, head_dim: int) -> int:
    """By the root of what llama.cpp divides queries: no file says it, so it goes by the architecture and its layers."""
    if (config.model_type, config.num_hidden_layers) in _BY_STATES:
        return int(config.hidden_size // config.num_attention_heads)
    return head_dim


def _read_config(file: Path) -> PretrainedConfig:
    """transformers' reading of a file, with what it leaves at the defaults of a class."""
    config: PretrainedConfig
    config, said = AutoConfig.from_pretrained(file.parent, gguf_file=file.name), _read_settings(file)
    if said.get("expert_count") and not any(hasattr(config, name) for name in _COUNTS):
        raise ValueError(f"transformers reads it as {config.model_type}, without its {said['expert_count']} experts")
    width = said.get("attention.key_length_swa", said.get("attention.key_length"))  # a config's full ones are apart
    if width and not hasattr(config, "kv_lora_rank"):
        config.head_dim = width  # which transformers does not read of every architecture
    if width and hasattr(config, "query_pre_attn_scalar"):
        config.query_pre_attn_scalar = find_query_size(config, width)  # for which a file has no field
    for key, field in _UNREAD.items():
        if key in said and hasattr(config, field):
            setattr(config, field, said[key])
    if getattr(config, "rope_parameters", None):
        kinds = config.rope_parameters
        whole = kinds.get("full_attention", kinds)  # layers that see a window never reach further
        found = {**whole, **_read_rope(file, said, whole)}
        config.rope_parameters = found if whole is kinds else {**kinds, "full_attention": found}
    return config


def _read_rope(file: Path, said: _Settings, known: _Settings) -> _Settings:
    """How rotary positions reach further, by a GGUF file; with a warning where that can't be told.

    known: what transformers read of them, or the class has by default.
    """
    import gguf

    base, kind = known["rope_theta"], said.get("rope.scaling.type", "none")
    factors = next((one.data for one in gguf.GGUFReader(file).tensors if one.name == "rope_freqs.weight"), None)
    found = _Settings()
    if factors is not None:
        found = _fit_llama3(np.array(factors, np.float64), base)
    elif kind == "linear":
        found = {"rope_type": "linear", "factor": float(said["rope.scaling.factor"])}
    alike = kind in ("none", known["rope_type"])
    if factors is not None:
        alike = _gives_factors(known, np.array(factors, np.float64))
    if not found and not alike:
        warnings.warn(
            f"rotary positions of {file} reach further in a way that is not read from GGUF "
            f"({'by factors' if factors is not None else kind}): long texts come out otherwise; give its folder",
            DataWarning,
            stacklevel=1,
        )
    return found


def _gives_factors(known: _Settings, factors: NDArray[np.float64]) -> bool:
    """Whether these factors [head size / 2] of frequencies hold still what these settings do, and nothing else."""
    turned = round(len(factors) * known.get("partial_rotary_factor", 1.0))
    return known["rope_type"] == "proportional" and np.allclose(1 / factors, np.arange(len(factors)) < turned)


def _fit_llama3(factors: NDArray[np.float64], base: float) -> _Settings:
    """What makes these factors [head size / 2] of frequencies, with the bounds 1 and 4 of all Llama 3; else nothing."""
    most, count = float(factors.max()), len(factors)
    waves = 2 * np.pi * base ** (np.arange(count) / count)
    shares = (1 / factors - 1 / most) / (1 - 1 / most) if most > 1 else np.ones(count)
    between = (shares > 1e-3) & (shares < 1 - 1e-3)
    if not between.any():
        return {}
    length = float(np.mean((3 * shares + 1)[between] * waves[between]))
    smooth = ((round(length) / waves - 1) / 3).clip(0, 1)
    if not np.allclose(1 / factors, (1 - smooth) / most + smooth, rtol=1e-3):
        return {}
    bounds = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": round(length)}
    return {"rope_type": "llama3", "factor": most, **bounds}


def _read_settings(file: Path) -> _Settings:
    """What a GGUF file says of its architecture, by names without that of the architecture."""
    import gguf

    fields = gguf.GGUFReader(file).fields
    kind = str(fields["general.architecture"].contents()) + "."
    return {name.removeprefix(kind): one.contents() for name, one in fields.items() if name.startswith(kind)}


def _read_field(file: Path, name: str) -> object:
    """What a GGUF file says under one name; None where it says nothing."""
    import gguf

    field = gguf.GGUFReader(file).fields.get(name)
    return None if field is None else field.contents()


def _read_types(file: Path) -> tuple[torch.dtype | None, int | None]:
    """(number type, None) of most weights in the matrices of a GGUF file of floats; else (None, bits of each)."""
    import gguf

    floats = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    counts = Counter[gguf.GGMLQuantizationType]()
    for tensor in gguf.GGUFReader(file).tensors:
        if len(tensor.shape) > 1:
            counts[tensor.tensor_type] += int(tensor.n_elements)
    rounded = {kind: count for kind, count in counts.items() if kind.name not in floats}
    if not rounded:
        return floats[counts.most_common(1)[0][0].name] if counts else None, None
    block, size = gguf.GGML_QUANT_SIZES[max(rounded, key=lambda kind: rounded[kind])]
    return None, 8 * size // block
