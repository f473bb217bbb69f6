"""One HTTP/1.1 connection, from its first byte to its last.

    HEAD ──> BODY or CHUNKS ──> ANSWER ──> IDLE ──> HEAD ...
      │            │              │
      └────────────┴──────────────┴──> LINGER    closing: read and drop, so that
                                                 the reply is not lost to a reset

Requests are answered one at a time, in order.  While one is answered, reading
goes on, since only a reader notices that the peer has left; what a pipelining
peer sends meanwhile waits, up to 64 KiB of it.

No timer is set here: the server's sweeper asks each connection, about once a
second, whether its time is over (`expire`).  Time is the sweeper's own: it
stands still while the process does, so a paused process does not come back to
find all its callers late.
"""

import asyncio
import enum
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Coroutine, Sequence
from functools import partial
from typing import Any, cast

import attrs

from maas.buffers import Body, Buffer
from maas.errors import Overloaded
from maas.http import Response
from maas.server.framing import Chunked, HeadReader, Opening, Refusal, Sized
from maas.server.freight import LEAST, MOST, Freight
from maas.server.front import Admission, Front, Pending
from maas.server.outlet import JOINED, Outlet
from maas.server.patience import Patience
from maas.server.replies import CONTINUE, LAST_CHUNK, chunk, head, problem, size, whole

__all__ = ["Connection", "Shared"]

log = logging.getLogger("maas.server")

PIPELINED = 64 * 2**10
SURPLUS = 64  # connections above the most that still hear "429" rather than a reset
FAILED = "the server failed; its own log tells why"


class Shared:
    """What the connections of one server have in common.

    `scratch` may be one buffer for all, because an event loop hands each read
    to its connection before it starts the next; 64 KiB for each connection
    would be 640 MB at 10,000.
    """

    def __init__(self, front: Front, patience: Patience) -> None:
        self.front = front
        self.patience = patience
        self.most = patience.max_connections
        self.scratch = memoryview(bytearray(PIPELINED))
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.clock = 0.0
        self.held = 0
        self.accepted = 0
        self.refusals: dict[int, int] = {}
        self.draining = False  # replies say that they are the last
        self.closing = False  # nobody is accepted any more; what lies idle is closed
        self.emptied = asyncio.Event()
        self.freight = Freight()


_NONE = Admission(0)
"""What a request has before its head was decided on."""


class Stage(enum.Enum):
    """What the next byte of the peer belongs to."""

    IDLE = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()
    CHUNKS = enum.auto()
    ANSWER = enum.auto()
    LINGER = enum.auto()


class Connection(asyncio.BufferedProtocol):
    """One connection as asyncio sees it: asyncio calls the methods without underscore.

    Only `drain`, `abort` and `expire` are the server's to call.
    """

    _transport: asyncio.Transport
    _outlet: Outlet
    _reader: HeadReader
    _opening: Opening

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._stage = Stage.HEAD
        self._since = shared.clock  # the stage's time runs from here ...
        self._limit = shared.patience.header  # ... for so many seconds
        self._inbox = bytearray()
        self._admission = _NONE
        self._body: Sized | Chunked | None = None
        self._held = 0
        self._task: asyncio.Task[None] | Pending | None = None
        self._computing = False
        self._paused = False
        self._closes = False
        self._ended = False

    # The connection begins and ends

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or say that there are too many."""
        self._transport = cast("asyncio.Transport", transport)
        sock = transport.get_extra_info("socket")
        self._tls = transport.get_extra_info("sslcontext") is not None
        # Under TLS a socket brings no plain bytes.
        self._carrier = None if self._tls else self._shared.freight.carrier(sock)
        self._outlet = Outlet(self._transport, self._carrier)
        unix = sock.family == getattr(socket, "AF_UNIX", None)
        local = unix or _is_loopback(transport.get_extra_info("peername"))
        self._reader = HeadReader(secure=self._tls or unix, loopback=local)
        self._shared.connections.add(self)
        self._shared.accepted += 1
        surplus = len(self._shared.connections) - self._shared.most
        if surplus > SURPLUS:
            self._transport.abort()
        elif surplus > 0:
            self._refuse(429, "the server has as many connections as it takes; try again later")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio's signature
        """Cancel what was under way."""
        self._shared.connections.discard(self)
        if not self._shared.connections:
            self._shared.emptied.set()
        if self._task is not None:
            self._task.cancel()
        if not isinstance(self._task, asyncio.Task):
            self._release()

    def eof_received(self) -> bool:
        """Half a close.

        What is still being computed, nobody waits for; a reply that is on its
        way is sent, since some peers close their half to say that they are done.
        """
        self._closes = self._ended = True
        if self._stage is Stage.ANSWER and not self._computing and not self._tls:
            return True
        if self._task is not None:
            self._task.cancel()
        return False

    # Reading

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  asyncio's signature
        """Where the next bytes go: a body of known length is received in place."""
        if self._stage is Stage.BODY:
            try:
                return cast("Sized", self._body).room()
            except Refusal as refusal:
                self._refuse(refusal.status, refusal.detail)
        scratch = self._shared.scratch
        return scratch[: PIPELINED - len(self._inbox)] if self._inbox else scratch

    def buffer_updated(self, nbytes: int) -> None:
        """Go on with what came."""
        if self._stage is Stage.BODY:
            body = cast("Sized", self._body)
            if body.filled(nbytes):
                self._ask(body.data)
            elif nbytes >= PIPELINED and min(body.received, body.left) >= LEAST:
                self._carry(body)
                return
        elif self._stage is not Stage.LINGER:
            self._inbox += self._shared.scratch[:nbytes]
            self._advance()
        if nbytes >= PIPELINED:
            self._let_others_read()

    def _carry(self, body: Sized) -> None:
        """Have a thread receive the next part of a large body, if one has time."""
        carried = None
        if self._carrier is not None and not self._shared.freight.full:
            try:
                body.charge(MOST)
            except Refusal as refusal:
                self._refuse(refusal.status, refusal.detail)
                return
            carried = self._carrier.receive(partial(body.room, MOST))
        if carried is None:
            self._let_others_read()
        else:
            self._transport.pause_reading()
            carried.add_done_callback(partial(self._carried, body))

    def _carried(self, body: Sized, carried: asyncio.Future[int]) -> None:
        """Go on with what a thread received."""
        error = carried.exception()  # asyncio logs one that nobody asked for
        if self._transport.is_closing():
            return
        self._transport.resume_reading()
        if self._body is not body:
            return  # the request was refused meanwhile
        if isinstance(error, Refusal):
            self._refuse(error.status, error.detail)
        elif error is not None:  # how much came, nobody knows
            log.error("a body could not be received", exc_info=error)
            self._refuse(500, FAILED)
        elif body.filled(carried.result()):
            self._ask(body.data)

    def _let_others_read(self) -> None:
        """Read on in the loop's next turn: libuv reads 32 times before it looks at anybody else."""
        if not self._transport.is_closing():
            self._transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._read_on)

    def _read_on(self) -> None:
        if not self._paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def _advance(self) -> None:
        try:
            if self._stage is Stage.IDLE:
                self._enter(Stage.HEAD, self._shared.patience.header)
            if self._stage is Stage.HEAD:
                opening = self._reader.read(self._inbox)
                if opening is not None:
                    self._admit(opening)
            elif self._stage is Stage.CHUNKS:
                self._read_chunks(cast("Chunked", self._body))
        except Refusal as refusal:
            self._refuse(refusal.status, refusal.detail)
        if self._paused or len(self._inbox) >= PIPELINED:
            self._pace()

    def _pace(self) -> None:
        """Stop reading while too much waits behind the request in hand."""
        full = len(self._inbox) >= PIPELINED
        if full and not self._paused:
            self._transport.pause_reading()
        elif self._paused and not full:
            self._transport.resume_reading()
        self._paused = full

    def _read_chunks(self, body: Chunked) -> None:
        if body.take(self._inbox):
            self._ask(body.data)

    def _admit(self, opening: Opening) -> None:
        self._opening = opening
        self._closes = opening.closes
        try:
            admission = self._shared.front.admit(opening.head)
        except Exception:
            log.exception("the front failed to decide on a request")
            admission = problem(500, FAILED)
        if isinstance(admission, Response):
            self._turn_away(admission)
            return
        self._admission = admission
        length, inbox = opening.length, self._inbox
        if length is not None and length > admission.body_cap:
            raise Refusal(413, f"the body is larger than {admission.body_cap} bytes")
        if length is not None and length <= len(inbox):
            self._hold(length)
            body = inbox[:length]
            del inbox[:length]
            self._ask(body)
        else:
            self._begin_body(opening, admission.body_cap)

    def _turn_away(self, response: Response) -> None:
        length = self._opening.length
        if length is None or length > len(self._inbox):
            self._closes = True  # a body follows that nobody reads, so nothing after it is found
        else:
            del self._inbox[:length]
        self._stage = Stage.ANSWER
        self._give(response)

    def _begin_body(self, opening: Opening, cap: int) -> None:
        body: Sized | Chunked
        if opening.length is None:
            body, stage = Chunked(cap, self._hold), Stage.CHUNKS
        else:
            body, stage = Sized(opening.length, self._hold), Stage.BODY
        self._body = body
        self._enter(stage, self._shared.patience.body)
        if body.take(self._inbox):
            self._ask(body.data)
        elif opening.expects and not body.received:
            self._outlet.write(CONTINUE)

    def _hold(self, count: int) -> None:
        """Charge bytes of the body before they are allocated; a negative number gives back.

        Raises
        ------
        Refusal
            The server holds as many as it may.
        """
        shared = self._shared
        if shared.held + count > shared.patience.bodies:
            raise Refusal(429, "the server holds too many request bodies; try again later")
        shared.held += count
        self._held += count

    def _release(self) -> None:
        self._shared.held -= self._held
        self._held = 0

    # Answering: at once, or once the front says so, or in a task

    def _ask(self, body: Body) -> None:
        self._body = None
        self._stage = Stage.ANSWER
        self._computing = True
        try:
            answer = self._shared.front.answer(self._admission, body)
        except Exception:
            log.exception("the front failed to answer a request")
            answer = problem(500, FAILED)
        if isinstance(answer, Response):
            self._give(answer)
        elif isinstance(answer, Pending):
            self._task = answer
            answer.then = self._give
        else:
            waiting = answer
            # A task that is cancelled before it begins leaves what it was to wait for unbegun.
            self._start(self._exchange(waiting)).add_done_callback(lambda _: _close(waiting))

    def _start(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = self._task = asyncio.get_running_loop().create_task(work)
        self._shared.tasks.add(task)
        task.add_done_callback(self._answered)
        return task

    def _give(self, response: Response) -> None:
        """Send what can be sent without waiting; most replies can."""
        self._task = None
        self._computing = False
        if not isinstance(response.body, Sequence) or size(response.body) > JOINED:
            self._start(self._reply(response))
            return
        self._release()
        if self._transport.is_closing():
            return  # the peer left before its reply was out
        self._closes = self._closes or self._shared.draining
        try:
            bodiless = self._opening.head.method == "HEAD"
            buffers = whole(response, close=self._closes, bodiless=bodiless)
            self._outlet.write(b"".join(buffers))
        except ValueError:
            log.exception("a reply broke off")
            self._transport.abort()
            return
        if self._outlet.full:
            self._start(self._outlet.emptied())
        else:
            self._go_on()

    async def _exchange(self, answer: Awaitable[Response]) -> None:
        try:
            response = await answer
        except Exception:
            log.exception("the front failed to answer a request")
            response = problem(500, FAILED)
        self._computing = False
        await self._reply(response)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._shared.tasks.discard(task)
        self._task = None
        self._computing = False
        self._release()
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, ConnectionError):
            log.error("a reply broke off", exc_info=error)
        if error is not None or task.cancelled():
            self._transport.abort()
        elif not self._transport.is_closing():
            self._go_on()

    def _go_on(self) -> None:
        self._admission = _NONE
        # Whoever read "keep-alive" may have sent the next request by now: a drain that began
        # after that reply closes the connection by the next one, or once nobody is accepted.
        if self._closes or (self._shared.closing and not self._inbox):
            self._finish()
        else:
            self._enter(Stage.IDLE, self._shared.patience.idle)
            if self._inbox:
                # Not from here: as many requests as came at once would be as many calls deep.
                asyncio.get_running_loop().call_soon(self._advance)

    # Replying

    async def _reply(self, response: Response) -> None:
        self._closes = self._closes or self._shared.draining
        bodiless = self._opening.head.method == "HEAD"
        if isinstance(response.body, Sequence):
            await self._outlet.send(whole(response, close=self._closes, bodiless=bodiless))
            return
        framing = "" if self._opening.legacy else "transfer-encoding: chunked"
        start = head(response.status, response.headers, framing=framing, close=self._closes)
        frames = aiter(response.body)
        try:
            await self._outlet.send((start,))
            if not bodiless:
                await self._stream(frames)
        finally:
            close = getattr(frames, "aclose", None)
            if close is not None:
                await close()

    async def _stream(self, frames: AsyncIterator[Sequence[Buffer]]) -> None:
        self._computing = True
        async for frame in frames:
            await self._outlet.send(frame if self._opening.legacy else chunk(frame))
        self._computing = False
        if not self._opening.legacy:
            await self._outlet.send((LAST_CHUNK,))

    def pause_writing(self) -> None:
        """Stop sending: the transport holds enough."""
        self._outlet.pause()

    def resume_writing(self) -> None:
        """Send on."""
        self._outlet.resume()

    # Closing

    def _refuse(self, status: int, detail: str) -> None:
        """Reply to what cannot be answered, and close."""
        refusals = self._shared.refusals
        refusals[status] = refusals.get(status, 0) + 1
        response = (self._admission.refusal or problem)(status, detail)
        if status == Overloaded.status:
            response = attrs.evolve(response, headers=(*response.headers, ("retry-after", "1")))
        self._outlet.write(b"".join(whole(response, close=True)))
        self._finish(unread=True)

    def _finish(self, *, unread: bool = False) -> None:
        """Close when the reply is out; a peer that still sends gets its reply all the same."""
        self._body = None
        self._release()
        self._inbox.clear()
        self._enter(Stage.LINGER, self._shared.patience.linger)
        self._pace()
        if self._ended or (self._tls and not unread):
            self._transport.close()
        elif self._transport.can_write_eof():
            self._transport.write_eof()

    def drain(self) -> None:
        """Close if no request has begun; one that has is answered first."""
        if self._stage in (Stage.IDLE, Stage.HEAD) and not self._inbox:
            self._transport.close()

    def abort(self) -> None:
        """Close now, whatever is under way."""
        self._transport.abort()

    # Time

    def _enter(self, stage: Stage, limit: float) -> None:
        self._stage = stage
        self._since = self._shared.clock
        self._limit = limit

    def expire(self, seconds: float) -> None:
        """End what has taken too long; the server calls this as each few `seconds` pass."""
        patience = self._shared.patience
        if self._outlet.owed(seconds, patience.body_rate) > patience.write:
            self._transport.abort()
        elif self._stage is Stage.LINGER and self._outlet.waiting:
            self._since = self._shared.clock  # lingering begins when the reply is out
        elif self._stage is not Stage.ANSWER and self._is_late():
            self._time_out()

    def _is_late(self) -> bool:
        received = 0 if self._body is None else self._body.received
        allowed = self._limit + received / self._shared.patience.body_rate
        return self._shared.clock - self._since > allowed

    def _time_out(self) -> None:
        if self._stage is Stage.LINGER:
            self._transport.abort()
        elif self._stage is Stage.IDLE or not (self._inbox or self._body):
            self._transport.close()
        else:
            self._refuse(408, "the request took too long to arrive")


def _close(answer: Awaitable[Response]) -> None:
    if isinstance(answer, Coroutine):
        answer.close()


def _is_loopback(peer: Any) -> bool:
    if not peer:
        return False  # it left before it could be asked
    address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
