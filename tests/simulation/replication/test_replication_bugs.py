"""Every planted bug is found, by an invariant that is meant to find it."""

from __future__ import annotations

import pytest

from tests.simulation.replication.bugs import BUGS, hunt

MOST_SEEDS = 1500
#: Seeds that found what is seldom found, to begin with. When seeds come to mean something else this takes longer.
LAST_FOUND = {
    "two_processes_make_the_same_keys": 1032,
    "does_not_ask_what_a_cluster_that_is_away_has_begun": 458,
    "takes_a_stopped_process_for_a_dead_one": 363,
    "forgets_what_a_session_has_seen": 203,
    "does_not_ask_the_log_where_it_ends": 135,
    "answers_before_it_looks_whether_it_was_refused": 95,
    "comes_back_without_asking_what_is_void": 86,
    "does_not_wait_at_a_barrier": 68,
    "takes_every_cluster_for_fresh": 66,
    "does_not_look_again_after_the_log_failed": 62,
}


@pytest.mark.parametrize("name", BUGS)
def test_the_simulation_finds(name: str) -> None:
    seeds = [*range(LAST_FOUND.get(name, 0), MOST_SEEDS), *range(LAST_FOUND.get(name, 0))]
    assert hunt(name, seeds), f"{name} was not found within {MOST_SEEDS} seeds"
