"""The stand-in device itself, and what runs on it: every recipe's toy, scores, evaluations and commands."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import operator
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

import secateur
import second_device
import tiny
import yolo
from recipes.vision import nets
from secateur import cli, recipes
from secateur._utils import distributed, rundir
from secateur.data import examples, texts
from secateur.data.examples import Examples
from secateur.errors import UnsupportedError
from secateur.methods import pruning
from secateur.recover.distillation import mixed, teachers
from secateur.recover.sparsity import gates, masks, sparsify
from secateur.recover.training import loop, objectives
from secateur.retrieval.rerankers import Reranker
from secateur.runs import backends, keywords
from secateur.runs.backends.language import Language
from secateur.runs.measuring import measure
from secateur.score import random
from secateur.select import ranking
from secateur.subjects import Traced, Transformer, open_streamed, open_subject, open_traced
from secateur.subjects.network.detectors import open_detector
from secateur.subjects.transformer import streamed
from secateur.vocabulary import Budget

CARD = second_device.DEVICE


@pytest.fixture
def card() -> Iterator[None]:
    with second_device.present():
        yield


def halve(subject: Traced) -> Traced:
    """The network with 60 % of its channels, at random."""
    units = subject.units()
    return subject.cut(ranking.by_budget(units, random.scores(units, 0), Budget.parse("channels=60%")))[0]


def put(subject: Any) -> Any:
    """The subject on the card; the example inputs of a network stay where they are."""
    if isinstance(subject, Transformer):
        subject = subject.copy()
        for module in (subject.model, *subject.head):
            module.to(CARD)
    elif isinstance(subject, Traced):
        model = copy.deepcopy(subject.model).to(CARD)
        opened = open_detector if hasattr(model, "detect") else open_traced
        subject = opened(model, subject.inputs.args[0])
    return subject


def split(subject: Transformer) -> Transformer:
    """The subject with its first layers, and all that is no layer, on the card, and its last layers on the CPU."""
    model, layers = copy.deepcopy(subject.model), subject.layers()
    places = {path: CARD if 2 * number < len(layers) else "cpu" for number, path in enumerate(layers)}
    for path, _ in model.named_modules():
        above = any(layer.startswith(f"{path}.") or not path for layer in layers)
        if not above and not any(path.startswith(place) for place in places):
            places[path] = CARD
    skip = getattr(model, "_skip_keys_device_placement", None)
    dispatch_model(model, places, main_device="cpu", skip_keys=skip, force_hooks=True)
    return open_subject(model, tokenizer=subject.tokenizer)


# ------------------------------------------------------------------------------------------------- the device itself


@pytest.mark.usefixtures("card")
def test_it_computes_what_the_cpu_does_and_keeps_it_there():
    x = torch.arange(6.0).reshape(2, 3)
    there = x.to(CARD)
    assert (there.device, there.T.stride()) == (torch.device(CARD), (1, 3))
    row = there[1]
    row += 10
    assert there.cpu().tolist() == [[0, 1, 2], [13, 14, 15]], "a view is one"
    assert x.tolist() == [[0, 1, 2], [3, 4, 5]], "it was copied"
    assert torch.equal((there @ there.T).cpu(), there.cpu() @ there.cpu().T)
    there.resize_(3, 3)
    assert there.shape == (3, 3)
    assert torch.equal(torch.ones(2, device=CARD) + torch.tensor(2.0), torch.full((2,), 3.0, device=CARD))
    assert torch.histc(torch.tensor([1, 2, 2], device=CARD), 3, 0, 3).tolist() == [0, 1, 2]


@pytest.mark.usefixtures("card")
def test_it_refuses_what_a_gpu_refuses():
    there, here = torch.ones(2, 3, device=CARD), torch.ones(2, 3)
    for meet in (torch.add, torch.mul, torch.maximum, lambda a, b: a @ b.T, lambda a, b: torch.cat([a, b])):
        for pair in ((there, here), (here, there)):
            with pytest.raises(RuntimeError, match="to be on the same device"):
                meet(*pair)
    with pytest.raises(RuntimeError, match="to be on the same device"):
        nn.Linear(3, 2).to(CARD)(here)
    with pytest.raises(RuntimeError):
        here[torch.tensor([0], device=CARD)]
    with pytest.raises(TypeError, match="copy the tensor to host memory"):
        there.numpy()
    with pytest.raises(RuntimeError, match="device type for generator"):
        torch.randn(2, device=CARD, generator=torch.Generator())
    draws = [torch.randn(2, device=CARD, generator=torch.Generator(CARD).manual_seed(3)) for _ in range(2)]
    assert torch.equal(*draws)


@pytest.mark.usefixtures("card")
def test_it_counts_copies_and_waits():
    there, here = torch.ones(3, device=CARD), torch.ones(3)
    with second_device.watch() as traffic:
        there + 1
        there.sum()
        there[:2].mul_(2)
    assert (traffic.copies, traffic.synchronisations) == (0, 0)
    with second_device.watch() as traffic:
        here.to(CARD)
        torch.tensor([1, 2], device=CARD)
        there[torch.tensor([0, 1])]
    assert (traffic.copies, traffic.synchronisations) == (3, 0)
    for wait in (torch.Tensor.tolist, torch.Tensor.cpu, torch.nonzero, lambda x: x[x > 0], lambda x: bool(x.all())):
        with second_device.watch() as traffic:
            wait(there)
        assert (traffic.copies, traffic.synchronisations) == (0, 1)


@pytest.mark.usefixtures("card")
def test_a_module_trains_there_as_it_does_on_the_cpu():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    other, x = copy.deepcopy(net), torch.randn(5, 1, 8, 8)
    closed: list[torch.device] = []
    other[0].weight.register_hook(lambda gradient: closed.append(gradient.device))
    first = other[0].weight
    other.to(CARD)
    assert other[0].weight is first, "a parameter stays the same object"
    for model, given in ((net, x), (other, x.to(CARD))):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            model(given).square().mean().backward()
            optimizer.step()
    assert closed == [torch.device(CARD)] * 3, "hooks of parameters stay"
    copied = copy.deepcopy(other)
    assert copied[0].weight.device == torch.device(CARD)
    for name, value in other.cpu().state_dict().items():
        torch.testing.assert_close(value, net.state_dict()[name], rtol=1e-3, atol=1e-6)
    assert torch.equal(copied.cpu()[0].weight, other[0].weight)


@pytest.mark.usefixtures("card")
def test_tied_weights_stay_tied():
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    b.weight = a.weight
    pair = nn.ModuleList([a, b]).to(CARD)
    assert pair[0].weight is pair[1].weight
    assert pair[0].weight.untyped_storage().data_ptr() == pair[1].weight.untyped_storage().data_ptr()


# -------------------------------------------------------------------------------------------------------- recipes

SHORT = {"epochs": 1.0, "sparse_epochs": 0.5, "finetune_epochs": 0.5, "distil_epochs": 0.5, "quantise_epochs": 0.5,
         "surrogate_epochs": 1.0, "probe_epochs": 1.0, "tune_epochs": 1.0, "steps": 2}  # fmt: skip
"""Enough to run every line: what is learnt is no matter here."""
TAUGHT = ("dp4tl", "kd_data_pruning")
"""Recipes that prune data: what lies on the card is the network beside them."""


def toy_of(name: str) -> ModuleType:
    """The test file that brings the toy of a recipe."""
    file = Path(__file__).parent / "recipes" / recipes.cards()[name]["family"] / f"test_{name}.py"
    spec = importlib.util.spec_from_file_location(f"card_toy_of_{name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_toy(
    name: str, folder: Path, *, on_card: bool, monkeypatch: pytest.MonkeyPatch, place: Callable[[Any], Any] = put,
    **options: Any,
) -> Any:  # fmt: skip
    """The result of a recipe's toy whose subject lies on the card, or on the CPU beside a card to train on."""
    module = toy_of(name)
    if on_card and name in TAUGHT:
        kind = Traced if hasattr(module, "opened") else None
        name_of = "opened" if kind else "open_traced"
        original = getattr(module, name_of)
        monkeypatch.setattr(module, name_of, lambda *args, **how: put(original(*args, **how)))
    toy = module.toy(folder)
    given = {**toy.get("options", {}), **options}
    given |= {key: min(value, SHORT[key]) for key, value in given.items() if key in SHORT and value}
    if on_card and isinstance(given.get("model"), Reranker):
        given["model"] = copy.deepcopy(given["model"]).to(CARD)
    subject, data = toy["subject"], toy["data"]
    if getattr(data, "targets", ()):
        data = data.take(range(4))
        given |= {"judged": 1} if name == "yolov4_group_sad" else {}
    elif isinstance(data, Examples):
        data = data.take(range(min(len(data), 72)))
    if on_card:
        with second_device.present():
            subject = place(subject)
    elif isinstance(subject, Transformer):  # of a teacher that other toys share
        subject = subject.copy()
    function = toy.get("recipe") or recipes.find(name)
    with second_device.present(), rundir.Run.open(folder / "run", {}) as run:
        checked = keywords.check_options(recipes.find(name), given)
        (result,) = function(subject, data, [Budget.parse(toy["budget"])], run, **checked)
    return result


@pytest.mark.parametrize("name", recipes.cards())
def test_every_recipe_runs_where_its_subject_lies(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_toy(name, tmp_path, on_card=True, monkeypatch=monkeypatch)
    model = getattr(result.subject, "model", None)
    if isinstance(model, nn.Module):
        assert {str(tensor.device) for tensor in model.parameters()} == {CARD}


NOT_BY_BLOCKS = [
    name
    for name in recipes.cards()
    if backends.of_recipe(recipes.find(name)).family == Language.family
    and not backends.works_by_blocks(recipes.find(name))
]


CLEAR = {"pat": {"mask": "norm"}}
"""Options by which a choice is clear: in two steps AdamW moves pat's proxies alike, and last digits rank them."""


@pytest.mark.parametrize("name", NOT_BY_BLOCKS)
def test_a_recipe_prunes_and_trains_a_model_that_lies_on_two_devices(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for side in ("there", "here"):
        (tmp_path / side).mkdir()
    clear = CLEAR.get(name, {})
    there = run_toy(name, tmp_path / "there", on_card=True, monkeypatch=monkeypatch, place=split, **clear)
    here = run_toy(name, tmp_path / "here", on_card=False, monkeypatch=monkeypatch, **clear)
    assert there.cut.removed == here.cut.removed
    assert {str(p.device) for p in there.subject.model.parameters()} == {CARD, "cpu"}, "layers stay where they were"
    batch = here.subject.example(2, 8)
    ours, theirs = (result.subject.forward(batch).prediction.cpu() for result in (there, here))
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3)


TRAINING = ("dp4tl", "otov3")
"""nd_loss and gpusq_vit train below, where their passes over the data are watched, too."""


@pytest.mark.parametrize("name", TRAINING)
def test_a_subject_on_the_cpu_is_trained_on_the_card_and_comes_back(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with second_device.watch() as traffic:
        result = run_toy(name, tmp_path, on_card=False, monkeypatch=monkeypatch)
    assert traffic.copies, "it was trained there"
    model = getattr(result.subject, "model", None)
    if isinstance(model, nn.Module):
        assert {tensor.device.type for tensor in model.parameters()} == {"cpu"}


# ------------------------------------------------------------------------------------------------------ networks


@pytest.fixture(scope="module")
def digits() -> tuple[Examples, nn.Module]:
    return nets.data(64), nets.vgg()


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("score", [*pruning._OF_WEIGHTS, *pruning._OF_ACTIVATIONS, *pruning._OF_GRADIENTS])
def test_networks_are_scored_and_cut_where_they_lie(score: str, digits: tuple[Examples, nn.Module]) -> None:
    data, net = digits
    plain = copy.deepcopy(net)
    needed = pruning.data_needed(score)

    def cut(model: nn.Module) -> nn.Module:
        def loss(model: nn.Module, batch: Any) -> Tensor:
            return functional.cross_entropy(model(batch["inputs"]), batch["labels"])

        batches = [dict(batch) for batch in data.in_order(16)]
        looks = {"loss": {"batches": batches, "loss": loss}, "batches": {"batches": [data.inputs]}, "": {}}
        look: dict[str, Any] = looks[needed]
        return secateur.prune(model, data.inputs[:2], "channels=60%", score=score, **look)[0]

    there, here = cut(copy.deepcopy(net).to(CARD)), cut(plain)
    assert {str(tensor.device) for tensor in there.parameters()} == {CARD}
    assert [tensor.shape for tensor in there.parameters()] == [tensor.shape for tensor in here.parameters()]


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("kind", ["classes", "outputs", "boxes"])
def test_networks_are_measured_on_the_card_as_on_the_cpu(kind: str, digits: tuple[Examples, nn.Module]) -> None:
    data, net = digits
    if kind == "boxes":
        data, net = yolo.squares(4), yolo.tiny()
    elif kind == "outputs":
        data = replace(data, labels=None)
    subject = open_traced(net, data.inputs[:2]) if kind != "boxes" else open_detector(net, data.inputs[:1])
    small = subject.cut(
        ranking.by_budget(subject.units(), random.scores(subject.units(), 0), Budget.parse("channels=60%"))
    )[0]
    there, here = (measure(small, against=subject, data=data, batch=8, device=device) for device in (CARD, "cpu"))
    for side, row in here.items():
        for name in set(row) - {"latency", "speedup", "peak_memory"}:
            assert there[side][name].value == pytest.approx(row[name].value, rel=1e-3, nan_ok=True), (side, name)
    alone = measure(copy.deepcopy(net).to(CARD), data=data, batch=8, device=CARD)
    assert alone["model"]["params"].value == here["against"]["params"].value


# ---------------------------------------------------------------------------------------------------- transformers


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "masked", "classifier"])
def test_transformers_are_measured_on_the_card_as_on_the_cpu(kind: str) -> None:
    model = tiny.classifier().eval() if kind == "classifier" else tiny.model(kind)
    subject = open_subject(model, tokenizer=tiny.tokenizer())
    data = texts.read(tiny.sentences(48))
    if kind == "classifier":
        data = replace(data, labels=[0, 1] * 24)
    there, here = (
        measure(one, against=one, data=data, batch=4, length=8, device=device)
        for one, device in ((put(subject), CARD), (subject, "cpu"))
    )
    for side, row in here.items():
        for name in set(row) - {"latency", "speedup", "peak_memory"}:
            assert there[side][name].value == pytest.approx(row[name].value, rel=1e-3, abs=1e-5), (side, name)


def blockwise_result(subject: Transformer, folder: Path) -> list[Any]:
    budgets = [Budget.parse("weights=50%")]
    with rundir.Run.open(folder, {}) as run:
        return list(recipes.find("sparsegpt")(subject, texts.read(tiny.chains(60)), budgets, run, samples=4, length=16))


ON_TWO = {"model.embed_tokens": CARD, "model.rotary_emb": CARD, "model.norm": "cpu", "lm_head": "cpu"}
ON_TWO |= {f"model.layers.{number}": CARD if number < 2 else "cpu" for number in range(4)}


@pytest.mark.usefixtures("card")
def test_a_model_that_lies_on_two_devices_is_a_subject_and_a_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, split = whole_and_split(CARD)
    batch = whole.example(2, 8)
    torch.testing.assert_close(split.forward(batch).prediction.cpu(), whole.forward(batch).prediction)
    student = tiny.model("llama", 1)
    learner = open_subject(student, tokenizer=tiny.tokenizer())
    objective = objectives.distil(learner.forward, teachers.live(split.model, split.forward), output="logits")
    found = loop.train(student, [batch], objective, steps=1, lr=1e-4, frozen=[split.model], progress=False)
    assert found.steps == 1
    assert {tensor.device.type for tensor in split.model.parameters()} == {"card", "meta"}, "it stays where it is"

    backend, prune = Language(), functools.partial(secateur.run, data=tiny.chains(100), out=tmp_path / "out")
    assert backend.digest(split) == backend.digest(whole)
    for name, matrix in backend.matrices(split).items():
        assert torch.equal(matrix.cpu(), backend.matrices(whole)[name]), name
    with pytest.raises(UnsupportedError, match=r"is offloaded, 20 of its 39 .* that works block by block"):
        prune("minitron", split, budget="params=50%")
    _, halves = whole_and_split("cpu")
    scattered = copy.deepcopy(whole.model)
    scattered.lm_head.to(CARD)
    with pytest.raises(UnsupportedError, match=r"over card:0 and cpu, and nothing brings .*: open it with device_map"):
        prune("minitron", open_subject(scattered, tokenizer=tiny.tokenizer()), budget="params=50%")
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "count", lambda: 2)
        with pytest.raises(UnsupportedError, match="minitron trains it in one process"):
            Language().check_place(halves, "minitron", by_blocks=False)
    assert not (tmp_path / "out").exists()
    (row,) = prune("shortgpt", halves, budget="params=70%")
    assert row.after["params"].value < row.before["params"].value


def whole_and_split(main: str) -> tuple[Transformer, Transformer]:
    """A Llama in one piece, and the same on two devices."""
    whole, split = tiny.model("llama"), tiny.model("llama")
    dispatch_model(split, ON_TWO, main_device=main, force_hooks=True)
    return open_subject(whole, tokenizer=tiny.tokenizer()), open_subject(split, tokenizer=tiny.tokenizer())


@pytest.mark.wide
@pytest.mark.usefixtures("card")
def test_a_model_that_lies_on_two_devices_is_cut_as_one_that_lies_on_one(tmp_path: Path) -> None:
    whole, split = whole_and_split(CARD)
    for recipe, budget in (("magnitude", "weights=50%"), ("shortgpt", "params=70%")):
        here, there = (
            secateur.run(recipe, one, tiny.chains(100), budget, tmp_path / f"{recipe}-{name}")[0]
            for one, name in ((whole, "here"), (split, "there"))
        )
        assert there.cut.removed == here.cut.removed
        assert there.after["params"].value == here.after["params"].value
    assert {tensor.device.type for tensor in split.model.parameters()} == {"card", "meta"}, "it stays where it is"


@pytest.mark.wide
@pytest.mark.usefixtures("card")
def test_a_teacher_that_lies_on_two_devices_teaches_as_one_that_lies_on_one(tmp_path: Path) -> None:
    whole, learner = (open_subject(tiny.model("llama", seed), tokenizer=tiny.tokenizer()) for seed in (0, 1))
    split = dispatch_model(tiny.model("llama"), ON_TWO, main_device="cpu", force_hooks=True)
    halves = open_subject(split, tokenizer=tiny.tokenizer())
    how = {"steps": 2, "batch": 4, "length": 16, "validation": 0.2}
    taught = [
        secateur.distill(one, learner, tiny.chains(60), tmp_path / name, **how).recovery
        for one, name in ((halves, "halves"), (whole, "whole"))
    ]
    for ours, theirs in zip(taught[0].losses, taught[1].losses, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert taught[0].settings["evaluations"][-1] == pytest.approx(taught[1].settings["evaluations"][-1], rel=1e-5)
    (there,) = blockwise_result(halves, tmp_path / "there")
    (here,) = blockwise_result(whole, tmp_path / "here")
    assert there.cut.removed == here.cut.removed
    assert {p.device.type for p in there.subject.model.parameters()} == {"card", "cpu"}


# -------------------------------------------------------------------------------------------------------- commands


@pytest.mark.wide
@pytest.mark.usefixtures("card")
def test_commands_on_models_run_there(tmp_path: Path) -> None:
    tiny.folder("llama", tmp_path / "llama")
    (tmp_path / "texts.txt").write_text("\n".join(tiny.sentences(48)))
    data, quick = str(tmp_path / "texts.txt"), {"device": CARD, "batch": 2, "length": 8}
    model = str(tmp_path / "llama")
    (evidence,) = secateur.run("wanda", model, data, "weights=50%", out=tmp_path / "run", samples=8, **quick)
    assert evidence.after["perplexity"].value > 0
    rows = measure(str(tmp_path / "run"), against=model, data=data, **quick)
    assert rows["both"]["speedup"].value > 0
    taught = secateur.distill(str(tmp_path / "run"), [model], data, out=tmp_path / "taught", steps=2, **quick)
    assert taught.recovery is not None


@pytest.mark.usefixtures("card")
def test_commands_on_networks_run_there(tmp_path: Path, digits: tuple[Examples, nn.Module]) -> None:
    data, net = digits
    (evidence,) = secateur.run(
        "rethinking_pruning_value", copy.deepcopy(net), data, "channels=60%", out=tmp_path / "run", device=CARD,
        batch=8, epochs=1, scratch="E",
    )  # fmt: skip
    assert evidence.after["accuracy"].value >= 0
    subject = open_traced(copy.deepcopy(net), data.inputs[:2])
    asked: Counter[str] = Counter()
    for one in (subject, small := halve(subject)):
        one.model.register_forward_pre_hook(  # what is saved is tried on an example or two, on the CPU
            lambda module, given: asked.update([given[0].device.type] * (len(given[0]) > 6))
        )
    for device in (None, CARD):
        asked.clear()
        taught = secateur.distill(
            small, [subject], data, out=tmp_path / f"taught {device}", steps=2, batch=8, device=device, cache="all"
        )  # fmt: skip
        assert taught.recovery is not None
        assert asked[second_device.NAME] > 0
        assert not device or asked.keys() == {second_device.NAME}
    assert {p.device.type for one in (subject, small) for p in one.model.parameters()} == {"cpu"}
    asked.clear()
    results = secateur.prune_data(
        (data.inputs, data.labels), "examples=50%", tmp_path / "kept", score="el2n", model=copy.deepcopy(subject.model),
        epochs=1, runs=1,
    )  # fmt: skip
    assert len(results[0].subject.kept) == len(data) // 2
    assert asked.keys() == {second_device.NAME}
    cut = secateur.prune(copy.deepcopy(net).to(CARD), data.inputs[:2], "channels=60%")
    assert {p.device.type for p in cut.subject.model.parameters()} == {second_device.NAME}


@pytest.mark.usefixtures("card")
def test_a_network_that_leaves_a_tensor_behind_is_told_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Net(nn.Linear):\n    shift = torch.ones(1, 2)\n\n"
        "    def forward(self, rows):\n        return super().forward(rows) + self.shift\n\n\n"
        "def build():\n    return Net(3, 2)\n"
    )
    np.savez("data.npz", inputs=np.ones((8, 3), np.float32), labels=np.arange(8) % 2)
    asked = "prune-data data.npz --model net.py:build --score el2n --runs 1 --epochs 0 --budget examples=50% --out o"
    assert cli.main(asked.split()) != 0
    assert "has a tensor that stays behind when it goes to a GPU: let it be a buffer" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------- recipes, further options


def dp4tl_on_card(folder: Path, **options: Any) -> None:
    module = toy_of("dp4tl")
    files = module.written(folder)
    with second_device.present():
        module.results(folder / "run", files, network=put(module.opened()), **options)


@pytest.mark.parametrize("options", [{"mapping": "feature"}, {"attack": 0.03}, {"validation": 0.3}])
def test_dp4tl_asks_its_networks_where_they_lie(options: dict[str, Any], tmp_path: Path) -> None:
    dp4tl_on_card(tmp_path, **{"epochs": 1, "surrogate_epochs": 1, "probe_epochs": 1, "tune_epochs": 1, **options})


@pytest.mark.parametrize("score", ["forgetting", "memorisation", "el2n", "grand", "moderate"])
def test_examples_are_scored_by_a_network_on_the_card(
    score: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"score": score, "runs": 2, "score_epochs": 1.0}
    assert run_toy("kd_data_pruning", tmp_path, on_card=True, monkeypatch=monkeypatch, **options)


# ---------------------------------------------------------------------------------- copies and waits of a hot loop


def count_steps_of(train: Callable[[int], object], traffic: second_device.Traffic, first: int, last: int) -> None:
    """Leave in `traffic` what the steps from `first` to `last` of a training ask for: what comes once is no matter."""
    watched = []
    for steps in (first, last):
        with second_device.watch() as seen:
            train(steps)
        watched.append(seen)
    for kind in ("uploads", "waits"):
        once, all_in_all = (Counter(getattr(seen, kind)) for seen in watched)
        getattr(traffic, kind).extend((all_in_all - once).elements())


def classify(model: nn.Module) -> Any:
    def objective(batch: Any, totals: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss = functional.cross_entropy(model(batch["inputs"]), batch["labels"], reduction="sum") / totals["examples"]
        return loss, {"task": loss.detach()}

    return objective


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("what", ["plain", "masks", "gates", "mixed", "accumulated"])
def test_a_step_of_training_copies_its_batch_and_waits_once(what: str, digits: tuple[Examples, nn.Module]) -> None:
    data, net = digits
    feed = [dict(batch) for batch in data.in_order(16)]
    teacher = copy.deepcopy(net).to(CARD)

    def train(steps: int) -> None:
        model, how = copy.deepcopy(net).to(CARD), dict[str, Any](steps=steps, lr=1e-3, progress=False)
        how |= {"count": examples.count, "accumulate": 2 if what == "accumulated" else 1}
        with contextlib.ExitStack() as stack:
            objective = classify(model)
            if what == "masks":
                closed = {name: weight > 0 for name, weight in masks.convolutions(net).items()}
                stack.enter_context(masks.hold(model, {name: mask.cpu() for name, mask in closed.items()}))
            elif what == "gates":
                place = gates.Place("3", 8, 8, {"3": None}, 1)
                stack.enter_context(gates.Gates({"3": place}, hidden=4).on(model))
            elif what == "mixed":
                taps = ("0", "3")
                objective = mixed.objective(model, teacher, ask=lambda net, inputs: net(inputs), taps=taps)
            loop.train(model, feed, objective, **how)

    traffic = second_device.Traffic()
    count_steps_of(train, traffic, 2, 4)
    batches = 4 if what == "accumulated" else 2
    assert traffic.copies == 2 * batches, f"inputs and labels:\n{traffic.places()}"
    # Where labels may be -100, or tokens padding, the host has to know how many rows a loss is of.
    assert traffic.synchronisations == 2 * (2 if what == "mixed" else 1), traffic.places()


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("direction", ["forward", "js", "cached"])
def test_a_step_of_distillation_copies_its_batch_and_waits_once_for_each_loss(direction: str) -> None:
    student, teacher = (open_subject(tiny.model("llama", seed), tokenizer=tiny.tokenizer()) for seed in (0, 1))
    for subject in (student, teacher):
        subject.model.to(CARD)
    data = texts.batches(texts.read(tiny.sentences(48)), student.tokenizer, packed=True, batch=2, length=8)
    feed: list[Any] = data.take(4)
    if direction == "cached":
        likely = torch.randn(2, 8, 4).log_softmax(-1)
        more = {"teacher_log_probabilities": likely, "teacher_indices": torch.arange(4).expand(2, 8, 4).contiguous(),
                "teacher_remaining": torch.zeros(2, 8)}  # fmt: skip
        feed = [{**batch, **more} for batch in feed]

    def train(steps: int) -> None:
        how = {"direction": "forward"} if direction == "cached" else {"direction": direction}
        source = None if direction == "cached" else teacher.forward
        objective = objectives.distil(student.forward, source, output="logits", fused=True, **how)
        loop.train(student.model, feed, objective, steps=steps, lr=1e-4, progress=False)

    traffic = second_device.Traffic()
    count_steps_of(train, traffic, 2, 4)
    assert traffic.copies <= 2 * len(feed[0]), traffic.places()
    ours = [wait for wait in traffic.waits if not wait[2].startswith("subjects/transformer/subject.py")]
    assert len(ours) <= 4, f"which tokens count, and the numbers of the step:\n{traffic.places()}"
    assert traffic.synchronisations - len(ours) <= 4, f"one look of transformers at a mask:\n{traffic.places()}"


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("method", ["dhspg", "hesso"])
def test_a_step_of_a_sparse_optimiser_copies_nothing(method: str, digits: tuple[Examples, nn.Module]) -> None:
    data, net = digits
    subject = open_traced(copy.deepcopy(net).to(CARD), data.inputs[:2])
    model, slices = subject.model, subject.slices()
    optimizer = sparsify.GroupSparse(
        model.parameters(), slices, lr=0.01, method=method, target=0.5, start=0, span=40, periods=2
    )
    inputs, labels = data.inputs.to(CARD), data.labels.to(CARD)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    step()
    step()
    with second_device.watch() as traffic:
        for _ in range(4):
            step()
    assert (traffic.copies, traffic.synchronisations) == (0, 0), traffic.places()


@pytest.mark.parametrize(
    ("name", "passes"), [("nd_loss", ("collect", "diagnose")), ("gpusq_vit", ("mixed.residuals",))]
)
def test_passes_over_the_data_run_where_training_would(
    name: str, passes: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a subject on the CPU they are made on the card, where it is trained, and it is back afterwards."""
    recipe = importlib.import_module(f"secateur.recipes.vision.{name}")
    seen: list[str] = []

    def watch(real: Callable[..., Any], network: Any, *given: Any) -> Any:
        model = getattr(getattr(network, "subject", network), "model", network)
        seen.append(next(model.parameters()).device.type)
        return real(network, *given)

    for one in passes:
        real = operator.attrgetter(one)(recipe)
        monkeypatch.setattr(f"{recipe.__name__}.{one}", partial(watch, real))
    with second_device.watch() as traffic:
        result = run_toy(name, tmp_path, on_card=False, monkeypatch=monkeypatch)
    assert traffic.copies
    assert seen == [second_device.NAME] * len(passes)
    assert {tensor.device.type for tensor in result.subject.model.parameters()} == {"cpu"}


# ------------------------------------------------------------------------------------------------------- streaming


@pytest.mark.wide
@pytest.mark.usefixtures("card")
def test_a_streamed_model_is_pruned_and_measured_there_as_it_is_on_the_cpu(tmp_path: Path) -> None:
    tiny.folder("llama", tmp_path / "model")
    (tmp_path / "texts.txt").write_text("\n".join(tiny.chains(60)))
    rows = []
    for name, device in (("cpu", None), ("card", CARD)):
        rows += secateur.run(
            "sparsegpt", str(tmp_path / "model"), budget="weights=60%", data=str(tmp_path / "texts.txt"),
            out=tmp_path / name, stream=True, device=device, length=16, samples=4,
        )  # fmt: skip
    here, there = rows
    assert there.settings["device"] == CARD
    assert there.cut.removed == here.cut.removed
    for name in ("perplexity", "params", "flops", "zeros"):
        assert there.after[name].value == pytest.approx(here.after[name].value, rel=1e-4), name
    for file in (tmp_path / "cpu").glob("*.safetensors"):
        theirs = load_file(tmp_path / "card" / file.name)
        for name, tensor in load_file(file).items():
            torch.testing.assert_close(theirs[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("card")
def test_experts_are_left_out_of_blocks_that_are_read_there(tmp_path: Path) -> None:
    tiny.folder("mixtral", tmp_path / "mixtral")
    subject = open_streamed(tmp_path / "mixtral")
    units = subject.units("experts")
    selection = ranking.by_budget(units, random.scores(units, 0), Budget.parse("params=70%"))
    for name, place in (("cpu", "cpu"), ("card", CARD)):
        subject.put_on(place).cut(selection)[0].save(tmp_path / f"{name}-saved")
    for file in (tmp_path / "cpu-saved").glob("*.safetensors"):
        theirs = load_file(tmp_path / "card-saved" / file.name)
        assert all(torch.equal(theirs[name], tensor) for name, tensor in load_file(file).items())


@pytest.mark.usefixtures("card")
def test_blocks_go_there_one_at_a_time_and_the_next_is_read_meanwhile(tmp_path: Path, monkeypatch) -> None:
    tiny.folder("llama", tmp_path / "llama")
    subject = open_streamed(tmp_path / "llama").put_on(CARD)
    parameters = dict(subject.model.named_parameters())
    size = {
        path: sum(p.nbytes for name, p in parameters.items() if name.startswith(f"{path}."))
        for path in subject.layers()
    }
    read: list[str] = []
    plain = streamed._read

    def note(places: Any) -> Any:
        read.append(threading.current_thread().name)
        return plain(places)

    monkeypatch.setattr(streamed, "_read", note)
    for path in subject.layers():
        with second_device.watch() as traffic, subject.resident(path):
            there = [p for p in subject.model.parameters() if not p.is_meta]
            assert {p.device.type for p in there} == {second_device.NAME}
            assert sum(p.nbytes for p in there) == size[path], "one block and nothing else"
        assert sum(moved for _, moved, _ in traffic.uploads) == size[path], "each tensor goes once"
    assert not read[0].startswith("blocks")
    assert all(name.startswith("blocks") for name in read[1:])
    assert len(read) == len(subject.layers())
