"""What compression costs a reasoning model: collapse, damage, tokens; a diagnosis whose modules are protected."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import PreTrainedTokenizerBase

import tiny
from recipes.sparse.oneshot import taught
from secateur.clients.completions import Local, Writing
from secateur.errors import DataError, InputError, RunError, UnsupportedError
from secateur.methods import diagnosis, puzzles
from secateur.recover.quantization import quantise
from secateur.runs import diagnosing, scoring
from secateur.studies import executor, reasoning
from secateur.subjects.matrices import matrices
from secateur.subjects.transformer import quantised

QUICK = {"methods": ["magnitude", "rtn"], "sparsity": ["10%", "90%"], "bits": [8, 3], "length": 16, "samples": 4}
WORDS = {"growing": tiny.WORDS[:25], "cutting": tiny.WORDS[25:]}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, texts, and a task of either role whose answers are the model's own words."""
    folder = tmp_path_factory.mktemp("reasoning")
    taught().save(folder / "model")
    (folder / "texts.txt").write_text("\n".join(tiny.chains(300)))
    (folder / "words.json").write_text(json.dumps(WORDS))
    prompts = [text.rsplit(" ", 3)[0] for text in tiny.chains(32, seed=7)]
    said = Local(taught().model, taught().tokenizer).write(prompts, Writing(most=3))
    rows = [
        {"question": prompt, "answer": one.text.strip(), "group": f"{at % 2} steps"}
        for at, (prompt, one) in enumerate(zip(prompts, said, strict=True))
        if one.text.strip()
    ]
    how = {"prompt": "{question}", "tokens": 3, "scorer": "alias"}
    write(folder / "facts.jsonl", {"task": "facts of mine", **how, "role": "knowledge"}, *rows[:8])
    write(folder / "steps.jsonl", {"task": "steps", **how, "role": "reasoning"}, *rows[8:24])
    write(folder / "traces.jsonl", {"task": "own", **how}, *rows[24:])
    return folder


def ask(place, out, **more):
    given = {"tasks": [str(place / f"{one}.jsonl") for one in ("facts", "steps")], **QUICK, **more}
    return executor.study("reasoning", str(place / "model"), str(place / "texts.txt"), out=place / out, **given)


@pytest.fixture(scope="module")
def sheet(place):
    return ask(place, "out", diagnose=True, verify=12, behaviours=str(place / "words.json"), spans=12, share=0.1)


def test_the_original_loses_nothing_against_itself_and_what_is_broken_collapses(sheet):
    models = {one["name"]: one for one in sheet.figures["models"]}
    assert list(models) == ["original", "magnitude 10%", "magnitude 90%", "rtn 8bit", "rtn 3bit"]
    assert models["original"]["damage"]["steps"] == 0.0
    assert models["magnitude 90%"]["damage"]["steps"] > 0.5
    points = {(one["method"], one["task"], one["group"]): one for one in sheet.figures["collapse"]}
    assert points["magnitude", "steps", ""]["point"]["value"] == 90.0
    assert points["magnitude", "steps", ""]["step"] == 90.0
    assert {("magnitude", "steps", "0 steps"), ("magnitude", "steps", "1 steps")} <= points.keys()
    told = models["rtn 3bit"]["tasks"]["facts of mine"]
    assert told["score"]["value"] <= 1
    assert told["tokens"]["value"] <= 3, "the prompt's tokens are not counted"
    assert models["rtn 3bit"]["cost"]["bits"] < models["rtn 8bit"]["cost"]["bits"] < 32
    assert models["original"]["seconds"] > 0


def test_page_lines_and_tables_are_there(place, sheet):
    titles = [table.title for table in sheet.tables]
    assert titles[:4] == ["Collapse points", "Scores", "Damage", "What an answer costs"]
    assert {"Length of answers: steps", "Which linears matter", "Shift of importance", "Is it true?"} <= set(titles)
    page = (place / "out" / "study.html").read_text()
    assert "Importance by module and block" in page
    assert "Score against cost" in page
    lines = [json.loads(line) for line in (place / "out" / "items.jsonl").read_text().splitlines()]
    assert {"model", "task", "item", "turn", "text", "tokens", "finished", "answer", "score"} <= lines[0].keys()


def test_importance_is_shared_out_and_shifts_with_both_signs(sheet):
    told = sheet.figures["diagnosis"]
    assert set(told["importance"]) == {"growing", "cutting"}
    for own in told["importance"].values():
        assert sum(own.values()) == pytest.approx(1)
        assert len(own) == 28
    moved = told["shift"]["magnitude 90%"]["growing"]
    assert sum(moved.values()) == pytest.approx(0, abs=1e-9)
    assert min(moved.values()) < 0 < max(moved.values())
    assert max(map(abs, told["shift"]["rtn 8bit"]["growing"].values())) < max(map(abs, moved.values()))
    assert set(told["agreement"]) == {"importance", "gradient alone", "random direction", "norm of the weights"}
    assert len(told["damage"]) == 12


def test_a_second_call_asks_and_compresses_nothing(place, sheet, monkeypatch):
    def refuse(*given, **how):
        raise AssertionError("compressed again")

    monkeypatch.setattr(scoring, "compress", refuse)
    monkeypatch.setattr(diagnosing, "compress", refuse)
    monkeypatch.setattr(diagnosis, "importance", refuse)
    again = ask(place, "out", diagnose=True, verify=12, behaviours=str(place / "words.json"), spans=12, share=0.1)
    assert again.figures == sheet.figures


@pytest.mark.wide
def test_what_a_diagnosis_names_is_protected_and_gets_the_bits_of_others(place, sheet):
    file = place / "out" / "protect.json"
    names = json.loads(file.read_text())["protect"]
    assert names == sheet.figures["diagnosis"]["protect"]
    more = ask(
        place,
        "protected",
        methods=["magnitude", "rtn"],
        sparsity=["60%"],
        bits=[3],
        protect=str(file),
        dynamic=str(file),
    )
    models = {one["name"]: one for one in more.figures["models"]}
    assert list(models) == [
        "original",
        "magnitude 60%",
        "rtn 3bit",
        "magnitude 60% protected",
        "rtn 3bit protected",
        "rtn 3bit dynamic",
    ]
    assert models["rtn 3bit protected"]["bytes"] > models["rtn 3bit"]["bytes"]
    assert models["rtn 3bit dynamic"]["bytes"] <= models["rtn 3bit"]["bytes"]
    assert models["magnitude 60% protected"]["params"] > models["magnitude 60%"]["params"]
    assert "Traces, protected modules and dynamic bits" in [table.title for table in more.tables]


def test_bits_of_a_protect_json_are_those_of_quantisers_and_its_contents_tell_versions_apart(place, tmp_path):
    file, subject = tmp_path / "protect.json", taught()
    given = {"samples": 4, "traces": "", "protect": str(file), "dynamic": "", "seeds": (0,)}

    def grid(told, methods=("magnitude", "rtn")):
        file.write_text(json.dumps(told))
        return reasoning._make_grid(subject, methods, ["50%"], [3], **given)

    first, second = subject.layers()[:2]
    both = grid({"protect": [f"{first}.mlp"], "bits": {f"{second}.mlp": 6}})
    assert [str(one) for one in both] == ["magnitude 50%", "rtn 3bit", "magnitude 50% protected", "rtn 3bit protected"]
    assert {bits for _, bits in both[2].by_module} == {16}
    assert {bits for _, bits in both[3].by_module} == {6, 16}
    others = grid({"protect": [f"{second}.mlp"]})
    assert {one.digest for one in both[2:]}.isdisjoint(one.digest for one in others[2:])
    bits = grid({"bits": {f"{second}.mlp": 6}})
    assert [str(one) for one in bits] == ["magnitude 50%", "rtn 3bit", "rtn 3bit protected"]
    with pytest.raises(InputError, match="gives modules bits, and no quantiser is asked"):
        grid({"bits": {f"{second}.mlp": 6}}, ["magnitude"])
    with pytest.raises(InputError, match="names no module"):
        grid([])


@pytest.mark.wide
def test_calibration_on_the_models_own_traces_stands_beside_that_on_texts(place):
    sheet = ask(place, "traces", methods=["wanda"], sparsity=["50%"], traces=str(place / "traces.jsonl"), samples=2)
    models = {one["name"]: one for one in sheet.figures["models"]}
    assert list(models) == ["original", "wanda 50%", "wanda 50% traces"]
    assert models["wanda 50%"]["figures"]["perplexity"] != models["wanda 50% traces"]["figures"]["perplexity"]
    rows = [json.loads(line) for line in (place / "traces.jsonl").read_text().splitlines()]
    write(place / "others.jsonl", rows[0], *({**row, "question": "she waters the old tree"} for row in rows[1:3]))
    more = ask(place, "traces", methods=["wanda"], sparsity=["50%"], traces=str(place / "others.jsonl"), samples=2)
    again = {one["name"]: one for one in more.figures["models"]}
    assert again["wanda 50%"] == models["wanda 50%"]
    assert again["wanda 50% traces"]["figures"]["perplexity"] != models["wanda 50% traces"]["figures"]["perplexity"]


@pytest.mark.wide
def test_versions_of_other_tools_go_beside_their_original(place):
    """A plain fine-tuned folder, and one that torchao has rounded to integers."""
    pytest.importorskip("torchao", reason="the extra `quantise`")
    tuned = taught().copy()
    with torch.no_grad():
        for one in matrices(tuned.model, tuned.layers()).values():
            one.weight.add_(torch.randn(one.weight.shape, generator=torch.Generator().manual_seed(0)) * 0.01)
    tuned.save(place / "tuned")
    rounded = taught().copy()
    _, left = quantise.weight_only(rounded.model, 8, within=rounded.layers())
    subject = quantised.with_model(rounded, rounded.model)
    quantised.save_int8(subject, place / "int8", quantise.config(8), list(left))
    beside = [str(place / "tuned"), str(place / "int8")]
    sheet = ask(place, "beside", methods=[], beside=beside, diagnose=True, behaviours=str(place / "words.json"))
    models = {one["name"]: one for one in sheet.figures["models"]}
    assert list(models) == ["original", "tuned", "int8"]
    assert models["int8"]["bytes"] < models["original"]["bytes"]
    assert models["int8"]["damage"]["steps"] < 0.3
    assert set(sheet.figures["diagnosis"]["shift"]) == {"tuned", "int8"}


def test_tasks_are_made_written_and_asked_with_the_same_words_again(place):
    how = {"methods": [], "tasks": ["chains", "sums", "facts"], "items": 1, "tokens": 4, "passes": 2}
    first, second = (ask(place, out, **how, write=str(place / f"{out}-tasks")) for out in ("made", "made-again"))
    assert [model["tasks"] for model in first.figures["models"]] == [m["tasks"] for m in second.figures["models"]]
    assert [row["text"] for row in first.items] == [row["text"] for row in second.items]
    assert len(first.items) == 2 * (5 + 5 + 1)
    assert {row["score"] for row in first.items if not row["finished"]} <= {0.0}
    written = {file.name for file in (place / "made-tasks").iterdir()}
    assert written == {"chains.jsonl", "sums.jsonl", "facts.jsonl", "train.jsonl"}
    assert set(puzzles.KINDS) == {"chains", "sums", "schedules", "facts"}


@pytest.mark.parametrize(
    ("more", "kind", "words"),
    [
        ({"tasks": []}, InputError, "give JSONL files, or some of chains"),
        ({"tasks": ["nowhere.jsonl"]}, DataError, "nowhere.jsonl can't be read as a task"),
        ({"methods": ["wonder"]}, InputError, "method 'wonder' is none of"),
        ({"methods": ["magnitude-profile"], "sparsity": ["99%"]}, InputError, "the last block whole"),
        ({"beside": ["nowhere"]}, InputError, "'nowhere' is no folder of a model and no address"),
        ({"protect": "nowhere.json"}, DataError, "nowhere.json can't be read as JSON"),
        ({"dynamic": "middle"}, DataError, 'give "ends", or a protect.json'),
        ({"verify": 3}, InputError, "verify is of a diagnosis: say diagnose too"),
        ({"traces": "steps"}, InputError, "holds prompts of the tasks that are asked"),
        ({"diagnose": True, "behaviours": "nowhere.json"}, DataError, "can't be read as JSON"),
        ({"share": 1.5}, InputError, "share"),
        ({"write": "made"}, InputError, "write is of tasks that are made here"),
    ],
)
def test_what_can_not_be_asked_is_said_before_anything_runs(place, more, kind, words):
    more = {**more, **({"traces": str(place / "steps.jsonl")} if "traces" in more else {})}
    with pytest.raises(kind, match=words):
        ask(place, "refused", **more)
    assert not (place / "refused").exists()


def test_a_diagnosis_by_a_tokenizer_without_offsets_is_refused_before_anything_is_asked(place, monkeypatch):
    call = PreTrainedTokenizerBase.__call__

    def slow(self, *given, **how):
        if how.get("return_offsets_mapping"):
            raise NotImplementedError("return_offset_mapping is not available when using Python tokenizers")
        return call(self, *given, **how)

    monkeypatch.setattr(PreTrainedTokenizerBase, "__call__", slow)
    with pytest.raises(UnsupportedError, match="behaviours need a fast tokenizer"):
        ask(place, "slow", diagnose=True, methods=[])
    assert not (place / "slow").exists()


@pytest.mark.wide
def test_a_diagnosis_that_finds_no_behaviour_is_a_note_beside_what_was_measured(place, monkeypatch):
    (place / "none.json").write_text(json.dumps({"doubting": ["never said"]}))
    how = {"diagnose": True, "behaviours": str(place / "none.json"), "bits": [3]}
    sheet = ask(place, "none", **how, methods=["rtn"])
    (note,) = (one for one in sheet.notes if "diagnosis" in one)
    assert note.startswith("no diagnosis, and no protect.json: no behaviour is found in")
    assert [one["name"] for one in sheet.figures["models"]] == ["original", "rtn 3bit"]
    assert "no diagnosis" in (place / "none" / "study.html").read_text()
    assert not (place / "none" / "protect.json").exists()
    with pytest.raises(DataError, match="no behaviour is found"):
        ask(place, "none", **how, methods=[])

    (place / "none.json").write_text(json.dumps({"doubting": ["said as seldom"]}))
    with pytest.raises(RunError, match="behaviours_sha256"):
        ask(place, "none", **how, methods=["rtn"])
    (place / "none.json").write_text(json.dumps({"doubting": ["never said"]}))

    def refuse(*given):
        raise DataError("texts that are unreadable")

    monkeypatch.setattr(diagnosing, "diagnose", refuse)
    with pytest.raises(DataError, match="unreadable"):  # which no note hides
        ask(place, "none", **how, methods=["rtn"])


def test_a_length_beyond_the_texts_is_refused_by_a_dry_run(place):
    with pytest.raises(DataError, match=r"the held-out part of texts\.txt holds .*: 5000 are needed"):
        ask(place, "long", dry_run=True, length=5000)


def test_a_dry_run_counts_and_writes_nothing(place):
    sheet = ask(place, "dry", dry_run=True, diagnose=True, spans=10)
    assert sheet.figures == {"models": 5, "answers": 120, "gradients": 50}
    assert not (place / "dry").exists()


def test_what_is_asked_for_reaches_the_tasks_that_are_made_and_the_traces(place, monkeypatch):
    made, traced = [], []
    write_puzzles, answer_prompts = puzzles.write_puzzles, reasoning.answer_prompts

    def watch(folder, kinds, count, seed, *, how):
        made.append((kinds, count, seed, how))
        return write_puzzles(folder, kinds, count, seed, how=how)

    def watch_traces(subject, source, folder, tokens, *, batch):
        traced.append((tokens, batch))
        return answer_prompts(subject, source, folder, tokens, batch=batch)

    monkeypatch.setattr(puzzles, "write_puzzles", watch)
    monkeypatch.setattr(reasoning, "answer_prompts", watch_traces)
    how = {"items": 1, "tokens": 4, "temperature": 0.9, "task_seed": 5, "passes": 1, "samples": 3, "batch": 8}
    given = {"traces": str(place / "traces.jsonl"), "write": str(place / "asked-tasks"), **how}
    ask(place, "asked", methods=[], tasks=["facts"], **given)
    assert len(made) > 1, "to be asked, and to be kept"
    assert all(one == (["facts"], 1, 5, puzzles.Asking(4, 0.9, False)) for one in made)
    assert traced == [(3 * 16, 8)]


def test_bits_are_moved_where_there_are_fewer_and_more_to_move_to(place):
    given = {"samples": 4, "traces": "", "protect": "", "dynamic": "ends", "seeds": (0,)}
    grid = reasoning._make_grid(taught(), ["rtn"], [], [8, 4, 3, 2], **given)
    assert [str(one) for one in grid if one.variant] == ["rtn 4bit dynamic", "rtn 3bit dynamic"]


def test_a_diagnosis_is_made_as_asked_for(place, monkeypatch):
    seen, real = [], reasoning.Manner
    monkeypatch.setattr(reasoning, "Manner", lambda *given: seen.append(given) or real(*given))
    how = {"verify": 1, "behaviours": str(place / "words.json"), "spans": 3, "share": 0.25}
    ask(place, "manner", diagnose=True, methods=[], tasks=[str(place / "steps.jsonl")], **how)
    assert seen == [(how["behaviours"], "", "", 3, 0.25, 1)]
