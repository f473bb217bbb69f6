"""What the first use of a remote model learns: where its calls go, and what they may be.

A server says which protocol it speaks, which models it has, what they take and what a message
may hold, all in one reply. It is a stranger: what it says is checked before it is believed.
"""

import json
from typing import Any

import attrs

from maas import wire
from maas.buffers import Buffer
from maas.calls import CALL
from maas.errors import (
    CodecError,
    DeadlineExceeded,
    Error,
    Forbidden,
    LimitExceeded,
    NotFound,
    NotReady,
    Overloaded,
    ProtocolError,
    SignatureError,
    Unauthenticated,
    Unsupported,
    VersionMismatch,
)
from maas.executors.base import ADDRESS, ModelInfo
from maas.http import Response, header
from maas.limits import Limits
from maas.signature import Signature
from maas.wire import Description, Failure
from maas.writers import CallWriter

__all__ = ["Expected", "Place", "body_of", "check_expected", "learned", "problem"]

Expected = tuple[Signature, str]
"""What a caller takes the model to be, and what it is called there."""


@attrs.frozen
class Place:
    """Where calls go, and what they may be.

    `limits` are the smaller of both sides' for what is sent, and `writer` writes calls under them.
    """

    model: str
    address: str
    info: ModelInfo
    limits: Limits
    writer: CallWriter


def learned(
    message: Any, path: str, where: str, *, limits: Limits, expected: Expected | None
) -> Place:
    """The place that a server's description of itself makes of `path`.

    Raises
    ------
    ProtocolError
        It does not describe itself, or not as this protocol has it.
    VersionMismatch
        It speaks no protocol that this side speaks.
    NotFound
        It has several models, and the path names none.
    SignatureError
        The model is not what was expected.
    """
    if isinstance(message, Failure):
        raise message.error
    if not isinstance(message, Description):
        raise ProtocolError(f"{where} does not describe itself", answered=True)
    data = message.data
    _check_protocol(data.get("protocol"), where)
    models, model = data.get("models"), data.get("model")
    if (
        type(models) is not dict
        or type(model) is not str
        or not all(type(name) is str for name in models)
    ):
        raise ProtocolError(f"{where} describes itself without models", answered=True)
    address = path
    if not model:
        if len(models) != 1:
            raise NotFound(
                f"{where} serves {len(models)} models; connect to one: {', '.join(sorted(models))}"
            )
        (model,) = models
        address = f"{path}/{model}"
    if ADDRESS.fullmatch(model) is None:
        raise ProtocolError(f"{where} calls its model {model!r:.80}", answered=True)
    info = ModelInfo.from_data(models.get(model), where)
    if expected is not None:
        check_expected(info, expected, where)
    smaller = _smaller(limits, info.limits)
    return Place(model, address, info, smaller, CallWriter(smaller))


def check_expected(info: ModelInfo, expected: Expected, where: str) -> None:
    """Raises `SignatureError` where the model is not what was expected."""
    signature, name = expected
    there = info.methods.get(CALL)
    differences = (
        ["it cannot be called itself"] if there is None else signature.difference(there.signature)
    )
    if differences:
        raise SignatureError(f"{where} is not like {name}(): {'; '.join(differences)}")


def _check_protocol(offered: Any, where: str) -> None:
    if type(offered) is not list or [type(end) for end in offered] != [int, int]:
        raise ProtocolError(f"{where} does not say which protocol it speaks", answered=True)
    low, high = offered
    if not low <= wire.VERSION <= high:
        raise VersionMismatch(
            f"this client speaks protocol {wire.VERSION}, {where} speaks {low} to {high}; "
            f"{'upgrade the client' if low > wire.VERSION else 'upgrade the server'}"
        )


def _smaller(own: Limits, theirs: Any) -> Limits:
    both = {
        name: min(value, theirs[name])
        if type(theirs.get(name)) is int and theirs[name] > 0
        else value
        for name, value in attrs.asdict(own).items()
    }
    return Limits(**both)


# Replies that are no message: from a proxy, or from before the server's handler.

_BY_STATUS: dict[int, type[Error]] = {
    kind.status: kind
    for kind in (
        CodecError,
        Unauthenticated,
        Forbidden,
        NotFound,
        LimitExceeded,
        SignatureError,
        Unsupported,
    )
} | {408: DeadlineExceeded, 504: DeadlineExceeded}
_COME_BACK: dict[int, type[Overloaded] | type[NotReady]] = {429: Overloaded, 503: NotReady}


def problem(reply: Response, where: str) -> Error:
    """The error that a reply stands for which is no message."""
    body = bytes(body_of(reply)[:65_536])
    try:
        detail = str(json.loads(body)["detail"])[:2_000]
    except (ValueError, TypeError, LookupError, RecursionError):
        text = body[:200].decode("utf-8", "replace")
        detail = f"{where} answered with status {reply.status}: {text!r}"
    if reply.status in _COME_BACK:
        seconds = _seconds(header(reply.headers, "retry-after"))
        return _COME_BACK[reply.status](detail, seconds)
    kind = _BY_STATUS.get(reply.status)
    return ProtocolError(detail, sent=True, answered=True) if kind is None else kind(detail)


def _seconds(text: str | None) -> float | None:
    return (
        float(text)
        if text is not None and text.isascii() and text.isdigit() and len(text) < 7
        else None
    )


def body_of(reply: Response) -> Buffer:
    """The body of a transport's reply, which has it in one piece."""
    (body,) = reply.body  # type: ignore[misc]
    return body
