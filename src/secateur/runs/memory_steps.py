"""Peak memory of passes and of a step of training of modules that are there, before any of it.

Passes are run on tensors without memory (`measure.memory.simulate`); what the loop holds beside them is added.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TypeAlias, cast

import psutil
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from secateur._utils.modes import find_place
from secateur.errors import InputError
from secateur.measure import memory
from secateur.recover.training import sharpness
from secateur.recover.training.recomputing import recomputing
from secateur.reports import display
from secateur.score import gradient
from secateur.subjects.network.recording import tensors_of
from secateur.subjects.network.shrinking import twin
from secateur.vocabulary import Budget, Training

__all__ = [
    "HEAP", "Arguments", "Step", "add_heap", "available", "bytes_at_once", "bytes_beside", "describe",
    "describe_planned", "find_peak", "find_share", "forward_passes", "plan_network", "plan_step", "take_step",
]  # fmt: skip

Arguments: TypeAlias = tuple[tuple[object, ...], dict[str, object]]
"""What a network is called with."""
Step: TypeAlias = Callable[[nn.Module, Sequence[nn.Module]], Tensor]
"""A student, and the others that stand beside it -> the loss of a batch."""

_WORDS = {
    "weights": "weights",
    "score": "scoring",
    "gradients": "scoring by gradients",
    "cut": "cutting",
    "training": "training",
}
HEAP = {"score": 0.12, "cut": 0.18, "training": 0.1, "step": 0.18}
"""Stage -> what a process takes on a CPU beyond its tensors, as a share of them, and at most a gibibyte: freed
activations leave holes in the heap, but tensors above 32 MiB go back at once. Measured on Llamas of 8 to 24 million
parameters; "step", of `plan_step`, on ResNet-18, MobileNetV2 and a Llama of 8 million; "cut", of networks, where slices
of weights are copied on the way, too, on ResNets of 11 to 24 million and MobileNetV2."""


def available(device: str | torch.device = "cpu") -> float:
    """Bytes that the device has: of a card all its memory, else the machine's, or this container's limit.

    NaN for a device that is not here.
    """
    try:
        place = find_place(str(device))
    except InputError:
        return math.nan
    if place.type == "cuda":
        return float(torch.cuda.get_device_properties(place).total_memory)
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() and os.access(limit, os.R_OK) else "max"
    whole = float(psutil.virtual_memory().total)
    return whole if text == "max" else min(whole, float(text))


def describe(stages: Mapping[str, float], device: str = "cpu") -> str:
    """A line on the bytes of each stage beside what the device has."""
    have = available(device)
    parts = [f"{_WORDS[name]} {display.number('memory', value)}" for name, value in stages.items()]
    over = [_WORDS[name] for name, value in stages.items() if value > have]
    if math.isnan(have):
        return f"peak memory: {', '.join(parts)}; {device} is not here, so what it has is not known"
    verdict = f"too little for {', '.join(over)}" if over else "enough for each"
    return f"peak memory: {', '.join(parts)}; {device} has {display.number('memory', have)}, {verdict}"


def describe_planned(plan: Callable[[], Mapping[str, float]], device: str = "cpu") -> str:
    """The line on what `plan` gives; "" where passes need values, as those of detectors may."""
    log = logging.getLogger("torch._subclasses.fake_tensor")  # which prints the traceback of what is tried here
    before, log.disabled = log.disabled, True
    try:
        return describe(plan(), device)
    except Exception:  # whatever a model's own code raises
        return ""
    finally:
        log.disabled = before


def find_share(budgets: Sequence[Budget], whole: float) -> float:
    """Of `whole` parameters the share that stays by the largest of the budgets; all where one limits others alone."""
    kept = [
        min((limit.absolute(whole) for limit in budget.limits if limit.measure == "params"), default=whole)
        for budget in budgets
    ]
    return min(1.0, max(kept, default=whole) / whole)


def plan_network(
    model: nn.Module,
    inputs: Arguments,
    training: Training,
    device: str = "cpu",
    *,
    example: Arguments | None = None,
    share: float = 1.0,
) -> dict[str, float]:
    """Stage -> bytes at its highest point, for a network and what it is called with.

    score: a forward pass. gradients: the same with those of a loss, reduced one by one. cut: the original, the network
    that is cut from it, of which a `share` of the parameters stays, and the passes on the `example` that prove the cut,
    `inputs` unless given. training: a copy of the whole network learns from the answers of the original: what is cut
    before takes less.
    """
    with memory.simulate() as ledger:
        network, (args, kwargs) = _outline(model), _without_values(inputs)
        own = list(tensors_of(network).values())

        def loss(_: object) -> Tensor:
            return _compare(network(*args, **kwargs), None)

        with torch.no_grad():
            score = find_peak(ledger, own, lambda: network(*args, **kwargs))
        weights = [parameter for parameter in network.parameters() if parameter.requires_grad]
        by_one = gradient.reduce_gradients(loss, network, [None], weights, lambda weight, value: None)
        gradients = find_peak(ledger, own, lambda: list(by_one))
        args, kwargs = _without_values(inputs if example is None else example)
        with torch.no_grad():
            proof = find_peak(ledger, own, lambda: network(*args, **kwargs))

    def learn(student: nn.Module, others: Sequence[nn.Module]) -> Tensor:
        args, kwargs = _without_values(inputs)
        answer = student(*args, **kwargs)
        with torch.no_grad():
            right = others[0](*args, **kwargs)
        return _compare(answer, right)

    whole = float(sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(model).values()))
    return {
        "weights": whole,
        "score": add_heap("score", score, device),
        "gradients": gradients,
        "cut": add_heap("cut", proof + share * whole, device),
        "training": plan_step(model, [model], learn, training, device),
    }


def plan_step(
    student: nn.Module,
    others: Sequence[nn.Module],
    step: Step,
    training: Training,
    device: str = "cpu",
    adapt: Callable[[nn.Module], None] | None = None,
) -> float:
    """Bytes at the highest point of training a copy of `student`, while all `others` are held.

    adapt: adds to the copy what is trained in place of its weights.

    Those are the weights, the moments of the optimiser, an average where there is one, the activations of `step`, and
    its gradients; see `take_step`.
    """
    with memory.simulate() as ledger:
        copied, *beside = [_outline(module) for module in (student, *others)]
        if adapt is not None:
            adapt(copied)
        numbers = sum(parameter.numel() for parameter in copied.parameters() if parameter.requires_grad)
        kept = [torch.zeros(round(bytes_beside(training) * numbers), dtype=torch.uint8)]
        held = [*kept, *(tensor for module in (copied, *beside) for tensor in tensors_of(module).values())]
        with forward_passes(copied, training, torch.device(device)):
            peak = find_peak(ledger, held, lambda: take_step(copied, lambda: step(copied, beside), training))
        total = sum(tensor.untyped_storage().nbytes() for tensor in held)
    peak = max(peak, total + 4.0 * numbers + bytes_at_once(training, device) * numbers)
    return add_heap("step", peak, device)


def take_step(model: nn.Module, learn: Callable[[], Tensor], how: Training) -> None:
    """The passes of a step of training, with losses that `learn` gives, up to the optimiser's own.

    A second micro-batch stands for all that follow the first, whose gradients are held meanwhile; sharpness-aware
    passes hold the weights to go back to.
    """

    def descend() -> None:
        for _ in range(min(2, how.accumulate or 1)):
            learn().backward()

    descend()
    if how.sam:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        with sharpness.climb([model], trained, how.sam):
            descend()


def find_peak(ledger: memory.Ledger, held: Sequence[Tensor], run: Callable[[], object]) -> float:
    """The most that is alive during `run`, beside `held`."""
    ledger.hold(held)
    ledger.highest = ledger.held
    run()
    return float(ledger.highest)


def bytes_beside(how: Training) -> float:
    """Bytes for each trained number beside its weight and gradient: moments of the optimiser, averaged weights."""
    sgd = 0.0 if how.momentum == 0 else 4.0
    moments = {"sgd": sgd, "adamw8bit": 2.0 + 8.0 / 256}  # a scale for each block of 256, of both moments
    return moments.get(how.optimizer or "adamw", 8.0) + (4.0 if how.ema else 0.0)


def bytes_at_once(how: Training, device: str) -> float:
    """Bytes for each trained number while it is updated: on a card torch's AdamW updates all tensors at once."""
    return 4.0 if torch.device(device).type == "cuda" and (how.optimizer or "adamw") == "adamw" else 0.0


@contextmanager
def forward_passes(student: nn.Module, how: Training, device: torch.device) -> Iterator[None]:
    """Within the block, passes run as in the loop: in its number type, activations kept or not."""
    precision = how.precision or "auto"
    narrow = torch.float16 if precision == "fp16" else torch.bfloat16
    enabled = precision in ("bf16", "fp16") or (precision == "auto" and device.type == "cuda")
    with (
        recomputing(student) if how.checkpointing else nullcontext(),
        torch.autocast("cpu", narrow, enabled=enabled),
    ):
        yield


def add_heap(stage: str, value: float, device: str) -> float:
    """The bytes of a stage with what the heap takes beside them on a CPU: see `HEAP`."""
    return value + min(HEAP[stage] * value, 2.0**30) if torch.device(device).type == "cpu" else value


def _outline(model: nn.Module) -> nn.Module:
    """A copy without values, within `memory.simulate`, in evaluation mode: dropout takes nothing."""
    blank = {name: torch.empty_like(tensor, device="cpu") for name, tensor in tensors_of(model).items()}
    return twin(model, blank).eval()


def _without_values(inputs: Arguments) -> Arguments:
    return cast(Arguments, tree_map_only(Tensor, lambda tensor: torch.empty_like(tensor, device="cpu"), inputs))


def _compare(answer: object, right: object) -> Tensor:
    """KL of all that a network gives, over its second dimension, to what is right, or else to itself."""
    ours = [leaf.float() for leaf in tree_leaves(answer) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    theirs = [leaf.float() for leaf in tree_leaves(right) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    total = ours[0].new_zeros(())
    for mine, other in zip(ours, theirs or ours, strict=True):
        dim = min(1, mine.dim() - 1)
        total = total + nn.functional.kl_div(mine.log_softmax(dim), other.detach().softmax(dim), reduction="sum")
    return total
