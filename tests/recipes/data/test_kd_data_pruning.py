"""Data pruning with a teacher: what stays, what is learned, whom it trusts, and what bad input gets."""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

import processes
import secateur
import small_vision as vision
import toys
import trainings
from pictures import class_folder
from recipes.vision import nets
from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.data.examples import Examples
from secateur.errors import BudgetError, DataError, InfeasibleError, InputError
from secateur.methods import example_scores
from secateur.recipes.data import kd_data_pruning as module
from secateur.recipes.data.kd_data_pruning import kd_data_pruning
from secateur.recover.distillation.teachers import Told
from secateur.reports import display
from secateur.runs import keywords
from secateur.subjects import ExampleSet, Traced, open_traced, reload_traced
from secateur.subjects.network.recording import Example
from secateur.vocabulary import Budget, Training

DATA, HELD_OUT = nets.data(240), nets.data(200, seed=5)
QUICK = {"batch": 24, "epochs": 4.0, "alpha": 0.5, "runs": 1, "score_epochs": 1.0}


def mlp(width: int = 16, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 4))


def redrawn(share: float) -> Examples:
    """The same images with a share of the labels drawn anew."""
    draw = np.random.default_rng(7)
    wrong = torch.from_numpy(draw.random(len(DATA)) < share)
    return replace(DATA, labels=torch.where(wrong, torch.from_numpy(draw.integers(0, 4, len(DATA))), DATA.labels))


@functools.cache
def teacher(noise: float = 0.0) -> Traced:
    model = mlp()
    vision.fit(model, redrawn(noise), epochs=12, batch=24, optimizer="adamw", lr=5e-3)
    return Traced(model, Example.of(DATA.inputs[:1]))


def chosen(**options):
    return keywords.check_options(kd_data_pruning, {**QUICK, **options})


def results(root, budgets=("examples=20%",), data=DATA, noise=0.0, **options):
    with Run.open(root, {}) as run:
        wanted = [Budget.parse(one) for one in budgets]
        return list(kd_data_pruning(teacher(noise), data, wanted, run, **chosen(**options)))


def weights(one) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in one.subject.model.parameters()])


@pytest.fixture(scope="module")
def fifth(tmp_path_factory):
    root = tmp_path_factory.mktemp("fifth") / "run"
    before = [weight.clone() for weight in teacher().model.parameters()]
    found = results(root)[0]
    assert all(torch.equal(a, b) for a, b in zip(before, teacher().model.parameters(), strict=True))
    assert all(weight.grad is None for weight in teacher().model.parameters())  # the teacher gets no gradient
    return root, found


def test_the_share_of_each_class_and_the_receipt_agree(fifth):
    root, found = fifth
    kept = ExampleSet.load(DATA, root / "work" / "kept-examples=20%")
    assert len(kept) == 48 == found.predicted["examples"] == found.cut.after["examples"]
    assert "bytes" not in {**found.predicted, **found.cut.before, **found.cut.after}, "those of data are no network's"
    sizes = np.bincount(DATA.labels.numpy())
    assert np.abs(np.bincount(kept.labels) - 0.2 * sizes).max() < 1
    assert found.cut.removed["examples"] == (192, 240)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_even_classes_keep_their_rounded_share(tmp_path, share):
    even = DATA.take(np.concatenate([np.flatnonzero(DATA.labels.numpy() == c)[:40] for c in range(4)]))
    found = results(tmp_path / "run", [f"examples={share:.0%}"], even, dry_run=True)[0]
    assert found.cut.after["examples"] == sum(round(share * 40) for _ in range(4))


def test_soft_outputs_are_those_of_the_live_teacher_to_the_precision_of_float16(fifth):
    root, _ = fifth
    kept = ExampleSet.load(DATA, root / "work" / "kept-examples=20%")
    stored = load_file(root / "work" / "soft-examples=20%.safetensors")
    assert stored["logits"].dtype == torch.float16
    assert torch.equal(stored["examples"], torch.from_numpy(kept.kept))
    with torch.no_grad():
        live = teacher().model(kept.data.inputs)
    below = live - live.amax(-1, keepdim=True)
    assert ((stored["logits"].float() - below).abs() <= below.abs() * 2**-11 + 1e-7).all()
    feed = examples.batches(kept.data, batch=10, seed=3)
    for index in (0, 3, 17):
        with torch.no_grad():
            live = teacher().model(feed[index]["inputs"])
        said = Told(feed, feed.places, {"logits": stored["logits"]})[index]["logits"]
        assert said.dtype == torch.float32
        torch.testing.assert_close((said / 4).softmax(-1), (live / 4).softmax(-1), atol=2e-4, rtol=0)


def test_images_are_learned_as_the_teacher_saw_them(tmp_path, monkeypatch):
    """Whatever their transform does in training: the teacher is asked once, about each image as it is measured."""
    seen, real = [], module.Told
    monkeypatch.setattr(module, "Told", lambda feed, *more: seen.append(feed) or real(feed, *more))
    data = examples.with_transform(examples.read(class_folder(tmp_path / "images")), "shift", "1x8x8")
    assert data.inputs.draws_anew
    asked = partial(example_scores.ask_logits, teacher().inputs)
    module.train_student(
        data, torch.zeros(12, 4), 0.5, training=Training(batch=4, lr=0.1), ask=asked, build=lambda seed: (mlp(), ()),
        steps=lambda part: 1, temperature=4.0, seed=0,
    )  # fmt: skip
    for index in (0, 4):
        assert torch.equal(seen[0][index]["inputs"], data.inputs[seen[0].places(index)])


def test_what_new_networks_drew_without_a_rule_is_told(tmp_path):
    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.out = nn.Parameter(torch.ones(64)), nn.Linear(64, 4)

        def forward(self, x):
            return self.out(x.flatten(1) + self.token)

    subject, wanted = Traced(Token(), Example.of(DATA.inputs[:1])), [Budget.parse("examples=20%")]
    with Run.open(tmp_path, {}) as run:
        (found,) = kd_data_pruning(subject, DATA, wanted, run, **chosen(dry_run=True))
    assert "drawn from N(0, 0.02) for want of a rule: token" in found.notes


def test_training_stops_by_examples_that_were_held_out(tmp_path):
    found = results(tmp_path / "run", training="patience=1,evaluate_every=2")[0]
    assert found.recovery.settings["evaluations"]


def test_a_stored_and_a_live_teacher_teach_alike(fifth, tmp_path, monkeypatch):
    """The weights of the student that learned from what is stored, and of one that learned from float32 outputs."""
    _, found = fifth
    with torch.no_grad():
        live = {"logits": teacher().model(DATA.inputs)}
    monkeypatch.setattr(
        module,
        "ask_teacher",
        lambda model, ask, left, *, batch: {"logits": live["logits"][left.kept]},
    )
    other = results(tmp_path / "live")[0]
    torch.testing.assert_close(weights(found), weights(other), atol=2e-3, rtol=0)


def test_larger_budgets_keep_what_smaller_ones_do(tmp_path):
    for score in ("random", "el2n"):
        results(tmp_path / score, ["examples=10%", "examples=40%"], score=score, epochs=0.1)
        few, many = (
            set(ExampleSet.load(DATA, tmp_path / score / "work" / f"kept-examples={share}").kept)
            for share in ("10%", "40%")
        )
        assert few < many


def test_alpha_0_is_plain_cross_entropy_to_the_bit(tmp_path):
    net = mlp(seed=3)
    batch = {**DATA.take(range(20)).batch(), "teacher_logits": torch.randn(20, 4)}
    loss, _ = module.mixture(lambda part: net(part["inputs"]), 0.0, 4.0)(batch, {"examples": 20})
    plain = functional.cross_entropy(net(batch["inputs"]), batch["labels"], reduction="sum") / 20
    ours, theirs = (torch.autograd.grad(one, list(net.parameters())) for one in (loss, plain))
    assert torch.equal(loss, plain)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    kept = results(tmp_path / "run", alpha=0.0, epochs=2.0)[0]
    part = ExampleSet.load(DATA, tmp_path / "run" / "work" / "kept-examples=20%").data
    alone, _ = module.draw_network(teacher().model, "", seed=0)
    vision.fit(alone, part, epochs=10, batch=24, seed=0, lr=0.1, warmup=0.05, clip=1.0)  # fmt: skip
    expected = torch.cat([weight.detach().flatten() for weight in alone.parameters()])
    assert torch.equal(weights(kept), expected)  # 2 epochs of 10 batches on all are 10 epochs of 2 on a fifth


def test_alpha_1_ignores_labels(tmp_path):
    shuffled = Examples(DATA.inputs, DATA.labels.flip(0))
    how = {"alpha": 1.0, "balanced": False}
    one, two = (results(tmp_path / name, data=data, **how)[0] for name, data in (("a", DATA), ("b", shuffled)))
    assert torch.equal(weights(one), weights(two))
    half = [results(tmp_path / name, data=data, balanced=False)[0] for name, data in (("c", DATA), ("d", shuffled))]
    assert not torch.equal(weights(half[0]), weights(half[1]))


def test_the_loss_is_the_mixture_of_the_formula():
    net, said = mlp(seed=3), torch.randn(20, 4)
    batch = {**DATA.take(range(20)).batch(), "teacher_logits": said}
    loss, parts = module.mixture(lambda part: net(part["inputs"]), 0.25, 4.0)(batch, {"examples": 20})
    logits = net(batch["inputs"])
    far = functional.kl_div((logits / 4).log_softmax(-1), (said / 4).softmax(-1), reduction="batchmean")
    torch.testing.assert_close(loss, 0.75 * functional.cross_entropy(logits, batch["labels"]) + 0.25 * 16 * far)
    assert set(parts) == {"labels", "teacher"}


def test_equal_iterations_and_equal_epochs(tmp_path):
    steps = {
        equal: results(tmp_path / equal, ["examples=20%"], equal=equal)[0].recovery.steps
        for equal in ("iterations", "epochs")
    }
    assert steps == {"iterations": 40, "epochs": 8}


def test_alpha_never_rises_with_the_share():
    grid = {0.05: [0, 0, 0, 0, 9], 0.2: [0, 0, 9, 0, 0], 1.0: [0, 0, 0, 9, 0]}  # best: 1, 0.5, 0.75
    assert module.choose_alpha(grid, 0.05) == 1.0
    assert module.choose_alpha(grid, 0.2) == pytest.approx(0.625)  # 0.5 and 0.75 rise: their mean stands for both
    assert module.choose_alpha(grid, 0.6) == pytest.approx(0.625)
    assert module.choose_alpha(grid, 0.1) == pytest.approx(1.0 - 0.375 / 2)  # half-way by log
    assert module.choose_alpha(grid, 0.001) == 1.0
    assert module.choose_alpha({0.3: [5, 5, 5, 5, 5]}, 0.7) == 0.0  # of equals the smallest
    shares = np.linspace(0.01, 1, 50)
    assert (np.diff([module.choose_alpha(grid, share) for share in shares]) <= 1e-12).all()


def test_auto_looks_for_alpha_once_on_a_part_that_it_does_not_train_on(tmp_path, monkeypatch):
    asked = []
    real = module.train_student

    def noted(data, said, alpha, **how):
        asked.append((len(data), alpha))
        return real(data, said, alpha, **how)

    monkeypatch.setattr(module, "train_student", noted)
    how = {"alpha": "auto", "tried": (0.1, 0.5), "trials": 1, "held": 0.25, "epochs": 1.0}
    found = results(tmp_path / "run", ["examples=10%", "examples=50%"], **how)
    assert [pair for pair in asked if pair[0] == 18] == [(18, alpha) for alpha in module.WEIGHTS]  # a tenth of 180
    assert [pair[0] for pair in asked].count(90) == len(module.WEIGHTS)
    assert len(asked) == 2 * len(module.WEIGHTS) + 2
    alphas = [float(one.notes[0].split("alpha ")[1]) for one in found]
    assert alphas[0] >= alphas[1]
    asked.clear()
    again = results(tmp_path / "run", ["examples=10%", "examples=50%"], **how)
    assert len(asked) == 2  # the table stands in the run, and the trainings' checkpoints
    assert all(torch.equal(weights(a), weights(b)) for a, b in zip(found, again, strict=True))


def test_scores_see_no_more_than_the_data_that_is_given(tmp_path, monkeypatch):
    """What a run holds out never enters a score: they are of the training part, row by row."""
    seen = []
    real = module.score_by_training
    monkeypatch.setattr(
        module, "score_by_training", lambda model, data, *a, **k: (seen.append(data), real(model, data, *a, **k))[1]
    )
    secateur.run(
        "kd_data_pruning", teacher(), DATA, "examples=20%", tmp_path / "out", score="el2n", seed=4, threads=1,
        **{**QUICK, "epochs": 0.5},
    )  # fmt: skip
    train, held_out = DATA.split(seed=4, stratified=True)
    assert [data.digest for data in seen] == [train.digest]
    rows = {tuple(row.flatten().tolist()) for row in seen[0].inputs}
    assert not any(tuple(row.flatten().tolist()) in rows for row in held_out.inputs)


def test_another_student_learns_too(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), "
        "nn.Linear(8, 4))\n\ndef none():\n    return 3\n"
    )
    found = results(tmp_path / "run", student=f"{tmp_path}/net.py:build")[0]
    assert [tuple(w.shape) for w in found.subject.model.parameters()] == [(8, 64), (8,), (4, 8), (4,)]
    with pytest.raises(InputError, match="returned int: expected a torch"):
        results(tmp_path / "other", student=f"{tmp_path}/net.py:none")


@pytest.mark.parametrize(
    ("built", "words"),
    [
        ("nn.Linear(64, 6)", "tells 6 classes, its teacher 4: build it with 4 outputs"),
        ("nn.Linear(64, 3)", "tells 3 classes, its teacher 4: build it with 4 outputs"),
        ("nn.Unflatten(1, (4, 4, 4))", r"net.py:build: the model gives \(2, 4, 4, 4\): a classifier gives"),
        ("nn.Linear(65, 4)", "can't take quarters: mat1 and mat2 shapes"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_student_that_does_not_fit_is_refused_before_anything_is_scored(tmp_path, monkeypatch, built, words, dry_run):
    net = tmp_path / "net.py"
    net.write_text(f"from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Flatten(), {built})\n")
    monkeypatch.setattr(module, "score_by_training", lambda *a, **k: pytest.fail("scored"))
    how = {**QUICK, "student": f"{net}:build", "score": "el2n", "dry_run": dry_run}
    with pytest.raises(InputError, match=words) as caught:
        secateur.run("kd_data_pruning", teacher(), DATA, "examples=20%", tmp_path / "out", **how)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_another_student_learns_from_an_earlier_run_without_its_teacher(fifth, tmp_path):
    """The same weights as with the teacher, though the network given now knows nothing."""
    root, first = fifth
    other = Traced(mlp(seed=9), Example.of(DATA.inputs[:1]))
    with Run.open(tmp_path / "again", {}) as run:
        budgets = [Budget.parse("examples=20%")]
        (again,) = kd_data_pruning(other, DATA, budgets, run, **chosen(soft=str(root)))
    assert torch.equal(weights(again), weights(first))
    assert (again.cut.removed, again.predicted) == (first.cut.removed, first.predicted)
    assert again.notes == (f"examples and outputs of {root}, alpha 0.5",)
    for name in ("kept-examples=20%/index.npz", "soft-examples=20%.safetensors"):  # a third may learn from the second
        assert (tmp_path / "again/work" / name).read_bytes() == (root / "work" / name).read_bytes()
    wide = Traced(mlp(32), Example.of(DATA.inputs[:1]))
    with Run.open(tmp_path / "wide", {}) as run:
        (wider,) = kd_data_pruning(wide, DATA, budgets, run, **chosen(alpha=1.0, soft=str(root)))
    assert vision.accuracy(wider.subject.model, HELD_OUT) > vision.accuracy(mlp(32), HELD_OUT)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": "auto"}, "alpha=auto asks the teacher for more: give a weight"),
        ({"score": "el2n"}, "leave out score=el2n"),
        ({"budgets": ["examples=20%", "examples=30%"]}, "for examples=30%: it has those of examples=20%"),
        ({"soft": "nowhere"}, "soft=nowhere holds no outputs of a teacher .* give the folder of a run of kd"),
        (
            {"data": HELD_OUT},
            "give the data that it was made of, .* held out by the seed, unless held_out names other data",
        ),
        ({"student": "six"}, "tells 6 classes, its teacher 4"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_an_earlier_run_that_does_not_fit_is_refused(fifth, tmp_path, options, words, dry_run):
    if "student" in options:
        (tmp_path / "net.py").write_text(
            "from torch import nn\n\ndef six():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6))\n"
        )
        options = {"student": f"{tmp_path}/net.py:six"}
    with pytest.raises(InputError, match=words) as caught:
        results(tmp_path / "run", **{"soft": str(fifth[0]), "dry_run": dry_run, **options})
    assert len(str(caught.value).splitlines()) == 1


@pytest.fixture(scope="module")
def ranked(tmp_path_factory):
    """A run with scores of 2 trainings, and how to run with other options in a folder of its name."""
    root = tmp_path_factory.mktemp("ranked")

    def run(out, budget="examples=30%", data=DATA, network=None, **options):
        given = {**QUICK, "epochs": 1.0, "score": "el2n", "runs": 2, "threads": 1, **options}
        return secateur.run("kd_data_pruning", network or teacher(), data, budget, root / out, **given)

    run("first", "examples=20%")
    return root, run


@pytest.mark.parametrize(
    ("scored", "how"),
    [
        ("first", {"alpha": 1.0, "budget": "examples=10%"}),
        ("first", {"student": True}),
        ("first/work/kept-examples=20%", {}),
        ("first/work/kept-examples=20%/index.npz", {"student": True}),
    ],
)
def test_scores_of_an_earlier_run_or_index_serve_another_budget_alpha_and_student(ranked, monkeypatch, scored, how):
    root, run = ranked
    (root / "small.py").write_text(
        "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), "
        "nn.Linear(8, 4))\n"
    )
    how = {**how, **({"student": f"{root / 'small.py'}:build"} if "student" in how else {})}
    budget = how.get("budget", "examples=30%")
    for folder in ("anew", "took", "third"):
        shutil.rmtree(root / folder, ignore_errors=True)
    run("anew", **how)
    monkeypatch.setattr(module, "score_by_training", lambda *given, **more: pytest.fail("scored anew"))
    run("took", scored=str(root / scored), **how)
    third = ["third"] if scored == "first" else []
    if third:
        run("third", scored=str(root / "took"), **how)
    else:
        with pytest.raises(InputError, match=r"has its scores from an index, .* give that, .*kept-examples=20%"):
            run("third", scored=str(root / "took"), **how)
    for name in ("model.safetensors", f"work/kept-{budget}/index.npz", f"work/soft-{budget}.safetensors"):
        anew = (root / "anew" / name).read_bytes()
        assert all((root / folder / name).read_bytes() == anew for folder in ("took", *third))


def test_a_run_with_scores_taken_goes_on_without_the_earlier_one(ranked, tmp_path):
    root, run = ranked
    shutil.copytree(root / "first", tmp_path / "gone")
    before = run("resumed", scored=str(tmp_path / "gone"))
    shutil.rmtree(tmp_path / "gone")
    assert run("resumed", scored=str(tmp_path / "gone"))[0].after == before[0].after


def test_scores_that_are_not_there_or_of_something_else_are_refused(ranked, tmp_path, monkeypatch):
    root, run = ranked
    run("chance", score="random", epochs=0.1)
    for name in ("short", "damaged"):
        shutil.copytree(root / "first", root / name)
    (root / "short" / "work" / "el2n-1.safetensors").unlink()
    broken = root / "damaged" / "work" / "el2n-0.safetensors"
    broken.write_bytes(broken.read_bytes()[:40])
    monkeypatch.setattr(module, "score_by_training", lambda *given, **more: pytest.fail("scored anew"))

    def refused(match, scored="first", **how):
        with pytest.raises(InputError, match=match) as caught:
            run("wrong", scored=str(root / scored), **how)
        assert "\n" not in str(caught.value)
        assert not (root / "wrong").exists(), "a new run that was refused leaves nothing"

    refused("scored=.*none holds no scores of el2n: give the folder of a run of kd_data_pruning, or an", scored="none")
    refused("scored=.*chance holds no scores of el2n: give", scored="chance")
    refused("holds no scores of grand: give", score="grand")
    refused("was scored with data_sha256=.*: give the same, or leave scored out", data=redrawn(0.3))
    refused("was scored with held_out_sha256=None, not ", held_out=HELD_OUT)
    refused("was scored with model_sha256=.*: give the same, or leave scored out", network=teacher(0.3))
    refused("was scored with seed=0, not 1", seed=1)
    refused("was scored with runs=2, not 1", runs=1)
    refused("was scored with score_epochs=1.0, not 2.0", score_epochs=2)
    refused("was scored with lr=0.1, not 0.05", lr=0.05)
    refused("was scored with training precision=None, not precision=bf16", training="precision=bf16")
    refused("lacks el2n-1, a training for scores: let that run finish first", scored="short")
    refused("damaged: .*el2n-0.safetensors is damaged", scored="damaged")
    refused("score=random takes none: name theirs, such as el2n, or leave scored out", score="random")
    refused("soft=.* tells what stays: leave scored out", score="random", soft=str(root / "first"))
    index = "first/work/kept-examples=20%"
    refused("is an index without scores of grand: it has those of el2n", scored=index, score="grand")
    refused("give the data that it was made of, .* held out by the seed, unless", scored=index, seed=1)
    kept = ExampleSet.load(DATA.split(seed=0, stratified=True)[0], root / index).data
    refused("has scores of 216 examples, of which .* holds the 43", scored=index, data=kept, held_out=HELD_OUT)
    with pytest.raises(InputError, match="has scores of 216 examples, not 240: its data have changed"):
        results(tmp_path / "run", score="el2n", runs=2, scored=str(bare(root / "first", tmp_path / "bare")))


def bare(run, copy):
    """A copy of a run whose record says nothing, as that of a run of one's own may."""
    shutil.copytree(run, copy)
    (copy / "run.yaml").write_text("{}\n")
    return copy


def test_an_index_of_prune_data_gives_its_scores(tmp_path, monkeypatch):
    how = {"epochs": 1.0, "batch": 24, "lr": 5e-3}
    secateur.prune_data(DATA, "examples=20%", tmp_path / "cut", score="el2n", model=mlp(), runs=1, **how)
    monkeypatch.setattr(module, "score_by_training", lambda *given, **more: pytest.fail("scored anew"))
    index = tmp_path / "cut" / "examples=20%"
    results(tmp_path / "run", score="el2n", scored=str(index), epochs=0.1)
    ours, theirs = (ExampleSet.load(DATA, one) for one in (tmp_path / "run/work/kept-examples=20%", index))
    assert ours.kept.tolist() == theirs.kept.tolist()
    assert (ours.scores["el2n"] == theirs.scores["el2n"]).all()


@pytest.fixture(scope="module")
def discarded(tmp_path_factory):
    """A run on all of the data that packed what it keeps, another student of it that had the data, and a network."""
    root = tmp_path_factory.mktemp("discarded")
    (root / "nets.py").write_text(
        "import torch\nfrom torch import nn\n\ndef student():\n    torch.manual_seed(5)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 4))\n"
    )
    named = replace(DATA, classes=("north-west", "north-east", "south-west", "south-east"))
    named.save(root / "data.npz")
    HELD_OUT.save(root / "test.npz")
    how = {"budget": "examples=20%", "held_out": root / "test.npz", **QUICK}
    secateur.run("kd_data_pruning", teacher(), root / "data.npz", out=root / "first", pack=True, **how)
    how |= {"model": f"{root}/nets.py:student", "soft": str(root / "first")}
    (row,) = secateur.run("kd_data_pruning", data=root / "data.npz", out=root / "with", **how)
    return root, how, row


PACKED = "work/kept-examples=20%/examples.npz"


@pytest.mark.parametrize("data", [PACKED, "work/kept-examples=20%"])
def test_the_full_set_and_the_teacher_can_be_discarded(discarded, tmp_path, monkeypatch, data):
    """The same student, bit for bit, of what is packed and the soft outputs alone; its evidence tells the same cut."""
    root, how, before = discarded
    shutil.copytree(root / "first", tmp_path / "first", ignore=shutil.ignore_patterns("*.pt2", "model.*", "train-*"))
    shutil.copy(root / "nets.py", tmp_path)
    monkeypatch.setattr(module, "ask_teacher", lambda *a, **k: pytest.fail("the teacher was asked"))
    how = {**how, "model": f"{tmp_path}/nets.py:student", "soft": str(tmp_path / "first"), "pack": True}
    (row,) = secateur.run("kd_data_pruning", data=tmp_path / "first" / data, out=tmp_path / "second", **how)
    ours, theirs = (load_file(place / "model.safetensors") for place in (tmp_path / "second", root / "with"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert row.verdict == before.verdict == "met"
    assert row.cut.removed["examples"] == before.cut.removed["examples"] == (192, 240)
    assert row.predicted["examples"] == row.cut.after["examples"] == 48
    assert row.recovery.steps == before.recovery.steps
    assert row.after["accuracy"] == before.after["accuracy"]
    assert row.after["accuracy"].samples == len(HELD_OUT)
    for name in ("index.npz", "examples.npz"):  # a third may learn from the second
        kept = "work/kept-examples=20%"
        assert (tmp_path / "second" / kept / name).read_bytes() == (root / "first" / kept / name).read_bytes()
    assert examples.read(tmp_path / "second" / PACKED).classes[0] == "north-west"
    (again,) = secateur.run("kd_data_pruning", data=tmp_path / "first" / data, out=tmp_path / "second", **how)
    assert again.after == row.after


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"held_out": None},
            "or all of the examples that it keeps; a part of it is held out by the seed, unless held_out",
        ),
        ({"data": HELD_OUT}, "is an index of data.npz, 240 examples of .*; quarters has 200 of .*: give the data that"),
        ({"budget": "examples=30%"}, "holds no outputs of a teacher for examples=30%: it has those of examples=20%"),
        ({"alpha": "auto"}, "alpha=auto asks the teacher for more: give a weight"),
        ({"old": True}, "give the data that it was made of; it is older than packed examples, and does not tell them"),
    ],
)
def test_packed_examples_that_do_not_fit_are_refused(discarded, tmp_path, changed, words):
    root, how, _ = discarded
    if changed.get("old"):
        shutil.copytree(root / "first", tmp_path / "old")
        index = tmp_path / "old/work/kept-examples=20%/index.npz"
        arrays = dict(np.load(index))
        np.savez(index, **{name: one for name, one in arrays.items() if name != "kept_digest"})
        changed = {"soft": str(tmp_path / "old")}
    given = {**how, "data": root / "first" / PACKED, **changed}
    with pytest.raises(InputError, match=words) as caught:
        secateur.run("kd_data_pruning", out=tmp_path / "out", **given)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_run_that_was_split_packs_what_it_keeps_of_its_own_part(tmp_path):
    """Nothing of what it held out is packed, and what it packed needs held-out data of its own."""
    secateur.run("kd_data_pruning", teacher(), DATA, "examples=20%", tmp_path / "first", pack=True, **QUICK)
    packed = examples.read(tmp_path / "first" / PACKED)
    train, held = DATA.split(seed=0)
    assert not np.isin(packed.keys(), held.keys()).any()
    assert np.isin(packed.keys(), train.keys()).all()
    how = {**QUICK, "soft": str(tmp_path / "first"), "held_out": held}
    (row,) = secateur.run("kd_data_pruning", teacher(), packed, "examples=20%", tmp_path / "second", **how)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert row.cut.removed["examples"] == (216 - len(packed), 216)


def test_what_can_not_be_packed_is_refused_before_anything_is_scored(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "score_by_training", lambda *a, **k: pytest.fail("scored"))
    wide = replace(DATA, inputs=DATA.inputs.double())
    with pytest.raises(DataError, match=r"quarters has inputs of float64, .* give float32 or int64"):
        results(tmp_path / "run", data=wide, pack=True, score="el2n")


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_outputs_that_are_damaged_or_of_other_examples_are_refused(fifth, tmp_path, damage):
    shutil.copytree(fifth[0], tmp_path / "first")
    path = tmp_path / "first/work/soft-examples=20%.safetensors"
    stored = load_file(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:40])
    else:
        save_file({**stored, "examples": stored["examples"] + 1}, path)
    with pytest.raises(InputError, match="is damaged" if damage == "cut" else "outputs of other examples"):
        results(tmp_path / "run", soft=str(tmp_path / "first"))


@pytest.mark.parametrize("score", ["random", "el2n", "forgetting", "grand"])
def test_a_teacher_is_worth_more_than_labels_of_which_some_are_wrong(tmp_path, score):
    accuracy = {}
    for alpha in (0.0, 1.0):
        how = {"score": score, "alpha": alpha, "noise": 0.3, "data": redrawn(0.3), "epochs": 20}
        found = [results(tmp_path / f"{alpha}-{seed}", seed=seed, **how)[0] for seed in range(2)]
        accuracy[alpha] = np.mean([vision.accuracy(one.subject.model, HELD_OUT) for one in found])
    assert accuracy[1.0] > accuracy[0.0]


def test_labels_alone_stand_beside_the_result_and_are_the_student_of_alpha_0(tmp_path):
    (found,) = results(tmp_path / "both", labels_alone=True)
    (plain,), (alone,) = results(tmp_path / "plain"), results(tmp_path / "alone", alpha=0.0)
    assert torch.equal(weights(found), weights(plain)), "the result is the same with and without it"
    beside = torch.cat([weight.detach().flatten() for weight in found.beside["labels alone"].model.parameters()])
    assert torch.equal(beside, weights(alone))
    assert not plain.beside
    assert not results(tmp_path / "dry", labels_alone=True, dry_run=True)[0].beside


def test_labels_alone_are_measured_on_what_the_result_is(tmp_path):
    how = {**QUICK, "threads": 1, "labels_alone": True}
    (row,) = secateur.run("kd_data_pruning", teacher(), DATA, "examples=20%", tmp_path / "out", **how)
    theirs = row.baselines["labels alone"]
    train, held_out = DATA.split(seed=0, stratified=True)
    (alone,) = results(tmp_path / "alone", data=train, alpha=0.0)
    assert theirs["accuracy"].value == pytest.approx(vision.accuracy(alone.subject.model, held_out))
    assert theirs["params"] == row.after["params"]
    assert "latency" not in theirs
    expected = f"labels alone: Accuracy {display.text('accuracy', theirs['accuracy'])} beside "
    assert f"{expected}{display.text('accuracy', row.after['accuracy'])}" in row.cut.notes
    assert "labels alone" in (tmp_path / "out" / "report.html").read_text()
    again = secateur.run("kd_data_pruning", teacher(), DATA, "examples=20%", tmp_path / "out", **how)
    assert again[0].baselines == row.baselines


def test_a_run_from_the_command_line_is_judged_by_its_examples(tmp_path):
    np.savez(tmp_path / "data.npz", inputs=DATA.inputs.numpy(), labels=DATA.labels.numpy())
    torch.save(teacher().model.state_dict(), tmp_path / "teacher.pt")
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\ndef build():\n    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), "
        "nn.ReLU(), nn.Linear(16, 4))\n    net.load_state_dict(torch.load('teacher.pt', weights_only=True))\n"
        "    return net\n"
    )
    done = processes.run(
        tmp_path, "run", "kd_data_pruning", "net.py:build", "--data", "data.npz", "--budget", "examples=20%", "--out",
        "out", "--alpha", "0.5", "--epochs", "4", "--batch", "24", "--threads", "1",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert "verdict: met" in done.stdout
    row = json.loads((tmp_path / "out" / "evidence.json").read_text())["results"][0]
    assert row["predicted"]["examples"] == row["cut"]["after"]["examples"] == 43  # a fifth of 216
    assert row["after"]["accuracy"]["value"] > 0.5
    again = reload_traced(tmp_path / "out", mlp(), DATA.inputs[:1])
    assert vision.accuracy(again.model, HELD_OUT) > 0.5
    looked = processes.run(
        tmp_path,
        "run",
        "kd_data_pruning",
        "net.py:build",
        "--data",
        "data.npz",
        "--budget",
        "examples=20%",
        "--dry-run",
    )
    assert looked.code == 0, looked.stderr


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"budgets": ["params=50%"]}, BudgetError, "can't meet params=50%: it prunes examples"),
        ({"budgets": ["examples=50%,bytes=10kb"]}, BudgetError, "it prunes examples"),
        ({"budgets": ["examples=2"]}, InfeasibleError, "leaves nothing of class"),
        ({"data": Examples(DATA.inputs)}, InputError, "has no classes"),
        ({"alpha": 1.5}, InputError, "option alpha=1.5 .*at most 1"),
        ({"temperature": 0.0}, InputError, "option temperature=0.0 .*above 0"),
        ({"tried": ()}, InputError, "option tried=.*at least 1 of them"),
        ({"tried": (0.0,)}, InputError, "option tried=0.0 .*above 0"),
        ({"held": 1.0}, InputError, "option held=1.0 .*below 1"),
        ({"epochs": 0.0}, InputError, "epochs=0: give a number above 0"),
        ({"epochs": -1.0}, InputError, "epochs=-1.0: give a number of at least 0"),
        ({"score_epochs": -1.0}, InputError, "score_epochs=-1: give 0 or more"),
        ({"score_epochs": float("nan")}, InputError, "score_epochs=nan .*finite number"),
        ({"runs": 0}, InputError, "option runs=0 .*at least 1"),
    ],
)
def test_what_can_not_be_done_is_refused_in_a_line(tmp_path, options, error, words):
    with pytest.raises(error, match=words):
        results(tmp_path / "run", **options)


def test_an_unknown_score_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="option score='el2'"):
        secateur.run("kd_data_pruning", teacher(), DATA, "examples=20%", tmp_path / "out", score="el2")


def toy(folder):
    """What `conformance.check_recipe` takes: see tests/conformance."""
    data, held_out = nets.data(240), nets.data(200, seed=5)
    wrong = torch.rand(240, generator=torch.Generator().manual_seed(3)) < 0.3
    data = replace(data, labels=torch.where(wrong, torch.arange(240) % 4, data.labels))
    model = nets.vgg()
    vision.fit(model, data, epochs=6, batch=24)
    teacher = open_traced(model, data.inputs[:2])
    students = {}

    def on_examples(subject, data, budgets, run, **options):
        """What is cut is the training set: its student has to beat one of as many examples, by chance and alone."""
        for result in keywords.call(kd_data_pruning, teacher, data, budgets, run, **options):
            kept = ExampleSet.load(data, run.folder(f"kept-{result.name}"))
            students[id(kept)] = result.subject.model
            yield replace(result, subject=kept)

    def student(examples):
        if examples.whole:
            return model
        if id(examples) not in students:
            students[id(examples)] = nets.vgg()
            vision.fit(students[id(examples)], examples.data, epochs=10 * 240 / len(examples), batch=24, lr=0.05)
        return students[id(examples)]

    @torch.no_grad()
    def output(examples):
        return student(examples).eval()(data.inputs[:8])

    return {
        "subject": ExampleSet(data),
        "data": data,
        "budget": "examples=20%",
        "options": {"alpha": 1.0, "epochs": 10, "batch": 24, "lr": 0.05, "balanced": True},
        "recipe": toys.recipe_of("kd_data_pruning", on_examples),
        "output": output,
        "quality": lambda examples: vision.accuracy(student(examples), held_out),
    }


def test_shares_too_small_to_look_for_alpha_are_refused_before_any_training(tmp_path, monkeypatch):
    """Of 6 examples of a class 5 % are none: the message names the option, not a budget that nobody gave."""
    monkeypatch.setattr(module, "score_by_training", lambda *_, **__: pytest.fail("trained"))
    few = DATA.take([i for kind in range(4) for i in (DATA.labels == kind).nonzero().flatten()[:6].tolist()])
    with pytest.raises(InputError, match=r"alpha=auto looks for the weight at tried=0\.05 .*give larger shares"):
        results(tmp_path, ("examples=50%",), few, alpha="auto", score="el2n", tried=(0.05, 1.0))


def test_what_training_is_asked_for_is_in_force_in_the_trainings_of_scores_too(tmp_path):
    def run(training):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        results(out, training=training, epochs=1.0, score="el2n")

    teacher(0.0)  # which has learned before that
    trainings.check_options(run)


def test_alpha_is_judged_on_examples_that_no_trial_learns():
    whole, search = ExampleSet(DATA), module.Search(held=0.25)
    seen, judged = module.part_for_search(whole, search, 3)
    rows = {tuple(row.flatten().tolist()) for row in seen.data.inputs}
    assert (len(seen), len(judged)) == (180, 60)
    assert not any(tuple(row.flatten().tolist()) in rows for row in judged.inputs)
    assert not torch.equal(judged.inputs, module.part_for_search(whole, search, 4)[1].inputs), "another seed, another"


def test_what_is_asked_for_reaches_trials_and_students(tmp_path, monkeypatch):
    teacher(0.0)  # which has been trained before that
    learned, chosen_by, fed = [], [], []
    learn, select, batches = module.train_student, module.select_examples, module.examples.batches

    def watch(data, said, alpha, **how):
        learned.append((alpha, how["seed"], how["temperature"]))
        return learn(data, said, alpha, **how)

    monkeypatch.setattr(module, "train_student", watch)
    monkeypatch.setattr(
        module, "select_examples", lambda *a, **how: chosen_by.append(how["balanced"]) or select(*a, **how)
    )
    monkeypatch.setattr(module.examples, "batches", lambda data, **how: fed.append(how["seed"]) or batches(data, **how))
    how = {"tried": (0.5,), "trials": 2, "epochs": 0.2, "temperature": 2.5, "balanced": False, "seed": 6}
    (found,) = results(tmp_path, alpha="auto", **how)
    alpha = float(found.notes[0].split("alpha ")[1])
    trials = [(weight, seed, 2.5) for weight in module.WEIGHTS for seed in (6, 7)]
    assert learned == [*trials, (alpha, 6, 2.5)]
    assert fed == [seed for _, seed, _ in learned]
    assert not any(chosen_by)


def test_scores_are_of_as_many_trainings_and_epochs_as_asked_for_and_chance_has_the_seed(tmp_path, monkeypatch):
    rated, rate = [], module.score_by_training

    def watch(*given, epochs, seed, number):
        rated.append((epochs, seed, number))
        return rate(*given, epochs=epochs, seed=seed, number=number)

    monkeypatch.setattr(module, "score_by_training", watch)
    results(tmp_path / "el2n", score="el2n", runs=2, score_epochs=0.2, seed=6, dry_run=True)
    assert rated == [(0.2, 6, 0), (0.2, 6, 1)]
    kept = [results(tmp_path / f"{seed}", seed=seed, epochs=0.1)[0].name for seed in (0, 1)]
    parts = [ExampleSet.load(DATA, tmp_path / f"{seed}" / "work" / f"kept-{name}") for seed, name in enumerate(kept)]
    assert parts[0].kept.tolist() != parts[1].kept.tolist()
