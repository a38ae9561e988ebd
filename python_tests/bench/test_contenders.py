"""The variants that are timed: each gives the actions that the network defines."""

from functools import partial

import pytest
import torch

from vlakern.bench import contenders
from vlakern.bench.accuracy import error_of, reference
from vlakern.bench.contenders import (
    ALIASES,
    VARIANTS,
    Place,
    TorchContender,
    Variant,
    make,
    variant_of,
)
from vlakern.bench.latency import BenchConfig, run
from vlakern.bench.workload import PresetSource, Workload
from vlakern.errors import InputError, Unsupported
from vlakern.infer import backends
from vlakern.infer.graph_engine import GraphEngine
from vlakern.ops import _native


def test_names_with_and_without_dtype() -> None:
    """``torch-eager`` is ``torch-eager-bf16``; other words are refused and the names listed."""
    assert variant_of("torch-eager") is VARIANTS["torch-eager-bf16"]
    assert set(ALIASES.values()) <= set(VARIANTS)
    with pytest.raises(InputError, match=r"'torch'; expected some of .*torch-eager-bf16"):
        variant_of("torch")


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence says which, and how to get it."""
    absent = Variant("other-bf16", "bf16", VARIANTS["torch-eager-bf16"].make, ("no_such_thing",))
    monkeypatch.setitem(VARIANTS, "other-bf16", absent)
    with pytest.raises(InputError, match="pip install no_such_thing"):
        variant_of("other-bf16")


@pytest.mark.parametrize("name", ["vlakern-fp32", "torch-eager-fp32", "uncached-bf16"])
def test_batches_of_candidates(name: str) -> None:
    """Two observations with two candidates each, in the order of the noise."""
    if name.startswith("vlakern") and _native.missing() is not None:
        pytest.skip("no native module")
    work = Workload(PresetSource("tiny", 0), views=2, prompt_tokens=5, batch=2, candidates=2)
    contender = make(variant_of(name), work, Place())
    call = work.call(0)
    contender.prepare(work)
    contender.vision()
    contender.prefix(call)
    error = error_of(contender.ode(call), reference(work))
    assert error < (2e-2 if name.endswith("bf16") else 1e-5)


def test_int8_needs_the_cpu_engine() -> None:
    """The network's own modules have no quantised weights."""
    work = Workload(PresetSource("tiny", 0), views=1, prompt_tokens=5)
    with pytest.raises(Unsupported, match="int8"):
        make(variant_of("vlakern-int8"), work, Place(backend="torch"))


def test_the_networks_own_modules() -> None:
    """``--backend torch`` times the modules that define the model."""
    work = Workload(PresetSource("tiny", 0), views=1, prompt_tokens=5)
    contender = make(variant_of("vlakern-fp32"), work, Place(backend="torch"))
    call = work.call(0)
    contender.prepare(work)
    contender.vision()
    contender.prefix(call)
    assert error_of(contender.ode(call), reference(work)) < 1e-5


def test_evaluations_of_another_solver() -> None:
    """The baseline's constants are those of each evaluation of the solver, not of each step."""
    work = Workload(PresetSource("tiny", 0), views=1, prompt_tokens=5, steps=3)
    contender = make(variant_of("torch-eager-fp32"), work, Place())
    assert contender.model.times.shape == (3, 48)  # type: ignore[attr-defined]
    assert contender.model.times.dtype == torch.float32  # type: ignore[attr-defined]


def test_the_gpu_engine_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """``--backend graph`` says so on a CPU, and fp8 is refused before anything is computed."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    work = Workload(PresetSource("tiny", 0), views=1, prompt_tokens=5)
    with pytest.raises(Unsupported, match=r"the GPU engine cannot run: .*needs an NVIDIA GPU"):
        make(variant_of("vlakern-bf16"), work, Place(backend="graph"))
    with pytest.raises(Unsupported, match=r"vlakern-fp8 needs an NVIDIA GPU of sm_89 or newer"):
        run(BenchConfig(preset="tiny", dtype="fp8"))


def test_weights_for_a_gpu_are_packed_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The contender runs the device engine over them, here on the CPU in the place of a GPU."""
    monkeypatch.setattr(contenders, "graph_refusal", lambda device, dtype: None)
    monkeypatch.setattr(backends, "graph_refusal", lambda device, dtype: None)
    monkeypatch.setattr(backends, "GraphEngine", partial(GraphEngine, ops="reference"))
    work = Workload(PresetSource("tiny", 0), views=2, prompt_tokens=5, batch=2, candidates=2)
    contender = make(variant_of("vlakern-fp32"), work, Place(device="cpu", backend="graph"))
    call = work.call(0)
    contender.prepare(work)
    contender.vision()
    contender.prefix(call)
    assert error_of(contender.ode(call), reference(work)) < 1e-5
    assert isinstance(contender.engine._stages, GraphEngine)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["tiny", "metaworld-small"])
def test_the_baseline_is_built_where_it_runs(name: str) -> None:
    """No tensor of it begins elsewhere: all on one device, or folding two would fail."""
    work = Workload(PresetSource(name, 0), views=1, prompt_tokens=5)
    contender = TorchContender(work, "bf16", "meta", "eager")
    assert {one.device.type for one in contender.model.parameters()} == {"meta"}
