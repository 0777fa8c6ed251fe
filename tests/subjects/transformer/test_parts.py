"""The language model of one that reads images: opened with the whole's head, cut, saved in its place."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from transformers import AutoModelForImageTextToText

import tiny
from secateur import cli, inspect, load, measure, run
from secateur._utils.rundir import Run
from secateur.data.texts import Corpus
from secateur.errors import InputError, UnsupportedError
from secateur.recipes.language.llm_pruner import Importance, llm_pruner
from secateur.recipes.language.slicegpt import slicegpt
from secateur.recipes.language.ziplm import ziplm
from secateur.runs import backends, memory_plan, memory_steps
from secateur.runs.backends.language import Language
from secateur.runs.backends.network import Network
from secateur.subjects.network import parts as network_parts
from secateur.subjects.transformer.origin import Origin, hash_folder
from secateur.subjects.transformer.parts import count_features, open_part
from secateur.subjects.transformer.small_copy import list_parts
from secateur.vocabulary import Budget, Selection
from strangers import run_without_secateur

_TEXT = {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_IMAGE = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


def make(*, tied: bool = False) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    text = transformers.LlamaConfig(**_TEXT, tie_word_embeddings=tied)
    config = transformers.LlavaConfig(
        text_config=text,
        vision_config=transformers.CLIPVisionConfig(**_IMAGE),
        image_token_index=60,
        tie_word_embeddings=tied,
    )
    return transformers.LlavaForConditionalGeneration(config).eval()


@pytest.mark.parametrize("tied", [False, True])
def test_a_cut_is_saved_in_its_place_and_the_rest_is_as_it_was(tied: bool, tmp_path: Path) -> None:
    model = make(tied=tied)
    model.save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "preprocessor_config.json").write_text('{"image_size": 8}')
    subject = open_part(tmp_path / "whole", "language_model")
    batch = subject.example(2, 7)
    batch["input_ids"].clamp_(max=59)
    assert subject.causal
    torch.testing.assert_close(subject.forward(batch).prediction, model(**batch).logits)
    neurons = {f"layers.{layer}.neurons": np.arange(48) < 32 for layer in range(3)}
    small, _ = subject.cut(Selection({**neurons, "layers": np.array([True, False, True])}))
    small.save(tmp_path / "small")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "small").eval()
    torch.testing.assert_close(loaded(**batch).logits, small.forward(batch).prediction)
    text = loaded.config.text_config
    assert (text.num_hidden_layers, text.intermediate_size) == (2, 32)
    vision = (one.config.vision_config.to_dict() | {"dtype": None} for one in (model, loaded))
    assert next(vision) == next(vision)
    before, after = (one.model.vision_tower.state_dict() for one in (model, loaded))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (tmp_path / "small" / "preprocessor_config.json").is_file()
    again = open_part(tmp_path / "small", "language_model")
    assert len(again.layers()) == 2
    again.cut(Selection({"layers": np.array([False, True])}))[0].save(tmp_path / "less")
    known = Origin.read(tmp_path / "less")  # of both cuts, by the indices of the part that was not cut
    assert known is not None
    assert known.kept is not None
    assert (known.part, known.kept.layers) == ("text_config", [2])
    assert (known.name, known.sha256) == (str(tmp_path / "whole"), hash_folder(tmp_path / "whole"))


def test_layers_behind_which_features_of_images_are_added_stay(tmp_path: Path) -> None:
    """The config of their texts does not say whether embeddings are tied: that of the whole does."""
    torch.manual_seed(0)
    ropes = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True, "rope_theta": 10000.0}
    text = {name: value for name, value in _TEXT.items() if name not in ("model_type", "bos_token_id", "eos_token_id")}
    text |= {"vocab_size": 64, "num_hidden_layers": 4, "head_dim": 8, "rope_parameters": ropes}
    image = {"depth": 3, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4}
    image |= {"out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 2]}
    marks = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=image, **marks)
    model = transformers.Qwen3VLForConditionalGeneration(config).eval()
    assert list(list_parts(model)) == ["language_model"]
    subject = open_part(model, "language_model")
    tokens = torch.tensor([[1, 5, 6, 7]])
    assert subject.output == "logits", "it has the head of the whole, for which transformers has no class by itself"
    assert torch.equal(subject.model(input_ids=tokens).logits, model(input_ids=tokens).logits)
    padded = {"input_ids": torch.arange(1, 13).view(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    padded["attention_mask"][0, :3] = 0
    real = padded["attention_mask"].bool()
    assert torch.equal(subject.forward(padded).prediction[real], model(**padded).logits[real])
    packed = {"input_ids": padded["input_ids"][:1], "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]])}
    alone = subject.forward({"input_ids": packed["input_ids"][:, 3:]}).prediction
    torch.testing.assert_close(subject.forward(packed).prediction[:, 3:], alone)
    assert type(pickle.loads(pickle.dumps(subject.model))) is type(subject.model)
    assert set(subject.family.whole) == {"channels"}
    for gone in (0, 1):
        with pytest.raises(
            UnsupportedError, match=f"layer {gone} .* images are added behind the first 2, by their numbers; "
        ):
            subject.cut(Selection({"layers": np.arange(4) != gone}))
    pairs = transformers.Granite4VisionConfig(deepstack_layer_map=[[2, 0], [4, 3]], spatial_target_layers=[1, 5])
    assert count_features(pairs) == 5
    fixed = subject.units().sites["layers"].fixed
    assert fixed is not None
    assert fixed.tolist() == [True, True, False, False]
    small, _ = subject.cut(Selection({"layers": np.arange(4) != 2}))
    small.save(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[1, 62, 60, 63, 5, 6]])
    inputs = {"input_ids": ids, "pixel_values": torch.randn(4, 96), "image_grid_thw": torch.tensor([[1, 2, 2]])}
    inputs |= {"attention_mask": torch.ones_like(ids), "mm_token_type_ids": (ids == 60).long()}
    model.model.language_model.layers[2].forward = lambda hidden_states, *_, **__: hidden_states
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)


def make_qwen(tied: bool) -> transformers.PreTrainedModel:
    """Its language part has no class with a head in transformers."""
    torch.manual_seed(0)
    ropes = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    text = {**_TEXT, "vocab_size": 64, "rope_parameters": ropes, "tie_word_embeddings": tied}
    image = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32}
    marks = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
    text.pop("model_type")
    config = transformers.Qwen2_5_VLConfig(
        text_config=text, vision_config={**image, "patch_size": 4}, tie_word_embeddings=tied, **marks
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config).eval()


def test_a_head_that_was_untied_is_saved_beside_its_table(tmp_path: Path) -> None:
    subject = open_part(make_qwen(tied=True), "language_model").untie()
    with torch.no_grad():
        subject.model.lm_head.weight.add_(1.0)
    subject.save(tmp_path / "apart")
    batch = {"input_ids": torch.tensor([[1, 5, 6, 7]])}
    again = open_part(tmp_path / "apart", "language_model")
    assert torch.equal(again.forward(batch).prediction, subject.forward(batch).prediction)


READ = """
import pickle, pathlib, torch
import secateur.subjects  # the class is made as the pickle opens
model = pickle.loads(pathlib.Path("part.pkl").read_bytes())
torch.save(model(torch.tensor([[1, 5, 6, 7]])).logits, "logits.pt")
"""


def test_a_pickle_of_a_part_opens_in_another_process(tmp_path: Path) -> None:
    model = open_part(make_qwen(tied=False), "language_model").model
    (tmp_path / "part.pkl").write_bytes(pickle.dumps(model))
    subprocess.run([sys.executable, "-c", READ], cwd=tmp_path, check=True)
    logits = torch.load(tmp_path / "logits.pt", weights_only=True)
    assert torch.equal(logits, model(torch.tensor([[1, 5, 6, 7]])).logits)
    assert torch.equal(copy.deepcopy(model).lm_head.weight, model.lm_head.weight)
    assert torch.equal(model(torch.tensor([[1, 5, 6, 7]]), return_dict=False)[0], logits)


def test_parts_of_what_is_offloaded_or_holds_an_adapter_are_refused_by_name() -> None:
    accelerate, peft = pytest.importorskip("accelerate"), pytest.importorskip("peft")
    model = make_qwen(tied=False)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.raises(UnsupportedError, match=r"weights of this Qwen2_5_VLFor.* are offloaded, .*: load it whole"):
        open_part(model, "language_model")
    held = peft.get_peft_model(make_qwen(tied=False), peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(UnsupportedError, match="it belongs to an adapter, merge that first"):
        open_part(held.base_model.model, "language_model")


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def make_with_own_head() -> transformers.PreTrainedModel:
    """Its part is a language model with a head of its own (BLIP-2)."""
    text = transformers.OPTConfig(**SMALL | {"ffn_dim": 48, "vocab_size": 64, "word_embed_proj_dim": 32})
    config = transformers.Blip2Config(
        vision_config={**SMALL, "image_size": 8, "patch_size": 4},
        qformer_config={**SMALL, "encoder_hidden_size": 32, "vocab_size": 64},
        text_config=text.to_dict(), num_query_tokens=2, image_token_index=60,
    )  # fmt: skip
    return transformers.Blip2ForConditionalGeneration(config).eval()


def make_with_table_as_head() -> transformers.PreTrainedModel:
    """Its class makes its head by a size of the whole's, and ties it to a table of another (Ovis2)."""
    text = {"model_type": "qwen2", **SMALL, "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64}
    image = {**SMALL, "image_size": 8, "patch_size": 4, "vocab_size": 16, "num_visual_indicator_tokens": 2}
    return transformers.Ovis2ForConditionalGeneration(transformers.Ovis2Config(
        text_config=text, vision_config=image, hidden_size=48, vocab_size=64, tie_word_embeddings=True,
        image_token_id=60, visual_indicator_token_ids=[61, 62],
    )).eval()  # fmt: skip


@pytest.mark.parametrize("build", [make_with_own_head, make_with_table_as_head])
def test_wholes_that_hold_their_head_otherwise_are_saved(
    build: Callable[[], transformers.PreTrainedModel], tmp_path: Path
) -> None:
    subject = open_part(build(), "language_model")
    keep = {f"layers.{layer}.neurons": np.arange(48) < 32 for layer in range(2)}
    small, _ = subject.cut(Selection(keep))
    small.save(tmp_path)
    again = open_part(tmp_path, "language_model")
    batch = {"input_ids": torch.arange(1, 9)[None], "attention_mask": torch.ones(1, 8, dtype=torch.long)}
    torch.testing.assert_close(again.forward(batch).prediction, small.forward(batch).prediction)


@pytest.mark.parametrize("tied", [False, True])
def test_a_part_is_looked_at_and_measured_alone(tied: bool, tmp_path: Path) -> None:
    folder = str(tmp_path / "whole")
    model = make(tied=tied)
    model.save_pretrained(folder)
    subject = open_part(folder, "language_model")
    subject.cut(Selection({"layers": np.array([True, False, True])}))[0].save(tmp_path / "small")
    assert inspect(folder, part="language_model")["cost"]["params"] == subject.units().cost()["params"]
    figures = measure(tmp_path / "small", folder, part="language_model", batch=1, length=4, pairs=6)
    assert figures["model"]["params"].value < figures["against"]["params"].value == subject.units().cost()["params"]
    plan = memory_plan.estimate(folder, part="language_model", length=8)
    assert (plan.model, plan.params) == ("language_model of whole", subject.units().cost()["params"])
    assert plan.weights == 4 * sum(weight.numel() for weight in model.parameters()), "with what lies beside it"
    assert plan.weights < plan.score < plan.training


@pytest.mark.parametrize("name", ["vision_tower", "vision_config", "projector"])
def test_a_part_that_reads_images_is_looked_at_alone(name: str, tmp_path: Path) -> None:
    folder = str(tmp_path / "whole")
    (model := make()).save_pretrained(folder)
    part = model.model.multi_modal_projector if name == "projector" else model.model.vision_tower
    size = sum(weight.numel() for weight in part.parameters())
    assert inspect(folder, part=name)["cost"]["params"] == size
    plan = memory_plan.estimate(folder, part=name)
    assert (plan.model, plan.params) == (f"{name} of whole", size)
    beside = plan.weights - 4 * sum(weight.numel() for weight in model.parameters())
    assert 0 <= beside < 100, "with what lies beside it, and its buffers"
    assert plan.weights < plan.score < plan.training
    whole = memory_plan.estimate(folder, part=name, share=1.0)
    assert whole.cut - plan.cut == pytest.approx(0.5 * 4 * size * (1 + memory_steps.HEAP["cut"]), rel=0.02)
    figures = measure(folder, folder, part=name, batch=1, pairs=6)
    assert figures["model"]["params"].value == size


def test_what_can_not_be_asked_of_a_part_is_said_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, part = str(tmp_path / "whole"), ("--part", "language_model")
    model = make()
    model.save_pretrained(folder)
    open_part(folder, "language_model").save(tmp_path / "small")
    bare, rest = tmp_path / "bare", [*part, "--budget", "params=50%", "--data", folder, "--out", str(tmp_path / "o")]
    model.config.save_pretrained(bare)  # and no weights, which nobody gets to
    (mixed := tmp_path / "mixed").mkdir()
    (mixed / "config.json").write_text('{"text_config": {"num_local_experts": 4}}')
    assert cli.main(["estimate", folder, *part, "--length", "8"]) == 0
    assert capsys.readouterr().out.strip().startswith("language_model of whole, ")
    for words, told in (
        (("estimate", folder, "--part", "audio_tower"), "has no part 'audio_tower': it has vision_tower, multi_modal_"),
        (
            ("run", "ziplm", str(bare), "--part", "vision_tower", *rest[2:]),
            "ziplm can't cut vision_tower by itself: `secateur prune MODEL --part vision_tower --budget params=70%`",
        ),
        (
            ("run", "otov3", str(bare), *rest),
            "otov3 can't cut language_model by itself: `secateur prune MODEL --part language_model",
        ),
        (("estimate", folder), "--part language_model"),
        (("measure", str(tmp_path / "small"), "--against", folder), "cut a part of it, --part language_model"),
        (
            ("run", "ziplm", str(bare), *rest),
            "ziplm gives layers shapes of their own, .* take a recipe that keeps them",
        ),
        (("run", "slicegpt", str(bare), *rest), "slicegpt gives layers shapes of their own"),
        (("run", "llm_pruner", str(bare), *rest), "say --scope local, first=0, last=0, or take a recipe"),
        (
            ("run", "llm_pruner", str(bare), *rest, "--scope", "kind", "--first", "0", "--last", "0"),
            "say --scope local, first=0, last=0",
        ),
        (("run", "llm_pruner", str(bare), *rest, "--first", "0", "--last", "0"), "holds no .txt"),  # what is read next
        (("run", "stun", str(bare), *rest, "--budget", "weights=50%"), "holds no .txt"),  # it has no experts
        (("run", "stun", str(mixed), *rest), "stun gives layers shapes of their own, .* say --uniform, or take"),
        (("run", "stun", str(mixed), *rest, "--uniform"), "holds no .txt"),
        (
            ("prune", folder, *part, "--input", "1x8", "--budget", "params=50%", "--out", str(tmp_path / "o")),
            "inputs are of a whole network, and language_model gets what the whole gives it: leave them out",
        ),
        (("run", "shortgpt", str(bare), *rest, "--device", "auto"), "splits a model that is cut whole, not its"),
    ):
        assert cli.main(words) == 2
        assert re.search(told, " ".join(capsys.readouterr().err.split())), words
    assert not (tmp_path / "o").exists()


FRESH = """
import os, torch
os.environ["HF_MODULES_CACHE"] = os.getcwd()
from transformers import AutoModelForImageTextToText
model, report = AutoModelForImageTextToText.from_pretrained("both", trust_remote_code=True, output_loading_info=True)
assert not any(report.values()), report
torch.save(model.eval()(**torch.load("batch.pt")).logits, "logits.pt")
"""


def test_the_language_model_beside_a_cut_tower_is_cut_by_recipes(tmp_path: Path) -> None:
    make().save_pretrained(tmp_path / "whole")
    words = ("--part", "projector", "--budget", "params=70%", "--quick", "--out", str(tmp_path / "small"))
    assert cli.main(["prune", str(tmp_path / "whole"), *words]) == 0
    assert (tmp_path / "small" / "modeling_secateur.py").is_file()
    assert isinstance(backends.of_part(tmp_path / "small", "language_model"), Language)
    subject = open_part(tmp_path / "small", "language_model")
    neurons = {f"layers.{layer}.neurons": np.arange(48) < 32 for layer in range(3)}
    cut, _ = subject.cut(Selection({**neurons, "layers": np.array([True, False, True])}))
    cut.model.model.layers[0].mlp.up_proj.weight.data[:, ::2] = 0  # as wanda leaves it
    cut.save(tmp_path / "both")
    batch = cut.example(2, 7)
    batch["input_ids"].clamp_(max=59)
    torch.save(dict(batch), tmp_path / "batch.pt")
    run_without_secateur(FRESH, tmp_path)
    logits = torch.load(tmp_path / "logits.pt", weights_only=True)
    torch.testing.assert_close(logits, cut.forward(batch).prediction)
    sizes = [load(tmp_path / name).model.multi_modal_projector.linear_1.out_features for name in ("small", "both")]
    assert sizes[0] == sizes[1] < 32


def test_recipes_cut_the_language_model_of_one_that_takes_an_image_first(tmp_path: Path) -> None:
    text = transformers.OPTConfig(hidden_size=16, ffn_dim=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=64)
    sizes = {name: value for name, value in _IMAGE.items() if name != "model_type"}
    config = transformers.Blip2Config(
        vision_config=sizes, qformer_config=sizes | {"vocab_size": 64}, text_config=text.to_dict()
    )
    transformers.Blip2ForConditionalGeneration(config).save_pretrained(tmp_path)
    assert isinstance(backends.of_source(tmp_path), Network)
    assert isinstance(backends.of_part(tmp_path, "language_model"), Language)
    assert isinstance(backends.of_part(tmp_path, "vision_model"), Network)
    assert open_part(tmp_path, "language_model").units("neurons")


def test_a_run_on_a_part_leaves_the_whole_model_and_its_card_says_which_part(tmp_path: Path) -> None:
    make().save_pretrained(tmp_path / "whole")
    tiny.tokenizer().save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Whole\n")
    (row,) = run(
        "shortgpt", str(tmp_path / "whole"), tiny.chains(60), "params=80%", out=tmp_path / "out", part="language_model",
        length=8, batch=2, steps=0,
    )  # fmt: skip
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "its part `language_model` was cut" in card.text
    assert f"Verdict: {row.verdict}." in card.text
    assert (card.data.license, card.data.pipeline_tag, card.data.base_model) == (
        "apache-2.0",
        "image-text-to-text",
        None,
    )
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "out").config.text_config.num_hidden_layers == 2


def test_llm_pruner_leaves_all_layers_of_a_part_equally_wide_where_a_budget_falls_between(tmp_path: Path) -> None:
    budgets = [Budget.parse(f"params={percent}%") for percent in (80, 83, 86, 89)]
    make().save_pretrained(tmp_path / "whole")
    tiny.tokenizer().save_pretrained(tmp_path / "whole")
    subject = open_part(tmp_path / "whole", "language_model")
    options = {"first": 0, "last": 0, "importance": Importance(score="l2"), "dry_run": True}
    rows = llm_pruner(subject, Corpus(["a b c d"] * 200), budgets, Run(tmp_path / "run", {}), **options)
    for budget, row in zip(budgets, rows, strict=True):
        assert len({str(width) for width in row.subject.widths()}) == 1
        assert row.predicted["params"] <= budget.absolute(subject.units().cost())["params"]


def test_each_of_two_parts_of_one_class_has_its_own_config() -> None:
    config = transformers.T5GemmaModuleConfig(**SMALL, num_key_value_heads=2, head_dim=8, vocab_size=64).to_dict()
    gemma = transformers.T5GemmaConfig(encoder=config, decoder=config, vocab_size=64)
    model = transformers.T5GemmaForConditionalGeneration(gemma)
    assert {name: setting for name, (_, setting) in list_parts(model).items()} == {"encoder": "encoder"}
    with pytest.raises(UnsupportedError, match="--part decoder --budget params=70%` cuts it as a network"):
        open_part(model, "decoder")  # which lacks what it attends to
    assert network_parts.open_part(model, "decoder").units("heads")


def test_a_part_of_one_layer_is_cut_inside_of_it(tmp_path: Path) -> None:
    text = transformers.LlamaConfig(**_TEXT | {"num_hidden_layers": 1})
    config = transformers.LlavaConfig(text_config=text, vision_config=_IMAGE, image_token_index=60)
    subject = open_part(transformers.LlavaForConditionalGeneration(config).eval(), "language_model")
    small = subject.cut(Selection({"layers.0.neurons": np.arange(48) < 24}))[0]
    small.save(tmp_path)
    assert open_part(tmp_path, "language_model").widths()[0].neurons == 24


def test_what_a_part_cannot_have_is_said_in_a_line(tmp_path: Path) -> None:
    model = make()
    assert list(list_parts(model)) == ["language_model"]
    for name in ("vision_tower", "vision_config", "projector"):
        with pytest.raises(
            UnsupportedError, match=f"{name} of .* reads no tokens .*prune MODEL --part {name} --budget"
        ):
            open_part(model, name)
    with pytest.raises(
        InputError, match="no part 'audio_tower': it has vision_tower, multi_modal_projector, language_"
    ):
        open_part(model, "audio_tower")
    subject = open_part(model, "language_model")
    unequal = "layers of unequal widths can't be saved within a Llava"
    with pytest.raises(UnsupportedError, match=unequal):
        subject.cut(Selection({"layers.0.neurons": np.arange(48) < 24}))
    budgets, no_texts = [Budget.parse("params=0.5")], Corpus(())
    for recipe in (ziplm, llm_pruner, slicegpt):  # as soon as they start, before anything is scored
        with pytest.raises(UnsupportedError, match=unequal):
            next(recipe(subject, no_texts, budgets, Run(tmp_path, {})))
    with pytest.raises(UnsupportedError, match="what other parts give it is as wide as its channels"):
        subject.units("channels")
    model.model.vision_tower.register_parameter("tied", model.model.language_model.norm.weight)
    with pytest.raises(UnsupportedError, match="share their weights, so language_model can't be cut alone"):
        open_part(model, "language_model")
