"""Frames that are no real pictures are refused."""

import numpy as np
import pytest

from vlakern.errors import RenderError
from vlakern.sim.picture import FrameCheck

REST = np.zeros(7)


@pytest.fixture
def check() -> FrameCheck:
    return FrameCheck("left", 8, 6)


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 6, 3), dtype=np.uint8)


def test_real_picture_passes(check: FrameCheck):
    """A picture comes back unchanged."""
    frame = picture(1)
    assert check.check(frame, REST) is frame


def test_untouched_buffer(check: FrameCheck):
    """A buffer nothing was drawn into raises, also upside down."""
    with pytest.raises(RenderError, match="8 of 8 rows"):
        check.check(check.blank(), REST)
    with pytest.raises(RenderError, match="never drawn"):
        check.check(np.flipud(check.blank()), REST)


def test_half_drawn_buffer(check: FrameCheck):
    """A buffer that was drawn in part raises."""
    frame = check.blank()
    frame[:5] = picture(1)[:5]
    with pytest.raises(RenderError, match="3 of 8 rows"):
        check.check(frame, REST)


@pytest.mark.parametrize("level", [0, 127, 255])
def test_one_colour(check: FrameCheck, level: int):
    """One colour everywhere is no picture."""
    with pytest.raises(RenderError, match="one colour"):
        check.check(np.full((8, 6, 3), level, np.uint8), REST)


def test_stale_frame(check: FrameCheck):
    """The bytes of before raise once the arm has moved, and only then."""
    check.check(picture(1), REST)
    check.check(picture(1), REST + 0.01)
    with pytest.raises(RenderError, match=r"arm moved by 0\.030"):
        check.check(picture(1), REST + 0.03)


def test_slow_drift_is_stale(check: FrameCheck):
    """Small movements under an unchanging picture add up."""
    check.check(picture(1), REST)
    check.check(picture(1), REST + 0.015)
    with pytest.raises(RenderError, match="same as before"):
        check.check(picture(1), REST + 0.025)


def test_new_picture_of_moved_arm(check: FrameCheck):
    """A moved arm with a new picture is fine, and the new one is the reference."""
    check.check(picture(1), REST)
    check.check(picture(2), REST + 1.0)
    check.check(picture(2), REST + 1.0)
    check.check(picture(1), REST + 2.0)


@pytest.mark.parametrize("frame", [np.zeros((8, 5, 3), np.uint8), np.zeros((8, 6, 3))])
def test_wrong_shape_or_dtype(check: FrameCheck, frame: np.ndarray):
    """Anything but uint8 [H, W, 3] raises."""
    with pytest.raises(RenderError, match="expected uint8"):
        check.check(frame, REST)
