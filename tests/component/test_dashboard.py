"""The dashboard in a real browser: what it shows, what it lets through, and that everyone can use it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pytest

pytest.importorskip("selenium", reason="needs selenium (pip install selenium)")
pytest.importorskip("fastapi", reason="needs the extra proxy")

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from haclient.proxy.report import ClusterReport
from tests.component.dashboard_backend import FakeProxy, bad_day, endpoint

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs chromium (apt install chromium-driver)"),
    pytest.mark.xdist_group("chromium"),
]

T = TypeVar("T")
EVIL = "<img src=x onerror=pwned=1>\"'><script>pwned=1</script></style></script><svg onload=pwned=1>"


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """The page of one fake proxy in the browser."""

    def __init__(self, driver: webdriver.Chrome, proxy: FakeProxy) -> None:
        self.driver = driver
        self.proxy = proxy
        #: Parts of console messages that are expected.
        self.expected: list[str] = []

    def open(self, width: int = 1280, height: int = 900, **media: str) -> None:
        self.resize(width, height)
        self.emulate(**media)
        self.driver.get(self.proxy.url)

    def resize(self, width: int, height: int = 900) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def emulate(self, scheme: str = "light", motion: str = "no-preference") -> None:
        features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
        named = [{"name": name, "value": value} for name, value in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": named})

    def shown(self) -> Page:
        """Wait for the first data to be drawn, charts and events too."""
        self.until(
            lambda: self.js("return fleet !== null && !$('data').hidden && $('charts').querySelector('.line') !== null")
        )
        return self

    def js(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def find(self, css: str) -> WebElement:
        return self.driver.find_element("css selector", css)

    def all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements("css selector", css)

    def text(self, css: str) -> str:
        """The text of an element, also of one that only a screen reader sees."""
        return str(self.js("return document.querySelector(arguments[0]).textContent", css))

    def until(self, condition: Callable[[], T]) -> T:
        return WebDriverWait(self.driver, 20, poll_frequency=0.05).until(lambda _: condition())

    def reads(self, css: str, expected: str) -> None:
        """Wait until an element has a text."""
        try:
            self.until(lambda: expected in self.text(css))
        except Exception:
            raise AssertionError(f"{css} never read {expected!r}; last: {self.text(css)!r}") from None

    def button(self, label: str) -> WebElement:
        """Wait for the button with an accessible name."""
        script = (
            "return [...document.querySelectorAll('button')].find(b => (b.ariaLabel ?? b.innerText) === arguments[0])"
        )
        found: WebElement = self.until(lambda: self.js(script, label))
        assert found.accessible_name == label
        return found

    def focused(self) -> WebElement:
        return self.driver.switch_to.active_element

    def press(self, *keys: str) -> None:
        ActionChains(self.driver, duration=0).send_keys(*keys).perform()

    def requests(self) -> list[str]:
        messages = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def check_console_and_network(self) -> None:
        """No error and no violation was written to the console, and nothing was asked of anyone else."""
        console = [e for e in self.driver.get_log("browser") if e["level"] in ("SEVERE", "WARNING")]
        assert [e for e in console if not any(part in e["message"] for part in self.expected)] == []
        outside = [url for url in self.requests() if not url.startswith((self.proxy.url, "data:", "chrome:", "about:"))]
        assert outside == []


@pytest.fixture
def proxy() -> Iterator[FakeProxy]:
    proxy = FakeProxy()
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()


@pytest.fixture
def page(browser: webdriver.Chrome, proxy: FakeProxy) -> Iterator[Page]:
    """A page that is not open yet; afterwards its console and its requests are looked at."""
    browser.get_log("browser")
    browser.get_log("performance")
    page = Page(browser, proxy)
    try:
        yield page
        page.check_console_and_network()
    finally:
        browser.get("about:blank")


# What it shows.


def test_fleet(page: Page) -> None:
    """The verdict comes first, in the title too; then clients, workers, clusters and endpoints, joined by lines."""
    page.open()
    page.shown()
    assert page.text("#verdict") == "Serving: 3 of 3 endpoints up"
    assert page.driver.title.startswith("Serving: 3 of 3 endpoints up")
    assert page.text("#problems") == "Nothing is out of the ordinary."
    assert page.text("#clients") == "Clients128 connections"
    assert [worker.text.split("\n")[0] for worker in page.all(".worker h4")] == ["Worker 0", "Worker 1"]
    dublin = page.all("#clusters > li")[1].text
    for told in (
        "dublin",
        "zone eu-west-1",
        "priority 1",
        "weight 0.5",
        "1 of 1 up",
        "dub-1",
        "21.7 ms",
        "2.3.4",
        "docs",
    ):
        assert told in dublin
    assert page.all(".links path[data-state=up]")
    assert not re.search(r"undefined|NaN|null|\[object|Infinity", page.text("main"))


def test_figures(page: Page) -> None:
    """Figures, chart summaries and the table agree with the history."""
    page.open()
    page.shown()
    points = page.proxy.do(lambda b: b.history_points[1.0])
    failed, answered = sum(p.failed for p in points), sum(p.ok + p.refused for p in points)
    rate = sum(p.ok + p.refused + p.failed + p.shed for p in points[-10:]) / 10
    assert f"calls per second{rate:.0f}" in page.text("#figures")
    assert f"answered, 10 min{answered / (answered + failed):.3%}".replace("%", " %") in page.text("#figures")
    latency = page.find("#charts figure svg[role=img]").accessible_name
    assert (
        f"p99: last {points[-1].p99_s * 1000:.1f} ms, highest {max(p.p99_s for p in points) * 1000:.1f} ms" in latency
    )
    assert f"failed or shed: {failed}." in latency
    page.find("#table summary").click()
    rows = "return [...$('table').querySelectorAll('tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    cells = page.until(lambda: page.js(rows))
    assert len(cells) == 20  # half minutes
    assert sum(int(row[3].replace(",", "")) for row in cells) == failed
    assert sum(int(row[6].replace(",", "")) for row in cells) == sum(p.hedges for p in points)


def test_changes_appear(page: Page) -> None:
    """What happens is seen and announced without a reload, and the endpoint's history tells the reason."""
    page.open()
    page.shown()
    page.js("window.sameDocument = true")
    page.proxy.do(lambda b: setattr(b, "now", b.now + 5))
    page.proxy.do(lambda b: b.change("frankfurt", "fra-2", "down", "no answer to PING", last_error="no answer to PING"))
    page.reads("#verdict", "Serving: 2 of 3 endpoints up")
    page.reads("#announce", "fra-2 in frankfurt is down.")
    page.reads("#problems", "fra-2 in frankfurt is down: no answer to PING")
    assert page.driver.title.startswith("Serving: 2 of 3")
    page.reads("#strips li:nth-child(2)", "down for 0 s")
    page.reads("#strips li:nth-child(2)", "no answer to PING")
    page.reads("#events", "worker 0, 1")
    card = page.find(".endpoint[data-state=down]")
    assert "last error: no answer to PING" in card.text
    assert page.all(".links path[data-state=down]")
    page.proxy.do(lambda b: b.update("frankfurt", "fra-1", ready={"docs": False}))
    page.reads("#problems", "fra-1 in frankfurt cannot serve docs")
    assert page.js("return window.sameDocument")


def test_clusters_of_one_address(page: Page) -> None:
    """Where each address is a cluster of its own, as with a plain list of URIs, its name is said once."""

    def plain(backend: Any) -> None:
        ones = [endpoint(f"10.0.0.{i}:19530", state=("up", "down")[i]) for i in range(2)]
        usual = backend.clusters[0]
        backend.clusters = [usual.model_copy(update={"name": one.name, "endpoints": [one]}) for one in ones]

    page.proxy.do(plain)
    page.open()
    page.shown()
    assert page.text("#problems") == "10.0.0.1:19530 is down"
    assert page.button("Drain endpoint 10.0.0.0:19530")
    assert page.button("Drain cluster 10.0.0.0:19530")


def test_not_ready(page: Page) -> None:
    """A proxy that can serve nothing says so before anything else, and why."""
    page.proxy.do(lambda b: (setattr(b, "is_ready", False), setattr(b, "reason", "every endpoint is drained")))
    page.open()
    page.shown()
    assert page.text("#verdict") == "Not ready: every endpoint is drained"
    assert page.driver.title.startswith("Not ready")


def test_empty(page: Page) -> None:
    """A proxy that has just started, without a call, an endpoint or a worker, is shown too."""

    def empty(backend: Any) -> None:
        backend.clusters, backend.workers = [], []
        backend.history_points = {1.0: [], 60.0: []}
        backend.burn, backend.started = [], backend.now

    page.proxy.do(empty)
    page.open()
    page.reads("#verdict", "Serving: 0 of 0 endpoints up")
    page.reads("#charts", "latency".capitalize())
    assert not re.search(r"undefined|NaN|\[object|Infinity", page.text("main"))


def test_budget(page: Page) -> None:
    """The error budget is told in words."""
    page.proxy.do(lambda b: setattr(b, "burn", [(300.0, 14.4), (3_600.0, 0.5)]))
    page.open()
    page.shown()
    assert page.text("#objective") == "99.9 % of the calls are to be answered: 1 in 1,000 may fail."
    first, second = (row.text for row in page.all("#budget tbody tr"))
    assert "5 min" in first
    assert "14×" in first
    assert "too fast: a budget for 30 days would last 2 d 2 h" in first
    assert "within the budget" in second
    assert "the error budget was spent 14 times as fast as allowed over the last 5 min" in page.text("#problems")


def test_day(page: Page) -> None:
    """One day can be shown instead of ten minutes."""
    page.open()
    page.shown()
    page.find("#range label:last-of-type").click()
    page.until(lambda: "over the last day" in page.find("#charts figure svg[role=img]").accessible_name)
    page.until(lambda: page.js("return past[60].length") == 1_440)


def test_level(page: Page) -> None:
    """Events are filtered by how bad they are."""
    for level in ("debug", "info", "warning", "error"):
        page.proxy.do(lambda b, level=level: b.say(f"this is {level}", level))
    page.open()
    page.shown()
    page.until(lambda: len(page.all("#events li")) == 3)
    page.find("#level option[value='3']").click()
    assert [line.text.split()[-1] for line in page.all("#events li")] == ["error"]
    page.find("#level option[value='0']").click()
    assert [line.text.split()[-1] for line in page.all("#events li")] == ["error", "warning", "info", "debug"]


# Drain.


def test_drain(page: Page) -> None:
    """Draining asks first, can be called off, waits for the answer, tells the result, and can be undone."""
    page.open()
    page.shown()
    page.button("Drain endpoint fra-1 of cluster frankfurt").click()
    assert "2 endpoints that are up would be left" in page.text("#ask")
    page.button("Cancel").click()
    assert page.proxy.do(lambda b: list(b.asked)) == []

    page.proxy.do(lambda b: b.gate.clear())
    page.button("Drain endpoint fra-1 of cluster frankfurt").click()
    page.button("Drain fra-1").click()
    page.until(lambda: page.proxy.do(lambda b: list(b.asked)) == [("fra-1", True)])
    busy = page.button("Working on endpoint fra-1")
    assert busy.get_attribute("aria-disabled") == "true"
    busy.click()
    assert not page.find("#ask").is_displayed()
    page.proxy.do(lambda b: b.gate.set())
    page.reads("#result", "fra-1 is drained: no new calls go there.")
    assert page.find("#result").aria_role == "status"
    page.reads("#verdict", "Serving: 2 of 3 endpoints up")

    page.button("Undrain endpoint fra-1 of cluster frankfurt").click()
    page.button("Undrain fra-1").click()
    page.reads("#result", "fra-1 is back in rotation.")
    assert page.proxy.do(lambda b: list(b.asked)) == [("fra-1", True), ("fra-1", False)]


def test_drain_the_last(page: Page) -> None:
    """A cluster can be drained as a whole; the page warns if nothing would be left."""
    page.proxy.do(lambda b: b.clusters.pop())
    page.open()
    page.shown()
    page.button("Drain cluster frankfurt").click()
    assert "(2 endpoints)" in page.text("#ask-text")
    assert "reads would fail" in page.text("#ask-text")
    page.button("Drain frankfurt").click()
    page.reads("#problems", "cluster frankfurt is drained")
    assert page.button("Undrain cluster frankfurt")


def test_drain_refused(page: Page) -> None:
    """If the proxy refuses, its reason is shown."""
    page.expected.append("404")
    page.open()
    page.shown()
    page.button("Drain endpoint dub-1 of cluster dublin").click()
    page.proxy.do(lambda b: b.clusters.pop())
    page.button("Drain dub-1").click()
    page.reads("#result", "Drain dub-1 failed: no endpoint or cluster is named 'dub-1'")


# Token, hostile text, lost connection, long life.


def test_token(browser: webdriver.Chrome) -> None:
    """A proxy with a token is asked for it; it is kept for this tab only, and a wrong one is said to be wrong."""
    proxy = FakeProxy(token="open sesame")
    proxy.start()
    try:
        browser.get_log("browser")
        page = Page(browser, proxy)
        page.expected.append("401")
        page.open()
        page.until(lambda: page.find("#token").is_displayed())
        assert page.driver.title == "Token needed · haclient"
        assert not page.find("#data").is_displayed()
        assert page.focused().accessible_name == "Admin token"
        page.press("guess", Keys.ENTER)
        page.reads("#token-why", "The proxy does not accept this token.")
        page.until(lambda: page.focused().get_attribute("id") == "token-value")
        page.press("open sesame", Keys.ENTER)
        page.shown()
        page.until(lambda: page.proxy.do(lambda b: b.following) == 1)
        page.driver.refresh()
        page.shown()
        assert page.js("return localStorage.length") == 0
        assert "sesame" not in page.driver.page_source
        assert all("sesame" not in url for url in page.requests())
        page.check_console_and_network()
    finally:
        browser.get("about:blank")
        proxy.stop()


def test_hostile_names(page: Page) -> None:
    """Whatever servers and operators call things is text: nothing of it runs or becomes an element."""

    def poison(backend: Any) -> None:
        one = endpoint("a/b?c#d %2F&é", address=EVIL, state="down", server_version=EVIL, last_error=EVIL * 4)
        other = endpoint(EVIL, ready={EVIL: True, "__proto__": False, "abc\u202ecba\x1b[31m": False}, last_error=EVIL)
        backend.clusters = [ClusterReport(name=EVIL, zone=EVIL, priority=0, weight=1.0, endpoints=[one, other])]
        backend.change(EVIL, EVIL, "probation", EVIL)
        backend.say(EVIL, "error", EVIL)
        backend.is_ready, backend.reason = False, EVIL

    page.proxy.do(poison)
    page.open()
    page.shown()
    page.reads("#events", EVIL)
    page.reads("#verdict", EVIL)
    page.reads("#strips", EVIL)
    assert EVIL in page.text(".endpoint .trouble")
    assert "__proto__" in page.text("#clusters")
    assert "abc\ufffdcba\ufffd[31m" in page.text("#clusters")
    page.button("Drain endpoint a/b?c#d %2F&é").click()
    page.button("Drain a/b?c#d %2F&é").click()
    page.reads("#result", "is drained")
    assert page.proxy.do(lambda b: list(b.asked)) == [("a/b?c#d %2F&é", True)]
    assert page.js("return typeof pwned") == "undefined"
    assert page.js("return document.querySelectorAll('img, iframe, object, embed, a[href^=javascript]').length") == 0
    assert page.js(
        "return [document.scripts.length, document.querySelectorAll('style, [style*=url], [onload], [onerror]').length]"
    ) == [1, 1]


def test_lost_and_found(page: Page) -> None:
    """A lost connection is said at once, with its time; the old data is greyed; it comes back by itself."""
    page.expected += ["ERR_CONNECTION_REFUSED", "ERR_EMPTY_RESPONSE", "ERR_CONNECTION_RESET", "ERR_INCOMPLETE_CHUNKED"]
    page.proxy.do(bad_day)
    page.open()
    page.shown()
    page.until(lambda: page.all(".endpoint[data-state=down]"))
    alive = page.find(".endpoint[data-state=down] .tone").value_of_css_property("color")
    page.proxy.stop()
    page.until(lambda: page.find("#lost").is_displayed())
    assert re.match(r"Connection to the proxy lost at \d\d:\d\d:\d\d; what is shown is from then", page.text("#lost"))
    assert page.find("#lost").aria_role == "alert"
    assert page.driver.title == "Connection lost · haclient"
    stale = page.find(".endpoint[data-state=down] .tone").value_of_css_property("color")
    assert stale != alive
    assert stale == page.find("dt").value_of_css_property("color")
    assert {b.get_attribute("aria-disabled") for b in page.all("#clusters button")} == {"true"}
    page.proxy.start()
    page.until(lambda: not page.find("#lost").is_displayed())
    page.reads("#announce", "The connection to the proxy is back.")
    assert page.find(".endpoint[data-state=down] .tone").value_of_css_property("color") == alive
    assert {b.get_attribute("aria-disabled") for b in page.all("#clusters button")} == {"false"}
    page.until(lambda: page.proxy.do(lambda b: b.following) == 1)
    page.proxy.do(lambda b: b.say("after the restart"))
    page.reads("#events", "after the restart")
    assert "FleetReconfigured" not in page.text("#events")


def test_bounded(page: Page) -> None:
    """However long it runs and however much happens, it keeps and draws a bounded number of things."""
    page.open()
    page.shown()

    def happen(backend: Any) -> None:
        for i in range(1_000):
            backend.now += 0.1
            backend.say(f"event {backend.now}", ("debug", "info", "warning", "error")[i % 4])
            backend.change("frankfurt", "fra-1", ("up", "down")[i % 2], f"reason {i}")
        backend.say("the end")

    sizes = []
    for _ in range(2):
        page.proxy.do(happen)
        page.reads("#events", "the end")
        page.until(lambda: page.js("return last.id") == page.proxy.do(lambda b: b.journal.recent(0)[-1].id))
        page.proxy.do(lambda b: b.say("drawn"))
        page.reads("#events", "drawn")
        kept = page.js(
            "return [...Object.values(events), ...[...tracks.values()].map(t => t.changes)].map(list => list.length)"
        )
        assert max(kept) <= 200
        sizes.append(page.js("return document.querySelectorAll('*').length"))
    assert max(sizes) < 3_000
    assert sizes[1] <= sizes[0] * 1.05


def test_many(page: Page) -> None:
    """Hundreds of workers and collections are summed up, not listed."""

    def grow(backend: Any) -> None:
        ready = {f"collection_{i:04}": i != 700 for i in range(1_000)}
        backend.update("frankfurt", "fra-1", ready=ready)
        backend.workers = [backend.workers[0].model_copy(update={"slot": i, "pid": 9_000 + i}) for i in range(200)]

    page.proxy.do(grow)
    page.open()
    page.shown()
    ready = [chip.text for chip in page.all(".endpoint:first-child .ready li")[:13]]
    assert ready[0] == "✗ collection_0700 not ready"
    assert ready[12] == "and 988 more, all ready"
    assert page.all("#workers li")[-1].text == "and 184 more workers"


def test_hidden(page: Page) -> None:
    """A tab that nobody looks at asks nothing; looked at again, it goes on."""
    page.open()
    page.shown()
    page.until(lambda: page.proxy.do(lambda b: b.following) == 1)
    first = page.driver.current_window_handle
    other = FakeProxy()
    other.start()
    try:
        page.driver.switch_to.new_window("tab")
        page.until(lambda: page.proxy.do(lambda b: b.following) == 0)
        before = page.proxy.do(lambda b: b.fleets_read)
        page.driver.get(other.url)
        page.until(lambda: other.do(lambda b: b.fleets_read) >= 4)
        assert page.proxy.do(lambda b: b.fleets_read) <= before + 1
    finally:
        page.driver.close()
        page.driver.switch_to.window(first)
        other.stop()
    page.requests()  # those of the other tab are none of this page's
    page.until(lambda: page.proxy.do(lambda b: b.following) == 1)
    assert page.proxy.do(lambda b: b.fleets_read) > before


# For everyone.


def test_keyboard(page: Page) -> None:
    """With the keyboard only: a skip link, a visible focus in the order of the page, and drain."""
    page.open()
    page.shown()
    page.press(Keys.TAB)
    assert page.focused().text == "Skip to what is going on"
    page.press(Keys.ENTER)
    assert page.focused().get_attribute("id") == "main"
    seen = []
    while page.focused().accessible_name != "Drain endpoint dub-1 of cluster dublin":
        page.press(Keys.TAB)
        outline = page.js(
            "const s = getComputedStyle(document.activeElement); return [s.outlineStyle, parseFloat(s.outlineWidth)]"
        )
        assert outline[0] != "none"
        assert outline[1] >= 2
        seen.append(page.focused().accessible_name)
        assert len(seen) < 20, seen
    assert seen == [
        "Drain cluster frankfurt",
        "Drain endpoint fra-1 of cluster frankfurt",
        "Drain endpoint fra-2 of cluster frankfurt",
        "Drain cluster dublin",
        "Drain endpoint dub-1 of cluster dublin",
    ]
    page.press(Keys.ENTER)
    assert page.focused().accessible_name == "Cancel"
    page.press(Keys.ESCAPE)
    assert page.focused().accessible_name == "Drain endpoint dub-1 of cluster dublin"
    page.press(Keys.ENTER)
    page.press(Keys.TAB)
    page.press(Keys.ENTER)
    page.reads("#result", "dub-1 is drained")
    assert page.focused().accessible_name == "Undrain endpoint dub-1 of cluster dublin"


def test_moment(page: Page) -> None:
    """The slider shows one moment on all charts, and says it."""
    page.open()
    page.shown()
    slider = page.find("#moment")
    assert slider.get_attribute("aria-valuetext") == "now"
    slider.send_keys(Keys.HOME)
    first = page.proxy.do(lambda b: b.history_points[1.0])[0]
    assert f"p50 {first.p50_s * 1000:.1f} ms" in slider.get_attribute("aria-valuetext")
    assert all(tip.is_displayed() for tip in page.all(".tip"))
    assert f"p50{first.p50_s * 1000:.1f} ms" in page.text(".tip")
    slider.send_keys(Keys.END)
    assert not any(tip.is_displayed() for tip in page.all(".tip"))
    ActionChains(page.driver, duration=0).move_to_element(page.find(".plot")).perform()
    page.until(lambda: page.find(".tip").is_displayed())


def test_states_over_time(page: Page) -> None:
    """Arrow keys go through an endpoint's states, and the reason of each is told."""
    page.proxy.do(bad_day)
    page.open()
    page.shown()
    page.until(lambda: len(page.all("#strips li:nth-child(2) .strip button")) == 7)
    page.find("#strips li:nth-child(2) .strip button:last-child").send_keys(Keys.ARROW_LEFT)
    assert page.focused().accessible_name.startswith("probation for 17 s")
    page.press(Keys.ARROW_LEFT)
    told = page.focused().accessible_name
    assert re.match(r"down for 43 s, from \d\d:\d\d:\d\d: connect to 10.0.1.12:19530: connection refused", told)
    assert page.text("#strips li:nth-child(2) .because") == told
    page.press(Keys.HOME)
    assert page.focused().accessible_name.startswith("up for 3 d 3 h")
    stops = "return [...document.querySelectorAll('.strip')].map(s => s.querySelectorAll('[tabindex=\"0\"]').length)"
    assert page.js(stops) == [1, 1, 1]  # one each, or tabbing through the page would take for ever


def test_states_are_what_most_workers_see(page: Page) -> None:
    """One worker of three that sees an endpoint down is an event, but no state; two of them are."""

    def tell(backend: Any, worker: int) -> None:
        fields = {"cluster": "frankfurt", "endpoint": "fra-1", "before": "up", "after": "down", "reason": "no answer"}
        backend.now += 1
        backend.say(f"seen by {worker}", "warning", "EndpointChanged", worker, **fields)

    page.proxy.do(lambda b: b.workers.append(b.workers[0].model_copy(update={"slot": 2, "pid": 4_129})))
    page.open()
    page.shown()
    for worker, states in ((1, 1), (2, 2)):
        page.proxy.do(lambda b, worker=worker: tell(b, worker))
        page.reads("#events", f"seen by {worker}")
        assert len(page.all("#strips li:first-child .strip button")) == states
    page.proxy.do(lambda b: b.update("frankfurt", "fra-1", state="down"))
    page.driver.refresh()
    page.shown()
    page.reads("#strips li:first-child .because", "down for 0 s")


def test_report_is_believed(page: Page) -> None:
    """What no event told, as when a worker was replaced, is learnt from the fleet as it is."""
    page.open()
    page.shown()
    page.proxy.do(lambda b: b.update("dublin", "dub-1", state="down", last_error="gone"))
    page.reads("#clusters > li:last-child .endpoint", "down")
    page.proxy.do(lambda b: setattr(b, "now", b.now + 60))
    page.reads("#strips li:nth-child(3)", "down for 1 min")
    page.reads("#strips li:nth-child(3)", "gone")
    assert len(page.all("#strips li:nth-child(3) .strip button")) == 2


@pytest.mark.parametrize("width", [320, 360, 640, 1280])
def test_no_sideways_scroll(page: Page, width: int) -> None:
    """Nothing sticks out: on phones, and on a wide screen at 200 % (640)."""
    page.proxy.do(bad_day)
    page.proxy.do(lambda b: b.update("frankfurt", "fra-1", last_error="x" * 400, address="y" * 120))
    page.open(width)
    page.shown()
    assert page.js("return document.documentElement.scrollWidth") <= width
    cut_off = (
        "return [...document.querySelectorAll('button')].filter(b => b.getBoundingClientRect().right > innerWidth)"
    )
    assert page.js(cut_off) == []


CONTRAST = """
const rgb = (value) => { const n = value.match(/[\\d.]+/g).map(Number); return n.length === 3 ? [...n, 1] : n; };
const light = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map((v) => (v / 255 <= .03928 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4));
  return .2126 * x + .7152 * y + .0722 * z;
};
const backdrop = (node) => {
  for (let at = node; at; at = at.parentElement) {
    const color = rgb(getComputedStyle(at).backgroundColor);
    if (color[3] === 1) return color;
    if (color[3] !== 0) throw new Error("half transparent");
  }
  return [255, 255, 255, 1];
};
const worst = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !node.checkVisibility()) continue;
  if (node.closest(".hidden-text, .skip, script, option")) continue;
  const style = getComputedStyle(node);
  const text = rgb(node instanceof SVGElement ? style.fill : style.color);
  const [low, high] = [light(text), light(backdrop(node))].sort((x, y) => x - y);
  worst.push([(high + .05) / (low + .05), node.tagName + "." + node.getAttribute("class"), walker.currentNode.data]);
}
return worst.sort((x, y) => x[0] - y[0]);
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(page: Page, scheme: str) -> None:
    """Every text on the page stands out from what is behind it by 4.5 to 1, stale or not."""
    page.expected += ["ERR_"]
    page.proxy.do(bad_day)
    page.open(scheme=scheme, motion="reduce")
    page.shown()
    page.until(lambda: page.all("#events li"))
    page.js("pointAt(fleet.now - 60)")
    dark = page.js("return getComputedStyle(document.body).backgroundColor") == "rgb(15, 18, 21)"
    assert dark is (scheme == "dark")
    for lost in (False, True):
        if lost:
            page.proxy.stop()
            page.until(lambda: page.find("#lost").is_displayed())
        found = page.js(CONTRAST)
        assert len(found) > 100
        assert found[0][0] >= 4.5, found[:5]


def test_accessibility_tree(page: Page) -> None:
    """What a screen reader gets: landmarks, headings in order, and a name for every button, chart and control."""
    page.proxy.do(bad_day)
    page.open()
    page.shown()
    page.until(lambda: page.all("#events li"))
    nodes = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    named: dict[str, list[str]] = {}
    for node in nodes:
        if not node["ignored"]:
            named.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    for role in ("button", "image", "slider", "combobox", "radio", "region", "figure"):
        assert named.get(role), role
        assert all(named[role]), (role, named[role])
    assert len(named["image"]) == 4
    assert all("over the last 10 minutes" in name for name in named["image"])
    buttons = [name for name in named["button"] if "rain " in name]
    assert len(buttons) == len(set(buttons)) == 5
    assert len(named["main"]) == len(named["banner"]) == 1
    assert {"Fleet", "Over time", "States of the endpoints", "Error budget", "Events"} <= set(named["region"])
    levels = [
        int(p["value"]["value"])
        for node in nodes
        if not node["ignored"] and node["role"]["value"] == "heading"
        for p in node["properties"]
        if p["name"] == "level"
    ]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels


def test_motion(page: Page) -> None:
    """Who asks for less motion gets none."""
    durations = (
        "[...document.querySelectorAll('*')].map((node) => parseFloat(getComputedStyle(node).transitionDuration))"
    )
    moving = f"return {durations}.filter((duration) => duration > 0).length"
    page.open(motion="reduce")
    page.shown()
    assert page.js(moving) == 0
    page.emulate()
    assert page.js(moving) > 0


def test_screenshots(page: Page, tmp_path: Path) -> None:
    """Pictures for people: light, dark, on a phone, and with the connection lost."""
    page.expected += ["ERR_"]
    page.proxy.do(bad_day)
    page.open()
    page.shown()
    page.until(lambda: page.all("#events li"))
    for name, width, scheme in (
        ("light", 1280, "light"),
        ("dark", 1280, "dark"),
        ("phone", 360, "light"),
        ("lost", 1280, "light"),
    ):
        page.emulate(scheme, "reduce")
        page.resize(width)
        if name == "lost":
            page.proxy.stop()
            page.until(lambda: page.find("#lost").is_displayed())
        page.resize(width, page.js("return document.documentElement.scrollHeight"))
        page.js("return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        target = tmp_path / f"dashboard-{name}.png"
        assert page.driver.save_screenshot(str(target))
        assert target.stat().st_size > 20_000
        if folder := os.environ.get("HACLIENT_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(target, folder)
