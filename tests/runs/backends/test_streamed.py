"""A run that streams its model from the disk ends as one in memory does."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest
from safetensors.torch import load_file

import secateur
import tiny
from secateur import cli
from secateur.errors import InputError, UnsupportedError
from secateur.runs import executor
from secateur.runs.backends.streamed import OnDisk
from secateur.subjects import Streamed, open_streamed

QUICK = {"samples": 16, "length": 16, "batch": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.folder("llama", tmp_path_factory.mktemp("model") / "llama")


@pytest.mark.parametrize("recipe", ["magnitude", "wanda", "sparsegpt", "owl"])
def test_streamed_runs_have_the_same_weights_and_figures(recipe, model, tmp_path):
    how = {key: value for key, value in QUICK.items() if recipe != "magnitude" or key != "samples"}
    inside, outside = (
        secateur.run(
            recipe, str(model), tiny.sentences(300), "weights=50%", tmp_path / str(stream), stream=stream, **how
        )
        for stream in (False, True)
    )
    first, second = inside[0], outside[0]
    assert first.verdict == second.verdict == "met"
    for measure in ("params", "weights", "zeros", "bytes", "packed_bytes", "flops", "perplexity"):
        assert second.after[measure].value == pytest.approx(first.after[measure].value, rel=1e-5), measure
        assert second.before[measure].value == pytest.approx(first.before[measure].value, rel=1e-5), measure
    for measure in ("label_loyalty", "probability_loyalty"):
        assert second.measured[measure].value == pytest.approx(first.measured[measure].value, abs=1e-5), measure
        assert 0 < first.measured[measure].value < 1, measure
    assert "latency" not in second.after
    assert any("secateur measure" in note for note in second.cut.notes)
    found = {}
    for file in (tmp_path / "True").glob("*.safetensors"):
        found |= load_file(file)
    expected = load_file(tmp_path / "False" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all((found[key] == tensor).all() for key, tensor in expected.items())
    again = executor.run(recipe, str(model), tiny.sentences(300), "weights=50%", tmp_path / "True", stream=True, **how)
    assert [row.verdict for row in again] == ["met"]


@pytest.mark.parametrize(
    "how", [{"experts": 14}, {"uniform": True, "kappa": 8, "budget": "pattern=2:4"}], ids=["counts", "means"]
)
def test_stun_streams_a_mixture_block_by_block(how, tmp_path, monkeypatch):
    """Experts are left out as each block is read: layers of different counts, and means of clusters, as in memory."""
    held, most = set(), []
    resident = Streamed.resident

    @contextmanager
    def watched(self, *paths):
        held.update((id(self.model), path) for path in paths)
        most.append(len({path for _, path in held}))
        with resident(self, *paths):
            yield
        held.difference_update((id(self.model), path) for path in paths)

    monkeypatch.setattr(Streamed, "resident", watched)
    model, how = tiny.folder("mixtral", tmp_path / "model"), {"budget": "weights=50%", **QUICK, **how}
    first, second = (
        secateur.run("stun", str(model), tiny.sentences(300), out=tmp_path / str(stream), stream=stream, **how)[0]
        for stream in (False, True)
    )
    assert max(most) == 1
    assert first.verdict == second.verdict == "met"
    assert second.cut.removed == first.cut.removed
    assert second.cut.notes[: len(first.cut.notes) - 1] == first.cut.notes[:-1]
    assert second.predicted | {"memory": first.predicted["memory"]} == first.predicted
    assert second.predicted["memory"] == second.predicted["bytes"], "nothing is cached of what is never run whole"
    for measure in ("params", "weights", "zeros", "bytes", "packed_bytes", "flops", "perplexity"):
        assert second.after[measure].value == pytest.approx(first.after[measure].value, rel=1e-5), measure
    inside, outside = (secateur.load(tmp_path / str(stream)) for stream in (False, True))
    assert type(inside) is type(outside)
    settings = (json.loads((tmp_path / str(stream) / "config.json").read_text("utf-8")) for stream in (False, True))
    assert next(settings) == next(settings)
    mine = outside.state_dict()
    assert all((mine[key] == tensor).all() for key, tensor in inside.state_dict().items())
    assert {path.name for path in (tmp_path / "True").glob("*.py")} == {
        path.name for path in (tmp_path / "False").glob("*.py")
    }


def test_embeddings_and_head_are_held_once_where_they_are_the_same(model, tmp_path, monkeypatch):
    """Held twice they took 500 MiB more than a block's pruning does, of a model of 2 GiB."""
    held: list[int] = [0]
    resident = Streamed.resident

    @contextmanager
    def watched(self, *paths):
        held.append(held[-1] + (not paths))
        with resident(self, *paths):
            yield
        held.append(held[-1] - (not paths))

    monkeypatch.setattr(Streamed, "resident", watched)
    original = open_streamed(model)
    texts, where = OnDisk().read(tiny.sentences(300)), OnDisk().environment(original, 2, 16, 1)
    first = OnDisk().compare(original, original.copy(), texts, where)
    assert max(held) == 1
    other = open_streamed(tiny.folder("llama", tmp_path / "copy"))
    second = OnDisk().compare(original, other, texts, where)
    assert max(held) == 2
    assert first == second
    assert first[2]["label_loyalty"].value == 1.0


def test_the_command_line_streams(model, tmp_path, capsys):
    data = tmp_path / "texts.txt"
    data.write_text("\n".join(tiny.sentences(300)))
    out = str(tmp_path / "out")
    asked = ["--budget", "pattern=2:4", "--data", str(data), "--samples", "8", "--length", "16", "--batch", "2"]
    assert cli.main(["run", "wanda", str(model), *asked, "--stream", "--out", out]) == 0
    assert "pattern=2:4" in capsys.readouterr().out
    assert "stream: true" in (tmp_path / "out" / "run.yaml").read_text()


def test_what_cannot_be_streamed_is_refused(model, tmp_path):
    with pytest.raises(UnsupportedError, match="leave stream out"):
        secateur.run("minitron", str(model), tiny.sentences(50), "params=50%", tmp_path / "a", stream=True)
    with pytest.raises(UnsupportedError, match=r"^slimmoe needs the whole model in memory: leave stream out$"):
        secateur.run("slimmoe", str(model), tiny.sentences(50), "params=50%", tmp_path / "a", stream=True)
    with pytest.raises(UnsupportedError, match="without experts, stun cuts neurons, in memory"):
        secateur.run("stun", str(model), tiny.sentences(50), "weights=50%", tmp_path / "a", stream=True)
    mixture = tiny.folder("mixtral", tmp_path / "mixtral")
    with pytest.raises(InputError, match=r"^where tokens go is counted in memory: with stream, leave distance at"):
        secateur.run(
            "stun", str(mixture), tiny.sentences(50), "weights=50%", tmp_path / "a", stream=True, choose="soft"
        )
    with pytest.raises(InputError, match="give the folder"):
        secateur.run("wanda", tiny.model("llama"), tiny.sentences(50), "weights=50%", tmp_path / "b", stream=True)
    with pytest.raises(InputError, match=r"device .cuda. can.t hold the model|has room"):
        secateur.run("wanda", str(model), tiny.sentences(50), "weights=50%", tmp_path / "c", stream=True, device="cuda")
    encoder = tiny.folder("bert", tmp_path / "bert")
    with pytest.raises(UnsupportedError, match="no causal language model"):
        secateur.run("wanda", str(encoder), tiny.sentences(50), "weights=50%", tmp_path / "d", stream=True)
