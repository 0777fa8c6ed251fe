"""Quality does not depend on how the data was cut into batches, and fidelity is what scipy says."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from secateur.errors import DataError, MeasurementError, NumericalError
from secateur.measure import quality, statistics

V = 50


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.5,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def texts():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, V, (length,), generator=generator) for length in (4, 9, 2, 14, 7, 11)]


def pad(texts, left=False):
    longest = max(len(text) for text in texts)
    ids, mask = torch.zeros(len(texts), longest, dtype=torch.long), torch.zeros(len(texts), longest, dtype=torch.long)
    for row, text in enumerate(texts):
        part = slice(longest - len(text), longest) if left else slice(0, len(text))
        ids[row, part], mask[row, part] = text, 1
    return {"input_ids": ids, "attention_mask": mask}


def forward(model):
    return lambda batch: model(**{k: v for k, v in batch.items() if k != "labels"})


def by_hand(model, texts):
    total, tokens = 0.0, 0
    for text in texts:
        with torch.no_grad():
            logits = model(input_ids=text[None]).logits[0].double()
        total += float(functional.cross_entropy(logits[:-1], text[1:], reduction="sum"))
        tokens += len(text) - 1
    return total / tokens


def test_perplexity_is_token_weighted_and_free_of_padding(model, texts):
    expected = by_hand(model, texts)
    one = quality.loss(forward(model), [pad(texts)])
    several = quality.loss(forward(model), [pad(texts[:1]), pad(texts[1:4]), pad(texts[4:])])
    assert one.value == pytest.approx(expected, rel=1e-5)
    assert several.value == pytest.approx(expected, rel=1e-5)
    assert several.low == pytest.approx(one.low, rel=1e-4)
    assert quality.perplexity(forward(model), [pad(texts)]).value == pytest.approx(math.exp(expected), rel=1e-5)


def test_the_chunk_changes_nothing(model, texts):
    values = [quality.loss(forward(model), [pad(texts)], chunk=chunk).value for chunk in (1, 7, 4096)]
    assert values == pytest.approx([values[0]] * 3, rel=1e-6)


def test_left_padding_predicts_no_padding_and_nothing_from_it(texts):
    uniform = quality.perplexity(lambda batch: torch.zeros(*batch["input_ids"].shape, V), [pad(texts, left=True)])
    assert uniform.value == pytest.approx(V)
    counted = []
    original = quality.functional.cross_entropy

    def count(logits, targets, **options):
        counted.append(len(targets))
        return original(logits, targets, **options)

    quality.functional.cross_entropy = count
    try:
        quality.loss(lambda batch: torch.zeros(*batch["input_ids"].shape, V), [pad(texts, left=True)])
    finally:
        quality.functional.cross_entropy = original
    assert sum(counted) == sum(len(text) - 1 for text in texts)


def test_labels_of_minus_100_do_not_count(model, texts):
    batch = pad(texts[:1])
    labels = batch["input_ids"].clone()
    labels[:, :3] = -100
    with torch.no_grad():
        logits = model(**batch).logits[0]
    expected = float(functional.cross_entropy(logits[2:3], texts[0][3:4]))
    assert quality.loss(forward(model), [{**batch, "labels": labels}]).value == pytest.approx(expected, rel=1e-5)


def test_the_interval_of_the_loss_covers_the_truth():
    """Sequences of a known mean: tokens with loss log(2) or log(8) by sequence; the mean over draws is covered."""
    rng = np.random.default_rng(0)
    truth = (math.log(2) + math.log(8)) / 2
    hits = 0
    for _ in range(300):
        levels = rng.choice([2.0, 8.0], size=30)
        sums = np.log(levels) * 10
        figure = statistics.per_item(sums, np.full(30, 10.0))
        hits += figure.low <= truth <= figure.high
    assert 0.91 <= hits / 300 <= 0.99


def test_not_a_number_is_named(texts):
    with pytest.raises(NumericalError, match="batch 0"):
        quality.loss(lambda batch: torch.full((*batch["input_ids"].shape, V), math.nan), [pad(texts)])


def test_nothing_to_predict_is_refused():
    with pytest.raises(DataError, match="no token"):
        quality.perplexity(lambda batch: torch.zeros(1, 1, V), [{"input_ids": torch.ones(1, 1, dtype=torch.long)}])
    with pytest.raises(DataError, match="no token"):
        quality.perplexity(lambda batch: batch, [])


def test_a_loss_beyond_floats_is_infinite_not_a_crash():
    logits = torch.zeros(1, 4, V)
    logits[..., 0] = 2000.0
    ids = torch.full((1, 4), 7)
    assert quality.perplexity(lambda batch: logits, [{"input_ids": ids}]).value == math.inf


def test_classification_by_hand():
    logits = torch.tensor([[2.0, 0, 0], [0, 2, 0], [2, 0, 0], [0, 2, 0]])
    batches = [{"labels": torch.tensor([0, 1])}, {"labels": torch.tensor([1, 1])}]
    parts = iter([logits[:2], logits[2:]])
    result = quality.classification(lambda batch: next(parts), batches)
    assert result["accuracy"].value == 0.75
    assert result["accuracy"].low < 0.75 < result["accuracy"].high
    assert result["f1"].value == pytest.approx((2 / 3 + 4 / 5) / 2)  # class 2 never occurs, so it does not count
    expected = functional.cross_entropy(logits, torch.tensor([0, 1, 1, 1]))
    assert result["loss"].value == pytest.approx(float(expected))


def test_tokens_without_a_label_do_not_count():
    logits = torch.tensor([[[2.0, 0, 0], [0, 2, 0], [9, 9, 9]]])
    result = quality.classification(lambda batch: logits, [{"labels": torch.tensor([[0, 2, -100]])}])
    assert (result["accuracy"].value, result["accuracy"].samples) == (0.5, 2)
    assert result["loss"].value == pytest.approx(float(functional.cross_entropy(logits[0, :2], torch.tensor([0, 2]))))


def test_several_models_are_judged_in_one_pass_each_and_watched(texts):
    calls, seen = [], []

    def model(name, scale):
        def forward(batch):
            calls.append(name)
            return scale * functional.one_hot(batch["input_ids"], V).float()

        return forward

    forwards, items = [model("a", 1.0), model("b", 3.0)], [pad(texts[:2]), pad(texts[2:4])]
    both = quality.perplexities(forwards, items, watch=lambda found, batch: seen.append((found, batch)))
    assert calls == ["a", "b", "a", "b"]
    assert [figure.value for figure in both] == [quality.perplexity(one, items).value for one in forwards]
    assert [batch is item for (_, batch), item in zip(seen, items, strict=True)] == [True, True]
    assert torch.equal(seen[1][0][1], 3.0 * seen[1][0][0])
    rows = [{"labels": torch.tensor([0, 1]), "input_ids": torch.tensor([0, 2])}]
    pair = quality.accuracies(forwards, rows, watch=lambda found, batch: seen.append((found, batch)))
    assert [figure.value for figure in pair] == [0.5, 0.5]
    assert seen[-1][1] is rows[0]


def test_classification_without_labels_is_refused():
    with pytest.raises(DataError, match="no labels"):
        quality.accuracy(lambda batch: torch.zeros(1, 2), [{"input_ids": torch.ones(1, 1)}])
    with pytest.raises(DataError, match="expected"):
        quality.accuracy(lambda batch: torch.zeros(3, 2), [{"labels": torch.ones(2, dtype=torch.long)}])


@pytest.fixture(scope="module")
def embeddings():
    torch.manual_seed(3)
    teacher = torch.randn(200, 24)
    return teacher, teacher + 0.4 * torch.randn(200, 24)


def test_fidelity_is_scipys_spearman_of_the_upper_triangle(embeddings):
    teacher, student = embeddings
    above = np.triu_indices(len(teacher), 1)
    similarities = [functional.normalize(e).double().numpy() for e in (teacher, student)]
    expected = stats.spearmanr(*[(e @ e.T)[above] for e in similarities]).statistic
    result = quality.fidelity(teacher, student)
    assert result["spearman"].value == pytest.approx(expected, abs=1e-5)
    assert result["spearman"].low < expected < result["spearman"].high
    assert result["cosine"].value == pytest.approx(
        float(functional.cosine_similarity(teacher, student).mean()), abs=1e-6
    )


def test_the_jackknife_matches_leaving_sentences_out_for_real(embeddings):
    teacher, student = (e[:40] for e in embeddings)
    rho, error = quality._jackknife(*(quality._ranks(functional.normalize(e)) for e in (teacher, student)), 40)
    z = []
    for left in range(40):
        stays = [i for i in range(40) if i != left]
        z.append(math.atanh(quality.fidelity(teacher[stays], student[stays])["spearman"].value))
    assert error == pytest.approx(math.sqrt(39 / 40 * np.sum((np.array(z) - np.mean(z)) ** 2)), rel=0.1)
    assert rho == pytest.approx(quality.fidelity(teacher, student)["spearman"].value)


def test_fidelity_is_blind_to_rotation_and_width(embeddings):
    teacher, _ = embeddings
    rotation = nn.init.orthogonal_(torch.empty(24, 24))
    turned = quality.fidelity(teacher, teacher @ rotation * 3.0)
    assert turned["spearman"].value == pytest.approx(1.0, abs=1e-4)
    assert abs(turned["cosine"].value) < 0.5
    assert "cosine" not in quality.fidelity(teacher, teacher[:, :12])


def test_fidelity_takes_evenly_spaced_sentences_above_the_limit(embeddings):
    teacher, student = embeddings
    assert quality.fidelity(teacher, student, most=50)["spearman"].samples == 50


def test_bad_embeddings_are_refused(embeddings):
    teacher, student = embeddings
    with pytest.raises(MeasurementError, match="expected"):
        quality.fidelity(teacher, student[:10])
    with pytest.raises(NumericalError):
        quality.fidelity(teacher, student * math.nan)
    with pytest.raises(MeasurementError, match="collapsed"):
        quality.fidelity(teacher, torch.ones_like(student))
