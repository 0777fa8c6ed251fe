"""Mixtures of experts, with gates or without: Mixtral, Qwen3-MoE, DeepSeek-V3, Nemotron-H and others.

Beside what every decoder has, a layer with experts has the sites

    layers.N.experts         whole experts; the rows of the router go with them, and at least the router's top k stay
    layers.N.expert_neurons  neuron j of expert e is unit e * width + j; equally many stay in each expert of a layer,
                             each by its own choice
    layers.N.shared_neurons  neurons of the expert that every token passes, where there is one
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from secateur.errors import UnsupportedError
from secateur.subjects.transformer.decoder import Decoder

__all__ = ["Mixture", "Moe"]


@dataclass(frozen=True)
class Mixture:
    """The experts of one layer: `modules` of the model, and how many there are.

    experts: in a form of `formats.expert_tensors`, with down_proj [E, d, width]; it is called with (states [T, d],
    chosen experts [T, k], shares [T, k]), d being the channels, or a latent's. router: gives (logits [T, E], shares,
    chosen experts).
    """

    experts: nn.Module
    router: nn.Module
    count: int
    width: int
    shared_width: int
    """0 where there is no shared expert."""


class Moe(Decoder):
    """A causal transformer with experts in some or all layers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        biases = [name for name, _ in self.model.named_parameters() if name.endswith(".down_proj.bias")]
        if biases:
            raise UnsupportedError(
                f"{biases[0]}: experts with biases can't be pruned, for what a layer without its FFN would add is "
                "nowhere to be kept; save the model with mlp_bias=False"
            )

    @property
    def top_k(self) -> int:
        """Experts that each token passes in a layer."""
        return self.layout.chosen

    def mixtures(self) -> dict[int, Mixture]:
        """Layer -> its experts, for layers that have some."""
        layout, names = self.layout, self.family.experts
        assert names is not None
        found = {}
        for index, (path, width) in enumerate(zip(layout.layers(), layout.widths, strict=True)):
            if width.experts:
                layer = self.model.get_submodule(path)
                found[index] = Mixture(
                    layer.get_submodule(names.packed),
                    layer.get_submodule(names.router),
                    width.experts,
                    width.expert_neurons,
                    width.shared_neurons,
                )
        return found

    def routers(self) -> list[nn.Module]:
        """The modules that give each token its experts, layer by layer."""
        return [mixture.router for mixture in self.mixtures().values()]

    def active_params(self) -> float:
        """Parameters that one token passes: top k of the experts of each layer, and all the rest."""
        idle = sum(
            sum(p.numel() for p in mixture.experts.parameters()) * (1 - self.top_k / mixture.count)
            for mixture in self.mixtures().values()
        )
        return float(round(sum(p.numel() for p in self.model.parameters()) - idle))

    def _count(self) -> dict[str, float]:
        return super()._count() | {"active_params": self.active_params()}
