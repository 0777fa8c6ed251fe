"""Exports run where they claim to, with equal outputs."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MptConfig,
    MptForCausalLM,
    PreTrainedModel,
    StableLmConfig,
    StableLmForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from secateur._utils import rundir
from secateur._utils.outputs import leaves
from secateur.errors import NumericalError, UnsupportedError
from secateur.formats import decilm, onnx_files
from secateur.subjects import open_subject
from secateur.subjects.network import opening, pretrained
from secateur.subjects.network.traced import Traced, open_traced
from secateur.subjects.transformer import export, low_rank, steps
from secateur.subjects.transformer.export import network_to_onnx, to_decilm, to_onnx
from secateur.subjects.transformer.gguf_export import to_gguf
from secateur.vocabulary import Selection
from strangers import run_without_secateur
from subjects.hybrids import make_hybrid
from subjects.tiny import make, without
from subjects.transformer.test_loading import tokenizer
from subjects.transformer.test_saving import cuts

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

CODE = """
import json, sys, torch
from pathlib import Path
from transformers import AutoConfig, AutoModelForCausalLM
from safetensors.torch import load_file, save_file
for folder, no_op in json.loads(Path("jobs.json").read_text()):
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert config.model_type == "nemotron-nas", config.model_type
    assert [block.attention.no_op for block in config.block_configs] == no_op
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    batch = load_file(folder + "/batch.safetensors")
    arguments = dict(max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
    with torch.no_grad():
        results = {"logits": model(**batch).logits, "cached": model.generate(**batch, **arguments)}
        results["fresh"] = model.generate(**batch, **arguments, use_cache=False)
    save_file(results, folder + "/results.safetensors")
    model.save_pretrained(folder + "/again")
assert "secateur" not in sys.modules
"""

CASES = {
    "blocks": ("llama", {"attention": without(3, 1), "ffn": without(3, 2), "layers.0.neurons": without(40, *range(8))}),
    "groups": ("llama", {"layers.1.kv_groups": without(2, 0), "layers.2.heads": without(4, 0, 3)}),
    "biases": ("llama-tied-bias", {"layers.0.neurons": without(40, 1), "layers.1.kv_groups": without(2, 0)}),
    "heads": (
        "llama",
        {f"layers.{index}.heads": without(4, 0, 3) for index in range(3)} | {"channels": without(48, 0)},
    ),
    "whole": ("llama", {}),
}


@pytest.mark.slow
def test_decilm_loads_in_a_fresh_process(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    jobs, expected = [], {}
    for label, (name, keep) in CASES.items():
        subject, _ = make(name).cut(Selection(keep))
        folder = tmp_path / label
        notes = to_decilm(subject, folder)
        assert bool(notes) == ("layers.1.kv_groups" in keep)
        batch = subject.example(2, 6)
        save_file(batch, folder / "batch.safetensors")
        jobs.append((str(folder), [False, label == "blocks", False]))
        with torch.no_grad():
            expected[str(folder)] = subject.forward(batch).prediction
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    run_without_secateur(CODE, tmp_path)
    for folder_name, logits in expected.items():
        results = load_file(Path(folder_name) / "results.safetensors")
        torch.testing.assert_close(results["logits"], logits, atol=1e-5, rtol=1e-5)
        assert torch.equal(results["cached"], results["fresh"])
        first, again = (json.loads((Path(folder_name) / part / "config.json").read_text()) for part in (".", "again"))
        assert first["block_configs"] == again["block_configs"]


def test_decilm_says_widths_of_256_in_both_forms(tmp_path: Path) -> None:
    import transformers

    sizes = {"vocab_size": 32, "hidden_size": 48, "intermediate_size": 768, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    subject = open_subject(transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval())
    cut, _ = subject.cut(Selection({"layers.1.neurons": np.arange(768) < 512}))
    to_decilm(cut, tmp_path)
    blocks = json.loads((tmp_path / "config.json").read_text())["block_configs"]
    assert [block["ffn"]["ffn_mult"] for block in blocks] == [24.0, 16.0]
    assert [block["attention"]["n_heads_in_group"] for block in blocks] == [2, 2]


def test_decilm_checks_the_files_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and configuration are read back; the code beside them is the code that read them."""
    write = export._write_decilm_config

    def wrong(subject, widths, heads, folder):
        write(subject, widths, heads, folder)
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 1.0}))

    to_decilm(make("llama"), tmp_path / "right")
    for name in ("configuration_decilm.py", "modeling_decilm.py"):
        own = Path(decilm.__file__).parent / name
        assert (tmp_path / "right" / name).read_bytes() == own.read_bytes()
    monkeypatch.setattr(export, "_write_decilm_config", wrong)
    with pytest.raises(NumericalError, match="DeciLM export differs"):
        to_decilm(make("llama"), tmp_path / "wrong")


def test_decilm_refusals(tmp_path: Path) -> None:
    cut, _ = make("llama").cut(Selection({"attention": without(3, 0)}))
    with pytest.raises(UnsupportedError, match="attention of layer 0"):
        to_decilm(cut, tmp_path / "out")
    with pytest.raises(UnsupportedError, match="Qwen3ForCausalLM"):
        to_decilm(make("qwen3"), tmp_path / "out")
    with pytest.raises(UnsupportedError, match="sliding window"):
        to_decilm(make("mistral"), tmp_path / "out")
    cut, _ = make("llama-tied-bias").cut(Selection({"ffn": without(3, 1)}))
    with pytest.raises(UnsupportedError, match=r"layer 1 .* mlp_bias"):
        to_decilm(cut, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("form", "write"), [("GGUF", to_gguf), ("DeciLM's form", to_decilm)])
def test_what_can_be_done_about_branches_and_rotated_channels_is_said(tmp_path, form, write):
    if form == "GGUF":
        pytest.importorskip("gguf", reason="the extra `gguf`")
    branched = make("llama")
    low_rank.attach(branched.model, {"model.layers.0.mlp.up_proj": (torch.randn(2, 48), torch.randn(40, 2))})
    words = (
        rf"{form} has no branches beside linears: export a copy of the folder without side/, .* onnx, packed or int8"
    )
    with pytest.raises(UnsupportedError, match=words):
        write(branched, tmp_path / "out")
    rotated = make("llama")
    rotated.model.config.secateur = {"widths": [8]}
    words = (
        rf"{form} has no linears on residual connections, .* another recipe, such as minitron, or choose onnx or int8"
    )
    with pytest.raises(UnsupportedError, match=words):
        write(rotated, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_onnx_equals_pytorch(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    cut = cuts(make("bert-classifier"))["mixed"]
    assert to_onnx(cut, tmp_path / "out") == ()
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    for batch, length in ((1, 1), (5, 23)):
        example = cut.example(batch, length)
        with torch.no_grad():
            expected = cut.forward(example).prediction
        (given,) = session.run(None, {key: tensor.numpy() for key, tensor in example.items()})
        np.testing.assert_allclose(given, expected.numpy(), atol=1e-4, rtol=1e-4)
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize("gone", [(0,), (1, 2), (0, 1, 2)])
def test_a_pass_behind_a_cache_holds_only_what_attention_needs(gone: tuple[int, ...]) -> None:
    cut, _ = make("llama").cut(Selection({"attention": without(3, *gone)}))
    runnable = steps.CachedPass(cut)
    if len(gone) < 3:
        assert runnable.sizes == [(2, 8)] * 2 * (3 - len(gone))
    ids = cut.example(1, 9)["input_ids"]
    mask, places = torch.ones_like(ids), torch.arange(9)[None]
    empty = [torch.zeros(1, heads, 0, width) for heads, width in runnable.sizes]
    with torch.no_grad():
        first, *held = runnable(ids[:, :5], mask[:, :5], places[:, :5], *empty)
        then, *_ = runnable(ids[:, 5:], mask, places[:, 5:], *held)
        torch.testing.assert_close(torch.cat([first, then], 1), cut.model(ids).logits, atol=1e-5, rtol=1e-5)


def generate_both(
    model: PreTrainedModel, session: InferenceSession, ids: Tensor, mask: Tensor
) -> tuple[tuple[Tensor, Tensor], dict[str, list[int | str]], list[str]]:
    """Seven tokens by PyTorch and by the file; shapes of its past keys and values by name, and names of its outputs."""
    how = {"max_new_tokens": 7, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with torch.no_grad():
        wanted = model.generate(input_ids=ids, attention_mask=mask, **how)[:, ids.shape[1] :]
    shapes = {one.name: one.shape for one in session.get_inputs() if one.name.startswith("past")}
    state = {one: np.zeros((2, shape[1], 0, shape[3]), np.float32) for one, shape in shapes.items()}
    names = [one.name for one in session.get_outputs()]
    step, tokens = ids, []
    for _ in range(7):
        places = (mask.cumsum(1) - 1).clamp(min=0)[:, -step.shape[1] :]
        given = {"input_ids": step, "attention_mask": mask, "position_ids": places}
        logits, *present = session.run(names, {key: value.numpy() for key, value in given.items()} | state)
        state = dict(zip(shapes, present, strict=True))
        step = torch.from_numpy(logits[:, -1:].argmax(-1))
        mask = torch.cat([mask, torch.ones_like(step)], 1)
        tokens.append(step)
    return (torch.cat(tokens, 1), wanted), shapes, names


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma2", "mixtral"])
def test_onnx_generates_like_pytorch(tmp_path: Path, name: str) -> None:
    """Greedily, from prompts of unequal lengths; one layer is gone, one has lost its attention and so its cache."""
    onnxruntime = pytest.importorskip("onnxruntime")
    cut = cuts(make(name))["mixed"]
    assert to_onnx(cut, tmp_path / "out") == ()
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    ids = cut.example(2, 9)["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    wanted, shapes, names = generate_both(cut.model, session, ids, mask)
    assert len(shapes) == 2 * sum(bool(width.heads) for width in cut.widths())
    assert "auto_map" not in json.loads((tmp_path / "out/config.json").read_text())
    assert [one.removeprefix("past_key_values.") for one in shapes] == [n.removeprefix("present.") for n in names[1:]]
    assert torch.equal(*wanted)
    assert (tmp_path / "out" / "generation_config.json").is_file()


@pytest.mark.wide
@pytest.mark.slow
def test_onnx_of_what_keeps_other_states_reads_whole_texts(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    subject = open_subject(make_hybrid("Lfm2"))
    (note,) = to_onnx(subject, tmp_path / "out")
    assert note == (
        "a Lfm2ForCausalLM keeps other states than keys and values, so the file reads whole texts and does not generate"
    )
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    example = subject.example(2, 300)
    (given,) = session.run(None, {key: tensor.numpy() for key, tensor in example.items()})
    with torch.no_grad():
        np.testing.assert_allclose(given, subject.forward(example).prediction.numpy(), atol=1e-4, rtol=1e-4)
    with pytest.raises(UnsupportedError, match="a Mamba2ForCausalLM can't be exported to ONNX: how it computes"):
        to_onnx(open_subject(make_hybrid("Mamba2")), tmp_path / "scan")


@pytest.mark.wide
@pytest.mark.slow
def test_onnx_of_a_sentence_transformer_gives_embeddings(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    sentence = pytest.importorskip("sentence_transformers")
    from sentence_transformers import models

    make("bert").save(tmp_path / "bert")
    tokenizer(tmp_path / "bert")
    parts = [models.Transformer(str(tmp_path / "bert")), models.Pooling(48, "mean"), models.Normalize()]
    sentence.SentenceTransformer(modules=parts, device="cpu").save(str(tmp_path / "original"))
    subject = open_subject(tmp_path / "original")
    to_onnx(subject, tmp_path / "out")
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    batch = subject.tokenizer(["w2 w3 w4", "w9"], padding=True, return_tensors="pt")
    inputs = {name: batch[name].numpy() for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = subject.forward(batch).prediction
    (given,) = session.run(["sentence_embedding"], inputs)
    np.testing.assert_allclose(given, expected.numpy(), atol=1e-4)
    assert (tmp_path / "out" / "tokenizer.json").is_file()


SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "pad_token_id": 0}
SMALL |= {"num_attention_heads": 4, "max_position_embeddings": 64}
STABLE = StableLmConfig(**SMALL, num_key_value_heads=2, bos_token_id=1, eos_token_id=2)


def cut_network(model: PreTrainedModel) -> Traced:
    """A third of the channels of each site gone, by no table of a family."""
    subject = open_traced(model.eval(), pretrained.make_inputs(model))
    free = [site for site in subject.units().free() if site.count > 2]
    return subject.cut(Selection({site.name: np.arange(site.count) >= site.count // 3 for site in free}))[0]


# The folder of one is exported in runs/test_exporting.py.
@pytest.mark.wide
def test_onnx_of_a_decoder_cut_as_a_network_generates(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    cut = cut_network(StableLmForCausalLM(STABLE))
    assert cut.model.lm_head.in_features < 32
    assert network_to_onnx(cut, tmp_path) == ()
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    ids = torch.randint(3, 64, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    tokens, shapes, _ = generate_both(cut.model.eval(), session, ids, mask)
    assert torch.equal(*tokens)
    assert len(shapes) == 4
    assert {one.name for one in tmp_path.iterdir()} == {"model.onnx", "config.json", "generation_config.json"}


# As those of subjects, for the length that their file keeps.
@pytest.mark.wide
def test_onnx_of_states_in_a_loop_is_refused_of_networks_too(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    cut = cut_network(make_hybrid("Mamba2", num_hidden_layers=2))
    with pytest.raises(UnsupportedError, match="a Mamba2ForCausalLM can't be exported to ONNX: how it computes"):
        network_to_onnx(cut, tmp_path)


def test_onnx_that_fails_on_long_texts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some loops over chunks of 256 tokens do under onnxruntime."""
    pytest.importorskip("onnxruntime")
    check = onnx_files.check

    def fail_on_long(path: Path, batches: Sequence[tuple[Mapping[str, Tensor], object]]) -> tuple[str, ...]:
        if any(inputs["input_ids"].shape[1] > 256 for inputs, _ in batches):
            raise RuntimeError("shape mismatch")
        return check(path, batches)

    monkeypatch.setattr(onnx_files, "check", fail_on_long)
    with pytest.raises(UnsupportedError, match="the file would not take texts of any length"):
        network_to_onnx(opening.open_network(Uncached(STABLE).eval()), tmp_path)


class Uncached(StableLmForCausalLM):
    """It gives no logits behind a cache, as some that keep their states elsewhere."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool = False, **more: object
    ) -> object:
        return super().forward(input_ids, attention_mask, use_cache=False)


@pytest.mark.parametrize("kind", ["decoder", "answers", "both"])
def test_onnx_of_other_networks_of_texts_takes_any_length(tmp_path: Path, kind: str) -> None:
    """With a mask: a decoder without a cache, an encoder with two outputs, and one with a decoder."""
    torch.manual_seed(0)
    model = {
        "decoder": lambda: Uncached(STABLE),
        "answers": lambda: BertForQuestionAnswering(BertConfig(**SMALL)),
        "both": lambda: T5ForConditionalGeneration(
            T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, decoder_start_token_id=0)
        ),
    }[kind]().eval()
    notes = network_to_onnx(opening.open_network(model), tmp_path)
    assert any("does not generate" in note for note in notes) == (kind != "answers")
    assert not any("only" in note for note in notes)
    session = onnx_files.open_session(tmp_path / "model.onnx")
    names = {one.name for one in session.get_inputs()}
    assert {"input_ids", "attention_mask"} <= names
    for length in (4, 23):
        inputs = {"input_ids": torch.randint(3, 64, (3, length)), "attention_mask": torch.ones(3, length).long()}
        inputs["attention_mask"][1, length // 2 :] = 0
        if kind == "both":
            inputs["decoder_input_ids"] = torch.randint(3, 64, (3, 9))
        with torch.no_grad():
            wanted, _ = leaves(model(**inputs))
        given = session.run(None, {name: one.numpy() for name, one in inputs.items()})
        real = inputs["attention_mask"].bool() if kind == "decoder" else ...
        for one, other in zip(given, wanted, strict=True):
            torch.testing.assert_close(torch.from_numpy(one)[real], other[real], atol=1e-4, rtol=1e-4)


@pytest.mark.wide
@pytest.mark.parametrize("kind", ["Mpt", "GPTNeo"])
def test_onnx_of_a_decoder_whose_places_are_counted_or_whose_cache_is_not_free(tmp_path: Path, kind: str) -> None:
    """The one has a cache of as many tokens as it has places, the other is a pass over whole texts."""
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    attention = {"attention_types": [[["global", "local"], 1]], "window_size": 8, "max_position_embeddings": 64}
    model = {
        "GPTNeo": lambda: GPTNeoForCausalLM(
            GPTNeoConfig(vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, **attention)
        ),
        "Mpt": lambda: MptForCausalLM(MptConfig(vocab_size=64, d_model=32, n_layers=1, n_heads=4, max_seq_len=64)),
    }[kind]().eval()
    notes = to_onnx(open_subject(model), tmp_path)
    assert any("does not generate" in note for note in notes) == (kind == "Mpt")
    names = [one.name for one in onnx_files.open_session(tmp_path / "model.onnx").get_inputs()]
    assert ("past_key_values.0.key" in names) == (kind == "GPTNeo")


def test_an_export_that_takes_long_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rundir, "_LATE", 0.0)
    monkeypatch.setattr(export, "_write_either", lambda *_: time.sleep(0.2) or ("done",))
    assert to_onnx(make("gpt2"), tmp_path / "onnx") == ("done",)
    assert "export to ONNX: under way" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["seen", "heard"])
def test_onnx_of_what_reads_no_tokens_has_its_config_and_says_whether_it_generates(tmp_path: Path, kind: str) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    layers = {f"{side}_{name}": size for side in ("encoder", "decoder")
              for name, size in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 24))}  # fmt: skip
    model = {
        "seen": lambda: ViTForImageClassification(
            ViTConfig(**sizes, image_size=8, patch_size=4, id2label={0: "cat", 1: "dog"})
        ),
        "heard": lambda: WhisperForConditionalGeneration(
            WhisperConfig(vocab_size=64, d_model=16, num_mel_bins=8, max_source_positions=10, **layers, pad_token_id=0,
                          bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)
        ),
    }[kind]().eval()  # fmt: skip
    notes = network_to_onnx(opening.open_network(model), tmp_path)
    assert any("does not generate" in note for note in notes) == (kind == "heard")
    assert (tmp_path / "generation_config.json").exists() == (kind == "heard")
    labels = json.loads((tmp_path / "config.json").read_text()).get("id2label")
    assert labels == {"0": "cat", "1": "dog"} or kind == "heard"
