from __future__ import annotations

import numpy as np
import torch

from secateur.subjects.network.labels import Atoms


def test_each_dimension_has_its_own_atoms() -> None:
    atoms = Atoms()
    rows, columns = atoms.colour("w", torch.zeros(3, 2))
    assert rows.shape == (3, 1)
    assert columns.shape == (1, 2)
    assert sorted([*rows.flatten().tolist(), *columns.flatten().tolist()]) == [1, 2, 3, 4, 5]
    assert len(atoms.colour("v", torch.zeros(1, 4))) == 1, "a dimension of size 1 can't shrink"


def test_what_meets_goes_together_and_what_meets_nothing_stays() -> None:
    atoms = Atoms()
    (a,), (b,) = atoms.colour("a", torch.zeros(3)), atoms.colour("b", torch.zeros(3))
    atoms.join(a, b, "added")
    atoms.join(a, torch.tensor([0, 0, 3], dtype=torch.int32), "padded")
    classes = atoms.classes()
    assert classes.of[0] == 0
    assert (classes.of[1:4] == classes.of[4:7]).all()
    assert classes.reasons == {classes.of[1]: "padded", classes.of[2]: "padded"}


def test_more_pairs_and_more_reasons_can_be_given_later() -> None:
    atoms = Atoms()
    atoms.colour("a", torch.zeros(4))
    classes = atoms.classes([np.array([[1, 3], [2, 4]])], [(np.array([3]), "later")])
    assert classes.of[1] == classes.of[2] != classes.of[3] == classes.of[4]
    assert set(classes.reasons.values()) == {"later"}


def test_what_meets_very_often_still_meets() -> None:
    """256 times is 0 in numbers of eight bits."""
    atoms = Atoms()
    (a,), (b,) = atoms.colour("a", torch.zeros(2)), atoms.colour("b", torch.zeros(2))
    for _ in range(256):
        atoms.join(a, b, "added")
    of = atoms.classes().of
    assert (of[1:3] == of[3:5]).all()
    assert of[1] != of[2]
