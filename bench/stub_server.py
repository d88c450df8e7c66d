"""A server that answers a client's calls at once with recorded replies, so that a bench measures the client alone.

python bench/stub_server.py        prints its port, then serves until it is killed
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DATA = Path(__file__).with_name("data")


def replies() -> dict[str, bytes]:
    """What a Milvus with one collection, `docs`, answers, by method."""
    from pymilvus.grpc_gen import milvus_pb2 as pb

    server = {"build_tags": "v2.3.5", "deploy_mode": "STANDALONE"}
    vector = {"name": "vector", "data_type": 101, "type_params": [{"key": "dim", "value": "384"}]}
    key = {"name": "id", "is_primary_key": True, "data_type": 5}
    schema = {"name": "docs", "fields": [key, vector], "enable_dynamic_field": True}
    index = {"field_name": "vector", "index_name": "vector", "params": [{"key": "metric_type", "value": "COSINE"}]}
    return {
        "Search": (DATA / "search_reply.bin").read_bytes(),
        "Connect": pb.ConnectResponse(identifier=1, server_info=server).SerializeToString(),
        "ShowCollections": pb.ShowCollectionsResponse(
            collection_names=["docs"], collection_ids=[1], created_timestamps=[1]
        ).SerializeToString(),
        "DescribeCollection": pb.DescribeCollectionResponse(schema=schema, collectionID=1).SerializeToString(),
        "DescribeIndex": pb.DescribeIndexResponse(index_descriptions=[index]).SerializeToString(),
        "Query": pb.QueryResults().SerializeToString(),
        "CheckHealth": pb.CheckHealthResponse(status={}, isHealthy=True).SerializeToString(),
    }


async def serve() -> None:
    import grpc

    answers = replies()

    class Handler(grpc.GenericRpcHandler):
        def service(self, details):
            reply = answers.get(details.method.rpartition("/")[2], b"")

            async def answer(_request, _context):
                return reply

            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


@contextmanager
def stub_servers(count: int) -> Iterator[list[str]]:
    """Run servers; yields their URIs."""
    processes = [subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True) for _ in range(count)]
    try:
        yield [f"http://127.0.0.1:{int(process.stdout.readline())}" for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()


if __name__ == "__main__":
    asyncio.run(serve())
