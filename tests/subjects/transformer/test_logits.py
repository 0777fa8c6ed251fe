"""Logits that are more than the head's product with the last states."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from secateur.subjects import open_subject
from secateur.subjects.transformer import logits
from secateur.subjects.transformer.decoder import Decoder
from subjects.hybrids import make_hybrid


def _scaled(kind: str) -> PreTrainedModel:
    """A tiny model whose logits are its head's times a number, capped, or of one more layer; or as they are."""
    if kind == "FalconH1":
        return make_hybrid(kind, lm_head_multiplier=0.25)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    own = {"Granite": {"logits_scaling": 8.0}, "Cohere": {"logit_scale": 0.0625}}.get(kind, {})
    own |= {"word_embed_proj_dim": 32, "ffn_dim": 48} if kind == "OPT" else {}
    made = getattr(transformers, f"{kind}ForCausalLM")
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "ModernBertDecoder":
        ends |= {"cls_token_id": 1, "sep_token_id": 2}
    torch.manual_seed(0)
    return made(made.config_class(vocab_size=64, **sizes, **own, **ends)).eval()


@pytest.mark.parametrize(
    ("kind", "scale"),
    [("Llama", 1.0), ("OPT", 1.0), ("Granite", 1 / 8), ("Cohere", 1 / 16), ("FalconH1", 1 / 4),
     ("ModernBertDecoder", None)],
)  # fmt: skip
def test_without_its_head_a_model_gives_its_own_logits_all_the_same(kind: str, scale: float | None) -> None:
    """Those of Granite were eight times too sharp, and students were trained on them."""
    subject = open_subject(_scaled(kind))
    assert isinstance(subject, Decoder)
    batch, state = subject.example(2, 5), torch.random.get_rng_state()
    with torch.no_grad():
        for start in (subject, subject.copy()):
            whole, bare = start.forward(batch), start.forward(batch, head=False, hidden=True)
            given = bare.prediction if bare.head is None else bare.head(bare.prediction)
            torch.testing.assert_close(given, whole.prediction, rtol=1e-4, atol=1e-6)
            assert len(bare.hidden) == 3
            assert (bare.head is None) == (scale is None)
    assert logits.find_scale(subject.model) == (None if scale is None else pytest.approx(scale, rel=1e-5))
    assert torch.equal(state, torch.random.get_rng_state())
    assert subject.model.base_model_prefix not in vars(subject.model)
