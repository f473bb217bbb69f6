"""Compressed bodies, opened in full and in bounds."""

import asyncio
import gzip
import threading
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas.errors import CodecError, LimitExceeded, Overloaded
from maas.server.compression import Inflater, UnknownCoding, coding

CODINGS = {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress}


def opened(inflater, name, body):
    async def work():
        async with inflater.opened(name, bytearray(body)) as found:
            assert inflater.held == len(found)
            return bytes(found)

    return asyncio.run(work())


@given(st.binary(), st.sampled_from(sorted(CODINGS)), st.integers(0, 9))
def test_any_body_is_opened(data, name, level):
    """Whatever was compressed comes out as it was, and is counted only while it is held."""
    inflater = Inflater(2**20)
    assert opened(inflater, name, CODINGS[name](data, level)) == data
    assert inflater.held == 0


@pytest.mark.parametrize("size", [2**16 - 1, 2**16, 2**16 + 1, 2**20, 2**22 + 1])
@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_bodies_larger_than_a_piece(name, size):
    """A body that opens in many pieces, of bytes that compress well and badly, comes out whole."""
    for data in (bytes(size), bytes((i * i * 2654435761 >> 13) & 255 for i in range(size))):
        assert opened(Inflater(2**23), name, CODINGS[name](data)) == data


@pytest.mark.parametrize("most", [1, 100, 2**20])
def test_the_limit_is_exact(most):
    """As many bytes as the limit says are opened, and not one more."""
    assert opened(Inflater(most), "gzip", gzip.compress(bytes(most))) == bytes(most)
    with pytest.raises(LimitExceeded, match=f"more than {most} bytes"):
        opened(Inflater(most), "gzip", gzip.compress(bytes(most + 1)))


@given(st.binary(min_size=1), st.data())
def test_a_body_cut_short_is_refused(data, draw):
    """No part of a compressed body opens as if it were all."""
    body = gzip.compress(data)
    cut = draw.draw(st.integers(0, len(body) - 1))
    with pytest.raises(CodecError):
        opened(Inflater(2**20), "gzip", body[:cut])


def test_what_is_open_is_counted_over_all():
    """Bodies beyond four times the limit have to come back, until others are done."""
    inflater = Inflater(100)
    body = bytearray(gzip.compress(bytes(100)))

    async def work():
        async with (
            inflater.opened("gzip", body),
            inflater.opened("gzip", body),
            inflater.opened("gzip", body),
            inflater.opened("gzip", body),
        ):
            assert inflater.held == 400
            with pytest.raises(Overloaded):
                async with inflater.opened("gzip", body):
                    pass
        async with inflater.opened("gzip", body) as found:
            return len(found)

    assert asyncio.run(work()) == 100
    assert inflater.held == 0


def test_who_leaves_stops_the_work():
    """A caller who leaves while a body is opened holds nothing, and the thread soon ends."""
    inflater = Inflater(2**30)
    body = bytearray(gzip.compress(bytes(2**28), 1))
    begun = threading.Event()
    charge = inflater.charge

    def charged(count):
        begun.set()
        charge(count)

    inflater.charge = charged

    async def work():
        async def hold():
            async with inflater.opened("gzip", body):
                raise AssertionError("it was to be cancelled")

        task = asyncio.ensure_future(hold())
        await asyncio.to_thread(begun.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert inflater.held == 0

    asyncio.run(work())
    assert inflater.held == 0


@pytest.mark.parametrize(
    ("field", "name"),
    [(None, ""), ("", ""), ("identity", ""), ("GZIP", "gzip"), (" gzip ", "gzip"),
     ("x-gzip", "x-gzip"), ("deflate", "deflate")],
)  # fmt: skip
def test_codings(field, name):
    """The codings that are opened, in any case of their letters."""
    assert coding(field) == name


@pytest.mark.parametrize("field", ["br", "gzip, deflate", "gzip,", "zstd", "none"])
def test_other_codings(field):
    """Another coding, or two at once, is refused by its name."""
    with pytest.raises(UnknownCoding, match="gzip and deflate"):
        coding(field)
