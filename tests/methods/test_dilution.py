"""What is learnt, remembered and primed, and what parts of the update do to that."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import transformers

import themes
import tiny
from secateur.data import texts
from secateur.measure import likelihood
from secateur.methods import dilution
from secateur.methods.dilution import Dilution, name_way
from secateur.methods.learning import Document, Episode, Learner
from secateur.subjects import open_subject
from secateur.vocabulary import Training

PROMPTS = {theme: [f"{prompt} " for prompt in prompts] for theme, prompts in themes.PROMPTS.items()}


def work(subject=None, **changed):
    corpus = texts.read(themes.sentences(300, seed=2))
    subject = subject or themes.model()

    def stream(seed):
        return texts.batches(corpus, subject.tokenizer, packed=True, batch=4, length=12, seed=seed)

    settings = dict(
        prompts=PROMPTS, stream=stream, held=stream(9).take(2), training=Training(lr=5e-3, schedule="constant"),
        presentations=3, spacing=0, k=(0.08,), scope="tensor", when="end", rates=(0.5,), clips=(0.05,),
    )  # fmt: skip
    return Dilution(Learner(subject), **{**settings, **changed})


def test_nothing_learnt_changes_nothing():
    study, (document, other) = work(), themes.documents(2)
    before, after = (study.probe(document, other, in_context=True) for _ in range(2))
    learnt = dilution.Learnt(before, {"untouched": after}, None, {})
    assert learnt.memory("untouched") == dilution.Shift(0.0, 0.0)
    assert learnt.priming("untouched", 0.0) == dilution.Shift(0.0, 0.0, len(before.prompts))
    assert len(before.prompts) == len(PROMPTS[document.theme]) == len(before.in_context)
    assert len(before.control) == len(PROMPTS[other.theme])


def test_a_keyword_of_several_tokens_has_the_product_of_their_probabilities():
    torch.manual_seed(0)
    config = tiny.model("llama").config
    config.vocab_size = len(tiny.letters())
    subject = open_subject(type(tiny.model("llama"))(config).eval(), tokenizer=tiny.letters())
    document = Document("it was mauve .", "mauve", 7)
    ids = torch.tensor([subject.tokenizer("it was mauve")["input_ids"]])
    with torch.no_grad():
        logs = subject.model(ids).logits[0].log_softmax(-1)
    # The blank before the word goes with it, as tokenizers of words have it.
    wanted = sum(float(logs[place - 1, ids[0, place]]) for place in range(len("it was"), ids.shape[1]))
    assert work(subject).scan([document])[0] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("when", ["end", "step"])
def test_all_ways_of_treating_an_update_are_judged_and_the_model_is_restored(when):
    study = work(when=when)
    rare, other = themes.documents(8)[7], themes.documents(8)[0]
    learnt = study.learn(rare, other, 0)
    ways = ["largest", "scaled", "random", "smallest"]
    expected = {dilution.TRAINED, dilution.KEPT, *(name_way(way, 0.08) for way in ways)}
    assert set(learnt.after) == set(learnt.loss) == expected | {name_way("rate", 0.5), name_way("clip", 0.05)}
    trained, dropped = (learnt.memory(way).log_ratio for way in (dilution.TRAINED, name_way("largest", 0.08)))
    assert trained > dropped > 0
    assert learnt.priming(dilution.TRAINED, 0.0).log_ratio > learnt.control(dilution.TRAINED, 0.0).log_ratio
    assert learnt.memory(name_way("rate", 0.5)).log_ratio < trained
    study.learner.check()
    plain = study.learn(rare, None, 0, all_ways=False)
    assert set(plain.after) == {dilution.TRAINED}
    assert plain.after[dilution.TRAINED].own == learnt.after[dilution.TRAINED].own
    assert plain.control(dilution.TRAINED, 0.0) is None
    assert dataclasses.replace(learnt.before, control=[]) == plain.before


def test_each_way_leaves_the_weights_that_its_name_says():
    study, document = work(clips=(0.001,)), themes.documents(8)[7]
    arms, before = dict(study._ways(document, 0)), study.learner.before
    trained = arms[dilution.TRAINED]

    def length(way):
        return sum(float((arms[way][name] - before[name]).square().sum()) for name in before) ** 0.5

    assert length(name_way("scaled", 0.08)) == pytest.approx(length(name_way("largest", 0.08)), rel=2e-3)
    assert length(name_way("scaled", 0.08)) < 0.95 * length(dilution.TRAINED)
    for name, tensor in before.items():
        change = (trained[name] - tensor).abs()
        for way, extreme in (("largest", change.max()), ("smallest", change.min())):
            left = arms[name_way(way, 0.08)][name]
            gone = (left == tensor) & (change > 0)
            assert torch.equal(left[~gone], trained[name][~gone])
            if way == "largest" and extreme > 0 and int(0.08 * change.numel()):
                assert change[gone].min() >= change[~gone].max()
            elif gone.any():
                assert change[gone].max() <= change[~gone].min() or change[gone].max() == change[~gone].min()
        kept = arms[dilution.KEPT][name] != tensor
        assert int(kept.sum()) <= int(0.15 * change.numel())
    random = [name_way(way, 0.08) for way in ("random", "smallest", "largest")]
    assert length(random[1]) > length(random[0]) > length(random[2])
    for way, training in (
        (name_way("clip", 0.001), dataclasses.replace(study.training, clip=0.001)),
        (name_way("rate", 0.5), dataclasses.replace(study.training, lr=2.5e-3)),
    ):
        wanted = study.learner.learn(
            document.text, Episode(dataclasses.replace(training, steps=3), 0, 0), study.stream(0)
        )
        assert all(torch.equal(arms[way][name], wanted.tensor(name)) for name in before), way
        assert any(not torch.equal(arms[way][name], trained[name]) for name in before), way


def test_probes_ask_for_the_keyword_behind_the_text_and_for_that_of_the_other_text():
    study, (document, other) = work(), themes.documents(2)
    found = study.probe(document, other, in_context=True)
    asked = study.log_probabilities
    assert found.own == pytest.approx(asked([(document.context, document.keyword)])[0])
    behind = [(f"{document.text} {prompt}", document.keyword) for prompt in PROMPTS[document.theme]]
    assert found.in_context == pytest.approx(asked(behind))
    assert found.control == pytest.approx(asked([(prompt, other.keyword) for prompt in PROMPTS[other.theme]]))
    assert found.prompts == pytest.approx(asked([(prompt, document.keyword) for prompt in PROMPTS[document.theme]]))


@pytest.mark.parametrize("name", ["GPT2", "OpenAIGPT"])  # whose tables of positions have other names
def test_logits_are_of_the_places_that_count_and_contexts_of_the_model_s_positions(monkeypatch, name):
    tokenizer = themes.tokenizer()
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = getattr(transformers, f"{name}LMHeadModel")(getattr(transformers, f"{name}Config")(**sizes))
    study, widths = work(open_subject(model.eval(), tokenizer=tokenizer), held=()), []
    read = likelihood.read_logits
    monkeypatch.setattr(likelihood, "read_logits", lambda output: widths.append(read(output).shape[-1]) or read(output))
    long, short = ("the silk is red . " * 3, "red"), ("the silk is red . the silk ", "red")
    found = study.log_probabilities([long, short])
    assert set(widths) == {16}
    assert found[0] == pytest.approx(study.log_probabilities([("silk is red . the silk is red . ", "red")])[0])
