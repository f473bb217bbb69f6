"""Who may ask what: bearer keys, and what each one is granted.

A key is told apart by the SHA-256 of its text, compared in constant time with
every key there is; the text itself is stored nowhere. A grant is a thing to be done
(`call`, `describe`, later `grad`, `train`, ...), and a key may be held to some models or
methods of them (`"net"`, `"agent.move"`). A key file is TOML, a table a key:

    [alice]
    sha256 = "9f86d0..."
    allow = ["call", "describe"]
    models = ["net", "agent.move"]
    quota = { requests = "100/second", rows = "5000/minute" }

It is read again when it changes, so that a key can be withdrawn without a restart.
While it cannot be read, nobody gets in: the keys it held before may be the withdrawn ones.
"""

import hashlib
import hmac
import logging
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs

from maas.calls import CALL
from maas.errors import Forbidden, NotReady, Unauthenticated
from maas.server.admission import Quota

__all__ = ["DEFAULT_GRANTS", "GRANTS", "Caller", "Guard", "Key"]

DEFAULT_GRANTS = frozenset({"call", "describe"})
GRANTS = DEFAULT_GRANTS | {"grad", "train", "publish", "compress", "explain", "label", "collect"}

_LOG = logging.getLogger("maas")


@attrs.frozen
class Key:
    """One key: its digest, what it allows, for which models (None for all), and how much."""

    id: str
    digest: bytes = attrs.field(repr=False)
    allow: frozenset[str] = DEFAULT_GRANTS
    models: frozenset[str] | None = None
    quota: Quota | None = None
    caller: "Caller" = attrs.field(init=False, repr=False, eq=False)
    """Whoever shows it."""

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "caller", Caller(self.id, self.allow, self.models, self.quota))

    @classmethod
    def of(cls, id_: str, text: str, allow: Iterable[str] = DEFAULT_GRANTS) -> "Key":
        """The key with that text."""
        return cls(id_, hashlib.sha256(text.encode()).digest(), _grants(allow))


@attrs.frozen
class Caller:
    """Whoever asks, known by a key or let in without one."""

    id: str
    allow: frozenset[str]
    models: frozenset[str] | None = None
    quota: Quota | None = None

    def check(
        self, grant: str, model: str, method: str = CALL, *, known_as: Iterable[str] = ()
    ) -> None:
        """Raises `Forbidden`, naming the grant that is missing."""
        self.check_grant(grant, model)
        if not self.may_ask(model, method, known_as=known_as):
            asked = model if method == CALL else f"{model}.{method}"
            raise Forbidden(f"your key is not granted {asked!r}")

    def check_grant(self, grant: str, model: str) -> None:
        """Raises `Forbidden` where the grant is missing for every model."""
        if grant not in self.allow:
            raise Forbidden(
                f"{model!r}: this needs the grant {grant!r}; "
                "the server's owner can allow it for your key"
            )

    def may_ask(self, model: str, method: str, *, known_as: Iterable[str] = ()) -> bool:
        """Whether this method of the model is among what the key is held to.

        `known_as` is what else the model goes by: a key held to `net` may ask each version of it,
        one held to `net@v2` may ask that by whatever name means it.
        """
        return self.models is None or any(
            name in self.models or f"{name}.{method}" in self.models for name in (model, *known_as)
        )

    def sees(self, model: str, *, known_as: Iterable[str] = ()) -> bool:
        """Whether the model may be named to this caller."""
        return self.models is None or any(
            name.partition(".")[0] in (model, *known_as) for name in self.models
        )


class Guard:
    """Lets callers in.

    Parameters
    ----------
    auth : None lets everybody in; a string or several are keys; a `Path` is a key file.
    allow : what a caller may do, where its key does not say otherwise.
    """

    def __init__(
        self, auth: "str | Iterable[str] | Path | None", allow: Iterable[str] = DEFAULT_GRANTS
    ) -> None:
        self._allow = _grants(allow)
        self._keys = _source(auth, self._allow)
        self._anyone = Caller("anyone", self._allow)
        self.locked = self._keys is not None
        """A key is needed."""

    @property
    def keys(self) -> tuple[Key, ...] | None:
        """The keys that let callers in now; whoever came in by others must be admitted anew.

        Raises
        ------
        NotReady
            The key file cannot be read.
        """
        keys = self._keys
        return keys() if isinstance(keys, _KeyFile) else keys

    def admit(self, authorization: str | None) -> Caller:
        """The caller that the `Authorization` header proves.

        Raises
        ------
        Unauthenticated
            A key is needed and none, or a wrong one, came.
        NotReady
            The key file cannot be read.
        """
        if self._keys is None:
            return self._anyone
        scheme, _, text = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not text:
            raise Unauthenticated(
                "this server wants a key: connect(url, auth=key), "
                "or the header 'Authorization: Bearer <key>'"
            )
        digest = hashlib.sha256(text.strip().encode()).digest()
        found = None
        for key in self.keys or ():
            # No early end: the time taken must not tell how many keys were tried.
            if hmac.compare_digest(key.digest, digest):
                found = key
        if found is None:
            raise Unauthenticated("the server does not know this key")
        return found.caller


def _grants(allow: Iterable[str]) -> frozenset[str]:
    given = frozenset([allow] if isinstance(allow, str) else allow)
    if given - GRANTS:
        raise ValueError(f"unknown grants {sorted(given - GRANTS)}; known: {sorted(GRANTS)}")
    return given


def _source(
    auth: "str | Iterable[str] | Path | None", allow: frozenset[str]
) -> "tuple[Key, ...] | _KeyFile | None":
    if auth is None:
        return None
    if isinstance(auth, Path):
        return _KeyFile(auth, allow)
    texts: list[object] = [auth] if isinstance(auth, str) else [*auth]
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(
            "auth wants a key, several keys, or the pathlib.Path of a key file; got an empty one"
        )
    if any(str(text) != str(text).strip() for text in texts):
        raise ValueError("a key begins or ends with white space, which HTTP drops; strip() it")
    return tuple(Key.of(f"key-{index}", str(text), allow) for index, text in enumerate(texts))


class _KeyFile:
    """The keys of a TOML file, read again whenever its time or size changes."""

    def __init__(self, path: Path, allow: frozenset[str]) -> None:
        self._path = path
        self._allow = allow
        self._stamp = self._look()
        self._keys: tuple[Key, ...] | None = self._read()

    def __call__(self) -> tuple[Key, ...]:
        try:
            stamp = self._look()
        except OSError:
            stamp = ()
        if stamp != self._stamp:
            self._stamp = stamp
            self._reload()
        if self._keys is None:
            raise NotReady("the server cannot read its keys; its log tells why", retry_after=5.0)
        return self._keys

    def _look(self) -> tuple[int, ...]:
        """What differs once the file was written to, or another was put in its place."""
        found = self._path.stat()
        return (found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)

    def _reload(self) -> None:
        try:
            self._keys = self._read()
        except (OSError, ValueError) as error:
            self._keys = None
            _LOG.error("nobody is let in: the key file %s cannot be read: %s", self._path, error)

    def _read(self) -> tuple[Key, ...]:
        tables = tomllib.loads(self._path.read_text(encoding="utf-8"))
        return tuple(_key_from(name, table, self._allow) for name, table in tables.items())


def _key_from(name: str, table: Any, allow: frozenset[str]) -> Key:
    if type(table) is not dict or table.keys() - {"sha256", "allow", "models", "quota"}:
        raise ValueError(f"key {name!r} wants the fields sha256, allow, models and quota")
    try:
        digest = bytes.fromhex(table["sha256"])
    except (KeyError, TypeError, ValueError):
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise ValueError(f"key {name!r} wants sha256 = 64 hexadecimal digits")
    granted = _names(name, table, "allow")
    return Key(
        name,
        digest,
        allow if granted is None else _grants(granted),
        _names(name, table, "models"),
        Quota.of(table["quota"], f"key {name!r}") if "quota" in table else None,
    )


def _names(key: str, table: dict[str, Any], field: str) -> frozenset[str] | None:
    given = table.get(field)
    if given is None:
        return None
    if type(given) is not list or not all(isinstance(name, str) for name in given):
        raise ValueError(f"key {key!r} wants {field} = a list of names; got {given!r:.80}")
    return frozenset(given)
