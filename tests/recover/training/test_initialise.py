"""New weights in old shapes: variances, statistics, nothing shared, the same everywhere."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import tiny
from secateur.errors import InputError
from secateur.recover.training import initialise


def network() -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(8, 48, 3, groups=2), nn.BatchNorm2d(48), nn.ReLU(), nn.ConvTranspose2d(48, 20, 3),
        nn.GroupNorm(4, 20), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 30),
        nn.LayerNorm(30), nn.Linear(30, 5),
    )  # fmt: skip
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    return model


@pytest.mark.parametrize("shape", [(64, 32, 3, 3), (96, 64, 1, 1), (50, 40, 5)])
def test_a_kernel_has_the_variance_of_its_fan(shape):
    torch.manual_seed(0)
    weight = initialise.conv_(torch.empty(shape))
    n = shape[0] * math.prod(shape[2:])
    assert weight.var() == pytest.approx(2 / n, rel=0.06)


@pytest.mark.parametrize("kept", [0.5, 0.1])
def test_the_sparse_fan_gives_two_over_n_on_the_nonzeros(kept):
    torch.manual_seed(0)
    mask = torch.rand(128, 64, 3, 3) < kept
    weight = initialise.conv_(torch.empty(mask.shape), mask=mask)
    n = int(mask.sum()) / 64
    assert bool((weight[~mask] == 0).all())
    assert weight[mask].var() == pytest.approx(2 / n, rel=0.06)


def test_a_mask_of_ones_changes_nothing():
    torch.manual_seed(0)
    bare = initialise.conv_(torch.empty(8, 4, 3, 3))
    torch.manual_seed(0)
    assert torch.equal(bare, initialise.conv_(torch.empty(8, 4, 3, 3), mask=torch.ones(8, 4, 3, 3, dtype=torch.bool)))


def test_fresh_has_the_same_shapes_and_shares_nothing():
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made, notes = initialise.fresh(model, seed=1)
    assert notes == ()
    assert {n: t.shape for n, t in made.state_dict().items()} == {n: t.shape for n, t in before.items()}
    assert initialise.shared_tensors(made, model) == []
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    for name, tensor in made.named_parameters():
        assert not torch.isin(tensor, before[name]).any(), name
    assert (made[1].running_mean == 0).all()
    assert (made[1].running_var == 1).all()
    assert (made[1].weight == 1).all()
    assert made[7].weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert made[3].weight.var().item() == pytest.approx(2 / (20 * 9), rel=0.1)
    assert (initialise.fresh(model, norm=0.5)[0][1].weight == 0.5).all()
    assert initialise.fresh(model, linear=None)[0][7].weight.std() > 0.05


def test_shared_memory_is_found():
    model = network()
    other = network()
    other[0].weight = model[0].weight
    assert initialise.shared_tensors(other, model) == ["0.weight"]


def test_the_seed_decides_and_the_callers_generator_stays():
    model = network()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, again, other = (initialise.fresh(model, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one[0].weight, again[0].weight)
    assert not torch.equal(one[0].weight, other[0].weight)


def test_masks_are_applied_and_unknown_ones_refused():
    model = network()
    mask = torch.rand(model[0].weight.shape) < 0.3
    made, _ = initialise.fresh(model, masks={"0.weight": mask})
    assert torch.equal(made[0].weight != 0, mask)
    with pytest.raises(InputError, match=r"7\.weight"):
        initialise.fresh(model, masks={"7.weight": torch.ones(30, 20)})
    with pytest.raises(InputError, match="shape"):
        initialise.fresh(model, masks={"0.weight": torch.ones(3)})


def test_what_no_rule_knows_is_told():
    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.out = nn.Parameter(torch.ones(1, 1, 64)), nn.Linear(64, 2)

        def forward(self, x):
            return self.out(x + self.token)

    model = Token()
    made, notes = initialise.fresh(model)
    assert len(notes) == 1
    assert "token" in notes[0]
    assert 0.01 < made.token.std() < 0.03


class Scaled(nn.Conv2d):
    """As timm's ScaledStdConv2d."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.full((sizes[1], 1, 1, 1), 3.0))

    def reset_parameters(self) -> None:
        if hasattr(self, "gain"):
            nn.init.ones_(self.gain)
        super().reset_parameters()


class Plain(nn.Linear):
    """A parameter that nothing draws."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.full((sizes[1], 64), 3.0))


def test_what_subclasses_have_beside_weight_and_bias_is_drawn_as_well():
    torch.manual_seed(0)
    made, notes = initialise.fresh(nn.Sequential(Scaled(32, 64, 3), nn.Flatten(), Plain(8, 4)))
    assert (made[0].gain == 1).all()
    assert made[0].weight.var().item() == pytest.approx(2 / (64 * 9), rel=0.1), "the rule of convolutions stays"
    assert 0.01 < made[2].gain.std() < 0.03
    assert notes == ("drawn from N(0, 0.02) for want of a rule: 2.gain",)
    assert made[2].weight.std() < 0.02
    assert (initialise.fresh(Plain(8, 4), linear=None)[0].gain != 3).all()


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_transformers_models_draw_as_their_config_says(kind):
    model = tiny.model(kind)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    made, notes = initialise.fresh(model, seed=2)
    assert notes == ()
    std = model.config.initializer_range
    for name, parameter in made.named_parameters():
        assert not (parameter == 7.0).any(), name
        if parameter.dim() > 1 and parameter.numel() > 500:
            assert parameter.std().item() == pytest.approx(std, rel=0.25), name
    tied = model.get_output_embeddings()
    if tied is not None and model.config.tie_word_embeddings:
        assert made.get_output_embeddings().weight is made.get_input_embeddings().weight
