"""The values that travel between the floors: parsed right, added up right, and the same after a trip through JSON."""

import copy
import json
import math
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from secateur.errors import BudgetError, InputError
from secateur.vocabulary import (
    Budget,
    Cut,
    Evidence,
    Figure,
    Limit,
    Notes,
    Pattern,
    Recovery,
    Selection,
    Site,
    Term,
    Training,
    Units,
    write_enough,
)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("speedup=2x", Limit("latency", 0.5, relative=True)),
        ("speed = 4", Limit("latency", 0.25, relative=True)),
        ("params=50%", Limit("params", 0.5, relative=True)),
        ("parameters=0.5", Limit("params", 0.5, relative=True)),
        ("params=100%", Limit("params", 1.0, relative=True)),
        ("params=22M", Limit("params", 22e6)),
        ("params=6e9", Limit("params", 6e9)),
        ("flops=1.5G", Limit("flops", 1.5e9)),
        ("latency=12ms", Limit("latency", 0.012)),
        ("latency=250us", Limit("latency", 250e-6)),
        ("latency=50%", Limit("latency", 0.5, relative=True)),
        ("memory=2GiB", Limit("memory", 2.0**31)),
        ("bytes=10MB", Limit("bytes", 1e7)),
        ("kv_cache=30%", Limit("kv_cache", 0.3, relative=True)),
        ("tokens=4096", Limit("tokens", 4096.0)),
        ("Tokens=4k", Limit("tokens", 4000.0)),
        ("tokens=1", Limit("tokens", 1.0)),
        ("tokens=1.0", Limit("tokens", 1.0, relative=True)),
        ("tokens=1e0", Limit("tokens", 1.0, relative=True)),
        ("channels=1", Limit("channels", 1.0)),
    ],
)
def test_a_budget_is_read(text, limit):
    budget = Budget.parse(text)
    assert budget.limits == (limit,)
    assert budget.pattern is None
    assert Budget.parse(str(budget)).limits[0].value == pytest.approx(limit.value)


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("params=33.3333%", "params=33.3333%"),
        ("params=33.33%", "params=33.33%"),
        ("params=0.333", "params=0.333"),
        ("speedup=1.23456x", "speedup=1.23456x"),
        ("latency=50%", "speedup=2x"),
        ("latency=30%", "latency=30%"),
        ("latency=0.012s", "latency=12ms"),
        ("latency=1500us", "latency=1.5ms"),
        ("latency=123456us", "latency=0.123456s"),
        ("params=123456789012", "params=123456789012"),
        ("memory=1.5GB", "memory=1500000000B"),
    ],
)
def test_a_budget_is_printed_with_all_its_digits_and_no_more(text, printed):
    assert str(Budget.parse(text)) == printed


@pytest.mark.parametrize(
    ("limit", "brief"),
    [
        (Limit("params", 1685.1200000000001), "params=1685"),
        (Limit("params", 10138.5), "params=10138"),
        (Limit("experts", 12.3456789), "experts=12.35"),
        (Limit("params", 1 / 3, relative=True), "params=33.33%"),
        (Limit("latency", 1 / 1.23456789, relative=True), "speedup=1.235x"),
        (Limit("latency", 0.0123456789), "latency=12.35ms"),
        (Limit("memory", 1685.1200000000001), "memory=1685B"),
        (Limit("tokens", 4096), "tokens=4096"),
    ],
)
def test_a_message_has_four_digits_of_a_budget(limit, brief):
    pattern = Budget.parse("pattern=2:4").pattern
    assert Budget((limit,), pattern).brief() == f"{brief},pattern=2:4"
    if not limit.relative:
        with pytest.raises(BudgetError, match=f"budget {brief}: {limit.measure} has no cost here"):
            Budget((limit,)).absolute({})


@given(st.sampled_from(["params", "latency", "tokens", "memory"]), st.floats(1e-9, 1e12), st.booleans())
@example("tokens", 1.0, False)
def test_what_is_printed_is_read_as_the_same_limit(measure, value, relative):
    if not relative and measure in ("params", "tokens") and value < 1.0:
        return  # read as a share
    limit = Limit(measure, 1.0 / (1.0 + value) if relative else value, relative)
    assert Budget.parse(str(limit)).limits == (limit,)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2x",
        "speedup",
        "speedup=",
        "=2x",
        "speedup=0.5x",
        "speedup=1x",
        "speedup=2%",
        "speedup=fast",
        "params=200%",
        "params=0",
        "params=0%",
        "params=-5",
        "params=5Q",
        "params=nan",
        "params=inf",
        "latency=12",
        "latency=12MB",
        "memory=12",
        "tokens=4096,tokens=2048",
        "speedup=2x,latency=5ms",
        "pattern=4:2",
        "pattern=0:4",
        "pattern=half",
    ],
)
def test_a_budget_that_says_nothing_sensible_is_refused_in_one_line(text):
    with pytest.raises(BudgetError) as refused:
        Budget.parse(text)
    assert "\n" not in str(refused.value)
    assert repr(text) in str(refused.value)
    assert refused.value.exit_code == 2


def test_several_limits_and_a_pattern():
    budget = Budget.parse("params=50%, memory=2GB, pattern=2:4")
    assert budget["memory"].value == 2e9
    assert budget.pattern == Pattern(2, 4)
    assert "params" in budget
    assert "latency" not in budget
    assert Budget.parse(budget) is budget
    assert Budget.parse(str(budget)) == budget
    with pytest.raises(BudgetError, match="latency"):
        budget["latency"]


def test_a_share_that_means_a_whole_unit_loses_none_to_rounding():
    for whole in range(2, 2000):
        assert Budget.parse(f"tokens={1 / whole}").absolute({"tokens": whole})["tokens"] == 1


def test_a_relative_budget_becomes_absolute_once():
    assert Budget.parse("speedup=2x,params=10").absolute({"latency": 3.0, "params": 40.0}) == {
        "latency": 1.5,
        "params": 10.0,
    }
    with pytest.raises(BudgetError, match=r"no cost here; costs known: params: limit one of them, such as params=50%$"):
        Budget.parse("speedup=2x").absolute({"params": 40.0})


@given(st.one_of(st.floats(1e-6, 1e12), st.integers(1, 10**12).map(float)))
@example(1234567.0)
@example(0.0033333333333333335)
def test_what_a_refusal_says_is_enough_is(number):
    text = write_enough(number)
    assert number <= float(text) <= max(1.001 * number, number + 1)
    if number >= 1.001:
        assert Budget.parse(f"params={text}").absolute({"params": 2 * number})["params"] >= number


@given(st.floats(1.001, 1000.0))
def test_any_speedup_survives_its_own_text(factor):
    limit = Budget.parse(f"speedup={factor:.6f}x").limits[0]
    assert limit.relative
    assert 1 / limit.value == pytest.approx(factor, rel=1e-4)


def network() -> Units:
    """Two layers of a matrix [8, d] each, d residual channels; neurons belong to their layer."""
    sites = {
        "layers": Site("layers", 2),
        "channels": Site("channels", 3),
        "layers.0.neurons": Site("layers.0.neurons", 4, owner=("layers", np.zeros(4, int))),
        "layers.1.neurons": Site("layers.1.neurons", 4, owner=("layers", np.ones(4, int))),
    }
    terms = (
        Term("params", 2.0, ("layers.0.neurons", "channels")),
        Term("params", 2.0, ("layers.1.neurons", "channels")),
        Term("params", 1.0, ("channels",), units=(("layers", 0),)),
        Term("params", 1.0, ("channels",), units=(("layers", 1),)),
        Term("params", 5.0, present=("layers.0.neurons",)),
        Term("params", 1.0, ("channels", "channels")),
    )
    return Units(sites, terms, {"params": 100.0})


def test_cost_is_the_sum_of_base_and_terms():
    assert network().cost() == {"params": 100 + 2 * 4 * 3 * 2 + 3 + 3 + 5 + 9}
    assert network().cost({}) == network().cost()


def test_a_product_shrinks_on_both_sides():
    keep = {"channels": np.array([True, True, False]), "layers.0.neurons": np.array([True, False, False, False])}
    assert network().cost(keep) == {"params": 100 + 2 * 1 * 2 + 2 * 4 * 2 + 2 + 2 + 5 + 4}


def test_what_belongs_to_a_layer_goes_with_it():
    keep = {"layers": np.array([False, True]), "layers.0.neurons": np.array([True, True, False, True])}
    stays = network().effective(keep)
    assert not stays["layers.0.neurons"].any()
    assert stays["layers.1.neurons"].all()
    assert "channels" not in stays
    assert network().cost(keep) == {"params": 100 + 2 * 4 * 3 + 3 + 9}  # the norm and the presence term left too


def test_ownership_reaches_through_two_levels():
    sites = {
        "heads": Site("heads", 2, owner=("attention", np.array([0, 1]))),
        "attention": Site("attention", 2, owner=("layers", np.array([0, 1]))),
        "layers": Site("layers", 2),
    }
    assert list(Units(sites).effective({"layers": np.array([True, False])})["heads"]) == [True, False]


def test_costs_per_unit_and_tables_in_both_libraries():
    for make in (np.asarray, torch.as_tensor):
        site = Site("page", 3, cost={"tokens": make([5, 7, 11])}, table={"seconds": make([0.0, 0.5, 0.75, 1.0])})
        units = Units({"page": site})
        assert units.cost() == {"tokens": 23.0, "seconds": 1.0}
        assert units.cost({"page": make([True, False, True])}) == {"tokens": 16.0, "seconds": 0.75}


def test_a_measured_table_joins_the_cost():
    units = network().with_table("latency", {"layers.0.neurons": np.array([0.0, 1.0, 1.0, 2.0, 2.0])}, base=10.0)
    assert units.cost()["latency"] == 12.0
    assert units.cost({"layers.0.neurons": np.array([True, True, False, False])})["latency"] == 11.0
    assert units.cost({"layers": np.array([False, True])})["latency"] == 10.0
    assert "latency" not in network().cost()


def test_only_freezes_the_other_kinds():
    units = network().only("neurons")
    assert [site.name for site in units.free()] == ["layers.0.neurons", "layers.1.neurons"]
    assert units["channels"].frozen
    assert not network()["channels"].frozen
    assert [site.name for site in units.only("channels").free()] == []  # what is frozen stays frozen
    assert list(units) == list(network())
    assert len(units) == 4


def test_kept_counts_of_a_selection():
    selection = Selection({"channels": np.array([True, False, True])})
    assert selection.count_kept("channels", 3) == 2
    assert selection.count_kept("layers", 2) == 2


def test_a_cut_that_removed_nothing_is_a_noop():
    assert Cut({"layers": (0, 6)}, {}, {}).is_noop
    assert not Cut({"layers": (0, 6), "channels": (1, 8)}, {}, {}).is_noop


def test_notes_that_take_a_while_are_found_out_once_when_they_are_read():
    asked = []

    def later():
        asked.append(1)
        return ("found", "out")

    notes = Notes("known", later, "last")
    cut = replace(Cut({}, {}, {}, notes), before={"params": 1.0})
    assert not asked
    assert cut.notes == ("known", "found", "out", "last") == cut.notes
    assert len(asked) == 1
    assert (notes[1], notes[1:3], len(notes), "out" in notes) == ("found", ("found", "out"), 4, True)
    assert [pickle.loads(pickle.dumps(cut)).notes, copy.deepcopy(cut).notes] == [tuple(notes)] * 2
    assert not Notes(lambda: ())
    assert cut.notes != list(notes)


def test_evidence_is_the_same_after_a_trip_through_json():
    evidence = Evidence(
        recipe="ziplm",
        target="speedup=2x",
        predicted={"latency": 0.01},
        measured={"speedup": Figure(2.01, 1.98, 2.05, "x", 20)},
        before={"params": Figure(22e6)},
        after={"params": Figure(11e6)},
        baselines={"magnitude": {"spearman": Figure(0.8, 0.79, 0.81, samples=3)}},
        cut=Cut({"layers.0.neurons": (8, 16)}, {"params": 22e6}, {"params": 11e6}, ("rounded to 8",)),
        recovery=Recovery(10, 320, 1.5, 1e9, ((1, 0.5), (10, 0.25)), {"lr": 1e-4}),
        environment={"threads": 2},
        settings={"seed": 0},
        verdict="met",
    )
    assert Evidence.from_dict(json.loads(json.dumps(evidence.to_dict()))) == evidence
    bare = Evidence("minitron", "params=50%")
    assert Evidence.from_dict(json.loads(json.dumps(bare.to_dict()))) == bare


def test_a_figure_shows_its_interval():
    assert str(Figure(2.0, 1.9, 2.1, "x")) == "2 [1.9, 2.1] x"
    assert str(Figure(0.5)) == "0.5"


def test_the_vocabulary_loads_no_array_library():
    code = "import sys, secateur.vocabulary; sys.exit(any(m in sys.modules for m in ('torch', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_term_may_be_divided_by_what_is_kept():
    """What a token passes of the experts of a layer: k of E, each as wide as the neurons kept over the experts kept."""
    owner = np.repeat(np.arange(4), 3)
    sites = {"experts": Site("experts", 4), "neurons": Site("neurons", 12, group=owner, owner=("experts", owner))}
    units = Units(sites, (Term("active", 2 * 5.0, ("neurons",), per=("experts",)),))
    assert units.cost() == {"active": 2 * 5.0 * 3}
    assert units.cost({"experts": np.array([True, True, False, True])}) == {"active": 2 * 5.0 * 3}
    assert units.cost({"neurons": np.arange(12) % 3 < 1}) == {"active": 2 * 5.0}
    assert units.cost({"experts": np.zeros(4, dtype=bool)}) == {"active": 0.0}


def test_a_budget_of_absolute_limits():
    limits = {"tokens": 512.0, "words": 0.5}
    assert Budget.of(limits).absolute({"tokens": 9e9, "words": 9e9}) == limits
    assert not any(limit.relative for limit in Budget.of(limits).limits)


def test_training_is_merged_field_by_field() -> None:
    training = Training(steps=10, lr=1e-3).merge("accumulate=4,clip=none,trackers=wandb+tensorboard")
    set_ = {"steps": 10, "lr": 1e-3, "accumulate": 4, "clip": math.inf, "trackers": ("wandb", "tensorboard")}
    assert training.named == set_
    assert training.default(lr=1.0, warmup=0.1).named["lr"] == 1e-3
    assert training.default(warmup=0.1).warmup == 0.1
    assert training.merge(Training(steps=0)).steps == 0


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("accumulate=0", "accumulate"),
        ("accumulate=1.5", "accumulate"),
        ("precision=fp8", "precision=fp8: give auto, bf16, fp16 or fp32"),
        ("clip=-1", "clip"),
        ("speed=2", "no setting 'speed'"),
        ("accumulate", "name=value"),
        ("lr=nan", "lr"),
    ],
)
def test_training_refuses_what_makes_no_sense(text: str, wanted: str) -> None:
    with pytest.raises(InputError, match=wanted):
        Training(steps=1).merge(text)


def test_receipts_and_evidence_show_themselves_in_a_line_and_in_a_table():
    """A notebook used to get every site and every setting of a run."""
    cut = Cut({f"layers.{n}.neurons": (8, 32) for n in range(24)}, {"params": 2e6}, {"params": 1e6}, ("a note",))
    assert repr(cut) == "Cut(192 of 768 neurons in 24 layers; params 2,000,000 -> 1,000,000)"
    heads = Cut({"layers.3.heads": (1, 4), "layers.4.heads": (1, 4), "layers.4.cross.heads": (2, 4)}, {}, {})
    assert heads.describe() == "4 of 12 heads in 2 layers"  # a decoder's layer has heads of two kinds
    figures = {"params": Figure(2e6)}, {"params": Figure(1e6)}, {"speedup": Figure(2.0, 1.9, 2.1, "x")}
    row = Evidence("toy", "speedup=2x", {"params": 1e6}, figures[2], figures[0], figures[1], verdict="met", cut=cut)
    assert repr(row) == "Evidence(toy, speedup=2x: met, speedup 2 [1.9, 2.1] x)"
    for shown in (cut._repr_html_(), row._repr_html_()):
        assert shown.startswith("<table><caption>")
        assert "params" in shown
    assert "&lt;b&gt;" in Evidence("<b>", "params=50%")._repr_html_()
