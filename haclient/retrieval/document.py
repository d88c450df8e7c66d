"""What a retrieval returns: documents, and where they came from.

Decision made here: the answer always says how it was come by. `Documents` is a plain sequence, so code that wants
documents only never meets the rest; code that cares looks at `source`, `rung` and `freshness`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final, overload


class Document(NamedTuple):
    """One passage.

    Attributes:
        id: Its primary key.
        text: The text field.
        score: How well it fits the question; higher is better whatever the metric (see `haclient.retrieval.score`).
        metadata: Every other output field, the dynamic ones flattened.
    """

    id: int | str
    text: str
    score: float
    metadata: Mapping[str, Any]


class Rung(enum.Enum):
    """How far down the ladder an answer was found; the order is that of the members."""

    #: The endpoint asked first answered.
    FIRST = "first"
    #: A hedge, sent because the first took long, answered first.
    HEDGE = "hedge"
    #: Another endpoint answered after the first had failed.
    FAILOVER = "failover"
    #: Nobody could answer with the consistency asked for; with a weaker one somebody could.
    RELAXED = "relaxed"
    #: Nobody could answer; this is what was answered before.
    CACHED = "cached"


@final
@dataclass(frozen=True, slots=True)
class Freshness:
    """How old an answer may be.

    Attributes:
        consistency: The level it was read with (``Strong``, ``Bounded``, ``Session``, ``Eventually``).
        age_s: How long ago the servers gave this answer, seconds; 0 for one given now.
        stale: It was not given now, or with less than the consistency asked for.
    """

    consistency: str
    age_s: float = 0.0
    stale: bool = False


@final
class Documents(Sequence[Document]):
    """The documents found for one question, best first.

    Attributes:
        source: ``cluster/endpoint`` that answered.
        rung: How far down the ladder the answer was found.
        freshness: How old it may be.
        similarity: Cosine of the question asked and the one answered: 1 unless a near-duplicate was found in the cache.
    """

    __slots__ = ("_documents", "freshness", "rung", "similarity", "source")

    def __init__(
        self,
        documents: Sequence[Document],
        *,
        source: str,
        rung: Rung = Rung.FIRST,
        freshness: Freshness,
        similarity: float = 1.0,
    ) -> None:
        self._documents = documents
        self.source = source
        self.rung = rung
        self.freshness = freshness
        self.similarity = similarity

    def __len__(self) -> int:
        return len(self._documents)

    @overload
    def __getitem__(self, index: int) -> Document: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Document]: ...

    def __getitem__(self, index: int | slice) -> Document | Sequence[Document]:
        return self._documents[index]

    def __iter__(self) -> Iterator[Document]:
        return iter(self._documents)

    def __repr__(self) -> str:
        stale = ", stale" if self.freshness.stale else ""
        return f"<{len(self)} documents from {self.source} ({self.rung.value}{stale})>"
