"""What a scenario is: data, read from TOML.

Decision made here: a scenario says what is to happen and what is expected, never how. Whatever it leaves open (the
moment of a fault, its target among several) is drawn from the trial's seed.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Final, Literal, final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from haclient.errors import ConfigError

#: The scenarios that come with haclient.
SHIPPED: Final = Path(__file__).parent / "scenarios"

Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


@final
class Topology(_Part):
    """The fleet that is started.

    Attributes:
        clusters: How many, each one server.
        remote: How many of them, the last ones, are in another zone and take no part in acknowledgements.
        log: Where the mutation log is; "" is no mirroring.
        ack: What a write waits for.
        proxies: Proxies between the load and the clusters; 0 is none: the load is a member of the fleet itself.
        clients: Processes that share the load.
        canary: Whether the load's clients know a question and its answer (`haclient.config.sections.Canary`).
    """

    clusters: int = Field(default=3, ge=1, le=5)
    remote: int = Field(default=0, ge=0, le=4)
    log: Literal["", "sqlite", "etcd1", "etcd3"] = "sqlite"
    ack: Literal["log", "one", "quorum", "all"] = "one"
    proxies: int = Field(default=0, ge=0, le=4)
    clients: int = Field(default=1, ge=1, le=4)
    canary: bool = False


@final
class Load(_Part):
    """Calls at a fixed rate, whether or not earlier ones have been answered.

    Attributes:
        rate: Calls a second, by all processes together.
        seconds: How long.
        search: Share of searches; the other shares alike. They are scaled to 1 together.
        timeout_s: Limit of each call. What takes longer than the user waits has failed.
    """

    rate: float = Field(default=40, gt=0)
    seconds: float = Field(default=20, gt=0)
    search: Share = 0.5
    query: Share = 0.3
    upsert: Share = 0.15
    delete: Share = 0.05
    timeout_s: float = Field(default=2, gt=0)


@final
class FaultPlan(_Part):
    """One fault.

    Attributes:
        kind: Which one, of `haclient.drill.faults.FAULTS`.
        target: ``cluster`` (any one), ``cluster:1``, ``clusters`` (all), ``site`` (the remote ones), ``proxy``,
            ``client``, ``client:0`` (the first), ``log`` (a member; of SQLite the file's disk), ``log:leader``,
            ``log:all``.
        at: Earliest and latest moment of its begin, seconds after the load's.
        lasts: How long until it is healed; 0 for one that is over at once.
        settings: Further settings of this kind of fault.
    """

    kind: str
    target: str = "cluster"
    at: tuple[float, float] = (5.0, 7.0)
    lasts: float = Field(default=4.0, ge=0)
    settings: dict[str, float] = {}

    @model_validator(mode="after")
    def _in_order(self) -> FaultPlan:
        if not 0 <= self.at[0] <= self.at[1]:
            raise ValueError("at: two moments in ascending order are wanted")
        return self


@final
class Expectation(_Part):
    """What must hold in every trial; None is not judged.

    Attributes:
        failed_reads: Reads that may fail or be wrong.
        failed_writes: Writes that may fail.
        read_rto_s: Longest time after a fault until reads succeed again for good.
        write_rto_s: The same of writes.
        lost: Acknowledged writes that may be lost (RPO, in writes).
        stale: Reads that may be older than their consistency level promises.
        extra_load: Most requests per call while a fault lasts, as a multiple of before.
        availability: Least share of good calls, from the first fault to 30 s after the last is healed.
    """

    failed_reads: int | None = 0
    failed_writes: int | None = None
    read_rto_s: float | None = 1.0
    write_rto_s: float | None = 2.0
    lost: int | None = 0
    stale: int | None = 0
    extra_load: float | None = Field(default=1.5, ge=1)
    availability: Share | None = None


@final
class Scenario(_Part):
    """One scenario.

    Attributes:
        name: The name of its file, without ``.toml``.
        title: For a person, a few words.
        about: What happens and why it matters, a sentence or two.
        topology: The fleet.
        load: The load.
        fault: The faults; none of them depends on another but by its times.
        expect: What must hold.
        engines: With which servers it makes sense.
    """

    name: str
    title: str
    about: str
    topology: Topology = Topology()
    load: Load = Load()
    fault: tuple[FaultPlan, ...] = ()
    expect: Expectation = Expectation()
    engines: tuple[Literal["lite", "milvus"], ...] = ("lite", "milvus")


def load(path: Path) -> Scenario:
    """Read one scenario.

    Raises:
        ConfigError: The file cannot be read, or says what no scenario can.
    """
    try:
        values = tomllib.loads(path.read_text())
        return Scenario.model_validate({"name": path.stem, **values})
    except OSError as error:
        raise ConfigError(f"scenario {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"scenario {path}: {error}") from error
    except ValidationError as error:
        lines = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ConfigError(f"scenario {path}: " + "; ".join(lines)) from error


def shipped() -> dict[str, Path]:
    """Return the scenarios that come with haclient, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.toml"))}
