"""Open whatever was saved: folders of transformers, and cuts of any other network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from secateur._utils import plugins
from secateur.errors import InputError, UnsupportedError
from secateur.subjects.network import pretrained
from secateur.subjects.network.opening import Original, is_saved, load_saved, open_network, open_saved
from secateur.subjects.network.traced import Traced, open_traced
from secateur.subjects.transformer import loading
from secateur.subjects.transformer.subject import Transformer

__all__ = ["load", "open_subject"]


def load(path: str | Path, *, original: Original | None = None) -> nn.Module:
    """A saved model in evaluation mode, of unequal layers too, without running code from its folder.

    original: of a cut network that is no transformer, a module of the architecture that was cut, with any weights, or
    the function that builds it, itself or as "file.py:function"; by default the function on record. The network may be
    trained, and saved by `open_subject(network, inputs=...).save(folder)`.

    Raises `ModelError` for a folder that is damaged or no model's, `InputError` where the original can't be built anew.
    """
    if is_saved(path):
        return load_saved(path, original).eval()
    _refuse(path, original=original)
    model: nn.Module
    if not pretrained.reads_texts(loading.locate(path)):
        model = loading.read_any(path)
        return model
    try:
        model = loading.load(path)
    except UnsupportedError:  # of no family of language models
        model = loading.read_any(path)
    return model


def open_subject(
    source: str | Path | nn.Module | Traced,
    *,
    inputs: object = None,
    original: Original | None = None,
    **options: Any,
) -> Transformer | Traced:
    """A model as something to prune.

    Args:
        source: a transformer's folder (plain, sentence-transformers, or an earlier result), Hub id or model in memory;
            or any other network: a module, "file.py:function" that builds one, or the folder of a saved cut.
        inputs: of a network: example inputs, or their shape such as "1x3x224x224"; those that come along if None.
        original: of the folder of a saved cut; see `load`.
        options: of a transformer: see `subjects.transformer.loading.open_subject`; a tokenizer also as its folder.

    Raises `ModelError` and `UnsupportedError` for what can't be opened, `InputError` for what is lacking.
    """
    named = isinstance(source, str) and plugins.names_function(source)
    if is_saved(source):
        assert isinstance(source, str | Path)
        return open_traced(open_saved(source, original, inputs))
    if (
        named
        or isinstance(source, Traced)
        or (isinstance(source, nn.Module) and not isinstance(source, PreTrainedModel))
    ):
        return open_traced(open_network(source, inputs))
    _refuse(source, original=original, inputs=inputs)
    if isinstance(place := options.get("tokenizer"), str | Path):
        options["tokenizer"] = loading.read_tokenizer(Path(place))
        if options["tokenizer"] is None:
            raise InputError(f"there is no tokenizer in {place}: give its folder, or the tokenizer itself")
    return loading.open_subject(source, **options)


def _refuse(source: object, **given: object) -> None:
    """Raise `InputError` for what is of networks, and was given for a transformer."""
    for name, value in given.items():
        if value is not None:
            raise InputError(f"{name} goes with networks that are no transformers, and {source} is one: leave it out")
