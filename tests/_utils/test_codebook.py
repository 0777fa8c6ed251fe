import torch

from secateur._utils.codebook import coded_bytes, table


def test_a_table_holds_the_numbers_of_each_row_in_as_few_bits_as_the_richest_row_needs() -> None:
    matrix = torch.tensor([[0.0, 1.0, 1.0, 2.0], [5.0, 5.0, 5.0, 5.0]])
    found = table(matrix)
    assert found is not None
    assert found.tolist() == [[0, 1, 2, 2], [5, 5, 5, 5]]
    assert coded_bytes(found, 16) == found.nbytes + 2 * 2


def test_rows_of_more_than_256_numbers_have_no_table() -> None:
    assert table(torch.arange(257.0)[None]) is None
    assert table(torch.empty(0, 3)) is None
