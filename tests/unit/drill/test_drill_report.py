"""Reports of drills: the file, JUnit, the terminal, and the shapes of the page's pictures."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from junitparser import JUnitXml
from rich.console import Console

from haclient.drill.record import FaultMark, Operation, Trial
from haclient.drill.report import Result, Results, read_json, table, write_html, write_json, write_junit
from haclient.drill.report.tables import errors, over_trials, setting
from haclient.drill.report.timeline import timeline
from haclient.drill.scenario import Load, Topology
from haclient.drill.series import series
from haclient.errors import ConfigError
from tests.made_up_trials import ABOUT, hedged, outage, results, scenario, trial

EVIL = "<script>pwned=1</script>\x1b[31m]]>&\x00 [bold]'\""


def evil() -> Results:
    """Whatever servers and files wrote is hostile."""
    bad = trial(1, outage(1.0), name=EVIL)
    bad = replace(bad, operations=[replace(call, error=call.error and EVIL) for call in bad.operations])
    named = scenario(title=EVIL).model_copy(update={"name": EVIL, "about": EVIL})
    cut = Trial(scenario=EVIL, engine="lite", seed=2, seconds=1, rate=1, error=EVIL)
    return Results(replace(ABOUT, engine=EVIL), [Result(named, [bad, cut])])


# The file.


def test_json(tmp_path: Path) -> None:
    """All of it comes back, and the same page is made of it; other tools find verdicts and figures beside the facts."""
    path, made = tmp_path / "results.json", results()
    write_json(path, made)
    again = read_json(path)
    assert again == made
    pages = [tmp_path / name for name in ("first.html", "second.html")]
    write_html(pages[0], made)
    write_html(pages[1], again)
    assert pages[0].read_text() == pages[1].read_text()
    value = json.loads(path.read_text())
    assert value["kept"] is False
    assert [one["verdict"]["kept"] for one in value["results"]] == [True, False, False, False, False, False]
    assert value["results"][1]["figures"][19]["failed"]["reads"] == 28
    assert value["results"][3]["figures"][0]["faults"][0]["rto_s"] == {"reads": None, "writes": None}


def test_nothing_run_is_not_kept(tmp_path: Path) -> None:
    """No scenario at all is no success."""
    write_json(tmp_path / "none.json", Results(ABOUT))
    assert json.loads((tmp_path / "none.json").read_text())["kept"] is False
    write_html(tmp_path / "none.html", Results(ABOUT))
    assert "No scenario was run" in (tmp_path / "none.html").read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file"),
        ("", "not a file of results"),
        ("[]", "not a file of results"),
        ("{}", "not a file of results"),
        ('{"format": 99}', "format 99; this version of haclient reads 1"),
        ('{"format": 1, "about": {}, "results": []}', "not a file of results"),
    ],
)
def test_json_refused(tmp_path: Path, text: str | None, said: str) -> None:
    """A file that is missing, something else or of another version is refused by name."""
    path = tmp_path / "results.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


# JUnit.


def test_junit(tmp_path: Path) -> None:
    """One suite, one case per scenario; failures say what was wanted and seen, with the seed."""
    path = tmp_path / "junit.xml"
    write_junit(path, results())
    (suite,) = JUnitXml.fromfile(str(path))
    assert (suite.name, suite.tests, suite.failures, suite.errors, suite.skipped) == ("haclient drill", 6, 3, 2, 0)
    assert {one.name: one.value for one in suite.properties()}["engine"] == "milvus-lite 3.2.2"
    cases = {case.name: case for case in suite}
    assert list(cases) == ["crash", "hang", "flapping", "dark", "etcd", "nothing"]
    assert (cases["crash"].result, cases["crash"].time) == ([], 59 * 20)
    (failure,) = cases["hang"].result
    assert failure.message == "failed or wrong reads: wanted none, seen 28 (seed 19)"
    assert "availability: wanted at least 99.9 %, seen 93.9 % (seed 19)" in failure.text
    assert "of 12,830 reads failed or were wrong, in 18 of them" in failure.text
    assert [type(cases[name].result[0]).__name__ for name in ("dark", "etcd", "nothing")] == [
        "Failure",
        "Error",
        "Error",
    ]


def test_junit_schema(tmp_path: Path) -> None:
    """Elements and attributes are those of the schema that Jenkins and others read, in its order."""
    path = tmp_path / "junit.xml"
    write_junit(path, results())
    root = ElementTree.parse(path).getroot()
    assert (root.tag, {child.tag for child in root}) == ("testsuites", {"testsuite"})
    for suite in root:
        assert {"name", "tests", "failures", "errors", "timestamp", "time"} <= set(suite.attrib)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\+00:00)?", suite.attrib["timestamp"])
        assert [child.tag for child in suite][:2] == ["properties", "testcase"]
        for case in suite.iter("testcase"):
            assert set(case.attrib) == {"name", "classname", "time"}
            assert [child.tag for child in case] in (["system-out"], ["failure", "system-out"], ["error", "system-out"])


def test_junit_hostile(tmp_path: Path) -> None:
    """Control characters and markup in a message leave it well-formed."""
    path = tmp_path / "junit.xml"
    write_junit(path, evil())
    (case,) = ElementTree.parse(path).getroot().iter("testcase")
    assert case.attrib["name"].startswith("<script>pwned=1</script>")


# The terminal.


def drawn(made: Results, width: int) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(table(made))
    return capture.get()


def test_table() -> None:
    """A row for each scenario, and in full what was not kept."""
    text = drawn(results(), 120)
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()[3:10]}
    assert rows["crash"] == ["kept", "59", "100", "%", "0", "0", "s", "0", "0", "s", "0"]
    assert rows["dark"] == ["not", "kept", "1", "0", "%", "432", "never", "101", "never", "3"]
    assert rows["etcd"][2:5] == ["1", "of", "2"]
    assert rows["nothing"] == ["not", "kept", "0", *"––––––"]
    assert "  failed or wrong reads: wanted none, seen 28 (seed 19)" in text
    assert "crash: In" not in text


def test_table_fits() -> None:
    """In 80 columns every figure of every row is still there, to the last."""
    text = drawn(results(), 80)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    lines = [line.split() for line in text.split("worst trial of each")[0].splitlines()]
    for name, last in (("crash", "0"), ("hang", "0"), ("dark", "3"), ("nothing", "–")):
        (row,) = (line for line in lines if line[:1] == [name])
        assert row[-1] == last
    assert any(line[-1:] == ["lost"] for line in lines)
    assert "93.9 %" in text


def test_table_hostile() -> None:
    """A terminal is never given an escape, nor rich its markup."""
    text = drawn(evil(), 200)
    assert "\x1b" not in text
    assert "[bold]" in text


# The page: what is in it; how it looks is tested in a browser.


def test_page_hostile(tmp_path: Path) -> None:
    """Markup in any name or message is text."""
    write_html(tmp_path / "page.html", evil())
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;pwned=1") >= 6


def test_page_is_small(tmp_path: Path) -> None:
    """Twenty scenarios of thousands of calls a trial, half of which fail, stay below 2 MB."""
    busy = trial(1, outage(8, wrong=0.2), rate=200, faults=2)
    path = tmp_path / "page.html"
    write_html(path, Results(ABOUT, [Result(scenario(), [busy, busy])]))
    empty = tmp_path / "empty.html"
    write_html(empty, Results(ABOUT, []))
    each = path.stat().st_size - empty.stat().st_size
    assert 20 * each + empty.stat().st_size < 2_000_000


def points(path: str) -> list[tuple[int, int]]:
    return [(int(x), int(y)) for x, y in re.findall(r"M(\d+) (\d+)h0", path)]


def made(*calls: Operation, faults: tuple[FaultMark, ...] = (), seconds: float = 10) -> Trial:
    return Trial(
        scenario="x", engine="lite", seed=1, seconds=seconds, rate=1, operations=list(calls), faults=list(faults)
    )


def test_timeline_places() -> None:
    """Time goes across from the first fault on, latency goes up by powers of ten."""
    mark = FaultMark("crash", "a", began=5, healed=7.5, detected=5.5)
    t = timeline(
        made(
            Operation("search", 0, 0.001, "ok"),
            Operation("query", 5, 5.01, "ok"),
            Operation("upsert", 10, 10.1, "ok"),
            Operation("search", 7.5, 8.5, "failed"),
            Operation("search", 2.5, 2.51, "wrong"),
            faults=(mark,),
        ),
        [],
    )
    assert [(tick.at, tick.label) for tick in t.up] == [
        (100, "1 ms"),
        (pytest.approx(200 / 3), "10 ms"),
        (pytest.approx(100 / 3), "100 ms"),
        (0, "1 s"),
    ]
    assert [(tick.at, tick.label) for tick in t.across] == [(10.0 * n, f"{n - 5}".replace("-", "−")) for n in range(11)]
    assert points(t.dots["reads"]) == [(0, 1000), (500, 667)]
    assert points(t.dots["writes"]) == [(1000, 333)]
    assert t.failed == [(75, 0)]
    assert t.untrue == [(25, 66.7)]
    (bar,) = t.faults
    assert (bar.left, bar.width, bar.healed, bar.noticed, bar.row) == (50, 25, True, 55, 0)
    assert (t.others, t.other_errors, t.most_errors) == ("", "", 2)


def test_timeline_others() -> None:
    """The others are set to the same first fault; their range and their errors stand behind."""
    mine = made(Operation("search", 5, 5.01, "ok"), faults=(FaultMark("x", "a", 5),))
    slow = [Operation("search", 3, 4, "ok"), Operation("search", 3, 3.002, "ok"), Operation("search", 3.1, 4, "failed")]
    t = timeline(mine, [made(*slow, faults=(FaultMark("x", "a", 3),))])
    assert t.others == "M500 0L550 0L550 900L500 900z"
    assert (t.errors, t.most_errors) == ("", 2)
    assert t.other_errors == "M500 1000V0H550V1000"


def test_thinned() -> None:
    """Of thousands of calls each failure and each extreme is still there to a dot's width, and the path is bounded."""
    busy = trial(1, outage(3, wrong=0.2), rate=1000)
    t = timeline(busy, [])
    reads = points(t.dots["reads"])
    assert 500 < len(reads) <= 1500
    full = timeline(replace(busy, operations=busy.operations[:700]), [])
    assert len(full.failed) == 0
    slowest = max(call.ended - call.due for call in busy.operations if call.outcome == "ok")
    fastest = min(call.ended - call.due for call in busy.operations if call.outcome == "ok")
    alone = timeline(
        replace(
            busy,
            operations=[
                Operation("search", 1, 1 + slowest, "ok"),
                Operation("search", 2, 2 + fastest, "ok"),
                *(call for call in busy.operations if call.outcome != "ok"),
            ],
        ),
        [],
    )
    wanted = [y for _, y in points(alone.dots["reads"])]
    seen = [y for side in ("reads", "writes") for _, y in points(t.dots[side])]  # type: ignore[index]
    assert min(abs(y - wanted[0]) for y in seen) <= 20
    assert min(abs(y - wanted[1]) for y in seen) <= 20
    assert 20 < len(t.failed) <= 400
    zero = busy.faults[0].began
    for call in busy.operations:
        if call.outcome == "failed":
            assert min(abs(x - call.due / 20 * 100) for x, _ in t.failed) < 1, call.due - zero


def test_faults_that_overlap() -> None:
    """They have rows of their own, and share one where they follow each other."""
    marks = [FaultMark("x", "a", 1, 4), FaultMark("x", "b", 2, 3), FaultMark("x", "c", 3.5, 5), FaultMark("x", "d", 6)]
    t = timeline(made(Operation("search", 1, 1.1, "ok"), faults=tuple(marks)), [])
    assert [bar.row for bar in t.faults] == [0, 1, 1, 0]
    assert t.rows == 2
    assert not t.faults[3].healed
    assert t.faults[3].left + t.faults[3].width == 100


# Tables.


def test_over_trials() -> None:
    """Median, interval and worst, with the worst availability the lowest; a picture unless all are the same."""
    found = {
        row.name: row for row in over_trials(series(scenario(), [trial(s, outage(0.2 * (s % 5))) for s in range(20)]))
    }
    row = found["Availability"]
    low, high = (float(end.split()[0]) for end in re.split(" to ", row.interval))
    assert float(row.worst.split()[0]) <= low <= float(row.median.split()[0]) <= high <= 100
    back = found["Reads back after"].histogram
    assert back is not None
    assert back.described.startswith("From 0 s to 0.8")
    assert 0 < (back.limit or 0) < 100
    same = {row.name: row for row in over_trials(series(scenario(), [trial(seed) for seed in range(9)]))}
    assert same["Reads back after"].histogram is None
    assert (same["Reads back after"].median, same["Reads back after"].interval) == ("0 s", "0 s")


def test_never_in_a_histogram() -> None:
    """A trial that never came back is counted beside the bars, and is the worst."""
    made_up = [trial(1, outage(60)), trial(2, outage(0.5)), trial(3, outage(1.0))]
    row = next(row for row in over_trials(series(scenario(), made_up)) if row.name == "Reads back after")
    assert (row.worst, row.interval) == ("never", "")
    assert row.histogram is not None
    assert row.histogram.never == 1
    assert row.histogram.described.endswith("without end in 1")


def test_errors_and_setting() -> None:
    """What callers were told most often, and what was started."""
    told = errors(series(scenario(), [trial(1, outage(1, wrong=0.5)), trial(2, hedged)]))
    assert [(error, trials) for error, _, trials in told] == [
        ("Unavailable: every endpoint refused", "1"),
        ("without an error", "1"),
    ]
    changed: dict[str, Any] = {
        "topology": Topology(clusters=3, remote=1, log="etcd3", ack="quorum", proxies=2, clients=2),
        "load": Load(rate=80, seconds=30, search=1, query=0, upsert=1, delete=0),
    }
    assert setting(series(scenario().model_copy(update=changed), [])) == (
        "3 clusters, 1 of them at another site; writes mirrored by a log in etcd (three members), acknowledged at "
        "“quorum”; 2 proxies; 80 calls a second from 2 processes for 30 s; 50 % searches, 50 % upserts."
    )
