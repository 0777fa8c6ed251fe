"""Regimes of temperature and density, by the study's name."""

from __future__ import annotations

import contextlib
import functools
import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from recipes.vision import nets
from rows import watch_rows
from secateur.data.examples import Examples
from secateur.errors import DataError, InputError, RunError, UnsupportedError
from secateur.methods import siblings
from secateur.recover.training import loop
from secateur.runs import keywords
from secateur.studies import executor, regimes
from secateur.subjects.transformer.files import write_index

QUICK = {
    "epochs": 1.5,
    "batch": 24,
    "lr": 0.05,
    "temperatures": (0.5, 1, 1.5),
    "densities": (0.1, 0.5),
    "siblings": 2,
    "seeds": (0,),
    "points": 3,
    "images": 40,
}


@functools.cache
def network():
    return nets.opened(nets.vgg())


def answered(root, net=None, **more):
    return executor.study("regimes", net or network(), nets.data(60), root, **{**QUICK, **more})


def figures(root):
    return json.loads((root / "study.json").read_text())["figures"]


def checkpoints(folder, *names, depth=1):
    folder.mkdir()
    for seed, name in enumerate(names):
        save_file(nets.vgg(depth=depth, seed=seed).state_dict(), folder / f"{name}.safetensors")
    return str(folder)


@pytest.mark.usefixtures("charted")
def test_the_study_by_its_name_resumes_and_grows(tmp_path, monkeypatch):
    sheet = answered(tmp_path)
    assert sheet.headline.startswith("advice against the usual training (epochs 1.5): ")
    assert [row[0] for row in sheet.tables[0].rows[1:]] == ["epochs 0.5", "epochs 1", "epochs 1.5"]
    rows = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert all(len(row["errors"]) == 2 and len(row["paths"]) == 1 and len(row["paths"][0]) == 3 for row in rows)
    assert all(0 <= row["cka"][0] <= 1 + 1e-9 for row in rows)
    assert all(row["kept"] == pytest.approx(row["density"], abs=0.01) for row in rows)
    page = (tmp_path / "study.html").read_text()
    assert page.count("<svg") >= 4, "curves and maps, wide and narrow"
    with monkeypatch.context() as broken:
        broken.setattr(loop, "train", lambda *given, **how: 1 / 0)
        assert answered(tmp_path).tables == sheet.tables
        assert answered(tmp_path, barrier=0.5, similar=0.9).tables[1] == sheet.tables[1], "what is read off may change"
        with pytest.raises(ZeroDivisionError):
            answered(tmp_path, densities=(0.1, 0.3, 0.5))
    dense = {file.name: load_file(file) for file in sorted((tmp_path).rglob("dense-epochs*.safetensors"))}
    assert len(dense) == 3
    grown = answered(tmp_path, temperatures=(0.5, 0.7, 1, 1.5), densities=(0.5,))
    assert [row[0] for row in grown.tables[0].rows[1:]] == ["epochs 0.5", "epochs 0.7", "epochs 1", "epochs 1.5"]
    assert grown.tables[1].rows[1][2] == sheet.tables[1].rows[1][3], "what was known stays"
    for name, state in dense.items():
        (file,) = tmp_path.rglob(name)
        assert all(torch.equal(tensor, state[key]) for key, tensor in load_file(file).items()), "the same run again"
    with pytest.raises(RunError, match="points=3"):
        answered(tmp_path, points=5)


def test_checkpoints_of_one_run_are_those_of_shorter_ones_and_a_cell_goes_on(tmp_path, monkeypatch):
    """The first decay is at half of the epochs: before it, a checkpoint is a training that was stopped there."""
    how = {"temperatures": (0.5, 1.5), "densities": (0.5,)}
    real = regimes.compare
    with monkeypatch.context() as broken:
        broken.setattr(regimes, "compare", lambda *given, **how: 1 / 0)  # siblings are trained, and nothing is known
        with pytest.raises(ZeroDivisionError):
            answered(tmp_path / "cut", **how)
        broken.setattr(regimes, "compare", real)
        broken.setattr(regimes.initialise, "fresh", lambda *given, **how: 1 / 0)  # the dense network is there
        again = answered(tmp_path / "cut", **how)
    assert answered(tmp_path / "whole", **how).figures == again.figures
    (half,) = (tmp_path / "whole").rglob("dense-epochs 0.5.safetensors")
    model, _ = regimes.initialise.fresh(network().model, seed=0)
    train, _ = nets.data(60).split(seed=0)
    siblings.fit(model, train, epochs=0.5, batch=24, lr=0.05, seed=0, schedule="constant", weight_decay=1e-4)
    assert all(torch.allclose(tensor, model.state_dict()[name]) for name, tensor in load_file(half).items())


@pytest.mark.parametrize(
    ("temperature", "order", "start"),
    [
        ("batch", ["batch 12", "batch 24"], 1),
        ("rho", ["rho 0.05", "rho 0"], 0),
        ("lr", ["lr 0.05", "lr 0.01"], 1),
        ("weight_decay", ["weight_decay 0.01", "weight_decay 0"], 1),
    ],
)
def test_other_temperatures_train_a_dense_network_each(tmp_path, temperature, order, start):
    values = tuple(float(name.split()[1]) for name in order)
    seen = []
    real = siblings.fit

    def spy(model, data, training, **how):
        seen.append((training.batch, training.sam, training.lr, training.weight_decay, how.get("closed") is None))
        return real(model, data, training, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(siblings, "fit", spy)
        how = {**QUICK, "temperature": temperature, "temperatures": values, "densities": (0.5,), "epochs": 1}
        checked = keywords.check_options(regimes.regimes, how)
        found = regimes.regimes(network(), nets.data(60), tmp_path, **checked)
    assert list(found.temperatures) == order
    usual = (24, None, 0.05, 1e-4)
    place = {"batch": 0, "rho": 1, "lr": 2, "weight_decay": 3}[temperature]
    dense = [one[:4] for one in seen if one[4]]
    given = [None if temperature == "rho" and not value else value for value in values]
    assert dense == [(*usual[:place], value, *usual[place + 1 :]) for value in given], "rho 0 is SGD"
    assert {one[:4] for one in seen if not one[4]} == {usual}, "siblings are all retrained alike"
    assert found.start == start


@pytest.mark.wide
def test_the_advice_alone_trains_only_what_it_looks_at(tmp_path):
    sheet = answered(tmp_path / "m", epochs=1, temperatures=(0.5, 1), similar=0.5, seeds=(0, 1))
    followed = answered(
        tmp_path / "f", epochs=1, temperatures=(0.5, 1), similar=0.5, follow=True, barrier=0.9, seeds=(0, 1)
    )
    chosen = [use["chosen"]["advice"] for use in figures(tmp_path / "f")["uses"]]
    assert chosen == ["epochs 1", "epochs 1"], "connected and alike: nothing to be turned"
    assert len(figures(tmp_path / "f")["cells"]) == 2
    assert followed.tables[0].rows[1][1:] == ["", ""]
    assert followed.tables[1].rows[2] == sheet.tables[1].rows[2], "the same figures as on the whole map"


def test_siblings_are_compared_on_examples_of_all_classes(tmp_path, monkeypatch):
    """Folders of images stand class by class: the first of them are of one class."""
    data = nets.data(60)
    by_class, seen = data.take(torch.argsort(data.labels, stable=True)), []
    real = regimes.compare

    def spy(shell, first, second, examples, **how):
        seen.append(examples)
        return real(shell, first, second, examples, **how)

    monkeypatch.setattr(regimes, "compare", spy)
    how = {**QUICK, "epochs": 0.5, "temperatures": (0.25, 0.5), "densities": (0.5,), "images": 32}
    executor.study("regimes", network(), by_class, tmp_path / "few", **how)
    assert len(seen) == 2
    assert torch.equal(seen[0].inputs, seen[1].inputs), "the same for all temperatures"
    assert len(seen[0].labels) == 32
    assert seen[0].labels.unique().tolist() == data.labels.unique().tolist()
    executor.study("regimes", network(), by_class, tmp_path / "all", **{**how, "images": 0})
    assert len(seen[-1].labels) == 54
    assert seen[-1].labels[:24].unique().tolist() == data.labels.unique().tolist(), "a batch is of all classes, too"


def test_a_control_has_random_masks_of_the_same_density(tmp_path):
    sheet = answered(tmp_path, epochs=1, temperatures=(0.5, 1), densities=(0.2,), control=True)
    assert sheet.tables[-1].title == "The same with random masks, %"
    cells = {(one["masks"], one["temperature"]) for one in figures(tmp_path)["cells"]}
    assert len(cells) == 4
    rows = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert len({row["kept"] for row in rows}) == 1


def test_the_users_checkpoints_are_the_temperatures(tmp_path, monkeypatch):
    folder = checkpoints(tmp_path / "runs", "epoch-100", "epoch-20")
    (tmp_path / "runs" / "checkpoint-3").mkdir()
    save_file(nets.vgg(seed=5).state_dict(), tmp_path / "runs" / "checkpoint-3" / "model.safetensors")
    how = {"temperatures": (), "checkpoints": folder, "densities": (0.5,), "epochs": 1}
    sheet = answered(tmp_path / "out", **how)
    assert [row[0] for row in sheet.tables[0].rows[1:]] == ["checkpoint-3", "epoch-20", "epoch-100"]
    assert sheet.headline.startswith("advice against the usual training (epoch-100): ")
    assert any("seen the examples" in note for note in sheet.notes)
    assert not list((tmp_path / "out").rglob("dense-*.safetensors")), "the user's network is not trained"
    with monkeypatch.context() as broken:
        broken.setattr(loop, "train", lambda *given, **how: 1 / 0)
        assert answered(tmp_path / "out", **how).tables == sheet.tables
        save_file(nets.vgg(seed=9).state_dict(), tmp_path / "runs" / "epoch-20.safetensors")
        with pytest.raises(ZeroDivisionError):  # another file under the same name is another network
            answered(tmp_path / "out", **how)


@pytest.mark.wide
def test_checkpoints_of_a_language_model_are_folders_as_transformers_leaves_them(tmp_path):
    """States behind the last block are compared, errors are of the next token, and no batch norm is there."""
    tiny.folder("llama", tmp_path / "model")
    for at, step in enumerate((10, 20)):
        tiny.model("llama", seed=at).save_pretrained(tmp_path / "runs" / f"checkpoint-{step}")
    (tmp_path / "texts.txt").write_text("\n".join(tiny.chains(40)))
    how = {"checkpoints": str(tmp_path / "runs"), "layers": "matrices", "optimizer": "adamw", "lr": 1e-3, "epochs": 0.5}
    rest = {"densities": (0.3,), "siblings": 2, "seeds": (0,), "points": 3, "batch": 4, "tokens": 16}
    asked = (str(tmp_path / "model"), str(tmp_path / "texts.txt"))
    sheet = executor.study("regimes", *asked, tmp_path / "out", **how, **rest)
    assert [row[0] for row in sheet.tables[0].rows[1:]] == ["checkpoint-10", "checkpoint-20"]
    row = json.loads((tmp_path / "out" / "items.jsonl").read_text().splitlines()[0])
    assert row["kept"] == pytest.approx(0.3, abs=0.01)
    assert 0 < row["errors"][0] < 1
    with pytest.raises(UnsupportedError, match="layers=matrices"):
        executor.study("regimes", *asked, tmp_path / "o", **{**how, "layers": "convolutions"}, **rest)
    for few, words in (
        ({"tokens": 64}, "the held-out part of texts.txt holds 52 tokens, less than one batch: 64 are needed"),
        ({"batch": 32}, "texts.txt holds 468 tokens, less than one batch: 512 are needed"),
        ({"images": 2, "tokens": 32}, "texts.txt holds 26 tokens, less than one batch: 32 are needed"),
    ):
        with pytest.raises(DataError, match=words):
            executor.study("regimes", *asked, tmp_path / "o", **how, **{**rest, **few}, dry_run=True)
    with pytest.raises(InputError, match="augment changes inputs of networks"):
        executor.study("regimes", *asked, tmp_path / "o", **how, **rest, augment=f"{tmp_path / 'x.py'}:f")
    assert not (tmp_path / "o").exists()


def in_parts(folder, state):
    """A state dict as transformers leaves a large one: in several files, with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    places = {name: f"model-0000{1 + at % 2}-of-00002.safetensors" for at, name in enumerate(state)}
    for file in set(places.values()):
        save_file({name: state[name] for name, place in places.items() if place == file}, folder / file)
    write_index(folder, places, 0)


def test_checkpoints_in_several_files_are_as_those_in_one(tmp_path, monkeypatch):
    checkpoints(tmp_path / "whole", "epoch-20", "epoch-100")
    parts = tmp_path / "parts"
    for seed, name in enumerate(("epoch-20", "epoch-100")):
        in_parts(parts / name, nets.vgg(seed=seed).state_dict())
    how = {"temperatures": (), "densities": (0.5,), "epochs": 1}
    found = [answered(tmp_path / f"out-{name}", checkpoints=str(tmp_path / name), **how) for name in ("whole", "parts")]
    assert found[0].figures == found[1].figures
    with monkeypatch.context() as broken:
        broken.setattr(loop, "train", lambda *given, **how: 1 / 0)
        assert answered(tmp_path / "out-parts", checkpoints=str(parts), **how).tables == found[1].tables
        in_parts(parts / "epoch-20", nets.vgg(seed=9).state_dict())
        with pytest.raises(ZeroDivisionError):  # other weights under the same names are another network
            answered(tmp_path / "out-parts", checkpoints=str(parts), **how)
    (parts / "epoch-20" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"epoch-20 lacks model-00002-of-00002.safetensors, which its index names"):
        answered(tmp_path / "o", checkpoints=str(parts), **how, dry_run=True)


def test_checkpoints_without_numbers_are_chosen_from_and_not_ordered(tmp_path):
    folder = checkpoints(tmp_path / "runs", "small", "large")
    how = {"temperatures": (), "checkpoints": folder, "densities": (0.5,), "epochs": 1}
    sheet = answered(tmp_path / "out", **how)
    assert sheet.headline.startswith("connected and most alike against the usual training (")
    (use,) = figures(tmp_path / "out")["uses"]
    assert "advice" not in use["chosen"]
    assert use["chosen"]["usual training"] == use["chosen"]["most accurate before pruning"]
    with pytest.raises(InputError, match="put a number into each checkpoint's name"):
        answered(tmp_path / "other", **how, follow=True)


def test_a_name_that_two_files_have_is_refused(tmp_path):
    folder = checkpoints(tmp_path / "runs", "epoch-1", "epoch-2")
    (tmp_path / "runs" / "epoch-2").mkdir()
    save_file(nets.vgg(seed=5).state_dict(), tmp_path / "runs" / "epoch-2" / "model.safetensors")
    with pytest.raises(InputError, match="holds epoch-2 twice"):
        answered(tmp_path / "o", temperatures=(), checkpoints=folder)
    assert not (tmp_path / "o").exists()


def test_steps_that_float16_skipped_leave_no_checkpoint_out(tmp_path, monkeypatch):
    """An optimiser that skips a step counts less of them than the training."""
    real, skipped = siblings.fit, []

    def skip(model, data, training, *, step_end=None, **how):
        def late(optimizer):
            skipped.append(1)
            if len(skipped) > 8:
                pytest.fail("the dense network is trained again and again")
            optimizer.state[optimizer.param_groups[0]["params"][0]]["done"] -= len(skipped) % 2
            step_end(optimizer)

        return real(model, data, training, step_end=step_end and late, **how)

    monkeypatch.setattr(siblings, "fit", skip)
    answered(tmp_path, epochs=1, temperatures=(0.4, 0.99, 1), densities=(0.5,))
    found = sorted(file.name for file in tmp_path.rglob("dense-epochs*.safetensors"))
    assert found == [f"dense-epochs {one}.safetensors" for one in ("0.4", "0.99", "1")]


def test_passes_over_the_training_set_run_where_training_runs(tmp_path, monkeypatch):
    """Not where the model was opened, which is the CPU beside an idle GPU."""
    placed, outside = [], []
    real = loop.place_for_training

    @contextlib.contextmanager
    def spy(*modules):
        with real(*modules) as device:
            placed.extend(modules)
            yield device
            placed.clear()

    def watched(name):
        made = getattr(regimes, name)

        def look(model, *given, **how):
            outside.append((name, model not in placed))
            return made(model, *given, **how)

        return look

    monkeypatch.setattr(loop, "place_for_training", spy)
    for name in ("compare", "share_wrong"):
        monkeypatch.setattr(regimes, name, watched(name))
    answered(tmp_path, epochs=0.5, temperatures=(0.25, 0.5), densities=(0.5,))
    assert outside == [("share_wrong", False), ("compare", False)] * 2


def test_no_pass_has_more_examples_than_a_step_however_many_there_are(tmp_path):
    with watch_rows() as rows:
        answered(
            tmp_path, epochs=0.5, temperatures=(0.25, 0.5), densities=(0.5,), batch=10, judged=nets.data(30, seed=1)
        )
    assert max(rows) == 10


def test_what_is_judged_on_has_the_classes_of_the_data(tmp_path):
    """A folder without the first class has the second as its first: all networks were wrong on what they knew."""
    names = ("a", "b", "c", "d")
    data, held = (replace(nets.data(*one), classes=names) for one in ((60, 0), (40, 5)))
    held = held.take(torch.nonzero(held.labels > 0).flatten())
    own = replace(held, labels=held.labels - 1, classes=names[1:])
    how = {**QUICK, "epochs": 1, "temperatures": (0.5, 1), "densities": (0.5,)}
    for name, judged in (("as the data", held), ("by itself", own)):
        executor.study("regimes", network(), data, tmp_path / name, judged=judged, **how)
    assert figures(tmp_path / "as the data")["cells"] == figures(tmp_path / "by itself")["cells"]
    other = replace(own, classes=("b", "c", "e"))
    with pytest.raises(DataError, match="give both the same classes"):
        executor.study("regimes", network(), data, tmp_path / "o", judged=other, dry_run=True, **how)


def test_a_dry_run_counts_and_trains_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "train", lambda *given, **how: pytest.fail("trained in a dry run"))
    sheet = answered(tmp_path / "d", dry_run=True, siblings=3, seeds=(0, 1), control=True)
    assert sheet.headline == "dry run: 2 dense trainings, 72 retrainings, 216 points on paths"
    other = answered(tmp_path / "d", dry_run=True, temperature="rho", temperatures=())
    assert other.headline == "dry run: 5 dense trainings, 20 retrainings, 30 points on paths"
    less = answered(tmp_path / "d", dry_run=True, follow=True)
    assert less.headline == "dry run: 1 dense trainings, 12 retrainings at most, 18 points on paths at most"
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"densities": (0.5, 0.001)}, "density 0.001 leaves 0.weight empty, which has 72 weights"),
        ({"densities": (0.0005,), "allocation": "global"}, "density 0.0005 leaves one of 4 layers empty"),
        ({"densities": (0.5, 1.0)}, "densities"),
        ({"densities": ()}, "give at least one of each"),
        ({"seeds": ()}, "give at least one of each"),
        ({"temperatures": (1,)}, "has one temperature, epochs 1, and the study chooses between two or more"),
        ({"temperatures": (1, 9)}, "temperatures=9 of epochs: give above 0 and up to the 1.5 epochs"),
        ({"temperature": "lr", "temperatures": (-1, 1)}, "temperatures=-1 of lr"),
        ({"temperature": "width"}, "temperature='width'"),
        ({"start": 7}, "start=7 is none of the temperatures: epochs 0.5, epochs 1, epochs 1.5"),
        ({"siblings": 1}, "siblings=1"),
        ({"points": 2}, "points=2"),
        ({"images": 1}, "images=1: give 2 or more, or 0 for all"),
        ({"epochs": 0}, "epochs"),
        ({"training": "evaluate_every=1"}, "evaluate_every=1: the test error is the mean over the last 5 epochs"),
        ({"temperature": "weight_decay", "temperatures": (), "weight_decay": 0.0}, "weight_decay=0 has no multiples"),
        ({"temperature": "lr", "temperatures": (0, 1)}, "temperatures=0 of lr"),
        ({"retrain_epochs": 0}, "retrain_epochs=0: give more than 0"),
        ({"training": "patience=2"}, "patience=2: every arm trains"),
        ({"training": "validation=0.1"}, "validation=0.1: every arm trains"),
        ({"control": True, "follow": True}, "give one"),
        ({"optimizer": "adamw"}, "taken between steps of sgd"),
        ({"seeds": (-1,)}, "seed=-1"),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(tmp_path, given, words):
    with pytest.raises(InputError, match=re.escape(words)) as error:
        answered(tmp_path / "o", **given)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "o").exists()


def test_folders_and_data_that_do_not_fit_leave_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    cases = [
        (str(tmp_path / "empty"), "holds no NAME.safetensors"),
        (checkpoints(tmp_path / "one", "epoch-1"), "has one temperature, epoch-1"),
        (checkpoints(tmp_path / "deep", "epoch-1", "epoch-2", depth=2), "is of another architecture"),
    ]
    for folder, words in cases:
        with pytest.raises(InputError, match=words):
            answered(tmp_path / "o", temperatures=(), checkpoints=folder)
    with pytest.raises(InputError, match="give one of both"):
        answered(tmp_path / "o", checkpoints=cases[1][0])
    with pytest.raises(DataError, match="no classes"):
        executor.study("regimes", network(), Examples(nets.data(60).inputs), tmp_path / "o", **QUICK)
    dense = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    with pytest.raises(UnsupportedError, match="layers=matrices"):
        answered(tmp_path / "o", nets.opened(dense))
    assert not (tmp_path / "o").exists()
    assert siblings.prunable(dense, "matrices")


def test_each_training_is_of_its_seed_its_part_and_its_rate(tmp_path, monkeypatch):
    (tmp_path / "same.py").write_text("def same(inputs, draw):\n    return inputs\n")
    learned, drawn, closed, shuffled = [], [], [], []
    learn, fresh, close, shuffle = (
        regimes.learn,
        regimes.initialise.fresh,
        regimes.close_smallest,
        regimes.masks.shuffle,
    )

    def watch(model, part, training, **how):
        judged = how.get("judged")
        found = learn(model, part, training, **how)
        learned.append((how["seed"], part.digest, judged and judged.digest, training.lr, how["augment"], found))
        return found

    monkeypatch.setattr(regimes, "learn", watch)
    monkeypatch.setattr(regimes.initialise, "fresh", lambda net, *, seed: drawn.append(seed) or fresh(net, seed=seed))
    monkeypatch.setattr(regimes, "close_smallest", lambda *given: closed.append(given[1:]) or close(*given))
    monkeypatch.setattr(
        regimes.masks, "shuffle", lambda given, *, seed: shuffled.append(seed) or shuffle(given, seed=seed)
    )
    how = {"epochs": 1, "temperatures": (0.5, 1), "densities": (0.3,), "seeds": (3,), "control": True}
    more = {"allocation": "global", "retrain_epochs": 7, "retrain_lr": 0.02, "augment": f"{tmp_path / 'same.py'}:same"}
    answered(tmp_path / "out", **how, **more)
    train, held = (part.digest for part in nets.data(60).split(seed=3))
    dense, *siblings = learned
    assert dense[:4] == (3, train, None, 0.05)
    assert [one[:4] for one in siblings] == [(seed, train, held, 0.02) for _ in range(4) for seed in (1, 2)]
    assert all(one[4] is not None for one in learned), "all are augmented"
    assert drawn == [3]
    assert closed == [(0.3, "global")] * 4
    assert shuffled == [3, 3]
    rows = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    ends = [[error for _, error in one[5].settings["evaluations"]] for one in siblings]
    assert all(len(errors) == 7 for errors in ends)
    means = [sum(errors[-5:]) / 5 for errors in ends]
    assert sorted(error for row in rows for error in row["errors"]) == pytest.approx(sorted(means))
