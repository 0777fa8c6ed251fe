"""Several teachers: means that equal the plain formula, one alone exactly, choices per sample, caches joined."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recover.students import VOCABULARY, Batches, forward, llama
from secateur.errors import DataError, InputError, UnsupportedError
from secateur.recover.distillation import ensembles, losses, teachers
from secateur.recover.training import loop, objectives

BATCH = Batches()[0]
MASK = BATCH["attention_mask"].bool()
TOTALS = objectives.count(BATCH)


def saying(prediction, causal=False):
    return lambda batch, *, hidden=False, head=True: SimpleNamespace(prediction=prediction, hidden=(), causal=causal)


def sure(seed, scale=6.0, **how):
    """A teacher with opinions: random ones hardly differ from the mean."""
    model = llama(seed, **how)
    model.lm_head.weight.data *= scale
    return model


def distilled(teacher, **how):
    """Loss and the student's gradient."""
    student = llama(9)
    loss, _ = objectives.distil(forward(student), teacher, output="logits", **how)(BATCH, TOTALS)
    return loss, torch.autograd.grad(loss, student.lm_head.weight)[0]


# ----------------------------------------------------------------------------------------------------------- averaged


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("direction", ["forward", "reverse", "js"])
def test_the_mean_of_teachers_is_the_mean_of_their_probabilities(temperature, direction):
    both = [sure(1), sure(2)]
    mixed = ensembles.Averaged([forward(one) for one in both], [1, 3], temperature=temperature)
    with torch.no_grad():
        parts = [functional.softmax(one(**BATCH).logits / temperature, -1) for one in both]
    plain = (0.25 * parts[0] + 0.75 * parts[1]).log() * temperature
    found, wanted = (distilled(one, temperature=temperature, direction=direction) for one in (mixed, saying(plain)))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_all_weight_on_the_first_is_exactly_the_first(fused):
    def never(batch, **how):
        raise AssertionError("a teacher of weight 0 was asked")

    one = forward(sure(1))
    found = distilled(ensembles.Averaged([one, never], [1, 0], temperature=2.0), temperature=2.0, fused=fused)
    wanted = distilled(one, temperature=2.0, fused=fused)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_through_the_heads_it_is_the_same_mean_though_the_teachers_widths_differ(softcap):
    both = [forward(sure(1), softcap), forward(sure(2, width=64))]
    mixed = ensembles.Averaged(both, [2, 1], temperature=2.0)
    found, wanted = (distilled(mixed, temperature=2.0, task=0.5, fused=fused) for fused in (True, False))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_teachers_that_differ_by_padding_need_the_shared_vocabulary():
    both = [forward(sure(1)), forward(sure(2, vocabulary=VOCABULARY + 8))]
    for head in (True, False):
        with torch.no_grad(), pytest.raises(InputError, match="vocabulary=") as caught:
            ensembles.Averaged(both)(BATCH, head=head)
        assert "\n" not in str(caught.value)
    mixed = ensembles.Averaged(both, vocabulary=VOCABULARY)
    found, wanted = (distilled(mixed, fused=fused) for fused in (True, False))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


class Largest(TorchDispatchMode):
    """The most elements of any float32 tensor that was computed meanwhile, and how many such large ones there were."""

    def __init__(self, large):
        super().__init__()
        self.large, self.elements, self.count = large, 0, 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        found = function(*arguments, **(options or {}))
        made = [leaf for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float32]
        self.elements = max([self.elements, *(tensor.numel() for tensor in made)])
        fresh = function.overloadpacket in (torch.ops.aten.empty, torch.ops.aten._log_softmax, torch.ops.aten._to_copy)
        self.count += sum(tensor.numel() >= self.large for tensor in made) if fresh else 0
        return found


def test_no_second_float32_matrix_of_the_vocabulary_is_made():
    tokens, vocabulary = 128, 2**16
    logits = [torch.randn(1, tokens, vocabulary).bfloat16() for _ in range(3)]
    with torch.no_grad(), Largest(tokens * vocabulary) as largest:
        ensembles.Averaged([saying(one, causal=True) for one in logits])({})
    assert largest.count == 1


def test_through_the_heads_no_matrix_of_the_vocabulary_is_made():
    tokens, vocabulary = 160, 2**17
    heads = [torch.nn.Linear(2, vocabulary, bias=False) for _ in range(3)]
    mixture = ensembles.Mixture(heads[1:], [None, None], [2, 2], [0.5, 0.5], 1.0, None)
    hidden = torch.randn(tokens, 2, requires_grad=True)
    with Largest(tokens * vocabulary) as largest:
        losses.kl_from_hidden(hidden, heads[0], torch.randn(tokens, 4), mixture).backward()
    assert 0 < largest.elements <= 2**24 < tokens * vocabulary


def test_a_student_learns_from_the_mean_of_two_teachers():
    student, both = llama(9), [sure(1), sure(2)]
    mixed = ensembles.Averaged([forward(one) for one in both])
    objective = objectives.distil(forward(student), mixed, output="logits", fused=True)
    done = loop.train(student, Batches(8), objective, steps=60, lr=1e-2, frozen=both)
    assert done.losses[-1][1] < 0.8 * done.losses[0][1]


@pytest.mark.parametrize("weights", [[1], [0, 0], [-1, 2], [float("nan"), 1], [float("inf"), 1], []])
def test_weights_that_make_no_mean_are_refused(weights):
    with pytest.raises(InputError, match=r"give (one for each|numbers of at least 0, one above)"):
        ensembles.Averaged([saying(None)] * 2, weights)


def test_classes_that_differ_and_hidden_states_are_refused():
    mixed = ensembles.Averaged([saying(torch.zeros(2, 3)), saying(torch.zeros(2, 4))])
    with pytest.raises(InputError, match="same classes"):
        mixed({})
    with pytest.raises(UnsupportedError, match="hidden states"):
        mixed({}, hidden=True)
    with pytest.raises(InputError, match="temperature=0"):
        ensembles.Averaged([saying(None)], temperature=0)


# ------------------------------------------------------------------------------------------------------------- chosen


def test_the_teacher_that_knows_a_samples_label_best_answers_for_it():
    one, other = torch.tensor([[4.0, 0, 0], [0, 2, 0], [0, 0, 1]]), torch.tensor([[1.0, 0, 0], [0, 0, 3], [0, 0, 9]])
    batch = {"labels": torch.tensor([0, 1, 2])}
    found = ensembles.Chosen([saying(one), saying(other)])(batch).prediction
    assert torch.equal(found, torch.stack([one[0], one[1], other[2]]))
    sureness = ensembles.Chosen([saying(one), saying(other)], by="confidence")({}).prediction
    assert torch.equal(sureness, torch.stack([one[0], other[1], other[2]]))
    tie = ensembles.Chosen([saying(one), saying(one.clone())])(batch).prediction
    assert torch.equal(tie, one)


def test_a_language_models_sample_is_a_sequence_and_padding_says_nothing():
    both = [sure(1), sure(2)]
    with torch.no_grad():
        logits = [one(**BATCH).logits for one in both]
        labels = losses.next_tokens(BATCH["input_ids"], MASK)
        rows = [functional.cross_entropy(x.transpose(1, 2), labels, reduction="none").sum(-1) for x in logits]
        best = torch.where((rows[0] <= rows[1])[:, None, None], *logits)
        found = ensembles.Chosen([forward(one) for one in both])(BATCH).prediction
        assert torch.equal(found, best)
        sureness = [torch.where(MASK, x.log_softmax(-1).amax(-1), 0).sum(-1) / MASK.sum(-1) for x in logits]
        best = torch.where((sureness[0] >= sureness[1])[:, None, None], *logits)
        for poison in (0.0, 100.0):  # what stands in the padding changes nothing
            other = copy.copy(logits[1])
            other = torch.where(MASK[..., None], other, poison * other)
            given = [saying(logits[0], causal=True), saying(other, causal=True)]
            found = ensembles.Chosen(given, by="confidence")(BATCH).prediction
            assert torch.equal(found[MASK], best[MASK])


@pytest.mark.parametrize("by", ["label", "confidence"])
def test_a_choice_among_teachers_that_differ_by_padding_is_that_without_it(by):
    both = [sure(1), sure(2, vocabulary=VOCABULARY + 8)]
    with torch.no_grad():
        logits = [one(**BATCH).logits for one in both]
        wanted = ensembles.Chosen([saying(one[..., :VOCABULARY], causal=True) for one in logits], by)(BATCH)
        given = [saying(logits[0], causal=True), saying(logits[1], causal=True)]
        found = ensembles.Chosen(given, by, vocabulary=VOCABULARY)(BATCH)
        assert torch.equal(found.prediction, wanted.prediction)
        with pytest.raises(InputError, match="or vocabulary= where only padding differs"):
            ensembles.Chosen(given, by)(BATCH)


def test_a_choice_by_labels_that_are_none_of_the_predictions_is_refused():
    chosen = ensembles.Chosen([saying(torch.zeros(2, 3)), saying(torch.zeros(2, 3))])
    with pytest.raises(InputError, match="label 3 is none of 3 classes"):
        chosen({"labels": torch.tensor([0, 3])})
    chosen = ensembles.Chosen([saying(torch.zeros(2, 4, 3))])
    with pytest.raises(InputError, match=r"give labels \[2, 4\], -100 where there is none"):
        chosen({"labels": torch.tensor([0, 1])})


def test_teachers_of_one_number_have_no_mean():
    with pytest.raises(UnsupportedError, match="one number each has no mean"):
        ensembles.Averaged([saying(torch.zeros(2, 1)), saying(torch.ones(2, 1))])(BATCH)


def test_what_a_choice_needs_and_can_not_give_is_said():
    chosen = ensembles.Chosen([saying(torch.zeros(2, 3)), saying(torch.zeros(2, 4))])
    with pytest.raises(InputError, match="same classes"):
        chosen({"labels": torch.tensor([0, 1])})
    with pytest.raises(InputError, match="choose by confidence"):
        chosen({})
    for how in ({"hidden": True}, {"head": False}):
        with pytest.raises(UnsupportedError, match="predictions only"):
            chosen({}, **how)
    with pytest.raises(InputError, match="'label' or 'confidence'"):
        ensembles.Chosen([saying(None)], by="luck")
    with pytest.raises(InputError, match="at least one"):
        ensembles.Chosen([])


# ------------------------------------------------------------------------------------------------------------- caches


def cached(folder, model, k, temperature=1.0, batches=None, count=2):
    ask = teachers.live(model)
    key = {"teacher": teachers.fingerprint(model)}
    return teachers.cache_topk(
        folder, lambda batch: ask(batch).logits, batches or Batches(), count, key=key, k=k, temperature=temperature
    )


def loss_of(entry, logits, temperature=1.0):
    found = losses.topk_kl(logits, **entry, mask=BATCH["attention_mask"], temperature=temperature)
    return found, torch.autograd.grad(found, logits, retain_graph=True)[0]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_caches_of_all_tokens_have_the_mean_of_the_live_teachers(tmp_path, temperature):
    both, logits = [sure(1), sure(2)], llama(9)(**BATCH).logits
    caches = [cached(tmp_path / str(i), one, VOCABULARY, temperature) for i, one in enumerate(both)]
    entry = ensembles.Blended(caches, [1, 3])[0]
    live = ensembles.Averaged([forward(one) for one in both], [1, 3], temperature=temperature)
    with torch.no_grad():
        target = live(BATCH).prediction
    wanted = losses.kl(logits, target, BATCH["attention_mask"], temperature=temperature)
    gradient = torch.autograd.grad(wanted, logits, retain_graph=True)[0]
    found, other = loss_of(entry, logits, temperature)
    assert found.item() == pytest.approx(wanted.item(), rel=5e-3)
    torch.testing.assert_close(other, gradient, atol=2e-4, rtol=2e-2)


def test_few_tokens_each_are_one_distribution_over_all_of_them_and_the_rest(tmp_path):
    both = [sure(1), sure(2)]
    caches = [cached(tmp_path / str(i), one, 5) for i, one in enumerate(both)]
    blended = ensembles.Blended(caches, [1, 3])
    assert len(blended) == 2
    entry, parts = blended[0], [cache[0] for cache in caches]
    mass = entry["log_probabilities"].exp().sum(-1) + entry["remaining"].exp()
    torch.testing.assert_close(mass, torch.ones_like(mass))
    for row in range(len(mass)):
        plain = {}
        for share, part in zip((0.25, 0.75), parts, strict=True):
            for token, value in zip(part["indices"][row].tolist(), part["log_probabilities"][row], strict=True):
                plain[token] = plain.get(token, 0.0) + share * float(value.exp())
        ours = {}
        for token, value in zip(entry["indices"][row].tolist(), entry["log_probabilities"][row], strict=True):
            ours[token] = ours.get(token, 0.0) + float(value.exp())
        assert ours == pytest.approx(plain, abs=1e-6)
    # A token named twice is counted once, and its gradient is right: as by autograd over k + 1 events.
    logits = llama(9)(**BATCH).logits
    found, gradient = loss_of(entry, logits)
    probability, rest = torch.zeros(len(mass), VOCABULARY), entry["remaining"].exp()
    probability.scatter_add_(-1, entry["indices"], entry["log_probabilities"].exp())
    named = torch.zeros_like(probability).scatter_(-1, entry["indices"], 1.0).bool()
    log_q = logits[MASK].log_softmax(-1)
    outside = log_q.masked_fill(named, -torch.inf).logsumexp(-1)
    inside = torch.where(named & (probability > 0), probability * (probability.log() - log_q), 0).nan_to_num()
    plain = inside.sum() + (rest * (rest.log() - outside)).sum()
    assert found.item() == pytest.approx(plain.item(), rel=1e-5)
    torch.testing.assert_close(gradient, torch.autograd.grad(plain, logits)[0], rtol=1e-4, atol=1e-6)


def test_all_weight_on_one_cache_is_that_cache(tmp_path):
    caches = [cached(tmp_path / str(seed), sure(seed), 5) for seed in (1, 2)]
    one, other = ensembles.Blended(caches, [0, 1])[1], caches[1][1]
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_blended_caches_serve_the_objective(tmp_path):
    caches = [cached(tmp_path / str(seed), sure(seed), 8) for seed in (1, 2)]
    joined = teachers.Joined(Batches(), ensembles.Blended(caches))
    student = llama(9)
    objective = objectives.distil(forward(student), None, output="logits", fused=True)
    loss, parts = objective(joined[0], TOTALS)
    assert loss.item() == pytest.approx(loss_of(ensembles.Blended(caches)[0], student(**BATCH).logits)[0].item()
                                        / TOTALS["tokens"], rel=1e-5)  # fmt: skip
    assert parts["logit"] == pytest.approx(loss.item())


def test_caches_of_other_temperatures_or_batches_are_refused(tmp_path):
    one = cached(tmp_path / "one", sure(1), 4)
    with pytest.raises(InputError, match="temperatures 1 and 2"):
        ensembles.Blended([one, cached(tmp_path / "warm", sure(2), 4, temperature=2.0)])
    long = cached(tmp_path / "long", sure(2), 4, batches=Batches(length=20))
    with pytest.raises(DataError, match="same batches"):
        ensembles.Blended([one, long])[0]
