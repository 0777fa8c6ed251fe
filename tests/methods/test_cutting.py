from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import InfeasibleError
from secateur.methods.cutting import advise, cut_with_retries
from secateur.score import magnitude
from secateur.select import ranking
from secateur.subjects.network.traced import Traced, open_traced
from secateur.vocabulary import Selection


class Careless(nn.Module):
    """Code that computes with a number which analysis can't see: 4 channels per head, whatever comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.c(self.b(x.view(x.shape[0], 2, 4).flatten(1)).relu())


@pytest.fixture
def subject() -> Traced:
    torch.manual_seed(0)
    return open_traced(Careless(), torch.randn(4, 6), prove=False)


def test_what_cannot_be_proved_stays_whole_and_the_choice_is_made_anew(subject: Traced) -> None:
    chosen: list[Selection] = []

    def select() -> Selection:
        chosen.append(ranking.by_budget(subject.units(), magnitude.coupled_norm(subject.slices()), "channels=50%"))
        return chosen[-1]

    noise = torch.get_rng_state()
    selection, small, cut = cut_with_retries(subject, select, seed=3)
    assert torch.equal(torch.get_rng_state(), noise), "with a seed the caller's generator is left as found"
    assert len(chosen) == 2
    assert selection is chosen[-1]
    assert (small.model.a.out_features, small.model.b.out_features) == (8, 5)
    assert any("a cut of it fails" in note for note in cut.notes)


def test_a_budget_that_cannot_be_met_once_a_site_has_to_stay_is_refused(subject: Traced) -> None:
    def select() -> Selection:
        return ranking.by_budget(subject.units(), magnitude.coupled_norm(subject.slices()), "params=10%")

    with pytest.raises(InfeasibleError, match="params"):
        cut_with_retries(subject, select)


def test_what_more_may_be_asked_for_is_added_to_a_budget_that_cannot_be_met() -> None:
    for line, told in (("with all=true, too", "too little; with all=true, too"), ("", "too little")):
        with pytest.raises(InfeasibleError) as refused, advise(line):
            raise InfeasibleError("too little", 3.0)
        assert (str(refused.value), refused.value.reachable) == (told, 3.0)
