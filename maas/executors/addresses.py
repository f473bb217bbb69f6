"""URLs to executors: what `connect("https://...")` asks through.

The lean transport over sockets carries every call but those that ask for a proxy,
which httpx knows well. Nothing is sent here.
"""

import errno
import importlib
import ipaddress
import os
import ssl
import urllib.parse
from typing import Any

from maas.executors.remote import RemoteExecutor
from maas.limits import Limits
from maas.transports.base import Transport

__all__ = ["connect_url", "is_loopback"]


def connect_url(
    url: str,
    *,
    auth: str | None = None,
    verify: "ssl.SSLContext | str | None" = None,
    insecure: bool = False,
    proxy: str | None = None,
    limits: Limits | None = None,
    connect_timeout: float = 10.0,
) -> RemoteExecutor:
    """The executor for a URL; nothing is sent yet.

    Raises
    ------
    ValueError
        A URL that names no place, or a key that would travel unencrypted off this machine.
    """
    parts = urllib.parse.urlsplit(url)
    unix = parts.scheme == "http+unix"
    named = bool(parts.netloc if unix else parts.hostname)
    if parts.query or parts.fragment or "@" in parts.netloc or not named:
        # The part before an @ may be a password.
        shown = url if "@" not in parts.netloc else f"{parts.scheme}://...@{parts.hostname}"
        place = "%2Fpath%2Fof%2Fsocket" if unix else "host:port"
        raise ValueError(
            f"{shown!r} names no place; write {parts.scheme}://{place}/model, a key as auth="
        )
    if verify is not None and parts.scheme != "https":
        raise TypeError(f"verify= makes no sense for {parts.scheme}://; drop it, or use https://")
    if (
        auth is not None
        and parts.scheme == "http"
        and not insecure
        and not is_loopback(parts.hostname)
    ):
        raise ValueError(
            f"the key would travel unencrypted to {parts.netloc}; use https://, or insecure=True"
        )
    tls = _tls(verify) if parts.scheme == "https" else None
    if proxy is not None:
        if unix:
            raise TypeError("proxy= makes no sense for a unix socket; drop it")
        transport: Transport = _by_httpx(url, tls, proxy, connect_timeout)
    else:
        transport = _by_socket(parts, tls, connect_timeout)
    where = url.rstrip("/")
    return RemoteExecutor(transport, parts.path, where, auth=auth, limits=limits)


def is_loopback(host: str | None) -> bool:
    """Whether what is sent to that host stays on this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _tls(verify: "ssl.SSLContext | str | None") -> ssl.SSLContext:
    if isinstance(verify, ssl.SSLContext):
        return verify
    if verify is not None and not os.path.isfile(verify):  # noqa: PTH113 - what ssl takes
        # ssl's own error does not say which file.
        raise FileNotFoundError(errno.ENOENT, "verify= names no file", verify)
    context = ssl.create_default_context(cafile=verify)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _by_socket(
    parts: urllib.parse.SplitResult, tls: ssl.SSLContext | None, connect_timeout: float
) -> Transport:
    sockets = importlib.import_module("maas.transports.sockets")
    if parts.scheme == "http+unix":
        address: tuple[Any, ...] = ("unix", urllib.parse.unquote(parts.netloc))
        host = "localhost"
    else:
        address = ("tcp", parts.hostname, parts.port or (443 if tls else 80))
        host = parts.netloc
    transport: Transport = sockets.SocketTransport(
        address,
        tls=tls,
        server_name=parts.hostname if tls else None,
        host=host,
        connect_timeout=connect_timeout,
    )
    return transport


def _by_httpx(
    url: str, tls: ssl.SSLContext | None, proxy: str, connect_timeout: float
) -> Transport:
    proxied = importlib.import_module("maas.transports.proxied")
    transport: Transport = proxied.through(proxy, url, tls=tls, connect_timeout=connect_timeout)
    return transport
