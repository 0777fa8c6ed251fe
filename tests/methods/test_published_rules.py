"""Cuts and masks that are what they are called, and the sparse trainings before them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import small_vision as vision
from recipes.vision import nets
from secateur.errors import InfeasibleError, InputError, UnsupportedError
from secateur.methods import arms
from secateur.methods import published_rules as rules
from secateur.recover.sparsity import masks
from secateur.subjects.network.traced import Traced, open_traced
from secateur.vocabulary import Budget

DATA = nets.data()
HALF = Budget.parse("channels=50%")


@pytest.fixture(scope="module")
def dense() -> Traced:
    return nets.opened(nets.vgg())


@pytest.fixture(scope="module")
def tied() -> Traced:
    return nets.opened(nets.residual())


def widths(model: nn.Module) -> list[int]:
    return [module.out_channels for module in model if isinstance(module, nn.Conv2d)]


@pytest.mark.parametrize("given", ["3,5,6,2", ["3", "5", "6", "2"]])
def test_predefined_widths_are_the_request(dense: Traced, given: str | list[str]) -> None:
    assert widths(rules.prune(dense, HALF, "l1", widths=given).student.model) == [3, 5, 6, 2]


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ("3,5", InputError, "widths name 2 sites of 4"),
        ("8,8,12,2", InfeasibleError, "these widths cost channels=30"),
        ("3,x,6,2", InputError, "whole numbers"),
    ],
)
def test_widths_that_do_not_fit_are_refused(dense: Traced, given: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        rules.prune(dense, HALF, "l1", widths=given)


def test_l1_keeps_the_largest_filters_and_takes_the_same_share_everywhere(dense: Traced) -> None:
    pruned = rules.prune(dense, HALF, "l1")
    whole, left = dense.model, pruned.student.model
    norms = whole[0].weight.detach().abs().sum((1, 2, 3))
    chosen = norms.topk(4).indices.sort().values
    assert torch.equal(left[0].weight, whole[0].weight[chosen])
    assert torch.equal(left[1].running_mean, whole[1].running_mean[chosen])
    assert widths(left) == [4, 4, 6, 6]
    everything = rules.prune(dense, Budget.parse("channels=100%"), "l1").student
    assert torch.equal(everything.forward(DATA.inputs[:8]), dense.forward(DATA.inputs[:8]))


def test_slimming_ranks_scales_over_all_layers(dense: Traced) -> None:
    pruned = rules.prune(dense, HALF, "slimming")
    norms = [m for m in dense.model if isinstance(m, nn.BatchNorm2d)]
    least = torch.cat([norm.weight.detach() for norm in norms]).topk(20).values[-1]
    expected = [int((norm.weight >= least).sum()) for norm in norms]
    assert [m.num_features for m in pruned.student.model if isinstance(m, nn.BatchNorm2d)] == expected
    assert len(set(expected)) > 1


def test_slimming_needs_batch_norms() -> None:
    bare = nets.opened(nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4)))
    with pytest.raises(UnsupportedError, match="batch norm"):
        rules.prune(bare, HALF, "slimming")
    with pytest.raises(UnsupportedError, match="batch norm"):
        rules.penalise_scales(bare.model, 1e-4)


def test_the_penalty_has_the_subgradient_of_the_sign(dense: Traced) -> None:
    model = rules.duplicate(dense).model
    with torch.no_grad():
        model[1].weight[:4] *= -1
    rules.penalise_scales(model, 1e-3).backward()
    assert torch.allclose(model[1].weight.grad, 1e-3 * model[1].weight.sign())
    assert model[0].weight.grad is None


@pytest.mark.parametrize("rule", ["l1", "slimming", "soft"])
def test_the_cut_equals_the_silenced_network(dense: Traced, rule: rules.Rule) -> None:
    pruned = rules.prune(dense, HALF, rule)
    inputs = DATA.inputs[:32]
    assert torch.allclose(pruned.student.forward(inputs), dense.silence(pruned.selection).forward(inputs), atol=1e-5)


def test_channels_that_a_sum_ties_stay_unless_asked_for(tied: Traced) -> None:
    assert len(rules.sites(tied).free()) == 2
    assert len(rules.sites(tied, inner=False).free()) == 3
    pruned = rules.prune(tied, Budget.parse("channels=80%"), "l1")
    assert pruned.student.model[0].out_channels == 6
    assert pruned.student.model[1].a.out_channels < 6


def test_a_first_layer_of_grey_images_writes_channels_as_that_of_others_does() -> None:
    """By its shape alone it could be depth-wise."""
    free = []
    for channels in (1, 3):
        network = vision.resnet((6, 8), blocks=1, classes=4, channels=channels)
        free.append([site.name for site in rules.sites(open_traced(network, torch.rand(2, channels, 8, 8))).free()])
    assert free[0] == free[1]
    assert "0.channels" not in free[0]
    separable = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 4)
    )
    assert [site.count for site in rules.sites(nets.opened(separable)).free()] == [6]


@pytest.mark.parametrize("rule", ["thinet", "regression"])
def test_refitted_layers_reconstruct_better_than_bare_cuts(dense: Traced, rule: rules.Rule) -> None:
    inputs = DATA.inputs[:64]
    before = {name: tensor.clone() for name, tensor in dense.model.state_dict().items()}
    pruned = rules.prune(dense, HALF, rule, batches=[{"inputs": inputs}])
    bare = dense.cut(pruned.selection)[0]
    target = dense.forward(inputs)
    ours, theirs = ((one.forward(inputs) - target).square().mean() for one in (pruned.student, bare))
    assert ours < 0.7 * theirs
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.model.state_dict().items())


def test_soft_filters_are_zero_after_an_epoch_and_learn_between(dense: Traced) -> None:
    start = rules.duplicate(dense)
    seen = []

    def count() -> int:
        return int((start.model[0].weight.abs().sum((1, 2, 3)) == 0).sum())

    def zero() -> None:
        seen.append(count())
        rules.soften(start, HALF)

    arms.fit(start.model, DATA, epochs=2, lr=0.05, batch=24, epoch_end=zero)
    assert seen == [0, 0], "zeroed filters have learnt again by the end of the second epoch"
    assert count() == 4


def test_unstructured_keeps_the_largest_weights_of_convolutions_alone(dense: Traced) -> None:
    pruned = rules.prune(dense, Budget.parse("weights=20%"), "unstructured")
    whole, left = masks.convolutions(dense.model), masks.convolutions(pruned.student.model)
    every = torch.cat([weight.detach().abs().flatten() for weight in whole.values()])
    kept = sum(int(mask.sum()) for mask in pruned.masks.values())
    assert kept == int(0.2 * every.numel()) == pruned.cut.after["weights"]
    least = every.topk(kept).values[-1]
    for name, weight in left.items():
        assert torch.equal(weight != 0, whole[name].abs() >= least)
    assert torch.equal(pruned.student.model[-1].weight, dense.model[-1].weight)
    chance, closed = pruned.cut_at_random(3)
    assert {n: int(m.sum()) for n, m in closed.items()} == {n: int(m.sum()) for n, m in pruned.masks.items()}
    assert any(not torch.equal(closed[name], pruned.masks[name]) for name in closed)
    assert all(torch.equal(masks.convolutions(chance.model)[n] != 0, closed[n]) for n in closed)


def test_scales_of_blocks_are_brought_to_zero_and_folded_in(tied: Traced) -> None:
    scales: list[Tensor] = []
    outputs: list[Tensor] = []

    def fit(model: nn.Module, extra: list[nn.Module], **how: object) -> None:
        arms.fit(model, DATA, epochs=2, lr=0.05, batch=24, extra=extra, **how)
        scales.append(extra[0].lambda_.detach().clone())
        with torch.no_grad():
            outputs.append(model.eval()(DATA.inputs[:8]))

    trained = rules.train_scales(tied, 0.5, fit)
    assert bool((scales[0] < 0.9).all())
    assert list(trained.scales.values()) == scales[0].abs().tolist()
    assert torch.allclose(trained.forward(DATA.inputs[:8]), outputs[0], atol=1e-5)
    gone = rules.train_scales(tied, 100.0, fit)  # a strength at which no branch survives
    assert list(gone.scales.values()) == [0.0, 0.0]
    assert bool((gone.model[1].b.weight == 0).all())


def test_the_block_of_the_smallest_scale_goes(tied: Traced) -> None:
    copied = rules.duplicate(tied)
    subject = rules.Scaled(copied.model, copied.inputs)
    names = [branch.name for branch in rules.Branches(tied)]
    subject.scales = dict(zip(names, (0.1, 0.7), strict=True))
    pruned = rules.prune(subject, Budget.parse("branches=50%"), "blocks")
    x = DATA.inputs[:4]
    with torch.no_grad():
        expected = tied.model.eval()[3:](tied.model[2](tied.model[0](x)))
    assert torch.allclose(pruned.student.forward(x), expected, atol=1e-5)
    assert pruned.cut.removed == {"branches": (1, 2)}
    others = {tuple(pruned.cut_at_random(seed)[0].model.state_dict()) for seed in range(6)}
    assert len(others) == 2
