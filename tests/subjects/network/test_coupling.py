from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import tiny
from secateur.subjects.network.coupling import couple
from secateur.subjects.network.flops import Size
from secateur.subjects.network.recording import Example, record
from secateur.subjects.network.traced import open_traced
from secateur.vocabulary import Selection
from subjects import nets


def test_sites_hold_units_that_touch_the_same_tensors() -> None:
    model, inputs = nets.make("residual")
    coupling = couple(record(model.eval(), Example.of(inputs)))
    assert set(coupling.sites) == {"stem.channels", "inner.channels"}
    stem = coupling.sites["stem.channels"]
    assert len(stem.classes) == 12
    names = {axis.tensor for axis, _ in stem.axes}
    assert names >= {
        "stem.weight",
        "bn.weight",
        "bn.running_var",
        "scale",
        "inner.weight",
        "outer.weight",
        "head.weight",
    }
    assert "output" in coupling.reasons["head.weight[0]"]


def test_flattened_channels_take_all_their_columns() -> None:
    model, inputs = nets.make("joined")
    coupling = couple(record(model.eval(), Example.of(inputs)))
    for name, count in (("a.channels", 6), ("b.channels", 10)):
        site = coupling.sites[name]
        assert len(site.classes) == count
        assert {axis.tensor: each for axis, each in site.axes}["head.weight"] == 4
    keep = {"a.channels": np.arange(6) != 2}
    gone = np.flatnonzero(~coupling.keep_atoms(keep))
    (head,) = [axis for axis in coupling.axes if axis.tensor == "head.weight" and axis.dim == 1]
    inside = [atom - head.start for atom in gone if head.start <= atom < head.start + head.size]
    assert inside == [8, 9, 10, 11]


def test_costs_are_polynomials_of_kept_counts() -> None:
    model, inputs = nets.make("mlp")
    coupling = couple(record(model.eval(), Example.of(inputs)))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    terms, base = coupling.terms(shapes, dict.fromkeys(shapes, 4))
    counts = {"0.channels": 16, "2.channels": 12}
    total = base["params"] + sum(
        term.coefficient * np.prod([counts[site] for site in term.sites]) for term in terms if term.measure == "params"
    )
    assert total == sum(p.numel() for p in model.parameters())


def test_kept_and_bound_atoms() -> None:
    model, inputs = nets.make("mlp")
    run = record(model.eval(), Example.of(inputs))
    free = couple(run)
    one = int(np.flatnonzero(free.classes.of == free.sites["0.channels"].classes[3])[0])
    assert len(couple(run, {one: "asked"}).sites["0.channels"].classes) == 15
    first, second = (
        np.array([np.flatnonzero(free.classes.of == unit)[0] for unit in free.sites[name].classes[:12]])
        for name in ("0.channels", "2.channels")
    )
    bound = couple(run, None, [np.stack([first, second])])
    assert sorted(len(site.classes) for site in bound.sites.values()) == [4, 12]


def test_a_dimension_of_what_flows_is_a_sum_of_sites_and_of_what_stays() -> None:
    model, inputs = nets.make("mlp")
    run = record(model.eval(), Example.of(inputs))
    first = next(axis for axis in run.flow.atoms.axes if axis.tensor == "0.weight" and axis.dim == 0)
    atoms = torch.arange(first.start, first.start + 16)
    coupling = couple(run, {first.start + 14: "asked", first.start + 15: "asked"})
    row = atoms.view(1, 16)
    assert coupling.along(Size(16, ((row, 1),))) == {"0.channels": 1, "": 2}
    assert coupling.along(Size(32, ((row.repeat(1, 2), 1),))) == {"0.channels": 2, "": 4}
    assert coupling.along(Size(5)) == {"": 5}
    # Heads of two channels, reshaped: one dimension has the heads, the other none, whatever stays at the last of them.
    heads = torch.cat([atoms[:14].repeat_interleave(2), atoms[14:]]).view(15, 2)
    assert coupling.along(Size(15, ((heads, 0),))) == {"0.channels": 1, "": 1}
    assert coupling.along(Size(2, ((heads, 1),))) == {"": 2}


def test_gated_experts_keep_whole_steps_of_what_is_read_as_of_what_is_made() -> None:
    """Of each unit two rows of gates and values are made, and one column is read: some kernels want both aligned."""
    ids = {"input_ids": torch.randint(8, 60, (2, 8)), "use_cache": False}
    sites = couple(record(tiny.model("mixtral"), Example.of(ids))).sites
    experts = sites["model.layers.0.mlp.experts.channels"]
    assert (len(experts.classes), experts.width, experts.step, experts.multiple) == (24, 2, 16, 8)
    heads = sites["model.layers.0.self_attn.q_proj.heads"]
    assert (heads.step, heads.multiple) == (1, 1)
    plain = replace(sites["model.layers.0.self_attn.o_proj.channels"], step=1)
    assert (plain.width, plain.multiple, replace(plain, step=8).multiple) == (1, 1, 8)


@pytest.mark.parametrize("channels", [1, 3])
def test_sites_are_named_by_what_makes_them_of_grey_images_too(channels: int) -> None:
    model = nn.Sequential(nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3))
    coupling = couple(record(model.eval(), Example.of(torch.rand(1, channels, 9, 9))))
    assert {name: len(site.classes) for name, site in coupling.sites.items()} == {"0.channels": 6, "2.channels": 8}


@pytest.mark.parametrize("channels", [1, 3])
def test_a_norm_that_stands_before_what_makes_its_channels_names_no_site(channels: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv, self.head = nn.BatchNorm2d(6), nn.Conv2d(channels, 6, 3), nn.Conv2d(6, 2, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.head(self.norm(self.conv(images)))
            return output

    coupling = couple(record(Net().eval(), Example.of(torch.rand(1, channels, 9, 9))))
    assert set(coupling.sites) == {"conv.channels"}


class Blank(nn.Module):
    """It multiplies by ones that a cache holds, which may be those of another network."""

    cache: ClassVar[dict[int, torch.Tensor]] = {}

    def __init__(self, *wide: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise((3, *wide, 8)))
        self.last = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        output: torch.Tensor = self.last(x * self.cache.setdefault(8, torch.ones(1, 8)))
        return output


def test_ones_that_outlive_a_pass_have_no_labels_in_the_next() -> None:
    for wide in ((40,), (), (20,)):
        sites = couple(record(Blank(*wide).eval(), Example.of(torch.rand(2, 3)))).sites
        assert {name: len(site.classes) for name, site in sites.items()} == {
            f"layers.{place}.channels": size for place, size in enumerate((*wide, 8))
        }


class Stored(nn.Module):
    """It multiplies by a view of ones that a cache holds, made from ones which had labels."""

    cache: ClassVar[dict[int, torch.Tensor]] = {}

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.Linear(5, wide), nn.ReLU(), nn.Linear(wide, 5)) if wide else nn.Identity()
        self.a, self.c = nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.a(self.before(x))
        if 12 not in self.cache:
            ones = torch.ones(1, 12)
            hidden = hidden * ones
            self.cache[12] = ones.clone()
        output: torch.Tensor = self.c((hidden * self.cache[12]).relu())
        return output


@pytest.mark.parametrize("widths", [(0, 40), (40, 0)])
def test_what_was_made_of_ones_with_labels_has_none_in_the_next_pass(widths: tuple[int, ...]) -> None:
    """Channels of unlike layers were tied, or numbers of the other network were read."""
    Stored.cache.clear()
    for wide in widths:
        sites = couple(record(Stored(wide).eval(), Example.of(torch.rand(4, 5)))).sites
        assert {name: len(site.classes) for name, site in sites.items()} == {
            "a.channels": 12, **({"before.0.channels": 40, "before.2.channels": 5} if wide else {}),
        }  # fmt: skip


class Moving(nn.Module):
    """Its states get another dimension in place."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.a, self.b = way, nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.a(x).relu()
        if self.way == "unsqueeze_":
            hidden = hidden.unsqueeze_(1).squeeze(1)
        elif self.way == "squeeze_":
            hidden = hidden.unsqueeze(1).squeeze_(1)
        elif self.way == "t_":
            hidden = hidden.t_().t()
        elif self.way == "transpose_":
            hidden = hidden[None].transpose_(1, 2).transpose(1, 2)[0]
        output: torch.Tensor = self.b(hidden)
        return output


@pytest.mark.parametrize("way", ["unsqueeze_", "squeeze_", "t_", "transpose_"])
def test_dimensions_may_move_in_place(way: str) -> None:
    sites = couple(record(Moving(way).eval(), Example.of(torch.rand(4, 5)))).sites
    assert {name: len(site.classes) for name, site in sites.items()} == {"a.channels": 12}


class Own(nn.Module):
    """A layer with a matrix [in, out] of its own."""

    def __init__(self, inputs: int, outputs: int, way: str) -> None:
        super().__init__()
        self.way, self.matrix = way, nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = {
            "@": lambda: x @ self.matrix,
            "one by one": lambda: torch.stack([row @ self.matrix for row in x]),
            "linear": lambda: nn.functional.linear(x, self.matrix.t()),
            "einsum": lambda: torch.einsum("bi,io->bo", x, self.matrix),
            "bmm": lambda: torch.bmm(x[:, None], self.matrix.expand(len(x), -1, -1))[:, 0],
            "turned": lambda: (self.matrix.t() @ x.t()).t(),
            "tensordot": lambda: torch.tensordot(x, self.matrix, 1),
            "scaled": lambda: x @ (self.matrix * 0.5),
        }[self.way]()
        return product


@pytest.mark.parametrize("way", ["@", "one by one", "linear", "einsum", "bmm", "turned", "tensordot", "scaled"])
def test_a_matrix_of_any_name_makes_channels_however_it_is_multiplied(way: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out, self.b, self.a = nn.Linear(10, 3), Own(12, 10, way), Own(5, 12, way)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.out(self.b(self.a(x).relu()).relu())
            return output

    sites = couple(record(Net().eval(), Example.of(torch.rand(4, 5)))).sites
    assert {name: len(site.classes) for name, site in sites.items()} == {"a.channels": 12, "b.channels": 10}


def test_layers_under_weight_norm_name_their_own_channels() -> None:
    normed = nn.utils.parametrizations.weight_norm
    for layers in (
        (normed(nn.Conv1d(5, 12, 3)), nn.ReLU(), normed(nn.Conv1d(12, 16, 3)), nn.ReLU(), nn.Conv1d(16, 3, 1)),
        (normed(nn.ConvTranspose1d(5, 12, 3)), nn.ReLU(), normed(nn.ConvTranspose1d(12, 16, 3)), nn.Conv1d(16, 3, 1)),
    ):
        sites = couple(record(nn.Sequential(*layers).eval(), Example.of(torch.rand(2, 5, 16)))).sites
        assert {name.partition(".")[0]: len(site.classes) for name, site in sites.items()} == {"0": 12, "2": 16}


@pytest.mark.parametrize("way", ["bool", "casts", "scaled"])
def test_one_mask_of_two_attentions_joins_their_heads_through_casts(way: str) -> None:
    """Their heads were tied to the residual stream, so that its channels stayed."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(24, 24) for _ in range(4))

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            q, k, v = (one(x).view(2, 5, 4, 6).transpose(1, 2) for one in (self.q, self.k, self.v))
            out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            output: torch.Tensor = self.o(out.transpose(1, 2).reshape(2, 5, 24))
            return output

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.a, self.b, self.c = nn.Linear(7, 24), Attention(), Attention(), nn.Linear(24, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.e(x)
            mask = torch.ones(2, 4, 5, 5, dtype=torch.bool)
            if way == "casts":
                mask = torch.zeros(2, 4, 5, 5).to(torch.float64).to(x.dtype)
            elif way == "scaled":
                mask = (1 - mask.to(x.dtype)) * -1e9
            for attention in (self.a, self.b):
                x = x + attention(x, mask)
            output: torch.Tensor = self.c(x)
            return output

    sites = couple(record(Net().eval(), Example.of(torch.rand(2, 5, 7)))).sites
    assert {name: len(site.classes) for name, site in sites.items()} == {"e.channels": 24, "a.q.heads": 4}


def test_one_head_of_a_mask_that_is_one_value_all_over_is_as_good_as_any_other() -> None:
    """The first head of the attention before stayed."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.q, self.k, self.v, self.o = nn.Linear(7, 24), *(nn.Linear(24, 24) for _ in range(4))
            self.c = nn.Linear(24, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x, mask = self.e(x), torch.zeros(2, 4, 5, 5)
            for heads in (4, 1):
                q, k, v = (layer(x).view(2, 5, 4, 6).transpose(1, 2) for layer in (self.q, self.k, self.v))
                weights = (q @ k.transpose(2, 3) + mask[:, :heads]).softmax(-1)
                x = x + self.o((weights @ v).transpose(1, 2).reshape(2, 5, 24))
            output: torch.Tensor = self.c(x)
            return output

    sites = couple(record(Net().eval(), Example.of(torch.rand(2, 5, 7)))).sites
    assert {name: len(site.classes) for name, site in sites.items()} == {"e.channels": 24, "q.heads": 4}


def test_an_operator_of_ones_own_may_be_called_as_one_of_torch() -> None:
    @torch.library.custom_op("secateur_tests::convolution", mutates_args=())
    def convolve(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * weight.sum()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.weight = nn.Linear(5, 12), nn.Linear(12, 3), nn.Parameter(torch.ones(3, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = convolve(self.b(self.a(x).relu()), self.weight)
            return output

    assert list(couple(record(Net().eval(), Example.of(torch.rand(4, 5)))).sites) == ["a.channels"]


def test_a_layer_whose_weight_is_used_the_other_way_too_names_its_site() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.code = nn.Linear(7, 2), nn.Linear(5, 7)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            hidden = self.code(x).relu()
            return hidden @ self.code.weight, self.head(hidden)

    assert list(couple(record(Tied().eval(), Example.of(torch.rand(2, 5)))).sites) == ["code.channels"]


def test_sites_are_named_by_what_makes_them_where_weights_are_stored_by_input() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.wide, self.head = nn.ConvTranspose2d(3, 8, 3), nn.ConvTranspose2d(8, 6, 3), nn.Conv2d(6, 2, 1)
            self.weight = nn.Parameter(torch.randn(2, 5))
            self.last = nn.Linear(5, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen = self.head(self.wide(self.up(images).relu()).relu()).mean((2, 3))
            output: torch.Tensor = self.last((seen @ self.weight).relu())
            return output

    sites = couple(record(Net().eval(), Example.of(torch.rand(1, 3, 6, 6)))).sites
    assert {name: len(site.classes) for name, site in sites.items()} == {
        "up.channels": 8, "wide.channels": 6, "head.channels": 2, "weight.channels": 5,
    }  # fmt: skip
    assert [(axis.tensor, axis.dim) for axis, _ in sites["wide.channels"].axes] == [
        ("wide.weight", 1), ("head.weight", 1), ("wide.bias", 0),
    ]  # fmt: skip


def _quantise(table: torch.Tensor) -> torch.Tensor:
    scale = table.abs().max() / 127
    return (table / scale).round() * scale


class Positions(nn.Module):
    """A table of positions, of which an example of a shorter text uses the first rows."""

    def __init__(self, take: str) -> None:
        super().__init__()
        self.take, self.embed, self.out = take, nn.Linear(7, 24), nn.Linear(24, 3)
        self.table = nn.Parameter(torch.randn(32, 24))
        self.weights, self.norm, self.project = nn.Embedding(32, 24), nn.LayerNorm(24), nn.Linear(24, 24)
        self.time = nn.Linear(7, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[1]
        rows = {
            "slice": lambda: self.table[:length],
            "narrow": lambda: self.table.narrow(0, 0, length),
            "weight": lambda: self.weights.weight[:length],
            "index": lambda: self.table.index_select(0, torch.arange(length)),
            "row": lambda: self.table[length],
            "heads": lambda: self.table[:length, None].transpose(1, 2).flatten(1),
            "scaled": lambda: (self.table * 2)[:length],
            "summed": lambda: (self.table + self.weights.weight)[:length],
            "normed": lambda: self.norm(self.table)[:length],
            "projected": lambda: self.project(self.table).relu()[:length],
            "joined": lambda: torch.cat([self.table[1:], self.table[:1]])[:length],
            "centred": lambda: (self.table - self.table.mean(0))[:length],
            "normalised": lambda: nn.functional.normalize(self.table, dim=0)[:length],
            "divided": lambda: (self.table / self.table.norm())[:length],
            "deviation": lambda: (self.table / self.table.std())[:length],
            "quantised": lambda: _quantise(self.table)[:length],
            "beside": lambda: self.table[:length] - self.table.mean(0),
            "times": lambda: (self.table * x.mean())[:length],
            "plus": lambda: (self.table + self.time(x[:, :1]))[:, :length],
            "task": lambda: (self.table * 2)[length],
            "span": lambda: (self.table * 2).unfold(0, length, length)[0].T,
            "padded": lambda: nn.functional.pad(self.table * 2, (0, 0, 0, length - len(self.table))),
        }[self.take]()
        out: torch.Tensor = self.out((self.embed(x) + rows).relu())
        return out


@pytest.mark.parametrize(
    "take",
    [
        *("slice", "narrow", "weight", "index", "row", "heads", "scaled", "summed", "normed", "projected", "joined"),
        *("centred", "normalised", "divided", "deviation", "quantised", "beside", "times", "plus", "padded"),
        *("task", "span"),
    ],
)
def test_rows_of_a_table_that_the_example_does_not_reach_stay(take: str) -> None:
    """They went by their scores, and longer texts were given the positions of others."""
    subject = open_traced(Positions(take).eval(), torch.randn(2, 8, 7))
    assert "embed.channels" in subject.coupling.sites
    half = Selection({name: np.arange(24) % 2 == 0 for name in subject.coupling.sites})
    longer = torch.randn(2, 20, 7)
    torch.testing.assert_close(subject.cut(half)[0].forward(longer), subject.silence(half).forward(longer))


def test_channels_that_all_meet_in_a_product_go_though_a_part_of_them_is_taken_too() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.embed(x).relu()
            out: torch.Tensor = self.out(h) * h[:, :1]
            return out

    sites = couple(record(Gated().eval(), Example.of(torch.randn(2, 6)))).sites
    assert {name: len(site.classes) for name, site in sites.items()} == {"embed.channels": 7}


def test_queries_and_keys_go_in_step_though_values_alone_are_used() -> None:
    class Values(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.attention, self.out = nn.Linear(6, 16), nn.MultiheadAttention(16, 2), nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            given = self.attention.in_proj_weight, self.attention.in_proj_bias
            weight, bias = (one[-self.attention.embed_dim :] for one in given)
            h = self.attention.out_proj(nn.functional.linear(self.embed(x), weight, bias))
            out: torch.Tensor = self.out(h.relu())
            return out

    subject = open_traced(Values(), torch.randn(2, 6))
    keep = {site: np.arange(len(one.classes)) % 2 == 0 for site, one in subject.coupling.sites.items()}
    small = subject.cut(Selection(keep))[0].model
    assert small.get_parameter("attention.in_proj_weight").shape == (24, 8)
    assert small.get_parameter("attention.in_proj_bias").shape == (24,)
    axes = {(axis.tensor, axis.dim): count for axis, count in subject.coupling.sites["attention.channels"].axes}
    assert axes["attention.in_proj_weight", 0] == axes["attention.in_proj_bias", 0] == 3


def test_of_equal_parts_those_indices_stay_that_none_of_them_uses() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.attention, self.out = nn.Linear(6, 16), nn.MultiheadAttention(16, 2), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            values = nn.functional.linear(self.embed(x), self.attention.in_proj_weight[-16:-8])
            out: torch.Tensor = self.out(values.relu())
            return out

    sites = couple(record(Half().eval(), Example.of(torch.randn(2, 6)))).sites
    assert {name: len(site.classes) for name, site in sites.items()} == {"embed.channels": 16, "attention.channels": 8}


def test_a_table_in_one_row_stays_whole_where_the_example_does_not_reach_its_end() -> None:
    """It lost numbers of the positions that the example has, and those behind them began elsewhere."""

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.inner, self.out = nn.Linear(7, 24), nn.Linear(24, 16), nn.Linear(16, 3)
            self.flat = nn.Parameter(torch.randn(32 * 24))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.embed(x)
            out: torch.Tensor = self.out(self.inner(h + (self.flat * 2)[: h[0].numel()].view(*h.shape[1:])).relu())
            return out

    assert list(open_traced(Flat(), torch.randn(2, 8, 7)).coupling.sites) == ["inner.channels"]


@pytest.mark.parametrize("read", ["heads", "norms"])
@pytest.mark.parametrize("taken", ["weight", "divided", "gated", "features", "slices", "view"])
def test_parts_that_other_tasks_take_stay_with_what_reads_them(taken: str, read: str) -> None:
    class Tasks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.fused, self.out = nn.Linear(6, 16), nn.Parameter(torch.randn(48, 16)), nn.Linear(16, 3)
            self.heads = nn.ModuleList(nn.Linear(16, 3) for _ in range(3))
            self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(3))
            self.gate = nn.Linear(6, 1)

        def forward(self, x: torch.Tensor, task: int) -> torch.Tensor:
            h, weight = self.embed(x).relu(), self.fused
            if taken == "divided":
                weight = weight / weight.norm()
            elif taken == "gated":
                weight = weight * self.gate(x).mean().sigmoid()
            if taken in ("weight", "divided", "gated"):
                h = nn.functional.linear(h, weight.chunk(3)[task])
            else:
                h = nn.functional.linear(h, weight)
                h = {
                    "features": lambda: h.chunk(3, -1)[task],
                    "slices": lambda: h[:, 16 * task : 16 * task + 16],
                    "view": lambda: h.view(-1, 3, 16)[:, task],
                }[taken]()
            out: torch.Tensor = self.heads[task](h.relu()) if read == "heads" else self.out(self.norms[task](h))
            return out

    x = torch.randn(5, 6)
    subject = open_traced(Tasks(), (x, 1))
    half = Selection({site: np.arange(16) % 2 == 0 for site in subject.coupling.sites})
    small, silenced = subject.cut(half)[0], subject.silence(half)
    assert small.model.get_parameter("fused").shape == (48, 8)
    for task in range(3):
        torch.testing.assert_close(small.forward((x, task)), silenced.forward((x, task)))


def test_channels_may_be_put_in_another_order_by_computed_indices() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.first(x)
            out: torch.Tensor = self.second(h.index_select(1, torch.arange(h.shape[1] - 1, -1, -1)))
            return out

    assert list(open_traced(Turned(), torch.randn(1, 3, 9, 9)).coupling.sites) == ["first.channels"]
