"""Every type that a real Milvus 2.3.5 takes, by way of backups: to itself, to milvus-lite, and back from there."""

from __future__ import annotations

from pathlib import Path

import pytest
from pymilvus import DataType, MilvusClient

from haclient.drill.servers.milvus import StandaloneServer
from haclient.recovery.check import verify
from haclient.recovery.store import open_store
from tests.servers import typed
from tests.servers.mirrored import Mirrored
from tests.servers.shared import LiteFactory

pytestmark = [pytest.mark.live, pytest.mark.slow]

KINDS = {"floats": DataType.FLOAT_VECTOR, "bits": DataType.BINARY_VECTOR}


@pytest.mark.timeout(300)
async def test_every_type_of_a_real_server_comes_back(
    standalone: StandaloneServer, lite_server: LiteFactory, tmp_path: Path
) -> None:
    other = await lite_server()
    real, lite = (MilvusClient(server.uri, dedicated=True, timeout=60) for server in (standalone, other))
    fleets = {}
    for name, server in (("real", standalone), ("lite", other)):
        (tmp_path / name).mkdir()
        fleets[name] = Mirrored(tmp_path / name, {name: server.uri}, logged=False)
    places = {name: str(tmp_path / f"backups-{name}") for name in fleets}
    made = [*(f"typed_{kind}" for kind in KINDS), "divided"]
    try:
        for kind, number in KINDS.items():
            typed.create(real, f"typed_{kind}", {kind: number})
        divided(real)
        wanted = {name: typed.held(real, name) for name in made[:-1]}
        await backed_up(fleets["real"], places["real"], made)
        # To the same server under other names.
        await restored(fleets["real"], places["real"], [f"{name}={name}_again" for name in made])
        for name, rows in wanted.items():
            assert len(rows) == typed.ROWS
            assert typed.held(real, f"{name}_again") == rows
        assert sorted(real.list_partitions("divided_again")) == sorted(real.list_partitions("divided"))
        assert real.query("divided_again", output_fields=["count(*)"], consistency_level="Strong")[0] == {
            "count(*)": 90
        }
        # To milvus-lite, whose empty arrays and JSON are others, and from there.
        await restored(fleets["lite"], places["real"], ["typed_floats"])
        assert typed.held(lite, "typed_floats") == wanted["typed_floats"]
        await backed_up(fleets["lite"], places["lite"], ["typed_floats"])
        await restored(fleets["real"], places["lite"], ["typed_floats=typed_floats_back"])
        assert typed.held(real, "typed_floats_back") == wanted["typed_floats"]
        # What kills this server would do so when it writes the rows out.
        real.flush("typed_floats_back")
        assert typed.held(real, "typed_floats_back") == wanted["typed_floats"]
    finally:
        for name in real.list_collections():
            if name.startswith(("typed_", "divided")):
                real.drop_collection(name)
        real.close()
        lite.close()


async def backed_up(fleet: Mirrored, place: str, names: list[str]) -> None:
    options = [part for name in names for part in ("--collection", name)]
    code, made, error = await fleet.run("backup", place, *options, "--json")
    assert code == 0, error
    assert verify(open_store(place), made["id"]).well


async def restored(fleet: Mirrored, place: str, names: list[str]) -> None:
    options = [part for name in names for part in ("--collection", name)]
    code, _, error = await fleet.run("restore", place, *options, "--json")
    assert code == 0, error


def divided(client: MilvusClient) -> None:
    """Make a collection whose partitions the server chooses."""
    schema = client.create_schema(auto_id=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("tenant", DataType.VARCHAR, max_length=32, is_partition_key=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=typed.DIM)
    index = client.prepare_index_params()
    index.add_index("vector", index_type="IVF_FLAT", metric_type="IP", params={"nlist": 4})
    client.create_collection("divided", schema=schema, index_params=index, num_partitions=5)
    # 2.3.5 finds a row with the highest key there is by no expression at all.
    keys = [-(2**63) + 1, *range(88), 2**63 - 2]
    client.insert("divided", [{"id": key, "tenant": f"t{key % 7}", "vector": [0.5] * typed.DIM} for key in keys])
    client.load_collection("divided")
