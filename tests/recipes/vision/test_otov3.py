"""OTOv3 on a network of three residual steps, and pictures of rows, columns and diagonals."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import toys
import vision_models
from pictures import mask_folder
from recipes.vision import nets
from recipes.vision.nets import bars
from recipes.vision.nets import blocks as subject
from secateur.data import examples
from secateur.data.examples import Examples
from secateur.errors import DataError, InfeasibleError, InputError, ModelError, UnsupportedError
from secateur.recipes.vision import otov3 as recipe
from secateur.recipes.vision.otov3 import otov3
from secateur.recover.training import loop
from secateur.runs import executor
from secateur.runs.backends.network import Network
from secateur.score import gradient
from secateur.subjects.network.recording import Example
from secateur.subjects.network.traced import Traced, open_traced
from secateur.vocabulary import Budget, Result


def quick(
    folder: Path, budget: str, data: Examples | None = None, start: Traced | None = None, **options: Any
) -> Result:
    how = {"epochs": 6, "batch": 16, **options}
    (result,) = nets.run(otov3, folder, start or subject(), data or bars(), [budget], **how)
    return result


def accuracy(one: Traced, data: Examples) -> float:
    with torch.no_grad():
        return float((one.model.eval()(data.inputs).argmax(1) == data.labels).float().mean())


@pytest.mark.parametrize(
    ("budget", "options"),
    [
        ("channels=50%", {}),
        ("channels=50%", {"method": "hesso", "saliency": "dhspg", "scope": "global"}),
        ("params=60%", {"variant": "adamw", "lr": 0.01}),
        ("flops=60%", {"method": "hesso", "variant": "adam", "lr": 0.01}),
        ("channels=60%", {"multiple": 4}),
    ],
)
def test_pruning_mode_meets_the_budget_and_cuts_what_is_zero(budget: str, options: dict[str, Any], tmp_path) -> None:
    start = subject()
    before = {name: value.clone() for name, value in start.model.state_dict().items()}
    result = quick(tmp_path, budget, start=start, **options)
    limits = Budget.parse(budget).absolute(start.units().cost())
    for measure, limit in limits.items():
        assert result.predicted[measure] <= limit
        assert result.subject.units().cost()[measure] == result.cut.after[measure] == result.predicted[measure]
    assert float(result.notes[-1].split("differ by ")[1].split()[0]) <= 1e-5
    step = options.get("multiple", 1)
    for site in result.subject.units().free():
        assert site.count >= 1
        assert site.count % step == 0 or site.count < step
    for module in result.subject.model.modules():
        if isinstance(module, nn.Conv2d):
            norms = module.weight.detach().flatten(1).norm(dim=1)
            assert bool((norms > 0).all()), "the cut network still holds a zero group"
    assert all(torch.equal(value, before[name]) for name, value in start.model.state_dict().items())
    assert result.recovery is not None
    assert result.recovery.steps == 36


@pytest.mark.parametrize("method", ["dhspg", "hesso"])
def test_a_span_to_the_very_end_meets_the_budget_too(method: str, tmp_path) -> None:
    # Of 15 steps, 0.1 are rounded up to 2 and 0.9 to 14.
    how = {"epochs": 5, "batch": 32, "warm": 0.1, "span": 0.9, "epsilon": 0.0, "method": method}
    start = open_traced(nets.vgg(0), nets.data(2).inputs)
    result = quick(tmp_path, "channels=50%", nets.data(96), start, **how)
    assert result.recovery is not None
    assert result.recovery.steps == 15
    assert result.cut.after["channels"] <= 0.5 * result.cut.before["channels"]


def test_a_training_of_one_step_meets_both_budgets(tmp_path) -> None:
    result = quick(tmp_path, "segments=50%,channels=60%", bars(16), epochs=1)
    assert result.cut.removed["segments"] == (2, 4)
    assert any(site.endswith("channels") for site in result.cut.removed)


def test_accumulated_batches_are_not_more_epochs(tmp_path) -> None:
    once, twice = (
        quick(tmp_path / str(count), "channels=60%", epochs=2, training=f"accumulate={count}").recovery
        for count in (1, 2)
    )
    assert once is not None
    assert twice is not None
    assert (once.steps, twice.steps) == (12, 6)
    assert once.tokens == twice.tokens


def test_betas_reach_the_optimiser_and_another_optimiser_is_refused(tmp_path) -> None:
    how = {"epochs": 1, "variant": "adam", "lr": 0.01}
    plain, other = (
        quick(tmp_path / name, "channels=60%", **how, **more).subject.model.state_dict()
        for name, more in (("plain", {}), ("other", {"training": {"betas": (0.5, 0.6)}}))
    )
    assert any(not torch.equal(value, other[name]) for name, value in plain.items())
    with pytest.raises(InputError, match="optimizer=adamw: give variant=sgd or adam or adamw"):
        quick(tmp_path / "adamw", "channels=60%", training="optimizer=adamw")


def test_weights_of_an_earlier_step_are_refused_before_training(tmp_path, monkeypatch) -> None:
    """They would be those of before the groups were zero, while what goes is told by the end."""
    monkeypatch.setattr(loop, "train", lambda *args, **kwargs: pytest.fail("trained before it refused"))
    for how in ("patience=1", "patience=1,keep=last", "validation=0.2", "keep=best"):
        with pytest.raises(InputError, match="weights from before all groups are zero: leave them out"):
            quick(tmp_path / how, "channels=60%", training=how)
    with pytest.raises(pytest.fail.Exception):
        quick(tmp_path / "last", "channels=60%", training="validation=0.2,keep=last")


def test_it_learns(tmp_path) -> None:
    result = quick(tmp_path, "channels=60%", epochs=20)
    assert accuracy(result.subject, bars(200, seed=1)) > 0.8


def test_the_tolerance_reaches_the_optimiser(tmp_path, monkeypatch) -> None:
    given = []
    real = recipe.GroupSparse

    def watch(*args: Any, **settings: Any) -> Any:
        given.append({name: settings[name] for name in ("epsilon", "tolerance", "finish")})
        return real(*args, **settings)

    monkeypatch.setattr(recipe, "GroupSparse", watch)
    quick(tmp_path, "channels=60%", epochs=2, tolerance=0.2)
    assert given == [{"epsilon": 0.95, "tolerance": 0.2, "finish": 0.3}]


@pytest.mark.parametrize("method", ["dhspg", "hesso"])
def test_erasing_mode_never_breaks_the_network(method: str, tmp_path) -> None:
    result = quick(tmp_path, "segments=25%", method=method)
    assert result.cut.removed == {"segments": (3, 4)}
    assert result.predicted["segments"] == 1
    for measure in ("params", "flops"):
        assert result.cut.after[measure] == result.predicted[measure] < result.cut.before[measure]
    graph = result.subject.graph
    assert graph.useful | {0} == set(range(len(graph.vertices)))
    assert ("left" in str(result.subject.model)) == ("left" in dict(result.subject.model.named_modules()))
    assert result.subject.flops() < 0.7 * subject().flops()
    with pytest.raises(InfeasibleError, match=r"3 of 4 segments can go .* at least segments=1"):
        quick(tmp_path / "more", "segments=10%", method=method)


def test_erasing_and_pruning_share_one_training(tmp_path) -> None:
    result = quick(tmp_path, "segments=50%,channels=60%")
    assert result.cut.removed["segments"] == (2, 4)
    assert any(site.endswith("channels") for site in result.cut.removed)
    assert result.recovery is not None
    assert result.recovery.steps == 36
    steps = [step for step, _ in result.recovery.losses]
    assert steps == sorted(set(steps))
    assert len(result.notes) == 2
    assert result.predicted["segments"] == 2
    assert result.subject.flops() < 0.5 * subject().flops()


@pytest.mark.parametrize(
    ("budget", "how"),
    [
        ("channels=50%", {"method": "hesso"}),
        ("segments=25%", {"method": "dhspg", "variant": "adamw", "lr": 0.01, "finish": 0.5}),
        ("segments=25%", {"method": "hesso", "periods": 3}),
    ],
)
def test_a_loop_of_ones_own_erases_and_prunes_too(budget: str, how: dict[str, Any]) -> None:
    start, data = subject(), bars()
    settings: dict[str, Any] = {"lr": 0.05, "start": 3, "span": 9, **how}
    optimizer = recipe.optimiser(start.model.parameters(), start, budget, **settings)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    with pytest.raises(InputError, match="no group is zero after 0 steps: they are chosen after step 3"):
        _ = optimizer.selection
    for step in range(20):
        rows = torch.arange(16) + 16 * (step % 6)
        optimizer.zero_grad()
        nn.functional.cross_entropy(start.model.train()(data.inputs[rows]), data.labels[rows]).backward()
        optimizer.step()
        rates.step()
    small, cut = start.cut(optimizer.selection)
    if "segments" in budget:
        assert cut.removed == {"segments": (3, 4)}, "the search goes on in the optimiser"
    else:
        assert cut.after["channels"] <= 0.5 * cut.before["channels"]
    with torch.no_grad():
        gap = small.model.eval()(data.inputs) - start.model.eval()(data.inputs)
    assert float(gap.abs().max()) < 1e-4


def test_each_method_has_its_own_saliency_unless_another_is_named() -> None:
    start = subject()
    optimise = partial(recipe.optimiser, list(start.model.parameters()), start, "channels=50%", lr=0.1)
    assert optimise().saliency is gradient.dhspg
    assert optimise(method="hesso").saliency is gradient.hesso
    assert optimise(method="hesso", saliency="dhspg").saliency is gradient.dhspg
    for how, words in (({"method": "x"}, "method='x': give one of dhspg, hesso"), ({"saliency": "x"}, "saliency='x'")):
        with pytest.raises(InputError, match=words):
            optimise(**how)


def test_an_optimiser_refuses_what_it_can_not_reach_before_the_first_step() -> None:
    start = subject()
    for budget, error, words in (
        ("segments=50%,channels=50%", InputError, "one budget, not segments=50%,channels=50%: erase"),
        ("segments=10%", InfeasibleError, "3 of 4 segments can go"),
        ("channels=100%", InfeasibleError, "would change nothing"),
    ):
        with pytest.raises(error, match=words):
            recipe.optimiser(start.model.parameters(), start, budget, lr=0.1)


def test_a_dry_run_says_what_would_go_and_trains_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(loop, "train", lambda *args, **kwargs: pytest.fail("a dry run trained"))
    for budget in ("channels=50%", "segments=50%"):
        result = quick(tmp_path / budget, budget, dry_run=True)
        assert not result.cut.is_noop
        assert result.recovery is None
    assert "erased: " in result.cut.notes[0]


def test_networks_are_compared_on_batches_that_the_examples_allow() -> None:
    start, data, seen = subject(), bars(), []
    start.model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    whole = recipe.compare_outputs(start, start.copy(), data, 20)
    assert seen == [20, 20]
    seen.clear()
    assert recipe.compare_outputs(start, start.copy(), examples.limit(data, 8), 20) == whole
    assert seen == [8, 8, 8, 8, 4, 4]


def test_the_cpu_decides_where_a_device_multiplies_in_fewer_digits(monkeypatch) -> None:
    """As GPUs do in convolutions (TF32): equal networks of other widths differ there by more than the tolerance."""

    @contextmanager
    def rough(*models: nn.Module) -> Iterator[torch.device]:
        handles = [
            module.register_forward_hook(lambda _, args, out, step=step: out * (1 + 1e-3 * step))
            for step, model in enumerate(models)
            for module in model.modules()
            if isinstance(module, nn.Conv2d)
        ]
        yield torch.device("cpu")
        for handle in handles:
            handle.remove()

    monkeypatch.setattr(loop, "place_for_training", rough)
    start, other = subject(), subject()
    assert "differ by 0 of the largest" in recipe.compare_outputs(start, start.copy(), bars(), 20)
    with torch.no_grad():
        other.model.head.bias += 1
    with pytest.raises(ModelError, match="the cut network's outputs differ from the trained one's by"):
        recipe.compare_outputs(start, other, bars(), 20)


def test_a_killed_run_resumes_and_repeats(tmp_path, monkeypatch) -> None:
    budget = "segments=50%,channels=60%"
    whole = quick(tmp_path / "whole", budget)
    real, calls = loop.train, []

    def killed(*args: Any, **kwargs: Any) -> Any:
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        quick(tmp_path / "again", budget)
    monkeypatch.setattr(loop, "train", real)
    again = quick(tmp_path / "again", budget)
    assert torch.equal(again.subject.forward(), whole.subject.forward())
    assert torch.equal(quick(tmp_path / "again", budget).subject.forward(), whole.subject.forward())


def test_without_classes_the_original_teaches_and_what_is_protected_stays(tmp_path) -> None:
    data = Examples(bars().inputs)
    start = subject()
    result = quick(tmp_path, "channels=70%", data, start, protect="one, stem", lr=0.01, epochs=10)
    listed = quick(tmp_path / "listed", "channels=70%", data, start, protect=["one", "stem"], lr=0.01, epochs=10)
    assert listed.cut.removed == result.cut.removed
    assert not any(site.startswith(("one", "stem")) for site, (gone, _) in result.cut.removed.items() if gone)
    gap = (result.subject.forward() - start.forward()).norm() / start.forward().norm()
    assert gap < 1.0
    boxes = Examples(data.inputs[:1], None, ({"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)},))
    with pytest.raises(DataError, match="has boxes"):
        quick(tmp_path / "boxes", "channels=50%", boxes)


def test_answers_of_many_places_are_learnt_as_of_one() -> None:
    """A sum over all pixels would be too steep for any rate that suits classes."""
    net, data = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1)), Examples(torch.rand(8, 1, 6, 6))
    work, original = (Traced(copy.deepcopy(net), Example.of(data.inputs[:2])) for _ in range(2))
    with torch.no_grad():
        work.model[2].bias += 1
    value, _ = recipe.objective(work, original, data)({"inputs": data.inputs}, {"examples": 8})
    assert float(value.detach()) == pytest.approx(0.5 * 3)


def test_what_can_not_be_met_is_refused_before_training(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(loop, "train", lambda *args, **kwargs: pytest.fail("trained before it refused"))
    with pytest.raises(InfeasibleError, match="channels"):
        quick(tmp_path / "a", "channels=0.001%")
    with pytest.raises(InputError, match="give channels="):
        quick(tmp_path / "b", "pattern=2:4")
    for budget in ("channels=100%", "channels=100%,params=100%", "segments=100%", "segments=100%,channels=100%"):
        with pytest.raises(InfeasibleError, match=f"budget {budget} would change nothing"):
            quick(tmp_path / "e", budget)
    for second, words in (
        ("channels=100%", "channels=100% would change nothing"),
        ("channels=0.001%", "can go down to"),
    ):
        with pytest.raises(InfeasibleError, match=words):
            nets.run(otov3, tmp_path / "f", subject(), bars(), ["channels=50%", second])
    flat = nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 3))
    data = Examples(torch.randn(20, 6), torch.arange(20) % 3)
    with pytest.raises(UnsupportedError, match="no channel of this network is zero"):
        quick(tmp_path / "c", "channels=50%", data, Traced(flat, Example.of(data.inputs[:2])))
    with pytest.raises(UnsupportedError, match="no segment"):
        quick(tmp_path / "d", "segments=50%", data, Traced(flat, Example.of(data.inputs[:2])))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "epochs=0: give at least 1"),
        ({"warm": 2.0}, "option warm=2"),
        ({"warm": float("nan")}, "option warm=nan"),
        ({"warm": 0.9, "span": 0.8}, r"span=0\.8: give a share of the training above 0, at most the 0\.1 after warm"),
        ({"span": 0.0}, "option span=0"),
        ({"finish": 1.5}, r"option finish=1\.5"),
    ],
)
def test_shares_of_the_training_fit_into_it(options: dict[str, Any], words: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(loop, "train", lambda *args, **kwargs: pytest.fail("trained before it refused"))
    with pytest.raises(InputError, match=words):
        quick(tmp_path, "channels=50%", **options)


def test_sites_that_are_not_exact_stay_whole_and_are_named(tmp_path) -> None:
    torch.manual_seed(0)
    mixed = nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    data = Examples(torch.randn(40, 6), torch.arange(40) % 3)
    result = quick(tmp_path, "channels=75%", data, open_traced(mixed, data.inputs[:2]))
    assert result.subject.model[0].out_features == 8
    assert result.subject.model[2].out_features == 4
    assert result.notes[0].startswith("stays whole, since zeros there do not equal a cut")
    assert result.notes[0].endswith(": 0.channels")
    mixed[2].weight.requires_grad_(False)
    with pytest.raises(UnsupportedError, match="no channel of this network is zero"):
        quick(tmp_path / "frozen", "channels=75%", data, open_traced(mixed, data.inputs[:2]))


class Scaled(nn.Module):
    """A branch with a weight of no dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        x = x + self.scale * self.a(x).relu()
        return self.c(x + self.b(x))


@pytest.mark.parametrize("method", ["dhspg", "hesso"])
def test_weights_of_any_shape_become_zero_with_their_segment(method: str, tmp_path) -> None:
    data = Examples(torch.randn(40, 6), torch.arange(40) % 3)
    start = open_traced(Scaled(), data.inputs[:2])
    result = quick(tmp_path, "segments=50%", data, start, method=method)
    assert result.cut.removed == {"segments": (1, 2)}


def vit() -> Traced:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    shape = {"img_size": 6, "patch_size": 3, "in_chans": 1, "embed_dim": 8, "depth": 2, "num_heads": 2}
    return open_traced(timm.create_model("vit_tiny_patch16_224", num_classes=3, **shape), bars().inputs[:2])


@pytest.mark.parametrize("budget", ["channels=60%", "segments=50%"])
def test_a_network_of_timm_is_erased_and_pruned(budget: str, tmp_path) -> None:
    start = vit()
    result = quick(tmp_path, budget, start=start, epochs=1, variant="adamw", lr=1e-3)
    (measure,) = Budget.parse(budget).absolute({"channels": 1.0, "segments": 1.0})
    whole = start.units(*(["segments"] if measure == "segments" else [])).cost()[measure]
    assert result.predicted[measure] <= Budget.parse(budget).limits[0].absolute(whole)
    assert result.cut.after["flops"] == result.predicted["flops"] < 0.8 * result.cut.before["flops"]


BUILD = """
import sys
sys.path.insert(0, {place!r})
from recipes.vision.nets import Blocks as build
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(BUILD.format(place=str(Path(__file__).parents[2])))
    data = bars()
    np.savez(tmp_path / "data.npz", inputs=data.inputs.numpy(), labels=data.labels.numpy())
    return tmp_path


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("budget", ["channels=50%", "segments=50%"])
def test_a_run_ends_with_a_program_that_needs_nothing_of_ours(place: Path, budget: str) -> None:
    out = place / "small"
    (row,) = executor.run("otov3", f"{place}/model.py:build", place / "data.npz", budget, out, epochs=2, batch=16)
    assert row.after["flops"].value < row.before["flops"].value
    assert row.after["params"].value == row.predicted["params"]
    program = torch.export.load(out / "model.pt2")
    assert sum(p.numel() for p in program.parameters()) == row.predicted["params"]
    assert row.verdict == "met"


def test_passes_of_a_run_are_no_larger_than_the_batch_that_was_asked_for(place: Path, monkeypatch) -> None:
    real, seen = examples.batches, list[Examples]()
    monkeypatch.setattr(examples, "batches", lambda data, **how: seen.append(data) or real(data, **how))
    for how in ({}, {"batch": 64}, {"training": "batch=8"}):
        executor.run(
            "otov3", f"{place}/model.py:build", place / "data.npz", "channels=50%", place / "dry", dry_run=True, **how
        )
    assert [getattr(data, "most", None) for data in seen] == [None, None, 8]


def toy(_):
    """What `conformance.check_recipe` takes: see tests/conformance."""
    return toys.classifier(epochs=6, batch=24)


def test_masks_are_classes_to_learn(tmp_path: Path) -> None:
    shapes = mask_folder(tmp_path / "shapes", 8)
    data = examples.with_transform(examples.read(shapes), "none", 24, workers=0)
    start = Network().open(vision_models.fcn(8), None, data)
    result = quick(tmp_path / "run", "params=70%", data, start, epochs=8, batch=4, lr=0.01)
    assert result.recovery is not None
    losses = [value for _, value in result.recovery.losses]
    assert losses[-1] < losses[0], "255 counts nowhere, and what is labelled is learned"
    assert result.cut.after["params"] <= 0.7 * result.cut.before["params"]


def test_what_is_asked_for_reaches_the_groups_and_the_optimiser(tmp_path, monkeypatch) -> None:
    given, groups, seeds = list[dict[str, Any]](), list[dict[str, Any]](), list[int]()
    sparse, of = recipe.GroupSparse, recipe.GroupBudget.of
    batches, train = recipe.examples.batches, recipe.loop.train

    def watch(*args: Any, **how: Any) -> Any:
        seeds.append(how["seed"])
        return train(*args, **how)

    monkeypatch.setattr(recipe, "GroupSparse", lambda *args, **how: given.append(how) or sparse(*args, **how))
    monkeypatch.setattr(
        recipe.GroupBudget, "of", staticmethod(lambda *args, **how: groups.append(how) or of(*args, **how))
    )
    monkeypatch.setattr(
        recipe.examples, "batches", lambda data, **how: seeds.append(how["seed"]) or batches(data, **how)
    )
    monkeypatch.setattr(recipe.loop, "train", watch)
    how = {"method": "hesso", "momentum": 0.5, "periods": 3, "penalty": 0.02, "warm": 0.25, "span": 0.5, "seed": 5}
    choice = {"scope": "global", "multiple": 2, "hierarchical": False}
    quick(tmp_path, "channels=60%", epochs=2, **how, **choice)
    wanted = {"method": "hesso", "momentum": 0.5, "periods": 3, "penalty": 0.02, "start": 3, "span": 6}
    assert [{name: one[name] for name in wanted} for one in given] == [wanted], "of twelve steps"
    assert groups == [choice] * 2, "before training and in it"
    assert seeds == [5, 5]


def test_the_original_teaches_where_there_are_no_classes(tmp_path, monkeypatch) -> None:
    taught, real = [], recipe.objective
    monkeypatch.setattr(recipe, "objective", lambda *given: taught.append(given[:2]) or real(*given))
    start = subject()
    quick(tmp_path, "channels=70%", Examples(bars().inputs), start, lr=0.01, epochs=1)
    ((work, original),) = taught
    assert original is start
    assert work is not start
