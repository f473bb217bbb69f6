"""Messages: encoding copies no tensor, decoding copies one at the speed of memory at most.

A tensor's own memory is handed to the socket, so encoding takes the same time for 4 KB and for
256 MB. A received `bytearray` is decoded without a copy; read-only bytes are copied once,
because arrays are writable, and that is compared with the copy alone, into fresh memory too.
"""

from functools import partial

import msgpack
import torch

from benchmarks.comparison import Bound, Report
from maas.calls import Call, Result
from maas.limits import Limits
from maas.tensors import restore
from maas.values import Unpacker
from maas.wire import PREFIX, charge, decode, encode, encode_call, read_prefix, unpack_header

LIMITS = Limits(body=2**30)


def call_with(size: int) -> Call:
    """A call whose one argument is a tensor of so many bytes."""
    return Call("net", "__call__", (torch.zeros(size // 4),), {})


def message(size: int) -> bytes:
    """A result that is a tensor of so many bytes."""
    return b"".join(encode(Result(torch.zeros(size // 4)), LIMITS))


def main() -> None:
    report = Report(__doc__)
    encoding(report)
    decoding(report)
    header(report)
    report.close()


def encoding(report: Report) -> None:
    small = call_with(4 * 2**10)
    for size in (2**16, 2**20, 2**24, 2**26) if report.quick else (2**16, 2**20, 2**24, 2**28):
        large = call_with(size)
        report.compare(
            f"encoding {size // 2**10:,} KB over encoding 4 KB",
            partial(encode_call, large, LIMITS),
            partial(encode_call, small, LIMITS),
            bound=Bound(most=1.2),
        )


def decoding(report: Report) -> None:
    data = message(2**26)
    received = bytearray(data)
    report.compare(
        "decoding 64 MB of bytes: speed over memcpy",
        lambda: decode(data, LIMITS),
        lambda: bytearray(data),
        bound=Bound(least=0.8),
        rounds=40,
        speed=True,
    )
    report.compare(
        "decoding 64 MB of bytearray: speed over memcpy",
        lambda: decode(received, LIMITS),
        lambda: bytearray(data),
        rounds=40,
        speed=True,
    )


def header(report: Report) -> None:
    """What a stranger's header costs, limits charged, without the tensor that it describes."""
    data = bytearray(b"".join(encode_call(call_with(4 * 2**10), LIMITS)))
    packed = bytes(data[PREFIX : PREFIX + read_prefix(data, LIMITS).header])
    tensor = memoryview(bytearray(4 * 2**10))

    def charged() -> None:
        charge(packed, LIMITS)
        unpack_header(packed, Unpacker([tensor], LIMITS))

    report.excess(
        "decoding the header of a one-tensor call: us",
        charged,
        lambda: restore("$tensor", "float32", [2**10], (), tensor),
        Bound(most=6.0),
    )
    report.compare(
        "decoding that message over msgpack alone",
        lambda: decode(data, LIMITS),
        lambda: msgpack.unpackb(packed),
    )


if __name__ == "__main__":
    main()
