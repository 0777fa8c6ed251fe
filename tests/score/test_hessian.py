import itertools

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from score.networks import Block, batches, hooks
from secateur.errors import DataError, InputError, NumericalError, RunError
from secateur.score import hessian

F64 = torch.float64


def problem(d_out=5, d_in=12, n=60, seed=0, dtype=F64):
    """A weight, correlated inputs [n, d_in] and their H."""
    draw = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d_in, generator=draw, dtype=dtype) @ torch.randn(d_in, d_in, generator=draw, dtype=dtype)
    return torch.randn(d_out, d_in, generator=draw, dtype=dtype), 2 * X.T @ X / n, X


def damped(H, damp=0.01):
    return H + damp * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype)


def columns(keep, block):
    return keep.repeat_interleave(block).nonzero().flatten()


# -------------------------------------------------------------------------------------------------- collecting


def test_second_moments_of_the_inputs():
    torch.manual_seed(0)
    model, data = Block(), batches()
    found = hessian.collect(lambda b: model(b["x"]), model, data, ["up", "down"])
    X = torch.cat([b["x"][b["attention_mask"].bool()] for b in data])
    torch.testing.assert_close(found["up"], 2 * X.T @ X / len(X))
    hidden = torch.tanh(model.up(X)).detach()
    torch.testing.assert_close(found["down"], 2 * hidden.T @ hidden / len(X))
    assert found["down"].dtype == torch.float32
    assert hooks(model) == 0
    thin = hessian.diagonal(lambda b: model(b["x"]), model, data, ["down"])["down"]
    torch.testing.assert_close(thin, found["down"].diagonal())


@pytest.mark.parametrize("width", [5, 256, 257, 700])
def test_moments_are_symmetric_whenever_they_are_looked_at(width):
    rows = torch.randn(40, width, dtype=torch.float64)
    moments = hessian.Moments()
    for part in rows.split(11):
        moments.add(part)
        found = moments.value("x")
        torch.testing.assert_close(found, found.T, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.double(), 2 * rows.T @ rows / 40, rtol=1e-4, atol=1e-5)
    merged = moments.merge(moments).value("x")
    torch.testing.assert_close(merged, found)


def test_an_expert_without_tokens_is_one_that_got_its_share():
    """Not all that its layer read, beside which the norms of the others would be small."""
    rows = torch.randn(9, 4)
    found = {name: hessian.Moments(diagonal=True) for name in ("a", "b", "c", "other")}
    found["a"].add(rows[:6])
    found["b"].add(rows[6:])
    found["other"].add(rows)
    given, starved = hessian.pool_starved(found, dict.fromkeys("abc", "experts") | {"other": "other"})
    assert starved == ["c"]
    torch.testing.assert_close(given["c"].squares("c"), rows.square().sum(0) / 3)
    torch.testing.assert_close(given["b"].squares("b"), rows[6:].square().sum(0))
    torch.testing.assert_close(given["other"].squares("other"), rows.square().sum(0))


def test_bad_data_is_refused_by_name():
    model, data = Block(), batches()
    with pytest.raises(DataError, match="no batches"):
        hessian.collect(lambda b: model(b["x"]), model, [], ["up"])
    data[1]["x"][0, 0, 0] = float("nan")
    with pytest.raises(NumericalError, match=r"^up: NaN"):
        hessian.collect(lambda b: model(b["x"]), model, data, ["up"])
    blank = [{"x": torch.zeros(1, 2, 4), "attention_mask": torch.zeros(1, 2)}]
    with pytest.raises(InputError, match="padding"):
        hessian.collect(lambda b: model(b["x"]), model, blank, ["up"])


# ------------------------------------------------------------------------------------- the exact invariants


@pytest.mark.parametrize("block", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("lazy", [1, 3, 32])
def test_survivors_are_the_least_squares_solution(block, lazy, monkeypatch):
    monkeypatch.setattr(hessian, "LAZY", lazy)
    W, H, _ = problem()
    D = damped(H)
    sweep = hessian.sweep(W, H, block)
    assert sweep.levels == tuple(range(12 // block + 1))
    for level in sweep.levels:
        R = columns(sweep.keep(level), block)
        best = W @ D[:, R] @ torch.linalg.inv(D[R][:, R])
        torch.testing.assert_close(sweep.weights[level][:, R], best, rtol=1e-9, atol=1e-10)
        assert sweep.keep(level).sum() == 12 // block - level
        gone = columns(~sweep.keep(level), block)
        assert (sweep.weights[level][:, gone] == 0).all()
        assert (sweep.weights.columns[level] == sweep.weights[level][:, R]).all()


def test_to_one_part_in_ten_to_the_twelve():
    """A well-conditioned case, where 1e-12 is a statement about the method and not about the matrix."""
    draw = torch.Generator().manual_seed(1)
    X = torch.randn(400, 24, generator=draw, dtype=F64)
    W, H = torch.randn(8, 24, generator=draw, dtype=F64), 2 * X.T @ X / 400
    for block in (1, 4):
        D, sweep = damped(H), hessian.sweep(W, H, block)
        for level in sweep.levels:
            R = columns(sweep.keep(level), block)
            best = W @ D[:, R] @ torch.linalg.inv(D[R][:, R])
            torch.testing.assert_close(sweep.weights[level][:, R], best, rtol=0, atol=1e-12)


@pytest.mark.parametrize("block", [1, 3])
def test_the_inverse_of_the_rest_and_the_sum_of_scores(block):
    """Step by step with the plain equations: C restricted to R is inv(H_RR), and sum rho = tr(dW H dW^T)."""
    W0, H, _ = problem()
    D = damped(H)
    W, C, alive, total, order = W0.clone(), torch.linalg.inv(D), list(range(12 // block)), 0.0, []
    sweep = hessian.sweep(W0, H, block)
    while alive:
        rho = {}
        for s in alive:
            M = list(range(s * block, (s + 1) * block))
            rho[s] = float((W[:, M] @ torch.linalg.inv(C[M][:, M]) * W[:, M]).sum())
        s = min(alive, key=lambda s: rho[s])
        M = list(range(s * block, (s + 1) * block))
        K = torch.linalg.inv(C[M][:, M])
        W = W - W[:, M] @ K @ C[M]
        C = C - C[:, M] @ K @ C[M]
        alive.remove(s)
        order.append(s)
        total += rho[s]
        R = [c for a in alive for c in range(a * block, (a + 1) * block)]
        if R:
            torch.testing.assert_close(C[R][:, R], torch.linalg.inv(D[R][:, R]), rtol=1e-9, atol=1e-10)
        change = sweep.weights[len(order)] - W0
        assert 0.5 * total == pytest.approx(0.5 * float((change @ D * change).sum()), rel=1e-9)
    assert list(sweep.order) == order


def test_the_error_is_what_the_inputs_say():
    W, H, X = problem()
    for options in ({}, {"compensate": False}, {"one_at_a_time": False}):
        sweep = hessian.sweep(W, H, 3, **options)
        for level in sweep.levels:
            lost = (X @ (sweep.weights[level] - W).T).square().sum() / (X @ W.T).square().sum()
            assert sweep.errors[level] == pytest.approx(float(lost), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("block", [1, 4])
def test_error_is_zero_at_first_one_at_last_and_never_falls(block):
    for seed in range(5):
        W, H, _ = problem(seed=seed, n=9)  # fewer samples than columns: dampening carries it
        sweep = hessian.sweep(W, H, block, damp=0.1)
        errors = [sweep.errors[level] for level in sweep.levels]
        assert errors[0] == 0.0
        assert errors[-1] == pytest.approx(1.0)
        assert errors == sorted(errors)
        assert torch.equal(sweep.weights[0], W)
        assert not sweep.weights[sweep.levels[-1]].any()


def test_the_first_structure_to_go_is_the_cheapest_of_all():
    """Against brute force: the least-squares error of removing each one alone."""
    W, H, _ = problem()
    D = damped(H)

    def error(s, block):
        R = [c for c in range(12) if c // block != s]
        change = torch.zeros_like(W)
        change[:, R] = W @ D[:, R] @ torch.linalg.inv(D[R][:, R])
        return float(((change - W) @ D * (change - W)).sum())

    for block in (1, 3):
        first = hessian.sweep(W, H, block).order[0]
        assert first == min(range(12 // block), key=lambda s: error(s, block))


# --------------------------------------------------------------------------------------- what it is good for


def test_of_two_equal_columns_only_one_goes():
    draw = torch.Generator().manual_seed(0)
    X = torch.randn(200, 6, generator=draw, dtype=F64)
    X[:, 4] = X[:, 1]
    W = torch.randn(3, 6, generator=draw, dtype=F64)
    W[:, [1, 4]] = 0.6 + 0.01 * W[:, [1, 4]]
    H = 2 * X.T @ X / 200
    careful = hessian.sweep(W, H, damp=1e-4)
    hasty = hessian.sweep(W, H, damp=1e-4, one_at_a_time=False)
    assert careful.order[0] in (1, 4)
    assert set(careful.order[:2]) != {1, 4}
    assert set(hasty.order[:2]) == {1, 4}
    assert careful.errors[1] < 1e-3
    assert careful.errors[2] < hasty.errors[2]
    both = W[:, 1] + W[:, 4]  # the survivor took over
    survivor = 4 if careful.order[0] == 1 else 1
    torch.testing.assert_close(careful.weights[1][:, survivor], both, rtol=1e-3, atol=1e-3)


def test_compensation_lowers_the_error_at_every_level():
    for seed, block in itertools.product(range(3), (1, 3)):
        W, H, _ = problem(seed=seed)
        on, off = hessian.sweep(W, H, block), hessian.sweep(W, H, block, compensate=False)
        assert on.order == off.order
        assert all(on.errors[level] <= off.errors[level] + 1e-12 for level in on.levels)
        assert on.errors[2] < off.errors[2]
        kept = columns(off.keep(2), block)
        assert torch.equal(off.weights[2][:, kept], W[:, kept])


def test_dead_inputs_go_first_and_cost_nothing():
    W, H, _ = problem()
    for dead in (2, 7):
        H[dead], H[:, dead] = 0.0, 0.0
    sweep = hessian.sweep(W, H)
    assert set(sweep.order[:2]) == {2, 7}
    assert sweep.errors[2] == pytest.approx(0.0, abs=1e-12)
    assert torch.equal(sweep.weights[0], W)
    alive = [c for c in range(12) if c not in (2, 7)]
    torch.testing.assert_close(sweep.weights[2][:, alive], W[:, alive])
    some = hessian.sweep(W, H, 3, [0, 1, 2, 3, 4])
    assert some.errors[4] == pytest.approx(1.0)
    nothing = hessian.sweep(W, torch.zeros_like(H))
    assert set(nothing.errors.values()) == {0.0}


def test_of_structures_that_cost_the_same_the_later_goes():
    found = hessian.sweep(torch.ones(2, 3, dtype=F64), torch.eye(3, dtype=F64))
    assert found.order == (2, 1, 0)


def test_dampening_is_a_share_of_the_mean_of_the_inputs_that_are_alive():
    factor = hessian.dampened_factor(torch.diag(torch.tensor([4.0, 0.0, 8.0], dtype=F64)), 0.5)
    assert factor.diagonal()[[0, 2]].square().tolist() == pytest.approx([4 + 3, 8 + 3])


def test_a_singular_hessian_is_damped_as_much_as_it_takes():
    W, _, _ = problem()
    x = torch.ones(1, 12, dtype=F64)  # every column equal: all but the last are free
    for block in (1, 3):
        sweep = hessian.sweep(W, 2 * x.T @ x, block, damp=0.0)
        assert all(torch.isfinite(sweep.weights[level]).all() for level in sweep.levels)
        assert sweep.errors[sweep.levels[-2]] < 1e-6
        assert sweep.errors[sweep.levels[-1]] == pytest.approx(1.0)
    with pytest.raises(NumericalError, match="not positive"):
        hessian.sweep(W, -torch.eye(12, dtype=F64))


def test_a_block_that_is_not_positive_falls_back_to_the_pseudo_inverse():
    bad = torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[2.0, 0.0], [0.0, 4.0]]])
    found = hessian._inverse(bad)
    torch.testing.assert_close(found[0], torch.full((2, 2), 0.25))
    torch.testing.assert_close(found[1], torch.diag(torch.tensor([0.5, 0.25])))
    assert hessian._inverse(torch.tensor([[[0.0]], [[4.0]]])).flatten().tolist() == [0.0, 0.25]


def test_only_the_levels_asked_for_and_no_further():
    W, H, _ = problem()
    whole, part = hessian.sweep(W, H), hessian.sweep(W, H, levels=[5, 2, 2])
    assert part.levels == (2, 5)
    assert part.order == whole.order[:5]
    assert list(part.weights) == [2, 5]
    assert len(part.weights) == 2
    torch.testing.assert_close(part.weights[5], whole.weights[5])
    for bad in ([13], [-1], []):
        with pytest.raises(InputError, match="levels must lie between 0 "):
            hessian.sweep(W, H, levels=bad)


@pytest.mark.parametrize("block", [1, 3])
def test_a_second_round_continues_the_first(block):
    """With the same H, starting from what is gone and compensated gives the rest of the same sweep."""
    W, H, _ = problem()
    once = hessian.sweep(W, H, block)
    half = len(once.levels) // 2
    again = hessian.sweep(once.weights[half], H, block, removed=once.order[:half])
    assert again.levels == once.levels[half:]
    assert again.order == once.order
    assert again.errors[half] == 0.0
    assert again.errors[once.levels[-1]] == pytest.approx(1.0)
    for level in again.levels[1:]:
        R = columns(again.keep(level), block)
        D, start = damped(H), columns(once.keep(half), block)
        best = once.weights[half][:, start] @ D[start][:, R] @ torch.linalg.inv(D[R][:, R])
        torch.testing.assert_close(again.weights[level][:, R], best, rtol=1e-9, atol=1e-10)
    with pytest.raises(InputError, match="already removed"):
        hessian.sweep(W, H, levels=[0], removed=[3])


def test_scale_of_h_does_not_matter_and_the_input_is_not_changed():
    W, H, _ = problem()
    before = W.clone(), H.clone()
    one, other = hessian.sweep(W, H, 3), hessian.sweep(W, 1000 * H, 3)
    assert one.order == other.order
    torch.testing.assert_close(one.weights[2], other.weights[2])
    assert torch.equal(W, before[0])
    assert torch.equal(H, before[1])


def test_single_precision_agrees_with_double():
    W, H, _ = problem(d_out=32, d_in=96, n=500)
    double, single = hessian.sweep(W, H), hessian.sweep(W.float(), H.float())
    assert single.weights[48].dtype == torch.float32
    assert max(abs(double.errors[level] - single.errors[level]) for level in double.levels) < 1e-3
    assert hessian.sweep(W.bfloat16(), H.float(), levels=[3]).weights[3].dtype == torch.bfloat16


def test_a_sweep_survives_a_file(tmp_path):
    W, H, _ = problem()
    sweep = hessian.sweep(W, H, 3, [0, 2, 4])
    path = tmp_path / "sweep.safetensors"
    save_file({f"site/{name}": tensor for name, tensor in sweep.to_tensors().items()}, path)
    back = hessian.Sweep.open(path, "site/")
    assert back.order == sweep.order
    assert back.levels == sweep.levels
    assert back.errors == sweep.errors
    assert all(torch.equal(back.weights[level], sweep.weights[level]) for level in sweep.levels)
    assert list(back.weights.columns) == [0, 2, 4]
    with pytest.raises(KeyError):
        back.weights[1]
    half = tmp_path / "half.safetensors"
    half.write_bytes(path.read_bytes()[:20])
    with pytest.raises(RunError, match="damaged"):
        hessian.Sweep.open(half, "site/")


def test_snapshots_take_only_what_survives():
    W, H, _ = problem(d_in=12)
    sweep = hessian.sweep(W, H)
    assert [sweep.weights.columns[level].shape[1] for level in sweep.levels] == list(range(12, -1, -1))
    stored = {t.untyped_storage().nbytes() for level, t in sweep.weights.columns.items() if level == 11}
    assert stored == {5 * 8}


def test_bad_input_is_refused():
    W, H, _ = problem()
    for weight, second, block in ((W, H[:3, :3], 1), (W, H, 5), (W[0], H, 1)):
        with pytest.raises(InputError, match="a block that divides d_in"):
            hessian.sweep(weight, second, block)
    with pytest.raises(NumericalError, match="Hessian"):
        hessian.sweep(W, H * float("nan"))
    with pytest.raises(NumericalError, match="weight"):
        hessian.sweep(W * float("inf"), H)


def test_a_whole_order_costs_the_cube_of_the_width_and_no_more():
    """Each removal anew by itself would cost its square more."""

    def operations(width):
        W, H, _ = problem(d_out=16, d_in=width, n=2 * width, dtype=torch.float32)
        with FlopCounterMode(display=False) as counted:
            hessian.sweep(W, H, levels=[0, width])
        return counted.get_total_flops()

    assert 0 < operations(256) < 8 * operations(128)


@pytest.mark.parametrize("damp", [-1.0, float("nan"), float("inf")])
def test_a_dampening_that_is_no_share_is_refused(damp):
    with pytest.raises(InputError, match=r"damp=.*such as 0.01"):
        hessian.dampened_factor(torch.eye(4), damp)
