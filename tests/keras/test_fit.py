"""`model.fit` on a Keras model is Keras's own training, told step by step."""

import numpy as np
import pytest

import maas

keras = pytest.importorskip("keras")
pytest.importorskip("torch", reason="torch makes the order of rows")
layers = keras.layers

X = np.random.default_rng(0).standard_normal((40, 4)).astype("f4")
Y = X.sum(axis=1, keepdims=True)
KIND = (X[:, 0] > 0).astype("i8")


def net(*last):
    keras.utils.set_random_seed(1)
    hidden = [layers.Dense(8, activation="relu"), layers.Dropout(0.2, seed=3)]
    return keras.Sequential([keras.Input((4,)), *hidden, *(last or [layers.Dense(1)])])


def weights(model):
    return [np.asarray(each) for each in model.get_weights()]


def test_it_is_what_keras_does_itself():
    """Two epochs in the rows' own order leave the very weights that `keras.Model.fit` leaves."""
    ours, theirs = net(), net()
    options = {"loss": "mse", "optimizer": {"name": "adam", "betas": (0.8, 0.99)}, "lr": 0.01}
    history = maas.Model(ours).fit((X, Y), epochs=2, batch_size=16, shuffle=False, **options)
    theirs.compile(keras.optimizers.Adam(0.01, beta_1=0.8, beta_2=0.99), loss="mse")
    told = theirs.fit(X, Y, epochs=2, batch_size=16, shuffle=False, verbose=0)
    for one, other in zip(weights(ours), weights(theirs), strict=True):
        np.testing.assert_array_equal(one, other)
    losses = [epoch.loss for epoch in history.epochs]
    np.testing.assert_allclose(losses, told.history["loss"], rtol=1e-5)


@pytest.mark.parametrize("last", [[layers.Dense(2)], [layers.Dense(2, activation="softmax")]])
def test_classes_are_learned(last):
    """Targets that are whole numbers are classes, of scores or of probabilities; the best epoch
    stays.
    """
    model = maas.Model(net(*last))
    history = model.fit(
        (X, KIND), epochs=15, batch_size=8, lr=0.02, validation=(X, KIND), metrics=["accuracy"],
        patience=3,
    )  # fmt: skip
    assert history.epochs[-1].metrics["accuracy"] > 0.7
    assert history.epochs[-1].loss < history.epochs[0].loss
    assert history.best is not None


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"schedule": "cosine"}, "schedule"),
        ({"precision": "bfloat16"}, "precision"),
        ({"loss": "nll"}, "no loss 'nll' for Keras"),
        ({"optimizer": "radam"}, "no optimizer 'radam'"),
        ({"optimizer": {"name": "sgd", "dampening": 0.1}}, "no option 'dampening'"),
        ({"metrics": ["auroc"], "validation": 0.2}, "no metric 'auroc'"),
        ({"metrics": ["mae"]}, "held out"),
    ],
)
def test_what_keras_does_otherwise_is_refused(options, match):
    """A recipe that Keras cannot follow to the letter is refused by the name of what it wants."""
    with pytest.raises(ValueError, match=match):
        maas.Model(net()).fit((X, Y), **options)


def test_a_loss_that_is_no_number_ends_it():
    """A loss that became infinite is an error, not a model of NaN."""
    with pytest.raises(FloatingPointError, match="smaller lr"):
        maas.Model(net()).fit((X * 1e30, Y), epochs=3, optimizer="sgd", lr=1e3)


def test_elsewhere_it_says_so():
    """A Keras model at a server is not trained from here, and the error says where it is."""
    server = maas.Server(net(), allow={"call", "describe", "train"})
    with maas.connect(server) as model, pytest.raises(maas.Unsupported):
        model.fit((X, Y))
