"""Subjects: what can be pruned, one package per kind, each with `units(...)` and `cut(selection)`.

Names are loaded on first use, so that importing this package loads neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secateur._utils.lazy import load_name

if TYPE_CHECKING:
    from secateur.subjects.dataset.examples import ExampleSet as ExampleSet
    from secateur.subjects.graph.knowledge_graph import Fact as Fact
    from secateur.subjects.graph.knowledge_graph import Facts as Facts
    from secateur.subjects.graph.knowledge_graph import KnowledgeGraph as KnowledgeGraph
    from secateur.subjects.graph.knowledge_graph import Line as Line
    from secateur.subjects.graph.knowledge_graph import Neighbourhood as Neighbourhood
    from secateur.subjects.network.traced import Traced as Traced
    from secateur.subjects.network.traced import open_traced as open_traced
    from secateur.subjects.network.traced import reload_traced as reload_traced
    from secateur.subjects.text.page import Page as Page
    from secateur.subjects.text.page import open_page as open_page
    from secateur.subjects.text.passage import Passages as Passages
    from secateur.subjects.text.passage import open_passages as open_passages
    from secateur.subjects.transformer.decoder import Decoder as Decoder
    from secateur.subjects.transformer.encoder import Encoder as Encoder
    from secateur.subjects.transformer.loading import load as load
    from secateur.subjects.transformer.loading import open_streamed as open_streamed
    from secateur.subjects.transformer.loading import open_subject as open_subject
    from secateur.subjects.transformer.moe import Moe as Moe
    from secateur.subjects.transformer.streamed import Streamed as Streamed
    from secateur.subjects.transformer.subject import Consumer as Consumer
    from secateur.subjects.transformer.subject import Output as Output
    from secateur.subjects.transformer.subject import Transformer as Transformer

_PLACES = {
    "Consumer": "transformer.subject",
    "Decoder": "transformer.decoder",
    "Encoder": "transformer.encoder",
    "ExampleSet": "dataset.examples",
    "Fact": "graph.knowledge_graph",
    "Facts": "graph.knowledge_graph",
    "KnowledgeGraph": "graph.knowledge_graph",
    "Line": "graph.knowledge_graph",
    "Moe": "transformer.moe",
    "Neighbourhood": "graph.knowledge_graph",
    "Output": "transformer.subject",
    "Page": "text.page",
    "Passages": "text.passage",
    "Streamed": "transformer.streamed",
    "Traced": "network.traced",
    "Transformer": "transformer.subject",
    "load": "transformer.loading",
    "open_page": "text.page",
    "open_passages": "text.passage",
    "open_streamed": "transformer.loading",
    "open_subject": "transformer.loading",
    "open_traced": "network.traced",
    "reload_traced": "network.traced",
}

__all__ = [
    "Consumer",
    "Decoder",
    "Encoder",
    "ExampleSet",
    "Fact",
    "Facts",
    "KnowledgeGraph",
    "Line",
    "Moe",
    "Neighbourhood",
    "Output",
    "Page",
    "Passages",
    "Streamed",
    "Traced",
    "Transformer",
    "load",
    "open_page",
    "open_passages",
    "open_streamed",
    "open_subject",
    "open_traced",
    "reload_traced",
]


def __getattr__(name: str) -> Any:
    return load_name(__name__, _PLACES, name)
