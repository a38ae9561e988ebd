"""Cold start and memory of a process of its own."""

from pathlib import Path

import pytest
import torch

from vlakern.bench.child import measure
from vlakern.bench.latency import BenchConfig
from vlakern.errors import VlakernError
from vlakern.ops import _native


@pytest.mark.skipif(_native.missing() is not None, reason="no native module")
def test_a_process_of_its_own() -> None:
    """Import to first action takes a while; Python, torch and the weights need some memory."""
    config = BenchConfig(preset="tiny", threads=1, prompt_tokens=5, against=("torch-eager",))
    found = measure(config)
    assert 0.1 < found.cold_start_s < 120
    assert 5e7 < found.peak_memory_bytes < 2e9
    assert found.weights_bytes is not None
    assert found.weights_bytes < 1e7


@pytest.mark.skipif(_native.missing() is not None, reason="no native module")
def test_memory_of_the_parent_does_not_count() -> None:
    """A parent that holds 1.6 GB more does not make the process look larger."""
    held = torch.ones(3 << 27)
    found = measure(BenchConfig(preset="tiny", threads=1, prompt_tokens=5))
    assert found.peak_memory_bytes < held.nbytes


def test_a_process_that_fails() -> None:
    """Its last line is the reason."""
    with pytest.raises(VlakernError, match="no preset 'huge'"):
        measure(BenchConfig(preset="huge"))


@pytest.mark.skipif(_native.missing() is not None, reason="no native module")
def test_a_checkout_in_the_working_directory_is_not_what_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a clone without a build of its own, where the installed package is measured."""
    (tmp_path / "vlakern").mkdir()
    (tmp_path / "vlakern" / "__init__.py").write_text("raise RuntimeError('the wrong one')\n")
    monkeypatch.chdir(tmp_path)
    assert measure(BenchConfig(preset="tiny", threads=1, prompt_tokens=5)).cold_start_s > 0
