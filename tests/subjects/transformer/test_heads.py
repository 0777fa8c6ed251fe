"""Heads that are silenced, cut and replayed: exact against the model itself."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

import secateur
import tiny
from secateur.errors import InputError, UnsupportedError
from secateur.subjects import open_subject
from secateur.subjects.transformer import heads
from secateur.subjects.transformer.heads import Replay, silence_heads
from secateur.vocabulary import Selection

KINDS = ("gpt2", "llama", "qwen3", "mixtral")
SOME = [(0, 0), (1, 2)]
GROUP = [*SOME, (1, 0), (1, 1), (1, 3)]
"""All heads of a group of the tiny Llama, all heads of a layer of the tiny GPT-2, and another."""


def make(kind):
    torch.manual_seed(1)
    return open_subject(tiny.uneven(tiny.model(kind)), tokenizer=tiny.tokenizer())


def ask(subject, seed=0):
    tokens = torch.randint(8, 60, (3, 9), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return tokens, subject.model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits


def patch_whole(subject, tokens, outputs):
    """The plain way: a whole pass, in which each layer's heads give [N, S, W] in place of their own outputs."""
    handles = []
    for layer, (consumer, _) in heads.find_outputs(subject).items():
        module = subject.model.get_submodule(consumer.module)
        handles.append(module.register_forward_pre_hook(lambda _, args, z=outputs[layer]: (z,)))
    with torch.no_grad():
        logits = subject.model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    for handle in handles:
        handle.remove()
    return logits


def read_whole(subject, tokens):
    """Layer -> what its output linear reads [N, S, W]."""
    found, handles = {}, []
    for layer, (consumer, _) in heads.find_outputs(subject).items():
        module = subject.model.get_submodule(consumer.module)
        handles.append(module.register_forward_pre_hook(lambda _, args, layer=layer: found.update({layer: args[0]})))
    with torch.no_grad():
        subject.model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_patched_with_its_own_output_changes_nothing(kind):
    subject = make(kind)
    tokens, logits = ask(subject)
    replay = Replay(subject)
    clean = replay.read(tokens)
    assert torch.equal(clean.logits, logits[:, -1])
    for layer in replay.places:  # all heads of the layer at once have their own
        torch.testing.assert_close(
            replay.run(clean.states[layer], clean.outputs, layer), logits[:, -1], atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_replay_in_few_bits_is_as_exact_as_these_are(kind, dtype):
    """All prompts at once round otherwise than one position alone: in bfloat16 a step is 8e-3 of a number."""
    subject = open_subject(tiny.uneven(tiny.model(kind)).to(dtype), tokenizer=tiny.tokenizer())
    replay = Replay(subject)
    frozen = replay.read(ask(subject)[0])
    replay.check(frozen)
    wrong = dataclasses.replace(frozen, logits=1.5 * frozen.logits)
    with pytest.raises(UnsupportedError, match=rf"or {dtype} rounds too much: open the model in float32"):
        replay.check(wrong)


def test_what_is_read_holds_the_last_position_alone():
    """Views of it would keep all positions of all layers."""
    frozen = Replay(make("llama")).read(torch.ones(4, 50, dtype=torch.long))
    for kept in (*frozen.outputs.values(), *frozen.states, frozen.logits):
        assert kept.untyped_storage().nbytes() == kept.numel() * kept.element_size()


def test_a_model_without_heads_is_refused_in_words():
    subject = make("gpt2")
    student, _ = subject.cut(Selection({f"layers.{at}.heads": np.zeros(4, bool) for at in range(3)}))
    with pytest.raises(UnsupportedError, match="has no attention heads to replay"):
        Replay(student)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("everywhere", [False, True])
def test_a_replay_is_a_whole_pass_with_all_heads_frozen(kind, everywhere):
    """All heads corrupted with MLPs computed anew, and one head; at the last position or at all, which is the same."""
    subject = make(kind)
    (tokens, _), (others, _) = ask(subject), ask(subject, 1)
    replay = Replay(subject)
    clean, corrupted = replay.read(tokens), replay.read(others)
    whole, other = read_whole(subject, tokens), read_whole(subject, others)
    torch.testing.assert_close(
        replay.run(clean.states[0], corrupted.outputs), patch_whole(subject, tokens, other)[:, -1], atol=1e-5, rtol=0
    )
    size = replay.places[1][0].block
    patched = {layer: z.clone() for layer, z in whole.items()}
    where = slice(None) if everywhere else slice(-1, None)
    patched[1][:, where, size : 2 * size] = other[1][:, where, size : 2 * size]
    outputs = dict(clean.outputs)
    outputs[1] = clean.outputs[1].clone()
    outputs[1][:, size : 2 * size] = corrupted.outputs[1][:, size : 2 * size]
    expected = patch_whole(subject, tokens, patched)[:, -1]
    torch.testing.assert_close(replay.run(clean.states[1], outputs, 1), expected, atol=1e-5, rtol=0)
    assert (expected - clean.logits).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("some", [SOME, GROUP])
def test_silenced_is_subtracted_is_masked_is_cut(kind, some):
    """Zeroing z, taking z W_O away, zeroing the columns of W_O and slicing give one model; the bias stays."""
    subject = make(kind)
    for consumer, _ in heads.find_outputs(subject).values():
        bias = getattr(subject.model.get_submodule(consumer.module), "bias", None)
        if bias is not None:
            torch.nn.init.normal_(bias)
    _, before = ask(subject)
    with silence_heads(subject, some):
        silenced = ask(subject)[1]
    assert torch.equal(ask(subject)[1], before)
    assert not torch.equal(silenced, before)
    handles = []
    for layer, head in some:
        consumer, _ = heads.find_outputs(subject)[layer]
        module = subject.model.get_submodule(consumer.module)
        part = slice(head * consumer.block, (head + 1) * consumer.block)
        weight = module.weight[part] if consumer.conv1d else module.weight[:, part].T

        def subtract(_, args, output, part=part, weight=weight):
            return output - args[0][..., part] @ weight

        handles.append(module.register_forward_hook(subtract))
    torch.testing.assert_close(ask(subject)[1], silenced, atol=1e-5, rtol=1e-5)
    for handle in handles:
        handle.remove()
    for mask in (False, True):
        student, cut = heads.cut_heads(subject, some, mask=mask)
        torch.testing.assert_close(ask(student)[1], silenced, atol=1e-5, rtol=1e-5)
        assert heads.count_heads(student) == heads.count_heads(subject) - len(some)
        assert sum(gone for site, (gone, _) in cut.removed.items() if site.endswith(".heads")) == len(some)
        assert (cut.after["params"] == cut.before["params"]) == (mask or (kind != "gpt2" and some is SOME))
        assert student.units().cost()["params"] == cut.after["params"]
    assert torch.equal(ask(subject)[1], before)


def test_no_head_is_the_model_itself():
    subject = make("llama")
    _, before = ask(subject)
    with silence_heads(subject, []):
        assert torch.equal(ask(subject)[1], before)
    student, cut = heads.cut_heads(subject, [])
    assert cut.is_noop
    assert torch.equal(ask(student)[1], before)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_switch_at_inference_reaches_generation_with_a_cache(kind, tmp_path):
    """What is generated with the switch on is what the cut model writes; afterwards all is as before."""
    subject = make(kind)
    heads.write_lists(tmp_path / "heads.json", subject, {"trust-context": GROUP, "trust-memory": [(0, 1)]})
    tokens, _ = ask(subject)
    how = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    plain = subject.model.generate(tokens, **how)
    with secateur.heads(subject.model, "trust-context", lists=tmp_path):
        written = subject.model.generate(tokens, use_cache=True, **how)
        with secateur.heads(subject.model, [(0, 1)]):  # one inside the other
            inside = ask(subject)[1]
    with silence_heads(subject, [*GROUP, (0, 1)]):
        assert torch.equal(ask(subject)[1], inside)
    student, _ = heads.cut_heads(subject, GROUP)
    assert torch.equal(student.model.generate(tokens, use_cache=True, **how), written)
    assert torch.equal(subject.model.generate(tokens, **how), plain)


def test_a_switch_goes_where_the_block_fails():
    subject = make("gpt2")
    _, before = ask(subject)
    with pytest.raises(KeyError), secateur.heads(subject.model, SOME):
        raise KeyError
    assert torch.equal(ask(subject)[1], before)


def test_lists_that_do_not_fit_are_refused(tmp_path):
    subject = make("llama")
    file = tmp_path / "heads.json"
    with (
        pytest.raises(InputError, match="no is not there: give lists"),
        secateur.heads(subject.model, "a", lists=file.parent / "no"),
    ):
        pass
    heads.write_lists(file, make("gpt2"), {"trust-context": SOME})
    with (
        pytest.raises(InputError, match="12 heads in 3 layers, and this one has 32 in 4"),
        secateur.heads(subject, "a", file),
    ):
        pass
    heads.write_lists(file, subject, {"trust-context": SOME})
    with (
        pytest.raises(InputError, match="no list 'trust': it has trust-context"),
        secateur.heads(subject, "trust", file),
    ):
        pass
    lists = [json.dumps({"heads": [8] * 4, "lists": {"a": some}}) for some in ([[0]], [[0, 1.9]], [[True, 1]], ["01"])]
    for text in (
        "[]",
        "{",
        *lists,
        '{"heads": [1e999], "lists": {}}',
        "[" * 200_000,
        '{"heads": [], "lists": {}, "weights": [1]}',
    ):
        file.write_text(text)
        with (
            pytest.raises(InputError, match="holds no lists of heads") as error,
            secateur.heads(subject, "a", file),
        ):
            pass
        assert "\n" not in str(error.value)
    for pairs in ([3, 5], [(0, 1.5)], ["01"], [(1, 2, 3)]):
        with pytest.raises(InputError, match="is no head: give pairs of whole numbers"), secateur.heads(subject, pairs):
            pass
    for wrong in ((9, 0), (0, 8), (0, -1)):
        with (
            pytest.raises(InputError, match=f"layer {wrong[0]} has {0 if wrong[0] else 8} heads"),
            silence_heads(subject, [wrong]),
        ):
            pass


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_lists_are_of_the_weights_that_were_scored(tmp_path, kind):
    """Of the same model in fewer bits, too; not of what was masked, trained, or begun anew."""
    subject, file = make(kind), tmp_path / "heads.json"
    heads.write_lists(file, subject, {"trust-context": SOME})
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        with secateur.heads(subject.copy().model.to(dtype), "trust-context", file):
            pass
    other = open_subject(tiny.uneven(tiny.model(kind, seed=5), seed=5), tokenizer=tiny.tokenizer())
    for wrong in (heads.cut_heads(subject, [(1, 2)], mask=True)[0], other):
        with (
            pytest.raises(InputError, match="of a model with other weights in its heads"),
            secateur.heads(wrong, "trust-context", file),
        ):
            pass
    data = json.loads(file.read_text())
    del data["weights"]  # written by hand
    file.write_text(json.dumps(data))
    with secateur.heads(other, "trust-context", file):
        pass


def test_what_can_not_be_replayed_is_refused():
    with pytest.raises(UnsupportedError, match="heads are replayed in decoders"):
        Replay(open_subject(tiny.model("bert"), tokenizer=tiny.tokenizer()))
    subject = make("gpt2")
    replay = Replay(subject)
    frozen = replay.read(ask(subject)[0])
    mlp = subject.model.transformer.h[1].mlp
    plain = mlp.forward
    mlp.forward = lambda states: plain(states) + states.mean(1, keepdim=True)  # looks at other positions
    with pytest.raises(UnsupportedError, match="pass something between positions"):
        replay.check(replay.read(ask(subject)[0]))
    mlp.forward = lambda states: plain(states[..., :5])
    with pytest.raises(UnsupportedError, match="can't be run one by one"):
        replay.check(frozen)
    del mlp.forward
    replay.check(frozen)


def test_a_width_that_heads_do_not_make_is_refused():
    subject = make("gpt2")
    consumer = heads.find_outputs(subject)[1][0]
    module = subject.model.get_submodule(consumer.module)
    module.weight = torch.nn.Parameter(module.weight[:-1])
    with pytest.raises(InputError, match="reads 31 numbers, and no 4 heads of 8 do"):
        heads.find_outputs(subject)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_heads_that_are_masked_are_silent_and_hold_no_group_back(kind):
    subject = make(kind)
    width = subject.widths()[0]
    *first, last = ((0, head) for head in range(width.heads // width.kv if width.has_groups else 2))
    assert heads.find_silent(subject) == []
    masked, _ = heads.cut_heads(subject, first, mask=True)
    assert heads.find_silent(masked) == first
    assert heads.count_heads(masked) == heads.count_heads(subject) - len(first)
    keep, left = heads.plan_cut(masked, [last])
    assert not left
    if kind == "llama":
        assert np.flatnonzero(~keep["layers.0.kv_groups"]).tolist() == [0]
        small, _ = heads.cut_heads(masked, [last])
        with silence_heads(subject, [*first, last]):
            torch.testing.assert_close(ask(small)[1], ask(subject)[1], atol=1e-5, rtol=1e-5)
