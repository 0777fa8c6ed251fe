"""Rounding in ONNX: QuantizeLinear and DequantizeLinear, weights as integers, and kernels that clip."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from formats.quantised import IMAGES, made, rand
from secateur.formats import onnx_files


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("bits", [4, 8])
def test_onnx_says_where_it_rounds_and_holds_integers(tmp_path, bits):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    one = made(bits)
    one.save(tmp_path, program=True)
    onnx_files.write_program(onnx_files.load_program(tmp_path), tmp_path / "program.onnx")
    said = one.export_onnx(tmp_path / "module.onnx")
    notes = [note for note in said if "takes images of 8 x 8 only" not in note]
    assert all("clip sums on this processor" in note for note in notes)
    options = runtime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    for name in ("program", "module"):
        graph = onnx.load(tmp_path / f"{name}.onnx").graph
        kinds = [node.op_type for node in graph.node]
        assert kinds.count("QuantizeLinear") == 3
        assert kinds.count("DequantizeLinear") == 6
        assert kinds.count("Clip") == (3 if bits == 4 else 0)
        assert "Round" not in kinds
        held = {one.name: one for one in graph.initializer}
        weights = [one for one in held.values() if one.data_type == onnx.TensorProto.INT8 and len(one.dims) > 1]
        assert sorted(tuple(one.dims) for one in weights) == [(3, 16), (8, 1, 2, 2), (16, 16)]
        assert not any(one.data_type == onnx.TensorProto.FLOAT and len(one.dims) > 1 for one in held.values())
        path = str(tmp_path / f"{name}.onnx")
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {session.get_inputs()[0].name: IMAGES.numpy()})
        apart = abs(found - one.forward(IMAGES).numpy()) / abs(found).max()
        assert (apart > 1e-5).mean() < 0.2, "what lies between two integers may fall to either side: few do"
        plain = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (clipped,) = plain.run(None, {plain.get_inputs()[0].name: IMAGES.numpy()})
        off = abs(clipped - one.forward(IMAGES).numpy()).mean()
        assert off > 0.001 if notes else off < 0.02, "told where the kernels of this processor are off, and only there"


@pytest.mark.wide
def test_a_network_that_rounds_for_itself_is_left_as_it_is(tmp_path):
    onnx = pytest.importorskip("onnx")

    class Rounds(nn.Module):
        def forward(self, x):
            return torch.round(x * 3) * 2

    onnx_files.write_module(Rounds(), (rand(2, 3),), {}, tmp_path / "r.onnx")
    onnx_files.write_program(torch.export.export(Rounds(), (rand(2, 3),)), tmp_path / "p.onnx")
    for name in ("r", "p"):
        assert "QuantizeLinear" not in [node.op_type for node in onnx.load(tmp_path / f"{name}.onnx").graph.node]
