"""Nemotron Elastic on models of a few thousand parameters."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

import secateur
import tiny
import toys
from secateur._utils.rundir import Run, read_tensors
from secateur.data import texts
from secateur.errors import BudgetError, DataError, InfeasibleError, InputError, UnsupportedError
from secateur.methods import elastic
from secateur.recipes.language import nemotron_elastic as module
from secateur.recover.training import loop
from secateur.runs import keywords
from secateur.subjects import Transformer, open_subject
from secateur.vocabulary import Budget, Recovery, Result, Training
from strangers import run_without_secateur
from subjects.hybrids import make_hybrid

QUICK = {"samples": 32, "depth_samples": 4, "steps": 0, "train_batch": 8, "length": 16, "router_hidden": 16}
BUDGETS = ("params=75%", "params=50%")
DATA = texts.read(tiny.chains(400))


def teacher(steps: int = 150) -> Transformer:
    """A Llama that has learned something of the texts."""
    subject = open_subject(tiny.model("llama"), tokenizer=tiny.tokenizer())
    batches = texts.batches(DATA, subject.tokenizer, packed=True, batch=8, length=16, seed=0)
    objective = module.objectives.distil(subject.forward, None, output="logits", task=1.0)
    loop.train(subject.model, batches, objective, steps=steps, lr=5e-3, progress=False)
    return subject


@pytest.fixture(scope="module")
def taught() -> Transformer:
    return teacher()


def results(root: Path, *budgets: str, model: Transformer | None = None, **options: object) -> list[Result]:
    how = keywords.check_options(module.nemotron_elastic, {**QUICK, **options})
    wanted = [Budget.parse(budget) for budget in budgets or BUDGETS]
    start = model or open_subject(tiny.model("llama"), tokenizer=tiny.tokenizer())
    with Run.open(root, {}) as run:
        return list(module.nemotron_elastic(start, DATA, wanted, run, **how))


def held_out(subject: Transformer) -> float:
    _, held = DATA.split(seed=0)
    batches = texts.batches(held, subject.tokenizer, packed=True, batch=8, length=16, seed=0).take(4)
    return module.objectives.held_out(subject.forward, teacher=subject.forward, output="logits", batches=batches)


def test_one_training_gives_every_size_and_all_of_them_stand_in_one_folder(tmp_path, taught):
    before = {name: tensor.clone() for name, tensor in taught.model.state_dict().items()}
    found = results(tmp_path, model=taught, steps=60, lr=2e-3, axes=("channels", "neurons", "heads"))
    whole = taught.units().cost()["params"]
    for result, share in zip(found, (0.75, 0.5), strict=True):
        counted = sum(parameter.numel() for parameter in result.subject.model.parameters())
        assert result.predicted["params"] == counted
        assert 0.95 * share * whole <= counted <= share * whole
        assert result.recovery is not None
        assert result.recovery.steps == 60
    assert all(torch.equal(tensor, before[name]) for name, tensor in taught.model.state_dict().items())

    model = elastic.read(tmp_path / "elastic")
    batch = taught.example(2, 9)
    with torch.no_grad():
        for result, share in zip(found, (0.75, 0.5), strict=True):
            again = model.cut(model.choose(share))[0]
            assert torch.equal(again.forward(batch).prediction, result.subject.forward(batch).prediction)
    table = json.loads((tmp_path / "elastic" / "elastic.json").read_text())
    assert table["shares"] == [1.0, 0.75, 0.5]
    assert list(table["sizes"]) == ["1", "0.75", "0.5"]

    # Against the same sizes cut out of the original without training, by the same ranking and by chance.
    draw = torch.Generator().manual_seed(0)
    scores = read_tensors(tmp_path / "work" / "scores.safetensors")
    chance = {site: torch.rand(len(score), generator=draw) for site, score in scores.items()}
    for result, share in zip(found, (0.75, 0.5), strict=True):
        chosen = model.choose(share)
        for ranking in (scores, chance):
            rival = elastic.make(taught, ranking, model.axes, "params", model.shares).cut(chosen)[0]
            assert held_out(result.subject) < held_out(rival) - 0.02
    assert held_out(model.subject) < held_out(taught) + 0.1  # the whole model stays one


def test_activations_rank_better_than_chance(tmp_path, taught):
    axes = elastic.find_axes(taught, ("neurons", "channels", "heads"))
    feed = texts.batches(DATA, taught.tokenizer, packed=True, batch=8, length=16, seed=0).take(4)
    scores = elastic.score_widths(taught, feed, axes)
    chosen = {"neurons": [3], "channels": [2], "heads": [1]}

    def loss(ranking: dict[str, torch.Tensor]) -> float:
        return held_out(elastic.make(taught, ranking, axes, "params", (1.0, 0.5)).cut(chosen)[0])

    draw = torch.Generator().manual_seed(0)
    chance = [loss({site: torch.rand(len(score), generator=draw) for site, score in scores.items()}) for _ in range(5)]
    assert loss(scores) < np.mean(chance) - np.std(chance)


def test_it_repeats_under_a_seed_and_a_run_goes_on(tmp_path, monkeypatch):
    """Also one that was stopped in its first stage, then in its second one: with the same bytes."""
    how = {"steps": 4, "long_steps": 3, "long_length": 24, "lr": 1e-3, "training": "every=1"}
    real, stopped = loop._fetch, []

    def weights(root: str, stop: int = 0, **more: object) -> dict[str, torch.Tensor]:
        fetched = []

        def fetch(batches: object, index: int) -> object:
            fetched.append(index)
            if len(fetched) == stop:
                stopped.append(len(list((tmp_path / root).rglob("training.safetensors"))))
                raise KeyboardInterrupt
            return real(batches, index)

        monkeypatch.setattr(loop, "_fetch", fetch)
        (found,) = results(tmp_path / root, "params=60%", **how | more)
        assert len(fetched) == {"a": 7, "c": 7, "b": 1}[root] or not fetched
        return dict(found.subject.model.state_dict())

    def files(root: str) -> dict[str, bytes]:
        places = (tmp_path / root / "elastic").iterdir()
        return {path.name: path.read_bytes() for path in places if path.name != "README.md"}

    first, other = weights("a"), weights("c", seed=1)
    for stop in (3, 5):  # two steps of the first stage are done, then all of it and two steps of the second
        with pytest.raises(KeyboardInterrupt):
            weights("b", stop)
    assert stopped == [1, 2], "stages that left a checkpoint"
    again, resumed = weights("b"), weights("a")
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert files("a") == files("b")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in first.items())
    assert first.keys() != other.keys() or any(not torch.equal(tensor, other[name]) for name, tensor in first.items())


@pytest.mark.parametrize(
    "options",
    [
        {"masks": "hard", "uneven": (), "axes": ("layers", "neurons", "channels")},
        {"task": 1.0, "logit": 0.0},
        {"teacher": "learning", "task": 1.0},
        {"long_steps": 2, "long_length": 24, "long_weights": "0.5,0.5"},
    ],
    ids=str,
)
def test_every_option_of_training_runs(tmp_path, options):
    (found,) = results(tmp_path, "params=60%", steps=2, lr=1e-3, **options)
    assert found.recovery is not None
    assert found.recovery.steps == 2 + options.get("long_steps", 0)
    if not options.get("uneven", True):
        assert not found.subject.model.config.is_heterogeneous  # one shape for all layers, a plain config


def test_a_hybrid_of_mamba_2_keeps_its_groups(tmp_path):
    blocks = ["mamba", "mlp", "attention", "mlp", "mamba"]
    start = open_subject(make_hybrid("NemotronH", vocab_size=64, layers_block_type=blocks), tokenizer=tiny.tokenizer())
    (found,) = results(tmp_path, "params=60%", model=start, steps=1, choices="state_heads=0.25+0.5")
    model = elastic.read(tmp_path / "elastic")
    assert model.axes["state_heads"].rows == 2
    chosen = model.choose(0.6)
    again = model.cut(chosen)[0]
    batch = start.example(2, 9)
    with torch.no_grad():
        assert torch.equal(again.forward(batch).prediction, found.subject.forward(batch).prediction)


def test_a_budget_of_memory_is_of_what_is_served_by_a_profile(tmp_path):
    (found,) = results(tmp_path, "served_memory=60%", profile="fp8", dry_run=True)
    fp8 = found.subject.units(batch=1, length=16).cost()["served_memory"]
    assert found.predicted["served_memory"] == fp8
    assert found.predicted["served_memory"] < 0.5 * found.predicted["memory"]  # floats of 32 bits
    with pytest.raises(InputError, match="profile=fp7: give bf16, fp8, fp4, or bytes of each number"):
        results(tmp_path / "b", "served_memory=60%", profile="fp7", dry_run=True)


def test_the_router_learns_at_its_own_rate_and_the_second_stage_goes_on_with_the_schedules(tmp_path, monkeypatch):
    seen = []
    real = module.distillation.train_student

    def watched(student, teacher, batches, *args, **how):
        seen.append((batches[0]["done"], how["length"], how["extra_rate"], how["checkpoint"].name))
        return real(student, teacher, batches, *args, **how)

    monkeypatch.setattr(module.distillation, "train_student", watched)
    results(tmp_path, "params=60%", steps=3, long_steps=1, lr=1e-3)
    assert seen == [(0.0, 16, 10.0, "train-1"), (0.75, 96, 10.0, "train-2")]


def test_the_whole_model_is_drawn_a_third_of_the_time_and_half_of_it_at_last():
    assert module.weigh_evenly(3, 1 / 3) == pytest.approx([1 / 3] * 3)
    start = open_subject(tiny.model("llama"))
    axes = elastic.find_axes(start, ("neurons",))
    model = elastic.Elastic(start, axes, "params", (1.0, 0.9, 0.8), hidden=4)
    assert module.weigh_whole(model.shares, module.Curriculum()) == pytest.approx([0.5, 0.3, 0.2])
    assert module.weigh_whole(model.shares, module.Curriculum(long_weights="1,2,3")) == [1.0, 2.0, 3.0]
    with pytest.raises(InputError, match=r"long_weights=1,2: give a number for each of the sizes 1, 0\.9, 0\.8"):
        module.weigh_whole(model.shares, module.Curriculum(long_weights="1,2"))


def test_the_loss_of_the_budgets_counts_once_for_a_step_of_several_micro_batches():
    start = open_subject(tiny.model("llama"), tokenizer=tiny.tokenizer())
    axes = elastic.find_axes(start, ("neurons",))
    model = elastic.Elastic(start, axes, "params", (1.0, 0.5), hidden=4)
    feed = texts.batches(DATA, start.tokenizer, packed=True, batch=2, length=16, seed=0)
    draws = module.routers.Draws(feed, model.router, [0.0, 1.0], steps=4)
    first = {**draws[0], "sharp": False}  # all micro-batches of one size and one noise
    micro = [{**first, **feed[index]} for index in range(3)]
    objective = module.make_objective(model, start, module.Routing(), module.Teaching())
    counts = [module.objectives.count(one) for one in micro]
    totals = {name: sum(count[name] for count in counts) for name in counts[0]}
    with model.masks.on(model.subject.model):
        alone = objective(micro[0], counts[0])[1]["budget"]
        shared = [objective(one, totals)[1]["budget"] for one in micro]
    assert float(alone) > 0
    assert float(sum(shared)) == pytest.approx(float(alone), rel=1e-5)


def elastic_model(start: Transformer) -> elastic.Elastic:
    axes = elastic.find_axes(start, ("neurons", "heads"))
    return elastic.Elastic(start, axes, "params", (1.0, 0.6), hidden=4)


def drawn(model: elastic.Elastic, *, sharp: bool = False) -> dict[str, object]:
    """A batch that is to be learned from at the smaller size."""
    start = model.subject
    feed = texts.batches(DATA, start.tokenizer, packed=True, batch=4, length=16, seed=0)
    return {**module.routers.Draws(feed, model.router, [0.0, 1.0], steps=4)[0], "sharp": sharp}


def learned(model: elastic.Elastic, original: Transformer, batch: dict[str, object], **how: object) -> tuple:
    """(loss, its parts) of a batch."""
    routing = module.Routing(masks=how.pop("masks", "soft"))
    objective = module.make_objective(model, original, routing, module.Teaching(**how))
    with model.masks.on(model.subject.model), torch.no_grad():
        loss, parts = objective(batch, module.objectives.count(batch))
    return float(loss), {name: float(part) for name, part in parts.items()}


def test_a_teacher_that_learns_is_the_whole_model_and_has_cross_entropy_of_its_own():
    start = open_subject(tiny.model("llama"), tokenizer=tiny.tokenizer())
    model, frozen = elastic_model(start.copy()), start
    batch = drawn(model)
    loss, parts = learned(model, start, batch, teacher="learning", task=1.0)
    alone, wanted = learned(model, frozen, batch)
    assert parts == pytest.approx(wanted, rel=1e-4)
    assert parts["logit"] > 0.1
    with torch.no_grad():
        logits = frozen.forward(batch).prediction
    task = module.objectives.task_loss(logits, batch, module.objectives.count(batch), causal=True)
    assert loss == pytest.approx(alone + float(task), rel=1e-4)


def test_a_sharp_draw_of_soft_masks_is_a_hard_one():
    start = open_subject(tiny.model("llama"), tokenizer=tiny.tokenizer())
    model = elastic_model(start.copy())
    soft, sharp, hard = (
        learned(model, start, drawn(model, sharp=sharp), masks=masks)[1]["logit"]
        for sharp, masks in ((False, "soft"), (True, "soft"), (False, "hard"))
    )
    assert sharp == hard
    assert soft != pytest.approx(hard, rel=1e-3)


def test_what_stops_training_is_the_mean_loss_of_all_sizes_as_they_are_cut():
    start = open_subject(tiny.model("llama"), tokenizer=tiny.tokenizer())
    model = elastic_model(start.copy())
    batches = texts.batches(DATA, start.tokenizer, packed=True, batch=4, length=16, seed=0).take(3)
    with model.masks.on(model.subject.model):
        found = module.judge(model, start, batches)
    cuts = [model.cut(model.choose(share))[0] for share in model.shares]
    each = [module.distillation.held_out(cut, start, batches) for cut in cuts]
    assert found == pytest.approx(np.mean(each), rel=1e-4)
    assert each[1] != pytest.approx(each[0], rel=1e-3)


def test_widths_and_layers_are_ranked_by_as_many_sequences_as_are_asked_for(tmp_path, monkeypatch):
    seen, layers, widths = {}, elastic.rank_layers, elastic.score_widths

    def count(batches: list[dict[str, torch.Tensor]]) -> int:
        return sum(len(batch["input_ids"]) for batch in batches)

    def note(name, real):
        return lambda start, batches, *rest: seen.update({name: count(batches)}) or real(start, batches, *rest)

    monkeypatch.setattr(elastic, "rank_layers", note("layers", layers))
    monkeypatch.setattr(elastic, "score_widths", note("widths", widths))
    results(tmp_path, "params=60%", dry_run=True, samples=20, depth_samples=3)
    assert seen == {"layers": 3, "widths": 20}


def test_router_and_training_are_as_they_are_asked_for(tmp_path, monkeypatch):
    hidden, asked, trained, drawn_by = [], [], [], []
    make, objective, draws = elastic.make, module.make_objective, module.routers.Draws
    monkeypatch.setattr(
        module.routers, "Draws", lambda *given, **how: drawn_by.append(given[2]) or draws(*given, **how)
    )
    monkeypatch.setattr(elastic, "make", lambda *given, **how: hidden.append(how["hidden"]) or make(*given, **how))
    monkeypatch.setattr(module, "make_objective", lambda *given: asked.append(given[2:]) or objective(*given))

    def train(student, teacher, batches, loss, training, **how):
        trained.append((training.warmup, training.weight_decay, training.min_lr, how["extra_rate"]))
        return Recovery(training.steps)

    monkeypatch.setattr(module.distillation, "train_student", train)
    routing = {"router_hidden": 12, "router_lr": 0.05, "router_weight": 3.0, "masks": "hard"}
    loop = {"steps": 2, "lr": 1e-3, "warmup": 0.25, "training": "weight_decay=0.1,min_lr=1e-5"}
    results(tmp_path, "params=60%", temperature=2.0, whole_share=0.75, **routing, **loop)
    assert hidden == [12]
    assert drawn_by == [[0.75, 0.25]]
    assert asked == [(module.Routing(**routing), module.Teaching(task=0.0, logit=1.0, temperature=2.0))]
    assert trained == [(0.25, 0.1, 1e-5, pytest.approx(50))]


def test_the_budgets_loss_has_the_weight_that_is_asked_for():
    start = open_subject(tiny.model("llama"), tokenizer=tiny.tokenizer())
    model = elastic_model(start.copy())
    batch = drawn(model)
    for weight in (1.0, 3.0):
        objective = module.make_objective(model, start, module.Routing(router_weight=weight), module.Teaching())
        with model.masks.on(model.subject.model), torch.no_grad():
            loss, parts = objective(batch, module.objectives.count(batch))
        assert float(parts["budget"]) > 0.01
        assert float(loss) == pytest.approx(float(parts["logit"]) + weight * float(parts["budget"]), rel=1e-5)


def test_ranked_by_chance_no_activation_is_looked_at_and_costs_are_of_the_batch(tmp_path, monkeypatch):
    for name in ("score_widths", "rank_layers"):
        monkeypatch.setattr(elastic, name, lambda *_, **__: pytest.fail("looked at activations"))
    (found,) = results(tmp_path, "params=60%", dry_run=True, ranking="random", batch=4)
    assert found.predicted == found.subject.units(batch=4, length=16).cost()
    assert found.predicted != found.subject.units(batch=1, length=16).cost()


def test_a_seed_draws_its_own_order_of_layers():
    start = open_subject(tiny.model("llama"), tokenizer=tiny.tokenizer())
    orders = [module.shuffle_layers(start, 3, seed) for seed in range(6)]
    assert orders[5] == module.shuffle_layers(start, 3, 5)
    assert len({tuple(layer for layer, _ in order) for order in orders}) > 2


def test_choices_that_can_not_be_are_named_in_the_notes(tmp_path):
    (found,) = results(tmp_path, "params=80%", dry_run=True, axes=("neurons",), choices="neurons=0.25+0.5+2000")
    assert any(note.startswith("neurons=2000 is left out") for note in found.notes)


def test_a_dry_run_trains_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(module.distillation, "train_student", lambda *_, **__: pytest.fail("trained"))
    (found,) = results(tmp_path, "params=60%", steps=5, dry_run=True)
    assert found.recovery is None
    assert not (tmp_path / "elastic").exists()


@pytest.mark.parametrize(
    ("budgets", "options", "error", "message"),
    [
        (("params=60%", "flops=50%"), {}, BudgetError, "one router learns budgets of one measure, not params=60% and"),
        (("pattern=2:4",), {}, BudgetError, "one router learns budgets of one measure"),
        (("latency=1ms",), {}, BudgetError, "a router learns what adds up over units, one of"),
        (("params=100%",), {}, BudgetError, "is the whole model, which is trained beside the sizes"),
        (("params=1%",), {}, InfeasibleError, "the smallest size takes"),
        (("params=60%",), {"axes": ("width",)}, InputError, "axis 'width' is not one of"),
        (("params=60%",), {"axes": ("experts",)}, UnsupportedError, "nothing of this model can be cut along experts"),
        (("params=60%",), {"teacher": "learning"}, InputError, "set task=1 and logit=1, or teacher=frozen"),
        (("params=60%",), {"teacher": "learning", "task": 1.0, "logit": 0.0}, InputError, "set task=1 and logit=1"),
        (("params=60%",), {"long_steps": 1, "long_weights": "1"}, InputError, "give a number for each of the sizes"),
        (("params=60%",), {"long_weights": "inf,1"}, InputError, "give a number for each of the sizes"),
        (("params=60%",), {"long_weights": "nan,1"}, InputError, "give a number for each of the sizes"),
        (("params=60%",), {"whole_share": 1.0}, InputError, "whole_share"),
        (("params=60%",), {"logit": 0.0}, InputError, "task=0, logit=0 leave nothing to learn by"),
        (("params=60%",), {"profile": "weights=nan"}, InputError, "profile=weights=nan: give bf16, fp8, fp4"),
        (("params=60%",), {"training": {"lora": 2}}, UnsupportedError, "lora and dora stand beside weights"),
        (("params=60%",), {"training": {"dora": 2}}, UnsupportedError, "lora and dora stand beside weights"),
        (
            ("params=60%",),
            {"teacher": "learning", "task": 1.0, "training": {"checkpointing": True}},
            UnsupportedError,
            "checkpointing runs a pass again at another size",
        ),
    ],
)
def test_what_can_not_be_is_refused_before_anything_is_trained(tmp_path, monkeypatch, budgets, options, error, message):
    monkeypatch.setattr(module.distillation, "train_student", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(error, match=message):
        results(tmp_path, *budgets, **{"steps": 2, **options})
    assert not (tmp_path / "elastic").exists()


def test_a_warm_up_of_more_steps_than_the_second_stage_has_keeps_its_share(tmp_path):
    """The second stage was refused when the first one had been trained."""
    (found,) = results(tmp_path, "params=60%", steps=8, long_steps=2, warmup=4, lr=1e-3)
    assert found.recovery is not None
    assert found.recovery.steps == 10


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        ("gpt2", {"length": 32}, InputError, "long_length=192 is beyond the model's 160 positions: give at most long_"),
        ("llama", {"long_length": 4096}, DataError, "less than one batch"),
    ],
)
def test_a_second_stage_that_can_not_be_is_refused_before_the_first(
    tmp_path, monkeypatch, model, options, error, message
):
    monkeypatch.setattr(module.distillation, "train_student", lambda *_, **__: pytest.fail("trained"))
    start = open_subject(tiny.model(model), tokenizer=tiny.tokenizer())
    with pytest.raises(error, match=message):
        results(tmp_path, "params=80%", model=start, steps=2, long_steps=1, **options)


def test_a_masked_model_is_taught_and_judged_on_hidden_tokens(tmp_path, monkeypatch):
    start, given = open_subject(tiny.model("masked"), tokenizer=tiny.tokenizer()), []
    objective = module.objectives.distil

    def watched(*models, **how):
        loss = objective(*models, **how)
        return lambda batch, totals: given.append(batch) or loss(batch, totals)

    monkeypatch.setattr(module.objectives, "distil", watched)
    judge = module.distillation.held_out
    monkeypatch.setattr(
        module.distillation, "held_out", lambda *models, **how: given.extend(models[2]) or judge(*models, **how)
    )
    (found,) = results(tmp_path, "params=80%", model=start, steps=2, lr=1e-3, task=0.5, training="validation=0.1")
    assert found.recovery is not None
    assert len(given) > 2
    assert all((batch["input_ids"] == start.tokenizer.mask_token_id).any() and "labels" in batch for batch in given)


def test_a_layer_norm_keeps_its_channels_and_says_so(tmp_path):
    start = open_subject(tiny.model("gpt2"), tokenizer=tiny.tokenizer())
    (found,) = results(tmp_path, "params=80%", model=start, dry_run=True)
    assert any("channels stay whole: its LayerNorms subtract a mean" in note for note in found.notes)
    assert found.subject.hidden_size == start.hidden_size


CODE = """
import sys
from transformers import AutoModelForCausalLM
import torch
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    print(float(model(torch.arange(6)[None]).logits.double().sum()))
"""


def test_a_size_and_the_elastic_folder_load_without_secateur(tmp_path):
    """Of a Llama, and of a mixture whose experts have no gates: all of its layers alike, as its class says them."""
    (found,) = results(tmp_path / "llama", "params=60%", steps=1)
    start = open_subject(make_hybrid("NemotronH-moe", vocab_size=64), tokenizer=tiny.tokenizer())
    axes = ("experts", "shared_neurons", "channels")
    (mixed,) = results(tmp_path / "mixture", "params=60%", model=start, steps=1, axes=axes, uneven=())
    assert mixed.subject.widths()[1].experts < 4
    assert not mixed.subject.model.config.is_heterogeneous
    assert mixed.predicted["params"] == mixed.subject.model.num_parameters() <= 0.6 * start.model.num_parameters()
    subjects, folders = list[Transformer](), list[str]()
    for name, subject in (("llama", found.subject), ("mixture", mixed.subject)):
        root = tmp_path / name
        subject.save(root / "small")
        between, _ = secateur.extract(root / "elastic", "params=75%", root / "between")
        subjects += [subject, elastic.read(root / "elastic").subject, open_subject(between)]
        folders += [str(root / folder) for folder in ("small", "elastic", "between")]
    out = run_without_secateur(CODE, tmp_path, *folders)
    with torch.no_grad():
        sums = [float(subject.model(torch.arange(6)[None]).logits.double().sum()) for subject in subjects]
    assert [float(line) for line in out.split()] == pytest.approx(sums, abs=1e-3)


def test_the_one_folder_of_all_sizes_is_within_two_percent_of_the_original(tmp_path):
    """All files of both; beside the few weights of other toys a router of the usual width would weigh more."""
    config = copy.deepcopy(tiny.model("llama").config)
    config.vocab_size = 32_768
    torch.manual_seed(0)
    start = open_subject(LlamaForCausalLM(config).eval(), tokenizer=tiny.tokenizer())
    results(tmp_path / "run", model=start, samples=8, router_hidden=256)
    start.save(tmp_path / "plain")
    files = {
        name: [file for file in (tmp_path / name).rglob("*") if file.is_file()] for name in ("run/elastic", "plain")
    }
    whole, plain = (sum(file.stat().st_size for file in files[name]) for name in files)
    assert whole <= 1.02 * plain
    weights = [
        next(file.stat().st_size for file in some if file.name == "model.safetensors") for some in files.values()
    ]
    assert weights[0] == weights[1]
    axes = {"layers": (1, 33), "channels": (1, 7), "neurons": (32, 7), "heads": (1, 4)}  # a Llama of 8B in bfloat16
    router = module.routers.BudgetRouter(3, axes)
    assert sum(parameter.nbytes for parameter in router.parameters()) < 0.02 * 2 * 8e9


def test_training_options_are_those_of_the_recipe():
    assert keywords.check_options(module.nemotron_elastic, {})["training"] == Training(
        steps=1000, batch=16, lr=9e-5, warmup=0.06
    )


def toy(_: object) -> dict[str, object]:
    """What `conformance.check_recipe` takes: see tests/conformance."""
    return toys.language(steps=20, train_batch=8, length=16, samples=16, depth_samples=4, router_hidden=16, lr=2e-3)
