"""A stage of ``gpu_check.py``: the whole engine, tested and then timed beside PyTorch."""

import time
from typing import Any

from gpu_plan import Op
from gpu_report import read_rows
from gpu_run import Result
from gpu_tests import run_tests

__all__ = ["LOOP_TESTS", "TESTS", "engine_stage"]

TESTS = "python_tests/infer/test_graph_engine_triton.py"
LOOP_TESTS = "python_tests/infer/test_device_loop.py"
SHARE = 0.4  # of the stage's time that its tests may take
# One kernel beside recorded ones, in a process of its own: what it breaks is its own affair.
LOOP = ["--name", "vlakern-bf16", "vlakern-cuda-bf16", "--case", "rethink-2b"]
LOOP_LEFT = 0.3  # of the time after the tests


def engine_stage(check: Any, limit: float) -> Result:
    """The engine's own GPU tests, then whole calls; what is red is not timed."""
    begin = time.monotonic()
    ops = {
        name: Op(name, check.root / path, True, (check.root / path,))
        for name, path in (("engine", TESTS), ("loop", LOOP_TESTS))
    }
    rest = (check.python, check.root, check.work, ops, begin + SHARE * limit)
    tests = run_tests(check.runner, *rest)
    for one in tests:
        check.add("tests", **one.line())
        check.say(f"tests {one.op}: {one.status}, {one.passed} passed, {one.failed} failed")
        if one.status != "ok":
            check.fail(f"tests of {one.op}: {one.reason}")
    engine, loop = (one.status == "ok" for one in tests)
    if not engine:
        return Result(1, time.monotonic() - begin, False, "")
    left = begin + limit - time.monotonic()
    result = _timed(check, "engine", [], left * (1 - LOOP_LEFT if loop else 1))
    if loop:
        _timed(check, "loop", LOOP, begin + limit - time.monotonic())
    return Result(result.code, time.monotonic() - begin, result.timed_out, "")


def _timed(check: Any, name: str, words: list[str], left: float) -> Result:
    """Whole calls of some contenders, a line each."""
    rows = check.work / f"{name}.jsonl"
    script = check.root / "benchmarks/e2e/bench_engine.py"
    command = [check.python, str(script), "--json", str(rows), "--limit", f"{0.85 * left:.0f}"]
    result = check.runner.run(name, [*command, *words], left)
    found = read_rows(rows)
    for row in found:
        check.add("engine", **row)
    check.say(f"{name}: {result.status}, {len(found)} lines")
    return result
