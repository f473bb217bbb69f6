"""What a connection costs that nobody uses.

The long form, which prints its figures; it wants 10,500 file descriptors in each of two processes:

    .venv/bin/python -m pytest -m long -s tests/faults/test_idle_connections.py
"""

import http.client
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SERVER = """
    import resource
    import maas
    from maas.server.patience import Patience

    def double(x: int) -> int:
        return 2 * x

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    patience = Patience(max_connections=20_000, idle=600.0)
    maas.serve(double, port=0, patience=patience)
"""

CLIENT = """
    import resource, socket, sys

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    port, count = map(int, sys.argv[1:])
    ask = b"POST /double HTTP/1.1\\r\\nhost: localhost\\r\\n"
    ask += b"content-type: application/json\\r\\ncontent-length: 3\\r\\n\\r\\n[4]"
    kept = []
    for _ in range(count):
        sock = socket.create_connection(("127.0.0.1", port), timeout=60)
        sock.sendall(ask)
        reply = sock.recv(4096)
        assert b"200 OK" in reply and b"close" not in reply, reply
        kept.append(sock)
    print("open", flush=True)
    sys.stdin.readline()
    for sock in kept:
        sock.sendall(ask)
        assert b"200 OK" in sock.recv(4096)
    print("alive", flush=True)
    sys.stdin.readline()
"""


def resident(process):
    """Bytes of memory that the process has."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def started(script, *args):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def told(process, line):
    process.stdin.write(line)
    process.stdin.flush()
    return process.stdout.readline()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")
@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.long)])
def test_an_idle_connection_costs_little(lacking, count):
    """Each idle keep-alive connection takes 40 KB at most, and all of them still work."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < count + 500:
        lacking("descriptors", f"{count} connections want {count + 500} file descriptors")
    with started(SERVER) as server:
        try:
            port = int(server.stdout.readline().rpartition(":")[2])
            for _ in range(50):  # what the first calls need for good is no connection's
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                connection.request("GET", "/readyz")
                assert connection.getresponse().status == 200
                connection.close()
            before = resident(server)
            with started(CLIENT, str(port), str(count)) as client:
                assert client.stdout.readline() == "open\n"
                each = (resident(server) - before) / count
                assert told(client, "go\n") == "alive\n"
                told(client, "end\n")
        finally:
            server.kill()
    print(f"\n{count} idle keep-alive connections: {each / 1024:.1f} KB each, all alive")
    assert each <= 40 * 1024
