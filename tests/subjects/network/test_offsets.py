"""Constants that removed channels leave behind: the cut with offsets equals the network whose scales are zero."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.methods.pruning import prune
from secateur.subjects.network import offsets
from secateur.subjects.network.traced import Traced, open_traced, reload_traced
from secateur.vocabulary import Selection
from subjects import nets


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int = 1, bias: bool = False, **more: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, bias=bias, **more)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.bn(self.conv(x)), 0.1)


class Detector(nn.Module):
    """Add, concatenation, upsampling, max-pooling (SPP), depth-wise, readers with and without bias and batch norm."""

    def __init__(self, kernel: int = 1, padding: int = 0) -> None:
        super().__init__()
        more = {"kernel": kernel, "padding": padding}
        self.stem, self.one, self.two = Block(3, 12, 3), Block(12, 8, **more), Block(8, 12, bias=True, **more)
        self.left, self.deep = Block(12, 6), Block(12, 12, 1, groups=12)
        self.down, self.head, self.linear = Block(42, 9), nn.Conv2d(9, 4, 1, bias=False), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        x = x + self.two(self.one(x))
        a = self.left(x)
        a = torch.cat([a, *(F.max_pool2d(a, k, 1, k // 2) for k in (3, 5))], 1)
        parts = [F.interpolate(a, scale_factor=2.0), F.interpolate(x, scale_factor=2.0, mode="bilinear")]
        a = self.down(torch.cat([*parts, F.interpolate(self.deep(x), scale_factor=2.0)], 1))
        return self.head(a), self.linear(a.amax((2, 3)))


def lively(model: nn.Module) -> nn.Module:
    """Statistics, scales and offsets that differ from channel to channel."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias, std=2.0)
    return model.eval()


def most(subject: Traced) -> Selection:
    return Selection({site.name: np.arange(site.count) % 3 == 1 for site in subject.units().free()})


def zeroed(subject: Traced, selection: Selection) -> nn.Module:
    """The reference, made by hand: scales of batch norms that go are zero, all else is as it was."""
    model = copy.deepcopy(subject.model)
    with torch.no_grad():
        for name, slices in scales(subject).items():
            for parameter, index in slices if name in selection.keep else ():
                gone = (index >= 0) & ~torch.from_numpy(selection.keep[name])[index.clamp(min=0)]
                dict(model.named_parameters())[parameter][gone] = 0
    return model


def scales(subject: Traced) -> dict[str, list[tuple[str, Tensor]]]:
    """Site -> (name of a batch norm's scale, unit of each of its indices)."""
    wanted = {f"{path}.weight" for path, m in subject.model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    names = {id(p): name for name, p in subject.model.named_parameters()}
    return {
        site: [(names[id(p)], index) for p, _, index in slices if names[id(p)] in wanted]
        for site, slices in subject.slices().items()
    }


def worst(found: object, expected: object) -> float:
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def test_without_padding_the_cut_equals_the_network_with_zero_scales() -> None:
    torch.manual_seed(0)
    subject = open_traced(lively(Detector()), torch.randn(2, 3, 12, 12))
    selection = most(subject)
    expected = zeroed(subject, selection)
    plain, _ = subject.cut(selection)
    small, cut = subject.cut(selection, offsets=True)
    for inputs in (torch.randn(2, 3, 12, 12), 5 * torch.randn(1, 3, 20, 20)):
        with torch.no_grad():
            wanted = expected(inputs)
            assert worst(small.model(inputs), wanted) < 1e-5
            assert worst(plain.model(inputs), wanted) > 0.1
    assert cut.notes[0].startswith("offsets: folded into 3 biases (1 of them new) and 3 running means")
    assert small.model.head.bias is not None, "a reader without bias and batch norm gets a bias"
    assert small.model.one.conv.bias is None, "in front of a batch norm, no bias is made"
    assert subject.model.head.bias is None
    assert cut.after["params"] == sum(p.numel() for p in small.model.parameters())


def test_with_padding_it_is_nearer_than_without() -> None:
    torch.manual_seed(0)
    subject = open_traced(lively(Detector(3, 1)), torch.randn(2, 3, 16, 16))
    selection = most(subject)
    with torch.no_grad():
        wanted = zeroed(subject, selection)(subject.inputs.args[0])
    plain, small = (subject.cut(selection, offsets=one)[0].forward() for one in (False, True))
    assert worst(small, wanted) < 0.6 * worst(plain, wanted)


def test_offsets_of_nothing_and_of_a_network_without_batch_norm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 3))
    subject = open_traced(model, torch.randn(1, 6))
    plain, small = (subject.cut(most(subject), offsets=one) for one in (False, True))
    assert torch.equal(plain[0].forward(), small[0].forward()), "one example alone makes no constant"
    assert any("no constant" in note for note in small[1].notes)
    same, cut = subject.cut(Selection({}), offsets=True)
    assert cut.is_noop
    assert torch.equal(same.forward(), subject.forward())


def test_with_beta_zero_offsets_change_nothing() -> None:
    torch.manual_seed(0)
    model = lively(Detector())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.bias)
    subject = open_traced(model, torch.randn(2, 3, 12, 12))
    plain, small = (subject.cut(most(subject), offsets=one)[0].forward() for one in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(plain, small, strict=True))


def test_a_bias_that_was_made_is_saved_cut_again_and_reloaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = lively(Detector())
    subject = open_traced(model, torch.randn(2, 3, 12, 12))
    once, _ = subject.cut(most(subject), offsets=True)
    selection = Selection({s.name: np.arange(s.count) < max(1, s.count - 1) for s in once.units().free()})
    twice, _ = once.cut(selection, offsets=True)
    twice.save(tmp_path)
    again = reload_traced(tmp_path, copy.deepcopy(model), subject.inputs)
    for a, b in zip(again.forward(), twice.forward(), strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        assert worst(twice.forward(), zeroed(once, selection)(subject.inputs.args[0])) < 1e-5


def twice() -> nets.Net:
    """A convolution whose output is used beside its batch norm, and one that two places share."""

    def run(net, x):
        y = net.conv(net.stem(x))
        y = net.bn(y) + y
        return net.shared(y) + net.shared(y.relu())

    layers = {"stem": Block(3, 8), "conv": nn.Conv2d(8, 8, 1, bias=False), "bn": nn.BatchNorm2d(8)}
    return nets.Net(run, **layers, shared=nn.Conv2d(8, 4, 1))


def test_what_cannot_be_folded_exactly_is_not_guessed() -> None:
    torch.manual_seed(0)
    subject = open_traced(lively(twice()), torch.randn(2, 3, 8, 8))
    selection = Selection({"stem.conv.channels": np.arange(8) % 2 == 0})
    small, _ = subject.cut(selection, offsets=True)
    with torch.no_grad():
        wanted = zeroed(subject, selection)
        assert worst(small.model(subject.inputs.args[0]), wanted(subject.inputs.args[0])) < 1e-5
    assert small.model.conv.bias is not None, "its output goes to more than the batch norm: a bias is made"


def test_prune_takes_offsets_and_a_residual_network_gains() -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model = lively(models.resnet18(weights=None, num_classes=10))
    inputs = torch.randn(2, 3, 64, 64)
    _, cut = prune(model, inputs, "channels=80%", offsets=True)
    note = cut.notes[0]
    assert note.startswith("offsets: ")
    assert "running means" in note or "left out" in note


def test_constants_know_groups_and_transposed_convolutions() -> None:
    torch.manual_seed(0)
    for module in (nn.Conv2d(6, 4, 3, groups=2, bias=False), nn.ConvTranspose2d(6, 4, 3, bias=False), nn.Linear(6, 4)):
        values = torch.randn(6)
        wide = values if isinstance(module, nn.Linear) else values.view(1, 6, 1, 1).expand(1, 6, 9, 9)
        with torch.no_grad():
            out = module(wide) - (module.bias if module.bias is not None else 0)
            inside = out if isinstance(module, nn.Linear) else out[0, :, 4, 4]
            torch.testing.assert_close(offsets._through(module, values), inside, rtol=1e-4, atol=1e-5)


class Asking(nn.Module):
    """One head whose queries are made of what a batch norm gave."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first, self.bn = nn.Linear(3, 8, bias=False), nn.BatchNorm1d(8)
        self.q, self.k, self.v = nn.Linear(8, 6, bias), nn.Linear(3, 6), nn.Linear(3, 6)
        with torch.no_grad():
            for one in self.q.parameters():
                one[3:] = 0  # what goes of it is nothing, so that constants are all that is lost

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.first(x).transpose(1, 2)).transpose(1, 2)
        q, k, v = (one[:, None] for one in (self.q(y), self.k(x), self.v(x)))
        return F.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize("bias", [True, False])
def test_an_offset_of_queries_grows_with_them(bias: bool) -> None:
    torch.manual_seed(0)
    subject = open_traced(lively(Asking(bias)), torch.randn(2, 5, 3))
    keep = {
        name: np.arange(len(site.classes)) < len(site.classes) // 2 for name, site in subject.coupling.sites.items()
    }
    assert set(keep) == {"first.channels", "q.channels"}
    small, receipt = subject.cut(Selection(keep), offsets=True)
    torch.testing.assert_close(small.model.q.weight, subject.model.q.weight[:3, :4] * 0.5**0.5)
    told = next(note for note in receipt.notes if "changes from" in note)
    before, after = (float(word) for word in told.split("changes from ")[1].split(" of the largest")[0].split(" to "))
    assert after < 1e-6 < 0.01 < before
