"""Masks of a pruned start, and two networks that were retrained from it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from recipes.vision import nets
from secateur.errors import InputError, UnsupportedError
from secateur.methods import siblings
from secateur.methods.arms import fit, mark_correct
from secateur.methods.siblings import close_smallest, compare, load_state, path_errors, prunable
from secateur.recover.sparsity import masks
from secateur.recover.training import norms


@pytest.fixture(scope="module")
def family():
    """(masks, states of two siblings)."""
    start, found = nets.vgg(), []
    closed = close_smallest(prunable(start), 0.2)
    for seed in (1, 2):
        model = nets.vgg()
        fit(model, nets.data(96), epochs=2, batch=24, lr=0.05, seed=seed, closed=closed)
        found.append({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})
    return closed, found


@pytest.mark.parametrize("density", [0.05, 0.3, 0.8])
def test_densities_are_exact(density):
    weights = prunable(nets.vgg())
    for mask in (uniform := close_smallest(weights, density)).values():
        assert int(mask.sum()) == mask.numel() - round((1 - density) * mask.numel())
    whole = sum(weight.numel() for weight in weights.values())
    overall = close_smallest(weights, density, "global")
    assert sum(int(mask.sum()) for mask in overall.values()) == whole - round((1 - density) * whole)
    assert all(mask.any() for mask in overall.values())
    for name, mask in uniform.items():
        assert weights[name][mask].abs().min() >= weights[name][~mask].abs().max()


def test_what_is_pruned():
    model = nets.vgg()
    assert len(prunable(model)) == 4
    dense = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))
    assert list(prunable(dense, "matrices")) == ["1.weight"]
    with pytest.raises(UnsupportedError, match="choose layers=matrices"):
        prunable(dense)
    sizes = {"a": 100, "b": 1000}
    with pytest.raises(InputError, match="leaves a empty, which has 100 weights"):
        siblings.count_kept(sizes, 0.004)
    with pytest.raises(InputError, match="leaves one of 2 layers empty"):
        siblings.count_kept(sizes, 0.001, "global")
    with pytest.raises(InputError, match="no share"):
        siblings.count_kept(sizes, 1.5)


def test_a_model_and_itself_are_one(family):
    _, (first, _) = family
    pair = compare(nets.vgg(), first, first, nets.data(96), points=5)
    assert pair.connectivity == 0.0
    assert len(set(pair.errors)) == 1
    assert pair.similarity == pytest.approx(1.0)


def test_siblings_are_compared_the_same_from_both_ends(family):
    _, states = family
    data = nets.data(96)
    there, back = (compare(nets.vgg(), *pair, data, points=5) for pair in (states, states[::-1]))
    assert there.errors == back.errors[::-1]
    assert there.connectivity == back.connectivity
    assert there.similarity == pytest.approx(back.similarity)
    assert 0 <= there.similarity < 1
    for end, state in ((0, states[0]), (-1, states[1])):
        model = nets.vgg()
        model.load_state_dict(state)
        norms.reestimate(model, lambda part, model=model: model(part["inputs"]), data.in_order(128))
        assert there.errors[end] == 1.0 - mark_correct(model, data).mean()


def test_statistics_are_estimated_anew_at_every_point(family):
    _, states = family
    data, shell = nets.data(96), nets.vgg()
    told = [
        {name: torch.full_like(tensor, 7.0) if "running" in name else tensor for name, tensor in state.items()}
        for state in states
    ]
    assert path_errors(shell, *told, data, points=3) == path_errors(shell, *states, data, points=3)


def test_a_weight_that_two_layers_share_is_one():
    shared = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    shared[1].weight = shared[0].weight
    masks.apply(shared, close_smallest(prunable(shared), 0.5))
    assert list(prunable(shared)) == ["0.weight"]


def test_no_batch_of_one_example_is_left_over():
    """A norm of one value per channel has no variance."""
    shell = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4))
    state = {name: tensor.clone() for name, tensor in shell.state_dict().items()}
    assert len(path_errors(shell, state, state, nets.data(33), points=3, batch=32)) == 3
    assert len(path_errors(shell, state, state, nets.data(7), points=3, batch=3)) == 3
    with torch.no_grad():
        seen = shell[1](nets.data(36).inputs.flatten(1))
    path_errors(shell, state, state, nets.data(36), points=3, batch=32)
    assert torch.allclose(shell[2].running_mean, seen.mean(0), atol=1e-6), "a short last batch counts no more"


def test_the_mask_holds_along_the_path_and_after_every_step(family, monkeypatch):
    closed, states = family
    for step in range(5):
        for name, tensor in siblings.blend(*states, step, 4).items():
            if name in closed:
                assert torch.equal(tensor != 0, closed[name])
    model, seen = nets.vgg(), []

    def look(optimizer):
        weights = dict(model.named_parameters())
        seen.append(any(bool(weights[name][~mask].any()) for name, mask in closed.items()))

    fit(model, nets.data(96), epochs=1, batch=24, lr=0.05, closed=closed, sam=0.05, step_end=look)
    assert seen == [False] * 4


def test_a_checkpoint_of_another_architecture_is_refused_by_name(tmp_path):
    state = nets.vgg(seed=3).state_dict()
    save_file(state, tmp_path / "a.safetensors")
    like = nets.vgg().state_dict()
    assert all(
        torch.equal(tensor, state[name]) for name, tensor in load_state(tmp_path / "a.safetensors", like).items()
    )
    save_file(nets.vgg(depth=2).state_dict(), tmp_path / "b.safetensors")
    save_file({**state, "more": torch.ones(2)}, tmp_path / "c.safetensors")
    (tmp_path / "d.safetensors").write_bytes(b"nothing")
    for name, words in (
        ("b", "b.safetensors is of another architecture: it has"),
        ("c", "it has more of shape"),
        ("d", "can't be read as safetensors"),
    ):
        with pytest.raises(InputError, match=words):
            load_state(tmp_path / f"{name}.safetensors", like)
    tied = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    tied["b"].weight = tied["a"].weight
    kept = {name: tensor + 1 for name, tensor in tied.state_dict().items() if name != "b.weight"}
    save_file(kept, tmp_path / "tied.safetensors")
    found = load_state(tmp_path / "tied.safetensors", tied.state_dict())
    assert torch.equal(found["b.weight"], found["a.weight"])


def test_random_masks_have_as_many_weights_of_each_layer(family):
    closed, _ = family
    drawn = masks.shuffle(closed, seed=1)
    assert [int(one.sum()) for one in drawn.values()] == [int(one.sum()) for one in closed.values()]
    assert any(not torch.equal(*pair) for pair in zip(drawn.values(), closed.values(), strict=True))
