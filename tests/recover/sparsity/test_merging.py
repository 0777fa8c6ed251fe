"""Which expert stays for its cluster, and what the layer then holds."""

import pytest
import torch

from secateur.errors import InputError
from secateur.recover.sparsity import merging


def packed(experts: int = 6, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(experts, *shape, generator=draw).to(dtype) for shape in ((4, 3), (3, 2))]


def test_the_one_nearest_to_the_mean_of_all_weights_together_stays():
    parts = packed()
    for members in ([0, 1, 2], [1, 3, 4, 5], [2, 0, 5]):
        whole = torch.cat([part[members].double().flatten(1) for part in parts], 1)
        expected = members[int((whole - whole.mean(0)).norm(dim=1).argmin())]
        assert merging.closest(parts, members) == expected
    # Each part alone would choose another: it is the concatenation that counts.
    one = [torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[0.0], [40.0], [30.0]])]
    assert merging.closest(one[:1], [0, 1, 2]) == 1
    assert merging.closest(one, [0, 1, 2]) == 2


def test_ties_go_to_the_larger_weights_whatever_the_order():
    parts = packed()
    norms = sum(part.double().flatten(1).square().sum(1) for part in parts)
    for pair in ([0, 1], [3, 2], [5, 4]):
        larger = max(pair, key=lambda i: float(norms[i]))
        assert merging.closest(parts, pair) == merging.closest(parts, pair[::-1]) == larger
    same = [part[[0, 0, 0]] for part in parts]
    assert merging.closest(same, [1, 2]) == 1
    assert merging.closest(parts, [4]) == 4


def test_permuted_experts_give_the_permuted_choice():
    parts = packed(8)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    place = {int(old): new for new, old in enumerate(order)}
    groups = [[0, 1], [2, 3, 4], [5, 6, 7]]
    plain = merging.representatives(parts, groups)
    turned = merging.representatives([part[order] for part in parts], [[place[i] for i in group] for group in groups])
    assert [int(order[i]) for i in turned] == plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_clusters_keep_the_originals_bit_for_bit_and_few_are_the_mean(dtype):
    parts, groups = packed(dtype=dtype), [[0, 2], [1], [3, 4, 5]]
    chosen = merging.representatives(parts, groups)
    for part in parts:
        for kappa in (0, 2):
            kept = merging.reconstruct(part, groups, chosen, kappa=kappa)
            assert torch.equal(kept, part[chosen])
        mean = merging.reconstruct(part, groups, chosen, kappa=3)
        assert mean.dtype == dtype
        for place, members in enumerate(groups):
            assert torch.equal(mean[place], part[members].double().mean(0).to(dtype))
        assert torch.equal(mean[1], part[1])  # a cluster of one
    rows = torch.randn(6, 5)
    assert merging.reconstruct(rows, groups, chosen, kappa=3).shape == (3, 5)
    assert merging.reconstruct(rows[:, 0], groups, chosen, kappa=0).tolist() == rows[chosen, 0].tolist()


def test_nothing_is_changed():
    parts, groups = packed(), [[0, 1, 2, 3, 4, 5]]
    before = [part.clone() for part in parts]
    means = [merging.reconstruct(part, groups, merging.representatives(parts, groups)) for part in parts]
    means[0].zero_()
    assert all(torch.equal(a, b) for a, b in zip(parts, before, strict=True))


def test_bad_clusters_are_refused():
    with pytest.raises(InputError, match="without experts"):
        merging.closest(packed(), [])
    with pytest.raises(InputError, match="2 chosen experts for 1 clusters"):
        merging.reconstruct(torch.zeros(3, 2), [[0, 1, 2]], [0, 1])
