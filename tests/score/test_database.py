import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from score.networks import Block, Linear, batches
from secateur.errors import InputError
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
