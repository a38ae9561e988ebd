"""The golden files of other implementations as a fixture: test files do not import each other."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def goldens() -> ModuleType:
    """``goldens.py``: where the files are, names of tensors, and weights that follow from them."""
    if "goldens" not in sys.modules:
        path = Path(__file__).with_name("goldens.py")
        spec = importlib.util.spec_from_file_location("goldens", path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules["goldens"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["goldens"])
    return sys.modules["goldens"]
