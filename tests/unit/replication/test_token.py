"""A place in the log in the shape of a timestamp."""

import pytest

from haclient.replication.token import seq_of, token

REAL = 460_000_000_000_000_000


@pytest.mark.parametrize("seq", [1, 2, 77, (1 << 61) + 5])
def test_there_and_back(seq):
    assert seq_of(token(seq)) == seq
    assert token(seq) < 1 << 63, "it is an int64 to some SDKs"


def test_their_order_is_the_logs():
    tokens = [token(seq) for seq in (1, 9, 10, 1 << 40)]
    assert tokens == sorted(tokens)
    assert max(tokens[0], REAL) == tokens[0], "SDKs keep the highest: a token beats what was known before"


@pytest.mark.parametrize("timestamp", [0, 1, 2, 3, REAL, (1 << 62) - 1, 1 << 63, (1 << 64) - 1])
def test_a_timestamp_is_no_token(timestamp):
    assert seq_of(timestamp) == 0
