"""The admin API as the command line asks it.

Decision made here: what the operator got wrong (address, token, name) is a `ConfigError`, a proxy that gives no
answer is `ProxyUnreachable`, and either is one line. What is asked goes straight to the address given: a proxy of
the environment would see the token.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Self, TypeVar, final
from urllib.parse import quote

import anyio
import httpx
from pydantic import BaseModel, ValidationError

from haclient.errors import ConfigError, HAClientError
from haclient.fleet.model import ClusterView, EndpointView, FleetView
from haclient.proxy.admin_values import Drained, Problem
from haclient.proxy.report import ClusterReport, FleetReport

T = TypeVar("T", bound=BaseModel)


@final
class ProxyUnreachable(HAClientError):
    """The proxy's admin API gave no answer."""


@final
class AdminClient:
    """Asks one proxy; use it in ``async with``.

    Args:
        url: The admin API's address, ``http://`` may be left out.
        token: What it asks for, "" if it asks for nothing.
        timeout_s: Time for each answer, seconds.

    Raises:
        ConfigError: The address or the token cannot be right.
    """

    def __init__(self, url: str, token: str, timeout_s: float) -> None:
        self._url = _checked_url(url)
        self._timeout_s = timeout_s
        self._token = bool(token)
        if not token.isascii() or not token.isprintable() or " " in token:
            raise ConfigError("arguments: token: has a space, a line break or a letter that no token has")
        self._http = httpx.AsyncClient(
            base_url=self._url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=None,  # noqa: S113 - a whole answer has a time limit, not each of its parts
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def fleet(self) -> FleetView:
        """Ask how everything is.

        Raises:
            ConfigError: The token is refused, or this is no haclient proxy.
            ProxyUnreachable: There is no answer.
        """
        report = await self._ask("GET", "api/fleet", FleetReport)
        return FleetView(tuple(map(_view, report.clusters)), asyncio.get_running_loop().time())

    async def drain(self, name: str, *, drained: bool) -> None:
        """Take an endpoint or a cluster out of rotation, or put it back.

        Raises:
            ConfigError: Nothing has that name, and the causes of `fleet`.
            ProxyUnreachable: There is no answer.
        """
        await self._ask("POST", f"api/{'drain' if drained else 'undrain'}/{quote(name, safe='')}", Drained)

    async def _ask(self, method: str, path: str, kind: type[T]) -> T:
        try:
            with anyio.fail_after(self._timeout_s):
                answer = await self._http.request(method, path)
        except TimeoutError:
            raise ProxyUnreachable(f"{self._url}: no answer within {self._timeout_s:g} s; see --timeout") from None
        except (httpx.RemoteProtocolError, httpx.DecodingError):
            raise self._stranger("does not speak HTTP") from None
        except (httpx.RequestError, UnicodeError) as error:  # a host name too long is the latter
            why = str(error) or type(error).__name__
            raise ProxyUnreachable(f"{self._url}: cannot be reached ({why}); does haclient proxy run there?") from None
        if not answer.is_success:
            raise self._refusal(answer)
        try:
            return kind.model_validate_json(answer.content)
        except ValidationError:
            raise self._stranger("answered something else") from None

    def _refusal(self, answer: httpx.Response) -> HAClientError:
        status = f"{answer.status_code} {answer.reason_phrase}".strip()
        if answer.status_code == HTTPStatus.UNAUTHORIZED:
            what = "the token is wrong" if self._token else "asks for a token"
            return ConfigError(f"{self._url}: {what}; write --token, or set HACLIENT_ADMIN_TOKEN")
        if answer.is_server_error:
            return ProxyUnreachable(f"{self._url}: answered {_printable(status)}; see the proxy's log")
        try:
            detail = Problem.model_validate_json(answer.content).detail
        except ValidationError:
            detail = ""
        if detail in {"", HTTPStatus.NOT_FOUND.phrase}:  # the path is not known, which a haclient proxy's is
            return self._stranger(f"answered {_printable(status)}")
        return ConfigError(f"{self._url}: {_printable(detail)}")

    def _stranger(self, what: str) -> ConfigError:
        return ConfigError(f"{self._url}: is no haclient proxy's admin API, or one of another version ({what})")


def _checked_url(text: str) -> httpx.URL:
    example = "write for example http://127.0.0.1:9091"
    try:
        url = httpx.URL(text if "://" in text else f"http://{text}")
        known = url.scheme in {"http", "https"} and url.host != "" and (url.port or 80) <= 65535
    except httpx.InvalidURL:
        known = False
    if not known:
        raise ConfigError(f"arguments: admin: is not an address; {example}")
    if url.userinfo or url.query or url.fragment:
        what = "has credentials, a query or a fragment"
        raise ConfigError(f"arguments: admin: {what}; {example}, and the token as --token")
    return url


def _view(report: ClusterReport) -> ClusterView:
    endpoints = tuple(EndpointView(**dict(endpoint)) for endpoint in report.endpoints)
    return ClusterView(**{**dict(report), "endpoints": endpoints, "parked": tuple(report.parked)})


def _printable(text: str) -> str:
    """Drop what a terminal would obey."""
    return "".join(filter(str.isprintable, text))
