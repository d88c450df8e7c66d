"""Who may ask the admin API, and what browsers may do with its answers.

Decision made here: every path is guarded, also those that do not exist; what is open is listed. A browser on the
same machine is no friend: without a token, only requests that name a loopback host are answered (a foreign page
whose name was rebound to 127.0.0.1 names its own), and no page but the proxy's own may change anything.
"""

from __future__ import annotations

import hashlib
import secrets
from base64 import b64encode
from html.parser import HTMLParser
from typing import Final, final
from urllib.parse import urlsplit

from pydantic import SecretStr
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from haclient.config.proxy import is_loopback
from haclient.proxy.admin_values import Problem

#: Answered without a token: they hold no data.
OPEN: Final = frozenset({"/", "/healthz", "/readyz"})
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_NOTHING: Final = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


@final
class Guard:
    """ASGI middleware: refuses what must not be answered, and adds headers to what is.

    Args:
        app: What is guarded.
        token: What ``Authorization: Bearer`` must present; "" asks for nothing, and answers loopback hosts only.
    """

    def __init__(self, app: ASGIApp, token: SecretStr) -> None:
        self._app = app
        self._token = token.get_secret_value().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("Content-Security-Policy", _NOTHING)
            await send(message)

        app = self._refusal(scope) or self._app if scope["type"] == "http" else self._app
        await app(scope, receive, guarded)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        headers = Headers(scope=scope)
        if not self._token and not _names_loopback(headers.get("host", "")):
            what = "without an admin_token only requests to a loopback address are answered"
            return _refuse(421, f"{what}; ask http://127.0.0.1 or http://localhost, or configure one")
        if scope["method"] not in _SAFE_METHODS and _from_elsewhere(headers):
            return _refuse(403, "another site's page sent this; only the proxy's own page may change anything")
        if self._token and scope["path"] not in OPEN and not self._presented(headers.get("authorization", "")):
            instead = {"WWW-Authenticate": 'Bearer realm="haclient"'}
            return _refuse(401, "send Authorization: Bearer with the proxy's admin_token", instead)
        return None

    def _presented(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        # The header was decoded as Latin-1; its bytes are compared.
        return scheme.lower() == "bearer" and secrets.compare_digest(token.strip().encode("latin-1"), self._token)


def _refuse(status: int, detail: str, headers: dict[str, str] | None = None) -> ASGIApp:
    return JSONResponse(Problem(detail=detail).model_dump(), status, headers)


def _names_loopback(host: str) -> bool:
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


def _from_elsewhere(headers: Headers) -> bool:
    """Say whether a browser sent this for a page of another origin; what is no browser says nothing of the kind."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in {"same-origin", "none"}
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2] != headers.get("host")


def policy_of(page: str) -> str:
    """Return a page's Content-Security-Policy: its inline scripts and styles as they are, and asking its own origin.

    Attributes such as ``style`` and ``onclick`` stay forbidden.
    """
    inline = _Inline()
    inline.feed(page)
    inline.close()
    sources = "".join(f"; {tag}-src {' '.join(hashes)}" for tag, hashes in inline.hashes.items() if hashes)
    return f"{_NOTHING}; connect-src 'self'; img-src data:{sources}"


@final
class _Inline(HTMLParser):
    """Collects the hashes of inline scripts and styles (CSP level 3, section 2.3.1)."""

    def __init__(self) -> None:
        super().__init__()
        self.hashes: dict[str, list[str]] = {"script": [], "style": []}
        self._text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._text = ""

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag in self.hashes:
            digest = b64encode(hashlib.sha256(self._text.encode()).digest()).decode()
            self.hashes[tag].append(f"'sha256-{digest}'")
