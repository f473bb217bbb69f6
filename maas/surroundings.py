"""What surrounds values, as plain data and back: the context of a call, the facts of an answer.

Both directions check alike, so that what one side sends the other takes.
"""

import time
from typing import Any

from maas.calls import AMBIENT, NO_GRAD, Autocast, Context, Info
from maas.errors import CodecError
from maas.kinds import brief

__all__ = ["context_data", "info_data", "read_context", "read_info"]

_CONTEXT: dict[str, tuple[type, ...]] = {
    "grad": (bool,),
    "training": (bool,),
    "seed": (int,),
    "rng": (bytes,),
    "key": (str,),
    "priority": (int,),
    "trace": (str,),
    "autocast": (list,),
    "deadline": (float, int),
}
_NO_GRAD = {"grad": False}
_MAX_KEY = 256
_MAX_RNG = 8_192
"""torch's CPU generator takes 5,056 bytes."""
_MAX_AUTOCAST = 8
_MAX_DEADLINE = 1e9


def context_data(context: Context) -> dict[str, Any]:
    """The fields that differ from `AMBIENT`; the deadline as remaining seconds."""
    if context is AMBIENT:
        return {}
    if context is NO_GRAD:
        return {"grad": False}
    data: dict[str, Any] = {
        field: value
        for field in ("grad", "training", "seed", "rng", "key", "priority", "trace")
        if (value := getattr(context, field)) != getattr(AMBIENT, field)
    }
    if context.autocast:
        data["autocast"] = [
            [state.device, state.dtype, state.enabled] for state in context.autocast
        ]
    if context.deadline is not None:
        data["deadline"] = context.deadline - time.monotonic()
    for name, value in data.items():
        _check_context(name, value)
    return data


def _check_context(name: str, value: Any) -> None:
    if type(value) not in _CONTEXT.get(name, ()):
        raise CodecError(
            f"the context holds {brief(name)}: {brief(value)}; known are {', '.join(_CONTEXT)}"
        )
    good = True
    if type(value) is str:
        # Both are written to logs and headers.
        good = len(value) <= _MAX_KEY and value.isascii() and value.isprintable()
    elif name in ("seed", "priority"):
        good = -(2**63) <= value < 2**64
    elif name == "deadline":
        good = -_MAX_DEADLINE <= value <= _MAX_DEADLINE
    elif type(value) in (bytes, list):
        good = len(value) <= (_MAX_RNG if name == "rng" else _MAX_AUTOCAST)
    if not good:
        raise CodecError(f"the context's {name} cannot be {brief(value)}; {_CONTEXT_WANTS[name]}")


_CONTEXT_WANTS = {
    "key": "a key has at most 256 printable ASCII characters",
    "trace": "a trace has at most 256 printable ASCII characters",
    "seed": "a seed fits 64 bits",
    "priority": "a priority fits 64 bits",
    "deadline": "a deadline is at most 1e9 seconds away",
    "rng": "a generator state has at most 8,192 bytes",
    "autocast": "at most 8 device types have one",
}


def read_context(data: dict[str, Any]) -> Context:
    """The context that a stranger's fields describe; raises `CodecError` for any that are none."""
    if not data:
        return AMBIENT
    if data == _NO_GRAD:
        return NO_GRAD
    for name, value in data.items():
        _check_context(name, value)
    fields = dict(data)
    if "autocast" in fields:
        fields["autocast"] = tuple(_read_autocast(state) for state in fields["autocast"])
    if "deadline" in fields:
        fields["deadline"] += time.monotonic()
    return Context(**fields)


def _read_autocast(state: Any) -> Autocast:
    if type(state) is not list or [type(part) for part in state] != [str, str, bool]:
        raise CodecError(f"an autocast state is [device, dtype, enabled], got {brief(state)}")
    return Autocast(*state)


def read_info(fields: list[Any]) -> Info:
    """The facts that a stranger's fields describe; raises `CodecError` for any that are none."""
    kinds = [type(field) for field in fields]
    if kinds[:5] not in _INFO or kinds[5:] not in ([], [str]):
        raise CodecError(
            "info is [where, device, batch size, queue seconds, compute seconds], or with a note"
        )
    return Info(*fields)


_INFO = ([str, type(None), int, float, float], [str, str, int, float, float])


def info_data(info: Info) -> list[Any]:
    """The facts by position."""
    note = [info.note] if info.note else []
    return [
        info.where,
        info.device,
        info.batch_size,
        info.queue_seconds,
        info.compute_seconds,
        *note,
    ]
