"""Renderers that share a process."""

from types import SimpleNamespace
from typing import Any

import pytest

from vlakern.errors import RenderError
from vlakern.sim import offscreen


def test_no_context_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """What MuJoCo raises becomes one sentence with the packages."""

    def broken(model: Any, height: int, width: int) -> None:
        raise AttributeError("'NoneType' object has no attribute 'eglQueryString'")

    monkeypatch.setattr(offscreen, "choose_renderer", lambda: "egl")
    mujoco = SimpleNamespace(Renderer=broken, FatalError=RuntimeError)
    quality, limits = SimpleNamespace(offsamples=4), SimpleNamespace(offwidth=640, offheight=480)
    model = SimpleNamespace(vis=SimpleNamespace(quality=quality, global_=limits))
    with pytest.raises(RenderError, match=r"'egl'.*eglQueryString.*libegl1"):
        offscreen.make_renderer(mujoco, model, 1000)
    assert (quality.offsamples, limits.offwidth, limits.offheight) == (0, 1000, 1000)


def test_a_renderer_is_closed_in_its_own_context() -> None:
    """Its buffers have numbers that mean another renderer's in that one's context."""
    calls: list[str] = []
    context = SimpleNamespace(make_current=lambda: calls.append("current"))
    offscreen.close_renderer(
        SimpleNamespace(_gl_context=context, close=lambda: calls.append("close"))
    )
    assert calls == ["current", "close"]
