import functools
import os
import pickle
import sys
import weakref
from collections.abc import Iterator

import pytest
import torch

import maas
from maas.model import model_name


def add(a: int, b: int = 2) -> int:
    """Adds two numbers.

    And says more below.
    """
    return a + b


class Encoder:
    """An object with methods."""

    def __init__(self, size: int = 3) -> None:
        self.size = size

    @maas.method
    def encode(self, text: str) -> list[int]:
        """Letters as numbers."""
        return [ord(letter) % self.size for letter in text]

    @maas.method(name="decode_all", pure=True)
    def decode(self, codes: list[int]) -> str:
        return "".join(map(chr, codes))

    def private(self) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (add, "add"),
        (Encoder(), "encoder"),
        (torch.nn.BatchNorm1d(3), "batch_norm1d"),
        (lambda x: x, "lambda"),
        (functools.partial(add, 1), "partial"),
        (abs, "abs"),
    ],
)
def test_a_model_has_the_name_of_its_target(target, name):
    """The name is the function's or the class's, in the letters that an address takes."""
    assert model_name(target) == name
    assert maas.Model(target).name == name


@pytest.mark.parametrize("name", ["", "Net", "a/b", "-a", "a" * 65, "ä", "a b", ".."])
def test_a_name_is_part_of_an_address(name):
    """A name that an address could not hold is refused, with the way out."""
    with pytest.raises(ValueError, match="give name="):
        maas.Model(add, name=name)


def test_it_decorates():
    """`@maas.Model` makes a model of a function, that is called as before."""

    @maas.Model
    def tokens(text: str, *, lower: bool = True) -> list[str]:
        return (text.lower() if lower else text).split()

    assert tokens("A b") == ["a", "b"]
    assert tokens("A b", lower=False) == ["A", "b"]
    assert repr(tokens) == "<maas.Model 'tokens' here>"


def test_marked_methods_are_the_models():
    """Methods marked are called by their name or the one given; others are not there."""
    model = maas.Model(Encoder())
    assert model.encode("ab") == [1, 2]
    assert model.decode_all([97]) == "a"
    for name in ("private", "decode", "size", "nothing"):
        with pytest.raises(AttributeError, match=f"no method {name!r}; it has: decode_all, encode"):
            getattr(model, name)
    with pytest.raises(AttributeError, match="cannot be called itself"):
        model("ab")
    assert {"encode", "decode_all", "submit", "map"} <= set(dir(model))
    assert repr(model.encode) == "<maas method encoder.encode here>"


def test_private_names_are_never_asked_for():
    """Attributes that begin with an underscore are Python's own business."""
    model = maas.Model(Encoder())
    with pytest.raises(AttributeError, match="_missing"):
        model._missing
    with pytest.raises(TypeError):
        pickle.dumps(model)


@pytest.mark.parametrize("name", ["map", "submit", "stream", "close", "train", "info", "_hidden"])
def test_a_method_named_like_one_of_models_is_refused(name):
    """A method that could not be reached is refused at wrapping, with the way out."""
    target = type("Target", (), {name: maas.method(lambda self: None)})()
    with pytest.raises(ValueError, match=r"@maas\.method\(name=\.\.\.\)"):
        maas.Model(target)


def test_a_renamed_method_is_taken():
    """The way out works."""
    target = type("Target", (), {"map": maas.method(name="map_all")(lambda self: 7)})()
    assert maas.Model(target).map_all() == 7


@pytest.mark.parametrize("target", [3, "text", None, Encoder, object(), [1]])
def test_what_cannot_be_run_is_refused(target):
    """A target that is neither callable nor marked says what would be."""
    with pytest.raises(TypeError, match=r"@maas\.method|maas\.Model\(Encoder"):
        maas.Model(target)


def test_connect_takes_what_model_takes():
    """`connect(target, ...)` is `Model(target, ...)`, and a Model is passed on."""
    model = maas.connect(add, name="plus")
    assert (model.name, model(1)) == ("plus", 3)
    assert maas.connect(model) is model


def test_a_local_address(monkeypatch, tmp_path):
    """`local:module:attribute` imports a target on behalf of the caller."""
    (tmp_path / "downstream_models.py").write_text(
        "import maas\n"
        "def double(x): return 2 * x\n"
        "class Box:\n    inner = staticmethod(double)\n"
        "made = maas.Model(double, name='made')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert maas.connect("local:downstream_models:double")(2) == 4
    assert maas.connect("local:downstream_models:Box.inner")(2) == 4
    assert maas.connect("local:downstream_models:made").name == "made"
    sys.modules.pop("downstream_models")


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        ("net", ValueError, "is no address"),
        ("local:os", ValueError, "local:module:attribute"),
        ("local:no_such_module:x", ModuleNotFoundError, "no_such_module"),
        ("local:os:nothing", AttributeError, "nothing"),
        ("ftp://host/net", ValueError, "no executor for the scheme 'ftp'"),
        ("gpu-1:8000/net", ValueError, "did you mean 'http://gpu-1:8000/net'"),
        ("mypkg.models:net", ValueError, "did you mean 'local:mypkg.models:net'"),
        ("http://", ValueError, "names no place"),
        ("http+unix:///run/maas.sock/net", ValueError, "write http.unix://%2Fpath%2F"),
        ("http://user@host/net", ValueError, "auth="),
        ("http://host/net?x=1", ValueError, "names no place"),
        ("", ValueError, "is no address"),
    ],
)
def test_addresses_that_lead_nowhere(address, error, words):
    """An address that names no place is refused at connect, with how to write one."""
    with pytest.raises(error, match=words):
        maas.connect(address)


@pytest.mark.parametrize(
    ("where", "option", "words"),
    [
        ("http://localhost:1/net", "timeout", r"with_options\(timeout=\.\.\.\)"),
        ("http://localhost:1/net", "retries", "option of calls"),
        ("http://localhost:1/net", "key", "a server's key is auth="),
        ("http://localhost:1/net", "limit", "did you mean 'limits='"),
        ("workers:os:getpid", "devise", "did you mean 'devices='"),
        ("workers:os:getpid", "timeout", "option of calls"),
        (add, "timeout", "option of calls"),
        (add, "exmple", "did you mean 'example='"),
        (maas.Model(add), "timeout", "option of calls"),
    ],
)
def test_options_that_no_place_takes(where, option, words):
    """An option that `connect` does not take says where it belongs, or what was meant."""
    with pytest.raises(TypeError, match=words) as caught:
        maas.connect(where, **{option: 1})
    assert "connect_url" not in str(caught.value)


def test_a_key_never_travels_in_the_clear():
    """`auth=` to another machine without TLS is refused, unless the caller insists."""
    with pytest.raises(ValueError, match="unencrypted"):
        maas.connect("http://example.invalid/net", auth="k" * 40)
    maas.connect("http://example.invalid/net", auth="k" * 40, insecure=True).close()
    maas.connect("http://127.0.0.1:1/net", auth="k" * 40).close()


def test_a_variable_wins_where_it_is_set(monkeypatch):
    """`env=` names a variable that overrides the place; `where` tells what came of it."""
    monkeypatch.delenv("APP_NET", raising=False)
    assert maas.connect(add, env="APP_NET").where == "here"
    monkeypatch.setenv("APP_NET", "http://127.0.0.1:1/net")
    assert maas.connect(add, env="APP_NET").where == "http://127.0.0.1:1/net"
    monkeypatch.setenv("APP_NET", "")
    assert maas.connect(add, env="APP_NET").where == "here"
    assert "APP_NET" in os.environ


def test_likeness():
    """`like=` compares signatures: here at once, and says what differs."""

    def other(a: str, b: int = 2) -> int:
        return b

    assert maas.connect(add, like=add)(1) == 3
    with pytest.raises(maas.SignatureError, match="'a' is str here and int there"):
        maas.connect(add, like=other)


def test_info():
    """`info` tells kind, methods, versions and the first line of the docstring."""
    info = maas.Model(add).info
    assert (info.kind, info.where, info.training, info.device) == ("function", "here", None, None)
    assert info.methods["__call__"].doc == "Adds two numbers."
    assert {"maas", "python"} <= set(info.versions)
    assert maas.Model(torch.nn.Linear(1, 1)).info.device == "cpu"
    described = maas.Model(Encoder()).describe()
    assert [method["name"] for method in described["methods"]] == ["decode_all", "encode"]


def test_modes_belong_to_the_handle():
    """`train` and `eval` change the handle only, and methods of it follow."""
    net = torch.nn.Dropout(0.5)
    model = maas.Model(net)
    other = model.with_options()
    assert model.training
    assert model.eval() is model
    assert (model.training, other.training, net.training) == (False, True, True)
    assert model.with_options(timeout=9).training is False


def test_options_of_a_handle_are_its_methods():
    """Options set on a model hold for its methods, and those set on a method for it alone."""
    model = maas.Model(Encoder()).with_options(timeout=30)
    assert model.encode.with_options(priority=3)("a") == [1]
    with pytest.raises(TypeError, match="known: timeout, retries, seed, priority, key"):
        model.encode.with_options(timeuot=1)


def test_a_model_is_collected_with_its_target():
    """A model that nobody holds keeps nothing alive."""
    target = Encoder()
    told = weakref.ref(target)
    model = maas.Model(target)
    assert model.encode("a") == [1]
    del target, model
    assert told() is None


def test_partials_and_builtins_have_the_signature_python_knows():
    """What is left of a partial, and what Python tells of a builtin, is what callers see."""
    assert maas.Model(functools.partial(add, 1))() == 3
    assert maas.Model(functools.partial(add, b=5))(1) == 6
    with pytest.raises(maas.SignatureError, match=r"add\(\) takes"):
        maas.Model(functools.partial(add, 1))(1, 2)
    model: maas.Model = maas.Model(max)
    assert model([3, 5]) == 5
    with pytest.raises(TypeError):
        maas.Model(len)()  # type: ignore[call-arg]


def counts(start: int, stop: int) -> Iterator[int]:
    yield from range(start, stop)


def test_a_partial_is_what_it_is_a_partial_of():
    """A partial of a generator function streams, and one of a stochastic function draws."""
    assert list(maas.Model(functools.partial(counts, 1))(3)) == [1, 2]
    method = maas.Model(functools.partial(maas.method(stochastic=True)(add), 1)).executor.method(
        "__call__"
    )
    assert (method.label, method.stochastic) == ("add", True)
