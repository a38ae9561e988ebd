"""Off-screen renderers of MuJoCo that many simulators of one process may share."""

import atexit
import weakref
from typing import Any

from vlakern.errors import RenderError
from vlakern.sim.gl import choose_renderer

__all__ = ["close_renderer", "make_renderer"]

_open: weakref.WeakSet[Any] = weakref.WeakSet()


def make_renderer(mujoco: Any, model: Any, size: int) -> Any:
    """A renderer of ``size`` pixels a side without shadows, mirrors and multisampling.

    A software renderer spends most of its time on those.

    Args:
        mujoco: the module.

    Raises:
        RenderError: no context can be made.
    """
    model.vis.quality.offsamples = 0
    model.vis.global_.offwidth = max(size, model.vis.global_.offwidth)
    model.vis.global_.offheight = max(size, model.vis.global_.offheight)
    try:
        renderer = mujoco.Renderer(model, size, size)
    except (ImportError, RuntimeError, AttributeError, mujoco.FatalError) as error:
        raise RenderError(
            f"the renderer {choose_renderer()!r} cannot make a context ({error}); unset MUJOCO_GL "
            "or install libegl1 libgl1-mesa-dri (EGL) or libosmesa6 (OSMesa)"
        ) from error
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
    if not _open:
        # Registered after MuJoCo's own hook that ends the display, hence run before it.
        atexit.register(_close_all)
    _open.add(renderer)
    return renderer


def close_renderer(renderer: Any) -> None:
    """Closes one renderer and leaves the others' pictures alone.

    MuJoCo deletes the closed renderer's buffers by number in whatever context is current; under
    OSMesa that can be another renderer's, so the closed one's own is made current first.
    """
    if renderer._gl_context is not None:
        renderer._gl_context.make_current()
    renderer.close()


def _close_all() -> None:
    for renderer in list(_open):
        close_renderer(renderer)
