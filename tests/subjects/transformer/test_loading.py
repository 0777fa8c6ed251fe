"""Opening what users bring: results, hub layouts, sentence-transformers folders, and all that is broken."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from secateur.errors import ModelError, SecateurError, UnsupportedError
from secateur.subjects import Decoder, Encoder, load, open_subject
from secateur.subjects.transformer import loading
from secateur.vocabulary import Selection
from subjects.tiny import make, without


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make("llama").save(tmp_path / "model")
    return tmp_path / "model"


def test_no_bars_of_transformers_on_a_short_load_or_save(folder, tmp_path, capfd):
    before = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.enable_progress_bar()
    try:
        capfd.readouterr()
        open_subject(folder).save(tmp_path / "again")
        assert capfd.readouterr().err == ""
        assert transformers.utils.logging.is_progress_bar_enabled()  # the caller's setting is as it was
    finally:
        if not before:
            transformers.utils.logging.disable_progress_bar()


def test_no_compiled_code_is_fetched_for_its_layers(folder, tmp_path, monkeypatch):
    """From 5.25 on transformers takes kernels from a hub unless it is told not to."""
    asked = []
    monkeypatch.setattr(transformers.PreTrainedModel, "set_use_kernels", lambda self, use, *given: asked.append(use))
    open_subject(folder)
    loading.read_any(folder)
    assert asked == [False, False]


def refused(source: object, kind: type[SecateurError], *words: str) -> None:
    with pytest.raises(kind) as caught:
        open_subject(source)  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "a/b/c", ""])
def test_missing_paths(source: str) -> None:
    refused(source, ModelError, "expected a folder with config.json")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"num_key_value_heads": 7}, "gives other sizes than its weights have, such as "),
        ({"hidden_act": "nope"}, "transformers has no activation 'nope': correct it in config.json"),
        ({"num_attention_heads": 5}, "hidden size (48) is not a multiple of the number of attention heads (5)"),
    ],
)
def test_settings_that_do_not_fit_the_weights_are_named(folder: Path, setting: dict[str, object], words: str) -> None:
    """transformers names its own option, a bare word, or nothing at all."""
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, **setting}))
    refused(folder, ModelError, words)


def test_a_file_is_no_folder(folder: Path) -> None:
    refused(folder / "model.safetensors", ModelError, "is a file")


def test_a_hub_id_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("nobody/no-such-model-anywhere", ModelError, "'nobody/no-such-model-anywhere' is no folder here")


def test_a_hub_id_from_the_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the Hub's client has cached is used without network; pickles and code are not fetched."""
    kept = tmp_path / "cache" / "models--someone--tiny"
    shutil.copytree(folder, kept / "snapshots" / "0123")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert open_subject("someone/tiny").widths() == open_subject(folder).widths()
    assert load("someone/tiny").config.model_type == "llama"


def test_a_folder_without_config(tmp_path: Path) -> None:
    refused(tmp_path, ModelError, "has no config.json")


@pytest.mark.parametrize("text", ["{", "[]", '{"hidden_size": 4}', "\xff"])
def test_a_damaged_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    refused(folder, ModelError, "config.json is damaged")


def test_a_config_of_nonsense(folder: Path) -> None:
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(data | {"num_attention_heads": "many"}))
    refused(folder, ModelError, "config.json can't be used")


def test_an_unknown_architecture(folder: Path) -> None:
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(data | {"model_type": "mamba3000"}))
    refused(folder, UnsupportedError, "'mamba3000'", f"transformers {transformers.__version__} doesn't have")
    small = {"vocab_size": 8, "hidden_size": 8, "embedding_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
    model = transformers.AlbertForMaskedLM(transformers.AlbertConfig(**small, num_hidden_layers=2))
    refused(
        model, UnsupportedError, "AlbertForMaskedLM has 0 lists of 2 layers", "secateur prune cuts it as any network"
    )


def test_remote_code_is_not_run_unasked(folder: Path) -> None:
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(data | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    refused(folder, ModelError, "trust_remote_code=True")
    data["model_type"] = "mine"  # with code for it: to trust it would not help
    (folder / "config.json").write_text(json.dumps(data | {"auto_map": {"AutoConfig": "evil.Config"}}))
    refused(folder, UnsupportedError, "'mine'", "code of others is not supported")
    with pytest.raises(UnsupportedError, match="is not supported, trusted or not"):
        open_subject(folder, trust_remote_code=True)
    assert not (folder / "ran").exists()


def test_only_a_pickle(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    refused(folder, ModelError, "has no weights")
    torch.save(weights, folder / "pytorch_model.bin")
    refused(folder, ModelError, "only as a pickle (pytorch_model.bin)")


@pytest.mark.parametrize("size", [0, 5, 200, -10])
def test_truncated_weights(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    refused(folder, ModelError, "model.safetensors is damaged or truncated")


def test_missing_and_misshapen_tensors(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    gone = "model.layers.1.mlp.up_proj.weight"
    save_file({name: tensor for name, tensor in weights.items() if name != gone}, folder / "model.safetensors")
    refused(folder, ModelError, gone)
    save_file(weights | {gone: weights[gone][:3].clone()}, folder / "model.safetensors")
    refused(folder, ModelError, "can't be loaded as LlamaForCausalLM")


def _without_pooler(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    assert len(kept) == len(weights) - 2
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_base_model_saved_without_its_pooler_has_none(tmp_path: Path, name: str) -> None:
    """A pooler made up on opening would be another model each time."""
    whole = make(name)
    whole.save(tmp_path)
    _without_pooler(tmp_path)
    subject = open_subject(tmp_path)
    assert not [key for key in subject.model.state_dict() if "pooler" in key]
    assert subject.units().cost()["params"] == sum(p.numel() for p in subject.model.parameters())
    batch = subject.example(2, 5)
    close = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-5)
    close(subject.forward(batch).prediction, whole.forward(batch).prediction)
    for keep in ({"layers": without(3, 1)}, {"layers.0.heads": without(4, 1), "channels": without(48, *range(8))}):
        cut, receipt = subject.cut(Selection(keep))
        assert subject.units().cost(keep)["params"] == receipt.after["params"]
        cut.save(tmp_path / "cut")
        close(open_subject(tmp_path / "cut").forward(batch).prediction, cut.forward(batch).prediction)


def test_a_classifier_without_its_pooler_is_refused(tmp_path: Path) -> None:
    make("bert-classifier").save(tmp_path)
    _without_pooler(tmp_path)
    refused(tmp_path, ModelError, "lack bert.pooler.dense.bias", "2 tensors are missing")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_numbers(folder: Path, value: float) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.2.self_attn.k_proj.weight"][0, 0] = value
    save_file(weights, folder / "model.safetensors")
    refused(folder, ModelError, "model.layers.2.self_attn.k_proj.weight holds NaN or infinity")
    model = make("bert").model
    with torch.no_grad():
        model.encoder.layer[0].output.dense.bias[3] = value
    refused(model, ModelError, "encoder.layer.0.output.dense.bias")


def test_a_damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    refused(folder, ModelError, "tokenizer")


def test_load_refuses_too(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load(tmp_path)
    with pytest.raises(ModelError, match="no model at"):
        load("./nowhere")


def test_kinds_and_outputs(tmp_path: Path) -> None:
    for name, kind, output in (
        ("bert", Encoder, "states"),
        ("bert-classifier", Encoder, "logits"),
        ("roberta-mlm", Encoder, "logits"),
        ("llama-mha", Decoder, "states"),
        ("gpt2", Decoder, "logits"),
    ):
        subject = make(name)
        subject.save(tmp_path / name)
        again = open_subject(str(tmp_path / name))
        assert type(again) is kind
        assert type(again.model) is type(subject.model)
        assert again.output == output
        assert again.kind == kind.kind
        assert again.folder == tmp_path / name


@pytest.mark.parametrize(
    "name",
    [
        "BertForQuestionAnswering",
        "BertForPreTraining",
        "BertForMultipleChoice",
        "LlamaForQuestionAnswering",
        "GPT2DoubleHeadsModel",
        "DistilBertForQuestionAnswering",
    ],
)
def test_tasks_without_one_tensor_of_logits_are_refused(tmp_path: Path, name: str) -> None:
    base = next(kind for kind in ("distilbert", "bert", "llama", "gpt2") if name.lower().startswith(kind))
    model = getattr(transformers, name)(make(base).model.config)
    refused(model, UnsupportedError, name, "AutoModel", "classifier")
    model.save_pretrained(tmp_path)
    refused(tmp_path, UnsupportedError, name)


def test_only_language_models_of_the_next_token_are_causal(tmp_path: Path) -> None:
    causal = {
        name for name in ("bert", "bert-mlm", "llama-mha", "llama-classifier", "gpt2", "llama") if make(name).causal
    }
    assert causal == {"gpt2", "llama"}
    subject = make("llama")
    assert subject.forward(subject.example(1, 3)).causal
    cut, _ = subject.cut(Selection({"layers.0.neurons": without(40, *range(8))}))
    assert cut.causal


def test_dtype(folder: Path) -> None:
    assert open_subject(folder, dtype="bfloat16").model.dtype == torch.bfloat16


def test_weights_in_shards(folder: Path, tmp_path: Path) -> None:
    subject = open_subject(folder)
    subject.model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    shards = sorted((tmp_path / "sharded").glob("*.safetensors"))
    assert len(shards) > 1
    batch = subject.example(1, 5)
    assert torch.equal(open_subject(tmp_path / "sharded").forward(batch).prediction, subject.forward(batch).prediction)
    shards[0].unlink()
    refused(tmp_path / "sharded", ModelError, "sharded")


def test_results_are_loaded_without_their_code(tmp_path: Path) -> None:
    """`load` and `open_subject` rebuild a heterogeneous result from the package, never from the folder."""
    subject, _ = make("llama").cut(Selection({"layers.0.neurons": without(40, *range(8)), "layers": without(3, 1)}))
    subject.save(tmp_path)
    (tmp_path / "modeling_secateur.py").write_text("raise SystemExit('the file was run')")
    batch = subject.example(2, 5)
    expected = subject.forward(batch).prediction
    torch.testing.assert_close(load(tmp_path)(**batch).logits, expected, atol=1e-5, rtol=1e-5)
    again = open_subject(tmp_path)
    torch.testing.assert_close(again.forward(batch).prediction, expected, atol=1e-5, rtol=1e-5)
    assert again.layer_index == subject.layer_index == (0, 2)


def test_layer_index_survives_saving_and_cutting_again(tmp_path: Path) -> None:
    subject = make("qwen3")
    first, _ = subject.cut(Selection({"layers": without(3, 0)}))
    first.save(tmp_path / "first")
    second, _ = open_subject(tmp_path / "first").cut(
        Selection({"layers": without(2, 0), "ffn": np.ones(2, dtype=bool)})
    )
    second.save(tmp_path / "second")
    assert open_subject(tmp_path / "second").layer_index == (2,)
    assert type(load(tmp_path / "second")) is transformers.Qwen3ForCausalLM


def test_damaged_modules_json(tmp_path: Path) -> None:
    make("bert").save(tmp_path)
    for text in ("[]", "{}", "[1]", "["):
        (tmp_path / "modules.json").write_text(text)
        refused(tmp_path, ModelError, "modules.json is damaged")


def test_other_code_in_modules_json_is_not_run(tmp_path: Path) -> None:
    make("bert").save(tmp_path)
    entries = [{"path": "", "type": "sentence_transformers.models.Transformer"}, {"path": "x", "type": "os.system"}]
    (tmp_path / "modules.json").write_text(json.dumps(entries))
    refused(tmp_path, ModelError, "os.system", "is not run")


def test_sentence_transformers_with_weights_after_the_pooling(tmp_path: Path) -> None:
    sentence = pytest.importorskip("sentence_transformers")
    from sentence_transformers import models

    make("bert").save(tmp_path / "bert")
    tokenizer(tmp_path / "bert")
    parts = [models.Transformer(str(tmp_path / "bert")), models.Pooling(48, "mean"), models.Dense(48, 16)]
    sentence.SentenceTransformer(modules=parts, device="cpu").save(str(tmp_path / "st"))
    subject = open_subject(tmp_path / "st")
    assert subject.output == "embedding"
    assert subject.forward(subject.example(2, 4)).prediction.shape == (2, 16)
    with pytest.raises(UnsupportedError, match="Dense"):
        subject.cut(Selection({"channels": without(48, 0)}))


def test_memory_of_a_missing_licence_is_not_invented(folder: Path, tmp_path: Path) -> None:
    shutil.copyfile(Path(__file__).parents[3] / "LICENSE", folder / "LICENSE")
    beside = ("COPYING", "USE_POLICY.md", "preprocessor_config.json", "processor_config.json", "chat_template.json")
    for name in beside:
        (folder / name).write_text("{}")
    open_subject(folder).save(tmp_path / "again", card="# Card\n")
    assert all((tmp_path / "again" / name).is_file() for name in beside)
    assert (tmp_path / "again" / "LICENSE").read_bytes() == (folder / "LICENSE").read_bytes()
    assert (tmp_path / "again" / "README.md").read_text() == "# Card\n"


def tokenizer(folder: Path) -> None:
    """A word-level tokenizer of the tiny vocabulary."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel

    words = {"[UNK]": 0, "[PAD]": 1, **{f"w{index}": index for index in range(2, 61)}}
    raw = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]")
    wrapped.save_pretrained(folder)


def test_of_the_hub_tokenizers_of_any_kind_are_fetched_and_the_weights_once(monkeypatch):
    patterns: dict[str, list[str]] = {}

    def fetch(name: str, **asked: list[str]) -> str:
        patterns.update(asked)
        raise OSError("no network")

    monkeypatch.setattr(loading, "snapshot_download", fetch)
    with pytest.raises(ModelError, match="the Hub gave no model"):
        open_subject("somebody/model")
    needed = ["config.json", "model.safetensors", "source.spm", "bpe.codes", "1_Pooling/config.json", "LICENSE"]
    others = ["original/model.safetensors", "onnx/config.json", "consolidated.safetensors", "pytorch_model.bin"]
    assert [*filter_repo_objects([*needed, *others], **patterns)] == needed
