"""The baseline in onnxruntime, where it is installed."""

from pathlib import Path

import pytest

from vlakern.bench import onnxruntime
from vlakern.bench.accuracy import check, reference
from vlakern.bench.contenders import VARIANTS, Place, make
from vlakern.bench.onnxruntime import make_onnxruntime
from vlakern.bench.workload import PresetSource, Workload
from vlakern.errors import Unsupported

FREE = onnxruntime._free


def work() -> Workload:
    return Workload(PresetSource("tiny", 0), views=2, prompt_tokens=5, batch=2, candidates=2)


def test_its_actions_are_those_of_the_network() -> None:
    """For a batch with candidates, with the accuracy of fp32."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    variant, calls = VARIANTS["onnxruntime-fp32"], work()
    assert check(variant, make(variant, calls, Place()), calls, reference(calls)) < 1e-4


def test_a_model_that_does_not_fit_is_refused_before_it_is_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With what it would take: fp32 weights three times. Elsewhere nobody knows what is free."""
    count = work().weights.count  # type: ignore[attr-defined]
    monkeypatch.setattr(onnxruntime, "_free", lambda: 12 * count - 1)
    with pytest.raises(Unsupported, match=r"onnxruntime needs some .* GB for this model"):
        make_onnxruntime(work(), "cpu", 1)
    facts = tmp_path / "meminfo"
    facts.write_text("MemTotal: 9 kB\nMemAvailable:       5 kB\n")
    assert FREE(facts) == 5 * 1024
    assert FREE(tmp_path / "none") is None


def test_it_runs_on_cpus() -> None:
    """A GPU is refused before anything is built."""
    with pytest.raises(Unsupported, match="onnxruntime is compared on CPUs"):
        make_onnxruntime(work(), "cuda", 1)
