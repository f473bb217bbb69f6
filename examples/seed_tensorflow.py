"""The other training loop that this project began with, in TensorFlow, wherever the model runs.

It runs behind the wire, against `maas serve` in another process, and here, and prints losses that
fall and are the same to the last bit. A plain TensorFlow program differs in one line: where
`model` comes from.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"  # fixed at the first import of keras
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf

import maas

tf.config.threading.set_intra_op_parallelism_threads(1)  # additions in the same order everywhere


keras.utils.set_random_seed(0)
layers = [keras.layers.Dense(units, activation="relu") for units in (500, 250, 100)]
# BigModel, from [batch, 1000] to [batch, 1].
net = keras.Sequential([keras.Input((1000,)), *layers, keras.layers.Dense(1)])


def train(where: object) -> list[float]:
    model = maas.connect(where)  # the one line that is new

    variables = model.trainable_variables
    optimizer = keras.optimizers.Adam(learning_rate=0.001)
    # The program we began with never defined its target; here it is a function of the input.
    input = tf.reshape(tf.linspace(-1.0, 1.0, 1000), (1, 1000))  # noqa: A001 - its name there
    target = tf.reduce_sum(tf.square(input[:, ::10]), axis=1, keepdims=True)
    losses = []
    for _ in range(8):
        with tf.GradientTape() as tape:
            output = model(input)
            loss = tf.reduce_mean(tf.square(output - target))
        gradients = tape.gradient(loss, variables)
        # An optimizer of Keras's is told which gradient is whose.
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        losses.append(float(loss))
    return losses


@contextmanager
def served() -> Iterator[str]:
    """`maas serve` in another process, which grants training to whoever reaches it here."""
    command = [sys.executable, "-m", "maas", "serve", "seed_tensorflow:net", "--port", "0"]
    with subprocess.Popen(  # noqa: S603 - of our own
        [*command, "--allow", "call,describe,train"],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield re.findall(r"http://\S+", process.stdout.readline())[0]
        process.terminate()


if __name__ == "__main__":
    # Training elsewhere works on a private copy there, so `net` is still new when it comes last.
    losses = {"the wire": train(maas.Server(net, allow={"call", "describe", "train"}))}
    with served() as url:
        losses["maas serve"] = train(url)
    losses["here"] = train(net)
    for place, falling in losses.items():
        print(f"{place:>10}", *(f"{loss:.4f}" for loss in falling))
    assert losses["the wire"] == losses["maas serve"] == losses["here"]
