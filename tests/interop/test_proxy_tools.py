"""The tools people look at an HTTP/2 server with: nghttp, h2load and curl."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import trustme

from tests.interop.test_proxy_grpc import KNOWN, UNKNOWN, Upstream, metrics
from tests.servers.proxy import behind, serving

MESSAGE = metrics(b"2.3.5")
BODY = b"\0\0\0\0" + bytes([len(MESSAGE)]) + MESSAGE
AS_GRPC = ["-H", "content-type: application/grpc", "-H", "te: trailers"]

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl (apt-get install curl)")
needs_nghttp2 = pytest.mark.skipif(shutil.which("nghttp") is None, reason="no nghttp (apt-get install nghttp2-client)")


async def output(*command: str | Path) -> bytes:
    """What a program prints; it must end well."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*map(str, command), stdout=pipe, stderr=pipe)
    out, errors = await process.communicate()
    assert process.returncode == 0, errors[-2_000:]
    return out


@pytest.fixture
async def upstream() -> AsyncIterator[str]:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((Upstream(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"http://127.0.0.1:{port}"
    await server.stop(None)


@pytest.fixture
async def proxy(upstream: str) -> AsyncIterator[str]:
    async with serving(behind([upstream])) as (_, uri):
        yield uri


@pytest.fixture
def body(tmp_path: Path) -> Path:
    """A file with the body of a gRPC request."""
    file = tmp_path / "body"
    file.write_bytes(BODY)
    return file


@needs_nghttp2
async def test_nghttp(proxy: str, body: Path) -> None:
    """The frames of one call, as nghttp2 reads them."""
    told = (await output("nghttp", "-v", "-d", body, *AS_GRPC, proxy + KNOWN)).decode()
    received = re.findall(r"recv (?:\(stream_id=\d+\) )?(\S.*)", told)
    assert ":status: 200" in received
    assert "grpc-status: 0" in received
    assert any(line.startswith(f"DATA frame <length={len(BODY)},") for line in received)
    assert not [line for line in received if line.startswith(("RST_STREAM", "GOAWAY"))]


@needs_nghttp2
@pytest.mark.parametrize(("path", "count"), [(KNOWN, 2_000), (UNKNOWN, 1_000), ("/grpc.health.v1.Health/Check", 5_000)])
async def test_h2load(proxy: str, body: Path, tmp_path: Path, path: str, count: int) -> None:
    """Many streams on a few connections: every call is answered, and not a byte is missing."""
    if path.startswith("/grpc"):
        body.write_bytes(b"\0\0\0\0\0")
    size = 7 if path.startswith("/grpc") else len(BODY)
    load = ["-n", str(count), "-c", "4", "-m", "100", "-t", "1", "-d", str(body)]
    told = (await output("h2load", *load, *AS_GRPC, proxy + path)).decode()
    assert f"{count} done, {count} succeeded, 0 failed, 0 errored, 0 timeout" in told
    assert f"status codes: {count} 2xx, 0 3xx, 0 4xx, 0 5xx" in told
    assert f"({count * size}) data" in told


@needs_curl
class TestCurl:
    async def test_grpc(self, proxy: str, body: Path, tmp_path: Path) -> None:
        """A call and its trailers."""
        heads = tmp_path / "heads"
        call = ["curl", "-sS", "--http2-prior-knowledge", "-D", heads, "--data-binary", f"@{body}", *AS_GRPC]
        assert await output(*call, proxy + KNOWN) == BODY
        head = heads.read_text()
        assert head.startswith("HTTP/2 200")
        assert "grpc-status: 0" in head

    async def test_a_large_body_there_and_back(self, proxy: str, tmp_path: Path) -> None:
        big = tmp_path / "big"
        size = 20_000_000
        big.write_bytes(b"\0" + size.to_bytes(4, "big") + os.urandom(size))
        call = ["curl", "-sS", "--http2-prior-knowledge", "--data-binary", f"@{big}", *AS_GRPC]
        assert await output(*call, proxy + UNKNOWN) == big.read_bytes()

    @pytest.mark.parametrize(
        ("option", "wanted"), [("--http1.1", "1.1"), ("--http2", "1.1"), ("--http2-prior-knowledge", "2")]
    )
    async def test_plain_http(self, proxy: str, option: str, wanted: str) -> None:
        """An answer in JSON whichever way it is asked; who offers to go over to HTTP/2 stays on HTTP/1."""
        written = ["-w", "\n%{http_version} %{http_code} %{content_type}"]
        told = (await output("curl", "-sS", option, *written, proxy + "/nothing")).decode()
        answer, last = told.rsplit("\n", 1)
        assert last == f"{wanted} 404 application/json"
        assert json.loads(answer)["code"]

    async def test_tls(self, upstream: str, body: Path, tmp_path: Path) -> None:
        """ALPN chooses: HTTP/2 for those who offer it, HTTP/1 for others, on one port."""
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1")
        chain, ca = tmp_path / "proxy.pem", tmp_path / "ca.pem"
        issued.private_key_and_cert_chain_pem.write_to_path(str(chain))
        authority.cert_pem.write_to_path(str(ca))
        async with serving(behind([upstream], proxy={"tls": {"cert_file": str(chain)}})) as (_, uri):
            where = uri.replace("http:", "https:")
            curl = ["curl", "-sS", "--cacert", ca]
            assert await output(*curl, "--http2", "--data-binary", f"@{body}", *AS_GRPC, where + KNOWN) == BODY
            for option, wanted in (("--http2", b"2 404"), ("--http1.1", b"1.1 404")):
                ends = ["-o", "/dev/null", "-w", "%{http_version} %{http_code}"]
                assert await output(*curl, option, *ends, where + "/nothing") == wanted
