import socket
import ssl

import pytest

import maas
from maas.executors.addresses import connect_url, is_loopback
from maas.executors.remote import RemoteExecutor

KEY = "secret-of-mine"


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.255.255.254", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        (None, False),
        ("10.0.0.1", False),
        ("localhost.example.com", False),
        ("127.0.0.1.example.com", False),
        ("127.1", False),
        ("2130706433", False),
        ("example.com", False),
    ],
)
def test_what_stays_on_this_machine(host, here):
    """Only what surely is this machine counts as such."""
    assert is_loopback(host) is here


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///net",
        "http://:8000/net",
        "https://host/net?key=1",
        "https://host/net#part",
        "https://user@host/net",
        "https://@host/net",
        "https://host:port/net",
        "https://host:99999/net",
        "https://[::1/net",
        "http+unix:///run/maas.sock/net",
    ],
)
def test_address_that_names_no_place_is_an_error(url):
    """An address that is not host, port and path alone is refused before anything is sent."""
    with pytest.raises(ValueError):
        connect_url(url)


def test_password_in_an_address_is_not_repeated():
    """An address with a password is refused without showing it."""
    with pytest.raises(ValueError, match="auth=") as caught:
        connect_url(f"https://user:{KEY}@host/net")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("host", ["192.0.2.1", "example.com", "[2001:db8::1]:8000", "0.0.0.0"])
def test_key_does_not_leave_this_machine_in_clear(host):
    """A key for a plain http address elsewhere is refused at connect, unless said aloud."""
    with pytest.raises(ValueError, match="https://") as caught:
        maas.connect(f"http://{host}/net", auth=KEY)
    assert KEY not in str(caught.value)
    maas.connect(f"http://{host}/net", auth=KEY, insecure=True).close()
    maas.connect(f"https://{host}/net", auth=KEY).close()
    maas.connect(f"http://{host}/net").close()


@pytest.mark.parametrize(
    "url",
    ["http://localhost/net", "http://127.0.0.1:1/net", "http://[::1]/net", "http+unix://%2Fs/net"],
)
def test_key_may_stay_on_this_machine_in_clear(url):
    """On this machine a key may go without TLS."""
    maas.connect(url, auth=KEY).close()


@pytest.mark.parametrize(
    ("url", "option"),
    [
        ("http://localhost/net", {"verify": "ca.pem"}),
        ("http+unix://%2Fs/net", {"verify": "ca.pem"}),
        ("http+unix://%2Fs/net", {"proxy": "http://localhost:1"}),
        ("http+unix://%2Fs/net", {"http2": True}),
        ("http://localhost/net", {"device": "cpu"}),
        ("http://localhost/net", {"name": "net"}),
        ("http://localhost/net", {"tiemout": 3}),
    ],
)
def test_option_that_makes_no_sense_is_an_error(url, option):
    """No option is ignored: one that this place cannot honour is a TypeError that names it."""
    with pytest.raises(TypeError, match=next(iter(option))):
        maas.connect(url, **option)


@pytest.mark.parametrize("option", ["auth", "verify", "insecure", "proxy", "limits"])
def test_options_of_a_url_are_errors_here(option):
    """A model in this process has no use for a key or a proxy, and says so."""
    with pytest.raises(TypeError, match=option):
        maas.connect(len, **{option: None})
    with pytest.raises(TypeError, match=option):
        maas.connect(maas.Model(len), **{option: None})


@pytest.mark.parametrize("where", ["net", "ftp://host/net", "host:8000/net", "://net", ""])
def test_unknown_scheme_is_an_error(where):
    """An address of a kind nobody knows is refused, naming the kinds there are."""
    with pytest.raises(ValueError, match="http"):
        maas.connect(where)


def test_connect_does_nothing_yet():
    """`connect` opens no connection and looks up no name; the first use does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        model = maas.connect(f"http://127.0.0.1:{listener.getsockname()[1]}/net")
        assert model.where.startswith("http://127.0.0.1:")
        assert "net" in repr(model)
        with pytest.raises(BlockingIOError):
            listener.accept()
        model.close()
    maas.connect("https://no-such-host.invalid/net").close()


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://host/net", "net"),
        ("http://host/net/", "net"),
        ("http://host/models/net", "net"),
        ("http://host", "model"),
        ("http://host/", "model"),
        ("http+unix://%2Frun%2Fs/net", "net"),
    ],
)
def test_last_part_of_the_path_is_the_model(url, name):
    """What stands before the model's name is where a host mounted the server."""
    executor = connect_url(url)
    assert isinstance(executor, RemoteExecutor)
    assert executor.name == name
    assert executor.where == url.rstrip("/")
    executor.close()


def test_variable_wins(monkeypatch):
    """`env=` names a variable that says where the model runs, if it is set."""
    monkeypatch.setenv("MAAS_TEST_NET", "http://localhost:1/net")
    with maas.connect(len, env="MAAS_TEST_NET") as model:
        assert model.where == "http://localhost:1/net"
    monkeypatch.setenv("MAAS_TEST_NET", "")
    assert maas.connect(len, env="MAAS_TEST_NET").where == "here"


def test_context_of_ones_own_is_taken(tmp_path):
    """`verify=` takes an `ssl.SSLContext`, or the file of an authority; a missing file is told."""
    connect_url("https://host/net", verify=ssl.create_default_context()).close()
    with pytest.raises(FileNotFoundError, match=r"none\.pem"):
        connect_url("https://host/net", verify=str(tmp_path / "none.pem"))
