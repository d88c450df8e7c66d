"""What one connection allows its peer: sizes, windows, and rates of frames that do no work.

Decision made here: limits are one frozen value shared by client and server, and every flood is met by the same
token bucket on the loop's clock, so a burst is fine and a stream of it is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

from haclient.errors import ConfigError
from haclient.wire import frames


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one connection."""

    #: Largest message taken from the peer; a larger one fails its call.
    max_message_bytes: int = 256 * 2**20
    #: Receive window of each stream: the most that waits here for a slow reader of a streaming call.
    stream_window_bytes: int = 4 * 2**20
    #: Receive window of the connection as a whole.
    connection_window_bytes: int = 64 * 2**20
    #: Largest frame taken (RFC 9113 section 6.5.2 allows 16 KiB to 16 MiB).
    max_frame_bytes: int = 64 * 2**10
    #: Largest decoded header list; a longer one ends the connection (HPACK bomb).
    max_header_list_bytes: int = 64 * 2**10
    #: Largest encoded header block over all its CONTINUATION frames, and most of those.
    max_header_block_bytes: int = 64 * 2**10
    max_continuations: int = 64
    #: PING and SETTINGS frames, which each cost an answer: burst, and how many a second refill it.
    answers_burst: int = 1_000
    answers_per_s: float = 100.0
    #: Frames that do nothing (empty DATA, PRIORITY, unknown types).
    idle_frames_burst: int = 10_000
    idle_frames_per_s: float = 1_000.0
    #: Streams that the peer opens and resets before they are answered (rapid reset, CVE-2023-44487); server side.
    resets_burst: int = 500
    resets_per_s: float = 100.0
    #: Streams the peer may have open at once; server side.
    max_concurrent_streams: int = 1_000

    def __post_init__(self) -> None:
        """Check every limit against the protocol's own."""
        ranges = {
            "max_message_bytes": (1, 2**32 - 1),
            "stream_window_bytes": (frames.DEFAULT_WINDOW, frames.MAX_WINDOW),
            "connection_window_bytes": (frames.DEFAULT_WINDOW, frames.MAX_WINDOW),
            "max_frame_bytes": (frames.DEFAULT_MAX_FRAME_SIZE, frames.LARGEST_MAX_FRAME_SIZE),
            "max_header_list_bytes": (1_024, 2**24),
            "max_header_block_bytes": (1_024, 2**24),
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} = {getattr(self, name)} is not between {low} and {high}")


DEFAULT_LIMITS: Final = Limits()


@final
class Budget:
    """A token bucket: ``burst`` tokens, refilled at ``per_s``."""

    __slots__ = ("_burst", "_per_s", "_then", "_tokens")

    def __init__(self, burst: float, per_s: float, now: float) -> None:
        self._burst = burst
        self._per_s = per_s
        self._tokens = burst
        self._then = now

    def spend(self, now: float) -> bool:
        """Take one token; False if there is none."""
        tokens = min(self._burst, self._tokens + (now - self._then) * self._per_s)
        self._then = now
        if tokens < 1:
            self._tokens = tokens
            return False
        self._tokens = tokens - 1
        return True
