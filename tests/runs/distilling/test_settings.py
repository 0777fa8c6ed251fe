"""What is asked of `distill`, and what is refused of it before a model is opened."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from secateur.errors import InputError, MissingExtraError
from secateur.recover.training import loop
from secateur.runs.distilling import settings as chosen


def test_what_follows_from_the_options_is_no_setting_of_its_own(plain):
    one = replace(plain, steps=10, training={"accumulate": 4}, warm_up={"task": 5.0, "match": 0.1})
    assert one.count == 40
    assert one.ramps == {"task": 0.5, "match": 0.1}
    assert (one.tokens, one.server_tokens) == (0, 20)
    kept = replace(one, cache=7)
    assert (kept.tokens, kept.server_tokens) == (7, 7)
    assert replace(one, cache="all").tokens == 0
    assert not {"count", "ramps", "tokens", "server_tokens", "batches_per_step"} & asdict(one).keys()


def test_what_warms_up_is_read_from_a_line_or_a_mapping():
    assert chosen.parse_warm_up("match=0.1, task=200") == chosen.parse_warm_up({"match": 0.1, "task": 200}) == {
        "match": 0.1, "task": 200.0
    }  # fmt: skip
    assert chosen.parse_warm_up("") == {}
    for wrong in ("match", "match=x", "task=0", "steps=3", {"hidden": float("inf")}):
        with pytest.raises(InputError, match="give task, hidden or match, and the share of training"):
            chosen.parse_warm_up(wrong)


SERVER = "http://localhost:1/v1"


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"task": float("nan")}, "task=nan: give numbers of at least 0"),
        ({"task": -1.0}, "task=-1: give"),
        ({"match": ("a",), "match_weight": (1.0, -5.0)}, "match-weight=1, match-weight=-5: give numbers of at least 0"),
        ({"lr": float("inf")}, "lr=inf"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": 0.0}, "temperature=0"),
        ({"on_policy": 2.0}, "on_policy=2"),
        ({"skew": float("nan")}, "skew=nan"),
        ({"skew": 1.0}, "skew=1: give 0 to below 1"),
        ({"skew": 0.1, "direction": "mse"}, "skew is of KL"),
        ({"seed": 2**63}, "is not a whole number of at least 0 and below 2"),
        ({"steps": 0}, "steps=0 is not a whole number of at least 1"),
        ({"length": 1}, "length=1"),
        ({"cache": -1}, 'cache=-1 is not a whole number of at least 0, nor "all"'),
        ({"cache": "some"}, "cache='some' is not a whole number of at least 0, nor \"all\""),
        ({"direction": "sideways"}, "'sideways' is not one of"),
        ({"choice": "luck"}, "'luck' is not one of"),
        ({"shares": (1.0,)}, "1 weights for 2"),
        ({"training": {"patience": 3}, "on_policy": 0.5}, "judge by texts held out"),
        ({"training": {"lora": 3}, "bits": 8}, "leave lora or bits out"),
        ({"training": {"min_lr": 1.0}}, "min_lr=1.0: give a floor between 0 and lr=0.01"),
        ({"training": {"warmup": 9.0}}, "warmup=9.0: give a share from 0 to 1 or at most steps=3"),
        ({"cache": 3, "direction": "js"}, "cache keeps some of the tokens: it serves forward KL, cache=all any"),
        ({"cache": "all", "hidden": True}, "keeps predictions only: leave hidden out"),
        ({"cache": "all", "on_policy": 0.5}, "leave on-policy out"),
        ({"cache": 8, "choice": "label"}, "cache and choice do not go together"),
        ({"server": SERVER, "cache": "all"}, "give cache their number"),
        ({"server": SERVER, "temperature": 2.0}, "temperature 1"),
        ({"server": SERVER}, "a server has one teacher"),
        ({"on_policy": 0.5, "task": 1.0}, "leave task and hidden out"),
        ({"on_policy": 0.5, "direction": "mse"}, "directions forward, js, reverse"),
        ({"on_policy": 0.5, "prompt": 16}, "shorter than length"),
        ({"on_policy": 0.5, "choice": "label"}, "choose by confidence"),
        ({"hidden": True}, "hidden states of several teachers have no mean"),
        ({"match": ("0",)}, "match compares modules of one teacher as it runs"),
        ({"match": ("0",), "match_loss": "hint"}, "match-loss 'hint' is not one of mse, cosine, unit"),
        ({"match_weight": (2.0,)}, "say how modules match: name some by match"),
        ({"match_balance": True}, "say how modules match: name some by match"),
        ({"warm_up": {"match": 0.1}}, "warm-up of match, which is no part of the loss"),
        ({"warm_up": {"task": 61}, "task": 1.0}, "takes 61 steps, and training 3: give fewer"),
        ({"buckets": (4,)}, "buckets 4: give two numbers of at least 1, as 64,8"),
        ({"buckets": (4, 0)}, "buckets 4,0: give two numbers"),
        ({"buckets": (4, 2), "direction": "js"}, "buckets are of forward KL"),
        ({"buckets": (4, 2), "skew": 0.1}, "two ways to compare: name one"),
        ({"align": True, "cache": 4}, "leave cache out"),
        ({"align": True, "on_policy": 0.5}, "leave on-policy out"),
        ({"align": True, "hidden": True}, "leave hidden out"),
    ],
)
def test_options_that_do_not_go_together_are_refused(plain, how, words):
    chosen.check(plain, ["one", "two"], [])
    with pytest.raises(InputError, match=words):
        chosen.check(replace(plain, **how), ["one", "two"], [])


def test_teachers_and_assistants_are_checked_with_the_options(plain):
    with pytest.raises(InputError, match="no teacher"):
        chosen.check(plain, [], [])
    with pytest.raises(InputError, match="leave assistant out"):
        chosen.check(replace(plain, align=True), ["one"], ["between"])
    with pytest.raises(InputError, match="a server is no teacher of assistants"):
        chosen.check(replace(plain, server=SERVER), ["one"], ["between"])


def test_an_index_needs_a_number_to_stand_for(plain):
    chosen.check(replace(plain, match=("head", "layers.{i}"), match_index=(1,)), ["one"], [])
    with pytest.raises(InputError, match=r"write \{i\} in it, or leave match-index out"):
        chosen.check(replace(plain, match=("head", "layers.0"), match_index=(1,)), ["one"], [])


def test_a_folder_of_a_cache_stands_beside_the_run_and_has_a_cache(plain, tmp_path):
    (tmp_path / "file").touch()
    kept = replace(plain, cache=3)
    chosen.check_cache(kept, tmp_path / "shelf", tmp_path / "out")
    for one, place, words in (
        (plain, tmp_path, "say what it keeps by cache"),
        (kept, tmp_path / "file", "is a file: give a folder"),
        (kept, tmp_path / "out" / "shelf", "is in the run directory, where a cache is anyway"),
    ):
        with pytest.raises(InputError, match=words):
            chosen.check_cache(one, place, tmp_path / "out")


def test_trackers_that_are_not_there_are_refused_before_a_run_directory_is_made(monkeypatch):
    monkeypatch.setattr(loop, "get_available_trackers", list)
    with pytest.raises(MissingExtraError, match="trackers=wandb needs the package wandb"):
        chosen.read_training("trackers=wandb")
    with pytest.raises(InputError, match="trackers=foo: Accelerate knows"):
        chosen.read_training("trackers=foo")
    assert chosen.read_training("patience=2") == {"patience": 2}
