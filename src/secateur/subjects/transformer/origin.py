"""Where a result comes from: the model that it was cut from, and which of its units stand where in the result.

Every saved result holds it as `cut_map.json`: name, class, config and hash of the base, and the indices that stay, by
layer of the base. Repeated cuts are composed, so that the base is the dense original.
"""

from __future__ import annotations

import functools
import hashlib
import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from secateur._utils import checkpoints, ranges
from secateur.errors import MendedWarning, ModelError
from secateur.subjects.transformer import cutting, files, saving
from secateur.subjects.transformer.cutting import Kept
from secateur.subjects.transformer.layout import Layout

__all__ = ["Origin", "hash_folder", "hash_model", "hash_tensors"]


@dataclass(frozen=True)
class Origin:
    """The base of a model: what it was cut from, and what stays of that.

    name: folder or Hub id as it was given, "" where there is none. architecture: transformers' class. config: the
    base's, as in config.json. kept: what stays, in indices of the base; None where all does. norm_ratio: D / d where
    norms were made exact for d of D channels (`cutting.correct_norms`). sha256: of the base's weights, see
    `hash_tensors`; None where it is not known. folder: of the base, whose files are hashed when it is first asked for.
    """

    name: str
    architecture: str
    config: dict[str, object]
    kept: Kept | None = None
    norm_ratio: float = 1.0
    sha256: str | None = None
    folder: Path | None = None
    part: str = ""

    @classmethod
    def of_model(
        cls, model: PreTrainedModel, name: str | None = None, folder: Path | None = None, part: str = ""
    ) -> Origin:
        """That of a model that was not cut; without a `folder` its weights are hashed at once."""
        said = str(getattr(model.config, "_name_or_path", "") or "") if name is None else name
        kind = type(model) if part else saving.plain_class(type(model))
        digest = None if folder is not None else hash_model(model)
        return cls(said, kind.__name__, _plain(model.config), sha256=digest, folder=folder, part=part)

    @classmethod
    def read(cls, folder: Path) -> Origin | None:
        """The map in `folder`; None where there is no map. Raises `ModelError` for one that is damaged."""
        if not (folder / saving.MAP).is_file():
            return None
        try:
            return _Map.model_validate(checkpoints.read_json(folder / saving.MAP)).origin()
        except (ValidationError, ValueError) as error:
            text = str(error).strip().splitlines()
            raise ModelError(
                f"{folder / saving.MAP} is damaged ({' '.join(text[:3])[:200]}): cut the model again"
            ) from error

    @classmethod
    def find(cls, model: PreTrainedModel, layout: Layout, folder: Path, name: str, part: str = "") -> Origin:
        """That of the model which was read from `folder`: by the map there, if it is of this model, else itself.

        layout: of the model, or of its `part`.
        """
        try:
            known = cls.read(folder)
        except ModelError as error:
            known = None
            warnings.warn(f"{error}; until then it counts as uncut", MendedWarning, stacklevel=2)
        if known is not None and known.part == part and known.fits(layout):
            return known
        return cls.of_model(model, name, folder, part)

    def fits(self, layout: Layout) -> bool:
        """Whether what stays is as wide as a model is."""
        if self.kept is None:
            return False
        channels = layout.hidden_size if self.kept.channels is None else len(self.kept.channels)
        pairs = [
            [(one.heads, one.kv, one.neurons, one.experts, one.expert_neurons) for one in widths]
            for widths in (self.kept.widths(), layout.widths)
        ]
        return channels == layout.hidden_size and pairs[0] == pairs[1]

    def cut(self, kept: Kept, ratio: float) -> Origin:
        """That of a further cut, in which `kept` stays of the result; `ratio`: D / d of its corrected norms."""
        whole = kept if self.kept is None else cutting.compose(self.kept, kept)
        return replace(self, kept=whole, norm_ratio=self.norm_ratio * ratio)

    def digest(self) -> str | None:
        """The hash of the base's weights; None where it is not known, and its files are gone."""
        if self.sha256 is None and self.folder is not None and self.folder.is_dir():
            return hash_folder(self.folder)
        return self.sha256

    def describe(self, layout: Layout) -> str:
        """The map as text; `layout`: of the model, whose units all stay where none was cut."""
        kept = cutting.find_kept(layout, {}) if self.kept is None else self.kept
        base = _Base(
            name=self.name, architecture=self.architecture, sha256=self.digest(), config=self.config, part=self.part
        )
        parts = {
            layer: {
                part: ranges.write(index.tolist())
                if index.dim() == 1
                else [ranges.write(row) for row in index.tolist()]
                for part, index in own.items()
            }
            for layer, own in kept.parts.items()
        }
        channels = None if kept.channels is None else ranges.write(kept.channels.tolist())
        known = _Map(base=base, layers=kept.layers, channels=channels, parts=parts, norm_ratio=self.norm_ratio)
        return known.model_dump_json(indent=1) + "\n"


class _Base(BaseModel):
    name: str
    architecture: str
    sha256: str | None
    config: dict[str, object]
    part: str = ""
    """The config's name of the part whose layers the map has."""


class _Map(BaseModel):
    """What stands in the file."""

    format: Literal[1] = 1
    base: _Base
    layers: list[int]
    """Layer of the result -> layer of the base."""
    channels: str | None
    """Those that stay, such as "0-31,40"; null where all do."""
    parts: dict[int, dict[str, str | list[str]]]
    """Layer of the base -> kind of unit -> those that stay; of neurons of experts for each expert that stays."""
    norm_ratio: float = Field(1.0, gt=0, allow_inf_nan=False)

    def origin(self) -> Origin:
        """Raises `ValueError` for ranges that are none, and layers without parts."""
        kept = Kept(self.layers, None if self.channels is None else _indices(self.channels))
        if set(self.layers) != self.parts.keys() or len(set(self.layers)) != len(self.layers):
            raise ValueError("its layers and its parts differ")
        for layer, own in self.parts.items():
            kept.parts[layer] = {
                part: _indices(text) if isinstance(text, str) else _rows(text) for part, text in own.items()
            }
            if not {"heads", "kv", "neurons"} <= own.keys():
                raise ValueError(f"layer {layer} has no heads, kv or neurons")
        base = self.base
        return Origin(base.name, base.architecture, base.config, kept, self.norm_ratio, base.sha256, part=base.part)


def _indices(text: str) -> Tensor:
    return torch.tensor(ranges.read(text, sorted_only=False), dtype=torch.long)


def _rows(texts: Iterable[str]) -> Tensor:
    rows = [_indices(text) for text in texts]
    if len({len(row) for row in rows}) > 1:
        raise ValueError("its experts keep unequal numbers of neurons")
    return torch.stack(rows) if rows else torch.zeros(0, 0, dtype=torch.long)


def _plain(config: PretrainedConfig) -> dict[str, object]:
    """The config as JSON gives it back."""
    data: dict[str, object] = json.loads(config.to_json_string(use_diff=True))
    return data


# -------------------------------------------------------------------------------------------------------- hashes


def hash_tensors(tensors: Iterable[Tensor]) -> str:
    """sha256 over the set of all tensors: of each its number type, its shape and all its bytes.

    Names do not count, nor order, nor how often a tensor stands there: the same weights in one file or in several, with
    tied ones written once or twice, under the names of a base model or of one with a head, give the same hash. A model
    whose weights were trained, merged with an adapter or converted to another number type gives another.
    """
    found = set[bytes]()
    for tensor in tensors:
        digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        found.add(digest.digest())
    return hashlib.sha256(b"".join(sorted(found))).hexdigest()


def hash_folder(folder: Path) -> str:
    """`hash_tensors` of the weights in the files of a checkpoint, read one tensor at a time (`files.find_tensors`)."""
    places = files.find_tensors(folder)
    stats = {file: file.stat() for file in sorted(set(places.values()))}
    return _hash_files(folder, tuple((str(file), one.st_size, one.st_mtime_ns) for file, one in stats.items()))


@functools.lru_cache(maxsize=8)
def _hash_files(folder: Path, stats: tuple[tuple[str, int, int], ...]) -> str:
    """The hash of files that are as they were."""
    return hash_tensors(tensor for _, tensor in files.read_tensors(files.find_tensors(folder)))


def hash_model(model: PreTrainedModel) -> str | None:
    """`hash_tensors` of a model in memory, in the form in which it would be saved.

    None where not all of it is here as plain tensors: offloaded, sharded or quantised.
    """
    state = model.state_dict()
    if any(type(tensor) not in (Tensor, nn.Parameter) or tensor.is_meta for tensor in state.values()):
        return None
    return hash_tensors(revert_weight_conversion(model, state).values())
