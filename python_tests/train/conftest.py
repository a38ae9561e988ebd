"""The helpers of the training tests as a fixture: test files do not import each other."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def lab() -> ModuleType:
    """``synthetic.py``: a very small policy and samples by number."""
    if "synthetic" not in sys.modules:
        path = Path(__file__).parent / "synthetic.py"
        spec = importlib.util.spec_from_file_location("synthetic", path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules["synthetic"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["synthetic"])
    return sys.modules["synthetic"]
