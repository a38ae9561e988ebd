"""A scripted expert that lifts robosuite's cube with any arm, turning the hand about several axes.

It reads the cube's pose, so it only makes demonstrations. The turns that the task does not need
are there to be seen: a trajectory with one axis of rotation hides a wrong frame.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from vlakern.errors import InputError
from vlakern.sim.robosuite import RobosuiteEnv
from vlakern.space.rotation import Rotation

__all__ = ["LiftExpert"]

STRIDE = 0.03  # [m] farthest goal from the hand
TURN = 0.25  # [rad] farthest goal from the hand
_OPEN, _CLOSE = -1.0, 1.0
_UP, _DOWN = np.array([0.0, 0.0, 1.0]), np.array([0.0, 0.0, -1.0])


@dataclass(frozen=True)
class _Waypoint:
    """A pose ``[7]`` to come near to [m, rad], and for how many steps at least to aim at it."""

    position: np.ndarray
    rotation: Rotation
    gripper: float
    near: tuple[float, float]
    steps: int = 1
    limit: int = 40


class LiftExpert:
    """Lifts the cube: over it with a tilted hand, down along its sides, close, up with a turn."""

    def __init__(self, env: RobosuiteEnv) -> None:
        """Args: env: an environment of the task Lift; call ``begin`` after each of its resets.

        Raises:
            InputError: another task.
        """
        if env.task != "Lift":
            raise InputError(f"task is {env.task!r}, expected 'Lift': this expert only lifts")
        self._env = env
        self._plan: list[_Waypoint] = []
        self._steps = 0

    def begin(self) -> None:
        """Plans from where hand and cube are now."""
        scene, hand = self._env.scene(), self._env.measured_pose()
        cube = scene.cube[:3]
        aligned = _aligned(_rotation(hand), scene.fingers, _rotation(scene.cube))
        tilted = _about([1.0, 0.6, 0.9], 0.45) @ aligned
        raised = _about([0.5, -1.0, 0.8], 0.35) @ aligned
        loose, tight = (0.02, 0.1), (0.004, 0.04)
        self._plan = [
            _Waypoint(cube + 0.14 * _UP, tilted, _OPEN, loose),
            _Waypoint(cube + 0.07 * _UP, aligned, _OPEN, (0.01, 0.06)),
            _Waypoint(cube, aligned, _OPEN, tight),
            _Waypoint(cube, aligned, _CLOSE, loose, steps=14),
            _Waypoint(cube + 0.15 * _UP, raised, _CLOSE, loose, steps=10**9),
        ]
        self._steps = 0

    def action(self) -> np.ndarray:
        """float64 ``[7]`` for ``env.step``, whatever its controller's settings are.

        Raises:
            InputError: ``begin`` was not called.
        """
        if not self._plan:
            raise InputError("the expert has no plan; call begin() after the reset")
        hand = self._env.measured_pose()
        self._advance(hand)
        point = self._plan[0]
        self._steps += 1
        step, turn = _error(hand, point)
        step = step * min(1.0, STRIDE / max(float(np.linalg.norm(step)), 1e-9))
        angle = float(turn.angle())
        part = Rotation.read(
            turn.write("axis_angle") * min(1.0, TURN / max(angle, 1e-9)), "axis_angle"
        )
        goal = (part @ _rotation(hand)).write("quaternion_xyzw").numpy()
        return self._env.aim(np.concatenate([hand[:3] + step, goal]), point.gripper)

    def _advance(self, hand: np.ndarray) -> None:
        while True:
            point = self._plan[0]
            step, turn = _error(hand, point)
            near = np.linalg.norm(step) < point.near[0] and float(turn.angle()) < point.near[1]
            if self._steps < point.steps or not (near or self._steps >= point.limit):
                return
            self._plan.pop(0)
            self._steps = 0


def _error(hand: np.ndarray, point: _Waypoint) -> tuple[np.ndarray, Rotation]:
    """What leads from the hand to the waypoint, in the base frame."""
    return point.position - hand[:3], point.rotation @ _rotation(hand).inverse()


def _rotation(pose: np.ndarray) -> Rotation:
    return Rotation.read(torch.from_numpy(pose[3:].copy()), "quaternion_xyzw")


def _about(axis: list[float], angle: float) -> Rotation:
    direction = torch.tensor(axis, dtype=torch.float64)
    return Rotation.read(direction / direction.norm() * angle, "axis_angle")


def _aligned(hand: Rotation, fingers: np.ndarray, cube: Rotation) -> Rotation:
    """The hand pointing down, with the fingers across the cube's sides, by the shortest way."""
    forward = hand.apply(torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)).numpy()
    axis = np.cross(forward, _DOWN)
    sine = float(np.linalg.norm(axis))
    upright = _about(
        (axis / sine if sine > 1e-9 else _UP).tolist(), math.atan2(sine, float(forward @ _DOWN))
    )
    across = upright.apply(torch.from_numpy(fingers)).numpy()
    side = cube.apply(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)).numpy()
    quarter = math.pi / 2
    turn = math.atan2(side[1], side[0]) - math.atan2(across[1], across[0])
    turn -= quarter * round(turn / quarter)
    return _about(_UP.tolist(), turn) @ upright @ hand
