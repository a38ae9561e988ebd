"""What the sanitizers watch: every op has reduced cases that run, on the CPU here."""

import sys
from pathlib import Path

import pytest
import torch

from vlakern.ops._dispatch import backends_of
from vlakern.ops._table import OPS

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import sanitize


@pytest.mark.parametrize("op", OPS)
def test_every_op_runs(op: str) -> None:
    """A new op either takes its inputs by name or says in ``HOW`` how it is called."""
    names = [backend.name for backend in backends_of(op)]
    assert sanitize.run_op(op, "cpu", ["cpu" if "cpu" in names else "reference"]) > 0


def test_an_op_that_runs_nothing_is_not_clean(capsys: pytest.CaptureFixture[str]) -> None:
    """No backend, no verdict."""
    assert sanitize.main(["--device", "cpu", "--op", "norm", "--backend"]) == 1
    assert "clean" not in capsys.readouterr().out


def test_gradients_are_watched_too() -> None:
    """An op with gradients passes forward and backward: two passes a case."""
    assert sanitize.run_op("norm", "cpu", ["cpu"]) == 2 * sanitize.CASES_EACH


@pytest.mark.parametrize("count", [0, 1, 5, 6, 40])
def test_reduced(count: int) -> None:
    """From the first case to the last, without repeats."""
    found = sanitize.reduced(tuple(range(count)))
    assert len(set(found)) == min(count, sanitize.CASES_EACH)
    assert set(found) >= {0, count - 1} or count == 0


def test_moved_tensors_want_gradients() -> None:
    """Floats become leaves, strides are kept, packed weights stay for inference."""
    given = {"x": torch.zeros(4, 6)[:, ::2], "i": torch.zeros(2, dtype=torch.int32), "n": None}
    found = sanitize.moved(given, "cpu")
    assert found["x"].requires_grad
    assert found["x"].stride() == (6, 2)
    assert not found["i"].requires_grad
    assert found["n"] is None
