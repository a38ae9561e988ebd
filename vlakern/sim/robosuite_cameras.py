"""Pictures of a robosuite model by MuJoCo's own renderer, every one checked.

robosuite's own off-screen contexts are never made: one that is collected releases its thread, and
the pictures of those that live are then whatever was in memory.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlakern.errors import InputError
from vlakern.sim.offscreen import close_renderer, make_renderer
from vlakern.sim.picture import FrameCheck
from vlakern.sim.robosuite_setup import known

__all__ = ["VIEWS", "Cameras"]

# View -> change of a joint after which its picture must differ [rad]. The camera on the hand moves
# with it; the one before the table sees only what of the arm is near the table.
VIEWS: Mapping[str, float] = {"agentview": 1.0, "robot0_eye_in_hand": 0.05}


class Cameras:
    """Some cameras of one model; the renderer is made with the first picture."""

    def __init__(self, views: Sequence[str], size: int) -> None:
        """Args: size: height and width of a picture [pixels].

        Raises:
            InputError: an unknown view, or a size below 1.
        """
        if size < 1:
            raise InputError(f"image_size is {size}, expected at least 1 pixel")
        self._size = size
        self._checks = {
            known(view, VIEWS, "view"): FrameCheck(view, size, size, moved=VIEWS[view])
            for view in views
        }
        self._renderer: Any = None
        self._option: Any = None

    @property
    def views(self) -> tuple[str, ...]:
        """Their names, in the order of a policy's."""
        return tuple(self._checks)

    def render(
        self, mujoco: Any, model: Any, data: Any, view: str, joints: np.ndarray
    ) -> np.ndarray:
        """The uint8 ``[H, W, 3]`` RGB picture of ``view``, the right way up.

        Args:
            joints: positions of the arm's joints [rad], which say whether it has moved.

        Raises:
            InputError: an unknown view.
            RenderError: no context, or no real picture.
        """
        check = self._checks[known(view, self._checks, "view")]
        if self._renderer is None:
            self._renderer = make_renderer(mujoco, model, self._size)
            self._option = mujoco.MjvOption()
            # robosuite keeps its collision shapes in group 0 and marks places with sites.
            self._option.geomgroup[0] = 0
            self._option.sitegroup[:] = 0
        # A step ends with the bodies where they were 2 ms before.
        mujoco.mj_kinematics(model, data)
        mujoco.mj_camlight(model, data)
        # render() makes its own context current first, so environments may take turns.
        self._renderer.update_scene(data, camera=view, scene_option=self._option)
        return check.check(self._renderer.render(out=check.blank()), joints)

    def close(self) -> None:
        """Frees the renderer; calling it again does nothing."""
        if self._renderer is not None:
            close_renderer(self._renderer)
            self._renderer = None
