"""Chooses MuJoCo's off-screen renderer before MuJoCo is imported."""

import ctypes
import ctypes.util
import functools
import importlib
import importlib.util
import warnings

from vlakern import env
from vlakern.errors import RenderError

__all__ = ["choose_renderer"]

_EGL_PLATFORM_DEVICE = 0x313F
_EGL_OPENGL_API = 0x30A2
# Any colour buffer with depth that desktop OpenGL can draw to: EGL_RENDERABLE_TYPE = OPENGL_BIT.
_EGL_CONFIG = (0x3033, 0x0001, 0x3040, 0x0008, 0x3024, 8, 0x3025, 24, 0x3038)
_INSTALL = (
    "no off-screen renderer works; on Debian or Ubuntu run "
    "`apt-get install libegl1 libgl1-mesa-dri` (EGL) or `apt-get install libosmesa6` (OSMesa)"
)
_NEEDS = {
    "egl": "run `apt-get install libegl1 libgl1-mesa-dri`",
    "osmesa": "run `apt-get install libosmesa6`",
    "glfw": "start a display: GLFW needs one",
}


@functools.cache
def choose_renderer() -> str:
    """The renderer MuJoCo will use, decided once per process; the user's ``MUJOCO_GL`` wins.

    Raises:
        RenderError: the forced renderer, or neither EGL nor OSMesa, works; the message names the
            packages to install.
    """
    forced = env.renderer()
    _load_triton_first()
    if forced:
        # MuJoCo would end in a traceback of its own where the library or the display is missing.
        if not {"egl": _egl_works, "osmesa": _osmesa_loads, "glfw": _glfw_starts}[forced]():
            raise RenderError(
                f"MUJOCO_GL={forced} does not work here; unset it, or {_NEEDS[forced]}"
            )
        return forced
    if _egl_works():
        return env.default_renderer("egl")
    if _osmesa_loads():
        return env.default_renderer("osmesa")
    raise RenderError(_INSTALL)


def _load_triton_first() -> None:
    """Loads Triton where it is installed: after Mesa, which brings an LLVM too, it would crash."""
    if importlib.util.find_spec("triton") is not None:
        importlib.import_module("triton")


def _egl_works() -> bool:
    """Whether libEGL loads and one of its devices gives an OpenGL context."""
    try:
        egl = ctypes.CDLL(ctypes.util.find_library("EGL") or "libEGL.so.1")
    except OSError:
        return False
    for name in ("eglGetProcAddress", "eglCreateContext"):
        getattr(egl, name).restype = ctypes.c_void_p
    return any(_context_works(egl, display) for display in _egl_displays(egl))


def _egl_displays(egl: ctypes.CDLL) -> list[ctypes.c_void_p]:
    """The initialised display of every EGL device."""
    query_address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    display_address = egl.eglGetProcAddress(b"eglGetPlatformDisplayEXT")
    if not query_address or not display_address:
        return []
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    query = ctypes.CFUNCTYPE(integer, integer, ctypes.POINTER(pointer), ctypes.POINTER(integer))(
        query_address
    )
    get_display = ctypes.CFUNCTYPE(pointer, integer, pointer, pointer)(display_address)
    devices, count = (pointer * 16)(), integer(0)
    if not query(16, devices, ctypes.byref(count)):
        return []
    displays = [get_display(_EGL_PLATFORM_DEVICE, devices[k], None) for k in range(count.value)]
    return [
        pointer(display)
        for display in displays
        if display and egl.eglInitialize(pointer(display), None, None)
    ]


def _context_works(egl: ctypes.CDLL, display: ctypes.c_void_p) -> bool:
    """Whether ``display`` makes an OpenGL context; the context is destroyed again."""
    attributes = (ctypes.c_int * len(_EGL_CONFIG))(*_EGL_CONFIG)
    config, count = ctypes.c_void_p(), ctypes.c_int(0)
    egl.eglChooseConfig(display, attributes, ctypes.byref(config), 1, ctypes.byref(count))
    if count.value < 1 or not egl.eglBindAPI(_EGL_OPENGL_API):
        return False
    context = egl.eglCreateContext(display, config, None, None)
    if not context:
        return False
    egl.eglDestroyContext(display, ctypes.c_void_p(context))
    return True


def _osmesa_loads() -> bool:
    try:
        ctypes.CDLL(ctypes.util.find_library("OSMesa") or "libOSMesa.so.8")
    except OSError:
        return False
    return True


def _glfw_starts() -> bool:
    import glfw

    with warnings.catch_warnings():
        # Its only way to say why, and the answer says enough.
        warnings.simplefilter("ignore")
        return bool(glfw.init())
