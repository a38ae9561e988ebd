"""Everything that needs an NVIDIA GPU: build, tests, sanitizer, machine constants, speed.

Needs this machine's Python with the modules in ``MODULES``, nvcc, and no network; imports nothing
but the standard library itself. A stage that fails is recorded and the next one runs; an op whose
tests or sanitizer are red is not timed. Duration and results on a GPU: not measured yet.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_engine import engine_stage
from gpu_plan import BUDGETS, Op, build_command, find_ops, missing
from gpu_report import Report, device_slug, read_rows
from gpu_run import Result, Runner
from gpu_tests import Outcome, run_tests, sanitize
from gpu_train import train_stage

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Check:
    """One run: what it writes to, how long it may take, and what it knows so far."""

    root: Path
    python: str
    work: Path
    report: Report
    runner: Runner
    begin: float
    limit: float
    commit: str | None
    wanted: tuple[str, ...]
    environment: dict[str, Any] = field(default_factory=dict)
    ready: bool = False  # the environment answered and the package is built
    ops: dict[str, Op] = field(default_factory=dict)
    backends: dict[str, list[str]] = field(default_factory=dict)
    tested: dict[str, str] = field(default_factory=dict)  # op -> ok or why it is red
    sanitized: dict[str, str] = field(default_factory=dict)  # op -> clean, not run or why it is red
    red: list[str] = field(default_factory=list)
    speed_lines: int = 0

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.begin:5.0f} s] {text}", flush=True)

    def add(self, kind: str, **fields: Any) -> None:
        """Writes a line; a line that breaks the schema is red itself."""
        for problem in self.report.add(kind, **fields):
            self.fail(f"{kind} line: {problem}")

    def fail(self, what: str) -> None:
        self.red.append(what)
        self.say(f"RED {what}")

    def red_because(self, op: str) -> str | None:
        """Why an op may not be timed, None if it may."""
        if self.tested.get(op, "its tests did not run") != "ok":
            return self.tested.get(op, "its tests did not run")
        if not self.backends.get(op):
            return "no GPU backend serves it"
        verdict = self.sanitized.get(op, "not run")
        return None if verdict in ("clean", "not run") else verdict


def environment_stage(check: Check, limit: float) -> Result:
    """Who the machine is; without an answer nothing else on the GPU can run."""
    script = check.root / "benchmarks/machine/environment.py"
    result = check.runner.run("environment", [check.python, str(script)], limit)
    if result.status == "ok":
        check.environment = last_object(result.output)
        if "gpu" not in check.environment:
            return Result(1, result.seconds, False, result.output)
        slug = device_slug(str(check.environment.get("gpu", "")))
        check.add("environment", device=slug, commit=check.commit, **check.environment)
        check.say(f"{check.environment.get('gpu')}, torch {check.environment.get('torch')}")
    return result


def last_object(output: str) -> dict[str, Any]:
    """The last line that is a JSON object, among what libraries say; empty if there is none."""
    for line in reversed(output.splitlines()):
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(found, dict):
            return found
    return {}


def build_stage(check: Check, limit: float) -> Result:
    """The wheel of this checkout, into a folder of its own."""
    capability = str(check.environment.get("capability", ""))
    command = build_command(check.python, check.root, check.work, capability)
    result = check.runner.run("build", command, limit)
    check.ready = result.status == "ok"
    return result


def backends_stage(check: Check, limit: float) -> Result:
    """What every op says about this GPU; a native backend that was not built is red."""
    script = "import json\nfrom vlakern.ops import verdicts\nprint(json.dumps(verdicts('cuda')))"
    result = check.runner.run("backends", [check.python, "-c", script], limit)
    if result.status != "ok":
        return result
    verdicts: dict[str, dict[str, str]] = last_object(result.output)
    wrong = 0 if verdicts else 1
    for op, by_backend in verdicts.items():
        check.add("backends", op=op, verdicts=by_backend)
        gpu = {name: by_backend[name] for name in ("cuda", "triton") if name in by_backend}
        check.backends[op] = [name for name, verdict in gpu.items() if verdict == "ok"]
        for name, verdict in gpu.items():
            if verdict != "ok":
                wrong += 1
                check.fail(f"backend {name} of {op} refuses: {verdict}")
    return Result(1 if wrong else 0, result.seconds, False, result.output)


def tests_stage(check: Check, limit: float) -> Result:
    """``pytest -m gpu``, a process for each file, so that one broken kernel ends only its own."""
    begin, deadline = time.monotonic(), time.monotonic() + limit
    outcomes = run_tests(check.runner, check.python, check.root, check.work, check.ops, deadline)
    for one in outcomes:
        check.add("tests", **one.line())
        check.say(f"tests {one.op}: {one.status}, {one.passed} passed, {one.failed} failed")
        if one.status != "ok":
            check.fail(f"tests of {one.op}: {one.reason}")
    for op in check.ops:
        mine = [one for one in outcomes if one.op == op]
        check.tested[op] = _verdict(mine)
    return _all_of(outcomes, begin)


def _verdict(outcomes: Sequence[Outcome]) -> str:
    if not outcomes:
        return "it has no GPU test"
    return next((f"{one.file}: {one.reason}" for one in outcomes if one.status != "ok"), "ok")


def _all_of(outcomes: Sequence[Any], begin: float) -> Result:
    code = 0 if outcomes and all(one.status == "ok" for one in outcomes) else 1
    return Result(code, time.monotonic() - begin, False, "")


def sanitizer_stage(check: Check, limit: float) -> Result:
    """memcheck, racecheck and synccheck over the reduced cases of every op with a GPU backend."""
    begin, deadline = time.monotonic(), time.monotonic() + limit
    ops = [op for op in check.ops if check.backends.get(op)]
    script = check.root / "benchmarks/sanitize.py"
    findings = sanitize(check.runner, check.python, script, ops, deadline)
    for one in findings:
        check.add("sanitizer", op=one.op, tool=one.tool, status=one.status)
        if one.status != "ok":
            check.fail(f"{one.tool} of {one.op}: {one.status}")
    for op in ops:
        mine = {one.tool: one.status for one in findings if one.op == op}
        bad = [tool for tool, status in mine.items() if status == "failed"]
        unknown = [tool for tool, status in mine.items() if status != "ok"]
        check.sanitized[op] = f"{bad[0]} failed" if bad else "not run" if unknown else "clean"
    return _all_of(findings, begin)


def machine_stage(check: Check, limit: float) -> Result:
    """The constants of the machine, which say how near to its limits a time is."""
    script = check.root / "benchmarks/machine/constants.py"
    rows = check.work / "machine.jsonl"
    command = [check.python, str(script), "--work", str(check.work), "--json", str(rows)]
    capability = str(check.environment.get("capability", ""))
    command += ["--arch", capability, "--limit", f"{0.9 * limit:.0f}"]
    result = check.runner.run("machine", command, limit)
    for row in read_rows(rows):
        check.add("machine", **row)
    return result


def speed_stage(check: Check, limit: float) -> Result:
    """The benchmark of every op that is green; baselines last, with what time is left."""
    begin, deadline = time.monotonic(), time.monotonic() + limit
    results = [_speed_of(check, op, deadline) for op in check.ops.values()]
    script = check.root / "benchmarks/ops/gpu_baselines.py"
    rows = check.work / "baselines.jsonl"
    left = deadline - time.monotonic()
    command = [
        check.python,
        str(script),
        "--json",
        str(rows),
        "--limit",
        f"{max(0.8 * left, 1):.0f}",
    ]
    green = [op for op in ("linear", "shared_attention") if check.red_because(op) is None]
    command += ["--vlakern", *green] if green else []
    results.append(check.runner.run("baselines", command, left))
    for row in read_rows(rows):
        check.add("baseline", **row)
    code = 0 if all(one is None or one.status == "ok" for one in results) else 1
    return Result(code, time.monotonic() - begin, False, "")


def _speed_of(check: Check, op: Op, deadline: float) -> Result | None:
    """Times one op if it may be; None if that is not asked for."""
    if not op.takes_device:
        check.say(f"speed {op.name}: its benchmark takes no --device")
        return None
    why = check.red_because(op.name)
    if why is not None:
        check.say(f"speed {op.name}: not measured, {why}")
        return None
    rows = check.work / f"speed_{op.name}.jsonl"
    command = [check.python, str(op.benchmark), "--device", "cuda", "--json", str(rows)]
    command += ["--backend", *check.backends[op.name]]
    result = check.runner.run(f"speed {op.name}", command, min(60.0, deadline - time.monotonic()))
    sanitizer = check.sanitized.get(op.name, "not run")
    found = read_rows(rows)
    for row in found:
        case, device = str(row.get("case", "")), str(row.get("device", ""))
        check.add("speed", op=op.name, case=case, device=device, sanitizer=sanitizer, row=row)
    check.speed_lines += len(found)
    check.say(f"speed {op.name}: {result.status}, {len(found)} lines")
    if result.status != "ok":
        check.fail(f"speed of {op.name}: {result.reason}")
    return result


STAGES = {
    "environment": environment_stage,
    "build": build_stage,
    "backends": backends_stage,
    "tests": tests_stage,
    "sanitizer": sanitizer_stage,
    "machine": machine_stage,
    "speed": speed_stage,
    "engine": engine_stage,
    "train": train_stage,
}
# A mistake in a stage must not cost the stages after it.
RECORDED = (OSError, RuntimeError, ValueError, LookupError, AttributeError, TypeError)
WITHOUT_BUILD = ("environment", "build", "machine")


def why_not(check: Check, name: str) -> str | None:
    """Why a stage is skipped, None if it may run."""
    if name not in check.wanted:
        return "not asked for"
    if name != "environment" and not check.environment:
        return "there is no usable GPU"
    if name not in WITHOUT_BUILD and not check.ready:
        return "the package is not built"
    return None


def run_stages(check: Check) -> bool:
    """Runs every stage until its own deadline; what one does not use, the next ones may."""
    scale = check.limit / sum(BUDGETS.values())
    deadline = check.begin
    for name, stage in STAGES.items():
        deadline += BUDGETS[name] * scale
        limit = deadline - time.monotonic()
        why = why_not(check, name)
        line = {"name": name, "limit_s": round(max(limit, 0.0), 1)}
        if why is not None or limit <= 0:
            reason = why or "no time is left"
            check.add("stage", status="skipped", seconds=0.0, reason=reason, **line)
            if reason != "not asked for":
                check.fail(f"{name} skipped: {reason}")
            continue
        check.say(f"{name}: at most {limit:.0f} s")
        try:
            result = stage(check, limit)
        except RECORDED as error:
            result = Result(1, 0.0, False, str(error))
            check.say(f"{name}: {type(error).__name__}: {error}")
        seconds = round(result.seconds, 1)
        check.add("stage", status=result.status, seconds=seconds, reason=result.reason, **line)
        if result.status != "ok":
            check.fail(f"{name}: {result.reason}")
    total = round(time.monotonic() - check.begin, 1)
    green = not check.red
    check.add(
        "summary", ok=green, red=list(check.red), seconds=total, speed_lines=check.speed_lines
    )
    return green


def environment_for(work: Path, given: Mapping[str, str]) -> dict[str, str]:
    """The environment of every child: the built package first, caches of its own, CUDA's tools."""
    paths = [str(work / "site"), *given.get("PYTHONPATH", "").split(os.pathsep)]
    return dict(given) | {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PATH": os.pathsep.join((given.get("PATH", ""), "/usr/local/cuda/bin")),
        "TRITON_CACHE_DIR": str(work / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
        "OMP_NUM_THREADS": given.get("OMP_NUM_THREADS", "4"),
    }


def commit_of(root: Path) -> str | None:
    """The checkout's commit, with ``+`` if it has changes; None where git does not say."""
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    except OSError:
        return None
    if head.returncode != 0 or not head.stdout.strip():
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def dry_run(root: Path, python: str, environment: Mapping[str, str]) -> bool:
    """Prints the plan, and what it lacks here."""
    print(f"{'stage':<12} budget")
    for name in STAGES:
        print(f"{name:<12} {BUDGETS[name]:4d} s")
    print(f"{'together':<12} {sum(BUDGETS.values()):4d} s")
    for op in find_ops(root).values():
        words = [f"{len(op.tests)} GPU test files", "timed" if op.takes_device else "not timed"]
        print(f"op {op.name:<18} {', '.join(words)}")
    lacks = missing(root, python, environment)
    for one in lacks:
        print(f"missing: {one}")
    print("nothing is missing" if not lacks else f"{len(lacks)} missing")
    return not lacks


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    default = os.environ.get("OUT") or str(ROOT / "outputs")
    parser.add_argument("--out", type=Path, default=Path(default), help="$OUT, else ./outputs")
    parser.add_argument("--limit", type=float, default=float(sum(BUDGETS.values())), help="[s]")
    parser.add_argument("--only", nargs="+", choices=tuple(STAGES), default=list(STAGES))
    parser.add_argument("--commit", help="where the checkout has no history")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and what it lacks")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    root, work = args.root.resolve(), Path(tempfile.mkdtemp(prefix="gpu_check_"))
    environment = environment_for(work, os.environ)
    try:
        if args.dry_run:
            return 0 if dry_run(root, args.python, environment) else 1
        args.out.mkdir(parents=True, exist_ok=True)
        report = Report(args.out / "gpu_check.jsonl")
        runner = Runner(work, environment, args.out / "gpu_check.log")
        wanted = tuple({"environment": None, **dict.fromkeys(args.only)})
        check = Check(
            root=root,
            python=args.python,
            work=work,
            report=report,
            runner=runner,
            begin=time.monotonic(),
            limit=args.limit,
            commit=args.commit or commit_of(root),
            wanted=wanted,
            ops=find_ops(root),
        )
        green = run_stages(check)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"report: {report.path}")
    if check.environment:
        slug = device_slug(str(check.environment.get("gpu", "")))
        print(f"to keep it: cp {report.path} benchmarks/baselines/{slug}.jsonl")
    print("green" if green else "RED:\n  " + "\n  ".join(check.red))
    return 0 if green else 1


if __name__ == "__main__":
    sys.exit(main())
