"""Minitron on models of a few thousand parameters."""

from __future__ import annotations

import gc
import json
import weakref

import numpy as np
import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration

import tiny
import toys
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.errors import BudgetError, InfeasibleError, InputError
from secateur.recipes.language import minitron
from secateur.recover.training import loop
from secateur.runs import keywords
from secateur.subjects import Transformer, open_subject
from secateur.subjects.transformer import shapes
from secateur.vocabulary import Budget, Result
from subjects import hybrids
from subjects import tiny as subjects_tiny
from subjects.transformer import test_encoder_decoder as encoders

QUICK = {"calibration": 32, "candidates": 2, "short_steps": 0, "steps": 0, "train_batch": 8, "length": 16}
DATA = texts.read(tiny.chains(200))


def subject(kind: str = "llama") -> Transformer:
    return open_subject(tiny.uneven(tiny.model(kind)), tokenizer=tiny.tokenizer())


def results(root, *budgets, model=None, kind="llama", **options) -> list[Result]:
    how = keywords.check_options(minitron.minitron, {**QUICK, **options})
    with Run.open(root, {}) as run:
        wanted = [Budget.parse(budget) for budget in budgets]
        return list(minitron.minitron(model or subject(kind), DATA, wanted, run, **how))


def weights(found: Result) -> dict[str, torch.Tensor]:
    return dict(found.subject.model.state_dict())


@pytest.mark.parametrize(
    ("kind", "axes"),
    [("llama", {"channels": 24}), ("gpt2", {"channels": 24}), ("bert", {"heads": 2})],
)
def test_a_shape_that_is_given_is_the_shape_of_the_result(tmp_path, kind, axes):
    axes = {"layers": 2, "neurons": 40, **axes}
    shape = ",".join(f"{axis}={size}" for axis, size in axes.items())
    (found,) = results(tmp_path, "params=90%", kind=kind, shape=shape)
    assert shapes.sizes(found.subject) == {**shapes.sizes(subject(kind)), **axes}
    assert found.predicted["params"] == sum(p.numel() for p in found.subject.model.parameters())


@pytest.mark.parametrize("dense", [[], [0]])
@pytest.mark.parametrize("score", ["activation", "magnitude", "random"])
def test_a_mixture_of_experts_loses_layers_heads_and_channels_and_keeps_its_experts(tmp_path, dense, score):
    start = open_subject(tiny.mixture(dense), tokenizer=tiny.tokenizer())
    assert "neurons" not in shapes.sizes(start)
    (found,) = results(tmp_path, "params=70%", model=start, score=score, tolerance=0.1)
    left = found.subject
    assert 0.6 * start.units().cost()["params"] <= left.units().cost()["params"] <= 0.7 * start.units().cost()["params"]
    assert all(mixture.count == 8 and mixture.width == 16 for mixture in left.mixtures().values())
    assert left.mixtures()
    with pytest.raises(InputError, match="'neurons=8' is not one of layers="):
        results(tmp_path / "b", "params=90%", model=start, shape="neurons=8")


def test_axes_that_a_family_keeps_whole_stay_whole(tmp_path):
    start = open_subject(subjects_tiny.make("olmoe").model, tokenizer=tiny.tokenizer())
    (found,) = results(tmp_path, "params=70%", model=start, tolerance=0.3)
    sizes, left = shapes.sizes(start), shapes.sizes(found.subject)
    assert left.pop("layers") < sizes.pop("layers")
    assert left == sizes


def test_axes_not_named_stay_whole(tmp_path):
    (found,) = results(tmp_path, "params=80%", axes=("neurons",), tolerance=0.2)
    whole, left = shapes.sizes(subject()), shapes.sizes(found.subject)
    assert left.pop("neurons") < whole.pop("neurons")
    assert left == whole
    with pytest.raises(InputError, match="'width=3' is not one of layers="):
        results(tmp_path / "b", "params=90%", shape="width=3")


def test_every_candidate_is_within_the_tolerance_below_the_budget(tmp_path):
    (found,) = results(tmp_path, "params=75%", candidates=4, tolerance=0.1)
    whole = subject().units().cost()["params"]
    rows = json.loads((tmp_path / "work" / "shape-params=75%-1.json").read_text())
    assert len(rows["candidates"]) == 4
    for row in rows["candidates"]:
        assert 0.9 * 0.75 * whole <= shapes.cost(subject().units(), row["shape"])["params"] <= 0.75 * whole
    best = min(rows["candidates"], key=lambda row: row["short"])
    assert rows["best"] == best["shape"] == shapes.sizes(found.subject)
    assert found.predicted["params"] <= 0.75 * whole


def test_a_shape_that_is_given_is_held_to_the_budget(tmp_path):
    """One above it is refused before anything is scored, one far below it is said to be."""
    with pytest.raises(InfeasibleError, match=r"shape layers=4,heads=8,neurons=120,channels=64 has \d+ params, and"):
        results(tmp_path / "a", "params=50%", shape="neurons=120", steps=2)
    assert not list((tmp_path / "a" / "work").glob("scores*"))
    (found,) = results(tmp_path / "b", "params=90%", shape="neurons=16")
    share = found.predicted["params"] / subject().units().cost()["params"]
    assert found.notes == (f"the shape takes {share / 0.9:.0%} of the params that the budget allows",)
    assert results(tmp_path / "c", f"params={found.predicted['params']:.0f}", shape="neurons=16")[0].notes == ()


def test_sizes_that_are_given_are_what_is_searched(tmp_path):
    (found,) = results(tmp_path, "params=75%", shape="layers=3..4,neurons=40+64+96", tolerance=0.3)
    rows = json.loads((tmp_path / "work" / "shape-params=75%-1.json").read_text())["candidates"]
    for shape in (row["shape"] for row in rows):
        assert shape["layers"] in (3, 4)
        assert shape["neurons"] in (40, 64, 96)
        assert (shape["heads"], shape["channels"]) == (8, 64)
    assert len(rows) == 2
    assert found.predicted["params"] <= 0.75 * subject().units().cost()["params"]
    (small,) = results(tmp_path / "b", "params=24%", shape="neurons=16+24,channels=32", tolerance=0.3)
    assert shapes.sizes(small.subject)["neurons"] in (16, 24)


def test_candidates_are_the_shapes_of_the_least_estimated_loss(tmp_path, monkeypatch):
    """Each axis is cut alone; the worst shapes within the budget get no distillation, and a run goes on with it."""
    results(tmp_path, "params=75%", candidates=3, tolerance=0.1)
    rows = json.loads((tmp_path / "work" / "shape-params=75%-1.json").read_text())["candidates"]
    alone = json.loads((tmp_path / "work" / "axes-params=75%-1.json").read_text())
    grid = shapes.grid(subject(), ("layers", "heads", "neurons", "channels"))
    assert all(int(size) in grid[axis] for axis, row in alone.items() for size in row)
    units = subject().units()
    limit = {"params": 0.75 * units.cost()["params"]}
    near = minitron.under(grid, lambda shape: shapes.cost(units, shape), limit, tolerance=0.1)
    tried = [row["shape"] for row in rows]
    assert tried == minitron.likeliest(near, alone, 3, each="layers")
    assert len({shape["layers"] for shape in tried}) == len({shape["layers"] for shape in near})
    asked = []
    real = minitron.lose_alone
    monkeypatch.setattr(minitron, "lose_alone", lambda *given: asked.append(given) or real(*given))
    results(tmp_path, "params=75%", candidates=3, tolerance=0.1)
    assert not asked


@pytest.mark.parametrize("train_batch", [1, 2])
def test_relations_are_judged_among_three_texts_however_few_are_trained_on(tmp_path, train_batch):
    how = {"shape": "channels=24", "candidates": 1, "short_steps": 0, "train_batch": train_batch, "steps": 1}
    (found,) = results(tmp_path, "params=90%", kind="bert", **how, training="validation=0.1")
    assert found.recovery.steps == 1


def test_an_encoder_of_bare_states_is_cut_in_width_and_learns_through_a_projection(tmp_path):
    (cut,) = results(tmp_path / "cut", "params=90%", kind="bert", shape="channels=24")
    (taught,) = results(tmp_path / "taught", "params=90%", kind="bert", shape="channels=24", steps=40, lr=1e-2)
    assert shapes.sizes(taught.subject)["channels"] == taught.subject.hidden_size == 24
    losses = [loss for _, loss in taught.recovery.losses]
    assert np.mean(losses[-5:]) < 0.5 * losses[0]  # a random projection starts at a cosine near 0
    assert weights(cut).keys() == weights(taught).keys()  # the projection stays behind
    assert any(not torch.equal(weights(cut)[name], weights(taught)[name]) for name in weights(cut))


def test_candidates_are_ranked_by_their_loss_after_a_short_distillation(tmp_path):
    results(tmp_path, "params=75%", short_steps=3)
    rows = json.loads((tmp_path / "work" / "shape-params=75%-1.json").read_text())
    assert len(list((tmp_path / "work").glob("candidate-*"))) == len(rows["candidates"]) == 2
    assert all(row["short"] != row["zero_shot"] for row in rows["candidates"])
    assert rows["best"] == min(rows["candidates"], key=lambda row: row["short"])["shape"]


def test_silent_neurons_go_first(tmp_path):
    """Half the neurons of each layer are nearly silent after the down projection; magnitude sees that."""
    (found,) = results(tmp_path, "params=99%", shape="neurons=64", score="magnitude")
    for before, after in zip(subject().model.model.layers, found.subject.model.model.layers, strict=True):
        norms = before.mlp.down_proj.weight.norm(dim=0)
        assert torch.equal(after.mlp.down_proj.weight, before.mlp.down_proj.weight[:, norms > 0.1])


def test_every_option_of_the_cut_runs_and_keeps_the_shape(tmp_path):
    shape = "layers=3,heads=4,neurons=64,channels=48"
    wanted = dict(part.split("=") for part in shape.split(","))
    plain = {}
    for name, options in {
        "plain": {},
        "rounds": {"rounds": 2},
        "merge": {"merge": True},
        "influence": {"depth": "influence"},
        "scattered": {"contiguous": False},
        "random": {"score": "random"},
        "var": {"over_batch": "mean", "over_sequence": "var"},
    }.items():
        (found,) = results(tmp_path / name, "params=90%", shape=shape, **options)
        assert {axis: str(size) for axis, size in shapes.sizes(found.subject).items()} == wanted, name
        assert all(torch.isfinite(tensor).all() for tensor in weights(found).values()), name
        plain[name] = weights(found)
    for name in ("merge", "random"):
        assert any(not torch.equal(plain["plain"][k], plain[name][k]) for k in plain["plain"]), name


def test_the_teacher_is_corrected_on_the_texts_and_the_original_untouched(tmp_path):
    teacher = subject()
    before = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    (found,) = results(tmp_path / "a", "params=90%", model=teacher, shape="neurons=64", correction_steps=3)
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.model.state_dict().items())
    (plain,) = results(tmp_path / "b", "params=90%", shape="neurons=64")
    assert not torch.equal(
        weights(found)["model.layers.0.self_attn.q_proj.weight"],
        weights(plain)["model.layers.0.self_attn.q_proj.weight"],
    )


def test_below_half_size_every_stage_learns_from_the_original(tmp_path, monkeypatch):
    """The teacher of each stage is the whole model, though the second is cut from the first's student."""
    asked = []
    real = minitron.objectives.distil

    def watched(student, teacher, **options):
        asked.append((student.__self__, teacher.__self__))
        return real(student, teacher, **options)

    monkeypatch.setattr(minitron.objectives, "distil", watched)
    (found,) = results(tmp_path, "params=35%", steps=2, tolerance=0.2)
    whole = subject().units().cost()["params"]
    names = sorted(path.name for path in (tmp_path / "work").glob("train-*"))
    assert names == ["train-params=35%-1", "train-params=35%-2"]
    teachers = [teacher for _, teacher in asked]
    students = [student for student, _ in asked]
    assert len(asked) == 2
    assert teachers[0] is teachers[1]
    assert shapes.sizes(teachers[0]) == shapes.sizes(subject())
    costs = [student.units().cost()["params"] for student in students]
    assert whole > costs[0] > costs[1] == found.predicted["params"] <= 0.35 * whole
    assert found.recovery is not None
    assert found.recovery.steps == 2 * 2
    assert found.cut.before["params"] == whole  # the receipt spans both stages


def test_scores_are_taken_once_for_all_budgets_and_a_run_resumes(tmp_path, monkeypatch):
    counted = []
    real = minitron.scores

    def watched(*args, **options):
        counted.append(1)
        return real(*args, **options)

    monkeypatch.setattr(minitron, "scores", watched)
    first = results(tmp_path, "params=90%", "params=75%", steps=2)
    assert len(counted) == 1
    assert [found.name for found in first] == ["params=90%", "params=75%"]
    again = results(tmp_path, "params=90%", "params=75%", steps=2)
    assert len(counted) == 1
    for one, two in zip(first, again, strict=True):
        assert one.cut.removed == two.cut.removed
        assert all(torch.equal(tensor, weights(two)[name]) for name, tensor in weights(one).items())


def test_a_dry_run_shows_the_best_untrained_candidate(tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("a dry run trained")

    monkeypatch.setattr(minitron.distillation, "train_student", never)
    (found,) = results(tmp_path, "params=75%", steps=5, short_steps=5, correction_steps=5, dry_run=True)
    assert found.recovery is None
    assert found.predicted["params"] <= 0.75 * subject().units().cost()["params"]
    rows = json.loads((tmp_path / "work" / "shape-params=75%-1.json").read_text())
    best = min(rows["candidates"], key=lambda row: row["zero_shot"])
    assert shapes.sizes(found.subject) == best["shape"]


def test_what_is_not_known_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="score 'loudness' is not one of activation, magnitude, random"):
        results(tmp_path / "a", "params=75%", score="loudness")
    with pytest.raises(InputError, match="option depth='guess' of minitron"):
        results(tmp_path / "b", "params=75%", depth="guess", shape="layers=2")
    with pytest.raises(InputError, match="there is no file"):
        results(tmp_path / "c", "params=75%", score=f"{tmp_path}/none.py:worth")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"axes": ("neuron",)}, "axes=neuron: give one or more of layers, heads, neurons, channels"),
        ({"axes": ()}, "axes=: give one or more of"),
        ({"shape": "heads=3"}, "'heads=3' is no multiple of 2"),  # of the KV groups
        ({"shape": "neurons=41"}, "'neurons=41' is no multiple of 8"),
        ({"logit": 0.0, "steps": 2}, "task=0, logit=0 leave nothing to learn by: give one of them a weight"),
        ({"logit": 0.0, "short_steps": 2}, "give one of them a weight$"),
        ({"task": -1.0}, "task=-1.0 of minitron"),
    ],
)
def test_what_no_model_can_have_or_learn_by_is_refused(tmp_path, options, words):
    with pytest.raises(InputError, match=words):
        results(tmp_path, "params=90%", **options)


@pytest.mark.parametrize(
    ("second", "error"),
    [("pattern=2:4", BudgetError), ("params=80%,pattern=2:4", BudgetError), ("params=1%", InfeasibleError)],
)
def test_a_budget_that_no_shape_meets_is_refused_before_the_first_is_trained(tmp_path, monkeypatch, second, error):
    monkeypatch.setattr(minitron.distillation, "train_student", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(error):
        results(tmp_path, "params=90%", second, steps=2, stages=1)


@pytest.mark.parametrize(
    ("budget", "axes", "tolerance", "why"),
    [
        (
            "params=30%",
            ("neurons",),
            0.2,
            r"the smallest shape of 2 stages has \d+; ask for at least params=\d+, or for",
        ),
        ("params=20%", ("layers",), 0.2, r"the smallest shape of 3 stages has \d+; ask for at least"),
        ("params=1%", ("layers", *minitron.WIDTHS), 0.05, r"the smallest shape of 7 stages has \d+; ask for at least"),
        ("params=45%", ("layers", "neurons"), 1e-6, r"\(what stage 2 of 2 is to reach; fewer"),
    ],
)
def test_a_later_stage_that_no_shape_meets_is_refused_before_the_first_is_scored(
    tmp_path, monkeypatch, budget, axes, tolerance, why
):
    monkeypatch.setattr(minitron, "scores", lambda *_, **__: pytest.fail("scored"))
    with pytest.raises(InfeasibleError, match=rf"params of .* can't be met.*{why}"):
        results(tmp_path, budget, axes=axes, tolerance=tolerance, steps=2)


def test_what_stages_have_trained_is_not_lost_for_a_narrow_miss(tmp_path):
    (found,) = results(tmp_path, "params=2%", steps=2, short_steps=1)
    whole = open_subject(tiny.model("llama")).units().cost()["params"]
    share = found.subject.units().cost()["params"] / (0.02 * whole)
    assert share < 0.95
    assert found.notes == (f"the shape takes {share:.0%} of the params that the budget allows",)


def test_influence_is_of_layers_side_by_side(tmp_path):
    """Of a hybrid a block of one kind has others in it, and a decoder's states do not follow its encoder's."""
    start = open_subject(hybrids.make_hybrid("NemotronH", vocab_size=64), tokenizer=tiny.tokenizer())
    how = {"model": start, "shape": "layers=4", "depth": "influence"}
    with pytest.raises(InputError, match="stand between those of the kind that may go: give contiguous=false, or"):
        results(tmp_path / "a", "params=99%", **how)
    (found,) = results(tmp_path / "b", "params=99%", contiguous=False, **how)
    assert len(found.subject.layers()) == 4
    (narrow,) = results(tmp_path / "c", "params=99%", **{**how, "shape": "neurons=24"})
    assert len(narrow.subject.layers()) == 5
    config = BartConfig(**encoders.BART | {"encoder_ffn_dim": 64, "max_position_embeddings": 32})
    both = open_subject(BartForConditionalGeneration(config), tokenizer=tiny.tokenizer())
    with pytest.raises(InputError, match="leave the encoder: give depth=perplexity"):
        results(tmp_path / "d", "params=99%", model=both, shape="layers=4", depth="influence", contiguous=False)


def test_a_budget_out_of_reach_names_the_measure_and_what_is_reachable(tmp_path):
    with pytest.raises(InfeasibleError, match=r"params of .* can't be met: .*ask for at least") as refused:
        results(tmp_path / "a", "params=1%", stages=1)
    nearest = refused.value.reachable
    grid = shapes.grid(subject(), ("layers", "heads", "neurons", "channels"))
    assert nearest == shapes.cost(subject().units(), {axis: sizes[0] for axis, sizes in grid.items()})["params"]
    (found,) = results(tmp_path / "b", f"params={nearest:.0f}", stages=1)
    assert found.predicted["params"] == nearest


def test_a_score_of_the_user_decides(tmp_path):
    """The last neurons of each layer, the first channels, the first heads of each KV group."""
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def worth(subject, batches):\n"
        "    assert len(batches) == 2\n"
        "    found = {}\n"
        "    for site in subject.units('heads', 'neurons', 'channels').free():\n"
        "        rising = torch.arange(site.count, dtype=torch.float32)\n"
        "        found[site.name] = rising if site.kind == 'neurons' else -rising\n"
        "    return found\n"
    )
    (found,) = results(
        tmp_path / "out", "params=90%", shape="neurons=64,channels=48", score=f"{tmp_path}/mine.py:worth"
    )
    before, after = subject().model, found.subject.model
    assert torch.equal(after.model.embed_tokens.weight, before.model.embed_tokens.weight[:, :48])
    assert torch.equal(after.model.layers[1].mlp.up_proj.weight, before.model.layers[1].mlp.up_proj.weight[64:, :48])


def test_sites_the_user_does_not_score_are_ranked_by_activation(tmp_path):
    """Only neurons are scored; what that cuts elsewhere is what the default cuts."""
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def worth(subject, batches):\n"
        "    return {s.name: torch.arange(float(s.count)) for s in subject.units('neurons').free()}\n"
        "def typo(subject, batches):\n"
        "    return {'layer.0.neurons': torch.ones(96)}\n"
        "def short(subject, batches):\n"
        "    return {'layers.0.neurons': torch.ones(3)}\n"
    )
    shape = "neurons=64,channels=48"
    (mine,) = results(tmp_path / "mine", "params=90%", shape=shape, score=f"{tmp_path}/mine.py:worth")
    (plain,) = results(tmp_path / "plain", "params=90%", shape=shape)
    assert torch.equal(weights(mine)["model.embed_tokens.weight"], weights(plain)["model.embed_tokens.weight"])
    assert not torch.equal(weights(mine)["model.layers.0.mlp.up_proj.weight"],
                           weights(plain)["model.layers.0.mlp.up_proj.weight"])  # fmt: skip
    for name, message in (
        ("typo", r"'layer.0.neurons' .* the sites are .*layers.0.heads"),
        ("short", r"\[3\]: it has \d+"),
    ):
        with pytest.raises(InputError, match=message):
            results(tmp_path / name, "params=90%", shape=shape, score=f"{tmp_path}/mine.py:{name}")


def test_layers_that_go_are_the_block_that_is_missed_least():
    """Layer 2 adds nothing to the residual stream: any ranking drops it first."""
    model = subject()
    with torch.no_grad():
        for linear in (model.model.model.layers[2].self_attn.o_proj, model.model.model.layers[2].mlp.down_proj):
            linear.weight.zero_()
    items = texts.batches(DATA, model.tokenizer, packed=True, batch=8, length=16, seed=0).take(2)

    def judge(student) -> float:
        with torch.no_grad():
            gaps = [student.forward(item).prediction - model.forward(item).prediction for item in items]
        return float(sum(gap.square().mean() for gap in gaps))

    for depth in ("perplexity", "influence"):
        for contiguous in (True, False):
            keep = minitron.kept_layers(model, 3, depth, contiguous, judge, items)
            assert np.asarray(keep).tolist() == [True, True, False, True], (depth, contiguous)
    assert minitron.kept_layers(model, 4, "perplexity", True, judge, items).all()


def test_a_criterion_of_the_user_ranks_layers_and_candidates(tmp_path):
    """It likes models that still have the last layer's weights, and wide ones."""
    (tmp_path / "mine.py").write_text(
        "def verdict(student, batches):\n"
        "    assert len(batches) >= 1\n"
        "    return -student.widths()[0].neurons - 1000 * (3 in student.layer_index)\n"
    )
    criterion = f"{tmp_path}/mine.py:verdict"
    (found,) = results(tmp_path / "a", "params=90%", shape="layers=2", criterion=criterion)
    assert 3 in found.subject.layer_index
    (found,) = results(tmp_path / "b", "params=75%", candidates=4, criterion=criterion)
    rows = json.loads((tmp_path / "b" / "work" / "shape-params=75%-1.json").read_text())["candidates"]
    assert shapes.sizes(found.subject)["neurons"] == max(row["shape"]["neurons"] for row in rows)


def test_a_cached_teacher_is_asked_once_per_batch_and_teaches_the_same(tmp_path, monkeypatch):
    """With every token kept, the cache says what the live teacher says, but for half precision."""
    options = {"shape": "neurons=40", "short_steps": 0, "steps": 4, "lr": 1e-3}
    (live,) = results(tmp_path / "live", "params=95%", **options)
    teacher, asked = subject(), []
    forward = Transformer.forward

    def watched(self, batch, **more):
        if self is teacher and torch.is_grad_enabled() is False and not more:
            asked.append(batch["input_ids"].shape)
        return forward(self, batch, **more)

    monkeypatch.setattr(Transformer, "forward", watched)
    vocabulary = len(tiny.tokenizer())
    (found,) = results(tmp_path / "cached", "params=95%", model=teacher, cache=vocabulary, **options)
    assert len(list((tmp_path / "cached" / "work" / "predictions").glob("*.safetensors"))) == 1
    assert asked.count((8, 16)) >= 4
    (start,) = results(tmp_path / "start", "params=95%", **{**options, "steps": 0})

    def apart(one: Result, other: Result) -> float:
        return sum(float((tensor - weights(other)[name]).square().sum()) for name, tensor in weights(one).items())

    assert apart(found, live) < 0.05 * apart(live, start)
    assert found.recovery.losses[0][1] == pytest.approx(live.recovery.losses[0][1], rel=2e-2)
    before = dict(subject().model.named_parameters())
    assert any(not torch.equal(p, before[n]) for n, p in teacher.model.named_parameters()) is False


def test_settings_of_the_training_loop_pass_through(tmp_path):
    (found,) = results(
        tmp_path, "params=95%", shape="neurons=40", steps=6, lr=0.0, min_lr=0.0,
        training="patience=1,evaluate_every=1,accumulate=2",
    )  # fmt: skip
    assert found.recovery.settings["micro_batches"] == 2
    assert found.recovery.steps == 2  # nothing is learnt, so the second evaluation is no better than the first
    with pytest.raises(InputError, match="does not train by epochs"):
        results(tmp_path / "b", "params=95%", training="epochs=3")


@pytest.mark.parametrize("budget", ["memory=80%", "kv_cache=60%", "flops=75%", "bytes=80%"])
def test_budgets_of_other_measures_are_kept(tmp_path, budget):
    (found,) = results(tmp_path, budget, tolerance=0.2)
    limit = Budget.parse(budget).limits[0]
    share = found.predicted[limit.measure] / subject().units(length=16).cost()[limit.measure]
    assert 0.8 * limit.value <= share <= limit.value


def test_a_shape_below_half_is_reached_in_stages_without_passing_it(tmp_path):
    """The first stage stops half-way to the shape: a search of its own could cut an axis below it."""
    (found,) = results(tmp_path, "params=30%", shape="layers=4,neurons=16,channels=32")
    assert shapes.sizes(found.subject) == {"layers": 4, "heads": 8, "neurons": 16, "channels": 32}
    rows = json.loads((tmp_path / "work" / "shape-params=30%-1.json").read_text())
    assert rows["best"] == {"layers": 4, "heads": 8, "neurons": 72, "channels": 48}


def test_rounds_score_the_half_way_student_anew(tmp_path, monkeypatch):
    seen, real = [], minitron.scores
    monkeypatch.setattr(
        minitron, "scores", lambda s, *rest, **how: seen.append(shapes.sizes(s)) or real(s, *rest, **how)
    )
    results(tmp_path / "one", "params=90%", shape="neurons=64")
    assert seen == [shapes.sizes(subject())]
    seen.clear()
    results(tmp_path / "two", "params=90%", shape="neurons=64", rounds=2)
    assert [sizes["neurons"] for sizes in seen] == [128, 96, 96]  # the original; half-way, for the trial and the result


@pytest.mark.parametrize("cache", [0, 4])
def test_losses_and_calibration_are_what_the_options_say(tmp_path, monkeypatch, cache):
    asked, counts, real, remember = [], [], minitron.objectives.distil, minitron.distillation.teachers.join_topk
    monkeypatch.setattr(minitron.objectives, "distil", lambda *models, **how: asked.append(how) or real(*models, **how))
    monkeypatch.setattr(
        minitron.distillation.teachers, "join_topk",
        lambda *rest, **how: asked.append(how) or remember(*rest, **how),
    )  # fmt: skip
    rank = minitron.scores

    def spy(start, items, **how):
        counts.append([len(item["input_ids"]) for item in items])
        return rank(start, items, **how)

    monkeypatch.setattr(minitron, "scores", spy)
    losses = {"task": 0.5, "logit": 2.0, "temperature": 3.0, **({} if cache else {"direction": "reverse"})}
    results(tmp_path, "params=90%", shape="neurons=64", steps=1, calibration=37, cache=cache, **losses)
    assert counts == [[16, 16, 5]]
    assert {name: asked[0][name] for name in losses} == losses
    assert [how["temperature"] for how in asked] == [3.0, 3.0] if cache else [3.0]


def test_hidden_states_count_where_many_layers_go_and_only_there(tmp_path, monkeypatch):
    asked, real = [], minitron.objectives.distil
    monkeypatch.setattr(
        minitron.objectives, "distil", lambda *models, **how: asked.append(how["hidden"]) or real(*models, **how)
    )
    results(tmp_path / "deep", "params=90%", shape="layers=2", steps=1)
    results(tmp_path / "wide", "params=90%", shape="neurons=64", steps=1)
    results(tmp_path / "never", "params=90%", shape="layers=2", steps=1, hidden=False)
    results(tmp_path / "always", "params=90%", shape="neurons=64", steps=1, hidden=True)
    assert asked[:3] == [[(0, 0), (1, 2)], [], []]
    assert asked[3]


def test_the_papers_reducers_and_the_sum_over_norms_are_the_default(tmp_path, monkeypatch):
    asked, real = [], minitron.activation.collect
    monkeypatch.setattr(minitron.activation, "collect", lambda *given, **how: asked.append(how) or real(*given, **how))
    results(tmp_path, "params=90%", shape="neurons=64")
    assert asked == [{"batch": "l2", "sequence": "mean"}]
    model = subject()
    items = texts.batches(DATA, model.tokenizer, packed=True, batch=8, length=16, seed=0).take(2)
    taps = {norm: minitron.activation.Tap(norm, "output") for norm in model.norms()}
    each = real(model.forward, model.model, items, taps, batch="l2", sequence="mean")
    found = minitron.scores(model, items, how="activation", seed=0)
    torch.testing.assert_close(found["channels"], torch.stack(list(each.values())).sum(0))
    assert len(each) == 9


def test_the_teacher_is_corrected_at_a_fifth_of_the_rate(tmp_path, monkeypatch):
    rates, real = [], loop.train
    monkeypatch.setattr(loop, "train", lambda *given, **how: rates.append(given[3].lr) or real(*given, **how))
    results(tmp_path, "params=90%", shape="neurons=64", correction_steps=1, steps=1, lr=1e-2)
    assert rates == pytest.approx([2e-3, 1e-2])


def test_what_training_took_counts_candidates_stages_and_the_teachers_correction(tmp_path):
    options = {"steps": 2, "short_steps": 3, "stages": 2, "tolerance": 0.2, "correction_steps": 4}
    (found,) = results(tmp_path, "params=35%", **options)
    took = 8 * 16  # tokens of a step
    assert found.recovery.steps == 2 * 2
    assert found.recovery.tokens == took * (4 + 2 * 2 * 3 + 2 * 2)
    assert [step for step, _ in found.recovery.losses] == [1, 2, 3, 4]
    whole = subject().units(length=16).cost()["flops"] / 16
    assert 3 * whole * took * 4 < found.recovery.flops < 4 * whole * found.recovery.tokens
    (again,) = results(tmp_path, "params=35%", **options)
    assert again.recovery == found.recovery


@pytest.mark.parametrize("merge", [False, True])
def test_layers_are_judged_once_for_all_candidates_and_budgets(tmp_path, monkeypatch, merge):
    counts, real = [], minitron.kept_layers
    monkeypatch.setattr(minitron, "kept_layers", lambda s, count, **how: counts.append(count) or real(s, count, **how))
    results(tmp_path, "params=75%", "params=70%", candidates=4, tolerance=0.2, merge=merge)
    assert len(counts) == len(set(counts))


def test_a_warm_up_in_steps_and_a_low_rate_serve_the_short_trainings_too(tmp_path, monkeypatch):
    """The paper's 60 steps of warm-up, above the trials' 50, were refused after all had been scored."""
    seen, real = [], loop.train
    monkeypatch.setattr(loop, "train", lambda *given, **how: seen.append(given[3]) or real(*given, **how))
    results(tmp_path, "params=75%", steps=8, warmup=4, short_steps=2, correction_steps=3, lr=4e-5, min_lr=1e-5)
    correction, *candidates, whole = [(one.steps, one.warmup, one.lr, one.min_lr) for one in seen]
    assert correction == (3, 0.5, pytest.approx(8e-6), pytest.approx(8e-6))
    assert candidates == [(2, 0.5, 4e-5, 1e-5)] * 2
    assert whole == (8, 4, 4e-5, 1e-5)


def test_merging_leaves_layers_without_heads_alone(tmp_path):
    start = open_subject(hybrids.make_hybrid("NemotronH", vocab_size=64), tokenizer=tiny.tokenizer())
    sizes = shapes.sizes(start)
    half = sizes["heads"] // 2
    assert half % shapes.steps(start)["heads"] == 0
    (found,) = results(tmp_path / "a", "params=99%", model=start, shape=f"heads={half}", merge=True)
    assert shapes.sizes(found.subject) == {**sizes, "heads": half}
    bare = open_subject(hybrids.make_hybrid("Mamba", vocab_size=64), tokenizer=tiny.tokenizer())
    (found,) = results(tmp_path / "b", "params=99%", model=bare, shape="layers=2", merge=True)
    assert len(found.subject.layers()) == 2


def test_models_that_were_merged_are_let_go_of(tmp_path, monkeypatch):
    """Sixteen of them were held for what had been said of their layers, each as large as the original."""
    made, alive, real = [], [], minitron.merge_heads

    def watched(*given):
        gc.collect()
        alive.append(sum(one() is not None for one in made))
        merged = real(*given)
        made.append(weakref.ref(merged))
        return merged

    monkeypatch.setattr(minitron, "merge_heads", watched)
    results(tmp_path, "params=75%", candidates=4, merge=True)
    assert len(made) > 3
    assert max(alive) == 0


def test_options_that_a_model_can_not_have_are_refused(tmp_path):
    for wrong in ({"hidden": True}, {"direction": "reverse"}, {"kind": "bert"}):
        with pytest.raises(InputError, match="cache keeps a language model's likeliest tokens"):
            results(tmp_path, "params=90%", cache=4, **wrong)
    with pytest.raises(InputError, match="correction_steps trains on the next token"):
        results(tmp_path, "params=90%", kind="bert", correction_steps=1)


def test_hidden_states_count_from_a_quarter_of_the_layers_on(tmp_path, monkeypatch):
    asked, real = [], minitron.objectives.distil
    monkeypatch.setattr(
        minitron.objectives, "distil", lambda *models, **how: asked.append(how["hidden"]) or real(*models, **how)
    )
    results(tmp_path, "params=90%", shape="layers=3", steps=1)
    assert asked == [[(0, 0), (1, 2)]]


def test_shapes_are_judged_on_texts_held_out(tmp_path, monkeypatch):
    seen, real = [], minitron.distillation.held_out
    monkeypatch.setattr(
        minitron.distillation, "held_out", lambda *given, **how: seen.append(given[2]) or real(*given, **how)
    )
    results(tmp_path, "params=75%", candidates=2)
    _, held = DATA.split(seed=0)
    wanted = minitron.distillation.make_batches(subject(), held, batch=8, length=16, seed=0).take(16)
    assert seen
    for batches in seen:
        assert [batch["input_ids"].tolist() for batch in batches] == [batch["input_ids"].tolist() for batch in wanted]


def test_heads_that_stay_take_over_those_of_their_own_group():
    """Eight heads in two groups, the later the better: of each group two go to the two that stay, crosswise."""
    start = subject()
    worth = {f"layers.{layer}.heads": torch.arange(8.0) for layer in range(4)}
    merged = minitron.merge_heads(start, worth, 4)
    for before, after in zip(start.model.model.layers, merged.model.model.layers, strict=True):
        old, new = (layer.self_attn.q_proj.weight.detach().unflatten(0, (8, -1)) for layer in (before, after))
        for stays, goes in ((2, 1), (3, 0), (6, 5), (7, 4)):
            torch.testing.assert_close(new[stays], 2 * old[stays] - old[goes])
        assert torch.equal(after.self_attn.k_proj.weight, before.self_attn.k_proj.weight)


def test_a_seed_draws_its_own_random_scores():
    first, again, other = (minitron.scores(subject(), [], how="random", seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(first[site], again[site]) for site in first)
    assert not any(torch.equal(first[site], other[site]) for site in first)


def toy(_):
    """What `conformance.check_recipe` takes: see tests/conformance."""
    return toys.language(steps=0, short_steps=0, length=16, train_batch=8, candidates=3)
