"""The loop's promises: one big batch, the same bytes after a kill, whole checkpoints, no silent NaN."""

import copy
import json
import math
import os
import random
import signal
import time
import weakref

import numpy as np
import pytest
import torch
from accelerate.tracking import GeneralTracker
from safetensors.torch import load_file
from torch import nn

import processes
import second_device
from recover import job
from recover.job import run
from recover.students import VOCABULARY, Batches, bert, llama, logit_objective, token_objective
from secateur._utils import storage
from secateur.data import examples
from secateur.errors import InputError, MissingExtraError, NumericalError, RunError
from secateur.recover.distillation import losses
from secateur.recover.training import loop


def weights(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def start(*arguments):
    return processes.forked(lambda: job.main(*map(str, arguments)))


def wait_for_checkpoint(process, folder, newer_than=0):
    file = folder / "training.safetensors"
    while not file.exists() or file.stat().st_mtime_ns <= newer_than:
        time.sleep(0.01)
        assert process.poll() is None, process.stderr
    return file.stat().st_mtime_ns


@pytest.fixture(scope="module")
def uninterrupted():
    return run(steps=12)


def test_training_brings_the_student_to_the_teacher():
    teacher, student = llama(1), llama(2)
    done = loop.train(student, Batches(8), logit_objective(student, teacher), steps=60, lr=1e-2, every=1000)
    first, last = done.losses[0][1], done.losses[-1][1]
    assert last < 0.8 * first
    assert done.steps == 60
    assert done.losses[-1][0] == 60
    assert done.tokens == sum(int(Batches(8)[i]["attention_mask"].sum()) for i in range(60))
    assert done.seconds > 0
    assert not student.training


def test_accumulation_equals_one_big_batch_under_padding():
    class Joined:
        def __getitem__(self, index):
            parts = [Batches(2)[4 * index + k] for k in range(4)]
            return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    results = []
    for batches, accumulate in ((Batches(2), 4), (Joined(), 1)):
        # float64: where a gradient is 0 but for rounding, Adam makes a step of the rounding.
        student, teacher = bert(1, dropout=0.0).double(), bert(2).double()
        done = loop.train(student, batches, token_objective(student, teacher), steps=4, lr=1e-3, accumulate=accumulate)
        results.append((weights(student), done))
    (small, one), (big, other) = results
    for name in small:
        torch.testing.assert_close(small[name], big[name], rtol=1e-7, atol=1e-9)
    assert one.tokens == other.tokens
    assert [v for _, v in one.losses] == pytest.approx([v for _, v in other.losses], rel=1e-6)


def test_totals_are_those_of_the_whole_step():
    student, seen = nn.Linear(2, 2), []

    def objective(batch, totals):
        seen.append((int(batch["attention_mask"].sum()), dict(totals)))
        return student(torch.ones(2)).sum() / totals["tokens"], {}

    loop.train(student, Batches(2), objective, steps=1, lr=1e-3, accumulate=3)
    assert seen[0][1] == seen[1][1] == seen[2][1]
    assert seen[0][1]["tokens"] == sum(tokens for tokens, _ in seen)
    assert seen[0][1]["sequences"] == 6


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """float64, as above, and without dropout's help: micro-batch i has the same random state in either run."""

    def work() -> None:
        os.environ["DOUBLE"] = "1"
        job.main(str(tmp_path / "two"), str(tmp_path / "kept"), "4", "0", "1")

    processes.both(work)
    two, one = load_file(tmp_path / "two"), run(steps=4, accumulate=2, double=True)
    assert two["tokens"] == one["tokens"]
    assert two.pop("losses").tolist() == pytest.approx(one.pop("losses").tolist(), rel=1e-5)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-6, atol=1e-8)
    assert (tmp_path / "kept" / "training.safetensors").exists()


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_gives_the_same_bytes(tmp_path, uninterrupted):
    """Dropout is on: equal bytes need equal random states too."""
    seen = 0
    for _ in range(2):
        process = start(tmp_path / "out", tmp_path / "kept", 12, 0.1, 1)
        seen = wait_for_checkpoint(process, tmp_path / "kept", seen)
        time.sleep(random.uniform(0, 0.3))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "out").exists()
    assert equal(run(tmp_path / "kept", steps=12), uninterrupted)
    assert [file.name for file in (tmp_path / "kept").iterdir()] == ["training.safetensors"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_a_checkpoint_of_the_last_step(tmp_path, uninterrupted, number, code):
    process = start(tmp_path / "out", tmp_path / "kept", 12, 0.3, 1)
    wait_for_checkpoint(process, tmp_path / "kept")
    time.sleep(0.4)
    process.kill(number)
    assert process.wait(60) == code, process.stderr
    _, text = storage.read(tmp_path / "kept" / "training.safetensors")
    assert json.loads(text)["state"]["step"] not in (0, 3)
    assert equal(run(tmp_path / "kept", steps=12), uninterrupted)


def test_a_finished_run_is_not_trained_again(tmp_path):
    def once():
        student, teacher = llama(1), llama(2)
        inner, calls = logit_objective(student, teacher), []

        def objective(batch, totals):
            calls.append(1)
            return inner(batch, totals)

        done = loop.train(student, Batches(), objective, steps=4, lr=1e-3, checkpoint=tmp_path, every=3)
        return weights(student), done, len(calls)

    first, second = once(), once()
    assert (first[2], second[2]) == (4, 0)
    assert equal(first[0], second[0])
    assert first[1] == second[1]


def test_extra_modules_are_trained_and_resumed(tmp_path):
    def once(stop):
        student, teacher = bert(1), bert(2)
        torch.manual_seed(0)
        projection, steps = nn.Linear(32, 32), []

        def objective(batch, totals):
            if len(steps) == stop:
                raise RuntimeError("stop")
            steps.append(1)
            hidden = student(**batch).last_hidden_state
            target = teacher(**batch).last_hidden_state
            return losses.cosine(hidden, target, batch["attention_mask"], project=projection) / totals["tokens"], {}

        before = weights(projection)
        folder = tmp_path / str(stop is None)
        loop.train(student, Batches(), objective, steps=6, lr=1e-3, extra=[projection], checkpoint=folder, every=2)
        assert not equal(before, weights(projection))
        return weights(student), weights(projection)

    whole = once(None)
    (tmp_path / "False").mkdir()
    with pytest.raises(RuntimeError, match="stop"):
        once(5)
    resumed = once(99)
    assert all(equal(one, other) for one, other in zip(whole, resumed, strict=True))


def test_extra_modules_may_learn_at_a_rate_of_their_own():
    """AdamW's first step is as large as its rate."""

    def step(**how):
        student, extra = nn.Linear(2, 1), nn.Linear(2, 1)
        batches = [{"input_ids": torch.ones(1, 2, dtype=torch.long)}]
        before = extra.weight.detach().clone(), student.weight.detach().clone()

        def objective(batch, totals):
            x = batch["input_ids"].float()
            return (student(x) + extra(x)).sum(), {}

        loop.train(student, batches, objective, steps=1, lr=1e-3, warmup=0, extra=[extra], weight_decay=0.0, **how)
        return [
            float((old - new).abs().mean()) for old, new in zip(before, (extra.weight, student.weight), strict=True)
        ]

    assert step() == pytest.approx([1e-3, 1e-3], rel=1e-2)
    assert step(extra_rate=50.0) == pytest.approx([5e-2, 1e-3], rel=1e-2)


def test_another_run_s_checkpoint_is_refused(tmp_path):
    student, teacher = llama(1), llama(2)
    objective = logit_objective(student, teacher)
    loop.train(student, Batches(), objective, steps=2, lr=1e-3, checkpoint=tmp_path)
    with pytest.raises(RunError, match=r"lr=0\.001, this one has 0\.002"):
        loop.train(student, Batches(), objective, steps=2, lr=2e-3, checkpoint=tmp_path)
    with pytest.raises(RunError, match="another model"):
        loop.train(bert(1), Batches(), objective, steps=2, lr=1e-3, checkpoint=tmp_path)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    student, teacher = llama(1), llama(2)
    objective = logit_objective(student, teacher)
    loop.train(student, Batches(), objective, steps=2, lr=1e-3, checkpoint=tmp_path)
    file = tmp_path / "training.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(RunError, match="remove it") as caught:
        loop.train(student, Batches(), objective, steps=2, lr=1e-3, checkpoint=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_line_and_nothing_half_written(tmp_path):
    process = start(tmp_path / "out", tmp_path / "kept", 4, 0, 1, 50)
    assert process.wait() == 2, process.stderr
    assert "could not write" in process.stderr.strip().splitlines()[-1]
    assert not list((tmp_path / "kept").iterdir())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_it_touches_a_weight(tmp_path, bad):
    student, teacher = llama(1), llama(2)
    inner, held = logit_objective(student, teacher), []

    def objective(batch, totals):
        loss, parts = inner(batch, totals)
        if len(held) == 3:
            loss = loss * bad
        held.append(weights(student))
        return loss, parts

    with pytest.raises(NumericalError, match="at step 4"):
        loop.train(student, Batches(), objective, steps=9, lr=1e-3, checkpoint=tmp_path, every=2)
    assert equal(weights(student), held[-1])
    assert [file.name for file in tmp_path.iterdir()] == ["training.safetensors"]


def test_an_infinite_gradient_of_a_finite_loss_stops_too():
    student = nn.Linear(1, 1)

    def objective(batch, totals):
        return (student.weight - student.weight.detach()).sqrt().sum(), {}

    with pytest.raises(NumericalError, match="gradient"):
        loop.train(student, Batches(), objective, steps=1, lr=1e-3)


def test_early_stop_after_patience_evaluations():
    student, teacher = llama(1), llama(2)
    values = iter([3.0, 2.0, 2.5, 2.1, 1.0])
    modes = []

    def evaluate():
        modes.append((student.training, torch.is_grad_enabled()))
        return next(values)

    done = loop.train(
        student,
        Batches(),
        logit_objective(student, teacher),
        steps=20,
        lr=1e-3,
        evaluate=evaluate,
        evaluate_every=2,
        patience=2,
    )
    assert done.steps == 8
    assert set(modes) == {(False, False)}
    assert [value for _, value in done.settings["evaluations"]] == [3.0, 2.0, 2.5, 2.1]


class Held(list):
    """Batches that can hold a part out."""

    def hold_out(self, share):
        return self[2:], self[:2]


def drifting(values):
    """A linear layer whose evaluations are given, and its weights at each."""
    student, seen = nn.Linear(2, 1), []

    def evaluate():
        seen.append(weights(student)["weight"].clone())
        return values[len(seen) - 1]

    return student, evaluate, seen


def push(student):
    return lambda batch, totals: (student(torch.ones(2)).sum(), {})


@pytest.mark.parametrize("keep", [None, "last"])
def test_patience_gives_the_weights_of_the_best_evaluation(keep, tmp_path):
    student, evaluate, seen = drifting([3.0, 1.0, 2.0, 2.0, 2.0])
    how = {"steps": 9, "lr": 0.1, "evaluate": evaluate, "evaluate_every": 1, "patience": 2, "keep": keep}
    how = {name: value for name, value in how.items() if value is not None}
    done = loop.train(student, Batches(), push(student), checkpoint=tmp_path, **how)
    assert done.steps == 4
    assert torch.equal(student.weight.detach(), seen[-1] if keep else seen[1])
    assert done.settings.get("kept_step") == (None if keep else 2)
    again, _, _ = drifting([])
    loop.train(again, Batches(), push(again), checkpoint=tmp_path, **how)
    assert torch.equal(again.weight.detach(), student.weight.detach()), "a finished training gives the same again"


def test_a_part_of_the_data_judges_where_nobody_says_what_does():
    student = nn.Linear(1, 1, bias=False)
    data = Held({"x": torch.tensor([float(i)])} for i in range(6))
    asked = []

    def objective(batch, totals):
        asked.append((float(batch["x"]), torch.is_grad_enabled()))
        return student(batch["x"]).sum() ** 2, {}

    done = loop.train(
        student, data, objective, steps=8, lr=0.01, validation=0.3, count=lambda batch: {"examples": 1}, progress=False
    )
    assert {x for x, training in asked if training} == {2.0, 3.0, 4.0, 5.0}
    assert {x for x, training in asked if not training} == {0.0, 1.0}
    assert [step for step, _ in done.settings["evaluations"]] == [4, 8], "each epoch"
    for how in ({"patience": 2}, {"validation": 0.5}):
        with pytest.raises(InputError, match="can't hold one out"):
            loop.train(student, Batches(), objective, steps=1, lr=0.1, **how)
    with pytest.raises(InputError, match="keep=best needs an evaluation"):
        loop.train(student, Batches(), objective, steps=1, lr=0.1, keep="best")


@pytest.mark.parametrize(("asked", "count", "steps"), [({}, 4, [4, 8, 12]), ({}, None, [2, 4, 6, 8, 10, 12]),
                                                       ({"evaluate_every": 5}, 4, [5, 10, 12])])  # fmt: skip
def test_a_recipe_s_own_evaluation_comes_each_epoch_too(asked, count, steps):
    class Endless:
        def __getitem__(self, index):
            return {"inputs": torch.ones(1, 2)}

    model = nn.Linear(2, 1)
    feed = Endless() if count is None else [Endless()[0]] * count

    def objective(batch, totals):
        return model(batch["inputs"]).square().sum(), {}

    done = loop.train(
        model, feed, objective, steps=12, lr=0.0, patience=20, evaluate=lambda: 1.0, progress=False,
        count=lambda _: {"examples": 1}, **asked,
    )  # fmt: skip
    assert [step for step, _ in done.settings["evaluations"]] == steps


def test_lines_tell_of_training_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]):
    student, evaluate, _ = drifting([3.0, 1.0, 2.0])
    how = {"steps": 3, "lr": 0.1, "evaluate": evaluate, "evaluate_every": 1, "patience": 3, "title": "distillation"}
    loop.train(student, Batches(), push(student), **how)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "distillation: step 1 of 3: evaluation 3, the best 3 at 1"
    assert lines[-1] == "distillation: step 3 of 3: weights of step 2 are kept, the best by evaluation"
    loop.train(student, Batches(), push(student), steps=1, lr=0.1, progress=False)
    assert capsys.readouterr().err == ""


def test_trackers_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop, "get_available_trackers", lambda: ["tensorboard"])
    loop.check_trackers(["tensorboard", object()])
    with pytest.raises(MissingExtraError, match="pip install wandb"):
        loop.train(nn.Linear(1, 1), Batches(), push(None), steps=1, lr=0.1, trackers=["wandb"])
    with pytest.raises(InputError, match="Accelerate knows aim"):
        loop.check_trackers(["wanbd"])


@pytest.mark.parametrize("clip", [None, 1e-6])
def test_gradients_of_a_step_are_gone_before_the_next_has_its_own(clip):
    student, made, alive = nn.Linear(2, 2), [], []
    for parameter in student.parameters():
        parameter.register_post_accumulate_grad_hook(lambda one: made.append(weakref.ref(one.grad)))

    def objective(batch, totals):
        alive.append(sum(gradient() is not None for gradient in made))
        return student(torch.ones(2)).sum() / totals["tokens"], {}

    loop.train(student, Batches(2), objective, steps=3, lr=1e-3, clip=clip)
    assert len(made) == 6
    assert alive == [0, 0, 0]


def test_clipping_limits_the_gradient_and_decay_spares_biases():
    student = nn.Linear(3, 1)
    start = weights(student)

    def objective(batch, totals):
        return 0.0 * student(torch.ones(3)).sum(), {}

    loop.train(student, Batches(), objective, steps=1, lr=0.1, weight_decay=0.5, warmup=0)
    torch.testing.assert_close(student.weight.detach(), 0.95 * start["weight"])
    assert torch.equal(student.bias.detach(), start["bias"])

    module = nn.Linear(1000, 1)
    gradient = []
    module.weight.register_post_accumulate_grad_hook(lambda p: gradient.append(p.grad))
    norms = []
    loop.train(
        module,
        Batches(),
        lambda batch, totals: (100 * module.weight.sum(), {}),
        steps=1,
        lr=1e-9,
        clip=0.5,
        trackers=[Tracker(norms)],
    )
    assert gradient[0].norm().item() == pytest.approx(0.5, rel=1e-4)
    assert norms[0][1]["gradient_norm"] == pytest.approx(100 * math.sqrt(1000), rel=1e-4)


class Tracker(GeneralTracker):
    name = "list"
    requires_logging_directory = False

    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    @property
    def tracker(self):
        return self.rows

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step=None, **_):
        self.rows.append((step, values))


def test_trackers_get_loss_parts_rate_and_speed():
    student, teacher, rows = llama(1), llama(2), []
    tracker = Tracker(rows)
    objective = logit_objective(student, teacher)
    loop.train(student, Batches(), objective, steps=3, lr=1e-3, warmup=0, schedule="linear", trackers=[tracker])
    assert [step for step, _ in rows] == [1, 2, 3]
    assert rows[0][1]["kl"] == pytest.approx(rows[0][1]["loss"])
    assert rows[1][1]["lr"] == pytest.approx(1e-3 * 2 / 3)
    assert rows[0][1]["tokens_per_second"] > 0
    assert tracker.config["steps"] == 3


def test_trackers_are_told_a_name_that_they_take(monkeypatch: pytest.MonkeyPatch):
    """wandb ends in an error for a project with one of these: / # ? % : or a backslash, as budgets have them."""
    seen = []
    monkeypatch.setattr(loop.Accelerator, "init_trackers", lambda self, name, **_: seen.append(name))
    student = nn.Linear(1, 1)
    how = {"steps": 1, "lr": 0.1, "trackers": [Tracker([])], "progress": False}
    for title in ("train params=50%,pattern=2:4", "student", "a" * 200, "%"):
        loop.train(student, Batches(), lambda batch, totals: (student.weight.sum(), {}), title=title, **how)
    assert seen == ["train params=50,pattern=2-4", "student", "a" * 128, "training"]


def test_half_precision_weights_train_as_float32_and_come_back():
    student, teacher = llama(1).bfloat16(), llama(2)
    before, seen = weights(student), []
    inner = logit_objective(student, teacher)

    def objective(batch, totals):
        seen.append((student.model.norm.weight.dtype, torch.is_autocast_enabled("cpu")))
        return inner(batch, totals)

    data = Held(Batches()[index] for index in range(4))
    loop.train(student, data, objective, steps=3, lr=1e-3, precision="bf16", validation=0.25)
    assert set(seen) == {(torch.float32, True)}
    assert {tensor.dtype for tensor in student.parameters()} == {torch.bfloat16}
    assert not equal(before, weights(student))


def test_frozen_parameters_stay_and_are_not_in_the_checkpoint(tmp_path):
    student, teacher = llama(1), llama(2)
    student.model.embed_tokens.requires_grad_(False)
    before = weights(student)
    loop.train(student, Batches(), logit_objective(student, teacher), steps=2, lr=1e-2, checkpoint=tmp_path)
    after = weights(student)
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    assert not any("embed_tokens" in name for name in load_file(tmp_path / "training.safetensors"))


def test_the_caller_s_generators_are_left_alone():
    def draws():
        return torch.rand(3).tolist(), random.random(), float(np.random.rand())  # noqa: NPY002

    def seed():
        torch.manual_seed(7)
        random.seed(7)
        np.random.seed(7)  # noqa: NPY002

    student = bert(1)
    seed()
    want = draws()
    seed()
    loop.train(student, Batches(), token_objective(student, bert(2).eval()), steps=2, lr=1e-3)
    seed()
    loop.train(student, Batches(), lambda batch, totals: (student(**batch)[0].sum(), {}), steps=2, lr=1e-3)
    assert draws() == want


def test_without_dropout_no_seed_matters():
    """Everything random inside a step is dropout here, the attention's own included."""
    found = []
    for seed in (0, 1):
        student, teacher = bert(1, dropout=0.3), bert(2, dropout=0.0)
        loop.train(student, Batches(), token_objective(student, teacher), steps=2, lr=1e-3, seed=seed, dropout=False)
        found.append(weights(student))
    assert equal(*found)


def test_the_seed_decides_the_dropout():
    def once(seed):
        student = bert(1, dropout=0.3)
        loop.train(student, Batches(), token_objective(student, bert(2)), steps=2, lr=1e-3, seed=seed)
        return weights(student)

    one = once(0)
    assert equal(one, once(0))
    assert not equal(one, once(1))


def test_losses_are_thinned():
    student = nn.Linear(1, 1)
    done = loop.train(student, Batches(), lambda batch, totals: (student.weight.sum() ** 2, {}), steps=700, lr=1e-5)
    assert len(done.losses) <= 301
    assert done.losses[-1][0] == 700


def test_lists_are_repeated_and_a_line_tells_of_it_without_a_terminal(capfd):
    student, teacher = llama(1), llama(2)
    loop.train(student, [Batches()[0], Batches()[1]], logit_objective(student, teacher), steps=5, lr=1e-3)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("training: step 5 of 5: loss ")


def test_tied_embeddings_stay_tied():
    student, teacher = llama(1), llama(2)
    loop.train(student, Batches(), logit_objective(student, teacher), steps=2, lr=1e-2)
    assert student.lm_head.weight is student.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"steps": -1}, InputError, "steps=-1"),
        ({"accumulate": 0}, InputError, "accumulate=0"),
        ({"schedule": "zigzag"}, InputError, "cosine"),
        ({"min_lr": 1.0}, InputError, "min_lr"),
        ({"precision": "int4"}, InputError, "bf16"),
        ({"patience": 2}, InputError, "evaluate"),
        ({"patience": -1}, InputError, "patience=-1"),
        ({"clip": float("nan")}, InputError, "clip=nan: give a number above 0, or none for no limit"),
        ({"weight_decay": -1.0}, InputError, "weight_decay=-1.0: give a number of at least 0"),
        ({"optimizer": "sgd", "momentum": float("nan")}, InputError, "momentum=nan"),
    ],
)
def test_bad_options_are_named(options, error, words):
    student = nn.Linear(1, 1)
    settings = {"steps": 1, "lr": 1e-3} | options
    with pytest.raises(error, match=words):
        loop.train(student, Batches(), lambda batch, totals: (student.weight.sum(), {}), **settings)


def test_a_batch_norm_that_sees_one_value_per_channel_is_one_line(tmp_path):
    norm = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    before = copy.deepcopy(norm.state_dict())

    def objective(batch, totals):
        return norm(batch["inputs"]).square().sum() / totals["examples"], {}

    feed = [{"inputs": torch.randn(1, 3)}]
    with pytest.raises(InputError, match=r"a batch of one example, .*: train on batches of at least 2 examples"):
        loop.train(norm, feed, objective, steps=2, lr=0.1, count=examples.count, checkpoint=tmp_path)
    assert all(torch.equal(before[name], value) for name, value in norm.named_parameters())
    assert not list(tmp_path.iterdir())

    def wrong(batch, totals):
        raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        loop.train(norm, feed, wrong, steps=2, lr=0.1, count=examples.count)


def test_a_student_without_trainable_parameters_is_refused():
    student = copy.deepcopy(llama(1)).requires_grad_(False)
    with pytest.raises(InputError, match="unfreeze"):
        loop.train(student, Batches(), logit_objective(student, llama(2)), steps=1, lr=1e-3)
    assert student.config.vocab_size == VOCABULARY


def test_what_is_frozen_answers_in_eval_mode_and_does_not_change():
    student, teacher = llama(0), llama(1)
    teacher.train()
    before, modes = weights(teacher), []

    def objective(batch, totals):
        modes.append(teacher.training)
        return logit_objective(student, teacher)(batch, totals)

    loop.train(student, Batches(), objective, steps=2, lr=1e-3, frozen=[teacher], progress=False)
    assert modes == [False, False]
    assert equal(weights(teacher), before)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("", {}),
        ("accumulate=4, precision=bf16", {"accumulate": 4, "precision": "bf16"}),
        ("clip=none,patience=3", {"clip": math.inf, "patience": 3}),
        ("trackers=tensorboard+wandb", {"trackers": ("tensorboard", "wandb")}),
        (["accumulate=4", "precision=bf16"], {"accumulate": 4, "precision": "bf16"}),
        ({"clip": 0.5, "trackers": ["wandb"]}, {"clip": 0.5, "trackers": ("wandb",)}),
    ],
)
def test_settings_left_to_the_user(given, found):
    assert loop.options(given) == found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("speed=3", "no setting 'speed': it has accumulate"),
        ("accumulate", "write name=value"),
        ("every=x", "training setting every=x: give a whole number of at least 1"),
        ("every=0", "training setting every=0: give a whole number of at least 1"),
        ("every=2.5", "every=2.5"),
        ({"every": 2.5}, "every=2.5"),
        ({"every": float("inf")}, "every=inf"),
        ("accumulate=-1", "accumulate=-1"),
        ("evaluate_every=0", "evaluate_every=0"),
        ("patience=-1", "training setting patience=-1: give a whole number of at least 1"),
        ("patience=0", "patience=0"),
        ("precision=int4", "precision=int4: give auto, bf16, fp16 or fp32"),
        ({"trackers": 3}, "trackers=3: give names"),
        ("clip=nan", "clip=nan: give a number above 0, or none"),
        ("clip=-1", "clip=-1"),
        ({"clip": 0}, "clip=0"),
    ],
)
def test_settings_that_are_none_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        loop.options(given)


def _network_objective(net):
    def objective(batch, totals):
        loss = nn.functional.cross_entropy(net(batch["inputs"]), batch["labels"], reduction="sum")
        return loss / totals["examples"], {}

    return objective


def _network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def _feed():
    draw = torch.Generator().manual_seed(0)
    inputs = torch.rand(64, 6, generator=draw)
    return examples.batches(examples.Examples(inputs, inputs[:, :3].argmax(1)), batch=16, seed=1)


def test_examples_train_with_sgd_as_torch_does():
    net, other = _network(), _network()
    done = loop.train(
        net, _feed(), _network_objective(net), steps=10, lr=0.1, warmup=0, schedule="constant", optimizer="sgd",
        weight_decay=0.0, clip=None, count=examples.count,
    )  # fmt: skip
    assert done.tokens == 160
    assert done.settings["optimizer"] == "sgd"
    sgd = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    other.train()
    for index in range(10):
        sgd.zero_grad()
        _network_objective(other)(_feed()[index], {"examples": 16})[0].backward()
        sgd.step()
    for one, two in zip(net.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_sgd_trains_a_part_whose_first_gradient_comes_late(tmp_path, momentum):
    def late(net, index):
        rows = _feed()[index]["inputs"]
        return (net[0](rows).square() if index < 3 else net(rows)).sum() / 16

    def go(steps, folder=None):
        net = _network()
        loop.train(
            net, range(6), lambda index, totals: (late(net, index), {}), steps=6, lr=0.01, warmup=0, clip=None,
            schedule="constant", optimizer="sgd", momentum=momentum, weight_decay=0.0, checkpoint=folder, every=2,
            count=lambda index: {"examples": 16} if index < steps else pytest.fail("killed"),
        )  # fmt: skip
        return net

    other = _network()
    sgd = torch.optim.SGD(other.parameters(), lr=0.01, momentum=momentum, nesterov=momentum > 0)
    for index in range(6):
        sgd.zero_grad()
        late(other, index).backward()
        sgd.step()
    whole = go(6)
    for one, two in zip(whole.parameters(), other.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-6)
    for killed in (2, 4):
        with pytest.raises(pytest.fail.Exception, match="killed"):
            go(killed, tmp_path / str(killed))
        assert equal(weights(go(6, tmp_path / str(killed))), weights(whole))


@pytest.mark.parametrize("optimizer", ["sgd", "own"])
def test_other_optimisers_resume_with_the_same_bytes(tmp_path, optimizer):
    def own(groups):
        return torch.optim.RMSprop(groups, lr=1.0, momentum=0.5)

    def go(folder, until):
        net = _network()
        objective = _network_objective(net)
        seen = []

        def stopping(batch, totals):
            seen.append(1)
            if len(seen) > until:
                raise KeyboardInterrupt
            return objective(batch, totals)

        settings = {"optimizer": own if optimizer == "own" else optimizer, "momentum": 0.5}
        try:
            loop.train(
                net, _feed(), stopping, steps=12, lr=0.01, checkpoint=folder, every=4, count=examples.count, **settings
            )
        except KeyboardInterrupt:
            assert until == 6
        return net

    whole = go(tmp_path / "whole", 100)
    go(tmp_path / "parts", 6)
    assert equal(weights(go(tmp_path / "parts", 100)), weights(whole))


def test_an_unknown_optimiser_is_refused():
    net = _network()
    with pytest.raises(InputError, match="optimizer='lion': give 'adamw', 'adamw8bit', 'sgd' or a"):
        loop.train(net, _feed(), _network_objective(net), steps=1, lr=0.1, optimizer="lion", count=examples.count)


def test_float16_scales_the_loss_and_leaves_out_steps_that_do_not_fit(tmp_path):
    def train(precision, big=1.0, steps=6, **how):
        torch.manual_seed(0)
        model, kinds = nn.Linear(4, 4), set()

        def objective(batch, totals):
            out = model(batch)
            kinds.add(out.dtype)
            return big * (out.float() - 1).square().sum() / totals["examples"], {}

        feed = [torch.eye(4), torch.ones(1, 4)]
        done = loop.train(
            model, feed, objective, steps=steps, lr=0.1 / big, optimizer="sgd", momentum=0, clip=None, progress=False,
            weight_decay=0.0, precision=precision, count=lambda batch: {"examples": len(batch)}, **how,
        )  # fmt: skip
        return model.weight.detach(), kinds, done

    exact, near = train("fp32", 0.1), train("fp16", 0.1)
    assert near[1] == {torch.float16}
    assert near[2].settings["precision"] == "fp16"
    torch.testing.assert_close(near[0], exact[0], rtol=0, atol=2e-3)
    tiny = 1e-7  # gradients that float16 has none of, without a scale
    torch.testing.assert_close(train("fp16", tiny)[0], train("fp32", tiny)[0], rtol=0, atol=2e-3)
    huge, _, _ = train("fp16", 1e6, checkpoint=tmp_path)
    assert torch.isfinite(huge).all()
    state = json.loads(storage.read(tmp_path / "training.safetensors")[1])["state"]
    assert state["scale"] < 2**16, "steps that did not fit were left out"
    with pytest.raises(NumericalError, match=r"norm of the gradient is (inf|nan) at step"):
        train("fp16", 1e37, 30)


def test_a_frozen_network_answers_from_its_own_device():
    places = []
    with second_device.present():
        student, teacher = (nn.Sequential(nn.Linear(4, 3)) for _ in range(2))

        def objective(batch, totals):
            with torch.no_grad():
                told = teacher(batch["x"])
            places.append((told.device.type, teacher[0].weight.device.type))
            return (student(batch["x"]) - told).square().sum() / totals["examples"], {}

        for place in ("cpu", None):
            loop.train(
                student, [{"x": torch.randn(2, 4)}], objective, steps=1, lr=0.1, frozen=[teacher],
                count=lambda batch: {"examples": 2}, teacher_device=place,
            )  # fmt: skip
        assert teacher[0].weight.device.type == "cpu"
        with pytest.raises(InputError, match="'cuda:9' can't hold"):
            loop.train(student, [], objective, steps=1, lr=0.1, teacher_device="cuda:9")
    assert places == [(second_device.NAME, "cpu"), (second_device.NAME, second_device.NAME)]
