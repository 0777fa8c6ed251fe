"""Every recipe that trains, in two processes: losses of one process with the same global batch, one set of files."""

from __future__ import annotations

import copy
import functools
import math
import os
import signal
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import load_file
from torch import nn
from torch.distributed.tensor import DTensor

import processes
import secateur
import tiny
import yolo
from recipes.vision import nets
from recover import students
from secateur import cli, recipes
from secateur._utils import distributed
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.data.examples import Examples
from secateur.recover.training import loop
from secateur.reports import evidence
from secateur.runs import keywords
from secateur.subjects import Traced, open_streamed, open_subject
from secateur.subjects.network import detectors
from secateur.vocabulary import Budget

SMALL = {"length": 16, "train_batch": 4}
QUICK = {"batch": 8, "epochs": 1.0}
Toy = tuple[Any, Any, str, dict[str, Any]]


def language(kind: str, budget: str, **options: Any) -> Toy:
    subject = open_subject(tiny.uneven(tiny.model(kind)), tokenizer=tiny.tokenizer())
    return subject, texts.read(tiny.chains(200)), budget, {**SMALL, **options}


def network(budget: str, model: nn.Module | None = None, count: int = 64, **options: Any) -> Toy:
    return nets.opened(model or nets.vgg()), nets.data(count), budget, {**QUICK, **options}


@functools.cache
def opened_detector() -> tuple[Traced, Examples]:
    images = yolo.squares(8)
    return detectors.open_detector(yolo.tiny(), images.inputs[:1]), images


def detector(**options: Any) -> Toy:
    stages = dict.fromkeys(("sparse_epochs", "finetune_epochs", "distil_epochs"), 1.0)
    return *opened_detector(), "channels=60%", {"batch": 2, **stages, **options}


def plain() -> nn.Module:
    """No batch norm, whose statistics would be those of one process's part of the batch."""
    torch.manual_seed(0)
    inner = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*inner, nn.Flatten(), nn.Linear(128, 4))


TOYS: Mapping[str, Callable[[], Toy]] = {
    "minitron": lambda: language("llama", "params=75%", steps=4, short_steps=2, candidates=2, calibration=32),
    "ziplm": lambda: language("bert", "params=75%", steps=4, calibration=32, trials=4, judged=16),
    "romanian_distilberts": lambda: language("masked", "params=80%", steps=4),
    "shortgpt": lambda: language("llama", "params=75%", steps=4, samples=16),
    "llm_pruner": lambda: language("llama", "params=80%", steps=4, samples=2),
    "slicegpt": lambda: language("llama", "params=90%", steps=4, samples=16),
    "ast": lambda: language("llama", "pattern=2:4", steps=6, refresh=2, slorb=8),
    "slimmoe": lambda: language("mixtral", "params=70%", steps=6, calibration=16, stages="2"),
    "otov3": lambda: network("channels=60%"),
    "consensus_polarization": lambda: network("channels=60%", plain(), 71),
    "gpusq_vit": lambda: network("pattern=2:4", nets.vit(), quantise_epochs=1.0, least=8, calibration="entropy"),
    "rethinking_pruning_value": lambda: network("channels=60%", epochs=2, scratch="E"),
    "nd_loss": lambda: network("channels=60%"),
    "yolov4_group_sad": lambda: detector(layer_keep=0.0, least=2, fractions=(0.5,) * 7),
    "yolov8_cwd": lambda: detector(least=2),
}
WHOLE = ("consensus_polarization",)
"""What is a mean over the whole batch: one process has batches of twice the size in place of two micro-batches."""


def run(name: str, toy: Toy, folder: Path, *, together: bool) -> dict[str, Any]:
    """What a run found, and its files."""
    torch.manual_seed(0)
    subject, data, budget, options = toy
    if name in WHOLE and not together:
        options = {**options, "batch": 2 * options["batch"]}
    options = {**options, "training": f"accumulate={1 if together or name in WHOLE else 2}"}
    function = recipes.find(name)
    with Run.open(folder, {}, shared=True) as directory:
        checked = keywords.check_options(function, options)
        (result,) = function(subject, data, [Budget.parse(budget)], directory, **checked)
    assert result.recovery is not None
    weights = {key: value for key, value in result.subject.model.state_dict().items() if value.is_floating_point()}
    losses = dict(result.recovery.losses)
    return {"losses": losses, "removed": result.cut.removed, "weights": weights, "steps": result.recovery.steps}


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


@pytest.mark.parametrize("name", TOYS)
def test_two_processes_train_as_one_with_the_same_global_batch(name: str, tmp_path: Path) -> None:
    toy = TOYS[name]()

    def work() -> None:
        torch.save(run(name, toy, tmp_path / "two", together=True), tmp_path / os.environ["RANK"])

    processes.both(work)
    first, second = (torch.load(tmp_path / str(rank), weights_only=False) for rank in range(2))
    alone = run(name, toy, tmp_path / "one", together=False)
    assert first["steps"] == alone["steps"] > 1
    assert first["removed"] == second["removed"] == alone["removed"]
    for step, loss in alone["losses"].items():
        assert math.isfinite(loss)
        assert first["losses"][step] == second["losses"][step] == pytest.approx(loss, rel=1e-5), step
    assert all(torch.equal(weight, second["weights"][key]) for key, weight in first["weights"].items())
    assert files(tmp_path / "two") == files(tmp_path / "one")


@pytest.mark.parametrize("streamed", [False, True], ids=["memory", "streamed"])
def test_stun_goes_block_by_block_in_two_processes(tmp_path: Path, streamed: bool) -> None:
    tiny.folder("mixtral", tmp_path / "mixtral")
    subject = open_streamed(tmp_path / "mixtral") if streamed else open_subject(tmp_path / "mixtral")
    data, options = texts.read(tiny.chains(100)), {"samples": 8, "length": 16, "kappa": 3}

    def prune(out: str) -> dict[str, Any]:
        with Run.open(tmp_path / out, {}, shared=True) as directory:
            (result,) = recipes.find("stun")(subject, data, [Budget.parse("weights=60%")], directory, **options)
            distributed.by_first(partial(result.subject.save, tmp_path / f"{out}-saved"))
        return {"removed": result.cut.removed, "after": result.cut.after}

    processes.both(lambda: torch.save(prune("two"), tmp_path / os.environ["RANK"]))
    first, second = (torch.load(tmp_path / str(rank), weights_only=False) for rank in range(2))
    assert first == second == prune("one")
    assert files(tmp_path / "two") == files(tmp_path / "one")
    for part in (tmp_path / "one-saved").glob("*.safetensors"):
        two = load_file(tmp_path / "two-saved" / part.name)
        assert all(torch.equal(weight != 0, two[name] != 0) for name, weight in load_file(part).items())


def test_distillation_is_shared_out_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """A teacher kept on disk is asked by the first process; the student of both is that of one with twice as much."""
    (tmp_path / "texts.txt").write_text("\n".join(tiny.chains(120)))
    for name, seed in (("student", 1), ("teacher", 0)):
        tiny.folder("llama", tmp_path / name)
        tiny.model("llama", seed).save_pretrained(tmp_path / name)
    student, teacher, data = (str(tmp_path / name) for name in ("student", "teacher", "texts.txt"))

    def distil(out: str, accumulate: int, **options: Any) -> Any:
        how = {"steps": 4, "batch": 4, "length": 16, "cache": 8, "overwrite": False, **options}
        return secateur.distill(student, teacher, data, tmp_path / out, training=f"accumulate={accumulate}", **how)

    def work() -> None:
        row = distil("two", 1)
        assert distil("two", 1) == row
        torch.save(row.recovery.losses, tmp_path / os.environ["RANK"])

    processes.both(work)
    first, second = (torch.load(tmp_path / str(rank)) for rank in range(2))
    alone = distil("one", 2)
    assert first == second
    assert [step for step, _ in first] == [1, 2, 3, 4]
    assert [loss for _, loss in first] == pytest.approx([loss for _, loss in alone.recovery.losses], rel=1e-5)
    assert files(tmp_path / "two") == files(tmp_path / "one")
    (row,) = evidence.read(tmp_path / "two")
    assert "trained by 2 processes" in row.settings["notes"]


def test_the_command_line_trains_in_two_processes_and_one_of_them_speaks(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(tiny.chains(120)))
    tiny.folder("llama", tmp_path / "llama")
    words = ["--data", str(tmp_path / "texts.txt"), "--batch", "2", "--length", "16", "--out", str(tmp_path / "two")]
    words += ["--budget", "pattern=2:4", "--steps", "4", "--train-batch", "4"]

    for _ in range(2):
        pair = processes.pair(lambda: cli.main(["run", "ast", str(tmp_path / "llama"), *words]))
        assert [child.wait() for child in pair] == [0, 0], pair[0].stderr + pair[1].stderr
        assert "pattern=2:4" in pair[0].stdout
        assert pair[1].stdout == ""
    (row,) = evidence.read(tmp_path / "two")
    assert "worked out by 2 processes" in row.cut.notes
    assert row.recovery.settings["micro_batches"] == 2


def curve(folder: Path, *, accumulate: int = 1, stop: int = 0, sharded: bool = False) -> dict[str, torch.Tensor]:
    """A student's weights and losses after six steps; the second process is asked to end in step `stop`."""
    student, teacher = students.llama(0, dropout=0.2), students.llama(1)
    kinds, inner, steps = [type(module) for module in student.modules()], students.logit_objective(student, teacher), []

    def objective(batch: Any, totals: Any) -> Any:
        steps.append(batch)
        if len(steps) == stop and distributed.index():
            signal.raise_signal(signal.SIGTERM)
        assert any(isinstance(weight, DTensor) for weight in student.parameters()) == sharded
        return inner(batch, totals)

    feed, how = students.Batches(), {"steps": 6, "lr": 1e-3, "accumulate": accumulate, "progress": False}
    done = loop.train(student, feed, objective, **how, checkpoint=folder, every=4, frozen=[teacher])
    assert [type(module) for module in copy.deepcopy(student).modules()] == kinds
    return {**student.state_dict(), "losses": torch.tensor([loss for _, loss in done.losses], dtype=torch.float64)}


def shard_by_fsdp2() -> None:
    """What Accelerate's configuration makes of processes with GPUs; on CPUs it leaves the plug-in out."""
    settings = {"VERSION": "2", "AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
    settings["TRANSFORMER_CLS_TO_WRAP"] = "LlamaDecoderLayer"
    os.environ |= {"ACCELERATE_USE_FSDP": "true", **{f"FSDP_{name}": value for name, value in settings.items()}}
    Accelerator()
    AcceleratorState._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin()
    for state in (PartialState, AcceleratorState):
        state._shared_state["distributed_type"] = DistributedType.FSDP


@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp2"])
def test_a_training_that_one_of_two_processes_was_asked_to_end_goes_on(tmp_path: Path, sharded: bool) -> None:
    def work(stop: int) -> int:
        if sharded:
            shard_by_fsdp2()
        try:
            torch.save(curve(tmp_path / "kept", stop=stop, sharded=sharded), tmp_path / os.environ["RANK"])
        except SystemExit as end:
            return end.code
        return 0

    assert [child.wait() for child in processes.pair(lambda: work(3))] == [143, 143]
    assert (tmp_path / "kept" / "training.safetensors").is_file()
    processes.both(lambda: work(0))
    found = [torch.load(tmp_path / str(rank)) for rank in range(2)]
    for name, wanted in curve(tmp_path / "alone", accumulate=2).items():
        assert torch.equal(found[0][name], found[1][name])
        torch.testing.assert_close(found[0][name], wanted, rtol=1e-5, atol=1e-6)


def test_statistics_of_batch_norms_are_those_of_all_processes(tmp_path: Path) -> None:
    def train() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))

        def objective(batch: Any, totals: Any) -> Any:
            return model(batch).square().mean() / 2, {}

        feed = [torch.randn(8, 3) + number for number in range(2)]
        loop.train(model, feed, objective, steps=1, lr=0.0, count=lambda _: {"examples": 8}, progress=False)
        return model

    processes.both(lambda: torch.save(train()[1].running_mean, tmp_path / os.environ["RANK"]))
    torch.manual_seed(0)
    first, _ = model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with torch.no_grad():
        wanted = (
            torch.stack([first(torch.randn(8, 3) + number).mean(0) for number in range(2)]).mean(0) * model[1].momentum
        )
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / str(rank)), wanted)
