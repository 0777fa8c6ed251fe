"""One model against several: each by name, their averaged ensemble beside it, and what can't be compared."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification

import secateur
import tiny
from secateur.data import texts
from secateur.errors import InputError
from secateur.measure import loyalty
from secateur.runs import measuring
from secateur.runs.backends import language
from secateur.runs.distilling import ensembles

QUICK = {"batch": 2, "length": 16}
KINDS = {"classes": (BertForSequenceClassification, 3), "tokens": (BertForTokenClassification, 3),
         "number": (BertForSequenceClassification, 1)}  # fmt: skip


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setitem(measuring.CLOCK, "pairs", 6)
    monkeypatch.setitem(measuring.CLOCK, "enough", 6)


def made(kind, seed, classes=None):
    maker, count = KINDS[kind]
    given = tiny.model("bert").config.to_dict()
    del given["id2label"], given["label2id"]
    torch.manual_seed(seed)
    model = maker(BertConfig(**{**given, "num_labels": classes or count})).eval()
    model.classifier.weight.data *= 40
    return secateur.open_subject(model, tokenizer=tiny.tokenizer())


def told(subject, spoken):
    """[n, C] of texts or of tokens, in one order."""
    batches = language.held_batches(texts.Corpus(spoken), subject.tokenizer, packed=False, length=16)
    rows = [subject.forward(batch).prediction for batch in batches]
    if rows[0].dim() == 3:
        rows = [row[batch["attention_mask"].bool()] for row, batch in zip(rows, batches, strict=True)]
    return torch.cat(rows).double().detach()


@pytest.mark.parametrize("kind", ["classes", "tokens"])
def test_loyalty_is_to_each_and_to_the_mean_of_their_probabilities(kind):
    student, one, other = (made(kind, seed) for seed in range(3))
    spoken = tiny.sentences(48)
    found = measuring.measure(student, [one, other], spoken, **QUICK)
    names = [f"{type(one.model).__name__} {number}" for number in (1, 2)]
    assert list(found) == ["model", *(f"{part} {name}" for name in names for part in ("against", "both")),
                           "both ensemble"]  # fmt: skip
    ours, *theirs = (told(subject, spoken).softmax(-1) for subject in (student, one, other))
    for how, name in ((loyalty.label, "label_loyalty"), (loyalty.probability, "probability_loyalty")):
        wanted = loyalty.to_each(how, ours, dict(zip([*names], theirs, strict=True)))
        for to, figure in wanted.items():
            assert found[f"both {to}"][name].value == pytest.approx(figure.value, abs=1e-5), (to, name)
    assert set(found["both ensemble"]) == {"label_loyalty", "probability_loyalty"}, "states of several have no mean"
    assert "speedup" in found[f"both {names[1]}"]
    assert "speedup" in found[f"both {names[0]}"]


def test_the_ensembles_own_accuracy_stands_beside_it():
    student, one, other = (made("classes", seed) for seed in range(3))
    spoken = tiny.sentences(48)
    answers = ((told(one, spoken).softmax(-1) + told(other, spoken).softmax(-1)) / 2).argmax(-1)
    batches = language.held_batches(texts.Corpus(spoken), one.tokenizer, packed=False, length=16)
    assert len(answers) == 16 * len(batches) == 48
    order = texts.batches(texts.Corpus(spoken), one.tokenizer, packed=False, batch=16, length=16)
    labels = torch.empty(48, dtype=torch.long)
    labels[torch.as_tensor(np.concatenate([order.rows(number) for number in range(3)]))] = answers
    rows = [{"text": text, "label": label} for text, label in zip(spoken, labels.tolist(), strict=True)]
    found = measuring.measure(student, [one, other], texts.read(rows), **QUICK)
    assert found["ensemble"]["accuracy"].value == 1.0
    assert found["both ensemble"]["label_loyalty"].value == pytest.approx(found["model"]["accuracy"].value)
    assert found["model"]["accuracy"].value < 1


def test_numbers_are_averaged_as_numbers():
    student, one, other = (made("number", seed) for seed in range(3))
    spoken = tiny.sentences(48)
    found = measuring.measure(student, [one, other], spoken, **QUICK)["both ensemble"]
    ours, *theirs = (told(subject, spoken).flatten() for subject in (student, one, other))
    wanted = loyalty.numbers(ours, loyalty.average(theirs))
    assert set(found) == {"pearson", "rank_loyalty", "rmse"}
    assert {name: figure.value for name, figure in found.items()} == pytest.approx(
        {name: figure.value for name, figure in wanted.items()}, abs=1e-5
    )


NETS = """
import torch
from torch import nn


def made(seed, classes=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, classes))


def student():
    return made(0)


def one():
    return made(1)


def other():
    return made(2)


def same():
    return made(2)


def four():
    return made(2, 4)
"""


@pytest.fixture
def nets(tmp_path):
    (tmp_path / "nets.py").write_text(NETS)
    draw = torch.Generator().manual_seed(0)
    np.savez(tmp_path / "data.npz", inputs=torch.randn(50, 4, generator=draw).numpy(), labels=np.arange(50) % 3)
    return tmp_path


def test_networks_are_named_by_their_functions(nets):
    name = {one: f"{nets}/nets.py:{one}" for one in ("student", "one", "other", "same", "four")}
    found = measuring.measure(name["student"], [name["one"], name["other"]], nets / "data.npz", batch=8)
    assert list(found) == ["model", "against nets.py:one", "both nets.py:one", "against nets.py:other",
                           "both nets.py:other", "ensemble", "both ensemble"]  # fmt: skip
    alone = measuring.measure(name["student"], name["other"], nets / "data.npz", batch=8)
    assert list(alone) == ["model", "against", "both"]
    assert alone.keys() == measuring.measure(name["student"], [name["other"]], nets / "data.npz", batch=8).keys()
    both = ("label_loyalty", "probability_loyalty")
    np.savez(nets / "plain.npz", inputs=np.load(nets / "data.npz")["inputs"])
    bare = measuring.measure(name["student"], [name["one"], name["other"]], nets / "plain.npz", batch=8)
    assert {figure: bare["both ensemble"][figure] for figure in both} == bare["both ensemble"]
    assert bare["both ensemble"] == found["both ensemble"]
    assert "cosine" in bare["both nets.py:one"]
    for figure in both:
        assert found["both nets.py:other"][figure] == alone["both"][figure]
    assert found["model"]["accuracy"] == alone["model"]["accuracy"]
    assert found["against nets.py:other"]["accuracy"] == alone["against"]["accuracy"]
    for others, words in (
        (("other", "other"), f"against names {name['other']} twice"),
        (("other", "same"), "nets.py:other and nets.py:same are the same model, weight for weight"),
        (("one", "four"), "the model gives rows of 3 and nets.py:four rows of 4: use models of the same classes"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            measuring.measure(name["student"], [name[one] for one in others], nets / "data.npz", batch=8)
        assert "\n" not in str(caught.value)


def test_what_can_not_be_compared_with_several_is_refused(monkeypatch):
    student, one = made("classes", 0), made("classes", 1)
    monkeypatch.setattr(measuring.latency, "compare", None)  # before anything is timed
    named = made("classes", 2)
    named.model.config.id2label = {0: "a", 1: "b", 2: "c"}
    mine = made("classes", 3)
    mine.model.config.id2label = {0: "b", 1: "a", 2: "c"}
    for model, other, words in (
        (student, one, "against names BertForSequenceClassification twice"),
        (student, made("classes", 2, 4), "the model has 3 classes and .* 2 4: use models of the same ones"),
        (student, made("tokens", 0, 4), "the model has 3 classes and .* 4: use models of the same ones"),
        (student, made("classes", 1), "are the same model, weight for weight: name each once"),
        (mine, named, "class 0 is 'b' for the model and 'a' for .* 2: use models of the same classes"),
        (student, nn.Linear(1, 1), "are a network and a model of texts: measure them apart"),
        (student, secateur.open_subject(tiny.model("llama"), tokenizer=tiny.tokenizer()), "open both with the same"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            measuring.measure(model, [one, other], tiny.sentences(20), **QUICK)
        assert "\n" not in str(caught.value)


def test_language_models_have_an_ensemble_and_embeddings_none():
    for kind, parts in (("llama", {"ensemble", "both ensemble"}), ("bert", set())):
        opened = [secateur.open_subject(tiny.model(kind, seed), tokenizer=tiny.tokenizer()) for seed in range(3)]
        found = measuring.measure(opened[0], opened[1:], tiny.sentences(60), **QUICK)
        assert {name for name in found if "ensemble" in name} == parts
    assert list(measuring.measure(opened[0], [], **QUICK)) == ["model"]


def test_names_are_as_short_as_tells_models_apart(tmp_path):
    assert ensembles.name_models(["a/one", "a/two"]) == ["one", "two"]
    assert ensembles.name_models(["a/one", "b/one"]) == ["a/one", "b/one"]
    assert ensembles.name_models(["a/ensemble", "a/two"]) == ["a/ensemble", "a/two"], "that is what all are called"
    assert ensembles.name_models(["ensemble", "two"]) == ["ensemble 1", "two 2"]
    (tmp_path / "one").mkdir()
    with pytest.raises(InputError, match="twice: name each model once"):
        ensembles.name_models([tmp_path / "one", f"{tmp_path}/./one/"])
