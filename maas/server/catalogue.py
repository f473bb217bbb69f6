"""Which models a server has: the versions of each, and what a name means at this moment.

    net        an alias: the version that `net` means now
    net@v2     that version, whatever `net` means
    stable     an alias of one's own, to any version of any model

A model's name means the version that was loaded first, until it is made to mean another one.
That is one assignment under a lock, so each call finds the old version or the new one. A call
holds the version it found until it has ended; a version that was removed is closed by the last
of those who hold it.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any, Self

from maas.buffers import Buffer
from maas.errors import NotFound, NotReady
from maas.executors.base import ADDRESS, NAME, ModelInfo
from maas.http import MSGPACK, Headers
from maas.model import Model
from maas.server.guard import Caller
from maas.server.metrics import Tally

__all__ = ["RESERVED", "Catalogue", "Held", "Version"]

RESERVED = frozenset({"healthz", "readyz", "metrics", "v2", "maas"})
"""Names no model may have, for these are addresses of the server itself."""


class Version:
    """One version of a model.

    Attributes
    ----------
    name, version, address : `net`, `v2` and `net@v2`.
    model : what answers.
    owned : whether the server itself wrapped what answers, and therefore closes it.
    may_be_prompt : whether what answers knows calls that need no task; see `executors/prompt.py`.
    ready : whether it takes calls; a version that is being loaded does not.
    info, headers : what was last learned of it, and what every answer of it says about it.
    tallies : what counts the calls of its methods.
    calls : how many hold it.
    closed : set once it was removed and its last call has ended.
    """

    def __init__(self, address: str, model: Model[..., Any], *, owned: bool, ready: bool) -> None:
        self.address = address
        self.name, _, self.version = address.partition("@")
        self.model = model
        self.executor = model.executor
        self.may_be_prompt = hasattr(self.executor, "prompt")
        self.ready = ready
        self.info: ModelInfo | None = None
        self.headers: Headers = self.described_by("")
        self.tallies: dict[str, Tally] = {}
        self.calls = 0
        self.removed = False
        self.closed = threading.Event()
        self.owned = owned

    @property
    def names(self) -> tuple[str, str]:
        """What a key may be held to in order to ask this version, besides an alias of it."""
        return self.name, self.address

    @property
    def known(self) -> ModelInfo:
        """What it says about itself; to be asked once it has said so."""
        assert self.info is not None  # noqa: S101 - as promised
        return self.info

    def described_by(self, digest: str) -> Headers:
        """The headers of every answer in messages: which version, and what it takes."""
        return (
            ("content-type", MSGPACK),
            ("maas-digest", digest),
            ("maas-model", self.address),
        )

    def check_ready(self) -> None:
        """Raises `NotReady` while it is being loaded."""
        if not self.ready:
            raise NotReady(f"{self.address} is being loaded", retry_after=1.0)

    def close(self) -> None:
        """Closes what the server itself had wrapped, on a thread, for that may take its time."""
        threading.Thread(target=self._close, name="maas-unload", daemon=True).start()

    def _close(self) -> None:
        try:
            if self.owned:
                self.model.close()
        finally:
            self.closed.set()


class Held:
    """Frames of a stream; `leave` is called once, when they have ended or are given up."""

    def __init__(self, frames: Any, leave: Callable[[], None]) -> None:
        self._frames = frames
        self._leave: Callable[[], None] | None = leave

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[Buffer]:
        try:
            return await anext(self._frames)
        except BaseException:
            self._let_go()
            raise

    async def aclose(self) -> None:
        """Ends the stream, begun or not."""
        try:
            await self._frames.aclose()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()

    def __del__(self) -> None:
        # A response that nobody took.
        self._let_go()


class Catalogue:
    """The versions by address and the aliases by name; every method is safe in any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._versions: dict[str, Version] = {}
        self._aliases: dict[str, Version] = {}
        self.changes = 0
        """How often an address came to mean something else; counted once it does."""

    # Asking.

    @property
    def names(self) -> list[str]:
        """The names of the models, in the order of their loading."""
        with self._lock:
            return list(dict.fromkeys(version.name for version in self._versions.values()))

    @property
    def aliases(self) -> dict[str, str]:
        """What each name means."""
        with self._lock:
            return {name: version.address for name, version in self._aliases.items()}

    @property
    def versions(self) -> list[Version]:
        """All versions, in the order of their loading."""
        with self._lock:
            return list(self._versions.values())

    def find(self, address: str) -> Version | None:
        """The version that the address means now."""
        return self._aliases.get(address) or self._versions.get(address)

    def enter(self, address: str) -> Version | None:
        """The version that the address means now, held until `leave`."""
        with self._lock:
            version = self.find(address)
            if version is not None:
                version.calls += 1
            return version

    def hold(self, version: Version) -> None:
        """Holds once more a version that is held, or was just now, until `leave`.

        Raises
        ------
        NotReady
            It was removed, and everybody has left it.
        """
        with self._lock:
            if version.removed and not version.calls:
                raise NotReady(f"{version.address} was unloaded; ask again", retry_after=0.0)
            version.calls += 1

    def leave(self, version: Version) -> None:
        """Lets go of it; the last one to leave a removed version closes it."""
        with self._lock:
            version.calls -= 1
            last = version.removed and not version.calls
        if last:
            version.close()

    def visible(self, caller: Caller) -> dict[str, Version]:
        """What a caller finds here: models by name, or by version where it may ask that alone."""
        found: dict[str, Version] = {}
        for version in self.versions:
            meant = self.find(version.name)
            if meant is not None and caller.sees(version.name, known_as=meant.names):
                found[version.name] = meant
            elif caller.sees(version.address):
                found[version.address] = version
        return found

    def listed(self, caller: Caller) -> dict[str, dict[str, str]]:
        """The versions that a caller may ask and their states, and what the names mean."""
        loaded = {
            version.address: "ready" if version.ready else "loading"
            for version in self.versions
            if caller.sees(version.name, known_as=version.names)
        }
        aliases = {
            name: address
            for name, address in self.aliases.items()
            if address in loaded or caller.sees(name)
        }
        return {"loaded": loaded, "aliases": aliases}

    # Changing.

    def add(
        self, address: str, model: Model[..., Any], *, owned: bool, ready: bool = True
    ) -> Version:
        """A new version: of the address that has none, the next number (`v1`, `v2`, ...).

        Raises
        ------
        ValueError
            The address is none, or is taken.
        """
        name, version = _parts(address)
        with self._lock:
            address = f"{name}@{version or self._next(name)}"
            if address in self._versions:
                raise ValueError(f"{address} is loaded; unload it first, or choose another version")
            if name in self._aliases and self._aliases[name].name != name:
                raise ValueError(f"{name!r} is an alias of {self._aliases[name].address}")
            added = Version(address, model, owned=owned, ready=ready)
            self._versions[address] = added
            self._aliases.setdefault(name, added)
            self.changes += 1
        return added

    def _next(self, name: str) -> str:
        numbers = [
            int(version.version[1:])
            for version in self._versions.values()
            if version.name == name and version.version[1:].isdecimal()
        ]
        return f"v{max(numbers, default=0) + 1}"

    def alias(self, name: str, address: str) -> None:
        """From now on `name` means what `address` means now.

        Raises
        ------
        NotFound
            There is no such version.
        NotReady
            It is being loaded.
        ValueError
            The name is none, or is another model's.
        """
        if _parts(name)[1]:
            raise ValueError(f"{name} is a version, and always means itself; alias a bare name")
        with self._lock:
            version = self._known(address)
            version.check_ready()
            if name != version.name and any(one.name == name for one in self._versions.values()):
                raise ValueError(f"{name!r} is a model, and means none of {version.name!r}")
            self._aliases[name] = version
            self.changes += 1

    def replace(self, new: Version) -> None:
        """The model's name, and what else meant the same version, means `new`; that is removed."""
        with self._lock:
            old = self._aliases[new.name]
            for name, version in self._aliases.items():
                if version is old:
                    self._aliases[name] = new
            self.changes += 1
            if old is not new:
                self._remove([old])

    def discard(self, version: Version) -> None:
        """Removes a version that could not be loaded, and a name that meant it."""
        with self._lock:
            self._forget([version])

    def remove(self, address: str) -> list[Version]:
        """Removes one version, or a model's versions and all that means them.

        Raises
        ------
        NotFound
            There is no such version or model.
        ValueError
            A name means this version.
        """
        name, version = _parts(address)
        with self._lock:
            if version is None:
                found = [one for one in self._versions.values() if one.name == name]
                if not found:
                    raise self._unknown(address)
                self._forget(found)
                return found
            found = [self._known(address)]
            meant = sorted(alias for alias, one in self._aliases.items() if one is found[0])
            if meant:
                raise ValueError(
                    f"{', '.join(meant)} means {address}: let it mean another version first, "
                    f"or unload {name!r} with all its versions"
                )
            self._remove(found)
            return found

    def _forget(self, versions: list[Version]) -> None:
        for alias in [alias for alias, one in self._aliases.items() if one in versions]:
            del self._aliases[alias]
        self._remove(versions)

    def _remove(self, versions: list[Version]) -> None:
        for version in versions:
            del self._versions[version.address]
            version.removed = True
            if not version.calls:
                version.close()
        self.changes += 1

    def _known(self, address: str) -> Version:
        found = self.find(address)
        if found is None:
            raise self._unknown(address)
        return found

    def _unknown(self, address: str) -> NotFound:
        return NotFound(f"no model {address!r} here; there are: {', '.join(self._versions)}")


def _parts(address: str) -> tuple[str, str | None]:
    """Model and version of an address; the version may be missing."""
    found = ADDRESS.fullmatch(address)
    if found is None or found[1] in RESERVED:
        raise ValueError(
            f"a served model's name matches {NAME.pattern}, with a version name@version, "
            f"and is none of {sorted(RESERVED)}; got {address!r}"
        )
    return found[1], found[2]
