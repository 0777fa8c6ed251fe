from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from secateur import conformance
from secateur.errors import InfeasibleError, InputError, ModelError, UnsupportedError
from secateur.methods.pruning import prune
from secateur.select import ranking
from secateur.subjects.network import traced
from secateur.subjects.network.shrinking import Plan
from secateur.subjects.network.traced import CutError, Traced, open_traced, reload_traced
from secateur.vocabulary import Selection
from subjects import nets

ZOO = ["resnet18", "densenet121", "mobilenet_v3_small", "shufflenet_v2_x0_5", "swin_t"]
TIMM = ["deit_tiny_patch16_224", "mobilevit_xxs", "res2net50_26w_4s", "skresnet18"]


def half(subject: Traced) -> Selection:
    return Selection({site.name: np.arange(site.count) % 2 == 0 for site in subject.units().free()})


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


def test_what_stays_says_why() -> None:
    model, inputs = nets.make("sorted")
    reasons = open_traced(model, inputs).reasons
    assert "sort" in reasons["a.weight[0]"]
    assert "output" in reasons["c.weight[0]"]
    assert "b.weight[0]" not in reasons


def test_what_a_mask_writes_keeps_no_channel() -> None:
    subject = open_traced(*nets.make("written"))
    assert {name: site.count for name, site in subject.units().sites.items()} == {"a.channels": 8, "b.channels": 10}
    small, _ = subject.cut(half(subject))
    assert small.model.get_parameter("mark").shape == (4,)


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_a_recurrent_layer_is_left_alone_with_a_reason_and_the_rest_is_cut(name: str) -> None:
    model, inputs = nets.make(name)
    small, cut = prune(model, inputs)
    assert small.middle.hidden_size == model.middle.hidden_size
    assert small.middle.weight_hh_l1_reverse.shape == model.middle.weight_hh_l1_reverse.shape
    assert (small.first.out_features, small.a.in_features, small.b.out_features) == (4, 4, 6)
    reason = "belongs to a recurrent layer, whose state goes on from step to step, in middle"
    assert any(reason in note and f"({name.upper()})" in note for note in cut.notes), cut.notes
    reasons = open_traced(model, inputs).reasons
    assert all("recurrent" in reasons[f"middle.{leaf}[0]"] for leaf in dict(model.middle.named_parameters()))


def test_attributes_follow_the_tensors() -> None:
    model, inputs = nets.make("grouped")
    small, _ = prune(model, inputs)
    assert small.depth.groups == small.stem.out_channels == small.stem.weight.shape[0] < 16
    assert small.depth.out_channels == small.thin.in_channels == small.thin.groups * small.thin.weight.shape[1]
    assert small.thick.groups == 2
    assert small.back.in_channels == small.back.weight.shape[0]
    model, inputs = nets.make("normalised")
    small, _ = prune(model, inputs)
    assert small.norm.num_groups == 4
    assert small.norm.num_channels == small.stem.out_channels
    assert small.layer.normalized_shape == (small.narrow.out_channels,)


def test_a_cut_can_be_cut_again_and_reloaded(tmp_path: Path) -> None:
    model, inputs = nets.make("residual")
    subject = open_traced(model, inputs)
    once, _ = subject.cut(half(subject))
    twice, _ = once.cut(half(once))
    twice.save(tmp_path, program=True)
    (tmp_path / "mine").touch()
    modes = {file.name: file.stat().st_mode for file in tmp_path.iterdir()}
    assert set(modes) == {"model.safetensors", "cut.json", "model.pt2", "mine"}
    assert len(set(modes.values())) == 1, "others may read them as any file"
    again = reload_traced(tmp_path, model, inputs)
    assert torch.equal(again.forward(), twice.forward())
    program = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(program(inputs), twice.forward())
    with pytest.raises(ModelError, match=r"another architecture|does not have|does not fit"):
        reload_traced(tmp_path, nets.make("mlp")[0], inputs)
    with pytest.raises(ModelError, match="no saved network"):
        reload_traced(tmp_path / "nothing", model, inputs)


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
    with pytest.raises(InputError, match=r"protect names '0\.9\.\*'.* no pattern of such names; the nearest: 0\."):
        open_traced(model, inputs, protect=["0.9.*"])


class Careless(nn.Module):
    """Code that computes with a number which analysis can't see: 4 channels per head, whatever comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 3)

    def forward(self, x):
        x = self.a(x)
        return self.c(self.b(x.view(x.shape[0], 2, 4).flatten(1)).relu())


def test_what_cannot_be_proved_stays_and_the_rest_goes() -> None:
    torch.manual_seed(0)
    model, inputs = Careless(), torch.randn(4, 6)
    small, cut = prune(model, inputs)
    assert small.a.out_features == 8
    assert small.b.out_features == 5
    assert any("a cut of it fails" in note for note in cut.notes)


def test_half_precision_is_proved_in_single_and_stays_half() -> None:
    model, inputs = nets.make("residual")
    small, _ = prune(model.bfloat16(), inputs.bfloat16())
    assert small.stem.weight.dtype == torch.bfloat16
    assert model.stem.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ([], "damaged"),
        ({"plans": 3}, "damaged"),
        ({"plans": [3]}, "the file of a cut is damaged"),
        ({"plans": [{"tensors": {"stem.weight": {"0": [-99]}}, "attributes": []}]}, "damaged"),
        ({"plans": [{"tensors": {"stem.weight": {"-9": [0]}}, "attributes": []}]}, "damaged"),
        ({"plans": [{"tensors": {}, "attributes": [["stem", "nothing", 3]]}]}, "damaged"),
        ({"plans": [{"tensors": {}, "attributes": [], "biases": [""]}]}, "damaged"),
        ({"plans": [{"tensors": {}, "attributes": [], "bits": [["stem", "x"]]}]}, "the file of a cut is damaged"),
        ({"plans": [], "forms": 3}, "damaged"),
        ({"plans": [], "channels": "many"}, "damaged"),
    ],
)
def test_a_file_of_a_cut_that_holds_something_else_is_one_line(tmp_path: Path, said: object, words: str) -> None:
    model, inputs = nets.make("residual")
    open_traced(model, inputs).save(tmp_path)
    (tmp_path / "cut.json").write_text(json.dumps(said))
    with pytest.raises(ModelError, match=words) as told:
        reload_traced(tmp_path, model, inputs)
    assert "\n" not in str(told.value)


def test_files_that_can_not_be_read_are_one_line(tmp_path: Path) -> None:
    model, inputs = nets.make("residual")
    open_traced(model, inputs).save(tmp_path)
    (tmp_path / "cut.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match="no saved network"):
        reload_traced(tmp_path, model, inputs)
    (tmp_path / "cut.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(ModelError, match="no saved network"):
        reload_traced(tmp_path, model, inputs)


@pytest.mark.parametrize("multiple", [0, -8, 2.5])
def test_channels_in_multiples_of_nothing_are_refused(multiple: int) -> None:
    model, inputs = nets.make("residual")
    with pytest.raises(InputError, match=rf"multiple={multiple}: give a whole number of at least 1"):
        prune(model, inputs, multiple=multiple)


def test_a_lone_name_is_protected_as_one_in_a_list_is() -> None:
    model, inputs = nets.make("residual")
    alone, listed = (open_traced(model, inputs, protect=names) for names in ("stem", ["stem"]))
    assert alone.reasons == listed.reasons
    assert "is protected by the caller" in alone.reasons.values()


def test_a_network_that_is_trained_on_several_machines_is_refused() -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(nets.make("mlp")[0])
        with pytest.raises(UnsupportedError, match=r"DistributedDataParallel spreads .*model\.module"):
            open_traced(model, torch.zeros(4, 6))
    finally:
        torch.distributed.destroy_process_group()


def test_bad_input_is_one_clear_line() -> None:
    model, inputs = nets.make("residual")
    with pytest.raises(ModelError, match=r"can't run on the example inputs in stem: RuntimeError"):
        open_traced(model, torch.randn(1, 5, 8, 8))
    with pytest.raises(UnsupportedError, match="no parameters"):
        open_traced(nn.ReLU(), inputs)
    with pytest.raises(UnsupportedError, match="nothing of this Linear can be cut"):
        open_traced(nn.Linear(3, 4), torch.randn(2, 3))
    with pytest.raises(UnsupportedError, match="compiled"):
        open_traced(torch.compile(model), inputs)
    with pytest.raises(InputError, match=r"no torch.nn.Module"):
        open_traced(len, inputs)  # type: ignore[arg-type]
    with pytest.raises(InfeasibleError, match="change nothing"):
        prune(model, inputs, "channels=100%")
    with pytest.raises(InfeasibleError, match="can't be met"):
        prune(model, inputs, "channels=0.001%")
    with pytest.raises(InputError, match="no site"):
        open_traced(model, inputs).cut(Selection({"x.channels": np.ones(3, bool)}))
    model.train()
    small, _ = prune(model, inputs[:1])
    assert model.training, "batch norm with one sample runs in evaluation mode, and the mode returns"
    assert small.training


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


def test_dimensions_that_are_rotated_are_no_heads_where_there_are_as_many() -> None:
    transformers = importlib.import_module("transformers")
    torch.manual_seed(0)
    config = transformers.PhiConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    )  # fmt: skip
    model = transformers.PhiForCausalLM(config)
    before = model.model.layers[0].self_attn
    assert before.rotary_ndims == before.config.num_attention_heads == 4  # as in phi-2, which has 32 of both
    small, _ = prune(model, {"input_ids": torch.arange(6)[None]}, budget="channels=50%", score="magnitude")
    after = small.model.layers[0].self_attn
    assert after.rotary_ndims == 4
    assert after.q_proj.out_features == before.q_proj.out_features // 2


def test_a_parameter_without_numbers_is_no_hindrance() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
            self.more = nn.Parameter(torch.zeros(0, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.cat([self.first(x), self.more]).relu())

    small, _ = prune(Padded(), torch.randn(4, 6), budget="channels=50%", score="magnitude")
    assert (small.first.out_features, tuple(small.more.shape)) == (4, (0, 4))


class Bias(nn.Module):
    """What positions add to each head of an attention, asked for by a method and not by a call."""

    def __init__(self, heads: int, tokens: int) -> None:
        super().__init__()
        self.num_heads, self.tokens = heads, tokens
        self.mlp = nn.Linear(2, heads)
        self.register_buffer("places", torch.rand(tokens * tokens, 2))

    def get(self) -> torch.Tensor:
        return self.mlp(self.places).view(-1, self.num_heads).view(self.tokens, self.tokens, -1).permute(2, 0, 1)


class Biased(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 4, 8
        self.qkv, self.bias, self.out = nn.Linear(12, 96), Bias(4, 5), nn.Linear(32, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).reshape(-1, 5, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        found = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.bias.get())
        return self.out(found.transpose(1, 2).reshape(-1, 5, self.num_heads * self.head_dim))


def test_numbers_of_a_module_whose_method_was_called_follow_the_cut() -> None:
    torch.manual_seed(0)
    small, _ = prune(Biased(), torch.randn(2, 5, 12), budget="channels=50%", score="magnitude")
    assert (small.num_heads, small.head_dim, small.bias.num_heads, small.bias.tokens) == (2, 8, 2, 5)
    assert (small.qkv.out_features, small.bias.mlp.out_features) == (2 * 3 * 8, 2)


class ThreeOfThree(nn.Module):
    """Three heads of three parts, query, key and value: two numbers of a module that are equal, and one is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.num_parts, self.head_dim = 3, 3, 8
        self.qkv, self.out = nn.Conv2d(12, 72, 1), nn.Conv2d(24, 12, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, _, height, width = x.shape
        qkv = self.qkv(x).reshape(rows, self.num_heads, self.num_parts * self.head_dim, height * width)
        q, k, v = qkv.transpose(2, 3).chunk(3, dim=3)
        found = nn.functional.scaled_dot_product_attention(q, k, v).transpose(2, 3)
        return self.out(found.reshape(rows, self.num_heads * self.head_dim, height, width))


def test_of_equal_counts_the_one_that_speaks_of_heads_is_theirs() -> None:
    torch.manual_seed(0)
    small, _ = prune(ThreeOfThree(), torch.randn(2, 12, 4, 4), budget="channels=70%", score="magnitude")
    assert (small.num_heads, small.num_parts, small.head_dim) == (2, 3, 8)
    assert small.qkv.out_channels == 2 * 3 * 8


class Literal(nn.Module):
    """Its code names the number of heads, so that none can go; each has as many dimensions."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused, self.num_heads, self.scale = fused, 4, 4**-0.5
        self.qkv, self.out = nn.Linear(6, 48), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        q, k, v = (one.reshape(b, n, 4, -1).transpose(1, 2) for one in self.qkv(x).chunk(3, -1))
        if self.fused:
            y = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            y = (q * self.scale @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(b, n, -1))


@pytest.mark.parametrize("fused", [True, False])
def test_where_heads_stay_the_same_dimensions_of_each_go(fused: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Literal(fused).eval(), torch.randn(2, 5, 6)
    subject = open_traced(model, x)
    (site,) = subject.coupling.sites.values()
    assert (len(site.classes), site.width, site.name) == (4, 12, "qkv.channels")
    small, cut = subject.cut(Selection({site.name: np.array([True, False, False, False])}))
    assert small.model.qkv.weight.shape == (12, 6)
    assert (small.model.num_heads, small.model.scale) == (4, 1.0 if fused else 0.5)
    assert cut.after["params"] == 7 * 12 + 15
    rows = np.arange(48) % 4 == 0
    expected = model.qkv.weight[rows].clone()
    expected[:4] *= 0.5 if fused else 1.0
    torch.testing.assert_close(small.model.qkv.weight, expected, msg="only queries make up for the scale")
    copied = subject.copy()
    assert copied.cut(half(copied))[0].error <= 1e-5
    small.save(tmp_path)
    torch.testing.assert_close(reload_traced(tmp_path, model, x).forward(), small.forward())


def test_a_cut_that_changes_the_scale_of_attention_is_not_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    subject = open_traced(Pyramid(), torch.randn(2, 14, 3))
    monkeypatch.setattr(Plan, "factors", lambda *_: None)
    with pytest.raises(CutError, match="differs by"):
        subject.cut(half(subject))


def test_queries_that_are_changed_on_their_way_keep_the_scale() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.norm, self.out = nn.Linear(3, 24), nn.LayerNorm(8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            return self.out(nn.functional.scaled_dot_product_attention(self.norm(q)[:, None], k[:, None], v[:, None]))

    with pytest.raises(UnsupportedError, match="sets the scale of attention"):
        open_traced(Normed(), torch.randn(2, 5, 3))


# ------------------------------------------------------------------------------------------- what is not understood


class Chain(nn.Module):
    """Three linears with something between the first and the second."""

    def __init__(self, kind: str = "") -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 3)
        self.kind = kind

    def forward(self, x):
        x = BETWEEN[self.kind](self.a(x))
        return self.c(self.b(x).relu())


class Mirrored(torch.autograd.Function):
    """Channels change places in code that autograd can't look into."""

    @staticmethod
    def forward(ctx, x):
        return x.flip(1) * 2

    @staticmethod
    def backward(ctx, grad):
        return grad.flip(1) * 2


class Outside(torch.autograd.Function):
    """A detour through NumPy."""

    @staticmethod
    def forward(ctx, x):
        return torch.from_numpy(x.numpy()[:, ::-1].copy())

    @staticmethod
    def backward(ctx, grad):
        return grad.flip(1)


@torch.library.custom_op("secateur_tests::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


BETWEEN = {
    "": lambda x: x,
    "function": Mirrored.apply,
    "operator": doubled,
    "fourier": lambda x: torch.fft.rfft(x).abs().repeat(1, 2)[:, :8],
    "numpy": Outside.apply,
    "nothing finite": lambda x: x / 0,
}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("operator", "doubled is not known to the analysis"),
        ("fourier", "is Fourier-transformed"),
        ("numpy", "leaves what is recorded"),
    ],
)
def test_an_unknown_operator_keeps_what_enters_it_and_is_named(kind: str, reason: str) -> None:
    torch.manual_seed(0)
    model, inputs = Chain(kind), torch.randn(4, 6)
    small, cut = prune(model, inputs)
    assert (small.a.out_features, small.b.in_features, small.b.out_features) == (8, 8, 5)
    assert any(reason in note and note.startswith("stays: a.weight[0]") for note in cut.notes), cut.notes


class Doubling(nn.Module):
    def forward(self, x):
        return doubled(x)


def test_a_module_that_is_not_known_is_named_with_its_class() -> None:
    inner = nn.Sequential(nn.Linear(6, 8), Doubling(), nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 3))
    _, cut = prune(inner, torch.randn(4, 6))
    assert any(note.endswith("doubled is not known to the analysis, in 1 (Doubling)") for note in cut.notes), cut.notes
    _, cut = prune(Chain("operator"), torch.randn(4, 6))
    assert any(note.endswith("is not known to the analysis, in Chain") for note in cut.notes), cut.notes


def test_a_function_of_its_own_is_followed_inside() -> None:
    torch.manual_seed(0)
    model, inputs = Chain("function"), torch.randn(4, 6)
    small, _ = prune(model, inputs)
    assert small.a.out_features == small.b.in_features == 4


class Branching(nn.Module):
    """Which linear runs depends on what the first one gives."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x)
        return self.left(x) if x.sum() > 0 else self.right(x)


class Looping(nn.Module):
    """How often a linear runs depends on the data; all of the network runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x)
        for _ in range(1 + int(x.abs().max())):
            x = self.again(x).tanh()
        return self.last(x)


def test_a_branch_that_the_inputs_leave_out_is_refused_and_a_loop_is_not() -> None:
    torch.manual_seed(0)
    with pytest.raises(UnsupportedError, match=r"\w+\.weight takes no part .* computed in Branching: other inputs may"):
        prune(Branching(), torch.randn(4, 6))
    small, _ = prune(Looping(), torch.randn(4, 6))
    assert small.again.out_features == small.again.in_features == small.first.out_features == 4


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


class Choosing(nn.Module):
    """Which linear runs depends on the inputs themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        return (self.left if x.mean() > 0 else self.right)(self.first(x).relu())


class Masked(nn.Module):
    """Looks at its inputs, as masks are looked at, in another place than where something takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.unused = nn.Linear(6, 8), Looks(), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.first(x).relu(), x)


class Looks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(8, 3)

    def forward(self, x, mask):
        return self.last(x if mask.isfinite().all() else x * 0)


def test_a_branch_on_the_inputs_is_refused_where_it_leaves_something_out() -> None:
    torch.manual_seed(0)
    inputs, model = torch.rand(4, 6), Choosing()
    with pytest.raises(UnsupportedError, match=r"right.weight takes no part .* and Choosing looks at values of its in"):
        prune(model, inputs)
    assert model.first.out_features == 8
    small, cut = prune(Masked(), inputs)
    assert small.first.out_features == 4
    assert any("takes no part" in note for note in cut.notes)


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


class Shared(nn.Module):
    """One weight makes channels inside, and the output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.head.weight = self.body.weight

    def forward(self, x):
        return self.head(self.body(self.first(x)).relu())


def test_a_shared_weight_stays_where_one_use_of_it_must() -> None:
    with pytest.raises(UnsupportedError, match=r"nothing of this Shared can be cut: .*reaches the output"):
        prune(Shared(), torch.randn(2, 4))


def eight_bits() -> nn.Module:
    model = nets.make("mlp")[0]
    weight = model.get_parameter("2.weight")
    weight.requires_grad_(False)
    weight.data = weight.data.to(torch.float8_e4m3fn)
    return model


def quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(nets.make("mlp")[0].eval(), {nn.Linear}, dtype=torch.qint8)


def inner(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    model = nets.make("mlp")[0]
    model[2] = wrap(model[2])
    return model


def spoilt(name: str, value: float) -> nn.Module:
    model = nets.make("mlp")[0]
    model.get_parameter(name).data.view(-1)[0] = value
    return model


class Calling(nn.Module):
    """Compiled code that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)
        self.middle = torch.compile(torch.relu, backend="eager")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.middle(self.a(x)))


MLP = torch.zeros(4, 6)
REFUSED = {
    "scripted": (lambda: torch.jit.script(nets.make("mlp")[0]), MLP, UnsupportedError, "is compiled: prune the model"),
    "traced": (lambda: torch.jit.trace(nets.make("mlp")[0], MLP), MLP, UnsupportedError, "is compiled"),
    "scripted inside": (lambda: inner(torch.jit.script), MLP, UnsupportedError, r"2 \(RecursiveScriptModule\) is comp"),
    "compiled inside": (lambda: inner(torch.compile), MLP, UnsupportedError, r"2 \(OptimizedModule\) is compiled"),
    "calling compiled": (
        Calling,
        MLP,
        UnsupportedError,
        r"Calling calls compiled code \(torch.compile\): prune it with",
    ),
    "spread": (
        lambda: nn.DataParallel(nets.make("mlp")[0]),
        MLP,
        UnsupportedError,
        "DataParallel spreads .*model.module",
    ),
    "spread inside": (lambda: inner(nn.DataParallel), MLP, UnsupportedError, "2 .DataParallel. spreads .*, 2.module"),
    "quantised": (quantised, MLP, UnsupportedError, r"0 \(Linear\) is quantised: prune first"),
    "eight bits": (eight_bits, MLP, UnsupportedError, "2.weight is in torch.float8_e4m3fn: prune in a wider type"),
    "NaN": (lambda: spoilt("2.weight", float("nan")), MLP, ModelError, "2.weight holds NaN or infinity"),
    "infinity": (lambda: spoilt("0.bias", float("inf")), MLP, ModelError, "0.bias holds NaN or infinity"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2)), MLP, ModelError, "0.weight has no shape yet"),
    "meta": (lambda: nets.make("mlp")[0].to("meta"), MLP, ModelError, "0.weight has no values"),
    "no inputs": (lambda: nets.make("mlp")[0], None, ModelError, "can't run on the example inputs in 0: TypeError"),
    "text": (lambda: nets.make("mlp")[0], "hello", ModelError, "can't run on the example inputs in 0: TypeError"),
    "too few": (lambda: nets.make("mlp")[0], (), ModelError, "missing 1 required positional argument"),
    "shape": (lambda: nets.make("mlp")[0], torch.zeros(4, 5), ModelError, "can't run on the example inputs in 0"),
    "kind": (lambda: nets.make("mlp")[0], MLP.long(), ModelError, "must have the same dtype"),
    "device": (lambda: nets.make("mlp")[0], MLP.to("meta"), ModelError, "can't run on the example inputs"),
    "empty": (lambda: nets.make("mlp")[0], MLP[:0], InputError, r"the example inputs are empty \(\(0, 6\)\)"),
    "not finite": (lambda: Chain("nothing finite"), MLP + 1, UnsupportedError, "nothing of this Chain can be cut"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_one_line_and_leave_the_model_as_it_was(name: str) -> None:
    torch.manual_seed(0)
    make, inputs, error, words = REFUSED[name]
    model = make()
    before = {key: repr(value) for key, value in model.state_dict().items()}
    mode = model.training
    with pytest.raises(error, match=words) as caught:
        prune(model, inputs)
    assert "\n" not in str(caught.value)
    assert {key: repr(value) for key, value in model.state_dict().items()} == before
    assert model.training == mode


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
