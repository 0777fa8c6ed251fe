"""Elastic models: axes and choices, masked = sliced for every family, budgets, files."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

import tiny
from secateur.errors import BudgetError, InfeasibleError, InputError, ModelError, UnsupportedError
from secateur.methods import elastic
from secateur.recipes.language.nemotron_elastic import shuffle_layers
from secateur.subjects import Transformer, open_subject
from secateur.vocabulary import Budget, Selection
from subjects.hybrids import make_hybrid
from subjects.tiny import make

ORDER = {"llama": (2, 1, 3), "NemotronH": (1, 3), "NemotronH-moe": (1, 3), "NemotronH-latent": (1, 3)}
SHARES = (1.0, 0.75, 0.5)


def hybrid() -> Transformer:
    blocks = ["mamba", "mlp", "attention", "mlp", "mamba"]
    model = make_hybrid("NemotronH", vocab_size=64, mamba_head_dim=16, layers_block_type=blocks)
    return open_subject(model, tokenizer=tiny.tokenizer())


def llama() -> Transformer:
    return open_subject(tiny.uneven(tiny.model("llama")), tokenizer=tiny.tokenizer())


def mixed_hybrid(**more: int) -> Transformer:
    """Nemotron-H with experts, which have no gate, and a shared one."""
    return open_subject(make_hybrid("NemotronH-moe", **more))


MODELS: dict[str, Callable[[], Transformer]] = {
    "llama": llama,
    "qwen3": lambda: open_subject(tiny.model("qwen3")),
    "gemma2": lambda: make("gemma2"),
    "gpt2": lambda: open_subject(tiny.model("gpt2")),
    "mixtral": lambda: open_subject(tiny.model("mixtral")),
    "gpt-oss": lambda: make("gpt-oss"),
    "NemotronH": hybrid,
    "NemotronH-moe": mixed_hybrid,
    "NemotronH-latent": lambda: mixed_hybrid(moe_latent_size=16, n_routed_experts=8, n_group=2),
}


def make_elastic(name: str, axes: tuple[str, ...] = elastic.AXES, **how: object) -> elastic.Elastic:
    subject = MODELS[name]()
    order = ORDER.get(name, tuple(range(len(subject.layers()) - 1, 0, -1)))
    found = elastic.find_axes(subject, axes, **{"uneven": ("neurons", "state_heads", "experts"), "order": order, **how})
    torch.manual_seed(0)
    scores = {
        site: torch.rand(subject.units()[site].count)
        for axis in found.values() if axis.name != "layers" for site in axis.counts
    }  # fmt: skip
    return elastic.make(subject, scores, found, "params", SHARES, hidden=16)


def sizes(model: elastic.Elastic, count: int) -> list[dict[str, list[int]]]:
    """The smallest size, and others at random."""
    draw = np.random.default_rng(0)
    smallest = {name: [axis.choices - 1] * axis.rows for name, axis in model.axes.items()}
    others = [{n: draw.integers(0, a.choices, a.rows).tolist() for n, a in model.axes.items()} for _ in range(count)]
    return [smallest, *others]


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_masked_is_sliced_and_costs_what_it_says(name):
    model = make_elastic(name)
    # In float32 two experts may be as good as each other but for rounding, and it is chance which of them is asked.
    model.subject.model.double().set_experts_implementation("eager")
    batch = model.subject.example(2, 9)
    whole = model.subject.forward(batch).prediction
    for chosen in sizes(model, 3):
        with model.masks.on(model.subject.model):
            model.mask(chosen)
            masked, expected = model.subject.forward(batch).prediction, float(model.expect_cost())
            model.masks.correct = False
        with model.masks.on(model.subject.model):
            bare = model.subject.forward(batch).prediction
        model.masks.correct = True
        student, _ = model.cut(chosen)
        sliced = student.forward(batch).prediction
        assert float((masked - sliced).abs().max()) < 1e-4
        norms = any(any(chosen.get(axis, ())) for axis in ("channels", "state_heads", "state_channels"))
        assert (float((bare - sliced).abs().max()) > 1e-3) == norms  # and not without the correction of norms
        counted = sum(parameter.numel() for parameter in student.model.parameters())
        assert model.cost(chosen)["params"] == counted == pytest.approx(expected)
    assert torch.equal(model.subject.forward(batch).prediction, whole)  # reversible, bit by bit


@torch.no_grad()
def test_an_expert_that_is_chosen_by_a_bias_of_its_own_is_barred_too():
    """The experts that go have the largest biases, which are added to the scores behind the router (DeepSeek-V3)."""
    subject = make("deepseek3")
    axes = elastic.find_axes(subject, ("experts",), choices="experts=4")
    model = elastic.Elastic(subject, axes, "params", SHARES, hidden=4)
    for layer in subject.model.model.layers[1:]:
        bias = layer.mlp.gate.e_score_correction_bias
        bias.copy_(torch.arange(8.0) % 4)  # the last ones of both groups
    batch = subject.example(2, 9)
    with model.masks.on(subject.model):
        model.mask({"experts": [1]})
        masked = subject.forward(batch).prediction
    sliced = model.cut({"experts": [1]})[0].forward(batch).prediction
    assert float((masked - sliced).abs().max()) < 1e-4
    assert float((masked - subject.forward(batch).prediction).abs().max()) > 1e-3


def test_groups_of_states_keep_equally_many_heads_and_b_and_c_are_untouched():
    model = make_elastic("NemotronH")
    chosen = {name: [0] * axis.rows for name, axis in model.axes.items()}
    chosen |= {"state_heads": [1, 2], "state_channels": [model.axes["state_channels"].choices - 1]}
    before = model.subject.model.model.layers[0].mixer
    after = model.cut(chosen)[0].model.model.layers[0].mixer
    assert (after.n_groups, after.ssm_state_size) == (before.n_groups, before.ssm_state_size)
    per = before.num_heads // before.n_groups
    left = after.num_heads // after.n_groups
    assert 0 < left < per
    rows = [group * per + head for group in range(before.n_groups) for head in range(left)]
    assert torch.equal(after.A_log, before.A_log[rows])
    shared = 2 * before.n_groups * before.ssm_state_size
    starts = 2 * before.intermediate_size, 2 * after.intermediate_size
    theirs, ours = (
        mixer.in_proj.weight[start : start + shared] for mixer, start in zip((before, after), starts, strict=True)
    )
    assert torch.equal(theirs, ours)
    assert after.head_dim < before.head_dim
    assert torch.equal(after.conv1d.weight[after.intermediate_size :], before.conv1d.weight[before.intermediate_size :])


def test_sizes_are_prefixes_of_one_another():
    model = make_elastic("llama")
    selections = [
        model.select({name: [choice] * axis.rows for name, axis in model.axes.items() if axis.choices > 2}).keep
        for choice in (2, 1)
    ]
    assert selections[0].keys() == selections[1].keys()
    for site, small in selections[0].items():
        assert (small <= selections[1][site]).all()
        if site.rpartition(".")[2] in ("channels", "neurons"):
            assert small[: small.sum()].all()
    with torch.no_grad():
        student = model.cut({"channels": [1], "neurons": [2, 1, 0, 3]})[0].model
    first = model.subject.model.model.layers[0].mlp.up_proj.weight
    mine = student.model.layers[0].mlp.up_proj.weight
    assert torch.equal(mine, first[: mine.shape[0], : mine.shape[1]])


def test_choices_are_shares_of_each_layers_own_width_and_one_choice_is_below_the_one_before_everywhere():
    subject = open_subject(tiny.model("llama"))
    keep = {"layers.1.neurons": np.arange(128) < 64}  # as a model whose config lists a width for each layer
    uneven = subject.cut(Selection(keep))[0]
    found = elastic.find_axes(uneven, ("neurons", "channels"), choices="neurons=0.5+0.75")
    assert found["neurons"].counts["layers.0.neurons"] == (128, 96, 64)
    assert found["neurons"].counts["layers.1.neurons"] == (64, 48, 32)
    assert found["neurons"].rows == 1
    assert elastic.find_axes(uneven, ("neurons",), uneven=("neurons",))["neurons"].rows == 4
    mixed = elastic.find_axes(MODELS["mixtral"](), ("expert_neurons",), choices="expert_neurons=16+0.7")
    assert mixed["expert_neurons"].counts["layers.0.expert_neurons"] == (24, 16)  # in each expert
    named = elastic.find_axes(subject, ("layers", "heads"), choices="layers=3,heads=4", order=(2, 1))
    assert named["layers"].counts["layers"] == (4, 3)
    assert named["heads"].counts["layers.0.heads"] == (4, 2)  # in each of two groups


@pytest.mark.parametrize(
    ("choices", "counts", "dropped"),
    [
        ("neurons=0.5+96", (128, 96, 64), ()),
        ("neurons=96+1.0+0.5", (128, 96, 64), ()),
        ("neurons=64+0.75", (128, 96, 64), ()),
        ("neurons=0.75+100", (128, 96), ("neurons=100 is left out, for it is not below the next larger choice",)),
        ("neurons=0.5+0.01", (128, 64), ("neurons=0.01 is left out, for at least 8 stay",)),
        ("neurons=0.5+2000", (128, 64), ("neurons=2000 is left out, for it is not below",)),
        ("layers=0.5+3+1.0", (4, 3, 2), ()),
        ("layers=1+3", (4, 3), ("layers=1 is left out, for at least 2 stay",)),
        ("heads=1+0.5", (4, 2), ("heads=1 is left out, for at least 2 stay",)),
    ],
)
def test_choices_fall_by_what_they_keep_and_those_that_can_not_be_are_named(choices, counts, dropped):
    name = choices.partition("=")[0]
    axis = elastic.find_axes(open_subject(tiny.model("llama")), (name,), choices=choices, order=(2, 1))[name]
    assert next(iter(axis.counts.values())) == counts
    assert len(axis.dropped) == len(dropped)
    assert all(found.startswith(text) for found, text in zip(axis.dropped, dropped, strict=True))


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"names": ("width",)}, InputError, "axis 'width' is not one of layers, channels"),
        ({"choices": "neurons"}, InputError, "'neurons' was not understood: write an axis"),
        ({"choices": "neurons=x"}, InputError, "was not understood"),
        ({"choices": "neurons=nan"}, InputError, "was not understood"),
        ({"choices": "neurons=0.5+inf"}, InputError, "was not understood"),
        ({"choices": "neurons=20.5"}, InputError, "was not understood: .* shares up to 1.0 or whole counts"),
        ({"choices": "neurons=0.5,neurons=0.75"}, InputError, "neurons is there twice: write all of its sizes"),
        ({"choices": "neurons=1.0"}, InputError, "none of neurons is below the whole"),
        ({"choices": "experts=4", "names": ("neurons", "experts")}, UnsupportedError, "this model has no experts"),
        ({"choices": "neurons=2000"}, InputError, "none of neurons is below the whole"),
        ({"names": ("experts",)}, UnsupportedError, "nothing of this model can be cut along experts: it has none"),
    ],
)
def test_axes_and_choices_that_can_not_be_are_refused(how, error, message):
    subject = open_subject(tiny.model("llama"))
    with pytest.raises(error, match=message):
        elastic.find_axes(subject, **{"names": ("neurons",), **how})


@pytest.mark.parametrize("name", ["NemotronH-moe", "NemotronH-latent"])
def test_experts_without_gates_are_an_axis_as_gated_ones_are(name):
    """Sorting changes no output; masked = sliced is asked of every model above."""
    model = make_elastic(name, ("experts", "expert_neurons", "shared_neurons"))
    subject = MODELS[name]()
    assert set(model.axes) == {"experts", "expert_neurons", "shared_neurons"}
    assert model.axes["experts"].counts["layers.1.experts"] == (4, 3, 2)  # in each group
    before, after = (one.model.model.layers[1].mixer.experts.up_proj for one in (subject, model.subject))
    assert not torch.equal(before, after)
    batch = subject.example(2, 9)
    with torch.no_grad():
        torch.testing.assert_close(model.subject.forward(batch).prediction, subject.forward(batch).prediction)
    scores = elastic.score_widths(subject, [batch], model.axes)
    assert {site: score.shape for site, score in scores.items() if not site.endswith("starved")} == {
        site: (subject.units()[site].count,) for axis in model.axes.values() for site in axis.counts
    }


@pytest.mark.wide
def test_experts_that_add_biases_stay_whole_and_a_reason_says_so():
    subject = mixed_hybrid(mlp_bias=True)
    for axis in ("experts", "expert_neurons"):
        assert "shared_experts.down_proj.bias would be nowhere to be kept" in elastic.find_reason(subject, axis)
    assert set(elastic.find_axes(subject, ("neurons", "experts", "expert_neurons"))) == {"neurons"}
    assert elastic.find_reason(hybrid(), "experts") == "", "it has none"
    blocks = open_subject(make_hybrid("RecurrentGemma"))
    assert elastic.find_reason(blocks, "experts") == "", "its weights of three dimensions are no experts"


def test_a_config_that_can_not_say_the_cut_is_refused_by_name():
    subject = open_subject(make_hybrid("Bamba"))
    with pytest.raises(UnsupportedError, match="state_heads of this model can't be cut: its config can't say"):
        elastic.find_axes(subject, ("neurons", "state_heads"), choices="state_heads=0.5")
    with pytest.raises(UnsupportedError, match="nothing of this model can be cut along state_heads: its config can't"):
        elastic.find_axes(subject, ("state_heads",))
    assert "state_heads" not in elastic.find_axes(subject, ("neurons", "state_heads"))
    assert "channels" not in elastic.find_axes(make("phi3-longrope"), ("neurons", "channels"))


@pytest.mark.parametrize("share", [1.0, 0.75, 0.6, 0.5])
def test_a_size_is_within_five_percent_below_its_budget_and_the_whole_is_the_original(share):
    model = make_elastic("llama")
    chosen = model.choose(share)
    part = model.cost(chosen)["params"] / model.whole["params"]
    assert 0.95 * share <= part <= share
    if share == 1.0:
        student = model.cut(chosen)[0]
        state = model.subject.model.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in student.model.state_dict().items())


def test_budgets_outside_of_what_was_trained_are_refused():
    model = make_elastic("llama", ("neurons",), choices="neurons=0.75")
    with pytest.raises(BudgetError, match="outside of what the router was trained for"):
        model.choose(0.4)
    with pytest.raises(InfeasibleError, match="the smallest size takes") as refused:
        model.choose(0.5)
    assert refused.value.reachable == model.least
    whole = model.whole
    assert elastic.share_of(Budget.parse("params=60%"), "params", whole) == pytest.approx(0.6)
    for text in ("flops=60%", "params=60%,flops=60%", "pattern=2:4"):
        with pytest.raises(BudgetError, match="the router was trained for params"):
            elastic.share_of(Budget.parse(text), "params", whole)
    with pytest.raises(BudgetError, match="is above the whole model's"):
        elastic.share_of(Budget.parse("params=9G"), "params", whole)


def test_layers_are_judged_anew_after_each_that_went():
    """By hand: sum (M - M_-j)^2 / sum M^2 of the logits, the least first, and the next with that one gone."""
    subject = llama()
    batches = [subject.example(2, 9)]
    found = elastic.rank_layers(subject, batches, 2)

    def far(*gone: int) -> float:
        stays = np.array([index not in gone for index in range(4)])
        with torch.no_grad():
            full = subject.forward(batches[0]).prediction.double()
            less = subject.cut(Selection({"layers": stays}))[0].forward(batches[0]).prediction.double()
        return float((full - less).square().sum() / full.square().sum())

    first = min(range(4), key=far)
    second = min(set(range(4)) - {first}, key=lambda layer: far(first, layer))
    assert [layer for layer, _ in found] == [first, second]
    assert [score for _, score in found] == [pytest.approx(far(first)), pytest.approx(far(first, second))]


def test_padding_is_not_compared_and_long_batches_are_looked_at_in_parts(monkeypatch):
    subject = llama()
    batch = subject.example(4, 9)
    whole = elastic.rank_layers(subject, [batch], 2)
    scores = elastic.score_widths(subject, [batch], elastic.find_axes(subject, ("neurons",)))
    tokens = torch.cat([batch["input_ids"], torch.zeros(4, 3, dtype=torch.long)], 1)
    mask = torch.cat([torch.ones(4, 9, dtype=torch.long), torch.zeros(4, 3, dtype=torch.long)], 1)
    seen, forward = [], subject.forward
    monkeypatch.setattr(elastic, "_LOGITS", 2 * 12 * subject.model.config.vocab_size)
    monkeypatch.setattr(subject, "forward", lambda one, **how: seen.append(one["input_ids"].shape) or forward(one))
    padded = {"input_ids": tokens, "attention_mask": mask}
    filled = elastic.rank_layers(subject, [padded], 2)
    assert [layer for layer, _ in filled] == [layer for layer, _ in whole]
    assert [score for _, score in filled] == pytest.approx([score for _, score in whole], rel=1e-4)
    parts = elastic.score_widths(subject, [padded], elastic.find_axes(subject, ("neurons",)))
    assert all(torch.allclose(parts[site], score, atol=1e-5) for site, score in scores.items())
    assert set(seen) == {(2, 12)}


def test_a_size_is_searched_once_and_anew_when_the_router_has_learned(monkeypatch):
    model, calls = make_elastic("llama", ("neurons", "channels")), []
    search = model._search
    monkeypatch.setattr(model, "_search", lambda *how: calls.append(1) or search(*how))
    first = model.choose(0.6)
    first["neurons"][0] = 99  # theirs to change
    assert model.choose(0.6)["neurons"][0] != 99
    assert len(calls) == 1
    with torch.no_grad():
        next(model.router.parameters()).add_(1.0)
    model.choose(0.6)
    assert len(calls) == 2


@torch.no_grad()
def test_heads_of_mixers_that_share_nothing_are_ranked_masked_and_sliced():
    subject = open_subject(make_hybrid("Lfm2"))
    axes, batch = elastic.find_axes(subject, ("state_heads",), choices="state_heads=0.5"), subject.example(2, 9)
    scores = elastic.score_widths(subject, [batch], axes)
    assert scores.keys() == {"layers.0.state_heads", "layers.2.state_heads"}
    model = elastic.make(subject, scores, axes, "params", SHARES, hidden=16)
    with model.masks.on(model.subject.model):
        model.mask({"state_heads": [1]})
        masked = model.subject.forward(batch).prediction
    sliced = model.cut({"state_heads": [1]})[0].forward(batch).prediction
    assert float((masked - sliced).abs().max()) < 1e-4


@pytest.mark.parametrize("text", ["weights=nan", "weights=inf", "weights=2,weights=3", "weights", "cache=-1", "x=1"])
def test_bytes_of_a_profile_are_finite_numbers_given_once(text):
    with pytest.raises(InputError, match="give bf16, fp8, fp4, or bytes of each number"):
        elastic.read_profile(text)


def test_widths_are_ranked_by_what_flows_through_them():
    subject = hybrid()
    axes = elastic.find_axes(subject, elastic.AXES, order=(1,))
    batch = subject.example(2, 9)
    found = elastic.score_widths(subject, [batch], axes)
    layers, seen = subject.model.model.layers, {}
    hooks = [
        layers[0].mixer.in_proj.register_forward_hook(lambda _, args, out: seen.update(x=out)),
        layers[1].mixer.up_proj.register_forward_hook(lambda _, args, out: seen.update(up=out)),
    ]
    with torch.no_grad():
        subject.forward(batch)
    for hook in hooks:
        hook.remove()
    assert torch.allclose(found["layers.1.neurons"], seen["up"].abs().mean((0, 1)), atol=1e-5)
    wide = layers[0].mixer.intermediate_size
    s = seen["x"][..., wide : 2 * wide].abs().mean((0, 1)).reshape(8, 16)
    assert torch.allclose(found["layers.0.state_channels"], s.norm(dim=0), atol=1e-5)
    best = s.norm(dim=0).argsort(descending=True)[: axes["state_channels"].counts["layers.0.state_channels"][-1]]
    assert torch.allclose(found["layers.0.state_heads"], s[:, best].norm(dim=1), atol=1e-5)
    assert found["channels"].shape == (32,)


def test_neurons_of_experts_are_ranked_inside_each_by_the_tokens_that_come_to_it():
    subject = MODELS["mixtral"]()
    axes = elastic.find_axes(subject, ("experts", "expert_neurons"))
    found = elastic.score_widths(subject, [subject.example(2, 9)], axes)
    rows = found["layers.1.expert_neurons"].reshape(8, 24)
    assert (rows > 0).all(), "an expert without tokens is ranked by its weights"
    model = elastic.make(subject, found, axes, "params", SHARES, hidden=4)
    before, after = (one.model.model.layers[1].mlp.experts.down_proj for one in (subject, model.subject))
    order = found["layers.1.experts"].argsort(descending=True, stable=True)
    for place, expert in enumerate(order.tolist()):
        assert torch.equal(after[place], before[expert][:, rows[expert].argsort(descending=True, stable=True)])
    assert model.describe({"experts": [2], "expert_neurons": [1]}) == {"experts": 6, "expert_neurons": 16}
    keep = model.select({"experts": [2], "expert_neurons": [1]}).keep["layers.1.expert_neurons"].reshape(8, 24)
    assert (keep == (np.arange(24) < 16)).all()


def test_one_folder_holds_all_sizes_and_loads_as_the_whole_model(tmp_path):
    model = make_elastic("llama")
    elastic.write(model, tmp_path / "elastic")
    again = elastic.read(tmp_path / "elastic")
    assert (again.measure, again.shares, again.axes) == (model.measure, model.shares, model.axes)
    for share in SHARES:
        assert again.choose(share) == model.choose(share)
    batch = model.subject.example(2, 9)
    plain = open_subject(tmp_path / "elastic")
    with torch.no_grad():
        assert torch.equal(plain.forward(batch).prediction, model.subject.forward(batch).prediction)
    with pytest.raises(InputError, match=r"is no elastic model, for it has no elastic\.json"):
        elastic.read(tmp_path)
    with torch.no_grad():
        next(model.router.parameters())[0, 0] = torch.nan
    save_file(model.router.state_dict(), tmp_path / "elastic" / "router.safetensors")
    with pytest.raises(ModelError, match="its router is not finite"):
        elastic.read(tmp_path / "elastic")
    (tmp_path / "elastic" / "router.safetensors").write_bytes(b"no")
    with pytest.raises(ModelError, match="is a damaged elastic model"):
        elastic.read(tmp_path / "elastic")
    (tmp_path / "elastic" / "elastic.json").write_text("{}")
    with pytest.raises(ModelError, match="is a damaged elastic model"):
        elastic.read(tmp_path / "elastic")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("written") / "elastic"
    elastic.write(make_elastic("llama", ("layers", "channels", "neurons"), order=(2, 1)), place)
    return place


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ((), [1]),
        ((), "[" * 100_000),
        (("axes",), [1]),
        (("axes",), {}),
        (("axes", "neurons"), [1]),
        (("axes", "neurons", "counts"), [1]),
        (("axes", "neurons", "counts"), {}),
        (("axes", "neurons", "counts"), {"layers.99.neurons": [8, 4]}),
        (("axes", "neurons", "counts", "layers.1.neurons"), [128, 64]),
        (("axes", "channels", "counts", "channels"), []),
        (("axes", "channels", "counts", "channels"), [16, 8]),
        (("axes", "channels", "counts", "channels"), ["a", "b"]),
        (("axes", "channels", "counts", "channels"), [10**30, 8]),
        (("axes", "channels", "counts", "channels"), [1e30, 8]),
        (("axes", "layers", "order"), [99, 1]),
        (("axes", "layers", "order"), [-1, 1]),
        (("axes", "layers", "order"), [1, 1]),
        (("axes", "layers", "order"), ["a", 1]),
        (("axes", "layers", "order"), [2]),
        (("axes", "a.b"), {"counts": {"channels": [64, 32]}, "uneven": False, "order": []}),
        (("shares",), "abc"),
        (("shares",), [0.5, 0.75, 1.0]),
        (("shares",), [1.0]),
        (("shares",), [1.0, float("nan"), 0.5]),
        (("measure",), "x"),
        (("measure",), [1]),
        (("batch",), "x"),
        (("batch",), -5),
        (("length",), True),
        (("hidden",), 0),
        (("hidden",), 10**12),
        (("profile",), [1]),
        (("profile",), {"weights": "x"}),
        (("profile",), {"weights": float("nan"), "cache": 1, "states": 1, "buffers": 1}),
    ],
    ids=str,
)
def test_a_damaged_table_gets_one_line(written, tmp_path, place, value):
    shutil.copytree(written, tmp_path / "copy")
    data = json.loads((written / elastic.FILE).read_text())
    here = data
    for name in place[:-1]:
        here = here[name]
    if place:
        here[place[-1]] = value
    text = value if isinstance(value, str) and not place else json.dumps(data if place else value)
    (tmp_path / "copy" / elastic.FILE).write_text(text)
    with pytest.raises(ModelError, match="is a damaged elastic model") as refused:
        elastic.read(tmp_path / "copy")
    assert "\n" not in str(refused.value)


def test_a_folder_of_another_version_is_told_apart(written, tmp_path):
    shutil.copytree(written, tmp_path / "copy")
    data = json.loads((written / elastic.FILE).read_text())
    (tmp_path / "copy" / elastic.FILE).write_text(json.dumps({**data, "version": 2}))
    with pytest.raises(UnsupportedError, match="is of version 2, not 1: update secateur"):
        elastic.read(tmp_path / "copy")


def test_an_order_of_layers_leaves_one_with_an_attention():
    hybrid = open_subject(make_hybrid("Bamba", vocab_size=64))
    scores = {(1,): 0.1, (3,): 0.2, (0,): 0.3, (2,): 0.4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            elastic.ablation, "normalized_mse",
            lambda whole, without, batches, sets: torch.tensor([scores[gone[-1:]] for gone in sets]),
        )  # fmt: skip
        assert [layer for layer, _ in elastic.rank_layers(hybrid, [], 3)] == [1, 0, 2]
    for seed in range(4):
        assert len({layer for layer, _ in shuffle_layers(hybrid, 4, seed)} & {1, 3}) == 1


@pytest.mark.wide
def test_an_order_of_layers_leaves_one_of_each_stack():
    sizes = {"encoder_layers": 3, "decoder_layers": 3, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes |= {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "d_model": 16, "vocab_size": 64}
    subject = open_subject(transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes)))
    order = elastic.rank_layers(subject, [subject.example(2, 4)], 5)
    gone = {layer for layer, _ in order}
    assert len(order) == 4
    assert not {0, 1, 2} <= gone
    assert not {3, 4, 5} <= gone
    assert all(math.isfinite(loss) for _, loss in order)
