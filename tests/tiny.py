"""Tiny models made on the spot: random weights, real tokenizers, a few thousand parameters."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    RobertaConfig,
    RobertaModel,
)

import learnt
from assets import facts

WORDS = (  # noqa: SIM905
    "the a one two three tree garden gardener cuts prunes grows waters keeps branch branches leaf leaves root bud "
    "winter spring summer old young small large sharp clean every each often never slowly early late and or but of in "
    "with from to is was are were it they he she"
).split()


def sentences(count: int = 400, seed: int = 0) -> list[str]:
    """Texts of 5 to 14 words."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(5, 15, (count,), generator=draw).tolist()
    picks = torch.randint(0, len(WORDS), (sum(lengths),), generator=draw).tolist()
    words = iter(WORDS[pick] for pick in picks)
    return [" ".join(next(words) for _ in range(length)) for length in lengths]


def chains(count: int = 400, seed: int = 0) -> list[str]:
    """Texts of 12 words where the word before last mostly says the next one: something that a model can learn."""
    draw = torch.Generator().manual_seed(seed)
    texts = []
    for _ in range(count):
        picks = torch.randint(0, len(WORDS), (12,), generator=draw).tolist()
        surprises = (torch.rand(12, generator=draw) < 0.1).tolist()
        for place in range(2, 12):
            if not surprises[place]:
                picks[place] = (3 * picks[place - 2] + 1) % len(WORDS)
        texts.append(" ".join(WORDS[pick] for pick in picks))
    return texts


def letters() -> PreTrainedTokenizerFast:
    """One token per byte, so that any text can be read."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    names = ["[PAD]", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    base = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=base, pad_token="[PAD]", eos_token="</s>")


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of `WORDS`, with the special tokens of both encoders and decoders."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<s>", "</s>"]
    vocabulary = {word: index for index, word in enumerate(special + WORDS)}
    base = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    base.pre_tokenizer = pre_tokenizers.Whitespace()
    base.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=base,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=64,
    )


def classifier(classes: str = "ab", seed: int = 0, problem: str | None = None) -> PreTrainedModel:
    """A BERT of one layer that tells texts apart, a class for each letter of `classes`, for `tokenizer()`'s tokens.

    problem: what its outputs are, as transformers has it: regression or multi_label_classification.
    """
    torch.manual_seed(seed)
    small = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, pad_token_id=0)
    names = {name: number for number, name in enumerate(classes)}
    labels = dict(label2id=names, id2label={n: name for name, n in names.items()})
    config = BertConfig(vocab_size=64, **small, **labels, problem_type=problem)
    return BertForSequenceClassification(config)


def model(kind: str, seed: int = 0) -> PreTrainedModel:
    """`bert`, `masked` (with its head), `roberta`, `distilbert`, `gpt2`, `llama` (grouped-query attention), `qwen3` or
    `mixtral`.
    """
    vocabulary = 64
    torch.manual_seed(seed)
    common = dict(vocab_size=vocabulary, pad_token_id=0)
    bert = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)
    llama = dict(hidden_size=64, num_hidden_layers=4, num_attention_heads=8, intermediate_size=128)
    llama |= dict(num_key_value_heads=2, bos_token_id=5, eos_token_id=6, max_position_embeddings=128)
    experts = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=24)
    makers: dict[str, Any] = {
        "bert": lambda: BertModel(BertConfig(**common, **bert, max_position_embeddings=160)),
        "masked": lambda: BertForMaskedLM(BertConfig(**common, **bert, max_position_embeddings=160)),
        "roberta": lambda: RobertaModel(RobertaConfig(**common, **bert, max_position_embeddings=160)),
        "distilbert": lambda: DistilBertModel(
            DistilBertConfig(**common, dim=32, n_layers=3, n_heads=4, hidden_dim=64, max_position_embeddings=160)
        ),
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(**common, n_embd=32, n_layer=3, n_head=4, n_positions=160, bos_token_id=5, eos_token_id=6)
        ),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**common, **llama)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**common, **llama, head_dim=8)),
        "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**common, **(llama | experts), num_local_experts=8)),
    }
    made: PreTrainedModel = makers[kind]()
    with torch.no_grad():
        for parameter in made.parameters():  # biases and norms too, so that a cut which forgets one shows
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made.eval()


def mixture(dense: Sequence[int] = (), seed: int = 0) -> PreTrainedModel:
    """A Qwen3-MoE of three layers with 8 experts each, but for the layers `dense`, which have a plain FFN."""
    torch.manual_seed(seed)
    config = Qwen3MoeConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, moe_intermediate_size=16, num_experts=8, num_experts_per_tok=2,
        mlp_only_layers=list(dense), pad_token_id=0, bos_token_id=5, eos_token_id=6, max_position_embeddings=128,
    )  # fmt: skip
    return Qwen3MoeForCausalLM(config).eval()


def uneven(made: PreTrainedModel, share: float = 0.5, seed: int = 0) -> PreTrainedModel:
    """The same model with `share` of each layer's neurons nearly silent: worth keeping is easy to tell."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, module in made.named_modules():
            transposed = name.endswith("mlp.c_proj")  # GPT-2 stores [in, out]
            if not transposed and not re.search(r"(?<!attention\.)output\.dense$|lin2$|down_proj$", name):
                continue
            weight = module.weight.T if transposed else module.weight
            count = weight.shape[1]
            weight[:, torch.randperm(count, generator=draw)[: int(count * share)]] *= 1e-3
    return made


def taught(made: PreTrainedModel, steps: int = 200, seed: int = 0) -> PreTrainedModel:
    """The same decoder after some steps on `chains`, packed as recipes pack them: its parts differ in worth."""

    def train() -> None:
        from secateur.data import texts

        items = texts.batches(texts.read(chains(1600, seed)), tokenizer(), packed=True, batch=32, length=16, seed=seed)
        optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2)
        for step, batch in enumerate(items.take(steps)):
            optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
            optimizer.zero_grad()
            made(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss.backward()
            optimizer.step()

    learnt.learn(made, (made.config.to_json_string(), steps, seed), train)
    return made.eval()


@functools.cache
def fluent(kind: str) -> PreTrainedModel:
    """`taught(model(kind))`, one for all tests that only read it."""
    return taught(model(kind))


def knowing(world: facts.World) -> Path:
    """The folder of the model that knows these facts, which takes 16 s to train: one worker does."""
    with learnt.take_turns("facts"):
        return facts.model_folder(world)


def folder(kind: str, path: Path, *, sentence: bool = False) -> Path:
    """A checkpoint as people have it: model and tokenizer; with `sentence`, a sentence-transformers folder."""
    path.mkdir(parents=True, exist_ok=True)
    uneven(model(kind)).save_pretrained(path)
    tokenizer().save_pretrained(path)
    if sentence:
        from sentence_transformers import SentenceTransformer, models

        word = models.Transformer(str(path), max_seq_length=64)
        SentenceTransformer(modules=[word, models.Pooling(32), models.Normalize()], device="cpu").save(str(path))
    return path


def training_set(folder: Path) -> None:
    """data.npz, 60 images of 2 x 2 in classes of 30, 20 and 10, and bare.npz, the same without classes."""
    labels = np.repeat([0, 1, 2], [30, 20, 10])
    inputs = np.random.default_rng(0).random((60, 1, 2, 2), np.float32) + labels[:, None, None, None] * 0.5
    np.savez(folder / "data.npz", inputs=inputs, labels=labels)
    np.savez(folder / "bare.npz", inputs=inputs)


TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
"""A chat template as simple as can be: a role, a text, and the end of text after each answer."""


def chat_tokenizer(*, template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    """The tokenizer of `WORDS` with roles as special tokens, and a chat template."""
    found = tokenizer()
    roles = ["<|system|>", "<|user|>", "<|assistant|>"]
    found.add_special_tokens({"additional_special_tokens": roles})
    found.chat_template = template
    return found


def chats(count: int = 200, seed: int = 0, turns: int = 1) -> list[dict[str, Any]]:
    """Rows of chats: each answer is the words of its question, the other way round."""
    texts = iter(sentences(count * turns, seed))
    rows = []
    for _ in range(count):
        messages = []
        for _ in range(turns):
            asked = next(texts).split()[:5]
            messages += [
                {"role": "user", "content": " ".join(asked)},
                {"role": "assistant", "content": " ".join(reversed(asked))},
            ]
        rows.append({"messages": messages})
    return rows
