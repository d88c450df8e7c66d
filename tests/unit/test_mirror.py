"""What an attempt on one cluster means for replication, and what is shown of it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from pymilvus.grpc_gen import common_pb2, milvus_pb2

from haclient.call import Action, Attempt, Call, Reply
from haclient.errors import AttemptTimeout, CallError, ConnectFailed, ConnectionLost, StreamReset, Unavailable
from haclient.milvus import messages
from haclient.milvus.methods import named
from haclient.milvus.status import Flavour, classify
from haclient.mirror import FleetClusters
from haclient.replication.clusters import Delivery, Outcome

UPSERT = named("Upsert")


def node(name: str = "e", **what: Any) -> SimpleNamespace:
    return SimpleNamespace(**({"name": name, "drained": False, "version": "2.3.5", "flavour": Flavour.REAL} | what))


def clusters(*attempts: Attempt | None, nodes: tuple[Any, ...] = (node(),), untried: int = 0) -> FleetClusters:
    """Make clusters whose attempts end as told, one after the other."""
    left, more = list(attempts), [True] * untried
    fleet = SimpleNamespace(
        clusters=[SimpleNamespace(name="a", nodes=list(nodes), config=SimpleNamespace(asynchronous=False))],
        nodes=lambda: iter(nodes),
        classify=classify,
        untried=lambda call: bool(more) and more.pop(),
    )

    async def once(call: Call) -> Attempt | None:
        assert call.pin == "a"
        attempt = left.pop(0)
        if attempt is not None:
            call.attempts.append(attempt)
        return attempt

    return FleetClusters(fleet, once, asyncio.get_running_loop())  # type: ignore[arg-type]


def answered(reply: Reply) -> Attempt:
    verdict = classify(UPSERT, reply, Flavour.REAL)
    attempt = Attempt("e", "a", 0.0, 1.0, verdict.action, reply, reason=verdict.reason, code=verdict.code)
    attempt.rejected = verdict.rejected
    return attempt


def said(code: int, reason: str = "no") -> Attempt:
    status = common_pb2.Status(code=code, error_code=1, reason=reason)
    return answered(Reply(milvus_pb2.MutationResult(status=status).SerializeToString()))


def failed(error: Any) -> Attempt:
    return Attempt("e", "a", 0.0, 1.0, Action.FAILOVER, None, error, str(error))


async def delivered(*attempts: Attempt | None, untried: int = 0) -> Delivery:
    return await clusters(*attempts, untried=untried).deliver("a", UPSERT, b"", "", 1.0)


async def test_done() -> None:
    reply = milvus_pb2.MutationResult(timestamp=7).SerializeToString()
    assert await delivered(answered(Reply(reply))) == Delivery(Outcome.DONE, reply)


@pytest.mark.parametrize(
    ("attempt", "outcome", "sent"),
    [
        (failed(ConnectFailed("refused")), Outcome.LATER, False),
        (failed(StreamReset("going away", code=7, sent=False)), Outcome.LATER, False),
        (failed(ConnectionLost("reset", sent=True)), Outcome.LOST, True),
        (failed(AttemptTimeout("no answer", sent=True)), Outcome.UNANSWERED, True),
        (said(1100), Outcome.REFUSED, False),
        (said(100, "collection not found"), Outcome.REFUSED, False),
        (said(1, "not ready"), Outcome.LATER, False),
        (said(65535, "something new"), Outcome.LATER, True),
        (said(65535, "shard delegator is gone"), Outcome.LATER, True),
        (answered(Reply(b"", 4, "deadline")), Outcome.UNANSWERED, True),
        (answered(Reply(b"", 12, "not implemented")), Outcome.REFUSED, False),
        (None, Outcome.LATER, False),
    ],
)
async def test_what_an_outcome_means(attempt: Attempt | None, outcome: Outcome, sent: bool) -> None:
    """What may have been carried out is never called certain, and what is certain never repeated in vain."""
    delivery = await delivered(attempt)
    assert (delivery.outcome, delivery.sent, delivery.blocked) == (outcome, sent, False)
    assert delivery.reason


@pytest.mark.parametrize("code", [3, 7, 8, 9])
async def test_a_cluster_that_takes_no_writes(code: int) -> None:
    """Memory, disk, rate, denial: later, and nothing else will fare better."""
    delivery = await delivered(said(code))
    assert (delivery.outcome, delivery.blocked) == (Outcome.LATER, True)


@pytest.mark.parametrize("code", [7, 16])
async def test_wrong_credentials_are_the_operators_business(code: int) -> None:
    """They park nothing and void nothing: the entry waits until they are right."""
    delivery = await delivered(answered(Reply(b"", code, "who are you?")))
    assert (delivery.outcome, delivery.blocked, delivery.sent) == (Outcome.LATER, True, False)


async def test_another_endpoint_of_the_cluster_is_tried_if_the_first_got_nothing() -> None:
    refused, done = failed(ConnectFailed("refused")), answered(Reply(b""))
    assert (await delivered(refused, done, untried=1)).outcome is Outcome.DONE


async def test_but_not_if_it_may_have_got_it() -> None:
    assert (await delivered(failed(ConnectionLost("reset", sent=True)), untried=1)).outcome is Outcome.LOST


async def test_a_cluster_that_is_gone() -> None:
    here = clusters()
    assert (await here.deliver("b", UPSERT, b"", "", 1.0)).outcome is Outcome.LATER
    with pytest.raises(Unavailable):
        await here.ask("b", named("Query"), b"", "", 1.0)


async def test_a_read_that_is_refused_says_so_in_the_servers_words() -> None:
    with pytest.raises(CallError, match="collection not found") as caught:
        await clusters(said(100, "collection not found")).ask("a", UPSERT, b"", "db", 1.0)
    assert caught.value.code == 100
    assert not isinstance(caught.value, Unavailable)
    with pytest.raises(Unavailable, match="not ready"):
        await clusters(said(1, "not ready")).ask("a", UPSERT, b"", "", 1.0)
    with pytest.raises(Unavailable, match="did not answer"):
        await clusters(failed(ConnectionLost("reset", sent=True))).ask("a", UPSERT, b"", "", 1.0)


async def test_members() -> None:
    old = node("old", drained=True)
    (known,) = clusters(nodes=(node("new", version=""), old)).members()
    assert (known.version, known.drained) == ("2.3.5", False)
    (drained,) = clusters(nodes=(old,)).members()
    assert drained.drained


async def test_a_delete_without_a_timestamp_gets_one_afterwards() -> None:
    """Without it a session would see the row that it has deleted."""
    stamped = milvus_pb2.AllocTimestampResponse(timestamp=99).SerializeToString()
    here = clusters(answered(Reply(stamped)))
    mutation = SimpleNamespace(method="Delete")
    nothing = milvus_pb2.MutationResult().SerializeToString()
    assert await here.stamp("a", mutation, nothing, Flavour.REAL) == 99  # type: ignore[arg-type]
    told = milvus_pb2.MutationResult(timestamp=77).SerializeToString()
    assert await here.stamp("a", mutation, told, Flavour.REAL) == 77  # type: ignore[arg-type]
    assert await here.stamp("a", mutation, nothing, Flavour.LITE) == 0  # type: ignore[arg-type]
    assert messages.read_timestamp(stamped) == 99
