"""The table of a family that is not written by hand, derived from the network analysis of a small copy of the model.

No family is known by name. Cuts of the copy are compared with the same units silenced; an axis that fails stays whole,
with the reason. What was found is kept on the disk, by class, structure and version of transformers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
import transformers
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

import secateur
from secateur._utils.disk import cache_folder, writing
from secateur.errors import SecateurError, UnsupportedError
from secateur.subjects.network.traced import open_traced
from secateur.subjects.transformer.families import Family, find
from secateur.subjects.transformer.making import make_subject
from secateur.subjects.transformer.small_copy import (
    TOKENS,
    copy_small,
    describe_error,
    draw_apart,
    list_kinds,
    make_tokens,
    plain_config,
    run_model,
    shrink_config,
)
from secateur.subjects.transformer.subject import AXES, Transformer
from secateur.subjects.transformer.table_reader import read_family
from secateur.vocabulary import Selection

__all__ = ["derive", "find_family", "prove"]

_KINDS = [axis for axis in AXES if axis != "layers"] + ["layers"]
_DEPTH = 8
"""Layers of the copy on which the loss of one is tried: kinds of layers alternate by two to six."""
_FAMILY = TypeAdapter(Family)
_known: dict[str, Family] = {}


def find_family(architecture: type[PreTrainedModel], config: PretrainedConfig) -> Family:
    """The family of a model class: written by hand, or derived once and kept.

    Raises `UnsupportedError` where no table fits it.
    """
    written = find(config.model_type)
    if written is not None:
        return written
    small = shrink_config(config)
    outline = _build_outline(architecture, config)
    kinds = sorted(set(list_kinds(outline)))
    said = [architecture.__name__, small.to_json_string(), kinds, transformers.__version__, _digest()]
    key = hashlib.sha256(json.dumps([*said, secateur.__version__]).encode()).hexdigest()[:24]
    if key not in _known:
        _known[key] = _read_kept(key) or _derive_and_keep(outline, key)
    return _known[key]


@cache
def _digest() -> str:
    """Of the code that derives: what other code has found is not used."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def _read_kept(key: str) -> Family | None:
    try:
        return _FAMILY.validate_json(_file(key).read_bytes())
    except (OSError, ValidationError):  # not there, or of another version: derived again
        return None


def _build_outline(architecture: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    try:
        with torch.device("meta"):
            return architecture(plain_config(config))
    except Exception as error:
        raise UnsupportedError(f"{architecture.__name__} can't be built ({describe_error(error)})") from error


def _derive_and_keep(outline: PreTrainedModel, key: str) -> Family:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # its tensors are so small that threads would only wait for one another
    try:
        family = derive(outline)
    finally:
        torch.set_num_threads(threads)
    with writing(_file(key)) as path:
        path.write_bytes(_FAMILY.dump_json(family))
    return family


def _file(key: str) -> Path:
    return cache_folder() / "families" / f"{key}.json"


class _Read(nn.Module):
    """A model whose last states are read, so that nothing but its own use of them keeps channels."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.reader = nn.Linear(model.config.hidden_size, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, S] -> the logits, or one number for each last state."""
        out = run_model(self.model, tokens)
        if "logits" in out:
            logits: Tensor = out.logits
            return logits
        states: Tensor = self.reader(out.last_hidden_state)
        return states if out.get("pooler_output") is None else states[:, 0] + self.reader(out.pooler_output)


def derive(model: PreTrainedModel) -> Family:
    """The table of `model`'s family, as `families.FAMILIES` has it for those written by hand.

    Only its config and the names of its weights are read: it may lie on the meta device. Raises `UnsupportedError`
    naming what fits no table: no one list of layers, or nothing that could be cut.
    """
    with draw_apart():
        return _derive(model)


def _derive(model: PreTrainedModel) -> Family:
    small = copy_small(model)
    try:
        groups = open_traced(_Read(small), (make_tokens(),), prove=False).groups()
    except SecateurError as error:
        raise UnsupportedError(f"{type(model).__name__} can't be traced ({describe_error(error)})") from error
    family = prove(small, read_family(small, groups))
    return family if "layers" in family.whole else _prove_depth(model, family)


def _prove_depth(model: PreTrainedModel, family: Family) -> Family:
    """`family`, its layers whole where what a layer does goes by its index: patterns are longer than two layers."""
    depth = min(_DEPTH, int(model.config.num_hidden_layers))
    deep = copy_small(model, range(depth))
    subject, kinds = make_subject(deep, family), list_kinds(deep)
    several = [kind for kind in set(kinds) if kinds.count(kind) > 1]
    first = {kinds.index(kind) for kind in several} if len(set(kinds)) > 1 else {1}
    trials = [{"layers": np.arange(depth) != gone} for gone in sorted(first)] if depth > 1 else []
    why = next((why for keep in trials if (why := _compare(subject, "layers", keep))), "")
    return replace(family, whole={**family.whole, "layers": why}) if why else family


def prove(tiny: PreTrainedModel, family: Family) -> Family:
    """`family` with every axis whole that can't be cut: the cut is no model, or differs from the same units silenced.

    Raises `UnsupportedError` where nothing can be cut.
    """
    whole, failed = dict(family.whole), dict[str, str]()
    attentions = [block for block in family.blocks if block.kind == "attention"]
    if attentions and not any(
        "heads" in axis or "kv" in axis for block in attentions for axes in block.tensors.values() for axis in axes
    ):
        whole["heads"] = "the rows of its attention's linears can't be told apart by heads"
    for kind in _KINDS:
        if kind == "heads" and "heads" in whole:
            continue
        if kind == "layers" and len(set(list_kinds(tiny))) > 1:
            continue  # a copy of one layer of each kind has none that could go
        others = ({"own_config": True}, {"keeps_heads": True}) if kind == "heads" else ()
        for changes in ({}, *others):
            trial = replace(family, **changes)
            why = _try_cut(make_subject(tiny, trial), kind)
            if not why:
                family = trial
                break
        else:
            failed[kind] = why
    whole |= failed
    if {site.kind for site in make_subject(tiny, family).units().sites.values()} <= whole.keys():
        raise UnsupportedError(f"{type(tiny).__name__}: {next(iter(failed.values()))}")
    return replace(family, whole=whole)


def _try_cut(subject: Transformer, kind: str) -> str:
    """Cut half of everything of one kind off; what is wrong with the result, "" where it is as it should be."""
    units = subject.units()
    sites = {name: site.count for name, site in units.sites.items() if name.rpartition(".")[2] == kind}
    keep = {name: np.arange(count) % 2 == 0 for name, count in sites.items()}
    if kind in ("layers", "attention", "ffn", "mixer"):  # those that go may be the first, built in another way
        trials = [keep, {name: ~stays for name, stays in keep.items()}]
    else:  # layers of unequal widths are built by other means
        trials = [keep, *([dict(list(keep.items())[:1])] if len(keep) > 1 else [])]
    return next((why for one in trials if (why := _compare(subject, kind, one))), "")


def _compare(subject: Transformer, kind: str, keep: Mapping[str, np.ndarray]) -> str:
    if not keep:
        return ""
    batch = subject.example(2, TOKENS)
    try:
        with torch.no_grad():
            cut = subject.cut(Selection(keep))[0].forward(batch).prediction
            silenced = subject.silence(Selection(keep)).forward(batch).prediction
    except Exception as error:
        return f"a cut of its {kind} fails: {type(error).__name__}: {describe_error(error)}"
    if kind == "channels" and cut.shape != silenced.shape:
        silenced = silenced[..., keep["channels"]]
    difference = float((cut - silenced).abs().max() / silenced.abs().max().clamp_min(1e-6))
    return "" if difference < 1e-3 else f"a cut of its {kind} gives other outputs than silencing"
