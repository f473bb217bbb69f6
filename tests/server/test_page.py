import base64
import contextlib
import datetime as dt
import decimal
import hashlib
import html.parser
import io
import re
import shutil
import subprocess
import typing
import uuid
from collections.abc import Iterator

import attrs
import numpy as np
import pytest
import torch

import maas
from maas.executors.base import ModelInfo
from maas.limits import Limits
from maas.parameters import Parameter
from maas.server import examples, page
from maas.server.app import serve

VOID = {"meta", "link", "br"}


class Document(html.parser.HTMLParser):
    """The elements and the text of a page, read as a browser would; unbalanced tags are noticed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts[tag][-1] += data


def info_of(target: typing.Any, **options: typing.Any) -> ModelInfo:
    return attrs.evolve(maas.Model(target, **options).info, limits=attrs.asdict(Limits()))


def page_of(*, locked: bool = False, base: str = "http://host:8000", **infos: ModelInfo) -> str:
    return page.index(infos, base, locked).decode()


def tokens(text: str, *, lower: bool = True) -> list[int]:
    """Split a text into tokens."""
    return [len(text)]


class Chat:
    @maas.method
    def reply(self, prompt: str, turns: int = 2) -> Iterator[str]:
        """Answers & asks, <token> by token."""
        yield from [prompt] * turns

    @maas.method(pure=True)
    def at(self, when: dt.datetime, /, *, zone: str) -> str:
        return f"{when}{zone}"


def everything(
    a: int,
    b: float | None,
    c: list[tuple[str, bytes]],
    d: dict[str, set[int]],
    e: typing.Literal["x", "y"],
    f: tuple[int, ...],
    g: decimal.Decimal,
    h: uuid.UUID,
    i: dt.timedelta,
    j: bool,
    k: typing.Annotated[np.ndarray, maas.TensorSpec("int64", ("n", 2))],
    ll: typing.Annotated[np.ndarray, maas.TensorSpec("float32", ("n", 40))],
    m: complex,
    n: None,
    o: tuple[int, str],
    p: frozenset[str],
    q: bytearray,
    r: dt.date,
    s: dt.time,
    t,
) -> str:
    return "all here"


# What stands on the page.


def test_page_lists_models():
    """The page shows each model's name, kind, signatures and documentation."""
    text = page_of(tokens=info_of(tokens), chat=info_of(Chat()), net=info_of(torch.nn.Linear(3, 2)))
    document = Document(text)
    assert document.texts["h2"] == ["tokens", "chat", "net"]
    assert "tokens(text: str, *, lower: bool = True) -> list[int]" in document.texts["h3"]
    assert "chat.reply(prompt: str, turns: int = 2) -> Iterator[str]" in document.texts["h3"]
    assert "Split a text into tokens." in document.texts["p"]
    assert "torch module · cpu · train mode" in document.texts["p"]


def test_page_folds_layers():
    """A torch module's layers stand in a details element, with shapes and sizes."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    document = Document(page_of(net=info_of(net)))
    assert "2 layers, 11 parameters" in document.texts["summary"]
    assert "weight float32[2, 3]" in document.texts["td"][2]
    assert document.texts["td"][3] == "8"


def test_page_of_many_layers_is_short():
    """Of a very deep module only the first layers are listed, and the rest counted."""
    net = torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(page.MAX_LAYERS + 3)))
    text = page_of(net=info_of(net))
    assert text.count("<tr>") == page.MAX_LAYERS + 1
    assert "and 3 more layers" in text


def test_page_of_nothing():
    """A page without models is a page that says so."""
    assert "serves no model that you may see" in page_of()


def test_locked_page_tells_of_the_key():
    """Where a key is needed the page says so and the examples send one."""
    text = page_of(locked=True, tokens=info_of(tokens))
    assert "Calls need a key" in text
    assert "Bearer $MAAS_KEY" in text
    assert "Bearer" not in page_of(tokens=info_of(tokens))


# Accessibility.


def test_page_has_landmarks_and_names():
    """The page has a language, landmarks, one first heading, and names for what takes focus."""
    document = Document(page_of(tokens=info_of(tokens), net=info_of(torch.nn.Linear(3, 2))))
    tags = [tag for tag, _ in document.elements]
    assert all(tags.count(tag) == 1 for tag in ("header", "main", "nav", "footer", "h1"))
    for tag, attributes in document.elements:
        if tag == "html":
            assert attributes["lang"] == "en"
        if tag == "nav" or "tabindex" in attributes:
            assert attributes["aria-label"]
        if tag == "article":
            assert (
                "h2",
                {"id": attributes["aria-labelledby"]},
            ) in document.elements
    ids = [attributes["id"] for _, attributes in document.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)


def luminance(colour: str) -> float:
    channels = (int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_can_be_read():
    """Every text colour has WCAG AA's contrast on every background, light and dark."""
    style = Document(page_of()).texts["style"][0]
    palettes = re.findall(r"--paper:.*?}", style, re.DOTALL)
    assert len(palettes) == 2
    for palette in palettes:
        colours = dict(re.findall(r"--(\w+): (#\w{6})", palette))
        for text in ("ink", "soft", "mark"):
            for ground in ("paper", "code"):
                low, high = sorted((luminance(colours[text]), luminance(colours[ground])))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)


# Safety.


def test_policy_names_the_inline_parts():
    """The policy allows the style and the script of the page, by their hashes, and nothing else."""
    document = Document(page_of(tokens=info_of(tokens)))
    policy = dict(
        part.split(" ", 1) for part in dict(page.SECURITY)["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    for tag in ("style", "script"):
        [text] = document.texts[tag]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert dict(page.SECURITY)["x-content-type-options"] == "nosniff"


def test_page_asks_for_nothing():
    """The page refers to no other resource and has no inline handlers or styles."""
    document = Document(page_of(net=info_of(torch.nn.Linear(3, 2))))
    for tag, attributes in document.elements:
        assert "src" not in attributes
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        if tag == "link":
            assert str(attributes["href"]).startswith("data:")


HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror='alert(1)'>\"'&"


def hostile() -> dict[str, ModelInfo]:
    """A model of a server behind this one: everything in it is a stranger's text."""
    info = info_of(Chat())
    reply = info.methods["reply"]
    methods = {HOSTILE: attrs.evolve(reply, name=HOSTILE, doc=HOSTILE), "reply": reply}
    layers = [
        {"name": HOSTILE, "type": HOSTILE, "parameters": {HOSTILE: [HOSTILE, [1]]}},
        {"name": HOSTILE, "type": HOSTILE, "parameters": {HOSTILE: HOSTILE}},
        {"name": "a", "type": "Linear", "parameters": {"weight": ["float32", [10**9, 10**9]]}},
        [HOSTILE],
        7,
    ]
    return {
        HOSTILE: attrs.evolve(
            info,
            name=HOSTILE,
            kind=HOSTILE,
            device=HOSTILE,
            methods=methods,
            versions={HOSTILE: HOSTILE},
            details={"layers": layers},
        ),
        "torch": attrs.evolve(info_of(torch.nn.Linear(1, 1)), details={"layers": layers[2:]}),
        "odd": attrs.evolve(info_of(tokens), details={"layers": HOSTILE}),
    }


def test_hostile_text_stays_text():
    """Markup in a model's names, documentation, versions and layers is shown, not obeyed."""
    document = Document(page.index(hostile(), f"http://{HOSTILE}", locked=True).decode())
    tags = [tag for tag, _ in document.elements]
    assert tags.count("script") == 1
    assert "img" not in tags
    assert all("onerror" not in attributes for _, attributes in document.elements)
    assert HOSTILE in document.texts["h2"]
    assert HOSTILE in document.texts["p"]


# Examples.


@pytest.fixture(scope="module")
def url():
    models = {
        "tokens": tokens,
        "chat": Chat(),
        "linear": torch.nn.Linear(3, 2),
        "conv": torch.nn.Conv2d(3, 2, 3),
        "embedding": torch.nn.Embedding(5, 2),
        "learned": maas.Model(torch.nn.Linear(3, 2), example=torch.zeros(8, 3), name="learned"),
        "everything": everything,
    }
    running = serve(models, port=0, block=False)
    assert running is not None
    with running:
        yield running.url


CALLS = [
    ("tokens", "__call__"),
    ("chat", "reply"),
    ("chat", "at"),
    ("linear", "__call__"),
    ("conv", "__call__"),
    ("embedding", "__call__"),
    ("learned", "__call__"),
    ("everything", "__call__"),
]


@pytest.mark.parametrize(("model", "method"), CALLS)
def test_python_example_runs(url, model, method):
    """The Python example, pasted, calls the model."""
    info = maas.connect(f"{url}/{model}").info
    code = examples.python(info, info.methods[method], f"{url}/{model}", locked=False)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    assert printed.getvalue()


@pytest.mark.parametrize(("model", "method"), CALLS)
def test_curl_example_runs(url, model, method, lacking):
    """The shell example, pasted, calls the model."""
    if shutil.which("curl") is None:
        lacking("curl", "curl is not installed")
    info = maas.connect(f"{url}/{model}").info
    code = examples.curl(info, info.methods[method], f"{url}/{model}", locked=False)
    done = subprocess.run(
        ["/bin/sh", "-c", code.replace("curl ", "curl -sS --noproxy '*' --fail-with-body ", 1)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"result"' in done.stdout or '"end": true' in done.stdout


def test_example_of_a_large_array():
    """An array beyond what JSON may bring is called with a file."""
    signature = maas.Signature(
        [Parameter("x", annotation=maas.TensorSpec("float32", (1, 3, 512, 512)))]
    )
    info = info_of(torch.nn.Flatten(), signature=signature)
    assert examples.curl(info, info.methods["__call__"], "http://h/net", locked=False) == (
        "maas call http://h/net x.npy"
    )
