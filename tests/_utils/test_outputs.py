import torch
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from secateur._utils.outputs import leaves


def test_outputs_beside_the_main_one_are_told_apart() -> None:

    logits, states = torch.zeros(1), torch.ones(1)
    main, side = leaves(Seq2SeqLMOutput(logits=logits, encoder_last_hidden_state=states))
    assert main[0] is logits
    assert side[0] is states
    assert leaves(BaseModelOutput(last_hidden_state=states))[0][0] is states
    assert len(leaves({"a": logits, "b": [states, (states,)]})[0]) == 3
