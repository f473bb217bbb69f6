"""A search finds options that do better, leaves the model as it was, and goes on after a break."""

import copy

import pytest
import torch
from torch import nn

import maas
from maas.testing.equality import difference

torch.manual_seed(2)
X = torch.randn(90, 5)
Y = X.sum(1, keepdim=True)
SPACE = {
    "lr": (1e-4, 0.5, "log"),
    "batch_size": [8, 30],
    "optimizer": [{"name": "sgd", "momentum": 0.9}, "adam"],
    "epochs": (2, 4),
    "dropout": (0.0, 0.3),
}


def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 1))


VARIANTS = {"linear": nn.Sequential(nn.Dropout(0.0), nn.Linear(5, 1)), "deep": net()}


def test_a_search_finds_the_best_of_its_trials():
    """The best trial is the best there is, comes first, and can be trained again."""
    own = net()
    model, before = maas.Model(own), copy.deepcopy(own.state_dict())
    search = model.search((X, Y), SPACE, trials=8, validation=(X, Y), seed=1)
    assert difference(dict(own.state_dict()), dict(before)) is None
    done = {trial.number: trial.value for trial in search.trials if trial.state == "done"}
    assert search.best.value == min(done.values())
    assert search.table().splitlines()[1].split()[0] == str(search.best.number)
    assert search.picture().count("o") >= 1
    assert [trial.number for trial in search.trials] == [*range(8)]
    loss = nn.functional.mse_loss(search.model.eval()(X), Y).item()
    assert loss == pytest.approx(search.best.value, rel=1e-5)
    history = model.fit((X, Y), validation=(X, Y), **search.options)
    assert history.last["validation_loss"] == search.best.value


def test_a_search_goes_on_where_it_was_broken_off(tmp_path):
    """Trials in the store are not run again; the best model of an earlier session is made again."""
    model = maas.Model(net())
    first = model.search((X, Y), SPACE, trials=4, store=tmp_path / "study", variants=VARIANTS)
    again = model.search((X, Y), SPACE, trials=4, store=tmp_path / "study", variants=VARIANTS)
    assert again.trials == first.trials
    weights = [dict(each.model.state_dict()) for each in (first, again)]
    assert difference(*weights) is None
    more = model.search((X, Y), SPACE, trials=6, store=tmp_path / "study", variants=VARIANTS)
    assert more.trials[:4] == first.trials
    assert len({str(trial.options) for trial in more.trials}) == 6
    assert {trial.variant for trial in more.trials} <= {"linear", "deep"}
    with pytest.raises(maas.Conflict, match="another file"):
        model.search((X, Y), {"lr": [0.1]}, trials=1, store=tmp_path / "study")


class Broken(nn.Module):
    """Fails as a power cut does, at its twentieth call in train mode."""

    left = 20

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 1)

    def forward(self, x):
        if self.training and not x.is_meta:
            Broken.left -= 1
            if not Broken.left:
                raise KeyboardInterrupt
        return self.linear(x)


def test_a_trial_that_was_broken_off_has_failed(tmp_path):
    """What ran when the search was stopped is told as failed, and the others follow."""
    model = maas.Model(Broken())
    with pytest.raises(KeyboardInterrupt):
        model.search((X, Y), {"lr": [0.1, 0.01]}, trials=9, store=tmp_path / "study", epochs=4)
    search = model.search((X, Y), {"lr": [0.1, 0.01]}, trials=5, store=tmp_path / "study", epochs=4)
    states = [trial.state for trial in search.trials]
    assert states.count("failed") == 1
    assert len(states) == 5


def test_hopeless_trials_are_given_up():
    """After the first five, what is worse than the median is stopped after an epoch."""
    lrs = [0.05, 0.04, 0.06, 0.05, 0.04, 1e-7]
    search = maas.Model(net()).search((X, Y), {"lr": lrs}, trials=14, epochs=6, seed=0)
    pruned = [trial for trial in search.trials if trial.state == "pruned"]
    assert pruned
    assert all(trial.epochs < 6 and trial.value is not None for trial in pruned)
    assert "(pruned)" in search.table()


def test_a_loss_that_is_no_number_is_a_failed_trial():
    """A rate that spoils a model ends its trial and no more; with none done there is no best."""
    search = maas.Model(net()).search((X, Y), {"lr": [1e30]}, trials=2, optimizer="sgd", epochs=3)
    assert [trial.state for trial in search.trials] == ["failed"] * 2
    with pytest.raises(ValueError, match="no trial was trained to its end"):
        search.best
    assert "no trial" in search.picture()


@pytest.mark.parametrize(
    ("space", "options", "error", "words"),
    [
        ({}, {}, ValueError, "the space is empty"),
        ({"lr": 0.1}, {}, ValueError, r"lr wants a list of choices"),
        ({"lr": (1.0, 0.1)}, {}, ValueError, "lr wants"),
        ({"lr": (0.0, 1.0, "log")}, {}, ValueError, "lr wants"),
        ({"lr": []}, {}, ValueError, "lr wants"),
        ({"lr": (-1.0, 1.0)}, {}, ValueError, "lr wants a number above 0"),
        ({"lrs": [0.1]}, {}, TypeError, "did you mean 'lr'"),
        ({"optimizer": ["sgd", "adm"]}, {}, ValueError, "did you mean 'adam'"),
        ({"lr": [0.1]}, {"lr": 0.1}, ValueError, "fixed and in the space"),
        ({"lr": [0.1]}, {"trials": 0}, ValueError, "trials wants a whole number from 1"),
        ({"lr": [0.1]}, {"watch": "f1"}, ValueError, "nothing to watch"),
        ({"dropout": [0.1]}, {"variants": {"a": nn.Linear(5, 1)}}, ValueError, "has none"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(space, options, error, words):
    """Wrong spaces and options are refused before anything is trained."""
    with pytest.raises(error, match=words):
        maas.Model(net()).search((X, Y), space, **options)


def test_only_a_module_is_searched():
    """For a function there is nothing to search, and no variants of one's own travel."""
    with pytest.raises(maas.Unsupported, match="no torch module"):
        maas.Model(len).search((X, Y), {"lr": [0.1]})
    with pytest.raises(maas.Unsupported, match="do not travel"):
        maas.connect(maas.Server(net())).search((X, Y), {"lr": [0.1]}, variants=VARIANTS)
    with pytest.raises(maas.Forbidden, match="'train'"):
        maas.connect(maas.Server(net())).search((X, Y), {"lr": [0.1]}, trials=1)


def test_a_search_elsewhere_is_the_one_here(tmp_path, one_thread):
    """Trials at a server, each a job, propose and reach what they do here; of the jobs the best
    alone is left, and one that was broken off is found again in the store.
    """
    space = {"lr": [1e-3, 0.3], "optimizer": ["adam", "sgd"]}
    options = {"validation": (X, Y), "epochs": 2, "seed": 4}
    server = maas.Server({"net": net()}, allow={"call", "describe", "train"}, jobs=tmp_path)
    with maas.serve(server, port=0, block=False) as running:
        model = maas.connect(f"{running.url}/net")
        for trials in (1, 2):
            there = model.search((X, Y), space, trials, store=tmp_path / "study", **options)
        here = maas.Model(net())
        for trials in (1, 2):
            wanted = here.search((X, Y), space, trials, store=tmp_path / "own", **options)
        told = [[(each.options, each.value, each.state) for each in found.trials]
                for found in (there, wanted)]  # fmt: skip
        assert told[0] == told[1]
        weights = [dict(found.model.state_dict()) for found in (there, wanted)]
        assert difference(*weights) is None
        assert [job.name[-2:] for job in model.jobs()] == [f"-{there.best.number}"]
