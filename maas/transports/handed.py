"""Connections that are handed to the other process: socket pairs, no address, no port.

Each connection is a pair made here. One end is kept, the other is passed to the process
through a socket that it inherited (`SCM_RIGHTS`), so nobody else can ever connect.
"""

import socket

from maas.errors import TransportError
from maas.http import Request
from maas.transports.connections import Socket, Wire
from maas.transports.exchange import Exchange
from maas.transports.sockets import SocketTransport

__all__ = ["HandedTransport"]


class HandedTransport(SocketTransport):
    """Carries requests to the process at the other end of `control`."""

    def __init__(self, control: socket.socket, what: str) -> None:
        super().__init__(("unix", what), tls=None, server_name=None, host="localhost")
        self._control = control

    def _exchange(
        self, request: Request, deadline: float | None, cap: int, *, streamed: bool = False
    ) -> Exchange:
        if not self._let_go.alive:  # by whoever heard that the process is gone, maybe just now
            raise TransportError(f"{self._where} is gone")
        return super()._exchange(request, deadline, cap, streamed=streamed)

    def _connect(self, _deadline: float | None) -> Socket:
        return Socket(self._handed())

    async def _open_wire(self, _deadline: float | None) -> Wire:
        sock = self._handed()
        sock.setblocking(False)
        return await self._adopt(sock)

    def _handed(self) -> socket.socket:
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    socket.send_fds(self._control, [b"c"], [theirs.fileno()])
                except OSError:
                    ours.close()
                    raise
        except OSError as error:
            raise TransportError(f"cannot connect to {self._where}: {error}") from error
        return ours
