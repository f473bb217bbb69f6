"""Ours beside one peer after the other, point by point and in turn, each line told as it comes."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import torch
from torch import Tensor

from benchmarks.callers import Callers
from benchmarks.peers.environments import Missing
from benchmarks.peers.processes import Asking, asking
from benchmarks.peers.roster import CONNECTIONS, Peer
from benchmarks.peers.systems import FLOOR, KEY, OURS, Asked

__all__ = ["MANNERS", "OPEN_INFERENCE_CLIENT", "Measuring", "Pace", "Point"]

OPEN_INFERENCE_CLIENT = "maas's /v2: tritonclient"
MANNERS = ("threads", "loop")
_HERE = Path(__file__).parent
_CLOSE = 1e-4
"""How far an answer may be from the bare module's: sums in another order, not another row."""


@attrs.frozen
class Pace:
    """How long is measured; of peers that are far off, one round less."""

    rounds: int
    warm_up: float
    seconds: float


@attrs.frozen
class Point:
    """What came of one system in one round: requests a second, the 99th percentile in seconds."""

    rate: float
    slowest: float

    def __str__(self) -> str:
        return f"{self.rate:,.0f}/s {self.slowest * 1e3:.1f} ms"


@attrs.define
class Measuring:
    """All that is measured, and what came of it.

    Attributes
    ----------
    missing : by the name of a peer, why it was not measured, or not at all points.
    loads : by the name of a peer and the number of connections: what each round told of ours, and
        of each way of the peer.
    calls : by the name of a client and the manner: our calls a second and its own, in each round.
    """

    rows: Sequence[Tensor]
    wanted: Tensor
    pace: Pace
    missing: dict[str, str]
    loads: dict[tuple[str, int], list[dict[str, Point]]] = attrs.field(factory=dict)
    calls: dict[tuple[str, str], list[tuple[float, float]]] = attrs.field(factory=dict)

    def run(self, peers: Sequence[Peer]) -> None:
        """Measures ours beside the floor, and beside each of these.

        Raises
        ------
        SystemExit
            Ours failed or answered wrongly.
        Missing
            The floor did.
        """
        with OURS.started(self.rows) as ours:
            with FLOOR.started(self.rows) as floor:
                self._beside(FLOOR.name, ours, {FLOOR.name: (floor, CONNECTIONS)}, 0)
            self._call(OPEN_INFERENCE_CLIENT, ours, _tritonclient(ours), 1)
            for peer in peers:
                print(f"{peer.name} starts", flush=True)
                try:
                    self._peer(peer, ours)
                except Missing as error:
                    self.missing[peer.name] = str(error)
                    print(f"  {error}", flush=True)

    def _peer(self, peer: Peer, ours: Asked) -> None:
        fewer = 0 if peer.close else 1
        with peer.started(self.rows) as asked:
            ways = {way.how: (each, way.at) for way, each in asked.items()}
            self._beside(peer.name, ours, ways, fewer)
            if peer.client is not None:
                last = asked[peer.ways[-1]]
                name = f"{peer.name}: {peer.client.name}"
                self._call(name, ours, peer.client.command(peer, last.place), fewer)

    def _beside(
        self, name: str, ours: Asked, ways: Mapping[str, tuple[Asked, Sequence[int]]], fewer: int
    ) -> None:
        for connections in CONNECTIONS:
            here = {how: asked for how, (asked, at) in ways.items() if connections in at}
            systems = [(OURS.name, ours), *here.items()]
            rounds = self.loads.setdefault((name, connections), [])
            for turn in range(max(1, self.pace.rounds - fewer)):
                # Who goes first changes, so that a busy moment strikes all.
                first = turn % len(systems)
                told = {
                    how: self._asked(how, asked, connections)
                    for how, asked in systems[first:] + systems[:first]
                }
                rounds.append(told)
                rates = ", ".join(f"{how} {told[how]}" for how, _ in systems)
                print(f"  {connections:2} connections: {rates}", flush=True)

    def _asked(self, how: str, asked: Asked, connections: int) -> Point:
        try:
            with Callers(asked.place, connections) as callers:
                callers.ask(asked.requests, self.pace.warm_up)
                load = callers.ask(asked.requests, self.pace.seconds)
            answers = torch.tensor([asked.answer(body) for _, body in load.replies])
        except (OSError, RuntimeError, ValueError, LookupError) as error:
            raise _failed(how, f"{connections} connections: {error!s:.160}") from None
        right = self.wanted[[index for index, _ in load.replies]]
        worst = float((answers - right).abs().max())
        if not worst < _CLOSE:
            raise _failed(how, f"{connections} connections: a wrong answer, {worst:g} off")
        return Point(load.rate, load.percentile(99))

    def _call(self, name: str, ours: Asked, command: Sequence[str | Path], fewer: int) -> None:
        """Our own client and another, each at its own server, from threads and from one loop."""
        print(f"{name} starts", flush=True)
        url = f"http://{_host(ours)}/big"
        own: list[str | Path] = [sys.executable, _HERE / "maas_client.py", url, KEY]
        with asking(own) as mine, asking(command) as other:
            for manner in MANNERS:
                rounds = self.calls.setdefault((name, manner), [])
                for _ in range(max(1, self.pace.rounds - fewer)):
                    ours_told = self._told(OURS.name, mine, manner)
                    rounds.append((ours_told, self._told(name, other, manner)))
                    rates = "maas {:,.0f}/s, it {:,.0f}/s".format(*rounds[-1])
                    print(f"  64 calls, {manner}: {rates}", flush=True)

    def _told(self, name: str, client: Asking, manner: str) -> float:
        try:
            client.ask(manner, self.pace.warm_up)
            told = client.ask(manner, self.pace.seconds)
        except Missing as error:
            raise _failed(name, f"{manner}: {error}") from None
        if not told["worst"] < _CLOSE:
            raise _failed(name, f"{manner}: a wrong answer, {told['worst']:g} off")
        return float(told["answers"] / told["seconds"])


def _failed(name: str, why: str) -> BaseException:
    """Of a peer it is a line of the table; of ours it ends the program."""
    return (SystemExit if name == OURS.name else Missing)(f"{name}, {why}")


def _host(asked: Asked) -> str:
    return f"{asked.place[0]}:{asked.place[1]}"


def _tritonclient(ours: Asked) -> list[str | Path]:
    return [sys.executable, _HERE / "triton_client.py", _host(ours), "big", KEY]
