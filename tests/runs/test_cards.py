"""The model card says what was made of what, with its figures, how to load it, and in the Hub's metadata."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import ModelCard

from secateur.runs.cards import write_card, write_export_card, write_size_card
from secateur.vocabulary import Cut, Evidence, Figure

LOAD = 'from transformers import AutoModel\n\nmodel = AutoModel.from_pretrained("out", trust_remote_code=True)'


@pytest.mark.parametrize("cut", [None, Cut({"layers.0.heads": (2, 4), "layers.1.heads": (0, 4)}, {}, {}, ("a note",))])
def test_a_card_has_evidence_what_was_cut_and_the_lines_that_load_it(cut, tmp_path):
    row = Evidence("ziplm", "params=50%", after={"params": Figure(15.0)}, cut=cut, verdict="met",
                   environment={"measured_at": "noon"})  # fmt: skip
    write_card(tmp_path, row, LOAD, name="out", tag="pruned", title="thin", origin="Cut from wide.")
    card = (tmp_path / "README.md").read_text()
    assert card.startswith(
        "---\nlibrary_name: transformers\ntags:\n- secateur\n- pruned\n---\n\n# thin\n\nCut from wide."
    )
    assert "Verdict: met." in card
    assert "Measured at noon." in card
    assert f"```python\n{LOAD}\n```" in card
    assert ("layers.0.heads | 2 | 4" in card) == ("- a note" in card) == ("secateur.load" in card) == (cut is not None)
    assert "layers.1.heads" not in card


def test_the_metadata_name_base_licence_task_language_data_and_figures(tmp_path):
    base, small, integers = (tmp_path / name for name in ("base", "small", "small-int8"))
    for folder in (base, small, integers):
        folder.mkdir()
    (base / "README.md").write_text("---\nlicense: llama3.2\nlanguage: [en, de]\ninference: false\n---\n# Base")
    (small / "config.json").write_text(json.dumps({"architectures": ["SecateurLlamaForCausalLM"]}))
    (small / "cut_map.json").write_text(json.dumps({"base": {"name": "somebody/base"}}))
    figures = {"perplexity": Figure(12.5), "arc/acc": Figure(0.5), "bytes": Figure(9.0), "loss": Figure(float("inf"))}
    settings = {"model": str(base), "data": "hub:somebody/texts", "held_out": "corpus/held.txt"}
    row = Evidence("ziplm", "params=50%", after=figures, measured={"spearman": Figure(0.9)}, settings=settings)
    write_card(small, row, LOAD, name="out", tag="pruned", title="thin", origin="Cut from wide.", base=base)
    held = ModelCard.load(small / "README.md").data
    assert held.base_model == "somebody/base"
    assert held.base_model_relation == "finetune"
    assert (held.license, held.language, held.pipeline_tag) == ("llama3.2", ["en", "de"], "text-generation")
    assert held.model_name == "out"
    assert held.datasets == ["somebody/texts"]
    assert set(held.metrics) == {"perplexity", "arc/acc", "spearman"}
    assert "inference" not in held.to_dict()
    told = {result.metric_type: (result.metric_value, result.metric_name) for result in held.eval_results}
    assert told == {"perplexity": (12.5, "Perplexity"), "arc/acc": (0.5, "arc: accuracy"),
                    "spearman": (0.9, "Fidelity (Spearman)")}  # fmt: skip
    assert {(one.task_type, one.dataset_type, one.dataset_name) for one in held.eval_results} == {
        ("text-generation", "local", "held.txt")
    }
    write_export_card(integers, str(small), small, "int8", ["12 linears in 8 bits"], LOAD)
    rounded = ModelCard.load(integers / "README.md")
    assert "- 12 linears in 8 bits\n" in rounded.text
    assert "# small as int8" in rounded.text
    assert (rounded.data.base_model, rounded.data.base_model_relation) == ("somebody/base", "quantized")
    assert (rounded.data.license, rounded.data.eval_results) == ("llama3.2", None)
    write_export_card(integers, str(small), small, "packed", [], LOAD)
    packed = ModelCard.load(integers / "README.md").data
    assert packed.base_model_relation == "finetune"
    assert [one.metric_value for one in packed.eval_results] == [one.metric_value for one in held.eval_results]


def test_a_card_says_which_part_was_cut_and_what_the_whole_is_for(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlavaForConditionalGeneration"]}))
    (tmp_path / "cut_map.json").write_text(json.dumps({"base": {"name": "somebody/seer"}, "part": "text_config"}))
    load = LOAD.replace("AutoModel", "AutoModelForImageTextToText")
    settings = {"model": "somebody/seer", "part": "language_model"}
    row = Evidence("minitron", "params=50%", after={"perplexity": Figure(12.5)}, settings=settings, verdict="met")
    write_card(tmp_path, row, load, name="out", tag="pruned", title="seer cut", origin="Cut from seer.")
    card = ModelCard.load(tmp_path / "README.md")
    assert "Cut from seer. Of the model its part `language_model` was cut, by itself: the figures are of" in card.text
    assert (card.data.base_model, card.data.base_model_relation) == ("somebody/seer", "finetune")
    assert (card.data.pipeline_tag, card.data.tags) == ("image-text-to-text", ["secateur", "pruned"])
    assert [result.task_type for result in card.data.eval_results] == ["text-generation"]


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("SecateurLlamaForCausalLM", "text-generation"),
        ("GPT2LMHeadModel", "text-generation"),
        ("Gemma3ForConditionalGeneration", "image-text-to-text"),
        ("WhisperForConditionalGeneration", "automatic-speech-recognition"),
        ("Wav2Vec2ForCTC", "automatic-speech-recognition"),
        ("ViTForImageClassification", "image-classification"),
        ("SegformerForSemanticSegmentation", "image-segmentation"),
        ("ASTForAudioClassification", "audio-classification"),
        ("CLIPModel", "zero-shot-image-classification"),
        ("ViTModel", "image-feature-extraction"),
        ("BertModel", "feature-extraction"),
        ("NobodysModel", None),
    ],
)
def test_a_card_tells_the_task_by_the_automatic_class_that_makes_the_model(name, task, tmp_path):
    base, small = tmp_path / "base", tmp_path / "small"
    small.mkdir()
    base.mkdir()
    (base / "config.json").write_text(json.dumps({"architectures": [name]}))
    row = Evidence("prune", "params=50%")
    write_card(small, row, "import torch", name="out", tag="pruned", title="thin", origin="Cut.", base=base)
    assert ModelCard.load(small / "README.md").data.pipeline_tag == task


@pytest.mark.parametrize(("source", "named"), [("somebody/base", "somebody/base"), ("folder/of/mine", None)])
def test_a_folder_here_is_no_base_on_the_hub(source, named, tmp_path):
    row = Evidence("distill", "5 steps", settings={"student": source})
    write_card(tmp_path, row, "from secateur import load", name="out", tag="distilled", title="thin", origin="Taught.")
    assert ModelCard.load(tmp_path / "README.md").data.base_model == named


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ("hub:somebody/texts::train[:500000]", ("somebody/texts", "texts", None, "train")),
        ("hub:somebody/texts:english:train", ("somebody/texts", "texts", "english", "train")),
        ("somebody/texts", ("somebody/texts", "texts", None, None)),
        ("folder/texts.jsonl", ("local", "texts.jsonl", None, None)),
    ],
)
def test_a_data_set_of_the_hub_is_named_by_its_id(data, named, tmp_path):
    row = Evidence("ziplm", "params=50%", after={"perplexity": Figure(12.5)}, settings={"data": data})
    write_card(tmp_path, row, LOAD, name="out", tag="pruned", title="thin", origin="Cut.")
    card = ModelCard.load(tmp_path / "README.md").data
    assert card.datasets == (None if named[0] == "local" else [named[0]])
    (one,) = card.eval_results
    assert (one.dataset_type, one.dataset_name, one.dataset_config, one.dataset_split) == named


@pytest.mark.parametrize(
    ("name", "tags", "base"),
    [
        ("somebody/chat", "[chat]", "somebody/chat"),
        ("folder of it", "[chat]", None),
        ("folder of it", "[secateur, pruned]", "somebody/before"),
        ("somebody/small", "[secateur, pruned]", "somebody/small"),
    ],
)
def test_an_export_names_what_it_was_made_of_and_not_what_that_was(name, tags, base, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    (source / "README.md").write_text(f"---\nlicense: mit\ntags: {tags}\nbase_model: somebody/before\n---\n# Chat")
    write_export_card(out, name, source, "int8", [], LOAD)
    card = ModelCard.load(out / "README.md").data
    assert (card.base_model, card.license) == (base, "mit")
    write_size_card(out, name, source, "params=50%", [], LOAD)
    assert ModelCard.load(out / "README.md").data.base_model == base
