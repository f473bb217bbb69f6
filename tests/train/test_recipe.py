"""A recipe is plain data from closed tables, and says what is meant where a name is none."""

import json
import subprocess
import sys

import pytest

from maas.train.recipe import LOSSES, METRICS, OPTIMIZERS, SCHEDULES, Recipe

FULL = {
    "loss": {"name": "huber", "delta": 0.5},
    "optimizer": {"name": "adam", "betas": (0.8, 0.9)},
    "lr": 0.1,
    "schedule": {"name": "step", "step_size": 2},
    "metrics": ["mae", "r2"],
    "validation": 0.25,
    "watch": "r2",
    "patience": 3,
    "shuffle": False,
}


def test_a_recipe_survives_json():
    """What `to_data` writes is plain, leaves out defaults, and makes the same recipe again."""
    recipe = Recipe.of(FULL)
    written = json.loads(json.dumps(recipe.to_data()))
    assert written.keys() == FULL.keys()
    assert Recipe.of(written) == recipe
    assert Recipe().to_data() == {}
    assert recipe.watched == ("r2", True)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"learning_rate": 0.1}, TypeError, "no option 'learning_rate'.*there are: loss"),
        ({"epoch": 3}, TypeError, "did you mean 'epochs'"),
        ({"optimizer": "adm"}, ValueError, "no optimizer 'adm'; did you mean 'adam'"),
        ({"optimizer": None}, ValueError, "no optimizer None; there are: sgd"),
        ({"optimizer": {"name": "adam", "momentum": 0.9}}, TypeError, "'adam' has no option"),
        ({"optimizer": {"name": "sgd", "momentun": 0.9}}, TypeError, "did you mean 'momentum'"),
        ({"loss": "mean"}, ValueError, "no loss 'mean'"),
        ({"loss": {"name": "mse", "delta": 1}}, TypeError, "it takes none"),
        ({"loss": {"name": "huber", "delta": print}}, TypeError, "wants a number"),
        ({"loss": {"name": "nll", "weight": [1.0] * 1001}}, TypeError, "up to 1000"),
        ({"schedule": "step"}, TypeError, "needs step_size"),
        ({"schedule": "cosin"}, ValueError, "did you mean 'cosine'"),
        ({"metrics": ["acuracy"]}, ValueError, "did you mean 'accuracy'"),
        ({"lr": 0}, ValueError, "lr wants a number above 0"),
        ({"lr": float("nan")}, ValueError, "got nan"),
        ({"lr": "0.1"}, ValueError, "got '0.1'"),
        ({"epochs": 1.5}, ValueError, "epochs wants a whole number from 1"),
        ({"epochs": True}, ValueError, "got True"),
        ({"epochs": None}, ValueError, "got None"),
        ({"dropout": 1.5}, ValueError, "from 0 up to 1"),
        ({"validation": 1.0}, ValueError, "up to 0.9"),
        ({"shuffle": 1}, ValueError, "True or False"),
        ({"precision": "float8"}, ValueError, "There are: full, bfloat16"),
        ({"label_smoothing": 0.1, "loss": "mse"}, ValueError, "for the loss 'cross_entropy'"),
        ({"watch": "f1"}, ValueError, "nothing to watch is called 'f1'"),
        ({"seed": -1}, ValueError, "seed wants a whole number from 0"),
    ],
)
def test_what_makes_no_sense_is_refused(options, error, words):
    """Each wrong option or name is an error that says what was given and what there is."""
    with pytest.raises(error, match=words):
        Recipe.of(options)


@pytest.mark.parametrize("table", [LOSSES, OPTIMIZERS, METRICS])
def test_each_name_stands_alone(table):
    """Every loss, optimizer and metric may be given by its name alone."""
    field = {id(LOSSES): "loss", id(OPTIMIZERS): "optimizer", id(METRICS): "metrics"}[id(table)]
    for name in table:
        assert Recipe.of({field: name}).to_data().get(field, "adam") in (name, [name])


def test_schedules_say_when_they_turn():
    """Each schedule goes by steps or by epochs."""
    assert {entry.each for entry in SCHEDULES.values()} == {"step", "epoch"}


def test_a_recipe_needs_no_torch():
    """Who only sends recipes needs no torch."""
    program = "import sys, maas.train.recipe, maas.train.fit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
