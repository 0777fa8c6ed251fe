"""Ignore-top-k, from two folders to a third."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import secateur
import tiny
import updates_toy
from secateur import cli
from secateur._utils.rundir import Run
from secateur.errors import BudgetError, InfeasibleError, InputError
from secateur.recipes import find
from secateur.runs import executor
from secateur.subjects.delta.delta import Delta, open_delta
from secateur.subjects.delta.tensors import InMemory
from secateur.vocabulary import Budget
from strangers import run_without_secateur


def run(tmp_path, budget="update=92%", subject=None, **options):
    """The result on the toy in memory."""
    with Run.open(tmp_path / f"{budget}-{len(options)}", {}) as opened:
        update = subject or updates_toy.delta()
        (result,) = find("ignore_top_k")(update, None, [Budget.parse(budget)], opened, **options)
    return result


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return updates_toy.folders(tmp_path_factory.mktemp("pair"))


def test_the_largest_entries_are_as_before_and_all_others_bit_by_bit_as_trained(tmp_path):
    result = run(tmp_path)
    before, after = updates_toy.states()
    for name, count in updates_toy.delta().sites.items():
        change, found = (after[name] - before[name]).abs(), result.subject.tensor(name)
        mask = result.subject.mask(name).view(found.shape)
        assert int((~mask).sum()) == 8 * count // 100
        assert torch.equal(found[mask], after[name][mask])
        assert torch.equal(found[~mask], before[name][~mask])
        assert not (~mask).any() or change[~mask].min() >= change[mask].max()
    assert result.cut.after["update"] == result.predicted["update"]
    assert "% of it" in result.notes[0]


def test_the_command_writes_an_ordinary_checkpoint_and_says_what_it_keeps(pair, tmp_path, capsys):
    before, after = pair
    out, data = tmp_path / "cleaned", tmp_path / "texts.txt"
    data.write_text("\n".join(tiny.chains(60)))
    line = ["run", "ignore_top_k", str(before), "--with", str(after), "--budget", "update=92%", "--out", str(out)]
    assert cli.main([*line, "--dry-run"]) == 0
    assert "verdict: dry run" in capsys.readouterr().out
    assert not out.exists()
    assert cli.main(line) == 0
    said = capsys.readouterr().out
    assert "verdict: met" in said
    assert "note: quality" not in said
    code = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"AutoTokenizer.from_pretrained({str(out)!r})\n"
        f"state = AutoModelForCausalLM.from_pretrained({str(out)!r}).state_dict()\n"
        "print(sum(float(tensor.double().sum()) for tensor in state.values()))"
    )
    told = run_without_secateur(code, tmp_path)
    small, _ = open_delta(before, after).cut(_selection(before, after))
    wanted = sum(float(small.tensor(name).double().sum()) for name in small.before.outlines())
    assert float(told) == pytest.approx(wanted)
    written = {file.name: file.stat().st_mtime_ns for file in out.glob("*.safetensors")}
    assert cli.main(line) == 0  # the same command again does nothing twice
    assert written == {file.name: file.stat().st_mtime_ns for file in out.glob("*.safetensors")}
    again = executor.configured(out / "run.yaml", {"out": tmp_path / "again", "data": None})
    (row,) = secateur.run(**again)
    assert row.measured.get("perplexity") is None
    assert {file.name for file in (tmp_path / "again").glob("*.safetensors")} == written.keys()
    for name in written:
        ours, theirs = (load_file(place / name) for place in (out, tmp_path / "again"))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    (row,) = secateur.run(
        "ignore_top_k", before, data, "update=50%", tmp_path / "judged", after=after, scope="global", batch=2, length=16
    )
    assert row.verdict == "met"
    assert row.before["perplexity"].value != row.after["perplexity"].value
    assert row.after["update"].value == row.predicted["update"]


def sparse(every, *, single=""):
    """An update of which every so-manieth entry differs from before, and of the tensor `single` the first alone."""
    before, _ = updates_toy.states()
    draw, after = torch.Generator().manual_seed(0), {}
    for name, tensor in before.items():
        places = torch.arange(tensor.numel()).view(tensor.shape)
        moved = places % (len(places.flatten()) if name == single else every) == 0
        after[name] = torch.where(moved, tensor + torch.randn(tensor.shape, generator=draw), tensor)
    return Delta(InMemory(before), InMemory(after))


def test_of_an_update_of_few_entries_it_is_told_how_much_of_them_stays(tmp_path):
    """As number types of two bytes leave it, which round most steps of a training away."""
    result = run(tmp_path, subject=sparse(5, single="model.norm.weight"))
    assert result.notes[1].startswith("training changed 20% of the entries, and shares are of all of them: of those")
    assert re.search(r"that it changed (60|59\.\d|60\.\d)% stay, in 1 of \d+ tensors none$", result.notes[1])
    assert len(run(tmp_path, "update=90%").notes) == 1
    for every, how, words in (
        (20, {}, r"^update=92% leaves nothing of what training changed, .*% of the entries; .* such as update=99\.9%$"),
        (20, {"action": "keep"}, r"^update=92% leaves all of what training changed, .*: give a smaller share$"),
        (2, {"order": "smallest"}, r"^update=92% leaves all of what training changed, 50% of"),
    ):
        with pytest.raises(InfeasibleError, match=words):
            run(tmp_path, subject=sparse(every), **how)


def _selection(before, after):
    from secateur.methods import updates

    return updates.select(open_delta(before, after), updates.Rule(0.08))


def test_what_can_not_be_done_is_refused_in_a_line(pair, tmp_path, capsys):
    before, after = map(str, pair)
    file, *_ = shutil.copytree(after, tmp_path / "nan").glob("*.safetensors")
    save_file({name: tensor * torch.nan for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    for words, said in (
        ([before, "--with", str(tmp_path / "nan"), "--budget", "update=92%"], "holds NaN or infinity"),
        ([before, "--budget", "update=92%"], "an update is of two: give the trained one by --with"),
        ([before, "--with", before, "--budget", "update=92%"], "are one folder"),
        ([before, "--with", after, "--budget", "params=50%"], "can't meet params=50%: it cuts an update"),
        ([before, "--with", after, "--budget", "update=150%"], "asks to keep more than there is"),
        ([before, "--with", after, "--budget", "update=lots"], "was not understood"),
        ([before, "--with", after, "--budget", "update=100%"], "lets all of the update stay"),
        ([before, "--with", after, "--budget", "update=0.001%"], "can't be met by whole entries"),
        ([before, "--with", str(tmp_path / "no"), "--budget", "update=92%"], "no"),
    ):
        assert cli.main(["run", "ignore_top_k", *words, "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert said in error[-1]
        assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"after \(--with\) is of recipes on what a training changed, not of language"):
        secateur.run("magnitude", before, tiny.chains(50), "weights=50%", tmp_path / "x", after=after)
    for budget in ("pattern=2:4", "update=50%,params=50%"):
        with pytest.raises(BudgetError):
            run(tmp_path, budget)
    with pytest.raises(InfeasibleError, match=r"give update=.*% or more, or --scope global"):
        run(tmp_path, "update=0.01%")
    assert run(tmp_path, "update=0.01%", scope="global", action="keep").predicted["update"] > 0


def test_an_adapter_and_its_base_are_an_update_too(tmp_path, monkeypatch):
    from subjects.delta.test_merged import adapt

    before, _ = updates_toy.folders(tmp_path)
    adapt(before, tmp_path / "adapter")
    written, save = [], Delta.save
    monkeypatch.setattr(Delta, "save", lambda delta, folder: written.append(delta.is_whole) or save(delta, folder))
    (row,) = secateur.run(
        "ignore_top_k", before, tiny.chains(60), "update=85%", tmp_path / "out", after=tmp_path / "adapter",
        order="smallest", batch=2, length=16,
    )  # fmt: skip
    assert row.verdict == "met"
    assert sorted(written) == [False, False, True]  # the merged model is written aside once, what is left twice
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    with pytest.raises(InputError, match="holds an adapter, which is no model of its own"):
        secateur.run("ignore_top_k", tmp_path / "adapter", None, "update=85%", tmp_path / "x", after=before)


def toy(_):
    """What `conformance.check_recipe` takes: a fine-tuning of which the longest entries go; see tests/conformance."""

    def entries(delta):
        return np.concatenate([delta.tensor(name).numpy().ravel() for name in delta.before.outlines()])

    return {
        "subject": updates_toy.delta(),
        "data": None,
        "budget": "update=75%",
        "output": entries,
        "quality": lambda delta: -delta.norm(),
    }
