"""Does a low loss right after a cut tell a good model after retraining? Candidates, all retrained, ranked and compared.

Feng et al., "Is Oracle Pruning the True Oracle?" (arXiv 2412.00143). A pruning criterion is a proxy: it picks the cut
whose loss, or whose estimate of it, is lowest. Whether that picks the better model is the rank correlation, over many
cuts of one size, of the proxy with what the cut gives after retraining.

Departures: the model comes trained; each network and each data set is a study of its own. Candidates of a repeat share
its seed, so that all see the same batches in the same order: other seeds for each would add noise of their own. After
a short retraining it is the loss on the training part that counts, so that nothing picks by what judges; the paper
correlates test results, which stand beside. The figure of a candidate is the mean of its last epochs over repeats; its
best epoch, which is picked on what judges it, stands in items.jsonl, the table of candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
from annotated_types import Ge, Gt, Lt
from torch import nn

from secateur._utils import devices
from secateur.errors import InputError, MeasurementError
from secateur.measure import statistics
from secateur.methods import retraining
from secateur.methods.retraining import Classifier
from secateur.recover.training.norms import has_norms
from secateur.reports.charts import Dots
from secateur.reports.sheet import Scatter, Sheet, Table
from secateur.runs import candidates as drawing
from secateur.runs.candidates import Candidate, Part, Retraining, Setting, Store
from secateur.runs.keywords import check_seed
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Figure, Training

__all__ = ["STUDY", "Proxy", "Ranked", "Ranking", "oracle", "plan"]

STUDY = {
    "title": "does the loss right after a cut, or any score, tell which cut is best after retraining?",
    "recipe": "",
    "backend": "any",
    "sets": "",
    "grid": "layers ratios candidates around score proxies repeats stack processes",
}

PROXIES = {
    "loss": "loss after the cut",
    "kl": "KL from the original after the cut",
    "norms": "loss after the cut, batch norms anew",
    "trace": "trace of the Hessian after the cut",
    "short": "training loss after a short retraining",
}
"""What may be asked for, and how it is called; the first always is."""

SHORT_JUDGED = "judged accuracy after a short retraining"

STACK = 64
"""Candidates that are trained as one, where memory holds as many."""

FAILS, CHANCE = 0.2, 0.05
"""Tau above which, and p up to which, a proxy is said to tell something; the paper's reading."""

HALF = 0.5
"""Share of candidates that beat a pick from which on it is no better than one at random."""

Row = dict[str, Any]
"""Names and figures, as JSON has them."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """How well a number that is known before retraining ranks candidates; lower is to mean better."""

    name: str
    loss: Figure | None
    """Kendall's tau-b with the loss after retraining; above 0 where it tells something. None where all are equal."""
    accuracy: Figure | None
    """The same with the accuracy; below 0 where it tells something."""
    other: Row
    """p-values, Spearman's and Pearson's correlations, anomaly and counterexample ratios, for both."""

    @property
    def tells(self) -> bool:
        """Whether low values go with low losses after retraining, by more than `FAILS` and more than chance."""
        return self.loss is not None and self.loss.value > FAILS and self.other["loss"]["p"]["kendall"] <= CHANCE

    @property
    def flagged(self) -> bool:
        """Whether half of the candidates or more beat its pick, in loss or in accuracy."""
        shares = [self.other[kind]["anomaly"] for kind in ("loss", "accuracy")]
        return any(share is not None and share >= HALF for share in shares)

    @property
    def anomaly(self) -> str:
        """Shares of candidates that beat its pick, in loss and in accuracy, in percent."""
        shares = [self.other[kind]["anomaly"] for kind in ("loss", "accuracy")]
        return " / ".join("–" if share is None else f"{100 * share:.0f}" for share in shares)

    def verdict(self, count: int) -> str:
        """Whether it tells something: that it does not is said only where its whole interval is at most `FAILS`."""
        high = None if self.loss is None else self.loss.high
        if self.tells:
            told = "tells"
        elif high is not None and high <= FAILS:
            told = "does not tell"
        else:
            told = f"not decided with {count} candidates"
        return f"{told}; its pick is no better than one at random" if self.flagged else told


Pick: TypeAlias = int | None
"""Place of the candidate that is picked; None where it could not be trained."""


def _compare(
    name: str, proxy: np.ndarray, loss: np.ndarray, accuracy: np.ndarray, inside: np.ndarray, pick: Pick
) -> Proxy:
    taus: dict[str, Figure | None] = {}
    other: Row = {}
    proxy = proxy[inside]
    for kind, every in (("loss", loss), ("accuracy", accuracy)):
        sign, values = -1.0 if kind == "loss" else 1.0, every[inside]
        other[kind] = {
            "anomaly": None if pick is None else statistics.share_above(sign * values, sign * every[pick]),
            "counterexamples": statistics.counterexample_ratio(proxy, sign * values),
        }
        try:
            taus[kind] = statistics.kendall(proxy, values)
            other[kind]["p"] = statistics.independence(proxy, values)
            other[kind]["spearman"] = asdict(statistics.spearman(proxy, values))
            other[kind]["pearson"] = asdict(statistics.pearson(proxy, values))
        except MeasurementError:  # all are equal
            taus[kind] = None
    return Proxy(name, taus["loss"], taus["accuracy"], other)


# ------------------------------------------------------------------------------------------------------ one setting


@dataclass(frozen=True, eq=False)
class Ranked:
    """The candidates of one setting with what was measured of them, by rows of arrays."""

    setting: Setting
    candidates: Sequence[Candidate]
    figures: Sequence[Row]
    """Of each candidate: "cut", "short", "full 1", ... -> figures."""
    scores: dict[str, list[float]]
    """Score -> of each candidate the sum of the scores of what goes."""
    repeats: int
    share: float
    """Of the epochs that the short retraining has; 0 where there was none."""
    choices: Mapping[str, Pick] = field(default_factory=dict)
    """Score -> the place of its own choice; None where that could not be trained."""

    def column(self, what: str, name: str) -> np.ndarray:
        """[candidates]: a figure; of "full" the mean over repeats."""
        if what == "full":
            rows = [self.column(f"full {repeat}", name) for repeat in range(1, self.repeats + 1)]
            return np.asarray(np.mean(rows, axis=0))
        return np.array([figures[what][name] for figures in self.figures])

    @property
    def sample(self) -> np.ndarray:
        """Which candidates are compared: those drawn and those near a score's choice, not the choices themselves."""
        return np.array([drawing.is_drawn(one) for one in self.candidates])

    def proxy_values(self) -> dict[str, np.ndarray]:
        """Proxy -> [candidates], lower is to mean better."""
        cut = self.figures[0]["cut"]
        found = {PROXIES[name]: self.column("cut", name) for name in PROXIES if name in cut}
        if self.share:
            found[PROXIES["short"]] = self.column("short", "train_loss")
            found[SHORT_JUDGED] = -self.column("short", "accuracy")
        return {**found, **{f"score {name}": np.array(values) for name, values in self.scores.items()}}

    @cached_property
    def proxies(self) -> list[Proxy]:
        """Each proxy compared with what comes of retraining, the best first."""
        loss, accuracy, inside = self.column("full", "loss"), self.column("full", "accuracy"), self.sample
        places, found = np.flatnonzero(inside), list[Proxy]()
        for name, values in self.proxy_values().items():
            pick = self.choices.get(name.removeprefix("score "), int(places[np.argmin(values[places])]))
            found.append(_compare(name, values, loss, accuracy, inside, pick))
        return sorted(found, key=lambda one: -abs(one.loss.value) if one.loss else 0.0)

    def picks(self) -> dict[str, int]:
        """Rule -> place of the candidate that it picks; the loss after the cut also with the costs of the other rule.

        A short retraining of n candidates and a whole one of its pick cost n s + 1 trainings, s the share of epochs:
        as many of the lowest loss after the cut are trained wholly, and that of the lowest training loss is picked.
        """
        places, loss = np.flatnonzero(self.sample), self.column("cut", "loss")
        by_loss = places[np.argsort(loss[places], kind="stable")]
        found = {"oracle: lowest loss after the cut": int(by_loss[0])}
        if self.share:
            many, reached = min(len(places), 1 + int(len(places) * self.share)), self.column("full 1", "train_loss")
            best = by_loss[:many]
            found[f"the {many} of the lowest loss trained, the best of them"] = int(best[np.argmin(reached[best])])
            short = self.column("short", "train_loss")
            found["lowest loss after a short retraining"] = int(places[np.argmin(short[places])])
        found |= {f"score {name}": place for name, place in self.choices.items() if place is not None}
        return found

    # ------------------------------------------------------------------------------------------------------ tables

    def proxy_table(self) -> Table:
        """A row for each proxy."""
        count = int(self.sample.sum())
        rows = [["Proxy", "tau, loss", "tau, accuracy", "p, loss", "Beat its pick, %", "Counterexamples, %", "Verdict"]]
        for one in self.proxies:
            tested = one.other["loss"].get("p")
            rows.append(
                [
                    one.name,
                    _format(one.loss),
                    _format(one.accuracy),
                    f"{tested['kendall']:.2g}" if tested else "–",
                    one.anomaly,
                    f"{100 * one.other['loss']['counterexamples']:.0f}",
                    one.verdict(count),
                ]
            )
        words = (
            f"{count} of {self.setting.ways:,} cuts. tau: Kendall's tau-b with the mean of the last epochs over "
            f"{self.repeats} repeats, with its 95 % interval over candidates; a proxy that tells nothing has 0 give or "
            f"take {statistics.kendall_deviation(count):.2f}. Beat its pick: of those compared, which are the cuts "
            "drawn, candidates with a lower loss / a higher accuracy than the one of them with the lowest proxy, or "
            "than what a score itself chooses of all cuts. Counterexamples: pairs "
            "in which the lower proxy has the higher loss. "
            f"A proxy tells where tau with the loss is above {FAILS} and p at most {CHANCE}; it does not where the "
            f"whole interval of tau is at most {FAILS}; all else more candidates would have to decide."
        )
        return Table(f"{self.setting.name}: what ranks candidates before they are retrained", rows, words)

    def pick_table(self) -> Table:
        """A row for each rule to pick one candidate."""
        loss, accuracy = self.column("full", "loss"), self.column("full", "accuracy")
        rows = [["Pick", "Loss", "Accuracy, %", "Better ones, %"]]
        inside = self.sample

        def add(name: str, place: int) -> None:
            better = float((loss[inside] < loss[place]).mean())
            rows.append([name, f"{loss[place]:.4g}", f"{100 * accuracy[place]:.1f}", f"{100 * better:.0f}"])

        for name, place in self.picks().items():
            add(name, place)
        rows.append(["one at random", f"{loss[inside].mean():.4g}", f"{100 * accuracy[inside].mean():.1f}", "50"])
        add("the best of the drawn", int(np.flatnonzero(inside)[np.argmin(loss[inside])]))
        words = (
            "After the whole retraining. The second row spends on whole trainings what the third spends on short ones. "
            "Lowest and best are of the cuts drawn; a score's choice is of all cuts. Better ones: cuts drawn that have "
            "a lower loss."
        )
        return Table(f"{self.setting.name}: what is picked", rows, words)

    def dots(self) -> list[Dots]:
        """Loss after the cut against the accuracy after retraining; the oracle is the star."""
        x, y = self.column("cut", "loss"), 100 * self.column("full", "accuracy")
        picks, inside = self.picks(), self.sample
        star = picks.pop("oracle: lowest loss after the cut")
        better = inside & (y > y[star])
        groups = [("no better than the oracle", inside & ~better, 0.0), ("better than the oracle", better, 0.6)]
        found = [Dots(name, _points(x[mask], y[mask]), weight) for name, mask, weight in groups if mask.any()]
        found += [
            Dots(name, _points(x[[place]], y[[place]]), 1.0)
            for name, place in picks.items()
            if name.startswith(("score ", "lowest"))
        ]
        return [*found, Dots("the oracle", _points(x[[star]], y[[star]]), star=True)]

    def items(self) -> Iterator[Row]:
        """A line for each candidate."""
        loss, accuracy = self.column("full", "loss"), self.column("full", "accuracy")
        for place, (one, figures) in enumerate(zip(self.candidates, self.figures, strict=True)):
            scores = {name: values[place] for name, values in self.scores.items()}
            yield {
                "setting": self.setting.name,
                **asdict(one),
                "loss": float(loss[place]),
                "accuracy": float(accuracy[place]),
                "scores": scores,
                **figures,
            }

    def summary(self) -> Row:
        """Figures for study.json."""
        return {
            "name": self.setting.name,
            "sizes": {site: list(size) for site, size in self.setting.sizes.items()},
            "ways": self.setting.ways,
            "candidates": int(self.sample.sum()),
            "chance": statistics.kendall_deviation(int(self.sample.sum())),
            "proxies": [
                {**asdict(one), "tells": one.tells, "verdict": one.verdict(int(self.sample.sum()))}
                for one in self.proxies
            ],
            "picks": {name: self.candidates[place].id for name, place in self.picks().items()},
            "picked": {
                name: {key: float(self.column("full", key)[place]) for key in ("loss", "accuracy")}
                for name, place in self.picks().items()
            },
        }


def _points(x: np.ndarray, y: np.ndarray) -> list[tuple[float, float]]:
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _format(figure: Figure | None) -> str:
    if figure is None:
        return "–"
    ends = "" if figure.low is None or figure.high is None else f" [{figure.low:+.2f} to {figure.high:+.2f}]"
    return f"{figure.value:+.2f}{ends}".replace("-", "−")


# ------------------------------------------------------------------------------------------------------- the answer


@dataclass(frozen=True, eq=False)
class Ranking:
    """All settings."""

    settings: Sequence[Ranked]
    notes: tuple[str, ...] = ()

    def sheet(self) -> Sheet:
        """Tables of proxies and picks for each setting, and a scatter with the oracle marked."""
        tables = [table for one in self.settings for table in (one.proxy_table(), one.pick_table())]
        panels = {one.setting.name: one.dots() for one in self.settings}
        chart = Scatter(
            "Candidates: loss after the cut, and accuracy after retraining",
            panels,
            "training loss after the cut",
            "accuracy, %",
            "The star is the cut of the lowest loss of those drawn. What lies above its line is better, though its "
            "loss was higher.",
        )
        figures = {"settings": [one.summary() for one in self.settings]}
        items = [item for one in self.settings for item in one.items()]
        return Sheet("oracle", self._headline(), tables, figures, self.notes, chart, items)

    def _headline(self) -> str:
        last = self.settings[-1]
        known = {one.name: one for one in last.proxies}
        told = [f"tau of the {PROXIES['loss']} with the final loss {_format(known[PROXIES['loss']].loss)}"]
        if last.share:
            told.append(f"of the {PROXIES['short']} {_format(known[PROXIES['short']].loss)}")
        return f"{last.setting.name}: {', '.join(told)}"


@dataclass(frozen=True, slots=True)
class Job:
    """A measurement of all candidates of a setting."""

    store: Store
    what: str

    def __str__(self) -> str:
        many = len(self.store.candidates)
        what = {"cut": "cut and measured", "short": "retrained shortly"}.get(self.what, f"retrained, {self.what[5:]}")
        return f"{self.store.setting.name}: {many} candidates, {what}"


def oracle(
    subject: Classifier,
    data: Part,
    folder: Path,
    progress: Callable[[Sequence[Job]], Iterable[Job]] = iter,
    *,
    layers: Sequence[str] = (),
    ratios: Sequence[str] = ("50%",),
    axis: str = "",
    candidates: Annotated[int, Ge(3)] = 300,
    around: Annotated[int, Ge(0)] = 0,
    score: Sequence[str] = ("l1",),
    proxies: Sequence[str] = ("short",),
    repeats: Annotated[int, Ge(1)] = 3,
    short: Annotated[float, Gt(0), Lt(1)] = 0.1,
    last: Annotated[int, Ge(1)] = 5,
    seed: int = 0,
    judged: str | Part = "",
    length: Annotated[int, Ge(2)] = 128,
    stack: Annotated[int, Ge(0)] = 0,
    processes: Annotated[int, Ge(1)] = 1,
    training: Training = Training(epochs=30, batch=64, lr=1e-3, weight_decay=1e-4),
) -> Ranking:
    """Retrain many cuts of one size, and say what would have told the better ones beforehand.

    1. The candidates of each setting (layers at a ratio): all of them where there are no more than `candidates`, else
       as many drawn at random; they are stored, and the same in every repeat.
    2. Each is cut for real, and its loss measured on the whole training part, in evaluation mode, before any step.
    3. Each is retrained by one recipe, `repeats` times: all of a setting in stacks, as their shapes agree, else one by
       one or in `processes`; judged after each epoch.
    4. Repeats are averaged; then the loss after the cut, and every other proxy, is compared with the loss and the
       accuracy after retraining: Kendall's tau, the share of candidates that beat its pick, counterexamples.

    Args:
        subject: a trained classifier: a network, or a transformers model of texts.
        data: examples or texts with classes.
        folder: where candidates and their results go.
        progress: announces the work.
        layers: what is cut: layers or sites, joined by + where several go together, such as conv1,conv1+conv2, or with
            ratios of their own, conv1=20%+conv2=50%; all together unless given.
        ratios: shares of units that go.
        axis: kind of units; channels of networks and heads of transformers unless given.
        candidates: the most of a setting, not counting those of scores.
        around: further candidates for each score, which differ from its choice in one pair of units.
        score: criteria to check: names of `secateur prune`, file.py:function, or a file of scores (.json,
            .safetensors).
        proxies: what else is compared: kl, norms, trace or short.
        repeats: whole retrainings of each candidate, which are averaged.
        short: share of the epochs that a short retraining has.
        last: epochs at the end that a candidate's figures are means over.
        seed: of candidates, of what is held out, and of the seeds of repeats.
        judged: data to judge on; a fifth of the data is held out unless given.
        length: tokens of a text.
        stack: candidates that are trained as one, 1 for none; 64 unless given, and none for convolutions on a CPU,
            which gain nothing by it; fewer where memory holds no more.
        processes: in which candidates are trained that can't be stacked.
        epochs: of a retraining.
        train_batch: examples per step, and at most in any other pass.
        lr: learning rate; SGD in milestones for networks, AdamW for texts.
        weight_decay: of matrices and kernels.

    Raises `InputError` for a name that is no layer's, a layer that would be left empty, a setting of one candidate, and
    scores with other names; `DataError` without classes.
    """
    how = _settle(subject, proxies, short, last, seed, stack, processes, training)
    batch = how.training.whole("batch")
    task = drawing.make_task(subject, data, judged, length=length, seed=seed, batch=batch)
    settings = drawing.parse_settings(subject, layers, ratios, axis)
    scores = {name: drawing.choose(subject, task, name, settings, batch=batch, seed=seed) for name in score}
    whats = ["cut", *(["short"] if how.short else []), *(f"full {repeat}" for repeat in range(1, repeats + 1))]
    stores = []
    for setting in settings:
        cuts = drawing.draw(setting, candidates, scores, around=around, seed=seed)
        stores.append(Store(subject, task, setting, cuts, how, Path(folder, setting.folder), whats))
    for job in progress([Job(store, what) for store in stores for what in whats]):
        job.store.work(job.what)
    ranked = [_rank(store, scores, repeats, short if how.short else 0.0) for store in stores]
    proved = [figures["cut"]["proved"] for one in ranked for figures in one.figures if "proved" in figures["cut"]]
    notes = [f"all cuts equal the network with their units silenced, to {max(proved):.1g}"] if proved else []
    return Ranking(ranked, (*notes, *dict.fromkeys(note for store in stores for note in store.notes)))


def _rank(store: Store, scores: Mapping[str, Mapping[str, np.ndarray]], repeats: int, share: float) -> Ranked:
    """What was trained, compared; what failed stands in the notes. Raises `MeasurementError` where too few are left."""
    results, failed = store.results(), store.failures()
    there = [one for one in store.candidates if one.id not in failed]
    lost = [one.id for one in store.candidates if one.id in failed]
    if lost:
        names = ", ".join(f"{name} ({failed[name]})" for name in lost[:3]) + (", ..." if len(lost) > 3 else "")
        words = (
            f"{store.setting.name}: {len(lost)} of {len(store.candidates)} candidates failed and are left out: {names}"
        )
        store.notes[words] = None
        if sum(drawing.is_drawn(one) for one in there) < 3:
            raise MeasurementError(f"{words}; give a lower lr, in another folder")
    sums, choices, places = {}, dict[str, Pick](), {one.id: place for place, one in enumerate(there)}
    for name, numbers in scores.items():
        every = [
            float(sum(numbers[site][list(gone)].sum() for site, gone in one.removed.items()))
            for one in store.candidates
        ]
        sums[name] = [value for value, one in zip(every, store.candidates, strict=True) if one.id in places]
        choices[name] = places.get(drawing.choice(store.setting, name, numbers).id)
    return Ranked(store.setting, there, [results[one.id] for one in there], sums, repeats, share, choices)


def _settle(
    subject: Classifier,
    proxies: Sequence[str],
    short: float,
    last: int,
    seed: int,
    stack: int,
    processes: int,
    training: Training,
) -> Retraining:
    """One recipe for all. Raises `InputError` for a proxy that is none, or settings that can't be."""
    check_seed(seed)
    for name in proxies:
        if name not in PROXIES:
            raise InputError(f"proxy {name!r} is none of {', '.join(PROXIES)}")
    if "norms" in proxies and not has_norms(subject.model):
        raise InputError(f"proxy norms is of batch norms, and {type(subject.model).__name__} has none: leave it out")
    whole = retraining.complete(training, texts=not isinstance(subject, Traced))
    brief = replace(whole, epochs=short * whole.number("epochs")) if "short" in proxies else None
    wanted = [name for name in proxies if name != "loss"]
    slow = devices.find_device(subject.model).type == "cpu" and any(
        isinstance(module, nn.modules.conv._ConvNd) for module in subject.model.modules()
    )
    stack = stack or (1 if slow else STACK)
    return Retraining(whole, brief, wanted, last, seed, stack, processes)


def plan(
    subject: Classifier,
    data: Part,
    *,
    layers: Sequence[str],
    ratios: Sequence[str],
    axis: str,
    candidates: int,
    around: int,
    score: Sequence[str],
    proxies: Sequence[str],
    repeats: int,
    short: float,
    last: int,
    seed: int,
    judged: str | Part,
    length: int,
    stack: int,
    processes: int,
    training: Training,
) -> dict[str, int]:
    """How many candidates `oracle` will cut and retrain; what it would refuse is refused here."""
    how = _settle(subject, proxies, short, last, seed, stack, processes, training)
    batch = how.training.whole("batch")
    task = drawing.make_task(subject, data, judged, length=length, seed=seed, batch=batch)
    settings = drawing.parse_settings(subject, layers, ratios, axis)
    scores = {name: drawing.choose(subject, task, name, settings, batch=batch, seed=seed) for name in score}
    many = sum(len(drawing.draw(one, candidates, scores, around=around, seed=seed)) for one in settings)
    return {"candidates": many, "short retrainings": many if how.short else 0, "retrainings": many * repeats}
