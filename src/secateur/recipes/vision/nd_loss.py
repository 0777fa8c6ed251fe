"""ND loss: features of a student get the direction of their class mean in the teacher, and at least the teacher's norm.

Wang et al., Improving Knowledge Distillation via Regularizing Feature Norm and Direction, ECCV 2024 (arXiv 2305.17007;
there "Feature Direction and Norm").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from secateur._utils import devices, distributed, modes
from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.data.batches import Numbered, count_steps
from secateur.data.examples import Examples
from secateur.errors import DataError, InputError
from secateur.measure import prototypes
from secateur.methods.cutting import advise, cut_with_retries, open_student
from secateur.methods.detector_classes import open_with_boxes
from secateur.recover.distillation import losses, maps, relations, review, taps, teachers
from secateur.recover.distillation.centres import ClassMeans, collect
from secateur.recover.distillation.features import FeatureLoss
from secateur.recover.training import compose, loop, objectives
from secateur.recover.training.mixing import Mix
from secateur.score import magnitude
from secateur.select import ranking
from secateur.subjects.network.detectors import Judged, Regions, is_detector
from secateur.subjects.network.readers import logit_layers
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget, Cut, Result, Selection, Training

CARD = {
    "title": "Improving Knowledge Distillation via Regularizing Feature Norm and Direction",
    "paper": "https://arxiv.org/abs/2305.17007",
    "cuts": "channels of a classifier or two-stage detector, the same share of every layer, by magnitude; or nothing",
    "recovers": "distillation of logits, and of the norm and direction of the feature before the classifier",
    "extra": "",
    "family": "vision",
}


@dataclass(frozen=True, slots=True)
class Host:
    """The distillation that ND is added to."""

    host: Literal["kd", "dkd", "dist", "review", "none"] = "kd"
    """what ND is added to; none leaves labels and ND."""
    weight: float = 1.0
    """of the host."""
    temperature: Annotated[float, Gt(0)] | None = None
    """T of the host: 4 unless given, as on CIFAR, and of detectors 1, as on COCO."""
    target: float = 1.0
    """weight of the label's share in dkd."""
    other: float = 8.0
    """weight of the other classes' shares in dkd."""
    warmup: Annotated[float, Ge(0)] = 20.0
    """epochs, counted from 0, over which the host's weight grows."""


def nd_loss(
    subject: Traced,
    data: Examples,
    budgets: Sequence[Budget],
    run: Run,
    *,
    student: str = "",
    distillation: Host = Host(host="kd", weight=1.0, temperature=None, target=1.0, other=8.0, warmup=20.0),
    feature_loss: FeatureLoss = FeatureLoss(variant="nd", nd=2.0, step=1.0, dropout=0.5),
    task: float = 1.0,
    mix: Mix = Mix(mixup=0.0, cutmix=0.0),
    feature: str = "",
    stages: Sequence[str] = (),
    means: str = "",
    keep_width: bool = True,
    multiple: int = 1,
    seed: int = 0,
    training: Training = Training(epochs=240.0, batch=128, lr=0.05, optimizer="sgd", weight_decay=5e-4),
    dry_run: bool = False,
) -> Iterator[Result]:
    """Cut a classifier's channels or a detector's, or take a given student; distil it with norm and direction.

    1. Class means: ``c_k`` is the mean over the training examples of class k of the teacher's feature f_t, what its
       last linear layer reads (before a dropout), in evaluation mode and in order. ``e_k = c_k / ||c_k||``.
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
        distillation, feature_loss, mix: see these classes.
        task: weight of the labels, or of the detector's own loss.
        feature: the module that gives the feature, "NAME@input" for what it reads; the classifier's input, before a
            dropout, unless given.
        stages: for host=review, the modules whose maps are compared, those with large maps first; the last of each
            size unless given.
        means: a file of class means of this teacher, from another run's `work/`.
        keep_width: leave the width of the feature uncut, so that no projector is needed.
        multiple: kept channels are multiples of this.
        batch: examples per step.
        epochs: of training.
        lr: peak learning rate, decayed by a cosine.
        optimizer: sgd (Nesterov, momentum 0.9), or adamw, which warms up over a twentieth, as for DeiT.
        weight_decay: of matrices.
        seed: of batches and training.
        dry_run: stop after the cut; nothing is trained or measured.

    Departures: the paper trains students from scratch, 240 epochs at 0.1 and lr / 10 after 150, 180 and 210; a cut one
    starts from the teacher's weights, under a cosine. The norm-only form is from memory. Centres are not rounded to
    four decimals, and the projector is attached by comparing widths. ReviewKD compares maps alone, not the pooled
    feature as well, and of a detector the maps that its regions are cut out of. A detector's means are of one pass over
    the data, not of 30,000 iterations. In evidence are the training examples.
    """
    host, variant, nd = distillation.host, feature_loss.variant, feature_loss.nd
    check(data, host, mix, feature, stages)
    look: Callable[[Traced], Any] = partial(Classifier.of, feature=feature, stages=stages, staged=host == "review")
    if data.targets or is_detector(subject.model):
        (subject, data), look = open_with_boxes(subject, data), partial(Regions.of, image=data.inputs[:1])
    if distillation.temperature is None:
        distillation = replace(distillation, temperature=1.0 if data.targets else 4.0)
    weight, warmup = distillation.weight if host != "none" else 0.0, distillation.warmup
    rise = 0.05 if training.optimizer == "adamw" else 0.0
    training = training.default(warmup=rise, precision="fp32", clip=math.inf, accumulate=1)
    batch, accumulate, epochs = training.whole("batch"), training.whole("accumulate"), training.number("epochs")
    feed = examples.batches(data, batch=batch, seed=seed)
    steps, teacher = count_steps(feed, epochs, accumulate), look(subject)
    held = teacher.readers if keep_width else ()
    cuts = [open_student(subject, student, one) if student else narrow(subject, one, held, multiple) for one in budgets]
    pupils = [look(small) for small, _, _ in cuts]
    for pupil in pupils:  # what can't be met is said before a pass over all of the data
        check_student(pupil, teacher, distillation)
    if dry_run:
        yield from (Result(str(budget), *cut) for budget, cut in zip(budgets, cuts, strict=True))
        return
    centres = distributed.by_first(partial(class_means, teacher, data, batch, run, means, seed))
    for budget, (small, cut, predicted), pupil in zip(budgets, cuts, pupils, strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            projector = taps.adapter(pupil.width, teacher.width, "norm", dropout=feature_loss.dropout)
            fusion = review.Review(pupil.shapes, teacher.shapes) if host == "review" else None
        recovery = None
        if steps:
            terms = [
                compose.Term("labels", label_loss, task),
                compose.Term("host", host_loss(distillation, fusion), weight,
                             warmup / epochs if warmup < epochs else warmup / epochs * steps),
                compose.Term(variant, ask_feature(feature_loss, centres, projector), nd),
            ]  # fmt: skip
            active, look_at = [term for term in terms if term.weight], partial(see, pupil, teacher, mix=mix)
            objective = compose.compose(active, look_at, steps=steps, stairs=epochs)
            along = [projector] * bool(nd) + ([fusion] if fusion is not None else [])
            recovery = loop.train(
                small.model, Numbered(feed, steps, accumulate), objective, training, steps=steps, seed=seed,
                count=examples.count, extra=along, frozen=[subject.model], checkpoint=run.folder(f"train-{budget}"),
                title="distillation",
            )  # fmt: skip
        with loop.place_for_training(small.model, subject.model, projector):
            figures = run.json(f"features-{budget}", partial(diagnose, pupil, teacher, projector, centres, data, batch))
        notes = describe(figures, "regions" if data.targets else "examples") + describe_warmup(distillation, epochs)
        yield Result(str(budget), small, cut, predicted, recovery, notes)


def check(data: Examples, host: str, mix: Mix, feature: str, stages: Sequence[str]) -> None:
    """Refuse data without classes, and options that contradict one another."""
    if data.per_pixel or (data.labels is None and not data.targets):
        raise DataError(f"{data.name} has no classes of examples: class means and the directions to them need labels")
    mixed = {name: f"{alpha:g}" for name, alpha in asdict(mix).items() if alpha}
    for name, value in ({"feature": feature, "stages": ",".join(stages)} | mixed).items() if data.targets else ():
        if value:
            raise InputError(f"{name}={value}: that is for classifiers, and {data.name} has boxes; leave it out")
    if stages and host != "review":
        raise InputError(f"stages={','.join(stages)}: they are for host=review")
    for name, alpha in mixed.items() if host == "dkd" else ():
        raise InputError(f"{name}={alpha}: dkd parts off one class of each example, and takes 0 only")
    if mix.cutmix and data.inputs.dim() != 4:
        raise InputError(
            f"cutmix={mix.cutmix:g} is for images [N, C, H, W], and inputs of {data.name} are {list(data.inputs.shape)}"
        )


def check_student(student: Network, teacher: Network, host: Host) -> None:
    """Refuse a student of other classes, and a second head that nothing would train."""
    if student.classes != teacher.classes:
        raise InputError(f"the student tells {student.classes} classes, its teacher {teacher.classes}: as many, please")
    heads = " and ".join(student.readers)
    if len(student.readers) > 1 and (host.host in ("none", "review") or not host.weight):
        raise InputError(
            f"host={host.host}, weight={host.weight:g}: the student answers with the mean of {heads}, "
            "and without a host of logits nothing trains the second: give kd, dkd or dist"
        )


def class_means(teacher: Network, data: Examples, batch: int, run: Run, file: str, seed: int) -> ClassMeans:
    """Step 1: from the file that is given, or the run's, or made of the data."""
    key = {"teacher": teachers.fingerprint(teacher.subject.model), "feature": teacher.name}
    path = Path(file) if file else run.path("class-means.safetensors")
    if not file and not path.exists():
        with torch.random.fork_rng(devices=[]), loop.place_for_training(teacher.subject.model):
            torch.manual_seed(seed)  # regions are sampled
            collect(teacher.subject.model, teacher.rows, data.in_order(batch), teacher.classes).save(path, key)
    centres = ClassMeans.load(path, key)
    labels = teacher.labels_in(data.targets) if isinstance(teacher, Regions) else data.labels
    assert labels is not None
    centres.covers(labels)
    return centres


# ---------------------------------------------------------------------------------------------------------- features


@dataclass(frozen=True, eq=False)
class Pass:
    """What one pass of a classifier gives: features [N, D], logits [N, K], maps [N, C, H, W] of each stage."""

    features: Tensor
    logits: Tensor
    maps: list[Tensor]
    heads: tuple[Tensor, ...] = ()
    """Of two heads whose mean the logits are: those of its class head, and of its distillation head."""


@dataclass(frozen=True, eq=False)
class View:
    """Student and teacher on one batch. Labels of a mixed input count `share`, those it was mixed with the rest."""

    student: Pass | Judged
    teacher: Pass | Judged
    labels: Tensor
    others: Tensor
    share: float = 1.0

    @property
    def heads(self) -> tuple[Tensor, Tensor]:
        """The student's logits that learn the labels, and those that learn from the teacher."""
        apart = self.student.heads if isinstance(self.student, Pass) else ()
        return (apart[0], apart[1]) if apart else (self.student.logits, self.student.logits)


@dataclass(frozen=True, eq=False)
class Classifier:
    """A classifier with the places of its feature and of its maps.

    Of two heads, of classes and of distillation, the feature is the mean of what they read, or what was asked for.
    """

    subject: Traced
    name: str
    places: Sequence[str]
    readers: Sequence[str]
    """The linear layers that give the logits; none where no such layers do."""
    width: int
    classes: int
    stages: Sequence[str] = ()
    shapes: Sequence[tuple[int, int, int]] = ()

    @classmethod
    def of(cls, subject: Traced, feature: str = "", stages: Sequence[str] = (), staged: bool = False) -> Classifier:
        """At the module that fits `feature`, or at what the classifier reads. Raises `InputError` where neither is.

        staged: look at maps too, at `stages`, or at the last of each size.
        """
        logits = objectives.logits(subject.forward())
        heads = logit_layers(subject, logits)
        if not feature and not heads:
            raise InputError(
                f"no linear layer of this {type(subject.model).__name__} gives its logits: name the module that gives "
                "the feature, feature=NAME, or feature=NAME@input for what it reads"
            )
        args, kwargs = subject.inputs.fresh()
        example = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        run = partial(subject.inputs.ask, inputs=example)
        places = [taps.one(subject.model, feature)] if feature else taps.before_dropout(subject.model, heads, run)
        found = taps.look_at(subject.model, places, example, taps.pool, ask=subject.inputs.ask)
        if found[0].shape != found[-1].shape:
            wide = " and ".join(str(rows.shape[1]) for rows in found)
            raise InputError(f"{' and '.join(heads)} read features of widths {wide}: name one, feature={places[0]}")
        names, shapes = review.stages(subject.model, run, stages) if staged else ([], [])
        return cls(subject, " and ".join(places), places, heads, found[0].shape[1], logits.shape[1], names, shapes)

    def __call__(self, inputs: Tensor) -> Pass:
        """One pass, in the network's own mode."""
        model, heads = self.subject.model, self.readers if len(self.readers) > 1 else ()
        with (
            taps.tap(model, self.places, taps.pool) as read,
            taps.tap(model, heads) as answers,
            taps.tap(model, self.stages, maps.flat) as staged,
        ):
            logits = objectives.logits(self.subject.inputs.ask(model, inputs))
        # In training some networks answer with both heads apart, for their mean.
        logits = torch.stack(list(answers)).mean(0) if heads else logits
        return Pass(torch.stack(list(read)).mean(0), logits, list(staged), tuple(answers))

    def rows(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """(features [B, D], classes [B])."""
        return self(batch["inputs"]).features, batch["labels"]


Network = Classifier | Regions
Term = Callable[[View, Mapping[str, Any]], Tensor]


def see(student: Network, teacher: Network, batch: Mapping[str, Any], mix: Mix | None = None) -> View:
    """Both networks on a batch of inputs, mixed with itself by `mix` where one is given, or on regions of images."""
    if isinstance(student, Regions) and isinstance(teacher, Regions):
        ours, theirs = student.beside_teacher(teacher, batch)
        assert ours.labels is not None
        return View(ours, theirs, ours.labels, ours.labels)
    assert not isinstance(student, Regions)
    assert not isinstance(teacher, Regions)
    inputs, labels, others, share = batch["inputs"], batch["labels"], batch["labels"], 1.0
    if mix:
        inputs, order, share = mix(inputs)
        others = labels[order]
    with torch.no_grad():
        told = teacher(inputs)
    return View(student(inputs), told, labels, others, share)


# ---------------------------------------------------------------------------------------------------------- students


def narrow(
    subject: Traced, budget: Budget, readers: Sequence[str], multiple: int = 1
) -> tuple[Traced, Cut, Mapping[str, float]]:
    """Step 2: (student, receipt, what it was to cost); what the layers `readers` read keeps its width."""
    start = subject.copy()

    def select() -> Selection:
        slices = start.slices()
        read = {id(start.model.get_submodule(reader).weight) for reader in readers}
        held = {site for site, parts in slices.items() if any(id(one) in read and dim == 1 for one, dim, _ in parts)}
        units = start.units(multiple=multiple)
        sites = {
            name: replace(site, frozen=site.frozen or name in held or name not in slices)
            for name, site in units.sites.items()
        }
        return ranking.by_budget(replace(units, sites=sites), magnitude.coupled_norm(slices), budget, scope="local")

    with advise("with keep_width=false the width of the feature may go, too" if readers else ""):
        selection, small, cut = cut_with_retries(start, select)
    return small, cut, selection.spent


# ------------------------------------------------------------------------------------------------------------ losses


def label_loss(view: View, batch: Mapping[str, Any]) -> Tensor:
    """Cross-entropy with the labels; of a mixed batch, with both in the shares of the mix. Or a detector's own loss."""
    if isinstance(view.student, Judged) and view.student.loss is not None:
        return view.student.loss * len(batch["inputs"])
    logits = view.heads[0]
    first = losses.cross_entropy(logits, view.labels)
    if view.share == 1.0:
        return first
    return view.share * first + (1 - view.share) * losses.cross_entropy(logits, view.others)


def host_loss(host: Host, fusion: review.Review | None = None) -> Term:
    """The loss that ND is added to; of logits, with T^2 before it, T = 1 where none is given."""
    temperature = host.temperature or 1.0

    def loss(view: View, batch: Mapping[str, Any]) -> Tensor:
        if fusion is not None:
            return review.hierarchical(fusion(view.student.maps), view.teacher.maps)
        pair = (view.heads[1], view.teacher.logits)
        if host.host == "dkd":
            value = losses.dkd(*pair, view.labels, target=host.target, other=host.other, temperature=temperature)
        elif host.host == "dist":
            value = relations.correlation(*pair, temperature=temperature)
        else:
            value = losses.kl(*pair, temperature=temperature)
        return temperature**2 * value * per_row(view, batch)

    return loss


def per_row(view: View, batch: Mapping[str, Any]) -> float:
    """Inputs by rows: a mean over the regions of a batch counts as often as the batch has images."""
    return len(batch["inputs"]) / len(view.student.features)


def ask_feature(wanted: FeatureLoss, centres: ClassMeans, projector: nn.Module) -> Term:
    """Step 4, or what stands in its place."""

    def loss(view: View, batch: Mapping[str, Any]) -> Tensor:
        means = centres.mix(view.labels, view.others, view.share)
        return per_row(view, batch) * wanted(view.student.features, view.teacher.features, means, projector)

    return loss


def describe_warmup(host: Host, epochs: float) -> tuple[str, ...]:
    """A note where training ends before the host has its weight; epochs are counted from 0."""
    last = max(0, math.ceil(epochs) - 1)
    if host.host == "none" or not host.weight or last >= host.warmup:
        return ()
    return (
        f"{host.host} never got its weight of {host.weight:g}, but {last / host.warmup:.0%} of it at most: it warms up "
        f"over {host.warmup:g} epochs, and there were {epochs:g}; give a smaller warmup",
    )


# ----------------------------------------------------------------------------------------------------------- figures


@torch.no_grad()
def diagnose(
    student: Network, teacher: Network, projector: nn.Module, centres: ClassMeans, data: Examples, batch: int
) -> dict[str, dict[str, float]]:
    """Name -> norm, cosine to the class mean and nearest-mean accuracy of the features; accuracy, and label loyalty to
    the teacher, on `data`.

    Features of another width than the means' are those that the projector gives: what the loss acts on. The "distance"
    is the root of the mean of ||g(f_s) - f_t||^2. Of a detector these are figures of the regions that the student
    samples, of 128 images at most.
    """
    data = data.take(range(min(len(data), 128))) if data.targets else data
    tallies = {name: prototypes.Tally(centres.means) for name in ("teacher", "student")}
    with torch.random.fork_rng(devices=[]), modes.evaluating(student.subject.model, teacher.subject.model, projector):
        torch.manual_seed(0)
        for part in data.in_order(batch):
            tally_batch(see(student, teacher, devices.move(part, student.subject.model)), projector, tallies)
    return {name: tally.figures() for name, tally in tallies.items()}


def tally_batch(view: View, projector: nn.Module, tallies: Mapping[str, prototypes.Tally]) -> None:
    """Add a batch to the figures of the teacher and of the student; the batch itself is held by nobody afterwards."""
    ours, theirs = view.student, view.teacher
    shared = theirs.features, theirs.logits, view.labels
    tallies["teacher"].add(theirs.features, theirs.logits, *shared)
    tallies["student"].add(losses.lift(projector, ours.features), ours.logits, *shared)


def describe(figures: Mapping[str, Mapping[str, float]], what: str) -> tuple[str, ...]:
    """One line for each network."""
    return tuple(
        f"{name}: features of norm {row['norm']:.3g}, cosine {row['cosine']:.3f} to their class mean; of the training "
        f"{what} the nearest mean is right for {row['nearest']:.1%}, the logits for {row['accuracy']:.1%}"
        + ("" if name == "teacher" else f", and say what the teacher says of {row['loyalty']:.1%}")
        for name, row in figures.items()
    )
