"""Many prompts at once: texts are those of one prompt at a time, tokens are of the text alone, ends are seen."""

from __future__ import annotations

import pytest
import torch

import tiny
from chat_server import say, served
from secateur.clients.chat import Server
from secateur.clients.completions import Completion, Contrasting, Local, Served, Writing
from secateur.errors import InputError, ServerError
from secateur.methods import tasks as asking
from secateur.methods.tasks import Item, Task

PROMPTS = ["a b c", "b", "d e f g a b", "c d", "g"]


def model():
    return tiny.fluent("llama")


def local(batch=32):
    return Local(model(), tiny.tokenizer(), batch=batch)


def greedy(prompt, most):
    """Token by token, without a cache."""
    ids = list(tiny.tokenizer()(prompt)["input_ids"])
    begun = len(ids)
    for _ in range(most):
        with torch.no_grad():
            ids.append(int(model()(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tiny.tokenizer().eos_token_id:
            return tiny.tokenizer().decode(ids[begun:-1]), len(ids) - begun - 1, True
    return tiny.tokenizer().decode(ids[begun:]), most, False


@pytest.mark.parametrize("batch", [1, 2, 32])
def test_greedy_texts_are_those_of_one_prompt_at_a_time(batch):
    found = local(batch).write(PROMPTS, Writing(most=6))
    assert [(one.text, one.tokens, one.finished) for one in found] == [greedy(prompt, 6) for prompt in PROMPTS]


def test_a_stop_ends_a_text_and_is_no_part_of_it():
    whole = [one.text for one in local().write(PROMPTS, Writing(most=8))]
    letter = whole[0].split()[2]
    found = local().write(PROMPTS, Writing(most=8, stop=letter))
    for one, text in zip(found, whole, strict=True):
        assert one.text == text.partition(letter)[0]
        if letter in text:
            assert one.finished
            assert one.tokens <= 8
            assert letter not in one.text
    assert found[0].tokens < 8
    (again,) = local().write([f"{PROMPTS[0]} {letter}"], Writing(most=4, stop=letter))
    assert again.tokens == 4 or letter in greedy(f"{PROMPTS[0]} {letter}", 4)[0], "the prompt's own is none"


def test_what_is_drawn_follows_the_seed():
    how = Writing(most=6, temperature=1.5)
    first, again, other = (local().write(PROMPTS, how, seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    before = torch.get_rng_state()
    local().write(PROMPTS, how)
    assert torch.equal(before, torch.get_rng_state())


def test_prompts_that_leave_no_room_are_refused():
    window = int(local().window)
    with pytest.raises(InputError, match=f"the model reads {window}"):
        local().write(["a " * window], Writing(most=4))
    with pytest.raises(InputError, match="0 tokens to write"):
        Writing(most=0)
    with pytest.raises(InputError, match="a share up to 1"):
        Writing(top_p=0.0)
    assert local().count("a b c", Writing()) == len(tiny.tokenizer()("a b c")["input_ids"])


@pytest.mark.parametrize("chat", [False, True])
def test_a_server_writes_what_its_model_does(chat):
    asked = []

    def answer(body, headers):
        asked.append(body)
        prompt = body["messages"][0]["content"] if chat else body["prompt"]
        (one,) = local().write([prompt], Writing(most=body["max_tokens"]))
        usage = {"prompt_tokens": 1, "completion_tokens": one.tokens}
        reason = "stop" if one.finished else "length"
        said = {"message": {"content": one.text}} if chat else {"text": one.text}
        return say({"choices": [{**said, "finish_reason": reason}], "usage": usage})

    with served(answer) as url:
        found = Served(Server(url, "small"), parallel=3).write(PROMPTS, Writing(most=5, chat=chat, top_p=0.9))
    expected = local().write(PROMPTS, Writing(most=5))
    assert [one.text.strip() for one in found] == [one.text.strip() for one in expected]
    assert [(one.tokens, one.finished) for one in found] == [(one.tokens, one.finished) for one in expected]
    assert all(body["path"] == ("/v1/chat/completions" if chat else "/v1/completions") for body in asked)
    assert {(body["top_p"], body["max_tokens"], "stop" in body) for body in asked} == {(0.9, 5, False)}


def test_what_a_server_leaves_behind_a_stop_is_cut_off():
    with served(lambda body, headers: say({"choices": [{"text": "Paris\nQ: next", "finish_reason": "length"}]})) as url:
        (found,) = Served(Server(url, "small")).write(["Q"], Writing(most=9, stop="\n"))
    assert found == Completion("Paris", found.tokens, True)
    with served(lambda body, headers: say({"choices": []})) as url, pytest.raises(ServerError):
        Served(Server(url, "small", retries=0)).write(["Q"], Writing())


def test_a_template_that_begins_the_thoughts_is_told():
    tokenizer = tiny.letters()
    small = tiny.model("llama")
    small.resize_token_embeddings(len(tokenizer))
    for template, begun in (("{{ messages[0]['content'] }}<think>\n", True), ("{{ messages[0]['content'] }}:", False)):
        tokenizer.chat_template = template
        (one,) = Local(small, tokenizer).write(["hi"], Writing(most=2, chat=True))
        assert one.begun is begun
    item = Item("0", "sum ?", ("42",))
    task = Task("t", (item,), "boxed", Writing(chat=True))
    for text, score in ((r"so \boxed{42} or", 0.0), (r"hm</think> \boxed{42}", 1.0)):
        assert asking.score(task, item, Completion(text, 9, True, begun=True)).score == score


@pytest.mark.parametrize("batch", [1, 32])
def test_a_contrast_takes_away_what_is_likely_without_the_context(batch):
    """The equation, token by token; a weight of 0 changes nothing."""
    weight, tokenizer = 0.8, tiny.tokenizer()
    rest = {prompt: prompt.split()[-1] for prompt in PROMPTS}

    def slowly(prompt):
        ids, bare = (list(tokenizer(text)["input_ids"]) for text in (prompt, rest[prompt]))
        said = []
        for _ in range(4):
            with torch.no_grad():
                ours, theirs = (
                    model()(torch.tensor([row + said])).logits[0, -1].log_softmax(-1) for row in (ids, bare)
                )
            said.append(int(((1 + weight) * ours - weight * theirs).argmax()))
            if said[-1] == tokenizer.eos_token_id:
                return tokenizer.decode(said[:-1])
        return tokenizer.decode(said)

    found = Contrasting(model(), tokenizer, rest.__getitem__, weight, batch=batch).write(PROMPTS, Writing(most=4))
    assert [one.text for one in found] == [slowly(prompt) for prompt in PROMPTS]
    plain = local().write(PROMPTS, Writing(most=4))
    assert [one.text for one in found] != [one.text for one in plain]
    assert Contrasting(model(), tokenizer, rest.__getitem__, 0.0).write(PROMPTS, Writing(most=4)) == plain
