"""The public verbs on networks of all kinds: units, cut, silence, protect, copy, forward."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tiny
from secateur import conformance
from secateur.errors import InfeasibleError, InputError, UnsupportedError
from secateur.methods.pruning import prune
from secateur.select import ranking
from secateur.subjects.network import traced
from secateur.subjects.network.shrinking import Plan
from secateur.subjects.network.traced import CutError, Traced, open_traced, reload_traced
from secateur.vocabulary import Selection
from subjects import nets
from subjects.nets import half

ZOO = ["resnet18", "densenet121", "mobilenet_v3_small", "shufflenet_v2_x0_5", "swin_t"]
TIMM = ["deit_tiny_patch16_224", "mobilevit_xxs", "res2net50_26w_4s", "skresnet18"]


@pytest.mark.parametrize("name", nets.NETS)
def test_half_of_everything_goes_and_the_cut_equals_the_silenced(name: str) -> None:
    model, inputs = nets.make(name)
    before = copy.deepcopy(model.state_dict())
    subject = open_traced(model, inputs)
    small, cut = subject.cut(half(subject))
    assert small.error <= 1e-5
    assert cut.after["params"] == sum(p.numel() for p in small.model.parameters()) < cut.before["params"]
    expected = subject.silence(half(subject)).forward()
    torch.testing.assert_close(small.forward(), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, subject.forward(), atol=1e-3), "silencing changed nothing"
    assert small.flops() < subject.flops()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training


@pytest.mark.parametrize("name", ["mlp", "residual", "joined", "fused attention"])
def test_the_laws_of_a_subject_hold(name: str) -> None:
    model, inputs = nets.make(name)

    def reload(small: Traced, folder: Path) -> Traced:
        small.save(folder)
        return reload_traced(folder, copy.deepcopy(model), inputs)

    laws = conformance.check_subject(
        lambda: open_traced(model, inputs), output=lambda subject: subject.forward(), reload=reload, seed=3
    )
    assert set(laws) >= {"identity", "predicted = counted", "superset", "cut = silenced", "round trip"}


def test_heads_are_units_and_grouped_queries_go_with_their_keys() -> None:
    model, inputs = nets.make("grouped queries")
    sites = open_traced(model, inputs).coupling.sites
    (heads,) = [site for name, site in sites.items() if name.endswith("heads")]
    touched = {(axis.tensor, axis.dim): count for axis, count in heads.axes}
    assert len(heads.classes) == 2
    assert touched["q.weight", 0] == 12  # two query heads of six
    assert touched["kv_proj.weight", 0] == 12  # one of keys, one of values
    model, inputs = nets.make("fused attention")
    (heads,) = [site for name, site in open_traced(model, inputs).coupling.sites.items() if name.endswith("heads")]
    assert len(heads.classes) == 4
    small, _ = prune(model, inputs)
    assert small.heads == 2
    assert small.head.weight is small.table.weight, "tied weights stay tied"


def test_what_a_mask_writes_keeps_no_channel() -> None:
    subject = open_traced(*nets.make("written"))
    assert {name: site.count for name, site in subject.units().sites.items()} == {"a.channels": 8, "b.channels": 10}
    small, _ = subject.cut(half(subject))
    assert small.model.get_parameter("mark").shape == (4,)


def test_a_copy_shares_the_analysis_and_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = nets.make("residual")
    subject = open_traced(model, inputs, protect=["inner.bias"])
    before = copy.deepcopy(model.state_dict())
    monkeypatch.setattr(traced, "record", lambda *args, **kwargs: pytest.fail("the copy was recorded again"))
    other = subject.copy()
    selection = half(other)
    assert other.reasons == subject.reasons
    assert other.units().cost() == subject.units().cost()
    assert selection.keep.keys() == half(subject).keep.keys()
    shared = {p.data_ptr() for p in subject.model.parameters()} & {p.data_ptr() for p in other.model.parameters()}
    assert not shared
    other.model.train()
    optimizer = torch.optim.SGD(other.model.parameters(), lr=0.1)
    other.model(inputs).square().sum().backward()
    optimizer.step()
    small, cut = other.cut(selection)
    assert small.error <= 1e-5
    assert cut.removed.keys() == selection.keep.keys()
    assert torch.equal(small.model.head.bias, other.model.head.bias), "the cut is of the trained weights"
    assert not torch.equal(small.model.head.bias, model.head.bias)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    other.protect(["stem"])
    assert "stem.channels" in subject.coupling.sites, "what is protected in the copy stays free in the original"
    assert "stem.channels" not in other.coupling.sites


def test_larger_budgets_multiples_and_protection() -> None:
    model, inputs = nets.make("mlp")
    subject = open_traced(model, inputs)
    units = subject.units(multiple=4)
    counts = ranking.by_budget(units, {s.name: np.arange(s.count) * 1.0 for s in units.free()}, "channels=60%")
    assert all(int(np.sum(mask)) % 4 == 0 for mask in counts.keep.values())
    small, _ = prune(model, inputs, multiple=4)
    assert small[0].out_features % 4 == small[2].out_features % 4 == 0
    small, cut = prune(model, inputs, protect=["0"])
    assert small[0].out_features == 16
    assert any("protected by the caller" in note for note in cut.notes)
    with pytest.raises(InputError, match="no module"):
        prune(model, inputs, protect=["nowhere"])


def test_what_is_protected_may_be_a_pattern() -> None:
    model, inputs = nets.make("mlp")
    model, ends = nn.Sequential(model, nn.ReLU(), nn.Linear(3, 9), nn.ReLU(), nn.Linear(9, 2)), ("0.0", "0.2", "0.4")
    one, other, whole = (open_traced(model, inputs, protect=given) for given in ("0.*", ends, ()))
    assert one.reasons == other.reasons != whole.reasons
    assert set(one.coupling.sites) == {"2.channels"} < set(whole.coupling.sites)
    assert set(open_traced(model, inputs, protect="0.[02].chan*").coupling.sites) == {"0.4.channels", "2.channels"}
    assert set(open_traced(model, inputs, protect=["0.?.weight"]).coupling.sites) == {"2.channels"}
    assert open_traced(model, inputs, protect="0.0").reasons == open_traced(model, inputs, protect=["0.0"]).reasons
    with pytest.raises(InputError, match=r"protect names '0\.9\.\*'.* no pattern of such names; the nearest: 0\."):
        open_traced(model, inputs, protect=["0.9.*"])


def test_half_precision_is_proved_in_single_and_stays_half() -> None:
    model, inputs = nets.make("residual")
    small, _ = prune(model.bfloat16(), inputs.bfloat16())
    assert small.stem.weight.dtype == torch.bfloat16
    assert model.stem.weight.dtype == torch.bfloat16


def test_bad_input_is_one_clear_line() -> None:
    model, inputs = nets.make("residual")
    for multiple in (0, -8, 2.5):
        with pytest.raises(InputError, match=rf"multiple={multiple}: give a whole number of at least 1"):
            prune(model, inputs, multiple=multiple)
    with pytest.raises(InfeasibleError, match="change nothing"):
        prune(model, inputs, "channels=100%")
    with pytest.raises(InfeasibleError, match="can't be met"):
        prune(model, inputs, "channels=0.001%")
    subject = open_traced(model, inputs)
    for keep, words in (
        ({"x.channels": np.ones(3, bool)}, "no site"),
        ({"stem.channels": np.ones(3, bool)}, "has shape"),
        ({"stem.channels": np.zeros(12, bool)}, "keeps nothing of stem"),
    ):
        with pytest.raises(InputError, match=words):
            subject.cut(Selection(keep))
    model.train()
    small, _ = prune(model, inputs[:1])
    assert model.training, "batch norm with one sample runs in evaluation mode, and the mode returns"
    assert small.training


def test_a_parameter_without_numbers_is_no_hindrance() -> None:
    net = nets.Net(lambda net, x: net.b(torch.cat([net.a(x), net.more]).relu()), **nets.linears(6, 8, 3))
    net.more = nn.Parameter(torch.zeros(0, 8))
    small, _ = prune(net, torch.randn(4, 6))
    assert (small.a.out_features, tuple(small.more.shape)) == (4, (0, 4))


def test_a_shared_weight_stays_where_one_use_of_it_must() -> None:
    """One weight makes channels inside, and the output."""
    net = nets.Net(lambda net, x: net.head(net.body(net.first(x)).relu()), first=nn.Linear(4, 6))
    net.body, net.head = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
    net.head.weight = net.body.weight
    with pytest.raises(UnsupportedError, match=r"nothing of this Net can be cut: .*reaches the output"):
        prune(net, torch.randn(2, 4))


@pytest.mark.parametrize("name", ZOO)
def test_torchvision_out_of_the_box(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    small, cut = prune(models.get_model(name, weights=None), torch.rand(1, 3, 64, 64))
    assert cut.after["params"] < 0.5 * cut.before["params"]
    assert small(torch.rand(2, 3, 64, 64)).shape == (2, 1000)


@pytest.mark.parametrize("name", TIMM)
def test_timm_out_of_the_box(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False)
    _, cut = prune(model, torch.rand(1, *model.default_cfg["input_size"]))
    assert cut.after["params"] < 0.5 * cut.before["params"]


FAMILIES = [
    "bert", "roberta", "distilbert", "electra", "deberta_v2", "albert", "modernbert", "gpt2", "gpt_neox", "opt",
    "bloom", "llama", "llama_one_layer", "llama_eager", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3",
    "olmo2", "mixtral", "qwen3_moe", "t5", "bart", "mamba", "mamba2", "vit", "deit", "dinov2", "swin", "segformer",
    "convnext", "clip", "wav2vec2", "whisper",
]  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_transformers_lose_half_without_a_line_for_any(name: str, monkeypatch) -> None:
    """Of tiny configurations, with a mask where they take one: what the benchmark tells figures of."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    model, inputs = importlib.import_module("zoo").build(f"transformers:{name}")
    if "input_ids" in inputs and "pixel_values" not in inputs:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"]).index_fill(1, torch.tensor([11]), 0)
    small, cut = prune(model, inputs)
    assert cut.after["params"] == sum(one.numel() for one in small.parameters()) < 0.7 * cut.before["params"]
    with torch.no_grad():
        assert small.eval()(**inputs)[0].shape == model.eval()(**inputs)[0].shape


def test_a_mixture_of_experts_keeps_its_sites_when_cuts_of_it_are_proved() -> None:
    """Its kernel refuses rows that fill no 16 bytes, which a trial of other sizes takes for a fault of the cut."""
    model, ids = tiny.mixture(), {"input_ids": torch.randint(8, 60, (2, 8)), "use_cache": False}
    free = open_traced(model, ids, prove=False)
    proved = open_traced(model, ids)
    experts = {name for name in free.coupling.sites if ".experts." in name}
    assert len(experts) == 3
    assert experts <= set(proved.coupling.sites) == set(free.coupling.sites)
    assert not [reason for reason in proved.reasons.values() if "strides" in reason]


# ------------------------------------------------------------------------------------ scales of attention


class Reduced(nn.Module):
    """Attention whose code asks for as many channels as came in, over keys and values of fewer places."""

    def __init__(self, width: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        self.heads, self.head_dim, self.scale = heads, width // heads, (width // heads) ** -0.5
        self.fused = True
        self.q, self.kv = nn.Linear(width, width, bias), nn.Linear(width, 2 * width, bias)
        self.less, self.norm, self.out = nn.Conv1d(width, width, 2, 2), nn.LayerNorm(width), nn.Linear(width, width)
        self.inner, self.outer = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q = self.q(x).reshape(b, n, self.heads, -1).transpose(1, 2)
        y = self.norm(self.less(x.transpose(1, 2)).reshape(b, c, -1).transpose(1, 2))
        k, v = self.kv(y).reshape(b, -1, 2, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            y = (q * self.scale @ k.transpose(-2, -1)).softmax(-1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(b, n, c))
        return x + self.outer(self.inner(x).relu())


class Pyramid(nn.Module):
    """One head, then five, so that half of the channels are not half of the heads."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.stem, self.one, self.wide = nn.Linear(3, 12), Reduced(12, 1, bias), nn.Linear(12, 20)
        self.five, self.head = Reduced(20, 5, bias), nn.Linear(20, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.five(self.wide(self.one(self.stem(x)))).mean(1))


@pytest.mark.parametrize("bias", [True, False])
def test_a_single_head_loses_dimensions_and_keeps_its_scale(bias: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Pyramid(bias).eval(), torch.randn(2, 14, 3)
    subject = open_traced(model, x)
    assert not [reason for reason in subject.reasons.values() if "scale" in reason or "fails" in reason]
    assert {site.name for site in subject.units().free()} >= {"one.inner.channels", "five.inner.channels"}
    site = next(
        name for name, one in subject.coupling.sites.items() if any(a.tensor == "one.q.weight" for a, _ in one.axes)
    )
    keep = np.arange(12) % 4 == 0
    small, _ = subject.cut(Selection({site: keep}))
    query = small.model.one.q.weight
    torch.testing.assert_close(query, 0.5 * model.one.q.weight[keep][:, keep], msg="3 of 12 dimensions are left")
    assert (small.model.one.head_dim, small.model.one.scale) == (3, pytest.approx(3**-0.5))
    torch.testing.assert_close(
        small.forward(), subject.silence(Selection({site: keep})).forward(), rtol=1e-4, atol=1e-5
    )
    plain = copy.deepcopy(small.model)
    plain.one.fused = False
    torch.testing.assert_close(
        plain(x), small.forward(), rtol=1e-4, atol=1e-5, msg="by the scale that the module keeps"
    )
    small.save(tmp_path)
    again = reload_traced(tmp_path, model, x)
    torch.testing.assert_close(again.forward(), small.forward())
    opened = open_traced(again.model, x)
    twice, _ = opened.cut(half(opened))
    assert twice.error <= 1e-5
    assert twice.model.one.head_dim == 2


def test_a_cut_that_changes_the_scale_of_attention_is_not_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    subject = open_traced(Pyramid(), torch.randn(2, 14, 3))
    monkeypatch.setattr(Plan, "factors", lambda *_: None)
    with pytest.raises(CutError, match="differs by"):
        subject.cut(half(subject))


def test_queries_that_are_changed_on_their_way_keep_the_scale() -> None:
    def run(net, x):
        q, k, v = net.qkv(x).chunk(3, -1)
        return net.out(nn.functional.scaled_dot_product_attention(net.norm(q)[:, None], k[:, None], v[:, None]))

    normed = nets.Net(run, qkv=nn.Linear(3, 24), norm=nn.LayerNorm(8), out=nn.Linear(8, 2))
    with pytest.raises(UnsupportedError, match="sets the scale of attention"):
        open_traced(normed, torch.randn(2, 5, 3))


# ------------------------------------------------------------------------------------ parts of a network


class Auxiliary(nn.Module):
    """A second classifier that runs in training only, on a map that loses half of its channels."""

    def __init__(self, late: bool = False) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12)
        self.head, self.late = nn.Linear(12, 5), late
        self.aux = nn.Sequential(
            nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5),
            nn.Linear(6, 5),
        )  # fmt: skip

    def forward(self, x):
        x = self.one(x).relu()
        y = self.head(self.norm(self.two(x)).relu().mean((2, 3)))
        if not self.training:
            return y
        # Where it counts on a width, what feeds it has to keep it.
        return y, self.aux(x.unflatten(1, (8, 1)).squeeze(2) if self.late else x)


@pytest.mark.parametrize("late", [False, True])
def test_what_runs_in_training_only_is_cut_along_or_keeps_what_it_reads(late: bool) -> None:
    torch.manual_seed(0)
    model, inputs = Auxiliary(late), torch.rand(4, 3, 10, 10)
    before = copy.deepcopy(model.state_dict())
    small, cut = prune(model, inputs)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "also batch statistics"
    assert small.two.out_channels == 6
    assert (small.one.out_channels, small.aux[0].in_channels) == ((8, 8) if late else (4, 4))
    assert small.aux[0].out_channels == 3
    assert not any("takes no part" in note for note in cut.notes)
    y, again = small.train()(inputs)
    (y.sum() + again.sum()).backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
    assert small.aux[1].num_batches_tracked == 1
    flops = open_traced(Auxiliary(late), inputs).flops()
    assert cut.before["flops"] == flops, "of a pass in evaluation mode"


def test_a_network_that_can_not_train_on_its_example_is_cut_as_it_runs() -> None:
    class Wanting(Auxiliary):
        def forward(self, x):
            if self.training:
                self.aux(self.one(x))
                raise ValueError("targets should not be none when in training mode")
            return super().forward(x)

    torch.manual_seed(0)
    small, cut = prune(Wanting(), torch.rand(4, 3, 10, 10))
    assert small.one.out_channels == 4
    assert any("takes no part" in note for note in cut.notes)


def test_networks_are_asked_as_their_subject_is_with_gradients_and_in_their_own_mode():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.9), nn.Linear(6, 3))

        def forward(self, *, pixels):
            return self.net(pixels)

    x, named = torch.rand(2, 4), Named()
    for subject, network in ((open_traced(named, {"pixels": x}), named), (open_traced(named.net, x), named.net)):
        network.eval()
        assert torch.equal(subject.inputs.ask(network, x), named.net(x))
        network.train()
        assert (subject.inputs.ask(network, x) != subject.inputs.ask(network, x)).any(), "dropout is on"
        assert subject.inputs.ask(network, x).requires_grad
