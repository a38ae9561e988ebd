"""The constants of this GPU: builds ``constants.cu``, runs each measurement, adds torch's matmul.

``python benchmarks/machine/constants.py [--json FILE]`` prints a table. A measurement that fails or
hangs is named and the others go on; exit code 1 then. What this GPU does not have is only said.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("constants.cu")
MEASUREMENTS = (
    "copy",
    "read",
    "graph_launch",
    "cold_burst",
    "grid_barrier",
    "cluster_barrier",
    "programmatic_edge",
    "memory_hop",
)
LACKS = 4  # exit code of constants.cu where the GPU does not have what is measured
EACH = 15.0  # [s] a measurement may take
SIDE, PASSES = 8192, 10


def compile_command(arch: str, program: Path) -> list[str]:
    """nvcc's words for one target."""
    target = f"-gencode=arch=compute_{arch},code=sm_{arch}"
    return ["nvcc", "-std=c++17", "-O3", target, str(SOURCE), "-o", str(program)]


def parse(output: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The sound lines of a measurement, and what is wrong with the others."""
    rows, wrong = [], []
    for line in output.splitlines():
        try:
            row = json.loads(line)
            name, value, known = row["name"], float(row["value"]), {row["unit"], row["method"]}
        except (ValueError, KeyError, TypeError):
            wrong.append(f"not a line of a measurement: {line[:80]}")
            continue
        if value > 0 and math.isfinite(value) and all(known):
            rows.append(row)
        else:
            wrong.append(f"{name} is {value}, no possible time or rate")
    return rows, wrong


def matmul_peak() -> dict[str, Any]:
    """The rate of torch's bf16 matmul (cuBLAS) on random numbers, best of ten."""
    import torch

    a, b = (torch.randn(SIDE, SIDE, device="cuda").bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    seconds = []
    for _ in range(3 + PASSES):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        torch.mm(a, b, out=out)
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3)
    method = f"torch.mm of two random {SIDE} x {SIDE} matrices, best of {PASSES}"
    rate = 2 * SIDE**3 / min(seconds[3:])
    return {"name": "matmul_bf16", "value": rate, "unit": "FLOP/s", "method": method}


def said_by(command: Sequence[str], limit: float) -> tuple[int, str, str]:
    """Exit code, output and errors of a program, ended after ``limit`` seconds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(limit, 0.1))
    except subprocess.TimeoutExpired:
        return -1, "", f"ended after {limit:.0f} s"
    except OSError as error:
        return -1, "", str(error)
    return done.returncode, done.stdout, done.stderr


def measure(programs: dict[str, Sequence[str]], limit: float, json_file: Path | None) -> list[str]:
    """Runs name -> command one by one, prints and keeps their lines; what went wrong."""
    deadline, wrong = time.monotonic() + limit, []
    for name, command in programs.items():
        code, output, errors = said_by(command, min(EACH, deadline - time.monotonic()))
        rows, unsound = parse(output)
        for row in rows:
            more = {key: row[key] for key in row if key not in ("name", "value", "unit", "method")}
            print(f"{row['name']:<20} {row['value']:14.5g} {row['unit']:<7} {more or ''}")
            if json_file:
                with json_file.open("a") as file:
                    file.write(json.dumps(row) + "\n")
        wrong += unsound
        if code == LACKS:
            print(f"{name}: {errors.strip()}")
        elif code != 0:
            wrong.append(f"{name}: exit code {code}: {errors.strip()[-300:]}")
        elif not rows:
            wrong.append(f"{name}: said nothing")
    return wrong


def own_arch() -> str:
    """``90`` of the current GPU."""
    import torch

    return "{}{}".format(*torch.cuda.get_device_capability())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="", help="90 for sm_90; the GPU's own by default")
    parser.add_argument("--work", type=Path, help="where to build; a temporary folder by default")
    parser.add_argument("--limit", type=float, default=120.0, help="[s] for everything")
    parser.add_argument("--json", type=Path, help="append JSON lines to this file")
    parser.add_argument("--matmul", action="store_true", help="only torch's matmul, as a line")
    args = parser.parse_args()
    if args.matmul:
        print(json.dumps(matmul_peak()))
        return 0
    deadline = time.monotonic() + args.limit
    with tempfile.TemporaryDirectory() as folder:
        program = (args.work or Path(folder)) / "constants"
        command = compile_command(args.arch or own_arch(), program)
        code, output, errors = said_by(command, args.limit * 0.6)
        wrong = [] if code == 0 else [f"nvcc: exit code {code}: {(output + errors)[-1000:]}"]
        names = MEASUREMENTS if code == 0 else ()
        programs: dict[str, Sequence[str]] = {name: [str(program), name] for name in names}
        programs["matmul"] = [sys.executable, __file__, "--matmul"]
        wrong += measure(programs, deadline - time.monotonic(), args.json)
    for one in wrong:
        print(f"RED {one}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
