"""What is wrong with a config by which a model can't be built or run: sizes of 0, and others than its weights have."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from transformers import PretrainedConfig, PreTrainedModel

from secateur.errors import ModelError
from secateur.subjects.transformer import files

__all__ = ["STORED_OTHERWISE", "describe_misfit", "describe_zeros"]

_SIZE = re.compile(r"(^|_)(heads|size|dim|width|channels|groups|embd|hidden_layers)$|^(d|n)_[a-z]+$")
"""Settings that are sizes or numbers of parts."""
STORED_OTHERWISE = frozenset(("quantization_config", "per_layer_config", "secateur"))
"""Settings by which weights are stored in other shapes than the class has."""


def describe_zeros(config: PretrainedConfig) -> str:
    """Which sizes a config says are 0, as a division by one of them does not tell; "" where none is."""
    text = config.get_text_config()
    zeros = [name for name, value in text.to_dict().items() if value == 0 and type(value) is int and _SIZE.search(name)]
    return f"{' and '.join(zeros)} {'is' if len(zeros) == 1 else 'are'} 0 in config.json: correct it" if zeros else ""


def describe_misfit(model: PreTrainedModel) -> str:
    """Where a model by its config has another shape than the folder has that this was read from; "" where it has none.

    model: without values. Nothing is known where its config names no folder, as `name_or_path`.
    """
    folder = Path(model.name_or_path)
    if not (folder / "config.json").is_file():
        return ""
    stored = dict[str, list[int]]()
    with suppress(ModelError, OSError, SafetensorError):  # whoever opens them is told
        stored = files.read_shapes(files.find_tensors(folder))
    for name, tensor in model.state_dict().items():
        if list(tensor.shape) != stored.get(name, list(tensor.shape)):
            return (
                f"config.json of {folder} gives other sizes than its weights have, such as {name} "
                f"{list(tensor.shape)}, where the file has {stored[name]}: correct it"
            )
    return ""
