"""Cross-encoders, which read question and passage together: relevance, and which tokens to keep.

Chirkova, Formal, Nikoulina and Clinchant, "Provence: efficient and robust context pruning for retrieval-augmented
generation", ICLR 2025 (arXiv 2501.16214), section 3: a second head on a reranker.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from threading import get_ident
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

import numpy as np
import torch
from annotated_types import Ge, Lt
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from secateur._utils import devices, disk, http, hub, threads, workers
from secateur._utils.modes import evaluating, move_to_device
from secateur._utils.tokenizers import Tokenizer
from secateur.clients import embeddings
from secateur.errors import InputError, ModelError, NumericalError, opening
from secateur.retrieval import published
from secateur.retrieval.batching import ONCE, batches

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "HEAD",
    "Block",
    "Judgement",
    "RemoteRanker",
    "Reranker",
    "Settings",
    "default_folder",
    "forget_checkpoints",
    "open_ranker",
    "open_reranker",
    "pad",
]

HEAD = "keep_head.safetensors"
"""The file of the second head: weight [2, d] and bias [2] on the encoder's last hidden state; class 1 is to keep."""

_WORTH = 256
"""Tokens for which a thread of its own is worth while."""
_SLACK = 1.1
"""Passes of as many threads are so much larger than their share, so that what is parted unevenly needs no more."""


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class Settings:
    """What stands in config.json under `pruning`.

    threshold, rounding: as `provence` takes them. of_best: what a sentence must have of the mean probability of its
    passage's best one, too, where the threshold is the model's own; 0 for nothing. terms: likewise, what words count: a
    mean probability m becomes m^(1 - terms w), w the sentence's BM25 as a share of the highest; 0 for nothing. longest:
    tokens of a block; 0 for as many as the model reads, and at most 512. language: whose rules split sentences. ranks:
    whether the score of a passage means anything.

    How a model of another program was trained to read, see `published`: plain_question: in lower case, without
    punctuation. one_separator: between question and passage, whatever the tokenizer puts there. blank_behind: the blank
    between two sentences belongs to the first, not to the second. before_norm: tokens are judged by what the last layer
    gives, before the backbone's final norm. licence: as its card has it.
    """

    threshold: float = 0.1
    rounding: str = "vote"
    of_best: float = 0.0
    terms: Annotated[float, Ge(0), Lt(1)] = 0.0
    longest: int = 0
    language: str = "en"
    ranks: bool = True
    plain_question: bool = False
    one_separator: bool = False
    blank_behind: bool = False
    before_norm: bool = False
    licence: str = ""

    @classmethod
    def read(cls, given: Any) -> Settings:
        """From a config, whoever wrote it; `ModelError` for what is none."""
        if given is None:
            return cls()
        try:
            return TypeAdapter(cls).validate_python(dict(given))
        except (TypeError, ValueError) as error:
            raise ModelError(f"the config's pruning is {str(given)[:100]!r}, not settings of a pruner") from error


class Block(NamedTuple):
    """Question and sentences as one sequence: ids [L], types [L], and the sentence of each token [L], -1 for none."""

    ids: list[int]
    types: list[int]
    owner: list[int]


class Judgement(NamedTuple):
    """score: how relevant the passage is. keep: probability of each token [tokens], owner: its sentence [tokens]."""

    score: float
    keep: np.ndarray
    owner: np.ndarray


class Reranker(nn.Module):
    """A sequence classifier of one class, such as any cross-encoder, and a head that says which tokens to keep.

    The score is the classifier's own, so that a reranker which gets the second head goes on ranking as it did.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        keep: nn.Linear | None = None,
        settings: Settings | None = None,
    ):
        super().__init__()
        if getattr(model.config, "num_labels", 1) != 1:
            raise ModelError(f"this classifier has {model.config.num_labels} classes: a reranker has one, its score")
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError(f"{type(tokenizer).__name__} is no fast tokenizer: give a checkpoint with tokenizer.json")
        self.model, self.tokenizer, self.keep = model, tokenizer, keep
        self.settings = settings or Settings()
        name = "token_type_ids"
        self._typed = name in tokenizer.model_input_names and name in inspect.signature(model.forward).parameters
        self._backend = type(backend).from_str(backend.to_str())  # of its own: padding is a matter of ours
        self._backend.no_truncation()
        self._backend.no_padding()

    def with_head(self, seed: int = 0) -> Reranker:
        """The same with a new second head, drawn from `seed` as the classifier's own would be."""
        width = self.model.config.hidden_size
        keep = nn.Linear(width, 2)
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            spread = float(getattr(self.model.config, "initializer_range", 0.02))
            keep.weight.copy_(torch.randn(2, width, generator=draw) * spread)
            keep.bias.zero_()
        return Reranker(self.model, self.tokenizer, keep.to(devices.find_device(self.model)), self.settings)

    def copy(self) -> Reranker:
        """The same, with weights of its own."""
        return Reranker(copy.deepcopy(self.model), self.tokenizer, copy.deepcopy(self.keep), self.settings)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Scores [n] and logits to drop or keep [n, L, 2]; None without a second head. All given are [n, L]."""
        types = {"token_type_ids": token_type_ids} if self._typed else {}
        states: list[Tensor] = []  # classifiers do not agree on which of their hidden states is the last
        mine = get_ident()

        def hear(found: Sequence[Tensor]) -> None:
            if get_ident() == mine:  # hooks of other threads hear this one, too
                states.append(found[0])

        base = self.model.base_model
        norm = getattr(base, "final_norm", None) if self.settings.before_norm else None
        if norm is None:
            hook = base.register_forward_hook(lambda module, given, out: hear(out))
        else:
            hook = norm.register_forward_pre_hook(lambda module, given: hear(given))
        try:
            scores = self.model(input_ids=input_ids, attention_mask=attention_mask, **types).logits[:, 0]
        finally:
            hook.remove()
        if self.keep is None:
            return scores, None
        # The head stays in float32 where the checkpoint is in half precision.
        return scores, self.keep(_drop_out(self.model, states[-1]).to(self.keep.weight.dtype))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user of this model should know."""
        return published.describe_licence(self.settings.licence)

    @property
    def longest(self) -> int:
        """Tokens of a block: those of the settings, or 512, and no more than the model has positions for."""
        wanted = self.settings.longest or 512
        return min(wanted, getattr(self.model.config, "max_position_embeddings", 0) or wanted)

    def blocks(self, question: str, sentences: Sequence[str], *, longest: int = 0) -> list[Block]:
        """The sentences in as many blocks as they need, the question before each.

        Each sentence is tokenised on its own, so that its tokens are exact; one that is longer than a block is cut, and
        a question that takes more than half of a block is shortened.

        longest: tokens of a block; as `Reranker.longest` if 0.
        """
        (found,) = self._blocks([(question, sentences)], longest)
        return found

    def _blocks(self, pairs: Sequence[tuple[str, Sequence[str]]], longest: int) -> list[list[Block]]:
        """The blocks of each pair; each text is tokenised once, and all of them by one call."""
        given = [[self._plain(question), *self._space(parts)] for question, parts in pairs]
        texts = list(dict.fromkeys(chain.from_iterable(given)))
        found = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        ids = {text: encoding.ids for text, encoding in zip(texts, found, strict=True)}
        return [self._pack([ids[text] for text in one], longest) for one in given]

    def _plain(self, question: str) -> str:
        """The question as the model was trained to read it."""
        if not self.settings.plain_question:
            return question
        return " ".join(question.lower().translate(_NO_PUNCTUATION).split())

    def _space(self, sentences: Sequence[str]) -> list[str]:
        """Sentences with the blanks between them."""
        if self.settings.blank_behind:
            return [*(f"{text} " for text in sentences[:-1]), *sentences[-1:]]
        return [f" {text}" if i else text for i, text in enumerate(sentences)]

    def _pack(self, found: Sequence[list[int]], longest: int) -> list[Block]:
        """Tokens of a question and of its sentences as blocks."""
        head, middle, tail, kinds = self._template
        longest = longest or self.longest
        frame = len(head) + len(middle) + len(tail)
        asked = found[0][: max(1, (longest - frame) // 2)]
        room = longest - frame - len(asked)
        if room < 1:
            raise InputError(f"longest={longest}: a block has {frame} special tokens, so give at least {frame + 2}")
        made, ids, owner = list[Block](), list[int](), list[int]()

        def close() -> None:
            sequence = [*head, *asked, *middle, *ids, *tail]
            types = [kinds[0]] * (len(head) + len(asked) + len(middle)) + [kinds[1]] * (len(ids) + len(tail))
            before = [-1] * (len(head) + len(asked) + len(middle))
            made.append(Block(sequence, types, [*before, *owner, *([-1] * len(tail))]))
            ids.clear()
            owner.clear()

        for number, tokens in enumerate(found[1:]):
            if ids and len(ids) + len(tokens) > room:
                close()
            for start in range(0, max(1, len(tokens)), room):
                part = tokens[start : start + room]
                if len(ids) + len(part) > room:
                    close()
                ids += part
                owner += [number] * len(part)
        close()
        return made

    @functools.cached_property
    def _template(self) -> tuple[list[int], list[int], list[int], tuple[int, int]]:
        """Special tokens before the question, between, and behind; and the type of either part."""
        first, second = self._backend.encode_batch(["a", "b"], add_special_tokens=False)
        whole = self._backend.post_process(first, second, add_special_tokens=True)
        mask = whole.special_tokens_mask
        words = [i for i, special in enumerate(mask) if not special]
        if len(words) < 2:
            raise ModelError("the tokenizer makes nothing of 'a' and 'b': a pair can't be read with it")
        a, b = words[0], words[-1]
        between = whole.ids[a + 1 : b]
        if self.settings.one_separator:
            between = between[:1]
        return whole.ids[:a], between, whole.ids[b + 1 :], (whole.type_ids[a], whole.type_ids[b])

    def judge(
        self, pairs: Sequence[tuple[str, Sequence[str]]], *, longest: int = 0, best: bool = False
    ) -> list[Judgement]:
        """What is made of each (question, sentences); blocks of like length are read together, with little padding.

        best: a long passage scores as its best block, not as its first. Without a second head all tokens are kept.
        """
        made = [(n, block) for n, blocks in enumerate(self._blocks(pairs, longest)) for block in blocks]
        scores: list[list[float]] = [[] for _ in pairs]
        kept: list[list[np.ndarray]] = [[] for _ in pairs]
        lengths, many = [len(block.ids) for _, block in made], threads.count(devices.find_device(self.model))
        share = ONCE if many == 1 else max(_WORTH, math.ceil(_SLACK * sum(lengths) / many))
        passes = batches(lengths, min(ONCE, share))
        with evaluating(self):
            read = threads.each(lambda chosen: self._pass([made[i][1] for i in chosen]), passes, many)
        found = dict(zip(chain.from_iterable(passes), chain.from_iterable(read), strict=True))
        owners: list[list[np.ndarray]] = [[] for _ in pairs]
        for i, (n, block) in enumerate(made):
            owner = np.array(block.owner)
            scores[n].append(found[i][0])
            kept[n].append(found[i][1][owner >= 0])
            owners[n].append(owner[owner >= 0])
        if not all(math.isfinite(value) for row in scores for value in row):
            raise NumericalError("the model gives NaN or infinity for a passage: check its weights, or use another")
        return [
            Judgement(max(score) if best else score[0], np.concatenate(keep), np.concatenate(owner))
            for score, keep, owner in zip(scores, kept, owners, strict=True)
        ]

    def _pass(self, blocks: Sequence[Block]) -> list[tuple[float, np.ndarray]]:
        """Of each block its score, and the probability of each token to stay [L]."""
        read = pad(blocks, self.tokenizer.pad_token_id or 0)
        score, logits = self(**devices.move(dict(read), self.model))
        if logits is None:
            return [(float(one), np.ones(len(block.ids))) for one, block in zip(score, blocks, strict=True)]
        share = logits.softmax(-1)[..., 1].float().cpu().numpy()
        return [(float(one), row[: len(block.ids)]) for one, row, block in zip(score, share, blocks, strict=True)]

    def save(self, folder: str | Path) -> None:
        """An ordinary checkpoint of a sequence classifier with its tokenizer, and the second head beside it."""
        self.model.config.pruning = asdict(self.settings)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.keep is not None:
            head = {name: tensor.detach().contiguous() for name, tensor in self.keep.state_dict().items()}
            save_file(head, Path(folder) / HEAD)


def _drop_out(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Hidden states as the second head takes them: with the dropout of the first, in training."""
    rates = [getattr(model.config, name, None) for name in ("classifier_dropout", "hidden_dropout_prob")]
    rate = next((float(rate) for rate in rates if rate is not None), 0.0)
    return nn.functional.dropout(states, rate, model.training)


def pad(blocks: Sequence[Block], pad: int) -> dict[str, Tensor]:
    """Blocks as one batch: input_ids, attention_mask, token_type_ids, each [n, L]."""
    longest = max(len(block.ids) for block in blocks)
    fill = [longest - len(block.ids) for block in blocks]
    return {
        "input_ids": torch.tensor([[*b.ids, *([pad] * n)] for b, n in zip(blocks, fill, strict=True)]),
        "attention_mask": torch.tensor([[1] * len(b.ids) + [0] * n for b, n in zip(blocks, fill, strict=True)]),
        "token_type_ids": torch.tensor([[*b.types, *([0] * n)] for b, n in zip(blocks, fill, strict=True)]),
    }


def open_reranker(source: str | Path | Reranker, device: str = "") -> Reranker:
    """A cross-encoder from a folder or Hub id, opened once, with its second head where it has one; or the given one.

    device: where one that is opened is held, "cuda"; the processor if empty. A given one stays where it is.

    An encoder that is no classifier gets a classifier that knows nothing: `settings.ranks` is False then.

    Published pruners of other programs open, too, see `published`; they read and round as their own code does.

    Raises `InputError` for what can't be opened, `ModelError` for a checkpoint with heads or other tensors that have no
    place. Weights are read from safetensors and no code of a checkpoint is run.
    """
    if isinstance(source, Reranker):
        return source
    if not isinstance(source, str | Path):
        raise InputError(f"a reranker is a folder, a Hub id or rerankers.Reranker, not {type(source).__name__}")
    return _open_checkpoint(str(source), device or "cpu")


def default_folder() -> Path:
    """Where the pruner stands that is taken where none is given, once it is built (`secateur build-pruner`)."""
    return disk.cache_folder() / "pruner"


def open_ranker(source: str | Path | Reranker, device: str = "") -> Reranker | RemoteRanker:
    """The same where only scores are wanted: also the address of a server of text-embeddings-inference."""
    if isinstance(source, str) and http.is_address(source):
        return RemoteRanker(embeddings.ranker(source))
    return open_reranker(source, device)


class RemoteRanker:
    """A cross-encoder behind a server, which reads passages whole and tells their scores alone."""

    notes: tuple[str, ...] = ()

    def __init__(self, ranker: embeddings.Ranker) -> None:
        self.ranker = ranker

    def judge(
        self, pairs: Sequence[tuple[str, Sequence[str]]], *, longest: int = 0, best: bool = False
    ) -> list[Judgement]:
        """As `Reranker.judge`; each sentence counts as one token, and all are kept. Blocks are the server's matter."""
        found = dict[int, float]()
        for question in dict.fromkeys(question for question, _ in pairs):
            asked = [number for number, pair in enumerate(pairs) if pair[0] == question]
            scores = self.ranker(question, [" ".join(pairs[number][1]) for number in asked])
            found |= zip(asked, scores, strict=True)
        return [
            Judgement(found[number], np.ones(len(sentences)), np.arange(len(sentences)))
            for number, (_, sentences) in enumerate(pairs)
        ]


def forget_checkpoints() -> None:
    """Read checkpoints anew from now on: what lies in a folder is another one."""
    _open_checkpoint.cache_clear()


@functools.lru_cache(maxsize=2)
def _open_checkpoint(name: str, device: str) -> Reranker:
    from transformers import AutoTokenizer  # seconds, of which a page needs none

    with opening("reranker", name), workers.quiet_loading():
        config = published.read_config(name)
        found = published.open_published(name, config)
        with published.building(f"{name}'s tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        card = published.find_file(name, "README.md")
        if found is None:
            model, settings = _open_classifier(name, config)
            head = _head(published.find_file(name, HEAD), model.config.hidden_size)
        else:
            model, settings = _build(name, found), Settings.read(found.settings)
            head = _linear(found.head, model.config.hidden_size, name)
    licence = hub.read_card(card.parent).get("license") if card else None
    if isinstance(licence, str):
        settings = replace(settings, licence=licence)
    made = Reranker(model.eval(), tokenizer, head, settings)
    move_to_device(made, device)
    return made


def _open_classifier(name: str, config: Mapping[str, object]) -> tuple[PreTrainedModel, Settings]:
    """A classifier of transformers, or an encoder with one that knows nothing; and its settings.

    Raises `ModelError` where the checkpoint holds tensors that neither has a place for.
    """
    from transformers import AutoModelForSequenceClassification

    kinds = config.get("architectures")
    classifies = isinstance(kinds, list) and any("SequenceClassification" in str(kind) for kind in kinds)
    with published.building(f"{name}/config.json"):
        model, told = AutoModelForSequenceClassification.from_pretrained(
            name, use_safetensors=True, use_kernels=False, trust_remote_code=False, output_loading_info=True,
            ignore_mismatched_sizes=True, **({} if classifies else {"num_labels": 1}),
        )  # fmt: skip
    published.check_shapes(name, told["mismatched_keys"])
    settings = Settings.read(getattr(model.config, "pruning", None))
    ranks = not any("classifier" in key or "score" in key for key in told["missing_keys"])
    left = told["unexpected_keys"]
    published.check_leftovers(name, left if ranks else [key for key in left if not published.is_pretraining_head(key)])
    return model, settings if ranks else replace(settings, ranks=False)


def _build(name: str, found: published.Checkpoint) -> PreTrainedModel:
    """The classifier of a published pruner: each tensor has its place, and each place its tensor."""
    from transformers import AutoModelForSequenceClassification

    kinds = AutoModelForSequenceClassification._model_mapping
    if type(found.config) not in kinds:
        raise ModelError(f"{name} is built on {found.config.model_type}, of which transformers has no classifier")
    with published.building(f"{name}/config.json"):
        model, told = kinds[type(found.config)].from_pretrained(
            None,
            config=found.config,
            state_dict=found.tensors,
            use_kernels=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    published.check_shapes(name, told["mismatched_keys"])
    published.check_leftovers(name, told["unexpected_keys"], told["missing_keys"])
    return cast("PreTrainedModel", model)


def _head(file: Path | None, width: int) -> nn.Linear | None:
    """The second head of one of our own checkpoints."""
    if file is None:
        return None
    try:
        given: Mapping[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} is damaged: copy it anew") from error
    return _linear(given, width, str(file))


def _linear(given: Mapping[str, Tensor], width: int, source: str) -> nn.Linear:
    """The second head, of tensors that `source` holds. `ModelError` for others than `weight` and `bias` of two rows."""
    shapes = {name: tuple(tensor.shape) for name, tensor in given.items()}
    if shapes != {"weight": (2, width), "bias": (2,)}:
        raise ModelError(f"{source} holds {shapes}, not weight {(2, width)} and bias (2,)")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in given.values()):
        raise ModelError(f"{source} holds NaN or infinity: train it anew")
    head = nn.Linear(width, 2)
    head.load_state_dict(dict(given))
    return head
