"""Teachers with another tokenizer: the same text read by both, and which tokens of one match which of the other.

Token ids of two tokenizers can't be compared, characters can. Each token stands for a span of the text; from spans
follow the whitespace word that a token belongs to, and the tokens of both that stand for the same characters.
`Parallel` puts both readings beside a batch; the losses compare hidden states word by word, or predictions over the
tokens that both vocabularies have. As everywhere in `recover`, a loss is a SUM over what it counts.

Source: word vectors as means of sub-word vectors, for teachers of another vocabulary: the third option of distilling
from several teachers in Avram et al., LREC 2022 (arXiv 2112.12650); spans are those of the `tokenizers` library.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur._utils import devices
from secateur._utils.batches import Batch
from secateur._utils.computed import Computed
from secateur._utils.tokenizers import Tokenizer
from secateur.errors import DataError, InputError
from secateur.recover.distillation import losses
from secateur.recover.training import objectives
from secateur.recover.training.compose import Parts

__all__ = [
    "Foreign",
    "Parallel",
    "Reading",
    "at_pairs",
    "chosen_pairs",
    "count",
    "is_uncased",
    "lower_text",
    "make_counter",
    "objective",
    "read",
    "same_spans",
    "shared_kl",
    "shared_vocabulary",
    "teacher_inputs",
    "text_relational",
    "word_cosine",
    "word_means",
    "words",
]

Places = NDArray[np.int64]


# ------------------------------------------------------------------------------------------------ one text, one reader


@dataclass(frozen=True)
class Reading:
    """What one tokenizer makes of a text: `ids` [n], and `spans` [n, 2], the characters of each token, start and end.

    White space that a token brings along is no part of its span; tokens that stand for no characters have (0, 0).
    """

    ids: Places
    spans: Places


def is_uncased(tokenizer: Tokenizer) -> bool:
    """Whether no token but the special ones has a capital letter: such a tokenizer's models have seen none."""
    special = set(tokenizer.all_special_tokens)
    return not any(token != token.lower() for token in tokenizer.get_vocab() if token not in special)


def lower_text(text: str) -> str:
    """The text in lower case with every character where it was: those that would become two stay ("İ")."""
    return "".join(small if len(small := letter.lower()) == 1 else letter for letter in text)


def read(tokenizer: Tokenizer, texts: Sequence[str], length: int, *, lower: bool | None = None) -> list[Reading]:
    """Each text's tokens, special ones included, at most `length`; read in lower case if `lower`.

    By default a tokenizer without capitals reads lower case (see `is_uncased`).

    Spans count the characters of the text as it was given. Raises `InputError` for a tokenizer that can't tell spans.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"{type(tokenizer).__name__} can't tell which characters its tokens stand for: give a model with a "
            "tokenizer.json"
        )
    lower = is_uncased(tokenizer) if lower is None else lower
    given = [lower_text(text) for text in texts] if lower else list(texts)
    found = tokenizer(given, truncation=True, max_length=length, return_offsets_mapping=True, verbose=False)
    return [
        Reading(np.asarray(ids, np.int64), _strip_spans(text, np.asarray(spans, np.int64).reshape(-1, 2)))
        for text, ids, spans in zip(given, found["input_ids"], found["offset_mapping"], strict=True)
    ]


def _strip_spans(text: str, spans: Places) -> Places:
    result = spans.copy()
    for span in result:
        while span[0] < span[1] and text[span[0]].isspace():
            span[0] += 1
        while span[0] < span[1] and text[span[1] - 1].isspace():
            span[1] -= 1
        if span[0] == span[1]:
            span[:] = 0
    return result


def words(text: str, reading: Reading) -> Places:
    """[n]: the number of the whitespace word in `text` that each token is a part of, -1 for none.

    A word is left out (-1 for all its tokens) where a token also stands for part of another, or where it was cut off at
    the end of what was read.
    """
    bounds = np.asarray([match.span() for match in re.finditer(r"\S+", text)], np.int64).reshape(-1, 2)
    result = np.full(len(reading.ids), -1, np.int64)
    real = np.flatnonzero(reading.spans[:, 1] > 0)
    if not len(real) or not len(bounds):
        return result
    first, last = (np.searchsorted(bounds[:, 0], reading.spans[real, side] - side, side="right") - 1 for side in (0, 1))
    result[real] = first
    several = {word for low, high in zip(first, last, strict=True) if low < high for word in range(low, high + 1)}
    end = int(last.max())
    if reading.spans[real, 1].max() < bounds[end, 1]:
        several.add(end)
    result[np.isin(result, list(several))] = -1
    return result


def same_spans(ours: Reading, theirs: Reading) -> Places:
    """[pairs, 2]: places in both readings of tokens that stand for the same characters, in the order of the text.

    Characters that several tokens of one reading stand for (the bytes of a sign) make no pair.
    """
    known = {span: place for place, span in _once(theirs)}
    found = [(place, known[span]) for place, span in _once(ours) if span in known]
    return np.asarray(found, np.int64).reshape(-1, 2)


def _once(reading: Reading) -> list[tuple[int, tuple[int, int]]]:
    spans = [(int(start), int(end)) for start, end in reading.spans]
    times: dict[tuple[int, int], int] = {}
    for span in spans:
        times[span] = times.get(span, 0) + 1
    return [(place, span) for place, span in enumerate(spans) if span[1] > 0 and times[span] == 1]


# --------------------------------------------------------------------------------------------------------- vocabularies


def shared_vocabulary(ours: Tokenizer, theirs: Tokenizer) -> tuple[Tensor, Tensor]:
    """([k], [k]): ids in both tokenizers of the tokens that are the same piece of a word, by our id.

    A piece is its letters and whether it begins a word, however the tokenizer marks that: "##ing" or "ing" beside
    "Ġsing" or "▁sing". Tokens of bytes are read as the text that they stand for: "Äĥ" is "ă". Special tokens are
    left aside. Raises `InputError` where fewer than two are shared.
    """
    mine, yours = _pieces(ours), _pieces(theirs)
    both = sorted(mine.keys() & yours.keys(), key=mine.__getitem__)
    if len(both) < 2:
        raise InputError(
            f"the vocabularies share {len(both)} tokens, which leaves nothing to predict: compare hidden states "
            "of words with this teacher"
        )
    return torch.tensor([mine[piece] for piece in both]), torch.tensor([yours[piece] for piece in both])


def _pieces(tokenizer: Tokenizer) -> dict[tuple[bool, str | bytes], int]:
    special = set(tokenizer.all_special_tokens)
    known = {token: place for token, place in tokenizer.get_vocab().items() if token not in special}
    mark = next((mark for mark in ("▁", "Ġ") if sum(token.startswith(mark) for token in known) > len(known) // 100), "")
    if mark == "Ġ":
        return {
            (token.startswith(mark), _read_bytes(token.removeprefix(mark))): place for token, place in known.items()
        }
    if mark:
        return {(token.startswith(mark), token.removeprefix(mark)): place for token, place in known.items()}
    return {(not token.startswith("##"), token.removeprefix("##")): place for token, place in known.items()}


_PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTES = dict(zip(map(chr, _PRINTED), _PRINTED, strict=True))
_BYTES |= {chr(0x100 + place): byte for place, byte in enumerate(sorted(set(range(0x100)) - set(_PRINTED)))}
"""Character in the tokens of a byte-level tokenizer -> the byte it stands for, as in GPT-2's."""


def _read_bytes(token: str) -> str | bytes:
    """The text of a byte-level token; its bytes where they are no whole characters; itself if it is not of bytes."""
    if not set(token) <= _BYTES.keys():
        return token
    data = bytes(_BYTES[letter] for letter in token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


# ------------------------------------------------------------------------------------------------------------- batches


class Parallel(Computed["dict[str, Tensor]"]):
    """Batches with other tokenizers' readings of the same texts beside them: `parallel[i]` is batch i and more.

    For each name in `others` a batch of B texts also has

    - ``name.input_ids`` and ``name.attention_mask`` [B, S_o]: the text as that tokenizer reads it;
    - ``name.ours`` [B, S] and ``name.theirs`` [B, S_o]: number of the word each token is a part of, counted through the
      batch, -1 for none. Words that either reading lacks or was cut in have no number, so each number stands in both;
    - ``name.pairs`` [pairs, 2]: places in the flattened [B S] and [B S_o] of tokens for the same characters.

    Where a batch is masked (`labels` differ from `input_ids`), the other tokenizer's mask token stands for each of its
    tokens that shares a character with a hidden one, so that both are told the same.

    Args:
        batches: `batches[i]`, read by `tokenizer` one text per row, masked or not.
        rows: i -> which texts stand in batch i, such as `Batches.rows`.
        texts: all texts.
        tokenizer: that of `batches`.
        others: name -> another tokenizer.
        length: tokens per text, of all tokenizers.

    Raises `InputError` for a tokenizer without spans, or without mask token where the batches are masked, and for
    batches that are not of these texts.
    """

    def __init__(
        self,
        batches: Sequence[Batch],
        rows: Callable[[int], Iterable[int]],
        texts: Sequence[str],
        tokenizer: Tokenizer,
        others: Mapping[str, Tokenizer],
        *,
        length: int,
    ) -> None:
        self._batches, self._rows, self._texts = batches, rows, texts
        self._tokenizer, self._others, self._length = tokenizer, others, length
        self._lower = {id(one): is_uncased(one) for one in (tokenizer, *others.values())}

    def __len__(self) -> int:
        return len(self._batches)

    def make(self, index: int) -> dict[str, Tensor]:
        """Batch `index`."""
        batch = dict(self._batches[index])
        texts = [self._texts[row] for row in self._rows(index)]
        ours = self._read(self._tokenizer, texts)
        if [len(one.ids) for one in ours] != batch["attention_mask"].sum(1).tolist():
            raise InputError(f"batch {index} is not of these texts, this tokenizer and length={self._length}")
        covers = _hidden(batch, ours, texts)
        for name, tokenizer in self._others.items():
            theirs = self._read(tokenizer, texts)
            batch |= {
                f"{name}.{key}": value for key, value in _align_batch(texts, ours, theirs, batch, tokenizer).items()
            }
            if any(cover.any() for cover in covers):
                if tokenizer.mask_token_id is None:
                    raise InputError(f"teacher {name} has no mask token: give batches that are not masked")
                for row, (reading, cover) in enumerate(zip(theirs, covers, strict=True)):
                    place = _touching(reading, cover)
                    batch[f"{name}.input_ids"][row, torch.from_numpy(place)] = tokenizer.mask_token_id
        return batch

    def hold_out(self, share: float) -> tuple[Parallel, Parallel]:
        """As the batches' own, which tell their `rows` then."""
        both = copy.copy(self), copy.copy(self)
        for some, batches in zip(both, cast(Any, self._batches).hold_out(share), strict=True):
            some._batches, some._rows = batches, batches.rows
        return both

    def _read(self, tokenizer: Tokenizer, texts: Sequence[str]) -> list[Reading]:
        return read(tokenizer, texts, self._length, lower=self._lower[id(tokenizer)])


def _align_batch(
    texts: Sequence[str], ours: Sequence[Reading], theirs: Sequence[Reading], batch: Batch, tokenizer: Tokenizer
) -> dict[str, Tensor]:
    """What one other tokenizer adds to a batch, as `Parallel` says, nothing hidden yet."""
    shape = batch["input_ids"].shape
    width = max(len(one.ids) for one in theirs)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    ids, mask = np.full((len(texts), width), pad, np.int64), np.zeros((len(texts), width), np.int64)
    mine, yours = np.full(tuple(shape), -1, np.int64), np.full((len(texts), width), -1, np.int64)
    pairs, so_far = [], 0
    for row, (text, one, other) in enumerate(zip(texts, ours, theirs, strict=True)):
        ids[row, : len(other.ids)], mask[row, : len(other.ids)] = other.ids, 1
        first, second = words(text, one), words(text, other)
        common = np.intersect1d(first, second)
        common = common[common >= 0]
        for numbers, found in ((mine, first), (yours, second)):
            inside = np.isin(found, common)
            numbers[row, : len(found)][inside] = so_far + np.searchsorted(common, found[inside])
        so_far += len(common)
        pairs.append(same_spans(one, other) + np.asarray([row * shape[1], row * width]))
    arrays = {"input_ids": ids, "attention_mask": mask, "ours": mine, "theirs": yours, "pairs": np.concatenate(pairs)}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def teacher_inputs(batch: Batch, name: str) -> dict[str, Tensor]:
    """The texts of a batch of `Parallel` as the tokenizer `name` alone reads them: `input_ids` and `attention_mask`."""
    return {key: batch[f"{name}.{key}"] for key in ("input_ids", "attention_mask")}


def _hidden(batch: Batch, readings: Sequence[Reading], texts: Sequence[str]) -> list[NDArray[np.bool_]]:
    """Per text [characters]: which of them stand behind a token that masking has replaced."""
    covers = [np.zeros(len(text), bool) for text in texts]
    if "labels" in batch and batch["labels"].shape == batch["input_ids"].shape:
        gone = ((batch["labels"] >= 0) & (batch["labels"] != batch["input_ids"])).nonzero().tolist()
        for row, place in gone:
            start, end = readings[row].spans[place]
            covers[row][start:end] = True
    return covers


def _touching(reading: Reading, cover: NDArray[np.bool_]) -> Places:
    """Places of the tokens that stand for any of the covered characters."""
    before = np.concatenate([[0], np.cumsum(cover)])
    return np.flatnonzero(before[reading.spans[:, 1]] > before[reading.spans[:, 0]])


# -------------------------------------------------------------------------------------------------------------- losses


def count(batch: Batch, names: Sequence[str]) -> dict[str, int]:
    """What the losses below are divided by: for each name, ``name.words`` and ``name.pairs`` of a batch."""
    counted = {f"{name}.words": int(batch[f"{name}.ours"].max()) + 1 for name in names}
    return counted | {f"{name}.pairs": len(batch[f"{name}.pairs"]) for name in names}


def chosen_pairs(batch: Batch, name: str) -> Tensor:
    """[pairs, 2]: those of ``name.pairs`` whose token in our reading has a label, in a masked batch of `Parallel`."""
    pairs = batch[f"{name}.pairs"]
    return pairs[batch["labels"].flatten()[pairs[:, 0]] >= 0]


def word_means(states: Tensor, numbers: Tensor) -> Tensor:
    """[words, d]: the mean of the states [B, S, d] of each word's tokens, by their `numbers` [B, S]; -1 counts nowhere.

    The numbers run from 0 without gaps.
    """
    inside = numbers >= 0
    number, picked = numbers[inside], states[inside]
    total = int(numbers.max()) + 1
    sums = picked.new_zeros(total, states.shape[-1]).index_add(0, number, picked)
    return sums / torch.bincount(number, minlength=total)[:, None].to(sums)


def word_cosine(
    student: Tensor,
    teacher: Tensor,
    batch: Batch,
    name: str,
    *,
    project: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """``sum_words 1 - cos(P w_s, w_t)`` of word vectors w, the means of their tokens' hidden states.

    student [B, S, d_s] and teacher [B, S_o, d_t], as `Parallel` numbers the words of teacher `name`; `project` lifts
    d_s to d_t, and is needed even where they are equal, since no coordinate of one model is a coordinate of another.
    """
    ours, theirs = (
        word_means(states, batch[f"{name}.{side}"].to(states.device))
        for states, side in ((student, "ours"), (teacher, "theirs"))
    )
    return losses.cosine(ours, theirs, project=project)


def text_relational(student: Tensor, teacher: Tensor, batch: Batch, name: str) -> Tensor:
    """`losses.relational` of text vectors, the means of hidden states over the real tokens of each one's reading.

    student [B, S, d_s] and teacher [B, S_o, d_t], of the teacher `name` of `Parallel`. A text that is padding only in
    either reading is left out.
    """
    ours, theirs = (batch[key].bool() for key in ("attention_mask", f"{name}.attention_mask"))
    read = ours.any(1) & theirs.any(1)
    return losses.relational(_text_means(student[read], ours[read]), _text_means(teacher[read], theirs[read]))


def _text_means(states: Tensor, real: Tensor) -> Tensor:
    weight = real[..., None].to(states)
    return (states * weight).sum(1) / weight.sum(1)


def shared_kl(
    student: Tensor,
    teacher: Tensor,
    batch: Batch,
    name: str,
    shared: tuple[Tensor, Tensor],
    *,
    temperature: float = 1.0,
) -> Tensor:
    """Forward KL over the tokens that both vocabularies have, summed over tokens for the same characters, in nats.

    ``sum_pairs KL(softmax(z_t[T] / tau) || softmax(z_s[S] / tau))``: student [B, S, V_s] and teacher [B, S_o, V_t]
    logits, of the columns `shared` (see `shared_vocabulary`), both renormalised over them. Both are picked in chunks
    (`losses.kl_at`): to train needs no copies of logits at all.
    """
    return losses.kl_at(student, teacher, batch[f"{name}.pairs"], shared, temperature=temperature)


def at_pairs(
    student: Tensor, teacher: Tensor, batch: Batch, name: str, shared: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """[pairs, k] logits of both at tokens for the same characters, of the k columns `shared`; shapes as `shared_kl`.

    For figures that need them whole, such as loyalty; a loss picks them in chunks (`shared_kl`).
    """
    places = batch[f"{name}.pairs"].unbind(1)
    ours, theirs = (
        logits.flatten(0, 1)[rows.to(logits.device)[:, None], columns.to(logits.device)]
        for logits, rows, columns in zip((student, teacher), places, shared, strict=True)
    )
    return ours, devices.move(theirs, ours)


@dataclass(frozen=True)
class Foreign:
    """A teacher with another tokenizer: how it is asked, the columns `shared` with the student, and its weight."""

    forward: Callable[[Batch], objectives.Prediction]
    shared: tuple[Tensor, Tensor]
    weight: float = 1.0

    def kl_loss(self, student: Tensor, batch: Batch, name: str, *, temperature: float = 1.0) -> Tensor:
        """`shared_kl` of the student's logits for a batch of `Parallel`, where this is teacher `name`."""
        return shared_kl(student, self._teacher_logits(batch, name), batch, name, self.shared, temperature=temperature)

    def paired_logits(self, student: Tensor, batch: Batch, name: str) -> tuple[Tensor, Tensor]:
        """The student's logits and this teacher's `at_pairs`."""
        return at_pairs(student, self._teacher_logits(batch, name), batch, name, self.shared)

    def _teacher_logits(self, batch: Batch, name: str) -> Tensor:
        with torch.no_grad():
            return self.forward(teacher_inputs(batch, name)).prediction


def objective(
    student: objectives.Forward, teachers: Mapping[str, Foreign], *, task: float = 0.0, temperature: float = 1.0
) -> objectives.Objective:
    """``sum_k w_k T^2 KL_k + task CE``: KL_k to teacher k over what both vocabularies have, a mean over pairs.

    For batches of `Parallel`, and totals of `make_counter`. Where the student predicts the next token, a pair is two
    tokens that end at the same character, so that both say what follows the same text. It raises `DataError` for a step
    of padding only.
    """

    def compute_loss(batch: Batch, totals: Mapping[str, int]) -> tuple[Tensor, Parts]:
        if not totals["tokens"]:
            raise DataError("a whole step of padding: give texts with tokens, and an attention_mask of 1 at them")
        ours = student(batch)
        parts = {
            name: one.weight * temperature**2 * one.kl_loss(ours.prediction, batch, name, temperature=temperature)
            / max(1, totals[f"{name}.pairs"])
            for name, one in teachers.items()
        }  # fmt: skip
        if task:
            parts["task"] = task * objectives.task_loss(ours.prediction, batch, totals, causal=ours.causal)
        total = sum(parts.values(), ours.prediction.new_zeros(()))
        return total, {name: part.detach() for name, part in parts.items()}

    return compute_loss


def make_counter(names: Sequence[str]) -> Callable[[Batch], dict[str, int]]:
    """What `objective` divides by: what `objectives.count` counts, and the words and pairs of each teacher."""
    return lambda batch: objectives.count(batch) | count(batch, names)
