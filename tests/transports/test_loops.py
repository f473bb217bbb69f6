import asyncio
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from maas.loops import Home, io_loop, run

PATIENCE = 60.0
ROOT = Path(__file__).parents[2]


def child(program, *, address=None):
    """What a fresh interpreter prints; anything on its standard error is a failure."""
    start = """
    import asyncio, os, sys, threading, time
    from maas.errors import ForkError
    from maas.http import Request
    from maas.loops import io_loop, run
    from maas.transports.sockets import SocketTransport

    def connect():
        address = ("tcp", "127.0.0.1", int(sys.argv[1]))
        return SocketTransport(address, tls=None, server_name=None, host="test")

    def ask(transport):
        request = Request("POST", "/", (), (b"x",))
        whole = transport.send(request, time.monotonic() + 20, 100)
        again = run(transport.asend(request, time.monotonic() + 20, 100)).result()
        assert whole == again, (whole, again)
        return bytes(whole.body[0]).decode()
    """
    done = subprocess.run(
        [
            *(sys.executable, "-X", "dev", "-W", "error", "-c"),
            textwrap.dedent(start) + textwrap.dedent(program),
            str(address[2] if address else 0),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


async def answering(reader, writer):
    while True:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(1)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")


async def silent(reader, _writer):
    await reader.read()


def test_there_is_one_loop_however_many_ask_for_it():
    """Threads that come first at the same time get the same one."""
    loops = []
    threads = [threading.Thread(target=lambda: loops.append(io_loop())) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(loops) == {io_loop()}


def test_a_coroutine_runs_there_and_its_future_is_anybodys():
    """Its result comes to this thread, and cancelling the future cancels the coroutine."""

    async def where():
        return asyncio.get_running_loop()

    assert run(where()).result(PATIENCE) is io_loop()
    ended = threading.Event()

    async def forever():
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    started = threading.Event()
    future = run(forever())
    assert started.wait(PATIENCE)
    assert future.cancel()
    assert ended.wait(PATIENCE)


def test_the_first_use_decides_where_an_object_is_at_home():
    """Using it again in the same process is no question."""
    home = Home()
    home.check("it")
    home.check("it")


def test_nothing_is_started_by_importing():
    """The thread begins with the first use."""
    program = """
    print(threading.active_count())
    io_loop()
    print(threading.active_count())
    """
    assert child(program) == ["1", "2"]


@pytest.mark.parametrize("leave", ["sys.exit(0)", "os._exit(0)"])
def test_a_forked_child_has_its_own_loop_and_the_parent_keeps_its(village, leave):
    """What was used before the fork raises ForkError in the child, and works on in the parent."""
    served = village.serve(answering)
    program = f"""
    used, unused = connect(), connect()
    print("parent", ask(used), flush=True)
    waiting = run(asyncio.sleep(1000))
    pid = os.fork()
    if pid == 0:
        try:
            ask(used)
        except ForkError as error:
            print("spawn" in str(error))
        print("child", ask(unused), flush=True)
        del used, unused
        {leave}
    assert os.waitpid(pid, 0)[1] == 0
    print("parent", ask(used))
    """
    printed = child(program, address=served.address)
    told = ["True", "child", "hi"]
    assert printed == ["parent", "hi", *told, "parent", "hi"]


@pytest.mark.parametrize("kind", ["daemon=True", "daemon=False"])
def test_leaving_with_calls_in_flight_neither_hangs_nor_complains(village, kind):
    """The interpreter exits at once and prints nothing, whoever still waits."""
    served = village.serve(silent)
    program = f"""
    transport = connect()
    request = Request("POST", "/", (), (b"x",))
    futures = [run(transport.asend(request, None, 100)) for _ in range(3)]
    futures += [run(transport.stream(request, None, 100)), run(asyncio.sleep(1000))]
    entered = threading.Event()

    def wait():
        entered.set()
        try:
            transport.send(request, time.monotonic() + 0.5, 100)
        except TimeoutError:
            pass

    threading.Thread(target=wait, {kind}).start()
    entered.wait()
    print("bye")
    """
    assert child(program, address=served.address) == ["bye"]


def test_leaving_with_idle_connections_is_silent(village):
    """Not even a ResourceWarning tells of a transport that was never closed."""
    served = village.serve(answering)
    assert child("t = connect(); print(ask(t))", address=served.address) == ["hi"]


def test_without_uvloop_asyncios_own_loop_serves(village, tmp_path, monkeypatch):
    """An installation without uvloop works the same."""
    (tmp_path / "uvloop.py").write_text("raise ImportError")
    served = village.serve(answering)
    program = f"""
    sys.path.insert(0, {str(tmp_path)!r})
    print(type(io_loop()).__module__.split(".")[0])
    t = connect()
    print(ask(t), ask(t))
    """
    assert child(program, address=served.address) == ["asyncio", "hi", "hi"]
