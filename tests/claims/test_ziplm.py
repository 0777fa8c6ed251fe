"""ZipLM at small scale: all-MiniLM-L6-v2 on Brown for cuts and clocks, a small Llama for the training losses."""

from __future__ import annotations

import functools
import itertools
import json
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from claims import lab
from secateur._utils.rundir import Run
from secateur.errors import InfeasibleError
from secateur.measure import latency
from secateur.methods import distillation, timing
from secateur.recipes.language import ziplm
from secateur.recover.training import objectives
from secateur.score import activation, database, hessian, magnitude, random
from secateur.select import allocate, levels
from secateur.studies import baselines
from secateur.subjects import Transformer
from secateur.vocabulary import Budget, Figure, Selection, Training

pytestmark = [pytest.mark.claim, pytest.mark.timeout(600)]
SEEDS = (0, 1, 2)
PLACES = {"throughput": (32, 64), "latency": (1, 16)}
SHORT_PASS = "a pass of three milliseconds: 4.71x was measured in the first run of this claim"
HOMES = (("throughput", "latency"), ("latency", "throughput"))
MINILM = "all-MiniLM-L6-v2, Brown sentences"


def samples(seed: int, count: int = 256):
    return lab.batches(lab.minilm(), seed=200 + seed, batch=16).take(max(1, count // 16))


def every(subject: Transformer) -> dict[str, list[int]]:
    """Site -> every level of the paper's grid, as units removed."""
    sites = subject.units("heads", "neurons").free()
    grid = allocate.grid(max(site.count for site in sites))
    return {s.name: list(range(s.count + 1)) if s.kind == "heads" else [s.count - k for k in grid] for s in sites}


@functools.cache
def base(seed: int = 0, count: int = 256, **options):
    subject = lab.minilm()
    return database.build(
        subject.forward, subject.model, samples(seed, count), subject.consumers(), every(subject), **options
    )


@functools.cache
def table(place: str):
    batch, length = PLACES[place]
    return timing.time_blocks(lab.minilm(), "heads", allocate.grid(1536), batch, length)


@functools.cache
def coefficients(place: str, speedup: float, seed: int, measure: str) -> tuple[float, ...]:
    """What 60 trials of the search find."""
    subject = lab.minilm()
    solve = functools.partial(_solve, place, speedup, seed, measure)
    return tuple(ziplm.search_coefficients(subject, subject, base(seed), solve, samples(seed), 32, 60, seed))


def _solve(place: str, speedup: float, seed: int, measure: str, weights) -> dict[str, int]:
    subject, (batch, length) = lab.minilm(), PLACES[place]
    units = subject.units("heads", "neurons", batch=batch, length=length)
    fixed = table(place)["rest"]["0"]
    dense = levels.with_latency(units, table(place), fixed).cost()
    limit = {measure: dense[measure] / speedup}
    chosen = ziplm.choose_levels(units, table(place), base(seed), limit, fixed, weights)
    spent = levels.with_latency(units, table(place), fixed).cost(ziplm.kept_units(base(seed), chosen))
    assert spent[measure] <= limit[measure] * (1 + 1e-9)
    return chosen


def share(place: str, chosen: dict[str, int], seed: int) -> float:
    """The predicted time as a share of the dense model's."""
    batch, length = PLACES[place]
    units = lab.minilm().units("heads", "neurons", batch=batch, length=length)
    priced = levels.with_latency(units, table(place), table(place)["rest"]["0"])
    return priced.cost(ziplm.kept_units(base(seed), chosen))["latency"] / priced.cost()["latency"]


def solved(place: str, speedup: float, seed: int = 0, measure: str = "latency") -> dict[str, int]:
    """Site -> level at `speedup`, with searched coefficients."""
    return _solve(place, speedup, seed, measure, coefficients(place, speedup, seed, measure))


def cut(chosen: dict[str, int], sweeps) -> Transformer:
    subject = lab.minilm()
    keep = {site: sweeps[site].keep(level).numpy() for site, level in chosen.items()}
    weights = {site: sweeps[site].weights[level] for site, level in chosen.items()}
    with database.stitch(subject.model, subject.consumers(), weights):
        return subject.cut(Selection(keep))[0]


def ranked(scores, chosen: dict[str, int]) -> Transformer:
    """As many units gone from each site as in `chosen`, by other scores and without compensation."""
    units = lab.minilm().units("heads", "neurons")
    counts = {site: units[site].count - level for site, level in chosen.items()}
    kept = {site: score for site, score in scores.items() if site in counts}
    free = {name: site for name, site in units.sites.items() if name in counts}
    masks = {
        site: torch.argsort(torch.argsort(torch.as_tensor(kept[site]))) >= free[site].count - counts[site]
        for site in counts
    }
    return lab.minilm().cut(Selection({site: mask.numpy() for site, mask in masks.items()}))[0]


def together(windows: list[Figure]) -> Figure:
    """The median of several windows, with the interval that holds all of theirs."""
    lows, highs = ([end for one in windows if (end := getattr(one, side)) is not None] for side in ("low", "high"))
    value, samples = np.median([one.value for one in windows]), sum(one.samples for one in windows)
    return Figure(float(value), min(lows), max(highs), "x", samples)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("targets", "within"), [((1.5, 2.0, 3.0), 0.07), ((4.0,), 0.1)], ids=["to 3x", "4x"])
def test_the_clock_agrees(place, targets, within, tmp_path):
    subject, (batch, length) = lab.minilm(), PLACES[place]
    with Run.open(tmp_path / "run", {}) as run:
        results = list(
            ziplm.ziplm(
                subject,
                lab.training(),
                [Budget.parse(f"speedup={t}x") for t in targets],
                run,
                batch=batch,
                length=length,
                trials=30,
                steps=0,
                gradual=False,
            )
        )
    example, windows = subject.example(batch, length), {target: [] for target in targets}
    # The machine's state lasts half a minute: each student is timed in several windows, which lie apart.
    for _ in range(4):
        for target, result in zip(targets, results, strict=True):
            pair = latency.compare(
                lambda: subject.forward(example), lambda s=result.subject: s.forward(example), lasting=12.0, enough=4000
            )
            windows[target].append(pair.speedup)
    found = {target: together(row) for target, row in windows.items()}
    holds = all(abs(speedup.value / target - 1) <= within for target, speedup in found.items())
    names = " and ".join(f"{target:g}x" for target in targets)
    lab.singly(
        "ziplm",
        f"clock-{place}" + ("" if len(targets) > 1 else f"-{targets[0]:g}x"),
        f"measured speedup within {within:.0%} of {names} at batch {batch} x {length}",
        holds,
        {f"{target:g}x asked/speedup": speedup for target, speedup in found.items()},
        setup=f"{MINILM}; each timed in four windows of 12 s that lie apart",
        reason=SHORT_PASS,
    )
    if place == "latency" and targets == (4.0,) and not holds:
        pytest.xfail(SHORT_PASS)
    assert holds


def test_second_order_beats_first_order_and_chance_at_equal_counts():
    subject = lab.minilm()
    taps = activation.inputs(subject.consumers())
    units = subject.units("heads", "neurons")
    for target in (1.5, 2.0):
        found: dict[str, list[float]] = {name: [] for name in ("OBS", "magnitude", "activation", "random")}
        for seed in SEEDS:
            chosen = solved("throughput", target, seed)
            found["OBS"].append(lab.spearman(cut(chosen, base(seed)), 500))
            active = activation.collect(subject.forward, subject.model, samples(seed), taps)
            for name, scores in (
                ("magnitude", magnitude.groups(subject.model, subject.consumers())),
                ("activation", active),
                ("random", random.scores(units, seed=seed)),
            ):
                found[name].append(lab.spearman(ranked(scores, chosen), 500))
        ours = found.pop("OBS")
        lab.record(
            "ziplm",
            f"one-shot-{target}x",
            f"one-shot at {target}x: OBS beats magnitude, activation and random at equal counts per layer",
            all(not lab.less(ours, rival) for rival in found.values()),
            ("spearman", ours),
            found,
            lower=False,
            setup=MINILM,
        )


def test_the_latency_table_beats_uniform_shares_and_flops_at_equal_time():
    """Rivals get at least as much predicted time: where levels don't fit exactly, they are given the larger ones."""
    found: dict[str, list[float]] = {name: [] for name in ("latency", "uniform", "flops")}
    excess: dict[str, list[float]] = {name: [] for name in ("uniform", "flops")}
    for seed in SEEDS:
        chosen = solved("throughput", 2.0, seed)
        spent = share("throughput", chosen, seed)
        found["latency"].append(lab.spearman(cut(chosen, base(seed)), 500))
        evenly = (alike(seed, kept) for kept in np.arange(0.02, 1.0, 0.005))
        x = next(x for x, levels in by_flops(seed, 2.0) if share("throughput", levels, seed) >= spent)
        searched = (levels for _, levels in by_flops(seed, x))  # its coefficients are searched at its own target
        for name, tries in (("uniform", evenly), ("flops", searched)):
            rival = next(levels for levels in tries if share("throughput", levels, seed) >= spent)
            found[name].append(lab.spearman(cut(rival, base(seed)), 500))
            excess[name].append(share("throughput", rival, seed) / spent - 1)
    ours = found.pop("latency")
    lab.record(
        "ziplm",
        "table",
        "searched on the measured table beats uniform shares and a searched FLOP table at no less predicted time",
        all(not lab.less(ours, rival) for rival in found.values()),
        ("spearman", ours),
        found,
        lower=False,
        setup=f"{MINILM}; the rivals' time is up to {max(map(max, excess.values())):.1%} above ours",
    )


def by_flops(seed: int, near: float):
    """(x, levels) for FLOP speedups from 4x down, with coefficients searched at `near`."""
    weights = coefficients("throughput", near, seed, "flops")
    return ((x, _solve("throughput", x, seed, "flops", weights)) for x in np.arange(4.0, 1.0, -0.02))


def alike(seed: int, kept: float) -> dict[str, int]:
    """Site -> level: the share `kept` of every site, or the nearest level above it."""
    return {
        site: max(level for level in sweep.levels if level <= round((1 - kept) * sweep.levels[-1]))
        for site, sweep in base(seed).items()
    }


def test_compensation_and_fresh_scores_help():
    found: dict[str, list[float]] = {"both": [], "no compensation": [], "all at once": []}
    for seed in SEEDS:
        chosen = solved("throughput", 2.0, seed)
        found["both"].append(lab.spearman(cut(chosen, base(seed)), 500))
        for name, option in (("no compensation", {"compensate": False}), ("all at once", {"one_at_a_time": False})):
            found[name].append(lab.spearman(cut(chosen, base(seed, **option)), 500))
    ours = found.pop("both")
    lab.record(
        "ziplm",
        "compensation",
        "compensation beats none, one structure at a time beats all at once",
        all(not lab.less(ours, rival) for rival in found.values()),
        ("spearman", ours),
        found,
        lower=False,
        setup=MINILM,
    )


def test_the_search_lowers_the_whole_models_loss():
    subject, (batch, length) = lab.minilm(), PLACES["throughput"]
    units = subject.units("heads", "neurons", batch=batch, length=length)
    fixed = table("throughput")["rest"]["0"]
    limit = {"latency": levels.with_latency(units, table("throughput"), fixed).cost()["latency"] / 2}
    items = lab.batches(subject, seed=0, held=True, batch=50).take(4)
    found: dict[str, list[float]] = {"100 trials": [], "start": [], "c = 1": []}
    for seed in SEEDS:
        solve = functools.partial(ziplm.choose_levels, units, table("throughput"), base(seed), limit, fixed)
        tune = functools.partial(
            ziplm.search_coefficients, subject, subject, base(seed), solve, samples(seed), 64, seed=seed
        )
        for name, weights in (("100 trials", tune(trials=100)), ("start", tune(trials=1)), ("c = 1", np.ones(12))):
            student = cut(solve(weights), base(seed))
            found[name].append(
                objectives.held_out(student.forward, teacher=subject.forward, output="embedding", batches=items)
            )
    ours = found.pop("100 trials")
    lab.record(
        "ziplm",
        "search",
        "searched coefficients lower the whole model's held-out loss, against c = 1 and against the search's start",
        all(lab.less(ours, rival) and ours != rival for rival in found.values()),
        ("loss", ours),
        found,
        setup=MINILM,
    )


def test_errors_rise_from_0_to_1():
    """Measured on the stored weights, not taken from the sweep, which lets no error fall."""
    subject = lab.minilm()
    consumers = subject.consumers()
    modules = {site: consumers[site].module for site in base()}
    moments = hessian.collect(subject.forward, subject.model, samples(0), list(modules.values()))
    falls, ends = [], []
    for site, sweep in base().items():
        weight, H = subject.model.get_submodule(modules[site]).weight.data, moments[modules[site]]
        changes = [sweep.weights[level] - weight for level in sweep.levels]
        whole = float(((weight @ H) * weight).sum(dtype=torch.float64))
        row = [float(((change @ H) * change).sum(dtype=torch.float64)) / whole for change in changes]
        falls.append(max(first - second for first, second in itertools.pairwise(row)))
        ends += [row[0], abs(row[-1] - 1)]
    lab.record(
        "ziplm",
        "monotone",
        "relative errors never fall with the level (by more than 1e-3, which dampening may cost): 0 for the uncut "
        "linear, 1 for none of it",
        max(falls) <= 1e-3 and max(ends) < 1e-4,
        ("largest fall", falls),
        seeds=(0,),
        setup=f"{MINILM}; {len(falls)} linears",
    )


def test_more_calibration_helps_then_saturates():
    found: dict[str, list[float]] = {}
    chosen = solved("throughput", 2.0)
    counts = (16, 64, 256, 1024)
    for count in counts:
        found[f"{count}"] = [lab.spearman(cut(chosen, base(seed, count)), 500) for seed in SEEDS]
    means = [np.mean(found[f"{count}"]) for count in counts]
    ours = found.pop("1024")
    lab.record(
        "ziplm",
        "calibration",
        "more calibration sequences help, ever less (16, 64, 256, 1024)",
        means[0] < means[2] and means[3] - means[2] < means[1] - means[0],
        ("spearman", ours),
        found,
        lower=False,
        setup=MINILM,
    )


def test_each_profile_is_nearest_its_target_at_home():
    subject = lab.minilm()
    students = {place: cut(solved(place, 2.0), base()) for place in PLACES}
    times = {}
    for (place, (batch, length)), (name, student) in itertools.product(PLACES.items(), students.items()):
        example = subject.example(batch, length)
        times[place, name] = latency.compare(
            lambda e=example: subject.forward(e), lambda s=student, e=example: s.forward(e), pairs=40, lasting=20.0
        ).speedup
    names = {place: f"{batch} x {length}/speedup" for place, (batch, length) in PLACES.items()}
    holds = all(abs(times[here, here].value - 2) < abs(times[here, other].value - 2) for here, other in HOMES)
    lab.singly(
        "ziplm",
        "home",
        "a profile made for one environment misses 2x in the other: batch 32 x 64 and 1 x 16",
        holds,
        {names[place]: times[place, place] for place in PLACES},
        {"of the other's profile": {names[place]: times[place, other] for place, other in HOMES}},
        setup=MINILM,
    )
    assert holds


def test_the_latency_regime_removes_more_whole_modules():
    whole = {
        place: [
            sum(level == base(seed)[site].levels[-1] for site, level in solved(place, 3.0, seed).items())
            for seed in SEEDS
        ]
        for place in PLACES
    }
    lab.record(
        "ziplm",
        "modules",
        "at 3x the latency regime (batch 1 x 16) removes more whole modules than the throughput regime (32 x 64)",
        lab.less(whole["throughput"], whole["latency"]) and whole["throughput"] != whole["latency"],
        ("whole modules", whole["latency"]),
        {"throughput": whole["throughput"]},
        lower=False,
        setup=MINILM,
    )


def test_an_infeasible_target_says_what_is_reachable(tmp_path):
    budgets = [Budget.parse("speedup=2x"), Budget.parse("speedup=500x")]
    with Run.open(tmp_path / "run", {}) as run, pytest.raises(InfeasibleError) as error:
        next(ziplm.ziplm(lab.minilm(), lab.training(), budgets, run, trials=0, steps=0, calibration=32))
    known = json.loads((tmp_path / "run" / "work" / "latency.json").read_text())
    dense = sum(6 * max(known[kind].values()) for kind in ("heads", "neurons")) + known["rest"]["0"]
    reachable = dense / known["rest"]["0"]
    said = float(re.search(r"at most speedup=([\d.]+)x", str(error.value)).group(1))
    holds = reachable - 0.01 <= said <= reachable and error.value.reachable == pytest.approx(known["rest"]["0"])
    lab.singly(
        "ziplm",
        "infeasible",
        "a target that can't be met is refused before anything is trained, naming T_dense / (T_fix + sum of min t)",
        holds,
        {"named/speedup": Figure(said), "by the table/speedup": Figure(reachable)},
        setup=MINILM,
    )
    assert holds


STEPS = 200
RIVALS = {"every second layer": baselines.every_second_layer, "magnitude": baselines.magnitude}


def at_2x(seed: int) -> dict[str, list[float]]:
    """Name -> Spearman and measured speedup, of ZipLM and of both baselines trained as long; about seven minutes."""

    def compute() -> dict[str, list[float]]:
        found, subject, example = {}, lab.minilm(), lab.minilm().example(32, 64)
        with tempfile.TemporaryDirectory() as place:
            for name, how in {"ZipLM": ziplm.ziplm, **RIVALS}.items():
                options = {"steps": STEPS, "trials": 60} if name == "ZipLM" else {"recovery": {"steps": STEPS}}
                with Run.open(Path(place) / name, {}) as run:
                    (result,) = how(subject, lab.training(), [Budget.parse("speedup=2x")], run, seed=seed, **options)
                pair = latency.compare(
                    lambda: subject.forward(example),
                    lambda s=result.subject: s.forward(example),
                    pairs=40,
                    lasting=20.0,
                )
                found[name] = [lab.spearman(result.subject), pair.speedup.value]
        return found

    return lab.remembered(f"at-2x-{seed}", compute)


@pytest.mark.parametrize("seed", SEEDS)
def test_fidelity_at_2x_beats_both_baselines_for_each_seed(seed):
    found = at_2x(seed)
    ours = found.pop("ZipLM")[0]
    assert ours >= 0.90
    assert all(ours > spearman for spearman, _ in found.values())


def test_fidelity_at_2x_beats_both_baselines():
    found = [at_2x(seed) for seed in SEEDS]
    table = {name: [row[name][0] for row in found] for name in found[0]}
    ours = table.pop("ZipLM")
    mean_speed = {name: np.mean([row[name][1] for row in found]) for name in found[0]}
    speeds = ", ".join(f"{name} {speed:.2f}x" for name, speed in mean_speed.items())
    fair = all(mean_speed["ZipLM"] >= 0.97 * speed for speed in mean_speed.values())
    lab.record(
        "ziplm",
        "fidelity-2x",
        f"at 2x and {STEPS} steps the student keeps Spearman >= 0.90 and beats both baselines",
        all(not lab.less(ours, rival) for rival in table.values()) and min(ours) >= 0.90 and fair,
        ("spearman", ours),
        table,
        lower=False,
        setup=f"{MINILM}; measured speedups {speeds}",
    )


WAYS = {
    "task + logit + token": {"task": 0.5, "logit": 1.0, "token": 0.5},
    "logit only": {"task": 0.0, "logit": 1.0, "token": 0.0},
    "task only": {"task": 1.0, "logit": 0.0, "token": 0.0},
}
GRADUAL = (
    "better than the task alone and than fresh weights; no better than logits alone in 60 steps a stage; and worse "
    "than half depth, since half of this model's layers do next to nothing"
)
FAMILY = "Llama-type, 6 layers, GQA 8:2, Brown; params 70 % then 45 %"


def gradual(seed: int) -> dict[str, list[float]]:
    """Name -> held-out loss at 70 % and at 45 % of the parameters for each mix of losses, and of two rivals at 45 %."""

    def compute() -> dict[str, list[float]]:
        teacher, found = lab.llama(), {}
        budgets = [Budget.parse("params=70%"), Budget.parse("params=45%")]
        training = {"steps": 60, "train_batch": 8, "train_length": 64, "lr": 2e-3}
        shared = {"trials": 0, "calibration": 64, "length": 64, **training}
        with tempfile.TemporaryDirectory() as place:
            for name, way in WAYS.items():
                with Run.open(Path(place) / name, {}) as run:
                    results = list(ziplm.ziplm(teacher, lab.training(), budgets, run, seed=seed, **shared, **way))
                found[name] = [lab.held_out(result.subject) for result in results]
                if name == "task + logit + token":
                    shape = results[-1].subject
            blank = shape.cut(Selection({}))[0]
            _blank(blank, seed)
            half, _ = teacher.cut(Selection({"layers": np.arange(6) % 2 == 0}))
            how = Training(steps=120, batch=8, lr=2e-3, weight_decay=0.03)
            for name, student, blocks in (("fresh", blank, None), ("half depth", half, [(1, 2), (2, 4), (3, 6)])):
                distillation.distil(
                    teacher, student, lab.training(), Path(place) / f"train {name}", blocks=blocks, seed=seed,
                    train_length=64, training=how,
                )  # fmt: skip
                found[name] = [lab.held_out(student)]
        return found

    return lab.remembered(f"gradual-{seed}", compute)


@pytest.mark.xfail(strict=True, reason=GRADUAL)
def test_gradual_distillation_with_tokens_beats_its_parts():
    rows = [gradual(seed) for seed in SEEDS]
    found = {name: [row[name][-1] for row in rows] for name in rows[0]}
    ours = found.pop("task + logit + token")
    lab.record(
        "ziplm",
        "gradual",
        "gradual with token distillation <= logit only <= task only; and better than fresh weights "
        "of its shape and than half the depth, at equal steps",
        lab.less(ours, found["logit only"])
        and lab.less(found["logit only"], found["task only"])
        and lab.less(ours, found["fresh"])
        and lab.less(ours, found["half depth"]),
        ("loss", ours),
        found,
        setup=FAMILY,
        reason=GRADUAL,
    )


def test_one_run_makes_a_family():
    rows = [gradual(seed)["task + logit + token"] for seed in SEEDS]
    lab.record(
        "ziplm",
        "family",
        "one run makes a family; the loss rises as the models shrink",
        all(large <= small for large, small in rows),
        ("loss", [small for _, small in rows]),
        {"params=70%": [large for large, _ in rows]},
        setup=FAMILY,
    )


def _blank(subject: Transformer, seed: int) -> None:
    """Random weights, as the model class would draw them, in a model already cut."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in subject.model.parameters():
            parameter.normal_(0.0, 0.02) if parameter.dim() > 1 else parameter.fill_(1.0)
