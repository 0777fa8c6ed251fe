"""Cuts of one subject as candidates: drawn, stored, measured before training and retrained; resumed one by one.

folder/SETTING/candidates.jsonl    a line for each cut: its id, what goes, where it comes from
folder/SETTING/results.jsonl       a line for each measurement of one: after the cut, or after a retraining
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from secateur._utils import devices, rundir
from secateur._utils.batches import Batch
from secateur._utils.disk import atomic_write
from secateur.data import examples
from secateur.data.examples import Examples
from secateur.data.texts import Corpus
from secateur.errors import DataError, InputError, NumericalError, RunError, UnsupportedError
from secateur.methods import pruning, retraining
from secateur.methods.retraining import Classifier, Classifying, Figures, ImageTask, TextTask
from secateur.runs import splits
from secateur.runs.backends import of_source
from secateur.select import subsets
from secateur.select.arrays import as_numpy
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Selection, Training, Units

if TYPE_CHECKING:
    from secateur.subjects.transformer.subject import Transformer

__all__ = [
    "Candidate",
    "Part",
    "Retraining",
    "Setting",
    "Store",
    "choice",
    "choose",
    "draw",
    "is_drawn",
    "make_task",
    "parse_settings",
    "read_judged",
]

Part: TypeAlias = Examples | Corpus
Row: TypeAlias = dict[str, Any]
"""A line of results."""

_CALIBRATION = 8
"""Batches that scores, batch norms and the Hessian look at."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What goes: the same number of units at the same sites for each candidate."""

    name: str
    sizes: Mapping[str, tuple[int, int]]
    """Site -> (units, how many of them go)."""

    @property
    def ways(self) -> int:
        """All candidates that there are."""
        return subsets.count(self.sizes)

    @property
    def folder(self) -> str:
        """Where its candidates are kept."""
        tail = hashlib.sha256(json.dumps(dict(self.sizes)).encode()).hexdigest()[:8]
        return f"{re.sub(r'[^A-Za-z0-9.+-]+', '_', self.name)[:60]}-{tail}"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One cut. origin: "drawn", "near SCORE", or "SCORE" for what a score chooses."""

    id: str
    removed: Mapping[str, Sequence[int]]
    origin: str

    @classmethod
    def of(cls, keep: subsets.Keep, origin: str) -> Candidate:
        """The candidate in which `keep` stays; its id is of what goes."""
        removed = subsets.list_removed(keep)
        return cls(hashlib.sha256(json.dumps(removed).encode()).hexdigest()[:12], removed, origin)

    def select(self, setting: Setting) -> Selection:
        """What stays."""
        keep = {site: np.ones(units, bool) for site, (units, _) in setting.sizes.items()}
        for site, gone in self.removed.items():
            keep[site][list(gone)] = False
        return Selection(keep)


# ----------------------------------------------------------------------------------------------------------- settings


def parse_settings(subject: Classifier, layers: Sequence[str], ratios: Sequence[str], axis: str = "") -> list[Setting]:
    """Every combination of layers at every ratio.

    Args:
        subject: what is cut.
        layers: sites or layers joined by +, such as "conv1+conv2", or with ratios of their own, "conv1=20%+conv2=50%";
            all sites together where none is given.
        ratios: shares of units that go, such as "50%": of n units int(n * ratio).
        axis: kind of units, such as heads; channels of networks and heads of transformers if "".

    Raises `InputError` for a name that is no layer's, a ratio that is none, a layer that would be left empty, and a
    setting of fewer than three candidates.
    """
    units = subject.units(axis or ("channels" if isinstance(subject, Traced) else "heads"), multiple=1)
    free = {site.name: site for site in units.free()}
    for site in free.values():
        if site.group is not None and site.kind == "heads":
            raise UnsupportedError(
                f"{site.name} of {type(subject.model).__name__} go in step within their groups of keys and values: "
                "give --axis kv_groups, which cuts whole groups"
            )
        if site.group is not None or site.coupled is not None or site.fixed is not None:
            raise UnsupportedError(f"units of {site.name} are tied to one another: choose another axis")
    settings = list[Setting]()
    for group in layers or ["+".join(free)]:
        names, own = [], dict[str, str]()
        for part in group.split("+"):
            name, _, ratio = part.strip().partition("=")
            names.append(_find_site(subject, free, name))
            own |= {names[-1]: ratio} if ratio else {}
        if len(set(names)) < len(names):
            raise InputError(f"layers={group} names one site twice: give each once")
        for ratio in dict.fromkeys(ratios if len(own) < len(names) else [""]):
            sizes = {name: (free[name].count, _count_gone(units, name, own.get(name, ratio))) for name in names}
            title = group if layers else "all layers"
            setting = Setting(title if len(own) == len(names) else f"{title} at {ratio}", sizes)
            if setting.ways < 3:
                many = "one candidate only" if setting.ways == 1 else "two candidates only"
                raise InputError(f"{setting.name} has {many}: a rank correlation needs more, so give another ratio")
            settings.append(setting)
    return settings


def _find_site(subject: Classifier, free: Mapping[str, object], name: str) -> str:
    """The site of that name, or the one whose units a layer of that name makes."""
    if name in free:
        return name
    owners = {id(tensor): path.rpartition(".")[0] for path, tensor in subject.model.named_parameters()}
    made = {
        site: {owners.get(id(tensor)) for tensor, dim, _ in parts if dim == 0 and tensor.dim() > 1}
        for site, parts in subject.slices().items()
        if site in free
    }
    found = [site for site, makers in made.items() if name in makers]
    if len(found) == 1:
        return found[0]
    known = {maker for makers in made.values() for maker in makers if maker}
    raise InputError(
        f"layers name {name!r}, which is no layer whose units can go: there are {', '.join(sorted(known))}, and the "
        f"sites {', '.join(free)}"
    )


def _count_gone(units: Units, name: str, ratio: str) -> int:
    """int(n p), where the site allows what is left."""
    text = str(ratio).strip()
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise InputError(f"ratio {ratio!r} is no share: give for example 50%") from error
    if not 0 <= share <= 1:
        raise InputError(f"ratio {ratio} is no share: give one between 0% and 100%")
    site = units[name]
    gone = int(site.count * share + 1e-9)
    if gone >= site.count:
        raise InputError(f"{name} would be left empty at {ratio}: it has {site.count} units; give a lower ratio")
    left = site.count - gone
    if left % site.multiple or left < site.minimum:
        raise InputError(
            f"{name} would keep {left} of {site.count} units, and keeps multiples of {site.multiple}: "
            "give another ratio"
        )
    return gone


# ------------------------------------------------------------------------------------------------- choices of a score


def choose(
    subject: Classifier, task: Classifying, score: str, settings: Sequence[Setting], *, batch: int, seed: int
) -> dict[str, np.ndarray]:
    """Site -> a score's numbers for its units, higher meaning keep.

    score: a name of `secateur.prune`, file.py:function, or a file of scores (.json or .safetensors): site or layer ->
    numbers. Raises `InputError` for scores with other names, of another number, or that are not finite.
    """
    wanted = {site: units for setting in settings for site, (units, _) in setting.sizes.items()}
    if score.endswith((".json", ".safetensors")):
        found = _read_scores(Path(score), subject, wanted)
    else:
        batches = _take(task, batch, seed)
        scorer = pruning.make_scorer(score, batches, partial(retraining.mean_loss, task), seed)
        scores = scorer(cast(Traced, subject))  # of a transformers model it asks the same: slices and the model
        found = {name: as_numpy(values) for name, values in scores.items()}
    for site, count in wanted.items():
        if site not in found:
            raise InputError(f"score {score} says nothing of {site}: it has {', '.join(found) or 'no site'}")
        if found[site].shape != (count,):
            raise InputError(f"score {score} has {found[site].size} numbers for the {count} units of {site}: one each")
        if not np.isfinite(found[site]).all():
            raise InputError(f"score {score} is not finite at {site}: give numbers")
    return {site: found[site] for site in wanted}


def _read_scores(file: Path, subject: Classifier, wanted: Mapping[str, int]) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise InputError(f"there is no file of scores at {file}: give site -> numbers as .json or .safetensors")
    if file.suffix == ".safetensors":
        rows: Mapping[str, Any] = {name: tensor.double().numpy() for name, tensor in rundir.read_tensors(file).items()}
    else:
        try:
            rows = json.loads(file.read_text("utf-8"))
            rows = {str(name): np.asarray(values, float) for name, values in rows.items()}
        except (ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise InputError(f"{file} holds no scores: give an object of site -> list of numbers") from error
    found = {}
    for name, values in rows.items():
        site = name if name in wanted else _find_site(subject, dict.fromkeys(subject.units()), name)
        if site in found:
            raise InputError(f"{file} has scores of {site} twice, once under the name of its layer: leave one out")
        found[site] = values
    return found


def _take(task: Classifying, batch: int, seed: int) -> list[Batch]:
    feed = task.feed(batch, seed)
    return [feed[place] for place in range(min(_CALIBRATION, len(feed)))]


def draw(
    setting: Setting, most: int, scores: Mapping[str, Mapping[str, np.ndarray]], *, around: int = 0, seed: int = 0
) -> list[Candidate]:
    """The candidates of a setting: all, or `most` drawn; what each score chooses, and `around` more near each choice.

    scores: name -> site -> numbers; of each site those of the lowest score go. A cut comes once, under its first
    origin: drawn, near a score's choice, a choice.
    """
    found = {one.id: one for keep in subsets.draw(setting.sizes, most, seed) for one in [Candidate.of(keep, "drawn")]}
    choices = {name: choice(setting, name, numbers) for name, numbers in scores.items()}
    for name, chosen in choices.items():
        keep = chosen.select(setting).keep
        for other in subsets.near(keep, around, seed):
            one = Candidate.of(other, f"near {name}")
            found.setdefault(one.id, one)
    for one in choices.values():
        found.setdefault(one.id, one)
    return list(found.values())


def is_drawn(one: Candidate) -> bool:
    """Whether it is compared: drawn, or near a score's choice, and not such a choice itself."""
    return one.origin == "drawn" or one.origin.startswith("near ")


def choice(setting: Setting, name: str, scores: Mapping[str, np.ndarray]) -> Candidate:
    """What the score of that name chooses: of each site the units of the lowest `scores` go."""
    keep = {}
    for site, (units, gone) in setting.sizes.items():
        keep[site] = np.ones(units, bool)
        keep[site][np.argsort(scores[site], kind="stable")[:gone]] = False
    return Candidate.of(keep, name)


# ------------------------------------------------------------------------------------------------------------- tasks


def read_judged(judged: str | Part, data: Part, subject: Classifier) -> Part | None:
    """The examples or texts that a study judges on, as `data` are read; None where `judged` is "".

    Raises `DataError` for what can't be read, for classes of other names, and for what the subject can't take.
    """
    if isinstance(data, Examples):
        return splits.read_judged(judged, data, cast(Traced, subject))
    backend = of_source(subject)
    return backend.fit_data(backend.read(judged), subject) if judged else None


def make_task(
    subject: Classifier, data: Part, judged: str | Part, *, length: int, seed: int, batch: int = 64
) -> Classifying:
    """What candidates learn and are judged on: `judged`, or a fifth of the data under the seed.

    batch: of training. No more are judged together, for a stack of candidates is as large as such a batch allows.

    Raises `DataError` for data without classes, `UnsupportedError` for a model of texts that gives none.
    """
    backend = of_source(subject)
    if not isinstance(subject, Traced):
        from secateur.runs.backends.language import classifies  # which loads transformers

        if not classifies(cast("Transformer", subject)):
            raise UnsupportedError(
                f"{type(subject.model).__name__} gives no class for a text: give a classifier of texts"
            )
    apart = read_judged(judged, data, subject)
    train, held = data.split(_HELD, seed=seed) if apart is None else (data, apart)
    for part in (train, held):
        if part.labels is None or getattr(part, "per_pixel", False):
            raise DataError(f"{part.name} has no classes: give labels, for candidates are judged by them")
    if isinstance(subject, Traced):
        learned, judges = (examples.limit(cast(Examples, part), batch) for part in (train, held))
        return ImageTask(learned, judges)
    backend.check(subject, {"length": length})
    _check_padding(cast("Transformer", subject))
    return TextTask(cast(Corpus, train), cast(Corpus, held), cast("Transformer", subject).tokenizer, length, batch)


def _check_padding(subject: Transformer) -> None:
    """Raise `InputError` where texts of several lengths can't stand in one batch."""
    lacks = "the tokenizer" if subject.tokenizer.pad_token_id is None else ""
    if not lacks and subject.kind == "decoder" and subject.model.config.pad_token_id is None:
        lacks = "config.json"  # the class of a text is read off its last token before the padding
    if lacks:
        raise InputError(
            f"{lacks} of {type(subject.model).__name__} names no pad token, which fills up short texts: set it"
        )


_HELD = 0.2
"""Share that is held out: more than elsewhere, for differences between candidates are small."""


# ----------------------------------------------------------------------------------------------------------- the store


@dataclass(frozen=True, slots=True)
class Retraining:
    """How candidates are measured and trained: one recipe for all of them."""

    training: Training
    short: Training | None
    """The same, a fraction as long; None: it is not asked for."""
    proxies: Sequence[str]
    last: int
    seed: int
    stack: int
    processes: int


@dataclass(eq=False)
class Store:
    """The candidates of one setting and what is known of them, in a folder."""

    subject: Classifier
    task: Classifying
    setting: Setting
    candidates: Sequence[Candidate]
    how: Retraining
    folder: Path
    whats: Sequence[str] = ()
    """What is asked for, whose failures count; all that there are if none is named."""
    notes: dict[str, None] = field(default_factory=dict)
    _size: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = (json.dumps(asdict(one)) for one in self.candidates)
        atomic_write(self.folder / "candidates.jsonl", "".join(f"{row}\n" for row in rows))

    def _rows(self) -> list[Row]:
        """Half a line that a kill has left is cut off. Raises `RunError` for a line that no run has written."""
        file = self.folder / "results.jsonl"
        if not file.exists():
            return []
        text = file.read_text("utf-8", errors="replace")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            atomic_write(file, whole)
        rows = list[Row]()
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                row = json.loads(line)
                given = {name: float(value) for name, value in row.get("figures", {}).items()}
                rows.append({"id": str(row["id"]), "what": str(row["what"]), **row, "figures": given})
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
                raise RunError(
                    f"line {number} of {file} holds no result of a candidate: take that line out, and what it held is "
                    "done again"
                ) from error
        return rows

    def results(self) -> dict[str, dict[str, Figures]]:
        """Id -> what ("cut", "short", "full 1", ...) -> figures."""
        found = dict[str, dict[str, Figures]]()
        for row in self._rows():
            if "failed" not in row:
                found.setdefault(row["id"], {}).setdefault(row["what"], {}).update(row["figures"])
        return found

    def failures(self) -> dict[str, str]:
        """Id -> of each candidate whose figures were not finite in what, and why; nothing more is done for it."""
        whats = set(self.whats)
        return {
            row["id"]: f"{row['what']}: {row['failed']}"
            for row in self._rows()
            if "failed" in row and (not whats or row["what"] in whats)
        }

    def work(self, what: str) -> None:
        """Do for every candidate what is not done: measure it after its "cut", retrain it "short", or "full 2".

        Each is written as it ends, those of a stack together. One whose figures are not finite is written as failed.
        """
        known, failed = self.results(), self.failures()
        wanted = {"loss", *(set(self.how.proxies) - {"short"})} if what == "cut" else {"loss"}
        left = [
            one
            for one in self.candidates
            if one.id not in failed and not wanted <= set(known.get(one.id, {}).get(what, {}))
        ]
        if left and not self._size:
            self._size = self._find_size()
        while left:
            alone = self.how.processes if self._size == 1 and what != "cut" else 1
            chunk = left[: self._size if self._size > 1 else 4 * alone if alone > 1 else 1]
            if self._try(chunk, what):
                left = left[len(chunk) :]
            elif self._size == 1 or len(chunk) == 1:
                many = f"{self.how.processes} processes" if len(chunk) > 1 else "a single candidate"
                raise InputError(
                    f"{self.setting.name}: memory is out with {many}: give a smaller train_batch or length, or fewer "
                    "processes"
                )
            else:
                self._size = len(chunk) // 2
                self.notes[f"{self.setting.name}: stacks of {self._size}, for memory was out with more"] = None

    def _find_size(self) -> int:
        """How many are trained as one: 1 where they can't be, or memory holds no more."""
        if self.how.stack == 1:
            return 1
        few = [self._cut(one).model for one in self.candidates[:2]]
        try:
            reason = retraining.why_alone(few, self.task, self.how.training)
        except RuntimeError as error:
            if not devices.is_out_of_memory(error):
                raise
            reason = "memory is out with two"
        if not reason:
            batches = _take(self.task, self.how.training.whole("batch"), self.how.seed)
            fit = retraining.count_fitting(few[0], self.task, batches)
            size = self.how.stack if fit is None else min(self.how.stack, fit)
            if size > 1:
                return size
            reason = "memory holds no more"
        self.notes[f"{self.setting.name}: candidates were trained one by one, for {reason}"] = None
        return 1

    def _try(self, chunk: Sequence[Candidate], what: str) -> bool:
        """Do it for some together and write them; where one's loss is not finite, for each. Whether memory did."""
        cuts = [self._cut(one) for one in chunk]
        try:
            found = self._measure(cuts) if what == "cut" else self._retrain(cuts, what)
            for one, figures in zip(chunk, found, strict=True):
                self._write(one, what, figures)
            return True
        except NumericalError as error:
            if len(chunk) == 1:
                self._write(chunk[0], what, str(error))
                return True
        except RuntimeError as error:
            if not devices.is_out_of_memory(error):
                raise
            return False
        del cuts
        return all(self._try([one], what) for one in chunk)

    def _write(self, one: Candidate, what: str, found: Figures | str) -> None:
        row: Row = {"id": one.id, "what": what}
        if not isinstance(found, str):
            wrong = [name for name, value in found.items() if not math.isfinite(value)]
            found = f"{wrong[0]} is {found[wrong[0]]}" if wrong else found
        row["failed" if isinstance(found, str) else "figures"] = found
        with (self.folder / "results.jsonl").open("a", encoding="utf-8") as out:
            out.write(f"{json.dumps(row)}\n")

    def _cut(self, one: Candidate) -> Classifier:
        return self.subject.cut(one.select(self.setting))[0]

    def _measure(self, cuts: Sequence[Classifier]) -> list[Figures]:
        models = [cut.model for cut in cuts]
        looks = {"norms", "trace"} & set(self.how.proxies)
        batches = _take(self.task, self.how.training.whole("batch"), self.how.seed) if looks else []
        found = retraining.measure_proxies(
            models,
            self.task,
            self.how.proxies,
            dense=self.subject.model,
            together=len(models) > 1,
            calibration=batches,
        )
        errors = [cut.error for cut in cuts if isinstance(cut, Traced)]
        return [
            {**one, **({"proved": error} if errors else {})}
            for one, error in zip(found, errors or [0.0] * len(found), strict=True)
        ]

    def _retrain(self, cuts: Sequence[Classifier], what: str) -> Iterator[Figures | str]:
        """A repeat has a seed of its own, which all candidates share; the short retraining has another."""
        training, last = (self.how.short, 1) if what == "short" else (self.how.training, self.how.last)
        assert training is not None
        seed = 1000 * (self.how.seed + 1) + (0 if what == "short" else int(what.split()[1]))
        if self._size == 1 and self.how.processes > 1:
            each = retraining.retrain_apart(cuts, self.task, training, seed=seed, last=last, many=self.how.processes)
            for one in each:
                yield one if isinstance(one, str) else asdict(one)
            return
        models, together = [cut.model for cut in cuts], len(cuts) > 1
        for found in retraining.retrain(models, self.task, training, seed=seed, last=last, together=together):
            yield asdict(found)
