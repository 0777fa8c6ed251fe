"""One run by several processes: they share the calibration out, and leave what one would have left."""

from __future__ import annotations

import os
import sys

import pytest
import torch
from safetensors.torch import load_file

import processes
import tiny
from secateur import cli, recipes
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.reports import evidence
from secateur.runs import executor, keywords
from secateur.score import hessian
from secateur.subjects import open_streamed, open_subject
from secateur.subjects.matrices import matrices
from secateur.vocabulary import Budget

CALIBRATED = {"samples": 24, "length": 16}
RUNS = {
    "sparsegpt": ("pattern=2:4", CALIBRATED),
    "owl": ("weights=40%", {**CALIBRATED, "method": "sparsegpt"}),
    "magnitude": ("weights=50%", {"scope": "global"}),
    "d_pruner": ("weights=50%", {"by": "general", "general": "texts.txt", "general_samples": 24, "train_length": 16}),
}
WHOLE = ("wanda", "llama", "texts.txt", "weights=50%")
QUICK = {"samples": 24, "length": 16, "batch": 2}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("together")
    (root / "texts.txt").write_text("\n".join(tiny.chains(400)))
    tiny.folder("llama", root / "llama")
    return root


@pytest.fixture(scope="module")
def alone(places):
    """Evidence of a run by one process, and the masks of its model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(places)
        return executor.run(*WHOLE, "alone", **QUICK), kept(places / "alone")


def kept(folder):
    return {key: value != 0 for key, value in load_file(folder / "model.safetensors").items()}


def masks(out):
    """Of each recipe, streamed where that is another way: what stays."""
    found = {}
    for name, (budget, options) in RUNS.items():
        subject = open_subject("llama") if name == "magnitude" else open_streamed("llama")
        with Run.open(f"{out}-{name}", {}, shared=True) as directory:
            data, wanted = texts.read("texts.txt"), [Budget.parse(budget)]
            for result in keywords.call(recipes.find(name), subject, data, wanted, directory, **options):
                for path in subject.layers():
                    with result.subject.resident(path):
                        rows = matrices(result.subject.model, [path]).items()
                        found |= {f"{name} {key}": matrix.weight != 0 for key, matrix in rows}
    return found


def same(first, second):
    """But for ties: sums of floats in another order may put them on either side."""
    assert first.keys() == second.keys()
    return all(float((mask == second[key]).float().mean()) > 0.999 for key, mask in first.items())


def test_two_processes_give_what_one_gives_in_one_folder(places, alone, monkeypatch):
    monkeypatch.chdir(places)

    def work():
        rows = executor.run(*WHOLE, "two", **QUICK)
        torch.save((rows, masks("two")), f"found-{os.environ['RANK']}")

    processes.both(work)
    (rows, found), (others, again) = (torch.load(f"found-{rank}", weights_only=False) for rank in range(2))
    assert rows == others
    assert all(torch.equal(mask, again[key]) for key, mask in found.items())
    assert "worked out by 2 processes" in rows[0].cut.notes
    assert rows[0].after["perplexity"].value == pytest.approx(alone[0][0].after["perplexity"].value, rel=1e-3)
    assert same(kept(places / "two"), alone[1])
    assert same(found, masks("one"))
    for one, other in [("alone", "two"), *((f"one-{name}", f"two-{name}") for name in RUNS)]:
        roots = places / one, places / other
        assert len({tuple(sorted(str(path.relative_to(root)) for path in root.rglob("*"))) for root in roots}) == 1


def test_refusals_and_a_process_that_dies_end_all_with_a_line_and_the_run_goes_on(places, alone, monkeypatch):
    monkeypatch.chdir(places)
    common = ["--data", "texts.txt", "--batch", "2", "--length", "16", "--out", "died", "--budget", "weights=50%"]

    def dying():
        assert cli.main(["run", "d_pruner", "llama", "--general", "texts.txt", "--train-batch", "1", *common]) == 2
        assert cli.main(["run", "wanda", "llama", "--samples", "1", *common]) == 2
        own, looked = hessian.Moments.share, []

        def share(self, width):
            looked.append(width)
            if os.environ["RANK"] == "1" and len(looked) > 4:  # in the second block
                sys.stderr.flush()
                os._exit(9)
            own(self, width)

        hessian.Moments.share = share
        return cli.main(["run", "wanda", "llama", "--samples", "24", *common])

    pair = processes.pair(dying)
    assert [child.wait() for child in pair] == [2, 9]
    told = [child.stderr.strip().splitlines() for child in pair]
    for lines in told:
        assert "2 processes share a batch of 1: give train_batch" in lines[0]
        assert "1 batches for 2 processes" in lines[1]
    end = "secateur: another process of this run has ended: mend what it complains of, and run the same command again"
    assert [lines[2:] for lines in told] == [[end], []]
    assert (places / "died" / "work" / "blocks-weights=50%" / "block-0.safetensors").is_file()
    pair = processes.pair(lambda: cli.main(["run", "wanda", "llama", "--samples", "24", *common]))
    assert [child.wait() for child in pair] == [0, 0], pair[0].stderr
    assert "weights=50%" in pair[0].stdout
    assert pair[1].stdout == ""
    assert same(kept(places / "died"), alone[1])
    assert executor.run(*WHOLE, "died", **QUICK) == evidence.read(places / "died")
