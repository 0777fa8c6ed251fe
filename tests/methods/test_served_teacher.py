"""A teacher behind a real HTTP server: the cache of the live one; kept if the server stops, refused if it differs."""

import os
import threading
import time

import pytest
import torch

import processes
from chat_server import say, speaking, telling
from chat_server import served as serving
from recover.students import llama
from secateur.clients.chat import Local, Meter, Scored, Server
from secateur.errors import BudgetError, DataError, InputError, ServerError
from secateur.methods import served_teacher
from secateur.recover.distillation import losses, teachers
from tiny import letters, tokenizer

pytest.importorskip("httpx2")

KEY = {"data": "d"}
TEXTS = ["café?", "the old tree", "a"]


@pytest.fixture(scope="module")
def teacher():
    model = llama(1, vocabulary=258)
    model.lm_head.weight.data *= 6
    return Local(model, letters())


class Batches:
    """Letters, padded on the right; another text first in each batch."""

    def __getitem__(self, index):
        texts = [f"{index} {text}" for text in TEXTS]
        return dict(letters()(texts, padding=True, return_tensors="pt", return_token_type_ids=False))


def pieces(ids):
    """Names as servers write what they decode: halves of characters have none."""
    return letters().batch_decode([[number] for number in ids])


def byte_names(ids):
    """Names as they stand in the vocabulary."""
    return letters().convert_ids_to_tokens(ids)


def asked(url, folder, count=3, **how):
    server = Server(url, "tiny", retries=1, backoff=0.001, timeout=5)
    return served_teacher.cache_served(folder, server, letters(), Batches(), count, key=KEY, **{"k": 8, **how})


@pytest.mark.parametrize("names", [None, byte_names], ids=["numbers", "names"])
def test_it_is_the_cache_of_the_live_teacher(tmp_path, teacher, names):
    ask = teachers.live(teacher.model)
    live = teachers.cache_topk(tmp_path / "live", lambda batch: ask(batch).logits, Batches(), 3, key=KEY, k=8)
    with serving(speaking(teacher, names) if names else speaking(teacher)) as url:
        found = asked(url, tmp_path / "served")
    for index in range(3):
        for name, wanted in live[index].items():
            torch.testing.assert_close(found[index][name], wanted, rtol=0, atol=2e-3)
    assert torch.equal(found[1]["indices"], live[1]["indices"])


def test_a_name_of_several_tokens_leaves_its_mass_to_the_rest(tmp_path, teacher):
    with serving(speaking(teacher, pieces)) as url:
        entry = asked(url, tmp_path)[0]
    mass = entry["log_probabilities"].exp().sum(-1) + entry["remaining"].exp()
    torch.testing.assert_close(mass, torch.ones_like(mass))
    halves = [number for number, name in enumerate(pieces(range(258))) if "\ufffd" in name]
    assert halves
    kept = entry["log_probabilities"] > -torch.inf
    assert not torch.isin(entry["indices"][kept], torch.tensor(halves)).any()
    batch, student = Batches()[0], llama(2, vocabulary=258)
    loss = losses.topk_kl(student(**batch).logits, **entry, mask=batch["attention_mask"])
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in student.parameters())


def test_several_are_asked_at_once_and_stay_in_their_order(tmp_path, teacher):
    answer, lock, now, most = speaking(teacher), threading.Lock(), [0], [0]

    def slow(body, headers):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02 * (len(body["prompt"]) % 3))  # later ones are ready first
        with lock:
            now[0] -= 1
        return answer(body, headers)

    with serving(slow) as url:
        apart = [asked(url, tmp_path / f"{at_once}", at_once=at_once) for at_once in (1, 5)]
    assert 3 < most[0] <= 5, "more than one batch of three has"
    for index in range(3):
        assert all(torch.equal(apart[0][index][name], apart[1][index][name]) for name in apart[0][index])


def test_how_many_tokens_a_server_gives_is_told(tmp_path):
    said = {"error": {"message": "Requested prompt logprobs of 64, which is greater than max allowed: 20"}}

    def strict(body, headers):
        return say(said, 400) if body["logprobs"] > 20 else speaking(Local(llama(1, vocabulary=258), letters()))(
            body, headers
        )  # fmt: skip

    with serving(strict) as url, pytest.raises(ServerError, match=r"max allowed: 20.*--max-logprobs.*k=64") as caught:
        asked(url, tmp_path, k=64)
    assert "\n" not in str(caught.value)


def test_what_is_asked_live_is_what_a_cache_holds(tmp_path, teacher):
    with serving(speaking(teacher)) as url:
        server = Server(url, "tiny")
        live, kept = served_teacher.Live(Batches(), server, letters(), k=8), asked(url, tmp_path)
        batch = live[1]
    assert torch.equal(batch["input_ids"], Batches()[1]["input_ids"])
    assert torch.equal(batch["teacher_indices"], kept[1]["indices"])
    torch.testing.assert_close(batch["teacher_log_probabilities"], kept[1]["log_probabilities"], atol=1e-2, rtol=0)


def test_two_processes_share_out_what_is_asked(tmp_path, teacher):
    answer, seen = speaking(teacher), []

    def noting(body, headers):
        if not isinstance(body["prompt"], str):  # of the probes
            seen.append(tuple(body["prompt"]))
        return answer(body, headers)

    with serving(noting) as url:

        def fill():
            found = asked(url, tmp_path / "two", count=5, shard=2)
            torch.save([found[index] for index in range(5)], tmp_path / os.environ["RANK"])

        processes.both(fill)
        assert len(seen) == len(set(seen)) == 5 * len(TEXTS)
        alone = asked(url, tmp_path / "one", count=5, shard=2)
    for rank in range(2):
        for index, entry in enumerate(torch.load(tmp_path / str(rank))):
            assert all(torch.equal(entry[name], alone[index][name]) for name in entry)
    assert {file.name for file in (tmp_path / "two").iterdir()} == {file.name for file in (tmp_path / "one").iterdir()}


def test_a_server_that_stops_half_way_loses_nothing(tmp_path, teacher):
    answer, count = speaking(teacher), []

    def stopping(body, headers):
        count.append(body)
        return say(b"", 503) if len(count) > 1 + 5 else answer(body, headers)  # a probe, and not quite two batches

    with serving(stopping) as url, pytest.raises(ServerError, match="the same call goes on there") as caught:
        asked(url, tmp_path, at_once=1)
    assert "\n" not in str(caught.value)
    before = len(count)
    with serving(answer) as other, pytest.raises(DataError, match="another teacher"):  # it listens at another port
        asked(other, tmp_path)
    assert before == 1 + 5 + 2
    stored = teachers.cache_answers(
        tmp_path, lambda batch: pytest.fail("asked again"), Batches(), 1,
        key={**KEY, "teacher": f"{url} tiny", "tokenizer": teachers.fingerprint(letters()), "k": 8, "temperature": 1.0},
    )  # fmt: skip
    assert len(stored) == 1


def test_the_same_call_goes_on_and_a_full_cache_asks_nobody(tmp_path, teacher):
    answer, seen, broken = speaking(teacher), [], [True]

    def flaky(body, headers):
        seen.append(body)
        return say(b"", 503) if broken[0] and len(seen) > 1 + 4 else answer(body, headers)

    with serving(flaky) as url:
        with pytest.raises(ServerError):
            asked(url, tmp_path / "one", at_once=1)
        broken[0] = False
        seen.clear()
        found = asked(url, tmp_path / "one", at_once=1)
        assert len(seen) == 1 + 2 * len(TEXTS)  # the probe, and the two batches that were left
        whole = asked(url, tmp_path / "two")
        seen.clear()
        asked(url, tmp_path / "two")
        assert not seen
    for index in range(3):
        assert all(torch.equal(found[index][name], whole[index][name]) for name in whole[index])


def test_a_server_of_another_tokenizer_is_refused(tmp_path):
    other = Local(llama(1), tokenizer())
    for names in (None, tokenizer().convert_ids_to_tokens):
        with serving(speaking(other, names) if names else speaking(other)) as url:
            with pytest.raises(InputError, match="probe text into other tokens") as caught:
                asked(url, tmp_path / "none")
            assert "\n" not in str(caught.value)
    assert not (tmp_path / "none" / "index.json").exists()


def test_what_the_server_may_do_has_bounds(tmp_path, teacher):
    with serving(speaking(teacher)) as url:
        server = Server(url, "tiny", meter=Meter(most_calls=3))
        with pytest.raises(BudgetError, match="3 times"):
            served_teacher.cache_served(tmp_path, server, letters(), Batches(), 2, key=KEY, k=4, at_once=1)


@pytest.mark.parametrize(
    ("scored", "words"),
    [
        (Scored(["a", "b", "c"], [{}, {"a": -0.1}, {"a": -0.1, "b": -5.0}]), "give k=2"),
        (Scored(["a", "b"], [{}, {"a": -0.1, "b": -5.0, "c": -6.0}]), "other tokens"),
        (Scored(["a", "c", "c"], [{}, *[{"a": -1.0, "b": -5.0, "c": -6.0}] * 2]), "other tokens"),
        (Scored(["a", "b", "c"], [{}, *[{"a": -0.1, "b": -0.1, "c": -0.1}] * 2]), "more than 1"),
        (Scored(["a", "b", "c"], [{}, *[{"a": 0.5, "b": -5.0, "c": -6.0}] * 2]), "more than 1"),
        (Scored(["a", "b", "c"], [{}, *[{"x y": -1.0, "y z": -5.0, "z x": -6.0}] * 2]), "names no token"),
    ],
)
def test_answers_that_are_of_no_use_are_told(scored, words):
    ids = letters()("ab")["input_ids"]
    with pytest.raises((ServerError, InputError), match=words):
        served_teacher.likeliest(scored, ids, served_teacher.Names(letters()), 3)


def test_a_server_that_tells_no_log_probabilities_is_refused_at_once(tmp_path):
    silent = say({"choices": [{"text": "b", "logprobs": None}]})
    with telling(silent) as (server, asked), pytest.raises(ServerError, match="echo and logprobs"):
        served_teacher.cache_served(tmp_path, server, letters(), Batches(), 1, key=KEY)
    assert len(asked) == 1


@pytest.mark.parametrize("how", [{"k": 0}, {"at_once": 0}])
def test_numbers_that_make_no_sense_are_refused(tmp_path, how):
    with pytest.raises(InputError, match=next(iter(how))):
        asked("http://localhost:1/v1", tmp_path, **how)
