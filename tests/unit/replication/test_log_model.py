"""Engines of the mutation log do what the model in memory does, whatever is asked for in whatever order."""

import asyncio
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from haclient.errors import LogFull, LogTrimmed
from haclient.replication.log import Fact
from tests.servers.memory_log import MemoryStore
from tests.unit.replication.log_engines import engine, mutation

MIB = 1 << 20
HOUR = 3600.0
NAMES = st.sampled_from(["x", "x/1", "x/2", "y"])
HANDLES = st.integers(0, 1)
SEQS = st.integers(0, 40)
SIZES = st.sampled_from([0, 1, 100, 5000, MIB // 3])


class Machine(RuleBasedStateMachine):
    """Two handles of one store, and the model; leases are long enough not to run out."""

    make = None  # set by `machine`

    @initialize()
    def begin(self):
        self.runner = asyncio.Runner()
        bounds = {"max_entries": 12, "max_bytes": MIB}
        self.model = MemoryStore(**bounds)
        self.handle = type(self).make(**bounds)
        self.logs = [self.opened(), self.opened()]
        self.leases = []
        self.versions = {}

    def teardown(self):
        if hasattr(self, "runner"):
            for log in self.logs:
                self.run(log.aclose())
            self.runner.close()

    def run(self, work):
        return self.runner.run(work)

    def opened(self):
        log = self.handle()
        self.runner.run(log.open())
        return log

    def both(self, real, model):
        """Both give the same, or raise the same."""
        try:
            expected = model()
        except (LogFull, LogTrimmed) as error:
            with pytest.raises(type(error)):
                self.run(real())
            return
        assert self.run(real()) == expected

    @rule(at=HANDLES, numbers=st.lists(st.integers(1, 25), max_size=4), size=SIZES)
    def append(self, at, numbers, size):
        group = [mutation(number, bytes(size)) for number in numbers]
        self.both(lambda: self.logs[at].append(group), lambda: self.model.append(group, 0.0))

    @rule(at=HANDLES, groups=st.lists(st.lists(st.integers(1, 25), max_size=3), max_size=4))
    def append_at_once(self, at, groups):
        """Groups of one process that are under way together are told apart; one that finds no room hurts no other."""

        async def together():
            work = (self.logs[at].append([mutation(number) for number in group]) for group in groups)
            return await asyncio.gather(*work, return_exceptions=True)

        for group, seqs in zip(groups, self.run(together()), strict=True):
            added = [mutation(number) for number in group]
            if isinstance(seqs, LogFull):
                with pytest.raises(LogFull):
                    self.model.append(added, 0.0)
            else:
                assert seqs == self.model.append(added, 0.0)

    @rule(at=HANDLES, through=SEQS)
    def trim(self, at, through):
        self.both(lambda: self.logs[at].trim(through), lambda: self.model.trim(through))

    @rule(
        at=HANDLES, after=SEQS, limit=st.integers(1, 5), max_bytes=st.sampled_from([1, 200, MIB]), bodies=st.booleans()
    )
    def read(self, at, after, limit, max_bytes, bodies):
        def shown(entries):
            return [(entry.seq, entry.mutation, entry.size) for entry in entries]

        async def real():
            limits = {"limit": limit, "max_bytes": max_bytes if bodies else MIB}
            return shown(await self.logs[at].read(after, bodies=bodies, **limits))

        self.both(real, lambda: shown(self.model.read(after, limit, max_bytes if bodies else MIB, bodies)))

    @rule(
        at=HANDLES,
        changes=st.dictionaries(NAMES, st.none() | st.binary(max_size=3), max_size=3),
        expect=st.dictionaries(NAMES, st.sampled_from(["right", "wrong", "absent"]), max_size=2),
        lease=st.none() | st.integers(0, 20),
    )
    def put(self, at, changes, expect, lease):
        versions = self.run(self.logs[at].facts())
        real, model = ({}, {})
        for name, kind in expect.items():
            for wanted, facts in ((real, versions), (model, self.model.facts)):
                version = facts.get(name, Fact(b"", 0)).version
                wanted[name] = {"right": version, "wrong": version + 1, "absent": 0}[kind]
        held = self.leases[lease % len(self.leases)] if self.leases and lease is not None else (None, None)
        done = self.run(self.logs[at].put(changes, expect=real, lease=held[0]))
        assert done == self.model.put(changes, model, held[1])

    @rule(at=HANDLES, name=NAMES)
    def acquire(self, at, name):
        lease, model = self.run(self.logs[at].acquire(name, "a", HOUR)), self.model.acquire(name, HOUR, 0.0)
        assert (lease is None) == (model is None)
        if lease is not None:
            assert all(lease.epoch > old.epoch for old, _ in self.leases if old.name == name)
            self.leases.append((lease, model))

    @rule(at=HANDLES, number=st.integers(0, 20))
    def renew(self, at, number):
        if self.leases:
            lease, model = self.leases[number % len(self.leases)]
            renewed = self.run(self.logs[at].renew(lease, HOUR))
            assert (renewed is None) == (self.model.renew(model, HOUR, 0.0) is None)
            assert renewed is None or renewed.epoch == lease.epoch

    @rule(at=HANDLES, number=st.integers(0, 20))
    def release(self, at, number):
        if self.leases:
            lease, model = self.leases[number % len(self.leases)]
            self.run(self.logs[at].release(lease))
            self.model.release(model)

    @rule(at=HANDLES)
    def open_again(self, at):
        self.run(self.logs[at].aclose())
        self.logs[at] = self.opened()

    @invariant()
    def same(self):
        for log in self.logs:
            assert self.run(log.bounds()) == self.model.bounds()
            facts = self.run(log.facts())
            assert {n: f.value for n, f in facts.items()} == {n: f.value for n, f in self.model.facts.items()}
            for name, fact in facts.items():
                value, version = self.versions.get(name, (fact.value, 0))
                assert fact.version > version or (fact.version, fact.value) == (version, value)
                self.versions[name] = (fact.value, fact.version)


@pytest.mark.parametrize(
    ("name", "examples"),
    [("sqlite", 40), pytest.param("etcd", 5, marks=pytest.mark.xdist_group("etcd-log"))],
)
def test_an_engine_does_what_the_model_does(name, examples):
    """Any sequence of operations on two handles gives what it gives in memory."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        machine = type("Machine", (Machine,), {"make": staticmethod(stack.enter_context(engine(name, folder)))})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=25,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
