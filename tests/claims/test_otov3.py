"""OTOv3 at small scale: digits on small nets; any architecture for the analysis."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from claims import lab, vision
from secateur._utils.outputs import leaves
from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.data.examples import Examples
from secateur.recipes.vision import otov3
from secateur.recover.sparsity.sparsify import Groups, GroupSparse
from secateur.score import gradient, magnitude, random
from secateur.select import ranking
from secateur.subjects.network.segments import SITE, Erasure
from secateur.subjects.network.shrinking import shrink
from secateur.subjects.network.traced import Traced, open_traced
from secateur.vocabulary import Budget, Figure, Result, Selection

pytestmark = [pytest.mark.claim, pytest.mark.timeout(600)]
SEEDS = (0, 1, 2)
EPOCHS, LR, DECAY = 16, 0.05, 5e-4


# ------------------------------------------------------------------------------------------------------------ nets


def conv(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


def closing(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after))


class Dense(nn.Module):
    """A DenseNet: every layer reads all before it, through a norm after the concatenation."""

    def __init__(self, layers: int = 4, growth: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(16 + growth * i) for i in range(layers + 1))
        self.convs = nn.ModuleList(nn.Conv2d(16 + growth * i, growth, 3, padding=1) for i in range(layers))
        self.head = nn.Linear(16 + growth * layers, 10)

    def forward(self, x):
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.convs, strict=False):
            x = torch.cat([x, layer(norm(x).relu())], 1)
        return self.head(self.norms[-1](x).relu().mean((2, 3)))


class Separable(nn.Module):
    """Depth-wise and point-wise convolutions in turns."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv(1, 16)]
        for before, after in ((16, 24), (24, 32)):
            layers += [
                nn.Conv2d(before, before, 3, padding=1, groups=before), nn.BatchNorm2d(before), nn.ReLU(),
                nn.Conv2d(before, after, 1), nn.BatchNorm2d(after), nn.ReLU(),
            ]  # fmt: skip
        self.body, self.head = nn.Sequential(*layers), nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


class Stacked(nn.Module):
    """A super-network: three levels of two parallel branches each, and beside them a U-net with a skip of its own.

    Branches of a level meet in a sum; the U-net's result joins the first of them.
    """

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = conv(1, width)
        self.long = nn.ModuleList(nn.Sequential(conv(width, width), closing(width, width)) for _ in range(3))
        self.short = nn.ModuleList(closing(width, width) for _ in range(3))
        self.down, self.deep = conv(width, width, 2), conv(width, width)
        self.low = nn.Sequential(conv(width, width, 2), conv(width, width), nn.Upsample(scale_factor=2))
        self.merge, self.up = closing(2 * width, width), nn.Upsample(scale_factor=2)
        self.close = closing(width, width)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.stem(x)
        y = self.deep(self.down(x))
        y = self.merge(torch.cat([self.low(y), y], 1)).relu()
        x = (self.long[0](x) + self.short[0](x) + self.close(self.up(y))).relu()
        for long, short in zip(self.long[1:], self.short[1:], strict=True):
            x = (long(x) + short(x)).relu()
        return self.head(x.mean((2, 3)))


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return make()


def bert() -> tuple[nn.Module, Any]:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, num_labels=4
    )
    ids = torch.randint(0, 100, (2, 12))
    return BertForSequenceClassification(config), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def vit() -> tuple[nn.Module, Any]:
    import timm

    small = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 10}
    return timm.create_model("vit_tiny_patch16_224", **small), torch.rand(2, 3, 16, 16)


def convnext() -> tuple[nn.Module, Any]:
    import timm

    return timm.create_model("convnext_atto", depths=(1, 1, 2, 1), num_classes=10), torch.rand(2, 3, 32, 32)


def unet() -> tuple[nn.Module, Any]:
    from diffusers import UNet2DModel

    net = UNet2DModel(
        in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        attention_head_dim=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return net, (torch.rand(2, 1, 8, 8), torch.tensor(3))


def torchvision(name: str) -> Callable[[], tuple[nn.Module, Any]]:
    def make() -> tuple[nn.Module, Any]:
        from torchvision import models

        return models.get_model(name, weights=None), torch.rand(1, 3, 64, 64)

    return make


IMAGE = torch.rand(4, 1, 8, 8)
ZOO: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "small ResNet": lambda: (vision.resnet(), IMAGE),
    "small VGG": lambda: (vision.vgg(), IMAGE),
    "small DenseNet": lambda: (Dense(), IMAGE),
    "depth-wise separable": lambda: (Separable(), IMAGE),
    "stacked U-net": lambda: (Stacked(), IMAGE),
    "BERT of 2 layers": bert,
    "ViT of 2 layers, timm": vit,
    "ConvNeXt of 5 blocks, timm": convnext,
    **({"U-net with attention, diffusers": unet} if find_spec("diffusers") else {}),
    **{
        name: torchvision(name)
        for name in (
            "resnet18", "mobilenet_v2", "mobilenet_v3_small", "densenet121", "shufflenet_v2_x0_5", "squeezenet1_1",
            "efficientnet_b0",
        )
    },
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------- trainings


def recipe(start: Traced, budget: str, seed: int, data: Examples | None = None, **options: Any) -> Result:
    """A run of the recipe on `data`, or on the training part of digits."""
    train = data or vision.digits()[0]
    how = {"epochs": EPOCHS, "lr": LR, "weight_decay": DECAY, "seed": seed} | options
    with tempfile.TemporaryDirectory() as folder, Run.open(folder, {}) as run:
        (result,) = otov3.otov3(start, train, [Budget.parse(budget)], run, **how)
    return result


def trained(
    start: Traced,
    seed: int,
    epochs: float = EPOCHS,
    optimiser: Callable[..., GroupSparse] | None = None,
    data: Examples | None = None,
) -> tuple[Traced, list[GroupSparse]]:
    """A copy trained plainly, or by `optimiser`, which gets parameter groups and slices."""
    work, made = start.copy(), list[GroupSparse]()

    def build(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        assert optimiser is not None
        made.append(optimiser(groups, work.producers()))
        return made[0]

    how: dict[str, Any] = {"optimizer": build} if optimiser else {}
    vision.fit(work.model, data or vision.digits()[0], epochs=epochs, lr=LR, seed=seed, weight_decay=DECAY, **how)
    return work, made


def right(subject: Traced, data: Examples | None = None) -> float:
    return vision.accuracy(subject.model, data or vision.digits()[1])


def by_norm(work: Traced, share: float = 0.5) -> Traced:
    """Cut to a share of the channels of every site, those with the smallest norms first."""
    scores = magnitude.coupled(work.producers(), normalise=False)
    return work.cut(ranking.by_budget(work.units(), scores, f"channels={share:.0%}", scope="local"))[0]


def gap(large: nn.Module, small: nn.Module, *args: Any, **kwargs: Any) -> float:
    """The largest difference of outputs, as a share of the largest output."""
    with torch.no_grad():
        a, b = (leaves(one.eval()(*args, **kwargs))[0][0] for one in (large, small))
    return float((a - b).abs().max() / a.abs().max())


# --------------------------------------------------------------------------------------- claim 1: any architecture


def drawn(model: nn.Module, seed: int) -> None:
    """Scales, shifts and statistics that differ from channel to channel."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dim() == 1 and tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=draw) + 0.5)


def zeroed(subject: Traced, slices: Mapping[str, Any], gone: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the network in which the groups that are gone are zero, and nothing else is changed."""
    copied = subject.copy()
    names = {id(p): name for name, p in subject.model.named_parameters()}
    found = dict(copied.model.named_parameters())
    with torch.no_grad():
        for site, parts in slices.items():
            for parameter, dim, unit in parts:
                lost = torch.where(unit >= 0, gone[site][unit.clamp(min=0)], False)
                target = found[names[id(parameter)]]
                (target.view(1) if not target.dim() else target).index_fill_(dim, lost.nonzero().flatten(), 0.0)
    return copied.model


@functools.cache
def coverage(name: str) -> dict[str, float]:
    """Over seeds: the worst difference between zeros and cut, and how much of the network can go, by either mode."""
    worst, reached, share = 0.0, 0.0, 0.0
    for seed in SEEDS:
        torch.manual_seed(seed)
        model, inputs = ZOO[name]()
        drawn(model, seed)
        subject = open_traced(model, inputs)
        args, kwargs = subject.inputs.fresh()
        slices = subject.producers()
        draw = random.scores(subject.units(), seed)
        gone = {site: draw[site] < draw[site].median() for site in slices}
        small, cut = subject.cut(Selection({site: ~mask for site, mask in gone.items()}))
        worst = max(worst, gap(zeroed(subject, slices, gone), small.model, *args, **kwargs))
        counted = {id(p): torch.zeros_like(p) for p in model.parameters()}
        for site, parts in subject.slices().items():
            for parameter, dim, unit in parts if site in slices else ():
                shape = [1] * parameter.dim()
                shape[dim] = -1
                counted[id(parameter)] += (unit >= 0).float().view(shape)
        share = 1 - cut.after["params"] / cut.before["params"]
        removable = subject.graph.removable
        for parameter, _, _ in subject.weights()[SITE]:
            counted[id(parameter)] += 1  # norms over groups let few channels go, but whole blocks
        reached = sum(float((one > 0).sum()) for one in counted.values()) / cut.before["params"]
        if removable:
            order = torch.randperm(len(removable), generator=torch.Generator().manual_seed(seed)).double()
            keep = otov3.erase(subject.graph, order, max(1, len(removable) // 3), Budget.parse("segments=67%"))
            bare, _ = subject.cut(Selection({SITE: keep}))
            erased = zeroed(subject, subject.weights(), {SITE: ~keep})
            worst = max(worst, gap(erased, bare.model, *args, **kwargs))
    return {"difference": worst, "reached": reached, "gone": share, "segments": len(removable)}


def test_any_architecture_is_analysed_and_zeros_equal_the_cut():
    found = {name: coverage(name) for name in ZOO}
    figures = {}
    for name, row in found.items():
        figures[f"{name}/largest difference"] = Figure(row["difference"])
        figures[f"{name}/share of parameters that groups or segments reach"] = Figure(row["reached"])
        figures[f"{name}/share gone with half of the groups"] = Figure(row["gone"])
        figures[f"{name}/segments that can be erased"] = Figure(row["segments"])
    holds = all(row["difference"] <= 1e-4 and row["reached"] > 0.4 for row in found.values())
    lab.singly(
        "otov3",
        "agnostic",
        "random zero groups and random valid erasures are cut to networks of equal outputs, with no code for any one",
        holds,
        figures,
        setup="half of the channels of every site; a third of the segments; random scales and statistics",
        seeds=SEEDS,
    )
    assert holds, {name: row for name, row in found.items() if row["difference"] > 1e-4 or row["reached"] <= 0.4}


# ------------------------------------------------------------------------------------ claim 2: once, no fine-tuning


NETS = {
    "ResNet": lambda seed: vision.resnet((8, 16, 32), seed=seed),
    "VGG": lambda seed: vision.vgg(seed=seed),
    "narrow VGG": lambda seed: vision.vgg((4, 4, "M", 8, 8, "M", 16, 16), seed=seed),
    "narrow ResNet": lambda seed: vision.resnet((3, 6, 12), seed=seed),
}
"""On the narrow ones half of the channels is missed: asked after the lasso had tied on the wide ones; seeds 7 to 9."""


OTHERS = {
    "DenseNet": lambda seed: seeded(Dense, seed),
    "separable net": lambda seed: seeded(Separable, seed),
    "VGG on MNIST": lambda seed: vision.vgg(seed=seed),
    "ResNet on MNIST": lambda seed: vision.resnet((8, 16, 32), seed=seed),
}
"""On which nothing was tried before the claim about a lambda from other tasks was written down."""


def parts(net: str) -> tuple[Examples, Examples]:
    """What a network learns from, and what it is measured on."""
    return vision.mnist(1000, 1000, size=14) if net.endswith("MNIST") else vision.digits()


@functools.cache
def start(net: str, seed: int) -> Traced:
    return open_traced((NETS | OTHERS)[net](seed), parts(net)[0].inputs[:2])


def steps(epochs: float = EPOCHS) -> int:
    return round(epochs * len(examples.batches(vision.digits()[0], batch=64)))


def group_sparse(work: Traced, **how: Any) -> Callable[..., GroupSparse]:
    """The optimiser as the recipe sets it, but for `how`."""
    total = steps()

    def choose(scores: Mapping[str, Tensor], extra: float) -> dict[str, Tensor]:
        kept = ranking.by_budget(work.units(), scores, f"channels={0.5 - extra:%}", scope="local").keep
        return {site: ~torch.as_tensor(mask).bool() for site, mask in kept.items()}

    settings = {
        "lr": LR, "start": round(0.1 * total), "span": round(0.4 * total), "method": "dhspg", "nesterov": True,
        "saliency": gradient.dhspg, "choose": choose,
    } | how  # fmt: skip
    return lambda groups, slices: GroupSparse(groups, slices, **settings)


def chance(seed: int) -> Callable[..., dict[str, Tensor]]:
    def saliency(slices: Any, directions: Any) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        return {site: torch.rand(1 + max(int(u.max()) for _, _, u in p), generator=draw) for site, p in slices.items()}

    return saliency


def once(net: str, seed: int, method: str) -> tuple[float, float]:
    """(accuracy of the cut network, largest difference from the trained one's outputs)."""
    train, test = parts(net)
    result = recipe(start(net, seed), "channels=50%", seed, train, method=method)
    return right(result.subject, test), float(result.notes[-1].split("differ by ")[1].split()[0])


def dense_then_cut(net: str, seed: int) -> float:
    return right(by_norm(trained(start(net, seed), seed)[0]))


def lasso(net: str, seed: int, penalty: float, stops: bool = False) -> tuple[float, float]:
    """(accuracy, share of groups at zero): proximal steps of the group lasso on all groups, then cut to the target.

    stops: at the target, as DHSPG does; the group lasso itself knows no target.
    """

    def all_but_one(scores: Mapping[str, Tensor], extra: float) -> dict[str, Tensor]:
        return {site: torch.arange(len(row)) > 0 for site, row in scores.items()}

    how: dict[str, Any] = {} if stops else {"choose": all_but_one}
    sparse = group_sparse(start(net, seed), proximal=True, penalty=penalty, **({"start": 0} | how))
    train, test = parts(net)
    work, made = trained(start(net, seed), seed, optimiser=sparse, data=train)
    # Its zeros lie where they come to lie: all channels are ranked together, each by its share of its site's mean.
    small, _ = work.cut(ranking.by_budget(work.units(), magnitude.coupled(work.producers()), "channels=50%"))
    return right(small, test), made[0].sparsity


def at_random(net: str, seed: int) -> float:
    work, made = trained(
        start(net, seed), seed, optimiser=group_sparse(start(net, seed), method="hesso", saliency=chance(seed))
    )
    return right(work.cut(Selection({site: ~mask for site, mask in made[0].zero.items()}))[0])


def tuned(net: str, seed: int) -> float:
    """Dense, cut, fine-tuned: two thirds of the epochs before the cut, one third after it."""
    small = by_norm(trained(start(net, seed), seed, epochs=EPOCHS * 2 / 3)[0])
    vision.fit(small.model, vision.digits()[0], epochs=EPOCHS / 3, lr=LR, seed=seed + 100, weight_decay=DECAY)
    return right(small)


PENALTIES = {
    "ResNet": (0.1, 0.3, 0.5, 0.7),
    "VGG": (0.1, 0.3),
    "narrow VGG": (0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    "narrow ResNet": (0.8, 0.9, 1.0, 1.1, 1.2, 1.35),
}
"""Lambdas of the lasso, from where too little to where too much is zero."""
DRAWN = {"ResNet": range(6), "VGG": range(6), "narrow VGG": range(12), "narrow ResNet": range(6)}
"""Seeds: on the narrow VGG the lasso's accuracy differs from seed to seed by 0.4, and few leave the mean open."""


@functools.cache
def arms(net: str) -> dict[str, list[float]]:
    def compute() -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}

        def add(name: str, value: float) -> None:
            found.setdefault(name, []).append(value)

        for seed in DRAWN[net]:
            for method in ("dhspg", "hesso"):
                accuracy, difference = once(net, seed, method)
                add(method, accuracy)
                add(f"{method} difference", difference)
            add("dense", right(dense := trained(start(net, seed), seed)[0]))
            add("dense, then cut", right(by_norm(dense)))
            for penalty in PENALTIES[net]:
                accuracy, sparsity = lasso(net, seed, penalty)
                add(f"group lasso {penalty}", accuracy)
                add(f"group lasso {penalty} sparsity", sparsity)
            add("group lasso that stops at the target", lasso(net, seed, 1.0, stops=True)[0])
            add("random groups", at_random(net, seed))
            add("cut, then fine-tuned", tuned(net, seed))
        return found

    return lab.remembered(f"otov3-{net}", compute)


def setup(net: str) -> str:
    return f"digits, 1,000 to train on, small {net}, {EPOCHS} epochs for each"


@pytest.mark.parametrize("net", NETS)
def test_trained_once_it_beats_cutting_after_training(net):
    found = arms(net)
    differences = found["dhspg difference"] + found["hesso difference"]
    names = ("dense, then cut", "random groups", "cut, then fine-tuned", "dense", "hesso")
    lab.record(
        "otov3",
        f"once-{net.lower().replace(' ', '-')}",
        "trained once to 50 % of its channels, without fine-tuning, it is more accurate than a dense network cut after "
        "as many epochs, and the cut network's outputs equal the trained one's to 1e-4",
        max(differences) <= 1e-4
        and lab.clearly_less([-v for v in found["dhspg"]], [-v for v in found["dense, then cut"]]),
        ("accuracy", found["dhspg"]),
        {name: found[name] for name in names},
        lower=False,
        against=["dense, then cut"],
        setup=f"{setup(net)}; largest difference of outputs {max(differences):.2g}",
        seeds=tuple(DRAWN[net]),
    )


LASSO = "a lambda exists at which the lasso loses no more than DHSPG on this net; it has to be found"


TIED = pytest.mark.xfail(strict=True, raises=AssertionError, reason=LASSO)


@pytest.mark.parametrize(
    "net", [*(pytest.param(net, marks=TIED) for net in ("VGG", "ResNet", "narrow ResNet")), "narrow VGG"]
)
def test_it_beats_the_group_lasso(net):
    found = arms(net)
    rows = [f"group lasso {penalty}" for penalty in PENALTIES[net]]
    best = max(rows, key=lambda name: sum(found[name]))
    sparsity = ", ".join(f"{np.mean(found[f'{name} sparsity']):.0%} at {name.split()[-1]}" for name in rows)
    lab.record(
        "otov3",
        f"lasso-{net.lower().replace(' ', '-')}",
        "trained once to 50 % of its channels, without fine-tuning, it is more accurate than the group lasso, at the "
        "best of its lambdas, cut to as many",
        lab.clearly_less([-v for v in found["dhspg"]], [-v for v in found[best]]),
        ("accuracy", found["dhspg"]),
        {name: found[name] for name in (*rows, "group lasso that stops at the target")},
        lower=False,
        against=[best],
        setup=f"{setup(net)}; groups that the lasso brought to zero: {sparsity}",
        reason=LASSO,
        seeds=tuple(DRAWN[net]),
    )


ACROSS = (0.3, 0.5, 0.7, 0.8, 0.9, 1.1)
"""Lambdas of the lasso that are best, or nearly so, on one of the networks."""


@functools.cache
def elsewhere(net: str, penalty: float, seed: int) -> float:
    """Accuracy of the lasso with a lambda that was not tried on this network above."""
    return lab.remembered(f"otov3-lasso-{net}-{penalty}-{seed}", lambda: {"accuracy": lasso(net, seed, penalty)[0]})[
        "accuracy"
    ]


def over(net: str, penalty: float, seed: int) -> float:
    """Accuracy of the lasso with one lambda."""
    known = arms(net).get(f"group lasso {penalty}") if net in NETS else None
    return known[seed] if known else elsewhere(net, penalty, seed)


def ours(net: str, seed: int) -> float:
    """Accuracy of DHSPG."""
    if net in NETS:
        return arms(net)["dhspg"][seed]
    return lab.remembered(f"otov3-dhspg-{net}-{seed}", lambda: {"accuracy": once(net, seed, "dhspg")[0]})["accuracy"]


SIX = range(6)


@functools.cache
def tasks() -> dict[str, dict[float, list[float]]]:
    """Task -> lambda -> accuracy of the lasso by seed."""
    return {net: {penalty: [over(net, penalty, seed) for seed in SIX] for penalty in ACROSS} for net in NETS | OTHERS}


def carried(net: str) -> float:
    """The lambda that is best, in the mean, on all tasks but this one."""
    return max(ACROSS, key=lambda penalty: sum(sum(rows[penalty]) for task, rows in tasks().items() if task != net))


FREE = "half of the channels costs nothing here: the lasso is as accurate as the whole network, and so is DHSPG"


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "net",
    [
        *(
            pytest.param(net, marks=pytest.mark.xfail(strict=True, raises=AssertionError, reason=FREE))
            for net in ("VGG", "ResNet")
        ),
        "narrow VGG", "narrow ResNet", *OTHERS,
    ],
)  # fmt: skip
def test_it_beats_the_group_lasso_at_equal_epochs(net):
    """One training each: a lambda of its own for every network takes a training for each that is tried."""
    best = carried(net)
    found = [ours(net, seed) for seed in SIX]
    rows = tasks()[net]
    data = "MNIST at 14 x 14" if net.endswith("MNIST") else "digits"
    lab.record(
        "otov3",
        f"lasso-carried-{net.lower().replace(' ', '-')}",
        "trained once to 50 % of its channels, without fine-tuning, it is more accurate than the group lasso in a "
        "training as long, with the lambda that is best on seven other tasks",
        lab.clearly_less([-v for v in found], [-v for v in rows[best]]),
        ("accuracy", found),
        {f"group lasso {penalty}": row for penalty, row in rows.items()},
        lower=False,
        against=[f"group lasso {best}"],
        setup=f"{data}, 1,000 to train on, small {net}, {EPOCHS} epochs for each; lambda {best} from the other tasks",
        reason=FREE if net in ("VGG", "ResNet") else "",
        seeds=tuple(SIX),
    )


@pytest.mark.timeout(3600)
def test_one_setting_for_all_tasks_beats_any_one_lambda():
    mine = [float(np.mean([ours(net, seed) for net in tasks()])) for seed in SIX]
    rows = {
        f"group lasso {penalty}": [float(np.mean([found[penalty][seed] for found in tasks().values()])) for seed in SIX]
        for penalty in ACROSS
    }
    best = max(rows, key=lambda name: sum(rows[name]))
    lab.record(
        "otov3",
        "lasso-all",
        "at equal epochs, which leave none to look for a lambda in: with one setting it is more accurate over eight "
        "tasks, trained once to 50 % of their channels and not fine-tuned, than the group lasso with any one lambda",
        lab.clearly_less([-v for v in mine], [-v for v in rows[best]]),
        ("mean accuracy of eight tasks", mine),
        rows,
        lower=False,
        against=[best],
        setup=f"digits, or MNIST at 14 x 14, 1,000 to train on, small {', '.join(tasks())}, {EPOCHS} epochs for each",
        seeds=tuple(SIX),
    )


# ------------------------------------------------------------------------------------------- claim 3: exact zeros


SWEEP = (0.4, 0.6, 0.8, 1.0)
ARMS: dict[str, dict[str, Any]] = {
    "dhspg": {},
    "without the projection": {"project": False},
    "dhspg, the paper's lambda": {"penalty": 1e-3},
    "proximal": {"proximal": True},
    **{f"dhspg, lambda {p}": {"penalty": p} for p in SWEEP},
    **{f"proximal, lambda {p}": {"penalty": p, "proximal": True} for p in SWEEP},
}


@functools.cache
def zeros(name: str, seed: int) -> float:
    """Share of groups that are exactly zero after training, with nothing forced at the end."""
    how = {"finish": 0.0, "weight_decay": 0.0} | ARMS[name]
    work, _ = trained(start("VGG", seed), seed, optimiser=group_sparse(start("VGG", seed), **how))
    with torch.no_grad():
        return float((Groups(work.producers()).total(torch.square) == 0).double().mean())


def test_dhspg_reaches_its_target_and_without_the_projection_nothing_is_zero():
    found = {name: [zeros(name, seed) for seed in SEEDS] for name in list(ARMS)[:4]}
    lab.record(
        "otov3",
        "zeros",
        "with lambda scaled to the run DHSPG reaches 50 % of groups at zero within its tolerance of 5 %; without the "
        "half-space projection no group is exactly zero",
        all(share >= 0.45 for share in found["dhspg"]) and not any(found["without the projection"]),
        ("share of groups at zero", found["dhspg"]),
        {name: row for name, row in found.items() if name != "dhspg"},
        lower=False,
        against=["without the projection"],
        setup=f"digits, small VGG, {EPOCHS} epochs; the paper's lambda is that for hundreds of epochs; the proximal "
        "steps stop at the target, too",
        seeds=SEEDS,
    )


PROXIMAL = (
    "on the VGG proximal steps bring more to zero, 48 % of the groups against 44 %: they may take any "
    "group, and stop at the target only here, as DHSPG does"
)


@pytest.mark.xfail(strict=True, reason=PROXIMAL)
def test_proximal_steps_give_fewer_zeros_at_the_same_lambda():
    shares = {
        f"{kind}, lambda {p}": [zeros(f"{kind}, lambda {p}", seed) for seed in SEEDS]
        for kind in ("dhspg", "proximal")
        for p in SWEEP
    }
    ours, theirs = (
        [float(np.mean([shares[f"{kind}, lambda {p}"][at] for p in SWEEP])) for at in range(len(SEEDS))]
        for kind in ("dhspg", "proximal")
    )
    lab.record(
        "otov3",
        "proximal",
        "at the same lambda, proximal steps on all groups bring fewer groups to zero than DHSPG on its chosen ones, on "
        "the mean over lambdas from too small to enough",
        lab.clearly_less(theirs, ours),
        ("share of groups at zero", ours),
        {"proximal": theirs, **shares},
        lower=False,
        against=["proximal"],
        setup=f"digits, small VGG, {EPOCHS} epochs, target 50 %, lambdas {SWEEP}; both stop at the target",
        reason=PROXIMAL,
        seeds=SEEDS,
    )


# ------------------------------------------------------------------------------- claims 4 and 5: erasing operators


DRAWS = range(10)
SHORT = 12


@functools.cache
def stacked(seed: int) -> Traced:
    return open_traced(seeded(Stacked, seed), vision.digits()[0].inputs[:2])


@functools.cache
def warmed(seed: int) -> tuple[Traced, Tensor]:
    """The super-network after a short plain training, and the saliency of its segments there."""
    work = stacked(seed).copy()
    vision.fit(work.model, vision.digits()[0], epochs=2, lr=LR, seed=seed, weight_decay=DECAY)
    batch = examples.batches(vision.digits()[0], batch=256, seed=seed)[0]

    def loss(part: Mapping[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(work.model(part["inputs"]), part["labels"])

    slices = work.weights()
    return work, gradient.dhspg(slices, gradient.mean(loss, work.model, [batch], slices))[SITE]


def erased_by_chance(seed: int, budget: str) -> tuple[float, float]:
    """As the recipe, but the order of the segments is drawn: (accuracy, FLOPs as a share)."""
    real = gradient.dhspg
    try:
        gradient.dhspg = chance(seed + 50)
        result = recipe(stacked(seed), budget, seed, epochs=SHORT)
    finally:
        gradient.dhspg = real
    return right(result.subject), result.subject.flops() / stacked(seed).flops()


def test_the_hierarchical_search_never_breaks_a_network_and_free_selection_does():
    budget = Budget.parse("segments=45%")
    broken, wrong = [], []
    for seed in DRAWS:
        work, scores = warmed(seed)
        names = [one.name for one in work.graph.removable]
        count = len(names) - int(budget.absolute({SITE: float(len(names))})[SITE])
        for hierarchical, found in ((False, broken), (True, wrong)):
            keep = otov3.erase(work.graph, scores, count, budget, hierarchical=hierarchical)
            assert int((~keep).sum()) == count
            found.append(float(work.erasure(Selection({SITE: keep})) is None))
    trained_ones = [recipe(stacked(seed), "segments=45%", seed, epochs=SHORT) for seed in SEEDS]
    by_chance = [erased_by_chance(seed, "segments=45%") for seed in SEEDS]
    ours = [right(one.subject) for one in trained_ones]
    whole = all(one.subject.graph.useful | {0} == set(range(len(one.subject.graph.vertices))) for one in trained_ones)
    holds = not any(wrong) and sum(broken) >= 2 and whole
    lab.singly(
        "otov3",
        "hierarchical",
        "H2SPG's search never gives a network without a way from input to output, where free selection of the same "
        "number of segments does",
        holds,
        {
            "share of broken networks": lab.mean(wrong),
            "accuracy, trained once": lab.mean(ours),
            "accuracy, random valid erasure": lab.mean([accuracy for accuracy, _ in by_chance]),
            "FLOPs left": lab.mean([one.subject.flops() / stacked(0).flops() for one in trained_ones]),
            "FLOPs left, random valid erasure": lab.mean([share for _, share in by_chance]),
        },
        {"free selection": {"share of broken networks": lab.mean(broken)}},
        setup=f"a stacked U-net super-network on digits, {len(names)} segments, {count} to go; selections on "
        f"{len(DRAWS)} seeds after 2 epochs, trainings of {SHORT} epochs on {len(SEEDS)}",
        seeds=list(DRAWS),
    )
    assert holds, (broken, wrong, whole)


def test_dead_branches_take_their_flops_along():
    """Of the U-net, only the end feeds a sum: without it, all that leads there goes."""
    rows: dict[str, list[float]] = {"with dead branches": [], "the segment's own": [], "difference of outputs": []}
    for seed in SEEDS:
        work = stacked(seed).copy()
        drawn(work.model, seed)
        names = [one.name for one in work.graph.removable]
        (last,) = [name for name in names if name.endswith("close.1")]
        selection = Selection({SITE: torch.tensor([name != last for name in names])})
        erasure = work.erasure(selection)
        assert erasure is not None
        assert len(erasure.dead) >= 2
        small, _ = work.cut(selection)
        gone = {place for one in work.graph.segments if one.name == last for place in one.vertices}
        own = Erasure(erasure.removed, (), frozenset(range(len(work.graph.vertices))) - gone)
        bare = Traced(shrink(work.model, work.graph.plan(work.model, own)), work.inputs)
        rows["with dead branches"].append(1 - small.flops() / work.flops())
        rows["the segment's own"].append(1 - bare.flops() / work.flops())
        inputs = vision.digits()[1].inputs[:100]
        rows["difference of outputs"].append(
            max(gap(one.model, work.silence(selection).model, inputs) for one in (small, bare))
        )
    holds = max(rows["difference of outputs"]) <= 1e-4 and all(
        a > b for a, b in zip(rows["with dead branches"], rows["the segment's own"], strict=True)
    )
    lab.record(
        "otov3",
        "dead-branches",
        "what fed only an erased segment goes too: FLOPs fall by more than the segment's own",
        holds,
        ("share of FLOPs gone", rows["with dead branches"]),
        {"only the segment": rows["the segment's own"]},
        lower=False,
        setup="the end of the U-net in a stacked super-network; outputs equal those with its weights at "
        f"zero to {max(rows['difference of outputs']):.1g}",
        seeds=SEEDS,
    )
