from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from secateur.subjects.network.coupling import couple
from secateur.subjects.network.proof import _drawn, compare, silenced, stirred
from secateur.subjects.network.recording import Example, record
from secateur.subjects.network.shrinking import plan, shrink, twin
from subjects import nets


def prepared(name: str):
    model, inputs = nets.make(name)
    example = Example.of(inputs)
    run = record(model.eval(), example)
    coupling = couple(run)
    kept = coupling.kept({site: np.arange(len(one.classes)) % 2 == 0 for site, one in coupling.sites.items()})
    return model, example, kept, shrink(model, plan(model, coupling, kept, run.flow))


def test_a_right_cut_is_proved_and_a_wrong_one_is_found_where_it_is_wrong() -> None:
    model, example, kept, small = prepared("residual")
    worst, fault = compare(small, silenced(model, kept), example)
    assert fault is None
    assert worst <= 1e-5
    with torch.no_grad():
        small.inner.weight.mul_(1.5)
    worst, fault = compare(small, silenced(model, kept), example)
    assert fault is not None
    assert fault.where == "inner"
    assert worst > 1e-5


def test_a_cut_that_cannot_run_is_found_where_it_stops() -> None:
    model, example, kept, small = prepared("joined")
    small.head.weight = torch.nn.Parameter(torch.zeros(5, 3))
    worst, fault = compare(small, silenced(model, kept), example)
    assert worst == float("inf")
    assert fault is not None
    assert fault.where == "head"
    assert "RuntimeError" in fault.what


def test_zero_last_weights_prove_nothing_so_the_inside_is_looked_at() -> None:
    model, example, kept, small = prepared("mlp")
    with torch.no_grad():
        for one in (model, small):
            one[4].weight.zero_()
        small[0].weight.mul_(2)
    worst, fault = compare(small, silenced(model, kept), example)
    assert fault is not None
    assert fault.where == "0"
    assert worst >= 1


def test_where_outputs_tell_nothing_the_cut_is_proved_under_weights_drawn_anew() -> None:
    model, inputs = nets.make("mlp")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e-6)
        model[4].weight.zero_()
    example = Example.of(inputs)
    run = record(model.eval(), example)
    coupling = couple(run)
    kept = coupling.kept({site: np.arange(len(one.classes)) % 2 == 0 for site, one in coupling.sites.items()})
    made = plan(model, coupling, kept, run.flow)
    other = {name: {dim: [*index[1:], index[0]] for dim, index in dims.items()} for name, dims in made.tensors.items()}
    wrong = replace(made, tensors={**made.tensors, "2.weight": other["2.weight"]})
    assert compare(shrink(model, wrong), silenced(model, kept), example) == (0.0, None)
    worst, fault = stirred(model, wrong, kept, example)
    assert fault is not None
    assert worst > 1e-2
    worst, fault = stirred(model, made, kept, example)
    assert fault is None
    assert worst <= 1e-5


class Rounded(torch.nn.Module):
    """Adds so much that little of its sums is left in single precision."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = torch.nn.Linear(6, 64), torch.nn.LayerNorm(64), torch.nn.Linear(64, 8)

    def forward(self, x):
        return self.last(self.norm(self.first(x))) + 1000 - 1000


def test_a_rounding_is_told_from_a_difference_in_double_precision() -> None:
    torch.manual_seed(0)
    model, example = Rounded().eval(), Example.of(torch.randn(10_000, 6))  # few are rounded the other way
    run = record(model, example)
    coupling = couple(run)
    kept = coupling.kept({site: np.arange(len(one.classes)) % 2 == 0 for site, one in coupling.sites.items()})
    made = plan(model, coupling, kept, run.flow)
    lively = twin(model, _drawn(model), share=True)
    assert compare(shrink(lively, made), silenced(lively, kept), example)[0] > 1e-5, "nothing is rounded"
    worst, fault = stirred(model, made, kept, example, run)
    assert fault is None
    assert worst < 1e-10
    wrong = replace(made, scaled=(("last.weight", 0, (0, 1, 2), 1.01),))
    assert stirred(model, wrong, kept, example, run)[1] is not None
