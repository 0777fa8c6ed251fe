"""LoRA and DoRA: nothing changes at first, adapters alone are trained, and what they learned is in plain weights."""

from __future__ import annotations

import copy
import importlib.util
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import swin_transformer, vision_transformer

import second_device
import tiny
from recover.students import VOCABULARY, Batches, llama, logit_objective
from secateur._utils import storage
from secateur.errors import InputError, MissingExtraError, RunError, UnsupportedError
from secateur.measure import memory
from secateur.recover.quantization import quantise
from secateur.recover.sparsity import masks
from secateur.recover.training import loop, lora
from secateur.subjects import open_subject
from secateur.vocabulary import Selection, Training

IDS = torch.randint(5, 40, (2, 9), generator=torch.Generator().manual_seed(0))


needs_peft = pytest.mark.skipif(not importlib.util.find_spec("peft"), reason="needs peft")


def say(model):
    return model(input_ids=IDS)[0].detach()


def shake(model, size=0.05):
    """Adapters as if trained."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn_like(parameter)


def cut(kind):
    """A model of which half of the first layer's neurons went."""
    subject = open_subject(tiny.model(kind), tokenizer=tiny.tokenizer())
    mask = np.arange(subject.model.config.intermediate_size) % 2 == 0
    return subject.cut(Selection({"layers.0.neurons": mask}))[0].model


@needs_peft
@pytest.mark.parametrize(
    ("make", "dora"),
    [(make, dora) for make in (lambda: tiny.model("llama"), lambda: tiny.model("gpt2"), lambda: tiny.model("bert"))
     for dora in (False, True)] + [(lambda: tiny.model("mixtral"), False)],
    ids=["llama", "llama-dora", "gpt2", "gpt2-dora", "bert", "bert-dora", "mixtral"],
)  # fmt: skip
def test_merged_weights_say_what_the_adapters_said(make, dora):
    model = make().eval()
    kinds, names, before = {n: type(m) for n, m in model.named_modules()}, set(model.state_dict()), say(model)
    each = lora.count(model)
    assert lora.join(model, 4, dora=dora)
    if not dora:
        assert sum(one.numel() for one in model.parameters() if one.requires_grad) == 4 * each
    assert torch.allclose(say(model), before, atol=1e-6)
    shake(model)
    apart = say(model)
    assert (apart - before).abs().max() > 0.1
    assert lora.merge(model)
    torch.testing.assert_close(say(model), apart, rtol=0, atol=1e-5)
    assert {n: type(m) for n, m in model.named_modules()} == kinds
    assert set(model.state_dict()) == names


@needs_peft
@pytest.mark.parametrize("read", [False, True], ids=["called", "read"])
def test_alpha_says_how_much_adapters_count(read):
    """Half of the alpha is half of the difference; 2 rank by default."""
    moved = {}
    for alpha in (None, 8.0, 4.0):
        torch.manual_seed(0)
        model = vit().encoder.layers.encoder_layer_0.self_attention if read else nn.Sequential(nn.Linear(6, 5))
        names = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        lora.join(model, 4, alpha=alpha)
        shake(model)
        lora.merge(model)
        moved[alpha] = {name: parameter - names[name] for name, parameter in model.named_parameters()}
    for name, whole in moved[None].items():
        assert torch.allclose(whole, moved[8.0][name])
        torch.testing.assert_close(whole, 2 * moved[4.0][name], rtol=1e-4, atol=1e-6)
    assert any(whole.any() for whole in moved[None].values())


@needs_peft
def test_dropout_is_of_adapters_in_training_alone():
    model = tiny.model("llama").eval()
    lora.join(model, 4, dropout=0.5)
    shake(model)
    model.eval()
    still = say(model)
    assert torch.equal(say(model), still)
    model.train()
    assert not torch.equal(say(model), say(model))
    lora.merge(model)
    torch.testing.assert_close(say(model.eval()), still, rtol=0, atol=1e-5)
    with pytest.raises(UnsupportedError, match=r"adapters of experts such as .* have no dropout"):
        lora.join(tiny.model("mixtral"), 4, dropout=0.5)


def vit():
    model = vision_transformer.VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=3)
    nn.init.normal_(model.heads.head.weight)  # zeros by default
    return model


def swin():
    return swin_transformer.SwinTransformer([4, 4], 8, [1, 1], [2, 2], [2, 2], num_classes=3)


class Crossing(nn.Module):
    """Attention of 16 channels to what has 12 and 20."""

    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(16, 2, kdim=12, vdim=20, batch_first=True)

    def forward(self, x):
        states = x.flatten(2).mT[..., :3]
        return self.attend(*(states.repeat(1, 1, 8)[..., :width] for width in (16, 12, 20)))[0]


@needs_peft
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(("make", "names"), [
    (vit, ["encoder.layers.encoder_layer_0.self_attention.in_proj_weight",
           "encoder.layers.encoder_layer_0.self_attention.out_proj.weight", "encoder.layers.encoder_layer_0.mlp.0"]),
    (swin, ["features.1.0.attn.qkv.weight", "features.1.0.attn.proj.weight"]),
    (Crossing, ["attend.q_proj_weight", "attend.k_proj_weight", "attend.v_proj_weight", "attend.out_proj.weight"]),
], ids=["vit", "swin", "crossing"])  # fmt: skip
def test_weights_that_no_linear_reads_are_adapted_too(make, names, dora):
    torch.manual_seed(0)
    model, images = make().eval(), torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    kinds, leaves, before = {n: type(m) for n, m in model.named_modules()}, set(model.state_dict()), model(images)
    found = lora.join(model, 2, dora=dora)
    assert set(names) <= set(found)
    assert len(found) == len(set(found))
    with pytest.raises(InputError, match="adapters already"):
        lora.join(model, 2)
    torch.testing.assert_close(model(images), before, rtol=0, atol=1e-6)
    shake(model, 0.2)
    apart = model(images)
    assert (apart - before).abs().max() > 0.05
    apart.square().sum().backward()
    silent = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not silent
    assert set(lora.merge(model)) == set(found)
    torch.testing.assert_close(model(images), apart, rtol=0, atol=1e-5)
    assert {n: type(m) for n, m in model.named_modules()} == kinds
    assert set(model.state_dict()) == leaves


@needs_peft
def test_attention_of_networks_is_trained_by_its_adapters(tmp_path):
    torch.manual_seed(0)
    student, images = vit().bfloat16(), torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    loop.train(
        student, [{"inputs": images}], lambda batch, _: (student(batch["inputs"]).square().sum(), {}),
        Training(steps=3, lr=0.05, lora=2, every=1, checkpointing=True), count=lambda batch: {"examples": 4},
        checkpoint=tmp_path, progress=False,
    )  # fmt: skip
    after = student.state_dict()
    moved = {name for name in before if not torch.equal(after[name], before[name])}
    assert {name.partition("encoder_layer_0.")[2] for name in moved if "encoder_layer_0" in name} == {
        "self_attention.in_proj_weight", "self_attention.out_proj.weight", "mlp.0.weight", "mlp.3.weight",
    }  # fmt: skip
    assert all(tensor.dtype == torch.bfloat16 for tensor in after.values())
    assert all(parameter.requires_grad for parameter in student.parameters())
    kept = storage.read(tmp_path / "training.safetensors")[0]
    assert not any(name.endswith(".original") for name in kept)


@needs_peft
def test_the_head_embeddings_and_norms_get_no_adapter():
    model = tiny.model("gpt2")
    names = lora.join(model, 2)
    assert not [name for name in names if "head" in name or "wte" in name or "ln" in name]
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if "lora_" in name
    }


@needs_peft
def test_half_precision_is_merged_in_float32():
    model = tiny.model("llama").bfloat16()
    lora.join(model, 2)
    linear = model.model.layers[0].mlp.up_proj
    assert linear.lora_A["secateur"].weight.dtype == torch.float32
    linear.lora_B["secateur"].weight.data.normal_(std=0.01)
    a, b = (getattr(linear, side)["secateur"].weight.detach() for side in ("lora_A", "lora_B"))
    wanted = (linear.get_base_layer().weight.float() + 2 * b @ a).bfloat16()
    lora.merge(model)
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, wanted)


@needs_peft
def test_integers_stay_below_adapters_and_become_floating_point_when_merged():
    quantization = pytest.importorskip("torchao.quantization")
    for kind in (quantization.Int8WeightOnlyConfig(), quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4)):
        model = tiny.model("llama").eval()
        quantization.quantize_(model.model, kind)
        before = say(model)
        lora.join(model, 4)
        assert torch.equal(say(model), before)
        shake(model)
        apart = say(model)
        lora.merge(model)
        torch.testing.assert_close(say(model), apart, rtol=0, atol=1e-5)
        assert type(model.model.layers[0].mlp.up_proj.weight) is nn.Parameter


def train(student, teacher, steps=10, rank=2, folder=None, **how):
    return loop.train(
        student, Batches(), logit_objective(student, teacher), Training(steps=steps, lr=3e-3, lora=rank, every=5),
        checkpoint=folder, progress=False, **how,
    )  # fmt: skip


@needs_peft
@pytest.mark.parametrize("how", [{}, {"dora": 2, "lora": None}, {"precision": "bf16"}], ids=str)
def test_weights_are_integers_while_adapters_learn_beside_them(tmp_path, how):
    pytest.importorskip("torchao")
    teacher, student = llama(1), llama(2)
    rounded = copy.deepcopy(student)
    names = lora.round_weights(rounded, 4)
    assert names
    grid = {name: quantise.dense(rounded.get_submodule(name).weight) for name in names}
    before, seen = {name: tensor.clone() for name, tensor in student.state_dict().items()}, set()
    forward = logit_objective(student, teacher)

    def objective(batch, totals):
        seen.update(type(one).__name__ for one in student.parameters() if not one.requires_grad)
        return forward(batch, totals)

    plan = replace(Training(steps=3, lr=3e-3, lora=2, lora_bits=4), **how)
    done = loop.train(student, Batches(), objective, plan, checkpoint=tmp_path, progress=False)
    assert done.settings["lora_bits"] == 4
    assert "IntxUnpackedToInt8Tensor" in seen
    assert all(type(one) is nn.Parameter and one.requires_grad for one in student.parameters())
    assert {type(one) for one in student.modules()} == {type(one) for one in llama(2).modules()}
    for name, tensor in student.state_dict().items():
        layer = name.removesuffix(".weight")
        if layer not in grid:
            assert torch.equal(tensor, before[name])
        elif "dora" not in how:
            change = tensor - grid[layer]
            assert 0 < int(torch.linalg.matrix_rank(change, rtol=1e-4)) <= 2
            assert not torch.equal(grid[layer], before[name])


@needs_peft
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_pass_beside_integers_keeps_no_floats_of_them_and_learns_the_same(dtype):
    pytest.importorskip("torchao")
    tokens = torch.arange(2)[None]

    def learn(bits):
        """(bytes that a training step takes beside the model, gradients of the adapters)."""
        model = llama(width=128).to(dtype)
        linears = [module for module in model.model.layers.modules() if isinstance(module, nn.Linear)]
        if not bits:  # floats of the same values
            for module in linears:
                module.weight.data = quantise.dense(quantise.integers(module.weight, 4)).to(dtype)
        with lora.adapt(model, 2, bits=bits):
            for name, one in model.named_parameters():
                if "lora_B" in name:
                    nn.init.constant_(one, 0.01)

            def step():
                with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
                    model(tokens, labels=tokens).loss.backward()

            step()
            taken = memory.measure_allocation(step).value
            grads = {name: one.grad.clone() for name, one in model.named_parameters() if one.requires_grad}
        assert not any("forward" in vars(module) for module in model.modules())
        return taken, grads, sum(module.weight.numel() * dtype.itemsize for module in linears)

    (more, found, whole), (less, wanted, _) = learn(4), learn(0)
    assert more - less < 0.5 * whole
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad)


@needs_peft
def test_integers_that_can_not_be_are_refused_in_one_line():
    pytest.importorskip("torchao")
    odd = nn.Sequential(nn.Linear(24, 8))
    with pytest.raises(InputError, match=r"no linear of Sequential can be held in 4 bits \(24 inputs are no multiple"):
        lora.round_weights(odd, 4)
    assert lora.round_weights(odd, 8) == ["0"]
    assert lora.round_weights(odd, 4) == [], "integers stay as they are"
    mixture = tiny.model("mixtral")
    with pytest.raises(UnsupportedError, match="DoRA knows no experts"), lora.adapt(mixture, 2, dora=True, bits=8):
        pass
    assert all(type(one) is nn.Parameter and one.requires_grad for one in mixture.parameters()), "it is as it was"
    with pytest.raises(InputError, match="lora_bits=4 is of what adapters stand beside: give lora or dora, too"):
        train(llama(), llama(1), rank=None, lora_bits=4)
    asked = Training(lora=2, lora_bits=4)
    lora.check(asked, llama())
    with pytest.raises(InputError, match=r"no linear of GPT2LMHeadModel can be held in 4 bits .*leave lora_bits out$"):
        lora.check(asked, tiny.model("gpt2"))
    with pytest.raises(InputError, match="lora_bits=3: give 8 or 4"):
        Training(lora=2, lora_bits=3)


@needs_peft
def test_training_moves_what_low_rank_reaches_and_keeps_little(tmp_path):
    teacher, student = llama(1), llama(2)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    done = train(student, teacher, 30, folder=tmp_path)
    assert done.losses[-1][1] < 0.98 * done.losses[0][1]
    assert done.settings["lora"] == 2
    after = student.state_dict()
    assert before.keys() == after.keys()
    moved = {name: after[name] - before[name] for name in before if not torch.equal(after[name], before[name])}
    assert moved
    assert all(name.endswith("proj.weight") for name in moved)
    assert all(int(torch.linalg.matrix_rank(change, rtol=1e-4)) <= 2 for change in moved.values())
    assert all(parameter.requires_grad for parameter in student.parameters())
    kept = sum(tensor.numel() for tensor in storage.read(tmp_path / "training.safetensors")[0].values())
    adapters = sum(2 * sum(change.shape) for change in moved.values())
    assert kept < 1.1 * 3 * adapters  # adapters and their two moments
    assert kept < sum(tensor.numel() for tensor in before.values())


@needs_peft
def test_a_resumed_training_ends_with_the_bytes_of_an_uninterrupted_one(tmp_path, monkeypatch):
    teacher, whole = llama(1), llama(2)
    train(whole, teacher)
    real, fetched = loop._fetch, []

    def stopping(batches, index):
        fetched.append(index)
        if len(fetched) == 8:
            raise KeyboardInterrupt
        return real(batches, index)

    monkeypatch.setattr(loop, "_fetch", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(llama(2), teacher, folder=tmp_path)
    monkeypatch.setattr(loop, "_fetch", real)
    with pytest.raises(RunError, match="lora=2, this one has 3"):
        train(llama(2), teacher, rank=3, folder=tmp_path)
    resumed = llama(2)
    train(resumed, teacher, folder=tmp_path)
    assert all(torch.equal(one, resumed.state_dict()[name]) for name, one in whole.state_dict().items())


@needs_peft
def test_a_cut_student_is_trained_where_it_lies():
    with second_device.present():
        smaller = cut("llama").to(second_device.NAME)
        assert len({layer.mlp.up_proj.out_features for layer in smaller.model.layers}) == 2
        teacher = copy.deepcopy(smaller)
        with torch.no_grad():
            teacher.lm_head.weight.mul_(2)
        before = {name: tensor.cpu() for name, tensor in smaller.state_dict().items()}
        assert smaller.config.vocab_size >= VOCABULARY
        train(smaller, teacher, 2)
        after = {name: tensor.cpu() for name, tensor in smaller.state_dict().items()}
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


@needs_peft
def test_what_has_no_adapters_is_refused_in_one_line():
    with pytest.raises(UnsupportedError, match="no linears"):
        lora.join(nn.Sequential(nn.Conv2d(1, 2, 3)), 2)
    with pytest.raises(UnsupportedError, match="mostly of convolutions"):
        lora.join(nn.Sequential(nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 4)), 2)
    with pytest.raises(UnsupportedError, match="DoRA knows no experts"):
        lora.join(tiny.model("mixtral"), 2, dora=True)
    held = nn.Sequential(nn.Linear(4, 4))
    with masks.hold(held, {"0.weight": torch.eye(4).bool()}), pytest.raises(UnsupportedError, match="would fill them"):
        lora.join(held, 2)
    held = nn.Sequential(nn.MultiheadAttention(4, 2))
    closed = {"0.in_proj_weight": torch.eye(4).bool().repeat(3, 1)}
    with masks.hold(held, closed), pytest.raises(UnsupportedError, match="would fill them"):
        lora.join(held, 2)
    twice = nn.Sequential(nn.Linear(4, 4))
    lora.join(twice, 2)
    with pytest.raises(InputError, match="adapters already"):
        lora.join(twice, 2)
    student = llama()
    with pytest.raises(UnsupportedError, match="own optimiser"):
        train(student, llama(1), optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1))
    with pytest.raises(InputError, match="two kinds of adapters"):
        Training(lora=2, dora=2)


def test_without_peft_a_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'secateur\[lora\]'"):
        train(llama(), llama(1))
