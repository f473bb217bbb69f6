"""What runs in a worker process: one model behind a front, asked over sockets it is handed.

    python -m maas.worker FD

`FD` is an inherited socket. Through it come the order, JSON after its length, and then
connections, each an open socket beside one byte. Back goes one line of JSON: that the model is
ready, or why it is not. The end of that socket, be it that the server dismisses its worker or
that the server is gone, is the end of the process.
"""

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import attrs

from maas import wire
from maas.limits import Limits
from maas.model import Model, connect
from maas.server.connection import Connection, Shared
from maas.server.guard import GRANTS
from maas.server.handler import Handler
from maas.server.patience import Patience
from maas.server.runner import fastest_loop
from maas.server.warmup import warm_up
from maas.store import load

__all__ = ["attend", "main"]

_FOREVER = 86_400.0
"""Seconds to warm up: the server, which knows how long a start may take, ends it sooner."""


@attrs.frozen(kw_only=True)
class Order:
    """What a worker is to do."""

    target: str
    name: str
    device: str | None
    path: list[str]
    limits: dict[str, int]
    example: str | None

    def examples(self) -> tuple[Any, ...] | None:
        """The arguments of the example call, which came as a message of the wire format."""
        if self.example is None:
            return None
        call: Any = wire.decode(bytearray(base64.b64decode(self.example)), Limits(**self.limits))
        return call.args  # type: ignore[no-any-return]


def main(descriptor: int) -> None:
    """Serves until the other end of the socket is closed; does not return."""
    # Signals of the terminal and of a service manager reach the whole group; the server, which
    # drains on them, decides when its workers go.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    control = socket.socket(fileno=descriptor)
    order = Order(**json.loads(_received(control, int.from_bytes(_received(control, 8)))))
    sys.path[:] = order.path
    threading.Thread(target=_leave_with, args=(control,), daemon=True).start()
    try:
        model = _warm(order)
    except BaseException as error:  # noqa: BLE001 - a target may raise anything at its import
        reason = f"{type(error).__name__}: {error}"
        _say(control, {"failed": reason, "traceback": traceback.format_exc()})
        sys.exit(1)
    handler = Handler({order.name: model}, allow=GRANTS, limits=Limits(**order.limits))
    _say(control, {"ready": True})
    with asyncio.Runner(loop_factory=fastest_loop) as runner:
        runner.run(attend(control, handler))
        sys.stdout.flush()
        sys.stderr.flush()
        # Without waiting for threads: a model may still compute what nobody waits for.
        os._exit(0)


def _received(control: socket.socket, count: int) -> bytes:
    """So many bytes, and not one more: beside the next there may be a connection."""
    data = bytearray()
    while len(data) < count:
        part = control.recv(count - len(data))
        if not part:
            sys.exit("the server left before it said what to do")
        data += part
    return bytes(data)


def _leave_with(control: socket.socket) -> None:
    """Ends the process if its server goes while the model is being loaded, which takes long."""
    with contextlib.suppress(OSError):
        if control.recv(1, socket.MSG_PEEK):
            return
    os._exit(0)


def _say(control: socket.socket, data: dict[str, Any]) -> None:
    control.sendall(json.dumps(data).encode() + b"\n")


def _warm(order: Order) -> Model[..., Any]:
    """The model, once it has answered an example."""
    model = _model(order)
    if order.device is not None and model.info.device != order.device:
        raise TypeError(
            f"{order.target} is a maas.Model on {model.info.device}, "
            f"which is not moved to {order.device}; name the module itself"
        )
    warm_up(model, order.examples(), _FOREVER)
    return model


def _model(order: Order) -> Model[..., Any]:
    if Path(order.target).is_dir():
        return load(order.target, name=order.name, device=order.device)
    options = {} if order.device is None else {"device": order.device}
    return connect(f"local:{order.target}", **options)


async def attend(control: socket.socket, handler: Handler) -> None:
    """Answers on each connection that comes through `control`, until that is closed."""
    loop = asyncio.get_running_loop()
    shared = Shared(handler, Patience(max_connections=2**31, bodies=2**62))
    control.setblocking(False)
    ended = asyncio.Event()
    taking: set[asyncio.Task[Any]] = set()

    def arrive() -> None:
        try:
            byte, descriptors, _flags, _address = socket.recv_fds(control, 1, 1)
        except BlockingIOError:
            return
        except OSError:
            byte, descriptors = b"", []
        if not byte:
            loop.remove_reader(control)
            ended.set()
        for descriptor in descriptors:
            sock = socket.socket(fileno=descriptor)
            sock.setblocking(False)
            task = loop.create_task(loop.connect_accepted_socket(lambda: Connection(shared), sock))
            taking.add(task)
            task.add_done_callback(taking.discard)

    loop.add_reader(control, arrive)
    await ended.wait()
    for connection in tuple(shared.connections):
        connection.abort()


if __name__ == "__main__":
    main(int(sys.argv[1]))
