"""On-policy distillation: what the student wrote counts, and nothing else; the same bytes after an interruption."""

import pytest
import torch
from torch.nn import functional

from recover.students import VOCABULARY, Batches, forward, llama
from secateur.errors import DataError, InputError
from secateur.recover.distillation import losses, policy
from secateur.recover.training import loop

END, PAD = 3, 0


def sure(seed, **how):
    """A model with opinions."""
    model = llama(seed, **how)
    model.lm_head.weight.data *= 8
    return model


def rollouts(student, **how):
    options = {"share": 1.0, "prompt": 4, "new": 12, "end": END, "pad": PAD, "seed": 1}
    return policy.Rollouts(student, how.pop("batches", Batches(6)), **{**options, **how})


def weights(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


# --------------------------------------------------------------------------------------------------------- the batches


def test_without_a_share_the_texts_come_as_they_are_and_only_what_follows_the_prompt_counts():
    batches = rollouts(llama(1), share=0.0)
    for index in range(3):
        given, found = Batches(6)[index], batches[index]
        assert torch.equal(found["input_ids"], given["input_ids"])
        assert torch.equal(found["attention_mask"], given["attention_mask"])
        lengths = given["attention_mask"].sum(-1)
        for row, length in zip(found["counted"], lengths.tolist(), strict=True):
            start = min(4, length - 1)
            assert row.nonzero().flatten().tolist() == list(range(start - 1, length - 1))


def test_what_the_student_writes_follows_its_prompt_up_to_the_end_of_text():
    student, ends = sure(1), 0
    for index in range(6):
        given, found = Batches(6)[index], rollouts(student)[index]
        for row in range(6):
            start = min(4, int(given["attention_mask"][row].sum()) - 1)
            ids, length = found["input_ids"][row], int(found["attention_mask"][row].sum())
            assert torch.equal(ids[:start], given["input_ids"][row, :start])
            assert found["attention_mask"][row].tolist() == [1] * length + [0] * (len(ids) - length)
            said = ids[start:length].tolist()
            assert 1 <= len(said) <= 12
            assert END not in said[:-1]
            assert (said[-1] == END) or len(said) == 12
            assert ids[length:].tolist() == [PAD] * (len(ids) - length)
            assert found["counted"][row].nonzero().flatten().tolist() == list(range(start - 1, length - 1))
            ends += said[-1] == END
        assert int(found["attention_mask"].sum(-1).max()) == found["input_ids"].shape[1]
    assert ends  # else nothing was asked of the end


def test_padding_on_the_left_while_writing_changes_no_token():
    """Greedily, each row is what the model writes after that prompt alone."""
    student = sure(1)
    given, found = Batches(6)[0], rollouts(student, temperature=0)[0]
    for row in range(6):
        start = min(4, int(given["attention_mask"][row].sum()) - 1)
        alone = student.generate(
            given["input_ids"][row : row + 1, :start], max_new_tokens=12, do_sample=False, eos_token_id=END,
            pad_token_id=PAD,
        )[0]  # fmt: skip
        length = int(found["attention_mask"][row].sum())
        assert torch.equal(found["input_ids"][row, :length], alone)


def test_sampling_follows_the_students_own_probabilities():
    """Of 600 draws, each of the likeliest tokens is as frequent as its probability says."""
    student = llama(1)
    student.lm_head.weight.data *= 20
    prompt = torch.tensor([[5, 6, 7, 8, 9]] * 600)
    batch = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
    found = rollouts(student, batches=[batch], new=1, end=None)[0]["input_ids"][:, 4]
    with torch.no_grad():
        p = student(prompt[:1, :4]).logits[0, -1].softmax(-1)
    seen = torch.bincount(found, minlength=VOCABULARY) / 600
    assert torch.allclose(seen, p, atol=4 * (0.25 / 600) ** 0.5)
    assert p.max() > 0.1


def test_share_is_the_part_of_the_batches_and_chance_is_the_seeds():
    student = sure(1)
    texts = [torch.equal(rollouts(student, share=0.5)[i]["input_ids"], Batches(6)[i]["input_ids"]) for i in range(40)]
    assert 10 <= sum(texts) <= 30
    before = torch.random.get_rng_state()
    one, other = rollouts(student)[2], rollouts(student)[2]
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["input_ids"], rollouts(student)[3]["input_ids"])
    again = rollouts(student, seed=2)[2]["input_ids"]
    assert again.shape != one["input_ids"].shape or not torch.equal(one["input_ids"], again)


def test_the_student_writes_without_dropout_and_stays_in_training():
    student = sure(1, dropout=0.5)
    wanted = rollouts(student)[0]["input_ids"]
    student.train()
    assert torch.equal(rollouts(student)[0]["input_ids"], wanted)
    assert student.training


def test_a_models_own_ways_of_writing_are_left_aside():
    """A penalty on repetition, as checkpoints bring along in generation_config.json, is none of its probabilities."""
    student = sure(1)
    wanted = rollouts(student)[0]["input_ids"]
    student.generation_config.update(repetition_penalty=3.0, no_repeat_ngram_size=2, min_new_tokens=12, min_p=0.9)
    before = student.generation_config.to_dict()
    assert torch.equal(rollouts(student)[0]["input_ids"], wanted)
    assert student.generation_config.to_dict() == before


# ------------------------------------------------------------------------------------------------------- the objective


def plain(p, q, beta):
    """The divergence per token, of probabilities."""
    if beta == 0:
        return (p * (p / q).log()).sum(-1)
    if beta == 1:
        return (q * (q / p).log()).sum(-1)
    m = beta * p + (1 - beta) * q
    return beta * (p * (p / m).log()).sum(-1) + (1 - beta) * (q * (q / m).log()).sum(-1)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("beta", [0, 0.1, 0.5, 0.9, 1])
def test_caps_of_both_sides_are_their_own(beta, fused):
    """A student took its own cap for its teacher's, and a teacher lost its."""
    student, teacher = sure(1), sure(2)
    batch = rollouts(student)[0]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    for caps in ((2.0, None), (None, 2.0), (3.0, 2.0)):
        sides = (forward(one, cap) for one, cap in zip((student, teacher), caps, strict=True))
        loss, _ = policy.objective(*sides, beta=beta, fused=fused)(batch, policy.count(batch))
        q, p = (
            functional.softmax(logits if cap is None else cap * torch.tanh(logits / cap), -1)[batch["counted"]]
            for logits, cap in zip((one(**inputs).logits for one in (student, teacher)), caps, strict=True)
        )
        assert loss.item() == pytest.approx(plain(p.detach(), q, beta).mean().item(), rel=1e-4)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("beta", [0, 0.1, 0.5, 0.9, 1])
def test_only_what_follows_the_prompt_counts(beta, fused):
    student, teacher = sure(1), sure(2)
    batch = rollouts(student)[0]
    totals = policy.count(batch)
    assert totals["tokens"] == int(batch["counted"].sum()) < int(batch["attention_mask"].sum())
    asked = []

    def watched(model):
        ask = forward(model)
        return lambda batch, **how: asked.append(how) or ask(batch, **how)

    objective = policy.objective(watched(student), watched(teacher), beta=beta, temperature=2.0, fused=fused)
    loss, parts = objective(batch, totals)
    assert asked == [{"head": False} if fused else {}] * 2
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    p, q = (functional.softmax(one(**inputs).logits / 2.0, -1)[batch["counted"]] for one in (teacher, student))
    wanted = plain(p.detach(), q, beta).mean()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)
    one, other = (torch.autograd.grad(x, student.model.norm.weight)[0] for x in (loss, wanted))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    assert parts["divergence"] == pytest.approx(loss.item())


def test_on_policy_brings_the_student_to_its_teacher():
    student, teacher = llama(1), sure(2)
    batches = rollouts(student, batches=Batches(8))

    def apart():
        batch = rollouts(student, batches=Batches(8), seed=9)[50]
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            logits = [one(**inputs).logits for one in (student, teacher)]
            return float(losses.kl(*logits, batch["counted"], direction="reverse") / batch["counted"].sum())

    before = apart()
    objective = policy.objective(forward(student), forward(teacher), beta=0.9)
    done = loop.train(student, batches, objective, steps=60, lr=1e-2, count=policy.count, frozen=[teacher])
    assert apart() < 0.7 * before
    assert done.tokens > 0


def test_interrupted_at_any_step_and_resumed_it_ends_with_the_same_bytes(tmp_path):
    """Dropout is on, and the student changes what it writes at each step."""

    def trained(folder, stop=None, accumulate=2):
        student, teacher, asked = sure(1, dropout=0.2), sure(2), [0]
        inner = policy.objective(forward(student), forward(teacher), beta=0.5)

        def objective(batch, totals):
            asked[0] += 1
            if asked[0] == stop:
                raise KeyboardInterrupt
            return inner(batch, totals)

        done = loop.train(
            student, rollouts(student, share=0.7), objective, steps=6, lr=3e-2, count=policy.count, every=2,
            checkpoint=folder, accumulate=accumulate,
        )  # fmt: skip
        return weights(student), done

    whole, record = trained(tmp_path / "whole")
    for stop in (6, 11):  # in the middle of step 3, before the last step
        folder = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            trained(folder, stop)
        resumed, again = trained(folder)
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
        assert again.losses == record.losses
        assert again.tokens == record.tokens


# ------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"share": 1.5}, "share=1.5"),
        ({"share": float("nan")}, "share=nan"),
        ({"temperature": -1}, "temperature=-1"),
        ({"prompt": 0}, "prompt=0"),
        ({"new": 0}, "new=0"),
        ({"new": 61}, "more than the model's 64 positions"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(how, words):
    with pytest.raises(InputError, match=words):
        rollouts(llama(1), **how)


def test_a_beta_outside_its_range_is_refused():
    with pytest.raises(InputError, match="beta=2"):
        policy.objective(None, None, beta=2)


def test_texts_of_one_token_have_nothing_to_follow():
    ids = torch.tensor([[5, 0, 0], [6, 7, 8]])
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    found = rollouts(llama(1), batches=[batch], share=0.0)[0]
    assert found["input_ids"].tolist() == [[6, 7, 8]]
    empty = {name: tensor[:1] for name, tensor in batch.items()}
    for share in (0.0, 1.0):
        with pytest.raises(DataError, match="at least two tokens"):
            rollouts(llama(1), batches=[empty], share=share)[0]
