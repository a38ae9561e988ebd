"""robosuite's simulated arms under operational space control (OSC_POSE) as robots.

Poses are float64 ``[7]``: position [m] and quaternion x, y, z, w of the site between the fingers,
in the frame of the arm's base. The poses of objects stay inside: only the scripted expert, which
makes demonstrations, reads them.

Two of robosuite 1.5.2's models are repaired: IIWA and XArm7 have the controller's origin on a link
that turns with the first joint, so that "base" would be no fixed frame; Sawyer's first joint is
held by a contact between its own base and its first link.
"""

import contextlib
import functools
import importlib
import importlib.util
import logging
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from vlakern.errors import InputError, RenderError, Unsupported
from vlakern.sim.gl import choose_renderer
from vlakern.sim.robosuite_cameras import Cameras
from vlakern.sim.robosuite_setup import (
    ARMS,
    CONTROL_RATE,
    POSITION_SCALE,
    ROTATION_SCALE,
    TASKS,
    Arm,
    Osc,
    Scene,
    Step,
    known,
    settings,
)
from vlakern.types import Observation

__all__ = [
    "ARMS",
    "CONTROL_RATE",
    "POSITION_SCALE",
    "ROTATION_SCALE",
    "TASKS",
    "Arm",
    "Osc",
    "RobosuiteEnv",
    "Scene",
    "Step",
]

_BUILD_SEED = 0


class RobosuiteEnv:
    """One task and arm, controlled at ``CONTROL_RATE``; the cube's size is always the same."""

    def __init__(
        self,
        task: str = "Lift",
        arm: str = "Panda",
        *,
        base_yaw: float = 0.0,
        osc: Osc | None = None,
        views: Sequence[str] = (),
        image_size: int = 96,
    ) -> None:
        """Args: base_yaw: turn of the base about the vertical [rad]; the arm's first joint turns
        back, so that the hand starts where it would without. views: cameras, of ``VIEWS``.
        image_size: height and width of a picture [pixels].

        Raises:
            InputError: a task, arm or view that is not known, a yaw that is not finite, or an image
                size that is not positive.
            Unsupported: robosuite is not installed, or not the version that works.
        """
        self.instruction = TASKS[known(task, TASKS, "task")].instruction
        self.task, self.arm = task, known(arm, ARMS, "arm")
        if not np.isfinite(base_yaw):
            raise InputError(f"base_yaw is {base_yaw}, expected a finite angle [rad]")
        self.osc = osc or Osc()
        self._cameras = Cameras(views, image_size)
        self.views = self._cameras.views
        self._library = _library()
        self._sim: Any = _make_simulator(self._library, task, arm, self.osc)
        self._model, self._data = self._sim.sim.model._model, self._sim.sim.data._data
        self._origin = f"{self._robot.robot_model.naming_prefix}right_center"
        self._repair()
        self._turn_base(base_yaw)
        self._begun = False

    def reset(self, seed: int) -> None:
        """Starts an episode; ``seed`` >= 0 alone determines everything random in it."""
        if seed < 0:
            raise InputError(f"seed is {seed}, expected an integer that is not negative")
        self._check_open()
        # The samplers keep the generator they were built with, so it is set, not replaced.
        self._sim.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        self._sim.reset()
        self._begun = True
        # robosuite starts from a goal in the world whatever its input frame is.
        controller = self._controller
        pose = self._site(self._eye)
        if self.osc.frame == "base":
            pose = _relative(self._site(self._origin), pose)
        controller.goal_pos, controller.goal_ori = pose
        controller.set_goal_update_mode(self.osc.update)

    def use(self, osc: Osc) -> None:
        """Other settings for the controller; a new episode must begin."""
        self._check_open()
        self.osc, self._begun = osc, False
        # A reset makes a controller from this.
        self._robot.composite_controller_config["body_parts"]["right"] |= settings(osc)

    def observe(self) -> Observation:
        """What the robot sees now, its proprioception, and the sentence."""
        images = {view: self.render(view) for view in self.views}
        return Observation(images, self.state(), self.instruction)

    def render(self, view: str) -> np.ndarray:
        """The uint8 ``[H, W, 3]`` RGB picture of ``view``; RenderError if it is not a real one."""
        self._check_begun()
        # MuJoCo may have been imported without a renderer, which physics alone does not need.
        choose_renderer()
        joints = self._data.qpos[self._robot._ref_joint_pos_indexes]
        return self._cameras.render(self._library.mujoco, self._model, self._data, view, joints)

    def state(self) -> np.ndarray:
        """float32 ``[8]``: measured pose and gripper opening [0 closed .. 1 open]."""
        return np.append(self.measured_pose(), self.opening()).astype(np.float32)

    def measured_pose(self) -> np.ndarray:
        """float64 ``[7]`` where the hand is, in the base frame."""
        return _write(_relative(self._site(self._origin), self._site(self._eye)))

    def commanded_pose(self) -> np.ndarray:
        """float64 ``[7]`` the controller's goal, in the base frame; after a reset the measured."""
        self._check_begun()
        goal = self._controller.goal_pos, self._controller.goal_ori
        if self.osc.frame == "world":
            goal = _relative(self._site(self._origin), goal)
        return _write(goal)

    def base_pose(self) -> np.ndarray:
        """float64 ``[7]`` the base frame in the world."""
        return _write(self._site(self._origin))

    def opening(self) -> float:
        """Gripper opening, 0 closed to 1 open."""
        self._check_begun()
        joint = self._data.qpos[self._robot._ref_gripper_joint_pos_indexes["right"][0]]
        ends = ARMS[self.arm]
        return float(np.clip((joint - ends.closed) / (ends.open - ends.closed), 0.0, 1.0))

    def scene(self) -> Scene:
        """Where the cubes and the fingers are; for experts, never for a policy."""
        base, task = self._site(self._origin), TASKS[self.task]
        cube = self._body(base, task.cube)
        target = None if task.target is None else self._body(base, task.target)
        prefix = self._robot.gripper["right"].naming_prefix
        left, right = (self._data.geom(prefix + tip).xpos for tip in ARMS[self.arm].tips)
        fingers = base[1].T @ (right - left)
        return Scene(cube, fingers / np.linalg.norm(fingers), target)

    def aim(self, pose: np.ndarray, gripper: float) -> np.ndarray:
        """float64 ``[7]`` the action that makes ``pose [7]`` in the base frame the goal.

        A delta may be beyond the [-1, 1] to which ``step`` clips it: then the goal is not reached.
        """
        goal = _read(pose)
        if self.osc.input == "delta":
            reference = self.commanded_pose() if self.osc.update == "desired" else None
            reference = _read(self.measured_pose() if reference is None else reference)
            position = (goal[0] - reference[0]) / POSITION_SCALE
            turn = _rotation_vector(goal[1] @ reference[1].T) / ROTATION_SCALE
            if self.osc.frame == "world":
                base = self._site(self._origin)[1]
                position, turn = base @ position, base @ turn
        else:
            if self.osc.frame == "world":
                base = self._site(self._origin)
                goal = base[0] + base[1] @ goal[0], base[1] @ goal[1]
            position, turn = goal[0], _rotation_vector(goal[1])
        return np.concatenate([position, turn, [gripper]])

    def step(self, action: np.ndarray) -> Step:
        """Applies ``[7]``: six numbers for the hand as ``osc`` says, and the gripper: -1 opens, +1
        closes. Deltas are clipped to [-1, 1].

        Raises:
            InputError: another shape, or an entry that is not finite.
        """
        self._check_begun()
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (7,):
            raise InputError(
                f"action has shape {action.shape}, expected (7,): position, rotation, gripper"
            )
        if not np.isfinite(action).all():
            raise InputError(f"action {action.tolist()} has an entry that is not finite")
        self._sim.step(action)
        return Step(bool(self._sim._check_success()), self.state())

    def close(self) -> None:
        """Frees the simulator; calling it again does nothing."""
        if self._sim is not None:
            self._cameras.close()
            self._sim.close()
            self._sim = None
            self._begun = False

    @property
    def _robot(self) -> Any:
        return self._sim.robots[0]

    @property
    def _controller(self) -> Any:
        # A reset makes a new one.
        return self._robot.part_controllers["right"]

    @property
    def _eye(self) -> str:
        return self._controller.ref_name

    def _check_open(self) -> None:
        if self._sim is None:
            raise InputError("the environment is closed; make a new one")

    def _check_begun(self) -> None:
        if not self._begun:
            raise InputError("the episode has not begun; call reset(seed) first")

    def _site(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Position and matrix of a site in the world, from the joints as they are now."""
        self._check_begun()
        # A step ends with the joints moved and the sites where they were 2 ms before.
        self._library.mujoco.mj_kinematics(self._model, self._data)
        site = self._data.site(name)
        return site.xpos.copy(), site.xmat.reshape(3, 3).copy()

    def _body(self, base: tuple[np.ndarray, np.ndarray], name: str) -> np.ndarray:
        """``[7]`` pose in the base frame of the body that robosuite's environment calls so."""
        body = self._data.body(getattr(self._sim, name))
        return _write(_relative(base, (body.xpos.copy(), body.xmat.reshape(3, 3).copy())))

    def _repair(self) -> None:
        """Puts the controller's origin on the base of every arm, and frees Sawyer's first joint."""
        site = self._model.site(self._origin)
        site.bodyid[:] = self._model.body(self._robot.robot_model.root_body).id
        site.pos[:], site.quat[:], site.sameframe[:] = 0.0, (1.0, 0.0, 0.0, 0.0), 0
        if self.arm == "Sawyer":
            base = self._model.geom(f"{self._robot.robot_model.naming_prefix}base_col")
            base.contype[:], base.conaffinity[:] = 0, 0

    def _turn_base(self, yaw: float) -> None:
        robot = self._robot
        body = self._model.body(robot.robot_model.root_body).id
        turned, turn = np.zeros(4), np.array([np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])
        self._library.mujoco.mju_mulQuat(turned, turn, self._model.body_quat[body])
        self._model.body_quat[body] = turned
        first = self._data.joint(robot.robot_joints[0])
        start = np.array(robot.init_qpos, dtype=np.float64)
        start[0] -= yaw * np.sign(first.xaxis[2])
        robot.init_qpos = start


def _relative(
    base: tuple[np.ndarray, np.ndarray], pose: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """``pose`` as seen from ``base``, both positions and matrices in one frame."""
    return base[1].T @ (pose[0] - base[0]), base[1].T @ pose[1]


def _read(pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position and matrix of a pose ``[7]``."""
    matrix = np.zeros(9)
    _library().mujoco.mju_quat2Mat(matrix, np.roll(pose[3:], 1))
    return np.array(pose[:3], dtype=np.float64), matrix.reshape(3, 3)


def _rotation_vector(matrix: np.ndarray) -> np.ndarray:
    """``[3]`` axis times angle [rad], the angle at most pi."""
    quaternion, vector = np.zeros(4), np.zeros(3)
    _library().mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(matrix).ravel())
    _library().mujoco.mju_quat2Vel(vector, quaternion, 1.0)
    return vector


def _write(pose: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """``[7]`` with the quaternion x, y, z, w and w not negative."""
    quaternion = np.zeros(4)
    _library().mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(pose[1]).ravel())
    if quaternion[0] < 0.0:
        quaternion = -quaternion
    return np.concatenate([pose[0], np.roll(quaternion, -1)])


@functools.cache
def _library() -> SimpleNamespace:
    """MuJoCo and robosuite, with its messages about optional parts silenced."""
    for name in ("robosuite", "mujoco"):
        if importlib.util.find_spec(name) is None:
            raise Unsupported(f"{name} is not installed; run `pip install 'vlakern[robosuite]'`")
    logging.getLogger("robosuite_logs").addFilter(_is_error)
    # robosuite would set MUJOCO_GL=egl for the whole process. Physics alone needs no renderer.
    with contextlib.suppress(RenderError):
        choose_renderer()
    mujoco = importlib.import_module("mujoco")
    try:
        suite = importlib.import_module("robosuite")
    except ImportError as error:
        raise Unsupported(
            f"robosuite cannot be imported ({error}); run `pip install 'vlakern[robosuite]'`"
        ) from error
    if not str(suite.__version__).startswith("1.5."):
        raise Unsupported(
            f"robosuite {suite.__version__} is installed, expected 1.5; "
            "run `pip install 'vlakern[robosuite]'`"
        )
    return SimpleNamespace(mujoco=mujoco, suite=suite)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _make_simulator(library: SimpleNamespace, task: str, arm: str, osc: Osc) -> Any:
    """A simulator whose resets keep the model: the same cube, and no file is read again."""
    config = library.suite.load_composite_controller_config(robot=arm)
    config["body_parts"]["right"] |= settings(osc)
    return library.suite.make(
        task,
        robots=arm,
        controller_configs=config,
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        control_freq=CONTROL_RATE,
        # How long an episode lasts is the caller's business.
        ignore_done=True,
        hard_reset=False,
        seed=_BUILD_SEED,
    )
