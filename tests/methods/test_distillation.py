"""Distilling from the original: default losses and schedule, blocks that are gone, what a run counts."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

import tiny
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.errors import InputError, SecateurError
from secateur.methods import distillation
from secateur.recipes.language import llm_pruner, minitron, shortgpt, slicegpt, ziplm
from secateur.recover.training import loop, objectives
from secateur.runs import keywords
from secateur.subjects import Transformer, open_subject
from secateur.vocabulary import Budget, Result, Selection, Training

DATA = texts.read(tiny.sentences(200))
SHORT = Training(steps=2, batch=8, lr=5e-4, weight_decay=0.03)


def subject(kind: str = "bert") -> Transformer:
    return open_subject(tiny.uneven(tiny.model(kind)), tokenizer=tiny.tokenizer())


@pytest.mark.parametrize(("kind", "weights"), [("bert", (0.0, 1.0, 1.0)), ("llama", (0.5, 1.0, 0.5))])
def test_the_default_losses_and_schedule(tmp_path, monkeypatch, kind, weights):
    losses, trainings = [], []
    distil, train = objectives.distil, loop.train
    monkeypatch.setattr(objectives, "distil", lambda *m, **how: losses.append(how) or distil(*m, **how))
    monkeypatch.setattr(loop, "train", lambda *m, **how: trainings.append((m[3], how)) or train(*m, **how))
    start = subject(kind)
    distillation.distil(start, start.copy(), DATA, tmp_path, train_length=16, training=SHORT)
    (loss,), ((training, how),) = losses, trainings
    assert (loss["task"], loss["logit"], loss["token"]) == weights
    assert (training.schedule, training.warmup, training.lr, training.weight_decay) == ("linear", 0.1, 5e-4, 0.03)
    assert how["dropout"] is False
    assert distillation.distil(start, start.copy(), DATA, tmp_path, training=Training(steps=0, batch=8)) is None


def test_the_token_loss_leaves_out_layers_that_are_empty(tmp_path, monkeypatch):
    start, blocks = subject(), []
    sizes = {"layers.1.heads": 4, "layers.1.neurons": 64, "layers.2.heads": 4}
    student, _ = start.cut(Selection({site: np.zeros(size, bool) for site, size in sizes.items()}))
    distil = objectives.distil
    monkeypatch.setattr(objectives, "distil", lambda *m, **how: blocks.extend(how["blocks"]) or distil(*m, **how))
    done = distillation.distil(start, student, DATA, tmp_path, train_length=16, training=SHORT)
    assert blocks == [(1, 1), (3, 3)]
    ours, theirs = (model.units(length=16).cost()["flops"] / 16 for model in (student, start))
    assert done.flops == pytest.approx((3 * ours + theirs) * done.tokens)


def test_a_remembered_teacher_has_answered_every_micro_batch(tmp_path):
    start, training = subject("gpt2"), Training(steps=2, batch=8, lr=1e-3, accumulate=2)
    stream = texts.batches(DATA, start.tokenizer, packed=True, batch=8, length=16, seed=1)
    with Run.open(tmp_path, {}) as run:
        items = distillation.remember_teacher(run, start, DATA, stream, 2, training, k=4, length=16, seed=1)
    assert all("input_ids" in items[number] and len(items[number]) > len(stream[0]) for number in range(4))


def test_a_shorter_training_keeps_the_share_of_its_warm_up():
    """A warm-up of 60 steps does not fit into a trial of 50, which was refused after all had been scored."""
    for given, whole, steps, wanted in (
        (60, 1000, 50, 0.06), (10, 1000, 50, 10), (0.1, 1000, 50, 0.1), (None, 1000, 50, None), (60, 60, 50, 50),
        (60, 50, 60, 60),
    ):  # fmt: skip
        found = distillation.shorten(Training(steps=whole, warmup=given, lr=1.0), steps)
        assert (found.steps, found.warmup, found.lr) == (steps, wanted, 1.0)


@pytest.mark.parametrize("k", [1, 4])
def test_what_is_remembered_stands_for_the_whole_prediction(tmp_path, k):
    """The likeliest alone were kept, and a student learned nothing of how the other tokens compare."""
    start, training = subject("gpt2"), Training(steps=1, batch=8, lr=1e-3)
    stream = texts.batches(DATA, start.tokenizer, packed=True, batch=8, length=16, seed=1)
    with Run.open(tmp_path, {}) as run:
        item = distillation.remember_teacher(run, start, DATA, stream, 1, training, k=k, length=16, seed=1)[0]
    assert bool(item["teacher_remaining"].isinf().all()) == (k > 1)
    likeliest = start.forward(stream[0]).prediction[stream[0]["attention_mask"].bool()].topk(k).indices
    named = (item["teacher_indices"][:, :, None] == likeliest[:, None]).any(-1).sum(-1)
    assert bool((named == k).all()) == (k == 1)


def test_a_decoder_that_classifies_learns_texts_one_by_one_with_their_labels(tmp_path, monkeypatch):
    """They ran together, and their classes were lost: task=1 asked for labels that were there."""
    start = sorter()
    data, batches, train = texts.Corpus(tiny.sentences(80), labels=[0, 1] * 40), [], loop.train
    monkeypatch.setattr(loop, "train", lambda *m, **how: batches.append(m[1][0]) or train(*m, **how))
    losses = distillation.BlockLosses(task=1.0)
    done = distillation.distil(start, start.copy(), data, tmp_path, train_length=32, losses=losses, training=SHORT)
    assert "labels" in batches[0]
    assert batches[0]["input_ids"].shape[1] < 32, "a text to each row, not as many as fill 32 tokens"
    assert np.isfinite(done.losses[-1][1])


@pytest.mark.parametrize("recipe", ["shortgpt", "minitron"])
def test_a_masked_model_is_taught_and_judged_on_hidden_tokens(tmp_path, monkeypatch, recipe):
    """It was taught on texts of which nothing is hidden, and measured on masked tokens."""
    start, given = subject("masked"), []
    objective = objectives.distil

    def watched(*models, **how):
        loss = objective(*models, **how)
        return lambda batch, totals: given.append(batch) or loss(batch, totals)

    monkeypatch.setattr(objectives, "distil", watched)
    judge = distillation.held_out
    monkeypatch.setattr(
        distillation, "held_out", lambda *models, **how: given.extend(models[2]) or judge(*models, **how)
    )
    function, options = RECIPES[recipe]
    how = keywords.check_options(function, {**QUICK, **options, "task": 0.5, "training": "validation=0.1"})
    with Run.open(tmp_path, {}) as run:
        (found,) = function(start, DATA, [Budget.parse("params=80%")], run, **how)
    assert found.recovery.steps == 2
    for batch in given:
        hidden = batch["input_ids"] == start.tokenizer.mask_token_id
        assert hidden.any()
        assert (batch["labels"][hidden] >= 0).all()


def regressor(outputs: int = 1, problem: str = "regression") -> Transformer:
    """A BERT of four layers that tells `outputs` numbers for each text, or what the `problem` says."""
    small = dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, pad_token_id=0)
    config = BertConfig(vocab_size=64, **small, num_labels=outputs, problem_type=problem if outputs > 1 else None)
    return open_subject(BertForSequenceClassification(config), tokenizer=tiny.tokenizer())


def labeller() -> Transformer:
    """A BERT of four layers that tells three labels, of which several may hold."""
    return regressor(3, "multi_label_classification")


def test_labels_of_which_several_hold_are_taught_and_judged_each_by_itself(tmp_path):
    """All were taught as classes that exclude one another: softmax does not see that every label moved."""
    start = labeller()
    moved = start.copy()
    moved.model.classifier.bias.data += 7
    batches = texts.batches(DATA, start.tokenizer, packed=False, batch=8, length=16).take(2)
    assert distillation.held_out(moved, start, batches) > 1
    assert distillation.held_out(start, start, batches) < 1e-3
    training = Training(steps=30, batch=8, lr=0.3)
    losses = distillation.BlockLosses(token=0.0)
    distillation.distil(start, moved, DATA, tmp_path, train_length=16, losses=losses, training=training)
    assert distillation.held_out(moved, start, batches) < 0.5


QUICK = {"length": 16, "steps": 2, "train_batch": 4}
RECIPES = {
    "llm_pruner": (llm_pruner.llm_pruner, {"samples": 2, "train_length": 16}),
    "shortgpt": (shortgpt.shortgpt, {"samples": 4, "train_length": 16}),
    "ziplm": (ziplm.ziplm, {"calibration": 8, "judged": 8, "trials": 2, "train_length": 16}),
    "slicegpt": (slicegpt.slicegpt, {"samples": 4, "train_length": 16}),
    "minitron": (minitron.minitron, {"calibration": 8, "short_steps": 0, "axes": ["layers"], "tolerance": 0.5}),
}


def sorter() -> Transformer:
    """A decoder that tells two classes of texts."""
    config = LlamaConfig(**tiny.model("llama").config.to_dict() | {"num_labels": 2, "architectures": None})
    return open_subject(LlamaForSequenceClassification(config), tokenizer=tiny.tokenizer())


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    ("made", "error"),
    [(regressor, "tells numbers: set task=0"), (lambda: subject("bert"), "gives states: set task=0"),
     (sorter, "texts has none: give data with labels")],
)  # fmt: skip
def test_a_task_without_labels_is_refused_before_anything_is_scored(tmp_path, monkeypatch, recipe, made, error):
    """It was refused at the first training, after hours of scores and searches."""
    function, options = RECIPES[recipe]
    for work in ("json", "tensors"):
        monkeypatch.setattr(Run, work, lambda *given, **how: pytest.fail("scored"))
    how = keywords.check_options(function, {**QUICK, **options, "task": 1.0})
    with Run.open(tmp_path, {}) as run, pytest.raises(InputError, match=error):
        next(function(made(), DATA, [Budget.parse("params=80%")], run, **how))


@pytest.mark.parametrize(
    ("recipe", "model", "given", "error", "advice"),
    [
        ("llm_pruner", regressor, {}, "or score=l2", {"score": "l2"}),
        ("llm_pruner", regressor, {"score": "l2", "task": 1.0}, "set task=0", {"score": "l2", "task": 0.0}),
        ("shortgpt", regressor, {"task": 1.0}, "set task=0", {"task": 0.0}),
        ("ziplm", regressor, {"task": 1.0}, "set task=0", {"task": 0.0}),
        ("ziplm", lambda: regressor(2), {"task": 1.0}, "set task=0", {"task": 0.0}),
        ("minitron", regressor, {"task": 1.0}, "set task=0", {"task": 0.0}),
        ("minitron", regressor, {"direction": "js"}, "use mse", {"direction": "mse"}),
        ("minitron", lambda: regressor(2), {"direction": "cosine"}, "use mse", {"direction": "mse"}),
        ("shortgpt", labeller, {"task": 1.0}, "set task=0", {"task": 0.0}),
        ("minitron", labeller, {"direction": "reverse"}, "use binary", {"direction": "binary"}),
        ("minitron", "llama", {"direction": "binary"}, "leave direction out", {}),
        ("llm_pruner", "bert", {}, "or score=l2", {"score": "l2"}),
        ("llm_pruner", "llama", {"token": 1.0, "axes": ["channels"]}, "set token=0", {"axes": ["channels"]}),
        ("ziplm", "bert", {"task": 1.0}, "set task=0", {"task": 0.0}),
        ("minitron", "bert", {"correction_steps": 1}, "leave it out", {}),
        ("minitron", "llama", {"cache": 2, "direction": "js"}, "serves forward KL", {"cache": 2}),
    ],
)
def test_what_a_refusal_advises_works(tmp_path, recipe, model, given, error, advice):
    """Models that tell numbers have no cross-entropy and no divergence: they learn by the distance of the numbers."""
    made = subject(model) if isinstance(model, str) else model()
    function, options = RECIPES[recipe]
    data = texts.Corpus(DATA.texts, [0, 1] * 100, "labelled", "0") if made.output == "logits" else DATA

    def go(folder: str, **more: object) -> Result:
        how = keywords.check_options(function, {**QUICK, **options, **more})
        with Run.open(tmp_path / folder, {}) as run:
            (found,) = function(made, data, [Budget.parse("params=80%")], run, **how)
        return found

    with pytest.raises(SecateurError, match=error):
        go("refused", **given)
    found = go("mended", **advice)
    assert found.recovery is not None
    assert found.recovery.steps == 2
    assert found.recovery.losses[-1][1] > 0
