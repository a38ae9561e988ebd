"""The helpers of the engine's tests as a fixture: test files do not import each other."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def lab() -> ModuleType:
    """``scenes.py``: networks, observations, and the ways to compute with them."""
    for name in ("packed_reference", "scenes"):
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(
                name, Path(__file__).parent / f"{name}.py"
            )
            assert spec is not None
            assert spec.loader is not None
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
    return sys.modules["scenes"]
