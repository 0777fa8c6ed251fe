"""A student taught by its teachers: nearer afterwards, an ordinary model, resumable; what can not be is one line."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    PreTrainedTokenizerFast,
)

import secateur
import second_device
import tiny
import vision_models
from chat_server import say, speaking
from chat_server import served as serving
from pictures import mask_folder
from secateur._utils.rundir import lock_folder
from secateur.clients.chat import Local
from secateur.data import examples, texts
from secateur.errors import (
    DataError,
    InputError,
    MendedWarning,
    ModelError,
    RunError,
    SecateurError,
    ServerError,
    UnsupportedError,
)
from secateur.recover.distillation import teachers
from secateur.recover.training import loop, rehearsal
from secateur.reports import evidence
from secateur.runs.backends.language import Language
from secateur.runs.executor import report
from secateur.select.pattern import n_of_m
from secateur.subjects import matrices, open_subject

QUICK = {"steps": 12, "batch": 8, "length": 16, "lr": 3e-3}
TEXTS = tiny.chains(400)
HELD = tiny.chains(60, 5)
AO = all(importlib.util.find_spec(name) for name in ("torchao", "compressed_tensors"))


def save(model, path):
    model.save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


def classifier(seed, classes=3, labels=None):
    torch.manual_seed(seed)
    how = {"num_labels": classes} if labels is None else {"id2label": dict(enumerate(labels)),
                                                          "label2id": {n: i for i, n in enumerate(labels)}}  # fmt: skip
    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, pad_token_id=0, **how,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    model.classifier.weight.data *= 40
    return model.eval()


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    save(tiny.taught(tiny.model("llama"), 60), root / "teacher")
    save(tiny.taught(tiny.model("llama", 3), 30, 1), root / "second")
    save(tiny.model("llama", 1), root / "student")
    save(tiny.model("gpt2", 2), root / "gpt2")
    return root


def taught(places, out, teachers="teacher", **how):
    named = [teachers] if isinstance(teachers, str) else teachers
    return secateur.distill(places / "student", [places / name for name in named], TEXTS, out, **{**QUICK, **how})


def loyal(row):
    return row.before["probability_loyalty"].value, row.after["probability_loyalty"].value


# -------------------------------------------------------------------------------------------------------------- taught


def test_a_student_comes_nearer_to_its_teacher_and_is_an_ordinary_model(places, tmp_path):
    before = load_file(places / "student" / "model.safetensors")
    row = taught(places, tmp_path / "out", steps=40)
    first, last = loyal(row)
    assert last > first + 0.1
    assert row.verdict.startswith("met: probability loyalty")
    assert row.after["perplexity"].value < row.before["perplexity"].value
    assert row.baselines["teacher"]["perplexity"].value < row.after["perplexity"].value
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    batch = tiny.tokenizer()(TEXTS[:2], return_tensors="pt", padding=True, return_token_type_ids=False)
    assert torch.isfinite(model(**batch).logits).all()
    assert all(torch.equal(before[n], t) for n, t in load_file(places / "student" / "model.safetensors").items())
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "# student taught by teacher" in card
    assert "\nmodel-index:\n- name: out\n" in card
    assert "AutoModelForCausalLM" in card
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "distill trained student for 40 steps" in page
    assert "probability loyalty" in page
    assert evidence.read(tmp_path / "out") == [row]
    assert report(tmp_path / "out").is_file()
    assert str(tmp_path) not in json.dumps(list(row.environment.values()), default=str)


def test_patience_judges_by_what_is_not_learned_and_keeps_the_best(places, tmp_path):
    row = taught(
        places, tmp_path / "out", steps=40, lr=3.0, patience=2, validation=0.2, training="evaluate_every=2,warmup=0.5"
    )
    seen = row.recovery.settings["evaluations"]
    best = min(seen, key=lambda pair: pair[1])[0]
    assert row.recovery.steps == seen[-1][0] < 40
    assert [step for step, _ in seen][-3] == best == row.recovery.settings["kept_step"]


def test_a_teacher_may_lie_on_another_device(places, tmp_path):
    with second_device.present():
        row = taught(places, tmp_path / "out", steps=3, device=second_device.NAME, teacher_device="cpu", teacher_bits=8)
        assert loyal(row)[1] > loyal(row)[0]
        subjects = [open_subject(places / name) for name in ("student", "teacher")]
        subjects[1].model.to(second_device.NAME)
        with pytest.raises(InputError, match="say device=cpu or teacher-device=card:0"):
            secateur.distill(*subjects, TEXTS, tmp_path / "apart", **QUICK)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"teacher_bits": 5}, "teacher-bits=5: give 8 or 4"),
        ({"teacher_device": "cuda:99"}, "'cuda:99' can't hold the model"),
        ({"teacher_device": "auto", "teacher_bits": 8}, "split as it is read from its folder, and not packed"),
        ({"server": "http://localhost:1/v1", "teacher_device": "cpu"}, "runs on its server"),
        ({"training": "lora_bits=4"}, "lora_bits=4 is of what adapters stand beside: give lora or dora, too"),
    ],
)
def test_where_a_teacher_or_integers_can_not_be_is_told_in_a_line(places, tmp_path, how, words):
    with pytest.raises(InputError, match=words) as caught:
        taught(places, tmp_path / "out", **how)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not importlib.util.find_spec("peft"), reason="needs peft")
def test_adapters_leave_a_plain_model_in_which_linears_have_moved(places, tmp_path):
    row = taught(places, tmp_path / "out", steps=40, lr=1e-2, lora=4)
    first, last = loyal(row)
    assert last > first + 0.02
    before, after = (load_file(place / "model.safetensors") for place in (places / "student", tmp_path / "out"))
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.endswith("_proj.weight") for name in moved)


def test_the_same_call_resumes_and_another_is_refused(places, tmp_path, monkeypatch, capsys):
    whole = taught(places, tmp_path / "whole", training="every=3")
    fetched, real = [], loop._fetch

    def stopping(batches, index):
        fetched.append(index)
        if len(fetched) == 8:
            raise KeyboardInterrupt
        return real(batches, index)

    monkeypatch.setattr(loop, "_fetch", stopping)
    with pytest.raises(KeyboardInterrupt):
        taught(places, tmp_path / "out", training="every=3")
    row = taught(places, tmp_path / "out", training="every=3")
    assert len(fetched) == 8 + 6  # what came after the checkpoint of step 6
    assert row.after == whole.after
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "whole"))
    assert one == other
    fetched.clear()
    assert "is complete since" not in capsys.readouterr().err
    assert taught(places, tmp_path / "out", training="every=3") == row
    assert "is complete since" in capsys.readouterr().err
    assert not fetched
    with pytest.raises(RunError, match="lr="):
        taught(places, tmp_path / "out", training="every=3", lr=1e-2)


@pytest.mark.parametrize("how", [{}, {"shares": [0.7, 0.3]}, {"choice": "label"}, {"choice": "confidence"}])
def test_several_teachers_are_followed_together(places, tmp_path, how):
    row = taught(places, tmp_path / "out", ["teacher", "second"], **how)
    assert row.verdict.startswith("met")
    assert row.baselines["teacher"]["params"].value == 2 * row.after["params"].value


def test_a_cache_of_all_tokens_teaches_as_the_live_teachers_do(places, tmp_path):
    live = taught(places, tmp_path / "live", ["teacher", "second"], temperature=2.0)
    cached = taught(places, tmp_path / "cached", ["teacher", "second"], temperature=2.0, cache=64)
    assert loyal(cached) == pytest.approx(loyal(live), abs=2e-3)
    few = taught(places, tmp_path / "few", cache=4)
    assert few.verdict.startswith("met")


@pytest.mark.wide
def test_a_teacher_behind_a_server_fills_the_cache_and_may_stop(places, tmp_path):
    answer = speaking(Local(AutoModelForCausalLM.from_pretrained(places / "teacher"), tiny.tokenizer()))
    asked, broken = [], [True]

    def flaky(body, headers):
        asked.append(body)
        return say(b"", 400) if broken[0] and len(asked) > 2 + held + 8 * 4 else answer(body, headers)

    def run(url, **how):
        return secateur.distill(
            places / "student", "far", TEXTS, tmp_path / "out", server=url, cache=8, **{**QUICK, "steps": 6, **how}
        )

    would = run("http://localhost:1/v1", dry_run=True).predicted
    held = int(would["server calls"]) - 2 - 8 * 6  # two probes, and what is trained on
    assert 0 < held <= 64
    assert would["cache bytes"] == 6 * 8 * 16 * (6 * 8 + 4)

    def again(url, **how):  # a second student, and what it would ask
        return secateur.distill(places / "second", "far", TEXTS, tmp_path / "more", server=url, cache=8, **{
            **QUICK, "steps": 6, "cache_at": tmp_path / "said", **how})  # fmt: skip

    with serving(flaky) as url:
        with pytest.raises(ServerError, match="the same call goes on"):
            run(url)
        broken[0] = False
        asked.clear()
        row = run(url)
        rest = len(asked)
        again(url)
        assert len(asked) == rest + held + 2 + 8 * 6
        assert again(url, dry_run=True).predicted["server calls"] == 0
        assert again(url, dry_run=True, steps=7).predicted["server calls"] == 1 + 8
        again(url, lr=1e-3, overwrite=True)
        assert len(asked) == rest + held + 2 + 8 * 6
        asked = asked[:rest]
    assert all(body["model"] == "far" for body in asked)
    # A probe, and the batches that were not there yet: a row of the fourth may have met the refusal, too.
    assert len(asked) in (1 + 8 * (6 - 4), 1 + 8 * (6 - 3))
    assert row.after["perplexity"].value < row.before["perplexity"].value
    assert row.verdict.startswith("met: served label loyalty")
    # Held against the same teacher in memory: it is the same share of the same tokens.
    near = taught(places, tmp_path / "near", steps=1)
    told = row.before["served_label_loyalty"], near.before["label_loyalty"]
    assert told[0].value == pytest.approx(told[1].value, abs=0.05)
    assert told[0].low < told[0].value < told[0].high


def test_a_server_scores_what_the_student_writes(places, tmp_path):
    asked, answer = [], speaking(Local(AutoModelForCausalLM.from_pretrained(places / "teacher"), tiny.tokenizer()))

    def noting(body, headers):
        asked.append(body["prompt"])
        return answer(body, headers)

    how = {**QUICK, "steps": 4, "server": "http://localhost:1/v1", "on_policy": 1.0, "prompt": 4}
    would = secateur.distill(places / "student", "far", TEXTS, tmp_path / "out", **how, dry_run=True).predicted
    with serving(noting) as url:
        row = secateur.distill(places / "student", "far", TEXTS, tmp_path / "out", **{**how, "server": url})
    assert len(asked) == would["server calls"]
    learned = {tuple(block) for block in asked if not isinstance(block, str)}
    real = {tuple(ids) for ids in tiny.tokenizer()(TEXTS, add_special_tokens=False)["input_ids"]}
    assert any(len(ids) == 16 and ids not in real for ids in learned)
    assert [loss > 0 for _, loss in row.recovery.losses] == [True] * 4
    with pytest.raises(InputError, match="serves forward KL"):
        secateur.distill(places / "student", "far", TEXTS, tmp_path / "no", **{**how, "direction": "reverse"})


@pytest.mark.skipif(not AO, reason="the extra `quantise`")
@pytest.mark.parametrize("bits", [8, 4])
def test_a_sparse_student_learns_in_integers_and_is_measured_as_saved(places, tmp_path, bits):
    subject = open_subject(places / "student")
    for matrix in matrices.matrices(subject.model, subject.layers()).values():
        matrix.weight.mul_(n_of_m(matrix.weight.abs(), 2, 4))
    subject.save(tmp_path / "sparse")
    learn = partial(secateur.distill, tmp_path / "sparse", places / "teacher", TEXTS, held_out=HELD)
    row = learn(tmp_path / "out", bits=bits, **QUICK)
    first, last = loyal(row)
    assert last > first
    assert row.settings["bits"] == bits
    assert any(f"28 linears in {bits} bits, 1 left as they are: " in note for note in row.settings["notes"])
    # What was measured is what stands there, and zeros are where they were.
    file = tmp_path / "out" / "model.safetensors"
    assert row.after["bytes"].value == file.stat().st_size < 0.5 * row.before["bytes"].value
    assert row.after["zeros"].value >= 0.5
    again = open_subject(tmp_path / "out", quantised=True)
    for name, matrix in Language().matrices(again).items():
        assert not torch.count_nonzero(matrix[matrices.matrices(subject.model)[name].weight == 0]), name
    here = Language().environment(again, 8, 16, None)
    _, after, _ = Language().compare(open_subject(places / "teacher"), again, texts.read(HELD), here)
    assert after["perplexity"].value == pytest.approx(row.after["perplexity"].value, rel=1e-6)
    # And it answered in integers from the first step on.
    plain = learn(tmp_path / "plain", **{**QUICK, "steps": 1}).recovery.losses[0][1]
    assert row.recovery.losses[0][1] != pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize(
    ("student", "bits", "how", "words"),
    [
        ("student", 3, {}, "bits=3: give 8 or 4, or 0 for floating point"),
        ("gpt2", 8, {"align": True}, r"h\.0\.attn\.c_attn\.weight is in no linear, [^\n]*quantise by `export`"),
    ],
)
def test_bits_that_can_not_be_are_refused(places, tmp_path, student, bits, how, words):
    with pytest.raises(InputError if bits == 3 else UnsupportedError, match=words):
        secateur.distill(places / student, places / "teacher", TEXTS, tmp_path / "out", bits=bits, **QUICK, **how)
    assert not (tmp_path / "out").exists()


def test_an_assistant_learns_first_and_teaches_the_student(places, tmp_path, capsys):
    row = taught(places, tmp_path / "out", assistants=[places / "second"])
    told = [line.partition(" of ")[0] for line in capsys.readouterr().err.splitlines() if ": step 12 of" in line]
    assert told == ["assistant 1: step 12", "student: step 12"]
    assert (tmp_path / "out" / "work" / "link-0").is_dir()
    assert (tmp_path / "out" / "work" / "link-1").is_dir()
    (between,) = row.settings["assistants"]
    assert between["steps"] == 12
    assert row.verdict.startswith("met")
    direct = taught(places, tmp_path / "direct")
    assert loyal(direct) != loyal(row)


def test_a_student_that_writes_itself_is_scored_by_its_teacher(places, tmp_path):
    row = taught(places, tmp_path / "out", on_policy=1.0, prompt=4, direction="reverse", steps=20)
    assert row.verdict.startswith("met")
    assert row.recovery.steps == 20


def test_what_is_tried_of_a_student_that_writes_changes_nothing_and_refuses_before_anything_is_written(
    places, tmp_path, monkeypatch
):
    how = {"on_policy": 0.5, "prompt": 4, "direction": "js", "steps": 4}
    tried = taught(places, tmp_path / "tried", **how)
    with monkeypatch.context() as patch:
        patch.setattr("secateur.runs.distilling.trial.try_losses", lambda *_: None)
        plain = taught(places, tmp_path / "plain", **how)
    assert tried.recovery.losses == plain.recovery.losses
    for name in ("model.safetensors", "generation_config.json"):
        assert (tmp_path / "tried" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()

    def fails(*_, **__):
        raise ValueError("no")

    monkeypatch.setattr(tiny.LlamaForCausalLM, "generate", fails)
    with pytest.raises(InputError, match=r"can't write on from a prompt, as on-policy asks: ValueError: no$"):
        taught(places, tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "how"),
    [(torch.float32, {}), (torch.bfloat16, {"match": "model.layers.1", "validation": 0.2, "lora": 2})],
    ids=["float32", "half precision"],
)
def test_hidden_states_of_another_width_go_through_a_projection(places, tmp_path, kind, how):
    if "lora" in how:
        pytest.importorskip("peft")
    thin = tiny.LlamaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, pad_token_id=0, eos_token_id=6, bos_token_id=5,
    )  # fmt: skip
    torch.manual_seed(0)
    save(tiny.LlamaForCausalLM(thin).to(kind), tmp_path / "thin")
    row = secateur.distill(tmp_path / "thin", places / "teacher", TEXTS, tmp_path / "out", hidden=True, **QUICK, **how)
    assert row.verdict.startswith("met")
    assert not [name for name in load_file(tmp_path / "out" / "model.safetensors") if "projection" in name]


def test_a_dry_run_tells_what_it_would_take_and_writes_nothing(places, tmp_path):
    row = taught(places, tmp_path / "out", dry_run=True, steps=1000, cache=4)
    assert not (tmp_path / "out").exists()
    assert row.verdict == "dry run"
    assert row.predicted["tokens"] == 1000 * 8 * 16
    assert row.predicted["trained parameters"] == row.predicted["params"] == row.predicted["teacher parameters"] > 0
    assert row.predicted["seconds"] == pytest.approx(1000 * row.predicted["seconds per step"])


def test_embeddings_of_a_thinner_student_come_near(tmp_path):
    tiny.folder("bert", tmp_path / "wide", sentence=True)
    tiny.folder("distilbert", tmp_path / "thin", sentence=True)
    row = secateur.distill(tmp_path / "thin", tmp_path / "wide", TEXTS, tmp_path / "out", **QUICK)
    assert row.after["cosine"].value > row.before["cosine"].value
    assert (tmp_path / "out" / "modules.json").is_file()
    with pytest.raises(UnsupportedError, match="no mean"):
        secateur.distill(tmp_path / "thin", [tmp_path / "wide"] * 2, TEXTS, tmp_path / "two", **QUICK)


def save_masked_pair(folder):
    """A teacher and a student of masked tokens."""
    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    for seed, name in enumerate(("teacher", "student")):
        torch.manual_seed(seed)
        save(BertForMaskedLM(config), folder / name)


@pytest.mark.parametrize("cache", [0, "all"])
@pytest.mark.parametrize(
    ("kind", "how"), [("masked", {}), ("masked", {"choice": "label"}), ("llama", {"choice": "confidence"})]
)
def test_teachers_that_differ_by_padding_teach_as_those_without_it(tmp_path, kind, how, cache):
    for seed, name in enumerate(("plain", "second", "student")):
        save(tiny.model(kind, seed), tmp_path / name)
    padded = tiny.model(kind, 0)
    padded.resize_token_embeddings(72, mean_resizing=False)
    padded.get_output_embeddings().weight.data[64:] = 5.0  # what would be likeliest, if it were asked for
    save(padded, tmp_path / "padded")
    found = []
    for name in ("plain", "padded"):
        above = [tmp_path / name, tmp_path / "second"]
        more = {**QUICK, "steps": 3, "cache": cache, **how}
        row = secateur.distill(tmp_path / "student", above, TEXTS, tmp_path / f"of-{name}", **more)
        found.append((row.after["probability_loyalty"].value, load_file(tmp_path / f"of-{name}/model.safetensors")))
    (loyalty, one), (same_loyalty, other) = found
    assert same_loyalty == pytest.approx(loyalty, abs=1e-5)
    for key, weight in one.items():
        torch.testing.assert_close(other[key], weight, rtol=1e-5, atol=1e-5)


# -------------------------------------------------------------------------------------------------------------- cached


def kept(out, number=0):
    return sorted((out / "work" / f"predictions-{number}").glob("*.safetensors"))


def same(live, cached):
    """They ended alike, but for what half precision rounds off."""
    assert set(live.after) == set(cached.after)
    for name in ("probability_loyalty", "cosine", "accuracy", "perplexity", "rmse"):
        if name in live.after:
            assert cached.after[name].value == pytest.approx(live.after[name].value, rel=5e-3, abs=5e-3)


@pytest.mark.wide
def test_all_that_a_network_is_told_is_kept_and_each_example_asked_once(nets, monkeypatch):
    asked = []
    real = teachers._tokens
    monkeypatch.setattr(teachers, "_tokens", lambda batch: asked.append(len(batch["inputs"])) or real(batch))
    how = {"temperature": 2.0, "direction": "js", "steps": 30}
    live, cached = of_nets(nets, out="live", **how), of_nets(nets, out="cached", cache="all", **how)
    same(live, cached)
    assert cached.verdict.startswith("met")
    assert sum(asked) == 360, "each example of the training part once, in thirty steps of 32"
    assert len(kept(nets / "cached")) == 3
    both = {"teacher": ["wide", "thin"], "student": "thin", "steps": 8}
    for number, more in enumerate(({"shares": [3, 1]}, {"choice": "confidence"})):
        one, other = (of_nets(nets, out=f"{number}{cache}", cache=cache, **both, **more) for cache in (0, "all"))
        same(one, other)
        assert len(kept(nets / f"{number}all", 1)) == 3


def test_a_cache_of_a_network_is_gone_on_with_mended_and_tied_to_its_teacher(nets):
    of_nets(nets, out="whole", cache="all", steps=8)
    for place in ("part/work", "kept"):
        shutil.copytree(nets / "whole" / "work" / "predictions-0", nets / place / "predictions-0")
    shutil.copy(nets / "whole" / "run.yaml", nets / "part")  # as a run leaves it that was killed before it trained
    damaged = kept(nets / "part")[1]
    good = damaged.read_bytes()
    damaged.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.warns(MendedWarning, match=f"1 of 3 files in .* missing, damaged or cut short, {damaged.name} the"):
        of_nets(nets, out="part", cache="all", steps=8)
    assert damaged.read_bytes() == good
    one, other = ((nets / name / "model.safetensors").read_bytes() for name in ("whole", "part"))
    assert one == other
    with pytest.raises(InputError, match="is of another teacher"):
        of_nets(nets, out="other", teacher="thin", cache="all", cache_at=str(nets / "kept"), steps=8)


@pytest.mark.parametrize("cache", [8, "all"])
def test_a_second_student_asks_for_nothing_that_a_cache_holds(places, tmp_path, monkeypatch, cache):
    """And learns as it would from a cache of its own; of another teacher it takes none, and leaves nothing behind."""
    where = {"cache": cache, "cache_at": tmp_path / "said", "steps": 6}
    taught(places, tmp_path / "first", **where)
    assert not list((tmp_path / "first" / "work").glob("predictions*"))
    asked, real = [], teachers.live
    monkeypatch.setattr(teachers, "live", lambda *how: partial(noted, asked, real(*how)))
    row = taught(places, tmp_path / "again", seed=0, lr=1e-3, **where)
    assert len(asked) <= 2, "to see that it can be compared, and what it gives; no more for six batches"
    own = taught(places, tmp_path / "own", lr=1e-3, **{**where, "cache_at": ""})
    assert row.after == own.after
    assert row.settings["cache_at"] == str(tmp_path / "said")
    with pytest.raises(InputError, match=r"said/predictions-0 is of another teacher .*: use another folder") as caught:
        taught(places, tmp_path / "other", "second", **where)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "other").exists()
    with lock_folder(tmp_path / "said" / "predictions-0"), pytest.raises(RunError, match="in use by another run"):
        taught(places, tmp_path / "busy", **where)


def noted(asked, ask, batch, **how):
    asked.append(batch)
    return ask(batch, **how)


@pytest.mark.wide
def test_all_that_encoders_and_language_models_are_told_is_kept(places, labelled, tmp_path):
    tiny.folder("bert", tmp_path / "wide", sentence=True)
    tiny.folder("distilbert", tmp_path / "thin", sentence=True)
    for kind in ("bert", "distilbert"):
        tiny.folder(kind, tmp_path / kind)
    cases = [
        (tmp_path / "thin", tmp_path / "wide", TEXTS, 12, {}),
        (labelled / "student", labelled / "teacher", labelled / "data.jsonl", 12, {"task": 0.1}),
        (tmp_path / "distilbert", tmp_path / "bert", TEXTS, 4, {}),
        (places / "student", places / "teacher", TEXTS, 4, {"direction": "reverse", "skew": 0.1}),
    ]
    for number, (student, teacher, data, files, how) in enumerate(cases):
        how = {**QUICK, "steps": 4, **how}
        live, cached = (
            secateur.distill(student, teacher, data, tmp_path / f"{number}-{cache}", cache=cache, **how)
            for cache in (0, "all")
        )
        same(live, cached)
        assert len(kept(tmp_path / f"{number}-all")) == files


def test_each_text_is_asked_once_where_some_of_them_judge_the_training(labelled, tmp_path, monkeypatch):
    asked, real = [], teachers.Outputs._ask

    def ask(outputs, index):
        asked.append(len(outputs._batches[index]["input_ids"]))
        return real(outputs, index)

    monkeypatch.setattr(teachers.Outputs, "_ask", ask)
    how = {**QUICK, "steps": 2, "validation": 0.2}
    live, cached = (
        secateur.distill(
            labelled / "student",
            labelled / "teacher",
            labelled / "data.jsonl",
            tmp_path / f"{cache}",
            cache=cache,
            **how,
        )
        for cache in (0, "all")
    )
    same(live, cached)
    assert sum(asked) == 380, "each text that is not measured on"


def test_masked_tokens_are_kept_by_their_number_or_all(tmp_path):
    save_masked_pair(tmp_path)
    rows = [
        secateur.distill(tmp_path / "student", tmp_path / "teacher", TEXTS, tmp_path / f"{cache}", cache=cache, **QUICK)
        for cache in (0, 64, "all")
    ]
    for row in rows[1:]:
        same(rows[0], row)


def test_a_dry_run_tells_what_a_cache_would_take(places, nets):
    (row,) = [of_nets(nets, out="no", cache="all", dry_run=True, steps=500)]
    assert row.predicted["cache bytes"] == 360 * 3 * 2
    one = taught(places, nets / "no", dry_run=True, steps=1000, cache=4)
    assert one.predicted["cache bytes"] == 1000 * 8 * 16 * (6 * 4 + 4)
    whole = taught(places, nets / "no", dry_run=True, steps=10, cache="all")
    assert whole.predicted["cache bytes"] == 10 * 8 * 16 * 64 * 2
    assert not (nets / "no").exists()


# --------------------------------------------------------------------------------------------------------- classifiers


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    root = tmp_path_factory.mktemp("labelled")
    rows = [{"text": text, "label": len(text) % 3} for text in TEXTS]
    (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save(classifier(0), root / "teacher")
    save(classifier(1), root / "student")
    return root


def test_a_classifier_learns_its_teachers_classes(labelled, tmp_path):
    row = secateur.distill(
        labelled / "student", labelled / "teacher", labelled / "data.jsonl", tmp_path / "out",
        **{**QUICK, "steps": 40, "task": 0.1},
    )  # fmt: skip
    assert row.verdict.startswith("met")
    assert loyal(row)[1] > loyal(row)[0]
    assert {"accuracy", "label_loyalty"} <= set(row.after)


@pytest.mark.parametrize("count", [1, 2])
def test_a_classifier_of_texts_without_labels_is_judged_by_its_loyalty(labelled, tmp_path, count):
    """To several teachers together, too, who have no states in common."""
    save(classifier(2), tmp_path / "second")
    row = secateur.distill(
        labelled / "student", [labelled / "teacher", tmp_path / "second"][:count], TEXTS, tmp_path / "out",
        **{**QUICK, "steps": 40},
    )  # fmt: skip
    assert row.verdict.startswith("met: probability loyalty")
    assert ("spearman" in row.after) == (count == 1)
    assert "not_measured" not in row.settings
    assert len(row.settings["notes"]) == (2 if count == 2 else 0)


def test_classes_that_differ_are_refused(labelled, tmp_path):
    save(classifier(0, 4), tmp_path / "four")
    save(classifier(0, labels=["oak", "elm", "ash"]), tmp_path / "named")
    save(classifier(0, labels=["oak", "ash", "elm"]), tmp_path / "moved")
    for student, teacher, words in [
        (labelled / "student", tmp_path / "four", "has 3 classes and its teacher 4"),
        (tmp_path / "named", tmp_path / "moved", "class 1 is 'elm' for the student and 'ash' for its teacher"),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            secateur.distill(student, teacher, TEXTS, tmp_path / "out", **QUICK)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="has 3 classes and its assistant 4: use models of the same ones"):
        secateur.distill(
            labelled / "student", labelled / "teacher", TEXTS, tmp_path / "out", assistants=[tmp_path / "four"], **QUICK
        )
    assert not (tmp_path / "out").exists()


def test_one_number_per_text_is_learned_by_its_square(tmp_path):
    for seed, name in enumerate(("teacher", "student")):
        save(classifier(seed, 1), tmp_path / name)
    rows = [{"text": text, "label": len(text) / 3} for text in TEXTS]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def told(**how):
        return secateur.distill(
            tmp_path / "student", how.pop("teachers", tmp_path / "teacher"), tmp_path / "data.jsonl", tmp_path / "out",
            **{**QUICK, "steps": 40, **how},
        )  # fmt: skip

    for how, words in [
        ({}, "direction forward compares classes, and the student tells numbers: use --direction mse"),
        ({"direction": "mse", "task": 1.0}, "task is cross-entropy of classes, and the student tells numbers"),
        ({"direction": "mse", "teachers": [tmp_path / "teacher"] * 2}, "name one teacher"),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            told(**how)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    row = told(direction="mse")
    assert row.verdict.startswith("met: rmse")
    assert row.after["rmse"].value < 0.7 * row.before["rmse"].value
    assert {"pearson", "rank_loyalty"} <= set(row.after)
    assert not {"accuracy", "label_loyalty"} & set(row.after)


def test_a_task_of_tokens_needs_labels_of_tokens(labelled, tmp_path):
    for name in ("teacher", "student"):
        save(BertForTokenClassification(classifier(0).config), tmp_path / name)
    with pytest.raises(UnsupportedError, match="needs labels of words, in `ner_tags` or `labels`") as caught:
        secateur.distill(
            tmp_path / "student", tmp_path / "teacher", labelled / "data.jsonl", tmp_path / "out", task=1.0, **QUICK
        )
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_token_classifier_is_judged_by_labels_of_words_and_may_learn_them(tmp_path):
    for seed, name in enumerate(("teacher", "student")):
        config = classifier(0).config
        torch.manual_seed(seed)
        model = BertForTokenClassification(config)
        model.classifier.weight.data *= 40
        save(model, tmp_path / name)
    rows = [{"tokens": text.split(), "ner_tags": [len(word) % 3 for word in text.split()]} for text in TEXTS]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def run(out, **how):
        return secateur.distill(
            tmp_path / "student", tmp_path / "teacher", tmp_path / "data.jsonl", tmp_path / out, **{**QUICK, **how}
        )

    row = run("out")
    for part in (row.before, row.after, row.baselines["teacher"]):
        assert {"accuracy", "f1"} <= set(part)
    assert row.verdict.startswith("met: probability loyalty")
    learned = run("labels", task=20.0, steps=60)
    assert learned.after["accuracy"].value > 0.9 > row.after["accuracy"].value
    assert learned.after["f1"].value > 0.8
    rows[7]["ner_tags"][0] = 3
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match="has the label 3: the model has 3 classes, 0 to 2"):
        run("no")
    assert not (tmp_path / "no").exists()


# ------------------------------------------------------------------------------------------------------------ networks

NETS = """
import torch
from torch import nn


def net(seed, width):
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 3))
    made[2].weight.data *= 10
    return made


def wide():
    return net(0, 32)


def thin():
    return net(1, 8)


def four():
    return nn.Sequential(nn.Linear(8, 4))


def one():
    return nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 1))


def other():
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
"""


@pytest.fixture
def nets(tmp_path):
    (tmp_path / "nets.py").write_text(NETS)
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 8, generator=draw)
    np.savez(tmp_path / "data.npz", inputs=inputs.numpy(), labels=(inputs[:, 0] > 0).long().numpy())
    np.savez(tmp_path / "plain.npz", inputs=inputs.numpy())
    return tmp_path


def of_nets(nets, student="thin", teacher="wide", out="out", data="data.npz", **how):
    options = {"steps": 60, "batch": 32, "lr": 1e-2, **how}
    if isinstance(named := options.get("assistants"), str):
        options["assistants"] = [f"{nets}/nets.py:{named}"]
    teachers = [f"{nets}/nets.py:{name}" for name in ([teacher] if isinstance(teacher, str) else teacher)]
    return secateur.distill(f"{nets}/nets.py:{student}", teachers, nets / data, nets / out, **options)


@pytest.mark.usefixtures("programs")
def test_a_network_of_any_kind_learns_by_examples(nets):
    row = of_nets(nets, temperature=2.0)
    assert loyal(row)[1] > loyal(row)[0] + 0.1
    assert row.verdict.startswith("met")
    program = torch.export.load(nets / "out" / "model.pt2").module()
    assert program(torch.zeros(2, 8)).shape == (2, 3)


def test_a_network_with_broken_weights_is_refused_by_the_name_of_one(nets):
    (nets / "broken.py").write_text(NETS.replace("made[2].weight.data *= 10", "made[2].weight.data[0, 0] = torch.nan"))
    network, broken = f"{nets}/nets.py:thin", f"{nets}/broken.py:wide"
    for student, teacher, words in (
        (network, broken, r"2.weight of the teacher .*wide holds NaN or infinity: use an intact one"),
        (broken, network, r"2.weight holds NaN or infinity"),
    ):
        with pytest.raises(SecateurError, match=words):
            secateur.distill(student, teacher, nets / "data.npz", nets / "out", steps=2, batch=8)


def test_a_rate_of_zero_is_refused_before_anything_is_opened(tmp_path):
    with pytest.raises(InputError, match=r"lr=0 teaches nothing in 1000 steps: give a rate above 0"):
        secateur.distill("student", "teacher", "texts.txt", tmp_path / "out", lr=0.0)


@pytest.mark.usefixtures("programs")
def test_a_student_of_which_nothing_can_be_cut_is_taught_all_the_same(nets):
    data, teacher = examples.read(nets / "data.npz"), nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    row = secateur.distill(nn.Linear(8, 3), teacher, data=data, out=nets / "out", steps=3, batch=16)
    assert row.recovery.steps == 3
    assert secateur.load(nets / "out", original=nn.Linear(8, 3)).weight.shape == (3, 8)


@pytest.mark.usefixtures("programs")
def test_a_student_that_came_nearer_and_only_guesses_is_of_no_use(nets):
    labels = np.load(nets / "data.npz")["labels"]
    mixed = np.random.default_rng(0).permutation(labels)  # what no network can know
    np.savez(nets / "mixed.npz", inputs=np.load(nets / "data.npz")["inputs"], labels=mixed)
    row = of_nets(nets, data="mixed.npz")
    assert row.verdict.startswith("met")
    assert 0.4 < row.settings["chance"]["accuracy"] < 0.7
    assert "of no use: Accuracy" in evidence.describe_verdict(row)
    assert "quality lost" in (nets / "out/report.html").read_text()


@pytest.mark.usefixtures("programs")
def test_held_out_data_of_ones_own_is_what_a_student_is_measured_on(nets, monkeypatch):
    held = examples.read(nets / "data.npz").take(range(0, 400, 2))
    few = examples.read(nets / "data.npz").take(range(40))
    held.save(nets / "held.npz")
    few.save(nets / "few.npz")
    learned = set()
    take = examples.Batches.__getitem__
    monkeypatch.setattr(
        examples.Batches, "__getitem__", lambda self, i: (learned.add(len(self.data)), take(self, i))[1]
    )
    row = of_nets(nets, data="few.npz", held_out=nets / "held.npz", steps=20)
    assert learned == {40}, "all of the data is learned from"
    student = torch.export.load(nets / "out/model.pt2").module()
    right = float((student(held.inputs).argmax(-1) == held.labels).float().mean())
    assert row.after["accuracy"].value == pytest.approx(right)
    assert row.settings["held_out_sha256"] == held.digest
    assert row.settings["held_out"] == str(nets / "held.npz")
    assert "20 of 200 held-out examples are in the data, too" in row.settings["notes"][0]
    for other in (None, few):
        with pytest.raises(RunError, match="holds a run with held_out_sha256="):
            of_nets(nets, data="few.npz", held_out=other, steps=20)
    with pytest.raises(DataError, match="has no classes to measure quality by"):
        of_nets(nets, out="other", held_out=nets / "plain.npz")
    assert not (nets / "other").exists()


def test_a_network_takes_its_weights_from_a_file_or_a_folder(nets, tmp_path):
    torch.manual_seed(5)
    weights = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).state_dict()
    save_file(weights, nets / "weights.safetensors")
    row = of_nets(nets, weights=nets / "weights.safetensors", dry_run=True)
    assert row.predicted["params"] == 8 * 8 + 8 + 8 * 3 + 3
    of_nets(nets)
    again = secateur.distill(
        f"{nets}/nets.py:thin", f"{nets}/nets.py:wide", nets / "data.npz", nets / "again", weights=nets / "out",
        steps=5, batch=32, lr=1e-3,
    )  # fmt: skip
    assert loyal(again)[0] == pytest.approx(evidence.read(nets / "out")[0].after["probability_loyalty"].value)
    save_file({"0.weight": weights["0.weight"]}, nets / "half.safetensors")
    (nets / "none.safetensors").write_text("no tensors")
    for name, words in (("half", "of another network"), ("none", "can't be read as safetensors")):
        with pytest.raises(ModelError, match=words) as caught:
            of_nets(nets, weights=nets / f"{name}.safetensors")
        assert "\n" not in str(caught.value)


def test_modules_are_matched_by_patterns(nets):
    plain = of_nets(nets, steps=8)
    row = of_nets(nets, steps=8, match="0", match_weight=0.5, out="matched")
    assert row.recovery.losses[0][1] > plain.recovery.losses[0][1], "the same loss, and that of the features beside it"
    assert row.settings["match"] == ["0"]
    state = load_file(nets / "matched" / "model.safetensors")
    assert set(state) == set(load_file(nets / "out" / "model.safetensors")), "the adapter stays out"
    again = of_nets(nets, steps=8, match=["0=0", "2"], match_loss="cosine", match_weight=[1, 0.1], out="two")
    assert again.recovery.losses[0][1] != row.recovery.losses[0][1]
    with pytest.raises(InputError, match="'first' is no module of Sequential: near are"):
        of_nets(nets, match="first", out="no")


def test_what_warms_up_grows_from_nothing_over_its_share_of_the_steps(nets):
    plain = of_nets(nets, steps=4)
    for name, how in (("task", {"task": 5.0}), ("match", {"match": "0", "match_weight": 5.0})):
        full = of_nets(nets, steps=4, out=name, **how)
        both = [of_nets(nets, steps=4, out=f"{name}{over}", warm_up={name: over}, **how) for over in (4, 0.5)]
        for rising in both:
            assert rising.recovery.losses[0][1] == pytest.approx(plain.recovery.losses[0][1]), "it stands at 0 at first"
            assert rising.recovery.losses[-1][1] != pytest.approx(plain.recovery.losses[-1][1])
        assert full.recovery.losses[0][1] > plain.recovery.losses[0][1]
        assert both[0].recovery.losses != both[1].recovery.losses
    assert both[0].settings["warm_up"] == {"match": 4.0}


def test_modules_in_balance_count_as_much_as_the_predictions(nets):
    plain, even = (
        of_nets(nets, steps=2, out=out, match="0", match_weight=0.5, match_balance=out == "even")
        for out in ("plain", "even")
    )
    alone = of_nets(nets, steps=2).recovery.losses[0][1]
    assert even.recovery.losses[0][1] == pytest.approx(1.5 * alone, rel=1e-4)
    assert plain.recovery.losses[0][1] != pytest.approx(1.5 * alone, rel=1e-2)


@pytest.mark.wide
def test_buckets_are_between_the_likeliest_and_all(places, nets, tmp_path):
    plain, all_, some = (
        of_nets(nets, steps=4, out=str(n), **how)
        for n, how in enumerate(({}, {"buckets": [3, 1]}, {"buckets": [1, 1]}))
    )
    assert dict(all_.recovery.losses) == pytest.approx(dict(plain.recovery.losses))
    assert some.recovery.losses[0][1] < plain.recovery.losses[0][1], "what lies in one bucket is not told apart"
    rows = [
        taught(places, tmp_path / f"{buckets}{cache}", buckets=buckets, cache=cache)
        for buckets, cache in (((), 0), ((64, 1), 0), ((4, 2), 0), ((4, 2), "all"))
    ]
    assert loyal(rows[1]) == pytest.approx(loyal(rows[0]), abs=1e-3)
    assert loyal(rows[2]) != pytest.approx(loyal(rows[0]), abs=1e-5)
    assert rows[2].verdict.startswith("met")
    same(rows[2], rows[3])
    tiny.folder("bert", tmp_path / "encoder", sentence=True)
    with pytest.raises(UnsupportedError, match="this student tells none: leave them out"):
        secateur.distill(tmp_path / "encoder", tmp_path / "encoder", TEXTS, tmp_path / "no", buckets=[4, 2], **QUICK)


@pytest.mark.parametrize("how", [{"shares": [0, 1]}, {"shares": [1, 0]}, {"choice": "label"}, {}], ids=str)
def test_loyalty_is_to_the_teachers_that_are_asked(nets, how):
    """Not to the first of them: with all weight on one, the figures are those of that one alone."""
    both = of_nets(nets, teacher=["wide", "thin"], steps=4, **how)
    alone = [of_nets(nets, teacher=one, out=one, steps=4) for one in ("wide", "thin")]
    found, *others = map(loyal, (both, *alone))
    assert others[0] != others[1]
    to_each = [line for line in both.settings["notes"] if line.startswith("to the teacher")]
    assert [line.split()[3].rsplit(":", 1)[1] for line in to_each] == ["wide", "thin"]
    if how.get("shares") == [0, 1]:
        assert str(both.measured.get("probability_loyalty", both.after["probability_loyalty"])) in to_each[1]
    shares = how.get("shares")
    if shares:
        assert found == others[shares.index(1)]
    else:
        assert found != others[0]


def test_a_network_of_one_number_is_judged_by_its_error_and_one_without_labels_by_its_loyalty(nets):
    row = of_nets(nets, student="one", teacher="other", data="plain.npz", direction="mse")
    assert row.verdict.startswith("met: rmse")
    assert {"pearson", "rank_loyalty"} <= set(row.after)
    assert not {"cosine", "spearman"} & set(row.after)
    assert "Regression loyalty (Spearman)" in (nets / "out" / "report.html").read_text()
    row = of_nets(nets, data="plain.npz", out="plain")
    assert row.verdict.startswith("met: probability loyalty")
    assert "spearman" in row.after


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"teacher": "four"}, "3 classes and the teacher 4"),
        ({"teacher": ["wide", "four"]}, "classes"),
        ({"assistants": "four"}, "the student gives 4 classes and the teacher 3"),
        ({"task": 1.0, "data": "plain.npz"}, "a task loss needs labels"),
        ({"choice": "label", "data": "plain.npz", "teacher": ["wide", "thin"]}, "label"),
        ({"match": "0", "match_loss": "attention"}, r"attention is of maps \[N, C, H, W\]"),
        ({"match": "7"}, "'7' is no module"),
        ({"match": "0", "match_weight": [1, 2]}, "2 weights for 1 pairs"),
        ({"bits": 8}, r"bits are of models that learn from texts: of networks, [^\n]*gpusq_vit"),
        ({"hidden": True}, "hidden states of networks"),
        ({"cache": 8}, "cache=8 keeps the likeliest tokens, and this student tells none: say cache=all"),
        ({"cache": "all", "match": "0"}, "leave align, server, cache, choice and on-policy out"),
        ({"on_policy": 0.5}, "they serve language models"),
    ],
)
def test_what_networks_can_not_do_is_said(nets, how, words):
    (nets / "out").touch()  # no folder for a run: whatever opens one fails in another way
    with pytest.raises((InputError, UnsupportedError), match=words) as caught:
        of_nets(nets, **how)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"steps": 0}, "steps=0 is not a whole number of at least 1"),
        ({"training": "speed=9"}, "no setting 'speed'"),
        ({"training": "every=0"}, "training setting every=0: give a whole number of at least 1"),
        ({"training": "patience=-1"}, "training setting patience=-1"),
        ({"weights": "x.safetensors"}, "weights are of networks"),
        ({"length": 4096}, "less than one batch"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_written(places, tmp_path, how, words):
    with pytest.raises(InputError, match=words) as caught:
        taught(places, tmp_path / "out", **how)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_sequences_longer_than_a_teacher_can_read_are_refused(places, tmp_path):
    """The student's positions have no end, and the teacher's table of them failed in the middle of training."""
    most = tiny.model("gpt2").config.n_positions
    words = rf"^the teacher: length={most + 1} is beyond the model's {most} positions: give at most length={most}$"
    with pytest.raises(InputError, match=words):
        taught(places, tmp_path / "out", "gpt2", length=most + 1)
    assert not (tmp_path / "out").exists()
    short = tiny.model("llama")
    short.config.max_position_embeddings = 8
    save(short, tmp_path / "short")
    row = secateur.distill(places / "student", tmp_path / "short", TEXTS, tmp_path / "out", **QUICK, dry_run=True)
    assert any(note.startswith("the teacher: length=16 is beyond the 8 positions") for note in row.settings["notes"])
    assert not any(note.startswith("the student: length") for note in row.settings["notes"])


def numbered():
    """A tokenizer that gives every word another number, and the word that each number has had before."""
    tokenizer = tiny.tokenizer()
    place = np.random.default_rng(0).permutation(64)
    said = json.loads(tokenizer.backend_tokenizer.to_str())
    said["model"]["vocab"] = {word: int(place[number]) for word, number in said["model"]["vocab"].items()}
    for token in said["added_tokens"]:
        token["id"] = int(place[token["id"]])
    for token in said["post_processor"]["special_tokens"].values():
        token["ids"] = [int(place[number]) for number in token["ids"]]
    names = {name: getattr(tokenizer, name) for name in ("pad_token", "unk_token", "cls_token", "sep_token",
                                                         "mask_token", "bos_token", "eos_token")}  # fmt: skip
    found = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(said)), **names)
    return found, torch.from_numpy(np.argsort(place))


def moved(model):
    """The same model for the numbers of `numbered`."""
    given, asked = model.get_input_embeddings(), model.get_output_embeddings()
    with torch.no_grad():
        for module in {id(one): one for one in (given, asked) if one is not None}.values():
            module.weight.copy_(module.weight[numbered()[1]].clone())
    return model


def renumbered(path, out):
    """The same model with a tokenizer that gives every word another number."""
    moved(AutoModelForCausalLM.from_pretrained(path)).save_pretrained(out)
    numbered()[0].save_pretrained(out)
    return out


def test_a_teacher_of_another_tokenizer_is_aligned_by_characters(places, tmp_path):
    other = renumbered(places / "teacher", tmp_path / "other")
    how = {**QUICK, "steps": 40, "align": True}
    rows = [
        secateur.distill(places / "student", [teacher], TEXTS, tmp_path / str(n), **how)
        for n, teacher in enumerate((other, places / "teacher"))
    ]
    for row in rows:
        first, last = (part["shared_kl"].value for part in (row.before, row.after))
        assert last < 0.8 * first
        assert row.verdict.startswith("met: shared kl")
        assert row.after["perplexity"].value < row.before["perplexity"].value
        for name in ("shared_label_loyalty", "shared_probability_loyalty"):
            assert row.after[name].value > row.before[name].value + 0.05
            assert row.after[name].low < row.after[name].value < row.after[name].high
    # The numbers of words are nothing to the comparison: the same teacher by other numbers teaches the same.
    assert rows[0].after["shared_kl"].value == pytest.approx(rows[1].after["shared_kl"].value, rel=1e-3)
    for name in ("shared_label_loyalty", "shared_probability_loyalty"):
        assert rows[0].after[name].value == pytest.approx(rows[1].after[name].value, abs=1e-2)
    assert rows[0].settings["align"] is True
    assert rows[0].settings["notes"] == []


def test_loyalty_to_each_of_several_aligned_teachers_is_told(places, tmp_path):
    other = renumbered(places / "second", tmp_path / "other")
    how = {**QUICK, "steps": 2, "align": True}
    cases = [([places / "teacher", other], [0.75, 0.25]), ([places / "teacher"], None), ([other], None)]
    both, *alone = (
        secateur.distill(places / "student", named, TEXTS, tmp_path / str(n), shares=shares, **how)
        for n, (named, shares) in enumerate(cases)
    )
    for name in ("shared_kl", "shared_label_loyalty", "shared_probability_loyalty"):
        first, second = (row.before[name].value for row in alone)
        assert first != second
        assert both.before[name].value == pytest.approx(0.75 * first + 0.25 * second, rel=1e-4)
    one, two = both.settings["notes"]
    assert re.match(r"to the teacher .*/teacher alone: shared kl \S+ .*shared label loyalty", one)
    assert re.match(r"to the teacher .*/other alone: shared kl ", two)
    assert one.split("alone: ")[1] != two.split("alone: ")[1]


def test_texts_of_which_an_aligned_teacher_reads_nothing_as_the_student_does_are_refused(places, tmp_path):
    """It has the same words, and reads letters: every step would have a loss of 0."""
    said = json.loads(tiny.tokenizer().backend_tokenizer.to_str())
    said["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False}
    AutoModelForCausalLM.from_pretrained(places / "teacher").save_pretrained(tmp_path / "letters")
    base = Tokenizer.from_str(json.dumps(said))
    PreTrainedTokenizerFast(tokenizer_object=base, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        tmp_path / "letters"
    )
    long = [" ".join(word for word in text.split() if word != "a") for text in TEXTS]
    for dry in (False, True):
        with pytest.raises(InputError, match="letters reads no characters of the first batch as one token") as e:
            secateur.distill(
                places / "student", [places / "teacher", tmp_path / "letters"], long, tmp_path / "out", align=True,
                dry_run=dry, **QUICK,
            )  # fmt: skip
        assert "\n" not in str(e.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["classes", "number", "embedding"])
def test_what_tells_of_whole_texts_learns_from_teachers_of_other_tokenizers(tmp_path, kind):
    """As it would from the same teacher with the student's own token numbers."""
    if kind == "embedding":
        tiny.folder("bert", tmp_path / "teacher", sentence=True)
        tiny.folder("distilbert", tmp_path / "student", sentence=True)
    else:
        for seed, name in enumerate(("teacher", "student")):
            save(classifier(seed, 3 if kind == "classes" else 1), tmp_path / name)
    how = {**QUICK, "steps": 30, "direction": "mse" if kind == "number" else "forward"}
    opened = secateur.open_subject(tmp_path / "teacher")
    other = secateur.open_subject(moved(opened.model), tokenizer=numbered()[0])
    other.head, other.output = opened.head, opened.output
    with pytest.raises(InputError, match=r"different tokenizers: .*or let each read for itself") as caught:
        secateur.distill(tmp_path / "student", other, TEXTS, tmp_path / "no", **how)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "no").exists()
    rows = [
        secateur.distill(tmp_path / "student", teacher, TEXTS, tmp_path / str(n), align=align, **how)
        for n, (teacher, align) in enumerate([(other, True), *((tmp_path / "teacher", able) for able in (True, False))])
    ]
    name = {"classes": "probability_loyalty", "number": "rmse", "embedding": "cosine"}[kind]
    for row in rows:
        assert (row.after[name].value < row.before[name].value) == (kind == "number")
        assert kind == "embedding" or row.verdict.startswith(f"met: {name.replace('_', ' ')}")
        assert dict(row.recovery.losses) == pytest.approx(dict(rows[2].recovery.losses), rel=1e-3, abs=1e-5)
    assert rows[0].after[name].value == pytest.approx(rows[1].after[name].value, abs=1e-3)
    if kind == "classes":
        two = [other, tmp_path / "teacher"]
        both = secateur.distill(tmp_path / "student", two, TEXTS, tmp_path / "both", align=True, **how)
        assert both.after[name].value == pytest.approx(rows[0].after[name].value, abs=1e-2)
        assert len(both.settings["notes"]) == 2


def test_states_have_nothing_to_align(tmp_path):
    folder = tiny.folder("bert", tmp_path / "encoder")
    with pytest.raises(UnsupportedError, match="this student gives none of them: leave align out"):
        secateur.distill(folder, folder, TEXTS, tmp_path / "out", align=True, **QUICK)
    foreign = secateur.open_subject(moved(secateur.open_subject(folder).model), tokenizer=numbered()[0])
    with pytest.raises(InputError, match="different tokenizers") as caught:
        secateur.distill(folder, foreign, TEXTS, tmp_path / "out", **QUICK)
    assert "align" not in str(caught.value), "which would be refused as well"


def elsewhere(module):
    """Its parameters lie on a CUDA device, which need not be there as long as nobody reads them."""
    with FakeTensorMode():
        for part in module.modules():
            for name, value in part.named_parameters(recurse=False):
                part._parameters[name] = torch.nn.Parameter(torch.empty(value.shape, device="cuda"))


def test_models_that_can_not_be_compared_are_refused(places, tmp_path):
    other = tiny.tokenizer()
    other.add_tokens(["wheelbarrow"])
    tiny.model("llama").save_pretrained(tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    tiny.folder("bert", tmp_path / "encoder")
    nowhere = secateur.open_subject(places / "teacher")
    nowhere.model.to("meta")
    split = secateur.open_subject(places / "teacher")
    split.model.lm_head.to("meta")
    away, half = (secateur.open_subject(places / "teacher") for _ in range(2))
    elsewhere(away.model)
    elsewhere(half.model.lm_head)
    for teacher, words in [
        (away, "the student is on cpu and its teacher on cuda:0: say device=cpu or teacher-device=cuda:0"),
        (half, "the teacher lies on cpu and cuda:0, and nothing brings its states along: open it with device_map"),
        (
            tmp_path / "other",
            "different tokenizers: 1 tokens are only in the teacher's, 'wheelbarrow'.*let each read",
        ),
        (tmp_path / "encoder", r"gives next tokens \(LlamaForCausalLM\) and its teacher states \(BertModel\)"),
        (nowhere, "without values"),
        (split, "without values"),
        ("nets.py:build", "distill works on language models, and 'nets.py:build' names none"),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            secateur.distill(places / "student", teacher, TEXTS, tmp_path / "out", **QUICK)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("how", [{}, {"align": True}, {"server": "http://localhost:1/v1"}])
def test_held_out_data_that_tells_no_quality_is_refused_before_training(places, tmp_path, monkeypatch, how, dry_run):
    monkeypatch.setattr(loop, "train", None)
    with pytest.raises(DataError, match=r"can't be measured on the held-out data: .* less than one batch") as caught:
        taught(places, tmp_path / "out", held_out=TEXTS[:1], dry_run=dry_run, **how)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------------------- classes of pixels


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return mask_folder(tmp_path_factory.mktemp("shapes"), 12, held=4)


@pytest.fixture(scope="module")
def trained(shapes):
    """FCN after some steps on the masks."""
    model = vision_models.fcn(6)
    feed = examples.batches(examples.with_transform(examples.read(shapes), "none", 24, workers=0), batch=4)
    objective = rehearsal.classes(lambda batch: model(batch["inputs"])["out"])
    loop.train(model, feed, objective, steps=60, lr=2e-2, count=examples.count)
    return model.eval()


def taught_pixels(student, teachers, shapes, out, **how):
    settings = {"steps": 12, "batch": 4, "lr": 5e-3, "transform": "none", "size": 24, "workers": 0}
    return secateur.distill(student, teachers, shapes, out, **{**settings, **how})


@pytest.mark.parametrize(
    ("teachers", "how"),
    [
        (lambda one: one, {"temperature": 2.0, "task": 0.5}),
        (vision_models.Coarse, {"direction": "channel-wise", "temperature": 4.0}),
        (lambda one: [one, vision_models.fcn(4)], {"shares": (3, 1), "cache": "all", "label": "", "lr": 2e-2}),
    ],
    ids=["named outputs", "coarse and channel-wise", "two from a cache, without masks"],
)
def test_a_segmenter_learns_from_outputs_with_names_pixel_by_pixel(teachers, how, trained, shapes, tmp_path):
    student = vision_models.lraspp(6, seed=3)
    student.classifier.high_classifier.bias.data[2] += 1.0  # says class 2 of most
    row = taught_pixels(student, teachers(trained), shapes, tmp_path / "out", **{"steps": 30, **how})
    assert row.verdict.startswith("met: pixel agreement"), row.verdict
    assert row.after["pixel_agreement"].value > row.before["pixel_agreement"].value + 0.3
    if how.get("label") != "":
        assert {"mIoU", "pixel_accuracy", "ground/IoU", "red/IoU"} <= row.after.keys()
        assert "mIoU" in row.baselines["teacher"]


@pytest.mark.wide
def test_masks_train_a_segmenter_and_their_void_counts_nowhere(shapes, tmp_path):
    row = taught_pixels(
        vision_models.fcn(6, seed=3), vision_models.fcn(6), shapes, tmp_path / "out", task=1.0, steps=40, lr=2e-2
    )
    assert row.after["mIoU"].value > row.before["mIoU"].value + 0.2
    assert "255" not in str(row.settings)


@pytest.mark.wide
def test_a_segmenter_of_one_logit_learns_two_classes(shapes, tmp_path):
    shutil.copytree(shapes, tmp_path / "two")
    for file in tmp_path.rglob("masks/*.png"):
        drawn = np.asarray(Image.open(file))
        Image.fromarray(np.where((drawn == 1) | (drawn == 2), 255, 0).astype(np.uint8)).save(file)
    models = (vision_models.fcn(6, classes=1, seed=seed) for seed in (3, 0))
    row = taught_pixels(*models, tmp_path / "two", tmp_path / "out", task=1.0, steps=40, lr=2e-2)
    assert row.after["mIoU"].value > row.before["mIoU"].value + 0.2
    assert {"ground/IoU", "red/IoU"} <= row.after.keys()
    assert row.before["pixel_agreement"].value < 1.0


def test_masks_and_networks_that_do_not_fit_are_refused_in_a_line(shapes, tmp_path):
    with pytest.raises(DataError, match="has the label 2: the model has 2 classes"):
        taught_pixels(vision_models.fcn(4, classes=2), vision_models.fcn(4, classes=2), shapes, tmp_path / "out")
    with pytest.raises(InputError, match="3 classes and the teacher 4"):
        taught_pixels(vision_models.fcn(4), vision_models.fcn(4, classes=4), shapes, tmp_path / "out")
    rows = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(DataError, match=r"a class for each pixel, and Sequential gives \[2, 3\]"):
        taught_pixels(rows, rows, shapes, tmp_path / "out")
    with pytest.raises(UnsupportedError, match="channel-wise is of classes of pixels"):
        taught_pixels(rows, rows, shapes, tmp_path / "out", label="", direction="channel-wise")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("training", "named"), [("lr=1e-5", "lr"), ("epochs=3", "steps"), ("batch=8", "batch")])
def test_what_has_an_option_of_its_own_is_not_set_twice(training, named):
    """The first ended in a raw TypeError after everything was measured, the others were ignored in silence."""
    from secateur.runs.distilling import settings

    with pytest.raises(InputError, match=f"which distill has an option for: give {named} itself"):
        settings.read_training(training, lr=1e-4)


@pytest.mark.parametrize("how", [{}, {"cache": 8}, {"hidden": True}])
def test_a_teacher_that_is_offloaded_teaches_what_it_teaches_in_memory(how, tmp_path):
    student, teacher = (open_subject(tiny.model("llama", seed), tokenizer=tiny.tokenizer()) for seed in range(2))
    away = open_subject(cpu_offload(tiny.model("llama", 1), "cpu"), tokenizer=tiny.tokenizer())
    rows = [
        secateur.distill(student, one, TEXTS, tmp_path / name, **{**QUICK, **how, "steps": 3})
        for one, name in ((teacher, "inside"), (away, "outside"))
    ]
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("outside", "inside"))
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert rows[0].baselines == rows[1].baselines
    assert all(parameter.is_meta for parameter in away.model.parameters())


def test_student_and_teachers_are_given_back_in_the_modes_that_they_came_in(tmp_path):
    nets = [nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).train() for _ in range(3)]
    nets[1][0].eval()
    before = [[module.training for module in net.modules()] for net in nets]
    data = (torch.randn(40, 6), torch.arange(40) % 3)
    secateur.distill(nets[0], nets[1:], data, tmp_path / "out", steps=1, batch=8)
    assert [[module.training for module in net.modules()] for net in nets] == before
