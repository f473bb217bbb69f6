"""`Server`, which stands in front of models, and `serve`, which gives it a door of its own."""

import ssl
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

from maas.executors.addresses import is_loopback
from maas.executors.remote import RemoteExecutor
from maas.limits import Limits
from maas.model import Model, model_name
from maas.server.admission import MAX_PENDING
from maas.server.asgi import respond
from maas.server.guard import DEFAULT_GRANTS
from maas.server.handler import Handler
from maas.server.patience import Patience
from maas.server.runner import Background, Runner, run
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
    tracebacks : whether callers are told where in the model an error arose.
    quotas : what each key may ask that its key file gives no quota: limits of `requests`, `rows`
        and `bytes`, as `{"requests": "100/second", "rows": "5000/minute; 1000000/day"}`.
    max_pending : calls that one model may have in hand, waiting and running; one more is refused
        with `Overloaded`.
    """

    def __init__(
        self,
        models: Any,
        *,
        auth: str | Iterable[str] | Path | None = None,
        allow: Iterable[str] = DEFAULT_GRANTS,
        limits: Limits | None = None,
        tracebacks: bool = True,
        quotas: Mapping[str, str] | None = None,
        max_pending: int = MAX_PENDING,
    ) -> None:
        self.handler = Handler(
            _named(models),
            auth=auth,
            allow=allow,
            limits=limits,
            tracebacks=tracebacks,
            quotas=quotas,
            max_pending=max_pending,
        )

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


def _named(models: Any) -> dict[str, Model[..., Any]]:
    if not isinstance(models, Mapping):
        models = {models.name if isinstance(models, Model) else model_name(models): models}
    if not models:
        raise ValueError("a server wants at least one model")
    return {
        name: target if isinstance(target, Model) else Model(target, name=name)
        for name, target in models.items()
    }


class Running:
    """A server in the background: `url` is its address, `close()` (or `with`) drains it."""

    def __init__(self, background: Background) -> None:
        self._background = background
        self.url = background.url

    def close(self) -> None:
        """Takes no new calls, finishes those in flight, and stops."""
        self._background.stop()

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
    tracebacks: bool = True,
    quotas: Mapping[str, str] | None = None,
    max_pending: int = MAX_PENDING,
    insecure: bool = False,
    patience: Patience | None = None,
    block: bool = True,
) -> Running:
    """Serve models over HTTP, on this machine only unless told otherwise.

    Parameters
    ----------
    models, auth, allow, limits, tracebacks, quotas, max_pending : as `Server` has them; `models`
        may be a `Server`.
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
    server = (
        models
        if isinstance(models, Server)
        else Server(
            models,
            auth=auth,
            allow=allow,
            limits=limits,
            tracebacks=tracebacks,
            quotas=quotas,
            max_pending=max_pending,
        )
    )
    local = uds is not None or is_loopback(host)
    locked = server.handler.guard.locked and (tls_cert is not None)
    if not local and not locked and not insecure:
        raise ValueError(
            f"{host} can be reached by others: give auth= and tls_cert=, tls_key=, "
            "or say insecure=True if something else protects it"
        )
    if local and uds is None and not server.handler.guard.locked:
        # A web page could point its own host name at this machine and ask through the visitor's
        # browser.
        server.handler.hosts = frozenset({"localhost", "127.0.0.1", "[::1]", host.lower()})
    runner = Runner(
        server.handler,
        host=host,
        port=port,
        uds=uds,
        tls=_tls(tls_cert, tls_key),
        patience=patience,
    )
    background = Background(runner)
    if block:
        run(runner, on_ready=partial(_announce, server))
    else:
        background.start()
    return Running(background)


def _announce(server: Server, runner: Runner) -> None:
    names = ", ".join(server.handler.models)
    print(f"maas serves {names} at {runner.url}", flush=True)  # noqa: T201 - for the person who waits


def _tls(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    if certificate is None:
        if key is not None:
            raise ValueError("tls_key= without tls_cert=; give both")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    return context
