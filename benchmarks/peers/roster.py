"""The peers: what each needs, its best configurations, its own client, and what is promised."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
from torch import Tensor

from benchmarks.peers.environments import environment
from benchmarks.peers.processes import serving
from benchmarks.peers.systems import (
    BASE64_FIELD,
    BASE64_TENSOR,
    OPEN_INFERENCE,
    RAW,
    Asked,
    Speech,
    answering,
)

__all__ = ["CONNECTIONS", "PEERS", "Client", "Peer", "Way"]

CONNECTIONS = (1, 8, 64)
_HERE = Path(__file__).parent


@attrs.frozen
class Way:
    """One configuration of a peer; it is measured where it can be the best.

    Attributes
    ----------
    how : what tells it apart.
    arguments : of the peer's program, after the port; ways of the same arguments share a process.
    target : the path that it answers at.
    at : from how many connections it is measured.
    """

    how: str
    arguments: tuple[str, ...] = ()
    target: str = "/inference"
    at: tuple[int, ...] = CONNECTIONS


@attrs.frozen
class Client:
    """The Python client that a peer's users have; it asks the peer's last way.

    Attributes
    ----------
    given : its program's arguments, where `{url}` is the server and `{place}` host and port.
    """

    name: str
    script: str
    given: tuple[str, ...]

    def command(self, peer: "Peer", place: tuple[str, int]) -> list[str | Path]:
        """How it is started, in the peer's environment."""
        host = f"{place[0]}:{place[1]}"
        given = [word.format(url=f"http://{host}", place=host) for word in self.given]
        return [peer.interpreter(), _HERE / self.script, *given]


@attrs.frozen
class Peer:
    """A server by others, in an environment of its own.

    Attributes
    ----------
    package : the distribution whose version is told.
    wanted : what is promised of our requests a second over its own, at each of CONNECTIONS.
    close : whether it is near enough to be measured in more rounds.
    """

    name: str
    package: str
    needs: tuple[str, ...]
    script: str
    speech: Speech
    ways: tuple[Way, ...]
    client: Client | None = None
    wanted: tuple[float, ...] = ()
    close: bool = False

    def interpreter(self) -> Path:
        """That of its environment, which is made where it is missing."""
        return environment(self.package, self.needs)

    @contextlib.contextmanager
    def started(self, rows: Sequence[Tensor]) -> Iterator[dict[Way, Asked]]:
        """Its ways, all running."""
        command = [self.interpreter(), _HERE / self.script]
        with contextlib.ExitStack() as stack:
            places = {
                arguments: stack.enter_context(serving(command, *arguments))
                for arguments in dict.fromkeys(way.arguments for way in self.ways)
            }
            yield {
                way: answering(self.speech, way.target, places[way.arguments], rows)
                for way in self.ways
            }


_RAW_HTTPX = Client("httpx, as it comes", "httpx_client.py", ("{url}/inference",))
_FAR = (3.0, 6.0, 12.0)
PEERS = (
    Peer(
        name="mosec",
        package="mosec",
        needs=("mosec", "httpx"),
        script="mosec_server.py",
        speech=RAW,
        ways=(
            Way("no batching", ("1", "0")),
            Way("batch 8", ("8", "1")),
            Way("batch 32", ("32", "1")),
        ),
        client=_RAW_HTTPX,
        wanted=(1.2, 1.1, 1.1),
        close=True,
    ),
    Peer(
        name="Triton",
        package="nvidia-pytriton",
        needs=("nvidia-pytriton>=0.7", "tritonclient[http]"),
        script="triton_server.py",
        speech=OPEN_INFERENCE,
        ways=(
            Way("no batching", target="/v2/models/alone/infer", at=(1,)),
            Way("batch 64", target="/v2/models/together/infer"),
        ),
        client=Client("tritonclient", "triton_client.py", ("{place}", "together")),
        wanted=(1.2, 1.6, 1.9),
        close=True,
    ),
    Peer(
        name="FastAPI",
        package="fastapi",
        needs=("fastapi", "uvicorn[standard]", "httpx"),
        script="fastapi_server.py",
        speech=RAW,
        ways=(Way("by hand"),),
        client=_RAW_HTTPX,
    ),
    Peer(
        name="LitServe",
        package="litserve",
        needs=("litserve", "pyzmq", "httpx"),
        script="litserve_server.py",
        speech=RAW,
        ways=(Way("no batching", ("1",), at=(1,)), Way("batch 64", ("64",))),
        client=_RAW_HTTPX,
        wanted=_FAR,
    ),
    Peer(
        name="MLServer",
        package="mlserver",
        # Its loop fails with uvloop 0.22 and later.
        needs=("mlserver", "uvloop<0.22"),
        script="mlserver_server.py",
        speech=BASE64_TENSOR,
        ways=(
            Way("no batching", target="/v2/models/alone/infer", at=(1,)),
            Way("batch 64", target="/v2/models/together/infer"),
        ),
        wanted=_FAR,
    ),
    Peer(
        name="KServe",
        package="kserve",
        needs=("kserve",),
        script="kserve_server.py",
        speech=OPEN_INFERENCE,
        ways=(Way("no batching", target="/v2/models/big/infer"),),
        wanted=_FAR,
    ),
    Peer(
        name="BentoML",
        package="bentoml",
        needs=("bentoml",),
        script="bentoml_server.py",
        speech=BASE64_FIELD,
        ways=(
            Way("no batching", target="/alone", at=(1,)),
            Way("batch 64", target="/together"),
        ),
        client=Client("its own client", "bentoml_client.py", ("{url}",)),
        wanted=_FAR,
    ),
    Peer(
        name="Ray Serve",
        package="ray",
        needs=("ray[serve]",),
        script="ray_server.py",
        speech=RAW,
        ways=(
            Way("no batching", target="/alone", at=(1,)),
            Way("batch 64", target="/together"),
        ),
        client=Client("its handle, no HTTP", "ray_client.py", ()),
        wanted=_FAR,
    ),
)
