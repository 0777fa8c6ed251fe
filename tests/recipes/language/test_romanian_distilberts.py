"""Masked language models of some thousand parameters, real tokenizers, several teachers."""

from __future__ import annotations

import functools
import json
import re
from functools import partial

import numpy as np
import pytest
import torch
import transformers
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DistilBertForMaskedLM,
    RobertaForMaskedLM,
)

import readers
import second_device
import tiny
import toys
from secateur._utils.rundir import Run
from secateur.data import masking, texts
from secateur.errors import BudgetError, InfeasibleError, InputError
from secateur.recipes.language import romanian_distilberts as recipe
from secateur.recover.distillation import losses
from secateur.runs import executor, keywords
from secateur.subjects import Transformer, open_subject
from secateur.vocabulary import Budget, Result, Selection

QUICK = {"length": 24, "train_batch": 8, "steps": 3, "lr": 3e-3}


@functools.cache
def brown() -> texts.Corpus:
    return texts.read(list(readers.sentences()[:200]))


@functools.cache
def held() -> texts.Corpus:
    return texts.read(list(readers.sentences()[300:340]))


def bert(tokenizer=None, *, layers=4, width=32, seed=0, head=True, positions=64) -> Transformer:
    tokenizer = tokenizer or readers.wordpiece(600)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=2 * width, max_position_embeddings=positions, pad_token_id=0,
    )  # fmt: skip
    model = BertForMaskedLM(config) if head else BertModel(config, add_pooling_layer=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return open_subject(model.eval(), tokenizer=tokenizer)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """same: another model of the same vocabulary; wide: also of another width; foreign: of another tokenizer; states:
    without a head.
    """
    root = tmp_path_factory.mktemp("teachers")
    made = {
        "same": bert(seed=1),
        "wide": bert(width=48, seed=2),
        "foreign": bert(readers.wordpiece(500, capitals=False), layers=2, width=40, seed=3),
        "bpe": bert(readers.bpe(), layers=2, width=40, seed=4),
        "states": bert(seed=5, head=False),
    }
    for name, subject in made.items():
        subject.save(root / name)
    return {name: str(root / name) for name in made}


def results(root, *budgets, subject=None, data=None, **options) -> list[Result]:
    with Run.open(root, {}) as run:
        wanted = [Budget.parse(budget) for budget in budgets or ("layers=50%",)]
        how = keywords.check_options(recipe.romanian_distilberts, {**QUICK, **options})
        return list(recipe.romanian_distilberts(subject or bert(), data or brown(), wanted, run, **how))


def lesson(student, found, batch, *, factors=(5.0, 2.0, 1.0), temperature=2.0, **how):
    objective = recipe.triple_loss(student, found, factors=factors, temperature=temperature, **how)
    loss, parts = objective(batch, recipe.count_units(batch, teachers=found))
    return loss, {name: float(part) for name, part in parts.items()}


def stream(subject, found):
    return recipe.masked_batches(subject, found, brown(), 8, 24, seed=0, share=0.15, smoothing=0.7)


def test_layers_that_stay_are_the_teachers_bit_for_bit(tmp_path):
    teacher = bert(layers=6)
    (found,) = results(tmp_path, "layers=3", subject=teacher, dry_run=True)
    before, after = teacher.model.state_dict(), found.subject.model.state_dict()
    kept = (0, 3, 5)  # evenly spread, first and last among them
    for name, tensor in after.items():
        prefix, layer, rest = name.partition("encoder.layer.")
        number, _, leaf = rest.partition(".")
        assert torch.equal(tensor, before[f"{prefix}{layer}{kept[int(number)]}.{leaf}" if layer else name]), name
    assert found.subject.layer_index == kept
    assert (found.cut.before["layers"], found.cut.after["layers"]) == (6.0, 3.0)


def test_which_layers_stay():
    def kept(*given):
        return np.flatnonzero(recipe.choose_layers(*given)).tolist()

    assert kept(12, 6, "spread") == [0, 2, 4, 7, 9, 11]  # DistilBERT's
    assert kept(12, 6, "alternate") == [0, 2, 4, 6, 8, 10]
    assert kept(6, 2, "1, 4") == kept(6, 2, ["1", "4"]) == [1, 4]
    assert kept(5, 1, "spread") == [0]
    for total in range(1, 30):
        assert all(len(kept(total, n, how)) == n for n in range(1, total + 1) for how in ("spread", "alternate"))
    for wrong in ("1,2,3", "1,1", "0,6", "first", "-1,0"):
        with pytest.raises(InputError, match="the numbers of 2 layers from 0 to 5"):
            recipe.choose_layers(6, 2, wrong)


def test_the_whole_teacher_has_nothing_to_learn_from_itself():
    teacher = bert()
    student, _ = teacher.cut(Selection({}))
    found = recipe.gather_teachers(teacher, (), (), "words", 24)
    batch = stream(teacher, found)[0]
    loss, parts = lesson(student, found, batch, factors=(5.0, 0.0, 1.0))
    assert parts == pytest.approx({"soft": 0.0, "near original": 0.0}, abs=1e-5)
    _, parts = lesson(student, found, batch)
    logits = teacher.forward(batch).prediction
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    assert parts["masked"] == pytest.approx(2.0 * float(wanted.detach()), rel=1e-5)
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-5)


def test_the_triple_loss_by_hand():
    teacher = bert()
    student, _ = teacher.cut(Selection({"layers": recipe.choose_layers(4, 2, "spread")}))
    found = recipe.gather_teachers(teacher, (), (), "words", 24)
    batch = stream(teacher, found)[3]
    ours, theirs = (one.forward(batch, hidden=True) for one in (student, teacher))
    for restrict in (False, True):
        loss, parts = lesson(student, found, batch, restrict=restrict)
        picked = (batch["labels"] >= 0) if restrict else batch["attention_mask"] > 0
        log_s, log_t = ((one.prediction[picked] / 2.0).log_softmax(-1) for one in (ours, theirs))
        apart = torch.nn.functional.kl_div(log_s, log_t, log_target=True, reduction="batchmean")
        assert parts["soft"] == pytest.approx(5.0 * 4.0 * float(apart.detach()), rel=1e-4)
        real = batch["attention_mask"] > 0
        near = 1 - torch.nn.functional.cosine_similarity(ours.hidden[-1][real], theirs.hidden[-1][real], -1).mean()
        assert parts["near original"] == pytest.approx(float(near.detach()), rel=1e-4)
        assert float(loss.detach()) == pytest.approx(sum(parts.values()), rel=1e-5)


@pytest.mark.parametrize("kind", ["ModernBert", "EuroBert", "Bert", "Roberta", "DistilBert"])
def test_the_last_hidden_states_are_those_behind_the_final_norm(kind):
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, pad_token_id=0,
        bos_token_id=5, eos_token_id=6, cls_token_id=2, sep_token_id=3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForMaskedLM")(config).eval()
    subject = open_subject(model, tokenizer=tiny.tokenizer())
    batch = subject.example(2, 8)
    wanted, told = model.base_model(**batch).last_hidden_state, recipe.read_last(subject, batch)
    assert torch.equal(told.hidden[-1], wanted)
    assert torch.equal(told.prediction, model(**batch).logits)
    before_norm = subject.forward(batch, hidden=True).hidden[-1]
    assert torch.equal(before_norm, wanted) == (kind in ("Bert", "Roberta", "DistilBert"))
    assert torch.equal(recipe.Teacher("original", subject, 1.0).forward(batch).hidden[-1], wanted)


def test_all_weight_on_the_first_of_two_teachers_is_one_teacher(folders):
    teacher = bert()
    student, _ = teacher.cut(Selection({"layers": recipe.choose_layers(4, 2, "spread")}))
    for other in ("same", "foreign"):
        one = recipe.gather_teachers(teacher, (), (), "words", 24)
        two = recipe.gather_teachers(teacher, [folders[other]], [1.0, 0.0], "words", 24)
        batch = stream(teacher, two)[0]
        assert lesson(student, one, batch)[0] == lesson(student, two, batch)[0]


def test_soft_targets_of_one_vocabulary_are_averaged_and_states_of_another_width_lifted(folders):
    teacher = bert()
    student, _ = teacher.cut(Selection({"layers": recipe.choose_layers(4, 2, "spread")}))
    found = recipe.gather_teachers(teacher, [folders["wide"]], [3.0, 1.0], "words", 24)
    assert [(one.foreign, one.weight, one.project is None) for one in found] == [
        (False, 0.75, True),
        (False, 0.25, False),
    ]
    batch = stream(teacher, found)[0]
    _, parts = lesson(student, found, batch)
    real = batch["attention_mask"] > 0
    p, q = ((one.subject.forward(batch).prediction[real] / 2.0).softmax(-1) for one in found)
    log_s = (student.forward(batch).prediction[real] / 2.0).log_softmax(-1)
    wanted = torch.nn.functional.kl_div(log_s, 0.75 * p + 0.25 * q, reduction="batchmean")
    assert parts["soft"] == pytest.approx(5.0 * 4.0 * float(wanted.detach()), rel=1e-4)
    states = student.forward(batch, hidden=True).hidden[-1], found[1].forward(batch).hidden[-1]
    near = losses.cosine(*states, real, project=found[1].project) / int(real.sum())
    assert parts["near teacher1"] == pytest.approx(0.25 * float(near.detach()), rel=1e-4)


@pytest.mark.parametrize("weights", [(9.0, 1.0), (1.0, 9.0), (1.0, 0.0)])
def test_shares_of_the_soft_targets_add_up_to_one_where_a_foreign_teacher_tells_tokens(folders, weights):
    teacher = bert()
    student, _ = teacher.cut(Selection({"layers": recipe.choose_layers(4, 2, "spread")}))
    both = recipe.gather_teachers(teacher, [folders["foreign"]], (), "tokens", 24)
    batch = stream(teacher, both)[0]
    home, strange = (one / sum(weights) for one in weights)
    original = recipe.gather_teachers(teacher, (), (), "tokens", 24)
    alone = lesson(student, original, batch)[1]["soft"]
    mine, yours = student.forward(batch).prediction / 2.0, both[1].forward(batch).prediction / 2.0
    at, there = batch["teacher1.pairs"].T
    ids = both[1].shared
    log_s, log_t = (
        rows.flatten(0, 1)[place][:, some].log_softmax(-1)
        for rows, place, some in zip((mine, yours), (at, there), ids, strict=True)
    )
    apart = 5.0 * 4.0 * float(torch.nn.functional.kl_div(log_s, log_t, log_target=True, reduction="batchmean").detach())
    found = recipe.gather_teachers(teacher, [folders["foreign"]], weights, "tokens", 24)
    _, parts = lesson(student, found, batch, foreign="tokens")
    assert parts["soft"] == pytest.approx(home * alone, rel=1e-5)
    assert parts.get("soft teacher1", 0.0) == pytest.approx(strange * apart, rel=1e-4)
    by_words = recipe.gather_teachers(teacher, [folders["foreign"]], weights, "words", 24)
    assert lesson(student, by_words, batch)[1]["soft"] == alone  # a foreign teacher has no part in it: it stays whole


def test_soft_targets_of_masked_tokens_alone_are_so_of_a_foreign_teacher_too(folders):
    teacher = bert()
    student, _ = teacher.cut(Selection({"layers": recipe.choose_layers(4, 2, "spread")}))
    found = recipe.gather_teachers(teacher, [folders["foreign"]], (), "tokens", 24)
    batch = stream(teacher, found)[0]
    told = [[mine, yours] for mine, yours in batch["teacher1.pairs"].tolist() if batch["labels"].flatten()[mine] >= 0]
    assert 0 < len(told) < len(batch["teacher1.pairs"])
    only = {**batch, "teacher1.pairs": torch.tensor(told)}
    wanted = lesson(student, found, only, foreign="tokens")[1]["soft teacher1"]
    _, parts = lesson(student, found, batch, foreign="tokens", restrict=True)
    assert parts["soft teacher1"] == pytest.approx(wanted, rel=1e-5)
    assert parts["soft teacher1"] != pytest.approx(lesson(student, found, batch, foreign="tokens")[1]["soft teacher1"])
    nothing = {**batch, "teacher1.pairs": batch["teacher1.pairs"][:0]}
    assert lesson(student, found, nothing, foreign="tokens", restrict=True)[1]["soft teacher1"] == 0


@pytest.mark.parametrize("foreign", ["words", "tokens", "sentences"])
@pytest.mark.parametrize("other", ["foreign", "bpe"])
def test_a_teacher_of_another_tokenizer_teaches_and_padding_never_counts(folders, foreign, other):
    teacher = bert()
    student, _ = teacher.cut(Selection({"layers": recipe.choose_layers(4, 2, "spread")}))
    found = recipe.gather_teachers(teacher, [folders[other]], (), foreign, 24)
    assert [one.foreign for one in found] == [False, True]
    batch = stream(teacher, found)[0]
    loss, parts = lesson(student, found, batch, foreign=foreign)
    names = {"soft", "masked", "near original", "near teacher1"} | ({"soft teacher1"} if foreign == "tokens" else set())
    assert set(parts) == names
    assert all(0 < part < float("inf") for part in parts.values())
    loss.backward()
    assert (found[1].project is None) == (foreign == "sentences")
    if found[1].project is not None:
        assert found[1].project.weight.grad.abs().sum() > 0
    wider = dict(batch)
    for name in ("", "teacher1."):
        ids, mask = batch[f"{name}input_ids"], batch[f"{name}attention_mask"]
        wider[f"{name}input_ids"] = torch.cat([ids, torch.full((len(ids), 5), 77)], 1)
        wider[f"{name}attention_mask"] = torch.cat([mask, torch.zeros(len(ids), 5, dtype=mask.dtype)], 1)
    for name in ("labels", "teacher1.ours", "teacher1.theirs"):
        beyond = -100 if name == "labels" else -1
        wider[name] = torch.cat([batch[name], torch.full((len(batch[name]), 5), beyond)], 1)
    widths = [batch[f"{name}input_ids"].shape[1] for name in ("", "teacher1.")]
    rows = torch.stack([batch["teacher1.pairs"][:, side] // width * 5 for side, width in enumerate(widths)], 1)
    wider["teacher1.pairs"] = batch["teacher1.pairs"] + rows
    assert lesson(student, found, wider, foreign=foreign)[1] == pytest.approx(parts, rel=1e-4)


@pytest.mark.parametrize(("factors", "steps"), [((5.0, 0.0, 0.0), 30), ((0.0, 2.0, 0.0), 70), ((0.0, 0.0, 1.0), 30)])
def test_training_brings_each_loss_down_where_it_is_alone(tmp_path, folders, factors, steps):
    teacher = bert()
    others = [folders["same"], folders["foreign"]]
    (found,) = results(tmp_path, subject=teacher, teachers=others, factors=factors, steps=steps)
    plain, _ = teacher.cut(Selection({"layers": recipe.choose_layers(4, 2, "spread")}))
    company = recipe.gather_teachers(teacher, others[:1], (), "words", 24)
    items = stream(teacher, company).take(20)
    first, last = (
        np.mean([float(lesson(one, company, item, factors=factors)[0].detach()) for item in items])
        for one in (plain, found.subject)
    )
    assert last < 0.95 * first


def test_teachers_stay_as_they_are_and_maps_are_left_behind(tmp_path, folders):
    teacher = bert()
    before = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    (found,) = results(tmp_path, subject=teacher, teachers=[folders["same"], folders["foreign"]])
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.model.state_dict().items())
    plain, _ = teacher.cut(Selection({"layers": recipe.choose_layers(4, 2, "spread")}))
    assert found.subject.model.state_dict().keys() == plain.model.state_dict().keys()
    assert found.recovery.steps == 3
    stored = json.loads((tmp_path / "work" / "loyalty-layers=50%").with_suffix(".json").read_text())
    assert list(stored) == ["original", "teacher1", "teacher2", "ensemble"]
    assert any(note.startswith("loyal to ensemble: label loyalty 0.") for note in found.notes)


@pytest.mark.parametrize("foreign", ["words", "tokens"])
def test_several_teachers_teach_where_the_original_lies(folders, tmp_path, foreign):
    """They come from folders, and so to the CPU; loyalty is told after all the training."""
    with second_device.present():
        subject = bert()
        subject.model.to(second_device.NAME)
        others = [folders["foreign"], folders["wide"]]
        (found,) = results(tmp_path, subject=subject, teachers=others, foreign=foreign, steps=1)
    assert [note.split(":")[0] for note in found.notes] == [
        f"loyal to {name}" for name in ("original", "teacher1", "teacher2", "ensemble")
    ]


def test_soft_targets_alone_of_teachers_that_give_none_are_refused(folders, tmp_path):
    how = {"teachers": [folders["foreign"]], "weights": [0.0, 1.0], "factors": [5.0, 0.0, 0.0]}
    words = r"factors=\[5.0, 0.0, 0.0\]: no teacher gives soft targets: take foreign=tokens, or others"
    with pytest.raises(InputError, match=words):
        results(tmp_path, **how)
    assert results(tmp_path / "told", **how, foreign="tokens")


def test_too_few_texts_to_compare_are_refused_before_a_teacher_is_opened(tmp_path):
    how = {"teachers": [str(tmp_path / "unopened")], "foreign": "sentences", "train_batch": 2}
    with pytest.raises(InputError, match=r"^train_batch=2: foreign=sentences compares the texts of a batch: give"):
        results(tmp_path / "few", **how)
    for enough in ({"foreign": "words"}, {"train_batch": 3}, {"factors": (5.0, 2.0, 0.0)}):
        with pytest.raises(InputError, match="unopened"):
            results(tmp_path / "enough", **{**how, **enough})


def test_loyalty_is_to_each_teacher_of_the_vocabulary_and_to_their_mean(folders):
    teacher = bert()
    found = recipe.gather_teachers(teacher, [folders["same"]], (), "words", 24)
    told = recipe.describe_loyalty(teacher, found, held(), 8, 24)
    assert told["original"].startswith("label loyalty 1 [1, 1], probability loyalty 1 [1, 1]")
    assert not told["teacher1"].startswith("label loyalty 1 ")
    assert recipe.describe_loyalty(teacher, found[:1], brown(), 8, 24) == {}
    assert list(recipe.describe_loyalty(teacher, found[1:], brown(), 8, 24)) == ["teacher1"]


@pytest.mark.parametrize("foreign", ["words", "tokens", "sentences"])
def test_loyalty_is_to_teachers_of_another_vocabulary_too(folders, foreign):
    others = [folders["foreign"], folders["same"]]
    found = recipe.gather_teachers(bert(), others, (), foreign, 24)
    told = recipe.describe_loyalty(bert(), found, held(), 8, 24)
    assert list(told) == ["original", "teacher1", "teacher2", "ensemble"]
    assert told["teacher1"].startswith("label loyalty 0")
    without = recipe.describe_loyalty(bert(), [one for one in found if not one.foreign], held(), 8, 24)
    assert without == {name: text for name, text in told.items() if name != "teacher1"}


def test_loyalty_over_shared_tokens_is_that_of_one_vocabulary_where_all_are_shared(monkeypatch):
    """Whatever is chosen is hidden, so that a second reading by the same tokenizer hides the same."""
    monkeypatch.setattr(recipe.masking, "Masked", partial(masking.Masked, hidden=1.0, random=0.0))
    teacher = bert()
    student, _ = teacher.cut(Selection({"layers": np.array([True, True, True, False])}))
    same, foreign = (recipe.Teacher(f"{one}", teacher, 0.5, foreign=one) for one in (False, True))
    told = recipe.describe_loyalty(student, [same, foreign], held(), 8, 24)
    ours, theirs = ([float(n) for n in re.findall(r"loyalty ([0-9.]+)", told[name])] for name in ("False", "True"))
    assert theirs == pytest.approx(ours, abs=0.02)  # special tokens are not shared
    assert 0.05 < ours[0] < 0.95
    assert recipe.describe_loyalty(teacher, [foreign], held(), 8, 24)["True"].startswith("label loyalty 1 [1, 1]")


def test_teachers_that_share_nothing_to_tell_are_left_out_of_loyalty(folders, monkeypatch):
    found = recipe.gather_teachers(bert(), [folders["states"], folders["bpe"]], (), "words", 24)
    assert list(recipe.describe_loyalty(bert(), found, held(), 8, 24)) == ["original", "teacher2"]

    def none(*tokenizers):
        raise InputError("the vocabularies share 0 tokens")

    monkeypatch.setattr(recipe.alignment, "shared_vocabulary", none)
    assert list(recipe.describe_loyalty(bert(), found, held(), 8, 24)) == ["original"]


def test_a_teacher_without_a_head_is_compared_by_words(folders):
    (_, other) = recipe.gather_teachers(bert(), [folders["states"]], (), "words", 24)
    assert other.foreign
    with pytest.raises(InputError, match="teacher1 tells no masked tokens"):
        recipe.gather_teachers(bert(), [folders["states"]], (), "tokens", 24)


@pytest.mark.parametrize(("budget", "count"), [("layers=2", 2), ("layers=50%", 2), ("params=80%", 2), ("flops=99%", 3)])
def test_the_most_layers_under_the_budget_stay(budget, count):
    subject = bert()
    found, cost = recipe.most_layers(subject, Budget.parse(budget), 1, 24)
    assert found == count
    student, _ = subject.cut(Selection({"layers": recipe.choose_layers(4, count, "spread")}))
    assert cost["params"] == sum(p.numel() for p in student.model.parameters())


def test_a_speedup_is_met_by_what_layers_take(monkeypatch):
    seconds = {1: 0.2, 4: 0.8}
    monkeypatch.setattr(recipe, "time_layers", lambda subject, count, batch, length: seconds[count])
    found, cost = recipe.most_layers(bert(), Budget.parse("speedup=2x"), 1, 24)
    assert (found, cost["latency"]) == (2, pytest.approx(0.4))
    with pytest.raises(
        InfeasibleError, match=r"budget speedup=8x can't be met: latency can go down to 0\.2001, the limit is 0\.1; "
    ):
        recipe.most_layers(bert(), Budget.parse("speedup=8x"), 1, 24)


@pytest.mark.parametrize(
    ("second", "keep", "error"),
    [
        ("layers=2", "0,1,3", InputError),
        ("pattern=2:4", "spread", BudgetError),
        ("params=1%", "spread", InfeasibleError),
        ("flops=100%", "spread", InfeasibleError),
    ],
)
def test_what_a_later_budget_can_not_have_is_refused_before_the_first_is_trained(
    tmp_path, monkeypatch, second, keep, error
):
    monkeypatch.setattr(recipe.loop, "train", lambda *_, **__: pytest.fail("the first budget was trained"))
    with pytest.raises(error):
        results(tmp_path, "layers=3", second, keep=keep)


def test_a_run_that_goes_on_keeps_the_layers_it_began_with(tmp_path, monkeypatch):
    for whole in (0.8, 0.4):  # the second time the machine is in another mood
        seconds = {1: 0.2, 4: whole}
        monkeypatch.setattr(recipe, "time_layers", lambda subject, count, batch, length, s=seconds: s[count])
        (found,) = results(tmp_path, "latency=400ms")
        assert len(found.subject.layers()) == 2


def test_time_is_taken_of_real_forward_passes():
    assert 0 < recipe.time_layers(bert(), 1, 1, 16) < recipe.time_layers(bert(layers=12), 12, 1, 16)


def test_a_run_resumes_and_repeats_exactly(tmp_path, folders):
    first, second = (
        results(tmp_path / name, teachers=[folders["foreign"]])[0].subject.model.state_dict() for name in ("a", "b")
    )
    (again,) = results(tmp_path / "a", teachers=[folders["foreign"]])
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert all(torch.equal(tensor, again.subject.model.state_dict()[name]) for name, tensor in first.items())


def test_maps_begin_alike_for_every_budget(tmp_path, folders):
    both = results(tmp_path / "both", "layers=3", "layers=2", teachers=[folders["bpe"]])
    (alone,) = results(tmp_path / "alone", "layers=2", teachers=[folders["bpe"]])
    first, second = (found.subject.model.state_dict() for found in (both[1], alone))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("kind", ["roberta", "distilbert"])
def test_other_families_of_masked_language_models_are_halved(tmp_path, kind):
    config = tiny.model(kind).config
    torch.manual_seed(0)
    made = {"roberta": RobertaForMaskedLM, "distilbert": DistilBertForMaskedLM}[kind](config)
    teacher = open_subject(made.eval(), tokenizer=tiny.tokenizer())
    (found,) = results(tmp_path, "layers=2", subject=teacher, data=texts.read(tiny.sentences(60)))
    assert type(found.subject.model) is type(made)
    assert len(found.subject.layers()) == 2
    assert found.recovery.steps == 3


def test_from_a_folder_to_a_model_that_loads_as_its_teacher_does(tmp_path):
    bert().save(tmp_path / "teacher")
    (row,) = executor.run(
        "romanian_distilberts",
        str(tmp_path / "teacher"),
        list(brown().texts),
        "layers=50%",
        tmp_path / "small",
        **QUICK,
    )
    assert row.verdict == "met"
    assert 0 < row.measured["label_loyalty"].value < 1
    assert 0 < row.measured["probability_loyalty"].value < 1
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "small")
    assert type(model) is BertForMaskedLM
    assert model.config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"budgets": ["pattern=2:4"]}, BudgetError, "no pattern is made here; limit one of .*layers"),
        ({"budgets": ["layers=100%"]}, InfeasibleError, "layers=100% would change nothing: all of the model fits"),
        ({"budgets": ["params=1G"]}, InfeasibleError, "would change nothing: all of the model fits in it; ask"),
        ({"budgets": ["layers=0.5"], "keep": "0"}, InputError, "the numbers of 2 layers"),
        (
            {"budgets": ["params=1%"]},
            InfeasibleError,
            "params can go down to .*, the limit is .*; ask for params=[0-9.]+% or more",
        ),
        ({"budgets": ["examples=50%"]}, BudgetError, "examples has no cost here"),
        ({"factors": (0.0, 0.0, 0.0)}, InputError, "three numbers of at least 0"),
        ({"factors": (1.0, 2.0)}, InputError, "three numbers of at least 0"),
        ({"temperature": 0.0}, InputError, "option temperature=0.0 of romanian_distilberts"),
        ({"weights": (1.0, 2.0)}, InputError, "2 weights for 1 teachers"),
        ({"teachers": ["nowhere/at-all-here"]}, InputError, "nowhere/at-all-here"),
        ({"teachers": ["short"]}, InputError, "length=24 is beyond the 16 positions of teacher1"),
        ({"share": 1.5}, InputError, "option share=1.5 of romanian_distilberts"),
        ({"smoothing": -1.0}, InputError, "option smoothing=-1.0 of romanian_distilberts"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(tmp_path, monkeypatch, options, error, words):
    monkeypatch.chdir(tmp_path)
    bert(positions=16).save(tmp_path / "short")
    options = dict(options)
    budgets = options.pop("budgets", ["layers=50%"])
    with pytest.raises(error, match=words):
        results(tmp_path / "run", *budgets, **options)


def test_no_masked_language_model_is_refused(tmp_path):
    for other in (open_subject(tiny.model("llama"), tokenizer=tiny.tokenizer()), bert(head=False)):
        with pytest.raises(InputError, match="is no masked language model: give one"):
            results(tmp_path, subject=other)


def toy(_):
    """What `conformance.check_recipe` takes: see tests/conformance."""
    return toys.language("masked", "params=80%", steps=40, length=16, train_batch=8, lr=3e-3)
