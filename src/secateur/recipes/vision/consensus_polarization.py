"""Consensus sub-networks: input-dependent gates are trained to agree for all inputs, and are then removed.

Zhi et al., Learning a Consensus Sub-Network with Polarization Regularization and One Pass Training (arXiv 2302.10798).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Le, Lt
from torch import Tensor, nn
from torch.nn import functional

from secateur._utils import devices, distributed
from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.data.batches import Numbered, count_steps
from secateur.data.examples import Examples
from secateur.errors import DataError, InputError, UnsupportedError
from secateur.measure import quality
from secateur.recover.sparsity import gates
from secateur.recover.training import loop, norms, objectives
from secateur.recover.training.compose import Parts
from secateur.score import gates as statistics
from secateur.select import ranking
from secateur.select.limits import limits_of_cut
from secateur.subjects.network.readers import find_inner
from secateur.subjects.network.residual import Branches
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget, Cut, Result, Selection, Training, Units, parse_list

CARD = {
    "title": "Learning a Consensus Sub-Network with Polarization Regularization and One Pass Training",
    "paper": "https://arxiv.org/abs/2302.10798",
    "cuts": "channels and heads inside blocks, or whole residual branches",
    "recovers": "nothing afterwards: network and gates are trained once, together",
    "extra": "",
    "family": "vision",
}


@dataclass(frozen=True, slots=True)
class GateShape:
    """What every gate is made of."""

    hidden: Annotated[int, Ge(1)] = 16
    """width of a gate's MLP."""
    bias: float = 1.0
    """of a gate's last layer at the start; 1 is open."""
    leak: Annotated[float, Ge(0)] = 0.01
    """slope of the straight-through gradient outside of (0, 1), so that no gate is dead for ever."""


@dataclass(frozen=True, slots=True)
class Target:
    """How what the gates leave is held against the budget."""

    form: Literal["band", "hinge", "absolute"] = "band"
    """"band" charges what is above the target, and what is below it by more than `slack`; "hinge" only what is above;
    "absolute" a distance of more than `slack` to either side."""
    slack: Annotated[float, Ge(0)] = 0.02
    """as a share of the gated cost; at least one unit of a "band", half of one with "absolute"."""
    margin: Annotated[float, Ge(0), Lt(1)] = 0.02
    """the training aims this share below the budget, so that a last wrong gate does not overrun it."""


def consensus_polarization(
    subject: Traced,
    data: Examples,
    budgets: Sequence[Budget],
    run: Run,
    *,
    mode: Literal["channel", "layer"] = "channel",
    units: str | Sequence[str] = "",
    multiple: int = 1,
    seed: int = 0,
    open_for: Annotated[float, Ge(0), Le(1)] = 0.1,
    ramp: Annotated[float, Ge(0), Le(1)] = 0.5,
    activation: float = 4.0,
    polarization: float = 3.0,
    aim: Target = Target(form="band", slack=0.02, margin=0.02),
    shape: GateShape = GateShape(hidden=16, bias=1.0, leak=0.01),
    threshold: Annotated[float, Ge(0), Le(1)] = 0.5,
    reestimate: bool = True,
    training: Training = Training(epochs=30.0, batch=64, lr=0.05, weight_decay=5e-4, optimizer="sgd"),
    dry_run: bool = False,
) -> Iterator[Result]:
    """Train network and gates once, until the gates agree on one sub-network of the size asked for; keep that one.

    Per budget, from the weights as given (trained or not):

    1. a gate before every unit: g(x) = 1[ReLU1(MLP(pool(x))) > 1/2], straight-through gradient; off is exactly zero;
    2. one training on L = L_task + lambda_act R_act + lambda_polar R_polar, with gbar the mean decision over a batch,
       R_polar = mean gbar (1 - gbar), and R_act what the share is above the target, or below it by more than `slack`;
       the share is the part of the gated cost that is on, in the budget's own measure (FLOPs, parameters, ...);
    3. one pass over the training examples: f_u, how often unit u is on. Those with f < 1/2 are cut, the gates go.

    Args:
        subject: any network that gives one row of logits per input; it stays as it is.
        data: inputs with classes.
        budgets: one network is trained for each.
        run: where checkpoints and the gates' statistics go.
        mode: "channel" gates channels and heads inside blocks, "layer" whole residual branches F of x + F(x).
        units: patterns of sites or branches to gate; all of the mode unless given.
        multiple: kept channels are multiples of this.
        batch: examples per step; gbar is their mean, over all processes.
        epochs: of training in all.
        lr: peak learning rate, decayed by a cosine.
        weight_decay: on matrices; biases, those of gates included, are spared.
        optimizer: "sgd" (momentum 0.9) or "adamw".
        seed: of gates, order of examples and dropout.
        open_for: share of the steps at the start with all gates forced open.
        ramp: share of the steps after that over which lambda_polar grows to its full value.
        activation: lambda_act; above lambda_polar, which pulls a gate that is nearly always on back with that slope.
        polarization: lambda_polar; 0 leaves the gates free to differ from input to input.
        aim, shape: see these classes.
        threshold: least f that stays.
        reestimate: batch norms are averaged anew, without training, if some gates did not agree, or were overruled.
        dry_run: no training: the gates are as they start.

    Departures: only the paper's abstract could be read, so the equations are a reconstruction that agrees with it. The
    lambdas, the band, the margin, the leak, the start with open gates and the ramp are choices of this project. A
    budget is never overrun: where the gates' vote costs more, the least frequent units go as well, and the result
    says how many. A gate in channel mode looks at what its convolution or linear reads, and multiplies what the next
    one reads. Blocks that change the shape of their input keep their branches. With `accumulate`, gates agree within
    each micro-batch.
    """
    if data.labels is None or data.per_pixel:
        what = "a class for each pixel" if data.per_pixel else "no classes"
        raise DataError(f"{data.name} has {what}: this recipe trains a classifier; give one for each example")
    training = training.default(warmup=0.0, clip=math.inf, accumulate=1)
    batch, accumulate, epochs = training.whole("batch"), training.whole("accumulate"), training.number("epochs")
    if not epochs > 0:
        raise InputError(f"epochs={epochs:g}: give a number above 0, for gates that were not trained say nothing")
    gated = gate(subject, mode, units, multiple=multiple, seed=seed, **asdict(shape))
    whole = gated.units.cost()
    for budget in budgets:  # what can't be met is said before anything is trained
        limits_of_cut(budget, whole, ranking.fewest(gated.units).spent)
    train, held = data.split(seed=seed)
    feed = examples.batches(train, batch=batch, seed=seed)
    steps = 0 if dry_run else count_steps(feed, epochs, accumulate)
    rows = _rows(subject)
    per_example = subject.flops() / rows

    for budget in budgets:
        limits, work, doors = budget.absolute(whole), subject.copy(), copy.deepcopy(gated.gates)
        target = {measure: limit * (1.0 - aim.margin) for measure, limit in limits.items()}
        unit = max(gates.largest(gated.units, measure) for measure in target)
        objective = partial(
            loss, work.model, doors, gated.units, target, activation=activation, polarization=polarization,
            form=aim.form, slack=max(aim.slack, unit if aim.form == "band" else unit / 2), open_for=open_for, ramp=ramp,
        )  # fmt: skip
        recovery = None
        if steps:
            with doors.on(work.model):
                recovery = loop.train(
                    work.model, Numbered(feed, steps, accumulate), objective, training, steps=steps, seed=seed,
                    extra=[doors], count=examples.count, checkpoint=run.folder(f"train-{budget}"),
                    title=f"consensus {budget}", flops_per_token=3.0 * (per_example + doors.flops()),
                )  # fmt: skip

        with loop.place_for_training(work.model, doors):
            votes, sure = ask(work.model, doors, train, batch)
        often, sure = gated.by_site(statistics.frequency(votes)), gated.by_site(sure)
        scores = {n: f.numpy() + torch.sigmoid(sure[n]).numpy() / (2.0 * votes.count) for n, f in often.items()}
        selection = ranking.threshold(gated.units, scores, threshold)
        voted = {name: np.asarray(mask) for name, mask in selection.keep.items()}
        if any(selection.spent[measure] > limit for measure, limit in limits.items()):
            selection = ranking.by_budget(gated.units, scores, budget)
        overruled = sum(int((voted[name] != np.asarray(mask)).sum()) for name, mask in selection.keep.items())
        small, cut = gated.cut(work, replace(selection, budget=budget))

        with loop.place_for_training(work.model, doors, small.model):
            accuracy = {"before norms": _accuracy(small.model, held, batch)}
            # What stays against the votes has norms of another network, however sure each gate was.
            if reestimate and (statistics.unanimous(often) < 1 or not statistics.is_majority(selection.keep, often)):
                norms.reestimate(small.model, partial(_run, small.model), feed)
            with doors.on(work.model):
                accuracy["dynamic"] = _accuracy(work.model, held, batch)
            accuracy["static"] = _accuracy(small.model, held, batch)
        figures: dict[str, Any] = {
            "frequency": {name: [round(float(value), 6) for value in row] for name, row in often.items()},
            "branches": gated.kept_branches(selection),
            "unanimous": statistics.unanimous(often),
            "agreement": statistics.agreement(votes),
            "accuracy": accuracy,
            "overruled": overruled,
            "flops": {"dense": per_example, "gates": doors.flops(), "static": small.flops() / rows},
            "training": {"flops": recovery.flops, "seconds": recovery.seconds} if recovery else {},
        }
        figures = run.json(f"gates-{budget}", partial(dict, figures))
        yield Result(str(budget), small, cut, selection.spent, recovery, describe(figures, len(held)))
        del work, doors, objective, small  # or they would be held beside the next ones


# ---------------------------------------------------------------------------------------------- gates on a network


@dataclass(frozen=True, eq=False)
class Gated:
    """What `gate` gives: the gates, and what they decide about."""

    gates: gates.Gates
    units: Units
    cut: Callable[[Traced, Selection], tuple[Traced, Cut]]
    """(subject, selection) -> the static network and the receipt; the subject is the one that was gated, or a copy."""
    reasons: Mapping[str, str]
    """What has no gate, and why."""
    layers: bool = False

    def by_site(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is known of each place, by site of `units`: all branches are one site."""
        if not self.layers:
            return dict(values)
        return {name: torch.cat([values[place] for place in self.gates.places]) for name in self.units}

    def kept_branches(self, selection: Selection) -> dict[str, bool]:
        """Branch -> whether it is left; nothing where channels are gated."""
        if not self.layers:
            return {}
        (site,) = self.units
        return dict(zip(self.gates.places, map(bool, selection.keep[site]), strict=True))


def gate(
    subject: Traced,
    mode: str = "channel",
    units: str | Sequence[str] = "",
    *,
    multiple: int = 1,
    seed: int = 0,
    hidden: int = 16,
    bias: float = 1.0,
    leak: float = 0.01,
) -> Gated:
    """Gates for `subject`, to be trained by any loop: within `gates.on(model)`, add the losses of `sparsity.gates`.

    mode, units, multiple, hidden, bias, leak: as in `consensus_polarization`.

    Raises `InputError` for another mode or a pattern that fits nothing, `UnsupportedError` where nothing can be gated.
    """
    names, make = tuple(parse_list(units)), partial(gates.Gates, hidden=hidden, bias=bias, leak=leak)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if mode == "layer":
            branches = Branches(subject, names)
            places = {
                one.name: gates.Place(one.source, one.channels, 1, {one.modules[-1]: None}, one.dim) for one in branches
            }
            return Gated(
                make(places), branches.units(), lambda work, selection: branches.of(work).cut(selection),
                branches.reasons, layers=True,
            )  # fmt: skip
        if mode != "channel":
            raise InputError(f"mode {mode!r} is neither 'channel' nor 'layer'")
        sites, reasons = find_inner(subject, names)
        places = {
            one.name: gates.Place(one.source, one.channels, one.units, one.readers, one.dim, one.dims) for one in sites
        }
        reasons |= dict.fromkeys(_unequal(subject, places), "a gate that is off does not do there what a cut does")
        places = {name: place for name, place in places.items() if name not in reasons}
        if not places:
            why = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:3])
            raise UnsupportedError(f"no channels of this {type(subject.model).__name__} can be gated: {why or 'none'}")
        known = subject.units(multiple=multiple)
        free = {name: replace(site, frozen=name not in places) for name, site in known.sites.items()}
        return Gated(make(places), replace(known, sites=free), Traced.cut, reasons)


def _unequal(subject: Traced, places: Mapping[str, gates.Place]) -> list[str]:
    """The places where half of the gates at zero do not give what a cut gives: where a mean runs over channels."""

    def differs(names: Sequence[str]) -> bool:
        some = gates.Gates({name: places[name] for name in names})
        some.fixed = {name: (torch.arange(places[name].units) + 1) % 2 for name in names}
        model = copy.deepcopy(subject.model).cpu().float().eval()  # where the cut one runs
        try:
            small = subject.cut(Selection({name: some.fixed[name].bool().numpy() for name in names}), prove=False)[0]
            expected = objectives.logits(small.forward())
            with torch.no_grad(), some.on(model):
                args, kwargs = subject.inputs.fresh()
                given = objectives.logits(model(*args, **kwargs))
        except (RuntimeError, InputError, IndexError):
            return True
        return not float((given - expected).abs().max() / expected.abs().max().clamp(min=1e-12)) <= 1e-4

    if not places or not differs(list(places)):
        return []
    return [name for name in places if differs([name])]


# ------------------------------------------------------------------------------------------------ training and after


def loss(
    model: nn.Module,
    doors: gates.Gates,
    units: Units,
    target: Mapping[str, float],
    batch: Mapping[str, Any],
    totals: Mapping[str, int],
    *,
    activation: float = 4.0,
    polarization: float = 3.0,
    form: str = "band",
    slack: float = 0.02,
    open_for: float = 0.0,
    ramp: float = 0.0,
) -> tuple[Tensor, Parts]:
    """L_task + lambda_act R_act + lambda_polar R_polar of one batch: an objective, once its first four are given.

    target: measure -> what may be spent. batch: "inputs", "labels", and "done" from 0 to 1 if gates are forced open
    for the share `open_for` of it, and lambda_polar grows over the share `ramp` that follows.
    """
    done = float(batch.get("done", 1.0))
    doors.fixed = {} if done < open_for else None
    scores = objectives.logits(model(batch["inputs"]))
    task = functional.cross_entropy(scores.float(), batch["labels"], reduction="sum") / totals["examples"]
    if doors.fixed is not None:
        return task, {"task": task.detach()}
    means = doors.means()
    polar = gates.polarization(means.values())
    if not set(means) <= set(units):
        means = {name: torch.cat(list(means.values())) for name in units}
    shares, goals = list[Tensor](), list[float]()
    for measure, limit in target.items():
        low, high = (gates.cost(units, {n: torch.full_like(v, s) for n, v in means.items()}, measure) for s in (0, 1))
        shares.append((gates.cost(units, means, measure) - low) / (high - low))
        goals.append(max(0.0, (limit - float(low)) / float(high - low)))
    act = gates.activation(torch.stack(shares), shares[0].new_tensor(goals), form, slack).float()
    grown = min(1.0, (done - open_for) / ramp) if ramp > 0 else 1.0
    weight = len(batch["inputs"]) * distributed.count() / totals["examples"]
    further = weight * gates.once(activation * act + polarization * grown * polar)
    parts = {"task": task, "act": weight * act, "polar": weight * polar}
    return task + further, {name: part.detach() for name, part in parts.items()}


def ask(model: nn.Module, doors: gates.Gates, data: Examples, batch: int) -> tuple[statistics.Votes, dict[str, Tensor]]:
    """(how often each gate is on, place -> mean of what was binarised [units]) for all of `data`, in eval mode."""
    model.eval()
    doors.fixed = None
    total: dict[str, Tensor] = {}

    def decide(part: Mapping[str, Any]) -> dict[str, Tensor]:
        _run(model, part)
        for name, value in doors.sure().items():
            summed = value.double().sum(0)
            total[name] = total[name] + summed if name in total else summed
        return doors.values

    with doors.on(model):
        votes = statistics.collect(decide, data.in_order(batch))
    return votes, {name: value.cpu() / len(data) for name, value in total.items()}


def _accuracy(model: nn.Module, data: Examples, batch: int) -> float:
    model.eval()
    with torch.no_grad():
        return quality.accuracy(partial(_run, model), data.in_order(batch)).value


def _rows(subject: Traced) -> int:
    tensors = [one for one in (*subject.inputs.args, *subject.inputs.kwargs.values()) if isinstance(one, Tensor)]
    return len(tensors[0]) if tensors and tensors[0].dim() else 1


def _run(model: nn.Module, part: Mapping[str, Any]) -> Tensor:
    return objectives.logits(model(devices.move(part["inputs"], model)))


def describe(figures: Mapping[str, Any], held: int) -> tuple[str, ...]:
    """Notes of a result: how far the gates agree, accuracy, FLOPs, and what went wrong. held: examples held out."""
    accuracy, flops, training = figures["accuracy"], figures["flops"], figures["training"]
    every = [value for row in figures["frequency"].values() for value in row]
    split = sum(0.01 < value < 0.99 for value in every)
    notes = [
        f"{figures['unanimous']:.1%} of {len(every)} gates say the same for at least 99% of the training examples; the "
        f"masks of two examples agree on {figures['agreement']:.1%} of the gates",
        f"accuracy on {held} examples held out of training: {accuracy['dynamic']:.4f} with gates that look at the "
        f"input, {accuracy['static']:.4f} without them",
        f"FLOPs per example: {flops['dense']:.4g} whole, {flops['static']:.4g} now, no gate among them",
    ]
    if training:
        share = flops["gates"] / flops["dense"]
        notes.append(
            f"training took about {training['flops']:.3g} FLOPs, forward and backward, in {training['seconds']:.0f} s; "
            f"the gates' share is {share:.2%}"
        )
    else:
        notes.append("dry run: nothing was trained, the gates are as they started")
    if accuracy["before norms"] != accuracy["static"]:
        notes.append(f"before batch norms were averaged anew: {accuracy['before norms']:.4f}")
    if split:
        notes.append(f"{split} gates never agreed: raise polarization or train longer")
    if figures["overruled"]:
        notes.append(
            f"{figures['overruled']} units went against the gates' vote, to meet the budget: raise activation "
            "above polarization"
        )
    for name, row in figures["frequency"].items():
        if len(row) > 1 and not any(value >= 0.5 for value in row):
            notes.append(f"all gates of {name} are off: the least that may stay was kept")
    for stage, many in _find_collapsed(figures["branches"]).items():
        notes.append(f"all {many} branches of {stage} are gone: only the shortcuts of that stage are left")
    return tuple(notes)


def _find_collapsed(branches: Mapping[str, bool]) -> dict[str, int]:
    """In layer mode, stage -> its branches, two or more, all of which are gone. branches: name -> whether it is left.

    All branches are one site; those whose names begin with the same parts are a stage.
    """
    stages: dict[str, list[bool]] = {}
    for name, left in branches.items():
        parts = name.split(".")
        for end in range(1, len(parts)):
            stages.setdefault(".".join(parts[:end]), []).append(left)
    gone = [stage for stage, row in stages.items() if len(row) > 1 and not any(row)]
    return {stage: len(stages[stage]) for stage in gone if stage.rpartition(".")[0] not in gone}
