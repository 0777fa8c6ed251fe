"""GPUSQ-ViT on vision transformers of twenty thousand weights and images of quarters."""

from __future__ import annotations

import functools
import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import secateur
import small_vision as vision
import toys
from recipes.vision import nets
from secateur.data.examples import Examples
from secateur.errors import BudgetError, InfeasibleError, InputError, MissingExtraError, UnsupportedError
from secateur.formats import integers
from secateur.formats.integers import Form
from secateur.measure import sparsity
from secateur.recipes.vision import gpusq_vit as module
from secateur.recipes.vision.gpusq_vit import gpusq_vit
from secateur.recover.sparsity import masks
from secateur.subjects import open_traced
from secateur.subjects.matrices import matrices
from secateur.subjects.network.traced import Traced, reload_traced
from strangers import run_without_secateur

pytest.importorskip("torchao")

DATA, HELD_OUT = nets.data(240), nets.data(200, seed=5)
QUICK = {"batch": 24, "epochs": 2, "quantise_epochs": 1, "lr": 1e-3, "quantise_lr": 2e-4, "least": 8}


@functools.cache
def taught() -> nn.Module:
    model = nets.vit(depth=2)
    vision.fit(model, DATA, epochs=8, batch=24, optimizer="adamw", lr=2e-3, warmup=0.1)
    return model


@functools.cache
def analysed() -> Traced:
    return open_traced(taught(), DATA.inputs[:2])


def results(root, budgets=("pattern=2:4",), model=None, data=DATA, **options):
    start = model if isinstance(model, Traced) else open_traced(model, data.inputs[:2]) if model else analysed().copy()
    return nets.run(gpusq_vit, root, start, data, budgets, **{**QUICK, **options})


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    root = tmp_path_factory.mktemp("eight") / "run"
    return root, results(root)[0]


def pruned(subject: Traced) -> dict[str, torch.Tensor]:
    return {name: one.weight for name, one in matrices(subject.model).items() if name in subject.masks}


def test_every_group_keeps_its_pattern_in_both_stages_and_the_mask_is_that_of_magnitudes(eight):
    root, found = eight
    sparse = reload_traced(root / "work" / "sparse-pattern=2:4", taught(), DATA.inputs[:2])
    dense = {name: one.weight for name, one in matrices(taught()).items()}
    assert set(sparse.masks) == set(found.subject.masks) == {name for name in dense if "layers" in name}
    for name, mask in found.subject.masks.items():
        groups = dense[name].abs().unflatten(1, (-1, 4))
        kept = mask.unflatten(1, (-1, 4))
        assert (kept.sum(2) == 2).all()
        assert (groups.masked_fill(kept, 0).amax(2) <= groups.masked_fill(~kept, 9).amin(2)).all(), "the largest stay"
        assert torch.equal(mask, sparse.masks[name]), "the mask is the same after quantisation"
    for subject in (sparse, found.subject):
        assert sparsity.broken(pruned(subject), 2, 4) == {}
        for name, weight in pruned(subject).items():
            assert not weight[~subject.masks[name]].any(), "closed weights are exactly zero"
    assert any(not torch.equal(sparse.model.state_dict()[name], dense[name]) for name in sparse.masks), "it was trained"


def test_weights_are_integers_in_range_times_a_scale_for_each_output(eight):
    layers = integers.quantised_layers(eight[1].subject.model)
    assert len(layers) == len(matrices(taught())), "every matrix is quantised, also those that stay dense"
    for layer in layers.values():
        weight = layer.weight.detach().flatten(1)
        whole = weight / layer.weight_scale[:, None]
        assert torch.allclose(whole, whole.round(), atol=1e-3)
        assert whole.min() >= -128.5
        assert whole.max() <= 127.5
        assert layer.weight_scale.shape == (len(weight),)
        assert layer.input_scale.shape == ()
        assert layer.input_scale > 0
        assert integers.quantise(torch.zeros(3), layer.input_scale, 8).eq(0).all(), "zero is zero"


def test_skipped_layers_are_listed_with_their_reason(eight):
    notes = eight[1].cut.notes
    assert "stays dense: net.vit.embeddings.patch_embeddings.projection.weight: is 32 x 4, less than 8" in notes
    assert "stays dense: net.classifier.weight: is 4 x 32, less than 8" in notes
    assert not any(note.startswith("stays in floats") for note in notes)


def test_layers_that_are_no_matrix_are_listed_too(tmp_path):
    convolutions = [nn.Conv2d(1, 16, 4, 4), nn.Conv2d(16, 16, 1, groups=16), nn.ConvTranspose2d(16, 16, 1)]
    model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(64, 4)).eval()
    (found,) = results(tmp_path, model=model, dry_run=True)
    assert set(found.subject.masks) == {"0.weight"}
    assert [note.split(": ")[:2] for note in found.cut.notes] == [
        ["stays dense", f"{place}.weight"] for place in (4, 1, 2)
    ]
    assert "1.weight: is of a Conv2d that is not one matrix" in found.cut.notes[1]


def test_accuracy_is_kept_and_the_receipt_counts(eight):
    found = eight[1]
    assert vision.accuracy(taught(), HELD_OUT) - vision.accuracy(found.subject.model, HELD_OUT) <= 0.01
    counted = sum(int(torch.count_nonzero(one.weight)) for one in matrices(found.subject.model).values())
    assert found.cut.after["weights"] == counted <= found.predicted["weights"] < found.cut.before["weights"]


@pytest.mark.slow
@pytest.mark.usefixtures("programs")
def test_a_saved_result_is_small_and_loads_with_equal_outputs_where_secateur_is_not(eight, tmp_path):
    found, images = eight[1].subject, HELD_OUT.inputs[:16]
    found.save(tmp_path, program=True)
    again = reload_traced(tmp_path, nets.vit(depth=2, seed=9), images[:2])
    assert torch.equal(again.forward(images), found.forward(images))
    assert {name: mask.tolist() for name, mask in again.masks.items()} == {
        name: mask.tolist() for name, mask in found.masks.items()
    }
    state = load_file(tmp_path / "model.safetensors")
    name = next(iter(found.masks))
    count = found.masks[name].numel()
    assert state[f"{name}.values"].numel() == count // 2
    assert state[f"{name}.places"].numel() == count // 8
    torch.save({"images": images, "wanted": found.forward(images)}, tmp_path / "pair.pt")
    code = (
        "import sys, torch; sys.modules['torchao'] = None\n"
        "pair = torch.load('pair.pt'); model = torch.export.load('model.pt2').module()\n"
        "print(float((model(pair['images']) - pair['wanted']).abs().max()))"
    )
    assert float(run_without_secateur(code, tmp_path).split()[-1]) == 0.0


@pytest.mark.parametrize("title", ["retraining", "quantisation"])
def test_a_killed_run_ends_with_the_same_network(eight, tmp_path, monkeypatch, title):
    """Killed in the last steps of either stage, where the scales of the second are held."""
    real = module.loop.train

    def killed(student, feed, objective, *args, **how):
        calls = []

        def stopping(batch, totals):
            calls.append(None)
            if how["title"] == title and len(calls) == how["steps"]:
                raise ConnectionAbortedError
            return objective(batch, totals)

        return real(student, feed, stopping, *args, every=3, **how)

    monkeypatch.setattr(module.loop, "train", killed)
    with pytest.raises(ConnectionAbortedError):
        results(tmp_path)
    monkeypatch.setattr(module.loop, "train", real)
    (again,) = results(tmp_path)
    wanted = eight[1].subject.model.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in again.subject.model.state_dict().items())


def test_four_bits_keep_pairs_and_both_patterns(tmp_path):
    (found,) = results(tmp_path, bits=4)
    for name, mask in found.subject.masks.items():
        assert (mask.unflatten(1, (-1, 4)).sum(2) == 2).all()
        pairs = mask.unflatten(1, (-1, 4, 2))
        assert (pairs.all(3) == pairs.any(3)).all(), "pairs stay or go together"
        layer = integers.quantised_layers(found.subject.model)[name.removesuffix(".weight")]
        whole = (layer.weight.detach() / layer.weight_scale[:, None]).round()
        assert whole.min() >= -8
        assert whole.max() <= 7
        assert 4 * mask.numel() / integers.stored_bytes(layer, found.subject.forms[name]) == 12.8
        assert 4 * mask.numel() / sparsity.packed_bytes(layer.weight.detach(), 4) >= 12.8
    found.subject.save(tmp_path / "saved")
    again = reload_traced(tmp_path / "saved", nets.vit(depth=2, seed=9), DATA.inputs[:2])
    assert torch.equal(again.forward(DATA.inputs[:8]), found.subject.forward(DATA.inputs[:8]))


def test_eight_bits_are_6_4_times_smaller(eight):
    found = eight[1].subject
    for path, layer in integers.quantised_layers(found.model).items():
        if f"{path}.weight" in found.forms:
            weight = layer.weight.detach()
            assert 4 * weight.numel() / integers.stored_bytes(layer, found.forms[f"{path}.weight"]) == 6.4
            assert 4 * weight.numel() / sparsity.packed_bytes(weight, 8) >= 6.4


def test_without_sparsity_at_32_bits_nothing_changes():
    subject = open_traced(taught(), DATA.inputs[:2])
    every = module.magnitude_masks(module.eligible(matrices(subject.model), Form(4, 4), 8)[0], Form(4, 4))
    copy = subject.copy()
    masks.apply(copy.model, every)
    assert torch.equal(copy.forward(DATA.inputs[:8]), subject.forward(DATA.inputs[:8]))


def test_thirty_two_bits_stop_at_the_sparse_network(tmp_path):
    (found,) = results(tmp_path, bits=32)
    assert not integers.quantised_layers(found.subject.model)
    assert type(found.subject.model) is nets.ViT
    nets.vit(depth=2).load_state_dict(found.subject.model.state_dict())
    found.subject.save(tmp_path / "saved")
    again = reload_traced(tmp_path / "saved", nets.vit(depth=2, seed=9), DATA.inputs[:2])
    assert set(again.masks) == set(found.subject.masks)
    assert torch.equal(again.forward(DATA.inputs[:8]), found.subject.forward(DATA.inputs[:8]))


def test_factors_of_labels_alone_are_plain_retraining_with_the_mask(tmp_path):
    (found,) = results(tmp_path, bits=32, factors=(1.0, 0.0, 0.0))
    plain = open_traced(taught(), DATA.inputs[:2]).copy().model
    with masks.hold(plain, found.subject.masks):
        how = dict(optimizer="adamw", lr=1e-3, weight_decay=0.01, warmup=0.05, clip=1.0, precision="fp32")
        vision.fit(plain, DATA, epochs=2, batch=24, dropout=False, **how)
    for name, tensor in found.subject.model.state_dict().items():
        if "k_proj.bias" not in name:  # whose gradient is 0, so that AdamW makes noise of rounding
            assert torch.allclose(tensor, plain.state_dict()[name], atol=1e-5), name


@pytest.mark.parametrize("labels", ["none", "teacher"])
def test_images_alone_are_enough(tmp_path, labels):
    (found,) = results(tmp_path, data=Examples(DATA.inputs, name="images"), labels=labels)
    assert vision.accuracy(taught(), HELD_OUT) - vision.accuracy(found.subject.model, HELD_OUT) <= 0.02


def test_ranges_are_of_as_many_batches_as_asked_for(tmp_path):
    scales = []
    for count in (1, 8):
        (found,) = results(tmp_path / str(count), calibrated=count, epochs=0, quantise_epochs=0)
        scales.append([layer.input_scale for layer in integers.quantised_layers(found.subject.model).values()])
    assert all(few <= many for few, many in zip(*scales, strict=True)), "the largest of more inputs is no smaller"
    assert any(few < many for few, many in zip(*scales, strict=True))


@pytest.mark.parametrize("uniform", [False, True])
def test_the_dense_network_teaches_first_and_then_the_sparse_one_by_what_it_has_lost(tmp_path, monkeypatch, uniform):
    lessons, real = [], module.mixed.objective

    def watch(student, teacher, **how):
        lessons.append((float((teacher.net.vit.layers[0].mlp.fc1.weight == 0).float().mean()), how))
        return real(student, teacher, **how)

    monkeypatch.setattr(module.mixed, "objective", watch)
    results(
        tmp_path, epochs=0.2, quantise_epochs=0.1, critical=["net.vit.layers.0", "net.vit.layers.1"], uniform=uniform
    )
    (dense, first), (sparse, second) = lessons
    assert (dense, sparse) == (0, 0.5)
    assert "weights" not in first
    residual = json.loads((tmp_path / "work" / "residuals-pattern=2:4.json").read_text())
    mean = sum(residual.values()) / 2
    assert second["weights"] == ([1, 1] if uniform else pytest.approx([one / mean for one in residual.values()]))


def test_a_critical_layer_that_is_named_twice_counts_once(tmp_path):
    results(tmp_path, critical=["net.vit.layers.0"] * 2, epochs=0.2, quantise_epochs=0)
    residual = json.loads((tmp_path / "work" / "residuals-pattern=2:4.json").read_text())
    assert list(residual) == ["net.vit.layers.0"]
    assert all(value > 0 for value in residual.values())


def test_a_dry_run_masks_and_trains_nothing(tmp_path):
    (found,) = results(tmp_path, dry_run=True)
    assert found.recovery is None
    assert sparsity.broken(pruned(found.subject), 2, 4) == {}
    assert not integers.quantised_layers(found.subject.model)


def test_without_torchao_nothing_is_trained_in_vain(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(MissingExtraError, match=r"secateur\[quantise\]"):
        results(tmp_path / "run")
    assert not list((tmp_path / "run").rglob("training.safetensors"))
    assert results(tmp_path / "sparse", bits=32)


@pytest.mark.parametrize(
    ("budget", "options", "error", "words"),
    [
        ("params=50%", {}, BudgetError, "prunes to a pattern"),
        ("pattern=2:4,params=50%", {}, BudgetError, "prunes to a pattern"),
        ("pattern=4:4", {}, BudgetError, "takes nothing away"),
        ("pattern=3:5", {"bits": 4}, BudgetError, "even"),
        ("pattern=7:13", {}, InfeasibleError, "no matrix of the network takes it"),
        ("pattern=2:4", {"least": 1000}, InfeasibleError, "less than 1000"),
        ("pattern=2:4", {"factors": (1.0, 2.0)}, InputError, "three numbers"),
        ("pattern=2:4", {"factors": (0.0, 0.0, 0.0)}, InputError, "three numbers"),
        ("pattern=2:4", {"bits": 3}, InputError, "bits=3"),
        ("pattern=2:4", {"settled": 1.5}, InputError, "option settled=1.5"),
        ("pattern=2:4", {"labels": "none", "factors": (1.0, 0.0, 0.0)}, InputError, "leaves no loss"),
        ("pattern=2:4", {"disagreeing": -1.0}, InputError, "option disagreeing=-1"),
        ("pattern=2:4", {"calibrated": 0}, InputError, "option calibrated=0"),
        ("pattern=2:4", {"temperature": 0.0}, InputError, "option temperature=0.0 .*above 0"),
        ("pattern=2:4", {"quantise_epochs": -1.0}, InputError, "option quantise_epochs=-1"),
        ("pattern=2:4", {"quantise_lr": -1.0}, InputError, "option quantise_lr=-1"),
        ("pattern=2:4", {"critical": ["nowhere"]}, InputError, "no module"),
        ("pattern=2:4", {"data": Examples(DATA.inputs, name="images")}, InputError, "no classes"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(tmp_path, budget, options, error, words):
    with pytest.raises(error, match=words) as caught:
        results(tmp_path / "run", [budget], **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("second", "error", "words"),
    [
        ("params=50%", BudgetError, "prunes to a pattern"),
        ("pattern=7:13", InfeasibleError, "no matrix of the network takes it"),
    ],
)
def test_a_second_budget_is_refused_before_the_first_is_trained(tmp_path, monkeypatch, second, error, words):
    monkeypatch.setattr(module, "train", lambda *_, **__: pytest.fail("the first budget was trained"))
    with pytest.raises(error, match=words):
        results(tmp_path / "run", ["pattern=2:4", second], bits=32)


class Dense(nn.Module):
    """Gives a map and boxes, as heads of detectors do, and no logits."""

    def __init__(self):
        super().__init__()
        self.body = nets.vit(depth=2).net.vit
        self.head = nn.Linear(32, 6)

    def forward(self, x):
        found = self.head(self.body(x).last_hidden_state[:, 1:])
        return found[..., :4].sigmoid(), found.transpose(1, 2).unflatten(2, (4, 4))


def test_networks_without_logits_learn_from_their_answers_and_features(tmp_path):
    torch.manual_seed(1)
    model, images = Dense().eval(), Examples(DATA.inputs, name="images")
    (found,) = results(tmp_path, model=model, data=images, labels="none")
    with torch.no_grad():
        first, before = (one(HELD_OUT.inputs)[0] for one in (found.subject.model, model))
    assert (first - before).abs().mean() < 0.05
    with pytest.raises(UnsupportedError, match="labels=teacher needs logits"):
        results(tmp_path / "other", model=model, data=images, labels="teacher")


def test_critical_layers_are_the_last_blocks_or_the_last_stages():
    from transformers import SwinConfig, SwinForImageClassification

    assert module.blocks(nets.vit(depth=6)) == ["net.vit.layers.4", "net.vit.layers.5"]
    swin = SwinForImageClassification(
        SwinConfig(image_size=16, patch_size=2, num_channels=1, embed_dim=8, depths=[1, 2, 1], num_heads=[2, 2, 2],
                   window_size=2, num_labels=4)
    )  # fmt: skip
    assert module.blocks(swin) == ["swin.encoder.layers.1", "swin.encoder.layers.2"]
    assert module.blocks(nets.vgg()) == ["7", "10"], "where no block comes again: the last third of the layers"


class Folded(nn.Module):
    """Encoder layers of PyTorch's own, whose attention holds its projections in one matrix."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(1, 16, 2, 2)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True) for _ in range(3))
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


def test_attention_in_one_matrix_is_pruned_and_quantised_too(tmp_path):
    torch.manual_seed(0)
    model = Folded().eval()
    (found,) = results(tmp_path, model=model, labels="none")
    assert "layers.0.self_attn.in_proj.weight" in found.subject.masks
    layers = integers.quantised_layers(found.subject.model)
    assert {"layers.0.self_attn.in_proj", "layers.0.self_attn.out_proj"} <= set(layers)
    assert sparsity.broken(pruned(found.subject), 2, 4) == {}
    found.subject.save(tmp_path / "saved")
    again = reload_traced(tmp_path / "saved", Folded(), DATA.inputs[:2])
    assert torch.equal(again.forward(DATA.inputs[:4]), found.subject.forward(DATA.inputs[:4]))


@pytest.mark.wide
@pytest.mark.slow
@pytest.mark.usefixtures("programs")
def test_a_run_judges_saves_and_exports_the_result(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    (row,) = secateur.run("gpusq_vit", taught(), DATA, "pattern=2:4", tmp_path / "out", **QUICK)
    assert row.verdict == "met"
    assert row.measured["off_pattern"].value == 0.0
    assert row.after["bytes"].value < 0.35 * row.before["bytes"].value
    assert any("left dense" in note for note in row.cut.notes)
    folder, _ = secateur.export(tmp_path / "out", "onnx")
    graph = onnx.load(folder / "model.onnx").graph
    kinds = [node.op_type for node in graph.node]
    count = len(matrices(taught()))
    assert kinds.count("DequantizeLinear") > count
    assert kinds.count("QuantizeLinear") >= 1
    assert sum(one.data_type == onnx.TensorProto.INT8 and len(one.dims) > 1 for one in graph.initializer) == count


def toy(_):
    """What `conformance.check_recipe` takes: see tests/conformance."""
    return toys.classifier(
        "pattern=2:4", vit=True, epochs=1, quantise_epochs=1, batch=24, lr=1e-3, quantise_lr=2e-4, least=8
    )


def test_what_is_asked_for_reaches_both_trainings_and_the_ranges(tmp_path, monkeypatch):
    analysed()  # which has been trained before that
    lessons, trained, fed, ranged, still = [], [], [], [], []
    lesson, train, batches = module.mixed.objective, module.loop.train, module.examples.batches
    calibrate, freeze = module.qat.calibrate, module.qat.frozen

    def watch(student, feed, objective, training, **how):
        trained.append((training.number("epochs"), training.number("lr"), how["seed"], how["dropout"]))
        return train(student, feed, objective, training, **how)

    monkeypatch.setattr(module.loop, "train", watch)
    monkeypatch.setattr(module.mixed, "objective", lambda *nets, **how: lessons.append(how) or lesson(*nets, **how))
    monkeypatch.setattr(module.examples, "batches", lambda data, **how: fed.append(how) or batches(data, **how))
    monkeypatch.setattr(module.qat, "calibrate", lambda *a, **how: ranged.append(how["by"]) or calibrate(*a, **how))
    monkeypatch.setattr(module.qat, "frozen", lambda net, **how: still.append(how["weights"]) or freeze(net, **how))
    asked = {"temperature": 3.0, "disagreeing": 0.25, "labels": "teacher", "factors": (2.0, 3.0, 4.0)}
    how = {"epochs": 0.2, "quantise_epochs": 0.4, "lr": 3e-3, "quantise_lr": 5e-4, "seed": 7, "settled": 0.25}
    results(tmp_path, calibration="percentile", **asked, **how)
    assert trained == [(0.2, 3e-3, 7, False), (0.4, 5e-4, 7, False)]
    assert [{name: one[name] for name in asked} for one in lessons] == [asked, asked]
    assert fed == [{"batch": 24, "seed": 7}]
    assert ranged == ["percentile"]
    assert still == [False, False, False, True, True], "scales are held in the last of four steps, and behind them"


def test_pairs_stay_by_the_sum_of_their_squares():
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 0.0, 2.0, 2.05]]))
    (mask,) = module.magnitude_masks(matrices(nn.Sequential(layer)), Form(2, 4, 2)).values()
    assert mask.tolist() == [[True, True, False, False]]
