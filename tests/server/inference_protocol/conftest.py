"""What each file here asks with: a handler without a socket, and what it tells of a model."""

import asyncio
import json

import pytest

import maas
from maas.calls import CALL
from maas.server.front import Head
from maas.server.handler import Handler
from maas.server.inference_protocol.metadata import model_metadata


def model_of(target):
    return target if isinstance(target, maas.Model) else maas.Model(target, name="m")


def ask(target, *inputs, **parameters):
    """The outputs of a call, or status and error."""
    handler = Handler({"m": model_of(target)})
    head = Head("POST", "/v2/models/m/infer", "", (("host", "a"),), secure=False, loopback=True)
    body = json.dumps({"inputs": inputs, "parameters": parameters}).encode()
    response = asyncio.run(handler.answer(handler.admit(head), bytearray(body)))
    data = json.loads(b"".join(response.body))
    if response.status != 200:
        return response.status, data["error"]
    return [(each["name"], each["datatype"], each["data"]) for each in data["outputs"]]


def tell(target):
    """The inputs and the outputs that the metadata name."""
    info = model_of(target).info
    found = model_metadata(info, info.methods[CALL])
    return tuple(
        [(each["name"], each["datatype"], each["shape"]) for each in found[key]]
        for key in ("inputs", "outputs")
    )


@pytest.fixture
def infer():
    return ask


@pytest.fixture
def told():
    return tell
