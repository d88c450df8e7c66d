"""Bugs for the processes of a drill's load (`haclient.drill.worker.Order`): those of the simulations, and some more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from haclient.policy.retry import Retrying
from haclient.replication.applier import APPLY, Applier
from haclient.replication.applying import Applying
from haclient.replication.clusters import Outcome
from haclient.replication.log import Lease
from tests.simulation import bugs as reads
from tests.simulation.replication import bugs as writes

_planted = contextlib.ExitStack()


def plant(name: str) -> None:
    """Have a bug for as long as this process lives."""
    _planted.enter_context(planted(name))


@contextlib.contextmanager
def planted(name: str) -> Iterator[None]:
    """Have a bug for a while."""
    with contextlib.ExitStack() as stack:
        if name in reads.BUGS:
            stack.enter_context(reads.planted(name))
        elif name in writes.BUGS:
            stack.enter_context(writes.planted(name))
        else:
            owner, attribute, value = _OWN[name]
            stack.callback(setattr, owner, attribute, getattr(owner, attribute))
            setattr(owner, attribute, value)
        yield


async def _campaign(self: Applier) -> Lease:
    shared = self._shared
    lease = await shared.log.acquire(APPLY + self._cluster, shared.name, shared.settings.lease_s)
    if lease is None:
        await asyncio.Event().wait()
    assert lease is not None
    return lease


_take = Applying._take


async def _take_as_done(self: Applying, batch: Any, delivery: Any, timeout_s: float, flavour: Any) -> None:
    await _take(self, batch, replace(delivery, outcome=Outcome.DONE), timeout_s, flavour)


_OWN: Final = {
    "tries_everything_once": (Retrying, "_worth", lambda self, call, attempt: False),
    "asks_for_the_lease_only_once": (Applier, "_campaign", _campaign),
    "takes_a_failure_for_done": (Applying, "_take", _take_as_done),
}
