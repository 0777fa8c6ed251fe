"""A chain of teachers: each learns from the one before, with the one training loop."""

import pytest
import torch

from recover.students import Batches, llama, logit_objective
from secateur.errors import InputError
from secateur.recover.distillation import assistants
from secateur.recover.training import loop


def test_each_learns_from_the_one_before_it(tmp_path):
    teacher, assistant, student = llama(1, width=64), llama(2), llama(3, width=16)
    teacher.lm_head.weight.data *= 6
    apart, taught = {}, []

    def teach(learner, above, number):
        taught.append((learner, above, number))
        batch = Batches(8)[100]

        def distance():
            with torch.no_grad():
                return float(logit_objective(learner, above)(batch, {"tokens": int(batch["attention_mask"].sum())})[0])

        before = distance()
        done = loop.train(
            learner, Batches(8), logit_objective(learner, above), steps=30, lr=1e-2, checkpoint=tmp_path / str(number)
        )
        apart[number] = (before, distance())
        return done

    records = assistants.chain(teacher, [assistant, student], teach)
    assert [(learner is assistant, above is teacher, number) for learner, above, number in taught] == [
        (True, True, 0),
        (False, False, 1),
    ]
    assert taught[1][:2] == (student, assistant)
    assert [record.steps for record in records] == [30, 30]
    for before, after in apart.values():
        assert after < 0.9 * before


def test_a_chain_without_a_student_or_with_one_twice_is_refused():
    one, other = llama(1), llama(2)
    with pytest.raises(InputError, match="at least one"):
        assistants.chain(one, [], None)
    for links in ([one], [other, other]):
        with pytest.raises(InputError, match="twice"):
            assistants.chain(one, links, None)
