"""What the simulation has found, each as the smallest history that shows it; chance is left to a few seeds."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from haclient.config.replication import Replication
from tests.simulation.replication import requests
from tests.simulation.replication.reads import BOUNDED, SESSION, Read
from tests.simulation.replication.run import play
from tests.simulation.replication.scenario import FAR, OWN, SETTINGS, Fault, Operation, Scenario, prologue

SEEDS = range(12)


def upsert(number: int, keys: Sequence[int], ack: str = "log", timeout_s: float = 8.0) -> Operation:
    versions = tuple(100_000 + number * 10 + i for i in range(len(keys)))
    message = requests.rows("Upsert", OWN, keys, versions)
    return Operation(number, "rows", "Upsert", message, OWN, versions=versions, ack=ack, timeout_s=timeout_s)


def drop(number: int, ack: str = "log") -> Operation:
    message = requests.about("DropCollection", OWN)
    return Operation(number, "ddl", "DropCollection", message, OWN, ack=ack, timeout_s=8.0)


def alias(number: int) -> Operation:
    return Operation(number, "ddl", "CreateAlias", requests.alias("CreateAlias", "other", OWN), timeout_s=8.0)


def history(
    seed: int,
    calls: Sequence[tuple[float, int, Operation]],
    faults: Sequence[Fault],
    clusters: int = 2,
    processes: int = 2,
    *,
    one_host: bool = False,
) -> Scenario:
    """Two processes; calls are (when, in which process, what), counted from when the collections are there."""
    settings: Replication = SETTINGS["one"]
    scenario = Scenario(seed, clusters, processes, settings, text_key=False, safe="", early=False, one_host=one_host)
    prologue(scenario)
    scenario.operations += calls
    scenario.faults = list(faults)
    return scenario


def overtaken(seed: int, *faults: Fault, processes: int = 2, one_host: bool = False) -> Scenario:
    """A cluster stops with the first of three writes in its hands; both processes know the collection by then."""
    calls = [(0.0, 0, upsert(8, [5])), (0.0, 1, upsert(9, [6]))]
    calls += [(0.102, 0, upsert(10, [1, 2])), (0.11, 1, upsert(11, [1, 2])), (0.12, 1, upsert(12, [2, 3]))]
    faults = (Fault(0.1, "stop", "A", 0.5 + 0.01 * (seed % 8)), *faults)
    return history(seed, calls, faults, processes=processes, one_host=one_host)


@pytest.mark.parametrize("seed", range(24))
def test_a_request_of_a_stopped_process_does_not_undo_what_its_successor_applied(seed: int) -> None:
    assert not play(overtaken(seed, Fault(0.13, "stop process", 0, 2.0))).violations


@pytest.mark.parametrize("seed", range(24))
def test_a_request_of_a_process_that_is_known_to_be_dead_does_not_undo_what_its_successor_applied(seed: int) -> None:
    dies = Fault(0.13, "die", 0, 2.0)
    assert not play(overtaken(seed, dies, one_host=True)).violations


@pytest.mark.parametrize("seed", range(24))
def test_a_dead_process_does_not_take_the_requests_of_a_stopped_one_with_it(seed: int) -> None:
    """The second one dies while the cluster comes to rest from the first one's requests."""
    faults = [Fault(0.13, "stop process", 0, 2.0), Fault(0.64 + 0.02 * (seed % 12), "die", 1, 2.0)]
    assert not play(overtaken(seed, *faults, processes=3, one_host=True)).violations


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("what", ["die", "stop process"])
def test_a_write_that_one_cluster_must_have_does_not_wait_for_the_successor(seed: int, what: str) -> None:
    """Each process applies to a cluster by then, so the death of one leaves the other's."""
    calls = [(2.0, 0, upsert(8, [5])), (2.0, 1, upsert(9, [6])), (2.3, 1, upsert(10, [1], "one", 0.1))]
    result = play(history(seed, calls, [Fault(2.2, what, 0, 3.0)]))
    assert not result.violations
    assert result.outcomes.get("ok", 0) == 9


@pytest.mark.parametrize("seed", SEEDS)
def test_the_successor_of_a_process_that_is_known_to_be_dead_waits_for_no_lease(seed: int) -> None:
    calls = [(2.0, 0, upsert(8, [5])), (2.0, 1, upsert(9, [6])), (2.21, 1, upsert(10, [1], "all", 0.35))]
    result = play(history(seed, calls, [Fault(2.2, "die", 0, 3.0)], one_host=True))
    assert not result.violations
    assert result.outcomes.get("ok", 0) == 9


@pytest.mark.parametrize("seed", range(24))
def test_a_process_that_closes_while_a_cluster_comes_to_rest_leaves_the_waiting_to_its_successor(seed: int) -> None:
    assert not play(overtaken(seed, Fault(0.64 + 0.04 * (seed % 12), "close", 0, 0.3))).violations


@pytest.mark.parametrize("seed", SEEDS)
def test_the_last_of_those_who_refuse_an_entry_is_not_parked(seed: int) -> None:
    faults = [Fault(0.15, "arm", "A", 0.0), Fault(0.2, "log slow", None, 0.5)]
    calls = [(0.0, 0, alias(10)), (0.16, 0, drop(11, "all")), (0.17, 1, upsert(12, [1], "all"))]
    assert not play(history(seed, calls, faults, clusters=3)).violations


@pytest.mark.parametrize("seed", SEEDS)
def test_what_every_cluster_refuses_is_not_told_as_done(seed: int) -> None:
    calls = [(0.0, 0, drop(10)), *((0.0, i % 2, upsert(11 + i, [i], "one")) for i in range(5))]
    assert not play(history(seed, calls, [])).violations


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_appended_while_the_log_fails_is_applied(seed: int) -> None:
    calls = [(0.005 * i, 0, upsert(10 + i, [i], "log", 1.0)) for i in range(8)]
    faults = [Fault(0.002 * seed, "log lost", None, 0.03)]
    assert not play(history(seed, calls, faults)).violations


@pytest.mark.parametrize("seed", SEEDS)
def test_a_process_ends_though_its_leases_are_lost_meanwhile(seed: int) -> None:
    faults = [Fault(0.05, "log down", 0, 0.6), Fault(0.3 + 0.02 * seed, "close", 0, 0.2)]
    assert not play(history(seed, [(0.0, 0, upsert(10, [1]))], faults)).violations


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cluster_that_hangs_does_not_hold_up_a_write_that_another_one_can_take(seed: int) -> None:
    scenario = history(seed, [(0.05, 0, upsert(10, [1], "one", 4.0))], [Fault(0.0, "stop", "A", 6.0)])
    # Whoever writes knows nothing of the collection any more.
    message = requests.about("ReleaseCollection", OWN)
    scenario.operations.append((0.0, 0, Operation(9, "ddl", "ReleaseCollection", message, OWN, ack="one")))
    result = play(scenario)
    assert not result.violations
    assert result.outcomes.get("ok", 0) == 8


@pytest.mark.parametrize("seed", range(24))
def test_marks_that_were_made_and_not_loaded_keep_nobody_from_a_cluster_of_several_sites(seed: int) -> None:
    """The only process dies while it makes the collection of marks."""
    calls = [(0.0, 0, upsert(9, [1])), (3.0, 0, upsert(10, [1]))]
    scenario = history(seed, calls, [Fault(2.004 + 0.002 * seed, "die", 0, 0.5)], processes=1)
    scenario.far = scenario.early = True
    assert not play(scenario).violations


@pytest.mark.parametrize("seed", SEEDS)
def test_a_write_to_all_is_not_acknowledged_while_all_are_drained(seed: int) -> None:
    drained = [Fault(0.1, "drain", name, 1.5) for name in "AB"]
    calls = [(0.0, 0, upsert(8, [5])), (0.0, 1, upsert(9, [6])), (0.3, seed % 2, upsert(10, [1], "all", 0.5))]
    result = play(history(seed, calls, drained))
    assert not result.violations
    assert result.outcomes["unknown"] == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_a_session_does_not_go_back_behind_what_its_cluster_has_shown_too_early(seed: int) -> None:
    """What the cluster has shown it has not confirmed, so nobody knows its timestamp."""
    mute = [Fault(0.09, "mute", "A", 0.1), Fault(0.09, "drain", "B", 2.0)]
    scenario = history(seed, [(0.0, 0, upsert(9, [2])), (0.1, 0, upsert(10, [1]))], mute, processes=1)
    scenario.reads = [(0.2, 0, Read(BOUNDED, OWN, 1, 1.0))]
    scenario.reads += [(0.3 + 0.02 * i, 0, Read(SESSION, OWN, 1, 1.0)) for i in range(6)]
    assert not play(scenario).violations


@pytest.mark.parametrize("seed", SEEDS)
def test_a_failover_to_a_cluster_that_has_stopped_holds_up_the_others_until_it_is_mended(seed: int) -> None:
    calls = [(0.1, 0, upsert(10, [1])), (0.2, 0, upsert(11, [1])), (0.3, 1, upsert(12, [2]))]
    scenario = history(seed, calls, [Fault(0.15, "drain", "A", 1.0)])
    scenario.curses = [(calls[0][2], FAR, "refuses")]
    scenario.far, scenario.failovers = True, [(0.4, (FAR,))]
    assert not play(scenario).violations


@pytest.mark.parametrize("seed", SEEDS)
def test_who_has_not_heard_of_a_failover_acknowledges_by_what_counted_before(seed: int) -> None:
    calls = [(0.3 + 0.005 * i, i % 2, upsert(10 + i, [i], "quorum")) for i in range(8)]
    scenario = history(seed, calls, [Fault(0.2, "log slow", None, 0.2)])
    scenario.far, scenario.failovers = True, [(0.3, (FAR,))]
    assert not play(scenario).violations
