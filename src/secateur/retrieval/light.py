"""Encoders that need no torch: static ones, a vector for each token (model2vec), and files of ONNX, int8 among them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from secateur._utils.disk import read_object
from secateur.errors import InputError, MissingExtraError, opening

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["OnnxEncoder", "StaticEncoder", "open_light"]


_FOLDER = "give the folder, which sentence-transformers opens"


def open_light(source: str, device: str = "") -> StaticEncoder | OnnxEncoder | None:
    """The encoder of a file that ends in .onnx, or of a folder that holds a static model; None for all else."""
    path = Path(source)
    if path.suffix.lower() == ".onnx":
        if not path.is_file():
            raise InputError(f"embedder {source!r} is no file here: give the .onnx of a sentence encoder")
        return _open_onnx(str(path), device)
    return _open_static(str(path)) if read_object(path / "config.json").get("model_type") == "model2vec" else None


def _open_tokenizer(folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer  # of transformers' dependencies, and slow to import

    with opening("tokenizer", str(folder)):
        return Tokenizer.from_file(str(folder / "tokenizer.json"))


class StaticEncoder:
    """The mean of the vectors of a text's tokens, as model2vec stores them; source: github.com/MinishLab/model2vec.

    Args:
        folder: holds model.safetensors (embeddings [V, d], and perhaps weights and mapping), tokenizer.json and
            config.json.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        with opening("static encoder", str(folder)):
            try:
                tensors = load_file(folder / "model.safetensors")
            except SafetensorError as error:
                raise ValueError(str(error)) from error
            self.vectors = np.asarray(tensors["embeddings"], dtype=np.float32)
        self.weights, self.mapping = tensors.get("weights"), tensors.get("mapping")
        config = read_object(folder / "config.json")
        self.normalise, self.longest = bool(config.get("normalize")), int(config.get("max_length") or 512)
        self.tokenizer = _open_tokenizer(folder)
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self.longest)
        model = json.loads(self.tokenizer.to_str())["model"]
        unknown = model.get("unk_token")
        self.unknown = self.tokenizer.token_to_id(unknown) if isinstance(unknown, str) else model.get("unk_id")

    def encode(self, sentences: list[str], **options: object) -> np.ndarray:
        """Float32 [sentences, d]; zeros for a text without tokens."""
        prompt = str(options.get("prompt") or "")
        found = np.zeros((len(sentences), self.vectors.shape[1]), dtype=np.float32)
        encodings = self.tokenizer.encode_batch_fast([prompt + text for text in sentences], add_special_tokens=False)
        for row, encoding in zip(found, encodings, strict=True):
            ids = np.array([token for token in encoding.ids if token != self.unknown], dtype=np.int64)
            if len(ids):
                vectors = self.vectors[ids if self.mapping is None else self.mapping[ids]]
                row[:] = (vectors if self.weights is None else vectors * self.weights[ids, None]).mean(0)
        if self.normalise:
            found /= np.linalg.norm(found, axis=1, keepdims=True) + 1e-32
        return found


class OnnxEncoder:
    """An encoder in a file of ONNX, such as sentence-transformers' onnx/model.onnx or onnx/model_qint8_avx512.onnx.

    Args:
        file: beside it, or in the folder above, stand tokenizer.json and what sentence-transformers says of its
            pooling (cls, mean, max, mean_sqrt_len_tokens, weightedmean, lasttoken, or several side by side); without
            that the mean of the last hidden states is taken, and brought to length 1.
        device: "cuda" for the GPU, where this onnxruntime has one.

    Raises `MissingExtraError` without onnxruntime, `InputError` for a file that is no such encoder, and for a pooling
    that is not known here.
    """

    def __init__(self, file: Path, device: str = "") -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("an encoder in ONNX needs onnxruntime: pip install 'secateur[onnx]'") from error
        folder = next(
            (place for place in (file.parent, file.parent.parent) if (place / "tokenizer.json").is_file()), None
        )
        if folder is None:
            raise InputError(f"{file} has no tokenizer.json beside it or in the folder above: put it there")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        providers = ["CUDAExecutionProvider"] if device.startswith("cuda") else []
        lost = [name for name in providers if name not in onnxruntime.get_available_providers()]
        if lost:
            raise InputError(f"device {device!r}: this onnxruntime has no {lost[0]}: install onnxruntime-gpu")
        with opening("embedder", str(file)):
            try:
                self.session = onnxruntime.InferenceSession(
                    str(file), options, providers=[*providers, "CPUExecutionProvider"]
                )
            except Exception as error:  # onnxruntime's own kinds of errors have no common root
                raise ValueError(" ".join(str(error).split())[:200]) from error
        self.inputs = {given.name for given in self.session.get_inputs()}
        self.outputs = [made.name for made in self.session.get_outputs()]
        if "input_ids" not in self.inputs:
            raise InputError(f"{file} takes {', '.join(sorted(self.inputs))}, not input_ids: give a sentence encoder")
        self.prompts: Mapping[str, str] = read_object(folder / "config_sentence_transformers.json").get("prompts") or {}
        modules = folder / "modules.json"
        if modules.is_file() and "Dense" in modules.read_text("utf-8"):
            raise InputError(f"{file}: {modules} puts a dense layer behind the pooling, which is not in it: {_FOLDER}")
        self.pooling = _pooling(folder / "1_Pooling" / "config.json")
        self.normalise = not modules.is_file() or "Normalize" in modules.read_text("utf-8")
        longest = read_object(folder / "sentence_bert_config.json").get("max_seq_length")
        longest = longest or read_object(folder / "config.json").get("max_position_embeddings") or 512
        self.tokenizer = _open_tokenizer(folder)
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(int(longest))
        self._ids = functools.lru_cache(maxsize=256)(self._tokenise)

    def _tokenise(self, text: str) -> tuple[list[int], list[int]]:
        found = self.tokenizer.encode(text)
        return found.ids, found.type_ids

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens it reads of each text."""
        return [len(self._ids(text)[0]) for text in texts]

    def encode(self, sentences: list[str], **options: object) -> np.ndarray:
        """Float32 [sentences, d], of one pass."""
        prompt = str(options.get("prompt") or "")
        read = [self._ids(prompt + text) for text in sentences]
        longest = max(len(ids) for ids, _ in read)
        given = {name: np.zeros((len(read), longest), dtype=np.int64) for name in ("ids", "types", "mask")}
        for row, (ids, types) in enumerate(read):
            given["ids"][row, : len(ids)], given["types"][row, : len(ids)] = ids, types
            given["mask"][row, : len(ids)] = 1
        feed = {"input_ids": given["ids"], "attention_mask": given["mask"], "token_type_ids": given["types"]}
        made = dict(
            zip(self.outputs, self.session.run(None, {n: v for n, v in feed.items() if n in self.inputs}), strict=True)
        )
        vectors = made["sentence_embedding"] if "sentence_embedding" in made else self._pool(made, given["mask"])
        vectors = np.asarray(vectors, dtype=np.float32)
        return (
            vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12) if self.normalise else vectors
        )

    def _pool(self, made: Mapping[str, np.ndarray], mask: np.ndarray) -> np.ndarray:
        states = made.get("last_hidden_state", made[self.outputs[0]])
        if states.ndim == 2:
            return states
        return np.concatenate([_POOLINGS[name](states, mask) for name in self.pooling], axis=1)


def _weigh(states: np.ndarray, weights: np.ndarray, power: float = 1.0) -> np.ndarray:
    """[n, d]: sum_t w_t h_t / (sum_t w_t)^power, of states [n, L, d] and weights [n, L]."""
    sums = np.maximum(weights.sum(1, keepdims=True), 1e-9)
    return np.asarray((states * weights[:, :, None]).sum(1) / sums**power, dtype=np.float32)


_POOLINGS: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "cls": lambda states, mask: states[:, 0],
    "mean": _weigh,
    "max": lambda states, mask: np.where(mask[:, :, None] > 0, states, -1e9).max(1),
    "mean_sqrt_len_tokens": lambda states, mask: _weigh(states, mask, 0.5),
    "weightedmean": lambda states, mask: _weigh(states, mask * np.arange(1, mask.shape[1] + 1)),
    "lasttoken": lambda states, mask: states[np.arange(len(states)), mask.sum(1) - 1],
}
"""Name in sentence-transformers -> (states [n, L, d], mask [n, L], padded on the right) -> [n, d]."""


def _pooling(file: Path) -> list[str]:
    """The names of the poolings in sentence-transformers' config, whose vectors are put side by side.

    Older configs have a key for each, `pooling_mode_mean_tokens`. Raises `InputError` for one that is not known here.
    """
    config = read_object(file)
    names = config.get("pooling_mode") or [
        name.removeprefix("pooling_mode_").removesuffix("" if "sqrt" in name else "_tokens").removesuffix("_token")
        for name, chosen in config.items()
        if name.startswith("pooling_mode_") and chosen
    ]
    names = [names] if isinstance(names, str) else names or ["mean"]
    if unknown := [name for name in names if name not in _POOLINGS]:
        raise InputError(f"{file}: pooling {unknown[0]!r} is not known: give one of {', '.join(_POOLINGS)}")
    if config.get("include_prompt") is False:
        raise InputError(f"{file} leaves prompts out of the pooling (include_prompt), which is not done: {_FOLDER}")
    return list(names)


_open_static = functools.lru_cache(maxsize=2)(lambda name: StaticEncoder(Path(name)))
_open_onnx = functools.lru_cache(maxsize=2)(lambda name, device: OnnxEncoder(Path(name), device))
