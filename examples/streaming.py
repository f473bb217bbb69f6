"""A generator is a model that speaks as it goes: each word comes as soon as it is there.

It writes in the manner of the texts it has read: the descriptions of scikit-learn's data sets.
Whoever has heard enough closes the stream, and the generator ends where it runs.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from sklearn.datasets import load_diabetes, load_digits, load_wine

import maas

FOLLOWERS: dict[str, list[str]] = defaultdict(list)
for load in (load_digits, load_wine, load_diabetes):
    prose = [word for word in load().DESCR.split() if word.isascii() and word.strip(":|=-.")]
    for word, follower in pairwise(prose):
        FOLLOWERS[word].append(follower)

ended: list[str] = []


@maas.Model
def babble(start: str, *, seed: int = 0) -> Iterator[str]:
    """Words that could follow, without end."""
    chance = random.Random(seed)  # noqa: S311 - prose, not a secret
    word = start
    try:
        while True:
            yield word
            word = chance.choice(FOLLOWERS.get(word) or list(FOLLOWERS))
    finally:
        ended.append(start)


def first(model: maas.Model[..., Iterator[str]], count: int) -> list[str]:
    with model.stream("The", seed=7) as stream:
        return [next(stream) for _ in range(count)]


async def first_in_async_code(model: maas.Model[..., Iterator[str]], count: int) -> list[str]:
    heard: list[str] = []
    async with model.stream("The", seed=7) as stream:
        async for word in stream:
            heard.append(word)
            if len(heard) == count:
                break
    return heard


def main() -> None:
    with (
        maas.serve(babble, port=0, block=False) as server,
        maas.connect(f"{server.url}/babble") as there,
    ):
        heard = first(there, 24)
        print(*heard, "...")
        assert heard == first(babble, 24) == asyncio.run(first_in_async_code(there, 24))
    # The server's generators do not go on alone: each one ran its `finally`.
    assert ended == ["The"] * 3
    print(f"Three streams without end were closed, and {len(ended)} generators ended.")


if __name__ == "__main__":
    main()
