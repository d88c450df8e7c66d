"""Which endpoint takes the next attempt.

Decision made here: eligibility is computed seldom and cached, choosing is done often and is cheap. Nodes are
sorted into tiers (see `_tier`) when something changes; a pick takes the first tier that has an untried node
and uses the power of two choices inside it (Mitzenmacher 2001) over peak-EWMA latency times calls in flight.
Its cost does not grow with the fleet.

Tiers never exclude: a node whose breaker is open stands in the last tier, so when everything is down reads
still try something (panic mode), and no cached state can fail a call for ever. There what is merely slow goes first.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import final

from haclient.call import Call
from haclient.fleet import breaker
from haclient.fleet.breaker import REFUSED
from haclient.fleet.node import Key, Node

_GOOD, _RECOVERING, _UNREADY, _BROKEN = range(4)
_MOST_KEYS = 1024

Tier = tuple[int, bool, int, bool]
Tiers = tuple[tuple[Node, ...], ...]


@final
class _Entry:
    """Cached tiers of one collection."""

    __slots__ = ("expires", "tiers", "used_at")

    def __init__(self) -> None:
        self.tiers: Tiers = ()
        self.expires = float("-inf")
        self.used_at = 0.0


@final
class Balancer:
    """Picks endpoints.

    Args:
        nodes: Every node of the fleet, now.
        zone: The zone this process runs in, "" for no preference; call `changed` after setting it anew.
        clock: Loop time in seconds.
        rng: Source of randomness.
    """

    def __init__(
        self, nodes: Callable[[], Iterable[Node]], zone: str, clock: Callable[[], float], rng: random.Random
    ) -> None:
        self._nodes = nodes
        self.zone = zone
        self._clock = clock
        self._random = rng.random
        self._entries: dict[Key, _Entry] = {}

    def changed(self) -> None:
        """Forget cached tiers: some node's eligibility has changed."""
        for entry in self._entries.values():
            entry.expires = float("-inf")

    def collections(self, since: float) -> list[Key]:
        """Return the collections asked for since a moment of loop time."""
        return [key for key, entry in self._entries.items() if key[1] and entry.used_at >= since]

    def pick(self, call: Call, tried: Iterable[Node] = ()) -> tuple[Node, int] | None:
        """Choose a node for the call's next attempt and take its permit.

        Nodes already tried come last: never the same one again while another is left.

        Returns:
            The node and the permit of its gate (`REFUSED` if it was chosen although its gate is shut,
            because nothing better is left), or None if no node may take the call at all.
        """
        now = self._clock()
        tiers = self._tiers((call.database, call.collection), now)
        if call.pin is not None:
            tiers = tuple(tuple(n for n in tier if n.cluster.name == call.pin) for tier in tiers)
        if call.behind:
            tiers = tuple(tuple(n for n in tier if n.cluster.name not in call.behind) for tier in tiers)
        for tier in tiers:
            left = tuple(node for node in tier if node not in tried) if tried else tier
            while left:
                node = self._choose(left, now)
                permit = node.gate.try_acquire()
                if permit != REFUSED:
                    return node, permit
                if node.gate.state == breaker.OPEN:
                    break  # so are the others of its tier
                left = tuple(other for other in left if other is not node)
        return self._last_resort(tiers, tried, now)

    def _last_resort(self, tiers: Tiers, tried: Iterable[Node], now: float) -> tuple[Node, int] | None:
        """Take a node whose gate is shut, or one tried already, rather than none."""
        for avoid in (tried, ()):
            for tier in tiers:
                left = tuple(node for node in tier if node not in avoid)
                if left:
                    node = self._choose(tuple(n for n in left if n.gate.slow) or left, now)
                    return node, node.gate.try_acquire()
            if not avoid:
                break
        return None

    def _choose(self, tier: tuple[Node, ...], now: float) -> Node:
        count = len(tier)
        if count == 1:
            return tier[0]
        if count == 2:
            first, second = tier
            if self._random() < 0.5:
                first, second = second, first
        else:
            i = int(self._random() * count)
            j = int(self._random() * (count - 1))
            first, second = tier[i], tier[j if j < i else j + 1]
        return first if first.load(now) <= second.load(now) else second

    def _tiers(self, key: Key, now: float) -> Tiers:
        entry = self._entries.get(key)
        if entry is None:
            if len(self._entries) >= _MOST_KEYS:
                del self._entries[min(self._entries, key=lambda k: self._entries[k].used_at)]
            entry = self._entries[key] = _Entry()
        entry.used_at = now
        if now >= entry.expires:
            entry.tiers, entry.expires = self._sort(key, now)
        return entry.tiers

    def _sort(self, key: Key, now: float) -> tuple[Tiers, float]:
        groups: dict[Tier, list[Node]] = {}
        expires = float("inf")
        for node in self._nodes():
            if node.drained or node.refused:
                continue
            groups.setdefault(self._tier(node, key, now), []).append(node)
            for moment in (node.preferred_at, node.cluster.blocked_until):
                if now < moment < expires:
                    expires = moment
        return tuple(tuple(groups[tier]) for tier in sorted(groups)), expires

    def _tier(self, node: Node, key: Key, now: float) -> Tier:
        """Rank a node: health first, then whether it follows others, the configured priority, the zone."""
        if node.gate.state == breaker.OPEN:
            health = _BROKEN
        elif node.denied or node.ready.get(key) is False:
            health = _UNREADY
        elif (
            not node.found
            or node.gate.state == breaker.HALF_OPEN
            or now < max(node.preferred_at, node.cluster.blocked_until)
        ):
            health = _RECOVERING
        else:
            health = _GOOD
        cluster = node.cluster
        return health, cluster.follows, cluster.priority, bool(self.zone) and cluster.zone != self.zone
