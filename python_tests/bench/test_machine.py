"""The measured limits of this machine."""

import pytest

from vlakern.bench.machine import Limits, measure
from vlakern.errors import Unsupported
from vlakern.ops import _native

needs_native = pytest.mark.skipif(_native.missing() is not None, reason="no native module")


@needs_native
def test_limits_are_those_of_a_computer() -> None:
    """Memory and arithmetic lie between what no computer is below and none is above."""
    limits = measure(["bf16"])
    assert 1e8 < limits.bandwidth < 1e13
    assert set(limits.peaks) == {"bf16"}
    assert 1e8 < limits.peaks["bf16"] < 1e15
    assert "10 passes" in limits.how


@needs_native
def test_int8_needs_the_peak_of_bf16_too() -> None:
    """Attention of int8 weights runs in bf16, so both peaks are measured."""
    assert set(measure(["int8"]).peaks) == {"int8", "bf16"}


def test_a_floor_needs_every_peak() -> None:
    """An unknown peak gives no floor instead of a division by zero."""
    limits = Limits(1e9, {"bf16": 0.0, "fp32": 1e9}, "")
    assert limits.covers("fp32")
    assert not limits.covers("bf16")
    assert not limits.covers("int8")


def test_two_measurements_give_the_best_of_both_and_their_difference() -> None:
    """Also where a peak is not known in either."""
    first = Limits(9e9, {"bf16": 4e11, "fp32": 2e11, "int8": 0.0}, "how")
    later = Limits(1e10, {"bf16": 3e11, "fp32": 2e11, "int8": 0.0}, "how")
    joined = first.joined(later)
    assert joined.bandwidth == 1e10
    assert joined.peaks == {"bf16": 4e11, "fp32": 2e11, "int8": 0.0}
    assert joined.drift == pytest.approx(0.25)
    assert joined == later.joined(first)


def test_without_native_code_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence says what is missing."""
    monkeypatch.setenv("VLAKERN_NO_NATIVE", "1")
    with pytest.raises(Unsupported, match="native"):
        measure(["bf16"])
