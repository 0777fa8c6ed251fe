"""A transformer as a subject: what could go in it, and how it goes.

Everything is derived from the family's table (`families.py`): each weight is a product of axes, each axis a sum of
parts, each part counted by one site. Cutting builds the new config, slices the state dict, and instantiates the
result by the very code that reloads it, so that a saved result equals the one in memory by construction.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from secateur._utils import devices
from secateur._utils.tokenizers import Tokenizer
from secateur.errors import InputError, UnsupportedError
from secateur.subjects.transformer import costs, cutting, dequantising, files, low_rank, saving
from secateur.subjects.transformer.families import Family, find
from secateur.subjects.transformer.layout import Layout, Widths
from secateur.subjects.transformer.origin import Origin
from secateur.subjects.transformer.small_copy import make_source, reads_texts
from secateur.subjects.transformer.sources import measure_source
from secateur.vocabulary import Cut, Selection, Term, Units, html_table

if TYPE_CHECKING:
    from secateur.subjects.transformer.parts import Whole

__all__ = [
    "AXES",
    "Consumer",
    "Output",
    "Stored",
    "Transformer",
    "count_positions",
    "find_states",
    "record_states",
]

AXES = (
    "layers",
    "attention",
    "cross",
    "ffn",
    "mixer",
    "heads",
    "kv_groups",
    "neurons",
    "experts",
    "expert_neurons",
    "shared_neurons",
    "state_heads",
    "state_channels",
    "channels",
)

_UNITS_OF_LAYERS = {
    "heads": "Heads of a layer",
    "kv": "Key/value heads of a layer",
    "cross": "Heads of a cross-attention",
    "neurons": "Neurons of a layer",
    "experts": "Experts of a layer",
    "expert_neurons": "Neurons of an expert",
    "shared_neurons": "Neurons of a shared expert",
}
"""Field of `Widths` -> what a notebook calls it."""

_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


@dataclass(frozen=True)
class Consumer:
    """The linear whose input columns are a site's units: unit u is columns [u*block, (u+1)*block)."""

    module: str
    """Path relative to `subject.model`."""
    block: int
    conv1d: bool
    """The weight is stored [in, out], so that columns are rows of the stored tensor (GPT-2)."""


@dataclass(frozen=True)
class Stored:
    """Quantised weights, as they stand in their files: bits of each weight, and bytes of all."""

    bits: int
    bytes: float


@dataclass
class Output:
    """What one forward pass gives.

    prediction: logits [B, S, V] or [B, C], a sentence embedding [B, d], or the last hidden state [B, S, d].
    causal: the prediction is logits [B, S, V] of the token after each position.
    hidden: the embedding output and then the output of every layer that exists, before any final norm, [B, S, d]
    each; empty unless asked for.
    head: where the language-model head was left out, the head; the prediction then is what would go into it, [B, S, d].
    softcap: the logits are ``c tanh(head(x) / c)`` with this c (Gemma 2); None for the plain ones.
    """

    prediction: Tensor
    hidden: tuple[Tensor, ...] = ()
    causal: bool = False
    head: nn.Module | None = None
    softcap: float | None = None

    def __post_init__(self) -> None:
        """Of layers that give lists, the states are the first (OpenAI GPT)."""
        self.hidden = tuple(
            states[0] if isinstance(states, list) else states  # type: ignore[unreachable]
            for states in self.hidden
        )


class Transformer:
    """A transformers model with what belongs to it, as something to prune. Use `open_subject` to make one."""

    backend = "secateur.runs.backends.language:Language"
    profile: costs.Profile | None = None
    """In how many bytes each number is to be served: then there is a cost in served_memory, too."""

    kind: Literal["encoder", "decoder"]

    def __new__(cls, model: PreTrainedModel | None = None, *_: object, **__: object) -> Self:
        """Of a model that Accelerate has offloaded, the form of this class that reads its weights module by module."""
        kind: Any = cls
        if model is not None and devices.is_offloaded(model):
            from secateur.subjects.transformer.offloaded import form_of  # which derives from this class

            kind = form_of(kind)
        made: Self = super().__new__(kind)
        return made

    def __init__(
        self,
        model: PreTrainedModel,
        family: Family,
        *,
        tokenizer: Tokenizer | None = None,
        folder: Path | None = None,
        head: list[nn.Module] | None = None,
    ) -> None:
        self.model = model
        self.family = family
        self.tokenizer: Any = tokenizer
        """A `Tokenizer`, or None; whoever needs one says so where it is missing."""
        self.folder = folder
        self.head: list[nn.Module] = head or []
        self.stored: Stored | None = None  # of a quantised model, which can be measured only
        self._origin: Origin | None = None
        self.whole: Whole | None = None
        """The model that this is a part of."""
        self._source: costs.Source | None = None
        recorded = (getattr(model.config, "secateur", None) or {}).get("layer_index")
        self.layer_index: tuple[int, ...] = tuple(recorded or range(len(self.layout.layers())))
        self.output: Literal["logits", "embedding", "states"] = (
            "embedding" if self.head else "states" if _is_base(model) else "logits"
        )
        layout = self.layout
        for name, _ in model.named_parameters():
            place = layout.place(name)
            if place.layer is not None and place.axes is None:
                raise UnsupportedError(
                    f"{name} is no part of a plain {family.model_type} layer, so it can't be cut with it"
                    f"{_advise_unknown(model, name)}"
                )

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        name, layers = type(self.model).__name__, len(self.layers())
        return f"{type(self).__name__}({name}, {layers} layers, {self.hidden_size} channels, {count:,} parameters)"

    def _repr_html_(self) -> str:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        rows = [
            ("Parameters", f"{count:,}"),
            ("Channels", f"{self.hidden_size:,}"),
            ("Layers", f"{len(self.layers())}"),
        ]
        for name, label in _UNITS_OF_LAYERS.items():
            counts = [getattr(widths, name) for widths in self.widths()]
            fewest, most = min(counts, default=0), max(counts, default=0)
            if most:
                rows.append((label, f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"))
        return html_table(f"{type(self).__name__}: {type(self.model).__name__}", ("What", "How many"), rows)

    # ------------------------------------------------------------------------------------------- structure

    @property
    def layout(self) -> Layout:
        """Where everything stands in the model as it is now."""
        return Layout(self.model, self.family)

    @property
    def origin(self) -> Origin:
        """The model that this was cut from, by however many cuts, and what stays of it; itself where nothing was cut.

        Of a model that was given in memory the weights are hashed at the first copy or cut, or the first look here.
        """
        if self._origin is None:
            self._origin = Origin.of_model(self.model) if self.whole is None else self.whole.find_origin(self.layout)
        return self._origin

    @origin.setter
    def origin(self, origin: Origin) -> None:
        """Set by whoever reads or cuts the model."""
        self._origin = origin

    @property
    def head_dim(self) -> int:
        """Numbers per attention head."""
        return self.layout.head_dim

    @property
    def causal(self) -> bool:
        """Whether it is a language model of the next token; a masked one, a classifier and a base model are not."""
        return self.output == "logits" and self.model.can_generate()

    @property
    def joins_texts(self) -> bool:
        """Whether texts may stand behind one another in its sequences: a decoder, but no classifier of whole texts.

        Nor may they where mixers carry their states over from one text to the next.
        """
        return self.decodes and not any(block.kind == "mixer" for block in self.family.blocks)

    @property
    def decodes(self) -> bool:
        """Whether it goes on from a cache: a decoder, but no classifier of whole texts."""
        return self.kind == "decoder" and (self.causal or self.output != "logits")

    @property
    def hidden_size(self) -> int:
        """Residual channels."""
        return self.layout.hidden_size

    def widths(self) -> list[Widths]:
        """Heads, key/value heads and neurons of every layer that exists."""
        return self.layout.widths

    def layers(self) -> list[str]:
        """Module paths of the layers."""
        return self.layout.layers()

    def needed_layers(self) -> dict[tuple[int, ...], str]:
        """Layers of which one must stay -> why; see `costs.find_needed`."""
        return costs.find_needed(self.layout)

    def describe_needed(self, stays: Iterable[bool]) -> list[str]:
        """Notes on layers that are the last of several of which one must stay, where `stays` [layers] are kept."""
        notes, kept = [], list(stays)
        for layers, why in self.needed_layers().items():
            left = [layer for layer in layers if kept[layer]]
            if len(left) == 1 < len(layers):
                several = ", ".join(map(str, layers))
                notes.append(f"layers.{left[0]} is the last of {several}, of which one stays: {why}")
        return notes

    def norms(self) -> list[str]:
        """Module paths of every norm over the residual channels."""
        return self.layout.norms()

    def writers(self) -> list[str]:
        """Module paths of what writes into the residual stream: tables, and the linear back into it of each sub-block.

        What a model adds to it besides is not known here; a small copy shows whether it is all. Raises
        `UnsupportedError` for models with experts, each of which writes, with an encoder, with a branch beside a
        linear, and for channels that can't be cut.
        """
        layout, kind = self.layout, self.family.model_type
        self.units("channels")  # refuses by name where they stay whole
        if self.family.experts or self.family.has_encoder:
            has = "experts" if self.family.experts else "an encoder"
            raise UnsupportedError(f"{kind} has {has}, so no one linear writes for a sub-block: give a dense decoder")
        self._check_sides()
        found = []
        for path, module in self.model.named_modules():
            axes = layout.place(f"{path}.weight").axes if isinstance(module, nn.Embedding) else None
            if axes and axes[-1] == "channels":
                found.append(path)
        for index, path in enumerate(layout.layers()):
            there = layout.widths[index].has
            found += [f"{path}.{block.out}" for kind, block in layout.blocks(index).items() if there(kind)]
        return found

    def consumers(self, *, read: bool = True) -> dict[str, Consumer]:
        """Site name -> the linear whose input columns are the site's units.

        read: whether what flows into them is looked at, which some classes don't tell apart by texts; else it is their
        weights alone.
        """
        result = {}
        layout, conv1d = self.layout, self.family.conv1d
        for index, (path, width) in enumerate(zip(layout.layers(), layout.widths, strict=True)):
            blocks = layout.blocks(index)
            out = f"{path}.{blocks['attention'].out}" if width.heads else ""
            if width.heads:
                result[f"layers.{index}.heads"] = Consumer(out, layout.head_dim, conv1d)
            if width.has_groups:
                block = layout.head_dim * width.heads // width.kv
                result[f"layers.{index}.kv_groups"] = Consumer(out, block, conv1d)
            if width.cross:
                out = f"{path}.{blocks['cross'].out}"
                result[f"layers.{index}.cross.heads"] = Consumer(out, layout.head_dim, conv1d)
            if width.neurons:
                result[f"layers.{index}.neurons"] = Consumer(f"{path}.{blocks['ffn'].out}", 1, conv1d)
            if width.shared_neurons and self.family.experts:
                out = f"{path}.{self.family.experts.shared}.down_proj"
                result[f"layers.{index}.shared_neurons"] = Consumer(out, 1, conv1d)
        return result

    def slices(self) -> dict[str, list[tuple[Tensor, int, Tensor]]]:
        """Site -> (parameter, dimension, unit of each index or -1): every slice that goes with a unit.

        See `Layout.slices`; scores of coupled weights take it, as they take that of any network.
        """
        return self.layout.slices()

    def head_slices(self, layer: int) -> Iterator[tuple[str, int, int, int]]:
        """Where each whole set of heads stands in the input projections of `layer`: parameter, dim, start, length.

        Query heads; keys and values too where every query head has its own.
        """
        layout = self.layout
        width = layout.widths[layer]
        for name, _ in self.model.named_parameters():
            place = layout.place(name)
            if place.layer != layer or place.block != "attention":
                continue
            if place.module == layout.blocks(layer)["attention"].out:
                continue
            for dim, axis in enumerate(place.axes or ()):
                start = 0
                for part in axis.split("+"):
                    if not part.endswith("*"):
                        continue
                    length = layout.head_dim * (width.heads if part == "heads*" else width.kv)
                    if part == "heads*" or not width.has_groups:
                        yield name, dim, start, length
                    start += length

    # ----------------------------------------------------------------------------------------------- units

    def units(self, *axes: str, multiple: int = 8, batch: int = 1, length: int = 128) -> Units:
        """What could go, on these axes (all if none is named), with exact costs as polynomials of kept counts.

        Measures: params; bytes (weights as saved); flops (one forward pass of `batch` x `length` tokens, as
        `torch.utils.flop_counter` counts: 2 per multiply-add of the matrix products, attention as two full
        [length, length] products per head without a discount for causality or sliding windows; of mixers their linears
        alone, not the scans and convolutions between them, which depend on the kernel); kv_cache
        (decoders: bytes of keys and values after `length` tokens); state_cache (those of mixers' states); memory =
        bytes + both caches; with experts also active_params, those which one token passes; with a `profile` also
        served_memory (`costs.serve`).
        `multiple` rounds neurons and channels. Raises `UnsupportedError` for an axis that isn't there.
        """
        layout = self.layout
        sites = costs.sites(layout, multiple)
        kinds = {site.kind for site in sites.values()}
        for axis in axes:
            if axis not in kinds and axis not in layout.whole:
                there = ", ".join(name for name in AXES if name in kinds - set(layout.whole))
                raise UnsupportedError(f"axis {axis!r} is not one of this {self.family.model_type} model's: {there}")
            if axis in layout.whole:
                why = layout.whole[axis]
                raise UnsupportedError(f"axis {axis!r} of this {self.family.model_type} model can't be cut: {why}")
        terms, base = costs.terms(layout, batch, length, self._cache(layout, batch, length), self.source)
        whole = Units(sites, terms, base)
        if self.profile is not None:
            whole = costs.serve(whole, self.profile, self.model.dtype.itemsize, batch, length)
        if axes:  # those of states are selected from only where they are named
            named = {name: replace(site, frozen=False) if site.kind in axes else site for name, site in sites.items()}
            return replace(whole, sites=named).only(*axes)
        return whole

    def flops_per_token(self, length: int = 128) -> float:
        """FLOPs of a forward pass over one sequence of `length` tokens, divided by `length`.

        What training takes per token is `measure.size.training_flops` of the student's and the teacher's.
        """
        return self.units(length=length).cost()["flops"] / length

    @property
    def source(self) -> costs.Source | None:
        """What the encoder reads that is no text; found by a run without numbers, once for a model and cuts of it."""
        if reads_texts(self.model):
            return None
        if self._source is None:
            self._source = measure_source(self.model, self.layers()[0])
        return self._source

    def _cache(self, layout: Layout, batch: int, length: int) -> Iterable[Term]:
        """Terms of what generation caches: nothing here."""
        return ()

    # ------------------------------------------------------------------------------------------------- cut

    def check_unequal(self) -> None:
        """Raise `UnsupportedError` where layers can't get unequal widths: those of a part of another model."""
        if self.whole is not None:
            self.whole.refuse()

    def cut(
        self, selection: Selection, *, norm_correction: bool = True, centred: bool = False
    ) -> tuple[Transformer, Cut]:
        """A smaller copy with the selection made real, and the receipt; this subject stays as it is.

        Heads, KV groups, neurons, sub-blocks and layers: exactly equal to silencing them. Channels of RMSNorm
        models: exact with `norm_correction`, for with d of D channels kept, zero channels make
        RMS_D(x) = RMS_d(x) sqrt(d/D), so weights grow by sqrt(D/d) and epsilon by D/d. LayerNorm subtracts a mean
        as well, for which no such factor exists: there, norms simply run over the kept channels. `centred`: that mean
        is zero, all channels that go being zero and its norms' shifts too there, so that the same factor is exact.
        The widths are those of the selection; odd ones are named in the notes. Raises `InputError` for a selection
        that doesn't fit or leaves nothing, `UnsupportedError` for one this model can't take.
        """
        if dequantising.has_integers(self.model):
            return self.make_floats().cut(selection, norm_correction=norm_correction, centred=centred)
        layout = self.layout
        sites = costs.sites(layout)
        keep = cutting.resolve(selection, sites)
        kept = cutting.find_kept(layout, keep, corrected=norm_correction)
        there = {name: self._find_there(layout, name, sites[name].count) for name in keep}
        gone = {name: (int((~stays & there[name]).sum()), int(there[name].sum())) for name, stays in keep.items()}
        removed = {name: counts for name, counts in gone.items() if counts[0]}
        before = self._count()
        if not removed:
            return self.copy(), Cut({}, before, before)
        self._check_sides()
        widths, channels = kept.widths(), layout.hidden_size if kept.channels is None else len(kept.channels)
        layer_index = [self.layer_index[index] for index in kept.layers]
        notes = _odd_widths(layout, widths, channels)
        if kept.channels is not None:
            notes += self._check_channels(layout, centred)
        if any(width.mixer for width in widths):
            notes += ["flops count the linears of mixers alone: a flops budget is of less than what they compute"]
        state = cutting.slice_state(layout, kept)
        ratio = layout.hidden_size / channels if norm_correction else 1.0
        config, more = cutting.correct(layout, state, kept, ratio, layer_index, centred=centred)
        if self.whole is not None and saving.needs_module(config):
            self.whole.refuse(alike=len(set(widths)) == 1)
        notes += more
        result = self._copy(cutting.build(layout, config, state, kept), tuple(layer_index))
        result.origin = self.origin.cut(kept, ratio)
        result._resize_head(channels)
        return result, Cut(removed, before, result._count(), tuple(notes))

    @staticmethod
    def _find_there(layout: Layout, site: str, count: int) -> np.ndarray:
        """Which units of a site are there: of sub-blocks, those that their layer has and has not lost."""
        if site not in cutting.BLOCKS:
            return np.ones(count, dtype=bool)
        return np.array([width.has(site) for width in layout.widths])

    def silence(self, selection: Selection, *, norm_correction: bool = True) -> Transformer:
        """The same shapes with the units that go set to zero: the reference which a cut must equal.

        Layers that go are bypassed. Where channels go, LayerNorms run over the kept channels (see `cut`);
        RMSNorms need no help, and run over the kept ones, too, without `norm_correction`.
        """
        self._check_sides()
        if dequantising.has_integers(self.model):
            return self.make_floats().silence(selection, norm_correction=norm_correction)
        layout = self.layout
        keep = cutting.resolve(selection, costs.sites(layout))
        kept = cutting.find_kept(layout, keep, corrected=norm_correction)
        if kept.channels is not None:
            self._check_channels(layout)
        return self._copy(cutting.silence(layout, kept, corrected=norm_correction), self.layer_index)

    def copy(self) -> Transformer:
        """The same subject with weights of its own."""
        return self._copy(copy.deepcopy(self.model), self.layer_index)

    def make_floats(self) -> Transformer:
        """Itself, or where torchao quantised a model in memory the same with floats: see `dequantising.make_floats`."""
        model = dequantising.make_floats(self.model)
        if model is self.model:
            return self
        result = copy.copy(self)
        result.model, result.stored = model, None
        return result

    def untie(self) -> Transformer:
        """A copy whose head is a table of its own, where it is that of the embeddings, so that either may change."""
        head, table = self.model.get_output_embeddings(), self.model.get_input_embeddings()
        if head is None or head.weight is not table.weight:
            return self.copy()
        config = copy.deepcopy(self.model.config)
        config.tie_word_embeddings = False
        state = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        return self._copy(cutting.build(self.layout, config, state), self.layer_index)

    @contextmanager
    def resident(self, *paths: str) -> Iterator[None]:
        """For `blocks.visit`: all weights are in memory as it is."""
        yield

    def store(self, path: str, file: Path) -> None:
        """Write the block at `path` to `file`: whole, or not at all."""
        state = {name: tensor.contiguous() for name, tensor in self.model.get_submodule(path).state_dict().items()}
        files.replace_file(file, state)

    def recall(self, path: str, file: Path) -> None:
        """Take the block at `path` from a `file` that `store` wrote."""
        self.model.get_submodule(path).load_state_dict(load_file(file))

    def _copy(self, model: PreTrainedModel, layer_index: tuple[int, ...]) -> Transformer:
        origin, result = self.origin, copy.copy(self)
        result.origin = origin
        result.model, result.layer_index, result.head = model, layer_index, copy.deepcopy(self.head)
        if layer_index != self.layer_index:
            result._source = None  # other layers have its names
        return result

    def _count(self) -> dict[str, float]:
        parameters = [p for module in (self.model, *self.head) for p in module.parameters()]
        return {
            "params": float(sum(p.numel() for p in parameters)),
            "bytes": float(sum(p.numel() * p.element_size() for p in parameters)),
        }

    def _check_sides(self) -> None:
        beside = low_rank.find_branches(self.model)
        if beside:
            raise UnsupportedError(
                f"{next(iter(beside))} has a branch beside it, so nothing can be cut: cut the original, or open the "
                f"model without its folder {low_rank.FOLDER}/"
            )

    def _check_channels(self, layout: Layout, centred: bool = False) -> list[str]:
        """Refuse a channels cut which the config can't say or would miss a tensor; note what it can't make exact."""
        if layout.fixed_ratio:
            raise UnsupportedError(
                f"channels can't be cut: the long-context rope factors of this {self.family.model_type} model are "
                "checked against hidden_size / heads, which must stay; cut heads, neurons or layers"
            )
        for name, tensor in self.model.named_parameters():
            if layout.place(name).axes is None and layout.hidden_size in tensor.shape:
                raise UnsupportedError(
                    f"channels can't be cut: {name} {tuple(tensor.shape)} has an axis of hidden_size "
                    f"{layout.hidden_size} but is unknown in {self.family.model_type}"
                )
        for module in self.head:
            if any(True for _ in module.parameters()):
                raise UnsupportedError(
                    f"channels can't be cut: the sentence-transformers module {type(module).__name__} has weights "
                    "of its own on the embedding"
                )
        if cutting.layer_norms(layout) and not centred:
            return ["LayerNorm has no exact correction for fewer channels: norms now run over the kept ones"]
        return []

    def _resize_head(self, channels: int) -> None:
        for module in self.head:
            if "embedding_dimension" in module.__dict__:  # of a pooling
                module.__dict__["embedding_dimension"] = channels

    # ------------------------------------------------------------------------------------------------- run

    def check_texts(self) -> None:
        """Raise `UnsupportedError` where the model, or its encoder, reads something else than texts."""
        if not reads_texts(self.model):
            raise UnsupportedError(
                f"the encoder of {type(self.model).__name__} reads {self.model.main_input_name}, and texts have none: "
                "choose a recipe that needs no data, such as `secateur prune FOLDER`"
            )

    def arguments(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What the model itself is called with for a batch of texts."""
        return batch

    def forward(self, batch: Mapping[str, Tensor], *, hidden: bool = False, head: bool = True) -> Output:
        """Run the model on a batch with `input_ids` and `attention_mask` [B, S]; other keys are left aside.

        Where `position_ids` are there, too, they tell documents apart that do not see one another: each begins at 0,
        and so does the padding. transformers derives the mask from them, as long as no other one is given.

        Without `head`, a causal model stops before its language-model head, for losses that are fused with it; one that
        is sharded, or split by Accelerate, runs as a whole all the same: its own forward pass gathers its head.
        """
        accepted = inspect.signature(self.model.forward).parameters
        names = dict.fromkeys((*_INPUTS, self.model.main_input_name))
        inputs = devices.move({name: batch[name] for name in names if name in batch and name in accepted}, self.model)
        if "position_ids" in inputs:
            inputs.pop("attention_mask", None)
        if "use_cache" in accepted:
            inputs["use_cache"] = False  # type: ignore[assignment]
        whole = head or not self.causal or self.model.base_model is self.model
        last = None if whole else self.model.get_output_embeddings()
        apart = devices.is_fixed(self.model)
        if last is not None and (apart or any(isinstance(part, DTensor) for part in last.parameters())):
            last = None
        with record_states(self, hidden) as states:
            result = self.model(**inputs) if last is None else self.model.base_model(**inputs)
        if apart:
            states = devices.move(states, self.model)
        if last is None:
            return Output(self._prediction(result, batch), tuple(states), self.causal)
        softcap = getattr(self.model.config, "final_logit_softcapping", None)
        return Output(result.last_hidden_state, tuple(states), True, last, softcap)

    def _prediction(self, result: Any, batch: Mapping[str, Tensor]) -> Tensor:
        if self.output == "logits":
            logits: Tensor = result.logits
            return logits
        states: Tensor = result.last_hidden_state
        if self.output == "states":
            return states
        mask = batch.get("attention_mask", torch.ones(states.shape[:2], dtype=torch.long)).to(states.device)
        features: dict[str, Any] = {"token_embeddings": states, "attention_mask": mask}
        for module in self.head:
            features = module(features)
        embedding: Tensor = features["sentence_embedding"]
        return embedding

    def example(self, batch: int, length: int) -> dict[str, Tensor]:
        """A valid random input of `batch` sequences of `length` tokens, without padding; or as many sounds."""
        if not (self.family.has_encoder or reads_texts(self.model)):
            return devices.move(make_source(self.model, torch.zeros(batch, 1, dtype=torch.long)), self.model)
        vocabulary, pad = self.model.config.vocab_size, getattr(self.model.config, "pad_token_id", None)
        tokens = torch.randint(0, vocabulary, (batch, length))
        if pad is not None:
            tokens[tokens == pad] = (pad + 1) % vocabulary
        data = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        return devices.move(data, self.model)

    def probe(
        self,
        kind: Literal["heads", "kv_groups", "neurons"],
        kept: int,
        batch: int,
        length: int,
    ) -> Callable[[], Tensor | None]:
        """A callable that runs one attention or FFN sub-block with `kept` units where the model is, for latency tables.

        It has random weights and input [batch, length, hidden_size]. Norms that serve the sub-block alone, and
        the residual sum, are part of it; the LayerNorm of a post-norm layer stays when the sub-block goes, so it is
        not. With 0 units it does nothing.
        """
        width, layer = self._width_of(kind, kept)
        return self._probe(width, layer, kind, batch, length) if kept else lambda: None

    def stack(self, kind: Literal["heads", "kv_groups", "neurons"], kept: int, layers: int) -> Transformer:
        """A base model of `layers` layers that have one attention or FFN sub-block with `kept` units and nothing else.

        It has random weights, a vocabulary of 8 tokens, and is where this model is. With 0 units its layers are empty.
        """
        width, layer = self._width_of(kind, kept)
        model = self._build_layers([width if kept else Widths(0, 0, 0)] * layers, layer)
        return type(self)(model, self.family)

    def _width_of(self, kind: str, kept: int) -> tuple[Widths, int]:
        """(a layer of `kept` units of the kind and nothing else, the layer of this model that it is made after)."""
        needed = "neurons" if kind == "neurons" else "heads"
        layout = self.layout
        complete = [
            index for index, width in enumerate(layout.widths)
            if layout.blocks(index) and all(map(width.has, layout.blocks(index)))
        ]  # fmt: skip
        with_them = [index for index in complete if getattr(layout.widths[index], needed)]
        if not with_them and complete:
            rest = "experts" if self.family.experts else "others"
            raise UnsupportedError(f"no layer of this {self.family.model_type} model has {needed}: it has {rest} alone")
        if not with_them:
            raise UnsupportedError("no layer has all of its sub-blocks: open the uncut model to probe it")
        layer = max(with_them, key=lambda index: (layout.widths[index].kv, layout.widths[index].heads))
        first = layout.widths[layer]
        if kind == "neurons":
            width, field = Widths(0, 0, kept), "neurons"
        elif kind == "kv_groups" and first.kv < first.heads:
            width, field = Widths(kept * first.heads // first.kv, kept, 0), "kv"
        elif kind == "heads" and first.kv < first.heads:
            if kept % first.kv:
                raise InputError(f"heads={kept} does not spread evenly over {first.kv} KV groups")
            width, field = Widths(kept, first.kv, 0), "heads"
        elif kind == "heads":
            width, field = Widths(kept, kept, 0), "heads"
        else:
            raise InputError(f"probe kind {kind!r}: expected heads, neurons, or kv_groups in a grouped model")
        most = max(getattr(width, field) for width in layout.widths)
        if not 0 <= kept <= most:
            raise InputError(f"probe of {kept} {kind}: a layer here has {most}")
        return width, layer

    def _build_layers(self, widths: list[Widths], layer: int) -> PreTrainedModel:
        """A base model of such layers, all made after one of this model, with random weights; it knows 8 tokens."""
        layout = self.layout
        config = cutting.new_config(layout, widths, self.hidden_size, [layer] * len(widths), [*range(len(widths))])
        config.vocab_size = 8
        config.bos_token_id = config.eos_token_id = None
        config.pad_token_id = None if config.pad_token_id is None else 0
        base = saving.architecture(type(self.model.base_model), config, self.family)
        return base(config).to(device=self.model.device, dtype=self.model.dtype).eval()

    def _inputs_of(self, model: PreTrainedModel, tokens: Tensor) -> Mapping[str, Tensor]:
        """What another model of this kind is called with for tokens [B, S]."""
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}

    def _probe(self, width: Widths, index: int, kind: str, batch: int, length: int) -> Callable[[], Tensor]:
        device, model = self.model.device, self._build_layers([width], index)
        block = self.layout.blocks(index)["ffn" if kind == "neurons" else "attention"]
        layer = model.get_submodule(self.family.layers)[0]
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        module = layer.get_submodule(block.module)
        hook = module.register_forward_pre_hook(lambda _, args, kw: calls.append((args, kw)), with_kwargs=True)
        with torch.no_grad():
            tokens = torch.ones(batch, length, dtype=torch.long, device=device)
            inputs = self._inputs_of(model, tokens)
            model(**inputs, **({"use_cache": False} if self.kind == "decoder" else {}))
        hook.remove()
        args, kwargs = calls[0]
        hidden = torch.randn(batch, length, self.hidden_size, device=device, dtype=self.model.dtype)
        before = [layer.get_submodule(name) for name in block.before]
        after = [layer.get_submodule(name) for name in block.after]
        out = None if block.out.startswith(f"{block.module}.") else layer.get_submodule(block.out)

        @torch.no_grad()
        def run() -> Tensor:
            states = hidden
            for norm in before:
                states = norm(states)
            result = module(states, *args[1:], **kwargs) if args else module(**kwargs | {"hidden_states": states})
            states = result[0] if isinstance(result, tuple) else result
            if out is not None:
                states = out(states)
            for norm in after:
                states = norm(states)
            output: Tensor = hidden + states if before else states
            return output

        return run

    def save(self, folder: str | Path, *, card: str | None = None) -> None:
        """Write the model and all that belongs to it into `folder` (see `saving.save`); a part within its whole."""
        if self.whole is not None:
            self.whole.save(self, Path(folder))
            return
        saving.save(self, Path(folder), card)


@contextmanager
def record_states(subject: Transformer, wanted: bool) -> Iterator[list[Tensor]]:
    """Within the block, what enters the first layer and what leaves each one are put into the list, if wanted."""
    states: list[Tensor] = []
    with ExitStack() as stack:
        layers = [subject.model.get_submodule(path) for path in subject.layers()] if wanted else []
        for layer in layers[:1]:
            hook = layer.register_forward_pre_hook(
                lambda _, args, kw: states.append(find_states(args, kw)), with_kwargs=True
            )
            stack.callback(hook.remove)
        for layer in layers:
            hook = layer.register_forward_hook(
                lambda _, args, out: states.append(out[0] if isinstance(out, tuple) else out)
            )
            stack.callback(hook.remove)
        yield states


_POSITIONS = ("position_embeddings", "wpe", "embed_positions")
"""Names of tables of positions."""


def count_positions(model: PreTrainedModel) -> int | None:
    """How many tokens a sequence may have, by the model's table of positions; None for rotary positions, without end.

    It has one of three common names, or another that speaks of positions and the rows that the config says. RoBERTa
    counts its positions from behind the padding's, and BART leaves the first two out. Tables of how far tokens stand
    apart, and weights of linear layers that are kept as buffers, are none.
    """
    tables = [
        module for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in _POSITIONS
    ]  # fmt: skip
    if tables:
        return min(table.num_embeddings - _count_left_out(table) for table in tables)
    config = model.config
    stated = {getattr(config, name, None) for name in ("max_position_embeddings", "n_positions")}
    rows = []
    for path, module in model.named_modules():
        own = {path: module.weight} if isinstance(module, nn.Embedding) else dict(module.named_buffers(path, False))
        for name, table in own.items():
            named = any("pos" in part and "rel" not in part for part in name.split(".")[-2:])
            if named and table.dim() == 2 and len(table) in stated and not hasattr(module, "in_features"):
                padding = getattr(module, "padding_idx", None)
                rows.append(len(table) if padding is None else len(table) - padding - 1)
    return min(rows, default=None)


def _count_left_out(table: nn.Embedding) -> int:
    """Rows at the start of a table of positions that no position has."""
    offset = getattr(table, "offset", None)
    return int(offset) if offset is not None else 0 if table.padding_idx is None else table.padding_idx + 1


def _advise_unknown(model: PreTrainedModel, name: str) -> str:
    """What to do about the tensor `name`, which the table of its family does not know: the end of a refusal.

    Empty for a derived table, of which whoever derives it says what to do.
    """
    path = name.split(".")
    owners = [model.get_submodule(".".join(path[:end])) for end in range(1, len(path))]
    if any(type(owner).__module__.startswith("peft.") for owner in owners):
        return ": it belongs to an adapter, merge that first (merge_and_unload() of peft)"
    if find(model.config.model_type) is None:
        return ""
    if getattr(model.config, "add_cross_attention", False) and "cross" in name:
        return (
            ": it is of a cross-attention, which does nothing without an encoder, so save the model again with "
            "add_cross_attention=False in its config, or take secateur prune, which cuts it as any network"
        )
    return ": secateur prune cuts it as any network"


def _is_base(model: PreTrainedModel) -> bool:
    """Whether a model has no head: some classes with one name no base model that they have."""
    return model.base_model is model and not model.can_generate()


def _odd_widths(layout: Layout, widths: list[Widths], channels: int) -> list[str]:
    names = ("neurons", "expert_neurons", "shared_neurons")
    sizes, before = ({getattr(width, name) for width in some for name in names} for some in (widths, layout.widths))
    odd = {size for size in sizes if size % 8} - before
    odd |= {channels} if channels % 8 and channels != layout.hidden_size else set()
    return [f"widths that are no multiple of 8 run slower: {', '.join(map(str, sorted(odd)))}"] if odd else []


def find_states(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden states that a layer is called with."""
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states
