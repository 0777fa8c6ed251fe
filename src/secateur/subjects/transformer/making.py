"""Make a subject of a model in memory whose family is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from secateur._utils.tokenizers import Tokenizer
from secateur.errors import UnsupportedError
from secateur.subjects.transformer import saving
from secateur.subjects.transformer.decoder import Decoder
from secateur.subjects.transformer.encoder import Encoder
from secateur.subjects.transformer.encoder_decoder import EncoderDecoder
from secateur.subjects.transformer.families import Family
from secateur.subjects.transformer.moe import Moe
from secateur.subjects.transformer.rotated import Rotated
from secateur.subjects.transformer.subject import Transformer

__all__ = ["make_subject"]

_TASKS = ("CausalLM", "LMHeadModel", "MaskedLM", "Classification", "SentencePrediction", "ForCTC")
_AUTO = ("AutoModelForCausalLM", "AutoModelForMaskedLM")
"""Auto classes whose models give logits, whatever they are called."""


def make_subject(
    model: PreTrainedModel,
    family: Family,
    tokenizer: Tokenizer | None = None,
    folder: Path | None = None,
    head: Sequence[nn.Module] = (),
) -> Transformer:
    """The subject of a model in memory, of the kind that its family says."""
    name = type(model).__name__
    if family.has_encoder and (model.base_model is model or model.can_generate()):
        return EncoderDecoder(model, family, tokenizer=tokenizer, folder=folder)
    mapped = saving.classes(model.config)
    spoken = name.endswith(_TASKS) or saving.plain_class(type(model)) in map(mapped.get, _AUTO)
    if model.base_model is not model and not spoken:
        raise UnsupportedError(
            f"{name} gives more or other than one tensor of logits, so it can't be pruned as it is: save the "
            "checkpoint again as its base model (AutoModel), a language model, or a sequence or token classifier"
        )
    kind: type[Transformer] = Encoder if family.kind == "encoder" else Moe if family.experts else Decoder
    kind = Rotated if saving.is_sliced(model.config) else kind
    return kind(model, family, tokenizer=tokenizer, folder=folder, head=list(head))
