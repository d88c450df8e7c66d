"""Haystack on real Milvus 2.3.5: its own tests of writing and deleting, and what its filters mean."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from haystack import Document
from haystack.document_stores.types import DuplicatePolicy
from haystack.testing import document_store as blocking
from haystack.utils.filters import document_matches_filter

from haclient.drill.servers.milvus import StandaloneServer
from haclient.integrations.haystack import HAMilvusDocumentStore, HAMilvusRetriever
from haclient.integrations.origin import ORIGIN
from tests.component.test_haystack import DOCUMENTS, FILTERS, ids
from tests.component.test_haystack_standard import SameDocuments
from tests.servers import fill

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def store(standalone: StandaloneServer) -> Iterator[HAMilvusDocumentStore]:
    """An empty store; Milvus 2.3 gives deletes no time, so that only Strong sees them at once."""
    name = f"haystack_{uuid.uuid4().hex}"
    args = {"uri": standalone.uri}
    made = HAMilvusDocumentStore(name, connection_args=args, consistency_level="Strong")
    yield made
    made.client.drop_collection(name)
    made.close()


class TestDocumentStore(
    SameDocuments, blocking.WriteDocumentsTest, blocking.DeleteDocumentsTest, blocking.DeleteAllTest
):
    @pytest.fixture
    def document_store(self, store: HAMilvusDocumentStore) -> HAMilvusDocumentStore:
        return store

    def test_write_documents(self, document_store: HAMilvusDocumentStore) -> None:
        """Written twice, a document is there once."""
        document = Document(content="text")
        assert [document_store.write_documents([document]) for _ in range(2)] == [1, 1]
        self.assert_documents_are_equal(document_store.filter_documents(), [document])


def test_haystack_and_milvus_agree_on_filters(store: HAMilvusDocumentStore) -> None:
    store.write_documents(DOCUMENTS, DuplicatePolicy.FAIL)
    for filters in FILTERS:
        expected = [document.id for document in DOCUMENTS if document_matches_filter(filters, document)]
        assert sorted(ids(store.filter_documents(filters))) == expected, filters


async def test_retriever(store: HAMilvusDocumentStore, standalone: StandaloneServer) -> None:
    await store.write_documents_async(DOCUMENTS)
    retriever = HAMilvusRetriever(store.collection_name, standalone.uri, filters=FILTERS[0])
    (found,) = (await retriever.run_async(fill.vector(6, 8)))["documents"]
    assert (found.id, found.content, found.meta[ORIGIN]["rung"]) == ("4", "text of 4", "first")
    assert found.meta["date"] == "2024-01-05"
    retriever.close()
