"""What a model of texts tells: numbers, labels of which several may hold, or tokens that are hidden from it."""

from __future__ import annotations

from secateur.subjects import Transformer

__all__ = ["tells_labels", "tells_masked", "tells_numbers"]


def tells_numbers(subject: Transformer) -> bool:
    """Whether the logits are numbers, as of a regression or a ranking, and no classes or tokens."""
    config, heads = subject.model.config, ("ForSequenceClassification", "ForTokenClassification")
    return type(subject.model).__name__.endswith(heads) and (
        config.num_labels == 1 or config.problem_type == "regression"
    )


def tells_labels(subject: Transformer) -> bool:
    """Whether each logit is of a label that holds or not, whichever others of the text do."""
    config = subject.model.config
    several = config.num_labels > 1 and config.problem_type == "multi_label_classification"
    return several and type(subject.model).__name__.endswith("ForSequenceClassification")


def tells_masked(subject: Transformer) -> bool:
    """Whether the model tells tokens that are hidden from it."""
    return type(subject.model).__name__.endswith("ForMaskedLM")
