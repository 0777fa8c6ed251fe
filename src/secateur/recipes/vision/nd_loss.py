"""ND: a student's features drawn to the mean of their class in the teacher, and made as long as the teacher's are.

Wang et al., Improving Knowledge Distillation via Regularizing Feature Norm and Direction, ECCV 2024 (arXiv 2305.17007;
there "Feature Direction and Norm").
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from secateur._utils import plugins
from secateur._utils.modes import evaluating
from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.data.examples import Examples
from secateur.errors import DataError, InfeasibleError, InputError
from secateur.measure import loyalty, prototypes, quality
from secateur.recover.distillation import features, losses, maps, relations, review, taps, teachers
from secateur.recover.distillation.centres import ClassMeans, collect
from secateur.recover.sparsity import slimming
from secateur.recover.training import compose, detecting, loop, objectives
from secateur.recover.training.mixing import Mix
from secateur.score import magnitude
from secateur.select import ranking
from secateur.subjects.network import detectors
from secateur.subjects.network.detectors import TwoStage
from secateur.subjects.network.traced import CutError, Traced, open_traced
from secateur.vocabulary import Budget, Cut, Result

CARD = {
    "title": "Improving Knowledge Distillation via Regularizing Feature Norm and Direction",
    "paper": "https://arxiv.org/abs/2305.17007",
    "cuts": "channels of a classifier or two-stage detector, the same share of every layer, by magnitude; or nothing",
    "recovers": "distillation of logits, and of the norm and direction of the feature before the classifier",
    "extra": "",
    "family": "vision",
}

Host = Literal["kd", "dkd", "dist", "review", "none"]
Variant = Literal["nd", "direction", "norm", "features"]


def nd_loss(
    subject: Traced,
    data: Examples,
    budgets: Sequence[Budget],
    run: Run,
    *,
    student: str = "",
    host: Host = "kd",
    variant: Variant = "nd",
    task: float = 1.0,
    weight: float = 1.0,
    nd: float = 2.0,
    temperature: float | None = None,
    target: float = 1.0,
    other: float = 8.0,
    step: float = 1.0,
    warmup: float = 20.0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    feature: str = "",
    stages: Sequence[str] = (),
    means: str = "",
    dropout: float = 0.5,
    keep_width: bool = True,
    multiple: int = 1,
    batch: int = 128,
    epochs: float = 240.0,
    lr: float = 0.05,
    optimizer: Literal["sgd", "adamw"] = "sgd",
    weight_decay: float = 5e-4,
    seed: int = 0,
    training: str | Sequence[str] = "",
    dry_run: bool = False,
) -> Iterator[Result]:
    """Cut a classifier's channels or a detector's, or take a given student; distil it with norm and direction.

    1. Class means: ``c_k`` is the mean over the training examples of class k of the teacher's feature f_t, what its
       last linear layer reads, in evaluation mode and in order. ``e_k = c_k / ||c_k||``.
    2. The student: the teacher with the same share of every layer's channels cut, smallest norm first.
    3. Projector ``g(f_s) = Linear(Dropout(BatchNorm(f_s)))`` where its feature has another width, trained along and
       left out of the result; logits come from f_s itself.
    4. ``L_nd = mean_i 1 - <g(f_s,i), e_{y_i}> / max(||g(f_s,i)||, ||f_t,i||)``: 0 for a feature that points where its
       class mean does and is as long as the teacher's.
    5. ``L = task CE + weight min(1, epoch / warmup) L_host + nd L_nd``: the host warms up, ND is there from step 0.
       Hosts: kd ``T^2 KL``; dkd, target and other classes apart; dist, correlations of classes and of examples;
       review, ReviewKD's fused maps of all stages, by modules that are trained along and left out of the result.

    A student of two heads, whose answer is their mean (DeiT with its distillation token), learns the labels by its
    class head and from the host by its distillation head; its feature is the mean of what both read.

    With boxes, for detectors of two stages: f is what the box head gives of a region, classes are those of the regions,
    the background among them, and means those of the regions that the teacher samples. The student proposes and
    samples, the teacher judges the same regions of its own maps, and the detector's own loss takes the place of CE.

    `work/` of the run holds the class means and, per budget, norm, cosine and nearest-mean accuracy of the features.

    Args:
        subject: a trained classifier or detector (torchvision's Faster R-CNN and its kin), the teacher; it stays.
        data: inputs with classes, or with boxes.
        budgets: one student for each; what a given student has to keep, too.
        run: where class means, figures and checkpoints go.
        student: "file.py:function" of a student of the same classes, in place of a cut.
        host: what ND is added to; none leaves labels and ND.
        variant: nd; or in its place direction, 1 - cos(g, e), norm, which asks g to be `step` longer, or features,
            ||g - f_t||^2.
        task: weight of the labels, or of the detector's own loss.
        weight: of the host.
        nd: weight of ND or its variant; 0 is the host alone, bit for bit.
        temperature: T of the host: 4 unless given, as on CIFAR, and of detectors 1, as on COCO.
        target: weight of the label's share in dkd.
        other: weight of the other classes' shares in dkd.
        step: of the norm variant.
        warmup: epochs, counted from 0, over which the host's weight grows.
        mixup: alpha of Beta(alpha, alpha), by which inputs, labels and centres of pairs are mixed; 0 mixes none.
        cutmix: the same for CutMix, a box of another image in each; with `mixup` too, either by a coin for each batch.
        feature: the module that gives the feature, "NAME@input" for what it reads; the classifier's input unless given.
        stages: for host=review, the modules whose maps are compared, those with large maps first; the last of each
            size unless given.
        means: a file of class means of this teacher, from another run's `work/`.
        dropout: of the projector.
        keep_width: leave the width of the feature uncut, so that no projector is needed.
        multiple: kept channels are multiples of this.
        batch: examples per step.
        epochs: of training.
        lr: peak learning rate, decayed by a cosine.
        optimizer: sgd (Nesterov, momentum 0.9), or adamw, which warms up over a twentieth, as for DeiT.
        weight_decay: of matrices.
        seed: of batches and training.
        training: more settings of the training loop, such as accumulate=2,precision=bf16.
        dry_run: stop after the cut; nothing is trained.

    Departures: the paper trains students from scratch, 240 epochs at 0.1 and lr / 10 after 150, 180 and 210; a cut one
    starts from the teacher's weights, under a cosine. The norm-only form is from memory. Centres are not rounded to
    four decimals, and the projector is attached by comparing widths. ReviewKD compares maps alone, not the pooled
    feature as well, and of a detector the maps that its regions are cut out of. A detector's means are of one pass over
    the data, not of 30,000 iterations. In evidence are the training examples.
    """
    mix = Mix(mixup, cutmix)
    check(data, host, variant, mix, warmup, dropout, stages, feature, temperature, optimizer)
    boxed, further = bool(data.targets), loop.options(training)
    subject = detectors.opened(subject) if boxed else subject
    temperature = temperature if temperature is not None else 1.0 if boxed else 4.0
    feed = examples.batches(data, batch=batch, seed=seed)
    accumulate = further.get("accumulate", 1)
    steps = detecting.steps(len(feed) / accumulate, epochs)
    tap: Callable[[Traced], Any] = partial(Tap.of, feature=feature, stages=stages, staged=host == "review")
    tap = partial(Regions.of, data=data) if boxed else tap
    teacher = tap(subject)
    centres = table(teacher, data, batch, run, means, seed)
    for budget in budgets:
        if student:
            small, cut, predicted = given(subject, student, budget)
        else:
            small, cut, predicted = narrowed(subject, budget, teacher.readers if keep_width else (), multiple)
        pupil = tap(small)
        if pupil.classes != teacher.classes:
            raise InputError(
                f"the student tells {pupil.classes} classes, its teacher {teacher.classes}: as many, please"
            )
        if not boxed and len(pupil.readers) > 1 and (host == "none" or not weight):
            raise InputError(
                f"host={host}, weight={weight:g}: the student answers with the mean of {' and '.join(pupil.readers)}, "
                "and without a host nothing trains the second: give kd, dist or another host"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            projector = taps.adapter(pupil.width, teacher.width, "norm", dropout=dropout)
            again = review.Review(pupil.shapes, teacher.shapes) if host == "review" else None
        along = [one for one, used in ((projector, nd), (again, host == "review")) if used and one is not None]
        recovery = None
        if steps and not dry_run:
            share = warmup / epochs
            terms = [
                compose.Term("labels", labelled, task),
                compose.Term("host", hosted(host, temperature, target, other, again), weight if host != "none" else 0.0,
                             share if share < 1 else share * steps),
                compose.Term(variant, drawn(variant, centres, projector, step), nd),
            ]  # fmt: skip
            objective = compose.compose(
                [term for term in terms if term.weight],
                pupil.beside(teacher, mix),
                steps=steps,
                stairs=epochs,
            )
            recovery = loop.train(
                small.model, slimming.Numbered(feed, steps * accumulate * processes()), objective, steps=steps, lr=lr,
                optimizer=optimizer, warmup=0.05 if optimizer == "adamw" else 0.0, weight_decay=weight_decay,
                seed=seed, count=examples.count, extra=along, frozen=[subject.model],
                checkpoint=run.folder(f"train-{budget}"), title="distillation",
                **({"precision": "fp32", "clip": None} | further),
            )  # fmt: skip
        figures = partial(diagnosed, pupil, teacher, projector, centres, data, batch)
        notes = told(run.json(f"features-{budget}", figures), "regions" if boxed else "examples")
        yield Result(str(budget), small, cut, predicted, recovery, notes)


def check(
    data: Examples, host: str, variant: str, mix: Mix, warmup: float, dropout: float, stages: Sequence[str],
    feature: str, temperature: float | None, optimizer: str,
) -> None:  # fmt: skip
    """Refuse data without classes, and options that contradict one another."""
    if data.labels is None and not data.targets:
        raise DataError(f"{data.name} has no classes: class means and the directions to them need labels")
    mixed = {name: f"{alpha:g}" for name, alpha in asdict(mix).items() if alpha}
    named = {"feature": feature, "stages": ",".join(stages), **mixed}
    for name, value in named.items() if data.targets else ():
        if value:
            raise InputError(f"{name}={value}: that is for classifiers, and {data.name} has boxes; leave it out")
    if host not in ("kd", "dkd", "dist", "review", "none"):
        raise InputError(f"host={host!r}: give kd, dkd, dist, review or none")
    if stages and host != "review":
        raise InputError(f"stages={','.join(stages)}: they are for host=review")
    if variant not in ("nd", "direction", "norm", "features"):
        raise InputError(f"variant={variant!r}: give nd, direction, norm or features")
    if mixed and host == "dkd":
        name, alpha = next(iter(mixed.items()))
        raise InputError(f"{name}={alpha}: dkd parts off one class of each example, and takes 0 only")
    if mix.cutmix and data.inputs.dim() != 4:
        raise InputError(
            f"cutmix={mix.cutmix:g} is for images [N, C, H, W], and inputs of {data.name} are {list(data.inputs.shape)}"
        )
    if temperature is not None and not temperature > 0:
        raise InputError(f"temperature={temperature:g}: give a number above 0")
    if optimizer not in ("sgd", "adamw"):
        raise InputError(f"optimizer={optimizer!r}: give sgd or adamw")
    if warmup < 0:
        raise InputError(f"warmup={warmup:g}: give epochs, at least 0")
    if not 0 <= dropout < 1:
        raise InputError(f"dropout={dropout:g}: give a share from 0 to below 1")


def processes() -> int:
    """How many processes share the training's micro-batches."""
    return int(os.environ.get("WORLD_SIZE", "1"))


# ------------------------------------------------------------------------------------------- features and their means


UNMIXED = Mix()


class Seen(NamedTuple):
    """Of one pass: feature [B, D], logits [B, K], maps [B, C, H, W] of each stage, logits of each of two heads."""

    feature: Tensor
    logits: Tensor
    maps: list[Tensor]
    heads: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Tap:
    """A network with the place of its feature, and those of its maps where they are asked for, with their shapes.

    Of two heads, of classes and of distillation, the feature is the mean of what they read, or what was asked for.
    """

    subject: Traced
    names: Sequence[str]
    readers: Sequence[str]
    """The linear layers that give the logits; none where no such layers do."""
    width: int
    classes: int
    stages: Sequence[str] = ()
    shapes: Sequence[tuple[int, int, int]] = ()

    @classmethod
    def of(cls, subject: Traced, feature: str = "", stages: Sequence[str] = (), staged: bool = False) -> Tap:
        """At the module that fits `feature`, or at what the classifier reads. Raises `InputError` where neither is.

        staged: maps are asked for, at `stages`, or at the last of each size.
        """
        heads = classifiers(subject)
        if not feature and not heads:
            raise InputError(
                f"no linear layer of this {type(subject.model).__name__} gives its logits: name the module that gives "
                "the feature, feature=NAME, or feature=NAME@input for what it reads"
            )
        places = [taps.one(subject.model, feature)] if feature else [f"{head}@input" for head in heads]
        args, kwargs = subject.inputs.fresh()
        example = next(one for one in (*args, *kwargs.values()) if isinstance(one, Tensor))
        found = taps.seen(subject.model, places, example, pooled, ask=subject.inputs.ask)
        if found[0].shape != found[-1].shape:
            wide = " and ".join(str(one.shape[1]) for one in found)
            raise InputError(f"{' and '.join(heads)} read features of widths {wide}: name one, feature={places[0]}")
        names, shapes = [taps.one(subject.model, stage) for stage in stages], list[tuple[int, int, int]]()
        if staged and names:
            seen = taps.seen(subject.model, names, example, maps.flat, ask=subject.inputs.ask)
            shapes = [(one.shape[1], one.shape[2], one.shape[3]) for one in seen]
        elif staged:
            names, shapes = review.stages(subject.model, lambda model: subject.inputs.ask(model, example))
        classes = objectives.logits(subject.forward()).shape[1]
        return cls(subject, places, heads, found[0].shape[1], classes, names, shapes)

    @property
    def name(self) -> str:
        """The place of the feature."""
        return " and ".join(self.names)

    def __call__(self, inputs: Tensor) -> Seen:
        """What one pass gives, in the network's own mode."""
        model, heads = self.subject.model, self.readers if len(self.readers) > 1 else ()
        with (
            taps.tapped(model, self.names, pooled) as found,
            taps.tapped(model, heads) as said,
            taps.tapped(model, self.stages, maps.flat) as staged,
        ):
            logits = objectives.logits(self.subject.inputs.ask(model, inputs))
        # In training some networks answer with both heads apart, for their mean.
        return Seen(mean(found), mean(said) if heads else logits, list(staged), tuple(said))

    def rows(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """(features [B, D], classes [B]), for the class means."""
        return self(batch["inputs"]).feature, batch["labels"]

    def classes_of(self, data: Examples) -> Tensor:
        """The classes that need a mean."""
        assert data.labels is not None
        return data.labels

    def beside(self, teacher: Tap, mix: Mix = UNMIXED) -> Look:
        """Both passes over a batch, mixed with itself where `mix` says so."""

        def look(batch: Mapping[str, Any]) -> View:
            inputs, labels = batch["inputs"], batch["labels"]
            others, share = labels, 1.0
            if mix:
                inputs, order, share = mix(inputs)
                others = labels[order]
            with torch.no_grad():
                theirs = teacher(inputs)
            ours = self(inputs)
            return View(
                ours.feature, ours.logits, ours.maps, theirs.feature, theirs.logits, theirs.maps, labels, others, share,
                heads=ours.heads,
            )  # fmt: skip

        return look


@dataclass(frozen=True, eq=False)
class Regions:
    """A detector of two stages; what stands for its inputs are the regions that the student samples of them."""

    subject: Traced
    model: TwoStage
    width: int
    classes: int
    shapes: Sequence[tuple[int, int, int]]
    name: str = "regions"

    @classmethod
    def of(cls, subject: Traced, data: Examples) -> Regions:
        """Raises `UnsupportedError` for a detector that has no second stage."""
        model, image = detectors.two_stage(subject.model), data.inputs[:1]
        with torch.no_grad(), evaluating(subject.model):
            found = model.judged(image, [detectors.regions(image.shape[2], image.shape[3]).to(image)])
        shapes = [(one.shape[1], one.shape[2], one.shape[3]) for one in found.maps]
        return cls(subject, model, found.features.shape[1], found.logits.shape[1], shapes)

    @property
    def readers(self) -> tuple[str]:
        """The linear layer that gives the classes of regions."""
        return (self.model.reader,)

    def rows(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """(features [N, D], classes [N]) of the regions that the detector samples, for the class means."""
        found = self.model.sampled(batch)
        assert found.labels is not None
        return found.features, found.labels

    def classes_of(self, data: Examples) -> Tensor:
        """The classes that need a mean: those of the boxes, and the background."""
        found = torch.cat([one["labels"] for one in data.targets]) + self.model.first
        return torch.cat([found, found.new_zeros(1)])

    def beside(self, teacher: Regions, mix: Mix = UNMIXED) -> Look:
        """The student proposes, samples and learns; the teacher judges the same regions of its own maps."""

        def look(batch: Mapping[str, Any]) -> View:
            ours = self.model.sampled(batch)
            with torch.no_grad():
                theirs = teacher.model.judged(batch["inputs"], ours.boxes)
            assert ours.labels is not None
            return View(
                ours.features, ours.logits, ours.maps, theirs.features, theirs.logits, theirs.maps, ours.labels,
                ours.labels, 1.0, ours.loss,
            )  # fmt: skip

        return look


def pooled(output: Any) -> list[Tensor]:
    """[B, D] in what a module gave: rows as they are, maps [B, D, H, W] as their mean over places."""
    return [one.mean((2, 3)) if one.dim() == 4 else one for one in taps.first(output) if one.dim() in (2, 4)]


def mean(found: Sequence[Tensor]) -> Tensor:
    """Of tensors of one shape; of one alone the tensor itself."""
    return found[0] if len(found) == 1 else torch.stack(list(found)).mean(0)


def classifiers(subject: Traced) -> tuple[str, ...]:
    """The linear layer whose outputs are the logits, or the two whose mean is; none where there are neither.

    Of two, the one of classes comes first: the one that has no "dist" in its name, or that the network has first.
    """
    logits = objectives.logits(subject.forward())
    args, kwargs = subject.inputs.fresh()
    linears = [name for name, module in subject.model.named_modules() if isinstance(module, nn.Linear)]
    alike = dict[str, Tensor]()
    for name in reversed(linears):
        with torch.no_grad(), evaluating(subject.model), taps.tapped(subject.model, [name]) as found:
            subject.model(*args, **kwargs)
        if not found or found[0].shape != logits.shape:
            continue
        if torch.equal(found[0], logits):
            return (name,)
        for other, said in alike.items():
            if torch.allclose(mean([found[0], said]), logits):
                return (other, name) if "dist" in name and "dist" not in other else (name, other)
        alike[name] = found[0]
    return ()


def table(teacher: Tap | Regions, data: Examples, batch: int, run: Run, given: str, seed: int) -> ClassMeans:
    """Step 1: from the file that is given, or the run's, or made of the data."""
    key = {"teacher": teachers.fingerprint(teacher.subject.model), "feature": teacher.name}
    path = Path(given) if given else run.path("class-means.safetensors")
    if not given and not path.exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # regions are sampled
            made = collect(teacher.subject.model, teacher.rows, data.in_order(batch), teacher.classes)
        made.save(path, key)
    found = ClassMeans.load(path, key)
    found.covers(teacher.classes_of(data))
    return found


# ---------------------------------------------------------------------------------------------------------- students


def narrowed(
    subject: Traced, budget: Budget, readers: Sequence[str], multiple: int
) -> tuple[Traced, Cut, Mapping[str, float]]:
    """Step 2: (student, receipt, what it was to cost); what the layers `readers` read keeps its width."""
    start = subject.copy()
    while True:
        slices = start.slices()
        read = {id(start.model.get_submodule(reader).weight) for reader in readers}
        held = {site for site, parts in slices.items() if any(id(one) in read and dim == 1 for one, dim, _ in parts)}
        units = start.units(multiple=multiple)
        sites = {
            name: replace(site, frozen=site.frozen or name in held or name not in slices)
            for name, site in units.sites.items()
        }
        units = replace(units, sites=sites)
        selection = ranking.by_budget(units, magnitude.coupled(slices), budget, scope="local")
        try:
            small, cut = start.cut(selection)
        except CutError as error:
            start.without(error.fault, selection)
            continue
        return small, cut, selection.spent


def given(subject: Traced, student: str, budget: Budget) -> tuple[Traced, Cut, Mapping[str, float]]:
    """The user's student. Raises `InfeasibleError` where it is larger than the budget."""
    own = plugins.network(student)[0]
    if isinstance(subject.model, detectors.Detector):
        own = detectors.adapt(own)
    small = open_traced(own, subject.inputs, prove=False)
    before, after = subject.units().cost(), small.units().cost()
    for measure, limit in budget.absolute(before).items():
        if after[measure] > limit:
            raise InfeasibleError(
                f"{student} has {measure}={after[measure]:g}, more than {budget} allows ({limit:g}): ask for "
                f"{measure}={after[measure] / before[measure]:.0%} or more", after[measure],
            )  # fmt: skip
    gone = {"channels": (int(before["channels"] - after["channels"]), int(before["channels"]))}
    return small, Cut(gone, before, after, (f"{student} is a network of its own, trained beside its teacher",)), after


# ------------------------------------------------------------------------------------------------------------ losses


@dataclass(frozen=True, eq=False)
class View:
    """What terms see of a batch: features [B, D], logits [B, K], maps of both; labels, and those it is mixed with."""

    feature: Tensor
    logits: Tensor
    maps: list[Tensor]
    teacher_feature: Tensor
    teacher_logits: Tensor
    teacher_maps: list[Tensor]
    labels: Tensor
    others: Tensor
    share: float
    loss: Tensor | None = None
    """A detector's own, per image; features, logits and labels are then those of regions."""
    heads: tuple[Tensor, ...] = ()
    """Of a student of two: logits [B, K] of its class head, which learns the labels, and of its distillation head."""


Look = Callable[[Mapping[str, Any]], View]


def labelled(view: View, batch: Mapping[str, Any]) -> Tensor:
    """Cross-entropy with the labels; of a mixed batch, with both in the shares of the mix. Or a detector's own loss."""
    if view.loss is not None:
        return view.loss * len(batch["inputs"])
    logits = view.heads[0] if view.heads else view.logits
    first = losses.cross_entropy(logits, view.labels)
    if view.share == 1.0:
        return first
    return view.share * first + (1 - view.share) * losses.cross_entropy(logits, view.others)


def hosted(
    host: Host, temperature: float, target: float, other: float, again: review.Review | None = None
) -> Callable[[View, Mapping[str, Any]], Tensor]:
    """The loss that ND is added to; of logits, with T^2 before it."""

    def loss(view: View, batch: Mapping[str, Any]) -> Tensor:
        if again is not None:
            return review.hierarchical(again(view.maps), view.teacher_maps)
        pair = (view.heads[1] if view.heads else view.logits, view.teacher_logits)
        if host == "dkd":
            value = losses.decoupled(*pair, view.labels, target=target, other=other, temperature=temperature)
        elif host == "dist":
            value = relations.correlation(*pair, temperature=temperature)
        else:
            value = losses.kl(*pair, temperature=temperature)
        return temperature**2 * value * per_row(view, batch)

    return loss


def per_row(view: View, batch: Mapping[str, Any]) -> float:
    """Inputs by rows: a mean over the regions of a batch counts as often as the batch has images."""
    return len(batch["inputs"]) / len(view.feature)


def drawn(
    variant: Variant, centres: ClassMeans, projector: nn.Module, step: float
) -> Callable[[View, Mapping[str, Any]], Tensor]:
    """Step 4, or what stands in its place."""

    def value(view: View) -> Tensor:
        if variant == "norm":
            return features.growth(projector(view.feature), step=step)
        if variant == "features":
            wide = view.teacher_feature.shape[1]
            return wide * losses.mse(view.feature, view.teacher_feature, project=projector)
        means = centres.mixed(view.labels, view.others, view.share)
        if variant == "direction":
            return losses.cosine(view.feature, means, project=projector)
        return features.norms_and_directions(view.feature, view.teacher_feature, means, project=projector)

    return lambda view, batch: per_row(view, batch) * value(view)


# ----------------------------------------------------------------------------------------------------------- figures


@torch.no_grad()
def diagnosed(
    student: Tap | Regions, teacher: Tap | Regions, projector: nn.Module, centres: ClassMeans, data: Examples,
    batch: int, seed: int = 0,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Name -> norm, cosine to the class mean and nearest-mean accuracy of the features; accuracy, and label loyalty to
    the teacher, on `data`.

    Features of another width than the means' are those that the projector gives: what the loss acts on. The "distance"
    is the root of the mean of ||g(f_s) - f_t||^2. Of a detector these are figures of the regions that the student
    samples, of 128 images at most.
    """
    look = cast(Any, student).beside(teacher)
    columns = ("feature", "logits", "teacher_feature", "teacher_logits", "labels")
    data = data.take(range(min(len(data), 128))) if data.targets else data
    with torch.random.fork_rng(devices=[]), evaluating(student.subject.model, teacher.subject.model, projector):
        torch.manual_seed(seed)
        parts = [[getattr(view, name) for name in columns] for view in map(look, data.in_order(batch))]
        ours, said, theirs, answers, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        ours = ours if student.width == teacher.width else projector(ours)
    result = dict[str, dict[str, float]]()
    for name, rows, logits in (("teacher", theirs, answers), ("student", ours, said)):
        found = {"logits": logits, "labels": labels}
        result[name] = {
            "norm": prototypes.length(rows).value,
            "cosine": prototypes.cosine(rows, centres.means, labels).value,
            "nearest": prototypes.nearest(rows, centres.means, labels).value,
            "accuracy": quality.accuracy(lambda part: part["logits"], [found]).value,
            "loyalty": loyalty.label(logits, answers).value,
            "distance": float((rows - theirs).square().sum(1).mean().sqrt()),
        }
    return result


def told(figures: Mapping[str, Mapping[str, float]], what: str = "examples") -> tuple[str, ...]:
    """One line for each network."""
    return tuple(
        f"{name}: features of norm {one['norm']:.3g}, cosine {one['cosine']:.3f} to their class mean; of the training "
        f"{what} the nearest mean is right for {one['nearest']:.1%}, the logits for {one['accuracy']:.1%}"
        + ("" if name == "teacher" else f", and say what the teacher says of {one['loyalty']:.1%}")
        for name, one in figures.items()
    )
