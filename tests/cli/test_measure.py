from __future__ import annotations

import json

import pytest

import processes
import tiny
from commands import forked
from secateur import cli

HOW = ["--batch", "2", "--length", "8", "--json"]


def test_measure_is_what_the_evidence_says_and_reads_a_config(places):
    stored = json.loads((places / "small/evidence.json").read_text())["results"][0]
    (places / "measure.yaml").write_text("model: small\nbatch: 2\nlength: 64\n")
    for words in (["small", *HOW], ["--config", "measure.yaml", "--length", "8", "--json"]):
        measured = json.loads(forked(places, "measure", *words).stdout)
        assert measured["model"]["params"]["value"] == stored["after"]["params"]["value"]
    assert "batch 2 x 64 tokens" in forked(places, "measure", "--config", "measure.yaml").stdout


def test_measure_compares_with_several(places, capsys):
    assert cli.main(["measure", "a", "--against", "b", "--against", "b"]) == 2
    assert capsys.readouterr().err == "secateur: against names b twice: name each model once\n"
    both = ("--against", "llama", "--against", "small", "--data", "texts.txt")
    figures = json.loads(forked(places, "measure", "small", *both, *HOW).stdout)
    parts = "model|against llama|both llama|against small|both small|ensemble|both ensemble"
    assert list(figures) == parts.split("|")
    assert figures["both small"]["label_loyalty"]["value"] == 1.0
    assert figures["both llama"]["label_loyalty"]["value"] < 1.0
    assert figures["against small"]["perplexity"] == figures["model"]["perplexity"]
    assert "perplexity" in figures["ensemble"]


def test_measure_asks_lm_eval_with_a_task_of_ones_own(places):
    pytest.importorskip("lm_eval")
    import datasets

    (places / "tasks").mkdir()
    document = {"text": tiny.WORDS[0], "choices": tiny.WORDS[1:3], "label": 0}
    (places / "words.jsonl").write_text("".join(json.dumps(document) + "\n" for _ in range(4)))
    (places / "tasks/words.yaml").write_text(
        f"task: words\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {places / 'words.jsonl'}\n"
        "test_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "{{text}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: label\n'
        "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
    )
    how = ["--tasks", "words", "--task-folder", "tasks", "--limit", "3", *HOW]

    def use_own_cache() -> None:
        datasets.config.HF_DATASETS_CACHE = places / "cache"

    done = processes.run(places, "measure", "small", *how, before=use_own_cache)
    assert done.code == 0, done.stderr
    figure = json.loads(done.stdout)["model"]["words/acc"]
    assert figure["value"] in (0.0, 1.0)
    assert figure["samples"] == 3


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(places, capsys, device):
    assert cli.main(["measure", str(places / "small"), "--device", device]) == 2
    assert f"device '{device}' can't hold the model" in capsys.readouterr().err
