"""The quick part of `tests.fuzz.frames`; HACLIENT_FUZZ_FRAMES asks for more."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fuzz import frames


@pytest.mark.timeout(1_800)
def test_malformed_frames():
    count = int(os.environ.get("HACLIENT_FUZZ_FRAMES", "100000"))
    stats = frames.fuzz(count, int(os.environ.get("HACLIENT_FUZZ_SEED", "7")))
    assert stats["frames"] >= count
    assert stats["ended PROTOCOL_ERROR"] > 0
    assert stats["ended open"] > 0


def test_valid_sequences_mean_the_same_to_h2():
    frames.differential(200, 7)
