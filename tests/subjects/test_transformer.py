"""Units, costs and cuts of every family, on tiny random models, against silencing and against counting."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from secateur.errors import InputError, UnsupportedError
from secateur.subjects import Transformer, cutting
from secateur.vocabulary import Selection, Subject
from subjects.tiny import DECODERS, GENERATORS, MODELS, make, without

BATCH, LENGTH = 2, 9

Keep = dict[str, np.ndarray]


def random_keep(subject: Transformer, seed: int, *, channels: bool = True) -> Keep:
    """A mixed selection on all axes which a transformer can take."""
    random = np.random.default_rng(seed)
    units = subject.units()
    keep: Keep = {}
    for name, site in units.sites.items():
        if site.kind == "heads" and site.group is not None:
            per_group = site.count // (site.group.max() + 1)
            least = int(random.integers(1, per_group + 1))
            keep[name] = np.concatenate(
                [
                    np.isin(np.arange(per_group), random.choice(per_group, least, False))
                    for _ in range(site.group.max() + 1)
                ]
            )
        elif site.kind == "channels":
            if channels:
                keep[name] = np.isin(np.arange(site.count), random.choice(site.count, site.count - 16, False))
        else:
            keep[name] = random.random(site.count) < 0.7
    keep["layers"][int(random.integers(len(keep["layers"])))] = True
    if not any((keep["attention"] | keep["ffn"]) & keep["layers"]):
        keep["attention"][:] = keep["ffn"][:] = True
    return keep


def selections(subject: Transformer) -> dict[str, Keep]:
    """One selection per axis, and mixtures."""
    sites = subject.units().sites
    layers = sites["layers"].count

    def everywhere(kind: str, gone: Callable[[int], list[int]]) -> Keep:
        return {
            name: without(site.count, *gone(index))
            for index, (name, site) in enumerate((n, s) for n, s in sites.items() if s.kind == kind)
        }

    per_group = all(site.group is None for site in sites.values())
    first = next(site for site in sites.values() if site.kind == "heads")
    head = [1] if per_group else [1, 1 + first.count // 2]
    found = {
        "nothing": {},
        "neurons": {
            "layers.1.neurons": without(
                40 if "layers.1.neurons" not in sites else sites["layers.1.neurons"].count, *range(8)
            )
        },
        "neurons alike": everywhere("neurons", lambda index: list(range(index, index + 8))),
        "heads": {"layers.1.heads": without(first.count, *head)},
        "heads alike": everywhere("heads", lambda _: head),
        "all heads": {"layers.0.heads": np.zeros(first.count, dtype=bool)},
        "all neurons": {"layers.0.neurons": np.zeros(sites["layers.0.neurons"].count, dtype=bool)},
        "attention": {"attention": without(layers, 0)},
        "attention, others": {"attention": without(layers, 1, 2)},
        "ffn": {"ffn": without(layers, 1)},
        "both blocks": {"attention": without(layers, 1), "ffn": without(layers, 1)},
        "a layer": {"layers": without(layers, 1)},
        "first layer": {"layers": without(layers, 0)},
        "channels": {"channels": without(48, *range(3, 48, 6))},
        "channels, odd": {"channels": without(48, 5, 7, 11)},
        "mixed": random_keep(subject, 0),
        "mixed again": random_keep(subject, 1),
    }
    if "layers.0.kv_groups" in sites:
        found["kv group"] = {"layers.1.kv_groups": without(2, 0)}
        found["kv groups alike"] = everywhere("kv_groups", lambda index: [index % 2])
        found["kv group and head"] = {"layers.1.kv_groups": without(2, 0), "layers.1.heads": without(4, 2)}
    return found


def run(subject: Transformer, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return subject.forward(batch).prediction


def flops(subject: Transformer, batch: dict[str, torch.Tensor]) -> float:
    with FlopCounterMode(display=False) as counter:
        run(subject, batch)
    return float(counter.get_total_flops())


def cached_bytes(subject: Transformer, batch: dict[str, torch.Tensor]) -> float:
    with torch.no_grad():
        cache = subject.model(**batch, use_cache=True).cache
    return float(sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values)))


def padded(subject: Transformer) -> dict[str, torch.Tensor]:
    batch = subject.example(BATCH, LENGTH)
    batch["attention_mask"][1, 6:] = 0
    return batch


@pytest.mark.parametrize("name", MODELS)
def test_cut_equals_silenced_and_costs_are_exact(name: str) -> None:
    subject = make(name)
    units = subject.units(batch=BATCH, length=LENGTH)
    before = copy.deepcopy(subject.model.state_dict())
    torch.manual_seed(1)
    batch = padded(subject)
    whole = {"input_ids": batch["input_ids"], "attention_mask": torch.ones_like(batch["attention_mask"])}
    assert isinstance(subject, Subject)
    for label, keep in selections(subject).items():
        selection = Selection(keep)
        cut, receipt = subject.cut(selection)
        expected = run(subject.silence(selection), batch)
        if subject.output == "states" and "channels" in keep:
            expected = expected[..., keep["channels"]]
            if name.startswith("gemma3"):
                assert not any("scaled" in note for note in receipt.notes)
        torch.testing.assert_close(
            run(cut, batch), expected, atol=1e-5, rtol=1e-5, msg=lambda m, at=label: f"{at}: {m}"
        )
        cost = units.cost(keep)
        assert receipt.after["params"] == cost["params"], label
        assert receipt.after["bytes"] == cost["bytes"], label
        again = cut.units(batch=BATCH, length=LENGTH).cost()
        assert again == pytest.approx(cost, rel=1e-12), label
        assert flops(cut, whole) == cost["flops"], label
        if subject.kind == "decoder":
            assert cached_bytes(cut, whole) == cost["kv_cache"], label
            assert cost["memory"] == cost["bytes"] + cost["kv_cache"]
        assert receipt.is_noop == (label == "nothing")
        assert set(receipt.removed) == {n for n, a in units.effective(keep).items() if not a.all()}
        assert len(cut.layer_index) == cut.units()["layers"].count
    for key, tensor in subject.model.state_dict().items():
        assert torch.equal(tensor, before[key])


@pytest.mark.parametrize("name", MODELS)
def test_what_a_cut_gives_can_be_cut_again(name: str) -> None:
    subject = make(name)
    batch = padded(subject)
    once, _ = subject.cut(
        Selection(
            {
                "attention": without(3, 0),
                "layers.1.neurons": without(subject.units()["layers.1.neurons"].count, *range(8)),
            }
        )
    )
    units = once.units()
    assert "layers.0.heads" not in units.sites
    assert units["attention"].fixed is not None
    assert units["attention"].fixed.tolist() == [True, False, False]
    keep = {
        "layers": without(3, 1),
        "layers.2.heads": random_keep(subject, 3)["layers.2.heads"],
        "channels": without(48, *range(8)),
    }
    twice, receipt = once.cut(Selection(keep))
    expected = run(once.silence(Selection(keep)), batch)
    if subject.output == "states":
        expected = expected[..., keep["channels"]]
    torch.testing.assert_close(run(twice, batch), expected, atol=1e-5, rtol=1e-5)
    assert twice.layer_index == (0, 2)
    assert units.cost(keep)["params"] == receipt.after["params"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.sampled_from(sorted(MODELS)))
def test_any_selection_costs_what_it_says_and_equals_silencing(seed: int, name: str) -> None:
    subject = make(name)
    keep = random_keep(subject, seed)
    cut, receipt = subject.cut(Selection(keep))
    assert subject.units().cost(keep)["params"] == receipt.after["params"]
    batch = padded(subject)
    expected = run(subject.silence(Selection(keep)), batch)
    if subject.output == "states":
        expected = expected[..., keep["channels"]]
    torch.testing.assert_close(run(cut, batch), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "qwen3", "gemma3", "phi3"])
def test_order_of_units_does_not_matter(name: str) -> None:
    """Permuting neurons, and query heads inside their groups, leaves the outputs as they were."""
    subject = make(name)
    batch = padded(subject)
    before = run(subject, batch)
    order = torch.randperm(subject.widths()[1].neurons)
    heads = torch.tensor([1, 0, 3, 2])
    kept = cutting.kept(subject.layout, {})
    kept.parts[1]["neurons"], kept.parts[1]["heads"] = order, heads
    if subject.widths()[1].kv == subject.widths()[1].heads:
        kept.parts[1]["kv"] = heads
    subject.model.load_state_dict(cutting.sliced(subject.layout, kept))
    torch.testing.assert_close(run(subject, batch), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("gone", [(0,), (0, 1), (1, 2), (0, 1, 2)])
def test_generation_with_the_cache_equals_generation_without(name: str, gone: tuple[int, ...]) -> None:
    subject, _ = make(name).cut(Selection({"attention": without(3, *gone)}))
    tokens = subject.example(2, 5)
    settings_ = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    settings_ |= {"output_logits": True, "return_dict_in_generate": True}
    cached = subject.model.generate(**tokens, **settings_, use_cache=True)
    fresh = subject.model.generate(**tokens, **settings_, use_cache=False)
    assert torch.equal(cached.sequences, fresh.sequences)
    for one, other in zip(cached.logits, fresh.logits, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", [n for n in DECODERS if "mha" not in n and "gpt2" not in n])
def test_heads_go_evenly_from_their_groups(name: str) -> None:
    subject = make(name)
    site = subject.units()["layers.0.heads"]
    assert site.group is not None
    assert site.group.tolist() == [0, 0, 1, 1]
    with pytest.raises(UnsupportedError, match=r"\[1, 2\] query heads .* layers\.0\.heads"):
        subject.cut(Selection({"layers.0.heads": without(4, 0)}))
    cut, _ = subject.cut(Selection({f"layers.{index}.heads": without(4, 0, 3) for index in range(3)}))
    config = cut.model.config
    assert config.num_attention_heads == config.num_key_value_heads == 2
    assert not config.is_heterogeneous
    assert cut.head_dim == subject.head_dim


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "gemma2", "qwen3", "phi3"])
def test_plain_where_a_plain_config_can_say_it(name: str) -> None:
    subject = make(name)
    chosen = selections(subject)
    for label in ("neurons alike", "a layer"):
        cut, _ = subject.cut(Selection(chosen[label]))
        assert type(cut.model).__module__.startswith("transformers.models."), label
        assert not cut.model.config.is_heterogeneous
        assert not hasattr(cut.model.config, "auto_map")
    cut, _ = subject.cut(Selection(chosen["neurons"]))
    assert cut.model.config.is_heterogeneous
    assert "AutoModel" in cut.model.config.auto_map
    # what has become uniform again is plain again
    width = cut.widths()[1].neurons
    keep = {f"layers.{i}.neurons": np.arange(subject.widths()[i].neurons) < width for i in (0, 2)}
    assert not cut.cut(Selection(keep))[0].model.config.is_heterogeneous


def test_sites_owners_and_axes() -> None:
    subject = make("llama")
    units = subject.units("neurons", multiple=4)
    assert {site.kind for site in units.free()} == {"neurons"}
    assert units["layers.0.neurons"].multiple == 4
    whole = subject.units()
    assert whole["layers.2.heads"].owner is not None
    assert whole["layers.2.heads"].owner[0] == "layers.2.kv_groups"
    assert whole["layers.2.kv_groups"].owner is not None
    assert whole["layers.2.kv_groups"].owner[0] == "attention"
    assert whole["channels"].multiple == whole["channels"].minimum == 8
    assert whole["layers"].minimum == 1
    assert make("gpt2").units()["layers.1.heads"].owner == ("attention", pytest.approx(np.full(4, 1)))
    with pytest.raises(UnsupportedError, match=r"axis 'experts'.*layers, attention, ffn, heads"):
        subject.units("experts")
    with pytest.raises(UnsupportedError, match="kv_groups"):
        make("gpt2").units("kv_groups")


@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2", "llama", "phi3"])
def test_consumers_read_their_units(name: str) -> None:
    """Zeroing a unit's columns of its consumer is silencing the unit."""
    subject = make(name)
    batch = padded(subject)
    sites = subject.units().sites
    consumers = subject.consumers()
    assert set(consumers) == {n for n, s in sites.items() if s.kind in ("heads", "kv_groups", "neurons")}
    for site in (n for n in consumers if n.startswith("layers.1.")):
        other = subject._copy(copy.deepcopy(subject.model), subject.layer_index)
        consumer = consumers[site]
        weight = other.model.get_submodule(consumer.module).weight
        columns = slice(consumer.block, 2 * consumer.block)
        with torch.no_grad():
            (weight if consumer.conv1d else weight.T)[columns] = 0
        keep = {site: without(sites[site].count, 1)}
        if site.endswith("heads") and "layers.1.kv_groups" in sites:
            continue  # one head of a group alone can't go
        torch.testing.assert_close(
            run(other, batch), run(subject.silence(Selection(keep)), batch), atol=1e-6, rtol=1e-6
        )


@pytest.mark.parametrize("name", MODELS)
def test_forward_gives_every_hidden_state(name: str) -> None:
    subject = make(name)
    cut, _ = subject.cut(Selection({"layers": without(3, 1)}))
    batch = padded(subject)
    with torch.no_grad():
        full, output = subject.forward(batch, hidden=True), cut.forward(batch, hidden=True)
    assert [len(full.hidden), len(output.hidden)] == [4, 3]
    torch.testing.assert_close(full.hidden[0], output.hidden[0])
    torch.testing.assert_close(full.hidden[1], output.hidden[1])
    assert all(state.shape == (BATCH, LENGTH, 48) for state in full.hidden)
    assert subject.forward(batch).hidden == ()
    assert cut.layer_index == (0, 2)


@pytest.mark.parametrize(
    "name", ["bert", "roberta", "distilbert", "gpt2", "llama", "gemma2", "gemma3", "phi3", "qwen3"]
)
def test_probe_runs_one_block(name: str) -> None:
    subject = make(name)
    config = subject.model.config.to_dict()
    for kind, counts in (("neurons", (8, 40)), ("heads", (2, 4))):
        small, large = (subject.probe(kind, count, 2, 7) for count in counts)
        assert small().shape == large().shape == (2, 7, 48)
        with FlopCounterMode(display=False) as less:
            small()
        with FlopCounterMode(display=False) as more:
            large()
        assert 0 < less.get_total_flops() < more.get_total_flops()
    nothing = subject.probe("neurons", 0, 2, 7)
    assert nothing() is None
    assert subject.model.config.to_dict() == config
    with pytest.raises(InputError, match="neurons"):
        subject.probe("neurons", 4000, 2, 7)


def test_probe_of_kv_groups() -> None:
    assert make("llama").probe("kv_groups", 1, 2, 7)().shape == (2, 7, 48)
    with pytest.raises(InputError, match="3 does not spread evenly over 2"):
        make("llama").probe("heads", 3, 2, 7)
    with pytest.raises(InputError, match="kv_groups in a grouped model"):
        make("gpt2").probe("kv_groups", 1, 2, 7)


def test_probe_costs_what_the_block_costs() -> None:
    """The block's FLOPs in the probe are what the units say the block costs."""
    subject = make("llama")
    units = subject.units(batch=2, length=7)
    whole = units.cost()["flops"]
    for kind, count, keep in (("neurons", 40, {"ffn": without(3, 0)}), ("heads", 4, {"attention": without(3, 0)})):
        probe = subject.probe(kind, count, 2, 7)  # type: ignore[arg-type]
        with FlopCounterMode(display=False) as counter:
            probe()
        assert counter.get_total_flops() == whole - units.cost(keep)["flops"]


def test_refusals_of_a_selection() -> None:
    subject = make("llama")
    with pytest.raises(InputError, match="no layer"):
        subject.cut(Selection({"layers": np.zeros(3, dtype=bool)}))
    with pytest.raises(InputError, match="no attention and no FFN"):
        subject.cut(Selection({"attention": np.zeros(3, dtype=bool), "ffn": np.zeros(3, dtype=bool)}))
    with pytest.raises(InputError, match="no channel"):
        subject.cut(Selection({"channels": np.zeros(48, dtype=bool)}))
    with pytest.raises(InputError, match=r"names layers\.9\.heads"):
        subject.cut(Selection({"layers.9.heads": np.ones(4, dtype=bool)}))
    with pytest.raises(InputError, match=r"\(7,\) entries at layers\.0\.neurons: expected \(40,\)"):
        subject.silence(Selection({"layers.0.neurons": np.ones(7, dtype=bool)}))


def test_unknown_tensors_refuse_channels_by_name() -> None:
    subject = make("llama")
    subject.model.register_module("probe_head", torch.nn.Linear(48, 5))
    with pytest.raises(UnsupportedError, match=r"probe_head\.weight \(5, 48\)"):
        subject.cut(Selection({"channels": without(48, 0)}))
    other = make("llama")
    other.model.model.layers[0].self_attn.register_module("adapter", torch.nn.Linear(48, 5))
    with pytest.raises(UnsupportedError, match=r"adapter\.weight is no part of a plain llama layer"):
        Transformer.__init__(other, other.model, other.family)


def test_noop_is_called_one() -> None:
    subject = make("llama")
    cut, receipt = subject.cut(Selection({"layers.0.heads": np.ones(4, dtype=bool)}))
    assert receipt.is_noop
    assert cut.model is not subject.model
    batch = padded(subject)
    assert torch.equal(run(cut, batch), run(subject, batch))


def test_torch_masks_odd_widths_and_other_dtypes() -> None:
    subject = make("llama-tied-bias")
    subject.model.to(torch.bfloat16)
    keep = torch.ones(40, dtype=torch.bool)
    keep[0] = False
    cut, receipt = subject.cut(Selection({"layers.0.neurons": keep, "channels": torch.arange(48) < 40}))
    assert cut.model.dtype == torch.bfloat16
    assert any("39" in note for note in receipt.notes)
    assert subject.units().cost()["bytes"] == receipt.before["bytes"]
    assert cut.model.lm_head.weight is cut.model.model.embed_tokens.weight


def test_without_correction_norms_run_over_what_is_left() -> None:
    subject = make("llama")
    selection = Selection({"channels": without(48, *range(8))})
    exact, _ = subject.cut(selection)
    bare, _ = subject.cut(selection, norm_correction=False)
    assert bare.model.config.rms_norm_eps == subject.model.config.rms_norm_eps
    torch.testing.assert_close(exact.model.model.norm.weight, bare.model.model.norm.weight * (48 / 40) ** 0.5)
