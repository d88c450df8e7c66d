"""The report of drills in a real browser: everyone can read it, anywhere, and it asks nothing of anyone."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("selenium", reason="needs selenium (pip install selenium)")
pytest.importorskip("fastapi", reason="needs the extra proxy")

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from haclient.drill.report import write_html
from tests.component.test_dashboard import CHROMIUM, CONTRAST, DRIVER, browser
from tests.made_up_trials import results

__all__ = ["browser"]

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs chromium (apt install chromium-driver)"),
    pytest.mark.xdist_group("chromium"),
]


class Report:
    """The page, opened as a file."""

    def __init__(self, driver: webdriver.Chrome, path: Path) -> None:
        self.driver = driver
        self.path = path

    def open(self, width: int = 1280, scheme: str = "light") -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        self.driver.get(self.path.as_uri())

    def js(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def texts(self, css: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map(node => node.textContent.trim())"
        return list(self.js(script, css))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drill") / "report.html"
    write_html(path, results())
    return path


@pytest.fixture
def page(browser: webdriver.Chrome, path: Path) -> Iterator[Report]:
    """A page that is not open yet; afterwards its console and its requests are looked at."""
    browser.get_log("browser")
    browser.get_log("performance")
    page = Report(browser, path)
    yield page
    assert browser.get_log("browser") == []
    messages = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert {url.partition("#")[0] for url in asked} <= {path.as_uri(), "data:,"}
    browser.get("about:blank")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_readable(page: Report, width: int, scheme: str) -> None:
    """Light or dark, on a phone or a desk: nothing sticks out, and every text stands out from what is behind it."""
    page.open(width, scheme)
    assert page.js("return document.documentElement.scrollWidth") <= width
    assert (
        page.js("return getComputedStyle(document.body).backgroundColor")
        == {
            "light": "rgb(246, 247, 248)",
            "dark": "rgb(15, 18, 21)",
        }[scheme]
    )
    found = page.js(CONTRAST)
    assert len(found) > 500
    assert found[0][0] >= 4.5, found[:5]


def test_verdicts(page: Report) -> None:
    """What matters most comes first: how many, then each, and a link to it."""
    page.open()
    assert page.driver.title == "1 of 6 scenarios kept: haclient drill"
    assert page.texts("h1") == ["5 of 6 scenarios did not go as expected"]
    assert page.texts(".overview tbody .mark") == ["kept", *["not kept"] * 5]
    page.js("document.querySelector('.overview tbody tr:nth-child(4) a').click()")
    assert page.js("return document.querySelector(':target h2').textContent") == "All clusters are gone, for good"
    assert -1 <= page.js("return document.querySelector(':target').getBoundingClientRect().top") <= 20
    assert "The log's <leader> & its disk are lost" in page.texts("h2")
    assert "seed 2: etcd did not start" in page.texts(".broken li")


@pytest.mark.parametrize("width", [360, 1280])
def test_plots_are_true(page: Report, width: int) -> None:
    """Each shape is where time and latency want it, whatever the width, and the kinds differ in form and colour."""
    page.open(width)
    places = """
    const at = (node) => node.getBoundingClientRect();
    const ticks = [...document.querySelectorAll('#s2 .x span')];
    const zero = ticks.find(t => t.textContent === '0'), four = ticks.find(t => t.textContent === '4');
    const middle = (box) => (box.left + box.right) / 2;
    return {zero: middle(at(zero)), four: middle(at(four)),
            began: ['.latency', '.errors'].map(lane => middle(at(document.querySelector(`#s2 ${lane} .began`)))),
            healed: middle(at(document.querySelector('#s2 .latency .healed'))),
            bar: at(document.querySelector('#s2 .fault')).left,
            marks: [...document.querySelectorAll('#s2 .latency use[href="#failed"]')].map(at).map(middle)}
    """
    found = page.js(places)
    for began in (*found["began"], found["bar"]):
        assert began == pytest.approx(found["zero"], abs=1.5)
    assert found["healed"] == pytest.approx(found["four"], abs=1.5)
    second = (found["four"] - found["zero"]) / 4
    assert len(found["marks"]) >= 20
    assert found["zero"] - second * 0.1 < min(found["marks"]) < max(found["marks"]) < found["zero"] + second
    look = "const s = getComputedStyle(document.querySelector(arguments[0])); return [s.stroke, s.strokeLinecap]"
    reads, writes, failed = (page.js(look, css) for css in ("#s2 .latency .reads", "#s2 .latency .writes", "#failed"))
    assert len({reads[0], writes[0], failed[0]}) == 3
    assert (reads[1], writes[1]) == ("round", "square")


def test_everyone(page: Report) -> None:
    """What a screen reader gets: landmarks, headings in order, a caption for every table, a text for every picture."""
    page.open()
    nodes = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    nodes = [node for node in nodes if not node["ignored"]]
    named: dict[str, list[str]] = {}
    for node in nodes:
        named.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    assert len(named["main"]) == len(named["banner"]) == len(named["contentinfo"]) == 1
    for role in ("image", "table", "region", "link"):
        assert named[role], role
        assert all(named[role]), (role, named[role])
    pictures = [name for name in named["image"] if name.startswith("Latency of each call")]
    assert len(pictures) == 5
    assert re.search(r"During the faults: \d+ reads, 28 not good, median [\d.]+ ms", pictures[1])
    levels = [
        int(p["value"]["value"])
        for node in nodes
        if node["role"]["value"] == "heading"
        for p in node["properties"]
        if p["name"] == "level"
    ]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels
    assert page.js("return document.querySelectorAll('table').length") == page.js(
        "return document.querySelectorAll('table > caption').length"
    )


def test_keyboard(page: Report) -> None:
    """With the keyboard only: over the skip link, and into what scrolls."""
    page.open(360)
    ActionChains(page.driver, duration=0).send_keys(Keys.TAB).perform()
    assert page.driver.switch_to.active_element.text == "Skip to the verdict"
    ActionChains(page.driver, duration=0).send_keys(Keys.ENTER, Keys.TAB).perform()
    table = page.driver.switch_to.active_element
    assert table.accessible_name == "Verdicts, table"
    assert page.js("return getComputedStyle(arguments[0]).outlineStyle", table) == "solid"
    assert page.js("return arguments[0].scrollWidth > arguments[0].clientWidth", table)


def test_stands_still(page: Report) -> None:
    """Nothing jumps as the page is laid out, and nothing in it runs."""
    page.open()
    shifts = page.driver.execute_async_script("""
    const done = arguments[0];
    const seen = new PerformanceObserver((list) => done(list.getEntries().length));
    seen.observe({type: "layout-shift", buffered: true});
    requestAnimationFrame(() => requestAnimationFrame(() => done(0)));
    """)
    assert shifts == 0
    assert page.js("return document.scripts.length") == 0
    assert "default-src 'none'" in page.path.read_text()


def test_screenshots(page: Report, tmp_path: Path) -> None:
    """Pictures for people: light, dark, and on a phone."""
    for name, width, scheme in (("light", 1280, "light"), ("dark", 1280, "dark"), ("phone", 360, "light")):
        page.open(width, scheme)
        target = tmp_path / f"drill-{name}.png"
        assert page.driver.save_screenshot(str(target))
        assert target.stat().st_size > 20_000
        if folder := os.environ.get("HACLIENT_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(target, folder)
