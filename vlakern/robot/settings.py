"""Settings of a loop, what it has to say at its end, and the rule that its chunks must keep."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from vlakern.errors import ConfigError
from vlakern.robot.executor import Counters, ExecutorConfig
from vlakern.robot.latency import Latency
from vlakern.types import PrefixForm

__all__ = ["Begun", "Ended", "LoopConfig", "LoopReport", "check_delay"]

Mode = Literal["async", "sync"]
Ended = Literal["time", "done", "stopped", "fault", "errors", "no chunk", "interrupted"]


@dataclass(frozen=True)
class LoopConfig:
    """How chunks are asked for.

    Attributes:
        execute: s, actions from one observation that is inferred from to the next.
        mode: ``async`` infers while the former chunk is executed; ``sync`` executes, then looks and
            infers while the robot stands.
        prefix: tell the policy what is executed meanwhile (real-time chunking); of ``async``.
        form: how a chunk is made to agree with that, see :class:`vlakern.types.ActionPrefix`.
        ensemble: m of temporal ensembling, None for none; of ``async`` without prefix.
        warm_up: inferences at the start that say nothing about latency; with prefix as many more,
            which have one.
        probes: inferences after them, before anything is sent, that do.
        window: latencies that count for the estimate.
        most_age: of an observation when inference starts on it [s]; two policy periods by default.
        look_rate: of observations [Hz]; twice the policy's by default.
        most_errors: failed inferences in a row that end the run.
        patience: for the policy's answers at the start and for the first chunk [s].
    """

    execute: int
    mode: Mode = "async"
    prefix: bool = False
    form: PrefixForm = "frozen"
    ensemble: float | None = None
    warm_up: int = 1
    probes: int = 3
    window: int = 50
    most_age: float | None = None
    look_rate: float | None = None
    most_errors: int = 10
    patience: float = 60.0

    def __post_init__(self) -> None:
        if self.mode not in ("async", "sync"):
            raise ConfigError(f"loop.mode is {self.mode!r}, expected async or sync")
        if self.form not in get_args(PrefixForm):
            known = ", ".join(get_args(PrefixForm))
            raise ConfigError(f"loop.form is {self.form!r}, expected one of {known}")
        if self.form != "frozen" and not self.prefix:
            raise ConfigError(
                f"loop.form is {self.form!r} without loop.prefix, whose form it is; set prefix=True"
            )
        for name in ("execute", "probes", "window", "most_errors"):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or value < 1:
                raise ConfigError(f"loop.{name} is {value!r}, expected a whole number of 1 or more")
        for name in ("most_age", "look_rate", "patience"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"loop.{name} is {value}, expected more than 0")
        averaged = self.ensemble is not None
        if averaged and self.prefix:
            raise ConfigError("loop.ensemble averages chunks, loop.prefix joins them; give one")
        if self.mode == "sync" and (averaged or self.prefix):
            raise ConfigError("loop.ensemble and loop.prefix are for the mode async, found sync")


@dataclass(frozen=True)
class Begun:
    """A chunk of the executor: its number, when it was observed for, when its first step was."""

    chunk: int
    observed_ns: int
    begin_ns: int


@dataclass(frozen=True)
class LoopReport:
    """What a run was.

    Attributes:
        ended: ``time``, ``done`` or ``stopped`` as asked for; ``fault`` of the executor, the arm or
            a camera; ``errors`` of the policy in a row; ``no chunk`` from it.
        seconds: from the executor's start to its end.
        inferences: that were begun.
        delay_steps: actions that are executed during one, as estimated at the end.
        latency: percentiles of the window and the longest after the warm-up [s].
        dropped: observations that were not used, by reason; ``replaced`` ones are no fault.
        discarded: chunks that were not executed, by reason.
        errors: inferences that failed, and ``error``, what was raised last.
        hung: threads that did not end and were left behind.
        executor: ticks, misses, starved ticks, stops, faults, lateness.
    """

    ended: Ended
    seconds: float
    inferences: int
    delay_steps: int
    latency: dict[str, float]
    dropped: dict[str, int]
    discarded: dict[str, int]
    errors: int
    error: str | None
    hung: tuple[str, ...]
    executor: Counters = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def check_delay(
    config: LoopConfig, rates: ExecutorConfig, latency: Latency, rows: int, from_here: bool = False
) -> None:
    """d <= s <= H - d, with d of the latencies so far.

    Args:
        rows: of a chunk.
        from_here: the first of them is where the robot is, and no action.

    Raises:
        ConfigError: it does not hold, or the chunk does not fit the executor.
    """
    execute, rate = config.execute, rates.policy_rate
    if rows > rates.most_steps:
        first = " and where they begin" if from_here else ""
        raise ConfigError(
            f"chunks have {rows - from_here} actions{first}, the executor takes {rates.most_steps}"
            f" rows; set executor.most_steps to {rows} or more"
        )
    steps = rows - from_here
    delay, took = latency.delay_steps(rate), latency.p95
    if config.mode == "sync":
        if execute > steps:
            raise ConfigError(f"execute is {execute}, expected at most the chunk's {steps} actions")
        if took >= rates.fault_after:
            raise ConfigError(
                f"inference takes {took:.3g} s and the executor latches a fault after"
                f" {rates.fault_after:g} s without actions; raise executor.fault_after"
            )
        return
    if not delay <= execute <= steps - delay:
        range_there = delay <= steps - delay
        advice = (
            f"choose s from {max(1, delay)} to {steps - delay}"
            if range_there
            else "use longer chunks, a lower policy rate, faster inference or the mode sync"
        )
        raise ConfigError(
            f"inference takes {took * 1e3:.0f} ms, d = {delay} actions at {rate:g} Hz, beside"
            f" s = {execute} to execute of H = {steps}; expected d <= s <= H - d: {advice}"
        )
