"""PH3 on a small GPT-2 that knows facts, copies, and is undecided between the two; and on models of other families."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import pytest
import torch

import secateur
import tiny
from assets import facts
from secateur._utils.rundir import Run
from secateur.data import conflicts as reading
from secateur.data.conflicts import Conflicts
from secateur.errors import BudgetError, DataError, InfeasibleError, InputError, UnsupportedError
from secateur.methods import conflicts
from secateur.recipes.language import ph3
from secateur.runs import keywords
from secateur.subjects import open_subject
from secateur.subjects.transformer import heads
from secateur.vocabulary import Budget, Figure

WORLD = facts.World()


@functools.cache
def subject():
    return open_subject(tiny.knowing(WORLD))


@functools.cache
def prompts(kind="substitution"):
    table = reading.read(facts.rows(WORLD))
    return conflicts.keep_known(subject(), conflicts.build(table, subject().tokenizer, kind=kind))


@functools.cache
def parts():
    return prompts().split(0.3, seed=0)


def rates(student, data=None):
    items = conflicts.encode(data or parts()[1], student.tokenizer)
    return {name: figure.value for name, figure in conflicts.rates(student, items).items()}


def toy(folder):
    def trust(student):
        return rates(student)["context_rate"]

    return {"subject": subject().copy(), "data": parts()[0], "budget": "params=95%", "options": {}, "quality": trust}


def results(root, *budgets, model=None, data=None, **options):
    how = keywords.check_options(ph3.ph3, options)
    with Run.open(root, {}) as run:
        wanted = [Budget.parse(budget) for budget in budgets]
        return list(ph3.ph3(model or subject(), data or parts()[0], wanted, run, **how))


def test_each_side_moves_its_own_rate_and_the_other_one_back(tmp_path):
    """Two-way control, and more than random heads in as many places."""
    before = rates(subject())
    assert min(before["memory_rate"], before["context_rate"]) > 0.15  # undecided
    for trust, other in (("context", "memory"), ("memory", "context")):
        (found,) = results(tmp_path / trust, "heads=80%", trust=trust)
        after = rates(found.subject)
        assert after[f"{trust}_rate"] > before[f"{trust}_rate"] + 0.1
        assert after[f"{other}_rate"] < before[f"{other}_rate"]
        chance = []
        for seed in range(4):
            (random,) = results(tmp_path / f"{trust}-{seed}", "heads=80%", trust=trust, score="random", seed=seed)
            chance.append(rates(random.subject)[f"{trust}_rate"])
        assert after[f"{trust}_rate"] > sum(chance) / 4 + 0.1


def test_heads_go_by_the_budget_and_are_predicted(tmp_path):
    few, many = results(tmp_path, "heads=90%", "heads=6")
    assert [heads.count_heads(found.subject) for found in (few, many)] == [10, 6]
    for found in (few, many):
        cost = found.subject.units(batch=1, length=128).cost()
        assert found.predicted == {**cost, "heads": float(heads.count_heads(found.subject))}
    lists = [heads.read_lists(tmp_path / f"heads-{name}.json") for name in ("heads=90%", "heads=6")]
    for small, large in zip(*(one.values() for one in lists), strict=True):
        assert large[: len(small)] == small  # of a larger cut, the smaller one's go first
    (masked,) = results(tmp_path / "mask", "heads=90%", form="mask")
    assert masked.subject.model.config.to_dict() == subject().model.config.to_dict()
    tokens = torch.tensor([conflicts.encode(parts()[1], subject().tokenizer)[0].prompt])
    ours, theirs = (one.subject.forward({"input_ids": tokens}).prediction for one in (masked, few))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("share", "total", "count"), [(0.05, 48, 2), (0.05, 1024, 51), (0.01, 12, 1), (0.15, 48, 7)])
def test_a_ratio_is_rounded_and_takes_one_head_at_least(share, total, count):
    assert ph3.count_share(share, total) == count


def test_the_ratio_is_chosen_on_prompts_set_aside(tmp_path):
    (found,) = results(tmp_path, "heads=99%", ratios="1%,25%,60%,25%")
    table = json.loads((tmp_path / "work" / "ratios-heads=99%.json").read_text())
    assert list(table["tried"]) == ["1", "3", "7"]
    best = max(table["tried"].values())
    assert table["tried"][str(table["best"])] == best
    assert heads.count_heads(found.subject) == 12 - table["best"]
    assert any("prompts set aside" in note for note in found.notes)
    _, aside = parts()[0].split(seed=1)
    gone = heads.read_lists(tmp_path / "heads.json")["trust-context"]
    items = conflicts.encode(aside, subject().tokenizer)
    assert best[0] == conflicts.rates(subject(), items, silenced=gone)["context_rate"].value
    with pytest.raises(InfeasibleError, match=r"heads=50% can't be met: without 1 of 12 heads"):
        results(tmp_path / "b", "heads=50%", ratios="1%")
    with pytest.raises(InputError, match="'5 heads' is no share"):
        results(tmp_path / "c", "heads=50%", ratios="5 heads")


@pytest.mark.parametrize("match", ["first", "full"])
def test_of_equal_rates_the_likelier_answers_decide_then_fewer_heads(monkeypatch, match):
    rate = {1: 0.5, 2: 0.75, 3: 0.75, 4: 0.75, 5: 0.25}
    likely = {1: 0.9, 2: 0.25, 3: 0.5, 4: 0.5, 5: 0.9}
    order = [(0, at) for at in range(6)]

    def rates_of(_, items, *, match, silenced):
        assert silenced == order[: len(silenced)]
        asked.append(match)
        return {"context_rate": Figure(rate[len(silenced)]), "memory_rate": Figure(1 - rate[len(silenced)])}

    def logs_of(_, items, silenced):
        return torch.tensor([[1 - likely[len(silenced)], likely[len(silenced)]]]).log()

    asked = []
    monkeypatch.setattr(conflicts, "rates", rates_of)
    monkeypatch.setattr(conflicts, "log_answers", logs_of)
    found = ph3.choose_count(None, [], order, [1, 2, 3, 4, 5], "context", match)
    assert found["best"] == 3
    assert found["tried"]["2"] == [0.75, 0.25]
    assert ph3.choose_count(None, [], order, [1, 2, 3, 4, 5], "memory", match)["best"] == 5
    assert set(asked) == {match}


def test_of_scores_without_a_sign_each_side_has_its_own_and_equal_heads_keep_their_order():
    """What goes to trust the context are heads of the memory."""
    signed = {"layers.1.heads": torch.tensor([0.0, 2.0]), "layers.0.heads": torch.tensor([0.0, -1.0])}
    assert ph3.sort_heads(signed, "context") == [(1, 1), (0, 0), (1, 0), (0, 1)]
    assert ph3.sort_heads(signed, "memory") == [(0, 1), (0, 0), (1, 0), (1, 1)]
    apart = {"memory.layers.0.heads": torch.tensor([3.0, 1.0]), "context.layers.0.heads": torch.tensor([1.0, 2.0])}
    assert ph3.sort_heads(apart, "context") == [(0, 0), (0, 1)]
    assert ph3.sort_heads(apart, "memory") == [(0, 1), (0, 0)]


def test_flips_are_heads_of_other_signs_among_the_strongest():
    kinds = {"one": [5.0, -1.0, 9.0, 0.5, -2.0, -5.0], "two": [5.0, -1.0, -9.0, -0.5, -2.0, -5.0]}
    data = Conflicts([reading.Conflict("the tree is", " old", " young", kind=kind) for kind in kinds])
    tables = iter({"layers.0.heads": torch.tensor(values)} for values in kinds.values())
    model = open_subject(tiny.model("gpt2"), tokenizer=tiny.tokenizer())
    order = [(0, at) for at in (2, 0, 3, 1, 4, 5)]
    (note,) = ph3.describe_flips(lambda _: next(tables), data, model, order)
    assert note == "2 of the 6 strongest heads change sides between one and two conflicts"
    assert ph3.describe_flips(lambda _: {}, data.choose(kind="one"), model, order) == []
    unsigned = {"memory.layers.0.heads": torch.tensor(kinds["one"])}
    assert ph3.describe_flips(lambda _: unsigned, data, model, order) == []


def test_scores_are_kept_with_both_changes_and_turn_with_the_roles(tmp_path):
    results(tmp_path, "heads=90%")
    with Run.open(tmp_path, {}) as run:
        table = run.tensors("scores", lambda: pytest.fail("scored twice"))
    items = conflicts.encode(parts()[0], subject().tokenizer)
    turned = [conflicts.Item(i.prompt, i.context, i.memory, i.corrupted, i.plain) for i in items]
    for by in ("probability", "logit"):
        ours, theirs = (conflicts.score(subject(), some, by=by) for some in (items, turned))
        for layer in range(3):
            name = f"layers.{layer}.heads"
            torch.testing.assert_close(ours[name], -theirs[name])
            torch.testing.assert_close(ours[f"dM.{name}"], theirs[f"dC.{name}"])
            torch.testing.assert_close(ours[f"dC.{name}"] - ours[f"dM.{name}"], table[name])
    order = ph3.sort_heads(table, "context")
    assert order == ph3.sort_heads(table, "memory")[::-1]
    worth = [float(table[f"layers.{layer}.heads"][head]) for layer, head in order]
    assert worth == sorted(worth, reverse=True)


@pytest.mark.parametrize("score", ["logit", "ablation", "gradient", "magnitude"])
def test_the_baselines_rank_all_heads(tmp_path, score):
    (found,) = results(tmp_path, "heads=80%", score=score, samples=16)
    assert heads.count_heads(found.subject) == 9


def test_a_seed_draws_its_own_prompts_to_score(tmp_path, monkeypatch):
    asked, real = [], conflicts.score

    def spy(model, items, **how):
        asked.append([item.prompt for item in items])
        return real(model, items, **how)

    monkeypatch.setattr(conflicts, "score", spy)
    for seed in (0, 1):
        results(tmp_path / str(seed), "heads=90%", samples=6, seed=seed)
    all_prompts = [item.prompt for item in conflicts.encode(parts()[0], subject().tokenizer)]
    assert all(len(prompts) == 6 and all(one in all_prompts for one in prompts) for prompts in asked)
    assert asked[0] != asked[1]


def test_numbers_of_heads_are_compared_by_the_match_that_is_asked_for(tmp_path, monkeypatch):
    asked, real = [], ph3.choose_count
    monkeypatch.setattr(ph3, "choose_count", lambda *given: asked.append(given[-2:]) or real(*given))
    results(tmp_path, "heads=99%", ratios="1%,25%", samples=6, match="full", trust="memory")
    assert asked == [("memory", "full")]


def test_each_score_is_what_its_name_says():
    items = conflicts.encode(parts()[0], subject().tokenizer)[:12]
    rank = functools.partial(ph3.rank_heads, items=items, corruption="swap", seed=0)
    for score, by in (("patching", "probability"), ("logit", "logit")):
        found, wanted = rank(subject(), score=score), conflicts.score(subject(), items, by=by)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(value, wanted[name]) for name, value in found.items())
    found = rank(subject(), score="gradient")
    for side in ("memory", "context"):
        for name, value in conflicts.gradients(subject(), items, side).items():
            torch.testing.assert_close(found[f"{side}.{name}"], value)
    quiet = subject().copy()
    with torch.no_grad():
        weight = quiet.model.transformer.h[1].attn.c_proj.weight
        weight.unflatten(0, (4, -1))[2].mul_(1e-3)
    table = rank(quiet, score="magnitude")
    for trust in ("context", "memory"):
        assert ph3.sort_heads(table, trust)[0] == (1, 2), "what adds least goes first"


def test_noise_on_the_embeddings_needs_no_corrupted_prompt(tmp_path):
    bare = Conflicts([type(one)(one.prompt, one.memory, one.context) for one in parts()[0].items], known=True)
    with pytest.raises(DataError, match="prompt 1 has no corrupted one"):
        results(tmp_path / "a", "heads=90%", data=bare)
    (found,) = results(tmp_path / "b", "heads=80%", data=bare, corruption="noise")
    (again,) = results(tmp_path / "c", "heads=80%", data=bare, corruption="noise")
    assert found.notes == again.notes
    before = conflicts.rates(subject(), conflicts.encode(bare, subject().tokenizer))
    (balance,) = [note for note in found.notes if note.startswith("before the cut")]
    shares = [round(100 * before[f"{side}_rate"].value) for side in ("memory", "context")]
    assert f"{len(bare)} scored prompts {shares[0]} % of the answers are the memory's and {shares[1]} %" in balance
    assert "hardly undecided" not in balance
    (sure,) = ph3.describe_balance(
        subject(), [replace(item, context=(1,)) for item in conflicts.encode(bare, subject().tokenizer)]
    )
    assert sure.endswith("hardly undecided, and the heads of the weaker side are told by few prompts")
    assert rates(found.subject)["context_rate"] > rates(subject())["context_rate"]


def test_kinds_and_relations_are_scored_apart_and_flips_are_told(tmp_path):
    both = Conflicts([*parts()[0].items, *prompts("coherent").items], known=True)
    (found,) = results(tmp_path / "a", "heads=90%", data=both)
    assert any("strongest heads change sides between substitution and coherent conflicts" in n for n in found.notes)
    (one,) = results(tmp_path / "b", "heads=80%", data=both, kind="substitution", relation="capital")
    others = parts()[1].choose(relation="language")
    before, after = (rates(each, others) for each in (subject(), one.subject))
    assert after["context_rate"] > before["context_rate"]  # found on another relation


def test_knock_outs_tell_where_attributes_come_in(tmp_path):
    results(tmp_path, "heads=90%", window=1, samples=12)
    rows = json.loads((tmp_path / "work" / "knockouts-1.json").read_text())
    assert {(row["what"], row["first"]) for row in rows} == {
        (what, layer) for what in ("subject", "attribute", "relation", "attention", "ffn") for layer in range(3)
    }
    lost = {row["what"]: row["context"] for row in conflicts.knock_out(subject(), parts()[0].take(range(12)), 3)}
    assert lost["attribute"] < -0.5  # without it nothing tells the context's answer
    with pytest.raises(InputError, match="window=4: the model has 3 layers"):
        results(tmp_path / "b", "heads=90%", window=4)


def test_as_few_passes_as_a_replay_needs():
    """Each head takes the layers from its own on, at one position: counted in rows that pass an MLP."""
    items = conflicts.encode(parts()[0], subject().tokenizer)[:20]
    counted, handles = [], []
    for path in subject().layers():
        inside = subject().model.get_submodule(path).mlp
        handles.append(inside.register_forward_pre_hook(lambda _, args: counted.append(args[0].shape[:2])))
    conflicts.score(subject(), items)
    for handle in handles:
        handle.remove()
    groups = len({len(item.prompt) for item in items})
    replayed = sum(rows for rows, length in counted if length == 1)
    needed = len(items) * 4 * (3 + 2 + 1)
    assert needed < replayed <= 1.3 * needed  # one batch is checked by its own outputs
    assert sum(length > 1 for _, length in counted) == 2 * 3 * groups  # a clean and a corrupted pass


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_grouped_queries_are_masked_and_whole_groups_cut(tmp_path, kind):
    """A model that knows nothing, with prompts that are taken as they are."""
    model = open_subject(tiny.uneven(tiny.model(kind)), tokenizer=tiny.tokenizer())
    rows = [
        {"prompt": f"the {a} is old . the {a} is", "memory": " young", "context": " old",
         "corrupted": f"the {b} is late . the {b} is", "subject": a}
        for a, b in (("tree", "bud"), ("leaf", "root"), ("garden", "branch"))
    ]  # fmt: skip
    data = reading.read(rows)
    (found,) = results(tmp_path / "a", "heads=70%", model=model, data=data)
    total = heads.count_heads(model)
    assert heads.count_heads(found.subject) <= 0.7 * total
    (tight,) = results(tmp_path / "b", "params=97%", model=model, data=data)
    assert tight.predicted["params"] == tight.subject.units().cost()["params"] <= 0.97 * model.units().cost()["params"]
    assert any(site.endswith("kv_groups") for site in tight.cut.removed)


@pytest.mark.wide
def test_a_run_from_a_table_of_facts(tmp_path):
    """The user's case: a folder and a file in, evidence, a list to switch with and a model that loads plainly out."""
    table = facts.write_table(WORLD, tmp_path / "facts.jsonl")
    (tmp_path / "texts.txt").write_text("\n".join(one.prompt for one in parts()[0].items))
    folder, out = tiny.knowing(WORLD), tmp_path / "out"
    how = dict(length=16, batch=2, form="mask", texts=str(tmp_path / "texts.txt"))
    (dry,) = secateur.run("ph3", str(folder), str(table), "heads=80%", out, dry_run=True, **how)
    assert not out.exists()
    (row,) = secateur.run("ph3", str(folder), str(table), "heads=80%", out, **how)
    assert row.verdict == "met"
    assert dry.predicted["heads"] == row.predicted["heads"] == row.after["heads"].value == 9
    assert row.before["heads"].value == 12
    assert row.after["context_rate"].value > row.before["context_rate"].value
    assert {"memory_rate", "other_rate", "no_conflict_rate", "texts/perplexity"} <= row.after.keys()
    (again,) = secateur.run("ph3", str(folder), str(table), "heads=80%", out, **how)
    assert again == row
    from transformers import AutoModelForCausalLM

    plain, whole = (AutoModelForCausalLM.from_pretrained(place) for place in (out, folder))
    tokens = torch.tensor([conflicts.encode(parts()[1], subject().tokenizer)[0].prompt])
    with secateur.heads(whole, "trust-context", lists=out), torch.no_grad():
        torch.testing.assert_close(whole(tokens).logits, plain(tokens).logits, atol=1e-5, rtol=1e-5)
    with (
        pytest.raises(InputError, match="other weights in its heads"),
        secateur.heads(plain, "trust-memory", lists=out),
    ):
        pass  # it has no such heads any more, and would lose others on top
    several = secateur.run(
        "ph3", str(folder), str(table), ["heads=90%", "heads=60%"], tmp_path / "two", samples=8, **how
    )
    for each in several:
        gone = heads.read_lists(tmp_path / "two" / each.target)["trust-context"]
        assert len(gone) == 12 - each.after["heads"].value
        with secateur.heads(whole, "trust-context", lists=tmp_path / "two" / each.target):
            pass
    with (
        pytest.raises(InputError, match="or one of its folders heads=60%, heads=90%"),
        secateur.heads(whole, "trust-context", lists=tmp_path / "two"),
    ):
        pass
    (other,) = secateur.run(
        "ph3", str(folder), str(table), "heads=80%", tmp_path / "cut", trust="memory", **how | {"form": "cut"}
    )
    assert other.after["memory_rate"].value > other.before["memory_rate"].value
    small = secateur.load(tmp_path / "cut")
    with secateur.heads(whole, "trust-memory", lists=tmp_path / "cut"), torch.no_grad():
        torch.testing.assert_close(whole(tokens).logits, small(tokens).logits, atol=1e-5, rtol=1e-5)


def test_what_can_not_be_done_is_refused_in_one_line(tmp_path):
    with pytest.raises(BudgetError, match="no time to promise"):
        results(tmp_path / "a", "speedup=1.1x")
    with pytest.raises(BudgetError, match="can't meet pattern=2:4: it cuts heads"):
        results(tmp_path / "b", "pattern=2:4")
    with pytest.raises(BudgetError, match="heads=100% lets all heads stay, so nothing would change"):
        results(tmp_path / "f", "heads=100%")
    with pytest.raises(InputError, match="ratios: rounded they are all 12 heads, and one is to stay"):
        results(tmp_path / "g", "heads=90%", ratios="97%,99%")
    with pytest.raises(InfeasibleError, match="without 11 of 12 heads"):
        results(tmp_path / "c", "heads=1%")
    with pytest.raises(DataError, match="no prompt of relation=river: it has capital, language"):
        results(tmp_path / "d", "heads=90%", relation="river")
    model = open_subject(tiny.model("bert"), tokenizer=tiny.tokenizer())
    with pytest.raises(UnsupportedError, match="heads are replayed in decoders"):
        results(
            tmp_path / "e",
            "heads=90%",
            model=model,
            data=reading.read([{"prompt": "the", "memory": " tree", "context": " leaf", "corrupted": "a"}]),
        )


def test_heads_that_are_masked_already_neither_go_nor_count(tmp_path):
    """Those of the least weights go first: the masked ones, if they were counted."""
    how = {"form": "mask", "score": "magnitude"}
    (first,) = results(tmp_path / "a", "heads=75%", **how)
    silent = heads.find_silent(first.subject)
    assert len(silent) == 3
    assert not any("masked already" in note for note in first.notes)
    (second,) = results(tmp_path / "b", "heads=80%", model=first.subject, **how)
    assert second.predicted["heads"] == heads.count_heads(second.subject) == 7  # of nine, at most 7.2
    lists = heads.read_lists(tmp_path / "b" / "heads.json")
    assert not any(head in silent for some in lists.values() for head in some)
    (note,) = (note for note in second.notes if "masked already" in note)
    assert all(str(head) in note for head in silent)
