"""Encoders with a decoder behind them, as of translation and summaries: T5, BART, Marian, Whisper and their like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from secateur._utils import devices
from secateur._utils.modes import evaluating
from secateur.errors import UnsupportedError
from secateur.subjects.transformer import saving
from secateur.subjects.transformer.blocks import Call
from secateur.subjects.transformer.families import Family
from secateur.subjects.transformer.layout import Layout
from secateur.subjects.transformer.per_layer import get_setting
from secateur.subjects.transformer.small_copy import make_source
from secateur.subjects.transformer.subject import Output, Transformer, find_states, record_states
from secateur.vocabulary import Term

__all__ = ["EncoderDecoder"]


class EncoderDecoder(Transformer):
    """A decoder of text and the encoder whose output its cross-attentions read; layers of both are counted on.

    A text [B, S] is what the encoder reads and what the decoder writes, teacher-forced. Raises `UnsupportedError` where
    heads of the two have other sizes.
    """

    kind = "decoder"

    def __init__(self, model: PreTrainedModel, family: Family, **options: Any) -> None:
        _check_heads(model, family)
        super().__init__(model, family, **options)
        if model.can_generate():  # a class may call itself its base model
            self.output = "logits"

    @property
    def decodes(self) -> bool:
        """No: it does not go on from a text, but begins one."""
        return False

    @property
    def joins_texts(self) -> bool:
        """No: each text has an encoding of its own."""
        return False

    def arguments(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What the model is called with for texts `input_ids` and `attention_mask` [B, S].

        The decoder reads the token with which it starts and then the text but for its last token. Raises
        `UnsupportedError` where the encoder reads something else than texts, and the batch has none of it.
        """
        main = self.model.main_input_name
        if main not in batch:
            self.check_texts()
        tokens = batch["input_ids"]
        found = {main: batch[main], "decoder_input_ids": self._shift(tokens)}
        if main == "input_ids" and "attention_mask" in batch:
            mask = batch["attention_mask"]
            first = torch.ones_like(mask[:, :1])
            found |= {"attention_mask": mask, "decoder_attention_mask": torch.cat([first, mask[:, :-1]], 1)}
        return devices.move(found, self.model)

    def _inputs_of(self, model: PreTrainedModel, tokens: Tensor) -> Mapping[str, Tensor]:
        return {"decoder_input_ids": tokens} | make_source(model, tokens)

    def _shift(self, tokens: Tensor) -> Tensor:
        config = self.model.config
        names = ("decoder_start_token_id", "bos_token_id", "pad_token_id")
        start = next((value for name in names if (value := getattr(config, name, None)) is not None), 0)
        return torch.cat([torch.full_like(tokens[:, :1], start), tokens[:, :-1]], 1)

    def forward(self, batch: Mapping[str, Tensor], *, hidden: bool = False, head: bool = True) -> Output:
        """Run encoder and decoder on texts, see `arguments`.

        The prediction at a position is of the token after it, as of any language model: what the decoder says there is
        moved by one place, and at the last place, which predicts nothing, the last one stands twice. hidden: states of
        both, those of the encoder first. The head always runs: classes add to what it gives, or scale what it reads.
        """
        with record_states(self, hidden) as states:
            result = self.model(**self.arguments(batch), use_cache=False)
        given = result.logits if self.output == "logits" else result.last_hidden_state
        return Output(torch.cat([given[:, 1:], given[:, -1:]], 1), tuple(states), self.causal)

    @property
    def starts(self) -> list[int]:
        """The first layers of encoder and decoder."""
        return self.layout.starts

    def record(self, batch: Mapping[str, Tensor], begin: int) -> tuple[Tensor, list[Call]]:
        """What enters layer `begin`, [B, S, d], and with what else it and those behind it in its stack are called.

        Layers hand on more than their states, such as positions, so that they run.
        """
        end = next((start for start in self.starts if start > begin), len(self.layers()))
        calls = list[Call]()
        with ExitStack() as stack, torch.no_grad(), evaluating(self.model):
            for path in self.layers()[begin:end]:
                hook = self.model.get_submodule(path).register_forward_pre_hook(
                    lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
                )
                stack.callback(hook.remove)
            self.forward(batch)
        entering = find_states(*calls[0])
        return entering, [_without_states(*call) for call in calls]

    def example(self, batch: int, length: int) -> dict[str, Tensor]:
        """A random input, with what the encoder reads where that is no text."""
        data = super().example(batch, length)
        return data | devices.move(make_source(self.model, data["input_ids"]), self.model)

    def _cache(self, layout: Layout, batch: int, length: int) -> Iterator[Term]:
        """Bytes of keys and values, of `length` tokens written and of what was read: 2 B T head_dim for each head."""
        read = self.source.tokens if self.source else length
        for index, width in enumerate(layout.widths):
            with_layer = (("layers", index),)
            if index < layout.starts[-1]:
                yield Term("kv_cache", 0.0, units=with_layer)
                continue
            for site, count, tokens in (("heads", width.heads, length), ("cross.heads", width.cross, read)):
                if count:
                    per_head = 2.0 * batch * tokens * self.model.dtype.itemsize * layout.head_dim
                    name = f"layers.{index}.{site}"
                    yield Term("kv_cache", per_head, (name,), (name,), with_layer)


def _without_states(args: tuple[object, ...], kwargs: Mapping[str, object]) -> Call:
    return (args[1:], dict(kwargs)) if args else ((), {key: kwargs[key] for key in kwargs if key != "hidden_states"})


def _check_heads(model: PreTrainedModel, family: Family) -> None:
    """Refuse a model whose encoder and decoder share one width out among other numbers of heads.

    Heads are counted by the size of one, which is the same for all layers (`Layout.head_dim`).
    """
    config = model.config
    if get_setting(config, "head_dim") or saving.has_stacks(config):  # the second: of our own, with what layers have
        return
    first, last = (int(get_setting(config, stack.heads) or 1) for stack in (family.stacks[0], family.stacks[-1]))
    if first != last:
        width = config.hidden_size
        raise UnsupportedError(
            f"the encoder of {type(model).__name__} has {first} heads of {width // first} numbers each and its decoder "
            f"{last} of {width // last}, and heads of one size are counted here: secateur prune cuts it as any network"
        )
