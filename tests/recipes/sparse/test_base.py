"""Magnitude, Wanda, SparseGPT and OWL: exact counts, patterns, experts, and what each does that the others do not."""

from __future__ import annotations

import functools

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

import tiny
from secateur.errors import BudgetError, InfeasibleError, InputError, NumericalError
from secateur.files import texts
from secateur.files.rundir import Run
from secateur.measure.quality import perplexity
from secateur.recipes.sparse.magnitude import magnitude
from secateur.recipes.sparse.owl import owl
from secateur.recipes.sparse.sparsegpt import sparsegpt
from secateur.recipes.sparse.wanda import wanda
from secateur.select.pattern import n_of_m
from secateur.subjects import blocks, open_streamed, open_subject
from secateur.subjects.matrices import matrices, nonzero
from secateur.vocabulary import Budget

CALIBRATED = {"samples": 24, "length": 16}
RECIPES = {
    "magnitude": (magnitude, {}),
    "wanda": (wanda, CALIBRATED),
    "sparsegpt": (sparsegpt, {**CALIBRATED, "columns": 16}),
    "owl": (owl, CALIBRATED),
}


@functools.cache
def taught():
    return open_subject(tiny.taught(tiny.model("llama")), tokenizer=tiny.tokenizer())


@functools.cache
def data():
    return texts.read(tiny.chains(800))


def run(name, tmp_path, budget="weights=50%", subject=None, **options):
    recipe, defaults = RECIPES[name]
    with Run.open(tmp_path / f"{name}-{budget}-{sorted(options.items())}".replace("/", "-"), {}) as opened:
        made = recipe(subject or taught(), data(), [Budget.parse(budget)], opened, **{**defaults, **options})
        (result,) = list(made)
    return result


def quality(student):
    held = texts.batches(texts.read(tiny.chains(200, 1)), tiny.tokenizer(), packed=True, batch=8, length=16)
    return perplexity(student.forward, held.take(10)).value


def stays(result):
    return {name: m.weight != 0 for name, m in matrices(result.subject.model, result.subject.layers()).items()}


@pytest.mark.parametrize("name", RECIPES)
def test_counts_are_exact_and_everything_else_stays(name, tmp_path):
    result = run(name, tmp_path)
    found = matrices(result.subject.model, result.subject.layers())
    whole = blocks.count(taught())
    assert nonzero(found) == result.cut.after["weights"] == result.predicted["weights"]
    assert 0.45 * whole < nonzero(found) <= 0.5 * whole
    if name == "wanda":
        assert all((mask.sum(1) == mask.shape[1] // 2).all() for mask in stays(result).values())
    inside = {m.leaf for m in found.values()}
    before = taught().model.state_dict()
    for key, tensor in result.subject.model.state_dict().items():
        if key not in inside:
            assert torch.equal(tensor, before[key])


@pytest.mark.parametrize("name", RECIPES)
def test_patterns_hold_in_every_run_of_inputs(name, tmp_path):
    result = run(name, tmp_path, "pattern=2:4", **({"spread": 0.0} if name == "owl" else {}))
    for mask in stays(result).values():
        assert (mask.reshape(mask.shape[0], -1, 4).sum(-1) <= 2).all()
    assert result.name == "pattern=2:4"


@pytest.mark.parametrize("name", ["magnitude", "wanda"])
def test_a_tail_that_m_does_not_divide_stays(name, tmp_path):
    result = run(name, tmp_path, "pattern=2:5")
    for key, mask in stays(result).items():
        rest = mask.shape[1] % 5
        assert rest, key
        assert mask[:, -rest:].all()
        assert (mask[:, :-rest].reshape(mask.shape[0], -1, 5).sum(-1) == 2).all()


@pytest.mark.parametrize("name", ["magnitude", "wanda"])
def test_masks_are_nested(name, tmp_path):
    small, large = (stays(run(name, tmp_path, f"weights={share}%")) for share in (30, 60))
    first = taught().layers()[0] if name == "wanda" else ""  # later blocks read what the pruned first one gives
    assert all(not (small[key] & ~large[key]).any() for key in small if key.startswith(first))


def test_sparsegpt_corrects_what_stays_and_the_others_do_not(tmp_path):
    before = {name: m.weight for name, m in matrices(taught().model, taught().layers()).items()}
    for name in ("magnitude", "wanda", "owl"):
        found = matrices(run(name, tmp_path).subject.model, taught().layers())
        assert all(torch.equal(m.weight, before[key] * (m.weight != 0)) for key, m in found.items())
    found = matrices(run("sparsegpt", tmp_path).subject.model, taught().layers())
    assert all(not torch.equal(m.weight, before[key] * (m.weight != 0)) for key, m in found.items())


def test_corrections_are_worth_more_than_any_score(tmp_path):
    row = {name: quality(run(name, tmp_path, "weights=40%").subject) for name in ("sparsegpt", "wanda", "magnitude")}
    assert row["sparsegpt"] < 0.97 * min(row["wanda"], row["magnitude"])


def test_wanda_survives_rescaled_channels_and_magnitude_does_not(tmp_path):
    """Norm weights times c, the weights that read them divided by c: the same function."""
    scaled = taught().copy()
    draw = torch.Generator().manual_seed(0)
    for layer in scaled.model.model.layers:
        for norm, readers in (
            (layer.input_layernorm, (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)),
            (layer.post_attention_layernorm, (layer.mlp.gate_proj, layer.mlp.up_proj)),
        ):
            c = torch.exp2(torch.randint(-3, 4, norm.weight.shape, generator=draw).float())  # exact in floating point
            norm.weight.data *= c
            for reader in readers:
                reader.weight.data /= c
    plain, other = (stays(run("wanda", tmp_path / str(i), subject=s)) for i, s in enumerate((None, scaled)))
    same = [float((plain[key] == other[key]).float().mean()) for key in plain]
    assert min(same) > 0.999
    plain, other = (stays(run("magnitude", tmp_path / str(i), subject=s)) for i, s in enumerate((None, scaled)))
    key = "model.layers.0.mlp.up_proj.weight"
    assert float((plain[key] == other[key]).float().mean()) < 0.9


@pytest.mark.parametrize("name", ["magnitude", "wanda"])
def test_global_scope_has_one_threshold(name, tmp_path):
    result = run(name, tmp_path, scope="global")
    whole = blocks.count(taught())
    assert result.cut.after["weights"] == whole // 2
    shares = [float(mask.float().mean()) for mask in stays(result).values()]
    assert max(shares) - min(shares) > 0.02
    if name == "magnitude":
        kept = [m.weight.abs()[m.weight != 0].min() for m in matrices(result.subject.model, taught().layers()).values()]
        original, masks = matrices(taught().model, taught().layers()), stays(result)
        gone = [m.weight.abs()[~masks[key]].max() for key, m in original.items()]
        assert max(gone) <= min(kept)


def test_cumulative_rows_differ_and_the_budget_is_kept(tmp_path):
    result = run("wanda", tmp_path, cumulative=True)
    masks = stays(result)
    assert any(len(set(mask.sum(1).tolist())) > 1 for mask in masks.values())
    assert 0.48 < result.cut.after["weights"] / result.cut.before["weights"] <= 0.5
    with pytest.raises(InputError, match="scope=row"):
        run("wanda", tmp_path, "pattern=2:4", cumulative=True)


def test_true_sequential_reads_anew_and_gives_another_result(tmp_path):
    plain, fresh = (run("sparsegpt", tmp_path / str(flag), true_sequential=flag) for flag in (False, True))
    first, second = (one.subject.model.model.layers[0].mlp for one in (plain, fresh))
    assert not torch.equal(first.down_proj.weight, second.down_proj.weight)
    attention = [one.subject.model.model.layers[0].self_attn.q_proj.weight for one in (plain, fresh)]
    assert torch.equal(*attention)  # nothing of the first block is pruned before its queries


def test_joint_rounding_leaves_few_levels(tmp_path):
    result = run("sparsegpt", tmp_path, bits=4)
    for matrix in matrices(result.subject.model, result.subject.layers()).values():
        assert max(len(row.unique()) for row in matrix.weight) <= 16
    with pytest.raises(InputError, match="2 to 8"):
        run("sparsegpt", tmp_path, bits=1)


def test_owl_gives_more_to_blocks_with_more_outliers(tmp_path):
    result = run("owl", tmp_path, "weights=30%", times=2.0, spread=0.1)
    masks, shares = stays(result), []
    for path in result.subject.layers():
        inside = [mask for name, mask in masks.items() if name.startswith(f"{path}.")]
        shares.append(sum(int(m.sum()) for m in inside) / sum(m.numel() for m in inside))
    assert max(shares) - min(shares) == pytest.approx(0.2, abs=0.02)
    assert result.cut.after["weights"] / result.cut.before["weights"] == pytest.approx(0.3, abs=0.02)
    told = [float(part.split()[0]) for part in result.notes[0].removeprefix("outliers by block: ").split(", ")]
    assert sorted(range(len(told)), key=told.__getitem__) == sorted(range(len(told)), key=shares.__getitem__)


def test_owl_chooses_n_for_each_block(tmp_path):
    result = run("owl", tmp_path, "pattern=4:8", times=2.0, spread=0.4)
    kept = []
    for path in result.subject.layers():
        masks = [mask for name, mask in stays(result).items() if name.startswith(f"{path}.")]
        counts = {int(n) for mask in masks for n in mask.reshape(mask.shape[0], -1, 8).sum(-1).unique()}
        assert len(counts) == 1
        kept += counts
    assert len(set(kept)) > 1
    assert sum(kept) <= 4 * len(kept)


@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
def test_streamed_gives_the_same_weights(name, tmp_path):
    taught().save(tmp_path / "model")
    inside = run(name, tmp_path / "a")
    outside = run(name, tmp_path / "b", subject=open_streamed(tmp_path / "model"))
    assert outside.cut == inside.cut
    outside.subject.save(tmp_path / "out")
    again = open_subject(tmp_path / "out")
    for key, tensor in inside.subject.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[key], tensor)


def test_experts_are_pruned_by_their_own_tokens_and_starved_ones_by_their_layers(tmp_path):
    torch.manual_seed(0)
    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=len(tiny.tokenizer()), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
        )
    ).eval()  # fmt: skip
    subject = open_subject(model, tokenizer=tiny.tokenizer())
    for name in ("wanda", "sparsegpt"):
        result = run(name, tmp_path, subject=subject, floor=10**6)
        experts = [m for m in matrices(result.subject.model, subject.layers()).values() if m.expert is not None]
        assert len(experts) == 16
        assert all(0.4 < float((m.weight != 0).float().mean()) <= 0.5 for m in experts)
        assert "16 matrices of experts had under 1000000 tokens" in result.cut.notes[0]
        own = run(name, tmp_path, subject=subject)
        assert not own.cut.notes
        masks, others = stays(own), stays(result)
        assert any(not torch.equal(masks[m.name], others[m.name]) for m in experts)
        assert torch.equal(result.subject.model.model.layers[0].mlp.gate.weight, model.model.layers[0].mlp.gate.weight)


@pytest.mark.parametrize("name", RECIPES)
def test_bad_budgets_are_refused(name, tmp_path):
    for bad in ("params=50%", "weights=100%", "pattern=4:4", "weights=50%,pattern=2:4"):
        with pytest.raises(BudgetError, match=r"budget|pattern"):
            run(name, tmp_path, bad)
    with pytest.raises((InfeasibleError, InputError), match="weights"):
        run(name, tmp_path, "weights=0.0001%")


def test_few_texts_are_told_and_broken_weights_named(tmp_path):
    result = run("wanda", tmp_path, samples=10_000)
    assert "fewer than the 10000 asked for" in result.cut.notes[0]
    broken = taught().copy()
    broken.model.model.layers[1].mlp.down_proj.weight.data[0, 0] = torch.inf
    with pytest.raises(NumericalError, match=r"layers\.1"):
        run("wanda", tmp_path, subject=broken)


def test_patterns_rank_inside_runs(tmp_path):
    result = run("magnitude", tmp_path, "pattern=1:4")
    for key, matrix in matrices(taught().model, taught().layers()).items():
        assert torch.equal(stays(result)[key], n_of_m(matrix.weight.abs(), 1, 4))
