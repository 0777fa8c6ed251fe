"""Two tokenizers on one text: every word once, every pair the same characters; and losses that count no padding."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

import readers
from recover.students import Largest
from secateur.data import masking, texts
from secateur.errors import DataError, InputError
from secateur.recover.distillation import alignment, losses

ALL = {
    "cased WordPiece": readers.wordpiece,
    "small WordPiece": lambda: readers.wordpiece(600),
    "uncased WordPiece": lambda: readers.wordpiece(1000, capitals=False),
    "lowering WordPiece": lambda: readers.wordpiece(1000, capitals=False, lowers=True),
    "BPE": readers.bpe,
    "Unigram": readers.unigram,
}
HARD = ["  Two  CAFÉS, 3 naïve\tcrows; x=42 İstanbul 日本 🙂 end. ", "a", "don't (ever) say 1,000.50!"]
LENGTH = 256


def corpus(count=400):
    return texts.read(list(readers.sentences()[:count]))


def parallel(home, other, *, masked=False, count=400, batch=4):
    data = corpus(count)
    plain = texts.batches(data, home, packed=False, batch=batch, length=LENGTH, seed=1)
    items = masking.Masked(plain, home, seed=2) if masked else plain
    return alignment.Parallel(items, plain.rows, data.texts, home, {"B": other}, length=LENGTH), plain, data


@pytest.mark.parametrize("name", ALL)
def test_every_whitespace_word_is_covered_once(name):
    """Each word has a run of tokens of its own that together stand for all its characters."""
    sample = [*readers.sentences()[:200], *HARD]
    for text, reading in zip(sample, alignment.read(ALL[name](), sample, 512), strict=True):
        numbers = alignment.words(text, reading)
        assert np.array_equal(np.unique(numbers[numbers >= 0]), np.arange(len(text.split()))), text
        for number, match in enumerate(re.finditer(r"\S+", text)):
            spans = reading.spans[numbers == number]
            assert (spans[0, 0], spans[-1, 1]) == match.span(), text
            assert set(match[0]) == set("".join(text[start:end] for start, end in spans))
        assert (numbers[(reading.spans == 0).all(1)] == -1).all()


@pytest.mark.parametrize("other", [name for name in ALL if name != "cased WordPiece"])
def test_words_and_pairs_of_two_readings_are_the_same_characters(other):
    home, foreign = readers.wordpiece(), ALL[other]()
    both, plain, data = parallel(home, foreign)
    for index in (0, len(plain) + 3):
        batch, chosen = both[index], [data.texts[row] for row in plain.rows(index)]
        mine, yours = (alignment.read(one, chosen, LENGTH) for one in (home, foreign))
        assert int(batch["B.ours"].max()) == int(batch["B.theirs"].max())
        so_far = 0
        for row, text in enumerate(chosen):
            pieces = [
                {
                    int(number): "".join(
                        text[s:e] for (s, e), n in zip(reading.spans, numbers, strict=False) if n == number
                    )
                    for number in sorted(set(numbers.tolist()) - {-1})
                }
                for reading, numbers in ((mine[row], batch["B.ours"][row]), (yours[row], batch["B.theirs"][row]))
            ]
            assert pieces[0] == pieces[1]
            assert list(pieces[0].values()) == text.split()[: len(pieces[0])]
            so_far += len(pieces[0])
        assert so_far == int(batch["B.ours"].max()) + 1 == alignment.count(batch, ["B"])["B.words"]
        assert so_far == sum(len(text.split()) for text in chosen)
        widths = batch["input_ids"].shape[1], batch["B.input_ids"].shape[1]
        for ours, theirs in batch["B.pairs"].tolist():
            (row, place), (other_row, other_place) = divmod(ours, widths[0]), divmod(theirs, widths[1])
            assert row == other_row
            assert np.array_equal(mine[row].spans[place], yours[row].spans[other_place])
        assert alignment.count(batch, ["B"])["B.pairs"] == len(batch["B.pairs"]) > so_far / 2


def test_a_word_cut_off_at_the_end_is_left_out():
    text = "Something unforgettable happened"
    (whole,) = alignment.read(readers.wordpiece(600), [text], 64)
    inside = np.flatnonzero(alignment.words(text, whole) == 1)
    (cut,) = alignment.read(readers.wordpiece(600), [text], int(inside[-1]) + 1)  # [SEP] takes the last place
    assert set(alignment.words(text, cut)) == {-1, 0}


def test_a_token_of_two_words_leaves_both_out():
    reading = alignment.Reading(np.arange(3), np.array([[0, 2], [3, 8], [9, 10]]))
    assert alignment.words("ab cd ef g", reading).tolist() == [0, -1, 3]


def test_lower_case_keeps_every_character_where_it_was():
    assert alignment.lower_text("İSTANBUL Straße ÉTÉ") == "İstanbul straße été"
    assert [alignment.is_uncased(make()) for make in ALL.values()] == [False, False, True, True, False, False]
    (reading,) = alignment.read(readers.wordpiece(1000, capitals=False), ["THE END"], 16)
    assert "[UNK]" not in readers.wordpiece(1000, capitals=False).convert_ids_to_tokens(reading.ids)


def test_what_is_hidden_from_one_is_hidden_from_the_other():
    home, foreign = readers.wordpiece(), readers.bpe()
    both, plain, data = parallel(home, foreign, masked=True)
    shown, _, _ = parallel(home, foreign)
    for index in range(8):
        batch, open_ = both[index], shown[index]
        chosen = [data.texts[row] for row in plain.rows(index)]
        gone = (batch["labels"] >= 0) & (batch["input_ids"] != batch["labels"])
        for row, (text, mine, yours) in enumerate(
            zip(chosen, *(alignment.read(one, chosen, LENGTH) for one in (home, foreign)), strict=True)
        ):
            characters = {c for place in gone[row].nonzero()[:, 0] for c in range(*mine.spans[place])}
            for place, (start, end) in enumerate(yours.spans):
                hidden = bool(characters & set(range(start, end)))
                now, before = (int(one["B.input_ids"][row, place]) for one in (batch, open_))
                assert now == (foreign.mask_token_id if hidden else before), (text, place)
        for name in ("B.ours", "B.theirs", "B.pairs", "B.attention_mask"):
            assert torch.equal(batch[name], open_[name])


def test_word_vectors_are_means_of_their_tokens():
    states = torch.arange(24.0).view(2, 4, 3)
    numbers = torch.tensor([[-1, 0, 0, 1], [2, -1, -1, -1]])
    states[1, 3] = math.nan  # what stands in the padding stays out
    found = alignment.word_means(states, numbers)
    assert torch.equal(found, torch.stack([(states[0, 1] + states[0, 2]) / 2, states[0, 3], states[1, 0]]))


def test_word_cosine_is_nothing_for_the_same_reading_and_learns_through_a_map():
    home = readers.wordpiece()
    both, _, _ = parallel(home, home)
    batch = both[0]
    torch.manual_seed(0)
    table = torch.randn(len(home), 8)
    states = table[batch["input_ids"]].requires_grad_()
    assert torch.equal(batch["B.ours"], batch["B.theirs"])
    loss = alignment.word_cosine(states, table[batch["B.input_ids"]], batch, "B")
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-4)
    turn = torch.nn.Linear(8, 5, bias=False)
    taught = table[batch["B.input_ids"]] @ turn.weight.T.detach()
    assert float(alignment.word_cosine(states, taught, batch, "B", project=turn).detach()) == pytest.approx(0, abs=1e-4)
    alignment.word_cosine(states, torch.randn(*batch["B.input_ids"].shape, 8), batch, "B").backward()
    outside = batch["B.ours"] < 0
    assert (states.grad[outside] == 0).all()
    assert (states.grad[~outside].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("other", ["small WordPiece", "uncased WordPiece", "BPE", "Unigram"])
def test_shared_pieces_are_the_same_letters_in_the_same_place_of_a_word(other):
    home, foreign = readers.wordpiece(), ALL[other]()
    ours, theirs = alignment.shared_vocabulary(home, foreign)
    assert len(ours) == len(theirs) == len(set(ours.tolist())) == len(set(theirs.tolist())) > 200
    mine, yours = home.convert_ids_to_tokens(ours.tolist()), foreign.convert_ids_to_tokens(theirs.tolist())
    for one, another in zip(mine, yours, strict=True):
        begins = another[0] in "Ġ▁" if other in ("BPE", "Unigram") else not another.startswith("##")
        assert (not one.startswith("##")) == begins
        assert one.removeprefix("##") == another.lstrip("Ġ▁").removeprefix("##")
    assert not set(mine) & set(home.all_special_tokens)


def test_tokens_of_bytes_are_the_text_that_they_stand_for():
    assert set(alignment._BYTES) == set(pre_tokenizers.ByteLevel.alphabet())
    written = ["și", "##ă", "casă", "日本", "Ã", "##Ä"]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    as_bytes = [level.pre_tokenize_str(text)[0][0] for text in (" și", "ă", " casă", " 日本")]
    home = Words({piece: place for place, piece in enumerate(written)})
    # The last but one is the letter Ã; the last is the first half of some letter, and not the letter Ä.
    foreign = Words({piece: place for place, piece in enumerate([*as_bytes, "ĠÃĥ", "Ä"])})
    ours, theirs = alignment.shared_vocabulary(home, foreign)
    assert (ours.tolist(), theirs.tolist()) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])


def test_kl_over_shared_tokens_by_hand_and_nothing_for_equal_readers():
    home, foreign = readers.wordpiece(), readers.wordpiece(600)
    both, _, _ = parallel(home, foreign)
    batch, shared = both[0], alignment.shared_vocabulary(home, foreign)
    torch.manual_seed(0)
    ours = torch.randn(*batch["input_ids"].shape, len(home), requires_grad=True)
    theirs = torch.randn(*batch["B.input_ids"].shape, len(foreign))
    loss = alignment.shared_kl(ours, theirs, batch, "B", shared, temperature=2.0)
    total = 0.0
    for one, other in batch["B.pairs"].tolist():
        log_s = (ours.flatten(0, 1)[one, shared[0]] / 2).log_softmax(-1)
        log_t = (theirs.flatten(0, 1)[other, shared[1]] / 2).log_softmax(-1)
        total += float(functional.kl_div(log_s.detach(), log_t, log_target=True, reduction="sum"))
    assert float(loss.detach()) == pytest.approx(total, rel=1e-4)
    places = batch["B.pairs"][0].tolist()
    for found, logits, place, columns in zip(
        alignment.at_pairs(ours, theirs, batch, "B", shared), (ours, theirs), places, shared, strict=True
    ):
        assert found.shape == (len(batch["B.pairs"]), len(columns))
        assert torch.equal(found[0], logits.flatten(0, 1)[place, columns])
    loss.backward()
    outside = torch.ones(len(home), dtype=torch.bool)
    outside[shared[0]] = False
    assert (ours.grad[..., outside] == 0).all()
    same, _, _ = parallel(home, home)
    batch, whole = same[0], alignment.shared_vocabulary(home, home)
    again = torch.randn(*batch["input_ids"].shape, len(home))
    assert float(alignment.shared_kl(again, again, batch, "B", whole)) == pytest.approx(0.0, abs=1e-4)
    assert float(losses.kl(again, again)) == 0.0


def test_what_is_held_out_is_read_by_both():
    batches, _, data = parallel(readers.wordpiece(), readers.bpe(), masked=True, count=40)
    for some in batches.hold_out(0.25):
        texts_of = [data.texts[row] for row in some._rows(0)]
        assert some[0]["B.attention_mask"].sum(1).tolist() == [
            len(readers.bpe()(text)["input_ids"]) for text in texts_of
        ]
    learned, judged = batches.hold_out(0.25)
    assert not {*learned._rows(0)} & {*judged._rows(0)}


def test_a_teacher_s_own_reading_is_a_batch():
    home, other = readers.wordpiece(), readers.bpe()
    batch, _, _ = parallel(home, other)
    own = alignment.teacher_inputs(batch[0], "B")
    assert list(own) == ["input_ids", "attention_mask"]
    assert all(torch.equal(part, batch[0][f"B.{name}"]) for name, part in own.items())
    assert not torch.equal(own["input_ids"][:, :2], batch[0]["input_ids"][:, :2])


def test_training_beside_an_aligned_teacher_copies_no_matrix_of_logits():
    pairs, vocabulary, k = 256, 2**14, 2**13
    torch.manual_seed(0)
    ours, theirs = torch.randn(1, pairs, vocabulary, requires_grad=True), torch.randn(1, pairs, vocabulary)
    batch = dict.fromkeys(["B.input_ids", "B.attention_mask"], torch.ones(1, pairs, dtype=torch.long))
    batch["B.pairs"] = torch.stack([torch.arange(pairs), torch.arange(pairs).flip(0)], 1)
    shared = torch.arange(k), torch.arange(k).flip(0)
    one = alignment.Foreign(lambda batch: SimpleNamespace(prediction=theirs), shared)
    with Largest() as largest:
        loss = one.kl_loss(ours, batch, "B", temperature=2.0)
    assert 0 < largest.elements <= 2**20 < pairs * k
    wanted = losses.kl(*one.paired_logits(ours, batch, "B"), temperature=2.0)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(value, ours)[0] for value in (loss, wanted)))


def test_what_can_not_be_aligned_is_refused_in_a_line():
    home = readers.wordpiece()

    class Slow:
        is_fast = False

    with pytest.raises(InputError, match="Slow can't tell which characters its tokens stand for"):
        alignment.read(Slow(), ["a"], 4)
    _, plain, data = parallel(home, home)
    with pytest.raises(InputError, match="is not of these texts, this tokenizer and length=8"):
        alignment.Parallel(plain, plain.rows, data.texts, home, {}, length=8)[0]
    maskless = PreTrainedTokenizerFast(tokenizer_object=readers.bpe().backend_tokenizer, pad_token="[PAD]")
    with pytest.raises(InputError, match="teacher B has no mask token"):
        parallel(home, maskless, masked=True)[0][0]
    with pytest.raises(InputError, match="share 0 tokens"):
        alignment.shared_vocabulary(home, Words({"日": 0, "本": 1}))
    long = texts.read(["incomprehensibilities " * 3] * 4)
    short = texts.batches(long, home, packed=False, batch=4, length=3)
    batch = alignment.Parallel(short, short.rows, long.texts, home, {"B": readers.bpe()}, length=3)[0]
    assert alignment.count(batch, ["B"])["B.words"] == 0  # and no error: one such batch does no harm
    states = torch.ones(*batch["input_ids"].shape, 2), torch.ones(*batch["B.input_ids"].shape, 2)
    assert float(alignment.word_cosine(*states, batch, "B")) == 0.0


def test_a_step_of_padding_only_is_refused():
    """Where some of it is no padding, a batch without common tokens does no harm."""
    empty = {"input_ids": torch.zeros(2, 3, dtype=torch.long), "attention_mask": torch.zeros(2, 3, dtype=torch.long)}
    batch = empty | {f"B.{name}": value for name, value in empty.items()}
    batch |= {"B.ours": torch.full((2, 3), -1), "B.pairs": torch.zeros(0, 2, dtype=torch.long)}
    says = Says(torch.randn(2, 3, 4))
    one = alignment.Foreign(lambda batch: says, (torch.arange(4), torch.arange(4)))
    loss, count = alignment.objective(lambda batch: says, {"B": one}), alignment.make_counter(["B"])
    with pytest.raises(DataError, match="a whole step of padding: give texts with tokens"):
        loss(batch, count(batch))
    assert float(loss(batch, {**count(batch), "tokens": 5})[0]) == 0.0


class Says:
    """A model that has spoken."""

    causal = False

    def __init__(self, prediction):
        self.prediction = prediction


class Words:
    """A vocabulary alone."""

    all_special_tokens = ()

    def __init__(self, known):
        self.known = known

    def get_vocab(self):
        return self.known


def test_a_text_of_padding_only_has_no_part_in_the_relations_of_texts():
    torch.manual_seed(0)
    ours, theirs = torch.randn(5, 4, 6), torch.randn(5, 3, 8)
    batch = {"attention_mask": torch.ones(5, 4).long(), "o.attention_mask": torch.ones(5, 3).long()}
    wanted = alignment.text_relational(ours[:4], theirs[:4], {name: mask[:4] for name, mask in batch.items()}, "o")
    for mask in batch.values():
        mask[4] = 0
    found = alignment.text_relational(ours.requires_grad_(), theirs, batch, "o")
    torch.testing.assert_close(found, wanted)
    found.backward()
    assert ours.grad.isfinite().all()


def test_a_vocabulary_that_is_trained_again_is_the_same():
    """Rows are repeated to the last digit, and the library's own trainer gave another vocabulary each time."""
    one, other = (readers.wordpiece.__wrapped__(600).get_vocab() for _ in range(2))
    assert one == other
