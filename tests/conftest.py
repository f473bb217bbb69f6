"""What every test stands on: a known environment, and Hypothesis without a clock.

Fixtures for models in every place (`maas_connect`) are shipped in `maas.testing`.
"""

import os
import signal
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest
from hypothesis import settings

# No deadlines: the machine may be busy, and a slow test is not a wrong one.
# CI draws the same examples every time, so that red means a change and not bad luck.
# Fifty examples find what a hundred do on most days; `--hypothesis-profile thorough` draws 1,000.
settings.register_profile("developer", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True)
settings.register_profile("thorough", deadline=None, max_examples=1_000)
settings.load_profile("ci" if os.environ.get("CI") else "developer")

# A shell's background job has Ctrl-C ignored, and hands that on: tests of it would never end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What a machine may lack. Read before the variables of this machine are taken away, below.
_OPTIONAL = {"chromium", "curl", "index", "keras", "mount", "node", "tensorflow"}
_REQUIRED = set(os.environ.get("MAAS_REQUIRE", "").replace(",", " ").split())


def pytest_configure() -> None:
    """Refuses a requirement that no test knows, and would silently not be one."""
    unknown = sorted(_REQUIRED - _OPTIONAL)
    if unknown:
        raise pytest.UsageError(
            f"MAAS_REQUIRE names {', '.join(unknown)}; known: {', '.join(sorted(_OPTIONAL))}"
        )


@pytest.fixture(scope="session")
def lacking() -> Callable[[str, str], NoReturn]:
    """`lacking("node", why)` skips the test with the reason, or fails it where MAAS_REQUIRE names
    node.
    """

    def lack(what: str, why: str) -> NoReturn:
        if what in _REQUIRED:
            pytest.fail(f"{why}, and MAAS_REQUIRE names {what}")
        pytest.skip(f"{why}; MAAS_REQUIRE={what} makes this a failure")

    return lack


_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(scope="session", autouse=True)
def _known_environment() -> Iterator[None]:
    """Proxies and settings of this machine do not reach the tests or the processes they start."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.lower() in _PROXIES or name.startswith("MAAS_"):
                patch.delenv(name)
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch on one thread, here and in the processes that a test starts.

    Sums over two threads are rounded otherwise than over one, and small nets wait for threads.
    """
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)
