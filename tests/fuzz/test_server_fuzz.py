"""The quick part of `tests.fuzz.server`; HACLIENT_FUZZ_FRAMES asks for more."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fuzz import server

SEED = int(os.environ.get("HACLIENT_FUZZ_SEED", "7"))


@pytest.mark.timeout(1_800)
def test_malformed_frames():
    count = int(os.environ.get("HACLIENT_FUZZ_FRAMES", "40000"))
    stats = server.fuzz(count, SEED)
    assert stats["frames"] >= count
    assert stats["calls"] > count / 100
    assert stats["ended PROTOCOL_ERROR"] > 0
    assert stats["ended ENHANCE_YOUR_CALM"] > 0
    assert stats["ended open"] > 0


def test_valid_sequences_mean_the_same_to_h2():
    server.differential(200, SEED)


def test_random_requests_to_every_method():
    stats = server.requests(4_000, SEED)
    assert stats["requests"] >= 4_000
    assert stats["grpc-status 0"] > 0
