import pytest
import torch

from score.networks import residual, slices, unit_of
from secateur.errors import DataError, InputError, NumericalError
from secateur.score import similarity


def states(batch):
    """Four hidden states: nothing, a rotation by a right angle, a reversal."""
    x = batch["x"]
    turned = torch.stack([-x[..., 1], x[..., 0]], -1)
    return [x, 2 * x, turned, -turned]


def test_block_influence_is_one_minus_cosine():
    x = torch.randn(2, 3, 2)
    first, second, third, last = states({"x": x})
    assert similarity.block_influence(first, second).item() == pytest.approx(0.0, abs=1e-6)
    assert similarity.block_influence(second, third).item() == pytest.approx(1.0, abs=1e-6)
    assert similarity.block_influence(third, last).item() == pytest.approx(2.0, abs=1e-6)


def test_layers_and_contiguous_blocks():
    data = [{"x": torch.randn(2, 3, 2)} for _ in range(3)]
    assert similarity.collect(states, data).tolist() == pytest.approx([0.0, 1.0, 2.0], abs=1e-6)
    assert similarity.collect(states, data, span=2).tolist() == pytest.approx([1.0, 1.0], abs=1e-6)
    assert similarity.collect(states, data, span=3).shape == (1,)
    for span in (0, 4):
        with pytest.raises(InputError, match=f"span {span} does not fit 3 layers"):
            similarity.collect(states, data, span=span)


def test_every_real_token_counts_once_whatever_its_batch():
    draw = torch.Generator().manual_seed(0)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]])
    x, y = torch.randn(3, 3, 4, generator=draw), torch.randn(3, 3, 4, generator=draw)
    x[mask == 0] = float("nan")
    real = mask.bool()
    expected = 1 - torch.cosine_similarity(x[real], y[real], dim=-1).mean()
    data = [{"x": x[i : i + 1], "y": y[i : i + 1], "attention_mask": mask[i : i + 1]} for i in range(3)]
    found = similarity.collect(lambda b: [b["x"], b["y"]], data)
    torch.testing.assert_close(found, expected[None])


def test_bad_data_is_refused():
    with pytest.raises(DataError, match="at least one batch"):
        similarity.collect(states, [])
    with pytest.raises(NumericalError, match="block influence"):
        similarity.collect(states, [{"x": torch.full((1, 1, 2), float("nan"))}])


def test_geometric_median_is_the_sum_of_distances_and_finds_the_unit_in_the_middle():
    model = residual()
    given = slices(model)
    with torch.no_grad():
        for weight, dim, _ in given["inner"]:
            weight.select(dim, 2).copy_(weight.mean(dim))
    found = similarity.geometric_median(given)
    for site, parts in given.items():
        vectors = torch.stack([unit_of(parts, unit) for unit in range(len(found[site]))])
        expected = torch.stack([sum((x - y).norm() for y in vectors) for x in vectors])
        torch.testing.assert_close(found[site], expected, rtol=1e-5, atol=1e-5)
    assert int(found["inner"].argmin()) == 2
    before = similarity.geometric_median(given)["wide"]
    with torch.no_grad():
        for weight, dim, _ in given["wide"]:
            if dim == 0:
                weight.add_(1.0)  # moving all units by the same vector changes no distance
    torch.testing.assert_close(similarity.geometric_median(given)["wide"], before, rtol=1e-4, atol=1e-4)


def test_units_of_several_indices_are_compared_index_by_index():
    weight = torch.tensor([[0.0, 5.0, 0.0, 9.0, 3.0, 9.0]])
    found = similarity.geometric_median({"a": [(weight, 1, torch.tensor([0, 1, 0, 1, -1, -1]))]})
    assert found["a"].tolist() == pytest.approx([(25 + 81) ** 0.5] * 2)


def test_distances_between_all_layers_come_from_one_pass():
    passes = []

    def watched(batch):
        passes.append(1)
        return states(batch)

    data = [{"x": torch.randn(2, 3, 2)} for _ in range(3)]
    table = similarity.distances(watched, data)
    assert len(passes) == 3
    assert table.diagonal(1).tolist() == pytest.approx(similarity.collect(states, data).tolist())
    assert table.diagonal(2).tolist() == pytest.approx(similarity.collect(states, data, span=2).tolist())
    assert table.tril().abs().max() == 0
    angles = similarity.distances(states, data, similarity.angular_distance)
    assert angles.diagonal(1).tolist() == pytest.approx([0.0, 0.5, 1.0], abs=1e-3)
    assert angles[0].tolist() == pytest.approx([0.0, 0.0, 0.5, 0.5], abs=1e-3)


def test_of_last_tokens_padding_on_either_side_is_none():
    x = torch.randn(2, 4, 8)
    y = torch.randn(2, 4, 8)
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    data = [{"x": x, "y": y, "attention_mask": mask}]
    found = similarity.distances(lambda b: [b["x"], b["y"]], data, similarity.angular_distance, last=True)
    ends = x[[0, 1], [2, 3]], y[[0, 1], [2, 3]]
    expected = torch.arccos(torch.cosine_similarity(*ends, dim=-1)) / torch.pi
    torch.testing.assert_close(found[0, 1], expected.mean())
    whole = similarity.distances(lambda b: [b["x"], b["y"]], [{"x": x, "y": y}], last=True)
    torch.testing.assert_close(whole[0, 1], 1 - torch.cosine_similarity(x[:, -1], y[:, -1], dim=-1).mean())


# ------------------------------------------------------------------------------------------------ of representations


@pytest.mark.parametrize("shape", [(12, 40, 30), (60, 5, 7)])
def test_cka_is_one_up_to_rotation_scale_and_shift(shape):
    n, p, q = shape
    x, y = torch.randn(n, p), torch.randn(n, q)
    turn = torch.linalg.qr(torch.randn(p, p))[0]
    assert similarity.cka(x, 3 * x @ turn + 5).item() == pytest.approx(1.0, abs=1e-6)
    centred = [one.double() - one.double().mean(0) for one in (x, y)]
    k, m = (one @ one.T for one in centred)
    assert similarity.cka(x, y).item() == pytest.approx(((k * m).sum() / k.norm() / m.norm()).item())
    assert similarity.cka(x, torch.ones(n, 3)).item() == 0.0
    with pytest.raises(InputError, match="of the same examples"):
        similarity.cka(x, y[1:])


def test_minibatches_tell_the_cka_of_all_and_not_a_mean():
    torch.manual_seed(0)
    x = torch.randn(400, 6)
    y = x @ torch.randn(6, 4) + 2 * torch.randn(400, 4)
    found = {}
    for size in (8, 50, 400):
        tally = similarity.CenteredAlignment()
        for begin in range(0, 400, size):
            tally.add(x[begin : begin + size], y[begin : begin + size])
        found[size] = tally.value().item()
    whole = similarity.cka(x, y).item()
    assert found == pytest.approx(dict.fromkeys(found, whole), abs=0.05)
    naive = torch.stack([similarity.cka(x[b : b + 8], y[b : b + 8]) for b in range(0, 400, 8)]).mean().item()
    assert abs(naive - whole) > 3 * abs(found[8] - whole), "the biased estimate depends on the size of batches"
    same = similarity.CenteredAlignment()
    same.add(x, 2 * x)
    assert same.value().item() == pytest.approx(1.0)
    with pytest.raises(DataError, match="no batches"):
        similarity.CenteredAlignment().value()
    with pytest.raises(InputError, match="at least 4"):
        same.add(x[:3], y[:3])
