"""A robot under asynchronous inference: chunks that join while an executor sends commands.

Run it: ``python examples/realtime_loop.py``. The arm is simulated, and the policy is a wave that
takes its time, so that there is something to see in a second. For a robot of your own, give
:class:`vlakern.robot.Loop` an object with ``observe``, ``position`` and ``send``
(:class:`vlakern.robot.Rig` makes one of an arm and cameras), the robot's limits, and
``vlakern.load(...)`` in place of :class:`Wave`, with ``prefix=True`` if it was trained with delays.

This is no safety-rated function: the robot's own emergency stop stays in charge.
"""

import argparse
import time

import numpy as np

from vlakern import ActionChunk, Observation
from vlakern.robot import ExecutorConfig, Limits, Loop, LoopConfig, LoopReport, SimulatedArm
from vlakern.types import ActionPrefix

RATE = 20.0  # actions of the policy [Hz]
CHUNK = 24


class Wave:
    """Answers as a policy does: 24 absolute commands, the first for the observation's instant."""

    def __init__(self, latency: float) -> None:
        self._latency = latency

    def act(self, observation: Observation, *, prefix: ActionPrefix | None = None) -> ActionChunk:
        time.sleep(self._latency)
        joints = len(observation.state)
        phase = np.linspace(0, np.pi, CHUNK)[:, None] + np.arange(joints)
        actions = observation.state + 0.1 * (np.sin(phase) - np.sin(phase[0]))
        if prefix is not None:  # a network trained with delays is given these and goes on from them
            decided = prefix.actions[: prefix.frozen]
            actions += decided[-1] - actions[len(decided) - 1]
            actions[: len(decided)] = decided
        return ActionChunk(actions.astype(np.float32))


def drive(seconds: float, latency: float, execute: int, prefix: bool) -> LoopReport:
    """Runs the loop on a simulated arm of three joints; what it reports."""
    arm = SimulatedArm(start=(0.0, 0.3, -0.3), frequency=3.0)
    limits = Limits(
        position_min=[-1.5] * 3,  # [rad]
        position_max=[1.5] * 3,
        velocity=[2.0] * 3,  # [rad/s]
        acceleration=[40.0] * 3,  # [rad/s²]
    )
    executor = ExecutorConfig(policy_rate=RATE, tick_rate=200.0)
    config = LoopConfig(execute=execute, prefix=prefix)
    return Loop(arm, Wave(latency), limits, executor, config).run(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description="Asynchronous inference on a simulated arm.")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--latency", type=float, default=0.1, help="of inference [s]")
    parser.add_argument("--execute", type=int, default=10, help="actions between observations")
    parser.add_argument("--no-prefix", action="store_true", help="chunks that do not join")
    args = parser.parse_args()
    report = drive(args.seconds, args.latency, args.execute, not args.no_prefix)
    sent = report.executor
    print(f"ended: {report.ended}; {sent.chunks} chunks in {report.seconds:.1f} s")
    print(f"latency p95 {report.latency['p95'] * 1e3:.0f} ms: {report.delay_steps} actions")
    print(f"ticks {sent.ticks}, missed {sent.missed}, starved {sent.starved}, stops {sent.stops}")
    print(f"dropped observations {report.dropped}, discarded chunks {report.discarded}")


if __name__ == "__main__":
    main()
