"""What the tests of ops share: seeded inputs and Triton's interpreter."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from vlakern import env
from vlakern.ops import _torch
from vlakern.testing import generator


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> torch.Generator:
    """A CPU generator seeded by the test's name."""
    return generator(request.node.name)


@pytest.fixture(params=[1, 132])
def processors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Interpreted as if on a GPU with so many multiprocessors, on which plans depend."""
    if env.triton_interpret():
        monkeypatch.setattr(_torch, "processors", lambda device: request.param)
    return request.param


@pytest.fixture
def run_interpreted() -> Callable[[str], int]:
    """Runs the ``triton`` tests of a file in a process where Triton interprets; counts the passes.

    A process of its own, because Triton decides at import, for all of its kernels at once.
    """

    def run(path: str) -> int:
        command = [sys.executable, "-m", "pytest", "-q", "-x", path, "-k", "triton"]
        environment = os.environ | {"TRITON_INTERPRET": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return int(done.stdout.rsplit(" passed", 1)[0].split()[-1])

    return run
