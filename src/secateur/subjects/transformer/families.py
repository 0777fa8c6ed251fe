"""Tables of module names and axes for each family of transformers.

A family is a table: module -> the axes of its weight. From this one table follow the cut (which rows and
columns stay), the silenced reference, exact parameter, byte, FLOP and cache costs, and the modelling file that
travels with a heterogeneous result. A new family is one more table, not a class.

An axis is written as

    ""           fixed: never cut (vocabulary, positions, labels)
    "channels"   the residual stream
    "neurons"    FFN neurons
    "heads*"     query heads, `head_dim` rows each; "heads*3": three times as many, queries, keys and values of a head
    "heads"      query heads, one number each
    "kv*"        key/value heads, `head_dim` rows each (the query heads themselves where there are no groups)
    "cross*"     heads of a cross-attention, `head_dim` rows each
    "state_heads"   heads of the states of a mixer (Mamba-2), one number each; "state_heads*": all channels of each;
                 "state_heads*n": as many numbers each as the tensor has, the same in all such parts
    "state_fixed"   what its groups of heads share (B and C), which stays whole
    "experts"    the experts of a mixture
    "expert_neurons", "shared_neurons"  the FFN neurons of each expert, and of the expert that every token passes
    "a+b"        the parts one after the other, as in a fused projection

A bias follows the output axis of its weight. A tensor that is no weight of a module stands under its own name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from secateur.errors import UnsupportedError
from secateur.formats.reload import Table

__all__ = ["FAMILIES", "Axes", "Block", "Experts", "Family", "Kind", "Stack", "States", "find"]

Axes = tuple[str, ...]
Kind = Literal["attention", "cross", "ffn", "mixer"]


@dataclass(frozen=True)
class Block:
    """A sub-block: an attention, a cross-attention, an FFN, or a mixer; names are relative to the layer.

    A cross-attention ("cross") takes its keys and values from what the encoder gives. A mixer is any other sub-block
    that writes into the residual stream, such as a Mamba, a gated delta rule or a short convolution. module: what is
    called on the hidden states; out: the linear back into the residual stream (inside `module` or after it); tensors:
    module -> axes; before, after: norms which serve this sub-block alone and leave with it (`after` stays where `out`
    has a bias, for the bias passes through it); gives: values in the tuple that the module returns, 0 where it returns
    the states alone; beside: a module without which a layer has this one with other norms.
    """

    kind: Kind
    module: str
    out: str
    tensors: Mapping[str, Axes]
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    gives: int = 0
    beside: str = ""


@dataclass(frozen=True)
class Experts:
    """What stands in place of the FFN of a layer with experts; names are relative to the layer, others the config's.

    tensors: module or tensor -> axes. packed: the module of all experts, in a form of `formats.expert_tensors`.
    router: gives each token its experts. shared: the expert that every token passes, "" where there is none.
    """

    tensors: Mapping[str, Axes]
    packed: str
    router: str
    shared: str
    count: str
    """The config's number of experts."""
    neurons: str
    """The config's width of an expert."""
    shared_neurons: str = "shared_expert_intermediate_size"
    """The config's width of the shared expert; one of our own where the class knows a number of experts only."""
    shared_count: str = ""
    """The config's number of experts that the shared one is as wide as (DeepSeek)."""
    least: int = 1
    """Experts by which a group of experts is chosen, so that each group holds as many."""
    dense: str = ""
    """Where the config says which layers have a plain FFN: mlp_only_layers lists them, others count the first ones."""


@dataclass(frozen=True)
class States:
    """The heads of mixers: with a decay of their own, in groups that share B and C (Mamba-2), or which share nothing.

    Those that share nothing are what `mixer_heads` finds: key heads of a gated delta rule with their value heads,
    blocks of an RG-LRU, channels of a short convolution. Names are relative to the layer. heads, channels: the config's
    number of heads, and of the channels of each; names of our own where the class knows none.
    """

    module: str
    counter: str
    """The tensor with one number for each head, or the attribute of a module that counts them."""
    norm: str
    """The norm over all channels of all heads, or of each group; "" where there is none."""
    heads: str
    channels: str
    says_heads: bool = True
    """The class reads the number of heads from its config."""
    beside: str = ""
    """The config's number of what each head has several of, value heads of a key head; "" where there is none."""
    counts: tuple[str, ...] = ()
    """Attributes of modules that are a number of times that of heads which share nothing."""


@dataclass(frozen=True)
class Stack:
    """A list of layers, relative to the base model, and the config's names for their number, heads and neurons."""

    layers: str
    count: str
    heads: str
    neurons: str


@dataclass(frozen=True)
class Family:
    """One model type; names are relative to the base model (`model.base_model`), task heads to the model."""

    model_type: str
    kind: Literal["encoder", "decoder"]
    layers: str
    blocks: tuple[Block, ...]
    """The sub-blocks that layers have: each layer those which stand in it, at most one of a kind."""
    shared: Mapping[str, Axes]
    """Embeddings, final norm, pooler and task heads."""
    layer: Mapping[str, Axes] = field(default_factory=dict)
    """What belongs to a layer but to none of its sub-blocks (the LayerNorms of a post-norm layer)."""
    per_sequence: tuple[str, ...] = ()
    """Shared linears that run once per sequence, not per token."""
    neurons: str = "intermediate_size"
    """The config's name for the FFN width; one of our own where the class knows none."""
    states_neurons: bool = True
    """The class reads the FFN width from its config; otherwise it is a multiple of the hidden size."""
    states_head_dim: bool = True
    """The config may state head_dim; otherwise head_dim is always hidden_size / heads."""
    heads_divide: bool = False
    """The config class refuses head counts that do not divide hidden_size."""
    conv1d: bool = False
    """Weights are stored [in, out] (GPT-2)."""
    norm_offset: float = 0.0
    """The norm multiplies by offset + weight (1 in Gemma)."""
    scaled_embedding: bool = False
    """Embeddings are multiplied by sqrt(hidden_size)."""
    rounds_scale: bool = False
    """That root is rounded to bfloat16, whatever the type of the weights (RecurrentGemma)."""
    qk_norms: tuple[str, ...] = ()
    """Projections whose output is RMS-normalised per head, with the config's one epsilon."""
    checks_ropes: bool = False
    """The config class measures long-context rope factors by hidden_size / heads, whatever head_dim says (Phi-3)."""
    own_config: bool = False
    """The attention reads head counts from its config in every forward pass (Phi-3)."""
    keeps_heads: bool = False
    """The config's number of heads is that of something else, too: it stays, and every layer states its own."""
    own_settings: tuple[str, ...] = ()
    """What the class itself gives layers values of their own of, such as head_dim (Gemma 4)."""
    experts: Experts | None = None
    """The mixture of experts that all layers have, or all but some."""
    bare_channels: bool = False
    """Where `whole` says that channels stay: they can go if norms then run over those that stay, uncorrected."""
    states: States | None = None
    """The states of its mixers, where their heads and channels can go."""
    whole: Mapping[str, str] = field(default_factory=dict)
    """Axis that stays whole -> why."""
    cached: int | str = 0
    """Key/value heads that a layer caches, or the config's name for them, where num_key_value_heads doesn't say it."""
    first_stays: str = ""
    """Why the first layer can't go, where others can; with two stacks, that of each."""
    first_layers: int = 1
    """How many of the first layers `first_stays` speaks of."""
    stacks: tuple[Stack, ...] = ()
    """The lists of layers, an encoder's before its decoder's, where the config has names of their own for them."""
    caches_by_encoder: bool = False
    """Generation makes a cache of as many layers as the encoder has, so the decoder may not be deeper (T5)."""
    shares_positions: bool = False
    """The first layer of a stack has a table of positions, by heads, which all of its layers read (T5)."""
    attention_ratio: float = 1.0
    """FLOPs that grow with the square of the length, by those of products with keys and values: 2 where either half of
    the values meets all weights (DiffLlama), as a small copy has it. Where no sub-block is an attention, by those of
    heads as the config has them (BLOOM)."""
    notes: str = ""

    @property
    def attention(self) -> Block:
        """The attention of its layers; `UnsupportedError` where none of them has one."""
        return self._find_block("attention")

    @property
    def ffn(self) -> Block:
        """The FFN of its layers; `UnsupportedError` where none of them has one."""
        return self._find_block("ffn")

    @property
    def attends(self) -> bool:
        """Whether layers have an attention that is a sub-block."""
        return any(block.kind == "attention" for block in self.blocks)

    def _find_block(self, kind: Kind) -> Block:
        block = next((block for block in self.blocks if block.kind == kind), None)
        if block is None:
            raise UnsupportedError(f"the layers of a {self.model_type} model have no {kind}")
        return block

    def plain(self) -> Table:
        """What the travelling modelling file needs, as a literal."""
        data = asdict(self)
        names = ("layers", "blocks", "neurons", "conv1d", "own_config", "own_settings", "experts", "states", "whole")
        return {name: data[name] for name in (*names, "shares_positions")} | {"stacks": self.lists}

    @property
    def lists(self) -> list[str]:
        """Paths of the lists of layers, relative to the base model: one, or an encoder's and its decoder's."""
        return [stack.layers for stack in self.stacks] or [self.layers]

    @property
    def has_encoder(self) -> bool:
        """Whether it is an encoder with a decoder."""
        return len(self.stacks) == 2

    def stream(self) -> dict[str, Any]:
        """What reads and writes the residual stream of a decoder with norms before its sub-blocks, as a literal.

        For the modelling file of one that was rotated and sliced, see `formats.sliced`.
        """
        found: dict[str, Any] = {
            "layers": self.layers,
            "embeddings": [name for name, axes in self.shared.items() if axes == _TABLE],  # and heads
            "final": next(name for name, axes in self.shared.items() if axes == _CHANNELS),
            "conv1d": self.conv1d,
        }
        for kind, block in (("attention", self.attention), ("ffn", self.ffn)):
            reading = 0 if self.conv1d else 1
            reads = [name for name, axes in block.tensors.items() if len(axes) == 2 and axes[reading] == "channels"]
            found[kind] = {"module": block.module, "norm": block.before[0], "out": block.out, "reads": reads}
        return found


_CHANNELS: Axes = ("channels",)
_TABLE: Axes = ("", "channels")
_SQUARE: Axes = ("channels", "channels")
_IN: Axes = ("neurons", "channels")
_OUT: Axes = ("channels", "neurons")
_HEADS: Axes = ("heads*", "channels")
_KV: Axes = ("kv*", "channels")
_HEADS_OUT: Axes = ("channels", "heads*")


# ------------------------------------------------------------------------------------------------- encoders

_BERT_ATTENTION = Block(
    "attention",
    module="attention.self",
    out="attention.output.dense",
    tensors={
        "attention.self.query": _HEADS,
        "attention.self.key": _HEADS,
        "attention.self.value": _HEADS,
        "attention.output.dense": _HEADS_OUT,
    },
    gives=2,
)
_BERT_FFN = Block(
    "ffn",
    module="intermediate",
    out="output.dense",
    tensors={"intermediate.dense": _IN, "output.dense": _OUT},
)
_BERT_LAYER = {"attention.output.LayerNorm": _CHANNELS, "output.LayerNorm": _CHANNELS}
_BERT_SHARED = {
    "embeddings.word_embeddings": _TABLE,
    "embeddings.position_embeddings": _TABLE,
    "embeddings.token_type_embeddings": _TABLE,
    "embeddings.LayerNorm": _CHANNELS,
    "pooler.dense": _SQUARE,
    "classifier": _TABLE,
}

_BERT = Family(
    "bert",
    "encoder",
    layers="encoder.layer",
    blocks=(_BERT_ATTENTION, _BERT_FFN),
    layer=_BERT_LAYER,
    shared=_BERT_SHARED
    | {
        "cls.predictions.transform.dense": _SQUARE,
        "cls.predictions.transform.LayerNorm": _CHANNELS,
        "cls.predictions.decoder": _TABLE,
        "cls.predictions": ("",),
        "cls.seq_relationship": _TABLE,
    },
    per_sequence=("pooler.dense", "classifier", "cls.seq_relationship"),
    states_head_dim=False,
)

_ROBERTA = replace(
    _BERT,
    model_type="roberta",
    shared=_BERT_SHARED
    | {
        "classifier.dense": _SQUARE,
        "classifier.out_proj": _TABLE,
        "lm_head.dense": _SQUARE,
        "lm_head.layer_norm": _CHANNELS,
        "lm_head.decoder": _TABLE,
        "lm_head": ("",),
    },
    per_sequence=("pooler.dense", "classifier", "classifier.dense", "classifier.out_proj"),
)

_DISTILBERT = Family(
    "distilbert",
    "encoder",
    layers="transformer.layer",
    blocks=(
        Block(
            "attention",
            module="attention",
            out="attention.out_lin",
            tensors={
                "attention.q_lin": _HEADS,
                "attention.k_lin": _HEADS,
                "attention.v_lin": _HEADS,
                "attention.out_lin": _HEADS_OUT,
            },
            gives=2,
        ),
        Block("ffn", module="ffn", out="ffn.lin2", tensors={"ffn.lin1": _IN, "ffn.lin2": _OUT}),
    ),
    layer={"sa_layer_norm": _CHANNELS, "output_layer_norm": _CHANNELS},
    shared={
        "embeddings.word_embeddings": _TABLE,
        "embeddings.position_embeddings": _TABLE,
        "embeddings.LayerNorm": _CHANNELS,
        "pre_classifier": _SQUARE,
        "classifier": _TABLE,
        "vocab_transform": _SQUARE,
        "vocab_layer_norm": _CHANNELS,
        "vocab_projector": _TABLE,
    },
    per_sequence=("pre_classifier", "classifier"),
    neurons="hidden_dim",
    states_head_dim=False,
)


# ------------------------------------------------------------------------------------------------- decoders

_GPT2 = Family(
    "gpt2",
    "decoder",
    layers="h",
    blocks=(
        Block(
            "attention",
            module="attn",
            out="attn.c_proj",
            tensors={"attn.c_attn": ("channels", "heads*+heads*+heads*"), "attn.c_proj": ("heads*", "channels")},
            before=("ln_1",),
            gives=2,
        ),
        Block(
            "ffn",
            module="mlp",
            out="mlp.c_proj",
            tensors={"mlp.c_fc": ("channels", "neurons"), "mlp.c_proj": ("neurons", "channels")},
            before=("ln_2",),
        ),
    ),
    shared={"wte": _TABLE, "wpe": _TABLE, "ln_f": _CHANNELS, "lm_head": _TABLE, "score": _TABLE},
    neurons="n_inner",
    states_head_dim=False,
    conv1d=True,
)

_LLAMA_SHARED = {
    "embed_tokens": _TABLE,
    "norm": _CHANNELS,
    "lm_head": _TABLE,
    "score": _TABLE,
}
_LLAMA_QKVO = {
    "self_attn.q_proj": _HEADS,
    "self_attn.k_proj": _KV,
    "self_attn.v_proj": _KV,
    "self_attn.o_proj": _HEADS_OUT,
}
_QK_NORMS: dict[str, Axes] = {"self_attn.q_norm": ("",), "self_attn.k_norm": ("",)}
_GATED = {"mlp.gate_proj": _IN, "mlp.up_proj": _IN, "mlp.down_proj": _OUT}


def _llama(model_type: str, *, qk_norms: bool = False, sandwich: bool = False, **more: Any) -> Family:
    """A pre-norm decoder with separate projections; `sandwich` has norms after the sub-blocks too (Gemma)."""
    return Family(
        model_type,
        "decoder",
        layers="layers",
        blocks=(
            Block(
                "attention",
                module="self_attn",
                out="self_attn.o_proj",
                tensors=_LLAMA_QKVO | (_QK_NORMS if qk_norms else {}),
                before=("input_layernorm",),
                after=("post_attention_layernorm",) if sandwich else (),
                gives=2,
            ),
            Block(
                "ffn",
                module="mlp",
                out="mlp.down_proj",
                tensors=_GATED,
                before=("pre_feedforward_layernorm" if sandwich else "post_attention_layernorm",),
                after=("post_feedforward_layernorm",) if sandwich else (),
            ),
        ),
        shared=_LLAMA_SHARED,
        qk_norms=("self_attn.q_proj", "self_attn.k_proj") if qk_norms else (),
        **more,
    )


_PHI3 = Family(
    "phi3",
    "decoder",
    layers="layers",
    blocks=(
        Block(
            "attention",
            module="self_attn",
            out="self_attn.o_proj",
            tensors={"self_attn.qkv_proj": ("heads*+kv*+kv*", "channels"), "self_attn.o_proj": _HEADS_OUT},
            before=("input_layernorm",),
            gives=2,
        ),
        Block(
            "ffn",
            module="mlp",
            out="mlp.down_proj",
            tensors={"mlp.gate_up_proj": ("neurons+neurons", "channels"), "mlp.down_proj": _OUT},
            before=("post_attention_layernorm",),
        ),
    ),
    shared=_LLAMA_SHARED,
    checks_ropes=True,
    own_config=True,
)


# ---------------------------------------------------------------------------------------------- mixtures of experts


def _experts(router: str, shared: str = "", *, bias: bool = False, gate: bool = False, **names: Any) -> Experts:
    """Packed experts with a router; `bias` of the choice alone (DeepSeek-V3), `gate` of the shared expert (Qwen2)."""
    tensors: dict[str, Axes] = {
        f"mlp.{router}": ("experts", "channels"),
        "mlp.experts.gate_up_proj": ("experts", "expert_neurons+expert_neurons", "channels"),
        "mlp.experts.down_proj": ("experts", "channels", "expert_neurons"),
    }
    if bias:
        tensors[f"mlp.{router}.e_score_correction_bias"] = ("experts",)
    if shared:
        into: Axes = ("shared_neurons", "channels")
        tensors |= {f"mlp.{shared}.{name}": into for name in ("gate_proj", "up_proj")}
        tensors[f"mlp.{shared}.down_proj"] = ("channels", "shared_neurons")
    if gate:
        tensors[f"mlp.{shared}_gate"] = _TABLE
    return Experts(tensors, "mlp.experts", f"mlp.{router}", f"mlp.{shared}" if shared else "", **names)


_LATENT_WHOLE = {"heads": "its heads share one latent of keys and values, with widths of their own"}


def _latent(model_type: str, experts: Experts, **more: Any) -> Family:
    """A decoder whose keys and values of all heads come from one latent vector (DeepSeek)."""
    fixed: Axes = ("",)
    tensors: dict[str, Axes] = {
        "self_attn.q_proj": _TABLE,
        "self_attn.q_a_proj": _TABLE,
        "self_attn.q_a_layernorm": fixed,
        "self_attn.q_b_proj": ("", ""),
        "self_attn.kv_a_proj_with_mqa": _TABLE,
        "self_attn.kv_a_layernorm": fixed,
        "self_attn.kv_b_proj": ("", ""),
        "self_attn.o_proj": ("channels", ""),
    }
    plain = _llama(model_type, experts=experts, **more)
    return replace(plain, blocks=(replace(plain.attention, tensors=tensors), plain.ffn))


_MIXTURES = (
    _llama("mixtral", experts=_experts("gate", count="num_local_experts", neurons="intermediate_size")),
    _llama(
        "qwen2_moe",
        experts=_experts(
            "gate",
            "shared_expert",
            gate=True,
            count="num_experts",
            neurons="moe_intermediate_size",
            dense="mlp_only_layers",
        ),
    ),
    _llama(
        "qwen3_moe",
        qk_norms=True,
        experts=_experts("gate", count="num_experts", neurons="moe_intermediate_size", dense="mlp_only_layers"),
    ),
    _llama(
        "olmoe",
        qk_norms=True,
        experts=_experts("gate", count="num_experts", neurons="intermediate_size"),
        whole={
            "heads": "its query and key norms run over all heads at once",
            "channels": "its query norm is as wide as the hidden size",
        },
    ),
    _llama("phimoe", experts=_experts("router", count="num_local_experts", neurons="intermediate_size")),
    _latent(
        "deepseek_v2",
        _experts(
            "gate",
            "shared_experts",
            count="n_routed_experts",
            neurons="moe_intermediate_size",
            shared_count="n_shared_experts",
            dense="first_k_dense_replace",
        ),
        whole=_LATENT_WHOLE | {"channels": "its config class wants a hidden size that the heads divide"},
    ),
    _latent(
        "deepseek_v3",
        _experts(
            "gate",
            "shared_experts",
            bias=True,
            least=2,
            count="n_routed_experts",
            neurons="moe_intermediate_size",
            shared_count="n_shared_experts",
            dense="first_k_dense_replace",
        ),
        whole=_LATENT_WHOLE,
    ),
)

_GEMMA: dict[str, Any] = {"sandwich": True, "norm_offset": 1.0, "scaled_embedding": True, "heads_divide": True}

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        _BERT,
        _ROBERTA,
        _DISTILBERT,
        _GPT2,
        _llama("llama", heads_divide=True),
        _llama("mistral"),
        _llama("qwen2"),
        _llama("qwen3", qk_norms=True),
        _llama("gemma2", **_GEMMA),
        _llama("gemma3_text", qk_norms=True, **_GEMMA),
        _PHI3,
        *_MIXTURES,
    )
}


def find(model_type: str) -> Family | None:
    """The family of a config's `model_type`, if it is known."""
    return FAMILIES.get(model_type)
