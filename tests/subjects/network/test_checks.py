"""What is refused: each in one line, and the model stays as it was."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from secateur.errors import InputError, ModelError, UnsupportedError
from secateur.methods.pruning import prune
from secateur.subjects.network.traced import open_traced
from subjects import nets


def mlp() -> nn.Module:
    return nets.make("mlp")[0]


def eight_bits() -> nn.Module:
    model = mlp()
    weight = model.get_parameter("2.weight")
    weight.requires_grad_(False)
    weight.data = weight.data.to(torch.float8_e4m3fn)
    return model


def inner(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    model = mlp()
    model[2] = wrap(model[2])
    return model


def spoilt(name: str, value: float) -> nn.Module:
    model = mlp()
    model.get_parameter(name).data.view(-1)[0] = value
    return model


X = torch.zeros(4, 6)
UNSUPPORTED: dict[str, tuple[Callable[[], Any], str]] = {
    "scripted": (lambda: torch.jit.script(mlp()), "is compiled: prune the model"),
    "traced": (lambda: torch.jit.trace(mlp(), X), "is compiled"),
    "compiled": (lambda: torch.compile(mlp()), "is compiled"),
    "scripted inside": (lambda: inner(torch.jit.script), r"2 \(RecursiveScriptModule\) is comp"),
    "compiled inside": (lambda: inner(torch.compile), r"2 \(OptimizedModule\) is compiled"),
    "calling compiled": (
        lambda: nets.Net(
            lambda net, x: net.b(net.middle(net.a(x))),
            **nets.linears(6, 8, 2),
            middle=torch.compile(torch.relu, backend="eager"),
        ),
        r"Net calls compiled code \(torch.compile\): prune it with",
    ),
    "spread": (lambda: nn.DataParallel(mlp()), "DataParallel spreads .*model.module"),
    "spread inside": (lambda: inner(nn.DataParallel), "2 .DataParallel. spreads .*, 2.module"),
    "quantised": (
        lambda: torch.ao.quantization.quantize_dynamic(mlp().eval(), {nn.Linear}, dtype=torch.qint8),
        r"0 \(Linear\) is quantised: prune first",
    ),
    "eight bits": (eight_bits, "2.weight is in torch.float8_e4m3fn: prune in a wider type"),
    "no parameters": (nn.ReLU, "no parameters"),
    "one layer": (lambda: nn.Linear(6, 4), "nothing of this Linear can be cut"),
    "not finite": (lambda: nets.chain(lambda x: x / 0), "nothing of this Net can be cut"),
}
BROKEN: dict[str, tuple[Callable[[], Any], str]] = {
    "NaN": (lambda: spoilt("2.weight", float("nan")), "2.weight holds NaN or infinity"),
    "infinity": (lambda: spoilt("0.bias", float("inf")), "0.bias holds NaN or infinity"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2)), "0.weight has no shape yet"),
    "meta": (lambda: mlp().to("meta"), "0.weight has no values"),
}
INPUTS: dict[str, tuple[Any, str]] = {
    "too few": ((), "missing 1 required positional argument"),
    "shape": (torch.zeros(4, 5), "can't run on the example inputs in 0: RuntimeError"),
    "kind": (X.long(), "must have the same dtype"),
    "device": (X.to("meta"), "can't run on the example inputs"),
}
REFUSED = [
    *((make, X, UnsupportedError, words) for make, words in UNSUPPORTED.values()),
    *((make, X, ModelError, words) for make, words in BROKEN.values()),
    *((mlp, inputs, ModelError, words) for inputs, words in INPUTS.values()),
    (mlp, None, InputError, "Sequential comes without example inputs: give them, or their shape"),
    (mlp, "hello", InputError, "input 'hello' is no shape"),
    (mlp, X[:0], InputError, r"the example inputs are empty \(\(0, 6\)\)"),
]


@pytest.mark.parametrize(
    ("make", "inputs", "error", "words"),
    REFUSED,
    ids=[*UNSUPPORTED, *BROKEN, *INPUTS, "no inputs", "text", "empty inputs"],
)
def test_refusals_are_one_line_and_leave_the_model_as_it_was(make, inputs, error, words) -> None:
    torch.manual_seed(0)
    model = make()
    before = {key: repr(value) for key, value in model.state_dict().items()}
    mode = model.training
    with pytest.raises(error, match=words) as caught:
        prune(model, inputs)
    assert "\n" not in str(caught.value)
    assert {key: repr(value) for key, value in model.state_dict().items()} == before
    assert model.training == mode


def test_what_is_no_module_and_what_is_trained_on_several_machines_is_refused() -> None:
    with pytest.raises(InputError, match=r"no torch.nn.Module"):
        open_traced(len, X)  # type: ignore[arg-type]
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(UnsupportedError, match=r"DistributedDataParallel spreads .*model\.module"):
            open_traced(nn.parallel.DistributedDataParallel(mlp()), X)
    finally:
        torch.distributed.destroy_process_group()


def choosing(choose: Callable[[torch.Tensor, torch.Tensor], Any]) -> nets.Net:
    """Which linear runs depends on the input, or on what the first one gives."""

    def run(net, x):
        y = net.first(x).relu()
        return (net.left if choose(x, y) else net.right)(y)

    return nets.Net(run, first=nn.Linear(6, 8), left=nn.Linear(8, 3), right=nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("choose", "words"),
    [
        (lambda x, y: y.sum() > 0, "depends on values computed in Net: other inputs may"),
        (lambda x, y: x.mean() > 0, "and Net looks at values of its in"),
    ],
)
def test_a_branch_that_the_inputs_leave_out_is_refused(choose, words) -> None:
    torch.manual_seed(0)
    with pytest.raises(UnsupportedError, match=rf"right\.weight takes no part .*{re.escape(words)}"):
        prune(choosing(choose), torch.rand(4, 6))


def test_a_loop_over_all_of_the_network_and_a_look_at_a_mask_are_no_branch() -> None:
    def loop(net, x):
        x = net.a(x)
        for _ in range(1 + int(x.abs().max())):
            x = net.b(x).tanh()
        return net.c(x)

    torch.manual_seed(0)
    small, _ = prune(nets.Net(loop, **nets.linears(6, 8, 8, 3)), torch.randn(4, 6))
    assert small.b.out_features == small.b.in_features == small.a.out_features == 4

    last = nets.Net(lambda net, given: net.last(given[0] if given[1].isfinite().all() else 0), last=nn.Linear(8, 3))
    masked = nets.Net(lambda net, x: net.end((net.first(x).relu(), x)), first=nn.Linear(6, 8), end=last)
    masked.unused = nn.Linear(8, 3)
    small, cut = prune(masked, torch.rand(4, 6))
    assert small.first.out_features == 4
    assert any("takes no part" in note for note in cut.notes)
