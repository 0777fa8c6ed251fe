"""Sentence encoders and tokenizers of transformers, by name or given; each is loaded once."""

from __future__ import annotations

import functools
import hashlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, cast

import numpy as np

from secateur._utils import http, tokenizers
from secateur._utils.together import Together
from secateur._utils.tokenizers import Tokenizer
from secateur.clients import embeddings
from secateur.errors import InputError, MissingExtraError, opening
from secateur.retrieval import light
from secateur.retrieval.batching import ONCE, batches
from secateur.retrieval.vectors import VectorFile

__all__ = [
    "PRECISIONS",
    "Count",
    "Embed",
    "Encoder",
    "Encoding",
    "checkpoint_of",
    "counter",
    "encode_pair",
    "encoder",
    "for_questions",
    "open_remembering",
    "tokenizer",
]

Embed: TypeAlias = Callable[[Sequence[str]], np.ndarray]
"""Texts -> vectors [texts, d]."""

Count: TypeAlias = Callable[[Sequence[str]], Sequence[int]]
"""Texts -> how many tokens each has."""


class Encoder(Protocol):
    """What sentence-transformers' models have and we use: texts -> vectors [texts, d]."""

    def encode(self, sentences: list[str], **options: object) -> np.ndarray:
        """The vectors of `sentences`."""
        ...


PRECISIONS = ("float32", "bfloat16")
"""Numbers in which an encoder that is opened here can compute."""


def encoder(source: str | Encoder | Embed, device: str = "", precision: str = "") -> Embed:
    """From texts to vectors [texts, d], float32, by a bi-encoder.

    Args:
        source: a folder or Hub id that sentence-transformers opens, a model of its kind, an `Embeddings` of LangChain,
            a `BaseEmbedding` of LlamaIndex, a function as wanted, or the address of a server that has one, see
            `clients.embeddings`. The folder of a static model (model2vec), and a
            file that ends in .onnx, int8 ones among them, are read without torch, see `retrieval.light`.
        device: where one that is opened is held, "cuda"; the processor if empty. A model stays where it is.
        precision: of `PRECISIONS`, for what sentence-transformers opens here; as the checkpoint has it if empty.

    Texts are read as passages; `for_questions` gives the same encoder for questions.

    Raises `MissingExtraError` without sentence-transformers, `InputError` for what it can't open, and for a precision
    that is not known, or of an encoder that has its own. Weights are read from safetensors alone and no code of a
    checkpoint is run.
    """
    if precision and precision not in PRECISIONS:
        raise InputError(
            f"precision {precision!r} of an embedder is not known: give {' or '.join(PRECISIONS)}, or for int8 a file "
            "that ends in .onnx"
        )
    name, fixed = source if isinstance(source, str) else type(source).__name__, True
    if isinstance(source, str):
        if http.is_address(source):
            source = embeddings.embedder(source)
        else:
            opened = light.open_light(source, device)
            fixed = opened is not None
            source = opened or _open_checkpoint(source, device or "cpu", precision)
    if precision and fixed:
        raise InputError(
            f"precision={precision}: the embedder {name} has its own: leave precision out, or give a folder or Hub id "
            "that sentence-transformers opens"
        )
    if _embeddings_methods(source):
        return functools.partial(_encode_embeddings, source)
    if hasattr(source, "encode"):
        return functools.partial(_encode, source)
    if not callable(source):
        raise InputError(
            f"an embedder is a folder, a Hub id, an address, a model or a function, not {type(source).__name__}"
        )
    return source


@dataclass(frozen=True, slots=True)
class Encoding:
    """What compares texts, and what counts their tokens."""

    embedder: Any = ""
    """Folder or Hub id of a bi-encoder, a file of one in ONNX, the address of a server that has one, or such a model,
    of LangChain or LlamaIndex, too; without one texts are compared by their words."""
    tokenizer: Any = ""
    """Folder or Hub id of the reader's tokenizer, the name of one of OpenAI's (o200k_base, gpt-4o), or a function that
    counts tokens; the embedder's own if not given."""
    device: str = ""
    """Where encoders and a language model are held if given by name, "cuda"; the processor if empty."""
    language: str = "en"
    """Whose stop words and endings do not count where words are compared, such as en or de."""
    precision: Literal["", "float32", "bfloat16"] = ""
    """Numbers in which the embedder computes, if given by folder or Hub id; as its checkpoint has it if empty, mostly
    float32. On processors with AMX bfloat16 takes less than half the time, on others it may take more. In bfloat16 a
    text's vector depends a little on what is read beside it."""

    def open_embedder(self) -> Embed | None:
        """The embedder, which remembers what it encoded; None without one.

        Raises `InputError` for a precision of none, and as `encoder` does.
        """
        if self.embedder:
            return open_remembering(self.embedder, device=self.device, precision=self.precision)
        if self.precision:
            raise InputError(f"precision={self.precision}: there is no embedder that computes: give one (--embedder)")
        return None

    def open_other(self, source: str | Encoder | Embed) -> Embed:
        """Another encoder, for other texts, on the same device; in the same precision if it is the embedder."""
        precision = self.precision if source == self.embedder else ""
        return open_remembering(source, device=self.device, precision=precision)

    def counts(self) -> dict[str, Count]:
        """The measure "tokens" and what counts it, if there is a tokenizer."""
        source = self.tokenizer or checkpoint_of(self.embedder)
        return {"tokens": counter(source)} if source else {}


def checkpoint_of(source: str | Encoder | Embed) -> str:
    """The folder or Hub id of an encoder, where its tokenizer is, too; "" of a model, a function or an address."""
    return source if isinstance(source, str) and not http.is_address(source) else ""


Role: TypeAlias = Literal["passage", "query"]
"""What a text is to an encoder that reads questions otherwise than what is searched."""
_PROMPTS: Mapping[Role, tuple[str, ...]] = {
    "passage": ("document", "passage", "search_document", "corpus", "retrieval.passage"),
    "query": ("query", "search_query", "question", "retrieval.query"),
}
"""What sentence-transformers' models call the prompt of each, the first that is there."""


def _prompt(model: Encoder, role: Role) -> str:
    """What the model wants before a text; "" where it says nothing, and then its own default holds."""
    prompts = getattr(model, "prompts", None) or {}
    return next((str(prompts[name]) for name in _PROMPTS[role] if prompts.get(name)), "")


def for_questions(embed: Embed) -> Embed:
    """The same encoder as it reads questions: with the prompt for them that a model of sentence-transformers has."""
    if isinstance(embed, Together):
        return embed.change(for_questions)
    if not isinstance(embed, functools.partial):
        return embed
    if embed.func is _encode_new:
        asked = for_questions(embed.args[0])
        return embed if asked is embed.args[0] else functools.partial(_encode_new, asked, *embed.args[1:])
    if embed.func is _encode_embeddings:
        return functools.partial(_encode_embeddings, embed.args[0], role="query")
    if embed.func is _encode and (_prompt(embed.args[0], "query") or _prompt(embed.args[0], "passage")):
        return functools.partial(_encode, embed.args[0], role="query")
    return embed


def _role(embed: Embed) -> str:
    """How an encoder reads texts: as "query" from `for_questions`, and behind which prompt, else "".

    What is put around the encoder does not count. The prompt does: a model whose prompt for questions was changed reads
    passages, and so the probe by which changes are found out, as before.
    """
    if isinstance(embed, Together):
        return _role(embed.inner)
    if not isinstance(embed, functools.partial):
        return ""
    if embed.func is _encode_new:
        return _role(embed.args[0])
    role: Role | None = embed.keywords.get("role")
    if role is None or embed.func is not _encode:
        return role or ""
    model = embed.args[0]
    return f"{role}\0{_prompt(model, role) or getattr(model, 'default_prompt_name', None) or ''}"


def encode_pair(embed: Embed, questions: Sequence[str], texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of questions [questions, d] and of texts [texts, d], each read as what it is, by one encoder."""
    asking = for_questions(embed)
    if asking is not embed:
        return asking(questions), embed(texts)
    both = embed([*questions, *texts])
    return both[: len(questions)], both[len(questions) :]


def _encode(model: Encoder, texts: Sequence[str], role: Role = "passage") -> np.ndarray:
    if not len(texts):
        return np.zeros((0, 1), dtype=np.float32)
    prompt = _prompt(model, role)
    options: dict[str, object] = {"convert_to_numpy": True, "show_progress_bar": False}
    options |= {"prompt": prompt} if prompt else {}
    found = list[np.ndarray | None]([None] * len(texts))
    lock = _tokenizer_lock(getattr(model, "tokenizer", None))
    with lock:
        lengths = _lengths(model, texts)
    # Each batch holds texts of about one length: a long one would be the length of all that are read with it.
    for places in batches(lengths, once=_once(model)):
        with lock:
            vectors = model.encode([texts[place] for place in places], batch_size=len(places), **options)
        for place, vector in zip(places, np.asarray(vectors, dtype=np.float32), strict=True):
            found[place] = vector
    return np.stack([vector for vector in found if vector is not None])


_EMBEDDINGS = (("embed_documents", "embed_query"), ("get_text_embedding_batch", "get_query_embedding"))
"""What encodes passages and a question in LangChain's `Embeddings`, and in LlamaIndex's `BaseEmbedding`."""


def _embeddings_methods(model: object) -> tuple[str, str] | None:
    return next((names for names in _EMBEDDINGS if all(hasattr(model, name) for name in names)), None)


def _encode_embeddings(model: object, texts: Sequence[str], role: Role = "passage") -> np.ndarray:
    """Float32 [texts, d] by an object of a pipeline, which reads each question alone.

    Raises `InputError` where it gives no vectors, or vectors of several lengths.
    """
    of_passages, of_question = _embeddings_methods(model) or ("", "")
    if not len(texts):
        return np.zeros((0, 1), dtype=np.float32)
    if role == "query":
        found = [getattr(model, of_question)(text) for text in texts]
    else:
        found = getattr(model, of_passages)(list(texts))
    vectors: np.ndarray = np.zeros(0)
    with suppress(TypeError, ValueError):  # of several lengths, or no numbers
        vectors = np.asarray(found, dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != len(texts) or not vectors.size:
        raise InputError(
            f"the embedder, a {type(model).__name__}, gives no vector of one length for each of {len(texts)} texts: "
            "give one that does"
        )
    return vectors


_LOCKS: MutableMapping[object, threading.Lock] = weakref.WeakKeyDictionary()


def _tokenizer_lock(found: object) -> AbstractContextManager[object]:
    """What a thread holds while a tokenizer is used, if it is a fast one of transformers.

    Each call sets there whether it cuts and pads: another thread would count, or read, by the settings of this one.
    """
    if not hasattr(found, "backend_tokenizer"):
        return nullcontext()
    with _LOCK:
        return _LOCKS.setdefault(found, threading.Lock())


def _lengths(model: Encoder, texts: Sequence[str]) -> list[int]:
    """About how many tokens a model reads of each text."""
    longest = int(getattr(model, "max_seq_length", None) or 2**30)
    count = getattr(model, "count_tokens", None)
    tokenizer = getattr(model, "tokenizer", None)
    if count is not None:
        lengths = list(count(texts))
    elif tokenizer is not None and hasattr(tokenizer, "backend_tokenizer"):
        lengths = [len(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]]
    else:
        lengths = [len(text) // 4 + 1 for text in texts]
    return [max(1, min(length, longest)) for length in lengths]


def _once(model: Encoder) -> int:
    """Tokens of one pass: a graphics card wants more of them at once."""
    device = str(getattr(model, "device", "cpu"))
    return ONCE if device.startswith("cpu") else 16 * ONCE


@functools.lru_cache(maxsize=2)
def _open_checkpoint(name: str, device: str, precision: str) -> Encoder:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingExtraError("an embedder needs sentence-transformers: pip install 'secateur[embed]'") from error
    from secateur._utils.modes import move_to_device  # torch, which functions need not have loaded

    weights = {"use_safetensors": True, "use_kernels": False, **({"dtype": precision} if precision else {})}
    with opening("embedder", name):
        found = SentenceTransformer(name, device="cpu", trust_remote_code=False, model_kwargs=weights)
    move_to_device(found, device)
    model: Encoder = found
    return model


_REMEMBERED: MutableMapping[Any, OrderedDict[str, np.ndarray]] = weakref.WeakKeyDictionary()
_PROBE = "Which of these is a text that nobody asks about?"
_LOCK = threading.Lock()


def open_remembering(
    source: str | Encoder | Embed, *, device: str = "", precision: str = "", most: int = 2**26
) -> Embed:
    """The same encoder, which reads a text once: what it made of the last texts is kept in memory, for all callers.

    Facts of a graph come back with every question about their neighbours, and blocks of a page with every question
    about the page. Of an encoder that is given by name it is kept on the disk, too, for other processes
    (`vectors.VectorFile`). An encoder that was changed since is found out, by a text that is read anew on each call of
    this function, and what was kept of it is forgotten.

    device, precision: see `encoder`; vectors of each are kept apart. most: bytes of vectors that are kept of one
    encoder; those that were not asked for the longest leave.

    Raises `InputError`, when it is called, where an encoder gives vectors of another dimension than those it gave.
    """
    embed = encoder(source, device, precision)
    known_kind = isinstance(embed, functools.partial) and embed.func in (_encode, _encode_embeddings)
    owner = embed.args[0] if isinstance(embed, functools.partial) and known_kind else embed
    try:
        with _LOCK:
            known = _REMEMBERED.setdefault(owner, OrderedDict())
    except TypeError:  # what can't be referred to weakly, or hashed, is remembered for this caller alone
        known = OrderedDict()
    probe = np.array(embed([_PROBE]))[0]
    with _LOCK:
        if _PROBE not in known or not np.array_equal(known[_PROBE], probe):
            known.clear()
        known[_PROBE] = probe
    name = source if not isinstance(source, str) or http.is_address(source) else _whole_name(source)
    kept = VectorFile.open(f"{name} {device}{precision and ' '}{precision}", probe) if isinstance(name, str) else None
    return functools.partial(_encode_new, embed, known, most, kept)


def _whole_name(source: str) -> str:
    """A folder by its whole path, since another folder of that name may stand elsewhere; a Hub id as it is."""
    return str(Path(source).resolve()) if Path(source).exists() else source


def _encode_new(
    embed: Embed,
    known: OrderedDict[str, np.ndarray],
    most: int,
    kept: VectorFile | None,
    texts: Sequence[str],
) -> np.ndarray:
    # A question and a passage of the same words may have different vectors.
    role = _role(embed)
    keys = {text: f"{role}\0{text}" if role else text for text in texts}
    with _LOCK:
        found = {text: known[key] for text, key in keys.items() if key in known}
    new = [text for text in keys if text not in found]
    if new and kept is not None:
        found |= kept.read(new, role)
        new = [text for text in new if text not in found]
    if new:
        vectors = np.asarray(embed(new))
        _check_width(vectors, known)
        # Copies: a row of one large array would keep all of that array.
        made = {text: row.copy() for text, row in zip(new, vectors, strict=True)}
        if kept is not None:
            kept.write(made, role)
        found |= made
    with _LOCK:
        for text, vector in found.items():
            known[keys[text]] = vector
            known.move_to_end(keys[text])
        while len(known) * next(iter(known.values())).nbytes > most and len(known) > 1:
            known.popitem(last=False)
    return np.stack([found[text] for text in texts]) if len(texts) else np.asarray(embed([]))


def _check_width(vectors: np.ndarray, known: Mapping[str, np.ndarray]) -> None:
    """Refuse vectors of another length than those that were kept of the same encoder."""
    width = next((len(vector) for vector in known.values()), None)
    if vectors.ndim != 2 or (width is not None and vectors.shape[1] != width):
        shape = f"{vectors.shape[1]} numbers" if vectors.ndim == 2 else f"shape {vectors.shape}"
        raise InputError(f"the embedder gives vectors of {shape}, and gave some of {width}: give one model for all")


def tokenizer(source: object) -> Any:
    """A tokenizer of transformers, from a folder or a Hub id; anything else is taken as one."""
    return _tokenizer(source) if isinstance(source, str) else source


@functools.lru_cache(maxsize=4)
def _tokenizer(name: str) -> Tokenizer:
    from transformers import AutoTokenizer

    with opening("tokenizer", name):
        found: Tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    return found


def counter(source: object) -> Count:
    """From texts to how many tokens each has for a reader, without those that begin and end a sequence.

    A text is counted once: what the last texts had is remembered, for all counters of this tokenizer.

    source: a folder or Hub id of a tokenizer of transformers, such a tokenizer, the name of one of OpenAI's or of a
    model that has it, "o200k_base" or "gpt-4o", an encoding of tiktoken, or a function as wanted.

    Raises `InputError` for what can't be opened, `MissingExtraError` for OpenAI's names without tiktoken.
    """
    found: Any = tokenizers.open_tiktoken(source) if isinstance(source, str) else None
    found = found or tokenizer(source)
    encodes = hasattr(found, "encode_ordinary_batch")
    if not encodes and not hasattr(found, "tokenize"):
        return cast(Count, found)
    count = functools.partial(tokenizers.count_encoded if encodes else _count, found)
    known = dict[bytes, int]()
    with suppress(TypeError):  # of a tokenizer that has no hash, or can't be referred to weakly
        known = _COUNTS.setdefault(found, known)
    return functools.partial(_count_new, count, known)


_COUNTS: MutableMapping[object, dict[bytes, int]] = weakref.WeakKeyDictionary()
_COUNTED = 2**16
"""Texts whose counts are remembered, each by a digest; with more of them all is forgotten."""


def _count_new(count: Count, known: dict[bytes, int], texts: Sequence[str]) -> list[int]:
    keys = {text: hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts}
    found = {text: known.get(key) for text, key in keys.items()}  # at once: other threads may forget
    new = [text for text, many in found.items() if many is None]
    if new:
        counts = dict(zip(new, count(new), strict=True))
        found |= counts
        if len(known) + len(new) > _COUNTED:
            known.clear()
        else:
            known |= {keys[text]: many for text, many in counts.items()}
    return [found[text] or 0 for text in texts]


def _count(found: Any, texts: Sequence[str]) -> list[int]:
    if not len(texts):
        return []
    # Longer than the model reads is no news here: it is to be made shorter.
    with _tokenizer_lock(found):
        return [len(ids) for ids in found(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]
