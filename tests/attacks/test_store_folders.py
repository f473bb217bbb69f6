"""Model folders from an enemy: each is refused by a typed error, and none runs code.

The folders are consistent where that helps the enemy: whoever writes the tensors
writes their hash as well.
"""

import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import pytest
import safetensors.torch
import torch
from torch import nn

import maas
from maas.backends.torch_architecture import MAX_MODULES
from maas.store.manifest import MAX_BYTES, MAX_DEPTH, Manifest

CODEC, LIMIT = maas.CodecError, maas.LimitExceeded


def _model(folder):
    """A good folder; everything below makes it a bad one."""
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2), nn.PReLU())
    maas.save(net, folder)


# Ways to write.


def _manifest(folder):
    return json.loads((folder / "model.json").read_text())


def _write(folder, data):
    (folder / "model.json").write_text(data if type(data) is str else json.dumps(data))


def _seal(folder):
    """Lets model.json vouch for whatever the tensor file is now."""
    raw = (folder / "weights.safetensors").read_bytes()
    data = _manifest(folder)
    data["weights"] |= {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    _write(folder, data)


def _raw(folder, raw):
    (folder / "weights.safetensors").write_bytes(raw)
    _seal(folder)


def _tensors(folder, change):
    path = folder / "weights.safetensors"
    tensors = {name: each.clone() for name, each in safetensors.torch.load_file(path).items()}
    change(tensors)
    safetensors.torch.save_file(tensors, path)
    _seal(folder)


def _header(folder, change):
    """Rewrites the JSON header of the tensor file and leaves the data."""
    raw = (folder / "weights.safetensors").read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    _raw(folder, struct.pack("<Q", len(text)) + text + raw[8 + length :])


def _set(path, value):
    """An attack: the field of model.json at this path has another value."""

    def attack(folder):
        data = _manifest(folder)
        *above, last = path.split("/")
        place = data
        for step in above:
            place = place[step]
        place[last] = value
        _write(folder, data)

    return attack


def _architecture(node):
    return _set("architecture", node)


def _layer(kind, **arguments):
    return _architecture({"type": kind, "arguments": arguments})


def _text(change):
    def attack(folder):
        _write(folder, change((folder / "model.json").read_text()))

    return attack


# Attacks on a file as a whole.


class Payload:
    def __reduce__(self):
        return os.system, ("touch /tmp/maas-canary",)


def _pickle(folder):
    buffer = io.BytesIO()
    torch.save({"0.weight": torch.zeros(8, 4), "evil": Payload()}, buffer)
    _raw(folder, buffer.getvalue())


def _appended_zip(folder):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload()))
    _raw(folder, (folder / "weights.safetensors").read_bytes() + buffer.getvalue())


def _zip_in_a_gap(folder):
    """Data that no tensor covers, where another reader would find an archive."""

    def shift(header):
        for name, entry in header.items():
            if name != "__metadata__":
                entry["data_offsets"] = [each + 64 for each in entry["data_offsets"]]

    raw = (folder / "weights.safetensors").read_bytes()
    _header(folder, shift)
    _raw(folder, (folder / "weights.safetensors").read_bytes() + raw[-64:])


def _overlap(folder):
    def fold(header):
        header["0.bias"]["data_offsets"] = header["1.bias"]["data_offsets"]

    _header(folder, fold)


def _entry(name, field, value):
    return lambda folder: _header(folder, lambda header: header[name].update({field: value}))


def _long_header(folder):
    text = b" " * (9 * 2**20)
    _raw(folder, struct.pack("<Q", len(text)) + b"{}" + text[2:])


def _link(name):
    def attack(folder):
        target = folder.with_name(f"{folder.name}-elsewhere")
        target.mkdir()
        (folder / name).rename(target / name)
        (folder / name).symlink_to(target / name)

    return attack


def _instead(name, make):
    def attack(folder):
        (folder / name).unlink()
        make(folder / name)

    return attack


def _twice(folder):
    text = (folder / "model.json").read_text()
    _write(folder, text.replace('"version": 1', '"version": 1, "version": 1', 1))


def _nobody_vouches(folder):
    raw = bytearray((folder / "weights.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(raw)


def _bool_bytes(folder):
    def change(tensors):
        tensors["0.weight"] = torch.zeros(8, 4, dtype=torch.bool)

    _tensors(folder, change)
    _set("weights/frozen", ["0.weight"])(folder)
    raw = (folder / "weights.safetensors").read_bytes()
    start = 8 + struct.unpack("<Q", raw[:8])[0]
    _raw(folder, raw[:start] + b"\x02" * (len(raw) - start))


def _laughs():
    """Ten layers, each ten times the one before: ten billion modules in a thousand bytes."""
    node = {"type": "ReLU", "arguments": {"inplace": False}}
    for level in range(10):
        path = ".".join(["0"] * (10 - level))
        node = {
            "type": "Sequential",
            "layers": {"0": node} | {str(i): {"same": path} for i in range(1, 10)},
        }
    return node


def _nested(levels):
    node = {"type": "ReLU", "arguments": {"inplace": False}}
    for _ in range(levels):
        node = {"type": "Sequential", "layers": {"0": node}}
    return node


def _convolution(**changes):
    arguments: dict = dict.fromkeys(("in_channels", "out_channels", "kernel_size", "groups"), 4)
    arguments |= {"stride": 1, "padding": 0, "dilation": 1, "bias": True, "padding_mode": "zeros"}
    return _layer("Conv2d", **arguments | changes)


def _linear(name, to):
    arguments = {"in_features": 4, "out_features": 8, "bias": True}
    return _set("architecture/layers/0/arguments", arguments | {name: to})


BIG = 10**12
LSTM = {
    "input_size": 4,
    "hidden_size": 2,
    "num_layers": 1,
    "bias": True,
    "batch_first": False,
    "dropout": 0.0,
    "bidirectional": False,
    "proj_size": 0,
}
RNN = {name: value for name, value in LSTM.items() if name != "proj_size"}
ENCODER_LAYER = {
    "type": "TransformerEncoderLayer",
    "arguments": {
        "d_model": 4,
        "nhead": 2,
        "dim_feedforward": 4,
        "dropout": 0.0,
        "activation": "relu",
        "layer_norm_eps": 1e-5,
        "batch_first": True,
        "norm_first": False,
        "bias": True,
    },
}


def _encoder(layers, count, **changes):
    arguments = {"num_layers": count, "enable_nested_tensor": True, "mask_check": True}
    return _architecture(
        {"type": "TransformerEncoder", "arguments": arguments | changes, "layers": layers}
    )


ATTACKS = {
    # The manifest's text.
    "manifest-empty": (_text(lambda _: ""), CODEC, "not JSON"),
    "manifest-garbage": (_text(lambda _: "\x00\x01"), CODEC, "not JSON"),
    "manifest-cut": (_text(lambda text: text[:-20]), CODEC, "not JSON"),
    "manifest-list": (_text(lambda _: "[]"), CODEC, "no manifest of maas"),
    "manifest-long": (_text(lambda text: text + " " * MAX_BYTES), LIMIT, "longer than"),
    "manifest-deep": (_text(lambda _: "[" * MAX_BYTES), LIMIT, "deeper than"),
    "manifest-deep-nodes": (_architecture(_nested(MAX_DEPTH)), LIMIT, "deeper than"),
    "manifest-quotes": (_text(lambda _: '"' + '\\"' * 500_000), CODEC, "not JSON"),
    "manifest-escape": (_text(lambda _: '"' + '\\"' * 500_000 + "\\"), CODEC, "not JSON"),
    "manifest-twice": (_twice, CODEC, "a field twice"),
    "manifest-nan": (_text(lambda text: text.replace("0.25", "NaN")), CODEC, "NaN, which is not"),
    "manifest-digits": (
        _text(lambda text: text.replace('"version": 1', '"version": 1' + "0" * 5000)),
        CODEC,
        "not JSON",
    ),
    "manifest-bytes": (
        lambda folder: (folder / "model.json").write_bytes(b'{"format": "\xff"}'),
        CODEC,
        "not JSON",
    ),
    "manifest-hex": (_set("versions", {"$bytes": "xyz"}), CODEC, "not JSON"),
    # Its fields.
    "format": (_set("format", "other"), CODEC, "no manifest of maas"),
    "version": (_set("version", 2), CODEC, "version 2 and this maas reads 1"),
    "version-true": (_set("version", True), CODEC, "version"),
    "field-more": (_set("entry_point", "os:system"), CODEC, "'entry_point'"),
    "kind": (_set("kind", "pickle"), CODEC, "'pickle'"),
    "name-path": (_set("name", "../../etc/passwd"), CODEC, "passwd"),
    "name-number": (_set("name", 3), CODEC, "name"),
    "reason-escapes": (_set("reason", "\x1b[2J"), CODEC, "printable"),
    "module-long": (_set("module", "a" * 501), CODEC, "printable"),
    "signature": (_set("signature", {"parameters": [3], "returns": "any"}), CODEC, "signature"),
    "signature-kind": (_set("signature/returns", "code"), CODEC, "signature"),
    "mode": (_set("mode", {"training": 1, "otherwise": [], "handle": None}), CODEC, "training"),
    "mode-unknown": (_set("mode/otherwise", ["0", "7.7"]), CODEC, "'7.7'"),
    "mode-numbers": (_set("mode/otherwise", [0]), CODEC, "no string"),
    "frozen-unknown": (_set("weights/frozen", ["../0.weight"]), CODEC, "'../0.weight'"),
    "frozen-lists": (_set("weights/frozen", [[]]), CODEC, "no string"),
    "weights-path": (_set("weights/file", "/etc/passwd"), CODEC, "'file'"),
    "size-true": (_set("weights/bytes", True), CODEC, "bytes"),
    "size": (_set("weights/bytes", 3), CODEC, "sha256 differs"),
    "sha": (_nobody_vouches, CODEC, "sha256 differs"),
    # What it says of tensors.
    "tied-to-nothing": (_set("weights/tied", {"9.weight": "9.bias"}), CODEC, "'9.bias'"),
    "tied-to-stored": (_set("weights/tied", {"0.bias": "1.bias"}), CODEC, "'0.bias'"),
    "tied-to-itself": (_set("weights/tied", {"x": "x"}), CODEC, "'x'"),
    "tied-number": (_set("weights/tied", {"x": 1}), CODEC, "no string"),
    "tied-kinds": (
        lambda folder: [
            _tensors(folder, lambda tensors: tensors.pop("1.running_mean")),
            _set("weights/tied", {"1.running_mean": "1.weight"})(folder),
        ],
        CODEC,
        "'1.running_mean'",
    ),
    "packed-unknown": (_set("weights/packed", {"x": ["complex128", [1]]}), CODEC, "'x'"),
    "packed-lie": (_set("weights/packed", {"0.bias": ["complex128", [8]]}), CODEC, "packed as"),
    "packed-dtype": (_set("weights/packed", {"0.bias": ["__class__", [8]]}), CODEC, "packed as"),
    "packed-wrap": (
        lambda folder: [
            _tensors(folder, lambda t: t.update({"0.bias": torch.empty(0, dtype=torch.uint8)})),
            _set("weights/packed", {"0.bias": ["complex128", [2**32, 2**32]]})(folder),
        ],
        CODEC,
        "packed as",
    ),
    "packed-negative": (_set("weights/packed", {"0.bias": ["int8", [-1, -8]]}), CODEC, "packed"),
    "packed-null": (_set("weights/packed", {"0.bias": None}), CODEC, "packed as"),
    "format-flat": (_set("weights/channels_last", ["0.weight"]), CODEC, "only images"),
    "format-unknown": (_set("weights/channels_last", ["x"]), CODEC, "'x'"),
    # Layers.
    "layer-unknown": (_layer("Module"), CODEC, "'Module'"),
    "layer-dotted": (_layer("os.system", command="id"), CODEC, "'os.system'"),
    "layer-dunder": (_layer("__builtins__"), CODEC, "'__builtins__'"),
    "layer-list": (_architecture({"type": ["Linear"]}), CODEC, "'Linear'"),
    "layer-number": (_set("architecture/layers/0", 7), CODEC, "layer '0' wants to be an object"),
    "layer-fields": (_architecture({"type": "ReLU", "call": "x"}), CODEC, "'call'"),
    "layer-untyped": (_architecture({"arguments": {}}), CODEC, "wanted type"),
    "layer-arguments-list": (_architecture({"type": "ReLU", "arguments": []}), CODEC, "objects"),
    "layer-dotted-name": (_set("architecture/layers/a.b", {"type": "Tanh"}), CODEC, "not make"),
    "layer-forward": (_set("architecture/layers/forward", {"type": "Tanh"}), CODEC, "not make"),
    "layer-no-name": (_set("architecture/layers/", {"type": "Tanh"}), CODEC, "not make"),
    "layer-more": (_set("architecture/layers/4", {"type": "Tanh", "x": 1}), CODEC, "'x'"),
    "layer-inside": (
        _architecture({"type": "Tanh", "layers": {"norm": {"type": "Tanh"}}}),
        CODEC,
        "takes no such layer",
    ),
    "same-nothing": (_set("architecture/layers/3", {"same": "9"}), CODEC, "not stand before"),
    "same-above": (_set("architecture/layers/3", {"same": ""}), CODEC, "not stand before"),
    "same-list": (_set("architecture/layers/3", {"same": ["0"]}), CODEC, "not stand before"),
    "laughs": (_architecture(_laughs()), LIMIT, f"more than {MAX_MODULES} modules"),
    # Arguments.
    "huge": (
        _layer("Linear", in_features=BIG, out_features=BIG, bias=True),
        CODEC,
        "does not make",
    ),
    "big": (_linear("in_features", to=2**40), CODEC, r"\[8, 4\] in the tensor file"),
    "bigger": (_linear("in_features", to=2**70), CODEC, "cannot have in_features"),
    "negative": (_linear("in_features", to=-4), CODEC, "does not make"),
    "boolean": (_linear("out_features", to=True), CODEC, "cannot have out_features"),
    "text": (_linear("in_features", to="__import__('os')"), CODEC, "cannot have in_features"),
    "object": (_linear("in_features", to={"type": "ReLU"}), CODEC, "cannot have in_features"),
    "device": (_linear("device", to="cuda"), CODEC, "'device'"),
    "missing": (_layer("Linear", in_features=4), CODEC, "wanted"),
    "nested-sizes": (
        _layer("LayerNorm", normalized_shape=[[4]], eps=1e-5, elementwise_affine=True, bias=True),
        CODEC,
        "cannot have normalized_shape",
    ),
    "many-sizes": (
        _layer(
            "LayerNorm", normalized_shape=[1] * 99, eps=1e-5, elementwise_affine=True, bias=True
        ),
        CODEC,
        "cannot have normalized_shape",
    ),
    "words": (_layer("RNN", **RNN | {"nonlinearity": "eval"}), CODEC, "does not make"),
    "groups": (_convolution(groups=0), CODEC, "does not make"),
    "packed-plain": (_set("weights/packed", {"0.bias": ["int8", [32]]}), CODEC, "packed as"),
    "recurrent-layers": (_layer("LSTM", **LSTM | {"num_layers": BIG}), CODEC, "not enough tensors"),
    "recurrent-sum": (
        _architecture(
            {
                "type": "Sequential",
                "layers": {
                    str(i): {"type": "LSTM", "arguments": LSTM | {"num_layers": 9}}
                    for i in range(5)
                },
            }
        ),
        CODEC,
        "not enough tensors",
    ),
    "recurrent-negative": (
        _architecture(
            {
                "type": "Sequential",
                "layers": {
                    "0": {"type": "LSTM", "arguments": LSTM | {"num_layers": -BIG}},
                    "1": {"type": "LSTM", "arguments": LSTM | {"num_layers": BIG}},
                },
            }
        ),
        CODEC,
        "not enough tensors",
    ),
    "encoder-layers": (_encoder({"encoder_layer": ENCODER_LAYER}, BIG), CODEC, "not enough"),
    "encoder-negative": (_encoder({"encoder_layer": ENCODER_LAYER}, -BIG), CODEC, "not enough"),
    "encoder-of-nothing": (_encoder({}, 1), CODEC, "does not make"),
    "encoder-of-many": (_encoder({"encoder_layer": _laughs()}, 1), CODEC, "takes no such layer"),
    "encoder-path": (
        _encoder({"encoder_layer": {"same": "0"}}, 1),
        CODEC,
        "takes no such layer",
    ),
    # The tensors.
    "tensor-missing": (
        lambda folder: _tensors(folder, lambda tensors: tensors.pop("2.bias")),
        CODEC,
        "missing: '2.bias'",
    ),
    "tensor-more": (
        lambda folder: _tensors(folder, lambda t: t.update({"../x": torch.zeros(1)})),
        CODEC,
        r"not wanted: '\.\./x'",
    ),
    "tensor-shape": (
        lambda folder: _tensors(folder, lambda t: t.update({"2.bias": torch.zeros(3)})),
        CODEC,
        r"2.bias is \[3\] in the tensor file and \[2\] in the layers",
    ),
    "tensor-integers": (
        lambda folder: _tensors(
            folder, lambda t: t.update({"2.bias": torch.zeros(2, dtype=torch.int64)})
        ),
        CODEC,
        "cannot require a gradient",
    ),
    "tensor-bool": (_bool_bytes, CODEC, "bytes other than 0 and 1"),
    "header-shape": (_entry("0.weight", "shape", [8, 400]), CODEC, "safetensors format"),
    "header-wrap": (_entry("0.weight", "shape", [2**32, 2**32]), CODEC, "safetensors format"),
    "header-negative": (_entry("0.weight", "shape", [-8, -4]), CODEC, "safetensors format"),
    "header-dtype": (_entry("0.weight", "dtype", "OBJECT"), CODEC, "safetensors format"),
    "header-offsets": (_entry("0.weight", "data_offsets", [0, BIG]), CODEC, "safetensors format"),
    "header-backwards": (_entry("0.weight", "data_offsets", [8, 0]), CODEC, "safetensors format"),
    "header-overlap": (_overlap, CODEC, "safetensors format"),
    "header-long": (_long_header, LIMIT, "header takes"),
    "header-lie": (lambda folder: _raw(folder, struct.pack("<Q", 2**63)), LIMIT, "header takes"),
    "file-empty": (lambda folder: _raw(folder, b""), CODEC, "safetensors format"),
    "file-short": (lambda folder: _raw(folder, b"\x02\x00"), CODEC, "safetensors format"),
    "pickle": (_pickle, CODEC, "safetensors format|header takes"),
    "pickle-protocol": (
        lambda folder: _raw(folder, pickle.dumps(Payload())),
        CODEC,
        "safetensors format|header takes",
    ),
    "zip-appended": (_appended_zip, CODEC, "safetensors format"),
    "zip-in-a-gap": (_zip_in_a_gap, CODEC, "safetensors format"),
    # The folder.
    "link-manifest": (_link("model.json"), CODEC, "links are not followed"),
    "link-weights": (_link("weights.safetensors"), CODEC, "links are not followed"),
    "link-device": (
        _instead("weights.safetensors", lambda path: path.symlink_to("/dev/zero")),
        CODEC,
        "links are not followed",
    ),
    "link-nowhere": (
        _instead("model.json", lambda path: path.symlink_to("nowhere")),
        CODEC,
        "links are not followed",
    ),
    "pipe-manifest": (_instead("model.json", os.mkfifo), CODEC, "not a plain file"),
    "pipe-weights": (_instead("weights.safetensors", os.mkfifo), CODEC, "not a plain file"),
    "folder-manifest": (
        _instead("model.json", lambda path: path.mkdir()),
        CODEC,
        "not a plain file",
    ),
    "gone-manifest": (_instead("model.json", lambda path: None), FileNotFoundError, "missing"),
    "gone-weights": (
        _instead("weights.safetensors", lambda path: None),
        FileNotFoundError,
        "missing",
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_each_is_refused_by_a_typed_error(name, tmp_path):
    """A hostile folder raises CodecError, LimitExceeded or FileNotFoundError that says why."""
    attack, error, words = ATTACKS[name]
    _model(tmp_path / "net")
    attack(tmp_path / "net")
    with pytest.raises(error, match=words):
        maas.load(tmp_path / "net")


def test_a_file_is_no_folder(tmp_path):
    """A path to a file, such as a checkpoint, is refused."""
    torch.save({}, tmp_path / "net.pt")
    with pytest.raises(CODEC, match="is no folder"):
        maas.load(tmp_path / "net.pt")


def test_a_hostile_folder_leaves_the_callers_module_alone(tmp_path):
    """Into a module of the right class nothing is copied unless all of the folder holds."""
    _model(tmp_path / "net")
    mine = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2), nn.PReLU())
    before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    _set("mode/otherwise", ["7"])(tmp_path / "net")
    with pytest.raises(CODEC):
        maas.load(tmp_path / "net", into=mine)
    assert all(torch.equal(before[name], each) for name, each in mine.state_dict().items())


def test_a_path_in_the_manifest_means_nothing(tmp_path):
    """Names of tensors, submodules and classes are compared, never joined to a folder."""
    with pytest.raises(CODEC, match="'weights'"):
        Manifest.from_json(json.dumps({"format": "maas-model", "version": 1}).encode())


CANARY = """
import json, os, pathlib, sys, warnings
import maas

good, *bad = sys.argv[1:]
maas.load(good)
allowed = {os.path.dirname(good), "/dev/fd"}
seen = []
QUIET = {
    "object.__getattr__", "object.__setattr__", "object.__delattr__", "code.__new__", "os.listdir",
    "sys._getframe", "sys._getframemodulename", "builtins.id", "mmap.__new__",
}

def watch(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        inside = isinstance(path, int) or path in ("model.json", "weights.safetensors") or any(
            os.fspath(path).startswith(place) for place in allowed
        )
        if writes or not inside:
            seen.append([event, str(path)])
    elif event not in QUIET:
        seen.append([event, repr(arguments)[:200]])

sys.addaudithook(watch)
answers = {}
for folder in bad:
    try:
        maas.load(folder)
        answers[folder] = "loaded"
    except (maas.CodecError, FileNotFoundError) as error:
        answers[folder] = ""
    except BaseException as error:
        answers[folder] = repr(error)[:200]
report = [answers, list(seen)]
print(json.dumps(report))
"""


def test_no_code_runs_and_no_other_file_is_opened(tmp_path):
    """Over all attacks nothing is imported, compiled, spawned, connected to or written."""
    _model(tmp_path / "good")
    for name, (attack, _error, _words) in ATTACKS.items():
        _model(tmp_path / name)
        attack(tmp_path / name)
    paths = [str(tmp_path / name) for name in ("good", *ATTACKS)]
    done = subprocess.run(
        [sys.executable, "-c", CANARY, *paths], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answers, seen = json.loads(done.stdout)
    assert {folder: answer for folder, answer in answers.items() if answer} == {}
    assert seen == []
