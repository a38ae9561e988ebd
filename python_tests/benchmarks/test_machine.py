"""The machine's constants and environment: their arithmetic, their words, every CUDA target."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MACHINE = ROOT / "benchmarks/machine"
ARCHS = (80, 87, 90, 100, 110, 120)
COMPILER = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"machine_{name}", MACHINE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
def test_arithmetic(tmp_path: Path) -> None:
    """Every word is read once, cold windows are apart, lines are fitted: on the host."""
    program = tmp_path / "arithmetic_test"
    source = MACHINE / "arithmetic_test.cpp"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([str(COMPILER), *flags, str(source), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "sound\n")


@pytest.mark.ci
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA compiler here")
def test_constants_compile_for_every_target(tmp_path: Path) -> None:
    """No warning, no local memory; the program says what it measures, the list in Python too."""
    program = tmp_path / "constants"
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHS]
    warnings = ["-Xptxas", "-v", "-Xcompiler", "-Wall", "--Werror", "all-warnings"]
    command = module("constants").compile_command("90", program)
    command[3:4] = [*targets, *warnings]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", done.stderr)
    assert set(re.findall(r"for 'sm_(\d+)'", done.stderr)) == {str(arch) for arch in ARCHS}
    assert len(spills) >= 8 * len(ARCHS)
    assert set(spills) == {("0", "0")}
    usage = subprocess.run([str(program)], capture_output=True, text=True)
    assert usage.returncode == 2
    named = usage.stderr.split(":")[-1].split()
    assert sorted(named) == sorted(module("constants").MEASUREMENTS)


LINE = {"name": "memory_hop", "value": 0.65, "unit": "us", "method": "m"}


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        (json.dumps(LINE), ""),
        (json.dumps(LINE | {"bytes": 4}), ""),
        (json.dumps(LINE | {"value": -1.0}), "no possible time"),
        (json.dumps(LINE | {"value": float("nan")}), "no possible time"),
        (json.dumps(LINE | {"unit": ""}), "no possible time"),
        (json.dumps({"name": "x"}), "not a line"),
        ("Segmentation fault", "not a line"),
        ("[1]", "not a line"),
    ],
)
def test_lines_of_a_measurement(line: str, wrong: str) -> None:
    """What no measurement can be is kept out and said."""
    rows, found = module("constants").parse(line)
    assert bool(rows) == (not wrong)
    assert len(found) == bool(wrong)
    assert wrong in "".join(found)


def test_one_failing_measurement_leaves_the_others(tmp_path: Path) -> None:
    """A crash, a hang and what the GPU lacks each end only their own measurement."""
    constants = module("constants")
    vars(constants)["EACH"] = 4.0

    def python(text: str) -> list[str]:
        return [sys.executable, "-c", text]

    programs = {
        "good": python(f"print({json.dumps(json.dumps(LINE))})"),
        "crash": python("import sys; print('half'); sys.exit(3)"),
        "hang": python("import time; time.sleep(60)"),
        "lacking": python("import sys; sys.exit(4)"),
        "mute": python(""),
        "absent": ["/nonexistent/program"],
        "last": python(f"print({json.dumps(json.dumps(LINE | {'name': 'last'}))})"),
    }
    wrong = constants.measure(programs, 100.0, tmp_path / "rows")
    rows = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    assert [row["name"] for row in rows] == ["memory_hop", "last"]
    assert [one.split(":")[0] for one in wrong] == [
        "not a line of a measurement",
        "crash",
        "hang",
        "mute",
        "absent",
    ]


SMI = "580.159.04, 345, 1980, 3201, [N/A], 700.00\n"


@pytest.mark.parametrize(
    ("text", "driver", "clocks"),
    [
        (SMI, "580.159.04", [345.0, 1980.0, 3201.0, None, 700.0]),
        (SMI + SMI, "580.159.04", [345.0, 1980.0, 3201.0, None, 700.0]),
        ("580.1\n", "580.1", [None] * 5),
        ("", None, [None] * 5),
        ("[Not Supported], [Unknown Error], 1\n", None, [None, 1.0, None, None, None]),
    ],
)
def test_driver_and_clocks(text: str, driver: str | None, clocks: list[Any]) -> None:
    """What a driver does not say is None, never a guess."""
    found = module("environment").parse_smi(text)
    assert found["driver"] == driver
    assert list(found["clocks"].values()) == clocks


def test_nvcc_version() -> None:
    """The release, or None where there is no compiler."""
    parse = module("environment").parse_nvcc
    assert parse("Cuda compilation tools, release 13.0, V13.0.88\n") == "13.0"
    assert parse("") is None
    assert module("environment").said_by("/nonexistent/nvcc", "--version") == ""
