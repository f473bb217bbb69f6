"""The model whose workers are killed: it says whose call it ran, and writes down what it ran."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import maas


class Ledger:
    @maas.method(pure=True)
    def read(self, owner: str, number: int) -> tuple[str, int, int]:
        time.sleep(0.001)
        return owner, number, os.getpid()

    @maas.method
    def write(self, path: str, owner: str, number: int) -> tuple[str, int, int]:
        with Path(path).open("a") as file:
            file.write(f"{owner} {number}\n")
        time.sleep(0.005)
        return owner, number, os.getpid()

    @maas.method(pure=True)
    def count(self, owner: str, number: int) -> Iterator[tuple[str, int]]:
        for item in range(10):
            yield owner, number + item


ledger = Ledger()
