"""The last stage of ``gpu_check.py``: the whole engine, tested and then timed beside PyTorch."""

import time
from typing import Any

from gpu_plan import Op
from gpu_report import read_rows
from gpu_run import Result
from gpu_tests import run_tests

__all__ = ["TESTS", "engine_stage"]

TESTS = "python_tests/infer/test_graph_engine_triton.py"
SHARE = 0.4  # of the stage's time that its tests may take


def engine_stage(check: Any, limit: float) -> Result:
    """The engine's own GPU tests, then whole calls; not timed while a test is red."""
    begin, path = time.monotonic(), check.root / TESTS
    ops = {"engine": Op("engine", path, True, (path,))}
    rest = (check.python, check.root, check.work, ops, begin + SHARE * limit)
    [tests] = run_tests(check.runner, *rest)
    check.add("tests", **tests.line())
    check.say(f"tests engine: {tests.status}, {tests.passed} passed, {tests.failed} failed")
    if tests.status != "ok":
        check.fail(f"tests of engine: {tests.reason}")
        return Result(1, time.monotonic() - begin, False, "")
    rows = check.work / "engine.jsonl"
    left = begin + limit - time.monotonic()
    script = check.root / "benchmarks/e2e/bench_engine.py"
    command = [check.python, str(script), "--json", str(rows), "--limit", f"{0.85 * left:.0f}"]
    result = check.runner.run("engine", command, left)
    found = read_rows(rows)
    for row in found:
        check.add("engine", **row)
    check.say(f"engine: {result.status}, {len(found)} lines")
    return Result(result.code, time.monotonic() - begin, result.timed_out, "")
