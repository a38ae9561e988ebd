"""Stands in for a machine with a GPU in test_gpu_check.py: python3, compute-sanitizer and the rest.

What goes wrong is in the environment variable STUB, a JSON object of event -> what happens.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SCENE: dict[str, str] = json.loads(os.environ.get("STUB", "{}"))
TOOL = os.environ.get("STUB_TOOL", "")
GPU = {
    "gpu": "NVIDIA H200",
    "capability": "90",
    "driver": "580.1",
    "clocks": {"clocks.sm": 345.0, "power.limit": None},
    "torch": "2.11.0+cu130",
    "triton": "3.6.0",
    "nvcc": "13.0",
    "python": "3.12.3",
}
XML = """<testsuites><testsuite>
<testcase name="test_gpu[one]"/><testcase name="test_gpu[two]">{}</testcase>
<testcase name="test_gpu[three]"><skipped/></testcase></testsuite></testsuites>"""


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def append(path: str, *rows: dict[str, Any]) -> None:
    with Path(path).open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def environment(words: list[str]) -> int:
    if SCENE.get("environment"):
        return 1
    print("a warning of some library")
    print(json.dumps(GPU))
    print("a word at the end")
    return 0


def pip(words: list[str]) -> int:
    Path(option(words, "--target")).mkdir()
    assert "cmake.define.VLAKERN_CUDA_ARCHS=90" in words
    return 1 if SCENE.get("pip") else 0


def inline(words: list[str]) -> int:
    if "find_spec" in words[1]:
        print(SCENE.get("modules", ""))
        return 0
    ops = Path(os.environ["STUB_ROOT"], "benchmarks/ops").glob("bench_*.py")
    served = {"triton": "ok", "cpu": "computes on the CPU", "reference": "ok"}
    if SCENE.get("verdicts"):
        print(SCENE["verdicts"])
        return 0
    print(json.dumps({path.stem.removeprefix("bench_"): served for path in ops}))
    return 0


def pytest(words: list[str]) -> int:
    happens = SCENE.get(f"pytest {Path(words[-1]).stem}", "")
    if happens == "none":
        return 5
    if happens == "crash":
        os.abort()
    xml = next(word for word in words if word.startswith("--junitxml=")).split("=", 1)[1]
    Path(xml).write_text(XML.format("<failure/>" if happens else ""))
    return 1 if happens else 0


def sanitize(words: list[str]) -> int:
    for op in words[words.index("--op") + 1 :]:
        print(f"begin {op}: triton")
        if SCENE.get(f"{TOOL} {op}"):
            print("========= Invalid __global__ write of size 4 bytes")
            return 9
        print(f"clean {op}")
    return 0


def constants(words: list[str]) -> int:
    row = {"name": "memory_hop", "value": 0.65, "unit": "us", "method": "stub"}
    append(option(words, "--json"), row)
    return 0


def benchmark(words: list[str]) -> int:
    op = Path(words[0]).stem.removeprefix("bench_")
    row = {"op": op, "case": "B1", "device": "cuda", "backend": "triton", "microseconds": 2.5}
    happens = SCENE.get(f"bench {op}", "")
    append(
        option(words, "--json"), row | {"microseconds": float("nan")} if happens == "nan" else row
    )
    if happens == "crash":
        with Path(option(words, "--json")).open("a") as file:
            file.write('{"op": "norm", "ca')
        return 1
    return 0


def baselines(words: list[str]) -> int:
    common = {"op": "shared_attention", "case": "B1", "microseconds": 9.0, "clock": "graph"}
    timed = {"name": "sdpa", "vlakern": "shared_attention" in words}
    append(option(words, "--json"), common | timed)
    return 0


def engine(words: list[str]) -> int:
    row = {"case": "rethink-2b", "name": "vlakern-bf16", "error": 0.01, "why_eager": None}
    times = {name: {"p50": 1.0} for name in ("wall_ms", "model_ms", "stages_ms")}
    append(option(words, "--json"), row | times)
    return 0


def train(words: list[str]) -> int:
    by = SCENE.get("train", "triton")
    row = {"preset": "rethink-2b", "device": option(words, "--device"), "samples": 64}
    rates = {"packed": 30.0, "padded": 10.0}
    ratios = {name: 30.0 / rate for name, rate in rates.items()}
    row |= {"samples_per_s": rates, "ratios": ratios, "backends": {"norm": [by]}}
    append(option(words, "--json"), row)
    return 0


PROGRAMS = {
    "bench_step.py": train,
    "bench_engine.py": engine,
    "environment.py": environment,
    "sanitize.py": sanitize,
    "constants.py": constants,
    "gpu_baselines.py": baselines,
}


def python(words: list[str]) -> int:
    if words[:2] == ["-m", "pip"]:
        return pip(words)
    if words[:2] == ["-m", "pytest"]:
        return pytest(words)
    if words[0] == "-c":
        return inline(words)
    name = Path(words[0]).name
    return PROGRAMS.get(name, benchmark)(words)


def main() -> int:
    name, words = Path(sys.argv[0]).name, sys.argv[1:]
    if name == "compute-sanitizer":
        command = words[words.index("application-only") + 1 :]
        tool = option(words, "--tool")
        if SCENE.get("sleep") == tool:
            time.sleep(60)
        return subprocess.run(command, env=os.environ | {"STUB_TOOL": tool}).returncode
    return python(words) if name == "python3" else 0


if __name__ == "__main__":
    sys.exit(main())
