"""Meta-World's simulated Sawyer arm as a robot with two cameras.

A policy gets pictures, proprioception and a sentence. The positions of objects and goals stay
inside: only the scripted expert, which makes demonstrations, reads them.
"""

import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from vlakern.errors import InputError, RenderError
from vlakern.sim.gl import choose_renderer
from vlakern.sim.metaworld_tasks import SUITES, TASKS, Task
from vlakern.sim.offscreen import close_renderer, make_renderer
from vlakern.sim.picture import FrameCheck
from vlakern.types import Observation

__all__ = ["CAMERAS", "CONTROL_RATE", "SUITES", "TASKS", "Camera", "MetaWorldEnv", "Step", "Task"]

CONTROL_RATE = 80.0  # [Hz]
STATE_NAMES = ("hand_x [m]", "hand_y [m]", "hand_z [m]", "gripper_opening")
ACTION_NAMES = ("hand_dx", "hand_dy", "hand_dz", "gripper_effort")
_ARM_JOINTS = 7


@dataclass(frozen=True)
class Camera:
    """A free camera: ``lookat`` and ``distance`` in [m], ``azimuth`` and ``elevation`` in [deg]."""

    lookat: tuple[float, float, float]
    distance: float
    azimuth: float
    elevation: float


CAMERAS: Mapping[str, Camera] = {
    "left": Camera((0.0, 0.7, 0.1), 1.0, 30.0, -35.0),
    "right": Camera((0.0, 0.7, 0.1), 1.0, 150.0, -35.0),
}


@dataclass(frozen=True)
class Step:
    """After one action: whether the task is solved now, and float32 ``[4]`` proprioception."""

    success: bool
    state: np.ndarray


class MetaWorldEnv:
    """One task, controlled at ``CONTROL_RATE``; several may live in one process and thread."""

    def __init__(
        self, task: str, *, views: Sequence[str] = ("left", "right"), image_size: int = 96
    ) -> None:
        """Args: image_size: height and width of a frame [pixels].

        Raises:
            InputError: a task or view that is not known, or an image size that is not positive.
            RenderError: no off-screen renderer works on this machine.
        """
        self.task = _known(task, TASKS, "task")
        self.views = tuple(views)
        self._cameras = {view: _known(view, CAMERAS, "view") for view in self.views}
        if image_size < 1:
            raise InputError(f"image_size is {image_size}, expected at least 1 pixel")
        self._size = image_size
        self._library = _library()
        self._sim = _make_simulator(self._library, task)
        self._checks = {view: FrameCheck(view, image_size, image_size) for view in self.views}
        self._renderer: Any = None
        self._expert: Any = None
        self._privileged: np.ndarray | None = None

    def reset(self, seed: int) -> None:
        """Starts an episode; ``seed`` >= 0 alone determines everything random in it."""
        if seed < 0:
            raise InputError(f"seed is {seed}, expected an integer that is not negative")
        self._sim.seed(seed)
        self._privileged, _ = self._sim.reset()
        self._expert = self._library.policies[self.task.name]()

    def observe(self) -> Observation:
        """What the robot sees now, every frame checked for being a real picture."""
        images = {view: self.render(view) for view in self.views}
        return Observation(images, self.state(), self.task.instruction)

    def state(self) -> np.ndarray:
        """float32 ``[4]``: hand x, y, z [m] and gripper opening [0 closed .. 1 open]."""
        return self._full()[:4].astype(np.float32)

    def hand_range(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest ``[3]`` [m] that steps may add up to from the hand as it is measured.

        The simulator keeps the point that drags the hand in a box of the task's own and throws
        away what leads out of it; the hand hangs some millimetres beside that point.
        """
        self._full()
        beside = self.state()[:3].astype(np.float64) - self._sim.data.mocap_pos[0]
        return self._sim.mocap_low + beside, self._sim.mocap_high + beside

    def render(self, view: str) -> np.ndarray:
        """The uint8 ``[H, W, 3]`` RGB picture of ``view``; RenderError if it is not a real one."""
        camera = _known(view, self._cameras, "view")
        self._full()
        if self._renderer is None:
            self._renderer = make_renderer(self._library.mujoco, self._sim.model, self._size)
        pose = self._library.mujoco.MjvCamera()
        pose.type = self._library.mujoco.mjtCamera.mjCAMERA_FREE
        pose.lookat[:] = camera.lookat
        pose.distance, pose.azimuth, pose.elevation = (
            camera.distance,
            camera.azimuth,
            camera.elevation,
        )
        # render() makes its own context current first, so environments may take turns.
        self._renderer.update_scene(self._sim.data, camera=pose)
        frame = self._renderer.render(out=self._checks[view].blank())
        return self._checks[view].check(frame, self._sim.data.qpos[:_ARM_JOINTS])

    def step(self, action: np.ndarray) -> Step:
        """Applies ``[4]`` hand dx, dy, dz and gripper effort, clipped to [-1, 1]; 1 is 1 cm.

        Raises:
            InputError: another shape, or an entry that is not finite.
        """
        self._full()
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (4,):
            raise InputError(f"action has shape {action.shape}, expected (4,): dx, dy, dz, gripper")
        if not np.isfinite(action).all():
            raise InputError(f"action {action.tolist()} has an entry that is not finite")
        self._privileged, _, _, _, info = self._sim.step(np.clip(action, -1.0, 1.0))
        return Step(bool(info["success"]), self.state())

    def expert_action(self) -> np.ndarray:
        """float32 ``[4]`` of the scripted expert, which reads the whole simulator state."""
        scene = self._full()
        with warnings.catch_warnings():
            # The expert warns of its own gains whenever it is far from its target.
            warnings.simplefilter("ignore", UserWarning)
            action = self._expert.get_action(scene)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def close(self) -> None:
        """Frees the renderer; calling it again does nothing."""
        if self._renderer is not None:
            close_renderer(self._renderer)
            self._renderer = None

    def _full(self) -> np.ndarray:
        if self._privileged is None:
            raise InputError("the episode has not begun; call reset(seed) first")
        return self._privileged


def _known(name: str, table: Mapping[str, Any], kind: str) -> Any:
    if name not in table:
        raise InputError(f"{kind} {name!r} is not known; use one of {', '.join(table)}")
    return table[name]


@functools.cache
def _library() -> SimpleNamespace:
    """MuJoCo and Meta-World, imported after the renderer has been chosen."""
    renderer = choose_renderer()
    import mujoco
    import mujoco.gl_context
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    from metaworld.policies import ENV_POLICY_MAP

    # MuJoCo fixes its renderer when it is imported, which another module may have done before.
    chosen = mujoco.gl_context.GLContext.__module__.rpartition(".")[2]
    if chosen != renderer:
        raise RenderError(
            f"MuJoCo was already imported with the renderer {chosen!r} but {renderer!r} works; "
            f"set MUJOCO_GL={renderer} before starting Python"
        )
    return SimpleNamespace(mujoco=mujoco, environments=ALL_V3_ENVIRONMENTS, policies=ENV_POLICY_MAP)


def _make_simulator(library: SimpleNamespace, task: str) -> Any:
    """A simulator whose every reset draws a new initial condition from its seed."""
    sim = library.environments[task]()
    sim._freeze_rand_vec = False
    sim.seeded_rand_vec = True
    sim._set_task_called = True
    sim._partially_observable = False
    # The space is cached with the goal clipped to zero; without it the expert sees no goal.
    sim.__dict__.pop("sawyer_observation_space", None)
    # The number of steps is the caller's business.
    sim.max_path_length = np.iinfo(np.int64).max
    return sim
