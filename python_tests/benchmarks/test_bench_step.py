"""The benchmark of a training step runs, and refuses to time what computes something else."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

FILE = Path(__file__).parents[2] / "benchmarks/train/bench_step.py"


@pytest.fixture
def bench() -> Iterator[ModuleType]:
    """The program as a module."""
    spec = importlib.util.spec_from_file_location("bench_step", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_step"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["bench_step"]


def test_it_measures_every_form(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rates and ratios of the packed step and the padded ones, on ragged documents."""
    out = tmp_path / "rows.jsonl"
    words = ["bench_step", "--presets", "tiny", "--samples", "6", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", [*words, "--json", str(out)])
    threads = torch.get_num_threads()
    bench.main()
    torch.set_num_threads(threads)
    (row,) = json.loads(out.read_text())
    assert row["samples_per_s"].keys() == row["ratios"].keys()
    assert {"packed", "padded"} < set(row["ratios"])
    assert row["ratios"]["packed"] == 1.0
    assert row["prefix_tokens"][0] < row["prefix_tokens"][2]


@pytest.mark.parametrize("name", ["tiny", "metaworld-small"])
def test_forms_are_one_computation(bench: ModuleType, name: str) -> None:
    """Loss and gradients agree in fp32 for both masks; a changed weight is seen."""
    contest = bench.Contest(name, bench.recipe("metaworld-small").train, 3)
    contest.check()
    padded = bench.Contest.padded_loss

    def off(self: object, *args: object) -> torch.Tensor:
        return padded(self, *args) * 1.001

    bench.Contest.padded_loss = off
    with pytest.raises(AssertionError, match=r"padded: loss .* beside"):
        contest.check()
