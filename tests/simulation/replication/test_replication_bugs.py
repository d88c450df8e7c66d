"""Every planted bug is found, by an invariant that is meant to find it."""

from __future__ import annotations

import pytest

from tests.simulation.replication.bugs import BUGS, hunt

MOST_SEEDS = 1500


@pytest.mark.parametrize("name", BUGS)
def test_the_simulation_finds(name: str) -> None:
    assert hunt(name, MOST_SEEDS), f"{name} was not found within {MOST_SEEDS} seeds"
