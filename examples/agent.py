"""An agent is an object: it has state, and some of its methods are offered to callers.

It learns Nim: eleven sticks, each player takes one to three, who takes the last one wins.
It knows the rules only by their results. One agent lives here and one behind HTTP; as
they are told the same games, they come to know the same.
"""

import random
from collections import defaultdict

import maas

STICKS = 11
TAKES = (1, 2, 3)


class Agent:
    """Remembers how games ended for whoever left so many sticks."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)  # noqa: S311 - a game, not a secret
        self._results: dict[int, list[int]] = defaultdict(list)

    @maas.method
    def choose(self, sticks: int, *, curiosity: float = 0.0) -> int:
        """How many sticks to take; with that much curiosity, now and then any number."""
        legal = [take for take in TAKES if take <= sticks]
        if self._chance.random() < curiosity:
            return self._chance.choice(legal)
        return max(legal, key=lambda take: self._worth(sticks - take))

    @maas.method
    def learn(self, left: list[int], *, won: bool) -> None:
        """A game's end, and what this player left after each of its moves."""
        for sticks in left:
            self._results[sticks].append(won)

    @maas.method(pure=True)
    def opinion(self) -> dict[int, float]:
        """Chance to win for whoever leaves so many sticks."""
        return {sticks: self._worth(sticks) for sticks in range(STICKS)}

    def _worth(self, sticks: int) -> float:
        results = self._results.get(sticks, [])
        return (1 + sum(results)) / (2 + len(results))


def play(agent: maas.Model[..., object], curiosity: float) -> None:
    """One game of the agent against itself, from which it learns both sides."""
    sticks, left = STICKS, ([], [])  # type: tuple[int, tuple[list[int], list[int]]]
    turn = 1
    while sticks:
        turn = 1 - turn
        sticks -= agent.choose(sticks, curiosity=curiosity)
        left[turn].append(sticks)
    agent.learn(left[turn], won=True)
    agent.learn(left[1 - turn], won=False)


def main() -> None:
    with (
        maas.connect(Agent(seed=1)) as here,
        maas.serve({"agent": Agent(seed=1)}, port=0, block=False) as server,
        maas.connect(f"{server.url}/agent") as there,
    ):
        for _ in range(150):
            play(here, curiosity=0.4)
            play(there, curiosity=0.4)
        assert here.opinion() == there.opinion()
        for sticks, worth in there.opinion().items():
            print(f"leaving {sticks:2} sticks wins {worth:4.0%}  {'█' * round(worth * 30)}")
        taken = there.choose(STICKS)
        print(f"With {STICKS} sticks it takes {taken}, and leaves {STICKS - taken}.")


if __name__ == "__main__":
    main()
