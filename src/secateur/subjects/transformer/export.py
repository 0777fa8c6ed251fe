"""Other forms of a subject, each checked against its own output: ONNX, and DeciLM's `block_configs`."""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from secateur._utils import checkpoints
from secateur._utils.rundir import say_what_takes_long
from secateur.errors import NumericalError, SecateurError, UnsupportedError
from secateur.formats import decilm, onnx_files
from secateur.subjects.network import pretrained
from secateur.subjects.network.recording import Example
from secateur.subjects.network.traced import Traced
from secateur.subjects.transformer import low_rank, saving
from secateur.subjects.transformer.layout import Widths
from secateur.subjects.transformer.small_copy import describe_error
from secateur.subjects.transformer.steps import CachedPass, ForwardPass, TextNetwork, name_class
from secateur.subjects.transformer.subject import Transformer, count_positions

__all__ = ["network_to_onnx", "refuse_additions", "to_decilm", "to_onnx"]

Texts: TypeAlias = Transformer | TextNetwork

_MASK = "attention_mask"

_LONG = 600
"""Tokens of a text that has more chunks than one, which are of 256 tokens mostly."""

_CACHED = 1e-3
"""Largest difference of logits behind a cache to those of one pass, relative to the largest or 1."""


def to_onnx(subject: Transformer, folder: str | Path) -> tuple[str, ...]:
    """Write `model.onnx` into `folder`, with the tokenizer and config beside it; returns notes.

    Inputs: input_ids, attention_mask, int64 [batch, sequence], both axes dynamic. Outputs: logits; or
    last_hidden_state, and sentence_embedding where the subject is a sentence-transformers folder.

    A language model generates: position_ids [batch, sequence] and past_key_values.I.key and .value [batch, KV heads,
    past, head size] go in too, with a mask [batch, past + sequence]; present.I.key and .value come out, by the names
    that Optimum and onnxruntime's generators know. past is 0 for a prompt. I counts the layers that have attention, and
    leaves out those that have lost it: a generator must take names and shapes from the file and not from config.json,
    whose layers count all. (Where none has attention, all are there, with one head of width 1 that counts tokens.)
    One that keeps other states is written without them, which a note says; `UnsupportedError` where the file would hold
    for texts of one length only.

    The file is run under onnxruntime on inputs of other sizes than the traced ones, with padding; `NumericalError` if
    any output is off by more than 1e-4 of its largest value.
    """
    onnx_files.check_installed()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = copy.deepcopy(subject.model).float().cpu().eval()
    if hasattr(model, "set_experts_implementation") and subject.family.experts is not None:
        model.set_experts_implementation("batched_mm")  # grouped products have no counterpart in ONNX
    whole = subject._copy(model, subject.layer_index)
    with say_what_takes_long("export to ONNX"):  # minutes, where loops over states are written out
        notes = _write_either(whole, folder / "model.onnx")
    _write_configs(subject.model, folder, generates=whole.causal)
    if subject.tokenizer is not None:
        subject.tokenizer.save_pretrained(folder)
    return notes


def network_to_onnx(network: Traced, folder: Path) -> tuple[str, ...]:
    """Write a network of transformers as `model.onnx` in `folder`, and its config; returns notes.

    What reads tokens alone becomes what `to_onnx` writes of a subject, with a cache where it generates and keeps keys
    and values. Any other, such as an encoder-decoder, is one pass from all its inputs to all its outputs, with the mask
    of its tokens where that exports. A note says where the file holds for texts of one length only, or generates not
    though the network does. Raises as `to_onnx`, for a network whose states go from token to token in a loop, too.
    """
    onnx_files.check_installed()
    folder.mkdir(parents=True, exist_ok=True)
    model = cast(PreTrainedModel, copy.deepcopy(network.model).float().cpu().eval())
    if pretrained.has_experts(model):
        with contextlib.suppress(Exception):  # experts of a form that knows one way alone
            model.set_experts_implementation("batched_mm")  # grouped products have no counterpart in ONNX
    with say_what_takes_long("export to ONNX"):
        notes = _write_network(model, network.inputs, folder / "model.onnx")
    _write_configs(cast(PreTrainedModel, network.model), folder, generates=model.can_generate())
    return notes


def _write_configs(model: PreTrainedModel, folder: Path, *, generates: bool) -> None:
    model.config.save_pretrained(folder)
    config = checkpoints.read_json(folder / "config.json")
    config.pop("auto_map", None)  # the modelling file does not go along
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if generates and model.generation_config is not None:
        model.generation_config.save_pretrained(folder)


def _write_network(model: PreTrainedModel, inputs: Example, path: Path) -> tuple[str, ...]:
    """As a language model or an encoder, or else with whatever goes in and comes out."""
    args, kwargs = inputs.fresh()
    tensors = {name: one for name, one in kwargs.items() if isinstance(one, Tensor)}
    lines = (_WITHOUT_CACHE,) if model.can_generate() else ()
    if not pretrained.takes_tokens(model):
        return (*onnx_files.write_module(model, args, kwargs, path), *lines)
    if not args and [*tensors] == [model.main_input_name]:
        notes = _write_texts(model, path)
        if notes is not None:
            return notes
    if model.main_input_name in tensors and _MASK in inspect.signature(model.forward).parameters.keys() - kwargs.keys():
        mask = torch.ones_like(tensors[model.main_input_name])
        mask[-1, mask.shape[1] * 2 // 3 :] = 0  # a mask of ones would be folded away
        with contextlib.suppress(Exception):  # then without it
            return (*onnx_files.write_module(model, args, kwargs | {_MASK: mask}, path), *lines)
        path.unlink(missing_ok=True)
    return (*onnx_files.write_module(model, args, kwargs, path), *lines)


def _write_texts(model: PreTrainedModel, path: Path) -> tuple[str, ...] | None:
    """Behind a cache, or as one pass; None where its class, or the export of it, has something against both."""
    try:
        texts = TextNetwork(model)
    except Exception:  # of a class that nobody here knows
        return None
    notes = _attempt(_write_generating, texts, path) if texts.causal else None
    if notes is not None:
        return notes
    notes = _attempt(_write_pass, texts, path)
    return (*notes, _WITHOUT_CACHE) if notes is not None and texts.causal else notes


def _write_either(subject: Transformer, path: Path) -> tuple[str, ...]:
    """Behind a cache, or else as one pass. Raises `UnsupportedError` where the exporter takes neither."""
    notes = _attempt(_write_generating, subject, path) if subject.causal else None
    if notes is not None:
        return notes
    try:
        notes = _write_pass(subject, path)
    except SecateurError:
        raise
    except Exception as error:  # of the exporter or of onnxruntime
        path.unlink(missing_ok=True)
        why = f"{type(error).__name__}: {describe_error(error)}"
        raise UnsupportedError(f"a {name_class(subject.model)} can't be exported to ONNX ({why})") from error
    return (*notes, _WITHOUT_CACHE) if subject.causal else notes


def _attempt(write: Callable[[Texts, Path], tuple[str, ...]], texts: Texts, path: Path) -> tuple[str, ...] | None:
    """What `write` gives; None where it fails otherwise than by a refusal, or than for outputs that differ."""
    try:
        return write(texts, path)
    except SecateurError:
        raise
    except Exception:  # of the exporter or of onnxruntime
        path.unlink(missing_ok=True)
        return None


_WITHOUT_CACHE = "the ONNX file is without a cache: it reads whole texts and does not generate"


def _write_pass(subject: Texts, path: Path) -> tuple[str, ...]:
    """A pass over whole sequences."""
    names = {
        "logits": ["logits"],
        "states": ["last_hidden_state"],
        "embedding": ["last_hidden_state", "sentence_embedding"],
    }[subject.output]
    runnable = ForwardPass(subject).eval()
    example = subject.example(3, 11)
    example["attention_mask"][1, 7:] = 0  # a mask of ones would be folded away
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    onnx_files.write(
        runnable,
        path,
        (example["input_ids"], example["attention_mask"]),
        dynamic_shapes={"input_ids": axes, "attention_mask": axes},
        input_names=["input_ids", "attention_mask"],
        output_names=names,
    )
    _check_free(subject, path)
    batches = []
    for batch, length in ((1, 5), (4, 17)):
        example = subject.example(batch, length)
        example["attention_mask"][-1, length - 2 :] = 0
        with torch.no_grad():
            expected = runnable(example["input_ids"], example["attention_mask"])
        # What stands at padded positions is never used, and runtimes fill masks differently.
        real = example["attention_mask"].bool()
        batches.append((example, [(one, real if one.shape[:2] == (batch, length) else ...) for one in expected]))
    onnx_files.check(path, batches)
    return ()


def _check_free(subject: Texts, path: Path) -> None:
    """Raise `UnsupportedError` for a file that holds for texts about as long as the traced ones alone.

    As that of a model whose states go from token to token, or from chunk to chunk, in a loop, which the exporter
    writes out.
    """
    shape = onnx_files.open_session(path).get_inputs()[0].shape
    if any(isinstance(size, int) for size in shape) or (subject.kind == "decoder" and _fails_on_long(subject, path)):
        raise UnsupportedError(
            f"a {name_class(subject.model)} can't be exported to ONNX: how it computes its "
            "states depends on the length of the text, so the file would not take texts of any length"
        )


def _fails_on_long(subject: Texts, path: Path) -> bool:
    """Whether the file fails where the model itself reads a text of several chunks."""
    example = subject.example(1, min(_LONG, count_positions(subject.model) or _LONG))
    try:
        with torch.no_grad():
            expected = ForwardPass(subject).eval()(example["input_ids"], example["attention_mask"])
    except Exception:  # too long for it
        return False
    try:
        onnx_files.check(path, [(example, [(one, ...) for one in expected])])
    except Exception:  # one of onnxruntime, or other outputs
        return True
    return False


def _write_generating(subject: Texts, path: Path) -> tuple[str, ...]:
    """A pass over tokens behind a cache, or a pass over whole sequences where there is no cache of keys and values."""
    try:
        runnable = CachedPass(subject).eval()
        _check_cached(subject, runnable)
    except UnsupportedError as error:
        return (*_write_pass(subject, path), f"{error}, so the file reads whole texts and does not generate")
    names = [f"{index}.{part}" for index in range(len(runnable.layers)) for part in ("key", "value")]
    inputs = ["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{name}" for name in names)]
    batch, sequence = (torch.export.Dim(name) for name in ("batch", "sequence"))
    tokens, all_tokens = {0: batch, 1: sequence}, {0: batch, 1: torch.export.Dim.DYNAMIC}

    def write(past: torch.export.Dim) -> None:
        onnx_files.write(
            runnable,
            path,
            runnable.make_inputs(subject, batch=3, past=7, length=4),
            dynamic_shapes={
                "input_ids": tokens,
                "attention_mask": all_tokens,
                "position_ids": tokens,
                "past": tuple({0: batch, 2: past} for _ in names),
            },
            input_names=inputs,
            output_names=["logits", *(f"present.{name}" for name in names)],
        )

    most = count_positions(subject.model)
    try:
        write(torch.export.Dim("past"))
    except Exception:
        if most is None:
            raise
        write(torch.export.Dim("past", max=most))  # of a class with tables of that many places
    batches = []
    for sizes in ((1, 0, 5), (2, 0, 9), (4, 8, 1), (2, 5, 3)):
        given = runnable.make_inputs(subject, *sizes)
        with torch.no_grad():
            expected = runnable(*given)
        # What stands at padded positions is never used, and runtimes fill masks differently.
        real = given[1].bool()
        counted = [
            (one, real[:, sizes[1] :] if index == 0 else real[:, None, :, None].expand_as(one))
            for index, one in enumerate(expected)
        ]
        batches.append((dict(zip(inputs, given, strict=True)), counted))
    onnx_files.check(path, batches)
    return ()


def _check_cached(subject: Texts, runnable: CachedPass) -> None:
    """Raise `UnsupportedError` where tokens behind the cache get other logits than in a pass over the whole text."""
    ids = subject.example(1, 8)["input_ids"]
    mask, places = torch.ones_like(ids), torch.arange(8)[None]
    cache = [torch.zeros(1, heads, 0, width) for heads, width in runnable.sizes]
    with torch.no_grad():
        first, *cache = runnable(ids[:, :5], mask[:, :5], places[:, :5], *cache)
        then, *_ = runnable(ids[:, 5:], mask, places[:, 5:], *cache)
        (whole,) = ForwardPass(subject).eval()(ids, mask)
    error = (torch.cat([first, then], 1) - whole).abs().max().item()
    if not error <= _CACHED * max(1.0, whole.abs().max().item()):
        raise UnsupportedError(f"a {name_class(subject.model)} gives other logits behind its cache")


def refuse_additions(subject: Transformer, form: str) -> None:
    """Raise `UnsupportedError` for a model with more than its architecture has, which `form` can't hold.

    form: what the reader calls it.
    """
    if low_rank.find_branches(subject.model):
        raise UnsupportedError(
            f"{form} has no branches beside linears: export a copy of the folder without {low_rank.FOLDER}/, which is "
            "the model without them and gives other outputs, or choose onnx, packed or int8, which hold them"
        )
    if saving.is_sliced(subject.model.config):
        raise UnsupportedError(
            f"{form} has no linears on residual connections, which slicegpt's rotated models have: cut the original by "
            "another recipe, such as minitron, or choose onnx or int8"
        )


def to_decilm(subject: Transformer, folder: str | Path) -> tuple[str, ...]:
    """Write a Llama-shaped model in the form of DeciLM and Nemotron-NAS; returns notes on what had to be padded.

    Layers are described by `block_configs` (see `decilm/configuration_decilm.py`), which inference engines read;
    the configuration and modelling files go along for transformers. The form knows one number of query heads and
    whole groups: layers with fewer heads get zero heads, which changes no output but costs their size. The
    result is loaded again by the files written and compared; `NumericalError` if its logits differ.
    Raises `UnsupportedError` for other models, for layer 0 without attention (engines start the residual there),
    and for biases where a sub-block is gone (a no-op has none).
    """
    folder = Path(folder)
    refuse_additions(subject, "DeciLM's form")
    config, widths = subject.model.config, subject.widths()
    _check_llama_shaped(subject, widths)
    heads = max(width.heads for width in widths)
    padded, state = [], {name: tensor.detach().clone() for name, tensor in subject.model.state_dict().items()}
    targets = []
    for index, width in enumerate(widths):
        target = width
        if width.heads and (width.heads < heads or heads % width.kv):
            # The nearest count of groups that divides `heads` and has room for each group's own heads.
            kv = next(k for k in range(width.kv, heads + 1) if heads % k == 0 and heads // k >= width.heads // width.kv)
            target = Widths(heads, kv, width.neurons)
            _pad(state, f"{subject.layers()[index]}.self_attn", width, target, subject.head_dim)
            padded.append(index)
        targets.append(target)
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    for name in ("configuration_decilm.py", "modeling_decilm.py"):
        text = (Path(decilm.__file__).parent / name).read_text(encoding="utf-8")
        (folder / name).write_text(text, encoding="utf-8")
    _write_decilm_config(subject, targets, heads, folder)
    if subject.tokenizer is not None:
        subject.tokenizer.save_pretrained(folder)
    if subject.model.generation_config is not None:
        subject.model.generation_config.save_pretrained(folder)
    _check_decilm(subject, folder)
    if not padded:
        return ()
    return (
        f"layers {', '.join(map(str, padded))} were padded to {heads} query heads, as DeciLM has one number of them",
    )


def _check_decilm(subject: Transformer, folder: Path) -> None:
    """Load `folder` by the class of which it holds a copy, and compare the logits."""
    from secateur.formats.decilm.modeling_decilm import DeciLMForCausalLM

    example = subject.example(2, 9)
    with saving.quiet_progress(0):
        model = DeciLMForCausalLM.from_pretrained(folder, use_kernels=False).eval().to(subject.model.device)
    with torch.no_grad():
        wanted = subject.forward(example).prediction
        error = (model(**example).logits - wanted).abs().max().item()
    if not error <= onnx_files.TOLERANCE * max(1.0, wanted.abs().max().item()):
        raise NumericalError(f"the DeciLM export differs from the model by {error:.2g}: it is not usable")


def _check_llama_shaped(subject: Transformer, widths: list[Widths]) -> None:
    config, kind = subject.model.config, subject.family.model_type
    if kind not in ("llama", "mistral") or subject.output != "logits" or not subject.model.can_generate():
        raise UnsupportedError(
            f"DeciLM is a Llama-shaped language model: it can't hold a {type(subject.model).__name__}"
        )
    if getattr(config, "sliding_window", None):
        raise UnsupportedError(
            "DeciLM has no sliding window: set sliding_window to null if the context is short enough"
        )
    if not widths[0].heads:
        raise UnsupportedError("DeciLM needs the attention of layer 0: keep unit 0 of the attention site")
    for bias, kept in (("attention_bias", [w.heads for w in widths]), ("mlp_bias", [w.neurons for w in widths])):
        if getattr(config, bias, False) and not all(kept):
            raise UnsupportedError(
                f"layer {kept.index(0)} has lost a sub-block of a model with {bias}, which DeciLM can't say"
            )


def _pad(state: dict[str, Tensor], name: str, old: Widths, new: Widths, head_dim: int) -> None:
    """Spread the query heads of each group over a wider group of zeros, in place; KV heads likewise."""
    inside, wide = old.heads // old.kv, new.heads // new.kv
    places = torch.tensor([(head // inside) * wide + head % inside for head in range(old.heads)])
    for projection, count, index in (
        ("q_proj", new.heads, places),
        ("k_proj", new.kv, torch.arange(old.kv)),
        ("v_proj", new.kv, torch.arange(old.kv)),
        ("o_proj", new.heads, places),
    ):
        for leaf in ("weight", "bias"):
            tensor = state.get(f"{name}.{projection}.{leaf}")
            if tensor is None or (projection == "o_proj" and leaf == "bias"):
                continue
            rows = tensor.T if projection == "o_proj" else tensor
            rows = rows.reshape(-1, head_dim, *rows.shape[1:])
            padded = rows.new_zeros(count, *rows.shape[1:])
            padded[index.to(rows.device)] = rows
            padded = padded.flatten(0, 1)
            state[f"{name}.{projection}.{leaf}"] = padded.T.contiguous() if projection == "o_proj" else padded


def _write_decilm_config(subject: Transformer, widths: list[Widths], heads: int, folder: Path) -> None:
    data = subject.model.config.to_dict()
    for name in ("per_layer_config", "allow_global_per_layer_attribute_access", "layer_types", "sliding_window"):
        data.pop(name, None)
    hidden = subject.hidden_size
    blocks = []
    for width in widths:
        group = heads // width.kv if width.heads else None
        attention = {"n_heads_in_group": group, "no_op": not width.heads, "replace_with_linear": False}
        ffn: dict[str, Any] = {"no_op": not width.neurons, "replace_with_linear": False}
        if width.neurons:
            ffn["intermediate_size"] = width.neurons
            if width.neurons % 256 == 0:  # older readers know ffn_mult alone, which can say only these widths
                ffn["ffn_mult"] = 1.5 * width.neurons / hidden
        blocks.append({"attention": attention, "ffn": ffn})
    data |= {
        "model_type": "nemotron-nas",
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_decilm.DeciLMConfig",
            "AutoModelForCausalLM": "modeling_decilm.DeciLMForCausalLM",
        },
        "block_configs": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": subject.head_dim,
        "intermediate_size": max(width.neurons for width in widths) or hidden,
        "dtype": str(subject.model.dtype).removeprefix("torch."),
    }
    (folder / "config.json").write_text(json.dumps(data, indent=2), encoding="utf-8")
