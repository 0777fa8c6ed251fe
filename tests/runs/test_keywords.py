"""A recipe's options against its signature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt, Interval, Le, MinLen

from secateur import recipes
from secateur.cli import run
from secateur.errors import InputError
from secateur.recipes import find
from secateur.runs import executor, keywords
from secateur.vocabulary import Training


def thinner(subject, data, *, share: float = 0.5, how: Literal["row", "column"] = "row", seed: int = 0):
    """A recipe."""


def listing(*, shares: Sequence[float] = (), weight: float | Literal["auto"] | None = None):
    """A recipe with numbers inside of other annotations."""


def needy(*, must: int):
    """A recipe with an option that has to be given."""


def bounded(
    *,
    share: Annotated[float, Gt(0), Le(1)] = 0.5,
    times: Annotated[int, Ge(1)] | None = None,
    rates: Annotated[Sequence[Annotated[float, Interval(ge=0, lt=1)]], MinLen(1)] = (0.5,),
):
    """A recipe with bounds."""


def test_only_keywords_are_options():
    assert list(keywords.of(thinner)) == ["share", "how", "seed"]


def test_given_ones_are_checked_and_others_take_their_defaults():
    assert keywords.check_options(thinner, {"share": "0.25"}) == {"share": 0.25, "how": "row", "seed": 0}


def test_what_a_recipe_does_not_have_is_left_out_only_where_it_may_be():
    given = keywords.fitting(thinner, {"share": 0.1, "batch": 3, "oops": 1}, ("batch",), seed=7, dry_run=True)
    assert given == {"share": 0.1, "oops": 1, "seed": 7}


@pytest.mark.parametrize("seed", [-1, 2**63, 0.5])
def test_seeds_that_no_generator_takes_are_refused(seed):
    keywords.check_seed(0, 2**63 - 1)
    with pytest.raises(InputError, match="is not a whole number of at least 0 and below 2"):
        keywords.check_seed(0, seed)


@pytest.mark.parametrize(
    ("function", "given", "said"),
    [
        (thinner, {"shar": 1}, "thinner has no option 'shar': did you mean 'share'?"),
        (thinner, {"zzz": 1}, "thinner has no option 'zzz': it has share, how, seed"),
        (thinner, {"how": "diagonal"}, "option how='diagonal' of thinner: input should be 'row' or 'column'"),
        (thinner, {"share": float("nan")}, "option share=nan of thinner: input should be a finite number"),
        (thinner, {"share": "nan"}, "option share='nan' of thinner: input should be a finite number"),
        (thinner, {"share": float("inf")}, "option share=inf of thinner: input should be a finite number"),
        (listing, {"shares": [0.5, "inf"]}, "option shares='inf' of listing: input should be a finite number"),
        (listing, {"weight": "nan"}, "option weight='nan' of listing: input should be a finite number"),
        (bounded, {"share": 0}, "option share=0 of bounded: give a number above 0 and at most 1"),
        (bounded, {"share": 1.5}, "option share=1.5 of bounded: give a number above 0 and at most 1"),
        (bounded, {"times": 0}, "option times=0 of bounded: give a whole number of at least 1"),
        (bounded, {"rates": [0.5, 1]}, "option rates=1 of bounded: give a number of at least 0 and below 1"),
        (bounded, {"rates": []}, "option rates=[] of bounded: give at least 1 of them"),
        (needy, {}, "needy needs the option 'must'"),
    ],
)
def test_each_mistake_has_its_line(function, given, said):
    with pytest.raises(InputError) as caught:
        keywords.check_options(function, given)
    assert str(caught.value) == said


def trained(subject, data, budgets, run, *, length: int = 1, training: Training = Training(steps=10, batch=4, lr=1e-3)):
    """A recipe on texts."""


def test_fields_that_a_default_names_are_options_of_their_own():
    chosen = keywords.check_options(trained, {"steps": 3, "train_batch": 2, "training": "accumulate=4,clip=none"})
    assert chosen == {"length": 1, "training": Training(steps=3, batch=2, lr=1e-3, accumulate=4, clip=float("inf"))}
    assert keywords.flat(trained, chosen) == {
        "length": 1, "steps": 3, "train_batch": 2, "lr": 1e-3, "training": "accumulate=4,clip=none",
    }  # fmt: skip
    assert keywords.check_options(trained, keywords.flat(trained, chosen)) == chosen
    assert keywords.check_options(trained, {"training": Training(steps=7)})["training"].steps == 7
    assert keywords.fitting(trained, {"steps": 1, "epochs": 2}, ("steps", "epochs")) == {"steps": 1}
    with pytest.raises(InputError, match="no option 'epochs'"):
        keywords.check_options(trained, {"epochs": 2})


def test_what_is_read_from_the_source_is_what_the_signature_says():
    told = {option.name: option.default for option in recipes.signature("ast")}
    own = keywords.flat(find("ast"), {name: p.default for name, p in keywords.of(find("ast")).items()})
    assert told == {**own, "patience": None, "validation": None}
    helps = {option.name: option.help for option in recipes.signature("ast")}
    assert all(helps.values())


def test_every_recipe_that_trains_can_be_asked_to_validate():
    def recipe(*, lr: float = 1.0, training: Training = Training(steps=3)):
        """Train."""

    plain = keywords.check_options(recipe, {})["training"]
    asked = keywords.check_options(recipe, {"patience": 2, "validation": 0.2, "training": "clip=2"})["training"]
    assert (plain.patience, plain.validates) == (None, False)
    assert (asked.patience, asked.validation, asked.clip, asked.validates) == (2, 0.2, 2.0, True)
    assert keywords.flat(recipe, {"training": asked})["training"] == "clip=2.0,patience=2,validation=0.2"
    assert "patience" not in keywords.flat(recipe, {"training": plain}), "records of 0.1.0 have no such key"
    assert {"patience", "validation"} <= set(keywords.names(recipe))
    for wrong in ({"patience": 0}, {"validation": 1.5}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            keywords.check_options(recipe, wrong)
    with pytest.raises(InputError, match="has no option 'patience'"):
        keywords.check_options(lambda *, lr=1.0: None, {"patience": 2})
    named = [option.name for option in recipes.signature("otov3")]
    assert named.count("patience") == named.count("validation") == 1


def test_what_some_recipes_call_samples_is_calibration_in_all(tmp_path):
    from secateur.recipes.language.ziplm import ziplm
    from secateur.recipes.sparse.wanda import wanda

    assert keywords.rename(wanda, {"calibration": 4, "length": 8}) == {"samples": 4, "length": 8}
    assert keywords.rename(ziplm, {"calibration": 4}) == {"calibration": 4}
    with pytest.raises(InputError, match="calibration and samples are one option of wanda: give one of them"):
        keywords.rename(wanda, {"calibration": 4, "samples": 4})
    (tmp_path / "run.yaml").write_text("recipe: wanda\nmodel: m\ncalibration: 4\n")
    assert executor.configured(tmp_path / "run.yaml")["calibration"] == 4
    flags, _ = run._recipe_flags(["wanda", "model"])
    assert [flag.words for flag in flags if flag.also == "--calibration"] == ["--samples"]


@pytest.mark.parametrize("recipe", recipes.cards())
def test_a_quick_look_trains_for_few_epochs(recipe):
    usual = keywords.defaults(recipes.find(recipe))
    long = {name for name, value in usual.items() if name.endswith("epochs") and isinstance(value, int | float)}
    long = {name for name in long if usual[name] > 2}
    assert long <= keywords.quicken(recipes.find(recipe), (), keywords.QUICK).keys()


def test_a_quick_look_takes_less_of_what_takes_time_and_nothing_that_was_given():
    from secateur.recipes.language.ziplm import ziplm

    usual, less = keywords.defaults(ziplm), keywords.quicken(ziplm, {"trials"}, keywords.QUICK)
    assert {"steps", "calibration", "corrections", "judged", "ratio", "timings"} == set(less)
    assert all(less[name] < usual[name] for name in less)
    keywords.check_options(ziplm, less)
    forecast = keywords.quicken(ziplm, {"corrections"}, keywords.DRY)
    assert forecast == {"timings": 8, "trials": 50, "calibration": 64, "judged": 16}
    both = keywords.quicken(ziplm, (), keywords.QUICK, keywords.DRY)
    assert both == {**less, "trials": 10, "corrections": 0}, "a dry run takes no more of a quick look"

    def frugal(subject, data, budgets, run, *, steps: int = 0, samples: int = 8): ...

    assert keywords.quicken(frugal, (), keywords.QUICK) == {}  # what takes no time as it is, stays


def test_a_batch_is_another_where_it_is_not_the_functions_own():
    otov3, curve = find("otov3"), find("kd_data_pruning")
    assert keywords.another_batch({"batch": 8}, otov3) == 8
    assert keywords.another_batch({"batch": keywords.defaults(otov3)["batch"]}, otov3) is None
    assert keywords.another_batch({}, curve) is None
