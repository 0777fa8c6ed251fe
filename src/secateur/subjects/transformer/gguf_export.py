"""GGUF, the file of llama.cpp: decoders of layers alike, and Llama-shaped ones of layers with widths of their own.

What llama.cpp computes whatever a file says (activations, scales, which layers see a window) is in `_FORMS`. Source:
its loaders and graphs, src/models of github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

import json
import logging
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from secateur.errors import MissingExtraError, NumericalError, UnsupportedError
from secateur.formats import expert_tensors
from secateur.subjects.transformer import dequantising, saving
from secateur.subjects.transformer.export import refuse_additions
from secateur.subjects.transformer.subject import Transformer

if TYPE_CHECKING:
    from gguf import GGUFWriter

__all__ = ["to_gguf"]

_Table = Mapping[str, Any]
"""What stands in tokenizer.json."""


class _Form(NamedTuple):
    """An architecture of GGUF, and what llama.cpp computes of it whatever a file says."""

    name: str
    activations: tuple[str, ...] = ("silu", "swish")
    """transformers' names of the one function of its FFN."""
    ropes: tuple[str, ...] = ("default", "linear")
    pairs: bool = False
    """Whether rotary positions turn numbers side by side, not half a head apart."""
    biases: str = r"(?!)"
    """Pattern of the biases that it has."""
    unturned: int = 0
    """Of each so many layers the last has no positions; 0: all have."""
    whole: int = 0
    """Of each so many layers the last sees all of a text, and the others a window; 0: all see all."""


_LLAMA = _Form("llama", ropes=("default", "linear", "llama3"), pairs=True, biases="")
_FORMS = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _LLAMA,
    "qwen2": _Form("qwen2", biases=r"\.[qkv]_proj\.bias$"),
    "qwen3": _Form("qwen3"),
    "qwen3_moe": _Form("qwen3moe"),
    "gemma2": _Form("gemma2", ("gelu_pytorch_tanh", "gelu_new"), whole=2),
    "smollm3": _Form("smollm3", pairs=True, unturned=4),
}
"""Model type -> the architecture that holds it."""
_CAPS = {"attn_logit_softcapping": "attention scores", "final_logit_softcapping": "logits"}
"""Setting of what a tanh keeps within bounds, where a class has it."""
_UNEVEN = "deci"
"""The architecture whose layers have widths of their own, or no attention or FFN: Llama-shaped (Nemotron-NAS)."""
_EMPTY = 32
"""Neurons, all zero, of an FFN that stands for none."""
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_SPLITS = {
    rf"{_WORDS}|\p{{N}}|{_REST}": "qwen2",
    rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}": "llama-bpe",
    rf"{_CASED}|\p{{N}}|{_REST.replace('n]*', 'n/]*', 1)}": "tekken",
}
"""Pattern by which a byte-level tokenizer splits text -> how llama.cpp calls it."""
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "\u2581"
"""What stands for a space in tokenizers of SentencePiece's kind."""


def to_gguf(subject: Transformer, folder: str | Path) -> tuple[str, ...]:
    """Write `model.gguf` into `folder`, in the floats that the model has; returns notes.

    Head counts, KV heads and FFN widths that differ between layers stand as arrays, in the architecture that knows them
    (`deci`, Llama-shaped). The file is read again by gguf's own reader and compared, tensor by tensor; `NumericalError`
    where one differs. A tokenizer of bytes or of SentencePiece's kind goes along with its merges, special tokens and
    chat template; notes say where another is left out, and where llama.cpp alone reads the file. Where layers have
    widths of their own, one without an FFN gets one of 32 neurons that are zero, which changes no output: llama.cpp
    skips the attention of a layer that has none. Norms that multiply by 1 + weight are written so; where queries are
    scaled otherwise than llama.cpp scales them, their weights make up for it, in 32 bits. Which layers see a window, a
    file can't say: a note says from which length on texts come out otherwise, where the model's are not llama.cpp's.

    Raises:
        MissingExtraError: gguf is not installed.
        UnsupportedError: the model is of a family that is not written here, it computes what llama.cpp does not
            (another activation, biases, shares of experts that don't sum to 1), its widths fit no architecture, its
            layer 0 has no attention, or its tokenizer has bytes to fall back on and is not of SentencePiece's kind.
    """
    gguf = _library()
    form = _choose(subject)
    folder = Path(folder)
    writer = gguf.GGUFWriter(folder / "model.gguf", form.name)
    notes = [*_write_shape(writer, subject, form), *_note_window(subject, form), *_write_tokenizer(writer, subject)]
    tensors = dict(_name_tensors(subject, form))
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensor in tensors.items():
        writer.add_tensor(name, *_as_stored(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _check(folder / "model.gguf", tensors)
    return (*notes, *_note_reading(folder / "model.gguf"))


def _note_reading(file: Path) -> tuple[str, ...]:
    """That a file can't be opened again here, where transformers does not know its architecture."""
    obstacle = dequantising.find_obstacle(file)
    if not obstacle:
        return ()
    return (f"the file is for llama.cpp alone: it can't be opened here again ({obstacle}), so keep the folder",)


def _choose(subject: Transformer) -> _Form:
    """The architecture that can hold the model."""
    config, name = subject.model.config, saving.plain_class(type(subject.model)).__name__
    form = _FORMS.get(config.model_type)
    if form is None or not subject.causal:
        known = ", ".join(_FORMS)
        raise UnsupportedError(f"a {name} can't be written as GGUF here: language models of {known} can")
    refuse_additions(subject, "GGUF")
    rope = config.rope_parameters or {}
    if rope.get("rope_type", "default") not in form.ropes:
        raise UnsupportedError(
            "GGUF is written here for plain and linear rotary positions, and for llama3's in models of llama and "
            f"mistral, and those of this {name} are {rope}: extend its context by one of these, or by none"
        )
    wrong = _find_difference(subject, form)
    if wrong:
        raise UnsupportedError(f"{wrong}: outputs of llama.cpp would differ, so this {name} can't be written as GGUF")
    widths = subject.widths()
    if all(width == widths[0] for width in widths) and widths[0].heads and widths[0].ffn:
        return form
    if form is not _LLAMA or any(width.experts for width in widths) or _list_biases(subject):
        raise UnsupportedError(
            f"layers of unequal widths are in GGUF Llama-shaped, without experts and biases, and this is a {name}: cut "
            "all layers alike"
        )
    if not widths[0].heads:
        raise UnsupportedError("llama.cpp takes the sizes of heads from layer 0: keep unit 0 of the attention site")
    return form._replace(name=_UNEVEN)


def _find_difference(subject: Transformer, form: _Form) -> str:
    """What the model computes otherwise than llama.cpp does, whatever the file says; "" where nothing is known."""
    config, kind, layers = subject.model.config, form.name, len(subject.widths())
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation not in form.activations:
        return f"llama.cpp's {kind} has {form.activations[0]} in its FFN, and the model has {activation}"
    odd = [name for name in _list_biases(subject) if not re.search(form.biases, name)]
    if odd:
        return f"llama.cpp's {kind} has no place for {odd[0]}"
    if not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", False):
        return f"llama.cpp's {kind} sees what comes before a token alone, and the model what follows it too"
    if not getattr(config, "norm_topk_prob", True):
        return f"llama.cpp's {kind} makes the shares of the chosen experts sum to 1, and the model does not"
    uncapped = [what for setting, what in _CAPS.items() if getattr(config, setting, 1.0) is None]
    if uncapped:
        return f"llama.cpp's {kind} caps {uncapped[0]}, and the model does not"
    turned = [bool(one) for one in getattr(config, "no_rope_layers", None) or [True] * layers]
    if turned[:layers] != [not form.unturned or (layer + 1) % form.unturned != 0 for layer in range(layers)]:
        bare = ", ".join(str(layer) for layer in range(layers) if not turned[layer]) or "none"
        every = f"each {form.unturned}th layer" if form.unturned else "no layer"
        return f"llama.cpp's {kind} has {every} without positions, and the model layers {bare}"
    if _scale_queries(subject) != 1 and any(".q_norm." in name for name in subject.model.state_dict()):
        return f"llama.cpp's {kind} divides normed queries by the root of a head's size, and the model does not"
    return ""


def _list_biases(subject: Transformer) -> list[str]:
    return [name for name in subject.model.state_dict() if name.endswith(".bias")]


def _scale_queries(subject: Transformer) -> float:
    """By what queries have to be multiplied, so that the scale of llama.cpp gives the model's."""
    scales = (getattr(module, "scaling", None) for module in subject.model.modules() if hasattr(module, "q_proj"))
    ours = next((one for one in scales if one), subject.head_dim**-0.5)
    factor = float(ours) * math.sqrt(dequantising.find_query_size(subject.model.config, subject.head_dim))
    return 1.0 if math.isclose(factor, 1.0, rel_tol=1e-6) else factor


def _write_shape(writer: GGUFWriter, subject: Transformer, form: _Form) -> tuple[str, ...]:
    """The sizes and settings; returns a note where a layer gets an FFN that it has not."""
    config, widths = subject.model.config, subject.widths()
    dense = getattr(config, "moe_intermediate_size", None) and config.intermediate_size  # not that of experts
    writer.add_block_count(len(widths))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(subject.hidden_size)
    for add, counts in (
        (
            writer.add_feed_forward_length,
            [width.neurons or dense or width.expert_neurons or _EMPTY for width in widths],
        ),
        (writer.add_head_count, [width.heads for width in widths]),
        (writer.add_head_count_kv, [width.kv for width in widths]),
    ):
        add(counts[0] if len(set(counts)) == 1 else counts)
    writer.add_key_length(subject.head_dim)
    writer.add_value_length(subject.head_dim)
    writer.add_rope_dimension_count(subject.head_dim)
    rope = config.rope_parameters or {}
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(_library().RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if widths[0].experts:
        writer.add_expert_count(widths[0].experts)
        writer.add_expert_used_count(subject.layout.chosen)
        writer.add_expert_feed_forward_length(widths[0].expert_neurons)
    if hasattr(config, "final_logit_softcapping"):
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if form.whole:
        writer.add_sliding_window(config.sliding_window or config.max_position_embeddings)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    bare = [str(index) for index, width in enumerate(widths) if not width.ffn]
    if not bare:
        return ()
    return (
        f"layers {', '.join(bare)} have no FFN and got one of {_EMPTY} neurons that are zero: llama.cpp skips the "
        "attention of a layer that has none",
    )


def _note_window(subject: Transformer, form: _Form) -> tuple[str, ...]:
    """That longer texts come out otherwise, where other layers see a window than in llama.cpp; nothing where none."""
    config = subject.model.config
    window, layers = getattr(config, "sliding_window", None), len(subject.widths())
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    sliding = [kind == "sliding_attention" for kind in kinds[:layers]]
    theirs = [bool(form.whole) and (layer + 1) % form.whole != 0 for layer in range(layers)]
    if not window or sliding == theirs or window >= config.max_position_embeddings:
        return ()
    sees = f"sees all of a text in each {form.whole}nd layer alone" if form.whole else "sees all of a text"
    return (
        f"texts of more than {window:,} tokens come out otherwise in llama.cpp: its {form.name} {sees}, and "
        f"{sum(sliding)} of this model's {layers} layers see the last {window:,} tokens",
    )


def _name_tensors(subject: Transformer, form: _Form) -> Iterator[tuple[str, Tensor]]:
    """GGUF's names and the tensors, as llama.cpp wants them."""
    gguf = _library()
    config, widths = subject.model.config, subject.widths()
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == form.name)
    names = gguf.get_tensor_name_map(number, len(widths))
    offset, scale = subject.family.norm_offset, _scale_queries(subject)
    norms = {f"{path}.weight" for path in subject.layout.norms()}
    for name, tensor in _split_experts(subject):
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UnsupportedError(f"GGUF's {form.name} has no place for {name}")
        place = subject.layout.place(name)
        if form.pairs and place.layer is not None and re.search(r"\.[qk]_proj\.", name):
            width = widths[place.layer]
            tensor = _interleave(tensor, width.heads if ".q_proj." in name else width.kv)
        if scale != 1 and ".q_proj." in name:
            tensor = tensor.float() * scale
        if offset and name in norms:
            tensor = tensor.float() + offset
        if "ffn_gate_inp" in found:  # which llama.cpp's own converter keeps exact
            tensor = tensor.float()
        yield found, tensor
    for layer, width in enumerate(widths):
        if not width.ffn:
            yield f"blk.{layer}.ffn_norm.weight", torch.ones(subject.hidden_size)
            empty = torch.zeros(_EMPTY, subject.hidden_size, dtype=subject.model.dtype)
            yield f"blk.{layer}.ffn_gate.weight", empty
            yield f"blk.{layer}.ffn_up.weight", empty
            yield f"blk.{layer}.ffn_down.weight", empty.T
    rope = config.rope_parameters or {}
    if rope.get("rope_type", "default") == "llama3":
        scaled, _ = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))
        powers = torch.arange(0, subject.head_dim, 2).float() / subject.head_dim
        yield "rope_freqs.weight", float(rope["rope_theta"]) ** -powers / scaled


def _split_experts(subject: Transformer) -> Iterator[tuple[str, Tensor]]:
    """All tensors by name, a head's that is the embeddings' left out; of all experts of a layer, gate and up apart."""
    model = subject.model
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head is not None and head.weight is table.weight
    packed = {
        f"{path}.{leaf}": module
        for path, module in model.named_modules()
        if expert_tensors.is_packed(module)
        for leaf, _ in module.named_parameters(recurse=False)
    }
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        if name not in packed:
            yield name, tensor
            continue
        path, _, leaf = name.rpartition(".")
        whole = expert_tensors.matrix(packed[name], leaf, tensor)
        if leaf != "gate_up_proj":
            yield f"{name}.weight", whole
            continue
        for part, rows in zip(("gate_proj", "up_proj"), whole.chunk(2, dim=1), strict=True):
            yield f"{path}.{part}.weight", rows


def _interleave(tensor: Tensor, heads: int) -> Tensor:
    """Rows of each head in the order of llama.cpp's rotary positions: pairs side by side, not half a head apart."""
    halves = tensor.reshape(heads, 2, -1, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _as_stored(tensor: Tensor) -> tuple[np.ndarray, tuple[int, ...] | None, object]:
    """(array, shape, type): matrices in the model's own floats, vectors in 32 bits, as llama.cpp keeps them."""
    gguf = _library()
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dim() < 2 or tensor.dtype not in (torch.float16, torch.bfloat16):
        return tensor.float().numpy(), None, gguf.GGMLQuantizationType.F32
    if tensor.dtype == torch.float16:
        return tensor.numpy(), None, gguf.GGMLQuantizationType.F16
    return tensor.view(torch.uint8).numpy(), None, gguf.GGMLQuantizationType.BF16


def _check(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Compare what gguf reads with what was to be written."""
    gguf = _library()
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, tensor in tensors.items():
        found = torch.from_numpy(np.array(gguf.dequantize(read[name].data, read[name].tensor_type)))
        if not torch.equal(found.reshape(tensor.shape), tensor.detach().cpu().float()):
            raise NumericalError(f"{name} is not the same in the GGUF file: it is not usable")
    if read.keys() != tensors.keys():
        raise NumericalError("the GGUF file has other tensors than were written: it is not usable")


def _write_tokenizer(writer: GGUFWriter, subject: Transformer) -> tuple[str, ...]:
    """The tokens, merges, special tokens and chat template; or "none", with a note, for what GGUF can't hold."""
    gguf, size = _library(), subject.model.config.vocab_size
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if subject.tokenizer is not None:
            subject.tokenizer.save_pretrained(folder)
        file = folder / "tokenizer.json"
        said = json.loads(file.read_text("utf-8")) if file.is_file() else {"model": {}}
        kind = said["model"].get("type", "no tokenizer.json")
        pieces = bool(said["model"].get("byte_fallback"))
        if kind == "BPE" and not pieces and not said["model"].get("merges"):  # without which llama.cpp reads no file
            kind = "BPE without merges"
        if kind != "BPE":
            writer.add_tokenizer_model("none")
            return (f"GGUF can't hold its tokenizer ({kind}): the file takes and gives token ids",)
        tokens, types = _list_tokens(said, size)
        splitting, notes = "default", list[str]()
        if pieces:
            prefixed, notes = _check_pieces(said)
            writer.add_token_scores(_score_tokens(said, tokens, types))
            writer.add_add_space_prefix(prefixed)
        else:
            splitting = _name_splitting(said)
            if not splitting:
                notes = [
                    "how its tokenizer splits words is none that is known here: llama.cpp will do it as it does by "
                    "default"
                ]
        writer.add_tokenizer_model("llama" if pieces else "gpt2")
        writer.add_tokenizer_pre(splitting or "default")
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        logger = logging.getLogger("gguf")
        level = logger.level
        logger.setLevel(logging.ERROR)  # it warns of tokens that llama.cpp has no use for, such as BERT's [CLS]
        try:
            gguf.SpecialVocab(folder, load_merges=not pieces, n_vocab=size).add_to_gguf(writer, quiet=True)
        finally:
            logger.setLevel(level)
    return tuple(notes)


def _list_tokens(said: _Table, size: int) -> tuple[list[str], list[int]]:
    """Tokens of a tokenizer by number, and what kind each is; numbers that it has not are padding."""
    kinds, model = _library().TokenType, said["model"]
    tokens, types = [f"[PAD{number}]" for number in range(size)], [int(kinds.UNUSED)] * size
    of_bytes = _BYTE if model.get("byte_fallback") else re.compile(r"(?!)")
    found = [
        (number, token, kinds.BYTE if of_bytes.fullmatch(token) else kinds.NORMAL)
        for token, number in model["vocab"].items()
    ]
    found += [
        (added["id"], added["content"], kinds.CONTROL if added["special"] else kinds.USER_DEFINED)
        for added in said.get("added_tokens", [])
    ]
    if model.get("byte_fallback") and model.get("unk_token") in model["vocab"]:
        found.append((model["vocab"][model["unk_token"]], model["unk_token"], kinds.UNKNOWN))
    for number, token, kind in found:
        if number < size:  # the model has no embedding of those behind
            tokens[number], types[number] = token, int(kind)
    return tokens, types


def _score_tokens(said: _Table, tokens: Sequence[str], types: Sequence[int]) -> list[float]:
    """What llama.cpp merges pieces by, the highest first: -r for what merge number r makes, special tokens 0."""
    ranks = dict[str, int]()
    for rank, merge in enumerate(_list_merges(said)):
        ranks.setdefault("".join(merge), rank)
    kinds, lowest = _library().TokenType, len(said["model"]["merges"])
    merged = (kinds.NORMAL, kinds.USER_DEFINED)
    return [
        -float(ranks.get(token, lowest)) if kind in merged else 0.0 for token, kind in zip(tokens, types, strict=True)
    ]


def _list_merges(said: _Table) -> list[Sequence[str]]:
    return [merge.split(" ") if isinstance(merge, str) else merge for merge in said["model"]["merges"]]


def _check_pieces(said: _Table) -> tuple[bool, list[str]]:
    """(whether a space is put before a text, notes) of a tokenizer of SentencePiece's kind; refuses any other."""
    shown = json.dumps([said.get("normalizer"), said.get("pre_tokenizer")], ensure_ascii=False)
    vocab = said["model"]["vocab"]
    if _SPACE not in shown or "ByteLevel" in shown or not all(f"<0x{byte:02X}>" in vocab for byte in range(256)):
        raise UnsupportedError(
            "its tokenizer has bytes to fall back on, and is not of SentencePiece's kind (spaces as "
            f"{_SPACE}, tokens <0x00> to <0xFF>), which alone GGUF holds so: export the model without a tokenizer"
        )
    prefixed = '"Prepend"' in shown or re.search(r'"prepend_scheme": "(first|always)"', shown) is not None
    last, apart = dict[str, int](), 0
    for rank, merge in enumerate(_list_merges(said)):
        made = "".join(merge)
        apart += last.setdefault(made, rank) not in (rank, rank - 1)
        last[made] = rank
    if not apart:
        return prefixed, []
    return prefixed, [
        f"{apart} of its tokenizer's merges make a token that an earlier one makes: llama.cpp has one score for each "
        "token, and may split some words otherwise"
    ]


def _name_splitting(said: _Table) -> str:
    """llama.cpp's name of how a byte-level tokenizer splits text before its merges; "" where it has none here."""
    splitter = said.get("pre_tokenizer") or {}
    steps = splitter.get("pretokenizers", [splitter])
    if [step.get("type") for step in steps] == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if [step.get("type") for step in steps] != ["Split", "ByteLevel"] or steps[1].get("use_regex", True):
        return ""
    if steps[0].get("behavior") != "Isolated" or steps[0].get("invert"):
        return ""
    return _SPLITS.get(steps[0]["pattern"].get("Regex", ""), "")


def _library() -> ModuleType:
    try:
        import gguf
    except ImportError as error:
        raise MissingExtraError("GGUF export needs gguf: pip install 'secateur[gguf]'") from error
    return gguf
