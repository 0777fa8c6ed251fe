"""A study by its name: cards, options, what it leaves, how it goes on, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import pictures
import processes
from recipes.data import test_dp4tl
from recipes.data import test_kd_data_pruning as toy
from secateur import recipes, studies
from secateur._utils.rundir import Run
from secateur.errors import InputError, RunError, SecateurError
from secateur.recipes.data import kd_data_pruning as recipe
from secateur.studies import executor
from secateur.subjects import open_traced

QUICK = {"batch": 24, "epochs": 1.0}
GRID = {"shares": (0.2, 0.5), "alphas": (1.0,), "seeds": (0, 1)}
RIDGE = {"shares": (0.1,), "alphas": (1.0,), "taught": (0.1, 1.0), "seeds": (0, 1), "trials": 3}


def test_each_card_is_complete_and_each_option_explained():
    cards = studies.cards()
    assert set(cards) >= {"curve", "kick", "lossless", "oracle", "rag", "reasoning", "scratch"}
    for name, card in cards.items():
        assert set(card) - {"reads", "backend"} == {"title", "recipe", "sets", "grid"}
        assert not card["recipe"] or card["recipe"] in recipes.cards()
        found = {option.name: option for option in studies.options(name)}
        assert all(option.help for option in found.values()), name
        assert set(card["grid"].split()) <= set(found)
        assert not set(card["sets"].split()) & set(found)
    theirs = {option.name for option in recipes.signature("kd_data_pruning")}
    assert {"epochs", "student"} < theirs & {option.name for option in studies.options("curve")}
    with pytest.raises(InputError, match="no study is called 'curv': did you mean 'curve'"):
        studies.options("curv")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("asked")
    np.savez(root / "data.npz", inputs=toy.DATA.inputs.numpy(), labels=toy.DATA.labels.numpy())
    torch.save(toy.teacher().model.state_dict(), root / "teacher.pt")
    (root / "net.py").write_text(
        "import torch\nfrom torch import nn\n\ndef build():\n    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), "
        "nn.ReLU(), nn.Linear(16, 4))\n"
        f"    net.load_state_dict(torch.load({str(root / 'teacher.pt')!r}, weights_only=True))\n    return net\n"
    )
    return root


def wide(place):
    """A file that builds another teacher, which knows nothing."""
    (place / "wide.py").write_text(
        "import torch\nfrom torch import nn\n\ndef build():\n    torch.manual_seed(1)\n    return nn.Sequential("
        "nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))\n"
    )
    return place / "wide.py"


def ask(place, **more):
    given = {"model": f"{place / 'net.py'}:build", "data": str(place / "data.npz"), **GRID, **QUICK}
    return executor.study("curve", **{**given, **more})


def test_a_study_leaves_its_figures_settings_seeds_and_a_page(place, capsys):
    sheet = ask(place, out=place / "c")
    assert "1 of 8: seed 0, random, 20%, labels alone" in capsys.readouterr().err
    found = json.loads((place / "c" / "study.json").read_text())
    assert found["headline"] == sheet.headline
    assert found["settings"]["seeds"] == [0, 1]
    assert found["settings"]["epochs"] == 1.0
    assert len(found["figures"]["accuracy"]) == 4
    page = (place / "c" / "study.html").read_text()
    assert "teacher alone" in page
    assert "shares:\n- 0.2\n- 0.5\n" in page
    assert {path.name for path in (place / "c").iterdir()} == {"run.yaml", "study.json", "study.html", "work"}


def test_other_contents_of_a_file_that_an_option_names_are_another_study(place):
    once = {"out": place / "files", "student": f"{wide(place)}:build", "shares": (0.5,), "seeds": (0,)}
    first = ask(place, **once)
    assert ask(place, **once).tables == first.tables
    file = place / "wide.py"
    file.write_text(file.read_text().replace("32", "24"))
    with pytest.raises(RunError, match="student_sha256"):
        ask(place, **once)


def test_the_same_again_trains_nothing_and_a_larger_grid_is_what_run_yaml_then_says(place, monkeypatch):
    first = ask(place, out=place / "again")
    bytes_of = {name: (place / "again" / name).read_bytes() for name in ("study.html", "run.yaml")}
    with monkeypatch.context() as broken:
        broken.setattr(recipe, "train_student", lambda *given, **how: 1 / 0)
        assert ask(place, out=place / "again").tables == first.tables
    assert {name: (place / "again" / name).read_bytes() for name in bytes_of} == bytes_of
    larger = ask(place, out=place / "again", seeds=(0, 1, 2))
    assert larger.tables != first.tables
    repeated = executor.configured(place / "again" / "run.yaml", {"out": str(place / "repeated")})
    assert repeated["seeds"] == [0, 1, 2]
    assert executor.study(**repeated).tables == larger.tables
    with pytest.raises(RunError, match=r"with epochs=1.0, not epochs=2.0"):
        ask(place, out=place / "again", epochs=2.0)


@pytest.mark.wide
def test_teachers_that_are_added_are_what_run_yaml_then_says(place):
    larger = f"{wide(place)}:build"
    first = ask(place, out=place / "teachers", shares=(0.2,))
    more = ask(place, out=place / "teachers", shares=(0.2,), teachers=[larger])
    assert list(more.tables[1:]) == list(first.tables), "beside what one alone tells"
    assert "teacher alone: accuracy by teacher" in (place / "teachers" / "study.html").read_text()
    assert json.loads((place / "teachers" / "study.json").read_text())["figures"]["best_teacher"][0]["share"] == 0.2
    repeated = executor.configured(place / "teachers" / "run.yaml", {"out": str(place / "repeated-teachers")})
    assert executor.study(**repeated).tables == more.tables


def test_a_dry_run_counts_and_writes_nothing(place, monkeypatch):
    monkeypatch.setattr(recipe, "train_student", lambda *given, **how: 1 / 0)
    monkeypatch.chdir(place)
    before = sorted(place.iterdir())
    sheet = ask(place, dry_run=True)
    assert sheet.headline == "dry run: 8 students"
    assert sorted(place.iterdir()) == before


def test_a_study_that_was_killed_goes_on_with_what_it_has(place, monkeypatch):
    real, left = recipe.train_student, [3]

    def train_student(*given, **how):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*given, **how)

    monkeypatch.setattr(recipe, "train_student", train_student)
    with pytest.raises(KeyboardInterrupt):
        ask(place, out=place / "killed")
    assert not (place / "killed" / "study.json").exists()
    left[0] = 5
    ask(place, out=place / "killed")
    assert left[0] == 0, "eight trainings, three of which were done"


@pytest.mark.parametrize(("refused", "stays"), [(1, False), (2, True)])
def test_what_was_done_stays_where_a_later_trial_is_refused(tmp_path, refused, stays):
    def work(run):
        for trial in executor._announce(run, [1, 2]):
            run.path(str(trial)).write_text("done")
            if trial == refused:
                raise InputError("no")

    with pytest.raises(InputError), Run.open(tmp_path / "out", {}) as run:
        work(run)
    assert (tmp_path / "out").exists() == stays


def test_a_study_that_was_refused_leaves_nothing(place):
    for more in ({"shares": (0.001,)}, {"alpha": 0.5}, {"epoch": 1}, {"judged": "nowhere.npz"}, {"student": "x.py:y"}):
        with pytest.raises(SecateurError):
            ask(place, out=place / "refused", **more)
        assert not (place / "refused").exists()


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("curve", {}, "needs a network and examples: give MODEL and --data"),
        ("ridge", {"model": "net.py:build"}, "takes no MODEL and no --data"),
        ("ridge", {"epochs": 3}, "study ridge has no option 'epochs'"),
        ("curve", {"alpha": 0.5}, "study curve sets alpha itself"),
        ("curve", {"pack": True}, "study curve sets pack itself"),
        ("ridge", {"seeds": (0, -1)}, "seed=-1 is not a whole number of at least 0"),
        ("curve", {"seeds": "many"}, "option seeds='many' of curve"),
        ("curve", {"scored": "first"}, "study curve sets scored itself"),
        ("lossless", {}, "lossless needs the option 'target'"),
        ("lossless", {"target": "t.npz", "scored": "first"}, "study lossless sets scored itself"),
        ("scratch", {}, "needs a network and examples: give MODEL and --data"),
        ("scratch", {"seed": 3}, "study scratch sets seed itself"),
        ("lossles", {}, "did you mean 'lossless'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(name, given, words, tmp_path):
    with pytest.raises(InputError, match=words):
        executor.study(name, out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.wide
def test_lossless_by_its_name(tmp_path):
    files = test_dp4tl.written(tmp_path)
    given = {**test_dp4tl.QUICK, "target": str(files / "target.npz"), "surrogate": f"{files / 'small.py'}:build",
             "shares": (0.5,), "seeds": (0, 1), "measure": "linear probe"}  # fmt: skip
    sheet = executor.study("lossless", test_dp4tl.opened(), test_dp4tl.source(), tmp_path / "out", **given)
    assert "of the classes can go" in sheet.headline
    assert len(sheet.tables[0].rows) == 3
    more = executor.study("lossless", test_dp4tl.opened(), test_dp4tl.source(), tmp_path / "out", **given,
                       controls=["random", "scratch"])  # fmt: skip
    assert list(more.tables[:1]) == list(sheet.tables)
    assert more.tables[1].rows[0][2:4] == ["random classes", "no pre-training"]
    assert "no pre-training" in (tmp_path / "out" / "study.html").read_text()
    found = json.loads((tmp_path / "out" / "study.json").read_text())
    assert [point["pruned"] for point in found["figures"]["points"]] == [0.0, 0.5]
    assert (tmp_path / "out" / "work" / "runs" / "seed-1" / "work" / "transfer-classes=50%.json").is_file()


# ----------------------------------------------------------------------------------------------- the command line


def test_images_of_unequal_sizes_are_read_as_by_run(tmp_path):
    pictures.class_folder(tmp_path / "data", 20)
    pictures.class_folder(tmp_path / "apart", 8)
    layers = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)]
    subject = open_traced(nn.Sequential(*layers).eval(), torch.zeros(1, 3, 16, 16))
    given = {"data": tmp_path / "data", "judged": str(tmp_path / "apart"), "layers": ["0"], "ratios": ["50%"]}
    given |= {"candidates": 3, "repeats": 1, "epochs": 1.0, "proxies": [], "score": [], "train_batch": 8}

    def answer(**more):
        return executor.study("oracle", subject, out=tmp_path / "out", **given, size=16, **more)

    first = answer(transform="none", workers=0)
    record = yaml.safe_load((tmp_path / "out" / "run.yaml").read_text())
    assert (record["transform"], record["size"], record["judged"]) == ("none", 16, str(tmp_path / "apart"))
    assert answer(transform="none", workers=1).figures == first.figures
    with pytest.raises(RunError, match="transform"):
        answer(transform="imagenet")
    with pytest.raises(InputError, match="no option 'transform'"):
        executor.study("ridge", out=tmp_path / "r", transform="none", **RIDGE)


def test_without_a_name_the_studies_are_listed(tmp_path):
    done = processes.run(tmp_path, "study")
    assert done.code == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == sorted(studies.cards())


def test_the_help_of_a_study_shows_its_own_options_and_its_recipe_s(tmp_path):
    done = processes.run(tmp_path, "study", "curve", "--help")
    assert done.code == 0
    for flag in ("--shares", "--alphas", "--rules", "--seeds", "--judged", "--epochs", "--student", "--dry-run"):
        assert flag in done.stdout
    assert "--alpha " not in done.stdout
    assert "--tried" not in done.stdout


@pytest.mark.wide
def test_a_study_from_the_command_line(place):
    words = ["study", "ridge", "--shares", "0.1", "--alphas", "1", "--taught", "0.1,1", "--seeds", "0,1", "--trials", 3]
    done = processes.run(place, *words, "--out", "r")
    assert (done.code, done.stderr) == (0, "")
    assert "f_t = 1" in done.stdout
    assert "r/study.html" in done.stdout
    assert (place / "r" / "study.json").is_file()
    done = processes.run(place, "study", "--config", "r/run.yaml", "--trials", "2", "--out", "r")
    assert done.code == 2
    assert "holds a run with trials=3, not trials=2" in done.stderr
    done = processes.run(place, "study", "curve", "net.py:build", "--data", "data.npz", "--dry-run", "--seeds", "0,1")
    assert (done.code, done.stderr) == (0, "")
    assert "dry run: 24 students" in done.stdout
    teachers = ["--teachers", f"{wide(place).name}:build", "--teachers", "net.py:build"]
    others = [*teachers, "--seeds", "0,1", "--alphas", "1", "--shares", "0.2"]
    done = processes.run(place, "study", "curve", "net.py:build", "--data", "data.npz", "--dry-run", *others)
    assert (done.code, done.stderr) == (0, "")
    assert "dry run: 8 students" in done.stdout, "2 seeds x labels alone and three teachers"
    again = [
        "--seeds",
        "0,1",
        "--seeds",
        "2",
        "--rules",
        "random",
        "--rules",
        "el2n",
        "--shares",
        "0.1",
        "--shares",
        "1",
    ]
    done = processes.run(place, "study", "curve", "net.py:build", "--data", "data.npz", "--dry-run", *again)
    assert (done.code, done.stderr) == (0, "")
    assert "dry run: 27 students" in done.stdout, "3 seeds x 3 weights, of 2 rules at 10% and of the whole"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["study", "curves"], "no study is called 'curves': did you mean 'curve'"),
        (["study", "curve", "net.py:build", "--data", "data.npz"], "study needs --out: say for example"),
        (["study", "--config", "other.yaml", "--out", "x"], "say secateur run --config other.yaml"),
        (["run", "--config", "own.yaml"], "say secateur study --config own.yaml"),
        (["study", "curve", "--out", "x"], "needs a network and examples: give MODEL and --data"),
        (["study", "ridge", "--out", "x", "--shares", "two"], "option shares="),
        (["study", "ridge", "--out", "data.npz"], "data.npz is a file"),
        (["study", "ridge", "--out", "."], "is not empty and is no run directory"),
        (["study", "curve", "net.py:build", "--data", "data.npz", "--out", "x", "--rules", "el"], "option score='el'"),
    ],
)
def test_what_is_wrong_is_one_line(place, words, said):
    (place / "other.yaml").write_text("recipe: kd_data_pruning\n")
    (place / "own.yaml").write_text("command: study\nstudy: ridge\n")
    done = processes.run(place, *words)
    assert done.code == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (place / "x").exists()
