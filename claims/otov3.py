"""OTOv3 (Chen et al.): trained once to half of the channels, without fine-tuning, on small networks of digits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import small_vision
from claims._lab import networks
from claims._lab.calling import prune
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled
from secateur.data import examples
from secateur.recipes.vision import otov3
from secateur.recover.sparsity.sparsify import Groups, GroupSparse
from secateur.score import gradient, magnitude
from secateur.select import ranking
from secateur.subjects.network.traced import Traced, open_traced

EPOCHS, LR, DECAY = scaled(16, 2), 0.05, 5e-4
NETS: dict[str, Callable[[int], nn.Module]] = {
    "VGG": lambda seed: small_vision.vgg(seed=seed),
    "ResNet": lambda seed: small_vision.resnet((8, 16, 32), seed=seed),
    "narrow VGG": lambda seed: small_vision.vgg((4, 4, "M", 8, 8, "M", 16, 16), seed=seed),
    "narrow ResNet": lambda seed: small_vision.resnet((3, 6, 12), seed=seed),
}
RIVALS = ("dense, then cut", "random groups", "scaled group lasso")
SETUP = "digits, 1,000 to train on; small VGG and ResNet, and narrow ones; channels=50%; 16 epochs for each"
SEEDS = range(6)


# ------------------------------------------------------------------------------------------------------------- arms


def start(net: str, seed: int) -> Traced:
    """A network with fresh weights."""
    return open_traced(NETS[net](seed), networks.digits()[0].inputs[:2])


def once(subject: Traced, budget: str, seed: int, **options: Any) -> Traced:
    """The recipe's network."""
    how = {"epochs": EPOCHS, "lr": LR, "weight_decay": DECAY, "seed": seed, **options}
    return prune("otov3", subject, networks.digits()[0], budget, **how).subject


def accuracy(subject: Traced) -> float:
    """On the digits that no one trained on."""
    return networks.accuracy(subject.model, networks.digits()[1])


@contextmanager
def random_saliency(seed: int) -> Iterator[None]:
    """The recipe with saliencies drawn at random, where it looks them up. Fails if it did not ask for them."""
    calls = 0

    def draw(slices: Any, directions: Any) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        generator = torch.Generator().manual_seed(seed)
        counts = {site: 1 + max(int(unit.max()) for _, _, unit in parts) for site, parts in slices.items()}
        return {site: torch.rand(count, generator=generator) for site, count in counts.items()}

    with mock.patch.dict(otov3.SALIENCIES, dict.fromkeys(otov3.SALIENCIES, draw)):
        yield
    assert calls, "the recipe did not ask for the random saliency: this arm would be the recipe itself"


def trained(subject: Traced, seed: int, optimizer: Callable[..., GroupSparse] | None = None) -> Traced:
    """A copy after a plain training, or one by an optimiser that is given parameters and slices."""
    copy = subject.copy()
    how: dict[str, Any] = {"optimizer": lambda groups: optimizer(groups, copy.producers())} if optimizer else {}
    small_vision.fit(
        copy.model, networks.digits()[0], epochs=EPOCHS, lr=LR, seed=seed, weight_decay=DECAY, **how
    )  # fmt: skip
    return copy


def all_but_one(scores: Mapping[str, Tensor], extra: float) -> dict[str, Tensor]:
    """Which groups the lasso shrinks: it knows no target, and one of each site has to stay."""
    return {site: torch.arange(len(row)) > 0 for site, row in scores.items()}


def lasso(subject: Traced, seed: int) -> Traced:
    """Proximal steps on all groups with a lambda scaled to the run as the recipe's is; then cut to half."""
    steps = round(EPOCHS * len(examples.batches(networks.digits()[0], batch=64)))
    build = functools.partial(
        GroupSparse, lr=LR, start=0, span=max(1, round(0.4 * steps)), proximal=True, nesterov=True,
        saliency=gradient.dhspg, choose=all_but_one,
    )  # fmt: skip
    work = trained(subject, seed, build)
    scores = magnitude.coupled_norm(work.producers())
    return work.cut(ranking.by_budget(work.units(), scores, "channels=50%"))[0]


def dense_then_cut(subject: Traced, seed: int) -> Traced:
    """A plain training, then half of the channels of every site by their norms."""
    work = trained(subject, seed)
    scores = magnitude.coupled_norm(work.producers(), normalise=False)
    return work.cut(ranking.by_budget(work.units(), scores, "channels=50%", scope="local"))[0]


# ----------------------------------------------------------------------------------------------------------- claims


@claim(
    question="Is a network trained once to half of its channels more accurate than one trained densely and then cut, "
    "one that loses random groups, and a group lasso?",
    setup=f"{SETUP}; the lasso's lambda is scaled as the recipe's is",
    measure="accuracy",
    unit="%",
    better="higher",
    pairs=[(f"{net}: OTOv3", f"{net}: {rival}") for net in NETS for rival in RIVALS],
    seeds=SEEDS,
)
def headline(seed: int) -> Figures:
    figures = {}
    for net in NETS:
        subject = start(net, seed)
        with random_saliency(seed):
            chance = once(subject, "channels=50%", seed)
        students = {
            "OTOv3": once(subject, "channels=50%", seed),
            "dense, then cut": dense_then_cut(subject, seed),
            "random groups": chance,
            "scaled group lasso": lasso(subject, seed),
        }
        figures |= {f"{net}: {name}": accuracy(student) for name, student in students.items()}
    return figures


def conv(before: int, after: int, stride: int = 1, *, act: bool = True) -> nn.Sequential:
    """A 3 x 3 convolution and batch norm, with or without ReLU."""
    layers = [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)]
    return nn.Sequential(*layers, nn.ReLU()) if act else nn.Sequential(*layers)


class Stacked(nn.Module):
    """A super-network: three levels of two parallel branches each, and beside them a U-net with a skip of its own."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = conv(1, width)
        self.long = nn.ModuleList(nn.Sequential(conv(width, width), conv(width, width, act=False)) for _ in range(3))
        self.short = nn.ModuleList(conv(width, width, act=False) for _ in range(3))
        self.down, self.deep = conv(width, width, 2), conv(width, width)
        self.low = nn.Sequential(conv(width, width, 2), conv(width, width), nn.Upsample(scale_factor=2))
        self.merge, self.up = conv(2 * width, width, act=False), nn.Upsample(scale_factor=2)
        self.close = conv(width, width, act=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, 8, 8] -> [B, 10]."""
        x = self.stem(x)
        y = self.deep(self.down(x))
        y = self.merge(torch.cat([self.low(y), y], 1)).relu()
        x = (self.long[0](x) + self.short[0](x) + self.close(self.up(y))).relu()
        for long, short in zip(self.long[1:], self.short[1:], strict=True):
            x = (long(x) + short(x)).relu()
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


@claim(
    question="Is a super-network more accurate with the operators that H2SPG erases than with random valid ones gone?",
    setup="a stacked U-net super-network on digits, 7 segments, segments=45%; 12 epochs for each",
    measure="accuracy",
    unit="%",
    better="higher",
    ours="H2SPG",
    baselines=["random valid erasure"],
    seeds=SEEDS,
)
def hierarchical(seed: int) -> Figures:
    torch.manual_seed(seed)
    subject = open_traced(Stacked(), networks.digits()[0].inputs[:2])
    epochs = scaled(12, 2)
    with random_saliency(seed + 50):
        chance = once(subject, "segments=45%", seed, epochs=epochs)
    ours = once(subject, "segments=45%", seed, epochs=epochs)
    return {
        name: {"accuracy": accuracy(student), "FLOPs left": student.flops() / subject.flops()}
        for name, student in (("H2SPG", ours), ("random valid erasure", chance))
    }


@claim(
    question="Do more groups become exactly zero with the half-space projection than without?",
    setup="digits, small VGG, 16 epochs, target 50 %, lambda scaled to the run; nothing is forced at the end",
    measure="groups at zero",
    better="higher",
    ours="DHSPG",
    baselines=["without the projection"],
    seeds=range(3),
)
def projection(seed: int) -> Figures:
    steps = round(EPOCHS * len(examples.batches(networks.digits()[0], batch=64)))
    shares = {}
    for name, project in (("DHSPG", True), ("without the projection", False)):
        subject = start("VGG", seed)
        build = functools.partial(
            GroupSparse, lr=LR, start=round(0.1 * steps), span=max(1, round(0.4 * steps)), nesterov=True,
            saliency=gradient.dhspg, project=project,
        )  # fmt: skip
        zero = Groups(trained(subject, seed, build).producers()).total(torch.square) == 0
        shares[name] = float(zero.double().mean())
    return shares
