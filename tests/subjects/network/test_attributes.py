"""Numbers of modules follow the tensors, and those that only happen to be equal do not."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from secateur.methods.pruning import prune
from secateur.subjects.network.attributes import has_role, speaks_of_widths
from subjects import nets


@pytest.mark.parametrize(
    ("name", "speaks", "surely"),
    [
        ("num_heads", True, True),
        ("out_channels", True, True),
        ("head_dim", True, False),
        ("num_parts", True, False),
        ("kernel_size", False, False),
        ("num_hidden_layers", False, False),
        ("num_key_value_groups", False, False),
        ("max_position_embeddings", False, False),
    ],
)
def test_names_speak_of_widths(name: str, speaks: bool, surely: bool) -> None:
    assert (speaks_of_widths(name), speaks_of_widths(name, True)) == (speaks, surely)
    assert has_role(name, "count") == name.startswith("num_")


def test_attributes_follow_the_tensors() -> None:
    small, _ = prune(*nets.make("grouped"))
    assert small.depth.groups == small.stem.out_channels == small.stem.weight.shape[0] < 16
    assert small.depth.out_channels == small.thin.in_channels == small.thin.groups * small.thin.weight.shape[1]
    assert small.thick.groups == 2
    assert small.back.in_channels == small.back.weight.shape[0]
    small, _ = prune(*nets.make("normalised"))
    assert small.norm.num_groups == 4
    assert small.norm.num_channels == small.stem.out_channels
    assert small.layer.normalized_shape == (small.narrow.out_channels,)


class Bias(nn.Module):
    """What positions add to each head of an attention, asked for by a method and not by a call."""

    def __init__(self, heads: int, tokens: int) -> None:
        super().__init__()
        self.num_heads, self.tokens = heads, tokens
        self.mlp = nn.Linear(2, heads)
        self.register_buffer("places", torch.rand(tokens * tokens, 2))

    def get(self) -> torch.Tensor:
        return self.mlp(self.places).view(-1, self.num_heads).view(self.tokens, self.tokens, -1).permute(2, 0, 1)


def test_numbers_of_a_module_whose_method_was_called_follow_the_cut() -> None:
    def run(net, x):
        q, k, v = net.qkv(x).reshape(-1, 5, 3, net.num_heads, net.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=net.bias.get())
        return net.out(y.transpose(1, 2).reshape(-1, 5, net.num_heads * net.head_dim))

    torch.manual_seed(0)
    layers = {"qkv": nn.Linear(12, 96), "bias": Bias(4, 5), "out": nn.Linear(32, 12)}
    small, _ = prune(nets.Net(run, num_heads=4, head_dim=8, **layers), torch.randn(2, 5, 12))
    assert (small.num_heads, small.head_dim, small.bias.num_heads, small.bias.tokens) == (2, 8, 2, 5)
    assert (small.qkv.out_features, small.bias.mlp.out_features) == (2 * 3 * 8, 2)


def test_of_equal_counts_the_one_that_speaks_of_heads_is_theirs() -> None:
    """Three heads of three parts, query, key and value: two numbers that are equal, and one is cut."""

    def run(net, x):
        rows, _, height, width = x.shape
        qkv = net.qkv(x).reshape(rows, net.num_heads, net.num_parts * net.head_dim, height * width)
        q, k, v = qkv.transpose(2, 3).chunk(3, dim=3)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(2, 3)
        return net.out(y.reshape(rows, net.num_heads * net.head_dim, height, width))

    torch.manual_seed(0)
    layers = {"qkv": nn.Conv2d(12, 72, 1), "out": nn.Conv2d(24, 12, 1)}
    net = nets.Net(run, num_heads=3, num_parts=3, head_dim=8, **layers)
    small, _ = prune(net, torch.randn(2, 12, 4, 4), budget="channels=70%")
    assert (small.num_heads, small.num_parts, small.head_dim) == (2, 3, 8)
    assert small.qkv.out_channels == 2 * 3 * 8


def test_dimensions_that_are_rotated_are_no_heads_where_there_are_as_many() -> None:
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    sizes = dict(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    model = transformers.PhiForCausalLM(transformers.PhiConfig(**sizes, rope_parameters=rope))
    before = model.model.layers[0].self_attn
    assert before.rotary_ndims == before.config.num_attention_heads == 4  # as in phi-2, which has 32 of both
    small, _ = prune(model, {"input_ids": torch.arange(6)[None]})
    after = small.model.layers[0].self_attn
    assert after.rotary_ndims == 4
    assert after.q_proj.out_features == before.q_proj.out_features // 2


def test_an_encoder_and_its_decoder_compare_their_inputs_with_a_number_that_follows() -> None:
    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(11, 64), nn.Linear(64, 11)
            self.both = nn.Transformer(64, 4, 1, 1, 128, batch_first=True)

        def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.head(self.both(self.embed(source), self.embed(target)))
            return result

    tokens = torch.randint(11, (2, 5))
    small, cut = prune(Translator(), (tokens, tokens))
    assert small.both.d_model == small.embed.embedding_dim == 32
    assert cut.removed["both.encoder.layers.0.linear1.channels"] == (64, 128)


def test_an_encoder_and_its_decoder_compare_their_inputs_with_the_number_of_the_last_norm() -> None:
    class Encoder(nn.Module):
        """One of one's own, that normalises fewer channels in between."""

        def __init__(self) -> None:
            super().__init__()
            self.down, self.norm, self.up = nn.Linear(64, 24), nn.LayerNorm(24), nn.Linear(24, 64)

        def forward(self, source: torch.Tensor, **masks: object) -> torch.Tensor:
            return source + self.up(self.norm(self.down(source)).relu())

    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(11, 64), nn.Linear(64, 11)
            self.both = nn.Transformer(64, 4, 1, 1, 128, batch_first=True, custom_encoder=Encoder())

        def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.head(self.both(self.embed(source), self.embed(target)))
            return result

    tokens = torch.randint(11, (2, 5))
    small, _ = prune(Translator(), (tokens, tokens))
    assert small.both.encoder.norm.normalized_shape == (12,)
    assert small.both.d_model == small.embed.embedding_dim == 32
