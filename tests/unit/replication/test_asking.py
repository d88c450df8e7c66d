"""Asking whichever cluster can answer, in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from haclient.errors import CallError, DeadlineExceeded, Unavailable
from haclient.replication.asking import ask_any
from haclient.replication.progress import Progress
from tests.virtual_time import run

#: Time a cluster takes to answer; one that is not here says no.
Clusters = dict[str, float]


async def asked(clusters: Clusters, names: list[str], deadline: float = 10.0) -> tuple[object, float]:
    """Ask; return the answer (or the error) and the time it took."""
    loop = asyncio.get_running_loop()

    async def ask(cluster: str, timeout_s: float) -> str:
        if cluster not in clusters:
            raise CallError("collection not found", code=100)
        await asyncio.sleep(min(clusters[cluster], timeout_s))
        if clusters[cluster] > timeout_s:
            raise Unavailable(f"{cluster} does not answer")
        return cluster

    try:
        answer: object = await ask_any(Progress(loop), lambda: names, ask, 1.0, deadline)
    except CallError as error:
        answer = error
    return answer, loop.time()


def test_a_cluster_that_hangs_costs_a_moment() -> None:
    """Seeds 166 and 349 of the simulation: a write waited for a hanging cluster until its deadline."""
    assert run(asked({"a": 1e6, "b": 0.1}, ["a", "b"])) == ("b", pytest.approx(1.1))


def test_slow_clusters_are_asked_again_with_more_patience() -> None:
    answer, took = run(asked({"a": 1e6, "b": 3.0}, ["a", "b"], 30.0))
    assert answer == "b"
    assert took < 15.0


def test_no_is_believed_if_nobody_knows_better() -> None:
    answer, took = run(asked({}, ["a", "b"]))
    assert isinstance(answer, CallError)
    assert answer.code == 100
    assert took == 0.0
    assert run(asked({"b": 0.5}, ["a", "b"])) == ("b", 0.5)


def test_nothing_outlives_the_deadline() -> None:
    answer, took = run(asked({"a": 1e6}, ["a"], 2.5))
    assert isinstance(answer, Unavailable)
    assert took == 2.5
    assert run(asked({}, [], 2.5)) == (None, 2.5)


def test_those_who_fail_at_once_are_not_asked_without_a_pause() -> None:
    async def scenario() -> int:
        calls = 0

        async def ask(cluster: str, timeout_s: float) -> str:
            nonlocal calls
            calls += 1
            raise DeadlineExceeded("refused")

        with pytest.raises(DeadlineExceeded):
            await ask_any(Progress(asyncio.get_running_loop()), lambda: ["a"], ask, 1.0, 1.0)
        return calls

    assert run(scenario()) <= 21
