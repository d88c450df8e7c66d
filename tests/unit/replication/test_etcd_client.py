"""What the answers of etcd's gateway mean, and where a request goes next; without an etcd."""

import asyncio
import json
import sys

import httpx
import pytest

from haclient.config.replication import Replication
from haclient.errors import ConfigError, LogUnavailable
from haclient.replication.etcd import client
from haclient.replication.etcd.client import EtcdClient

A, B, C = "http://a:1", "http://b:1", "http://c:1"
STATUS, ASKED = "/v3/maintenance/status", "/v3/kv/txn"


class Etcd:
    """Answers in place of the network: per endpoint what comes next, the last one for ever."""

    def __init__(self, **settings):
        self.client = EtcdClient(Replication(log="etcd://a:1,b:1,c:1", **settings))
        self.client._http = httpx.MockTransport(self._answer)
        self.client.opening = False
        self.asked = []
        self.answers = {}

    def says(self, endpoint, *answers):
        self.answers[endpoint] = list(answers)

    async def _answer(self, request):
        endpoint = f"{request.url.scheme}://{request.url.netloc.decode()}"
        self.asked.append((endpoint, request.url.path, request.headers.get("authorization", "")))
        answers = self.answers.get(endpoint) or [ok()]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if answer is None:
            await asyncio.sleep(1_000)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def endpoints(self):
        return [endpoint for endpoint, _, _ in self.asked]


def ok(**fields):
    return httpx.Response(200, json={"header": {"revision": "1", "cluster_id": "7"}, **fields})


def error(text, code, status=503):
    """As etcd 3.4 and 3.5 write it; `newer` is how 3.6 does."""
    return httpx.Response(status, json={"error": text, "message": text, "code": code})


def newer(text, code, status=503):
    return httpx.Response(status, json={"code": code, "message": text, "details": []})


@pytest.fixture
async def etcd(monkeypatch):
    monkeypatch.setattr(client, "_PATIENCE_S", 0.3)
    monkeypatch.setattr(client, "_ATTEMPT_S", 0.02)
    monkeypatch.setattr(client, "_PAUSE_S", 0.01)
    etcd = Etcd()
    yield etcd
    await etcd.client.aclose()


@pytest.mark.parametrize(
    ("failure", "sent"),
    [
        (httpx.ConnectError("refused"), False),
        (httpx.ConnectTimeout("late"), False),
        (error("etcdserver: no leader", 14), False),
        (newer("etcdserver: no leader", 14), False),
        (error("raft proposal dropped", 2, 500), False),
        (error("etcdserver: too many requests", 8, 429), False),
        (httpx.ReadError("reset"), True),
        (httpx.RemoteProtocolError("closed"), True),
        (AttributeError("'NoneType' object has no attribute 'getpeername'"), True),
        (None, True),
        (error("etcdserver: request timed out", 14), True),
        (newer("etcdserver: request timed out, possibly due to previous leader failure", 14), True),
        (error("etcdserver: leader changed", 14), True),
        (error("context deadline exceeded", 4, 504), True),
        (httpx.Response(502, text="bad gateway"), True),
        (httpx.Response(503, json=[]), True),
        (httpx.Response(200, json={"error": {"grpc_code": 14, "message": "etcdserver: no leader"}}), False),
        (httpx.Response(200, json={"error": {"code": 14, "message": "etcdserver: leader changed"}}), True),
    ],
)
async def test_an_endpoint_that_cannot_is_left(etcd, failure, sent):
    """The next one is asked at once, and kept; it is known whether the first may have carried the request out."""
    etcd.says(A, failure)
    fields, repeated = await etcd.client.call(ASKED, {}, writes=True)
    assert fields["header"]["revision"] == "1"
    assert repeated is sent
    assert not (await etcd.client.call(ASKED, {}, writes=True)).repeated
    assert etcd.endpoints == [A, B, B]
    assert not (await etcd.client.call(ASKED, {})).repeated


@pytest.mark.parametrize("sent", [False, True])
async def test_nobody_answers(etcd, sent):
    """It goes round until patience ends, and says what each endpoint did; what was not sent is not in doubt."""
    for endpoint in (A, B, C):
        etcd.says(endpoint, httpx.ConnectError(f"refused by {endpoint[-3]}"))
    if sent:
        etcd.says(B, httpx.ReadError("reset"), httpx.ConnectError("refused by b"))
    with pytest.raises(LogUnavailable, match=r"refused by a.*refused by b.*refused by c.*majority") as caught:
        await etcd.client.call(ASKED, {}, writes=True)
    assert caught.value.sent is sent
    assert etcd.endpoints[:4] == [A, B, C, A]
    with pytest.raises(LogUnavailable) as caught:
        await etcd.client.call(ASKED, {})
    assert not caught.value.sent


async def test_patience_covers_an_election(etcd):
    """Whoever has no leader yet is asked again."""
    for endpoint in (A, B, C):
        etcd.says(endpoint, error("etcdserver: no leader", 14), error("etcdserver: no leader", 14), ok())
    await etcd.client.call(ASKED, {})
    assert len(etcd.asked) == 7


@pytest.mark.parametrize(
    ("refusal", "advice"),
    [
        (error("etcdserver: permission denied", 7, 403), "etcd_prefix"),
        (newer("etcdserver: permission denied", 7, 403), "etcd_prefix"),
        (error("etcdserver: request is too large", 3, 400), "--max-request-bytes"),
        (error("etcdserver: too many operations in txn request", 3, 400), "--max-txn-ops"),
        (error("etcdserver: mvcc: database space exceeded", 8, 429), "alarm disarm"),
        (httpx.Response(404, text="404 page not found"), "does not answer as etcd does: HTTP 404"),
        (httpx.Response(200, text="<html>hello"), "does not answer as etcd does: HTTP 200: <html>hello"),
        (httpx.Response(200, json=7), "does not answer as etcd does"),
    ],
)
async def test_a_refusal_is_final(etcd, refusal, advice):
    """No other endpoint is asked; while the log is opened it is the configuration's fault, but for a lack of room."""
    etcd.says(A, refusal)
    with pytest.raises(LogUnavailable, match=advice) as caught:
        await etcd.client.call(ASKED, {}, writes=True)
    assert not caught.value.sent
    etcd.client.opening = True
    with pytest.raises(LogUnavailable if refusal.status_code == 429 else ConfigError, match=advice):
        await etcd.client.call(ASKED, {}, writes=True)
    assert set(etcd.endpoints) == {A}


async def test_a_refusal_after_a_lost_answer(etcd):
    """It does not say what became of the first copy."""
    etcd.says(A, httpx.ReadError("reset"))
    etcd.says(B, error("etcdserver: mvcc: database space exceeded", 8, 429))
    with pytest.raises(LogUnavailable, match="space") as caught:
        await etcd.client.call(ASKED, {}, writes=True)
    assert caught.value.sent


async def test_requests_at_once_leave_an_endpoint_together(etcd):
    """And not the next one because of it."""
    etcd.says(A, httpx.ConnectError("refused"))
    await asyncio.gather(*(etcd.client.call(ASKED, {}) for _ in range(5)))
    assert C not in etcd.endpoints


async def test_each_request_is_given_longer_once_all_were_late(etcd, monkeypatch):
    """A slow disk is no dead server."""
    monkeypatch.setattr(client, "_PATIENCE_S", 10.0)
    given = []

    async def slow(request):
        given.append(request)
        await asyncio.sleep(0.05)
        return ok()

    etcd.client._http = httpx.MockTransport(slow)
    await etcd.client.call(ASKED, {})
    assert len(given) == 7, "three were given 20 ms, three 40, one 80"


@pytest.mark.parametrize(
    "stale",
    [error("etcdserver: invalid auth token", 16, 401), newer("etcdserver: revision of auth store is old", 3, 400)],
)
async def test_a_token_is_asked_for_once_and_renewed_when_it_is_stale(etcd, stale):
    """By the first who meets it, for all."""
    users = Etcd(etcd_user="log", etcd_password="kept-to-itself")
    users.says(A, ok(token="one"), ok(), stale, ok(token="two"), ok())
    await users.client.call(ASKED, {})
    assert users.asked == [(A, "/v3/auth/authenticate", ""), (A, ASKED, "one")]
    users.asked.clear()
    await users.client.call(ASKED, {})
    assert users.asked == [(A, ASKED, "one"), (A, "/v3/auth/authenticate", ""), (A, ASKED, "two")]
    users.asked.clear()
    users.says(A, stale, ok(token="three"))
    await asyncio.gather(*(users.client.call(ASKED, {}) for _ in range(5)))
    assert [path for _, path, _ in users.asked].count("/v3/auth/authenticate") <= 2
    await users.client.aclose()


async def test_what_is_sent_back_is_not_shown(etcd):
    """A server that echoes what it gets may show the password and the token."""
    users = Etcd(etcd_user="log", etcd_password="kept-to-itself")
    users.says(A, httpx.Response(400, text=json.dumps({"name": "log", "password": "kept-to-itself"})))
    with pytest.raises(LogUnavailable, match=r"\*\*\*") as caught:
        await users.client.call(ASKED, {})
    assert "kept" not in str(caught.value)
    users.says(A, ok(token="secret-token"), error("what is secret-token?", 3, 400))
    with pytest.raises(LogUnavailable, match=r"what is \*\*\*"):
        await users.client.call(ASKED, {})
    assert "kept" not in repr(vars(users.client))
    await users.client.aclose()


async def test_endpoints_are_looked_at_when_it_is_opened(etcd):
    """Those that answer must be of one cluster; the first of them is used."""
    etcd.client.opening = True
    etcd.says(A, httpx.ConnectError("refused"))
    await etcd.client.connect()
    await etcd.client.call(ASKED, {})
    assert etcd.asked[-1][0] == B
    etcd.says(C, ok(header={"cluster_id": "8"}))
    with pytest.raises(ConfigError, match="http://b:1 and http://c:1 are of different etcd clusters"):
        await etcd.client.connect()


async def test_closing_ends_what_is_under_way(etcd):
    """It says that it was closed, and whether something may have been done."""
    etcd.says(A, None)
    waiting = [asyncio.ensure_future(etcd.client.call(ASKED, {}, writes=writes)) for writes in (True, False)]
    await asyncio.wait(waiting, timeout=0.01)
    await etcd.client.aclose()
    for task, sent in zip(waiting, (True, False), strict=True):
        with pytest.raises(LogUnavailable, match="was closed") as caught:
            await task
        assert caught.value.sent is sent


@pytest.mark.parametrize(
    ("answer", "quota"),
    [
        (httpx.Response(200, text="# TYPE x gauge\netcd_server_quota_backend_bytes 8.589934592e+09\n"), 8 << 30),
        (httpx.Response(200, text="etcd_server_quota_backend_bytes -1\n"), sys.maxsize),
        (httpx.Response(200, text="another 1\n"), 2 << 30),
        (httpx.Response(404), 2 << 30),
        (httpx.ReadError("reset"), 2 << 30),
    ],
    ids=["set", "none", "unknown", "hidden", "lost"],
)
async def test_how_large_etcd_may_become(etcd, answer, quota):
    """It is its default if nothing better is known."""
    etcd.says(A, answer)
    assert await etcd.client.quota() == quota
