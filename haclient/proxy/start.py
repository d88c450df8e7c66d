"""How a worker's process begins: with pymilvus' messages, without its client.

    python -m haclient.proxy.start CONTROL_FD LISTENING_FD…

Decision made here: a worker needs the classes of Milvus' messages and nothing else of pymilvus, which brings pandas and
pyarrow with it. An empty package in its place lets the messages be imported alone: half of the time to start, and half
of the memory.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType


def _messages_only() -> None:
    spec = importlib.util.find_spec("pymilvus")
    if spec is None or spec.submodule_search_locations is None:
        return
    package = ModuleType("pymilvus")
    package.__path__ = list(spec.submodule_search_locations)
    package.__spec__ = spec
    sys.modules["pymilvus"] = package


if __name__ == "__main__":
    _messages_only()
    from haclient.proxy.worker import main

    main()
