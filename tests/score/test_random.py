import torch

from secateur.score import random
from secateur.vocabulary import Site, Units

UNITS = Units({"a.heads": Site("a.heads", 5), "b.heads": Site("b.heads", 5), "layers": Site("layers", 3)})


def test_scores_repeat_under_a_seed_and_differ_between_sites_and_seeds():
    first, again, other = random.scores(UNITS, 1), random.scores(UNITS, 1), random.scores(UNITS, 2)
    assert set(first) == set(UNITS)
    assert all(torch.equal(first[name], again[name]) for name in UNITS)
    assert not torch.equal(first["a.heads"], other["a.heads"])
    assert not torch.equal(first["a.heads"], first["b.heads"])


def test_freezing_a_site_leaves_the_others_alone():
    only = random.scores(UNITS.only("heads"), 1)
    assert set(only) == {"a.heads", "b.heads"}
    assert torch.equal(only["a.heads"], random.scores(UNITS, 1)["a.heads"])


def test_the_global_generator_is_not_touched():
    state = torch.get_rng_state()
    random.scores(UNITS, 3)
    assert torch.equal(state, torch.get_rng_state())
