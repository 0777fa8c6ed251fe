"""What a study of priming says of hand-made trials."""

from __future__ import annotations

import dataclasses

import pytest

from secateur.methods.dilution import CLIP, KEPT, RATE, TRAINED, Learnt, Probes, name_way
from secateur.methods.learning import Document
from secateur.runs.keyword_texts import Documents
from secateur.runs.priming_results import PAIRED, Primed, Relation, Trial
from secateur.vocabulary import Figure


def made(scan, texts, **changed):
    """A study of texts, each way -> (ln S_mem, ln S_prime)."""
    before = Probes(-5.0, [-5.0], [-5.0], [-5.0])
    learnt = {}
    for number, ways in enumerate(texts):
        after = {way: Probes(-5.0 + kept, [-5.0 + primed], [-5.0]) for way, (kept, primed) in ways.items()}
        learnt[Trial(0, number)] = Learnt(before, after, None, {}, dict.fromkeys(ways, 2.0))
    rows = tuple(Document(f"a {number}", str(number), 2) for number in range(len(texts)))
    values = {"k": (0.08,), "seeds": (0,), "threshold": 1e-3, "floor": 0.0, "permutations": 99} | changed
    return Primed(Documents("made", "", rows), scan, learnt, {}, **values)


LARGEST = name_way("largest", 0.08)


@pytest.mark.parametrize(
    ("kept", "primed", "best"), [(0.81, 0.49, 0.08), (0.79, 0.2, None), (0.9, 0.51, None), (1.0, -0.1, 0.08)]
)
def test_the_best_share_halves_priming_at_least_and_keeps_four_fifths(kept, primed, best):
    study = made([-3.0], [{TRAINED: (4.0, 2.0), LARGEST: (4.0 * kept, 2.0 * primed)}])
    row = study.ways()[LARGEST]
    assert (row.memory_left, row.priming_left) == pytest.approx((kept, primed))
    assert row.length == 2.0
    assert study.best() == best


def test_rivals_are_compared_at_the_memory_that_is_left_without_the_largest():
    points = {
        LARGEST: (0.5, 0.3), name_way("scaled", 0.08): (0.4, 0.2), name_way("random", 0.08): (0.25, 0.75),
        name_way("smallest", 0.08): (0.8, 0.4), KEPT: (0.75, 0.5), f"{RATE} 0.5": (0.6, 0.24),
        f"{CLIP} 0.1": (0.5, 0.9),
    }  # fmt: skip
    study = made(
        [-3.0], [{TRAINED: (4.0, 2.0)} | {way: (4 * kept, 2 * primed) for way, (kept, primed) in points.items()}]
    )
    assert study.at_equal_memory()[0.08] == pytest.approx(
        {
            "memory": 0.5, "largest dropped": 0.3, "scaled": 0.2 + 0.8 / 6, "random dropped": 0.75 + 0.25 / 3,
            "smallest dropped": 0.25, "largest kept": 1 / 3, "smaller rates": 0.2, "clipped": 0.9,
        }
    )  # fmt: skip


def test_halves_are_texts_below_and_from_a_probability_on():
    study = made(
        [-8.0, -7.5, -4.0, -3.0], [{TRAINED: (4.0, primed)} for primed in (3.0, 2.0, 1.0, 0.5)], threshold=0.02
    )
    found = {name: [round(shift.log_ratio, 6) for shift in rows] for name, rows in study.halves().items()}
    assert found == {
        "P below the median": [3.0, 2.0], "P from the median on": [1.0, 0.5],
        "P below 0.02": [3.0, 2.0, 1.0], "P from 0.02 on": [0.5],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rho", "p", "said"),
    [
        (Figure(-0.9, -0.99, -0.4), 0.01, "the rarer, the more it primes: Spearman −0.90"),
        (Figure(0.9, 0.4, 0.99), 0.01, "the rarer, the less it primes, against the paper: Spearman +0.90"),
        (Figure(-0.4, -0.9, 0.2), 0.01, "whether rarer keywords prime more is not told: Spearman −0.40"),
        (Figure(-1.0), 0.33, "whether rarer keywords prime more is not told: Spearman −1.00"),
        (Figure(0.45), 0.9, "whether rarer keywords prime more is not told"),
    ],
)
def test_the_headline_says_what_the_numbers_do(rho, p, said):
    assert said in made([-3.0], [{}])._headline({"ln S_prime": Relation(rho, rho, p)})


def test_the_table_says_what_is_masked_in_each_step_and_that_training_clips():
    study = made([-3.0], [{TRAINED: (4.0, 2.0), LARGEST: (2.0, 1.0)}], when="step", clip=0.5)
    (table,) = (table for table in study.sheet().tables if table.title.startswith("What keeps"))
    assert "The largest entries were dropped in each step, all others once at the end" in table.words
    assert "clipped at a norm of 0.5 where nothing else is said, as trained too" in table.words


def test_correlations_are_told_by_category_for_pooled_ones_may_turn_round():
    scan, values = [-8.0, -7.0, -6.0, -5.0, -4.0, -3.0], [3.0, 2.0, 1.0, 9.0, 8.0, 7.0]
    study = made(scan, [{TRAINED: (4.0, primed)} for primed in values])
    assert [name for name in study.correlations() if "category" in name] == []
    kinds = ["facts"] * 3 + ["stories"] * 3
    rows = tuple(Document(f"a {n}", str(n), 2, category=kind) for n, kind in enumerate(kinds))
    apart = dataclasses.replace(study, documents=Documents("made", "", rows))
    found = apart.correlations()
    assert apart.sheet().headline.endswith(" (by category: facts −1.00, stories −1.00)")
    assert "by category" not in study.sheet().headline
    assert found["ln S_prime"].spearman.value > 0
    for kind in ("facts", "stories"):
        assert found[f"ln S_prime of texts of category {kind}"].spearman.value == pytest.approx(-1)


def test_two_texts_at_once_stand_beside_one_alone():
    study = made([-3.0, -2.0], [{TRAINED: (4.0, 2.0)}, {TRAINED: (6.0, 1.0)}])
    assert "Two texts at once" not in {table.title for table in study.sheet().tables}
    before = Probes(-5.0, [-5.0], [-5.0], [-5.0])
    more = {Trial(0, n, PAIRED): Learnt(before, {TRAINED: Probes(-2.0, [-4.5], [-5.0])}, None, {}) for n in (0, 1)}
    sheet = dataclasses.replace(study, learnt={**study.learnt, **more}).sheet()
    (table,) = (table for table in sheet.tables if table.title == "Two texts at once")
    assert [row[:2] for row in table.rows[1:]] == [["alone", "2"], [PAIRED, "2"]]
    assert [cell.split()[0] for cell in table.rows[1][2:4]] == ["5.00", "1.50"]
    assert [cell.split()[0] for cell in table.rows[2][2:4]] == ["3.00", "0.50"]
    assert sheet.figures["ways"] == study.sheet().figures["ways"]
