"""Named tensors that are read one at a time: of a checkpoint's folder, or in memory; and written so."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from secateur._utils.storage import bits
from secateur.errors import InputError, ModelError, UnsupportedError
from secateur.subjects.transformer import files, loading, low_rank
from secateur.subjects.transformer.origin import hash_folder, hash_tensors

__all__ = ["Checkpoint", "InMemory", "Outline", "Tensors", "write"]

_KINDS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""safetensors' names of number types."""
_NAMES = {kind: name for name, kind in _KINDS.items()}


@dataclass(frozen=True, slots=True)
class Outline:
    """Number type and shape of a tensor."""

    kind: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many entries it has."""
        return torch.Size(self.shape).numel()

    def __str__(self) -> str:
        return f"{str(self.kind).removeprefix('torch.')} {list(self.shape)}"


class Tensors(Protocol):
    """Tensors by name. name: in messages; folder: whose other files belong to them, if there is one."""

    name: str
    folder: Path | None

    def outlines(self) -> Mapping[str, Outline]:
        """Name -> number type and shape, of all tensors; nothing else is read."""
        ...

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU; the caller may not write into it."""
        ...

    def digest(self) -> str:
        """A hash of all tensors."""
        ...


class InMemory:
    """Tensors that are in memory, such as a model's `state_dict()`."""

    def __init__(self, tensors: Mapping[str, Tensor], name: str = "memory") -> None:
        self.tensors, self.name = tensors, name
        self.folder: Path | None = None

    def outlines(self) -> Mapping[str, Outline]:
        """Name -> number type and shape."""
        return {name: Outline(tensor.dtype, tuple(tensor.shape)) for name, tensor in self.tensors.items()}

    def read(self, name: str) -> Tensor:
        """The tensor itself, on the CPU."""
        return self.tensors[name].detach().cpu()

    def digest(self) -> str:
        """sha256 over all tensors."""
        return hash_tensors(self.tensors.values())


class Checkpoint:
    """The safetensors of a folder or of a Hub id, in one file or several; each tensor is read when it is asked for.

    Raises `ModelError` for what is no model's folder or is damaged, `UnsupportedError` for a number type that is none
    of PyTorch's plain ones and for a model with branches beside its linears.
    """

    def __init__(self, source: str | Path) -> None:
        self.name = str(source)
        low_rank.refuse_adapter(Path(source))
        root = loading.locate(source)
        self.folder: Path | None = root
        if low_rank.has_branches(root / low_rank.FOLDER):
            raise UnsupportedError(f"{source} has branches in {low_rank.FOLDER}/: merge them into its linears first")
        self.places = files.find_tensors(root)
        if not self.places:
            raise ModelError(f"{source} holds no .safetensors (pickles are never opened): save the model again")

    def outlines(self) -> Mapping[str, Outline]:
        """Name -> number type and shape, from the headers of the files."""
        return self._outlines

    @cached_property
    def _outlines(self) -> dict[str, Outline]:
        found = dict[str, Outline]()
        for file in dict.fromkeys(self.places.values()):
            with safe_open(file, "pt") as opened:
                for name in (name for name, place in self.places.items() if place == file):
                    part = opened.get_slice(name)
                    if part.get_dtype() not in _KINDS:
                        raise UnsupportedError(
                            f"{self.name} holds {name} as {part.get_dtype()}: save it in a plain number type, such as "
                            "bfloat16"
                        )
                    found[name] = Outline(_KINDS[part.get_dtype()], tuple(part.get_shape()))
        return {name: found[name] for name in self.places}

    def read(self, name: str) -> Tensor:
        """One tensor from its file."""
        with safe_open(self.places[name], "pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
        return tensor

    def digest(self) -> str:
        """sha256 over all tensors, read one at a time."""
        assert self.folder is not None
        return hash_folder(self.folder)


def write(file: Path, outlines: Mapping[str, Outline], read: Callable[[str], Tensor]) -> None:
    """Write tensors as safetensors, of which never more than one is in memory.

    outlines: of what the file is to hold; `read` gives each by its name. Raises `InputError` for a tensor that is not
    as its outline says. Form: a header of 8 bytes with its length, JSON with places, then the bytes; tensors of wide
    number types come first, so that each lies at a multiple of its width.
    """
    order = sorted(outlines, key=lambda name: (-outlines[name].kind.itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name in order:
        outline = outlines[name]
        end = begin + outline.numel * outline.kind.itemsize
        header[name] = {"dtype": _NAMES[outline.kind], "shape": outline.shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            tensor = read(name)
            if Outline(tensor.dtype, tuple(tensor.shape)) != outlines[name]:
                raise InputError(f"{name} is {tensor.dtype} {list(tensor.shape)} in place of {outlines[name]}")
            stream.write(bits(tensor))
