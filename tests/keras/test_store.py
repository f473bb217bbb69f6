"""Keras models in folders: whole where a closed table has their layers, and never any code."""

import json
import subprocess
import sys

import numpy as np
import pytest

import maas
from maas.testing.equality import difference

keras = pytest.importorskip("keras")
architecture = pytest.importorskip("maas.backends.keras_architecture")
table = pytest.importorskip("maas.backends.keras_layers")
layers = keras.layers
ON = keras.backend.backend()


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


SHAPES = {1: (6,), 2: (6, 4), 3: (6, 6, 4), 4: (6, 6, 6, 4)}
ONE = {
    "Dense": (1, lambda kind: kind(3, activation="relu", kernel_regularizer="l2")),
    "EinsumDense": (1, lambda kind: kind("ab,bc->ac", output_shape=3)),
    "Masking": (2, lambda kind: kind(0.5)),
    "Activation": (1, lambda kind: kind("gelu")),
    "ReLU": (1, lambda kind: kind(6.0)),
    "GroupNormalization": (3, lambda kind: kind(2)),
    "BatchNormalization": (3, lambda kind: kind(momentum=0.5)),
    "ActivityRegularization": (1, lambda kind: kind(0.1, 0.2)),
    "Reshape": (1, lambda kind: kind((3, 2))),
    "Permute": (2, lambda kind: kind((2, 1))),
    "RepeatVector": (1, lambda kind: kind(3)),
    "Rescaling": (1, lambda kind: kind(2.0, 1.0)),
    "SimpleRNN": (2, lambda kind: kind(3, kernel_constraint="max_norm")),
    "LSTM": (2, lambda kind: kind(3, return_sequences=True)),
    "GRU": (2, lambda kind: kind(3, recurrent_dropout=0.1)),
    "Bidirectional": (2, lambda kind: kind(layers.LSTM(3))),
    "TimeDistributed": (2, lambda kind: kind(layers.Dense(2))),
    **{
        name: (1, lambda kind: kind())
        for name in ("Identity", "LeakyReLU", "PReLU", "ELU", "Softmax", "UnitNormalization")
    },
    **{name: (2, lambda kind: kind()) for name in ("LayerNormalization", "RMSNormalization")},
    **{
        name: (1, lambda kind: kind(0.2))
        for name in ("Dropout", "GaussianDropout", "GaussianNoise", "AlphaDropout")
    },
    **{f"SpatialDropout{rank}D": (rank + 1, lambda kind: kind(0.2)) for rank in (1, 2, 3)},
    **{
        f"{name}{rank}D{end}": (rank + 1, lambda kind: kind(2, 3))
        for name, ranks, end in (
            ("Conv", (1, 2, 3), ""),
            ("Conv", (1, 2, 3), "Transpose"),
            ("SeparableConv", (1, 2), ""),
        )
        for rank in ranks
    },
    **{f"DepthwiseConv{rank}D": (rank + 1, lambda kind: kind(2)) for rank in (1, 2)},
    **{
        f"{name}{rank}D": (rank + 1, lambda kind: kind(2))
        for name in ("MaxPooling", "AveragePooling", "UpSampling")
        for rank in (1, 2, 3)
    },
    **{
        f"{name}{rank}D": (rank + 1, lambda kind: kind(1))
        for name in ("Cropping", "ZeroPadding")
        for rank in (1, 2, 3)
    },
    **{
        f"Global{name}Pooling{rank}D": (rank + 1, lambda kind: kind())
        for name in ("Max", "Average")
        for rank in (1, 2, 3)
    },
    "Flatten": (3, lambda kind: kind()),
}
TWO = ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate")
BETWEEN = {
    **{name: lambda kind: kind() for name in TWO},
    "Dot": lambda kind: kind(1),
    "Attention": lambda kind: kind(use_scale=True),
    "AdditiveAttention": lambda kind: kind(),
    "MultiHeadAttention": lambda kind: kind(2, 3, dropout=0.1),
    "GroupQueryAttention": lambda kind: kind(4, 2, 1),
}


def of_one(name):
    rank, make = ONE[name]
    return keras.Sequential([keras.Input(SHAPES[rank]), make(getattr(layers, name))])


def of_two(name):
    one, other = keras.Input((6, 4)), keras.Input((6, 4))
    layer = BETWEEN[name](getattr(layers, name))
    apart = "Attention" in name and name.startswith(("Multi", "Group"))
    return keras.Model([one, other], layer(one, other) if apart else layer([one, other]))


def test_every_type_is_a_case():
    """Each layer of the table is described below, but for inputs and embeddings, which are
    elsewhere.
    """
    named = {name for name in table.TYPES if "." not in name}
    assert named - ONE.keys() - BETWEEN.keys() == {"InputLayer", "Embedding"}


@pytest.mark.parametrize("name", [*ONE, *BETWEEN])
def test_every_layer_is_described_and_built_again(name):
    """A layer of the table is data from which a model of equal variables is built."""
    model = of_one(name) if name in ONE else of_two(name)
    node, reason = architecture.described(model)
    assert reason == ""
    node = json.loads(json.dumps(node, allow_nan=False))
    built = architecture.build(node)
    assert architecture.variables_of(built) == architecture.variables_of(model)
    assert built.get_config() == model.get_config()


def several():
    """Shared and nested layers, several inputs and outputs, calls with options."""
    keras.utils.set_random_seed(0)
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b", dtype="int32")
    joined = layers.Concatenate()([a, layers.Flatten()(layers.Embedding(9, 1)(b))])
    shared = layers.Dense(5, activation=layers.LeakyReLU(0.2))
    inner_in = keras.Input((5,))
    inner = keras.Model(inner_in, layers.Dense(5)(inner_in))
    stack = keras.Sequential([keras.Input((5,)), layers.Dense(5), layers.Dropout(0.5)])
    row = layers.Reshape((5, 1))
    seen = layers.MultiHeadAttention(1, 2)(
        row(shared(joined)), row(shared(inner(inner(joined)))), use_causal_mask=True
    )
    return keras.Model({"a": a, "b": b}, {"y": stack(joined), "z": seen, "inner": inner(joined)})


MODELS = {
    "several": (several, {"a": numbers(4, 3), "b": np.arange(8, dtype="i4").reshape(4, 2)}),
    "rounded": (
        lambda: keras.Sequential(
            [keras.Input((3,)), layers.Dense(2, dtype="bfloat16"), layers.Dense(2)]
        ),
        numbers(2, 3),
    ),
    "recurrent": (
        lambda: keras.Sequential(
            [
                keras.Input((5,), dtype="int32"),
                layers.Embedding(9, 4, mask_zero=True),
                layers.Bidirectional(layers.LSTM(3)),
                layers.Dense(1),
            ]
        ),
        np.arange(10, dtype="i4").reshape(2, 5) % 9,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_is_saved_is_loaded(tmp_path, name):
    """A model of standard layers is loaded whole: the same answers, variables and flags, bit for
    bit.
    """
    make, x = MODELS[name]
    model = make()
    model.layers[-1].trainable = False
    maas.save(maas.Model(model, name="net").train(), tmp_path / "net")
    loaded = maas.load(tmp_path / "net")
    assert (loaded.name, loaded.training) == ("net", True)
    assert difference(maas.Model(model)(x), loaded.eval()(x)) is None
    target = loaded.executor.backend.target
    assert architecture.variables_of(target) == architecture.variables_of(model)
    maas.save(loaded, tmp_path / "again")
    first, second = (
        json.loads((tmp_path / folder / "model.json").read_text()) for folder in ("net", "again")
    )
    assert first["architecture"] == second["architecture"]


def custom(kind):
    return kind("Mine", (layers.Dense,), {})


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: [layers.Lambda(lambda x: x)], "Lambda"),
        (lambda: [layers.Dense(2, activation=lambda x: x)], "activation of a Dense"),
        (lambda: [custom(type)(2)], "Mine"),
        (lambda: [layers.Normalization()], "Normalization"),
    ],
    ids=["Lambda", "function", "class", "adapted"],
)
def test_code_is_not_stored(tmp_path, make, reason):
    """What needs code is stored as weights alone, and loading it names both routes."""
    model, twin = (
        keras.Sequential([keras.Input((3,)), *made, layers.Dense(2)]) for made in (make(), make())
    )
    maas.save(model, tmp_path / "net")
    told = json.loads((tmp_path / "net" / "model.json").read_text())
    assert told["architecture"] is None
    assert reason in told["reason"]
    with pytest.raises(maas.Unsupported, match=r"into=Sequential.*Keras's standard layers") as no:
        maas.load(tmp_path / "net")
    assert reason in str(no.value)
    x = numbers(2, 3)
    loaded = maas.load(tmp_path / "net", into=twin)
    assert difference(maas.Model(model)(x), loaded(x)) is None


def test_a_call_that_was_replaced_is_seen():
    """A layer with a `call` of its own set later is not taken for what its class makes."""
    model = keras.Sequential([keras.Input((3,)), layers.Dense(3)])
    model.layers[0].call = lambda x: x
    node, reason = architecture.described(model)
    assert node is None
    assert "has call of its own" in reason


def test_operators_are_no_layers():
    """A sum written with + is no layer, and the reason says which operation it was."""
    x = keras.Input((3,))
    node, reason = architecture.described(keras.Model(x, x + layers.Dense(3)(x)))
    assert node is None
    assert "Add" in reason


@pytest.mark.parametrize("units", [3, 2])
def test_weights_go_into_a_model_of_that_shape_alone(tmp_path, units):
    """`into=` takes an instance with exactly those variables, and changes nothing else."""

    class Net(keras.Model):
        def __init__(self, units):
            super().__init__()
            self.dense = layers.Dense(units)

        def call(self, x):
            return self.dense(x)

    net, other, x = Net(3), Net(units), numbers(2, 4)
    net(x)
    maas.save(net, tmp_path / "net")
    with pytest.raises(maas.CodecError, match="has no weights yet"):
        maas.load(tmp_path / "net", into=Net(3))
    other(x)
    before = maas.Model(other)(x)
    if units == 3:
        assert difference(maas.load(tmp_path / "net", into=other)(x), maas.Model(net)(x)) is None
    else:
        with pytest.raises(maas.CodecError, match=r"kernel is float32\[4, 3\]"):
            maas.load(tmp_path / "net", into=other)
        assert difference(before, maas.Model(other)(x)) is None
    with pytest.raises(TypeError, match="into= wants an instance"):
        maas.load(tmp_path / "net", into=object())


# From strangers.


def dense(**arguments):
    return {"type": "Dense", "arguments": {"units": 2, **arguments}}


def sequential(*nodes, **fields):
    first = {"type": "InputLayer", "arguments": {"batch_shape": [None, 3]}}
    own = {"name": "net", "trainable": True}
    return {"type": "Sequential", "arguments": own, "layers": [first, *nodes], **fields}


IMPORT = {"module": "os", "class_name": "system", "config": {"command": "true"}}
HOSTILE = {
    "Keras's own form": sequential({**IMPORT, "registered_name": None}),
    "a module": sequential(dense(activation=IMPORT)),
    "a Lambda": sequential({"type": "Lambda", "arguments": {"function": "x"}}),
    "a file": sequential({"type": "TFSMLayer", "arguments": {"filepath": "/etc"}}),
    "a dotted name": sequential({"type": "keras.layers.Dense", "arguments": {"units": 2}}),
    "an initializer for a layer": sequential({"type": "initializers.Zeros", "arguments": {}}),
    "an unknown argument": sequential(dense(weights=[[1.0]])),
    "an unknown activation": sequential(dense(activation="os.system")),
    "a policy": sequential(dense(dtype="int8_from_float32")),
    "a policy that is data": sequential(dense(dtype=["float32"])),
    "a negative size": sequential(dense(units=-1)),
    "a text for a size": sequential(dense(units="2")),
    "an int beyond 64 bits": sequential(dense(units=2**70)),
    "a long name": sequential(dense(name="n" * 300)),
    "a field too many": sequential(dense(), calls=[]),
    "no layers": sequential() | {"layers": {}},
    "two inputs": sequential(sequential(), sequential()) | {"layers": [{}] * 3},
    "a number": 3,
    "no tensor": {
        "type": "Functional",
        "arguments": {"name": "net", "trainable": True},
        "layers": [dense(name="d")],
        "calls": [{"layer": "d", "args": [{"from": ["x", 0, 0]}], "kwargs": {}}],
        "inputs": [],
        "outputs": [],
    },
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_strangers_description_builds_nothing_else(name):
    """Whatever stands in a description, it is a model of the table's layers or a `CodecError`."""
    with pytest.raises(maas.CodecError):
        architecture.skeleton(HOSTILE[name])


def nested(depth):
    """A model in a model in a model, each called twice: two to the power of `depth` calls."""
    node = sequential(dense(units=3, name="d"))
    for level in range(depth):
        inner = node | {"arguments": {"name": f"n{level}", "trainable": True}}
        once = {"layer": f"n{level}", "kwargs": {}}
        node = {
            "type": "Functional",
            "arguments": {"name": "outer", "trainable": True},
            "layers": [
                {"type": "InputLayer", "arguments": {"batch_shape": [None, 3], "name": "x"}},
                inner,
            ],
            "calls": [
                {**once, "args": [{"from": ["x", 0, 0]}]},
                {**once, "args": [{"from": [f"n{level}", 0, 0]}]},
            ],
            "inputs": {"from": ["x", 0, 0]},
            "outputs": {"from": [f"n{level}", 1, 0]},
        }
    return node


def test_models_inside_models_are_counted():
    """A thousand bytes of description do not make a billion calls."""
    assert len(architecture.skeleton(nested(2)).variables) == 2
    with pytest.raises(maas.LimitExceeded, match="more than 10000 calls"):
        architecture.skeleton(nested(14))
    with pytest.raises(maas.CodecError, match="no description"):
        architecture.skeleton(nested(40))


def rewritten(folder, change):
    path = folder / "model.json"
    told = json.loads(path.read_text())
    change(told)
    path.write_text(json.dumps(told))


def test_a_matrix_of_a_billion_rows_costs_nothing(tmp_path):
    """A description of more than the tensor file holds is refused before memory is spent."""
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    maas.save(model, tmp_path / "net")

    def grow(told):
        told["architecture"]["layers"][1]["arguments"]["units"] = 10**12

    rewritten(tmp_path / "net", grow)
    with pytest.raises(maas.CodecError, match=r"float32\[3, 2\] in the tensor file"):
        maas.load(tmp_path / "net")
    assert len(maas.Model(model)(numbers(1, 3))) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("tied", {"a": "b"}), ("left_out", ["a"]), ("channels_last", ["0/sequential/dense/kernel"])],
)
def test_what_only_torch_has_is_refused(tmp_path, field, value):
    """A manifest that says of Keras's variables what it cannot know is none."""
    maas.save(keras.Sequential([keras.Input((3,)), layers.Dense(2)]), tmp_path / "net")
    rewritten(tmp_path / "net", lambda told: told["weights"].update({field: value}))
    with pytest.raises(maas.CodecError, match="only a torch module has"):
        maas.load(tmp_path / "net")


CHILD = """
import sys, numpy as np, maas
model = maas.load(sys.argv[1])
import keras
x = np.frombuffer(bytes.fromhex(sys.argv[2]), "f4").reshape(2, 3)
print(keras.backend.backend(), model(x).tobytes().hex())
"""


@pytest.mark.long
def test_a_folder_is_opened_by_a_process_that_has_not_loaded_keras(tmp_path):
    """Loading a folder is enough: it brings Keras, on what the environment says."""
    model, x = keras.Sequential([keras.Input((3,)), layers.Dense(2)]), numbers(2, 3)
    maas.save(model, tmp_path / "net")
    command = [sys.executable, "-c", CHILD, str(tmp_path / "net"), x.tobytes().hex()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    assert done.stdout.split() == [ON, maas.Model(model)(x).tobytes().hex()]
