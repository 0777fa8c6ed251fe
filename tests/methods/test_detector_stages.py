"""The stages that recipes for detectors share; the recipes' own tests run all of them and resume."""

from __future__ import annotations

import torch

from recipes.vision.detecting import DATA, subject
from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.methods.detector_stages import DetectorStages
from secateur.recover.distillation import maps
from secateur.recover.training import detecting
from secateur.vocabulary import Training


def compare(ours, theirs, batch):
    return sum(maps.spatial_attention(one, other) for one, other in zip(ours, theirs, strict=True))


def test_a_stage_of_no_epochs_is_none_and_the_weight_of_distilling_is_found_once(tmp_path):
    student, teacher = subject(), subject()
    student.model.stem.bn.weight.data *= 0.5
    with Run.open(tmp_path, {}) as run:
        stages = DetectorStages(run, examples.batches(DATA, batch=8), Training(lr=1e-3, accumulate=2))
        assert stages.sparsify(student, detecting.press(student.model.loss), 0) is None
        assert stages.finetune(student, 0, "a") is None
        how = dict(taps=student.model.taps, compare=compare, budget="a")
        assert stages.distil(student, teacher, epochs=0, **how) is None
        assert not list(tmp_path.rglob("alpha-*"))
        taught = stages.distil(student, teacher, epochs=3, share=0.5, **how)
    assert taught.steps == 3, "two batches to an epoch, two batches to a step"
    assert (tmp_path / "work" / "alpha-a.json").exists()
    assert (tmp_path / "work" / "distil-a").is_dir()


def test_distilling_is_as_large_a_share_of_the_loss_as_asked_for_unless_its_weight_is_given(tmp_path, monkeypatch):
    weights, follow = [], detecting.follow
    monkeypatch.setattr(
        detecting, "follow", lambda *given, **how: weights.append(how["weight"]) or follow(*given, **how)
    )
    student, teacher = subject(), subject()
    student.model.stem.bn.weight.data *= 0.5
    with Run.open(tmp_path, {}) as run:
        stages = DetectorStages(run, examples.batches(DATA, batch=8, seed=0), Training(lr=1e-3))
        for number, how in enumerate(({"share": 1.0}, {"share": 0.25}, {"weight": 3.0, "share": 0.25})):
            stages.distil(student.copy(), teacher, student.model.taps, compare, 0.5, f"{number}", **how)
    first, whole, again, quarter, given = weights
    assert first == again == 1.0, "while the weight is looked for"
    assert quarter == 0.25 * whole
    assert given == 3.0


def test_a_teacher_that_comes_in_training_mode_keeps_its_statistics(tmp_path):
    student, teacher = subject(), subject()
    teacher.model.train()
    before = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    assert "stem.bn.running_mean" in before
    student.model.stem.bn.weight.data *= 0.5
    with Run.open(tmp_path, {}) as run:
        stages = DetectorStages(run, examples.batches(DATA, batch=8), Training(lr=1e-3))
        stages.distil(student, teacher, student.model.taps, compare, 1, "a")
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.model.state_dict().items())
