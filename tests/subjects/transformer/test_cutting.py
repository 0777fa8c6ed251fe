"""Cuts of every family, on tiny random models, against silencing and against counting."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from packaging import version

from secateur.errors import InputError, UnsupportedError
from secateur.subjects import open_subject
from secateur.subjects.transformer import cutting, shapes
from secateur.vocabulary import Selection, Subject
from subjects.tiny import (
    BATCH,
    DENSE,
    LENGTH,
    MODELS,
    cached_bytes,
    flops,
    make,
    padded,
    random_keep,
    run,
    selections,
    without,
)

NEW = version.parse(transformers.__version__) >= version.parse("5.20")


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
        # Before transformers 5.20 the angles of rotary positions come from a matrix product, which is counted.
        assert flops(cut, whole) == pytest.approx(cost["flops"], rel=1e-12 if NEW else 1e-3), label
        if subject.kind == "decoder":
            assert cached_bytes(cut, whole) == cost["kv_cache"], label
            assert cost["memory"] == cost["bytes"] + cost["kv_cache"]
        assert receipt.is_noop == (label == "nothing")
        assert set(receipt.removed) == {n for n, a in units.effective(keep).items() if not a.all()}
        assert len(cut.layer_index) == cut.units()["layers"].count
    for key, tensor in subject.model.state_dict().items():
        assert torch.equal(tensor, before[key])


@pytest.mark.parametrize("name", DENSE)
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
        "channels": without(48, *(range(8) if subject.units()["channels"].fixed is None else [])),
    }
    twice, receipt = once.cut(Selection(keep))
    expected = run(once.silence(Selection(keep)), batch)
    if subject.output == "states":
        expected = expected[..., keep["channels"]]
    torch.testing.assert_close(run(twice, batch), expected, atol=1e-5, rtol=1e-5)
    assert twice.layer_index == (0, 2)
    assert units.cost(keep)["params"] == receipt.after["params"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(56, "qwen3-moe")  # all layers with experts go, and the dense one moves to another index
@example(179, "bert")  # no attention and no FFN would be left, so layers alone go
@example(318, "gemma2")  # the one attention that would be left has no head
@given(st.integers(0, 10**6), st.sampled_from(sorted(MODELS)))
def test_any_selection_costs_what_it_says_and_equals_silencing(seed: int, name: str) -> None:
    subject = make(name)
    keep = random_keep(subject, seed)
    cut, receipt = subject.cut(Selection(keep))
    assert subject.units().cost(keep)["params"] == receipt.after["params"]
    batch = padded(subject)
    expected = run(subject.silence(Selection(keep)), batch)
    if subject.output == "states" and "channels" in keep:  # without, layers alone were drawn
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
    kept = cutting.find_kept(subject.layout, {})
    kept.parts[1]["neurons"], kept.parts[1]["heads"] = order, heads
    if subject.widths()[1].kv == subject.widths()[1].heads:
        kept.parts[1]["kv"] = heads
    subject.model.load_state_dict(cutting.slice_state(subject.layout, kept))
    torch.testing.assert_close(run(subject, batch), before, atol=1e-5, rtol=1e-5)


def test_a_tensor_of_which_all_units_stay_is_itself_whatever_its_size() -> None:
    """A layer may have sizes of its own where its units can't be cut: cuts of layers take it as it is."""
    layout = make("llama").layout
    kept, other = cutting.find_kept(layout, {}), torch.ones(2, 3)
    assert cutting.slice_tensor(layout, other, ("heads*", "channels"), 0, kept) is other


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


def test_layer_norms_of_a_stream_without_a_mean_are_corrected_like_rms_norms() -> None:
    """Channels that go are zero, their shifts too, and what is written has a mean of zero in the others."""
    subject = make("gpt2")
    keep = without(subject.hidden_size, 0, 3, 4)
    stays = torch.as_tensor(keep)
    with torch.no_grad():
        for path in subject.writers():
            module = subject.model.get_submodule(path)
            for tensor in [getattr(module, name) for name in ("weight", "bias") if hasattr(module, name)]:
                tensor[..., ~stays] = 0
                tensor[..., stays] -= tensor[..., stays].mean(-1, keepdim=True)
        shifts = cutting.find_shifts(subject.layout)
        assert set(shifts) == set(subject.norms())
        for path in shifts:
            subject.model.get_submodule(path).bias[~stays] = 0
    batch = padded(subject)
    before = run(subject, batch)
    cut, receipt = subject.cut(Selection({"channels": keep}), centred=True)
    torch.testing.assert_close(run(cut, batch), before, rtol=1e-5, atol=1e-5)
    assert not [note for note in receipt.notes if "LayerNorm" in note]
    for how in ({"centred": False}, {"centred": True, "norm_correction": False}):
        assert (run(subject.cut(Selection({"channels": keep}), **how)[0], batch) - before).abs().max() > 1e-3


def test_longrope_of_phi3_ties_channels_to_heads(tmp_path: Path) -> None:
    """Its config class measures the factors by hidden_size / heads: other heads are said layer by layer."""
    subject = make("phi3-longrope")
    assert subject.units()["channels"].fixed.all()
    assert shapes.grid(subject, ["channels"])["channels"] == [48]
    with pytest.raises(UnsupportedError, match="rope factors"):
        subject.cut(Selection({"channels": without(48, *range(8))}))
    cut, _ = subject.cut(Selection(selections(subject)["heads alike"]))
    assert cut.model.config.num_attention_heads == 4
    assert {width.heads for width in cut.widths()} == {2}
    cut.save(tmp_path)
    batch = cut.example(1, 40)  # past the original length, where the long factors serve
    torch.testing.assert_close(run(open_subject(tmp_path), batch), run(cut, batch), atol=1e-5, rtol=1e-5)


def test_channels_of_a_tensor_that_is_not_written_stay(tmp_path: Path) -> None:
    """Marian makes its sinusoids anew, which are others for fewer channels than those that were kept."""
    torch.manual_seed(0)
    sizes = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    sizes |= {"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 32}
    words = {"vocab_size": 61, "pad_token_id": 60, "decoder_start_token_id": 60}
    subject = open_subject(transformers.MarianMTModel(transformers.MarianConfig(**sizes, **words)).eval())
    with pytest.raises(UnsupportedError, match=r"writes no model\.decoder\.embed_positions\.weight"):
        subject.cut(Selection({"channels": np.arange(16) % 2 == 0}))
    small = subject.cut(Selection({"layers.0.neurons": np.arange(24) < 8}))[0]
    small.save(tmp_path)
    batch = small.example(2, 6)
    torch.testing.assert_close(run(open_subject(tmp_path), batch), run(small, batch))
