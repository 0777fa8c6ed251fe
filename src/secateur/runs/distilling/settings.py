"""The options of `distill` as one value, and checks made before a model is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from secateur._utils import distributed, modes
from secateur.errors import InputError
from secateur.recover.distillation import ensembles, matching
from secateur.recover.quantization import quantise
from secateur.recover.training import loop, lora, schedule
from secateur.runs import keywords
from secateur.vocabulary import Training

__all__ = [
    "BETA",
    "Settings",
    "check",
    "check_adapters",
    "check_cache",
    "check_teachers",
    "parse_warm_up",
    "read_training",
]

BETA = {"forward": 0.0, "js": 0.5, "reverse": 1.0}
"""Directions of on-policy distillation, as the beta of its divergence."""
_DIRECTIONS = ("forward", "reverse", "js", "binary", "mse", "cosine", "channel-wise", "none")
_VALIDATION = 0.1
"""Share of what is learned from that `patience` judges by, unless told otherwise."""
_SERVED = 20
"""Likeliest tokens that a server is asked for, unless told otherwise."""


@dataclass(frozen=True)
class Settings:
    """How each link of the chain is taught; see `secateur.distill`. Its fields are settings of a run."""

    steps: int
    lr: float
    batch: int
    length: int
    temperature: float
    direction: str
    task: float
    hidden: bool
    shares: tuple[float, ...]
    choice: Literal["", "label", "confidence"]
    cache: int | Literal["all"]
    on_policy: float
    prompt: int
    server: str
    align: bool
    match: tuple[str, ...]
    match_index: tuple[int, ...]
    match_loss: str
    match_weight: tuple[float, ...]
    match_balance: bool
    skew: float
    buckets: tuple[int, ...]
    warm_up: Mapping[str, float]
    training: Mapping[str, Any]
    seed: int
    bits: int = 0
    answers: int = 0

    @property
    def tokens(self) -> int:
        """How many tokens at each place a cache keeps; 0 where there is none, or it keeps all."""
        return 0 if self.cache == "all" else self.cache

    @property
    def server_tokens(self) -> int:
        """How many tokens at each place a server is asked for."""
        return self.tokens or _SERVED

    @property
    def count(self) -> int:
        """Batches that training takes in all, those of all processes."""
        return self.steps * self.batches_per_step * distributed.count()

    @property
    def batches_per_step(self) -> int:
        """Batches of one step."""
        return int(self.training.get("accumulate", 1))

    @property
    def validation(self) -> float:
        """Share of what is learned from that training is judged by, where it has patience or validation."""
        return float(self.training.get("validation", _VALIDATION))

    @property
    def ramps(self) -> dict[str, float]:
        """What warms up, and over which share of training."""
        return {name: over if over < 1 else over / self.steps for name, over in self.warm_up.items()}


def check(settings: Settings, above: Sequence[object], between: Sequence[object]) -> None:
    """Refuse numbers that make no sense, and options that do not go together."""
    for name, least in (("steps", 1), ("batch", 1), ("length", 2), ("cache", 0), ("prompt", 1), ("answers", 0)):
        value = getattr(settings, name)
        if not (isinstance(value, int) and value >= least) and not (name == "cache" and value == "all"):
            other = ', nor "all"' if name == "cache" else ""
            raise InputError(f"{name}={value!r} is not a whole number of at least {least}{other}")
    keywords.check_seed(settings.seed)
    if settings.bits not in (0, *quantise.BITS):
        raise InputError(f"bits={settings.bits}: give {' or '.join(map(str, quantise.BITS))}, or 0 for floating point")
    if not above:
        raise InputError("no teacher was given: name at least one")
    if not 0 <= settings.on_policy <= 1 or not 0 < settings.temperature < float("inf"):
        raise InputError(
            f"on_policy={settings.on_policy:g}, temperature={settings.temperature:g}: give 0 to 1, and above 0"
        )
    if not all(0 <= value < float("inf") for value in (settings.lr, settings.task, *settings.match_weight)):
        weights = "".join(f", match-weight={value:g}" for value in settings.match_weight)
        raise InputError(f"lr={settings.lr:g}, task={settings.task:g}{weights}: give numbers of at least 0")
    if settings.direction not in _DIRECTIONS:
        raise InputError(f"direction {settings.direction!r} is not one of {', '.join(_DIRECTIONS)}")
    if settings.match_loss not in matching.KINDS:
        raise InputError(f"match-loss {settings.match_loss!r} is not one of {', '.join(matching.KINDS)}")
    if not 0 <= settings.skew < 1:
        raise InputError(f"skew={settings.skew:g}: give 0 to below 1")
    if settings.buckets and (len(settings.buckets) != 2 or min(settings.buckets) < 1):
        given = ",".join(map(str, settings.buckets))
        raise InputError(f"buckets {given}: give two numbers of at least 1, as 64,8: tokens one by one, and buckets")
    for name, over in settings.warm_up.items():
        if over > settings.steps:
            raise InputError(f"warm-up of {name} takes {over:g} steps, and training {settings.steps}: give fewer")
        if not getattr(settings, name):
            raise InputError(f"warm-up of {name}, which is no part of the loss: name {name}, or leave it out")
    if settings.choice not in ("", "label", "confidence"):
        raise InputError(f"choice {settings.choice!r} is not one of label, confidence")
    if settings.shares:
        ensembles.shares(settings.shares, len(above))
    kept = "server" if settings.server else "cache" if settings.cache else ""
    some = kept if settings.server or settings.tokens else ""
    all_ = ", cache=all any" if some == "cache" else ""
    names = ("server", "cache", "on_policy", "hidden", "choice")
    extra = next((name.replace("_", "-") for name in names if getattr(settings, name)), "assistant" * bool(between))
    wrong = {
        f"align compares what teachers say of the same characters: leave {extra} out": settings.align and extra,
        f"{some} keeps some of the tokens: it serves forward KL{all_}": some and settings.direction != "forward",
        f"{kept} keeps predictions only: leave hidden out": kept and settings.hidden,
        f"{kept} keeps what is said of given texts: leave on-policy out":
            kept == "cache" and settings.on_policy,
        f"{some} and choice do not go together: name shares, or leave {some} out": some and settings.choice,
        "a server tells its likeliest tokens and not all: give cache their number": settings.server
            and settings.cache == "all",
        "a server tells probabilities at temperature 1: leave temperature out":
            settings.server and settings.temperature != 1,
        "a server has one teacher: name one": settings.server and len(above) > 1,
        "a server is no teacher of assistants: leave them out": settings.server and between,
        "choice takes the place of shares: name one of them": settings.choice and settings.shares,
        "on-policy has no labels to choose a teacher by: choose by confidence":
            settings.on_policy and settings.choice == "label",
        "hidden states of several teachers have no mean: name one teacher, or leave hidden out":
            settings.hidden and len(above) > 1,
        "match compares modules of one teacher as it runs: name one, and leave align, server, cache, choice and "
        "on-policy out": settings.match and (
            len(above) > 1 or settings.align or settings.server or settings.cache or settings.choice
            or settings.on_policy
        ),
        "match-index, -loss, -weight and -balance say how modules match: name some by match": not settings.match and (
            settings.match_index or settings.match_loss != "mse" or settings.match_weight or settings.match_balance
        ),
        "match-index says which numbers {i} of match stands for: write {i} in it, or leave match-index out":
            settings.match_index and not any("{i}" in pattern for pattern in settings.match),
        "align has no warm-up: leave one of them out": settings.align and settings.warm_up,
        "buckets are of forward KL of a teacher that answers whole, live or from cache=all: leave them out":
            settings.buckets and (some or settings.align or settings.on_policy or settings.direction != "forward"),
        "buckets and skew are two ways to compare: name one of them": settings.buckets and settings.skew,
        "skew is of KL of a teacher that answers whole, forward or reverse: leave it out": settings.skew and (
            some or settings.align or settings.on_policy or settings.direction not in ("forward", "reverse")
        ),
        "on-policy scores what the student writes: leave task and hidden out":
            settings.on_policy and (settings.task or settings.hidden),
        f"on-policy has the directions {', '.join(BETA)}": settings.on_policy and settings.direction not in BETA,
        "adapters are merged in floating point, and bits trains rounded weights: leave lora or bits out":
            settings.bits and ("lora" in settings.training or "dora" in settings.training),
        "on-policy writes its texts as it goes, and patience and validation judge by texts held out: leave them out":
            settings.on_policy and ("patience" in settings.training or "validation" in settings.training),
        "direction=none learns by task alone: give task=1, and leave out what is about predictions and states":
            settings.direction == "none" and (
                not settings.task or settings.hidden or settings.match or settings.cache or settings.align
                or settings.skew or settings.on_policy or (settings.server and not settings.answers)
            ),
        "answers are what the teacher writes, and on-policy what the student does: leave one of them out":
            settings.answers and settings.on_policy,
        "prompt is to be shorter than length: give less": settings.on_policy and settings.prompt >= settings.length,
    }  # fmt: skip
    for words, holds in wrong.items():
        if holds:
            raise InputError(words)
    if not settings.lr and settings.steps:
        raise InputError(f"lr=0 teaches nothing in {settings.steps} steps: give a rate above 0")
    schedule.check_course(Training(steps=settings.steps, lr=settings.lr, **settings.training))


def check_adapters(settings: Settings, model: nn.Module | None = None) -> None:
    """Refuse adapters for which a library is missing, or integers beside them that `model` can't have."""
    lora.check(Training(**settings.training), model)


def check_cache(settings: Settings, cache_at: str | Path, out: str | Path) -> None:
    """Refuse a folder for a cache where there is none, or that can't be one."""
    if not cache_at:
        return
    if not (settings.cache or settings.server or settings.answers):
        raise InputError("cache-at is the folder of a cache: say what it keeps by cache, or leave it out")
    if Path(cache_at).exists() and not Path(cache_at).is_dir():
        raise InputError(f"cache-at {cache_at} is a file: give a folder")
    if Path(cache_at).resolve().is_relative_to(Path(out or "?").resolve()):
        raise InputError(f"cache-at {cache_at} is in the run directory, where a cache is anyway: give another folder")


def check_teachers(settings: Settings, device: str, bits: int) -> None:
    """Refuse a device that is not there, bits that weights can't have, and either for a teacher on a server."""
    if settings.server and (device or bits):
        raise InputError("the teacher runs on its server: leave teacher-device and teacher-bits out")
    if bits not in (0, *quantise.BITS):
        raise InputError(
            f"teacher-bits={bits}: give {' or '.join(map(str, quantise.BITS))}, or 0 for the teacher as it is"
        )
    if device not in ("", "auto"):
        modes.check_device(device)


def read_training(training: str | Mapping[str, object], **named: float) -> Mapping[str, object]:
    """Settings of the training loop; those that have an option of their own are `named`, unless they are 0.

    Raises `InputError` where `training` sets what is an option of distill itself, or epochs, which it does not count,
    and as `loop.check_trackers`.
    """
    twice = sorted(loop.options(training).keys() & {"steps", "epochs", "batch", "lr"})
    if twice:
        instead = "steps" if twice[0] == "epochs" else twice[0]
        raise InputError(f"training sets {twice[0]}, which distill has an option for: give {instead} itself")
    found = loop.options({**loop.options(training), **{name: value for name, value in named.items() if value}})
    loop.check_trackers(found.get("trackers") or ())
    return found


def parse_warm_up(given: str | Mapping[str, float]) -> dict[str, float]:
    """What grows from 0, and over how much of training, from "match=0.1,task=200"."""
    parts = [part.partition("=")[::2] for part in given.split(",") if part.strip()] if isinstance(given, str) else []
    found = dict[str, float]()
    for name, over in dict(given).items() if isinstance(given, Mapping) else parts:
        try:
            found[name.strip()] = float(over)
        except (TypeError, ValueError):
            found[name.strip()] = -1.0
    for name, number in found.items():
        if name not in ("task", "hidden", "match") or not 0 < number < float("inf"):
            raise InputError(
                f"warm-up {given!r}: give task, hidden or match, and the share of training or the steps over which it "
                "grows, such as match=0.1,task=200"
            )
    return found
