"""What ``gpu_check.py`` will do here: stages and budgets, ops and their files, what is missing."""

import ast
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["BUDGETS", "MODULES", "Op", "build_command", "find_ops", "missing"]

# [s]; 30 s of ten minutes are left for starting and ending
BUDGETS = {
    "environment": 25,
    "build": 105,
    "backends": 15,
    "tests": 95,
    "sanitizer": 65,
    "machine": 40,
    "speed": 65,
    "engine": 110,
    "train": 50,
}
FILES = (
    "pyproject.toml",
    "CMakeLists.txt",
    "benchmarks/sanitize.py",
    "benchmarks/machine/environment.py",
    "benchmarks/machine/constants.py",
    "benchmarks/machine/constants.cu",
    "benchmarks/ops/gpu_baselines.py",
    "benchmarks/e2e/bench_engine.py",
    "benchmarks/train/bench_step.py",
    "benchmarks/train/padded.py",
    "python_tests/infer/test_device_loop.py",
    "python_tests/infer/test_graph_engine_triton.py",
)
COMMANDS = ("nvidia-smi", "nvcc", "cmake", "compute-sanitizer")
MODULES = (
    "torch",
    "triton",
    "numpy",
    "safetensors",
    "pip",
    "scikit_build_core",
    "nanobind",
    "pytest",
    "hypothesis",
    "scipy",
    "PIL",
)


@dataclass(frozen=True)
class Op:
    """One op's files."""

    name: str
    benchmark: Path
    takes_device: bool
    tests: tuple[Path, ...]


def find_ops(root: Path) -> dict[str, Op]:
    """Every op with a benchmark, and the test files with tests for a GPU that are its own."""
    benchmarks = sorted((root / "benchmarks/ops").glob("bench_*.py"))
    names = [path.stem.removeprefix("bench_") for path in benchmarks]
    tests: dict[str, list[Path]] = {name: [] for name in names}
    for path in sorted((root / "python_tests/ops").glob("test_*.py")):
        mine = [name for name in names if f"{path.stem}_".startswith(f"test_{name}_")]
        if mine and has_gpu_tests(path):
            tests[max(mine, key=len)].append(path)
    return {
        name: Op(name, path, _takes_device(path), tuple(tests[name]))
        for name, path in zip(names, benchmarks, strict=True)
    }


def has_gpu_tests(path: Path) -> bool:
    """Whether a test file marks something ``gpu``."""
    return any(
        isinstance(node, ast.Attribute) and node.attr == "gpu"
        for node in ast.walk(ast.parse(path.read_text(), str(path)))
    )


def _takes_device(path: Path) -> bool:
    """Whether a benchmark says, in a keyword ``devices``, that it times on a GPU too."""
    return any(
        word.arg == "devices" and "cuda" in ast.literal_eval(word.value)
        for node in ast.walk(ast.parse(path.read_text(), str(path)))
        if isinstance(node, ast.Call)
        for word in node.keywords
    )


def build_command(python: str, root: Path, work: Path, capability: str) -> list[str]:
    """pip, without network or isolation, into a folder of its own."""
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
    options += ["--disable-pip-version-check", "--verbose", "--target", str(work / "site")]
    options += ["-C", f"build-dir={work / 'build'}"]
    if capability:
        options += ["-C", f"cmake.define.VLAKERN_CUDA_ARCHS={capability}"]
    return [python, "-m", "pip", "install", *options, str(root)]


def missing(root: Path, python: str, environment: Mapping[str, str]) -> list[str]:
    """Files, commands, modules and tests that the plan needs and this machine lacks."""
    found = [f"file {name}" for name in FILES if not (root / name).is_file()]
    path = environment.get("PATH")
    found += [f"command {name}" for name in COMMANDS if shutil.which(name, path=path) is None]
    if shutil.which(python, path=path) is None and not os.access(python, os.X_OK):
        return [*found, f"command {python}"]
    found += [f"Python module {name}" for name in _missing_modules(python, environment)]
    ops = find_ops(root).values()
    return found + [f"GPU tests of {op.name}" for op in ops if op.takes_device and not op.tests]


def _missing_modules(python: str, environment: Mapping[str, str]) -> Sequence[str]:
    script = (
        "import importlib.util, sys\n"
        "print(*[n for n in sys.argv[1:] if importlib.util.find_spec(n) is None])"
    )
    try:
        done = subprocess.run(
            [python, "-c", script, *MODULES],
            env=dict(environment),
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return MODULES
    return done.stdout.split() if done.returncode == 0 else MODULES
