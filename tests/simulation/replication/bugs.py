"""Bugs planted on purpose: the simulation is worth what it finds of them.

Decision made here: as in `tests.simulation.bugs`, a bug is a change of one behaviour of the real code, as small as it
could be written by mistake, and applied while a context is open. `Bug.killers` says which invariants may find it;
another one does not count.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from haclient.milvus import timestamps
from haclient.replication import applying, batching, commit, refusals, replicator, token, writer
from haclient.replication.applier import Applier
from haclient.replication.applying import Applying
from haclient.replication.batching import Keys
from haclient.replication.clusters import Outcome
from haclient.replication.commit import Commit
from haclient.replication.keys import KeyMaker
from haclient.replication.log import Lease
from haclient.replication.past import Past
from haclient.replication.plan import Plan
from haclient.replication.position import Position, Standing
from haclient.replication.progress import Progress
from haclient.replication.refusals import Verdict
from haclient.replication.schedule import Schedule
from haclient.replication.shared import Shared
from haclient.replication.term import Term
from tests.servers.memory_log import MemoryLog, MemoryStore
from tests.simulation.replication import requests

Patch = tuple[Any, str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Bug:
    """One planted bug: what it does, what may find it, and the changes that make it."""

    name: str
    killers: frozenset[str]
    patches: Callable[[], list[Patch]]


BUGS: Final[dict[str, Bug]] = {}


def bug(*killers: str) -> Callable[[Callable[[], list[Patch]]], Callable[[], list[Patch]]]:
    def register(make: Callable[[], list[Patch]]) -> Callable[[], list[Patch]]:
        name = make.__name__
        BUGS[name] = Bug(name, frozenset(killers), make)
        return make

    return register


@contextlib.contextmanager
def planted(name: str) -> Iterator[None]:
    """Have a bug for a while."""
    undo: list[Patch] = []
    try:
        for owner, attribute, value in BUGS[name].patches():
            undo.append((owner, attribute, owner.__dict__[attribute]))
            setattr(owner, attribute, value)
        yield
    finally:
        for owner, attribute, value in reversed(undo):
            setattr(owner, attribute, value)


# Into the log.


@bug("once")
def answers_before_the_append() -> list[Patch]:
    real = Commit.append

    async def append(self, call, stream, requests):
        self._shared.loop.create_task(real(self, call, stream, requests)).add_done_callback(
            lambda task: task.cancelled() or task.exception()
        )
        await asyncio.sleep(0)
        return self._shared.progress.head + 1

    return [(Commit, "append", append)]


@bug("once")
def an_append_without_an_answer_is_another_one() -> list[Patch]:
    real = MemoryStore.append

    def append(self, mutations, at):
        self.operations.clear()
        return real(self, mutations, at)

    return [(MemoryStore, "append", append)]


@bug("told", "ack")
def the_token_is_of_the_entry_before() -> list[Patch]:
    return [(writer, "token", lambda seq: token.token(seq - 1))]


@bug("keys")
def two_processes_make_the_same_keys() -> list[Patch]:
    return [(KeyMaker, "_key", lambda self, ticks: ticks << 22)]


@bug("filter")
def a_filter_is_resolved_where_it_is_quickest() -> list[Patch]:
    return [(Progress, "has", lambda self, cluster, stream, seq: True)]


@bug("ack")
def counts_clusters_that_are_away() -> list[Patch]:
    real = Progress.has

    def has(self, cluster, stream, seq):
        return real(self, cluster, stream, seq) or self.standing(cluster) is Standing.AWAY

    return [(Progress, "has", has)]


@bug("ack", "told")
def answers_as_soon_as_it_is_in_the_log() -> list[Patch]:
    async def acknowledged(self, call, stream, seq):
        pass

    return [(Commit, "acknowledged", acknowledged)]


@bug("told")
def answers_before_it_looks_whether_it_was_refused() -> list[Patch]:
    real = Commit.acknowledged

    async def acknowledged(self, call, stream, seq):
        with contextlib.suppress(commit.Void):
            await real(self, call, stream, seq)

    return [(Commit, "acknowledged", acknowledged)]


@bug("deadline")
def waits_for_acknowledgement_beyond_the_deadline() -> list[Patch]:
    real = Progress.until

    async def until(self, condition, deadline):
        return await real(self, condition, deadline + 0.05)

    return [(Progress, "until", until)]


# The order of the log.


@bug("converge", "claim", "ack")
def skips_an_entry_behind_a_batch() -> list[Patch]:
    real = Schedule._take

    def take(self, stream, joins, most_bytes):
        batch = real(self, stream, joins, most_bytes)
        if len(batch.entries) > 1 and (queue := self._queues.get(stream)):
            gone = queue.popleft()
            self.size -= gone.size
            self.count -= 1
            if not queue:
                del self._queues[stream]
        return batch

    return [(Schedule, "_take", take)]


@bug("converge", "claim", "ack")
def puts_what_failed_at_the_end_of_the_queue() -> list[Patch]:
    real = Schedule.again

    def again(self, batch, *, doubtful, singly=False):
        real(self, batch, doubtful=doubtful, singly=singly)
        self._queues[batch.stream].rotate(-len(batch.entries))

    return [(Schedule, "again", again)]


@bug("converge", "claim", "ack")
def deletes_before_it_upserts() -> list[Patch]:
    real = Schedule._take

    def take(self, stream, joins, most_bytes):
        queue = self._queues[stream]
        if any(entry.mutation.method == "Delete" for entry in queue) and stream not in self._singly:
            ordered = sorted(queue, key=lambda entry: entry.mutation.method != "Delete")
            queue.clear()
            queue.extend(ordered)
        return real(self, stream, joins, most_bytes)

    return [(Schedule, "_take", take)]


@bug("converge", "claim", "duplicate")
def merges_writes_of_the_same_key() -> list[Patch]:
    return [(Keys, "joins", lambda self, taken, entry, again: batching._alike(taken[0], entry, again))]


@bug("converge", "parked", "recovery", "told")
def does_not_wait_at_a_barrier() -> list[Patch]:
    return [(Schedule, "_may_begin", lambda self, stream, seq: True)]


# Once, and only once.


@bug("duplicate")
def repeats_a_plain_insert() -> list[Patch]:
    real = batching.request

    def request(batch, flavour):
        return real(dataclasses.replace(batch, again=False), flavour)

    return [(applying, "request", request)]


@bug("duplicate")
def trusts_that_its_predecessor_left_nothing_under_way() -> list[Patch]:
    real = Term.__init__

    def init(self, shared, cluster, lease, position, head):
        position.open = False
        real(self, shared, cluster, lease, position, head)

    return [(Term, "__init__", init)]


@bug("converge", "claim", "duplicate")
def repeats_at_once_what_went_unanswered() -> list[Patch]:
    real = Term.trouble

    def trouble(self, reason, quiet_s=0.0):
        real(self, reason)

    return [(Term, "trouble", trouble)]


@bug("claim", "ack")
def writes_down_where_it_will_be() -> list[Patch]:
    real = Schedule._firsts

    def firsts(self):
        return [(stream, seq) for stream, seq in real(self) if stream not in self._busy]

    return [(Schedule, "_firsts", firsts)]


@bug("claim", "ack", "converge")
def takes_no_answer_for_done() -> list[Patch]:
    real = Applying._take

    async def take(self, batch, delivery, timeout_s, flavour):
        if delivery.outcome is Outcome.UNANSWERED:
            delivery = dataclasses.replace(delivery, outcome=Outcome.DONE)
        await real(self, batch, delivery, timeout_s, flavour)

    return [(Applying, "_take", take)]


# One applier at a time.


@bug("lease")
def applies_without_the_lease() -> list[Patch]:
    real = MemoryLog.acquire

    async def acquire(self, name, holder, ttl_s, *more):
        return await real(self, name, holder, ttl_s, *more) or Lease(name, 1 << 30, float("inf"))

    async def write(self):
        pass

    return [(MemoryLog, "acquire", acquire), (Term, "_write", write)]


@bug("lease")
def does_not_look_at_the_clock_before_it_sends() -> list[Patch]:
    return [(Term, "holds", lambda self: True)]


@bug("lease")
def a_stale_epoch_will_do() -> list[Patch]:
    def held(self, lease):
        return self.leases[lease.name].until is not None

    return [(MemoryStore, "_held", held)]


@bug("leak")
def keeps_the_lease_when_it_closes() -> list[Patch]:
    async def hand_over(self, term, lease):
        pass

    return [(Applier, "_hand_over", hand_over)]


@bug("converge", "claim", "ack", "duplicate")
def does_not_rest_after_a_death() -> list[Patch]:
    real = Term.__init__

    def init(self, shared, cluster, lease, position, head):
        real(self, shared, cluster, lease, position, head)
        if lease.orphaned:
            self._unclean_s = 0.0

    return [(Term, "__init__", init)]


@bug("lease")
def takes_a_stopped_process_for_a_dead_one() -> list[Patch]:
    from tests.simulation.replication.run import Run

    def is_dead(self, name):
        process = self.processes[name]
        return self.scenario.one_host and (process.stopped or not process.alive)

    return [(Run, "is_dead", is_dead)]


@bug("drained")
def sends_to_drained_clusters() -> list[Patch]:
    real = Term.member

    def member(self):
        return dataclasses.replace(real(self), drained=False)

    return [(Term, "member", member)]


# Refusals.


@bug("converge", "claim", "ack", "told")
def what_one_cluster_refuses_is_done_there() -> list[Patch]:
    async def refused(self, batch, delivery, flavour):
        self._done(batch)

    return [(Applying, "_refused", refused)]


@bug("told", "converge")
def what_one_cluster_refuses_is_void() -> list[Patch]:
    def settle(refusal, positions, cluster, stream, seq, **_):
        return Verdict.VOID, []

    return [(refusals, "settle", settle)]


@bug("told", "converge", "claim")
def does_not_ask_what_a_cluster_that_is_away_has_begun() -> list[Patch]:
    real = refusals.settle

    def settle(refusal, positions, cluster, stream, seq, **options):
        asked = {
            name: dataclasses.replace(one, begun=0, low=0, ahead={}) if one.standing is Standing.AWAY else one
            for name, one in positions.items()
        }
        return real(refusal, asked, cluster, stream, seq, **options)

    return [(refusals, "settle", settle)]


@bug("converge", "told", "claim")
def comes_back_without_asking_what_is_void() -> list[Patch]:
    async def read_void(self):
        pass

    async def catch_up(self):
        await real(self)
        self.shared.void.clear()

    real = replicator.Replicator._catch_up
    return [(Term, "_read_void", read_void), (replicator.Replicator, "_catch_up", catch_up)]


@bug("parked", "recovery")
def parks_whatever_is_refused() -> list[Patch]:
    async def judge(self, batch, delivery):
        return Verdict.PARK

    return [(Applying, "_judge", judge)]


@bug("recovery")
def a_parked_stream_stops_the_others() -> list[Patch]:
    real = Schedule.next

    def take_next(self, joins, most_bytes):
        return None if self.position.parked else real(self, joins, most_bytes)

    return [(Schedule, "next", take_next)]


@bug("converge", "claim")
def skips_what_the_operator_wants_again() -> list[Patch]:
    real = Schedule.resume

    def resume(self, stream, *, skip=False):
        real(self, stream, skip=True)

    return [(Schedule, "resume", resume)]


# What is written down, and what is thrown away.


@bug("converge", "claim")
def forgets_parked_streams_when_it_starts_again() -> list[Patch]:
    real = Position.decode.__func__

    def decode(cls, value):
        position = real(cls, value)
        position.parked.clear()
        return position

    return [(Position, "decode", classmethod(decode))]


@bug("recovery")
def removes_entries_that_a_cluster_still_needs() -> list[Patch]:
    return [(replicator, "_needed", lambda position: 1 << 60)]


@bug("recovery")
def does_not_look_again_after_the_log_failed() -> list[Patch]:
    async def follow(self):
        revision = 0
        while True:
            with contextlib.suppress(Exception):
                revision = await self.shared.log.changed(revision)
                await self._catch_up()

    return [(replicator.Replicator, "_follow", follow)]


# Another site.


@bug("follow")
def sends_to_the_far_cluster_what_nobody_has() -> list[Patch]:
    return [(Term, "_may_apply", lambda self, entry: True)]


@bug("success")
def waits_for_the_far_cluster() -> list[Patch]:
    return [(Shared, "counted", lambda self: self.clusters.members())]


# Reads.


@bug("read", "back")
def reads_from_whichever_cluster() -> list[Patch]:
    return [(Plan, "_shows", lambda self, cluster: True)]


@bug("timestamp")
def passes_tokens_on_to_servers() -> list[Patch]:
    return [(Plan, "message", lambda self, call, cluster: call.message)]


@bug("read", "back")
def takes_an_applied_write_for_a_visible_one() -> list[Patch]:
    def message(self, call, cluster):
        return requests.query(call.collection, timestamps.EVENTUALLY, timestamps.EVENTUALLY_TIMESTAMP)

    return [(Plan, "message", message)]


@bug("back")
def forgets_what_a_session_has_seen() -> list[Patch]:
    return [(Past, "sight", lambda self, name: None)]


@bug("read")
def forgets_what_a_session_has_written() -> list[Patch]:
    def wrote(self, stream, seq):
        pass

    def settle(self, stream, default, name):
        real(self, stream, default, name)
        self._needs = []

    real = Plan._settle
    return [(Past, "wrote", wrote), (Plan, "_settle", settle)]


@bug("read")
def does_not_ask_the_log_where_it_ends() -> list[Patch]:
    async def complete(self, call):
        self._heard = True

    return [(Plan, "_complete", complete)]


@bug("read")
def takes_every_cluster_for_fresh() -> list[Patch]:
    return [(Progress, "stale_s", lambda self, cluster, stream: 0.0)]


def hunt(name: str, seeds: Iterable[int]) -> tuple[int, str] | None:
    """Look for a planted bug: (seeds it took, the invariant that found it), or None."""
    from tests.simulation.replication.run import run_seed

    with planted(name):
        for count, seed in enumerate(seeds, 1):
            for invariant, _ in run_seed(seed).violations:
                if invariant in BUGS[name].killers:
                    return count, invariant
    return None
