"""What every program of `*_client.py` does: 64 calls in flight from one process, answers checked.

It reads lines of its standard input: `threads 2.5` or `loop 2.5`, a manner and so many seconds, and
answers each with a line of JSON: how many answers came, in how many seconds, and how far the worst
one was off. It needs torch and numpy only, as each client runs in an environment of its own.
"""

import asyncio
import contextlib
import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from itertools import count
from typing import Any

import numpy as np
import torch

from benchmarks.big_model import fixed

__all__ = ["IN_FLIGHT", "Row", "asking"]

IN_FLIGHT = 64
_ROWS = 256

Row = np.ndarray[Any, Any]
"""[1, 1000] float32; the answer to it is one number."""
Answers = list[tuple[int, float]]
Caller = Callable[[], AbstractContextManager[Callable[[Row], float]]]
AsyncCaller = Callable[[], AbstractAsyncContextManager[Callable[[Row], Awaitable[float]]]]


def asking(caller: Caller | None, async_caller: AsyncCaller | None) -> None:
    """Asks as the lines of standard input say, to their end.

    A caller is entered once a thread; an asynchronous one once a loop.
    """
    torch.set_num_threads(1)
    rows = torch.randn(_ROWS, 1, 1000, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted = fixed()(rows).flatten().numpy()
    asked = list(rows.numpy())
    for line in sys.stdin:
        how, seconds = line.split()
        if how == "threads" and caller is not None:
            told, took = _by_threads(caller, asked, float(seconds))
        elif how == "loop" and async_caller is not None:
            told, took = asyncio.run(_by_loop(async_caller, asked, float(seconds)))
        else:
            raise ValueError(f"it cannot ask by {how}")
        worst = max(abs(answer - float(wanted[row])) for row, answer in told)
        print(json.dumps({"answers": len(told), "seconds": took, "worst": worst}), flush=True)


def _by_threads(caller: Caller, rows: list[Row], seconds: float) -> tuple[Answers, float]:
    told: Answers = []
    numbers = count()
    begin = threading.Barrier(IN_FLIGHT + 1)

    def each() -> None:
        try:
            with caller() as ask:
                # Connections are made before the clock runs.
                ask(rows[0])
                begin.wait()
                until = time.perf_counter() + seconds
                while time.perf_counter() < until:
                    row = next(numbers) % len(rows)
                    told.append((row, ask(rows[row])))
        except Exception:
            begin.abort()
            raise

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        asked = [pool.submit(each) for _ in range(IN_FLIGHT)]
        with contextlib.suppress(threading.BrokenBarrierError):
            begin.wait()
        began = time.perf_counter()
    took = time.perf_counter() - began
    for error in (each.exception() for each in asked):
        if error is not None and not isinstance(error, threading.BrokenBarrierError):
            raise error
    return told, took


async def _by_loop(caller: AsyncCaller, rows: list[Row], seconds: float) -> tuple[Answers, float]:
    told: Answers = []
    numbers = count()

    async def each(ask: Callable[[Row], Awaitable[float]], until: float) -> None:
        while time.perf_counter() < until:
            row = next(numbers) % len(rows)
            told.append((row, await ask(rows[row])))

    async with caller() as ask:
        await asyncio.gather(*(ask(row) for row in rows[:IN_FLIGHT]))
        began = time.perf_counter()
        await asyncio.gather(*(each(ask, began + seconds) for _ in range(IN_FLIGHT)))
        return told, time.perf_counter() - began
