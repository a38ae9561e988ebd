"""Add a robot: declare it in a TOML file, check it, and see what a policy would see.

Run it: ``python examples/add_your_robot.py``, or with your own file; then train for the robot with
``vlakern train --embodiment examples/my_robot.toml --frame eef_relative --data ...``.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from vlakern.space import ActionSpace, Normalizer, VectorStats, robot_and_slots

path = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name("my_robot.toml")
robot, slots = robot_and_slots(path)  # says in one sentence what does not fit
stats = VectorStats.units(slots.names())  # `vlakern train` computes them from your data
plain = Normalizer("state", "none", stats), Normalizer("action", "none", stats)
space = ActionSpace(robot, slots, slots, "eef_relative", *plain)

# The hand looks down (half a turn about x); four targets rise by 2 cm each and close the gripper.
state = np.array([0.4, 0.0, 0.3, 0.0, 1.0, 0.0, 0.0, 0.085])
targets = np.tile(state, (4, 1))
targets[:, 2] += [0.02, 0.04, 0.06, 0.08]
targets[:, 7] = [0.0, 0.0, 255.0, 255.0]

chunk = space.encode(targets, state)  # [4, 200] what the model is trained on
for name, filled, values in zip(slots.names(), space.action_mask, chunk.T, strict=True):
    if filled:
        print(f"{name:24}", *(f"{value:7.3f}" for value in values + 0.0))

commands = space.decode(torch.from_numpy(chunk[None]), state[None])[0]  # what the robot gets
print(f"round trip: {np.abs(commands - targets).max():.1e}")
