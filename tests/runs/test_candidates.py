"""Settings and candidates by name, choices of scores, and results that outlive a kill."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

import tiny
from recipes.vision import nets
from secateur._utils import devices
from secateur.data.examples import Examples
from secateur.data.texts import Corpus
from secateur.errors import DataError, InputError, NumericalError, RunError, UnsupportedError
from secateur.methods import retraining
from secateur.recover.training import stacked
from secateur.runs import candidates
from secateur.runs.candidates import Candidate, Retraining, Store
from secateur.subjects import open_subject, open_traced
from secateur.vocabulary import Training


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))


@pytest.fixture(scope="module")
def subject():
    return open_traced(network(), nets.data(4).inputs)


def heads():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=16, pad_token_id=0
    )
    return open_subject(BertForSequenceClassification(config), tokenizer=tiny.tokenizer())


def how(**more):
    training = retraining.complete(Training(epochs=1, batch=32, lr=0.05))
    given = {"training": training, "short": None, "proxies": (), "last": 1, "seed": 0, "stack": 64, "processes": 1}
    return Retraining(**{**given, **more})


def test_settings_are_all_layers_at_all_ratios_by_the_names_of_layers(subject):
    found = candidates.parse_settings(subject, ["1", "1+3", "1=50%+3=40%"], ["34%", "0.5"])
    assert [one.name for one in found] == ["1 at 34%", "1 at 0.5", "1+3 at 34%", "1+3 at 0.5", "1=50%+3=40%"]
    assert [list(one.sizes.values()) for one in found[1::2]] == [[(6, 3)], [(6, 3), (5, 2)]]
    assert found[-1].ways == math.comb(6, 3) * math.comb(5, 2)
    assert len({one.folder for one in found}) == 5
    (whole,) = candidates.parse_settings(subject, [], ["50%"])
    assert whole.name == "all layers at 50%"
    assert whole.sizes == found[3].sizes


@pytest.mark.parametrize(
    ("layers", "ratios", "words"),
    [
        (["nine"], ["50%"], "'nine', which is no layer whose units can go: there are 1, 3"),
        (["1"], ["100%"], "would be left empty at 100%"),
        (["1"], ["10%"], "1 at 10% has one candidate only"),
        (["1"], ["half"], "ratio 'half' is no share"),
        (["1"], ["150%"], "ratio 150% is no share"),
        (["1+1"], ["50%"], "names one site twice"),
    ],
)
def test_settings_that_can_not_be_are_said(subject, layers, ratios, words):
    with pytest.raises(InputError, match=words):
        candidates.parse_settings(subject, layers, ratios)


def test_candidates_are_those_drawn_those_near_a_choice_and_the_choice(subject):
    (setting,) = candidates.parse_settings(subject, ["1+3"], ["50%"])
    numbers = {site: np.arange(units, dtype=float) for site, (units, _) in setting.sizes.items()}
    found = candidates.draw(setting, 20, {"mine": numbers}, around=4)
    assert len({one.id for one in found}) == len(found) == 25
    assert [one.origin for one in found].count("drawn") == 20
    choice = found[-1]
    assert choice.origin == "mine"
    assert [list(gone) for gone in choice.removed.values()] == [[0, 1, 2], [0, 1]]
    for one in found:
        kept = one.select(setting).keep
        assert [(~mask).sum() for mask in kept.values()] == [3, 2]
    assert [one.id for one in candidates.draw(setting, 20, {})] == [one.id for one in found[:20]]
    assert len(candidates.draw(setting, 300, {"mine": numbers})) == setting.ways, "the choice is one of all"


def test_scores_come_by_name_and_from_files_under_names_of_sites_or_layers(subject, tmp_path):
    task = retraining.ImageTask(nets.data(64), nets.data(16))
    settings = candidates.parse_settings(subject, ["1"], ["50%"])
    (site,) = settings[0].sizes
    for score in ("l1", "taylor", "activation"):
        found = candidates.choose(subject, task, score, settings, batch=16, seed=0)
        assert found[site].shape == (6,)
        assert np.ptp(found[site]) > 0
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"1": [1, 2, 3, 4, 5, 6]}))
    assert candidates.choose(subject, task, str(file), settings, batch=16, seed=0)[site].tolist() == [1, 2, 3, 4, 5, 6]
    for written, words in (
        ({"conv9": [1, 2]}, "'conv9', which is no layer"),
        ({"3": [1, 2, 3, 4, 5]}, "says nothing of"),
        ({"1": [1, 2]}, "has 2 numbers for the 6 units"),
        ({"1": [1, 2, 3, 4, 5, float("nan")]}, "is not finite"),
        ({"1": [1, 2, 3, 4, 5, 6], site: [6, 5, 4, 3, 2, 1]}, f"has scores of {site} twice"),
        ([1, 2], "holds no scores"),
        ("[" * 100000, "holds no scores"),
        ('{"1": [1' + 400 * "0" + "]}", "holds no scores"),
    ):
        file.write_text(written if isinstance(written, str) else json.dumps(written))
        with pytest.raises(InputError, match=words):
            candidates.choose(subject, task, str(file), settings, batch=16, seed=0)
    with pytest.raises(InputError, match="no file of scores"):
        candidates.choose(subject, task, "nowhere.json", settings, batch=16, seed=0)
    with pytest.raises(InputError, match="'wonder' is not one of"):
        candidates.choose(subject, task, "wonder", settings, batch=16, seed=0)


def test_results_are_kept_candidate_by_candidate_and_half_a_line_is_done_again(subject, tmp_path):
    task = retraining.ImageTask(nets.data(64), nets.data(16))
    (setting,) = candidates.parse_settings(subject, ["1"], ["50%"])
    store = Store(subject, task, setting, candidates.draw(setting, 5, {}), how(stack=2), tmp_path)
    store.work("cut")
    store.work("full 1")
    whole = store.results()
    assert {name: set(one) for name, one in whole.items()} == {one.id: {"cut", "full 1"} for one in store.candidates}
    assert all(one["cut"]["proved"] < 1e-5 for one in whole.values()), "sliced = silenced"
    file = tmp_path / "results.jsonl"
    kept = file.read_text()
    for wrong in ('{"id": 3}', "7", '{"id": "a", "what": "cut", "figures": {"loss": "x"}}', "[" * 100000):
        file.write_text(f"{kept}{wrong}\n")
        with pytest.raises(RunError, match=r"line 11 of .*results.jsonl holds no result"):
            store.results()
    file.write_text(kept[:-20])
    store.work("full 1")
    again = store.results()
    for name, one in whole.items():
        assert again[name]["full 1"] == pytest.approx(one["full 1"], abs=1e-5)
    stored = [json.loads(line) for line in (tmp_path / "candidates.jsonl").read_text().splitlines()]
    assert [Candidate(**one).id for one in stored] == [one.id for one in store.candidates]


def test_alone_each_is_written_as_it_ends_and_stacks_are_as_large_as_memory_allows(subject, tmp_path, monkeypatch):
    task = retraining.ImageTask(nets.data(64), nets.data(16))
    (setting,) = candidates.parse_settings(subject, ["1"], ["50%"])
    cuts, sizes, real = candidates.draw(setting, 9, {}), [], retraining.retrain

    def retrain(models, *given, **more):
        sizes.append(len(models))
        if len(sizes) == 4 and len(models) == 1:
            raise KeyboardInterrupt
        return real(models, *given, **more)

    monkeypatch.setattr(retraining, "retrain", retrain)
    store = Store(subject, task, setting, cuts, how(stack=1), tmp_path / "one")
    with pytest.raises(KeyboardInterrupt):
        store.work("full 1")
    assert len(store.results()) == 3
    one, batch = subject.cut(cuts[0].select(setting))[0].model, next(iter(task.train_batches()))
    bare = sum(tensor.nbytes for tensor in one.parameters())
    needed = stacked.count_bytes(one, task.ask, task.feed(32, 0)[0])
    assert 7 * bare < needed < stacked.count_bytes(one, task.ask, batch), "what a pass keeps grows with the batch"
    monkeypatch.setattr(devices, "free_memory", lambda device: 2 * 4 * needed)
    sizes.clear()
    store = Store(subject, task, setting, cuts, how(), tmp_path / "four")
    store.work("full 1")
    assert sizes == [4, 4, 1]
    monkeypatch.setattr(devices, "free_memory", lambda device: 0)
    store = Store(subject, task, setting, cuts[:2], how(), tmp_path / "none")
    store.work("cut")
    assert any("memory holds no more" in note for note in store.notes)


def test_where_memory_is_out_stacks_are_halved_and_nan_is_one_candidates_own(subject, tmp_path, monkeypatch):
    task = retraining.ImageTask(nets.data(64), nets.data(16))
    (setting,) = candidates.parse_settings(subject, ["1"], ["50%"])
    cuts, sizes, real = candidates.draw(setting, 6, {}), [], retraining.retrain
    bad = float(subject.cut(cuts[4].select(setting))[0].model[1].weight.detach().sum())

    def retrain(models, *given, **more):
        sizes.append(len(models))
        if len(models) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if any(float(model[1].weight.detach().sum()) == bad for model in models):
            raise NumericalError("loss is nan at step 1")
        return real(models, *given, **more)

    monkeypatch.setattr(retraining, "retrain", retrain)
    store = Store(subject, task, setting, cuts, how(), tmp_path / "out")
    store.work("full 1")
    assert sizes == [6, 3, 3, 1, 1, 1]
    assert store.failures() == {cuts[4].id: "full 1: loss is nan at step 1"}
    assert set(store.results()) == {one.id for one in cuts} - {cuts[4].id}
    store.work("full 2")
    assert sizes[6:] == [3, 2], "nothing more is asked of it"
    monkeypatch.setattr(retraining, "why_alone", lambda *given: (_ for _ in ()).throw(torch.OutOfMemoryError("out")))
    store = Store(subject, task, setting, cuts[:2], how(), tmp_path / "two")
    store.work("cut")
    assert list(store.notes) == ["1 at 50%: candidates were trained one by one, for memory is out with two"]


def test_nothing_removed_leaves_the_loss_of_the_original(subject, tmp_path):
    task = retraining.ImageTask(nets.data(64), nets.data(16))
    (site, *_) = subject.units()
    setting = candidates.Setting("nothing", {site: (subject.units()[site].count, 0)})
    (only,) = candidates.draw(setting, 10, {})
    store = Store(subject, task, setting, [only], how(proxies=("kl",)), tmp_path)
    store.work("cut")
    found = store.results()[only.id]["cut"]
    assert found["loss"] == pytest.approx(retraining.measure([subject.model], task, task.train_batches())[0]["loss"])
    assert found["kl"] == pytest.approx(0.0, abs=1e-6)


def test_heads_of_a_transformer_go_for_real_and_cut_equals_silenced(tmp_path):
    subject, lines = heads(), tiny.sentences(40)
    corpus = Corpus(lines, [place % 2 for place in range(40)])
    task = candidates.make_task(subject, corpus, "", length=16, seed=0)
    assert len(task.judged.texts) == 8
    (setting,) = candidates.parse_settings(subject, [], ["50%"])
    assert setting.ways == math.comb(4, 2) ** 2
    found = candidates.draw(setting, 4, {})
    batch = next(iter(task.judged_batches()))
    for one in found:
        small, cut = subject.cut(one.select(setting))
        assert cut.after["params"] < cut.before["params"]
        silenced = subject.silence(one.select(setting))
        torch.testing.assert_close(
            task.ask(small.model.eval(), batch), task.ask(silenced.model.eval(), batch), atol=1e-5, rtol=1e-5
        )
    scores = {"taylor": candidates.choose(subject, task, "taylor", [setting], batch=8, seed=0)}
    assert {len(values) for values in scores["taylor"].values()} == {4}
    training = retraining.complete(Training(epochs=1, batch=8, lr=1e-3), texts=True)
    store = Store(subject, task, setting, found, how(training=training), tmp_path)
    store.work("cut")
    store.work("full 1")
    assert len({one["cut"]["loss"] for one in store.results().values()}) == 4
    assert not store.notes, "they were trained in a stack"


def sorter(kind, config, *, pad=0, **more):
    """A classifier of texts of another family."""
    made = config(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_labels=2,
        pad_token_id=pad,
        **more,
    )
    return kind(made)


def test_texts_that_a_model_can_not_read_in_batches_are_refused_and_groups_of_heads_go_whole():
    corpus = Corpus(tiny.sentences(40), [place % 2 for place in range(40)])
    bare, grouped = tiny.tokenizer(), {"intermediate_size": 16, "num_key_value_heads": 2}
    bare.pad_token = None
    short = {"intermediate_size": 16, "max_position_embeddings": 12}
    for model, tokenizer, words in (
        (sorter(BertForSequenceClassification, BertConfig, **short), tiny.tokenizer(), "length=16 is beyond .* 12 pos"),
        (sorter(BertForSequenceClassification, BertConfig, intermediate_size=16), bare, "tokenizer of Bert.* no pad"),
        (sorter(GPT2ForSequenceClassification, GPT2Config, pad=None), tiny.tokenizer(), "config.json of GPT2.* no pad"),
    ):
        with pytest.raises(InputError, match=words):
            candidates.make_task(open_subject(model, tokenizer=tokenizer), corpus, "", length=16, seed=0)
    subject = open_subject(sorter(LlamaForSequenceClassification, LlamaConfig, **grouped), tokenizer=tiny.tokenizer())
    candidates.make_task(subject, corpus, "", length=16, seed=0)
    with pytest.raises(UnsupportedError, match="give --axis kv_groups"):
        candidates.parse_settings(subject, [], ["50%"])
    with pytest.raises(InputError, match="two candidates only"):
        candidates.parse_settings(subject, [], ["50%"], "kv_groups")


def test_what_is_judged_on_has_the_classes_of_the_data(subject):
    """A folder without the first class has the second as its first."""
    names, data, held = ("a", "b", "c", "d"), nets.data(50), nets.data(20, seed=1)
    held = held.take(torch.nonzero(held.labels > 0).flatten())
    own = replace(held, labels=held.labels - 1, classes=names[1:])
    (batch,) = candidates.make_task(subject, replace(data, classes=names), own, length=16, seed=0).judged_batches()
    assert torch.equal(batch["labels"], held.labels)


def test_what_is_held_out_is_judged_and_not_learned(subject):
    data, apart = nets.data(50), nets.data(20, seed=1)
    task = candidates.make_task(subject, data, "", length=16, seed=0)
    learned, judged = (
        {bytes(image.numpy()) for batch in batches for image in batch["inputs"]}
        for batches in (task.train_batches(), task.judged_batches())
    )
    assert (len(learned), len(judged), learned & judged) == (40, 10, set())
    task = candidates.make_task(subject, data, apart, length=16, seed=0)
    (batch,) = task.judged_batches()
    assert torch.equal(batch["inputs"], apart.inputs)
    assert sum(len(batch["labels"]) for batch in task.train_batches()) == 50


def test_what_gives_or_has_no_classes_is_refused(subject):
    bare = Examples(torch.rand(20, 1, 8, 8))
    with pytest.raises(DataError, match="has no classes"):
        candidates.make_task(subject, bare, "", length=16, seed=0)
    writer = open_subject(tiny.model("gpt2"), tokenizer=tiny.tokenizer())
    with pytest.raises(UnsupportedError, match="gives no class for a text"):
        candidates.make_task(writer, Corpus(tiny.sentences(8)), "", length=16, seed=0)
