"""The GPU check without a GPU: stubs answer for the machine, so its own logic is what is tested."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
STUB = Path(__file__).with_name("stub.py")
sys.path.append(str(ROOT / "benchmarks"))

import gpu_check  # noqa: E402
import gpu_plan  # noqa: E402
from gpu_report import problems  # noqa: E402
from gpu_run import Result, Runner  # noqa: E402
from gpu_tests import sanitize  # noqa: E402

Line = dict[str, Any]
COMMANDS = ("python3", "nvidia-smi", "nvcc", "cmake", "compute-sanitizer")


@dataclass(frozen=True)
class Ran:
    code: int
    said: str
    lines: list[Line]

    def of(self, kind: str, **wanted: Any) -> list[Line]:
        """The lines of a kind whose fields are as wanted."""
        return [
            line
            for line in self.lines
            if line["kind"] == kind and all(line[name] == one for name, one in wanted.items())
        ]


Machine = Callable[..., Ran]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Runs the script on a machine of stubs where the named things go wrong."""
    stubs, temporary = tmp_path / "stubs", tmp_path / "temporary"
    for folder in (stubs, temporary):
        folder.mkdir()
    for name in COMMANDS:
        (stubs / name).write_text(f"#!{sys.executable} -ES\n{STUB.read_text()}")
        (stubs / name).chmod(0o755)

    def run(scene: dict[str, str], *words: str, without: Sequence[str] = ()) -> Ran:
        for name in without:
            (stubs / name).unlink()
        out = tmp_path / "out"
        environment = {
            "PATH": f"{stubs}:/usr/bin:/bin",
            "STUB": json.dumps(scene),
            "STUB_ROOT": str(ROOT),
            "TMPDIR": str(temporary),
            "OUT": str(out),
            "PYTHON": sys.executable,
        }
        script = ["bash", str(ROOT / "benchmarks/gpu_check.sh")]
        script += ["--python", str(stubs / "python3"), "--commit", "abc", *words]
        done = subprocess.run(script, env=environment, capture_output=True, text=True)
        path = out / "gpu_check.jsonl"
        texts = path.read_text().splitlines() if path.exists() else []
        assert [one for text in texts for one in problems(text)] == []
        assert list(temporary.iterdir()) == []
        return Ran(done.returncode, done.stdout + done.stderr, [json.loads(one) for one in texts])

    return run


def timed_ops() -> list[str]:
    return [op.name for op in gpu_plan.find_ops(ROOT).values() if op.takes_device and op.tests]


def test_a_green_run(machine: Machine) -> None:
    """Every stage runs, correctness stands before speed, and the end says how to keep the lines."""
    ran = machine({})
    assert ran.code == 0, ran.said
    assert {line["name"]: line["status"] for line in ran.of("stage")} == dict.fromkeys(
        gpu_check.STAGES, "ok"
    )
    assert ran.of("environment", device="nvidia-h200", commit="abc", capability="90")
    assert {line["op"] for line in ran.of("speed")} == set(timed_ops())
    assert {line["sanitizer"] for line in ran.of("speed")} == {"clean"}
    assert len(ran.of("sanitizer", status="ok")) == 3 * len(gpu_plan.find_ops(ROOT))
    assert ran.of("baseline", name="sdpa", vlakern=True)
    assert ran.of("machine", name="memory_hop")
    assert ran.of("tests", op="engine", status="ok")
    assert ran.of("engine", case="rethink-2b", name="vlakern-bf16")
    assert ran.of("tests", op="loop", status="ok")
    assert ran.of("train", preset="rethink-2b", device="cuda")
    kinds = [line["kind"] for line in ran.lines if line.get("op") not in ("engine", "loop")]
    assert max(i for i, kind in enumerate(kinds) if kind in ("tests", "sanitizer")) < kinds.index(
        "speed"
    )
    assert kinds[-1] == "summary"
    assert ran.lines[-1] | {"seconds": 0} == {
        "schema": 1,
        "kind": "summary",
        "ok": True,
        "red": [],
        "seconds": 0,
        "speed_lines": len(timed_ops()),
    }
    assert "benchmarks/baselines/nvidia-h200.jsonl" in ran.said
    assert str(ROOT) not in json.dumps(ran.lines)


def test_what_is_red_is_not_timed(machine: Machine) -> None:
    """A failing test, an error found, a crash: each stops its own op's speed and nothing else."""
    scene = {
        "pytest test_norm": "fail",
        "pytest test_shared_attention_triton": "crash",
        "memcheck ode_step": "error",
        "bench image_prep": "crash",
    }
    ran = machine(scene)
    assert ran.code == 1
    assert {line["op"] for line in ran.of("speed")} == set(timed_ops()) - {
        "norm",
        "ode_step",
        "shared_attention",
    }
    [tests] = ran.of("tests", op="norm")
    assert (tests["status"], tests["passed"], tests["failed"]) == ("failed", 1, 1)
    assert tests["failures"] == ["test_gpu[two]"]
    assert (
        ran.of("tests", file="python_tests/ops/test_shared_attention_triton.py")[0]["passed"] == 0
    )
    found = {(line["op"], line["status"]) for line in ran.of("sanitizer", tool="memcheck")}
    assert {op for op, status in found if status == "failed"} == {"ode_step"}
    assert len(found) == len(gpu_plan.find_ops(ROOT))
    assert ran.of("baseline", vlakern=False)
    states = {line["name"]: line["status"] for line in ran.of("stage")}
    assert [name for name, state in states.items() if state != "ok"] == [
        "tests",
        "sanitizer",
        "speed",
        "train",
    ]
    assert any("norm" in one for one in ran.lines[-1]["red"])


def test_a_build_that_fails(machine: Machine) -> None:
    """Without the package only the machine's constants are measured; the rest is named skipped."""
    ran = machine({"pip": "fail"})
    assert ran.code == 1
    states = {line["name"]: line["status"] for line in ran.of("stage")}
    assert states == {
        "environment": "ok",
        "build": "failed",
        "backends": "skipped",
        "tests": "skipped",
        "sanitizer": "skipped",
        "machine": "ok",
        "speed": "skipped",
        "engine": "skipped",
        "train": "skipped",
    }
    assert ran.of("machine")
    assert not ran.of("speed")


def test_an_engine_that_is_red_is_not_timed(machine: Machine) -> None:
    """A failing test of the engine: no line of its speed, and the ops are timed all the same."""
    words = ("--only", "build", "backends", "tests", "speed", "engine")
    ran = machine({"pytest test_graph_engine_triton": "fail"}, *words)
    assert ran.code == 1
    assert not ran.of("engine")
    assert ran.of("tests", op="engine", status="failed")
    assert {line["op"] for line in ran.of("speed")} == set(timed_ops())


def test_a_red_kernel_of_the_integration_stops_itself_alone(machine: Machine) -> None:
    """The engine is timed without it; green, it is timed beside the engine in a run of its own."""
    words = ("--only", "build", "engine")
    ran = machine({"pytest test_device_loop": "fail"}, *words)
    assert ran.code == 1
    assert ran.of("tests", op="loop", status="failed")
    assert len(ran.of("engine")) == 1
    assert len(machine({}, *words).of("engine")) == 2


def test_a_training_step_with_a_red_op_is_not_timed(machine: Machine) -> None:
    """Nor is a step green in which an op fell back to its definition; its rates are kept."""
    words = ("--only", "build", "backends", "tests", "train")
    ran = machine({"pytest test_qkv_prep": "fail"}, *words)
    assert ran.code == 1
    assert not ran.of("train")
    assert ran.of("stage", name="train", status="failed")
    slow = machine({"train": "reference"}, *words)
    assert slow.code == 1
    assert slow.of("train", preset="rethink-2b", device="cuda")
    assert any("norm by reference" in one for one in slow.lines[-1]["red"])


def test_no_gpu(machine: Machine) -> None:
    """Nothing is measured, and the report says why."""
    ran = machine({"environment": "fail"})
    assert ran.code == 1
    assert {line["kind"] for line in ran.lines} == {"stage", "summary"}
    assert {line["reason"] for line in ran.of("stage", status="skipped")} == {
        "there is no usable GPU"
    }


def test_lines_that_break_the_schema(machine: Machine) -> None:
    """A benchmark's NaN is red and not in the report."""
    ran = machine({"bench norm": "nan"}, "--only", "build", "backends", "tests", "speed")
    assert ran.code == 1
    assert not ran.of("speed", op="norm")
    assert ran.of("speed", op="ode_step", sanitizer="not run")
    assert any("microseconds is not a finite number" in one for one in ran.lines[-1]["red"])
    assert ran.of("stage", name="sanitizer", status="skipped", reason="not asked for")


def test_dry_run(machine: Machine) -> None:
    """The plan with its budgets; every file, command and module is there, nothing is run."""
    ran = machine({}, "--dry-run")
    assert ran.code == 0, ran.said
    assert all(f"{name:<12} {budget:4d} s" in ran.said for name, budget in gpu_plan.BUDGETS.items())
    assert sum(gpu_plan.BUDGETS.values()) <= 570
    assert not ran.lines


def test_dry_run_names_what_is_missing(machine: Machine) -> None:
    """A command and a module that are not there."""
    ran = machine({"modules": "scipy"}, "--dry-run", without=["compute-sanitizer"])
    assert ran.code == 1
    assert "missing: Python module scipy" in ran.said
    elsewhere = shutil.which("compute-sanitizer", path="/usr/bin:/bin:/usr/local/cuda/bin")
    assert ("missing: command compute-sanitizer" in ran.said) == (elsewhere is None)


def test_a_program_that_hangs_is_killed(tmp_path: Path) -> None:
    """With all that it started, at its limit, its output kept."""
    runner = Runner(tmp_path, os.environ, tmp_path / "log")
    begin = time.monotonic()
    words = "echo begun; sleep 300 & echo $!; trap '' TERM; sleep 300"
    result = runner.run("hangs", ["bash", "-c", words], 1.0)
    assert (result.status, result.reason) == ("timed out", f"killed after {result.seconds:.0f} s")
    assert time.monotonic() - begin < 30
    begun, child = result.output.split()
    assert begun == "begun"
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"
    assert "begun" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("words", "status"),
    [(["true"], "ok"), (["false"], "failed"), (["/nonexistent"], "unavailable")],
)
def test_how_programs_end(words: list[str], status: str, tmp_path: Path) -> None:
    """Also one that does not start."""
    assert Runner(tmp_path, os.environ, tmp_path / "log").run("x", words, 20).status == status


class Scripted:
    """A runner that gives prepared results, by the first word of the title."""

    def __init__(self, *results: tuple[str, Result]):
        self.results, self.titles = list(results), []

    def run(self, title: str, command: Sequence[str], limit: float, **extra: str) -> Result:
        self.titles.append(title)
        return next(result for head, result in self.results if title.startswith(head))


CLEAN = Result(0, 1.0, False, "begin a: triton\nclean a\nbegin b: triton\nclean b\n")


def findings(runner: Any) -> dict[tuple[str, str], str]:
    found = sanitize(runner, "python3", Path("sanitize.py"), ["a", "b"], time.monotonic() + 100)
    return {(one.tool, one.op): one.status for one in found}


def test_sanitizer_that_cannot_work_here() -> None:
    """A tool that is missing or refuses the device is unavailable, which is not the op's fault."""
    refuses = Result(1, 1.0, False, "========= Error: Device not supported")
    runner = Scripted(("driver", CLEAN), ("memcheck", refuses), ("", Result(-1, 0.0, False, "")))
    assert set(findings(runner).values()) == {"unavailable"}
    assert len(runner.titles) == 4


def test_sanitizer_asks_whose_error_it_is() -> None:
    """Where all ops together had an error they are taken one by one, under no tool as well."""
    error = Result(9, 1.0, False, "begin a: triton\n")
    runner = Scripted(
        ("driver", CLEAN), ("racecheck a b", error), ("racecheck b", error), ("", CLEAN)
    )
    found = findings(runner)
    assert {key for key, status in found.items() if status != "ok"} == {("racecheck", "b")}
    crash = Result(1, 1.0, False, "begin a: triton\n")
    broken = Scripted(("driver a b", crash), ("driver a", crash), ("", CLEAN))
    assert findings(broken) == {
        ("driver", "a"): "failed",
        **{(tool, "b"): "ok" for tool in ("memcheck", "racecheck", "synccheck")},
    }


def test_time_not_used_is_handed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stage may run until the sum of the budgets so far; one without time left is skipped."""
    now, limits = [0.0], {}
    monkeypatch.setattr(gpu_check.time, "monotonic", lambda: now[0])
    budgets = {"environment": 10, "build": 20, "tests": 30}

    def stage(name: str, takes: float) -> Callable[..., Result]:
        def run(check: gpu_check.Check, limit: float) -> Result:
            limits[name] = limit
            check.environment, check.ready = {"gpu": "x"}, True
            now[0] += takes
            return Result(0, takes, False, "")

        return run

    for takes, expected, lost in (
        ((1.0, 2.0, 3.0), {"environment": 10.0, "build": 29.0, "tests": 57.0}, []),
        ((1.0, 70.0, 3.0), {"environment": 10.0, "build": 29.0}, ["tests"]),
    ):
        now[0] = 0.0
        limits.clear()
        stages = {n: stage(n, t) for n, t in zip(budgets, takes, strict=True)}
        monkeypatch.setattr(gpu_check, "STAGES", stages)
        monkeypatch.setattr(gpu_check, "BUDGETS", budgets)
        check = gpu_check.Check(
            root=ROOT,
            python="python3",
            work=tmp_path,
            report=gpu_check.Report(tmp_path / "report"),
            runner=Runner(tmp_path, {}, tmp_path / "log"),
            begin=0.0,
            limit=60.0,
            commit=None,
            wanted=tuple(budgets),
        )
        assert gpu_check.run_stages(check) == (not lost)
        assert limits == expected
        lines = [json.loads(one) for one in (tmp_path / "report").read_text().splitlines()]
        skipped = [line["name"] for line in lines if line.get("status") == "skipped"]
        assert skipped == lost


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ({"kind": "sanitizer", "schema": 1, "op": "a", "tool": "memcheck", "status": "ok"}, ""),
        ({"kind": "sanitizer", "schema": 1, "op": "a", "tool": "memcheck"}, "status is missing"),
        (
            {"kind": "sanitizer", "schema": 1, "op": 1, "tool": "m", "status": "ok"},
            "op must be str",
        ),
        ({"kind": "sanitizer", "schema": 1, "op": "a", "tool": "m", "status": "?"}, "one of ok"),
        ({"kind": "sanitizer", "schema": 2, "op": "a", "tool": "m", "status": "ok"}, "schema must"),
        ({"kind": "gossip", "schema": 1}, "kind must be"),
        ([], "kind must be"),
    ],
)
def test_schema(line: Any, wrong: str) -> None:
    """What a line lacks or has wrong is named."""
    found = problems(json.dumps(line))
    assert bool(found) == bool(wrong)
    assert wrong in " ".join(found)


def test_a_stage_with_a_mistake(machine: Machine) -> None:
    """Verdicts that are no table make their stage red; the stages after it still run."""
    ran = machine({"verdicts": '{"norm": 3}'})
    assert ran.code == 1
    states = {line["name"]: line["status"] for line in ran.of("stage")}
    assert states["backends"] == "failed"
    assert states["tests"] == states["machine"] == "ok"
    assert not ran.of("speed")


def test_what_can_be_timed_can_be_tested() -> None:
    """Every benchmark that takes a GPU has tests for one, else its op could never be timed; and the
    contest times inside graphs."""
    timed = [op for op in gpu_plan.find_ops(ROOT).values() if op.takes_device]
    assert {op.name for op in timed} >= {"norm", "qkv_prep", "flow_loss", "image_prep", "ode_step"}
    for op in timed:
        assert op.tests, f"{op.name} has no test marked gpu"
    assert "interleave_on(" in (ROOT / "benchmarks/ops/contest.py").read_text()
