"""D-Pruner on models of a few thousand parameters."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import tiny
import toys
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.errors import BudgetError, InfeasibleError, InputError, UnsupportedError
from secateur.recipes.sparse import d_pruner
from secateur.recover.training import objectives
from secateur.runs import executor, keywords, measuring
from secateur.score import hessian, obs
from secateur.select import weights
from secateur.subjects import Transformer, open_streamed, open_subject
from secateur.subjects.matrices import matrices
from secateur.subjects.transformer import blocks
from secateur.vocabulary import Budget, Result

DOMAIN, OPEN = tiny.chains(200), tiny.sentences(300, seed=3)
QUICK = {"general_samples": 16, "samples": 32, "train_batch": 8, "train_length": 16}


def subject(kind: str = "llama") -> Transformer:
    return open_subject(tiny.uneven(tiny.model(kind)), tokenizer=tiny.tokenizer())


@pytest.fixture
def general(tmp_path) -> str:
    path = tmp_path / "general.txt"
    path.write_text("\n".join(OPEN))
    return str(path)


def results(root, *budgets, model=None, **options) -> list[Result]:
    with Run.open(root, {}) as run:
        wanted = [Budget.parse(budget) for budget in budgets]
        data = texts.read(DOMAIN)
        how = keywords.check_options(d_pruner.d_pruner, {**QUICK, **options})
        return list(d_pruner.d_pruner(model or subject(), data, wanted, run, **how))


def test_more_processes_than_sequences_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(d_pruner.distributed, "count", lambda: 3)
    with pytest.raises(InputError, match="3 processes share a batch of 2: give train_batch and samples of 3 or more"):
        results(tmp_path, "weights=50%", general_weight=0.0, train_batch=2)


def views(one: Transformer) -> dict[str, torch.Tensor]:
    return {name: matrix.weight for name, matrix in matrices(one.model, one.layers()).items()}


def stays(found: Result) -> dict[str, torch.Tensor]:
    return {name: weight != 0 for name, weight in views(found.subject).items()}


def kept_scores(root, by="dual", layers=None):
    one = subject()
    read = d_pruner.open_scores(root / "work" / by, one.layers())
    return {name: read(name) for name in views(one)}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
def test_what_stays_is_the_original_to_the_bit_and_the_original_stays(tmp_path, general, kind):
    model = subject(kind)
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    (found,) = results(tmp_path / "a", "weights=50%", model=model, general=general)
    assert same(dict(model.model.state_dict()), before)
    assert all(p.grad is None for p in model.model.parameters())
    for name, tensor in found.subject.model.state_dict().items():
        assert bool(((tensor == before[name]) | (tensor == 0)).all()), name
    for name, weight in views(found.subject).items():
        assert int(torch.count_nonzero(weight)) == weight.numel() // 2, name
    assert found.predicted["weights"] == found.cut.after["weights"] == found.cut.before["weights"] / 2
    assert any("the general term changed the domain's gradient by" in note for note in found.notes)


@pytest.mark.parametrize("scope", ["row", "block", "matrix", "layer", "global"])
def test_every_scope_keeps_exactly_its_share(tmp_path, general, scope):
    less, more = results(tmp_path / "a", "weights=40%", "weights=60%", general=general, scope=scope, block=24)
    whole = sum(mask.numel() for mask in stays(less).values())
    for found, share in ((less, 0.4), (more, 0.6)):
        masks = stays(found)
        if scope == "row":
            assert all(set(m.sum(1).tolist()) == {int(m.shape[1] * share + 1e-9)} for m in masks.values())
        elif scope == "block":
            parts = [part for m in masks.values() for part in m.split(24, 1)]
            assert all(int(part.sum()) == int(part.numel() * share + 1e-9) for part in parts)
        elif scope == "matrix":
            assert all(int(m.sum()) == int(m.numel() * share + 1e-9) for m in masks.values())
        elif scope == "layer":
            for path in subject().layers():
                layer = [m for name, m in masks.items() if name.startswith(f"{path}.")]
                assert sum(int(m.sum()) for m in layer) == int(sum(m.numel() for m in layer) * share + 1e-9)
        else:
            assert sum(int(m.sum()) for m in masks.values()) == int(whole * share + 1e-9)
    if scope in ("layer", "global"):
        assert len({round(float(m.float().mean()), 4) for m in stays(less).values()}) > 1
    for name, mask in stays(less).items():
        assert bool((mask <= stays(more)[name]).all()), f"{name} is not nested"


def test_one_block_in_32_by_columns(tmp_path, general):
    (found,) = results(tmp_path / "a", "weights=50%", general=general, scope="block", block=0)
    for mask in stays(found).values():
        for part in mask.split(mask.shape[1] // 32, 1):
            assert int(part.sum()) == part.numel() // 2


@pytest.mark.parametrize("by", ["dual", "general"])
def test_patterns_come_from_either_map(tmp_path, general, by):
    (found,) = results(tmp_path / "a", "pattern=2:4", general=general, by=by)
    for name, mask in stays(found).items():
        assert set(mask.reshape(-1, 4).sum(1).tolist()) == {2}
        best = kept_scores(tmp_path / "a", by)[name].reshape(-1, 4).topk(2).indices
        assert bool(mask.reshape(-1, 4).gather(1, best).all())
    assert (tmp_path / "a" / "work" / "dual").exists() is (by == "dual")


def test_several_budgets_and_later_runs_share_one_scoring(tmp_path, general, monkeypatch):
    whole = results(tmp_path / "a", "weights=50%", "pattern=2:4", "weights=70%", general=general)
    assert len(whole) == 3

    def never(*args, **options):
        raise AssertionError("scored twice")

    monkeypatch.setattr(d_pruner, "general_importance", never)
    monkeypatch.setattr(d_pruner, "dual_importance", never)
    again = results(tmp_path / "b", "weights=70%", scores=str(tmp_path / "a"))
    assert same(views(again[0].subject), views(whole[2].subject))
    assert same(views(results(tmp_path / "a", "weights=50%", general=general)[0].subject), views(whole[0].subject))
    with pytest.raises(InputError, match="holds scores of another model"):
        results(tmp_path / "c", "weights=70%", scores=str(tmp_path / "a"), model=subject("qwen3"))
    with pytest.raises(InputError, match="holds no dual scores"):
        results(tmp_path / "d", "weights=70%", scores=str(tmp_path))
    other = tmp_path / "other.txt"
    other.write_text("\n".join(OPEN[::-1]))
    with pytest.raises(InputError, match="holds scores of another text"):
        results(tmp_path / "a", "weights=50%", general=str(other))


def batches(count: int = 4, batch: int = 8):
    made = texts.batches(texts.read(DOMAIN), tiny.tokenizer(), packed=True, batch=batch, length=16, seed=0)
    return made.take(count)


def scored(tmp_path, items, *, model=None, general=None, name="i", **options):
    model = model or subject()
    folder = tmp_path / name
    samples = sum(len(item["input_ids"]) for item in items)
    how = {"steps": len(items), "every": len(items), "samples": samples} | options
    score = {name: how.pop(name) for name in ("general_weight", "published", "cubic") if name in how}
    how["how"] = d_pruner.DualScore(**{"general_weight": 0.0, **score})
    told = d_pruner.dual_importance(model, items, general, folder, tmp_path / f"{name}-beside", **how)
    read = d_pruner.open_scores(folder, model.layers())
    return {key: read(key) for key in views(model)}, told


def test_without_the_general_term_it_is_the_taylor_score_of_the_domain_to_the_bit(tmp_path):
    """Against an independent loop that holds all gradients, moves the weights by SGD and clips them by their norm."""
    items, ours = batches(4), subject()
    found, told = scored(tmp_path, items, model=ours, general=None, lr=0.03)
    copy = subject()
    parameters = [p.requires_grad_(True) for p in copy.model.parameters()]
    objective = objectives.distil(copy.forward, None, output="logits", task=1.0, fused=True)
    wanted = {name: torch.zeros_like(weight) for name, weight in views(copy).items()}
    for step, batch in enumerate(items):
        gradients = torch.autograd.grad(objective(batch, objectives.count(batch))[0], parameters)
        of = dict(zip(parameters, gradients, strict=True))
        for name, matrix in matrices(copy.model, copy.layers()).items():
            first = matrix.view(of[matrix.parameter]) * matrix.weight
            wanted[name] += (first + first.square() / (2 * 32)).abs()
        norm = torch.stack([g.norm() for g in gradients]).norm()
        rate = 0.03 * (1.0 if step == 0 else 1 - (step - 1) / 3)
        with torch.no_grad():
            for p, g in of.items():
                p.sub_(rate * min(1.0, 1.0 / float(norm)) * g)
    for name, score in found.items():
        assert torch.allclose(score, wanted[name], rtol=1e-4, atol=1e-9), name
    assert told == {"change": 0.0, "steps": 4.0, "sequences": 32.0, "unseen": 0.0}
    # With the general term's code run at weight 0, nothing changes in a bit.
    zero, _ = scored(
        tmp_path, items, general=lambda name: torch.ones(views(ours)[name].shape), name="z", general_weight=1e-30
    )
    assert same(zero, found)


def test_importance_is_linear_in_identical_batches_at_frozen_weights(tmp_path):
    (item,) = batches(1)
    one, _ = scored(tmp_path, [item], name="one", lr=0.0, samples=8)
    five, _ = scored(tmp_path, [item], name="five", lr=0.0, samples=8, steps=5)
    for name, score in one.items():
        assert bool((score >= 0).all())
        assert torch.allclose(five[name], 5 * score, rtol=1e-5)


@pytest.mark.parametrize("published", [False, True])
def test_the_general_term_pulls_towards_general_importance(tmp_path, published):
    """The overlap with the domain's own mask falls with the weight; at last G g^2 |w| ranks alone."""
    (item,) = batches(1)
    model = subject()
    draw = torch.Generator().manual_seed(0)
    G = {name: torch.rand(weight.shape, generator=draw) ** 4 for name, weight in views(model).items()}
    name = next(iter(G))
    overlap, changes, tops = [], [], []
    many = 10**12  # N, so that the second order is nothing
    scales = [0.0, 0.3, 3.0, 1e6] if not published else [0.0, 1e5 * many, 1e6 * many, 1e12 * many]
    for number, scale in enumerate(scales):
        found, told = scored(
            tmp_path, [item], general=G.__getitem__, name=str(number), general_weight=scale, published=published,
            lr=0.01,
            samples=many,
        )  # fmt: skip
        tops.append(set(found[name].flatten().topk(found[name].numel() // 2).indices.tolist()))
        overlap.append(len(tops[0] & tops[-1]) / len(tops[0]))
        changes.append(told["change"])
    assert overlap == sorted(overlap, reverse=True)
    assert overlap[0] == 1.0
    assert changes == sorted(changes)
    assert changes[0] == 0.0
    objective = objectives.distil(model.forward, None, output="logits", task=1.0)
    matrix = matrices(model.model, model.layers())[name]
    (g,) = torch.autograd.grad(objective(item, objectives.count(item))[0], [matrix.parameter.requires_grad_(True)])
    wanted = (G[name] * g.square() * matrix.weight.abs()).flatten().topk(g.numel() // 2).indices
    assert len(set(wanted.tolist()) & tops[-1]) / len(tops[0]) > 0.99


def test_the_general_term_follows_the_learning_rate(tmp_path, monkeypatch):
    asked, real = [], d_pruner.dual.regularise

    def note(*given, share):
        asked.append(round(share, 6))
        return real(*given, share=share)

    monkeypatch.setattr(d_pruner.dual, "regularise", note)
    ones = {name: torch.ones(weight.shape) for name, weight in views(subject()).items()}
    scored(tmp_path, batches(4), general=ones.__getitem__, general_weight=1.0)
    assert list(dict.fromkeys(asked)) == [1.0, round(2 / 3, 6), round(1 / 3, 6)]  # a step of warm-up, then down to 0


@pytest.mark.parametrize(
    ("options", "weight"),
    [({}, 1.0), ({"published": True}, 0.1), ({"published": True, "general_weight": 3.0}, 3.0)],
)
def test_the_published_form_has_the_published_weight(tmp_path, general, monkeypatch, options, weight):
    asked, real = [], d_pruner.dual_importance

    def note(*args, **given):
        asked.append(given["how"].weight)
        return real(*args, **given)

    monkeypatch.setattr(d_pruner, "dual_importance", note)
    results(tmp_path / "a", "weights=50%", general=general, **options)
    assert asked == [weight]


def test_the_cubic_term_and_the_settings_of_the_general_pass_are_used(tmp_path, general):
    items = batches(1)
    plain, _ = scored(tmp_path, items, name="plain", lr=0.0)
    cubic, _ = scored(tmp_path, items, name="cubic", lr=0.0, cubic=True)
    for name, weight in views(subject()).items():
        assert torch.allclose(cubic[name], weight.abs() ** 3, atol=2 * float(plain[name].max()))
    assert not same(plain, cubic)
    found = []
    for number, options in enumerate(({}, {"damp": 1.0}, {"general_share": 0.9})):
        results(tmp_path / str(number), "weights=50%", general=general, by="general", **options)
        found.append(kept_scores(tmp_path / str(number), "general"))
    assert not same(found[0], found[1])
    assert not same(found[0], found[2])


def test_the_descent_is_as_it_is_asked_for(tmp_path, monkeypatch):
    asked, real = [], d_pruner.dual_importance
    monkeypatch.setattr(d_pruner, "dual_importance", lambda *given, **how: asked.append(how) or real(*given, **how))
    how = {"clip": 0.5, "warmup": 0.25, "lr": 0.02, "recompute": True}
    results(tmp_path / "a", "weights=50%", general_weight=0, **how)
    results(tmp_path / "b", "weights=50%", general_weight=0, clip=0.0)
    first, second = asked
    assert {name: first[name] for name in how} == how
    assert second["clip"] is None


def test_recomputed_layers_and_padded_prompts_score_alike(tmp_path):
    plain, _ = scored(tmp_path, batches(3), name="a")
    again, _ = scored(tmp_path, batches(3), name="b", recompute=True)
    assert all(torch.allclose(again[name], plain[name], rtol=1e-4, atol=1e-9) for name in plain)
    (found,) = results(tmp_path / "c", "weights=50%", general_weight=0, packed=False)
    assert found.cut.after["weights"] == found.cut.before["weights"] / 2


def test_general_importance_is_sparsegpts_score_as_it_goes(tmp_path, general):
    """Block 0 by hand: the first 128 columns are all there is, so G is w^2 / U_jj^2 of the original."""
    results(tmp_path / "a", "weights=50%", general=general, by="general")
    G = kept_scores(tmp_path / "a", "general")
    model = subject()
    train, _ = d_pruner.hold_out(texts.read(general), 0)
    windows, _ = texts.windows(train, model.tokenizer, 16, 16, seed=0)
    first = next(blocks.visit(model, windows, tmp_path / "visit", store=False))
    for name, moments in first.read(hessian.Moments).items():
        U = obs.factor(moments.value(name), 0.01)
        assert torch.allclose(G[name], first.matrices[name].weight.square() / U.diagonal().square(), rtol=1e-4), name
    assert G.keys() == views(model).keys()
    assert all(bool((score >= 0).all()) and score.shape == views(model)[name].shape for name, score in G.items())


def test_general_importance_is_taken_128_columns_at_a_time_behind_the_corrections_of_those_before(tmp_path, general):
    """A matrix of 160 inputs by hand: of the first 128 half go, what they took moves on, and the rest is scored."""
    torch.manual_seed(0)
    shape = dict(hidden_size=32, intermediate_size=160, num_hidden_layers=1, num_attention_heads=4)
    made = LlamaForCausalLM(LlamaConfig(vocab_size=len(tiny.tokenizer()), **shape)).eval()
    model = open_subject(made, tokenizer=tiny.tokenizer())
    results(tmp_path / "a", "weights=50%", model=model, general=general, by="general", general_share=0.5)
    name = f"{model.layers()[0]}.mlp.down_proj.weight"
    G = d_pruner.open_scores(tmp_path / "a" / "work" / "general", model.layers())(name)
    train, _ = d_pruner.hold_out(texts.read(general), 0)
    windows, _ = texts.windows(train, model.tokenizer, 16, 16, seed=0)
    first = next(blocks.visit(model, windows, tmp_path / "visit", store=False))
    U = obs.factor(first.read(hessian.Moments)[name].value(name), 0.01)
    W, scales = first.matrices[name].weight.clone(), U.diagonal().square()
    scores = W[:, :128].square() / scales[:128]
    torch.testing.assert_close(G[:, :128], scores, rtol=1e-3, atol=1e-9)
    stays = weights.best(scores, 0.5, "matrix")
    for column in range(128):
        error = torch.where(stays[:, column], 0.0, W[:, column]) / U[column, column]
        W[:, column:] -= error[:, None] * U[column, column:]
    torch.testing.assert_close(G[:, 128:], W[:, 128:].square() / scales[128:], rtol=1e-3, atol=1e-9)


def test_dead_columns_are_worth_nothing_and_white_inputs_rank_like_magnitude(tmp_path, monkeypatch):
    model = subject()
    name = f"{model.layers()[0]}.mlp.up_proj.weight"
    draw = torch.Generator().manual_seed(0)
    white = 8 * torch.eye(64)  # H = 2 I
    dead = torch.randn(200, 64, generator=draw)
    dead[:, 5] = 0

    def look(rows):
        moments = hessian.Moments()
        moments.add(rows)
        block = blocks.Block(0, model.layers()[0], None, {name: matrices(model.copy().model)[name]}, None, (), ())
        monkeypatch.setattr(blocks.Block, "read", lambda self, make, only, routed: {name: moments})
        monkeypatch.setattr(d_pruner.blocks, "visit", lambda *args, **options: iter([block]))
        d_pruner.general_importance(model, [], tmp_path / str(rows.shape[0]), tmp_path)
        return d_pruner.open_scores(tmp_path / str(rows.shape[0]), model.layers())(name)

    weight = matrices(model.model)[name].weight
    G = look(white)
    assert torch.equal(weights.best(G, 0.5, "block"), weights.best(weight.abs(), 0.5, "block"))
    G = look(dead)
    assert bool((G[:, 5] == 0).all())
    assert bool((G[:, :5] > 0).all())


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, general, monkeypatch):
    options = {"general": general, "epochs": 3}
    (whole,) = results(tmp_path / "a", "weights=50%", **options)
    real, asked = d_pruner.fused.step, []

    def die(at, *args, **given):
        asked.append(1)
        if len(asked) > at:
            raise KeyboardInterrupt
        return real(*args, **given)

    monkeypatch.setattr(d_pruner.fused, "step", partial(die, 6))
    with pytest.raises(KeyboardInterrupt):
        results(tmp_path / "b", "weights=50%", **options)
    asked.clear()
    monkeypatch.setattr(d_pruner.fused, "step", partial(die, 8))
    (resumed,) = results(tmp_path / "b", "weights=50%", **options)
    assert len(asked) == 8  # of twelve steps, four had been kept
    assert same(views(resumed.subject), views(whole.subject))
    assert same(kept_scores(tmp_path / "a"), kept_scores(tmp_path / "b"))
    assert not list((tmp_path / "b" / "work").glob("*-unfinished"))


def test_half_precision_is_scored_in_float32_and_comes_back_in_its_own(tmp_path, general):
    model = open_subject(tiny.uneven(tiny.model("llama")).bfloat16(), tokenizer=tiny.tokenizer())
    (found,) = results(tmp_path / "a", "weights=50%", model=model, general=general)
    for name, weight in views(found.subject).items():
        assert weight.dtype == torch.bfloat16
        assert bool(((weight == views(model)[name]) | (weight == 0)).all())
    assert all(score.dtype == torch.float32 for score in kept_scores(tmp_path / "a").values())


def test_a_streamed_model_is_pruned_by_the_general_map_alone(tmp_path, general):
    subject().save(tmp_path / "model")
    options = {"general": general, "by": "general"}
    for scope in ("matrix", "global"):
        (inside,) = results(tmp_path / f"in-{scope}", "weights=50%", scope=scope, **options)
        streamed = open_streamed(tmp_path / "model")
        (outside,) = results(tmp_path / f"out-{scope}", "weights=50%", model=streamed, scope=scope, **options)
        outside.subject.save(tmp_path / f"saved-{scope}")
        assert same(views(open_subject(tmp_path / f"saved-{scope}")), views(inside.subject))
    with pytest.raises(UnsupportedError, match="trains a copy of the whole model"):
        results(tmp_path / "dual", "weights=50%", model=open_streamed(tmp_path / "model"), general=general)


def test_packed_experts_are_scored_one_by_one(tmp_path, general):
    torch.manual_seed(0)
    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=len(tiny.tokenizer()), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
        )
    ).eval()  # fmt: skip
    model = open_subject(model, tokenizer=tiny.tokenizer())
    (found,) = results(tmp_path / "a", "weights=50%", model=model, general=general)
    experts = {name: mask for name, mask in stays(found).items() if "experts" in name}
    assert len(experts) == 16
    assert all(int(mask.sum()) == mask.numel() // 2 for mask in experts.values())
    read = d_pruner.open_scores(tmp_path / "a" / "work" / "dual", model.layers())
    assert all(bool(read(name).any()) for name in experts)


def test_experts_that_the_domain_never_reaches_rank_by_magnitude(tmp_path):
    model = subject()
    name = f"{model.layers()[0]}.mlp.up_proj.weight"
    with torch.no_grad():
        matrices(model.model)[f"{model.layers()[0]}.mlp.down_proj.weight"].weight.zero_()
    found, told = scored(tmp_path, batches(1), model=model)
    weight = views(model)[name]
    assert torch.allclose(found[name], 1e-30 * weight.abs())
    assert told["unseen"] == 3  # nothing comes back to gate and up, and a weight of zero is worth zero
    notes = d_pruner.describe_descent(told, "texts", 16, few=False)
    assert any("3 matrices got no gradient" in note for note in notes)


def test_experts_of_fewer_general_tokens_than_the_floor_are_told(tmp_path, general):
    model = open_subject(tiny.mixture(), tokenizer=tiny.tokenizer())
    how = {"model": model, "general": general, "by": "general"}
    for floor, many in ((1, False), (10**6, True)):
        (found,) = results(tmp_path / str(floor), "weights=50%", floor=floor, **how)
        told = [f"matrices of experts saw fewer than {floor} general tokens" in note for note in found.notes]
        assert any(told) is many


def test_a_streamed_model_takes_dual_scores_of_an_earlier_run(tmp_path, general):
    subject().save(tmp_path / "model")
    whole, _ = results(tmp_path / "a", "weights=50%", "weights=70%", general=general)
    scores = str(tmp_path / "a")
    (found,) = results(tmp_path / "b", "weights=50%", model=open_streamed(tmp_path / "model"), scores=scores)
    found.subject.save(tmp_path / "saved")
    assert same(views(open_subject(tmp_path / "saved")), views(whole.subject))


def test_each_note_is_told_once_and_texts_that_hold_enough_are_not_called_short(tmp_path, general):
    """Of 20 sequences asked for, two batches of 8 are used: that is no lack of texts."""
    (found,) = results(tmp_path / "a", "weights=50%", general=general, samples=20)
    told = [*found.cut.notes, *found.notes]
    assert len(told) == len(set(told))
    assert any("on 16 sequences" in note for note in told)
    assert not any("fewer than" in note for note in told)


def test_a_dry_run_scores_nothing(tmp_path):
    (found,) = results(tmp_path / "a", "weights=50%", dry_run=True)
    assert found.cut.after["weights"] == found.cut.before["weights"] / 2
    assert not (tmp_path / "a" / "work" / "dual.json").exists()


@pytest.mark.wide
def test_general_text_is_read_by_the_column_of_the_data_and_by_a_dry_run_too(tmp_path):
    """It was read by the column "text" whatever --text said, and a dry run let a file pass that is not there."""
    tiny.folder("llama", tmp_path / "llama")
    for name, lines in (("domain", DOMAIN), ("general", OPEN)):
        rows = [json.dumps({"body": line, "text": "the same"}) for line in lines]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    seen = []

    def run(out, **how):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(d_pruner, "hold_out", lambda corpus, seed: seen.append(corpus) or (corpus, {}))
            executor.run("d_pruner", tmp_path / "llama", tmp_path / "domain.jsonl", "weights=50%", tmp_path / out,
                         text="body", **QUICK, by="general", **how)  # fmt: skip

    run("out", general=str(tmp_path / "general.jsonl"))
    assert seen[0].texts == OPEN
    with pytest.raises(InputError, match=r"nowhere.txt does not exist"):
        run("dry", general="nowhere.txt", dry_run=True)


@pytest.mark.wide
def test_few_texts_are_told(tmp_path, general):
    (found,) = results(tmp_path / "a", "weights=50%", general=general, samples=5000, general_samples=5000)
    assert any("fewer than the 5000 asked for" in note for note in found.notes)
    told = json.loads((tmp_path / "a" / "work" / "dual.json").read_text())
    assert told["sequences"] == 8 * (len(texts.batches(
        texts.read(DOMAIN), tiny.tokenizer(), packed=True, batch=8, length=16
    )))  # fmt: skip


@pytest.mark.parametrize(
    ("budget", "options", "error", "text"),
    [
        ("weights=50%", {}, InputError, "needs open-domain texts beside the domain's: give general=FILE"),
        ("weights=50%", {"by": "general", "general_weight": 0}, InputError, "needs open-domain texts"),
        ("params=50%", {"general_weight": 0}, BudgetError, "d_pruner can't follow budget params=50%"),
        ("weights=100%", {"general_weight": 0}, BudgetError, "lets every weight stay"),
        ("weights=1%", {"general_weight": 0, "scope": "row"}, InfeasibleError, "leaves nothing of a row of 64 weights"),
        ("weights=0.0001%", {"general_weight": 0, "scope": "layer"}, InfeasibleError, "leaves nothing of a layer"),
        ("weights=0.0001%", {"general_weight": 0, "scope": "global"}, InfeasibleError, "leaves nothing of the "),
        ("weights=50%", {"general_weight": -1.0}, InputError, "option general_weight=-1.0 of d_pruner"),
        ("weights=50%", {"general_weight": 0, "samples": 0}, InputError, "option samples=0 of d_pruner"),
        ("weights=50%", {"general_weight": 0, "train_length": 0}, InputError, "option train_length=0 of d_pruner"),
        ("weights=50%", {"general_share": 1.5}, InputError, "option general_share=1.5 of d_pruner"),
        ("weights=50%", {"general_weight": 0, "training": "accumulate=2"}, InputError, "training accumulate: d_pruner"),
        ("weights=50%", {"general": "nowhere.txt"}, InputError, "nowhere.txt does not exist"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_one_line(tmp_path, budget, options, error, text):
    with pytest.raises(error, match=text) as caught:
        results(tmp_path / "a", budget, **options)
    assert "\n" not in str(caught.value)


def test_models_that_are_no_language_models_are_refused(tmp_path):
    model = open_subject(tiny.model("bert"), tokenizer=tiny.tokenizer())
    with pytest.raises(UnsupportedError, match="scores by the next token"):
        results(tmp_path / "a", "weights=50%", model=model, general_weight=0)


def test_general_skill_is_measured_beside_the_domains_on_text_that_was_held_out(tmp_path, general):
    tiny.folder("llama", tmp_path / "llama")
    seen = []

    def watch(corpus, seed):
        train, judged = apart(corpus, seed)
        seen.append((train, judged["general"]))
        return train, judged

    apart = d_pruner.hold_out
    how = {"general": general, **QUICK}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(d_pruner, "hold_out", watch)
        (row,) = executor.run("d_pruner", tmp_path / "llama", DOMAIN, "weights=30%", tmp_path / "out", **how)
    ((train, held),) = seen
    assert len(train) + len(held) == len(OPEN)
    for found, place in ((row.before, "llama"), (row.after, "out")):
        length = row.settings["length"]
        alone = measuring.measure(tmp_path / place, data=held, batch=2, length=length)["model"]
        assert found["general/perplexity"].value == pytest.approx(alone["perplexity"].value)
    assert "general: Perplexity" in (tmp_path / "out" / "report.html").read_text("utf-8")
    assert json.loads((tmp_path / "out" / "work" / "general.json").read_text())["text"] == train.digest
    again = {"general": general, "scores": str(tmp_path / "out")}
    (found,) = results(tmp_path / "again", "weights=50%", **again)
    assert found.judged["general"].digest == held.digest
    (found,) = results(tmp_path / "other", "weights=50%", **again, seed=1)  # another part, which was scored by
    assert not found.judged


def test_general_text_that_is_one_whole_is_not_held_out(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text(" ".join(OPEN))
    (found,) = results(tmp_path / "a", "weights=50%", general=str(path))
    assert not found.judged


def toy(folder):
    """What `conformance.check_recipe` takes: see tests/conformance."""
    (folder / "general.txt").write_text("\n".join(tiny.sentences(400)), "utf-8")
    general = {"general": str(folder / "general.txt"), "general_samples": 16}
    return toys.language("llama", "weights=50%", **general, samples=64, train_batch=8, train_length=16)
