"""Results in tables: what is unfinished is wrong, exact matches are no more than overlaps, seeds are averaged."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from secateur.clients.completions import Completion
from secateur.methods import tasks as asking
from secateur.methods.tasks import Item, Task
from secateur.runs.compression import DENSE, Config
from secateur.runs.reasoning_results import Results
from secateur.runs.scoring import Model

WHO = tuple(Item(str(at), "who ?", ("the old gardener",)) for at in range(4))
END = tuple(Item(str(at), "end ?", ("leaf",), group=f"{at % 2} steps") for at in range(4))
FACTS = Task("facts", WHO, "exact", role="knowledge", ends=True)
STEPS = Task("steps", END, "exact", role="reasoning")


def answer(task, *texts, tokens=5):
    return [
        asking.score(task, item, Completion(text.rstrip("~"), tokens * (1 + at), not text.endswith("~")))
        for at, (item, text) in enumerate(zip(task.items, texts, strict=True))
    ]


def model(name, facts, steps, *, bytes=100.0, seconds=8.0):
    lines = {"facts": answer(FACTS, *facts), "steps": answer(STEPS, *steps)}
    return Model(name, lines, params=100.0, bytes=bytes, seconds=seconds)


@pytest.fixture
def results():
    right, leaf, wrong = ["old gardener"] * 4, ["leaf"] * 4, ["no"] * 4
    slow = model("wanda 60%", wrong, ["leaf", "root", "leaf", "leaf"], bytes=40, seconds=40)
    return Results(
        [FACTS, STEPS],
        [
            (DENSE, model("original", right, leaf)),
            (Config("wanda", "30%"), model("wanda 30%", ["old gardener", "gardener", "she", "old gardener~"], leaf)),
            (Config("wanda", "30%", seed=1), model("wanda 30% seed 1", ["old gardener"] * 4, leaf)),
            (Config("wanda", "60%"), slow),
            (Config("wanda", "60%", seed=1), model("wanda 60% seed 1", wrong, leaf)),
            (Config("wanda", "60%", variant="traces"), model("wanda 60% traces", ["she"] * 4, leaf)),
        ],
    )


def test_what_is_unfinished_is_wrong_and_exact_matches_are_no_more_than_overlaps(results):
    model = results.models[1][1]
    assert results.score(model, FACTS) == 0.25
    assert results.overlap(model, FACTS).value == pytest.approx((1 + 2 / 3 + 0 + 0) / 4)
    for _, one in results.models:
        assert results.score(one, FACTS) <= results.overlap(one, FACTS).value
    year = Task("year", (Item("0", "?", ("007",)),), "exact")
    same = Model("m", {"year": answer(year, "7")})
    assert results.score(same, year) == results.overlap(same, year).value == 1.0


def test_collapse_is_of_the_mean_over_seeds_by_task_and_level(results):
    found = {(run, task, group): one for run, task, group, one in results.collapses()}
    assert found[("wanda", ""), "facts", ""].point.value == 60.0
    assert not found[("wanda", ""), "steps", ""].happens
    assert (("wanda", ""), "steps", "1 steps") in found
    assert "wanda: facts (knowledge) collapses at 60 %, steps nowhere" in results.sheet().headline


def test_damage_is_nothing_of_the_original_and_a_ratio_where_reasoning_loses(results):
    assert results.damages(results.dense)["facts"] == 0.0
    told = results.damages(results.models[3][1])
    assert told["facts"] == 1.0
    assert told["steps"] == 0.25
    assert told["ratio"].value == pytest.approx(4.0)


def test_a_smaller_model_that_thinks_longer_costs_its_seconds(results):
    (costs,) = (table for table in results.sheet().tables if table.title == "What an answer costs")
    row = next(row for row in costs.rows if row[0] == "wanda 60%")
    assert row[costs.rows[0].index("× original")] == "5.00"
    assert row[costs.rows[0].index("bits")] == "3.20"
    (variants,) = (table for table in results.sheet().tables if table.title.startswith("Traces"))
    assert [row[0] for row in variants.rows[1:]] == ["wanda 60% traces"]
    assert variants.rows[1][variants.rows[0].index("steps")].startswith("+25.0")


def test_each_level_has_a_chance_of_its_own():
    """Of two options 11 of 16 right are a collapse; by the chance of all items they would be none."""
    pick = [
        Item(str(at), "?", ("A",), tuple("yn" if at < 16 else "ynuv"), "two" if at < 16 else "four") for at in range(32)
    ]
    task = Task("pick", tuple(pick), "letter")
    assert (task.chance, task.chance_of("two"), task.chance_of("four")) == (0.375, 0.5, 0.25)
    lines = [answer(task, *("A" if at % 16 < many else "B" for at in range(32))) for many in (16, 11)]
    found = Results(
        [task],
        [
            (DENSE, Model("original", {"pick": lines[0]})),
            (Config("wanda", "50%"), Model("wanda 50%", {"pick": lines[1]})),
        ],
    )
    points = {group: one.happens for _, _, group, one in found.collapses()}
    assert points == {"": False, "two": True, "four": False}


def test_answers_that_a_judge_gives_no_number_are_counted_and_draw_nothing(results):
    """Of one version's answers to a task none has a score."""
    unrated = model("wanda 80%", ["no"] * 4, ["leaf"] * 4)
    lines = {**unrated.lines, "steps": [replace(line, score=None) for line in unrated.lines["steps"]]}
    models = [*results.models, (Config("wanda", "80%"), replace(unrated, lines=lines))]
    sheet = Results(results.tasks, models).sheet()
    assert "wanda 80%: 4 answers of steps got no score from the judge" in sheet.notes
    (costs,) = (table for table in sheet.tables if table.title == "What an answer costs")
    assert costs.rows[-1][:2] == ["wanda 80%", "–"]
    for curves in sheet.chart.panels.values():
        assert all(math.isfinite(figure.value) for curve in curves for _, figure in curve.points)


def test_a_variant_is_compared_with_its_like_of_the_same_seed_which_is_taken_off(results):
    (table,) = (one for one in results.sheet().tables if one.title.startswith("Traces, protected"))
    (row,) = table.rows[1:]
    assert row[0] == "wanda 60% traces"
    assert row[1].startswith("+0.0")
    assert row[2].startswith("+25.0"), "one of four more is right"


def test_work_is_bytes_times_tokens(results):
    slow = results.models[3][1]
    assert results._cost(slow)["work"] == 40 * 12.5
