"""The supervisor: starting, replacing, stopping, reloading and draining workers; what it knows and tells of them."""

import asyncio
import itertools
import socket

import pytest
from prometheus_client.parser import text_string_to_metric_families

from haclient.errors import ConfigError
from tests.unit.proxy.supervisor_fakes import START, TEXT, Proxy, run


@pytest.fixture
def proxy(monkeypatch, tmp_path):
    return lambda *text, **options: Proxy(monkeypatch, tmp_path, *text, **options)


def sample(metrics, name, **labels):
    for family in text_string_to_metric_families(metrics.decode()):
        for each in family.samples:
            if each.name == name and labels.items() <= each.labels.items():
                return each.value
    return None


# --- starting ------------------------------------------------------------------------------------------------


def test_it_is_ready_when_a_worker_can_serve_a_read(proxy):
    async def scenario():
        one = proxy()
        one.start()
        await asyncio.sleep(0)
        assert one.supervisor.ready() == (False, "no worker serves")
        async with asyncio.timeout(9):
            await one.until(lambda: one.supervisor.pool.complete)
        assert one.supervisor.ready() == (True, "")
        for server in one.plan.servers:
            server.ready = False, "no endpoint is up"
        await asyncio.sleep(1.5)
        assert one.supervisor.ready() == (False, "no endpoint is up")
        one.plan.servers[1].ready = True, ""
        await asyncio.sleep(1.5)
        assert one.supervisor.ready() == (True, ""), "one worker that can is enough"
        one.supervisor.stop()
        assert one.supervisor.ready() == (False, "the proxy is stopping")
        assert await one.task == 0

    run(scenario())


def test_a_configuration_that_workers_refuse_ends_it(proxy):
    """It was refused for good; a worker that replaces one later is another matter."""

    async def scenario():
        one = proxy()
        one.plan.refuse_start = "endpoint a2: it belongs to another cluster"
        one.start()
        with pytest.raises(ConfigError, match=r"^endpoint a2: it belongs to another cluster$"):
            await one.task

    run(scenario())


def test_workers_that_die_while_they_start_are_started_again_and_less_and_less_often(proxy):
    async def scenario():
        one = proxy(workers=1)
        one.plan.die_at_start = 12
        one.start()
        await one.until(lambda: one.supervisor.pool.complete)
        failures = [event.at for event in one.events("WorkerFailed")]
        pauses = [after - before for before, after in itertools.pairwise(failures)]
        assert len(failures) == 12
        assert pauses[0] == pytest.approx(0.0, abs=0.1), "the first time at once"
        assert pauses[1:6] == pytest.approx([0.25, 0.5, 1.0, 2.0, 4.0], abs=0.1)
        assert pauses[6:] == pytest.approx([5.0] * 5, abs=0.1)
        one.supervisor.stop()
        assert await one.task == 0

    run(scenario())


def test_a_machine_without_room_for_a_process_is_asked_again(proxy):
    async def scenario():
        one = proxy(workers=1)
        one.plan.no_process = 2
        async with one.running():
            assert [event.fields["reason"] for event in one.events("WorkerFailed")] == [
                "its process cannot be started: Resource temporarily unavailable"
            ] * 2

    run(scenario())


# --- replacing -----------------------------------------------------------------------------------------------


def test_a_worker_that_dies_is_replaced_at_once_on_the_same_socket(proxy):
    async def scenario():
        one = proxy()
        async with one.running():
            before, other = one.alive()
            died_at = one.clock()
            await one.crash(one.plan.processes[0], -11)
            assert one.clock() - died_at < 0.1
            after, same = one.alive()
            assert same is other
            assert after is not before
            (event,) = one.events("WorkerEnded")
            assert (event.level, event.worker, event.fields["code"]) == ("error", None, -11)
            assert event.text == "worker 0 (process 1000) was ended by SIGSEGV unasked and is replaced"
            assert sample(await one.supervisor.metrics(), "haclient_proxy_worker_restarts_total") == 1

    run(scenario())


def test_a_connection_that_waits_is_there_for_the_replacement(proxy):
    """The socket is the supervisor's: the kernel completes connections to it while nobody accepts them."""

    async def scenario():
        one = proxy(workers=1)
        async with one.running():
            address = one.sockets[0].getsockname()
            one.plan.go_on.clear()
            one.plan.processes[0].die(-9)
            await one.until(lambda: len(one.plan.servers) == 2)
            with socket.create_connection(address, timeout=5) as waiting:
                waiting.sendall(b"hello")
                one.plan.go_on.set()
                await one.until(lambda: one.supervisor.pool.complete)
                accepted, _ = one.alive()[0].listening.accept()
                with accepted:
                    accepted.setblocking(True)
                    assert accepted.recv(5) == b"hello"

    run(scenario())


def test_a_worker_that_ran_well_for_long_is_replaced_at_once_again(proxy):
    async def scenario():
        one = proxy(workers=1)
        async with one.running():
            for rounds in range(4):
                for _ in range(2):
                    await one.crash(one.plan.processes[-1])
                await asyncio.sleep(61)
                died_at = one.clock()
                await one.crash(one.plan.processes[-1])
                assert one.clock() - died_at < 0.2, rounds
                await asyncio.sleep(61)

    run(scenario())


def test_a_worker_that_has_fallen_silent_does_not_count_and_is_killed_in_the_end(proxy, monkeypatch):
    async def scenario():
        one = proxy(workers=1)
        async with one.running():
            worker = one.supervisor.pool.workers[0]
            monkeypatch.setattr(worker._channel, "_hear", lambda *_: None)
            await asyncio.sleep(10)
            assert one.supervisor.ready() == (False, "no worker serves")
            assert one.plan.processes[0].code == 0
            await one.until(lambda: one.events("WorkerLost"), within_s=40)
            await one.until(lambda: one.supervisor.ready() == (True, ""))
            assert one.plan.processes[0].code == -9

    run(scenario())


# --- the process that is ready ---------------------------------------------------------------------------------


def test_a_process_is_ready_before_it_is_needed(proxy):
    """It takes the place of whichever worker dies, and another one gets ready; a spare that has died is not used."""

    async def scenario():
        one = proxy()
        async with one.running():
            await one.until(lambda: len(one.plan.processes) == 3)
            spare = one.plan.processes[2]
            one.plan.may_spawn.clear()
            await one.crash(one.plan.processes[1])
            assert [server.listening for server in one.alive()] == [
                one.plan.servers[0].listening,
                spare.server.listening,
            ]
            assert spare.server.listening.getsockname() == one.sockets[1].getsockname()
            one.plan.may_spawn.set()
            await one.until(lambda: len(one.plan.processes) == 4)
            one.plan.processes[3].die(-9)
            await asyncio.sleep(1)
            await one.crash(one.plan.processes[0])
            assert one.plan.processes[3].server is None
            assert one.events("WorkerFailed") == []

    run(scenario())


def test_a_rolling_restart_does_without_the_process_that_was_ready(proxy):
    """It may have imported the version before."""

    async def scenario():
        one = proxy()
        async with one.running():
            await one.until(lambda: len(one.plan.processes) == 3)
            await one.supervisor.pool.roll()
            assert one.plan.processes[2].code == -9
            assert one.plan.processes[2].server is None
            assert len(one.alive()) == 2

    run(scenario())


@pytest.mark.parametrize("moment", ["before", "while it starts"])
def test_the_process_that_is_ready_does_not_outlive_the_proxy(proxy, moment):
    """Nor does it hold a listening socket open, in which connections would wait for nobody."""

    async def scenario():
        one = proxy()
        async with one.running():
            if moment == "before":
                await one.until(lambda: len(one.plan.processes) == 3)
            else:
                one.plan.may_spawn.clear()
                await asyncio.sleep(2)
            one.alive()[0].calls = 1
            one.supervisor.stop()
            one.plan.may_spawn.set()
            await asyncio.sleep(1)
            assert not one.task.done()
            assert one.plan.processes[2].code == -9

    run(scenario())


def test_a_worker_that_is_being_started_when_the_proxy_stops_is_not(proxy):
    async def scenario():
        one = proxy(workers=1)
        one.plan.may_spawn.clear()
        one.start()
        await asyncio.sleep(1)
        one.supervisor.stop()
        one.plan.may_spawn.set()
        assert await one.task == 0
        assert one.plan.servers == []

    run(scenario())


# --- what is counted stays counted ---------------------------------------------------------------------------


def test_counts_never_go_back(proxy):
    """A worker's last counts stay when it dies, and all of them when it is exchanged."""

    async def scenario():
        one = proxy()
        async with one.running():
            for server in one.alive():
                server.call(count=10)
            await asyncio.sleep(2.5)
            calls = {"method": "Search", "outcome": "ok"}
            assert sample(await one.supervisor.metrics(), "haclient_calls_total", **calls) == 20
            await one.crash(one.plan.processes[0])
            assert one.supervisor.fleet().totals.ok == 20
            assert sample(await one.supervisor.metrics(), "haclient_calls_total", **calls) == 20
            for server in one.alive():
                server.call(count=1)
            await one.supervisor.pool.roll()
            assert one.supervisor.fleet().totals.ok == 22
            assert sum(one.supervisor.fleet().totals.latency) == 22
            assert sample(await one.supervisor.metrics(), "haclient_calls_total", **calls) == 22
            await asyncio.sleep(2.5)
            history = one.supervisor.history(1.0).points
            assert sum(point.ok for point in history) == 22
            assert min(point.ok for point in history) == 0

    run(scenario())


# --- rolling restart -----------------------------------------------------------------------------------------


def test_a_rolling_restart_drains_a_worker_when_its_successor_serves(proxy):
    async def scenario():
        one = proxy()
        async with one.running():
            old = one.alive()
            old[0].calls = 1
            one.plan.go_on.clear()
            rolling = asyncio.create_task(one.supervisor.pool.roll())
            await one.until(lambda: len(one.plan.servers) == 3)
            await asyncio.sleep(5)
            assert old[0].did == ["start"], "not before the new one serves"
            one.plan.go_on.set()
            await one.until(lambda: "drain" in old[0].did)
            assert len(one.plan.servers) == 3, "one at a time"
            assert one.supervisor.ready() == (True, "")
            states = [worker.state for worker in one.supervisor.fleet().workers]
            assert sorted(states) == ["draining", "serving", "serving"]
            await one.supervisor.pool.roll()
            assert len(one.plan.servers) == 3, "a second restart does not start beside the first"
            old[0].released.set()
            await rolling
            assert all(server.did == ["start", "drain", "aclose"] for server in old)
            assert not set(one.alive()) & set(old)
            assert one.events("WorkerEnded") == []
            assert sample(await one.supervisor.metrics(), "haclient_proxy_worker_restarts_total") == 0

    run(scenario())


def test_a_rolling_restart_that_fails_leaves_the_workers_as_they_are(proxy):
    async def scenario():
        one = proxy()
        async with one.running():
            old = one.alive()
            one.plan.refuse_start = "the certificate is gone"
            await one.supervisor.pool.roll()
            assert one.alive() == old
            assert "the certificate is gone" in one.events("WorkerFailed")[0].text
            assert one.events("RollingRestart")[0].level == "error"
            await asyncio.sleep(60)
            assert len(one.plan.servers) == 3, "nobody tries for ever"

    run(scenario())


def test_a_worker_that_dies_while_its_successor_starts_has_one_successor(proxy):
    async def scenario():
        one = proxy(workers=1)
        async with one.running():
            one.plan.go_on.clear()
            rolling = asyncio.create_task(one.supervisor.pool.roll())
            await one.until(lambda: len(one.plan.servers) == 2)
            one.plan.processes[0].die(-9)
            await one.until(lambda: len(one.plan.servers) == 3)
            one.plan.go_on.set()
            await rolling
            await asyncio.sleep(1)
            assert len(one.alive()) == 1
            assert len(one.supervisor.pool.workers) == 1

    run(scenario())


# --- stopping ------------------------------------------------------------------------------------------------


def test_stopping_lets_calls_finish(proxy):
    async def scenario():
        one = proxy()
        async with one.running():
            busy = one.alive()[0]
            busy.calls = 3
            address = one.sockets[0].getsockname()
            socket.create_connection(address, timeout=5).close()
            one.supervisor.stop()
            assert not one.supervisor.ready()[0]
            await asyncio.sleep(20)
            assert busy.did == ["start", "drain"]
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address, timeout=5).close()
            busy.released.set()
            assert await one.task == 0
            assert busy.did == ["start", "drain", "aclose"]
            assert one.events()[-1].text == "stopped: no call was lost"

    run(scenario())


def test_calls_that_take_too_long_are_cut_off_and_the_exit_code_says_so(proxy):
    async def scenario():
        one = proxy(TEXT + "grace_s = 5.0\n")
        async with one.running():
            one.alive()[0].calls = 3
            began = one.clock()
            one.supervisor.stop()
            assert await one.task == 1
            assert one.clock() - began == pytest.approx(5.0, abs=0.5)
            assert one.events()[-1].fields == {"cut": 3}

    run(scenario())


def test_a_second_interrupt_ends_it_at_once(proxy):
    async def scenario():
        one = proxy()
        async with one.running():
            one.alive()[0].calls = 3
            await asyncio.sleep(1.5)
            one.supervisor._interrupted()
            await asyncio.sleep(2)
            assert not one.task.done()
            began = one.clock()
            one.supervisor._interrupted()
            assert await one.task == 1
            assert one.clock() - began < 0.1

    run(scenario())


def test_a_worker_that_does_not_finish_is_killed(proxy):
    """It answers nothing any more: its grace, and then a little."""

    async def scenario():
        one = proxy(TEXT + "grace_s = 5.0\n", workers=1)
        async with one.running():
            one.alive()[0].calls = 2
            await asyncio.sleep(1.5)

            async def never(*_):
                await asyncio.Event().wait()

            one.plan.servers[0].drain = one.plan.servers[0].aclose = never
            one.supervisor.stop()
            assert await one.task == 1
            assert one.plan.processes[0].code == -9

    run(scenario())


def test_stopping_while_workers_start(proxy):
    async def scenario():
        one = proxy()
        one.plan.go_on.clear()
        one.start()
        await one.until(lambda: len(one.plan.servers) == 2)
        one.supervisor.stop()
        assert await one.task == 0
        assert [process.code for process in one.plan.processes] == [-9, -9]

    run(scenario())


def test_a_worker_without_a_supervisor_finishes_and_ends(proxy):
    async def scenario():
        one = proxy(workers=1)
        async with one.running():
            server = one.alive()[0]
            server.calls = 1
            one.supervisor.pool.workers[0]._channel.close()  # as when its process is killed
            await one.until(lambda: "drain" in server.did)
            assert not one.plan.processes[0].task.done()
            server.released.set()
            await one.until(one.plan.processes[0].task.done)
            assert server.did == ["start", "drain", "aclose"]

    run(scenario())


# --- reloading -----------------------------------------------------------------------------------------------


def rewrite(one, old, new):
    text = one.file.read_text()
    assert old in text
    one.file.write_text(text.replace(old, new))


def test_a_file_that_changes_is_read_again(proxy):
    async def scenario():
        one = proxy()
        async with one.running():
            rewrite(one, '"a2:1"]', '"a2:1", "a3:1"]')
            await one.until(lambda: one.events("ConfigReloaded"), within_s=5)
            for server in one.alive():
                assert server.did == ["start", "reload"]
                assert [node.name for node in server.config.clusters[0].endpoints] == ["a1:1", "a2:1", "a3:1"]
            await asyncio.sleep(30)
            assert len(one.events("ConfigReloaded")) == 1
            await one.crash(one.plan.processes[0])
            assert len(one.plan.servers[2].config.clusters[0].endpoints) == 3, "later workers start with it"

    run(scenario())


def test_a_link_that_is_turned_is_a_change(proxy, tmp_path):
    """As Kubernetes does it: the path is a link to a link to a folder."""

    async def scenario():
        one = proxy()
        text = one.file.read_text()
        for name, objective in (("v1", "0.9"), ("v2", "0.8")):
            (tmp_path / name).mkdir()
            (tmp_path / name / "haclient.toml").write_text(text + f"objective = {objective}\n")
        (tmp_path / "data").symlink_to("v1")
        one.file.unlink()
        one.file.symlink_to("data/haclient.toml")
        async with one.running():
            assert one.supervisor.fleet().objective == 0.9
            (tmp_path / "new").symlink_to("v2")
            (tmp_path / "new").rename(tmp_path / "data")
            await one.until(lambda: one.events("ConfigReloaded"), within_s=5)
            assert one.supervisor.fleet().objective == 0.8

    run(scenario())


def test_a_wrong_file_changes_nothing_and_says_so(proxy):
    async def scenario():
        one = proxy()
        async with one.running():
            text = one.file.read_text()
            one.file.write_text(text + "grace_s = -1.0\nobjectiv = 1\n")
            await one.until(lambda: one.events("ConfigRejected"), within_s=5)
            (event,) = one.events("ConfigRejected")
            assert event.level == "error"
            assert "proxy.grace_s: must be greater than 0" in event.text
            assert "did you mean objective?" in event.text
            assert "\n" not in event.text
            assert all(server.did == ["start"] for server in one.alive())
            one.file.unlink()
            await one.until(lambda: len(one.events("ConfigRejected")) == 2, within_s=5)
            one.file.write_text(text + "objective = 0.5\n")
            await one.until(lambda: one.events("ConfigReloaded"), within_s=5)
            assert one.supervisor.fleet().objective == 0.5

    run(scenario())


def test_what_only_a_restart_changes_is_said(proxy):
    async def scenario():
        one = proxy()
        async with one.running():
            rewrite(one, "workers = 2", 'workers = 3\nadmin_token = "secret"')
            await one.supervisor.reload()
            (event,) = one.events("RestartNeeded")
            assert (event.level, event.fields) == ("warning", {"keys": ["admin_token", "workers"]})
            assert event.text == "only a restart of the proxy changes proxy.admin_token, proxy.workers"
            assert len(one.alive()) == 2
            assert all(server.did == ["start", "reload"] for server in one.alive()), "the rest is taken over"

    run(scenario())


def test_a_worker_that_cannot_take_a_configuration_says_why_and_goes_on(proxy):
    async def scenario():
        one = proxy(workers=1)
        async with one.running():
            one.plan.refuse_reload = "proxy.tls.cert_file: is gone"
            await one.supervisor.reload()
            (event,) = one.events("ConfigRejected")
            assert (event.fields["slot"], event.fields["reason"]) == (0, "proxy.tls.cert_file: is gone")
            assert one.supervisor.ready() == (True, "")

    run(scenario())


def test_what_changes_while_a_worker_starts_reaches_it(proxy):
    async def scenario():
        one = proxy(workers=2)
        async with one.running():
            one.plan.go_on.clear()
            one.plan.processes[0].die(-9)
            await one.until(lambda: len(one.plan.servers) == 3)
            rewrite(one, '"a2:1"]', '"a2:1", "a3:1"]')
            await one.supervisor.reload()
            await one.supervisor.drain("a1:1", drained=True)
            one.plan.go_on.set()
            await one.until(lambda: one.supervisor.pool.complete)
            late = one.plan.servers[2]
            assert late.did == ["start", "reload"]
            assert late.drained() == {"a1:1"}

    run(scenario())


# --- draining ------------------------------------------------------------------------------------------------


def test_draining_reaches_every_worker_and_those_to_come(proxy):
    async def scenario():
        one = proxy()
        async with one.running():
            await one.supervisor.drain("a1:1", drained=True)
            fleet = one.supervisor.fleet()
            assert fleet.drained == ["a1:1"]
            assert [endpoint.state for endpoint in fleet.clusters[0].endpoints] == ["drained", "up"]
            assert (fleet.up, fleet.endpoints) == (1, 2)
            await one.supervisor.pool.roll()
            assert [server.drained() for server in one.alive()] == [{"a1:1"}] * 2
            await one.supervisor.drain("a", drained=True)
            assert [server.drained() for server in one.alive()] == [{"a1:1", "a2:1"}] * 2
            await one.supervisor.drain("a2:1", drained=False)
            assert [server.drained() for server in one.alive()] == [{"a1:1"}] * 2
            await one.supervisor.drain("a1:1", drained=False)
            assert [server.drained() for server in one.alive()] == [set()] * 2
            assert [event.text for event in one.events("Undrained")] == [
                "a2:1 was put back into rotation by the operator",
                "a1:1 was put back into rotation by the operator",
            ]

    run(scenario())


def test_what_discovery_finds_in_a_drained_cluster_is_drained(proxy):
    async def scenario():
        one = proxy(workers=1)
        async with one.running():
            await one.supervisor.drain("a", drained=True)
            one.alive()[0].nodes[1].drained = False  # as a new endpoint is
            await asyncio.sleep(1.5)
            assert one.alive()[0].drained() == {"a1:1", "a2:1"}

    run(scenario())


def test_a_name_that_nothing_has(proxy):
    async def scenario():
        one = proxy()
        async with one.running():
            with pytest.raises(ConfigError) as caught:
                await one.supervisor.drain("a9", drained=True)
            assert str(caught.value) == "no endpoint or cluster is named 'a9'; there are: a (a1:1, a2:1)"
            assert one.supervisor.fleet().drained == []

    run(scenario())


# --- what it tells -------------------------------------------------------------------------------------------


def test_what_workers_see_is_an_event_and_a_storm_of_it_is_not(proxy):
    async def scenario():
        one = proxy()
        async with one.running():
            for _ in range(500):
                one.alive()[1].lose_endpoint()
            one.alive()[1].call("Unavailable", count=500)
            await asyncio.sleep(1)
            seen = one.events("EndpointChanged")
            assert 1 <= len(seen) <= 10
            assert (seen[0].worker, seen[0].level, seen[0].fields["after"]) == (1, "warning", "down")
            assert seen[0].text.startswith("EndpointChanged cluster=a endpoint=a1 ")
            assert len(one.events()) < 30

    run(scenario())


def test_followers_end_when_it_stops(proxy):
    async def scenario():
        one = proxy()
        async with one.running():

            async def follow():
                return [event.kind async for event in one.supervisor.events(0)]

            following = asyncio.create_task(follow())
            await asyncio.sleep(1)
            one.supervisor.stop()
            await one.task
            assert (await following)[-1] == "Stopped"

    run(scenario())


def test_the_report_of_the_fleet(proxy):
    async def scenario():
        one = proxy()
        async with one.running():
            for server, calls in zip(one.alive(), (3, 4), strict=True):
                server.connections, server.calls, server.memory_bytes, server.shed = 1, calls, 100, 5
                server.call(count=calls)
            await asyncio.sleep(2.5)
            fleet = one.supervisor.fleet()
            assert fleet.started == START
            assert [(w.slot, w.state, w.connections, w.calls, w.memory_bytes) for w in fleet.workers] == [
                (0, "serving", 1, 3, 100),
                (1, "serving", 1, 4, 100),
            ]
            assert (fleet.totals.ok, fleet.totals.shed) == (7, 10)
            assert fleet.burn[0].availability == pytest.approx(7 / 17)
            metrics = await one.supervisor.metrics()
            assert sample(metrics, "haclient_proxy_calls", worker="1") == 4
            assert sample(metrics, "haclient_proxy_shed_total") == 10
            assert sample(metrics, "haclient_endpoint_state", worker="0", endpoint="a1:1", state="up") == 1

    run(scenario())


def test_a_worker_that_does_not_answer_costs_a_scrape_no_counts(proxy):
    async def scenario():
        one = proxy(workers=1)
        async with one.running():
            one.alive()[0].call(count=4)
            assert sample(await one.supervisor.metrics(), "haclient_calls_total", outcome="ok") == 4

            def fail():
                raise RuntimeError("out of order")

            one.alive()[0].view = fail
            assert sample(await one.supervisor.metrics(), "haclient_calls_total", outcome="ok") == 4

    run(scenario())
