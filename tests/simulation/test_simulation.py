"""Many histories, each with every invariant; the long run is ``python -m tests.simulation --seeds 100000``."""

from __future__ import annotations

import pytest

from tests.simulation.run import run_seed

SEEDS = 2000
CHUNK = 100


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_every_invariant_holds(first: int) -> None:
    for seed in range(first, first + CHUNK):
        violations = run_seed(seed).violations
        assert not violations, f"python -m tests.simulation --seed {seed}\n" + "\n".join(map(str, violations[:5]))


def test_a_seed_replays_exactly() -> None:
    forwards = [run_seed(seed).digest for seed in range(40)]
    backwards = [run_seed(seed).digest for seed in reversed(range(40))]
    assert forwards == backwards[::-1]
    assert len(set(forwards)) == 40
