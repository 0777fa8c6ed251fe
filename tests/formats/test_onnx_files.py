"""ONNX files of networks, and programs, that run without secateur."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.utils import ModelOutput

from secateur import cli
from secateur.errors import MissingExtraError, NumericalError, UnsupportedError
from secateur.formats import onnx_files
from secateur.subjects.network.traced import Traced, open_traced
from strangers import run_without_secateur
from subjects import nets

CODE = """
import json, numpy, onnxruntime
session = onnxruntime.InferenceSession("small.onnx", providers=["CPUExecutionProvider"])
given = dict(numpy.load("given.npz"))
found = session.run(None, {one.name: given["in_" + one.name] for one in session.get_inputs()})
for index, value in enumerate(found):
    numpy.testing.assert_allclose(value, given[f"out_{index}"], atol=1e-4, rtol=1e-4)
print(session.get_inputs()[0].name, session.get_inputs()[0].shape[0])
"""
PROGRAM = """
import sys, torch
from safetensors.torch import load_file
for name in ("residual", "grouped queries"):
    given = load_file(f"{name}/given.safetensors")
    model = torch.export.load(f"{name}/model.pt2").module()
    torch.testing.assert_close(model(given["inputs"]), given["outputs"], rtol=1e-4, atol=1e-5)
assert not any(name.startswith("secateur") for name in sys.modules)
"""


def halved(model: nn.Module, inputs: object) -> Traced:
    subject = open_traced(model, inputs)
    return subject.cut(nets.half(subject))[0]


class Spectrum(nn.Module):
    """Sounds [B, 512], by the logarithm of their short-time Fourier transform."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(64))
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        bins = torch.stft(x, 64, 32, window=self.window, return_complex=True).abs()
        return self.second(self.first(bins[:, None].clamp_min(1e-5).log()).relu()).mean((2, 3))


@pytest.mark.parametrize("name", ["residual", "grouped", "fused attention", "spectrum"])
def test_the_file_runs_alone_and_equals_pytorch(tmp_path: Path, name: str) -> None:
    pytest.importorskip("onnxruntime")
    small = halved(Spectrum().eval(), torch.randn(2, 512)) if name == "spectrum" else halved(*nets.make(name))
    notes = small.export_onnx(tmp_path / "small.onnx")
    (x,) = small.inputs.args
    others = {"fused attention": torch.randint(0, 20, (5, 7)), "spectrum": torch.randn(5, 512)}
    other = others.get(name, torch.randn(5, 3, 10, 10))
    whole = [note for note in notes if "of the example only" in note]
    inputs = x if whole else other
    argument = "ids" if name == "fused attention" else "x"
    np.savez(tmp_path / "given.npz", **{f"in_{argument}": inputs.numpy(), "out_0": small.forward(inputs).numpy()})
    printed = run_without_secateur(CODE, tmp_path)
    assert printed.split()[0] == argument
    assert bool(whole) == printed.split()[1].isdigit()
    if name == "residual":
        assert not notes, "the batch is free"


def test_inputs_and_outputs_of_any_form(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")

    class Several(nets.Net):
        """Keywords in, a dictionary out."""

        def forward(self, first: Tensor, *, second: Tensor) -> dict[str, Tensor]:
            y = self.a(first + second).relu()
            return {"logits": self.b(y), "mean": y.mean(1)}

    model = Several(None, **nets.linears(6, 8, 3))
    subject = open_traced(model, {"first": torch.randn(2, 6), "second": torch.randn(2, 6)})
    assert subject.export_onnx(tmp_path / "deep" / "few.onnx") == ()
    session = runtime.InferenceSession(str(tmp_path / "deep" / "few.onnx"))
    assert [one.name for one in session.get_inputs()] == ["first", "second"]
    assert [one.name for one in session.get_outputs()] == ["output", "output_1"]


def test_refusals_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    odd = nets.Net(lambda net, x: net.b(torch.special.bessel_j0(net.a(x))), **nets.linears(6, 8, 3))
    subject = open_traced(odd, torch.randn(2, 6))
    with pytest.raises(UnsupportedError, match="Net can't be exported to ONNX"):
        subject.export_onnx(tmp_path / "odd.onnx")
    model, inputs = nets.make("mlp")
    subject = open_traced(model, inputs)
    monkeypatch.setattr(onnx_files, "TOLERANCE", -1.0)
    with pytest.raises(NumericalError, match="differs from PyTorch"):
        subject.export_onnx(tmp_path / "mlp.onnx")
    monkeypatch.setattr(onnx_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"secateur\[onnx\]"):
        subject.export_onnx(tmp_path / "mlp.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("programs")
def test_a_program_runs_without_secateur(tmp_path: Path) -> None:
    for name in ("residual", "grouped queries"):
        small = halved(*nets.make(name))
        small.save(tmp_path / name, program=True)
        given = {"inputs": small.inputs.args[0], "outputs": small.forward().contiguous()}
        save_file(given, tmp_path / name / "given.safetensors")
    run_without_secateur(PROGRAM, tmp_path)


@pytest.mark.usefixtures("programs")
def test_files_name_no_folder_of_this_machine(tmp_path: Path) -> None:
    """Both formats note down where each operator was called from, unless that is taken out."""
    small = halved(*nets.make("residual"))
    small.save(tmp_path / "saved", program=True)
    small.export_onnx(tmp_path / "small.onnx")
    here = str(Path(torch.__file__).parents[1]).encode()
    with zipfile.ZipFile(tmp_path / "saved" / "model.pt2") as archive:
        parts = [archive.read(name) for name in archive.namelist()]
    assert not any(here in part for part in [*parts, (tmp_path / "small.onnx").read_bytes()])


@pytest.mark.usefixtures("programs")
@pytest.mark.wide
def test_a_saved_program_becomes_an_onnx_file_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    small = halved(*nets.make("joined"))
    small.save(tmp_path / "saved", program=True)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", "saved", "--to", "onnx"]) == 0
    assert "shapes of the example" not in capsys.readouterr().out  # any batch
    (tmp_path / "saved" / "onnx" / "model.onnx").rename(tmp_path / "small.onnx")
    (x,) = small.inputs.args
    np.savez(tmp_path / "given.npz", in_x=x.numpy(), out_0=small.forward().numpy())
    run_without_secateur(CODE, tmp_path)
    assert cli.main(["export", "saved", "--to", "decilm"]) == 2
    assert "can't hold: choose onnx" in capsys.readouterr().err
    (tmp_path / "saved" / "model.pt2").write_bytes(b"?")
    assert cli.main(["export", "saved", "--to", "onnx", "--out", "other"]) == 2
    assert "damaged" in capsys.readouterr().err
    (tmp_path / "saved" / "model.pt2").unlink()
    assert cli.main(["export", "saved", "--to", "onnx", "--out", "other"]) == 2
    assert "program=True" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


class Casting(nn.Module):
    """A network that computes a part of itself in bfloat16: with weights of it, or by autocast."""

    def __init__(self, auto: bool) -> None:
        super().__init__()
        self.first, self.second, self.auto = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5), auto
        self.second.to(torch.float32 if auto else torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.auto):
            return self.second(self.first(x).relu().mean((2, 3)).to(torch.bfloat16)).float()


@pytest.mark.wide
@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("auto", [False, True])
def test_a_network_that_casts_to_half_precision_is_a_file_in_float32(tmp_path: Path, auto: bool) -> None:
    runtime = pytest.importorskip("onnxruntime")
    x = torch.randn(2, 3, 8, 8)
    small = halved(Casting(auto), x)
    (note,) = small.export_onnx(tmp_path / "small.onnx")
    assert "computes in float32 what the network casts to half precision" in note
    small.save(tmp_path / "saved", program=True)
    onnx_files.write_program(onnx_files.load_program(tmp_path / "saved"), tmp_path / "saved.onnx")
    for file in ("small.onnx", "saved.onnx"):
        session = runtime.InferenceSession(str(tmp_path / file))
        assert [one.type for one in session.get_inputs()] == ["tensor(float)"]
        (found,) = session.run(None, {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), small.forward(), atol=2e-2, rtol=2e-2)


class Segmenter(nn.Module):
    """Convolutions and a resize to the size of the input: free of height and width."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        classes = self.head(self.stem(image).relu())
        return nn.functional.interpolate(classes, size=image.shape[-2:], mode="bilinear")


class Positions(nn.Module):
    """Patches with a position each: of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.positions = nn.Conv2d(3, 8, 8, 8), nn.Parameter(torch.zeros(1, 4, 8))

    def forward(self, image: Tensor) -> Tensor:
        return (self.patches(image).flatten(2).transpose(1, 2) + self.positions).mean(1)


@pytest.mark.parametrize(
    ("kind", "free", "given"),
    [(Segmenter, True, ["batch", 3, "height", "width"]), (Positions, False, ["batch", 3, 16, 16])],
)
def test_images_of_any_size_where_the_network_takes_them(
    tmp_path: Path, kind: type[nn.Module], free: bool, given: list[object]
) -> None:
    import onnxruntime

    model, image, other = kind().eval(), torch.randn(2, 3, 16, 16), torch.randn(5, 3, 24, 40)
    program = onnx_files.program(model, (image,), {})
    torch.export.save(program, tmp_path / "model.pt2")
    direct = onnx_files.write_module(model, (image,), {}, tmp_path / "direct.onnx")
    later = onnx_files.write_program(onnx_files.load_program(tmp_path), tmp_path / "later.onnx")
    assert direct == later
    assert any("images of 16 x 16 only" in note for note in direct) != free
    for name in ("direct", "later"):
        session = onnxruntime.InferenceSession(tmp_path / f"{name}.onnx")
        assert session.get_inputs()[0].shape == given
        if free:
            assert session.get_outputs()[0].shape == ["batch", 4, "height", "width"]
            (answer,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
            torch.testing.assert_close(torch.from_numpy(answer), model(other).detach(), rtol=1e-4, atol=1e-4)
    if free:
        torch.testing.assert_close(program.module()(other), model(other))


class Reading(nn.Module):
    """Tokens and their mask, with a weight for each place where there are `places`."""

    def __init__(self, places: int = 0) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)
        self.places = nn.Parameter(torch.randn(places, 1)) if places else None

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        states = self.words(tokens) * mask[..., None]
        return self.head(states if self.places is None else states * self.places)


@pytest.mark.parametrize("places", [0, 6])
def test_tokens_of_any_length_where_the_network_takes_them(tmp_path: Path, places: int) -> None:
    pytest.importorskip("onnxruntime")
    model, inputs = Reading(places).eval(), (torch.randint(0, 20, (2, 6)), torch.ones(2, 6).bool())
    torch.export.save(onnx_files.program(model, inputs, {}), tmp_path / "model.pt2")
    direct = onnx_files.write_module(model, inputs, {}, tmp_path / "direct.onnx")
    later = onnx_files.write_program(onnx_files.load_program(tmp_path), tmp_path / "later.onnx")
    fixed = "the ONNX file takes {} of length 6 only: the network is not free of their length"
    assert direct == later == ((fixed.format("tokens"), fixed.format("mask")) if places else ())
    for name in ("direct", "later"):
        session = onnx_files.open_session(tmp_path / f"{name}.onnx")
        assert [one.shape for one in session.get_inputs()] == [["batch", 6 if places else "sequence"]] * 2
        for length in (6,) if places else (1, 6, 17):
            tokens, mask = torch.randint(0, 20, (3, length)), torch.rand(3, length) > 0.5
            (answer,) = session.run(None, {"tokens": tokens.numpy(), "mask": mask.numpy()})
            torch.testing.assert_close(torch.from_numpy(answer), model(tokens, mask).detach(), rtol=1e-4, atol=1e-4)


class Placing(nn.Module):
    """Has no more places than its example has tokens; beside these are five columns of categories."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 8), nn.Embedding(16, 8)
        self.kinds, self.head = nn.Embedding(9, 4), nn.Linear(28, 3)

    def forward(self, kinds: Tensor, tokens: Tensor) -> Tensor:
        states = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        return self.head(torch.cat([self.kinds(kinds).flatten(1), states.mean(1)], 1))


def test_tokens_near_their_limit_and_beside_columns_are_of_any_length(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = Placing().eval()
    (note,) = onnx_files.write_module(
        model, (torch.randint(0, 9, (2, 5)), torch.randint(0, 20, (2, 16))), {}, tmp_path / "model.onnx"
    )
    assert note == "the ONNX file takes kinds of length 5 only: the network is not free of their length"
    session = onnx_files.open_session(tmp_path / "model.onnx")
    assert [one.shape for one in session.get_inputs()] == [["batch", 5], ["batch", "sequence"]]
    kinds, tokens = torch.randint(0, 9, (3, 5)), torch.randint(0, 20, (3, 7))
    (answer,) = session.run(None, {"kinds": kinds.numpy(), "tokens": tokens.numpy()})
    torch.testing.assert_close(torch.from_numpy(answer), model(kinds, tokens).detach(), rtol=1e-4, atol=1e-4)


@dataclass
class Answer(ModelOutput):
    """As models of transformers answer."""

    logits: Tensor | None = None
    encoder_last_hidden_state: Tensor | None = None


class Answering(nn.Module):
    """A network that gives states beside what it is about."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Answer:
        states = self.first(x).relu()
        return Answer(logits=self.second(states), encoder_last_hidden_state=states)


def test_a_program_that_gives_states_beside_its_output_is_written_with_the_output_alone(tmp_path: Path) -> None:
    model, x = Answering().eval(), torch.rand(2, 4)
    program = onnx_files.program(model, (x,), {})
    onnx_files.write_program(program, tmp_path / "small.onnx")
    (found,) = onnx_files.open_session(tmp_path / "small.onnx").run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x).logits)


class Listening(nn.Module):
    """As networks of sounds and of series are: convolutions, or a recurrent network, and a mean over all steps."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.out = kind, nn.Linear(6, 3)
        self.conv = nn.Conv1d(1 if kind == "sound" else 4, 6, 5, stride=2)
        self.steps = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "steps":
            return self.out(self.steps(x).relu().mean(1))
        return self.out(self.conv(x[:, None] if self.kind == "sound" else x).relu().mean(2))


@pytest.mark.parametrize(
    ("kind", "sizes", "longer"), [("sound", (60,), (93,)), ("channels", (4, 60), (4, 93)), ("steps", (60, 4), (93, 4))]
)
def test_series_of_any_length_where_the_network_takes_them(
    tmp_path: Path, kind: str, sizes: tuple[int, ...], longer: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    model = Listening(kind).eval()
    notes = onnx_files.write_module(model, (torch.randn(2, *sizes),), {}, tmp_path / "model.onnx")
    assert notes == ()
    session = onnx_files.open_session(tmp_path / "model.onnx")
    for size in (sizes, longer):
        x = torch.randn(3, *size)
        (given,) = session.run(None, {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(given), model(x), atol=1e-4, rtol=1e-4)


class Along(nn.Module):
    """The largest along a series in both of torch's ways, beside numbers that have no length."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.line = nn.Conv1d(4, 6, 5), nn.Linear(2, 6)
        self.pool = nn.Sequential(nn.MaxPool1d(3, ceil_mode=True), nn.MaxPool1d((2,), (1,), dilation=3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        kept = torch.max_pool1d(self.pool(self.conv(x)), 3, 2, 1)
        return kept.mean(2) + nn.functional.max_pool1d(kept, kept.shape[2])[:, :, 0] + self.line(y)


def test_the_largest_along_series_is_exported_for_any_length_beside_what_has_none(tmp_path: Path) -> None:
    model, y = Along().eval(), torch.randn(3, 2)
    inputs = (torch.randn(3, 4, 60), y)
    assert onnx_files.write_module(model, inputs, {}, tmp_path / "model.onnx") == ()
    session = onnx_files.open_session(tmp_path / "model.onnx")
    assert [one.shape for one in session.get_inputs()] == [["batch", 4, "length"], ["batch", 2]]
    for length in (60, 61, 93):
        x = torch.randn(3, 4, length)
        (given,) = session.run(None, {"x": x.numpy(), "y": y.numpy()})
        torch.testing.assert_close(torch.from_numpy(given), model(x, y), atol=1e-4, rtol=1e-4)
    program = onnx_files.program(model, inputs, {})
    torch.testing.assert_close(program.module()(x, y), model(x, y))

    sevenths = nn.Sequential(nn.Unflatten(1, (1, -1)), nn.AdaptiveAvgPool1d(7))  # which ONNX has for one length alone
    notes = onnx_files.write_module(sevenths, (torch.randn(2, 400),), {}, tmp_path / "sevenths.onnx")
    assert notes == ("the ONNX file takes input of 400 only: their length is fixed in it",)
    given = [y, x[0, :1], x]
    told = onnx_files._describe_fixed(given, given, ["y", "sound", "x"], [y, torch.zeros(1, 99), x])
    words = "the ONNX file takes {} only: their length is fixed in it"
    assert told == (words.format("sound of 93"), words.format("x of 4 x 93")), "features have no length"


def test_a_maximum_that_says_where_it_was_is_left_alone() -> None:
    x = torch.randn(2, 3, 9)
    with onnx_files._Pooling():
        values, places = nn.functional.max_pool1d(x, 2, return_indices=True)
    assert torch.equal(values, x.gather(2, places))


def test_what_is_made_longer_to_see_whether_a_network_takes_it() -> None:
    """All series, or those of one length alone; sounds by a quarter; images and what stands beside tokens never."""

    def lengthened(*tensors: Tensor, only: int | None = None) -> list[list[int]] | None:
        def take(*given: Tensor) -> None:
            if only is not None and any(
                one.shape != old.shape
                for place, (one, old) in enumerate(zip(given, tensors, strict=True))
                if place != only
            ):
                raise ValueError(only)

        found = onnx_files._of_other_length(take, list(tensors))  # type: ignore[arg-type]
        return found and [list(one.shape) for one in found]

    sound, series, image, tokens = (
        torch.randn(2, 400), torch.randn(2, 8, 12), torch.randn(2, 3, 8, 8), torch.zeros(2, 7).long(),
    )  # fmt: skip
    assert lengthened(sound) == [[2, 500]]
    assert lengthened(series, image) == [[2, 8, 17], [2, 3, 8, 8]]
    assert lengthened(series, sound, only=1) == [[2, 8, 12], [2, 500]]
    assert lengthened(tokens, series) == [[2, 12], [2, 8, 12]]
    assert lengthened(tokens, series, only=1) is None, "texts are asked for their own length alone"


class Beside(nn.Module):
    """Two series of lengths of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(4, 3, 5), nn.Conv1d(2, 3, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.first(x).mean(2) + self.second(y).mean(2)


def test_lengths_of_several_series_are_numbered(tmp_path: Path) -> None:
    onnx_files.write_module(
        Beside().eval(), (torch.randn(2, 4, 30), torch.randn(2, 2, 50)), {}, tmp_path / "model.onnx"
    )
    inputs = onnx_files.open_session(tmp_path / "model.onnx").get_inputs()
    assert [one.shape for one in inputs] == [["batch", 4, "length"], ["batch", 2, "length_1"]]


def test_features_have_the_width_that_a_network_takes(tmp_path: Path) -> None:
    assert onnx_files.write_module(nn.Linear(6, 3).eval(), (torch.randn(2, 6),), {}, tmp_path / "model.onnx") == ()
    (given,) = onnx_files.open_session(tmp_path / "model.onnx").get_inputs()
    assert given.shape == ["batch", 6]
