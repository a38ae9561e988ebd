"""The control loop of a robot: look, ask the policy for a chunk, execute part of it, look again.

Run it: ``python examples/drive_an_arm.py drawer-open-v3``. For a robot of your own, write a class
with the three methods of :class:`Arm` and pass it to :func:`drive`; nothing else changes.
"""

import argparse
from typing import Protocol

import numpy as np

import vlakern
from vlakern.sim.metaworld import MetaWorldEnv


class Arm(Protocol):
    """What a robot must offer."""

    def observe(self) -> vlakern.Observation:
        """Camera images, proprioception and the instruction, all of one instant."""
        ...

    def command(self, action: np.ndarray) -> None:
        """Executes one action [A] in the units the policy was trained with."""
        ...

    def done(self) -> bool:
        """Whether to stop."""
        ...


class SimulatedArm:
    """A Meta-World task behind the interface of a robot."""

    def __init__(self, task: str, policy: vlakern.Policy, seed: int) -> None:
        self._env = MetaWorldEnv(task, views=policy.views, image_size=policy.image_size)
        self._env.reset(seed)
        self._success = False

    def observe(self) -> vlakern.Observation:
        return self._env.observe()

    def command(self, action: np.ndarray) -> None:
        self._success |= self._env.step(action).success

    def done(self) -> bool:
        return self._success


def drive(arm: Arm, policy: vlakern.Policy, max_steps: int, seed: int) -> int:
    """Runs the loop until the arm is done; returns the steps it took."""
    for begin in range(0, max_steps, policy.execute):
        chunk = policy.act(arm.observe(), seed=seed + begin)
        for step, action in enumerate(chunk.actions[: policy.execute], start=begin + 1):
            arm.command(action)
            if arm.done() or step == max_steps:
                return step
    return max_steps


def main() -> None:
    parser = argparse.ArgumentParser(description="Drive a simulated arm with the shipped policy.")
    parser.add_argument("task", nargs="?", default="drawer-open-v3")
    parser.add_argument("--policy", default="metaworld-small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int, default=300)
    args = parser.parse_args()
    policy = vlakern.load(args.policy)
    arm = SimulatedArm(args.task, policy, args.seed)
    steps = drive(arm, policy, args.max_steps, args.seed)
    print(f"{args.task}: {'done' if arm.done() else 'not done'} after {steps} steps")


if __name__ == "__main__":
    main()
