"""The front as an ASGI app, to be mounted under any prefix of FastAPI, Starlette or another host.

It needs no lifespan, which a mounted app would not get. Deadlines for receiving heads and
the number of connections are the host's here; sizes, keys and all behind the head hold as ever.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from maas.errors import DeadlineExceeded, Error, LimitExceeded
from maas.http import Response
from maas.server.forms import problem
from maas.server.front import Admission, Front, Head
from maas.server.replies import size

__all__ = ["respond"]

_Event = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Event]]
_Send = Callable[[_Event], Awaitable[None]]

_BODY_SECONDS = 30.0
"""How long a peer may take from one piece of its body to the next."""


async def respond(front: Front, scope: _Event, receive: _Receive, send: _Send) -> None:
    """Answers one ASGI connection."""
    if scope["type"] != "http":
        await _decline(scope, receive, send)
        return
    decision = front.admit(_head(scope))
    if isinstance(decision, Admission):
        body = await _body(scope, receive, decision)
        if body is None:
            return
        if isinstance(body, Response):
            decision = body
        else:
            await _while_connected(_answer(front, decision, body, send), receive)
            return
    await _send_whole(decision, send)


async def _decline(scope: _Event, receive: _Receive, send: _Send) -> None:
    if scope["type"] == "lifespan":
        while (event := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{event['type']}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
    elif scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1000})


def _head(scope: _Event) -> Head:
    path = scope["path"]
    root = scope.get("root_path", "")
    client = scope.get("client")
    return Head(
        method=scope["method"],
        path=path.removeprefix(root) or "/",
        query=scope.get("query_string", b"").decode("latin-1"),
        headers=tuple(
            (name.decode("latin-1").lower(), value.decode("latin-1"))
            for name, value in scope["headers"]
        ),
        secure=scope.get("scheme") == "https",
        root=root,
        loopback=client is None or client[0] in ("127.0.0.1", "::1"),
    )


async def _body(
    scope: _Event, receive: _Receive, admission: Admission
) -> bytearray | Response | None:
    """The whole body; a refusal; or None when the peer left."""
    cap = admission.body_cap
    told = next(
        (value for name, value in scope["headers"] if name.lower() == b"content-length"), b"0"
    )
    if told.isdigit() and int(told) > cap:
        return _refusal(
            admission, LimitExceeded(f"a body of {int(told)} bytes; this server takes {cap}")
        )
    body = bytearray()
    more = True
    while more:
        try:
            event = await asyncio.wait_for(receive(), _BODY_SECONDS)
        except TimeoutError:
            return _refusal(
                admission,
                DeadlineExceeded(f"nothing more of the body came for {_BODY_SECONDS:.0f} seconds"),
            )
        if event["type"] == "http.disconnect":
            return None
        body += event.get("body", b"")
        more = event.get("more_body", False)
        if len(body) > cap:
            return _refusal(
                admission,
                LimitExceeded(f"a body of more than {cap} bytes; this server takes no more"),
            )
    return body


def _refusal(admission: Admission, error: Error) -> Response:
    if admission.refusal is None:
        return problem(error)
    return admission.refusal(error.status, str(error))


async def _answer(front: Front, admission: Admission, body: bytearray, send: _Send) -> None:
    answer = front.answer(admission, body)
    response = answer if isinstance(answer, Response) else await answer
    if not isinstance(response.body, AsyncIterator):
        await _send_whole(response, send)
        return
    async with contextlib.aclosing(response.body) as frames:  # type: ignore[type-var]
        await send(_start(response))
        async for frame in frames:
            await send({"type": "http.response.body", "body": b"".join(frame), "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _while_connected(answering: Awaitable[None], receive: _Receive) -> None:
    """Runs the answer, and cancels it when the peer leaves."""
    answer = asyncio.ensure_future(answering)
    departure = asyncio.ensure_future(_departure(receive))
    try:
        await asyncio.wait({answer, departure}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            answer.result()
    finally:
        for task in (answer, departure):
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task


async def _departure(receive: _Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _start(response: Response, extra: tuple[tuple[bytes, bytes], ...] = ()) -> _Event:
    headers = [
        (name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers
    ]
    return {"type": "http.response.start", "status": response.status, "headers": [*headers, *extra]}


async def _send_whole(response: Response, send: _Send) -> None:
    parts: Any = response.body
    length = str(size(parts)).encode()
    await send(_start(response, ((b"content-length", length),)))
    for part in parts:
        # Some ASGI servers take nothing but bytes.
        await send({"type": "http.response.body", "body": bytes(part), "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
