"""Log records: one line each, for people or for machines."""

import json
import logging

import pytest

from haclient.config import Proxy
from haclient.proxy import logs


@pytest.fixture
def written(capsys):
    """Returns what was written to stderr since the last look; the loggers are put back as they were."""
    root, ours = logging.getLogger(), logging.getLogger("haclient")
    before = root.handlers[:], root.level, ours.level
    root.handlers.clear()
    yield lambda: capsys.readouterr().err
    root.handlers[:], root.level, ours.level = before


def test_a_record_for_machines_is_one_object(written):
    logs.configure(Proxy(log="json"), worker=2)
    extra = {"request_id": "r-1", "event": "EndpointChanged", "left_out": 3, "path": object(), "level": "hidden"}
    logging.getLogger("haclient.events").warning("down:\n%s", "né", extra={"haclient": extra})
    line = written()
    assert line.count("\n") == 1
    record = json.loads(line)
    assert list(record)[:5] == ["time", "level", "logger", "message", "worker"]
    assert record["time"].endswith("Z")
    assert (record["level"], record["logger"], record["worker"]) == ("warning", "haclient.events", 2)
    assert (record["message"], record["request_id"], record["left_out"]) == ("down:\nné", "r-1", 3)


def test_a_record_for_people_is_one_line_that_nobody_can_forge(written):
    logs.configure(Proxy(), worker=0)
    logging.getLogger("haclient.proxy.calls").warning(
        "failed: %s", "x\n2026-01-01T00:00:00.000Z ERROR forged\x1b[2J", extra={"haclient": {"request_id": "r-1"}}
    )
    text = written()
    assert text.count("\n") == 1
    assert " WARNING haclient.proxy.calls worker=0: failed: x\\n2026" in text
    assert "\x1b" not in text
    assert text.endswith(" request_id=r-1\n")


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_traceback_is_kept_apart(written, form):
    logs.configure(Proxy(log=form))
    try:
        raise RuntimeError("first\nsecond")
    except RuntimeError:
        logging.getLogger("haclient.proxy").exception("failed")
    lines = written().splitlines()
    if form == "json":
        (line,) = lines
        assert json.loads(line)["traceback"].endswith("RuntimeError: first\nsecond")
        assert json.loads(line)["worker"] is None
    else:
        assert len(lines) > 3
        assert all(line.startswith("    ") for line in lines[1:])


@pytest.mark.parametrize("form", ["text", "json"])
def test_whatever_a_server_says_can_be_written(written, form):
    """Also half a character."""
    logs.configure(Proxy(log=form))
    logging.getLogger("haclient").warning("said %s", "\udc80", extra={"haclient": {"value": {1: "\udc80"}}})
    assert written().count("\n") == 1


def test_the_level_is_ours_and_others_are_heard_from_warnings_on(written):
    for level, expected in (("debug", ["a", "b", "c"]), ("info", ["b", "c"]), ("error", [])):
        logs.configure(Proxy(log_level=level))
        logging.getLogger("haclient.events").debug("a")
        logging.getLogger("haclient.events").info("b")
        logging.getLogger("uvicorn").info("never")
        logging.getLogger("uvicorn").warning("c")
        assert [line.split(": ")[1] for line in written().splitlines()] == expected


def test_configuring_again_writes_nothing_twice(written):
    logs.configure(Proxy())
    logs.configure(Proxy(log="json"))
    logging.getLogger("haclient").warning("once")
    assert len(written().splitlines()) == 1
