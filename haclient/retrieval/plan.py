"""From questions to one request, and from its answer to documents.

Decision made here: a plan is made once per set of options. It holds the bytes of the request that do not change, so a
question costs its vector and a few joins; its documents are made when they are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, final, overload

import numpy as np

from haclient.call import Metadata
from haclient.errors import BadQuery
from haclient.milvus import vectors
from haclient.milvus.hits import SearchAnswer
from haclient.milvus.methods import named
from haclient.milvus.requests import Facts, inspect
from haclient.milvus.timestamps import SPECIAL
from haclient.milvus.vectors import Leg, SparseRow, Target
from haclient.retrieval.document import Document
from haclient.retrieval.embed.embedder import Vectors
from haclient.retrieval.layout import Layout
from haclient.retrieval.options import Options
from haclient.retrieval.score import higher_is_better, most_diverse

SEARCH, HYBRID = named("Search"), named("HybridSearch")


class SparseEmbedder(Protocol):
    """Turns texts into sparse vectors, for a sparse field that the server does not compute itself."""

    async def embed_sparse(self, texts: Sequence[str]) -> Sequence[SparseRow]:
        """Return one mapping from index to weight per text."""
        ...


@final
class Questions:
    """Questions of one request, with all that the plan needs of them.

    Attributes:
        texts: The texts; "" for a question that was given as a vector.
        dense: Their vectors, shape ``[count, dimension]``; None if no dense search is made.
        sparse: Their sparse vectors; None if the server makes them, or no sparse search is made.
    """

    __slots__ = ("dense", "sparse", "texts")

    def __init__(self, texts: Sequence[str], dense: Vectors | None, sparse: Sequence[SparseRow] | None) -> None:
        self.texts = texts
        self.dense = dense
        self.sparse = sparse

    def __len__(self) -> int:
        return len(self.texts)


@final
class Plan:
    """How questions with the same options are sent and read.

    Args:
        collection: Collection or alias.
        database: "" for the default one.
        layout: The collection's.
        options: The questions'.
        text_field: Field that holds the passage.
        search_params: Parameters of the dense search.

    Raises:
        BadQuery: The collection does not have what the options ask for.
    """

    def __init__(
        self,
        collection: str,
        database: str,
        layout: Layout,
        options: Options,
        text_field: str,
        search_params: Mapping[str, Any],
    ) -> None:
        self.options = options
        self.text_field = text_field
        self.metadata: Metadata = (("dbname", database),) if database else ()
        self.method = HYBRID if options.mode == "hybrid" else SEARCH
        self.needs_dense = options.mode != "sparse" or options.mmr is not None
        self.makes_sparse = options.mode != "dense" and layout.sparse is not None and not layout.sparse.made_from
        self.layout = layout
        metrics = {"dense": layout.dense_metric, "sparse": layout.sparse_metric, "hybrid": ""}
        self._score = higher_is_better(metrics[options.mode])
        self._limit = options.candidates
        self._refuse(collection)
        fields = [*options.output_fields]
        if text_field not in fields and "$meta" not in fields:
            fields.append(text_field)
        #: Vectors asked for only to choose by them.
        self._chosen_by = ""
        if options.mmr is not None and layout.dense is not None and layout.dense.name not in fields:
            self._chosen_by = layout.dense.name
            fields.append(layout.dense.name)
        self._target = Target(collection, database, tuple(fields), options.partitions, options.consistency)
        dense, sparse = layout.dense, layout.sparse
        self._dense_leg = Leg(dense.name, self._limit, options.filter, search_params) if dense is not None else None
        self._sparse_leg = Leg(sparse.name, self._limit, options.filter) if sparse is not None else None
        self._heads: dict[str, tuple[bytes, ...]] = {}
        self._facts: dict[str, Facts] = {}

    def _refuse(self, collection: str) -> None:
        layout, options = self.layout, self.options
        if self.needs_dense and layout.dense is None:
            raise BadQuery(f"mode {options.mode!r} and mmr need a float vector field, and {collection!r} has none")
        if options.mode != "dense" and layout.sparse is None:
            raise BadQuery(
                f"mode {options.mode!r} needs a sparse field (BM25 or sparse vectors), and {collection!r} has none; "
                "Milvus 2.3 knows no sparse vectors, and drops such a field without a word when it is created"
            )

    # The request.

    def request(self, questions: Questions, level: str, last_write: int) -> tuple[bytes, Facts | None]:
        """Serialise the request, and say what the core would find in it, if that is known.

        Args:
            questions: What to ask.
            level: Consistency level, "" for the collection's own.
            last_write: Timestamp of this client's last write to the collection, 0 if there is none.
        """
        heads = self._heads.get(level)
        if heads is None:
            heads = self._heads[level] = self._make_heads(level)
        timestamp = vectors.guarantee(level, last_write)
        message = self._join(heads, questions, timestamp)
        if timestamp > SPECIAL:
            return message, None
        facts = self._facts.get(level)
        if facts is None:
            facts = self._facts[level] = inspect(self.method, message, self.metadata)
        return message, facts

    def _join(self, heads: tuple[bytes, ...], questions: Questions, timestamp: int) -> bytes:
        mode, count = self.options.mode, len(questions)
        if mode == "dense":
            return vectors.search_request(heads[0], self._dense(questions), count, timestamp)
        if mode == "sparse":
            return vectors.search_request(heads[0], self._sparse(questions), count, timestamp)
        legs = (
            vectors.search_request(heads[1], self._dense(questions), count),
            vectors.search_request(heads[2], self._sparse(questions), count),
        )
        return vectors.hybrid_request(heads[0], legs, timestamp)

    def _make_heads(self, level: str) -> tuple[bytes, ...]:
        one = self._target
        target = Target(one.collection, one.database, one.output_fields, one.partitions, level)
        dense, sparse, mode = self._dense_leg, self._sparse_leg, self.options.mode
        if mode == "dense":
            assert dense is not None
            return (vectors.search_head(target, dense),)
        assert sparse is not None
        if mode == "sparse":
            return (vectors.search_head(target, sparse),)
        assert dense is not None
        head = vectors.hybrid_head(target, self._limit, self.options.ranker.as_params())
        return head, vectors.sub_head(target, dense), vectors.sub_head(target, sparse)

    @staticmethod
    def _dense(questions: Questions) -> bytes:
        assert questions.dense is not None
        return vectors.floats(questions.dense)

    @staticmethod
    def _sparse(questions: Questions) -> bytes:
        return vectors.texts(questions.texts) if questions.sparse is None else vectors.sparse(questions.sparse)

    # The answer.

    def documents(self, message: bytes, questions: Questions) -> list[Sequence[Document]]:
        """Read the answer: the documents of each question.

        Raises:
            ValueError: It is no answer to these questions.
        """
        answer = SearchAnswer(message)
        if len(answer.counts) != len(questions):
            raise ValueError(f"{len(answer.counts)} lists of hits for {len(questions)} questions")
        found: list[Sequence[Document]] = []
        start = 0
        for i, count in enumerate(answer.counts):
            found.append(_Hits(answer, self._chosen(answer, start, start + count, questions, i), self))
            start += count
        return found

    def _chosen(self, answer: SearchAnswer, start: int, end: int, questions: Questions, i: int) -> Sequence[int]:
        """Return the positions of the hits that one question gets."""
        options = self.options
        kept: Sequence[int] = range(start, end)
        if options.threshold is not None:
            kept = [at for at in kept if self._score(answer.scores[at]) >= options.threshold]
        if options.mmr is not None and kept:
            assert self.layout.dense is not None
            assert questions.dense is not None
            rows = answer.vectors(self.layout.dense.name)[np.asarray(kept)]
            kept = [kept[j] for j in most_diverse(questions.dense[i], rows, options.k, options.mmr)]
        return kept

    def make(self, answer: SearchAnswer, chosen: Sequence[int]) -> list[Document]:
        """Make the documents of the hits at these positions."""
        all_rows = answer.rows()
        rows = [all_rows[at] for at in chosen]
        texts = [row.pop(self.text_field, None) for row in rows]
        if self._chosen_by:
            for row in rows:
                row.pop(self._chosen_by, None)
        keys, scores = answer.keys, answer.scores
        return [
            Document(keys[at], text if type(text) is str else _as_text(text), self._score(scores[at]), row)
            for at, text, row in zip(chosen, texts, rows, strict=True)
        ]


def _as_text(value: object) -> str:
    return "" if value is None else str(value)


@final
class _Hits(Sequence[Document]):
    """The documents of one question, made when they are looked at."""

    __slots__ = ("_answer", "_at", "_made", "_plan")

    def __init__(self, answer: SearchAnswer, at: Sequence[int], plan: Plan) -> None:
        self._answer = answer
        self._at = at
        self._plan = plan
        self._made: list[Document] | None = None

    def _all(self) -> list[Document]:
        if self._made is None:
            self._made = self._plan.make(self._answer, self._at)
        return self._made

    def __len__(self) -> int:
        return len(self._at)

    @overload
    def __getitem__(self, index: int) -> Document: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Document]: ...

    def __getitem__(self, index: int | slice) -> Document | Sequence[Document]:
        return self._all()[index]

    def __iter__(self) -> Iterator[Document]:
        return iter(self._all())
