"""YOLOv8, pruned on the scales of its batch norms and taught channel by channel, for small objects on small devices.

"A Novel Compression Framework for YOLOv8" (arXiv 2509.12918); the distillation is that of Shu et al., ICCV 2021
(arXiv 2011.13256).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor

from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.data.examples import Examples
from secateur.errors import InputError
from secateur.measure import detection
from secateur.recover.distillation import maps
from secateur.recover.distillation.taps import Adapters, seen
from secateur.recover.sparsity import slimming
from secateur.recover.training import detecting, loop, records
from secateur.score import scales
from secateur.select import limits, ranking, thresholds
from secateur.subjects.network import detectors
from secateur.subjects.network.detectors import Detector
from secateur.subjects.network.traced import CutError, Traced
from secateur.vocabulary import Budget, Cut, Recovery, Result, Selection, Units

CARD = {
    "title": "A Novel Compression Framework for YOLOv8: sparsity, channel pruning, channel-wise distillation",
    "paper": "https://arxiv.org/abs/2509.12918",
    "cuts": "channels of a detector, the same share of every layer, by the scales of batch norms",
    "recovers": "fine-tuning, then channel-wise distillation of the neck's maps, the finer ones first",
    "extra": "detect",
    "family": "vision",
}


def yolov8_cwd(
    subject: Traced,
    data: Examples,
    budgets: Sequence[Budget],
    run: Run,
    *,
    batch: int = 16,
    seed: int = 0,
    sparse_epochs: float = 100.0,
    rate: float = 1e-3,
    schedule: Literal["decay", "rise", "constant"] = "decay",
    bias_rate: float = 0.0,
    scope: Literal["local", "global"] = "local",
    multiple: int = 1,
    least: int = 8,
    finetune_epochs: float = 100.0,
    distil_epochs: float = 100.0,
    lr: float = 1e-3,
    weight_decay: float = 5e-4,
    temperature: float = 2.0,
    weights: Sequence[float] = (1.0, 0.75, 0.5),
    alpha: float | None = None,
    layers: Sequence[str] = (),
    focus: bool = False,
    outputs: bool = False,
    softness: float = 3.0,
    lambdas: Sequence[float] = (0.001, 0.001),
    training: str | Sequence[str] = "",
    dry_run: bool = False,
) -> Iterator[Result]:
    """Push batch-norm scales to zero, cut the same share of every layer, fine-tune, distil channel by channel.

    1. The detector as it is given is the teacher, and stays.
    2. Sparsity training of a copy: L_det + lambda(e) sum |gamma|, lambda(e) = lambda_0 (1 - 0.9 e / E).
    3. Importance of a channel is |gamma|, the mean of it where a shortcut joins layers; each half of a split, and each
       joined set of layers, is a site of its own, and of each the same share goes.
    4. A real cut, proved against the silenced network.
    5. Fine-tuning without the penalty; the cut module itself is trained, never built anew.
    6. Distillation: L_det + alpha sum_s w_s L_cwd_s at the neck's maps, finest first; softmaxes over space at a
       temperature. Maps of other widths pass 1 x 1 convolutions, which are trained along and left out of the result.

    Each stage goes on from the last one's files in the run directory; keep-BUDGET.json there says what stayed where.

    Args:
        subject: a trained detector: torchvision's, Ultralytics' (AGPL-3.0), or a module with loss, detect, features.
        data: images and boxes like those the detector was trained on.
        budgets: one student for each; channels=50% halves every layer.
        run: where checkpoints, kept indices and the weight of distillation go.
        batch: images per step, and of the timed environment.
        seed: of batches and training.
        sparse_epochs: of sparsity training; 0 ranks the detector's own scales.
        rate: lambda_0.
        schedule: decay as in the formula, rise as in the paper's text, or constant.
        bias_rate: the same for the biases of batch norms, constant; public code takes 1e-2.
        scope: local takes the same share of every layer; global ranks all layers together, as a baseline.
        multiple: kept channels are multiples of this; 8 runs well on most hardware.
        least: channels of a layer that stay at least, or all of fewer.
        finetune_epochs: without distillation, after the cut.
        distil_epochs: with it, after those.
        lr: peak learning rate of all three trainings, each with a cosine.
        weight_decay: of AdamW.
        temperature: tau of the softmaxes over space; the paper tunes it.
        weights: w_s, finest map first; the last holds for all further maps.
        alpha: weight of the distillation; by default what makes it as large as L_det at its first step.
        layers: modules whose maps are distilled; by default those that the heads read.
        focus: let the cells of small and medium boxes count more; which those are is told by the data's sizes.
        outputs: learn from the teacher's classes (soft, at all anchors) and boxes (where it is sure) too; of two stages
            at the regions that the teacher proposes. A module of your own needs predictions(images) -> (boxes
            [B, N, 4], logits of classes [B, N, K]).
        softness: temperature of those classes.
        lambdas: weights of those classes and boxes, as published for YOLOv4.
        training: more settings of the training loop, such as accumulate=4,precision=bf16.
        dry_run: stop after the cut; nothing is trained.

    Departures: lambda_0, the epochs of sparsity training, tau, w_s, alpha and the tapped layers are not in the text
    that could be read; the values here are this project's, lambda_0 that of public code. AdamW in place of SGD. Where a
    budget is not in channels, the one share is the smallest that meets it. Layers without a batch norm stay whole. The
    paper's TensorRT step is the export of the result, to a torch.export program or ONNX. The paper learns from no
    outputs.
    """
    subject, further = detectors.opened(subject), loop.options(training)
    check(subject, budgets, multiple, least, layers, weights, temperature, data.inputs[:1])
    if outputs:
        detectors.learnable(subject.model, data.inputs[:1], lambdas, softness=softness)
    feed = examples.batches(data, batch=batch, seed=seed)
    epochs = partial(detecting.steps, len(feed) / further.get("accumulate", 1))
    train: Callable[..., Recovery] = partial(
        loop.train, lr=lr, weight_decay=weight_decay, seed=seed, count=examples.count,
        **({"precision": "fp32", "clip": None} | further),
    )  # fmt: skip

    sparse, pressed = subject.copy(), None
    if not dry_run:
        with torch.random.fork_rng(devices=[]):  # what can't be cut after all shows before anything is trained
            for budget in budgets:
                halve(sparse, budget, scope, least, multiple)
    if sparse_epochs and not dry_run:
        count = epochs(sparse_epochs)
        numbered = slimming.Numbered(feed, count * further.get("accumulate", 1))
        pressed = train(
            sparse.model, numbered, pressure(sparse, rate, schedule, bias_rate), steps=count,
            checkpoint=run.folder("sparse"), title="sparsity",
        )  # fmt: skip
    run.json("scales", lambda: {"before": histogram(subject), "after": histogram(sparse)})

    for budget in budgets:
        student, cut, selection, notes = halve(sparse, budget, scope, least, multiple)
        run.json(f"keep-{budget}", partial(audit, selection))
        tuned = taught = None
        if not dry_run and finetune_epochs:
            tuned = train(
                student.model, feed, detecting.press(cast(Detector, student.model).loss), steps=epochs(finetune_epochs),
                checkpoint=run.folder(f"finetune-{budget}"), title="fine-tuning",
            )  # fmt: skip
        if not dry_run and distil_epochs:
            make, adapters = distillation(student, subject, data, layers, temperature, weights, focus, seed)
            asked = partial(detecting.ratio, make(1.0), feed[0], student.model)
            weight = run.json(f"alpha-{budget}", asked) if alpha is None else alpha
            objective = make(weight)
            if outputs:
                objective = detecting.answering(
                    objective, student.model, subject.model, temperature=softness, weights=lambdas
                )
            taught = train(
                student.model, feed, objective, steps=epochs(distil_epochs), extra=[adapters],
                frozen=[subject.model], checkpoint=run.folder(f"distil-{budget}"), title="distillation",
            )  # fmt: skip
        yield Result(str(budget), student, cut, selection.spent, records.together(pressed, tuned, taught), notes)


def check(
    subject: Traced, budgets: Sequence[Budget], multiple: int, least: int, layers: Sequence[str],
    weights: Sequence[float], temperature: float, image: Tensor,
) -> None:  # fmt: skip
    """Refuse before anything is trained what would be refused after it: budgets, layers, weights, temperature."""
    units, scores, _ = ranked(subject, multiple)
    if not scores:
        scales.prunable(subject.model, subject.slices())  # says that nothing is there to rank
    lowest = ranking.fewest(units, dict.fromkeys(units, least)).spent
    for budget in budgets:
        limits.limits_of_cut(budget, units.cost(), lowest, f"lower least={least}")
    if not weights:
        raise InputError("weights are empty: give one for each map, the finest first; the last holds for all further")
    if not temperature > 0:
        raise InputError(f"temperature={temperature}: give a number above 0")
    if layers:
        seen(subject.model, tuple(layers), image, maps.flat)


def pressure(subject: Traced, rate: float, schedule: slimming.Schedule, bias_rate: float) -> detecting.Objective:
    """Step 2: the detector's loss, and the penalty on the scales that may go (and, at `bias_rate`, on their biases)."""
    found = scales.prunable(subject.model, subject.slices())
    norms = {id(m.weight): m for m in subject.model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)}
    biases: list[Tensor] = [norms[id(gamma)].bias for gamma, _ in found] if bias_rate else []

    def rates(done: float) -> list[Tensor]:
        now = slimming.rate(done, initial=rate, schedule=schedule)
        each = [inside.to(gamma) * now for gamma, inside in found]
        return each + [inside.to(gamma) * bias_rate for gamma, inside in found] if bias_rate else each

    return detecting.press(cast(Detector, subject.model).loss, [gamma for gamma, _ in found] + biases, rates)


def histogram(subject: Traced) -> dict[str, Any]:
    """How many scales that may go have which size: 20 bins of |gamma|, and the share below 1 % of the largest."""
    free = scales.prunable(subject.model, subject.slices())
    found = torch.cat([gamma.detach().cpu().abs()[inside] for gamma, inside in free])
    counts, edges = torch.histogram(found.float(), 20)
    near = float((found < 0.01 * found.max()).float().mean())
    return {"counts": counts.tolist(), "edges": edges.tolist(), "near_zero": near, "scales": len(found)}


def halve(
    subject: Traced, budget: Budget, scope: str, least: int, multiple: int
) -> tuple[Traced, Cut, Selection, tuple[str, ...]]:
    """Steps 3 and 4: the smaller detector, its receipt, what stays, and a note on layers without a batch norm.

    What can't be cut after all (see `CutError`) stays whole, and the choice is made anew.
    """
    while True:
        units, scores, absent = ranked(subject, multiple)
        selection = select(units, scores, budget, scope, least)
        try:
            student, cut = subject.cut(selection)
        except CutError as error:
            subject.without(error.fault, selection)
            continue
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        return student, cut, selection, (f"stays: {', '.join(absent[:3])}{more}: has no batch norm",) if absent else ()


def ranked(subject: Traced, multiple: int) -> tuple[Units, dict[str, Tensor], list[str]]:
    """Step 3: what may go, site -> |gamma| of each unit, and the sites without a batch norm, which stay whole."""
    members = scales.members(subject.model, subject.slices())
    scores = {site: torch.stack(list(row.values())).mean(0) for site, row in members.items()}
    units = subject.units(multiple=multiple)
    absent = [site for site in units if site not in scores]
    frozen = {name: replace(site, frozen=site.frozen or name in absent) for name, site in units.sites.items()}
    return replace(units, sites=frozen), scores, absent


def audit(selection: Selection) -> dict[str, list[int]]:
    """Site -> indices of the units that stay."""
    return {site: torch.as_tensor(mask).nonzero().flatten().tolist() for site, mask in selection.keep.items()}


def select(units: Units, scores: Mapping[str, Tensor], budget: Budget, scope: str, least: int) -> Selection:
    """Step 3: what stays, under the budget."""
    if scope == "local":
        return thresholds.uniform(units, scores, budget, least=least)
    floors = {
        name: replace(site, minimum=max(site.minimum, min(least, site.count))) for name, site in units.sites.items()
    }
    return ranking.by_budget(replace(units, sites=floors), scores, budget, scope="global")


def distillation(
    student: Traced,
    teacher: Traced,
    data: Examples,
    layers: Sequence[str],
    temperature: float,
    weights: Sequence[float],
    focus: bool,
    seed: int,
) -> tuple[Callable[[float], detecting.Objective], Adapters]:
    """Step 6: from alpha to the objective, and the 1 x 1 convolutions that it trains along."""
    detector, original = cast(Detector, student.model), cast(Detector, teacher.model)
    taps = tuple(layers) or tuple(original.taps)
    ask: Callable[[Tensor], Any] = teacher.model if layers else original.features
    widths = [
        [found.shape[1] for found in seen(one.model, taps, data.inputs[:1], maps.flat)] for one in (student, teacher)
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapters = Adapters(*widths)

    def compare(ours: list[Tensor], theirs: list[Tensor], batch: Mapping[str, Any]) -> Tensor:
        total = ours[0].new_zeros(())
        for place, (one, other) in enumerate(zip(adapters(ours), theirs, strict=True)):
            near = None
            if focus:
                shape, image = (other.shape[2], other.shape[3]), (batch["inputs"].shape[2], batch["inputs"].shape[3])
                sizes = detection.squares(data.sizes or detection.SIZES, image)
                near = maps.box_weights(batch["targets"], shape, image, sizes=sizes).to(other)
            weight = weights[min(place, len(weights) - 1)]
            total = total + weight * maps.channel_wise(one, other, temperature=temperature, weights=near)
        return total

    def make(alpha: float) -> detecting.Objective:
        return detecting.follow(student.model, detector.loss, ask, teacher.model, taps, compare, weight=alpha)

    return make, adapters
