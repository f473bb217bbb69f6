"""`Server`, which stands in front of models, and `serve`, which gives it a door of its own."""

import contextlib
import os
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

from maas.errors import DeadlineExceeded, NotFound
from maas.executors.addresses import is_loopback
from maas.executors.batching import BatchingExecutor
from maas.executors.remote import RemoteExecutor
from maas.executors.spawning import connect_workers, worker_name, worker_target
from maas.limits import Leases, Limits
from maas.model import Model, model_name
from maas.server.admission import MAX_PENDING
from maas.server.asgi import respond
from maas.server.catalogue import Version
from maas.server.collectors import Collector
from maas.server.guard import DEFAULT_GRANTS
from maas.server.handler import Handler
from maas.server.patience import Patience
from maas.server.runner import Background, Runner, run
from maas.server.warmup import warm_up
from maas.transports.inprocess import InProcessTransport

__all__ = ["Running", "Server", "serve"]


class Server:
    """Models behind an address: an ASGI app, and a place that `connect` knows.

    Parameters
    ----------
    models : one target or Model, or several by name. A model that itself runs elsewhere makes this
        a gateway.
    auth : a key, several keys, or the `pathlib.Path` of a key file; None lets everybody in.
    allow : what callers may do: `"call"` and `"describe"` unless told more.
    limits : what one message may hold, both ways.
    leases : what is kept for one caller between messages: graphs, and copies in training.
    tracebacks : whether callers are told where in the model an error arose.
    quotas : what each key may ask that its key file gives no quota: limits of `requests`, `rows`
        and `bytes`, as `{"requests": "100/second", "rows": "5000/minute; 1000000/day"}`.
    max_pending : calls that one model may have in hand, waiting and running; one more is refused
        with `Overloaded`.
    on_loop : models whose runs are measured to be short, most of them less than 5 ms, run on the
        loop that reads and writes, where nothing is handed over; one that holds it goes back to a
        thread. False keeps all in threads.
    workers : how many processes run each model; None runs them in this one. A worker finds its
        model itself, so targets are then import paths (`"package.module:name"`), functions that
        can be imported, or model folders.
    devices : torch devices for the workers, dealt out in turn.
    jobs : folder where training jobs are kept; None to keep none. Those that it holds go on.
    collect : a `maas.data.Collect`, or one for each of some models by name: what these are asked
        is kept, to learn from. They then run in threads. None keeps nothing.
    """

    def __init__(
        self,
        models: Any,
        *,
        auth: str | Iterable[str] | Path | None = None,
        allow: Iterable[str] = DEFAULT_GRANTS,
        limits: Limits | None = None,
        leases: Leases | None = None,
        tracebacks: bool = True,
        quotas: Mapping[str, str] | None = None,
        max_pending: int = MAX_PENDING,
        on_loop: bool = True,
        workers: int | None = None,
        devices: Sequence[str] = (),
        jobs: str | os.PathLike[str] | None = None,
        collect: Collector | Mapping[str, Collector] | None = None,
    ) -> None:
        if devices and workers is None:
            raise TypeError("devices= is for workers; give workers= as well, or a Model its device")
        self._workers = workers
        self._devices = devices
        self._limits = limits
        self.handler = Handler(
            {},
            auth=auth,
            allow=allow,
            limits=limits,
            leases=leases,
            tracebacks=tracebacks,
            quotas=quotas,
            max_pending=max_pending,
            on_loop=on_loop,
            jobs=None if jobs is None else Path(jobs),
            collect=collect,
        )
        try:
            for address, target in self._named(models).items():
                self._add(address, target, ready=True)
            self.handler.open()
        except BaseException:
            self.close()
            raise

    def _named(self, models: Any) -> Mapping[str, Any]:
        if not isinstance(models, Mapping):
            models = {self._own_name(models): models}
        if not models:
            raise ValueError("a server wants at least one model")
        found: Mapping[str, Any] = models
        return found

    def _own_name(self, target: Any) -> str:
        if isinstance(target, Model):
            return target.name
        if self._workers is None:
            return model_name(target)
        return worker_name(worker_target(target))

    def _add(self, address: str, target: Any, *, ready: bool, example: Any = None) -> Version:
        catalogue = self.handler.catalogue
        if isinstance(target, Model):
            return catalogue.add(address, target, owned=False, ready=ready)
        model = self._wrapped(address.partition("@")[0], target, example)
        try:
            return catalogue.add(address, model, owned=True, ready=ready)
        except ValueError:
            model.close()
            raise

    def _wrapped(self, name: str, target: Any, example: Any) -> Model[..., Any]:
        if self._workers is None:
            return Model(target, name=name)
        executor = connect_workers(
            f"workers:{worker_target(target)}",
            count=self._workers,
            devices=self._devices,
            example=example,
            name=name,
            limits=self._limits,
        )
        return Model.over(executor, name)

    def load(
        self, address: str, target: Any, *, example: Any = None, timeout: float = 300.0
    ) -> str:
        """Adds a version of a model while the server runs, once it has answered an example.

        `load("net@v2", target)` adds the version beside the others; nothing else changes, until
        `alias("net", "net@v2")`. `load("net", target)` adds the next number and lets it replace
        the version that `net` means, which is then unloaded. A failure leaves all as it was.

        Parameters
        ----------
        address : `name@version`, or `name` alone.
        target : what to serve: a target, or a Model.
        example : one argument, or a tuple of them; zeros of the declared shapes by default, for a
            torch module whose signature declares them.
        timeout : seconds for the model to become ready and to answer the example.

        Returns
        -------
        str
            The address of the version, such as `"net@v2"`.

        Raises
        ------
        ValueError
            The address is none, or is taken.
        DeadlineExceeded
            Not ready in time.
        Exception
            What the model raised.
        """
        catalogue = self.handler.catalogue
        new = self._add(address, target, ready=False, example=example)
        try:
            warm_up(new.model, example, timeout)
        except BaseException:
            catalogue.discard(new)
            raise
        new.ready = True
        if new.address != address:
            catalogue.replace(new)
        return new.address

    def alias(self, name: str, address: str) -> None:
        """From now on `name` means the version at `address`.

        Calls that were taken before run to their end on the version they found, and that version
        stays loaded.

        Raises
        ------
        NotFound
            There is no such version.
        NotReady
            It is still being loaded.
        ValueError
            The name cannot be an alias.
        """
        self.handler.catalogue.alias(name, address)

    def unload(self, address: str, *, timeout: float | None = 30.0) -> None:
        """Removes a version, `"net@v1"`, or a model with all its versions, `"net"`.

        New calls do not find it; those that run, and streams, go on to their end, and then it is
        closed, unless it was given as a Model: its maker closes that.

        Raises
        ------
        NotFound
            There is no such version or model.
        ValueError
            A name means the version; `alias` it to another one first.
        DeadlineExceeded
            Calls still run after `timeout` seconds; they go on, and it is closed after the last.
        """
        until = None if timeout is None else time.monotonic() + timeout
        for version in self.handler.catalogue.remove(address):
            left = None if until is None else max(0.0, until - time.monotonic())
            if not version.closed.wait(left):
                raise DeadlineExceeded(
                    f"{version.address} still runs {version.calls} calls; it is closed after them"
                )

    def ready(self, timeout: float = 600.0) -> None:
        """Returns once what the server itself wrapped takes calls.

        Raises
        ------
        NotReady
            The workers of a model cannot start; the message says why.
        DeadlineExceeded
            Not within `timeout` seconds.
        """
        until = time.monotonic() + timeout
        for version in self.handler.catalogue.versions:
            if version.owned:
                version.executor.ready(max(0.0, until - time.monotonic()))

    def close(self) -> None:
        """Unloads every model, and closes what the server itself wrapped, workers among it.

        Training jobs go on; a server over the same folder finds them.
        """
        self.handler.close()
        for name in self.handler.catalogue.names:
            with contextlib.suppress(NotFound, DeadlineExceeded):
                self.unload(name)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        await respond(self.handler, scope, receive, send)

    def __maas_executor__(
        self, *, model: str | None = None, auth: str | None = None, limits: Limits | None = None
    ) -> tuple[RemoteExecutor, str]:
        """What `connect(server)` asks through: everything but the socket."""
        path = "/" if model is None else f"/{model}"
        executor = RemoteExecutor(InProcessTransport(self), path, "wire", auth=auth, limits=limits)
        return executor, model or next(iter(self.handler.models))


class Running:
    """A server in the background: `url` is its address, `close()` (or `with`) drains it."""

    def __init__(self, background: Background, close: Callable[[], None]) -> None:
        self._background = background
        self._close = close
        self.url = background.url

    def close(self) -> None:
        """Takes no new calls, finishes those in flight, and stops."""
        self._background.stop()
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<maas server {self.url}>"


def serve(
    models: Any,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    uds: str | None = None,
    tls_cert: str | None = None,
    tls_key: str | None = None,
    auth: str | Iterable[str] | Path | None = None,
    allow: Iterable[str] = DEFAULT_GRANTS,
    limits: Limits | None = None,
    leases: Leases | None = None,
    tracebacks: bool = True,
    quotas: Mapping[str, str] | None = None,
    max_pending: int = MAX_PENDING,
    on_loop: bool = True,
    workers: int | None = None,
    devices: Sequence[str] = (),
    jobs: str | os.PathLike[str] | None = None,
    collect: Collector | Mapping[str, Collector] | None = None,
    insecure: bool = False,
    patience: Patience | None = None,
    block: bool = True,
) -> Running:
    """Serve models over HTTP, on this machine only unless told otherwise.

    Parameters
    ----------
    models, auth, allow, limits, leases, tracebacks, quotas, max_pending, on_loop : as `Server` has
        them; `models` may be a `Server`.
    workers, devices : as `Server` has them; it listens once one worker of each model is ready.
    jobs, collect : as `Server` has them.
    host, port : where to listen; port 0 takes a free one.
    uds : path of a unix socket to listen on instead.
    tls_cert, tls_key : files of a certificate chain and its key, to speak TLS.
    insecure : allow a host off loopback without `auth` and TLS.
    patience : deadlines for peers, and how many at once.
    block : serve until SIGTERM or Ctrl-C, and return a server that has stopped; False serves in
        the background and returns at once.

    Raises
    ------
    ValueError
        A host that others reach, without a key and TLS.
    OSError
        The address is taken.
    """
    made = not isinstance(models, Server)
    if not made and (workers is not None or devices or jobs is not None or collect is not None):
        raise TypeError(
            "workers=, devices=, jobs= and collect= are the Server's own; give them to maas.Server"
        )
    server = (
        Server(
            models,
            auth=auth,
            allow=allow,
            limits=limits,
            leases=leases,
            tracebacks=tracebacks,
            quotas=quotas,
            max_pending=max_pending,
            on_loop=on_loop,
            workers=workers,
            devices=devices,
            jobs=jobs,
            collect=collect,
        )
        if made
        else models
    )
    close = server.close if made else _leave_open
    try:
        tls = _tls(tls_cert, tls_key)
        _check_reach(server, host, unix=uds is not None, secure=tls is not None, insecure=insecure)
        runner = Runner(server.handler, host=host, port=port, uds=uds, tls=tls, patience=patience)
        server.handler.metrics.connections = runner.connections
        background = Background(runner)
        server.ready()
        if block:
            run(runner, on_ready=partial(_announce, server))
            close()
        else:
            background.start()
    except BaseException:
        close()
        raise
    return Running(background, close)


def _leave_open() -> None:
    """A Server that was given is its maker's to close."""


def _check_reach(server: Server, host: str, *, unix: bool, secure: bool, insecure: bool) -> None:
    """Who can reach the server must need a key and TLS, unless it is this machine alone."""
    locked = server.handler.guard.locked
    local = unix or is_loopback(host)
    if not local and not (locked and secure) and not insecure:
        raise ValueError(
            f"{host} can be reached by others: give auth= and tls_cert=, tls_key=, "
            "or say insecure=True if something else protects it"
        )
    if local and not unix and not locked:
        # A web page could point its own host name at this machine and ask through the visitor's
        # browser.
        server.handler.hosts = frozenset({"localhost", "127.0.0.1", "[::1]", host.lower()})


def _announce(server: Server, runner: Runner) -> None:
    names = ", ".join(server.handler.models)
    print(f"maas serves {names} at {runner.url}", flush=True)  # noqa: T201 - for the person who waits
    for line in _unshared(server.handler.models):
        print(line, flush=True)  # noqa: T201


def _unshared(models: Mapping[str, Model[..., Any]]) -> Iterator[str]:
    """Why calls share no runs although they were meant to."""
    for name, model in models.items():
        if isinstance(model.executor, BatchingExecutor):
            for method, told in model.info.details["batching"].items():
                for why in told["alone"]:
                    yield f"{name}: each call of {method} {why}"


def _tls(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    if certificate is None:
        if key is not None:
            raise ValueError("tls_key= without tls_cert=; give both")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    return context
