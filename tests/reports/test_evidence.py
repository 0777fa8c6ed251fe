"""Evidence survives the disk, is judged by its figures rather than its words, and makes stable tables."""

import dataclasses
import json
import math
import os

import numpy as np
import pytest

from measure import samples
from secateur.errors import RunError
from secateur.reports import evidence
from secateur.vocabulary import Cut, Evidence, Figure


def test_the_disk_keeps_everything(tmp_path):
    first = samples.result()
    second = dataclasses.replace(first, after={"perplexity": Figure(math.inf, None, math.inf)}, cut=None, recovery=None)
    path = evidence.write(tmp_path, [first, second])
    assert path == tmp_path / "evidence.json"
    assert evidence.read(tmp_path) == [first, second]
    assert [file.name for file in tmp_path.iterdir()] == ["evidence.json"]


def test_strict_json_without_infinities_and_the_same_bytes_twice(tmp_path):
    result = samples.result(
        after={"perplexity": Figure(math.inf)}, settings={"seed": np.int64(3), "x": np.float32(0.5)}
    )
    one = evidence.write(tmp_path / "a.json", result).read_bytes()
    two = evidence.write(tmp_path / "b.json", result).read_bytes()
    assert one == two

    def refuse(token):
        raise AssertionError(token)

    assert json.loads(one, parse_constant=refuse)["results"][0]["settings"] == {"seed": 3, "x": 0.5}


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = evidence.write(tmp_path, samples.result())
    old = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"disk full while writing .*evidence\.json"):
        evidence.write(tmp_path, samples.result("params=50%"))
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == ["evidence.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"format": 1, "results": [{"colour": 1}]}'])
def test_damaged_evidence_is_named(tmp_path, content):
    (tmp_path / "evidence.json").write_text(content)
    words = "evidence.json is damaged and can't be read: delete it and run the same command again"
    with pytest.raises(RunError, match=words):
        evidence.read(tmp_path)


def test_missing_or_newer_evidence_is_named(tmp_path):
    with pytest.raises(RunError, match="no evidence"):
        evidence.read(tmp_path)
    (tmp_path / "evidence.json").write_text('{"format": 2, "results": []}')
    with pytest.raises(RunError, match="update secateur"):
        evidence.read(tmp_path)


PARAMS = {"params": Figure(12.1e6)}
NO_SPEEDUP = "missed: speedup could not be measured"
NOOP = Cut({"layers.0.heads": (0, 12)}, {}, {})


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "met"),
        ({"verdict": ""}, "met"),
        ({"verdict": "missed: fidelity fell"}, "missed: fidelity fell"),
        ({"cut": NOOP}, "failed: nothing was removed"),
        ({"speedup": 1.005}, "failed: not measurably faster (1.00×, 0.99 to 1.02)"),
        ({"speedup": 0.8}, "failed: not measurably faster (0.800×, 0.788 to 0.812)"),
        ({"speedup": 1.9}, "met"),
        ({"speedup": 1.7}, "missed: 1.70× speedup instead of 2×"),
        ({"target": "params=60%"}, "met"),
        ({"target": "params=50%"}, "missed: 12.1\u00a0M parameters instead of 11.4\u00a0M"),
        ({"target": "latency=100ms"}, "met"),
        ({"target": "latency=50ms"}, "missed: 90.6\u00a0ms latency instead of 50\u00a0ms"),
        ({"target": "tokens=4096", "verdict": "", "measured": {}}, ""),
        ({"target": "params=60%,speedup=2x", "verdict": "", "measured": {}, "after": PARAMS}, NO_SPEEDUP),
        (
            {"target": "params=60%,latency=9ms", "verdict": "met", "measured": {}, "after": PARAMS},
            "missed: latency could not be measured",
        ),
        (
            {"target": "params=60%,flops=50%", "verdict": "", "measured": {}, "after": PARAMS, "cut": None},
            "missed: FLOPs could not be measured",
        ),
        (
            {"target": "params=10%,speedup=2x", "verdict": "", "measured": {}, "after": PARAMS},
            "missed: 12.1\u00a0M parameters instead of 2.27\u00a0M",
        ),
        ({"target": "something else", "verdict": ""}, ""),
    ],
)
def test_the_figures_judge(changes, verdict):
    assert evidence.judge(samples.result(**changes)) == verdict


def test_a_speedup_known_only_by_two_latencies_counts():
    result = samples.result(measured={"latency": Figure(0.2)}, verdict="met")
    assert evidence.judge(result).startswith("failed: not measurably faster")


def test_one_result_is_a_table_of_measures_with_baselines():
    header, *rows = evidence.table(samples.result())
    assert header == ["Measure", "Target", "Predicted", "Before", "After", "Change", "every second layer", "magnitude"]
    by_name = {row[0]: row for row in rows}
    assert by_name["Speedup"][1] == "2×"
    assert by_name["Speedup"][4].startswith("2.03×")
    assert by_name["Parameters"][5].startswith("−46.7")
    assert by_name["Fidelity (Spearman)"][6:] == ["0.861", "0.880 [0.870 to 0.890]"]
    assert {len(row) for row in rows} == {len(header)}
    assert evidence.table([samples.result()]) == [header, *rows]


def test_several_results_are_a_table_of_results():
    header, *rows = evidence.table([samples.result("speedup=1.5x", 1.55), samples.result("speedup=3x", 2.0)])
    assert header[:3] == ["Target", "Verdict", "Speedup"]
    assert [row[1] for row in rows] == ["met", "missed: 2.00× speedup instead of 3×"]


def test_markdown_survives_hostile_cells():
    text = evidence.markdown([["a|b", "c"], ["<script>", "two\nlines"]])
    assert text == "| a\\|b | c |\n| --- | --- |\n| &lt;script> | two lines |\n"


def test_a_terminal_table_reads_no_markup():
    from rich.console import Console

    console = Console(width=100, record=True, force_terminal=False)
    console.print(evidence.rich_table([["Measure", "[red]x[/red]"], ["a", "1"]], title="T"))
    assert "[red]x[/red]" in console.export_text()


def test_a_narrow_terminal_cuts_no_word():
    from rich.console import Console

    header = ["Measure", "Target", "Predicted", "Before", "After", "Change", "every second layer", "magnitude"]
    line = ["Embedding parameters", "139 ms", "152 ms", "277 ms [275 to 279]", "138 ms [136 to 140]", "−50.1 %"]
    console = Console(width=80, record=True, force_terminal=False)
    console.print(evidence.rich_table([header, [*line, "136 ms [134 to 139]", "137 ms [135 to 139]"]]))
    text = console.export_text()
    assert "…" not in text
    assert all(word in text for name in [*header, "parameters"] for word in name.split())


def test_an_empty_evidence_still_makes_a_table():
    assert evidence.table(Evidence("r", "t"))[0][0] == "Measure"
    assert evidence.judge(Evidence("r", "t")) == ""


def sparse(target="pattern=2:4", off=0.0, **changes):
    before = {"params": Figure(1000.0), "weights": Figure(800.0), "zeros": Figure(0.0), "bytes": Figure(4000.0)}
    after = {**before, "weights": Figure(400.0), "zeros": Figure(0.5), "packed_bytes": Figure(2500.0)}
    given = {"before": before, "after": after, "measured": {"off_pattern": Figure(off)}, "verdict": ""}
    return samples.result(target, **{**given, **changes})


def test_a_pattern_is_judged_by_the_weights_and_not_by_the_promise():
    assert evidence.judge(sparse()) == "met"
    assert evidence.judge(sparse(off=3.0)) == "missed: 3 runs off the pattern instead of 0"
    assert evidence.judge(sparse(off=3.0, verdict="met")) == "missed: 3 runs off the pattern instead of 0"
    assert "could not be measured" in evidence.judge(sparse("weights=50%,pattern=2:4", measured={}))


def test_a_share_of_weights_is_judged_by_those_that_are_not_zero():
    assert evidence.judge(sparse("weights=50%")) == "met"
    assert evidence.judge(sparse("weights=40%")) == "missed: 400 non-zero weights instead of 320"


def test_zeros_and_packed_bytes_are_in_the_tables():
    rows = {row[0]: row for row in evidence.table(sparse())}
    assert rows["Zeros"][4].replace("\u00a0", " ") == "50.0 %"
    assert rows["Size packed"][4].replace("\u00a0", " ") == "2.50 kB"
    assert rows["Runs off the pattern"][1] == "0"


def test_what_is_no_part_of_the_model_is_counted_by_the_receipt():
    """A budget of examples: the model is as large as before, and what was cut stands in the receipt alone."""
    cut = Cut({"examples": (70, 100)}, {"examples": 100.0}, {"examples": 30.0})
    row = Evidence("r", "examples=30%", {"examples": 30.0}, before=PARAMS, after=PARAMS, cut=cut)
    assert evidence.targets(row) == {"examples": 30.0}
    assert evidence.judge(row) == "met"
    line = next(one for one in evidence.table(row) if one[0] == "Examples")
    assert line[1:6] == ["30", "30", "100", "30", "−70.0\u00a0%"]
    over = dataclasses.replace(row, cut=dataclasses.replace(cut, after={"examples": 31.0}))
    assert evidence.judge(over).startswith("missed: 31 examples")


@pytest.mark.parametrize(
    ("before", "after", "chance", "said"),
    [
        ({"accuracy": 0.9}, {"accuracy": 0.26}, {"accuracy": 0.25}, "Accuracy 0.260 is no better than guessing (0.25)"),
        ({"accuracy": 0.9}, {"accuracy": 0.5}, {"accuracy": 0.25}, ""),
        ({"accuracy": 0.26}, {"accuracy": 0.25}, {"accuracy": 0.25}, "neither it nor the original"),
        ({"mAP": 0.4}, {"mAP": 0.001}, {}, "mAP fell from 0.400 to 0.001"),
        ({"mAP": 0.4}, {"mAP": 0.2}, {}, ""),
        ({"perplexity": 20.0}, {"perplexity": 4000.0}, {}, "Perplexity rose from 20.0 to 4000"),
        ({"perplexity": 20.0}, {"perplexity": 40.0}, {}, ""),
        ({"perplexity": 20.0}, {"perplexity": math.inf}, {}, "Perplexity is ∞"),
        ({}, {"spearman": 0.001}, {}, "no longer follow"),
        ({}, {"spearman": 0.9}, {}, ""),
    ],
)
def test_lost_quality_is_said_beside_a_target_that_is_met(before, after, chance, said):
    def row(figures):
        return {name: Figure(value) for name, value in figures.items()}

    result = samples.result(before=row(before), after=row(after), measured={}, settings={"chance": chance})
    result = dataclasses.replace(result, verdict="met")
    assert said in evidence.describe_lost_quality(result)
    assert bool(said) == bool(evidence.describe_lost_quality(result))
    assert evidence.describe_verdict(result).startswith("met, but of no use: " if said else "met")
    assert evidence.describe_verdict(dataclasses.replace(result, verdict="missed: x")) == "missed: x"


def test_in_a_terminal_too_narrow_for_the_columns_each_row_is_a_block():
    from rich.console import Console

    console = Console(width=40, record=True, force_terminal=False)
    names = ["Measure", *(f"baseline{number}" for number in range(8))]
    console.print(evidence.rich_table([names, ["Spearman", *"12345–78"], ["[b]", *"abcdefgh"]], title="T"))
    printed = console.export_text()
    assert [line.split() for line in printed.splitlines()[:3]] == [["T"], ["Spearman"], ["baseline0", "1"]]
    assert "baseline7  8" in printed
    assert printed.count("baseline5") == 1
    assert "[b]" in printed
    assert "baseline7  h" in printed
