"""Many histories of replicated writes; the long run is ``python -m tests.simulation.replication --seeds 100000``."""

from __future__ import annotations

import pytest

from tests.simulation.replication.run import run_seed

SEEDS = 240
CHUNK = 40


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_every_invariant_holds(first: int) -> None:
    for seed in range(first, first + CHUNK):
        violations = run_seed(seed).violations
        text = "\n".join(map(str, violations[:5]))
        assert not violations, f"python -m tests.simulation.replication --seed {seed}\n{text}"


def test_a_seed_replays_exactly() -> None:
    forwards = [run_seed(seed).digest for seed in range(12)]
    backwards = [run_seed(seed).digest for seed in reversed(range(12))]
    assert forwards == backwards[::-1]
    assert len(set(forwards)) == 12


def test_the_histories_are_worth_it() -> None:
    """Most writes succeed, and all the ways in which one can fail occur."""
    outcomes: dict[str, int] = {}
    for seed in range(1000, 1030):
        for outcome, times in run_seed(seed).outcomes.items():
            outcomes[outcome] = outcomes.get(outcome, 0) + times
    assert set(outcomes) == {"ok", "refused", "failed", "unknown"}
    assert 0.6 < outcomes["ok"] / sum(outcomes.values()) < 0.95
