import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import InputError
from secateur.select import allocate, ranking
from secateur.vocabulary import Site, Units


def test_round_to():
    assert allocate.round_to(12, 8) == 16  # halves go up
    assert allocate.round_to(11.9, 8) == 8
    assert allocate.round_to(11.9, 8, towards="up") == 16
    assert allocate.round_to(15.9, 8, towards="down") == 8
    assert allocate.round_to(0.7 * 10, 1, towards="down") == 7
    assert allocate.round_to(1.1 * 10, 1, towards="up") == 11
    assert allocate.round_to(3, 8, minimum=8) == 8
    assert allocate.round_to(1529, 8, maximum=1530) == 1528
    assert allocate.round_to(1530, 8, towards="up", maximum=1530) == 1530


def test_uniform_counts_are_counts_that_the_sites_allow():
    units = Units(
        {
            "0.heads": Site("0.heads", 12, group=np.arange(12) // 4),
            "0.neurons": Site("0.neurons", 100, multiple=8),
            "channels": Site("channels", 64, multiple=8, minimum=8),
            "layers": Site("layers", 5, frozen=True),
        }
    )
    assert allocate.uniform(units, 0.5) == {"0.heads": 6, "0.neurons": 48, "channels": 32}
    assert allocate.uniform(units, 0.0) == {"0.heads": 0, "0.neurons": 0, "channels": 8}
    scores = {site.name: np.arange(float(site.count)) for site in units.free()}
    for share in np.linspace(0, 1, 11):
        ranking.by_counts(units, scores, allocate.uniform(units, share))  # none is refused
    with pytest.raises(InputError, match=r"share 1\.5"):
        allocate.uniform(units, 1.5)


def test_the_grid_of_a_real_width():
    grid = allocate.grid(1536)
    assert grid[0] == 0
    assert grid[-1] == 1536
    assert 1384 in grid
    assert grid == sorted(set(grid))
    assert all(size % 8 == 0 for size in grid)
    exact = allocate.grid(1536, multiple=1)
    assert len(exact) == 44
    assert exact[-2] == round(1536 * 0.9)
    assert allocate.grid(1530)[-1] == 1530
    with pytest.raises(InputError, match="ratio"):
        allocate.grid(8, ratio=1.0)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.floats(0, 1))
def test_proportional_is_exact_and_fair(sizes, share):
    total = int(share * sum(sizes))
    parts = allocate.proportional(sizes, total)
    assert sum(parts) == total
    for part, size in zip(parts, sizes, strict=True):
        assert 0 <= part <= size
        assert abs(part - total * size / max(sum(sizes), 1)) < 1


def test_proportional_refuses_more_than_there_is():
    with pytest.raises(InputError, match="can't keep 7 of 6"):
        allocate.proportional([2, 4], 7)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 50), st.integers(1, 1000)), min_size=1, max_size=20),
    st.floats(0.02, 0.99),
    st.floats(0, 0.5),
)
def test_spread_meets_its_mean_whatever_is_clipped(blocks, mean, half):
    worth, sizes = zip(*blocks, strict=True)
    found = allocate.spread(worth, mean, half, sizes=sizes)
    assert np.average(found, weights=sizes) == pytest.approx(mean, rel=1e-6)
    assert all(0 < density <= 1 for density in found)
    assert [found[i] for i in np.argsort(worth, kind="stable")] == sorted(found)


def test_spread_spans_twice_lambda_and_equal_worths_are_uniform():
    found = allocate.spread([1.0, 2.0, 4.0], 0.5, 0.08)
    assert max(found) - min(found) == pytest.approx(0.16)
    assert sum(found) / 3 == pytest.approx(0.5)
    assert found[1] - found[0] == pytest.approx(0.16 / 3)
    assert allocate.spread([3.0, 3.0], 0.3, 0.08) == [0.3, 0.3]
    with pytest.raises(InputError, match="mean"):
        allocate.spread([1.0], 1.5, 0.1)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(1, 8), st.integers(1, 100)), min_size=1, max_size=12))
def test_rounded_never_spends_more(blocks):
    values, sizes = zip(*blocks, strict=True)
    found = allocate.round_to_total(values, sizes, most=8)
    assert all(1 <= n <= 8 and abs(n - value) < 1.0 + 1e-6 for n, value in zip(found, values, strict=True))
    assert np.dot(found, sizes) <= np.dot(values, sizes) + 1e-4
