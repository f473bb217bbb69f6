"""Servers that do what a script tells them, well or badly, on real sockets."""

import asyncio
import contextlib
import threading
import time

import pytest

from maas.loops import run
from maas.transports.sockets import SocketTransport

PATIENCE = 30.0


class Served:
    """One listening socket; `script(reader, writer)` is run for each connection."""

    def __init__(self, script):
        self._script = script
        self.address = None
        self.connections = 0
        self.failures = []

    async def answer(self, reader, writer):
        self.connections += 1
        try:
            with contextlib.suppress(ConnectionError):
                await self._script(reader, writer)
        except asyncio.IncompleteReadError:
            pass
        except Exception as error:
            self.failures.append(error)
        finally:
            writer.close()


class Village:
    """A loop on a thread, on which any number of scripted servers live."""

    def __init__(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._served = []

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)

    def serve(self, script, *, uds=None, tls=None):
        served = Served(script)
        if uds is None:
            start = asyncio.start_server(served.answer, "127.0.0.1", 0, ssl=tls)
        else:
            start = asyncio.start_unix_server(served.answer, uds, ssl=tls)
        server = self.call(start)
        name = server.sockets[0].getsockname()
        served.address = ("unix", name) if uds else ("tcp", *name)
        self._served.append((served, server))
        return served

    def close(self):
        self.call(self._farewell())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()
        assert [failure for served, _ in self._served for failure in served.failures] == []

    async def _farewell(self):
        for _, server in self._served:
            server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)


@pytest.fixture
def village():
    place = Village()
    yield place
    place.close()


@pytest.fixture
def transport_to():
    """Makes transports that are closed after the test."""
    with contextlib.ExitStack() as stack:

        def make(address, **options):
            options = {"tls": None, "server_name": None, "host": "test"} | options
            transport = SocketTransport(address, **options)
            stack.callback(transport.close)
            return transport

        yield make
    # A turn of the loop, so that dropped connections are gone before the next test looks.
    run(asyncio.sleep(0)).result(PATIENCE)


def _on_thread(transport, request, deadline, cap):
    return transport.send(request, deadline, cap)


def _on_loop(transport, request, deadline, cap):
    return run(transport.asend(request, deadline, cap)).result(PATIENCE)


@pytest.fixture(params=[_on_thread, _on_loop], ids=["thread", "loop"])
def send(request):
    """Sends a request on the caller's thread, or on the I/O loop: the promises are the same."""

    def sender(transport, asked, *, seconds=PATIENCE, cap=2**30):
        deadline = None if seconds is None else time.monotonic() + seconds
        return request.param(transport, asked, deadline, cap)

    return sender
