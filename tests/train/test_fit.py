"""`model.fit` trains a model here in place, measures it, stops in time, and tells how it went."""

import copy
import io
import sys
import threading

import numpy as np
import pytest
import sklearn.metrics
import torch
from torch import nn

import maas
from maas.testing.equality import difference
from maas.train.history import Epoch, History, Step
from maas.train.loop import Run
from maas.train.recipe import METRICS, Recipe


def made(outputs=1, *, dropout=0.0, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, outputs))


torch.manual_seed(1)
X = torch.randn(120, 6)
NUMBERS = X[:, :2].sum(1, keepdim=True)
CLASSES = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


def test_a_model_is_trained_in_place():
    """The user's own module learns, in eval mode still, and later draws are what they would be."""
    net = made(dropout=0.2).eval()
    drawn = torch.get_rng_state()
    history = maas.Model(net).fit((X, NUMBERS), epochs=12, lr=0.02)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not net.training
    assert net[2].p == 0.2
    assert all(each.grad is None for each in net.parameters())
    assert nn.functional.mse_loss(net(X), NUMBERS) < 0.3
    assert history.curve()[-1] < history.curve()[0] / 3
    assert (len(history.losses), len(history.epochs), history.stopped) == (48, 12, "epochs")


def test_targets_choose_the_loss():
    """Whole numbers are classes, others are numbers, and NumPy's arrays are data too."""
    for targets, outputs, loss in ((CLASSES, 3, "cross_entropy"), (NUMBERS, 1, "mse")):
        given = maas.Model(made(outputs)).fit((X.numpy(), targets.numpy()), epochs=2)
        named = maas.Model(made(outputs)).fit((X, targets), epochs=2, loss=loss)
        assert given.losses == named.losses


def test_equal_arguments_give_equal_bits():
    """Two runs with one seed agree to the bit; another seed draws otherwise."""
    runs = [
        maas.Model(made(dropout=0.3)).fit((X, NUMBERS), epochs=2, seed=seed).losses
        for seed in (0, 0, 1)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_rows_pass_the_preprocessing_before_the_model():
    """A model behind a preprocessing is fitted, estimated and searched with raw rows."""
    scaler = maas.data.StandardScaler()
    scaled = torch.from_numpy(scaler.fit_transform(X.numpy() * 9 + 4)).float()
    raw = X.numpy() * 9 + 4
    behind = maas.data.prepared(maas.Model(made()), scaler)
    options = {"epochs": 2, "validation": 0.2}
    wanted = maas.Model(made()).fit((scaled, NUMBERS), **options).losses
    assert behind.fit((raw, NUMBERS.numpy()), **options).losses == pytest.approx(wanted, rel=1e-5)
    assert behind.estimate((raw, NUMBERS)).fits
    found = behind.search((raw, NUMBERS), {"lr": [0.01]}, 1, epochs=2)
    assert found.model(raw[:3]).shape == (3, 1)


def test_a_queue_before_the_model_is_no_matter():
    """A model whose calls share runs is fitted like any other."""
    model = maas.Model(made(), batching=maas.Batching(8), example=X[:2])
    assert model.fit((X, NUMBERS), epochs=2).losses == (
        maas.Model(made()).fit((X, NUMBERS), epochs=2).losses
    )


def test_calls_take_their_turns():
    """Another thread's calls of the model are answered while it trains, each by whole weights."""
    model = maas.Model(made().eval())
    answers = {model(X[:1]).item()}
    enough = threading.Event()

    def ask():
        while not enough.is_set():
            answers.add(model(X[:1]).item())

    asking = threading.Thread(target=ask)
    asking.start()
    for _ in range(100):
        between = len(answers)
        model.fit((X, NUMBERS), epochs=20)
        # One more than what was before and what is after: it came amid the training.
        if len(answers) > between + 2:
            break
    enough.set()
    asking.join()
    assert len(answers) > between + 2


def test_early_stopping_puts_the_best_weights_back():
    """With no gain for `patience` epochs it stops, and the model is that of the best epoch."""
    net = made()
    history = maas.Model(net).fit((X, NUMBERS), epochs=50, lr=0.3, validation=0.3, patience=2)
    losses = history.curve("validation_loss")
    assert history.stopped == "patience"
    assert history.best == 1 + losses.index(min(losses))
    assert len(losses) == history.best + 2
    assert history.last["validation_loss"] == min(losses)
    alone = made()
    maas.Model(alone).fit((X, NUMBERS), epochs=history.best, lr=0.3, validation=0.3)
    assert difference(dict(net.state_dict()), dict(alone.state_dict())) is None


def test_what_is_better_may_be_higher():
    """A metric that is better when higher is watched so, by early stopping and by `plateau`."""
    history = maas.Model(made(3)).fit(
        (X, CLASSES),
        epochs=9,
        lr=0.05,
        validation=(X, CLASSES),
        metrics="accuracy",
        watch="accuracy",
        patience=3,
        schedule={"name": "plateau", "patience": 0},
    )
    reached = history.curve("accuracy")
    assert reached[history.best - 1] == max(reached)
    # The rate falls after each epoch that is no better, so the first two have the same.
    assert [epoch.lr for epoch in history.epochs][:2] == [0.05, 0.05]


SKLEARN = {
    "accuracy": lambda p, y: sklearn.metrics.accuracy_score(y, p.argmax(1)),
    "balanced_accuracy": lambda p, y: sklearn.metrics.balanced_accuracy_score(y, p.argmax(1)),
    "precision": lambda p, y: sklearn.metrics.precision_score(y, p.argmax(1), average="macro"),
    "recall": lambda p, y: sklearn.metrics.recall_score(y, p.argmax(1), average="macro"),
    "f1": lambda p, y: sklearn.metrics.f1_score(y, p.argmax(1), average="macro"),
    "auroc": lambda p, y: sklearn.metrics.roc_auc_score(y, p, multi_class="ovr"),
    "matthews": lambda p, y: sklearn.metrics.matthews_corrcoef(y, p.argmax(1)),
    "mae": lambda p, y: sklearn.metrics.mean_absolute_error(y, p),
    "mse": lambda p, y: sklearn.metrics.mean_squared_error(y, p),
    "rmse": lambda p, y: sklearn.metrics.root_mean_squared_error(y, p),
    "r2": lambda p, y: sklearn.metrics.r2_score(y, p),
}


@pytest.mark.parametrize("name", METRICS)
def test_metrics_are_scikit_learns(name):
    """Each metric of the held-out rows is what scikit-learn says of the trained model."""
    numbers = name in {"mae", "mse", "rmse", "r2"}
    targets, net = (NUMBERS, made(1)) if numbers else (CLASSES, made(3))
    model = maas.Model(net.eval())
    history = model.fit((X, targets), epochs=8, lr=0.03, validation=(X, targets), metrics=[name])
    outputs = model(X)
    wanted = SKLEARN[name]((outputs if numbers else outputs.softmax(1)).numpy(), targets.numpy())
    assert history.last[name] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("name", sorted(METRICS.keys() - {"mae", "mse", "rmse", "r2"}))
def test_two_classes_are_one_number(name):
    """With one logit for two classes the metrics are those of the class it points at."""
    targets = (X[:, :1] > 0.2).float()
    model = maas.Model(made(1).eval())
    history = model.fit(
        (X, targets),
        loss="binary_cross_entropy",
        validation=(X, targets),
        metrics=name,
        epochs=9,
        lr=0.03,
    )
    positive = model(X).sigmoid()
    both = torch.cat([1 - positive, positive], 1).numpy()
    binary = {
        "precision": lambda: sklearn.metrics.precision_score(targets, both.argmax(1)),
        "recall": lambda: sklearn.metrics.recall_score(targets, both.argmax(1)),
        "f1": lambda: sklearn.metrics.f1_score(targets, both.argmax(1)),
        "auroc": lambda: sklearn.metrics.roc_auc_score(targets, both[:, 1]),
    }
    wanted = binary.get(name, lambda: SKLEARN[name](both, targets.numpy()[:, 0]))()
    assert history.last[name] == pytest.approx(wanted, abs=1e-5)


def test_regularisation_is_torchs():
    """Label smoothing and dropout rates are those that torch is given by hand."""
    smooth = maas.Model(made(3)).fit((X, CLASSES), label_smoothing=0.1, batch_size=120)
    by_hand = nn.functional.cross_entropy(made(3)(X), CLASSES, label_smoothing=0.1)
    # One batch holds all rows, in another order.
    assert smooth.losses == [pytest.approx(by_hand.item(), rel=1e-6)]
    given = maas.Model(made(dropout=0.1)).fit((X, NUMBERS), dropout=0.4)
    own = maas.Model(made(dropout=0.4)).fit((X, NUMBERS))
    assert given.losses == own.losses


@pytest.mark.parametrize(
    ("data", "options", "error", "words"),
    [
        ((X, NUMBERS[:, 0]), {}, ValueError, r"\[32, 1\] and targets \[32\]; reshape"),
        ((X, NUMBERS.double()), {}, ValueError, "torch.float32, got torch.float64"),
        ((X, NUMBERS), {"lr": 1e30, "optimizer": "sgd"}, FloatingPointError, "at step 2"),
        ((X, NUMBERS), {"metrics": "r2"}, ValueError, "r2 are measured on rows .* held out"),
        ((X, NUMBERS), {"watch": "validation_loss"}, ValueError, "validation=0.2"),
        ((X, NUMBERS), {"validation": 0.2, "metrics": "f1"}, ValueError, "'f1' is of classes"),
        ((X, NUMBERS), {"label_smoothing": 0.1}, ValueError, "label_smoothing is for classes"),
        (iter([(X, NUMBERS)]), {"schedule": "cosine"}, ValueError, "do not tell how many rows"),
        ([(X, NUMBERS)], {"batch_size": 8}, ValueError, "batches of their own"),
        (X, {}, TypeError, "one of targets"),
        (7, {}, TypeError, "int"),
        ((X, NUMBERS), {"optimiser": "sgd"}, TypeError, "did you mean 'optimizer'"),
    ],
)
def test_what_does_not_fit_is_refused(data, options, error, words):
    """What recipe, model and rows do not agree on is an error that says what to do."""
    with pytest.raises(error, match=words):
        maas.Model(made()).fit(data, **options)


def test_a_module_without_weights_or_dropout_is_refused():
    """Nothing to train, or no layer that a rate is for, is said at once."""
    frozen = made().requires_grad_(requires_grad=False)
    with pytest.raises(ValueError, match="so nothing can train"):
        maas.Model(frozen).fit((X, NUMBERS))
    with pytest.raises(ValueError, match="this model has none"):
        maas.Model(nn.Linear(6, 1)).fit((X, NUMBERS), dropout=0.5)
    with pytest.raises(
        maas.Unsupported, match="torch modules and Keras models, and this model is a function"
    ):
        maas.Model(len).fit((X, NUMBERS))


def test_a_loss_that_is_no_number_leaves_the_weights_before_it():
    """Training stops before the step that would spoil the weights."""
    net = made()
    with pytest.raises(FloatingPointError):
        maas.Model(net).fit((torch.cat([X, X * torch.nan]), torch.cat([NUMBERS] * 2)))
    assert all(each.isfinite().all() for each in net.parameters())


def test_a_state_of_others_is_refused():
    """A state is put back only under its own recipe, into a module of its own shapes."""
    recipe = Recipe.of({"lr": 0.1})
    state = Run(made(), (X, NUMBERS), recipe).state()
    with pytest.raises(ValueError, match="another recipe"):
        Run(made(), (X, NUMBERS), Recipe.of({"lr": 0.2})).restore(state)
    with pytest.raises(ValueError, match="another module"):
        Run(nn.Linear(6, 1), (X, NUMBERS), recipe).restore(state)


def test_several_inputs_have_names_or_places():
    """Inputs in a dict are the module's keywords, in a tuple its arguments."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = made()

        def forward(self, a, b):
            return self.inner(torch.cat([a, b], 1))

    a, b = X[:, :3].clone(), X[:, 3:].clone()
    inner = made().state_dict()
    losses = []
    for module, inputs in ((made(), X), (Two(), (a, b)), (Two(), {"b": b, "a": a})):
        getattr(module, "inner", module).load_state_dict(inner)
        losses.append(maas.Model(module).fit((inputs, NUMBERS), epochs=2).losses)
    assert losses[0] == losses[1] == losses[2]


def test_a_bar_shows_the_steps(monkeypatch):
    """On request the epoch, the loss and what was measured stand beside a bar on stderr."""
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    maas.Model(made()).fit((X, NUMBERS), validation=0.2, epochs=2, progress=True)
    last = shown.getvalue().rpartition("\r")[2]
    assert all(part in last for part in ("epoch 2", "6/6", "validation loss"))
    shown.truncate(0)
    maas.Model(made()).fit((X, NUMBERS))
    assert not shown.getvalue()


def _history(losses, validation=()):
    steps = [
        Step(
            step=n, epoch=n, loss=loss, lr=0.1, rows=1, seconds=0.5, metrics={"loss": loss, **held}
        )
        for n, (loss, held) in enumerate(
            zip(losses, validation or [{}] * len(losses), strict=True), 1
        )
    ]
    return History.of(steps)


def test_a_history_is_of_its_steps():
    """Epochs, losses and seconds are those of the steps that were told."""
    history = _history([2.0, 1.0], [{"validation_loss": 3.0, "r2": 0.1}] * 2)
    assert history.losses == [2.0, 1.0]
    assert history.seconds == 1.0
    assert history.epochs[1] == Epoch(
        number=2, step=2, loss=1.0, lr=0.1, metrics={"validation_loss": 3.0, "r2": 0.1}
    )
    assert history.last == {"epoch": 2, "loss": 1.0, "validation_loss": 3.0, "r2": 0.1}
    assert len(repr(history)) < 100


@pytest.mark.parametrize("losses", [[], [1.0], [0.5, 0.0, -0.5], [3.0] * 200, [1e-9, 1e9]])
def test_a_picture_is_drawn_of_any_losses(losses):
    """Any losses have a picture that fits a terminal, with a mark for each column it has."""
    picture = _history(losses).picture()
    assert all(len(line) < 80 for line in picture.splitlines())
    assert (picture.count(".") > 0) == bool(losses)


def test_curves_are_drawn_as_a_file(tmp_path):
    """With matplotlib the curves are a picture of the kind that the path's ending says."""
    pytest.importorskip("matplotlib")
    _history([2.0, 1.0], [{"validation_loss": 3.0, "r2": 0.1}] * 2).plot(tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_a_copy_trained_alone_is_the_same():
    """What fit leaves is what the loop leaves that it is made of."""
    net = made()
    other = copy.deepcopy(net)
    maas.Model(net).fit((X, NUMBERS), epochs=2)
    for _ in Run(other, (np.asarray(X), np.asarray(NUMBERS)), Recipe.of({"epochs": 2})):
        pass
    assert difference(dict(net.state_dict()), dict(other.state_dict())) is None
