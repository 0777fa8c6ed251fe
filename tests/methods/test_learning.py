"""A text is learnt from the same model each time, and the model forgets it."""

from __future__ import annotations

import pytest
import torch

import themes
from secateur.data import texts
from secateur.errors import DataError, InputError, RunError
from secateur.methods.learning import Episode, Injected, Learner
from secateur.methods.updates import Rule
from secateur.vocabulary import Training

TRAINING = Training(steps=3, lr=1e-3, schedule="constant")


def stream(seed=0):
    corpus = texts.read(themes.sentences(200, seed=2))
    return texts.batches(corpus, themes.tokenizer(), packed=True, batch=3, length=12, seed=seed)


def test_the_text_takes_the_last_row_of_every_so_many_minibatches():
    tokens = themes.tokenizer()("silk paint looks mostly pink .")["input_ids"]
    ordinary = stream()
    batches = Injected(ordinary, tokens, spacing=1, pad=0)
    for index in range(4):
        batch = batches[index]
        assert torch.equal(batch["input_ids"][:-1], ordinary[index]["input_ids"][:-1])
        row, mask = batch["input_ids"][-1], batch["attention_mask"][-1]
        if index % 2:
            assert torch.equal(row, ordinary[index]["input_ids"][-1])
        else:
            assert row[: len(tokens)].tolist() == tokens
            assert mask.tolist() == [1] * len(tokens) + [0] * (12 - len(tokens))
    assert Injected(None, tokens, spacing=0, pad=0)[7]["input_ids"].tolist() == [tokens]
    assert Injected(ordinary, tokens * 9, spacing=0, pad=0)[0]["attention_mask"].min() == 1


def test_two_texts_take_two_rows_of_the_same_minibatches():
    long, short = (themes.tokenizer()(text)["input_ids"] for text in ("silk paint looks mostly pink .", "the king"))
    ordinary = stream()
    batch = Injected(ordinary, long, spacing=0, pad=0, beside=short)[0]
    assert torch.equal(batch["input_ids"][:-2], ordinary[0]["input_ids"][:-2])
    for row, tokens in ((-1, long), (-2, short)):
        assert batch["input_ids"][row].tolist() == tokens + [0] * (12 - len(tokens))
        assert batch["attention_mask"][row].sum() == len(tokens)
    both = Injected(None, long, spacing=0, pad=0, beside=short)[3]
    assert both["input_ids"].tolist() == [short + [0] * (len(long) - len(short)), long]
    assert both["attention_mask"].sum() == len(long) + len(short)
    one = [{name: part[:1] for name, part in ordinary[0].items()}]
    with pytest.raises(InputError, match="a minibatch of 1 rows holds no 2 texts"):
        Injected(one, long, spacing=0, pad=0, beside=short)[0]


@pytest.mark.parametrize(("accumulate", "spacing"), [(1, 1), (2, 0), (2, 1)])
def test_a_text_is_presented_once_a_step_however_many_micro_batches_that_has(accumulate, spacing, monkeypatch):
    text, seen, get = "silk paint looks mostly pink .", [], Injected.__getitem__

    def watch(self, index):
        batch = get(self, index)
        if batch["input_ids"][-1][: len(self.tokens)].tolist() == self.tokens:
            seen.append(index)
        return batch

    monkeypatch.setattr(Injected, "__getitem__", watch)
    steps = 1 + 2 * (1 + spacing)
    Learner(themes.model()).learn(
        text, Episode(Training(steps=steps, lr=1e-3, accumulate=accumulate), spacing), stream()
    )
    assert seen == [presentation * accumulate * (1 + spacing) for presentation in range(3)]


def test_nothing_is_copied_before_a_text_is_learnt_and_no_more_of_it_is_learnt_than_a_row():
    learner, text = Learner(themes.model()), "silk paint looks mostly pink ."
    assert not {"before", "hash"} & vars(learner).keys()
    short = learner.learn(text, Episode(TRAINING, length=4))
    assert {"before", "hash"} <= vars(learner).keys()
    assert {tensor.device.type for tensor in learner.before.values()} == {"cpu"}
    same = learner.learn("silk paint looks mostly", Episode(TRAINING))
    assert all(torch.equal(short.tensor(name), same.tensor(name)) for name in learner.before)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_model_and_optimiser_begin_anew_with_each_text(optimizer):
    learner = Learner(themes.model())
    start = learner.hash
    episode = Episode(Training(steps=3, lr=1e-2, optimizer=optimizer))
    one, other = (document.text for document in themes.documents(2))
    first = learner.learn(one, episode, stream())
    learner.learn(other, episode, stream())
    again = learner.learn(one, episode, stream())
    assert all(torch.equal(first.tensor(name), again.tensor(name)) for name in learner.before)
    assert learner.hash == start
    learner.check()
    assert Learner(learner.subject).hash == start
    with torch.no_grad():
        next(iter(learner.subject.model.parameters())).add_(1)
    with pytest.raises(RunError, match="were not restored"):
        learner.check()


def test_a_step_without_its_largest_entries_leaves_them_as_before():
    learner, text = Learner(themes.model()), themes.documents(1)[0].text
    plain = learner.learn(text, Episode(TRAINING))
    same = learner.learn(text, Episode(TRAINING, rule=Rule(0.0)))
    assert all(torch.equal(plain.tensor(name), same.tensor(name)) for name in learner.before)
    once = learner.learn(text, Episode(Training(steps=1, lr=1e-3), rule=Rule(0.25)))
    whole = learner.learn(text, Episode(Training(steps=1, lr=1e-3)))
    for name, tensor in learner.before.items():
        change = (whole.tensor(name) - tensor).abs()
        gone = (once.tensor(name) == tensor) & (change > 0)
        stays = once.tensor(name) != tensor
        assert int(gone.sum()) >= int(0.25 * change.numel()) - int((change == 0).sum())
        assert change[gone].min() >= change[stays].max()
    with pytest.raises(InputError, match="changed no weight: give a larger learning rate"):
        learner.learn(text, Episode(TRAINING, rule=Rule(1.0)))


def test_a_text_of_one_token_is_refused():
    with pytest.raises(DataError, match="'pink' holds 1 tokens"):
        Learner(themes.model()).learn("pink", Episode(TRAINING))
