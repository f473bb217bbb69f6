import hashlib
import logging
import os
import sys
from pathlib import Path

import attrs
import pytest

from maas.errors import Forbidden, NotReady, Unauthenticated
from maas.server.guard import DEFAULT_GRANTS, Caller, Guard, Key


def bearer(text: str) -> str:
    return f"Bearer {text}"


def table(name: str, text: str, rest: str = "") -> str:
    return f'[{name}]\nsha256 = "{hashlib.sha256(text.encode()).hexdigest()}"\n{rest}\n'


def put(path: Path, text: str) -> Path:
    """Writes the file anew, as an editor does: another file takes its place."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return put(tmp_path / "keys.toml", table("alice", "apple") + table("bob", "banana"))


# Keys.


def test_without_auth_everybody_is_let_in():
    """A server without keys lets anyone in, with what `allow` says."""
    guard = Guard(None, {"describe"})
    assert not guard.locked
    assert guard.admit(None) == Caller("anyone", frozenset({"describe"}))


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_key_is_let_in(scheme):
    """A known key is let in, whatever the case of the scheme's name (RFC 9110, 11.1)."""
    assert Guard("secret").admit(f"{scheme} secret") == Caller("key-0", DEFAULT_GRANTS)


def test_each_key_is_another_caller():
    """Two keys are two callers, so neither can meet the other's kept answers."""
    guard = Guard(["one", "two"])
    assert [guard.admit(bearer(text)).id for text in ("one", "two")] == ["key-0", "key-1"]


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "secret",
        "Bearer",
        "Bearer ",
        "Bearer secre",
        "Bearer secrets",
        "Bearer SECRET",
        "Bearer secret secret",
        "Bearer secret,",
        "Bearer,Bearer secret",
        "Basic secret",
        "Basic OnNlY3JldA==",
        "Digest secret",
        "Token secret",
        "Bearer\tsecret",
        "Bearersecret",
        "Bearer " + hashlib.sha256(b"secret").hexdigest(),
        "Bearer secret\x00",
        "Bearer " + "s" * 60_000,
    ],
)
def test_anything_else_is_not_let_in(header):
    """Only the whole key under the scheme Bearer opens; its hash does not."""
    with pytest.raises(Unauthenticated) as caught:
        Guard(["secret", "other"]).admit(header)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("auth", ["", [], [""], ["good", ""], ["good", None], 5, [5]])
def test_auth_that_holds_no_key_is_an_error(auth):
    """What would leave the door open, or shut for ever, is refused when the server is made."""
    with pytest.raises((ValueError, TypeError)):
        Guard(auth)


@pytest.mark.parametrize("text", ["key\n", " key", "key\t"])
def test_key_with_white_space_at_its_ends_is_an_error(text):
    """A key read from a file with its line's end would never match, so it is refused at once."""
    with pytest.raises(ValueError, match="white space") as caught:
        Guard(text)
    assert "key\\n" not in str(caught.value)


@pytest.mark.parametrize("sent", ["first", "middle", "last", "nobody"])
def test_every_key_is_compared_in_constant_time(sent):
    """Each key is compared by `compare_digest`, also after one has matched."""
    guard = Guard(["first", "middle", "last"])
    compared = []

    def watch(_frame, event, what):
        if event == "c_call" and what.__name__ == "compare_digest":
            compared.append(what.__module__)

    sys.setprofile(watch)
    try:
        guard.admit(bearer(sent))
    except Unauthenticated:
        pass
    finally:
        sys.setprofile(None)
    assert len(compared) == 3


def test_a_guard_holds_no_key():
    """Neither the key's text nor its hash can be read off a guard's parts."""
    guard = Guard("hunter2")
    digest = hashlib.sha256(b"hunter2").digest()
    (key,) = guard.keys
    shown = f"{guard!r} {vars(guard)!r} {key!r} {guard.admit(bearer('hunter2'))!r}"
    assert "hunter2" not in shown
    assert repr(digest) not in shown
    assert digest.hex() not in shown
    assert "hunter2" not in repr(attrs.astuple(key))


# Grants.


def test_grant_that_is_missing_is_named():
    """What a key may not do is refused with the name of the grant."""
    with pytest.raises(Forbidden, match="'train'"):
        Guard("k").admit(bearer("k")).check("train", "net")


def test_unknown_grant_is_an_error():
    """A misspelt grant is refused when the server is made."""
    with pytest.raises(ValueError, match="trian"):
        Guard(None, {"call", "trian"})
    with pytest.raises(ValueError, match="trian"):
        Key.of("k", "text", ["trian"])


def test_one_grant_may_be_a_string():
    """`allow="call"` is one grant, not four letters."""
    assert Guard(None, "call").admit(None).allow == {"call"}


@pytest.mark.parametrize(
    ("held", "model", "method", "may"),
    [
        (None, "net", "__call__", True),
        (None, "net", "move", True),
        ({"net"}, "net", "__call__", True),
        ({"net"}, "net", "move", True),
        ({"net"}, "net2", "__call__", False),
        ({"net"}, "ne", "__call__", False),
        ({"net"}, "NET", "__call__", False),
        ({"net.move"}, "net", "move", True),
        ({"net.move"}, "net", "__call__", False),
        ({"net.move"}, "net", "mov", False),
        ({"net.move"}, "net.move", "__call__", True),  # no model can have that name
        (set(), "net", "__call__", False),
    ],
)
def test_key_is_held_to_its_models(held, model, method, may):
    """A key may ask the models and methods it names, and nothing whose name is like theirs."""
    caller = Caller("k", DEFAULT_GRANTS, None if held is None else frozenset(held))
    assert caller.may_ask(model, method) is may
    if not may:
        with pytest.raises(Forbidden, match="not granted"):
            caller.check("call", model, method)


# The key file.


def test_key_file_tells_callers_apart(file):
    """A key of the file is let in under its table's name."""
    guard = Guard(file)
    assert guard.admit(bearer("apple")).id == "alice"
    assert guard.admit(bearer("banana")).id == "bob"


def test_key_file_says_what_each_key_may(tmp_path):
    """`allow` and `models` in a key's table hold for that key; without them the server's hold."""
    path = put(
        tmp_path / "keys.toml",
        table("all", "a")
        + table("some", "b", 'allow = ["describe"]\nmodels = ["net", "agent.move"]')
        + table("none", "c", "allow = []\nmodels = []"),
    )
    guard = Guard(path, {"call", "describe", "train"})
    assert guard.admit(bearer("a")) == Caller("all", frozenset({"call", "describe", "train"}))
    assert guard.admit(bearer("b")) == Caller(
        "some", frozenset({"describe"}), frozenset({"net", "agent.move"})
    )
    assert guard.admit(bearer("c")) == Caller("none", frozenset(), frozenset())


def test_withdrawn_key_stops_working(file):
    """A key that is taken out of the file is refused at the next request, and others go on."""
    guard = Guard(file)
    guard.admit(bearer("apple"))
    put(file, table("bob", "banana"))
    with pytest.raises(Unauthenticated):
        guard.admit(bearer("apple"))
    assert guard.admit(bearer("banana")).id == "bob"


def test_replaced_file_is_noticed_by_more_than_its_time(file):
    """A new file of the same size and time is read, as a copy that keeps times makes one."""
    guard = Guard(file)
    before = file.stat()
    put(file, table("alice", "grape") + table("bob", "banana"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    with pytest.raises(Unauthenticated):
        guard.admit(bearer("apple"))
    assert guard.admit(bearer("grape")).id == "alice"


BROKEN = {
    "no TOML": "[alice",
    "no table": 'alice = "apple"',
    "no hash": "[alice]\n",
    "a key in clear": '[alice]\nsha256 = "apple"\n',
    "a short hash": '[alice]\nsha256 = "ab12"\n',
    "an unknown field": table("alice", "apple", "admin = true"),
    "an unknown grant": table("alice", "apple", 'allow = ["everything"]'),
    "a grant that is no list": table("alice", "apple", 'allow = "call"'),
    "models that are no list": table("alice", "apple", 'models = "net"'),
    "models that are no names": table("alice", "apple", "models = [1]"),
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_server_does_not_start_with_a_broken_key_file(tmp_path, text):
    """A key file that cannot be read whole is an error when the server is made."""
    with pytest.raises(ValueError):
        Guard(put(tmp_path / "keys.toml", text))


@pytest.mark.parametrize(
    "text", [*BROKEN.values(), b"\xff\xfe", None], ids=[*BROKEN, "bytes", "gone"]
)
def test_nobody_gets_in_while_the_key_file_is_broken(file, caplog, text):
    """When the file breaks while serving, the old keys end with it, and the log says so once."""
    guard = Guard(file)
    guard.admit(bearer("apple"))
    if text is None:
        file.unlink()
    elif isinstance(text, bytes):
        file.write_bytes(text)
    else:
        put(file, text)
    with caplog.at_level(logging.ERROR, "maas"):
        for key in ("apple", "banana", "apple"):
            with pytest.raises(NotReady) as caught:
                guard.admit(bearer(key))
            assert caught.value.retry_after
            assert str(file) not in str(caught.value)
    (record,) = caplog.records
    assert str(file) in record.getMessage()
    assert "apple" not in record.getMessage()
    put(file, table("bob", "banana"))
    assert guard.admit(bearer("banana")).id == "bob"
