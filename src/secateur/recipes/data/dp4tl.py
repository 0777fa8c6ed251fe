"""DP4TL: the classes or clusters of a source on which a target's samples land are enough to pre-train on.

Zhang et al., "Selectivity Drives Productivity: Efficient Dataset Pruning for Enhanced Transfer Learning", NeurIPS 2023
(arXiv 2310.08782).
"""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secateur._utils import disk, plugins, rundir
from secateur._utils.modes import evaluating
from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.data.examples import Examples
from secateur.errors import DataError, InputError, RunError
from secateur.measure import quality
from secateur.recover.training import detecting, loop, objectives, rehearsal, transfer
from secateur.score import hooks, random, votes
from secateur.select import ranking
from secateur.subjects.dataset.examples import ExampleSet
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget, Cut, Recovery, Result, Scores, Selection

CARD = {
    "title": "DP4TL: data set pruning for transfer learning",
    "paper": "https://arxiv.org/abs/2310.08782",
    "cuts": "whole classes, or clusters, of the data that a network is pre-trained on",
    "recovers": "pre-training on what stays, then a linear probe and full fine-tuning on the target",
    "extra": "",
    "family": "data",
}

Augment = Callable[[Tensor, np.random.Generator], Tensor]
"""(inputs [B, ...], generator) -> inputs: drawn anew for each batch and epoch."""

SURROGATE = ("recipe", "data_sha256", "held_out_sha256", "model_sha256", "seed", "batch", "surrogate", "head",
             "validation", "surrogate_epochs", "lr", "weight_decay", "training")  # fmt: skip
"""Settings of a run by which its surrogate is what it is."""
VOTES = ("target", "judged", "mapping", "clusters")
"""Further settings by which its votes are."""


def dp4tl(
    subject: Traced,
    data: Examples,
    budgets: Sequence[Budget],
    run: Run,
    *,
    target: str,
    judged: str = "",
    batch: int = 64,
    seed: int = 0,
    surrogate: str = "self",
    scored: str = "",
    mapping: Literal["label", "feature"] = "label",
    clusters: int = 0,
    order: Literal["votes", "reverse", "random"] = "votes",
    head: str = "",
    validation: float = 0.1,
    surrogate_epochs: float = 16.0,
    epochs: float = 16.0,
    lr: float = 0.1,
    weight_decay: float = 5e-5,
    probe_epochs: float = 50.0,
    probe_lr: float = 0.01,
    tune_epochs: float = 200.0,
    tune_lr: float = 1e-4,
    attack: float = 0.0,
    augment: str = "",
    training: str | Sequence[str] = "",
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
        target: examples of the target task, as `data` is given; their classes are needed for step 5.
        judged: examples of the target to judge on; a fifth of `target` is held out unless given.
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
        probe_epochs: of the linear probe; 0 leaves it out.
        probe_lr: its rate, with a cosine, as that of fine-tuning.
        tune_epochs: of full fine-tuning; 0 leaves it out.
        tune_lr: its rate.
        attack: radius of an attack on each value of an input; above 0 the network is pre-trained and fine-tuned under
            it, and judged under it too.
        augment: file.py:function, (inputs, generator) -> inputs, for training but never for scoring or the probe.
        training: more settings of the training loop, such as accumulate=4,precision=bf16.
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
    check_numbers(batch=batch, surrogate_epochs=surrogate_epochs, epochs=epochs, lr=lr, weight_decay=weight_decay,
                  probe_epochs=probe_epochs, probe_lr=probe_lr, tune_epochs=tune_epochs, tune_lr=tune_lr)  # fmt: skip
    last = transfer.head(subject.model, head)
    classes = len(subject.model.get_parameter(f"{last}.weight".lstrip(".")))
    check(data, classes, mapping=mapping, clusters=clusters, surrogate=surrogate, epochs=surrogate_epochs,
          attack=attack, validation=validation)  # fmt: skip
    taught, held = targets(data, target, judged, seed, labelled=bool(probe_epochs or tune_epochs))
    moved: Augment | None = plugins.function(augment) if augment else None
    train = partial(fit, batch=batch, seed=seed, training=training)
    pretrain = partial(train, lr=lr, optimizer="sgd", weight_decay=weight_decay, warmup=0.125, schedule="linear")
    ours, validating = data.parts(validation, seed=seed)
    grouped = clusters or (0 if data.labels is not None else classes)

    def score() -> dict[str, Tensor]:
        if scored and (known := before(scored, run, len(data), len(taught))):
            return known
        model = built(surrogate, subject)
        if model is not None:
            pretrain(model, data.take(ours), epochs=surrogate_epochs, checkpoint=run.folder("surrogate"))
        return vote(model, data, ours, taught, mapping=mapping, clusters=grouped, classes=classes,
                    head=head if surrogate == "self" else "", seed=seed)  # fmt: skip

    counted = run.tensors("votes", score)
    source = replace(data, labels=counted["classes"], classes=() if grouped else data.classes)
    whole = ExampleSet(source, ours, {"votes": counted["votes"][counted["classes"]]}).plain()
    for budget in budgets:
        chosen = select(whole, counted["votes"], budget, order, seed)
        kept, cut = cutting(whole, chosen)
        rest = validating[np.isin(counted["classes"][validating].numpy(), kept.class_numbers)]
        export(data, {"train": kept.kept, "validation": rest}, kept.scores, run.folder(f"subset-{budget}"))
        notes = [told(kept, whole, counted["votes"], len(taught))]
        network, recovery = subject.copy(), None
        if not dry_run:
            recovery = pretrain(
                network.model, kept.data, epochs=epochs, radius=attack, augment=moved,
                judged=source.take(rest) if len(rest) else None, checkpoint=run.folder(f"pretrain-{budget}"),
            )  # fmt: skip
        if not dry_run and (probe_epochs or tune_epochs):
            found = run.json(f"transfer-{budget}", partial(
                carried, network, last, taught, held, partial(train, optimizer="adamw", augment=moved),
                probe=(probe_epochs, probe_lr), tune=(tune_epochs, tune_lr), radius=attack, seed=seed,
                folder=run.folder(f"tuned-{budget}"),
            ))  # fmt: skip
            notes.append(f"target, {len(held)} examples that were held out: {shown(found)}")
        yield Result(str(budget), network, cut, dict(chosen.spent), recovery, tuple(notes))


# ---------------------------------------------------------------------------------------------------- what is given


def check(
    data: Examples, classes: int, *, mapping: str, clusters: int, surrogate: str, epochs: float, attack: float,
    validation: float,
) -> None:  # fmt: skip
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
    if not 0 <= attack < 1:
        raise InputError(f"attack={attack}: give a radius of at least 0 and below 1")
    if attack and not 0 <= float(data.inputs.min()) <= float(data.inputs.max()) <= 1:
        raise InputError(f"attack={attack} moves inputs between 0 and 1, and {data.name} has others: leave it out")
    if not 0 < validation < 1:
        raise InputError(f"validation={validation}: give a share of the source between 0 and 1")


def check_numbers(*, batch: int, **others: float) -> None:
    """Refuse numbers that training would refuse: some of them only after hours of pre-training."""
    if batch < 1:
        raise InputError(f"batch={batch}: give a whole number of at least 1")
    for name, value in others.items():
        if not 0 <= value < math.inf:
            raise InputError(f"{name}={value:g}: give a number of at least 0")


def targets(source: Examples, target: str, judged: str, seed: int, *, labelled: bool) -> tuple[Examples, Examples]:
    """(samples that vote and are learned, samples to judge on) of the target; with classes, where they are needed."""
    aim = examples.read(target)
    taught, held = (aim, examples.read(judged)) if judged else aim.split(0.2, seed=seed)
    for one in (taught, held):
        if one.inputs.shape[1:] != source.inputs.shape[1:]:
            shapes = f"{tuple(one.inputs.shape[1:])}, {source.name} of {tuple(source.inputs.shape[1:])}"
            raise DataError(f"{one.name} holds inputs of shape {shapes}: bring both to one shape")
        if labelled and one.labels is None:
            raise DataError(f"{one.name} has no classes to learn or to judge by: give labels, or only score, with "
                            "probe_epochs=0 and tune_epochs=0")  # fmt: skip
    if labelled and taught.labels is not None and held.labels is not None:
        extra = sorted(set(held.labels.tolist()) - set(taught.labels.tolist()))
        if len(only := set(taught.labels.tolist())) < 2:
            raise DataError(f"{taught.name} holds examples of class {only.pop()} alone, which any network is right "
                            "about: give a target of two classes or more")  # fmt: skip
        if extra:
            raise DataError(f"{held.name} is judged on class {extra[0]}, which {taught.name} has no example of: give "
                            "both the same classes")  # fmt: skip
    return taught, held


def built(surrogate: str, subject: Traced) -> nn.Module | None:
    """The surrogate with the weights it comes with; None where the inputs are the features."""
    if surrogate == "inputs":
        return None
    if surrogate == "self":
        return copy.deepcopy(subject.model)
    found = plugins.function(surrogate)()
    model = found[0] if isinstance(found, tuple) and found else found
    if not isinstance(model, nn.Module):
        raise InputError(f"{surrogate} returned {type(model).__name__}: expected a torch.nn.Module")
    return model


# ---------------------------------------------------------------------------------------------------------- scoring


def before(scored: str, run: Run, count: int, samples: int) -> dict[str, Tensor]:
    """The votes of the run at `scored`, on `count` examples by `samples`. Refuses what is not there or of other data.

    Where only the target or the mapping is another, nothing: its surrogate's last checkpoint goes to `run`, so that
    its training is over.
    """
    work = Path(scored, "work")
    if not Path(scored, "run.yaml").is_file() or not (work / "votes.safetensors").is_file():
        raise InputError(f"scored={scored} holds no votes: give the folder of a run of dp4tl")
    was, now = rundir.agreeing(scored, run, SURROGATE), run.settings
    try:
        found = rundir.stored(work / "votes.safetensors")
    except RunError as error:
        raise InputError(f"scored={scored}: {error}") from error
    if other := [key for key in VOTES if was.get(key) != now.get(key)]:
        checkpoint = work / "surrogate" / "training.safetensors"
        if not checkpoint.is_file():
            told = f"{other[0]}={was.get(other[0])}, not {now.get(other[0])}, and no surrogate that was trained"
            raise InputError(f"scored={scored} has votes with {told}: leave scored out")
        with disk.writing(run.folder("surrogate") / checkpoint.name) as temporary:
            shutil.copyfile(checkpoint, temporary)
        return {}
    if len(found["classes"]) != count or int(found["votes"].sum()) != samples:
        raise InputError(f"scored={scored} has {int(found['votes'].sum())} votes on {len(found['classes'])} examples, "
                         f"not {samples} on {count}: its data have changed, so leave scored out")  # fmt: skip
    return found


def vote(
    model: nn.Module | None, source: Examples, train: NDArray[np.int64], target: Examples, *, mapping: str,
    clusters: int, classes: int, head: str = "", seed: int = 0,
) -> dict[str, Tensor]:  # fmt: skip
    """Step 2: {"votes": [K], "classes": [N] the class or cluster of each example of the source}.

    train: places of the source's examples of which centres are made; the others belong to the nearest centre.
    """
    if mapping == "label":
        assert model is not None
        assert source.labels is not None
        return {"votes": votes.label_votes(answers(model, target), classes), "classes": source.labels}
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


def answers(model: nn.Module, data: Examples) -> Tensor:
    """Logits [N, C] in evaluation mode, in the order of the examples."""
    return rehearsal.glance(model, lambda part: objectives.logits(model(part["inputs"])), data.in_order(256))["logits"]


def features(model: nn.Module | None, data: Examples, layer: str) -> Tensor:
    """[N, d] what enters `layer` of the model, the mean over places where there are any; without a model the inputs."""
    if model is None:
        return data.inputs.flatten(1).float()
    rows: list[Tensor] = []
    hooks.stream(
        lambda part: model(part["inputs"]), model, data.in_order(256),
        {(layer, "input"): lambda x, _: rows.append(x.mean(1))},
    )  # fmt: skip
    return torch.cat(rows)


def select(whole: ExampleSet, counted: Tensor, budget: Budget, order: str, seed: int) -> Selection:
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


def cutting(whole: ExampleSet, chosen: Selection) -> tuple[ExampleSet, Cut]:
    """What stays, and the receipt with the number of classes beside what the examples cost."""
    kept, cut = whole.cut(chosen)
    before, after = ({"classes": float(len(one.class_numbers))} for one in (whole, kept))
    return kept, replace(cut, before={**cut.before, **before}, after={**cut.after, **after})


def export(
    data: Examples, places: Mapping[str, NDArray[np.int64]], scores: Mapping[str, NDArray[np.float32]], folder: Path
) -> None:
    """Write `folder`/NAME/index.npz for each part that holds anything."""
    for name, kept in places.items():
        if len(kept):
            ExampleSet(data, kept, scores).save(folder / name)


def told(kept: ExampleSet, whole: ExampleSet, counted: Tensor, samples: int) -> str:
    """What stays, and which share of the classes no sample voted for."""
    present = counted[torch.from_numpy(whole.class_numbers)]
    names = [whole.source.classes[one] if whole.source.classes else str(one) for one in kept.class_numbers.tolist()]
    listed = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return (
        f"{int((present == 0).sum())} of {len(present)} classes got none of {samples} votes; {len(names)} stay: "
        f"{listed}; {len(kept)} of {len(whole)} examples"
    )


# --------------------------------------------------------------------------------------------------------- training


def fit(
    model: nn.Module, data: Examples, *, epochs: float, lr: float, optimizer: str, batch: int = 64, seed: int = 0,
    weight_decay: float = 0.0, warmup: float = 0.0, schedule: str = "cosine", radius: float = 0.0,
    augment: Augment | None = None, judged: Examples | None = None, checkpoint: Path | None = None,
    training: str | Sequence[str] = "",
) -> Recovery | None:  # fmt: skip
    """Train `model` in place on the classes of `data`; None for no epochs. judged: its error is noted by the epoch."""
    further = {"clip": None, "precision": "fp32", **loop.options(training)}
    feed = examples.batches(data, batch=batch, seed=seed, augment=augment)
    epoch = len(feed) / further.get("accumulate", 1)
    if not (steps := detecting.steps(epoch, epochs)):
        return None
    watch = {} if judged is None else {
        "evaluate": lambda: 1.0 - accuracy(model, judged), "evaluate_every": max(1, round(epoch)),
    }  # fmt: skip
    return loop.train(
        model, feed, transfer.classify(model, radius=radius), steps=steps, lr=lr, optimizer=optimizer, warmup=warmup,
        schedule=schedule, weight_decay=weight_decay, seed=seed, count=examples.count, checkpoint=checkpoint,
        **{"every": max(100, round(epoch)), **watch, **further},
    )  # fmt: skip


def accuracy(model: nn.Module, data: Examples) -> float:
    """Share of right classes in evaluation mode."""
    with evaluating(model):
        return quality.accuracy(lambda part: objectives.logits(model(part["inputs"])), data.in_order(256)).value


def attacked(model: nn.Module, data: Examples, radius: float) -> Examples:
    """The examples, each value moved by `radius` against the model in evaluation mode: FGSM."""
    with evaluating(model):
        moved = [
            transfer.attacked(partial(transfer.loss, model, part["labels"]), part["inputs"], radius)
            for part in data.in_order(256)
        ]
    return replace(data, inputs=torch.cat(moved))


def carried(
    network: Traced, last: str, taught: Examples, held: Examples, train: Callable[..., Recovery | None], *,
    probe: tuple[float, float], tune: tuple[float, float], radius: float = 0.0, seed: int = 0,
    folder: Path | None = None,
) -> dict[str, float]:  # fmt: skip
    """Step 5: name of a transfer -> accuracy on `held`. probe, tune: (epochs, rate); folder: of what was fine-tuned."""
    assert taught.labels is not None
    classes, found = int(taught.labels.max()) + 1, dict[str, float]()

    def judge(name: str, model: nn.Module) -> None:
        found[name] = accuracy(model, held)
        if radius:
            found[f"{name}, attacked"] = accuracy(model, attacked(model, held, radius))

    if probe[0]:
        model = transfer.with_head(network.model, last, classes, seed=seed)
        seen = replace(taught, inputs=features(network.model, taught, last))
        train(model.get_submodule(last), seen, epochs=probe[0], lr=probe[1], augment=None)
        judge("linear probe", model)
    if tune[0]:
        model = transfer.with_head(network.model, last, classes, seed=seed)
        train(model, taught, epochs=tune[0], lr=tune[1], radius=radius)
        judge("full fine-tuning", model)
        if folder is not None:
            Traced(model, network.inputs).save(folder)
    return found


def shown(found: Mapping[str, float]) -> str:
    """Accuracies in words."""
    return ", ".join(f"{name} {100 * value:.1f}%" for name, value in found.items())
