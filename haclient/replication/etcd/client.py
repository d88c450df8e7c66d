"""HTTP to etcd: its JSON gateway (``/v3/...``) on several endpoints, with credentials.

Decision made here: every request is sent again, to the next endpoint, until one answers or patience ends; so whoever
asks makes each request safe to repeat (a transaction that can hold only once). An endpoint is kept for as long as it
answers. One that refuses connections, says nothing in time or has no leader is left at once.

httpx' transport is used without its client, which would write a line into the application's logs for every request. A
request is given up by cancelling anyio's scope around it, never its task: httpx cleans up in shielded scopes, which a
task's cancellation cuts through, and then its pool keeps the connection for ever.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import re
import ssl
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, NoReturn, final

import anyio
import httpx
import orjson

from haclient.config.replication import ETCD, Replication
from haclient.errors import ConfigError, LogUnavailable

#: Time in which one endpoint is to answer; doubled once each was given it, for a slow disk is no dead server. It is
#: short because what a member passes on to a leader that has died is lost, and that member does not say so.
_ATTEMPT_S: Final = 0.5
_MAX_ATTEMPT_S: Final = 5.0
_CONNECT_S: Final = 0.5
#: Time in which each endpoint is to say who it is, when the log is opened.
_LOOK_S: Final = 2.0
#: Time after which a request that no endpoint answers is given up; an election takes one to three seconds.
_PATIENCE_S: Final = 10.0
#: Pause once every endpoint has failed.
_PAUSE_S: Final = 0.1
_KEEP_S: Final = 60.0
_SHOWN_LETTERS: Final = 200
#: etcd's own default of ``--quota-backend-bytes``.
_DEFAULT_QUOTA: Final = 2 << 30

# gRPC codes with which etcd says that this member cannot now: cancelled, unknown (raft stopped), too late, internal,
# unavailable (no leader, leader changed, request timed out).
_ELSEWHERE: Final = {1, 2, 4, 13, 14}
_EXHAUSTED: Final = 8
#: What is said before anything was proposed to the cluster.
_NOT_PROPOSED: Final = ("no leader", "too many requests", "proposal dropped")
_STALE_TOKEN: Final = ("invalid auth token", "revision of auth store is old")
_ADVICE: Final = {
    "database space exceeded": "it is out of space: raise its --quota-backend-bytes or compact and defragment it, then "
    'run "etcdctl alarm disarm"',
    "request is too large": "start it with --max-request-bytes=1572864 (its default) or more",
    "too many operations": "start it with --max-txn-ops=128 (its default) or more",
    "permission denied": "give its user a role that may read and write everything below etcd_prefix",
    "invalid user ID or password": "set etcd_user and etcd_password to what it knows",
    "user name is empty": "it asks for credentials: set etcd_user and etcd_password",
    "authentication is not enabled": "leave out etcd_user, or enable authentication in it",
    "CERTIFICATE_VERIFY_FAILED": "see that etcd_ca_file is of the authority that signed its certificate",
}


@final
class Reply(NamedTuple):
    """What etcd answered.

    Attributes:
        fields: The message.
        repeated: An earlier copy of the request may have been carried out too, or instead.
    """

    fields: Any
    repeated: bool


class _EndpointFailed(Exception):
    """One endpoint gave no answer; another may."""

    def __init__(self, reason: str, *, sent: bool, late: bool = False) -> None:
        super().__init__(reason)
        self.sent = sent
        self.late = late


class _StaleToken(Exception):
    """The token is not known any more: ask for a new one."""


class _Refused(Exception):
    """Etcd refuses the request, and every endpoint would; ``for_now``: for want of room."""

    def __init__(self, reason: str, *, for_now: bool = False) -> None:
        super().__init__(reason)
        self.for_now = for_now


@final
class EtcdClient:
    """The endpoints of one etcd.

    Args:
        settings: Addresses, credentials, TLS files.

    Attributes:
        name: What errors call it.
        opening: Nothing has worked yet: what is refused now is the configuration's fault.
    """

    def __init__(self, settings: Replication) -> None:
        self.name = settings.log
        self.opening = True
        scheme = "https" if settings.etcd_ca_file else "http"
        self._endpoints = [f"{scheme}://{address}" for address in settings.log[len(ETCD) :].split(",")]
        self._at = 0
        self._user = settings.etcd_user
        self._password = settings.etcd_password
        self._token = ""
        self._signing_in = asyncio.Lock()
        self._under_way: dict[asyncio.Task[httpx.Response | None], anyio.CancelScope] = {}
        self._closed = False
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=_KEEP_S)
        self._http = httpx.AsyncHTTPTransport(verify=_tls(settings), trust_env=False, limits=limits)

    async def connect(self) -> None:
        """Look at every endpoint; those that do not answer now may do so later.

        Raises:
            ConfigError: They are not the members of one etcd, or it refuses the credentials.
        """
        looks = await asyncio.gather(*map(self._cluster_of, self._endpoints), return_exceptions=True)
        clusters: dict[str, str] = {}
        for at, (endpoint, look) in enumerate(zip(self._endpoints, looks, strict=True)):
            if isinstance(look, str):
                self._at = at if not clusters else self._at
                clusters.setdefault(look, endpoint)
            elif isinstance(look, _Refused):
                raise self._error(endpoint, look, sent=False)
            elif not isinstance(look, _EndpointFailed):
                raise look
        if len(clusters) > 1:
            raise ConfigError(f"log: {' and '.join(clusters.values())} are of different etcd clusters; list one only")

    async def call(self, path: str, message: Mapping[str, Any], *, writes: bool = False) -> Reply:
        """Send a request until an endpoint answers it.

        Args:
            path: Method of the gateway.
            message: The request; safe to be carried out more than once.
            writes: It changes something, so that ``sent`` matters.

        Raises:
            LogUnavailable: No endpoint answered in time, or etcd refuses it.
            ConfigError: Etcd refuses it, while opening.
        """
        content = orjson.dumps(message)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _PATIENCE_S
        attempt_s = _ATTEMPT_S
        failures: dict[str, str] = {}
        sent = late = False
        for attempt in itertools.count(1):
            at = self._at
            endpoint = self._endpoints[at]
            try:
                fields = await self._try(endpoint, path, content, min(attempt_s, deadline - loop.time()))
            except _EndpointFailed as failure:
                failures[endpoint] = str(failure)
                sent = sent or (writes and failure.sent)
                late = late or failure.late
            except _Refused as refusal:
                raise self._error(endpoint, refusal, sent=sent) from None
            else:
                return Reply(fields, sent)
            self._leave(at)
            if attempt % len(self._endpoints) == 0:
                await asyncio.sleep(_PAUSE_S)
                attempt_s, late = min(attempt_s * 2, _MAX_ATTEMPT_S) if late else attempt_s, False
            if self._closed:
                raise LogUnavailable(f"the log {self.name} was closed", sent=sent)
            if loop.time() >= deadline:
                break
        raise LogUnavailable(
            f"the log {self.name} cannot be reached: no member answered within {_PATIENCE_S:g} s ("
            + "; ".join(f"{endpoint}: {reason}" for endpoint, reason in failures.items())
            + "); see that a majority of its members runs and can be reached",
            sent=sent,
        )

    async def stream(self, path: str, message: Mapping[str, Any], heard: Callable[[Any], None]) -> None:
        """Send a request to the present endpoint and hand on each part of its answer, until that ends for any reason.

        To be given up by cancelling a scope of anyio's around it.
        """
        request = _request("POST", self._endpoints[self._at] + path, orjson.dumps(message), self._token)
        try:
            response = await self._open(request)
            try:
                async for line in response.aiter_lines():
                    heard(orjson.loads(line))
            finally:
                await response.aclose()
        except (httpx.HTTPError, orjson.JSONDecodeError):
            pass

    async def quota(self) -> int:
        """Return how large etcd lets its database become, bytes: its default if it does not say."""
        try:
            response = await self._exchange(_request("GET", self._endpoints[self._at] + "/metrics", b"", ""), _LOOK_S)
        except (_EndpointFailed, _Refused):
            return _DEFAULT_QUOTA
        found = re.search(rb"^etcd_server_quota_backend_bytes (\S+)$", response.content, re.MULTILINE)
        quota = int(float(found[1])) if found else _DEFAULT_QUOTA
        return quota if quota >= 0 else sys.maxsize

    async def aclose(self) -> None:
        """Give up every request and close the connections."""
        self._closed = True
        for scope in self._under_way.values():
            scope.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        await self._http.aclose()

    def _leave(self, at: int) -> None:
        if self._at == at:  # else another request has left it already
            self._at = (at + 1) % len(self._endpoints)

    def _error(self, endpoint: str, refusal: _Refused, *, sent: bool) -> ConfigError | LogUnavailable:
        if self.opening and not refusal.for_now:
            return ConfigError(f"log: {self.name} cannot be used: {endpoint}: {refusal}")
        return LogUnavailable(f"the log {self.name} cannot be used now: {endpoint}: {refusal}", sent=sent)

    # One endpoint.

    async def _try(self, endpoint: str, path: str, content: bytes, timeout_s: float) -> Any:
        if self._user and not self._token:
            await self._sign_in(endpoint, "", timeout_s)
        token = self._token
        try:
            return await self._ask(endpoint, path, content, timeout_s, token)
        except _StaleToken:
            await self._sign_in(endpoint, token, timeout_s)
        try:
            return await self._ask(endpoint, path, content, timeout_s, self._token)
        except _StaleToken:
            raise _EndpointFailed("it does not know the token it has given", sent=False) from None

    async def _sign_in(self, endpoint: str, stale: str, timeout_s: float) -> None:
        async with self._signing_in:
            if self._token != stale:
                return  # another request has done it
            content = orjson.dumps({"name": self._user, "password": self._password.get_secret_value()})
            try:
                self._token = (await self._ask(endpoint, "/v3/auth/authenticate", content, timeout_s, ""))["token"]
            except _EndpointFailed as failure:  # the request itself was not sent
                raise _EndpointFailed(str(failure), sent=False, late=failure.late) from None

    async def _cluster_of(self, endpoint: str) -> str:
        return str((await self._try(endpoint, "/v3/maintenance/status", b"{}", _LOOK_S))["header"]["cluster_id"])

    async def _ask(self, endpoint: str, path: str, content: bytes, timeout_s: float, token: str) -> Any:
        response = await self._exchange(_request("POST", endpoint + path, content, token), timeout_s)
        try:
            fields = orjson.loads(response.content)
            if response.status_code == httpx.codes.OK and "error" not in fields:
                return fields
            self._failed(fields)
        except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
            reason = self._shown(f"HTTP {response.status_code}: {response.text}")
            if response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
                raise _EndpointFailed(reason, sent=True) from None
            raise _Refused(_advised(f"it does not answer as etcd does: {reason}")) from None

    def _failed(self, fields: Any) -> NoReturn:
        """Raise what an error of the gateway means; a method that streams wraps it once more."""
        if isinstance(fields.get("error"), dict):
            fields = fields["error"]
        problem: str = fields["message"]
        if any(known in problem for known in _STALE_TOKEN):
            raise _StaleToken
        proposed = not any(known in problem for known in _NOT_PROPOSED)
        code = fields.get("code", fields.get("grpc_code"))
        if not proposed or code in _ELSEWHERE:
            raise _EndpointFailed(self._shown(problem), sent=proposed)
        raise _Refused(_advised(self._shown(problem)), for_now=code == _EXHAUSTED)

    def _shown(self, text: str) -> str:
        """Cut what a server said to what may be shown: it may have sent back what it was sent."""
        for secret in (self._password.get_secret_value(), self._token):
            text = text.replace(secret, "***") if secret else text
        return text.strip()[:_SHOWN_LETTERS]

    async def _exchange(self, request: httpx.Request, timeout_s: float) -> httpx.Response:
        """Send one request, in a task of its own so that the caller may be cancelled."""
        if self._closed:
            raise _EndpointFailed("closed", sent=False)
        scope = anyio.CancelScope(deadline=anyio.current_time() + timeout_s)
        task = asyncio.get_running_loop().create_task(self._run(scope, request))
        self._under_way[task] = scope
        task.add_done_callback(self._forget)
        try:
            response = await asyncio.shield(task)
        except asyncio.CancelledError:
            scope.cancel()
            raise
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise _Refused(_advised(str(error))) from None
            raise _EndpointFailed(f"cannot connect: {_text(error)}", sent=False) from None
        except httpx.HTTPError as error:
            hint = "; if it speaks TLS, set etcd_ca_file" if request.url.scheme == "http" else ""
            reason = f"the connection ended before the answer did: {_text(error)}{hint}"
            raise _EndpointFailed(reason, sent=True) from None
        if response is None:
            raise _EndpointFailed(f"no answer within {timeout_s:.3g} s", sent=True, late=True)
        return response

    async def _run(self, scope: anyio.CancelScope, request: httpx.Request) -> httpx.Response | None:
        with scope:
            response = await self._open(request)
            try:
                await response.aread()
            finally:
                await response.aclose()
            return response
        return None

    async def _open(self, request: httpx.Request) -> httpx.Response:
        """Send a request and read the head of its answer."""
        try:
            return await self._http.handle_async_request(request)
        except AttributeError as error:  # anyio's, on uvloop: the connection was reset as soon as it stood
            raise httpx.ReadError("the connection was reset") from error

    def _forget(self, task: asyncio.Task[httpx.Response | None]) -> None:
        del self._under_way[task]
        if not task.cancelled():
            task.exception()  # whoever waited for it may have been cancelled


def _tls(settings: Replication) -> ssl.SSLContext | bool:
    if not settings.etcd_ca_file:
        return False
    context = ssl.create_default_context(cafile=settings.etcd_ca_file)
    if settings.etcd_cert_file:
        context.load_cert_chain(settings.etcd_cert_file, settings.etcd_key_file)
    return context


def _request(method: str, url: str, content: bytes, token: str) -> httpx.Request:
    headers = {"authorization": token} if token else {}
    limits = {"timeout": {"connect": _CONNECT_S}}
    return httpx.Request(method, _url(url), headers=headers, content=content, extensions=limits)


@functools.lru_cache(maxsize=64)
def _url(url: str) -> httpx.URL:
    return httpx.URL(url)  # takes longer to read than to use


def _advised(problem: str) -> str:
    advice = next((text for known, text in _ADVICE.items() if known in problem), "")
    return f"{problem}; {advice}" if advice else problem


def _text(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__
