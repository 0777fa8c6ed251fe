"""Language models as things to run a recipe on: what they refuse, and the lines that load them again."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    LlamaForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

import secateur
import tiny
from secateur.data import texts
from secateur.errors import DataError, InputError, UnsupportedError
from secateur.measure import latency, loyalty
from secateur.recover.quantization import quantise
from secateur.runs import executor, measuring
from secateur.runs.backends import language
from secateur.runs.backends.language import Language
from secateur.vocabulary import Figure


@pytest.mark.parametrize(
    ("kind", "most"),
    [("CLIPText", 64), ("SiglipText", 64), ("OpenAIGPT", 64), ("CTRL", 64), ("Llama", None)],
)
def test_tables_of_positions_are_found_whatever_their_names(kind, most):
    text = kind.endswith("Text")
    settings = {"max_position_embeddings": 64} if text or not most else {"n_positions": 64}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, **settings
    )
    model = getattr(transformers, f"{kind}{'Model' if text else 'ForCausalLM' if not most else 'LMHeadModel'}")(config)
    subject = SimpleNamespace(model=model)
    Language().check(subject, {"length": 64})
    if most is None:
        Language().check(subject, {"length": 65})
        return
    with pytest.raises(InputError, match="length=65 is beyond the model's 64 positions: give at most length=64"):
        Language().check(subject, {"length": 65})


def test_what_is_no_table_of_positions_sets_no_length():
    """DeBERTa's is of how far tokens stand apart, and weights may lie in buffers; I-BERT counts from its padding on."""
    small = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2, "max_position_embeddings": 64}
    far = {"relative_attention": True, "position_buckets": 32, "position_biased_input": False, "pos_att_type": ["c2p"]}
    apart = transformers.DebertaV2Model(transformers.DebertaV2Config(**small, **far))
    packed = transformers.LlamaForCausalLM(transformers.LlamaConfig(**small))
    packed.model.layers[0].mlp.up_proj.register_buffer("qweight", torch.zeros(64, 4, dtype=torch.int32))
    for model in (apart, packed):
        Language().check(SimpleNamespace(model=model), {"length": 65})
    integers = transformers.IBertModel(transformers.IBertConfig(**small, pad_token_id=1))
    with pytest.raises(InputError, match="length=63 is beyond the model's 62 positions: give at most length=62"):
        Language().check(SimpleNamespace(model=integers), {"length": 63})


def test_steps_of_decoding_stay_within_tables_whatever_their_names():
    config = transformers.GPTJConfig(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=64, rotary_dim=4)
    subject = secateur.open_subject(transformers.GPTJForCausalLM(config).eval(), tokenizer=tiny.tokenizer())
    with pytest.raises(UnsupportedError, match=r"has 64 positions, .*: give a length of at most 63"):
        measuring.measure(subject, batch=1, environment="decode", length=64)


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_lengths_beyond_the_positions_of_the_model_are_refused(tmp_path, kind):
    subject = secateur.open_subject(tiny.model(kind), tokenizer=tiny.tokenizer())
    most = 159 if kind == "roberta" else 160  # of RoBERTa, the padding's and those before it serve no text
    with pytest.raises(InputError, match=f"length=161 is beyond the model's {most} positions: give at most length="):
        measuring.measure(subject, length=161)
    with pytest.raises(InputError, match=f"^length=161 is beyond the model's {most} positions"):
        executor.run("ziplm", subject, tiny.sentences(), "params=80%", tmp_path / "out", length=161)
    with pytest.raises(InputError, match=f"train_length=161 is beyond the model's {most} positions"):
        executor.run("ziplm", subject, tiny.sentences(), "params=80%", tmp_path / "out", train_length=161)
    assert not (tmp_path / "out").exists()
    measuring.measure(subject, batch=1, length=most)


@pytest.mark.wide
def test_lengths_beyond_the_rotary_positions_are_noted(tmp_path):
    model = secateur.open_subject(tiny.model("llama"), tokenizer=tiny.tokenizer())
    for length, count in ((128, 0), (129, 1)):
        (row,) = executor.run("wanda", model, tiny.sentences(), "weights=50%", tmp_path, length=length, samples=1,
                              batch=1, dry_run=True)  # fmt: skip
        figures = measuring.measure(model, batch=1, length=length)
        for notes in (row.cut.notes, figures.notes):
            told = [note for note in notes if note.startswith(f"length={length} is beyond the 128 positions")]
            assert len(told) == count, notes


@pytest.mark.parametrize(("length", "size"), [(16, 16), (1024, 4), (5000, 1)])
def test_quality_is_measured_on_a_thousand_sequences_of_which_few_are_long_at_once(length, size):
    """Two models give their logits for each batch; sixteen sequences of any length stood in one."""
    text = " ".join(["the", "pigeon", "sings"] * (length // 3 + 1))
    found = language.held_batches(texts.read([text] * 40), tiny.tokenizer(), packed=True, length=length)
    assert {tuple(batch["input_ids"].shape) for batch in found} == {(size, length)}
    assert len(found) <= 1024 // size


def large(vocabulary, token):
    """`tiny.tokenizer()` where the word "the" is the token `token`."""
    made = json.loads(tiny.tokenizer().backend_tokenizer.to_str())
    made["model"]["vocab"] |= {"the" if vocabulary else "never-said": token}
    return type(tiny.tokenizer())(tokenizer_object=Tokenizer.from_str(json.dumps(made)), pad_token="[PAD]",
                                  unk_token="[UNK]", eos_token="</s>")  # fmt: skip


@pytest.mark.parametrize("recipe", ["magnitude", "ast", "d_pruner", "stun", "slimmoe", "streamed", "ziplm"])
def test_texts_with_tokens_that_the_model_lacks_are_refused_in_one_line(recipe, tmp_path):
    """Deep inside of torch it would be "index out of range in self", and on a GPU the end of the process."""
    kind = {"stun": "mixtral", "slimmoe": "mixtral", "ziplm": "bert"}.get(recipe, "llama")
    how = {"d_pruner": {"general_weight": 0}, "stun": {"distance": "together"}, "streamed": {"stream": True}}
    budget = {"ast": "pattern=2:4", "ziplm": "params=80%", "slimmoe": "params=80%"}.get(recipe, "weights=50%")
    model = tiny.folder(kind, tmp_path / "model")
    large(True, 70).save_pretrained(model)
    message = "^the tokenizer gives token 70 for texts, and the model knows those below 64: use the model's own tokeniz"
    with pytest.raises(InputError, match=message):
        executor.run(
            "magnitude" if recipe == "streamed" else recipe, str(model), tiny.sentences(), budget, tmp_path / "out",
            batch=1, length=8, **how.get(recipe, {}),
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_tokens_that_no_text_has_are_nobodys_trouble(kind):
    corpus = texts.read(tiny.sentences())
    subject = secateur.open_subject(tiny.model(kind), tokenizer=large(False, 70))
    assert Language().fit_data(corpus, subject) is corpus
    setattr(subject.tokenizer, "eos_token" if kind == "llama" else "pad_token", "never-said")
    with pytest.raises(InputError, match="gives token 70 for"):
        Language().fit_data(corpus, subject)


@pytest.mark.parametrize("kind", ["causal", "classes", "masked", "unlabelled", "tokens"])
def test_loyalty_stands_beside_what_else_is_told_of_predictions(kind):
    """A model is wholly loyal to itself, another one is not; masked tokens are told from the others."""
    makers = {"causal": LlamaForCausalLM, "classes": BertForSequenceClassification, "masked": BertForMaskedLM}
    makers |= {"unlabelled": BertForSequenceClassification, "tokens": BertForTokenClassification}
    config = tiny.model("llama" if kind == "causal" else "bert").config

    def made(seed):
        torch.manual_seed(seed)
        model = makers[kind](config).eval()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        return secateur.open_subject(model, tokenizer=tiny.tokenizer())

    one, other = made(0), made(1)
    labels = [number % 2 for number in range(60)] if kind == "classes" else None
    corpus = texts.Corpus(tiny.sentences(60), labels)
    place = Language().environment(one, 1, 16, 1)
    before, after, both = Language().compare(one, one, corpus, place)
    assert before == after
    assert list(before) == {"causal": ["perplexity"], "unlabelled": [], "tokens": []}.get(kind, ["accuracy"])
    assert ("spearman" in both) == (kind in ("masked", "unlabelled", "tokens"))
    assert both["label_loyalty"].value == both["probability_loyalty"].value == 1.0
    before, after, both = Language().compare(one, other, corpus, place)
    assert before != after or not before
    assert 0 <= both["label_loyalty"].value < 1
    assert 0 < both["probability_loyalty"].value < 1
    assert both["probability_loyalty"].low < both["probability_loyalty"].value < both["probability_loyalty"].high
    if kind == "unlabelled":
        batches = language.held_batches(corpus, one.tokenizer, packed=False, length=16)
        told = [torch.cat([model.forward(batch).prediction for batch in batches]) for model in (other, one)]
        assert both["label_loyalty"] == loyalty.label(*told)


def test_guessing_is_known_of_what_classifies_texts_and_of_nothing_else():
    corpus = texts.Corpus(tiny.sentences(4), [0, 1, 1, 1])
    named = replace(corpus, classes=("cold", "warm"))
    makers = {BertForSequenceClassification: {"accuracy": 0.75}, BertForMaskedLM: {}}
    for maker, known in makers.items():
        config = type(tiny.model("bert").config)(
            **{**tiny.model("bert").config.to_dict(), "id2label": {0: "cold", 1: "warm"},
               "label2id": {"cold": 0, "warm": 1}}
        )  # fmt: skip
        subject = secateur.open_subject(maker(config), tokenizer=tiny.tokenizer())
        for data in (corpus, named):
            assert Language().chance(subject, Language().fit_data(data, subject)) == known
        assert Language().chance(subject, replace(corpus, labels=None)) == {}


def test_classes_of_another_number_have_no_loyalty_and_numbers_have_three_figures():
    config = tiny.model("bert").config

    def made(classes, seed=0):
        torch.manual_seed(seed)
        model = BertForSequenceClassification(type(config)(**{**config.to_dict(), "num_labels": classes})).eval()
        model.classifier.weight.data *= 40
        return secateur.open_subject(model, tokenizer=tiny.tokenizer())

    corpus, place = texts.Corpus(tiny.sentences(60)), latency.Environment(1, 16, 1)
    assert set(Language().compare(made(2), made(3), corpus, place)[2]) == {"spearman", "cosine"}
    one, other = made(1), made(1, 1)
    found = Language().compare(one, other, corpus, place)[2]
    assert set(found) == {"spearman", "cosine", "pearson", "rank_loyalty", "rmse"}
    batches = language.held_batches(corpus, one.tokenizer, packed=False, length=16)
    told = [torch.cat([m.forward(b).prediction for b in batches]).flatten().tolist() for m in (other, one)]
    assert found["rank_loyalty"].value == pytest.approx(loyalty.regression(*told)["spearman"].value)
    assert found["rank_loyalty"] != found["spearman"]


@pytest.mark.parametrize("count", [60, 9])
def test_numbers_are_held_against_labels_that_are_numbers(count):
    """In batches of several texts, in whatever order, and one by one."""

    def made(seed):
        torch.manual_seed(seed)
        config = tiny.model("bert").config
        model = BertForSequenceClassification(type(config)(**{**config.to_dict(), "num_labels": 1})).eval()
        model.classifier.weight.data *= 40
        return secateur.open_subject(model, tokenizer=tiny.tokenizer())

    def told(subject):
        each = (tiny.tokenizer()([text], truncation=True, max_length=16, return_tensors="pt") for text in spoken)
        return [subject.forward(one).prediction.item() for one in each]

    spoken, place = tiny.sentences(count), latency.Environment(1, 16, 1)
    one, other = made(0), made(1)
    labels = told(one)
    corpus = Language().fit_data(
        texts.read([{"text": a, "label": b} for a, b in zip(spoken, labels, strict=True)]), one
    )
    before, after, both = Language().compare(one, other, corpus, place)
    assert set(before) == set(after) == {"label_pearson", "label_spearman"}
    assert before["label_pearson"].value > 0.99
    assert before["label_spearman"].value > 0.95
    assert after["label_pearson"].value == pytest.approx(both["pearson"].value, abs=0.01)
    assert before["label_pearson"].samples == (48 if count == 60 else 9)


def test_several_numbers_of_a_text_are_numbers_and_take_no_label():
    """They were compared as classes: a student whose numbers were all off by 7 had a loyalty of 1."""
    one, other = (
        secateur.open_subject(tiny.classifier("abc", seed, "regression").eval(), tokenizer=tiny.tokenizer())
        for seed in range(2)
    )
    rows = [{"text": text, "label": 0.5} for text in tiny.sentences(40)]
    corpus = Language().fit_data(texts.read(rows), one)
    assert corpus.labels is corpus.numbers is None
    place = latency.Environment(1, 16, 1)
    moved = one.copy()
    moved.model.classifier.bias.data += 7
    before, after, both = Language().compare(one, moved, corpus, place)
    assert before == after == {}
    assert both["rmse"].value == pytest.approx(7, rel=1e-4)
    assert both["pearson"].value > 0.99
    assert set(Language().compare(one, other, corpus, place)[2]) == {
        "spearman",
        "cosine",
        "pearson",
        "rank_loyalty",
        "rmse",
    }
    pair = (secateur.open_subject(tiny.classifier("ab", 0, "regression"), tokenizer=tiny.tokenizer()), one)
    assert set(Language().compare(*pair, corpus, place)[2]) == {"spearman", "cosine"}


def test_labels_of_which_several_hold_agree_each_by_itself():
    """A student that says yes to every label had a label loyalty of 1, by the likeliest of them."""
    kind = "multi_label_classification"
    one = secateur.open_subject(tiny.classifier("abc", 0, kind).eval(), tokenizer=tiny.tokenizer())
    rows = [{"text": text, "label": "a"} for text in tiny.sentences(40)]
    corpus = Language().fit_data(texts.read(rows), one)
    assert corpus.labels is None
    one.model.classifier.bias.data -= 7
    yes = one.copy()
    yes.model.classifier.bias.data += 14
    place = latency.Environment(1, 16, 1)
    before, after, both = Language().compare(one, yes, corpus, place)
    assert before == after == {}
    assert both["label_loyalty"].value == 0
    assert both["probability_loyalty"].value < 0.1
    assert Language().compare(one, one, corpus, place)[2]["label_loyalty"].value == 1
    exclusive = secateur.open_subject(tiny.classifier("abc"), tokenizer=tiny.tokenizer())
    assert "label_loyalty" not in Language().compare(one, exclusive, corpus, place)[2]


def test_which_labels_a_model_of_numbers_takes():
    config = tiny.model("bert").config
    model = BertForSequenceClassification(type(config)(**{**config.to_dict(), "num_labels": 1})).eval()
    model.classifier.weight.data *= 40
    subject = secateur.open_subject(model, tokenizer=tiny.tokenizer())

    def fitted(*labels):
        return Language().fit_data(
            texts.read([{"text": a, "label": b} for a, b in zip(tiny.sentences(len(labels)), labels, strict=True)]),
            subject,
        )

    assert [fitted(*some).numbers for some in ((2, 1), (0.5, 1), ("a", "b"), (None,))] == [[2, 1], [0.5, 1], None, None]
    assert all(fitted(*some).labels is None for some in ((2, 1), (0.5, 1), ("a", "b")))
    for wrong, message in (((0.5, None), "text 2 of texts has no label"), (([1, 2], [2]), "more than one value")):
        with pytest.raises(DataError, match=message):
            fitted(*wrong)
    alike = fitted(*[3] * 20)
    before, after, both = Language().compare(subject, subject, alike, latency.Environment(1, 16, 1))
    assert before == after == {}
    assert both["pearson"].value == pytest.approx(1)


@pytest.mark.parametrize(
    ("architecture", "call"),
    [
        ("BertModel", "AutoModel"),
        ("BertForMaskedLM", "AutoModelForMaskedLM"),
        ("SecateurBertForTokenClassification", "AutoModelForTokenClassification"),
        ("RobertaForQuestionAnswering", "AutoModelForQuestionAnswering"),
        ("BertForSequenceClassification", "AutoModelForSequenceClassification"),
        ("GPT2LMHeadModel", "AutoModelForCausalLM"),
        ("LlamaForCausalLM", "AutoModelForCausalLM"),
        ("BertForNothingKnown", "AutoModel"),
    ],
)
def test_the_card_names_the_class_that_loads_the_head(tmp_path, architecture, call):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    assert Language().load_line(tmp_path, "small") == (
        f'from transformers import {call}\n\nmodel = {call}.from_pretrained("small")'
    )


def test_what_stands_behind_a_quantised_model_counts_among_its_bytes():
    def held(*head):
        subject = secateur.open_subject(tiny.model("bert"), tokenizer=tiny.tokenizer())
        quantise.weight_only(subject.model, 8)
        subject.head = list(head)
        return language.stored_bytes(Language().load_any(subject))

    assert held(torch.nn.Linear(32, 512)) == held() + 4 * (32 * 512 + 512)


@pytest.mark.parametrize("empty", [1, 40])
def test_texts_without_tokens_are_left_out_of_what_embeddings_tell(empty):
    """Alone in their batches, or beside others."""
    small = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)

    def made(seed):
        torch.manual_seed(seed)
        return secateur.open_subject(BertModel(BertConfig(vocab_size=300, **small)), tokenizer=tokenizer)

    tokenizer = tiny.letters()  # which adds no special tokens
    one, other, place = made(0), made(1), latency.Environment(1, 16, 1)
    spoken = tiny.sentences(47)
    found = Language().compare(one, other, texts.Corpus([*spoken, *[""] * empty]), place)[2]
    batches = texts.batches(texts.Corpus([*spoken, *[""] * empty]), tokenizer, packed=False, batch=16, length=16)
    read = int(sum(batch["attention_mask"].any(1).sum() for batch in batches))
    assert found["cosine"].samples == read < 48
    assert abs(found["cosine"].value) < 1
    with pytest.raises(DataError, match="texts holds no text that the tokenizer finds a token in: give others"):
        Language().compare(one, other, texts.Corpus([""] * empty), place)


# ------------------------------------------------------------------------------------------------- labels of words


def tagger(seed, classes=3):
    given = tiny.model("bert").config.to_dict()
    del given["id2label"], given["label2id"]
    torch.manual_seed(seed)
    model = BertForTokenClassification(BertConfig(**{**given, "num_labels": classes})).eval()
    model.classifier.weight.data *= 40
    return secateur.open_subject(model, tokenizer=tiny.tokenizer())


def tagged_rows(subject, count=60):
    """Texts of one token for each word, with what `subject` says of each for a label."""
    rows = []
    for number, text in enumerate(tiny.sentences(count)):
        said = subject.forward(tiny.tokenizer()([text], return_tensors="pt")).prediction[0, 1:-1].argmax(-1).tolist()
        said[0] = -100 if number % 3 == 0 else said[0]
        rows.append({"tokens": text.split(), "ner_tags": said})
    return rows


def test_words_with_labels_tell_a_token_classifiers_accuracy_and_macro_f1():
    one, other = tagger(0), tagger(1)
    rows = tagged_rows(one)
    corpus = Language().fit_data(texts.read(rows), one)
    before, after, both = Language().compare(one, other, corpus, Language().environment(one, 1, 16, 1))
    assert list(before) == list(after) == ["accuracy", "f1"]
    assert before["accuracy"].value == before["f1"].value == 1.0
    theirs = [row["ner_tags"] for row in tagged_rows(other)]
    # The last of 60 texts fill no batch of 16, and which those are is the seed's.
    order = texts.batches(corpus, one.tokenizer, packed=False, batch=16, length=16)
    held = [int(row) for number in range(3) for row in order.rows(number)]
    pairs = [
        (true, said)
        for place in held
        for true, said in zip(rows[place]["ner_tags"], theirs[place], strict=True)
        if true != -100
    ]
    assert after["accuracy"].value == pytest.approx(sum(true == said for true, said in pairs) / len(pairs))
    assert after["accuracy"].samples == len(pairs)
    assert after["accuracy"].value == pytest.approx(both["label_loyalty"].value), "the labels are what the other says"
    classes = {kind for pair in pairs for kind in pair}
    f1 = [2 * sum(t == s == c for t, s in pairs) / sum((t == c) + (s == c) for t, s in pairs) for c in classes]
    assert after["f1"].value == pytest.approx(sum(f1) / len(f1))
    plain = Language().fit_data(texts.read([" ".join(row["tokens"]) for row in rows]), one)
    bare = Language().compare(one, other, plain, Language().environment(one, 1, 16, 1))
    assert bare[0] == bare[1] == {}


def test_labels_of_words_are_for_those_that_classify_tokens_and_of_their_classes(tmp_path):
    one = tagger(0)
    rows = tagged_rows(one, 20)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = measuring.measure(one, data=tmp_path / "rows.jsonl", batch=1, length=16)["model"]
    assert found["accuracy"].value == found["f1"].value == 1.0
    assert "perplexity" in measuring.measure(
        secateur.open_subject(tiny.model("llama"), tokenizer=tiny.tokenizer()), data=rows, batch=1, length=16
    )["model"]  # fmt: skip
    whole = secateur.open_subject(tiny.model("bert"), tokenizer=tiny.tokenizer())
    assert Language().fit_data(texts.read(rows), whole).tagged is None
    flawed = texts.read([{"tokens": ["a"], "ner_tags": [None]}] * 3)
    texts_ = secateur.open_subject(tiny.classifier(), tokenizer=tiny.tokenizer())
    assert Language().fit_data(flawed, texts_).labels is None, "labels of words are nothing to a model of texts"
    with pytest.raises(DataError, match=r"texts has the label \d: the model has 1 classes, 0 to 0"):
        measuring.measure(tagger(0, 1), data=rows, batch=1, length=16)
    rows[3]["ner_tags"] = rows[3]["ner_tags"][1:]
    with pytest.raises(DataError, match=r"row 4 has \d+ words in 'tokens' and \d+ labels in 'ner_tags'"):
        measuring.measure(one, data=rows, batch=1, length=16)


def test_what_is_cached_out_of_sight_is_not_measured_and_refused_only_as_a_budget(tmp_path, monkeypatch):
    config = RecurrentGemmaConfig(
        vocab_size=64, hidden_size=16, lru_width=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, attention_window_size=8, block_types=["recurrent", "attention"],
    )  # fmt: skip
    subject = secateur.open_subject(RecurrentGemmaForCausalLM(config).eval(), tokenizer=tiny.tokenizer())
    texts = tiny.sentences(60)
    why = "RecurrentGemmaForCausalLM returns no KV cache"
    for budget in ("kv_cache=50%", "params=65%,memory=70%"):
        limit = budget.rpartition(",")[2]
        with pytest.raises(UnsupportedError, match=f"^{limit} can't be measured: {why}.*give a budget of params"):
            executor.run("shortgpt", subject, texts, budget, tmp_path / "out")
    with pytest.raises(UnsupportedError, match=f"environment=decode can't be timed: {why}"):
        measuring.measure(subject, environment="decode", length=16)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(measuring.latency, "compare", lambda *_, **__: latency.Comparison(*[Figure(1.0)] * 3))
    (row,) = executor.run("magnitude", subject, texts, "weights=50%", tmp_path / "out", batch=1, length=8)
    assert row.verdict == "met"
    assert not {"kv_cache", "memory"} & {*row.before, *row.after}
    assert [
        note
        for note in row.cut.notes
        if why in note
        and note.startswith("KV cache, State cache, Memory: not measured: ")
        and note.endswith("the last inputs of convolutions alone, without a state that a mixer keeps beside")
    ]
    assert any(why in note for note in measuring.measure(subject, batch=1, length=8).notes)
