"""Messages of every protocol version ever spoken decode for ever."""

import importlib.util
import re
from pathlib import Path

import pytest

from maas.limits import Limits
from maas.testing.equality import difference
from maas.wire import decode

HERE = Path(__file__).parent
_SPEC = importlib.util.spec_from_file_location("make", HERE / "make.py")
make = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(make)


@pytest.mark.parametrize(
    "path", sorted((HERE / "v1").glob("*.msgpack")), ids=lambda path: path.stem
)
def test_golden_messages_decode(path):
    """A golden message decodes to the value it was made from, and that encodes to the same
    bytes.
    """
    message = make.MESSAGES[path.stem]
    data = path.read_bytes()
    found = decode(data, Limits(), model="net", method=getattr(message, "method", ""))
    assert difference(message, found) is None
    assert make.encoded(message) == data


def test_every_form_has_a_golden_message():
    """No message of the script is without its file, and no file without its line."""
    files = {path.stem for path in (HERE / "v1").glob("*.msgpack")}
    assert files == set(make.MESSAGES)


PAGE = HERE.parents[1] / "docs" / "reference" / "wire-format.md"


def test_the_page_shows_golden_messages():
    """The bytes on the page about the wire format are those of the golden messages."""
    shown = {}
    for names, block in re.findall(
        r"^(`[^\n]*\.msgpack`[^\n]*)\n\n```text\n(.*?)```",
        PAGE.read_text(),
        re.MULTILINE | re.DOTALL,
    ):
        words = (
            re.match(r"(?:[0-9a-f]{2} )*[0-9a-f]{2}(?= |$)", line.strip())
            for line in block.splitlines()
        )
        found = re.findall(r"`([a-z-]+)\.msgpack`", names)
        shown[tuple(found)] = bytes.fromhex("".join(word[0] for word in words if word))
    assert len(shown) == 3
    for names, data in shown.items():
        assert data == b"".join((HERE / "v1" / f"{name}.msgpack").read_bytes() for name in names)
