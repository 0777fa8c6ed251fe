"""A language model asked on this machine and over real HTTP; servers that are slow, down, rude or lie."""

from __future__ import annotations

import logging
import threading
import time

import pytest
import torch

import processes
import tiny
from chat_server import GOOD, Scripted, say, served, speaking, telling
from secateur._utils import http
from secateur.clients import chat
from secateur.clients.chat import LanguageModel, Ledger, Local, Meter, Server
from secateur.errors import BudgetError, InputError, ServerError

pytest.importorskip("httpx2")


@pytest.fixture(scope="module")
def local() -> Local:
    return Local(tiny.model("llama"), tiny.tokenizer())


# -------------------------------------------------------------------------------------------------------- one interface


def test_a_local_model_and_one_behind_http_say_the_same(local):
    with served(speaking(local)) as url:
        server = Server(url, "tiny")
        assert isinstance(server, LanguageModel)
        assert isinstance(local, LanguageModel)
        for how in ({"most": 6}, {"most": 6, "temperature": 1.0, "seed": 3}):
            here, there = local.ask("the old garden", **how), server.ask("the old garden", **how)
            assert here == there
            assert here.answer_tokens <= 6
        assert server.meter.calls == 2
        assert server.meter.tokens == 2 * here.prompt_tokens + server.meter.answer_tokens


def test_a_server_tells_what_it_finds_likeliest_as_the_model_does(local):
    ids = local.tokenizer("the old garden")["input_ids"]
    with torch.no_grad():
        want = local.model(torch.tensor([ids])).logits[0].log_softmax(-1).topk(5)
    with served(speaking(local)) as url:
        server = Server(url, "tiny")
        for prompt in ("the old garden", ids):
            found = server.score(prompt, 5)
            assert found.tokens[:-1] == [f"token_id:{number}" for number in ids]
            assert not found.top[0]
            for row, values, indices in zip(found.top[1:], *want, strict=True):
                assert row == pytest.approx(
                    {f"token_id:{number}": float(value) for number, value in zip(indices, values, strict=True)}
                )
        assert (server.meter.calls, server.meter.tokens) == (2, 2 * (len(ids) + 1))


@pytest.mark.parametrize(
    "bad",
    [
        {}, {"choices": []}, {"choices": [{}]}, {"choices": [{"logprobs": {"top_logprobs": [None]}}]},
        {"choices": [{"logprobs": {"top_logprobs": [None, None], "tokens": ["a"]}}]},
        {"choices": [{"logprobs": {"top_logprobs": [None, {"a": None}], "tokens": ["a", "b"]}}]},
        {"choices": [{"logprobs": {"top_logprobs": [None, {"a": float("nan")}], "tokens": ["a", "b"]}}]},
    ],
)  # fmt: skip
def test_scores_that_are_none_are_asked_for_again_and_then_told(bad):
    with telling(say(bad)) as (server, asked), pytest.raises(ServerError, match="no answer in 3 attempts"):
        server.score("x", 1)
    assert len(asked) == 3


@pytest.mark.parametrize("told", [None, {}, {"tokens": ["a"], "top_logprobs": None}])
def test_a_server_without_log_probabilities_says_so_at_once(told):
    with telling(say({"choices": [{"logprobs": told}]})) as (server, asked), pytest.raises(ServerError, match="echo"):
        server.score("x", 1)
    assert len(asked) == 1


def test_a_model_in_training_answers_as_it_would_and_goes_on_training(local):
    before = local.ask("the old garden", most=6)
    local.model.train()
    assert local.ask("the old garden", most=6) == before
    assert local.model.training
    local.model.eval()


def test_sampling_repeats_under_a_seed_and_leaves_the_callers_alone(local):
    before = torch.random.get_rng_state()
    first = local.ask("the old garden", most=8, temperature=2.0, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert local.ask("the old garden", most=8, temperature=2.0, seed=1) == first
    assert len({local.ask("the old garden", most=8, temperature=2.0, seed=seed).text for seed in range(5)}) > 1


def test_what_is_sent_is_the_protocol(monkeypatch):
    monkeypatch.setenv("SECATEUR_LLM_KEY", "sk-secret")
    with telling(say(GOOD)) as (server, asked):
        found = server.ask(
            [{"role": "system", "content": "short"}, {"role": "user", "content": "six by seven?"}], most=9
        )
    assert found == chat.Answer("42", 7, 2, True)
    ((body, headers),) = asked
    assert body["path"] == "/v1/chat/completions"
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("small", 9, 0.0)
    assert body["messages"][1] == {"role": "user", "content": "six by seven?"}
    assert headers["Authorization"] == "Bearer sk-secret"


def test_without_a_key_none_is_sent(monkeypatch):
    monkeypatch.delenv("SECATEUR_LLM_KEY", raising=False)
    with telling(say(GOOD)) as (server, asked):
        server.ask("x")
    assert "Authorization" not in asked[0][1]


def test_a_key_goes_to_whom_it_is_for(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    monkeypatch.delenv("SECATEUR_LLM_KEY", raising=False)
    with telling(say(GOOD)) as (server, asked):
        server.ask("x")
        Server(server.client.url, "x", key="OPENAI_API_KEY").ask("x")  # whoever names it wants it there
    assert [headers.get("Authorization") for _, headers in asked] == [None, "Bearer sk-openai"]
    theirs = ("https://api.openai.com/v1", "HTTPS://API.OpenAI.com/v1")
    others = (
        "http://api.openai.com/v1", "https://api.openai.com.example.org/v1", "https://example.org/api.openai.com/v1",
        "https://api.openai.com:1@example.org/v1",
    )  # fmt: skip
    assert [Server(url, "x").key for url in theirs] == ["OPENAI_API_KEY"] * 2
    assert [Server(url, "x").key for url in others[:-1]] == ["SECATEUR_LLM_KEY"] * 3
    with pytest.raises(InputError, match="SECATEUR_LLM_KEY"):
        Server(others[-1], "x")
    monkeypatch.setenv("SECATEUR_LLM_KEY", "own")
    assert Server(theirs[0], "x").key == "SECATEUR_LLM_KEY"
    with pytest.raises(InputError, match="not the key") as error:
        Server(theirs[0], "x", key="sk-secret")
    assert "sk-secret" not in str(error.value)


def test_an_answer_cut_short_says_so():
    cut = {"choices": [{"message": {"content": "and so"}, "finish_reason": "length"}]}
    with telling(say(cut)) as (server, _):
        found = server.ask("x")
    assert not found.finished
    assert found.answer_tokens > 0  # counted roughly where the server does not


# ----------------------------------------------------------------------------------------- what may pass is asked again


@pytest.mark.parametrize(
    "bad",
    [
        say(b"", 500), say(b"", 503), say(b"", 429, Retry_After="0.01"), say(b"", 429, Retry_After="soon"),
        say(b"", 429, Retry_After="Thu, 01 Jan 1970 00:00:00 GMT"), say(b"not json"), say(b"[" * 100_000), say([]),
        say({}), say({"choices": []}), say({"choices": [{}]}), say({"choices": [{"message": {"content": 5}}]}),
        say({"choices": 3}), say(None),
    ],
    ids=range(14),
)  # fmt: skip
def test_a_failure_that_may_pass_is_tried_again_and_then_told(bad):
    with telling(bad, say(GOOD)) as (server, asked):
        assert server.ask("x").text == "42"
        assert len(asked) == 2
        assert (server.meter.calls, server.meter.retries) == (1, 1)
    with telling(bad) as (server, asked), pytest.raises(ServerError, match="no answer in 3 attempts"):
        server.ask("x")
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("status", "words"), [(400, "too long"), (401, "SECATEUR_LLM_KEY"), (404, "too long"), (302, "302")]
)
def test_a_refusal_is_told_at_once(status, words, monkeypatch):
    monkeypatch.setenv("SECATEUR_LLM_KEY", "sk-secret")
    reply = say(b"prompt too long for sk-secret \x1b[31m\n", status, Location="http://127.0.0.1:1/v1")
    with telling(reply) as (server, asked), pytest.raises(ServerError, match=words) as error:
        server.ask("x")
    assert len(asked) == 1
    assert "sk-secret" not in str(error.value)
    assert "\x1b" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_server_that_is_down_or_slow_is_given_up(monkeypatch):
    with served(lambda *_: say(GOOD)) as url:
        pass
    with pytest.raises(ServerError, match="ConnectError"):
        Server(url, "gone", retries=1, backoff=0.001).ask("x")

    def slow(*_):
        time.sleep(1)
        return say(GOOD)

    with served(slow) as url, pytest.raises(ServerError, match="no answer in time"):
        Server(url, "slow", retries=0, timeout=0.1).ask("x")


def test_an_endless_answer_is_cut_off(monkeypatch):
    monkeypatch.setattr(http, "LARGEST", 1000)
    with telling(say(b" " * 100_000)) as (server, _), pytest.raises(ServerError, match="more than"):
        server.ask("x")


def test_the_wait_that_a_server_asks_for_is_kept(monkeypatch):
    slept = []
    monkeypatch.setattr(http.time, "sleep", slept.append)
    with telling(say(b"", 429, Retry_After="7"), say(b"", 429, Retry_After="900"), say(GOOD)) as (server, _):
        server.ask("x")
    assert slept == [7.0, 60.0]  # and no longer than a minute


def test_each_wait_is_twice_the_one_before(monkeypatch):
    slept = []
    monkeypatch.setattr(http.time, "sleep", slept.append)
    with telling(say(b"", 500)) as (server, _):
        server.client.retries, server.client.backoff = 4, 1.0
        with pytest.raises(ServerError):
            server.ask("x")
    assert [0.5 <= pause / 2**number <= 1.0 for number, pause in enumerate(slept)] == [True] * 4


# --------------------------------------------------------------------------------------------------------------- bounds


def test_calls_and_tokens_have_bounds(local, monkeypatch):
    with telling(say(GOOD)) as (server, asked):
        server.meter = Meter(most_calls=2)
        server.ask("x")
        server.ask("x")
        with pytest.raises(BudgetError, match="2 times"):
            server.ask("x")
        assert len(asked) == 2
        server.meter = Meter(most_tokens=10)
        server.ask("x")
        server.ask("x")
        with pytest.raises(BudgetError, match="18 tokens of 10"):
            server.ask("x")
    monkeypatch.setattr(local, "meter", Meter(most_calls=0))
    with pytest.raises(BudgetError, match="0 times"):
        local.ask("x", most=1)


def test_a_meter_within_another_counts_and_bounds_for_both():
    whole = Meter(most_calls=3)
    with telling(say(GOOD)) as (server, _):
        server.meter = whole
        for _ in range(2):
            one = chat.open_model(server, calls=2)
            assert one.ask("x").text == "42"
        one.ask("x")
        with pytest.raises(BudgetError, match="2 times"):
            one.ask("x")
        with pytest.raises(BudgetError, match="3 times"):
            chat.open_model(server, calls=2).ask("x")
    assert (one.meter.calls, one.meter.tokens, whole.calls, whole.tokens) == (2, 18, 3, 27)
    assert (one.meter.refused, whole.refused) == (1, 1)


def test_processes_count_in_one_ledger(tmp_path):
    place = tmp_path / "spent"

    def spend() -> None:
        meter = Ledger(most_calls=50, path=place)
        try:
            while True:
                meter.begin()
                meter.end(chat.Answer("", 2, 1), 0.0)
        except BudgetError:
            print(meter.calls)

    both = [processes.forked(spend) for _ in range(2)]
    assert [child.wait() for child in both] == [0, 0]
    assert sum(int(child.stdout) for child in both) == 50
    assert Ledger(path=place).total() == {"calls": 50, "tokens": 150, "refused": 2}


def test_no_more_calls_a_minute_than_allowed(monkeypatch):
    """By a clock of our own: a minute is not waited for."""
    now, slept = [0.0], []

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    with telling(say(GOOD)) as (server, _):
        server.client.per_minute = 2
        monkeypatch.setattr(http.time, "monotonic", lambda: now[0])
        monkeypatch.setattr(http.time, "sleep", sleep)
        for _ in range(5):
            server.ask("x")
            now[0] += 1
    assert slept == [58.0, 58.0]


def test_many_threads_are_counted_right():
    with telling(say(GOOD)) as (server, _):
        threads = [threading.Thread(target=server.ask, args=("x",)) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (server.meter.calls, server.meter.tokens) == (20, 180)


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://x/v1",
        "http://[::1",
        "http://host:99999999/v1",
        "http://host:x/v1",
        "http://",
        "http://me:sk-secret@host/v1",
        "http://host/v1?key=sk-secret",
    ],
)
def test_an_address_that_is_none_or_holds_a_secret_is_refused_without_telling_it(url):
    with pytest.raises(InputError) as error:
        Server(url, "x")
    assert "sk-secret" not in str(error.value)


def test_the_key_is_in_no_log_and_no_representation(monkeypatch, caplog):
    monkeypatch.setenv("SECATEUR_LLM_KEY", "sk-secret")
    with caplog.at_level(logging.DEBUG), telling(say(b"", 500), say(GOOD)) as (server, _):
        server.ask("x")
    assert "sk-secret" not in caplog.text
    assert "sk-secret" not in repr(server) + repr(server.meter) + repr(vars(server))


@pytest.mark.parametrize("how", [{"retries": -3}, {"backoff": float("nan")}, {"per_minute": -1}, {"timeout": 0}])
def test_numbers_that_make_no_sense_are_refused_by_name(how):
    with pytest.raises(InputError, match=next(iter(how))):
        Server("http://localhost:1/v1", "x", **how)


def test_an_answer_of_no_tokens_is_refused(local):
    for one in (local, Server("http://localhost:1/v1", "x")):
        with pytest.raises(InputError, match="most=0"):
            one.ask("x", most=0)


@pytest.mark.parametrize("question", [[], [{"role": "user"}], [{"role": "user", "content": "x", "tools": "y"}]])
def test_a_question_that_is_none_is_refused(question, local):
    with pytest.raises(InputError, match="role and content"):
        local.ask(question)


def test_a_question_too_long_for_the_model_is_refused(local):
    with pytest.raises(InputError, match="shorten it"):
        local.ask("garden " * 5000)


def test_a_chat_template_is_used(local, monkeypatch):
    monkeypatch.setattr(
        local.tokenizer, "chat_template", "{% for m in messages %}the {{ m['content'] }}{% endfor %}", raising=False
    )
    assert local.ask("old garden", most=1).prompt_tokens == 3
    monkeypatch.setattr(local.tokenizer, "chat_template", None)
    ids = local.tokenizer("old garden")["input_ids"]
    assert ids[-1] == local.tokenizer.sep_token_id
    assert local.ask("old garden", most=1).prompt_tokens == len(ids) - 1


def test_a_language_model_is_named_by_address_or_folder(local):
    server = chat.open_model("http://localhost:1/v1", "tiny", calls=3, tokens=50)
    assert isinstance(server, Server)
    assert (server.model, server.meter.most_calls, server.meter.most_tokens) == ("tiny", 3, 50)
    assert chat.open_model(local) is local
    assert chat.open_model("http://localhost:1/v1", "tiny", timeout=3, per_minute=9).client.per_minute == 9
    with pytest.raises(InputError, match="by name"):
        chat.open_model("http://localhost:1/v1")
    with pytest.raises(InputError, match="int"):
        chat.open_model(3)


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("<think>asthma; or not</think>\n\nflu", "flu"),
        ("it may be <b>...</think> flu", "flu"),  # the template has begun it
        ("<|channel|>analysis<|message|>hm<|end|><|channel|>final<|message|>flu", "flu"),
        ("no thoughts", "no thoughts"),
        ("<think>cut off before", ""),
    ],
)
def test_what_a_model_thinks_is_no_answer(said, answer):
    model = Scripted(said)
    assert chat.ask_text(model, "?", most=8) == answer
    assert [most for _, most, *_ in model.asked] == ([8] if answer else [8, 8 + chat.THINKING])


def test_a_model_that_thinks_has_room_for_it():
    def reply(text, end):
        return say({"choices": [{"message": {"content": text}, "finish_reason": end}]})

    replies = (reply("Let me see", "length"), reply("Let me see.</think>flu", "stop"), reply("hm</think>gout", "stop"))
    with telling(*replies) as (server, asked):
        assert [chat.ask_text(server, "?", most=8) for _ in range(2)] == ["flu", "gout"]
    assert [body["max_tokens"] for body, _ in asked] == [8, 8 + chat.THINKING, 8 + chat.THINKING]
    with telling(reply("plain and long", "length")) as (server, asked):
        assert [chat.ask_text(server, "?", most=8, room=100) for _ in range(2)] == ["plain and long"] * 2
    assert [body["max_tokens"] for body, _ in asked] == [8, 100, 8]  # it does not think: that is known now
    bounded = Scripted("<think>on and on", most_calls=1)
    assert chat.ask_text(bounded, "?", most=8) == ""
