# ruff: noqa: E501 - the scripts are JavaScript, which has its own idea of a line
"""The client in examples/javascript, written from the wire format's page alone."""

import hashlib
import json
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest
import torch

import maas
from maas.calls import Call
from maas.limits import Limits
from maas.testing.equality import difference
from maas.wire import Item, decode

ROOT = Path(__file__).parents[1]
CLIENT = ROOT / "examples" / "javascript"
GOLDEN = ROOT / "tests" / "golden" / "v1"
LIMITS = Limits()


@pytest.fixture(scope="module")
def node(lacking):
    """Runs a script beside the client, its packages installed once under .cache/."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        lacking("node", "node and npm are not installed")
    manifest = (CLIENT / "package.json").read_bytes()
    place = ROOT / ".cache" / f"javascript-{hashlib.sha256(manifest).hexdigest()[:12]}"
    if not (place / "node_modules" / "@msgpack").is_dir():
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(CLIENT / "package.json", place)
        command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
        done = subprocess.run(
            command, cwd=place, capture_output=True, text=True, timeout=200, check=False
        )
        if done.returncode:
            lacking("node", f"npm install failed ({done.stderr.strip()[-200:]})")
    for source in CLIENT.glob("*.mjs"):
        shutil.copy(source, place)

    def run(script, *args):
        program = f"{IMPORTS}\n{script}"
        done = subprocess.run(
            ["node", "--input-type=module", "-e", program, "--", *map(str, args)],
            cwd=place, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


IMPORTS = """
import { readFileSync, readdirSync } from "node:fs";
import { call, callWith, describe, keywords, MaasError, stream } from "./client.mjs";
import { decodeMessage, encodeCall, encodeItem, readPrefix, Tag, Tensor, Tuple } from "./message.mjs";
const hex = (bytes) => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("hex");
const args = process.argv.slice(1).filter((arg) => arg !== "--");
const shown = (value) => {
  if (value instanceof Tensor) return { dtype: value.dtype, shape: value.shape, flags: value.flags, hex: hex(value.data) };
  if (value instanceof Uint8Array) return { hex: hex(value) };
  if (typeof value === "bigint") return `${value}n`;
  if (value instanceof Tag) return { [value.name]: shown(value.payload) };
  if (value instanceof Tuple) return { tuple: Array.from(value, shown) };
  if (value instanceof Set) return { set: [...value].map(shown) };
  if (value instanceof Map) return { map: [...value].map((pair) => pair.map(shown)) };
  if (Array.isArray(value)) return value.map(shown);
  if (value !== null && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, shown(v)]));
  return value;
};
"""


def test_golden_messages_decode(node):
    """JavaScript reads every golden message, and finds the same numbers, bytes and names in it."""
    out = node(
        """for (const name of readdirSync(args[0]).sort()) {
             const { kind, fields } = decodeMessage(new Uint8Array(readFileSync(`${args[0]}/${name}`)));
             console.log(JSON.stringify([name.split(".")[0], kind, shown(fields)]));
           }""",
        GOLDEN,
    )
    found = {name: (kind, fields) for name, kind, fields in map(json.loads, out.splitlines())}
    assert set(found) == {path.stem for path in GOLDEN.glob("*.msgpack")}
    ones = {
        "dtype": "float32",
        "shape": [2, 2],
        "flags": [],
        "hex": "0000803f000000400000404000008040",
    }
    assert found["call-one-tensor"] == ("call", [[ones], {}, {}])
    assert found["call-keywords"] == ("call", [["hello"], {"lower": True}, {}])
    assert found["end"] == ("end", [["here", None, 1, 0, 0], None])
    assert found["big-ints"][1] == [[f"{2**64}n", f"{-(2**63) - 1}n", f"{2**200}n"]]
    assert found["long-text-and-bytes"][1][0] == ["a" * 4_097, {"hex": "62" * 4_097}]
    assert found["maps"][1][0][0] == {"map": [[1, "a"], [None, 2]]}
    assert found["failure"][1][0]["names"][0] == "ValueError"
    assert found["failure"][1][0]["args"] == ["bad input", 3]
    assert found["channels-last"][1][0]["flags"] == ["channels_last"]
    assert [tensor["dtype"] for tensor in found["arrays"][1][0]] == [
        "int32",
        "float64",
        "float64",
        "bool",
    ]


def test_golden_messages_are_made(node):
    """JavaScript writes the same calls to the same bytes."""
    out = node(
        """console.log(hex(encodeCall([new Tensor(Float32Array.of(1, 2, 3, 4), [2, 2])])));
           console.log(hex(encodeCall(["hello"], { lower: true })));
           console.log(hex(encodeItem("token")));"""
    )
    names = ["call-one-tensor", "call-keywords", "item"]
    assert out.split() == [(GOLDEN / f"{name}.msgpack").read_bytes().hex() for name in names]


def test_values_arrive(node):
    """What JavaScript sends, Python reads: integers of any size, tuples, maps, tensors of each
    dtype.
    """
    out = node(
        """console.log(hex(encodeItem([null, true, 1.5, 2n ** 63n, 2n ** 64n, -(2n ** 63n) - 1n,
        "\\u20ac", Uint8Array.of(1, 2),
             Tuple.of(1, "a"), new Map([[1, "a"]]), { $a: 1 }, new Set([1]),
             new Tag("$uuid", new Uint8Array(16)),
             Float64Array.of(1), BigInt64Array.of(-1n), new Tensor(new Int16Array(0), [2, 0]), new Tensor(Uint8Array.of(1, 0), [2], "bool")])));"""
    )
    item = decode(bytes.fromhex(out), LIMITS)
    assert isinstance(item, Item)
    wanted = [
        None, True, 1.5, 2**63, 2**64, -(2**63) - 1, "\u20ac", b"\x01\x02", (1, "a"), {1: "a"},
        {"$a": 1}, {1},
        uuid.UUID(int=0), torch.ones(1, dtype=torch.float64), torch.tensor([-1]),
        torch.empty(2, 0, dtype=torch.int16), torch.tensor([True, False]),
    ]  # fmt: skip
    assert difference(wanted, item.value) is None


def test_calls(node):
    """JavaScript describes, calls and streams from a real server, and catches what a model
    raises.
    """
    net = torch.nn.Linear(3, 2)

    def repeat(text: str, *, times: int):
        for number in range(times):
            yield f"{text}{number}"
        if times > 5:
            raise ValueError("too often", times)

    with maas.serve({"net": net, "repeat": repeat}, port=0, block=False) as server:
        out = node(
            """const [url] = args;
               console.log(JSON.stringify(Object.keys((await describe(`${url}/`)).models)));
               console.log(JSON.stringify((await describe(`${url}/net`)).models.net.kind));
               const x = new Tensor(Float32Array.of(1, 2, 3, 4, 5, 6), [2, 3]);
               console.log(JSON.stringify(shown(await callWith({ timeout: 30 }, `${url}/net`, x))));
               const items = [];
               for await (const item of stream(`${url}/repeat`, "a", keywords({ times: 3 }))) items.push(item);
               console.log(JSON.stringify(items));
               const caught = [];
               try { for await (const item of stream(`${url}/repeat`, "a", keywords({ times: 6 }))) caught.push(item); }
               catch (error) { caught.push(error instanceof MaasError, error.names, error.args); }
               console.log(JSON.stringify(caught));
               try { await call(`${url}/net`, "text"); } catch (error) { console.log(JSON.stringify(error.names)); }
               try { await call(`${url}/nobody`); } catch (error) { console.log(JSON.stringify(error.message)); }""",
            server.url.rstrip("/"),
        )
        wanted = net(torch.arange(1.0, 7).reshape(2, 3)).detach()
    models, kind, result, items, caught, signature, nobody = map(json.loads, out.splitlines())
    assert set(models) == {"net", "repeat"}
    assert kind == "torch"
    assert (result["dtype"], result["shape"]) == ("float32", [2, 2])
    assert result["hex"] == wanted.numpy().tobytes().hex()
    assert items == ["a0", "a1", "a2"]
    assert caught[:6] == [f"a{n}" for n in range(6)]
    assert caught[6] is True
    assert caught[7][0] == "ValueError"
    assert caught[8] == ["too often", 6]
    assert signature[0] in ("maas.SignatureError", "TypeError", "ValueError", "AttributeError")
    assert nobody.startswith("404: ")


def test_a_call_is_one_message(node):
    """The bytes that JavaScript sends are a call, context included."""
    out = node('console.log(hex(encodeCall([1], {}, { deadline: 5, key: "k" })));')
    found = decode(bytes.fromhex(out), LIMITS, model="net")
    assert isinstance(found, Call)
    assert (found.args, found.context.key) == ((1,), "k")
