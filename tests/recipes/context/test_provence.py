"""Provence: thresholds and budgets, titles, order, labels of a language model, and training that keeps the ranking."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import keeper
import tiny
import toys
import trainings
from chat_server import served, speaking
from keeper import WORDS, NoCheckpoints, fresh, lesson, sentence, taught, train
from secateur._utils.rundir import Run, Transient
from secateur.clients.chat import Local
from secateur.errors import DataError, InputError, NumericalError
from secateur.recipes.context import provence as module
from secateur.recipes.context.provence import provence
from secateur.runs import keywords
from secateur.subjects import open_passages
from secateur.vocabulary import Budget, Selection

QUESTION = sentence(3)
PASSAGES = [
    [sentence(20, 21, 22, 23), sentence(3, 30, 31, 32), sentence(24, 25, 26, 27)],
    [sentence(33, 34, 35, 36), sentence(21, 22, 23, 24)],
    [sentence(11, 12, 13, 14), sentence(3, 37, 38, 39), sentence(3, 12, 13, 15)],
]


def run(passages, *budgets, into=None, model=None, question=QUESTION, **options):
    given = open_passages(passages)
    limits = [Budget.parse(budget) for budget in budgets or ("tokens=100%",)]
    return list(provence(given, question, limits, into or Transient(), model=model or taught(), **options))


def left(result) -> dict[int, str]:
    return {number: text for number, (text, _) in result.subject.documents().items()}


# ----------------------------------------------------------------------------------------------------------- what stays


def test_sentences_that_matter_stay_and_others_go():
    (result,) = run(PASSAGES)
    assert left(result) == {0: PASSAGES[0][1], 2: " ".join(PASSAGES[2][1:])}
    assert result.cut.removed == {"sentences": (5, 8)}
    assert result.cut.after == {"words": 12.0, "tokens": 12.0}


def test_a_model_may_say_that_words_of_the_question_count():
    """Under its own threshold alone: what a user gives is a probability."""
    model, scores = taught().copy(), {}
    for name, terms, options in (("plain", 0.0, {}), ("raised", 0.5, {}), ("given", 0.5, {"threshold": 0.5})):
        model.settings = replace(taught().settings, terms=terms)
        memory = Transient()
        run(PASSAGES, model=model, into=memory, **options)
        rows = [row for site in memory.values["trace-tokens=100%"].values() for row in site]
        scores[name] = {row["text"]: row["score"] for row in rows}
    assert scores["given"] == scores["plain"]
    others = {text: score for text, score in scores["plain"].items() if QUESTION.split()[0] not in text}
    assert others.items() <= scores["raised"].items()
    named = scores["plain"].keys() - others.keys()
    assert max(scores["raised"][text] / scores["plain"][text] ** 0.5 for text in named) == pytest.approx(1.0)
    assert all(scores["raised"][text] > scores["plain"][text] for text in named)


def test_a_share_of_the_best_is_asked_of_sentences_under_the_models_own_threshold_alone():
    model = taught().copy()
    model.settings = replace(taught().settings, of_best=0.9999)
    (strict,) = run(PASSAGES, model=model)
    (given,) = run(PASSAGES, model=model, threshold=taught().settings.threshold)
    (plain,) = run(PASSAGES)
    assert left(given) == left(plain)
    assert len(strict.subject.sentences) < len(plain.subject.sentences)


def test_below_zero_all_stays_and_from_one_nothing():
    texts = ["  One here.  Two there. ", "Three."]
    for rounding in ("vote", "mean"):
        (whole,) = run(texts, threshold=-0.1, rounding=rounding)
        assert whole.subject.to_text() == "\n\n".join(texts)
        (nothing,) = run(PASSAGES, threshold=1.0, rounding=rounding, always_select_title=True)
        assert nothing.subject.to_text() == ""


@pytest.mark.parametrize("rounding", ["vote", "mean"])
def test_a_higher_threshold_keeps_a_subset(rounding):
    kept = [run(PASSAGES, threshold=t, rounding=rounding)[0].subject for t in (0.05, 0.3, 0.6, 0.9, 0.99)]
    for lower, higher in itertools.pairwise(kept):
        assert set(higher.sentences) <= set(lower.sentences)


def test_a_sentence_longer_than_a_block_scores_as_its_parts_together():
    long = sentence(3, *([30] * 20))
    (result,) = run([[long, sentence(20, 21)]], into=(into := Transient()), longest=12, threshold=-1.0)
    keep = np.array(into.values["judged"][0]["keep"])
    owner = np.array(into.values["judged"][0]["owner"])
    row = into.values[f"trace-{result.name}"]["passage 1"][0]
    assert row["score"] == pytest.approx(keep[owner == 0].mean())
    assert (owner == 0).sum() == 21


def test_the_title_stays_exactly_where_another_sentence_does():
    (result,) = run(PASSAGES, always_select_title=True)
    assert left(result) == {0: " ".join(PASSAGES[0][:2]), 2: " ".join(PASSAGES[2])}
    alone = [[sentence(3, 30, 31, 32), sentence(20, 21, 22, 23)]]
    assert left(run(alone)[0]) == {0: alone[0][0]}
    assert left(run(alone, always_select_title=True)[0]) == {}


def test_sentences_are_split_as_of_the_models_language_or_the_one_that_is_given():
    model = taught().copy()
    model.settings = replace(model.settings, language="de")
    text = "Am 3. Mai kam er. Sie ging."

    def parts(given, **options):
        into = Transient()
        (result,) = provence(given, QUESTION, [Budget.parse("tokens=100%")], into, threshold=-1.0, **options)
        return [[row["text"] for row in rows] for rows in into.values[f"trace-{result.name}"].values()]

    german, english = ["Am 3. Mai kam er.", "Sie ging."], ["Am 3.", "Mai kam er.", "Sie ging."]
    assert parts(open_passages([text]), model=taught()) == [english]
    assert parts(open_passages([text]), model=model) == [german]
    assert parts(open_passages([text]), model=taught(), language="de") == [german]
    assert parts(open_passages([text]), model=model, language="en") == [english]
    titled = open_passages([text, ["Am 3.", "Mai."]], titles=["Der 3. Mai", None]).reorder([1, 0])
    assert parts(titled, model=model) == [["Der 3. Mai", *german], ["Am 3.", "Mai."]]
    assert parts(open_passages([text], split="en"), model=model) == [english]
    assert parts(open_passages([text]).cut(Selection({"sentences": [False, True, True]}))[0], model=model) == [
        english[1:]
    ]


def test_order_by_score_and_the_first_few():
    model = taught().copy()
    model.settings = type(model.settings)(threshold=0.5, ranks=True)
    (result,) = run(PASSAGES, model=model, reorder=True, threshold=-1.0, into=(into := Transient()))
    scores = into.values[f"told-{result.name}"]["reranking_scores"]
    assert list(left(result)) == sorted(range(3), key=lambda n: -scores[n])
    assert sorted(scores, reverse=True) == [scores[n] for n in left(result)]
    for many in (1, 2):
        (few,) = run(PASSAGES, model=model, top_k=many, threshold=-1.0)
        assert list(left(few)) == sorted(list(left(result))[:many])
        assert few.cut.before == result.cut.before
    compression = [run(PASSAGES, model=model, top_k=k, into=(into := Transient())) and
                   into.values["told-tokens=100%"]["compression"] for k in (0, 1)]  # fmt: skip
    assert compression[0] == compression[1] > 0  # it is that of the threshold, before passages are left out


def test_a_long_passage_ranks_by_its_first_block_or_its_best():
    model, parts = taught(), [sentence(*range(n, n + 10)) for n in (20, 3, 25)]
    parts.sort(key=lambda part: model.judge([(QUESTION, [part])], longest=15)[0].score)
    each = [model.judge([(QUESTION, [part])], longest=15)[0].score for part in parts]
    for best, score in ((False, each[0]), (True, max(each))):
        (result,) = run([parts], longest=15, best_block=best, into=(into := Transient()))
        assert into.values[f"told-{result.name}"]["reranking_scores"] == pytest.approx([score], abs=1e-5)
    assert each[-1] > each[0] + 1e-4


def test_a_model_that_only_prunes_needs_a_reranker_to_rank():
    with pytest.raises(InputError, match="does not rank"):
        run(PASSAGES, reorder=True)
    (result,) = run(PASSAGES, reorder=True, reranker=fresh(4), threshold=-1.0)
    scores = [one.score for one in fresh(4).judge([(QUESTION, part) for part in PASSAGES])]
    assert list(left(result)) == sorted(range(3), key=lambda n: -scores[n])


# -------------------------------------------------------------------------------------------------------------- budgets


def test_no_budget_is_exceeded_and_the_best_stay():
    results = run(PASSAGES, *(f"tokens={limit}" for limit in range(2, 40)), threshold=-1.0, into=(into := Transient()))
    for result, limit in zip(results, range(2, 40), strict=True):
        text = result.subject.to_text()
        assert len(tiny.tokenizer()(text, add_special_tokens=False)["input_ids"]) == result.cut.after["tokens"] <= limit
        rows = [row for site in into.values[f"trace-{result.name}"].values() for row in site]
        stays = [row["score"] for row in rows if row["kept"]]
        assert min(stays, default=9.0) >= max((row["score"] for row in rows if not row["kept"]), default=-1.0)
    sizes = [len(result.subject.sentences) for result in results]
    assert sizes == sorted(sizes)
    assert sizes[0] == 0
    assert sizes[-1] == 8


def test_a_title_and_its_best_sentence_leave_together():
    for limit in range(2, 40):
        (result,) = run(PASSAGES, f"tokens={limit}", threshold=-1.0, always_select_title=True)
        assert result.cut.after["tokens"] <= limit
        for number, text in left(result).items():
            assert text.startswith(PASSAGES[number][0])
            assert text != PASSAGES[number][0]


def test_why_nothing_is_left_is_told():
    for budget, how, word in (
        ("tokens=100%", {"threshold": 1.0}, "no sentence passes the threshold 1: the best has"),
        ("tokens=2", {}, "sentences pass the threshold, and none of them fits into tokens=2"),
    ):
        (result,) = run(PASSAGES, budget, into=(into := Transient()), **how)  # fmt: skip
        (note,) = into.values[f"told-{result.name}"]["notes"]
        assert word in note
        assert result.cut.notes == (note,)
    (result,) = run(PASSAGES)
    assert result.cut.notes == ()


def test_where_sentences_pass_and_the_title_or_top_k_takes_them_nothing_is_said_of_the_threshold():
    """It said that no sentence passes 0.1, and that the best has 0.98."""
    how = {"model": keeper.lexical(), "question": "tree garden"}
    for passages, options in (
        ([["garden leaf"]], {"always_select_title": True}),
        ([["the tree", "one two"], ["garden leaf tree", "bud"]], {"always_select_title": True, "top_k": 1}),
    ):
        (result,) = run(passages, into=(into := Transient()), **how, **options)
        assert left(result) == {}
        (note,) = into.values[f"told-{result.name}"]["notes"]
        assert "pass the threshold, and none stays" in note


def test_no_block_is_longer_than_the_model_has_positions_for():
    """There are 64; a block of 90 tokens ended in an IndexError."""
    long = [sentence(*range(number, number + 40)) for number in (0, 5)]
    results = [run([long], threshold=-1.0, longest=longest, into=(into := Transient())) and into.values["judged"]
               for longest in (64, 200)]  # fmt: skip
    assert results[0] == results[1]


def test_a_reranker_of_nan_is_refused_before_it_is_taught():
    broken = fresh()
    with torch.no_grad():
        broken.model.classifier.bias.fill_(torch.nan)
    with pytest.raises(NumericalError, match="check its weights"):
        train(broken, lesson(4, 0), Transient())


def test_empty_passages_and_none():
    assert run(["", "  "])[0].subject.to_text() == ""
    assert run([])[0].subject.to_text() == ""


# --------------------------------------------------------------------------------------------------------------- labels


def test_labels_from_a_real_model_behind_a_real_server(tmp_path):
    """A model that knows nothing cites nothing: every passage is dropped, none is taught wrongly."""
    rows = [{"question": sentence(1), "documents": [sentence(2, 3)]} for _ in range(3)]
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=260, max_position_embeddings=2048, **shape)).eval()
    local = Local(model, tiny.letters())
    with (
        served(speaking(local)) as url,
        Run.open(tmp_path / "run", {}) as into,
        pytest.raises(DataError, match="none of"),
    ):
        train(fresh(), rows, into, llm=url, llm_name="tiny")
    assert local.meter.calls == 3


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.wide
def test_old_scores_hold_the_ranking():
    """With a weight the model goes on ranking as it did; without one it drifts away."""
    drift = {}
    rows = lesson(200, 1)
    before = fresh(5).judge([(row["question"], row["documents"][0]) for row in rows])
    for weight in (0.0, 5.0):
        model = fresh(5)
        train(model, rows, NoCheckpoints(), weight=weight, lr=3e-3, batch=16, epochs=4, longest=32, held_out=0)
        after = model.judge([(row["question"], row["documents"][0]) for row in rows])
        drift[weight] = np.mean([(a.score - b.score) ** 2 for a, b in zip(after, before, strict=True)])
        assert model.settings.ranks is (weight > 0)
    assert drift[5.0] < 0.2 * drift[0.0]


def test_old_scores_are_those_of_the_tokens_that_are_read_in_training():
    """As many as the settings say, and as the model has positions for: 64 here, fewer than the default."""
    long = [sentence(*range(number, number + 30)) for number in range(3)]
    rows = [{"question": sentence(number), "documents": [long], "kept": [[2]]} for number in range(4)]
    for longest, read in ((512, 64), (40, 40)):
        model, into = fresh(), NoCheckpoints()
        before = [model.judge([(row["question"], long)], longest=read)[0].score for row in rows]
        train(model, rows, into, longest=longest, held_out=0.0, epochs=1.0, batch=2)
        assert into.values["old-scores"] == pytest.approx(before, abs=1e-5)
        assert model.longest == read


def test_training_repeats_and_says_what_it_saw(tmp_path):
    made = []
    for name in ("a", "b"):
        model = fresh()
        with Run.open(tmp_path / name, {}) as into:
            recovery, notes = train(model, lesson(60, 2), into, lr=1e-3, batch=8, longest=32, held_out=0.2, weight=0.1)
        made.append(model.keep.weight.detach())
    assert torch.equal(*made)
    assert recovery.steps == 6
    assert "held out" in notes[1]


def test_training_is_judged_by_what_it_learns_by(monkeypatch):
    """What stops it early is the loss of the masks and, with their weight, of the old scores."""
    judged, measure, teach = [], module.measure_quality, module.loop.train

    def watch(*given, evaluate, **how):
        judged.append(evaluate())
        return teach(*given, evaluate=evaluate, **how)

    known = {"mask_loss": 0.5, "ranking_loss": 2.0}
    monkeypatch.setattr(module, "measure_quality", lambda *given: {**measure(*given), **known})
    monkeypatch.setattr(module.loop, "train", watch)
    how = {"lr": 1e-3, "batch": 8, "longest": 32, "held_out": 0.2}
    train(fresh(), lesson(40, 2), NoCheckpoints(), weight=0.25, **how)
    train(fresh(), lesson(40, 2), NoCheckpoints(), weight=0.0, **how)
    assert judged == [0.5 + 0.25 * 2.0, 0.5]


@pytest.mark.parametrize("everywhere", [True, False])
def test_tokens_outside_of_sentences_are_taught_to_go_or_not_looked_at(monkeypatch, everywhere):
    seen, teach = [], module.loop.train
    monkeypatch.setattr(module.loop, "train", lambda model, feed, *rest, **how: seen.append(feed[0]) or
                        teach(model, feed, *rest, **how))  # fmt: skip
    train(fresh(), lesson(8, 2), NoCheckpoints(), batch=4, longest=32, held_out=0.0, everywhere=everywhere)
    (batch,) = seen
    firsts = batch["labels"][:, 0]  # of the token at the start, which is of no sentence
    assert (firsts == (0 if everywhere else -100)).all()


def test_what_is_taught_is_asked_for_and_kept_as_the_options_say(monkeypatch):
    asked, real = [], module.prepare_pairs
    monkeypatch.setattr(module, "prepare_pairs", lambda *given, **how: asked.append(how["oracle"]) or
                        real(*given, **how))  # fmt: skip
    how = {"batch": 4, "longest": 32, "held_out": 0.0}
    for oracle, rounding in (("relevance", "mean"), ("indices", "vote")):
        model = fresh()
        train(model, lesson(8, 2), NoCheckpoints(), oracle=oracle, rounding=rounding, threshold=0.3, **how)
        assert (model.settings.rounding, model.settings.threshold) == (rounding, 0.3)
    assert asked == ["relevance", "indices"]


def test_the_new_head_is_drawn_by_the_seed():
    for seed in (1, 2):
        model = fresh()
        wanted = fresh().with_head(seed).keep.weight
        train(model, lesson(8, 2), NoCheckpoints(), batch=4, longest=32, held_out=0.0, lr=1e-9, seed=seed)
        torch.testing.assert_close(model.keep.weight, wanted, atol=1e-6, rtol=0)


def test_what_is_held_out_is_measured_before_during_and_after_training():
    model, rows = fresh(), [{**row, "question": f"{row['question']} {WORDS[40 + i % 9]}"}
                            for i, row in enumerate(lesson(200, 4))]  # fmt: skip
    how = {"lr": 3e-3, "batch": 16, "epochs": 6, "longest": 32, "held_out": 0.3, "threshold": 0.5, "weight": 0.01}
    into = NoCheckpoints()
    recovery, notes = train(model, rows, into, evaluate_every=20, **how)
    told = recovery.settings["held_out"]
    before, after = told["before"], told["after"]
    assert list(told["during"]) == [str(step) for step in (*range(20, recovery.steps, 20), recovery.steps)]
    assert told["during"][str(recovery.steps)] == after
    assert "evaluations" not in recovery.settings
    assert after["mask_loss"] < before["mask_loss"]
    assert after["f1"] > before["f1"] + 0.3
    assert before["ranking_loss"] == pytest.approx(0.0, abs=1e-9)
    assert after["ranking_loss"] > 0
    assert after["questions"] > 0
    assert f"F1 of kept sentences {after['f1']:.3f} (before {before['f1']:.3f})" in notes[1]
    assert f"{after['ndcg']:.3f}, of the reranker before training {before['ndcg']:.3f}" in notes[2]
    rows, how = rows[:80], {**how, "epochs": 1}
    alone, words = train(fresh(), rows, NoCheckpoints(), **{**how, "weight": 0.0})
    assert len(alone.settings["held_out"]["during"]) == 4
    assert alone.settings["held_out"]["after"]["ndcg"] is alone.settings["held_out"]["after"]["ranking_loss"] is None
    assert len(words) == 2
    nothing, words = train(fresh(), rows, NoCheckpoints(), **{**how, "held_out": 0.0})
    assert "held_out" not in nothing.settings
    assert len(words) == 1


def test_what_is_seen_of_what_is_held_out_outlives_a_stop(tmp_path, monkeypatch):
    how = {"lr": 1e-3, "batch": 8, "longest": 32, "held_out": 0.2, "weight": 0.1, "evaluate_every": 2}
    whole, _ = train(fresh(), lesson(60, 2), NoCheckpoints(), **how)
    take, looks = module.PairBatches.__getitem__, []

    def stops(self, index):
        if index == 4:
            raise KeyboardInterrupt
        return take(self, index)

    monkeypatch.setattr(module.PairBatches, "__getitem__", stops)
    with pytest.raises(KeyboardInterrupt), Run.open(tmp_path / "run", {}) as into:
        train(fresh(), lesson(60, 2), into, **how)
    monkeypatch.setattr(module.PairBatches, "__getitem__", take)
    measure = module.measure_quality
    monkeypatch.setattr(module, "measure_quality", lambda *given: looks.append(0) or measure(*given))
    with Run.open(tmp_path / "run", {}) as into:
        again, _ = train(fresh(), lesson(60, 2), into, **how)
    assert again.settings["held_out"] == whole.settings["held_out"]
    assert len(looks) == 1  # those before the stop were there


def test_what_is_measured_after_a_training_that_kept_its_best_is_of_the_weights_that_were_kept(monkeypatch):
    """It was that of the last step, whose weights had been dropped."""
    losses, measure = iter([1.0, 0.5, 0.7, 0.9]), module.measure_quality
    monkeypatch.setattr(module, "measure_quality", lambda *given: {**measure(*given), "mask_loss": next(losses)})
    how = {"lr": 1e-3, "batch": 8, "longest": 32, "held_out": 0.2, "weight": 0.0, "evaluate_every": 1, "patience": 2}
    recovery, notes = train(fresh(), lesson(60, 2), NoCheckpoints(), **how)
    assert (recovery.steps, recovery.settings["kept_step"]) == (3, 1)
    assert recovery.settings["held_out"]["after"] == recovery.settings["held_out"]["during"]["1"]
    assert "mask loss 0.5 (before 1)" in notes[1]


# ----------------------------------------------------------------------------------------------------------- bad inputs


def test_what_can_not_be_is_refused():
    with pytest.raises(InputError, match="ranks and does not prune"):
        run(PASSAGES, model=fresh())
    with pytest.raises(InputError, match="params"):
        run(PASSAGES, "params=3000")
    for wrong in ({"top_k": -1}, {"longest": -1}):  # a top_k of -1 left the last passage out
        with pytest.raises(InputError, match=f"{next(iter(wrong))}=-1"):
            keywords.call(provence, open_passages(PASSAGES), QUESTION, [Budget.parse("tokens=5")], Transient(), **wrong)
    for wrong in ({"weight": -1.0}, {"evaluate_every": -1}, {"held_out": 1.0}, {"lr": -1.0}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))}="):
            train(fresh(), lesson(4, 0), Transient(), **wrong)
    with pytest.raises(DataError, match="none of 1 rows"):
        train(fresh(), [{"question": "a", "documents": ["b"]}], Transient())
    with pytest.raises(DataError, match="row 1 has 1 passages and 2 lists"):
        train(fresh(), [{"question": "a", "documents": ["b"], "kept": [[0], [0]]}], Transient())
    standalone = fresh()
    standalone.settings = type(standalone.settings)(ranks=False)
    with pytest.raises(InputError, match="no scores to keep"):
        train(standalone, lesson(4, 0), Transient())
    broken = taught().copy()
    with torch.no_grad():
        broken.keep.bias.fill_(torch.nan)
    with pytest.raises(NumericalError, match="NaN"):
        run(PASSAGES, model=broken)
    with torch.no_grad():
        broken.model.classifier.bias.fill_(torch.nan)
    with pytest.raises(NumericalError, match="NaN"):
        run(PASSAGES, model=broken)


def toy(_):
    """What `conformance.check_recipe` takes: see tests/conformance."""
    parts = [[keeper.sentence(*range(10 + 4 * i, 14 + 4 * i)) for i in range(4)] for _ in range(3)]
    parts[1][2] = gold = keeper.sentence(3, 30, 31, 32)
    return {
        "subject": open_passages(parts),
        "data": keeper.sentence(3),
        "budget": "words=20%",
        "options": {"model": keeper.taught()},
        "output": partial(toys.written, texts=[text for part in parts for text in part]),
        "quality": lambda passages: float(gold in passages.to_text()),
    }


def test_what_training_is_asked_for_is_in_force(tmp_path):
    def run(training):
        with Run.open(tmp_path / str(len(list(tmp_path.iterdir()))), {}) as into:
            train(fresh(), lesson(8, 0), into, training=training, batch=4, longest=32, held_out=0.0)

    trainings.check_options(run)
