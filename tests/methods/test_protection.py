"""What is protected stays to the bit and counts in the budget; bits move from module to module at the same mean."""

from __future__ import annotations

import json

import pytest
import torch

from recipes.sparse.oneshot import data, run, taught
from secateur.errors import DataError, InfeasibleError, InputError, RunError
from secateur.methods.protection import move_bits, read_protection, write_protection
from secateur.runs import executor
from secateur.subjects.matrices import matrices


def of(subject):
    return {name: matrix.weight for name, matrix in matrices(subject.model, subject.layers()).items()}


def write(tmp_path, told):
    file = tmp_path / "protect.json"
    file.write_text(told if isinstance(told, str) else json.dumps(told))
    return str(file)


@pytest.mark.parametrize("budget", ["weights=50%", "pattern=2:4"])
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("magnitude", {}),
        ("magnitude", {"scope": "global"}),
        ("wanda", {}),
        ("wanda", {"scope": "global"}),
        ("sparsegpt", {}),
        ("sparsegpt", {"true_sequential": True}),
    ],
)
def test_what_is_protected_stays_and_the_budget_counts_it(tmp_path, name, how, budget):
    last = taught().layers()[-1]
    file = write(tmp_path, ["model.layers.0.self_attn.q_proj", f"{last}.mlp"])
    result = run(name, tmp_path, budget, protect=file, **how)
    before, after = of(taught()), of(result.subject)
    stays = read_protection(file, taught()).stays
    assert len(stays) == 4
    for key in before:
        if key in stays:
            assert torch.equal(before[key], after[key])
        elif ":" in budget:
            assert (after[key].reshape(len(after[key]), -1, 4) != 0).sum(-1).max() <= 2
    others = [after[key] for key in before if key not in stays]
    if ":" not in budget:
        lost = sum(int((weight == 0).sum()) for weight in others) / sum(weight.numel() for weight in others)
        assert lost > 0.6, "the others pay for it"
    whole = sum(weight.numel() for weight in before.values())
    if ":" not in budget:
        share = sum(int((weight != 0).sum()) for weight in after.values()) / whole
        assert 0.47 < share <= 0.5


def test_a_run_does_not_go_on_with_another_protect_json(tmp_path, monkeypatch):
    """Nor one on record from before files were hashed with what it does not know."""
    how = {"protect": write(tmp_path, ["model.layers.0.self_attn.q_proj"]), "length": 16}
    monkeypatch.setattr(executor._Job, "execute", lambda self, directory, about: iter(()))
    executor.run("magnitude", taught(), data(), "weights=50%", tmp_path / "out", **how)
    executor.run("magnitude", taught(), data(), "weights=50%", tmp_path / "out", **how)
    write(tmp_path, ["model.layers.1.mlp"])
    with pytest.raises(RunError, match="protect_sha256"):
        executor.run("magnitude", taught(), data(), "weights=50%", tmp_path / "out", **how)
    record = tmp_path / "out" / "run.yaml"
    record.write_text("".join(line for line in record.open() if "protect_sha256" not in line))
    executor.run("magnitude", taught(), data(), "weights=50%", tmp_path / "out", **how)


def test_modules_are_rounded_to_bits_of_their_own(tmp_path):
    file = write(tmp_path, write_protection({"model.layers.0": 4, "model.layers.0.mlp.up_proj": 16}))
    after = of(run("sparsegpt", tmp_path, "weights=100%", bits=2, group=16, protect=file).subject)
    levels = {key: max(len(part.unique()) for row in weight for part in row.split(16)) for key, weight in after.items()}
    assert levels["model.layers.1.mlp.up_proj.weight"] <= 4
    assert 4 < levels["model.layers.0.mlp.down_proj.weight"] <= 16
    assert torch.equal(after["model.layers.0.mlp.up_proj.weight"], of(taught())["model.layers.0.mlp.up_proj.weight"])
    q, k = (f"model.layers.0.self_attn.{one}_proj.weight" for one in "qk")
    shared = write(tmp_path, write_protection({q: 4, k: 3}))
    both = of(run("sparsegpt", tmp_path / "b", "weights=100%", bits=4, group=16, protect=shared).subject)
    alone = of(run("sparsegpt", tmp_path / "c", "weights=100%", bits=4, group=16).subject)
    torch.testing.assert_close(both[q], alone[q], msg="a Hessian that is shared serves both numbers of bits")
    with pytest.raises(InputError, match="nothing is rounded: give bits too"):
        run("sparsegpt", tmp_path / "d", protect=shared)


@pytest.mark.parametrize(
    ("told", "kind", "words"),
    [
        ("{", DataError, "can't be read as JSON"),
        ("3", DataError, "is no list of modules"),
        (["model.norm"], InputError, "'model.norm' to protect is no matrix of a block"),
        ({"bits": {"model.layers.0": 1}}, InputError, "1 bits for model.layers.0: give 2 to 8, or 16"),
        (["model.layers.0", "model.layers.1", "model.layers.2"], InfeasibleError, "keep more than 75%"),
    ],
)
def test_what_is_no_protection_is_said(tmp_path, told, kind, words):
    with pytest.raises(kind, match=words):
        run("magnitude", tmp_path, protect=write(tmp_path, told))


def test_bits_move_from_the_last_to_the_first_at_the_same_mean():
    sizes = {"a": 10, "b": 30, "c": 30, "d": 20, "e": 10}
    found = move_bits(sizes, list("abcde"), 4, share=0.5)
    assert found == {"a": 5, "b": 5, "c": 4, "d": 3, "e": 3} or sum(found[k] * sizes[k] for k in sizes) <= 400
    assert found["a"] == 5
    assert sum(found[key] * size for key, size in sizes.items()) <= 4 * sum(sizes.values())
    assert move_bits(sizes, list("abcde"), 2) == dict.fromkeys(sizes, 2), "nothing can pay for it"
    assert sum(n * sizes[k] for k, n in move_bits(sizes, list("edcba"), 3).items()) <= 300
