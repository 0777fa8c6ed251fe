"""A model that stays on the disk: the same results as in memory, loaded plainly, with masks that hold when saved."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
)

from secateur.errors import InputError, UnsupportedError
from secateur.score import hessian
from secateur.subjects import blocks
from secateur.subjects.loading import open_streamed
from subjects.test_blocks import MODELS, batches, subject


@pytest.mark.parametrize("name", MODELS)
def test_streamed_results_equal_those_in_memory_and_load_plainly(name, tmp_path):
    whole = subject(name)
    whole.save(tmp_path / "model")
    streamed = open_streamed(tmp_path / "model")
    kept = {k: v.clone() for k, v in whole.model.state_dict().items()}
    results = []
    for one, folder in ((whole.copy(), "a"), (streamed.copy(), "b")):
        for block in blocks.visit(one, batches(), tmp_path / folder):
            for matrix_name, moments in block.read(hessian.Moments).items():
                block.matrices[matrix_name].weight.mul_(moments.value(matrix_name).diagonal())
        results.append(one)
    inside, outside = results
    outside.save(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for key, tensor in inside.model.state_dict().items():
        torch.testing.assert_close(loaded[key], tensor, rtol=0, atol=0)
    assert all(torch.equal(kept[key], tensor) for key, tensor in whole.model.state_dict().items())
    assert all(p.device.type == "meta" for p in streamed.model.parameters())
    assert {file.name for file in (tmp_path / "out").iterdir()} >= {"config.json", "model.safetensors.index.json"}
    data = batches(padded=True)
    for batch, output in zip(data, outside.outputs(data, tmp_path / "states"), strict=True):
        real = batch["attention_mask"].bool()
        expected = inside.forward(batch).prediction
        torch.testing.assert_close(output.prediction[real], expected[real], rtol=1e-4, atol=1e-4)


def test_streamed_cut_is_masks_that_hold_when_saved(tmp_path):
    whole = subject()
    whole.save(tmp_path / "model")
    streamed = open_streamed(tmp_path / "model")
    units = streamed.units()
    assert units.cost()["weights"] == blocks.count(whole)
    site = "layers.1.mlp_down_proj"
    keep = torch.rand(units[site].count) > 0.5
    from secateur.vocabulary import Selection

    small, cut = streamed.cut(Selection({site: keep}))
    assert cut.removed == {site: (int((~keep).sum()), len(keep))}
    assert cut.after["weights"] == units.cost({site: keep.numpy()})["weights"]
    small.save(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal((loaded.model.layers[1].mlp.down_proj.weight != 0).flatten(), keep)
    with pytest.raises(InputError, match="use the sites"):
        streamed.cut(Selection({"layers.9.neurons": keep}))
    with pytest.raises(UnsupportedError, match="single weights"):
        streamed.units("heads")
