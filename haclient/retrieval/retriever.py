"""`Retriever`: a question in, documents out, whatever happens behind.

Decision made here: a retriever knows the difference between "nothing was found" and "nobody could answer". The first is
an empty result; the second is an error that names every endpoint tried, once the ladder (`haclient.retrieval.ladder`)
has no rung left.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol, cast, final

import numpy as np

from haclient.errors import BadQuery, ConfigError, DeadlineExceeded, EmbeddingError, HAClientError
from haclient.events import Retrieved
from haclient.host import Host
from haclient.milvus.vectors import FloatRows
from haclient.retrieval.cache import AnswerCache
from haclient.retrieval.document import Document, Documents
from haclient.retrieval.embed.embedder import Embedder, checked
from haclient.retrieval.embed.memo import QueryMemo
from haclient.retrieval.ladder import FAILURES, Ladder, Relax
from haclient.retrieval.layout import Layout, Wanted, find_layout
from haclient.retrieval.options import MODES, MOST, RRF, Options, Query, Ranker, checked_query
from haclient.retrieval.plan import Plan, Questions, SparseEmbedder
from haclient.seam import last_write

#: Orders candidates anew, best first, and may drop some: a cross-encoder, a language model, a rule.
Rerank = Callable[[str, Sequence[Document]], Sequence[Document] | Awaitable[Sequence[Document]]]

#: Sets of options whose requests are kept; a filter with a user's name in it makes one per user.
_MOST_PLANS = 256
#: Without a number given, this many times k candidates are fetched where some of them are left out later.
_CANDIDATES = 4
_LEAST_CANDIDATES = 20

#: The arguments of a question, hashable; a `Plan` is found by it.
_Ask = tuple[Any, ...]


class Client(Protocol):
    """What a retriever needs of `haclient.AsyncMilvusClient` or `haclient.MilvusClient`."""

    host: Host
    _using: str


@final
class Retriever:
    """Finds the documents that fit a question.

    Args:
        client: `haclient.AsyncMilvusClient` or `haclient.MilvusClient`.
        collection: Collection or alias.
        embedder: Turns questions into vectors; not needed if every question is a vector, or in ``sparse`` mode.
        sparse_embedder: Makes sparse vectors, where the server does not (BM25).
        text_field: Field that holds the passage.
        vector_field: Dense vector field; found out if there is one only.
        sparse_field: Sparse vector field; found out if there is one only.
        output_fields: Fields to return in ``metadata``; every scalar one unless given.
        search_params: Parameters of the dense index, for example ``{"ef": 64}``.
        mode: ``dense``, ``sparse`` or ``hybrid``, unless a question says otherwise.
        ranker: How hybrid hits are merged.
        consistency: ``Strong``, ``Session``, ``Bounded`` or ``Eventually``; the collection's own unless given.
        relax: Permission to answer with less consistency.
        cache: Permission to answer from what was answered before.
        rerank: Orders the candidates anew; a plain function runs in a thread.
        memo: Questions whose vectors are kept.
        database: Database; the client's unless given.
        timeout_s: Time for one answer, embedding included, seconds; the client's for reads unless given.

    Raises:
        ConfigError: The arguments do not fit each other. Whether they fit the collection is found out by the first
            question, or by `check`.
    """

    def __init__(
        self,
        client: Client,
        collection: str,
        *,
        embedder: Embedder | None = None,
        sparse_embedder: SparseEmbedder | None = None,
        text_field: str = "text",
        vector_field: str = "",
        sparse_field: str = "",
        output_fields: Sequence[str] | None = None,
        search_params: Mapping[str, Any] | None = None,
        mode: str = "dense",
        ranker: Ranker | None = None,
        consistency: str = "",
        relax: Relax | None = None,
        cache: AnswerCache | None = None,
        rerank: Rerank | None = None,
        memo: int = 1024,
        database: str = "",
        timeout_s: float | None = None,
    ) -> None:
        if not collection:
            raise ConfigError("the collection's name is empty")
        if timeout_s is not None and not timeout_s > 0:
            raise ConfigError(f"timeout_s must be above 0, got {timeout_s}")
        host = client.host
        self._host = host
        self._using = client._using
        self._embedder = QueryMemo(embedder, memo) if embedder is not None and memo else embedder
        self._sparse_embedder = sparse_embedder
        self._rerank = rerank
        self._search_params = dict(search_params or {})
        self._timeout_s = timeout_s or host.config.timeouts.read_s
        fields = tuple(output_fields) if output_fields is not None else None
        database = database or host.config.database
        self._wanted = Wanted(collection, database, text_field, vector_field, sparse_field, fields)
        self._defaults = (mode, consistency, ranker or RRF())
        self._ladder = Ladder(collection, relax, cache, time.monotonic, host.bus)
        self._layout: Layout | None = None
        self._doubted = False
        self._plans: OrderedDict[_Ask, Plan] = OrderedDict()

    async def check(self) -> None:
        """Look the collection up, and say what does not fit; the first question does it otherwise.

        Raises:
            ConfigError: The collection does not exist, or does not fit the embedder.
            CallError: No server answered.
        """
        await self._host.bring(self._look())

    async def retrieve(
        self,
        query: Query,
        k: int = 4,
        *,
        filter: str = "",
        mode: str = "",
        output_fields: Sequence[str] | None = None,
        partitions: Sequence[str] = (),
        consistency: str = "",
        threshold: float | None = None,
        mmr: float | None = None,
        candidates: int | None = None,
        timeout_s: float | None = None,
    ) -> Documents:
        """Find the k best documents.

        Args:
            query: The question: a text, or a vector of the collection's dimension.
            k: Documents wanted, 1 to 16,384; fewer come if no more fit.
            filter: Milvus expression, for example ``lang == "en"``.
            mode: ``dense``, ``sparse`` or ``hybrid``.
            output_fields: Fields to return in ``metadata``.
            partitions: Names of partitions; all if empty.
            consistency: ``Strong``, ``Session``, ``Bounded`` or ``Eventually``.
            threshold: Only documents with at least this score (see `haclient.retrieval.score`).
            mmr: Choose by maximal marginal relevance: 1 only looks at relevance, 0 only at diversity.
            candidates: How many `mmr` or the retriever's ``rerank`` choose from; 4 k and at least 20 unless given.
            timeout_s: Time for the answer, embedding included, seconds; the first question's `check` comes before.

        Raises:
            BadQuery: The question is wrong; nothing was sent, or the server has refused it.
            ConfigError: Collection and embedder do not fit.
            CallError: Nobody could answer, on no rung; lists every endpoint tried.
            EmbeddingError: The embedder failed.
            Overloaded: Too much waits for the embedder already.
        """
        ask = self._ask(k, filter, mode, output_fields, partitions, consistency, threshold, mmr, candidates)
        answering = self._answer([query], ask, timeout_s)
        # Most callers are on the core's own loop.
        return (await answering if self._host.is_here() else await self._host.bring(answering))[0]

    async def retrieve_many(
        self, queries: Sequence[Query], k: int = 4, *, timeout_s: float | None = None, **options: Any
    ) -> list[Documents]:
        """Find the k best documents of each question, in one request.

        Args:
            queries: Texts or vectors, not both.
            k: See `retrieve`, as for the others.
            timeout_s: See `retrieve`.
            options: See `retrieve`.
        """
        return await self._host.bring(self._answer(queries, self._ask(k, **options), timeout_s))

    def retrieve_sync(self, query: Query, k: int = 4, *, timeout_s: float | None = None, **options: Any) -> Documents:
        """Block until `retrieve` has answered; from any thread but the event loop's own."""
        return self._host.run(self._answer([query], self._ask(k, **options), timeout_s))[0]

    def retrieve_many_sync(
        self, queries: Sequence[Query], k: int = 4, *, timeout_s: float | None = None, **options: Any
    ) -> list[Documents]:
        """Block until `retrieve_many` has answered."""
        return self._host.run(self._answer(queries, self._ask(k, **options), timeout_s))

    def _ask(
        self,
        k: int,
        filter: str = "",
        mode: str = "",
        output_fields: Sequence[str] | None = None,
        partitions: Sequence[str] = (),
        consistency: str = "",
        threshold: float | None = None,
        mmr: float | None = None,
        candidates: int | None = None,
    ) -> _Ask:
        default_mode, default_consistency, ranker = self._defaults
        if isinstance(output_fields, str) or isinstance(partitions, str):
            raise BadQuery("output_fields and partitions are lists of names, not one text")
        fields = tuple(output_fields) if output_fields is not None else None
        if mmr is None and self._rerank is None:
            candidates = k  # nobody chooses from more
        elif candidates is None and isinstance(k, int):
            candidates = min(max(_CANDIDATES * k, _LEAST_CANDIDATES), MOST)
        return (
            k, filter, mode or default_mode, fields, tuple(partitions), consistency or default_consistency, threshold,
            mmr, candidates, ranker,
        )  # fmt: skip

    # On the core's loop.

    async def _answer(self, queries: Sequence[Query], ask: _Ask, timeout_s: float | None) -> list[Documents]:
        """Answer, and tell listeners how it went."""
        start = time.monotonic()
        answers: list[Documents] = []
        outcome = "cancelled"
        try:
            answers = await self._climb(queries, ask, self._timeout_s if timeout_s is None else timeout_s)
            outcome = "ok"
        except HAClientError as error:
            outcome = type(error).__name__
            raise
        finally:
            if self._host.bus.per_retrieval:
                now = time.monotonic()
                self._host.bus.emit(
                    Retrieved(
                        at=now,
                        collection=self._wanted.collection,
                        mode=ask[2] if ask[2] in MODES else "",
                        outcome=outcome,
                        rung=answers[0].rung.value if answers else "",
                        questions=len(queries),
                        hits=sum(map(len, answers)),
                        duration_s=now - start,
                    )
                )
        return answers

    async def _climb(self, queries: Sequence[Query], ask: _Ask, timeout_s: float) -> list[Documents]:
        if not queries:
            return []
        if not timeout_s > 0:
            raise BadQuery(f"timeout_s must be above 0, got {timeout_s}")
        plan = self._known(ask) or self._plan(ask, await self._look())
        # Counted from here: the first question may have had to wait for a model to be loaded.
        deadline = time.monotonic() + timeout_s
        layout = plan.layout
        asked = [checked_query(query, layout.dense.dimension if layout.dense is not None else 0) for query in queries]
        keys = [one if isinstance(one, str) else one.tobytes() for one in asked]
        questions = None
        try:
            questions = await self._embed(plan, asked, deadline)
            answers = await self._ladder.climb(
                plan,
                questions,
                self._host.answer,
                last_write=last_write(self._using, self._wanted.database, self._wanted.collection),
                deadline=deadline,
            )
        except FAILURES as error:
            return self._ladder.recall(plan, questions, keys, error)
        except BadQuery:
            # If a server refused it, it may have been made for a collection that is another one by now.
            self._doubted = questions is not None
            raise
        if self._rerank is not None:
            answers = [await self._reranked(documents, key, plan) for documents, key in zip(answers, keys, strict=True)]
        self._ladder.keep(plan, questions, keys, answers)
        return answers

    async def _look(self) -> Layout:
        """Return what the collection looks like: what is known, or if nothing is, or it is doubted, what it is now."""
        if self._layout is None or self._doubted:
            try:
                found = await find_layout(self._host.answer, self._wanted, self._embedder)
            except FAILURES:
                if self._layout is None:
                    raise
                return self._layout  # the cache may know an answer
            if found != self._layout:
                self._plans.clear()
            self._layout, self._doubted = found, False
        return self._layout

    def _known(self, ask: _Ask) -> Plan | None:
        try:
            return None if self._doubted else self._plans.get(ask)
        except TypeError:  # not hashable, so nothing that can be asked for: `Options` says what
            return None

    def _plan(self, ask: _Ask, layout: Layout) -> Plan:
        k, filter, mode, fields, partitions, consistency, threshold, mmr, candidates, ranker = ask
        fields = layout.output_fields if fields is None else fields
        options = Options(k, mode, filter, fields, partitions, consistency, threshold, mmr, candidates, ranker)
        wanted = self._wanted
        plan = Plan(wanted.collection, wanted.database, layout, options, wanted.text_field, self._search_params)
        if len(self._plans) >= _MOST_PLANS:
            self._plans.popitem(last=False)
        self._plans[ask] = plan
        return plan

    async def _embed(self, plan: Plan, asked: Sequence[str | FloatRows], deadline: float) -> Questions:
        """Turn questions into what the plan needs.

        Raises:
            DeadlineExceeded: The embedder did not answer in time.
        """
        texts = [one for one in asked if isinstance(one, str)]
        if not texts:
            rows = cast(Sequence[FloatRows], asked)
            if plan.options.mode != "dense":
                raise BadQuery(f"mode {plan.options.mode!r} needs the question as a text, and it is a vector")
            return Questions([""] * len(asked), np.stack(rows) if len(rows) > 1 else rows[0][np.newaxis], None)
        if len(texts) < len(asked):
            raise BadQuery("some of the questions are texts and some are vectors; ask them apart")
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                dense = await self._dense(texts, plan.layout) if plan.needs_dense else None
                sparse = await self._sparse(texts) if plan.makes_sparse else None
        except TimeoutError:
            raise DeadlineExceeded("the embedder had not answered when the time was over") from None
        return Questions(texts, dense, sparse)

    async def _dense(self, texts: Sequence[str], layout: Layout) -> FloatRows:
        if self._embedder is None:
            raise BadQuery("the question is a text, and this retriever has no embedder: give embedder=, or a vector")
        assert layout.dense is not None
        rows = await self._embedder.embed(texts, queries=True)
        return checked(rows, len(texts), layout.dense.dimension, who="the embedder")

    async def _sparse(self, texts: Sequence[str]) -> Sequence[Mapping[int, float]]:
        if self._sparse_embedder is None:
            raise BadQuery("the sparse field is not made by the server (BM25): give sparse_embedder=")
        rows = await self._sparse_embedder.embed_sparse(texts)
        if len(rows) != len(texts) or not all(math.isfinite(value) for row in rows for value in row.values()):
            raise EmbeddingError(f"the sparse embedder answered {len(rows)} rows for {len(texts)} texts, or no numbers")
        return rows

    async def _reranked(self, documents: Documents, query: Hashable, plan: Plan) -> Documents:
        """Let the user's function order the candidates, and keep the k first."""
        assert self._rerank is not None
        best: Sequence[Document] = documents
        if isinstance(query, str) and documents:
            candidates = list(documents)
            if inspect.iscoroutinefunction(self._rerank):
                best = await self._rerank(query, candidates)
            else:
                best = await asyncio.to_thread(self._rerank, query, candidates)  # type: ignore[arg-type]
        return Documents(
            list(best[: plan.options.k]), source=documents.source, rung=documents.rung, freshness=documents.freshness
        )

    def __repr__(self) -> str:
        return f"<Retriever of {self._wanted.collection}: {self._defaults[0]}>"
