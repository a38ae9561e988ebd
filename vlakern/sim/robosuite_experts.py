"""Scripted experts that lift robosuite's cube, and stack it, with any arm.

They read the cubes' poses, so they only make demonstrations. Lifting can turn the hand about
several axes: turns that the task does not need are there to be seen, since a trajectory with one
axis of rotation hides a wrong frame.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from vlakern.errors import InputError
from vlakern.sim.robosuite import RobosuiteEnv, Scene
from vlakern.space.rotation import Rotation

__all__ = ["Expert", "LiftExpert", "StackExpert", "expert_of"]

STRIDE = 0.03  # [m] farthest goal from the hand
FAST = 0.045  # [m] the same for demonstrations, of which each step is a picture
TURN = 0.25  # [rad] farthest goal from the hand
HEIGHT = 0.045  # [m] centre of the cube above that of the cube it stands on
_OPEN, _CLOSE = -1.0, 1.0
_LOOSE = (0.02, 0.1)
_FOREVER = 10**9
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


class Expert:
    """Follows waypoints; a task's expert says which."""

    task = ""

    def __init__(self, env: RobosuiteEnv, *, stride: float = STRIDE) -> None:
        """Args: env: an environment of the expert's task; call ``begin`` after each of its resets.
        stride: farthest goal from the hand [m].

        Raises:
            InputError: another task.
        """
        if env.task != self.task:
            raise InputError(
                f"task is {env.task!r}, expected {self.task!r}: this expert knows no other"
            )
        self._env = env
        self._plan: list[_Waypoint] = []
        self._steps, self._stride = 0, stride

    def begin(self) -> None:
        """Plans from where hand and cubes are now."""
        scene, hand = self._env.scene(), self._env.measured_pose()
        aligned = _aligned(_rotation(hand), scene.fingers, _rotation(scene.cube))
        self._plan = self._waypoints(scene, aligned)
        self._steps = 0

    def _waypoints(self, scene: Scene, aligned: Rotation) -> list[_Waypoint]:
        """The plan; ``aligned`` is the hand pointing down with its fingers across the cube."""
        raise NotImplementedError

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
        step = step * min(1.0, self._stride / max(float(np.linalg.norm(step)), 1e-9))
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


class LiftExpert(Expert):
    """Lifts the cube: over it, down along its sides, close, up."""

    task = "Lift"

    def __init__(self, env: RobosuiteEnv, *, stride: float = STRIDE, turns: bool = True) -> None:
        """Args: stride: as :class:`Expert`; turns: tilts the hand on its way to the cube and up.

        Raises:
            InputError: another task.
        """
        super().__init__(env, stride=stride)
        self._turns = turns

    def _waypoints(self, scene: Scene, aligned: Rotation) -> list[_Waypoint]:
        cube, tilted, raised = scene.cube[:3], aligned, aligned
        if self._turns:
            tilted = _about([1.0, 0.6, 0.9], 0.45) @ aligned
            raised = _about([0.5, -1.0, 0.8], 0.35) @ aligned
        over = [_Waypoint(cube + 0.14 * _UP, tilted, _OPEN, _LOOSE)] if self._turns else []
        return [
            *over,
            _Waypoint(cube + 0.07 * _UP, aligned, _OPEN, (0.01, 0.06)),
            *_grasp(cube, aligned),
            _Waypoint(cube + 0.15 * _UP, raised, _CLOSE, _LOOSE, steps=_FOREVER),
        ]


class StackExpert(Expert):
    """Puts the cube on the other: lifts it, over the other, down, open, away."""

    task = "Stack"

    def _waypoints(self, scene: Scene, aligned: Rotation) -> list[_Waypoint]:
        assert scene.target is not None
        cube, place = scene.cube[:3], scene.target[:3] + HEIGHT * _UP
        return [
            _Waypoint(cube + 0.07 * _UP, aligned, _OPEN, (0.01, 0.06)),
            *_grasp(cube, aligned),
            _Waypoint(cube + 0.12 * _UP, aligned, _CLOSE, (0.03, 0.2)),
            _Waypoint(place + 0.06 * _UP, aligned, _CLOSE, (0.008, 0.1)),
            _Waypoint(place + 0.004 * _UP, aligned, _CLOSE, (0.006, 0.1), limit=15),
            _Waypoint(place + 0.004 * _UP, aligned, _OPEN, _LOOSE, steps=6),
            _Waypoint(place + 0.1 * _UP, aligned, _OPEN, _LOOSE, steps=_FOREVER),
        ]


def expert_of(env: RobosuiteEnv) -> Expert:
    """The expert of an environment's task that moves no more than the task needs."""
    if env.task == LiftExpert.task:
        return LiftExpert(env, stride=FAST, turns=False)
    return StackExpert(env, stride=FAST)


def _grasp(cube: np.ndarray, aligned: Rotation) -> list[_Waypoint]:
    return [
        _Waypoint(cube, aligned, _OPEN, (0.004, 0.04)),
        _Waypoint(cube, aligned, _CLOSE, _LOOSE, steps=14),
    ]


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
