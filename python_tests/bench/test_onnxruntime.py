"""The baseline in onnxruntime, where it is installed."""

import pytest

from vlakern.bench.accuracy import check, reference
from vlakern.bench.contenders import VARIANTS, Place, make
from vlakern.bench.onnxruntime import make_onnxruntime
from vlakern.bench.workload import PresetSource, Workload
from vlakern.errors import Unsupported


def work() -> Workload:
    return Workload(PresetSource("tiny", 0), views=2, prompt_tokens=5, batch=2, candidates=2)


def test_its_actions_are_those_of_the_network() -> None:
    """For a batch with candidates, with the accuracy of fp32."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    variant, calls = VARIANTS["onnxruntime-fp32"], work()
    assert check(variant, make(variant, calls, Place()), calls, reference(calls)) < 1e-4


def test_it_runs_on_cpus() -> None:
    """A GPU is refused before anything is built."""
    with pytest.raises(Unsupported, match="onnxruntime is compared on CPUs"):
        make_onnxruntime(work(), "cuda", 1)
