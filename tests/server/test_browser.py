"""The index page in a real browser: Chromium without a window, driven by its own driver."""

import base64
import contextlib
import datetime as dt
import struct
from collections.abc import Iterator

import attrs
import pytest
import torch
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

import maas
from maas.executors.base import ModelInfo
from maas.http import Response
from maas.limits import Limits
from maas.server import page
from maas.server.front import Admission, Head
from maas.server.runner import Background, Runner

PATIENCE = 60.0
PHONE = (390, 844)


def tokens(text: str, *, lower: bool = True) -> list[str]:
    """Split a text into words."""
    return (text.lower() if lower else text).split()


class Chat:
    """Answers in words."""

    @maas.method
    def reply(self, prompt: str, *, at: dt.datetime | None = None) -> Iterator[str]:
        """The answer, word by word."""
        yield from prompt.split()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of a server with a function, an object and a torch module."""
    net = torch.nn.Sequential(torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    digits = maas.Model(net.eval(), name="digits", example=torch.zeros(1, 784))
    models = {"tokens": tokens, "chat": Chat(), "digits": digits}
    with maas.serve(models, port=0, block=False) as server:
        yield server.url


def opened(browser: webdriver.Chrome, url: str, *, size=(1100, 900), scheme="light") -> None:
    """Loads the page anew, in a window of that size and in that colour scheme."""
    browser.set_window_size(*size)
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(url)


def complaints(browser: webdriver.Chrome) -> list[str]:
    """What the console got since it was last asked: errors, and violations of the policy."""
    return [entry["message"] for entry in browser.get_log("browser")]


def texts(browser: webdriver.Chrome, selector: str) -> list[str]:
    return [each.text for each in browser.find_elements(By.CSS_SELECTOR, selector)]


def test_the_page_shows_what_is_served(browser, url):
    """Models, signatures and an example of each call are on the page, and nothing complains."""
    opened(browser, url)
    assert browser.title == "3 models · maas"
    assert texts(browser, "h2") == ["chat", "digits", "tokens"]
    shown = " ".join(texts(browser, "h3"))
    assert "tokens(text: str, *, lower: bool = True) -> list[str]" in shown
    assert "chat.reply(prompt: str" in shown
    assert "Split a text into words." in texts(browser, ".doc")
    python, shell = texts(browser, "#tokens pre")
    assert f"maas.connect('{url}/tokens')" in python.replace('"', "'")
    assert f"{url}/tokens" in shell
    assert complaints(browser) == []


def test_the_copy_buttons_copy(browser, url):
    """Each button puts its example on the clipboard, says so, and is reached by the keyboard."""
    opened(browser, url)
    browser.execute_cdp_cmd(
        "Browser.grantPermissions",
        {"origin": url, "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]},
    )
    for details in browser.find_elements(By.CSS_SELECTOR, "details:not([open]) > summary"):
        details.click()
    figures = browser.find_elements(By.TAG_NAME, "figure")
    assert len(figures) == 6
    said = "return [arguments[0].textContent, document.getElementById('said').textContent]"
    for index, figure in enumerate(figures):
        button = figure.find_element(By.TAG_NAME, "button")
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        if index % 2:
            button.click()
        else:
            button.send_keys(Keys.ENTER)
        WebDriverWait(browser, PATIENCE).until(
            lambda _, button=button: browser.execute_script(said, button) == ["Copied", "Copied"]
        )
        copied = browser.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
        assert copied == figure.find_element(By.TAG_NAME, "pre").get_property("textContent")
    WebDriverWait(browser, PATIENCE).until(lambda _: button.text == "Copy")
    assert complaints(browser) == []


def test_the_copy_buttons_copy_without_a_clipboard(browser, url):
    """Where a page has no clipboard, as over plain http from elsewhere, selecting does it."""
    hidden = "Object.defineProperty(navigator, 'clipboard', {value: undefined});"
    script = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": hidden})
    try:
        opened(browser, url)
        button = browser.find_element(By.CSS_SELECTOR, "figure button")
        button.click()
        WebDriverWait(browser, PATIENCE).until(lambda _: button.text == "Copied")
        selected = browser.execute_script("return getSelection().toString()")
        assert selected.strip() == texts(browser, "figure pre")[0].strip()
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1100, 900), PHONE], ids=["desk", "phone"])
def test_the_page_fits_its_window(browser, url, size, scheme, tmp_path):
    """In either colour scheme, on a desk and on a phone, nothing is wider than the window."""
    opened(browser, url, size=size, scheme=scheme)
    for details in browser.find_elements(By.CSS_SELECTOR, "details:not([open]) > summary"):
        details.click()
    inner, whole, height = browser.execute_script(
        "const root = document.documentElement;"
        "return [innerWidth, root.scrollWidth, root.scrollHeight]"
    )
    assert (inner, whole) == (size[0], size[0])
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, ground.removeprefix("rgb(").removesuffix(")").split(",")))
    assert (brightness > 600) == (scheme == "light")
    picture = pictured(browser, size[0], height)
    (tmp_path / "page.png").write_bytes(picture)
    assert struct.unpack(">II", picture[16:24]) == (size[0], height)
    assert len(set(picture)) > 200  # compressed text and not one colour
    assert complaints(browser) == []


def pictured(browser: webdriver.Chrome, width: int, height: int) -> bytes:
    """The whole page as a PNG."""
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    shot = {"format": "png", "captureBeyondViewport": True, "clip": clip}
    return base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", shot)["data"])


# What the policy keeps out.


@attrs.frozen
class Fixed:
    """A front that answers everything with one page."""

    body: bytes

    def admit(self, _head: Head) -> Response:
        kind = ("content-type", "text/html; charset=utf-8")
        return Response(200, (kind, *page.SECURITY), (self.body,))

    async def answer(self, _admission: Admission, _body: bytearray) -> Response:
        raise AssertionError("nothing is admitted")

    def draining(self) -> None: ...


@contextlib.contextmanager
def showing(browser: webdriver.Chrome, body: bytes) -> Iterator[None]:
    with Background(Runner(Fixed(body), port=0)) as server:
        opened(browser, server.url)
        yield


HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror='alert(1)'>\"'&"


def hostile() -> dict[str, ModelInfo]:
    """A model of a server behind this one: everything in it is a stranger's text."""
    info = attrs.evolve(maas.Model(Chat()).info, limits=attrs.asdict(Limits()))
    reply = info.methods["reply"]
    methods = {HOSTILE: attrs.evolve(reply, name=HOSTILE, doc=HOSTILE), "reply": reply}
    layers = [{"name": HOSTILE, "type": HOSTILE, "parameters": {HOSTILE: [HOSTILE, [1]]}}]
    return {
        HOSTILE: attrs.evolve(
            info, name=HOSTILE, kind=HOSTILE, device=HOSTILE, methods=methods,
            versions={HOSTILE: HOSTILE}, details={"layers": layers},
        )
    }  # fmt: skip


def test_hostile_text_is_shown_and_not_obeyed(browser):
    """Of a model whose every text is markup, the browser makes text, and the buttons work."""
    body = page.index(hostile(), "http://127.0.0.1", locked=True)
    with showing(browser, body):
        assert "owned" in browser.title  # as text, within the whole name
        assert browser.title.endswith("· maas")
        assert browser.find_elements(By.TAG_NAME, "img") == []
        assert texts(browser, "h2") == [HOSTILE]
        assert len(browser.find_elements(By.CSS_SELECTOR, "figure button")) == 4
        assert complaints(browser) == []


def test_nothing_but_the_pages_own_script_runs(browser):
    """A script that is not the page's own is refused by the policy, and the console tells."""
    info = attrs.evolve(maas.Model(tokens).info, limits=attrs.asdict(Limits()))
    body = page.index({"tokens": info}, "http://127.0.0.1", locked=False)
    foreign = b"<main><script>document.title='owned'</script><img src='/picture.png'>"
    with showing(browser, body.replace(b"<main>", foreign)):
        assert browser.title == "tokens · maas"
        said = complaints(browser)
        assert len(said) == 2
        assert all("Content Security Policy" in line for line in said)
