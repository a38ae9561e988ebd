"""What a served call takes beyond the same call in the process, over websocket and shared memory.

``python benchmarks/serve/bench_serve.py`` prints a row per way, [ms]; ``--json FILE`` keeps them.
The policy answers at once and the server is another process, so only the way is timed.
"""

import argparse
import json
import os
import platform
from pathlib import Path

import numpy as np

from vlakern.serve.overhead import WAYS, overhead


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--views", type=int, default=3, help="images of a request")
    parser.add_argument("--side", type=int, default=224, help="of an image [pixels]")
    parser.add_argument("--calls", type=int, default=2000, help="of either way")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    args = parser.parse_args()
    busy = os.getloadavg()[0]
    rows = overhead(args.ways, views=args.views, side=args.side, calls=args.calls)
    size = next(iter(rows.values()))["request_bytes"]
    print(f"{args.views} views of {args.side} x {args.side}, {size / 1e3:.0f} kB, load {busy:.2f}")
    for way, row in rows.items():
        times = "  ".join(f"{name[:-3]} {row[name]:6.3f}" for name in row if name.endswith("_ms"))
        print(f"{way:10} {times}")
    if args.json is not None:
        machine = {"cpu": platform.processor(), "cores": os.cpu_count(), "load": busy}
        versions = {"python": platform.python_version(), "numpy": np.__version__}
        found = {"schema": 1, "machine": machine, "versions": versions, "overhead": rows}
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
