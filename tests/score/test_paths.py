import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

import tiny
from secateur.errors import InputError, NumericalError
from secateur.score import paths

PROMPT = [2, 9, 11, 30]


@pytest.fixture(scope="module", params=["llama", "gpt2", "mixtral"])
def model(request):
    return tiny.model(request.param).eval()


@torch.no_grad()
def by_hand(model, prompt, given):
    """Straight from the equation: one forward pass per path and token, no tree, no cache."""
    found = []
    for path in given:
        total = 0.0
        for place, token in enumerate(path):
            onward = sorted(
                {other[place] for other in given if len(other) > place and list(other[:place]) == list(path[:place])}
            )
            logits = model(torch.tensor([[*prompt, *path[:place]]])).logits[0, -1].double()
            share = float((logits[token] - logits[onward].logsumexp(0)).exp())
            total += math.log(max(share, 1e-9))
        found.append(total)
    return found


LLAMA = tiny.model("llama").eval()
PATHS = st.lists(st.lists(st.integers(5, 9), max_size=5), min_size=1, max_size=8)


@pytest.mark.parametrize("cache", [True, False])
@given(given_paths=PATHS)
@settings(max_examples=12, deadline=None)
def test_likelihood_is_its_equation(model, cache, given_paths):
    found = paths.likelihood(model, PROMPT, given_paths, cache=cache)
    assert found.values.tolist() == pytest.approx(by_hand(model, PROMPT, given_paths), abs=1e-4)


@given(given_paths=PATHS)
@settings(max_examples=40, deadline=None)
def test_the_model_is_called_once_where_paths_part(given_paths):
    model = LLAMA
    onward: dict[tuple, set] = {}
    for path in given_paths:
        for place in range(len(path)):
            onward.setdefault(tuple(path[:place]), set()).add(path[place])
    parting = [prefix for prefix, tokens in onward.items() if len(tokens) > 1]
    found = paths.likelihood(model, PROMPT, given_paths)
    assert found.calls == len(parting)
    again = paths.likelihood(model, PROMPT, given_paths, cache=False)
    assert again.calls == found.calls
    assert again.tokens == sum(len(PROMPT) + len(prefix) for prefix in parting)
    assert found.tokens <= again.tokens


@pytest.mark.parametrize("window", [4, 6, 100])
@given(given_paths=PATHS)
@settings(max_examples=10, deadline=None)
def test_a_window_that_slides_over_the_page_alters_nothing(window, given_paths):
    torch.manual_seed(0)
    shape = dict(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
    )
    config = Gemma3TextConfig(vocab_size=64, head_dim=16, sliding_window=window, sliding_window_pattern=2, **shape)
    model = Gemma3ForCausalLM(config).eval()
    found, again = (paths.likelihood(model, PROMPT, given_paths, cache=cache) for cache in (True, False))
    assert found.values.tolist() == pytest.approx(again.values.tolist(), abs=1e-4)
    assert found.calls == again.calls
    assert found.tokens <= again.tokens


def test_a_model_in_training_is_asked_without_dropout():
    model = tiny.model("gpt2").train()
    given = [[5, 6], [5, 7], [8]]
    assert torch.equal(*(paths.likelihood(model, PROMPT, given).values for _ in range(2)))
    assert model.training


def test_siblings_share_one(model):
    found = paths.likelihood(model, PROMPT, [[5, 6], [5, 7], [5, 8, 9], [10]])
    assert float(found.values.exp().sum()) == pytest.approx(1.0)


def test_one_path_needs_no_model():
    found = paths.likelihood(None, PROMPT, [[5, 6, 7]])
    assert (found.values.tolist(), found.calls, found.tokens) == ([0.0], 0, 0)


def test_the_prompt_is_read_once(model):
    prompt = PROMPT * 8
    found = paths.likelihood(model, prompt, [[5, 6, t] for t in range(5, 9)] + [[7, 8, t] for t in range(5, 9)])
    assert found.calls == 3
    assert found.tokens == len(prompt) + 2 + 2


def test_what_a_model_rules_out_counts_the_floor_and_no_less():
    class Sure:
        device = torch.device("cpu")

        def __call__(self, ids, **_):
            logits = torch.full((1, 1, 12), -1e4)
            logits[..., 5] = 0.0
            return type("Out", (), {"logits": logits})

    found = paths.likelihood(Sure(), PROMPT, [[5, 5], [6, 5], [6, 6]], cache=False)
    assert found.values.tolist() == pytest.approx([0.0, math.log(1e-9), 2 * math.log(1e-9)], abs=1e-6)


def test_bad_input_is_one_line():
    with pytest.raises(InputError, match="prompt is empty"):
        paths.likelihood(None, [], [[5], [6]])
    broken = tiny.model("llama").eval()
    with torch.no_grad():
        broken.lm_head.weight.fill_(math.nan)
    with pytest.raises(NumericalError, match="not finite"):
        paths.likelihood(broken, PROMPT, [[5], [6]])
