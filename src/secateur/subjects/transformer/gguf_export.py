"""GGUF, the file of llama.cpp: Llama-shaped decoders, of layers alike or each of its own widths."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from secateur.errors import MissingExtraError, NumericalError, UnsupportedError
from secateur.subjects.transformer import low_rank, saving
from secateur.subjects.transformer.subject import Transformer

if TYPE_CHECKING:
    from gguf import GGUFWriter

__all__ = ["to_gguf"]

_Table = Mapping[str, Any]
"""What stands in tokenizer.json."""

_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""Model type -> the architecture of GGUF that holds it."""
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
    (`deci`, Llama-shaped). The file is read again by gguf's own reader and compared, tensor by tensor;
    `NumericalError` where one differs. A tokenizer of bytes or of SentencePiece's kind goes along with its merges,
    special tokens and chat template; a note says where another is left out. Where layers have widths of their own, one
    without an FFN gets one of 32 neurons that are zero, which changes no output: llama.cpp skips the attention of a
    layer that has none. A sliding window is not written, for llama.cpp has none in these architectures: a note says
    from which length on texts come out otherwise.

    Raises:
        MissingExtraError: gguf is not installed.
        UnsupportedError: the model is of a family that is not written here, its widths fit no architecture, its layer 0
            has no attention, or its tokenizer has bytes to fall back on and is not of SentencePiece's kind.
    """
    gguf = _library()
    kind = _choose(subject)
    folder = Path(folder)
    writer = gguf.GGUFWriter(folder / "model.gguf", kind)
    notes = [*_write_shape(writer, subject), *_note_window(subject, kind), *_write_tokenizer(writer, subject)]
    tensors = dict(_name_tensors(subject, kind))
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensor in tensors.items():
        writer.add_tensor(name, *_as_stored(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _check(folder / "model.gguf", tensors)
    return tuple(notes)


def _choose(subject: Transformer) -> str:
    """The architecture that can hold the model."""
    config, name = subject.model.config, saving.plain_class(type(subject.model)).__name__
    kind = _ARCHITECTURES.get(config.model_type)
    if kind is None or not subject.causal:
        known = ", ".join(_ARCHITECTURES)
        raise UnsupportedError(f"a {name} can't be written as GGUF here: language models of {known} can")
    if saving.is_sliced(config) or low_rank.find_branches(subject.model):
        raise UnsupportedError("GGUF has no linears on residual connections and no branches: export without them")
    rope = config.rope_parameters or {}
    if rope.get("rope_type", "default") not in ("default", "linear", *(("llama3",) if kind == "llama" else ())):
        raise UnsupportedError(
            "GGUF is written here for plain and linear rotary positions, and for llama3's in models of llama and "
            f"mistral, and those of this {name} are {rope}: extend its context by one of these, or by none"
        )
    widths = subject.widths()
    if all(width == widths[0] for width in widths) and widths[0].heads and widths[0].neurons:
        return kind
    if kind != "llama" or getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        raise UnsupportedError(
            f"layers of unequal widths are in GGUF Llama-shaped and without biases, and this is a {name}: cut all "
            "layers alike"
        )
    if not widths[0].heads:
        raise UnsupportedError("llama.cpp takes the sizes of heads from layer 0: keep unit 0 of the attention site")
    return _UNEVEN


def _write_shape(writer: GGUFWriter, subject: Transformer) -> tuple[str, ...]:
    """The sizes and settings; returns a note where a layer gets an FFN that it has not."""
    config, widths = subject.model.config, subject.widths()
    writer.add_block_count(len(widths))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(subject.hidden_size)
    for add, counts in (
        (writer.add_feed_forward_length, [width.neurons or _EMPTY for width in widths]),
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
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    bare = [str(index) for index, width in enumerate(widths) if not width.neurons]
    if not bare:
        return ()
    return (
        f"layers {', '.join(bare)} have no FFN and got one of {_EMPTY} neurons that are zero: llama.cpp skips the "
        "attention of a layer that has none",
    )


def _note_window(subject: Transformer, kind: str) -> tuple[str, ...]:
    """That longer texts come out otherwise, where layers see no further back than a window; nothing where none does."""
    config = subject.model.config
    window, layers = getattr(config, "sliding_window", None), len(subject.widths())
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    sliding = kinds.count("sliding_attention")
    if not window or not sliding or window >= config.max_position_embeddings:
        return ()
    return (
        f"texts of more than {window:,} tokens come out otherwise in llama.cpp: its {kind} sees all of a text, and "
        f"{sliding} of this model's {layers} layers see the last {window:,} tokens",
    )


def _name_tensors(subject: Transformer, kind: str) -> Iterator[tuple[str, Tensor]]:
    """GGUF's names and the tensors, as llama.cpp wants them."""
    gguf = _library()
    config, widths = subject.model.config, subject.widths()
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(number, len(widths))
    for name, tensor in subject.model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UnsupportedError(f"GGUF's {kind} has no place for {name}")
        place = subject.layout.place(name)
        if kind in ("llama", _UNEVEN) and place.layer is not None and re.search(r"\.[qk]_proj\.", name):
            width = widths[place.layer]
            tensor = _interleave(tensor, width.heads if ".q_proj." in name else width.kv)
        yield found, tensor
    for layer, width in enumerate(widths):
        if not width.neurons:
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
        if said["model"].get("type") != "BPE":
            writer.add_tokenizer_model("none")
            kind = said["model"].get("type", "no tokenizer.json")
            return (f"GGUF can't hold its tokenizer ({kind}): the file takes and gives token ids",)
        pieces = bool(said["model"].get("byte_fallback"))
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
        gguf.SpecialVocab(folder, load_merges=not pieces, n_vocab=size).add_to_gguf(writer, quiet=True)
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
