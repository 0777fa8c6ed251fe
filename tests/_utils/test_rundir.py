import io
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from secateur._utils import rundir
from secateur._utils.disk import atomic_write, guard, is_disk_full, writing
from secateur._utils.rundir import Run, Transient, lock_folder
from secateur.errors import InfeasibleError, InputError, RunError


def test_a_second_open_resumes_and_another_setting_is_named(tmp_path):
    with Run.open(tmp_path / "r", {"recipe": "x", "lr": 1e-5, "sizes": (1, 2)}, about={"versions": {"a": "1"}}):
        pass
    with Run.open(tmp_path / "r", {"recipe": "x", "lr": 1e-5, "sizes": (1, 2)}, about={"versions": {"a": "2"}}):
        pass
    with pytest.raises(RunError, match=r"lr=1e-05, not lr=0\.1.*--overwrite"):
        Run.open(tmp_path / "r", {"recipe": "x", "lr": 0.1, "sizes": (1, 2)})
    stored = yaml.safe_load((tmp_path / "r" / "run.yaml").read_text())
    assert stored == {"recipe": "x", "lr": 1e-5, "sizes": [1, 2], "versions": {"a": "1"}}


@pytest.mark.parametrize("store", ["json", "tensors"])
def test_what_takes_long_is_said_where_there_is_no_terminal(store, tmp_path, monkeypatch):
    monkeypatch.setattr(rundir, "_LATE", 0.0)
    monkeypatch.setattr(sys, "stderr", lines := io.StringIO())

    def compute():
        while "table: under way" not in lines.getvalue():
            time.sleep(0.001)
        return {}

    with Run.open(tmp_path, {}) as run:
        getattr(run, store)("table", compute)
        assert re.fullmatch(r"table: under way\ntable: done, \d+ s\n", lines.getvalue())
        getattr(run, store)("table", compute)  # which is there
        assert lines.getvalue().count("table") == 2


def test_a_record_of_an_older_version_may_lack_what_stands_at_its_default(tmp_path):
    Run.open(tmp_path / "run", {"steps": 1}).close()
    Run.open(tmp_path / "run", {"steps": 1, "moment": "both"}, defaults={"moment": "both"}).close()
    with pytest.raises(RunError, match="moment=not set, not moment=gradient"):
        Run.open(tmp_path / "run", {"steps": 1, "moment": "gradient"}, defaults={"moment": "both"})


def test_an_input_on_record_is_not_left_out_in_silence(tmp_path):
    with Run.open(tmp_path / "r", {"seed": 0, "data_sha256": "a", "held_out_sha256": "b"}):
        pass
    with pytest.raises(RunError, match="holds a run with held_out_sha256=b, not held_out_sha256=not set"):
        Run.open(tmp_path / "r", {"seed": 0, "data_sha256": "a"})
    with Run.open(tmp_path / "r", {}):  # who names no inputs asks for none
        pass


def test_a_folder_is_had_by_one_at_a_time(tmp_path):
    with lock_folder(tmp_path / "a" / "b"), pytest.raises(RunError, match="in use by another run"):
        lock_folder(tmp_path / "a" / "b").__enter__()
    with lock_folder(tmp_path / "a" / "b"):
        pass


def test_overwrite_starts_anew(tmp_path):
    with Run.open(tmp_path / "r", {"seed": 0}) as run:
        run.json("value", lambda: 1)
        run.publish(lambda folder: (folder / "config.json").write_text("old"))
    with Run.open(tmp_path / "r", {"seed": 1}, overwrite=True) as run:
        assert run.json("value", lambda: 2) == 2
        assert not (tmp_path / "r" / "config.json").exists()


def test_two_runs_in_one_directory_are_refused_by_process_and_within_it(tmp_path):
    code = (
        "import sys, time; from secateur._utils.rundir import Run\n"
        "run = Run.open(sys.argv[1], {'a': 1}); print('open', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "r")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(RunError, match=rf"in use by another run \(process {holder.pid}\)"):
            Run.open(tmp_path / "r", {"a": 1})
    finally:
        holder.kill()
        holder.wait()
    # The lock goes with the process that held it, however that ended.
    with Run.open(tmp_path / "r", {"a": 1}), pytest.raises(RunError, match="in use"):
        Run.open(tmp_path / "r", {"a": 1})
    Run.open(tmp_path / "r", {"a": 1}).close()


@pytest.mark.parametrize("content", ["{", "- 1\n- 2\n", "\x00"])
def test_a_damaged_record_is_refused(tmp_path, content):
    Run.open(tmp_path / "r", {"a": 1}).close()
    (tmp_path / "r" / "run.yaml").write_text(content)
    with pytest.raises(RunError, match=r"run\.yaml is damaged"):
        Run.open(tmp_path / "r", {"a": 1})


def test_foreign_places_are_refused_even_for_overwriting(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years")
    with pytest.raises(RunError, match="is no run directory"):
        Run.open(tmp_path / "precious", {}, overwrite=True)
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years"
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        Run.open(tmp_path / "file", {})


def test_artefacts_are_computed_once_and_read_as_first_returned(tmp_path):
    with Run.open(tmp_path / "r", {}) as run:
        first = run.json("counts", lambda: {1: (2, 3.5)})
        assert first == run.json("counts", lambda: pytest.fail("computed twice")) == {"1": [2, 3.5]}
        shared = torch.arange(6.0).reshape(2, 3)
        made = run.tensors("scores/a", lambda: {"x": shared, "y": shared.T})
        again = run.tensors("scores/a", lambda: pytest.fail("computed twice"))
        assert all(torch.equal(made[key], again[key]) for key in ("x", "y"))
        assert torch.equal(again["y"], shared.T)


def test_a_damaged_artefact_is_named(tmp_path):
    with Run.open(tmp_path / "r", {}) as run:
        run.path("a.json").write_text("{")
        run.path("b.safetensors").write_bytes(b"\x10")
        with pytest.raises(RunError, match=r"a\.json is damaged: delete it"):
            run.json("a", dict)
        with pytest.raises(RunError, match=r"b\.safetensors is damaged: delete it"):
            run.tensors("b", dict)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "f.txt"
    atomic_write(path, "old")

    def fail():
        with writing(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["f.txt"]


def test_a_full_disk_is_known_through_every_wrapping():
    def wrapped():
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise RuntimeError("could not save") from error

    with pytest.raises(RuntimeError) as caught:
        wrapped()
    assert is_disk_full(caught.value)
    assert is_disk_full(Exception("I/O error: No space left on device (os error 28)"))
    assert not is_disk_full(ValueError("x"))


def test_a_full_disk_becomes_one_line(tmp_path):
    with pytest.raises(RunError, match=r"disk full while writing .*: free some space"), guard(tmp_path):
        raise OSError(28, "No space left on device")


def test_a_place_where_nothing_can_be_written_becomes_one_line(tmp_path):
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "file" / "below", tmp_path / "folder"):
        with pytest.raises(RunError, match=r"can't be written: choose a folder you may write to"):
            atomic_write(place, "text")
    assert sorted(one.name for one in tmp_path.rglob("*")) == ["file", "folder"]


def _build(folder, text):
    (folder / "sub").mkdir()
    for name in ("model.bin", "config.json", "sub/part.bin"):
        (folder / name).write_text(text)


@pytest.mark.parametrize("name", ["", "speedup=2x"])
def test_publish_replaces_what_stood_there(tmp_path, name):
    with Run.open(tmp_path / "r", {}) as run:
        for text in ("old", "new"):
            where = run.publish(lambda folder, text=text: _build(folder, text), name)
        assert where == (tmp_path / "r" / name if name else tmp_path / "r")
        assert {p: (where / p).read_text() for p in ("model.bin", "config.json", "sub/part.bin")} == dict.fromkeys(
            ("model.bin", "config.json", "sub/part.bin"), "new"
        )


def test_a_builder_that_fails_leaves_the_old_result(tmp_path):
    with Run.open(tmp_path / "r", {}) as run:
        run.publish(lambda folder: _build(folder, "old"))
        with pytest.raises(ZeroDivisionError):
            run.publish(lambda folder: (folder / "config.json").write_text("half") / 0)
        assert (tmp_path / "r" / "config.json").read_text() == "old"
        assert sorted(os.listdir(tmp_path / "r" / "work")) == ["lock"]


def _die_at(root, name, step):
    """Publish in a child that kills itself at the step-th rename or removal."""
    import shutil

    count = 0

    def counted(real):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    run = Run.open(root, {})
    os.rename, os.replace, shutil.rmtree, os.fsync = map(counted, (os.rename, os.replace, shutil.rmtree, os.fsync))
    run.publish(lambda folder: _build(folder, "new"), name)


@pytest.mark.parametrize("name", ["", "b"])
@pytest.mark.parametrize("before", [None, "old"])
def test_a_kill_at_any_moment_of_publishing_leaves_the_old_or_the_new_result(tmp_path, name, before):
    spawn = multiprocessing.get_context("fork")
    seen = set()
    for step in range(1, 40):
        root = tmp_path / f"r{step}"
        with Run.open(root, {}) as run:
            if before:
                run.publish(lambda folder: _build(folder, before), name)
        child = spawn.Process(target=_die_at, args=(root, name, step))
        child.start()
        child.join()
        if before is None and (root / name / "config.json").exists():
            # What has a config is whole, even before anybody reopens the directory.
            assert (root / name / "model.bin").read_text() == "new"
        with Run.open(root, {}):
            pass
        found = {
            p: (root / name / p).read_text() if (root / name / p).exists() else None
            for p in ("model.bin", "config.json", "sub/part.bin")
        }
        assert len(set(found.values())) == 1, (step, found)
        seen.add(found["config.json"])
        assert sorted(os.listdir(root / "work")) == ["lock"]
        if child.exitcode == 0:
            break
    assert child.exitcode == 0
    assert seen == {before, "new"}


def test_what_a_killed_run_was_writing_is_swept(tmp_path):
    with Run.open(tmp_path / "r", {}) as run:
        run.path(".tmp-1-x.json").write_text("half")
        (tmp_path / "r" / ".tmp-1-run.yaml").write_text("half")
    with Run.open(tmp_path / "r", {}):
        assert sorted(os.listdir(tmp_path / "r")) == ["run.yaml", "work"]
        assert os.listdir(tmp_path / "r" / "work") == ["lock"]


def test_a_kill_before_the_record_still_leaves_a_run_directory(tmp_path):
    Run.open(tmp_path / "r", {}).close()
    (tmp_path / "r" / "run.yaml").unlink()
    with Run.open(tmp_path / "r", {"a": 1}):
        assert json.dumps(yaml.safe_load((tmp_path / "r" / "run.yaml").read_text())) == '{"a": 1}'


def test_settings_survive_time(tmp_path):
    """Values that YAML 1.1 reads differently from how they look still compare equal."""
    settings = {"a": "no", "b": 1e16, "c": float(3), "d": None, "e": "12:30", "f": 2e-4, "g": "1e-4"}
    for _ in range(2):
        Run.open(tmp_path / "r", settings).close()


@pytest.mark.parametrize("error", [InfeasibleError("no"), InputError("no")])
def test_a_new_run_that_is_refused_leaves_nothing(tmp_path, error):
    out = tmp_path / "out"

    def refuse():
        raise error

    with pytest.raises(type(error)), Run.open(out, {"budget": "params=1%"}) as run:
        run.json("scores", refuse)
    assert not out.exists()
    with Run.open(out, {"budget": "params=80%"}) as run:
        run.json("scores", lambda: [2])
    # A run that was there before, or that has a result, stays whatever happens.
    with pytest.raises(type(error)), Run.open(out, {"budget": "params=80%"}):
        raise error
    assert json.loads((out / "work" / "scores.json").read_text()) == [2]
    other = tmp_path / "other"
    with pytest.raises(type(error)), Run.open(other, {"budget": "params=80%"}) as run:
        run.json(str(run.publish(lambda folder: (folder / "model").write_text("done")).name), refuse)
    assert (other / "model").read_text() == "done"
    with pytest.raises(KeyboardInterrupt), Run.open(tmp_path / "third", {}):
        raise KeyboardInterrupt
    assert (tmp_path / "third" / "run.yaml").exists()


@pytest.mark.parametrize("shared", [False, True])
def test_a_late_refusal_leaves_what_took_work(tmp_path, shared):
    """A training that meets a damaged image after an hour goes on from its checkpoint once that is mended."""
    out = tmp_path / "out"

    def train(run):
        run._shared = shared
        checkpoint = run.folder("train") / "step-3.pt"
        checkpoint.write_text("weights")
        written = (out / "run.yaml").stat().st_mtime + 60
        os.utime(checkpoint, (written, written))
        raise InputError("no")

    with pytest.raises(InputError), Run.open(out, {"budget": "params=80%"}) as run:
        train(run)
    with Run.open(out, {"budget": "params=80%"}) as run:
        assert (run.folder("train") / "step-3.pt").read_text() == "weights"


def test_a_run_that_leaves_nothing_computes_once_and_has_no_folder():
    run, calls = Transient(), []
    for _ in range(2):
        assert run.json("a", lambda: calls.append(1) or {"x": (1,)}) == {"x": (1,)}
    assert len(calls) == 1
    with pytest.raises(RunError, match="no folder"):
        run.folder("b")


def test_work_without_its_record_is_neither_used_nor_lost(tmp_path):
    with Run.open(tmp_path / "run", {"seed": 1}) as run:
        run.json("dear", lambda: 1)
    (tmp_path / "run" / "run.yaml").unlink()
    with pytest.raises(RunError, match=r"lost its run\.yaml.*--overwrite$"):
        Run.open(tmp_path / "run", {"seed": 2})
    assert json.loads((tmp_path / "run" / "work" / "dear.json").read_text()) == 1
    assert not (tmp_path / "run" / "run.yaml").exists()
    with Run.open(tmp_path / "run", {"seed": 2}, overwrite=True) as run:
        assert run.json("dear", lambda: 2) == 2
