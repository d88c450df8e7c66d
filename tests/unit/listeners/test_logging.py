"""Events as log records."""

import logging

import pytest

from haclient import events
from haclient.events import Event, EventBus
from haclient.listeners.logging import LoggingListener, level_of, text_of

CALL = {"method": "Search", "kind": "read", "collection": "docs", "duration_s": 0.25, "cluster": "a", "endpoint": "e"}


def down(at=0.0, endpoint="e", reason="3 failures in a row"):
    return events.EndpointChanged(at=at, cluster="a", endpoint=endpoint, before="up", after="down", reason=reason)


def up(at=0.0):
    return events.EndpointChanged(at=at, cluster="a", endpoint="e", before="down", after="up", reason="")


def call(outcome):
    return events.CallFinished(at=0.0, outcome=outcome, attempts=1, hedges=0, **CALL)


@pytest.mark.parametrize(
    ("event", "level"),
    [
        (down(), logging.WARNING),
        (up(), logging.INFO),
        (call("ok"), logging.DEBUG),
        (call("error"), logging.DEBUG),
        (call("cancelled"), logging.DEBUG),
        (call("Unavailable"), logging.WARNING),
        (events.ConfigRejected(at=0.0, reason="x"), logging.ERROR),
        (events.DataAlarm(at=0.0, cluster="a", endpoint="e", collection="c", reason="x"), logging.ERROR),
        (events.Degraded(at=0.0, collection="c", rung="cached", reason="x"), logging.WARNING),
        (
            events.Retrieved(
                at=0.0, collection="c", mode="dense", outcome="ok", rung="first", questions=1, hits=4, duration_s=0.1
            ),
            logging.DEBUG,
        ),
        (events.BudgetExhausted(at=0.0, method="Search", wanted="hedge"), logging.WARNING),
        (
            events.ReadinessChanged(
                at=0.0, cluster="a", endpoint="e", database="", collection="c", ready=False, reason="released"
            ),
            logging.WARNING,
        ),
        (
            events.AttemptFinished(
                at=0.0, cluster="a", endpoint="e", method="Search", action="failover", duration_s=1.0, hedge=False,
                reason="refused",
            ),
            logging.DEBUG,
        ),
    ],
)  # fmt: skip
def test_levels(event, level):
    """What an operator must know is a warning; what happens on every call is debugging."""
    assert level_of(event) == level


def test_every_event_has_a_level_of_its_own():
    """A new event is not forgotten here."""
    from haclient.listeners import logging as module

    known = {e for e in vars(events).values() if isinstance(e, type) and issubclass(e, Event) and e is not Event}
    assert set(module._LEVELS) == known


def test_text_is_key_value():
    """One line, quoted where a value is not one word."""
    assert text_of(down(reason='no "x"\nhere')) == (
        r'EndpointChanged cluster=a endpoint=e before=up after=down reason="no \"x\"\nhere"'
    )
    assert text_of(events.FleetReconfigured(at=0.0, added=("a", "b"), removed=(), kept=3)) == (
        'FleetReconfigured added=a,b removed="" kept=3'
    )


def test_record_carries_the_fields(caplog):
    """Structured formatters need not parse the text."""
    with caplog.at_level(logging.INFO, "haclient.events"):
        LoggingListener()(down())
    (record,) = caplog.records
    assert record.haclient == {
        "event": "EndpointChanged", "cluster": "a", "endpoint": "e", "before": "up", "after": "down",
        "reason": "3 failures in a row",
    }  # fmt: skip


def test_a_storm_is_cut(caplog):
    """Five of a kind per endpoint and period; the next says how many were left out."""
    bus = EventBus()
    bus.subscribe(LoggingListener(burst=2, period_s=10.0))
    with caplog.at_level(logging.INFO, "haclient.events"):
        for i in range(100):
            bus.emit(down(at=i * 0.05))
        bus.emit(down(at=5.0, endpoint="f"))
        bus.emit(up(at=5.0))
        assert len(caplog.records) == 4
        bus.emit(down(at=10.0))
        assert caplog.records[-1].haclient["left_out"] == 98
        assert caplog.messages[-1].endswith("left_out=98")
        bus.emit(down(at=10.1))
    assert "left_out" not in caplog.messages[-1]
    assert len(caplog.records) == 6


def test_the_first_failure_after_many_debug_records_is_seen(caplog):
    """Levels are counted apart: routine never hides a warning."""
    listener = LoggingListener(burst=2)
    with caplog.at_level(logging.DEBUG, "haclient.events"):
        for _ in range(50):
            listener(call("ok"))
        listener(call("Unavailable"))
    assert [r.levelname for r in caplog.records] == ["DEBUG", "DEBUG", "WARNING"]


def test_memory_is_bounded():
    """Endpoints that come and go for ever do not stay."""
    listener = LoggingListener(logging.getLogger("haclient.test.bounded"))
    for i in range(3000):
        listener(down(at=float(i), endpoint=str(i)))
    assert len(listener._seen) == listener.REMEMBERED


def test_a_quiet_logger_costs_nothing():
    """Nothing is counted or formatted below the logger's level."""
    listener = LoggingListener(logging.getLogger("haclient.test.quiet"))
    listener(call("ok"))
    assert not listener._seen
