"""The pytest plugin: `maas_connect`, so that one test runs in five places, or in worker processes.

It is loaded wherever maas is installed, so it imports nothing until a test asks
for its fixture.
"""

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

__all__ = ["maas_connect", "pytest_addoption", "pytest_configure", "pytest_generate_tests"]

_USUAL = ("here", "wire", "asgi", "unix", "http")
_NAMES = (*_USUAL, "workers")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--maas-places` and `--maas-batching`."""
    parser.getgroup("maas").addoption(
        "--maas-places",
        metavar="PLACES",
        default=",".join(_USUAL),
        help=f"where tests with maas_connect run, separated by commas; of {', '.join(_NAMES)}, "
        "all but the last by default, since a worker process takes seconds to start",
    )
    parser.getgroup("maas").addoption(
        "--maas-batching",
        metavar="ROWS",
        type=int,
        default=None,
        help="wrap what maas_connect is given with maas.Batching(ROWS), where it can be batched; "
        "a worker's model is made there, and runs as it is",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declares the marker, and lets asserts of the shipped tests explain themselves."""
    _wanted(config)
    config.addinivalue_line(
        "markers", "maas(places=[...]): the places where a test with maas_connect runs"
    )
    pytest.register_assert_rewrite("maas.testing.conformance")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs a test that takes `maas_connect` once a place."""
    if "maas_connect" not in metafunc.fixturenames:
        return
    places = importlib.import_module("maas.testing.places").PLACES
    parameters = [
        pytest.param(name, marks=_skipped(places[name].missing)) for name in _chosen(metafunc)
    ]
    metafunc.parametrize("maas_connect", parameters, indirect=True, scope="session")


def _chosen(metafunc: pytest.Metafunc) -> list[str]:
    """The places that both the command line and the test's marker name."""
    wanted = _wanted(metafunc.config)
    marker = metafunc.definition.get_closest_marker("maas")
    if marker is None:
        return wanted
    allowed = _checked(marker.kwargs.get("places", ()), f"the mark of {metafunc.function.__name__}")
    return [name for name in wanted if name in allowed]


def _wanted(config: pytest.Config) -> list[str]:
    return _checked(config.getoption("--maas-places").split(","), "--maas-places")


def _checked(names: Sequence[str], source: str) -> list[str]:
    given = [name.strip() for name in names]
    unknown = [name for name in given if name not in _NAMES]
    if unknown or not given:
        raise pytest.UsageError(f"{source} wants places of {', '.join(_NAMES)}; got {unknown}")
    return given


def _skipped(reason: str) -> tuple[pytest.MarkDecorator, ...]:
    return (pytest.mark.skip(reason=reason),) if reason else ()


@pytest.fixture(scope="session")
def _maas_connectors() -> Iterator[dict[str, Any]]:
    """What is open, by place: it outlives the change from one place to the next and back."""
    connectors: dict[str, Any] = {}
    yield connectors
    for connector in connectors.values():
        connector.close()


@pytest.fixture(scope="session")
def maas_connect(request: pytest.FixtureRequest, _maas_connectors: dict[str, Any]) -> Any:
    """`maas.connect`, for each place in turn: `maas_connect(target)` is a Model that runs there.

    `maas_connect.place` is the name of the place. Servers are shared by the whole
    session, so that it goes with Hypothesis as it is.
    """
    place: str = request.param
    if place not in _maas_connectors:
        connector = importlib.import_module("maas.testing.places").Connector
        rows = request.config.getoption("--maas-batching")
        _maas_connectors[place] = connector(place, max_batch_size=rows)
    return _maas_connectors[place]
