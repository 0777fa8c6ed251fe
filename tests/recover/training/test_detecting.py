"""What a detector is trained towards."""

from __future__ import annotations

import copy

import pytest
import torch

import yolo
from secateur.data import examples
from secateur.data.batches import Numbered
from secateur.errors import InputError
from secateur.recover.distillation import maps, taps
from secateur.recover.sparsity import slimming
from secateur.recover.training import detecting, loop

DATA = yolo.squares(12)
FEED = examples.batches(DATA, batch=4, seed=0)


def compare(ours, theirs, batch):
    return sum(maps.spatial_attention(one, other) for one, other in zip(ours, theirs, strict=True))


def test_micro_batches_add_up_to_one_batch():
    net, teacher = yolo.tiny(), yolo.tiny(1)
    gammas = [net.stem.bn.weight]
    whole = {"inputs": DATA.inputs[:8], "targets": list(DATA.targets[:8]), "done": 0.5}
    halves = [{**whole, "inputs": whole["inputs"][i : i + 4], "targets": whole["targets"][i : i + 4]} for i in (0, 4)]
    for objective in (
        detecting.press(lambda batch: batch["inputs"].mean(), gammas, lambda done: done),
        detecting.follow(net, lambda batch: net(batch["inputs"])[0].mean(), teacher, teacher, net.taps, compare),
    ):
        once = objective(whole, {"examples": 8})[0]
        twice = sum(objective(half, {"examples": 8})[0] for half in halves)
        assert once.item() == pytest.approx(twice.item(), rel=1e-4)


def test_pressure_shrinks_scales_and_no_others():
    net = yolo.tiny()
    pushed, spared = net.stage3[0].bn.weight, net.stage4[0].bn.weight
    objective = detecting.press(net.loss, [pushed], lambda done: slimming.rate(done, initial=0.5))
    before = pushed.detach().clone(), spared.detach().clone()
    loop.train(net, Numbered(FEED, 12), objective, steps=12, lr=0.02, count=examples.count, clip=None, warmup=0)
    assert (pushed.abs() < before[0].abs()).float().mean() > 0.9
    assert pushed.detach().abs().mean() < 0.8 * before[0].abs().mean()
    assert spared.detach().abs().mean() > 0.85 * before[1].abs().mean()


def test_following_brings_maps_nearer_and_trains_what_is_handed_along():
    teacher, net = yolo.tiny(), yolo.tiny(3)
    adapters = taps.Adapters([8, 12, 16], [8, 12, 16])
    adapters.each[0] = torch.nn.Conv2d(8, 8, 1)
    still = copy.deepcopy(teacher.state_dict())

    def near(ours, theirs, batch):
        return sum(maps.channel_wise(a, b, temperature=0.1) for a, b in zip(adapters(ours), theirs, strict=True))

    def objective(weight):
        return detecting.follow(net, net.loss, teacher.features, teacher, net.taps, near, weight=weight)

    weight = detecting.ratio(objective(1.0), FEED[0], net)
    statistics = {name: buffer.clone() for name, buffer in net.named_buffers()}
    assert weight > 0
    assert detecting.ratio(objective(1.0), FEED[0], net) == pytest.approx(weight)
    assert all(torch.equal(statistics[name], buffer) for name, buffer in net.named_buffers()), "asking changed nothing"
    net.train()
    kernel = adapters.each[0].weight.detach().clone()
    first = objective(weight)(FEED[0], {"examples": 4})[1]["maps"]
    loop.train(
        net,
        FEED,
        objective(weight),
        steps=15,
        lr=0.01,
        count=examples.count,
        extra=[adapters],
        frozen=[teacher],
        warmup=0,
    )
    net.train()
    assert objective(weight)(FEED[0], {"examples": 4})[1]["maps"] < 0.8 * first
    assert not torch.equal(kernel, adapters.each[0].weight), "an adapter is in the optimiser"
    assert not [name for name, _ in net.named_parameters() if "convs" in name], "and not in the student"
    assert all(torch.equal(still[name], tensor) for name, tensor in teacher.state_dict().items())


def test_the_weight_makes_both_losses_equal():
    net, teacher = yolo.tiny(3), yolo.tiny()

    def objective(weight):
        return detecting.follow(net, net.loss, teacher, teacher, net.taps, compare, weight=weight)

    weight = detecting.ratio(objective(1.0), FEED[0], net)
    net.train()
    total, parts = objective(weight)(FEED[0], {"examples": 4})
    assert weight * parts["maps"] == pytest.approx(float(parts["task"]), rel=1e-3)
    assert total.item() == pytest.approx(2 * float(parts["task"]), rel=1e-3)


class Said(torch.nn.Module):
    """One place with a sure object, one with a sure background, one that knows nothing."""

    def __init__(self, seed, **told):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.logits = torch.nn.Parameter(torch.tensor([[[-9.0, 9, -9], [9, -9, -9], [-1, -1, -1]]]) + seed)
        self.boxes = torch.nn.Parameter(torch.randn(1, 3, 4, generator=draw))
        vars(self).update(told)

    def predictions(self, images):
        return self.boxes, self.logits


@pytest.mark.parametrize(
    ("told", "softmax", "sure"),
    [({}, True, [1, 1, 0]), ({"exclusive": False}, False, [1, 1, 0]), ({"exclusive": True}, True, [1, 0, 0])],
)
def test_answers_are_learned_as_the_teacher_means_them(told, softmax, sure):
    ours, theirs = Said(1), Said(0, **told)
    objective = detecting.answering(
        lambda batch, totals: (ours.boxes.sum() * 0 + 5, {"task": 5.0}), ours, theirs, temperature=2.0, weights=(3, 7)
    )
    total, parts = objective({"inputs": torch.zeros(1, 3, 8, 8)}, {"examples": 4})
    kd = maps.classes(ours.logits, theirs.logits, temperature=2.0, exclusive=softmax)
    near = ((ours.boxes - theirs.boxes).square().sum(-1) * torch.tensor([sure])).sum()
    assert parts["kd"] == pytest.approx(3 * kd.item() / 4, abs=1e-6)
    assert parts["boxes"] == pytest.approx(7 * near.item() / 4)
    assert total.item() == pytest.approx(5 + parts["kd"] + parts["boxes"])
    total.backward()
    assert theirs.logits.grad is None
    assert theirs.boxes.grad is None
    ours.boxes.data = torch.zeros(1, 2, 4)
    with pytest.raises(InputError, match="they have to be alike"):
        objective({"inputs": torch.zeros(1, 3, 8, 8)}, {"examples": 4})
