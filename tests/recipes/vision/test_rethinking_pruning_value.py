"""What the control experiment rests on: fair epochs, fresh shapes, cuts and masks that are what they are called."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import toys
from recipes.vision import nets
from secateur._utils.rundir import Run
from secateur.data.examples import Examples
from secateur.errors import BudgetError, DataError, InfeasibleError, InputError, UnsupportedError
from secateur.recipes.vision import rethinking_pruning_value as rethinking
from secateur.recover.sparsity import masks
from secateur.recover.training import loop
from secateur.vocabulary import Budget, Figure

DATA = nets.data()
HALF = Budget.parse("channels=50%")


@pytest.fixture(scope="module")
def dense():
    return nets.opened(nets.vgg())


def results(root, subject, budget=HALF, **options):
    quick = {"epochs": 4, "batch": 24, "lr": 0.05, **options}
    with Run.open(root, {}) as run:
        return list(rethinking.rethinking_pruning_value(subject, DATA, [budget], run, **quick))


def test_predefined_widths_are_the_request(dense):
    for given in ("3,5,6,2", ["3", "5", "6", "2"]):
        pruned = rethinking.prune(dense, HALF, "l1", widths=given)
        widths = [module.out_channels for module in pruned.student.model if isinstance(module, nn.Conv2d)]
        assert widths == [3, 5, 6, 2]
    with pytest.raises(InputError, match="4"):
        rethinking.prune(dense, HALF, "l1", widths="3,5")
    with pytest.raises(InfeasibleError, match="channels"):
        rethinking.prune(dense, HALF, "l1", widths="8,8,12,2")
    with pytest.raises(InputError, match="whole numbers"):
        rethinking.prune(dense, HALF, "l1", widths="3,x,6,2")


def test_l1_keeps_the_largest_filters_and_takes_the_same_share_everywhere(dense):
    pruned = rethinking.prune(dense, HALF, "l1")
    whole, left = dense.model, pruned.student.model
    norms = whole[0].weight.detach().abs().sum((1, 2, 3))
    chosen = norms.topk(4).indices.sort().values
    assert torch.equal(left[0].weight, whole[0].weight[chosen])
    assert torch.equal(left[1].running_mean, whole[1].running_mean[chosen])
    assert torch.equal(left[1].running_var, whole[1].running_var[chosen])
    assert [m.out_channels for m in left if isinstance(m, nn.Conv2d)] == [4, 4, 6, 6]


def test_slimming_ranks_scales_over_all_layers(dense):
    pruned = rethinking.prune(dense, HALF, "slimming")
    norms = [m for m in dense.model if isinstance(m, nn.BatchNorm2d)]
    every = torch.cat([norm.weight.detach() for norm in norms])
    least = every.topk(20).values[-1]
    expected = [int((norm.weight >= least).sum()) for norm in norms]
    assert [m.num_features for m in pruned.student.model if isinstance(m, nn.BatchNorm2d)] == expected
    assert len(set(expected)) > 1


def test_slimming_needs_batch_norms():
    bare = nets.opened(nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4)))
    with pytest.raises(UnsupportedError, match="batch norm"):
        rethinking.prune(bare, HALF, "slimming")
    with pytest.raises(UnsupportedError, match="batch norm"):
        rethinking.scales_l1(bare.model, 1e-4)


def test_the_penalty_has_the_subgradient_of_the_sign(dense):
    model = rethinking.duplicate(dense).model
    with torch.no_grad():
        model[1].weight[:4] *= -1
    rethinking.scales_l1(model, 1e-3).backward()
    assert torch.allclose(model[1].weight.grad, 1e-3 * model[1].weight.sign())
    assert model[0].weight.grad is None


@pytest.mark.parametrize("method", ["l1", "slimming", "soft"])
def test_the_cut_equals_the_silenced_network(dense, method):
    pruned = rethinking.prune(dense, HALF, method)
    silent = dense.silence(pruned.selection)
    inputs = DATA.inputs[:32]
    assert torch.allclose(pruned.student.forward(inputs), silent.forward(inputs), atol=1e-5)


def test_channels_that_a_sum_ties_stay_unless_asked_for(tied):
    free = [site.name for site in rethinking.sites(tied).free()]
    assert len(free) == 2
    assert len(rethinking.sites(tied, inner=False).free()) == 3
    pruned = rethinking.prune(tied, Budget.parse("channels=80%"), "l1")
    assert pruned.student.model[0].out_channels == 6
    assert pruned.student.model[1].a.out_channels < 6


@pytest.mark.parametrize("method", ["thinet", "regression"])
def test_refitted_layers_reconstruct_better_than_bare_cuts(dense, method):
    batches = [{"inputs": DATA.inputs[:64], "labels": DATA.labels[:64]}]
    before = {name: tensor.clone() for name, tensor in dense.model.state_dict().items()}
    pruned = rethinking.prune(dense, HALF, method, batches=batches)
    bare = dense.cut(pruned.selection)[0]
    with torch.no_grad():
        inputs = DATA.inputs[:64]
        target = dense.model.eval()(inputs)
        ours, theirs = ((one.model.eval()(inputs) - target).square().mean() for one in (pruned.student, bare))
    assert ours < 0.7 * theirs
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.model.state_dict().items())


def test_soft_filters_are_zero_after_an_epoch_and_learn_between(dense):
    start = rethinking.duplicate(dense)
    seen = []

    def zero():
        seen.append(int((start.model[0].weight.abs().sum((1, 2, 3)) == 0).sum()))
        rethinking.soften(start, HALF)

    rethinking.fit(start.model, DATA, epochs=2, lr=0.05, batch=24, epoch_end=zero)
    assert seen == [0, 0]  # zeroed filters have learnt again by the end of the second epoch
    assert int((start.model[0].weight.abs().sum((1, 2, 3)) == 0).sum()) == 4


def test_unstructured_keeps_the_largest_weights_of_convolutions_alone(dense):
    pruned = rethinking.prune(dense, Budget.parse("weights=20%"), "unstructured")
    whole, left = masks.convolutions(dense.model), masks.convolutions(pruned.student.model)
    every = torch.cat([weight.detach().abs().flatten() for weight in whole.values()])
    kept = sum(int(mask.sum()) for mask in pruned.masks.values())
    assert kept == int(0.2 * every.numel())
    least = every.topk(kept).values[-1]
    for name, weight in left.items():
        assert torch.equal(weight != 0, whole[name].abs() >= least)
    assert torch.equal(pruned.student.model[-1].weight, dense.model[-1].weight)
    assert pruned.cut.after["weights"] == kept
    again, closed = pruned.chance(3)
    assert {n: int(m.sum()) for n, m in closed.items()} == {n: int(m.sum()) for n, m in pruned.masks.items()}
    assert any(not torch.equal(closed[name], pruned.masks[name]) for name in closed)
    assert all(torch.equal(masks.convolutions(again.model)[n] != 0, closed[n]) for n in closed)


def test_scratch_b_costs_what_the_large_network_cost(dense):
    large = rethinking.forward_flops(dense)
    for text in ("channels=75%", "channels=50%", "channels=25%"):
        student = rethinking.prune(dense, Budget.parse(text), "l1").student
        small = rethinking.forward_flops(student)
        for epochs in (1, 7, 160):
            stretched = rethinking.epochs_for(epochs, large, small)
            assert stretched * small <= epochs * large < (stretched + 1) * small
            assert rethinking.epochs_for(epochs, large, small, cap=2) <= 2 * epochs
    assert rethinking.epochs_for(160, 1.0, 1.0) == 160


def test_nothing_pruned_is_the_same_network_and_the_same_epochs(dense):
    pruned = rethinking.prune(dense, Budget.parse("channels=100%"), "l1")
    inputs = DATA.inputs[:8]
    assert torch.equal(pruned.student.forward(inputs), dense.forward(inputs))
    assert rethinking.epochs_for(12, rethinking.forward_flops(dense), rethinking.forward_flops(pruned.student)) == 12


def test_rates_decay_at_half_and_three_quarters_however_long(dense):
    for epochs in (4, 8):
        rates = []
        model = rethinking.duplicate(dense).model

        class Watching(torch.optim.SGD):
            def step(self, closure=None):
                rates.append(self.param_groups[0]["lr"])  # noqa: B023
                return super().step(closure)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.optim, "SGD", Watching)
            rethinking.fit(model, DATA, epochs=epochs, lr=0.1, batch=24)
        steps = epochs * 10
        assert len(rates) == steps
        expected = [0.1] * (steps // 2) + [0.01] * (steps // 4) + [0.001] * (steps // 4)
        assert np.allclose(rates, expected)


def test_arms_share_shapes_and_order_but_no_weights(dense, monkeypatch):
    pruned = rethinking.prune(dense, HALF, "l1")
    seen = {}
    train = rethinking.loop.train

    def spy(model, feed, *args, **kwargs):
        seen[len(seen)] = [feed[i]["inputs"].sum().item() for i in range(10)]
        return train(model, feed, *args, **kwargs)

    monkeypatch.setattr(rethinking.loop, "train", spy)
    arms = rethinking.trial(pruned, DATA, DATA, epochs=2, lr=0.05, batch=24, chance=True)
    assert list(arms) == ["fine-tuned", "scratch-E", "scratch-B", "random units"]
    assert all(order == seen[0] for order in seen.values())
    shapes = [{n: t.shape for n, t in arm.model.state_dict().items()} for arm in arms.values()]
    assert all(one == shapes[0] for one in shapes)
    assert arms["scratch-E"].epochs == 2 < arms["scratch-B"].epochs
    assert arms["fine-tuned"].epochs == 1
    assert arms["scratch-B"].flops <= 2 * 3 * len(DATA) * rethinking.forward_flops(dense) / 2
    assert len({tensor.data_ptr() for arm in arms.values() for tensor in arm.model.parameters()}) == sum(
        len(list(arm.model.parameters())) for arm in arms.values()
    )
    # The student that was handed in is as it was.
    assert torch.equal(pruned.student.model[0].weight, rethinking.prune(dense, HALF, "l1").student.model[0].weight)


def test_masked_arms_stay_masked(dense):
    pruned = rethinking.prune(dense, Budget.parse("weights=30%"), "unstructured")
    arms = rethinking.trial(pruned, DATA, DATA, epochs=2, lr=0.05, batch=24)
    for arm in arms.values():
        for name, weight in masks.convolutions(arm.model).items():
            assert bool((weight[~pruned.masks[name]] == 0).all())
    assert arms["scratch-B"].epochs > 2  # zeros count as if they saved their time


def test_a_network_from_a_constructor_must_have_the_cut_shape(dense):
    pruned = rethinking.prune(dense, HALF, "l1")
    made = rethinking.trial(
        pruned, DATA, DATA, mode="E", epochs=1, batch=24, build=lambda: rethinking.duplicate(pruned.student).model
    )
    assert "scratch-E" in made
    with pytest.raises(InputError, match="shape"):
        rethinking.trial(pruned, DATA, DATA, mode="E", epochs=1, batch=24, build=nets.vgg)


@pytest.fixture(scope="module")
def tied():
    return nets.opened(nets.residual())


def test_scales_of_blocks_are_brought_to_zero_and_folded_in(tied):
    seen = []

    def fitting(model, extra, step_end):
        rethinking.fit(model, DATA, epochs=2, lr=0.05, batch=24, extra=extra, step_end=step_end)
        seen.append(extra[0].lambda_.detach().clone())
        model.eval()
        with torch.no_grad():
            seen.append(model(DATA.inputs[:8]))

    found = rethinking.scaled(tied, 0.5, fitting)
    assert bool((seen[0] < 0.9).all())
    assert list(found.scales.values()) == seen[0].abs().tolist()
    with torch.no_grad():
        assert torch.allclose(found.model.eval()(DATA.inputs[:8]), seen[1], atol=1e-5)
    gone = rethinking.scaled(tied, 100.0, fitting)  # a strength at which no branch survives
    assert list(gone.scales.values()) == [0.0, 0.0]
    assert bool((gone.model[1].b.weight == 0).all())


def test_the_block_of_the_smallest_scale_goes(tied):
    copied = rethinking.duplicate(tied)
    subject = rethinking.Scaled(copied.model, copied.inputs)
    names = [branch.name for branch in rethinking.Branches(tied)]
    subject.scales = dict(zip(names, (0.1, 0.7), strict=True))
    pruned = rethinking.prune(subject, Budget.parse("branches=50%"), "blocks")
    with torch.no_grad():
        x = DATA.inputs[:4]
        expected = tied.model.eval()[3:](tied.model[2](tied.model[0](x)))
        assert torch.allclose(pruned.student.model.eval()(x), expected, atol=1e-5)
    assert pruned.cut.removed == {"branches": (1, 2)}
    others = {tuple(pruned.chance(seed)[0].model.state_dict()) for seed in range(6)}
    assert len(others) == 2


def test_blocks_have_their_arms(tied, tmp_path):
    (found,) = results(tmp_path, tied, Budget.parse("branches=50%"), method="blocks", epochs=2)
    assert "scratch-B" in found.notes[-1]
    assert found.cut.removed == {"branches": (1, 2)}


@pytest.mark.parametrize("method", [method for method in rethinking.METHODS if method != "blocks"])
def test_every_method_runs_and_tells_its_arms(dense, tmp_path, method):
    budget = Budget.parse("weights=30%") if method == "unstructured" else HALF
    (found,) = results(tmp_path, dense, budget, method=method, epochs=2)
    assert found.recovery.steps == 9  # a quarter of two epochs, at least one, of nine tenths of the examples
    for word in ("fine-tuned (classic)", "scratch-E", "scratch-B", "epochs", "FLOPs", "points"):
        assert word in found.notes[-1]
    assert not found.cut.is_noop


def test_the_whole_protocol_learns_and_repeats_and_resumes(tmp_path):
    subject = nets.opened(nets.vgg())
    first = results(tmp_path / "a", subject, untrained=True, finetune="rewind", scratch="E")
    again = results(tmp_path / "b", subject, untrained=True, finetune="rewind", scratch="E")
    resumed = results(tmp_path / "a", subject, untrained=True, finetune="rewind", scratch="E")
    states = [found[0].subject.model.state_dict() for found in (first, again, resumed)]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
        assert torch.equal(tensor, states[2][name]), name
    assert first[0].notes == again[0].notes == resumed[0].notes
    assert rethinking.right(first[0].subject.model, nets.data(seed=9)).mean() > 0.9
    assert "scratch-B" not in first[0].notes[-1]


def test_a_dry_run_trains_nothing(dense, tmp_path):
    (found,) = results(tmp_path, dense, dry_run=True)
    assert found.recovery is None
    assert found.notes == ()
    chosen = rethinking.prune(dense, HALF, "l1").student.model.state_dict()
    assert all(torch.equal(chosen[name], tensor) for name, tensor in found.subject.model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"method": "l2"}, InputError, "l1, slimming"),
        ({"finetune": "long"}, InputError, "rewind"),
        ({"scratch": "C"}, InputError, "both"),
        ({"method": "slimming", "widths": "1,2,3,4"}, InputError, "widths"),
        ({"method": "unstructured"}, BudgetError, "weights=10%"),
        ({"budget": Budget.parse("weights=10%")}, BudgetError, "channels=50%"),
    ],
)
def test_what_does_not_fit_is_refused(dense, tmp_path, options, error, words):
    with pytest.raises(error, match=words):
        results(tmp_path, dense, **options)


@pytest.mark.parametrize(
    ("method", "budget"),
    [("l1", "channels=100%"), ("soft", "channels=100%,params=100%"), ("unstructured", "weights=100%")],
)
def test_a_budget_that_keeps_everything_is_refused_before_training(dense, tmp_path, monkeypatch, method, budget):
    monkeypatch.setattr(loop, "train", lambda *args, **kwargs: pytest.fail("trained before it refused"))
    with pytest.raises(InfeasibleError, match=f"budget {budget} would change nothing"):
        results(tmp_path, dense, Budget.parse(budget), method=method, untrained=True)


@pytest.mark.parametrize(
    ("budget", "options", "words"),
    [
        ("channels=0.1%", {}, "channels can go down to 4"),
        ("channels=0.1%", {"method": "slimming"}, "channels can go down to 4"),
        ("weights=0.01%", {"method": "unstructured"}, "weights can go down to 4"),
        ("channels=50%", {"widths": "3,5"}, "widths name 2 sites of 4"),
        ("channels=50%", {"widths": "8,8,12,2"}, "these widths cost channels=30"),
    ],
)
def test_what_can_not_be_met_is_refused_before_training(dense, tmp_path, monkeypatch, budget, options, words):
    monkeypatch.setattr(loop, "train", lambda *args, **kwargs: pytest.fail("trained before it refused"))
    with pytest.raises((InfeasibleError, InputError), match=words):
        results(tmp_path, dense, Budget.parse(budget), untrained=True, **options)


def test_widths_say_on_their_own_what_goes(dense, tmp_path):
    (found,) = results(tmp_path, dense, Budget.parse("channels=100%"), widths="3,5,6,2", dry_run=True)
    assert not found.cut.is_noop


def test_a_batch_of_one_is_one_line_where_a_batch_norm_learns(tmp_path):
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 8),
        nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4),
    )  # fmt: skip
    with pytest.raises(InputError, match="batches of at least 2 examples"):
        results(tmp_path, nets.opened(net), batch=1)


def test_examples_without_classes_are_refused(dense, tmp_path):
    with Run.open(tmp_path, {}) as run, pytest.raises(DataError, match="classes"):
        list(rethinking.rethinking_pruning_value(dense, Examples(DATA.inputs), [HALF], run))


def test_epochs_are_epochs_when_gradients_are_accumulated(dense):
    model = rethinking.duplicate(dense).model
    seen = []
    found = rethinking.fit(
        model, DATA, epochs=3, lr=0.05, batch=24, training="accumulate=2,clip=1", epoch_end=lambda: seen.append(1)
    )
    assert found.steps == 15
    assert found.tokens == 3 * len(DATA)
    assert len(seen) == 3
    with pytest.raises(DataError, match="classes"):
        rethinking.fit(model, Examples(DATA.inputs), epochs=1, lr=0.05)


def test_verdicts_follow_the_interval():
    assert "inherited" in rethinking.judge(Figure(1.0, 0.2, 1.8))
    assert "scratch" in rethinking.judge(Figure(-1.0, -1.8, -0.2))
    assert "tie" in rethinking.judge(Figure(0.1, -0.2, 0.4))
    assert "no verdict" in rethinking.judge(Figure(3.0))


def toy(_):
    """What `conformance.check_recipe` takes: see tests/conformance."""
    return toys.classifier(epochs=4, batch=24, scratch="E")
