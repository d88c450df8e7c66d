"""What a backup is made of, or goes to: the fleet, its log, and the process at work."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import final

from haclient.config.replication import Replication
from haclient.replication.clusters import Clusters
from haclient.replication.log import MutationLog
from haclient.replication.site import Site


@final
@dataclass(frozen=True, slots=True)
class Fleet:
    """The fleet, and who works with it.

    Attributes:
        clusters: The fleet.
        settings: What is configured.
        log: The mutation log; None without one.
        name: Names this process.
        rng: Source of randomness.
        loop: Its time is the clock.
        wall: Time of day, seconds since 1970.
    """

    clusters: Clusters
    settings: Replication
    log: MutationLog | None
    name: str
    rng: random.Random
    loop: asyncio.AbstractEventLoop
    wall: Callable[[], float]

    def now(self) -> datetime:
        """Return the time of day."""
        return datetime.fromtimestamp(self.wall(), UTC)

    def site(self, cluster: str) -> Site:
        """Return one cluster, for reading."""
        return Site(self.clusters, cluster, self.settings, self.rng, self.loop)
