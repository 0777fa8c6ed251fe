"""YOLOv8 pruned by the scales of its batch norms and recovered by channel-wise distillation.

"A Novel Compression Framework for YOLOv8" (arXiv 2509.12918); the distillation is that of Shu et al., ICCV 2021
(arXiv 2011.13256).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal, cast

import torch
from annotated_types import Gt
from torch import Tensor

from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.data.examples import Examples
from secateur.errors import InputError
from secateur.measure import detection
from secateur.methods.cutting import cut_with_retries
from secateur.methods.detector_classes import open_with_boxes
from secateur.methods.detector_stages import Answers, DetectorStages
from secateur.recover.distillation import maps
from secateur.recover.distillation.taps import Adapters, look_at
from secateur.recover.sparsity import slimming
from secateur.recover.training import detecting, records
from secateur.recover.training.compose import Objective
from secateur.score import scales
from secateur.select import limits, ranking, thresholds
from secateur.subjects.network import detectors
from secateur.subjects.network.detectors import Detector
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget, Cut, Result, Selection, Training, Units

CARD = {
    "title": "A Novel Compression Framework for YOLOv8: sparsity, channel pruning, channel-wise distillation",
    "paper": "https://arxiv.org/abs/2509.12918",
    "cuts": "channels of a detector, the same share of every layer, by the scales of batch norms",
    "recovers": "fine-tuning, then channel-wise distillation of the neck's maps, the finer ones first",
    "extra": "detect",
    "family": "vision",
}


@dataclass(frozen=True, slots=True)
class Penalty:
    """How strongly sparsity training pulls the constants of batch norms towards zero."""

    rate: float = 1e-3
    """lambda_0."""
    schedule: Literal["decay", "rise", "constant"] = "decay"
    """Of lambda: decay as in the formula, rise as in the paper's text, or constant."""
    bias_rate: float = 0.0
    """The same for the biases of batch norms, constant; public code takes 1e-2."""


@dataclass(frozen=True, slots=True)
class ChannelWise:
    """Which maps are distilled, and how they count."""

    temperature: Annotated[float, Gt(0)] = 2.0
    """tau of the softmaxes over space; the paper tunes it."""
    weights: Sequence[float] = (1.0, 0.75, 0.5)
    """w_s, finest map first; the last holds for all further maps."""
    layers: Sequence[str] = ()
    """Modules whose maps are distilled; by default those that the heads read."""
    focus: bool = False
    """Let the cells of small and medium boxes count more; which those are is told by the data's sizes."""


def yolov8_cwd(
    subject: Traced,
    data: Examples,
    budgets: Sequence[Budget],
    run: Run,
    *,
    seed: int = 0,
    sparse_epochs: float = 100.0,
    penalty: Penalty = Penalty(),
    scope: Literal["local", "global"] = "local",
    multiple: int = 1,
    least: int = 8,
    finetune_epochs: float = 100.0,
    distil_epochs: float = 100.0,
    distilling: ChannelWise = ChannelWise(),
    alpha: float | None = None,
    softness: Annotated[float, Gt(0)] = 3.0,
    answers: Answers = Answers(),
    training: Training = Training(batch=16, lr=1e-3, weight_decay=5e-4),
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
        penalty, distilling, answers: see these classes.
        scope: local takes the same share of every layer; global ranks all layers together, as a baseline.
        multiple: kept channels are multiples of this; 8 runs well on most hardware.
        least: channels of a layer that stay at least, or all of fewer.
        finetune_epochs: without distillation, after the cut.
        distil_epochs: with it, after those.
        lr: peak learning rate of all three trainings, each with a cosine.
        weight_decay: of AdamW.
        alpha: weight of the distillation; by default what makes it as large as L_det at its first step.
        softness: temperature of the teacher's classes.
        dry_run: stop after the cut; nothing is trained.

    Departures: lambda_0, the epochs of sparsity training, tau, w_s, alpha and the tapped layers are not in the text
    that could be read; the values here are this project's, lambda_0 that of public code. AdamW in place of SGD. Where a
    budget is not in channels, the one share is the smallest that meets it. Layers without a batch norm stay whole. The
    paper's TensorRT step is the export of the result, to a torch.export program or ONNX. The paper learns from no
    outputs.
    """
    subject, data = open_with_boxes(subject, data)
    check(subject, budgets, multiple, least, distilling.weights)
    if distilling.layers:
        look_at(subject.model, distilling.layers, data.inputs[:1], maps.flat)
    if answers.outputs:
        detectors.check_predictions(subject.model, data.inputs[:1])
    if dry_run:
        sparse_epochs = finetune_epochs = distil_epochs = 0.0
    feed = examples.batches(data, batch=training.whole("batch"), seed=seed)
    stages = DetectorStages(run, feed, training.default(precision="fp32", clip=math.inf), seed)

    sparse = subject.copy()
    if not dry_run:
        with torch.random.fork_rng(devices=[]):  # what can't be cut after all shows before anything is trained
            for budget in budgets:
                cut_to(sparse, budget, scope, least, multiple)
    pressed = stages.sparsify(sparse, pressure(sparse, penalty), sparse_epochs)
    run.json("scales", lambda: {"before": histogram(subject), "after": histogram(sparse)})

    for budget in budgets:
        student, cut, selection, notes = cut_to(sparse, budget, scope, least, multiple)
        run.json(f"keep-{budget}", partial(audit, selection))
        tuned, taught = stages.finetune(student, finetune_epochs, budget), None
        if distil_epochs:
            original = cast(Detector, subject.model)
            taps, ask = distilling.layers or original.taps, subject.model if distilling.layers else original.features
            adapters = adapt_widths(student, subject, taps, data.inputs[:1], seed)
            sizes = (data.sizes or detection.SIZES) if distilling.focus else ()
            taught = stages.distil(
                student, subject, taps, channel_wise(adapters, distilling, sizes), distil_epochs, budget, ask=ask,
                weight=alpha, answers=answers, temperature=softness, extra=[adapters],
            )  # fmt: skip
        yield Result(str(budget), student, cut, selection.spent, records.together(pressed, tuned, taught), notes)
        del student  # or it would be held beside the next one


def check(subject: Traced, budgets: Sequence[Budget], multiple: int, least: int, weights: Sequence[float]) -> None:
    """Refuse before anything is trained what would be refused after it."""
    units, scores = rank(subject, multiple)
    if not scores:
        scales.prunable(subject.model, subject.slices())  # says that nothing is there to rank
    lowest = ranking.fewest(units, dict.fromkeys(units, least)).spent
    for budget in budgets:
        limits.limits_of_cut(budget, units.cost(), lowest, f"lower least={least}")
    if not weights:
        raise InputError("weights are empty: give one for each map, the finest first; the last holds for all further")


def pressure(subject: Traced, penalty: Penalty) -> Objective:
    """Step 2: the detector's loss, and the penalty on the scales that may go (and, at `bias_rate`, on their biases)."""
    free = scales.prunable(subject.model, subject.slices())
    norms = {id(m.weight): m for m in subject.model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)}
    biases: list[Tensor] = [norms[id(gamma)].bias for gamma, _ in free] if penalty.bias_rate else []

    def rates(done: float) -> list[Tensor]:
        now = slimming.rate(done, initial=penalty.rate, schedule=penalty.schedule)
        levels = [inside.to(gamma) * now for gamma, inside in free]
        return levels + [inside.to(gamma) * penalty.bias_rate for gamma, inside in free if biases]

    return detecting.press(cast(Detector, subject.model).loss, [gamma for gamma, _ in free] + biases, rates)


def histogram(subject: Traced) -> dict[str, object]:
    """How many scales that may go have which size: 20 bins of |gamma|, and the share below 1 % of the largest."""
    free = scales.prunable(subject.model, subject.slices())
    sizes = torch.cat([gamma.detach().cpu().abs()[inside] for gamma, inside in free])
    counts, edges = torch.histogram(sizes.float(), 20)
    near = float((sizes < 0.01 * sizes.max()).float().mean())
    return {"counts": counts.tolist(), "edges": edges.tolist(), "near_zero": near, "scales": len(sizes)}


def cut_to(
    subject: Traced, budget: Budget, scope: str, least: int, multiple: int
) -> tuple[Traced, Cut, Selection, tuple[str, ...]]:
    """Steps 3 and 4: the smaller detector, its receipt, what stays, and a note on layers without a batch norm."""
    selection, student, cut = cut_with_retries(subject, lambda: select(*rank(subject, multiple), budget, scope, least))
    units, scores = rank(subject, multiple)
    bare = [site for site in units if site not in scores]
    more = f" and {len(bare) - 3} more" if len(bare) > 3 else ""
    return student, cut, selection, (f"stays: {', '.join(bare[:3])}{more}: has no batch norm",) if bare else ()


def rank(subject: Traced, multiple: int) -> tuple[Units, dict[str, Tensor]]:
    """Step 3: what may go, and site -> |gamma| of each unit; sites without a batch norm have no score and stay."""
    members = scales.members(subject.model, subject.slices())
    scores = {site: torch.stack(list(row.values())).mean(0) for site, row in members.items()}
    units = subject.units(multiple=multiple)
    frozen = {name: replace(site, frozen=site.frozen or name not in scores) for name, site in units.sites.items()}
    return replace(units, sites=frozen), scores


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


def adapt_widths(student: Traced, teacher: Traced, taps: Sequence[str], image: Tensor, seed: int) -> Adapters:
    """Step 6: a 1 x 1 convolution for each map that the modules `taps` give, where its widths differ."""
    widths = [[one.shape[1] for one in look_at(net.model, taps, image, maps.flat)] for net in (student, teacher)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Adapters(*widths)


def channel_wise(adapters: Adapters, distilling: ChannelWise, sizes: Sequence[float]) -> detecting.Compare:
    """Step 6: ``sum_s w_s L_cwd_s``. sizes: of boxes, where the cells of small and medium ones are to count more."""

    def compare(ours: list[Tensor], theirs: list[Tensor], batch: Mapping[str, Any]) -> Tensor:
        total = ours[0].new_zeros(())
        for place, (mine, told) in enumerate(zip(adapters(ours), theirs, strict=True)):
            near = None
            if sizes:
                squares = detection.squares(sizes, batch["inputs"].shape)
                near = maps.box_weights(batch["targets"], told, batch["inputs"], sizes=squares)
            weight = distilling.weights[min(place, len(distilling.weights) - 1)]
            total = total + weight * maps.channel_wise(mine, told, temperature=distilling.temperature, weights=near)
        return total

    return compare
