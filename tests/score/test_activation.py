import pytest
import torch
from torch import nn

from score.networks import Block, Linear, batches, hooks, images, residual, same, slices, state
from secateur.errors import DataError, InputError, NumericalError
from secateur.score import activation
from secateur.score.activation import Tap

REDUCE = {
    "mean": lambda s: s.abs().mean(0),
    "l2": lambda s: s.square().sum(0).sqrt(),
    "var": lambda s: s.var(0, unbiased=False),
}


def samples(model, data):
    """The neurons' activations of each sample, real tokens only: a list of [tokens, neurons]."""
    with torch.no_grad():
        return [
            torch.tanh(model.up(x[mask.bool()]))
            for batch in data
            for x, mask in zip(batch["x"], batch["attention_mask"], strict=True)
        ]


def run(model):
    return lambda batch: model(batch["x"])


@pytest.mark.parametrize("over_samples", ["mean", "l2", "var"])
@pytest.mark.parametrize("over_sequence", ["mean", "l2", "var"])
def test_each_pair_of_reducers_is_its_equation(over_samples, over_sequence):
    torch.manual_seed(0)
    model, data = Block(), batches()
    taps = {"neurons": Tap("down"), "again": Tap("up", "output")}
    scores = activation.collect(run(model), model, data, taps, batch=over_samples, sequence=over_sequence)
    rows = torch.stack([REDUCE[over_sequence](s) for s in samples(model, data)])
    torch.testing.assert_close(scores["neurons"], REDUCE[over_samples](rows), rtol=1e-5, atol=1e-6)
    assert scores["again"].shape == (6,)


def test_the_default_is_mean_over_the_sequence_then_l2_over_samples():
    torch.manual_seed(0)
    model, data = Block(), batches()
    scores = activation.collect(run(model), model, data, {"n": Tap("down")})["n"]
    expected = torch.stack([s.abs().mean(0) for s in samples(model, data)]).square().sum(0).sqrt()
    torch.testing.assert_close(scores, expected)


def test_a_head_is_the_norm_of_its_channels():
    torch.manual_seed(0)
    model, data = Block(), batches()
    rows = samples(model, data)
    first = activation.collect(run(model), model, data, {"h": Tap("down", block=3)})["h"]
    expected = torch.stack([s.reshape(-1, 2, 3).norm(dim=-1).mean(0) for s in rows]).norm(dim=0)
    torch.testing.assert_close(first, expected)
    last = activation.collect(run(model), model, data, {"h": Tap("down", block=3)}, norm="channel")["h"]
    channel = torch.stack([s.abs().mean(0) for s in rows]).norm(dim=0)
    torch.testing.assert_close(last, channel.reshape(2, 3).norm(dim=-1))
    assert not torch.allclose(first, last)
    with pytest.raises(InputError, match="h: 6 channels do not divide into blocks of 4"):
        activation.collect(run(model), model, data, {"h": Tap("down", block=4)})


def test_padding_changes_nothing_even_when_it_is_nan():
    torch.manual_seed(0)
    model, data = Block(), batches()
    clean = activation.collect(run(model), model, data, {"n": Tap("down")})["n"]
    for batch in data:
        batch["x"][~batch["attention_mask"].bool()] = float("nan")
    data.append({"x": torch.full((1, 5, 4), 9.0), "attention_mask": torch.zeros(1, 5, dtype=torch.long)})
    for how in ("mean", "l2", "var"):
        torch.testing.assert_close(
            activation.collect(run(model), model, data, {"n": Tap("down")}, batch=how)["n"],
            activation.collect(run(model), model, data[:-1], {"n": Tap("down")}, batch=how)["n"],
        )
    torch.testing.assert_close(activation.collect(run(model), model, data, {"n": Tap("down")})["n"], clean)


def test_how_the_data_is_batched_does_not_matter():
    torch.manual_seed(0)
    model, (data,) = Block(), batches(1, size=6)
    single = [{key: value[i : i + 1] for key, value in data.items()} for i in range(6)]
    for how in ("mean", "l2", "var"):
        one = activation.collect(run(model), model, [data], {"n": Tap("down")}, batch=how)["n"]
        six = activation.collect(run(model), model, single, {"n": Tap("down")}, batch=how)["n"]
        torch.testing.assert_close(one, six)


def test_variance_survives_a_large_mean():
    """Sums of squares in float32 would lose all digits here."""
    model = nn.Identity()
    data = [{"x": 4096.0 + torch.randn(8, 3, 2, generator=torch.Generator().manual_seed(i))} for i in range(4)]
    found = activation.collect(lambda b: model(b["x"]), model, data, {"n": Tap("", "output")}, batch="var")["n"]
    rows = torch.cat([b["x"].double().abs().mean(1) for b in data])
    torch.testing.assert_close(found.double(), rows.var(0, unbiased=False), rtol=2e-2, atol=0)


def test_plain_and_flattened_activations_are_read():
    torch.manual_seed(0)
    model, data = Block(), batches()
    whole = activation.collect(run(model), model, data, {"n": Tap("down")})["n"]
    flat = activation.collect(lambda b: model(b["x"].flatten(0, 1)), model, data, {"n": Tap("down")})["n"]
    torch.testing.assert_close(flat, whole)
    x = torch.randn(7, 4)
    vectors = activation.collect(model, model, [x], {"n": Tap("down")})["n"]
    torch.testing.assert_close(vectors, torch.tanh(model.up(x)).norm(dim=0).detach())


def test_low_precision_is_accumulated_in_float32():
    model = Block().bfloat16()
    data = [torch.ones(1, 2000, 4, dtype=torch.bfloat16)]
    score = activation.collect(model, model, data, {"n": Tap("down")}, sequence="mean")["n"]
    assert score.dtype == torch.float32
    expected = torch.tanh(model.up(data[0][0, :1])).float().abs()[0]
    torch.testing.assert_close(score, expected.detach(), rtol=1e-5, atol=1e-6)


def test_keyword_inputs_and_tuple_outputs_are_seen():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def forward(self, x):
            return self.inner(states=x)[0]

    class Inner(nn.Module):
        def forward(self, states):
            return (states * 2, "cache")

    model, x = Odd(), torch.randn(2, 3, 4)
    scores = activation.collect(model, model, [x], {"in": Tap("inner"), "out": Tap("inner", "output")})
    torch.testing.assert_close(scores["out"], 2 * scores["in"])


def test_the_model_is_left_as_it_was_even_after_a_failure():
    model = Block()
    model.train()
    model.down.eval()

    def broken(batch):
        model(batch["x"])
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        activation.collect(broken, model, batches(), {"n": Tap("down")})
    assert hooks(model) == 0
    activation.collect(run(model), model, batches(), {"n": Tap("down")})
    assert hooks(model) == 0
    assert model.training
    assert model.up.training
    assert not model.down.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_can_not_be_scored_is_said_by_name():
    model, data = Block(), batches()
    with pytest.raises(InputError, match=r"no module 'layers\.9'"):
        activation.collect(run(model), model, data, {"n": Tap("layers.9")})
    assert hooks(model) == 0
    with pytest.raises(InputError, match="'down' was never run"):
        activation.collect(lambda b: model.up(b["x"]), model, data, {"n": Tap("down")})
    with pytest.raises(DataError, match="no batches"):
        activation.collect(run(model), model, [], {"n": Tap("down")})
    with pytest.raises(InputError, match="reducer 'max' is not one of"):
        activation.collect(run(model), model, data, {"n": Tap("down")}, batch="max")
    with pytest.raises(InputError, match="reducer 'max' is not one of"):
        activation.collect(run(model), model, data, {"n": Tap("down")}, sequence="max")
    with pytest.raises(InputError, match="side 'left'"):
        activation.collect(run(model), model, data, {"n": Tap("down", "left")})
    with torch.no_grad():
        model.up.weight[0] = float("nan")
    with pytest.raises(NumericalError, match=r"layers\.0\.neurons: NaN"):
        activation.collect(run(model), model, data, {"layers.0.neurons": Tap("down")})


def test_scores_of_one_axis_are_summed_over_layers():
    total = activation.sum_scores({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 5.0])})
    assert total.tolist() == [4.0, 7.0]
    with pytest.raises(InputError, match="one shape"):
        activation.sum_scores({"a": torch.zeros(2), "b": torch.zeros(3)})


def test_taps_of_consumers():
    assert activation.inputs({"h": Linear("down", 3)}) == {"h": Tap("down", "input", 3)}


def test_channels_are_read_where_they_are_taken_in():
    model, data = residual().train(), images()
    given, before = slices(model), state(model)
    mean = activation.channels(run(model), model, data, given)
    nonzero = activation.channels(run(model), model, data, given, what="nonzero")
    assert same(before, state(model)), "scoring left something behind"
    model.eval()
    x = torch.cat([batch["x"] for batch in data])
    with torch.no_grad():
        inner_in = model.bn(model.stem(x)).relu()
        outer_in = model.bn2(model.inner(inner_in)).relu()
        head_in = (inner_in + model.outer(outer_in)).relu().mean((2, 3))
    torch.testing.assert_close(mean["inner"], outer_in.mean((0, 2, 3)))
    torch.testing.assert_close(nonzero["inner"], (outer_in > 0).float().mean((0, 2, 3)))
    expected = (inner_in.mean((0, 2, 3)) + head_in.abs().mean(0)) / 2
    torch.testing.assert_close(mean["wide"], expected)


def test_channels_that_nothing_takes_in_are_read_as_they_come_out():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(4, 6, 1, groups=2), nn.Conv1d(6, 6, 1, groups=6))
    data, unit = [torch.randn(2, 4, 5)], torch.arange(6)
    given = {"a": [(model[0].weight, 0, unit), (model[1].weight, 0, unit)], "b": [(model[0].weight, 1, unit[:2])]}
    found = activation.channels(model, model, data, given)
    with torch.no_grad():
        first = model[0](data[0])
        expected = (first.abs().mean((0, 2)) + model[1](first).abs().mean((0, 2))) / 2
    torch.testing.assert_close(found["a"], expected)
    assert set(found) == {"a"}, "an index inside a group is no channel"


def test_channels_leave_padding_out_and_average_the_columns_of_a_unit():
    model, data = Block(), batches()
    given = {"n": [(model.down.weight, 1, torch.tensor([0, 0, 1, 1, 2, -1]))]}
    found = activation.channels(run(model), model, data, given)["n"]
    tokens = torch.cat(samples(model, data)).abs().mean(0)
    torch.testing.assert_close(found, torch.stack([tokens[:2].mean(), tokens[2:4].mean(), tokens[4]]))
    with pytest.raises(DataError, match="no batches"):
        activation.channels(run(model), model, [], given)
    with pytest.raises(InputError, match="what 'l2'"):
        activation.channels(run(model), model, data, given, what="l2")


def test_heads_of_states_are_ranked_by_the_best_channels_alone():
    s = torch.tensor([[3.0, 0.0, 1.0], [4.0, 9.0, 0.0]])  # 2 heads of 3 channels
    heads, channels = activation.state_scores(s.flatten(), 2)
    assert channels.tolist() == pytest.approx([5.0, 9.0, 1.0])
    assert heads.tolist() == pytest.approx([10**0.5, 97**0.5])
    heads, _ = activation.state_scores(s.flatten(), 2, top=1)
    assert heads.tolist() == [0.0, 9.0]
