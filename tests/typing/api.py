"""Public API as a user types it: checked by mypy, never run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry

from haclient import (
    AsyncMilvusClient,
    CallError,
    ConfigError,
    DeadlineExceeded,
    HAClientError,
    MilvusClient,
    PoisonedCall,
    Unavailable,
    WriteNotConfirmed,
    WriteRefused,
)
from haclient.call import Attempt
from haclient.config import (
    Breaker,
    Canary,
    ClusterConfig,
    Config,
    EndpointConfig,
    Health,
    Hedge,
    Retry,
    Timeouts,
    Wire,
    redact,
)
from haclient.events import EndpointChanged, Event, EventBus
from haclient.fleet.model import FleetView
from haclient.listeners.logging import LoggingListener
from haclient.listeners.opentelemetry import OpenTelemetryListener
from haclient.listeners.prometheus import PrometheusListener


def configuration() -> Config:
    """Every way to make one."""
    one: Config = Config.from_uri("http://a:19530", token="t", secure=True, hedge={"enabled": False})
    one = Config.from_uri(["http://a:19530", "http://b:19530"], retry=Retry(max_attempts=3), zone="z")
    one = Config.from_file("haclient.toml")
    one = Config.from_file(Path("haclient.toml"))
    one = Config.load()
    one = Config.load("http://a:19530")
    one = Config.load(config={"cluster": [{"name": "a", "endpoints": ["a:1"]}]})
    one = Config.load(config=one, db_name="d")
    return Config(
        clusters=(ClusterConfig(name="a", endpoints=(EndpointConfig(host="10.0.0.1", port=19530),)),),
        zone="z",
        timeouts=Timeouts(read_s=5),
        health=Health(canary=(Canary(collection="docs", filter="id == 1", expect=(1,)),)),
        breaker=Breaker(consecutive=2),
        hedge=Hedge(max_hedges=1),
        retry=Retry(),
        wire=Wire(max_connection_age_s=300.0),
        source=one.source,
    )


def reading(config: Config) -> None:
    """What a configuration says."""
    seconds: float = config.timeouts.read_s
    authorization: str | None = config.clusters[0].authorization()
    uri: str = config.clusters[0].endpoints[0].uri
    shown: str = redact(uri)
    secret: str = config.clusters[0].token.get_secret_value()
    print(seconds, authorization, shown, secret)


async def client(config: Config) -> FleetView:
    """Listening, looking, draining."""
    registry = CollectorRegistry()
    prometheus = PrometheusListener(registry, namespace="app", max_collections=10)
    async with AsyncMilvusClient(config=config) as milvus:
        unsubscribe: Callable[[], None] = milvus.subscribe(LoggingListener(logging.getLogger("app"), burst=1))
        milvus.subscribe(prometheus)
        milvus.subscribe(OpenTelemetryListener())
        milvus.subscribe(on_event)
        view: FleetView = await milvus.refresh()
        prometheus.observe(view)
        ready: Mapping[str, bool] = view.clusters[0].endpoints[0].ready
        print(ready, milvus.fleet.endpoints[0].state)
        milvus.drain("a")
        milvus.undrain("a")
        unsubscribe()
    return view


def sync_client(config: Config) -> FleetView:
    """The same, blocking."""
    with MilvusClient(["http://a:19530"], "user", "password", "db", "", 5.0, config=config) as milvus:
        unsubscribe: Callable[[], None] = milvus.subscribe(on_event)
        view: FleetView = milvus.refresh()
        print(milvus.fleet.endpoints[0].state)
        milvus.drain("a")
        milvus.undrain("a")
        unsubscribe()
    milvus.close()
    return view


def on_event(event: Event) -> None:
    """A listener is any callable."""
    if isinstance(event, EndpointChanged):
        print(event.cluster, event.endpoint, event.before, event.after)


def bus() -> None:
    """Events without a client."""
    EventBus().subscribe(on_event)


def handling(call: Callable[[], None]) -> tuple[Attempt, ...]:
    """A branch per behaviour, and one for all."""
    try:
        call()
    except (Unavailable, DeadlineExceeded) as error:
        return error.attempts
    except (WriteNotConfirmed, WriteRefused, PoisonedCall) as error:
        print(error.code, error.summary)
    except CallError as error:
        return error.attempts
    except (ConfigError, HAClientError):
        pass
    return ()


def mistakes() -> None:
    """What a type checker refuses; an unused ignore would be an error."""
    Config.from_uri(5)  # type: ignore[arg-type]
    Retry(max_attempts="3")  # type: ignore[arg-type]
    Retry(max_atempts=3)  # type: ignore[call-arg]
    Retry(3)  # type: ignore[call-arg]
    Config()  # type: ignore[call-arg]
