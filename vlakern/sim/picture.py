"""Says whether a rendered frame is a real picture: drawn now, not uniform, not an old one."""

import numpy as np

from vlakern.errors import RenderError

__all__ = ["FrameCheck"]


class FrameCheck:
    """Guards one view: ``blank()`` gives the buffer to render into, ``check()`` judges the result.

    Off-screen contexts can lose their thread and then leave the caller's memory as it was, draw
    nothing, or hand back the picture before; each of these raises instead of reaching a policy.
    """

    def __init__(self, view: str, height: int, width: int, *, moved: float = 0.02) -> None:
        """Args: moved: change of any pose entry [rad or m] after which the picture must differ."""
        self._view = view
        self._shape = (height, width, 3)
        self._moved = moved
        # One random row for all rows: a renderer that flips an untouched buffer cannot hide it.
        self._poison = np.random.default_rng(0).integers(0, 256, (1, width, 3), dtype=np.uint8)
        self._last: tuple[np.ndarray, np.ndarray] | None = None

    def blank(self) -> np.ndarray:
        """A poisoned uint8 ``[H, W, 3]`` buffer."""
        return np.repeat(self._poison, self._shape[0], axis=0)

    def check(self, frame: np.ndarray, pose: np.ndarray) -> np.ndarray:
        """Returns ``frame`` if it is a picture of the robot at ``pose``.

        Args:
            frame: uint8 ``[H, W, 3]``, rendered into a buffer from ``blank()``.
            pose: ``[N]`` the simulator's positions of the arm, which is always in view.

        Raises:
            RenderError: rows that nothing was written to, one colour everywhere, or the bytes of an
                earlier frame although the arm moved.
        """
        if frame.shape != self._shape or frame.dtype != np.uint8:
            raise self._error(f"is {frame.dtype} {frame.shape}, expected uint8 {self._shape}")
        unwritten = int((frame == self._poison).all(axis=(1, 2)).sum())
        if unwritten:
            raise self._error(f"has {unwritten} of {len(frame)} rows that were never drawn")
        if (frame == frame[0, 0]).all():
            raise self._error(f"shows one colour {tuple(frame[0, 0].tolist())} everywhere")
        self._check_stale(frame, pose)
        return frame

    def _check_stale(self, frame: np.ndarray, pose: np.ndarray) -> None:
        # The reference stays at the first of equal frames, so that slow drifts add up.
        if self._last is None or not np.array_equal(frame, self._last[0]):
            self._last = (frame.copy(), pose.copy())
            return
        moved = float(np.abs(pose - self._last[1]).max())
        if moved > self._moved:
            raise self._error(f"is the same as before although the arm moved by {moved:.3f}")

    def _error(self, what: str) -> RenderError:
        return RenderError(
            f"frame of view {self._view!r} {what}; the renderer lost its context: "
            "close other renderers of this process or try MUJOCO_GL=osmesa"
        )
