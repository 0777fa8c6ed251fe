"""PAT on models of a few thousand parameters."""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PhiConfig, PhiForCausalLM

import secateur
import tiny
import toys
from recover.training.test_lora import needs_peft
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.errors import BudgetError, DataError, InfeasibleError, InputError, MissingExtraError, UnsupportedError
from secateur.recipes.language import pat
from secateur.recover.sparsity.hybrid import Hybrid
from secateur.recover.training import loop, lora
from secateur.runs import executor, keywords
from secateur.subjects import Transformer, open_subject
from secateur.subjects.transformer import gguf_export, saving
from secateur.vocabulary import Budget, Result

pytestmark = needs_peft
QUICK = {"length": 16, "steps": 6, "train_batch": 4, "lr": 1e-2, "lora_rank": 4}
DATA = texts.read(tiny.chains(400))
prove, PROVED = pat.prove, set[str]()


def toy(folder):
    return toys.language("llama", "params=75%", **QUICK | {"steps": 24, "train_batch": 16, "lr": 3e-3})


@functools.cache
def phi():
    """Attention and FFN side by side behind one LayerNorm; its family is derived."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=64)
    made = PhiForCausalLM(PhiConfig(**sizes, pad_token_id=0, bos_token_id=5, eos_token_id=6))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made.eval()


def subject(kind: str = "llama", **config: object) -> Transformer:
    model = phi() if kind == "phi" else tiny.model(kind)
    if config:
        model.config.update(config)
        model.tie_weights()
    return open_subject(model, tokenizer=tiny.tokenizer())


def results(root, *budgets, model=None, kind="llama", data=DATA, **options) -> list[Result]:
    how = keywords.check_options(pat.pat, {**QUICK, **options})
    with Run.open(root, {}) as run:
        wanted = [Budget.parse(budget) for budget in budgets]
        return list(pat.pat(model or subject(kind), data, wanted, run, **how))


@pytest.fixture(autouse=True)
def prove_once(monkeypatch):
    """Each kind of model is proved by the first test that tunes one, but where the proof is what is tested."""

    def prove_new(start: Transformer) -> None:
        config = start.model.config.to_json_string()
        if config not in PROVED:
            prove(start)
        PROVED.add(config)

    monkeypatch.setattr(pat, "prove", prove_new)


class Watch:
    """The mask, what the masked model says at the end of training on `batch`, and its residual stream."""

    def __init__(self, monkeypatch) -> None:
        self.batch = self.mask = self.logits = self.states = None
        fold = Hybrid.fold

        def look(hybrid, model):
            if model.config.vocab_size == 64:  # no small copy
                with hybrid.on(model), torch.no_grad():
                    hybrid.harden()
                    out = model(**self.batch, output_hidden_states=True)
                self.mask, self.logits, self.states = hybrid.mask.keep().numpy(), out.logits, out.hidden_states
            fold(hybrid, model)

        monkeypatch.setattr(Hybrid, "fold", look)


@pytest.fixture
def watch(monkeypatch):
    return Watch(monkeypatch)


@pytest.mark.parametrize(("kind", "options"), [
    ("llama", {}), ("qwen3", {"dora": True}), ("phi", {"variant": "code"}), ("gpt2", {}),
], ids=["llama", "qwen3-dora", "phi-code", "gpt2"])  # fmt: skip
def test_the_cut_model_says_what_the_masked_one_said(tmp_path, watch, monkeypatch, kind, options):
    start = subject(kind)
    watch.batch = start.example(3, 12)
    (found,) = results(tmp_path / "a", "params=80%", model=start, **options)
    small = found.subject
    kept = small.hidden_size
    assert int(watch.mask.sum()) == kept < start.hidden_size
    for states in watch.states[:-1]:  # the last ones have passed a norm
        assert states[..., ~watch.mask].abs().max() < 1e-5, "the residual stream is zero where channels went"
        assert states[..., watch.mask].abs().min(-1).values.max() > 0
    with torch.no_grad():
        said = small.forward(watch.batch).prediction
        torch.testing.assert_close(said, watch.logits, rtol=1e-4, atol=1e-4)
        apart = (said - start.forward(watch.batch).prediction).abs().max()
    assert apart > 0.05
    assert not [name for name in small.model.state_dict() if "L0" in name or "lora" in name or "proxy" in name]
    assert small.head_dim == start.head_dim
    assert saving.needs_module(small.model.config) == (kind == "gpt2")
    if kind != "gpt2":
        assert small.model.config.head_dim == start.head_dim, "no longer hidden_size / heads"
    else:
        assert any("a modelling file travels" in note for note in found.notes)

    real = Transformer.cut
    monkeypatch.setattr(pat, "prove", prove)
    monkeypatch.setattr(Transformer, "cut", lambda *args, **how: real(*args, **how | {"norm_correction": False}))
    with pytest.raises(UnsupportedError, match="norms that no factor makes exact"):
        results(tmp_path / "b", "params=80%", model=start, **options)
    monkeypatch.setattr(pat, "prove", lambda _: None)
    (wrong,) = results(tmp_path / "a", "params=80%", model=start, **options)
    with torch.no_grad():
        assert (wrong.subject.forward(watch.batch).prediction - watch.logits).abs().max() > 1e-2


def test_the_first_step_is_the_original(monkeypatch, tmp_path):
    start, seen = subject(), []
    batch, before = start.example(2, 8), subject().model
    set_step = Hybrid.set_step

    def look(hybrid, step):
        set_step(hybrid, step)
        seen.append(step)
        if step == 0:
            assert torch.equal(hybrid.now, torch.ones(start.hidden_size))

    monkeypatch.setattr(Hybrid, "set_step", look)
    train = loop.train

    def watched(student, *args, **how):
        with torch.no_grad():
            assert torch.equal(student.eval()(**batch).logits, before(**batch).logits)
        return train(student, *args, **how)

    monkeypatch.setattr(loop, "train", watched)
    results(tmp_path, "params=80%", model=start, training="accumulate=2")
    assert seen == [step for step in range(6) for _ in range(2)], "one mask a micro-batch, and a schedule by steps"


def test_a_tied_head_becomes_a_table_of_its_own_and_is_counted(tmp_path):
    start = subject(tie_word_embeddings=True)
    assert start.model.lm_head.weight is start.model.model.embed_tokens.weight
    (found,) = results(tmp_path, "params=80%", model=start)
    small = found.subject.model
    assert not torch.equal(small.lm_head.weight, small.model.embed_tokens.weight)
    assert found.predicted["params"] == sum(parameter.numel() for parameter in small.parameters())
    assert found.predicted["params"] <= 0.8 * start.units().cost()["params"]
    assert any(f"a table of its own now: {small.lm_head.weight.numel():,}" in note for note in found.notes)
    assert small.config.tie_word_embeddings is False
    assert start.model.lm_head.weight is start.model.model.embed_tokens.weight


def test_the_result_is_plain_and_writes_the_same_from_its_folder(tmp_path):
    start = subject("qwen3", tie_word_embeddings=True)
    (found,) = results(tmp_path / "run", "params=75%", model=start)
    assert found.predicted == found.subject.units(length=16).cost()
    assert found.predicted["kv_cache"] == start.units(length=16).cost()["kv_cache"], "the cache stays as it was"
    found.subject.save(tmp_path / "small")
    tokens, how = start.example(1, 5)["input_ids"], {"max_new_tokens": 8, "do_sample": False}
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert type(plain).__module__.startswith("transformers.models.qwen3")
    assert not list((tmp_path / "small").glob("*.py")), "no modelling file"
    assert torch.equal(plain.generate(tokens, **how), found.subject.model.generate(tokens, **how))
    if not importlib.util.find_spec("gguf"):
        return
    gguf_export.to_gguf(open_subject(tmp_path / "small"), tmp_path)  # of llama.cpp
    config = AutoConfig.from_pretrained(tmp_path, gguf_file="model.gguf", head_dim=start.head_dim)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", config=config).eval()
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight), "a head of its own"
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, plain(tokens).logits, rtol=1e-4, atol=1e-5)


def test_a_mask_that_did_not_converge_is_finished_by_rank_and_says_so(tmp_path):
    short, none = (results(tmp_path / str(steps), "params=75%", steps=steps)[0] for steps in (3, 0))
    for found in (short, none):
        assert found.subject.hidden_size == 48
    assert none.recovery is None
    assert any("were open and 48 were to be: the mask was finished by rank" in note for note in short.notes)
    assert none.notes == ("which channels go is learned; here those of least norm went",)


def test_a_mask_converges_and_the_record_says_how(tmp_path):
    (found,) = results(tmp_path, "params=75%", steps=70, lr=2e-2, settled=1.0)
    assert not found.notes
    record = found.recovery.settings["mask"]
    assert record["open"] == record["kept"] == 48
    assert record["curve"][0] == (0, 64)
    assert found.recovery.settings["orthogonality"] < 0.2
    assert json.dumps(found.recovery.settings)
    (bare,) = results(tmp_path / "bare", "params=75%", steps=3, identity=0.0)
    assert bare.recovery.settings["orthogonality"] > 0.5


@pytest.mark.parametrize("mask", ["norm", "first", "last"])
def test_a_fixed_mask_is_what_it_says(tmp_path, watch, mask):
    start = subject()
    watch.batch, large = start.example(2, 8), np.random.default_rng(0).permutation(64)[:48]
    with torch.no_grad():
        start.model.model.embed_tokens.weight[:, large] *= 50
    (found,) = results(tmp_path, "params=75%", model=start, mask=mask)
    stay = {"norm": np.isin(np.arange(64), large), "first": np.arange(64) < 48, "last": np.arange(64) >= 16}[mask]
    assert np.array_equal(watch.mask, stay)
    assert found.recovery.settings["mask"] == {"channels": 64, "kept": 48, "fixed": True}
    assert not found.notes


@pytest.mark.parametrize("order", ["prune-first", "tune-first"])
def test_baselines_cut_the_channels_of_a_fixed_mask(tmp_path, monkeypatch, order):
    cuts, real = [], Transformer.cut

    def watched(self, chosen, **how):
        cuts.append(chosen)
        return real(self, chosen, **how)

    monkeypatch.setattr(Transformer, "cut", watched)
    monkeypatch.setattr(pat, "prove", lambda _: None)
    results(tmp_path, "params=75%", order=order, mask="first", steps=0)
    assert [np.flatnonzero(chosen.keep["channels"]).tolist() for chosen in cuts] == [list(range(48))]


def test_a_step_in_two_halves_learns_what_one_of_both_learns(tmp_path):
    """Also from the losses that are no sums over tokens."""
    how = {"steps": 1, "lora_dropout": 0.0, "clip": 1e9, "mask": "norm", "lr": 1e-2, "warmup": 0.0}
    (whole,) = results(tmp_path / "whole", "params=75%", train_batch=8, training="optimizer=sgd", **how)
    (parted,) = results(tmp_path / "two", "params=75%", train_batch=4, training="optimizer=sgd,accumulate=2", **how)
    assert parted.recovery.tokens == whole.recovery.tokens
    numbers = [found.recovery.settings["orthogonality"] for found in (whole, parted)]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-5)
    for one, other in zip(*(found.subject.model.state_dict().values() for found in (whole, parted)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_adapters_count_as_much_at_any_rank_and_drop_while_they_learn(tmp_path, monkeypatch):
    made, dropped = [], []
    adapt, forward = lora.adapt, nn.Dropout.forward

    def watched(model, rank, **how):
        made.append((rank, how["alpha"] / rank))
        return adapt(model, rank, **how)

    def drop(module, states):
        dropped.append((module.p, module.training))
        return forward(module, states)

    monkeypatch.setattr(lora, "adapt", watched)
    monkeypatch.setattr(nn.Dropout, "forward", drop)
    for order in ("joint", "prune-first", "tune-first"):
        dropped.clear()
        results(tmp_path / order, "params=75%", order=order, rank=8, alpha=6.0, lora_dropout=0.2, steps=1)
        assert (0.2, True) in dropped
        assert (0.2, False) not in dropped
    assert [factor for _, factor in made] == pytest.approx([6 / 4] * 3)
    assert made[0][0] == 4 < made[1][0] >= made[2][0] > 4


@pytest.mark.parametrize("order", ["prune-first", "tune-first"])
def test_baselines_train_as_many_parameters_and_are_as_large(tmp_path, order):
    (ours,) = results(tmp_path / "a", "params=75%", rank=8)
    (theirs,) = results(tmp_path / "b", "params=75%", rank=8, order=order)
    assert theirs.predicted == ours.predicted == theirs.subject.units(length=16).cost()
    numbers = [one.recovery.settings["trained_parameters"] for one in (theirs, ours)]
    assert 0.8 * numbers[1] < numbers[0] <= numbers[1]
    assert theirs.recovery.settings["lora_rank"] > 4
    assert "mask" not in theirs.recovery.settings
    assert not theirs.notes


def test_trained_parameters_are_those_of_adapters_operators_and_mask(tmp_path):
    (found,) = results(tmp_path, "params=75%", rank=3)
    per_layer = 4 * (64 + 64 + 64 + 16 + 64 + 16 + 64 + 64 + 2 * (64 + 128) + 128 + 64)
    assert found.recovery.settings["trained_parameters"] == 4 * per_layer + 9 * (2 * 64 * 3 + 3) + 64


def test_what_stays_where_it_was_and_a_rerun_trains_nothing(tmp_path, monkeypatch):
    start = subject()
    before = {name: tensor.clone() for name, tensor in start.model.state_dict().items()}
    first = results(tmp_path, "params=75%", "params=85%", model=start)
    assert all(torch.equal(before[name], tensor) for name, tensor in start.model.state_dict().items())
    assert all(parameter.requires_grad for parameter in start.model.parameters())
    monkeypatch.setattr(loop, "_fetch", lambda *_: pytest.fail("trained again"))
    for one, other in zip(first, results(tmp_path, "params=75%", "params=85%", model=start), strict=True):
        assert one.notes == other.notes
        for name, tensor in one.subject.model.state_dict().items():
            assert torch.equal(tensor, other.subject.model.state_dict()[name])


@pytest.mark.parametrize("after", [5, 10])
def test_a_training_that_was_stopped_ends_with_the_same_bytes(tmp_path, monkeypatch, after):
    """Before and after the mask is decided, at step 8 of 10."""
    options = {"steps": 12, "settled": 10 / 12, "training": "every=1"}
    (whole,) = results(tmp_path / "whole", "params=75%", **options)
    real, fetched = loop._fetch, []

    def stop(batches, index):
        fetched.append(index)
        if len(fetched) > after:
            raise KeyboardInterrupt
        return real(batches, index)

    monkeypatch.setattr(loop, "_fetch", stop)
    with pytest.raises(KeyboardInterrupt):
        results(tmp_path / "again", "params=75%", **options)
    monkeypatch.setattr(loop, "_fetch", real)
    (again,) = results(tmp_path / "again", "params=75%", **options)
    assert again.recovery.settings["mask"] == whole.recovery.settings["mask"]
    for name, tensor in whole.subject.model.state_dict().items():
        assert torch.equal(tensor, again.subject.model.state_dict()[name])


def test_answers_of_chats_are_learned_and_judged_with_the_mask_that_is_cut_by(tmp_path, monkeypatch):
    start = open_subject(tiny.model("llama"), tokenizer=tiny.chat_tokenizer())
    start.model.resize_token_embeddings(len(start.tokenizer))
    data = replace(texts.read(tiny.chats(120)), completion_only=True).render(start.tokenizer)
    hardened = []
    harden = Hybrid.harden
    monkeypatch.setattr(Hybrid, "harden", lambda hybrid: (hardened.append(1), harden(hybrid))[1])
    monkeypatch.setattr(pat, "prove", lambda _: None)
    (found,) = results(tmp_path / "a", "params=85%", model=start, data=data, patience=9, training="evaluate_every=2")
    assert len(hardened) == len(found.recovery.settings["evaluations"]) == 3
    assert not found.notes or "rank" in found.notes[0]
    losses = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(pat.objectives, "held_out", lambda *_, **__: next(losses))
    how = {"patience": 9, "training": "evaluate_every=2", "settled": 1.0}
    (early,) = results(tmp_path / "c", "params=85%", model=start, data=data, **how)
    assert early.recovery.settings["kept_step"] == 2
    assert early.notes[0].startswith("at step 2 ")
    assert "the best weights (step 2) precede the mask, settled at 6: try keep=last" in early.notes[1]
    data = replace(data, completion_only=False, answers=None)
    (whole,) = results(tmp_path / "b", "params=85%", model=start, data=data)
    assert found.recovery.tokens < whole.recovery.tokens
    assert any("completion_only learns the answers alone" in note for note in whole.notes)


def test_texts_too_few_to_hold_a_row_out_are_learned_where_no_evaluation_is_asked_for(tmp_path):
    few, how = texts.read(tiny.chains(12)), {"length": 64, "train_batch": 1, "steps": 1, "order": "tune-first"}
    (found,) = results(tmp_path / "a", "params=80%", data=few, **how)
    assert found.recovery.steps == 1
    with pytest.raises(DataError, match=r"the held-out part of .* tokens, less than one batch: 64 are needed"):
        results(tmp_path / "b", "params=80%", data=few, patience=2, **how)


def test_a_dry_run_cuts_the_least_channels_and_trains_nothing(tmp_path, monkeypatch):
    start = subject()
    with torch.no_grad():
        for module in (start.model.model.embed_tokens, start.model.lm_head):
            module.weight[:, 10:26] = 0
        for layer in start.model.model.layers:
            for name, parameter in layer.named_parameters():
                if parameter.dim() == 2:
                    out = name.endswith(("o_proj.weight", "down_proj.weight"))
                    (parameter.T if out else parameter)[:, 10:26] = 0
    monkeypatch.setattr(loop, "_fetch", lambda *_: pytest.fail("trained"))
    (found,) = results(tmp_path, "params=75%", model=start, dry_run=True)
    assert found.recovery is None
    assert found.cut.removed["channels"] == (16, 64)
    batch = start.example(2, 9)
    with torch.no_grad():
        said, wanted = (one.forward(batch).prediction for one in (found.subject, start))
    torch.testing.assert_close(said, wanted, rtol=1e-4, atol=1e-4)
    assert found.notes == ("which channels go is learned; here those of least norm went",)


def test_the_number_of_channels_may_be_given_or_rounded_otherwise(tmp_path):
    def width(**options):
        return results(tmp_path / str(options), "params=75%", dry_run=True, **options)[0].subject.hidden_size

    assert width() == 48
    assert width(channels=40) == 40
    assert width(multiple=5) == 40, "the most that eight heads divide"
    assert width(multiple=32) == 32


def test_what_cannot_be_is_refused_by_name(tmp_path):
    def refused(error, match, *budgets, **options):
        with pytest.raises(error, match=match):
            results(tmp_path / str(len(list(tmp_path.iterdir()))), *(budgets or ["params=75%"]), **options)

    refused(BudgetError, r"pat can't meet pattern=2:4: it cuts channels", "pattern=2:4")
    refused(BudgetError, r"latency has no cost here; costs known: .*params", "speedup=2x")
    refused(BudgetError, r"params=100% lets every channel stay", "params=100%")
    refused(InfeasibleError, r"params=1% can't be met: with 8 channels params is \d+, the limit is", "params=1%")
    refused(InfeasibleError, "kv_cache=50% can't be met", "kv_cache=50%")
    refused(InfeasibleError, r"params=50% can't be met: with 48 channels", "params=50%", channels=48)
    refused(InputError, r"channels=44: LlamaConfig can't say it beside its heads of 8; .* can: 40 and 48", channels=44)
    refused(InputError, "channels=64: give less than the 64 channels", channels=64)
    refused(InputError, "multiple=64: give less than the 64", multiple=64)
    refused(InputError, "rank=65 is more than the 64 channels", rank=65)
    refused(InputError, "pat has adapters of its own: give lora_rank", training="lora=4")
    refused(InputError, "option lora_bits='5' of pat: give a whole number of at least 0", lora_bits="5")
    refused(UnsupportedError, "pat tunes causal language models, and this is a BertForMaskedLM", kind="masked")
    refused(UnsupportedError, "mixtral has experts, so no one linear writes", kind="mixtral")


def test_adapters_learn_beside_integers_which_are_merged_folded_and_cut(tmp_path, watch):
    """What is no writer is, where channels stay, the integers' sum with what adapters of rank 4 learned."""
    quantise = pytest.importorskip("secateur.recover.quantization.quantise")
    pytest.importorskip("torchao")
    start = subject()
    watch.batch = start.example(2, 9)
    (found,) = results(tmp_path, "params=75%", model=start, steps=3, lora_bits="4")
    with torch.no_grad():
        said = found.subject.forward(watch.batch).prediction
    torch.testing.assert_close(said, watch.logits, rtol=1e-4, atol=1e-4)
    assert found.recovery.settings["lora_bits"] == 4
    weights = [one.model.model.layers[0].mlp.up_proj.weight.detach() for one in (start, found.subject)]
    assert type(found.subject.model.model.layers[0].mlp.up_proj.weight) is nn.Parameter
    grid = quantise.dense(quantise.integers(weights[0], 4))[:, watch.mask]
    assert int(torch.linalg.matrix_rank(weights[1] - grid, rtol=1e-4)) <= 4
    assert int(torch.linalg.matrix_rank(weights[1] - weights[0][:, watch.mask], rtol=1e-4)) > 4
    assert all(type(one) is nn.Parameter for one in start.model.parameters())


@pytest.mark.parametrize(
    ("recipe", "kind", "how", "words"),
    [
        ("pat", "llama", {"training": "lora_bits=4"}, r"write --lora-bits 4 \(lora_bits=4 in Python\) in place of"),
        ("pat", "gpt2", {"lora_bits": 4}, "no linear of GPT2LMHeadModel can be held in 4 bits"),
        ("minitron", "gpt2", {"training": "dora=2,lora_bits=8"}, "no linear of GPT2LMHeadModel can be held in 8 bits"),
        ("minitron", "llama", {"training": "lora_bits=8"}, "lora_bits=8 is of what adapters stand beside: give lora"),
        ("pat", "llama", {"lora_bits": 4, "missing": "torchao"}, "quantisation needs torchao"),
        ("minitron", "llama", {"training": "lora=2", "missing": "peft"}, "lora and dora need peft"),
    ],
)
def test_adapters_that_can_not_be_are_refused_before_anything_is_done(tmp_path, monkeypatch, recipe, kind, how, words):
    how = dict(how)
    if missing := how.pop("missing", ""):
        monkeypatch.setitem(sys.modules, missing, None)
    elif "of GPT2" in words:
        pytest.importorskip("torchao")
    monkeypatch.setattr(executor, "open_run", lambda *_, **__: pytest.fail("too late"))
    with pytest.raises((InputError, MissingExtraError), match=words) as caught:
        secateur.run(recipe, subject(kind), tiny.chains(40), "params=75%", tmp_path / "out", **how)
    assert "\n" not in str(caught.value)


def test_quantised_weights_are_refused_by_name(tmp_path):
    """Of a subject that is given to the recipe itself: a run makes floats of them first."""
    quantization = pytest.importorskip("torchao.quantization")
    start = subject()
    quantization.quantize_(start.model.model, quantization.Int8WeightOnlyConfig())
    with pytest.raises(UnsupportedError, match=r"q_proj\.weight is quantised, and folding needs .*lora_bits=4"):
        results(tmp_path, "params=75%", model=start)


def test_a_model_that_writes_more_is_refused_before_it_is_trained(tmp_path, monkeypatch):
    """As if the table had forgotten what an attention writes."""
    writers = Transformer.writers
    monkeypatch.setattr(pat, "prove", prove)
    monkeypatch.setattr(Transformer, "writers", lambda self: [one for one in writers(self) if "0.self_attn" not in one])
    with pytest.raises(UnsupportedError, match="LlamaForCausalLM writes more into its residual stream"):
        results(tmp_path, "params=75%")
