"""Every recipe that trains, in two processes: losses of one process with the same global batch, one set of files."""

from __future__ import annotations

import copy
import importlib.util
import math
import os
import signal
from collections.abc import Callable
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

import keeper
import processes
import secateur
import tiny
import trainings
from chat_server import say, served
from recover import students
from secateur import cli, recipes
from secateur._utils import distributed
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.recover.training import fused, loop, objectives
from secateur.reports import evidence
from secateur.runs import keywords
from secateur.subjects import open_streamed, open_subject
from secateur.vocabulary import Budget

WHOLE = ("consensus_polarization",)
"""What is a mean over the whole batch: one process has batches of twice the size in place of two micro-batches."""


def run(name: str, toy: trainings.Toy, folder: Path, *, together: bool) -> dict[str, Any]:
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


@pytest.mark.parametrize("name", trainings.TOYS)
def test_two_processes_train_as_one_with_the_same_global_batch(name: str, tmp_path: Path) -> None:
    toy = trainings.TOYS[name]()

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


@pytest.mark.parametrize(
    ("name", "streamed", "options"),
    [
        ("stun", False, {"samples": 8, "length": 16, "kappa": 3}),
        ("stun", True, {"samples": 8, "length": 16, "kappa": 3}),
        ("d_pruner", False, {"general_samples": 8, "samples": 18, "train_length": 16, "train_batch": 3, "epochs": 2.0}),
    ],
)
def test_single_weights_go_in_two_processes_as_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, streamed: bool, options: dict[str, Any]
) -> None:
    """Of D-Pruner's scores too, whose descent two processes had begun and been killed in."""
    tiny.folder("mixtral", tmp_path / "mixtral")
    subject = open_streamed(tmp_path / "mixtral") if streamed else open_subject(tmp_path / "mixtral")
    data, recipe = texts.read(tiny.chains(100)), recipes.find(name)
    if name == "d_pruner":
        (tmp_path / "general.txt").write_text("\n".join(tiny.sentences(40)))
        options |= {"general": str(tmp_path / "general.txt")}

    def prune(out: str) -> dict[str, Any]:
        with Run.open(tmp_path / out, {}, shared=True) as directory:
            how = keywords.check_options(recipe, options)
            (result,) = recipe(subject, data, [Budget.parse("weights=60%")], directory, **how)
            distributed.by_first(partial(result.subject.save, tmp_path / f"{out}-saved"))
        return {"removed": result.cut.removed, "after": result.cut.after, "notes": result.notes}

    def work() -> None:
        if name == "d_pruner":
            monkeypatch.setattr(fused, "step", stop_at(8))
            with pytest.raises(KeyboardInterrupt):
                prune("two")
            monkeypatch.undo()
        torch.save(prune("two"), tmp_path / os.environ["RANK"])

    processes.both(work)
    first, second = (torch.load(tmp_path / str(rank), weights_only=False) for rank in range(2))
    assert first == second == prune("one")
    assert files(tmp_path / "two") == files(tmp_path / "one")
    for part in (tmp_path / "one" / "work").glob("*/*.safetensors"):
        two = load_file(tmp_path / "two" / part.relative_to(tmp_path / "one"))
        for key, scores in load_file(part).items():
            torch.testing.assert_close(two[key], scores, rtol=1e-4, atol=1e-5 * float(scores.abs().max()))
    for part in (tmp_path / "one-saved").glob("*.safetensors"):
        two = load_file(tmp_path / "two-saved" / part.name)
        assert all(torch.equal(weight != 0, two[key] != 0) for key, weight in load_file(part).items())


def stop_at(last: int) -> Callable[..., float]:
    """`fused.step`, which is interrupted after `last` steps."""
    step, taken = fused.step, []

    def run(*args: Any, **how: Any) -> float:
        if len(taken) == last:
            raise KeyboardInterrupt
        taken.append(1)
        return step(*args, **how)

    return run


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


@pytest.mark.parametrize("name", ["dp4tl", "kd_data_pruning"])
def test_training_sets_are_cut_by_two_processes_as_by_one(name: str, tmp_path: Path) -> None:
    file = Path(__file__).parent / "recipes" / "data" / f"test_{name}.py"
    spec = importlib.util.spec_from_file_location(f"toy_of_{name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    toy = module.toy(tmp_path)
    short = {"epochs": 1.0, "surrogate_epochs": 1.0}
    options = {key: min(value, short[key]) if key in short else value for key, value in toy["options"].items()}

    def cut(out: str, accumulate: int) -> dict[str, Any]:
        torch.manual_seed(0)
        checked = keywords.check_options(recipes.find(name), {**options, "training": f"accumulate={accumulate}"})
        with Run.open(tmp_path / out, {}, shared=True) as directory:
            (result,) = toy["recipe"](toy["subject"], toy["data"], [Budget.parse(toy["budget"])], directory, **checked)
        return {"kept": result.subject.kept.tolist(), "losses": result.recovery.losses}

    processes.both(lambda: torch.save(cut("two", 1), tmp_path / os.environ["RANK"]))
    first, second = (torch.load(tmp_path / str(rank)) for rank in range(2))
    alone = cut("one", 2)
    assert first == second
    assert first["kept"] == alone["kept"]
    assert [loss for _, loss in first["losses"]] == pytest.approx([loss for _, loss in alone["losses"]], rel=1e-5)
    assert files(tmp_path / "two") == files(tmp_path / "one")


def test_a_pruner_is_trained_by_two_processes_and_the_first_asks_for_labels(tmp_path: Path) -> None:
    rows = [{"question": row["question"], "text": f"{row['documents'][0][0]}. No."} for row in keeper.lesson(16, 0)]
    keeper.fresh().save(tmp_path / "model")
    asked = list[str]()

    def answer(body: dict[str, Any], headers: object) -> Any:
        asked.append(str(body["messages"]))
        return say({"choices": [{"message": {"content": "It is so [0]."}}]})

    def train(out: str, url: str, accumulate: int) -> Any:
        how = {"epochs": 1.0, "batch": 2, "training": f"accumulate={accumulate}", "held_out": 0.25, "evaluate_every": 2}
        how |= {"longest": 32, "llm": url, "llm_name": "tiny"}
        return secateur.train_pruner("provence", tmp_path / "model", rows, tmp_path / out, **how)

    def work(url: str) -> None:
        made = train("two", url, 1)
        assert train("two", url, 1).losses == made.losses
        torch.save(made.losses, tmp_path / os.environ["RANK"])

    with served(answer) as url:
        processes.both(partial(work, url))
        assert len(asked) == len(rows)
        alone = train("one", url, 2)
    first, second = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert first == second
    assert [step for step, _ in first] == [1, 2, 3]
    assert [loss for _, loss in first] == pytest.approx([loss for _, loss in alone.losses], rel=1e-5)
    assert files(tmp_path / "two") == files(tmp_path / "one")
    (tmp_path / "texts.txt").write_text("\n".join(tiny.chains(20)))
    words = ["prune-data", str(tmp_path / "texts.txt"), "--budget", "examples=50%", "--out", str(tmp_path / "kept")]
    pair = processes.pair(lambda: cli.main(words))
    assert [child.wait() for child in pair] == [2, 2]
    assert "runs in one process: start it without torchrun" in pair[0].stderr
    assert not (tmp_path / "kept").exists()


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


def curve(
    folder: Path, *, accumulate: int = 1, stop: int = 0, sharded: bool = False, judged: bool = False, **more: Any
) -> dict[str, torch.Tensor]:
    """A student's weights and losses after six steps, and evaluations of those that are judged.

    The second process is asked to end in step `stop`.
    """
    student, teacher = students.llama(0, dropout=0.2), students.llama(1)
    student.config.use_cache = False  # a block that runs again would find its first run's keys there
    taught = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    kinds, inner, steps = [type(module) for module in student.modules()], students.logit_objective(student, teacher), []

    def objective(batch: Any, totals: Any) -> Any:
        steps.append(batch)
        if len(steps) == stop and distributed.index():
            signal.raise_signal(signal.SIGTERM)
        for model in (student, teacher)[: 2 if len(steps) == 1 else 1]:  # a teacher has no backward pass to wait for
            assert any(isinstance(weight, DTensor) for weight in model.parameters()) == sharded
        return inner(batch, totals)

    def evaluate() -> float:
        batch = students.Batches(seed=7)[0]
        return float(inner(batch, objectives.count(batch))[0])

    feed, how = students.Batches(), {"steps": 6, "lr": 1e-3, "accumulate": accumulate, "progress": False}
    how |= {"evaluate": evaluate, "evaluate_every": 2, "keep": "best"} if judged else {}
    how |= more
    done = loop.train(student, feed, objective, **how, checkpoint=folder, every=4, frozen=[teacher])
    for model in (student, teacher):
        assert [type(module) for module in copy.deepcopy(model).modules()] == kinds
    assert all(torch.equal(tensor, taught[name]) for name, tensor in teacher.state_dict().items())
    points = {"losses": done.losses, "evaluations": done.settings.get("evaluations", ())}
    values = {name: torch.tensor([value for _, value in some], dtype=torch.float64) for name, some in points.items()}
    return {**student.state_dict(), **values}


def shard_by_fsdp2(*, gather: str = "each pass") -> None:
    """What Accelerate's configuration makes of processes with GPUs; on CPUs it leaves the plug-in out.

    gather: what blocks have gathered goes after "each pass", or stays until "backward".
    """
    settings = {"VERSION": "2", "AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
    settings["RESHARD_AFTER_FORWARD"] = "true" if gather == "each pass" else "false"
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


@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp2"])
def test_each_way_of_training_is_that_of_one_process(tmp_path: Path, sharded: bool) -> None:
    ways: dict[str, dict[str, Any]] = {
        "ema": {"ema": 0.5, "judged": True, "keep": "last"},
        "fp16": {"precision": "fp16", "checkpointing": True, "judged": True},
    }
    if importlib.util.find_spec("peft"):
        ways["lora"] = {"lora": 2, "ema": 0.9, "judged": True}

    def work() -> None:
        if sharded:
            shard_by_fsdp2(gather="backward")
        torch.save(
            {way: curve(tmp_path / f"{way} of two", sharded=sharded, steps=4, **how) for way, how in ways.items()},
            tmp_path / os.environ["RANK"],
        )

    processes.both(work)
    first, second = (torch.load(tmp_path / str(rank)) for rank in range(2))
    for way, how in ways.items():
        near = {"rtol": 1e-5, "atol": 1e-6} if way != "fp16" else {"rtol": 1e-3, "atol": 2e-4}
        for name, wanted in curve(tmp_path / way, accumulate=2, steps=4, **how).items():
            assert torch.equal(first[way][name], second[way][name]), (way, name)
            torch.testing.assert_close(
                first[way][name], wanted, **near, msg=lambda text, way=way, name=name: f"{way}, {name}: {text}"
            )


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
