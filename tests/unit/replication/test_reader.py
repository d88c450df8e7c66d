"""Who may answer a read: each level, waiting for it, and what the chosen cluster is sent."""

import asyncio

import pytest
from pymilvus.grpc_gen import milvus_pb2

from haclient.errors import DeadlineExceeded, LogUnavailable, Unavailable
from haclient.replication.log import BARRIER
from haclient.replication.past import SESSION as FIELD
from haclient.replication.past import Past
from haclient.replication.position import Parked, Position, Standing
from haclient.replication.token import token
from tests.unit.replication.reader_fakes import DOCS, Site, entry
from tests.virtual_time import run

STRONG, SESSION, BOUNDED, EVENTUALLY, CUSTOMIZED = range(5)


def query(level=None, timestamp=0, collection="docs", **fields):
    if level is not None:
        fields["consistency_level"] = level
    return milvus_pb2.QueryRequest(collection_name=collection, guarantee_timestamp=timestamp, **fields)


def virtual(scenario):
    """Run a scenario in virtual time."""

    def test():
        run(scenario())

    test.__doc__ = scenario.__doc__
    test.__name__ = scenario.__name__
    return test


# -- each level


@virtual
async def test_eventually_takes_any_cluster_that_is_whole():
    site = Site("a", "b", "c", "d")
    site.append(9)
    site.at(a=9, b=0)
    site.progress.moved("c", Position(low=9, standing=Standing.RESEEDING))
    assert site.by(site.call(query(EVENTUALLY, 1))) == ["a", "b"], "c is being copied, of d nothing is known"
    site.progress.moved("c", Position(low=9, standing=Standing.AWAY))
    assert site.by(site.call(query(EVENTUALLY, 1))) == ["a", "b", "c"]


@virtual
async def test_bounded_takes_what_is_young_enough():
    """The age of what a cluster lacks counts, and how long ago the log was heard of."""
    site = Site(bounded_s=5.0)
    site.at(a=0, b=0)
    await asyncio.sleep(10)
    site.progress.heard()
    site.append()
    site.at(a=1)
    await asyncio.sleep(4.9)
    site.progress.heard()
    assert site.by(site.call(query(BOUNDED, 2))) == ["a", "b"]
    assert site.by(site.call(query(None, 1, use_default_consistency=True))) == ["a", "b"], (
        "it is the collection's own level"
    )
    await asyncio.sleep(0.2)
    assert site.by(site.call(query(BOUNDED, 2))) == ["a"]
    await asyncio.sleep(4.9)
    assert site.by(site.call(query(BOUNDED, 2))) is None, "nothing was heard of the log for longer than that"
    site.progress.heard()
    assert site.by(site.call(query(BOUNDED, 2))) == ["a"]


@virtual
async def test_bounded_counts_from_before_an_outage_of_the_log():
    """What is found when the log is back may have been written right after the last look."""
    site = Site(bounded_s=5.0)
    site.at(a=0, b=0)
    await asyncio.sleep(6)
    site.append()
    site.at(a=1)
    assert site.by(site.call(query(BOUNDED, 2))) == ["a"]


@virtual
async def test_strong_needs_the_end_of_the_log_when_the_call_began():
    site = Site()
    site.append(3)
    site.at(a=3, b=2)
    await asyncio.sleep(1)
    unheard = [entry(4)]
    site.log.end = 4
    call = site.call(query(STRONG))
    assert site.by(call) is None, "the log has to be asked first"
    site.loop.call_later(0.5, site.progress.saw, unheard)
    site.loop.call_later(0.7, lambda: site.at(b=4))
    assert await site.waited(call) == (0.7, ["b"])
    site.progress.heard()
    site.append()
    assert site.by(call) == ["b"], "what came later is not asked for"


@virtual
async def test_strong_reads_share_one_question():
    """Those who ask while it is under way may not take its answer; they share the next."""
    site = Site()
    site.at(a=0, b=0)
    site.log.delay_s = 0.1
    first = [asyncio.ensure_future(site.waited(site.call(query(STRONG)))) for _ in range(5)]
    await asyncio.sleep(0.05)
    assert site.log.asked == 1
    second = [asyncio.ensure_future(site.waited(site.call(query(STRONG)))) for _ in range(5)]
    assert {(await one)[0] for one in first} == {0.1}
    assert {(await one)[0] for one in second} == {0.15}
    assert site.log.asked == 2


@virtual
async def test_strong_without_the_log_is_refused():
    site = Site()
    site.at(a=0, b=0)
    site.log.error = LogUnavailable("disk full", sent=False)
    with pytest.raises(Unavailable, match="disk full"):
        await site.waited(site.call(query(STRONG)))
    with pytest.raises(Unavailable, match=r"replication\.log is empty"):
        await (site := Site(log=False)).waited(site.call(query(STRONG)))


@virtual
async def test_strong_without_an_answer_of_the_log_ends_in_time():
    site = Site()
    site.at(a=0, b=0)
    site.log.delay_s = 60.0
    with pytest.raises(DeadlineExceeded, match="has not said where it ends"):
        await site.waited(site.call(query(STRONG), timeout_s=2.0))
    await site.reader.aclose()
    site.log.end = 7
    site.log.delay_s = 0.0
    with pytest.raises(DeadlineExceeded, match="ends at 7 and was read up to 0"):
        await site.waited(site.call(query(STRONG), timeout_s=2.0))


@virtual
async def test_a_session_reads_what_it_has_written():
    site = Site()
    seq = site.append()
    site.at(a=1, b=0)
    assert site.by(site.call(query(SESSION, token(seq)))) == ["a"]
    assert site.by(site.call(query(CUSTOMIZED, token(seq)))) == ["a"]
    assert site.by(site.call(query(None, token(seq)))) == ["a"], "old SDKs name no level"
    assert site.by(site.call(query(SESSION, 1))) == ["a", "b"], "a session that has written nothing"
    site.past.wrote(DOCS, seq)
    assert site.by(site.call(query(SESSION, 1))) == ["a"]
    assert site.by(site.call(query(SESSION, 1), past=Past())) == ["a", "b"]


@virtual
async def test_a_session_waits_for_what_it_has_written():
    site = Site()
    seq = site.append()
    site.at(a=0, b=0)
    site.loop.call_later(0.3, lambda: site.at(b=1))
    assert await site.waited(site.call(query(SESSION, token(seq)))) == (0.3, ["b"])


@virtual
async def test_time_that_runs_out_names_who_is_how_far_behind():
    site = Site()
    await asyncio.sleep(1)
    site.progress.heard()
    seq = site.append(3)
    site.at(a=0, b=2)
    call = site.call(query(SESSION, token(seq)), timeout_s=2.0)
    with pytest.raises(DeadlineExceeded, match="Query docs"):
        await site.waited(call)
    assert call.behind == {"a", "b"}
    assert call.plan.lag("a") == "behind: lacks up to 3 writes, 2.0 s"
    assert call.plan.lag("b") == "behind: lacks up to 1 writes, 2.0 s"
    site.progress.moved("a", Position(standing=Standing.NEEDS_RESEED))
    assert call.plan.lag("a") == "behind: needs_reseed"


@virtual
async def test_a_token_of_another_log_is_no_endless_wait():
    site = Site()
    site.append()
    site.at(a=1, b=1)
    with pytest.raises(Unavailable, match="entry 9 of the mutation log, which ends at 1"):
        await site.waited(site.call(query(SESSION, token(9))))


@virtual
async def test_a_foreign_timestamp_asks_for_everything():
    """Nobody knows what a time of one cluster stands for on another."""
    site = Site()
    site.append()
    site.at(a=1, b=0)
    await asyncio.sleep(1)
    call = site.call(query(SESSION, 460_000_000_000_000_000))
    assert await site.waited(call) == (0.0, ["a"])


@virtual
async def test_a_stream_that_has_stopped_is_behind_though_its_cluster_is_not():
    site = Site()
    site.append(5)
    site.at(a=5)
    site.progress.moved("b", Position(low=5, parked={DOCS: Parked(3, "refused")}))
    assert site.by(site.call(query(SESSION, token(5)))) == ["a"]
    assert site.by(site.call(query(SESSION, token(2)))) == ["a", "b"]
    late = Site()
    late.progress.skip_to(5)
    late.progress.heard()
    late.log.end = 5
    late.progress.moved("a", Position(low=5))
    late.progress.moved("b", Position(low=5, parked={DOCS: Parked(3, "refused")}))
    assert await late.waited(late.call(query(STRONG))) == (0.0, ["a"]), "also for who came after it had stopped"
    assert late.by(late.call(query(BOUNDED))) == ["a"]


# -- never back


@virtual
async def test_a_session_never_goes_back():
    """The cluster that answered may have shown anything that was in the log, applied or only begun."""
    site = Site()
    site.append(4)
    site.at(a=2, b=3)
    await asyncio.sleep(0.1)
    site.progress.heard()
    first = site.call(query(SESSION, 1))
    assert site.by(first) == ["a", "b"]
    first.plan.answered(first, "a")
    assert site.by(site.call(query(SESSION, 1))) == ["a"], "whether more was there is not known yet"
    await asyncio.sleep(0.1)
    site.progress.heard()
    assert site.by(site.call(query(SESSION, 1))) == ["a"], "b has less than a may have shown"
    site.at(b=4)
    assert site.by(site.call(query(SESSION, 1))) == ["a", "b"]
    site.append()
    assert site.by(site.call(query(SESSION, 1))) == ["a", "b"], "what came later it has not seen"
    assert site.by(site.call(query(SESSION, 1), past=Past())) == ["a", "b"]


@virtual
async def test_what_was_applied_and_not_heard_of_was_shown_all_the_same():
    """Another process has written and applied; this one hears of it only after the answer."""
    site = Site()
    site.at(a=0, b=0)
    await asyncio.sleep(1)
    site.append(heard=False)
    first = site.call(query(EVENTUALLY, 1))
    first.plan.quick(first)
    first.plan.answered(first, "a")
    site.up["a"] = False
    call = site.call(query(SESSION, 1))
    assert site.by(call) is None
    site.loop.call_later(0.2, site.progress.saw, [entry(1)])
    site.loop.call_later(0.3, lambda: site.at(b=1))
    assert (await site.waited(call))[1] == ["a", "b"]


@virtual
async def test_a_session_leaves_a_dead_cluster():
    """As soon as the log has said what it may have shown; nothing is left to wait for if the others have it."""
    site = Site()
    site.append(2)
    site.at(a=2, b=2)
    await asyncio.sleep(1)
    first = site.call(query(SESSION, 1))
    assert site.by(first) == ["a", "b"]
    first.plan.answered(first, "a")
    site.up["a"] = False
    call = site.call(query(SESSION, 1))
    assert site.by(call) is None
    assert await site.waited(call) == (0.0, ["a", "b"])
    site.up = dict.fromkeys(site.up, False)
    assert site.by(site.call(query(SESSION, 1))) is not None, "when all are down everything is tried"


@virtual
async def test_a_session_stays_with_its_cluster_while_the_log_is_away():
    site = Site()
    site.append(2)
    site.at(a=1, b=1)
    await asyncio.sleep(1)
    site.log.error = LogUnavailable("no quorum", sent=False)
    first = site.call(query(SESSION, 1))
    site.by(first)
    first.plan.answered(first, "a")
    assert site.by(site.call(query(SESSION, 1))) == ["a"]
    site.up["a"] = False
    with pytest.raises(DeadlineExceeded):
        await site.waited(site.call(query(SESSION, 1)))


# -- names and levels


@virtual
async def test_a_collection_is_described_once_and_an_alias_is_its_collection():
    site = Site()
    seq = site.append()
    site.at(a=1, b=0)
    site.described["", "alias"] = site.known.pop(DOCS)
    call = site.call(query(SESSION, token(seq), collection="alias"))
    assert site.by(call) is None
    assert await site.waited(call) == (0.01, ["a"])
    site.past.wrote(DOCS, seq)
    assert site.by(site.call(query(SESSION, 1, collection="alias"))) == ["a"]


@pytest.mark.parametrize(("level", "who"), [(STRONG, ["b"]), (SESSION, ["b"]), (BOUNDED, ["a", "b"])])
def test_the_collections_own_level(level, who):
    async def scenario():
        site = Site(level=level)
        seq = site.append()
        site.at(a=0, b=1)
        await asyncio.sleep(0.1)
        site.progress.heard()
        message = query(timestamp=token(seq), use_default_consistency=True)
        assert (await site.waited(site.call(message)))[1] == who

    run(scenario())


@virtual
async def test_what_cannot_be_described_is_left_to_the_servers():
    """They refuse it in their own words, which the user knows."""
    site = Site()
    site.at(a=0, b=0)
    assert (await site.waited(site.call(query(BOUNDED, 2, collection="nothing"))))[1] == ["a", "b"]


@virtual
async def test_descriptions_and_lists_show_what_the_session_has_changed():
    site = Site()
    created = site.append(stream=("", "new"), method="CreateCollection")
    site.at(a=created, b=0)
    describe = milvus_pb2.DescribeCollectionRequest(collection_name="new")
    show = milvus_pb2.ShowCollectionsRequest()
    assert site.by(site.call(show, "ShowCollections")) == ["a", "b"], "another session's"
    site.past.wrote(("", "new"), created)
    assert site.by(site.call(describe, "DescribeCollection")) == ["a"]
    assert site.by(site.call(show, "ShowCollections")) == ["a"]
    aliased = site.append(stream=BARRIER, method="CreateAlias")
    site.past.wrote(BARRIER, aliased)
    assert site.by(site.call(describe, "DescribeCollection")) is None
    assert site.by(site.call(query(SESSION, 1))) is None
    site.at(b=aliased)
    assert site.by(site.call(query(SESSION, 1))) == ["b"]


@virtual
async def test_a_pinned_read_waits_for_its_cluster():
    site = Site()
    seq = site.append()
    site.at(a=1, b=0)
    call = site.call(query(SESSION, token(seq)), pin="b")
    assert site.by(call) is None
    site.loop.call_later(0.2, lambda: site.at(b=1))
    assert (await site.waited(call))[0] == 0.2


# -- what is sent


def sent(site, call, cluster, kind=milvus_pb2.QueryRequest):
    assert call.plan.quick(call)
    return kind.FromString(call.plan.message(call, cluster))


@virtual
async def test_a_token_becomes_the_clusters_own_timestamp():
    site = Site()
    site.append(2)
    site.at(a=2)
    site.progress.moved("b", Position(low=2))
    call = site.call(query(SESSION, token(2)))
    assert sent(site, call, "a") == query(SESSION, 1002)
    assert sent(site, call, "b") == query(STRONG, 0), "it is not known there: then all that it has"
    assert sent(site, site.call(query(SESSION, 1)), "a") == query(SESSION, 1), "nothing has to be seen"
    site.past.wrote(DOCS, 2)
    assert sent(site, site.call(query(SESSION, 1)), "a") == query(SESSION, 1002)
    site.known["", "other"] = site.known[DOCS]


@virtual
async def test_a_stream_written_long_ago_has_the_timestamp_of_all_others():
    site = Site()
    site.append(1, stream=("", "old"))
    site.at(a=1, b=1)
    site.known["", "old"] = type(site.known[DOCS])(collection="old", consistency_level=2)
    call = site.call(query(SESSION, token(1), collection="old"))
    assert sent(site, call, "a").guarantee_timestamp == 900


@virtual
async def test_a_token_never_reaches_a_server_at_any_level():
    site = Site()
    site.append(2)
    site.at(a=2, b=2)
    await asyncio.sleep(1)
    for level in (STRONG, SESSION, BOUNDED, EVENTUALLY, CUSTOMIZED):
        for default in (True, False):
            message = query(level, token(2), use_default_consistency=default)
            call = site.call(message)
            await call.plan.ready(call)
            read = milvus_pb2.QueryRequest.FromString(call.plan.message(call, "a"))
            assert read.guarantee_timestamp < 2000
    search = milvus_pb2.SearchRequest(collection_name="docs", guarantee_timestamp=token(2), consistency_level=SESSION)
    hybrid = milvus_pb2.HybridSearchRequest(collection_name="docs", requests=[search], use_default_consistency=True)
    call = site.call(hybrid, "HybridSearch")
    read = sent(site, call, "a", milvus_pb2.HybridSearchRequest)
    assert read.requests[0].guarantee_timestamp == 1002
    assert read.use_default_consistency


# -- sessions that travel


@virtual
async def test_a_token_in_metadata_takes_a_session_to_another_process():
    one, other = Site(), Site()
    for site in (one, other):
        site.append(2)
        site.at(a=2, b=1)
    one.past.wrote(DOCS, 2)
    first = one.call(query(SESSION, 1))
    assert one.by(first) == ["a"]
    first.plan.answered(first, "a")
    field = one.reader.trailer(first)
    await asyncio.sleep(1)
    call = other.call(query(SESSION, 1), metadata=(*field, ("x", "1")))
    assert call.metadata == (("x", "1"),), "servers do not get it"
    assert other.by(call) == ["a"]
    assert other.by(other.call(query(SESSION, 1))) == ["a", "b"], "others' sessions are not touched"
    other.up["a"] = False
    other.loop.call_later(0.2, lambda: other.at(b=2))
    assert await other.waited(other.call(query(SESSION, 1), metadata=field)) == (0.2, ["a", "b"])


@pytest.mark.parametrize("value", ["", "x", "A" * 32, "é", "=" * 9, "AQ" * 400])
def test_garbage_is_no_session_and_no_error(value):
    async def scenario():
        site = Site()
        site.append()
        site.at(a=1, b=0)
        site.past.wrote(DOCS, 1)
        assert site.by(site.call(query(SESSION, 1), metadata=((FIELD, value),))) == ["a"], "the session it had"

    run(scenario())


# -- while the log is away


@virtual
async def test_marks_stand_in_for_the_log():
    site = Site(bounded_s=5.0)
    site.at(a=0, b=0)
    await asyncio.sleep(10)
    assert site.by(site.call(query(BOUNDED, 2))) is None
    site.marks.heard()
    site.marks.saw([entry(3, BARRIER)])
    site.marks.moved("b", Position(low=2))
    site.marks.moved("a", Position(low=3))
    await asyncio.sleep(4.9)
    site.marks.heard()
    assert site.by(site.call(query(BOUNDED, 2))) == ["a", "b"]
    await asyncio.sleep(0.2)
    assert site.by(site.call(query(BOUNDED, 2))) == ["a"]
    assert site.by(site.call(query(SESSION, token(3)))) == ["a"]
    site.log.error = LogUnavailable("gone", sent=False)
    with pytest.raises(Unavailable, match="gone"):
        await site.waited(site.call(query(STRONG)))
    site.hear([entry(1)])
    assert site.by(site.call(query(SESSION, token(3)))) is None, "what marks said long ago does not count any more"


@virtual
async def test_a_session_does_not_wait_for_a_log_that_hangs_if_it_can_do_without():
    site = Site()
    site.log.delay_s = 60.0
    site.at(a=0, b=0)
    site.loop.call_later(1.5, site.progress.saw, [entry(1)])
    site.loop.call_later(2.0, lambda: site.at(b=1))
    assert await site.waited(site.call(query(SESSION, token(1)))) == (2.0, ["b"])
    await site.reader.aclose()


@virtual
async def test_who_waits_when_the_client_is_closed_is_told():
    site = Site()
    site.log.delay_s = 60.0
    site.at(a=0, b=0)
    waiting = asyncio.ensure_future(site.waited(site.call(query(STRONG), timeout_s=90.0)))
    await asyncio.sleep(1)
    await site.reader.aclose()
    with pytest.raises(Unavailable, match="closed"):
        await waiting


@virtual
async def test_who_lags_is_not_to_blame_for_what_it_lacks():
    site = Site()
    site.at(a=0, b=0)
    await asyncio.sleep(1)
    site.progress.heard()
    site.append()
    site.at(a=1)
    assert not site.reader.lagging("b", DOCS), "everybody who is written to lacks something for a moment"
    await asyncio.sleep(1.1)
    assert site.reader.lagging("b", DOCS)
    assert not site.reader.lagging("a", DOCS)
    site.progress.heard()
    site.append(method="LoadCollection")
    assert site.reader.lagging("a", DOCS), "that it is not loaded there is no wonder"
    assert not site.reader.lagging("a", ("", "other"))
    site.append(stream=BARRIER, method="CreateAlias")
    assert site.reader.lagging("a", ("", "other"))
