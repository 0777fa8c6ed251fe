"""The table of a family that is not written by hand, derived from the network analysis of a small copy of the model.

No family is known by name. Cuts of the copy are compared with the same units silenced; an axis that fails stays whole,
with the reason. What was found is kept on the disk, by class, structure, and versions of libraries and of this code.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
import transformers
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import Cache, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

import secateur
from secateur._utils.disk import cache_folder, writing
from secateur.errors import ModelError, SecateurError, UnsupportedError
from secateur.subjects.network.checks import check_branches
from secateur.subjects.network.recording import Example
from secateur.subjects.network.traced import Traced
from secateur.subjects.transformer.cutting import BLOCKS
from secateur.subjects.transformer.families import Family, find
from secateur.subjects.transformer.layout import Layout
from secateur.subjects.transformer.making import make_subject
from secateur.subjects.transformer.misfits import STORED_OTHERWISE, describe_misfit, describe_zeros
from secateur.subjects.transformer.per_layer import get_setting
from secateur.subjects.transformer.sameness import NEAR, differ, run_check, start_cache, step_behind
from secateur.subjects.transformer.small_copy import (
    TOKENS,
    copy_small,
    describe_error,
    draw_apart,
    has_encoder,
    leave_numbers_open,
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
_LENGTHS = (4, 8, 12)
"""Tokens of sequences by which the FLOPs of attentions are told from those of linears."""
_INSIDE = {"attention": "heads", "ffn": "neurons"}
"""Kind of a sub-block -> the axis inside it."""
_FAMILY = TypeAdapter(Family)
_known: dict[str, Family] = {}


def find_family(architecture: type[PreTrainedModel], config: PretrainedConfig) -> Family:
    """The family of a model class: the table written by hand where there is one, else derived once and kept.

    Raises `UnsupportedError` where no table fits it.
    """
    written = find(config.model_type)
    if written is not None:
        return written
    outline = _build_outline(architecture, config)
    kinds = list_kinds(outline)
    tried = range(min(_DEPTH, len(kinds)))
    counts = sorted((kind, min(kinds.count(kind), 2)) for kind in set(kinds))
    depth = [shrink_config(config, tried).to_json_string(), [kinds[layer] for layer in tried], counts]
    said = [architecture.__name__, depth, transformers.__version__, _digest()]
    key = hashlib.sha256(json.dumps([*said, secateur.__version__]).encode()).hexdigest()[:24]
    if key not in _known:
        _known[key] = _read_kept(key) or _derive_and_keep(outline, key)
    return _known[key]


@cache
def _digest() -> str:
    """Of the code that derives, that of the analysis included: what other code has found is not used."""
    package = Path(secateur.__file__).parent
    sources = [path for part in ("subjects", "formats") for path in (package / part).rglob("*.py")]
    code = b"".join(path.read_bytes() for path in sorted(sources))
    return hashlib.sha256(code + torch.__version__.encode()).hexdigest()


def _read_kept(key: str) -> Family | None:
    try:
        return _FAMILY.validate_json(_file(key).read_bytes())
    except (OSError, ValidationError):  # not there, or of another version: derived again
        return None


def _build_outline(architecture: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    try:
        with torch.device("meta"):
            outline = architecture(plain_config(config))
    except Exception as error:
        why = describe_zeros(config) if isinstance(error, ZeroDivisionError) else ""
        raise UnsupportedError(f"{architecture.__name__} can't be built ({why or describe_error(error)})") from error
    if getattr(config.get_text_config(), "hidden_size", None) == 0:
        raise UnsupportedError(f"{architecture.__name__} can't be built ({describe_zeros(config)})")
    if STORED_OTHERWISE.isdisjoint(config.to_dict()):
        outline.name_or_path = config._name_or_path
    return outline


def _derive_and_keep(outline: PreTrainedModel, key: str) -> Family:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # its tensors are so small that threads would only wait for one another
    try:
        family = derive(outline)
    except UnsupportedError as error:
        if misfit := describe_misfit(outline):
            raise ModelError(misfit) from error
        raise UnsupportedError(f"{error}: secateur prune cuts it as any network") from error
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
    with draw_apart(), _quiet():
        return _derive(model)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what transformers logs: of configs that are tried out, most are wrong on purpose."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _derive(model: PreTrainedModel) -> Family:
    small = copy_small(model)
    with _same_positions(small) as shared:
        traced = Traced(_Read(small), Example.of((make_tokens(),)))
        try:
            groups = traced.groups()
        except SecateurError as error:
            why = _find_failure(small) or f"can't be traced ({describe_error(error)})"
            raise UnsupportedError(f"{type(model).__name__} {why}") from error
        family = read_family(small, groups)
    family = _extend_lists(family, model)
    family = replace(family, cached=_find_cached(small), shares_positions=bool(shared))
    whole = {**family.whole, **_keep_shared(model, family), **_keep_idle(traced, small, family)}
    family = prove(small, replace(family, whole=whole))
    if "layers" not in family.whole:
        family = _prove_depth(model, family)
    return replace(family, attention_ratio=_measure_attention(small, family))


def _measure_attention(model: PreTrainedModel, family: Family) -> float:
    """See `Family.attention_ratio`: as a small copy computes it, at three lengths.

    Mixers count by chunks, of which the last is filled: beside them an attention is as its sizes say.
    """
    kinds = {block.kind for block in family.blocks}
    if "mixer" in kinds:
        return float("attention" in kinds)
    subject, used = make_subject(model, family), model.config._attn_implementation

    def count(length: int) -> float:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            subject.forward(subject.example(1, length))
        return float(counter.get_total_flops())

    def bend(cost: Callable[[int], float]) -> float:
        return cost(_LENGTHS[0]) - 2 * cost(_LENGTHS[1]) + cost(_LENGTHS[2])

    said = bend(lambda length: subject.units(length=length).cost()["flops"])
    try:
        model.set_attn_implementation("eager")  # the counter leaves out what a CPU does in one kernel
        found = bend(count)
    except Exception:  # a class may have no other, or read no other lengths
        return 1.0
    finally:
        model.set_attn_implementation(used)
    layout = subject.layout
    ranking = 2.0 * sum(map(layout.index_width, range(len(layout.widths)))) * bend(lambda length: length**2)
    return max(found - ranking, 0.0) / (said - ranking) if said > ranking else 1.0


def _find_failure(model: PreTrainedModel) -> str:
    """How a pass over tokens fails; "" where it does not."""
    try:
        run_model(model, make_tokens())
    except Exception as error:
        return f"can't run on tokens ({describe_error(error)})"
    return ""


def _extend_lists(family: Family, model: PreTrainedModel) -> Family:
    """`family` with what lists inside the layers of `model` hold beyond those of a small copy, such as a norm per head.

    Only what lies along no units: an entry may else have units of its own.
    """
    layout, unknown = Layout(model, family), set[str]()
    for name, _ in model.named_parameters():
        place = layout.place(name)
        if place.layer is not None and place.axes is None:
            unknown |= {place.module, f"{place.module}.{place.leaf}"}

    def extend(table: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        entries = dict[str, set[tuple[str, ...]]]()
        for name, axes in table.items():
            entries.setdefault(leave_numbers_open(name), set()).add(axes)
        alike = {name: axes.pop() for name, axes in entries.items() if len(axes) == 1}
        found = {name: alike.get(leave_numbers_open(name), ("units",)) for name in sorted(unknown)}
        return {**table, **{name: axes for name, axes in found.items() if {"", "channels"}.issuperset(axes)}}

    blocks = tuple(replace(block, tensors=extend(block.tensors)) for block in family.blocks)
    return replace(family, blocks=blocks, layer=extend(family.layer))


@contextmanager
def _same_positions(model: PreTrainedModel) -> Iterator[list[object]]:
    """Within the block, all heads are given the positions of the first, where layers hand them on by heads.

    Through them heads of all layers hang together, while each layer can take of them what its own heads need. The list
    has something in it once that was done.
    """
    module, found = sys.modules[type(model).__module__], list[object]()
    own = getattr(module, "eager_attention_forward", None)
    if own is None or "position_bias" not in inspect.signature(own).parameters or not has_encoder(model.config):
        yield found
        return

    seen = list[Tensor | None]()

    def look(*args: object, position_bias: Tensor | None = None, **kwargs: object) -> object:
        seen.append(position_bias)
        return own(*args, position_bias=position_bias, **kwargs)

    def attend(*args: object, position_bias: Tensor | None = None, **kwargs: object) -> object:
        found.extend([] if position_bias is None else [True])
        return own(*args, position_bias=None if position_bias is None else position_bias[:, :1], **kwargs)

    vars(module)["eager_attention_forward"] = look
    try:
        with suppress(Exception):  # as the trace will say
            run_model(model, make_tokens())
        given = [id(one) for one in seen if one is not None]
        if not given or len(set(given)) < len(given):  # else each layer has its own, as those of UMT5
            vars(module)["eager_attention_forward"] = attend
        else:
            vars(module)["eager_attention_forward"] = own
        yield found
    finally:
        vars(module)["eager_attention_forward"] = own


def _keep_idle(traced: Traced, small: PreTrainedModel, family: Family) -> dict[str, str]:
    """Axis -> why it stays whole: other inputs than tokens alone may run a tensor beside those that are cut."""
    try:
        check_branches(traced.model, traced.run)
    except UnsupportedError:
        found, layout = dict[str, str](), Layout(small, family)
        for name, tensor in small.named_parameters():
            if f"model.{name}" in traced.run.used:
                continue
            why = f"{name} takes no part where tokens alone are read"
            inside = layout.place(name).module
            kinds = {block.kind for block in family.blocks if inside.startswith(f"{block.module}.")}
            axes = [_INSIDE[kind] for kind in kinds if kind in _INSIDE]
            axes += ["channels"] if layout.hidden_size in tensor.shape else []
            found |= {axis: why for axis in axes if axis not in found}
        return found
    return {}


def _find_cached(model: PreTrainedModel) -> int | str:
    """See `Family.cached`."""
    count, settings = _count_cached(model), model.config.to_dict()
    said = get_setting(model.config, "num_key_value_heads") or get_setting(model.config, "num_attention_heads")
    if count in (0, 1, said):
        return 0 if count == said else count
    for name, value in settings.items():
        if value == count and not isinstance(value, bool):
            try:
                changed = type(model)(type(model.config).from_dict(settings | {name: 1}))
            except Exception:  # a class may want another number
                continue
            if _count_cached(changed) == 1:
                return str(name)
    return 0


def _count_cached(model: PreTrainedModel) -> int:
    """Heads of the keys that a layer of `model` caches; 0 where none does, or not so that it can be read."""
    try:
        with torch.no_grad():
            out = model.base_model(input_ids=make_tokens(), use_cache=True)
    except Exception:
        return 0
    layers = [layer for value in out.values() if isinstance(value, Cache) for layer in getattr(value, "layers", [])]
    keys = [layer.keys for layer in layers if isinstance(getattr(layer, "keys", None), Tensor)]
    return next((int(one.shape[1]) for one in keys if one.dim() == 4), 0)


def _prove_depth(model: PreTrainedModel, family: Family) -> Family:
    """`family`, its layers whole where what a layer does goes by its index: patterns are longer than two layers.

    Where it is the first alone that can't go, as one without a norm, it is that one that stays.
    """
    every = list_kinds(model)
    depth = 3 if family.has_encoder else min(_DEPTH, len(every))
    deep = copy_small(model, range(depth) if family.has_encoder else _choose_deep(every, depth))
    subject, kinds = make_subject(deep, family), list_kinds(deep)
    whole = dict.fromkeys(range(len(kinds)), subject)
    if family.caches_by_encoder:  # beside a decoder that is as deep, none of the encoder's layers can go
        shallow = subject.cut(Selection({"layers": np.arange(len(kinds)) < len(kinds) - 1}))[0]
        whole |= dict.fromkeys(range(depth), shallow)
    found = dict[int, str]()
    for gone, kind in enumerate(kinds):
        site = whole[gone].units()["layers"]
        stays = site.fixed is not None and site.fixed[gone]
        if depth > 1 and (kinds.count(kind) > 1 or every.count(kind) == 1) and not stays:
            found[gone] = _compare(whole[gone], "layers", {"layers": np.arange(site.count) != gone})
    failed = {gone: why for gone, why in found.items() if why}
    if found and not failed:
        return family
    if len(found) > len(subject.layout.starts) and failed.keys() <= set(subject.layout.starts):
        return replace(family, first_stays=next(iter(failed.values())))
    why = next(iter(failed.values()), "the loss of none of them can be tried on a small copy")
    return replace(family, whole={**family.whole, "layers": why})


def _choose_deep(kinds: list[tuple[str, ...]], depth: int) -> list[int]:
    """The first of the layers of these kinds, `depth` of them, but two of each kind, wherever they stand."""
    places = {kind: [place for place, other in enumerate(kinds) if other == kind] for kind in set(kinds)}
    wanted = sorted(layer for found in places.values() for layer in found[:2])
    return sorted([*wanted, *(layer for layer in range(len(kinds)) if layer not in wanted)][:depth])


def _keep_shared(model: PreTrainedModel, family: Family) -> dict[str, str]:
    """Axis -> why it stays whole: of weights that layers share, what goes in one of them would go in all."""
    layout, found, first = Layout(model, family), dict[str, str](), dict[int, tuple[str, int]]()
    for name, tensor in model.named_parameters(remove_duplicate=False):
        place = layout.place(name)
        if place.layer is None:
            continue
        named, layer = first.setdefault(id(tensor), (name, place.layer))
        if layer != place.layer:
            parts = {part.partition("*")[0] for axis in place.axes or () for part in axis.split("+")}
            axes = {"heads" if part in ("kv", "cross") else part for part in parts} - {"", "channels"}
            found |= dict.fromkeys(axes - found.keys(), f"{named} and {name} share their weights")
    return found


def prove(tiny: PreTrainedModel, family: Family) -> Family:
    """`family` with every axis whole that can't be cut: the cut is no model, or differs from the same units silenced.

    Raises `UnsupportedError` where nothing can be cut, or where the table counts other parameters than the copy has.
    """
    start = make_subject(tiny, family)
    counted = start.units().cost()["params"]
    there = sum(parameter.numel() for parameter in tiny.parameters())
    if counted != there:
        raise UnsupportedError(
            f"{type(tiny).__name__}: its table counts {counted:.0f} parameters of the {there} of a small copy"
        )
    whole, failed = dict(family.whole), dict[str, str]()
    attentions = [block for block in family.blocks if block.kind == "attention"]
    if attentions and not any(
        "heads" in axis or "kv" in axis for block in attentions for axes in block.tensors.values() for axis in axes
    ):
        whole.setdefault("heads", "the rows of its attention's linears can't be told apart by heads")
    if family.experts and not start.layout.chosen:
        whole["experts"] = "its config says by no known name how many experts a token passes"
    for kind in _KINDS:
        if kind in whole or (kind == "kv_groups" and "heads" in whole):
            continue
        if kind == "layers" and len(set(list_kinds(tiny))) > 1:
            continue  # a copy of one layer of each kind has none that could go
        others = ({"own_config": True}, {"keeps_heads": True}) if kind == "heads" else ()
        for changes in ({}, *others):
            trial = replace(family, whole=whole | failed, **changes)  # what stays whole is built in another way
            why = _try_cut(make_subject(tiny, trial), kind)
            if not why:
                family = trial
                break
        else:
            failed[kind] = why
            if kind == "channels" and not _try_cut(make_subject(tiny, family), kind, corrected=False):
                family = replace(family, bare_channels=True)
    if "attention" not in failed:
        why = _try_cache(make_subject(tiny, family))
        failed |= {"attention": why} if why else {}
    whole |= failed
    if {site.kind for site in make_subject(tiny, family).units().sites.values()} <= whole.keys():
        raise UnsupportedError(f"{type(tiny).__name__}: {next(iter(failed.values()))}")
    return replace(family, whole=whole)


def _try_cut(subject: Transformer, kind: str, *, corrected: bool = True) -> str:
    """Cut half of everything of one kind off; what is wrong with the result, "" where it is as it should be.

    corrected: norms are to be exact for fewer channels.
    """
    units = subject.units()
    sites = {name: site.count for name, site in units.sites.items() if name.rpartition(".")[2] == kind}
    keep = {name: np.arange(count) % 2 == 0 for name, count in sites.items()}
    if kind in ("layers", *BLOCKS):  # those that go may be the first, built in another way
        trials = [keep, {name: ~stays for name, stays in keep.items()}]
    else:  # layers of unequal widths are built by other means
        trials = [keep, *([dict(list(keep.items())[:1])] if len(keep) > 1 else [])]
    wrong = next((why for one in trials if (why := _compare(subject, kind, one, corrected=corrected))), "")
    return _try_states(subject, keep, corrected=corrected) if kind == "channels" and not wrong else wrong


def _try_states(subject: Transformer, keep: Mapping[str, np.ndarray], *, corrected: bool) -> str:
    """Cut channels; what is wrong with the cache or the states of the result, "" where they are as they should be.

    A class may take their size from the config's number of channels, where it is another setting's.
    """
    if not keep or not subject.decodes:
        return ""
    checks = {"a first token with a cache": start_cache, "a step behind its cache": step_behind}
    held = {name: check for name, check in checks.items() if not run_check(check, subject.model)}
    cut = subject.cut(Selection(keep), norm_correction=corrected)[0].model if held else subject.model
    failed = ((name, why) for name, check in held.items() if (why := run_check(check, cut)))
    return next((f"with fewer of them, {name} {why}" for name, why in failed), "")


def _try_cache(subject: Transformer) -> str:
    """Take the first attention off; what is wrong with a step behind the cache, "" where it is as it should be."""
    attends = np.array([width.heads > 0 for width in subject.widths()])
    if not attends.any() or not subject.decodes or step_behind(subject.model):
        return ""  # by itself it has no cache to step behind
    keep = {"attention": np.arange(len(attends)) != attends.argmax()}
    try:
        wrong = step_behind(subject.cut(Selection(keep))[0].model)
    except Exception as error:
        wrong = f"fails: {type(error).__name__}: {describe_error(error)}"
    return f"without one, a step behind its cache {wrong}" if wrong else ""


def _compare(subject: Transformer, kind: str, keep: Mapping[str, np.ndarray], *, corrected: bool = True) -> str:
    if not keep:
        return ""
    batch = subject.example(2, TOKENS)
    try:
        with torch.no_grad():
            cut = subject.cut(Selection(keep), norm_correction=corrected)[0].forward(batch).prediction
            silenced = subject.silence(Selection(keep), norm_correction=corrected).forward(batch).prediction
    except SecateurError as error:
        return f"a cut of its {kind} fails in a small copy: {error}"
    except Exception as error:
        return f"a cut of its {kind} fails in a small copy: {type(error).__name__}: {describe_error(error)}"
    if kind == "channels" and cut.shape != silenced.shape:
        silenced = silenced[..., keep["channels"]]
    return "" if differ(cut, silenced) < NEAR else f"a cut of its {kind} gives other outputs than silencing"
