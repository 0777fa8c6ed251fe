"""A base with a LoRA or DoRA adapter merged into it, tensor by tensor.

LoRA (arXiv 2106.09685): ``V = W + s B A``. DoRA (arXiv 2402.09353): ``V = m (W + s B A) / |W + s B A|`` by rows. The
files are those of peft.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from secateur._utils.storage import digest
from secateur.errors import InputError, ModelError, UnsupportedError
from secateur.subjects.delta.naming import Names
from secateur.subjects.delta.tensors import Checkpoint, Outline
from secateur.subjects.transformer import adapters, low_rank
from secateur.subjects.transformer.origin import hash_folder

__all__ = ["Merged"]

_FACTOR = re.compile(r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector(?:\.weight)?)")


class Merged:
    """What a base becomes when an adapter is merged into it; tensors are read and merged one at a time.

    Products are made in float32 and rounded once to the base's number type. Tensors that the adapter saved whole
    (`modules_to_save`, biases) take the place of the base's.

    Raises `InputError` for an adapter of another base, as far as its files tell: by the weights of the folder that it
    names, or by what it has of modules and shapes; `UnsupportedError` for a kind of adapter that is not merged here.
    """

    def __init__(self, base: Checkpoint, adapter: str | Path) -> None:
        self.base, self.adapter, self.name = base, Path(adapter).expanduser(), str(adapter)
        self.folder: Path | None = base.folder
        self.settings = adapters.Settings.read(self.adapter)
        self._check_named()
        self.factors: dict[str, dict[str, Tensor]] = {}
        self.whole: dict[str, Tensor] = {}
        for name, tensor in adapters.read_factors(self.adapter / low_rank.WEIGHTS).items():
            self._sort(name, tensor)
        wanted = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if self.settings.use_dora else set())
        for path, factors in self.factors.items():
            if set(factors) != wanted:
                held = ", ".join(sorted(factors))
                raise ModelError(f"{adapter} is damaged: it has {held} of {path}, and its settings say otherwise")

    @property
    def notes(self) -> tuple[str, ...]:
        """That the base which the adapter names is not at hand, so that its weights were not compared."""
        if self._names_folder:
            return ()
        said = self.settings.base_model_name_or_path or "no base"
        return (f"the adapter names {said}, which is not at hand: {self.base.name} was taken for its base",)

    @property
    def _names_folder(self) -> bool:
        said = self.settings.base_model_name_or_path
        return bool(said) and (Path(str(said)) / "config.json").is_file()

    def _check_named(self) -> None:
        said = self.settings.base_model_name_or_path
        if self._names_folder and hash_folder(Path(str(said))) != self.base.digest():
            raise InputError(
                f"{self.name} is an adapter of {said}, whose weights are not those of {self.base.name}: give {said} as "
                "the model before training"
            )

    def _sort(self, name: str, tensor: Tensor) -> None:
        """Put a tensor of the adapter to the factors of its module, or to what was saved whole."""
        outlines, match = self.base.outlines(), _FACTOR.fullmatch(name)
        if match is None:
            if ".lora_" in name:
                raise UnsupportedError(
                    f"{self.name} has {name}, and factors of linears alone are merged here: merge it by "
                    "merge_and_unload() of peft, save that and give its folder"
                )
            path = self._find(name.replace(".base_layer.", ".").replace(".modules_to_save.", "."))
            self._refuse_tied(path)
            self._check(path, tuple(tensor.shape), outlines.get(path))
            self.whole[path] = tensor.to(outlines[path].kind)
            return
        path = self._find(f"{match[1]}.weight")
        self._refuse_tied(path)
        if path not in outlines:
            raise self._refuse(f"it has factors of {match[1]}, which {self.base.name} has not")
        factors = self.factors.setdefault(path, {})
        factors[match[2].removesuffix(".weight")] = tensor
        if {"lora_A", "lora_B"} <= set(factors) and match[2] != "lora_magnitude_vector":
            shape = (len(factors["lora_B"]), factors["lora_A"].shape[1])
            self._check(path, shape[::-1] if self._is_turned else shape, outlines[path])

    def _find(self, path: str) -> str:
        """The name in the base's files of what an adapter's model calls so: some are saved without their prefix."""
        bare = path.partition(".")[2]
        return bare if path not in self.base.outlines() and bare in self.base.outlines() else path

    @cached_property
    def _names(self) -> Names | None:
        """What the base's class calls its tensors; None for one that is not known."""
        try:
            return None if self.base.folder is None else Names(self.base.folder)
        except (ModelError, UnsupportedError):
            return None

    def _refuse_tied(self, path: str) -> None:
        """Refuse what changes a tied head alone: one tensor can't be saved as two."""
        twin = None if self._names is None else self._names.twin(path)
        if twin is not None:
            raise UnsupportedError(
                f"{self.name} changes {path}, a tied head, which in {self.base.name} is {twin} again: untie it, or "
                "merge_and_unload() by peft first, save that and give its folder"
            )

    @property
    def _is_turned(self) -> bool:
        """Whether linears are stored [in, out], as GPT-2's."""
        return bool(self.settings.data.get("fan_in_fan_out"))

    def _check(self, path: str, shape: tuple[int, ...], outline: Outline | None) -> None:
        if outline is None or outline.shape != shape:
            there = "has none" if outline is None else f"has {list(outline.shape)}"
            raise self._refuse(f"its {path} is {list(shape)}, and {self.base.name} {there}")

    def _refuse(self, why: str) -> InputError:
        return InputError(
            f"{self.name} is an adapter of another base ({self.settings.base_model_name_or_path or 'unnamed'}): {why}; "
            "give the model that it was trained on as the one before training"
        )

    def outlines(self) -> Mapping[str, Outline]:
        """Those of the base."""
        return self.base.outlines()

    def read(self, name: str) -> Tensor:
        """One tensor with what the adapter adds to it."""
        if name in self.whole:
            return self.whole[name]
        weight, factors = self.base.read(name), self.factors.get(name)
        if factors is None:
            return weight
        path = name.removesuffix(".weight")
        A, B = factors["lora_A"].float(), factors["lora_B"].float()
        rank = self.settings.pattern("rank_pattern", path, self.settings.r)
        alpha = self.settings.pattern("alpha_pattern", path, self.settings.lora_alpha)
        scale = alpha / (math.sqrt(rank) if self.settings.use_rslora else rank)
        dense = (weight.T if self._is_turned else weight).float()
        merged = dense + scale * (B @ A)
        if self.settings.use_dora:
            length = factors["lora_magnitude_vector"].float().reshape(-1, 1)
            merged = length * merged / torch.linalg.vector_norm(merged, dim=1, keepdim=True)
        return (merged.T if self._is_turned else merged).to(weight.dtype).contiguous()

    def digest(self) -> str:
        """sha256 over the base's tensors and the adapter's files."""
        parts = [self.base.digest(), *(digest(self.adapter / name) for name in (low_rank.CONFIG, low_rank.WEIGHTS))]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()
