"""The sections with numbers in them: time-outs, health, breaker, hedging, retries, wire."""

from __future__ import annotations

import itertools
from typing import Self, final

from pydantic import Field, model_validator

from haclient.config.problems import Problem, fail_all
from haclient.config.section import Count, Seconds, SecondsOrZero, Section


@final
class Timeouts(Section):
    """How long one call may take in all, unless the caller gives a timeout. In a file: ``[timeouts]``."""

    #: Time to make a connection, TLS included, in seconds.
    connect_s: Seconds = 2.0
    #: Time of a read with all its attempts, in seconds.
    read_s: Seconds = 10.0
    #: Time of a write with all its attempts, in seconds.
    write_s: Seconds = 30.0
    #: Time of a DDL or load call with all its attempts, in seconds.
    ddl_s: Seconds = 60.0


@final
class Canary(Section):
    """One question whose answer is known, asked of every endpoint. In a file: ``[[health.canary]]``."""

    #: The collection asked.
    collection: str = Field(min_length=1, examples=["docs"])
    #: Its database; "" means the default one.
    database: str = ""
    #: Query expression whose first keys must be ``expect``; instead of ``vector``.
    filter: str = ""
    #: Query vector whose nearest keys must be ``expect``; instead of ``filter``.
    vector: tuple[float, ...] = Field(default=(), strict=False)
    #: Vector field searched; "" if the collection has only one.
    anns_field: str = ""
    #: How many hits are asked for.
    limit: Count = 3
    #: Primary keys that must be among the hits.
    expect: tuple[int | str, ...] = Field(strict=False, min_length=1, examples=[[1, 2, 3]])

    @model_validator(mode="after")
    def _agree(self) -> Self:
        problems: list[Problem] = []
        if bool(self.filter) == bool(self.vector):
            both = "and vector are both given" if self.filter else "and vector are both missing"
            problems.append((("filter",), f'{both}; write one of them, for example filter = "id in [1, 2, 3]"'))
        if self.anns_field and not self.vector:
            problems.append((("anns_field",), "is given without vector; write vector = [...], or leave it out"))
        if len(self.expect) > self.limit:
            least = f"write limit = {len(self.expect)} or more"
            problems.append((("limit",), f"{self.limit} hits cannot hold {len(self.expect)} expected keys; {least}"))
        if problems:
            raise fail_all(problems)
        return self


@final
class Health(Section):
    """How the state of the world is found out. In a file: ``[health]``."""

    #: Time between shallow probes of one endpoint, in seconds.
    interval_s: Seconds = 1.0
    #: Time within which a probe must answer, in seconds.
    timeout_s: Seconds = 1.0
    #: Time between deep probes (a real read of each collection in use) of one endpoint, in seconds.
    deep_interval_s: Seconds = 3.0
    #: Time within which an HTTP/2 PING on the data connection must answer, in seconds.
    ping_timeout_s: Seconds = 0.25
    #: Consecutive failed probes after which an endpoint is down.
    down_after: Count = 2
    #: An endpoint is slow if its latency is this many times the median of the others, and ...
    slow_ratio: float = Field(default=5.0, gt=1)
    #: ... also exceeds that median by this many seconds.
    slow_excess_s: SecondsOrZero = 0.05
    #: Time in which an endpoint that came back is given its full share again, in seconds.
    slow_start_s: SecondsOrZero = 10.0
    #: Time a preferred endpoint must have been well before traffic moves back to it, in seconds.
    failback_dwell_s: SecondsOrZero = 10.0
    #: Load a collection that is in use but released on one cluster.
    load_collections: bool = False
    #: Time between checks that the endpoints of a cluster show the same collections, in seconds.
    identity_interval_s: Seconds = 30.0
    #: Questions whose answers are known.
    canary: tuple[Canary, ...] = Field(default=(), strict=False)


@final
class Breaker(Section):
    """When an endpoint is taken out because calls fail on it, and how it is tried again. ``[breaker]``."""

    #: Length of the window in which calls are counted, in seconds.
    window_s: Seconds = 10.0
    #: Calls in the window below which the ratio says nothing.
    min_calls: Count = 5
    #: Share of failed calls in the window that opens the breaker.
    failure_ratio: float = Field(default=0.5, gt=0, le=1)
    #: Consecutive failures that open it whatever the ratio.
    consecutive: Count = 3
    #: Time it stays open the first time, in seconds; doubled each time it reopens.
    open_s: Seconds = 0.5
    #: Longest time it stays open, in seconds.
    max_open_s: Seconds = 30.0
    #: Calls let through at once while half-open.
    trial_permits: Count = 1
    #: Successes in a row that close it.
    trial_successes: Count = 3

    @model_validator(mode="after")
    def _agree(self) -> Self:
        _ordered(self, "open_s", "max_open_s")
        return self


@final
class Hedge(Section):
    """When a read is also sent to a second endpoint. In a file: ``[hedge]``."""

    #: Whether reads are hedged.
    enabled: bool = True
    #: Quantile of recent latencies after which a hedge starts.
    quantile: float = Field(default=0.95, gt=0, lt=1)
    #: Shortest hedging delay, in seconds.
    min_delay_s: SecondsOrZero = 0.005
    #: Hedging delay while too few latencies are known, in seconds.
    initial_delay_s: SecondsOrZero = 0.05
    #: Longest hedging delay, in seconds.
    max_delay_s: Seconds = 1.0
    #: Hedges of one try at most.
    max_hedges: Count = 2

    @model_validator(mode="after")
    def _agree(self) -> Self:
        _ordered(self, "min_delay_s", "initial_delay_s", "max_delay_s")
        return self


@final
class Retry(Section):
    """How failed attempts are repeated, and how much extra load that may make. In a file: ``[retry]``."""

    #: Tries of one call at most, the first included.
    max_attempts: Count = 5
    #: Wait before the second try on the same state of the world, in seconds; doubled each time, with jitter.
    backoff_s: SecondsOrZero = 0.02
    #: Longest wait between tries, in seconds.
    max_backoff_s: SecondsOrZero = 1.0
    #: Extra attempts (retries and hedges) allowed per recent call.
    budget_ratio: float = Field(default=0.2, ge=0)
    #: Extra attempts per 10 s that are always allowed.
    budget_floor: int = Field(default=10, ge=0)
    #: Time for which a request seen to kill servers is refused, in seconds.
    quarantine_s: SecondsOrZero = 60.0

    @model_validator(mode="after")
    def _agree(self) -> Self:
        _ordered(self, "backoff_s", "max_backoff_s")
        return self


@final
class Wire(Section):
    """Connections and messages. In a file: ``[wire]``."""

    #: Connections to each address of an endpoint.
    connections: Count = 1
    #: Age at which a connection is replaced, in seconds (load balancers pin connections); absent means never.
    max_connection_age_s: float | None = Field(default=None, gt=0, examples=[300.0])
    #: Largest message accepted, in bytes.
    max_message_bytes: int = Field(default=268435456, ge=1, le=2**31 - 1)


def _ordered(section: Section, *keys: str) -> None:
    problems: list[Problem] = []
    for low, high in itertools.pairwise(keys):
        below, above = getattr(section, low), getattr(section, high)
        if below > above:
            problems.append(((low,), f"{below} is more than {high} ({above}); write at most {above}, or raise {high}"))
    if problems:
        raise fail_all(problems)
