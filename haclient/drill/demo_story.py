"""What happened in a demo, as it is told: by the drill what it broke, by the client's events what was noticed.

Decision made here: the story is a listener and a few lists; it does no I/O and knows no terminal, so live table,
report and JSON all tell the same one, and it is tested without a server. All its times are `time.monotonic`, like
those of the load.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, final

from haclient.drill.measure import Record, Summary, summarise
from haclient.events import (
    AttemptFinished,
    BudgetExhausted,
    CallFinished,
    ConfigRejected,
    DataAlarm,
    EndpointChanged,
    Event,
    FailedOver,
    HedgeStarted,
    ReadinessChanged,
    RetryScheduled,
)


@final
@dataclass(frozen=True, slots=True)
class Line:
    """One line of the story.

    Attributes:
        at: When, seconds.
        server: The server it is about.
        ours: Whether the drill did it; else the client noticed it.
        good: Whether things got better.
        text: What happened.
    """

    at: float
    server: str
    ours: bool
    good: bool
    text: str


@final
@dataclass(slots=True)
class Fault:
    """Something the drill did to a server.

    Attributes:
        at: When it was done, seconds.
        what: ``kill``, ``freeze``, ``thaw``, ``restart`` or ``release``.
        server: To which one.
        noticed: When the client showed that it knows; None until then.
    """

    at: float
    what: str
    server: str
    noticed: float | None = None


def tidy(reason: str) -> str:
    """Shorten a reason for a screen that shows which server it is of: one line, without the address."""
    address = r"\d+(?:\.\d+){3}:\d+"
    text = re.sub(f" to {address}(?=:)", "", " ".join(reason.split()))
    return re.sub(rf"(?<!\S){address}: ", "", text)


#: What each thing done is called, and what the server is then. Those that mend are noticed when it is tried again.
DEEDS = {
    "kill": ("killed (SIGKILL)", "killed"),
    "freeze": ("frozen (SIGSTOP)", "frozen"),
    "thaw": ("thawed (SIGCONT)", ""),
    "restart": ("started again; its collection will not be loaded", ""),
    "release": ("collection released behind the client's back", "released"),
}
#: So many answers tell which server is the busiest.
_RECENT = 10
_MENDS = frozenset({"thaw", "restart"})


@final
@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one question.

    Attributes:
        question: What was asked.
        title: Where the best passage is from.
        right: Whether it is the passage that exact search finds.
    """

    question: str
    title: str
    right: bool


@final
@dataclass(frozen=True, slots=True)
class Phase:
    """The time between two deeds, with what was wrong in it."""

    start: float
    what: str
    summary: Summary


@final
@dataclass(slots=True)
class Story:
    """Everything that is told of one demo.

    Attributes:
        clock: Tells the time, seconds.
        began: When the first question was due; 0 until then.
        told: Called with each line as it comes.
    """

    clock: Callable[[], float] = time.monotonic
    began: float = 0.0
    told: Callable[[Line], None] = lambda line: None
    lines: list[Line] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    records: list[Record[Answer]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    #: Questions answered by each server.
    answers: Counter[str] = field(default_factory=Counter)
    #: Servers that the client holds for down, and those that it holds for unable to serve the collection.
    out: set[str] = field(default_factory=set)
    unready: set[str] = field(default_factory=set)
    #: Servers that were down and have not answered a question since.
    silent: set[str] = field(default_factory=set)
    #: Server to what the drill has done to it ("killed"), while that lasts.
    hurt: dict[str, str] = field(default_factory=dict)
    last: Answer | None = None
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=_RECENT))

    # Told by the drill.

    def did(self, what: str, server: str) -> None:
        """Note what is being done to a server: before it is, for the client may notice within a millisecond."""
        at = self.clock()
        text, state = DEEDS[what]
        self.faults.append(Fault(at, what, server))
        self.hurt.pop(server, None)
        if state:
            self.hurt[server] = state
        self._tell(Line(at, server, True, what in _MENDS, text))

    def asked(self, record: Record[Answer]) -> None:
        """Note a question that has ended."""
        self.records.append(record)
        if record.answer is not None:
            self.last = record.answer

    # Told by the client.

    def listen(self, event: Event) -> None:
        """Take an event of the client (a `haclient.events.Listener`)."""
        now = self.clock()
        match event:
            case AttemptFinished(method="Search", action="ok"):
                if event.endpoint in self.silent - self.out:
                    self.silent.discard(event.endpoint)
                    self._tell(Line(now, event.endpoint, False, True, "answers questions again"))
            case CallFinished(method="Search", outcome="ok"):
                self.answers[event.endpoint] += 1
                self.recent.append(event.endpoint)
            case EndpointChanged(after="down") if event.endpoint not in self.out:
                self.out.add(event.endpoint)
                self.silent.add(event.endpoint)
                self._notice(event.endpoint, now, {"kill", "freeze"})
                self._tell(Line(now, event.endpoint, False, False, f"is down: {tidy(event.reason)}"))
            case EndpointChanged(after="up" | "probation") if event.endpoint in self.out:
                self.out.discard(event.endpoint)
                self._notice(event.endpoint, now, _MENDS)
                self._tell(Line(now, event.endpoint, False, True, "answers probes again, on trial"))
            case ReadinessChanged(ready=False):
                self.unready.add(event.endpoint)
                self._notice(event.endpoint, now, {"release"})
                text = f"cannot serve {event.collection}: {tidy(event.reason)}"
                self._tell(Line(now, event.endpoint, False, False, text))
            case ReadinessChanged(ready=True):
                self.unready.discard(event.endpoint)
                if self.hurt.get(event.endpoint) == "released":
                    del self.hurt[event.endpoint]
                self._tell(Line(now, event.endpoint, False, True, f"serves {event.collection} again"))
            case HedgeStarted():
                self.counts["hedges"] += 1
            case RetryScheduled():
                self.counts["retries"] += 1
            case FailedOver():
                self.counts["failovers"] += 1
            case BudgetExhausted():
                self.counts["over_budget"] += 1
            case DataAlarm():
                self._tell(Line(now, event.endpoint, False, False, f"data alarm: {tidy(event.reason)}"))
            case ConfigRejected():
                self.problems.append(event.reason)
            case _:
                pass

    def well(self, server: str) -> bool:
        """Whether nothing is wrong with a server: nobody hurts it, and the client uses it."""
        return not (server in self.hurt or server in self.out or server in self.unready)

    def busiest(self, servers: Iterable[str]) -> str:
        """Return the server that has answered most of the last questions; the first if none has."""
        counts = Counter(self.recent)
        return max(servers, key=lambda server: counts[server])

    def _notice(self, server: str, at: float, whats: set[str] | frozenset[str]) -> None:
        fault = next((f for f in reversed(self.faults) if f.server == server), None)
        if fault is not None and fault.what in whats and fault.noticed is None and at >= fault.at:
            fault.noticed = at

    def _tell(self, line: Line) -> None:
        self.lines.append(line)
        self.told(line)

    # What comes of it.

    def now_wrong(self) -> str:
        """Say what the drill has done that lasts."""
        return ", ".join(f"{server} {state}" for server, state in sorted(self.hurt.items())) or "nothing"

    @property
    def wrong(self) -> int:
        """Answers that are not what exact search finds."""
        return sum(record.answer is not None and not record.answer.right for record in self.records)

    def phases(self) -> list[Phase]:
        """Cut the load at each deed."""
        starts = [(self.began, "all three well")]
        hurt: dict[str, str] = {}
        for fault in self.faults:
            text, state = DEEDS[fault.what]
            hurt.pop(fault.server, None)
            what = f"{fault.server} {state or text.partition(';')[0].partition(' (')[0]}"
            others = [f"{server} still {was}" for server, was in sorted(hurt.items())]
            if state and fault.what != "release":  # the client itself mends a release
                hurt[fault.server] = state
            starts.append((fault.at, "; ".join([what, *others])))
        ends = [*starts[1:], (math.inf, "")]
        return [
            Phase(start, what, summarise(self.records, since=start, until=end))
            for (start, what), (end, _) in zip(starts, ends, strict=True)
        ]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of a demo. Times are in seconds from the first question, unless their name says otherwise.

    Attributes:
        passages: Passages in each server.
        embedder: What made the vectors.
        loop: Kind of event loop.
        total_s: Duration of everything, loading included.
        load_s: Duration until the first question.
        load: Figures of all questions.
        wrong: Answers that are not what exact search finds.
        counts: Hedges, retries, failovers, and those not made because the budget was spent.
        answers: Questions answered by each server.
        faults: What was done, and when it was noticed.
        phases: What was wrong from when, and the figures of the questions asked then.
        lines: The story.
        problems: Why the demo proves nothing, if it does not.
    """

    passages: int
    embedder: str
    loop: str
    total_s: float
    load_s: float
    load: Summary
    wrong: int
    counts: dict[str, int]
    answers: dict[str, int]
    faults: Sequence[Fault]
    phases: Sequence[Phase]
    lines: Sequence[Line]
    problems: Sequence[str]

    @property
    def ok(self) -> bool:
        """Whether every question was answered, rightly, and everything was done that should be."""
        return not (self.problems or self.load.failed or self.wrong) and self.load.asked > 0

    def as_json(self) -> dict[str, Any]:
        """Return it for `json.dumps`."""
        return {
            "demo": "haclient",
            "ok": self.ok,
            **self.load.as_json(),
            "wrong": self.wrong,
            **self.counts,
            "answers": self.answers,
            "passages": self.passages,
            "embedder": self.embedder,
            "loop": self.loop,
            "load_s": round(self.load_s, 2),
            "total_s": round(self.total_s, 2),
            "faults": [
                {
                    "at_s": round(f.at, 3),
                    "what": f.what,
                    "server": f.server,
                    "noticed_after_s": None if f.noticed is None else round(f.noticed - f.at, 3),
                }
                for f in self.faults
            ],
            "phases": [{"from_s": round(p.start, 3), "what": p.what, **p.summary.as_json()} for p in self.phases],
            "timeline": [{**asdict(line), "at": round(line.at, 3)} for line in self.lines],
            "problems": list(self.problems),
        }


def report(story: Story, *, passages: int, embedder: str, loop: str, total_s: float, load_s: float) -> Report:
    """Sum a story up; times become relative to the first question."""
    zero = story.began
    failures = Counter(_brief(r.error) for r in story.records if r.error is not None)
    return Report(
        passages=passages,
        embedder=embedder,
        loop=loop,
        total_s=total_s,
        load_s=load_s,
        load=summarise(story.records),
        wrong=story.wrong,
        counts={name: story.counts[name] for name in ("hedges", "retries", "failovers", "over_budget")},
        answers=dict(sorted(story.answers.items())),
        faults=[Fault(f.at - zero, f.what, f.server, f.noticed and f.noticed - zero) for f in story.faults],
        phases=[Phase(p.start - zero, p.what, p.summary) for p in story.phases()],
        lines=[Line(x.at - zero, x.server, x.ours, x.good, x.text) for x in story.lines],
        problems=[*story.problems, *(f"{count} times {text}" for text, count in failures.most_common(3))],
    )


def _brief(error: Exception) -> str:
    """Return the first line of an error; the attempts, which follow, differ each time."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"
