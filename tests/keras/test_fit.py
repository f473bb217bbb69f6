"""`model.fit` on a Keras model is Keras's own training, told step by step."""

import attrs
import numpy as np
import pytest

import maas
from maas.train.recipe import Recipe

keras = pytest.importorskip("keras")
pytest.importorskip("torch", reason="torch makes the order of rows")
layers = keras.layers
# These import keras.
from maas.backends.keras_calls import array_of  # noqa: E402
from maas.jobs.sealed import sealed, unsealed  # noqa: E402
from maas.train.keras_loop import Run  # noqa: E402

X = np.random.default_rng(0).standard_normal((40, 4)).astype("f4")
Y = X.sum(axis=1, keepdims=True)
KIND = (X[:, 0] > 0).astype("i8")
GRANTS = {"call", "describe", "train"}


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


# Going on.


def drawing():
    """What moves and draws: dropout with a seed and without one, and BatchNorm."""
    keras.utils.set_random_seed(2)  # of the layer that is given none, too
    return net(layers.BatchNormalization(), layers.Dropout(0.2), layers.Dense(1))


def run_of(model):
    recipe = Recipe.of({"epochs": 3, "batch_size": 16, "validation": 0.2, "patience": 2})
    return Run(model, (X, Y), recipe)


@pytest.mark.parametrize("taken", [0, 1, 3, 5])
def test_it_goes_on_to_the_bit(taken):
    """A run that another one's state was put into makes the very steps that the other makes, and
    leaves the very variables; the state is a file in between.
    """
    whole = run_of(drawing())
    model = keras.models.clone_model(whole.model)
    model.set_weights(whole.model.get_weights())
    steps = iter(whole)
    before = [next(steps) for _ in range(taken)]
    state = unsealed(b"".join(map(bytes, sealed(whole.state()))))
    expected = [attrs.evolve(step, seconds=0) for step in steps]
    resumed = run_of(model)
    resumed.restore(state)
    assert [attrs.evolve(step, seconds=0) for step in resumed] == expected
    assert len(before) + len(expected) == whole.total
    for one, other in zip(model.variables, whole.model.variables, strict=True):
        np.testing.assert_array_equal(array_of(one), array_of(other))


def test_a_state_of_another_model_is_refused():
    """Variables of other shapes are none of this model's."""
    with pytest.raises(ValueError, match="another model"):
        run_of(drawing()).restore(run_of(net()).state())


# Elsewhere.


def test_a_fit_at_a_server_is_a_job_that_gives_what_fit_gives_here(tmp_path, monkeypatch):
    """A remote `fit` has the losses of the local one, the handle the weights, others the old ones;
    its job is told by its events, and runs on what Keras runs on here.
    """
    monkeypatch.delenv("KERAS_BACKEND")
    recipe = {"epochs": 2, "batch_size": 16, "validation": 0.2, "metrics": ["mae"], "lr": 0.01}
    here = maas.Model(drawing())
    server = maas.Server({"net": drawing()}, allow=GRANTS, jobs=tmp_path / "jobs")
    with maas.connect(server, model="net") as model, maas.connect(server, model="net") as other:
        before = other(X)
        remote = model.fit((X, Y), progress=False, **recipe)
        (job,) = other.jobs()
        local = here.fit((X, Y), **recipe)
        assert [step.loss for step in job.events()] == remote.losses == local.losses
        assert remote.epochs == local.epochs
        np.testing.assert_array_equal(model(X), here(X))
        np.testing.assert_array_equal(other(X), before)
    server.close()


@pytest.mark.long
def test_a_job_that_was_interrupted_goes_on_to_the_bit(tmp_path):
    """Cancelled in the middle and resumed, in another process, it makes what `fit` makes here."""
    recipe = {"epochs": 60, "batch_size": 4, "validation": 0.2}
    here = maas.Model(drawing())
    server = maas.Server({"net": drawing()}, allow=GRANTS, jobs=tmp_path / "jobs")
    with maas.connect(server, model="net") as model:
        job = model.fit.submit((X, Y), name="run-1", **recipe)
        for _ in zip(range(20), job.events(), strict=False):
            pass
        job.cancel()
        assert job.wait(300) == "cancelled"
        assert job.told()["steps"] < job.total
        made = job.resume().result(300)
        assert job.history().losses == here.fit((X, Y), **recipe).losses
        np.testing.assert_array_equal(made(X), here(X))
    server.close()


def test_what_no_job_can_train_is_refused(tmp_path):
    """A class of one's own, whose code no folder holds, and a function, by their kind."""

    class Own(keras.Model):
        def call(self, x):
            return x

    for target, words in ((Own(), "Keras's standard layers"), (len, "jobs train torch")):
        server = maas.Server({"it": target}, allow=GRANTS, jobs=tmp_path / "jobs")
        with maas.connect(server) as model, pytest.raises(maas.Unsupported, match=words):
            model.fit((X, Y))


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="what tf.GradientTape trains")
def test_variables_are_for_tapes():
    """Here they are Keras's own; at a server they are TensorFlow's, and on torch it says so."""
    target = net()
    held = maas.Model(target).trainable_variables
    assert [id(each) for each in held] == [id(each) for each in target.trainable_variables]
    with (
        maas.connect(maas.Server(net(), allow=GRANTS)) as model,
        pytest.raises(maas.Unsupported, match=r"GradientTape.*model\.parameters\(\)"),
    ):
        _ = model.trainable_variables
