"""Label tensors, atoms that go together, and the two laws."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from secateur.subjects.network.labels import (
    CONSUMED,
    LEFT_OUT,
    NOTHING,
    REDUCED,
    SOURCES,
    Atoms,
    Flow,
    Operand,
    along,
    compact,
    first,
    on,
    pad_rank,
    varying,
    within,
)


def test_compact_keeps_only_what_changes() -> None:
    row = torch.tensor([1, 2, 3])
    full = row.view(1, 3, 1).expand(2, 3, 4)
    assert compact(full).shape == (1, 3, 1)
    assert compact(full.contiguous()).shape == (1, 3, 1)
    both = torch.arange(6).view(2, 3)
    assert compact(both) is both
    ends_alike = torch.tensor([1, 2, 1])
    assert compact(ends_alike).shape == (3,)


def test_rows_and_dimensions() -> None:
    label = on(torch.tensor([4, 5]), 1, 3)
    assert label.shape == (1, 2, 1)
    assert varying(label) == {1}
    assert along(label, 1).tolist() == [4, 5]
    assert first(label, [1]).flatten().tolist() == [4]
    assert pad_rank(torch.tensor([4, 5]), 3).shape == (1, 1, 2)


def test_a_path_is_inside_its_parents_only():
    assert within("a.b", ["x", "a"])
    assert within("a", ["a"])
    assert not within("ab", ["a", ""])


def test_each_dimension_has_its_own_atoms() -> None:
    atoms = Atoms()
    rows, columns = atoms.add("w", torch.zeros(3, 2))
    assert rows.shape == (3, 1)
    assert columns.shape == (1, 2)
    assert sorted([*rows.flatten().tolist(), *columns.flatten().tolist()]) == [1, 2, 3, 4, 5]
    assert len(atoms.add("v", torch.zeros(1, 4))) == 1, "a dimension of size 1 can't shrink"


def test_what_meets_goes_together_and_what_meets_nothing_stays() -> None:
    atoms = Atoms()
    (a,), (b,) = atoms.add("a", torch.zeros(3)), atoms.add("b", torch.zeros(3))
    atoms.join(a, b, "added")
    atoms.join(a, torch.tensor([0, 0, 3], dtype=torch.int32), "padded")
    classes = atoms.classes()
    assert classes.of[0] == 0
    assert (classes.of[1:4] == classes.of[4:7]).all()
    assert classes.reasons == {classes.of[1]: "padded", classes.of[2]: "padded"}


def test_more_pairs_and_more_reasons_can_be_given_later() -> None:
    atoms = Atoms()
    atoms.add("a", torch.zeros(4))
    classes = atoms.classes([np.array([[1, 3], [2, 4]])], [(np.array([3]), "later")])
    assert classes.of[1] == classes.of[2] != classes.of[3] == classes.of[4]
    assert set(classes.reasons.values()) == {"later"}


def test_what_meets_very_often_still_meets() -> None:
    """256 times is 0 in numbers of eight bits."""
    atoms = Atoms()
    (a,), (b,) = atoms.add("a", torch.zeros(2)), atoms.add("b", torch.zeros(2))
    for _ in range(256):
        atoms.join(a, b, "added")
    of = atoms.classes().of
    assert (of[1:3] == of[3:5]).all()
    assert of[1] != of[2]


def fresh() -> tuple[Flow, Atoms]:
    atoms = Atoms()
    return Flow(atoms), atoms


def test_joint_labels_collapse_where_another_tensor_has_none() -> None:
    flow, atoms = fresh()
    (label,) = atoms.add("q", torch.zeros(6))
    joint = label.view(3, 2)
    (left,) = flow.elementwise([Operand((3, 2), (joint,)), Operand((2,))])
    assert left.shape == (3, 1)
    of = atoms.classes().of
    assert of[1] == of[2] != of[3] == of[4]
    assert not atoms.classes().reasons


def test_nothing_left_means_that_it_stays() -> None:
    flow, atoms = fresh()
    (label,) = atoms.add("q", torch.zeros(6))
    assert flow.elementwise([Operand((6,), (label,)), Operand((6,))]) == ()
    assert len(atoms.classes().reasons) == 6
    flow, atoms = fresh()
    (label,) = atoms.add("q", torch.zeros(6))
    assert len(flow.elementwise([Operand((6,), (label,)), Operand((6,), (), blank=True), Operand((1,))])) == 1
    assert not atoms.classes().reasons


def test_a_product_joins_what_is_summed_and_passes_on_the_rest() -> None:
    flow, atoms = fresh()
    x, (rows, columns) = atoms.add("x", torch.zeros(1, 1, 4)), atoms.add("w", torch.zeros(4, 3))
    out = flow.matmul(Operand((1, 5, 4), x), Operand((1, 4, 3), (rows[None], columns[None])))
    assert [tuple(label.shape) for label in out] == [(1, 1, 3)]
    of = atoms.classes().of
    assert (of[1:5] == of[5:9]).all()
    assert not atoms.classes().reasons


def test_heads_come_out_of_batched_products() -> None:
    flow, atoms = fresh()
    (q,), (k,) = atoms.add("q", torch.zeros(6)), atoms.add("k", torch.zeros(6))
    out = flow.matmul(Operand((3, 5, 2), (q.view(3, 1, 2),)), Operand((3, 2, 5), (k.view(3, 2, 1),)))
    assert [tuple(label.shape) for label in out] == [(3, 1, 1)]
    of = atoms.classes().of
    assert len(set(of[1:].tolist())) == 3
    assert of[1] == of[2] == of[7] == of[8]
    assert len(flow.heads) == 2


def test_tensors_of_one_value_that_were_made_of_one_another_take_on_labels_each_once() -> None:
    """Each was asked for once for every way that leads to it: twelve steps took seconds, a thousand no stack held."""
    flow, start = Flow(Atoms()), torch.zeros(4)
    flow.mark(start, NOTHING, blank=True)
    value = start
    for _ in range(2000):
        made = torch.zeros(4)
        flow.mark(made, NOTHING, blank=True)
        made.__dict__[SOURCES] = [value, value]
        value = made
    (row,) = flow.atoms.add("weight", torch.zeros(4))
    flow.take_on(value, (row,))
    assert len(flow.labels(start)) == len(flow.labels(value)) == 1


def test_one_tensor_takes_on_labels_that_lie_at_one_place_in_memory_and_differ() -> None:
    flow = Flow(Atoms())
    wide, square = torch.zeros(16, 16), torch.zeros(4, 4)
    (row,) = flow.atoms.add("weight", torch.zeros(16))
    for value in (wide, square):
        flow.mark(value, NOTHING, blank=True)
    flow.take_on(wide, (on(row, 0, 2), on(row, 0, 2).t()))
    assert [tuple(label.shape) for label in flow.labels(wide)] == [(16, 1), (1, 16)]
    for label in (row.view(4, 4), row.view(4, 4).t()):
        flow.take_on(square, (label,))
    of = flow.atoms.classes().of
    assert of[2] == of[5], "what is combined with one element goes together"


def test_ways_by_which_a_tensor_of_one_value_was_made_are_gone_once_where_labels_are_joined() -> None:
    flow, value = Flow(Atoms()), torch.zeros(4)
    flow.mark(value, NOTHING, blank=True)
    for _ in range(12):
        # Two ways lead to each, with labels that are views of one row.
        made = [torch.zeros(4) for _ in range(3)]
        for one, sources in zip(made, ([value], [value], made[:2]), strict=True):
            flow.mark(one, NOTHING, blank=True)
            one.__dict__[SOURCES] = sources
        value = made[2]
    rows = [*flow.atoms.add("first", torch.zeros(4)), *flow.atoms.add("second", torch.zeros(4))]
    for row in rows:
        flow.take_on(value, (row,))
    of = flow.atoms.classes().of
    assert (of[1:5] == of[5:9]).all()
    assert len(flow.atoms.joins) == 37


def test_labels_of_a_tensor_of_one_value_are_joined_with_those_it_had_along_the_same_dimension_alone() -> None:
    flow, mask = Flow(Atoms()), torch.zeros(4, 4)
    flow.mark(mask, NOTHING, blank=True)
    first_row, second, column, third, fourth = (flow.atoms.add(name, torch.zeros(4))[0] for name in "abcde")
    # Two kinds of channels along one dimension are not joined.
    flow.take_on(mask, (on(first_row, 0, 2), on(second, 0, 2), on(column, 1, 2)))
    of = flow.atoms.classes().of
    assert len(set(of[1:13].tolist())) == 12
    flow.take_on(mask, (on(third, 0, 2), on(fourth, 0, 2)))
    of = flow.atoms.classes().of
    assert (of[1:5] == of[13:17]).all()
    assert (of[1:5] == of[17:21]).all()
    assert len(set(of[1:13].tolist())) == 12


WHOLE, FIRST, LAST = slice(0, 4), slice(0, 2), slice(2, 4)


@pytest.mark.parametrize(
    ("events", "used"),
    [
        ([], ""),
        ([(CONSUMED, WHOLE)], "0123"),
        ([(REDUCED, WHOLE)], "0123"),
        ([(LEFT_OUT, LAST)], ""),
        ([(LEFT_OUT, LAST), (CONSUMED, FIRST)], "01"),
        ([(LEFT_OUT, LAST), (REDUCED, WHOLE), (CONSUMED, FIRST)], "01"),
        ([(REDUCED, WHOLE), (LEFT_OUT, LAST), (REDUCED, FIRST)], "01"),
        ([(CONSUMED, FIRST), (REDUCED, WHOLE)], "0123"),
        ([(LEFT_OUT, LAST), (REDUCED, WHOLE), (CONSUMED, FIRST), (CONSUMED, WHOLE)], "0123"),
        # A part was looked at only.
        ([(LEFT_OUT, LAST), (REDUCED, WHOLE)], "0123"),
        # Each part is reduced by itself.
        ([(LEFT_OUT, LAST), (REDUCED, FIRST), (LEFT_OUT, FIRST), (REDUCED, LAST)], "0123"),
    ],
)
def test_what_is_used(events: list[tuple[int, slice]], used: str) -> None:
    flow, (row,), result = Flow(atoms := Atoms()), atoms.add("a", torch.zeros(4)), torch.zeros(4)
    for how, some in events:
        flow.lose([row[some]], [], how)
    flow.mark(result, (row,))
    for how in (CONSUMED, REDUCED):
        flow.lose([row[WHOLE]], [result], how)  # which carries it on
    assert "".join(str(one) for one in np.flatnonzero(flow.list_reached()[1:])) == used


def test_of_a_label_that_goes_on_in_part_the_rest_was_joined_and_not_reduced() -> None:
    flow, (row,), result = Flow(atoms := Atoms()), atoms.add("a", torch.zeros(4)), torch.zeros(4)
    flow.mark(result, (row[:2],))
    flow.lose([row], [], LEFT_OUT)
    flow.lose([row[2:3]], [], CONSUMED)  # or what is reduced would be all that is known of the rest
    flow.lose([row], [result], REDUCED)
    assert flow.list_reached()[1:].tolist() == [False, False, True, True]


def test_to_note_what_is_lost_takes_as_long_as_the_labels_and_not_as_all_atoms() -> None:
    """They were sorted: a network that computes a matrix of a million weights took minutes."""
    flow, row = Flow(atoms := Atoms()), torch.arange(1, 1 << 20, dtype=torch.int32)
    atoms.count, result = 1 << 20, torch.zeros(1)
    flow.mark(result, (row.view(-1),))
    before = time.process_time()
    for _ in range(20):
        flow.lose([row], [result], CONSUMED)
    assert time.process_time() - before < 2, "setdiff1d takes 4 to 8 seconds"
    assert not flow.list_reached()[1:].any()
