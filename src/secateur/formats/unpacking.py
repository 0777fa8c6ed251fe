"""Read weights that were packed without their zeros.

The layout of a tensor "x.weight" [d_out, d_in] is that of compressed-tensors, up to its version 0.14:

- x.shape: int64, d_out and d_in
- x.bitmask: uint8 [d_out, ceil(d_in / 8)], bit j % 8 of byte j // 8 says whether weight j of a row is stored
- x.compressed: the stored weights, row by row; [d_out, d_in / 2] in "sparse-24-bitmask", flat in "sparse-bitmask"
- x.row_offsets: int64 [d_out], where each row begins in `compressed`; in "sparse-bitmask" alone
- x.weight_scale: [d_out, 1], of weights that are stored as integers of 8 bits: what each is multiplied by

Where the rows hold few different numbers, as rounding leaves them, two others stand in place of the last two, and the
format's name ends in "-levels", which is ours:

- x.levels: [d_out, 2^b], the numbers of each row
- x.codes: uint8 [b, ...], for each stored weight bit k of its place among the numbers of its row, row by row, packed
  as the bitmask

This file imports only torch, safetensors, transformers and what comes with them: a copy of it travels with packed
weights, so that they load anywhere.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig

__all__ = ["KEY", "PACKED", "Unpacking", "bits", "decode_weights", "dense", "plain", "tensors", "unpack_bits"]

PACKED = "packed*.safetensors"
"""The files of packed weights: named so that no other loader takes them for plain ones and fills in random weights."""

_PARTS = ("shape", "bitmask", "row_offsets", "levels", "weight_scale")

KEY = "compression_config"
"""Where config.json says how the weights are packed."""


def bits(held: torch.Tensor) -> torch.Tensor:
    """Booleans [..., n] -> uint8 [..., ceil(n / 8)]: entry j is bit j % 8 of byte j // 8."""
    count = held.shape[-1]
    padded = torch.nn.functional.pad(held.to(torch.uint8), (0, -count % 8)).unflatten(-1, (-1, 8))
    places = 2 ** torch.arange(8, device=held.device)
    packed: torch.Tensor = (padded * places).sum(-1).to(torch.uint8)
    return packed


def unpack_bits(packed: torch.Tensor, count: int) -> torch.Tensor:
    """The inverse of `bits`: uint8 [..., ceil(n / 8)] -> booleans [..., n]."""
    places = 2 ** torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (packed[..., None] & places).ne(0).flatten(-2)[..., :count]


def dense(
    shape: torch.Tensor, bitmask: torch.Tensor, compressed: torch.Tensor, scale: torch.Tensor | None = None
) -> torch.Tensor:
    """The matrix [d_out, d_in] again, with zeros where nothing was stored; integers times their scale."""
    rows, columns = shape.flatten().tolist()
    matrix = compressed.new_zeros(rows, columns)
    matrix[unpack_bits(bitmask, columns)] = compressed.flatten()
    return matrix if scale is None else matrix.to(scale.dtype) * scale


def decode_weights(bitmask: torch.Tensor, columns: int, levels: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """The stored weights, row by row, by their places among the numbers of their rows."""
    rows = unpack_bits(bitmask, columns).nonzero()[:, 0]
    places = torch.zeros_like(rows)
    for number, plane in enumerate(codes):
        places += unpack_bits(plane, len(rows)).long() << number
    return levels[rows, places]


def tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of everything stored in `folder`, unpacked, one at a time."""
    for path in sorted(folder.glob(PACKED)):
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            for name in sorted(names):
                stem, _, part = name.rpartition(".")
                if f"{stem}.bitmask" not in names:
                    yield name, file.get_tensor(name)
                elif part == "compressed":
                    parts = ["shape", "bitmask", "compressed", "weight_scale"]
                    found = (file.get_tensor(f"{stem}.{one}") for one in parts if f"{stem}.{one}" in names)
                    yield f"{stem}.weight", dense(*found)
                elif part == "codes":
                    shape, bitmask, levels = (
                        file.get_tensor(f"{stem}.{one}") for one in ("shape", "bitmask", "levels")
                    )
                    stored = decode_weights(bitmask, int(shape.flatten()[1]), levels, file.get_tensor(name))
                    yield f"{stem}.weight", dense(shape, bitmask, stored)
                elif part not in _PARTS:  # a bias, say
                    yield name, file.get_tensor(name)


def plain(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy of a packed model's config as it was before: what the unpacked model has."""
    config = copy.deepcopy(config)
    before = getattr(config, KEY)["auto_map"]
    delattr(config, KEY)
    if before:
        config.auto_map = before
    elif hasattr(config, "auto_map"):
        del config.auto_map
    return config


class Unpacking:
    """Mixed in before a model's class: its `from_pretrained` unpacks, and gives a model of that class, a plain one."""

    @classmethod
    def from_pretrained(cls, name: str | Path, *args: object, config: object = None, **options: Any) -> object:
        """The model whose packed weights are in the folder, or Hub repository, `name`."""
        folder = Path(name)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            hub = {key: options[key] for key in ("revision", "token", "cache_dir") if options.get(key) is not None}
            folder = Path(snapshot_download(str(name), allow_patterns=["*.safetensors", "*.json"], **hub))
        if not isinstance(config, PreTrainedConfig):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        kind: Any = cls.__bases__[1]
        found = dict(tensors(folder))
        model = kind.from_pretrained(None, *args, config=plain(config), state_dict=found, **options)
        loaded = model[0] if isinstance(model, tuple) else model
        if loaded.can_generate() and (folder / "generation_config.json").is_file():
            loaded.generation_config = GenerationConfig.from_pretrained(folder)
        return model
