"""Versions and what names mean: asked through real servers, switched while they are asked."""

import concurrent.futures
import contextlib
import hashlib
import itertools
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import maas
from maas.calls import CALL
from maas.errors import DeadlineExceeded, Forbidden, NotFound, NotReady, SignatureError
from maas.server.catalogue import Catalogue
from maas.server.forms import Route
from maas.server.guard import Caller

PATIENT = 30.0


def version(n: int):
    """A model that says which version it is."""

    @maas.method(pure=True)
    def net(x: int) -> list[int]:
        return [n, x]

    return net


class Gate:
    """A model whose calls and items wait until they are let go."""

    def __init__(self, n: int = 1) -> None:
        self.n = n
        self.started = threading.Semaphore(0)
        self.go_on = threading.Event()

    @maas.method(pure=True)
    def wait(self, x: int) -> list[int]:
        self.started.release()
        assert self.go_on.wait(PATIENT)
        return [self.n, x]

    @maas.method(pure=True)
    def count(self) -> Iterator[int]:
        for _ in itertools.count():
            yield self.n


@contextlib.contextmanager
def serving(models, **options):
    """A Server, and the address of it running."""
    server = maas.Server(models, **options)
    with maas.serve(server, port=0, block=False) as running:
        yield server, running.url


# What names mean.


def test_a_name_means_the_version_loaded_first_until_it_is_moved():
    """The default is the first version, and neither loading nor asking another changes it."""
    with serving({"net@v2": version(2), "net@v1": version(1)}) as (server, url):
        with maas.connect(f"{url}/net") as net, maas.connect(f"{url}/net@v1") as first:
            assert [net(7), first(7)] == [[2, 7], [1, 7]]
            server.load("net@v3", version(3))
            assert net(7) == [2, 7]
            server.alias("net", "net@v1")
            assert net(7) == [1, 7]
        with maas.connect(f"{url}/net@v3") as third, maas.connect(url) as only:
            assert [third(7), only(7)] == [[3, 7], [1, 7]]


def test_the_answer_tells_which_version_ran():
    """`job.info`, a stream's `info` and a header name the version, in both forms of a call."""
    with serving({"net@v1": version(1), "gate@b-2": Gate()}) as (_, url):
        with maas.connect(f"{url}/net") as net:
            job = net.submit(1)
            assert job.result(PATIENT) == [1, 1]
            assert (job.info.version, net.info.version, net.info.name) == ("v1", "v1", "net")
        reply = httpx.post(f"{url}/net", json=[1])
        assert (reply.json(), reply.headers["maas-model"]) == ({"result": [1, 1]}, "net@v1")
        assert httpx.post(f"{url}/net", json=["a"]).headers["maas-model"] == "net@v1"
    with serving({"net@v9": count_to}) as (_, url), maas.connect(f"{url}/net") as net:
        stream = net.stream(2)
        assert list(stream) == [0, 1]
        assert stream.info.version == "v9"


def count_to(n: int) -> Iterator[int]:
    yield from range(n)


def test_a_version_without_a_name_gets_the_next_number():
    """`v1` is the first, and after `v7` and `beta` comes `v8`."""
    server = maas.Server({"net": version(1)})
    assert server.load("net@v7", version(7)) == "net@v7"
    assert server.load("net@beta", version(0)) == "net@beta"
    assert server.load("net", version(8)) == "net@v8"
    assert server.load("other", version(1)) == "other@v1"


def test_loading_a_bare_name_replaces_what_it_means():
    """`load("net", ...)` moves the name, and each alias of the old version, which is unloaded."""
    with serving({"net": version(1)}) as (server, url), maas.connect(f"{url}/net") as net:
        server.alias("stable", "net@v1")
        assert net(7) == [1, 7]
        assert server.load("net", version(2)) == "net@v2"
        assert net(7) == [2, 7]
        assert httpx.post(f"{url}/stable", json=[7]).json() == {"result": [2, 7]}
        assert httpx.post(f"{url}/net@v1", json=[7]).status_code == 404


def test_an_alias_of_ones_own():
    """Any name may mean any version, and is asked as a model is."""
    with serving({"net": version(1)}) as (server, url):
        server.load("net@v2", version(2))
        server.alias("canary", "net@v2")
        with maas.connect(f"{url}/canary") as canary:
            job = canary.submit(7)
            assert (job.result(PATIENT), job.info.version) == ([2, 7], "v2")
            server.alias("canary", "net")
            assert canary(7) == [1, 7]
        with maas.connect(url) as only:
            assert only(7) == [1, 7]


@pytest.mark.parametrize(
    ("name", "address", "error"),
    [
        ("net", "net@v9", NotFound),
        ("net", "other", NotFound),
        ("net@v1", "net@v2", ValueError),
        ("second", "net@v1", ValueError),
        ("healthz", "net@v1", ValueError),
        ("Net", "net@v1", ValueError),
    ],
)
def test_what_cannot_be_an_alias(name, address, error):
    """A version, another model's name and a name of the server's own mean only themselves."""
    server = maas.Server({"net@v1": version(1), "net@v2": version(2), "second": version(3)})
    before = server.handler.catalogue.aliases
    with pytest.raises(error):
        server.alias(name, address)
    assert server.handler.catalogue.aliases == before


@pytest.mark.parametrize("address", ["net@v1", "alias", "Net", "net@", "@v1", "net@V1", "a@b@c"])
def test_what_cannot_be_loaded(address):
    """A taken address, an alias, and what is no address are errors that change nothing."""
    server = maas.Server({"net@v1": version(1)})
    server.alias("alias", "net")
    before = server.handler.catalogue.aliases
    with pytest.raises(ValueError, match=r"address|loaded|alias|name"):
        server.load(address, version(2))
    assert server.handler.catalogue.aliases == before
    assert [one.address for one in server.handler.catalogue.versions] == ["net@v1"]


def test_the_index_lists_versions_and_aliases():
    """`GET /` tells models, their versions with their states, and what each name means."""
    with serving({"net@v1": version(1), "tokens": version(2)}) as (server, url):
        server.load("net@v2", version(2))
        server.alias("stable", "net@v1")
        data = httpx.get(url).json()
        assert set(data["models"]) == {"net", "tokens"}
        assert data["models"]["net"]["version"] == "v1"
        assert data["loaded"] == {"net@v1": "ready", "net@v2": "ready", "tokens@v1": "ready"}
        assert data["aliases"] == {"net": "net@v1", "stable": "net@v1", "tokens": "tokens@v1"}
        one = httpx.get(f"{url}/net@v2").json()
        assert (one["model"], one["models"]["net@v2"]["version"]) == ("net@v2", "v2")


# Loading and unloading.


def test_a_version_is_ready_only_after_its_example_ran():
    """Until the example is answered a version takes no calls, says so, and nothing else changes."""
    gate = Gate(2)

    class Slow:
        def __call__(self, x: int) -> list[int]:
            return gate.wait(x)

    with serving({"net": version(1)}) as (server, url), maas.connect(f"{url}/net") as net:
        assert httpx.get(f"{url}/net@v1/readyz").status_code == 200
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            loading = pool.submit(server.load, "net@v2", Slow(), example=5)
            assert gate.started.acquire(timeout=PATIENT)
            for reply in (
                httpx.get(f"{url}/net@v2/readyz"),
                httpx.get(f"{url}/net@v2"),
                httpx.post(f"{url}/net@v2", json=[1]),
            ):
                assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
            assert httpx.get(url).json()["loaded"]["net@v2"] == "loading"
            assert httpx.get(f"{url}/readyz").status_code == 200
            with pytest.raises(NotReady):
                server.alias("net", "net@v2")
            assert net(7) == [1, 7]
            gate.go_on.set()
            assert loading.result(PATIENT) == "net@v2"
        assert httpx.get(f"{url}/net@v2/readyz").status_code == 200
        assert httpx.post(f"{url}/net@v2", json=[1]).json() == {"result": [2, 1]}


@pytest.mark.parametrize("address", ["net@v2", "net"])
def test_a_version_that_fails_its_example_changes_nothing(address):
    """What the example raises is raised, and the version before it serves on."""

    def broken(x: int) -> list[int]:
        raise RuntimeError("no weights")

    with serving({"net": version(1)}) as (server, url), maas.connect(f"{url}/net") as net:
        with pytest.raises(RuntimeError, match="no weights"):
            server.load(address, broken, example=1)
        assert net(7) == [1, 7]
        assert httpx.get(f"{url}/net@v2/readyz").status_code == 404
        assert server.load(address, version(2), example=1) == "net@v2"


def test_a_first_version_that_fails_leaves_no_name():
    """A model whose only version could not be loaded is not there."""

    def broken(x: int) -> int:
        raise RuntimeError("no weights")

    server = maas.Server(version(1))
    with pytest.raises(RuntimeError, match="no weights"):
        server.load("other", broken, example=1)
    assert server.handler.catalogue.aliases == {"net": "net@v1"}


def test_declared_shapes_are_example_enough():
    """A module whose signature declares its shapes answers zeros, in eval mode, before others."""
    seen = []

    shape = maas.TensorSpec("float64", ("batch", 3))

    class Shapeless(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((tuple(x.shape), x.dtype, self.training, bool(x.any())))
            return x

    class Shaped(Shapeless):
        def forward(self, x: shape) -> torch.Tensor:
            return super().forward(x)

    server = maas.Server(version(1))
    net = Shaped()
    server.load("shaped", net)
    assert seen == [((1, 3), torch.float64, False, False)]
    assert net.training
    server.load("shapeless", Shapeless())
    assert len(seen) == 1


def test_an_example_that_streams_is_read_to_its_first_item():
    """A generator that never ends is warm after one item."""
    made = []

    def forever(n: int) -> Iterator[int]:
        for i in itertools.count(n):
            made.append(i)
            yield i

    server = maas.Server(version(1))
    server.load("forever", forever, example=5)
    assert made == [5]


def test_unloading_waits_for_calls_and_streams():
    """What runs goes on to its end on the version it was taken by, which is closed after it."""
    gate = Gate()
    closed = threading.Event()
    server = maas.Server({"gate@v1": gate, "gate@v2": Gate(2)})
    version_1 = server.handler.catalogue.find("gate@v1")
    version_1.model.executor.close = closed.set
    assert version_1.owned
    with (
        maas.serve(server, port=0, block=False) as running,
        maas.connect(f"{running.url}/gate") as model,
    ):
        job = model.wait.submit(7)
        stream = model.count.stream()
        assert gate.started.acquire(timeout=PATIENT)
        assert next(stream) == 1
        server.alias("gate", "gate@v2")
        with pytest.raises(DeadlineExceeded, match="gate@v1 still runs 2 calls"):
            server.unload("gate@v1", timeout=0.01)
        assert next(model.count.stream()) == 2
        gate.go_on.set()
        assert job.result(PATIENT) == [1, 7]
        assert [next(stream), next(stream), stream.close()] == [1, 1, None]
        assert version_1.closed.wait(PATIENT)
        assert closed.is_set()
        with maas.connect(f"{running.url}/gate@v1") as gone, pytest.raises(NotFound):
            gone.wait(1)


def test_a_model_is_closed_by_whoever_made_it():
    """Unloading closes what the server wrapped itself, and leaves a Model to its maker."""
    mine = maas.Model(version(1), name="mine")
    server = maas.Server({"net@v1": mine, "other": version(2)})
    server.unload("net")
    assert mine(7) == [1, 7]
    with pytest.raises(NotFound):
        server.unload("net")
    assert list(server.handler.models) == ["other"]


def test_what_a_name_means_is_not_unloaded():
    """A version that a name means stays, unless the model goes as a whole."""
    server = maas.Server({"net@v1": version(1), "net@v2": version(2)})
    server.alias("stable", "net@v2")
    for address in ("net@v1", "net@v2"):
        with pytest.raises(ValueError, match="means"):
            server.unload(address)
    server.alias("stable", "net@v1")
    server.unload("net@v2")
    server.unload("net")
    assert server.handler.catalogue.aliases == {}
    with pytest.raises(NotFound):
        server.unload("net@v1")


# Keys.


def test_a_key_held_to_a_model_may_ask_its_versions(tmp_path):
    """A key for `net` asks `net` and each version; one for `net@v2` that version, however named."""
    digests = {
        name: hashlib.sha256(name.encode()).hexdigest()
        for name in ("all", "net", "second", "stable")
    }
    keys = tmp_path / "keys.toml"
    held = {"all": "", "net": '"net"', "second": '"net@v2"', "stable": '"stable"'}
    keys.write_text(
        "\n".join(
            f'[{name}]\nsha256 = "{digests[name]}"\n'
            + (f"models = [{held[name]}]\n" if held[name] else "")
            for name in digests
        )
    )
    models = {"net@v1": version(1), "net@v2": version(2), "other": version(3)}
    with serving(models, auth=keys) as (server, url):
        server.alias("stable", "net@v1")
        allowed = {
            name: {
                address
                for address in ("net", "net@v1", "net@v2", "stable", "other")
                if _asked(url, address, name).status_code == 200
            }
            for name in digests
        }
        assert allowed == {
            "all": {"net", "net@v1", "net@v2", "stable", "other"},
            "net": {"net", "net@v1", "net@v2", "stable"},
            "second": {"net@v2"},
            "stable": {"stable"},
        }
        for name, models in {
            "all": {"net", "other"}, "net": {"net"}, "second": {"net@v2"}, "stable": set(),
        }.items():  # fmt: skip
            headers = {"authorization": f"Bearer {name}"}
            assert set(httpx.get(url, headers=headers).json()["models"]) == models
        hidden = _asked(url, "net@v1", "second"), _asked(url, "net@v9", "second")
        assert [reply.status_code for reply in hidden] == [403, 403]
        server.alias("net", "net@v2")
        server.alias("stable", "net@v2")
        assert _asked(url, "net", "second").json() == {"result": [2, 7]}
        assert _asked(url, "stable", "stable").json() == {"result": [2, 7]}


def _asked(url, address, key):
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{url}/{address}", json=[7], headers=headers)


def test_a_key_is_held_to_its_version_when_the_name_moves_meanwhile():
    """A call admitted while the name meant a granted version is not run on another one."""
    server = maas.Server({"net@v1": version(1), "net@v2": version(2)})
    handler = server.handler
    caller = Caller("a", frozenset({"call"}), frozenset({"net@v1"}))
    server.alias("net", "net@v2")
    with pytest.raises(Forbidden):
        handler.entrance.entered(Route(caller, "net", CALL))
    assert handler.catalogue.find("net@v2").calls == 0


# Clients.


def test_clients_learn_what_the_new_version_takes():
    """After a switch a client's calls are checked against the new signature, not the old."""

    def old(x: int) -> str:
        return f"old {x}"

    def new(text: str) -> str:
        return f"new {text}"

    with serving({"net@v1": old}) as (server, url), maas.connect(f"{url}/net") as net:
        assert net(1) == "old 1"
        server.load("net@v2", new)
        server.alias("net", "net@v2")
        # What the old signature refuses is asked all the same, and the new one takes it.
        assert net("a") == "new a"
        assert net.submit("b").result(PATIENT) == "new b"
        with pytest.raises(SignatureError, match="'text' wants str, got int"):
            net(1)
        server.alias("net", "net@v1")
        with pytest.raises(SignatureError):
            net.submit(["neither"]).result(PATIENT)
        assert net(1) == "old 1"


def test_a_stream_is_checked_against_the_new_version():
    """Arguments that only the new version takes open its stream."""

    def words(text: str) -> Iterator[str]:
        yield from text.split()

    with serving({"net@v1": count_to}) as (server, url), maas.connect(f"{url}/net") as net:
        assert list(net.stream(2)) == [0, 1]
        server.load("net", words)
        assert list(net.stream("a b")) == ["a", "b"]
        with pytest.raises(SignatureError):
            net.stream(2)


# Switching under load.


class Load:
    """Callers of each kind, each answer checked; `seen` is what answered, and what said it had."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.stop = threading.Event()
        self.seen: list[tuple[int, str]] = []

    def call(self):
        with maas.connect(f"{self.url}/net") as net:
            for x in itertools.count():
                if self.stop.is_set():
                    return
                job = net.submit(x)
                n, got = job.result(PATIENT)
                assert got == x
                self.seen.append((n, job.info.version))

    def curl(self):
        with httpx.Client() as client:
            while not self.stop.is_set():
                reply = client.post(f"{self.url}/net", json=[5])
                assert reply.status_code == 200, reply.text
                self.seen.append((reply.json()["result"][0], reply.headers["maas-model"][4:]))

    def stream(self):
        with maas.connect(f"{self.url}/items") as items:
            while not self.stop.is_set():
                found = items.stream()
                got = list(found)
                assert len(got) == 20
                assert {f"v{n}" for n in got} == {found.info.version}
                self.seen.append((got[0], found.info.version))


def items_of(n):
    def items() -> Iterator[int]:
        for _ in range(20):
            yield n

    return items


@pytest.mark.parametrize("rounds", [25, pytest.param(1000, marks=pytest.mark.long)])
def test_switching_under_load_fails_nothing_and_mixes_nothing(rounds):
    """While versions come and go every call is answered, by the version that the answer names."""
    with (
        serving({"net": version(1), "items": items_of(1)}) as (server, url),
        concurrent.futures.ThreadPoolExecutor(6) as pool,
    ):
        load = Load(url)
        works = (load.call, load.call, load.call, load.curl, load.stream, load.stream)
        asking = [pool.submit(work) for work in works]
        try:
            for n in range(2, rounds + 2):
                reached = len(load.seen) + 10
                assert server.load("net", version(n), example=0) == f"net@v{n}"
                assert server.load("items", items_of(n)) == f"items@v{n}"
                while len(load.seen) < reached and not any(one.done() for one in asking):
                    load.stop.wait(0.001)
        finally:
            load.stop.set()
        for one in asking:
            one.result(PATIENT)
        assert all(version == f"v{n}" for n, version in load.seen)
        assert len({n for n, _ in load.seen}) > rounds // 2
        left, until = server.handler.catalogue.versions, time.monotonic() + PATIENT
        while any(one.calls for one in left) and time.monotonic() < until:
            time.sleep(0.001)  # whoever read a stream's end is ahead of its server's letting go
        assert [(one.address, one.calls) for one in left] == [
            (f"net@v{rounds + 1}", 0),
            (f"items@v{rounds + 1}", 0),
        ]


# The law: names mean versions that are there, and a version that is held is not closed.


class Account(RuleBasedStateMachine):
    """A catalogue beside a plain account of what it should hold."""

    def __init__(self) -> None:
        super().__init__()
        self.catalogue = Catalogue()
        self.means: dict[str, str] = {}
        self.there: list[str] = []
        self.held: list = []
        self.model = maas.Model(abs, name="net")

    names = st.sampled_from(["a", "b", "c"])
    addresses = st.sampled_from([f"{name}@v{n}" for name in "ab" for n in (1, 2)])

    @rule(address=addresses)
    def add(self, address):
        name = address[0]
        taken = address in self.there or self.means.get(name, address)[0] != name
        try:
            self.catalogue.add(address, self.model, owned=False)
        except ValueError:
            assert taken
        else:
            assert not taken
            self.there.append(address)
            self.means.setdefault(name, address)

    @rule(name=names, address=addresses)
    def alias(self, name, address):
        others = name != address[0] and any(one[0] == name for one in self.there)
        try:
            self.catalogue.alias(name, address)
        except (NotFound, ValueError):
            assert address not in self.there or others
        else:
            self.means[name] = address

    @rule(address=addresses)
    def remove(self, address):
        try:
            self.catalogue.remove(address)
        except (NotFound, ValueError):
            assert address not in self.there or address in self.means.values()
        else:
            self.there.remove(address)

    @rule(name=names)
    def remove_all(self, name):
        try:
            self.catalogue.remove(name)
        except NotFound:
            assert all(one[0] != name for one in self.there)
        else:
            self.there = [one for one in self.there if one[0] != name]
            self.means = {key: one for key, one in self.means.items() if one[0] != name}

    @rule(name=st.one_of(names, addresses))
    def enter(self, name):
        found = self.catalogue.enter(name)
        expected = self.means.get(name, name if name in self.there else None)
        assert (None if found is None else found.address) == expected
        if found is not None:
            self.held.append(found)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def leave(self, data):
        found = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.catalogue.leave(found)
        if found.removed and found not in self.held:
            assert found.closed.wait(PATIENT)

    @invariant()
    def holds(self):
        assert self.catalogue.aliases == self.means
        assert [one.address for one in self.catalogue.versions] == self.there
        assert not any(one.closed.is_set() for one in self.held)
        assert set(self.means.values()) <= set(self.there)


TestCatalogue = Account.TestCase
TestCatalogue.settings = settings(max_examples=60, stateful_step_count=30)
