"""How copies fail, measured: from a proxy's log, from Prometheus, from a drill."""

import json
import logging
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import pytest

from haclient import events
from haclient.drill.record import FaultMark, Operation, Trial
from haclient.drill.report.results import About, Result, Results
from haclient.drill.scenario import FaultPlan, Scenario
from haclient.errors import ConfigError
from haclient.listeners.logging import LoggingListener
from haclient.planning.measured import calls, failovers, failures
from haclient.planning.prometheus import Prometheus, PrometheusFailed
from haclient.proxy.logs import JsonLines

HOUR = 3600.0


def line(at_s, endpoint, after, worker=0):
    """What a worker of a proxy writes, by its own formatter."""
    logger, lines = logging.Logger("haclient.events"), []

    class Keep(logging.Handler):
        def emit(self, record):
            record.created = at_s
            lines.append(self.format(record))

    keep = Keep()
    keep.setFormatter(JsonLines(worker))
    logger.addHandler(keep)
    LoggingListener(logger)(
        events.EndpointChanged(at=0.0, cluster="a", endpoint=endpoint, before="", after=after, reason="")
    )
    return lines[0]


def test_failures_by_hand():
    """Two endpoints for ten hours, of which one is away for an hour and then for two."""
    seen = failures(
        [
            line(0, "e1", "up"),
            line(0, "e2", "up"),
            line(1 * HOUR, "e1", "down"),
            line(1.5 * HOUR, "e1", "probation"),
            line(2 * HOUR, "e1", "up"),
            line(4 * HOUR, "e1", "down"),
            line(6 * HOUR, "e1", "up"),
            line(10 * HOUR, "e2", "draining"),
        ]
    )
    assert (seen.copies, seen.failures) == (2, 2)
    assert seen.mttr_s == pytest.approx(1.5 * HOUR)
    assert seen.mtbf_s == pytest.approx((20 - 3) / 2 * HOUR)


def test_workers_see_one_failure():
    """It lasts from the first that says so to the last that takes it back; another's word does not end it."""
    seen = failures(
        [
            line(0, "e1", "up", worker=1),
            line(10, "e1", "down", worker=0),
            line(11, "e1", "down", worker=1),
            line(20, "e1", "up", worker=0),
            line(30, "e1", "up", worker=2),
            line(50, "e1", "up", worker=1),
            line(60, "e1", "up", worker=1),
        ]
    )
    assert (seen.failures, seen.down_s, seen.watched_s) == (1, 40.0, 60.0)


def test_what_is_no_event_is_passed_over():
    """Other programs' lines, lines cut off, and records of other kinds."""
    whole = [line(0, "e1", "down"), line(60, "e1", "up")]
    noise = [
        "",
        "Traceback:",
        "[1]",
        "null",
        '{"time": 3}',
        '{"time": "soon", "event": "EndpointChanged"}',
        whole[0][:40],
    ]
    assert failures([*noise, whole[0], *noise, whole[1], *noise]) == failures(whole)


def test_one_without_a_failure_says_how_good_it_must_be():
    """Nothing in 300 hours: with 95 % certainty the MTBF is 100 hours or more."""
    with pytest.raises(ConfigError, match=r"no failure of 2 copies was seen in 6.25 days.*4.2d or more"):
        failures([line(0, "e1", "up"), line(0, "e2", "up"), line(150 * HOUR, "e1", "draining")])
    with pytest.raises(ConfigError, match="give --mtbf"):
        failures([])


# A drill.


def results(*trials, targets=("cluster",)):
    plans = tuple(FaultPlan(kind="crash", target=target) for target in targets)
    about = About(engine="lite", started="", haclient="", python="", machine="")
    return Results(about, [Result(Scenario(name="s", title="", about="", fault=plans), list(trials))])


def trial(bad_reads_until=0.0, bad_writes_until=0.0, healed=14.0):
    """A call of each kind every tenth of a second for 30 s; a fault at 10 s."""
    operations = [
        Operation(kind, due / 10, due / 10 + 0.01, "failed" if 10 <= due / 10 < until else "ok")
        for due in range(300)
        for kind, until in (("search", bad_reads_until), ("upsert", bad_writes_until))
    ]
    return Trial(
        scenario="s", engine="lite", seed=1, seconds=30.0, rate=20.0, operations=operations,
        faults=[FaultMark("crash", "a", 10.0, healed)],
    )  # fmt: skip


def test_failovers_by_hand():
    """Two faults of three were led around, after 0 and 1 s for reads, 2 and 1 s for writes."""
    seen = failovers(results(trial(0, 12), trial(11, 11), trial(20, 20)))
    assert (seen.faults, seen.covered) == (3, 2)
    assert seen.coverage == pytest.approx(2 / 3)
    assert seen.rto_s["reads"] == pytest.approx(0.5)
    assert seen.rto_s["writes"] == pytest.approx(1.5)


def test_what_hurts_all_clusters_is_no_failover():
    """Only faults of one cluster say how well another one takes its place."""
    with pytest.raises(ConfigError, match="none of the drill's 0 faults"):
        failovers(results(trial(), targets=("clusters",)))


def test_faults_that_were_over_at_once_do_not_count():
    """Nothing had to be led around."""
    with pytest.raises(ConfigError, match="0 faults"):
        failovers(results(trial(healed=10.0)))


def test_calls_of_a_drill():
    """Good are those that were answered with what is true."""
    assert calls(results(trial(11, 10))) == (600, 10)


# Prometheus.


@contextmanager
def prometheus(answers):
    """Answers each query with the value of the first key that is in it."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            query = parse_qs(urlsplit(self.path).query)["query"][0]
            asked.append(query)
            body = next((value for key, value in answers.items() if key in query), [])
            if isinstance(body, list):
                body = {"status": "success", "data": {"resultType": "vector", "result": body}}
            text = body if isinstance(body, str) else json.dumps(body)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://user:secret@127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def value(number):
    return [{"metric": {}, "value": [1_700_000_000, str(number)]}]


def test_failures_from_prometheus():
    """Three clusters for a day, five failures, a hundredth of the time of one of them."""
    answers = {"count(max": value(3), "count_over_time": value(2880), "resets": value(5), "avg_over_time": value(0.01)}
    with prometheus(answers) as (url, _), Prometheus(url, 5.0) as server:
        seen = server.failures(86_400.0)
    assert (seen.copies, seen.watched_s, seen.failures) == (3, 86_400.0, 5)
    assert seen.mttr_s == pytest.approx(864.0 / 5)
    assert seen.mtbf_s == pytest.approx((3 * 86_400.0 - 864.0) / 5)


def test_calls_from_prometheus():
    """All calls and the bad ones; what has never happened is nothing."""
    with prometheus({'outcome!="cancelled"': value(1000)}) as (url, asked), Prometheus(url, 5.0) as server:
        assert server.calls(30 * 86_400.0) == (1000.0, 0.0)
    assert all("[30d]" in query for query in asked)


def test_prometheus_refuses():
    """Its own reason is passed on, without what the address has in it of credentials."""
    refusal = {"status": "error", "errorType": "execution", "error": "too many samples"}
    with (
        prometheus({"": refusal}) as (url, _),
        Prometheus(url, 5.0) as server,
        pytest.raises(PrometheusFailed, match="too many samples") as caught,
    ):
        server.calls(3600.0)
    assert "secret" not in str(caught.value)


def test_something_else_answers():
    """Then the address is wrong."""
    with (
        prometheus({"": "<html>"}) as (url, _),
        Prometheus(url, 5.0) as server,
        pytest.raises(ConfigError, match="no Prometheus server") as caught,
    ):
        server.calls(3600.0)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "localhost:9090", "ftp://x", "http://", "http://user:secret@"])
def test_wrong_address(url):
    """It is refused before anything is asked."""
    with pytest.raises(ConfigError, match="not an address") as caught:
        Prometheus(url, 5.0)
    assert "secret" not in str(caught.value)


def test_nobody_listens():
    """That is no matter of the input."""
    with (
        Prometheus("http://u:secret@127.0.0.1:1", 5.0) as server,
        pytest.raises(PrometheusFailed, match="cannot be asked") as caught,
    ):
        server.calls(3600.0)
    assert "secret" not in str(caught.value)
