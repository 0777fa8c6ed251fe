"""Checkpoints of published pruners: their tensors as those of a transformers classifier and a head for tokens.

Three layouts, none of which transformers knows, and each of which comes with code of its own that is not run:

- `model_type: Provence` (Naver, DeBERTa-v3) and `XProvence` (XLM-RoBERTa): the backbone, `classifier` on its pooled
  first token, and `token_classifier` on its last hidden state. The question is read in lower case and without
  punctuation, one separator stands between it and the passage, and a sentence stays where the share of its tokens with
  p > T is above T. Sources: github.com/naver/bergen, scripts/provence (model and trainer, commit bc919a9), and two
  independent readers of the published checkpoints.
- `model_type: open_provence` (OpenProvence): `ranking_model.*`, any classifier of transformers, described by
  `base_model_config`, and `pruning_head.classifier` on what its last layer gives, before a final norm. Each sentence
  has the blank behind it, and stays where the mean p is above T. Its score is the sigmoid of ours. Source:
  github.com/hotchpotch/open_provence, modeling_open_provence_standalone.py (commit 9635cbc), with transformers 4.57.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file

from secateur._utils import checkpoints
from secateur.errors import ModelError, SecateurError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig

__all__ = [
    "Checkpoint",
    "building",
    "check_leftovers",
    "check_shapes",
    "describe_licence",
    "find_file",
    "is_pretraining_head",
    "open_published",
    "read_config",
]


class Checkpoint(NamedTuple):
    """config, tensors: of the classifier, by the names that transformers gives them. head: `weight` [2, d] and `bias`
    [2] of the second head. settings: of `rerankers.Settings`.
    """

    config: PreTrainedConfig
    tensors: dict[str, Tensor]
    head: dict[str, Tensor]
    settings: Mapping[str, object]


@dataclass(frozen=True)
class _Layout:
    """head: the name of the head's linear layer. backbone: what transformers calls it; "" where the config says.

    names: (pattern, replacement) of other tensors, in this order. settings: how its own code reads and rounds.
    """

    head: str
    backbone: str
    names: tuple[tuple[str, str], ...]
    settings: Mapping[str, object] = field(default_factory=dict)


_NAVER: Mapping[str, object] = {"rounding": "share", "plain_question": True, "one_separator": True}
_NAVER_LICENCE = "cc-by-nc-nd-4.0"
_LAYOUTS = {
    "Provence": _Layout("token_classifier", "deberta-v2", (), {**_NAVER, "threshold": 0.1, "licence": _NAVER_LICENCE}),
    "XProvence": _Layout(
        "token_classifier",
        "xlm-roberta",
        # A pooler and a linear layer are what transformers' classifier of this family has as one head.
        (
            (r"^classifier\.(weight|bias)$", r"classifier.out_proj.\1"),
            (r"^roberta\.pooler\.dense\.", "classifier.dense."),
        ),
        {**_NAVER, "threshold": 0.3, "licence": _NAVER_LICENCE},
    ),
    "open_provence": _Layout(
        "pruning_head.classifier",
        "",
        ((r"^ranking_model\.", ""),),
        {"rounding": "mean", "threshold": 0.1, "blank_behind": True, "before_norm": True},
    ),
}
_SCORE = re.compile(r"(^|\.)(classifier|classifier\.out_proj|score)\.(weight|bias)$")
"""The tensors whose rows are classes."""
_BACKBONE = re.compile(r"\.position_ids$|(^|\.)pooler\.dense\.(weight|bias)$")
"""No heads: the counts 0, 1, 2, ... that older releases of transformers stored, and a pooler that nothing reads."""
_SHORTEST = 16
"""Tokens of the shortest block that a pruner reads; as `longest` of its training."""
_PRETRAINING = (
    "cls",
    "decoder",
    "discriminator_predictions",
    "generator_lm_head",
    "generator_predictions",
    "head",
    "lm_head",
    "lm_predictions",
    "mask_predictions",
    "vocab_layer_norm",
    "vocab_projector",
    "vocab_transform",
)
"""Heads that encoders are pretrained with."""


def read_config(name: str) -> dict[str, object]:
    """The config of a checkpoint, of whichever program; empty where there is none. `ModelError` for a damaged one."""
    path = find_file(name, "config.json")
    config = checkpoints.read_json(path) if path else {}
    if not isinstance(config, dict):
        raise ModelError(f"{path} is damaged: it holds no config by name: fetch the model again")
    return config


@contextmanager
def building(file: str) -> Iterator[None]:
    """Turn what transformers says of a file that it can't use into one `ModelError` that names it.

    A model that is not found, and memory that is full, pass as they are.
    """
    try:
        yield
    except (OSError, MemoryError, SecateurError):
        raise
    except Exception as error:  # each config and tokenizer checks itself, by errors without a common root
        raise ModelError(
            f"{file} can't be used ({' '.join(str(error).split())[:200]}): fetch the model again"
        ) from error


def find_file(name: str, file: str) -> Path | None:
    """A file of a folder or of a Hub id."""
    from transformers.utils import cached_file

    found = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    return Path(found) if found else None


def open_published(name: str, config: Mapping[str, object]) -> Checkpoint | None:
    """The checkpoint of a published pruner; None where `config` is of none.

    Raises `ModelError` for a `model_type` that neither transformers nor we know, for a head that is none, for a base
    model of which the config says nothing that can be built, and for settings out of their bounds.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = config.get("model_type")
    layout, file = _LAYOUTS.get(str(kind)), f"{name}/config.json"
    if layout is None:
        if kind is not None and str(kind) not in CONFIG_MAPPING:
            known = ", ".join(_LAYOUTS)
            raise ModelError(f"{file} has model_type {kind!r}: neither transformers' nor a pruner's ({known})")
        return None
    base = config if layout.backbone else config.get("base_model_config")
    if not isinstance(base, Mapping) or not (layout.backbone or base.get("model_type")):
        raise ModelError(f"{file} has no base_model_config with a model_type: its base model can't be built")
    backbone = layout.backbone or str(base["model_type"])
    if backbone not in CONFIG_MAPPING:
        raise ModelError(f"{file} has a base_model_config of model_type {backbone!r}, which transformers does not know")
    settings = {**layout.settings, **_read_settings(config, file)}
    tensors = _read_tensors(name)
    head = {part: tensors.pop(f"{layout.head}.{part}", None) for part in ("weight", "bias")}
    if head["weight"] is None or head["bias"] is None:
        raise ModelError(f"{name} has model_type {kind} and no {layout.head}: nothing in it says which tokens to keep")
    if not any(tensor.startswith("classifier.out_proj.") for tensor in tensors):
        for pattern, new in layout.names:
            tensors = {re.sub(pattern, new, tensor): values for tensor, values in tensors.items()}
    left_out = ("model_type", "architectures", "auto_map", "torch_dtype", "dtype", "num_labels", "id2label", "label2id")
    shape = {key: value for key, value in base.items() if key not in left_out}
    with building(file):
        built = AutoConfig.for_model(backbone, **shape, num_labels=1)
    tensors = {tensor: values[:1] if _SCORE.search(tensor) else values for tensor, values in tensors.items()}
    return Checkpoint(built, tensors, {part: tensor for part, tensor in head.items() if tensor is not None}, settings)


def _read_settings(config: Mapping[str, object], file: str) -> dict[str, object]:
    """What an OpenProvence config says of threshold (its program spells it so) and tokens of a block."""
    if "base_model_config" not in config:
        return {}
    spelt = "default_threadshold" if "default_threadshold" in config else "default_threshold"
    threshold, longest = config.get(spelt), config.get("max_length")
    if threshold is not None and not (isinstance(threshold, int | float) and 0 <= threshold <= 1):
        raise ModelError(f"{file} has {spelt} {threshold!r}, not a number from 0 to 1: mend it")
    if longest is not None and not (isinstance(longest, int) and longest >= _SHORTEST):
        raise ModelError(f"{file} has max_length {longest!r}, not a whole number of at least {_SHORTEST}: mend it")
    found = {"threshold": threshold, "longest": longest}
    return {setting: value for setting, value in found.items() if value is not None}


def _read_tensors(name: str) -> dict[str, Tensor]:
    """All tensors of a checkpoint in safetensors, of one file or several."""
    index = find_file(name, "model.safetensors.index.json")
    files = ["model.safetensors"]
    if index:
        files = sorted(set(checkpoints.read_index(index).values()))
    found: dict[str, Tensor] = {}
    for file in files:
        path = find_file(name, file)
        if path is None:
            raise ModelError(f"{name} has no {file}: only safetensors are read, nothing is unpickled")
        try:
            found |= load_file(path)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path} is damaged: copy it anew") from error
    return found


def check_leftovers(name: str, left: Iterable[str], lacking: Iterable[str] = ()) -> None:
    """Refuse tensors of a checkpoint that have no place in the model, and places that have no tensor.

    Raises `ModelError`, one line that names the first of them.
    """
    extra = sorted(tensor for tensor in left if not _BACKBONE.search(tensor))
    if extra:
        raise ModelError(
            f"{name} holds {_name_some(extra)}, which no part of the model takes: a head of unknown layout is not "
            f"dropped in silence, so give a checkpoint without it, or one of a known layout ({', '.join(_LAYOUTS)})"
        )
    if missing := sorted(lacking):
        raise ModelError(f"{name} lacks {_name_some(missing)}: copy it anew")


def check_shapes(name: str, other: Iterable[tuple[str, Sequence[int], Sequence[int]]]) -> None:
    """Refuse tensors (name, shape held, shape wanted) that have another shape than the config says, by one line."""
    for tensor, held, wanted in sorted(other):
        raise ModelError(
            f"{name} holds {tensor} of shape {tuple(held)}, and {name}/config.json says {tuple(wanted)}: fetch the "
            "model again"
        )


def is_pretraining_head(tensor: str) -> bool:
    """Whether a tensor is of a head that encoders are pretrained with, of which a classifier has no use."""
    return tensor.split(".")[0] in _PRETRAINING


def describe_licence(licence: str) -> tuple[str, ...]:
    """A note where a licence, as Hugging Face spells it, forbids commercial use."""
    if "nc" not in licence.lower().split("-"):
        return ()
    return (f"the model's licence is {licence}: not for commercial use",)


def _name_some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more tensors" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
