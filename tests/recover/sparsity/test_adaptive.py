"""Moving masks: what the model sees, where gradients go, the decoupled decay, and what is left in the end."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

import processes
from recover import sharded
from recover.students import Batches, llama, logit_objective
from secateur._utils import storage
from secateur.errors import InputError
from secateur.recover.sparsity import adaptive
from secateur.recover.training import loop
from secateur.recover.training.schedule import ramp_up
from secateur.select.pattern import n_of_m

DATA = Batches()


def two_of_four(weight):
    return n_of_m(weight.abs(), 2, 4)


def chosen(model, choose=two_of_four):
    return {name: choose for name, _ in model.named_parameters() if name.endswith("proj.weight")}


# ------------------------------------------------------------------------------------------------------ the masks


def test_the_gradient_of_the_masked_weight_is_that_of_the_whole_weight():
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 3), torch.randn(5, 8)
    weight = layer.weight
    keep = two_of_four(weight.detach())
    masked = (weight.detach() * keep).requires_grad_()
    functional.linear(x, masked, layer.bias.detach()).square().sum().backward()
    with adaptive.moving(layer, {"weight": two_of_four}, steps=10):
        assert torch.equal(layer.weight, masked.detach())
        layer(x).square().sum().backward()
    assert torch.equal(weight.grad, masked.grad)
    assert bool((weight.grad[~keep] != 0).all())


def test_a_mask_that_stays_gives_closed_weights_no_gradient():
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 3), torch.randn(5, 8)
    keep = two_of_four(layer.weight.detach())
    with adaptive.moving(layer, {"weight": two_of_four}, steps=10, refresh=0) as masks:
        layer(x).square().sum().backward()
        assert masks.flips.shape == (0, 2)
    assert torch.equal(layer.weight.grad != 0, keep)


def test_an_ordinary_model_is_left_with_exact_zeros():
    model = llama()
    before, names = copy.deepcopy(model), [name for name, _ in model.named_parameters()]
    tied = model.lm_head.weight
    with adaptive.moving(model, chosen(model), steps=10):
        assert sum(map(parametrize.is_parametrized, model.modules())) == 14
    assert not any(map(parametrize.is_parametrized, model.modules()))
    assert [type(module) for module in model.modules()] == [type(module) for module in before.modules()]
    assert [name for name, _ in model.named_parameters()] == names
    assert model.lm_head.weight is tied is model.model.embed_tokens.weight
    old = dict(before.named_parameters())
    for name, weight in model.named_parameters():
        if name.endswith("proj.weight"):
            assert bool(((weight != 0).unflatten(1, (-1, 4)).sum(-1) == 2).all()), name
            assert torch.equal(weight, old[name] * (weight != 0))
        else:
            assert torch.equal(weight, old[name]), name


def test_leaves_keep_their_order_and_shared_weights_stay_shared():
    first, second = Conv1D(6, 8), Conv1D(6, 8)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    choose = {"0.weight": lambda weight: n_of_m(weight.abs(), 2, 4, dim=0)}
    with adaptive.moving(model, choose, steps=10):
        assert torch.equal(first.weight, second.weight)
        assert bool((first.weight == 0).any())
    assert first.weight is second.weight
    assert [name for name, _ in second.named_parameters(recurse=False)] == ["weight", "bias"]
    assert bool(((first.weight != 0).T.unflatten(1, (-1, 4)).sum(-1) == 2).all())


def test_masks_are_chosen_anew_every_few_steps_but_not_after_the_last():
    layer = nn.Linear(4, 1, bias=False)
    values = iter([[4.0, 3, 2, 1], [4.0, 1, 2, 3], [1.0, 2, 3, 4], [9.0, 9, 1, 1]])
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([next(values)]))
    with adaptive.moving(layer, {"weight": two_of_four}, steps=8, refresh=2) as masks:
        weight = layer.parametrizations.weight.original
        seen = []
        for step in range(1, 9):
            if step in (2, 4, 8):
                with torch.no_grad():
                    weight.copy_(torch.tensor([next(values)]))
            masks.after(step)
            seen.append((layer.weight != 0).int().flatten().tolist())
    assert seen[0] == [1, 1, 0, 0]
    assert seen[1] == seen[2] == [1, 0, 0, 1]
    assert seen[3] == seen[7] == [0, 0, 1, 1]  # the weights of step 8 would have made it 1, 1, 0, 0
    assert masks.flips.tolist() == [[0.5, 0.5], [0.5, 1.0], [0.0, 1.0]]
    assert masks.record() == [(2, 0.5, 0.5), (4, 0.5, 1.0), (6, 0.0, 1.0)]


def test_a_long_record_is_thinned():
    layer = nn.Linear(4, 1, bias=False)
    with adaptive.moving(layer, {"weight": two_of_four}, steps=10_001, refresh=10) as masks:
        record = masks.record()
    assert len(record) == 100
    assert (record[0][0], record[-1][0]) == (10, 10_000)


def test_what_is_not_there_is_refused():
    with (
        pytest.raises(InputError, match="no parameter 'wait' to mask"),
        adaptive.moving(nn.Linear(4, 1), {"wait": two_of_four}, steps=1),
    ):
        pass
    with pytest.raises(InputError, match="refresh=-1"):
        adaptive.Adaptive(nn.Linear(4, 1), {}, steps=1, refresh=-1)


# -------------------------------------------------------------------------------------------------- the optimiser


def stepped(weight, gradients, make, **options):
    weight = nn.Parameter(weight.clone())
    optimizer = make([weight], **options)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach(), optimizer.state[weight]


def problem():
    torch.manual_seed(0)
    weight = torch.randn(6, 8, dtype=torch.float64)
    return weight, ~two_of_four(weight), [torch.randn_like(weight) for _ in range(7)]


def decoupled(closed, decay, **more):
    def make(params, **options):
        mask = {params[0]: closed} if closed is not None else {}
        return adaptive.DecoupledAdamW(params, lambda: mask, decay=decay, **options, **more)

    return make


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_it_is_adamw_where_the_mask_is_open_and_without_a_mask(weight_decay):
    weight, closed, gradients = problem()
    options = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": weight_decay}
    plain, _ = stepped(weight, gradients, torch.optim.AdamW, **options)
    without, _ = stepped(weight, gradients, decoupled(None, lambda step: 0.5), **options)
    torch.testing.assert_close(without, plain, rtol=1e-12, atol=0)
    for strength in (0.0, 0.5):  # whatever pulls at closed weights
        found, _ = stepped(weight, gradients, decoupled(closed, lambda step, s=strength: s), **options)
        torch.testing.assert_close(found[~closed], plain[~closed], rtol=1e-12, atol=0)
        assert bool((found[closed] != plain[closed]).all()) == (strength > 0)


@pytest.mark.parametrize("moment", ["both", "gradient", "update"])
def test_a_step_is_that_of_the_paper_but_for_the_scale_of_closed_weights(moment):
    """The decay is in the second moment of "both", not in that of "gradient"; that of "update" is the paper's."""
    weight, closed, gradients = problem()
    lr, (b1, b2), eps, wd = 1e-2, (0.9, 0.95), 1e-8, 0.1
    make = decoupled(closed, lambda step: ramp_up(step, top=0.3, steps=4), moment=moment)
    found, state = stepped(weight, gradients, make, lr=lr, weight_decay=wd)
    w, m, v = weight[closed].clone(), torch.zeros(1), torch.zeros(1)
    for t, gradient in enumerate(gradients, 1):
        m = b1 * m + (1 - b1) * gradient[closed]
        pull = 0.3 * min(1.0, (t - 1) / 4) * w
        u = m + pull
        scale = {"both": gradient[closed] + pull, "gradient": gradient[closed], "update": u}[moment]
        v = b2 * v + (1 - b2) * scale**2
        w = w * (1 - lr * wd) - lr / (1 - b1**t) * u / ((v / (1 - b2**t)).sqrt() + eps)
    torch.testing.assert_close(found[closed], w, rtol=1e-12, atol=0)
    torch.testing.assert_close(state["exp_avg"][closed], m, rtol=1e-12, atol=0)
    torch.testing.assert_close(state["exp_avg_sq"][closed], v, rtol=1e-12, atol=0)


def test_parameters_without_a_gradient_wait_and_time_goes_on():
    asked, told = [], []
    weights = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]
    optimizer = adaptive.DecoupledAdamW(
        weights, dict, decay=lambda step: float(asked.append(step) or 0), after=told.append
    )
    for step in range(3):
        weights[0].grad = torch.ones(2)
        weights[1].grad = torch.ones(2) if step == 1 else None
        optimizer.step()
    assert asked == [0, 1, 2]
    assert told == [1, 2, 3]
    assert [int(optimizer.state[weight]["step"]) for weight in weights] == [3, 1]
    with pytest.raises(InputError, match="give betas"):
        adaptive.DecoupledAdamW(weights, dict, decay=float, betas=(0.9, 1.0))


# ------------------------------------------------------------------------------------------------------- training


class StoppedError(Exception):
    pass


def trained(folder=None, stop=None, **options):
    student, teacher = llama(0), llama(1)
    inner, calls = logit_objective(student, teacher), itertools.count()

    def objective(batch, totals):
        if next(calls) == stop:
            raise StoppedError
        return inner(batch, totals)

    with adaptive.moving(student, chosen(student), steps=12, refresh=options.pop("refresh", 2)) as masks:
        done = loop.train(
            student, DATA, objective, steps=12, lr=1e-2, optimizer=masks.adamw(decay=1e-3, ramp=4), extra=[masks],
            checkpoint=folder, every=3, progress=False, **options,
        )  # fmt: skip
        flips = masks.flips.clone()
    return student, flips, done


def unpack_checkpoint(path):
    """Write the masks as 0.1.0 had them, a byte for each boolean."""
    tensors, text = storage.read(path)
    shapes = {name: parameter.shape for name, parameter in llama(0).named_parameters()}
    for name in [name for name in tensors if name.endswith(".0.bits")]:
        weight = name.removeprefix("0.").replace(".parametrizations", "").removesuffix(".0.bits")
        tensors[name.replace(".bits", ".keep")] = adaptive.unpack_bits(tensors.pop(name), shapes[weight])
    storage.write(path, tensors, text)


def test_training_moves_masks_and_a_killed_run_ends_with_the_same_bytes(tmp_path):
    whole, flips, done = trained(tmp_path / "whole")
    assert bool((flips[:, 0] > 0).all())
    assert done.settings["optimizer"] == "decoupled_adamw(decay=0.001, ramp=4, betas=(0.9, 0.95), refresh=2)"
    with pytest.raises(StoppedError):
        trained(tmp_path / "killed", stop=8)  # the checkpoint is of step 6
    (checkpoint,) = (tmp_path / "killed").glob("*.safetensors")
    unpack_checkpoint(checkpoint)
    again, same, _ = trained(tmp_path / "killed")
    assert torch.equal(flips, same)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    first = two_of_four(llama(0).model.layers[0].self_attn.q_proj.weight)
    assert not torch.equal(whole.model.layers[0].self_attn.q_proj.weight != 0, first)


def test_half_precision_weights_come_back_in_half_precision():
    student = llama(0).to(torch.bfloat16)
    teacher = llama(1)
    with adaptive.moving(student, chosen(student), steps=2, refresh=1) as masks:
        loop.train(
            student, DATA, logit_objective(student, teacher), steps=2, lr=1e-2,
            optimizer=masks.adamw(decay=1e-3, ramp=0), extra=[masks], progress=False,
        )  # fmt: skip
    weight = student.model.layers[0].mlp.up_proj.weight
    assert weight.dtype == torch.bfloat16
    assert bool(((weight != 0).unflatten(1, (-1, 4)).sum(-1) <= 2).all())


@pytest.mark.slow
def test_masks_follow_the_shards_of_two_processes(tmp_path):
    processes.both(lambda: sharded.write(tmp_path / "two"))
    two, one = load_file(tmp_path / "two"), sharded.run()
    assert torch.equal(two["flips"], one["flips"])
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-9, atol=1e-12)


# --------------------------------------------------------------------------------------------------- side branches


def test_a_branch_gives_back_the_sum_of_every_group():
    torch.manual_seed(0)
    weight = torch.randn(6, 32, dtype=torch.float64)
    keep = two_of_four(weight)
    sparse = weight * keep
    for k in (4, 8, 32):
        X, S = adaptive.branch(weight, keep, k)
        assert X.shape == (32 // k, 32)
        assert S.shape == (6, 32 // k)
        assert X.sum(1).tolist() == [k] * (32 // k)
        restored = sparse + S @ X
        torch.testing.assert_close(restored.unflatten(1, (-1, k)).sum(2), weight.unflatten(1, (-1, k)).sum(2))
        before, after = (weight - sparse).square().sum(), (weight - restored).square().sum()
        torch.testing.assert_close(before - after, k * S.square().sum())
        assert torch.equal(adaptive.branch(weight, keep, k, "sum")[1], (weight - sparse).unflatten(1, (-1, k)).sum(2))


def test_a_branch_may_begin_at_zero():
    weight = torch.randn(6, 8)
    draw = torch.Generator().manual_seed(3)
    X, S = adaptive.branch(weight, weight > 0, 4, "xavier", generator=draw)
    again, _ = adaptive.branch(weight, weight > 0, 4, "xavier", generator=torch.Generator().manual_seed(3))
    assert torch.equal(X, again)
    assert float(X.abs().max()) <= (6 / (2 + 8)) ** 0.5
    assert not bool(S.any())


def test_a_branch_that_does_not_fit_is_refused():
    weight = torch.ones(2, 8)
    for k in (0, 3, 16):
        with pytest.raises(InputError, match=f"k={k} does not divide the 8 inputs"):
            adaptive.branch(weight, weight > 0, k)
    with pytest.raises(InputError, match="give 'mean', 'sum' or 'xavier'"):
        adaptive.branch(weight, weight > 0, 4, "median")


@pytest.mark.parametrize("shape", [(3, 5), (8,), (2, 4, 6), (1,)])
def test_bits_are_the_booleans_they_were_made_of(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    bits = adaptive.pack_bits(mask)
    assert bits.numel() == -(-mask.numel() // 8)
    assert torch.equal(adaptive.unpack_bits(bits, mask.shape), mask)


def test_a_mask_takes_a_bit_and_a_checkpoint_of_0_1_0_with_bytes_loads() -> None:
    linear = nn.Linear(64, 32, bias=False)
    keep = torch.rand(32, 64, generator=torch.Generator().manual_seed(0)) < 0.5
    with adaptive.moving(linear, {"weight": lambda weight: weight > 0}, steps=4) as masks:
        stored = dict(linear.named_buffers())
        assert sum(tensor.nbytes for tensor in stored.values()) == 2 * 32 * 64 // 8
        old = {name: tensor for name, tensor in linear.state_dict().items() if not name.endswith("bits")}
        linear.load_state_dict(old | {"parametrizations.weight.0.keep": keep})
        (closed,) = masks.closed_weights().values()
        assert torch.equal(closed, ~keep)
    assert torch.equal(linear.weight != 0, keep)
