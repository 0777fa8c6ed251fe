"""SparseGPT's solver against a plain reading of the equations, and its invariants."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from secateur.errors import InputError, NumericalError
from secateur.measure import memory
from secateur.score import hessian, obs, wanda
from secateur.select import pattern, weights
from secateur.vocabulary import Pattern


def problem(d_out=6, d_in=40, tokens=200, seed=0):
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d_in, d_in, generator=draw)
    rows = torch.randn(tokens, d_in, generator=draw) @ mixing
    moments = hessian.Moments()
    moments.add(rows)
    return torch.randn(d_out, d_in, generator=draw), rows, moments.value("here")


def plain(weight, H, mask, damp=0.01):
    """One column at a time, with an inverse made anew for what is left: equation 3 of the paper, for each row alone."""
    H = H.double() + damp * H.double().diagonal().mean() * torch.eye(len(H), dtype=torch.float64)
    W = weight.double().clone()
    for i in range(W.shape[1]):
        inverse = torch.linalg.inv(H[i:, i:])
        error = torch.where(mask[:, i], 0.0, W[:, i] / inverse[0, 0])
        W[:, i:] -= error[:, None] * inverse[0]
        W[:, i] = torch.where(mask[:, i], W[:, i], 0.0)
    return W


@pytest.mark.parametrize("every", [2, 3, 4, 16, 20, 32, 128])
def test_corrections_equal_the_equations(every):
    weight, _, H = problem()
    found = obs.prune(weight, H, partial(weights.best, share=0.5, scope="matrix"), every=every, block=32)
    torch.testing.assert_close(found.weight.double(), plain(weight, H, found.mask), rtol=2e-3, atol=2e-3)
    again = obs.prune(weight, H, found.mask, every=every, block=32)
    assert torch.equal(again.weight, found.weight)


def test_the_factor_is_the_cholesky_of_the_inverse():
    _, _, H = problem()
    U = obs.factor(H, 0.01)
    damped = H + 0.01 * H.diagonal().mean() * torch.eye(len(H))
    torch.testing.assert_close(U.T @ U @ damped, torch.eye(len(H)), rtol=1e-3, atol=1e-3)
    assert torch.equal(U, U.triu())


def test_neighbours_with_the_same_moments_share_a_factor_and_what_is_done_is_let_go():
    def moments(seed):
        made = hessian.Moments()
        made.add(torch.randn(50, 8, generator=torch.Generator().manual_seed(seed)))
        return made

    first, second = moments(0), moments(1)
    given = {"q": first, "k": first, "o": second, "v": first}  # as starved experts between others may stand
    whole = {name: one.value(name).clone() for name, one in given.items()}
    places = {name: one.value(name).data_ptr() for name, one in given.items()}
    seen = []
    for names, diagonal, U in obs.factor_all(given, 0.01):
        assert not set(names) & set(given)
        assert torch.equal(diagonal, whole[names[0]].diagonal())
        assert torch.equal(U, obs.factor(whole[names[0]], 0.01))
        assert (U.data_ptr() == places[names[0]]) == (names != ["q", "k"])  # in the place of H, unless it is needed yet
        seen.append(names)
    assert not given
    assert seen == [["q", "k"], ["o"], ["v"]]


def test_a_factor_takes_one_matrix_beside_its_own():
    """Four were held at a time, of 3 GiB each where a model has 28,672 neurons."""
    H = hessian.Moments()
    H.add(torch.randn(600, 512, generator=torch.Generator().manual_seed(0)))
    made, size = H.value("here"), 512 * 512 * 4
    whole = made.clone()
    assert memory.measure_allocation(lambda: obs.factor_(made)).value < 1.5 * size
    assert torch.equal(made, obs.factor(whole))
    assert memory.measure_allocation(lambda: obs.factor(whole)).value < 2.5 * size


@pytest.mark.parametrize(("given", "bits"), [(None, 0), (None, 4), (Pattern(2, 4), 0)])
def test_all_at_once_is_each_by_itself(given, bits):
    weight, _, H = problem()
    matrices = {"q": weight, "k": 5.0 * weight.roll(3, 0), "o": 0.1 * weight.roll(2, 0)}
    for name in ("q", "k", "v", "w", "o"):
        matrices.setdefault(name, torch.randn(5, len(H), generator=torch.Generator().manual_seed(len(name))))
    shared, other = hessian.Moments(), hessian.Moments()
    shared.sum, shared.rows, other.sum, other.rows = H, 1, 2.0 * H.roll((1, 1), (0, 1)), 1
    moments = {"q": shared, "k": shared, "v": shared, "w": shared, "o": other}
    choose, every = weights.chooser(0.5, given, "matrix"), given.m if given else 16
    expected = {
        name: obs.prune(matrices[name], m.value(name), choose, every=every, bits=bits).weight
        for name, m in moments.items()
    }  # fmt: skip
    obs.prune_all(matrices, moments, choose, every=every, bits=bits, by_row=given is not None)
    assert not moments
    for name, found in matrices.items():
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-5)
        assert torch.equal(found == 0, expected[name] == 0)


def test_scores_are_fresh_at_each_group():
    """What `choose` sees holds the corrections of the columns before: n:m masks depend on them."""
    weight, _, H = problem()
    seen = []

    def choose(scores):
        seen.append(scores.clone())
        return pattern.n_of_m(scores, 2, 4)

    found = obs.prune(weight, H, choose, every=4)
    assert len(seen) == 10
    assert torch.equal(found.mask.reshape(6, 10, 4).sum(-1), torch.full((6, 10), 2))
    U = obs.factor(H)
    corrected = plain(weight, H, found.mask.clone().index_fill_(1, torch.arange(8, 40), True))[:, 8:12]
    torch.testing.assert_close(seen[2], (corrected.float() ** 2) / U.diagonal()[8:12] ** 2, rtol=1e-2, atol=1e-3)


def test_corrections_lower_the_layers_own_loss():
    draw = torch.Generator().manual_seed(0)
    mixing = torch.eye(256) + 0.06 * torch.randn(256, 256, generator=draw)
    rows = (torch.randn(1000, 256, generator=draw) @ mixing) * torch.exp(torch.randn(256, generator=draw))
    weight, H = torch.randn(24, 256, generator=draw), 2 * rows.T @ rows / 1000

    def error(pruned):
        return float(((pruned - weight) @ rows.T).square().sum())

    keep = weights.best(wanda.scores(weight, H.diagonal()), 0.5, "row")
    ours = obs.prune(weight, H, partial(weights.best, share=0.5, scope="matrix"))
    corrected = obs.prune(weight, H, keep)
    assert max(error(ours.weight), error(corrected.weight)) < 0.9 * error(weight * keep)


def test_under_a_hessian_of_the_identity_it_is_magnitude_and_changes_nothing_that_stays():
    weight, _, _ = problem()
    found = obs.prune(weight, torch.eye(40), partial(weights.best, share=0.5, scope="matrix"), every=20, block=20)
    for start in (0, 20):
        part = weight[:, start : start + 20].abs()
        assert torch.equal(found.mask[:, start : start + 20], weights.best(part, 0.5, "matrix"))
    torch.testing.assert_close(found.weight, weight * found.mask)


def test_a_mask_of_ones_changes_nothing():
    weight, _, H = problem()
    found = obs.prune(weight, H, torch.ones_like(weight, dtype=torch.bool))
    assert torch.equal(found.weight, weight)
    assert found.loss == 0.0


def test_dead_inputs_lose_their_weights_and_few_tokens_are_enough():
    weight, _, _ = problem()
    moments = hessian.Moments()
    rows = torch.randn(5, 40)
    rows[:, 3] = 0.0
    moments.add(rows)
    found = obs.prune(weight, moments.value("here"), partial(weights.best, share=0.9, scope="matrix"))
    assert not found.weight[:, 3].any()
    assert torch.isfinite(found.weight).all()


def test_rounding_leaves_pruned_weights_at_zero_and_kept_ones_on_the_grid():
    weight, _, H = problem()
    found = obs.prune(weight, H, partial(weights.best, share=0.5, scope="matrix"), bits=4)
    assert not found.weight[~found.mask].any()
    assert all(len(row.unique()) <= 16 for row in found.weight)
    with pytest.raises(InputError, match="2 to 8"):
        obs.grid(weight, 1)


def test_half_precision_comes_back_as_it_was_given():
    weight, _, H = problem()
    found = obs.prune(weight.bfloat16(), H, partial(weights.best, share=0.5, scope="matrix"))
    assert found.weight.dtype == torch.bfloat16
    assert (found.weight == 0).float().mean() >= 0.5


def test_bad_shapes_and_values_are_refused():
    weight, _, H = problem()
    with pytest.raises(InputError, match="expected"):
        obs.prune(weight, H[:5, :5], weight > 0)
    weight[0, 0] = torch.nan
    with pytest.raises(NumericalError, match="NaN"):
        obs.prune(weight, H, weight > 0)
    with pytest.raises(NumericalError, match="not positive"):
        obs.factor(-torch.eye(4))


def test_moments_do_not_depend_on_the_split_and_merge():
    rows = torch.randn(90, 7)
    whole, parts = hessian.Moments(), [hessian.Moments() for _ in range(3)]
    whole.add(rows)
    for part, some in zip(parts, rows.split([10, 50, 30]), strict=True):
        for chunk in some.split(7):
            part.add(chunk)
    merged = parts[0].merge(*parts[1:])
    assert merged.rows == 90
    torch.testing.assert_close(merged.value("x"), whole.value("x"))
    torch.testing.assert_close(whole.value("x"), 2 * rows.T @ rows / 90)
    few = hessian.Moments(diagonal=True)
    few.add(rows)
    torch.testing.assert_close(few.value("x"), whole.value("x").diagonal())
    with pytest.raises(InputError, match="layer 7 saw no token"):
        hessian.Moments().value("layer 7")
    few.add(torch.full((1, 7), torch.inf))
    with pytest.raises(NumericalError, match="layer 7"):
        few.value("layer 7")


def test_starved_experts_get_the_moments_of_their_pool():
    found = {name: hessian.Moments() for name in ("a[0]", "a[1]", "a[2]", "b[0]")}
    first, second, other = torch.randn(5, 3), torch.randn(20, 3), torch.randn(9, 3)
    found["a[0]"].add(first)
    found["a[1]"].add(second)
    found["b[0]"].add(other)
    result, starved = hessian.pool_starved(found, {name: name[0] for name in found}, floor=6)
    assert starved == ["a[0]", "a[2]"]
    rows = torch.cat([first, second])
    for name in starved:
        torch.testing.assert_close(result[name].value(name), 2 * rows.T @ rows / 25)
    assert result["a[1]"] is found["a[1]"]
    assert result["b[0]"] is found["b[0]"]


def test_the_loss_is_the_squared_error_of_the_outputs_and_chosen_at_once_sees_no_correction():
    weight, _, H = problem()
    for every in (0, 16):
        found = obs.prune(weight, H, weights.chooser(0.5, None, "matrix"), every=every)
        lower = hessian.dampened_factor(H, 0.01)
        change = (found.weight - weight).float() @ lower
        assert found.loss == pytest.approx(0.5 * float(change.square().sum()), rel=1e-3)
    pivots = obs.factor(H).diagonal().square()
    for scope in ("row", "matrix"):
        choose = weights.chooser(0.5, None, scope)
        found = obs.prune(weight, H, choose, every=0)
        assert torch.equal(found.mask, choose(weight.square() / pivots))
    matrices, moments = {"q": weight.clone()}, hessian.Moments()
    moments.sum, moments.rows = H, 1
    loss = obs.prune_all(matrices, {"q": moments}, choose, every=0)
    assert loss == found.loss
    assert torch.equal(matrices["q"], found.weight)


# -------------------------------------------------------------------------------------------------------------- GPTQ


def gptq(weight, H, bits, group, damp=0.01):
    """Column by column, as the article has it: levels of a group are made when its first column is reached."""
    U, W = obs.factor(H, damp).double(), weight.double().clone()
    for i in range(W.shape[1]):
        if i % group == 0:
            rounded = obs.grid(W[:, i : i + group].float(), bits)
        kept = rounded(W[:, i].float()).double()
        error = (W[:, i] - kept) / U[i, i]
        W[:, i] = kept
        W[:, i + 1 :] -= error[:, None] * U[i, i + 1 :]
    return W


@pytest.mark.parametrize("group", [16, 32])
@pytest.mark.parametrize("block", [16, 64])
def test_with_nothing_cut_it_is_gptq_with_groups(group, block):
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 64, generator=draw) @ torch.randn(64, 64, generator=draw)
    weight, H = torch.randn(6, 64, generator=draw), 2 * rows.T @ rows / 300
    whole = torch.ones(6, 64, dtype=torch.bool)
    found = obs.prune(weight, H, whole, every=16, block=block, bits=4, group=group).weight
    expected = gptq(weight, H, 4, group)
    assert (found - expected).abs().gt(1e-3).float().mean() < 0.02, "one level on where rounding is a tie"
    nearest = obs.round_to_nearest(weight, 4, group)
    worse = ((nearest - weight) @ H @ (nearest - weight).T).trace()
    assert ((found - weight) @ H @ (found - weight).T).trace() < 0.6 * worse
    for at in range(0, 64, group):
        part = nearest[:, at : at + group]
        assert torch.equal(part, torch.stack([obs.grid(weight[:, at : at + group], 4)(c) for c in part.T], 1))
        assert all(len(row.unique()) <= 16 for row in part)
    with pytest.raises(InputError, match="groups of 24 columns"):
        obs.prune(weight, H, whole, every=16, bits=4, group=24)
