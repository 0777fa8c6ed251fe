"""lm-eval's own model class on a local task: a tiny Llama, a YAML file and a few lines of JSON, no network."""

import builtins
import functools
import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from secateur.errors import InputError, MissingExtraError
from secateur.measure import generation

WORDS = ["<unk>", "<s>", "</s>", "the", "sky", "grass", "is", "blue", "green", "red", "."]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


@pytest.fixture(scope="module")
def model(tokenizer):
    """A Llama taught five sentences by heart, so that the task has a right answer to find."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=1, eos_token_id=2, pad_token_id=2, max_position_embeddings=64,
    )  # fmt: skip
    llama = LlamaForCausalLM(config)
    ids = torch.tensor([tokenizer("the sky is blue .").input_ids, tokenizer("the grass is green .").input_ids])
    optimizer = torch.optim.AdamW(llama.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        llama(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return llama


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    documents = [
        {"text": "the sky is", "choices": ["blue", "red"], "label": 0},
        {"text": "the grass is", "choices": ["red", "green"], "label": 1},
        {"text": "the sky is", "choices": ["red", "green", "blue"], "label": 2},
        {"text": "the grass is", "choices": ["green", "blue"], "label": 1},  # wrong on purpose
    ]
    data = tmp_path / "colours.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "colours.yaml").write_text(
        f"task: colours\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\n"
        "test_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "{{text}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: label\n'
        "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
    )
    return folder


def test_a_local_task_runs_through_the_harness(model, tokenizer, tasks):
    pytest.importorskip("lm_eval")
    model.train()
    result = generation.evaluate(model, tokenizer, "colours", include_path=tasks)
    figure = result["colours/acc"]
    assert figure.value == 0.75
    assert figure.samples == 4
    assert figure.low < 0.75 < figure.high
    assert model.training


def test_an_unknown_task_is_named(model, tokenizer, tasks, monkeypatch):
    known = pytest.importorskip("lm_eval.tasks")
    # The thousands that come with the harness take seconds to read.
    monkeypatch.setattr(known, "TaskManager", functools.partial(known.TaskManager, include_defaults=False))
    with pytest.raises(InputError, match="'no_such_task' is not one of"):
        generation.evaluate(model, tokenizer, ["no_such_task"], include_path=tasks)
    with pytest.raises(InputError, match="no task folder"):
        generation.evaluate(model, tokenizer, "colours", include_path=tasks / "missing")


def test_without_lm_eval_the_extra_is_named(model, tokenizer, monkeypatch):
    original = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("lm_eval"):
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"secateur\[eval\]"):
        generation.evaluate(model, tokenizer, "colours")
