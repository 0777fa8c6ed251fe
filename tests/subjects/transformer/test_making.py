"""The kind of subject follows the family."""

from __future__ import annotations

import pytest

from secateur.errors import UnsupportedError
from secateur.subjects.transformer.families import FAMILIES
from secateur.subjects.transformer.making import make_subject
from subjects.tiny import make


@pytest.mark.parametrize(("name", "kind"), [("bert", "Encoder"), ("llama", "Decoder"), ("mixtral", "Moe")])
def test_the_kind_of_subject(name: str, kind: str) -> None:
    model = make(name).model
    assert type(make_subject(model, FAMILIES[model.config.model_type])).__name__ == kind


def test_a_task_without_one_tensor_of_logits_is_refused() -> None:
    import transformers

    small = transformers.BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    with pytest.raises(UnsupportedError, match="BertForQuestionAnswering gives more or other than one tensor"):
        make_subject(transformers.BertForQuestionAnswering(small), FAMILIES["bert"])
