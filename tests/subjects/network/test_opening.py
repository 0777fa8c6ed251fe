"""Networks opened by what a user has of them; a saved cut is a network like any other."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import cpu_offload
from torch import nn
from torchvision.ops import StochasticDepth

import secateur
import tiny
from secateur.errors import InputError, ModelError, UnsupportedError
from secateur.subjects.network import files
from secateur.subjects.network.opening import build_network, is_saved, load_saved, open_network, open_saved
from secateur.subjects.network.traced import open_traced, reload_traced
from subjects import nets

BUILD = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.ones(2, 3)
"""


def cut_in_half(model, inputs=None):
    subject = open_traced(model, inputs, prove=False)
    return subject.cut(nets.half(subject))[0]


def test_a_model_of_transformers_in_memory_gets_the_inputs_that_its_folder_gets(tmp_path: Path) -> None:
    tiny.folder("qwen3", tmp_path)
    wanted = build_network(tmp_path)[1]
    model = tiny.model("qwen3")
    given = build_network(model)[1]
    assert isinstance(wanted, dict)
    assert isinstance(given, dict)
    assert given.keys() == wanted.keys()
    assert torch.equal(given["input_ids"], wanted["input_ids"])
    _, cut = secateur.prune(model, budget="params=75%")
    assert cut.after["params"] <= 0.75 * cut.before["params"]


def test_a_network_in_memory_without_inputs_is_refused_in_the_words_of_python() -> None:
    with pytest.raises(InputError, match=r"or their shape, such as '1x3x224x224', as example_inputs of secateur.prune"):
        secateur.prune(nn.Linear(3, 4))


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "net.py").write_text(BUILD)
    monkeypatch.chdir(tmp_path)
    return "net.py:build"


def test_a_network_trained_in_ones_own_loop_is_saved_and_loads(tmp_path: Path) -> None:
    model, inputs = nets.make("residual")
    for small in (cut_in_half(model, inputs).model, copy.deepcopy(cut_in_half(model, inputs).model)):
        with torch.no_grad():
            for parameter in small.parameters():
                parameter.mul_(0.9)
        open_traced(small, inputs, prove=False).save(tmp_path / "tuned")
        again = reload_traced(tmp_path / "tuned", model, inputs)
        assert torch.equal(again.forward(), small.eval()(inputs))
        assert torch.equal(load_saved(tmp_path / "tuned", original=model).eval()(inputs), again.forward())


def test_what_a_network_comes_from_survives_a_pickle_and_needs_no_secateur_there() -> None:
    model, inputs = nets.make("mlp")
    small = cut_in_half(model, inputs).model
    text = pickle.dumps(vars(small)["_secateur_history"])
    assert b"secateur" not in text
    again = pickle.loads(pickle.dumps(small))
    assert open_traced(again, inputs, prove=False).plans == open_traced(small, inputs, prove=False).plans != ()


def test_a_result_of_a_result_loads_by_either(tmp_path: Path) -> None:
    model, inputs = nets.make("residual")
    once = cut_in_half(model, inputs)
    twice = cut_in_half(once)
    twice.save(tmp_path)
    for original in (model, once.model):
        assert torch.equal(reload_traced(tmp_path, original, inputs).forward(), twice.forward())


def test_a_folder_finds_the_function_that_builds_its_original(tmp_path: Path, built: str) -> None:
    small = cut_in_half(open_network(built))
    small.save(tmp_path / "small")
    assert is_saved(tmp_path / "small")
    assert not is_saved(tmp_path)
    assert torch.equal(load_saved("small").eval()(torch.ones(2, 3)), small.forward())
    assert torch.equal(open_saved("small").forward(), small.forward())
    assert open_network("small", "4x3").forward().shape == (4, 2)
    cut_in_half(open_network("small")).save(tmp_path / "smaller")
    (tmp_path / "small" / "cut.json").unlink()
    assert sum(p.numel() for p in load_saved("smaller").parameters()) < sum(p.numel() for p in small.model.parameters())


def test_a_folder_of_an_older_version_asks_the_record_of_its_run(
    tmp_path: Path, built: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = build_network(built)
    small = cut_in_half(model, inputs)
    small.save(tmp_path / "run" / "channels=50%")
    plan = tmp_path / "run" / "channels=50%" / "cut.json"
    plan.write_text(plan.read_text().replace(f', "built_by": "{built}"', ""))
    assert built not in plan.read_text()
    with pytest.raises(InputError, match="given in Python"):
        open_saved(plan.parent)
    (tmp_path / "run" / "run.yaml").write_text(yaml.safe_dump({"model": built, "inputs": "5x3"}))
    monkeypatch.chdir(tmp_path / "run")  # the file is above
    assert open_saved("channels=50%").forward().shape == (5, 2)
    (tmp_path / "net.py").unlink()
    with pytest.raises(InputError, match=r"no file net.py here or beside it"):
        open_saved("channels=50%")


def test_inputs_come_from_the_program_where_nobody_else_says(tmp_path: Path, built: str) -> None:
    model, inputs = build_network(built)
    small = cut_in_half(model, inputs)
    small.save(tmp_path / "small")
    with pytest.raises(InputError, match="does not say what its network runs on"):
        open_saved("small", original=model)
    small.save(tmp_path / "small", program=True)
    assert open_saved("small", original=model).forward().shape == (2, 2)


class Remembering(nn.Module):
    """Keeps a product of its parameter in evaluation, and drops it when its mode is set, as timm's LeViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.gain = nn.Linear(4, 8), nn.Linear(8, 3), nn.Parameter(torch.rand(8))
        self.kept: dict[str, torch.Tensor] = {}

    def train(self, mode: bool = True) -> Remembering:
        self.kept = {}
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            return self.last(self.first(x) * (2 * self.gain))
        if "gain" not in self.kept:
            self.kept["gain"] = 2 * self.gain
        return self.last(self.first(x) * self.kept["gain"])


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("score", ["magnitude", "activation"])
def test_what_a_network_kept_of_its_last_pass_is_not_cut_along(grad: bool, score: str) -> None:
    torch.manual_seed(0)
    model, x = Remembering().eval(), torch.rand(2, 4)
    with torch.set_grad_enabled(grad):
        model(x)
    small, cut = secateur.prune(model, x, "params=60%", score, batches=[x] if score == "activation" else None)
    assert not cut.is_noop
    assert small(x).shape == (2, 3)
    small, _ = secateur.prune(small, x, "params=60%")
    assert small(x).shape == (2, 3)
    assert not model.training


def test_what_would_not_load_is_not_saved(tmp_path: Path) -> None:
    model, inputs = nets.make("mlp")
    small = cut_in_half(model, inputs)
    name, layer = next((n, m) for n, m in reversed(list(small.model.named_modules())) if isinstance(m, torch.nn.Linear))
    small.model.set_submodule(name, torch.nn.Linear(layer.in_features + 1, layer.out_features))
    with pytest.raises(ModelError, match="was replaced since"):
        small.save(tmp_path / "small")
    small.model.set_submodule(name, layer)
    small.masks[f"{name}.weight"] = torch.zeros_like(layer.weight, dtype=torch.bool)
    with pytest.raises(ModelError, match="no longer zero"):
        small.save(tmp_path / "small")
    small.masks.clear()
    with torch.no_grad():
        layer.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="NaN"):
        small.save(tmp_path / "small")
    assert not (tmp_path / "small").exists()


NET = """
import torch
from torch import nn

def build():
    layers = nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 16), nn.Dropout(0.5), nn.Linear(16, 2)
    return nn.Sequential(*layers), torch.ones(2, 3)
"""
REPLACED: dict[str, tuple[str, Callable[[], nn.Module], str]] = {
    "a new head": ("4", lambda: nn.Linear(8, 7), r"4.bias of this Sequential is \(7,\), and was \(2,\) after the cut"),
    "no bias": ("4", lambda: nn.Linear(8, 2, bias=False), r"4.bias of this Sequential is absent, and was"),
    "another function": ("1", nn.GELU, "1 of this Sequential is GELU, and was ReLU: it was replaced since"),
}


def test_what_passes_on_its_input_and_batch_norms_of_several_processes_are_no_other_network(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), StochasticDepth(0.5, "row"), nn.Conv2d(16, 2, 1))
    small = secateur.prune(net, torch.rand(2, 3, 4, 4), budget="channels=50%")[0]
    small = nn.SyncBatchNorm.convert_sync_batchnorm(small)
    small[2] = nn.Identity()
    secateur.open_subject(small, inputs=torch.rand(2, 3, 4, 4)).save(tmp_path / "small")
    again = secateur.load(tmp_path / "small", original=net)
    image = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(again(image), small.eval()(image))


class Growing(nn.Module):
    """A table of positions that is made, or made longer, when inputs ask for it, as those of rotary embeddings are."""

    def __init__(self, made: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 16), nn.Linear(16, 2)
        if made:
            self.register_buffer("places", torch.arange(4.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "places") or len(self.places) < x.shape[1]:
            self.register_buffer("places", torch.arange(float(x.shape[1])), persistent=False)
        return self.last(torch.relu(self.first(x))) + self.places[: x.shape[1], None]


@pytest.mark.parametrize("made", [True, False])
def test_tables_that_grow_with_the_inputs_are_no_replaced_modules(made: bool, tmp_path: Path) -> None:
    result = secateur.prune(Growing(made), torch.rand(2, 4, 3), budget="channels=50%")
    result[0](torch.rand(2, 4 if made else 9, 3))
    if made:
        result[0].places += 1
    result.subject.save(tmp_path / "small")
    again = secateur.load(tmp_path / "small", original=Growing(made))
    x = torch.rand(2, 4 if made else 7, 3)
    torch.testing.assert_close(again(x), result[0](x))
    if made:
        result[0](torch.rand(2, 9, 3))
        result.subject.save(tmp_path / "grown")
        plan = json.loads((tmp_path / "grown" / files.PLAN).read_text())
        assert plan.pop("passing") == ["places"]  # which earlier versions did not write
        (tmp_path / "grown" / files.PLAN).write_text(json.dumps(plan))
        torch.testing.assert_close(secateur.load(tmp_path / "grown", original=Growing(made))(x), result[0](x))


@pytest.mark.parametrize("case", REPLACED)
def test_what_was_replaced_after_a_cut_is_not_saved_and_can_be_cut_again(case: str, tmp_path: Path) -> None:
    name, make, words = REPLACED[case]
    (tmp_path / "net.py").write_text(NET)
    result = secateur.prune(f"{tmp_path}/net.py:build", budget="channels=50%")
    result.subject.save(tmp_path / "small")
    for network in (result[0], secateur.load(tmp_path / "small")):
        network[3] = nn.Identity()
        subject = secateur.open_subject(network, inputs=torch.rand(2, 3))
        subject.save(tmp_path / "again")
        old, network[int(name)] = network[int(name)], make()
        changed = secateur.open_subject(network, inputs=torch.rand(2, 3))
        with pytest.raises(ModelError, match=words):
            changed.save(tmp_path / "other")
        in_memory = secateur.prune(changed, budget="channels=80%")
        with pytest.raises(ModelError, match=words):
            in_memory.subject.save(tmp_path / "other")
        network[int(name)] = old
        less = secateur.prune(subject, budget="channels=80%")
        less.subject.save(tmp_path / "less")
        assert secateur.load(tmp_path / "less")[0].out_features == less[0][0].out_features < 8
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("inputs", [torch.ones(2, 3), None])
def test_an_offloaded_network_is_refused_before_it_is_traced_or_inputs_are_asked_for(inputs: object) -> None:
    net = cpu_offload(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), "cpu")
    with pytest.raises(UnsupportedError, match=r"Sequential is offloaded, .*: open it without device_map"):
        secateur.prune(net, inputs)
