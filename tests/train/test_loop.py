"""The loop of `fit` is the plain loop of torch, bit for bit, and goes on from any step as if it had
never stopped.
"""

import copy
import math

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from maas.data import Data
from maas.testing.equality import difference
from maas.train import rules
from maas.train.layout import tensors_of
from maas.train.loop import Run
from maas.train.recipe import SCHEDULES, Recipe

PHASES = [Phase.explicit, Phase.reuse, Phase.generate]
"""No shrinking: a choice of names is small as it is, and each example trains three epochs."""
OPTIMIZERS = [
    "sgd",
    {"name": "sgd", "momentum": 0.9, "nesterov": True},
    "adam",
    {"name": "adam", "fused": True},
    {"name": "adamw", "amsgrad": True},
    *["adamax", "nadam", "radam", "rmsprop", "adagrad", "adadelta"],
]
SCHEDULES_CHOSEN = [
    None,
    {"name": "step", "step_size": 1, "gamma": 0.5},
    {"name": "multistep", "milestones": [1, 2]},
    {"name": "exponential", "gamma": 0.9},
    {"name": "plateau", "patience": 0},
    *["linear", "polynomial", "cosine", "one_cycle"],
    {"name": "cosine_restarts", "T_0": 2},
]
RECIPES = st.fixed_dictionaries(
    {
        "optimizer": st.sampled_from(OPTIMIZERS),
        "lr": st.sampled_from([0.05, 0.003]),
        "schedule": st.sampled_from(SCHEDULES_CHOSEN),
        "clip_norm": st.sampled_from([None, 0.5]),
        "clip_value": st.sampled_from([None, 0.1]),
        "accumulate": st.sampled_from([1, 3]),
        "precision": st.sampled_from(["full", "bfloat16"]),
        "batch_size": st.sampled_from([3, 4]),
        "seed": st.integers(0, 3),
        "epochs": st.just(3),
    }
)
"""Over 14 rows, so that the last batch and the last group of batches are ragged."""


def rows():
    """Fourteen of them."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Data.of((torch.randn(14, 1, 6, 6), torch.randn(14, 5)))


def plain(module, source, recipe):
    """The loop as anyone writes it, with torch's own classes: what `fit` has to equal."""
    torch.manual_seed(recipe.seed)
    steps = math.ceil(math.ceil(len(source) / recipe.batch_size) / recipe.accumulate)
    optimizer = rules.OPTIMIZERS[recipe.optimizer.name](
        module.parameters(), lr=recipe.lr, **recipe.optimizer.options
    )
    schedule = rules.schedule_of(recipe, optimizer, steps * recipe.epochs, higher=False)
    pace = schedule and SCHEDULES[recipe.schedule.name].each
    module.train()
    losses = []
    for epoch in range(recipe.epochs):
        batches = list(source.batches(recipe.batch_size, order=(recipe.seed, epoch)))
        seen = 0.0
        for first in range(0, len(batches), recipe.accumulate):
            group = batches[first : first + recipe.accumulate]
            count = sum(len(x) for x, _ in group)
            optimizer.zero_grad()
            mean = 0.0
            for x, y in group:
                with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision != "full"):
                    loss = nn.functional.mse_loss(module(x), y)
                if len(group) > 1:
                    loss = loss * (len(x) / count)
                loss.backward()
                mean += loss.item()
            if recipe.clip_norm:
                nn.utils.clip_grad_norm_(module.parameters(), recipe.clip_norm)
            if recipe.clip_value:
                nn.utils.clip_grad_value_(module.parameters(), recipe.clip_value)
            optimizer.step()
            if pace == "step":
                schedule.step()
            losses.append(mean)
            seen += mean * count
        if pace == "epoch":
            told = (seen / len(source),) if recipe.schedule.name == "plateau" else ()
            schedule.step(*told)
    return losses, tensors_of(module), torch.rand(3)


def ran(module, source, recipe):
    run = Run(module, source, recipe)
    losses = [step.loss for step in run]
    return losses, tensors_of(module), run


@settings(max_examples=25, deadline=None, phases=PHASES)
@given(options=RECIPES)
def test_a_run_is_the_plain_loop(training, options):
    """Losses, weights, buffers and draws of any recipe are those of torch's plain loop."""
    recipe = Recipe.of(options)
    losses, weights, drawn = plain(training.net(), rows(), recipe)
    own = ran(training.net(), rows(), recipe)
    assert difference((own[0], own[1]), (losses, weights)) is None
    torch.set_rng_state(own[2].state()["draws"]["cpu"])
    assert torch.equal(torch.rand(3), drawn)


@settings(max_examples=8, deadline=None, phases=PHASES)
@given(options=RECIPES, patience=st.sampled_from([None, 1]))
def test_a_run_goes_on_from_any_step(training, options, patience):
    """From the state after each step, another run of another module ends at the same bits."""
    recipe = Recipe.of({**options, "validation": 0.3, "patience": patience})
    run = Run(training.net(), rows(), recipe)
    states, losses = [run.state()], []
    for step in run:
        losses.append(step.loss)
        states.append(run.state())
    wanted = run.state()
    for number, state in enumerate(states):
        other = Run(training.net(seed=9), rows(), recipe)
        other.restore(copy.deepcopy(state))
        assert [step.loss for step in other] == losses[number:]
        assert difference(other.state(), wanted) is None


@pytest.mark.parametrize("table", ["LOSSES", "OPTIMIZERS", "SCHEDULES"])
def test_each_name_has_its_class(table):
    """What a recipe may name, torch has, and the other way round."""
    from maas.train import recipe

    assert getattr(recipe, table).keys() == getattr(rules, table).keys()
