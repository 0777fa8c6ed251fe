"""Models built for weights that are still to come, with what no file holds as `from_pretrained` has it."""

from __future__ import annotations

import copy

import torch
from accelerate import init_empty_weights
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from secateur._utils.modes import default_dtype

__all__ = ["make_blank"]


def make_blank(kind: type[PreTrainedModel], config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model of that class whose weights, of that number type, were never filled.

    Buffers that no file holds have the number type that the class gives them in a model of `dtype`, sinusoids that of
    the weights, say, and values that were computed in single precision: frequencies of rotary positions that were
    computed in half are others.
    """
    with no_init_weights(), default_dtype(dtype):
        model = kind(config)
    if dtype is not torch.float32:
        exactly = _with_dtype(copy.deepcopy(config), torch.float32)
        with no_init_weights(), default_dtype(torch.float32), init_empty_weights(include_buffers=False):
            exact = dict(kind(exactly).named_buffers())
        held = model.state_dict().keys()
        for name, buffer in model.named_buffers():
            if name not in held and not exact[name].is_meta:  # as what stands for a norm that went
                buffer.copy_(exact[name])
    return model


def _with_dtype(config: PretrainedConfig, dtype: torch.dtype) -> PretrainedConfig:
    """`config` with a number type, also of its parts: these are built in what their own config says."""
    config.dtype = dtype
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if isinstance(part, PretrainedConfig):
            _with_dtype(part, dtype)
    return config
