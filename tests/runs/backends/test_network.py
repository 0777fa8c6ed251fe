"""Recipes on networks, from the name of a function that builds one to a folder that loads without secateur."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import yolo
from secateur import measure
from secateur._utils import modes
from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.data.examples import Examples
from secateur.errors import DataError, InputError, RunError, UnsupportedError
from secateur.measure import latency, loyalty
from secateur.runs import backends, cutting, executor, measuring
from secateur.runs.backends.network import Network
from secateur.score import magnitude
from secateur.select import ranking
from secateur.subjects import Traced
from secateur.subjects.network import detectors
from secateur.subjects.network.recording import Example
from secateur.subjects.network.traced import open_traced
from secateur.vocabulary import Budget, Result
from strangers import run_without_secateur

BUILD = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )


def with_inputs():
    return build(), torch.zeros(1, 1, 8, 8)


def half():
    return build().bfloat16()


def failing():
    raise ValueError("no weights here")


def nothing():
    return None
"""


def snips(
    subject: Traced,
    data: Examples,
    budgets: Sequence[Budget],
    run: Run,
    *,
    batch: int = 4,
    seed: int = 0,
    dry_run: bool = False,
) -> Iterator[Result]:
    """Cut channels by magnitude."""
    units = subject.units()
    for budget in budgets:
        found = ranking.by_budget(units, magnitude.coupled_norm(subject.slices()), budget, scope="local")
        student, cut = subject.cut(found)
        yield Result(str(budget), student, cut, units.cost(found.keep))


@pytest.fixture
def place(tmp_path):
    (tmp_path / "model.py").write_text(BUILD)
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", inputs=draw.random((40, 1, 8, 8), np.float32), labels=draw.integers(0, 3, 40))
    return tmp_path


@pytest.mark.usefixtures("programs")
def test_a_network_is_cut_measured_saved_and_loads_without_secateur(place):
    out = place / "small"
    (row,) = executor.run(snips, f"{place}/model.py:build", place / "data.npz", "channels=50%", out)
    assert row.verdict == "met"
    assert row.predicted["params"] == row.after["params"].value < row.before["params"].value / 2
    assert row.after["flops"].value < row.before["flops"].value
    assert 0 <= row.after["accuracy"].value <= 1
    assert row.before["accuracy"].samples == row.measured["label_loyalty"].samples == 4
    assert 0 < row.measured["probability_loyalty"].value < 1
    assert "Probability loyalty" in (out / "report.html").read_text()
    assert "speedup" in row.measured
    assert "tokens" not in row.environment["measured_at"]
    card = (out / "README.md").read_text()
    assert 'torch.export.load("small/model.pt2").module()' in card
    (again,) = executor.run(snips, f"{place}/model.py:build", place / "data.npz", "channels=50%", out)
    assert again == row
    found = measuring.measure(str(out), f"{place}/model.py:build", place / "data.npz", batch=2)
    assert found["model"]["params"].value == row.after["params"].value
    code = (
        "import torch\n"
        f"model = torch.export.load({str(out / 'model.pt2')!r}).module()\n"
        "print(tuple(model(torch.zeros(5, 1, 8, 8)).shape), tuple(model(torch.zeros(1, 1, 8, 8)).shape))"
    )
    assert run_without_secateur(code, place).strip() == "(5, 3) (1, 3)"


def test_a_recipe_on_networks_never_sees_what_is_held_out(place):
    seen = []

    def curious(
        subject: Traced, data: Examples, budgets: Sequence[Budget], run: Run, *, batch: int = 4
    ) -> Iterator[Result]:
        """Remember all examples there are."""
        seen.append(data)
        yield from snips(subject, data, budgets, run, batch=batch)

    executor.run(curious, f"{place}/model.py:build", place / "data.npz", "channels=50%", place / "out")
    assert len(seen[0]) == 36
    plain = yaml.safe_load((place / "out/run.yaml").read_text())
    assert not {"held_out", "held_out_sha256"} & set(plain), "a run without is what it always was"


@pytest.fixture
def apart(place):
    """Held-out examples of one's own."""
    draw = np.random.default_rng(5)
    np.savez(place / "test.npz", inputs=draw.random((24, 1, 8, 8), np.float32), labels=draw.integers(0, 3, 24))
    return place


@pytest.mark.usefixtures("planned")
def test_held_out_data_of_ones_own_is_all_that_quality_is_measured_on(apart):
    seen, model = [], f"{apart}/model.py:build"

    def curious(
        subject: Traced, data: Examples, budgets: Sequence[Budget], run: Run, *, batch: int = 4
    ) -> Iterator[Result]:
        """Remember all examples there are."""
        seen.append(data)
        yield from snips(subject, data, budgets, run, batch=batch)

    (row,) = executor.run(
        curious, model, apart / "data.npz", "channels=50%", apart / "out", held_out=apart / "test.npz"
    )
    test = examples.read(apart / "test.npz")
    assert seen[0].digest == examples.read(apart / "data.npz").digest
    assert row.after["accuracy"].samples == 24
    assert row.before["accuracy"].value == measuring.measure(model, data=test, batch=2)["model"]["accuracy"].value
    assert row.settings["held_out_sha256"] == test.digest
    assert not [note for note in row.cut.notes if "held-out examples are" in note]
    assert yaml.safe_load((apart / "out/run.yaml").read_text())["held_out"] == str(apart / "test.npz")
    how = {"held_out": test, "out": apart / "out"}  # the same, wherever it is now
    assert executor.run(curious, model, apart / "data.npz", "channels=50%", **how) == [row]
    few = examples.read(apart / "data.npz").take([0, 1])  # none of them has to be held out
    (row,) = executor.run(snips, model, few, "channels=50%", apart / "few", held_out=few.take([1]), dry_run=True)
    assert any("1 of 1 held-out examples are in the data, too" in note for note in row.cut.notes)
    assert any(note.startswith("peak memory: weights") and ", training " in note for note in row.cut.notes)


def test_a_run_resumes_on_the_held_out_data_that_it_had(apart):
    how = [snips, f"{apart}/model.py:build", apart / "data.npz", "channels=50%"]
    executor.run(*how, apart / "out", held_out=apart / "test.npz")
    for other in (None, examples.read(apart / "test.npz").take(range(20))):
        with pytest.raises(RunError, match=r"holds a run with held_out_sha256=\w+\.\.\., not held_out_sha256="):
            executor.run(*how, apart / "out", held_out=other)
    executor.run(*how, apart / "split")
    with pytest.raises(RunError, match="held_out_sha256=not set"):
        executor.run(*how, apart / "split", held_out=apart / "test.npz")


WIDE = Examples(torch.zeros(4, 1, 9, 9), torch.zeros(4, dtype=torch.long), name="wide")
SEVEN = Examples(torch.zeros(4, 1, 8, 8), torch.full((4,), 7), name="seven")
BARE = Examples(torch.zeros(4, 1, 8, 8), name="bare")
BOXES = Examples(
    torch.zeros(1, 1, 8, 8), None, ({"boxes": torch.ones(0, 4), "labels": torch.ones(0).long()},), name="boxes"
)
NAMED = Examples(torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.long), (), ("cat", "cow"), "named")


@pytest.mark.parametrize(
    ("held_out", "words"),
    [
        (WIDE, r"wide holds inputs of shape \(1, 9, 9\), the model was built for \(1, 8, 8\)"),
        (SEVEN, "seven has the label 7: the model has 3 classes, 0 to 2"),
        (BARE, "bare has no classes to measure quality by: give held-out examples with labels"),
        (BOXES, "boxes has boxes and data.npz none: give data and held-out data of one kind"),
        (NAMED, "named numbers the classes cat, cow, data.npz cat, dog, owl: give both the same classes"),
        ("none.npz", "there is no data at none.npz"),
    ],
)
def test_held_out_data_that_does_not_fit_is_refused_in_a_line(place, held_out, words):
    data = replace(examples.read(place / "data.npz"), classes=("cat", "dog", "owl"))
    with pytest.raises(DataError, match=words) as caught:
        executor.run(snips, f"{place}/model.py:build", data, "channels=50%", place / "out", held_out=held_out)
    assert len(str(caught.value).splitlines()) == 1
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("model", "data", "error", "words"),
    [
        ("model.py:none", "data.npz", InputError, "has no function none"),
        ("model.py:failing", "data.npz", InputError, "failed to build a model: ValueError: no weights here"),
        ("model.py:nothing", "data.npz", InputError, "returned NoneType: expected a torch.nn.Module"),
        ("other.py:build", "data.npz", InputError, "there is no file"),
        ("model.py:build", "none.npz", DataError, "there is no data at"),
        ("model.py:with_inputs", "wide.npz", DataError, r"inputs of shape \(1, 9, 9\), the model was built for"),
        ("model.py:build", "classes.npz", DataError, "has the label 7: the model has 3 classes, 0 to 2"),
        ("model.py:half", "data.npz", DataError, "inputs of float32, and Sequential with weights of bfloat16 does not"),
    ],
)
def test_what_can_not_be_used_is_refused_in_a_line(place, model, data, error, words):
    np.savez(place / "wide.npz", inputs=np.zeros((9, 1, 9, 9), np.float32))
    np.savez(place / "classes.npz", inputs=np.zeros((9, 1, 8, 8), np.float32), labels=np.full(9, 7))
    with pytest.raises(error, match=words):
        executor.run(snips, f"{place}/{model}", place / data, "channels=50%", place / "out")
    assert not (place / "out").exists()


def test_what_can_not_be_analysed_is_not_measured_either():
    with pytest.raises(UnsupportedError, match=r"DataParallel spreads a network over devices: give the network inside"):
        Network().open_whole(nn.DataParallel(nn.Linear(3, 2)), inputs=torch.ones(1, 3))


def test_without_labels_loyalty_stands_beside_fidelity_and_numbers_have_their_own_figures():
    inputs = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    data, place = Examples(inputs), latency.Environment(16, None, 1)

    def told(width, student=None, seed=1):
        torch.manual_seed(seed)
        pair = [nn.Sequential(nn.Linear(6, 5), nn.Linear(5, out)) for out in (width, student or width)]
        found = Network().compare(*(open_traced(one, inputs[:1]) for one in pair), data, place)
        return [one(inputs).detach() for one in pair], found

    (theirs, ours), (before, after, both) = told(3)
    assert before == after == {}
    assert set(both) == {"spearman", "cosine", "label_loyalty", "probability_loyalty"}
    assert both["label_loyalty"] == loyalty.label(ours, theirs)
    assert set(told(3, 4)[1][2]) == {"spearman"}
    (theirs, ours), (_, _, both) = told(1)
    expected = loyalty.regression(ours.flatten().tolist(), theirs.flatten().tolist())
    assert both == {"pearson": expected["pearson"], "rank_loyalty": expected["spearman"], "rmse": expected["rmse"]}


class Timed(nn.Module):
    """Takes a time beside its input, as a diffusion network does."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x, when):
        return self.two(self.one(x + when).relu())


def test_a_network_that_needs_more_than_the_examples_hold_is_refused_in_a_line(tmp_path):
    subject = open_traced(Timed(), (torch.rand(2, 4), torch.tensor(0.5)))
    with pytest.raises(
        DataError, match=r"^Timed takes more than the inputs .* \(missing a required argument: 'when'\)"
    ):
        executor.run("otov3", subject, Examples(torch.rand(20, 4)), "channels=50%", tmp_path / "out", epochs=1)
    assert not (tmp_path / "out").exists()


def test_a_label_that_a_detector_does_not_have_is_refused_before_anything_runs():
    data = yolo.squares(8)
    subject = detectors.open_detector(yolo.tiny(), data.inputs[:1])
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    assert Network().fit_data(data, subject) is data
    targets = [dict(target) for target in data.targets]
    targets[5]["labels"] = targets[5]["labels"] + 7
    wrong = Examples(data.inputs, None, tuple(targets), name="squares")
    highest = int(targets[5]["labels"].max())
    words = rf"squares has the label {highest}, on which the loss .* fails \(IndexError\): build it for {highest + 1}"
    with pytest.raises(DataError, match=words) as told:
        Network().fit_data(wrong, subject)
    assert "\n" not in str(told.value)
    assert all(torch.equal(value, before[name]) for name, value in subject.model.state_dict().items())


def test_a_loss_that_fails_for_another_reason_is_not_laid_to_the_labels(monkeypatch):
    data = yolo.squares(4)
    subject = detectors.open_detector(yolo.tiny(), data.inputs[:1])

    def broken(self, batch):
        raise RuntimeError("no memory")

    monkeypatch.setattr(yolo.Yolo, "loss", broken)
    assert Network().fit_data(data, subject) is data


def test_a_network_is_wholly_loyal_to_itself(place):
    name, data = f"{place}/model.py:build", place / "data.npz"
    both = measuring.measure(name, name, data, batch=2)["both"]
    assert both["label_loyalty"].value == both["probability_loyalty"].value == 1.0


def test_lengths_and_other_devices_are_refused(place):
    with pytest.raises(InputError, match="length=8: a network takes inputs as they are"):
        measuring.measure(f"{place}/model.py:with_inputs", length=8)
    absent = [] if torch.cuda.is_available() else ["cuda"]
    for device in ["moon", "cuda:99", "meta", *absent]:
        with pytest.raises(InputError, match=f"device '{device}' can't hold the model: [^\n]*$"):
            measuring.measure(f"{place}/model.py:with_inputs", device=device)
        for recipe in ("otov3", cutting.prune):
            with pytest.raises(InputError, match=f"device '{device}' can't hold the model"):
                executor.run(recipe, f"{place}/model.py:build", place / "data.npz", "params=50%", place / "out",
                            device=device)  # fmt: skip
    assert not (place / "out").exists()
    with pytest.raises(InputError, match="comes without example inputs"):
        measuring.measure(f"{place}/model.py:build")
    with pytest.raises(UnsupportedError, match=r"small/model.onnx is an ONNX file, .*exported.Exported"):
        measuring.measure("small/model.onnx", f"{place}/model.py:build")


def test_a_network_is_measured_on_the_device_that_is_asked_for_and_stays_where_it_is(place, monkeypatch):
    subject = open_traced(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.rand(2, 4))
    (row,) = executor.run(cutting.prune, subject, None, "channels=50%", place / "out", device="cpu")
    assert row.settings["device"] == "cpu"
    assert row.before["latency"].value > 0
    # Of the devices that torch has, only "meta" is everywhere: it holds no values, but shows where things go.
    elsewhere = latency.Environment(batch=6, length=None, device="meta")
    monkeypatch.setattr(modes, "check_device", lambda device: None)
    copied = Network().place(subject, elsewhere)
    assert {one.device.type for one in copied.model.parameters()} == {"meta"}
    assert {one.device.type for one in subject.model.parameters()} == {"cpu"}
    assert Network().place(subject, latency.Environment()) is subject
    given = Network().make_example(subject, elsewhere)
    made = Network().forward(copied, given)
    assert (made.device.type, made.shape) == ("meta", (6, 3))
    asked = []
    monkeypatch.setattr(modes, "check_device", asked.append)
    monkeypatch.setattr(Network, "place", lambda self, subject, place: asked.append(place.device) or subject)
    monkeypatch.setattr(Network, "make_example", lambda self, subject, place: ((torch.rand(place.batch, 4),), {}))
    monkeypatch.setattr(latency, "compare", lambda *given, device, **how: asked.append(device) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        executor.run(cutting.prune, subject, None, "channels=50%", place / "there", device="meta")
    assert asked == ["meta"] * 4


def test_rows_that_belong_together_are_measured_as_they_are_given(place):
    class Rows(nn.Sequential):
        def forward(self, x, sizes):
            return super().forward(x)[: int(sizes.sum())]

    together = open_traced(Rows(nn.Linear(4, 8), nn.Linear(8, 3)), (torch.rand(6, 4), torch.tensor([2, 4])))
    assert Network().environment(together, 32, None, 1).batch == 6
    assert measure(together, batch=5).notes == ("measured on 6 rows, as the example inputs have, for 5 don't fit them",)
    either = Traced(nn.Bilinear(4, 4, 3), Example.of((torch.rand(6, 4), torch.rand(6, 4))))
    assert Network().environment(either, 32, None, 1).batch == 32
    assert backends.note_rows(Network(), None, latency.Environment(32)) == []


def test_modules_are_measured_as_they_are(place):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    found = measuring.measure(module, data=Examples(torch.rand(10, 4), torch.randint(0, 3, (10,))), batch=4)
    assert found["model"]["params"].value == 4 * 16 + 16 + 16 * 3 + 3
    assert found["model"]["flops"].value == 2 * (4 * 16 + 16 * 3)


def test_detectors_that_find_nothing_are_of_no_use():
    data = yolo.squares(8)
    subject = detectors.open_detector(yolo.tiny(), data.inputs[:1])
    assert Network().chance(subject, data) == {"AP50": 0.0}


def test_a_network_that_does_not_take_the_inputs_of_another_is_refused_in_a_line():
    subject = open_traced(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.rand(2, 4))
    words = r"^Embedding does not take what the other network takes \(RuntimeError: Exp"
    with pytest.raises(InputError, match=words) as told:
        Network().reopen(nn.Embedding(3, 4), subject)
    assert "\n" not in str(told.value)
    assert Network().reopen(nn.Linear(4, 7), subject).model.out_features == 7
