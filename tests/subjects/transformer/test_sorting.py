from __future__ import annotations

import json

import pytest
import torch

import tiny
from secateur.errors import InputError
from secateur.subjects import Transformer, open_subject
from secateur.subjects.transformer.sorting import find_order, sort_units
from subjects.hybrids import make_hybrid
from subjects.tiny import make

KINDS = (
    "channels", "neurons", "heads", "kv_groups", "experts", "expert_neurons", "shared_neurons", "state_heads",
    "state_channels",
)  # fmt: skip


def hybrid() -> Transformer:
    return open_subject(make_hybrid("NemotronH", layers_block_type=["mamba", "mlp", "attention", "mamba"]))


def scores(subject: Transformer, *kinds: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        name: torch.rand(site.count) for name, site in subject.units().sites.items() if site.kind in (kinds or KINDS)
    }


MODELS = {
    "llama": lambda: open_subject(tiny.uneven(tiny.model("llama"))),
    "gpt2": lambda: open_subject(tiny.model("gpt2")),
    "bert": lambda: open_subject(tiny.model("masked")),
    "gemma2": lambda: make("gemma2"),
    "mixtral": lambda: open_subject(tiny.model("mixtral")),
    "NemotronH": hybrid,
}


@pytest.mark.parametrize("name", MODELS)
def test_sorting_every_axis_changes_no_output(name):
    subject = MODELS[name]()
    before = {key: tensor.clone() for key, tensor in subject.model.state_dict().items()}
    found = sort_units(subject, scores(subject))
    batch = subject.example(2, 9)
    with torch.no_grad():
        ours, theirs = found.forward(batch).prediction, subject.forward(batch).prediction
    assert float((ours - theirs).abs().max()) < 1e-4 or subject.output == "states"
    changed = [key for key, tensor in found.model.state_dict().items() if not torch.equal(tensor, before[key])]
    assert changed
    assert all(torch.equal(tensor, before[key]) for key, tensor in subject.model.state_dict().items())


def test_the_best_stand_first_inside_their_groups():
    assert find_order(torch.tensor([1.0, 3.0, 2.0, 9.0])).tolist() == [3, 1, 2, 0]
    assert find_order(torch.tensor([1.0, 3.0, 2.0, 9.0]), 2).tolist() == [1, 0, 3, 2]
    assert find_order(torch.zeros(3)).tolist() == [0, 1, 2]
    subject = open_subject(tiny.model("llama"))
    given = scores(subject, "neurons", "heads")
    found = sort_units(subject, given).model.model.layers[1]
    weight = subject.model.model.layers[1].mlp.up_proj.weight
    assert torch.equal(found.mlp.up_proj.weight, weight[given["layers.1.neurons"].argsort(descending=True)])
    queries, size = subject.model.model.layers[1].self_attn.q_proj.weight, subject.head_dim
    best = int(given["layers.1.heads"][4:].argmax()) + 4  # of the second group
    assert torch.equal(found.self_attn.q_proj.weight[4 * size : 5 * size], queries[best * size : (best + 1) * size])


def test_heads_of_states_stay_in_their_groups_and_b_and_c_where_they_are():
    subject = hybrid()
    given = scores(subject, "state_heads", "state_channels")
    found = sort_units(subject, given).model.model.layers[0].mixer
    before = subject.model.model.layers[0].mixer
    wide, shared = before.intermediate_size, 2 * before.n_groups * before.ssm_state_size
    rows = slice(2 * wide, 2 * wide + shared)
    assert torch.equal(found.in_proj.weight[rows], before.in_proj.weight[rows])
    assert torch.equal(found.conv1d.weight[wide:], before.conv1d.weight[wide:])
    per = before.num_heads // before.n_groups
    for group in range(before.n_groups):
        inside = slice(group * per, (group + 1) * per)
        assert sorted(found.A_log[inside].tolist()) == sorted(before.A_log[inside].tolist())
        order = given["layers.0.state_heads"][inside].argsort(descending=True)
        assert torch.equal(found.A_log[inside], before.A_log[inside][order])


def test_the_map_of_a_result_says_where_each_unit_was(tmp_path):
    subject = open_subject(tiny.model("llama"), tokenizer=tiny.tokenizer())
    found = sort_units(subject, scores(subject, "neurons"))
    found.save(tmp_path / "sorted")
    order = json.loads((tmp_path / "sorted" / "cut_map.json").read_text())["parts"]["0"]["neurons"]
    kept = open_subject(tmp_path / "sorted").origin.kept
    assert kept is not None
    assert len(order.split(",")) > 1
    weight = subject.model.model.layers[0].mlp.up_proj.weight
    assert torch.equal(found.model.model.layers[0].mlp.up_proj.weight, weight[kept.parts[0]["neurons"]])


@pytest.mark.parametrize(
    ("site", "count", "message"),
    [
        ("layers.0.neurons", 3, r"shape \(3,\): the model has 128"),
        ("layers.9.neurons", 3, "the model has none"),
        ("attention", 4, "attention can't be sorted: give channels, or sites inside layers"),
    ],
)
def test_what_can_not_be_sorted_is_refused(site, count, message):
    with pytest.raises(InputError, match=message):
        sort_units(open_subject(tiny.model("llama")), {site: torch.rand(count)})
