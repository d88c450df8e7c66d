"""Servers of embeddings behind an OpenAI-compatible API, one of which may always be dead.

Decision made here: base URLs are endpoints like Milvus' own, so they stand behind the same core (`haclient.core`) with
its health, breakers, hedges and budgets; only what they speak is another dialect.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, final
from urllib.parse import urlsplit

import numpy as np

from haclient.call import Call, Method, Reply
from haclient.config import ClusterConfig, Config, EndpointConfig, Health, Hedge, Retry, Timeouts, redact
from haclient.core import Core
from haclient.errors import AccessDenied, ConfigError, EmbeddingError, HAClientError, Overloaded, Unavailable
from haclient.events import EventBus, Listener
from haclient.fleet.flight import UNAUTHENTICATED
from haclient.host import Host
from haclient.listeners.logging import LoggingListener
from haclient.retrieval.embed.agreement import Agreement
from haclient.retrieval.embed.dialect import EMBED_PASSAGES, EMBED_QUERIES, dialect
from haclient.retrieval.embed.embedder import Fingerprint, Vectors, listed
from haclient.retrieval.embed.http import RESOURCE_EXHAUSTED, HTTPTransport, tls
from haclient.retrieval.embed.openai_api import write_request

_KEY: Final = "OPENAI_API_KEY"
_EXAMPLE: Final = '"https://api.openai.com/v1"'


@final
class HTTPEmbedder:
    """Asks servers for vectors; any of them may answer, so all must run the same model.

    A call of many texts sends one request after the other; several calls go side by side. The connections belong to the
    event loop of the first call.

    Args:
        base_urls: One or several, each up to what precedes ``/embeddings``, mostly ``/v1``.
        model: What the servers call the model.
        api_key_env: Name of the environment variable that holds the key; "" sends none. The default may be unset.
        dimension: Numbers in a vector, asked for from models that can be shortened; theirs unless given.
        timeout_s: Time for one request with all its attempts, seconds.
        batch_size: Texts in a request, at most.
        max_in_flight: Requests under way at a time.
        max_queue: Requests that may wait for one of those to end.
        normalise: Bring every vector to length 1.
        headers: Sent with every request; treated as secrets.

    Raises:
        ConfigError: A URL, a number, the key or a header is wrong.
    """

    def __init__(
        self,
        base_urls: str | Sequence[str],
        model: str,
        *,
        api_key_env: str = _KEY,
        dimension: int | None = None,
        timeout_s: float = 30.0,
        batch_size: int = 256,
        max_in_flight: int = 32,
        max_queue: int = 1024,
        normalise: bool = True,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if not model:
            raise ConfigError('model is empty; write what the servers call it, for example "text-embedding-3-small"')
        counts = {"batch_size": batch_size, "max_in_flight": max_in_flight, "max_queue": max_queue}
        for name, count in {**counts, "dimension": 1 if dimension is None else dimension}.items():
            if count < 1:
                raise ConfigError(f"{name} must be at least 1, got {count}")
        if not timeout_s > 0:
            raise ConfigError(f"timeout_s must be more than 0 seconds, got {timeout_s}")
        self._urls = _named([base_urls] if isinstance(base_urls, str) else base_urls)
        self._model = model
        self._key_env = api_key_env
        self._given_headers = dict(headers or {})
        self._dimension = dimension
        self._batch_size = batch_size
        self._max_in_flight = max_in_flight
        self._max_queue = max_queue
        self._normalise = normalise
        self._agreement = Agreement(dimension)
        self._agreed = False
        #: Of the event loop at hand; see `_build`.
        self._slots = asyncio.Semaphore(max_in_flight)
        self._waiting = 0
        self._headers()  # so that a wrong key is told of now
        config = _config(self._urls, timeout_s, max_in_flight)
        self._bus = EventBus()
        self._bus.subscribe(LoggingListener(), per_call=False)
        self._host = Host(config, lambda: config, self._bus, what="embedder", build=self._build)

    async def fingerprint(self) -> Fingerprint:
        """See `Embedder`; embeds a word, the first time."""
        if not self._agreed:
            await self._ask(EMBED_QUERIES, ["fingerprint"])
        assert self._agreement.dimension is not None
        return Fingerprint(self._model, self._agreement.dimension, self._normalise)

    async def embed(self, texts: Sequence[str], *, queries: bool = False) -> Vectors:
        """See `Embedder`.

        Raises:
            AccessDenied: The servers refuse the key.
            EmbeddingError: The servers run different models, or refuse the texts (too long, too many).
            Overloaded: ``max_queue`` requests wait already.
            Unavailable: No server could answer; lists every attempt. So do the other errors of `haclient.errors`.
        """
        wanted = listed(texts)
        if not wanted:
            return np.empty((0, (await self.fingerprint()).dimension), np.float32)
        method, size = EMBED_QUERIES if queries else EMBED_PASSAGES, self._batch_size
        return np.concatenate([await self._ask(method, wanted[i : i + size]) for i in range(0, len(wanted), size)])

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Hear of every event (`haclient.events`); returns the function that stops it."""
        return self._bus.subscribe(listener)

    async def aclose(self) -> None:
        """Stop probing and close every connection."""
        await self._host.aclose()

    async def _ask(self, method: Method, texts: Sequence[str]) -> Vectors:
        await self._host.enter()
        slots = self._slots
        if slots.locked() and self._waiting >= self._max_queue:
            raise Overloaded(
                f"{self._waiting} requests wait already while {self._max_in_flight} are under way: ask again later, or "
                "allow more at a time (max_in_flight) or a longer queue (max_queue)"
            )
        self._waiting += 1
        try:
            await slots.acquire()
        finally:
            self._waiting -= 1
        try:
            reply, call = await self._host.answer(method, write_request(self._model, texts, self._dimension))
        finally:
            slots.release()
        if reply.code:
            raise self._refusal(reply, call, len(texts))
        self._agree()
        rows = np.frombuffer(reply.message, np.float32).reshape(len(texts), -1)
        if self._normalise:
            rows = (rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)).astype(np.float32)
        return rows

    def _agree(self) -> None:
        odd = "; ".join(self._agreement.odd.values())
        if odd and not self._agreed:
            raise EmbeddingError(
                f"the servers run different models, which must not be mixed: {odd}. Leave the wrong one out, or let it "
                "serve the same model"
            )
        self._agreed = True

    def _refusal(self, reply: Reply, call: Call, count: int) -> HAClientError:
        attempt = call.attempts[-1]
        text = f"{attempt.cluster}/{attempt.endpoint}: {reply.details}"
        if reply.code == UNAUTHENTICATED:
            sent = f"the key in the environment variable {self._key_env}" if self._key() else "no key"
            return AccessDenied(f"{text}. What was sent is {sent}.", call.attempts, code=reply.code)
        if reply.code == RESOURCE_EXHAUSTED:
            return Unavailable(f"{text}. The quota is used up; ask again later.", call.attempts, code=reply.code)
        return EmbeddingError(f"{text} ({count} texts were sent; if they are too many, write a smaller batch_size)")

    def _build(self, config: Config, bus: EventBus, loop: asyncio.AbstractEventLoop) -> Core:
        headers, verify = self._headers(), tls()
        self._slots = asyncio.Semaphore(self._max_in_flight)
        self._waiting = 0

        def connect(cluster: ClusterConfig, endpoint: EndpointConfig, probe: bool) -> HTTPTransport:
            url, connect_s = self._urls[cluster.name], config.timeouts.connect_s
            return HTTPTransport(cluster.name, url, headers, self._agreement, connect_s, verify, loop)

        speaks = dialect(write_request(self._model, ["probe"], self._dimension))
        return Core(config, connect, bus, random.Random(), loop, time.monotonic, speaks)

    def _key(self) -> str:
        return os.environ.get(self._key_env, "").strip() if self._key_env else ""

    def _headers(self) -> dict[str, str]:
        # No error shows what api_key_env is: people write the key itself there.
        if not re.fullmatch(r"([A-Za-z_]\w*)?", self._key_env):
            raise ConfigError(f'api_key_env is the name of an environment variable, not a key; write "{_KEY}", say')
        key = self._key()
        if self._key_env not in ("", _KEY) and not key:
            raise ConfigError(
                'the environment variable named by api_key_env is not set; set it, or write api_key_env=""'
            )
        headers = self._given_headers | ({"Authorization": f"Bearer {key}"} if key else {})
        for name, value in headers.items():
            if not (value and value.isascii() and value.isprintable()):
                raise ConfigError(
                    f"the header {name} has a value that no header may have (empty, or a line break in it)"
                )
        return headers

    def __repr__(self) -> str:
        return f"<HTTPEmbedder {self._model} at {', '.join(self._urls.values())}>"


def _named(urls: Sequence[str]) -> dict[str, str]:
    """Return the base URLs by the name of their server, ``host:port``."""
    named: dict[str, str] = {}
    for url in urls:
        name = _netloc(url)
        if name in named:
            raise ConfigError(f"base_urls names {name} twice; servers that fail together are no help to each other")
        named[name] = url.strip().rstrip("/")
    if not named:
        raise ConfigError(f"base_urls is empty; write for example {_EXAMPLE}")
    return named


def _netloc(url: str) -> str:
    try:
        parts = urlsplit(url.strip())
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except (ValueError, AttributeError):
        sound = False
    if not sound:
        raise ConfigError(f'base_urls: "{redact(str(url))}" is no http or https URL; write for example {_EXAMPLE}')
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            f'base_urls: "{redact(url)}" holds credentials or a query; put the key into an environment variable '
            "(api_key_env), and anything else into headers"
        )
    return parts.netloc


def _config(urls: Mapping[str, str], timeout_s: float, max_in_flight: int) -> Config:
    """Make the core's configuration: servers of embeddings may be far away, and compute on the thread that answers."""
    return Config(
        clusters=tuple(_cluster(name, url) for name, url in urls.items()),
        timeouts=Timeouts(read_s=timeout_s),
        health=Health(interval_s=5.0, timeout_s=5.0, ping_timeout_s=1.0, failback_dwell_s=1.0),
        hedge=Hedge(initial_delay_s=0.25, max_delay_s=2.0),
        # The load is bounded by what may be under way. A server that fails may fail all of it at once, and each of it
        # is to get another try, also if half of the budget has gone into hedges.
        retry=Retry(budget_floor=2 * max_in_flight),
    )


def _cluster(name: str, url: str) -> ClusterConfig:
    """Describe a server so that its names, put together as errors do, are the URL it is asked at."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    path = f"{parts.path.strip('/')}/embeddings".lstrip("/")
    return ClusterConfig(
        name=name, endpoints=(EndpointConfig(name=path, host=parts.hostname or "", port=port, secure=secure),)
    )
