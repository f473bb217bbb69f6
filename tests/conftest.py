"""What every test stands on: a known environment, and Hypothesis without a clock.

Fixtures for models in every place (`maas_connect`) are shipped in `maas.testing`.
"""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# No deadlines: the machine may be busy, and a slow test is not a wrong one.
# CI draws the same examples every time, so that red means a change and not bad luck.
settings.register_profile("developer", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "developer")

_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(scope="session", autouse=True)
def _known_environment() -> Iterator[None]:
    """Proxies and settings of this machine do not reach the tests or the processes they start."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.lower() in _PROXIES or name.startswith("MAAS_"):
                patch.delenv(name)
        yield
