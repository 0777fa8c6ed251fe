"""The diagnosis of versions: kept in files, those of other modules left out and told."""

from __future__ import annotations

import copy
import json

import tiny
from recipes.sparse.oneshot import data, taught
from secateur.clients.completions import Completion, Local, Writing
from secateur.methods import tasks as asking
from secateur.methods.tasks import Item, Task
from secateur.runs import diagnosing
from secateur.runs.compression import Config
from secateur.runs.diagnosing import Manner, diagnose
from secateur.runs.scoring import Held, Model


def test_a_version_of_another_family_is_left_out_and_said(tmp_path):
    tiny.folder("gpt2", tmp_path / "other")
    (tmp_path / "words.json").write_text(json.dumps({"growing": tiny.WORDS[:25], "cutting": tiny.WORDS[25:]}))
    task = Task("t", tuple(Item(str(at), text[:40], ("x",)) for at, text in enumerate(tiny.chains(6))))
    said = Completion("the old tree. cuts prunes she. garden grows", 8, True)
    dense = Model("original", {"t": [asking.score(task, item, said) for item in task.items]})
    versions = [(config, Model(str(config), {})) for config in (Config(str(tmp_path / "other")), Config("rtn", "2bit"))]
    manner = Manner(str(tmp_path / "words.json"), spans=4, share=0.3, verify=2)
    found = diagnose(taught(), [task], dense, versions, Held.of(data(), 16), tmp_path / "runs", manner)
    assert list(found.versions) == ["rtn 2bit"]
    assert found.notes[0].startswith("other has no model.layers.0")
    assert len(found.damage) == 2
    told = json.loads(found.protect_json())
    assert told["protect"] == list(found.chosen)
    assert set(told["importance"]) == set(found.sizes)
    kept = sorted(file.name.split("-")[1] for file in (tmp_path / "runs").glob("diagnosis-*.json"))
    assert kept == sorted(["original", Config("rtn", "2bit").digest, "rounded"])
    again = diagnose(taught(), [task], dense, versions, Held.of(data(), 16), tmp_path / "runs", manner)
    assert again.figures() == found.figures()
    assert [table.title for table in found.tables()] == ["Which linears matter", "Shift of importance", "Is it true?"]


def test_answers_to_chats_are_read_behind_the_words_of_the_template(tmp_path):
    """As the model has written them: through the template once, without what the tokenizer puts around texts."""
    subject = taught().copy()
    subject.tokenizer = copy.deepcopy(subject.tokenizer)
    subject.tokenizer.chat_template = "<s>she {{ messages[0]['content'] }} prunes"
    (tmp_path / "words.json").write_text(json.dumps({"growing": tiny.WORDS[:25], "cutting": tiny.WORDS[25:]}))
    items = tuple(Item(str(at), text[:20], ("x",)) for at, text in enumerate(tiny.chains(2)))
    task = Task("t", items, writing=Writing(chat=True))
    dense = Model("original", {"t": [asking.score(task, item, Completion("the tree", 2, True)) for item in items]})
    texts = diagnosing._mark(subject, [task], dense, Manner(str(tmp_path / "words.json")))
    for item, text in zip(items, texts, strict=True):
        read = Local(subject.model, subject.tokenizer)._ids(item.prompt, task.writing)
        said = subject.tokenizer("the tree", add_special_tokens=False)["input_ids"]
        assert text.tokens.tolist() == [*read, *said]
