"""The helpers of the engine's tests as a fixture: test files do not import each other."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def lab() -> ModuleType:
    """``scenes.py``: networks, observations, and the ways to compute with them."""
    return _loaded("packed_reference", "scenes")


@pytest.fixture(scope="session")
def device_lab() -> ModuleType:
    """``device_scenes.py``: the device engine on a CPU."""
    return _loaded("packed_reference", "scenes", "device_scenes")


def _loaded(*names: str) -> ModuleType:
    """The last of modules beside this file, of which each may import those before it."""
    for name in names:
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(
                name, Path(__file__).parent / f"{name}.py"
            )
            assert spec is not None
            assert spec.loader is not None
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
    return sys.modules[names[-1]]


@pytest.fixture
def run_interpreted() -> Callable[[str], None]:
    """Runs the tests of a file in a process where Triton interprets, as it decides at import."""

    def run(path: str) -> None:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            path,
            "-k",
            "triton and not in_interpreter",
        ]
        environment = os.environ | {"TRITON_INTERPRET": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:]
        assert " passed" in done.stdout

    return run
