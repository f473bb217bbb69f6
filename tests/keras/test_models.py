"""A Keras model behind `maas.Model` gives what Keras gives, in every place and every kind."""

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import maas
from maas import tensors
from maas.testing.arguments import Arguments
from maas.testing.congruence import assert_congruent
from maas.testing.equality import difference

keras = pytest.importorskip("keras")
layers = keras.layers
ON = keras.backend.backend()

SHAPES = {"x1": (6,), "x2": (5, 4), "x3": (6, 6, 3)}
DENSE = [
    lambda: layers.Dense(3, activation="relu"),
    lambda: layers.Dense(2, use_bias=False),
    layers.BatchNormalization,
    layers.LayerNormalization,
    lambda: layers.Dropout(0.5),
    lambda: layers.Activation("gelu"),
]
SERIES = [
    lambda: layers.LSTM(3),
    lambda: layers.GRU(2),
    lambda: layers.Conv1D(2, 3, padding="same"),
    layers.GlobalAveragePooling1D,
]
IMAGES = [
    lambda: layers.Conv2D(2, 3, activation="relu"),
    lambda: layers.DepthwiseConv2D(2),
    layers.MaxPooling2D,
]


@st.composite
def recipes(draw):
    """What `built` makes a small model of: its input, its layers, a seed of its numbers."""
    rank = draw(st.sampled_from(sorted(SHAPES)))
    front = {"x1": DENSE, "x2": SERIES, "x3": IMAGES}[rank]
    more = draw(st.lists(st.sampled_from(DENSE), max_size=3))
    return rank, draw(st.sampled_from(front)), more, draw(st.integers(0, 99))


def built(rank, front, more, seed):
    """Not while Hypothesis draws: Keras itself draws from Python's generator."""
    keras.utils.set_random_seed(seed)
    chosen = [front(), *([] if rank == "x1" else [layers.Flatten()]), *(make() for make in more)]
    model = keras.Sequential([keras.Input(SHAPES[rank]), *chosen])
    settle(model)
    return model


def settle(model):
    """Numbers that tell layers apart where Keras begins with zeros and ones."""
    for place, variable in enumerate(model.variables):
        if variable.name in ("bias", "beta", "moving_mean"):
            size = int(np.prod(variable.shape))
            variable.assign(np.linspace(-1, 1, size).reshape(variable.shape) + place)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


def kinds(array):
    """The array in each of the kinds that this process has."""
    data = array.tobytes()
    tags = ["$array", "$tensor", *(["$tf"] if ON == "tensorflow" else [])]
    return [
        tensors.restore(tag, str(array.dtype), array.shape, (), memoryview(bytearray(data)))
        for tag in tags
    ]


def in_numpy(value):
    """What Keras gave, in NumPy."""
    if isinstance(value, dict):
        return {key: in_numpy(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(in_numpy, value))
    return np.array(value.detach().numpy() if ON == "torch" else value.numpy())


def mlp(**options):
    keras.utils.set_random_seed(3)
    stack = [layers.Dense(5, activation="relu"), layers.BatchNormalization()]
    stack.append(layers.Dropout(0.5, seed=5))
    model = keras.Sequential([keras.Input((4,)), *stack, layers.Dense(2)], **options)
    settle(model)
    return model


@settings(max_examples=6)
@given(recipes(), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_every_place_gives_what_keras_gives(maas_connect, made, rows, seed):
    """Generated models of dense, convolutional, recurrent, normalising and dropout layers answer
    in every place what Keras answers to the same call, bit for bit.
    """
    model = built(*made)
    x = numbers(rows, *SHAPES[made[0]], seed=seed)
    wanted = in_numpy(model(x, training=False))
    asked = maas_connect(model)
    for given_ in kinds(x):
        found = asked(given_)
        assert type(found) is type(given_)
        assert difference(wanted, np.array(found)) is None
    assert_congruent(maas.Model(model), asked, Arguments((x,)))


@pytest.mark.parametrize("way", ["now", "submit", "await", "map"])
def test_every_way_of_calling(maas_connect, way):
    """Now, later, awaited and mapped calls of a Keras model are one call."""
    model = mlp()
    assert_congruent(maas.Model(model), maas_connect(model), Arguments((numbers(3, 4),)), way=way)


def several(structure):
    """Two inputs and two outputs, nested as the caller wants."""
    keras.utils.set_random_seed(1)
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b", dtype="int32")
    joined = layers.Concatenate()([layers.Dense(2)(a), layers.Flatten()(layers.Embedding(9, 2)(b))])
    outputs = {"y": layers.Dense(2)(joined), "z": joined}
    if structure is dict:
        return keras.Model({"a": a, "b": b}, outputs)
    return keras.Model(structure([a, b]), structure(outputs.values()))


@pytest.mark.parametrize("structure", [dict, list, tuple])
def test_several_inputs_and_outputs(maas_connect, structure):
    """Inputs and outputs keep their nesting and their order."""
    model = several(structure)
    arrays = {"a": numbers(4, 3), "b": np.arange(8, dtype="i4").reshape(4, 2)}
    value = arrays if structure is dict else structure(arrays.values())
    wanted = in_numpy(model(value, training=False))
    assert difference(wanted, maas_connect(model)(value)) is None


def test_the_signature_is_that_of_the_inputs():
    """A model's inputs and outputs are its signature, and the first unknown length is the batch."""
    found = maas.Model(mlp(name="net")).info.methods["__call__"]
    assert found.signature.render("net") == "net(inputs: float32[batch, 4]) -> float32[batch, 2]"
    assert found.pure
    with pytest.raises(maas.SignatureError, match=r"wants float32\[batch, 4\], got float64\[1, 4"):
        maas.Model(mlp())(np.ones((1, 4)))
    series = keras.Sequential([keras.Input((None, 3)), layers.LSTM(2)])
    told = str(maas.Model(series).info.methods["__call__"].signature)
    assert told == "(inputs: float32[batch, ?, 3]) -> float32[batch, 2]"
    told = str(maas.Model(several(dict)).info.methods["__call__"].signature)
    assert told == "(inputs: dict[str, tensor]) -> dict[str, tensor]"


class Scaled(keras.Model):
    """A class of one's own, which knows its weights after the first call."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, x, *, scale: float = 1.0, training=None):
        return self.dense(x) * (scale + (1.0 if training else 0.0))


def test_a_class_of_ones_own(maas_connect):
    """A subclass has the signature of its `call` but `training`, which is the handle's mode."""
    model = Scaled()
    asked = maas_connect(model)
    assert str(asked.info.methods["__call__"].signature) == "(x, *, scale: float = 1.0)"
    x = numbers(2, 4)
    found = asked(x, scale=3.0)
    assert difference(in_numpy(model(x, scale=3.0)), found) is None
    assert difference(in_numpy(model(x, training=True)), asked.train()(x)) is None
    assert not maas_connect(model).training
    with pytest.raises(maas.SignatureError, match="training"):
        asked(x, training=True)


def test_train_mode_is_training(maas_connect):
    """In train mode layers drop out and batch statistics move as under `training=True`, and a
    handle in eval mode sees eval mode.
    """
    model, twin = mlp(), mlp()
    for one, other in zip(model.variables, twin.variables, strict=True):
        other.assign(one)
    asked = maas_connect(model)
    trained, x = asked.with_options().train(), numbers(8, 4)
    for _ in range(2):
        assert difference(in_numpy(twin(x, training=True)), trained(x)) is None
        assert difference(in_numpy(twin(x, training=False)), asked(x)) is None
    for one, other in zip(model.variables, twin.variables, strict=True):
        assert np.array_equal(in_numpy(one.value), in_numpy(other.value))


def test_a_seed_decides_what_layers_draw(maas_connect):
    """Equal seeds drop equal units out, others do not, and the model's own draws go on after it."""
    model = keras.Sequential([keras.Input((64,)), layers.Dropout(0.5), layers.Dropout(0.2)])
    asked, x = maas_connect(model).train(), np.ones((4, 64), "f4")
    first, again, other = (asked.with_options(seed=seed)(x) for seed in (7, 7, 8))
    assert difference(first, again) is None
    assert difference(first, other) is not None
    before = [in_numpy(each.value).tolist() for each in model.variables]
    asked.with_options(seed=7)(x)
    assert [in_numpy(each.value).tolist() for each in model.variables] == before


def test_a_layer_that_remembers_runs_alone():
    """A stateful recurrent layer is not pure: its calls keep their order and are not retried."""
    model = keras.Sequential([keras.Input(batch_shape=(2, 3, 4)), layers.LSTM(2, stateful=True)])
    method = maas.Model(model).info.methods["__call__"]
    assert not method.pure
    assert method.exclusive
    with pytest.raises(maas.Unsupported, match="may be run only once"):
        maas.Model(model).with_options(retries=1)(numbers(2, 3, 4))


def test_calls_share_a_run():
    """With batching on, concurrent calls of a Keras model each get their own rows."""
    model = mlp()
    asked = maas.Model(model, batching=maas.Batching(8))
    xs = [numbers(1, 4, seed=seed) for seed in range(16)]

    async def all_of_them():
        return await asyncio.gather(*(asked.submit(x) for x in xs))

    for x, found in zip(xs, asyncio.run(all_of_them()), strict=True):
        np.testing.assert_allclose(found, in_numpy(model(x, training=False)), rtol=1e-5)
    asked.close()


def test_it_describes_its_layers():
    """`describe` tells the layers that hold weights, and how many numbers these are."""
    told = maas.Model(mlp(name="net")).describe()
    assert told["kind"] == "keras"
    assert told["details"]["parameters"] == 4 * 5 + 5 + 4 * 5 + 5 * 2 + 2
    first = told["details"]["layers"][0]
    assert first["parameters"] == {"kernel": ["float32", [4, 5]], "bias": ["float32", [5]]}
    assert told["versions"]["keras"] == keras.__version__


def test_keras_refuses_in_its_own_words(maas_connect):
    """An error inside Keras is the same class with the same words in every place."""
    keras.utils.set_random_seed(0)
    model = Scaled()
    model(numbers(1, 4))
    asked = maas_connect(model)
    with pytest.raises(ValueError, match="incompatible with the layer") as there:
        asked(numbers(1, 7))
    with pytest.raises(ValueError, match="incompatible with the layer") as here:
        model(numbers(1, 7))
    assert type(there.value) is type(here.value)


@pytest.mark.skipif(ON != "torch", reason="gradients of a Keras model are torch's")
def test_gradients_on_torch(maas_connect):
    """On torch, a Keras model is differentiable in every place, as any torch module."""
    torch = pytest.importorskip("torch")
    model, x = mlp(), numbers(3, 4)
    grads = []
    for call in (lambda x: model(x, training=False), maas_connect(model)):
        leaf = torch.from_numpy(x).requires_grad_()
        call(leaf).square().sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)


@pytest.mark.skipif(ON == "torch", reason="on torch, a model is moved as any torch module")
def test_a_device_is_torchs():
    """A device is refused where Keras does not run on torch."""
    with pytest.raises(TypeError, match=r"tf\.device"):
        maas.Model(mlp(), device="cpu")
