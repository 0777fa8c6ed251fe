"""Any network cut by a score, as a run: from Python and through the command line, with and without data."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    HubertConfig,
    HubertModel,
    MixtralConfig,
    MixtralForCausalLM,
)

import secateur
import yolo
from secateur import cli
from secateur._utils import plugins
from secateur.data import examples
from secateur.data.examples import Examples
from secateur.errors import InputError
from secateur.methods import pruning
from secateur.reports import evidence
from secateur.runs import cutting, executor, measuring
from secateur.runs.backends.network import Network
from secateur.subjects.network.traced import Traced, open_traced, reload_traced
from secateur.vocabulary import Budget, Cut, Selection

CODE = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    )

def biases(subject):
    return {name: next(w for w, d, _ in parts if w.dim() == 1).detach() for name, parts in subject.slices().items()}

def unseeded():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.ones(1, 4)

def other():
    torch.seed()
    return unseeded()

class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 3, 1)

    def forward(self, image):
        return {"out": self.head(self.stem(image).relu())}

def segmenter():
    return Segmenter(), torch.ones(2, 1, 8, 8)

def counted(subject, batches):
    assert sum(len(batch["inputs"]) for batch in batches) == 8
    return biases(subject)
"""
SHAPE = ["--input", "2x1x8x8"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(CODE)
    draw = torch.Generator().manual_seed(0)
    inputs, labels = torch.rand(40, 1, 8, 8, generator=draw), torch.arange(40) % 4
    np.savez(tmp_path / "data.npz", inputs=inputs.numpy(), labels=labels.numpy())
    np.savez(tmp_path / "bare.npz", inputs=inputs.numpy())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(folder: str) -> dict[str, torch.Tensor]:
    return load_file(f"{folder}/model.safetensors")


@pytest.mark.usefixtures("programs")
def test_the_command_cuts_what_the_three_lines_cut(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["prune", "net.py:build", *SHAPE, "--budget", "channels=50%", "--out", "small"]
    assert cli.main(asked) == 0
    shown = capsys.readouterr().out
    assert "cut: 10 of 20 channels" in shown
    assert "quality was not measured: no data was given" in shown
    assert "verdict: met" in shown
    model = plugins.network("net.py:build")[0]
    small, cut = secateur.prune(model, torch.rand(2, 1, 8, 8), "channels=50%")
    found = torch.export.load("small/model.pt2").state_dict
    assert found.keys() == small.state_dict().keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in small.state_dict().items())
    again = reload_traced("small", model, torch.rand(2, 1, 8, 8))
    torch.testing.assert_close(again.model.eval()(torch.ones(1, 1, 8, 8)), small.eval()(torch.ones(1, 1, 8, 8)))
    (row,) = evidence.read(Path("small"))
    assert row.predicted["params"] == row.after["params"].value == cut.after["params"]
    assert row.predicted["flops"] == row.after["flops"].value
    assert Path("small/report.html").is_file()


def test_a_function_without_a_seed_resumes_and_one_that_can_not_is_named(place: Path, capsys) -> None:
    asked = ["prune", "net.py:unseeded", "--budget", "channels=50%", "--out"]
    assert cli.main([*asked, "small"]) == 0
    assert cli.main([*asked, "small"]) == 0
    state = torch.get_rng_state()
    plugins.network("net.py:unseeded")
    assert torch.equal(state, torch.get_rng_state()), "the caller's generators stay"
    asked[1] = "net.py:other"
    assert cli.main([*asked, "other"]) == 0
    capsys.readouterr()
    assert cli.main([*asked, "other"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "net.py:other builds another network at each call" in line


def test_a_result_is_a_model_for_every_command(place: Path, capsys) -> None:
    assert cli.main(["prune", "net.py:build", *SHAPE, "--budget", "channels=60%", "--out", "small"]) == 0
    assert cli.main(["prune", "small", "--budget", "channels=60%", "--data", "data.npz", "--out", "smaller"]) == 0
    assert cli.main(["measure", "smaller", "--json"]) == 0
    smaller = json.loads(capsys.readouterr().out.partition("result  smaller")[2].partition("{")[2].join(["{", ""]))
    model = secateur.load("smaller")
    assert smaller["model"]["params"]["value"] == sum(p.numel() for p in model.parameters())
    assert cli.main(["measure", "smaller", "--against", "small", "--json"]) == 0
    both = json.loads(capsys.readouterr().out)
    assert both["model"]["params"]["value"] < both["against"]["params"]["value"]
    assert cli.main(["measure", "smaller", "--against", "net.py:build", "--input", "2x1x8x8"]) == 0
    assert cli.main(["inspect", "smaller", "--json"]) == 0
    assert cli.main(["measure", "net.py:build", "--input", "2x1x8x8"]) == 0
    image = torch.ones(1, 1, 8, 8)
    assert torch.equal(model(image), secateur.open_subject("smaller").forward(image))


def test_masks_are_labels_of_pixels(place: Path) -> None:
    draw = np.random.default_rng(0)
    masks = draw.integers(0, 3, (12, 8, 8))
    masks[:, 0] = 255
    np.savez("masks.npz", inputs=draw.random((12, 1, 8, 8), np.float32), labels=masks)
    asked = ["prune", "net.py:segmenter", "--data", "masks.npz", "--score", "taylor", "--budget", "channels=50%"]
    assert cli.main([*asked, "--out", "small"]) == 0
    (row,) = evidence.read(Path("small"))
    assert {"mIoU", "pixel_accuracy", "class 0/IoU"} <= row.after.keys() & row.before.keys()
    assert list(row.cut.removed.values()) == [(4, 8)]
    masks[0, 1, 1] = 9
    np.savez("wrong.npz", inputs=draw.random((12, 1, 8, 8), np.float32), labels=masks)
    asked[3] = "wrong.npz"
    assert cli.main([*asked, "--out", "other"]) == 2


def test_a_model_that_guesses_is_said_before_and_first(place: Path, capsys) -> None:
    """The network of the test was never trained: its accuracy is that of guessing."""
    asked = ["prune", "net.py:build", "--data", "data.npz", "--budget", "channels=50%", "--out", "small"]
    assert cli.main(asked) == 0
    shown = capsys.readouterr()
    assert "warning: the original has accuracy" in shown.err
    assert "no better than guessing" in shown.err
    assert "verdict: met, but of no use: Accuracy" in " ".join(shown.out.split())
    page = Path("small/report.html").read_text()
    assert "Target met, quality lost" in page


@pytest.mark.wide
def test_its_run_yaml_repeats_it_and_flags_win(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how = ["--score", "random", "--seed", "3", "--protect", "0", "--multiple", "2"]
    assert cli.main(["prune", "net.py:build", *SHAPE, "--budget", "channels=70%", *how, "--out", "a"]) == 0
    assert cli.main(["prune", "--config", "a/run.yaml", "--out", "b"]) == 0
    assert cli.main(["prune", "--config", "a/run.yaml", "--seed", "4", "--out", "c"]) == 0
    first, again, other = (weights(folder) for folder in "abc")
    assert len(first["0.weight"]) == 8  # protected
    assert len(first["3.weight"]) % 2 == 0
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["3.weight"], other["3.weight"])
    assert cli.main(["run", "--config", "a/run.yaml", "--out", "d"]) == 2
    assert "say secateur prune --config a/run.yaml" in capsys.readouterr().err


@pytest.mark.wide
def test_pools_of_sites_are_named_on_the_command_line_and_in_a_file(place: Path, capsys) -> None:
    asked = ["prune", "net.py:build", "--input", "2x1x8x8", "--budget", "channels=50%", "--score", "l2"]
    assert cli.main(["inspect", *asked[1:4], "--json"]) == 0
    sites = [one["name"] for one in json.loads(capsys.readouterr().out)["sites"]]
    assert len(sites) > 1
    pools = dict.fromkeys(sites, "one")
    text = ",".join(f"{site}={pool}" for site, pool in pools.items())
    made = plugins.network("net.py:build")[0]
    for scope, name in ((text, "p"), ("global", "g"), ("local", "l")):
        assert cli.main([*asked, "--scope", scope, "--out", name]) == 0
    expected = secateur.prune(made, torch.zeros(2, 1, 8, 8), "channels=50%", "l2", scope=pools)[0].state_dict()
    shapes = {name: {key: tuple(one.shape) for key, one in weights(name).items()} for name in ("p", "g", "l")}
    assert shapes["p"] == {key: tuple(one.shape) for key, one in expected.items()}
    assert shapes["p"] == shapes["g"]
    assert shapes["p"] != shapes["l"], "or the pools change nothing here"
    Path("own.yaml").write_text("model: net.py:build\ninputs: 2x1x8x8\nbudget: channels=50%\nscore: l2\nscope:\n"
                                + "".join(f"  {site}: one\n" for site in sites))  # fmt: skip
    assert cli.main(["prune", "--config", "own.yaml", "--out", "y"]) == 0
    assert all(torch.equal(one, weights("y")[name]) for name, one in weights("p").items())
    assert cli.main(["prune", "--config", "p/run.yaml", "--out", "again"]) == 0
    assert cli.main(["inspect", *asked[1:], "--scope", text, "--json"]) == 0
    capsys.readouterr()
    assert cli.main(["inspect", *asked[1:], "--scope", "nose=one"]) == 2
    assert "scope names 'nose', which is no site" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "score"),
    [("data.npz", "taylor"), ("data.npz", "nonzero"), ("bare.npz", "activation"), ("data.npz", "net.py:biases"),
     ("data.npz", "net.py:counted")],
)  # fmt: skip
def test_scores_look_at_data(place: Path, data: str, score: str) -> None:
    asked = ["prune", "net.py:build", "--data", data, "--budget", "flops=50%", "--score", score, "--looks", "8"]
    assert cli.main([*asked, "--batch", "4", "--scope", "global", "--normalise", "l2", "--out", "small"]) == 0
    (row,) = evidence.read(Path("small"))
    assert ("accuracy" in row.after) == (data == "data.npz")
    assert "label_loyalty" in row.measured or data == "bare.npz"
    assert row.after["flops"].value <= 0.5 * row.before["flops"].value


def test_a_gradient_score_is_that_of_the_mean_cross_entropy(place: Path) -> None:
    """What goes by `taylor` is what `secateur.prune` takes by it, given the same examples and loss by hand."""
    data = Network().read("data.npz")
    train, _ = data.split(seed=0)
    asked = {"batch": 12, "looks": 36, "score": "taylor", "scope": "global"}
    (row,) = executor.run(cutting.prune, "net.py:build", data, "channels=50%", "small", **asked)
    model = plugins.network("net.py:build")[0]

    def loss(net, batch):
        return nn.functional.cross_entropy(net(batch["inputs"]), batch["labels"])

    batches = examples.batches(train, batch=12, seed=0).take(3)
    small, _ = secateur.prune(
        model, data.inputs[:1], "channels=50%", "taylor", batches=batches, loss=loss, scope="global"
    )
    found = weights("small")
    assert all(torch.equal(tensor, found[name]) for name, tensor in small.state_dict().items())
    assert row.verdict == "met"


def test_detectors_are_cut_by_their_own_loss(tmp_path: Path) -> None:
    detector, data = yolo.tiny(), yolo.squares(12)
    how = {"score": "fisher", "looks": 4, "batch": 4}
    with pytest.raises(InputError, match="sizes=24,8: give two rising sides"):
        executor.run(cutting.prune, detector, data, "channels=60%", tmp_path / "x", sizes="24,8", **how)
    with pytest.raises(InputError, match="sizes are of the boxes in data, and no data is given"):
        executor.run(cutting.prune, detector, None, "channels=60%", tmp_path / "x", inputs="1x3x64x64", sizes="8,24")
    assert not (tmp_path / "x").exists()
    rows = executor.run(cutting.prune, detector, data, "channels=60%", tmp_path / "x", sizes="12%,30%", **how)
    assert rows[0].settings["sizes"] == [0.12, 0.3]
    if importlib.util.find_spec("pycocotools"):
        assert {"mAP_medium", "mAP_large"} & rows[0].after.keys()
        assert "mAP_small" not in rows[0].after, "as they all would be by COCO's sizes"
        assert any("small below 7.68 x 7.68 pixels of area, medium below 19.2 x 19.2" in n for n in rows[0].cut.notes)
    assert "AP50" in rows[0].after
    assert rows[0].cut is not None
    assert rows[0].cut.after["channels"] <= 0.6 * rows[0].cut.before["channels"]


def test_a_config_describes_a_cut_beside_weights_that_are_normalised(tmp_path: Path) -> None:
    """torch gives each module with parametrisations a class of its own: no second one that is built is of that."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    convolutions = {"conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    model = HubertModel(HubertConfig(**sizes, **convolutions, **positions, vocab_size=8)).eval()
    whole, calls = open_traced(model, torch.randn(1, 200), prove=False), []

    def choose(subject: Traced, budget: Budget, *, prove: bool = True) -> tuple[Selection, Traced, Cut]:
        calls.append(prove)
        rate = pruning.make_scorer("magnitude")
        return pruning.prune_subject(subject, budget, rate, multiple=1, even=True, prove=prove)

    _, small, cut = cutting._cut_described(choose, whole, Budget.parse("channels=70%"))
    assert len(calls) <= 4
    assert any("save_pretrained and from_pretrained work as for the original" in note for note in cut.notes)
    small.model.save_pretrained(tmp_path / "small")
    again = HubertModel.from_pretrained(tmp_path / "small").eval()
    torch.testing.assert_close(again(*small.inputs.args)[0], small.forward()[0])


def test_a_dry_run_writes_nothing_and_the_network_stays(place: Path) -> None:
    model = plugins.network("net.py:build")[0]
    subject = open_traced(model, torch.rand(2, 1, 8, 8))
    sites = set(subject.coupling.sites)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    (row,) = executor.run(cutting.prune, subject, None, "params=40%", "none", protect=["0"], dry_run=True)
    assert row.verdict == "dry run"
    assert row.cut is not None
    assert row.cut.after["params"] <= 0.4 * row.cut.before["params"]
    assert not Path("none").exists()
    assert set(subject.coupling.sites) == sites
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


def test_what_needs_data_is_not_run_without(place: Path) -> None:
    with pytest.raises(InputError, match="otov3 needs data: give some"):
        executor.run("otov3", "net.py:build", None, "channels=50%", "x")
    with pytest.raises(InputError, match="inputs are of networks"):
        executor.run("minitron", "some/folder", ["a", "b", "c"], "params=50%", "x", inputs="1x3")
    unlabelled = Examples(torch.rand(8, 1, 8, 8), name="plain")
    with pytest.raises(InputError, match="'fisher' needs a loss, and plain has neither classes nor boxes"):
        executor.run(cutting.prune, "net.py:build", unlabelled, "channels=50%", "x", score="fisher")
    assert not Path("x").exists()


def test_quality_is_measured_on_held_out_data_of_ones_own(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["prune", "net.py:build", "--data", "data.npz", "--held-out", "test.npz", "--budget", "channels=50%"]
    inputs, labels = torch.rand(30, 1, 8, 8), np.arange(30) % 4
    np.savez("test.npz", inputs=inputs.numpy(), labels=labels)
    assert cli.main([*asked, "--out", "small"]) == 0
    (row,) = evidence.read("small")
    assert row.after["accuracy"].samples == 30
    assert cli.main(["prune", "--config", "small/run.yaml", "--out", "again"]) == 0
    assert evidence.read("again")[0].settings["held_out_sha256"] == row.settings["held_out_sha256"]
    capsys.readouterr()
    assert cli.main([*(word for word in asked if word not in ("--held-out", "test.npz")), "--out", "small"]) == 2
    assert "holds a run with held_out_sha256=" in capsys.readouterr().err


BAD = {
    "net.py:build --input 2x1x8x8 --held-out data.npz --budget channels=50%": "beside the data: give data, too",
    "net.py:build --data data.npz --held-out bare.npz --budget channels=50%": "bare.npz has no classes to measure",
    "llama --budget channels=50%": "'llama' is no folder here, and the Hub gave no model",
    "net.py:build --budget channels=50%": "comes without example inputs: give their shape, such as --input",
    "net.py:build --input 2x1x8x8 --budget channels=50% --score taylor": "is measured on data: give some with --data",
    "net.py:build --input 2x1x8x8 --budget channels=50% --score size": "'size' is not one of magnitude, l1,",
    "net.py:build --input 2x1x8x8 --budget segments=50%": "segments are erased while training, by `secateur run otov3",
    "net.py:build --input 2x1x8x8 --budget channels=100%": "would change nothing",
    "net.py:build --input 2x1x8x8 --budget channels=1%": "can't be met",
    "net.py:build --input 2x1x8x8 --budget channels=50% --scope all": "scope='all': give local, kind, global",
    "net.py:build --input 2x1x8x8 --budget channels=50% --scope a=b,c": "scope='a=b,c'",
    "net.py:build --input 2x1x8x8 --budget channels=50% --scope a=b": "scope names 'a', which is no site",
    "net.py:build --input 2x1x8x8 --budget channels=50% --protect no": "protect names 'no', which is no module",
    "net.py:build --input 2x1x8x8 --budget channels=50% --looks 0": "looks=0: give at least one",
    "net.py:build --input 2x1x8x8 --budget channels=50% --multiple 0": "multiple=0",
    "net.py:build --data none.npz --budget channels=50%": "there is no data at none.npz",
    "net.py:build --input 2x1x8x8": "prune needs --budget",
}


@pytest.mark.parametrize("asked", BAD)
def test_bad_input_is_one_line_and_exit_code_2(asked: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(place.iterdir())
    assert cli.main(["prune", *asked.split(), "--out", "x"]) == 2
    out, err = capsys.readouterr()
    assert BAD[asked] in err
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err
    assert not out
    assert sorted(path for path in place.iterdir() if path.name != "__pycache__") == before


def test_a_run_from_before_widths_were_rounded_goes_on_as_it_began(tmp_path):
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 8, 3)), torch.randn(1, 3, 8, 8)
    how = {"inputs": inputs, "threads": 1}
    (before,) = secateur.run(cutting.prune, model, None, "channels=55%", tmp_path / "a", multiple=1, **how)
    (again,) = secateur.run(cutting.prune, model, None, "channels=55%", tmp_path / "a", **how)
    assert (again.after, again.cut.removed) == (before.after, before.cut.removed)
    (row,) = secateur.run(cutting.prune, model, None, "channels=55%", tmp_path / "b", **how)
    gone, count = row.cut.removed["0.channels"]
    assert (count - gone) % 8 == 0
    assert row.settings["multiple"] is None


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"score": "size"}, "'size' is not one of magnitude"),
        ({"shares": "no=50%"}, "shares name 'no', which is no site"),
        ({"shares": "0=much"}, "shares='0=much': give SITE=SHARE"),
        ({"protect": ["no"]}, "protect names 'no', which is no module"),
        ({"scope": "all"}, "scope='all': give local"),
        ({"out": "data.npz"}, "data.npz is a file: choose a folder"),
    ],
)
def test_names_are_checked_before_the_original_is_measured(place: Path, monkeypatch, more, words) -> None:
    monkeypatch.setattr(measuring.Reference, "warn_of_guessing", lambda self: pytest.fail("it was measured first"))
    how = {"budget": "channels=50%", "out": "x", **more}
    with pytest.raises(InputError, match=re.escape(words)):
        executor.run(cutting.prune, "net.py:build", "data.npz", **how)
    assert not Path("x").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("budget", ["params=75%", "params=62%"])
def test_experts_are_cut_to_sizes_that_their_kernel_takes(budget: str, dtype: torch.dtype, tmp_path: Path) -> None:
    config = MixtralConfig(
        vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=4, num_local_experts=4, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    MixtralForCausalLM(config).to(dtype).save_pretrained(tmp_path / "base")
    line = ["prune", str(tmp_path / "base"), "--budget", budget, "--out", str(tmp_path / "small"), "--batch", "2"]
    assert cli.main(line) == 0
    small = MixtralForCausalLM.from_pretrained(tmp_path / "small")
    assert small.dtype == dtype
    assert small.config.intermediate_size % 8 == small.config.hidden_size % 8 == 0
    assert small.config.intermediate_size < 128
    assert small(torch.randint(3, 90, (2, 8))).logits.isfinite().all()


@pytest.mark.wide
def test_experts_with_sinks_and_biases_are_cut_from_a_folder(tmp_path: Path) -> None:
    config = GptOssConfig(
        vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, head_dim=8, num_local_experts=4, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    GptOssForCausalLM(config).save_pretrained(tmp_path / "base")
    (row,) = executor.run(cutting.prune, tmp_path / "base", None, "params=75%", tmp_path / "small", batch=2)
    assert row.verdict == "met"
    assert any(name.endswith("experts.channels") for name in row.cut.removed)
    assert not [note for note in row.cut.notes if "strides" in note]
    small = GptOssForCausalLM.from_pretrained(tmp_path / "small")
    assert small(torch.randint(3, 90, (2, 8))).logits.isfinite().all()
