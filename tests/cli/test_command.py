from __future__ import annotations

import importlib
import itertools

import pytest

from secateur import cli, recipes
from secateur.cli.command import Command, _with_flags
from secateur.errors import InputError, UnsupportedError

COMMANDS = {name: importlib.import_module(f"secateur.cli.{file}").COMMAND for name, file in cli.COMMANDS.items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_each_flag_is_a_parameter_that_is_explained(name):
    command = COMMANDS[name]
    parameters = {option.name for function in command.functions for option in recipes.parameters(function)}
    flags = {flag.option.name: flag for flag in command.flags()}
    assert {*command.arguments, *command.words, *command.help, *command.again, *command.without} <= parameters
    assert set(command.needed.values()) <= set(flags)
    more = {flag.option.name for flag in command.more} | ({"config"} if command.config else set())
    more |= {"push_to_hub", "public"} if command.pushes else set()
    assert set(flags) == parameters - set(command.without) | more
    assert [flag for flag in flags.values() if not flag.help()] == []
    assert "config" in flags or name in ("list", "show")


def test_an_error_that_speaks_to_python_names_the_flags_of_its_options(monkeypatch, capsys):
    def refuse(self, typed):
        raise UnsupportedError(
            "layers keep equally many: give uniform=True; overwrite=True (--overwrite), f(uniform=True)"
        )

    monkeypatch.setattr(Command, "run", refuse)
    assert cli.main(["run", "stun", "model"]) == 2
    assert "equally many: give --uniform; overwrite=True (--overwrite), f(uniform=True)" in capsys.readouterr().err
    trust = _with_flags("it is not run unasked: pass trust_remote_code=True if you trust it", [])
    assert trust.startswith("it is not run unasked: no command runs it; take auto_map out of its config.json")
    assert _with_flags("give even=False, or hidden=True (--hidden)", COMMANDS["prune"].flags()).startswith(
        "give --no-even,"
    )


@pytest.mark.parametrize(
    ("name", "python", "typed"),
    [
        ("d_pruner", "needs texts beside the domain's: give general=FILE, or", "give --general FILE, or"),
        ("d_pruner", "d_pruner needs the option 'general'", "d_pruner needs --general"),
        ("d_pruner", "give general=FILE (--general)", ""),
        ("shortgpt", "select_by=short-retrain compares cuts: give steps", "--select-by short-retrain compares"),
        ("shortgpt", "out holds a run with device=cpu, not device=cuda: give another", ""),
        ("shortgpt", "budget layers=50%: layers has no cost here", ""),
        ("shortgpt", "the file 'device=a' or folder/device=a, from f(1, device=a): give device=None", ""),
    ],
)
def test_an_error_names_the_flags_of_options_with_values(name, python, typed):
    command = COMMANDS["run"]
    flags = [*command.flags(), *command.recipe_flags([name])[0]]
    said = _with_flags(python, flags)
    assert typed in said if typed else said == python
    assert _with_flags(python, []) == python, "what has no flag stays"


def test_a_tokenizer_that_is_none_is_named_by_the_flag_that_it_was_taken_from(monkeypatch, capsys):
    def refuse(self, typed):
        raise InputError("tokenizer 'nosuch' is no folder here")

    monkeypatch.setattr(Command, "run", refuse)
    line = ["prune-context", "page.html", "--recipe", "htmlrag"]
    for flags, error in [
        (["--embedder", "nosuch"], "--embedder nosuch is no folder here"),
        (["--tokenizer", "nosuch"], "tokenizer 'nosuch' is no folder here"),
        (["--embedder", "nosuch", "--tokenizer", "nosuch"], "tokenizer 'nosuch' is no folder here"),
        (["--embedder", "other"], "tokenizer 'nosuch' is no folder here"),
    ]:
        assert cli.main([*line, *flags]) == 2
        assert error in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("run zipml", "did you mean 'ziplm'"),
        ("run ziplm llama", "run needs --budget, --data, --out: say for example"),
        ("run htmlrag page.html --budget words=3 --out x", "secateur prune-context page.html --recipe htmlrag"),
        ("run kg_rag --data x", "secateur prune-context FILE --recipe kg_rag --budget"),
        ("run ziplm llama --seed one", "--seed one: give a whole number"),
        ("run ziplm llama --bugdet 3", "--bugdet"),
        ("distill llama", "distill needs --from, --data, --out: say for example"),
        ("distill llama --from llama --out x", "distill needs --data:"),
        ("train-pruner wanda", "wanda trains no model"),
        ("export llama", "export needs --to"),
        *((name, f"{name} needs ") for name in ("prune", "measure", "inspect", "report", "show", "prune-data")),
        ("prune m --budget lots", "budget 'lots' was not understood"),
        ("export small --to onnx --public", "--public is of a repository: give --push-to-hub OWNER/NAME"),
        ("export small --to onnx --push-to-hub a/b/c", "'a/b/c' is no name of a repository on the Hub"),
    ],
)
def test_what_is_missing_or_wrong_is_said_in_one_line(line, error, capsys):
    assert cli.main(line.split()) == 2
    printed = capsys.readouterr().err
    assert error in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "name", "error"),
    [
        ("recipe: distill\nstps: 3\n", "distill", "unknown key 'stps': did you mean 'steps'"),
        ("recipe: distill\nsteps: many\n", "distill", "option steps='many' of distill"),
        ("student: 3\n", "distill", "student is 3: give text"),
        ("teachers: [a, 3]\n", "distill", "teachers is ['a', 3]: give text, or a list of texts"),
        ("recipe: distill\n", "run", "say secateur distill --config"),
        ("recipe: ziplm\n", "distill", "say secateur run --config"),
        ("recipe: ziplm\n", "measure", "say secateur run --config"),
        ("recipe: ziplm\nheld_out: 3\n", "run", "held_out is 3: give text"),
        ("recipe: ziplm\nlabel: 3\n", "run", "label is 3: give text"),
        ("recipe: ziplm\ncalibartion: 8\n", "run", "unknown key 'calibartion': did you mean 'calibration'"),
        ("command: prune-data\n", "run", "say secateur prune-data --config"),
        ("command: train-pruner\nrecipe: provence\n", "run", "say secateur train-pruner --config"),
        ("student: llama\n", "distill", "distill needs --from, --data, --out"),
        ("data: texts.txt\n", "prune-data", "prune-data needs --budget, --out"),
        ("data: texts.txt\nbudget: examples=50%\nscor: x\n", "prune-data", "did you mean 'score'"),
        ("recipe: provence\n", "train-pruner", "train-pruner needs MODEL, --data, --out"),
        ("recipe: provence\nmodel: llama\nlongst: 3\n", "train-pruner", "did you mean 'longest'"),
        ("recipe: wanda\nmodel: llama\ndata: texts.txt\nout: x\n", "train-pruner", "wanda trains no model"),
        ("folder: 3\n", "export", "export needs --to"),
        ("modl: m\n", "inspect", "did you mean 'model'"),
        ("batch: many\n", "measure", "--batch many: give a whole number"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_in_one_line(capsys, monkeypatch, tmp_path, text, name, error):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some.yaml").write_text(text)
    assert cli.main([name, "--config", "some.yaml"]) == 2
    printed = capsys.readouterr().err
    assert error in printed
    assert printed.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["some.yaml"]


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.example])
def test_the_example_that_is_told_where_something_is_missing_can_be_typed(name):
    command = COMMANDS[name]
    words = command.example.partition(",")[0].split()
    flags = {flag.words: flag for flag in [*command.flags(), *command.recipe_flags(words[2:])[0]]}
    for word, value in itertools.pairwise(words):
        if word.startswith("--"):
            flags[word].value([value] if flags[word].again else value)
