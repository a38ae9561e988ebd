"""Settings that contradict each other are refused before a robot moves."""

import json
from typing import Any

import pytest

from vlakern.errors import ConfigError
from vlakern.robot.executor import Counters, ExecutorConfig
from vlakern.robot.latency import Latency
from vlakern.robot.settings import LoopConfig, LoopReport, check_delay

RATES = ExecutorConfig(policy_rate=20.0)


def latency(seconds: float) -> Latency:
    found = Latency(warm_up=0)
    found.add(seconds)
    return found


@pytest.mark.parametrize("execute", range(1, 17))
@pytest.mark.parametrize("delay", range(11))
def test_d_s_and_h_keep_the_rule_or_are_refused(execute: int, delay: int) -> None:
    """d <= s <= H - d for H = 16, and the advice is right."""
    config, fits = LoopConfig(execute), delay <= execute <= 16 - delay
    if fits:
        check_delay(config, RATES, latency(delay / 20), 16)
        return
    with pytest.raises(ConfigError, match=r"expected d <= s <= H - d") as refused:
        check_delay(config, RATES, latency(delay / 20), 16)
    good = [s for s in range(1, 17) if delay <= s <= 16 - delay]
    advice = f"choose s from {good[0]} to {good[-1]}" if good else "the mode sync"
    assert str(refused.value).endswith(advice)


def test_the_synchronous_mode_has_a_rule_of_its_own() -> None:
    """It may be slow, but not so slow that the executor gives up."""
    config = LoopConfig(8, "sync")
    check_delay(config, RATES, latency(0.45), 8)
    with pytest.raises(ConfigError, match="fault_after"):
        check_delay(config, RATES, latency(0.55), 8)
    with pytest.raises(ConfigError, match="at most the chunk's 7"):
        check_delay(config, RATES, latency(0.1), 7)
    with pytest.raises(ConfigError, match="most_steps"):
        check_delay(config, RATES, latency(0.1), 65)
    with pytest.raises(ConfigError, match=r"64 actions and where they begin.*65 or more"):
        check_delay(config, RATES, latency(0.1), 65, from_here=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"execute": 0},
        {"execute": 8.5},
        {"execute": "8"},
        {"form": "cheap"},
        {"mode": "fast"},
        {"probes": 0},
        {"window": 0},
        {"most_errors": 0},
        {"most_age": 0.0},
        {"patience": -1.0},
        {"prefix": True, "ensemble": 0.1},
        {"prefix": True, "mode": "sync"},
        {"ensemble": 0.1, "mode": "sync"},
    ],
)
def test_settings_that_contradict_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="loop"):
        LoopConfig(**{"execute": 4, **wrong})


def test_a_report_is_json() -> None:
    numbers: dict[str, Any] = dict.fromkeys(Counters.__dataclass_fields__, 1)
    counters = Counters(**{**numbers, "late": {"p50": 0.1}, "submitted": {"accepted": 1}})
    report = LoopReport("time", 1.0, 3, 2, {"p95": 0.1}, {}, {}, 0, None, (), counters)
    assert json.loads(json.dumps(report.as_dict()))["executor"]["submitted"] == {"accepted": 1}
