"""Options of `study regimes`: names of checkpoints are temperatures, and where the advice begins."""

from __future__ import annotations

import inspect

import pytest

from secateur.errors import InputError
from secateur.runs.regime_settings import Settings
from secateur.vocabulary import Training

GIVEN = {
    "temperature": "epochs", "temperatures": (), "checkpoints": "", "densities": (0.5, 0.1, 0.5), "seeds": (0,),
    "follow": False, "control": False, "start": None, "images": 0, "retrain_epochs": None, "retrain_lr": None,
    "training": Training(epochs=8, batch=24, lr=0.05, optimizer="sgd"),
}  # fmt: skip


def settings(**more):
    rest = dict.fromkeys(set(inspect.signature(Settings).parameters) - GIVEN.keys())
    return Settings(**{**rest, **GIVEN, **more})


@pytest.mark.parametrize(
    ("names", "axis", "order"),
    [
        (("lr-1e-3", "lr-1e-1", "lr-3e-2"), "lr", ["lr-1e-1", "lr-3e-2", "lr-1e-3"]),
        (("rho-.5", "rho-.05", "rho-1"), "rho", ["rho-1", "rho-.5", "rho-.05"]),
        (("epoch-5-3e4f", "epoch-5-3e9f"), "epochs", ["epoch-5-3e4f", "epoch-5-3e9f"]),
    ],
)
def test_numbers_in_names_are_read_as_people_write_them(tmp_path, names, axis, order):
    for name in names:
        (tmp_path / f"{name}.safetensors").touch()
    assert list(settings(checkpoints=str(tmp_path), temperature=axis).sources) == order


def test_advice_begins_at_the_coolest_or_at_the_usual_rho():
    found = settings()
    assert (len(found.sources), found.place, found.shares, found.ordered) == (8, 7, (0.1, 0.5), True)
    assert settings(start=2.0).place == 1
    rho = settings(temperature="rho", temperatures=(0.0, 0.05, 0.2))
    assert (list(rho.sources), rho.place) == (["rho 0.2", "rho 0.05", "rho 0"], 1)
    assert (rho.dense_training(0.2).sam, rho.dense_training(0.0).sam) == (0.2, None)
    with pytest.raises(InputError, match=r"start=3\.5 is none of the temperatures"):
        settings(start=3.5)
