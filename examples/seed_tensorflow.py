"""The other training loop that this project began with, in TensorFlow, wherever the model runs.

It runs behind the wire, against `maas serve` in another process, and here, and prints losses that
fall and are the same to the last bit. TensorFlow records gradients in the process where it
computes, so the body of the loop is a method of an object, and goes where the object is.
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


class Learner:
    """BigModel, from [batch, 1000] to [batch, 1], and its optimizer."""

    def __init__(self) -> None:
        keras.utils.set_random_seed(0)
        hidden = [keras.layers.Dense(units, activation="relu") for units in (500, 250, 100)]
        self.model = keras.Sequential([keras.Input((1000,)), *hidden, keras.layers.Dense(1)])
        self.optimizer = keras.optimizers.Adam(learning_rate=0.001)

    @maas.method
    def step(self, input: tf.Tensor, target: tf.Tensor) -> tf.Tensor:  # noqa: A002 - its name there
        """One step of the loop; the loss before it."""
        with tf.GradientTape() as tape:
            output = self.model(input)
            loss = tf.reduce_mean(tf.square(output - target))
        gradients = tape.gradient(loss, self.model.trainable_variables)
        # An optimizer of Keras's is told which gradient is whose.
        self.optimizer.apply_gradients(zip(gradients, self.model.trainable_variables, strict=True))
        return loss


learner = Learner()


def train(where: object) -> list[float]:
    model = maas.connect(where)  # the one line that is new

    # The program we began with never defined its target; here it is a function of the input.
    input = tf.reshape(tf.linspace(-1.0, 1.0, 1000), (1, 1000))  # noqa: A001 - its name there
    target = tf.reduce_sum(tf.square(input[:, ::10]), axis=1, keepdims=True)
    return [float(model.step(input, target)) for _ in range(8)]


@contextmanager
def served() -> Iterator[str]:
    """`maas serve` in another process."""
    command = [sys.executable, "-m", "maas", "serve", "seed_tensorflow:learner", "--port", "0"]
    with subprocess.Popen(  # noqa: S603 - of our own
        command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield re.findall(r"http://\S+", process.stdout.readline())[0]
        process.terminate()


if __name__ == "__main__":
    losses = {"the wire": train(maas.Server(Learner()))}
    with served() as url:
        losses["maas serve"] = train(url)
    losses["here"] = train(learner)
    for place, falling in losses.items():
        print(f"{place:>10}", *(f"{loss:.4f}" for loss in falling))
    assert losses["the wire"] == losses["maas serve"] == losses["here"]
