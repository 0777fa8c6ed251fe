import numpy as np
import pytest

from secateur.errors import InputError, UnsupportedError
from secateur.select import levels
from secateur.vocabulary import Site, Term, Units


def network() -> Units:
    sites = {
        "channels": Site("channels", 4, frozen=True),
        "layers": Site("layers", 2, frozen=True),
        "layers.0.neurons": Site("layers.0.neurons", 8),
        "layers.1.neurons": Site("layers.1.neurons", 8),
        "layers.0.heads": Site("layers.0.heads", 2),
        "layers.1.heads": Site("layers.1.heads", 2),
    }
    terms = [Term("params", 2.0, (name, "channels")) for name in list(sites)[2:]]
    return Units(sites, tuple(terms), {"params": 10.0})


def test_a_sum_of_columns_is_the_cost_of_any_choice():
    units = network()
    wanted = {"layers.0.neurons": [0, 4, 8], "layers.1.heads": [0, 1, 2]}
    columns, base = levels.costs(units, wanted, "params")
    for i in range(3):
        for j in range(3):
            keep = {
                "layers.0.neurons": np.arange(8) < wanted["layers.0.neurons"][i],
                "layers.1.heads": np.arange(2) < wanted["layers.1.heads"][j],
            }
            total = base + columns["layers.0.neurons"][i] + columns["layers.1.heads"][j]
            assert units.cost(keep)["params"] == pytest.approx(total)


def test_a_product_of_two_selected_axes_is_refused():
    with pytest.raises(UnsupportedError, match="is a product, not a sum"):
        levels.costs(network(), {"layers.0.neurons": [0, 8], "channels": [0, 4]}, "params")


def test_a_measured_table_is_interpolated_and_the_rest_is_fixed():
    units = network()
    table = {
        "neurons": {"0": 0.0, "4": 1.0, "8": 3.0},
        "heads": {"0": 0.0, "1": 0.5, "2": 1.0},
        "rest": {"0": 2.0},
    }
    fixed = table["rest"]["0"]
    timed = levels.with_latency(units, table, fixed)
    assert timed.cost()["latency"] == pytest.approx(2.0 + 2 * (3.0 + 1.0))
    assert timed.cost({"layers.0.neurons": np.arange(8) < 6})["latency"] == pytest.approx(9.0)
    nothing = {name: np.zeros(site.count, dtype=bool) for name, site in units.sites.items() if not site.frozen}
    assert timed.cost(nothing)["latency"] == pytest.approx(2.0)
    assert levels.with_latency(units, None, fixed) is units


def test_a_site_wider_than_what_was_timed_is_refused():
    """Its seconds would be those of a narrower one."""
    table = {"neurons": {"0": 0.0, "4": 1.0}, "rest": {"0": 2.0}}
    with pytest.raises(
        InputError, match=r"layers\.0\.neurons has 8 units, and the latency table ends at 4: give a new"
    ):
        levels.with_latency(network(), table, 2.0)
    sites = {name: Site(name, count) for name, count in (("a.neurons", 8), ("b.neurons", 4), ("c.heads", 2))}
    assert levels.widest(Units(sites)) == {"neurons": 8, "heads": 2}
