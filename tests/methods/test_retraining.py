"""Candidates are measured and trained alike, whether in a stack, one by one or in processes."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn

import second_device
import tiny
from recipes.vision import nets
from secateur.data.texts import Corpus
from secateur.errors import InputError
from secateur.methods import retraining
from secateur.methods.retraining import ImageTask, TextTask
from secateur.runs.backends.network import Network
from secateur.vocabulary import Selection, Training

QUICK = retraining.complete(Training(epochs=2, batch=32, lr=0.05))


@pytest.fixture(scope="module")
def task():
    return ImageTask(nets.data(96), nets.data(40, seed=1))


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 4))


def test_figures_are_those_of_all_examples_and_of_a_stack_the_same(task):
    models = [small(0), small(1)]
    apart = retraining.measure(models, task, task.train_batches(), teacher=models[0])
    stack = retraining.measure(models, task, task.train_batches(), teacher=models[0], together=True)
    logits = models[1](task.train.inputs).detach()
    assert apart[1]["loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, task.train.labels)), rel=1e-5)
    assert apart[1]["accuracy"] == pytest.approx(float((logits.argmax(-1) == task.train.labels).float().mean()))
    assert apart[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert apart[1]["kl"] > 0
    for one, other in zip(apart, stack, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_a_stack_and_single_candidates_end_alike_and_the_last_epochs_are_averaged(task):
    single, stack = [small(0), small(1)], [small(0), small(1)]
    assert retraining.why_alone(stack, task, QUICK) == ""
    one_by_one = retraining.retrain(single, task, QUICK, seed=3, last=2)
    together = retraining.retrain(stack, task, QUICK, seed=3, last=2, together=True)
    for first, second in zip(one_by_one, together, strict=True):
        assert asdict(first) == pytest.approx(asdict(second), abs=1e-4)
    assert torch.equal(stack[0][1].weight, small(0)[1].weight), "a stack leaves them as they are"
    found = one_by_one[0]
    assert found.loss_deviation > 0
    assert found.best_accuracy >= found.accuracy
    learned = retraining.measure([single[0]], task, task.train_batches())[0]
    assert (found.train_loss, found.train_accuracy) == pytest.approx((learned["loss"], learned["accuracy"]), abs=1e-6)
    last = retraining.measure([single[0]], task, task.judged_batches())[0]
    only = retraining.retrain([small(0)], task, QUICK, seed=3, last=1)[0]
    assert (only.loss, only.accuracy) == pytest.approx((last["loss"], last["accuracy"]), abs=1e-6)
    assert (only.loss_deviation, only.accuracy_deviation) == (0.0, 0.0)


def test_proxies_are_measured_before_training_and_leave_the_network(task):
    model, dense = nets.vgg(seed=1), nets.vgg()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batches = [task.train.batch()]
    found = retraining.measure_proxies([model], task, ("kl", "norms", "trace"), dense=dense, calibration=batches)[0]
    assert set(found) == {"loss", "accuracy", "kl", "norms", "trace"}
    assert found["norms"] != found["loss"]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    plain = retraining.measure_proxies([small()], task, ("norms",), dense=small(1), calibration=batches)[0]
    assert plain["norms"] == plain["loss"], "no norms to estimate anew"


def test_the_candidate_that_learns_the_training_part_fastest_is_chosen(task):
    deaf = small(1)
    deaf[1].requires_grad_(False)
    deaf[3].weight.data.zero_()
    deaf[1].weight.data.zero_()
    reached = retraining.compare_shortly([deaf, small(0)], task, Training(epochs=10, batch=32, lr=0.2))
    assert reached[0] > reached[1]
    alike = retraining.compare_shortly([small(0), small(1)], task, Training(epochs=10, batch=32, lr=0.2))
    assert alike[0] == pytest.approx(reached[1], abs=1e-4), "in a stack, or one by one"
    assert retraining.describe_choice(1, reached).startswith(
        "of 2 cuts at this budget candidate 2, not the criterion's"
    )
    assert "the criterion's own choice has" in retraining.describe_choice(0, reached)


def test_a_short_retraining_stacks_no_more_than_memory_holds(task, monkeypatch):
    candidates, how = [small(seed) for seed in range(3)], Training(epochs=2, batch=32, lr=0.2)
    stacks, real = [], retraining.retrain
    monkeypatch.setattr(
        retraining, "retrain", lambda models, *given, **more: stacks.append(len(models)) or real(models, *given, **more)
    )
    whole = retraining.compare_shortly(candidates, task, how)
    monkeypatch.setattr(retraining, "count_fitting", lambda *_: 2)
    assert retraining.compare_shortly(candidates, task, how) == pytest.approx(whole, abs=1e-4)
    monkeypatch.setattr(retraining, "count_fitting", lambda *_: 0)
    assert retraining.compare_shortly(candidates, task, how) == pytest.approx(whole, abs=1e-4)
    assert stacks == [3, 2, 1, 1, 1, 1]


def test_dropout_is_the_same_in_a_stack_and_alone(task):
    def drop():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 4))

    together = retraining.retrain([drop(), drop()], task, QUICK, seed=1, together=True)
    (alone,) = retraining.retrain([drop()], task, QUICK, seed=1)
    assert [asdict(one) for one in together] == [pytest.approx(asdict(alone), abs=1e-4)] * 2


def test_settings_that_would_train_candidates_unlike_are_refused():
    for given, words in (({"patience": 2}, "patience=2"), ({"epochs": 0}, "epochs=0"), ({"keep": "last"}, "keep=last")):
        with pytest.raises(InputError, match=words):
            retraining.complete(Training(**{"epochs": 1, **given}))
    assert retraining.complete(Training(epochs=1)).clip == math.inf
    assert retraining.complete(Training(epochs=1), texts=True).optimizer == "adamw"
    assert "sam" in retraining.why_alone([], None, Training(sam=0.1))


NETWORK = """
import torch
from torch import nn

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(64, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.second(self.first(x.flatten(1)).relu())

def build():
    return Branching(), torch.zeros(2, 1, 8, 8)
"""


class Here:
    """In the place of a pool of processes: a call of each, in this one."""

    def __init__(self, *given):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *given):
        pass

    map = staticmethod(map)


@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.wide)])
def test_processes_give_what_one_process_gives_and_need_a_function(task, tmp_path, monkeypatch, processes):
    if not processes:
        monkeypatch.setattr(retraining, "ProcessPoolExecutor", Here)
    (tmp_path / "net.py").write_text(NETWORK)
    subject = Network().open(f"{tmp_path / 'net.py'}:build")
    site = next(iter(subject.units()))
    cuts = [subject.cut(Selection({site: np.arange(6) != gone}))[0] for gone in (0, 3)]
    apart = list(retraining.retrain_apart(cuts, task, QUICK, seed=1, many=1))
    here = retraining.retrain([cut.model for cut in cuts], task, QUICK, seed=1)
    for first, second in zip(apart, here, strict=True):
        assert asdict(first) == pytest.approx(asdict(second), abs=1e-5)
    with pytest.raises(InputError, match="given in Python"):
        list(retraining.retrain_apart([nets.opened(nets.vgg())], task, QUICK, seed=1))
    wild = [subject.cut(Selection({site: np.arange(6) != 0}))[0]]
    (failed,) = retraining.retrain_apart(wild, task, replace(QUICK, lr=1e30), seed=1, many=1)
    assert isinstance(failed, str)
    assert "loss is" in failed


def test_processes_train_where_the_candidates_lie(task, tmp_path, monkeypatch):
    monkeypatch.setattr(retraining, "ProcessPoolExecutor", Here)
    (tmp_path / "net.py").write_text(NETWORK)
    seen, retrain = [], retraining.retrain

    def watched(models, *args, **kwargs):
        found = retrain(models, *args, **kwargs)
        seen.extend(str(next(model.parameters()).device) for model in models)
        return found

    monkeypatch.setattr(retraining, "retrain", watched)
    with second_device.present() as card:
        subject = Network().open(f"{tmp_path / 'net.py'}:build")
        cut = subject.cut(Selection({next(iter(subject.units())): np.arange(6) != 3}))[0]
        cut.model.to(card)
        (found,) = retraining.retrain_apart([cut], task, QUICK, seed=1, many=1)
    assert seen == [card]
    assert isinstance(found, retraining.Outcome)


def test_texts_with_classes_are_learned_and_judged_whole():
    lines = tiny.sentences(40)
    corpus = Corpus(lines, [place % 2 for place in range(40)])
    task = TextTask(corpus, corpus, tiny.tokenizer(), 16)
    assert sum(len(batch["labels"]) for batch in task.judged_batches()) == 40
    pair = [tiny.classifier(), tiny.classifier(seed=1)]
    training = retraining.complete(Training(epochs=1, batch=8, lr=1e-3), texts=True)
    assert retraining.why_alone(pair, task, training) == ""
    together = retraining.retrain(pair, task, training, seed=0, together=True)
    found = retraining.measure_proxies(pair, task, ("trace",), dense=pair[0], calibration=[task.feed(8, 0)[0]])
    assert all(math.isfinite(one["trace"]) for one in found)
    for one, other in zip(together, retraining.retrain(pair, task, training, seed=0), strict=True):
        assert asdict(one) == pytest.approx(asdict(other), abs=1e-3)
