"""Checkpoints: what a state notes, float16's scale, and tensors that stand in a file once."""

import torch
from torch import nn

from recover.students import llama
from secateur.recover.training.checkpoints import Best, State, tensors_of


def test_patience_counts_evaluations_without_a_new_best():
    state, stops = State(), []
    for step, value in enumerate([3.0, 2.0, 2.5, 2.0], start=1):
        state.step = step
        state.judge(value, 2)
        stops.append(state.stopped)
    assert (state.best, state.best_step) == (2.0, 2)
    assert stops == [False, False, False, True]


def test_the_scale_of_float16_falls_at_once_and_rises_slowly():
    state = State(scale=8.0)
    state.adapt_scale(False)
    assert (state.scale, state.fitting) == (4.0, 0)
    for _ in range(2000):
        state.adapt_scale(True)
    assert (state.scale, state.fitting) == (8.0, 0)


def test_trained_and_tracked_tensors_stand_once():
    model = llama()  # tied embeddings
    model.model.norm.weight.requires_grad_(False)
    names = tensors_of([model, nn.BatchNorm1d(2)])
    assert "0.model.norm.weight" not in names
    assert len([name for name in names if "embed" in name or "lm_head" in name]) == 1
    assert "1.running_mean" in names


def test_the_best_comes_back_from_memory_and_from_the_disk(tmp_path):
    for path in (None, tmp_path / "best.safetensors"):
        model = nn.Linear(2, 2)
        kept, best = model.weight.detach().clone(), Best([model], path)
        best.save()
        with torch.no_grad():
            model.weight.zero_()
        best.restore()
        assert torch.equal(model.weight, kept)
