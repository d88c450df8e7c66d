"""An application that knows two proxies: one may die, stop or be replaced, and no call fails.

python examples/proxy/app_with_two_proxies.py http://127.0.0.1:19530 http://127.0.0.1:19531
"""

from __future__ import annotations

import argparse
import asyncio

from pymilvus import MilvusException

from haclient import AsyncMilvusClient


async def ask(proxies: list[str], seconds: float) -> int:
    """Ask one question after the other; returns how many got no answer.

    Args:
        proxies: Their URIs.
        seconds: How long.
    """
    # Endpoints of one cluster, since every proxy shows the same collections.
    client = AsyncMilvusClient(config={"cluster": [{"name": "proxies", "endpoints": proxies}]})
    answered = failed = 0
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    try:
        while loop.time() < end:
            try:
                await client.list_collections()
                answered += 1
            except MilvusException as error:
                failed += 1
                print(error, flush=True)
            if (answered + failed) % 50 == 1:
                print(f"{answered} answered, {failed} failed; {client.fleet}", flush=True)
            await asyncio.sleep(0.02)
    finally:
        await client.close()
    print(f"{answered} answered, {failed} failed", flush=True)
    return failed


def main() -> None:
    """Ask, and end with exit code 1 if a call failed."""
    parser = argparse.ArgumentParser(description="Ask two proxies.")
    parser.add_argument("proxy", nargs="+", help="URI of a proxy")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long")
    given = parser.parse_args()
    raise SystemExit(1 if asyncio.run(ask(given.proxy, given.seconds)) else 0)


if __name__ == "__main__":
    main()
