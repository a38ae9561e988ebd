"""The baseline in OpenVINO, where it is installed."""

import pytest

from vlakern.bench.accuracy import check, reference
from vlakern.bench.contenders import VARIANTS, Place, make
from vlakern.bench.openvino import make_openvino
from vlakern.bench.workload import PresetSource, Workload
from vlakern.errors import Unsupported


def work() -> Workload:
    return Workload(PresetSource("tiny", 0), views=2, prompt_tokens=5, batch=2, candidates=2)


def test_its_actions_are_those_of_the_network() -> None:
    """For a batch with candidates, with the accuracy of plain PyTorch in bf16."""
    pytest.importorskip("openvino")
    variant, calls = VARIANTS["openvino-bf16"], work()
    assert check(variant, make(variant, calls, Place()), calls, reference(calls)) < 2e-2


def test_it_runs_on_cpus() -> None:
    """A GPU is refused before anything is built."""
    with pytest.raises(Unsupported, match="openvino is compared on CPUs"):
        make_openvino(work(), "bf16", "cuda", 1)
