"""A whole measurement of the smallest model."""

from dataclasses import replace

import numpy as np
import pytest

from vlakern.bench import latency
from vlakern.bench.contenders import VARIANTS, Place
from vlakern.bench.latency import BenchConfig, run, stage_times, workload
from vlakern.errors import ConfigError, InputError, Unsupported
from vlakern.ops import _native

TINY = BenchConfig(preset="tiny", runs=4, threads=1, cold=False, prompt_tokens=5)
NAMES = {"preprocess", "vision", "prefix", "ode", "postprocess", "total"}
needs_native = pytest.mark.skipif(_native.missing() is not None, reason="no native module")


@needs_native
def test_stages_floors_and_ratios() -> None:
    """Each variant has every stage, the first has a run of its own for each other one."""
    seen: list[str] = []
    result = run(replace(TINY, against=("torch-eager", "vlakern-int8")), seen.append)
    assert list(result.variants) == ["vlakern-bf16", "torch-eager-bf16", "vlakern-int8"]
    assert [len(one.samples_ms["total"]) for one in result.variants.values()] == [8, 4, 4]
    for one in result.variants.values():
        assert set(one.stages) == NAMES
        floors = {stage: times.floor_ms for stage, times in one.stages.items()}
        assert floors["preprocess"] is None
        assert floors["total"] == pytest.approx(
            sum(floors[stage] or 0.0 for stage in ("vision", "prefix", "ode"))
        )
        assert one.stages["total"].p50_ms > (floors["total"] or 0.0)
    assert set(result.ratios) == {"torch-eager-bf16", "vlakern-int8"}
    assert all(set(ratio) == NAMES for ratio in result.ratios.values())
    assert seen.count("time vlakern-bf16 and torch-eager-bf16") == 1
    assert result.settings["prefix"] == 20


def test_what_compiles_says_so_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the variants alone whose first call compiles, while nothing else is said."""
    slow = {name for name, one in VARIANTS.items() if one.compiles}
    forms = ("compile", "tuned", "frozen", "flash", "flash-attn")
    assert slow == {f"torch-{form}-bf16" for form in forms}
    slow_eager = replace(VARIANTS["torch-eager-bf16"], compiles=True)
    monkeypatch.setitem(VARIANTS, "torch-eager-bf16", slow_eager)
    seen: list[str] = []
    config = replace(TINY, backend="torch", dtype="fp32", runs=1, against=("torch-eager",))
    run(config, seen.append)
    assert "load vlakern-fp32" in seen
    assert "load torch-eager-bf16, which compiles for minutes" in seen


@needs_native
def test_ratios_are_of_the_calls_that_ran_in_turn() -> None:
    """The p50 of the other over the p50 of the first in the same pair."""
    result = run(replace(TINY, against=("uncached",)))
    first, other = (one.samples_ms["total"] for one in result.variants.values())
    expected = np.median(other) / np.median(first)
    assert result.ratios["uncached-bf16"]["total"] == pytest.approx(float(expected))


@needs_native
def test_stages_that_cannot_be_compared() -> None:
    """Whole documents at every step have no prefix of their own: no ratio and no floor for it."""
    result = run(replace(TINY, against=("uncached",)))
    assert set(result.ratios["uncached-bf16"]) == NAMES - {"prefix", "ode"}
    stages = result.variants["uncached-bf16"].stages
    assert [stages[name].floor_ms is None for name in ("prefix", "ode", "total")] == [
        True,
        True,
        False,
    ]


def test_payload_has_the_words_of_the_schema() -> None:
    """Stages by name with five times and a floor, cold start and memory null if not measured."""
    result = run(replace(TINY, backend="torch", dtype="fp32"))
    assert set(result.payload()) == {"variants", "ratios", "limits"}
    (one,) = result.payload()["variants"].values()
    assert set(one) == {"stages", "cold_start_s", "peak_memory_bytes"}
    assert set(one["stages"]["ode"]) == {
        "p50_ms", "p95_ms", "p99_ms", "max_ms", "min_ms", "floor_ms",
    }  # fmt: skip
    assert one["cold_start_s"] is None


def test_percentiles_interpolate() -> None:
    """Of the numbers from 0 to 100 every percentile is itself."""
    times = stage_times([float(i) for i in range(101)], 7.0)
    found = (times.p50_ms, times.p95_ms, times.p99_ms, times.max_ms, times.min_ms, times.floor_ms)
    assert found == (50, 95, 99, 100, 0, 7)


def test_total_is_the_sum_of_the_stages() -> None:
    """Nothing happens between two stages."""
    work = workload(TINY)
    contender = latency.make(latency.variant_of("torch-eager-fp32"), work, Place())
    ticks = iter(range(100))
    times = latency.timed(contender, work, 0, lambda: float(next(ticks)))
    assert times == {**dict.fromkeys(NAMES, 1.0), "total": 5.0}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"runs": 0}, "--runs is 0"),
        ({"steps": 0}, "--steps is 0"),
        ({"chunk": 0}, "--chunk is 0"),
        ({"views": 0}, "--views is 0, expected 1 to 64"),
        ({"views": 65}, "--views is 65, expected 1 to 64"),
        ({"batch": 0}, "--batch is 0"),
        ({"candidates": -1}, "--candidates is -1"),
        ({"prompt_tokens": 0}, "--prompt-tokens is 0"),
        ({"threads": 0}, "--threads is 0"),
        ({"against": ("tensorrt",)}, "no variant 'tensorrt'"),
        ({"preset": None, "policy": "metaworld-small", "views": 3}, "--views is 3"),
    ],
)
def test_a_number_that_does_not_fit(change: dict[str, object], sentence: str) -> None:
    """One sentence names the option."""
    with pytest.raises(InputError, match=sentence):
        run(replace(TINY, **change))  # type: ignore[arg-type]


def test_unknown_names() -> None:
    """Of a preset, and of a device that is not there."""
    with pytest.raises(ConfigError, match="no preset 'huge'"):
        run(replace(TINY, preset="huge"))
    with pytest.raises(Unsupported, match="--device cuda"):
        run(replace(TINY, device="cuda:99"))
