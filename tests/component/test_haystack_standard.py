"""Haystack's own tests of document stores, on milvus-lite."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence

import pytest
from haystack import Document
from haystack.testing import document_store as blocking
from haystack.testing import document_store_async as asynchronous

from haclient.drill.servers.lite import LiteServer
from haclient.integrations.haystack import HAMilvusDocumentStore
from tests.conftest import run

pytestmark = pytest.mark.xdist_group("haystack")


class SameDocuments:
    """Milvus returns documents in any order, with vectors of 32-bit numbers."""

    @staticmethod
    def assert_documents_are_equal(received: Sequence[Document], expected: Sequence[Document]) -> None:
        ours, theirs = (sorted(each, key=lambda document: document.id) for each in (received, expected))
        assert [(d.id, d.content, d.meta) for d in ours] == [(d.id, d.content, d.meta) for d in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one.embedding == (None if other.embedding is None else pytest.approx(other.embedding))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiteServer]:
    lite = LiteServer(tmp_path_factory.mktemp("lite"))
    try:
        run(lite.start())
        yield lite
    finally:
        run(lite.close())


@pytest.fixture
def document_store(server: LiteServer) -> Iterator[HAMilvusDocumentStore]:
    """An empty store."""
    store = HAMilvusDocumentStore(f"haystack_{uuid.uuid4().hex}", connection_args={"uri": server.uri})
    yield store
    store.close()


class TestDocumentStore(SameDocuments, blocking.DocumentStoreBaseExtendedTests, blocking.CountDocumentsByFilterTest):
    @pytest.fixture
    def document_store(self, document_store: HAMilvusDocumentStore) -> HAMilvusDocumentStore:
        return document_store

    def test_write_documents(self, document_store: HAMilvusDocumentStore) -> None:
        """Written twice, a document is there once; Haystack leaves it to each store."""
        document = Document(content="text")
        assert document_store.write_documents([document]) == 1
        assert document_store.write_documents([document]) == 1
        self.assert_documents_are_equal(document_store.filter_documents(), [document])


class TestAsyncDocumentStore(
    SameDocuments,
    asynchronous.CountDocumentsAsyncTest,
    asynchronous.CountDocumentsByFilterAsyncTest,
    asynchronous.FilterDocumentsAsyncTest,
    asynchronous.WriteDocumentsAsyncTest,
    asynchronous.UpdateByFilterAsyncTest,
    asynchronous.DeleteDocumentsAsyncTest,
    asynchronous.DeleteByFilterAsyncTest,
    asynchronous.DeleteAllAsyncTest,
):
    @pytest.fixture
    def document_store(self, document_store: HAMilvusDocumentStore) -> HAMilvusDocumentStore:
        return document_store

    async def test_write_documents_async(self, document_store: HAMilvusDocumentStore) -> None:
        """Written twice, a document is there once; Haystack leaves it to each store."""
        document = Document(content="text")
        assert await document_store.write_documents_async([document]) == 1
        assert await document_store.write_documents_async([document]) == 1
        self.assert_documents_are_equal(await document_store.filter_documents_async(), [document])
