"""The ways out of the executor: what is spoilt behind its last look is not sent either."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlakern.errors import InputError
from vlakern.ops import _native
from vlakern.robot import Executor, ExecutorConfig, Limits, SharedCommands
from vlakern.robot.executor import Command

pytestmark = pytest.mark.skipif(_native.missing() is not None, reason="no native module")

BAD = (np.nan, np.inf, -np.inf)
ARM = Limits([-1.0, -2.0], [1.0, 2.0], [1.0, 2.0], [10.0, 20.0])


class Damaged:
    """An executor's native part, whose commands are spoilt on their way to Python."""

    def __init__(self, native: Any, value: float) -> None:
        self._native, self._value, self.struck = native, value, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)

    def next_command(self, patience: float) -> Any:
        found = self._native.next_command(patience)
        if found is None or found[0] < 20:
            return found
        self.struck = True
        return (*found[:4], [found[4][0], self._value], found[5])


@pytest.mark.parametrize("value", [*BAD, 2.5])
def test_a_callback_gets_no_spoilt_command(value: float) -> None:
    """The robot is braked, a fault is latched, and the error says what came."""
    seen: list[Command] = []
    arm = Executor(ARM, ExecutorConfig(20.0), seen.append)
    native = arm._native
    arm._native = Damaged(native, value)
    with arm:
        arm.start([0.0, 0.0])
        end = time.monotonic() + 20
        while arm.state != "fault":
            assert time.monotonic() < end
            time.sleep(0.005)
    assert arm._native.struck
    assert [c.tick for c in seen] == list(range(1, 20))
    assert isinstance(arm.error, InputError)
    assert "not finite or outside its limits" in str(arm.error)


def test_shared_memory_gives_no_spoilt_command() -> None:
    """What something else wrote into the segment is no command; the next tick's is one again."""
    name = f"vlakern-test-spoilt-{time.monotonic_ns()}"
    with Executor(ARM, ExecutorConfig(20.0), shared=name) as arm:
        arm.start([0.0, 0.0])
        reader = SharedCommands(name)
        assert waited(lambda: reader.newest() is not None)
        refused = 0
        for value in BAD * 5:  # again where the stall was over before this
            arm._native.stall(0.5)
            waited(lambda: not ticks_on(reader))
            with Path("/dev/shm", name).open("r+b") as file:
                file.seek(8 * (2 + 4))  # magic, version; tick, time, chunk, state: then positions
                file.write(np.float64(value).tobytes())
            found = reader.newest()
            assert found is None or np.isfinite(found.position_J).all()
            refused += found is None
            assert waited(lambda: reader.newest() is not None)
            if refused == len(BAD):
                break
        assert refused


def waited(ready: Callable[[], bool], patience: float = 20.0) -> bool:
    end = time.monotonic() + patience
    while not ready() and time.monotonic() < end:
        time.sleep(0.002)
    return ready()


def ticks_on(reader: SharedCommands) -> bool:
    first = reader.newest()
    time.sleep(0.1)
    second = reader.newest()
    return first is None or second is None or first.tick != second.tick


FORGETTING = """
import sys, time
import numpy as np
from vlakern.robot import Executor, ExecutorConfig, Limits
def send(command):
    print(command.velocity_J[0], flush=True)
arm = Executor(Limits([-1.0], [1.0], [1.0], [2.0]), ExecutorConfig(20.0), send)
arm.start([0.0])
arm.submit(np.linspace(0, 0.9, 20)[:, None])
while arm.counters().ticks < 60:
    time.sleep(0.01)
"""


def test_a_program_that_ends_without_stopping_brakes_first() -> None:
    """The last commands are those of a robot that comes to rest."""
    command = [sys.executable, "-c", FORGETTING]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    speeds = [float(one) for one in done.stdout.split()]
    assert max(speeds) > 0.1
    assert speeds[-1] == 0.0


def test_calls_that_would_wait_for_themselves_are_refused() -> None:
    """send stops its executor, or a reset would go on with a send that failed."""

    def send(_: Command) -> None:
        arm.stop()

    arm = Executor(ARM, ExecutorConfig(20.0), send)
    with arm:
        arm.start([0.0, 0.0])
        assert waited(lambda: arm.state == "fault")
        assert "raise instead" in str(arm.error)
        with pytest.raises(InputError, match="stop the executor and start it again"):
            arm.reset()
    arm.reset()
    arm._send = lambda command: None
    arm.start([0.0, 0.0])
    assert arm.error is None
    assert waited(lambda: arm.state == "waiting")
    threads = [threading.Thread(target=arm.stop) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"position_max": [1e10]}, "from -1e9 to 1e9"),
        ({"velocity": [5e-324]}, "velocity of dimension 0 is 4.94066e-324, expected 1e-9 to 1e12"),
        ({"velocity": [1e300]}, "expected 1e-9 to 1e12"),
        ({"acceleration": [1e-12]}, "acceleration of dimension 0"),
        ({"position_min": [-1e9], "velocity": [1e-3]}, "lost in rounding; expected at least 20"),
    ],
)
def test_limits_that_numbers_do_not_hold_are_refused(changed: dict[str, Any], said: str) -> None:
    limits = replace(Limits([-1.0], [1.0], [1.0]), **changed)
    with pytest.raises(InputError, match=said):
        Executor(limits, ExecutorConfig(20.0), print)
