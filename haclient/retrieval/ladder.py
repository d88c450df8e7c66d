"""What a retriever does when a question cannot be answered as asked.

    hedge, failover   the core's: another endpoint, another cluster, in milliseconds
    relaxed           the same question with less consistency, if the user allows that
    cached            an answer given before, marked stale, if the user allows that
    error             everything that was tried

Decision made here: what a rung allows the user has said beforehand, and the answer says which rung it is from. A
question that is itself wrong never goes down the ladder: the answer would be as wrong on every rung.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import final

from haclient.call import Call, Reply
from haclient.core import winner
from haclient.errors import CallError, ConfigError, DeadlineExceeded, EmbeddingError, Overloaded, Unavailable
from haclient.events import Degraded, EventBus
from haclient.milvus.vectors import LEVELS
from haclient.retrieval.cache import AnswerCache
from haclient.retrieval.document import Documents, Freshness, Rung
from haclient.retrieval.layout import Answers, refusal
from haclient.retrieval.plan import Plan, Questions

#: What less consistency may make good.
OUTAGES = (Unavailable, DeadlineExceeded)
#: What an answer given before may make good; everything else is the question's own fault.
FAILURES = (*OUTAGES, EmbeddingError, Overloaded)


@final
@dataclass(frozen=True, slots=True)
class Relax:
    """Permission to answer with less consistency than asked for.

    Attributes:
        after_s: How long the consistency asked for is insisted on, seconds.
        level: What is asked for then.
    """

    after_s: float = 1.0
    level: str = "Eventually"

    def __post_init__(self) -> None:
        if self.after_s <= 0:
            raise ConfigError(f"Relax: after_s must be above 0, got {self.after_s}")
        if self.level not in LEVELS:
            raise ConfigError(f"Relax: level must be one of {', '.join(LEVELS)}, got {self.level!r}")


@final
class Ladder:
    """Climbs down until there is an answer.

    Args:
        collection: For events and errors.
        relax: Whether and when to ask for less consistency.
        cache: Answers to fall back on.
        clock: Seconds; only goes forward.
        bus: Takes events.
    """

    def __init__(
        self,
        collection: str,
        relax: Relax | None,
        cache: AnswerCache | None,
        clock: Callable[[], float],
        bus: EventBus,
    ) -> None:
        self._collection = collection
        self._relax = relax
        self._cache = cache
        self._clock = clock
        self._bus = bus

    async def climb(
        self, plan: Plan, questions: Questions, answer: Answers, *, last_write: int, deadline: float
    ) -> list[Documents]:
        """Answer questions that have been embedded, as well as can be done now.

        Args:
            plan: How.
            questions: What.
            answer: The core.
            last_write: See `Plan.request`.
            deadline: When, by the clock.

        Raises:
            CallError: Nobody could answer, on no rung.
            BadQuery: The servers refuse the question itself.
        """
        asked = plan.options.consistency
        level = asked or plan.layout.level
        relax = self._relax if level != "Eventually" else None
        allowed = deadline - self._clock()
        try:
            message, facts = plan.request(questions, asked, last_write)
            timeout_s = allowed if relax is None else min(allowed, relax.after_s)
            reply, call = await answer(plan.method, message, plan.metadata, timeout_s, facts)
            return _read(plan, questions, reply, call, _fresh(level))
        except OUTAGES as error:
            if relax is None or relax.level == level or deadline <= self._clock():
                raise
            self._tell(Rung.RELAXED, error)
        message, facts = plan.request(questions, relax.level, last_write)
        reply, call = await answer(plan.method, message, plan.metadata, deadline - self._clock(), facts)
        return _read(plan, questions, reply, call, Freshness(relax.level, stale=True))

    def keep(self, plan: Plan, questions: Questions, keys: Sequence[Hashable], answers: Sequence[Documents]) -> None:
        """Remember fresh answers; an empty one is not worth falling back on."""
        if self._cache is None:
            return
        now = self._clock()
        for i, documents in enumerate(answers):
            if documents and not documents.freshness.stale:
                vector = questions.dense[i] if questions.dense is not None else None
                self._cache.keep(self._scope(plan), keys[i], vector, documents, now)

    def recall(
        self, plan: Plan, questions: Questions | None, keys: Sequence[Hashable], error: Exception
    ) -> list[Documents]:
        """Return what was answered before to the same questions, or to ones very much like them.

        Args:
            plan: How they were asked.
            questions: None if they could not be embedded: then only the very same ones are found.
            keys: The questions themselves.
            error: Why this is wanted.

        Raises:
            Exception: ``error``, unless every question has an answer.
        """
        if self._cache is None:
            raise error
        now, found = self._clock(), []
        for i, key in enumerate(keys):
            dense = questions.dense if questions is not None else None
            documents = self._cache.find(self._scope(plan), key, dense[i] if dense is not None else None, now)
            if documents is None:
                raise error
            found.append(documents)
        self._tell(Rung.CACHED, error)
        return found

    def _scope(self, plan: Plan) -> Hashable:
        return self._collection, plan.options

    def _tell(self, rung: Rung, error: Exception) -> None:
        reason = error.summary if isinstance(error, CallError) else str(error)
        self._bus.emit(Degraded(at=self._clock(), collection=self._collection, rung=rung.value, reason=reason))


@lru_cache
def _fresh(level: str) -> Freshness:
    return Freshness(level)


def _read(plan: Plan, questions: Questions, reply: Reply, call: Call, freshness: Freshness) -> list[Documents]:
    attempt = winner(call)
    if attempt is None:
        raise refusal(call, reply)
    if freshness.stale:
        rung = Rung.RELAXED
    elif attempt is call.attempts[0]:
        rung = Rung.FIRST
    else:
        rung = Rung.HEDGE if attempt.hedge else Rung.FAILOVER
    source = f"{attempt.cluster}/{attempt.endpoint}"
    try:
        found = plan.documents(reply.message, questions)
    except ValueError as error:
        what = f"{call.method.name} {call.collection}"
        raise Unavailable(f"{what}: the answer cannot be read: {error}", call.attempts) from error
    return [Documents(one, source=source, rung=rung, freshness=freshness) for one in found]
