"""The demo without its servers: the corpus, the load, the story and how it is shown."""

from __future__ import annotations

import asyncio
import io
import json
import math
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from haclient.drill import demo_view
from haclient.drill.corpus import QUESTIONS, Passage, read_corpus, split
from haclient.drill.demo import DemoOptions, best_passages, make_embedder
from haclient.drill.demo_story import Answer, Report, Story, report, tidy
from haclient.drill.measure import Record, open_loop, quantile, summarise
from haclient.errors import ConfigError
from haclient.events import (
    AttemptFinished,
    CallFinished,
    EndpointChanged,
    Event,
    FailedOver,
    HedgeStarted,
    ReadinessChanged,
    RetryScheduled,
)
from haclient.fleet.model import ClusterView, EndpointView, FleetView
from haclient.retrieval.embed import HashingEmbedder

# --- corpus -------------------------------------------------------------------------------------------------


def test_split_at_headings_and_definitions() -> None:
    """A section is cut at its definitions; a short one stays whole, under its heading."""
    text = (
        'Intro.\n\nThe "try" thing\n***************\n\nFirst.\n\nSecond.\n\n'
        "str.split(sep)\n\n   Splits.\n\nstr.join(x)\n\n   Joins.\n"
    )
    assert split({"t": text}) == [
        Passage("t", "t", "Intro."),
        Passage("t", "The try thing", "First.\n\nSecond."),
        Passage("t", "str.split()", "str.split(sep)\n\n   Splits."),
        Passage("t", "str.join()", "str.join(x)\n\n   Joins."),
    ]


def test_split_keeps_each_text_once() -> None:
    """What is in two topics stays in the shorter one."""
    assert [(p.topic, p.text) for p in split({"long": "Same  text.\n\nMore of it.", "short": "Same text."})] == [
        ("short", "Same text."),
        ("long", "More of it."),
    ]


def test_split_long_text() -> None:
    """Long sections are cut between paragraphs, and nothing is lost."""
    paragraphs = [" ".join(f"w{i}x{j}" for j in range(40)) for i in range(10)]
    passages = split({"t": "\n\n".join(paragraphs)})
    assert len(passages) == 5
    assert "\n\n".join(p.text for p in passages).split() == " ".join(paragraphs).split()


def test_real_corpus() -> None:
    """The reference of this interpreter gives some hundred passages, no two alike."""
    passages = read_corpus()
    assert len(passages) > 500
    assert len({p.text for p in passages}) == len(passages)
    assert all(p.text.strip() and len(p.text) < 65535 for p in passages)
    assert passages == read_corpus()


def test_questions() -> None:
    assert len(QUESTIONS) >= 40
    assert len({q.text for q in QUESTIONS}) == len(QUESTIONS)
    topics = {p.topic for p in read_corpus()}
    assert all(q.topics & topics for q in QUESTIONS)


def test_best_passages_with_a_tie() -> None:
    passages = np.asarray([[1, 0], [0, 1], [1, 0]], np.float32)
    questions = np.asarray([[1, 0.1], [0, 1]], np.float32)
    assert best_passages(questions, passages) == [frozenset({0, 2}), frozenset({1})]


# --- load ---------------------------------------------------------------------------------------------------


async def test_open_loop_does_not_wait_for_answers() -> None:
    """A question that hangs delays no other, and failures are recorded."""

    async def ask(number: int) -> int:
        if number == 0:
            await asyncio.sleep(0.2)
        if number == 3:
            raise ValueError("no")
        return number

    seen: list[int] = []
    records = await open_loop(ask, rate=100, seconds=0.1, done=lambda r: seen.append(r.number))
    assert [r.number for r in records] == list(range(10))
    assert [r.answer for r in records] == [0, 1, 2, None, *range(4, 10)]
    assert seen[-1] == 0
    assert records[0].latency_s >= 0.2
    assert records[9].due - records[0].due == pytest.approx(0.09)
    assert isinstance(records[3].error, ValueError)
    assert summarise(records).failed == 1


async def test_open_loop_counts_from_when_due() -> None:
    """A loop that was busy started late; the question pays for it."""

    async def ask(number: int) -> None:
        if number == 0:
            import time

            time.sleep(0.1)

    records = await open_loop(ask, rate=100, seconds=0.05)
    assert records[1].latency_s > 0.05


async def test_open_loop_cancelled() -> None:
    """What is under way ends with it."""
    ended = 0

    async def ask(number: int) -> None:
        nonlocal ended
        try:
            await asyncio.sleep(60)
        finally:
            ended += 1

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await open_loop(ask, rate=100, seconds=1)
    assert ended > 0


def test_quantile_is_nearest_rank() -> None:
    assert [quantile(range(1, 101), q) for q in (0.0, 0.01, 0.5, 0.99, 0.999, 1.0)] == [1, 1, 50, 99, 100, 100]
    assert math.isnan(quantile([], 0.5))


def test_summary() -> None:
    """Latencies are of answers only, and a window is half open."""
    records = [record(i, due=float(i), took=0.001 * (i + 1), ok=i != 9) for i in range(10)]
    summary = summarise(records)
    assert (summary.asked, summary.answered, summary.failed) == (10, 9, 1)
    assert summary.max_s == pytest.approx(0.009)
    assert summarise(records, since=2, until=4).asked == 2
    empty = summarise([])
    assert empty.p50_s is None
    assert json.loads(json.dumps(empty.as_json()))["asked"] == 0


# --- story --------------------------------------------------------------------------------------------------


def record(number: int, *, due: float, took: float = 0.005, ok: bool = True, right: bool = True) -> Record[Answer]:
    answer = Answer("How?", "So", right) if ok else None
    return Record(number, due, due, due + took, answer, None if ok else RuntimeError("refused\nattempts: 1"))


class Teller:
    """A story at a time that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.story = Story(clock=lambda: self.now, began=100.0)

    def did(self, at: float, what: str, server: str) -> None:
        self.now = 100.0 + at
        self.story.did(what, server)

    def heard(self, at: float, kind: type[Event], server: str = "a", **fields: Any) -> None:
        self.now = 100.0 + at
        common: dict[type[Event], dict[str, Any]] = {
            EndpointChanged: {"cluster": server, "endpoint": server, "before": "up", "reason": "probe: x"},
            ReadinessChanged: {
                "cluster": server, "endpoint": server, "database": "", "collection": "docs", "reason": "released",
            },
            AttemptFinished: {
                "cluster": server, "endpoint": server, "method": "Search", "action": "ok", "duration_s": 0.1,
                "hedge": False, "reason": "",
            },
            CallFinished: {
                "method": "Search", "kind": "read", "collection": "docs", "outcome": "ok", "duration_s": 0.1,
                "cluster": server, "endpoint": server, "attempts": 1, "hedges": 0,
            },
            HedgeStarted: {"method": "Search", "cluster": server, "endpoint": server, "delay_s": 0.1},
            RetryScheduled: {"method": "Search", "attempt": 1, "delay_s": 0.1, "reason": ""},
            FailedOver: {
                "method": "Search", "from_cluster": "a", "from_endpoint": "a", "to_cluster": "b", "to_endpoint": "b",
            },
        }  # fmt: skip
        self.story.listen(kind(at=0.0, **{**common[kind], **fields}))


def whole_story() -> Story:
    """A kill, a freeze and their mending, a release; 20 questions."""
    told = Teller()
    told.did(2, "kill", "a")
    told.heard(2.1, EndpointChanged, "a", after="down")
    told.heard(2.2, EndpointChanged, "a", after="probation", before="down")
    told.heard(2.3, EndpointChanged, "a", after="down")
    told.heard(2.3, HedgeStarted)
    told.heard(2.3, RetryScheduled)
    told.heard(2.4, FailedOver)
    told.did(4, "freeze", "b")
    told.heard(4.5, EndpointChanged, "b", after="down")
    told.did(6, "thaw", "b")
    told.heard(6.5, EndpointChanged, "b", after="probation", before="down")
    told.heard(6.6, AttemptFinished, "b")
    told.heard(6.6, CallFinished, "b")
    told.did(7, "restart", "a")
    told.heard(9, EndpointChanged, "a", after="probation", before="down")
    told.did(10, "release", "c")
    told.heard(10.25, ReadinessChanged, "c", ready=False)
    told.heard(11, ReadinessChanged, "c", ready=True)
    for i in range(20):
        told.story.asked(record(i, due=100 + 0.6 * i))
    return told.story


def sum_up(story: Story) -> Report:
    return report(story, passages=700, embedder="hashing", loop="uvloop", total_s=40.0, load_s=9.0)


def test_story() -> None:
    """Each fault is noticed by the event that shows it, phases say what was wrong, counters count."""
    done = sum_up(whole_story())
    assert [(f.what, f.server, round(f.at, 2)) for f in done.faults] == [
        ("kill", "a", 2), ("freeze", "b", 4), ("thaw", "b", 6), ("restart", "a", 7), ("release", "c", 10),
    ]  # fmt: skip
    assert [round((f.noticed or 0) - f.at, 2) for f in done.faults] == [0.1, 0.5, 0.5, 2.0, 0.25]
    assert [(p.what, p.summary.asked) for p in done.phases] == [
        ("all three well", 4),
        ("a killed", 3),
        ("b frozen; a still killed", 3),
        ("b thawed; a still killed", 2),
        ("a started again", 5),
        ("c released", 3),
    ]
    assert done.counts == {"hedges": 1, "retries": 1, "failovers": 1, "over_budget": 0}
    assert done.answers == {"b": 1}
    assert done.ok


def test_well() -> None:
    """A server is well when nobody hurts it and the client uses it."""
    told = Teller()
    assert told.story.well("a")
    told.did(1, "kill", "a")
    told.heard(1.1, EndpointChanged, "a", after="down")
    told.did(2, "restart", "a")
    assert not told.story.well("a")
    assert told.story.now_wrong() == "nothing"
    told.heard(3, EndpointChanged, "a", after="probation")
    assert told.story.well("a")
    told.heard(4, ReadinessChanged, "a", ready=False)
    assert not told.story.well("a")


def test_busiest() -> None:
    told = Teller()
    assert told.story.busiest("abc") == "a"
    for server in "acbccaaaa":
        told.heard(1, CallFinished, server)
    assert told.story.busiest("abc") == "a"
    assert told.story.busiest("bc") == "c"


def test_not_ok() -> None:
    """A failed question, a wrong answer, an unmade fault or no question at all is a failure."""
    assert not sum_up(Story()).ok
    for bad in (record(99, due=101, ok=False), record(99, due=101, right=False)):
        story = whole_story()
        story.asked(bad)
        assert not sum_up(story).ok
    story = whole_story()
    story.problems.append("nothing was frozen")
    assert not sum_up(story).ok


def test_json() -> None:
    data = json.loads(json.dumps(sum_up(whole_story()).as_json(), allow_nan=False))
    assert data["ok"] is True
    assert (data["asked"], data["failed"], data["wrong"]) == (20, 0, 0)
    assert data["faults"][0] == {"at_s": 2.0, "what": "kill", "server": "a", "noticed_after_s": 0.1}
    assert data["phases"][1]["what"] == "a killed"


def test_tidy() -> None:
    """The address, which the table names already, goes; the reason stays."""
    reason = "probe: Connect: 127.0.0.1:57783: cannot connect to 127.0.0.1:57783: Connection\nrefused"
    assert tidy(reason) == "probe: Connect: cannot connect: Connection refused"
    assert tidy("127.0.0.1:1234: reset") == "reset"


# --- view ---------------------------------------------------------------------------------------------------


def drawn(what: Any, width: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=True, color_system=None, legacy_windows=False).print(what)
    return [line.rstrip() for line in out.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 120])
def test_report_fits(width: int) -> None:
    """The report says what must be said, at any width."""
    story = whole_story()
    story.asked(record(20, due=111, ok=False))
    lines = drawn(demo_view.finished(sum_up(story)), width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "21 questions asked, 20 answered, 1 failed, 0 wrong." in text
    assert "1 times RuntimeError: refused" in text
    assert "attempts" not in text
    assert "kill a 0.10 s, freeze b 0.50 s" in " ".join(text.split())
    assert any(line.split()[:3] == ["4.0", "s", "b"] and "still killed" in line for line in lines)


@pytest.mark.parametrize("width", [80, 120])
def test_live_table(width: int) -> None:
    """Each server is one line, whatever its error."""
    story = whole_story()
    story.hurt = {"a": "killed"}
    error = "127.0.0.1:1: cannot connect to 127.0.0.1:1: " + "very " * 40 + "refused"
    endpoints = [
        EndpointView("a", "127.0.0.1:1", "down", None, 0, {"docs": True}, "", error),
        EndpointView("b", "127.0.0.1:2", "probation", 0.0123, 12, {"docs": False}),
    ]
    fleet = FleetView(tuple(ClusterView(e.name, "", 0, 1.0, (e,)) for e in endpoints), 0.0)
    lines = drawn(demo_view.live(story, fleet, now=112.0, seconds=25, collection="docs"), width)
    assert max(map(len, lines)) <= width
    rows = {line.split()[0]: line.split() for line in lines if line.split()[:1] in (["a"], ["b"])}
    assert rows["a"][:3] == ["a", "killed", "down"]
    assert rows["b"] == ["b", "probation", "no", "1", "12", "ms", "12"]
    assert "wrong now: a killed" in lines[0]


def test_live_before_the_first_answer() -> None:
    text = "\n".join(drawn(demo_view.live(Story(), FleetView((), 0.0), now=0.0, seconds=25, collection="docs"), 80))
    assert "p50 -" in text


# --- options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seconds": 5.0}, "seconds must be from 10"),
        ({"seconds": math.nan}, "seconds must be from 10"),
        ({"rate": 0.0}, "rate must be from 1"),
        ({"embedder": "word2vec"}, "unknown embedder 'word2vec'"),
        ({"embedder": "sentence-transformers:"}, "unknown embedder"),
        ({"embedder": "hashing:x"}, "unknown embedder"),
    ],
)
def test_bad_options(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DemoOptions(**wrong)


def test_make_embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(make_embedder("hashing", ["a"]), HashingEmbedder)
    monkeypatch.setattr("haclient.drill.demo.SentenceTransformerEmbedder", lambda *model: model)
    assert make_embedder("sentence-transformers", []) == ()
    assert make_embedder("sentence-transformers:org/x:y", []) == ("org/x:y",)
