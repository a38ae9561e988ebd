"""The choice of an off-screen renderer."""

import subprocess
import sys

import pytest

from vlakern.errors import ConfigError, RenderError
from vlakern.sim import gl


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch):
    """No choice made yet, and the environment variable free to be set."""
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.delenv("MUJOCO_GL")
    gl.choose_renderer.cache_clear()
    yield monkeypatch
    gl.choose_renderer.cache_clear()


def test_a_renderer_works_here():
    """This machine renders, which the other tests of this room need."""
    assert gl.choose_renderer() in ("egl", "osmesa", "glfw")


WORKS = {"egl": "_egl_works", "osmesa": "_osmesa_loads", "glfw": "_glfw_starts"}


@pytest.mark.parametrize("name", WORKS)
def test_user_wins(fresh: pytest.MonkeyPatch, name: str):
    """A renderer named by MUJOCO_GL is taken although another one comes first."""
    fresh.setenv("MUJOCO_GL", name)
    fresh.setattr(gl, "_egl_works", lambda: True)
    fresh.setattr(gl, WORKS[name], lambda: True)
    assert gl.choose_renderer() == name


@pytest.mark.parametrize("name", WORKS)
def test_forced_renderer_that_does_not_work(fresh: pytest.MonkeyPatch, name: str):
    """It is refused by name with the way out, although others work."""
    for question in WORKS.values():
        fresh.setattr(gl, question, lambda: True)
    fresh.setenv("MUJOCO_GL", name)
    fresh.setattr(gl, WORKS[name], lambda: False)
    with pytest.raises(RenderError, match=f"MUJOCO_GL={name} does not work here; unset it, or "):
        gl.choose_renderer()


def test_no_display_is_no_glfw(fresh: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder):
    """Without a display GLFW says no, quietly."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        fresh.delenv(name, raising=False)
    assert gl._glfw_starts() is False
    assert not recwarn.list


def test_unknown_renderer(fresh: pytest.MonkeyPatch):
    """A word that is no renderer is named."""
    fresh.setenv("MUJOCO_GL", "vulkan")
    with pytest.raises(ConfigError, match="vulkan"):
        gl.choose_renderer()


@pytest.mark.parametrize(("egl", "osmesa", "chosen"), [(1, 1, "egl"), (0, 1, "osmesa")])
def test_order(fresh: pytest.MonkeyPatch, egl: int, osmesa: int, chosen: str):
    """EGL before OSMesa."""
    fresh.setattr(gl, "_egl_works", lambda: bool(egl))
    fresh.setattr(gl, "_osmesa_loads", lambda: bool(osmesa))
    assert gl.choose_renderer() == chosen


def test_libraries_that_do_not_load(fresh: pytest.MonkeyPatch):
    """Without libraries the message says what to install."""

    def refuse(name: str) -> None:
        raise OSError(name)

    fresh.setattr(gl.ctypes, "CDLL", refuse)
    with pytest.raises(RenderError, match=r"apt-get install libegl1.*libosmesa6"):
        gl.choose_renderer()


def test_triton_survives_a_renderer():
    """Rendering first and Triton's kernels afterwards is one process without a crash."""
    code = (
        "from vlakern.sim import gl\n"
        "gl.choose_renderer()\n"
        "from mujoco import GLContext\n"
        "context = GLContext(8, 8)\n"
        "context.make_current()\n"
        "import triton\n"
        "print(triton.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "triton\n"), done.stderr
