"""AST on models of a few thousand parameters."""

from __future__ import annotations

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

import tiny
import toys
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.errors import BudgetError, InputError, UnsupportedError
from secateur.recipes.sparse import ast
from secateur.recover.sparsity import adaptive
from secateur.recover.training import objectives
from secateur.runs import keywords
from secateur.runs.backends.language import Language
from secateur.select.pattern import n_of_m
from secateur.subjects import Transformer, open_subject
from secateur.subjects.matrices import matrices, nonzero
from secateur.subjects.transformer import low_rank
from secateur.vocabulary import Budget, Result, Training

QUICK = {"steps": 12, "refresh": 2, "train_batch": 4, "length": 16, "lr": 1e-2}
DATA = texts.read(tiny.chains(200))


def subject(kind: str = "llama") -> Transformer:
    return open_subject(tiny.model(kind), tokenizer=tiny.tokenizer())


def results(root, *budgets, on: Transformer | str = "llama", **options) -> list[Result]:
    one = subject(on) if isinstance(on, str) else on
    with Run.open(root, {}) as run:
        return list(
            ast.ast(
                one,
                DATA,
                [Budget.parse(b) for b in budgets],
                run,
                **keywords.check_options(ast.ast, {**QUICK, **options}),
            )
        )


def held(one: Transformer) -> dict[str, torch.Tensor]:
    """Name -> booleans [d_out, d_in]: what is not zero."""
    return {name: matrix.weight != 0 for name, matrix in matrices(one.model, one.layers()).items()}


def weights(found: Result) -> dict[str, torch.Tensor]:
    return dict(found.subject.model.state_dict())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_every_group_along_the_inputs_keeps_exactly_n(kind, tmp_path):
    two, one = results(tmp_path, "pattern=2:4", "pattern=1:8", on=kind)
    whole = sum(stays.numel() for stays in held(subject(kind)).values())
    for found, n, m in ((two, 2, 4), (one, 1, 8)):
        for name, stays in held(found.subject).items():
            assert bool((stays.unflatten(1, (-1, m)).sum(2) == n).all()), name
        assert found.predicted == {"weights": whole * n / m} == found.cut.after
        assert sum(gone for gone, _ in found.cut.removed.values()) == whole * (m - n) / m
        assert type(found.subject.model) is type(subject(kind).model)
    # All that has no mask is dense, and trained.
    before = subject(kind).model
    assert not torch.equal(two.subject.model.get_input_embeddings().weight, before.get_input_embeddings().weight)
    assert bool((two.subject.model.get_input_embeddings().weight != 0).all())


def test_the_first_mask_is_by_magnitude_and_moves(tmp_path):
    (still,) = results(tmp_path / "a", "pattern=2:4", steps=0)
    original = matrices(subject().model, subject().layers())
    for name, stays in held(still.subject).items():
        assert torch.equal(stays, n_of_m(original[name].weight.abs(), 2, 4)), name
        kept = matrices(still.subject.model)[name].weight[stays]
        assert torch.equal(kept, original[name].weight[stays])
    assert still.recovery is None
    (moved,) = results(tmp_path / "b", "pattern=2:4")
    differ = sum(int((stays != held(still.subject)[name]).sum()) for name, stays in held(moved.subject).items())
    whole = sum(stays.numel() for stays in held(moved.subject).values())
    flips = moved.recovery.settings["flips"]
    assert [row[0] for row in flips] == [2, 4, 6, 8, 10]
    assert flips[-1][2] == pytest.approx(differ / whole)
    assert 0 < differ < whole
    assert any("changed sides per refresh in the first quarter" in note for note in moved.notes)


def test_a_fixed_mask_stays(tmp_path):
    (still,) = results(tmp_path / "a", "pattern=2:4", steps=0)
    (fixed,) = results(tmp_path / "b", "pattern=2:4", refresh=0)
    for name, stays in held(fixed.subject).items():
        assert torch.equal(stays, held(still.subject)[name]), name
    assert fixed.recovery.settings["flips"] == []
    assert not fixed.notes
    assert any(not torch.equal(tensor, weights(still)[name]) for name, tensor in weights(fixed).items())


def test_wanda_weighs_inputs_and_is_measured_once(tmp_path):
    with torch.no_grad():
        one = subject()
        one.model.model.layers[0].input_layernorm.weight[::4] *= 100
    (found,) = results(tmp_path, "pattern=2:4", on=one, score="wanda", steps=0, calibration=8)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert float(held(found.subject)[name][:, ::4].float().mean()) > 0.9
    (plain,) = results(tmp_path / "plain", "pattern=2:4", on=one, steps=0)
    assert float(held(plain.subject)[name][:, ::4].float().mean()) < 0.7
    assert (tmp_path / "work" / "norms.safetensors").is_file()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_boosted_has_branches_that_are_counted(kind, tmp_path):
    (plain,) = results(tmp_path / "a", "pattern=2:4", on=kind, steps=0)
    (found,) = results(tmp_path / "b", "pattern=2:4", on=kind, steps=0, slorb=8)
    added = 0
    for matrix in matrices(subject(kind).model, subject(kind).layers()).values():
        rows, columns = matrix.weight.shape
        added += rows * columns // 8 + columns * columns // 8
        branch = low_rank.find_branches(found.subject.model)[matrix.module]
        sparse = matrices(found.subject.model)[matrix.name].weight
        restored = (sparse + branch.S @ branch.X).unflatten(1, (-1, 8)).sum(2)
        torch.testing.assert_close(restored, matrix.weight.unflatten(1, (-1, 8)).sum(2), rtol=1e-4, atol=1e-5)
    before = sum(p.numel() for p in plain.subject.model.parameters())
    assert sum(p.numel() for p in found.subject.model.parameters()) == before + added
    assert any(f"(k=8) add {added} parameters" in note for note in found.notes)
    for name, tensor in weights(plain).items():
        assert torch.equal(tensor, weights(found)[name]), name


def test_the_second_moment_of_closed_weights_is_as_asked(tmp_path):
    runs = {
        moment: weights(results(tmp_path / moment, "pattern=2:4", moment=moment)[0])
        for moment in ("both", "gradient", "update")
    }
    for one, other in (("both", "gradient"), ("both", "update"), ("gradient", "update")):
        assert any(not torch.equal(tensor, runs[other][name]) for name, tensor in runs[one].items())


def test_branches_train_as_they_are_told_to(tmp_path):
    (start,) = results(tmp_path / "a", "pattern=2:4", steps=0, slorb=8)
    (both,) = results(tmp_path / "b", "pattern=2:4", slorb=8)
    (alone,) = results(tmp_path / "c", "pattern=2:4", slorb=8, projection=False)
    first = next(iter(low_rank.find_branches(start.subject.model)))
    initial, trained, fixed = (low_rank.find_branches(one.subject.model)[first] for one in (start, both, alone))
    assert not torch.equal(trained.X, initial.X)
    assert torch.equal(fixed.X, initial.X)
    assert not torch.equal(trained.S, initial.S)
    assert not torch.equal(fixed.S, initial.S)
    extra = both.recovery.flops / both.recovery.tokens
    (plain,) = results(tmp_path / "d", "pattern=2:4", steps=1)
    added = sum(
        p.numel() for branch in low_rank.find_branches(both.subject.model).values() for p in branch.parameters()
    )
    assert extra == pytest.approx(plain.recovery.flops / plain.recovery.tokens + 3 * 2 * added)


def test_training_and_its_pull_are_as_they_are_asked_for(tmp_path, monkeypatch):
    asked, real = [], ast.loop.train
    monkeypatch.setattr(ast.loop, "train", lambda *given, **how: asked.append((given[3], how)) or real(*given, **how))
    (found,) = results(tmp_path, "pattern=2:4", decay=0.3, ramp=0.75)
    assert "decoupled_adamw(decay=0.3, ramp=9, " in found.recovery.settings["optimizer"]
    ((training, how),) = asked
    assert training.schedule == "cosine-zero"
    assert how["dropout"] is False


def test_branches_start_as_they_are_told_to(tmp_path):
    def start(init: str, seed: int = 0) -> low_rank.Branch:
        place = tmp_path / f"{init}-{seed}"
        (found,) = results(place, "pattern=2:4", steps=0, slorb=8, slorb_init=init, seed=seed)
        return next(iter(low_rank.find_branches(found.subject.model).values()))

    mean, total, drawn, again, other = (
        start(*how) for how in (("mean",), ("sum",), ("xavier", 1), ("xavier", 1), ("xavier", 2))
    )
    assert torch.equal(mean.X, total.X)
    torch.testing.assert_close(total.S, 8 * mean.S)
    assert not drawn.S.any()
    assert torch.equal(drawn.X, again.X)
    assert not torch.equal(drawn.X, other.X)


def test_packed_experts_have_masks_and_no_branches(tmp_path):
    torch.manual_seed(0)
    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4)
    experts = dict(num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, pad_token_id=0)
    model = MixtralForCausalLM(MixtralConfig(**sizes, **experts, bos_token_id=5, eos_token_id=6)).eval()
    one = open_subject(model, tokenizer=tiny.tokenizer())
    (found,) = results(tmp_path / "a", "pattern=2:4", on=one)
    whole = held(one)
    assert sum("experts" in name for name in whole) == 2 * 2 * 4
    for name, stays in held(found.subject).items():
        assert bool((stays.unflatten(1, (-1, 4)).sum(2) == 2).all()), name
    assert weights(found).keys() == one.model.state_dict().keys()
    with pytest.raises(UnsupportedError, match=r"slorb needs a module .*experts\.gate_up_proj\[0\] is packed"):
        results(tmp_path / "b", "pattern=2:4", on=one, slorb=8)
    with pytest.raises(UnsupportedError, match="score=wanda needs a module"):
        results(tmp_path / "c", "pattern=2:4", on=one, score="wanda")


def test_the_teacher_stays_as_it_is(tmp_path):
    one = subject()
    before = {name: tensor.clone() for name, tensor in one.model.state_dict().items()}
    results(tmp_path, "pattern=2:4", on=one)
    assert all(torch.equal(before[name], tensor) for name, tensor in one.model.state_dict().items())
    assert all(parameter.grad is None for parameter in one.model.parameters())
    assert not one.model.training


def test_a_student_that_is_its_teacher_has_no_divergence():
    teacher = subject()
    student = teacher.copy()
    objective = objectives.distil(
        student.forward, teacher.forward, output="logits", logit=1.0, temperature=2.0, fused=True,
        hidden=[(0, 0), (4, 4)], measure="relative", alpha=1.0,
    )  # fmt: skip
    batch = teacher.example(2, 8)
    with adaptive.moving(student.model, {}, steps=1):
        loss, parts = objective(batch, objectives.count(batch))
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    assert parts.keys() == {"logit", "hidden"}


def test_the_loss_is_the_weighted_sum_of_the_paper(tmp_path, monkeypatch):
    asked = []
    real = ast.objectives.distil

    def watched(student, teacher, **options):
        asked.append((teacher, options))
        return real(student, teacher, **options)

    monkeypatch.setattr(ast.objectives, "distil", watched)
    results(tmp_path / "a", "pattern=2:4", steps=1)
    results(tmp_path / "b", "pattern=2:4", steps=1, kd=0.0)
    results(tmp_path / "c", "pattern=2:4", steps=1, kd=1.0, temperature=1.0, hidden=0.5)
    (teacher, first), (none, second), (_, third) = asked
    assert teacher is not None
    assert none is None
    assert (first["task"], first["logit"], first["temperature"]) == (pytest.approx(0.33), 0.67, 2.0)
    assert (second["task"], second["logit"]) == (1.0, 0.0)
    assert (third["task"], third["logit"], third["alpha"]) == (0.0, 1.0, 0.5)
    assert third["hidden"] == [(layer, layer) for layer in range(5)]


def test_the_loops_settings_of_an_optimiser_are_followed_or_refused(tmp_path):
    """They were taken, and left unread."""
    runs = {}
    for betas in ((0.9, 0.95), (0.5, 0.6)):
        (found,) = results(tmp_path / str(betas), "pattern=2:4", training=Training(betas=betas))
        assert f"betas={betas}" in found.recovery.settings["optimizer"]
        runs[betas] = weights(found)
    assert any(not torch.equal(tensor, runs[0.5, 0.6][name]) for name, tensor in runs[0.9, 0.95].items())
    for wrong in ("optimizer=sgd", "optimizer=adamw8bit", "momentum=0.3"):
        with pytest.raises(InputError, match="AdamW of its own"):
            results(tmp_path / wrong, "pattern=2:4", training=wrong)


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"hidden": -1.0}, {"calibration": 0}, {"length": 1}])
def test_options_that_make_no_sense_are_refused_by_name(wrong, tmp_path):
    """A temperature of 0 took the teacher's weight away, and trained without it."""
    ((name, value),) = wrong.items()
    with pytest.raises(InputError, match=f"option {name}={value} of ast"):
        results(tmp_path, "pattern=2:4", **wrong)


def test_another_model_may_teach(tmp_path):
    place = str(tmp_path / "model")  # of another width, as only logits are compared
    subject("gpt2").save(tmp_path / "model")
    (own,) = results(tmp_path / "a", "pattern=2:4")
    (other,) = results(tmp_path / "b", "pattern=2:4", teacher=place)
    assert any(not torch.equal(tensor, weights(own)[name]) for name, tensor in weights(other).items())
    own_flops, flops = (subject(kind).flops_per_token(16) for kind in ("llama", "gpt2"))
    assert other.recovery.flops - own.recovery.flops == pytest.approx((flops - own_flops) * own.recovery.tokens)
    for options, message in (({"kd": 0.0}, "teaches nothing"), ({"hidden": 0.5}, "leave it 0")):
        with pytest.raises(InputError, match=message):
            results(tmp_path / message, "pattern=2:4", teacher=place, **options)


def test_a_teacher_of_other_tokens_is_refused(tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["another"])
    open_subject(tiny.model("llama"), tokenizer=tokenizer).save(tmp_path / "other")
    with pytest.raises(InputError, match="use models of one tokenizer"):
        results(tmp_path / "a", "pattern=2:4", teacher=str(tmp_path / "other"))


def test_a_run_that_is_asked_again_gives_the_same_bytes(tmp_path):
    (first,) = results(tmp_path / "one", "pattern=2:4", slorb=8)
    (again,) = results(tmp_path / "one", "pattern=2:4", slorb=8)
    (other,) = results(tmp_path / "two", "pattern=2:4", slorb=8)
    for name, tensor in weights(first).items():
        assert torch.equal(tensor, weights(again)[name]), name
        assert torch.equal(tensor, weights(other)[name]), name
    assert first.recovery.settings == again.recovery.settings


def test_a_killed_run_ends_with_the_same_bytes(tmp_path, monkeypatch):
    options = {"slorb": 8, "projection": False, "training": "every=3"}
    (whole,) = results(tmp_path / "whole", "pattern=2:4", **options)
    real = ast.objectives.distil

    def killed(*models, **how):
        inner, calls = real(*models, **how), []

        def stopping(batch, totals):
            calls.append(None)
            if len(calls) == 9:  # the last checkpoint is of step 6, after a new mask
                raise ConnectionAbortedError
            return inner(batch, totals)

        return stopping

    monkeypatch.setattr(ast.objectives, "distil", killed)
    with pytest.raises(ConnectionAbortedError):
        results(tmp_path / "killed", "pattern=2:4", **options)
    monkeypatch.setattr(ast.objectives, "distil", real)
    (again,) = results(tmp_path / "killed", "pattern=2:4", **options)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(again)[name]), name
    assert whole.recovery.settings["flips"] == again.recovery.settings["flips"]


def test_early_stopping_judges_on_texts_held_out(tmp_path, monkeypatch):
    read, real = [], ast.texts.batches

    def note(corpus, *given, **how):
        read.append(set(corpus.texts))
        return real(corpus, *given, **how)

    monkeypatch.setattr(ast.texts, "batches", note)
    (found,) = results(tmp_path, "pattern=2:4", training="patience=1,evaluate_every=3", lr=1e-9, min_lr=0.0)
    assert len(found.recovery.settings["evaluations"]) >= 2
    kept = found.recovery.settings["kept_step"]
    assert kept < 12
    steps = [step for step, *_ in found.recovery.settings["flips"]]
    assert steps == list(range(2, kept + 1, 2)), "none of steps that were not done, or whose weights were not kept"
    train, held = read
    assert held
    assert not train & held


def test_a_dry_run_trains_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(ast.loop, "train", None)
    (found,) = results(tmp_path, "pattern=2:4", dry_run=True)
    assert found.recovery is None
    assert found.predicted["weights"] == nonzero(matrices(found.subject.model, found.subject.layers()))


def test_what_is_saved_is_plain_and_measured_with_its_branches(tmp_path):
    one = subject()
    (found,) = results(tmp_path / "run", "pattern=2:4", on=one, slorb=8)
    found.subject.save(tmp_path / "out")
    again = open_subject(tmp_path / "out")
    assert len(low_rank.find_branches(again.model)) == 4 * 7
    place = Language().environment(one, 1, 16, 1)
    corpus = texts.read(tiny.chains(50, 1))
    (_, with_branches, _), sizes = (
        Language().compare(one, again, corpus, place),
        Language().sizes(again, one.example(1, 16)),
    )
    assert Language().compare(one, found.subject, corpus, place)[1] == with_branches
    assert sizes == Language().sizes(found.subject, one.example(1, 16))
    before = Language().sizes(one, one.example(1, 16))
    for measure in ("params", "bytes", "flops"):
        assert sizes[measure].value > before[measure].value, measure
    plain = open_subject(type(one.model).from_pretrained(tmp_path / "out"), tokenizer=one.tokenizer)
    for name, stays in held(plain).items():
        assert bool((stays.unflatten(1, (-1, 4)).sum(2) == 2).all()), name
    alone = Language().compare(one, plain, corpus, place)[1]
    assert alone["perplexity"].value != pytest.approx(with_branches["perplexity"].value, rel=1e-3)


def test_what_can_not_be_followed_is_refused_by_name(tmp_path):
    for number, (budget, message) in enumerate((
        ("weights=50%", "ast can't follow budget weights=50%, which limits weights: give a pattern"),
        ("params=50%,pattern=2:4", "which limits params"),
        ("pattern=4:4", "lets every weight stay"),
    )):  # fmt: skip
        with pytest.raises(BudgetError, match=message):
            results(tmp_path / str(number), budget)
    with pytest.raises(UnsupportedError, match=r"q_proj\.weight has 64 inputs, no multiple of 5: pattern=2:5"):
        results(tmp_path / "ragged", "pattern=2:5")
    with pytest.raises(InputError, match=r"slorb=24 does not divide the 64 inputs of .*q_proj\.weight"):
        results(tmp_path / "k", "pattern=2:4", slorb=24)
    with pytest.raises(UnsupportedError, match="ast trains language models, and this one gives states"):
        results(tmp_path / "bert", "pattern=2:4", on="bert")
    for options in ({"kd": 1.5}, {"ramp": -1.0}, {"decay": -1.0}, {"refresh": -1}):
        with pytest.raises(InputError, match=f"{next(iter(options))}={next(iter(options.values())):g}"):
            results(tmp_path / str(options), "pattern=2:4", **options)


def toy(_):
    """What `conformance.check_recipe` takes: see tests/conformance."""
    return toys.language("llama", "pattern=2:4", steps=20, refresh=5, length=16, train_batch=8, slorb=8)
