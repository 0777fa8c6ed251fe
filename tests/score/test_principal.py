import pytest
import torch

from secateur.errors import DataError, NumericalError
from secateur.score import principal


def test_components_are_those_of_all_states_largest_first():
    draw = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.1, 3.0, 1.0, 2.0])
    turn = torch.linalg.qr(torch.randn(4, 4, generator=draw))[0]
    states = [torch.randn(2, 500, 4, generator=draw) * scale @ turn.T for _ in range(3)]
    moment = principal.second_moment(iter(states))
    rows = torch.cat(states).flatten(0, 1).double()
    torch.testing.assert_close(moment, rows.T @ rows)
    values, basis = principal.components(moment)
    assert values.tolist() == sorted(values.tolist(), reverse=True)
    torch.testing.assert_close(basis.T @ basis, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(basis @ torch.diag(values) @ basis.T, moment)
    first = basis[:, 0].float() @ turn
    assert first.abs().argmax() == 1, "the direction of the largest scale"


def test_no_states_and_bad_states_are_refused():
    with pytest.raises(DataError, match="no states"):
        principal.second_moment([])
    with pytest.raises(NumericalError, match="states of the residual stream"):
        principal.second_moment([torch.tensor([[1.0, float("nan")]])])
