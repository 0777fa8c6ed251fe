"""Peak memory of passes and of training of a network that is there, against what a fresh process takes."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from secateur.measure import memory
from secateur.runs import memory_steps
from secateur.vocabulary import Budget, Training

MEASURE = """
import copy, json, sys
import torch, torchvision
from torch.nn.functional import kl_div
from secateur.measure import memory
from secateur.recover.training import loop
from secateur.runs import memory_steps
from secateur.vocabulary import Training

name, batch, stage, optimizer = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
torch.manual_seed(0)
model = getattr(torchvision.models, name)(weights=None, num_classes=10).eval()
inputs = torch.randn(batch, 3, 96, 96)

def score():
    with torch.no_grad():
        return model(inputs)

def training():
    student = copy.deepcopy(model)
    def objective(item, totals):
        ours = student(item["inputs"])
        with torch.no_grad():
            theirs = model(item["inputs"])
        return kl_div(ours.log_softmax(1), theirs.softmax(1), reduction="batchmean"), {}
    loop.train(student, [{"inputs": inputs}], objective, Training(steps=3, lr=1e-3, optimizer=optimizer),
               frozen=[model], count=lambda item: {"examples": batch}, progress=False)

with torch.no_grad():
    model(inputs[:1])  # what a first call allocates
found = memory.peak({"score": score, "training": training}[stage])
plan = memory_steps.plan_network(model, ((inputs,), {}), Training(optimizer=optimizer))
print(json.dumps({"measured": plan["weights"] + inputs.numel() * 4 + found.extra, "planned": plan[stage]}))
"""


@pytest.mark.memory
@pytest.mark.parametrize("stage", ["score", "training"])
@pytest.mark.parametrize(("name", "batch", "optimizer"), [("resnet18", 16, "adamw"), ("mobilenet_v2", 16, "sgd")])
def test_the_plan_is_within_15_percent_of_a_fresh_process(name: str, batch: int, optimizer: str, stage: str) -> None:
    command = [sys.executable, "-c", MEASURE, name, str(batch), stage, optimizer]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["planned"] == pytest.approx(found["measured"], rel=0.15)


CUT = """
import json, sys
import torch, torchvision
from secateur.measure import memory
from secateur.runs import memory_steps
from secateur.score import magnitude
from secateur.select import ranking
from secateur.subjects import open_traced
from secateur.vocabulary import Training

torch.manual_seed(0)
model = getattr(torchvision.models, sys.argv[1])(weights=None, num_classes=10).eval()
inputs = torch.randn(1, 3, 96, 96)
subject = open_traced(model, inputs)
selection = ranking.by_budget(subject.units(), magnitude.coupled_norm(subject.slices()), "params=50%")
found = memory.peak(lambda: subject.cut(selection))
plan = memory_steps.plan_network(model, ((inputs,), {}), Training(), share=0.5)
print(json.dumps({"measured": plan["weights"] + found.extra, "planned": plan["cut"]}))
"""


@pytest.mark.memory
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "resnet50"])
def test_the_plan_of_a_cut_is_within_15_percent_of_a_fresh_process(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", CUT, name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["planned"] == pytest.approx(found["measured"], rel=0.15)


class Looking(nn.Linear):
    """A network that goes by all values of its input, which has none."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.tensor(x.numpy().round()))


def test_what_is_trained_counts_and_the_network_stays() -> None:
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)).train()
    numbers = sum(parameter.numel() for parameter in model.parameters())

    def plan(training: str = "", rows: int = 4, device: str = "cpu") -> dict[str, float]:
        return memory_steps.plan_network(model, ((torch.randn(rows, 64),), {}), Training().merge(training), device)

    def grow(training: str) -> float:
        return (plan(training)["training"] - plain["training"]) / (1.0 + memory_steps.HEAP["step"]) / numbers

    half = memory_steps.plan_network(model, ((torch.randn(4, 64),), {}), Training(), share=0.5)
    plain = plan()
    spared = (plain["cut"] - half["cut"]) / (1.0 + memory_steps.HEAP["cut"])
    assert spared == pytest.approx(2 * numbers)
    assert plain["weights"] == 4 * numbers < plain["score"] < plain["gradients"] < plain["training"]
    # The original, the student, two moments, and the gradients: those of the step before are gone by then.
    assert 5 * plain["weights"] < plain["training"] / (1.0 + memory_steps.HEAP["step"]) < 6 * plain["weights"]
    assert grow("ema=0.9") == pytest.approx(4.0)
    assert grow("optimizer=sgd") == pytest.approx(-4.0)
    assert plan(rows=512)["training"] - plain["training"] > 508 * 256 * 4
    card, here = (plan("optimizer=sgd,precision=fp32", device=device) for device in ("cuda", "cpu"))
    assert card["training"] < here["training"], "no heap beside it"
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_is_held_from_one_pass_to_the_next_counts() -> None:
    """Behind many rows, activations make the peak, while gradients of the micro-batch before it are held."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.BatchNorm1d(64), nn.Linear(64, 10))
    numbers = sum(parameter.numel() for parameter in model.parameters())

    def learn(student: nn.Module, others: object) -> torch.Tensor:
        return student(torch.ones(4096, 64)).square().sum()

    def plan(training: str) -> float:
        return memory_steps.plan_step(model, [], learn, Training().merge(training), "cuda")

    def simulate(passes: int) -> float:
        with memory.simulate() as ledger:
            twin = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.BatchNorm1d(64), nn.Linear(64, 10)).eval()
            for _ in range(passes):
                peak = memory_steps.find_peak(ledger, [*twin.parameters()], lambda: learn(twin, ()).backward())
        return peak

    plain = plan("precision=fp32")
    assert plan("precision=fp32,accumulate=2") == plan("precision=fp32,accumulate=8")
    for training, copies in (("accumulate=2", 1), ("sam=0.05", 1), ("accumulate=2,sam=0.05", 2)):
        assert plan(f"precision=fp32,{training}") - plain == pytest.approx(4 * numbers * copies, rel=0.05), training
    assert plan("precision=fp32,accumulate=2") - plain == pytest.approx(simulate(2) - simulate(1), rel=0.05)


def test_a_share_is_that_of_the_largest_budget_of_parameters() -> None:
    budgets = [Budget.parse(text) for text in ("params=20,channels=10%", "params=40%")]
    assert memory_steps.find_share(budgets, 100.0) == 0.4
    assert memory_steps.find_share([Budget.parse("channels=10%")], 100.0) == 1.0
    assert memory_steps.find_share([Budget.parse("flops=50%"), Budget.parse("params=20%")], 100.0) == 1.0
    assert memory_steps.find_share([], 100.0) == 1.0
    assert memory_steps.find_share([Budget.parse("params=300")], 100.0) == 1.0


def test_a_machine_has_memory() -> None:
    assert memory_steps.available() > 2**28
    assert all(math.isnan(memory_steps.available(device)) for device in ("mps", "xpu", "meta", "cuda:77"))


def test_what_can_not_be_planned_has_no_line() -> None:
    inputs: memory_steps.Arguments = ((torch.ones(2, 3),), {})
    assert not memory_steps.describe_planned(lambda: memory_steps.plan_network(Looking(3, 3), inputs, Training()))
    line = memory_steps.describe_planned(lambda: {"weights": 10.0, "training": 2.0**60})
    assert line.startswith("peak memory: weights 10")
    assert line.endswith("too little for training")


def test_what_can_not_be_planned_prints_no_traceback_of_torch() -> None:
    log, records = logging.getLogger("torch._subclasses.fake_tensor"), list[logging.LogRecord]()
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]

    def plan() -> dict[str, float]:
        log.error("failed while attempting to run meta")
        raise RuntimeError

    log.addHandler(handler)
    try:
        assert memory_steps.describe_planned(plan) == ""
        assert not records
        log.error("of another")
    finally:
        log.removeHandler(handler)
    assert len(records) == 1
