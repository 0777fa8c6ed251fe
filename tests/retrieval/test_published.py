"""Published pruners: synthetic checkpoints of their layouts, beside their forward pass as this file states it again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2Model,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaModel,
)

import tiny
from secateur._utils.rundir import Transient
from secateur.errors import InputError, ModelError
from secateur.recipes.context.provence import provence
from secateur.retrieval import rerankers
from secateur.subjects import open_passages
from secateur.vocabulary import Budget

SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 300,
    "pad_token_id": 0,
}
MODERN = {"global_attn_every_n_layers": 2, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
QUESTION = "Who prunes  the Tree, in winter?"
PLAIN = "who prunes the tree in winter"
PASSAGES = [
    ["The gardener cuts.", "It rains!", "Leaves fall late, and slowly.", "She keeps it."],
    ["A bud.", "Old trees are pruned by Mr. Oak in winter.", "No one waters the root."],
]


def tokenizer(between: str = "[SEP]") -> PreTrainedTokenizerFast:
    """A token for each byte, blanks too; `between` question and passage."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    names = ["[PAD]", "[CLS]", "[SEP]", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    base = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=f"[CLS] $A {between} $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=base, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")


def linear(rows: int, columns: int = 32, shift: float = 0.5) -> dict[str, Tensor]:
    return {"weight": torch.randn(rows, columns) * 0.5, "bias": torch.randn(rows) * shift}


def named(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor.contiguous().clone() for name, tensor in tensors.items()}


def write(folder: Path, config: dict, tensors: dict[str, Tensor], between: str = "[SEP]", shards: int = 1) -> Path:
    """A checkpoint as another program leaves it, in one file or more."""
    tokenizer(between).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    places = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        save_file({name: tensors[name] for name, place in places.items() if place == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def naver(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    torch.manual_seed(3)
    config = DebertaV2Config(
        **SMALL,
        type_vocab_size=0,
        relative_attention=True,
        position_buckets=16,
        pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_biased_input=False,
    )
    tensors = named("deberta", DebertaV2Model(config).state_dict()) | named("pooler.dense", linear(32))
    tensors |= named("classifier", linear(2)) | named("token_classifier", linear(2))
    told = {
        **config.to_dict(),
        "model_type": "Provence",
        "architectures": ["Provence"],
        "auto_map": {"AutoModel": "modeling_provence.Provence"},
    }
    return write(folder, told, tensors, shards=2), tensors


def xprovence(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    torch.manual_seed(6)
    config = XLMRobertaConfig(**SMALL, type_vocab_size=1)
    tensors = named("roberta", XLMRobertaModel(config).state_dict())
    tensors |= named("classifier", linear(1)) | named("token_classifier", linear(2, shift=0.0))
    tensors["roberta.embeddings.position_ids"] = torch.arange(300)[None]  # as older releases stored it
    told = {**config.to_dict(), "model_type": "XProvence", "architectures": ["XProvence"]}
    return write(folder, told, tensors, between="[SEP] [SEP]"), tensors


def open_provence(folder: Path, kind: str = "modernbert") -> tuple[Path, dict[str, Tensor]]:
    torch.manual_seed(5)
    if kind == "modernbert":
        config = ModernBertConfig(**SMALL, **MODERN, num_labels=1)
        model = ModernBertForSequenceClassification(config)
    else:
        config = BertConfig(**SMALL, num_labels=1)
        model = BertForSequenceClassification(config)
    tensors = named("ranking_model", model.state_dict()) | named("pruning_head.classifier", linear(2))
    told = {
        "model_type": "open_provence",
        "architectures": ["OpenProvenceForSequenceClassification"],
        "mode": "reranking_pruning",
        "base_model_config": config.to_dict(),
        "max_length": 256,
        "num_labels": 1,
        "num_pruning_labels": 2,
        "pruning_config": {"hidden_size": 32, "num_labels": 2},
        "default_threadshold": 0.35,
    }
    return write(folder, told, tensors), tensors


# ------------------------------------------------------------------------------------ what their programs say, restated


def read(texts: list[str]) -> list[list[int]]:
    return [tokenizer()(text, add_special_tokens=False)["input_ids"] for text in texts]


def sequence(question: str, parts: list[str]) -> tuple[Tensor, list[slice]]:
    """[CLS] question [SEP] sentences [SEP], and where each sentence is."""
    (asked,), made = read([question]), read(parts)
    ids, places = [1, *asked, 2], []
    for tokens in made:
        places.append(slice(len(ids), len(ids) + len(tokens)))
        ids += tokens
    return torch.tensor([[*ids, 2]]), places


def states_of(folder: Path, tensors: dict[str, Tensor], prefix: str, ids: Tensor) -> Tensor:
    """The backbone's last hidden state."""
    config = json.loads((folder / "config.json").read_text())
    kind = {"deberta": (DebertaV2Config, DebertaV2Model), "roberta": (XLMRobertaConfig, XLMRobertaModel)}[prefix]
    model = kind[1](kind[0](**{name: value for name, value in config.items() if name != "model_type"})).eval()
    own = {name.removeprefix(f"{prefix}."): one for name, one in tensors.items() if name.startswith(prefix)}
    own.pop("embeddings.position_ids", None)
    model.load_state_dict(own)
    return model(ids)[0][0]


def apply(tensors: dict[str, Tensor], name: str, states: Tensor) -> Tensor:
    return states @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


@torch.no_grad()
def naver_says(folder: Path, tensors: dict[str, Tensor], passage: list[str], threshold: float) -> tuple[float, list]:
    """Their score, and whether each sentence stays: a share of tokens above the threshold that is above it."""
    prefix, pooler = (
        ("deberta", "pooler.dense") if "pooler.dense.weight" in tensors else ("roberta", "roberta.pooler.dense")
    )
    ids, places = sequence(PLAIN, [passage[0], *(f" {text}" for text in passage[1:])])
    states = states_of(folder, tensors, prefix, ids)
    first = apply(tensors, pooler, states[0])
    pooled = torch.nn.functional.gelu(first) if prefix == "deberta" else first.tanh()
    chance = apply(tensors, "token_classifier", states).softmax(-1)[:, 1]
    stays = [float((chance[place] > threshold).float().mean()) > threshold for place in places]
    return float(apply(tensors, "classifier", pooled)[0]), stays


@torch.no_grad()
def open_provence_says(
    kind: str, tensors: dict[str, Tensor], passage: list[str], threshold: float
) -> tuple[float, list]:
    """Their score before its sigmoid, and whether each sentence stays: the mean of its tokens above the threshold."""
    ids, places = sequence(QUESTION.replace("  ", " "), [*(f"{text} " for text in passage[:-1]), passage[-1]])
    if kind == "modernbert":
        model = ModernBertForSequenceClassification(ModernBertConfig(**SMALL, **MODERN, num_labels=1)).eval()
    else:
        model = BertForSequenceClassification(BertConfig(**SMALL, num_labels=1)).eval()
    model.load_state_dict({n.removeprefix("ranking_model."): t for n, t in tensors.items() if n.startswith("ranking")})
    layers, states = model.base_model.layers if kind == "modernbert" else model.base_model.encoder.layer, []
    layers[-1].register_forward_hook(lambda module, given, out: states.append(out))
    score = model(ids).logits[0, 0]
    last = states[0] if isinstance(states[0], Tensor) else states[0][0]
    chance = apply(tensors, "pruning_head.classifier", last[0]).softmax(-1)[:, 1]
    return float(score), [float(chance[place].mean()) > threshold for place in places]


# -------------------------------------------------------------------------------------------------------------- tests


LAYOUTS = ("naver", "xprovence", "modernbert", "bert")


def make(layout: str, folder: Path) -> tuple[Path, dict[str, Tensor]]:
    if layout in ("modernbert", "bert"):
        return open_provence(folder, layout)
    return naver(folder) if layout == "naver" else xprovence(folder)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_and_sentences_are_those_of_their_own_program(layout, tmp_path):
    folder, tensors = make(layout, tmp_path / "model")
    model = rerankers.open_reranker(str(folder))
    default = {"naver": 0.1, "xprovence": 0.3}.get(layout, 0.35)
    assert model.settings.threshold == default
    assert model.settings.ranks
    told, kept = [], []
    for threshold in (0.3, 0.45, 0.6):
        into = Transient()
        (result,) = provence(
            open_passages(PASSAGES), QUESTION, [Budget.parse("tokens=100%")], into, model=model, threshold=threshold
        )
        trace = into.values[f"trace-{result.name}"]
        for number, passage in enumerate(PASSAGES):
            says = naver_says if layout in ("naver", "xprovence") else open_provence_says
            where = folder if layout in ("naver", "xprovence") else layout
            score, stays = says(where, tensors, passage, threshold)
            told.append((into.values[f"told-{result.name}"]["reranking_scores"][number], score))
            assert [row["kept"] for row in trace[f"passage {number + 1}"]] == stays
            kept += stays
    np.testing.assert_allclose(*zip(*told, strict=True), atol=1e-5)
    assert 3 < sum(kept) < len(kept) - 3  # neither all nor nothing
    model.save(tmp_path / "again")  # as one of ours, which any program opens as a reranker
    again = rerankers.open_reranker(str(tmp_path / "again"))
    assert again.settings == model.settings
    for one, other in zip(*(m.judge([(QUESTION, part) for part in PASSAGES]) for m in (model, again)), strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-6)
        np.testing.assert_allclose(one.keep, other.keep, atol=1e-6)


def test_an_xprovence_with_the_head_of_its_family_is_read_by_its_names(tmp_path):
    folder, tensors = xprovence(tmp_path)
    before = rerankers.open_reranker(str(folder)).judge([(QUESTION, PASSAGES[0])])[0]
    renamed = {
        name.replace("roberta.pooler.dense", "classifier.dense")
        if "pooler" in name
        else name.replace("classifier", "classifier.out_proj")
        if name.startswith("classifier")
        else name: tensor
        for name, tensor in tensors.items()
    }
    save_file(renamed, folder / "model.safetensors")
    rerankers._open_checkpoint.cache_clear()
    after = rerankers.open_reranker(str(folder)).judge([(QUESTION, PASSAGES[0])])[0]
    assert after.score == pytest.approx(before.score, abs=1e-6)


@pytest.mark.parametrize("layout", ["naver", "modernbert"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"sentence_head.weight": torch.zeros(2, 32)},
            r"holds .*sentence_head.weight, which no part of the model takes",
        ),
        ({"first.layer": None}, "lacks .*layer"),
        ({"token head": None}, "nothing in it says which tokens to keep"),
    ],
)
def test_what_is_left_over_or_lacking_is_named(layout, change, words, tmp_path):
    _, tensors = make(layout, tmp_path)
    prefix = "" if layout == "naver" else "ranking_model."
    for name, tensor in change.items():
        if tensor is not None:
            tensors[prefix + name] = tensor
        elif name == "token head":
            tensors = {key: one for key, one in tensors.items() if not key.startswith(("token_", "pruning_"))}
        else:
            del tensors[next(key for key in tensors if key.endswith(".weight") and "layer" in key)]
    for file in tmp_path.glob("*.safetensors*"):
        file.unlink()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=words) as refusal:
        rerankers.open_reranker(str(tmp_path))
    assert "\n" not in str(refusal.value)


def test_a_head_beside_an_ordinary_classifier_is_not_dropped(tmp_path):
    """Nor beside an encoder; heads of pretraining say nothing of tokens to keep."""
    torch.manual_seed(0)
    for number, (extra, architecture) in enumerate(
        [("token_classifier", "BertForSequenceClassification"), ("token_classifier", "BertModel")]
    ):
        folder = tmp_path / str(number)
        model = BertForSequenceClassification(BertConfig(**SMALL, num_labels=1))
        model.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        tensors = load_file(folder / "model.safetensors") | named(extra, linear(2))
        if architecture == "BertModel":
            tensors = {name: one for name, one in tensors.items() if not name.startswith("classifier")}
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({**config, "architectures": [architecture]}))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=r"token_classifier\.bias, token_classifier\.weight, which no part"):
            rerankers.open_reranker(str(folder))
    masked = tiny.folder("masked", tmp_path / "masked")
    assert not rerankers.open_reranker(str(masked)).settings.ranks


def test_an_unknown_kind_and_a_base_that_is_not_told_are_refused(tmp_path):
    folder, _ = naver(tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "Camargue"}))
    with pytest.raises(ModelError, match=r"'Camargue'.*Provence, XProvence, open_provence"):
        rerankers.open_reranker(str(folder))
    folder, _ = open_provence(tmp_path / "b")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "base_model_config": None}))
    with pytest.raises(ModelError, match="no base_model_config"):
        rerankers.open_reranker(str(folder))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="only safetensors are read"):
        rerankers.open_reranker(str(folder))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("{bad", "is damaged"),
        ("[" * 100_000, "is damaged"),
        ('["a"]', "holds no config"),
        ("\ufeff{}", "is damaged"),
        ({"model_type": ["a"]}, r"has model_type \['a'\]"),
        ({"base_model_config": {"model_type": "camargue"}}, "'camargue', which transformers does not know"),
        ({"hidden_size": "x"}, "hidden_size"),
        ({"hidden_size": 64}, r"of shape \(32,\), and .*config.json says \(64,\)"),
        ({"num_attention_heads": 5}, r"attention heads \(5\)"),
        ({"hidden_act": "camargue"}, "'camargue'"),
        ({"max_length": -5}, "has max_length -5, not a whole number of at least 16"),
        ({"default_threadshold": 7}, "has default_threadshold 7, not a number from 0 to 1"),
        ({"default_threadshold": float("nan")}, "has default_threadshold nan"),
    ],
)
def test_a_config_that_says_nonsense_is_named_in_one_line(change, words, tmp_path):
    folder, _ = open_provence(tmp_path / "op", "bert")
    file = folder / "config.json"
    if isinstance(change, str):
        file.write_text(change, encoding="utf-16" if change.startswith("\ufeff") else "utf-8")
    else:
        config = json.loads(file.read_text())
        config["base_model_config"] |= {name: value for name, value in change.items() if name not in config}
        config |= {name: value for name, value in change.items() if name in config}
        file.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=words) as refusal:
        rerankers.open_reranker(str(folder))
    assert str(file) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "index",
    [
        "{bad",
        "[]",
        '{"a": 5}',
        '{"weight_map": ["a"]}',
        '{"weight_map": {"a": 5}}',
        '{"weight_map": {"a": ".."}}',
        '{"weight_map": {"a": "../op2/model.safetensors"}}',
    ],
)
def test_an_index_names_files_of_its_folder_alone(index, tmp_path):
    folder, _ = open_provence(tmp_path / "op", "bert")
    (tmp_path / "op2").mkdir()
    (folder / "model.safetensors").rename(tmp_path / "op2" / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match=r"op/model\.safetensors\.index\.json is damaged"):
        rerankers.open_reranker(str(folder))


@pytest.mark.parametrize(("file", "text"), [("tokenizer.json", "{bad"), ("tokenizer_config.json", "[]")])
def test_a_damaged_tokenizer_is_named(file, text, tmp_path):
    folder, _ = open_provence(tmp_path / "op", "bert")
    (folder / file).write_text(text)
    with pytest.raises(ModelError, match="op's tokenizer can't be used"):
        rerankers.open_reranker(str(folder))


@pytest.mark.parametrize(
    ("layout", "card", "licence"),
    [
        ("naver", None, "cc-by-nc-nd-4.0"),
        ("naver", "apache-2.0", ""),
        ("bert", "cc-by-nc-4.0", "cc-by-nc-4.0"),
        ("bert", "mit", ""),
        ("bert", None, ""),
    ],
)
def test_a_licence_that_forbids_commercial_use_is_told(layout, card, licence, tmp_path):
    folder, _ = make(layout, tmp_path)
    if card:
        (folder / "README.md").write_text(f"---\nlicense: {card}\n---\n# A pruner\n")
    into = Transient()
    (result,) = provence(
        open_passages(PASSAGES), QUESTION, [Budget.parse("tokens=100%")], into, model=str(folder), threshold=-1.0
    )
    notes = [f"the model's licence is {licence}: not for commercial use"] if licence else []
    assert into.values[f"told-{result.name}"]["notes"] == notes == list(result.cut.notes)
