"""Vocabularies that may and may not differ; caches equal to the live teacher, resumed, and refused when damaged."""

import json
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import pre_tokenizers

from recover.students import VOCABULARY, Batches, bert, llama
from secateur.data import examples
from secateur.data.examples import Examples
from secateur.errors import DataError, InputError, MendedWarning
from secateur.recover.distillation import losses, teachers
from secateur.recover.training import loop
from tiny import tokenizer

KEY = {"teacher": "a", "tokenizer": "b", "data": "c"}


# --------------------------------------------------------------------------------------------------- vocabularies


def test_padding_of_the_logits_passes_and_the_shared_size_comes_back():
    size = len(tokenizer())
    assert teachers.check_vocabularies(tokenizer(), tokenizer(), size, size + 64) == size
    assert teachers.check_vocabularies(tokenizer(), tokenizer(), size + 128, size + 64) == size + 64


def test_two_subjects_are_compared_by_their_tokenizers_and_the_sizes_of_their_models():
    def subject(size, reads):
        return SimpleNamespace(tokenizer=reads, model=SimpleNamespace(config=SimpleNamespace(vocab_size=size)))

    size, other = len(tokenizer()), tokenizer()
    student = subject(size + 64, tokenizer())
    assert teachers.check_tokens(student, subject(size + 128, tokenizer())) == size + 64
    assert teachers.check_tokens(student, subject(size, None)) == size, "it reads what the student reads"
    other.add_tokens(["wheelbarrow"])
    with pytest.raises(InputError, match="only in the teacher's, 'wheelbarrow' the first"):
        teachers.check_tokens(student, subject(size + 64, other))


def test_another_tokenizer_is_refused_by_what_differs():
    size, other = len(tokenizer()), tokenizer()
    other.add_tokens(["wheelbarrow"])
    with pytest.raises(InputError, match="1 tokens are only in the teacher's, 'wheelbarrow' the first"):
        teachers.check_vocabularies(tokenizer(), other, size + 1, size + 1)
    with pytest.raises(InputError, match="only in the student's"):
        teachers.check_vocabularies(other, tokenizer(), size + 1, size + 1)


def test_tokens_in_another_order_are_refused():
    one, other = tokenizer(), tokenizer()
    one.add_tokens(["rake", "hoe"])
    other.add_tokens(["hoe", "rake"])
    with pytest.raises(InputError, match=r"is .* for the student and .* for the teacher"):
        teachers.check_vocabularies(one, other, len(one), len(one))


def test_equal_vocabularies_that_split_a_text_differently_are_refused():
    one, other = tokenizer(), tokenizer()
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # leaves punctuation at its word
    with pytest.raises(InputError, match="split a probe text differently"):
        teachers.check_vocabularies(one, other, len(one), len(one))


def test_a_model_with_fewer_logits_than_tokens_is_refused():
    size = len(tokenizer())
    with pytest.raises(InputError, match=f"the student has logits for {size - 1} tokens"):
        teachers.check_vocabularies(tokenizer(), tokenizer(), size - 1, size)


def test_fingerprints_tell_things_apart():
    assert teachers.fingerprint(llama(1)) == teachers.fingerprint(llama(1))
    assert teachers.fingerprint(llama(1)) != teachers.fingerprint(llama(2))
    assert teachers.fingerprint(llama(1)) != teachers.fingerprint(llama(1).bfloat16())
    other = tokenizer()
    other.add_tokens(["wheelbarrow"])
    assert teachers.fingerprint(tokenizer()) == teachers.fingerprint(tokenizer())
    assert teachers.fingerprint(tokenizer()) != teachers.fingerprint(other)
    assert teachers.fingerprint({"a": 1, "b": 2}) == teachers.fingerprint({"b": 2, "a": 1})
    assert teachers.fingerprint("one") != teachers.fingerprint("two")


# ----------------------------------------------------------------------------------------------------------- live


def test_a_live_teacher_gives_no_gradient_and_no_dropout_and_keeps_its_mode():
    model = bert(1, dropout=0.5).train()
    ask = teachers.live(model)
    one, other = ask(Batches()[0]), ask(Batches()[0])
    assert torch.equal(one.last_hidden_state, other.last_hidden_state)
    assert not one.last_hidden_state.requires_grad
    assert model.training
    seen = teachers.live(model, lambda batch, hidden: (model.training, hidden))(Batches()[0], hidden=True)
    assert seen == (False, True)


def test_a_live_teacher_stays_on_its_device():
    """The batch comes to the teacher: one that was moved and left there would take memory from the student."""
    model = torch.nn.Linear(4, 2, device="meta")
    assert teachers.live(model)({"input": torch.ones(3, 4)}).device.type == "meta"
    assert teachers.live(model, lambda batch: batch["input"].device.type)({"input": torch.ones(3, 4)}) == "cpu"
    assert model.weight.device.type == "meta"


# ---------------------------------------------------------------------------------------------------------- top k


def logits_of(model):
    ask = teachers.live(model)
    return lambda batch: ask(batch).logits


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_cache_of_all_tokens_gives_the_live_loss_and_its_gradient(tmp_path, temperature):
    teacher, student = llama(1), llama(2)
    cache = teachers.cache_topk(
        tmp_path, logits_of(teacher), Batches(), 3, key=KEY, k=VOCABULARY, temperature=temperature, shard=2
    )
    assert len(cache) == teachers.count_cached(tmp_path) == 3
    assert teachers.count_cached(tmp_path / "none") == 0
    for index in range(3):
        batch = Batches()[index]
        found = student(**batch).logits
        live = losses.kl(found, logits_of(teacher)(batch), batch["attention_mask"], temperature=temperature)
        entry = cache[index]
        cached = losses.topk_kl(found, **entry, mask=batch["attention_mask"], temperature=temperature)
        assert cached.item() == pytest.approx(live.item(), rel=5e-3)
        one, other = (torch.autograd.grad(loss, found, retain_graph=True)[0] for loss in (cached, live))
        torch.testing.assert_close(one, other, atol=2e-4, rtol=2e-2)
        assert (entry["log_probabilities"].exp().sum(-1) + entry["remaining"].exp()).allclose(torch.tensor(1.0))


def test_a_cache_of_few_tokens_is_close_below_the_live_loss(tmp_path):
    teacher, student = llama(1), llama(2)
    teacher.lm_head.weight.data *= 8  # a trained teacher is sure of itself
    batch = Batches()[0]
    found = student(**batch).logits
    live = losses.kl(found, logits_of(teacher)(batch), batch["attention_mask"]).item()
    values = []
    for k in (1, 8, 32):
        cache = teachers.cache_topk(tmp_path / str(k), logits_of(teacher), Batches(), 1, key=KEY, k=k)
        values.append(losses.topk_kl(found, **cache[0], mask=batch["attention_mask"]).item())
    assert values[0] < values[1] < values[2] < live * 1.001
    assert values[2] > 0.8 * live


def test_a_wider_teacher_is_cached_on_the_shared_vocabulary(tmp_path):
    teacher, student = llama(1, vocabulary=VOCABULARY + 8), llama(2)
    batch = Batches()[0]
    found = student(**batch).logits
    wide = teachers.cache_topk(tmp_path / "wide", logits_of(teacher), Batches(), 1, key=KEY, k=VOCABULARY + 8)
    with pytest.raises(InputError, match=f"vocabulary={VOCABULARY}"):
        losses.topk_kl(found, **wide[0], mask=batch["attention_mask"])
    cache = teachers.cache_topk(
        tmp_path / "shared", logits_of(teacher), Batches(), 1, key=KEY, k=VOCABULARY, vocabulary=VOCABULARY
    )
    live = losses.kl(found, logits_of(teacher)(batch), batch["attention_mask"]).item()
    cached = losses.topk_kl(found, **cache[0], mask=batch["attention_mask"]).item()
    assert cached == pytest.approx(live, rel=5e-3)


def test_a_cache_is_continued_and_not_asked_again(tmp_path):
    asked = []

    def logits(batch):
        asked.append(1)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return logits_of(llama(1))(batch)

    with pytest.raises(KeyboardInterrupt):
        teachers.cache_topk(tmp_path, logits, Batches(), 5, key=KEY, k=4, shard=2)
    cache = teachers.cache_topk(tmp_path, logits, Batches(), 5, key=KEY, k=4, shard=2)
    assert len(asked) == 4 + 2  # what was asked before the interruption is kept, half a file too
    whole = teachers.cache_topk(tmp_path / "whole", logits_of(llama(1)), Batches(), 5, key=KEY, k=4, shard=2)
    for index in range(5):
        assert all(torch.equal(cache[index][name], whole[index][name]) for name in whole[index])
    teachers.cache_topk(tmp_path, logits, Batches(), 5, key=KEY, k=4, shard=2)
    assert len(asked) == 6
    with pytest.raises(DataError, match="0 to 4, not 5"):
        cache[5]


@pytest.mark.parametrize("name", ["teacher", "tokenizer", "data"])
def test_a_cache_of_another_key_is_refused_by_its_name(tmp_path, name):
    teachers.cache_topk(tmp_path, logits_of(llama(1)), Batches(), 1, key=KEY, k=4)
    with pytest.raises(DataError, match=f"another {name}"):
        teachers.cache_topk(tmp_path, logits_of(llama(1)), Batches(), 1, key=KEY | {name: "z"}, k=4)


def test_a_cache_in_another_order_is_refused_whatever_the_key_says(tmp_path):
    def made(batches):
        return teachers.cache_topk(tmp_path, logits_of(llama(1)), batches, 4, key=KEY, k=4, shard=2)

    made(Batches())
    for other in (Batches(seed=1), [Batches()[i] for i in (0, 1, 3, 2)]):
        with pytest.raises(DataError, match="another order") as caught:
            made(other)
        assert "\n" not in str(caught.value)
    assert len(made([Batches()[i] for i in range(4)])) == 4


def test_a_cache_takes_two_bytes_a_probability_and_four_a_token(tmp_path):
    teachers.cache_topk(tmp_path, logits_of(llama(1)), Batches(8), 8, key=KEY, k=32)
    stored = load_file(tmp_path / "000000.safetensors")
    assert stored["0.values"].dtype == torch.float16
    assert stored["0.indices"].dtype == torch.int32
    tokens = sum(int(Batches(8)[i]["attention_mask"].sum()) for i in range(8))
    assert (tmp_path / "000000.safetensors").stat().st_size < 1.1 * tokens * (6 * 32 + 4) + 3000


def spoil(path, damage):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[:-5])


def bytes_in(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
@pytest.mark.parametrize("broken", [[0], [1], [0, 2]])
def test_only_what_a_damaged_file_held_is_asked_for_again(tmp_path, damage, broken):
    asked = []

    def made():
        def logits(batch):
            asked.append(1)
            return logits_of(llama(1))(batch)

        return teachers.cache_topk(tmp_path, logits, Batches(), 6, key=KEY, k=4, shard=2)

    made()
    whole = bytes_in(tmp_path)
    asked.clear()
    for number in broken:
        spoil(tmp_path / f"{number:06d}.safetensors", damage)
    words = f"{len(broken)} of 3 files in .* are missing, damaged or cut short, 00000{broken[0]}.safetensors the first"
    with pytest.warns(UserWarning, match=words) as caught:
        made()
    assert [("\n" in str(one.message)) for one in caught] == [False]
    assert len(asked) == 2 * len(broken)
    assert bytes_in(tmp_path) == whole
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made()
    assert len(asked) == 2 * len(broken)


def test_a_teacher_that_stops_while_it_is_asked_again_leaves_what_it_said(tmp_path):
    asked = []

    def logits(batch):
        if len(asked) == 1:
            raise KeyboardInterrupt
        asked.append(1)
        return logits_of(llama(1))(batch)

    how = {"key": KEY, "k": 4, "shard": 3}
    good = teachers.cache_topk(tmp_path / "good", logits_of(llama(1)), Batches(), 7, **how)
    teachers.cache_topk(tmp_path / "bad", logits_of(llama(1)), Batches(), 7, **how)
    spoil(tmp_path / "bad" / "000001.safetensors", "cut")
    with pytest.warns(UserWarning, match="1 of 3 files"), pytest.raises(KeyboardInterrupt):
        teachers.cache_topk(tmp_path / "bad", logits, Batches(), 7, **how)
    with pytest.warns(UserWarning, match="1 of 4 files"):
        found = teachers.cache_topk(tmp_path / "bad", logits_of(llama(1)), Batches(), 9, **how)
    for index in range(7):
        assert all(torch.equal(found[index][name], good[index][name]) for name in good[index])
        assert found.order(index) == good.order(index)
    assert len(found) == 9


def test_a_damaged_cache_of_another_key_or_order_is_refused_and_not_asked_for(tmp_path):
    teachers.cache_topk(tmp_path, logits_of(llama(1)), Batches(), 2, key=KEY, k=4, shard=1)
    spoil(tmp_path / "000001.safetensors", "cut")
    with pytest.raises(DataError, match="another data"):
        teachers.cache_topk(tmp_path, None, Batches(), 2, key=KEY | {"data": "z"}, k=4, shard=1)
    with pytest.raises(DataError, match="another order"):
        teachers.cache_topk(tmp_path, None, Batches(seed=1), 2, key=KEY, k=4, shard=1)


@pytest.mark.parametrize("damage", ["flip", "index", "elsewhere"])
def test_what_can_not_be_asked_for_again_is_refused(tmp_path, damage):
    """A file that is damaged while it is in use, and an index, without which nobody knows what the files are of."""
    cache = teachers.cache_topk(tmp_path, logits_of(llama(1)), Batches(), 2, key=KEY, k=4, shard=1)
    if damage == "flip":
        spoil(tmp_path / "000001.safetensors", "flip")
    elif damage == "index":
        (tmp_path / "index.json").write_text("{")
    else:  # what is damaged is written anew, but nowhere else
        text = (tmp_path / "index.json").read_text()
        (tmp_path / "index.json").write_text(text.replace("000001.safetensors", "../mine.safetensors"))
    with pytest.raises(DataError, match="remove the folder") as caught:
        cache[1] if damage == "flip" else teachers.cache_topk(tmp_path, None, Batches(), 2, key=KEY, k=4, shard=1)
    assert "\n" not in str(caught.value)


def test_padding_takes_no_room(tmp_path):
    cache = teachers.cache_topk(tmp_path, logits_of(llama(1)), Batches(), 1, key=KEY, k=4)
    assert cache[0]["indices"].shape == (int(Batches()[0]["attention_mask"].sum()), 4)
    assert len(json.loads((tmp_path / "index.json").read_text())["files"]) == 1


# ------------------------------------------------------------------------------------------------------- encoders


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("disk", [False, True])
def test_outputs_are_asked_once_and_equal_the_live_ones(tmp_path, disk, half):
    model, asked = bert(1), []

    def forward(batch):
        asked.append(1)
        return {"hidden": model(**batch).last_hidden_state}

    options = {"folder": tmp_path if disk else None, "half": half, "key": KEY}
    cache = teachers.Outputs(forward, Batches(), **options)
    want = model(**Batches()[3]).last_hidden_state
    for _ in range(2):
        found = cache[3]["hidden"]
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, want.detach(), rtol=0, atol=2e-3 if half else 0)
    assert len(asked) == 1
    again = teachers.Outputs(forward, Batches(), **options)
    torch.testing.assert_close(again[3]["hidden"], found, rtol=0, atol=0)
    assert len(asked) == (1 if disk else 2)


def test_outputs_on_disk_refuse_another_key_and_none():
    with pytest.raises(InputError, match="key="):
        teachers.Outputs(dict, Batches(), folder="anywhere")


def test_outputs_on_disk_refuse_other_batches_and_another_order(tmp_path):
    def outputs(batches):
        return teachers.Outputs(lambda batch: {"sum": batch["input_ids"].sum(-1)}, batches, folder=tmp_path, key=KEY)

    made = outputs(Batches())
    for index in (2, 0):
        made[index]
    assert torch.equal(outputs(Batches())[2]["sum"], made[2]["sum"])
    for other in (Batches(seed=1), [Batches()[index] for index in (0, 2, 1)]):
        with pytest.raises(DataError, match="another order"):
            outputs(other)
    index = tmp_path / "index.json"
    known = json.loads(index.read_text())
    for file in known["files"]:  # as written before files said what they are of
        del file["order"]
    index.write_text(json.dumps(known))
    assert len(outputs(Batches(seed=1))[2]["sum"])


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_outputs_ask_again_for_what_a_damaged_file_held(tmp_path, damage):
    asked = []

    def outputs():
        def forward(batch):
            asked.append(batch)
            return {"sum": batch["input_ids"].sum(-1)}

        return teachers.Outputs(forward, Batches(), folder=tmp_path, key=KEY)

    made = outputs()
    made.fill(3)
    assert len(asked) == 3
    assert [index in made for index in range(4)] == [True] * 3 + [False]
    spoil(tmp_path / "000001.safetensors", damage)
    with pytest.warns(MendedWarning, match=r"1 of 3 files in .* 000001.safetensors the first"):
        again = outputs()
    again.fill(3)
    assert len(asked) == 4
    assert all(torch.equal(again[index]["sum"], made[index]["sum"]) for index in range(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outputs().fill(3)
    assert len(asked) == 4
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


def test_half_precision_is_for_numbers_that_fit_it(tmp_path):
    large = {"one": torch.tensor([1e5, 1.0]), "two": torch.tensor([math.inf, 0.1]), "three": torch.tensor([3])}
    found = teachers.Outputs(lambda batch: large, Batches(), folder=tmp_path, key=KEY, half=True)[0]
    assert torch.equal(found["one"], large["one"])
    assert found["two"].tolist() == [math.inf, pytest.approx(0.1, abs=1e-4)]
    assert found["two"][1] != large["two"][1]
    assert torch.equal(found["three"], large["three"])


def test_rows_of_examples_are_asked_once_and_follow_them_in_any_order(tmp_path):
    values = torch.arange(10.0)[:, None] * torch.ones(3)
    ordered = [{"x": values[start : start + 4]} for start in range(0, 10, 4)]
    asked = []

    def ask(batch):
        asked.append(len(batch["x"]))
        return batch["x"] + 0.5

    for _ in range(2):
        rows = teachers.cache_rows(tmp_path, ask, ordered, key=KEY)
    assert asked == [4, 4, 2]
    assert rows.dtype == torch.float16
    places = [[3, 9], [0, 3], [9, 1]]
    told = teachers.Told([{"x": values[some]} for some in places], lambda index: places[index], {"said": rows})
    for index in range(3):
        assert torch.equal(told[index]["said"], told[index]["x"] + 0.5)
        assert told[index]["said"].dtype == torch.float32
    with pytest.raises(DataError, match="another order"):
        teachers.cache_rows(tmp_path, ask, ordered[::-1], key=KEY)


def test_what_was_said_of_examples_stays_theirs_where_some_are_held_out():
    values = torch.arange(10.0)[:, None]
    feed = examples.batches(Examples(values), batch=3, seed=1)
    parts = teachers.Told(feed, feed.places, {"said": values + 0.5}).hold_out(0.3)
    for part in parts:
        for batch in part:
            assert torch.equal(batch["said"], batch["inputs"] + 0.5)
    seen = [{float(value) for batch in part for value in batch["inputs"]} for part in parts]
    assert [len(some) for some in seen] == [6, 3]
    assert not seen[0] & seen[1]


def test_several_students_learn_from_one_pass_of_the_teacher():
    teacher, asked = bert(1), []

    def forward(batch):
        asked.append(1)
        return {"hidden": teacher(**batch).last_hidden_state}

    batches = teachers.Joined(Batches(), teachers.Outputs(forward, Batches()))

    def distilled(cached):
        student = bert(2)

        def objective(batch, totals):
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            target = batch["teacher_hidden"] if cached else teacher(**inputs).last_hidden_state
            ours = student(**inputs).last_hidden_state
            return losses.token(ours, target, batch["attention_mask"]) / totals["tokens"], {}

        loop.train(student, batches if cached else Batches(), objective, steps=4, lr=1e-3)
        return student.state_dict()

    first, second, live = distilled(True), distilled(True), distilled(False)
    assert len(asked) == 4
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name in first:
        torch.testing.assert_close(first[name], live[name], rtol=0, atol=1e-4)


def test_a_remembered_teacher_stands_beside_its_batches(tmp_path):
    class Said:
        def __init__(self, prediction):
            self.prediction = prediction

    teacher, batches = llama(1), Batches()
    asked = []

    def forward(batch, **_):
        asked.append(batch)
        return Said(teacher(**batch).logits)

    how = {"k": 4, "temperature": 1.0, "key": {"data": "d"}}
    joined = teachers.join_topk(tmp_path, teacher, forward, tokenizer(), batches, 2, **how)
    assert torch.equal(joined[1]["input_ids"], batches[1]["input_ids"])
    assert joined[1]["teacher_indices"].shape[-1] == 4
    assert len(asked) == 2
    teachers.join_topk(tmp_path, teacher, forward, tokenizer(), batches, 2, **how)
    assert len(asked) == 2
    with pytest.raises(DataError, match="another teacher"):
        teachers.join_topk(tmp_path, llama(2), forward, tokenizer(), batches, 2, **how)


def test_drawn_tokens_stand_for_all_others_in_the_mean(tmp_path):
    """The gradient from many draws is that of the live teacher, which the likeliest tokens alone do not give."""
    torch.manual_seed(0)
    teacher, student = torch.randn(1, VOCABULARY), torch.randn(1, VOCABULARY, requires_grad=True)
    rows = 4000
    many = {"input_ids": torch.zeros(1, rows, dtype=torch.long), "attention_mask": torch.ones(1, rows)}
    gradients = {}
    for drawn in (0, 3):
        cache = teachers.cache_topk(
            tmp_path / str(drawn), lambda batch: teacher.expand(1, rows, -1), [many], 1, key=KEY, k=6, drawn=drawn
        )
        entry = cache[0]
        loss = losses.topk_kl(student.expand(rows, -1), **entry) / rows
        gradients[drawn] = torch.autograd.grad(loss, student)[0]
        if drawn:
            assert torch.isinf(entry["remaining"]).all()
            assert not (entry["indices"][:, :3, None] == entry["indices"][:, None, 3:]).any()
    whole = torch.autograd.grad(losses.kl(student, teacher), student)[0]
    apart = {drawn: float((found - whole).norm() / whole.norm()) for drawn, found in gradients.items()}
    assert apart[3] < 0.3 * apart[0]


@pytest.mark.parametrize("peak", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("count", [1, 5, 19])
def test_draws_are_the_distribution_in_the_mean_and_vary_less_than_draws_with_replacement(peak, count):
    torch.manual_seed(0)
    chances, rows, lot = torch.softmax(peak * torch.randn(20), -1), 20_000, torch.Generator().manual_seed(1)
    found, shares = teachers._systematic(chances.expand(rows, -1).contiguous(), count, lot)
    assert (found.sort(-1).values.diff(dim=-1) > 0).all(), "none twice"
    torch.testing.assert_close(shares.sum(-1), torch.ones(rows))
    seen = torch.zeros(rows, 20).scatter_(-1, found, shares)
    torch.testing.assert_close(seen.mean(0), chances, atol=0.01, rtol=0)
    taken = (seen > 0).float().mean(0)
    level = float(seen[seen > 0].min())
    for chance, share, often in zip(chances, seen.T, taken, strict=True):
        if chance > level * 1.001:
            assert often == 1, "what is above the threshold is always there"
            torch.testing.assert_close(share, chance.expand(rows))
        elif often:
            torch.testing.assert_close(share[share > 0].mean(), torch.tensor(level))
    again = chances.expand(rows, -1).multinomial(count, replacement=True, generator=lot)
    others = torch.zeros(rows, 20).scatter_add_(-1, again, torch.full((rows, count), 1 / count))
    assert seen.var(0).sum() <= 1.02 * others.var(0).sum()
    if count == 19:
        assert seen.var(0).sum() < 0.5 * others.var(0).sum()


def test_draws_from_fewer_than_are_asked_for_keep_their_own_share():
    chances = torch.zeros(2, 10)
    chances[:, [3, 7]] = torch.tensor([0.75, 0.25])
    found, shares = teachers._systematic(chances, 4, torch.Generator().manual_seed(0))
    assert found[:, :2].tolist() == [[3, 7]] * 2
    assert shares.tolist() == [[0.75, 0.25, 0.0, 0.0]] * 2


def test_draws_are_part_of_what_a_cache_is_of(tmp_path):
    for drawn, words in ((4, "drawn=4 of k=4"), (-1, "drawn=-1")):
        with pytest.raises(InputError, match=words):
            teachers.cache_topk(tmp_path / "no", logits_of(llama(1)), Batches(), 1, key=KEY, k=4, drawn=drawn)
    one, other = (
        teachers.cache_topk(tmp_path / name, logits_of(llama(1)), Batches(), 2, key=KEY, k=4, drawn=2)
        for name in ("a", "b")
    )
    assert all(torch.equal(one[1][name], other[1][name]) for name in one[1])
    with pytest.raises(DataError, match="another drawn"):
        teachers.cache_topk(tmp_path / "a", logits_of(llama(1)), Batches(), 2, key=KEY, k=4)


def test_nothing_is_drawn_where_a_teacher_rules_all_others_out(tmp_path):
    """Logits of -inf are a teacher's way to forbid: nothing remains outside, and nothing can be drawn from it."""
    logits = torch.full((1, 3, VOCABULARY), -torch.inf)
    logits[..., :3] = torch.tensor([2.0, 1.0, 0.0])
    batch = {"input_ids": torch.zeros(1, 3, dtype=torch.long), "attention_mask": torch.ones(1, 3)}
    entry = teachers.cache_topk(tmp_path, lambda _: logits, [batch], 1, key=KEY, k=8, drawn=4)[0]
    torch.testing.assert_close(entry["log_probabilities"].exp().sum(-1), torch.ones(3))
    student = torch.randn(3, VOCABULARY, requires_grad=True)
    whole = losses.kl(student, logits[0])
    torch.testing.assert_close(losses.topk_kl(student, **entry), whole, rtol=1e-3, atol=1e-3)
