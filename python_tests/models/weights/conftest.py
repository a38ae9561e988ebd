"""The golden files of other implementations as a fixture: test files do not import each other."""

import importlib.util
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from vlakern.infer import backends
from vlakern.infer import policy as policies
from vlakern.infer.graph_engine import GraphEngine

OPS = {"as a gpu": "reference", "interpreted": "triton"}


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


@pytest.fixture
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The CPU, or the CPU in the place of a GPU: its engine over the ops' references, or over the
    Triton kernels where Triton interprets."""
    if request.param == "cpu":
        return "cpu"
    monkeypatch.setattr(policies, "choose_device", lambda name: "cpu:0")
    for room in (policies, backends):
        monkeypatch.setattr(room, "graph_refusal", lambda device, dtype="bf16": None)
    monkeypatch.setattr(backends, "GraphEngine", partial(GraphEngine, ops=OPS[request.param]))
    return "cpu:0"
