"""LlamaIndex on real Milvus 2.3.5, in the environment that its store needs."""

from __future__ import annotations

import pytest

from haclient.drill.servers.milvus import StandaloneServer
from tests import environments
from tests.component.test_llama_index import run_there

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(600)]


def test_store(standalone: StandaloneServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    """An index and our retriever on it, nodes written twice, names of any kind."""
    chosen = "TestIndex or there_once or of_any_name"
    run_there(environments.folder(tmp_path_factory), "-k", chosen, HACLIENT_TEST_URI=standalone.uri)
