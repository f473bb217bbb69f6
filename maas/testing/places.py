"""The places where one and the same model can run, for tests that run in each.

    here    in this process
    wire    here, through everything but a socket
    asgi    the same, mounted under a prefix in another ASGI app
    unix    another thread's server, by a unix socket
    http    the same, by TCP on the loopback interface
    workers in a process of its own, if a worker can find it there (`worker_place.py`)

Each grants everything, since a program may do everything here.
A place is a row of `PLACES`: what opens it for a model, and why there is none on this
machine. A `Connector` keeps what it opened warm, since a property that starts
a server per example would spend its time on that.
"""

import contextlib
import shutil
import socket
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import attrs

from maas.batching import Batching
from maas.executors.remote import RemoteExecutor
from maas.model import Model, connect
from maas.server.app import Running, Server, serve
from maas.server.guard import GRANTS
from maas.testing.worker_place import opened_in_worker
from maas.transports.inprocess import ASGIApp, InProcessTransport

__all__ = ["PLACES", "Connector", "Mounted", "Place"]

_Event = MutableMapping[str, Any]
_MOST_OPEN = 16
"""Kept open at once, by each place: a server with its loop and one caller costs a thread and nine
file descriptors, 25 once eight called at the same time, and often a process has 1,024."""
_MOST_WORKERS = 4
"""A process with torch and what the tests import takes 300 MB."""


class Mounted:
    """An ASGI app that holds another one under a prefix, and tells it so as Starlette does."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(
        self,
        scope: _Event,
        receive: Callable[[], Awaitable[_Event]],
        send: Callable[[_Event], Awaitable[None]],
    ) -> None:
        """ASGI."""
        if not scope["path"].startswith(f"{self._prefix}/"):
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b"nothing is mounted here"})
            return
        # The path stays whole: `root_path` says how much of it is not the inner app's.
        root = scope.get("root_path", "") + self._prefix
        await self._app({**scope, "root_path": root}, receive, send)


Opener = Callable[[Model[..., Any], contextlib.ExitStack], Model[..., Any]]
"""Gives a model that runs at the place; what is to be closed afterwards goes on the stack."""


def _open_here(model: Model[..., Any], _stack: contextlib.ExitStack) -> Model[..., Any]:
    return connect(model)


def _open_wire(model: Model[..., Any], stack: contextlib.ExitStack) -> Model[..., Any]:
    return stack.enter_context(connect(Server(model, allow=GRANTS), model=model.name))


def _open_asgi(model: Model[..., Any], stack: contextlib.ExitStack) -> Model[..., Any]:
    transport = InProcessTransport(Mounted(Server(model, allow=GRANTS), "/models"))
    executor = RemoteExecutor(transport, f"/models/{model.name}", "asgi")
    return stack.enter_context(Model.over(executor, model.name))


def _open_unix(model: Model[..., Any], stack: contextlib.ExitStack) -> Model[..., Any]:
    # Not the test's own folder: a socket's path has 107 characters at most.
    folder = tempfile.mkdtemp(prefix="maas-")
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    running = serve(model, uds=str(Path(folder, "s")), allow=GRANTS, block=False)
    return _by_address(running, model.name, stack)


def _open_http(model: Model[..., Any], stack: contextlib.ExitStack) -> Model[..., Any]:
    running = serve(model, port=0, allow=GRANTS, block=False)
    return _by_address(running, model.name, stack)


def _by_address(running: Running | None, name: str, stack: contextlib.ExitStack) -> Model[..., Any]:
    assert running is not None  # noqa: S101 - for the type checker: it does not block
    stack.enter_context(running)
    # Closed before the server, which then has no connection to wait for.
    return stack.enter_context(connect(f"{running.url}/{name}"))


@attrs.frozen
class Place:
    """One place; `missing` says why this machine has none, and is empty where it has.

    Without `open` what runs there is made there, of the bare target.
    """

    name: str
    open: Opener | None
    missing: str = ""
    most: int = _MOST_OPEN


_NO_UNIX = "" if hasattr(socket, "AF_UNIX") else "this platform has no unix sockets"

PLACES: dict[str, Place] = {
    place.name: place
    for place in (
        Place("here", _open_here),
        Place("wire", _open_wire),
        Place("asgi", _open_asgi),
        Place("unix", _open_unix, _NO_UNIX),
        Place("http", _open_http),
        Place("workers", None, _NO_UNIX, _MOST_WORKERS),
    )
}


def _nothing() -> None:
    """Called once, so that the first call a test makes is as fast as the second."""


class Connector:
    """`connector(target)` is a Model of `target` that runs at this connector's `place`.

    Equal targets with equal options share what was opened for them, and each call gives a
    handle of its own. The least recently used is closed when as many are open as the place
    allows. With `max_batch_size` every target that can be batched is.
    """

    def __init__(self, place: str, *, max_batch_size: int | None = None) -> None:
        self.place = place
        self._place = PLACES[place]
        self.batching = None if max_batch_size is None else Batching(max_batch_size)
        self._lock = threading.Lock()
        self._open: OrderedDict[Any, tuple[Any, Model[..., Any], contextlib.ExitStack]]
        self._open = OrderedDict()
        if self._place.open is not None:
            self(_nothing)()

    def __call__(self, target: Any, **options: Any) -> Model[..., Any]:
        """A Model of `target` here; `options` are those of `maas.Model`."""
        # By identity: a module that is equal to another one is still another one.
        key = (id(target), *((name, id(value)) for name, value in sorted(options.items())))
        with self._lock:
            if key not in self._open:
                self._make_room()
                self._open[key] = self._opened(target, options)
            self._open.move_to_end(key)
            _held, model, _stack = self._open[key]
        # Another handle: one test's train mode is not the next one's.
        return model.with_options()

    def _opened(
        self, target: Any, options: dict[str, Any]
    ) -> tuple[Any, Model[..., Any], contextlib.ExitStack]:
        with contextlib.ExitStack() as stack:
            if self._place.open is None:
                model = opened_in_worker(target, options, stack)
                return (target, *options.values()), model, stack.pop_all()
            own = target if isinstance(target, Model) else self._wrapped(target, options)
            if own is not target:
                stack.callback(own.close)
            model = self._place.open(own, stack)
            # What is held cannot be collected, so its id stays its own.
            return (target, *options.values()), model, stack.pop_all()
        raise AssertionError  # for the type checker: an ExitStack may swallow exceptions

    def _wrapped(self, target: Any, options: dict[str, Any]) -> Model[..., Any]:
        if self.batching is not None:
            # Most functions in a test suite do not say that they may be run again.
            with contextlib.suppress(ValueError):
                return Model(target, **{"batching": self.batching, **options})
        return Model(target, **options)

    def _make_room(self) -> None:
        while len(self._open) >= self._place.most:
            _key, (_held, _model, stack) = self._open.popitem(last=False)
            stack.close()

    def close(self) -> None:
        """Closes every handle and every server."""
        with self._lock:
            while self._open:
                _key, (_held, _model, stack) = self._open.popitem()
                stack.close()
