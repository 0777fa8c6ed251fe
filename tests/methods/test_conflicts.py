"""Conflict prompts made of facts, with tokenizers of words and of letters, and what a model makes of them."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

import tiny
from assets import facts
from secateur.data import conflicts as reading
from secateur.data.conflicts import Conflict, Conflicts
from secateur.errors import DataError, InputError, UnsupportedError
from secateur.measure import likelihood
from secateur.methods import conflicts
from secateur.score import patching
from secateur.subjects import open_subject
from secateur.subjects.transformer.heads import Replay, find_outputs, silence_heads

WORLD = facts.World()
CAPITALS = (("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Norway", "Oslo"), ("Japan", "Tokyo"),
            ("Egypt", "Cairo"), ("Kenya", "Nairobi"), ("China", "Peking"))  # fmt: skip
TABLE = [
    {"relation": "capital", "template": "The capital of {subject} is"},
    {"relation": "capital", "template": "{subject} is governed from"},
    *({"subject": subject, "relation": "capital", "object": value} for subject, value in CAPITALS),
]


@functools.cache
def subject():
    return open_subject(tiny.knowing(WORLD))


@functools.cache
def known():
    table = reading.read(facts.rows(WORLD))
    return conflicts.keep_known(subject(), conflicts.build(table, subject().tokenizer))


@functools.cache
def letters():
    """One token per letter, and none for blanks: words have several tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    base = Tokenizer(models.BPE({"[PAD]": 0, "</s>": 1} | {chr(at): at for at in range(33, 127)}, []))
    base.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=base, pad_token="[PAD]", eos_token="</s>")


@functools.cache
def bytes_of_pairs():
    """Byte pairs as GPT-2 has them: a word behind a blank is another token than its letters elsewhere."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    base = Tokenizer(models.BPE())
    base.pre_tokenizer, base.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    words = "The capital of is governed from " + " ".join(word for pair in CAPITALS for word in pair)
    base.train_from_iterator(
        [f"{words} {words}"] * 50,
        trainers.BpeTrainer(
            vocab_size=900,
            special_tokens=["<s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=base, eos_token="<s>", bos_token="<s>")


@pytest.mark.parametrize(
    ("prompt", "answer", "whole"),
    [
        ("The capital of France is", "Paris", " Paris"),
        ("The capital of France is", " Paris", " Paris"),
        ("The capital of France is ", "Paris", " Paris"),
        ("The capital of France is:", "Paris", " Paris"),
        ("The capital of France is ", " Paris", " Paris"),
        ('It is called "', "Paris", "Paris"),
        ("The capital of France is", ", they say, Paris", ", they say, Paris"),
        ("法国的首都是", "巴黎", "巴黎"),
    ],
)
def test_answers_without_a_blank_are_set_apart_from_the_prompt(prompt, answer, whole):
    """As a model writes it: " Paris" is one token, "Paris" at the end of "is" letters that it never writes there."""
    words = bytes_of_pairs()
    data = reading.read([{"prompt": prompt, "memory": answer, "context": " Rome"}])
    (item,) = conflicts.encode(data, words)
    assert words.decode(item.memory) == whole
    assert words.decode([*item.prompt, *item.memory]) == prompt.rstrip() + whole
    if whole == " Paris":
        assert len(item.memory) == 1


def test_an_instruction_stands_before_the_context_alone():
    made = conflicts.build(reading.read(TABLE), letters(), prefix="Answer from the text. ")
    for one in made.items:
        assert one.prompt.startswith("Answer from the text. The capital") or one.template == 1
        assert one.corrupted.startswith("Answer from the text. ")
        assert not one.plain.startswith("Answer")
    without = conflicts.build(reading.read(TABLE), letters())
    assert [one.prompt.removeprefix("Answer from the text. ") for one in made.items] == [
        one.prompt for one in without.items
    ]
    assert all(len(item.prompt) == len(item.corrupted) for item in conflicts.encode(made, letters()))


def test_a_blank_at_the_end_of_a_template_is_no_part_of_it():
    plain, blank = (
        reading.read([{**row, "template": row["template"] + end} if "template" in row else row for row in TABLE])
        for end in ("", " ")
    )
    made = conflicts.build(blank, bytes_of_pairs(), kind="coherent")
    assert made.items == conflicts.build(plain, bytes_of_pairs(), kind="coherent").items
    assert not any("  " in one.prompt or one.prompt.endswith(" ") for one in made.items)


def length(text):
    return len(likelihood.encode(letters(), text, [" ."])[0].prompt)


@pytest.mark.parametrize("kind", ["substitution", "coherent"])
def test_prompts_of_several_tokens_a_word(kind):
    """Letters as tokens: what stands for another has as many, answers begin with other ones, and all is repeatable."""
    made = conflicts.build(reading.read(TABLE), letters(), kind=kind)
    facts_of = dict(CAPITALS)
    assert made.items
    for one in made.items:
        value, wrong = one.memory.strip(), one.context.strip()
        assert facts_of[one.subject] == value != wrong
        assert value[0] != wrong[0]
        assert one.prompt.count(one.subject) == (2 if kind == "substitution" else 3)
        assert one.prompt.startswith(f"The capital of {one.subject} is {wrong}.") or one.template == 1
        assert one.prompt.endswith(one.plain)
        assert length(one.corrupted) == length(one.prompt)
        for word in (one.subject, value, wrong):
            assert word not in one.corrupted
    facts_of["Ghana"] = "Porto"  # as long as Paris, and begins as it does
    table = reading.read([*TABLE, {"subject": "Ghana", "relation": "capital", "object": "Porto"}])
    for one in (one for seed in range(6) for one in conflicts.build(table, letters(), seed=seed).items):
        (other,) = [name for name in facts_of if name in one.corrupted]
        (third,) = [name for name in facts_of.values() if name in one.corrupted]
        assert facts_of[other] not in (one.memory.strip(), one.context.strip())  # it would support that answer
        assert third[0] not in (one.memory.strip()[0], one.context.strip()[0])
    assert len(made.items) + int(made.notes[0].split()[0]) == 2 * len(CAPITALS) if made.notes else True
    again = conflicts.build(reading.read(TABLE), letters(), kind=kind)
    assert again.items == made.items
    assert conflicts.build(reading.read(TABLE), letters(), kind=kind, seed=1).items != made.items
    items = conflicts.encode(made, letters())
    assert all(len(item.prompt) == len(item.corrupted) for item in items)


def test_what_makes_no_prompt_is_told():
    table = reading.read(TABLE)
    with pytest.raises(DataError, match="16 have no other"):  # a blank is a token of its own, which begins all answers
        conflicts.build(table, tiny.letters())
    with pytest.raises(InputError, match="give substitution or coherent"):
        conflicts.build(table, letters(), kind="other")
    with pytest.raises(InputError, match="relation='river'"):
        conflicts.build(table, letters(), relation="river")
    single = reading.read([TABLE[0], *TABLE[2:]])
    with pytest.raises(InputError, match="capital has one template: add another"):
        conflicts.build(single, letters(), kind="coherent")
    with pytest.raises(DataError, match="no conflict prompt can be made of the rows: 1 have no other"):
        conflicts.build(reading.read([TABLE[0], TABLE[2]]), letters())


def test_prompts_that_tell_nothing_are_refused_by_number():
    good = {"prompt": "the tree is", "memory": " old", "context": " young"}
    encode = functools.partial(conflicts.encode, tokenizer=tiny.tokenizer())
    with pytest.raises(
        DataError, match=r"prompt 2 of the rows \('the tree is'\): the answers ' old leaf' and ' old bud'"
    ):
        encode(reading.read([good, {**good, "memory": " old leaf", "context": " old bud"}]))
    with pytest.raises(DataError, match="tokens, and its corrupted one"):
        encode(reading.read([{**good, "corrupted": "the old tree is"}]))
    with pytest.raises(InputError, match="tokenizer"):
        conflicts.encode(reading.read([good]), None)


def test_only_facts_that_the_model_knows_stay():
    table = facts.rows(WORLD)
    for row in table[6:]:
        if row.get("relation") == "language" and "object" in row:
            row["object"] = facts.names(WORLD.objects, "l")[0]  # some of them are right by chance
    made = conflicts.build(reading.read(table), subject().tokenizer, relation="capital")
    wrong = [Conflict(o.prompt, o.context, o.memory, o.corrupted, o.plain, o.subject) for o in made.items]
    mixed = conflicts.keep_known(subject(), Conflicts([*made.items, *wrong]))
    assert {one.memory for one in mixed.items} <= {one.memory for one in made.items}
    assert len(mixed) <= len(made.items)
    assert mixed.known
    assert f"of {2 * len(made.items)} prompts left out: the model does not know the fact" in mixed.notes[-1]
    assert conflicts.keep_known(subject(), mixed) is mixed
    with pytest.raises(DataError, match=f"knows none of the {len(wrong)} facts"):
        conflicts.keep_known(subject(), Conflicts(wrong))
    long = Conflicts(
        [*made.items[:2], replace(made.items[0], prompt="people " * 60 + made.items[0].prompt, corrupted="")]
    )
    with pytest.raises(DataError, match=r"prompt 3 of conflict prompts .* tokens with its answer, and the model 64"):
        conflicts.keep_known(subject(), long)
    bare = Conflicts([Conflict(one.prompt, one.memory, one.context) for one in wrong])
    assert len(conflicts.keep_known(subject(), bare)) == len(bare)  # nothing to ask


def test_rates_of_answers_with_and_without_heads():
    items = conflicts.encode(known(), subject().tokenizer)
    before = conflicts.rates(subject(), items)
    assert sum(before[f"{name}_rate"].value for name in ("memory", "context", "other")) == pytest.approx(1)
    assert before["no_conflict_rate"].value == 1.0
    gone = [(1, 0), (1, 1), (1, 2), (1, 3)]
    after = conflicts.rates(subject(), items, silenced=gone)
    with silence_heads(subject(), gone):
        assert conflicts.rates(subject(), items) == after
    assert conflicts.rates(subject(), items) == before
    logs = conflicts.log_answers(subject(), items)
    best = (logs[:, 0] > logs[:, 1]).float().mean()
    assert abs(float(best) - before["memory_rate"].value) <= before["other_rate"].value + 1e-6
    first = items[0]
    spans = [likelihood.Span(first.prompt, answer[:1]) for answer in (first.memory, first.context)]
    torch.testing.assert_close(logs[0], likelihood.span_log_probabilities(subject().forward, spans), atol=1e-6, rtol=0)


def test_answers_of_several_tokens_match_in_full_or_by_their_first():
    model = open_subject(tiny.uneven(tiny.model("gpt2")), tokenizer=tiny.tokenizer())
    data = reading.read(
        [{"prompt": "the tree is", "memory": " old leaf", "context": " young bud", "plain": "the tree is"}]
    )
    item = conflicts.encode(data, model.tokenizer)[0]
    ids = torch.tensor([item.prompt])
    first = int(model.model(ids).logits[0, -1].argmax())
    second = int(model.model(torch.cat([ids, torch.tensor([[first]])], 1)).logits[0, -1].argmax())
    for answer, match, rate in (((first, 1), "first", 1.0), ((first, -1), "full", 0.0), ((first, second), "full", 1.0)):
        one = conflicts.Item(item.prompt, answer, (7, 8), (), item.plain)
        found = conflicts.rates(model, [one], match=match)
        assert found["memory_rate"].value == found["no_conflict_rate"].value == rate


def test_a_corrupted_prompt_that_is_the_prompt_scores_nothing():
    items = conflicts.encode(known(), subject().tokenizer)[:8]
    same = [conflicts.Item(one.prompt, one.memory, one.context, one.prompt, one.plain) for one in items]
    for values in conflicts.score(subject(), same).values():
        torch.testing.assert_close(values, torch.zeros_like(values), atol=1e-5, rtol=0)


def test_an_ablation_is_the_head_silenced_and_all_behind_it_free():
    items = conflicts.encode(known(), subject().tokenizer)[:8]
    table = conflicts.ablate(subject(), items)
    clean, gone = conflicts.log_answers(subject(), items), conflicts.log_answers(subject(), items, [(1, 2)])
    change = torch.expm1(gone - clean)
    torch.testing.assert_close(table["layers.1.heads"][2], (change[:, 1] - change[:, 0]).mean())
    both = conflicts.gradients(subject(), items, "memory"), conflicts.gradients(subject(), items, "context")
    assert all((table["layers.0.heads"] >= 0).all() for table in both)
    assert not torch.equal(*(table["layers.2.heads"] for table in both))
    places = {f"layers.{at}.heads": consumer for at, (consumer, _) in find_outputs(subject()).items()}
    for side, table in enumerate(both):  # the loss is of the memory's token, then of the context's

        def lose(item, side=side):
            logs = subject().model(torch.tensor([item.prompt])).logits[:, -1].log_softmax(-1)
            return -logs[:, (item.memory, item.context)[side][0]]

        plain = patching.gradient_importance(lose, subject().model, items, places)
        torch.testing.assert_close(table["layers.2.heads"], plain["layers.2.heads"])


def test_spans_are_whole_words_without_tokens_that_begin_a_text():
    from tokenizers.processors import TemplateProcessing

    words = bytes_of_pairs().__class__(tokenizer_object=bytes_of_pairs().backend_tokenizer, bos_token="<s>")
    words.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    text = "The capital of Kenya is Rome. The capital of Kenya is near Kenyatta in Romein and"
    spans = conflicts._find_spans(Conflict(text, " Paris", " Rome", subject="Kenya"), words)
    tokens = words(text)["input_ids"]
    assert tokens[0] == words.bos_token_id
    assert [words.decode(tokens[at]) for at in spans["subject"]] == [" Kenya", " Kenya"]
    assert [words.decode(tokens[at]) for at in spans["attribute"]] == [" Rome"]
    assert 0 not in spans["relation"]
    chinese = conflicts._find_spans(
        Conflict("中国的首都是巴黎。中国的首都是", "北京", "巴黎", subject="中国"), bytes_of_pairs()
    )
    assert chinese["subject"]
    assert chinese["attribute"]
    places = sorted(at for some in spans.values() for at in some)
    assert places == list(range(1, len(tokens) - 1))  # each once, without the first and the last


def test_knock_outs_of_what_no_prompt_names_are_no_rows():
    """Without a subject, its edges are none: 0.0 read as if they had been cut and done nothing."""
    some = known().take(range(6))
    bare = replace(some, items=[replace(one, subject="") for one in some.items[:3]] + list(some.items[3:]))
    rows = {row["what"]: row for row in conflicts.knock_out(subject(), bare, 3)}
    apart = {row["what"]: row for row in conflicts.knock_out(subject(), some.take(range(3, 6)), 3)}
    assert (rows["subject"]["prompts"], rows["attribute"]["prompts"]) == (3, 6)
    assert rows["subject"]["memory"] == pytest.approx(apart["subject"]["memory"])
    nobody = replace(bare, items=bare.items[:3])
    assert {row["what"] for row in conflicts.knock_out(subject(), nobody, 3)} == {
        "attribute",
        "relation",
        "attention",
        "ffn",
    }


def test_noise_is_as_large_as_what_the_embeddings_give(monkeypatch):
    """Gemma 3 scales them on their way out, by the root of their width; three standard deviations, as ROME has it."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(vocab_size=60, hidden_size=64, intermediate_size=16, num_hidden_layers=1,
                              num_attention_heads=2, num_key_value_heads=1, head_dim=8, pad_token_id=None)  # fmt: skip
    model, seen = open_subject(Gemma3ForCausalLM(config).eval()), []
    embeddings, plain = model.model.get_input_embeddings(), Replay.read

    def read(self, tokens, noise=None):
        seen.append(noise)
        return plain(self, tokens, noise)

    monkeypatch.setattr(Replay, "read", read)
    items = [conflicts.Item(tuple(range(at, at + 9)), (7,), (8,), (), ()) for at in range(20)]
    conflicts.score(model, items, corruption="noise")
    spread = float(embeddings(torch.arange(60)).std())
    assert spread > 4 * float(embeddings.weight.std())
    assert float(seen[1].std()) == pytest.approx(3 * spread, rel=0.05)


def test_long_prompts_go_few_at_once():
    items = [conflicts.Item((5,) * length, (7,), (8,), (), ()) for length in (10,) * 40 + (1500,) * 5 + (9000,) * 2]
    assert [tuple(tokens.shape) for _, tokens, _ in conflicts._batches(items)] == [
        (32, 10), (8, 10), (2, 1500), (2, 1500), (1, 1500), (1, 9000), (1, 9000),
    ]  # fmt: skip


def test_knock_outs_need_to_know_where_tokens_stand():
    class Slow:
        is_fast, pad_token_id, eos_token_id, bos_token_id = False, 0, 6, 5

        def __call__(self, text, **options):
            return {"input_ids": tiny.tokenizer()(text, add_special_tokens=False)["input_ids"]}

    model = open_subject(tiny.model("gpt2"), tokenizer=Slow())
    data = reading.read([{"prompt": "the tree is old . the tree is", "memory": " young", "context": " old"}])
    with pytest.raises(UnsupportedError, match="use a fast one"):
        conflicts.knock_out(model, data, 1)
