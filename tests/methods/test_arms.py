"""Arms of one experiment: fair epochs, fresh shapes, one order of batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recipes.vision import nets
from secateur.data.examples import Examples
from secateur.errors import DataError, InputError
from secateur.methods import arms
from secateur.methods.published_rules import duplicate, prune
from secateur.recover.sparsity import masks
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget, Figure

DATA = nets.data()
HALF = Budget.parse("channels=50%")


@pytest.fixture(scope="module")
def dense() -> Traced:
    return nets.opened(nets.vgg())


def test_scratch_b_costs_what_the_large_network_cost(dense: Traced) -> None:
    large = arms.forward_flops(dense)
    for text in ("channels=75%", "channels=50%", "channels=25%"):
        small = arms.forward_flops(prune(dense, Budget.parse(text), "l1").student)
        for epochs in (1, 7, 160):
            stretched = arms.equal_flops(epochs, large, small)
            assert stretched * small <= epochs * large < (stretched + 1) * small
            assert arms.equal_flops(epochs, large, small, cap=2) <= 2 * epochs
    assert arms.equal_flops(160, large, large) == 160


def test_rates_decay_at_half_and_three_quarters_however_long(dense: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []

    class Watching(torch.optim.SGD):
        def step(self, closure: object = None) -> object:
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "SGD", Watching)
    for epochs in (4, 8):
        rates.clear()
        arms.fit(duplicate(dense).model, DATA, epochs=epochs, lr=0.1, batch=24)
        steps = epochs * 10
        assert len(rates) == steps
        assert np.allclose(rates, [0.1] * (steps // 2) + [0.01] * (steps // 4) + [0.001] * (steps // 4))


def test_epochs_are_epochs_when_gradients_are_accumulated(dense: Traced) -> None:
    seen: list[int] = []
    recovery = arms.fit(
        duplicate(dense).model, DATA, epochs=3, lr=0.05, batch=24, accumulate=2, clip=1,
        epoch_end=lambda: seen.append(1),
    )  # fmt: skip
    assert recovery is not None
    assert (recovery.steps, recovery.tokens, len(seen)) == (15, 3 * len(DATA), 3)
    with pytest.raises(DataError, match="classes"):
        arms.fit(dense.model, Examples(DATA.inputs), epochs=1, lr=0.05)


def test_what_is_done_between_steps_takes_the_momentum_and_refuses_another_optimiser(dense: Traced) -> None:
    def fit(**how: object) -> dict[str, torch.Tensor]:
        model = duplicate(dense).model
        arms.fit(model, DATA, epochs=1, lr=0.05, batch=24, **how)
        return model.state_dict()

    plain, beside = fit(momentum=0.0), fit(momentum=0.0, epoch_end=lambda: None)
    for name, tensor in plain.items():
        torch.testing.assert_close(beside[name], tensor)
    for between in ({"epoch_end": lambda: None}, {"step_end": lambda optimizer: None}):
        with pytest.raises(InputError, match="optimizer=adamw: what this method does between steps is for sgd"):
            fit(optimizer="adamw", **between)


def test_arms_that_the_judged_examples_would_stop_are_refused(dense: Traced) -> None:
    pruned = prune(dense, HALF, "l1")
    for name, value in {"patience": 1, "validation": 0.1, "keep": "best"}.items():
        with pytest.raises(InputError, match=f"{name}={value}: every arm trains for the epochs that it is compared at"):
            arms.train_arms(pruned, DATA, DATA, epochs=2, lr=0.05, **{name: value})


def test_arms_share_shapes_and_order_but_no_weights(dense: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    pruned = prune(dense, HALF, "l1")
    before = {name: tensor.clone() for name, tensor in pruned.student.model.state_dict().items()}
    orders = []
    train = arms.loop.train

    def spy(model, feed, *args, **kwargs):
        orders.append([feed[i]["inputs"].sum().item() for i in range(10)])
        return train(model, feed, *args, **kwargs)

    monkeypatch.setattr(arms.loop, "train", spy)
    trained = arms.train_arms(pruned, DATA, DATA, epochs=2, lr=0.05, batch=24, chance=True)
    assert list(trained) == ["fine-tuned", "scratch-E", "scratch-B", "random units"]
    assert all(order == orders[0] for order in orders)
    shapes = [{n: t.shape for n, t in arm.model.state_dict().items()} for arm in trained.values()]
    assert all(one == shapes[0] for one in shapes)
    assert trained["scratch-E"].epochs == 2 < trained["scratch-B"].epochs
    assert trained["fine-tuned"].epochs == 1
    assert trained["scratch-B"].flops <= 2 * 3 * len(DATA) * arms.forward_flops(dense) / 2
    parameters = [parameter for arm in trained.values() for parameter in arm.model.parameters()]
    assert len({parameter.data_ptr() for parameter in parameters}) == len(parameters)
    assert all(torch.equal(before[name], tensor) for name, tensor in pruned.student.model.state_dict().items())


@pytest.mark.parametrize(("finetune", "lr"), [("classic", 0.0005), ("rewind", 0.05)])
def test_fresh_networks_train_at_the_full_rate_and_inherited_ones_as_was_asked(
    dense: Traced, finetune: str, lr: float
) -> None:
    trained = arms.train_arms(
        prune(dense, HALF, "l1"), DATA, DATA, epochs=1, lr=0.05, batch=24, finetune=finetune, chance=True
    )
    rates = {name: (arm.recovery.settings["lr"], arm.recovery.settings["schedule"]) for name, arm in trained.items()}
    tuned = (pytest.approx(lr), "constant" if finetune == "classic" else "milestones")
    fresh = (0.05, "milestones")
    assert rates == {"fine-tuned": tuned, "scratch-E": fresh, "scratch-B": fresh, "random units": tuned}


def test_masked_arms_stay_masked(dense: Traced) -> None:
    pruned = prune(dense, Budget.parse("weights=30%"), "unstructured")
    trained = arms.train_arms(pruned, DATA, DATA, epochs=2, lr=0.05, batch=24)
    for arm in trained.values():
        for name, weight in masks.convolutions(arm.model).items():
            assert bool((weight[~pruned.masks[name]] == 0).all())
    assert trained["scratch-B"].epochs > 2  # zeros count as if they saved their time


def test_a_network_from_a_constructor_must_have_the_cut_shape(dense: Traced) -> None:
    pruned = prune(dense, HALF, "l1")
    quick = {"mode": "E", "epochs": 1, "batch": 24}
    made = arms.train_arms(pruned, DATA, DATA, build=lambda: duplicate(pruned.student).model, **quick)
    assert "scratch-E" in made
    with pytest.raises(InputError, match="shape"):
        arms.train_arms(pruned, DATA, DATA, build=nets.vgg, **quick)


@pytest.mark.parametrize(
    ("figure", "words"),
    [
        (Figure(1.0, 0.2, 1.8), "the inherited weights are better"),
        (Figure(-1.0, -1.8, -0.2), "training from scratch is better"),
        (Figure(0.1, -0.2, 0.4), "tie"),
        (Figure(3.0), "no verdict"),
    ],
)
def test_verdicts_follow_the_interval(figure: Figure, words: str) -> None:
    assert words in arms.give_verdict(figure)


NETWORK = nets.vgg()


def make_arm(right: np.ndarray) -> arms.Arm:
    return arms.Arm(1, 1.0, right, NETWORK)


def test_the_better_fresh_network_is_not_picked_on_the_examples_that_judge_it() -> None:
    """Of two equal networks the luckier one leads on what it is picked by; the verdict is by the other examples."""
    draw = np.random.default_rng(0)
    leads = []
    for _ in range(300):
        rows = draw.random((3, 40)) < 0.5
        text = arms.describe_arms(
            {"fine-tuned": make_arm(rows[0]), "scratch-E": make_arm(rows[1]), "scratch-B": make_arm(rows[2])}, "classic"
        )
        assert "the better on 20 of them" in text
        assert "over the other 20 " in text
        leads.append(float(text.rpartition("of them, ")[2].split()[0].replace("−", "-")))
    assert abs(np.mean(leads)) < 3.0, "two networks that guess are no better than one that does"


def test_one_fresh_network_is_judged_on_all_examples() -> None:
    right = np.arange(40) % 2 == 0
    text = arms.describe_arms({"fine-tuned": make_arm(right), "scratch-E": make_arm(~right)}, "rewind")
    assert "fine-tuned minus scratch-E 0" in text
    assert "over examples of one training each" in text
