import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from score.networks import Block, Linear, batches
from secateur.errors import InputError
from secateur.measure import memory
from secateur.score import database, hessian


def test_one_pass_gives_every_site_its_sweep():
    torch.manual_seed(0)
    model, data = nn.ModuleList([Block(), Block()]), batches()

    def forward(batch):
        return model[1](model[0](batch["x"]))

    consumers = {"0.neurons": Linear("0.down"), "1.heads": Linear("1.down", 3)}
    found = database.build(forward, model, data, consumers, {"0.neurons": [0, 2, 6], "1.heads": [0, 1, 2]}, damp=0.02)
    assert {site: sweep.levels for site, sweep in found.items()} == {"0.neurons": (0, 2, 6), "1.heads": (0, 1, 2)}
    H = hessian.collect(forward, model, data, ["1.down"])["1.down"]
    alone = hessian.sweep(model[1].down.weight, H, 3, damp=0.02)
    assert found["1.heads"].order == alone.order
    torch.testing.assert_close(found["1.heads"].weights[1], alone.weights[1])


class Tower(nn.Sequential):
    """Blocks of which each gives its output to the next."""

    def __init__(self, depth, width=192):
        super().__init__(*[nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 16)) for _ in range(depth)])


def build_tower(depth, folder, **how):
    torch.manual_seed(0)
    model, data = Tower(depth), [{"x": torch.randn(64, 16)} for _ in range(2)]
    consumers = {f"layers.{n}.neurons": Linear(f"{n}.2") for n in range(depth)}
    counts = {site: range(0, 193, 16) for site in consumers}
    found = database.build(lambda b: model(b["x"]), model, data, consumers, counts, folder, **how)
    return model, consumers, data, found


def test_a_database_on_disk_is_the_one_in_memory_whatever_one_pass_holds(tmp_path):
    _, _, _, memory_ = build_tower(4, None)
    for name, at_once in (("all", 1e9), ("one", 0.0)):
        model, consumers, data, stored = build_tower(4, tmp_path / name, at_once=at_once)
        assert list(stored) == list(memory_)
        for site, sweep in stored.items():
            assert (sweep.order, sweep.errors) == (memory_[site].order, memory_[site].errors)
            assert all(torch.equal(sweep.weights[level], memory_[site].weights[level]) for level in sweep.levels)
        levels = dict.fromkeys(stored, 64)
        with database.stitch(model, consumers, {site: stored[site].weights[64] for site in levels}):
            expected = model(data[0]["x"])
        with database.running(model, consumers, stored, levels):
            assert torch.equal(model(data[0]["x"]), expected)
        assert not torch.equal(model(data[0]["x"]), expected)


def test_memory_does_not_grow_with_the_number_of_layers(tmp_path):
    few, many = (
        memory.measure_allocation(lambda depth=depth: build_tower(depth, tmp_path / str(depth), at_once=0.0)).value
        for depth in (2, 6)
    )
    own = 4 * 2 * 4 * 16 * 192  # of four more layers themselves
    assert many - own < 1.1 * few


def test_a_weight_is_its_own_again_after_a_forward_pass_that_failed():
    model, consumers, _, found = build_tower(2, None)
    own = model[0][2].weight.detach().clone()
    with pytest.raises(RuntimeError), database.running(model, consumers, found, dict.fromkeys(found, 64)):
        model(torch.randn(2, 5))
    with pytest.raises(RuntimeError), database.running(model, consumers, found, dict.fromkeys(found, 64)):
        model[0][2](torch.randn(2, 5))
    assert torch.equal(model[0][2].weight, own)


def test_both_layouts_give_one_database():
    torch.manual_seed(0)
    plain, other = nn.Linear(6, 4), Conv1D(4, 6)
    with torch.no_grad():
        other.weight.copy_(plain.weight.T)
        other.bias.copy_(plain.bias)
    data = batches(width=6)
    one = database.build(lambda b: plain(b["x"]), plain, data, {"n": Linear("", 2)}, {"n": range(4)})["n"]
    two = database.build(lambda b: other(b["x"]), other, data, {"n": Linear("", 2, True)}, {"n": range(4)})["n"]
    assert one.order == two.order
    x = data[0]["x"]
    with database.stitch(plain, {"n": Linear("", 2)}, {"n": one.weights[2]}):
        expected = plain(x)
    with database.stitch(other, {"n": Linear("", 2, True)}, {"n": two.weights[2]}):
        torch.testing.assert_close(other(x), expected)
    torch.testing.assert_close(other(x), plain(x))


def test_stitching_ends_with_the_block_even_after_a_failure():
    model = Block()
    own = model.down.weight.detach().clone()

    def fail():
        with database.stitch(model, {"n": Linear("down")}, {"n": torch.zeros(4, 6)}):
            assert not model.down.weight.any()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert torch.equal(model.down.weight, own)
    with (
        pytest.raises(InputError, match="no module"),
        database.stitch(
            model, {"n": Linear("down"), "m": Linear("x")}, {"n": torch.zeros(4, 6), "m": torch.zeros(4, 6)}
        ),
    ):
        pass
    assert torch.equal(model.down.weight, own)
