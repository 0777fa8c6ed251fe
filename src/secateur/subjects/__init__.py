"""WHAT is pruned: one kind of thing per file, with `units(...)` and `cut(selection)`.

Names are loaded on first use, so that importing this package loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur.subjects.decoder import Decoder as Decoder
    from secateur.subjects.encoder import Encoder as Encoder
    from secateur.subjects.examples import ExampleSet as ExampleSet
    from secateur.subjects.knowledge_graph import Fact as Fact
    from secateur.subjects.knowledge_graph import Facts as Facts
    from secateur.subjects.knowledge_graph import KnowledgeGraph as KnowledgeGraph
    from secateur.subjects.knowledge_graph import Line as Line
    from secateur.subjects.knowledge_graph import Neighbourhood as Neighbourhood
    from secateur.subjects.loading import load as load
    from secateur.subjects.loading import open_streamed as open_streamed
    from secateur.subjects.loading import open_subject as open_subject
    from secateur.subjects.moe import Moe as Moe
    from secateur.subjects.page import Page as Page
    from secateur.subjects.page import open_page as open_page
    from secateur.subjects.passage import Passages as Passages
    from secateur.subjects.passage import open_passages as open_passages
    from secateur.subjects.streamed import Streamed as Streamed
    from secateur.subjects.traced import Traced as Traced
    from secateur.subjects.traced import open_traced as open_traced
    from secateur.subjects.traced import reload_traced as reload_traced
    from secateur.subjects.transformer import Consumer as Consumer
    from secateur.subjects.transformer import Output as Output
    from secateur.subjects.transformer import Transformer as Transformer

_PLACES = {
    "Consumer": "transformer",
    "Decoder": "decoder",
    "Encoder": "encoder",
    "ExampleSet": "examples",
    "Fact": "knowledge_graph",
    "Facts": "knowledge_graph",
    "KnowledgeGraph": "knowledge_graph",
    "Line": "knowledge_graph",
    "Moe": "moe",
    "Neighbourhood": "knowledge_graph",
    "Output": "transformer",
    "Page": "page",
    "Passages": "passage",
    "Streamed": "streamed",
    "Traced": "traced",
    "Transformer": "transformer",
    "load": "loading",
    "open_page": "page",
    "open_passages": "passage",
    "open_streamed": "loading",
    "open_subject": "loading",
    "open_traced": "traced",
    "reload_traced": "traced",
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
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
