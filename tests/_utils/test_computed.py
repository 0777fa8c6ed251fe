from __future__ import annotations

from secateur._utils.computed import Computed


class Squares(Computed[int]):
    def __len__(self) -> int:
        return 4

    def make(self, index: int) -> int:
        return index * index


def test_numbers_go_on_and_a_pass_ends():
    squares = Squares()
    assert list(squares) == [0, 1, 4, 9]
    assert squares[10] == 100
    assert squares[1:9:2] == [1, 9]
    assert squares[-2:] == [4, 9]
    assert squares.take(2) == [0, 1]
    assert squares.take(9) == [0, 1, 4, 9]
