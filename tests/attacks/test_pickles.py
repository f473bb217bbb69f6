"""Bytes that other formats would execute: no pickle, archive or .npy is ever opened."""

import io
import pickle
import sys
import zipfile

import numpy as np
import pytest
import torch

RAN = []


class _Canary:
    def __reduce__(self):
        return RAN.append, (1,)


def _npy():
    out = io.BytesIO()
    np.save(out, np.array([_Canary()], dtype=object), allow_pickle=True)
    return out.getvalue()


def _zip():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(_Canary()))
    return out.getvalue()


def _torch():
    out = io.BytesIO()
    torch.save({"a": _Canary()}, out)
    return out.getvalue()


PAYLOADS = {"pickle": pickle.dumps(_Canary()), "npy": _npy(), "zip": _zip(), "torch": _torch()}


@pytest.mark.parametrize("raw", PAYLOADS.values(), ids=PAYLOADS)
def test_no_canary_sings(wire, raw):
    """Hostile files in place of a message, a header, a buffer or a value run nothing."""
    opened = []
    watch = {
        "open",
        "exec",
        "compile",
        "import",
        "subprocess.Popen",
        "os.system",
        "pickle.find_class",
        "socket.connect",
    }
    active = [True]

    def hook(event, args):
        if active and event in watch:
            opened.append((event, args))

    wire.refused(wire.item({"$tensor": [0, "float32", [1]]}))
    sys.addaudithook(hook)
    wire.refused(raw)
    wire.refused(wire.message(raw))
    wire.refused(wire.message(wire.packed([1]), raw))
    wire.refused(wire.item({"$pickle": raw}))
    wire.refused(wire.item({"$tensor": [0, "object", [1]]}, raw))
    assert wire.metered(wire.item({"$bytes": 0}, raw)).value == raw
    active.clear()
    assert not RAN
    assert not opened
