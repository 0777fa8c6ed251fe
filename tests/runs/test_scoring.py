"""Models through tasks: each is made once, a killed one goes on with the answers it has, servers are asked by URL."""

from __future__ import annotations

import copy
from functools import partial

import pytest
from torch import nn

import tiny
from chat_server import say, served
from recipes.sparse.oneshot import data, taught
from secateur.clients.completions import Local, Writing
from secateur.data import texts
from secateur.errors import InputError
from secateur.methods.tasks import Item, Task
from secateur.recover.quantization import quantise
from secateur.runs import scoring
from secateur.runs.compression import DENSE, Config
from secateur.subjects import open_subject
from secateur.subjects.transformer import quantised

PROMPTS = [text.rsplit(" ", 3)[0] for text in tiny.chains(6, seed=3)]
TASK = Task("t", tuple(Item(str(at), prompt, ("x",)) for at, prompt in enumerate(PROMPTS)), writing=Writing(most=3))


def held():
    return scoring.Held.of(data(), 16)


def test_a_killed_model_goes_on_with_the_answers_it_has(tmp_path, monkeypatch):
    whole = scoring.score_model(taught(), Config("magnitude", "50%"), [TASK], held(), tmp_path / "whole")
    real, left = Local.stream, [1]

    def stream(self, prompts, how, seed=0):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(self, prompts[:], how, seed)

    monkeypatch.setattr(Local, "stream", stream)
    monkeypatch.setattr(
        scoring.asking.run_task, "__kwdefaults__", {**scoring.asking.run_task.__kwdefaults__, "chunk": 4}
    )
    with pytest.raises(KeyboardInterrupt):
        scoring.score_model(taught(), Config("magnitude", "50%"), [TASK], held(), tmp_path / "cut", batch=4)
    asked = []
    monkeypatch.setattr(Local, "stream", lambda self, p, h, s=0: (asked.extend(p), real(self, p, h, s))[1])
    again = scoring.score_model(taught(), Config("magnitude", "50%"), [TASK], held(), tmp_path / "cut", batch=4)
    assert len(asked) == 2
    assert again.seconds > max(line.seconds for line in again.lines["t"]) > 0, "of all answers, not of the last ones"
    assert again.lines == whole.lines
    assert again.figures == whole.figures


def test_a_model_of_other_tokens_has_no_perplexity_and_says_so(tmp_path):
    other = tiny.letters()
    model = tiny.model("llama")
    model.resize_token_embeddings(len(other))
    (tmp_path / "other").mkdir()
    open_subject(model, tokenizer=other).save(tmp_path / "other")
    found = scoring.score_model(taught(), Config(str(tmp_path / "other")), [TASK], held(), tmp_path / "work")
    assert "perplexity" not in found.figures
    assert "another tokenizer" in found.notes[0]
    assert len(found.lines["t"]) == len(PROMPTS)
    dense = scoring.score_model(taught(), DENSE, [TASK], held(), tmp_path / "work")
    assert dense.figures["perplexity"].value > 1
    assert dense.params > 0


def test_a_folder_without_a_tokenizer_reads_with_the_originals(tmp_path):
    taught().save(tmp_path / "bare")
    for file in (tmp_path / "bare").glob("tokenizer*"):
        file.unlink()
    found = scoring.score_model(taught(), Config(str(tmp_path / "bare")), [TASK], held(), tmp_path / "work")
    dense = scoring.score_model(taught(), DENSE, [TASK], held(), tmp_path / "work")
    assert found.lines == dense.lines
    assert found.figures["perplexity"].value == pytest.approx(dense.figures["perplexity"].value)
    small = tiny.model("llama")
    small.resize_token_embeddings(8)
    small.save_pretrained(tmp_path / "small")
    with pytest.raises(InputError, match="has no tokenizer, and 8 tokens"):
        scoring.score_model(taught(), Config(str(tmp_path / "small")), [TASK], held(), tmp_path / "work")


@pytest.mark.parametrize("kind", ["packed int8", "packed int4", "torchao int8"])
def test_quantised_folders_of_other_tools_go_through(tmp_path, kind):
    """Read as they are stored, with their bytes, beside the original with one call."""
    pytest.importorskip("torchao", reason="the extra `quantise`")
    pytest.importorskip("compressed_tensors", reason="the extra `quantise`")
    bits, folder, model = int(kind[-1]), tmp_path / "other", taught().model
    folder.mkdir()
    taught().save(folder)
    names, _ = quantise.linears(model, bits, within=["model.layers.0", "model.layers.1"])
    if kind.startswith("torchao"):
        copied = copy.deepcopy(model)
        _, left = quantise.weight_only(copied, bits, within=["model.layers.0", "model.layers.1"])
        quantised.save_int8(quantised.with_model(taught(), copied), folder, quantise.config(bits), list(left))
    else:
        chosen = quantised.find_weights(model, [f"{name}.weight" for name in names], folder)
        left = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in names]
        quantised.pack(folder, chosen, left, bits, partial(quantise.integers, bits=bits), dense=False)
    found = scoring.score_model(taught(), Config(str(folder)), [TASK], held(), tmp_path / "work")
    dense = scoring.score_model(taught(), DENSE, [TASK], held(), tmp_path / "work")
    assert found.bytes < 0.8 * dense.bytes
    assert found.figures["perplexity"].value == pytest.approx(dense.figures["perplexity"].value, rel=0.1)
    same = sum(one.text == other.text for one, other in zip(found.lines["t"], dense.lines["t"], strict=True))
    assert same > len(PROMPTS) / 2


def test_a_served_model_answers_by_its_url(tmp_path):
    local = Local(taught().model, taught().tokenizer)

    def answer(body, headers):
        (one,) = local.write([body["prompt"]], Writing(most=body["max_tokens"]))
        return say({"choices": [{"text": one.text, "finish_reason": "length"}], "usage": {"completion_tokens": 3}})

    with served(answer) as url:
        found = scoring.score_served(f"{url}#small", [TASK], tmp_path)
    expected = [one.text for one in local.write(PROMPTS, TASK.writing)]
    assert [line.text for line in found.lines["t"]] == expected
    assert found.name == "small"
    again = scoring.score_served(f"{url}#small", [TASK], tmp_path, label="other")
    assert (again.name, again.seconds) == ("other", found.seconds), "what was written once took its time then"
    with pytest.raises(InputError, match="names no model"):
        scoring.score_served("http://localhost:1/v1", [TASK], tmp_path)


def test_models_are_measured_on_texts_that_none_is_calibrated_on():
    held = scoring.Held.of(texts.read([f"text {number}" for number in range(40)]), 16)
    parts = [set(part.texts) for part in (held.calibration(Config("wanda", "50%")), held.judged)]
    assert [len(part) for part in parts] == [38, 2]
    assert not parts[0] & parts[1]
