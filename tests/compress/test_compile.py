"""Compiled models: the same numbers by onnxruntime, and nothing but arithmetic is opened."""

import copy
import json

import pytest
import torch
from torch import nn

import maas
from maas.backends.onnx_graph import OnnxGraph, check_graph
from maas.compress import Compile, Quantize, RelativeError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


class Block(nn.Module):
    """One layer of a transformer encoder, of one's own class."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(size), nn.LayerNorm(size)
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.inside = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, length, size = x.shape
        qkv = self.qkv(self.before(x)).view(rows, length, 3, self.heads, size // self.heads)
        mixed = nn.functional.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, size))
        return x + self.inside(self.after(x))


@pytest.fixture(scope="session")
def compiled(digits, _net):
    """The digits classifier compiled, and its products in int8; made once, as it takes seconds."""
    model = maas.Model(_net, name="digits")
    return model, model.compress(Compile(), Quantize("int8 dynamic"), check=digits[1])


def test_a_compiled_model_gives_the_same(compiled):
    """The graph differs from the module by rounding, and int8 by a hundredth."""
    plain, narrow = (row.figures for row in compiled[1].report.rows[1:])
    assert plain.error < 1e-5
    assert plain.agreement == 1.0
    assert narrow.error < 0.03
    assert narrow.disk < 0.27 * compiled[1].report.original.disk


def test_a_compiled_model_survives_bit_for_bit(compiled, check, tmp_path, maas_connect):
    """Saved, loaded without its class, served and asked in any number of rows, it gives the same
    bits.
    """
    _, small = compiled
    inputs = check[0]
    maas.save(small, tmp_path / "small")
    loaded = maas.load(tmp_path / "small")
    served = maas_connect(loaded)
    for rows in (1, 2, 64, len(inputs)):
        assert torch.equal(served(inputs[:rows]), small(inputs[:rows]))
    assert json.loads((tmp_path / "small" / "model.json").read_text())["architecture"] == {
        "type": "OnnxGraph",
        "arguments": {"size": loaded.executor.backend.target.size},
    }


def test_a_compiled_model_has_no_gradients_and_says_so(compiled, check):
    """A gradient through a graph is refused with the way out, not silently zero; under
    `no_grad` it answers.
    """
    with pytest.raises(maas.Unsupported, match="no gradients"):
        compiled[1](check[0][:2].clone().requires_grad_())
    asked = compiled[1].executor.backend.target
    row = check[0][:2]
    with torch.no_grad():
        assert torch.equal(asked(row.clone().requires_grad_()), asked(row))


@pytest.mark.parametrize("scheme", ["int8 dynamic", "int8 static"])
def test_no_product_is_cut_off(scheme):
    """The largest inputs by the largest weights give what they should, without VNNI as well."""
    net = nn.Linear(64, 8)
    with torch.no_grad():
        net.weight.fill_(1.0)
        net.bias.zero_()
    full = torch.ones(4, 64)
    small = maas.Model(net).compress(Quantize(scheme), check=full)
    torch.testing.assert_close(small(full), torch.full((4, 8), 64.0), rtol=0.01, atol=0.0)


def test_a_copy_and_a_changed_graph_are_opened_anew(compiled, check):
    """What ran already can be copied, and runs what its buffer holds now, not what it held."""
    row = check[0][:1]
    plain = compiled[1].executor.backend.target
    ran = plain(row)
    copied = copy.deepcopy(plain)
    assert torch.equal(copied(row), ran)
    other = OnnxGraph.of(graph([NODE("Neg", ["x"], ["y"])]))
    assert torch.equal(other(torch.ones(2)), -torch.ones(2))
    other.graph = OnnxGraph.of(graph([NODE("Abs", ["x"], ["y"])])).graph
    assert torch.equal(other(-torch.ones(2)), torch.ones(2))


def test_static_int8_of_an_encoder_is_caught_by_the_gate():
    """Full static int8 costs an encoder with one large channel more than 5 %, and is not shipped.

    Trained encoders have such channels (Dettmers et al., 2022, arXiv:2208.07339).
    """
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Embedding(100, 32), Block(32, 4), Block(32, 4), nn.Flatten(), nn.Linear(16 * 32, 10)
    )
    with torch.no_grad():
        net[0].weight[:, 0] *= 30
    tokens = torch.randint(100, (64, 16))
    with pytest.raises(maas.TooLossy, match=r"int8 static.* was refused: relative error") as caught:
        maas.Model(net).compress(Quantize("int8 static"), check=tokens, keep=RelativeError(0.02))
    assert caught.value.figures["error"] > 0.02


# What is refused.


def graph(nodes, *, initializers=(), functions=(), domains=("",)):
    """A model of these nodes from x to y."""
    vector = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2])
    made = onnx.helper.make_graph(list(nodes), "g", [vector], [out], list(initializers))
    return onnx.helper.make_model(
        made,
        functions=list(functions),
        opset_imports=[onnx.helper.make_opsetid(domain, 20) for domain in domains],
    ).SerializeToString()


def elsewhere():
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [2], [1.0, 2.0])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/hostname"
    return tensor


NODE = onnx.helper.make_node
INSIDE = onnx.helper.make_graph(
    [NODE("Relu", ["x"], ["b"])],
    "inside",
    [],
    [onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, [2])],
)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"\x00junk", "no ONNX graph"),
        (
            graph([NODE("Evil", ["x"], ["y"], domain="com.evil")], domains=("", "com.evil")),
            "custom operator com.evil::Evil",
        ),
        (
            graph([NODE("If", ["x"], ["y"], then_branch=INSIDE, else_branch=INSIDE)]),
            "branches or loops",
        ),
        (graph([NODE("Add", ["x", "w"], ["y"])], initializers=[elsewhere()]), "in another file"),
        (
            graph(
                [NODE("F", ["x"], ["y"], domain="own")],
                functions=[
                    onnx.helper.make_function(
                        "own",
                        "F",
                        ["a"],
                        ["b"],
                        [NODE("Relu", ["a"], ["b"])],
                        [onnx.helper.make_opsetid("", 20)],
                    )
                ],
                domains=("", "own"),
            ),
            "functions of its own",
        ),
    ],
)
def test_a_graph_that_is_more_than_arithmetic_is_refused(raw, words):
    """Custom operators, branches, functions and data in other files are refused unopened."""
    with pytest.raises(maas.CodecError, match=words):
        OnnxGraph.of(raw)


def test_a_strangers_graph_is_refused_when_its_folder_is_loaded(tmp_path):
    """The check happens in `maas.load`, before anything is opened."""
    good = graph([NODE("Relu", ["x"], ["y"])])
    check_graph(good)
    bad = graph([NODE("Evil", ["x"], ["y"], domain="com.evil")], domains=("", "com.evil"))
    module = OnnxGraph(len(bad))
    module.graph = torch.frombuffer(bytearray(bad), dtype=torch.uint8)
    maas.save(module, tmp_path / "bad")
    with pytest.raises(maas.CodecError, match="custom operator"):
        maas.load(tmp_path / "bad")


def test_what_cannot_be_a_graph_is_refused(check):
    """A branch on values, or an output that is no tensor, names the model and the reason."""

    class Choosing(nn.Module):
        def forward(self, x):
            return x * 2 if float(x.sum()) > 0 else x

    class Named(nn.Module):
        def forward(self, x):
            return {"y": x}

    with pytest.raises(maas.Unsupported, match="choosing cannot be compiled"):
        maas.Model(Choosing()).compress(Compile(), check=check[0])
    with pytest.raises(maas.Unsupported, match="gives a dict"):
        maas.Model(Named()).compress(Compile(), check=check[0])
