"""Models of transformers that are opened by their folder or Hub id and cut as networks of any kind.

What reads images or sound is a network to every command; what reads texts is one to `secateur prune` alone. A result
whose config describes it is a plain folder, as the original's was, with what reads its inputs beside it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from secateur._utils import plugins
from secateur.subjects.network.traced import Traced

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["describes", "is_pretrained", "make_inputs", "open_pretrained", "reads_texts", "save"]

_BESIDE = ("*.json", "*.txt", "*.model", "*.jinja", "LICEN[SC]E*", "NOTICE*")
"""What travels with the weights: tokenizer, processors, chat template, generation config, licence."""
_WRITTEN = ("config.json", "cut.json", "evidence.json", "model.safetensors.index.json")
"""What is written anew, or was the original's own record."""
_TOKENS = 12


def is_pretrained(source: object) -> bool:
    """Whether it names a folder with a config of transformers, or a Hub id."""
    if not isinstance(source, str | Path) or not str(source) or plugins.names_function(source):
        return False
    return (Path(source) / "config.json").is_file() or not Path(source).exists()


def reads_texts(source: str | Path) -> bool:
    """Whether the class that a folder's config names takes token ids; of what is not there, or names none, yes."""
    file = Path(source) / "config.json"
    if not file.is_file():
        return True
    from secateur.subjects.transformer import files, saving  # which load transformers

    said = files.read_json(file)
    named = said.get("architectures") if isinstance(said, Mapping) else None
    known = [saving.original_class(str(name)) for name in named or []]
    return next((kind.main_input_name == "input_ids" for kind in known if kind is not None), True)


def open_pretrained(source: str | Path) -> PreTrainedModel:
    """The model at `source`, of any class that transformers has. Raises as `subjects.open_subject` does."""
    from secateur.subjects.transformer import loading  # which loads transformers

    return loading.read_any(source)


def make_inputs(model: PreTrainedModel, batch: int = 2) -> dict[str, Tensor | bool]:
    """Short inputs of the model's own kind, drawn with a generator of their own: tokens, pixels, samples or frames."""
    draw, config = torch.Generator().manual_seed(0), model.config
    text = config.get_text_config()
    tokens = torch.randint(3, min(int(getattr(text, "vocab_size", 0) or 64), 30000), (batch, _TOKENS), generator=draw)
    name = model.main_input_name
    inputs: dict[str, Tensor] = {}
    if name == "pixel_values":
        part = getattr(config, "vision_config", None) or config
        size = getattr(part, "image_size", None) or 224
        sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
        inputs[name] = torch.randn(batch, getattr(part, "num_channels", 3), *sides, generator=draw)
    elif name == "input_values":
        inputs[name] = torch.randn(batch, 16000, generator=draw)
    elif name == "input_features":
        bins = getattr(config, "num_mel_bins", None) or getattr(config, "feature_size", None) or 80
        frames = 2 * (getattr(config, "max_source_positions", None) or 100)
        inputs[name] = torch.randn(batch, bins, frames, generator=draw)
    else:
        inputs[name] = tokens
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens[:, : _TOKENS // 2]
    dtype, whole = model.dtype, {"use_cache": False} if getattr(config, "use_cache", False) else {}
    return {key: one.to(dtype) if one.is_floating_point() else one for key, one in inputs.items()} | whole


def describes(model: nn.Module) -> bool:
    """Whether a model's class builds tensors of its shapes from its config, so that `from_pretrained` loads it."""
    if not hasattr(model, "save_pretrained") or not hasattr(model, "config"):
        return False
    config = cast("PreTrainedModel", model).config
    try:
        with torch.device("meta"):
            built = type(model)(type(config).from_dict(config.to_dict()))
    except Exception:  # whatever a class says against it
        return False
    shapes, own = ({name: one.shape for name, one in each.state_dict().items()} for each in (built, model))
    return shapes == own


def save(subject: Traced, folder: Path, original: str) -> None:
    """Write a model that its config describes, and beside it what the folder at `original` has beside its weights."""
    from secateur.subjects.transformer import loading  # which loads transformers

    folder.mkdir(parents=True, exist_ok=True)
    cast("PreTrainedModel", subject.model).save_pretrained(folder)
    home = loading.locate(original)
    for pattern in _BESIDE:
        for path in home.glob(pattern):
            if path.is_file() and path.name not in _WRITTEN and not (folder / path.name).exists():
                shutil.copyfile(path, folder / path.name)
