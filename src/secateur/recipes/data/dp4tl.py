"""DP4TL: the classes or clusters of a source on which a target's samples land are enough to pre-train on.

Zhang et al., "Selectivity Drives Productivity: Efficient Dataset Pruning for Enhanced Transfer Learning", NeurIPS 2023
(arXiv 2310.08782).
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from numpy.typing import NDArray
from torch import Tensor, nn

from secateur._utils import disk, plugins, rundir
from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.data.examples import Augment, Examples
from secateur.data.images import Images
from secateur.errors import DataError, InputError, RunError
from secateur.methods import indices
from secateur.methods.arms import fit, mark_correct
from secateur.recover.training import objectives, rehearsal, transfer
from secateur.score import hooks, random, votes
from secateur.select import ranking
from secateur.subjects.dataset.examples import ExampleSet
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget, Cut, Result, Scores, Selection, Training

CARD = {
    "title": "DP4TL: data set pruning for transfer learning",
    "paper": "https://arxiv.org/abs/2310.08782",
    "cuts": "whole classes, or clusters, of the data that a network is pre-trained on",
    "recovers": "pre-training on what stays, then a linear probe and full fine-tuning on the target",
    "extra": "",
    "family": "data",
}

SURROGATE = ("recipe", "data_sha256", "held_out_sha256", "model_sha256", "surrogate_sha256", "seed", "batch", "head",
             "surrogate", "validation", "surrogate_epochs", "lr", "weight_decay", "training")  # fmt: skip
"""Settings of a run by which its surrogate is what it is."""
VOTES = ("target", "judged", "mapping", "clusters", "target_sha256", "judged_sha256")
"""Further settings by which its votes are."""


@dataclass(frozen=True, slots=True)
class Transfers:
    """Step 5: what the pre-trained network is trained for on the target, and its rates, each with a cosine."""

    probe_epochs: Annotated[float, Ge(0)] = 50.0
    """Of the linear probe; 0 leaves it out."""
    probe_lr: Annotated[float, Ge(0)] = 0.01
    """Its rate."""
    tune_epochs: Annotated[float, Ge(0)] = 200.0
    """Of full fine-tuning; 0 leaves it out."""
    tune_lr: Annotated[float, Ge(0)] = 1e-4
    """Its rate."""


def dp4tl(
    subject: Traced,
    data: Examples,
    budgets: Sequence[Budget],
    run: Run,
    *,
    target: str,
    judged: str = "",
    seed: int = 0,
    surrogate: str = "self",
    scored: str = "",
    mapping: Literal["label", "feature"] = "label",
    clusters: int = 0,
    order: Literal["votes", "reverse", "random"] = "votes",
    head: str = "",
    validation: Annotated[float, Gt(0), Lt(1)] = 0.1,
    surrogate_epochs: Annotated[float, Ge(0)] = 16.0,
    transfers: Transfers = Transfers(probe_epochs=50.0, probe_lr=0.01, tune_epochs=200.0, tune_lr=1e-4),
    attack: Annotated[float, Ge(0), Lt(1)] = 0.0,
    augment: str = "",
    training: Training = Training(epochs=16.0, batch=64, lr=0.1, weight_decay=5e-5),
    dry_run: bool = False,
) -> Iterator[Result]:
    """Keep the classes of a source that a target votes for, pre-train on them, and carry the network to the target.

    1. A small surrogate is trained on all of the source, once; it may come trained.
    2. It looks at every training sample of the target, as it is; labels of the target are not asked for. mapping=label:
       ``s(i) = |{ x : argmax_k f(x)_k = i }|``; mapping=feature: ``s(i) = |{ x : i = argmin_k ||g(x) - c_k||_2 }|``,
       g what enters its last layer, c_k the mean of g over class k, or the centre of cluster k of the source by
       K-means. Nothing after this step asks the surrogate: all budgets share the votes.
    3. The classes of the most votes stay, within the budget; ties keep the lower number. What stays of the source is
       an index of its training part and one of its validation part.
    4. The network, with the weights it comes with, is trained on the training part that stays for as many epochs as on
       all of it, so that it costs as much less as there are fewer examples. Its last layer keeps all classes.
    5. On the target: a linear probe of what enters the last layer, and full fine-tuning under a new head.

    `work/` of the run holds the votes, `subset-BUDGET/train` and `/validation` (indices of `data`, with each example's
    votes), `tuned-BUDGET` (the network on the target) and `transfer-BUDGET.json` (what came of it). The result is the
    pre-trained network, with the source's head. Votes of several targets add up: give their samples as one.

    Args:
        subject: the network to pre-train, the larger one; it stays as it is.
        data: the source, with classes; without any (or with `clusters`) mapping=feature makes them.
        budgets: classes=50%, or examples=50%; 100% for the whole source.
        run: where votes, indices and checkpoints go.
        target: examples of the target task, as `data` is given, an index of `prune-data` too; their classes are needed
            for step 5. Images become inputs as those of `data` do.
        judged: examples of the target to judge on; a fifth of each class of `target` is held out unless given.
        batch: examples per step.
        seed: of the split, the clusters, random classes, new heads and batches.
        surrogate: file.py:function that builds it, with the source's classes; "self" is the network itself; "inputs"
            takes the inputs as features, such as those that an encoder made (mapping=feature).
        scored: folder of an earlier run of the same data, network, seed and settings of the surrogate, whose votes are
            taken, whatever its budgets were; for another target or mapping its trained surrogate votes anew.
        mapping: label, or feature.
        clusters: K of K-means over the source; 0 takes its classes.
        order: votes; reverse and random keep the least, or any, for comparison.
        head: the network's layer of logits, and the surrogate's; the last linear layer unless given.
        validation: share of the source on which pre-training is validated.
        surrogate_epochs: its training; 0 for one that comes trained.
        epochs: of pre-training, and lr, its peak with SGD: up for an eighth of it, and down in a line.
        lr: of the surrogate's training and of pre-training.
        weight_decay: of both.
        attack: radius of an attack on each pixel, of 0 to 1, whatever the transform normalises these to; above 0 the
            network is pre-trained and fine-tuned under it, and judged under it too.
        augment: file.py:function, (inputs, generator) -> inputs, for training but never for scoring or the probe.
        dry_run: score and cut; nothing is pre-trained.

    Departures: images have one size throughout, where the paper's grow while it trains. Rates, epochs and decay are
    those of its residual networks, for batches of 1024; the optimiser of the transfers, which is not told, is AdamW
    without decay. A source without classes is pre-trained on its clusters, where the paper takes a MoCo-type loss;
    K-means, which its code leaves to the user, starts from k-means++. The code stores the distances of feature mapping
    under the wrong index; the equation is followed. Adversarial pre-training takes one step from a random start (arXiv
    2001.03994); the judge's attack is FGSM. Of the paper's rivals, `order` has chance alone: GraNd and Moderate, which
    rank examples and not classes, are scores of `secateur prune-data`, and the influence of each class by brute force,
    which takes a pre-training without it, is left out.
    """
    last = transfer.head(subject.model, head)
    classes = len(subject.model.get_parameter(f"{last}.weight".lstrip(".")))
    check(data, classes, mapping=mapping, clusters=clusters, surrogate=surrogate, epochs=surrogate_epochs)
    transferred = bool(transfers.probe_epochs or transfers.tune_epochs)
    learned, held = read_targets(data, target, judged, seed, labelled=transferred)
    pixels = pixels_of(data)
    if attack:
        check_pixels(attack, pixels, data, learned, held)
    moved: Augment | None = plugins.function(augment) if augment else None
    training = training.default(precision="fp32")
    pretraining = training.default(optimizer="sgd", warmup=0.125, schedule="linear")
    ours, validating = data.parts(validation, seed=seed)
    grouped = clusters or (0 if data.labels is not None else classes)

    def vote() -> dict[str, Tensor]:
        if scored and (known := load_votes(scored, run, len(data), len(learned))):
            return known
        model = build_surrogate(surrogate, subject)
        if model is not None:
            check_surrogate(model, data, mapping, classes)
            fit(model, data.take(ours), pretraining, epochs=surrogate_epochs, seed=seed, folder=run.folder("surrogate"))
        return count_votes(model, data, ours, learned, mapping=mapping, clusters=grouped, classes=classes,
                           head=head if surrogate == "self" else "", seed=seed)  # fmt: skip

    counted = run.tensors("votes", vote)
    source = replace(data, labels=counted["classes"], classes=() if grouped else data.classes)
    whole = ExampleSet(source, ours, {"votes": counted["votes"][counted["classes"]]}).plain()
    for budget in budgets:
        chosen = select_classes(whole, counted["votes"], budget, order, seed)
        kept, cut = cut_classes(whole, chosen)
        rest = validating[np.isin(counted["classes"][validating].numpy(), kept.class_numbers)]
        for name, places in (("train", kept.kept), ("validation", rest)):
            if len(places):
                ExampleSet(data, places, kept.scores).save(run.folder(f"subset-{budget}") / name)
        notes = [describe_kept(kept, whole, counted["votes"], len(learned))]
        network, recovery = subject.copy(), None
        if not dry_run:
            recovery = fit(
                network.model, kept.data, pretraining, judged=source.take(rest) if len(rest) else None, augment=moved,
                objective=transfer.classify(network.model, radius=attack, pixels=pixels), seed=seed,
                folder=run.folder(f"pretrain-{budget}"),
            )  # fmt: skip
        if transferred and not dry_run:
            accuracies = run.json(f"transfer-{budget}", partial(
                carry_over, network, last, learned, held, transfers, training, pixels, augment=moved, radius=attack,
                seed=seed, folder=run.folder(f"tuned-{budget}"),
            ))  # fmt: skip
            shutil.rmtree(run.folder(f"tuned-{budget}") / "training", ignore_errors=True)  # its end is known
            shown = ", ".join(f"{name} {100 * value:.1f}%" for name, value in accuracies.items())
            notes.append(f"target, {len(held)} examples that were held out: {shown}")
        yield Result(str(budget), network, cut, dict(chosen.spent), recovery, tuple(notes))


# ---------------------------------------------------------------------------------------------------- what is given


def check(data: Examples, classes: int, *, mapping: str, clusters: int, surrogate: str, epochs: float) -> None:
    """Refuse a source, and options, that contradict one another or the network's `classes` outputs."""
    labels = data.labels
    if labels is not None and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        wrong = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
        raise InputError(
            f"{data.name} has the label {wrong}, the network {classes} outputs: give it one for each class"
        )
    if clusters and not 2 <= clusters <= classes:
        raise InputError(
            f"clusters={clusters}: give 2 to {classes}, the network's outputs, or 0 for the source's classes"
        )
    if mapping == "label" and (labels is None or clusters or surrogate == "inputs"):
        why = f"{data.name} has none" if labels is None else "clusters and surrogate=inputs have none"
        raise InputError(f"mapping=label votes for the source's classes, and {why}: take mapping=feature")
    if labels is None and epochs and surrogate != "inputs":
        raise InputError(f"{data.name} has no classes to train a surrogate on: give one that comes trained, with "
                         "surrogate_epochs=0, or features, with surrogate=inputs")  # fmt: skip


def read_targets(source: Examples, target: str, judged: str, seed: int, *, labelled: bool) -> tuple[Examples, Examples]:
    """(samples that vote and are learned, samples to judge on) of the target; with classes, where they are needed."""
    given = replace(read_as(source, target), stratified=True)
    learned, held = (given, read_as(source, judged).numbered_as(given)) if judged else given.split(0.2, seed=seed)
    for part in (learned, held):
        if part.inputs.shape[1:] != source.inputs.shape[1:]:
            shapes = f"{tuple(part.inputs.shape[1:])}, {source.name} of {tuple(source.inputs.shape[1:])}"
            raise DataError(f"{part.name} holds inputs of shape {shapes}: bring both to one shape")
        if labelled and part.labels is None:
            raise DataError(f"{part.name} has no classes to learn or to judge by: give labels, or only score, with "
                            "probe_epochs=0 and tune_epochs=0")  # fmt: skip
    if labelled and learned.labels is not None and held.labels is not None:
        held.check_names(learned)
        extra = sorted(set(held.labels.tolist()) - set(learned.labels.tolist()))
        if len(only := set(learned.labels.tolist())) < 2:
            raise DataError(f"{learned.name} holds examples of class {only.pop()} alone, which any network is right "
                            "about: give a target of two classes or more")  # fmt: skip
        if extra:
            raise DataError(f"{held.name} is judged on class {extra[0]}, which {learned.name} has no example of: give "
                            "both the same classes")  # fmt: skip
    return learned, held


def read_as(source: Examples, path: str) -> Examples:
    """The examples at `path`, or those that an index there keeps; images become inputs as those of `source` do."""
    found = indices.open_index(path, read_all).data if indices.is_index(path) else examples.read(path)
    if isinstance(found.inputs, Images) and isinstance(source.inputs, Images):
        found = replace(found, inputs=found.inputs.with_transform(source.inputs.transform, source.inputs.workers))
    return examples.limit_as(found, source)


def read_all(source: str, *, text: str, label: str) -> Examples:
    """The data that an index is of, by its array of classes; examples have no column of texts."""
    return examples.read(source, label=label)


def build_surrogate(surrogate: str, subject: Traced) -> nn.Module | None:
    """The surrogate with the weights it comes with; None where the inputs are the features."""
    if surrogate == "inputs":
        return None
    if surrogate == "self":
        return copy.deepcopy(subject.model)
    made = plugins.function(surrogate)()
    model = made[0] if isinstance(made, tuple) and made else made
    if not isinstance(model, nn.Module):
        raise InputError(f"{surrogate} returned {type(model).__name__}: expected a torch.nn.Module")
    return model


def check_surrogate(model: nn.Module, source: Examples, mapping: str, classes: int) -> None:
    """Refuse, before it is trained, a surrogate whose outputs are not the source's classes, where they are asked."""
    if mapping == "label":
        votes.label_votes(ask_logits(model, source.take([0])), classes)


# ---------------------------------------------------------------------------------------------------------- scoring


def load_votes(scored: str, run: Run, count: int, samples: int) -> dict[str, Tensor]:
    """The votes of the run at `scored`, on `count` examples by `samples`. Refuses what is not there or of other data.

    Where only the target or the mapping is another, nothing: its surrogate's last checkpoint goes to `run`, so that
    its training is over.
    """
    work = Path(scored, "work")
    if not Path(scored, "run.yaml").is_file() or not (work / "votes.safetensors").is_file():
        raise InputError(f"scored={scored} holds no votes: give the folder of a run of dp4tl")
    was, now = rundir.read_matching_record(scored, run, SURROGATE), run.settings
    try:
        known = rundir.read_tensors(work / "votes.safetensors")
    except RunError as error:
        raise InputError(f"scored={scored}: {error}") from error
    if other := [key for key in VOTES if was.get(key) != now.get(key)]:
        checkpoint = work / "surrogate" / "training.safetensors"
        if not checkpoint.is_file():
            change = f"{other[0]}={was.get(other[0])}, not {now.get(other[0])}"
            raise InputError(f"scored={scored} has votes with {change}, and no surrogate that was trained: leave "
                             "scored out")  # fmt: skip
        with disk.writing(run.folder("surrogate") / checkpoint.name) as temporary:
            shutil.copyfile(checkpoint, temporary)
        return {}
    votes_there, examples_there = int(known["votes"].sum()), len(known["classes"])
    if examples_there != count or votes_there != samples:
        raise InputError(f"scored={scored} has {votes_there} votes on {examples_there} examples, not {samples} on "
                         f"{count}: its data have changed, so leave scored out")  # fmt: skip
    return known


def count_votes(
    model: nn.Module | None, source: Examples, train: NDArray[np.int64], target: Examples, *, mapping: str,
    clusters: int, classes: int, head: str = "", seed: int = 0,
) -> dict[str, Tensor]:  # fmt: skip
    """Step 2: {"votes": [K], "classes": [N] the class or cluster of each example of the source}.

    train: places of the source's examples of which centres are made; the others belong to the nearest centre.
    """
    if mapping == "label":
        assert model is not None
        assert source.labels is not None
        return {"votes": votes.label_votes(ask_logits(model, target), classes), "classes": source.labels}
    layer = "" if model is None else transfer.head(model, head)
    seen = features(model, source, layer)
    if clusters:
        centres, _ = votes.kmeans(seen[train], clusters, seed=seed)
        labels = votes.nearest(seen, centres)
    else:
        assert source.labels is not None
        labels = source.labels
        centres = votes.class_means(seen[train], labels[train], classes)
    return {"votes": votes.feature_votes(features(model, target, layer), centres), "classes": labels}


def inputs_of(data: Examples) -> Iterator[Tensor]:
    """The inputs, some at a time."""
    return (part["inputs"] for part in data.in_order(256))


def ask_logits(model: nn.Module, data: Examples) -> Tensor:
    """Logits [N, C] in evaluation mode, in the order of the examples."""
    return rehearsal.glance(model, lambda part: objectives.logits(model(part["inputs"])), data.in_order(256))["logits"]


def features(model: nn.Module | None, data: Examples, layer: str) -> Tensor:
    """[N, d] what enters `layer` of the model, the mean over places where there are any; without a model the inputs."""
    if model is None:
        return torch.cat([part.flatten(1).float() for part in inputs_of(data)])
    rows: list[Tensor] = []
    hooks.stream(
        lambda part: model(part["inputs"]), model, data.in_order(256),
        {(layer, "input"): lambda x, _: rows.append(x.mean(1))},
    )  # fmt: skip
    return torch.cat(rows)


def select_classes(whole: ExampleSet, counted: Tensor, budget: Budget, order: str, seed: int) -> Selection:
    """Step 3: the classes of `whole` that stay, by their votes [K], the other way round, or at random."""
    units = whole.units("classes")
    site = replace(units["classes"], cost={"classes": np.ones(units["classes"].count)})
    units = replace(units, sites={**units.sites, "classes": site})
    scores: Scores = {"classes": counted[torch.from_numpy(whole.class_numbers)].double().numpy()}
    if order == "reverse":
        scores = {"classes": -scores["classes"]}
    if order == "random":
        scores = random.scores(units, seed)
    return ranking.by_budget(units, scores, budget)


def cut_classes(whole: ExampleSet, chosen: Selection) -> tuple[ExampleSet, Cut]:
    """What stays, and the receipt with the number of classes beside what the examples cost."""
    kept, cut = whole.cut(chosen)
    before, after = ({"classes": float(len(part.class_numbers))} for part in (whole, kept))
    return kept, replace(cut, before={**cut.before, **before}, after={**cut.after, **after})


def describe_kept(kept: ExampleSet, whole: ExampleSet, counted: Tensor, samples: int) -> str:
    """What stays, and which share of the classes no sample voted for."""
    present = counted[torch.from_numpy(whole.class_numbers)]
    known = whole.source.classes
    names = [known[number] if known else str(number) for number in kept.class_numbers.tolist()]
    listed = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return (
        f"{int((present == 0).sum())} of {len(present)} classes got none of {samples} votes; {len(names)} stay: "
        f"{listed}; {len(kept)} of {len(whole)} examples"
    )


# -------------------------------------------------------------------------------------------------------- transfer


def pixels_of(data: Examples) -> transfer.Pixels:
    """How inputs come from pixels between 0 and 1: as the transform of images normalises them, or as they are."""
    known = data.inputs.normalisation if isinstance(data.inputs, Images) else None
    return transfer.Pixels() if known is None else transfer.Pixels(*known)


def check_pixels(radius: float, pixels: transfer.Pixels, *parts: Examples) -> None:
    """Refuse inputs that come from no pixels; images are not read, but for those of a user's own transform."""
    for data in parts:
        if isinstance(data.inputs, Images) and data.inputs.normalisation is not None:
            continue
        if any(float((pixels.clip(part) - part).abs().max()) > 1e-5 for part in inputs_of(data)):
            told = f", of mean {pixels.mean} and std {pixels.std}" if pixels.std else ""
            raise InputError(
                f"attack={radius} moves pixels between 0 and 1{told}, and {data.name} holds other inputs: give images "
                "with a transform that normalises them, such as --transform imagenet, or leave it out"
            )


def carry_over(
    network: Traced,
    last: str,
    learned: Examples,
    held: Examples,
    transfers: Transfers,
    training: Training,
    pixels: transfer.Pixels,
    *,
    augment: Augment | None = None,
    radius: float = 0.0,
    seed: int = 0,
    folder: Path,
) -> dict[str, float]:
    """Step 5: name of a transfer -> accuracy on `held`. folder: of what was fine-tuned, and of its checkpoint."""
    assert learned.labels is not None
    classes, accuracies = int(learned.labels.max()) + 1, dict[str, float]()
    adamw = "adamw" if training.optimizer == "sgd" else training.optimizer or "adamw"
    training = replace(training, optimizer=adamw, weight_decay=0.0, warmup=0.0, schedule="cosine")
    probing = replace(training, epochs=transfers.probe_epochs, lr=transfers.probe_lr)
    tuning = replace(training, epochs=transfers.tune_epochs, lr=transfers.tune_lr)

    def judge(name: str, model: nn.Module) -> None:
        accuracies[name] = float(mark_correct(model, held).mean())
        if radius:
            against = transfer.fgsm(model, radius, pixels)
            accuracies[f"{name}, attacked"] = float(mark_correct(model, held, attack=against).mean())

    if probing.epochs:
        model = transfer.with_head(network.model, last, classes, seed=seed)
        seen = replace(learned, inputs=features(network.model, learned, last))
        fit(model.get_submodule(last), seen, probing, seed=seed)
        judge("linear probe", model)
    if tuning.epochs:
        model = transfer.with_head(network.model, last, classes, seed=seed)
        objective = transfer.classify(model, radius=radius, pixels=pixels)
        fit(model, learned, tuning, objective=objective, augment=augment, seed=seed, folder=folder / "training")
        judge("full fine-tuning", model)
        Traced(model, network.inputs).save(folder)
    return accuracies
