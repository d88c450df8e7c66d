"""Session tokens: a place in the log, in the shape of a Milvus timestamp.

Decision made here: the token *is* the timestamp of a write's answer. Every Milvus SDK remembers the newest timestamp of
its writes to a collection and sends it back as the guarantee timestamp of its Session reads, so a session travels
through any proxy, process and language without anybody knowing of it. Bit 62 tells a token from a real timestamp
(milliseconds << 18 stay below it until the year 2527), and the order of tokens is the order of the log.
"""

from __future__ import annotations

from haclient.milvus.timestamps import TOKEN


def token(seq: int) -> int:
    """Make the token of a place in the log."""
    return TOKEN | seq


def seq_of(timestamp: int) -> int:
    """Return the place in the log that a timestamp stands for; 0 if it is no token."""
    return timestamp ^ TOKEN if TOKEN <= timestamp < 2 * TOKEN else 0
