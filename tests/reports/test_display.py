"""Numbers are written as people read them, and targets as they were asked for."""

import math

import pytest

from secateur.reports import display
from secateur.vocabulary import Figure


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("params", 22713216, "22.7 M"),
        ("params", 999, "999"),
        ("params", 0, "0"),
        ("bytes", 90864192, "90.9 MB"),
        ("bytes", 12, "12.0 B"),
        ("latency", 0.0123, "12.3 ms"),
        ("latency", 2e-7, "0.200 µs"),
        ("latency", 75.0, "75.0 s"),
        ("speedup", 2.0312, "2.03×"),
        ("flops", 4.61e10, "46.1 G"),
        ("perplexity", 28.53, "28.5"),
        ("perplexity", 123456.0, "123 456"),
        ("perplexity", math.inf, "∞"),
        ("loss", math.nan, "not a number"),
        ("spearman", -0.0312, "−0.0312"),
        ("unheard_of", 0.5, "0.500"),
    ],
)
def test_numbers(name, value, text):
    assert display.number(name, value).replace("\u00a0", " ").replace("\u202f", " ") == text


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [("speedup", 2.0, "2×"), ("speedup", 1.5, "1.5×"), ("latency", 0.012, "12 ms"), ("params", 100, "100"),
     ("bytes", 2.5e7, "25 MB"), ("tokens", 4096, "4,096")],
)  # fmt: skip
def test_a_target_claims_no_precision(name, value, text):
    assert display.format_target(name, value).replace("\u00a0", " ").replace("\u202f", ",") == text


def test_intervals_have_the_decimals_of_their_value():
    assert display.interval("speedup", Figure(1.004, 0.97, 1.0301)) == "0.97 to 1.03"
    assert display.interval("latency", Figure(0.0908, 0.0899, 0.0917)) == "89.9 to 91.7"
    assert display.interval("spearman", Figure(0.9, 0.89996, 0.90004)) == "0.89996 to 0.90004"
    assert display.interval("speedup", Figure(1.0)) == ""
    assert display.text("speedup", Figure(2.0, 1.9, 2.1)) == "2.00× [1.90 to 2.10]"
    assert display.text("speedup", None) == "–"


def test_change_is_a_share_of_costs_and_a_difference_of_qualities():
    assert display.change("params", 200, 100).replace("\u00a0", " ") == "−50.0 %"
    assert display.change("accuracy", Figure(0.9), Figure(0.85)) == "−0.0500"
    assert display.change("perplexity", 20.0, 25.0) == "+5.00"
    assert (
        display.change("params", None, 1) == display.change("params", 0, 1) == display.change("f1", 1, math.inf) == ""
    )


def test_order_is_speed_size_quality_and_without_repeats():
    assert display.order(["spearman", "params", "x", "speedup", "arc/acc", "params"]) == [
        "speedup", "params", "spearman", "arc/acc", "x",
    ]  # fmt: skip


def test_a_tasks_metric_is_known_by_its_last_part():
    assert display.measure("arc/acc").better == "more"
    assert display.measure("arc/acc").label == "arc: accuracy"
    assert display.measure("very_new").label == "very new"


def test_parameters_that_one_token_passes_are_shown_beside_all_parameters():
    assert display.measure("active_params").label == "Active parameters"
    assert display.number("active_params", 1_250_592) == display.number("params", 1_250_592)
    assert display.order(["perplexity", "active_params", "bytes"])[0] == "active_params"
