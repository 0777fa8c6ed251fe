"""The protocol as a whole; its cuts and its arms are tested beside `methods`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tiny
import toys
from recipes.vision import nets
from secateur import cli
from secateur._utils.rundir import Run
from secateur.data.examples import Examples
from secateur.errors import BudgetError, DataError, InfeasibleError, InputError
from secateur.methods import retraining
from secateur.methods.arms import mark_correct
from secateur.methods.published_rules import prune
from secateur.recipes.vision.rethinking_pruning_value import rethinking_pruning_value
from secateur.recover.training import loop
from secateur.runs import executor, keywords, measuring
from secateur.vocabulary import Budget

DATA = nets.data()
HALF = "channels=50%"


@pytest.fixture(scope="module")
def dense():
    return nets.opened(nets.vgg())


def results(root, subject, budget=HALF, data=DATA, **options):
    quick = keywords.check_options(rethinking_pruning_value, {"epochs": 2, "batch": 24, "lr": 0.05, **options})
    with Run.open(root, {}) as run:
        return list(rethinking_pruning_value(subject, data, [Budget.parse(budget)], run, **quick))


@pytest.mark.parametrize("method", ["l1", "slimming", "soft", "thinet", "regression", "unstructured"])
def test_every_method_runs_and_tells_its_arms(dense, tmp_path, method):
    (result,) = results(tmp_path, dense, "weights=30%" if method == "unstructured" else HALF, method=method)
    assert result.recovery.steps == 9  # a quarter of two epochs, at least one, of nine tenths of the examples
    for word in ("fine-tuned (classic)", "scratch-E", "scratch-B", "epochs", "FLOPs", "points"):
        assert word in result.notes[-1]
    assert not result.cut.is_noop
    assert set(result.beside) == {"scratch-E", "scratch-B"}
    ours = result.subject.model.state_dict()
    for rival in result.beside.values():  # of the same shape, with weights of its own
        theirs = rival.model.state_dict()
        assert {name: tensor.shape for name, tensor in ours.items()} == {
            n: tensor.shape for n, tensor in theirs.items()
        }
        assert not torch.equal(ours["0.weight"], theirs["0.weight"])


def test_what_is_trained_is_augmented_and_what_is_judged_is_not(dense, tmp_path):
    """Nine batches an epoch: one of fine-tuning, two of Scratch-E; the function of the user's file sees each once."""
    (tmp_path / "turn.py").write_text(
        "def turn(inputs, generator):\n"
        "    with open(__file__ + '.log', 'a') as file:\n"
        "        print(len(inputs), float(generator.random()), file=file)\n"
        "    return inputs.flip(-1)\n"
    )
    results(tmp_path / "run", dense, scratch="E", augment=f"{tmp_path}/turn.py:turn")
    rows = (tmp_path / "turn.py.log").read_text().splitlines()
    assert len(rows) == 9 + 18
    assert len(set(rows[9:])) == 18  # drawn anew in every batch and epoch; the arms share the order
    assert rows[:9] == rows[9:18]


def test_augmentation_can_be_asked_for_from_the_shell(tmp_path, capsys):
    tiny.training_set(tmp_path)
    (tmp_path / "network.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef build():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(1, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(32, 3))\n"
    )
    words = ["run", "rethinking_pruning_value", f"{tmp_path}/network.py:build", "--data", f"{tmp_path}/data.npz"]
    words += ["--budget", "channels=50%", "--out", f"{tmp_path}/out", "--dry-run", "--augment"]
    assert cli.main([*words, f"{tmp_path}/turn.py:turn"]) == 2
    assert "turn.py" in capsys.readouterr().err
    (tmp_path / "turn.py").write_text("def turn(inputs, generator):\n    return inputs.flip(-1)\n")
    assert cli.main([*words, f"{tmp_path}/turn.py:turn"]) == 0


def test_blocks_have_their_arms(tmp_path):
    (result,) = results(tmp_path, nets.opened(nets.residual()), "branches=50%", method="blocks")
    assert "scratch-B" in result.notes[-1]
    assert result.cut.removed == {"branches": (1, 2)}


def test_the_whole_protocol_learns_and_repeats_and_resumes(tmp_path):
    subject = nets.opened(nets.vgg())
    how = {"untrained": True, "finetune": "rewind", "scratch": "E", "epochs": 4}
    first, again, resumed = (results(tmp_path / name, subject, **how)[0] for name in ("a", "b", "a"))
    for name, tensor in first.subject.model.state_dict().items():
        assert torch.equal(tensor, again.subject.model.state_dict()[name]), name
        assert torch.equal(tensor, resumed.subject.model.state_dict()[name]), name
    assert first.notes == again.notes == resumed.notes
    assert mark_correct(first.subject.model, nets.data(seed=9)).mean() > 0.9
    assert "scratch-B" not in first.notes[-1]


def test_a_dry_run_trains_nothing(dense, tmp_path):
    (result,) = results(tmp_path, dense, dry_run=True)
    assert result.recovery is None
    assert result.notes == ()
    chosen = prune(dense, Budget.parse(HALF), "l1").student.model.state_dict()
    assert all(torch.equal(chosen[name], tensor) for name, tensor in result.subject.model.state_dict().items())


@pytest.mark.parametrize(
    ("option", "words"), [("method", "'l1', 'slimming'"), ("finetune", "'rewind'"), ("scratch", "'both'")]
)
def test_names_that_are_none_are_refused(option, words):
    with pytest.raises(InputError, match=f"option {option}='C'.*{words}"):
        keywords.check_options(rethinking_pruning_value, {option: "C"})


@pytest.mark.parametrize(
    ("budget", "options", "error", "words"),
    [
        (HALF, {"method": "slimming", "widths": "1,2,3,4"}, InputError, "widths"),
        (HALF, {"method": "unstructured"}, BudgetError, "weights=10%"),
        ("weights=10%", {}, BudgetError, HALF),
        (HALF, {"data": Examples(DATA.inputs)}, DataError, "classes"),
        ("channels=100%", {}, InfeasibleError, "budget channels=100% would change nothing"),
        ("channels=100%,params=100%", {"method": "soft"}, InfeasibleError, "would change nothing"),
        ("weights=100%", {"method": "unstructured"}, InfeasibleError, "would change nothing"),
        ("channels=0.1%", {}, InfeasibleError, "channels can go down to 4"),
        ("channels=0.1%", {"method": "slimming"}, InfeasibleError, "channels can go down to 4"),
        ("weights=0.01%", {"method": "unstructured"}, InfeasibleError, "weights can go down to 4"),
        (HALF, {"method": "thinet", "select_by": "short-retrain"}, InputError, "not for thinet: leave one of them out"),
        (HALF, {"training": "patience=2"}, InputError, "patience=2: every arm trains"),
        (HALF, {"training": "validation=0.1"}, InputError, "validation=0.1: every arm trains"),
        (HALF, {"training": "keep=best"}, InputError, "keep=best: every arm trains"),
        (HALF, {"widths": "3,5"}, InputError, "widths name 2 sites of 4"),
        (HALF, {"widths": "8,8,12,2"}, InfeasibleError, "these widths cost channels=30"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(dense, tmp_path, monkeypatch, budget, options, error, words):
    monkeypatch.setattr(loop, "train", lambda *args, **kwargs: pytest.fail("trained before it refused"))
    with pytest.raises(error, match=words):
        results(tmp_path, dense, budget, untrained=True, **options)


def test_a_short_retraining_picks_among_cuts_of_one_budget_once(dense, tmp_path, monkeypatch):
    asked, real = [], retraining.compare_shortly

    def compare(models, task, training, **how):
        asked.append((len(models), training.epochs, training.lr))
        reached = real(models, task, training, **how)
        return [*reached[:2], min(reached) - 1.0, *reached[3:]]  # the third is the best

    monkeypatch.setattr(retraining, "compare_shortly", compare)
    short = {"select_by": "short-retrain", "scratch": "none"}
    (result,) = results(tmp_path, dense, **short)
    assert asked == [(16, 0.1, 0.0005)], "a tenth of the fine-tuning, at its rate"
    (plain,) = results(tmp_path / "plain", dense, scratch="none")
    assert result.cut.after == plain.cut.after
    assert result.cut.removed == plain.cut.removed
    own, ours = (one.subject.model.state_dict() for one in (plain, result))
    assert any(not torch.equal(own[name], ours[name]) for name in own if name.endswith("running_mean"))
    assert "of 16 cuts at this budget candidate 3, not the criterion's own choice, has the lowest" in result.notes[0]
    (again,) = results(tmp_path, dense, **short)
    assert (again.notes, len(asked)) == (result.notes, 1), "it is not asked again"


def test_widths_say_on_their_own_what_goes(dense, tmp_path):
    (result,) = results(tmp_path, dense, "channels=100%", widths="3,5,6,2", dry_run=True)
    assert not result.cut.is_noop


def test_the_cap_and_the_scale_of_norms_reach_the_arms(dense, tmp_path, monkeypatch):
    seen = {}

    def watch(*_, **how):
        seen.update(how)
        raise ConnectionAbortedError

    monkeypatch.setattr("secateur.recipes.vision.rethinking_pruning_value.train_arms", watch)
    with pytest.raises(ConnectionAbortedError):
        results(tmp_path, dense, cap=2.0, norm=0.5)
    assert (seen["cap"], seen["norm"]) == (2.0, 0.5)


class Gain(nn.Module):
    """A scale of its own, as networks of one's own have them, which no rule of fresh weights knows."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain * x


def test_what_fresh_networks_had_no_rule_for_is_told(tmp_path):
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), Gain(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    )
    (result,) = results(tmp_path, nets.opened(net), epochs=1)
    assert [note for note in result.notes if "want of a rule" in note] == [
        "drawn from N(0, 0.02) for want of a rule: 2.gain"
    ]
    assert "points" in result.notes[-1]


def test_a_batch_of_one_is_one_line_where_a_batch_norm_learns(tmp_path):
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 8),
        nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4),
    )  # fmt: skip
    with pytest.raises(InputError, match="batches of at least 2 examples"):
        results(tmp_path, nets.opened(net), batch=1)


def toy(_):
    """What `conformance.check_recipe` takes: see tests/conformance."""
    return toys.classifier(epochs=4, batch=24, scratch="E")


def test_what_would_stop_an_arm_is_refused_before_the_original_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring.Reference, "warn_of_guessing", lambda self: pytest.fail("it was measured first"))
    for how in ({"patience": 2}, {"validation": 0.1}, {"training": "keep=best"}):
        with pytest.raises(InputError, match="every arm trains"):
            executor.run(
                rethinking_pruning_value, nets.vgg(), DATA, HALF, tmp_path / "out", inputs=DATA.inputs[:2], **how
            )
    assert not (tmp_path / "out").exists()
