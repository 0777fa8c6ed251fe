"""Low-rank branches beside linears: part of the model while it runs, a LoRA adapter of peft on disk.

A linear with a side gives ``W x + b + S (X x)``. Saved, the model is a plain checkpoint without its sides, and they lie
in the folder `side/` beside it as a LoRA with A = X and B = S, which `peft` loads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from secateur.errors import InputError, ModelError, UnsupportedError

__all__ = [
    "CONFIG",
    "FOLDER",
    "PREFIX",
    "WEIGHTS",
    "Branch",
    "attach",
    "find_branches",
    "has_branches",
    "refuse_adapter",
    "refuse_branches",
    "restore",
    "save",
    "without_branches",
]

FOLDER = "side"
"""Where the branches of a saved model lie, inside its folder."""

_NAME = "side"
PREFIX = "base_model.model."
"""Before the names of an adapter's tensors in peft's files."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""peft's files of an adapter."""


class Branch(nn.Module):
    """x -> S (X x), in the number type of x. Shapes: X [r, d_in], S [d_out, r]; x [..., d_in] -> [..., d_out]."""

    def __init__(self, X: Tensor, S: Tensor) -> None:
        super().__init__()
        self.X, self.S = nn.Parameter(X), nn.Parameter(S)

    def forward(self, x: Tensor) -> Tensor:
        """What is added to the linear's output."""
        return functional.linear(functional.linear(x, self.X.to(x.dtype)), self.S.to(x.dtype))


def _add_branch(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    # A function of the module, so that copies of a model run the branches of their own.
    branch = getattr(module, _NAME, None)
    return output if branch is None else output + branch(args[0])


def find_branches(model: nn.Module) -> dict[str, Branch]:
    """Path of a linear -> its branch, for those that have one."""
    ending = f".{_NAME}"
    return {path.removesuffix(ending): module for path, module in model.named_modules() if isinstance(module, Branch)}


def attach(model: nn.Module, branches: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Put branches (X [r, d_in], S [d_out, r]) beside the linears at these paths, in place.

    Raises `InputError` for a path without a linear, for shapes that don't fit it, and where there is a branch already.
    """
    for path, (X, S) in branches.items():
        try:
            module = model.get_submodule(path)
        except AttributeError:
            module = nn.Module()
        # Not by the weight, which may be packed or quantised.
        names = ("nf", "nx") if type(module).__name__ == "Conv1D" else ("out_features", "in_features")
        d_out, d_in = (getattr(module, name, 0) for name in names)
        if not d_out or hasattr(module, _NAME):
            raise InputError(f"{path} is no linear without a branch: give the path of one")
        if X.dim() != 2 or S.dim() != 2 or X.shape[1] != d_in or S.shape[0] != d_out or len(X) != S.shape[1]:
            raise InputError(
                f"a branch X {tuple(X.shape)}, S {tuple(S.shape)} beside {path} [{d_out}, {d_in}]: give [r, {d_in}] "
                f"and [{d_out}, r]"
            )
        module.add_module(_NAME, Branch(X, S))
        module.register_forward_hook(_add_branch)


@contextmanager
def without_branches(model: nn.Module) -> Iterator[dict[str, Branch]]:
    """Within the block the model has no branches; it yields what they are."""
    held = find_branches(model)
    for path in held:
        delattr(model.get_submodule(path), _NAME)
    try:
        yield held
    finally:
        for path, branch in held.items():
            model.get_submodule(path).add_module(_NAME, branch)


def save(branches: Mapping[str, Branch], folder: Path, *, conv1d: bool = False) -> None:
    """Write them as a LoRA in peft's form, scaled by 1: adapter_config.json and adapter_model.safetensors.

    conv1d: the linears are stored [d_in, d_out], as GPT-2's. Without branches, those of an earlier model that was saved
    there go.
    """
    if not branches:
        for name in (CONFIG, WEIGHTS):
            (folder / name).unlink(missing_ok=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    ranks = {path: len(branch.X) for path, branch in branches.items()}
    rank = max(set(ranks.values()), key=list(ranks.values()).count)
    others = {path: own for path, own in ranks.items() if own != rank}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": conv1d,
        "inference_mode": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "r": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(branches),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = {}
    for path, branch in branches.items():
        tensors[f"{PREFIX}{path}.lora_A.weight"] = branch.X.detach().cpu().contiguous()
        tensors[f"{PREFIX}{path}.lora_B.weight"] = branch.S.detach().cpu().contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def has_branches(folder: Path) -> bool:
    """Whether branches lie in `folder`."""
    return any((folder / name).exists() for name in (CONFIG, WEIGHTS))


def refuse_adapter(folder: Path) -> None:
    """Raise `ModelError` for the folder of an adapter: transformers would open the base that it names in its place."""
    if (folder / CONFIG).is_file():
        raise ModelError(
            f"{folder} holds an adapter, which is no model of its own: merge it first (merge_and_unload() of peft, "
            "then save_pretrained), or fit it to a pruned model with secateur translate-adapter"
        )


def refuse_branches(source: str | Path, folder: Path) -> None:
    """Raise `UnsupportedError` for a model in `folder` with branches, which what is cut by its config would lose.

    source: what the reader calls it.
    """
    if has_branches(folder / FOLDER):
        raise UnsupportedError(
            f"{source} has branches beside its linears, in {FOLDER}/, so nothing can be cut or planned: take the "
            f"original, or a copy of the folder without {FOLDER}/"
        )


def restore(model: nn.Module, folder: Path) -> None:
    """Attach the branches that `save` wrote into `folder`, if there is one.

    Raises `ModelError` for a folder that is damaged or of another model.
    """
    if not has_branches(folder):
        return
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
        like: Any = model
        found = {}
        for path in config["target_modules"]:
            X, S = (tensors.pop(f"{PREFIX}{path}.lora_{which}.weight") for which in "AB")
            scale = config["alpha_pattern"].get(path, config["lora_alpha"]) / len(X)
            found[path] = tuple(part.to(like.device, like.dtype) for part in (X, S if scale == 1 else S * scale))
        if tensors:
            raise ModelError(f"{folder} holds {min(tensors)}, which its adapter_config.json does not name")
        attach(model, found)  # type: ignore[arg-type]
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, InputError) as error:
        raise ModelError(
            f"{folder} is damaged or no branch of this model ({type(error).__name__}: {error}): save the model again, "
            "or delete the folder to open it without"
        ) from error
    for branch in find_branches(model).values():
        for parameter in branch.parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise ModelError(f"{folder} holds NaN or infinity: this checkpoint is broken, use an intact one")
