"""Packed sparse weights: without zeros, masks in one bit each, and 2:4 kernels where a device has them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig

from secateur._utils import checkpoints, codebook
from secateur._utils.disk import writing
from secateur.errors import InputError, ModelError, NumericalError
from secateur.formats import unpacking
from secateur.subjects.matrices import matrices
from secateur.subjects.transformer import files, saving
from secateur.subjects.transformer.quantised import Integers
from secateur.subjects.transformer.streamed import Streamed
from secateur.subjects.transformer.subject import Transformer

__all__ = ["is_packed", "load_masks", "pack", "save_masks", "save_packed", "semi_structured"]

_MODULE = "modeling_packed"
_PREFIX = "Packed"
_SHARD = 2**30
"""Bytes after which another file is begun, so that no more than this is held at once."""


# ---------------------------------------------------------------------------------------------------- weights


def save_packed(subject: Transformer | Streamed, folder: Path) -> tuple[str, ...]:
    """Write the model into `folder` as it saves itself, its matrices without their zeros; returns notes.

    Every matrix that gets smaller by it is packed, as `unpacking` describes: all of them as "sparse-24-bitmask" where
    they are all 2:4, else as "sparse-bitmask", and the weights of rows with few different numbers, as rounding leaves
    them, as places among these where that is smaller ("-levels"). What is loaded again equals the model bit for bit,
    which is checked. Loading unpacks: it saves disk and transfer, neither memory nor time.

    Raises `InputError` where nothing gets smaller.
    """
    subject.save(folder)
    return pack(folder, subject.model.config)


def pack(
    folder: Path, config: PreTrainedConfig, chosen: Collection[str] = (), integers: Integers | None = None
) -> tuple[str, ...]:
    """Pack the weights of the model that is saved in `folder`, in place; see `save_packed`.

    The weights `chosen`, as they are named in the files, become `integers` of 8 bits first, a scale for each row, and
    are packed all of them; what is loaded again equals what the integers stand for.
    """
    unpacked = sorted(folder.glob("*.safetensors"))
    paying, two_four, before, saved = set(chosen), True, 0, 0
    for name, tensor in files.walk_tensors(unpacked):
        before += tensor.nbytes
        if name in chosen:
            saved += tensor.numel() - _cost(tensor, 1)
        elif name.endswith(".weight") and tensor.dim() == 2 and tensor.is_floating_point() and _pays(tensor):
            paying.add(name)
        if name in paying:
            two_four = two_four and _two_four(tensor)
    if chosen and saved <= 0:
        raise InputError("integers get no smaller without their zeros: prune the model first, or choose int8")
    if not paying:
        raise InputError("nothing gets smaller without its zeros: prune the model first, or keep it as it is")
    shard: dict[str, Tensor] = {}
    number, after, rounded = 1, 0, 0
    for name, tensor in files.walk_tensors(unpacked):
        whole = integers(tensor) if integers is not None and name in chosen else None
        parts = _pack_matrix(name, tensor, two_four, whole) if name in paying else {name: tensor}
        after += sum(part.nbytes for part in parts.values())
        rounded += name in paying and f"{name.removesuffix('.weight')}.codes" in parts
        shard |= parts
        if sum(part.nbytes for part in shard.values()) > _SHARD:
            _write(folder, number, shard)
            shard, number = {}, number + 1
    if shard:
        _write(folder, number, shard)
    form = ("sparse-24-bitmask" if two_four else "sparse-bitmask") + ("-levels" if rounded else "")
    told = f", {rounded} of them as places among the few numbers of their rows" if rounded else ""
    _describe(config, folder, form, paying, chosen)
    _check(unpacked, folder, chosen, integers)
    for path in [*unpacked, *folder.glob("model*.safetensors.index.json")]:
        path.unlink()
    return (
        f"{len(paying)} matrices packed as {form}{told}: {after / 1e6:.3g} MB in place of {before / 1e6:.3g} MB",
        "it is unpacked as it loads, by secateur.load or from_pretrained(..., trust_remote_code=True): "
        "neither memory nor time is saved",
    )


def is_packed(config: Mapping[str, Any]) -> bool:
    """Whether a config.json belongs to packed weights."""
    return unpacking.KEY in config and "sparsity_config" in config[unpacking.KEY]


def _write(folder: Path, number: int, shard: dict[str, Tensor]) -> None:
    save_file(shard, folder / unpacking.PACKED.replace("*", f"-{number:05d}"), {"format": "pt"})


def _pays(matrix: Tensor) -> bool:
    """Whether the stored weights with a bit for each place and the offsets of rows take less than the matrix."""
    rows, columns = matrix.shape
    smallest, found = _cost(matrix, matrix.element_size()), codebook.table(matrix)
    if found is not None:
        coded = codebook.coded_bytes(found, int(torch.count_nonzero(matrix)))
        smallest = min(smallest, coded + rows * -(-columns // 8) + 16)
    return smallest < matrix.nbytes


def _cost(matrix: Tensor, size: int) -> int:
    """Bytes of the stored weights, of `size` bytes each, with a bit for each place and the offsets of rows."""
    rows, columns = matrix.shape
    return int(torch.count_nonzero(matrix)) * size + rows * (-(-columns // 8) + 8) + 16


def _two_four(matrix: Tensor) -> bool:
    if matrix.shape[1] % 4:
        return False
    return bool((matrix.unflatten(1, (-1, 4)) != 0).sum(2).le(2).all())


def _pack_matrix(name: str, matrix: Tensor, two_four: bool, whole: Any = None) -> dict[str, Tensor]:
    """The parts of a matrix; with `whole`, of the integers that stand for it."""
    stem = name.removesuffix(".weight")
    held = matrix != 0
    shape = torch.tensor(matrix.shape)
    scale = {} if whole is None else {f"{stem}.weight_scale": whole.scale}
    matrix = matrix if whole is None else whole.qdata
    if two_four:
        # Exactly two of four are stored; where fewer are not zero, the first zeros fill up.
        runs = held.unflatten(1, (-1, 4))
        first = runs.to(torch.uint8).sort(dim=2, descending=True, stable=True).indices[..., :2]
        held = torch.zeros_like(runs).scatter_(2, first, True).flatten(1)
        stored = matrix[held].view(matrix.shape[0], -1)
        more, shape = scale, shape[:, None]
    else:
        counts = held.sum(1)
        stored, more = matrix[held], {f"{stem}.row_offsets": counts.cumsum(0) - counts, **scale}
    places = {f"{stem}.shape": shape, f"{stem}.bitmask": unpacking.bits(held)}
    found = codebook.table(matrix) if whole is None else None
    if found is None or codebook.coded_bytes(found, stored.numel()) >= stored.nbytes:
        return {**places, f"{stem}.compressed": stored, **more}
    wide = torch.promote_types(matrix.dtype, torch.float32)  # searching knows no smaller ones
    codes = torch.searchsorted(found.to(wide), matrix.to(wide))[held]
    planes = [unpacking.bits((codes >> bit & 1).bool()) for bit in range(found.shape[1].bit_length() - 1)]
    return {**places, f"{stem}.levels": found, f"{stem}.codes": torch.stack(planes)}


def _describe(
    config: PreTrainedConfig, folder: Path, form: str, packed: Collection[str], quantised: Collection[str]
) -> None:
    """config.json says how weights are packed, which are integers, and which file unpacks them."""
    names = {auto: model.__name__ for auto, model in saving.classes(config).items()}
    how: dict[str, Any] = {
        "quant_method": "compressed-tensors",
        "sparsity_config": {
            "format": form,
            "sparsity_structure": "2:4" if "24" in form else "unstructured",
            "targets": _stems(packed),
            "ignore": [],
        },
        "auto_map": checkpoints.read_json(folder / "config.json").get("auto_map"),
    }
    if quantised:
        weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
        how |= {
            "format": "int-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": {"targets": _stems(quantised), "weights": weights}},
        }
    auto_map = {auto: f"{_MODULE}.{_PREFIX}{name}" for auto, name in names.items()}
    files.update_config(folder, {unpacking.KEY: how, "auto_map": auto_map})
    module = "# Written by secateur beside packed weights; licensed under Apache-2.0.\n"
    module += inspect.getsource(unpacking).rstrip()
    for name in sorted(set(names.values())):
        base, place = (
            (f"Secateur{name}", ".modeling_secateur") if saving.needs_module(config) else (name, "transformers")
        )
        module += (
            f"\n\n\nfrom {place} import {base}  # noqa: E402\n\n\nclass {_PREFIX}{name}(Unpacking, {base}):\n"
            f'    """{name} from packed weights."""\n'
        )
    (folder / f"{_MODULE}.py").write_text(module, encoding="utf-8")


def _stems(weights: Collection[str]) -> list[str]:
    return sorted(name.removesuffix(".weight") for name in weights)


def _check(unpacked: list[Path], folder: Path, chosen: Collection[str], integers: Integers | None) -> None:
    """Every tensor of the `unpacked` files, or what its integers stand for, is in the packed ones, bit for bit."""
    places = {name: path for file in unpacked for name, path in files.list_tensors(file).items()}
    for name, tensor in unpacking.tensors(folder):
        ((_, before),) = files.read_tensors({name: places.pop(name)})
        if integers is not None and name in chosen:
            before = integers(before).dequantize()
        if before.dtype != tensor.dtype or not torch.equal(before, tensor):
            raise NumericalError(f"{name} is not the same after packing: the packed file is not usable")
    if places:
        raise NumericalError(f"{min(places)} is lost by packing: the packed file is not usable")


# ------------------------------------------------------------------------------------------------------ masks


def save_masks(masks: Mapping[str, Tensor], path: Path) -> None:
    """Write masks, name of a parameter -> booleans of its shape, as safetensors: one bit for each weight."""
    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    packed = {name: unpacking.bits(mask.detach().cpu().bool().flatten()) for name, mask in masks.items()}
    with writing(path) as temporary:
        save_file(packed, temporary, {"masks": json.dumps(shapes)})


def load_masks(path: Path) -> dict[str, Tensor]:
    """The masks that `save_masks` wrote. Raises `ModelError` for a file that holds none or is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            shapes = json.loads((file.metadata() or {})["masks"])
            return {
                name: unpacking.unpack_bits(file.get_tensor(name), torch.Size(shape).numel()).view(shape)
                for name, shape in shapes.items()
            }
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path} holds no masks, or is damaged: write it again with `secateur export`") from error


# ---------------------------------------------------------------------------------------------------- kernels

_ROWS, _COLUMNS = 32, 64
"""What both of torch's 2:4 kernels take in half precision: multiples of these."""


def semi_structured(model: nn.Module) -> tuple[tuple[str, ...], dict[str, str]]:
    """Give the linears of `model`, in place, 2:4 weights that the device multiplies as such, where it can.

    Returns the linears that got them, and what stays dense with the reason: linears, and modules that hold matrices in
    another way, such as GPT-2's Conv1D and packed experts, which no kernel takes. Sparse tensor cores are those of CUDA
    devices of compute capability 8.0 or more, in float16 and bfloat16; elsewhere everything stays as it is and runs
    dense. The result is for inference: it can't be trained or saved. Output embeddings stay dense.

    Source: `torch.sparse.to_sparse_semi_structured`.
    """
    outputs = getattr(model, "get_output_embeddings", lambda: None)()
    swapped, left = list[str](), dict[str, str]()
    holding = {matrix.module: matrix.expert is not None for matrix in matrices(model).values()}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or module is outputs:
            if name in holding and module is not outputs:
                left[name] = f"{'packed experts' if holding[name] else type(module).__name__}: kernels take linears"
            continue
        reason = _unfit(module.weight.detach())
        if not reason:
            try:
                weight = torch.sparse.to_sparse_semi_structured(module.weight.detach())
                module.weight = nn.Parameter(weight, requires_grad=False)
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
        if reason:
            left[name] = reason
        else:
            swapped.append(name)
    return tuple(swapped), left


def _unfit(weight: Tensor) -> str:
    """Why no 2:4 kernel takes this weight; empty if one does."""
    rows, columns = weight.shape
    if weight.dtype not in (torch.float16, torch.bfloat16):
        return f"{str(weight.dtype).removeprefix('torch.')}: kernels take float16 and bfloat16"
    if rows % _ROWS or columns % _COLUMNS:
        return f"{rows} x {columns}: kernels take multiples of {_ROWS} x {_COLUMNS}"
    if not _two_four(weight):
        return "not 2:4: more than two of four weights are not zero"
    if not _has_kernels(weight.device):
        return f"{weight.device.type}: no 2:4 kernels on this device, so it runs dense"
    return ""


def _has_kernels(device: torch.device) -> bool:
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)
