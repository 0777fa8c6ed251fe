"""Which way to turn the training of a network that will be pruned: the three regimes of pruning, mapped and used.

Zhou et al., "A Three-regime Model of Network Pruning", ICML 2023 (arXiv 2305.18383).
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from secateur._utils import plugins, rundir, storage
from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.data.batches import count_steps
from secateur.data.examples import Augment, Examples
from secateur.data.texts import Corpus
from secateur.errors import InputError
from secateur.measure.connectivity import Regime
from secateur.methods.arms import split_judged
from secateur.methods.published_rules import duplicate
from secateur.methods.retraining import Classifier
from secateur.methods.sibling_texts import TextPart
from secateur.methods.siblings import (
    Allocation,
    Layers,
    Learned,
    State,
    close_smallest,
    compare,
    count_kept,
    feed,
    learn,
    load_state,
    prunable,
    share_wrong,
)
from secateur.methods.temperatures import walk
from secateur.recover.sparsity import masks
from secateur.recover.training import initialise, loop
from secateur.runs import keywords
from secateur.runs.backends import of_source
from secateur.runs.candidates import Part, read_judged
from secateur.runs.regime_map import MAGNITUDE, RANDOM, Key, RegimeMap, Siblings
from secateur.runs.regime_settings import LAST, Settings, Temperature
from secateur.subjects.network.traced import Traced
from secateur.subjects.transformer.files import INDEX
from secateur.vocabulary import Training

if TYPE_CHECKING:
    from secateur.subjects import Transformer

__all__ = ["STUDY", "Trial", "plan", "regimes"]

STUDY = {
    "title": "which way to turn training before pruning: regimes of temperature and density, told by siblings",
    "recipe": "",
    "sets": "",
    "grid": "temperatures checkpoints densities seeds control follow start barrier similar",
    "backend": "any",
}

ALIKE = 0.95
"""CKA that parts II-A from II-B where there is no map to take the midpoint of: published maps go from 0.88 to 0.99."""
SEEN = "checkpoints that have seen the examples which are judged on flatter their own accuracy, not the siblings' order"
_HELD = 0.1
"""Share of texts that is held out."""


class Trial(NamedTuple):
    """One cell under one seed: its siblings are trained and compared."""

    seed: int
    cell: Key

    def __str__(self) -> str:
        masked = "" if self.cell.masks == MAGNITUDE else " of random masks"
        return f"seed {self.seed}, {self.cell.temperature}, {100 * self.cell.density:.3g}% of the weights{masked}"


def regimes(
    subject: Classifier,
    data: Part,
    folder: str | Path,
    progress: Callable[[Sequence[Trial]], Iterable[Trial]] = iter,
    *,
    temperature: Temperature = "epochs",
    temperatures: Sequence[float] = (),
    checkpoints: str = "",
    densities: Sequence[Annotated[float, Gt(0), Lt(1)]] = (0.05, 0.06, 0.07, 0.08, 0.1, 0.14, 0.2, 0.4, 0.8),
    allocation: Allocation = "uniform",
    layers: Layers = "convolutions",
    siblings: Annotated[int, Ge(2)] = 3,
    seeds: Sequence[int] = (0, 1, 2),
    judged: str | Part = "",
    augment: str = "",
    tokens: Annotated[int, Ge(2)] = 128,
    retrain_epochs: float | None = None,
    retrain_lr: float | None = None,
    points: Annotated[int, Ge(3)] = 11,
    images: Annotated[int, Ge(0)] = 0,
    control: bool = False,
    follow: bool = False,
    start: float | None = None,
    barrier: Annotated[float, Gt(0)] = 0.05,
    similar: Annotated[float, Ge(0), Le(1)] = 0.0,
    training: Training = Training(epochs=160, batch=64, lr=0.1, weight_decay=1e-4, optimizer="sgd"),
) -> RegimeMap:
    """Prune dense networks of several temperatures to several densities, retrain siblings, and compare these.

    For each cell: one-shot magnitude masks, `siblings` retrainings from that start under different orders of batches,
    errors along the line between each two (batch norms estimated anew at every point), and the CKA of their outputs.
    Cells fall into three regimes, which tell how to train the dense network, which of several to prune, and which rho.
    The same call again goes on where it stopped; a larger grid in the same folder trains what is new.

    Departures from the paper: SGD is Nesterov's; the CKA is of all outputs at once, not of batches; where the path is
    as far above its ends as below, mc is 0, so that it is symmetric; the CKA that parts II-A from II-B is the midpoint
    of the connected cells (the paper reads it off its maps); "global" leaves every layer its largest weight; learning
    rate and weight decay as temperatures are conjectures; models of texts are compared by states behind the last block;
    models of several widths, pruned to one size, are not compared: all have one architecture. Siblings have the seeds
    1, 2, ... under each dense seed.

    Args:
        subject: the architecture; its weights don't matter. A network, a language model, or a classifier of texts.
        data: examples with classes, or texts.
        folder: of the run directories.
        progress: wraps the trials, such as rich.progress.track.
        temperature: what is turned in the dense training. Fewer "epochs" of one run and a smaller "batch" are warmer; a
            larger "rho" (sharpness-aware minimisation), "lr" and "weight_decay" are warmer.
        temperatures: its values; eighths of the epochs, or shares of what the training has, unless given.
        checkpoints: a folder of state dicts, NAME.safetensors or NAME/model.safetensors, also in several files with
            their index, in place of dense trainings; the last number in a name is its temperature. Without numbers the
            study chooses one and gives no direction.
        densities: shares of weights that stay.
        allocation: "uniform", the same density in every layer, or "global", one threshold.
        layers: "convolutions", or "matrices": linears too, but for the last layer.
        siblings: retrainings of each cell; their pairs are compared.
        seeds: of dense trainings and of what is held out. Two or more for intervals.
        judged: examples to judge on; a tenth of the data, another for each seed, is held out unless given.
        augment: file.py:function, (inputs, generator) -> inputs, for all trainings; not for what is measured.
        tokens: of a text, at most; a language model reads blocks of so many.
        retrain_epochs: of siblings; as many as of the dense training unless given.
        retrain_lr: of siblings; the dense training's first rate unless given.
        points: of the path between two siblings, its ends included.
        images: training examples, drawn at random, that path and CKA are measured on; 0 for all.
        control: do all of it with as many weights at random places, too.
        follow: train only the cells that the advice leads through, one map column at a time.
        start: the temperature where the advice begins; the coolest, or rho 0.05, unless given.
        barrier: siblings whose mc is below minus this are not connected.
        similar: CKA from which on connected siblings are alike; halfway on the map (0.95 with `follow`) if 0.
        epochs: of the dense training, decays at 50 % and 75 %.
        batch: examples per step, and at most in any other pass.
        lr: first learning rate.
        weight_decay: of matrices and kernels.
        optimizer: "sgd"; for temperatures other than epochs also another.
    """
    settings = Settings(
        temperature,
        temperatures,
        checkpoints,
        densities,
        allocation,
        layers,
        siblings,
        seeds,
        judged,
        augment,
        tokens,
        retrain_epochs,
        retrain_lr,
        points,
        images,
        control,
        follow,
        start,
        barrier,
        similar or (ALIKE if follow else 0.0),
        training,
    )
    work = _Work(subject, data, Path(folder), settings)
    found: dict[Key, list[Siblings]] = {}

    def map_of(cells: Mapping[Key, Sequence[Siblings]]) -> RegimeMap:
        return RegimeMap(
            settings.axis.what,
            tuple(settings.sources),
            settings.shares,
            tuple(dict.fromkeys(seeds)),
            {key: tuple(cell) for key, cell in cells.items()},
            work.dense_errors(),
            settings.place,
            barrier,
            settings.similar,
            settings.ordered,
            settings.beyond,
            settings.early(),
            tuple(dict.fromkeys(work.notes)),
        )

    def measure(keys: Sequence[Key]) -> None:
        for trial in progress([Trial(seed, key) for seed in dict.fromkeys(seeds) for key in keys]):
            found.setdefault(trial.cell, []).append(work.siblings(trial))

    if not follow:
        measure(_cells(settings))
        answer = map_of(found)
        return answer if answer.ordered else replace(answer, start=answer.most_accurate)
    for column, density in enumerate(settings.shares):

        def look(place: int, column: int = column, density: float = density) -> Regime:
            measure([Key(MAGNITUDE, list(settings.sources)[place], density)])
            regime = map_of(found).regime(place, column)
            assert regime is not None
            return regime

        walk(settings.place, len(settings.sources), look)
    return map_of(found)


def _hash_state(file: Path) -> str:
    """sha256 of a checkpoint: of its file, or of all tensors in those of an index."""
    if file.name != INDEX:
        return storage.digest(file)
    from secateur.subjects.transformer.origin import hash_folder  # which loads transformers

    return hash_folder(file.parent)


def _cells(settings: Settings) -> list[Key]:
    kinds = (MAGNITUDE, RANDOM) if settings.control else (MAGNITUDE,)
    return [Key(*one) for one in itertools.product(kinds, settings.sources, settings.shares)]


def plan(subject: Classifier, data: Part, **options: Any) -> dict[str, int]:
    """What `regimes` will train, by kind; whatever it would refuse is refused here, before anything is trained."""
    settings = Settings(**options)
    work = _Work(subject, data, Path(), settings)
    work.check()
    many, cells = len(set(settings.seeds)), len(settings.sources) * len(settings.shares)
    runs = 1 if settings.temperature == "epochs" else len(settings.sources)
    pairs = settings.siblings * (settings.siblings - 1) // 2
    pairs *= 1 + settings.control
    counted = {
        "dense trainings": 0 if settings.files else many * runs,
        "retrainings": many * cells * settings.siblings * (1 + settings.control),
        "points on paths": many * cells * pairs * settings.points,
    }
    if settings.follow:
        counted = {f"{name} at most" if name != "dense trainings" else name: n for name, n in counted.items()}
    return {name: count for name, count in counted.items() if count}


# ------------------------------------------------------------------------------------------------------ the work


class _Work:
    """Trainings and measurements, each kept in the run directory of its seed."""

    def __init__(self, subject: Classifier, data: Part, folder: Path, settings: Settings) -> None:
        self.subject, self.folder, self.settings = subject, folder, settings
        self.backend = of_source(subject)
        self.batch = settings.retraining.whole("batch")
        self.data = self._limit(data)
        apart = read_judged(settings.judged, data, subject)
        self.apart = None if apart is None else self._limit(apart)
        if settings.augment and not isinstance(data, Examples):
            raise InputError("augment changes inputs of networks, and these are texts: leave it out")
        self.moved: Augment | None = plugins.function(settings.augment) if settings.augment else None
        self.notes = [SEEN] if settings.files else []
        self._dense: dict[str, dict[int, float]] = {}

    def _limit(self, part: Part) -> Part:
        """The same in passes of no more than a batch of the retraining; those of texts are short in any case."""
        return examples.limit(part, self.batch) if isinstance(part, Examples) else part

    def check(self) -> None:
        """Refuse parts without classes, too few texts, densities that leave a layer empty, and other checkpoints."""
        settings = self.settings
        trainings = [settings.retraining]
        if not settings.files:
            trainings += [settings.dense_training(value) for value in settings.sources.values()]
        batch = max(how.whole("batch") for how in trainings)
        for seed in dict.fromkeys(settings.seeds):
            train, held = self.split(seed)
            for part in (train, held):
                if isinstance(part, Examples):
                    self.backend.fit_data(part, self.subject)
            if isinstance(train, TextPart):  # which is refused as it is read
                feed(train, batch, seed)
                feed(held, 1, seed)
                feed(self.sample(train, seed), 1, seed)
        sizes = {name: one.numel() for name, one in prunable(self.subject.model, settings.layers).items()}
        for density in settings.shares:
            count_kept(sizes, density, settings.allocation)
        state = self.subject.model.state_dict()
        for file in settings.files.values():
            load_state(file, state)
        if settings.temperature == "epochs" and not settings.files and settings.how.optimizer != "sgd":
            raise InputError(
                f"optimizer={settings.how.optimizer}: checkpoints of one run are taken between steps of sgd; leave it "
                "out, or give checkpoints"
            )

    def split(self, seed: int) -> tuple[Learned, Learned]:
        """(what is learned from, what is judged on)."""
        if isinstance(self.data, Examples):
            return split_judged(self.data, cast("Examples | None", self.apart), seed)
        train, held = self.data.split(_HELD, seed) if self.apart is None else (self.data, cast(Corpus, self.apart))
        subject, length = cast("Transformer", self.subject), self.settings.tokens
        return TextPart(train, subject, length), TextPart(held, subject, length)

    def sample(self, train: Learned, seed: int) -> Learned:
        """The training examples that siblings are compared on, mixed, since data may stand class by class."""
        order = np.random.default_rng([seed, len(train)]).permutation(len(train))
        return train.take(order[: self.settings.images or len(train)])

    def dense_errors(self) -> dict[str, tuple[float, ...]]:
        """Temperature -> error of the dense network under each seed, of the temperatures that were looked at."""
        return {name: tuple(by_seed.values()) for name, by_seed in self._dense.items()}

    def siblings(self, trial: Trial) -> Siblings:
        """The figures of one cell under one seed: read, or made and kept."""
        settings, (masked, temperature, density) = self.settings, trial.cell
        fixed = keywords.flat(
            regimes,
            {
                "temperature": settings.temperature,
                "allocation": settings.allocation,
                "layers": settings.layers,
                "siblings": settings.siblings,
                "augment": settings.augment,
                "retrain_epochs": settings.retrain_epochs,
                "retrain_lr": settings.retrain_lr,
                "points": settings.points,
                "images": settings.images,
                "training": settings.training,
            },
        )
        about: dict[str, object] = {
            "model": self.backend.digest(self.subject),
            "data": self.data.digest,
            "judged": self.apart.digest if self.apart else "",
        }
        if not isinstance(self.data, Examples):
            about["tokens"] = settings.tokens
        file = settings.files.get(temperature)
        name = temperature if file is None else f"{temperature}-{_hash_state(file)[:12]}"
        train, held = self.split(trial.seed)
        with Run.open(self.folder / f"seed-{trial.seed}", {**about, "seed": trial.seed, **fixed}) as run:
            if trial.seed not in self._dense.setdefault(temperature, {}):

                def judge() -> float:
                    model = self._restore(self._dense_state(run, trial.seed, temperature, train)).model
                    with loop.place_for_training(model):
                        return share_wrong(model, held, self.batch)

                self._dense[temperature][trial.seed] = run.json(f"dense-error-{name}", judge)

            def make() -> dict[str, object]:
                return self._retrain(run, trial, train, held, f"{masked}-{name}-{density}")

            row = run.json(f"siblings-{masked}-{name}-{density}", make)
        paths = tuple(tuple(path) for path in row["paths"])
        return Siblings(trial.seed, row["density"], tuple(row["errors"]), paths, tuple(row["similarities"]))

    def _restore(self, state: State) -> Traced | Transformer:
        copied = (
            duplicate(self.subject) if isinstance(self.subject, Traced) else cast("Transformer", self.subject).copy()
        )
        copied.model.load_state_dict(state)
        return copied

    def _dense_state(self, run: Run, seed: int, temperature: str, train: Learned) -> State:
        """The dense network of a temperature: the user's, or one that is trained here once."""
        settings = self.settings
        if temperature in settings.files:
            return load_state(settings.files[temperature], self.subject.model.state_dict())
        path = run.path(f"dense-{temperature}.safetensors")
        while not path.exists():  # a run that was cut short by a kill may have passed a temperature that is new
            self._train_dense(run, seed, temperature, train)
        return rundir.read_tensors(path)

    def _train_dense(self, run: Run, seed: int, temperature: str, train: Learned) -> None:
        settings = self.settings
        how = settings.dense_training(settings.sources[temperature])
        model, notes = initialise.fresh(self.subject.model, seed=seed)
        self.notes += notes
        batches = feed(train, how.whole("batch"), seed)
        last, at = count_steps(batches, how.number("epochs"), how.accumulate or 1), dict[int, list[Path]]()
        for name, value in settings.sources.items():
            if settings.temperature == "epochs" or name == temperature:
                step = count_steps(batches, value, how.accumulate or 1) if settings.temperature == "epochs" else last
                at.setdefault(step, []).append(run.path(f"dense-{name}.safetensors"))

        def keep(optimizer: torch.optim.Optimizer) -> None:
            done = int(optimizer.state[optimizer.param_groups[0]["params"][0]]["done"])
            for path in at.get(done, ()):
                storage.write(path, model.state_dict())

        place = run.folder(f"dense-{settings.temperature if settings.temperature == 'epochs' else temperature}")
        between, fresh = keep if settings.temperature == "epochs" else None, not any(place.iterdir())
        learn(model, train, how, seed=seed, augment=self.moved, folder=place, step_end=between)
        for step, paths in at.items():
            for path in paths:
                # Steps that float16 was too narrow for are not done: what is due near the end is due at the end.
                if not path.exists() and (fresh or step == last):
                    storage.write(path, model.state_dict())
        shutil.rmtree(place, ignore_errors=True)

    def _retrain(self, run: Run, trial: Trial, train: Learned, held: Learned, name: str) -> dict[str, object]:
        """Mask the dense network, retrain its siblings, and compare each two."""
        settings = self.settings
        dense = self._restore(self._dense_state(run, trial.seed, trial.cell.temperature, train))
        closed = close_smallest(prunable(dense.model, settings.layers), trial.cell.density, settings.allocation)
        if trial.cell.masks == RANDOM:
            closed = masks.shuffle(closed, seed=trial.seed)
        place, states, errors = run.folder(f"train-{name}"), list[dict[str, Tensor]](), list[float]()
        for sibling in range(1, settings.siblings + 1):
            model = self._restore(dense.model.state_dict()).model
            recovery = learn(
                model,
                train,
                settings.retraining,
                seed=sibling,
                augment=self.moved,
                closed=closed,
                judged=held,
                folder=place / str(sibling),
            )
            assert recovery is not None
            errors.append(float(np.mean([error for _, error in recovery.settings["evaluations"][-LAST:]])))
            states.append({key: tensor.detach().clone() for key, tensor in model.state_dict().items()})
        few = self.sample(train, trial.seed)
        pairs = itertools.combinations(states, 2)
        with loop.place_for_training(dense.model):
            found = [compare(dense.model, *pair, few, points=settings.points, batch=self.batch) for pair in pairs]
        shutil.rmtree(place, ignore_errors=True)  # their answers are known
        return {
            "density": masks.share(closed),
            "errors": errors,
            "paths": [pair.errors for pair in found],
            "similarities": [pair.similarity for pair in found],
        }
