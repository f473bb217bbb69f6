"""The live page in a real browser: its numbers move while calls are made, and it stays quiet."""

import threading
from collections.abc import Iterator

import pytest
import torch
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

import maas

PATIENT = 30.0


class Words:
    """Waits where it is told to, so that a call is in flight for as long as one looks."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    @maas.method
    def hold(self) -> int:
        assert self.go_on.wait(PATIENT)
        return 1

    @maas.method
    def split(self, text: str) -> Iterator[str]:
        yield from text.split()


@pytest.fixture
def words():
    return Words()


@pytest.fixture
def url(words):
    models = {"net": torch.nn.Linear(3, 2).eval(), "words": words}
    with maas.serve(models, port=0, block=False) as server:
        yield server.url


def place(browser, name):
    return browser.find_element("css selector", f'[data-live="{name}"]')


def text(browser, name):
    return place(browser, name).get_attribute("textContent")


def until(browser, held):
    return WebDriverWait(browser, PATIENT, 0.05).until(lambda _: held())


def complaints(browser):
    return browser.get_log("browser")


def test_numbers_move_while_calls_are_made(browser, url):
    """Calls that are made while the page is open appear on it, numbers and pictures, by itself."""
    browser.get(url)
    assert text(browser, "net.totals").startswith("0 calls")
    assert text(browser, "net.latency") == "\N{EN DASH}"
    before = place(browser, "net.rate-line").get_attribute("d")
    with maas.connect(f"{url}/net") as net:
        for _ in range(3):
            net(torch.zeros(2, 3))
        until(browser, lambda: text(browser, "net.totals").startswith("3 calls, none failed"))
        with pytest.raises(maas.SignatureError):
            net.with_options(timeout=PATIENT)("text", 2, 3)
        net(torch.zeros(1, 3))
    until(browser, lambda: text(browser, "net.latency") != "\N{EN DASH}")
    assert place(browser, "net.rate-line").get_attribute("d") != before
    assert place(browser, "net.batch-bars").get_attribute("d")
    assert text(browser, "words.totals").startswith("0 calls")
    assert complaints(browser) == []


def test_calls_in_flight_are_seen(browser, url, words):
    """A call that runs shows as in flight, and no longer once it has ended."""
    browser.get(f"{url}/words")
    with maas.connect(f"{url}/words") as model:
        job = model.hold.submit()
        until(browser, lambda: "1 in flight" in text(browser, "words.rate-more"))
        words.go_on.set()
        assert job.result(PATIENT) == 1
    until(browser, lambda: "0 in flight" in text(browser, "words.rate-more"))
    assert complaints(browser) == []


def test_the_page_can_be_stopped(browser, url):
    """The keyboard reaches a button that stops the figures, and lets them go on."""
    browser.get(f"{url}/net")
    body = browser.find_element("tag name", "body")
    body.send_keys(Keys.TAB)
    button = browser.switch_to.active_element
    assert button.accessible_name == "Pause"
    button.send_keys(Keys.ENTER)
    state = browser.find_element("css selector", ".vital .state")
    assert (state.text, state.aria_role) == ("paused", "status")
    browser.execute_script(
        "window.asked = 0; const real = fetch;"
        "window.fetch = (...given) => { window.asked += 1; return real(...given); };"
        "document.dispatchEvent(new Event('visibilitychange'));"
    )
    assert browser.execute_script("return window.asked") == 0
    with maas.connect(f"{url}/net") as net:
        net(torch.zeros(1, 3))
    button.send_keys(Keys.ENTER)
    until(browser, lambda: text(browser, "net.totals").startswith("1 call,"))
    assert state.text == "live"


def test_the_page_asks_only_its_own_server(browser, url):
    """Everything that the page loads comes from the server it came from."""
    browser.get(url)
    asked = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    names = until(browser, lambda: browser.execute_script(asked))
    assert set(names) == {f"{url}/maas/status"}


def test_a_server_that_stops_is_told(browser):
    """When the server no longer answers, the page says so and keeps its last figures."""
    with maas.serve(torch.nn.Linear(3, 2).eval(), port=0, block=False) as server:
        browser.get(server.url)
        state = browser.find_element("css selector", ".vital .state")
        until(browser, lambda: state.text == "live")
    until(browser, lambda: state.text == "no answer from the server")
    assert text(browser, "linear.totals").startswith("0 calls")
    complaints(browser)  # the browser's own, of connections refused


@pytest.mark.parametrize("width", [320, 800, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits(browser, url, width, scheme):
    """At any width, light or dark, nothing sticks out and nothing moves by itself."""
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(url)
    root = "return document.documentElement"
    assert browser.execute_script(f"{root}.scrollWidth <= {root[7:]}.clientWidth")
    assert browser.execute_script("return document.getAnimations().length") == 0
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_page_needs_no_script(browser, url):
    """Without JavaScript the figures are those of the moment, and no button is there in vain."""
    with maas.connect(f"{url}/net") as net:
        for _ in range(4):
            net(torch.zeros(2, 3))
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(url)
        assert text(browser, "net.totals").startswith("4 calls, none failed")
        assert not [b for b in browser.find_elements("tag name", "button") if b.is_displayed()]
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
