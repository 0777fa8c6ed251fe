"""SlimMoE: thin experts in stages, each scored and distilled anew against the original."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import tiny
import toys
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.errors import BudgetError, InfeasibleError, InputError, UnsupportedError
from secateur.measure import latency
from secateur.recipes.sparse import slimmoe as recipe
from secateur.recipes.sparse.slimmoe import slimmoe
from secateur.recover.training import loop
from secateur.runs import executor, keywords, measuring
from secateur.score import experts, routing
from secateur.select import clusters
from secateur.subjects import Moe, open_subject
from secateur.vocabulary import Budget, Figure, Recovery, Result, Training
from subjects.tiny import make

QUICK: dict[str, Any] = {"calibration": 16, "length": 16, "train_batch": 4, "steps": 0}


@pytest.fixture(scope="module")
def data() -> texts.Corpus:
    return texts.read(tiny.chains(300))


@pytest.fixture(scope="module")
def subject() -> Moe:
    found = open_subject(tiny.model("mixtral"), tokenizer=tiny.tokenizer())
    assert isinstance(found, Moe)
    return found


def run(subject: Moe, data: texts.Corpus, folder: Path, budget: str = "params=70%", **options: Any) -> Result:
    options = QUICK | options
    with Run.open(folder, {"budget": budget, **options}) as opened:
        (result,) = slimmoe(subject, data, [Budget.parse(budget)], opened, **keywords.check_options(slimmoe, options))
    return result


def remember(subject: Moe, samples: Any) -> Any:
    logits = lambda batch: subject.forward(batch).prediction  # noqa: E731
    likeliest = experts.remember_likeliest(logits, subject.model, subject.layers(), samples, 8)
    return experts.add_likeliest(samples, likeliest)


def widths(result: Result) -> set[int]:
    return {mixture.width for mixture in result.subject.mixtures().values()}  # type: ignore[attr-defined]


def test_experts_and_router_stay_and_only_their_width_goes(subject: Moe, data: texts.Corpus, tmp_path: Path) -> None:
    result = run(subject, data, tmp_path)
    small = result.subject
    assert isinstance(small, Moe)
    assert not small.model.config.is_heterogeneous
    assert len(widths(result)) == 1
    for layer, mixture in small.mixtures().items():
        assert mixture.count == subject.mixtures()[layer].count
        assert torch.equal(mixture.router.weight, subject.mixtures()[layer].router.weight)
    assert small.model.config.num_experts_per_tok == subject.top_k
    left = small.units().cost()
    assert left["params"] <= 0.7 * subject.units().cost()["params"]
    assert result.predicted["active_params"] == left["active_params"] == small.active_params()
    assert {name.rpartition(".")[2] for name in result.cut.removed if result.cut.removed[name][0]} == {"expert_neurons"}


@pytest.mark.parametrize(("share", "stages"), [(0.8, 2), (0.25, 2), (0.125, 3), (0.0, 4)])
def test_each_stage_halves_the_experts_unless_told(subject: Moe, share: float, stages: int) -> None:
    fixed: dict[str, Any] = {"kv_groups": 0, "shared": 1.0, "dense": 1.0, "divisor": 1, "slim": "neurons"}
    plan = partial(recipe.plan_stage, subject, subject, batch=1, length=16, last=True, **fixed)
    units, counts = plan(share=share)
    cost = units.cost({name: np.arange(units[name].count) < count for name, count in counts.items()})
    goals = recipe.stage_shares(None, Budget.parse(f"params={cost['params']:.0f}"), plan)
    assert len(goals) == stages
    assert [b / a for a, b in itertools.pairwise([1.0, *goals])] == pytest.approx([goals[0]] * stages)


def test_a_dead_neuron_goes_first(data: texts.Corpus, tmp_path: Path) -> None:
    model = tiny.model("mixtral")
    dead = {(layer, expert): (5 * layer + 7 * expert) % 24 for layer in range(3) for expert in range(8)}
    with torch.no_grad():
        for (layer, expert), neuron in dead.items():
            model.model.layers[layer].mlp.experts.gate_up_proj[expert, neuron] = 0.0
    found = open_subject(model, tokenizer=tiny.tokenizer())
    result = run(found, data, tmp_path, "params=90%", divisor=4, stages="1")
    for (layer, expert), neuron in dead.items():
        before = found.mixtures()[layer].experts.down_proj[expert, :, neuron]
        after = result.subject.mixtures()[layer].experts.down_proj[expert]
        assert not (before == after.T).all(1).any()


def test_each_stage_is_scored_anew_and_learns_from_the_original(
    subject: Moe, data: texts.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[int, int, Any]] = []
    real = loop.train

    def train(model: Any, batches: Any, objective: Any, training: Training, **options: Any) -> Any:
        trained.append((model.config.intermediate_size, training.steps, options["frozen"]))
        read.append([batches[number]["input_ids"] for number in range(6)])
        return real(model, batches, objective, training, **options)

    read: list[list[torch.Tensor]] = []
    monkeypatch.setattr(loop, "train", train)
    options = {"stages": "66%,34%", "tokens": "25%,75%", "steps": 8}
    result = run(subject, data, tmp_path, "params=80%", **options)
    assert all(torch.equal(*both) for both in zip(read[0][2:], read[1], strict=False))  # it reads on
    assert not torch.equal(read[0][0], read[1][0])
    assert [(width, steps) for width, steps, _ in trained] == [(16, 2), (8, 6)]
    assert all(frozen == [subject.model] for _, _, frozen in trained)
    assert result.recovery is not None
    assert result.recovery.steps == 8
    assert result.recovery.tokens == 8 * 4 * 16
    assert [note.split(":")[0] for note in result.notes] == ["stage 1", "stage 2"]
    assert "of the student and" in result.notes[0]
    stored = {path.name for path in (tmp_path / "work").iterdir()}
    assert {"scores-params=80%-1.safetensors", "scores-params=80%-2.safetensors"} <= stored
    again = run(subject, data, tmp_path, "params=80%", **options)
    for one, other in zip(again.subject.model.parameters(), result.subject.model.parameters(), strict=True):
        assert torch.equal(one, other)
    trained.clear()
    cached = run(subject, data, tmp_path / "cached", "params=80%", **options, cache=8)
    assert all(frozen == [] for _, _, frozen in trained)
    assert " and 0 of the original" in cached.notes[0]


def test_the_router_can_be_left_alone(subject: Moe, data: texts.Corpus, tmp_path: Path) -> None:
    frozen = run(subject, data, tmp_path / "a", steps=4, freeze_router=True).subject
    moved = run(subject, data, tmp_path / "b", steps=4, balance=0.1).subject
    assert isinstance(frozen, Moe)
    assert isinstance(moved, Moe)
    router = subject.mixtures()[0].router.weight
    assert torch.equal(frozen.mixtures()[0].router.weight, router)
    assert not torch.equal(moved.mixtures()[0].router.weight, router)
    assert all(parameter.requires_grad for parameter in frozen.model.parameters())


@pytest.mark.parametrize("change", [{"task": 1.0}, {"logit": 0.5}, {"temperature": 2.0}, {"balance": 0.5}, {"top": 2}])
def test_what_a_stage_learns_is_as_asked(
    subject: Moe, data: texts.Corpus, tmp_path: Path, change: dict[str, Any]
) -> None:
    plain = run(subject, data, tmp_path / "a", stages="1", steps=2).subject.model.state_dict()
    other = run(subject, data, tmp_path / "b", stages="1", steps=2, **change).subject.model.state_dict()
    assert any(not torch.equal(tensor, other[name]) for name, tensor in plain.items())


def test_each_stage_may_have_its_own_learning_rate(
    subject: Moe, data: texts.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, real = list[tuple[Any, Any]](), loop.train

    def train(*args: Any, **options: Any) -> Any:
        rates.append((args[3].lr, args[3].min_lr))
        return real(*args, **options)

    monkeypatch.setattr(loop, "train", train)
    run(subject, data, tmp_path / "a", steps=4, lr=[1e-3, 5e-4], min_lr=1e-5)
    assert rates == [(1e-3, 1e-3), (5e-4, 1e-5)]  # the first stage is stopped early, before its rate falls
    with pytest.raises(InputError, match=r"^lr=0\.1,0\.2,0\.3 has 3 numbers for 2 stages: give one for all of them"):
        run(subject, data, tmp_path / "b", steps=4, lr=[0.1, 0.2, 0.3])
    with pytest.raises(InputError, match=r"^min_lr=0\.0001: give a floor between 0 and lr=1e-05"):
        run(subject, data, tmp_path / "c", steps=4, lr=[1e-3, 1e-5])
    assert len(rates) == 2


def test_full_kl_has_no_gradient_at_first_and_says_so(subject: Moe, data: texts.Corpus, tmp_path: Path) -> None:
    result = run(subject, data, tmp_path / "full", loss="full", stages="2")
    assert [note for note in result.notes if "no gradient" in note] == [
        "stage 1: full loss has no gradient here, scored by the next token's"
    ]
    assert not run(subject, data, tmp_path / "truncated").notes
    assert not run(subject, data, tmp_path / "task", loss="task").notes


@pytest.mark.parametrize("score", ["weight", "activation", "random"])
def test_other_scores_choose_otherwise(subject: Moe, data: texts.Corpus, tmp_path: Path, score: str) -> None:
    ours, theirs = run(subject, data, tmp_path / "a"), run(subject, data, tmp_path / "b", score=score)
    assert widths(ours) == widths(theirs)
    one, other = (r.subject.model.model.layers[0].mlp.experts.down_proj for r in (ours, theirs))
    assert one.shape == other.shape
    assert not torch.equal(one, other)


def test_a_score_of_ones_own(subject: Moe, data: texts.Corpus, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "import torch\n"
        "def first(subject, batches):\n"
        "    found = subject.mixtures()\n"
        "    return {f'layers.{n}.expert_neurons': -torch.arange(m.count * m.width) for n, m in found.items()}\n"
    )
    result = run(subject, data, tmp_path / "run", score=f"{file}:first", stages="1")
    (width,) = widths(result)
    before, after = (one.mixtures()[1].experts.down_proj for one in (subject, result.subject))
    assert torch.equal(after, before[:, :, :width])


@pytest.mark.parametrize("score", ["taylor", "random"])
def test_one_set_of_indices_for_all_experts(subject: Moe, data: texts.Corpus, tmp_path: Path, score: str) -> None:
    result = run(subject, data, tmp_path, alike=True, stages="1", score=score)
    before, after = (one.mixtures()[0].experts.down_proj for one in (subject, result.subject))
    sets = {tuple(int((column == before[e].T).all(1).nonzero()) for column in after[e].T) for e in range(len(before))}
    assert len(sets) == 1


def test_whole_experts_go_by_how_often_they_are_used(subject: Moe, data: texts.Corpus, tmp_path: Path) -> None:
    result = run(subject, data, tmp_path, slim="experts", stages="1")
    counts = {mixture.count for mixture in result.subject.mixtures().values()}
    assert len(counts) == 1
    assert counts < {2, 3, 4, 5, 6, 7}
    assert widths(result) == {24}
    assert result.subject.units().cost()["params"] <= 0.7 * subject.units().cost()["params"]
    with pytest.raises(InputError, match="option slim='layers' of slimmoe"):
        run(subject, data, tmp_path / "other", slim="layers")


def test_experts_may_become_the_means_of_those_whose_rows_are_near(
    subject: Moe, data: texts.Corpus, tmp_path: Path
) -> None:
    result = run(subject, data, tmp_path, slim="merge", stages="1", kv_groups=1)
    small = result.subject
    assert isinstance(small, Moe)
    assert small.model.config.num_key_value_heads == 1
    (count,) = {mixture.count for mixture in small.mixtures().values()}
    assert 1 < count < 8
    for layer, mixture in small.mixtures().items():
        old = subject.mixtures()[layer]
        groups = clusters.cluster_layer(routing.row_distance(old.router.weight), count)
        assert sorted(expert for one in groups for expert in one) == list(range(8))
        assert max(map(len, groups)) > 1
        rows = [old.router.weight[one].detach().double().mean(0).float() for one in groups]
        for place, row in enumerate(mixture.router.weight.detach()):  # it chooses the mean of the same experts
            (one,) = (group for group, mean in zip(groups, rows, strict=True) if torch.equal(mean, row))
            for theirs, ours in zip(old.experts.parameters(), mixture.experts.parameters(), strict=True):
                assert torch.equal(ours[place], theirs[one].detach().double().mean(0).float())


def test_whole_experts_go_by_saliency_or_by_chance_too(subject: Moe, data: texts.Corpus, tmp_path: Path) -> None:
    kept = {}
    for score in ("taylor", "soft", "saliency", "random"):
        small = run(subject, data, tmp_path / score, slim="experts", stages="1", score=score).subject
        assert isinstance(small, Moe)
        kept[score] = torch.cat([mixture.router.weight for mixture in small.mixtures().values()])
    assert len({tuple(rows.flatten().tolist()) for rows in kept.values()}) == 4
    before = subject.mixtures()[0]
    seen = texts.windows(data, subject.tokenizer, 16, 16)[0]
    units, _ = recipe.plan_stage(
        subject, subject, share=0.5, last=True, slim="experts", kv_groups=0, shared=1, dense=1, divisor=8, batch=1,
        length=16,
    )  # fmt: skip
    samples = remember(subject, seen)
    found = recipe.scores(subject, subject, units, samples, scoring=recipe.Scoring("saliency"))
    wanted = routing.collect(subject.forward, subject.model, seen, {"0": before.experts}, saliency=True)["0"].saliency
    assert torch.equal(found["layers.0.experts"], wanted)
    found = recipe.scores(subject, subject, units, samples, scoring=recipe.Scoring("soft"))
    (soft,) = routing.collect(
        subject.forward, subject.model, seen, {"0": before.experts}, routers={"0": before.router}
    ).values()
    assert torch.equal(found["layers.0.experts"], soft.soft.float())
    for score in ("soft", "saliency"):
        with pytest.raises(InputError, match=f"score={score} is of whole experts: give slim=experts"):
            run(subject, data, tmp_path / f"{score}-neurons", score=score)


@pytest.mark.parametrize("score", ["taylor", "activation"])
def test_experts_that_no_token_comes_to_are_told_and_ranked_by_their_weights(
    data: texts.Corpus, tmp_path: Path, score: str
) -> None:
    model = tiny.model("mixtral")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.experts.gate_up_proj[:, :8] *= 1e-3  # the first neurons are the least
    found = open_subject(model, tokenizer=tiny.tokenizer())
    with torch.no_grad():
        for mixture in found.mixtures().values():
            mixture.router.register_forward_hook(
                lambda one, _, out: (out[0], out[1], torch.tensor([[3, 4]]).expand_as(out[2]))
            )
    result = run(found, data, tmp_path, "params=90%", divisor=4, stages="1", score=score)
    assert result.notes == ("stage 1: 18 experts got nothing to score by: ranked by their weights",)
    (width,) = widths(result)
    for layer, mixture in found.mixtures().items():
        norms = experts.weight({"x": mixture.experts})["x"].view(8, 24)
        for expert in (0, 7):
            best = norms[expert].topk(width).indices.sort().values
            after = result.subject.mixtures()[layer].experts.down_proj[expert]
            assert torch.equal(after, mixture.experts.down_proj[expert][:, best])


def test_kv_groups_shared_and_dense_neurons_go_with_the_last_stage(data: texts.Corpus, tmp_path: Path) -> None:
    subject = make("qwen2-moe")
    subject.tokenizer = tiny.tokenizer()
    subject.model.resize_token_embeddings(64)
    result = run(subject, data, tmp_path, "params=95%", kv_groups=1, shared=0.4, dense=0.6)
    config = result.subject.model.config
    assert config.num_key_value_heads == 1
    assert config.num_attention_heads == 2
    assert config.shared_expert_intermediate_size == 16
    assert config.intermediate_size == 24
    assert not config.is_heterogeneous
    deep = make("deepseek3")
    deep.tokenizer = tiny.tokenizer()
    with pytest.raises(InputError, match="kv_groups=9: layers have 2 KV groups at most; 0 keeps all"):
        run(subject, data, tmp_path / "many", "params=95%", kv_groups=9)
    with pytest.raises(UnsupportedError, match="axis 'kv_groups'"):
        run(deep, data, tmp_path / "deep", kv_groups=1)


def test_what_can_not_be_is_refused_in_one_line(subject: Moe, data: texts.Corpus, tmp_path: Path) -> None:
    places = iter(range(100))

    def refused(kind: type[Exception], match: str, budget: str = "params=70%", **options: Any) -> None:
        with pytest.raises(kind, match=match) as caught:
            run(subject, data, tmp_path / str(next(places)), budget, **options)
        assert "\n" not in str(caught.value)

    low = r"can't be met: params can go down to .*; ask for params=\d+\.\d+% or more, or cut kv"
    refused(InfeasibleError, low, "params=5%")
    refused(InfeasibleError, "the last of the stages, 90.0% of the width, leaves .* params", stages="95%,90%")
    refused(InputError, "stages='half' is neither", stages="half")
    refused(InputError, "stages='50%,.%' is neither", stages="50%,.%")
    refused(InputError, "task=0, logit=0 leave nothing to learn by", logit=0.0, balance=0.0, steps=4)
    refused(InputError, "option balance=-1.0 of slimmoe", balance=-1.0)
    refused(InputError, "each must be below the one before", stages="20%,50%")
    refused(InputError, "has not a share for each of 2 stages", tokens="100%")
    refused(InputError, "score='size' is not one of taylor", score="size")
    refused(InputError, "option loss='kl' of slimmoe", loss="kl")
    refused(BudgetError, "slimmoe makes widths", "pattern=2:4")
    refused(BudgetError, "weights has no cost here", "weights=50%")
    with pytest.raises(UnsupportedError, match="llama has none"):
        run(open_subject(tiny.model("llama"), tokenizer=tiny.tokenizer()), data, tmp_path / "llama")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("second", "error"),
    [("pattern=2:4", BudgetError), ("params=5%", InfeasibleError), ("params=100%", InfeasibleError)],
)
def test_a_later_budget_out_of_reach_is_refused_before_the_first_is_trained(
    subject: Moe,
    data: texts.Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    second: str,
    error: type[Exception],
) -> None:
    monkeypatch.setattr(loop, "train", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.setattr(recipe.experts, "remember_likeliest", lambda *_, **__: pytest.fail("looked"))
    budgets = [Budget.parse(budget) for budget in ("params=70%", second)]
    with Run.open(tmp_path, {}) as opened, pytest.raises(error):
        list(slimmoe(subject, data, budgets, opened, **keywords.check_options(slimmoe, {**QUICK, "steps": 4})))


def test_steps_are_dealt_out_whole() -> None:
    assert recipe.split_steps("", 100, 2) == [20, 80]
    assert recipe.split_steps("", 21, 3) == [1, 4, 16]
    assert recipe.split_steps("34%,66%", 1000, 2) == [340, 660]
    assert recipe.split_steps("", 100, 3, [1]) == [0, 20, 80]
    assert recipe.split_steps("34%,33%,33%", 1000, 3, [1]) == [0, 500, 500]
    assert sum(recipe.split_steps("", 1001, 4)) == 1001


@pytest.mark.parametrize(
    ("options", "idle", "trained"),
    [
        ({"stages": "95%,50%"}, (1,), [(2, 12, 10)]),  # rounded to all of 24
        ({"stages": "52%,50%", "tokens": "50%,50%"}, (1,), [(2, 12, 10)]),  # rounded to the next one's 12
        ({"stages": "95%,66%,64%,34%", "lr": [4e-3, 3e-3, 2e-3, 1e-3]}, (1, 2), [(3, 16, 2), (4, 8, 8)]),
        ({"stages": "66%,34%"}, (), [(1, 16, 2), (2, 8, 8)]),
    ],
)
def test_a_stage_that_cuts_nothing_of_its_own_takes_no_steps(
    subject: Moe,
    data: texts.Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    idle: tuple[int, ...],
    trained: list[tuple[int, int, int]],
) -> None:
    seen = []

    def train(model: Any, batches: Any, objective: Any, training: Training, **options: Any) -> Recovery:
        stage = int(options["checkpoint"].name.rpartition("-")[2])
        seen.append((stage, model.config.intermediate_size, training.steps))
        return Recovery(training.steps)

    monkeypatch.setattr(loop, "train", train)
    result = run(subject, data, tmp_path, "params=95%", divisor=4, steps=10, **options)
    assert seen == trained
    left = [
        f"stage {stage} is left out: rounded, it would cut nothing of its own; its steps go to the others"
        for stage in idle
    ]
    assert [note for note in result.notes if "left out" in note] == left
    assert list(result.stages) == [f"stage {stage}" for stage, *_ in trained[:-1]]


def test_active_parameters_are_a_budget(subject: Moe, data: texts.Corpus, tmp_path: Path) -> None:
    result = run(subject, data, tmp_path, "active_params=85%")
    assert result.subject.active_params() <= 0.85 * subject.active_params()
    result.subject.save(tmp_path / "saved")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert again.config.intermediate_size == next(iter(widths(result)))


# -------------------------------------------------------------------------------------------- stages, one by one


def test_each_stage_is_saved_and_measured_and_a_run_goes_on_behind_it(
    subject: Moe, data: texts.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, trained = loop.train, list[tuple[int, int]]()

    def train(model: Any, batches: Any, objective: Any, *rest: Any, **options: Any) -> Any:
        asked = [0]

        def count(*args: Any) -> Any:
            asked[0] += 1
            if stopped and len(trained) == 1:
                raise KeyboardInterrupt
            return objective(*args)

        found = real(model, batches, count, *rest, **options)
        trained.append((model.config.intermediate_size, asked[0]))
        return found

    monkeypatch.setattr(loop, "train", train)
    options = {"stages": "66%,34%", "tokens": "25%,75%", "steps": 8}
    stopped = True
    with pytest.raises(KeyboardInterrupt):
        run(subject, data, tmp_path / "out", "params=80%", **options)
    assert trained == [(16, 2)]
    folder = tmp_path / "out" / "work" / "stage-params=80%-1"
    first = open_subject(folder)
    assert not list(folder.parent.glob("stage-params=80%-2"))
    stopped = False
    trained.clear()
    result = run(subject, data, tmp_path / "out", "params=80%", **options)
    assert trained == [(16, 0), (8, 6)]
    whole = run(subject, data, tmp_path / "whole", "params=80%", **options)
    for one, other in zip(result.subject.model.parameters(), whole.subject.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert list(result.stages) == ["stage 1"]
    for one, other in zip(result.stages["stage 1"].model.parameters(), first.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("count", [3, 24, 40])
def test_as_many_sequences_are_scored_as_are_asked_for(
    count: int, subject: Moe, data: texts.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def look(predict: Any, model: Any, layers: Any, batches: Any, top: int) -> None:
        seen.extend(len(batch["input_ids"]) for batch in batches)
        raise StopIteration

    monkeypatch.setattr(experts, "remember_likeliest", look)
    with pytest.raises(RuntimeError, match="StopIteration"):
        run(subject, data, tmp_path, calibration=count)
    assert sum(seen) == count


def test_a_run_tells_what_each_stage_was(subject: Moe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same = latency.Comparison(Figure(1e-3), Figure(1e-3), Figure(1.0, 0.98, 1.02, "x", 20))
    monkeypatch.setattr(measuring.latency, "compare", lambda *_, **__: same)
    how = {"stages": "66%,34%", "steps": 3, "calibration": 16, "length": 16, "train_batch": 4}
    (row,) = executor.run("slimmoe", subject, tiny.chains(300), "params=80%", tmp_path / "out", **how)
    assert row.after["params"].value < row.stages["stage 1"]["params"].value < row.before["params"].value
    assert row.stages["stage 1"]["perplexity"].value > 1
    assert not row.baselines
    (again,) = executor.evidence.read(tmp_path / "out")
    assert again.stages == row.stages
    assert "stage 1" in executor.evidence.table(again)[0]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Before and after, and after each stage" in page
    assert '<th scope="col" role="columnheader" class="base">stage 1</th>' in page


def test_training_is_the_originals_and_each_stage_but_the_last_stops_at_its_peak(
    data: texts.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PhiMoE's routers draw experts in training mode and are trained; scores and results are of evaluation mode."""
    phi = make("phimoe")
    phi.tokenizer = tiny.tokenizer()
    phi.model.resize_token_embeddings(64)
    router = type(phi.mixtures()[0].router)
    modes, rates = list[bool](), list[tuple[Any, Any]]()
    forward, train = router.forward, loop.train

    def look(self: Any, *args: Any) -> Any:
        modes.append(self.training)
        return forward(self, *args)

    def note(*args: Any, **options: Any) -> Any:
        rates.append((args[3].lr, args[3].min_lr))
        return train(*args, **options)

    monkeypatch.setattr(router, "forward", look)
    monkeypatch.setattr(loop, "train", note)
    result = run(phi, data, tmp_path / "a", "params=90%", divisor=4, steps=4, lr=5e-3, min_lr=1e-5)
    assert any(modes)
    modes.clear()
    run(phi, data, tmp_path / "calm", "params=90%", divisor=4, stages="1", steps=1, noise=False)
    assert not any(modes)
    assert rates.pop() == (1e-3, 1e-4)
    assert rates == [(5e-3, 5e-3), (5e-3, 1e-5)]
    assert not result.subject.model.training
    moved = [mixture.router.weight for mixture in result.subject.mixtures().values()]  # type: ignore[attr-defined]
    assert not torch.equal(moved[0], phi.mixtures()[0].router.weight)
    with pytest.raises(InputError, match=r"^min_lr=0\.0001: give a floor between 0 and lr=1e-05"):
        run(phi, data, tmp_path / "b", "params=90%", steps=4, lr=1e-5)
    assert len(rates) == 2


def scored_by(subject: Moe, data: texts.Corpus, seed: int = 0, **scoring: Any) -> dict[str, torch.Tensor]:
    fixed: dict[str, Any] = {"kv_groups": 0, "shared": 1.0, "dense": 1.0, "divisor": 8, "slim": "neurons"}
    units, _ = recipe.plan_stage(subject, subject, share=0.5, last=True, batch=1, length=16, **fixed)
    samples = remember(subject, texts.windows(data, subject.tokenizer, 8, 16)[0])
    return recipe.scores(subject, subject, units, samples, scoring=recipe.Scoring(**scoring), seed=seed)


def test_sites_that_a_score_of_ones_own_leaves_out_are_ranked_by_the_loss_that_is_asked_for(
    subject: Moe, data: texts.Corpus, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text("def none(subject, batches):\n    return {}\n")
    found = scored_by(subject, data, score=f"{tmp_path}/own.py:none", loss="task")
    by_task, truncated = scored_by(subject, data, loss="task"), scored_by(subject, data)
    for site, score in found.items():
        assert torch.equal(score, by_task[site])
        assert not torch.equal(score, truncated[site])


def test_a_seed_draws_its_own_random_scores(subject: Moe, data: texts.Corpus) -> None:
    first, again, other = (scored_by(subject, data, seed, score="random") for seed in (3, 3, 4))
    assert all(torch.equal(score, again[site]) for site, score in first.items())
    assert not any(torch.equal(score, other[site]) for site, score in first.items())


def test_experts_are_balanced_by_the_originals_own_weight_unless_another_is_given(subject: Moe) -> None:
    student = subject.copy()
    student.model.config.router_aux_loss_coef = 0.25
    batch = subject.example(2, 12)
    loss = {}
    for balance in (None, 0.25, 0.0):
        objective = recipe.Distilling(balance=balance).objective(student, subject)
        loss[balance] = float(objective(batch, recipe.objectives.count(batch))[0].detach())
    assert loss[None] == loss[0.25] > loss[0.0] + 0.1


def test_what_is_remembered_of_the_original_is_of_the_temperature_of_the_loss(
    subject: Moe, data: texts.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, real = list[float](), recipe.distillation.teachers.join_topk

    def join(*rest: Any, **how: Any) -> Any:
        asked.append(how["temperature"])
        return real(*rest, **how)

    monkeypatch.setattr(recipe.distillation.teachers, "join_topk", join)
    run(subject, data, tmp_path, stages="1", steps=1, cache=4, temperature=3.0)
    assert asked == [3.0]


def test_a_stage_reads_on_behind_all_micro_batches_of_the_one_before(
    subject: Moe, data: texts.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = list[list[torch.Tensor]]()

    def train(model: Any, batches: Any, objective: Any, training: Training, **options: Any) -> Recovery:
        read.append([batches[number]["input_ids"] for number in range(6)])
        return Recovery(training.steps)

    monkeypatch.setattr(loop, "train", train)
    options = {"stages": "66%,34%", "tokens": "50%,50%", "steps": 4, "training": "accumulate=2"}
    run(subject, data, tmp_path, "params=80%", **options)
    first, second = read
    assert all(torch.equal(*both) for both in zip(first[4:], second, strict=False))  # two steps of two micro-batches
    assert not torch.equal(first[2], second[0])


def test_texts_and_training_are_as_they_are_asked_for(
    subject: Moe, data: texts.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed, trained, feed = list[dict[str, Any]](), list[tuple[Any, ...]](), recipe.calibration.make_feed

    def make_feed(*given: Any, **how: Any) -> Any:
        fed.append(how)
        return feed(*given, **how)

    def train(model: Any, batches: Any, objective: Any, training: Training, **options: Any) -> Recovery:
        trained.append((training.warmup, training.weight_decay, options["seed"]))
        return Recovery(training.steps)

    monkeypatch.setattr(recipe.calibration, "make_feed", make_feed)
    monkeypatch.setattr(loop, "train", train)
    run(subject, data, tmp_path, stages="1", steps=4, seed=3, warmup=0.25, training="weight_decay=0.1")
    assert fed == [{"length": 16, "seed": 3}]
    assert trained == [(0.25, 0.1, 3)]


def test_costs_are_those_of_the_batch_that_is_asked_for(subject: Moe, data: texts.Corpus, tmp_path: Path) -> None:
    found = run(subject, data, tmp_path, batch=4)
    assert found.predicted == found.subject.units(batch=4, length=16).cost()
    assert found.predicted != found.subject.units(batch=1, length=16).cost()


def test_a_dry_run_trains_nothing_and_keeps_no_stage(
    subject: Moe, data: texts.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "train", lambda *_, **__: pytest.fail("trained"))
    found = run(subject, data, tmp_path, steps=4, dry_run=True)
    assert found.recovery is None
    assert not found.stages
    assert not list((tmp_path / "work").glob("stage-*"))


def toy(_):
    """What `conformance.check_recipe` takes: see tests/conformance."""
    return toys.language("mixtral", "params=70%", steps=0, length=16)
