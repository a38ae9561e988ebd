"""Speed of what a policy does with its chunk: ``ActionSpace.decode``, state checks included.

A table: ``python benchmarks/space/bench_action_space.py``. Nothing is printed while commands are
not those of the batched mathematics in ``vlakern.space.frames``.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from vlakern.space import ActionSpace, Embodiment, Normalizer, Pose, VectorStats, decode, slot_map
from vlakern.space.embodiment import Field, embodiment
from vlakern.testing import interleave

CHUNK = 16
ARMS = ("right", "left")


def bimanual() -> Embodiment:
    """Two arms with a pose, a gripper and seven joints each, as state and as command."""
    fields: list[Field] = []
    for arm in ARMS:
        at = fields[-1].native[1] if fields else 0
        fields += [
            Field(f"{arm}_eef_position", (at, at + 3)),
            Field(f"{arm}_eef_rotation", (at + 3, at + 7), "quaternion_xyzw"),
            Field(f"{arm}_gripper", (at + 7, at + 8), closed=0.0, open=0.08),
            Field(f"{arm}_arm_joints", (at + 8, at + 15)),
        ]
    return Embodiment("bimanual", "unified-200", 20.0, ("head",), 30, 30, (*fields,), (*fields,))


def make_space(robot: Embodiment) -> ActionSpace:
    """The robot on unified-200, its actions relative to the hand."""
    slots = slot_map("unified-200")
    stats = VectorStats.units(slots.names())
    plain = Normalizer("state", "zscore", stats), Normalizer("action", "zscore", stats)
    return ActionSpace(robot, slots, slots, "eef_relative", *plain)


def make_state(robot: Embodiment, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Random native states ``[B, S]`` with unit quaternions."""
    state = rng.normal(size=(rows, robot.state_width)).astype(np.float32)
    for field in robot.state:
        if field.rotation is not None:
            state[:, slice(*field.native)] /= np.linalg.norm(
                state[:, slice(*field.native)], axis=1, keepdims=True
            )
    return state


def check(space: ActionSpace, x: torch.Tensor, state: np.ndarray) -> None:
    """Raises AssertionError if the right hand's poses are not those of ``frames.decode``."""
    wide = torch.from_numpy(state[:, :7]).double()
    goals = decode(
        Pose.read(x[..., :6].double(), "axis_angle"),
        Pose.read(wide, "quaternion_xyzw"),
        "eef_relative",
    )
    found = space.decode(x, state)[..., :3]
    assert np.abs(found - goals.position.numpy()).max() < 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=500)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    print(f"{'us':>8} {'best':>8}  rows  robot        load {Path('/proc/loadavg').read_text()[:4]}")
    for robot in (embodiment("robosuite_panda"), bimanual()):
        for rows in (1, 8, 64):
            space, state = make_space(robot), make_state(robot, rows, rng)
            x = torch.from_numpy(rng.normal(size=(rows, CHUNK, 200)).astype(np.float32))
            check(space, x, state)
            time = interleave({"decode": lambda s=space, x=x, n=state: s.decode(x, n)}, repeats)
            median, best = time["decode"].median * 1e6, time["decode"].best * 1e6
            print(f"{median:8.1f} {best:8.1f}  {rows:4}  {robot.name}")


if __name__ == "__main__":
    main()
