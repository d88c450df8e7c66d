"""From a REST request to the core and back, the core being a stand-in."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import orjson
import pytest

from haclient.call import Action, Attempt, Kind, Reply
from haclient.errors import (
    AccessDenied,
    ConfigError,
    ConnectFailed,
    DeadlineExceeded,
    PoisonedCall,
    TransportClosed,
    Unavailable,
    WriteNotConfirmed,
    WriteRefused,
)
from haclient.milvus.requests import KeyField
from haclient.proxy.rest import HttpRequest, RestGateway
from haclient.proxy.rest_routes import STATUS, VERB

OK = Reply(b'{"code":0}', headers=((STATUS, "200"), ("content-type", "application/json"), ("connection", "close")))


@dataclass
class FakeCore:
    """Keeps what it is asked and answers what it is told to."""

    outcome: object = field(default_factory=lambda: OK)
    database: str = ""
    keys: dict = field(default_factory=dict)
    asked: list = field(default_factory=list)
    reader: object = None

    @property
    def fleet(self):
        return SimpleNamespace(keys=self.keys, config=SimpleNamespace(database=self.database))

    async def answer(self, method, message, metadata, timeout_s, facts):
        asked = SimpleNamespace(method=method, message=message, metadata=metadata, timeout_s=timeout_s, facts=facts)
        self.asked.append(asked)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome, None


def request(path="/v2/vectordb/entities/search", body=b"{}", *, verb="POST", **headers):
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return HttpRequest(verb, path, named, raw)


async def asked(core, *args, **given):
    """Ask, and return what the core was asked."""
    await RestGateway(core).answer(request(*args, **given))
    return core.asked[-1]


def tried(*, reply=None, error=None):
    return Attempt("a", "c", 0.0, 1.0, Action.FAILOVER, reply, error, "it failed")


class TestFacts:
    @pytest.mark.parametrize(
        ("path", "body", "collection", "database"),
        [
            ("/v2/vectordb/entities/search", {"collectionName": "docs", "dbName": "d"}, "docs", "d"),
            (
                "/v2/vectordb/entities/search",
                {"data": [{"collectionName": "inner"}], "collectionName": "docs"},
                "docs",
                "",
            ),
            ("/v2/vectordb/collections/list", {}, "", ""),
            ("/v2/vectordb/collections/list", b"", "", ""),
            ("/v2/vectordb/entities/search", {"collectionName": 7, "dbName": ["d"]}, "", ""),
            ("/v1/vector/search", {"collectionName": "docs", "dbName": "d"}, "docs", "d"),
        ],
    )
    async def test_names(self, path, body, collection, database):
        facts = (await asked(FakeCore(), path, body)).facts
        assert (facts.collection, facts.database, facts.opaque) == (collection, database, False)

    async def test_names_in_a_query(self):
        core = FakeCore()
        one = await asked(core, "/v1/vector/collections/describe?collectionName=d%20x&dbName=e", b"", verb="GET")
        assert (one.facts.collection, one.facts.database) == ("d x", "e")
        assert one.method.path == "/v1/vector/collections/describe?collectionName=d%20x&dbName=e"
        assert one.method.name == "vector/collections/describe"
        assert one.metadata[0] == (VERB, "GET")

    async def test_database(self):
        """The body's name wins over the header, and that over the configured one; v1 knows the body only."""
        core = FakeCore(database="configured")
        for body, headers, expected in [
            ({}, {}, "configured"),
            ({}, {"db_name": "header"}, "header"),
            ({"dbName": "body"}, {"db_name": "header"}, "body"),
        ]:
            one = await asked(core, body=body, **headers)
            assert one.facts.database == expected
            assert dict(one.metadata)["db-name"] == headers.get("db_name", "configured"), "the server is told"
        assert not (await asked(core, "/v1/vector/search")).facts.database

    @pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b'"text"', b'{"data":"' + b"x" * (4 << 20) + b'"}'])
    async def test_what_cannot_be_read_is_sent_once(self, body):
        """It reaches a server as it is, which says what is wrong; nothing is concluded about a collection."""
        core = FakeCore()
        one = await asked(core, body=body)
        assert one.message == body
        assert (one.facts.opaque, one.facts.idempotent, one.facts.hedgeable) == (True, False, False)
        assert one.method.kind is Kind.SESSION
        write = await asked(core, "/v2/vectordb/entities/insert", body)
        assert (write.facts.opaque, write.method.kind) == (True, Kind.WRITE)

    @pytest.mark.parametrize(
        ("path", "body", "key", "again"),
        [
            ("entities/upsert", {"data": [{"id": 1}]}, KeyField("id", False), True),
            ("entities/upsert", {"data": [{"id": 1}]}, KeyField("id", True), False),
            ("entities/upsert", {"data": [{"id": 1}], "partialUpdate": True}, KeyField("id", False), False),
            ("entities/upsert", {"data": [{"id": 1}]}, None, False),
            ("entities/delete", {"filter": "id in [1, 2]"}, KeyField("id", True), True),
            ("entities/delete", {"filter": "id in [1, 2]"}, KeyField("pk", False), False),
            ("entities/delete", {"filter": "id > 1"}, KeyField("id", False), False),
            ("entities/delete", {"filter": "id in [1, 2]"}, None, False),
            ("entities/delete", {}, KeyField("id", False), False),
            ("entities/insert", {"data": [{"id": 1}]}, KeyField("id", False), False),
        ],
    )
    async def test_which_writes_may_be_repeated(self, path, body, key, again):
        core = FakeCore(keys={("", "docs"): key} if key else {})
        assert (await asked(core, f"/v2/vectordb/{path}", {"collectionName": "docs", **body})).facts.idempotent is again

    async def test_v1_deletes_by_key(self):
        one = await asked(FakeCore(), "/v1/vector/delete", {"collectionName": "docs", "id": [1]})
        assert one.facts.idempotent
        both = await asked(FakeCore(), "/v1/vector/delete", {"collectionName": "docs", "id": [1], "filter": "x > 1"})
        assert not both.facts.idempotent


class TestHeaders:
    async def test_what_is_carried(self):
        """All that is meant for the server, and nothing that is about the connection."""
        one = await asked(
            FakeCore(),
            connection="keep-alive, x-mine",
            x_mine="1",
            host="proxy",
            content_length="2",
            content_type="application/json",
            accept_encoding="gzip",
            accept_type_allow_int64="true",
            client_request_id="r1",
            authorization="Bearer root:Milvus",
            request_timeout="3",
            transfer_encoding="chunked",
            expect="100-continue",
        )
        assert one.metadata == (
            (VERB, "POST"),
            ("content-type", "application/json"),
            ("accept-type-allow-int64", "true"),
            ("client-request-id", "r1"),
            ("authorization", "Bearer root:Milvus"),
        )
        assert one.timeout_s == 3.0

    @pytest.mark.parametrize(
        ("text", "timeout_s"),
        [
            ("", None),
            ("x", None),
            ("-1", None),
            ("1.5", None),
            ("5", 5.0),
            ("0", 0.0),
            ("9" * 18, 86_400.0),
            ("9" * 99, None),
        ],
    )
    async def test_timeouts(self, text, timeout_s):
        assert (await asked(FakeCore(), request_timeout=text)).timeout_s == timeout_s

    async def test_what_comes_back(self):
        """A server's answer is handed on unchanged, but for what was about its connection."""
        core = FakeCore(
            Reply(b"whatever", headers=((STATUS, "418"), ("x-a", "1"), ("content-length", "8"), ("te", "x")))
        )
        response = await RestGateway(core).answer(request())
        assert (response.status, response.headers, response.body) == (418, (("x-a", "1"),), b"whatever")


class TestTokens:
    @pytest.mark.parametrize(
        ("authorization", "status"),
        [
            ("Bearer root:Milvus", 200),
            ("bearer root:Milvus", 200),
            ("Basic cm9vdDpNaWx2dXM=", 200),
            ("Basic cm9vdDp3cm9uZw==", 401),
            ("Bearer wrong", 401),
            ("Basic !", 401),
            ("", 401),
        ],
    )
    async def test_asked_for(self, authorization, status):
        core = FakeCore()
        gateway = RestGateway(core, lambda token: token == "root:Milvus")
        response = await gateway.answer(request(authorization=authorization))
        assert response.status == status
        if status == 200:
            assert "authorization" not in dict(core.asked[0].metadata), "it was for the proxy"
        else:
            assert not core.asked
            assert orjson.loads(response.body)["code"] == 1800
            assert dict(response.headers)["www-authenticate"] == "Bearer"

    async def test_preflight_requests_have_none(self):
        core = FakeCore()
        gateway = RestGateway(core, lambda _: False)
        preflight = request(verb="OPTIONS", body=b"", origin="http://app", access_control_request_method="POST")
        assert (await gateway.answer(preflight)).status == 200
        assert core.asked[0].metadata[0] == (VERB, "OPTIONS")
        assert (await gateway.answer(request(verb="OPTIONS", body=b""))).status == 401, (
            "nobody's browser asks like this"
        )


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "status", "again"),
        [
            (Unavailable("u", [tried(error=ConnectFailed("refused"))], code=14), 503, True),
            (DeadlineExceeded("d", code=4), 504, False),
            (WriteNotConfirmed("w"), 500, False),
            (WriteRefused("r"), 501, False),
            (PoisonedCall("p"), 422, False),
            (AccessDenied("a"), 403, False),
            (ConfigError("c"), 503, True),
        ],
    )
    async def test_statuses(self, error, status, again):
        """The body is what Milvus' clients expect; only what may be repeated blindly says when."""
        response = await RestGateway(FakeCore(error)).answer(request())
        assert response.status == status
        body = orjson.loads(response.body)
        assert body == {"code": getattr(error, "code", 65535), "message": str(error)}
        assert dict(response.headers).get("retry-after") == ("1" if again else None)

    async def test_the_last_server_that_said_anything(self):
        """As over gRPC: if all have failed, the client gets a server's own words, if there are any."""
        said = Reply(b'{"code":101,"message":"not loaded"}', headers=((STATUS, "200"),))
        error = Unavailable("u", [tried(reply=said), tried(error=ConnectFailed("refused"))])
        response = await RestGateway(FakeCore(error)).answer(request())
        assert (response.status, response.body) == (200, said.message)

    async def test_no_endpoint_offers_it(self):
        closed = tried(error=TransportClosed("no such REST route here"))
        response = await RestGateway(FakeCore(Unavailable("u", [closed, closed]))).answer(request())
        assert response.status == 404
        assert "no endpoint offers this route" in orjson.loads(response.body)["message"]
        mixed = Unavailable("u", [closed, tried(error=ConnectFailed("refused"))])
        assert (await RestGateway(FakeCore(mixed)).answer(request())).status == 503, "the dead one may offer it"

    @pytest.mark.parametrize(
        "target", ["/", "/metrics", "*", "/v2/vectordb/../x", "/v2/vectordb/a/b?x y", "/v2/vectordb/a\xff"]
    )
    async def test_nothing_here(self, target):
        core = FakeCore()
        response = await RestGateway(core).answer(request(target))
        assert response.status == 404
        assert "/v2/vectordb/..." in orjson.loads(response.body)["message"]
        assert not core.asked
