"""Models of which no config of their class says what a cut has left: saved with a modelling file that does.

What the file builds is told by `config.secateur["layers"]`: path of a module -> the shapes and numbers of its own, see
`formats.narrowed`. So a result of any class of transformers loads, whatever was cut of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from secateur.formats import narrowed
from secateur.subjects.network import configs
from secateur.subjects.transformer import saving

__all__ = ["is_narrowed", "list_layers", "narrowed_class", "save"]

_MODULE = "modeling_secateur"


def is_narrowed(config: PreTrainedConfig | Mapping[str, object]) -> bool:
    """Whether a config, or a config.json, says shapes of single modules."""
    said = config.get("secateur") if isinstance(config, Mapping) else getattr(config, "secateur", None)
    return isinstance(said, Mapping) and isinstance(said.get("layers"), Mapping)


def narrowed_class(kind: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The class that builds such a model, of transformers' own, by whose name that renames tensors of checkpoints."""
    name = kind.__name__
    known: type[PreTrainedModel] | None = vars(narrowed).get(name)
    if known is None:
        body = {"__module__": narrowed.__name__, "__doc__": f"{kind.__name__}, narrowed."}
        known = type(name, (narrowed.Narrowed, kind), body)
        setattr(narrowed, name, known)  # where pickling by name looks for it
    return known


def list_layers(model: PreTrainedModel) -> narrowed.Layers | None:
    """Path of a module -> what it has otherwise than its class builds it from its config, as `narrowed.narrow` has it.

    None where that is more than shapes and numbers, or no automatic class would find the file.
    """
    kind, config = saving.plain_class(type(model)), model.config
    if kind not in saving.classes(config).values():
        return None
    with torch.device("meta"):
        found = configs.find_differences(kind(type(config).from_dict(config.to_dict())), model)
    if found is None:
        return None
    shapes, numbers = found
    passing = {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    }
    if passing & shapes.keys():  # of which no file holds the values
        return None
    layers: narrowed.Layers = {}
    for tensor, shape in shapes.items():
        path, _, leaf = tensor.rpartition(".")
        layers.setdefault(path, {"shapes": {}, "numbers": {}})["shapes"][leaf] = list(shape)
    for (path, name), value in numbers.items():
        layers.setdefault(path, {"shapes": {}, "numbers": {}})["numbers"][name] = value
    return layers


def save(model: PreTrainedModel, folder: Path) -> bool:
    """Write the model with its modelling file; returns whether it can be."""
    layers, config = list_layers(model), model.config
    if layers is None:
        return False
    kind = saving.plain_class(type(model))
    config.secateur = {**(getattr(config, "secateur", None) or {}), "layers": layers}
    config.auto_map = {
        auto: f"{_MODULE}.{kind.__name__}" for auto, one in saving.classes(config).items() if one is kind
    }
    model.save_pretrained(folder)
    source = [
        "# Written by secateur beside a pruned model; licensed under Apache-2.0.\n"
        + inspect.getsource(narrowed).rstrip(),
        "import transformers  # noqa: E402\n\n\n"
        f"class {kind.__name__}(Narrowed, transformers.{kind.__name__}):\n"
        f'    """{kind.__name__} with modules of their own sizes."""',
    ]
    (folder / f"{_MODULE}.py").write_text("\n\n\n".join(source) + "\n", encoding="utf-8")
    return True
