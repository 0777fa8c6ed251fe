"""Networks cut from a model of transformers whose sizes no config can say, as folders that `from_pretrained` loads.

Nothing here knows a class. What the cut model has otherwise than its class builds from its config, shapes of tensors
and numbers of modules, stands in that config, and a modelling file of a few lines applies it (`formats.reshaped`).
"""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import cast
from weakref import WeakKeyDictionary

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from secateur.errors import ModelError
from secateur.formats import reshaped as form
from secateur.subjects.network import configs
from secateur.subjects.network.proof import TOLERANCE, differences
from secateur.subjects.network.recording import tensors_of
from secateur.subjects.network.traced import Traced
from secateur.subjects.transformer import saving
from secateur.subjects.transformer.blank import make_blank

__all__ = ["build", "choose_class", "save"]


_BUILT = WeakKeyDictionary[nn.Module, tuple[object, PreTrainedModel | None]]()
"""Network -> its tensors when `build` was last asked about it, and the answer."""


def build(subject: Traced) -> PreTrainedModel | None:
    """The network as a model that such a folder loads as; it shares the weights.

    None where modules went or came, where no automatic class of transformers makes the model's class, where a recipe's
    modelling file is needed beside, or where the model, built so, gives other outputs on the example inputs. Asked
    again of a network whose tensors are where they were, the answer is the same.
    """
    network = subject.model
    tensors = [(name, one.shape, one.data_ptr()) for name, one in tensors_of(network).items()]
    known = _BUILT.get(network)
    if known is None or known[0] != tensors:
        known = _BUILT[network] = tensors, _build(subject)
    return known[1]


def _build(subject: Traced) -> PreTrainedModel | None:
    try:
        network = cast(PreTrainedModel, subject.model)
        plain, config = saving.plain_class(type(network)), copy.deepcopy(network.config)
        sizes = None if saving.needs_module(config) else configs.list_own(network, plain)
        if sizes is None or not saving.mark_form(config, plain):
            return None
        numbers = {(path, name): value for path, name, value in sizes["numbers"]}
        for path, name in {(path, name) for made in subject.plans for path, name, _ in made.attributes}:
            numbers[path, name] = getattr(network.get_submodule(path), name)
        sizes["numbers"] = [[*place, value] for place, value in sorted(numbers.items())]
        config.secateur = (getattr(config, "secateur", None) or {}) | sizes
        with configs.Hollow():
            model = make_blank(_make_class(plain), config, network.dtype)
        buffers = dict(network.named_buffers())
        model.load_state_dict(network.state_dict() | {name: buffers[name] for name in sizes["buffers"]}, assign=True)
        model.tie_weights()
        if network.can_generate():
            model.generation_config = network.generation_config
        apart = differences(Traced(model.eval(), subject.inputs).forward(), subject.forward())
    except Exception:  # whatever a class has against it: the cut stands without such a folder
        return None
    return model if apart <= TOLERANCE else None


def save(model: PreTrainedModel, folder: Path) -> None:
    """Write what `build` made, and its modelling file, into `folder`."""
    model.save_pretrained(folder)
    plain = saving.plain_class(type(model))
    name = plain.__name__
    source = (
        "# Written by secateur beside a pruned model; licensed under Apache-2.0.",
        inspect.getsource(form).rstrip(),
        f"\n\nfrom transformers import {name}  # noqa: E402",
        f'\n\nclass {saving.name_form(plain)}(Reshaped, {name}):\n    """{name} with sizes of its own."""\n',
    )
    saving.write_source("\n".join(source), folder)


def choose_class(kind: type[PreTrainedModel], config: PretrainedConfig) -> type[PreTrainedModel]:
    """The class that builds `config`: `kind`, or its `Reshaped` form where the config names sizes.

    Raises `ModelError` for a config that names some of what the form needs alone.
    """
    if not saving.is_reshaped(config):
        return kind
    lacking = [name for name in ("shapes", "numbers", "buffers") if name not in config.secateur]
    if lacking:
        raise ModelError(f'"secateur" in config.json lacks {", ".join(lacking)}: it is damaged, so fetch it again')
    return _make_class(saving.plain_class(kind))


def _make_class(plain: type[PreTrainedModel]) -> type[PreTrainedModel]:
    name = saving.name_form(plain)
    known = vars(form).get(name)
    if known is None:
        body = {"__module__": form.__name__, "__doc__": f"{plain.__name__} with sizes of its own."}
        known = type(name, (form.Reshaped, plain), body)
        setattr(form, name, known)  # where pickling by name looks for it
    made: type[PreTrainedModel] = known
    return made
