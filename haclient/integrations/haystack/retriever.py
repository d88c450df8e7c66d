"""`HAMilvusRetriever`: `haclient.retrieval.Retriever` as a Haystack component.

Decision made here: the component holds what can be written into a pipeline's file, an address and names, and connects
when it is first run. Its one client lives on the portal, so blocking and asynchronous pipelines share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self, final

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.utils import Secret

from haclient.integrations.haystack.filters import expression
from haclient.integrations.haystack.secrets import check_address, resolved
from haclient.integrations.origin import ORIGIN, origin_of
from haclient.retrieval.document import Documents
from haclient.retrieval.retriever import Retriever
from haclient.sync import MilvusClient


@final
@component
class HAMilvusRetriever:
    """Finds the documents nearest to an embedding, whatever happens to the servers.

    Each document's ``meta["haclient"]`` says how it was come by: ``score`` (higher is better), ``source``
    (``cluster/endpoint``), ``rung`` of the ladder, ``consistency``, ``age_s`` and ``stale``.

    Args:
        collection: Collection or alias; one that `HAMilvusDocumentStore` has filled needs no other argument.
        uri: One URI or several, as for `haclient.MilvusClient`; without it and ``config``: ``HACLIENT_URI`` or
            ``HACLIENT_CONFIG``, when it is first run.
        config: Path of a TOML file.
        token: Token, for every cluster; only one from an environment variable can be saved.
        filters: Haystack filters, unless a run brings its own.
        top_k: Number of documents, unless a run says otherwise.
        options: Those of `haclient.retrieval.Retriever`: ``text_field``, ``search_params``, ``relax``, ``cache``, ...;
            plain values can be saved.

    Raises:
        ConfigError: The address holds a password, which would be saved with the pipeline.
    """

    def __init__(
        self,
        collection: str,
        uri: str | Sequence[str] | None = None,
        *,
        config: str | None = None,
        token: Secret | None = None,
        filters: Mapping[str, Any] | None = None,
        top_k: int = 10,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._address = {
            "uri": uri if uri is None or isinstance(uri, str) else list(uri),
            "config": config,
            "token": token,
        }
        check_address(self._address)
        self._collection = collection
        self._filters = filters
        self._top_k = top_k
        self._options = dict(options or {})
        self._open: tuple[MilvusClient, Retriever] | None = None

    def warm_up(self) -> None:
        """Resolve the token and make the client, if that is not done; it connects with the first question.

        Raises:
            ConfigError: Address, configuration or options are wrong.
            ValueError: The token's environment variable is not set.
        """
        self._ready()

    def _ready(self) -> Retriever:
        opened = self._open
        if opened is None:
            client = MilvusClient(**resolved(self._address))
            opened = self._open = client, Retriever(client, self._collection, **self._options)
        return opened[1]

    def close(self) -> None:
        """Close the client; the next run makes a new one."""
        opened, self._open = self._open, None
        if opened is not None:
            opened[0].close()

    @component.output_types(documents=list[Document])  # type: ignore[untyped-decorator]
    def run(
        self, query_embedding: list[float], filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """Find documents.

        Args:
            query_embedding: The question's.
            filters: Haystack filters, instead of the component's.
            top_k: Number of documents, instead of the component's.

        Raises:
            FilterError: The filters are wrong.
            BadQuery: The question is wrong.
            ConfigError: Collection or address are wrong.
            CallError: Nobody could answer; lists every endpoint tried.
        """
        found = self._ready().retrieve_sync(query_embedding, **self._asked(filters, top_k))
        return {"documents": _as_haystack(found)}

    @component.output_types(documents=list[Document])  # type: ignore[untyped-decorator]
    async def run_async(
        self, query_embedding: list[float], filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """Find documents; see `run`."""
        found = await self._ready().retrieve(query_embedding, **self._asked(filters, top_k))
        return {"documents": _as_haystack(found)}

    def _asked(self, filters: Mapping[str, Any] | None, top_k: int | None) -> dict[str, Any]:
        wanted = self._filters if filters is None else filters
        k = self._top_k if top_k is None else top_k
        return {"k": k, "filter": expression(wanted, text_field=self._options.get("text_field", "text"))}

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` takes."""
        saved: dict[str, Any] = default_to_dict(
            self,
            collection=self._collection,
            **self._address,
            filters=self._filters,
            top_k=self._top_k,
            options=self._options,
        )
        return saved

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Make the component that `to_dict` was called of."""
        made: Self = default_from_dict(cls, data)
        return made


def _as_haystack(found: Documents) -> list[Document]:
    return [
        Document(
            id=str(each.id), content=each.text, meta={**each.metadata, ORIGIN: origin_of(each, found)}, score=each.score
        )
        for each in found
    ]
