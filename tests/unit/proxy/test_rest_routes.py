"""What each route of Milvus' RESTful API does, and what each answer asks for."""

import orjson
import pytest

from haclient.call import STATUS_NONE, Action, Kind, Reply
from haclient.milvus.methods import METHODS, named
from haclient.milvus.status import OK, Flavour, classify
from haclient.proxy.rest_routes import MILVUS_AND_REST, ROUTES, STATUS, is_rest, lacks_route, route

SEARCH, _ = route("POST", "/v2/vectordb/entities/search")
INSERT, _ = route("POST", "/v2/vectordb/entities/insert")


def judge(http, body, method=SEARCH):
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return MILVUS_AND_REST.classify(method, Reply(raw, headers=((STATUS, str(http)),)), Flavour.UNKNOWN)


class TestRoutes:
    def test_routes_are_like_their_rpcs(self):
        """What may be repeated, hedged or moved is what the table of RPCs says; v1 cannot drop twice (measured)."""
        assert len(ROUTES) > 100
        for (verb, path), (method, rpc) in ROUTES.items():
            like = named(rpc)
            assert (method.path, method.kind, method.pinned) == (path, like.kind, like.pinned)
            assert method.status == STATUS_NONE
            if path != "/v1/vector/collections/drop":
                assert (method.idempotent, method.hedgeable) == (like.idempotent, like.hedgeable), path
            assert is_rest(path)
            assert verb == "POST" or path.startswith("/v1/")
        assert not route("POST", "/v1/vector/collections/drop")[0].idempotent
        assert route("POST", "/v2/vectordb/collections/drop")[0].idempotent

    def test_names(self):
        """A name that were an RPC's would have JSON read as that RPC's Protobuf; one per route, for its latencies."""
        names = [method.name for method, _ in ROUTES.values()]
        assert len(set(names)) == len(names)
        assert not set(names) & {method.name for method in METHODS.values()}

    @pytest.mark.parametrize(
        ("path", "kind", "again", "hedged"),
        [
            ("entities/search", Kind.READ, True, True),
            ("entities/get", Kind.READ, True, True),
            ("entities/advanced_search", Kind.READ, True, True),
            ("collections/describe", Kind.READ, True, True),
            ("entities/insert", Kind.WRITE, False, False),
            ("collections/create", Kind.DDL, True, False),
            ("collections/rename", Kind.DDL, False, False),
            ("users/create", Kind.ACCESS, False, False),
            ("jobs/import/create", Kind.WRITE, False, False),
        ],
    )
    def test_some(self, path, kind, again, hedged):
        method, _ = route("POST", f"/v2/vectordb/{path}")
        assert (method.kind, method.idempotent, method.hedgeable) == (kind, again, hedged)

    def test_unknown_routes(self):
        """A newer server's route is sent once, to one cluster; a verb that is safe may be repeated."""
        method, rpc = route("POST", "/v2/vectordb/collections/frobnicate")
        assert (method.kind, method.idempotent, method.hedgeable, method.pinned) == (Kind.WRITE, False, False, True)
        assert not rpc
        for verb in ("GET", "HEAD", "OPTIONS"):
            method, _ = route(verb, "/v2/vectordb/entities/search")
            assert (method.kind, method.idempotent, method.hedgeable) == (Kind.READ, True, False)
        assert route("PUT", "/v2/vectordb/entities/search")[0].kind is Kind.WRITE

    @pytest.mark.parametrize(
        "path",
        [
            "/",
            "/v1",
            "/v2/vectordb",
            "/v2/vectordb/",
            "/v2/vectordb/entities/search/",
            "/v2/vectordb//search",
            "/v2/vectordb/../admin",
            "/v2/vectordb/entities/./search",
            "/v2/vectordb/%2e%2e/admin",
            "/v2/vectordb/entities/search\n",
            "http://other/v2/vectordb/entities/search",
            "/v1/vectors/search",
        ],
    )
    def test_paths_that_are_none(self, path):
        assert not is_rest(path)


class TestVerdicts:
    @pytest.mark.parametrize(
        ("http", "body"),
        [
            (200, {"code": 0, "data": []}),
            (200, {"code": 0}),
            (200, b' {\n "code" : 0, "cost": 6, "data": [] }'),
            (200, {"cost": 6, "code": 0, "data": {}}),
            (200, {"code": 200, "data": ["docs"]}),
            (204, b""),
            (200, b""),
        ],
    )
    def test_success(self, http, body):
        assert judge(http, body) == OK

    @pytest.mark.parametrize(
        ("http", "code", "message", "action"),
        [
            (200, 1, "service not ready", Action.FAILOVER),
            (200, 100, "collection not found", Action.FAIL_FAST),
            (200, 101, "failed to search: collection not loaded", Action.FAILOVER_COLLECTION),
            (200, 8, "rate limit exceeded", Action.BACK_OFF),
            (200, 1802, "missing required parameters", Action.FAIL_FAST),
            (200, 1807, "rate limited", Action.BACK_OFF),
            (200, 200, "partition not found", Action.FAIL_FAST),
            (200, 65535, "fail to search on all shard leaders: no available shard", Action.FAILOVER),
            (200, 65535, "vector dimension mismatch: service internal error", Action.FAIL_FAST),
            (408, 10001, "request timeout", Action.FAILOVER),
            (401, 1800, "user hasn't authenticated", Action.FAIL_FAST),
            (403, 65535, "permission deny", Action.FAIL_FAST),
            (400, 65535, "whatever it is, the request is at fault", Action.FAIL_FAST),
            (503, 9999, "a newer server's code", Action.FAILOVER),
        ],
    )
    def test_codes(self, http, code, message, action):
        """The numbers mean what they mean over gRPC, whatever is known of the server."""
        verdict = judge(http, {"code": code, "message": message})
        assert verdict.action is action
        assert verdict.code == code
        assert message in verdict.reason

    @pytest.mark.parametrize(
        ("http", "body", "action", "ambiguous", "rejected"),
        [
            (200, b"<html>It works!</html>", Action.FAILOVER, True, False),
            (200, [1], Action.FAILOVER, True, False),
            (200, {"code": "0"}, Action.FAILOVER, True, False),
            (302, b"", Action.FAIL_FAST, False, False),
            (400, b"400 Bad Request", Action.FAIL_FAST, False, False),
            (403, b"", Action.FAIL_FAST, False, False),
            (408, b"", Action.FAILOVER, True, False),
            (429, b"slow down", Action.BACK_OFF, False, True),
            (500, b"", Action.FAILOVER, True, False),
            (502, b"<html>bad gateway</html>", Action.FAILOVER, False, False),
            (503, b"", Action.FAILOVER, False, False),
            (504, b"\xff\xfe", Action.FAILOVER, False, False),
        ],
    )
    def test_what_is_not_milvus(self, http, body, action, ambiguous, rejected):
        """Gateways before Milvus answer, too; none of their words proves that a write was not carried out."""
        verdict = judge(http, body)
        assert (verdict.action, verdict.ambiguous, verdict.rejected) == (action, ambiguous, rejected)

    def test_writes(self):
        """A refusal that Milvus makes before it executes lets even an insert go elsewhere."""
        assert judge(200, {"code": 1, "message": "not ready"}, INSERT).rejected
        assert not judge(200, {"code": 65535, "message": "timed out"}, INSERT).rejected
        assert judge(200, {"code": 101, "message": "not loaded"}, INSERT).action is Action.FAIL_FAST

    def test_missing_routes(self):
        assert lacks_route(404, b"404 page not found")
        assert lacks_route(404, b"")
        assert not lacks_route(404, b'{"code":2600,"message":"snapshot not found"}')
        assert not lacks_route(200, b"404 page not found")

    @pytest.mark.parametrize(
        "reply", [Reply(b"\n\0"), Reply(b"", 14, "transport is closing"), Reply(b"\n\x02\x18\x65")]
    )
    def test_grpc_is_judged_as_ever(self, reply):
        for headers in ((), (("content-type", "application/grpc"),)):
            reply.headers = headers
            for method in (named("Search"), named("Insert")):
                expected = classify(method, reply, Flavour.REAL)
                assert MILVUS_AND_REST.classify(method, reply, Flavour.REAL) == expected
