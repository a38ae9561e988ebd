"""The proofs of ``gpu_check.py``: pytest a file at a time, compute-sanitizer a tool at a time."""

import os
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_plan import Op
from gpu_run import Result, Runner

__all__ = ["TOOLS", "Finding", "Outcome", "run_tests", "sanitize"]

DRIVER = "driver"  # the cases under no tool
TOOLS = ("memcheck", "racecheck", "synccheck")
LEAST = 5.0  # [s] below which a process with torch is not worth starting
FOUND = 9  # exit code that compute-sanitizer is asked to give when it finds an error
SHOWN = 20  # failing tests named per file
PARALLEL = 4  # test files at a time: most of a Triton test is compiling, which needs no GPU
# Each tensor alone, so that memcheck sees a step beyond its end.
ALONE = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
UNUSABLE = ("Device not supported", "Unable to find", "failed to attach")


@dataclass(frozen=True)
class Outcome:
    """What pytest said of one file."""

    op: str
    file: str
    status: str
    reason: str
    passed: int
    failed: int
    skipped: int
    failures: tuple[str, ...]

    def line(self) -> dict[str, Any]:
        """The fields of a ``tests`` line."""
        return self.__dict__ | {"failures": list(self.failures)}


@dataclass(frozen=True)
class Finding:
    """What one tool said of one op: ``ok``, ``failed``, or why it said nothing."""

    op: str
    tool: str
    status: str


def run_tests(
    runner: Runner, python: str, root: Path, work: Path, ops: Mapping[str, Op], deadline: float
) -> list[Outcome]:
    """Every file with GPU tests, several at a time, each in a process of its own."""

    def one(op: str, path: Path) -> Outcome:
        xml = work / f"{path.stem}.xml"
        command = [python, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
        command += ["-c", str(root / "pyproject.toml"), "--rootdir", str(root)]
        command += [f"--junitxml={xml}", str(path)]
        result = runner.run(f"tests {path.stem}", command, deadline - time.monotonic())
        return outcome(op, path.relative_to(root).as_posix(), result, xml)

    with ThreadPoolExecutor(min(PARALLEL, os.cpu_count() or 1)) as pool:
        jobs = [pool.submit(one, op.name, path) for op in ops.values() for path in op.tests]
        return [job.result() for job in jobs]


def outcome(op: str, file: str, result: Result, xml: Path) -> Outcome:
    """Counts from pytest's own report; a file without a passing test proves nothing."""
    passed, skipped, failures = 0, 0, []
    try:
        cases = list(ElementTree.parse(xml).iter("testcase")) if xml.exists() else []
    except ElementTree.ParseError:
        cases = []
    for case in cases:
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            failures.append(case.get("name", "?"))
        elif "skipped" in kinds:
            skipped += 1
        else:
            passed += 1
    status, reason = result.status, result.reason
    if status == "ok" and (passed == 0 or failures):
        status, reason = "failed", "no test passed" if passed == 0 else "a test failed"
    shown = tuple(failures[:SHOWN])
    return Outcome(op, file, status, reason, passed, len(failures), skipped, shown)


def sanitize(
    runner: Runner, python: str, script: Path, ops: Sequence[str], deadline: float
) -> list[Finding]:
    """The driver alone first, which also compiles what the tools then meet ready, then each tool.

    A tool takes all ops in one process, since starting costs more than the cases; where it finds
    something, the ops are taken one by one to learn whose it is.
    """
    alone = _one_tool(runner, python, script, DRIVER, ops, (deadline - time.monotonic()) / 3)
    found = [one for one in alone if one.status != "ok"]
    todo = [one.op for one in alone if one.status == "ok"]
    for position, tool in enumerate(TOOLS):
        share = (deadline - time.monotonic()) / (len(TOOLS) - position)
        found += _one_tool(runner, python, script, tool, todo, share)
    return found


def _one_tool(
    runner: Runner, python: str, script: Path, tool: str, ops: Sequence[str], share: float
) -> list[Finding]:
    """All ops together and, unless all are clean, one by one."""
    deadline = time.monotonic() + share
    under = [] if tool == DRIVER else ["compute-sanitizer", "--tool", tool]
    under += ["--error-exitcode", str(FOUND)] if under else []
    under += ["--target-processes", "application-only"] if under else []
    extra = ALONE if under else {}

    def run(*some: str) -> Result:
        command = [*under, python, str(script), "--op", *some]
        limit = deadline - time.monotonic()
        return runner.run(f"{tool} {' '.join(some)}", command, limit, **extra)

    if not ops:
        return []
    together = run(*ops)
    if {verdict(together, op) for op in ops} == {"ok"}:
        return [Finding(op, tool, "ok") for op in ops]
    if together.status == "unavailable" or (under and unusable(together.output)):
        return [Finding(op, tool, "unavailable") for op in ops]
    alone = []
    for op in ops:
        if deadline - time.monotonic() < LEAST:
            alone.append(Finding(op, tool, "timed out"))
        else:
            alone.append(Finding(op, tool, verdict(run(op), op)))
    return alone


def unusable(output: str) -> bool:
    """Whether the tool said that it cannot work on this machine at all."""
    return any(words in output for words in UNUSABLE)


def verdict(result: Result, op: str) -> str:
    """Of one op in a run: ok only if the run found nothing and the op's cases came to their end."""
    if result.status == "ok":
        return "ok" if f"clean {op}\n" in result.output else "failed"
    return result.status
