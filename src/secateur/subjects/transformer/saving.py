"""Save a result: with a plain config where possible, else with a generated modelling file."""

from __future__ import annotations

import inspect
import json
import logging
import pprint
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import transformers
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.utils import logging as transformers_logging

from secateur._utils import bars
from secateur.errors import UnsupportedError
from secateur.formats import reload, sliced
from secateur.subjects.network.pretrained import copy_beside
from secateur.subjects.transformer import dequantising, low_rank
from secateur.subjects.transformer.families import Family

if TYPE_CHECKING:
    from secateur.subjects.transformer.subject import Transformer

__all__ = [
    "MAP",
    "architecture",
    "classes",
    "has_stacks",
    "is_reshaped",
    "is_sliced",
    "list_automatic",
    "list_made",
    "mark_config",
    "mark_form",
    "module_source",
    "name_form",
    "needs_module",
    "original_class",
    "plain_class",
    "quiet_progress",
    "save",
    "write_module",
    "write_source",
]

MAP = "cut_map.json"
"""Name of the file that says what a result was cut from, and what of it stays, see `origin`."""

_MODULE = "modeling_secateur"
_PREFIX = "Secateur"
_AUTO = (
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForMaskedLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForImageTextToText",
    "AutoModelForCTC",
    "AutoModelForAudioClassification",
)

# transformers' own validator reads every value of a heterogeneous config, and then warns of it.
logging.getLogger("transformers.integrations.heterogeneity.configuration_utils").addFilter(
    lambda record: not record.getMessage().startswith("Reading global config value")
)

_LONG = 2 * 2**30
"""Bytes of weights that take long enough to load or write for a bar."""


@contextmanager
def quiet_progress(size: int) -> Iterator[None]:
    """Without transformers' progress bars, unless `size` bytes take a while and somebody looks."""
    shown = transformers_logging.is_progress_bar_enabled()
    if shown and not (size > _LONG and bars.are_shown()):
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def plain_class(model: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """transformers' own class of a model: itself, or what its `Resized` form, or torch's sharding, was mixed into.

    Raises `UnsupportedError` for a class of somebody else's, whose forward pass a cut would not have.
    """
    for base in model.__mro__:
        if base.__module__.startswith("transformers.models."):
            return base
        if not (base.__module__.startswith(("secateur.formats.", "torch.")) or base.__module__.endswith(_MODULE)):
            break
    raise UnsupportedError(f"{model.__name__} is no class of transformers' own: secateur.prune takes any network")


def architecture(model: type[PreTrainedModel], config: PreTrainedConfig, family: Family) -> type[PreTrainedModel]:
    """The class that builds `config`: transformers' own, or its `Resized` or `Sliced` form where that is none."""
    plain = plain_class(model)
    if not needs_module(config):
        return plain
    home, mixin, table = _form_of(config, family)
    name = _PREFIX + plain.__name__
    known = vars(home).get(name)
    if known is None or known.family != table:  # tables are tried out for a class whose family is derived
        body = {"family": table, "__module__": home.__name__, "__doc__": f"{plain.__name__}, {mixin.__name__.lower()}."}
        known = type(name, (mixin, plain), body)
        setattr(home, name, known)  # where pickling by name looks for it
    made: type[PreTrainedModel] = known
    return made


def is_sliced(config: PreTrainedConfig | Mapping[str, object]) -> bool:
    """Whether the residual stream of a config's model, or of a config.json's, was rotated and sliced."""
    said = config.get("secateur") if isinstance(config, Mapping) else getattr(config, "secateur", None)
    return isinstance(said, Mapping) and "widths" in said


def has_stacks(config: PreTrainedConfig | Mapping[str, object]) -> bool:
    """Whether a config, or a config.json, says widths of single layers of stacks that `per_layer_config` can't tell."""
    said = config.get("secateur") if isinstance(config, Mapping) else getattr(config, "secateur", None)
    return isinstance(said, Mapping) and "layers" in said


def is_reshaped(config: PreTrainedConfig | Mapping[str, object]) -> bool:
    """Whether a config, or a config.json, names shapes of single tensors: of a network cut in no whole units."""
    said = config.get("secateur") if isinstance(config, Mapping) else getattr(config, "secateur", None)
    return isinstance(said, Mapping) and "shapes" in said


def needs_module(config: PreTrainedConfig) -> bool:
    """Whether transformers' own class can't build the model, so that a modelling file travels with its weights."""
    ours = config.is_heterogeneous and config.allow_global_per_layer_attribute_access  # some classes have own ones
    return bool(ours) or is_sliced(config) or has_stacks(config)


def _form_of(config: PreTrainedConfig, family: Family) -> tuple[ModuleType, type, Mapping[str, object]]:
    """The module that rebuilds such a model, its class to mix in, and what of the family's table this class reads."""
    if is_sliced(config):
        return sliced, sliced.Sliced, family.stream()
    return reload, reload.Resized, family.plain()


def original_class(name: str) -> type[PreTrainedModel] | None:
    """transformers' class of an architecture's name as written by us or by transformers."""
    return getattr(transformers, name.removeprefix(_PREFIX), None)


def classes(config: PreTrainedConfig) -> dict[str, type[PreTrainedModel]]:
    """Auto class -> transformers' class for this config, where there is one."""
    found = {}
    for auto in _AUTO:
        model = getattr(transformers, auto)._model_mapping.get(type(config), None)
        if model is not None:
            found[auto] = model[0] if isinstance(model, (list, tuple)) else model
    return found


def mark_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """`config` naming the modelling file that has to travel with it."""
    config.auto_map = {auto: f"{_MODULE}.{_PREFIX}{model.__name__}" for auto, model in classes(config).items()}
    return config


def name_form(model: type[PreTrainedModel]) -> str:
    """What the form of a class of transformers is called that stands in a modelling file."""
    return _PREFIX + model.__name__


def mark_form(config: PreTrainedConfig, model: type[PreTrainedModel]) -> bool:
    """Let `config` name that form to all automatic classes, of any task, that make `model`; whether one does."""
    config.auto_map = {name: f"{_MODULE}.{name_form(model)}" for name in list_automatic(model.__name__)}
    return bool(config.auto_map)


def list_automatic(architecture: str) -> list[str]:
    """The automatic classes of transformers, of any task, that make the class of this name."""
    known = (name for name in dir(modeling_auto) if name.startswith("AutoModel"))
    return [name for name in known if architecture in list_made(name)]


def list_made(automatic: str) -> set[str]:
    """Names of the classes that an automatic class of transformers makes; none of them is loaded."""
    names = getattr(modeling_auto, automatic)._model_mapping._model_mapping.values()
    return {name for each in names for name in ([each] if isinstance(each, str) else each)}


def module_source(config: PreTrainedConfig, family: Family) -> str:
    """The modelling file: `reload.py` or `sliced.py`, the family's table, and one class per task."""
    models = {model.__name__: model for model in classes(config).values()}
    home, mixin, table = _form_of(config, family)
    parts = [
        "# Written by secateur beside a pruned model; licensed under Apache-2.0.\n" + inspect.getsource(home).rstrip(),
        "FAMILY = " + pprint.pformat(table, width=110, sort_dicts=False),
    ]
    parts += [
        f"from transformers import {name}  # noqa: E402\n\n\n"
        f"class {_PREFIX}{name}({mixin.__name__}, {name}):\n"
        f'    """{name} with layers of their own widths."""\n\n    family = FAMILY'
        for name in sorted(models)
    ]
    return "\n\n\n".join(parts) + "\n"


def write_module(config: PreTrainedConfig, family: Family, folder: Path) -> None:
    """Write the modelling file into `folder`, where the weights need one."""
    if needs_module(config):
        (folder / f"{_MODULE}.py").write_text(module_source(config, family), encoding="utf-8")


def write_source(source: str, folder: Path) -> None:
    """Write the modelling file of another form into `folder`."""
    (folder / f"{_MODULE}.py").write_text(source, encoding="utf-8")


def save(subject: Transformer, folder: Path, card: str | None = None, state: dict[str, Tensor] | None = None) -> None:
    """Write model, tokenizer, generation config, processors, licence, map, card and sentence-transformers modules.

    Everything lands in `folder`, which is made if need be. Weights are safetensors. The transformer stands at the
    folder's root, whatever the original's layout was, so that `from_pretrained(folder)` works. Branches beside its
    linears lie in a folder of their own (`sides`). `state` takes the place of the model's own tensors. Raises
    `UnsupportedError`, before anything is written, for weights that are integers and can't be.
    """
    dequantising.refuse_unwritable(subject.model)
    folder.mkdir(parents=True, exist_ok=True)
    origin = subject.origin.describe(subject.layout)  # before the files that it speaks of are overwritten
    model, config = subject.model, subject.model.config
    recorded = getattr(config, "secateur", None) or {}
    if list(subject.layer_index) != list(range(len(subject.layers()))):
        config.secateur = recorded | {"layer_index": list(subject.layer_index)}
    if needs_module(config):
        mark_config(config)  # a class may work on a copy of its config, which has lost this
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    with quiet_progress(size), low_rank.without_branches(model) as branches:
        model.save_pretrained(folder, **({} if state is None else {"state_dict": state}))
    low_rank.save(branches, folder / low_rank.FOLDER, conv1d=subject.family.conv1d)
    write_module(config, subject.family, folder)
    (folder / MAP).write_text(origin, encoding="utf-8")
    if subject.tokenizer is not None:
        subject.tokenizer.save_pretrained(folder)
    if subject.folder is not None and subject.folder.is_dir():
        copy_beside(subject.folder, folder, tokenizer=False)  # which was saved as it is by now
    if subject.head:
        _save_modules(subject, folder)
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")


def _save_modules(subject: Transformer, folder: Path) -> None:
    """The sentence-transformers layout: modules.json and one folder per module."""
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for index, module in enumerate(subject.head, start=1):
        kind: Any = type(module)
        path = f"{index}_{kind.__name__}"
        (folder / path).mkdir(exist_ok=True)
        kind.save(module, str(folder / path))
        public = f"sentence_transformers.models.{kind.__name__}"
        modules.append({"idx": index, "name": str(index), "path": path, "type": public})
    (folder / "modules.json").write_text(json.dumps(modules, indent=2), encoding="utf-8")
    for name in ("config_sentence_transformers.json", "sentence_bert_config.json"):
        origin = subject.folder / name if subject.folder is not None else None
        if origin is not None and origin.is_file() and origin.resolve() != (folder / name).resolve():
            shutil.copyfile(origin, folder / name)
