"""The Milvus 2.3.5 binary out of the PyPI package `milvus`, and the configuration every process of it needs.

The package's own wrapper is not used: it unpacks 57 MB into each data directory, cannot run twice on one
machine (its embedded etcd always binds 2379 and 2380), silently moves the proxy to the next port when the
wanted one is in TIME_WAIT, and is one more process between us and the one to kill.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import lzma
import os
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

VERSION = "2.3.5"


def available() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("milvus") is not None


def cache_folder() -> Path:
    """Where the unpacked binary is kept: $HACLIENT_CACHE, else ~/.cache/haclient."""
    return Path(os.environ.get("HACLIENT_CACHE") or Path.home() / ".cache" / "haclient")


def unpacked() -> Path:
    """The folder of the binary and its libraries; unpacked at the first call on this machine."""
    folder = cache_folder() / f"milvus-{VERSION}"
    if folder.exists():
        return folder
    spec = importlib.util.find_spec("milvus")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("pip install milvus==2.3.5")
    packed = sorted((Path(spec.submodule_search_locations[0]) / "data" / "bin").glob("*.lzma"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Renamed into place as a whole: other test runs may be unpacking at the same time.
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    try:

        def unpack(source: Path) -> None:
            target = scratch / source.stem
            with lzma.open(source) as archive, target.open("wb") as out:
                shutil.copyfileobj(archive, out, 1 << 20)
            target.chmod(0o755)

        with ThreadPoolExecutor() as pool:
            list(pool.map(unpack, packed))
        scratch.chmod(0o755)
        try:
            scratch.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def environment(folder: Path, metrics_port: int, **more: str) -> dict[str, str]:
    """What a Milvus process finds in its environment; ``folder`` holds its configuration."""
    return {
        "LD_LIBRARY_PATH": str(unpacked()),
        "MILVUSCONF": str(folder / "conf"),
        "MILVUS_RUN_DIR": str(folder / "run"),
        "METRICS_PORT": str(metrics_port),
        **more,
    }


def write_config(folder: Path, config: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Write ``conf/milvus.yaml`` (JSON is YAML) from the common part, ``config``, and dotted overrides."""
    merged = copy.deepcopy(_COMMON)
    for key, value in {**flatten(config), **overrides}.items():
        *path, last = key.split(".")
        at = merged
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value
    (folder / "conf").mkdir(parents=True, exist_ok=True)
    (folder / "run").mkdir(exist_ok=True)
    (folder / "conf" / "milvus.yaml").write_text(json.dumps(merged, indent=1))
    # Without this file the query and index nodes exit.
    (folder / "conf" / "glog.conf").write_text("--logtostderr=true\n--minloglevel=1\n")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a nested mapping."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def remove_marks(pid: int) -> None:
    """Remove what a dead Milvus process left outside its folder."""
    Path(f"/tmp/milvus/server_id_{pid}").unlink(missing_ok=True)  # noqa: S108 - the server puts it there


_COMMON: dict[str, Any] = {
    "metastore": {"type": "etcd"},
    "log": {"level": "warn", "stdout": True},
    # One for each collection: where they share one, Milvus 2.3.5 loses rows at a restart (docs/replication.md, "A
    # cluster's own durability").
    "rootCoord": {"ip": "127.0.0.1", "dmlChannelNum": 64},
    "dataCoord": {"ip": "127.0.0.1"},
    "queryCoord": {"ip": "127.0.0.1"},
    "dataNode": {"ip": "127.0.0.1"},
    "indexNode": {"ip": "127.0.0.1"},
    "queryNode": {"ip": "127.0.0.1"},
    "proxy": {"ip": "127.0.0.1", "http": {"enabled": True}},
    "common": {
        "storageType": "local",
        # 2.3 panics where one of these names is missing.
        "chanNamePrefix": {
            "cluster": "c1",
            "rootCoordTimeTick": "rootcoord-timetick",
            "rootCoordStatistics": "rootcoord-statistics",
            "rootCoordDml": "rootcoord-dml",
            "replicateMsg": "replicate-msg",
            "rootCoordDelta": "rootcoord-delta",
            "search": "search",
            "searchResult": "searchResult",
            "queryTimeTick": "queryTimeTick",
            "dataCoordStatistic": "datacoord-statistics-channel",
            "dataCoordTimeTick": "datacoord-timetick-channel",
            "dataCoordSegmentInfo": "segment-info-channel",
        },
        "subNamePrefix": {
            "proxySubNamePrefix": "proxy",
            "rootCoordSubNamePrefix": "rootCoord",
            "queryNodeSubNamePrefix": "queryNode",
            "dataCoordSubNamePrefix": "dataCoord",
            "dataNodeSubNamePrefix": "dataNode",
        },
    },
}
