"""Every error maas raises, and what each one means on the wire.

    Error                                     any maas error
    ├── CodecError          ValueError        a value that cannot cross, or bytes that are no
    message
    │   └── LimitExceeded                     more than `Limits` allow
    ├── SignatureError      TypeError         arguments that do not fit the model
    ├── DataError           ValueError        data that cannot be read, or not be trained on
    ├── NotFound            LookupError       no such model here
    ├── Expired             LookupError       what a server kept for this caller is gone
    ├── Unsupported         NotImplementedError   this place cannot do that
    ├── Unauthenticated     PermissionError   no key, or a wrong one
    ├── Forbidden           PermissionError   a good key without the grant; the message names it
    ├── Conflict            RuntimeError      an idempotency key met again with another call
    ├── VersionMismatch     RuntimeError      no protocol version in common; names both sides
    ├── DeadlineExceeded    TimeoutError      the call's total time is over
    ├── Cancelled           RuntimeError      the call was cancelled
    ├── Overloaded          RuntimeError      too much work waits; `retry_after` says when to come
    back
    ├── NotReady            RuntimeError      starting or draining; `retry_after` as well
    ├── ForkError           RuntimeError      inherited through fork() from a process that had used
    it
    ├── TooLossy            ValueError        a compressed model that differs more than was allowed
    ├── ModelExit           RuntimeError      the model raised SystemExit, StopIteration or the like
    ├── InternalError       RuntimeError      a fault of the server; it tells no more to strangers
    └── TransportError      ConnectionError   the connection failed
        ├── ProtocolError                     the other side broke HTTP or the wire format
        ├── StreamInterrupted                 a stream ended without its final frame
        └── WorkerLost                        the process that ran the call ended; it may have run

    MutationWarning         UserWarning       a model changed its caller's tensor in place

Every class names its wire `code` and the HTTP `status` a server answers with.
A message says what was given, what was wanted and what to do.
It never shows a stranger a path or a secret.
"""

from typing import Any, ClassVar

__all__ = [
    "Cancelled",
    "CodecError",
    "Conflict",
    "DataError",
    "DeadlineExceeded",
    "Error",
    "Expired",
    "Forbidden",
    "ForkError",
    "InternalError",
    "LimitExceeded",
    "ModelExit",
    "MutationWarning",
    "NotFound",
    "NotReady",
    "Overloaded",
    "ProtocolError",
    "SignatureError",
    "StreamInterrupted",
    "TooLossy",
    "TransportError",
    "Unauthenticated",
    "Unsupported",
    "VersionMismatch",
    "WorkerLost",
]


class Error(Exception):
    """Any error of maas; catch this one to catch them all."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500


class CodecError(Error, ValueError):
    """A value that cannot cross the wire, or bytes that are not a message."""

    code = "codec"
    status = 400


class LimitExceeded(CodecError):
    """A message, header, tensor or nesting beyond what `maas.Limits` allow."""

    code = "limit"
    status = 413


class SignatureError(Error, TypeError):
    """Arguments that do not fit the model's signature."""

    code = "signature"
    status = 422


class DataError(Error, ValueError):
    """Data that cannot be read or used; the message names the file, row and column it is about."""

    code = "data"
    status = 422


class NotFound(Error, LookupError):
    """No model of that name is here; the message lists those that are."""

    code = "not-found"
    status = 404


class Expired(Error, LookupError):
    """A graph or a private copy that a server kept is gone; the message says why."""

    code = "expired"
    status = 410


class Unsupported(Error, NotImplementedError):
    """The place where the model runs cannot do what was asked."""

    code = "unsupported"
    status = 501


class Unauthenticated(Error, PermissionError):
    """The server wants a key, and got none or a wrong one."""

    code = "unauthenticated"
    status = 401


class Forbidden(Error, PermissionError):
    """The key is good but lacks the grant that the message names."""

    code = "forbidden"
    status = 403


class Conflict(Error, RuntimeError):
    """An idempotency key was used before, with another call."""

    code = "conflict"
    status = 409


class VersionMismatch(Error, RuntimeError):
    """Client and server speak no common protocol version."""

    code = "version"
    status = 505


class DeadlineExceeded(Error, TimeoutError):
    """The total time given to the call, over all attempts, has passed."""

    code = "deadline"
    status = 504


class Cancelled(Error, RuntimeError):
    """The call was cancelled before it ended."""

    code = "cancelled"
    status = 499


class _ComeBack(Error, RuntimeError):
    retry_after: float | None = None

    def __init__(self, message: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Overloaded(_ComeBack):
    """More work waits than the server takes; `retry_after` is in seconds."""

    code = "overloaded"
    status = 429


class NotReady(_ComeBack):
    """The server or the model is starting or draining; `retry_after` is in seconds."""

    code = "not-ready"
    status = 503


class ForkError(Error, RuntimeError):
    """A connection or thread pool came through `fork()` and cannot work here."""

    code = "fork"


class TooLossy(Error, ValueError):
    """A compressed model differs from the original by more than was allowed; it was not kept.

    `figures` tells by how much, as `maas.compress.Figures` names it.
    """

    code = "too-lossy"
    status = 422

    def __init__(self, message: str, figures: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.figures = figures or {}


class ModelExit(Error, RuntimeError):
    """The model raised an exception that means "leave", such as `SystemExit`."""

    code = "model-exit"


class InternalError(Error, RuntimeError):
    """The server failed; its own log tells why."""

    code = "internal"


class TransportError(Error, ConnectionError):
    """The connection could not be made, or broke.

    Attributes
    ----------
    answered : bool
        A byte of the reply had arrived, so the call was certainly received.
    sent : bool
        A byte of the call had left, so it may have been received.
    """

    code = "transport"
    status = 502
    # Defaults here as well, because one that came by wire is made without __init__.
    sent: bool = False
    answered: bool = False

    def __init__(self, message: str = "", *, sent: bool = False, answered: bool = False) -> None:
        super().__init__(message)
        self.sent = sent
        self.answered = answered


class ProtocolError(TransportError):
    """The other side broke the rules of HTTP or of the wire format."""

    code = "protocol"


class StreamInterrupted(TransportError):
    """A stream of items stopped without its final frame."""

    code = "stream-interrupted"


class WorkerLost(TransportError):
    """The worker process that had the call ended before it answered, so the call may have run.

    It is not sent again by itself, because it may be run only once, or because two workers ended
    while they ran it.
    """

    code = "worker-lost"

    def __init__(self, message: str = "") -> None:
        # To the caller, who heard this from whoever lost the worker, it is an answer.
        super().__init__(message, sent=True, answered=True)


class MutationWarning(UserWarning):
    """A model changed its caller's tensor in place; a remote model could not have."""
