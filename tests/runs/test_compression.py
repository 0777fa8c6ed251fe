"""The grid of compressed models: amounts are exact, calibrated methods beat others, what is protected stays."""

from __future__ import annotations

import functools

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import tiny
from recipes.sparse.oneshot import data, quality, taught
from secateur.errors import InputError
from secateur.runs.compression import (
    DENSE,
    METHODS,
    Config,
    check_grid,
    compress,
    count_bytes,
    find_beside,
    make_grid,
    mean_bits,
)
from secateur.subjects import open_subject
from secateur.subjects.matrices import matrices


@functools.cache
def weights():
    return {name: one.weight.clone() for name, one in matrices(taught().model, taught().layers()).items()}


def changed(student):
    found = matrices(student.model, student.layers())
    return {name for name, one in found.items() if not torch.equal(one.weight, weights()[name])}


def make(tmp_path, method, amount, **how):
    config = Config(method, amount, samples=24)
    return compress(taught(), config, data(), tmp_path / config.digest, length=16, **how)


@pytest.mark.parametrize("method", ["random", "magnitude", "wanda", "sparsegpt"])
def test_as_many_weights_are_zero_as_are_asked_for(tmp_path, method):
    student = make(tmp_path, method, "50%")
    for one in matrices(student.model, student.layers()).values():
        assert float((one.weight == 0).float().mean()) == pytest.approx(0.5, abs=1 / 16)
    student = make(tmp_path, method, "2:4")
    for one in matrices(student.model, student.layers()).values():
        assert (one.weight.reshape(len(one.weight), -1, 4) != 0).sum(-1).max() <= 2
    assert torch.equal(student.model.get_input_embeddings().weight, taught().model.get_input_embeddings().weight)


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_rounded_weights_have_few_levels_and_few_bytes(tmp_path, method):
    student, config = make(tmp_path, method, "3bit"), Config(method, "3bit")
    for one in matrices(student.model, student.layers()).values():
        width = one.weight.shape[1] // 16 * 16
        assert all(len(part.unique()) <= 8 for row in one.weight for part in row.split(min(width, 64)))
    dense = count_bytes(taught(), Config("rtn", ""))
    assert count_bytes(student, config) < 0.25 * dense
    assert count_bytes(student, Config(method, "8bit")) > count_bytes(student, config)


def test_better_methods_are_better(tmp_path):
    for better, worse, amount in (("gptq", "rtn", "2bit"), ("sparsegpt", "random", "50%"), ("wanda", "random", "50%")):
        assert quality(make(tmp_path, better, amount)) < quality(make(tmp_path, worse, amount)), (better, worse)


@pytest.mark.parametrize(("method", "amount"), [("magnitude", "50%"), ("rtn", "4bit"), ("gptq", "4bit")])
def test_what_is_protected_stays_as_it_is(tmp_path, method, amount):
    last = taught().layers()[-1]
    student = make(tmp_path, method, amount, protect=[f"{last}.mlp", f"{taught().layers()[0]}.self_attn.q_proj.weight"])
    kept = {name for name in weights() if name.startswith(f"{last}.mlp.")} | {
        name for name in weights() if "layers.0.self_attn.q_proj" in name
    }
    assert changed(student) == set(weights()) - kept


def test_nothing_is_changed_at_no_zeros(tmp_path):
    for method, amount in (("wanda", "0%"), ("magnitude", "0%")):
        assert not changed(make(tmp_path, method, amount))


def test_a_folder_is_taken_as_it_is(tmp_path):
    taught().save(tmp_path / "other")
    (config,) = make_grid([str(tmp_path / "other")])
    assert str(config) == "other"
    assert not changed(compress(taught(), config, data(), tmp_path / "work"))


def test_folders_are_taken_as_they_are_whatever_they_are_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("gptq", "original", "a/model", "b/model"):
        (tmp_path / name).mkdir(parents=True)
    found = find_beside(["gptq", "original", "a/model", "b/model", "./a/model", "http://x/v1#m", "http://y/v1#m"])
    assert not any(one == DENSE or one.method in METHODS for one in found)
    assert [str(one) for one in found] == [
        "gptq",
        f"{tmp_path.name}/original",
        "a/model",
        "b/model",
        "http://x/v1#m",
        "http://y/v1#m",
    ]
    assert [str(one) for one in find_beside(["http://x/v1#m"])] == ["m"]
    assert make_grid(["original"])[0] != DENSE


def test_bits_by_module_count_in_the_mean_with_all_that_stays(tmp_path):
    sizes = {name: weight.numel() for name, weight in weights().items()}
    first, last = taught().layers()[0], taught().layers()[-1]
    config = Config("rtn", "3bit", by_module=((first, 5), (f"{last}.mlp", 16)), variant="dynamic")
    student = compress(taught(), config, data(), tmp_path / "rtn", length=16)
    own = {name: 5 if name.startswith(f"{first}.") else 16 if name.startswith(f"{last}.mlp") else 3 for name in sizes}
    assert mean_bits(taught(), config) == pytest.approx(sum(own[n] * s for n, s in sizes.items()) / sum(sizes.values()))
    levels = {
        name: max(len(part.unique()) for row in m.weight for part in row.split(64))
        for name, m in matrices(student.model, student.layers()).items()
    }
    assert all(levels[name] <= 2**bits for name, bits in own.items() if bits < 16)
    assert max(levels[name] for name, bits in own.items() if bits == 5) > 8
    assert changed(student) == {name for name, bits in own.items() if bits < 16}
    assert str(config) == "rtn 3bit dynamic"
    assert config.digest != Config("rtn", "3bit").digest
    assert count_bytes(student, config) > count_bytes(student, Config("rtn", "3bit"))


def test_alphapruning_keeps_the_mean_and_gives_blocks_shares_of_their_own(tmp_path):
    student = make(tmp_path, "alphapruning", "50%")
    shares = [
        sum(int((one.weight == 0).sum()) for one in found) / sum(one.weight.numel() for one in found)
        for found in (list(matrices(student.model, [path]).values()) for path in student.layers())
    ]
    assert sum(shares) / len(shares) == pytest.approx(0.5, abs=0.01)
    assert max(shares) - min(shares) == pytest.approx(0.3, abs=0.02)


@functools.cache
def deep(layers=6):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 21, "num_attention_heads": 2, "num_hidden_layers": layers}
    return open_subject(tiny.uneven(LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=len(tiny.tokenizer())))))


@pytest.mark.parametrize("amount", ["30%", "50%", "61.7%"])
@pytest.mark.parametrize("method", ["magnitude-block", "magnitude-profile"])
def test_layer_budgets_go_by_magnitude_to_the_weight(tmp_path, method, amount):
    student = compress(deep(), config := Config(method, amount), data(), tmp_path)
    before, after = (matrices(one.model, one.layers()) for one in (deep(), student))
    gone = {name: after[name].weight == 0 for name in after}
    whole = sum(mask.numel() for mask in gone.values())
    assert sum(int(mask.sum()) for mask in gone.values()) == whole - int((1 - config.sparsity) * whole + 1e-9)
    assert all(torch.equal(one.weight[~gone[name]], before[name].weight[~gone[name]]) for name, one in after.items())
    shares = []
    for path in student.layers():
        names = [name for name in gone if name.startswith(f"{path}.")]
        lost = sum(int(gone[name].sum()) for name in names)
        shares.append(lost / sum(gone[name].numel() for name in names))
        for group in [names] if method == "magnitude-block" else [[name] for name in names]:
            left = torch.cat([before[name].weight[~gone[name]].abs() for name in group])
            cut = torch.cat([before[name].weight[gone[name]].abs() for name in group])
            assert not len(cut) or cut.max() <= left.min()
    if method == "magnitude-block":
        assert shares == pytest.approx([config.sparsity] * 6, abs=1e-3)
        assert len({round(float(mask.float().mean()), 3) for mask in gone.values()}) > 6
    else:
        assert shares[0] == shares[-1] == 0
        assert shares[1] == pytest.approx(shares[4], abs=1e-3)
        assert shares[2] == pytest.approx(shares[3], abs=1e-3)
        mean = 1.5 * config.sparsity  # of six blocks four lose all that is lost
        assert shares[2] == pytest.approx(min(1.15 * mean, 0.99), abs=2e-3)
        assert shares[1] == pytest.approx(2 * mean - shares[2], abs=2e-3)


def test_layer_budgets_have_no_pattern_leave_what_is_protected_and_refuse_what_the_middle_can_not_lose(tmp_path):
    names = ["magnitude-block", "magnitude-profile"]
    assert [str(one) for one in make_grid(names, ["50%"], ["2:4"])] == [f"{name} 50%" for name in names]
    for name in names:
        stays = f"{deep().layers()[2]}.mlp"
        student = compress(deep(), Config(name, "40%"), data(), tmp_path, protect=[stays])
        found = matrices(student.model, student.layers())
        assert all(bool((one.weight != 0).all()) for name, one in found.items() if name.startswith(f"{stays}."))
        free = {name: one.weight for name, one in found.items() if not name.startswith(f"{stays}.")}
        whole = sum(weight.numel() for weight in free.values())
        assert sum(int((weight == 0).sum()) for weight in free.values()) == whole - int(0.6 * whole + 1e-9)
    with pytest.raises(InputError, match=r"70% of all weights can't go from the 4 between: ask for 66% at most"):
        check_grid(deep(), make_grid(["magnitude-profile"], ["50%", "70%"]))
    check_grid(deep(), make_grid(["magnitude-profile"], ["66%"]))
    with pytest.raises(InputError, match="from the 0 between: it needs three blocks"):
        check_grid(deep(2), make_grid(["magnitude-profile"], ["50%"]))


def test_a_grid_holds_what_each_method_can(tmp_path):
    found = make_grid(["magnitude", "wanda", "rtn"], ["50%", 0.7], ["2:4"], [4, 3], seeds=(0, 1))
    assert [str(one) for one in found] == [
        "magnitude 50%", "magnitude 70%", "magnitude 2:4", "wanda 50%", "wanda 50% seed 1", "wanda 70%",
        "wanda 70% seed 1", "wanda 2:4", "wanda 2:4 seed 1", "rtn 4bit", "rtn 3bit",
    ]  # fmt: skip
    assert len({one.digest for one in found}) == len(found)
    assert [one.sparsity for one in found[:3]] == [0.5, 0.7, 0.5]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((["wonder"], ["50%"]), "method 'wonder' is none of random, magnitude"),
        ((["wanda"], ["150%"]), "sparsity '150%': give a share of zeros below 1"),
        ((["wanda"], ["half"]), "sparsity 'half'"),
        ((["wanda"], [], ["4:2"]), "pattern '4:2': write n:m"),
        ((["rtn"], [], [], [1]), "bits=1: give 2 to 8"),
        ((["rtn"], ["50%"]), "the grid is empty"),
    ],
)
def test_what_is_no_grid_is_said(given, words):
    with pytest.raises(InputError, match=words):
        make_grid(*given)
