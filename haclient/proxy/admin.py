"""The admin API over HTTP: health, metrics, the fleet and its history, events, drain; and the dashboard's page.

Decision made here: this only translates. Whatever is known or done is the `haclient.proxy.report.Backend`'s, and who
may ask is decided in `haclient.proxy.admin_guard`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from enum import IntEnum
from importlib import resources
from typing import Annotated, Any, Final, TypeAlias, cast, final

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Path, Query, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import Field, SecretStr

from haclient import __version__
from haclient.errors import ConfigError
from haclient.proxy.admin_events import EventStream
from haclient.proxy.admin_guard import Guard, policy_of
from haclient.proxy.admin_values import Alive, Drained, Problem, Readiness
from haclient.proxy.report import Backend, EventReport, FleetReport, History, Value

#: Time for answers under way to finish when the server stops, and then for what does not heed the end, seconds.
GRACE_S: Final = 1
#: Connections at once; more are answered with 503.
MOST_CONNECTIONS: Final = 1_000

_Responses: TypeAlias = dict[int | str, dict[str, Any]]


class Interval(IntEnum):
    """Seconds between two points of the history."""

    SECOND = 1
    MINUTE = 60


@final
class HistoryQuery(Value):
    """What ``GET /api/history`` takes."""

    every_s: Interval = Interval.SECOND


@final
class EventsQuery(Value):
    """What ``GET /api/events`` takes."""

    after: int = Field(0, ge=0, description="Start behind the event with this id.")


def create_app(backend: Backend, token: str = "") -> FastAPI:
    """Make the admin API.

    Args:
        backend: What it tells, and what it drains.
        token: What it asks for (``Authorization: Bearer``), but for its health and its page; "" asks for nothing,
            and answers only requests that name a loopback host.
    """
    app = FastAPI(
        title="haclient proxy",
        summary="Health, metrics and drain of a Milvus fleet.",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses={} if token else _refused(421, "The request names no loopback host."),
        generate_unique_id_function=_name_of,
    )
    app.state.backend = backend
    app.state.page = (resources.files("haclient.proxy") / "dashboard" / "index.html").read_text("utf-8")
    app.state.policy = policy_of(app.state.page)
    app.include_router(_open)
    if token:  # only described here, for OpenAPI: the guard asks for it, on every path
        bearer, refused = HTTPBearer(auto_error=False), _refused(401, "The token is missing or wrong.")
        app.include_router(_guarded, dependencies=[Depends(bearer)], responses=refused)
    else:
        app.include_router(_guarded)
    app.add_middleware(Guard, token=SecretStr(token))
    return app


def _refused(status: int, description: str) -> _Responses:
    """Describe what the guard answers: JSON, whatever else the path answers."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}}
    return {status: {"description": description, "content": content}}


def _name_of(route: APIRoute) -> str:
    return route.name


def _backend(request: Request) -> Backend:
    return cast(Backend, request.app.state.backend)


Asked = Annotated[Backend, Depends(_backend)]

_open = APIRouter()
_guarded = APIRouter()


@_open.get("/", summary="The dashboard", response_class=HTMLResponse)
async def dashboard(request: Request) -> HTMLResponse:
    """Return the dashboard's page; it holds no data, and asks this API for it."""
    state = request.app.state
    return HTMLResponse(state.page, headers={"Content-Security-Policy": state.policy})


@_open.get("/healthz", summary="Is the proxy's supervisor alive?")
async def healthz() -> Alive:
    """Answer as long as the process lives."""
    return Alive()


@_open.get(
    "/readyz",
    summary="Can a read be served now?",
    responses={503: {"model": Readiness, "description": "No read can be served now."}},
)
async def readyz(backend: Asked, response: Response) -> Readiness:
    """Answer 200 if a read can be served now, 503 with the reason if not."""
    ready, reason = backend.ready()
    response.status_code = 200 if ready else 503
    return Readiness(ready=ready, reason=reason)


@final
class Metrics(Response):
    """Prometheus' text format."""

    media_type = "text/plain; version=0.0.4"


@_guarded.get("/metrics", summary="Metrics of all workers together", response_class=Metrics)
async def metrics(backend: Asked) -> Metrics:
    """Return the metrics in Prometheus' text format."""
    return Metrics(await backend.metrics())


@_guarded.get("/api/fleet", summary="Everything, as it is now")
async def fleet(backend: Asked) -> FleetReport:
    """Return the clusters, their endpoints, the workers, what was counted, and the error budget."""
    return backend.fleet()


@_guarded.get("/api/history", summary="How it was")
async def history(backend: Asked, query: Annotated[HistoryQuery, Query()]) -> History:
    """Return the last ten minutes in intervals of 1 s, or the last day in intervals of 60 s."""
    return backend.history(float(query.every_s))


_EVENT: Final = {
    "type": "string",
    "contentMediaType": "application/json",
    "contentSchema": EventReport.model_json_schema(),
}
_STREAM: Final[_Responses] = {
    200: {
        "description": "Each event's id, and as its data an EventReport.",
        "content": {
            EventStream.media_type: {
                "itemSchema": {"type": "object", "properties": {"id": {"type": "string"}, "data": _EVENT}}
            }
        },
    }
}


# A response class with a media type would be described as one string beside the description above.
@_guarded.get("/api/events", summary="Events, as they happen", response_class=Response, responses=_STREAM)
async def events(
    backend: Asked,
    query: Annotated[EventsQuery, Query()],
    last_event_id: Annotated[
        int, Header(ge=0, description="The same; browsers send it when they connect again. The later one counts.")
    ] = 0,
) -> EventStream:
    """Stream the events kept and then every new one, as server-sent events."""
    return EventStream(backend.events(max(query.after, last_event_id)))


_UNKNOWN: Final[_Responses] = {
    403: {"model": Problem, "description": "Another site's page sent this."},
    404: {"model": Problem, "description": "Nothing has that name; the detail says what there is."},
}
Name = Annotated[str, Path(description="Name of an endpoint or a cluster; it may contain slashes.")]


@_guarded.post("/api/drain/{name:path}", summary="Take out of rotation", responses=_UNKNOWN)
async def drain(backend: Asked, name: Name) -> Drained:
    """Send nothing more to an endpoint or a cluster; calls under way finish."""
    return await _set_drained(backend, name, drained=True)


@_guarded.post("/api/undrain/{name:path}", summary="Put back into rotation", responses=_UNKNOWN)
async def undrain(backend: Asked, name: Name) -> Drained:
    """Send calls to an endpoint or a cluster again."""
    return await _set_drained(backend, name, drained=False)


async def _set_drained(backend: Backend, name: str, *, drained: bool) -> Drained:
    try:
        await backend.drain(name, drained=drained)
    except ConfigError as error:
        raise HTTPException(404, str(error)) from None
    return Drained(name=name, drained=drained)


@asynccontextmanager
async def serve(app: FastAPI, host: str, port: int) -> AsyncIterator[int]:
    """Serve an app on the running event loop until the context is left, without touching signals.

    Args:
        app: See `create_app`.
        host: Name or address to listen on.
        port: 0 takes any free one.

    Yields:
        The port it listens on.

    Raises:
        OSError: It cannot listen there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listening:
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=2 * GRACE_S,
        )
        server = _Server(config)
        running = asyncio.create_task(server.serve([listening]), name="haclient-admin")
        try:
            yield int(listening.getsockname()[1])
        finally:
            await _stop(server, running)


async def _stop(server: uvicorn.Server, running: asyncio.Task[None]) -> None:
    """Let answers end by themselves for a while; then end them as if their clients had left."""
    server.should_exit = True
    await asyncio.wait([running], timeout=GRACE_S)
    for connection in list(server.server_state.connections):
        connection.transport.abort()
    await running
    if cancelled := set(server.server_state.tasks):
        await asyncio.wait(cancelled)


@final
class _Server(uvicorn.Server):
    """Leaves signals to the process."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
