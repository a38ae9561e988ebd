"""The helpers of the engine's tests as a fixture: test files do not import each other."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from vlakern.models import VLA, preset
from vlakern.models.tokenizer import fit_tokenizer
from vlakern.models.weights import PolicyFiles, Processing, write
from vlakern.space import Embodiment, Field, Slot, SlotMap, VectorStats


@pytest.fixture(scope="session")
def lab() -> ModuleType:
    """``scenes.py``: networks, observations, and the ways to compute with them."""
    return _loaded("packed_reference", "scenes")


@pytest.fixture(scope="session")
def device_lab() -> ModuleType:
    """``device_scenes.py``: the device engine on a CPU."""
    return _loaded("packed_reference", "scenes", "device_scenes")


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest policy on disk, with weights large enough to matter."""
    torch.manual_seed(1)
    hand, views = Slot("hand", "m", 0, 3), ("front", "wrist")
    state = (Field("hand", (0, 3)), Field("joints", (3, 7)))
    action = (Field("hand", (0, 3)), Field("grip", (3, 5)))
    files = PolicyFiles(
        VLA(preset("tiny")),
        Embodiment("arm", "arm", 20.0, views, 7, 5, state=state, action=action),
        SlotMap("arm", 7, (hand, Slot("joints", "rad", 3, 7))),
        SlotMap("arm", 5, (hand, Slot("grip", "1", 3, 5))),
        Processing(execute=3),
        _stats(7),
        _stats(5),
        fit_tokenizer(["push the puck", "open"], 300),
    )
    path = tmp_path_factory.mktemp("policies") / "tiny-arm"
    write(path, files)
    return path


def _stats(width: int) -> VectorStats:
    means, twos = tuple(0.1 * i for i in range(width)), (2.0,) * width
    ends = ((one,) * width for one in (-5.0, 5.0, -4.0, 4.0))
    return VectorStats(means, twos, *ends)


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
