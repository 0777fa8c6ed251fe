"""ND: a student's features drawn to the mean of their class in the teacher, and made as long as the teacher's are.

Wang et al., Improving Knowledge Distillation via Regularizing Feature Norm and Direction, ECCV 2024 (arXiv 2305.17007;
there "Feature Direction and Norm").
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur.errors import DataError, InfeasibleError, InputError
from secateur.files import examples, plugins
from secateur.files.examples import Examples
from secateur.files.rundir import Run
from secateur.measure import prototypes, quality
from secateur.modes import evaluating
from secateur.recover import (
    compose,
    detecting,
    features,
    loop,
    losses,
    maps,
    objectives,
    relations,
    review,
    slimming,
    taps,
    teachers,
)
from secateur.recover.centres import ClassMeans, collect
from secateur.score import magnitude
from secateur.select import ranking
from secateur.subjects.traced import CutError, Traced, open_traced
from secateur.vocabulary import Budget, Cut, Result

CARD = {
    "title": "Improving Knowledge Distillation via Regularizing Feature Norm and Direction",
    "paper": "https://arxiv.org/abs/2305.17007",
    "cuts": "channels of a classifier, the same share of every layer, by magnitude; or nothing: a student may be given",
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
    temperature: float = 4.0,
    target: float = 1.0,
    other: float = 8.0,
    step: float = 1.0,
    warmup: float = 20.0,
    mixup: float = 0.0,
    feature: str = "",
    stages: Sequence[str] = (),
    means: str = "",
    dropout: float = 0.5,
    keep_width: bool = True,
    multiple: int = 1,
    batch: int = 128,
    epochs: float = 240.0,
    lr: float = 0.05,
    weight_decay: float = 5e-4,
    seed: int = 0,
    training: str = "",
    dry_run: bool = False,
) -> Iterator[Result]:
    """Cut a classifier's channels, or take a student that is given, and distil it with a term for norm and direction.

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

    `work/` of the run holds the class means and, per budget, norm, cosine and nearest-mean accuracy of the features.

    Args:
        subject: a trained classifier, the teacher; it stays as it is.
        data: inputs with classes.
        budgets: one student for each; what a given student has to keep, too.
        run: where class means, figures and checkpoints go.
        student: "file.py:function" of a student of the same classes, in place of a cut.
        host: what ND is added to; none leaves labels and ND.
        variant: nd; or in its place direction, 1 - cos(g, e), norm, which asks g to be `step` longer, or features,
            ||g - f_t||^2.
        task: weight of the labels.
        weight: of the host.
        nd: weight of ND or its variant; 0 is the host alone, bit for bit.
        temperature: T of the host.
        target: weight of the label's share in dkd.
        other: weight of the other classes' shares in dkd.
        step: of the norm variant.
        warmup: epochs, counted from 0, over which the host's weight grows.
        mixup: alpha of Beta(alpha, alpha), by which inputs, labels and centres of pairs are mixed; 0 mixes none.
        feature: the module that gives the feature, "NAME@input" for what it reads; the classifier's input unless given.
        stages: for host=review, the modules whose maps are compared, those with large maps first; the last of each
            size unless given.
        means: a file of class means of this teacher, from another run's `work/`.
        dropout: of the projector.
        keep_width: leave the width of the feature uncut, so that no projector is needed.
        multiple: kept channels are multiples of this.
        batch: examples per step.
        epochs: of training.
        lr: peak learning rate of SGD (Nesterov, momentum 0.9), decayed by a cosine.
        weight_decay: of matrices.
        seed: of batches and training.
        training: more settings of the training loop, such as accumulate=2,precision=bf16.
        dry_run: stop after the cut; nothing is trained.

    Departures: the paper trains students from scratch, 240 epochs at 0.1 and lr / 10 after 150, 180 and 210; a cut one
    starts from the teacher's weights, under a cosine. The norm-only form is from memory. Centres are not rounded to
    four decimals, and the projector is attached by comparing widths. ReviewKD compares maps alone, not the pooled
    feature as well. Detectors are not here; `recover.centres` can make their class means of proposals. In evidence are
    the training examples.
    """
    check(data, host, variant, mixup, warmup, dropout, stages)
    further = loop.options(training)
    feed = examples.batches(data, batch=batch, seed=seed)
    accumulate = further.get("accumulate", 1)
    steps = detecting.steps(len(feed) / accumulate, epochs)
    teacher = Tap.of(subject, feature, stages, host == "review")
    centres = table(teacher, data, batch, run, means)
    for budget in budgets:
        if student:
            small, cut, predicted = given(subject, student, budget)
        else:
            small, cut, predicted = narrowed(subject, budget, keep_width, multiple)
        pupil = Tap.of(small, feature, stages, host == "review")
        if pupil.classes != teacher.classes:
            raise InputError(
                f"the student tells {pupil.classes} classes, its teacher {teacher.classes}: as many, please"
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
                partial(look, pupil, teacher, mixup),
                steps=steps,
                stairs=epochs,
            )
            recovery = loop.train(
                small.model, slimming.Numbered(feed, steps * accumulate * processes()), objective, steps=steps, lr=lr,
                optimizer="sgd", warmup=0.0, weight_decay=weight_decay, seed=seed, count=examples.count,
                extra=along, frozen=[subject.model], checkpoint=run.folder(f"train-{budget}"),
                title="distillation", **({"precision": "fp32", "clip": None} | further),
            )  # fmt: skip
        figures = partial(diagnosed, {"teacher": teacher, "student": pupil}, projector, centres, data, batch)
        yield Result(str(budget), small, cut, predicted, recovery, told(run.json(f"features-{budget}", figures)))


def check(
    data: Examples, host: str, variant: str, mixup: float, warmup: float, dropout: float, stages: Sequence[str]
) -> None:
    """Refuse data without classes, and options that contradict one another."""
    if data.labels is None:
        raise DataError(f"{data.name} has no classes: class means and the directions to them need labels")
    if host not in ("kd", "dkd", "dist", "review", "none"):
        raise InputError(f"host={host!r}: give kd, dkd, dist, review or none")
    if stages and host != "review":
        raise InputError(f"stages={','.join(stages)}: they are for host=review")
    if variant not in ("nd", "direction", "norm", "features"):
        raise InputError(f"variant={variant!r}: give nd, direction, norm or features")
    if mixup < 0 or (mixup and host == "dkd"):
        raise InputError(f"mixup={mixup:g}: give at least 0; dkd parts off one class of each example, and takes 0 only")
    if warmup < 0:
        raise InputError(f"warmup={warmup:g}: give epochs, at least 0")
    if not 0 <= dropout < 1:
        raise InputError(f"dropout={dropout:g}: give a share from 0 to below 1")


def processes() -> int:
    """How many processes share the training's micro-batches."""
    return int(os.environ.get("WORLD_SIZE", "1"))


# ------------------------------------------------------------------------------------------- features and their means


@dataclass(frozen=True, eq=False)
class Tap:
    """A network with the place of its feature, and those of its maps where they are asked for, with their shapes."""

    subject: Traced
    name: str
    width: int
    classes: int
    stages: Sequence[str] = ()
    shapes: Sequence[tuple[int, int, int]] = ()

    @classmethod
    def of(cls, subject: Traced, feature: str, stages: Sequence[str] = (), staged: bool = False) -> Tap:
        """At the module that fits `feature`, or at what the classifier reads. Raises `InputError` where neither is.

        staged: maps are asked for, at `stages`, or at the last of each size.
        """
        reader = classifier(subject)
        if not feature and not reader:
            raise InputError(
                f"no linear layer of this {type(subject.model).__name__} gives its logits: name the module that gives "
                "the feature, feature=NAME, or feature=NAME@input for what it reads"
            )
        name = taps.one(subject.model, feature) if feature else f"{reader}@input"
        args, kwargs = subject.inputs.fresh()
        example = next(one for one in (*args, *kwargs.values()) if isinstance(one, Tensor))
        (found,) = taps.seen(subject.model, [name], example, pooled, ask=subject.inputs.ask)
        names, shapes = [taps.one(subject.model, stage) for stage in stages], list[tuple[int, int, int]]()
        if staged and names:
            seen = taps.seen(subject.model, names, example, maps.flat, ask=subject.inputs.ask)
            shapes = [(one.shape[1], one.shape[2], one.shape[3]) for one in seen]
        elif staged:
            names, shapes = review.stages(subject.model, lambda model: subject.inputs.ask(model, example))
        return cls(subject, name, found.shape[1], objectives.logits(subject.forward()).shape[1], names, shapes)

    def __call__(self, inputs: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """(feature [B, D], logits [B, K], maps [B, C, H, W] of each stage) of one pass, in the network's own mode."""
        model = self.subject.model
        with taps.tapped(model, [self.name], pooled) as found, taps.tapped(model, self.stages, maps.flat) as seen:
            logits = objectives.logits(self.subject.inputs.ask(model, inputs))
        return found[0], logits, list(seen)


def pooled(output: Any) -> list[Tensor]:
    """[B, D] in what a module gave: rows as they are, maps [B, D, H, W] as their mean over places."""
    return [one.mean((2, 3)) if one.dim() == 4 else one for one in taps.first(output) if one.dim() in (2, 4)]


def classifier(subject: Traced) -> str:
    """The linear layer whose outputs are the logits; "" where there is none."""
    logits = objectives.logits(subject.forward())
    args, kwargs = subject.inputs.fresh()
    linears: list[str] = [name for name, module in subject.model.named_modules() if isinstance(module, nn.Linear)]
    for name in reversed(linears):
        with torch.no_grad(), evaluating(subject.model), taps.tapped(subject.model, [name]) as found:
            subject.model(*args, **kwargs)
        if found and found[0].shape == logits.shape and torch.equal(found[0], logits):
            return name
    return ""


def table(teacher: Tap, data: Examples, batch: int, run: Run, given: str) -> ClassMeans:
    """Step 1: from the file that is given, or the run's, or made of the data."""
    key = {"teacher": teachers.fingerprint(teacher.subject.model), "feature": teacher.name}
    path = Path(given) if given else run.path("class-means.safetensors")
    if not given and not path.exists():
        made = collect(
            teacher.subject.model, lambda part: (teacher(part["inputs"])[0], part["labels"]), data.in_order(batch),
            teacher.classes,
        )  # fmt: skip
        made.save(path, key)
    found = ClassMeans.load(path, key)
    assert data.labels is not None
    found.covers(data.labels)
    return found


# ---------------------------------------------------------------------------------------------------------- students


def narrowed(
    subject: Traced, budget: Budget, keep_width: bool, multiple: int
) -> tuple[Traced, Cut, Mapping[str, float]]:
    """Step 2: (student, receipt, what it was to cost)."""
    start, reader = subject.copy(), classifier(subject)
    while True:
        slices = start.slices()
        weight = start.model.get_submodule(reader).weight if reader and keep_width else None
        held = {site for site, parts in slices.items() if any(one is weight and dim == 1 for one, dim, _ in parts)}
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
    small = open_traced(plugins.network(student)[0], subject.inputs, prove=False)
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


def look(student: Tap, teacher: Tap, mixup: float, batch: Mapping[str, Any]) -> View:
    """Both passes over a batch, mixed with itself in another order where `mixup` says so."""
    inputs, labels = batch["inputs"], batch["labels"]
    others, share = labels, 1.0
    if mixup:
        share = float(torch.distributions.Beta(mixup, mixup).sample())
        order = torch.randperm(len(inputs)).to(inputs.device)
        inputs, others = share * inputs + (1 - share) * inputs[order], labels[order]
    with torch.no_grad():
        theirs = teacher(inputs)
    return View(*student(inputs), *theirs, labels, others, share)


def labelled(view: View, batch: Mapping[str, Any]) -> Tensor:
    """Cross-entropy with the labels; of a mixed batch, with both labels in the shares of the mix."""
    first = losses.cross_entropy(view.logits, view.labels)
    if view.share == 1.0:
        return first
    return view.share * first + (1 - view.share) * losses.cross_entropy(view.logits, view.others)


def hosted(
    host: Host, temperature: float, target: float, other: float, again: review.Review | None = None
) -> Callable[[View, Mapping[str, Any]], Tensor]:
    """The loss that ND is added to; of logits, with T^2 before it."""

    def loss(view: View, batch: Mapping[str, Any]) -> Tensor:
        if again is not None:
            return review.hierarchical(again(view.maps), view.teacher_maps)
        pair = (view.logits, view.teacher_logits)
        if host == "dkd":
            value = losses.decoupled(*pair, view.labels, target=target, other=other, temperature=temperature)
        elif host == "dist":
            value = relations.correlation(*pair, temperature=temperature)
        else:
            value = losses.kl(*pair, temperature=temperature)
        return temperature**2 * value

    return loss


def drawn(
    variant: Variant, centres: ClassMeans, projector: nn.Module, step: float
) -> Callable[[View, Mapping[str, Any]], Tensor]:
    """Step 4, or what stands in its place."""

    def loss(view: View, batch: Mapping[str, Any]) -> Tensor:
        if variant == "norm":
            return features.growth(projector(view.feature), step=step)
        if variant == "features":
            wide = view.teacher_feature.shape[1]
            return wide * losses.mse(view.feature, view.teacher_feature, project=projector)
        means = centres.mixed(view.labels, view.others, view.share)
        if variant == "direction":
            return losses.cosine(view.feature, means, project=projector)
        return features.norms_and_directions(view.feature, view.teacher_feature, means, project=projector)

    return loss


# ----------------------------------------------------------------------------------------------------------- figures


@torch.no_grad()
def diagnosed(
    networks: Mapping[str, Tap], projector: nn.Module, centres: ClassMeans, data: Examples, batch: int
) -> dict[str, dict[str, float]]:
    """Name -> norm, cosine to the class mean and nearest-mean accuracy of the features, and accuracy, on `data`.

    Features of another width than the means' are those that the projector gives: what the loss acts on. Where both
    widths are equal the "distance" is the root of the mean of ||f - f_t||^2, f_t of the first of `networks`.
    """
    assert data.labels is not None
    result, first = dict[str, dict[str, float]](), None
    for name, tap in networks.items():
        with evaluating(tap.subject.model, projector):
            found = [tap(part["inputs"]) for part in data.in_order(batch)]
            rows = torch.cat([row if row.shape[1] == centres.means.shape[1] else projector(row) for row, *_ in found])
        logits = torch.cat([one for _, one, _ in found])
        first = rows if first is None else first
        result[name] = {
            "norm": prototypes.length(rows).value,
            "cosine": prototypes.cosine(rows, centres.means, data.labels).value,
            "nearest": prototypes.nearest(rows, centres.means, data.labels).value,
            "accuracy": quality.accuracy(
                lambda part: part["logits"], [{"logits": logits, "labels": data.labels}]
            ).value,
            "distance": float((rows - first).square().sum(1).mean().sqrt()),
        }
    return result


def told(figures: Mapping[str, Mapping[str, float]]) -> tuple[str, ...]:
    """One line for each network."""
    return tuple(
        f"{name}: features of norm {one['norm']:.3g}, cosine {one['cosine']:.3f} to their class mean; of the training "
        f"examples the nearest mean is right for {one['nearest']:.1%}, the logits for {one['accuracy']:.1%}"
        for name, one in figures.items()
    )
