"""TensorFlow's own training loop, over a model that runs here or at a server: one and the same."""

import numpy as np
import pytest

import maas
from maas.calls import AMBIENT
from maas.errors import Conflict, Expired, Forbidden, Unsupported

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")
if keras.backend.backend() != "tensorflow":
    pytest.skip("tf.GradientTape is TensorFlow's", allow_module_level=True)
layers = keras.layers

GRANTS = {"call", "describe", "train"}
X = np.random.default_rng(0).standard_normal((12, 4)).astype("f4")
Y = X.sum(axis=1, keepdims=True)


def net():
    """What moves and draws, and two outputs; BatchNorm's statistics are trained by no gradient."""
    keras.utils.set_random_seed(1)
    given = keras.Input((4,), name="x")
    hidden = layers.BatchNormalization()(layers.Dense(8, activation="relu")(given))
    hidden = layers.Dropout(0.3, seed=3)(hidden)
    return keras.Model(given, [layers.Dense(1)(hidden), layers.Dense(2)(hidden)])


def looped(model, call, steps=4):
    """The losses of the loop, and the trainable variables and the statistics after it."""
    optimizer = keras.optimizers.Adam(0.01)
    variables = model.trainable_variables
    losses = []
    for _ in range(steps):
        with tf.GradientTape() as tape:
            first, second = call(tf.constant(X))
            loss = tf.reduce_mean(tf.square(first - Y)) + tf.reduce_mean(second[:, 1] ** 2)
        gradients = tape.gradient(loss, variables)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        losses.append(float(loss))
    return losses, [np.asarray(each) for each in variables], np.asarray(call.eval_of(X)[0])


def bare(target):
    """Keras's own call, with the mode said."""

    def call(x):
        return target(x, training=True)

    call.eval_of = lambda x: target(x, training=False)
    return call


def asked(model):
    """The same of a handle."""

    def call(x):
        return model.train()(x)

    call.eval_of = lambda x: model.eval()(tf.constant(x))
    return call


def same(one, other):
    """Bit for bit."""
    assert one[0] == other[0]
    for left, right in zip([*one[1], one[2]], [*other[1], other[2]], strict=True):
        np.testing.assert_array_equal(left, right)


def test_the_loop_is_the_same_in_every_place(maas_connect):
    """Losses, variables, and what BatchNorm has seen are those of the loop without us, to the bit,
    with Dropout drawing.
    """
    target = net()
    expected = looped(target, bare(target))
    model = maas_connect(net())
    same(looped(model, asked(model)), expected)


def test_gradients_of_inputs_and_of_what_is_not_used(maas_connect):
    """A persistent tape is asked twice, an input has its gradient, and what a loss does not depend
    on has None, as in one process.
    """
    grads = []
    for model in (net(), maas_connect(net())):
        variables = model.trainable_variables
        x = tf.constant(X)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            first, second = model(x)
            loss, other = tf.reduce_sum(first), tf.reduce_sum(second**2)
        grads.append([*tape.gradient(loss, [x, *variables[:4]]), tape.gradient(other, x)])
        assert tape.gradient(loss, tf.Variable(1.0)) is None
    for one, another in zip(*grads, strict=True):
        np.testing.assert_array_equal(one, another)


def test_the_trained_copy_is_the_handles_alone():
    """Others go on seeing the model that is served, and the served weights do not move."""
    target = net()
    before = [np.asarray(each) for each in target.variables]
    server = maas.Server({"net": target}, allow=GRANTS)
    with maas.connect(server) as model, maas.connect(server) as other:
        answered = np.asarray(other(X)[0])
        looped(model, asked(model), steps=2)
        assert not np.array_equal(model.eval()(X)[0], answered)
        np.testing.assert_array_equal(other(X)[0], answered)
        np.testing.assert_array_equal(model.submit(X).result(30)[0], model(X)[0])
        with pytest.raises(Unsupported, match="connect anew"):
            model.fit((X, Y))
    for variable, value in zip(target.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_tapes_are_let_go_of():
    """A tape goes when nothing here may ask it any more, and with it what the server kept."""
    server = maas.Server({"net": net()}, allow=GRANTS)
    with maas.connect(server) as model:
        looped(model, asked(model), steps=3)
        service = server.handler._services.made("_tape")
        model(tf.constant(X))  # a question after which what was told before has been heard
        assert len(service.tapes) <= 2
        assert len(service.copies) == 1


def test_a_tape_that_gave_way_says_so():
    """A server that keeps one tape says of an older one which bound it was."""
    server = maas.Server({"net": net()}, allow=GRANTS, leases=maas.Leases(graphs=1))
    with maas.connect(server) as model:
        variables = model.trainable_variables
        with tf.GradientTape() as tape:
            outputs = [model(tf.constant(X))[0] for _ in range(2)]
        with pytest.raises(Expired, match="graphs=1"):
            tape.gradient(outputs[0], variables)


def test_a_question_that_comes_again_is_answered_once():
    """A question of the last number gets the last answer again, an older one is a conflict."""
    server = maas.Server({"net": net()}, allow=GRANTS)
    with maas.connect(server) as model:
        copy = model.executor.put("_tape", ("open",), AMBIENT, repeatable=False).value["copy"]

        def call(number):
            question = ("call", copy, number, {}, "__call__", [tf.constant(X)], {})
            return model.executor.put("_tape", question, AMBIENT, repeatable=True)

        names = [call(number).value["tape"] for number in (1, 1, 2)]
        assert names[0] == names[1] != names[2]
        assert isinstance(call(1).error, Conflict)


def test_what_cannot_be_trained_so_is_refused():
    """Without the grant, inside a tf.function, and for what is no Keras model, it is an error that
    tells what to do.
    """
    with (
        maas.connect(maas.Server({"net": net()})) as model,
        pytest.raises(Forbidden, match="train"),
    ):
        _ = model.trainable_variables
    with maas.connect(maas.Server({"net": net()}, allow=GRANTS)) as model:
        assert len(model.trainable_variables) == 8
        with pytest.raises(Unsupported, match=r"tf\.function"):
            tf.function(model, autograph=False)(tf.constant(X))
    with (
        maas.connect(maas.Server({"f": len}, allow=GRANTS)) as model,
        pytest.raises(Unsupported, match="no trainable_variables"),
    ):
        _ = model.trainable_variables
