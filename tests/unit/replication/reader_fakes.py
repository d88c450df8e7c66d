"""A process' knowledge of the log and of its clusters, set by hand, and a reader over it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from haclient.call import Call
from haclient.config.replication import Replication
from haclient.errors import CallError
from haclient.milvus.methods import named
from haclient.milvus.requests import inspect
from haclient.milvus.timestamps import Timestamps
from haclient.replication.log import BARRIER, Bounds, Entry, Mutation
from haclient.replication.past import Past
from haclient.replication.position import Position
from haclient.replication.progress import Progress
from haclient.replication.reader import Reader

DOCS = ("", "docs")


def entry(seq, stream=DOCS, method="Upsert"):
    return Entry(seq, 0.0, Mutation(b"%d" % seq, method, stream, b""), 0)


class Site:
    """What one process knows, and the log as it really is.

    Attributes:
        log: Its ``bounds`` tells the real end; ``end``, ``error`` and ``delay_s`` are for tests to set.
        up: Clusters by name, and whether they take calls.
    """

    def __init__(self, *names, log=True, level=2, **settings):
        self.loop = asyncio.get_running_loop()
        self.progress = Progress(self.loop)
        self.marks = Progress(self.loop)
        self.up = dict.fromkeys(names or ("a", "b"), True)
        self.log = SimpleNamespace(bounds=self._bounds, end=0, error=None, delay_s=0.0, asked=0)
        self.known = {DOCS: SimpleNamespace(collection="docs", consistency_level=level)}
        self.described = {}
        sources = [self.progress, self.marks] if log else [self.marks]
        self.reader = Reader(
            Replication(mode="mirror", **settings),
            sources,
            self.log if log else None,
            lambda: self.up,
            lambda database, name: self.known.get((database, name)),
            self._describe,
            Timestamps(),
            self.loop,
        )
        self.past = Past()
        self.progress.heard()

    async def _bounds(self):
        self.log.asked += 1
        await asyncio.sleep(self.log.delay_s)
        if self.log.error is not None:
            raise self.log.error
        return Bounds(1, self.log.end, 0)

    async def _describe(self, database, name, deadline):
        await asyncio.sleep(0.01)
        if (database, name) not in self.described:
            raise CallError(f"collection not found[{name}]", code=100)
        shape = self.known[database, name] = self.described[database, name]
        return shape

    def append(self, count=1, stream=DOCS, method="Upsert", *, heard=True):
        """Append entries to the log; this process hears of them at once, or not."""
        new = [entry(self.log.end + i, stream, method) for i in range(1, count + 1)]
        self.log.end += count
        if heard:
            self.hear(new)
        return self.log.end

    def hear(self, entries):
        self.progress.saw(entries)
        self.progress.heard()

    def at(self, **lows):
        """Put clusters where they have everything up to an entry."""
        for name, low in lows.items():
            stamps = {DOCS: 1000 + low, BARRIER: 900}
            self.progress.moved(name, Position(low=low, timestamps=stamps))

    def call(self, message, method="Query", timeout_s=5.0, past=None, metadata=(), **fields):
        """Make a call with its plan."""
        known = named(method)
        raw = message.SerializeToString()
        facts = inspect(known, raw, metadata)
        call = Call(known, raw, metadata, self.loop.time() + timeout_s, facts.collection, facts.database, **fields)
        call.guarantee_timestamp = max(facts.guarantee_timestamp, facts.inner_timestamp)
        self.reader.enter(call, past or self.past)
        call.plan = self.reader.plan(call, facts)
        return call

    def by(self, call):
        """Return who may answer a call now; None if it has to wait."""
        return sorted(self.up.keys() - call.behind) if call.plan.quick(call) else None

    async def waited(self, call):
        """Wait until it may be answered; return for how long, and by whom it may."""
        began = self.loop.time()
        await call.plan.ready(call)
        return round(self.loop.time() - began, 3), sorted(self.up.keys() - call.behind)
