"""New certificates in the place of old ones are taken up by a reload, and by nothing else."""

import asyncio
import os
import random

import trustme

from haclient.config import Config
from haclient.core import Core
from haclient.events import EventBus


class SilentTransport:
    def __init__(self, secure):
        self.secure = secure

    async def aclose(self): ...


def test_a_rotated_certificate_makes_new_connections(tmp_path):
    authority = trustme.CA()
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca)

    def load():
        secured = {"name": "a", "endpoints": ["https://a:1"], "ca_pem_path": str(ca)}
        return Config.load(None, {"cluster": [secured, {"name": "b", "endpoints": ["http://b:1"]}]})

    async def nodes_after(rotate):
        core = Core(
            load(), lambda c, e, _: SilentTransport(e.secure), EventBus(), random.Random(1), asyncio.get_running_loop()
        )
        before = {node.name: node.data for node in core.fleet.nodes()}
        rotate()
        core.reconfigure(load())
        kept = {node.name for node in core.fleet.nodes() if node.data is before[node.name]}
        await core.aclose()
        return kept

    assert asyncio.run(nodes_after(lambda: None)) == {"a:1", "b:1"}

    def rotate():
        trustme.CA().cert_pem.write_to_path(ca)
        os.utime(ca, (1, 1))

    assert asyncio.run(nodes_after(rotate)) == {"b:1"}
