"""Pruning and rounding while a model trains: what `compress` then does costs nothing more."""

import copy

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

import maas
from maas.backends.packed_layers import quantized
from maas.compress import Prune, Quantize
from maas.data import Data
from maas.testing.equality import difference
from maas.train.loop import Run
from maas.train.recipe import Recipe

X = torch.randn(48, 6, generator=torch.Generator().manual_seed(1))
ROWS = X, X[:, :2].sin()


def net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2)
        )


def zeros(module):
    """The share of weights that are zero."""
    weights = torch.cat([module[0].weight.flatten(), module[4].weight.flatten()])
    return float((weights == 0).double().mean())


@pytest.mark.parametrize("amount", [0.5, 0.9])
def test_weights_go_by_the_papers_schedule(amount):
    """After each turn the share of zeros is a (1 - (1 - p)^3), it never falls, and ends at a."""
    module = net()
    prune = {"name": "gradual", "amount": amount, "begin": 0.25, "end": 0.75, "turns": 4}
    run = Run(module, ROWS, Recipe.of({"prune": prune, "epochs": 8, "batch_size": 16, "lr": 0.01}))
    shares = [zeros(module) for _ in run]
    assert run.total == len(shares) == 24
    for step in range(24):
        # Four turns from step 6 to step 18, three steps apart.
        part = min(max((step + 1 - 6) // 3, 0), 4) / 4
        assert shares[step] == pytest.approx(amount * (1 - (1 - part) ** 3), abs=1 / 128)


def test_pruning_afterwards_takes_the_zeros_alone():
    """`Prune` of the same share changes no bit of what a model trained so gives."""
    module = net()
    model = maas.Model(module)
    model.fit(ROWS, prune=0.8, epochs=6, batch_size=16, lr=0.01)
    small = model.compress(Prune(0.8), check=ROWS)
    assert small.report.result.error == 0
    assert small.report.result.numbers < small.report.original.numbers / 2


def test_rounding_afterwards_changes_no_bit():
    """`Quantize("int8")` gives the numbers that the model was trained and measured with."""
    module = net()
    model = maas.Model(module)
    history = model.fit(
        ROWS, quantize="int8", prune=0.5, epochs=4, batch_size=16, lr=0.01, validation=ROWS
    )
    small = model.compress(Prune(0.5), Quantize("int8"), check=ROWS)
    with torch.no_grad():
        parts = [small(x) for x in X.split(16)]
        losses = [
            nn.functional.mse_loss(*pair) for pair in zip(parts, ROWS[1].split(16), strict=True)
        ]
    found = sum(loss.item() * 16 for loss in losses) / 48
    assert history.epochs[-1].value("validation_loss") == found
    assert small.report.result.error > 0


def test_a_rounded_step_is_the_straight_through_one():
    """Gradients are those at the rounded weights, and the weights themselves take the step."""
    module, plain = net(), net()
    run = Run(
        module,
        ROWS,
        Recipe.of(
            {"quantize": "int8", "optimizer": "sgd", "lr": 0.1, "batch_size": 48, "shuffle": False}
        ),
    )
    before = copy.deepcopy(plain)
    with torch.no_grad():
        for layer in (plain[0], plain[4]):
            values, scale = quantized(layer.weight)
            layer.weight.copy_(values * scale)
    wanted = Run(
        plain, ROWS, Recipe.of({"optimizer": "sgd", "lr": 0.1, "batch_size": 48, "shuffle": False})
    )
    rounded = copy.deepcopy(plain)
    assert [step.loss for step in run] == [step.loss for step in wanted]
    for layer in (0, 4):
        step = plain[layer].weight - rounded[layer].weight
        torch.testing.assert_close(module[layer].weight, before[layer].weight + step)


@settings(max_examples=4, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    optimizer=st.sampled_from(["adam", {"name": "sgd", "momentum": 0.9}]),
    prune=st.sampled_from([None, 0.6, {"name": "gradual", "amount": 0.9, "end": 1.0, "turns": 3}]),
    quantize=st.sampled_from([None, "int8"]),
    patience=st.sampled_from([None, 1]),
)
def test_a_slimming_run_goes_on_from_any_step(optimizer, prune, quantize, patience):
    """From the state between two steps, another run of another module ends at the same bits."""
    recipe = Recipe.of(
        {"optimizer": optimizer, "prune": prune, "quantize": quantize, "patience": patience,
         "epochs": 3, "batch_size": 24, "lr": 0.02}
    )  # fmt: skip
    assert Recipe.of(recipe.to_data()) == recipe
    run = Run(net(), ROWS, recipe)
    states = [run.state()]
    states += [run.state() for _ in run]
    for state in states[1::2]:
        other = Run(net(seed=9), ROWS, recipe)
        other.restore(copy.deepcopy(state))
        for _ in other:
            pass
        assert difference(other.state(), run.state()) is None


def test_early_stopping_watches_what_is_sparse():
    """The best epoch is one whose weights are as sparse as was asked."""
    module = net()
    history = maas.Model(module).fit(
        ROWS, prune={"name": "gradual", "amount": 0.9, "end": 1.0}, patience=1, epochs=5, lr=0.05
    )
    assert history.best == 5
    assert zeros(module) == pytest.approx(0.9, abs=1 / 128)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"prune": 1.0}, ValueError, "an amount between 0 and 1"),
        ({"prune": True}, ValueError, "no prune True"),
        ({"prune": "gradual"}, TypeError, "needs amount"),
        ({"prune": {"name": "gradual", "amount": "0.5"}}, ValueError, "an amount between"),
        (
            {"prune": {"name": "gradual", "amount": 0.5, "begin": 0.5, "end": 0.5}},
            ValueError,
            "a begin before an end",
        ),
        ({"prune": {"name": "gradual", "amount": 0.5, "turns": 0}}, ValueError, "1 to 1000 turns"),
        ({"prune": {"name": "gradual", "amount": 0.5, "turn": 1}}, TypeError, "mean 'turns'"),
        ({"quantize": "int4"}, ValueError, "mean 'int8'"),
    ],
)
def test_what_makes_no_sense_is_refused(options, error, words):
    """A recipe that cannot be is an error that says what was wanted."""
    with pytest.raises(error, match=words):
        Recipe.of(options)


def test_what_does_not_fit_is_refused():
    """A module without such layers, and rows that nobody counted, are refused before a step."""
    with pytest.raises(ValueError, match="this model has none: Linear"):
        Run(nn.BatchNorm1d(6), (X, X), Recipe.of({"quantize": "int8"}))
    uncounted = Data.of(lambda: iter([ROWS]))
    with pytest.raises(ValueError, match="do not tell how many rows"):
        Run(net(), uncounted, Recipe.of({"prune": 0.5}))
