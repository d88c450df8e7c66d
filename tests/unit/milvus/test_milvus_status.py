"""The table of errors: every row as made-up bytes, and what real servers answered as recorded bytes."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymilvus.grpc_gen import common_pb2, milvus_pb2

from haclient.call import Action, Kind, Reply
from haclient.milvus.methods import METHODS, SERVICE, named
from haclient.milvus.status import ACTIONS, OK, Flavour, Status, Verdict, classify, judge, peek

SEARCH, UPSERT, CREATE, COMPONENTS = (named(n) for n in ("Search", "Upsert", "CreateCollection", "GetComponentStates"))
RECORDED = json.loads((Path(__file__).parent / "data" / "replies.json").read_text())


def status(**values):
    return common_pb2.Status(**values)


def search_reply(**values):
    return Reply(milvus_pb2.SearchResults(status=status(**values), collection_name="c").SerializeToString())


def write_reply(**values):
    return Reply(milvus_pb2.MutationResult(status=status(**values)).SerializeToString())


def ddl_reply(**values):
    return Reply(status(**values).SerializeToString())


# What real servers answer to mistakes and to nothing worse; the default is FAIL_FAST for an error.
NOT_FAIL_FAST = {
    "unloaded collection": Action.FAILOVER_COLLECTION,
    "just restarted": Action.FAILOVER_COLLECTION,
    "guarantee timestamp two days ahead": Action.FAILOVER,
    "guarantee timestamp twenty seconds ahead": Action.FAILOVER,
}


@pytest.mark.parametrize("record", RECORDED, ids=lambda r: f"{r['server']}-{r['method']}-{r['name']}")
@pytest.mark.parametrize("told", [True, False])
def test_recorded_replies(record, told):
    """The judge of success is protobuf; no mistake of a user looks like an outage, with or without the flavour."""
    row = named(record["method"])
    reply = Reply(bytes.fromhex(record["message"]), record["code"], record["details"])
    flavour = Flavour.REAL if record["server"] == "Milvus 2.3.5" else Flavour.LITE
    verdict = classify(row, reply, flavour if told else Flavour.UNKNOWN)
    service = milvus_pb2.DESCRIPTOR.services_by_name["MilvusService"]
    output = service.methods_by_name[record["method"]].output_type.full_name.rpartition(".")[2]
    if output == "Status":
        judged = common_pb2.Status.FromString(reply.message)
    elif hasattr(milvus_pb2, output):
        parsed = getattr(milvus_pb2, output).FromString(reply.message)
        judged = getattr(parsed, "status", common_pb2.Status())
    else:
        judged = common_pb2.Status()
    if reply.code == 0 and judged.code == 0 and judged.error_code == 0:
        assert verdict is OK
        return
    expected = NOT_FAIL_FAST.get(record["name"], Action.FAIL_FAST)
    assert verdict.action is expected
    assert verdict.code == (judged.code or judged.error_code or record["code"])
    assert verdict.reason
    assert verdict.ambiguous == (record["name"] in {"guarantee timestamp two days ahead", "load without index"})


def test_the_recordings_hold_what_they_are_for():
    found = {(r["server"], r["name"]) for r in RECORDED}
    for server in ("Milvus 2.3.5", "Milvus Lite 3.2.2"):
        for name in ("wrong dimension", "missing collection", "unloaded collection", "bad filter", "wrong metric"):
            assert (server, name) in found
    slow = [r for r in RECORDED if r["server"] == "Milvus 2.3.5" and r["name"] == "wrong dimension" and r["ms"] > 500]
    assert all(b"search/query delegator" in bytes.fromhex(r["message"]) for r in slow)
    assert slow


def spread(action, *codes):
    return [(code, action) for one in codes for code in (one if isinstance(one, range) else [one])]


# docs/milvus.md's table, written again so that a slip in the code does not go unseen.
ROWS = (
    spread(Action.FAILOVER, 1, 2, 10001, 401, 500, 501, 502, 503, 504, 505, 506, 507, 600, 601, 602, 603, 605)
    + spread(Action.FAILOVER, 901, 902, 903, 904, 905, 906, 1001, 1002, 1003, 1300, 1301, 1302, 2200)
    + spread(Action.DROPPED, 10000, 2038)
    + spread(Action.FAILOVER_COLLECTION, 101, 103, 106, 201, 202, 400)
    + spread(Action.ROUTE_CHANGE, 6, 108, 1900)
    + spread(Action.BACK_OFF, 4, 8, 12, 305, 1807)
    + spread(Action.REFRESH, 109, 110, 2307, 2308, 2309, 2311, 2312, 2313, 2316)
    + spread(Action.FAIL_FAST, 100, 102, 104, 105, 107, 200, 250, 300, 301, 302, 303, range(700, 704), 800, 801, 802)
    + spread(Action.FAIL_FAST, 1100, 1101, 1102, 1400, 1401, 1402, range(1600, 1604), 1700, 1701, range(1800, 1807))
    + spread(Action.FAIL_FAST, 1901, 1902, 1903, range(2000, 2038), range(2039, 2100), 2100, 2201, range(2300, 2307))
    + spread(Action.FAIL_FAST, 2310, 2314, 2315, 2400, 3000)
    + spread(Action.ALARM, 10, 604, 1000, range(1004, 1010), 2101, 2401, 2500, 3001)
)
BLOCKED = spread(Action.WRITE_BLOCKED, 3, 7, 9, 11, 1303)


@pytest.mark.parametrize(("code", "action"), ROWS)
def test_every_code_on_a_read(code, action):
    verdict = classify(SEARCH, search_reply(code=code, error_code=1, reason="why"))
    assert (verdict.action, verdict.code) == (action, code)
    assert verdict.reason == f"why (code {code})"


def test_the_rows_are_the_whole_table():
    assert dict(ROWS + BLOCKED) == dict(ACTIONS)


@pytest.mark.parametrize(("code", "action"), BLOCKED)
def test_a_denial_of_writes_parks_writes_and_sends_reads_elsewhere(code, action):
    write = classify(UPSERT, write_reply(code=code, error_code=1))
    assert (write.action, write.rejected) == (action, True)
    assert classify(SEARCH, search_reply(code=code, error_code=1)).action is Action.BACK_OFF
    assert classify(CREATE, ddl_reply(code=code, error_code=1)).action is Action.BACK_OFF


@pytest.mark.parametrize("code", [101, 103, 106, 400])
def test_not_loaded_asks_for_another_endpoint_for_reads_only(code):
    assert classify(SEARCH, search_reply(code=code)).action is Action.FAILOVER_COLLECTION
    assert classify(UPSERT, write_reply(code=code)).action is Action.FAIL_FAST


@pytest.mark.parametrize(
    ("legacy", "action"),
    [
        (45, Action.FAILOVER),
        (46, Action.FAILOVER),
        (50, Action.FAILOVER),
        (56, Action.FAILOVER),
        (57, Action.FAILOVER),
        (49, Action.BACK_OFF),
        (48, Action.WRITE_BLOCKED),
        (53, Action.WRITE_BLOCKED),
        (54, Action.WRITE_BLOCKED),
        (55, Action.WRITE_BLOCKED),
        (62, Action.REFRESH),
        (4, Action.FAIL_FAST),
        (5, Action.FAIL_FAST),
        (35, Action.FAIL_FAST),
        (36, Action.FAIL_FAST),
    ],
)
@pytest.mark.parametrize("code", [0, 65535])
def test_the_deprecated_enum_decides_where_the_code_says_nothing(legacy, action, code):
    verdict = classify(UPSERT, write_reply(error_code=legacy, code=code, reason="some text"))
    assert (verdict.action, verdict.code) == (action, code or legacy)


OUTAGES = [
    "fail to get shard leaders from QueryCoord: no available shard delegator found",
    "no available node for channel",
    "node not match[expectedNodeID=1][actualNodeID=2]",
    "service not ready[proxy=1]: Initializing",
    "collection recovering",
    "context deadline exceeded",
    "NodeOffline",
    "failed to search/query delegator 1 for channel x: incomplete query result, missing id 5",
    "fail to Query, QueryNode ID=1, reason=rpc error: code = Unavailable desc = connection refused",
    "distribution is not serviceable: channel distribution is not serviceable",
]


@pytest.mark.parametrize("text", OUTAGES)
def test_the_catch_all_with_the_text_of_an_outage(text):
    verdict = classify(SEARCH, search_reply(code=65535, error_code=1, reason=text))
    assert (verdict.action, verdict.ambiguous, verdict.rejected) == (Action.FAILOVER, False, False)


@pytest.mark.parametrize(
    ("text", "read", "write"),
    [
        ("rpc error: STREAMING_CODE_REPLICATE_VIOLATION, not primary", Action.ROUTE_CHANGE, Action.ROUTE_CHANGE),
        ("collection not loaded[collection=5]", Action.FAILOVER_COLLECTION, Action.FAIL_FAST),
        (
            "failed to search/query delegator 5 for channel c1: fail to Search, QueryNode ID=5, reason=collection not "
            "found[collection=470654599917731866]",  # while it is being released
            Action.FAILOVER_COLLECTION,
            Action.FAIL_FAST,
        ),
        ("can't find collection: c", Action.FAIL_FAST, Action.FAIL_FAST),
        ("request is rejected: rate limit exceeded", Action.BACK_OFF, Action.BACK_OFF),
        ("deny to write, reason: memory quota exceeded", Action.BACK_OFF, Action.WRITE_BLOCKED),
        ("collection id of iterator: alias or database may have been changed", Action.FAIL_FAST, Action.FAIL_FAST),
    ],
)
def test_the_catch_all_with_other_texts(text, read, write):
    assert classify(SEARCH, search_reply(code=65535, error_code=1, reason=text)).action is read
    assert classify(UPSERT, write_reply(code=65535, error_code=1, reason=text)).action is write


def test_an_unknown_text_moves_a_read_on_but_trips_nothing():
    for code in (65535, 4711, -1):
        read = classify(SEARCH, search_reply(code=code, error_code=1, reason="strange"))
        assert (read.action, read.ambiguous) == (Action.FAILOVER, True)
        write = classify(UPSERT, write_reply(code=code, error_code=1, reason="strange"))
        assert (write.action, write.ambiguous, write.rejected) == (Action.FAIL_FAST, True, False)
        retriable = classify(UPSERT, write_reply(code=code, error_code=1, reason="strange", retriable=True))
        assert (retriable.action, retriable.ambiguous) == (Action.FAILOVER, True)


def test_a_servers_own_word_that_the_input_is_wrong_wins():
    for code in (65535, 503, 1, 4711):
        reply = search_reply(code=code, reason="shard delegator", extra_info={"x": "y", "is_input_error": "true"})
        assert classify(SEARCH, reply).action is Action.FAIL_FAST
    reply = search_reply(code=503, extra_info={"is_input_error": "false"})
    assert classify(SEARCH, reply).action is Action.FAILOVER


def test_not_found_is_stale_if_the_catalogue_knows_better():
    reply = search_reply(code=100, error_code=4, reason="collection not found")
    assert classify(SEARCH, reply).action is Action.FAIL_FAST
    assert classify(SEARCH, reply, known=True).action is Action.REFRESH
    assert classify(SEARCH, reply, Flavour.LITE, known=True).action is Action.REFRESH
    assert classify(SEARCH, search_reply(code=1100), known=True).action is Action.FAIL_FAST


@pytest.mark.parametrize(
    ("code", "legacy", "real", "lite"),
    [
        (6, 6, Action.ROUTE_CHANGE, Action.FAIL_FAST),
        (26, 26, Action.FAILOVER, Action.FAIL_FAST),
        (35, 35, Action.FAILOVER, Action.FAIL_FAST),
        (700, 25, Action.FAIL_FAST, Action.FAIL_FAST),
        (101, 101, Action.FAILOVER_COLLECTION, Action.FAILOVER_COLLECTION),
        (1, 1, Action.FAILOVER, Action.FAILOVER),
    ],
)
def test_numbers_that_clash_go_by_flavour(code, legacy, real, lite):
    reply = search_reply(code=code, error_code=legacy, reason="x")
    assert classify(SEARCH, reply, Flavour.REAL).action is real
    assert classify(SEARCH, reply, Flavour.LITE).action is lite


def test_an_unknown_flavour_is_told_by_the_deprecated_enum():
    ready = classify(SEARCH, search_reply(code=1, error_code=56), Flavour.UNKNOWN)
    assert (ready.action, ready.ambiguous) == (Action.FAILOVER, False)
    assert classify(SEARCH, search_reply(code=1, reason="KeyError"), Flavour.UNKNOWN).ambiguous
    assert classify(SEARCH, search_reply(code=6, error_code=6), Flavour.UNKNOWN).action is Action.FAIL_FAST
    assert classify(SEARCH, search_reply(code=6, error_code=1), Flavour.UNKNOWN).action is Action.ROUTE_CHANGE


def test_only_refusals_before_execution_let_a_write_be_sent_elsewhere():
    assert classify(UPSERT, write_reply(code=1, error_code=56)).rejected
    assert classify(UPSERT, write_reply(error_code=57)).rejected
    assert classify(UPSERT, write_reply(code=8)).rejected
    assert not classify(UPSERT, write_reply(code=1, reason="any"), Flavour.LITE).rejected
    assert classify(UPSERT, write_reply(code=6, error_code=6), Flavour.LITE).rejected
    for code in (2, 10001, 503, 901, 1300, 65535):
        assert not classify(UPSERT, write_reply(code=code, error_code=1, reason="no available")).rejected


@pytest.mark.parametrize(
    ("code", "details", "action", "ambiguous", "rejected"),
    [
        (1, "", Action.DROPPED, True, False),
        (2, "internal: Milvus Proxy is not ready yet. please wait", Action.FAILOVER, False, True),
        (2, "Exception calling application: x", Action.FAILOVER, True, False),
        (3, "", Action.FAIL_FAST, False, True),
        (4, "", Action.FAILOVER, False, False),
        (5, "", Action.FAIL_FAST, False, True),
        (6, "", Action.FAIL_FAST, False, True),
        (7, "", Action.FAIL_FAST, False, True),
        (8, "too many requests", Action.BACK_OFF, False, True),
        (8, "grpc: received message larger than max (5 vs. 4)", Action.FAIL_FAST, False, False),
        (9, "", Action.FAIL_FAST, False, True),
        (9, "STREAMING_CODE_REPLICATE_VIOLATION", Action.ROUTE_CHANGE, False, True),
        (10, "", Action.FAILOVER, True, False),
        (11, "", Action.FAIL_FAST, False, True),
        (12, "unknown method X for service milvus.proto.milvus.MilvusService", Action.FAIL_FAST, False, True),
        (12, "unknown service milvus.proto.milvus.MilvusService", Action.FAILOVER, False, True),
        (12, "Method not implemented!", Action.FAIL_FAST, False, True),
        (13, "", Action.FAILOVER, True, False),
        (13, "grpc: error unmarshalling request: proto", Action.FAIL_FAST, False, True),
        (13, "Exception deserializing request!", Action.FAIL_FAST, False, True),
        (14, "", Action.FAILOVER, False, False),
        (15, "", Action.ALARM, False, False),
        (16, "", Action.FAIL_FAST, False, True),
        (99, "", Action.FAILOVER, True, False),
    ],
)
def test_grpc_codes(code, details, action, ambiguous, rejected):
    verdict = classify(UPSERT, Reply(b"", code, details))
    assert (verdict.action, verdict.ambiguous, verdict.rejected) == (action, ambiguous, rejected)
    assert verdict.code == code
    assert details[:100] in verdict.reason


@pytest.mark.parametrize("path", sorted(path for path in METHODS if path.startswith(f"/{SERVICE}/")))
def test_every_methods_status_is_found_where_it_is(path):
    """An error put into each response by protobuf is seen; the same response without it is a success."""
    row = METHODS[path]
    rpc = milvus_pb2.DESCRIPTOR.services_by_name["MilvusService"].methods_by_name.get(row.name)
    if rpc is None:
        assert peek(row, b"") is None
        return
    error = status(code=2, error_code=1, reason="away").SerializeToString()
    if row.status == 0:
        assert peek(row, error) == Status(2, 1, "away")
    elif row.status < 0:
        assert peek(row, b"\n" + bytes([len(error)]) + error) is None
    else:
        message = bytes([row.status << 3 | 2, len(error)]) + error
        before = b"\n\x02\x08\x01" if row.status > 1 else b""
        assert peek(row, before + message + b"\x7a\x01x") == Status(2, 1, "away")
        assert peek(row, before + bytes([row.status << 3 | 2, 0]) + b"\x7a\x01x") is None
    assert peek(row, b"") is None


statuses = st.builds(
    common_pb2.Status,
    error_code=st.sampled_from([0, 0, 1, 4, 62]),
    reason=st.text(max_size=200),
    code=st.one_of(st.just(0), st.integers(-(2**31), 2**31 - 1)),
    retriable=st.booleans(),
    detail=st.text(max_size=5),
    extra_info=st.dictionaries(st.sampled_from(["is_input_error", "report_value"]), st.sampled_from(["true", "5"])),
)


@given(statuses, st.sampled_from([SEARCH, UPSERT, CREATE]))
def test_peek_agrees_with_protobuf(expected, row):
    if row is CREATE:
        message = expected.SerializeToString()
    elif row is SEARCH:
        message = milvus_pb2.SearchResults(status=expected, collection_name="c").SerializeToString()
    else:
        message = milvus_pb2.MutationResult(status=expected, timestamp=5).SerializeToString()
    found = peek(row, message)
    if expected.code == 0 and expected.error_code == 0:
        assert found is None
        assert classify(row, Reply(message)) is OK
    else:
        assert found == Status(
            expected.code,
            expected.error_code,
            expected.reason,
            expected.retriable,
            expected.extra_info.get("is_input_error") == "true",
        )


@given(st.binary(max_size=40), st.sampled_from([SEARCH, CREATE, COMPONENTS, named("Dummy")]), st.sampled_from(Flavour))
def test_no_reply_makes_classify_raise(message, row, flavour):
    verdict = classify(row, Reply(message), flavour)
    assert isinstance(verdict, Verdict)
    assert (verdict.action is Action.OK) == (verdict is OK)


@pytest.mark.parametrize("message", [b"\n", b"\n\x05abc", b"\n\x80", b"\n\x02\x08\x80", b"\n\x03\x12\x09x"])
def test_a_reply_whose_status_cannot_be_read_is_no_success(message):
    verdict = classify(SEARCH, Reply(message))
    assert (verdict.action, verdict.ambiguous, verdict.rejected) == (Action.FAILOVER, True, False)


def test_a_success_may_carry_a_reason_and_costs():
    assert classify(SEARCH, search_reply(reason="search result is empty")) is OK
    assert classify(SEARCH, search_reply(extra_info={"report_value": "21"})) is OK
    assert classify(SEARCH, search_reply()) is OK
    assert classify(SEARCH, Reply(b"\x1a\x01c")) is OK, "no status at all, as Lite writes it"
    assert classify(CREATE, Reply(b"")) is OK


def test_judge_takes_a_parsed_status():
    assert judge(Kind.READ, Status(503, 1, "channel")).action is Action.FAILOVER
