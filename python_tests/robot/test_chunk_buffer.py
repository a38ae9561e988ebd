"""The buffer of chunks does what a list and a few lines say, whatever the order of calls."""

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vlakern.ops import _native

pytestmark = pytest.mark.skipif(_native.missing() is not None, reason="no native module")

TICK, STEP, SLOTS = 5_000_000, 50_000_000, 4
STOP, FAULT = 100_000_000, 500_000_000


class ChunkBuffer(RuleBasedStateMachine):
    """An executor without speed limits to speak of, beside a model of its chunks."""

    def __init__(self) -> None:
        super().__init__()
        limits = [[-1.0], [1.0], [1e6], [], []]
        rates = {
            "tick_rate": 200.0,
            "policy_rate": 20.0,
            "most_steps": 16.0,
            "stop_after": STOP * 1e-9,
            "fault_after": FAULT * 1e-9,
        }
        self.core: Any = _native.cpu_module().ExecutorCore(limits, rates, [], [0.0])
        self.now, self.state, self.q = 10**9, "waiting", 0.0
        self.newest, self.given = -(10**18), 0
        self.waiting: list[tuple[int, int, np.ndarray]] = []  # number, observed, actions
        self.active: tuple[int, int, np.ndarray] | None = None  # number, begin, actions
        self.halts = self.resets = False
        self.found: tuple[Any, ...] = (0, 0, 0, "waiting", [0.0], [0.0])

    def moving(self) -> bool:
        return self.state in ("running", "starved")

    @rule(
        ages=st.integers(-2, 40),
        values=st.lists(st.floats(-1, 1), min_size=1, max_size=16),
        bad=st.sampled_from([None, None, None, float("nan"), float("-inf")]),
    )
    def submit(self, ages: int, values: list[float], bad: float | None) -> None:
        actions = np.array(values + ([] if bad is None else [bad]))[-16:]
        observed = self.now - ages * 10_000_000
        over = observed + len(actions) * STEP <= self.now
        if self.state == "fault" or self.halts:
            verdict = "fault"
        elif bad is not None:
            verdict = "not_finite"
        elif observed > self.now or observed <= self.newest:
            verdict = "out_of_order"
        elif self.moving() and over:
            verdict = "expired"
        elif len(self.waiting) == SLOTS:
            verdict = "full"
        else:
            verdict = "accepted"
            self.newest, self.given = observed, self.given + 1
            self.waiting.append((self.given, observed, actions))
        chunk = np.ascontiguousarray(actions[:, None])
        assert self.core.submit(chunk.ctypes.data, len(chunk), 1, observed, self.now) == verdict

    @rule()
    def halt(self) -> None:
        self.halts = True
        self.core.halt()

    @rule()
    def reset(self) -> None:
        self.resets, self.halts = True, False  # of before; a later one counts
        self.core.reset()

    @rule(ticks=st.integers(1, 12), missed=st.integers(0, 30))
    def tick(self, ticks: int, missed: int) -> None:
        for index in range(ticks):
            self.now += TICK * (1 + missed * (index == 0))
            self.model()
            self.found = self.core.tick(self.now)
            self.agree()

    def model(self) -> None:
        """One tick."""
        if self.resets:
            self.waiting, self.active, self.resets = [], None, False
            self.state = self.state if self.state == "waiting" else "stopping"
        if self.halts and self.state != "fault":
            self.state = "fault"
        if self.state != "fault" and self.waiting:
            number, observed, actions = self.waiting[-1]
            begin = observed if self.moving() else self.now
            if begin + len(actions) * STEP > self.now:
                self.active, self.state = (number, begin, actions), "running"
            self.waiting = []
        self.watch()

    def watch(self) -> None:
        if self.active is None or self.state in ("waiting", "fault"):
            if self.state == "stopping":  # without speed it rests at once
                self.state = "waiting"
            return
        without = self.now - self.active[1] - len(self.active[2]) * STEP
        if without >= 0 and self.state == "running":
            self.state = "starved"
        if without >= STOP and self.state == "starved":
            self.state = "stopping"
        if without >= FAULT:
            self.state = "fault"
        if self.moving():
            times = np.arange(len(self.active[2])) * STEP
            self.q = float(np.interp(self.now - self.active[1], times, self.active[2]))

    def agree(self) -> None:
        _, time, chunk, state, position, _ = self.found
        assert time == self.now
        assert chunk == (self.active[0] if self.active else 0)
        if state != self.state:
            # Braking from a last jump may take a tick or two.
            assert {state, self.state} <= {"stopping", "holding", "waiting"}, (state, self.state)
            self.state = state
        if self.moving():
            assert abs(position[0] - self.q) < 1e-9

    @invariant()
    def inside(self) -> None:
        assert -1.0 <= self.found[4][0] <= 1.0


ChunkBuffer.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestChunkBuffer = ChunkBuffer.TestCase
