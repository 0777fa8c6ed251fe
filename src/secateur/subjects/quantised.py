"""Quantised models on the disk, as transformers loads them: by torchao in 8 bits, by compressed-tensors in 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, TorchAoConfig
from transformers.quantizers import AutoHfQuantizer

from secateur.errors import MissingExtraError
from secateur.subjects import saving
from secateur.subjects.transformer import Transformer

__all__ = ["save_int4", "save_int8", "with_model"]


def with_model(subject: Transformer, model: PreTrainedModel) -> Transformer:
    """`subject` with another model of the same shape in its place."""
    return subject._copy(model, subject.layer_index)


def save_int8(subject: Transformer, folder: Path, config: Any, left: Sequence[str]) -> None:
    """Write a model with weights of torchao's Int8Tensor, with transformers' own `TorchAoConfig`.

    config: the torchao configuration that made them; left: linears that stayed as they were. Safetensors; loaded by
    plain `from_pretrained` where torchao is installed.
    """
    quantisation = TorchAoConfig(config, modules_to_not_convert=list(left))
    model = subject.model
    model.config.quantization_config = quantisation
    model.hf_quantizer = AutoHfQuantizer.from_config(quantisation, pre_quantized=True)
    saving.save(subject, folder)


def save_int4(subject: Transformer, folder: Path, names: Sequence[str], left: Sequence[str], group: int) -> None:
    """Write a model with weights of torchao's 4-bit integers in the layout "pack-quantized" of compressed-tensors.

    names: linears that are quantised, symmetric, with a scale for each `group` inputs; left: the others. Eight weights
    stand in an int32. torchao's own layout for any device spends a byte on each, and its packed ones are tied to one
    kind of device. Loaded by plain `from_pretrained` where compressed-tensors is installed, and by inference engines.
    """
    pack, described = _compressed_tensors()
    state: dict[str, Tensor] = {}
    for name, tensor in subject.model.state_dict().items():
        stem = name.removesuffix(".weight")
        if stem not in names or stem == name:
            state[name] = tensor
            continue
        weight: Any = tensor
        state[f"{stem}.weight_packed"] = pack(weight.qdata, 4)
        state[f"{stem}.weight_scale"] = weight.scale
        state[f"{stem}.weight_shape"] = torch.tensor(weight.shape)
    model = subject.model
    model.config.quantization_config = described(left, group)
    saving.save(subject, folder, state=state)


def _compressed_tensors() -> tuple[Any, Any]:
    try:
        from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
        from compressed_tensors.quantization import QuantizationConfig
    except ImportError as error:
        raise MissingExtraError("4 bits need compressed-tensors: pip install 'secateur[quantise]'") from error

    def described(left: Sequence[str], group: int) -> Mapping[str, Any]:
        weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": group}
        said = {
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "ignore": list(left),
        }
        found: dict[str, Any] = QuantizationConfig.model_validate(said).model_dump(mode="json")
        return found | {"quant_method": "compressed-tensors"}

    return pack_to_int32, described
