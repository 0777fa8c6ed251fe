"""Open a checkpoint as a subject, and reload a result; every bad checkpoint is refused here, by name."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from secateur.errors import MissingExtraError, ModelError, UnsupportedError
from secateur.subjects import saving
from secateur.subjects.decoder import Decoder
from secateur.subjects.encoder import Encoder
from secateur.subjects.families import FAMILIES, Family, find
from secateur.subjects.transformer import Transformer

__all__ = ["load", "open_subject"]

_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")


def open_subject(
    source: str | Path | PreTrainedModel,
    *,
    tokenizer: Any = None,
    trust_remote_code: bool = False,
    dtype: torch.dtype | str | None = None,
) -> Transformer:
    """The model at `source` as something to prune.

    source: a folder (plain, sentence-transformers, or an earlier result), a Hub id, or a model in memory (which is
    not copied; cuts copy). dtype: of the weights; as stored if None. Raises `ModelError` for a checkpoint that is
    missing, damaged, pickled, or holds NaN or infinity, `UnsupportedError` for an architecture secateur doesn't know.
    """
    if isinstance(source, PreTrainedModel):
        family = _family(getattr(source.config, "model_type", "?"), type(source).__name__)
        _check_finite(source)
        return _subject(source, family, tokenizer, None, [])
    folder = Path(source).expanduser()
    local = folder.is_dir() and bool(str(source).strip())
    if not local:
        _refuse_missing(str(source), folder)
    root = folder
    modules: list[dict[str, Any]] = []
    if local:
        if (folder / "modules.json").is_file():
            modules = saving.read_json(folder / "modules.json")
            root = folder / (modules[0].get("path") or "")
        _check_folder(root, trust_remote_code)
    place = str(root) if local else str(source)
    model, family = _read(place, local, trust_remote_code, dtype)
    _check_finite(model)
    head = [_module(entry, folder) for entry in modules[1:]]
    if tokenizer is None and (not local or any((root / name).is_file() for name in _TOKENIZERS)):
        try:
            tokenizer = AutoTokenizer.from_pretrained(place)
        except Exception as error:
            raise ModelError(f"the tokenizer of {place} can't be read ({_line(error)})") from error
    return _subject(model, family, tokenizer, folder if local else None, head)


def load(path: str | Path) -> PreTrainedModel:
    """A saved model, plain or heterogeneous, without running code from its folder."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        _refuse_missing(str(path), folder)
    else:
        if (folder / "modules.json").is_file():
            folder = folder / (saving.read_json(folder / "modules.json")[0].get("path") or "")
        _check_folder(folder, trust_remote_code=False)
    return _read(str(folder) if folder.is_dir() else str(path), folder.is_dir(), False, None)[0]


def _subject(
    model: PreTrainedModel, family: Family, tokenizer: Any, folder: Path | None, head: list[nn.Module]
) -> Transformer:
    kind = Encoder if family.kind == "encoder" else Decoder
    return kind(model, family, tokenizer=tokenizer, folder=folder, head=head)


def _family(model_type: str, place: str) -> Family:
    family = find(model_type)
    if family is None:
        hint = "; of gemma3, open the text model" if model_type == "gemma3" else ""
        raise UnsupportedError(
            f"{place} is of the architecture {model_type!r}, which secateur can't prune: "
            f"it knows {', '.join(sorted(FAMILIES))}{hint}"
        )
    return family


def _refuse_missing(source: str, folder: Path) -> None:
    """A file, or a path that isn't there; what may be a Hub id passes."""
    if folder.is_file():
        raise ModelError(f"{source} is a file: give the folder that holds config.json and model.safetensors")
    looks_local = source.startswith((".", "/", "~", "\\")) or source.count("/") > 1 or not source.strip()
    if looks_local or (folder.parent != Path(".") and folder.parent.exists()):
        raise ModelError(
            f"no model at {source!r}: expected a folder with config.json and model.safetensors, or a Hub id"
        )


def _check_folder(folder: Path, trust_remote_code: bool) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is no model folder: it has no config.json")
    data = saving.read_json(folder / "config.json")
    if not isinstance(data, dict) or "model_type" not in data:
        raise ModelError(f"{folder / 'config.json'} is damaged: it names no model_type")
    if "auto_map" in data and "per_layer_config" not in data and not trust_remote_code:
        raise ModelError(
            f"{folder} carries modelling code of its own, which is not run unasked: "
            "pass trust_remote_code=True if you trust it"
        )
    _family(data["model_type"], str(folder))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = [path.name for pattern in _PICKLES for path in folder.glob(pattern)]
        if pickles:
            raise ModelError(
                f"{folder} has its weights only as a pickle ({pickles[0]}), which is never opened: "
                "save the model again as safetensors"
            )
        raise ModelError(f"{folder} has no weights: expected model.safetensors")
    for path in files:
        _check_safetensors(path)


def _check_safetensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            opened.keys()
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is damaged or truncated ({_line(error)}): fetch it again") from error


def _read(
    place: str, local: bool, trust_remote_code: bool, dtype: torch.dtype | str | None
) -> tuple[PreTrainedModel, Family]:
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)
    except Exception as error:
        what = (
            f"{Path(place) / 'config.json'} can't be used"
            if local
            else f"{place!r} is no folder here, and the Hub gave no model"
        )
        raise ModelError(f"{what} ({_line(error)})") from error
    family = _family(config.model_type, place)
    named = next((saving.original(name) for name in (config.architectures or []) if saving.original(name)), None)
    if named is None:
        automatic = AutoModel if family.kind == "encoder" else AutoModelForCausalLM
        named = automatic._model_mapping[type(config)]
    kind = saving.architecture(named, config, family)
    options = {} if dtype is None else {"dtype": dtype}
    try:
        model, report = kind.from_pretrained(
            place, config=config, use_safetensors=True, output_loading_info=True, **options
        )
    except Exception as error:
        raise ModelError(f"the weights of {place} can't be loaded as {kind.__name__} ({_line(error)})") from error
    missing = sorted(name for name in report["missing_keys"] if "pooler" not in name)
    if missing:
        raise ModelError(
            f"the weights of {place} lack {missing[0]} ({len(missing)} tensors are missing): fetch them again"
        )
    return model.eval(), family


def _check_finite(model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter).all()):
            raise ModelError(f"{name} holds NaN or infinity: this checkpoint is broken, use an intact one")


def _module(entry: dict[str, Any], folder: Path) -> nn.Module:
    """A sentence-transformers module after the transformer."""
    kind = entry["type"]
    if not kind.startswith("sentence_transformers."):
        raise ModelError(f"modules.json names {kind}, which is code outside sentence-transformers and is not run")
    try:
        importlib.import_module("sentence_transformers")
    except ImportError as error:
        raise MissingExtraError("this is a sentence-transformers folder: pip install 'secateur[embed]'") from error
    from sentence_transformers.util import import_from_string

    try:
        module: nn.Module = import_from_string(kind).load(str(folder), subfolder=entry["path"])
    except Exception as error:
        raise ModelError(f"the module {kind} of {folder} can't be loaded ({_line(error)})") from error
    return module.eval()


def _line(error: BaseException) -> str:
    """An outside error on one line."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]
