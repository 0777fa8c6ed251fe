"""Quantised models on the disk, as transformers loads them: by torchao, or packed by compressed-tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel, TorchAoConfig
from transformers.core_model_loading import revert_weight_conversion
from transformers.quantizers import AutoHfQuantizer

from secateur._utils import checkpoints
from secateur._utils.disk import read_object
from secateur.errors import MissingExtraError, ModelError, NumericalError
from secateur.subjects.transformer import files, saving
from secateur.subjects.transformer.subject import Transformer

if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig

__all__ = [
    "Integers",
    "find_weights",
    "pack",
    "read_source",
    "record_source",
    "require_library",
    "save_int8",
    "with_model",
]

Integers: TypeAlias = Callable[[Tensor], Any]
"""Gives a matrix as torchao's tensor of integers, as `quantise.integers` does."""
_SOURCE = "rounded_from"
"""The key of a map that says which weights were rounded to what stands beside it."""


def with_model(subject: Transformer, model: PreTrainedModel) -> Transformer:
    """`subject` with another model of the same shape in its place."""
    return subject._copy(model, subject.layer_index)


def save_int8(subject: Transformer, folder: Path, config: AOBaseConfig, left: Sequence[str]) -> None:
    """Write a model with weights of torchao's Int8Tensor, with transformers' own `TorchAoConfig`.

    config: the torchao configuration that made them; left: linears that stayed as they were. Safetensors; loaded by
    plain `from_pretrained` where torchao is installed.
    """
    quantisation = TorchAoConfig(config, modules_to_not_convert=list(left))
    model = subject.model
    model.config.quantization_config = quantisation
    model.hf_quantizer = AutoHfQuantizer.from_config(quantisation, pre_quantized=True)
    saving.save(subject, folder)


def find_weights(model: PreTrainedModel, parameters: Iterable[str], folder: Path) -> dict[str, Path]:
    """The tensors that hold some parameters of `model` in the checkpoint in `folder`, and their files.

    A layer's packed experts are several, each a matrix of its own. Raises `ModelError` where one is not there.
    """
    shapes = dict(model.named_parameters())
    state = {name: torch.empty_like(shapes[name], device="meta") for name in parameters}
    held, found = files.find_tensors(folder), dict[str, Path]()
    for name in revert_weight_conversion(model, state):
        short = name.removeprefix(f"{model.base_model_prefix}.")  # as older checkpoints of a base model say it
        key = name if name in held else short
        if key not in held:
            raise ModelError(f"{folder} lacks {name}: save the model again")
        found[key] = held[key]
    return found


def pack(
    folder: Path, chosen: Mapping[str, Path], left: Sequence[str], bits: int, integers: Integers, *, dense: bool
) -> None:
    """Make weights of the model that is saved in `folder` integers, in place and a file at a time.

    They are laid out as "pack-quantized" of compressed-tensors, symmetric: four or eight weights in an int32. torchao's
    own 4-bit layout for any device spends a byte on each, and its packed ones are tied to one kind of device. Loaded by
    plain `from_pretrained` where compressed-tensors is installed, and by inference engines. What is written is read
    again, unpacked, and has to be what the integers stand for.

    chosen: as `find_weights` gives them; left: linears that stay as they are; integers: gives a matrix as torchao's.
    dense: transformers makes floats of them as it loads, the only way it reads packed experts and GPT-2's Conv1D.

    Raises:
        MissingExtraError: compressed-tensors is not installed.
        NumericalError: what is read is not what was written.
    """
    library = _compressed_tensors()
    group = 0
    for file in sorted(set(chosen.values())):
        state = dict(files.walk_tensors([file]))
        made = {name: integers(state.pop(name)) for name, place in chosen.items() if place == file}
        for name, weight in made.items():
            stem = name.removesuffix(".weight")
            group = weight.shape[1] // weight.scale.shape[1] if bits == 4 else 0
            state[f"{stem}.weight_packed"] = library.pack(weight.qdata, bits)
            state[f"{stem}.weight_scale"] = weight.scale
            state[f"{stem}.weight_shape"] = torch.tensor(weight.shape)
        files.replace_file(file, state)
        _check(file, made, library, _scheme(bits, group))
    said = {
        "config_groups": {"group_0": _scheme(bits, group)},
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": list(left),
    }
    found = library.config.model_validate(said).model_dump(mode="json")
    found |= {"quant_method": "compressed-tensors"} | ({"dequantize": True} if dense else {})
    files.update_config(folder, {"quantization_config": found})
    _reindex(folder)


def require_library() -> None:
    """Raise `MissingExtraError` where compressed-tensors is not installed."""
    _compressed_tensors()


def record_source(folder: Path, sha256: str) -> None:
    """Say in the map of the integers in `folder` which weights they stand for, by their hash (`origin.hash_folder`)."""
    data = checkpoints.read_json(folder / saving.MAP)
    (folder / saving.MAP).write_text(json.dumps({**data, _SOURCE: sha256}, indent=1) + "\n", encoding="utf-8")


def read_source(folder: Path) -> object:
    """The hash of the weights that the integers in `folder` stand for; None where nothing says it."""
    return read_object(folder / saving.MAP).get(_SOURCE)


def _reindex(folder: Path) -> None:
    """Let the index of a checkpoint in several files say what is in them; nothing where it is one file."""
    if not (folder / files.INDEX).is_file():
        return
    table, total = dict[str, str](), 0
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in files.walk_tensors([file]):
            table[name] = file.name
            total += tensor.nbytes
    files.write_index(folder, table, total)


def _scheme(bits: int, group: int) -> dict[str, object]:
    weights: dict[str, Any] = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "channel"}
    if group:
        weights |= {"strategy": "group", "group_size": group}
    return {"targets": ["Linear"], "weights": weights}


def _check(file: Path, made: Mapping[str, Any], library: SimpleNamespace, scheme: Mapping[str, Any]) -> None:
    given = library.scheme.model_validate(scheme)
    with safe_open(file, "pt") as opened:
        for name, weight in made.items():
            parts = ("weight_packed", "weight_scale", "weight_shape")
            state = {part: opened.get_tensor(f"{name.removesuffix('.weight')}.{part}") for part in parts}
            if not torch.equal(library.compressor.decompress(state, given)["weight"], weight.dequantize()):
                raise NumericalError(f"{name} is not the same after packing: the packed file is not usable")


def _compressed_tensors() -> SimpleNamespace:
    try:
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
        from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
    except ImportError as error:
        raise MissingExtraError("packed integers need compressed-tensors: pip install 'secateur[quantise]'") from error
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    return SimpleNamespace(
        pack=pack_to_int32, compressor=compressor, config=QuantizationConfig, scheme=QuantizationScheme
    )
