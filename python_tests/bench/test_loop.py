"""The loop's numbers: both threads keep their rate alone, and only the native one beside load."""

import pytest

from vlakern.bench.loop import bench_loop
from vlakern.errors import InputError


def test_the_native_thread_does_not_feel_the_interpreter() -> None:
    """Two seconds: counts add up, a stall is skipped and not caught up, every part is filled."""
    said: list[str] = []
    found = bench_loop(seconds=2.0, say=said.append)
    assert len(said) == 4
    for thread in (found.native_idle, found.native_busy):
        assert abs(thread.ticks + thread.missed - 400) <= 60  # the end brakes first
        p50, p99, most = (thread.late_ms[name] for name in ("p50", "p99", "max"))
        assert 0.0 <= p50 <= p99 <= most + 1e-3  # shares come from a histogram of microseconds
    assert found.calls > 0
    assert found.native_busy.late_ms["p50"] < found.python_busy.late_ms["p50"]
    assert found.stall_missed >= 38  # of 40; more where others hold the machine
    assert found.stall_bursts == 0
    assert set(found.overhead) == {"websocket", "shared"}
    assert [s.split(":")[0] for s in found.statements] == ["SCHED_FIFO priority 50"]


@pytest.mark.soak
def test_a_minute_beside_busy_threads_costs_half_a_millisecond() -> None:
    """On a machine that does nothing else: the native p99.9, and no burst after a stall."""
    found = bench_loop(seconds=60.0)
    print(found)
    assert found.growth_ms <= 0.5
    assert found.stall_missed >= 39
    assert found.stall_bursts == 0
    assert found.native_busy.late_ms["p99.9"] < found.python_busy.late_ms["p99.9"]


@pytest.mark.parametrize("wrong", [{"seconds": 0.0}, {"busy": -1}])
def test_a_run_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    """Before anything is loaded."""
    with pytest.raises(InputError, match="expected"):
        bench_loop(**wrong)  # pyright: ignore[reportArgumentType]
