from __future__ import annotations

import torch

from secateur.subjects.network.labels import Atoms, Flow, Labelled


def fresh() -> tuple[Flow, Atoms]:
    atoms = Atoms()
    return Flow(atoms), atoms


def test_joint_labels_collapse_where_another_tensor_has_none() -> None:
    flow, atoms = fresh()
    (label,) = atoms.colour("q", torch.zeros(6))
    joint = label.view(3, 2)
    (left,) = flow.meet([Labelled((3, 2), (joint,)), Labelled((2,), ())])
    assert left.shape == (3, 1)
    of = atoms.classes().of
    assert of[1] == of[2] != of[3] == of[4]
    assert not atoms.classes().reasons


def test_nothing_left_means_that_it_stays() -> None:
    flow, atoms = fresh()
    (label,) = atoms.colour("q", torch.zeros(6))
    assert flow.meet([Labelled((6,), (label,)), Labelled((6,), ())]) == ()
    assert len(atoms.classes().reasons) == 6
    flow, atoms = fresh()
    (label,) = atoms.colour("q", torch.zeros(6))
    assert len(flow.meet([Labelled((6,), (label,)), Labelled((6,), (), blank=True), Labelled((1,), ())])) == 1
    assert not atoms.classes().reasons


def test_a_product_joins_what_is_summed_and_passes_on_the_rest() -> None:
    flow, atoms = fresh()
    x, (rows, columns) = atoms.colour("x", torch.zeros(1, 1, 4)), atoms.colour("w", torch.zeros(4, 3))
    out = flow.contract(Labelled((1, 5, 4), x), Labelled((1, 4, 3), (rows[None], columns[None])))
    assert [tuple(label.shape) for label in out] == [(1, 1, 3)]
    of = atoms.classes().of
    assert (of[1:5] == of[5:9]).all()
    assert not atoms.classes().reasons


def test_heads_come_out_of_batched_products() -> None:
    flow, atoms = fresh()
    (q,), (k,) = atoms.colour("q", torch.zeros(6)), atoms.colour("k", torch.zeros(6))
    out = flow.contract(Labelled((3, 5, 2), (q.view(3, 1, 2),)), Labelled((3, 2, 5), (k.view(3, 2, 1),)))
    assert [tuple(label.shape) for label in out] == [(3, 1, 1)]
    of = atoms.classes().of
    assert len(np_unique(of[1:])) == 3
    assert of[1] == of[2] == of[7] == of[8]
    assert len(flow.heads) == 2


def np_unique(values):
    return set(values.tolist())
